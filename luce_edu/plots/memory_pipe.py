"""The picture of notebook 11: when DRAM is busy, for one program below the other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from luce_edu.measure.profile import BUCKET_US, Profile, completions
from luce_edu.plots.style import BLUE, INK, VERMILLION, Picture, picture


def pipe(profiles: Mapping[str, Profile], *, note: str = "") -> Picture:
    """Draw DRAM's use over time, one row per profile, in per cent of the datasheet's bandwidth.

    An orange line marks where the last block has passed a grid barrier.
    note  added to the caption. Raises ValueError if there is no profile.
    """
    if not profiles:
        raise ValueError("profiles: expected at least one")
    cards = " and ".join(dict.fromkeys(profile.on_card for profile in profiles.values()))
    figure = picture(10.5, 0.9 + 1.25 * len(profiles), f"Modelled for {cards}. {note}".strip())
    rows = figure.subplots(len(profiles), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (name, profile) in zip(rows, profiles.items(), strict=True):
        times = BUCKET_US * np.arange(len(profile.dram_use))
        axes.fill_between(times, 100 * profile.dram_shares, step="post", color=BLUE, linewidth=0)
        passed = list(completions(profile.events, profile.places).values())
        for us in np.max(passed, axis=0) if passed else ():
            axes.axvline(us, color=VERMILLION, linewidth=0.9)
        axes.axhline(100, color=INK, linewidth=0.8, linestyle="--")
        axes.set_title(f"{name}: {profile.total_us:.0f} µs, {profile.dram_share:.0%} of the datasheet's bandwidth",
                       loc="left", fontsize=10)  # fmt: skip
        axes.set_ylabel("DRAM, %")
        axes.spines[["top", "right"]].set_visible(False)
    rows[0].set_xlim(0, max(profile.total_us for profile in profiles.values()))
    rows[0].set_ylim(0, 110)
    rows[-1].set_xlabel("time, µs")
    return figure
