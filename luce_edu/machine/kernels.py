"""Kernels of the virtual GPU: load PTX, launch its kernels, return reports and counters."""

from __future__ import annotations

import ctypes
import functools
import math
import re
import signal
import struct
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from luce_edu.errors import CompileError, KernelError, LaunchError
from luce_edu.machine import ptx
from luce_edu.machine.assemble import Program, assemble
from luce_edu.machine.cards import Card, check_launch, find_card, resident_blocks, triple
from luce_edu.machine.core import LaunchText, OrderText, ProgramText, Report, Tensor, core, operations, thread_count
from luce_edu.machine.counters import Counters
from luce_edu.machine.lower import GRID_WORKSPACE
from luce_edu.machine.marks import Marks
from luce_edu.machine.module import Module as Named
from luce_edu.machine.report import FAULTS, scene, words

INSTRUCTIONS = 10**13  # that the warps of a launch may execute by default, which takes days; notebook cells have less
_GAP = 64  # bytes between variables of a module, so that an index outside of one is detected

_COUNT = np.dtype([("times", "u8"), ("lanes", "u8")])
_SITE = np.dtype([(name, "u8") for name in ("times", "lanes", "bytes", "sectors", "wavefronts")])
_TRAFFIC = np.dtype([
    (name, "u8")
    for name in (
        "asked_read", "asked_write", "moved_read", "moved_write", "distinct_read", "distinct_write", "gap_begin",
        "gap_end",
    )
])  # fmt: skip


@functools.lru_cache(maxsize=16)
def parsed(text: str) -> ptx.Module:
    """Parse a PTX text; once, because tests and cells load the same text again and again."""
    return ptx.parse(text)


@functools.lru_cache(maxsize=128)
def _assembled(text: str, name: str) -> Program:
    return assemble(parsed(text), name, operations())


def load(text: str, *, card: Card | str | None = None, source: str = "PTX") -> Named[Kernel]:
    """Load the kernels of a PTX text, to launch them on the virtual GPU.

    card  the card whose limits apply: a name that `luce-edu cards` lists; None: LUCE_CARD, or else the laptop
    Raises CompileError, with line and instruction, for bad or unknown PTX; ValueError for an unknown card.
    """
    if not isinstance(card, Card):
        card = find_card(card)
    module = parsed(text)
    _check_target(module.target[0], card)
    variables = Variables(module)
    names = [name for name, function in module.functions.items() if function.entry]
    return Named(source, {name: Kernel(text, name, variables, card) for name in names})


def _check_target(target: str, card: Card) -> None:
    """Refuse PTX for a newer architecture than the card's, as a driver does; the fictional laptop accepts any."""
    named = re.fullmatch(r"(?:sm|compute)_(\d+)([af]?)", target)
    if named is None:  # an option alone, which names no architecture
        return
    needs, kind = divmod(int(named[1]), 10), named[2]
    fits = needs == card.capability if kind == "a" else needs <= card.capability
    if not fits and card.dram != "fictional":
        raise CompileError(
            f"PTX for {target} does not run on {card.name}, which has compute capability {card.capability[0]}."
            f"{card.capability[1]}; compile it for {card.arch}"
        )


