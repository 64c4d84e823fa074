"""Notebook 05's pictures show each sector once, and a roof that bends."""

import numpy as np
import pytest

from luce_edu.plots.bytes_are_time import roofline, warp_loads

LANES = np.arange(32)
LOADS = {"down": (2048 * LANES + 2 * np.arange(3)[:, None], 2), "along": (16 * LANES + 512 * np.arange(2)[:, None], 16)}
GPUS = {"RTX 3090": (936, 35.6), "H100 SXM": (3350, 67)}

PICTURES = {
    "loads": lambda provenance: warp_loads(LOADS, row_bytes=2048, provenance=provenance),
    "roofline": lambda provenance: roofline(GPUS, {"1 token": 1, "64 tokens": 55}, provenance=provenance),
}


def test_loads_of_a_warp_show_each_sector_once_and_every_lane_in_it():
    down, along = PICTURES["loads"]("modelled").axes
    assert down.get_title(loc="left") == "down: 64 bytes asked for,\n32 sectors touched, 1,024 bytes"
    assert along.get_title(loc="left") == "along: 512 bytes asked for,\n16 sectors touched, 512 bytes"
    assert sorted(patch.get_width() for patch in down.patches) == [2] * 3 * 32 + [32] * 32
    assert sorted(patch.get_width() for patch in along.patches) == [16] * 2 * 32 + [32] * 2 * 16
    with pytest.raises(ValueError, match="whole sectors"):
        warp_loads(LOADS, row_bytes=2040, provenance="modelled")


def test_a_roofline_rises_to_the_arithmetic_and_stays_there():
    (axes,) = PICTURES["roofline"]("modelled").axes
    points = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "o"]
    assert points == [[pytest.approx(0.936), 35.6], [pytest.approx(3.35), 67]]
    assert [text.get_text() for text in axes.texts] == ["1 token", "64 tokens"]
