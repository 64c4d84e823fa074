"""The pictures of the notebooks and the README. Each states in its caption where its numbers come from.

Those of records are in luce_edu/measure/figures.py; `luce-edu figures` writes them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from luce_edu.backends.ledger import Launch
from luce_edu.config import ModelConfig
from luce_edu.measure.dvfs import StageCurve
from luce_edu.measure.floor import DATASHEET_GB_PER_S, kv_bytes_per_token, recurrent_state_bytes
from luce_edu.measure.launch_cost import LaunchBytes
from luce_edu.measure.launches import Count
from luce_edu.measure.power_model import Baseline, Fit, Point, Sweep, expected, sweet_spot
from luce_edu.measure.published import Published, bytes_per_token
from luce_edu.overlap import Span

PROVENANCE = ("measured", "recorded", "published", "modelled")

# The colours of Okabe and Ito, which people with colour-blindness can tell apart.
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
INK, GREY = "#000000", "#595959"
STAGE_COLOURS = {"eager": ORANGE, "per_op": SKY, "per_layer": BLUE, "graph": PURPLE, "megakernel": GREEN,
                 "streaming": VERMILLION}  # fmt: skip
STAGE_WORDS = {
    "eager": "plain PyTorch",
    "per_op": "a kernel per operation",
    "per_layer": "five kernels a layer",
    "graph": "the same, replayed as a graph",
    "megakernel": "one kernel a token",
    "streaming": "one kernel for many tokens",
}


class Picture(Figure):
    """A Figure that a notebook shows by naming it, without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=120)
        return file.getvalue()


def ladder(counts: Mapping[str, Count], results: Sequence[Published], *, provenance: str = "") -> Picture:
    """Launches a token, stage by stage, beside how much of a GPU's bandwidth published systems reach.

    counts      from `luce_edu.measure.launches.count_launches`
    provenance  goes into the caption; ValueError unless it says measured, recorded, published or modelled
    """
    figure = _picture(10.5, 4.9, provenance)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    stages = list(counts)
    launches = [counts[stage].launches for stage in stages]
    bars = left.barh(range(len(stages)), launches, color=[STAGE_COLOURS[stage] for stage in stages], height=0.62)
    words = [f"{count.launches:,}" for count in counts.values()]
    words = [
        f"{w}   and {c.barriers} grid barriers" if c.barriers else w
        for w, c in zip(words, counts.values(), strict=True)
    ]
    left.bar_label(bars, words, padding=5, fontsize=10.5)
    _rows(left, [f"{stage}\n{STAGE_WORDS[stage]}" for stage in stages])
    left.set_xlim(0, 1.2 * max(launches))
    left.set_xlabel("launches for one token (eager: PyTorch operations)")
    left.set_title("What this course takes away", loc="left", fontweight="bold", fontsize=12)

    names = [f"{r.system}, {r.tokens_per_s:,.0f} tok/s\n{r.model}, {r.gpu}" for r in results]
    colours = [GREEN if "megakernel" in r.system else PURPLE if "graph" in r.system else ORANGE for r in results]
    bars = right.barh(range(len(results)), [100 * r.share for r in results], color=colours, height=0.62)
    right.bar_label(bars, [f"{100 * r.share:.0f} %" for r in results], padding=5, fontsize=10.5)
    _rows(right, names)
    right.axvline(100, color=INK, linewidth=1.2, linestyle="--")
    right.text(98.5, -0.66, "the floor: every byte once", ha="right", va="center", fontsize=9.5)
    right.set_ylim(len(results) - 0.5, -1)
    right.set_xlim(0, 104)
    right.set_xlabel("share of the datasheet bandwidth, %")
    right.set_title("How close others came", loc="left", fontweight="bold", fontsize=12)
    return figure


def published_against_floor(results: Sequence[Published], *, provenance: str = "") -> Picture:
    """Published tokens per second of one model on one GPU, and the ceiling that its bandwidth sets.

    ValueError for results of several models or GPUs, and for a provenance that says nothing.
    """
    cases = {(result.model, result.gpu) for result in results}
    if len(cases) != 1:
        raise ValueError(f"results: expected one model on one GPU, got {sorted(cases) or 'none'}")
    ((model, gpu),) = cases
    ceiling = DATASHEET_GB_PER_S[gpu] * 1e9 / bytes_per_token(model)
    figure = _picture(8, 3.4, provenance)
    axes = figure.subplots()
    rates = [result.tokens_per_s for result in results]
    axes.barh(range(len(results)), ceiling, color="#E4E4E4", height=0.62)
    colours = [GREEN if "megakernel" in result.system else ORANGE for result in results]
    bars = axes.barh(range(len(results)), rates, color=colours, height=0.62)
    axes.bar_label(bars, [f"{r.tokens_per_s:.0f}  ({100 * r.share:.0f} %)" for r in results], padding=5)
    _rows(axes, [result.system for result in results])
    axes.axvline(ceiling, color=INK, linewidth=1.2, linestyle="--")
    axes.text(ceiling * 0.985, -0.66, f"ceiling: {ceiling:.0f} tok/s", ha="right", va="center")
    axes.set_ylim(len(results) - 0.5, -1)
    axes.set_xlim(0, 1.05 * ceiling)
    axes.set_xlabel(f"tokens per second, {model} on an {gpu}; in grey: not reached")
    return figure


