"""The pictures of notebook 06: lives of buffers, who owns a layer's state, sums over a tile, merged softmaxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from luce_edu.backends.ledger import Launch
from luce_edu.machine.cards import WARP
from luce_edu.plots.style import BLUE, GREEN, GREY, INK, ORANGE, SKY, VERMILLION, Picture, picture


def dataflow(launches: Sequence[Launch], buffers: Sequence[str], kernels: Mapping[str, int], *, provenance: str = ""
             ) -> Picture:  # fmt: skip
    """Draw which launch writes each buffer and which launches read it. A value inside one fused kernel needs no memory.

    launches  entries of a ledger that counted traffic, in order
    buffers   names of the tensors to draw
    kernels   by fused kernel: how many of the launches, in order, it replaces; ValueError unless all are covered
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
    words = ["written", "read", "stays inside one fused kernel", "passed to another kernel"]
    axes.legend(marks, words, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(-0.02, 1))
    return figure


def _lives(name: str, launches: Sequence[Launch]) -> list[tuple[list[int], list[int]]]:
    """Return (writers, readers) of each content of a buffer. A launch that only writes begins a new content."""
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
    """Draw which block and thread own which part of a head's state in two kernels, and which SMs of a GPU have work.

    Above: one block per head, one thread per column. Below: one block per `tile_columns` columns, one thread per four
    neighbouring columns of every so many rows. Blocks are dealt to SMs in turn. Raises ValueError if the tile is not
    a multiple of 4 that divides `value_dim`.
    """
    if value_dim % tile_columns or tile_columns % 4:
        raise ValueError(f"tile_columns: expected a multiple of 4 that divides {value_dim}, got {tile_columns}")
    tiles = heads * value_dim // tile_columns
    rows = block_threads // (tile_columns // 4)
    figure = picture(10.5, 6.4, provenance)
    (column, few), (tile, many) = figure.subplots(2, 2, width_ratios=(1, 1.5))
    quarter = value_dim // 4 // tile_columns * tile_columns  # leaves room for words beside it
    # The part of one thread as rectangles: left, top, width, height.
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
    """Draw the SMs as squares, darker with more blocks, with the number of blocks in each."""
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


