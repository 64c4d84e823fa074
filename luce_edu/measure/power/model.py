"""Measured sweeps of the power limit, and a model of speed and draw that is fitted to their points.

    µs per token         t(f) = sqrt((cycles / f)^2 + memory_us^2)
    watts                P(f) = static_w + watts_per_mhz * f * max(1, f / knee_mhz)^2
    a limit of L watts   the clock f with P(f) = L, or the highest clock if the card draws less than L at it

t: one part of the time follows the SMs' clock f, the other the memory's own clock. The two overlap in part, so they add
as the sides of a right angle do. With a plain sum, an RTX 3090's plateau would be above its memory's bandwidth.
P: a chip draws f V^2. The voltage V is constant up to the knee and grows with f above it. All figures are modelled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luce_edu.measure.records.least_squares import non_negative_least_squares
from luce_edu.measure.records.published import PUBLISHED
from luce_edu.measure.records.record import Record, RecordError
from luce_edu.measure.records.rows import Figures, PublishedSweep, SweepRow
from luce_edu.tables import Tabular

LEAST_POINTS = 4  # one point can then be left out, and five parameters meet six numbers
LEAST_SPAN = 1.1  # highest clock over lowest; a smaller span does not show how speed depends on the clock
GAP = 1.5  # largest ratio of neighbouring clocks between which the curve is trusted
CLIFF = 0.5  # below this share of the highest clock, the driver has dropped to another power state
DOUBT = 0.1  # larger errors of a point left out are reported
NEAR = 0.08  # a model within this share of every draw is admissible; notebook 14 asks the same of the fit


class CannotFit(ValueError):
    """No curve can be fitted to the points. The message says why."""


@dataclass(frozen=True)
class Point:
    """Speed and draw under a limit, at a clock of the SMs. A limit or clock may be None: unknown, or none."""

    limit_w: float | None
    clock_mhz: float | None
    draw_w: float
    tokens_per_s: float

    @property
    def tokens_per_joule(self) -> float:
        """Tokens per joule, gross: of all energy that the board drew."""
        return self.tokens_per_s / self.draw_w

    @property
    def kwh_per_million(self) -> float:
        """Kilowatt-hours per million tokens, of the accelerator alone."""
        return 1e6 / self.tokens_per_joule / 3.6e6


@dataclass(frozen=True)
class Sweep:
    """The points of one system on one GPU, from the lowest limit to the highest.

    kind    published or recorded
    source  where it was published or when it was measured, for a caption
    """

    system: str
    model: str
    gpu: str
    kind: str
    source: str
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        return f"{self.gpu} · {self.system}, {self.model} ({self.kind})"

    @property
    def provenance(self) -> str:
        return f"{self.kind}: {self.source}"

    @property
    def limits_w(self) -> tuple[float, float]:
        return self.points[0].limit_w, self.points[-1].limit_w

    def nearest(self, limit_w: float) -> Point:
        return min(self.points, key=lambda point: abs(point.limit_w - limit_w))


@dataclass(frozen=True)
class Baseline:
    """One figure of a system without a sweep: a point without a limit."""

    system: str
    model: str
    gpu: str
    kind: str
    source: str
    point: Point

    @property
    def name(self) -> str:
        return f"{self.gpu} · {self.system}, {self.model} ({self.kind}, one point)"

    @property
    def provenance(self) -> str:
        return f"{self.kind}: {self.source}"


def sweeps(record: Record) -> list[Sweep]:
    """Return the sweeps of a record without points that had not settled. Raises RecordError if a sweep has no other."""
    content = record.checked().content
    if isinstance(content, Figures):
        found = [(row, row.model, row.gpu, row.source, row.points) for row in content.sweeps]
    else:
        source = record.provenance.partition(": ")[2]
        found = [
            (row, content.model, record.gpu, f"{source}, context {row.context}",
             [point for point in row.points if point.settled])
            for row in record.parts.get("sweep", ())
        ]  # fmt: skip
    return [_sweep(record, i, *one) for i, one in enumerate(found)]


def _sweep(record: Record, number: int, row: SweepRow | PublishedSweep, model, gpu, source, settled) -> Sweep:
    if not settled:
        raise RecordError(f"{record.name}.json: sweep {number}: none of its points had settled")
    if len(settled) < len(row.points):
        source += f"; {len(row.points) - len(settled)} of {len(row.points)} points had not settled and are left out"
    points = [Point(point.limit_w, point.clock_mhz, point.draw_w, point.tokens_per_s) for point in settled]
    points.sort(key=lambda point: point.limit_w)
    return Sweep(row.system, model, gpu, record.kind, source, tuple(points))


def baselines(record: Record) -> list[Baseline]:
    """Return the systems of a record's energy part, one point each; empty if it has none."""
    content = record.content
    if isinstance(content, Figures):
        return [
            Baseline(row.system, row.model, row.gpu, "published", row.source,
                     Point(None, None, row.draw_w, row.tokens_per_s))
            for row in content.energy
        ]  # fmt: skip
    source = record.provenance.partition(": ")[2]
    return [
        Baseline(row.system, content.model, record.gpu, "recorded", f"{source}, context {row.context}",
                 Point(None, None, row.joules / row.seconds, row.tokens / row.seconds))
        for row in record.parts.get("energy", ())
    ]  # fmt: skip


