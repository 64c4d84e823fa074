"""Notebook 11's picture has a row per profile, with DRAM's use and the grid barriers at their times."""

import pytest

import luce_edu
from luce_edu.measure.profile import BUCKET_US
from luce_edu.plots.memory_pipe import pipe


@pytest.fixture(scope="module")
def steps():
    names = "ring", "words"
    return {name: luce_edu.profile("streaming", card="RTX 3090", position=20, variant=name) for name in names}


def test_a_row_marks_each_grid_barrier_and_only_until_words_replace_them(steps):
    with_barriers, without = pipe(steps).axes
    config = luce_edu.load_model("tiny").config
    assert len(with_barriers.lines) == 1 + 5 * config.num_hidden_layers + len(config.attention_layers)
    assert len(without.lines) == 1  # the datasheet's


def test_the_area_is_what_dram_moves(steps):
    profile = steps["words"]
    (axes,) = pipe({"words": profile}).axes
    (area,) = axes.collections
    heights = area.get_paths()[0].vertices[:, 1]
    full = BUCKET_US * 1e3 * profile.dram_gb_per_s / profile.dram_share
    assert heights.max() == pytest.approx(100 * profile.dram_use.max() / full)


def test_silence_is_time_of_the_kernel_in_which_dram_hardly_moves(steps):
    profile = steps["words"]
    silent = profile.silent_us
    assert 0 < silent < profile.total_us - profile.spans[0][1] + BUCKET_US
    assert steps["ring"].silent_us > silent  # barriers add silence


def test_the_caption_says_modelled_and_the_card(steps):
    said = pipe({"words": steps["words"]}, note="Two layers.")._supxlabel.get_text()
    assert said == "Modelled for an RTX 3090. Two layers."


@pytest.mark.planted
def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        pipe({})
    with pytest.raises(ValueError, match="variants are for streaming"):
        luce_edu.profile("megakernel", variant="ring")
    with pytest.raises(ValueError, match="variant: unknown name 'rings'; expected one of "):
        luce_edu.profile("streaming", variant="rings")