def state_against_kv(config: ModelConfig, *, max_tokens: int = 262_144, provenance: str = "") -> Picture:
    """Megabytes that DeltaNet's state and the KV cache take, by context length, and where the two meet."""
    state, per_token = recurrent_state_bytes(config), kv_bytes_per_token(config)
    crossing = state / per_token
    tokens = [2**i for i in range(max_tokens.bit_length())]
    layers, attention = config.num_hidden_layers, len(config.attention_layers)
    were_all_attention = [layers / attention * per_token * n / 1e6 for n in tokens]
    figure = _picture(8, 4.4, provenance)
    axes = figure.subplots()
    axes.plot(tokens, were_all_attention, color=VERMILLION, linestyle=":",
              label=f"KV cache, were all {layers} layers attention")  # fmt: skip
    axes.plot(tokens, [per_token * n / 1e6 for n in tokens], color=BLUE, linestyle="--",
              label=f"KV cache of {attention} attention layers")  # fmt: skip
    axes.plot(tokens, [state / 1e6] * len(tokens), color=GREEN, linewidth=2.5,
              label=f"state of {layers - attention} DeltaNet layers")  # fmt: skip
    axes.plot(crossing, state / 1e6, "o", color=INK)
    axes.annotate(f"{crossing:,.0f} tokens", (crossing, state / 1e6), xytext=(8, -16), textcoords="offset points")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [2**i for i in range(0, max_tokens.bit_length(), 3)]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_yticks([0.01, 0.1, 1, 10, 100, 1000, 10_000], ["0.01", "0.1", "1", "10", "100", "1,000", "10,000"])
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("memory, MB")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def state_update(before, written, after, *, names: Sequence[str], provenance: str = "") -> Picture:
    """One update of a state as three annotated heatmaps: what was there, what is written, what is there then.

    before, written, after  matrices [K, V], as nested lists, arrays or CPU tensors
    names                   what stands above the three
    ValueError unless the third is the sum of the first two.
    """
    matrices = [np.asarray(matrix, dtype=float) for matrix in (before, written, after)]
    rows, columns = matrices[0].shape
    if any(matrix.shape != (rows, columns) for matrix in matrices):
        raise ValueError(f"expected three matrices of one shape, got {[matrix.shape for matrix in matrices]}")
    if not np.allclose(matrices[0] + matrices[1], matrices[2], atol=1e-4):
        raise ValueError("after: expected the sum of before and written")
    figure = _picture(3.2 + 1.8 * columns, 1.5 + 0.5 * rows, provenance)
    largest = max(np.abs(matrix).max() for matrix in matrices) or 1
    colours = LinearSegmentedColormap.from_list("signed", [VERMILLION, "white", BLUE])
    panels = zip(figure.subplots(1, 3), matrices, names, ("", "+", "="), strict=True)
    for axes, matrix, name, sign in panels:
        axes.imshow(matrix, cmap=colours, vmin=-1.3 * largest, vmax=1.3 * largest, aspect="auto")
        for (i, j), value in np.ndenumerate(matrix):
            axes.text(j, i, _signed(value), ha="center", va="center", fontsize=11)
        axes.set_title(name, fontsize=11)
        axes.set_xticks(range(columns))
        axes.set_yticks(range(rows))
        axes.set_xlabel("value dimension")
        axes.tick_params(length=0)
        axes.text(-0.2, 0.5, sign, transform=axes.transAxes, fontsize=20, ha="center", va="center")
        _grid(axes, rows, columns)
    figure.axes[0].set_ylabel("key dimension")
    return figure


