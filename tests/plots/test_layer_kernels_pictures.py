"""Notebook 06's pictures show the launches that use a buffer, the owners of state and tile, and merged softmaxes."""

import math

import pytest
import torch
from matplotlib.colors import to_rgba

from luce_edu.backends.host import HostBackend
from luce_edu.backends.ledger import Launch
from luce_edu.config import ModelConfig
from luce_edu.machine.counters import Traffic
from luce_edu.machine.step import step
from luce_edu.models import RANDOM_CONFIG
from luce_edu.plots.layer_kernels import dataflow, delta_tile, online_softmax, softmax_workers, state_owners, tile_part
from luce_edu.plots.style import BLUE, GREEN, ORANGE, VERMILLION
from luce_edu.stages.dims import BLOCK_THREADS, kernel_defines


def _launch(kernel: str, **tensors: str) -> Launch:
    """An entry of a ledger that reads ("r"), writes ("w") or changes ("rw") tensors of 4 bytes."""
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
TILE = {"key_dim": 128, "tile_columns": 16, "block_threads": 512}
SCORES = [1, 3, 2, 6, 4, 1, 5, 2]

PICTURES = {
    "dataflow": lambda provenance: dataflow(FLOW, ["x", "y", "z"], {"front": 3, "back": 2}, provenance=provenance),
    "tile": lambda provenance: delta_tile(**TILE, provenance=provenance),
    "softmax": lambda provenance: softmax_workers(SCORES, 4, provenance=provenance),
    "owners": lambda provenance: state_owners(**OWNERS, provenance=provenance),
}


def test_a_buffer_lives_from_the_launch_that_writes_it_to_the_last_that_reads_it():
    (axes,) = PICTURES["dataflow"]("measured").axes
    bars = [line for line in axes.lines if line.get_linewidth() == 4]
    spans = [(line.get_ydata()[0], *line.get_xdata(), line.get_color()) for line in bars]
    # x is written before the first launch and read after the last. Each content of y is inside one kernel; z crosses.
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


def _touched(warp: int) -> set[tuple[int, int]]:
    """(thread, first of four floats of the state) of a warp's 16-byte loads in the full-size kernel delta_rule."""
    config = ModelConfig.from_file(RANDOM_CONFIG)
    kernel = HostBackend().compile("per_layer.cu", ["delta_rule"], kernel_defines(config))["delta_rule"]
    heads, keys, values = config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim
    state, gate = torch.zeros(heads, keys, values), torch.zeros(heads)
    args = [torch.zeros(config.conv_dim), gate, gate.clone(), state, torch.zeros(heads * values)]
    loads = [s for s in step(kernel, 128, BLOCK_THREADS, args, warp=warp) if s.text.startswith("ld.global.v4")]
    return {(32 * warp + lane, 4 * (at // 4)) for s in loads for lane, name, at in s.touched if name == "argument 3"}


@pytest.mark.parametrize("warp", [0, 1, 15])
def test_a_thread_owns_of_a_tile_what_the_kernel_loads_in_it(warp):
    owned = {(t, 128 * row + column) for t in range(32 * warp, 32 * warp + 32) for row, column in tile_part(t, **TILE)}
    assert _touched(warp) == owned and len(owned) == 32


@pytest.mark.planted
def test_another_order_of_the_threads_is_not_what_the_kernel_loads():
    other = {(t, 128 * row + column) for t in range(32) for row, column in tile_part(t, **TILE | {"tile_columns": 32})}
    assert _touched(0) != other


def test_the_lanes_with_a_threads_columns_are_marked_in_the_tile_and_in_the_partial_sums():
    tile, partial, total = PICTURES["tile"]("modelled").axes
    colours = [patch.get_facecolor() for patch in tile.patches]
    assert len(colours) == 512 and len(total.patches) == 16 and len(partial.patches) == 16 * 16 + 1

    def at(axes, colour):
        return [patch.get_xy() for patch in axes.patches if patch.get_facecolor() == to_rgba(colour)]

    assert at(tile, VERMILLION) == [(4, 9)] and at(tile, ORANGE) == [(4, row) for row in range(8, 16) if row != 9]
    assert at(partial, ORANGE) == [(column, 1) for column in range(4, 8)]
    assert [x for x, _ in at(total, GREEN)] == [4, 5, 6, 7]
    assert "3 steps" in partial.get_title(loc="left") and "16 partial sums" in total.get_title(loc="left")


@pytest.mark.planted
@pytest.mark.parametrize("change", [{"tile_columns": 12}, {"block_threads": 500}, {"thread": 512}])
def test_tiles_that_a_block_does_not_share_out_evenly_are_refused(change):
    with pytest.raises(ValueError):
        delta_tile(**TILE | change, provenance="modelled")


def test_merged_workers_have_the_weight_of_one_softmax():
    ends = [own[-1] for own in online_softmax(SCORES, 4)]
    top = max(end.maximum for end in ends)
    merged = sum(end.weight * math.exp(end.maximum - top) for end in ends)
    assert merged == pytest.approx(sum(math.exp(score - max(SCORES)) for score in SCORES))
    (axes,) = PICTURES["softmax"]("modelled").axes
    shown = [text.get_text() for text in axes.texts]
    assert f"max 6, weight {merged:.3f}" in shown and shown.count("max 4, weight 1.050") == 1
    assert [turn.rescaled for own in online_softmax(SCORES, 4) for turn in own] == [False, True, False, False] * 2


@pytest.mark.planted
@pytest.mark.parametrize("workers", [0, 9])
def test_workers_without_a_score_are_refused(workers):
    with pytest.raises(ValueError, match="workers: expected 1 to 8"):
        softmax_workers(SCORES, workers, provenance="modelled")
