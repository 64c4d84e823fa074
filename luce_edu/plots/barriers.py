"""The pictures of notebook 08: how release and acquire order two blocks, and which block waits for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from luce_edu.plots.style import BLUE, GREY, INK, VERMILLION, Picture, label_rows, picture


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


def who_waits(comes_to: Sequence[int], passed: Sequence[int | None]) -> dict[int, list[int]]:
    """By block that cannot go on, the blocks that it waits for.

    comes_to  how many grid barriers each block comes to before it ends
    passed    how many it had passed when nothing moved any more; None: it never started
    A block at a barrier waits for those that have not arrived there. One that never started waits for a block that
    runs, whose place it needs. Raises ValueError for lists of different lengths, and for a barrier that should open.
    """
    if len(comes_to) != len(passed):
        raise ValueError(f"expected two numbers for each block, got {len(comes_to)} and {len(passed)}")
    at = {block: count + 1 for block, count in enumerate(passed) if count is not None and count < comes_to[block]}
    arrived = [at.get(block, count or 0) for block, count in enumerate(passed)]
    waits = {block: [other for other, count in enumerate(arrived) if count < here] for block, here in at.items()}
    if open_at := [here for block, here in at.items() if not waits[block]]:
        raise ValueError(f"passed: all blocks have arrived at barrier {open_at[0]}, so nobody waits there")
    return waits | {block: list(at) for block, count in enumerate(passed) if count is None}


def barrier_waits(comes_to: Sequence[int], passed: Sequence[int | None], *, provenance: str = "") -> Picture:
    """Draw each block as a row: the barriers that it passed, and an arrow from one that waits to each it waits for.

    Arguments and errors as for `who_waits`.
    """
    waits, most = who_waits(comes_to, passed), max(comes_to)
    figure = picture(10.5, 1.7 + 0.45 * len(passed), provenance)
    axes = figure.subplots()
    ends: list[tuple[float, str]] = []  # of each row: where it ends, and what became of the block
    for block, count in enumerate(passed):
        if count is None:
            ends.append((0.0, "has never started"))
        elif block in waits:
            ends.append((count + 1.0, f"waits at barrier {count + 1}"))
        else:
            ends.append((count + 0.4, "has ended"))
        end = ends[-1][0]
        axes.plot([0, end], [block, block], color="#BFBFBF", linewidth=2, zorder=0)
        axes.plot(range(1, (count or 0) + 1), [block] * (count or 0), "o", color=BLUE, markersize=10)
        shape = "s" if count is None else "o" if block in waits else "|"
        axes.plot(end, block, shape, markersize=11, markerfacecolor="white", markeredgewidth=2.2,
                  markeredgecolor=VERMILLION if block in waits else GREY)  # fmt: skip
    for block, (end, state) in enumerate(ends):
        colour = VERMILLION if block in waits else GREY
        axes.text(most + 0.5, block, state, va="center", color=colour, fontsize=9.5)
        for nth, other in enumerate(waits.get(block, ())):
            bend = 0.18 + 0.06 * nth
            look = {"arrowstyle": "-|>", "color": VERMILLION, "linewidth": 1.3, "shrinkA": 8, "shrinkB": 5}
            to_the_left = other > block or passed[block] is None  # an arrow back from a square takes the other side
            look["connectionstyle"] = f"arc3,rad={bend if to_the_left else -bend}"
            axes.annotate("", xy=(ends[other][0], other), xytext=(end, block), arrowprops=look, zorder=1)
    label_rows(axes, [f"block {block}" for block in range(len(passed))])
    axes.set_xlim(-0.2, most + 1.6)
    axes.set_xticks(range(1, most + 1), [f"barrier {n}" for n in range(1, most + 1)])
    axes.tick_params(axis="x", length=0)
    axes.spines["bottom"].set_visible(False)
    axes.set_title("Dot: passed. Ring: waits. Bar: ended. Square: never started. Arrow: to the block it waits for.",
                   fontsize=10, loc="left", color=INK)  # fmt: skip
    return figure
