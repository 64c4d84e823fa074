"""What all pictures share: colours, a white figure with a caption, rows of bars, log axes with plain numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from luce_edu.stages import STAGES, stage_class

PROVENANCE = ("measured", "recorded", "published", "modelled")
# The colours of Okabe and Ito, which colour-blind readers can tell apart.
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
INK, GREY = "#000000", "#595959"
_NAMES = {"orange": ORANGE, "sky": SKY, "green": GREEN, "blue": BLUE, "vermillion": VERMILLION, "purple": PURPLE}


class Picture(Figure):
    """A Figure that a notebook shows as PNG when a cell ends with it. It does not use pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=120)
        return file.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        """Return the PNG with its alt text, which pages made by nbconvert give to screen readers."""
        image = base64.b64encode(self._repr_png_()).decode()
        return {"image/png": image}, {"image/png": {"alt": self.alt}}

    @property
    def alt(self) -> str:
        """What the picture says in words: titles, axes and caption; the text inside where it has no titles and axes."""
        words = []
        for axes in self.axes:
            words += [axes.get_title(loc) for loc in ("left", "center")]
            named = {"horizontal": axes.get_xlabel(), "vertical": axes.get_ylabel()}
            words += [f"{way} axis: {label}" for way, label in named.items() if label]
        if not any(words):
            words = [text.get_text() for axes in self.axes for text in axes.texts]
        plain = [" ".join(part.split()) for part in [*words, self.get_supxlabel()]]
        return ". ".join(dict.fromkeys(part.rstrip(".") for part in plain if part)) + "."


def colour_of(system: str) -> str:
    """Return the colour of a stage, as its class names it; grey for any other system."""
    return _NAMES[stage_class(system).colour] if system in STAGES else GREY


def picture(width: float, height: float, provenance: str) -> Picture:
    """Return an empty picture of width x height inches on white, with `provenance` as its caption.

    The background is opaque, so that dark pages show black text on white. Raises ValueError unless the caption
    contains one of the words in PROVENANCE.
    """
    if not any(kind in provenance.lower() for kind in PROVENANCE):
        raise ValueError(f"provenance: expected a caption that says one of {', '.join(PROVENANCE)}; got {provenance!r}")
    figure = Picture(figsize=(width, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    figure.supxlabel(provenance, x=0.01, ha="left", fontsize=8.5, color=GREY, wrap=False)
    return figure


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label horizontal bars, the first on top, and hide the spines that carry no scale."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def plain_axis(axis) -> None:
    """Write the numbers of a logarithmic axis out: 1, 2 and 5 of each decade; fewer on a long axis, more on a short."""
    low, high = axis.get_view_interval()
    digits = (1,) if high > 1000 * low else (1, 2, 5) if high > 5 * low else range(1, 10)
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())