def answers_by_write(answers: Mapping[str, Sequence[float]], truth: float, *, provenance: str = "") -> Picture:
    """What a memory answers to one key each time the same value has been written under it, rule by rule.

    answers  by rule, an answer after each write
    truth    the value that was written each time
    """
    figure = _picture(8, 3.4, provenance)
    axes = figure.subplots()
    writes = max(map(len, answers.values()))
    axes.hlines(truth, 0.7, writes, color=INK, linewidth=1.2, linestyle="--")
    styles = zip((VERMILLION, GREEN, BLUE, PURPLE), "s^oD", strict=True)
    for (name, values), (colour, marker) in zip(answers.items(), styles, strict=False):
        axes.plot(range(1, len(values) + 1), values, color=colour, marker=marker)
        axes.annotate(f"{values[-1]:.1f}  {name}", (len(values), values[-1]), xytext=(10, 0), va="center",
                      textcoords="offset points", color=colour)  # fmt: skip
    axes.set_xlim(0.7, 1.5 * writes)
    axes.set_xticks(range(1, writes + 1))
    axes.set_ylim(0, 1.15 * max(map(max, answers.values())))
    axes.set_xlabel("times written", x=0.35)
    axes.set_ylabel("answer to k; dashed: v")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def conv_windows(windows, *, provenance: str = "") -> Picture:
    """Which inputs of one channel each token of a causal convolution sees, and which of them the state keeps.

    windows  [T, kernel], oldest input first, as nested lists, an array or a CPU tensor; zeros before the first token
    """
    windows = np.asarray(windows, dtype=float)
    tokens, kernel = windows.shape
    before = kernel - 1
    figure = _picture(8, 1.7 + 0.44 * tokens, provenance)
    axes = figure.subplots()
    for t, window in enumerate(windows):
        for j, value in enumerate(window):
            colour = "#E4E4E4" if j == 0 else SKY
            axes.add_patch(Rectangle((t + j - before - 0.5, t - 0.42), 1, 0.84, facecolor=colour, edgecolor="white"))
            axes.text(t + j - before, t, f"{value:g}", ha="center", va="center", fontsize=11)
        axes.add_patch(Rectangle((t - 0.5, t - 0.42), 1, 0.84, facecolor="none", edgecolor=INK, linewidth=1.6))
    axes.axvline(-0.5, color=INK, linewidth=1, linestyle="--")
    axes.set_xlim(-before - 0.6, tokens - 0.4)
    axes.set_ylim(tokens - 0.4, -0.6)
    axes.set_xticks(range(-before, tokens))
    axes.set_yticks(range(tokens), [f"token {t}" for t in range(tokens)])
    axes.tick_params(length=0)
    axes.set_xlabel("position of the input; left of the dashed line nothing has come yet, and zeros stand in")
    axes.legend(
        [Rectangle((0, 0), 1, 1, facecolor="#E4E4E4"), Rectangle((0, 0), 1, 1, facecolor=SKY),
         Rectangle((0, 0), 1, 1, facecolor="none", edgecolor=INK, linewidth=1.6)],
        ["seen for the last time", "seen, and kept in conv_state", "the token's own input"],
        frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 1),
    )  # fmt: skip
    axes.spines[:].set_visible(False)
    return figure


def error_by_part(
    errors: Mapping[str, Mapping[str, float]], *, yardstick: str = "eager", limit: float, provenance: str = ""
) -> Picture:
    """Each program's error against the reference, part by part on a log axis, and where a check refuses it.

    errors     {program: {part: error}}, every program with the same parts; the layers are joined by a line
    yardstick  the program whose error times `limit` is the lower edge of what is refused
    An error of 0 stands at the lower edge of the picture, one that is not finite at the upper.
    ValueError unless all programs have the yardstick's parts.
    """
    parts = list(errors[yardstick])
    if any(list(of_program) != parts for of_program in errors.values()):
        raise ValueError("errors: expected the same parts of every program, in the same order")
    figure = _picture(9, 4.6, provenance)
    axes = figure.subplots()
    finite = [e for of_program in errors.values() for e in of_program.values() if np.isfinite(e) and e > 0]
    low, high = 10 ** np.floor(np.log10(min(finite))) / 3, 30 * max(finite)
    at = {program: [_clamped(e, low, high) for e in of_program.values()] for program, of_program in errors.items()}
    joined = [i for i, part in enumerate(parts) if part.startswith("layer")]
    border = [_clamped(limit * errors[yardstick][part], low, high) for part in parts]
    axes.fill_between(range(len(parts)), border, high, step="mid", color=VERMILLION, alpha=0.09, linewidth=0)
    axes.set_title(f"shaded: refused, more than {limit} times the error of {yardstick}", loc="right", fontsize=10)
    spare = zip((VERMILLION, PURPLE, GREEN, INK), "sDv^", strict=True)
    for program, values in at.items():
        colour, marker = (STAGE_COLOURS[program], "o") if program in STAGE_COLOURS else next(spare)
        axes.plot(joined, [values[i] for i in joined], color=colour, linewidth=1.6)
        axes.plot(range(len(parts)), values, marker, color=colour, markersize=6, label=program)
    for words, found in (("0", lambda e: e == 0), ("not finite", lambda e: not np.isfinite(e))):
        places = [(i, e) for of_program in errors.values() for i, e in enumerate(of_program.values()) if found(e)]
        if places:  # once is enough: all of them stand on one line
            i, error = min(places)
            axes.annotate(words, (i, _clamped(error, low, high)), xytext=(-9, 0), textcoords="offset points",
                          ha="right", va="center", fontsize=9.5)  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(low / 1.6, high * 1.6)
    axes.set_xlim(-0.6, len(parts) - 0.4)
    axes.set_xticks(range(len(parts)), [part.replace("_", "\n") for part in parts], rotation=45, ha="right",
                    rotation_mode="anchor", fontsize=9.5)  # fmt: skip
    axes.set_ylabel("error, ‖x − r‖ / ‖r‖")
    axes.grid(alpha=0.25, axis="y")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _clamped(error: float, low: float, high: float) -> float:
    return high if not np.isfinite(error) else min(max(error, low), high)


