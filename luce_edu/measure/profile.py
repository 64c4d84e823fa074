"""Model where the time of a stage, a prompt or a kernel goes, for a card that need not be present.

    luce_edu.profile("megakernel", card="RTX 3090")
    luce_edu.profile("prompt", tokens=128)
    luce_edu.profile("rms_norm")
    luce_edu.profile(kernel.prepare(grid, block, args))

The virtual GPU runs the launches with its clock on (luce_edu/machine/timed.py). All times, rates and joules are
modelled, by the constants of luce_edu/machine/clock.py; bytes, instructions and conflicts are counted.
"""

from __future__ import annotations

import functools
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from luce_edu.backends.ledger import Launch
from luce_edu.config import LINEAR_ATTENTION
from luce_edu.errors import LaunchError, check_int
from luce_edu.machine.cards import Card, find_card
from luce_edu.machine.clock import Clock, find_clock
from luce_edu.machine.kernels import Prepared
from luce_edu.machine.schedule import FMA, FP64, FREE, HALF, PAUSE, TENSOR
from luce_edu.machine.timed import Device, LaunchTimes, Timeline, run_timed
from luce_edu.paths import csrc_dir
from luce_edu.tables import Tabular

CARD = "RTX 3090"  # the default
POSITION, TOKENS = 520, 128
PROMPT = "prompt"
SHOWN_LINES = 12
BUCKET_US = 0.25  # of DRAM's use over time
QUIET = 0.05  # of the datasheet's bandwidth; below it DRAM counts as silent
_SECTOR = 32  # bytes
EVENT = np.dtype([
    ("launch", "i4"), ("sm", "i4"), ("block", "i4"), ("place", "i4"), ("begin_us", "f8"), ("end_us", "f8"),
])  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Split:
    """µs by what warps do: the time of a kernel, divided as the time of its warps is.

    issue    instructions, and waits for an issue slot, a pipe or a result
    memory   waits for the result of a load or an atomic
    barrier  waits for other warps: at barriers, and for a word in memory that another block writes
    launch   between kernels, when the GPU is idle
    """

    issue_us: float
    memory_us: float
    barrier_us: float
    launch_us: float

    @property
    def split(self) -> dict[str, float]:
        return {name: getattr(self, f"{name}_us") for name in ("issue", "memory", "barrier", "launch")}


@dataclass(frozen=True, kw_only=True)
class KernelTimes(Split):
    """All launches of one kernel. us includes the gap before each launch; share is of the total.

    Matrix products are those of a library, whose code does not run here. Their time is the least possible: the bytes
    at DRAM's speed, or the multiply-adds at full rate.
    """

    kernel: str
    launches: int
    us_each: float
    us: float
    share: float
    dram_bytes: float
    l2_bytes: float


@dataclass(frozen=True, kw_only=True)
class PhaseTimes:
    """A phase of the megakernel: from one completion of its grid barrier to the next.

    dram_bytes    moved during the phase, also for other phases
    warps_active  warps per SM, on average, that are not yet at the grid barrier that ends the phase
    dram_idle     share of the time in which DRAM is idle
    """

    phase: str
    count: int
    us_each: float
    us: float
    dram_bytes: float
    dram_gb_per_s: float
    warps_active: float
    dram_idle: float


@dataclass(frozen=True, kw_only=True)
class LineTimes:
    """A source line. issued: machine instructions of warps. Others: cycles that warps waited before they issued them.

    The wait for a load is counted at the line that uses the value, as that line waits.
    share  of all waits of all lines
    """

    file: str
    line: int
    issued: float
    slot: float
    operand: float
    memory: float
    barrier: float
    share: float

    @property
    def stalls(self) -> float:
        return self.slot + self.operand + self.memory + self.barrier


@dataclass(frozen=True, repr=False)
class Table(Tabular):
    """One of a profile's tables."""

    title: str = ""
    header: Sequence[str] = ()
    body: Sequence[Sequence[str]] = ()
    caption: str = ""


