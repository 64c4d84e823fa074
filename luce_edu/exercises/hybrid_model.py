"""Exercises of notebook 01: the memory of a hybrid model by context length."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION, ModelConfig
from luce_edu.exercises.base import Exercise, as_number, call, close, numbers
from luce_edu.measure.floor import kv_bytes_per_token, recurrent_state_bytes


def _configs() -> list[ModelConfig]:
    """Qwen3.5-0.8B and two variants in which numbers that are easily confused differ.

    The first is the variant in which every mistake changes the result by its own factor, so that a hint names it.
    """
    from luce_edu.models import RANDOM_CONFIG

    big = ModelConfig.from_file(RANDOM_CONFIG)
    kinds = 7 * [LINEAR_ATTENTION] + 5 * [FULL_ATTENTION]  # crossing at 80.64 tokens, so rounding matters
    odd = replace(
        big, layer_types=tuple(kinds), num_hidden_layers=12,
        linear_num_key_heads=4, linear_num_value_heads=12,
        linear_key_head_dim=64, linear_value_head_dim=96, num_attention_heads=15, num_key_value_heads=5,
    )  # fmt: skip
    return [odd, big, replace(big, linear_num_value_heads=80)]


def _memory_bytes(answer) -> str:
    for config in _configs():
        for tokens in (random.randrange(1000, 10**5), 1):
            got = numbers(call(answer, config, tokens), 2, "two numbers, state bytes and cache bytes")
            linear, attention = len(config.linear_layers), len(config.attention_layers)
            case = f"Case: {linear} DeltaNet and {attention} attention layers, {tokens:,} tokens."
            want = recurrent_state_bytes(config)
            hint = _memory_hint(got[0] / want, _state_mistakes(config, tokens)) or (
                "The state is one matrix [key dim, value dim] in fp32 per *value* head per DeltaNet layer, at any "
                "context length."
            )
            close(got[0], want, tolerance=1e-9, hint=f"{case} {hint}")
            want = kv_bytes_per_token(config) * tokens
            hint = _memory_hint(got[1] / want, _cache_mistakes(config, tokens)) or (
                "The cache holds k and v in bf16, per token, per KV head, per attention layer."
            )
            close(got[1], want, tolerance=1e-9, hint=f"{case} {hint}")
    big = _configs()[1]
    return (
        f"Checked on {len(_configs())} configs. For Qwen3.5-0.8B the state is {recurrent_state_bytes(big):,} bytes at "
        f"any length; the cache grows by {kv_bytes_per_token(big):,} bytes per token."
    )


# By the factor by which a likely mistake changes the right number: the hint that names it.
def _state_mistakes(config: ModelConfig, tokens: int) -> dict[float, str]:
    layers = len(config.layer_types) / len(config.linear_layers)
    return {
        tokens: "This state grows with the tokens. Its size does not depend on the context.",
        config.linear_num_key_heads / config.linear_num_value_heads: "This counts the key heads. Each value head "
        "has a matrix.",
        layers: "This counts a state for every layer. Only the DeltaNet layers have one.",
        len(config.attention_layers) / len(config.linear_layers): "This counts the attention layers. The DeltaNet "
        "layers have the state.",
        0.5: "This is the state in bf16. It is kept in fp32.",
        0.25: "This counts numbers. Return bytes: fp32 has four per number.",
        config.linear_key_head_dim / config.linear_value_head_dim: "A matrix is [key dim, value dim]. "
        "This is [key dim, key dim].",
        config.linear_value_head_dim / config.linear_key_head_dim: "A matrix is [key dim, value dim]. "
        "This is [value dim, value dim].",
    }


def _cache_mistakes(config: ModelConfig, tokens: int) -> dict[float, str]:
    return {
        1 / tokens: "This is the cache of one token.",
        config.num_attention_heads / config.num_key_value_heads: "This counts the query heads. Only the KV heads "
        "have k and v.",
        len(config.layer_types) / len(config.attention_layers): "This counts a cache for every layer. Only the "
        "attention layers have one.",
        len(config.linear_layers) / len(config.attention_layers): "This counts the DeltaNet layers. The attention "
        "layers have the cache.",
        2: "This is twice the cache. It is kept in bf16, two bytes per number; k and v are two rows per token.",
        0.5: "This is half of the cache. Are both k and v in it, with two bytes per number?",
        0.25: "This is a quarter of the cache. Are both k and v in it, with two bytes per number?",
    }


def _memory_hint(ratio: float, mistakes: dict[float, str]) -> str | None:
    """The hint for an answer that is `ratio` times the right one; None where no known mistake gives that."""
    return next((name for factor, name in mistakes.items() if factor != 1 and math.isclose(ratio, factor)), None)


memory_bytes = Exercise(
    name="memory_bytes",
    judge=_memory_bytes,
    spec="The bytes of recurrent state (fp32) and of KV cache (bf16) after some tokens, for any config.",
    skeleton='''\
def memory_bytes(config, tokens):
    """Return (bytes of recurrent state, bytes of KV cache) after `tokens` tokens."""
    return ...
''',
    hole="return ...",
    budget="10 minutes, four to six lines",
)


def _crossing(answer) -> str:
    for config in _configs():
        state, per_token = recurrent_state_bytes(config), kv_bytes_per_token(config)
        got = call(answer, config)
        want = -(-state // per_token)
        hint = "Which is the first whole number of tokens whose cache is at least as large as the state?"
        if math.isclose((as_number(got) or 0) * state, per_token):
            hint = "This is upside down: you divide the cache of one token by the state."
        hint = f"Case: {state:,} bytes of state, {per_token:,} bytes of cache per token. {hint}"
        close(got, want, tolerance=0, hint=hint)
    big = _configs()[1]
    tokens = -(-recurrent_state_bytes(big) // kv_bytes_per_token(big))
    return (
        f"Checked on {len(_configs())} configs. In Qwen3.5-0.8B the state is larger up to {tokens - 1:,} tokens; from "
        f"{tokens:,} on the cache is at least as large."
    )


crossing = Exercise(
    name="crossing",
    judge=_crossing,
    spec="The first whole number of tokens at which the cache is at least as large as the state.",
    skeleton='''\
def crossing(config):
    """Return the first whole number of tokens with a cache of at least the state's size."""
    return ...
''',
    hole="return ...",
    budget="5 minutes, one or two lines",
)
