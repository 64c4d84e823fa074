"""The pictures of notebook 12: intensity by tokens, a tile of the tensor cores, work by length, rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from luce_edu.plots.style import (
    BLUE,
    GREEN,
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
    """Arithmetic intensity by the number of tokens that go through together, and where each GPU's roofline bends.

    intensities  operations for each byte that moves, by every number of tokens from 1 on
    corners      by GPU: operations that it can do while a byte arrives; above, arithmetic sets the pace
    mark         numbers of tokens to point out, each a key of intensities
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
        axes.annotate(words, (count, intensities[count]), xytext=(12, -1), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.8 * tokens[0], tokens[-1])
    plain_axis(axes.xaxis)
    plain_axis(axes.yaxis)
    axes.set_xlabel("tokens together")
    axes.set_ylabel("operations for each byte that moves")
    axes.legend(frameon=False, loc="lower right", title="operations that a GPU does meanwhile")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def tensor_core_tile(lane: int, *, provenance: str = "") -> Picture:
    """Which lane of a warp holds which elements of c += a b in csrc/tensor_core.cuh; those of one lane stand out."""
    layouts = {  # the lane of each (row, column)
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
    """Operations for each token of a prompt, part by part, by the prompt's length.

    parts  by part: operations a token, by length. Where the last one overtakes all others together is marked.
    """
    figure = picture(8, 4.2, provenance)
    axes = figure.subplots()
    styles = zip((BLUE, GREEN, PURPLE), ("-", "--", ":"), strict=True)
    for i, (name, by_length) in enumerate(parts.items()):
        colour, line = (VERMILLION, "-") if i == len(parts) - 1 else next(styles)
        lengths, values = list(by_length), np.array(list(by_length.values()))
        axes.plot(lengths, values / 1e9, color=colour, linestyle=line, linewidth=2, label=name)
    *others, last = (np.array(list(by_length.values())) for by_length in parts.values())
    ahead = np.log(last / sum(others))
    crossing = float(np.exp(np.interp(0, ahead, np.log(lengths))))
    height = float(np.interp(crossing, lengths, last)) / 1e9
    axes.plot(crossing, height, "o", color=INK)
    axes.annotate(f"{float(f'{crossing:.3g}'):,.0f} tokens: as much as all else", (crossing, height), xytext=(-10, 6),
                  textcoords="offset points", ha="right")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(lengths[0], lengths[-1])
    plain_axis(axes.xaxis)
    plain_axis(axes.yaxis)
    axes.set_xlabel("tokens in the prompt")
    axes.set_ylabel("Gflop for each of them")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def prefill_against_ceiling(rates: Sequence[tuple[str, float]], ceiling: float, *, provenance: str = "") -> Picture:
    """Prefill rates of some systems, and the rate at which arithmetic alone would take all the time there is.

    rates    (system, and in a second line its source; tokens per second), a bar for each
    ceiling  tokens per second
    """
    figure = picture(9, 1.9 + 0.42 * len(rates), provenance)
    axes = figure.subplots()
    values = [rate for _, rate in rates]
    systems = [name.partition("\n")[0] for name, _ in rates]
    colours = [GREEN if "megakernel" in name else ORANGE if name == "llama.cpp" else SKY for name in systems]
    bars = axes.barh(range(len(rates)), values, color=colours, height=0.62)
    axes.bar_label(bars, [f"{rate:,.0f}  ({100 * rate / ceiling:.0f} %)" for rate in values], padding=5)
    label_rows(axes, [name for name, _ in rates])
    axes.axvline(ceiling, color=INK, linewidth=1.2, linestyle="--")
    axes.text(ceiling * 0.985, -0.66, f"ceiling: {ceiling:,.0f}", ha="right", va="center")
    axes.set_ylim(len(rates) - 0.5, -1)
    axes.set_xlim(0, 1.05 * ceiling)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("tokens per second, a prompt of 520; in brackets: share of the ceiling")
    return figure
