"""The text of a report: what a kernel did wrong, at which line, in which thread, to which tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FAR = 2**28  # bytes; an address further from every tensor than this is not a wrong index into one
SPACES = ("generic", "global", "shared", "local", "constant", "parameter")

# In the order of Fault in csrc/machine/machine.h.
FAULTS = (
    "none", "out_of_bounds", "misaligned", "uninitialised", "divergent_barrier", "deadlock", "lost_launch", "budget",
    "trap", "assertion", "missing_lanes", "interrupted", "race", "read_only", "bad_barrier", "unsupported",
)  # fmt: skip

WAITS = {
    "ready": "can continue",
    "look": "spin{s} on a value that does not change",
    "barrier": "wait{s} at a block barrier",
    "warp": "wait{s} for other lanes of the warp",
    "cluster": "wait{s} at a cluster barrier",
    "launch": "wait{s} for the previous launch",
}


def words(report, launches: Sequence) -> str:
    """The sentences for a report of the core. launches: those that ran together."""
    launch = launches[report.launch]
    fault = FAULTS[report.fault]
    if fault == "race":
        return f"{launch.kernel.name}: {_race(report, launch, launches[report.value])}"
    return f"{launch.kernel.name}: {_SAYINGS[fault](report, launch)}"


@dataclass(frozen=True)
class Act:
    """What a thread did, or what several wait for.

    who     in words, such as "block 1, thread 9";  block, thread: the same as numbers, None where there are several
    does    in words, such as "writes" or "waits at a block barrier"
    places  file and line of the source, then of the calls that were inlined, the innermost first; () if unknown
    """

    who: str
    does: str
    places: tuple[tuple[str, int], ...]
    block: tuple[int, int, int] | None = None
    thread: int | None = None


@dataclass(frozen=True)
class Scene:
    """Who did what where: the fields of a report of the core.

    element  in words, such as "x[3]"; "" if no memory is involved
    tensor, index  the parts of `element`; None for other memory, and for an address between two elements
    """

    kernel: str
    acts: tuple[Act, ...]
    element: str = ""
    tensor: str | None = None
    index: int | None = None


def scene(report, launches: Sequence) -> Scene:
    """Who did what where. launches: those that ran together."""
    launch, fault = launches[report.launch], FAULTS[report.fault]
    if fault == "assertion":
        _, file, line, *_ = report.text.decode(errors="replace").split("\n") + [""] * 4
        places = ((file, int(line)),) if line.isdigit() else ()
        return Scene(launch.kernel.name, (_act(report, launch, "asserts", places=places),))
    if fault in ("deadlock", "lost_launch"):
        return Scene(launch.kernel.name, tuple(_waiting(report, launch)))
    if fault in ("budget", "interrupted"):
        return Scene(launch.kernel.name, ())
    acts = [_act(report, launch, _DOES.get(fault) or _does(report.is_write & 1))]
    if fault == "race":
        acts.append(_act(report, launches[report.value], _does(report.is_write & 2), "other_"))
    if fault == "divergent_barrier" and report.other_ins >= 0:
        acts[0] = _act(report, launch, "is here")
        acts.append(Act("other threads of the block", "wait here", _places(launch, report.other_ins)))
    if fault not in ("race", "out_of_bounds", "misaligned", "uninitialised", "read_only"):
        return Scene(launch.kernel.name, tuple(acts))
    name, index = _element(report, launch)
    element = name if index is None else f"{name}[{index}]"
    is_tensor = SPACES[report.space] not in ("shared", "local") and index is not None
    return Scene(launch.kernel.name, tuple(acts), element, name if is_tensor else None, index)


# By fault: what the thread did, if it was not a memory access.
_DOES = {
    "divergent_barrier": "reaches a barrier when others have exited", "missing_lanes": "executes a warp operation",
    "bad_barrier": "reaches a barrier", "trap": "executes a trap", "unsupported": "reaches what cannot be executed",
}  # fmt: skip


def _act(report, launch, does: str, prefix: str = "", places=None) -> Act:
    places = _places(launch, getattr(report, f"{prefix}ins")) if places is None else places
    block, thread = tuple(getattr(report, f"{prefix}block")), getattr(report, f"{prefix}thread")
    return Act(_who(report, prefix), does, places, block, thread)


def _element(report, launch) -> tuple[str, int | None]:
    """The memory of an access: a tensor's name and the index in it, or words for it and None."""
    size, space = max(report.size, 1), SPACES[report.space]
    if space in ("shared", "local"):
        index, rest = divmod(report.address, size)
        return f"{space} memory", None if rest or report.address >= 2**32 else index
    found = _nearest(report, launch)
    if found is None:
        return ("a null pointer" if report.address < 4096 else "an address far from every tensor"), None
    begin, _, name, size = found
    index, rest = divmod(report.address - begin, size)
    return (f"{name}, between two elements", None) if rest else (name, index)