@dataclass(frozen=True, kw_only=True, repr=False)
class Profile(Split):
    """The modelled times, bytes and energy of one run; see `profile`. Times in µs, energy in joules.

    what, model, position, tokens   what ran; None where it does not apply
    dram_share       of the datasheet's bandwidth, over the whole time
    warps_active     per SM, on average while a kernel runs; most_warps: that an SM holds
    instructions     machine instructions of warps
    bank_conflicts   passes over shared memory's banks beyond the fewest
    sectors          of 32 bytes that the warps' accesses touched
    energy           joules by part: active (clocks up, nothing done), dram, l2, l1, flops, instructions
    idle_j           what an idle card takes in the same time; it is part of `active`
    kernels, phases, lines   the longest first; phases in their order, of the megakernel only
    events           rows of EVENT: a block at a barrier (place: index into `places`), or on its SM (place -1)
    spans            by launch: name, begin and length in µs
    order            names of the megakernel's phases, from first to last; empty for other runs
    calls            by source line and the lines into which it was inlined, innermost first: machine instructions of
                     warps, and the cycles that they waited, as in LineTimes
    dram_use         bytes of DRAM in each BUCKET_US from the start
    """

    card: str
    what: str
    model: str | None
    position: int | None
    tokens: int | None
    total_us: float
    dram_gb_per_s: float
    dram_share: float
    dram_read_bytes: float
    dram_written_bytes: float
    l2_bytes: float
    warps_active: float
    most_warps: int
    instructions: float
    bank_conflicts: int
    sectors: int
    energy_j: float
    idle_j: float
    power_limit_w: float
    energy: Mapping[str, float]
    kernels: Sequence[KernelTimes]
    phases: Sequence[PhaseTimes]
    lines: Sequence[LineTimes]
    events: np.ndarray = field(compare=False)
    places: Sequence[tuple[str, int]] = field(compare=False)
    spans: Sequence[tuple[str, float, float]] = field(compare=False)
    order: Sequence[str] = field(compare=False)
    calls: Mapping[Sequence[tuple[str, int]], np.ndarray] = field(compare=False)
    dram_use: np.ndarray = field(compare=False)

    @property
    def dram_bytes(self) -> float:
        return self.dram_read_bytes + self.dram_written_bytes

    @property
    def dram_shares(self) -> np.ndarray:
        """The share of the datasheet's bandwidth that is used, by bucket of BUCKET_US."""
        return self.dram_use / (BUCKET_US * 1e3 * self.dram_gb_per_s / self.dram_share)

    @property
    def silent_us(self) -> float:
        """For how many µs DRAM moves less than QUIET of what the datasheet says, from the launch to the end."""
        times = BUCKET_US * np.arange(len(self.dram_use))
        return float(BUCKET_US * ((self.dram_shares < QUIET) & (times >= self.spans[0][1])).sum())

    @property
    def power_w(self) -> float:
        """The average power in watts."""
        return self.energy_j / self.total_us * 1e6

    @property
    def on_card(self) -> str:
        """The card with its article, such as "an RTX 3090"."""
        return _article(self.card)

    def to_dict(self) -> dict:
        """Return all fields except those for drawing, for JSON."""
        drawing = ("events", "places", "spans", "order", "calls", "dram_use", "kernels", "phases", "lines")
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in drawing}
        tables = {name: [asdict(row) for row in getattr(self, name)] for name in ("kernels", "phases", "lines")}
        return {"kind": "modelled"} | plain | {"energy": dict(self.energy)} | tables

    @property
    def title(self) -> str:
        where = [self.model, None if self.position is None else f"a token at position {self.position}"]
        where += [None if self.tokens is None else f"{self.tokens} tokens"]
        named = ", ".join([self.what, *filter(None, where)])
        return f"{named}: {number(self.total_us)} µs (modelled for {self.on_card})"

    @property
    def tables(self) -> list[Table]:
        """The tables that __str__ and a notebook show."""
        shown = [self._summary(), self._kernels()]
        shown += [self._phases()] if self.phases else []
        return [*shown, *([self._lines()] if self.lines else [])]

    def _summary(self) -> Table:
        rows = [[name, f"{number(us)} µs", _percent(us / self.total_us)] for name, us in self.split.items()]
        rows += [
            ["DRAM", f"{number(self.dram_gb_per_s)} GB/s", f"{_percent(self.dram_share)} of the datasheet's"],
            ["  read", f"{number(self.dram_read_bytes / 1e6)} MB", ""],
            ["  written", f"{number(self.dram_written_bytes / 1e6)} MB", ""],
            ["L2", f"{number(self.l2_bytes / 1e6)} MB", ""],
            ["warps active per SM", f"{self.warps_active:.1f}", f"of {self.most_warps}"],
            ["machine instructions", f"{self.instructions:,.0f}", ""],
            ["bank conflicts", f"{self.bank_conflicts:,}", ""],
            ["sectors", f"{self.sectors:,}", ""],
            ["energy", f"{number(self.energy_j * 1e3)} mJ", f"{number(self.power_w)} W"],
            ["  of which idle", f"{number(self.idle_j * 1e3)} mJ", ""],
        ]
        more = "" if self.power_w <= self.power_limit_w else (
            f" The power is above the card's limit of {self.power_limit_w:g} W, so a real card would lower its clock."
        )  # fmt: skip
        caption = "Modelled: times, rates, joules, and bytes of DRAM and L2, by the modelled caches. The rest: counted."
        return Table(self.title, ["", "", ""], rows, caption + more)

    def _kernels(self) -> Table:
        rows = [
            [
                k.kernel, f"{k.launches:,}", number(k.us_each), number(k.us), _percent(k.share),
                *(_percent(us / k.us if k.us else 0.0) for us in k.split.values()), number(k.dram_bytes / 1e6),
                number(k.l2_bytes / 1e6),
            ]
            for k in self.kernels
        ]  # fmt: skip
        header = [
            "kernel", "launches", "µs each", "µs", "share", "issue", "memory", "barrier", "launch", "DRAM MB", "L2 MB"
        ]  # fmt: skip
        library = "matmul is a library's, at the least possible time. "
        said = library if any(k.kernel == "matmul" for k in self.kernels) else ""
        return Table("By kernel (modelled)", header, rows, said + "µs include the gap before each launch.")

    def _phases(self) -> Table:
        rows = [
            [p.phase, f"{p.count}", number(p.us_each), number(p.us), _percent(p.us / self.total_us),
             number(p.dram_bytes / 1e6), number(p.dram_gb_per_s), f"{p.warps_active:.1f}", _percent(p.dram_idle)]
            for p in self.phases
        ]  # fmt: skip
        header = ["phase", "times", "µs each", "µs", "share", "DRAM MB", "DRAM GB/s", "warps per SM", "DRAM idle"]
        return Table("By phase, from one grid barrier to the next (modelled)", header, rows)

    def _lines(self) -> Table:
        rows = [
            [f"{line.file}:{line.line or '(no line)'}", f"{line.issued:,.0f}", _percent(line.share),
             *(_percent(part / line.stalls if line.stalls else 0.0)
               for part in (line.slot, line.operand, line.memory, line.barrier))]
            for line in self.lines[:SHOWN_LINES]
        ]  # fmt: skip
        header = ["line", "instructions", "of all waits", "slot", "operand", "memory", "barrier"]
        return Table(f"The {len(rows)} lines with the longest waits (modelled)", header, rows)

    def __rich__(self):
        from rich.console import Group

        return Group(*(part for table in self.tables for part in (table, "")))

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables)


