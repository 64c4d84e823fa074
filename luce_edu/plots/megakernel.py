"""The pictures of notebook 09: how release and acquire order two blocks, and how blocks wait at a barrier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from luce_edu.measure.profile import Profile, grid_waits
from luce_edu.plots.style import BLUE, INK, VERMILLION, Picture, picture
from luce_edu.plots.timeline import WAITS


class Arrow(NamedTuple):
    """An arrow from a step of one thread to a step of another; orders: whether it makes the second come later."""

    begin: str
    end: str
    label: str
    orders: bool = True


def happens_before(threads: Mapping[str, Sequence[str]], arrows: Sequence[Arrow], first: str, last: str) -> bool:
    """Return whether a path leads from `first` to `last`, down the steps of a thread and along the arrows that order.

    threads  the steps of each thread, in order; all steps have different names
    Raises ValueError if an arrow, `first` or `last` names no step.
    """
    steps = {step for own in threads.values() for step in own}
    named = {first, last, *(step for arrow in arrows for step in arrow[:2])}
    if unknown := sorted(named - steps):
        raise ValueError(f"expected steps of the threads ({', '.join(sorted(steps))}), got {', '.join(unknown)}")
    edges = [pair for own in threads.values() for pair in zip(own, own[1:], strict=False)]
    edges += [(arrow.begin, arrow.end) for arrow in arrows if arrow.orders]
    reached = {first}
    while more := {end for begin, end in edges if begin in reached} - reached:
        reached |= more
    return last in reached


def memory_order(
    threads: Mapping[str, Sequence[str]], arrows: Sequence[Arrow], first: str, last: str, *, provenance: str = ""
) -> Picture:
    """Draw the threads as columns, with time going down, the arrows, and below whether the path exists.

    An arrow that does not order is dashed. Arguments and errors as for `happens_before`.
    """
    ordered = happens_before(threads, arrows, first, last)
    rows = {step: row for row, step in enumerate(_in_order(threads, arrows))}
    columns = {step: column for column, own in enumerate(threads.values()) for step in own}
    figure = picture(10.5, 1.3 + 0.62 * len(rows), provenance)
    axes = figure.subplots()
    for column, name in enumerate(threads):
        axes.text(column, -0.9, name, ha="center", va="center", fontweight="bold", fontsize=10)
        axes.plot([column, column], [-0.5, len(rows) - 0.4], color="#D9D9D9", linewidth=1.2, zorder=0)
    for step, row in rows.items():
        edge = BLUE if step in (first, last) else INK
        axes.text(columns[step], row, step, ha="center", va="center", fontsize=9.5, zorder=3,
                  bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": edge})  # fmt: skip
    for arrow in arrows:
        begin, end = ((columns[step], rows[step]) for step in arrow[:2])
        colour, line = (BLUE, "-") if arrow.orders else (VERMILLION, "--")
        look = {"arrowstyle": "-|>", "color": colour, "linestyle": line, "linewidth": 1.6}
        axes.annotate("", xy=end, xytext=begin, zorder=1, arrowprops=look | {"shrinkA": 46, "shrinkB": 46})
        axes.text((begin[0] + end[0]) / 2 + 0.08, (begin[1] + end[1]) / 2 - 0.1, arrow.label, ha="left", va="bottom",
                  fontsize=9, color=colour, zorder=2)  # fmt: skip
    said = "There is a path, so the read sees the write." if ordered else "There is no path: this is a race."
    axes.text(-0.4, len(rows) - 0.1, said, va="center", color=BLUE if ordered else VERMILLION, fontweight="bold")
    axes.set_xlim(-0.5, len(threads) - 0.5)
    axes.set_ylim(len(rows) + 0.3, -1.3)
    axes.set_axis_off()
    return figure


def _in_order(threads: Mapping[str, Sequence[str]], arrows: Sequence[Arrow]) -> list[str]:
    """Return all steps, each after the earlier ones of its thread and after the begin of an arrow to it."""
    waits = {step: set(own[:i]) for own in threads.values() for i, step in enumerate(own)}
    for arrow in arrows:
        waits[arrow.end].add(arrow.begin)
    placed: list[str] = []
    while ready := [step for step in waits if step not in placed and waits[step] <= set(placed)]:
        placed.append(ready[0])
    if len(placed) < len(waits):
        raise ValueError("arrows: expected no circle, got one")
    return placed


def barrier_wait(profile: Profile, phase: str, nth: int = 0) -> Picture:
    """Draw the grid barrier after a phase: when each block arrives and how long it waits, the first arrival on top.

    phase, nth  the barrier after the nth phase of that name in `profile.order`
    Raises ValueError for a phase without a barrier behind it: one that is not there, or the last one.
    """
    places = [i for i, name in enumerate(profile.order[:-1]) if name == phase]
    if not places:
        raise ValueError(f"phase: expected one of {', '.join(dict.fromkeys(profile.order[:-1]))}; got {phase!r}")
    waits = np.array([own[places[nth]] for own in grid_waits(profile.events, profile.places).values()])
    arrives, leaves = waits[np.argsort(waits[:, 0])].T
    last, opens = float(arrives.max()), float(leaves.min())
    margin = 0.25 * (leaves.max() - arrives.min())
    begin, rows = arrives.min() - margin, range(len(arrives))
    figure = picture(10.5, 4.6, f"Modelled: {profile.title}. The grid barrier after {phase}.")
    axes = figure.subplots()
    axes.barh(rows, arrives - begin, left=begin, height=1, color=BLUE, label=f"works in {phase}")
    axes.barh(rows, leaves - arrives, left=arrives, height=1, color=WAITS, label="waits at the barrier")
    axes.axvline(last, color=VERMILLION, linewidth=1.6)
    axes.axvline(opens, color=INK, linewidth=1.6, linestyle="--")
    axes.text(last, -0.02 * len(arrives), "the last block arrives ", ha="right", va="bottom", color=VERMILLION)
    axes.text(opens, -0.02 * len(arrives), f" {opens - last:.2f} µs later the first block goes on", va="bottom")
    axes.set_xlim(begin, leaves.max() + margin)
    axes.set_ylim(len(arrives) - 0.5, -0.5)
    axes.set_xlabel(f"µs of the token; a block waits {np.mean(leaves - arrives):.2f} µs on average")
    axes.set_ylabel("blocks, by their arrival")
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
