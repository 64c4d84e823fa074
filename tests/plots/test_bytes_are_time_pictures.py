"""Notebook 05's pictures show each sector once, a roofline with its corner, loads in flight, and words in banks."""

import numpy as np
import pytest

from luce_edu.measure.probes import Loads
from luce_edu.plots.bytes_are_time import bandwidth_by_warps, loads_over_time, roofline, shared_banks, warp_loads

LANES = np.arange(32)
LOADS = {"down": (2048 * LANES + 2 * np.arange(3)[:, None], 2), "along": (16 * LANES + 512 * np.arange(2)[:, None], 16)}
RUNS = {"in turn": Loads("RTX 3090", [0, 10], [10, 20]), "together": Loads("RTX 3090", [0, 2], [10, 14])}
GPUS = {"RTX 3090": (936, 35.6), "H100 SXM": (3350, 67)}

PICTURES = {
    "loads": lambda provenance: warp_loads(LOADS, row_bytes=2048, provenance=provenance),
    "in flight": lambda provenance: loads_over_time(RUNS, provenance=provenance),
    "warps": lambda provenance: bandwidth_by_warps(
        5700, {"2 x 1": 64, "16 x 8": 4096}, {"attention": 16}, most_warps=48, provenance=provenance
    ),
    "banks": lambda provenance: shared_banks(
        {"natural": (8 * LANES, 4), "staged": (4 * LANES, 0)}, provenance=provenance
    ),
    "roofline": lambda provenance: roofline(GPUS, {"1 token": 1, "64 tokens": 55}, provenance=provenance),
}


def test_loads_of_a_warp_show_each_sector_once_and_every_lane_in_it():
    down, along = PICTURES["loads"]("modelled").axes
    assert down.get_title(loc="left") == "down: 64 bytes requested,\n32 sectors moved, 1,024 bytes"
    assert along.get_title(loc="left") == "along: 512 bytes requested,\n16 sectors moved, 512 bytes"
    assert sorted(patch.get_width() for patch in down.patches) == [2] * 3 * 32 + [32] * 32
    assert sorted(patch.get_width() for patch in along.patches) == [16] * 2 * 32 + [32] * 2 * 16
    with pytest.raises(ValueError, match="whole sectors"):
        warp_loads(LOADS, row_bytes=2040, provenance="modelled")


def test_a_roofline_rises_to_the_arithmetic_and_stays_there():
    (axes,) = PICTURES["roofline"]("modelled").axes
    points = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "o"]
    assert points == [[pytest.approx(0.936), 35.6], [pytest.approx(3.35), 67]]
    assert [text.get_text() for text in axes.texts] == ["1 token", "64 tokens"]


def test_a_bar_lasts_from_the_issue_of_a_load_until_its_value_is_used():
    slow, fast, below = PICTURES["in flight"]("modelled").axes
    spans = [(bar.get_x(), bar.get_width()) for bar in (*slow.patches, *fast.patches)]
    assert spans == [(0, 10), (10, 10), (0, 10), (2, 12)]
    assert slow.get_title(loc="left") == "in turn: 1,024 bytes in 20 ns, 51.2 GB/s"
    assert [list(line.get_ydata()) for line in below.lines] == [[512, 0, 512, 0], [512, 1024, 512, 0]]


@pytest.mark.planted
def test_loads_on_two_cards_are_refused():
    with pytest.raises(ValueError, match="one card"):
        loads_over_time(RUNS | {"elsewhere": Loads("T4", [0], [1])}, provenance="modelled")


def test_warps_reach_the_whole_bandwidth_where_their_bytes_are_those_of_littles_law():
    (axes,) = PICTURES["warps"]("modelled").axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["2 x 1: 90 warps, more than fit", "16 x 8: 2 warps"]
    narrow, wide = (np.interp([16, 48], *line.get_data()) for line in axes.lines[:2])
    assert narrow == pytest.approx([100 * 64 * w / 5700 for w in (16, 48)]) and list(wide) == [100, 100]
    assert [text.get_text() for text in axes.texts] == ["attention"]


def test_every_word_that_a_lane_reads_stands_in_its_bank():
    natural, bars, staged, others = PICTURES["banks"]("measured").axes
    assert natural.get_title(loc="left") == "natural: 8 turns, 4 conflicts counted"
    assert {patch.get_x() + 0.5 for patch in natural.patches} == {b for b in range(32) if b % 8 < 4}
    assert len(natural.patches) == len(staged.patches) == 128
    assert sum(bar.get_height() for bar in bars.patches) == sum(bar.get_height() for bar in others.patches) == 128


@pytest.mark.planted
def test_a_count_that_the_banks_do_not_explain_is_refused():
    with pytest.raises(ValueError, match="a bank gives 8 words, 4 would do, and 3 conflicts"):
        shared_banks({"natural": (8 * LANES, 3)}, provenance="measured")
