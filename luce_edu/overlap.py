"""Programmatic dependent launch, without a GPU: kernels that may start while the kernel before them still runs.

The model is so small that every schedule can be tried:

    kernels = {"A": ["wait", "launch_dependents", "write x"], "B": ["wait", "launch_dependents", "read x"]}
    play(kernels, "AABAB")     run one schedule, step by step
    try_all(kernels)           count the schedules, and those in which a kernel accesses a buffer too early

It models order, not caches: once a kernel has ended, every other kernel sees what it wrote. The hardware guarantees
that to kernels that have waited for it.

`timelines` shows kernels of known length on a time line, and `order_in_ptx` looks up in the compiler's PTX what stands
before the wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from luce_edu.machine import ptx
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.tables import Tabular

# The actions of each kernel, by name, in the order of their launches. All blocks of a kernel do the same, and
# "launch_dependents" is the moment when the last block has done it.
Kernels = Mapping[str, Sequence[str]]
PLAIN = ("prefetch", "wait", "launch_dependents")
ACCESS = ("read", "write")
ACCESSES = ("ld", "ldu", "st", "atom", "red", "cp", "tex", "call")  # in PTX


@dataclass(frozen=True, repr=False)
class Played(Tabular):
    """A schedule up to its end or its first hazard, with a column per kernel. steps: (kernel, action)."""

    kernels: Sequence[str]
    steps: Sequence[tuple[str, str]]
    hazard: str | None
    finished: bool

    @property
    def header(self) -> list[str]:
        return ["step", *self.kernels]

    @property
    def body(self) -> list[list[str]]:
        return [
            [str(number), *(action if kernel == turn else "" for kernel in self.kernels)]
            for number, (turn, action) in enumerate(self.steps, 1)
        ]

    @property
    def caption(self) -> str:
        return self.hazard or ("all kernels have ended, without a hazard" if self.finished else "no hazard so far")


def play(kernels: Kernels, schedule: Sequence[str]) -> Played:
    """Run a schedule, one action at a time, up to its end or the first hazard.

    schedule  the kernel that acts at each step: "AAB" or ["A", "A", "B"]
    Raises ValueError for an unknown kernel or action, and for a step that the rules do not allow, which it names.
    """
    names, actions = _checked(kernels)
    turns = [turn for turn in schedule if turn.strip()]
    done = [0] * len(names)
    steps = []
    for number, turn in enumerate(turns, 1):
        if turn not in names:
            raise ValueError(f"step {number}: no kernel {turn!r}; expected one of {', '.join(names)}")
        k = names.index(turn)
        if refusal := _refusal(names, actions, tuple(done), k):
            raise ValueError(f"step {number}: {refusal}")
        action = actions[k][done[k]]
        steps.append((turn, action))
        if hazard := _hazard(names, actions, tuple(done), k):
            return Played(names, steps, hazard, False)
        done[k] += 1
    return Played(names, steps, None, all(_ended(actions, done, k) for k in range(len(names))))


def try_all(kernels: Kernels) -> tuple[int, int]:
    """Return how many schedules there are in which every kernel ends, and how many of them have a hazard."""
    names, actions = _checked(kernels)
    everyone = range(len(names))

    @cache
    def count(done: tuple[int, ...]) -> tuple[int, int]:
        """Count the schedules that go on from here: all of them, and those without a hazard."""
        if all(_ended(actions, done, k) for k in everyone):
            return 1, 1
        schedules = clean = 0
        for k in everyone:
            if not _refusal(names, actions, done, k):
                rest, clean_rest = count(done[:k] + (done[k] + 1,) + done[k + 1 :])
                schedules += rest
                clean += 0 if _hazard(names, actions, done, k) else clean_rest
        return schedules, clean

    schedules, clean = count((0,) * len(names))
    return schedules, schedules - clean


def _checked(kernels: Kernels) -> tuple[list[str], list[tuple[str, ...]]]:
    for name, actions in kernels.items():
        if not actions:
            raise ValueError(f"{name}: a kernel needs at least one action")
        for action in actions:
            verb, _, buffer = action.partition(" ")
            if action not in PLAIN and not (verb in ACCESS and buffer):
                raise ValueError(f"{name}: expected {', '.join(PLAIN)}, read NAME or write NAME, got {action!r}")
    return list(kernels), [tuple(actions) for actions in kernels.values()]


def _ended(actions, done: Sequence[int], k: int) -> bool:
    return done[k] == len(actions[k])


def _refusal(names, actions, done: tuple[int, ...], k: int) -> str | None:
    """Say why kernel k cannot do its next action now; None if it can.

    A kernel may start when all blocks of the kernel before have done launch_dependents or ended. A wait is over when
    the kernel before has ended. Source: PTX ISA, griddepcontrol.
    """
    if _ended(actions, done, k):
        return f"{names[k]} has ended"
    if k == 0 or _ended(actions, done, k - 1):
        return None
    before = names[k - 1]
    if done[k] == 0 and "launch_dependents" not in actions[k - 1][: done[k - 1]]:
        return f"{names[k]} cannot start: {before} has neither done launch_dependents nor ended"
    if actions[k][done[k]] == "wait":
        return f"{names[k]} waits until {before} has ended"
    return None


def _hazard(names, actions, done: tuple[int, ...], k: int) -> str | None:
    """Say what is wrong if kernel k acts now: a kernel before it accesses the same buffer and has not ended."""
    verb, _, buffer = actions[k][done[k]].partition(" ")
    for j in range(k):
        others = [other for other in ("write", "read") if f"{other} {buffer}" in actions[j]]
        if others and "write" in (verb, *others) and not _ended(actions, done, j):
            return f"{names[k]} {verb}s {buffer}, which {names[j]} {others[0]}s, and {names[j]} has not ended"
    return None


# ---- The same kernels, launched in several ways ----


@dataclass(frozen=True)
class Span:
    """A piece of a time line: `what`, from start_us on; prefetched if a kernel loads these bytes while it waits."""

    what: str
    start_us: float
    us: float
    prefetched: bool = False

    @property
    def end_us(self) -> float:
        return self.start_us + self.us


def timelines(
    work_us: Mapping[str, float], *, launch_us: float, gap_us: float, prefetch_us: Mapping[str, float]
) -> dict[str, list[Span]]:
    """Return when each kernel moves its bytes, for each way to launch it. All modelled, without ramp-up and tail.

    work_us      time that each kernel needs for its bytes, in order
    launch_us    time between two launch calls of a CPU that launches kernels one by one
    gap_us       time from the end of one kernel to the first byte of the next
    prefetch_us  by kernel, how much of its work it may prefetch while it waits; it does so within the gap before it.
                 ValueError for more than its work, or for an unknown kernel
    """
    wrong = [name for name, us in prefetch_us.items() if not 0 <= us <= work_us.get(name, -1)]
    if wrong:
        raise ValueError(f"prefetch_us: expected kernels of work_us and at most their work, got {', '.join(wrong)}")
    calls, plain, graph, dependent, alone = ([] for _ in range(5))

    def end(lane: list[Span]) -> float:
        return lane[-1].end_us if lane else 0.0

    for i, (name, us) in enumerate(work_us.items()):
        calls.append(Span("launch call", i * launch_us, launch_us))
        plain.append(Span(name, max(end(plain) + gap_us, (i + 1) * launch_us), us))
        graph.append(Span(name, end(graph) + gap_us, us))
        early, starts = min(gap_us, prefetch_us.get(name, 0.0)), end(dependent) + gap_us
        if early:
            dependent.append(Span(name, starts - early, early, prefetched=True))
        dependent.append(Span(name, starts, us - early))
        alone.append(Span(name, end(alone), us))
    return {
        "CPU, launch calls": calls,
        "GPU, plain launches": plain,
        "as a graph": graph,
        "with dependent launch": dependent,
        "its bytes alone": alone,
    }


# ---- The order of instructions in PTX ----


@dataclass(frozen=True)
class KernelOrder:
    """One kernel in PTX: its waits and launch_dependents, and the accesses and prefetches above its first wait."""

    kernel: str
    waits: int
    launch_dependents: int
    prefetches_before: int
    accesses_before: int
    accesses: int


@dataclass(frozen=True, repr=False)
class PtxOrder(Tabular):
    """The result of `order_in_ptx`, counted in the order of the text.

    An access is a load, a store or an atomic in memory that other kernels see.
    """

    arch: str
    kernels: Sequence[KernelOrder]

    header = ("kernel", "prefetches before it waits", "accesses before", "waits", "launch_dependents")

    @property
    def body(self) -> list[list[str]]:
        rows = ((k, map(str, (k.accesses_before, k.waits, k.launch_dependents))) for k in self.kernels)
        return [[k.kernel, "yes" if k.prefetches_before else "–", *counts] for k, counts in rows]

    @property
    def caption(self) -> str:
        return f"per_layer.cu with DEPENDENT_LAUNCH for {self.arch}: counted in the PTX of NVIDIA's compiler (measured)"


def order_in_ptx(defines: Mapping[str, object], arch: str = "sm_90a", *, csrc: Path | None = None) -> PtxOrder:
    """Compile per_layer.cu for dependent launch and read its PTX; this needs no GPU. Raises CompileError."""
    defines = {"DEPENDENT_LAUNCH": 1} | dict(defines)
    text = compile_ptx("per_layer.cu", None, (), defines, arch.replace("sm", "compute"), csrc=csrc)
    return PtxOrder(arch, list(_orders(ptx.parse(text))))


def _orders(module: ptx.Module) -> Iterator[KernelOrder]:
    for kernel in module.functions.values():
        if not kernel.entry:
            continue
        body = [item for item in kernel.body if isinstance(item, ptx.Instruction)]
        waits = [at for at, instruction in enumerate(body) if is_control(instruction, "wait")]
        above = body[: waits[0]] if waits else body
        yield KernelOrder(
            kernel.name,
            waits=len(waits),
            launch_dependents=sum(is_control(instruction, "launch_dependents") for instruction in body),
            prefetches_before=sum(instruction.opcode == "prefetch" for instruction in above),
            accesses_before=sum(map(is_access, above)),
            accesses=sum(map(is_access, body)),
        )


def is_control(instruction: ptx.Instruction, action: str) -> bool:
    """Whether an instruction is griddepcontrol with this `action`: wait or launch_dependents."""
    return instruction.opcode == "griddepcontrol" and action in instruction.modifiers


def is_access(instruction: ptx.Instruction) -> bool:
    """Whether an instruction may access memory that other kernels see; a generic address or a call may do so."""
    own = {"param", "shared", "local", "const"}
    return instruction.opcode in ACCESSES and not own & set(instruction.modifiers)
