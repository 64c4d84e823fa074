"""The picture of notebook 07: the same kernels as plain launches, in a graph, and with dependent launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.patches import Rectangle

from luce_edu.overlap import Span
from luce_edu.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Picture, label_rows, picture


def launch_timeline(lanes: Mapping[str, Sequence[Span]], *, provenance: str = "") -> Picture:
    """Draw the lanes of `luce_edu.overlap.timelines` as rows of bars over µs, each with the time at which it ends."""
    kernels = list(dict.fromkeys(span.what for spans in lanes.values() for span in spans if span.what != "launch call"))
    palette = (BLUE, VERMILLION, GREEN, PURPLE, SKY)
    colours = {name: palette[i % len(palette)] for i, name in enumerate(kernels)} | {"launch call": ORANGE}
    figure = picture(10.5, 4.6, provenance)
    axes = figure.subplots()
    for row, spans in enumerate(lanes.values()):
        for span in spans:
            hatch = {"hatch": "////", "alpha": 0.55} if span.prefetched else {}
            axes.barh(row, span.us, left=span.start_us, height=0.62, color=colours[span.what], edgecolor="white",
                      linewidth=0.8, **hatch)  # fmt: skip
        axes.text(spans[-1].end_us, row, f"  {spans[-1].end_us:.1f} µs", va="center", fontsize=10.5)
    label_rows(axes, list(lanes))
    axes.set_xlim(0, 1.1 * max(spans[-1].end_us for spans in lanes.values()))
    axes.set_xlabel("time, µs")
    patches = [Rectangle((0, 0), 1, 1, facecolor=colours[name]) for name in kernels]
    patches.append(Rectangle((0, 0), 1, 1, facecolor="white", edgecolor=GREY, hatch="////"))
    axes.legend(patches, [*kernels, "prefetched"], frameon=False, ncols=len(patches), loc="lower left",
                bbox_to_anchor=(-0.02, 1), columnspacing=1.2, handlelength=1.2)  # fmt: skip
    return figure
