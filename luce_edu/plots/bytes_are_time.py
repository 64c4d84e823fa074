"""The pictures of notebook 05: the sectors that a warp loads, and the roofline."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from luce_edu.plots.style import BLUE, GREEN, GREY, VERMILLION, Picture, picture


def warp_loads(patterns: Mapping[str, tuple[np.ndarray, int]], *, row_bytes: int, provenance: str = "") -> Picture:
    """Which bytes of a row-major matrix one warp's first loads touch, and in which sectors of 32 bytes.

    patterns   by name: the byte at which each lane's load begins [loads, lanes], up to three loads, and the bytes a
               lane loads. The first pattern stands tall on the left, the others beside it.
    row_bytes  of the matrix: whole sectors, or ValueError
    """
    if row_bytes % 32:
        raise ValueError(f"row_bytes: expected whole sectors of 32 bytes, got {row_bytes}")
    figure = picture(10.5, 5.4, provenance)
    grid = figure.add_gridspec(len(patterns) - 1, 2, width_ratios=(1, 2))
    places = [grid[:, 0], *(grid[i, 1] for i in range(len(patterns) - 1))]
    for place, (name, (starts, size)) in zip(places, patterns.items(), strict=True):
        axes = figure.add_subplot(place)
        lanes, sectors = starts.shape[1], len(np.unique(starts[0] // 32))
        axes.set_title(f"{name}: {size * lanes} bytes asked for,\n{sectors} sectors touched, {32 * sectors:,} bytes",
                       loc="left", fontsize=11)  # fmt: skip
        _warp_panel(axes, starts, size, row_bytes)
    words = ["a sector that is touched", *(f"{which} load" for which in ("first", "second", "third"))]
    figure.legend([Rectangle((0, 0), 1, 1, facecolor=colour) for colour in ("#E4E4E4", BLUE, VERMILLION, GREEN)], words,
                  loc="outside upper left", ncols=4, frameon=False)  # fmt: skip
    return figure


def _warp_panel(axes: Axes, starts: np.ndarray, size: int, row_bytes: int) -> None:
    """The rows that the loads of a warp touch: sectors, and in them the lanes' bytes."""
    rows, width = starts.max() // row_bytes + 1, (starts % row_bytes).max() + size
    for sector in np.unique(starts // 32):
        row, byte = divmod(32 * sector, row_bytes)
        axes.add_patch(Rectangle((byte, row - 0.5), 32, 1, facecolor="#E4E4E4", edgecolor=GREY, linewidth=0.8))
    for load, colour in zip(starts, (BLUE, VERMILLION, GREEN), strict=False):
        for row, byte in zip(*divmod(load, row_bytes), strict=True):
            cell = Rectangle((byte, row - 0.36), size, 0.72, facecolor=colour, edgecolor="white", linewidth=0.3)
            axes.add_patch(cell)
        if rows == 1:
            axes.text((load[0] + load[-1] + size) / 2, 0, f"lanes 0 to {len(load) - 1}", color="white", ha="center",
                      va="center", fontsize=11, fontweight="bold")  # fmt: skip
    shown = [row for row in range(rows) if row % 8 == 0 or row == rows - 1]
    if rows > 1:
        for row in shown:
            axes.text(34, row, f"lane {row}", va="center", fontsize=10)
    axes.set_yticks(shown, [f"row {row}" for row in shown])
    axes.set_ylim(rows - 0.3, -0.7)
    axes.set_xlim(0, max(width, 64))
    axes.set_xticks(range(0, width + 32, 32 if width <= 256 else 256))
    axes.set_xlabel("byte of the row")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def roofline(
    gpus: Mapping[str, tuple[float, float]], intensities: Mapping[str, float], *, provenance: str = ""
) -> Picture:
    """What bandwidth and arithmetic allow at each arithmetic intensity, and where some pieces of work stand.

    gpus         by name: bandwidth in GB/s, and arithmetic in Tflop/s
    intensities  operations for each byte that moves, by name of the work
    """
    figure = picture(8, 4.6, provenance)
    axes = figure.subplots()
    most = 3 * max(intensities.values())
    for (gpu, (gb_per_s, tflops)), colour in zip(gpus.items(), (BLUE, VERMILLION, GREEN), strict=False):
        corner = 1e3 * tflops / gb_per_s
        axes.plot([0.5, corner, most], [0.5e-3 * gb_per_s, tflops, tflops], color=colour, linewidth=2,
                  label=f"{gpu}: {gb_per_s:,} GB/s, at most {tflops:g} Tflop/s")  # fmt: skip
        rates = [min(tflops, 1e-3 * gb_per_s * intensity) for intensity in intensities.values()]
        axes.plot(intensities.values(), rates, "o", color=colour, markersize=7)
    for work, intensity in intensities.items():
        axes.axvline(intensity, color=GREY, linewidth=0.8, linestyle=":")
        axes.annotate(work, (intensity, 0), xycoords=("data", "axes fraction"), xytext=(4, 6),
                      textcoords="offset points")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.5, most)
    axes.set_ylim(0.2, 2 * max(tflops for _, tflops in gpus.values()))
    axes.set_xticks([1, 10, 100], ["1", "10", "100"])
    axes.set_yticks([1, 10, 100], ["1", "10", "100"])
    axes.set_xlabel("arithmetic intensity, operations for each byte that moves")
    axes.set_ylabel("Tflop/s at most")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
