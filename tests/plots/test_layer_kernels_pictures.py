"""Notebook 06's pictures show how long a buffer lives and who owns a state."""

import pytest

from luce_edu.backends.ledger import Launch
from luce_edu.machine.counters import Traffic
from luce_edu.plots.layer_kernels import dataflow, state_owners
from luce_edu.plots.style import BLUE, VERMILLION


def _launch(kernel: str, **tensors: str) -> Launch:
    """A ledger's entry that reads ("r"), writes ("w") or changes ("rw") tensors of 4 bytes."""
    traffic = {
        name: Traffic(distinct_read=4 * ("r" in how), distinct_write=4 * ("w" in how)) for name, how in tensors.items()
    }
    return Launch(kernel, (1, 1, 1), (32, 1, 1), 0, False, traffic=traffic, barriers_a_block=0.0)


FLOW = [
    _launch("norm", x="r", y="w"),
    _launch("matvec", y="r", z="w"),
    _launch("silu", z="rw"),
    _launch("add", z="r", y="w"),
    _launch("copy", y="r", x="w"),
]
OWNERS = {"heads": 16, "key_dim": 128, "value_dim": 128, "tile_columns": 16, "block_threads": 512, "sm_count": 82}

PICTURES = {
    "dataflow": lambda provenance: dataflow(FLOW, ["x", "y", "z"], {"front": 3, "back": 2}, provenance=provenance),
    "owners": lambda provenance: state_owners(**OWNERS, provenance=provenance),
}


def test_a_buffer_lives_from_the_launch_that_writes_it_to_the_last_that_reads_it():
    (axes,) = PICTURES["dataflow"]("measured").axes
    bars = [line for line in axes.lines if line.get_linewidth() == 4]
    spans = [(line.get_ydata()[0], *line.get_xdata(), line.get_color()) for line in bars]
    # x comes from before and goes on after; y has two contents, each inside one kernel; z crosses.
    assert spans == [(0, -1, 0, BLUE), (0, 4, 5, BLUE), (1, 0, 1, VERMILLION), (1, 3, 4, VERMILLION), (2, 1, 3, BLUE)]
    assert [text.get_text() for text in axes.texts] == ["front", "back"]


@pytest.mark.planted
@pytest.mark.parametrize("kernels, total", [({"front": 3}, 3), ({"front": 3, "back": 3}, 6), ({}, 0)])
def test_kernels_that_do_not_replace_all_launches_are_refused(kernels, total):
    with pytest.raises(ValueError, match=f"they replace {total} launches, and there are 5"):
        dataflow(FLOW, ["x"], kernels, provenance="measured")


def test_sixteen_blocks_leave_most_multiprocessors_idle_and_tiles_leave_none():
    column, few, tile, many = PICTURES["owners"]("modelled").axes
    assert few.get_title(loc="left") == "16 blocks: 16 of 82 SMs have work"
    assert many.get_title(loc="left") == "128 blocks: 82 of 82 SMs have work"
    assert [len(axes.texts) for axes in (few, many)] == [16, 82]
    assert sum(int(text.get_text()) for text in many.texts) == 128
    assert ["128 numbers" in text.get_text() for text in column.texts] == [True]
    assert ["4 numbers" in text.get_text() for text in tile.texts] == [True]


@pytest.mark.planted
@pytest.mark.parametrize("columns", [12, 6, 256])
def test_tiles_that_do_not_divide_a_head_are_refused(columns):
    with pytest.raises(ValueError, match="tile_columns"):
        state_owners(**OWNERS | {"tile_columns": columns}, provenance="modelled")
