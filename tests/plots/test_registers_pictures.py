"""Notebook 10's pictures draw the blocks that an SM holds, and mark tiles whose launch is refused."""

import pytest
from matplotlib.colors import to_hex

from luce_edu.machine.cards import LIMITS, resident_blocks
from luce_edu.plots.registers import blocks_by_registers, time_by_tile
from luce_edu.plots.style import VERMILLION

TILES = {"sm_86": {4: 48, 16: 96}, "sm_120": {4: 68, 16: 158}}
TIMES = {"a": {4: (1.0, 2.0), 8: (3.0, 4.0)}, "b": {4: (5.0, 6.0)}}

PICTURES = {
    "blocks": lambda provenance: blocks_by_registers(TILES, threads=128, grids={8: "eight"}, provenance=provenance),
    "times": lambda provenance: time_by_tile(TIMES, provenance=provenance),
}


def panels(tiles=TILES, grids=None):
    grids = {8: "eight"} if grids is None else grids
    return blocks_by_registers(tiles, threads=128, grids=grids, provenance="modelled").axes


def points(axes):
    """Of each tile: its registers, its blocks, and whether it is orange."""
    return [(line.get_xdata()[0], line.get_ydata()[0], to_hex(line.get_color()) == VERMILLION.lower())
            for line in axes.lines if line.get_marker() == "o"]  # fmt: skip


def test_a_panel_has_the_steps_of_its_limits_and_the_tiles_on_them():
    for axes, (arch, registers) in zip(panels(), TILES.items(), strict=True):
        steps = dict(zip(axes.lines[0].get_xdata(), axes.lines[0].get_ydata(), strict=True))
        assert steps[16] == LIMITS[arch].threads_per_sm // 128 and steps[255] == 2
        for (used, held, orange), count in zip(points(axes), registers.values(), strict=True):
            assert used == count
            assert held == steps[used] == resident_blocks(LIMITS[arch], threads=128, registers=count)
            assert orange == (held < 8)


@pytest.mark.planted
def test_a_tile_is_orange_where_the_launch_is_refused_and_only_there():
    assert [orange for axes in panels(grids={4: "four"}) for *_, orange in points(axes)] == [False, False, False, True]
    assert not any(orange for axes in panels(grids={}) for *_, orange in points(axes))


def test_no_tile_s_label_lies_on_a_dashed_line():
    axes, *_ = panels({"sm_86": {4: 48, 8: 64, 16: 96, 32: 161}}, grids={8: "eight", 4: "four"})
    axes.figure.draw_without_rendering()
    heights = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    dashed = [axes.transData.transform((0, height))[1] for height in heights]
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text().isdigit()]
    assert len(dashed) == 2 and len(boxes) == 4
    assert not any(box.y0 <= y <= box.y1 for box in boxes for y in dashed)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="sm_1"):
        panels({"sm_1": {4: 48}})


def test_times_are_drawn_as_ranges_side_by_side():
    (axes,) = PICTURES["times"]("modelled").axes
    drawn = [[tuple(sorted(y for _, y in part)) for part in bars.get_segments()] for bars in axes.collections]
    assert drawn == [[(1.0, 2.0), (3.0, 4.0)], [(5.0, 6.0)]]
    at = [line.get_xdata()[0] for line in axes.lines]
    assert at[0] < 0 < at[1] and [label.get_text() for label in axes.get_xticklabels()] == ["4", "8"]
