"""Each checker of notebook 00 takes right answers however written, and refuses the usual wrong ones."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from luce_edu.exercises.base import WrongAnswer
from luce_edu.exercises.start_here import cache_position, floor

FLOOR_RIGHT = {
    "seconds first": lambda b, w: (b / (w * 1e9) * 1e6, w * 1e9 / b),
    "an array of NumPy": lambda b, w: np.array([b / w / 1e3, w * 1e9 / b]),
    "numbers of NumPy": lambda b, w: (np.float64(b) / w / 1e3, np.divide(w * 1e9, b)),
    "a tensor": lambda b, w: torch.tensor([b / w / 1e3, w * 1e9 / b], dtype=torch.float64),
    "tensors in fp32": lambda b, w: (torch.tensor(b / w / 1e3), torch.tensor(w * 1e9 / b)),
    "fractions": lambda b, w: (Fraction(b) / Fraction(w) / 1000, Fraction(w) * 10**9 / Fraction(b)),
    "a list, through gigabytes": lambda b, w: [b / 1e9 / w * 1e6, 1e6 / (b / 1e9 / w * 1e6)],
}
FLOOR_WRONG = {
    "milliseconds": lambda b, w: (b / w / 1e6, w * 1e9 / b),
    "seconds": lambda b, w: (b / w / 1e9, w * 1e9 / b),
    "GB as 2**30": lambda b, w: (b / (w * 2**30) * 1e6, w * 2**30 / b),
    "swapped": lambda b, w: (w * 1e9 / b, b / w / 1e3),
    "swapped, in an array": lambda b, w: np.array([w * 1e9 / b, b / w / 1e3]),
    "three numbers": lambda b, w: (b / w / 1e3, w * 1e9 / b, 0.0),
    "numbers as text": lambda b, w: (str(b / w / 1e3), str(w * 1e9 / b)),
    "a text of two digits": lambda b, w: "12",
    "a tensor of a shape too many": lambda b, w: torch.tensor([[b / w / 1e3, w * 1e9 / b]]),
    "tokens per microsecond": lambda b, w: (b / w / 1e3, w * 1e3 / b),
    "one number": lambda b, w: b / w / 1e3,
    "NaN": lambda b, w: (math.nan, math.nan),
    "the numbers of the example": lambda b, w: (1.55e9 / 936e3, 936e9 / 1.55e9),
    "text": lambda b, w: ("fast", "very fast"),
}
POSITION_RIGHT = {
    "closed form": lambda f, p, s: math.ceil(Fraction(str(s)) * f / ((1 - Fraction(str(s))) * p)),
    "search": lambda f, p, s: _search(f, p, Fraction(str(s))),
    "NumPy": lambda f, p, s: np.ceil(s * f / ((1 - s) * p)),
    "an int of NumPy": lambda f, p, s: np.int64(math.ceil(s * f / ((1 - s) * p))),
    "a tensor": lambda f, p, s: torch.tensor(s * f / ((1 - s) * p), dtype=torch.float64).ceil(),
    "negated, divided whole": lambda f, p, s: -(-round(100 * s) * f // (round(100 - 100 * s) * p)),
    "floats": lambda f, p, s: float(math.ceil(s * f / ((1 - s) * p))),
}
POSITION_WRONG = {
    "share of the fixed bytes": lambda f, p, s: math.ceil(s * f / p),
    "one late": lambda f, p, s: math.floor(s * f / ((1 - s) * p)) + 1,
    "rounded down": lambda f, p, s: math.floor(s * f / ((1 - s) * p)),
    "not whole": lambda f, p, s: s * f / ((1 - s) * p),
    "NaN": lambda f, p, s: math.nan,
    "infinite": lambda f, p, s: math.inf,
    "nothing": lambda f, p, s: None,
    "a text": lambda f, p, s: str(math.ceil(s * f / ((1 - s) * p))),
    "two numbers": lambda f, p, s: torch.tensor([1.0, 2.0]),
}


def _search(fixed, per_token, share):
    low, high = 0, 10**9
    while low < high:
        middle = (low + high) // 2
        if middle * per_token >= share * (fixed + middle * per_token):
            high = middle
        else:
            low = middle + 1
    return low


@pytest.mark.parametrize("exercise, answer", [
    *((floor, answer) for answer in FLOOR_RIGHT.values()),
    *((cache_position, answer) for answer in POSITION_RIGHT.values()),
])  # fmt: skip
def test_right_answers_pass(exercise, answer, capsys):
    for _ in range(5):  # some of the cases are drawn at random
        exercise.check(answer)
        assert "right" in capsys.readouterr().out


@pytest.mark.planted
@pytest.mark.parametrize("exercise, answer", [
    *(pytest.param(floor, answer, id=name) for name, answer in FLOOR_WRONG.items()),
    *(pytest.param(cache_position, answer, id=name) for name, answer in POSITION_WRONG.items()),
])  # fmt: skip
def test_wrong_answers_are_refused(exercise, answer):
    for _ in range(5):
        with pytest.raises(WrongAnswer):
            exercise.check(answer)


HINTS = {  # what names the mistake
    "milliseconds": (floor, FLOOR_WRONG["milliseconds"], "the time in milliseconds"),
    "seconds": (floor, FLOOR_WRONG["seconds"], "the time in seconds"),
    "2**30": (floor, FLOOR_WRONG["GB as 2**30"], "2\\^30 bytes"),
    "swapped": (floor, FLOOR_WRONG["swapped"], "the tokens per second, which"),
    "one number": (floor, FLOOR_WRONG["one number"], "expected two numbers"),
    "share of the fixed bytes": (cache_position, POSITION_WRONG["share of the fixed bytes"], "of the fixed bytes"),
    "one late": (cache_position, POSITION_WRONG["one late"], "first position at which the share is reached"),
    "infinite": (cache_position, POSITION_WRONG["infinite"], "expected a whole number of tokens, got inf"),
}


@pytest.mark.planted
@pytest.mark.parametrize("exercise, answer, hint", HINTS.values(), ids=HINTS)
def test_a_likely_mistake_is_named(exercise, answer, hint):
    with pytest.raises(WrongAnswer, match=hint):
        exercise.check(answer)