def profile(
    what: str | Prepared | Sequence[Prepared], *, card: Card | str | None = None, model="tiny",
    position: int | None = None, tokens: int | None = None, clock: Clock | None = None, threads: int | None = None,
    csrc_dir: Path | None = None, variant: str | None = None,
) -> Profile:  # fmt: skip
    """Run something on the virtual GPU with the clock on, and return its modelled profile.

    what      one of
              - a stage made of kernels: one token, with L2 as the token before left it
              - "prompt": a prompt, as from the second of its length on, with an empty L2
              - a kernel, such as "rms_norm" or "per_layer.delta_rule": its launches in one token or prompt of its stage
              - launches that `Kernel.prepare` returns: they run one after another on their card, with an empty L2
    card      a name that `luce-edu cards` lists, or a Card; None: LUCE_CARD, or an RTX 3090
    model     a name that `load_model` takes, or a model
    position  of a stage's token, from 1 on; None: 520
    tokens    of a prompt; None: 128
    clock     constants to use instead of the card's own
    threads   OS threads; the result does not depend on them
    csrc_dir  another source tree for a stage, a kernel or a prompt, such as one that `planted` makes
    variant   of streaming: one of its VARIANTS, for a comparison; None: the stage as it ships
    Raises ValueError for an unknown stage, kernel or card, for a card without constants, for a position or length
    beyond the model's, and for a kernel that this model does not launch; also what `decoder` raises.
    """
    if isinstance(what, Prepared):
        what = [what]
    if not isinstance(what, str):
        return _of_launches(list(what), clock, threads)
    from luce_edu.models import load_model
    from luce_edu.stages import KERNEL_STAGES, stage_class

    run, kernel = find_profiled(what)
    of_prompt = run == PROMPT
    if variant is not None and run != "streaming":
        raise ValueError(f"{what}: variants are for streaming")
    if of_prompt and position is not None or not of_prompt and tokens is not None:
        raise ValueError(f"{what}: {'position is for a stage' if of_prompt else 'tokens are for a prompt'}")
    card = card if isinstance(card, Card) else find_profiled_card(card)
    clock = clock or find_clock(card)
    model = load_model(model) if isinstance(model, str) else model
    size = (TOKENS if tokens is None else tokens) if of_prompt else POSITION if position is None else position
    name, room = "tokens" if of_prompt else "position", model.config.max_position_embeddings - (not of_prompt)
    check_int(f"{name} of {model.name}", size, 1, room)
    from luce_edu.backends.host import HostBackend

    backend = HostBackend(
        csrc_dir=csrc_dir, card=card, clock=Device(clock), threads=threads, bucket_us=BUCKET_US
    )
    stage = KERNEL_STAGES[0] if of_prompt else run  # all of them read a prompt alike
    how = {} if variant is None else {"variant": variant}
    dec = stage_class(stage)(model, device=None, max_seq_len=size + (not of_prompt), backend=backend, **how)
    if of_prompt:
        prompt = np.random.default_rng(0).integers(model.config.vocab_size, size=size).tolist()
        device, backend.clock = backend.clock, None  # the first prompt launches kernels one by one
        dec.prefill(prompt)
        dec.reset()
        backend.clock = device
        backend.waits_from_us = 0.0
        dec.prefill(prompt)
    else:
        dec.pretend(size)
        backend.waits_from_us = 0.0
        dec.step()
    order = _phases_of(model.config) if run == "megakernel" else ()
    return _put_together(
        dec.ledger.entries, backend.timelines, card, clock, order=order, kernel=kernel,
        what=f"{run}.{kernel}" if kernel else run, model=model.name,
        position=None if of_prompt else size, tokens=size if of_prompt else None,
    )  # fmt: skip


