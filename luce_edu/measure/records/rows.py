"""The schema of records: a dataclass for each kind of row, which `luce_edu.measure.schema` reads from JSON.

A record holds either `Recorded`, measured by this project on a named GPU, or `Figures`, published by others.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypedDict

from luce_edu.machine.cards import DATASHEET_GB_PER_S
from luce_edu.measure.constants import Bandwidth, LaunchCosts
from luce_edu.measure.floor import bytes_per_token
from luce_edu.measure.latency import Quartiles
from luce_edu.measure.schema import Check, Count, Day, NotNegative, Positive, Scalar, Size, Text
from luce_edu.verification import Report

# ---- Recorded ----


@dataclass(frozen=True)
class Machine:
    """A GPU, its driver and the versions of packages. Clocks are read under load, during the decode part."""

    gpu: Text
    arch: str
    sm_count: Size
    memory_bytes: int
    l2_bytes: int
    driver: str | None
    power_limit_w: float | None
    versions: dict[str, str | None]
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None


@dataclass(frozen=True)
class VerifiedStage:
    """The verdict on one stage. figures: the other fields of luce_edu.verification.StageResult."""

    stage: Text
    passed: bool
    problems: tuple[str, ...] = ()
    figures: dict[str, Scalar] | None = None


@dataclass(frozen=True)
class Verified:
    """A luce_edu.verification.Report or PromptReport."""

    model: str
    device: str
    steps: Size
    seed: int
    rows: tuple[VerifiedStage, ...]

    @classmethod
    def of(cls, report: Report) -> Verified:
        """Convert a report. A number that is not finite becomes None, because JSON has no such number."""
        rows = []
        for row in report.rows:
            figures = {name: value for name, value in vars(row).items() if name not in ("stage", "problems")}
            numbers = {name: value for name, value in figures.items() if isinstance(value, float)}
            figures |= {name: None for name, value in numbers.items() if not math.isfinite(value)}
            rows.append(VerifiedStage(row.stage, row.passed, tuple(row.problems), figures))
        return cls(report.model, report.device, report.steps, report.seed, tuple(rows))

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)


@dataclass(frozen=True)
class GpuTests:
    """Results of `pytest -m gpu`: two counts, and the names of the tests that failed."""

    passed: Count
    skipped: Count
    failed: tuple[str, ...]


@dataclass(frozen=True)
class Modelled:
    """The clock's prediction for a token on the record's card. source: commit and date of the clock."""

    us: Positive
    joules: Positive
    card: Text
    clock_mhz: Positive
    source: Text


@dataclass(frozen=True)
class DecodeRow:
    """The time of a token.

    system      a stage, or a baseline by name
    context     tokens in the cache before the step
    enqueue_us  the CPU's time to enqueue a step; None if a step is one library call
    kernels     launched, with each kernel of a graph counted
    bytes       that a step must at least move (modelled)
    """

    system: Text
    context: Count
    latency_us: Quartiles
    enqueue_us: float | None
    launches: int | None
    kernels: int | None
    barriers: int | None
    bytes: int
    modelled: Modelled | None = None

    @property
    def key(self) -> tuple[str, int]:
        """What identifies a row within its part."""
        return self.system, self.context


@dataclass(frozen=True)
class PrefillRow:
    """The time of a prompt of so many tokens."""

    system: Text
    tokens: Size
    latency_us: Quartiles

    @property
    def key(self) -> tuple[str, int]:
        """As of a DecodeRow."""
        return self.system, self.tokens


@dataclass(frozen=True)
class EnergyRow:
    """The energy of `tokens` tokens.

    joules          over a window of `seconds`, with the idle draw
    sampled_joules  the same from power samples
    idle_w          power just before, with a CUDA context and no work
    method          of `joules`: NVML's energy counter, or power samples
    """

    system: Text
    context: Count
    tokens: Size
    seconds: Positive
    joules: Positive
    sampled_joules: float | None
    idle_w: float | None
    method: Literal["counter", "samples"]
    modelled: Modelled | None = None

    @property
    def key(self) -> tuple[str, int]:
        """As of a DecodeRow."""
        return self.system, self.context


@dataclass(frozen=True)
class TaskRow:
    """The time of one task in one system, with nothing in L2 before.

    task       rms_norm: of a vector of 1,024;  matvec: gate_proj of Qwen3.5-0.8B, bf16 weights
    system     ours: csrc/per_op.cu; cuBLAS: torch.mv in bf16; torch.compile: of the same line of PyTorch
    latency_us None if it could not run;  reason: why, in one line
    """

    task: Literal["rms_norm", "matvec"]
    system: Text
    latency_us: Quartiles | None
    reason: str = ""


@dataclass(frozen=True)
class Tasks:
    """Every task in every system."""

    rows: tuple[TaskRow, ...]


@dataclass(frozen=True)
class SweepPoint:
    """Decode under one power limit.

    clock_mhz      mean clock of the SMs;  draw_w: joules over seconds, with the idle draw
    temperature_c  at the end;  slowed_by: every reason for a lower clock that the driver gave
    settled        whether power and clock were steady before the measurement
    """

    limit_w: Positive
    clock_mhz: Positive
    draw_w: Positive
    tokens_per_s: Positive
    tokens_per_joule: Positive
    temperature_c: float | None
    slowed_by: tuple[str, ...]
    settled: bool


@dataclass(frozen=True)
class SweepRow:
    """Decode of a system at one power limit after another."""

    system: Text
    context: Count
    default_limit_w: Positive
    range_w: Annotated[tuple[Positive, ...], Check("the lowest and the highest", lambda value: len(value) == 2)]
    idle_w: NotNegative
    points: Annotated[tuple[SweepPoint, ...], Check("one point or more", bool)]


class Parts(TypedDict, total=False):
    """What was measured, by part; a part that was not measured is missing.

    verify_paths  of random-odd on few blocks, by luce_edu.verification.verify_paths
    ablations     `streaming` and its variants, by luce_edu.measure.bench.ablations
    """

    verify: Verified
    verify_paths: Verified
    verify_prefill: Verified
    tests: GpuTests
    launch: LaunchCosts
    bandwidth: Bandwidth
    tasks: Tasks
    decode: list[DecodeRow]
    prefill: list[PrefillRow]
    energy: list[EnergyRow]
    ablations: list[DecodeRow]
    sweep: list[SweepRow]


Part = Annotated[str, Check(f"one of {', '.join(Parts.__annotations__)}", Parts.__annotations__.__contains__)]


@dataclass(frozen=True)
class NotRun:
    """What was not measured, and why.

    parts   of the record, in which it is missing
    reason  in one line
    system  that was to be measured; None if it is not about a single one
    at      the context, or the length of the prompt; None for all of them
    step    of `luce-edu gpu`, if the row says that this step is still to be done
    kind    wrong: the system chose another token than the reference;  absent: not available here, such as a baseline
            that is not installed;  unfinished: a next run continues with it;  failed: everything else
    """

    parts: tuple[Part, ...]
    reason: Text
    system: str | None = None
    at: int | None = None
    step: str | None = None
    kind: Literal["failed", "wrong", "absent", "unfinished"] = "failed"

    def concerns(self, parts: Collection[str], systems: Collection[str] | None = None) -> bool:
        """Whether it is about one of these parts, and about one of these systems or no single one."""
        mine = self.step is None and not set(self.parts).isdisjoint(parts)
        return mine and (systems is None or self.system is None or self.system in systems)

    def without(self, parts: Collection[str], systems: Collection[str] | None = None) -> NotRun | None:
        """Return what remains of the row when these parts run again, for these systems or all; None for nothing."""
        if not self.concerns(parts, systems):
            return self
        left = tuple(part for part in self.parts if part not in parts)
        return replace(self, parts=left) if left else None

    @property
    def what(self) -> str:
        """What is missing, in words. If a system lacks several parts, its name stands for them."""
        if self.step:
            return self.step
        parts = self.parts if self.system is None or len(self.parts) == 1 else ()
        words = ", ".join([self.system, *parts] if self.system else parts)
        return words if self.at is None else f"{words} at {self.at}"

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass
class Recorded:
    """Measurements of one machine. It is mutable, because a run adds part after part.

    commit  of this repository, with a + if code was changed; None without git
    """

    date: Day
    commit: str | None
    model: Text
    machine: Machine
    parts: Parts
    not_run: list[NotRun]


# ---- Published ----


@dataclass(frozen=True)
class Published:
    """A decode result. gpu: a name in DATASHEET_GB_PER_S; source: where the number is; note: a remark on it."""

    system: Text
    model: str
    gpu: str
    tokens_per_s: Positive
    source: Text
    note: str = ""

    @property
    def us_per_token(self) -> float:
        return 1e6 / self.tokens_per_s

    @property
    def share(self) -> float:
        """Share of the datasheet bandwidth that the model's bytes need (modelled: each weight moves once)."""
        return bytes_per_token(self.model) * self.tokens_per_s / (DATASHEET_GB_PER_S[self.gpu] * 1e9)


