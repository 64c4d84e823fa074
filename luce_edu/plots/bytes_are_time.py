"""The pictures of notebook 05: sectors that a warp loads, the roofline, loads in flight, banks of shared memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from matplotlib.ticker import StrMethodFormatter

from luce_edu.measure.probes import BANKS, Loads
from luce_edu.plots.style import BLUE, GREEN, GREY, INK, ORANGE, SKY, VERMILLION, Picture, label_rows, picture


def warp_loads(patterns: Mapping[str, tuple[np.ndarray, int]], *, row_bytes: int, provenance: str = "") -> Picture:
    """Draw the bytes of a row-major matrix that the first loads of one warp touch, in their sectors of 32 bytes.

    patterns   by name: (first byte of each lane's load [loads, lanes], at most three loads; bytes per lane). The first
               pattern is drawn tall on the left, the others beside it.
    row_bytes  bytes per row; ValueError unless it is a multiple of 32
    """
    if row_bytes % 32:
        raise ValueError(f"row_bytes: expected whole sectors of 32 bytes, got {row_bytes}")
    figure = picture(10.5, 5.4, provenance)
    grid = figure.add_gridspec(len(patterns) - 1, 2, width_ratios=(1, 2))
    places = [grid[:, 0], *(grid[i, 1] for i in range(len(patterns) - 1))]
    for place, (name, (starts, size)) in zip(places, patterns.items(), strict=True):
        axes = figure.add_subplot(place)
        lanes, sectors = starts.shape[1], len(np.unique(starts[0] // 32))
        axes.set_title(f"{name}: {size * lanes} bytes requested,\n{sectors} sectors moved, {32 * sectors:,} bytes",
                       loc="left", fontsize=11)  # fmt: skip
        _warp_panel(axes, starts, size, row_bytes)
    words = ["sector of 32 bytes that moves", *(f"{which} load" for which in ("first", "second", "third"))]
    figure.legend([Rectangle((0, 0), 1, 1, facecolor=colour) for colour in ("#E4E4E4", BLUE, VERMILLION, GREEN)], words,
                  loc="outside upper left", ncols=4, frameon=False)  # fmt: skip
    return figure


def _warp_panel(axes: Axes, starts: np.ndarray, size: int, row_bytes: int) -> None:
    """Draw the rows that the loads of a warp touch: sectors, and in them the bytes of each lane."""
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
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("byte within the row")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def roofline(
    gpus: Mapping[str, tuple[float, float]], intensities: Mapping[str, float], *, provenance: str = ""
) -> Picture:
    """Draw the rooflines of GPUs: the attainable Tflop/s by arithmetic intensity, with some pieces of work marked.

    gpus         by name: (bandwidth in GB/s, arithmetic in Tflop/s)
    intensities  by name of the work: operations per byte moved
    """
    figure = picture(8, 4.6, provenance)
    axes = figure.subplots()
    most = 3 * max(intensities.values())
    for (gpu, (gb_per_s, tflops)), colour in zip(gpus.items(), (BLUE, VERMILLION, GREEN), strict=False):
        corner = 1e3 * tflops / gb_per_s
        axes.plot([0.5, corner, most], [0.5e-3 * gb_per_s, tflops, tflops], color=colour, linewidth=2,
                  label=f"{gpu}: {gb_per_s:,} GB/s, {tflops:g} Tflop/s")  # fmt: skip
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
    axes.set_xlabel("arithmetic intensity, operations per byte moved")
    axes.set_ylabel("attainable Tflop/s")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def loads_over_time(runs: Mapping[str, Loads], *, provenance: str = "") -> Picture:
    """Draw when each load of a warp is issued and when its value is used, run by run, and below the bytes in flight.

    runs  by name, on one card, from `luce_edu.measure.probes.time_loads`
    Raises ValueError for runs on several cards, or none.
    """
    if len({run.card for run in runs.values()}) != 1:
        raise ValueError(f"runs: expected loads on one card, got {[run.card for run in runs.values()]}")
    figure = picture(10.5, 1.6 + 1.75 * len(runs) + 1.3, provenance)
    *places, below = figure.subplots(len(runs) + 1, 1, sharex=True, height_ratios=[1.75] * len(runs) + [1.3])
    last = max(max(run.end_ns) for run in runs.values())
    for axes, (name, run), colour, line in zip(places, runs.items(), (BLUE, VERMILLION), ("-", "--"), strict=True):
        count = len(run.begin_ns)
        widths = [end - begin for begin, end in zip(run.begin_ns, run.end_ns, strict=True)]
        axes.barh(range(count), widths, left=run.begin_ns, height=0.7, color=colour)
        label_rows(axes, [f"load {i}" for i in range(count)])
        axes.set_title(f"{name}: {count * run.bytes_each:,} bytes in {run.total_ns:,.0f} ns, {run.gb_per_s:.1f} GB/s",
                       loc="left", fontsize=11)  # fmt: skip
        times, flying = bytes_in_flight(run)
        below.step(times, flying, where="post", color=colour, linestyle=line, linewidth=2, label=name)
    below.set_ylabel("bytes in flight")
    below.set_ylim(bottom=0)
    below.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    below.set_xlim(0, 1.03 * last)
    below.set_xlabel("ns from the start of the warp")
    below.legend(frameon=False, loc="upper right", ncols=len(runs))
    below.spines[["top", "right"]].set_visible(False)
    return figure


def bytes_in_flight(run: Loads) -> tuple[list[float], list[int]]:
    """Return the times at which the bytes in flight of a warp change, and how many there are from then on."""
    changes = [(begin, run.bytes_each) for begin in run.begin_ns] + [(end, -run.bytes_each) for end in run.end_ns]
    times, steps = zip(*sorted(changes), strict=True)
    return list(times), np.cumsum(steps).tolist()


def bandwidth_by_warps(
    needed: float, patterns: Mapping[str, int], resident: Mapping[str, int], *, most_warps: int, provenance: str = ""
) -> Picture:
    """Draw the share of the bandwidth that the warps of an SM can use at most, by Little's law.

    needed      bytes that an SM must have in flight for the whole of its share
    patterns    by name: bytes that one warp has in flight
    resident    by kernel: warps of it that an SM holds, drawn as dotted lines
    most_warps  that an SM holds of any kernel
    """
    figure = picture(9, 4.4, provenance)
    axes = figure.subplots()
    warps = np.linspace(0, most_warps, 32 * most_warps + 1)
    styles = zip((VERMILLION, ORANGE, BLUE, GREEN), ("-", "--", "-.", ":"), strict=True)
    for (name, flying), (colour, line) in zip(patterns.items(), styles, strict=False):
        enough = int(np.ceil(needed / flying))
        words = f"{name}: {enough} warps" if enough <= most_warps else f"{name}: {enough} warps, more than fit"
        axes.plot(warps, np.minimum(100, 100 * warps * flying / needed), color=colour, linestyle=line, linewidth=2.2,
                  label=words)  # fmt: skip
    for kernel, count in resident.items():
        axes.axvline(count, color=GREY, linewidth=0.9, linestyle=":")
        axes.annotate(kernel, (count, 0), xytext=(-3, 6), textcoords="offset points", rotation=90, ha="right",
                      va="bottom", color=GREY, fontsize=10,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    axes.set_xlim(0, 1.01 * most_warps)
    axes.set_ylim(0, 104)
    axes.set_xticks(range(0, most_warps + 1, 8))
    axes.set_xlabel("warps on an SM")
    axes.set_ylabel("share of the bandwidth, % at most")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, alignment="left",
                title="bytes of a lane's load x loads at once: warps for 100 %")  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def shared_banks(orders: Mapping[str, tuple[Sequence[int], int]], *, provenance: str = "") -> Picture:
    """Draw which words of shared memory a warp's 16-byte load takes, a column per bank, and how many each bank gives.

    orders  by name: the first of the four words that each of 32 lanes reads, and the conflicts that were counted
    Raises ValueError where the words of the fullest bank do not explain that count.
    """
    figure = picture(10.5, 3.9 + 0.9 * len(orders), provenance)
    grid = figure.add_gridspec(2, len(orders), height_ratios=(2.6, 1))
    colours = LinearSegmentedColormap.from_list("lanes", [SKY, "#FFFFFF", ORANGE])
    for column, (name, (first, counted)) in enumerate(orders.items()):
        words = np.asarray(first)[:, None] + np.arange(4)  # [32 lanes, 4]
        per_bank = np.bincount(words.ravel() % BANKS, minlength=BANKS)
        turns, fewest = int(per_bank.max()), -(-words.size // BANKS)
        if turns - fewest != counted:
            raise ValueError(
                f"{name}: a bank gives {turns} words, {fewest} would do, and {counted} conflicts were counted"
            )
        axes, bars = (figure.add_subplot(grid[row, column]) for row in range(2))
        for lane, own in enumerate(words):
            for word in own:
                row, bank = divmod(int(word), BANKS)
                axes.add_patch(Rectangle((bank - 0.5, row - 0.5), 1, 1, facecolor=colours(lane % 8 / 7), edgecolor=GREY,
                                         linewidth=0.5))  # fmt: skip
            row, bank = divmod(int(own[0]), BANKS)
            word = f"lane {lane}" if lane < 8 else str(lane)
            axes.text(bank + 1.5, row, word, ha="center", va="center", fontsize=8.5)
        axes.set_title(f"{name}: {turns} turns, {counted} conflicts counted", loc="left", fontsize=11)
        axes.set_xlim(-0.5, BANKS - 0.5)
        axes.set_ylim(7.5, -0.5)
        axes.set_yticks(range(0, 8, 2), [f"word {BANKS * row}" for row in range(0, 8, 2)])
        bars.bar(range(BANKS), per_bank, color=[VERMILLION if n > fewest else BLUE for n in per_bank])
        bars.axhline(fewest, color=INK, linewidth=1, linestyle="--")
        bars.set_xlim(-0.5, BANKS - 0.5)
        bars.set_ylim(0, 9)
        bars.set_yticks([0, 4, 8])
        bars.set_xlabel("bank")
        bars.set_ylabel("words")
        for part in (axes, bars):
            part.set_xticks(range(0, BANKS, 4))
            part.tick_params(length=0)
            part.spines[["top", "right"]].set_visible(False)
    return figure
