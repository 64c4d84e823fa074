"""Measure the constants of the cost model on a GPU: the cost of a launch, of a grid barrier and of a byte."""

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
MANY = 200  # launches or barriers per round
PASSES = 4  # over the memory, per round
BYTES = 2**30  # larger than any L2, so that every pass reads from memory
ROUNDS = 15
LOAD_US = 5e5  # of work before the first round, as an idle GPU has a low clock: an H200 345 of its 1980 MHz


@dataclass(frozen=True)
class LaunchCosts:
    """µs per launch or barrier, of many back to back. dependent_us is None on GPUs before Hopper.

    plain_us is the longer of two times: the CPU's to enqueue a launch and the GPU's to start it.
    """

    plain_us: Positive
    graph_us: Positive
    dependent_us: float | None
    barrier_us: Positive


@dataclass(frozen=True)
class Bandwidth:
    """GB/s (10^9 bytes) of reading, of copying (bytes read plus written), and of the datasheet, None if unknown."""

    read: Positive
    copy: Positive
    datasheet: float | None


def measure_launch_costs(backend=None) -> LaunchCosts:
    """Time launches and grid barriers on the GPU. Raises ValueError without a GPU that can run our kernels."""
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
        barrier_us=(us["long"] - us["short"]) / (2 * MANY),  # the difference removes the launch
    )


def _round_us(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median µs of each of `works`, by name.

    The GPU runs under load first, so that its clock rises. Then the works take turns, so that a drifting clock changes
    all of them alike. In its turn, each is enqueued twice and timed the second time. The GPU is still busy with the
    first while the CPU enqueues the second, so the CPU's time is not counted.
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
    """Return one block per SM, about the grid of the stages' kernels."""
    resident = backend.max_resident_blocks(kernel, BLOCK_THREADS, 0)
    return min(resident, torch.cuda.get_device_properties(backend.device).multi_processor_count)


def _loaded(backend, *, dependent: bool):
    """Return a function that enqueues MANY empty launches. It has run once, as a capture must not load a kernel."""
    defines = {"BLOCK_THREADS": BLOCK_THREADS} | ({"DEPENDENT_LAUNCH": 1} if dependent else {})
    kernel = backend.compile(SOURCE, KERNELS, defines)["nothing"]
    blocks = _blocks(backend, kernel)

    def enqueue():
        for _ in range(MANY):
            backend.launch(kernel, blocks, BLOCK_THREADS, 0, (), dependent=dependent)

    enqueue()
    return enqueue


def measure_bandwidth(backend=None, *, size: int = BYTES) -> Bandwidth:
    """Time reading and copying `size` random bytes. Raises ValueError without a GPU that can run our kernels."""
    backend = backend or make_backend("cuda")
    module = backend.compile(SOURCE, KERNELS, {"BLOCK_THREADS": BLOCK_THREADS})
    vectors = size // 16
    bits = torch.randint(0, 2**15, (2, vectors * 8), dtype=torch.int16, device=backend.device)
    sink = torch.zeros(1, dtype=torch.int32, device=backend.device)

    def passes(name: str, *args):
        kernel = module[name]
        blocks = backend.max_resident_blocks(kernel, BLOCK_THREADS, 0)  # outside `enqueue`, as it takes CPU time

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
    """Return the datasheet's GB/s of the current GPU, by its name; None if it is not in the table of cards."""
    card = card_of(torch.cuda.get_device_name())
    return card and card.memory_gb_per_s