def _places(launch, ins: int) -> tuple[tuple[str, int], ...]:
    """File and line of an instruction, and of the calls that were inlined, the innermost first."""
    statement = _statement(launch, ins)
    found, loc = {}, statement and statement.loc
    while loc is not None:
        found[loc.file, loc.line] = None
        loc = loc.inlined_at
    return tuple(place for place in found if place[1])


def _statement(launch, ins: int):
    statement = launch.kernel.program.statement(ins)
    if statement and statement.loc and statement.loc.line == 0:
        # The compiler moved the instruction and lost its line. The instruction before it is from a line nearby.
        before = (launch.kernel.program.statement(i) for i in range(ins, -1, -1))
        statement = next((s for s in before if s and s.loc and s.loc.line), statement)
    return statement


def place(launch, ins: int) -> str:
    """' at file:line', then the lines that it was inlined into; '' if the place is unknown."""
    statement = _statement(launch, ins)
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
    """The memory of an access, by name: 'y[1000], byte 4000 of y, which has 4000 bytes'."""
    address, size = report.address, max(report.size, 1)
    space = SPACES[report.space]
    if space == "shared":
        element = "" if address % size else f"element {address // size}, "
        return f"{element}byte {address} of shared memory, of which the block has {_shared(launch)} bytes"
    if space == "local":
        return f"byte {address} of its local memory, which has {launch.kernel.program.local_bytes} bytes"
    if address < 4096:
        return f"address {address}, a null pointer"
    found = _nearest(report, launch)
    if found is None:
        return f"address {address:#x}, far from every tensor"
    begin, end, name, size = found
    index, rest = divmod(address - begin, size)
    element = "" if rest else f"{name}[{index}], "
    return f"{element}byte {address - begin} of {name}, which has {end - begin} bytes"


def _nearest(report, launch) -> tuple[int, int, str, int] | None:
    """Begin, end, name and bytes per element of the tensor that holds an access or is nearest to it."""
    address, size = report.address, max(report.size, 1)
    tensors = launch.tensors
    nearest, distance = None, FAR
    for i, (begin, end) in enumerate(tensors.bounds):
        away = begin - address if address < begin else max(address + size - end, 0)
        if address >= 4096 and away < distance:
            nearest, distance = i, away
    return None if nearest is None else (*tensors.bounds[nearest], tensors.names[nearest], tensors.elements[nearest])