def tile_part(thread: int, *, key_dim: int, tile_columns: int, block_threads: int) -> list[tuple[int, int]]:
    """Return (row, first of four columns) of what a thread of delta_rule_tile in csrc/delta_rule.cuh keeps."""
    quads = tile_columns // 4
    return [(row, thread % quads * 4) for row in range(thread // quads, key_dim, block_threads // quads)]


def delta_tile(*, key_dim: int, tile_columns: int, block_threads: int, thread: int = 37, provenance: str = ""
               ) -> Picture:  # fmt: skip
    """Draw how a block shares out a tile of the state, and how its products become one sum per column.

    Left the tile, a band for each warp; middle the warps' partial sums in shared memory; right the sums. One thread
    stands out, with the lanes of its warp that hold the same columns. Raises ValueError for a tile that the lanes of a
    warp do not divide evenly, and for a thread that holds nothing.
    """
    quads, warps = tile_columns // 4, block_threads // WARP
    if tile_columns % 4 or quads not in (1, 2, 4, 8, 16, 32) or block_threads % WARP or block_threads < WARP:
        raise ValueError(f"expected whole warps and 4, 8, ... or 128 columns, got {block_threads} and {tile_columns}")
    shape = {"key_dim": key_dim, "tile_columns": tile_columns, "block_threads": block_threads}
    own = tile_part(thread, **shape)
    if not own or not 0 <= thread < block_threads:
        raise ValueError(f"thread: {thread} of {block_threads} holds nothing of the tile")
    figure = picture(10.5, 6.2, provenance)
    tile, partial, total = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    warp, lanes = thread // WARP, range(thread // WARP * WARP, thread // WARP * WARP + WARP)
    for t in range(block_threads):
        shade = SKY if t // WARP % 2 == 0 else "#A9D8F3"
        if t in lanes and t % quads == thread % quads:
            shade = VERMILLION if t == thread else ORANGE
        for row, column in tile_part(t, **shape):
            tile.add_patch(Rectangle((column, row), 4, 1, facecolor=shade, edgecolor="white", linewidth=0.25))
    left = thread % quads * 4
    for w in range(warps):
        firsts = [part[0][0] for t in range(w * WARP, w * WARP + WARP) if (part := tile_part(t, **shape))]
        if firsts:
            middle = (min(firsts) + max(firsts) + 1) / 2
            tile.text(tile_columns + 0.4, middle, f"warp {w}", va="center", fontsize=9)
        for column in range(tile_columns):
            shade = ORANGE if w == warp and left <= column < left + 4 else SKY if w % 2 == 0 else "#A9D8F3"
            partial.add_patch(Rectangle((column, w), 1, 1, facecolor=shade, edgecolor="white", linewidth=0.6))
    partial.add_patch(Rectangle((left, 0), 4, warps, facecolor="none", edgecolor=GREEN, linewidth=2.5))
    for column in range(tile_columns):
        shade = GREEN if left <= column < left + 4 else "#BFE3D6"
        total.add_patch(Rectangle((column, (warps - 1) / 2), 1, 1, facecolor=shade, edgecolor="white", linewidth=0.6))
    same = WARP // quads
    tile.set_title(f"1  the tile: thread {thread} has\n{4 * len(own)} of its numbers", loc="left", fontsize=11)
    words = f"2  shuffles: {same} lanes with the\nsame columns add up, {same.bit_length() - 1} steps"
    partial.set_title(words, loc="left", fontsize=11)
    total.set_title(f"3  shared memory: a thread per\ncolumn adds {warps} partial sums", loc="left", fontsize=11)
    for axes, height, what in ((tile, key_dim, "key dimension"), (partial, warps, "warp"), (total, warps, "")):
        axes.set_xlim(0, tile_columns)
        axes.set_ylim(height, 0)
        axes.set_xticks([0, tile_columns])
        axes.set_yticks([0, height] if what else [])
        axes.set_xlabel("column of the tile")
        axes.set_ylabel(what)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    marks = [Rectangle((0, 0), 1, 1, facecolor=colour) for colour in (VERMILLION, ORANGE, GREEN)]
    words = [f"thread {thread}", "lanes with the same columns, and their partial sums", "the sums of these columns"]
    figure.legend(marks, words, loc="outside upper left", ncols=3, frameon=False)
    return figure


class Turn(NamedTuple):
    """A position that a worker has taken, and its running softmax after it; rescaled: the maximum has risen."""

    position: int
    score: float
    maximum: float
    weight: float
    rescaled: bool


def online_softmax(scores: Sequence[float], workers: int) -> list[list[Turn]]:
    """Return the turns of each worker, where worker w takes positions w, w + workers, and so on."""
    turns: list[list[Turn]] = [[] for _ in range(workers)]
    for position, score in enumerate(scores):
        own = turns[position % workers]
        maximum, weight = (own[-1].maximum, own[-1].weight) if own else (-math.inf, 0.0)
        largest = max(maximum, score)
        weight = weight * math.exp(maximum - largest) + math.exp(score - largest)
        own.append(Turn(position, score, largest, weight, bool(own) and largest > maximum))
    return turns


def softmax_workers(scores: Sequence[float], workers: int, *, provenance: str = "") -> Picture:
    """Draw online softmax by several workers: the running maximum and weight of each, turn by turn, and the merge.

    Raises ValueError for more workers than scores, as a worker without a position has nothing to draw.
    """
    if not 1 <= workers <= len(scores):
        raise ValueError(f"workers: expected 1 to {len(scores)}, one or more scores for each, got {workers}")
    turns = online_softmax(scores, workers)
    ends = [own[-1] for own in turns]
    maximum = max(end.maximum for end in ends)
    weight = sum(end.weight * math.exp(end.maximum - maximum) for end in ends)
    across = max(map(len, turns))
    figure = picture(10.5, 2.1 + 0.8 * workers, provenance)
    axes = figure.subplots()
    for w, own in enumerate(turns):
        for t, turn in enumerate(own):
            fill = "#F3C9AE" if turn.rescaled else "#C5E4F7"
            axes.add_patch(Rectangle((t + 0.03, w + 0.08), 0.94, 0.84, facecolor=fill, edgecolor=GREY))
            axes.text(t + 0.5, w + 0.34, f"position {turn.position}: score {turn.score:g}", ha="center", va="center",
                      fontsize=10)  # fmt: skip
            axes.text(t + 0.5, w + 0.68, f"max {turn.maximum:g}, weight {turn.weight:.3f}", ha="center", va="center",
                      fontsize=10, fontweight="bold")  # fmt: skip
        end, arrow = own[-1], {"arrowstyle": "->", "color": GREY}
        axes.annotate("", (across + 0.22, w + 0.5), xytext=(len(own), w + 0.5), arrowprops=arrow)
        scaled = f"{end.weight:.3f} x exp({end.maximum:g} \N{MINUS SIGN} {maximum:g})"
        words = f"{scaled} = {end.weight * math.exp(end.maximum - maximum):.3f}"
        axes.text(across + 0.25, w + 0.5, words, va="center", fontsize=10)
    axes.hlines(workers + 0.05, across + 0.25, across + 1.45, color=INK, linewidth=1)
    axes.text(across + 0.25, workers + 0.35, f"max {maximum:g}, weight {weight:.3f}", va="center", fontsize=10.5,
              fontweight="bold")  # fmt: skip
    axes.set_yticks([w + 0.5 for w in range(workers)], [f"worker {w}" for w in range(workers)])
    names = [*(f"turn {t}" for t in range(across)), "merge"]
    axes.set_xticks([*(t + 0.5 for t in range(across)), across + 0.8], names)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlim(0, across + 1.5)
    axes.set_ylim(workers + 0.6, 0)
    axes.spines[:].set_visible(False)
    marks = [Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor=GREY) for colour in ("#C5E4F7", "#F3C9AE")]
    words = ["the maximum stays", "the maximum rises: the old weight is rescaled"]
    figure.legend(marks, words, loc="outside upper left", ncols=2, frameon=False)
    return figure