BASELINES = tuple(baselines(PUBLISHED))


@dataclass(frozen=True)
class PowerModel:
    """The fitted model; its formulas are at the top of this file.

    cycles         clock cycles per token that do not wait for memory
    memory_us      µs per token that do not depend on the SMs' clock: the plateau
    static_w       watts that do not depend on the clock: leakage, memory, fans
    watts_per_mhz  below the knee, where the voltage is constant
    knee_mhz       the clock above which the voltage rises
    top_mhz        the clock without a limit
    """

    cycles: float
    memory_us: float
    static_w: float
    watts_per_mhz: float
    knee_mhz: float
    top_mhz: float

    PARAMETERS = 5  # fitted; top_mhz is taken from the points

    def us_per_token(self, clock_mhz: float) -> float:
        return math.hypot(self.cycles / clock_mhz, self.memory_us)

    def draw_w(self, clock_mhz: float) -> float:
        return self.static_w + self.watts_per_mhz * clock_mhz * max(1, clock_mhz / self.knee_mhz) ** 2

    def clock_mhz(self, limit_w: float) -> float:
        """Return the clock under a limit. Raises ValueError for a limit that is not above `static_w`."""
        if limit_w >= self.draw_w(self.top_mhz):
            return self.top_mhz
        if not limit_w > self.static_w:
            raise ValueError(f"limit_w: expected more than the {self.static_w:.0f} W drawn at any clock, got {limit_w}")
        clock = (limit_w - self.static_w) / self.watts_per_mhz
        return clock if clock <= self.knee_mhz else (clock * self.knee_mhz**2) ** (1 / 3)

    def at(self, limit_w: float) -> Point:
        """Return the modelled point under a limit. Raises what `clock_mhz` raises."""
        clock = self.clock_mhz(limit_w)
        return Point(limit_w, clock, self.draw_w(clock), 1e6 / self.us_per_token(clock))


@dataclass(frozen=True)
class Errors:
    """Modelled over measured, minus 1, at the clock of one point."""

    draw: float
    tokens: float