def margins_against_slack(margins, slacks, same, *, provenance: str = "") -> Picture:
    """How far the reference's first choice leads its second, token by token, against what bf16 may make up.

    margins, slacks  one for each token, in logits
    same             whether bf16 chose as the reference did
    """
    margins, slacks, same = (np.asarray(values) for values in (margins, slacks, same))
    decided = margins > slacks
    figure = _picture(9, 3.9, provenance)
    axes = figure.subplots()
    tokens = np.arange(len(margins))
    low = min(margins[margins > 0].min(initial=1), slacks[slacks > 0].min(initial=1)) / 3
    axes.bar(tokens, slacks, width=0.8, color="#DDDDDD", label="as far as bf16 may move two logits together")
    groups = (
        (decided & same, BLUE, "o", "decided, and bf16 chose the same"),
        (~decided & same, ORANGE, "D", "not decided, bf16 chose the same"),
        (~decided & ~same, VERMILLION, "X", "not decided, bf16 chose another"),
        (decided & ~same, INK, "v", "decided, and bf16 chose another"),
    )
    for chosen, colour, marker, words in groups:
        if chosen.any():
            axes.plot(tokens[chosen], np.maximum(margins[chosen], low), marker, color=colour, markersize=7, label=words)
    axes.set_yscale("log")
    axes.set_ylim(low, 6 * max(margins.max(), slacks.max()))
    axes.set_xlim(-0.8, len(tokens) - 0.2)
    axes.set_xlabel("token")
    axes.set_ylabel("lead of the first choice, logits")
    axes.legend(frameon=False, loc="upper left", fontsize=9.5, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def grid_over_array(n: int, block: int, *, provenance: str = "") -> Picture:
    """Which thread of which block gets which of n elements, where thread i of the whole grid takes element i.

    block  threads a block; as many blocks as cover n, so the last one may have threads without an element
    """
    grid = -(-n // block)
    figure = _picture(10.5, 2.9, provenance)
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
    """Which thread gets which element of [rows, n], one block a row: its threads go over the row side by side."""
    figure = _picture(10.5, 1.6 + 0.62 * rows, provenance)
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
    axes.set_xlabel(f"column; in the cell: threadIdx.x of the thread that takes it, with {block} threads a block")
    axes.spines[:].set_visible(False)
    return figure


def tree_sum(values: Sequence[float], *, provenance: str = "") -> Picture:
    """A sum in shared memory, half as many threads adding in each step; as many values as a power of two."""
    steps = [list(values)]
    half = len(values) // 2
    while half:
        old = steps[-1]
        steps.append([old[t] + old[t + half] if t < half else old[t] for t in range(len(values))])
        half //= 2
    figure = _picture(9, 0.9 + 0.85 * len(steps), provenance)
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
    words = ["each its own"] + [f"{2**k} add" if k else "1 adds" for k in reversed(range(len(steps) - 1))]
    axes.set_yticks(range(len(steps)), words)
    axes.set_xticks([t + 0.5 for t in range(len(values))], range(len(values)))
    axes.tick_params(length=0)
    axes.set_xlim(0, len(values) + 1.8)
    axes.set_ylim(len(steps) - 0.5, -0.4)
    axes.set_xlabel("thread t, and its place in shared memory", x=0.4)
    axes.spines[:].set_visible(False)
    return figure


def launches_by_size(sizes: Sequence[LaunchBytes], launch_us: float, gb_per_s: float, *, provenance: str = ""
                     ) -> Picture:  # fmt: skip
    """All launches of a token, smallest first: the time of their bytes, against what it costs to start one.

    sizes      from `luce_edu.measure.launch_cost.count_launch_bytes`
    launch_us  what one launch costs;  gb_per_s  the bandwidth that gives the bytes a time
    """
    times = sorted(size.us(gb_per_s) for size in sizes for _ in range(size.launches))
    small = sum(time < launch_us for time in times)
    figure = _picture(10.5, 4.2, provenance)
    axes = figure.subplots()
    edges = range(len(times) + 1)
    axes.stairs(times[:small], edges[: small + 1], baseline=1e-4, fill=True, color=ORANGE)
    axes.stairs(times[small:], edges[small:], baseline=1e-4, fill=True, color=BLUE)
    axes.axhline(launch_us, color=INK, linewidth=1.4, linestyle="--")
    axes.text(4, 1.25 * launch_us, f"starting it: {launch_us:.2f} µs", va="bottom", fontsize=10.5)
    for size in sizes:
        if size.kernel == "rms_norm":
            first = times.index(size.us(gb_per_s))
            axes.annotate(f"rms_norm: {size.bytes:,} bytes", (first + 10, size.us(gb_per_s)), xytext=(0, 26),
                          textcoords="offset points", ha="center", fontsize=10,
                          arrowprops={"arrowstyle": "-", "color": GREY})  # fmt: skip
    axes.text(small / 2, 2e-4, f"{small} launches: starting takes longer", ha="center", fontsize=10.5)
    axes.text((small + len(times)) / 2, 2e-4, f"{len(times) - small}: moving does", ha="center", color="white",
              fontsize=10.5)  # fmt: skip
    axes.set_yscale("log")
    ticks = [1e-4, 1e-3, 0.01, 0.1, 1, 10, 100]
    axes.set_yticks(ticks, [f"{tick:g}" if tick > 1e-4 else "0.0001" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0, len(times))
    axes.set_ylim(1e-4, 1200)
    axes.set_xlabel("launches of one token, those with the fewest bytes first")
    axes.set_ylabel(f"time of their bytes at {gb_per_s:,} GB/s, µs")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


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
    figure = _picture(10.5, 2.4 + 0.27 * len(buffers), provenance)
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
    figure = _picture(10.5, 6.4, provenance)
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


def warp_loads(patterns: Mapping[str, tuple[np.ndarray, int]], *, row_bytes: int, provenance: str = "") -> Picture:
    """Which bytes of a row-major matrix one warp's first loads touch, and in which sectors of 32 bytes.

    patterns   by name: the byte at which each lane's load begins [loads, lanes], up to three loads, and the bytes a
               lane loads. The first pattern stands tall on the left, the others beside it.
    row_bytes  of the matrix: whole sectors, or ValueError
    """
    if row_bytes % 32:
        raise ValueError(f"row_bytes: expected whole sectors of 32 bytes, got {row_bytes}")
    figure = _picture(10.5, 5.4, provenance)
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
    figure = _picture(8, 4.6, provenance)
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


def intensity_by_tokens(
    intensities: Mapping[int, float], corners: Mapping[str, float], *, mark: Sequence[int] = (), provenance: str = ""
) -> Picture:
    """Arithmetic intensity by the number of tokens that go through together, and where each GPU's roofline bends.

    intensities  operations for each byte that moves, by every number of tokens from 1 on
    corners      by GPU: operations that it can do while a byte arrives; above, arithmetic sets the pace
    mark         numbers of tokens to point out, each a key of intensities
    """
    figure = _picture(8, 4.4, provenance)
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
    _plain_axis(axes.xaxis)
    _plain_axis(axes.yaxis)
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
    figure = _picture(9.5, 5.2, provenance)
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
    figure = _picture(8, 4.2, provenance)
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
    _plain_axis(axes.xaxis)
    _plain_axis(axes.yaxis)
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
    figure = _picture(9, 1.9 + 0.42 * len(rates), provenance)
    axes = figure.subplots()
    values = [rate for _, rate in rates]
    systems = [name.partition("\n")[0] for name, _ in rates]
    colours = [GREEN if "megakernel" in name else ORANGE if name == "llama.cpp" else SKY for name in systems]
    bars = axes.barh(range(len(rates)), values, color=colours, height=0.62)
    axes.bar_label(bars, [f"{rate:,.0f}  ({100 * rate / ceiling:.0f} %)" for rate in values], padding=5)
    _rows(axes, [name for name, _ in rates])
    axes.axvline(ceiling, color=INK, linewidth=1.2, linestyle="--")
    axes.text(ceiling * 0.985, -0.66, f"ceiling: {ceiling:,.0f}", ha="right", va="center")
    axes.set_ylim(len(rates) - 0.5, -1)
    axes.set_xlim(0, 1.05 * ceiling)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("tokens per second, a prompt of 520; in brackets: share of the ceiling")
    return figure


def shown_by_steps(shown: Mapping[str, Mapping[int, float]], truth_us: float, *, provenance: str = "") -> Picture:
    """What some ways of timing show for one step, by how many steps they time, and what a step takes in truth.

    shown  by way of timing: microseconds a step, by the number of steps
    """
    figure = _picture(8, 4.2, provenance)
    axes = figure.subplots()
    axes.axhline(truth_us, color=INK, linewidth=1.2, linestyle="--", label=f"the truth: {truth_us:,.0f} µs")
    for (way, points), colour, marker in zip(shown.items(), (VERMILLION, ORANGE, BLUE), "so^", strict=False):
        axes.plot(list(points), list(points.values()), color=colour, marker=marker, markersize=5, label=way)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_axis(axes.xaxis)
    _plain_axis(axes.yaxis)
    axes.set_xlabel("steps timed, one after the other")
    axes.set_ylabel("µs a step, as shown")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def spread(times_us: Sequence[float], *, provenance: str = "") -> Picture:
    """How often a piece of work took how long, and where the numbers stand that one might report of it."""
    times = np.sort(np.asarray(times_us, dtype=float))
    q1, median, q3 = np.quantile(times, (0.25, 0.5, 0.75))
    figure = _picture(8, 3.8, provenance)
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
    _plain_axis(axes.xaxis)
    axes.set_yscale("log")
    axes.set_ylim(0.5, None)
    _plain_axis(axes.yaxis)
    axes.set_xlabel("µs")
    axes.set_ylabel(f"how many of {len(times):,}")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def energy_windows(
    windows: Sequence[tuple[float, float]], *, tick: float, least: float, provenance: str = ""
) -> Picture:
    """How far the joules of a window are off, by its length, for a counter that moves every `tick` seconds.

    windows  (seconds, joules shown over true joules)
    least    the shortest window, in seconds, that this project takes
    """
    figure = _picture(8, 4.2, provenance)
    axes = figure.subplots()
    seconds, ratios = np.array(windows).T
    axes.axvspan(least, 1.3 * seconds.max(), color=GREEN, alpha=0.12, linewidth=0)
    axes.plot(seconds, 100 * (ratios - 1), "o", color=BLUE, markersize=3.5, alpha=0.5, markeredgewidth=0)
    axes.axhline(0, color=INK, linewidth=1)
    axes.axvline(tick, color=VERMILLION, linewidth=1.2, linestyle="--")
    top = 2 * max(100 * (ratios - 1).max(), 100)
    axes.annotate(f"one tick: {1e3 * tick:.0f} ms", (tick, top), xytext=(5, -4), textcoords="offset points", va="top",
                  color=VERMILLION)  # fmt: skip
    axes.annotate(f"{least:g} s and more", (least, top), xytext=(5, -4), textcoords="offset points", va="top",
                  color=GREEN)  # fmt: skip
    axes.annotate("0 J: the counter stood still", (tick, -100), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_xscale("log")
    axes.set_xlim(seconds.min() / 1.3, 1.3 * seconds.max())
    _plain_axis(axes.xaxis)
    axes.set_yscale("symlog", linthresh=3)  # so that 3 % are seen beside 300
    ticks = [tick for tick in (-100, -30, -10, -3, 0, 3, 10, 30, 100, 300, 1000, 3000) if tick < top]
    axes.set_yticks(ticks, [f"{tick:+,}".replace("-", "\N{MINUS SIGN}") if tick else "0" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(-220, top)
    axes.set_xlabel("length of the window, s")
    axes.set_ylabel("joules shown, % off the truth")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def mistakes(factors: Mapping[str, Mapping[str, float]], *, provenance: str = "") -> Picture:
    """By how much some mistakes make a system look faster than it is, a row for each.

    factors  by mistake, then by where the size comes from: shown speed over true speed; below 1 it looks slower
    """
    styles = {"modelled": ("s", BLUE, "simulated, with a known truth"), "measured": ("o", ORANGE, "measured here"),
              "published": ("D", GREEN, "published, on a GPU")}  # fmt: skip
    figure = _picture(8, 1.7 + 0.46 * len(factors), provenance)
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
    _rows(axes, list(factors))
    axes.set_xscale("log")
    sizes = [factor for of_mistake in factors.values() for factor in of_mistake.values()]
    axes.set_xlim(min(0.5, 0.4 * min(sizes)), max(2, 2 * max(sizes)))  # room for the words beside them
    _plain_axis(axes.xaxis)
    axes.set_xlabel("speed shown, as many times the true one")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.3, 1), ncols=3)
    return figure


def _plain_axis(axis) -> None:
    """Numbers on a logarithmic axis written out: 1, 2, 5, and more of them where it is short."""
    low, high = axis.get_view_interval()
    digits = (1,) if high > 1000 * low else (1, 2, 5) if high > 5 * low else range(1, 10)
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


def launch_timeline(lanes: Mapping[str, Sequence[Span]], *, provenance: str = "") -> Picture:
    """What `luce_edu.overlap.timelines` gives, a row for each lane, with where it ends."""
    kernels = list(dict.fromkeys(span.what for spans in lanes.values() for span in spans if span.what != "asking"))
    palette = (BLUE, VERMILLION, GREEN, PURPLE, SKY)
    colours = {name: palette[i % len(palette)] for i, name in enumerate(kernels)} | {"asking": ORANGE}
    figure = _picture(10.5, 4.6, provenance)
    axes = figure.subplots()
    for row, spans in enumerate(lanes.values()):
        for span in spans:
            hatch = {"hatch": "////", "alpha": 0.55} if span.ahead else {}
            axes.barh(row, span.us, left=span.start_us, height=0.62, color=colours[span.what], edgecolor="white",
                      linewidth=0.8, **hatch)  # fmt: skip
        axes.text(spans[-1].end_us, row, f"  {spans[-1].end_us:.1f} µs", va="center", fontsize=10.5)
    _rows(axes, list(lanes))
    axes.set_xlim(0, 1.1 * max(spans[-1].end_us for spans in lanes.values()))
    axes.set_xlabel("µs")
    patches = [Rectangle((0, 0), 1, 1, facecolor=colours[name]) for name in kernels]
    patches.append(Rectangle((0, 0), 1, 1, facecolor="white", edgecolor=GREY, hatch="////"))
    axes.legend(patches, [*kernels, "prefetched"], frameon=False, ncols=len(patches), loc="lower left",
                bbox_to_anchor=(-0.02, 1), columnspacing=1.2, handlelength=1.2)  # fmt: skip
    return figure


POWER_PANELS: tuple[tuple[str, str, Callable[[Point], float]], ...] = (
    ("speed", "tok/s", lambda point: point.tokens_per_s),
    ("draw", "W", lambda point: point.draw_w),
    ("tokens for a joule", "tok/J", lambda point: point.tokens_per_joule),
)


def power_curves(
    sweep: Sweep,
    fit: Fit | None,
    *,
    limit_w: float | None = None,
    loss: float | None = None,
    beside: Sweep | Baseline | StageCurve | None = None,
    provenance: str = "",
) -> Picture:
    """Speed, draw and tokens for a joule against the power limit: points, and the modelled curve where there is one.

    fit      None for a sweep that no curve can be fitted to: points alone
    limit_w  marks what is expected under this limit: modelled, or the nearest point where there is no model
    loss     marks the least draw that gives up at most this share of the speed
    beside   another sweep's points, one figure as a line across, or a stage's modelled curve with its band
    """
    figure = _picture(11, 4.2, provenance)
    limits = [point.limit_w for point in sweep.points]
    for axes, (name, unit, value) in zip(figure.subplots(1, 3), POWER_PANELS, strict=True):
        for trusted, run in fit.runs() if fit else ():
            axes.plot([p.limit_w for p in run], [value(p) for p in run], color=BLUE, linewidth=2,
                      linestyle="-" if trusted else (0, (2, 2)),
                      label="modelled" if trusted else "modelled, a guess")  # fmt: skip
        axes.plot(limits, [value(p) for p in sweep.points], "o", color=BLUE, markersize=7,
                  label=f"{sweep.kind}: {sweep.system}")  # fmt: skip
        if isinstance(beside, Sweep):
            axes.plot([p.limit_w for p in beside.points], [value(p) for p in beside.points], "s", color=VERMILLION,
                      markersize=6, label=f"{beside.kind}: {beside.gpu}, {beside.system}")  # fmt: skip
        elif isinstance(beside, StageCurve):
            _stage_curve(axes, beside, value, VERMILLION, *sweep.limits_w)
        elif beside:
            axes.axhline(value(beside.point), color=VERMILLION, linewidth=1.8, linestyle="-.",
                         label=f"{beside.kind}: {beside.gpu}, {beside.system}")  # fmt: skip
        if loss is not None:
            spot = sweet_spot(fit.curve if fit else sweep.points, loss)
            axes.plot(spot.limit_w, value(spot), "*", color=GREEN, markersize=16, markeredgecolor="white",
                      label=f"least draw for {100 * loss:g} % less speed")  # fmt: skip
        if limit_w is not None:
            here = expected(sweep, fit, limit_w)
            axes.axvline(limit_w, color=GREY, linewidth=1, linestyle=":")
            axes.plot(here.limit_w, value(here), "D", color=ORANGE, markersize=9, markeredgecolor=INK,
                      label=f"at {limit_w:g} W")  # fmt: skip
        axes.set_title(name, loc="left", fontsize=11)
        axes.set_ylabel(unit)
        axes.set_xlabel("power limit, W")
        axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside upper left", ncols=3, frameon=False)
    return figure


def _stage_curve(axes: Axes, curve: StageCurve, value, colour: str, low_w: float, high_w: float) -> None:
    """A stage's modelled curve over the limits, and the band of the knees that are not refuted."""
    found = curve.over(low_w, high_w)
    limits = [point.limit_w for point, _ in found]
    ends = [[choose(map(value, (point, *band))) for point, band in found] for choose in (min, max)]
    axes.fill_between(limits, *ends, color=colour, alpha=0.2, linewidth=0)
    axes.plot(limits, [value(point) for point, _ in found], color=colour, linewidth=2,
              label=f"modelled for {curve.gpu}: our {curve.system}")  # fmt: skip


def power_errors(fit: Fit, *, provenance: str = "") -> Picture:
    """How far the model is off at each point of its sweep, fitted to all of them and to all but that one."""
    figure = _picture(9, 3.6, provenance)
    points = fit.sweep.points
    names = [f"{point.limit_w:g} W\n{point.clock_mhz:,.0f} MHz" for point in points]
    panels = (("draw", "draw"), ("speed", "tokens"))
    for axes, (name, of) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        axes.axhspan(-8, 8, color=GREEN, alpha=0.12, linewidth=0)
        axes.axhline(0, color=INK, linewidth=1)
        fitted = [100 * getattr(errors, of) for errors in fit.errors]
        left_out = [100 * getattr(errors, of) if errors else math.nan for errors in fit.left_out]
        axes.plot(range(len(points)), fitted, "o", color=BLUE, markersize=8, label="fitted to all points")
        axes.plot(range(len(points)), left_out, "D", color=VERMILLION, markersize=9, markerfacecolor="none",
                  markeredgewidth=1.8, label="fitted to the others")  # fmt: skip
        axes.set_xticks(range(len(points)), names)
        axes.set_xlim(-0.5, len(points) - 0.5)
        axes.set_title(f"{name}: modelled over {fit.sweep.kind}", loc="left", fontsize=11)
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    axes.figure.axes[0].set_ylabel("error, %; band: 8 %")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    return figure


def power_band(fit: Fit, *, provenance: str = "") -> Picture:
    """What the points leave open: the draw over the clock, and tokens per joule over the limit, for every admissible
    knee, with the best fit as a line and the points."""
    figure = _picture(9, 3.8, provenance)
    points, models = fit.sweep.points, fit.admissible
    low, high = fit.sweep.limits_w
    clocks = np.linspace(min(point.clock_mhz for point in points), fit.model.top_mhz, 200)
    draws = [[model.draw_w(clock) for model in models] for clock in clocks]
    limits = [limit for limit in range(math.ceil(low), math.floor(high) + 1) if limit > fit.model.static_w]
    rates = [[point.tokens_per_joule for point in fit.among(limit)] for limit in limits]
    left, right = figure.subplots(1, 2)
    for axes, x, band, best, dots in (
        (left, clocks, draws, [fit.model.draw_w(clock) for clock in clocks],
         [(point.clock_mhz, point.draw_w) for point in points]),
        (right, limits, rates, [fit.model.at(limit).tokens_per_joule for limit in limits],
         [(point.limit_w, point.tokens_per_joule) for point in points]),
    ):  # fmt: skip
        axes.fill_between(x, [min(values) for values in band], [max(values) for values in band], color=BLUE, alpha=0.2,
                          linewidth=0, label=f"modelled: knees {models[0].knee_mhz:,.0f} to "
                                             f"{models[-1].knee_mhz:,.0f} MHz")  # fmt: skip
        axes.plot(x, best, color=BLUE, linewidth=2, label=f"modelled: best fit, knee {fit.model.knee_mhz:,.0f} MHz")
        axes.plot(*zip(*dots, strict=True), "o", color=INK, markersize=6, label=fit.sweep.kind)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_title("draw, W", loc="left", fontsize=11)
    left.set_xlabel("clock, MHz")
    right.set_title("tokens per joule", loc="left", fontsize=11)
    right.set_xlabel("power limit, W")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    return figure


def _signed(value: float) -> str:
    """Three digits; what rounding has left of a zero is one."""
    return "0" if abs(value) < 1e-4 else f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _grid(axes: Axes, rows: int, columns: int) -> None:
    """Thin lines between the cells of a heatmap."""
    axes.set_xticks([j - 0.5 for j in range(1, columns)], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, rows)], minor=True)
    axes.grid(which="minor", color="#BBBBBB", linewidth=0.8)
    axes.tick_params(which="minor", length=0)


def _picture(width: float, height: float, provenance: str) -> Picture:
    """An empty picture on white, with its caption; sizes in inches."""
    if not any(kind in provenance.lower() for kind in PROVENANCE):
        raise ValueError(f"provenance: expected a caption that says one of {', '.join(PROVENANCE)}; got {provenance!r}")
    figure = Picture(figsize=(width, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    figure.supxlabel(provenance, x=0.01, ha="left", fontsize=8.5, color=GREY, wrap=False)
    return figure


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """Label horizontal bars, the first on top, and leave only what helps reading."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
