"""config.json: both layouts give the same config, and an error names the field that is not supported."""

import dataclasses
import json
from pathlib import Path

import pytest

import luce_edu.config
from luce_edu.config import ModelConfig
from luce_edu.errors import ConfigError

WRAPPER = json.loads(
    (Path(luce_edu.config.__file__).parent / "data" / "qwen3_5-0.8b.config.json").read_text(encoding="utf-8")
)
TEXT = WRAPPER["text_config"]
ROPE = TEXT["rope_parameters"]


def test_qwen3_5_0_8b_has_its_published_dimensions():
    config = ModelConfig.from_dict(WRAPPER)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (1024, 24, 248320)
    assert (config.key_dim, config.value_dim, config.conv_dim) == (2048, 2048, 6144)
    assert config.rotary_dim == 64 and config.rope_theta == 1e7
    assert config.tie_word_embeddings and config.eos_token_ids == (248044,)
    assert config.attention_layers == (3, 7, 11, 15, 19, 23)
    assert sorted(config.linear_layers + config.attention_layers) == list(range(24))


def test_wrapper_and_text_only_layouts_read_alike():
    assert ModelConfig.from_dict(WRAPPER) == ModelConfig.from_dict(TEXT)


def test_config_agrees_with_transformers():
    transformers = pytest.importorskip("transformers")
    ours, theirs = ModelConfig.from_dict(TEXT), transformers.Qwen3_5TextConfig(**TEXT)
    for name in ("hidden_size", "head_dim", "linear_num_value_heads", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert list(ours.layer_types) == theirs.layer_types


def test_fields_that_a_config_leaves_out_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    ours = ModelConfig.from_dict({"model_type": "qwen3_5_text"})
    theirs = transformers.Qwen3_5TextConfig().to_dict()
    theirs |= theirs["rope_parameters"] | {"layer_types": tuple(theirs["layer_types"]), "eos_token_ids": ()}
    fields = dataclasses.asdict(ours)
    assert fields == {name: theirs[name] for name in fields}


def test_explicit_layer_types_go_before_the_interval():
    kinds = ["full_attention"] + ["linear_attention"] * 23
    assert ModelConfig.from_dict(TEXT | {"layer_types": kinds}).attention_layers == (0,)


def test_rope_fields_may_stand_at_the_top_level():
    flat = {name: value for name, value in TEXT.items() if name != "rope_parameters"}
    config = ModelConfig.from_dict(flat | {"rope_theta": 5e5, "partial_rotary_factor": 0.5})
    assert (config.rope_theta, config.rotary_dim) == (5e5, 128)


def test_conv_dim_follows_grouped_value_heads():
    config = ModelConfig.from_dict(TEXT | {"linear_num_value_heads": 32})
    assert (config.key_dim, config.value_dim, config.conv_dim) == (2048, 4096, 8192)


BAD_FIELDS = {  # test_checkpoint.py has the models, activations and kinds of RoPE that are refused
    "mixture_of_experts": ({"model_type": "qwen3_5_moe"}, "'qwen3_5_moe', a mixture of experts; take a dense"),
    "wrapper_without_text": ({"model_type": "qwen3_5"}, "text_config"),
    "missing_size": ({"hidden_size": None}, "hidden_size: .*got None"),
    "size_of_zero": ({"num_hidden_layers": 0}, "num_hidden_layers: .*got 0"),
    "size_as_text": ({"head_dim": "256"}, "head_dim: .*got '256'"),
    "size_as_bool": ({"vocab_size": True}, "vocab_size: .*got True"),
    "size_as_fraction": ({"head_dim": 256.0}, "head_dim: .*got 256.0"),
    "infinite_rotary": (
        {"rope_parameters": ROPE | {"partial_rotary_factor": float("inf")}}, "partial_rotary_factor .*got inf"),
    "rope_as_list": ({"rope_parameters": [1]}, r"rope_parameters .*got \[1\]"),
    "tie_as_text": ({"tie_word_embeddings": "no"}, "tie_word_embeddings .*got 'no'"),
    "eos_as_text": ({"eos_token_id": "<end>"}, "eos_token_id"),
    "eps_of_nan": ({"rms_norm_eps": float("nan")}, "rms_norm_eps .*got nan"),
    "uneven_attention_groups": ({"num_key_value_heads": 3}, "num_attention_heads 8 .* 3"),
    "uneven_delta_groups": ({"linear_num_value_heads": 24}, "linear_num_value_heads 24 .* 16"),
    "too_few_layer_types": ({"layer_types": ["full_attention"]}, "layer_types .*24"),
    "unknown_layer_type": ({"layer_types": ["mamba"] * 24}, "layer_types .*'mamba'"),
    "no_output_gate": ({"attn_output_gate": False}, "attn_output_gate .*got False"),
    "odd_rotary": ({"head_dim": 12}, "3 rotary"),
    "rotary_above_one": ({"rope_parameters": ROPE | {"partial_rotary_factor": 1.5}}, "partial_rotary_factor 1.5"),
    "theta_of_null": ({"rope_parameters": {"rope_theta": None}}, "rope_theta .*got None"),
}  # fmt: skip


@pytest.mark.parametrize("change, message", BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_bad_field_is_named_with_what_was_expected(change, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(TEXT | change)


@pytest.mark.parametrize("content", [[], None, "qwen3_5"])
def test_config_that_is_no_object_is_refused(content):
    with pytest.raises(ConfigError, match="expected an object"):
        ModelConfig.from_dict(content)


BAD_FILES = {
    "missing": None, "not_json": b"{", "not_utf8": b"\xff\xfe", "a_list": b"[]", "nested_too_deep": b"[" * 200_000,
    "other_model": b'{"model_type": "llama"}',
}  # fmt: skip


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="config.json: ") as error:
        ModelConfig.from_file(path)
    assert str(path) in str(error.value)
