"""The checkers of notebook 01 accept right answers in several forms, and refuse wrong ones with a reason."""

import math

import numpy as np
import torch
from answers import checker_tests

from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION
from luce_edu.exercises.hybrid_model import crossing, memory_bytes
from luce_edu.state import DecodeState


def right(config, tokens):
    matrix = config.linear_key_head_dim * config.linear_value_head_dim
    state = len(config.linear_layers) * config.linear_num_value_heads * matrix * 4
    return state, len(config.attention_layers) * 2 * config.num_key_value_heads * config.head_dim * 2 * tokens


def by_layer(config, tokens):
    state = cache = 0
    for kind in config.layer_types:
        if kind == LINEAR_ATTENTION:
            state += config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim * 4
        if kind == FULL_ATTENTION:
            cache += 2 * 2 * config.num_key_value_heads * config.head_dim * tokens
    return [state, cache]


def from_the_tensors(config, tokens):
    state = DecodeState.empty(config, 1)
    cache = (state.k_cache.nbytes + state.v_cache.nbytes) * tokens
    return state.recurrent_state.nbytes, cache


def scaled(state_factor, cache_factor):
    def answer(config, tokens):
        state, cache = right(config, tokens)
        return state * state_factor(config, tokens), cache * cache_factor(config, tokens)

    return answer


def one(config, tokens):
    return 1


MEMORY_WRONG = {
    "state in bf16": (scaled(lambda c, t: 0.5, one), "state in bf16"),
    "state of every token": (scaled(lambda c, t: t, one), "grows with the tokens"),
    "key heads": (scaled(lambda c, t: c.linear_num_key_heads / c.linear_num_value_heads, one), "key heads"),
    "all layers hold state": (scaled(lambda c, t: len(c.layer_types) / len(c.linear_layers), one), "every layer"),
    "square key matrices": (
        scaled(lambda c, t: c.linear_key_head_dim / c.linear_value_head_dim, one), r"\[key dim, key dim\]"),
    "k without v": (scaled(one, lambda c, t: 0.5), "half of the cache"),
    "query heads": (scaled(one, lambda c, t: c.num_attention_heads / c.num_key_value_heads), "query heads"),
    "cache in fp32": (scaled(one, lambda c, t: 2), "twice the cache"),
    "all layers cache": (scaled(one, lambda c, t: len(c.layer_types) / len(c.attention_layers)), "every layer"),
    "cache of one token": (scaled(one, lambda c, t: 1 / t), "one token"),
    "swapped": lambda c, t: right(c, t)[::-1],
    "numbers in place of bytes": (scaled(lambda c, t: 0.25, one), "numbers"),
    "square value matrices": (
        scaled(lambda c, t: c.linear_value_head_dim / c.linear_key_head_dim, one), r"\[value dim, value dim\]"),
    "NaN": lambda c, t: (math.nan, math.nan),
    "one number": lambda c, t: right(c, t)[0],
    "a text": lambda c, t: tuple(map(str, right(c, t))),
}  # fmt: skip
CROSSING_RIGHT = {
    "rounded up": lambda c: -(-right(c, 1)[0] // right(c, 1)[1]),
    "a loop": lambda c: next(t for t in range(10**6) if right(c, t)[1] >= right(c, t)[0]),
    "a tensor": lambda c: torch.tensor(-(-right(c, 1)[0] // right(c, 1)[1])),
}
CROSSING_WRONG = {
    "the one in the text": lambda c: 1536,
    "rounded down": lambda c: right(c, 1)[0] // right(c, 1)[1],
    "passed, not reached": lambda c: right(c, 1)[0] // right(c, 1)[1] + 1,
    "upside down": (lambda c: right(c, 1)[1] / right(c, 1)[0], "upside down"),
    "NaN": lambda c: math.nan,
}


def with_numpy(config, tokens):
    return np.array(right(config, tokens))


def as_tensor(config, tokens):
    return torch.tensor(right(config, tokens))


SIZES_RIGHT = {function.__name__: function for function in (right, by_layer, from_the_tensors, with_numpy, as_tensor)}
test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (memory_bytes, SIZES_RIGHT, MEMORY_WRONG), (crossing, CROSSING_RIGHT, CROSSING_WRONG), times=5
)
