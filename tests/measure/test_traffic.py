"""A decode step moves the bytes that follow from the config: every weight once and the state, and no others."""

import re
from dataclasses import replace
from functools import cache
from math import prod

import pytest
from models import ODD, TINY, make_model

from luce_edu.errors import KernelError
from luce_edu.faults import Fault, fault, planted
from luce_edu.machine.counters import Traffic
from luce_edu.measure.launches import count_launches
from luce_edu.measure.traffic import KINDS, StepTraffic, count_traffic

STAGES = ("per_op", "per_layer", "megakernel", "streaming")
CONFIGS = {"tiny": TINY, "odd": ODD, "odd, untied": replace(ODD, tie_word_embeddings=False)}
TOKENS = [5, 250, 17]


@cache
def model(name: str):
    return make_model(CONFIGS[name])


@cache
def traffic(name: str, stage: str) -> StepTraffic:
    return count_traffic(stage, model(name), TOKENS)


def by_tensor(step: StepTraffic) -> dict[str, Traffic]:
    total: dict[str, Traffic] = {}
    for entry in step.entries:
        for name, part in entry.traffic.items():
            total[name] = total.get(name, Traffic()) + part
    return total


EVERY = [(name, stage) for name in CONFIGS for stage in STAGES]


@pytest.mark.parametrize("name, stage", [(name, stage) for name, stage in EVERY if stage != "streaming"])
def test_every_weight_is_read_whole_and_once_and_of_the_embedding_one_row(name, stage):
    config, weights = CONFIGS[name], model(name).weights_on("cpu")
    row, tied = 2 * config.hidden_size, config.tie_word_embeddings
    wanted = {key: tensor.nbytes for key, tensor in weights.named_tensors()}
    embedding = "model.embed_tokens.weight"
    if not tied:
        wanted[embedding] = row
    elif stage != "megakernel":  # the head, another launch, reads that row again
        wanted[embedding] += row
    step = traffic(name, stage)
    read = {key: part.distinct_read for key, part in by_tensor(step).items() if step.kinds[key] == "weights"}
    assert read == wanted
    total = step.total("weights")
    extra = 0 if tied and stage == "megakernel" else row if tied else row - weights.embed_tokens.nbytes
    assert total.distinct_read == weights.num_bytes + extra
    assert (total.asked_write, total.moved_write, total.distinct_write) == (0, 0, 0)


PRODUCTS = {  # the matrices of a product: how many of its rows share a slot of 1024 weights
    ("in_proj", "q_proj", "k_proj", "v_proj"): 4, ("out_proj", "o_proj"): 2,
    ("gate_proj", "up_proj"): 4, ("down_proj",): 2,
}  # fmt: skip


