"""Exercises whose answer is a kernel, in a cell that begins with `%%kernel --exercise module.name`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from luce_edu.exercises.base import Exercise, WrongAnswer
from luce_edu.inline.trial import WORDS, Attempt, Mistake, Verdict, try_kernel


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
    mistakes: tuple[Mistake, ...] = (),
    neighbours: tuple[str, ...] = (),
    **fields: str,
) -> Exercise:
    """An Exercise that compiles and tries the reader's text as `kernel`; sizes as for `Attempt`.

    accept      looks at what a right kernel moved: a sentence of praise, or WrongAnswer where a budget is exceeded
    hint        is added to the verdict on a wrong one, unless it makes one of the `mistakes`, whose hint says so
    neighbours  tensors of which a right kernel gets a remark where its loads do not coalesce
    fields      spec, skeleton, hole and budget of the Exercise
    """

    def judge(answer: object) -> str:
        if not isinstance(answer, str):
            raise WrongAnswer(f"expected CUDA C++ as text, got {type(answer).__name__}")
        verdict = try_kernel(Attempt(kernel, against, answer, grid, block, smem, mistakes=mistakes))
        if not verdict.passed:
            named = any(mistake.hint in verdict.problem for mistake in mistakes)
            helped = f". {hint}" if hint and not named and verdict.kind in ("wrong", "kernel") else ""
            raise WrongAnswer(f"{kernel} {WORDS[verdict.kind]}. {verdict.problem}{helped}")
        remarks = accept(verdict), _scattered(verdict, neighbours), verdict.remark
        return " ".join(filter(None, remarks))

    return Exercise(name, judge, **fields)


def reads(verdict: Verdict, name: str) -> float:
    """How often a kernel reads each element of a tensor: whichever count is kinder, by thread or by sector.

    Threads that are not side by side move sectors several times without reading anything twice, and a warp whose lanes
    all want one element asks for it 32 times and moves it once.
    """
    t = verdict.traffic.get(name)
    return min(t.asked_read, t.moved_read) / t.distinct_read if t and t.distinct_read else 0.0


def _scattered(verdict: Verdict, names: Iterable[str]) -> str:
    """A remark on tensors of which more moves than a kernel asks for; nothing where the loads coalesce."""
    found = [(name, t) for name in names if (t := verdict.traffic.get(name)) and t.moved_read > 1.1 * t.asked_read]
    each = ", ".join(f"{name} {t.moved_read:,} bytes where {t.asked_read:,} are asked for" for name, t in found)
    if not each:
        return ""
    return f"Neighbouring threads do not read neighbouring elements, so more bytes move: {each}. See notebook 05."
