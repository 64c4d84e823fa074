"""The least bytes and operations of a decode step and of a prompt, from the config. All modelled."""

from __future__ import annotations

import math
from dataclasses import dataclass

from luce_edu.config import ModelConfig


@dataclass(frozen=True)
class DecodeBytes:
    """The least bytes that one token moves at batch 1, each weight once and in bf16.

    layers           all weights between embedding and head
    lm_head          the weights of the head
    recurrent_state  read and written, fp32
    conv_state       read and written, bf16
    kv_cache         read up to the position, bf16
    """

    layers: int
    lm_head: int
    recurrent_state: int
    conv_state: int
    kv_cache: int

    @property
    def total(self) -> int:
        return self.layers + self.lm_head + self.recurrent_state + self.conv_state + self.kv_cache

    def floor_us(self, gb_per_s: float) -> float:
        """Return the µs to move all of them at a bandwidth in GB/s (10^9 bytes)."""
        return self.total / (gb_per_s * 1e3)


def decode_bytes(config: ModelConfig, position: int) -> DecodeBytes:
    """Return the least bytes of the step that decodes the token at `position`, with `position` tokens in the cache."""
    from luce_edu.weights import expected_tensors

    weights = sum(
        2 * math.prod(shape)
        for name, shape in expected_tensors(config).items()
        if name.startswith("model.layers.")
    )
    linear = len(config.linear_layers)
    return DecodeBytes(
        layers=weights,
        lm_head=2 * config.vocab_size * config.hidden_size,
        recurrent_state=recurrent_state_bytes(config) * 2,
        conv_state=linear * config.conv_dim * (config.linear_conv_kernel_dim - 1) * 2 * 2,
        kv_cache=kv_bytes_per_token(config) * position,
    )


def recurrent_state_bytes(config: ModelConfig) -> int:
    """Return the bytes of state of all DeltaNet layers, at any context: [key dim, value dim] in fp32 per value head."""
    head_state = config.linear_key_head_dim * config.linear_value_head_dim
    return len(config.linear_layers) * config.linear_num_value_heads * head_state * 4


def kv_bytes_per_token(config: ModelConfig) -> int:
    """Return the bytes per token of the KV cache of all attention layers: k and v in bf16."""
    return len(config.attention_layers) * 2 * config.num_key_value_heads * config.head_dim * 2


def prompt_operations(config: ModelConfig, tokens: int, *, logits: int = 1) -> dict[str, float]:
    """Return the operations of a prompt, by part. A multiplication and an addition count as two.

    logits  the number of tokens for which the head is computed
    """
    from luce_edu.weights import expected_tensors

    shapes = expected_tensors(config)
    weights = sum(math.prod(shape) for name, shape in shapes.items() if "layers." in name and "proj" in name)
    pairs = tokens * (tokens + 1) / 2 * config.num_attention_heads * len(config.attention_layers)
    return {
        "products with weights": 2 * tokens * weights + 2 * logits * config.vocab_size * config.hidden_size,
        "delta rule": tokens * delta_rule_operations(config),
        "attention": 4 * pairs * config.head_dim,  # q . k, and the weighted sum of v
    }


def delta_rule_operations(config: ModelConfig, chunk: int = 64) -> float:
    """Return the operations per token of the delta rule in all layers, for a prompt in chunks of `chunk` tokens."""
    K, V = config.linear_key_head_dim, config.linear_value_head_dim
    with_state = 6 * K * V  # W S, q S, k d^T
    with_tokens = chunk / 2 * (6 * K + 4 * V)  # on average half a chunk is before a token
    return len(config.linear_layers) * config.linear_num_value_heads * (with_state + with_tokens)


# Parameters by the models' cards, head and embedding tied, so all but a row of it is read for each token.
_PARAMETERS = {"Llama-3.2-1B": 1_235_814_400, "Qwen3-0.6B": 596_049_920}


def bytes_per_token(model: str) -> int:
    """The least that a token of a published model moves; ValueError for a model whose size is not known here."""
    if model == "Qwen3.5-0.8B":
        from luce_edu.models import RANDOM_CONFIG

        return decode_bytes(ModelConfig.from_file(RANDOM_CONFIG), position=520).total
    if model not in _PARAMETERS:
        raise ValueError(f"model: expected Qwen3.5-0.8B, {' or '.join(_PARAMETERS)}, got {model!r}")
    return 2 * _PARAMETERS[model]
