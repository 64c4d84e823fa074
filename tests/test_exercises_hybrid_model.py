"""Each checker of notebook 01 takes right answers however written, and refuses the usual wrong ones."""

import math

import numpy as np
import pytest
import torch

from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION
from luce_edu.exercises.base import WrongAnswer
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
            state += (
                config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim * 4
            )
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
    "state in bf16": scaled(lambda c, t: 0.5, one),
    "state of every token": scaled(lambda c, t: t, one),
    "key heads": scaled(lambda c, t: c.linear_num_key_heads / c.linear_num_value_heads, one),
    "all layers hold state": scaled(lambda c, t: len(c.layer_types) / len(c.linear_layers), one),
    "square key matrices": scaled(lambda c, t: c.linear_key_head_dim / c.linear_value_head_dim, one),
    "k without v": scaled(one, lambda c, t: 0.5),
    "query heads": scaled(one, lambda c, t: c.num_attention_heads / c.num_key_value_heads),
    "cache in fp32": scaled(one, lambda c, t: 2),
    "all layers cache": scaled(one, lambda c, t: len(c.layer_types) / len(c.attention_layers)),
    "cache of one token": scaled(one, lambda c, t: 1 / t),
    "swapped": lambda c, t: right(c, t)[::-1],
    "numbers in place of bytes": scaled(lambda c, t: 0.25, one),
    "square value matrices": scaled(lambda c, t: c.linear_value_head_dim / c.linear_key_head_dim, one),
    "NaN": lambda c, t: (math.nan, math.nan),
    "one number": lambda c, t: right(c, t)[0],
    "a text": lambda c, t: tuple(map(str, right(c, t))),
}
CROSSING_RIGHT = {
    "rounded up": lambda c: -(-right(c, 1)[0] // right(c, 1)[1]),
    "a loop": lambda c: next(t for t in range(10**6) if right(c, t)[1] >= right(c, t)[0]),
    "a tensor": lambda c: torch.tensor(-(-right(c, 1)[0] // right(c, 1)[1])),
}
CROSSING_WRONG = {
    "the one in the text": lambda c: 1536,
    "rounded down": lambda c: right(c, 1)[0] // right(c, 1)[1],
    "passed, not reached": lambda c: right(c, 1)[0] // right(c, 1)[1] + 1,
    "upside down": lambda c: right(c, 1)[1] / right(c, 1)[0],
    "NaN": lambda c: math.nan,
}


def with_numpy(config, tokens):
    return np.array(right(config, tokens))


def as_tensor(config, tokens):
    return torch.tensor(right(config, tokens))


@pytest.mark.parametrize("answer", [right, by_layer, from_the_tensors, with_numpy, as_tensor])
def test_right_sizes_pass(answer, capsys):
    for _ in range(5):  # some of the cases are drawn at random
        memory_bytes.check(answer)
        assert "right" in capsys.readouterr().out


@pytest.mark.planted
@pytest.mark.parametrize("answer", MEMORY_WRONG.values(), ids=MEMORY_WRONG)
def test_wrong_sizes_are_refused(answer):
    for _ in range(5):
        with pytest.raises(WrongAnswer):
            memory_bytes.check(answer)


@pytest.mark.parametrize("answer", CROSSING_RIGHT.values(), ids=CROSSING_RIGHT)
def test_right_crossings_pass(answer, capsys):
    crossing.check(answer)
    assert "right" in capsys.readouterr().out


@pytest.mark.planted
@pytest.mark.parametrize("answer", CROSSING_WRONG.values(), ids=CROSSING_WRONG)
def test_wrong_crossings_are_refused(answer):
    for _ in range(5):
        with pytest.raises(WrongAnswer):
            crossing.check(answer)


NAMED = {  # by the wrong answer, what names the mistake
    "state in bf16": "the state in bf16",
    "state of every token": "grows with the tokens",
    "key heads": "counts the key heads",
    "all layers hold state": "a state for every layer",
    "square key matrices": r"This is \[key dim, key dim\]",
    "square value matrices": r"This is \[value dim, value dim\]",
    "numbers in place of bytes": "counts numbers",
    "k without v": "half of the cache",
    "query heads": "counts the query heads",
    "cache in fp32": "twice the cache",
    "all layers cache": "a cache for every layer",
    "cache of one token": "the cache of one token",
}


@pytest.mark.planted
@pytest.mark.parametrize("name, hint", NAMED.items(), ids=NAMED)
def test_a_likely_mistake_is_named(name, hint):
    with pytest.raises(WrongAnswer, match=hint):
        memory_bytes.check(MEMORY_WRONG[name])


@pytest.mark.planted
def test_a_quotient_upside_down_is_named():
    with pytest.raises(WrongAnswer, match="upside down"):
        crossing.check(CROSSING_WRONG["upside down"])
