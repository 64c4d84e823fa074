"""The words of a report: what a kernel did wrong, where, in which thread, to which tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

FAR = 2**28  # bytes; what is further away than that is no index that went astray
SPACES = ("generic", "global", "shared", "local", "constant", "parameter")

# In the order of Fault in csrc/machine/machine.h.
FAULTS = (
    "none", "out_of_bounds", "misaligned", "uninitialised", "divergent_barrier", "deadlock", "lost_launch", "budget",
    "trap", "assertion", "missing_lanes", "interrupted", "race", "read_only", "bad_barrier", "unsupported",
)  # fmt: skip

WAITS = {
    "ready": "can go on",
    "look": "look{s} again and again for a value that does not come",
    "barrier": "wait{s} at a barrier of the block",
    "warp": "wait{s} for lanes of the warp",
    "cluster": "wait{s} at a barrier of the cluster",
    "launch": "wait{s} for the launch before",
}


def words(report, launches: Sequence) -> str:
    """One sentence or more about a report of the core. launches: those that ran together."""
    launch = launches[report.launch]
    fault = FAULTS[report.fault]
    if fault == "race":
        return f"{launch.kernel.name}: {_race(report, launch, launches[report.value])}"
    return f"{launch.kernel.name}: {_SAYINGS[fault](report, launch)}"


def place(launch, ins: int) -> str:
    """' at file:line (instruction)', with what it was inlined into; '' where nobody knows."""
    statement = launch.kernel.program.statement(ins)
    if statement and statement.loc and statement.loc.line == 0:
        # The compiler has moved it and no longer knows whence; what stands before it is near.
        before = (launch.kernel.program.statement(i) for i in range(ins, -1, -1))
        statement = next((s for s in before if s and s.loc and s.loc.line), statement)
    if statement is None:
        return ""
    if statement.loc is None:
        return f" at line {statement.line} of the PTX ({'.'.join((statement.opcode, *statement.modifiers))})"
    chain, loc = [], statement.loc
    if loc.line == 0:  # such as a load that was moved out of its loop
        name = ".".join((statement.opcode, *statement.modifiers))
        return f" at {loc.file}, where the compiler names no line ({name})"
    while loc is not None:
        if f"{loc.file}:{loc.line}" not in chain:
            chain.append(f"{loc.file}:{loc.line}")
        loc = loc.inlined_at
    return " at " + ", called from ".join(chain)


def _who(report, prefix: str = "") -> str:
    block = tuple(getattr(report, f"{prefix}block"))
    number = block[0] if block[1:] == (0, 0) else block
    return f"block {number}, thread {getattr(report, f'{prefix}thread')}"


def _does(is_write: int) -> str:
    return "writes" if is_write else "reads"


def _what(report, launch) -> str:
    """The memory of an access, by name: 'y[1000] (byte 4000 of y, which has 4000)'."""
    address, size = report.address, max(report.size, 1)
    space = SPACES[report.space]
    if space == "shared":
        element = "" if address % size else f"element {address // size}, "
        return f"{element}byte {address} of shared memory, of which the block has {_shared(launch)}"
    if space == "local":
        return f"byte {address} of its local memory, which has {launch.kernel.program.local_bytes}"
    if address < 4096:
        return f"address {address}, a null pointer"
    tensors = launch.tensors
    nearest, distance = None, FAR
    for i, (begin, end) in enumerate(tensors.bounds):
        away = begin - address if address < begin else max(address + size - end, 0)
        if away < distance:
            nearest, distance = i, away
    if nearest is None:
        return f"address {address:#x}, far from every tensor"
    (begin, end), name = tensors.bounds[nearest], tensors.names[nearest]
    index, rest = divmod(address - begin, tensors.elements[nearest])
    element = "" if rest else f"{name}[{index}], "
    return f"{element}byte {address - begin} of {name}, which has {end - begin}"


def _shared(launch) -> int:
    static = launch.kernel.program.shared_bytes
    return -(-static // 16) * 16 + launch.smem if launch.smem else static


def _access(report, launch) -> str:
    return f"{_who(report)} {_does(report.is_write)} {report.size} bytes at {_what(report, launch)}"


def _divergent_barrier(report, launch) -> str:
    if report.other_ins >= 0:
        return (
            f"divergent barrier: {_who(report)} is{place(launch, report.ins)} while threads of its block wait"
            f"{place(launch, report.other_ins)}"
        )
    where = place(launch, report.ins)
    return f"divergent barrier: {_who(report)} comes to it when other threads of its block have ended{where}"


def _missing_lanes(report, launch) -> str:
    """address: the lanes that the operation names; size: those that live; space: 1 + the lane that it reads, or 0."""

    def lanes(mask: int) -> str:
        return _counted("lane", number_ranges([lane for lane in range(32) if mask >> lane & 1]))

    named, own, source = report.address, report.thread % 32, report.space - 1
    if not named >> own & 1:
        wrong = f"and lane {own} itself is not among them"
    elif source >= 0:
        wrong = f"and reads from lane {source}, which is not among them"
    else:
        wrong = f"of which {lanes(named & ~report.size)} ended before"
    return f"{_who(report)}: a warp operation names {lanes(named)}, {wrong}{place(launch, report.ins)}"


def _waits(report, launch) -> str:
    entries, waiting = [], set()
    for entry in report.text.decode().split(";"):
        state, ins, blocks, threads = entry.split(" ")
        waiting |= _numbers(blocks)
        one = threads.isdigit()
        who = f"{_counted('block', blocks)}, {_counted('thread', threads)}"
        entries.append(f"{who} {WAITS[state].format(s='s' if one else '')}{place(launch, int(ins))}")
    ended = sorted(set(range(math.prod(launch.grid))) - waiting) if report.value == 0 else []
    if ended:
        entries.append(f"{_counted('block', number_ranges(ended))} ha{'s' if len(ended) == 1 else 've'} ended")
    return "; ".join(entries)


def _numbers(ranges: str) -> set[int]:
    """The numbers of the core's '0-2,4'."""
    ends = [part.split("-") for part in ranges.split(",")]
    return {number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)}


