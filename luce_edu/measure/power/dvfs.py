"""Model our stages under a power limit, by dynamic voltage and frequency scaling (DVFS).

    µs per token   t(f): modelled by the clock at some frequencies f of the SMs, and linear in 1/f between them
    watts          level * P(f), where P is the model of a published sweep on the same card (model.py)
    level          the stage's modelled draw at the card's boost clock, over P(boost)

So the joules of a stage at the boost clock come from its own bytes, flops and instructions. Their change with clock and
voltage comes from a published sweep of another program, and we assume that it is the same for our stages. The sweep
does not determine the knee, the clock at which the voltage begins to rise. So each figure has a band over all knees
that the sweep allows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from luce_edu.machine.cards import card_of, find_card
from luce_edu.measure.power.model import Point, PowerModel, fit, sweeps, sweet_spot
from luce_edu.measure.records.predictions import SWEPT, SWEPT_STAGES, Prediction, find
from luce_edu.measure.records.published import PUBLISHED
from luce_edu.tables import Tabular

LOSS = 0.05  # of the speed
LEAST_CLOCKS = 3  # clocks at which a token must have been modelled
TRIED = 9  # admissible knees that are used, the lowest and the highest among them


@dataclass(frozen=True)
class StagePower:
    """A stage at any clock between the lowest and the highest modelled one. It has the methods of PowerModel.

    tokens  predictions of the stage, the lowest clock first
    power   the model of the swept program
    level   the stage's draw over that of the swept program
    """

    tokens: tuple[Prediction, ...]
    power: PowerModel
    level: float

    def us_per_token(self, clock_mhz: float) -> float:
        slowest_last = self.tokens[::-1]
        periods = [1 / token.clock_mhz for token in slowest_last]
        return float(np.interp(1 / clock_mhz, periods, [token.us for token in slowest_last]))

    def draw_w(self, clock_mhz: float) -> float:
        return self.level * self.power.draw_w(clock_mhz)

    @property
    def least_w(self) -> float:
        """The draw at the lowest clock. Lower limits are not modelled."""
        return self.draw_w(self.tokens[0].clock_mhz)

    def clock_mhz(self, limit_w: float) -> float:
        """Return the clock under a limit. Raises ValueError for a limit below `least_w`."""
        if not limit_w >= self.least_w:
            raise ValueError(f"limit_w: expected {self.least_w:.0f} W or more, as at the lowest clock, got {limit_w}")
        return self.power.clock_mhz(limit_w / self.level)

    def at(self, limit_w: float) -> Point:
        """Return the modelled point under a limit. Raises what `clock_mhz` raises."""
        clock = self.clock_mhz(limit_w)
        return Point(limit_w, clock, self.draw_w(clock), 1e6 / self.us_per_token(clock))

    @functools.cached_property
    def curve(self) -> tuple[Point, ...]:
        """The points at every whole watt from the least draw to the draw without a limit."""
        low, high = self.least_w, self.draw_w(self.power.top_mhz)
        return tuple(map(self.at, range(math.ceil(low), math.ceil(high) + 1)))


@dataclass(frozen=True)
class StageCurve:
    """A stage under a power limit, with the band over the admissible knees.

    model       name of the decoded model
    best_knee   the stage with the knee that fits the sweep best
    admissible  the stage with some of the knees that the sweep allows, from the lowest to the highest
    """

    system: str
    model: str
    gpu: str
    source: str
    best_knee: StagePower
    admissible: tuple[StagePower, ...]

    kind = "modelled"

    @property
    def name(self) -> str:
        return f"{self.gpu} · our {self.system}, {self.model} (modelled)"

    @property
    def provenance(self) -> str:
        return f"modelled for {self.gpu}: {self.source}"

    def at(self, limit_w: float) -> Point:
        """Return the point under a limit; at the lowest clock if the limit is too low to be modelled."""
        return self.best_knee.at(max(limit_w, self.best_knee.least_w))

    def over(self, low_w: float, high_w: float) -> list[tuple[Point, list[Point]]]:
        """Return, in steps of 3 W, the point under a limit and those of the admissible knees."""
        limits = np.arange(max(low_w, self.best_knee.least_w), high_w + 1, 3).tolist()
        return [(self.best_knee.at(w), [m.at(w) for m in self.admissible if w >= m.least_w]) for w in limits]

    @property
    def top(self) -> Point:
        """The point without a limit. A limit above its draw changes nothing."""
        return self.best_knee.curve[-1]

    def best(self) -> tuple[Point, float, float]:
        """Return the point of most tokens per joule, and the lowest and highest limit of that point over the knees."""
        return self._over_knees(lambda curve: max(curve, key=lambda point: point.tokens_per_joule))

    def spot(self, loss: float = LOSS) -> tuple[Point, float, float]:
        """Return the point of least draw that loses at most this share of the speed; limits as for `best`."""
        return self._over_knees(lambda curve: sweet_spot(curve, loss))

    def _over_knees(self, choose: Callable[[Sequence[Point]], Point]) -> tuple[Point, float, float]:
        limits = [choose(model.curve).limit_w for model in (self.best_knee, *self.admissible)]
        return choose(self.best_knee.curve), min(limits), max(limits)


def stage_curve(tokens: Sequence[Prediction]) -> StageCurve:
    """Return the curve of a stage from predictions at three clocks or more, one of them the card's boost clock.

    Raises ValueError for other clocks, and for a card without a published sweep to which a model can be fitted.
    """
    first = tokens[0]
    swept = [sweep for sweep in sweeps(PUBLISHED) if (card := card_of(sweep.gpu)) and card.name == first.card]
    if first.card != SWEPT or not swept:
        raise ValueError(f"{first.card}: there is no published sweep of this card, only of {SWEPT}")
    found, boost_mhz = fit(swept[0]), find_card(first.card).boost_clock_mhz
    ordered = tuple(sorted(tokens, key=lambda token: token.clock_mhz))
    if len(ordered) < LEAST_CLOCKS or boost_mhz not in [token.clock_mhz for token in ordered]:
        clocks = ", ".join(f"{token.clock_mhz:g}" for token in ordered)
        raise ValueError(f"tokens: expected {LEAST_CLOCKS} clocks or more, {boost_mhz} MHz among them, got {clocks}")
    boost = next(token for token in ordered if token.clock_mhz == boost_mhz)
    chosen = np.linspace(0, len(found.admissible) - 1, TRIED).round().astype(int)
    powers = (found.model, *(found.admissible[i] for i in dict.fromkeys(chosen.tolist())))
    best, *others = (StagePower(ordered, power, boost.power_w / power.draw_w(boost_mhz)) for power in powers)
    source = (
        f"{first.source}; the change of the draw with the clock is assumed to be that of the sweep of "
        f"{swept[0].system}, {swept[0].source}"
    )
    return StageCurve(first.stage, first.model, first.card, source, best, tuple(others))


@functools.cache
def stage_curves() -> tuple[StageCurve, ...]:
    """Return the curves of all stages of the full-size model that are stored at enough clocks; computed once."""
    found = (find(stage, SWEPT) for stage in SWEPT_STAGES)
    return tuple(stage_curve(tokens) for tokens in found if len(tokens) >= LEAST_CLOCKS)


@dataclass(frozen=True, repr=False)
class StageCurves(Tabular):
    """A table of curves: the draw without a limit, and the limits of most tokens per joule and of a small loss."""

    curves: Sequence[StageCurve]

    title = "Power limits for our stages (modelled)"
    header = ("stage", "µs", "W", "J/token", "most tok/J at", "range", f"{100 * LOSS:g} % slower at", "range")

    @property
    def body(self) -> list[list[str]]:
        rows = []
        for curve in self.curves:
            (best, *around), (spot, *near) = curve.best(), curve.spot()
            rows.append([
                curve.system, f"{1e6 / curve.top.tokens_per_s:,.0f}", f"{curve.top.draw_w:.0f}",
                f"{1 / curve.top.tokens_per_joule:.2f}", f"{best.limit_w} W", _range(around), f"{spot.limit_w} W",
                _range(near),
            ])  # fmt: skip
        return rows

    @property
    def caption(self) -> str:
        said = "µs, W and J are without a limit. Ranges: over all knees that the sweep allows"
        return f"{said}; {'; '.join(dict.fromkeys(curve.provenance for curve in self.curves))}."


def _range(ends: Sequence[float]) -> str:
    return f"{ends[0]:g} to {ends[1]:g} W" if ends[0] < ends[1] else f"{ends[0]:g} W"

