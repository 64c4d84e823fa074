"""Notebook 03's pictures draw each error and margin at its value."""

import numpy as np
import pytest

from luce_edu.plots.equality import error_by_part, margins_against_slack

ERRORS = {
    "eager": {"embedding": 0.0, "layer 0": 5e-3, "layer 1": 6e-3, "k_cache": 8e-3, "logits": 4e-3},
    "wrong kv head": {"embedding": 0.0, "layer 0": 3e-7, "layer 1": 0.09, "k_cache": np.inf, "logits": np.nan},
}
MARGINS = ([0.6, 0.06, 0.03, 2.0], [0.1, 0.1, 0.1, 0.1], [True, False, True, True])

PICTURES = {
    "errors": lambda provenance: error_by_part(ERRORS, limit=1.25, provenance=provenance),
    "margins": lambda provenance: margins_against_slack(*MARGINS, provenance=provenance),
}


def test_errors_are_drawn_at_their_values_and_zero_and_nan_at_the_edges():
    (axes,) = PICTURES["errors"]("measured").axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines if not line.get_label().startswith("_")}
    low, *eager = drawn["eager"]
    assert list(drawn) == list(ERRORS) and eager == [5e-3, 6e-3, 8e-3, 4e-3]
    lowest, *inside, infinite, nan = drawn["wrong kv head"]
    assert low == lowest < 3e-7 and inside == [3e-7, 0.09] and infinite == nan > 0.09
    assert [text.get_text() for text in axes.texts] == ["0", "not finite"]
    assert axes.get_yscale() == "log" and "1.25 times that of eager" in axes.get_title(loc="right")


def test_the_refused_area_begins_at_the_limit_times_the_baseline():
    (axes,) = PICTURES["errors"]("measured").axes
    heights = {round(float(y), 9) for path in axes.collections[0].get_paths() for _, y in path.vertices}
    assert {round(1.25 * error, 9) for error in (5e-3, 6e-3, 8e-3, 4e-3)} <= heights


def test_programs_with_other_parts_are_not_compared():
    with pytest.raises(ValueError, match="the same parts"):
        error_by_part(ERRORS | {"per_op": {"logits": 1e-4}}, limit=1.25, provenance="measured")


def test_each_margin_is_in_the_group_that_its_slack_puts_it_in():
    (axes,) = PICTURES["margins"]("measured").axes
    drawn = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert drawn == {
        "decided, and bf16 chose the same": [0, 3],
        "not decided, bf16 chose the same": [2],
        "not decided, bf16 chose another": [1],
    }
    assert [bar.get_height() for bar in axes.patches] == [0.1] * 4
