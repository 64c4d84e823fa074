"""The host backend: NVIDIA's compiler turns csrc/ into PTX, and the virtual GPU (luce_edu/machine) runs it.

It needs no GPU. It is exact but slow. It counts what each launch does, and reports deadlocks and stray accesses.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from luce_edu import paths
from luce_edu.backends.ledger import PRODUCT, Launch, Ledger, check_product, graph_launch
from luce_edu.machine.cards import Card, find_card, triple
from luce_edu.machine.cubin import registers_of
from luce_edu.machine.kernels import INSTRUCTIONS, Kernel, Memory, Prepared, Variables, parsed, run
from luce_edu.machine.marks import Marks
from luce_edu.machine.module import Module
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.machine.timed import Device, LaunchTimes, Timeline, run_timed

DEPENDENT_LAUNCH_CAPABILITY = (9, 0)


@dataclass(frozen=True)
class HostGraph:
    """The virtual GPU's form of a CUDA graph: launches with checked arguments, not yet run, and matrix products."""

    steps: tuple[Prepared | Callable[[], None], ...]


class Started:
    """Launches under way: `is_set()` says whether they have ended, `wait()` waits, and raises what they raised."""

    def __init__(self, run: Callable[[], None]):
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(run)
        self._pool.shutdown(wait=False)

    def is_set(self) -> bool:
        return self._future.done()

    def wait(self) -> None:
        self._future.result()