def find_profiled(what: str) -> tuple[str, str | None]:
    """Return (the stage that `what` names, or "prompt"; the kernel or None). Raises ValueError for an unknown name.

    A kernel's name alone means that of the first stage that has it: per_op, then per_layer, then a prompt. Name the
    stage for another, as in "per_layer.delta_rule".
    """
    from luce_edu.stages import KERNEL_STAGES

    stages = [*KERNEL_STAGES, PROMPT]
    if what in stages:
        return what, None
    if what == "eager":
        raise ValueError(f"eager runs PyTorch's own kernels, whose time is not modelled; expected {', '.join(stages)}")
    stage, _, name = what.rpartition(".")
    kernels = profiled_kernels()
    for run, names in kernels.items():
        if name in names and stage in ("", run):
            return run, name
    known = "; ".join(f"of {run} {', '.join(names)}" for run, names in kernels.items())
    raise ValueError(f"unknown stage or kernel {what!r}; expected one of {', '.join(stages)}, or a kernel: {known}")


def profiled_kernels() -> dict[str, tuple[str, ...]]:
    """Return, by stage, the kernels that `profile` accepts by name: of stages that launch several, and of a prompt."""
    from luce_edu.stages import KERNEL_STAGES, stage_class
    from luce_edu.stages.prefill import KERNELS

    classes = map(stage_class, KERNEL_STAGES)
    return {kind.stage: kind.kernels for kind in classes if kind.starts == "plain"} | {PROMPT: tuple(KERNELS)}


def find_profiled_card(name: str | None) -> Card:
    """Return the card to model: the named one, that of LUCE_CARD, or an RTX 3090. Raises ValueError if unknown."""
    card = find_card(name or os.environ.get("LUCE_CARD") or CARD)
    find_clock(card)
    return card


