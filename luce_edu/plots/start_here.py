"""The pictures of notebook 00: published systems beside the ceiling, and the ladder, which the README shows too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from luce_edu.machine.cards import DATASHEET_GB_PER_S
from luce_edu.measure.floor import bytes_per_token
from luce_edu.measure.launches import Count
from luce_edu.measure.records.rows import Published
from luce_edu.plots.style import GREEN, INK, ORANGE, PURPLE, Picture, colour_of, label_rows, picture
from luce_edu.stages import stage_class


def ladder(counts: Mapping[str, Count], results: Sequence[Published], *, provenance: str = "") -> Picture:
    """Draw the launches per token of each stage, beside the share of a GPU's bandwidth that published systems reach.

    counts      from `luce_edu.measure.launches.count_launches`
    provenance  goes into the caption; ValueError unless it says measured, recorded, published or modelled
    """
    figure = picture(10.5, 4.9, provenance)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    stages = list(counts)
    launches = [counts[stage].launches for stage in stages]
    colours = [colour_of(stage) for stage in stages]
    # With an edge, a bar of one launch is still visible.
    bars = left.barh(range(len(stages)), launches, color=colours, edgecolor=colours, linewidth=2, height=0.62)
    left.bar_label(bars, [_launches(count) for count in counts.values()], padding=6, fontsize=10.5)
    label_rows(left, [f"{stage}\n{stage_class(stage).words}" for stage in stages])
    left.set_xlim(0, 1.2 * max(launches))
    left.xaxis.set_major_locator(MaxNLocator(3))
    left.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    left.set_xlabel("launches per token (eager: PyTorch operations)")
    left.set_title("Launches per token, by stage", loc="left", fontweight="bold", fontsize=12)

    names = [f"{r.system}, {r.tokens_per_s:,.0f} tok/s\n{r.model}, {r.gpu}" for r in results]
    colours = [GREEN if "megakernel" in r.system else PURPLE if "graph" in r.system else ORANGE for r in results]
    bars = right.barh(range(len(results)), [100 * r.share for r in results], color=colours, height=0.62)
    right.bar_label(bars, [f"{100 * r.share:.0f} %" for r in results], padding=5, fontsize=10.5)
    label_rows(right, names)
    right.axvline(100, color=INK, linewidth=1.2, linestyle="--")
    right.text(98.5, -0.66, "limit: every byte moves once", ha="right", va="center", fontsize=9.5)
    right.set_ylim(len(results) - 0.5, -1)
    right.set_xlim(0, 104)
    right.set_xlabel("% of the datasheet's bandwidth")
    right.set_title("Published systems", loc="left", fontweight="bold", fontsize=12)
    return figure


def _launches(count: Count) -> str:
    """What a bar of the ladder says: launches, and what one launch replaces."""
    if count.kernels > count.launches:
        return f"{count.launches:,} launch of {count.kernels:,} kernels"
    if count.barriers:
        return f"{count.launches:,} launch with {count.barriers:,} grid barriers"
    return f"{count.launches:,}"


def published_against_floor(results: Sequence[Published], *, provenance: str = "") -> Picture:
    """Draw published tokens per second of one model on one GPU, and the ceiling that its bandwidth sets.

    Raises ValueError for results of several models or GPUs, and for a provenance without a kind.
    """
    cases = {(result.model, result.gpu) for result in results}
    if len(cases) != 1:
        raise ValueError(f"results: expected one model on one GPU, got {sorted(cases) or 'none'}")
    ((model, gpu),) = cases
    ceiling = DATASHEET_GB_PER_S[gpu] * 1e9 / bytes_per_token(model)
    figure = picture(8, 3.4, provenance)
    axes = figure.subplots()
    rates = [result.tokens_per_s for result in results]
    axes.barh(range(len(results)), ceiling, color="#E4E4E4", height=0.62)
    colours = [GREEN if "megakernel" in result.system else ORANGE for result in results]
    bars = axes.barh(range(len(results)), rates, color=colours, height=0.62)
    axes.bar_label(bars, [f"{r.tokens_per_s:.0f}  ({100 * r.share:.0f} %)" for r in results], padding=5)
    label_rows(axes, [result.system for result in results])
    axes.axvline(ceiling, color=INK, linewidth=1.2, linestyle="--")
    axes.text(ceiling * 0.985, -0.66, f"ceiling: {ceiling:.0f} tok/s", ha="right", va="center")
    axes.set_ylim(len(results) - 0.5, -1)
    axes.set_xlim(0, 1.05 * ceiling)
    axes.set_xlabel(f"tokens per second, {model} on an {gpu} (grey: up to the ceiling)")
    return figure
