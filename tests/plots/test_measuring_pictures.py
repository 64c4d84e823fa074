"""Notebook 13's pictures show all times, and the numbers that a report could pick from them."""

import pytest

from luce_edu.plots.measuring import energy_windows, mistakes, shown_by_steps, spread

SHOWN = {"hasty": {1: 183.0, 10: 294.0, 100: 1676.0}, "honest": {1: 1830.0, 10: 1830.0, 100: 1830.0}}
TIMES_US = [100, 101, 102, 103, 104, 105, 106, 107, 1000]
WINDOWS = [(0.02, 0.0), (0.02, 2.5), (0.5, 0.9), (2.0, 1.01), (10.0, 0.999)]
FACTORS = {"not waited for": {"modelled": 10.0}, "first call": {"measured": 0.1, "published": 0.225}, "zeros": {
    "published": 1.148}}  # fmt: skip

PICTURES = {
    "steps": lambda provenance: shown_by_steps(SHOWN, 1830.0, provenance=provenance),
    "spread": lambda provenance: spread(TIMES_US, provenance=provenance),
    "windows": lambda provenance: energy_windows(WINDOWS, tick=0.05, least=2.0, provenance=provenance),
    "mistakes": lambda provenance: mistakes(FACTORS, provenance=provenance),
}


def test_each_way_of_timing_is_a_line_beside_the_truth():
    (axes,) = PICTURES["steps"]("modelled").axes
    truth, hasty, honest = axes.lines
    assert set(truth.get_ydata()) == {1830.0} and truth.get_label() == "true time: 1,830 µs"
    assert dict(zip(hasty.get_xdata(), hasty.get_ydata(), strict=True)) == SHOWN["hasty"]
    assert dict(zip(honest.get_xdata(), honest.get_ydata(), strict=True)) == SHOWN["honest"]


def test_a_spread_shows_all_times_and_the_numbers_that_one_might_report():
    (axes,) = PICTURES["spread"]("measured").axes
    assert sum(bar.get_height() for bar in axes.patches[:70]) == len(TIMES_US)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["quartiles, 102 to 106", "best, 100", "median, 104", "mean, 203", "worst, 1,000"]


def test_each_window_stands_at_its_error_in_per_cent():
    (axes,) = PICTURES["windows"]("modelled").axes
    (points,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert points.get_xdata().tolist() == [seconds for seconds, _ in WINDOWS]
    assert points.get_ydata() == pytest.approx([-100, 150, -10, 1, -0.1])
    assert min(points.get_ydata()) > axes.get_ylim()[0] and max(points.get_ydata()) < axes.get_ylim()[1]


def test_each_mistake_has_a_row_and_each_kind_of_evidence_a_mark_of_its_own():
    figure = PICTURES["mistakes"]("modelled")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["10 ×", "0.1 ×", "0.23 ×", "1.15 ×"]
    marks = [(line.get_xdata()[0], line.get_marker()) for line in axes.lines if line.get_marker() != "None"]
    assert marks == [(10.0, "s"), (0.1, "o"), (0.225, "D"), (1.148, "D")]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(FACTORS)
    figure.draw_without_rendering()
    left = axes.get_window_extent().x0
    assert all(text.get_window_extent().x0 > left for text in axes.texts)
