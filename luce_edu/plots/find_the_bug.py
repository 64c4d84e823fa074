"""The picture of notebook 15: how far the stages of the full-size model are above the floor, card by card."""

from __future__ import annotations

from collections.abc import Mapping

from luce_edu.plots.style import INK, Picture, colour_of, label_rows, picture, plain_axis


def above_the_floor(
    us: Mapping[str, Mapping[str, float]], floors: Mapping[str, float], *, provenance: str = ""
) -> Picture:
    """Draw, in a panel per card, a bar per stage: its time over the card's floor, on a logarithmic axis from 1 on.

    us      µs of a token, by card and stage; every card has the same stages
    floors  µs by card. ValueError for a time below the floor
    """
    columns = min(len(us), 3)
    rows = -(-len(us) // columns)
    figure = picture(10.5, 3.2 * rows + 0.2, provenance)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes in panels[len(us) :]:
        axes.set_visible(False)
    for axes, (card, times) in zip(panels, us.items(), strict=False):
        shares = [time / floors[card] for time in times.values()]
        if min(shares) < 1:
            raise ValueError(f"{card}: a time of {min(times.values()):,.0f} µs is below the floor, {floors[card]:,.0f}")
        axes.set_title(f"{card}, floor {floors[card]:,.0f} µs", loc="left", fontsize=11)
        colours = [colour_of(stage) for stage in times]
        axes.barh(range(len(times)), [share - 1 for share in shares], left=1, color=colours)
        for row, share in enumerate(shares):
            axes.text(share * 1.06, row, f"{share:.2g}", va="center", fontsize=10)
        axes.axvline(1, color=INK, linewidth=1)
        label_rows(axes, list(times))
        axes.set_xscale("log")
        axes.set_xlim(1, 1.8 * max(time / floors[name] for name in us for time in us[name].values()))
        plain_axis(axes.xaxis)
        axes.set_xlabel("times the floor")
    return figure
