"""The pictures of notebook 03: the error of each part, and margins beside the errors of bf16."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from luce_edu.plots.style import BLUE, GREEN, INK, ORANGE, PURPLE, VERMILLION, Picture, colour_of, picture, plain_axis
from luce_edu.stages import STAGES


def error_by_part(
    errors: Mapping[str, Mapping[str, float]], *, baseline: str = "eager", limit: float, provenance: str = ""
) -> Picture:
    """Draw each program's error against the reference by part, on a log axis, and where a check refuses it.

    errors     {program: {part: error}}, every program with the same parts; the layers are joined by a line
    baseline   the program whose error times `limit` is the lower edge of what is refused
    An error of 0 stands at the lower edge of the picture, one that is not finite at the upper.
    ValueError unless all programs have the baseline's parts.
    """
    parts = list(errors[baseline])
    if any(list(of_program) != parts for of_program in errors.values()):
        raise ValueError("errors: expected the same parts of every program, in the same order")
    figure = picture(9, 4.6, provenance)
    axes = figure.subplots()
    finite = [e for of_program in errors.values() for e in of_program.values() if np.isfinite(e) and e > 0]
    low, high = 10 ** np.floor(np.log10(min(finite))) / 3, 30 * max(finite)
    at = {program: [_clamped(e, low, high) for e in of_program.values()] for program, of_program in errors.items()}
    joined = [i for i, part in enumerate(parts) if part.startswith("layer")]
    border = [_clamped(limit * errors[baseline][part], low, high) for part in parts]
    axes.fill_between(range(len(parts)), border, high, step="mid", color=VERMILLION, alpha=0.09, linewidth=0)
    axes.set_title(f"shaded: refused, error above {limit} times that of {baseline}", loc="right", fontsize=10)
    spare = zip((VERMILLION, PURPLE, GREEN, INK), "sDv^", strict=True)
    for program, values in at.items():
        colour, marker = (colour_of(program), "o") if program in STAGES else next(spare)
        axes.plot(joined, [values[i] for i in joined], color=colour, linewidth=1.6)
        axes.plot(range(len(parts)), values, marker, color=colour, markersize=6, label=program)
    for words, found in (("0", lambda e: e == 0), ("not finite", lambda e: not np.isfinite(e))):
        places = [(i, e) for of_program in errors.values() for i, e in enumerate(of_program.values()) if found(e)]
        if places:  # label one of them, as all are on one line
            i, error = min(places)
            axes.annotate(words, (i, _clamped(error, low, high)), xytext=(-9, 0), textcoords="offset points",
                          ha="right", va="center", fontsize=9.5)  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(low / 1.6, high * 1.6)
    axes.set_xlim(-0.6, len(parts) - 0.4)
    axes.set_xticks(range(len(parts)), [part.replace("_", "\n") for part in parts], rotation=45, ha="right",
                    rotation_mode="anchor", fontsize=9.5)  # fmt: skip
    axes.set_ylabel("error, ‖x − r‖ / ‖r‖ (r: reference)")
    axes.grid(alpha=0.25, axis="y")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _clamped(error: float, low: float, high: float) -> float:
    return high if not np.isfinite(error) else min(max(error, low), high)


def margins_against_slack(margins, slacks, same, *, provenance: str = "") -> Picture:
    """Draw, token by token, the reference's margin between first and second choice beside twice the error of bf16.

    margins, slacks  per token, in logits: the margin, and how much of it bf16's errors may close
    same             per token: whether bf16 chose as the reference did
    """
    margins, slacks, same = (np.asarray(values) for values in (margins, slacks, same))
    decided = margins > slacks
    figure = picture(9, 3.9, provenance)
    axes = figure.subplots()
    tokens = np.arange(len(margins))
    low = min(margins[margins > 0].min(initial=1), slacks[slacks > 0].min(initial=1)) / 3
    axes.bar(tokens, slacks, width=0.8, color="#DDDDDD", label="twice bf16's largest error")
    groups = (
        (decided & same, BLUE, "o", "decided, and bf16 chose the same"),
        (~decided & same, ORANGE, "D", "not decided, bf16 chose the same"),
        (~decided & ~same, VERMILLION, "X", "not decided, bf16 chose another"),
        (decided & ~same, INK, "v", "decided, and bf16 chose another"),
    )
    for chosen, colour, marker, words in groups:
        if chosen.any():
            axes.plot(tokens[chosen], np.maximum(margins[chosen], low), marker, color=colour, markersize=7, label=words)
    axes.set_yscale("log")
    axes.set_ylim(low, 6 * max(margins.max(), slacks.max()))
    axes.set_xlim(-0.8, len(tokens) - 0.2)
    axes.set_xlabel("token")
    plain_axis(axes.yaxis)
    axes.set_ylabel("margin of the first choice, logits")
    axes.legend(frameon=False, loc="upper left", fontsize=9.5, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