@dataclass(frozen=True, repr=False)
class Fit(Tabular):
    """A model, the points to which it is fitted, and its errors at each point, as a table.

    errors      of the model that is fitted to all points
    left_out    by point: of a model that is fitted to the other points; None if they do not determine a curve
    admissible  the models that agree with the points, see `admissible`
    """

    sweep: Sweep
    model: PowerModel
    errors: tuple[Errors, ...]
    left_out: tuple[Errors | None, ...]
    admissible: tuple[PowerModel, ...]

    def is_trusted(self, limit_w: float) -> bool:
        """Return whether a limit was measured, or lies between two measured ones whose clocks differ by at most GAP."""
        points = self.sweep.points
        return any(limit_w == point.limit_w for point in points) or any(
            low.limit_w <= limit_w <= high.limit_w and high.clock_mhz <= GAP * low.clock_mhz
            for low, high in zip(points, points[1:], strict=False)
        )

    def runs(self) -> list[tuple[bool, list[Point]]]:
        """Return the curve at every whole watt as pieces (trusted, points). Neighbours share a point."""
        runs: list[tuple[bool, list[Point]]] = []
        low, high = self.sweep.limits_w
        for limit_w in range(math.ceil(low), math.floor(high) + 1):
            if not limit_w > self.model.static_w:
                continue
            point, trusted = self.model.at(limit_w), self.is_trusted(limit_w)
            if not runs or runs[-1][0] != trusted:
                runs.append((trusted, runs[-1][1][-1:] if runs else []))
            runs[-1][1].append(point)
        return runs

    @property
    def curve(self) -> list[Point]:
        """All points of the curve, in order of the limit."""
        return [point for _, run in self.runs() for point in run]

    def among(self, limit_w: float) -> list[Point]:
        """Return the points of the admissible models under a limit; models that draw more at any clock are left out."""
        return [model.at(limit_w) for model in self.admissible if limit_w > model.static_w]

    @property
    def doubts(self) -> list[str]:
        """Sentences on where the model is uncertain."""
        points = self.sweep.points
        clocks = sorted(point.clock_mhz for point in points)
        said = [
            f"Between {low:,.0f} and {high:,.0f} MHz there is no point, so the curve there is uncertain."
            for low, high in zip(clocks, clocks[1:], strict=False)
            if high > GAP * low
        ]
        said += [
            f"At {point.limit_w:g} W the driver has dropped to {point.clock_mhz:,.0f} MHz, another power state, and "
            "the curve is fitted through this point too."
            for point in points
            if point.clock_mhz < CLIFF * clocks[-1]
        ]
        if not clocks[0] < self.model.knee_mhz < clocks[-1]:
            said.append("The sweep shows no knee within its clocks.")
        if len(self.admissible) > 1:
            low, high = self.admissible[0].knee_mhz, self.admissible[-1].knee_mhz
            said.append(
                f"The knee is not known: every tried clock from {low:,.0f} to {high:,.0f} MHz gives the draws within "
                f"{100 * NEAR:.0f} %."
            )
        for point, errors in zip(points, self.left_out, strict=True):
            if errors is None:
                said.append(f"Without the point at {point.limit_w:g} W the other points determine no curve.")
                continue
            for what, error in (("draw", errors.draw), ("speed", errors.tokens)):
                if not abs(error) <= DOUBT:
                    at = f"the point at {point.limit_w:g} W"
                    said.append(f"A fit without {at} misses its {what} by {_percent(error)}.")
        return [*said, f"Below {clocks[0]:,.0f} and above {clocks[-1]:,.0f} MHz nothing was measured."]

    @property
    def header(self) -> list[str]:
        return ["limit W", "MHz", f"{self.sweep.kind} W", "modelled W", "error", "left out", f"{self.sweep.kind} tok/s",
                "modelled tok/s", "error", "left out"]  # fmt: skip

    @property
    def body(self) -> list[list[str]]:
        rows = []
        for point, errors, left_out in zip(self.sweep.points, self.errors, self.left_out, strict=True):
            draw, tokens = (left_out.draw, left_out.tokens) if left_out else (math.nan, math.nan)
            rows.append([
                f"{point.limit_w:g}", f"{point.clock_mhz:,.0f}", f"{point.draw_w:.0f}",
                f"{self.model.draw_w(point.clock_mhz):.0f}", _percent(errors.draw), _percent(draw),
                f"{point.tokens_per_s:.0f}", f"{1e6 / self.model.us_per_token(point.clock_mhz):.0f}",
                _percent(errors.tokens), _percent(tokens),
            ])  # fmt: skip
        return rows

    @property
    def caption(self) -> str:
        return (
            f"{PowerModel.PARAMETERS} parameters, {2 * len(self.sweep.points)} numbers; {self.sweep.provenance}. "
            "Modelled at the measured clock. Left out: the error of a model fitted to the other points."
            + (
                " The draw's three parameters then fit three points exactly, so its column shows the influence of each "
                "point, and does not test the formula."
                if len(self.sweep.points) == LEAST_POINTS
                else ""
            )
        )


