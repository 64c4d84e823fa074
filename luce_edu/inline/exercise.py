"""Exercises whose answer is a kernel, in a cell that begins with `%%kernel --exercise module.name`."""

from __future__ import annotations

from collections.abc import Callable

from luce_edu.exercises import Exercise, WrongAnswer
from luce_edu.inline.trial import SECONDS, WORDS, Attempt, Verdict, try_kernel


def kernel_exercise(
    name: str,
    *,
    kernel: str,
    against: str,
    accept: Callable[[Verdict], str],
    grid: str | None = None,
    block: int | None = None,
    smem: str = "0",
    hint: str = "",
    **fields: str,
) -> Exercise:
    """An Exercise that compiles and tries the reader's text as `kernel`; sizes as for `Attempt`.

    accept  looks at what a right kernel moved: a sentence of praise, or WrongAnswer where a budget is exceeded
    hint    is added to the verdict on a wrong one
    fields  spec, skeleton, hole and budget of the Exercise
    """

    def judge(answer: object) -> str:
        if not isinstance(answer, str):
            raise WrongAnswer(f"expected CUDA C++ as text, got {type(answer).__name__}")
        verdict = try_kernel(Attempt(kernel, against, answer, grid, block, smem), seconds=SECONDS)
        if not verdict.passed:
            helped = f". {hint}" if hint and verdict.kind in ("wrong", "kernel") else ""
            raise WrongAnswer(f"{kernel} {WORDS[verdict.kind]}. {verdict.problem}{helped}")
        return " ".join(filter(None, (accept(verdict), verdict.remark)))

    return Exercise(name, judge, **fields)


def find_exercise(path: str) -> Exercise:
    """The exercise "module.name" of luce_edu.exercises; ValueError for one that is not there."""
    from importlib import import_module
    from importlib.util import find_spec

    module, _, name = path.partition(".")
    known = module.isidentifier() and find_spec(f"luce_edu.exercises.{module}")
    exercise = getattr(import_module(f"luce_edu.exercises.{module}"), name, None) if known else None
    if not isinstance(exercise, Exercise):
        raise ValueError(f"no exercise {path!r}; expected module.name of luce_edu.exercises")
    return exercise