def _shared(launch) -> int:
    static = launch.kernel.program.shared_bytes
    return -(-static // 16) * 16 + launch.smem if launch.smem else static


def _access(report, launch) -> str:
    return f"{_who(report)} {_does(report.is_write)} {report.size} bytes at {_what(report, launch)}"


def _divergent_barrier(report, launch) -> str:
    if report.other_ins >= 0:
        here, there = place(launch, report.ins), place(launch, report.other_ins)
        wrong = f"{_who(report)} is{here}, but other threads of its block wait at the barrier{there}"
    else:
        wrong = f"{_who(report)} waits{place(launch, report.ins)}, but other threads of its block have exited"
    return f"divergent barrier: {wrong}. All threads of a block must reach the same barrier"


def _missing_lanes(report, launch) -> str:
    """address: the lanes that the operation names; size: lanes that have not exited; space: 1 + the lane read, or 0."""

    def lanes(mask: int) -> str:
        return _counted("lane", number_ranges([lane for lane in range(32) if mask >> lane & 1]))

    named, own, source = report.address, report.thread % 32, report.space - 1
    if not named >> own & 1:
        wrong = f"but lane {own} itself is not among them"
    elif source >= 0:
        wrong = f"but it reads from lane {source}, which is not among them"
    else:
        wrong = f"but {lanes(named & ~report.size)} exited before"
    return f"{_who(report)}{place(launch, report.ins)}: the mask of a warp operation names {lanes(named)}, {wrong}"


def _waits(report, launch) -> str:
    return ". ".join(
        f"{who[0].upper()}{who[1:]} {does}{'' if ins is None else place(launch, ins)}"
        for who, does, ins, *_ in _waiters(report, launch)
    )


def _waiting(report, launch) -> Iterator[Act]:
    for who, does, ins, blocks, threads in _waiters(report, launch):
        places = () if ins is None else _places(launch, ins)
        if not (blocks.isdigit() and threads.isdigit()):
            yield Act(who, does, places)
            continue
        rest, x = divmod(int(blocks), launch.grid[0])
        z, y = divmod(rest, launch.grid[1])
        yield Act(who, does, places, (x, y, z), int(threads))


def _waiters(report, launch) -> Iterator[tuple[str, str, int | None, str, str]]:
    """Who, what they do, the instruction, and blocks and threads as the core writes them; last the ended blocks."""
    waiting = set()
    for entry in report.text.decode().split(";"):
        state, ins, blocks, threads = entry.split(" ")
        waiting |= _numbers(blocks)
        who = f"{_counted('block', blocks)}, {_counted('thread', threads)}"
        yield who, WAITS[state].format(s="s" if threads.isdigit() else ""), int(ins), blocks, threads
    ended = sorted(set(range(math.prod(launch.grid))) - waiting) if report.value == 0 else []
    if ended:
        does = f"ha{'s' if len(ended) == 1 else 've'} ended"
        yield _counted("block", number_ranges(ended)), does, None, "", ""


def _numbers(ranges: str) -> set[int]:
    """The numbers of the core's '0-2,4'."""
    ends = [part.split("-") for part in ranges.split(",")]
    return {number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)}


def _counted(noun: str, numbers: str) -> str:
    """'block 3', 'blocks 0..2, 4'."""
    spaced = numbers.replace("-", "..").replace(" ", "").replace(",", ", ")
    return f"{noun}{'' if numbers.isdigit() else 's'} {spaced}"


def _lost_launch(report, launch) -> str:
    blocks = "1 block has" if report.value == 1 else f"{report.value} blocks have"
    return (
        f"deadlock, no thread can continue, and {blocks} not started, because the card "
        f"({launch.kernel.card.name}) holds no more at the same time. {_waits(report, launch)}. Blocks that wait for "
        "each other need a cooperative launch, whose grid must fit the card"
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
    return (
        f"race on {_what(report, launch)}: {one}, and {other}. Nothing orders the two: put a barrier, or a release and "
        "an acquire, between them"
    )


# By fault: the text for a report of it.
_SAYINGS = {
    "out_of_bounds": lambda report, launch: f"{_access(report, launch)}: out of bounds{place(launch, report.ins)}",
    "misaligned": lambda report, launch: (
        f"{_access(report, launch)}: misaligned{place(launch, report.ins)}. "
        f"The address must be a multiple of {report.size}"
    ),
    "uninitialised": lambda report, launch: (
        f"{_access(report, launch)}: uninitialised{place(launch, report.ins)}. No thread has written these bytes before"
    ),
    "read_only": lambda report, launch: f"{_access(report, launch)}, which is read-only{place(launch, report.ins)}",
    "divergent_barrier": _divergent_barrier,
    "bad_barrier": lambda report, launch: (
        f"{_who(report)}{place(launch, report.ins)}: a barrier needs a number from 0 to 15 and a count of threads that "
        "is a multiple of 32"
    ),
    "missing_lanes": _missing_lanes,
    "deadlock": lambda report, launch: f"deadlock, no thread can continue. {_waits(report, launch)}",
    "lost_launch": _lost_launch,
    "budget": lambda *_: "stopped, because it executed all the instructions that it may; a loop may never end",
    "trap": lambda report, launch: f"{_who(report)} executed a trap{place(launch, report.ins)}",
    "assertion": _assertion,
    "unsupported": lambda report, launch: (
        f"{_who(report)} reached an instruction that cannot be executed{place(launch, report.ins)}"
    ),
    "interrupted": lambda *_: "interrupted",
}


def number_ranges(numbers: Sequence[int]) -> str:
    """'3', '0..15, 17': sorted numbers, with consecutive ones as a range."""
    parts, i = [], 0
    while i < len(numbers):
        end = i
        while end + 1 < len(numbers) and numbers[end + 1] == numbers[end] + 1:
            end += 1
        parts.append(str(numbers[i]) if end == i else f"{numbers[i]}..{numbers[end]}")
        i = end + 1
    return ", ".join(parts)
