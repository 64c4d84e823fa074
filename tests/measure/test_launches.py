"""A count taken at reduced width is the count of the model itself."""

from dataclasses import replace

import pytest

import luce_edu
from luce_edu.config import ModelConfig
from luce_edu.measure.launches import count_launches, narrow
from luce_edu.models import RANDOM_CONFIG, load_model

KERNEL_STAGES = tuple(stage for stage in luce_edu.STAGES if stage != "eager")


def test_counts_at_reduced_width_equal_those_of_tiny():
    tiny = load_model("tiny")
    counts = count_launches(tiny.config)
    for stage in luce_edu.STAGES:
        dec = luce_edu.decoder(stage, tiny, "host", max_seq_len=4)
        dec.step(1)
        dec.step(2)
        assert (counts[stage].launches, counts[stage].barriers) == (dec.launches, dec.barriers), stage


def test_counts_follow_the_layers():
    big = ModelConfig.from_file(RANDOM_CONFIG)
    half = replace(big, num_hidden_layers=12, layer_types=big.layer_types[:12])
    all_of_it, half_of_it = (
        count_launches(config, ["per_layer"])["per_layer"].launches for config in (big, half)
    )
    assert (all_of_it, half_of_it) == (2 + 5 * 24, 2 + 5 * 12)


def test_narrow_keeps_layers_and_heads():
    big = ModelConfig.from_file(RANDOM_CONFIG)
    small = narrow(big)
    for name in ("layer_types", "num_attention_heads", "num_key_value_heads", "linear_num_value_heads"):
        assert getattr(small, name) == getattr(big, name)


@pytest.mark.full
def test_counts_at_reduced_width_equal_those_of_random_08b():
    model = load_model("random-0.8b")
    counts = count_launches(model.config, KERNEL_STAGES)
    for stage in KERNEL_STAGES:
        dec = luce_edu.decoder(stage, model, "host", max_seq_len=2)
        dec.step(1)
        assert counts[stage].launches == dec.launches, stage