def _counted(noun: str, numbers: str) -> str:
    """'block 3', 'blocks 0..2, 4'."""
    spaced = numbers.replace("-", "..").replace(" ", "").replace(",", ", ")
    return f"{noun}{'' if numbers.isdigit() else 's'} {spaced}"


def _lost_launch(report, launch) -> str:
    return (
        f"deadlock, nobody can go on, and {report.value} blocks have never started as the card holds no more at once "
        f"({launch.kernel.card.name}): {_waits(report, launch)}"
    )


def _assertion(report, launch) -> str:
    said, file, line, function, *_ = report.text.decode(errors="replace").split("\n") + [""] * 4
    return f"{_who(report)}: assertion `{said}` failed in {function} at {file}:{line}"


def _race(report, launch, other_launch) -> str:
    """value: the launch of the other access."""
    one = f"{_who(report)} {_does(report.is_write & 1)}{place(launch, report.ins)}"
    other = f"{_who(report, 'other_')} {_does(report.is_write & 2)}{place(other_launch, report.other_ins)}"
    if other_launch is not launch:
        other = f"{other_launch.kernel.name}: {other}"
    return f"race on {_what(report, launch)}: {one}, and {other}, and nothing orders the two"


# By fault, what is said of a report of it.
_SAYINGS = {
    "out_of_bounds": lambda report, launch: f"{_access(report, launch)}: out of bounds{place(launch, report.ins)}",
    "misaligned": lambda report, launch: (
        f"{_access(report, launch)}: misaligned, the address is no multiple of {report.size}{place(launch, report.ins)}"
    ),
    "uninitialised": lambda report, launch: (
        f"{_access(report, launch)}, which nobody wrote: uninitialised{place(launch, report.ins)}"
    ),
    "read_only": lambda report, launch: f"{_access(report, launch)}, which is constant{place(launch, report.ins)}",
    "divergent_barrier": _divergent_barrier,
    "bad_barrier": lambda report, launch: (
        f"{_who(report)}: a barrier's number is from 0 to 15 and its count of threads a multiple of 32"
        f"{place(launch, report.ins)}"
    ),
    "missing_lanes": _missing_lanes,
    "deadlock": lambda report, launch: f"deadlock, nobody can go on: {_waits(report, launch)}",
    "lost_launch": _lost_launch,
    "budget": lambda *_: "it had not ended after the instructions that it may execute, and was stopped",
    "trap": lambda report, launch: f"{_who(report)} met a trap{place(launch, report.ins)}",
    "assertion": _assertion,
    "unsupported": lambda report, launch: (
        f"{_who(report)} came to something that cannot be executed{place(launch, report.ins)}"
    ),
    "interrupted": lambda *_: "interrupted",
}


def number_ranges(numbers: Sequence[int]) -> str:
    """'3', '0..15, 17': sorted numbers, those in a row together."""
    parts, i = [], 0
    while i < len(numbers):
        end = i
        while end + 1 < len(numbers) and numbers[end + 1] == numbers[end] + 1:
            end += 1
        parts.append(str(numbers[i]) if end == i else f"{numbers[i]}..{numbers[end]}")
        i = end + 1
    return ", ".join(parts)
