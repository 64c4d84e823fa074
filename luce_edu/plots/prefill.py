"""The pictures of notebook 12: intensity by tokens, a tensor-core tile, work by prompt length, published rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from luce_edu.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Picture,
    label_rows,
    picture,
    plain_axis,
)


def intensity_by_tokens(
    intensities: Mapping[int, float], corners: Mapping[str, float], *, mark: Sequence[int] = (), provenance: str = ""
) -> Picture:
    """Draw the arithmetic intensity by the number of tokens processed together, and the corner of each GPU's roofline.

    intensities  by number of tokens, from 1 on: operations per byte moved
    corners      by GPU: operations that it can do in the time of one byte; above this, arithmetic sets the time
    mark         numbers of tokens to label, each a key of intensities
    """
    figure = picture(8, 4.4, provenance)
    axes = figure.subplots()
    tokens = list(intensities)
    for (gpu, corner), colour in zip(corners.items(), (VERMILLION, GREEN, PURPLE), strict=False):
        first = next(count for count in tokens if intensities[count] >= corner)
        axes.axhline(corner, color=colour, linewidth=1.4, linestyle="--",
                     label=f"{gpu}: {corner:,.0f}, reached with {first:,} tokens")  # fmt: skip
        axes.plot(first, corner, "o", color=colour, markersize=7)
    axes.plot(tokens, intensities.values(), color=BLUE, linewidth=2.2)
    for count in mark:
        axes.plot(count, intensities[count], "s", color=INK, markersize=6)
        words = f"{count:,} token{'s' if count > 1 else ''}: {intensities[count]:,.0f}"
        axes.annotate(words, (count, intensities[count]), xytext=(12, -14), textcoords="offset points",
                      bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1})  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.8 * tokens[0], tokens[-1])
    axes.set_ylim(bottom=0.3 * intensities[tokens[0]])  # leaves room for a label below the line
    plain_axis(axes.xaxis)
    plain_axis(axes.yaxis)
    axes.set_xlabel("tokens processed together")
    axes.set_ylabel("operations per byte moved")
    axes.legend(frameon=False, loc="lower right", title="a GPU's operations in the time of one byte")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def tensor_core_tile(lane: int, *, provenance: str = "") -> Picture:
    """Draw which lane of a warp holds which elements of c += a b in csrc/tensor_core.cuh; those of `lane` are blue."""
    layouts = {  # by matrix: rows, and the lane that holds (row, column)
        "a [16, 8]": (16, lambda row, term: 4 * (row % 8) + term % 4),
        "b [8, 8]": (8, lambda term, column: 4 * column + term % 4),
        "c [16, 8]": (16, lambda row, column: 4 * (row % 8) + column // 2),
    }
    figure = picture(9.5, 5.2, provenance)
    for axes, (name, (rows, holder)) in zip(figure.subplots(1, 3), layouts.items(), strict=True):
        for row in range(rows):
            for column in range(8):
                own = holder(row, column) == lane
                colour = BLUE if own else "white"
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="#BBBBBB"))
                axes.text(column, row, str(holder(row, column)), ha="center", va="center", fontsize=9.5,
                          color="white" if own else INK)  # fmt: skip
        axes.set_xlim(-0.5, 7.5)
        axes.set_ylim(15.5, -0.5)
        axes.set_xticks(range(8))
        axes.set_yticks(range(rows))
        axes.tick_params(length=0)
        axes.xaxis.tick_top()
        axes.set_title(f"{name}: lane of each element", fontsize=11)
        axes.spines[:].set_visible(False)
    return figure


def work_by_length(parts: Mapping[str, Mapping[int, float]], *, provenance: str = "") -> Picture:
    """Draw the share of the operations that each part has, by the length of the prompt, as stacked areas.

    parts  by part: operations per token, by length. The length at which the last part equals all others is marked.
    """
    figure = picture(9, 4.2, provenance)
    axes = figure.subplots()
    lengths = list(next(iter(parts.values())))
    work = np.array([list(by_length.values()) for by_length in parts.values()])
    shares = 100 * work / work.sum(axis=0)
    tops = np.cumsum(shares, axis=0)
    colours = ("#C5E4F7", "#8CCFB8", "#F3C9AE")  # light, so that dark words stand on each
    for i, (name, colour) in enumerate(zip(parts, colours, strict=True)):
        below = tops[i] - shares[i]
        axes.fill_between(lengths, below, tops[i], color=colour, linewidth=0)
        at = int(shares[i].argmax())  # where the part is widest, its name stands inside or an arrow begins
        middle = float(below[at] + tops[i][at]) / 2
        side = "left" if at < len(lengths) / 2 else "right"
        room = {"xytext": (8 if side == "left" else -8, 0), "textcoords": "offset points"}
        if shares[i][at] < 12:
            room = {"xytext": (30, -26), "textcoords": "offset points",
                    "arrowprops": {"arrowstyle": "-", "color": GREY}}  # fmt: skip
        axes.annotate(name, (lengths[at], middle), ha=side, va="center", **room)
    ahead = np.log(work[-1] / work[:-1].sum(axis=0))
    crossing = float(np.exp(np.interp(0, ahead, np.log(lengths))))
    axes.plot(lengths, tops[-2], color=VERMILLION, linewidth=2)
    axes.plot(crossing, 50, "o", color=INK)
    axes.annotate(f"{float(f'{crossing:.3g}'):,.0f} tokens: equal to all other parts", (crossing, 50), xytext=(-12, 0),
                  textcoords="offset points", ha="right", va="center")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(lengths[0], lengths[-1])
    axes.set_ylim(0, 100)
    plain_axis(axes.xaxis)
    axes.set_xlabel("length of the prompt, tokens")
    axes.set_ylabel("share of the operations, %")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def prefill_against_ceiling(rates: Sequence[tuple[str, float]], ceiling: float, *, provenance: str = "") -> Picture:
    """Draw prefill rates by system, one row per system, beside the rate that the GPU's arithmetic allows at most.

    rates    (system, with its source in a second line; tokens per second); each rate is a point
    ceiling  tokens per second
    """
    by_system: dict[str, list[float]] = {}
    for name, rate in rates:
        by_system.setdefault(name.partition("\n")[0], []).append(rate)
    figure = picture(10.5, 1.7 + 0.95 * len(by_system), provenance)
    axes = figure.subplots()
    for row, (system, own) in enumerate(by_system.items()):
        colour = GREEN if "megakernel" in system else ORANGE if system == "llama.cpp" else SKY
        axes.plot([min(own), max(own)], [row, row], color=colour, linewidth=5, alpha=0.45, solid_capstyle="round")
        axes.plot(own, [row] * len(own), "o", color=colour, markersize=9, markeredgecolor=INK)
        for i, rate in enumerate(sorted(own)):  # by turns above and below, as some lie close together
            shift, side = (12, "right") if i == 0 and len(own) > 1 else (0, "center")
            axes.annotate(f"{rate:,.0f} ({100 * rate / ceiling:.0f} %)", (rate, row),
                          xytext=(shift, -17 if i % 2 else 17), textcoords="offset points", ha=side, va="center",
                          fontsize=10)  # fmt: skip
    words = [f"{system}\n{len(own)} rates, {max(own) / min(own):.1f} times apart" if len(own) > 1 else system
             for system, own in by_system.items()]  # fmt: skip
    label_rows(axes, words)
    axes.axvline(ceiling, color=INK, linewidth=1.2, linestyle="--")
    axes.text(ceiling * 0.985, -0.7, f"ceiling: {ceiling:,.0f} tok/s", ha="right", va="center")
    axes.set_ylim(len(by_system) - 0.4, -0.9)
    axes.set_xlim(0, 1.05 * ceiling)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("tokens per second, prompt of 520 tokens (in brackets: share of the ceiling)")
    return figure