@dataclass(frozen=True)
class PublishedPrefill:
    """The rate for a prompt of `tokens` tokens."""

    system: Text
    model: str
    gpu: str
    tokens: Size
    tokens_per_s: Positive
    source: Text
    note: str = ""


@dataclass(frozen=True)
class PublishedLaunch:
    """Microseconds for `count` launches, kernels or barriers together."""

    what: Literal["plain launch", "kernel in a graph", "grid barrier"]
    gpu: str
    count: Size
    total_us: Positive
    source: Text


@dataclass(frozen=True)
class PublishedEnergy:
    """Power and speed of decoding; the source states no power limit."""

    system: Text
    model: str
    gpu: str
    draw_w: Positive
    tokens_per_s: Positive
    source: Text


@dataclass(frozen=True)
class PublishedPoint:
    """As a SweepPoint."""

    limit_w: Positive
    draw_w: Positive
    tokens_per_s: Positive
    clock_mhz: Positive | None = None


@dataclass(frozen=True)
class PublishedSweep:
    """Decode of a system at some power limits."""

    system: Text
    model: str
    gpu: str
    source: Text
    points: Annotated[tuple[PublishedPoint, ...], Check("one point or more", bool)]


@dataclass(frozen=True)
class Figures:
    """Figures that others published, each row with its source."""

    decode: tuple[Published, ...]
    prefill: tuple[PublishedPrefill, ...] = ()
    launch: tuple[PublishedLaunch, ...] = ()
    energy: tuple[PublishedEnergy, ...] = ()
    sweeps: tuple[PublishedSweep, ...] = ()

    @property
    def sources(self) -> list[str]:
        """Each once, in order."""
        rows = (*self.decode, *self.prefill, *self.launch, *self.sweeps, *self.energy)
        return list(dict.fromkeys(row.source for row in rows))
