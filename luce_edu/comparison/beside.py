"""Our kernels and Triton's on the virtual GPU: both are checked, counted and timed in the same way.

Ours are rms_norm and matvec of csrc/per_op.cu. Triton's run from stored PTX (stored.py), so this needs no Triton.

The clock favours Triton in rms_norm. NVRTC's PTX has a branch around each load of ours, and the clock keeps it;
NVIDIA's assembler makes a predicate of it, so that all loads go out together. Triton's PTX has no such branch.
tests/comparison/test_beside.py says what that is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from luce_edu.comparison.stored import Compiled, stored
from luce_edu.config import ModelConfig
from luce_edu.errors import KernelError
from luce_edu.inline.specs import Shape, find_spec
from luce_edu.machine import Kernel, Prepared, load, run
from luce_edu.machine.cards import find_card
from luce_edu.machine.counters import Counters
from luce_edu.machine.cubin import Resources, compile_cubin
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.measure.profile import Profile, number, profile
from luce_edu.measure.records.record import Record, load_records, recorded
from luce_edu.models import RANDOM_CONFIG
from luce_edu.show import find_source
from luce_edu.stages.dims import BLOCK_THREADS, kernel_defines
from luce_edu.tables import Tabular
from luce_edu.verification import relative_error

CARDS = ("RTX 3090", "H200")
TRITON_SOURCE = "luce_edu/comparison/triton_kernels.py"
_SOURCE = "per_op.cu"
_WARPS = BLOCK_THREADS // 32


@dataclass(frozen=True)
class Task:
    """What is to be computed, and how our kernel of that name does it.

    spec       inputs and truth, by name in luce_edu/inline/specs.py
    shapes     that are checked; the last one is counted and timed
    arguments  of our kernel
    rows       that a block of it has;  smem: bytes of dynamic shared memory of such a block
    source     it, and what it calls in csrc/: file and name of each
    """

    spec: str
    shapes: Sequence[Shape]
    arguments: Sequence[str]
    rows: int
    smem: int
    source: Sequence[tuple[str, str]]


TASKS = {
    "rms_norm": Task(
        "reference.rms_norm", ({"rows": 1, "n": 1024},), ("x", "weight", "y"), rows=1, smem=0,
        source=(("per_op.cu", "rms_norm"), ("rms_norm.cuh", "block_rms_norm"), ("block.cuh", "block_sum"),
                ("block.cuh", "<warp_sum>")),
    ),
    "matvec": Task(
        "F.linear", tuple({"rows": rows, "cols": 1024} for rows in (1, 7, 130, 3584)), ("W", "x", "y", "rows", "cols"),
        rows=_WARPS, smem=4 * 1024,
        source=(("per_op.cu", "matvec"), ("matvec.cuh", "staged"), ("matvec.cuh", "dot8"),
                ("primitives.cuh", "bf16x8"), ("primitives.cuh", "load_weights"), ("primitives.cuh", "even"),
                ("primitives.cuh", "odd"), ("block.cuh", "<warp_sum>")),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One kernel, compiled for one card, and how it is launched.

    arguments  names of its arguments;  rows, threads, smem: of a block
    resources  what its own compiler reports
    """

    task: Task
    kernel: Kernel
    arguments: Sequence[str]
    rows: int
    threads: int
    smem: int
    resources: Resources

    def prepare(self, shape: Shape, inputs: Mapping[str, object]) -> tuple[Prepared, torch.Tensor]:
        """Return a launch, and its output, which is full of NaN until the launch has run."""
        y = torch.full(find_spec(self.task.spec).outputs(shape)["y"], torch.nan)
        values = dict(shape) | dict(inputs) | {"y": y}
        args = [values[name] for name in self.arguments]
        args += [0] * (len(self.kernel.parameters) - len(args))  # Triton's pointers to memory that no kernel here needs
        resident = self.kernel.resident_blocks(self.threads, self.smem, registers=self.resources.registers)
        grid = -(-shape["rows"] // self.rows)
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        how = {"smem": self.smem, "resident": resident, "tensors": tensors}
        return self.kernel.prepare(grid, self.threads, args, **how), y


def ours(name: str, card: str) -> Side:
    """Our kernel for a card, with the dimensions of Qwen3.5-0.8B."""
    task, defines = TASKS[name], kernel_defines(ModelConfig.from_file(RANDOM_CONFIG))
    arch = find_card(card).arch
    kernel = load(compile_ptx(_SOURCE, None, [name], defines, arch), card=card)[name]
    resources = compile_cubin(_SOURCE, [name], defines, arch.replace("compute_", "sm_")).resources[name]
    return Side(task, kernel, task.arguments, task.rows, BLOCK_THREADS, task.smem, resources)


def tritons(name: str, card: str, made: Compiled | None = None) -> Side:
    """Triton's kernel for a card: `made`, or the stored one."""
    made = made or stored()[name, find_card(card).arch.replace("compute_", "sm_")]
    kernel = load(made.ptx, card=card, source=made.file)[name]
    rows = made.constants.get("ROWS", 1)
    return Side(TASKS[name], kernel, made.arguments, rows, made.threads, made.shared_bytes, made.resources)


def check(side: Side) -> Counters:
    """Run a kernel on every shape, on fresh inputs, in the usual order and in a hostile one with a search for races.

    Returns the counts of the last shape. Raises KernelError for a result that is not the reference's, and for what the
    virtual GPU refuses.
    """
    spec = find_spec(side.task.spec)
    for shape in side.task.shapes:
        inputs = spec.make(shape, torch.randn)
        truth = spec.truth(inputs, shape)["y"]
        for order in ({"seed": 0, "hostile": True, "races": True}, {}):
            launch, y = side.prepare(shape, inputs)
            (counters,) = run([launch], **order)
            error = relative_error(y, truth)
            if not error <= spec.limit:
                raise KernelError(f"{side.kernel.name}, {dict(shape)}: off by {error:.1e}, more than {spec.limit:.0e}")
    return counters


@dataclass(frozen=True)
class Figures:
    """The figures of one kernel in the table: by card where the cards differ, else of the first card.

    lines         of source without comments;  lines_with_calls: and those of the functions of csrc/ that it calls
    registers     per thread;  spilled: bytes per thread, stored and loaded
    instructions  of warps, in machine code;  barriers: that a block passes
    bytes_read, bytes_written  32 for each sector that a warp's access touches
    us            from the first block to the last, with nothing in L2 before; modelled
    """

    lines: int
    lines_with_calls: int
    threads: int
    shared_bytes: int
    registers: Mapping[str, int]
    spilled: Mapping[str, int]
    instructions: float
    barriers: float
    bytes_read: int
    bytes_written: int
    us: Mapping[str, float]


def measure(sides: Mapping[str, Side], lines: Sequence[int]) -> Figures:
    """Check a kernel on each card, then count and time it. lines: of the kernel, and of each function that it calls."""
    counted = {card: check(side) for card, side in sides.items()}
    found = {card: timed(side) for card, side in sides.items()}
    first = next(iter(sides))
    side, traffic = sides[first], counted[first].traffic.values()
    used = {card: side.resources for card, side in sides.items()}
    return Figures(
        lines=lines[0], lines_with_calls=sum(lines), threads=side.threads,
        shared_bytes=side.smem + side.resources.shared_bytes,
        registers={card: each.registers for card, each in used.items()},
        spilled={card: each.spill_store_bytes + each.spill_load_bytes for card, each in used.items()},
        instructions=found[first].instructions, barriers=counted[first].barriers_a_block,
        bytes_read=sum(tensor.moved_read for tensor in traffic),
        bytes_written=sum(tensor.moved_write for tensor in traffic),
        us={card: each.total_us - each.launch_us for card, each in found.items()},
    )  # fmt: skip


def timed(side: Side) -> Profile:
    """Time the last shape with the clock."""
    spec, shape = find_spec(side.task.spec), side.task.shapes[-1]
    generator = torch.Generator().manual_seed(0)
    launch, _ = side.prepare(shape, spec.make(shape, lambda *size: torch.randn(size, generator=generator)))
    return profile(launch)


def code_lines(path: str, name: str) -> int:
    """Lines of a function or type that are neither blank nor a comment."""
    lines = map(str.strip, find_source(path, name).text.split("\n"))
    return sum(bool(line) and not line.startswith(("//", "# ")) for line in lines)


@dataclass(frozen=True, repr=False)
class Beside(Tabular):
    """Ours and Triton's, by kernel, and the least bytes that each kernel has to read and write."""

    figures: Mapping[str, tuple[Figures, Figures]]
    least: Mapping[str, tuple[int, int]]

    @property
    def header(self) -> list[str]:
        return ["", *(f"{name}, {who}" for name in self.figures for who in ("ours", "Triton", "at least"))]

    @property
    def body(self) -> list[list[str]]:
        def row(said: str, value: Callable[[Figures], str], least: Callable[[str], str] = lambda _: "") -> list[str]:
            cells = [[*map(value, pair), least(name)] for name, pair in self.figures.items()]
            return [said, *(cell for three in cells for cell in three)]

        def least_us(name: str, card: str) -> str:
            return number(sum(self.least[name]) / (find_card(card).memory_gb_per_s * 1e3))

        return [
            row("lines of the kernel", lambda f: f"{f.lines}"),
            row("with the functions that it calls", lambda f: f"{f.lines_with_calls}"),
            row("threads per block", lambda f: f"{f.threads}"),
            row("shared memory per block, bytes", lambda f: f"{f.shared_bytes:,}"),
            *(row(f"registers per thread, {card}", lambda f, card=card: f"{f.registers[card]}") for card in CARDS),
            row("bytes spilled per thread", lambda f: f"{max(f.spilled.values())}", lambda _: "0"),
            row("machine instructions of warps", lambda f: f"{f.instructions:,.0f}"),
            row("barriers per block", lambda f: f"{f.barriers:g}"),
            row("bytes read", lambda f: f"{f.bytes_read:,}", lambda name: f"{self.least[name][0]:,}"),
            row("bytes written", lambda f: f"{f.bytes_written:,}", lambda name: f"{self.least[name][1]:,}"),
            *(row(f"µs, {card}, modelled", lambda f, card=card: number(f.us[card]), partial(least_us, card=card))
              for card in CARDS),
        ]  # fmt: skip

    @property
    def caption(self) -> str:
        sizes = "; ".join(f"{name}: {_words(TASKS[name].shapes[-1])}" for name in self.figures)
        made = next(iter(stored().values()))
        return (
            f"{sizes}. Every kernel was checked against the fp32 reference first. Bytes: 32 for each sector that a "
            "warp touches, counted on the virtual GPU. Registers and spills: NVIDIA's compiler; for Triton "
            f"{made.triton}, its own ptxas {made.ptxas}. Shared memory, instructions, barriers and bytes: of the code "
            f"for an {CARDS[0]}. Time: with nothing in L2 before. {on_gpus(load_records())}"
        )


def on_gpus(records: Iterable[Record]) -> str:
    """Say what torch.compile, cuBLAS and our kernels took on GPUs, from the part "tasks" of records."""
    found = []
    for record in recorded(records, "tasks"):
        rows = [row for row in record.parts["tasks"].rows if row.latency_us]
        times = ", ".join(f"{row.task} by {row.system} {number(row.latency_us.median)} µs" for row in rows)
        found.append(f"{times} ({record.provenance}).")
    return " ".join(found) or "torch.compile and cuBLAS: not recorded yet."


def beside() -> Beside:
    """Check, count and time our kernels and Triton's on CARDS. Raises as `check` does."""
    figures, least = {}, {}
    for name, task in TASKS.items():
        own = [code_lines(f"csrc/{file}", part) for file, part in task.source]
        figures[name] = (
            measure({card: ours(name, card) for card in CARDS}, own),
            measure({card: tritons(name, card) for card in CARDS}, [code_lines(TRITON_SOURCE, name)]),
        )
        spec, shape = find_spec(task.spec), task.shapes[-1]
        read = sum(value.nbytes for value in spec.make(shape, torch.randn).values() if isinstance(value, torch.Tensor))
        least[name] = read, 4 * math.prod(spec.outputs(shape)["y"])
    return Beside(figures, least)


def _words(shape: Shape) -> str:
    return ", ".join(f"{name} {size:,}" for name, size in shape.items())
