"""The bytes of a decode step agree with the published figures of the model and with the sizes of the tensors."""

import pytest

from luce_edu.config import ModelConfig
from luce_edu.measure.floor import (
    decode_bytes,
    delta_rule_operations,
    kv_bytes_per_token,
    prompt_operations,
    recurrent_state_bytes,
)
from luce_edu.models import RANDOM_CONFIG, load_model
from luce_edu.state import DecodeState

BIG = ModelConfig.from_file(RANDOM_CONFIG)


def test_the_08b_model_moves_1_550_gb_at_position_520():
    parts = decode_bytes(BIG, 520)
    assert round(parts.total / 1e9, 3) == 1.550
    assert (round(parts.layers / 1e6, 1), round(parts.lm_head / 1e6, 1)) == (996.2, 508.6)
    assert round(parts.recurrent_state / 1e6, 1) == 37.7
    assert round((parts.conv_state + parts.kv_cache) / 1e6, 1) == 7.7


def test_the_cache_is_as_large_as_the_recurrent_state_at_1536_tokens():
    assert kv_bytes_per_token(BIG) == 12_288
    assert recurrent_state_bytes(BIG) == 1536 * 12_288


def test_sizes_equal_those_of_the_tensors():
    tiny = load_model("tiny")
    state = DecodeState.empty(tiny.config, 10)
    assert recurrent_state_bytes(tiny.config) == state.recurrent_state.nbytes
    assert 10 * kv_bytes_per_token(tiny.config) == state.k_cache.nbytes + state.v_cache.nbytes
    matrices = sum(t.nbytes for layer in tiny.weights.layers for t in layer.values() if t.dim() == 2)
    # The rest is vectors; the floor counts them in bf16, as the checkpoint stores them.
    assert matrices < decode_bytes(tiny.config, 0).layers < 1.02 * matrices


def test_the_floor_is_bytes_over_bandwidth():
    assert decode_bytes(BIG, 520).floor_us(936) == pytest.approx(1656, abs=1)


def test_a_prompt_does_two_operations_for_each_weight_and_token_and_attention_grows_with_its_square():
    last, every = (prompt_operations(BIG, 520, logits=rows) for rows in (1, 520))
    head = 2 * BIG.vocab_size * BIG.hidden_size
    assert every["products with weights"] - last["products with weights"] == 519 * head
    matrices = (last["products with weights"] - head) / 520  # two operations per weight, which has two bytes in bf16
    assert 0.999 < matrices / decode_bytes(BIG, 0).layers < 1  # the bytes also include vectors and the convolution
    assert prompt_operations(BIG, 1041)["attention"] == pytest.approx(4 * last["attention"], rel=0.01)
    assert round(sum(every.values()) / sum(last.values()), 2) == 1.48


def test_the_delta_rule_does_three_products_with_the_state_and_pairs_within_a_chunk():
    heads, K, V = BIG.linear_num_value_heads, BIG.linear_key_head_dim, BIG.linear_value_head_dim
    a_head = delta_rule_operations(BIG, 1) / len(BIG.linear_layers) / heads
    assert a_head == 6 * K * V + 3 * K + 2 * V
    assert delta_rule_operations(BIG) == prompt_operations(BIG, 1)["delta rule"]
