"""Exercises that check themselves. One file a notebook; each exercise is an `Exercise` with a checker.

In a notebook:  exercises.megakernel.barriers.check(my_answer)
An untouched skeleton says "not tried yet", a wrong answer raises WrongAnswer with a hint, any right one passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class WrongAnswer(AssertionError):
    """An answer that the checker refuses; the message helps without giving the answer away."""


@dataclass(frozen=True)
class Exercise:
    """A checker with a name. `judge(answer)` raises WrongAnswer, and returns a sentence for a right answer.

    An answer is a value or a function. `...` (Ellipsis), as a value or as what the function returns, means untouched.
    """

    name: str
    judge: Callable[[object], str]

    def check(self, answer: object) -> None:
        """Print the verdict; raise WrongAnswer for a wrong answer."""
        if answer is ...:
            print(f"{self.name}: not tried yet")
            return
        try:
            sentence = self.judge(answer)
        except _Untouched:
            print(f"{self.name}: not tried yet")
            return
        print(f"{self.name}: right. {sentence}")


class _Untouched(Exception):
    """The learner's function returned `...`."""


def call(function: Callable, *args, **kwargs):
    """Call a learner's function inside a checker; a skeleton that still returns `...` counts as untouched."""
    if not callable(function):
        raise WrongAnswer(f"expected a function, got {type(function).__name__}")
    result = function(*args, **kwargs)
    if result is ...:
        raise _Untouched
    return result


def close(got: object, want: float, *, tolerance: float, hint: str) -> None:
    """Raise WrongAnswer unless `got` is a finite number within `tolerance` (a ratio) of `want`."""
    try:
        value = float(got)
    except (TypeError, ValueError):
        raise WrongAnswer(f"expected a number, got {got!r}. {hint}") from None
    if not abs(value - want) <= tolerance * abs(want):
        raise WrongAnswer(f"{value:.6g} is not it. {hint}")