def _of_launches(launches: list[Prepared], clock: Clock | None, threads: int | None) -> Profile:
    if not launches or not all(isinstance(launch, Prepared) for launch in launches):
        raise ValueError('what: expected a stage, "prompt" or launches that Kernel.prepare gives')
    card = launches[0].kernel.card
    if any(launch.kernel.card != card for launch in launches):
        raise ValueError("what: expected launches on one card")
    clock = clock or find_clock(card)
    gaps = [clock.launch_us + clock.cooperative_extra_us * launch.cooperative for launch in launches]
    found, timeline = run_timed(
        launches, Device(clock), gap_us=gaps, threads=threads, wait_from_us=0.0, bucket_us=BUCKET_US
    )
    entries = [
        Launch(t.kernel, launch.grid, launch.block, launch.smem, launch.cooperative, traffic=t.counters.traffic,
               counters=t.counters, times=t)
        for launch, t in zip(launches, found, strict=True)
    ]  # fmt: skip
    named = ", ".join(dict.fromkeys(entry.kernel for entry in entries))
    return _put_together(
        entries, [timeline], card, clock, order=(), what=named, model=None, position=None, tokens=None
    )


# From launches to a profile.


def _put_together(
    entries: Sequence[Launch], timelines: Sequence[Timeline], card: Card, clock: Clock, *, order: Sequence[str],
    kernel: str | None = None, **named,
) -> Profile:  # fmt: skip
    """Return the profile of launches; kernel: of this kernel's launches alone."""
    parts = [part for entry in entries for part in _parts(entry, clock)]
    events, places, spans, use = _events(parts, timelines, clock)
    if kernel is not None:
        own = [i for i, part in enumerate(parts) if part.kernel == kernel]
        if not own:
            raise ValueError(f"{named['what']}: {named['model']} launches no such kernel here")
        parts, spans = [parts[i] for i in own], tuple(spans[i] for i in own)
        events, use = _events_of(own, spans, events, use)
    by_kernel: dict[str, list[_Part]] = defaultdict(list)
    for part in parts:
        by_kernel[part.kernel].append(part)
    total_us = sum(part.all_us for part in parts)
    kernels = sorted((_kernel(name, rows, total_us) for name, rows in by_kernel.items()), key=lambda k: -k.us)
    times = [part.times for part in parts if part.times]
    read, written = (sum(part.dram[i] for part in parts) for i in (0, 1))
    l2_bytes = sum(part.l2_bytes for part in parts)
    busy_us = sum(part.us for part in parts if part.times)
    calls, instructions, flops, others = _by_call(times)
    flops += sum(part.flops for part in parts)
    energy = {
        "active": clock.active_w * total_us * 1e-6,
        "dram": clock.pj_per_byte_dram * (read + written) * 1e-12,
        "l2": clock.pj_per_byte_l2 * max(0.0, l2_bytes - (read + written)) * 1e-12,
        "l1": clock.pj_per_byte_l1 * _SECTOR * sum(t.l1_hits for t in times) * 1e-12,
        "flops": clock.pj_per_flop * flops * 1e-12,
        "instructions": clock.pj_per_instruction * others * 1e-12,
    }
    phases = _phase_times(order, entries[0], events, places, spans, use, clock) if order else ()
    per_s = (read + written) / total_us / 1e3
    traffic = [part for t in times for part in t.counters.traffic.values()]
    return Profile(
        card=card.name, total_us=total_us, **{k: sum(getattr(row, k) for row in kernels) for k in _SPLIT},
        dram_gb_per_s=per_s, dram_share=per_s / clock.dram_gb_per_s, dram_read_bytes=read, dram_written_bytes=written,
        l2_bytes=l2_bytes, warps_active=_warp_us(times, clock) / (clock.sm_count * busy_us) if busy_us else 0.0,
        most_warps=card.warps_per_sm, instructions=instructions,
        bank_conflicts=sum(t.counters.bank_conflicts for t in times),
        sectors=sum(part.moved_read + part.moved_write for part in traffic) // _SECTOR,
        energy_j=sum(energy.values()), idle_j=clock.idle_w * total_us * 1e-6, power_limit_w=clock.power_limit_w,
        energy=energy, kernels=tuple(kernels), phases=phases, lines=_by_line(calls), events=events, places=places,
        spans=spans, order=tuple(order), calls=calls, dram_use=use, **named,
    )  # fmt: skip


_SPLIT = ("issue_us", "memory_us", "barrier_us", "launch_us")


@dataclass(frozen=True)
class _Part:
    """One kernel that ran: a launch, or a library's matrix product without `times`. shares: issue, memory, barrier."""

    kernel: str
    gap_us: float
    us: float
    shares: tuple[float, float, float]
    dram: tuple[float, float]
    l2_bytes: float
    flops: float = 0.0  # of a product
    times: LaunchTimes | None = None

    @property
    def all_us(self) -> float:
        return self.gap_us + self.us


