"""Each warp of csrc/streaming.cu finds the weights that it multiplies where it reads next, and each of them once."""

import dataclasses

import pytest
import torch
from models import CONFIGS, make_model

from luce_edu.config import LINEAR_ATTENTION
from luce_edu.stages.packing import Layout, pack

WARPS = 12  # of a block
SLOT, BATCH = 1024, 120  # weights of a slot; the most units of work between two barriers
IN, OUT = 4, 2  # rows of a group: of the matrices that read a vector of hidden_size, and of those that write it


def reads(groups, slots, shared, blocks, warps=WARPS):
    """For each warp of the grid, the (group, slot of the group) that it takes, in its order.

    These are the loops of stream_groups() in csrc/streaming.cu. shared: several warps share a group
    """
    taken = [[] for _ in range(blocks * warps)]
    split = slots if shared else 1
    batch = BATCH // split * split
    for block in range(blocks):
        begin, end = groups * block // blocks, groups * (block + 1) // blocks
        for first in range(0, (end - begin) * split, batch):
            here = min((end - begin) * split - first, batch)
            for warp in range(warps):
                for unit in range(first + warp, first + here, warps):
                    slots_of_unit = range(unit % split * (slots // split), (unit % split + 1) * (slots // split))
                    taken[block * warps + warp] += [(begin + unit // split, slot) for slot in slots_of_unit]
    return taken


def matrices(model):
    """The rows of each product, as (rows of a group, whether it may be shared, matrix [rows, columns])."""
    for layer, kind in zip(model.weights.layers, model.config.layer_types, strict=True):
        if kind == LINEAR_ATTENTION:
            names = [f"linear_attn.in_proj_{name}" for name in ("qkv", "z", "b", "a")]
            out = "linear_attn.out_proj"
        else:
            names, out = [f"self_attn.{name}_proj" for name in "qkv"], "self_attn.o_proj"
        gate, up = layer["mlp.gate_proj.weight"], layer["mlp.up_proj.weight"]
        yield IN, False, torch.cat([layer[f"{name}.weight"] for name in names])
        yield OUT, True, layer[f"{out}.weight"]
        yield IN, False, torch.cat([part for i in range(0, len(gate), 2) for part in (gate[i : i + 2], up[i : i + 2])])
        yield OUT, True, layer["mlp.down_proj.weight"]
    yield IN, False, model.weights.lm_head


def wrong_slots(model, stream, first_slot, blocks, split) -> int:
    """Count the slots that differ from what their warp expects, that nobody reads, or that are missing."""
    at, wrong = first_slot.tolist(), 0
    for group, may_share, matrix in matrices(model):
        rows, columns = matrix.shape
        width = SLOT // group
        seen = torch.zeros(rows, columns, dtype=torch.int8)
        order = reads(-(-rows // group), -(-columns // width), may_share and split, blocks)
        for warp, places in enumerate(order):
            for number, slot in places:
                tile = (slice(number * group, (number + 1) * group), slice(slot * width, (slot + 1) * width))
                expected, part = torch.zeros(group, width, dtype=matrix.dtype), matrix[tile]
                expected[: part.shape[0], : part.shape[1]] = part
                seen[tile] += 1
                wrong += at[warp] >= len(stream) or not torch.equal(stream[at[warp]].view(group, width), expected)
                at[warp] += 1
        assert bool((seen == 1).all()), "the loops take every weight once"
    return wrong + sum(abs(end - begin) for end, begin in zip(at[:-1], first_slot.tolist()[1:], strict=True))


@pytest.fixture(scope="module", params=["odd", "wide"])
def model(request):
    """The first config has rows and columns that complete no group and no slot. mlp_down gets three slots a row."""
    config = dataclasses.replace(CONFIGS[request.param], intermediate_size=1096)
    return make_model(dataclasses.replace(config, num_hidden_layers=2, layer_types=config.layer_types[:2]))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("blocks", [1, 3, 200])  # 200: more than a projection has groups
def test_each_weight_is_once_in_the_stream_where_its_warp_reads_it(model, blocks, split):
    stream, first_slot = pack(model.weights, model.config, Layout(blocks, WARPS, split))
    assert wrong_slots(model, stream, first_slot, blocks, split) == 0


@pytest.mark.planted
@pytest.mark.parametrize("fault", ["swapped", "other blocks", "not split", "a slot short"])
def test_a_stream_in_another_order_is_noticed(model, fault):
    layout = {"other blocks": Layout(4, WARPS, True), "not split": Layout(3, WARPS, False)}
    stream, first_slot = pack(model.weights, model.config, layout.get(fault, Layout(3, WARPS, True)))
    if fault == "swapped":
        stream[[7, 8]] = stream[[8, 7]]
    if fault == "a slot short":
        stream = stream[:-1]
    if fault == "other blocks":
        first_slot = first_slot[: 3 * WARPS + 1]
    assert wrong_slots(model, stream, first_slot, 3, True)


@pytest.mark.parametrize("blocks", [1, 7, 80])
@pytest.mark.parametrize("groups, slots, rows", [(1, 1, IN), (66, 2, IN), (333, 5, OUT), (50, 7, OUT), (16, 24, OUT)])
def test_places_follow_the_loops_of_the_kernel(groups, slots, rows, blocks):
    """Also where the units of a batch are no multiple of the warps, such as 126 for seven slots."""
    owner, rank, count = Layout(blocks, WARPS, True).places(groups, slots, rows)
    order = reads(groups, slots, rows == OUT, blocks)
    assert count.tolist() == [len(places) for places in order]
    for warp, places in enumerate(order):
        for i, (group, slot) in enumerate(places):
            assert (owner[group * slots + slot], rank[group * slots + slot]) == (warp, i)
