"""Power limits for our stages, modelled: dynamic voltage and frequency scaling (DVFS) of a token.

    microseconds a token   t(f), from the clock, run at some clocks f of the SMs; between them straight in 1/f
    watts                  level * P(f), where P is the model of a published sweep on the same card (power_model.py)
    level                  what the clock says that the stage draws at the card's boost clock, over P(boost)

So the joules of a stage come from its own bytes, flops and instructions, and how they change with clock and voltage
comes from somebody's sweep of another program. That a stage's draw follows the clock in the same proportions is
assumed. The sweep leaves open where the voltage begins to rise; each figure has a band, of all the knees that the
sweep does not refute.
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

LOSS = 0.05  # of the speed, for the watts that buy next to nothing
LEAST_CLOCKS = 3  # between which times are straight in 1/f
TRIED = 9  # of the admissible knees, the lowest and the highest among them


@dataclass(frozen=True)
class StagePower:
    """A stage at any clock between the lowest and the highest that was modelled. Its methods are those of PowerModel.

    tokens  predictions of the stage, the lowest clock first
    power   of the swept program; level: of our draw over it
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
        """The draw at the lowest clock. What happens under a lower limit is not modelled."""
        return self.draw_w(self.tokens[0].clock_mhz)

    def clock_mhz(self, limit_w: float) -> float:
        """The clock that a limit leaves; ValueError for a limit below `least_w`."""
        if not limit_w >= self.least_w:
            raise ValueError(f"limit_w: expected {self.least_w:.0f} W or more, as at the lowest clock, got {limit_w}")
        return self.power.clock_mhz(limit_w / self.level)

    def at(self, limit_w: float) -> Point:
        """What the model expects under a limit; errors as of `clock_mhz`."""
        clock = self.clock_mhz(limit_w)
        return Point(limit_w, clock, self.draw_w(clock), 1e6 / self.us_per_token(clock))

    @functools.cached_property
    def curve(self) -> tuple[Point, ...]:
        """At every whole watt from the least draw to the one that no limit holds down."""
        low, high = self.least_w, self.draw_w(self.power.top_mhz)
        return tuple(map(self.at, range(math.ceil(low), math.ceil(high) + 1)))


@dataclass(frozen=True)
class StageCurve:
    """A stage under a power limit, and what the knee leaves open.

    model       the name of what decodes
    best_knee   with the knee that fits the sweep best
    admissible  with some of those that the sweep does not refute, from the lowest to the highest
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
        """Under a limit; under one that is too low to be modelled, at the lowest clock."""
        return self.best_knee.at(max(limit_w, self.best_knee.least_w))

    def over(self, low_w: float, high_w: float) -> list[tuple[Point, list[Point]]]:
        """For drawing, in steps of 3 W: the point under a limit, and what the admissible knees make of it."""
        limits = np.arange(max(low_w, self.best_knee.least_w), high_w + 1, 3).tolist()
        return [(self.best_knee.at(w), [m.at(w) for m in self.admissible if w >= m.least_w]) for w in limits]

    @property
    def top(self) -> Point:
        """Without a limit. Each watt of a limit above this draw buys nothing."""
        return self.best_knee.curve[-1]

    def best(self) -> tuple[Point, float, float]:
        """The point of most tokens a joule; and the lowest and highest limit at which it is, over the knees."""
        return self._over_knees(lambda curve: max(curve, key=lambda point: point.tokens_per_joule))

    def spot(self, loss: float = LOSS) -> tuple[Point, float, float]:
        """The point of least draw that loses a share of the speed at most; limits as of `best`."""
        return self._over_knees(lambda curve: sweet_spot(curve, loss))

    def _over_knees(self, choose: Callable[[Sequence[Point]], Point]) -> tuple[Point, float, float]:
        limits = [choose(model.curve).limit_w for model in (self.best_knee, *self.admissible)]
        return choose(self.best_knee.curve), min(limits), max(limits)


def stage_curve(tokens: Sequence[Prediction]) -> StageCurve:
    """The curve of a stage from predictions of its token at three clocks or more, the card's boost clock among them.

    Raises ValueError for other clocks, and for a card of which no sweep is published that a model can be fitted to.
    """
    first = tokens[0]
    swept = [sweep for sweep in sweeps(PUBLISHED) if (card := card_of(sweep.gpu)) and card.name == first.card]
    if first.card != SWEPT or not swept:
        raise ValueError(f"{first.card}: no published sweep says how it draws at each clock; there is one of {SWEPT}")
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
        f"{first.source}; how the draw follows the clock, assumed from the sweep of "
        f"{swept[0].system}, {swept[0].source}"
    )
    return StageCurve(first.stage, first.model, first.card, source, best, tuple(others))


@functools.cache
def stage_curves() -> tuple[StageCurve, ...]:
    """Those of the full-size model's stages that are stored at enough clocks; fitted once."""
    found = (find(stage, SWEPT) for stage in SWEPT_STAGES)
    return tuple(stage_curve(tokens) for tokens in found if len(tokens) >= LEAST_CLOCKS)


@dataclass(frozen=True, repr=False)
class StageCurves(Tabular):
    """A table of curves: what each stage draws without a limit, and which watts buy nothing or next to nothing."""

    curves: Sequence[StageCurve]

    title = "Power limits for our stages (modelled)"
    header = ("stage", "µs", "W", "J/token", "most tok/J at", "band", f"{100 * LOSS:g} % slower at", "band")

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
        said = "µs, W and joules without a limit. Bands: of all knees that the sweep does not refute"
        return f"{said}; {'; '.join(dict.fromkeys(curve.provenance for curve in self.curves))}."


def _range(ends: Sequence[float]) -> str:
    return f"{ends[0]:g} to {ends[1]:g} W" if ends[0] < ends[1] else f"{ends[0]:g} W"

