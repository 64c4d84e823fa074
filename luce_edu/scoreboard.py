"""The stage table, with which every notebook ends: one row per stage, each number with its provenance."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from luce_edu.machine.cards import Card, card_of, find_card
from luce_edu.machine.clock import find_clock
from luce_edu.measure.bench.bench import PROMPT
from luce_edu.measure.floor import decode_bytes
from luce_edu.measure.launch_cost import PYTORCH_US, eager_us
from luce_edu.measure.profile import Profile, find_profiled_card, profile
from luce_edu.measure.records.record import Record, load_records, recorded
from luce_edu.measure.records.rows import DecodeRow, EnergyRow
from luce_edu.measure.records.validated import stored
from luce_edu.tables import Tabular
from luce_edu.verification import Report, verify

NEITHER = "–"  # neither recorded nor modelled


@dataclass(frozen=True)
class Modelled:
    """The modelled time and energy of one token on a card.

    position  the token's, if the clock ran its kernels; None for `eager`, whose time follows from its operations
    """

    us: float
    joules: float
    position: int | None = None

    @property
    def cells(self) -> list[str]:
        """Return µs and J as text: single figures if the clock has reached its target error, else ranges."""
        if self.position is None:
            return [f"~{_two_digits(self.us)}", f"~{_two_digits(self.joules)}"]
        if stored().reached:
            return [f"{self.us:,.0f}", f"{self.joules:.3g}"]
        return [figure_range(self.us), figure_range(self.joules)]


def figure_range(value: float) -> str:
    """Write a modelled time or energy as the range that holds half of the published times, each beside its model's."""
    return "–".join(map(_two_digits, stored().band(value)))


