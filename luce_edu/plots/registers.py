"""The pictures of notebook 10: how many blocks registers leave room for, and modelled times by size of tile."""

from __future__ import annotations

from collections.abc import Mapping

from luce_edu.machine.cards import LIMITS, resident_blocks
from luce_edu.plots.style import BLUE, GREEN, GREY, INK, ORANGE, VERMILLION, Picture, picture, plain_axis

MOST_REGISTERS = 255  # of a thread
_COLOURS = (BLUE, ORANGE, GREEN, GREY)


def blocks_by_registers(
    tiles: Mapping[str, Mapping[int, int]], *, threads: int, grids: Mapping[int, str], provenance: str = ""
) -> Picture:
    """The blocks that an SM holds against registers per thread, a panel for each architecture, with tiles marked.

    tiles    by architecture, such as "sm_86": registers by tile
    threads  of a block
    grids    blocks per SM that a cooperative launch may ask for, with a label: dashed lines. Tiles that miss the
             highest line are orange
    ValueError for an architecture that is not in LIMITS.
    """
    if unknown := sorted(set(tiles) - set(LIMITS)):
        raise ValueError(f"expected architectures among {', '.join(LIMITS)}, got {', '.join(unknown)}")
    figure = picture(10.5, 4.4, provenance)
    panels = figure.subplots(1, len(tiles), sharey=True, squeeze=False)[0]
    used = range(16, MOST_REGISTERS + 1)
    for axes, (arch, registers) in zip(panels, tiles.items(), strict=True):
        limits = LIMITS[arch]
        blocks = [resident_blocks(limits, threads=threads, registers=count) for count in used]
        axes.step(used, blocks, where="post", color=BLUE, linewidth=1.6)
        for asked, label in grids.items():
            axes.axhline(asked, color=GREY, linestyle="--", linewidth=1)
            if axes is panels[0]:
                axes.text(MOST_REGISTERS + 18, asked + 0.15, label, ha="right", va="bottom", fontsize=8.5, color=GREY)
        for tile, count in registers.items():
            held = resident_blocks(limits, threads=threads, registers=count)
            colour = VERMILLION if held < max(grids, default=0) else INK
            axes.plot([count], [held], "o", color=colour, markersize=6, zorder=3)
            # Inside the panel, and below the dashed line that may be one block higher.
            ha, right = ("left", 5) if count < MOST_REGISTERS - 20 else ("right", -5)
            axes.annotate(f"{tile}", (count, held), xytext=(right, 3), textcoords="offset points", fontsize=11, ha=ha,
                          fontweight="bold", color=colour)  # fmt: skip
        axes.set_title(f"{arch}: {limits.warps_per_sm} warps per SM", fontsize=11)
        axes.set_xlabel("registers per thread")
        axes.set_xlim(16, MOST_REGISTERS + 20)
        axes.set_ylim(0, 17)
        axes.spines["top"].set_visible(False)
        share = 100 * threads / limits.threads_per_sm
        right = axes.secondary_yaxis("right", functions=(lambda n, x=share: n * x, lambda n, x=share: n / x))
        right.set_yticks(range(0, 101, 25), [f"{percent}%" for percent in range(0, 101, 25)])
    right.set_ylabel("occupancy")
    panels[0].set_ylabel(f"blocks of {threads} threads on an SM")
    return figure


def time_by_tile(times: Mapping[str, Mapping[int, tuple[float, float]]], *, provenance: str = "") -> Picture:
    """Microseconds against the size of the tile, as boxes from the lower to the upper end of each range.

    times  by series, such as a card: (lower, upper) by tile
    """
    figure = picture(10.5, 4.4, provenance)
    axes = figure.subplots()
    sizes = sorted({tile for series in times.values() for tile in series})
    for number, (name, series) in enumerate(times.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        at = [sizes.index(tile) + 0.09 * (number - (len(times) - 1) / 2) for tile in series]
        low, high = zip(*series.values(), strict=True)
        middle = [(a * b) ** 0.5 for a, b in zip(low, high, strict=True)]
        axes.vlines(at, low, high, color=colour, linewidth=7, alpha=0.55)
        axes.plot(at, middle, color=colour, linewidth=1, marker="_", markersize=11, label=name)
    axes.set_xticks(range(len(sizes)), [f"{size}" for size in sizes])
    axes.set_xlabel("rows of the state per thread")
    axes.set_yscale("log")
    axes.set_ylabel("µs")
    plain_axis(axes.yaxis)
    axes.grid(axis="y", color="#E5E5E5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    return figure
