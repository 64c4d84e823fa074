"""The pictures of notebook 04: threads over arrays and rows, a card's memories, a sum in a tree, launches by bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from luce_edu.machine.cards import WARP, Card
from luce_edu.machine.clock import find_clock
from luce_edu.machine.schedule import MOST_REGISTERS
from luce_edu.measure.launch_cost import LaunchBytes
from luce_edu.plots.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION, Picture, picture


def grid_over_array(n: int, block: int, *, provenance: str = "") -> Picture:
    """Draw which thread of which block takes which of n elements, where thread i of the whole grid takes element i.

    block  threads per block. Enough blocks run to cover n, so the last may have threads without an element.
    """
    grid = -(-n // block)
    figure = picture(10.5, 2.9, provenance)
    axes = figure.subplots()
    for b in range(grid):
        colour = (SKY, ORANGE, GREEN, PURPLE)[b % 4]
        for t in range(block):
            i = b * block + t
            fill = colour if i < n else "white"
            axes.add_patch(Rectangle((i + 0.08, 1.5), 0.84, 0.7, facecolor=fill, edgecolor=colour))
            axes.text(i + 0.5, 1.85, t, ha="center", va="center", fontsize=11)
            if i < n:
                axes.add_patch(Rectangle((i, 0), 1, 0.7, facecolor=colour, edgecolor="white", alpha=0.55))
                axes.text(i + 0.5, 0.35, i, ha="center", va="center", fontsize=11)
                axes.annotate("", (i + 0.5, 0.72), xytext=(i + 0.5, 1.48),
                              arrowprops={"arrowstyle": "->", "color": GREY})  # fmt: skip
            else:
                axes.text(i + 0.5, 0.95, f"no\nx[{i}]", ha="center", va="center", fontsize=9, color=VERMILLION)
        left = b * block
        axes.add_patch(Rectangle((left + 0.02, 1.4), block - 0.04, 0.9, facecolor="none", edgecolor=INK, linewidth=1.3))
        axes.text(left + block / 2, 2.55, f"blockIdx.x = {b}", ha="center", va="center", fontsize=11)
    axes.set_yticks([0.35, 1.85], ["element i", "threadIdx.x"])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_xlim(-0.1, grid * block + 0.1)
    axes.set_ylim(-0.1, 2.8)
    axes.set_xlabel(f"n = {n}, blockDim.x = {block}, gridDim.x = {grid};  i = blockIdx.x * blockDim.x + threadIdx.x")
    axes.spines[:].set_visible(False)
    return figure


def blocks_over_rows(rows: int, n: int, block: int, *, provenance: str = "") -> Picture:
    """Draw which thread takes which element of [rows, n] with one block per row, threads side by side."""
    figure = picture(10.5, 1.6 + 0.62 * rows, provenance)
    axes = figure.subplots()
    shades = LinearSegmentedColormap.from_list("threads", ["#D7EEFA", SKY])
    for row in range(rows):
        for c in range(n):
            colour = shades(c % block / max(block - 1, 1))
            axes.add_patch(Rectangle((c, row - 0.4), 1, 0.8, facecolor=colour, edgecolor="white"))
            axes.text(c + 0.5, row, c % block, ha="center", va="center", fontsize=11)
    passes = range(0, n, block)
    for i, left in enumerate(passes):
        width = min(block, n - left)
        axes.text(left + width / 2, -0.75, f"pass {i}", ha="center", va="center", fontsize=10.5)
        axes.add_patch(Rectangle((left, -0.45), width, rows - 0.1, facecolor="none", edgecolor=INK, linewidth=1.2))
    axes.set_yticks(range(rows), [f"row {row}: block {row}" for row in range(rows)])
    axes.set_xticks([c + 0.5 for c in range(n)], range(n))
    axes.tick_params(length=0)
    axes.set_xlim(-0.05, n + 0.05)
    axes.set_ylim(rows - 0.35, -1.05)
    axes.set_xlabel(f"column (in the cell: threadIdx.x of the thread that takes it; {block} threads per block)")
    axes.spines[:].set_visible(False)
    return figure


def tree_sum(values: Sequence[float], *, provenance: str = "") -> Picture:
    """Draw a sum in shared memory, in which half as many threads add in each step; len(values) is a power of two."""
    steps = [list(values)]
    half = len(values) // 2
    while half:
        old = steps[-1]
        steps.append([old[t] + old[t + half] if t < half else old[t] for t in range(len(values))])
        half //= 2
    figure = picture(9, 0.9 + 0.85 * len(steps), provenance)
    axes = figure.subplots()
    adding = len(values)
    for level, step in enumerate(steps):
        for t, value in enumerate(step):
            fresh = t < adding
            axes.add_patch(Rectangle((t + 0.1, level - 0.24), 0.8, 0.48, facecolor=SKY if fresh else "#EEEEEE"))
            ink = INK if fresh else GREY
            axes.text(t + 0.5, level, f"{value:g}", ha="center", va="center", fontsize=11.5, color=ink)
            for source in (t, t + adding) if level and fresh else ():
                axes.annotate("", (t + 0.5, level - 0.26), xytext=(source + 0.5, level - 0.74),
                              arrowprops={"arrowstyle": "->", "color": BLUE})  # fmt: skip
        axes.hlines(level + 0.36, 0, len(values), color=VERMILLION, linewidth=1.2, linestyle="--")
        axes.text(len(values) + 0.1, level + 0.36, "__syncthreads()", va="center", fontsize=10, color=VERMILLION)
        adding //= 2
    words = ["own values"] + [f"{2**k} threads add" if k else "1 thread adds" for k in reversed(range(len(steps) - 1))]
    axes.set_yticks(range(len(steps)), words)
    axes.set_xticks([t + 0.5 for t in range(len(values))], range(len(values)))
    axes.tick_params(length=0)
    axes.set_xlim(0, len(values) + 1.8)
    axes.set_ylim(len(steps) - 0.5, -0.4)
    axes.set_xlabel("thread t, and its element in shared memory", x=0.4)
    axes.spines[:].set_visible(False)
    return figure


def launches_by_size(sizes: Sequence[LaunchBytes], launch_us: float, gb_per_s: float, *, provenance: str = ""
                     ) -> Picture:  # fmt: skip
    """Draw, for all launches of a token, smallest first, the µs to move their bytes, beside the overhead of a launch.

    sizes      from `luce_edu.measure.launch_cost.count_launch_bytes`
    launch_us  the overhead of one launch
    gb_per_s   the bandwidth at which the bytes move
    """
    times = sorted(size.us(gb_per_s) for size in sizes for _ in range(size.launches))
    small = sum(time < launch_us for time in times)
    figure = picture(10.5, 4.2, provenance)
    axes = figure.subplots()
    # Points and no bars: a logarithmic axis has no zero for a bar to stand on.
    axes.plot(range(small), times[:small], "o", color=ORANGE, markersize=4)
    axes.plot(range(small, len(times)), times[small:], "s", color=BLUE, markersize=4)
    axes.axvline(small - 0.5, color=GREY, linewidth=0.8, linestyle=":")
    axes.axhline(launch_us, color=INK, linewidth=1.4, linestyle="--")
    axes.text(0.01 * len(times), 1.25 * launch_us, f"overhead of a launch: {launch_us:.2f} µs", va="bottom",
              fontsize=10.5)  # fmt: skip
    for size in sizes:
        if size.kernel == "rms_norm":
            first = times.index(size.us(gb_per_s))
            axes.annotate(f"rms_norm: {size.bytes:,} bytes", (first + 10, size.us(gb_per_s)), xytext=(0, 26),
                          textcoords="offset points", ha="center", fontsize=10,
                          arrowprops={"arrowstyle": "-", "color": GREY})  # fmt: skip
    axes.text(small / 2, 300, f"{small} launches: the overhead is longer", ha="center", fontsize=10.5)
    axes.text((small + len(times)) / 2, 300, f"{len(times) - small} launches: moving is longer", ha="center",
              fontsize=10.5)  # fmt: skip
    axes.set_yscale("log")
    ticks = [1e-4, 1e-3, 0.01, 0.1, 1, 10, 100]
    axes.set_yticks(ticks, [f"{tick:g}" if tick > 1e-4 else "0.0001" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(-4, len(times) + 4)
    axes.set_ylim(1e-4, 1200)
    axes.set_xlabel("launches of one token, in order of their bytes")
    axes.set_ylabel(f"moving the bytes at {gb_per_s:,} GB/s, µs")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def memory_levels(card: Card, *, provenance: str = "") -> Picture:
    """Draw a card from a thread to its DRAM, box in box, with the size of each memory and the latency of a load.

    Raises ValueError for a card that does not exist, such as the laptop, and for one without timing constants.
    """
    if card.registers_per_sm is None:
        raise ValueError(f"card: {card.name} does not exist, so its registers have no number; name a real card")
    clock = find_clock(card)
    figure = picture(10.5, 6.6, provenance)
    axes = figure.subplots()

    def box(left, bottom, width, height, fill, *, edge=GREY, line=1.0):
        axes.add_patch(Rectangle((left, bottom), width, height, facecolor=fill, edgecolor=edge, linewidth=line))

    def memory(left, bottom, width, fill, name, size, load=""):
        box(left, bottom, width, 6, fill)
        axes.text(left + 1.2, bottom + 3, f"{name}: {size}", va="center", fontsize=10.5)
        axes.text(left + width - 1.2, bottom + 3, load, va="center", ha="right", fontsize=10, color=INK)

    def cycles(latency: float) -> str:
        return f"a load takes {latency:.0f} cycles, {1e3 * latency / clock.clock_mhz:.0f} ns"

    box(0, 0, 100, 74, "white", edge=INK, line=1.5)
    axes.text(1.2, 71.5, f"{card.name}: {card.sm_count} SMs", va="center", fontsize=12, fontweight="bold")
    size = f"{_size(card.memory_bytes)}, {card.memory_gb_per_s:,.0f} GB/s"
    memory(1.5, 1.5, 97, "#F3C9AE", f"DRAM ({card.dram})", size, cycles(clock.dram_cycles))
    memory(1.5, 9, 97, "#F9E3B4", "L2", f"{_size(card.l2_bytes)}, shared by all SMs", cycles(clock.l2_latency))

    box(1.5, 17.5, 74, 51.5, "#F7F7F7", edge=INK)
    axes.text(2.7, 66.5, f"an SM: holds up to {card.threads_per_sm:,} threads ({card.warps_per_sm} warps) in up to "
              f"{card.blocks_per_sm} blocks", va="center", fontsize=10.5)  # fmt: skip
    memory(3, 19, 71, "#C5E4F7", "L1 and shared memory", _size(clock.l1_bytes),
           f"a load takes {clock.l1_latency:.0f} cycles, from shared memory {clock.shared_latency:.0f}")  # fmt: skip
    size = f"{_size(4 * card.registers_per_sm)}, {card.registers_per_sm:,} of 4 bytes"
    memory(3, 26.5, 71, "#BFE3D6", "registers", size, "no load needed")
    box(3, 34.5, 71, 29.5, "white", edge=INK)
    words = f"a block: up to {card.threads_per_block:,} threads and {_size(card.shared_per_block)} of shared memory"
    axes.text(4.2, 61.3, f"{words}; its threads meet at barriers", va="center", fontsize=10.5)
    for warp in range(4):
        bottom = 53.5 - 5.6 * warp
        for lane in range(WARP):
            chosen = warp == 0 and lane == 5
            box(4.5 + 1.42 * lane, bottom, 1.14, 4, VERMILLION if chosen else SKY, edge="white", line=0.4)
    axes.text(51.5, 55.5, f"a warp: {WARP} threads that run\neach instruction together", va="center", fontsize=10.5)
    axes.annotate(f"a thread: up to {MOST_REGISTERS} registers", (12.2, 53.6), xytext=(51.5, 47), va="center",
                  fontsize=10.5, arrowprops={"arrowstyle": "-", "color": VERMILLION})  # fmt: skip
    axes.text(51.5, 39.5, f"up to {card.threads_per_block // WARP} warps in a block", va="center", fontsize=10.5)

    across = math.ceil(math.sqrt(card.sm_count / 2))
    side = 21 / across
    for sm in range(1, card.sm_count):
        box(77.3 + side * ((sm - 1) % across), 61 - side * ((sm - 1) // across), 0.8 * side, 0.8 * side, "#D9D9D9",
            edge="white", line=0.3)  # fmt: skip
    axes.text(77.3, 66.5, f"{card.sm_count - 1} more SMs like it", va="center", fontsize=10.5)
    axes.set_xlim(-0.3, 100.3)
    axes.set_ylim(-0.5, 74.5)
    axes.set_axis_off()
    return figure


def _size(size: float) -> str:
    """Return bytes in the largest unit of 1,024 that leaves 1 or more."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:g} {unit}"
        size /= 1024
    return f"{size:g} GiB"
