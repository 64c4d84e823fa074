"""Every picture says where its numbers come from, and shows the numbers that it was given."""

import pytest

from luce_edu.config import ModelConfig
from luce_edu.measure.launches import Count
from luce_edu.measure.published import RESULTS
from luce_edu.models import RANDOM_CONFIG
from luce_edu.plots import ladder, published_against_floor, state_against_kv

COUNTS = {"eager": Count(2000, 0), "per_op": Count(460, 0), "megakernel": Count(1, 121)}
BIG = ModelConfig.from_file(RANDOM_CONFIG)
PICTURES = {
    "ladder": lambda provenance: ladder(COUNTS, RESULTS, provenance=provenance),
    "floor": lambda provenance: published_against_floor(RESULTS[:3], provenance=provenance),
    "state": lambda provenance: state_against_kv(BIG, provenance=provenance),
}


def texts(figure):
    return " ".join(
        text.get_text() for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()]
    )


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize("provenance", ["", "   ", "numbers from somewhere"])
def test_a_picture_without_provenance_is_refused(picture, provenance):
    with pytest.raises(ValueError, match="provenance"):
        picture(provenance)


def test_provenance_has_no_default_that_passes():
    with pytest.raises(ValueError, match="provenance"):
        state_against_kv(BIG)


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_a_picture_shows_itself_in_a_notebook(picture):
    assert picture("modelled from the config")._repr_png_().startswith(b"\x89PNG")


def test_the_ladder_shows_counts_shares_and_its_caption():
    figure = PICTURES["ladder"]("published by others")
    shown = texts(figure)
    for expected in ("2,000", "460", "121 grid barriers", "18 %", "Luce megakernel"):
        assert expected in shown
    assert figure.get_supxlabel() == "published by others"


def test_the_crossing_is_where_the_cache_passes_the_state():
    assert "1,536 tokens" in texts(PICTURES["state"]("modelled"))


def test_results_of_two_gpus_do_not_share_a_ceiling():
    with pytest.raises(ValueError, match="one model on one GPU"):
        published_against_floor(RESULTS, provenance="published")
