"""The pictures of notebook 14: speed, draw and tokens per joule by power limit, published and of our stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from luce_edu.measure.power.dvfs import StageCurve
from luce_edu.measure.power.model import Baseline, Fit, Point, Sweep, expected, sweet_spot
from luce_edu.plots.style import BLUE, GREEN, GREY, INK, ORANGE, VERMILLION, Picture, colour_of, picture

POWER_PANELS: tuple[tuple[str, str, Callable[[Point], float]], ...] = (
    ("speed", "tok/s", lambda point: point.tokens_per_s),
    ("draw", "W", lambda point: point.draw_w),
    ("tokens per joule", "tok/J", lambda point: point.tokens_per_joule),
)
MARKS = {"best": ("o", "most tokens per joule"), "spot": ("*", "5 % less speed")}


def power_curves(
    sweep: Sweep,
    fit: Fit | None,
    *,
    limit_w: float | None = None,
    loss: float | None = None,
    beside: Sweep | Baseline | StageCurve | None = None,
    provenance: str = "",
) -> Picture:
    """Draw speed, draw and tokens per joule by power limit: the points of a sweep, and its modelled curve.

    fit      None for a sweep without a model, of which only the points are drawn
    limit_w  marks the expected point under this limit: modelled, or the nearest point where there is no model
    loss     marks the point of least draw that loses at most this share of the speed
    beside   drawn as well: another sweep's points, one figure as a line, or a stage's modelled curve with its band
    """
    figure = picture(11, 4.2, provenance)
    limits = [point.limit_w for point in sweep.points]
    for axes, (name, unit, value) in zip(figure.subplots(1, 3), POWER_PANELS, strict=True):
        for trusted, run in fit.runs() if fit else ():
            axes.plot([p.limit_w for p in run], [value(p) for p in run], color=BLUE, linewidth=2,
                      linestyle="-" if trusted else (0, (2, 2)),
                      label="modelled" if trusted else "modelled, far from a point")  # fmt: skip
        axes.plot(limits, [value(p) for p in sweep.points], "o", color=BLUE, markersize=7,
                  label=f"{sweep.kind}: {sweep.system}")  # fmt: skip
        if isinstance(beside, Sweep):
            axes.plot([p.limit_w for p in beside.points], [value(p) for p in beside.points], "s", color=VERMILLION,
                      markersize=6, label=f"{beside.kind}: {beside.gpu}, {beside.system}")  # fmt: skip
        elif isinstance(beside, StageCurve):
            _stage_curve(axes, beside, value, VERMILLION, *sweep.limits_w)
        elif beside:
            axes.axhline(value(beside.point), color=VERMILLION, linewidth=1.8, linestyle="-.",
                         label=f"{beside.kind}: {beside.gpu}, {beside.system}")  # fmt: skip
        if loss is not None:
            spot = sweet_spot(fit.curve if fit else sweep.points, loss)
            axes.plot(spot.limit_w, value(spot), "*", color=GREEN, markersize=16, markeredgecolor="white",
                      label=f"least draw at {100 * loss:g} % less speed")  # fmt: skip
        if limit_w is not None:
            here = expected(sweep, fit, limit_w)
            axes.axvline(limit_w, color=GREY, linewidth=1, linestyle=":")
            axes.plot(here.limit_w, value(here), "D", color=ORANGE, markersize=9, markeredgecolor=INK,
                      label=f"at {limit_w:g} W")  # fmt: skip
        axes.set_title(name, loc="left", fontsize=11)
        axes.set_ylabel(unit)
        axes.set_xlabel("power limit, W")
        axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside upper left", ncols=3, frameon=False)
    return figure


def _stage_curve(axes: Axes, curve: StageCurve, value, colour: str, low_w: float, high_w: float) -> None:
    """Draw a stage's modelled curve from low_w to high_w, and the band of all knees that the published points allow."""
    found = curve.over(low_w, high_w)
    limits = [point.limit_w for point, _ in found]
    ends = [[choose(map(value, (point, *band))) for point, band in found] for choose in (min, max)]
    axes.fill_between(limits, *ends, color=colour, alpha=0.2, linewidth=0)
    axes.plot(limits, [value(point) for point, _ in found], color=colour, linewidth=2,
              label=f"modelled for {curve.gpu}: our {curve.system}")  # fmt: skip


