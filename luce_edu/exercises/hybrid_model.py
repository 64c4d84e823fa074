"""Exercises of notebook 01: what a hybrid model has to remember, by context."""

from __future__ import annotations

import random
from dataclasses import replace

from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION, ModelConfig
from luce_edu.exercises import Exercise, WrongAnswer, call, close
from luce_edu.measure.floor import kv_bytes_per_token, recurrent_state_bytes


def _configs() -> list[ModelConfig]:
    """Qwen3.5-0.8B, and two in which every number differs from every other that could be taken for it."""
    from luce_edu.models import RANDOM_CONFIG

    big = ModelConfig.from_file(RANDOM_CONFIG)
    kinds = 7 * [LINEAR_ATTENTION] + 5 * [FULL_ATTENTION]  # they meet at 80.64 tokens, so rounding matters
    odd = replace(
        big, layer_types=tuple(kinds), num_hidden_layers=12,
        linear_num_key_heads=4, linear_num_value_heads=12,
        linear_key_head_dim=64, linear_value_head_dim=96, num_attention_heads=10, num_key_value_heads=5,
    )  # fmt: skip
    return [big, replace(big, linear_num_value_heads=32), odd]


def _memory_bytes(answer) -> str:
    for config in _configs():
        for tokens in (1, random.randrange(2, 10**5)):
            got = call(answer, config, tokens)
            if not isinstance(got, (tuple, list)) or len(got) != 2:
                raise WrongAnswer(f"expected two numbers, state bytes and cache bytes, got {got!r}")
            linear, attention = len(config.linear_layers), len(config.attention_layers)
            case = f"Case: {linear} DeltaNet and {attention} attention layers, {tokens:,} tokens."
            hint = (
                f"{case} State: one key by value matrix in fp32 for each *value* head of each DeltaNet "
                "layer, whatever the number of tokens."
            )
            close(got[0], recurrent_state_bytes(config), tolerance=1e-9, hint=hint)
            hint = f"{case} Cache: k and v in bf16, for each kv head of each attention layer, for each token."
            close(got[1], kv_bytes_per_token(config) * tokens, tolerance=1e-9, hint=hint)
    return "One number stays, the other grows with every token."


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
        close(
            got, want, tolerance=0,
            hint=f"Case: {state:,} bytes of state, {per_token:,} bytes of cache a token. Which is the first "
            "whole number of tokens whose cache is at least as large as the state?",
        )  # fmt: skip
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