def _parts(entry: Launch, clock: Clock) -> Iterable[_Part]:
    for i, one in enumerate(entry.captured or (entry,)):
        if one.product is not None:
            gap = clock.graph_gap_us if entry.captured and i else clock.launch_us
            yield _product(one, gap, clock)
        else:
            t = one.times
            moved = (t.dram_read_bytes, t.dram_written_bytes)
            yield _Part(one.kernel, t.gap_us, t.us, _shares(t), moved, t.l2_bytes, times=t)


def _product(entry: Launch, gap_us: float, clock: Clock) -> _Part:
    rows, outputs, inputs = entry.product
    read, written = 2.0 * inputs * (rows + outputs), 2.0 * rows * outputs  # bf16
    multiply_adds = float(rows) * outputs * inputs
    by_bytes = (read + written) / clock.dram_bytes_per_cycle
    by_rate = multiply_adds / (clock.tensor_rate * clock.sm_count)
    shares = (0.0, 1.0, 0.0) if by_bytes > by_rate else (1.0, 0.0, 0.0)
    us = max(by_bytes, by_rate) / clock.clock_mhz
    return _Part(entry.kernel, gap_us, us, shares, (read, written), read + written, 2 * multiply_adds)


def _polls(times: LaunchTimes) -> np.ndarray:
    """Return, by machine instruction, whether its waits for memory are waits for another block.

    These are loads of a word in a loop until another block has written it. A relaxed one waits at its first use.
    """
    program, schedule = times.counters.program, times.schedule
    entries = schedule.entries
    statements = [program.statement(row) for row in entries["row"].tolist()]
    loads = np.array([s is not None and s.opcode == "ld" for s in statements], bool)
    polls = loads & (entries["kind"] == PAUSE)
    passes = polls.copy()  # the value: polls, and free entries behind them
    uses = np.zeros_like(polls)
    for first, count in schedule.blocks.tolist():
        for i in range(first, first + count) if polls[first : first + count].any() else ():
            uses[i] = passes[[first + source for source in entries["sources"][i].tolist() if source >= 0]].any()
            passes[i] |= uses[i] and entries["kind"][i] == FREE
    return polls | uses


def _shares(times: LaunchTimes) -> tuple[float, float, float]:
    found = times.instructions
    polls = found["memory"][_polls(times)].sum()
    issue = times.issued + found["slot"].sum() + found["operand"].sum()
    parts = issue, found["memory"].sum() - polls, found["barrier"].sum() + polls
    total = sum(parts)
    return tuple(float(part / total) for part in parts) if total else (1.0, 0.0, 0.0)


def _kernel(name: str, parts: list[_Part], total_us: float) -> KernelTimes:
    us = sum(part.all_us for part in parts)
    issue, memory, barrier = (sum(part.us * part.shares[i] for part in parts) for i in range(3))
    return KernelTimes(
        kernel=name, launches=len(parts), us_each=us / len(parts), us=us, share=us / total_us, issue_us=issue,
        memory_us=memory, barrier_us=barrier, launch_us=sum(part.gap_us for part in parts),
        dram_bytes=sum(sum(part.dram) for part in parts), l2_bytes=sum(part.l2_bytes for part in parts),
    )  # fmt: skip


def _warp_us(times: Sequence[LaunchTimes], clock: Clock) -> float:
    """Return the time of all warps together, in µs."""
    return sum(t.issued / clock.clock_mhz + sum(t.waited_us.values()) for t in times)


_FLOATS = {FMA, HALF, FP64}


def _flops(statement, pipe: int) -> float:
    """Return the operations of a warp's instruction on a floating-point pipe; 0 on another."""
    if statement is None:
        return 0.0
    if pipe == TENSOR:
        shape = next((m for m in statement.modifiers if m.startswith("m") and "n" in m and "k" in m), None)
        m, n, k = map(int, shape[1:].replace("n", " ").replace("k", " ").split()) if shape else (0, 0, 0)
        return 2.0 * m * n * k
    if pipe not in _FLOATS:
        return 0.0
    packed = 2 if any(m.endswith("x2") for m in statement.modifiers) else 1
    return 32.0 * packed * (2 if statement.opcode in ("fma", "mad") else 1)


