"""Read the model's dimensions from config.json, and keep the names that it uses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from luce_edu.checkpoint import read_json
from luce_edu.errors import ConfigError, check_int

FULL_ATTENTION, LINEAR_ATTENTION = "full_attention", "linear_attention"

# Fields that must be positive integers, with the defaults for a config that leaves them out. The defaults here and
# below are those of transformers' Qwen3_5TextConfig, so that a checkpoint means the same in both;
# tests/test_config.py compares the two.
_SIZES = {
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 32768,
}
_QUANTISED = ("quantization_config", "compression_config", "quantization")  # the last is MLX's
BF16_COPY = "quantised weights are not supported; take the bf16 checkpoint that they were made from"
_RMS_NORM_EPS, _FULL_ATTENTION_INTERVAL = 1e-6, 4
_ROPE_THETA, _PARTIAL_ROTARY_FACTOR = 1e4, 0.25


@dataclass(frozen=True)
class ModelConfig:
    """The dimensions of a Qwen3.5 text model, with Hugging Face's field names; see `from_dict`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    layer_types: tuple[str, ...]
    rms_norm_eps: float
    rope_theta: float
    partial_rotary_factor: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_dict(cls, config: Mapping) -> ModelConfig:
        """Make a config from the content of a config.json: text-only, or a vision-language model's `text_config`.

        Raises ConfigError that names the field, what was expected and what came.
        """
        if not isinstance(config, Mapping):
            raise ConfigError(f"config: expected an object, got {type(config).__name__}")
        model_type = config.get("model_type")
        text = config
        if model_type == "qwen3_5":
            text = config.get("text_config")
            if not isinstance(text, Mapping):
                raise ConfigError("config: model_type 'qwen3_5' needs a 'text_config' object; there is none")
        elif model_type != "qwen3_5_text":
            why = ", a mixture of experts; take a dense model" if "_moe" in str(model_type) else ""
            raise ConfigError(f"config: expected model_type 'qwen3_5' or 'qwen3_5_text', got {model_type!r}{why}")

        for part, name in itertools.product((config, text), _QUANTISED):
            if quantised := part.get(name):
                method = quantised.get("quant_method", quantised) if isinstance(quantised, Mapping) else quantised
                raise ConfigError(f"config: {name} ({method!r:.60}): {BF16_COPY}")
        sizes = {name: _positive_int(text, name, default) for name, default in _SIZES.items()}
        rope = _rope(config, text)
        ties = [part.get("tie_word_embeddings", False) for part in (config, text)]
        for tie in ties:
            if not isinstance(tie, bool):
                raise ConfigError(f"config: expected tie_word_embeddings to be true or false, got {tie!r}")
        result = cls(
            **sizes,
            layer_types=_layer_types(text, sizes["num_hidden_layers"]),
            rms_norm_eps=_number(text, "rms_norm_eps", _RMS_NORM_EPS),
            rope_theta=_number(rope, "rope_theta"),
            partial_rotary_factor=_number(rope, "partial_rotary_factor"),
            tie_word_embeddings=any(ties),  # some of transformers' classes read the one, some the other
            eos_token_ids=tuple(sorted({*eos_ids(config), *eos_ids(text)})),
        )
        result._check(text)
        return result

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read a config.json. Raises ConfigError that names the file."""
        content = read_json(Path(path), ConfigError)
        try:
            return cls.from_dict(content)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def _check(self, text: Mapping) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"config: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise ConfigError(
                f"config: linear_num_value_heads {self.linear_num_value_heads} is not a multiple of "
                f"linear_num_key_heads {self.linear_num_key_heads}"
            )
        if not 0 < self.partial_rotary_factor <= 1 or self.rotary_dim % 2 or self.rotary_dim == 0:
            raise ConfigError(
                f"config: partial_rotary_factor {self.partial_rotary_factor} of head_dim {self.head_dim} "
                f"gives {self.rotary_dim} rotary dimensions; expected an even number above 0"
            )
        expected = {"hidden_act": "silu", "attention_bias": False, "attn_output_gate": True}
        for name, value in expected.items():
            if text.get(name, value) != value:
                raise ConfigError(f"config: expected {name} {value!r}, got {text[name]!r}")

    @property
    def rotary_dim(self) -> int:
        """Number of dimensions of a head that RoPE rotates; the others stay as they are."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def key_dim(self) -> int:
        """Width of all DeltaNet key heads together."""
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def value_dim(self) -> int:
        """Width of all DeltaNet value heads together."""
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the causal convolution: those of q, k and v together."""
        return 2 * self.key_dim + self.value_dim

    @property
    def linear_layers(self) -> tuple[int, ...]:
        """Indices of the Gated DeltaNet layers."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == LINEAR_ATTENTION)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the full-attention layers."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == FULL_ATTENTION)


