"""What an exercise is, and what its checkers share.

An untouched skeleton says "not tried yet", a wrong answer raises WrongAnswer with a hint, any right one passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec


class WrongAnswer(AssertionError):
    """An answer that the checker refuses; the message helps without giving the answer away."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message alone, as the reader's own line raised nothing."""
        return [f"WrongAnswer: {self}"]


@dataclass(frozen=True)
class Exercise:
    """One task.

    name      as in the module
    spec      what is asked, in a sentence
    skeleton  what stands in the notebook's cell
    hole      the part of the skeleton, once in it, that the reader replaces
    budget    how long it should take, and how much code: "5 minutes, one line"
    judge     judge(answer) raises WrongAnswer, and returns a sentence for a right answer

    An answer is a value or a function. `...` (Ellipsis), as a value or as what the function returns, means untouched,
    and so does a text that still holds the hole.
    """

    name: str
    judge: Callable[[object], str]
    spec: str
    skeleton: str
    hole: str
    budget: str

    def __post_init__(self):
        times = self.skeleton.count(self.hole)
        if times != 1:
            raise ValueError(f"{self.name}: the hole is {times} times in the skeleton, not once")

    def check(self, answer: object) -> None:
        """Print the verdict; raise WrongAnswer for a wrong answer."""
        try:
            if answer is ... or isinstance(answer, str) and self.hole in answer:
                raise _Untouched
            sentence = self.judge(answer)
        except _Untouched:
            print(f"{self.name}: not tried yet")
            return
        print(f"{self.name}: right. {sentence}")

    def is_filled(self, text: str) -> bool:
        """Whether `text` holds the skeleton with something in place of the hole in which the hole is not left."""
        before, after = self.skeleton.split(self.hole)
        start = text.find(before)
        rest = text[start + len(before) :] + "\n"  # a notebook's cell has no newline at its end, a skeleton has
        end = rest.rfind(after)
        filled = rest[:end]
        return start >= 0 and end >= 0 and filled.strip() != "" and self.hole not in filled


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


def numbers(got: object, count: int, expected: str) -> list[float]:
    """`got` as `count` floats: a tuple, a list, an array or a tensor, of numbers of any kind.

    Raises WrongAnswer with what was expected, in words, and what came.
    """
    try:
        values = [as_number(value) for value in got]
    except TypeError:  # nothing that has elements
        values = []
    if len(values) != count or None in values:
        raise WrongAnswer(f"expected {expected}, got {got!r}")
    return values


def close(got: object, want: float, *, tolerance: float, hint: str) -> None:
    """Raise WrongAnswer unless `got` is a finite number within `tolerance` (a ratio) of `want`."""
    value = as_number(got)
    if value is None:
        raise WrongAnswer(f"expected a number, got {got!r}. {hint}")
    if not abs(value - want) <= tolerance * abs(want):
        raise WrongAnswer(f"{value:.6g} is not it. {hint}")


def as_number(value: object) -> float | None:
    """A number of Python, NumPy or PyTorch as a float; None for what is no number, a text that looks like one too."""
    try:
        return None if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is PyTorch's, of a tensor of several
        return None


def find_exercise(path: str) -> Exercise:
    """The exercise "module.name" of luce_edu.exercises; ValueError for one that is not there."""
    module, _, name = path.partition(".")
    known = module.isidentifier() and find_spec(f"luce_edu.exercises.{module}")
    exercise = getattr(import_module(f"luce_edu.exercises.{module}"), name, None) if known else None
    if not isinstance(exercise, Exercise):
        raise ValueError(f"no exercise {path!r}; expected module.name of luce_edu.exercises")
    return exercise