def _by_call(times: Sequence[LaunchTimes]) -> tuple[dict[tuple, np.ndarray], float, float, float]:
    """Return Profile.calls and, over all launches, machine instructions, flops, and instructions without flops."""
    groups: dict[int, list[LaunchTimes]] = defaultdict(list)
    for t in times:
        groups[id(t.schedule)].append(t)
    calls: dict[tuple, np.ndarray] = defaultdict(lambda: np.zeros(5))
    instructions = flops = others = 0.0
    for group in groups.values():
        entries, program = group[0].schedule.entries, group[0].counters.program
        found = np.stack([
            sum(t.instructions[name] for t in group) for name in ("issued", "slot", "operand", "memory", "barrier")
        ])  # fmt: skip
        polls = _polls(group[0])
        found[4, polls] += found[3, polls]
        found[3, polls] = 0
        found[0] *= entries["issues"]
        for i in np.flatnonzero(found.any(axis=0)).tolist():
            entry = entries[i]
            index = int(entry["statement"])
            statement = program.instructions[index] if index >= 0 else None
            made = _flops(statement, int(entry["pipe"])) * found[0, i]
            flops += made
            others += 0 if made else found[0, i]
            calls[_call_of(statement)] += found[:, i]
        instructions += found[0].sum()
    return dict(calls), float(instructions), flops, float(others)


def _by_line(calls: Mapping[tuple, np.ndarray]) -> tuple[LineTimes, ...]:
    """Return the sums by innermost line, over all calls."""
    lines: dict[tuple[str, int], np.ndarray] = defaultdict(lambda: np.zeros(5))
    for call, row in calls.items():
        lines[call[0]] += row
    stalls = sum(row[1:].sum() for row in lines.values()) or 1.0
    rows = [
        LineTimes(
            file=file, line=line, issued=float(row[0]), slot=float(row[1]), operand=float(row[2]), memory=float(row[3]),
            barrier=float(row[4]), share=float(row[1:].sum() / stalls),
        )
        for (file, line), row in lines.items()
    ]  # fmt: skip
    rows.sort(key=lambda row: (-row.share, row.file, row.line))
    return tuple(rows)


def place_of(statement) -> tuple[str, int]:
    """Return (file, line) of a statement: the line in the inlined function, not that of its call.

    Line 0 means code that the compiler made for no particular line.
    """
    return _call_of(statement)[0]


def _call_of(statement) -> tuple[tuple[str, int], ...]:
    """Return `place_of` a statement and then, outwards, the lines of the calls that were inlined."""
    if statement is None:
        return (("", 0),)
    if statement.loc is None:
        return (("PTX", statement.line),)
    return _call_at(statement.loc)


def _call_at(loc) -> tuple[tuple[str, int], ...]:
    return ((_path(loc.file), loc.line), *(_call_at(loc.inlined_at) if loc.inlined_at else ()))


@functools.cache
def _path(file: str) -> str:
    return f"csrc/{file}" if (csrc_dir() / file).is_file() else file


# Events over time.


def _events(parts: Sequence[_Part], timelines: Sequence[Timeline], clock: Clock):
    """Return events, their places, the launches' spans and DRAM's bytes by bucket, on one time axis in µs."""
    spans, at = [], 0.0
    for part in parts:
        spans.append((part.kernel, at + part.gap_us, part.us))
        at += part.all_us
    places: dict[tuple[str, int], int] = {}
    rows, use = [], np.zeros(math.ceil(at / BUCKET_US) + 1, np.float64)
    launches = [i for i, part in enumerate(parts) if part.times]
    done = 0
    for timeline in timelines:
        count = 1 + int(timeline.waits["launch"].max(initial=0))
        own = launches[done : done + count]
        done += count
        start = spans[own[0]][1] - parts[own[0]].gap_us
        events = np.zeros(len(timeline.waits), EVENT)
        waits = timeline.waits
        events["launch"] = np.array(own)[waits["launch"]]
        for name in ("sm", "block"):
            events[name] = waits[name]
        for name in ("begin", "end"):
            events[f"{name}_us"] = start + waits[name] / clock.clock_mhz
        events["place"] = -1
        for launch in np.unique(waits["launch"]).tolist():
            program = parts[own[launch]].times.counters.program
            here = (waits["launch"] == launch) & (waits["row"] >= 0)
            for row in np.unique(waits["row"][here]).tolist():
                place = places.setdefault(place_of(program.statement(row)), len(places))
                events["place"][here & (waits["row"] == row)] = place
        rows.append(events)
        first = round(start / BUCKET_US)
        end = min(len(use), first + len(timeline.dram_bytes))
        use[first:end] += timeline.dram_bytes[: end - first]
    return np.concatenate(rows) if rows else np.zeros(0, EVENT), tuple(places), tuple(spans), use