def fit(sweep: Sweep) -> Fit:
    """Fit the model to a sweep by least squares of relative errors. Raises CannotFit, with the reason, if it cannot."""
    points = sweep.points
    without = sum(point.clock_mhz is None for point in points)
    if without:
        raise CannotFit(f"{without} of {len(points)} points have no clock, and the model is a function of the clock")
    if len(points) < LEAST_POINTS:
        raise CannotFit(f"{len(points)} points; expected {LEAST_POINTS} or more, so that one can be left out as a test")
    model = _fit(points)
    errors = tuple(_errors(model, point) for point in points)
    left_out = []
    for i, point in enumerate(points):
        try:
            left_out.append(_errors(_fit([*points[:i], *points[i + 1 :]]), point))
        except CannotFit:
            left_out.append(None)
    return Fit(sweep, model, errors, tuple(left_out), admissible(points))


def admissible(points: Sequence[Point], within: float = NEAR) -> tuple[PowerModel, ...]:
    """Return the best model for each knee, from the lowest on, that gives every draw `within` this share.

    The models differ only in the draw, as the speed does not depend on the knee. Raises CannotFit as `fit` does.
    """
    return tuple(
        model
        for model, _ in _by_knee(points)
        if all(abs(model.draw_w(point.clock_mhz) / point.draw_w - 1) <= within for point in points)
    )


def _errors(model: PowerModel, point: Point) -> Errors:
    tokens_per_s = 1e6 / model.us_per_token(point.clock_mhz)
    return Errors(model.draw_w(point.clock_mhz) / point.draw_w - 1, tokens_per_s / point.tokens_per_s - 1)


def _fit(points: Sequence[Point]) -> PowerModel:
    return min(_by_knee(points), key=lambda found: found[1])[0]


def _by_knee(points: Sequence[Point]) -> list[tuple[PowerModel, float]]:
    """Return (best model, remaining squares) for each of 401 knees from the lowest clock to the highest."""
    clocks = np.array([point.clock_mhz for point in points], dtype=float)
    draws = np.array([point.draw_w for point in points], dtype=float)
    us = np.array([1e6 / point.tokens_per_s for point in points])
    low, top = clocks.min(), clocks.max()
    if top < LEAST_SPAN * low:
        raise CannotFit(f"the clocks, {low:,.0f} to {top:,.0f} MHz, are too close together for a curve")
    # t^2 is linear in cycles^2 and memory_us^2, and P in static_w and watts_per_mhz once a knee is chosen.
    (cycles_2, memory_2), _ = _least_squares(1 / clocks**2, us**2)
    found = []
    for knee in np.linspace(low, top, 401):
        (slope, static_w), left = _least_squares(clocks * np.maximum(1, clocks / knee) ** 2, draws)
        if slope > 0:
            model = (math.sqrt(cycles_2), math.sqrt(memory_2), float(static_w), float(slope), float(knee), float(top))
            found.append((PowerModel(*model), left))
    if not found:
        raise CannotFit("the draw does not rise with the clock")
    return found


def _least_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (slope, offset) >= 0 that minimise the relative errors of slope * x + offset, and the squares left."""
    return non_negative_least_squares(np.stack([x, np.ones_like(x)], axis=1) / y[:, None], np.ones_like(y))


def sweet_spot(points: Sequence[Point], loss: float) -> Point:
    """Return the point of least draw among those that lose at most the share `loss` of the best speed."""
    if not 0 <= loss < 1:
        raise ValueError(f"loss: expected a share from 0 to 1, such as 0.05, got {loss}")
    least = (1 - loss) * max(point.tokens_per_s for point in points)
    return min((point for point in points if point.tokens_per_s >= least), key=lambda point: point.draw_w)


def expected(sweep: Sweep, fit: Fit | None, limit_w: float) -> Point:
    """Return the expected point under a limit: modelled, or the nearest point if there is no model."""
    return fit.model.at(limit_w) if fit and limit_w > fit.model.static_w else sweep.nearest(limit_w)


def price_of(text: str) -> float:
    """Return a typed price, with a point or a comma, as a float. Raises ValueError unless it is above 0 and finite."""
    try:
        price = float(text.strip().replace(",", "."))
    except ValueError:
        price = math.nan
    if not (math.isfinite(price) and price > 0):
        raise ValueError(f"price: expected a number above 0, such as 0.30, got {text!r}")
    return price


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:+.1f} %".replace("-", "\N{MINUS SIGN}")