class HostBackend:
    """Run kernels on the CPU; a launch returns when the kernel has ended.

    csrc_dir  another source tree, such as one with a planted fault
    card      the card that is modelled: its resident blocks, its limits, its architecture. A Card, or a name that
              `luce-edu cards` lists; None for LUCE_CARD, or else the laptop
    seed      None: blocks run in parallel, warps in turn. An int: one warp runs at a time, in an order that it draws
    hostile   each block sees what other blocks wrote as late as the memory model allows
    races     report two accesses to the same address that no barrier, fence or atomic orders
    marks     report a read of an element that nothing has written yet
    strict    refuse a __syncthreads that some threads of the block miss because they have exited. False: wait for the
              others only, as a GPU does since Volta
    instructions  that the warps of a launch may execute before it is stopped; not counted with a clock
    clock     a Device: each launch gets times modelled for its card (Launch.times), and its L2 stays warm between
              launches. Not with seed, hostile or races. None: no times. It may be changed between two launches
    waits_from_us, bucket_us  with a clock: keep in `timelines` the waits that are at least so long, one time line per
              row of launches, with DRAM bytes in buckets of this length; None: no time line
    Raises ValueError for a clock with a seed, or for a clock of another card.
    """

    name = "host"
    lazy_loading = False

    def __init__(
        self, *, csrc_dir: Path | None = None, card: Card | str | None = None, seed: int | None = None,
        hostile: bool = False, races: bool = False, marks: Marks | None = None, strict: bool = True,
        instructions: int = INSTRUCTIONS, threads: int | None = None, clock: Device | None = None,
        waits_from_us: float | None = None, bucket_us: float = 0.25,
    ):  # fmt: skip
        self.device = torch.device("cpu")
        self.csrc_dir = paths.csrc_dir() if csrc_dir is None else Path(csrc_dir)
        self.card = card if isinstance(card, Card) else find_card(card)
        self.sm_count, self.capability = self.card.sm_count, self.card.capability
        self.shared_memory_per_block = self.card.shared_per_block
        self.dependent_launch = self.card.capability >= DEPENDENT_LAUNCH_CAPABILITY
        self.strict = strict
        self.seed, self.hostile, self.races, self.marks = seed, hostile, races, marks
        self.instructions, self.threads = instructions, threads
        if clock is not None:
            _check_clock(clock, self.card, seed is not None or hostile or races)
        self.clock, self.waits_from_us, self.bucket_us = clock, waits_from_us, bucket_us
        self.timelines: list[Timeline] = []
        self.memory = Memory()
        self.ledger = Ledger()
        self._capturing: list | None = None

    def name_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Name the tensors that kernels may access through pointers in memory; arguments get these names too."""
        self.memory.name(tensors)

    def compile(self, source: str, kernels: Sequence[str], defines: Mapping[str, object]) -> Module[Kernel]:
        """Compile csrc/`source`, or take it from the cache, and load it. Raises CompileError."""
        arch = self.card.arch
        text = compile_ptx(source, None, kernels, defines, arch, csrc=self.csrc_dir)
        variables = Variables(parsed(text))

        def registers(name: str) -> int:
            return registers_of(source, None, [name], defines, arch, csrc=self.csrc_dir)[name]

        return Module(source, {
            name: Kernel(text, name, variables, self.card, functools.partial(registers, name)) for name in kernels
        })  # fmt: skip

    def launch(
        self, kernel: Kernel, grid, block, smem: int, args, cooperative: bool = False, dependent: bool = False
    ) -> None:
        """Run `kernel` to its end. Tensors are passed as pointers, ints by their bits, floats in the parameter's type.

        grid, block  an int or a tuple of up to three
        smem         dynamic shared memory, bytes
        dependent    the kernel may start before the one before it has ended; it does in a graph with a seed
        Raises LaunchError before anything runs; KernelError for a kernel that failed. For a deadlock it says which
        warps wait where.
        """
        resident = self.max_resident_blocks(kernel, block, smem) if cooperative else None
        self._do(
            Prepared(
                kernel, grid, block, args, smem=smem, cooperative=cooperative, dependent=dependent, strict=self.strict,
                memory=self.memory, resident=resident,
            )
        )  # fmt: skip

    def matmul(self, x, weights: Sequence, out) -> None:
        """Compute the product of `CudaBackend.matmul` by PyTorch, in fp32 with one rounding at the end."""
        check_product(x, weights, out)
        self._do(functools.partial(_multiply, x, tuple(weights), out))

    def shared_with_host(self, count: int) -> torch.Tensor:
        """Return int32 zeros that a kernel and the host can read and write at the same time."""
        return torch.zeros(count, dtype=torch.int32)

    def start(self, enqueue: Callable[[], None]) -> Started:
        """Run the launches of `enqueue` on a thread of their own, so that the host can follow them."""
        return Started(enqueue)

    def _do(self, step: Prepared | Callable[[], None]) -> None:
        if self._capturing is not None:
            self._capturing.append(step)
        else:
            self._run([step], self.ledger.record)

    def _run(
        self, steps: Sequence[Prepared | Callable[[], None]], record: Callable[[Launch], None], *, graph: bool = False
    ) -> None:
        """Run steps in order, consecutive launches together; each gives its line of the ledger to `record`."""
        row: list[Prepared] = []
        first = True  # of a graph, which the host starts
        for step in [*steps, None]:
            if isinstance(step, Prepared):
                row.append(step)
                continue
            if row:
                self._run_row(row, record, graph=graph, first=first)
                row, first = [], False
            if step is not None:
                step()
                x, weights, out = step.args
                if self.marks:
                    self.marks.written(out)
                record(dataclasses.replace(PRODUCT, product=(*out.shape, x.shape[1])))
                first = False

    def _run_row(self, row: list[Prepared], record: Callable[[Launch], None], *, graph: bool, first: bool) -> None:
        lines = [Launch(p.kernel.name, p.grid, p.block, p.smem, p.cooperative) for p in row]
        times: Sequence[LaunchTimes | None] = [None] * len(row)
        try:
            if self.clock is None:
                counted = run(
                    row, seed=self.seed, hostile=self.hostile, races=self.races, marks=self.marks,
                    instructions=self.instructions, threads=self.threads,
                )  # fmt: skip
            else:
                in_graph = [graph and not (first and i == 0) for i in range(len(row))]
                gaps = [self._gap_us(p, inside) for p, inside in zip(row, in_graph, strict=True)]
                times, timeline = run_timed(
                    row, self.clock, gap_us=gaps, threads=self.threads, wait_from_us=self.waits_from_us,
                    bucket_us=self.bucket_us,
                )  # fmt: skip
                counted = [t.counters for t in times]
                if self.waits_from_us is not None:
                    self.timelines.append(timeline)
        except BaseException:
            for line in lines:
                record(line)
            raise
        for line, counters, timed in zip(lines, counted, times, strict=True):
            record(
                dataclasses.replace(
                    line, traffic=counters.traffic, barriers_a_block=counters.barriers_a_block, counters=counters,
                    times=timed,
                )
            )  # fmt: skip

    def _gap_us(self, launch: Prepared, in_graph: bool) -> float:
        """Return the microseconds between the end of the launch before and the start of this one."""
        clock = self.clock.clock
        gap = clock.graph_gap_us if in_graph else clock.launch_us
        if launch.dependent and self.dependent_launch:
            gap = clock.dependent_gap_us
        return gap + (clock.cooperative_extra_us if launch.cooperative else 0)

    def capture(self, enqueue: Callable[[], None]) -> HostGraph:
        """Collect the launches of `enqueue`, without running them, to be replayed as one with these arguments."""
        self._capturing = []
        try:
            enqueue()
            return HostGraph(tuple(self._capturing))
        finally:
            self._capturing = None

    def prepare(self, enqueue: Callable[[], None]) -> HostGraph:
        """Collect the launches of `enqueue`, without running them; `run` starts them with these arguments."""
        return self.capture(enqueue)

    def run(self, prepared: HostGraph) -> None:
        """Run prepared launches in order, each as a line of the ledger."""
        self._run(prepared.steps, self.ledger.record)

    def replay(self, graph: HostGraph) -> None:
        """Run the launches of a graph in order, as one line of the ledger."""
        entries: list[Launch] = []
        try:
            self._run(graph.steps, entries.append, graph=True)
        finally:
            self.ledger.record(graph_launch(entries))

    def max_resident_blocks(self, kernel: Kernel, block, smem: int) -> int:
        """Return how many blocks the card holds at the same time, which is the largest cooperative grid."""
        block = triple(kernel.name, "block", block)
        kernel.check(1, block, smem)
        return kernel.resident_blocks(block, smem)

    def synchronize(self) -> None:
        """Do nothing: a launch returns when the kernel has ended."""


def _check_clock(device: Device, card: Card, other_order: bool) -> None:
    clock = device.clock
    if (clock.card, clock.sm_count) != (card.name, card.sm_count):
        raise ValueError(
            f"clock: expected one for the card {card.name} with {card.sm_count} SMs, got {clock.card} with "
            f"{clock.sm_count}"
        )
    if other_order:
        raise ValueError("clock: it decides the order of warps; leave out seed, hostile and races")


def _multiply(x, weights, out) -> None:
    """Compute out = x @ weights^T for bf16 tensors with sums in fp32, as tensor cores do."""
    at = 0
    for weight in weights:
        out[:, at : at + len(weight)] = x.float() @ weight.float().T
        at += len(weight)
