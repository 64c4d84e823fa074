"""The picture of notebook 09: how blocks wait at a grid barrier."""

from __future__ import annotations

import numpy as np

from luce_edu.measure.profile import Profile, grid_waits
from luce_edu.plots.style import BLUE, INK, VERMILLION, Picture, picture
from luce_edu.plots.timeline import WAITS


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
