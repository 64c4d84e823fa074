"""The picture of the validation, modelled beside published times, and the page that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from luce_edu.measure.records import validation_page
from luce_edu.measure.records.validated import TARGET, Validated
from luce_edu.plots.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, VERMILLION, Picture, label_rows, picture

FAMILIES: Mapping[str, tuple[str, str]] = {  # by a word in the comparison's name: its family, colour
    "launch": ("launches and barriers", BLUE),
    "barriers": ("launches and barriers", BLUE),
    "hand-out": ("launches and barriers", BLUE),
    "strides": ("L1", PURPLE),
    "copies": ("L2 and DRAM", GREEN),
    "widths": ("L2 and DRAM", GREEN),
    "L2": ("L2 and DRAM", GREEN),
    "SGEMM": ("matrix products", VERMILLION),
}
OTHERS = ("sums, norms, matrix-vector products", ORANGE)


def modelled_against_published(of: Validated, *, provenance: str = "") -> Picture:
    """Draw the modelled time of each row held out by its published time, and their ratio by comparison.

    provenance  the caption; ValueError unless it says measured, recorded, published or modelled
    """
    figure = picture(11, 5.6, provenance)
    left, right = figure.subplots(1, 2, width_ratios=(1, 0.8))
    picks = {pick: [row for row in rows if not row.fit] for pick, rows in of.by_pick().items()}
    drawn: set[str] = set()
    for i, (pick, rows) in enumerate(picks.items()):
        family, colour = next((FAMILIES[word] for word in FAMILIES if word in pick), OTHERS)
        ratios = np.array([row.ratio for row in rows])
        published = np.array([row.us for row in rows]) / ratios
        options = {"color": colour, "alpha": 0.75, "edgecolors": "white", "linewidths": 0.4}
        label = None if family in drawn else family
        left.scatter(published, published * ratios, s=26, label=label, **options)
        right.scatter(ratios, np.full(len(rows), i) + np.linspace(-0.22, 0.22, len(rows)), s=18, **options)
        drawn.add(family)
    within, ends = 1 + TARGET, np.array([1e-3, 1e6])
    left.plot(ends, ends, color=INK, linewidth=1)
    left.fill_between(ends, ends / within, ends * within, color=GREY, alpha=0.25, linewidth=0)
    left.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="published, µs", ylabel="modelled, µs")
    left.legend(frameon=False, fontsize=9)
    left.set_title("Modelled against published times", loc="left", fontweight="bold", fontsize=12)
    right.axvspan(1 / within, within, color=GREY, alpha=0.25, linewidth=0)
    right.axvline(1, color=INK, linewidth=1)
    label_rows(right, list(picks))
    right.set(xscale="log", xlim=(1 / 12, 12), xlabel="below 1: too fast (grey: within 15 %)")
    right.set_xticks([0.1, 0.2, 0.5, 1, 2, 5, 10], ["0.1", "0.2", "0.5", "1", "2", "5", "10"])
    right.xaxis.minorticks_off()
    right.set_title("Modelled / published", loc="left", fontweight="bold", fontsize=12)
    return figure


def write_page(of: Validated, folder: str | Path | None = None) -> tuple[Path, ...]:
    """Write the validation's figures, page and picture into `folder`; return their paths."""
    figures, text, drawn = validation_page.places(folder)
    figures.write_text(of.to_json(), encoding="utf-8")
    text.write_text(validation_page.page(of), encoding="utf-8")
    said = f"Modelled against published; run of {of.date}. Rows held out."
    drawn.write_bytes(modelled_against_published(of, provenance=said)._repr_png_())
    return figures, text, drawn
