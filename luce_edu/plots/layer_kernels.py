"""The pictures of notebook 06: which launch writes and reads a buffer, and who owns a layer's state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from luce_edu.backends.ledger import Launch
from luce_edu.plots.style import BLUE, GREY, INK, SKY, VERMILLION, Picture, picture


def dataflow(launches: Sequence[Launch], buffers: Sequence[str], kernels: Mapping[str, int], *, provenance: str = ""
             ) -> Picture:  # fmt: skip
    """Which launch writes each buffer and which ones read it; what lives inside one fused kernel needs no memory.

    launches  entries of a ledger that counted traffic, in order
    buffers   names of the tensors to draw
    kernels   how many of the launches, in order, each fused kernel replaces; ValueError unless all are covered
    """
    counts = list(kernels.values())
    if sum(counts) != len(launches):
        raise ValueError(f"kernels: they replace {sum(counts)} launches, and there are {len(launches)}")
    of = [k for k, count in enumerate(counts) for _ in range(count)]
    edges = np.cumsum([0, *counts]) - 0.5
    lives = {name: _lives(name, launches) for name in buffers}
    figure = picture(10.5, 2.4 + 0.27 * len(buffers), provenance)
    axes = figure.subplots()
    for k, name in enumerate(kernels):
        axes.axvspan(edges[k], edges[k + 1], color="#F2F2F2" if k % 2 == 0 else "white", zorder=0)
        word = name.replace("_", "_\n", 1) if counts[k] < 3 else name  # a narrow band has room for half of it
        axes.text(edges[k] + counts[k] / 2, -1, word, ha="center", va="center", fontweight="bold", fontsize=9.5)
    for row, name in enumerate(buffers):
        for writes, reads in lives[name]:
            first, last = (writes or [-1])[0], (reads or [len(launches)])[-1]
            inside = 0 <= first and last < len(launches) and of[first] == of[last]
            colour = VERMILLION if inside else BLUE
            axes.plot([first, last], [row, row], color=colour, linewidth=4, solid_capstyle="butt", alpha=0.45)
            axes.plot(writes, [row] * len(writes), "s", color=colour, markersize=7)
            axes.plot(reads, [row] * len(reads), "o", color=colour, markerfacecolor="white", markersize=5.5)
    axes.set_yticks(range(len(buffers)), buffers)
    axes.set_xticks(range(len(launches)), [launch.kernel for launch in launches], rotation=40, ha="right",
                    rotation_mode="anchor")  # fmt: skip
    axes.tick_params(length=0)
    axes.set_ylim(len(buffers) - 0.4, -1.8)
    axes.set_xlim(edges[0], edges[-1])
    axes.spines[:].set_visible(False)
    marks = [
        axes.plot([], [], "s", color=GREY, markersize=7)[0],
        axes.plot([], [], "o", color=GREY, markerfacecolor="white", markersize=5.5)[0],
        Rectangle((0, 0), 1, 1, facecolor=VERMILLION),
        Rectangle((0, 0), 1, 1, facecolor=BLUE),
    ]
    words = ["written", "read", "lives inside one fused kernel", "crosses from one to the next"]
    axes.legend(marks, words, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(-0.02, 1))
    return figure


def _lives(name: str, launches: Sequence[Launch]) -> list[tuple[list[int], list[int]]]:
    """Writers and readers of each content that a buffer has had; a launch that only writes begins a new one."""
    lives: list[tuple[list[int], list[int]]] = []
    for i, launch in enumerate(launches):
        traffic = launch.traffic.get(name)
        if traffic is None:
            continue
        if not lives or not traffic.distinct_read:
            lives.append(([], []))
        writes, reads = lives[-1]
        if traffic.distinct_read:
            reads.append(i)
        if traffic.distinct_write:
            writes.append(i)
    return lives


def state_owners(*, heads: int, key_dim: int, value_dim: int, tile_columns: int, block_threads: int, sm_count: int,
                 provenance: str = "") -> Picture:  # fmt: skip
    """Who owns what of a layer's recurrent state in two kernels, and which of a GPU's multiprocessors have work.

    Above a block a head and a thread a column; below a block for `tile_columns` columns, and a thread for four
    neighbouring ones in every so many rows. One block a multiprocessor. ValueError for a width that no tile divides.
    """
    if value_dim % tile_columns or tile_columns % 4:
        raise ValueError(f"tile_columns: expected a multiple of 4 that divides {value_dim}, got {tile_columns}")
    tiles = heads * value_dim // tile_columns
    rows = block_threads // (tile_columns // 4)
    figure = picture(10.5, 6.4, provenance)
    (column, few), (tile, many) = figure.subplots(2, 2, width_ratios=(1, 1.5))
    quarter = value_dim // 4 // tile_columns * tile_columns  # left enough for words beside a thread's part
    # A thread's part as rectangles: left, top, width, height.
    whole = [(quarter, 0, 1, key_dim)]
    few_rows = [(quarter + 4, top, 4, 1) for top in range(min(key_dim, rows) // 3, key_dim, rows)]
    for owner, machine, blocks, width, parts in (
        (column, few, heads, value_dim, whole),
        (tile, many, tiles, tile_columns, few_rows),
    ):
        for left in range(0, value_dim, width):
            shade = SKY if left // width % 2 == 0 else "#A9D8F3"
            owner.add_patch(Rectangle((left, 0), width, key_dim, facecolor=shade, edgecolor="white"))
        for left, top, wide, high in parts:
            owner.add_patch(Rectangle((left, top), wide, high, facecolor=VERMILLION, edgecolor=VERMILLION))
        held = sum(wide * high for _, _, wide, high in parts)
        left, top, wide, high = parts[0]
        owner.annotate(f"one thread:\n{held} numbers", (left + wide, top + high / 2), xytext=(14, 0),
                       textcoords="offset points", va="center", fontsize=10,
                       bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2})  # fmt: skip
        owner.set_xlim(0, value_dim)
        owner.set_ylim(key_dim, 0)
        owner.set_xticks([0, value_dim])
        owner.set_yticks([0, key_dim])
        owner.set_aspect("equal")
        owner.set_xlabel("value dimension")
        owner.set_ylabel("key dimension")
        words = "one block" if width == value_dim else f"{value_dim // width} blocks"
        owner.set_title(f"the state of one head: {words}", loc="left", fontsize=11)
        _machine(machine, blocks, sm_count)
    return figure


def _machine(axes: Axes, blocks: int, sm_count: int) -> None:
    """Multiprocessors as squares, dark by how many blocks each is dealt."""
    across = math.ceil(math.sqrt(2.1 * sm_count))
    for sm in range(sm_count):
        dealt = blocks // sm_count + (sm < blocks % sm_count)
        colour = ("#E4E4E4", SKY, BLUE)[min(dealt, 2)]
        x, y = sm % across, sm // across
        axes.add_patch(Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, facecolor=colour))
        if dealt:
            axes.text(x + 0.5, y + 0.5, str(dealt), ha="center", va="center", fontsize=9,
                      color="white" if dealt > 1 else INK)  # fmt: skip
    busy = min(blocks, sm_count)
    axes.set_xlim(0, across)
    axes.set_ylim(math.ceil(sm_count / across), 0)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_title(f"{blocks} blocks: {busy} of {sm_count} SMs have work", loc="left", fontsize=11)
