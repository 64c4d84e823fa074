"""What a launch, a grid barrier and a byte cost on the GPU that is there: the constants of the cost model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from luce_edu.backends import make_backend
from luce_edu.machine.cards import card_of
from luce_edu.measure.latency import Quartiles, elapsed_us
from luce_edu.measure.schema import Positive
from luce_edu.stages.dims import BLOCK_THREADS, GRID_BARRIER_WORDS

SOURCE, KERNELS = "microbench.cu", ("nothing", "barriers", "read_all", "copy_all")
MANY = 200  # launches or barriers a round
PASSES = 4  # over the memory a round
BYTES = 2**30  # larger than any L2, so that a pass comes from memory
ROUNDS = 15
LOAD_US = 5e5  # of work before the first round: an idle GPU has a low clock, an H200 345 of its 1980 MHz


@dataclass(frozen=True)
class LaunchCosts:
    """Microseconds each, of many back to back; dependent_us is None before Hopper.

    plain_us is what takes longer, the CPU to ask for a launch or the GPU to do it.
    """

    plain_us: Positive
    graph_us: Positive
    dependent_us: float | None
    barrier_us: Positive


@dataclass(frozen=True)
class Bandwidth:
    """GB/s (10^9 bytes): reading alone; copying, bytes read plus bytes written; the datasheet's, where it is known."""

    read: Positive
    copy: Positive
    datasheet: float | None


def measure_launch_costs(backend=None) -> LaunchCosts:
    """Raises ValueError where there is no GPU that can serve."""
    backend = backend or make_backend("cuda")
    plain = _loaded(backend, dependent=False)
    graph, prepared = backend.capture(plain), backend.prepare(plain)
    kernel = backend.compile(SOURCE, KERNELS, {"BLOCK_THREADS": BLOCK_THREADS})["barriers"]
    state = torch.zeros(GRID_BARRIER_WORDS, dtype=torch.int32, device=backend.device)
    blocks = _blocks(backend, kernel)

    def barriers(count: int):
        return lambda: backend.launch(kernel, blocks, BLOCK_THREADS, 0, (state, count), cooperative=True)

    works = {"plain": lambda: backend.run(prepared), "graph": lambda: backend.replay(graph)}
    works |= {"short": barriers(MANY), "long": barriers(3 * MANY)}
    if backend.dependent_launch:
        chained = backend.capture(_loaded(backend, dependent=True))
        works["dependent"] = lambda: backend.replay(chained)
    us = _round_us(works)
    return LaunchCosts(
        plain_us=us["plain"] / MANY,
        graph_us=us["graph"] / MANY,
        dependent_us=us["dependent"] / MANY if "dependent" in us else None,
        barrier_us=(us["long"] - us["short"]) / (2 * MANY),  # of two lengths, so that the launch itself drops out
    )


def _round_us(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median microseconds of what each of `works` enqueues.

    The GPU is put under load first, so that its clock has risen; then the works take turns, so that a clock which still
    drifts changes all of them alike. Each is enqueued twice in a turn and timed the second time: the GPU is busy with
    the first while the CPU asks for the second, so the CPU's time to ask for it is not counted.
    """
    worked = 0.0
    while worked < LOAD_US:
        worked += sum(elapsed_us(enqueue) for enqueue in works.values())
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, enqueue in works.items():
            enqueue()
            times[name].append(elapsed_us(enqueue))
    return {name: Quartiles.of(values).median for name, values in times.items()}


def _blocks(backend, kernel) -> int:
    """A block for each multiprocessor, as the stages' kernels have it or nearly so."""
    resident = backend.max_resident_blocks(kernel, BLOCK_THREADS, 0)
    return min(resident, torch.cuda.get_device_properties(backend.device).multi_processor_count)


def _loaded(backend, *, dependent: bool):
    """Enqueues MANY launches of the kernel that does nothing; has done so once, as no kernel may load in a capture."""
    defines = {"BLOCK_THREADS": BLOCK_THREADS} | ({"DEPENDENT_LAUNCH": 1} if dependent else {})
    kernel = backend.compile(SOURCE, KERNELS, defines)["nothing"]
    blocks = _blocks(backend, kernel)

    def enqueue():
        for _ in range(MANY):
            backend.launch(kernel, blocks, BLOCK_THREADS, 0, (), dependent=dependent)

    enqueue()
    return enqueue


def measure_bandwidth(backend=None, *, size: int = BYTES) -> Bandwidth:
    """Read and copy `size` bytes of random bits; raises ValueError where there is no GPU that can serve."""
    backend = backend or make_backend("cuda")
    module = backend.compile(SOURCE, KERNELS, {"BLOCK_THREADS": BLOCK_THREADS})
    vectors = size // 16
    bits = torch.randint(0, 2**15, (2, vectors * 8), dtype=torch.int16, device=backend.device)
    sink = torch.zeros(1, dtype=torch.int32, device=backend.device)

    def passes(name: str, *args):
        kernel = module[name]
        blocks = backend.max_resident_blocks(kernel, BLOCK_THREADS, 0)  # asked here, as it takes the CPU's time

        def enqueue():
            for _ in range(PASSES):
                backend.launch(kernel, blocks, BLOCK_THREADS, 0, args)

        return enqueue

    us = _round_us({
        "read": passes("read_all", bits[0], vectors, sink), "copy": passes("copy_all", bits[0], bits[1], vectors),
    })  # fmt: skip
    if not torch.equal(bits[0], bits[1]):
        raise AssertionError("the copy is not equal to what was copied")
    read, copy = (bytes_moved * PASSES / us[name] / 1e3 for name, bytes_moved in (("read", size), ("copy", 2 * size)))
    return Bandwidth(read, copy, datasheet_bandwidth())


def datasheet_bandwidth() -> float | None:
    """GB/s by the datasheet of the GPU that is there, found by its name; None for one that is not in the table."""
    card = card_of(torch.cuda.get_device_name())
    return card and card.memory_gb_per_s
