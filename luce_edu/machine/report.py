"""The words of a report: what a kernel did wrong, where, in which thread, to which tensor."""

from __future__ import annotations

from collections.abc import Sequence

FAR = 2**28  # bytes; what is further away than that is no index that went astray
SPACES = ("generic", "global", "shared", "local", "constant", "parameter")

# In the order of Fault in csrc/machine/machine.h.
FAULTS = (
    "none", "out_of_bounds", "misaligned", "uninitialised", "divergent_barrier", "deadlock", "lost_launch", "budget",
    "trap", "assertion", "missing_lanes", "interrupted", "race", "read_only", "bad_barrier", "unsupported", "stack",
)  # fmt: skip

WAITS = {
    "ready": "can go on",
    "look": "looks again and again for a value that does not come",
    "barrier": "waits at a barrier of the block",
    "warp": "waits for lanes of its warp",
    "cluster": "waits at a barrier of the cluster",
    "launch": "waits for the launch before",
}


def words(report, launches: Sequence) -> str:
    """One sentence or more about a report of the core. launches: those that ran together."""
    launch = launches[report.launch]
    fault = FAULTS[report.fault]
    return f"{launch.kernel.name}: {_SAYINGS[fault](report, launch)}"


def place(launch, ins: int) -> str:
    """' at file:line (instruction)', with what it was inlined into; '' where nobody knows."""
    program = launch.kernel.program
    number = program.sources[ins] if 0 <= ins < len(program.sources) else -1
    if number < 0:
        return ""
    _, spelled, line, loc = program.instructions[number]
    if loc is None:
        return f" at line {line} of the PTX ({spelled})"
    chain = f"{loc.file}:{loc.line}"
    outer = loc.inlined_at
    while outer is not None and outer.inlined_at is not None:
        outer = outer.inlined_at
    if outer is not None and (outer.file, outer.line) != (loc.file, loc.line):
        chain += f", called from {outer.file}:{outer.line}"
    return f" at {chain}"


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
        return f"byte {address} of shared memory, of which the block has {_shared(launch)}"
    if space == "local":
        return f"byte {address} of its local memory, which has {launch.kernel.program.local_bytes}"
    if address < 4096:
        return f"address {address}, a null pointer"
    nearest, distance = None, FAR
    for (begin, end), name in zip(launch.tensors.bounds, launch.tensors.names, strict=True):
        away = begin - address if address < begin else max(address + size - end, 0)
        if away < distance:
            nearest, distance = (begin, end, name), away
    if nearest is None:
        return f"address {address:#x}, far from every tensor"
    begin, end, name = nearest
    offset = address - begin
    element = f"{name}[{offset // size}], " if offset % size == 0 else ""
    return f"{element}byte {offset} of {name}, which has {end - begin}"


def _shared(launch) -> int:
    return -(-launch.kernel.program.shared_bytes // 16) * 16 + launch.smem


def _access(report, launch) -> str:
    return f"{_who(report)} {_does(report.is_write)} {report.size} bytes at {_what(report, launch)}"


def _out_of_bounds(report, launch) -> str:
    return f"{_access(report, launch)}: out of bounds{place(launch, report.ins)}"


def _misaligned(report, launch) -> str:
    return (
        f"{_access(report, launch)}: misaligned, the address is no multiple of {report.size}"
        f"{place(launch, report.ins)}"
    )


def _uninitialised(report, launch) -> str:
    return f"{_access(report, launch)}, which nobody wrote: uninitialised{place(launch, report.ins)}"


def _read_only(report, launch) -> str:
    return f"{_access(report, launch)}, which is constant{place(launch, report.ins)}"


def _divergent_barrier(report, launch) -> str:
    if report.other_ins >= 0:
        return (
            f"divergent barrier: {_who(report)} is{place(launch, report.ins)} while threads of its block wait"
            f"{place(launch, report.other_ins)}"
        )
    return f"divergent barrier: threads of block {_who(report)} have ended before{place(launch, report.ins)}"


def _missing_lanes(report, launch) -> str:
    lanes = [lane for lane in range(32) if report.address >> lane & 1]
    return (
        f"{_who(report)}: a warp operation names lanes {number_ranges(lanes)}, of which one has ended or is not there, "
        f"or which leave out the own lane{place(launch, report.ins)}"
    )


def _waits(report, launch) -> str:
    entries = []
    for entry in report.text.decode().split(";"):
        state, ins, threads, blocks = entry.split(" ")
        blocks, threads = blocks.replace(",", ", "), threads.replace(",", ", ")
        many = "s" if any(c in blocks for c in ",-") else ""
        manner = "s" if any(c in threads for c in ",-") else ""
        entries.append(f"block{many} {blocks}, thread{manner} {threads} {WAITS[state]}{place(launch, int(ins))}")
    return "; ".join(entries)


def _deadlock(report, launch) -> str:
    return f"deadlock, nobody can go on: {_waits(report, launch)}"


def _lost_launch(report, launch) -> str:
    return (
        f"deadlock, nobody can go on, and {report.value} blocks have never started as the card holds no more at once "
        f"({launch.kernel.card.name}): {_waits(report, launch)}"
    )


def _budget(report, launch) -> str:
    return "it had not ended after the instructions that it may execute, and was stopped"


def _trap(report, launch) -> str:
    return f"{_who(report)} met a trap{place(launch, report.ins)}"


def _assertion(report, launch) -> str:
    said, file, line, function, *_ = report.text.decode(errors="replace").split("\n") + [""] * 4
    return f"{_who(report)}: assertion `{said}` failed in {function} at {file}:{line}"


def _race(report, launch) -> str:
    one = f"{_who(report)} {_does(report.is_write & 1)}{place(launch, report.ins)}"
    other = f"{_who(report, 'other_')} {_does(report.is_write & 2)}{place(launch, report.other_ins)}"
    return f"race on {_what(report, launch)}: {one}, and {other}, and nothing orders the two"


def _bad_barrier(report, launch) -> str:
    return (
        f"{_who(report)}: a barrier's number is from 0 to 15 and its count of threads a multiple of 32"
        f"{place(launch, report.ins)}"
    )


def _unsupported(report, launch) -> str:
    return f"{_who(report)} came to something that cannot be executed{place(launch, report.ins)}"


def _interrupted(report, launch) -> str:
    return "interrupted"


_SAYINGS = {name: globals().get(f"_{name}", _unsupported) for name in FAULTS}


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
