"""The checkers of notebook 00 accept right answers in several forms, and refuse wrong ones with a reason."""

import math
from fractions import Fraction

import numpy as np
import torch
from answers import checker_tests

from luce_edu.exercises.start_here import cache_position, floor

FLOOR_RIGHT = {
    "seconds first": lambda b, w: (b / (w * 1e9) * 1e6, w * 1e9 / b),
    "an array of NumPy": lambda b, w: np.array([b / w / 1e3, w * 1e9 / b]),
    "tensors in fp32": lambda b, w: (torch.tensor(b / w / 1e3), torch.tensor(w * 1e9 / b)),
    "fractions": lambda b, w: (Fraction(b) / Fraction(w) / 1000, Fraction(w) * 10**9 / Fraction(b)),
    "a list, through gigabytes": lambda b, w: [b / 1e9 / w * 1e6, 1e6 / (b / 1e9 / w * 1e6)],
}
FLOOR_WRONG = {
    "milliseconds": (lambda b, w: (b / w / 1e6, w * 1e9 / b), "milliseconds"),
    "seconds": (lambda b, w: (b / w / 1e9, w * 1e9 / b), "in seconds"),
    "GB as 2**30": (lambda b, w: (b / (w * 2**30) * 1e6, w * 2**30 / b), r"2\^30"),
    "swapped": (lambda b, w: (w * 1e9 / b, b / w / 1e3), "second number"),
    "swapped, in an array": lambda b, w: np.array([w * 1e9 / b, b / w / 1e3]),
    "three numbers": lambda b, w: (b / w / 1e3, w * 1e9 / b, 0.0),
    "a text of two digits": lambda b, w: "12",
    "a tensor of a shape too many": lambda b, w: torch.tensor([[b / w / 1e3, w * 1e9 / b]]),
    "tokens per microsecond": lambda b, w: (b / w / 1e3, w * 1e3 / b),
    "one number": (lambda b, w: b / w / 1e3, "two numbers"),
    "NaN": lambda b, w: (math.nan, math.nan),
    "the numbers of the example": lambda b, w: (1.55e9 / 936e3, 936e9 / 1.55e9),
}
POSITION_RIGHT = {
    "closed form": lambda f, p, s: math.ceil(Fraction(str(s)) * f / ((1 - Fraction(str(s))) * p)),
    "search": lambda f, p, s: _search(f, p, Fraction(str(s))),
    "an int of NumPy": lambda f, p, s: np.int64(math.ceil(s * f / ((1 - s) * p))),
    "a tensor": lambda f, p, s: torch.tensor(s * f / ((1 - s) * p), dtype=torch.float64).ceil(),
    "negated, divided whole": lambda f, p, s: -(-round(100 * s) * f // (round(100 - 100 * s) * p)),
}
POSITION_WRONG = {
    "share of the fixed bytes": (lambda f, p, s: math.ceil(s * f / p), "fixed bytes"),
    "one late": (lambda f, p, s: math.floor(s * f / ((1 - s) * p)) + 1, "first position"),
    "rounded down": lambda f, p, s: math.floor(s * f / ((1 - s) * p)),
    "not whole": lambda f, p, s: s * f / ((1 - s) * p),
    "infinite": (lambda f, p, s: math.inf, "got inf"),
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


test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (floor, FLOOR_RIGHT, FLOOR_WRONG), (cache_position, POSITION_RIGHT, POSITION_WRONG), times=5
)
