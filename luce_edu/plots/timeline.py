"""Profiles over time: each SM with its waits at barriers and the rate of DRAM, and launches with the gaps between them.

All times are modelled. `luce-edu profile --trace` writes the same events for Perfetto, which can zoom.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from luce_edu.measure.profile import BUCKET_US, Profile, grid_waits
from luce_edu.plots.style import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILLION, Picture, label_rows, picture

WAITS, NOTHING = "#D9D9D9", "#FFFFFF"
COLUMNS = 1600  # of the image of the SMs; more than its width in pixels
_PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, "#6B4C9A", "#8C6D31", "#000000", "#7FB800",
            "#004D40", "#9B2226", "#C9A66B")  # fmt: skip
# The megakernel's phases and the kernels of per_layer have the same names, and so the same colours.
_NAMES = ("deltanet_in", "delta_rule", "deltanet_out", "mlp_up", "mlp_down", "attention", "attention_in",
          "attention_out", "embed", "lm_head")  # fmt: skip


def sm_timeline(profile: Profile, *, begin_us: float = 0.0, end_us: float | None = None, note: str = "") -> Picture:
    """Draw what each SM does from begin_us to end_us, one row per SM, and below the rate of DRAM.

    Colour: the phase or kernel of a block on the SM. Grey: all blocks of the SM wait at a barrier. White: the SM has no
    block.
    end_us  None: to the end of the profile
    note    added to the caption
    Raises ValueError unless 0 <= begin_us < end_us and begin_us is inside the profile.
    """
    end_us = profile.total_us if end_us is None else min(end_us, profile.total_us)
    if not 0 <= begin_us < end_us:
        raise ValueError(f"expected 0 <= begin_us < end_us <= {profile.total_us:.1f}, got {begin_us} and {end_us}")
    colours = _colours([*profile.order, *(name for name, *_ in profile.spans)])
    image, shown = _paint(profile, begin_us, end_us, colours)
    figure = picture(10.5, 5.4, f"Modelled: {profile.title}. {note}".strip())
    top, below = figure.subplots(2, 1, height_ratios=(3.2, 1), sharex=True)
    top.imshow(image, extent=(begin_us, end_us, len(image) - 0.5, -0.5), aspect="auto", interpolation="nearest")
    top.set_ylabel("SM")
    top.tick_params(labelbottom=False)
    patches = [Patch(color=colours[name], label=name) for name in shown]
    patches.append(Patch(facecolor=WAITS, edgecolor=INK, linewidth=0.4, label="waits at a barrier"))
    top.legend(handles=patches, frameon=False, ncols=6, loc="lower left", bbox_to_anchor=(-0.02, 1), fontsize=9,
               columnspacing=1.2, handlelength=1.2)  # fmt: skip
    _dram(below, profile, begin_us, end_us)
    return figure


def launch_lanes(profiles: Mapping[str, Profile], *, us: float, note: str = "") -> Picture:
    """Draw the first `us` microseconds of several profiles, one row per profile: launches, and white gaps between them.

    note  added to the caption. Raises ValueError if there is no profile.
    """
    if not profiles:
        raise ValueError("profiles: expected at least one")
    seen = [name for profile in profiles.values() for name, begin, _ in profile.spans if begin < us]
    colours = _colours(seen)
    cards = " and ".join(dict.fromkeys(profile.card for profile in profiles.values()))
    figure = picture(10.5, 1.9 + 0.75 * len(profiles), f"Modelled for {cards}. {note}".strip())
    axes = figure.subplots()
    for row, profile in enumerate(profiles.values()):
        for name, begin, length in profile.spans:
            if begin < us:
                axes.barh(row, min(length, us - begin), left=begin, height=0.62, color=colours[name])
    label_rows(axes, [f"{name}\n{profile.total_us:,.0f} µs in all" for name, profile in profiles.items()])
    axes.set_xlim(0, us)
    axes.set_xlabel("time since the CPU's request, µs")
    patches = [Patch(color=colours[name], label=name) for name in dict.fromkeys(seen)]
    axes.legend(handles=patches, frameon=False, ncols=6, loc="lower left", bbox_to_anchor=(-0.02, 1), fontsize=9,
                columnspacing=1.2, handlelength=1.2)  # fmt: skip
    return figure


def _colours(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each name. Phases of a decoder keep theirs in every picture."""
    fixed, names = dict(zip(_NAMES, _PALETTE, strict=False)), list(dict.fromkeys(names))
    others = [name for name in names if name not in fixed]
    taken = {fixed[name] for name in names if name in fixed}
    free = [colour for colour in _PALETTE if colour not in taken] or _PALETTE
    return fixed | {name: free[i % len(free)] for i, name in enumerate(others)}


