"""Notebook 15's picture draws each stage's time over its card's floor."""

import pytest

from luce_edu.plots.find_the_bug import above_the_floor

US = {"one": {"graph": 200.0, "megakernel": 150.0}, "other": {"graph": 90.0, "megakernel": 60.0}}
FLOORS = {"one": 100.0, "other": 30.0}
PICTURES = {"floor": lambda provenance: above_the_floor(US, FLOORS, provenance=provenance)}


def test_a_bar_ends_at_the_stage_over_its_cards_floor():
    figure = PICTURES["floor"]("modelled")
    ends = [[bar.get_x() + bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert ends == [pytest.approx([2.0, 1.5]), pytest.approx([3.0, 2.0])]
    assert [text.get_text() for text in figure.axes[0].texts] == ["2", "1.5"]


@pytest.mark.planted
def test_a_time_below_the_floor_is_refused():
    with pytest.raises(ValueError, match="one: a time of 150 µs is below the floor, 160"):
        above_the_floor(US, FLOORS | {"one": 160.0}, provenance="modelled")
