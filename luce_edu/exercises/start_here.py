"""Exercises of notebook 00: the floor from two numbers, and the context that fills a share of it."""

from __future__ import annotations

import math
import random
from fractions import Fraction

from luce_edu.exercises.base import Exercise, WrongAnswer, as_number, call, close, numbers


def _floor(answer) -> str:
    # The first case has both numbers different, so that a swapped pair shows; the second is drawn.
    for gigabytes, gb_per_s in ((1.55, 936), (random.uniform(0.5, 60), random.uniform(100, 8000))):
        got = numbers(
            call(answer, gigabytes * 1e9, gb_per_s), 2, "two numbers, microseconds and tokens per second"
        )
        us = gigabytes / gb_per_s * 1e6
        case = f"Case: {gigabytes:.3g} GB a token, {gb_per_s:.4g} GB/s."
        close(got[0], us, tolerance=1e-6, hint=f"{case} {_floor_hint(got[0] / us, us)}")
        close(
            got[1],
            1e6 / us,
            tolerance=1e-6,
            hint=f"{case} Second come tokens per second: how many such times fit in one?",
        )
    return "Two numbers are enough for the best that any program can do."


def _floor_hint(ratio: float, us: float) -> str:
    """On a time that is `ratio` times the right one."""
    unit = {1e-6: "seconds", 1e-3: "milliseconds", 1e3: "nanoseconds"}
    for factor, name in unit.items():
        if math.isclose(ratio, factor, rel_tol=1e-6):
            return f"This is the time in {name}; microseconds come first."
    if math.isclose(ratio, 1e9 / 2**30, rel_tol=1e-6):
        return "This takes a GB for 2^30 bytes. Here it is 10^9."
    if math.isclose(ratio * us, 1e6 / us, rel_tol=1e-6):
        return "These are the tokens per second, which come second."
    return "First comes the time in microseconds. A GB is 10^9 bytes here."


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
        _between_two_tokens(),
    ]
    for fixed, per_token, share in cases:
        got = call(answer, fixed, per_token, share)
        case = f"Case: {fixed:,} fixed bytes, {per_token:,} bytes a token, share {share}."
        value = as_number(got)
        if value is None or not value.is_integer():
            raise WrongAnswer(f"expected a whole number of tokens, got {got!r}. {case}")
        position, want = int(value), math.ceil(_crossing(fixed, per_token, share))
        if position == want:
            continue
        hint = "The cache itself is part of all the bytes that the share is taken of."
        if abs(position - want) == 1:
            hint = "Close: it is the first position at which the share is reached, or passed."
        elif position == math.ceil(Fraction(str(share)) * fixed / per_token):
            hint = "There the cache is this share of the fixed bytes; the share is of all bytes, the cache's too."
        raise WrongAnswer(f"{position:,} is not it. {case} {hint}")
    return "Short texts cost weights; only long ones cost cache."


def _crossing(fixed: int, per_token: int, share: float) -> Fraction:
    return Fraction(str(share)) * fixed / ((1 - Fraction(str(share))) * per_token)


def _between_two_tokens() -> tuple[int, int, float]:
    """A case that is drawn, away from a whole token, where floats that are right would round to either side."""
    while True:
        case = random.randrange(10**8, 10**10), random.randrange(1000, 10**5), random.choice([0.05, 0.25, 0.4, 0.75])
        if 1e-6 < _crossing(*case) % 1 < 1 - 1e-6:
            return case


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
