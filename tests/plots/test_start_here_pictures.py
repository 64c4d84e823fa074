"""Notebook 00's pictures show counts of launches, and each result's share of one ceiling."""

import pytest

from luce_edu.measure.launches import Count
from luce_edu.measure.records.published import RESULTS
from luce_edu.plots.start_here import ladder, published_against_floor

COUNTS = {"eager": Count(2000, 0, 2000), "per_op": Count(460, 0, 460), "megakernel": Count(1, 121, 1)}

PICTURES = {
    "ladder": lambda provenance: ladder(COUNTS, RESULTS, provenance=provenance),
    "floor": lambda provenance: published_against_floor(RESULTS[:3], provenance=provenance),
}


def texts(figure):
    return " ".join(text.get_text() for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()])


def test_the_ladder_shows_counts_shares_and_its_caption():
    figure = PICTURES["ladder"]("published by others")
    shown = texts(figure)
    for expected in ("2,000", "460", "121 grid barriers", "18 %", "Luce megakernel"):
        assert expected in shown
    assert figure.get_supxlabel() == "published by others"


def test_results_of_two_gpus_do_not_share_a_ceiling():
    with pytest.raises(ValueError, match="one model on one GPU"):
        published_against_floor(RESULTS, provenance="published")