def power_errors(fit: Fit, *, provenance: str = "") -> Picture:
    """Draw the error of the model at each point of its sweep, fitted to all points and to all but that one."""
    figure = picture(9, 3.6, provenance)
    points = fit.sweep.points
    names = [f"{point.limit_w:g} W\n{point.clock_mhz:,.0f} MHz" for point in points]
    panels = (("draw", "draw"), ("speed", "tokens"))
    for axes, (name, of) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        axes.axhspan(-8, 8, color=GREEN, alpha=0.12, linewidth=0)
        axes.axhline(0, color=INK, linewidth=1)
        fitted = [100 * getattr(errors, of) for errors in fit.errors]
        left_out = [100 * getattr(errors, of) if errors else math.nan for errors in fit.left_out]
        axes.plot(range(len(points)), fitted, "o", color=BLUE, markersize=8, label="fitted to all points")
        axes.plot(range(len(points)), left_out, "D", color=VERMILLION, markersize=9, markerfacecolor="none",
                  markeredgewidth=1.8, label="fitted without this point")  # fmt: skip
        axes.set_xticks(range(len(points)), names)
        axes.set_xlim(-0.5, len(points) - 0.5)
        axes.set_title(f"{name}: modelled against {fit.sweep.kind}", loc="left", fontsize=11)
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.get_ylim()
    axes.set_ylim(1.12 * low, 1.12 * high)  # so that no mark is cut
    axes.figure.axes[0].set_ylabel("error, % (green: within 8 %)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    return figure


def power_band(fit: Fit, *, provenance: str = "") -> Picture:
    """Draw what the points leave open: draw by clock and tokens per joule by limit, as a band of admissible knees.

    The best fit is a line, and the points are drawn on top.
    """
    figure = picture(9, 3.8, provenance)
    points, models = fit.sweep.points, fit.admissible
    low, high = fit.sweep.limits_w
    clocks = np.linspace(min(point.clock_mhz for point in points), fit.model.top_mhz, 200)
    draws = [[model.draw_w(clock) for model in models] for clock in clocks]
    limits = [limit for limit in range(math.ceil(low), math.floor(high) + 1) if limit > fit.model.static_w]
    rates = [[point.tokens_per_joule for point in fit.among(limit)] for limit in limits]
    left, right = figure.subplots(1, 2)
    for axes, x, band, best, dots in (
        (left, clocks, draws, [fit.model.draw_w(clock) for clock in clocks],
         [(point.clock_mhz, point.draw_w) for point in points]),
        (right, limits, rates, [fit.model.at(limit).tokens_per_joule for limit in limits],
         [(point.limit_w, point.tokens_per_joule) for point in points]),
    ):  # fmt: skip
        axes.fill_between(x, [min(values) for values in band], [max(values) for values in band], color=BLUE, alpha=0.2,
                          linewidth=0, label=f"modelled: knees {models[0].knee_mhz:,.0f} to "
                                             f"{models[-1].knee_mhz:,.0f} MHz")  # fmt: skip
        axes.plot(x, best, color=BLUE, linewidth=2, label=f"modelled: best fit, knee {fit.model.knee_mhz:,.0f} MHz")
        axes.plot(*zip(*dots, strict=True), "o", color=INK, markersize=6, label=fit.sweep.kind)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_title("draw, W", loc="left", fontsize=11)
    left.set_xlabel("clock, MHz")
    right.set_title("tokens per joule", loc="left", fontsize=11)
    right.set_xlabel("power limit, W")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    return figure


def stage_powers(curves: Sequence[StageCurve], *, provenance: str = "") -> Picture:
    """Draw speed, as a share of that at the top clock, and mJ per token by power limit, one line per stage.

    Band: all admissible knees. Marks: the point of most tokens per joule, and that of 5 % less speed.
    """
    figure = picture(9.5, 4.1, provenance)
    low = min(curve.best_knee.least_w for curve in curves)
    high = 1.05 * max(curve.top.draw_w for curve in curves)
    left, right = figure.subplots(1, 2)
    for curve in curves:
        colour, top = colour_of(curve.system), curve.top.tokens_per_s
        panels = (
            (left, lambda point, top=top: 100 * point.tokens_per_s / top),
            (right, lambda point: 1e3 / point.tokens_per_joule),
        )
        for axes, value in panels:
            _stage_curve(axes, curve, value, colour, low, high)
            for name, (mark, _) in MARKS.items():
                point = getattr(curve, name)()[0]
                axes.plot(point.limit_w, value(point), mark, color=colour, markersize=13 if mark == "*" else 8,
                          markeredgecolor=INK, zorder=3)  # fmt: skip
    left.set_title("speed, % of that without a limit", loc="left", fontsize=11)
    right.set_title("mJ per token", loc="left", fontsize=11)
    handles, labels = left.get_legend_handles_labels()
    for mark, words in MARKS.values():
        handles += left.plot([], [], mark, color="white", markeredgecolor=INK, markersize=10)
        labels.append(words)
    for axes in (left, right):
        axes.set_xlabel("power limit, W")
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False)
    return figure