def _events_of(own: list[int], spans, events: np.ndarray, use: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the events and DRAM's bytes of some launches, with these `spans`, on the time axis of all."""
    events = events[np.isin(events["launch"], own)].copy()
    events["launch"] = np.searchsorted(own, events["launch"])
    there = np.zeros(len(use), bool)
    for _, begin, us in spans:
        there[int(begin / BUCKET_US) : math.ceil((begin + us) / BUCKET_US)] = True
    return events, np.where(there, use, 0.0)


def _phases_of(config) -> tuple[str, ...]:
    """Return the phases of csrc/megakernel.cu in order; a grid barrier separates each two."""
    names = ["embed"]
    for kind in config.layer_types:
        linear = kind == LINEAR_ATTENTION
        names += ["deltanet_in", "delta_rule", "deltanet_out"] if linear else []
        names += [] if linear else ["attention_in", "attention", "attention_out"]
        names += ["mlp_up", "mlp_down"]
    return (*names, "lm_head")


def grid_waits(events: np.ndarray, places: Sequence[tuple[str, int]]) -> dict[int, np.ndarray]:
    """Return, by block, its waits at grid barriers in order, as rows [begin, end] in µs.

    A block waits at the second __syncthreads of a grid barrier, until thread 0 has passed the barrier.
    """
    lines = [line for file, line in places if file == "csrc/grid_barrier.cuh"]
    place = places.index(("csrc/grid_barrier.cuh", max(lines))) if lines else -2
    waits = np.sort(events[events["place"] == place], order=["block", "end_us"])
    times = np.stack([waits["begin_us"], waits["end_us"]], axis=1)
    return {int(block): times[waits["block"] == block] for block in np.unique(waits["block"])}


def completions(events: np.ndarray, places: Sequence[tuple[str, int]]) -> dict[int, np.ndarray]:
    """Return, by block, the times in µs at which it passed each grid barrier."""
    return {block: waits[:, 1] for block, waits in grid_waits(events, places).items()}


def _phase_times(order, launch: Launch, events, places, spans, use, clock: Clock) -> tuple[PhaseTimes, ...]:
    waits = grid_waits(events, places)
    by_block = {block: times[:, 1] for block, times in waits.items()}
    counts = {len(times) for times in by_block.values()}
    if counts != {len(order) - 1}:
        raise LaunchError(
            f"megakernel: blocks passed {' or '.join(map(str, sorted(counts))) or 'no'} grid barriers; expected "
            f"{len(order) - 1}, between {len(order)} phases"
        )
    _, begin, us = spans[0]
    times = [begin, *np.max(list(by_block.values()), axis=0).tolist(), begin + us]
    moved = np.concatenate([[0.0], np.cumsum(use)])
    at = np.interp(np.array(times) / BUCKET_US, np.arange(len(moved)), moved)
    # A block works until it reaches the barrier. The last phase has no barrier at its end.
    at_work = sum(np.append(w[:, 0], times[-1]) - times[:-1] for w in waits.values())
    warp_us = at_work * math.prod(launch.block) / 32
    parts: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for name, begin, end, before, after, worked in zip(order, times, times[1:], at, at[1:], warp_us, strict=False):
        parts[name].append((end - begin, after - before, worked))
    rows = []
    for name, found in parts.items():
        us, moved, worked = (float(sum(column)) for column in zip(*found, strict=True))
        busy = moved / clock.dram_bytes_per_cycle / clock.clock_mhz
        rows.append(
            PhaseTimes(
                phase=name, count=len(found), us_each=us / len(found), us=us, dram_bytes=moved,
                dram_gb_per_s=moved / us / 1e3, warps_active=worked / (clock.sm_count * us),
                dram_idle=min(1.0, max(0.0, 1 - busy / us)),
            )
        )  # fmt: skip
    return tuple(rows)


# Text.


def number(value: float) -> str:
    """Return a number as text: three digits, or all digits before the point."""
    if not value or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.0995 else f"{share:.0%}"


def _article(card: str) -> str:
    return f"{'an' if card[0] in 'AHLR' else 'a'} {card}"
