"""What a launch, a grid barrier and a byte cost on the GPU that is there: the constants of the cost model."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from luce_edu.backends import make_backend
from luce_edu.measure.floor import DATASHEET_GB_PER_S
from luce_edu.measure.latency import time_rounds
from luce_edu.stages.dims import BLOCK_THREADS, GRID_BARRIER_WORDS

SOURCE, KERNELS = "microbench.cu", ("nothing", "barriers", "read_all", "copy_all")
MANY = 200  # launches or barriers a round
BYTES = 2**30  # larger than any L2, so that a pass comes from memory


@dataclass(frozen=True)
class LaunchCosts:
    """Microseconds each, of many back to back; dependent_us is None before Hopper."""

    plain_us: float
    graph_us: float
    dependent_us: float | None
    barrier_us: float

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Bandwidth:
    """GB/s (10^9 bytes): reading alone; copying, bytes read plus bytes written; the datasheet's, where it is known."""

    read: float
    copy: float
    datasheet: float | None

    def to_dict(self) -> dict:
        return asdict(self)


def measure_launch_costs(backend=None) -> LaunchCosts:
    """Raises ValueError where there is no GPU that can serve."""
    backend = backend or make_backend("cuda")
    plain = _nothing(backend, dependent=False)
    graph = backend.capture(plain)
    dependent_us = None
    if backend.dependent_launch:
        chained = backend.capture(_nothing(backend, dependent=True))
        dependent_us = time_rounds(lambda: backend.replay(chained), each=MANY).median
    kernel = backend.compile(SOURCE, KERNELS, {"BLOCK_THREADS": BLOCK_THREADS})["barriers"]
    state = torch.zeros(GRID_BARRIER_WORDS, dtype=torch.int32, device=backend.device)
    blocks = _blocks(backend, kernel)

    def barriers(count: int):
        return lambda: backend.launch(kernel, blocks, BLOCK_THREADS, 0, (state, count), cooperative=True)

    # Two lengths, so that the launch itself drops out.
    short, long = (time_rounds(barriers(count)).median for count in (MANY, 3 * MANY))
    return LaunchCosts(
        plain_us=time_rounds(plain, each=MANY).median,
        graph_us=time_rounds(lambda: backend.replay(graph), each=MANY).median,
        dependent_us=dependent_us,
        barrier_us=(long - short) / (2 * MANY),
    )


def _blocks(backend, kernel) -> int:
    """A block for each multiprocessor, as the stages' kernels have it or nearly so."""
    resident = backend.max_resident_blocks(kernel, BLOCK_THREADS, 0)
    return min(resident, torch.cuda.get_device_properties(backend.device).multi_processor_count)


def _nothing(backend, *, dependent: bool):
    defines = {"BLOCK_THREADS": BLOCK_THREADS} | ({"DEPENDENT_LAUNCH": 1} if dependent else {})
    kernel = backend.compile(SOURCE, KERNELS, defines)["nothing"]
    blocks = _blocks(backend, kernel)  # asking also loads it, which a capture must not

    def enqueue():
        for _ in range(MANY):
            backend.launch(kernel, blocks, BLOCK_THREADS, 0, (), dependent=dependent)

    return enqueue


def measure_bandwidth(backend=None, *, size: int = BYTES) -> Bandwidth:
    """Read and copy `size` bytes of random bits; raises ValueError where there is no GPU that can serve."""
    backend = backend or make_backend("cuda")
    module = backend.compile(SOURCE, KERNELS, {"BLOCK_THREADS": BLOCK_THREADS})
    vectors = size // 16
    bits = torch.randint(0, 2**15, (2, vectors * 8), dtype=torch.int16, device=backend.device)
    sink = torch.zeros(1, dtype=torch.int32, device=backend.device)
    read, copy = module["read_all"], module["copy_all"]
    read_us = time_rounds(
        lambda: backend.launch(
            read, backend.max_resident_blocks(read, BLOCK_THREADS, 0), BLOCK_THREADS, 0, (bits[0], vectors, sink)
        )
    ).median
    copy_us = time_rounds(
        lambda: backend.launch(
            copy, backend.max_resident_blocks(copy, BLOCK_THREADS, 0), BLOCK_THREADS, 0, (bits[0], bits[1], vectors)
        )
    ).median
    if not torch.equal(bits[0], bits[1]):
        raise AssertionError("the copy is not equal to what was copied")
    return Bandwidth(size / read_us / 1e3, 2 * size / copy_us / 1e3, datasheet_bandwidth())


def datasheet_bandwidth() -> float | None:
    """GB/s by the datasheet of the GPU that is there, found by its name; None for one that is not in the table."""
    name = torch.cuda.get_device_name().replace("NVIDIA ", "").replace("GeForce ", "")
    full = {"H200": "H200 SXM", "H100 80GB HBM3": "H100 SXM", "A100-SXM4-80GB": "A100 80GB SXM", "Tesla T4": "T4"}
    return DATASHEET_GB_PER_S.get(full.get(name, name))
