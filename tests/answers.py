"""The two tests of every exercise: its checker takes right answers however written, and refuses wrong ones by name."""

import math
import re
from collections.abc import Mapping

import pytest
import torch

from luce_edu.exercises.base import Exercise, WrongAnswer


def checker_tests(*exercises: tuple[Exercise, Mapping, Mapping], times: int = 1):
    """The tests of these exercises, each with its right and its wrong answers by name.

    An answer may stand in a tuple with a pattern of what the verdict then says. `times` each answer is checked: many
    checkers draw their inputs.
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


def edits(text: str, faults: Mapping[str, tuple[str, str, str]]) -> dict:
    """Wrong answers: the function that a text of Python defines, each time with an edit (old, new, what is said)."""

    def edited(old, new):
        assert text.count(old) == 1, old
        names = {"torch": torch, "math": math}
        exec(text.replace(old, new), names)
        return list(names.values())[-1]

    return {name: (edited(old, new), said) for name, (old, new, said) in faults.items()}
