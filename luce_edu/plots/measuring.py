"""The pictures of notebook 13: times as reported, spreads, energy by window, the size of mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from luce_edu.plots.style import BLUE, GREEN, INK, ORANGE, SKY, VERMILLION, Picture, label_rows, picture, plain_axis


def shown_by_steps(shown: Mapping[str, Mapping[int, float]], truth_us: float, *, provenance: str = "") -> Picture:
    """Draw the µs per step that ways of timing report, by the number of steps timed, beside the true time.

    shown  by way of timing: reported µs per step, by the number of steps
    """
    figure = picture(8, 4.2, provenance)
    axes = figure.subplots()
    axes.axhline(truth_us, color=INK, linewidth=1.2, linestyle="--", label=f"true time: {truth_us:,.0f} µs")
    for (way, points), colour, marker in zip(shown.items(), (VERMILLION, ORANGE, BLUE), "so^", strict=False):
        axes.plot(list(points), list(points.values()), color=colour, marker=marker, markersize=5, label=way)
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_axis(axes.xaxis)
    plain_axis(axes.yaxis)
    axes.set_xlabel("number of steps timed in a row")
    axes.set_ylabel("reported µs per step")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def spread(times_us: Sequence[float], *, provenance: str = "") -> Picture:
    """Draw the histogram of the times of one piece of work, with best, quartiles, median, mean and worst."""
    times = np.sort(np.asarray(times_us, dtype=float))
    q1, median, q3 = np.quantile(times, (0.25, 0.5, 0.75))
    figure = picture(8, 3.8, provenance)
    axes = figure.subplots()
    low, high = 0.97 * times[0], 1.03 * times[-1]
    axes.hist(times, bins=np.geomspace(low, high, 71), color=SKY)
    axes.axvspan(q1, q3, color=BLUE, alpha=0.18, linewidth=0, label=f"quartiles, {q1:,.0f} to {q3:,.0f}")
    axes.axvline(times[0], color=VERMILLION, linewidth=1.8, linestyle=":", label=f"best, {times[0]:,.0f}")
    axes.axvline(median, color=BLUE, linewidth=1.8, label=f"median, {median:,.0f}")
    axes.axvline(times.mean(), color=ORANGE, linewidth=1.8, linestyle="--", label=f"mean, {times.mean():,.0f}")
    axes.plot(times[-1], 0.6, "v", color=INK, clip_on=False, label=f"worst, {times[-1]:,.0f}")
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    plain_axis(axes.xaxis)
    axes.set_yscale("log")
    axes.set_ylim(0.5, None)
    plain_axis(axes.yaxis)
    axes.set_xlabel("time, µs")
    axes.set_ylabel(f"number of calls, of {len(times):,}")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def energy_windows(
    windows: Sequence[tuple[float, float]], *, tick: float, least: float, provenance: str = ""
) -> Picture:
    """Draw the error of the joules of a window by its length, for a counter that advances every `tick` seconds.

    windows  (seconds, reported joules over true joules)
    least    the shortest window, in seconds, that this project accepts
    """
    figure = picture(8, 4.2, provenance)
    axes = figure.subplots()
    seconds, ratios = np.array(windows).T
    axes.axvspan(least, 1.3 * seconds.max(), color=GREEN, alpha=0.12, linewidth=0)
    axes.plot(seconds, 100 * (ratios - 1), "o", color=BLUE, markersize=3.5, alpha=0.5, markeredgewidth=0)
    axes.axhline(0, color=INK, linewidth=1)
    axes.axvline(tick, color=VERMILLION, linewidth=1.2, linestyle="--")
    top = 2 * max(100 * (ratios - 1).max(), 100)
    axes.annotate(f"the counter advances every {1e3 * tick:.0f} ms", (tick, top), xytext=(5, -4),
                  textcoords="offset points", va="top", color=VERMILLION)  # fmt: skip
    axes.annotate(f"{least:g} s or more", (least, top), xytext=(5, -4), textcoords="offset points", va="top",
                  color=GREEN)  # fmt: skip
    axes.annotate("0 J: the counter did not advance", (tick, -100), xytext=(5, 0), textcoords="offset points",
                  va="center")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(seconds.min() / 1.3, 1.3 * seconds.max())
    plain_axis(axes.xaxis)
    axes.set_yscale("symlog", linthresh=3)  # so that 3 % is visible beside 300 %
    ticks = [tick for tick in (-100, -30, -10, -3, 0, 3, 10, 30, 100, 300, 1000, 3000) if tick < top]
    axes.set_yticks(ticks, [f"{tick:+,}".replace("-", "\N{MINUS SIGN}") if tick else "0" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(-220, top)
    axes.set_xlabel("length of the window, s")
    axes.set_ylabel("error of the reported joules, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def mistakes(factors: Mapping[str, Mapping[str, float]], *, provenance: str = "") -> Picture:
    """Draw by how much mistakes make a system look faster than it is, one row per mistake.

    factors  by mistake, then by kind of source: reported speed over true speed; below 1 the system looks slower
    """
    styles = {"modelled": ("s", BLUE, "simulated, true time known"), "measured": ("o", ORANGE, "measured here"),
              "published": ("D", GREEN, "published, on a GPU")}  # fmt: skip
    figure = picture(8, 1.7 + 0.46 * len(factors), provenance)
    axes = figure.subplots()
    axes.axvline(1, color=INK, linewidth=1.2)
    seen = set()
    for i, of_mistake in enumerate(factors.values()):
        for j, (kind, factor) in enumerate(of_mistake.items()):
            marker, colour, label = styles[kind]
            y = i + 0.36 * (j - (len(of_mistake) - 1) / 2)
            axes.plot([1, factor], [y, y], color=colour, linewidth=2, alpha=0.5)
            axes.plot(factor, y, marker, color=colour, markersize=7, label=None if kind in seen else label)
            right = factor >= 1
            words = f"{factor:.2f}" if 0.5 < factor < 2 else f"{factor:.2g}" if factor < 10 else f"{factor:,.0f}"
            axes.annotate(f"{words} ×", (factor, y), xytext=(8 if right else -8, 0), textcoords="offset points",
                          ha="left" if right else "right", va="center", fontsize=9.5)  # fmt: skip
            seen.add(kind)
    label_rows(axes, list(factors))
    axes.set_xscale("log")
    sizes = [factor for of_mistake in factors.values() for factor in of_mistake.values()]
    axes.set_xlim(min(0.5, 0.4 * min(sizes)), max(2, 2 * max(sizes)))  # leaves room for the words beside them
    plain_axis(axes.xaxis)
    axes.set_xlabel("reported speed over true speed")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.3, 1), ncols=3)
    return figure