def packed_bytes(weights) -> int:
    """The bytes of the slots that hold the matrices of all products of a token."""
    found = [([m for key, m in layer.items() if any(f".{name}" in key for name in names)], rows)
             for layer in weights.layers for names, rows in PRODUCTS.items()]  # fmt: skip
    return 2048 * sum(
        -(-sum(map(len, matrices)) // rows) * -(-matrices[0].shape[1] // (1024 // rows))
        for matrices, rows in [*found, ([weights.lm_head], 4)]
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_streaming_reads_its_packed_matrices_once_and_the_other_weights_as_they_are(name):
    weights, step = model(name).weights_on("cpu"), traffic(name, "streaming")
    wanted = {key: tensor.nbytes for key, tensor in weights.named_tensors() if "_proj" not in key}
    wanted.pop("lm_head.weight", None)
    wanted |= {"packed": packed_bytes(weights), "model.embed_tokens.weight": 2 * CONFIGS[name].hidden_size}
    total = by_tensor(step)
    read = {key: part.distinct_read for key, part in total.items() if step.kinds[key] == "weights"}
    assert read == wanted and total["packed"].moved_read == read["packed"]
    assert step.total("weights").distinct_write == 0


@pytest.mark.parametrize("name, stage", EVERY)
def test_the_state_is_read_and_written_as_the_config_says(name, stage):
    c = CONFIGS[name]
    conv = len(c.linear_layers) * c.conv_dim * (c.linear_conv_kernel_dim - 1) * 4
    heads = c.linear_num_value_heads, c.linear_key_head_dim, c.linear_value_head_dim
    recurrent = 4 * len(c.linear_layers) * prod(heads)
    position = len(c.attention_layers) * c.num_key_value_heads * c.head_dim * 2
    wanted = {  # bytes read, bytes written; all positions of the cache are in use
        "conv_state": (conv, conv),
        "recurrent_state": (recurrent, recurrent),
        "k_cache": (len(TOKENS) * position, position),
        "v_cache": (len(TOKENS) * position, position),
    }
    step = traffic(name, stage)
    found = {
        key: (part.distinct_read, part.distinct_write)
        for key, part in by_tensor(step).items()
        if step.kinds[key] == "state"
    }
    assert found == wanted


@pytest.mark.parametrize("name, stage", EVERY)
def test_launches_are_those_that_count_launches_counts(name, stage):
    assert len(traffic(name, stage).entries) == count_launches(CONFIGS[name], [stage])[stage].launches


@pytest.mark.parametrize("name, stage", EVERY)
def test_no_count_contradicts_another(name, stage):
    step = traffic(name, stage)
    for part in (part for entry in step.entries for part in entry.traffic.values()):
        assert part.distinct_read <= min(part.asked_read, part.moved_read) and part.moved_read <= 32 * part.asked_read
        assert part.distinct_write <= min(part.asked_write, part.moved_write)
        assert part.moved_write <= 32 * part.asked_write
    assert step.total() == sum((step.total(kind) for kind in KINDS), Traffic())
    assert all(entry.barriers_a_block is not None for entry in step.entries)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fused_layer_moves_fewer_activations(name):
    before, after = (traffic(name, stage).total("activations") for stage in ("per_op", "per_layer"))
    assert after.distinct_read < before.distinct_read / 2 and after.distinct_write < before.distinct_write / 2
    assert after.moved_read < before.moved_read / 2 and after.moved_write < before.moved_write


@pytest.mark.parametrize("stage", STAGES[1:])
def test_more_blocks_change_the_grid_and_not_what_is_touched(stage):
    kernel = {"per_layer": "deltanet_in"}.get(stage, stage)
    grids, touched = [], set()
    for count in (2, 10):
        step = count_traffic(stage, model("tiny"), TOKENS[:1], blocks={kernel: count})
        grids += {entry.grid[0] for entry in step.entries if entry.kernel == kernel}
        parts = [step.total(kind) for kind in ("weights", "state")]
        touched.add(tuple((part.distinct_read, part.distinct_write) for part in parts))
    assert grids == [2, 10] and len(touched) == 1


def test_the_table_shows_kinds_and_totals():
    step = traffic("tiny", "megakernel")
    text, weights = str(step), step.total("weights")
    assert "megakernel: 1 launches (measured: counted on the virtual GPU)" in text
    assert re.search(rf"weights +{weights.moved_read:,} +0 +{weights.distinct_read:,} +0\n", text)
    assert [row[0] for row in step.body] == [*KINDS, "all"]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="eager runs PyTorch's own kernels"):
        count_traffic("eager", model("tiny"), TOKENS)
    with pytest.raises(ValueError, match="unknown stage 'per_block'"):
        count_traffic("per_block", model("tiny"), TOKENS)
    with pytest.raises(ValueError):
        count_traffic("per_op", model("tiny"), [])
    for count in (0, -1, 2.0, True, 100_000):
        with pytest.raises(ValueError, match=f"blocks of delta_rule: .*1 to 1024, got {count}"):
            count_traffic("per_layer", model("tiny"), TOKENS, blocks={"delta_rule": count})


def named(value) -> str:
    return getattr(value, "name", str(value))


MISSED = [  # fault, kind of tensor, the count that gets smaller
    ("last row not written", "weights", "distinct_read"),
    ("conv_state does not move on", "state", "distinct_write"),
    ("newest position not read", "state", "distinct_read"),
]


@pytest.mark.planted
@pytest.mark.parametrize("name, kind, count", MISSED)
def test_what_a_faulty_kernel_leaves_out_is_missing_from_the_counts(name, kind, count, monkeypatch):
    one = fault(name)
    right = traffic("odd", one.stages[0]).total(kind)
    with planted(one) as tree:
        monkeypatch.setattr("luce_edu.paths.csrc_dir", lambda: tree)
        step = count_traffic(one.stages[0], model("odd"), TOKENS)
    assert getattr(step.total(kind), count) < getattr(right, count)


FAULTS = [
    Fault(
        "one row too many", "matvec.cuh",
        "row < rows; row += grid_warps()", "row <= rows; row += grid_warps()", ("per_layer", "megakernel"),
    ),
    Fault("one row too many, per_op", "per_op.cu", "if (row >= rows) return;", "if (row > rows) return;", ("per_op",)),
]  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("wrong, stage", [(wrong, stage) for wrong in FAULTS for stage in wrong.stages], ids=named)
def test_a_row_past_the_end_is_named_with_its_tensor(wrong, stage, monkeypatch):
    with planted(wrong) as tree:
        monkeypatch.setattr("luce_edu.paths.csrc_dir", lambda: tree)
        with pytest.raises(KernelError) as error:
            count_traffic(stage, model("odd"), TOKENS[:1])
    found = re.search(
        r"reads 16 bytes at .*, byte (\d+) of (model\.layers\.0\.\S+\.weight), which has (\d+) bytes: out of bounds .*"
        r"(matvec\.cuh|per_op\.cu):\d+",
        str(error.value),
    )
    assert found, str(error.value)
    tensor = dict(model("odd").weights_on("cpu").named_tensors())[found[2]]
    row = range(tensor.nbytes, tensor.nbytes + tensor[0].nbytes)  # the report may name any lane of that row
    assert int(found[1]) in row and int(found[3]) == tensor.nbytes
