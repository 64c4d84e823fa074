"""Exercises of notebook 00: the floor from two numbers, and the context that fills a share of it."""

from __future__ import annotations

import math
import random
from fractions import Fraction

from luce_edu.exercises import Exercise, WrongAnswer, call, close


def _floor(answer) -> str:
    # The first case has both numbers different, so that a swapped pair shows; the second is drawn.
    for gigabytes, gb_per_s in ((1.55, 936), (random.uniform(0.5, 60), random.uniform(100, 8000))):
        got = call(answer, gigabytes * 1e9, gb_per_s)
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            raise WrongAnswer(f"expected two numbers, microseconds and tokens per second, got {got!r}")
        us = gigabytes / gb_per_s * 1e6
        case = f"Case: {gigabytes:.3g} GB a token, {gb_per_s:.4g} GB/s."
        close(
            got[0],
            us,
            tolerance=1e-6,
            hint=f"{case} First comes the time in microseconds. A GB is 10^9 bytes here.",
        )
        close(
            got[1],
            1e6 / us,
            tolerance=1e-6,
            hint=f"{case} Second come tokens per second: how many such times fit in one?",
        )
    return "Two numbers are enough for the best that any program can do."


floor = Exercise(
    name="floor",
    judge=_floor,
    spec="The microseconds that a token costs at least, and the tokens per second, for any model and any card.",
    skeleton='''\
def floor(bytes_per_token, gb_per_s):
    """Return (microseconds per token, tokens per second)."""
    return ...
''',
    hole="return ...",
    budget="5 minutes, one or two lines",
)


def _cache_position(answer) -> str:
    cases = [
        (1000, 10, 0.5),  # exactly at a token: from there on, not one later
        (1_543_859_840, 12_288, 0.1),
        (
            random.randrange(10**8, 10**10),
            random.randrange(1000, 10**5),
            random.choice([0.05, 0.25, 0.4, 0.75]),
        ),
    ]
    for fixed, per_token, share in cases:
        got = call(answer, fixed, per_token, share)
        case = f"Case: {fixed:,} fixed bytes, {per_token:,} bytes a token, share {share}."
        try:
            position = int(got)
        except (TypeError, ValueError, OverflowError):
            raise WrongAnswer(f"expected a whole number of tokens, got {got!r}. {case}") from None
        if position != got:
            raise WrongAnswer(f"{got!r} is not a whole number of tokens. {case}")
        exact = Fraction(str(share)) * fixed / ((1 - Fraction(str(share))) * per_token)
        want = math.ceil(exact)
        if position == want:
            continue
        hint = "The cache itself is part of all the bytes that the share is taken of."
        if abs(position - want) == 1:
            hint = "Close: it is the first position at which the share is reached, or passed."
        raise WrongAnswer(f"{position:,} is not it. {case} {hint}")
    return "Short texts cost weights; only long ones cost cache."


cache_position = Exercise(
    name="cache_position",
    judge=_cache_position,
    spec="The first position from which the cache is at least a given share of all the bytes that move.",
    skeleton='''\
def cache_position(fixed_bytes, kv_bytes_per_token, share):
    """Return the first position at which the cache is at least `share` (0 to 1) of all bytes that move."""
    return ...
''',
    hole="return ...",
    budget="10 minutes, one or two lines",
)
