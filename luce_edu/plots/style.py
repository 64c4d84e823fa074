"""What all pictures share: colours, a figure that says where its numbers come from, rows of bars, plain log axes."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from luce_edu.stages import STAGES, stage_class

PROVENANCE = ("measured", "recorded", "published", "modelled")
# The colours of Okabe and Ito, which people with colour-blindness can tell apart.
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
INK, GREY = "#000000", "#595959"
_NAMES = {"orange": ORANGE, "sky": SKY, "green": GREEN, "blue": BLUE, "vermillion": VERMILLION, "purple": PURPLE}


class Picture(Figure):
    """A Figure that a notebook shows by naming it, without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=120)
        return file.getvalue()


def colour_of(system: str) -> str:
    """The colour of a stage, which its class names; grey for another system."""
    return _NAMES[stage_class(system).colour] if system in STAGES else GREY


def picture(width: float, height: float, provenance: str) -> Picture:
    """An empty picture on white, with its caption; sizes in inches."""
    if not any(kind in provenance.lower() for kind in PROVENANCE):
        raise ValueError(f"provenance: expected a caption that says one of {', '.join(PROVENANCE)}; got {provenance!r}")
    figure = Picture(figsize=(width, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    figure.supxlabel(provenance, x=0.01, ha="left", fontsize=8.5, color=GREY, wrap=False)
    return figure


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label horizontal bars, the first on top, and leave only what helps reading."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def plain_axis(axis) -> None:
    """Numbers on a logarithmic axis written out: 1, 2, 5, and more of them where it is short."""
    low, high = axis.get_view_interval()
    digits = (1,) if high > 1000 * low else (1, 2, 5) if high > 5 * low else range(1, 10)
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())