class Variables:
    """Memory for a module's variables in global and constant memory, with their initial values."""

    def __init__(self, module: ptx.Module):
        self.ranges: list[tuple[int, int, str, bool, int]] = []  # begin, end, name, read only, bytes of an element
        self.address: dict[str, int] = {}
        placed, at = [], 0
        for variable in module.variables.values():
            if variable.space not in ("global", "const") or variable.size == 0:
                continue
            at = -(-at // max(variable.align, 16)) * max(variable.align, 16)
            placed.append((variable, at))
            at += variable.size + _GAP
        self._memory = np.zeros(at + 256, np.uint8)
        base = -(-self._memory.ctypes.data // 256) * 256
        start = base - self._memory.ctypes.data
        for variable, offset in placed:
            self.address[variable.name] = base + offset
            begin, element = base + offset, ptx.SIZES[variable.type]
            self.ranges.append((begin, begin + variable.size, variable.name, variable.space == "const", element))
            if variable.init:
                first = start + offset
                self._memory[first : first + len(variable.init)] = np.frombuffer(variable.init, np.uint8)
        for variable, offset in placed:
            for at_byte, symbol, addend, _generic in variable.relocations:
                value = (self.address.get(symbol, 0) + addend) % 2**64
                first = start + offset + at_byte
                self._memory[first : first + 8] = np.frombuffer(struct.pack("<Q", value), np.uint8)

    @cached_property
    def grid_workspace(self) -> np.ndarray:
        """Two words for a cooperative launch: a size, which is not used, and the word of the grid's barrier."""
        words = np.zeros(2, np.uint32)
        begin = self.address[GRID_WORKSPACE] = words.ctypes.data
        self.ranges.append((begin, begin + words.nbytes, GRID_WORKSPACE, False, 4))
        return words


class Kernel:
    """A kernel that the virtual GPU can launch.

    registers  per thread, as ptxas reports them for the card; 0 if they are unknown, and they then limit nothing
    """

    def __init__(
        self, text: str, name: str, variables: Variables, card: Card, registers: Callable[[], int] | None = None
    ):
        self.name, self.card, self._text = name, card, text
        self._variables, self._registers = variables, registers
        self.program = _assembled(text, name)
        needs_workspace = any(symbol == GRID_WORKSPACE for _, symbol, _ in self.program.relocations)
        self.grid_workspace = variables.grid_workspace if needs_workspace else None

    @cached_property
    def registers(self) -> int:
        return self._registers() if self._registers and self.card.registers_per_sm is not None else 0

    @cached_property
    def _lines(self) -> list[str]:
        return self._text.split("\n")

    def text(self, statement: ptx.Instruction) -> str:
        """Return the line of PTX that holds an instruction."""
        return " ".join(self._lines[statement.line - 1].split())

    @property
    def parameters(self) -> Sequence[tuple[str, str, int, int]]:
        """Name, type, offset and size of each parameter."""
        return self.program.parameters

    @cached_property
    def handle(self) -> _Handle:
        return _Handle(self)

    def resident_blocks(self, block, smem: int, *, registers: int | None = None) -> int:
        """Return how many blocks the card holds at the same time, which is the largest cooperative grid."""
        threads = math.prod(block if isinstance(block, tuple) else (block,))
        shared = smem + self.program.shared_bytes
        used = self.registers if registers is None else registers
        return self.card.sm_count * resident_blocks(self.card, threads=threads, registers=used, shared_bytes=shared)

    def check(self, grid, block, smem: int, cluster=None) -> None:
        """Raise LaunchError for a launch that the card refuses; registers are not checked."""
        check_launch(self.card, grid, block, smem, 0, self.program.shared_bytes, cluster, kernel=self.name)

    def prepare(self, grid, block, args: Sequence, **options) -> Prepared:
        """Check a launch without running it; see `Prepared`. `run` starts several together."""
        return Prepared(self, grid, block, args, **options)

    def launch(self, grid, block, args: Sequence, **options) -> Counters:
        """Run a launch to its end and return its Counters. The options are those of `prepare` and `run`."""
        how = {name: options.pop(name) for name in RUN_OPTIONS if name in options}
        return run([self.prepare(grid, block, args, **options)], **how)[0]


class _Handle:
    """A program inside the core, freed with this object."""

    def __init__(self, kernel: Kernel):
        program, self._core = kernel.program, core()
        code = program.code.copy()
        for index, symbol, addend in program.relocations:
            code["imm"][index] = np.uint64((kernel._variables.address[symbol] + addend) % 2**64).astype(np.int64)
        image = np.frombuffer(bytes(program.image), np.uint8)
        specials = np.array(program.specials, np.int32).reshape(-1, 2)
        lengths = np.ascontiguousarray(program.block_lengths, np.int32)
        lines = np.ascontiguousarray(program.lines, np.int32)
        text = ProgramText(
            code.ctypes.data, len(code), program.arena_bytes, image.ctypes.data, program.image_at, len(image),
            specials.ctypes.data, len(specials), program.shared_bytes, program.local_bytes, len(lengths),
            len(program.sites), program.parameter_bytes, lengths.ctypes.data, lines.ctypes.data,
        )  # fmt: skip
        self.code = code
        self.value = self._core.luce_load(ctypes.byref(text))

    def __del__(self):
        if hasattr(self, "value"):
            self._core.luce_unload(self.value)


_WIDTHS = {"8": "B", "16": "H", "32": "I", "64": "Q"}


class Prepared:
    """A checked launch with its arguments.

    grid, block, cluster  an int or a tuple of up to three: blocks, threads per block, blocks per cluster
    smem         dynamic shared memory, bytes
    args         in the order of the kernel's parameters: contiguous tensors on the CPU (as pointers), ints,
                 floats, bools
    tensors      by name: other tensors that it may access, through pointers in memory
    dependent    with a seed, it may start while the launch before it still runs
    strict       refuse a barrier of the block that a thread misses because it has exited, or waits for elsewhere
    memory       the Memory of `tensors` and earlier launches, kept from launch to launch
    resident     number of blocks that run at the same time; None: as many as the card holds. Registers limit only
                 cooperative launches, because only ptxas knows them, and it takes time
    Raises LaunchError.
    """

    def __init__(
        self, kernel: Kernel, grid, block, args: Sequence, *, smem: int = 0, cooperative: bool = False, cluster=None,
        dependent: bool = False, strict: bool = True, tensors: Mapping[str, torch.Tensor] | None = None,
        memory: Memory | None = None, resident: int | None = None,
    ):  # fmt: skip
        self.kernel, self.smem, self.cooperative, self.dependent = kernel, smem, cooperative, dependent
        self.grid, self.block = triple(kernel.name, "grid", grid), triple(kernel.name, "block", block)
        program = kernel.program
        needs = program.needs
        if cluster is None:
            cluster = needs.get("reqnctapercluster") or 1
        cluster = triple(kernel.name, "cluster", cluster)
        kernel.check(self.grid, self.block, smem, cluster if math.prod(cluster) > 1 else None)
        if resident is None:
            resident = kernel.resident_blocks(self.block, smem, registers=None if cooperative else 0)
        if cooperative and (blocks := math.prod(self.grid)) > resident:
            raise LaunchError(
                f"{kernel.name}: cooperative grid of {blocks} blocks; {kernel.card.name} holds {resident} of them at "
                "once",
                "not_resident",
            )
        if kernel.grid_workspace is not None and not cooperative:
            raise LaunchError(
                f"{kernel.name}: grid.sync() of cooperative groups needs a cooperative launch; launch it with "
                "cooperative=True",
                "not_cooperative",
            )
        _check_threads(kernel.name, self.block, needs)
        self.args = tuple(args)
        self._parameters = pack(kernel, self.args)
        self.memory = memory or Memory()
        if tensors:
            self.memory = self.memory.with_named(tensors)
        self.tensors = self.memory.for_launch(kernel, self.args)
        self.counts = np.zeros(len(program.block_lengths), _COUNT)
        self.sites = np.zeros(len(program.sites), _SITE)
        self.traffic = np.zeros(len(self.tensors.names), _TRAFFIC)
        self.totals = np.zeros(2, np.uint64)
        self.text = LaunchText(
            kernel.handle.value, ctypes.addressof(self._parameters), self.grid, self.block, cluster, smem,
            kernel.card.sm_count, max(resident, 1), cooperative, dependent, strict,
            ctypes.addressof(self.tensors.array), len(self.tensors.names),
            self.counts.ctypes.data, self.sites.ctypes.data, self.traffic.ctypes.data, self.totals.ctypes.data,
        )  # fmt: skip


RUN_OPTIONS = ("seed", "hostile", "races", "marks", "instructions", "threads")


def run(
    launches: Sequence[Prepared], *, seed: int | None = None, hostile: bool = False, races: bool = False,
    marks: Marks | None = None, instructions: int = INSTRUCTIONS, threads: int | None = None,
) -> list[Counters]:  # fmt: skip
    """Run launches to their end, in order, and return the Counters of each.

    seed      None: blocks run on `threads` OS threads (default: one per processor), each warp as far as it can.
              An int: one warp runs at a time, in an order that the seed draws
    hostile   stores reach other blocks as late, and loads see values as old, as the memory model allows; by seed, or 0
    races     report two accesses to the same bytes that no barrier, fence or atomic orders; slower
    marks     elements that have not been written yet; reading one is a fault
    instructions  that all warps may execute before the launch is stopped
    Raises KernelError for an error of a kernel, and KeyboardInterrupt for Ctrl-C, which ends the launches.
    """
    if not launches:
        return []
    if seed is not None and type(seed) is not int:
        raise LaunchError(f"{launches[0].kernel.name}: seed must be None or an int, got {seed!r}")
    texts = launch_texts(launches)
    report, marked = Report(), marks.ranges() if marks else ()
    order = OrderText(
        threads or thread_count(), seed is not None, (seed or 0) % 2**64, instructions, hostile, races, None,
        ctypes.addressof(marked) if marked else None, len(marked),
    )  # fmt: skip
    core().luce_run(texts, len(launches), ctypes.byref(order), ctypes.byref(report))
    finish(report, launches)
    return [Counters(launch) for launch in launches]


def launch_texts(launches: Sequence[Prepared]) -> ctypes.Array:
    """Convert launches to the core's structs, with all counts at 0."""
    for launch in launches:
        if launch.kernel.grid_workspace is not None:
            launch.kernel.grid_workspace.fill(0)  # a launch that was stopped may have left any value
        for array in (launch.counts, launch.sites, launch.traffic, launch.totals):
            array.fill(0)
    return (LaunchText * len(launches))(*(launch.text for launch in launches))


def finish(report: Report, launches: Sequence[Prepared]) -> None:
    """Show what the kernels printed. Raises KernelError for an error in the report, KeyboardInterrupt for Ctrl-C."""
    if printed := core().luce_printed():
        print(printed.decode(errors="replace"), end="")
    if report.fault == FAULT_INTERRUPTED:
        _interrupt()
    if report.fault:
        raise KernelError(words(report, launches), FAULTS[report.fault], scene(report, launches))


FAULT_INTERRUPTED = FAULTS.index("interrupted")


def _interrupt() -> None:
    """Do what Ctrl-C does when the core is not running."""
    if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)
    raise KeyboardInterrupt


# ---- Memory that a launch may access ----


@dataclass(frozen=True)
class Ranges:
    """Ranges of memory, sorted and without overlap, as the core needs them, with their names."""

    names: tuple[str, ...]
    bounds: tuple[tuple[int, int], ...]
    elements: tuple[int, ...]  # bytes
    array: ctypes.Array
    keep: tuple


class Memory:
    """Tensors by name, with a bit per byte, by which the core counts the bytes that a launch touches.

    Overlapping tensors get the name of the first one that contains them. Between launches all bits are 0.
    """

    def __init__(self, named: Mapping[str, torch.Tensor] | None = None):
        self._bits: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._ranges: dict[tuple, Ranges] = {}
        self.named = dict(named or {})
        self._spans: list[tuple[int, int]] | None = None  # begin and end of each named tensor, sorted

    def with_named(self, named: Mapping[str, torch.Tensor]) -> Memory:
        """Return a Memory with these tensors too."""
        more = Memory(self.named | dict(named))
        more._bits = self._bits
        return more

    def name(self, named: Mapping[str, torch.Tensor]) -> None:
        """Add tensors to those that every launch may access."""
        self.named |= named
        self._ranges.clear()
        self._spans = None

    def for_launch(self, kernel: Kernel, args: Sequence) -> Ranges:
        """Return the ranges that a launch may access: named tensors, arguments, module variables."""
        own = [
            (arg.data_ptr(), arg.nbytes, f"argument {i}", arg.element_size())
            for i, arg in enumerate(args)
            if isinstance(arg, torch.Tensor) and not self._covers(arg.data_ptr(), arg.nbytes)
        ]
        key = (id(kernel._variables), *own)
        if key not in self._ranges:
            if len(self._ranges) > 1000:
                self._ranges.clear()
            self._ranges[key] = self._find(kernel, own)
        return self._ranges[key]

    def _covers(self, begin: int, size: int) -> bool:
        """Whether a named tensor contains all these bytes, so that they need no range of their own."""
        if self._spans is None:
            self._spans = sorted({(t.data_ptr(), t.data_ptr() + t.nbytes) for t in self.named.values()})
        at = bisect_right(self._spans, (begin, 2**64)) - 1
        return at >= 0 and begin + size <= self._spans[at][1]

    def _find(self, kernel: Kernel, own: list[tuple[int, int, str, int]]) -> Ranges:
        named = [(t.data_ptr(), t.nbytes, name, t.element_size()) for name, t in self.named.items()]
        found = [(begin, begin + size, name, False, element) for begin, size, name, element in named + own if size]
        found += kernel._variables.ranges
        ranges: list[tuple[int, int, str, bool, int]] = []
        # Of equal ranges the first named one is kept, because Python's sort is stable.
        for begin, end, *rest in sorted(found, key=lambda r: (r[0], -r[1])):
            if not ranges or begin >= ranges[-1][1]:
                ranges.append((begin, end, *rest))
            elif end > ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], end, *ranges[-1][2:])
        bits = [self._bits_of(begin, end) for begin, end, *_ in ranges]
        array = (Tensor * max(len(ranges), 1))(*(
            Tensor(begin, end, read.ctypes.data, written.ctypes.data, read_only)
            for (begin, end, _, read_only, _), (read, written) in zip(ranges, bits, strict=True)
        ))  # fmt: skip
        begins, ends, names, _, elements = zip(*ranges, strict=True) if ranges else [()] * 5
        keep = bits, list(self.named.values()), kernel._variables
        return Ranges(names, tuple(zip(begins, ends, strict=True)), elements, array, keep)

    def _bits_of(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        if (begin, end) not in self._bits:
            if len(self._bits) > 4096:  # mostly of tensors that no longer exist
                self._bits.clear()
            words = (end - begin) // 64 + 2  # untouched pages take no memory
            self._bits[begin, end] = np.zeros(words, np.uint64), np.zeros(words, np.uint64)
        return self._bits[begin, end]


# ---- Arguments ----


def _check_threads(kernel: str, block: tuple[int, int, int], needs: Mapping[str, tuple[int, ...]]) -> None:
    threads = math.prod(block)
    if (most := needs.get("maxntid")) and threads > math.prod(most):
        raise LaunchError(
            f"{kernel}: {threads} threads per block, but its __launch_bounds__ allow at most {math.prod(most)}"
        )
    wanted = needs.get("reqntid")
    if wanted and block != tuple(wanted) + (1,) * (3 - len(wanted)):
        raise LaunchError(f"{kernel}: blocks of {block} threads, but it was compiled for {wanted}")


def pack(kernel: Kernel, args: Sequence) -> ctypes.Array:
    """Pack the arguments into the kernel's parameter space. Raises LaunchError for one that does not fit."""
    if len(args) != len(kernel.parameters):
        raise LaunchError(f"{kernel.name}: expected {len(kernel.parameters)} arguments, got {len(args)}")
    space = (ctypes.c_uint8 * max(kernel.program.parameter_bytes, 8))()
    for i, ((_, kind, offset, size), value) in enumerate(zip(kernel.parameters, args, strict=True)):
        packed = _packed(kind, size, value)
        if packed is None:
            raise LaunchError(f"{kernel.name}: argument {i} must be {_expected(kind, size)}, got {_describe(value)}")
        space[offset : offset + size] = packed
    return space


def _packed(kind: str, size: int, value) -> bytes | None:
    if isinstance(value, torch.Tensor):
        fits = size == 8 and kind[0] in "ub" and value.device.type == "cpu" and value.is_contiguous()
        return struct.pack("<Q", value.data_ptr()) if fits else None
    if kind[0] == "f" and kind != "f16":
        return struct.pack("<f" if size == 4 else "<d", value) if isinstance(value, float) else None
    if isinstance(value, bytes):
        return value if len(value) == size else None
    if type(value) is bool:
        return bytes([value]) if size == 1 else None
    if type(value) is int and size in (1, 2, 4, 8) and -(2 ** (8 * size - 1)) <= value < 2 ** (8 * size):
        return (value % 2 ** (8 * size)).to_bytes(size, "little")
    return None


def _expected(kind: str, size: int) -> str:
    if kind[0] == "f":
        return "a float"
    if size == 8:
        return "a contiguous tensor on the CPU, or an int of 64 bits"
    return f"an int of {8 * size} bits" if size <= 4 else f"{size} bytes"


def _describe(value) -> str:
    if isinstance(value, torch.Tensor):
        contiguous = "" if value.is_contiguous() else "non-contiguous "
        return f"a {contiguous}{value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r}"
