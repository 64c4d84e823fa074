"""Notebook 12's pictures mark the crossing points of their curves, and name each rate's share of the ceiling."""

import pytest

from luce_edu.plots.prefill import intensity_by_tokens, prefill_against_ceiling, tensor_core_tile, work_by_length

BY_TOKENS = {n: float(n) for n in range(1, 401)}
RATES = [("Luce megakernel\nfirst README", 37800.0), ("llama.cpp\nmegakernel README", 11247.0), ("PyTorch\n#5", 8747.0)]
WORK = {
    "products": dict.fromkeys((100, 1000, 10_000), 3e9),
    "delta rule": dict.fromkeys((100, 1000, 10_000), 1e9),
    "attention": {n: 2e6 * n for n in (100, 1000, 10_000)},
}

PICTURES = {
    "intensity": lambda provenance: intensity_by_tokens(
        BY_TOKENS, {"slow": 76.5, "fast": 295.0}, mark=(1, 300), provenance=provenance
    ),
    "tile": lambda provenance: tensor_core_tile(5, provenance=provenance),
    "work": lambda provenance: work_by_length(WORK, provenance=provenance),
    "rates": lambda provenance: prefill_against_ceiling(RATES, 67_676, provenance=provenance),
}


def test_each_gpu_is_reached_with_the_first_number_of_tokens_above_its_corner():
    (axes,) = PICTURES["intensity"]("modelled").axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["slow: 76, reached with 77 tokens", "fast: 295, reached with 295 tokens"]
    assert [text.get_text() for text in axes.texts] == ["1 token: 1", "300 tokens: 300"]


def test_a_lane_of_a_tile_stands_out_where_the_kernel_has_its_elements():
    lane = 5
    row, slot = divmod(lane, 4)
    expected = [
        {(row, slot), (row + 8, slot), (row, slot + 4), (row + 8, slot + 4)},
        {(slot, row), (slot + 4, row)},
        {(row, 2 * slot), (row, 2 * slot + 1), (row + 8, 2 * slot), (row + 8, 2 * slot + 1)},
    ]
    for axes, elements in zip(PICTURES["tile"]("published").axes, expected, strict=True):
        own = [text.get_position()[::-1] for text in axes.texts if text.get_text() == str(lane)]
        assert set(own) == elements and len(own) == len(elements)
        assert len({text.get_text() for text in axes.texts}) == 32


def test_the_length_at_which_the_last_part_overtakes_the_others_is_marked_at_half():
    (axes,) = PICTURES["work"]("modelled").axes
    assert [text.get_text() for text in axes.texts] == [*WORK, "2,000 tokens: equal to all other parts"]
    marked = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert marked == [pytest.approx((2000, 50))]
    rest = next(line for line in axes.lines if line.get_marker() == "None")
    assert rest.get_ydata() == pytest.approx([100 * 4 / (4 + n / 500) for n in (100, 1000, 10_000)])


def test_each_rate_has_its_share_of_the_ceiling_and_stands_in_the_row_of_its_system():
    rates = [*RATES, ("Luce megakernel\n#5", 8505.0)]
    (axes,) = prefill_against_ceiling(rates, 67_676, provenance="published").axes
    assert [text.get_text() for text in axes.texts] == [
        "8,505 (13 %)", "37,800 (56 %)", "11,247 (17 %)", "8,747 (13 %)", "ceiling: 67,676 tok/s",
    ]  # fmt: skip
    names = [label.get_text().split("\n") for label in axes.get_yticklabels()]
    assert names == [["Luce megakernel", "2 rates, 4.4 times apart"], ["llama.cpp"], ["PyTorch"]]