def _paint(profile: Profile, begin_us: float, end_us: float, colours: Mapping[str, str]):
    """Return the image [SMs, COLUMNS, 3], and the names in it in the order of their begin.

    Where several blocks share an SM, a block that works is drawn over blocks that wait.
    """
    lives = profile.events[profile.events["place"] == -1]
    rows = int(lives["sm"].max(initial=0)) + 1
    image = np.ones((rows, COLUMNS, 3))
    scale = COLUMNS / (end_us - begin_us)
    seen: dict[str, float] = {}
    pieces = [piece for piece in _pieces(profile, lives) if piece[3] > begin_us and piece[2] < end_us]
    for name, sm, begin, end in sorted(pieces, key=lambda piece: piece[0] is not None):
        first, last = (int(np.clip(round((us - begin_us) * scale), 0, COLUMNS)) for us in (begin, end))
        if first == last and name is None:
            continue
        image[sm, first : max(last, first + 1)] = to_rgb(WAITS if name is None else colours[name])
        if name is not None:
            seen[name] = min(begin, seen.get(name, begin))
    return image, sorted(seen, key=seen.get)


def _pieces(profile: Profile, lives: np.ndarray) -> Iterator[tuple[str | None, int, float, float]]:
    """Yield (phase or kernel, or None for a wait; SM; begin and end in µs) for every block."""
    at_grid = grid_waits(profile.events, profile.places) if profile.order else {}
    waiting = np.sort(profile.events[profile.events["place"] >= 0], order=["launch", "block", "begin_us"])
    keys = waiting["launch"].astype(np.int64) << 32 | waiting["block"]
    for launch, sm, block, _, begin, end in lives.tolist():
        if profile.order:
            waits, names = at_grid.get(block, np.zeros((0, 2))), iter(profile.order)
        else:
            first, last = np.searchsorted(keys, [launch << 32 | block, (launch << 32 | block) + 1])
            waits = np.stack([waiting["begin_us"][first:last], waiting["end_us"][first:last]], axis=1)
            names = iter(lambda launch=launch: profile.spans[launch][0], None)
        for from_us, until_us in waits.tolist():
            yield next(names), sm, begin, from_us
            yield None, sm, from_us, until_us
            begin = until_us
        yield next(names), sm, begin, end


def _dram(axes: Axes, profile: Profile, begin_us: float, end_us: float) -> None:
    """Draw the rate of DRAM over time, beside the datasheet's bandwidth."""
    times = BUCKET_US * np.arange(len(profile.dram_use))
    inside = (times >= begin_us - BUCKET_US) & (times <= end_us)
    full = profile.dram_gb_per_s / profile.dram_share if profile.dram_share else 1.0
    if profile.dram_use[inside].sum() < 0.01 * full * 1e3 * (end_us - begin_us):
        axes.text(0.5, 0.3, "less than 1 % of the datasheet's bandwidth", ha="center", transform=axes.transAxes)
    axes.fill_between(times[inside], profile.dram_use[inside] / BUCKET_US / 1e3, step="post", color=BLUE, linewidth=0)
    axes.axhline(full, color=INK, linewidth=1, linestyle="--")
    axes.text(end_us, 1.04 * full, "datasheet", ha="right", va="bottom", fontsize=8.5)
    axes.set_ylim(0, 1.4 * full)
    axes.set_xlim(begin_us, end_us)
    axes.set_ylabel("DRAM, GB/s")
    axes.set_xlabel("time, µs")
    axes.spines[["top", "right"]].set_visible(False)


def first_layers(profile: Profile, layers: int = 4) -> Picture:
    """Draw `sm_timeline` of the megakernel's first layers; four are three DeltaNet layers and one of attention."""
    last = [i for i, name in enumerate(profile.order) if name == "mlp_down"][layers - 1]
    waits = np.max([times[:, 1] for times in grid_waits(profile.events, profile.places).values()], axis=0)
    return sm_timeline(profile, end_us=float(waits[last]), note=f"The first {layers} layers.")
