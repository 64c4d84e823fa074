"""Exercises of notebook 01: what a hybrid model has to remember, by context."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION, ModelConfig
from luce_edu.exercises.base import Exercise, as_number, call, close, numbers
from luce_edu.measure.floor import kv_bytes_per_token, recurrent_state_bytes


def _configs() -> list[ModelConfig]:
    """Qwen3.5-0.8B, and two in which every number differs from every other that could be taken for it.

    First the one in which no two mistakes change the result by the same factor, so that a hint names the right one.
    """
    from luce_edu.models import RANDOM_CONFIG

    big = ModelConfig.from_file(RANDOM_CONFIG)
    kinds = 7 * [LINEAR_ATTENTION] + 5 * [FULL_ATTENTION]  # they meet at 80.64 tokens, so rounding matters
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
                "State: one key by value matrix in fp32 for each *value* head of each DeltaNet layer, at any length."
            )
            close(got[0], want, tolerance=1e-9, hint=f"{case} {hint}")
            want = kv_bytes_per_token(config) * tokens
            hint = _memory_hint(got[1] / want, _cache_mistakes(config, tokens)) or (
                "Cache: k and v in bf16, for each kv head of each attention layer, for each token."
            )
            close(got[1], want, tolerance=1e-9, hint=f"{case} {hint}")
    return "One number stays, the other grows with every token."


# By how much a likely mistake changes the right number, and its name.
def _state_mistakes(config: ModelConfig, tokens: int) -> dict[float, str]:
    layers = len(config.layer_types) / len(config.linear_layers)
    return {
        tokens: "This state grows with the tokens. It is one matrix a head, whatever the text.",
        config.linear_num_key_heads / config.linear_num_value_heads: "This counts the key heads; value heads own the "
        "matrices.",
        layers: "This gives a state to every layer; only the DeltaNet layers have one.",
        len(config.attention_layers) / len(config.linear_layers): "This counts the attention layers; the DeltaNet "
        "layers have the state.",
        0.5: "This is the state in bf16; it is kept in fp32.",
        0.25: "This counts the numbers; the bytes are asked for, four a number in fp32.",
        config.linear_key_head_dim / config.linear_value_head_dim: "A matrix is key by value, not key by key.",
        config.linear_value_head_dim / config.linear_key_head_dim: "A matrix is key by value, not value by value.",
    }


def _cache_mistakes(config: ModelConfig, tokens: int) -> dict[float, str]:
    return {
        1 / tokens: "This is the cache of one token.",
        config.num_attention_heads / config.num_key_value_heads: "This counts the query heads; they share the k and v "
        "of the key-value heads.",
        len(config.layer_types) / len(config.attention_layers): "This gives a cache to every layer; only the attention "
        "layers have one.",
        len(config.linear_layers) / len(config.attention_layers): "This counts the DeltaNet layers; the attention "
        "layers have the cache.",
        2: "This is twice the cache: it is kept in bf16, two bytes a number, and k and v are two rows a token.",
        0.5: "This is half of the cache: k and v are two rows a token, and bf16 has two bytes a number.",
        0.25: "This counts numbers of k alone: there is v too, and a number has two bytes.",
    }


def _memory_hint(ratio: float, mistakes: dict[float, str]) -> str | None:
    """The name of the mistake that makes an answer `ratio` times the right one."""
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
            hint = "This is upside down: the cache of one token over the state."
        hint = f"Case: {state:,} bytes of state, {per_token:,} bytes of cache a token. {hint}"
        close(got, want, tolerance=0, hint=hint)
    return "Up to there the state is the larger part of the memory; from there on, the cache is."


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
