"""What an exercise is, and the helpers that checkers share.

For an untouched skeleton, `check` prints "not tried yet". A wrong answer raises WrongAnswer with a hint.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from luce_edu.exercises.solved import remember


class WrongAnswer(AssertionError):
    """The checker refuses the answer. The message says what differs and where to look, without the answer."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message alone. The traceback would show the checker's code."""
        return [f"WrongAnswer: {self}"]


@dataclass(frozen=True)
class Exercise:
    """One task.

    name      of the variable in its module
    spec      what is asked, in one sentence
    skeleton  the text of the notebook's cell
    hole      the part of the skeleton that the reader replaces; it occurs once
    budget    expected time and code: "5 minutes, one line"
    judge     judge(answer) returns what was checked, in a sentence, or raises WrongAnswer

    An answer is a value, a function or a text. It is untouched if it is `...` (Ellipsis), if the function returns
    `...`, or if the text still contains the hole. Raises ValueError unless the hole occurs once in the skeleton.
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
        """Print the verdict, and remember an exercise that is solved; raise WrongAnswer for a wrong answer."""
        try:
            if answer is ... or isinstance(answer, str) and self.hole in answer:
                raise _Untouched
            sentence = self.judge(answer)
        except _Untouched:
            print(f"{self.name}: not tried yet")
            return
        print(f"{self.name}: right. {sentence}")
        if full_name := self._full_name():
            remember(full_name)

    def _full_name(self) -> str | None:
        """ "module.name" of luce_edu.exercises; None for an exercise of no notebook."""
        package = f"{__package__}."
        return next(
            (
                f"{name.removeprefix(package)}.{self.name}"
                for name, module in list(sys.modules.items())
                if name.startswith(package) and vars(module).get(self.name) is self
            ),
            None,
        )  # fmt: skip

    def is_filled(self, text: str) -> bool:
        """Whether `text` is the skeleton with something else in place of the hole, other text around it allowed."""
        before, after = self.skeleton.split(self.hole)
        start = text.find(before)
        rest = text[start + len(before) :] + "\n"  # a notebook's cell has no newline at its end, a skeleton has
        end = rest.rfind(after)
        filled = rest[:end]
        return start >= 0 and end >= 0 and filled.strip() != "" and self.hole not in filled


class _Untouched(Exception):
    """The answer is still the skeleton's."""


def call(function: Callable, *args, **kwargs):
    """Call the reader's function. If it returns `...`, `check` prints "not tried yet".

    Raises WrongAnswer if it is no function.
    """
    if not callable(function):
        raise WrongAnswer(f"expected a function, got {type(function).__name__}")
    result = function(*args, **kwargs)
    if result is ...:
        raise _Untouched
    return result


def numbers(got: object, count: int, expected: str) -> list[float]:
    """Return `got`, a tuple, list, array or tensor of numbers, as a list of `count` floats.

    Raises WrongAnswer that says what was `expected` (a phrase) and what came.
    """
    try:
        values = [as_number(value) for value in got]
    except TypeError:  # it has no elements
        values = []
    if len(values) != count or None in values:
        raise WrongAnswer(f"expected {expected}, got {got!r}")
    return values


def close(got: object, want: float, *, tolerance: float, hint: str) -> None:
    """Raise WrongAnswer, with `hint`, unless `got` is finite and |got - want| <= tolerance * |want|."""
    value = as_number(got)
    if value is None:
        raise WrongAnswer(f"expected a number, got {got!r}. {hint}")
    if not abs(value - want) <= tolerance * abs(want):
        raise WrongAnswer(f"{value:.6g} is wrong. {hint}")


def as_number(value: object) -> float | None:
    """Return a number of Python, NumPy or PyTorch as a float; None for anything else, also for a text such as "1"."""
    try:
        return None if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # PyTorch: a tensor of several
        return None


def edited(text: str, edits: object, where: str) -> str:
    """Return `text` with the reader's edits, a dict of texts that occur exactly once in it and their replacements.

    where  names the text in messages. Raises WrongAnswer for anything else.
    """
    if not isinstance(edits, dict) or not edits:
        raise WrongAnswer(f"expected a dict of texts and their replacements, got {edits!r}")
    for old, new in edits.items():
        if not isinstance(old, str) or not isinstance(new, str):
            raise WrongAnswer(f"expected text on both sides, got {old!r}: {new!r}")
        if text.count(old) != 1:
            raise WrongAnswer(f"this text occurs {text.count(old)} times in {where}, not once:\n{old}")
        text = text.replace(old, new)
    return text


def find_exercise(path: str) -> Exercise:
    """Return the exercise "module.name" of luce_edu.exercises. Raises ValueError if there is none."""
    module, _, name = path.partition(".")
    known = module.isidentifier() and find_spec(f"luce_edu.exercises.{module}")
    exercise = getattr(import_module(f"luce_edu.exercises.{module}"), name, None) if known else None
    if not isinstance(exercise, Exercise):
        raise ValueError(f"no exercise {path!r}; expected module.name of luce_edu.exercises")
    return exercise
