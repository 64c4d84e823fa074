"""The explorer's curves as SVG text, drawn again at each move of a slider in a few milliseconds.

`luce_edu.plots.power_curves` draws the same with matplotlib, which is too slow for a slider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from matplotlib.ticker import MaxNLocator

from luce_edu.measure.power.dvfs import StageCurve
from luce_edu.measure.power.model import Baseline, Fit, Point, Sweep
from luce_edu.plots.power import POWER_PANELS
from luce_edu.plots.style import BLUE, GREEN, GREY, INK, ORANGE, VERMILLION

WIDTH, HEIGHT = 1140, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 34, 50  # of each panel
STAR = "0,-13 3.1,-4.3 12.6,-4.1 5,1.7 7.8,10.7 0,5.3 -7.8,10.7 -5,1.7 -12.6,-4.1 -3.1,-4.3"
DIAMOND = "0,-8 8,0 0,8 -8,0"


def chart(
    sweep: Sweep,
    fit: Fit | None,
    *,
    here: Point,
    limit_w: float,
    spot: Point,
    beside: Sweep | Baseline | StageCurve | None,
    words: str,
) -> str:
    """Return an SVG of speed, draw and tokens per joule by power limit: points, modelled curve and marks.

    here, limit_w  the point of the orange diamond, and the limit of the slider
    spot           the point of the green star
    words          what the picture shows, for screen readers
    """
    runs = fit.runs() if fit else []
    stage = beside.over(*sweep.limits_w) if isinstance(beside, StageCurve) else []
    width = WIDTH / len(POWER_PANELS)
    panels = "".join(
        f'<g transform="translate({i * width:.1f},0)">'
        f"{_panel(panel, width, sweep, runs, here, limit_w, spot, beside, stage)}</g>"
        for i, panel in enumerate(POWER_PANELS)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" aria-label="{escape(words)}" '
        'style="background: white; display: block" font-family="sans-serif" font-size="15" '
        f'fill="{INK}">{panels}</svg>'
    )


def _panel(
    panel: tuple[str, str, Callable[[Point], float]],
    width: float,
    sweep: Sweep,
    runs: Sequence[tuple[bool, list[Point]]],
    here: Point,
    limit_w: float,
    spot: Point,
    beside: Sweep | Baseline | StageCurve | None,
    stage: Sequence[tuple[Point, list[Point]]],
) -> str:
    name, unit, value = panel
    others = beside.points if isinstance(beside, Sweep) else ()
    level = value(beside.point) if isinstance(beside, Baseline) else 0
    shown = [*sweep.points, *others, *(point for _, run in runs for point in run)]
    shown += [point for of_best, of_others in stage for point in (of_best, *of_others)]
    limits = [point.limit_w for point in (*sweep.points, *others)]
    margin = 0.04 * (max(limits) - min(limits)) or 10
    x = _Scale(min(limits) - margin, max(limits) + margin, LEFT, width - RIGHT)
    y = _Scale(0, 1.08 * max(level, *(value(point) for point in shown)), HEIGHT - BOTTOM, TOP)

    def place(point: Point) -> tuple[float, float]:
        return x(point.limit_w), y(value(point))

    parts = [f'<text x="{LEFT}" y="20" font-weight="bold">{name}, {unit}</text>']
    for tick in x.ticks(4):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks(4):
        parts.append(_line(LEFT, y(tick), width - RIGHT, y(tick), "#DDDDDD", 1))
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 5:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(_line(LEFT, HEIGHT - BOTTOM, width - RIGHT, HEIGHT - BOTTOM, INK, 1))
    parts.append(f'<text x="{(LEFT + width) / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">power limit, W</text>')
    if isinstance(beside, Baseline):
        parts.append(_line(LEFT, y(level), width - RIGHT, y(level), VERMILLION, 2.5, "12 4 2 4"))
    if stage:
        edges = [[(x(point.limit_w), y(choose(map(value, (point, *band))))) for point, band in stage]
                 for choose in (min, max)]  # fmt: skip
        band = _path([*edges[0], *reversed(edges[1])])
        parts.append(f'<polygon points="{band}" fill="{VERMILLION}" fill-opacity="0.2"/>')
        line = _path(place(point) for point, _ in stage)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{VERMILLION}" stroke-width="2.5"/>')
    for left, top in map(place, others):
        parts.append(f'<rect x="{left - 5:.1f}" y="{top - 5:.1f}" width="10" height="10" fill="{VERMILLION}"/>')
    for trusted, run in runs:
        path = _path(map(place, run))
        dashes = "" if trusted else ' stroke-dasharray="5 5"'
        parts.append(f'<polyline points="{path}" fill="none" stroke="{BLUE}" stroke-width="3"{dashes}/>')
    for left, top in map(place, sweep.points):
        parts.append(f'<circle cx="{left:.1f}" cy="{top:.1f}" r="6" fill="{BLUE}" stroke="white"/>')
    parts.append(_line(x(limit_w), TOP, x(limit_w), HEIGHT - BOTTOM, GREY, 1.5, "2 4"))
    for shape, point, colour, edge in ((STAR, spot, GREEN, "white"), (DIAMOND, here, ORANGE, INK)):
        left, top = place(point)
        at = f'transform="translate({left:.1f},{top:.1f})"'
        parts.append(f'<polygon points="{shape}" {at} fill="{colour}" stroke="{edge}"/>')
    return "".join(parts)


def _path(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{left:.1f},{top:.1f}" for left, top in places)


class _Scale:
    """Maps values to positions along an axis."""

    def __init__(self, low: float, high: float, start: float, end: float):
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        values = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        return [float(value) for value in values if self.low <= value <= self.high]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, dashes: str = "") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width:g}"'
        f' stroke-dasharray="{dashes or "none"}"/>'
    )


def legend(sweep: Sweep, fit: Fit | None, beside: Sweep | Baseline | StageCurve | None) -> str:
    """Return the legend as HTML: what each mark means, and the kind of its numbers."""
    items = [(BLUE, "●", f"{sweep.kind}: {sweep.system}, {sweep.gpu}")]
    if fit:
        items += [(BLUE, "━", "modelled"), (BLUE, "┅", "modelled, far from a measured point")]
    items += [(ORANGE, "◆", "at the limit of the slider"), (GREEN, "★", "least draw at the allowed loss of speed")]
    if isinstance(beside, StageCurve):
        items += [(VERMILLION, "━", f"modelled for {beside.gpu}: our {beside.system}"),
                  (VERMILLION, "░", "range for all admissible voltage knees")]  # fmt: skip
    elif beside:
        mark = "■" if isinstance(beside, Sweep) else "━"
        items.append((VERMILLION, mark, f"{beside.kind}: {beside.system}, {beside.gpu}"))
    spans = " ".join(
        '<span style="margin-right: 18px; display: inline-block">'
        f'<span style="color: {colour}" aria-hidden="true">{mark}</span> {escape(words)}</span>'
        for colour, mark, words in items
    )
    return f'<div style="line-height: 1.5">{spans}</div>'