def eos_ids(content: Mapping, where: str = "config") -> tuple[int, ...]:
    """Return `eos_token_id` of a config.json or generation_config.json as a tuple: none, one or several ids."""
    eos = content.get("eos_token_id")
    ids = () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    if not all(type(token) is int for token in ids):
        raise ConfigError(f"{where}: expected eos_token_id to be one or more integers, got {eos!r}")
    return ids


def _rope(config: Mapping, text: Mapping) -> Mapping:
    """Return RoPE's parameters, however they are spelled, as transformers reads them.

    A `rope_scaling` that is not empty takes precedence over `rope_parameters`. Fields that are missing there come from
    the text config itself. Only plain RoPE is supported: scaled RoPE is refused, in the wrapper's config too.
    """
    for part in (config, text):  # the text config comes last, because its parameters are the ones returned
        name = "rope_scaling" if part.get("rope_scaling") else "rope_parameters"
        rope = part.get(name) or {}
        if not isinstance(rope, Mapping):
            raise ConfigError(f"config: expected {name} to be an object, got {rope!r}")
        if layers := sorted({FULL_ATTENTION, LINEAR_ATTENTION} & rope.keys()):
            raise ConfigError(f"config: expected one {name} for all layers, got one for {', '.join(layers)}")
        kind = rope.get("rope_type", rope.get("type", "default"))
        # The wrapper's config of older vision models says mrope, which equals plain RoPE if all tokens are text.
        if kind != "default" and not (kind == "mrope" and part is not text):
            raise ConfigError(
                f"config: expected rope_type 'default', got {kind!r} in {name}: only plain RoPE is supported; if the "
                "scaling was added for long contexts, take the config.json without it"
            )
    beside = {
        "rope_theta": text.get("rope_theta", _ROPE_THETA),
        "partial_rotary_factor": text.get("partial_rotary_factor", _PARTIAL_ROTARY_FACTOR),
    }
    return beside | rope


def _positive_int(config: Mapping, name: str, default: int) -> int:
    return check_int(f"config: {name}", config.get(name, default), 1, error=ConfigError)


def _number(config: Mapping, name: str, default: float | None = None) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"config: expected {name} to be a positive number, got {value!r}")
    return float(value)


def _layer_types(text: Mapping, num_hidden_layers: int) -> tuple[str, ...]:
    """Return the config's `layer_types`; without them, every `full_attention_interval`-th layer is attention."""
    kinds = text.get("layer_types")
    if kinds is None:
        interval = _positive_int(text, "full_attention_interval", _FULL_ATTENTION_INTERVAL)
        return tuple(
            LINEAR_ATTENTION if (i + 1) % interval else FULL_ATTENTION for i in range(num_hidden_layers)
        )
    if not isinstance(kinds, list) or len(kinds) != num_hidden_layers:
        raise ConfigError(f"config: expected layer_types to list {num_hidden_layers} layers, got {kinds!r}")
    unknown = sorted({str(kind) for kind in kinds} - {LINEAR_ATTENTION, FULL_ATTENTION})
    if unknown:
        choices = f"{LINEAR_ATTENTION} or {FULL_ATTENTION}"
        raise ConfigError(f"config: unknown layer_types {unknown}; expected {choices}")
    return tuple(kinds)
