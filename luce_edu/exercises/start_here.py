"""Exercises of notebook 00: the floor of a token, and the position at which the cache is a given share of the bytes."""

from __future__ import annotations

import math
import random
from fractions import Fraction

from luce_edu.exercises.base import Exercise, WrongAnswer, as_number, call, close, numbers


def _floor(answer) -> str:
    # In the first case the two results differ, so that a swapped pair is noticed. The second case is drawn.
    for gigabytes, gb_per_s in ((1.55, 936), (random.uniform(0.5, 60), random.uniform(100, 8000))):
        got = numbers(
            call(answer, gigabytes * 1e9, gb_per_s), 2, "two numbers, microseconds and tokens per second"
        )
        us = gigabytes / gb_per_s * 1e6
        case = f"Case: {gigabytes:.3g} GB per token, {gb_per_s:.4g} GB/s."
        close(got[0], us, tolerance=1e-6, hint=f"{case} {_floor_hint(got[0] / us, us)}")
        close(
            got[1],
            1e6 / us,
            tolerance=1e-6,
            hint=f"{case} The second number is tokens per second: how many tokens of {us:.4g} µs fit into a second?",
        )
    return (
        "Checked on two cases. 1.55 GB per token at 936 GB/s take 1,656 µs, so no program makes more than 604 tokens "
        "per second on that card."
    )


def _floor_hint(ratio: float, us: float) -> str:
    """A hint for a time that is `ratio` times the right one, `us`."""
    unit = {1e-6: "seconds", 1e-3: "milliseconds", 1e3: "nanoseconds"}
    for factor, name in unit.items():
        if math.isclose(ratio, factor, rel_tol=1e-6):
            return f"This is the time in {name}. The first number is in microseconds."
    if math.isclose(ratio, 1e9 / 2**30, rel_tol=1e-6):
        return "This counts 2^30 bytes as a GB. Here a GB is 10^9 bytes."
    if math.isclose(ratio * us, 1e6 / us, rel_tol=1e-6):
        return "These are the tokens per second, which are the second number."
    return "The first number is the time in microseconds. A GB is 10^9 bytes here."


floor = Exercise(
    name="floor",
    judge=_floor,
    spec="The least microseconds per token, and the most tokens per second, for any model and any card.",
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
        (1000, 10, 0.5),  # the share is reached exactly at a token, and that token is the answer
        (1_543_859_840, 12_288, 0.1),
        _between_two_tokens(),
    ]
    for fixed, per_token, share in cases:
        got = call(answer, fixed, per_token, share)
        case = f"Case: {fixed:,} fixed bytes, {per_token:,} bytes of cache per token, share {share}."
        value = as_number(got)
        if value is None or not value.is_integer():
            raise WrongAnswer(f"expected a whole number of tokens, got {got!r}. {case}")
        position, want = int(value), math.ceil(_crossing(fixed, per_token, share))
        if position == want:
            continue
        hint = "The share is of all bytes: the fixed ones and the cache."
        if abs(position - want) == 1:
            hint = "You are off by one: return the first position at which the share is reached or passed."
        elif position == math.ceil(Fraction(str(share)) * fixed / per_token):
            hint = (
                "At that position the cache is this share of the fixed bytes. The share is of all bytes, the cache "
                "included."
            )
        raise WrongAnswer(f"{position:,} is wrong. {case} {hint}")
    fixed, per_token, share = cases[1]
    return (
        f"Checked on {len(cases)} cases. With {fixed:,} fixed bytes and {per_token:,} bytes of cache per token, the "
        f"cache is {100 * share:g} % of all bytes from position {math.ceil(_crossing(fixed, per_token, share)):,} on."
    )


def _crossing(fixed: int, per_token: int, share: float) -> Fraction:
    """The position, not rounded, at which the cache is exactly `share` of all bytes."""
    return Fraction(str(share)) * fixed / ((1 - Fraction(str(share))) * per_token)


def _between_two_tokens() -> tuple[int, int, float]:
    """A drawn case. Its crossing is not a whole token, where correct floats might round to either side."""
    while True:
        case = random.randrange(10**8, 10**10), random.randrange(1000, 10**5), random.choice([0.05, 0.25, 0.4, 0.75])
        if 1e-6 < _crossing(*case) % 1 < 1 - 1e-6:
            return case


cache_position = Exercise(
    name="cache_position",
    judge=_cache_position,
    spec="The first position at which the cache is at least a given share of all bytes that a token moves.",
    skeleton='''\
def cache_position(fixed_bytes, kv_bytes_per_token, share):
    """Return the first position at which the cache is at least `share` (0 to 1) of all bytes that move."""
    return ...
''',
    hole="return ...",
    budget="10 minutes, one or two lines",
)
