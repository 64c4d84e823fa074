"""Our stages under a power limit, modelled."""

from __future__ import annotations

from collections.abc import Sequence

from luce_edu.measure.dvfs import StageCurve
from luce_edu.plots import INK, STAGE_COLOURS, Picture, _picture, _stage_curve

MARKS = {"best": ("o", "most tokens for a joule"), "spot": ("*", "5 % less speed")}


def stage_powers(curves: Sequence[StageCurve], *, provenance: str = "") -> Picture:
    """Speed, as a share of the fastest clock's, and joules a token against the power limit, a line for each stage.

    Band: what the admissible knees make of it. Marks: the points of least joules, and of 5 % less speed.
    """
    figure = _picture(9.5, 4.1, provenance)
    low = min(curve.best_knee.least_w for curve in curves)
    high = 1.05 * max(curve.top.draw_w for curve in curves)
    left, right = figure.subplots(1, 2)
    for curve in curves:
        colour, top = STAGE_COLOURS[curve.system], curve.top.tokens_per_s
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