def _two_digits(value: float) -> str:
    rounded = float(f"{value:.1e}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:#.2g}"


@dataclass(repr=False)
class StageTable(Tabular):
    """Launches, barriers, bytes, time, energy and error of the stages of one verification.

    megabytes  the least that a token moves, MB
    record     where times and energies come from; None if there is no record of this model
    modelled   in place of a record: the modelled time and energy by stage
    card       the card that they are modelled for
    """

    report: Report
    megabytes: float
    record: Record | None = None
    modelled: Mapping[str, Modelled] = field(default_factory=dict)
    card: Card | None = None

    @cached_property
    def header(self) -> tuple[str, ...]:
        kind = "*" if self.modelled else ""  # explained in the caption
        return ("stage", "launches", "kernels", "barriers", "MB", f"µs{kind}", f"J{kind}", "error", "verdict")

    @property
    def body(self) -> list[list[str]]:
        megabytes = f"{self.megabytes:.3g}"
        return [
            [row.stage, str(row.launches), str(row.kernels), str(row.barriers), megabytes, *self._cost(row.stage),
             f"{row.error:.1e}", "pass" if row.passed else "FAIL"]
            for row in self.report.rows
        ]  # fmt: skip

    def _cost(self, stage: str) -> list[str]:
        if stage in self.modelled:
            return self.modelled[stage].cells
        us, joules = self._recorded("decode", stage), self._recorded("energy", stage)
        return [
            f"{us.latency_us.median:,.0f}" if us else NEITHER,
            f"{joules.joules / joules.tokens:.3g}" if joules else NEITHER,
        ]

    def _recorded(self, part: str, stage: str) -> DecodeRow | EnergyRow | None:
        rows = self.record.parts.get(part, ()) if self.record else ()
        return next((row for row in rows if (row.system, row.context) == (stage, PROMPT)), None)

    @property
    def caption(self) -> str:
        where = {"host": "on the virtual GPU", "cuda": "on this GPU"}[self.report.device]
        return (
            f"{self.report.model}: launches, the kernels in them, barriers and error are measured {where} now "
            f"({self.report.steps} tokens, seed {self.report.seed}). MB per token are modelled from the config: each "
            f"weight is read once. {self._times} Launches of eager are PyTorch operations that compute."
        )

    @property
    def _times(self) -> str:
        if self.record:
            return f"µs and J per token at a context of {PROMPT}, {self.record.provenance}."
        if self.modelled:
            return f"* {modelled_caption(self.modelled, [self.card.name])}"
        return "µs and J per token: no record of a GPU."


def modelled_caption(modelled: Mapping[str, Modelled], cards: Sequence[str]) -> str:
    """Say in sentences how µs and J are modelled: cards, context, how far to trust them, and how `eager` is timed."""
    positions = {row.position for row in modelled.values()}
    by_clock = positions - {None}
    context = f" at a context of {max(by_clock)}" if by_clock else ""
    said = f"µs and J per token are modelled for the {' and the '.join(cards)}{context}; no GPU has run it."
    if by_clock and not stored().reached:
        in_order = stored().ladders().values()
        said += (
            f" They are ranges: compared with published times, the clock is {100 * stored().median_error:.0f} % off at "
            f"the median and puts {len(in_order) - sum(in_order)} of {len(in_order)} ladders in another order. No "
            "joules have been compared."
        )
    if None in positions:
        said += (
            f" An operation of eager costs {PYTORCH_US:g} µs in PyTorch (published) and a launch, at the power of a "
            "waiting card."
        )
    return said


def readers_card() -> Card:
    """Find the card to model for: LUCE_CARD; else this machine's GPU, if it is a card that we model; else an RTX 3090.

    ValueError for an unknown LUCE_CARD.
    """
    there = card_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return find_profiled_card(None) if os.environ.get("LUCE_CARD") or there is None else there


_profiles: dict[tuple, tuple[object, Profile]] = {}


def profile_once(model, stage: str, card: Card | str) -> Profile:
    """Profile a token at a context of 520, or at the model's last position if it is smaller; once per process."""
    card = card if isinstance(card, Card) else find_card(card)
    key = id(model), stage, card
    if key not in _profiles:
        position = min(PROMPT, model.config.max_position_embeddings - 1)
        found = profile(stage, model=model, card=card, position=position)
        _profiles[key] = model, found  # keeps the model alive, so that no other model gets its id
    return _profiles[key][1]


def model_stage(model, stage: str, card: Card | str, *, operations: int | None = None) -> Modelled:
    """Model the time and energy of one token.

    operations  PyTorch operations per token; for `eager` only, whose kernels the clock does not run
    """
    if stage != "eager":
        found = profile_once(model, stage, card)
        return Modelled(found.total_us, found.energy_j, found.position)
    clock = find_clock(card if isinstance(card, Card) else find_card(card))
    us = eager_us(operations, clock)
    return Modelled(us, clock.active_w * us * 1e-6)


def modelled_table(model, cards: Sequence[str], *, progress: Callable[[str], None] | None = None) -> str:
    """Write the README's table in Markdown: for every stage launches per token, and µs and J per token on each card."""
    from luce_edu.measure.launches import count_launches
    from luce_edu.stages import STAGES, stage_class

    launches = {stage: count.launches for stage, count in count_launches(model.config).items()}
    rows, modelled = [[f"`{stage}`", stage_class(stage).words, f"{launches[stage]:,}"] for stage in STAGES], {}
    for name in cards:
        for stage, row in zip(STAGES, rows, strict=True):
            if progress:
                progress(f"{stage}: modelling its time on the {name}")
            modelled[stage] = model_stage(model, stage, name, operations=launches["eager"])
            row += modelled[stage].cells
    header = ["stage", "what runs", "launches", *(f"{unit}, {name}" for name in cards for unit in ("µs", "J"))]
    lines = [header, ["---", "---"] + ["--:"] * (len(header) - 2), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        f"{table}\n\nOne token of {model.name}. Launches are counted; those of eager are PyTorch operations. "
        f"{modelled_caption(modelled, cards)}"
    )


def stage_table(
    model,
    *,
    upto: str | None = None,
    device: str | None = None,
    steps: int = 8,
    seed: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> StageTable:
    """Verify the stages up to and including `upto` (None for all) and show them as a table.

    Times and energies come from a record of a GPU. If there is none of this model, they are modelled for the card that
    `readers_card` finds. Other arguments and errors are those of `luce_edu.verify`.
    """
    from luce_edu.stages import STAGES

    if upto is not None and upto not in STAGES:
        raise ValueError(f"unknown stage {upto!r}; expected one of {', '.join(STAGES)}")
    card = readers_card()
    stages = STAGES if upto is None else STAGES[: STAGES.index(upto) + 1]
    report = verify(model, stages=stages, device=device, steps=steps, seed=seed, progress=progress)
    megabytes = decode_bytes(model.config, report.steps).total / 1e6
    of_this_model = [r for r in recorded(load_records(), "decode") if r.content.model == model.name]
    if of_this_model:
        return StageTable(report, megabytes, of_this_model[0])
    modelled = {}
    for row in report.rows:
        if progress:
            progress(f"{row.stage}: modelling its time on the {card.name}")
        modelled[row.stage] = model_stage(model, row.stage, card, operations=row.launches)
    return StageTable(report, megabytes, modelled=modelled, card=card)
