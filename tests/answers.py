"""The two tests of an exercise: its checker accepts right answers, and refuses wrong ones with the reason."""

import math
import re
from collections.abc import Mapping

import pytest
import torch

from luce_edu.exercises.base import Exercise, WrongAnswer


def checker_tests(*exercises: tuple[Exercise, Mapping, Mapping], times: int = 1):
    """The two tests, for exercises with their right and wrong answers by name.

    An answer may be a tuple of an answer and a pattern that its verdict must match. Each answer is checked `times`
    times, since many checkers draw random inputs.
    """

    def rows(place):
        return [
            pytest.param(one[0], *(answer if isinstance(answer, tuple) else (answer, "")), id=f"{one[0].name}: {name}")
            for one in exercises
            for name, answer in one[place].items()
        ]

    @pytest.mark.parametrize("exercise, answer, said", rows(1))
    def test_right_answers_pass(exercise, answer, said, capsys):
        for _ in range(times):
            exercise.check(answer)
            verdict = capsys.readouterr().out
            assert f"{exercise.name}: right" in verdict and re.search(said, verdict, re.DOTALL), verdict

    @pytest.mark.planted
    @pytest.mark.parametrize("exercise, answer, reason", rows(2))
    def test_wrong_answers_are_refused(exercise, answer, reason):
        for _ in range(times):
            with pytest.raises(WrongAnswer, match=f"(?s){reason}"):
                exercise.check(answer)

    return test_right_answers_pass, test_wrong_answers_are_refused


def changed(text: str, old: str, new: str) -> str:
    """The text with `new` in place of `old`, which must be in it once."""
    assert text.count(old) == 1, old
    return text.replace(old, new)


def edits(text: str, faults: Mapping[str, tuple[str, str, str]]) -> dict:
    """Wrong answers by name: the last function of a text of Python after an edit (old, new), with a pattern."""

    def edited(old, new):
        names = {"torch": torch, "math": math}
        exec(changed(text, old, new), names)
        return list(names.values())[-1]

    return {name: (edited(old, new), said) for name, (old, new, said) in faults.items()}
