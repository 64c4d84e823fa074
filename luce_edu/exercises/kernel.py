"""Exercises whose answer is a kernel. Their cell begins with `%%kernel --exercise module.name`."""

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
    """Return an Exercise that compiles the reader's text as `kernel` and compares its results with `against`.

    grid, block, smem  as for `Attempt`
    accept             judges the counts of a correct kernel: returns a sentence, or raises WrongAnswer over budget
    hint               added to the verdict on a wrong kernel whose results are not those of one of the `mistakes`
    neighbours         tensors whose loads should be coalesced; a correct kernel gets a remark where they are not
    fields             spec, skeleton, hole and budget of the Exercise
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
    """Return how often a kernel reads each element of a tensor: the smaller count of bytes requested and bytes moved.

    Either count alone may be too large. Scattered threads move a sector several times though each element is read
    once; 32 lanes that read the same element request it 32 times and move it once.
    """
    t = verdict.traffic.get(name)
    return min(t.asked_read, t.moved_read) / t.distinct_read if t and t.distinct_read else 0.0


def _scattered(verdict: Verdict, names: Iterable[str]) -> str:
    """Return a remark on tensors of which more bytes move than are requested; "" where the loads are coalesced."""
    found = [(name, t) for name in names if (t := verdict.traffic.get(name)) and t.moved_read > 1.1 * t.asked_read]
    each = ", ".join(f"{t.moved_read:,} bytes of {name} for {t.asked_read:,} requested" for name, t in found)
    if not each:
        return ""
    return (
        f"Neighbouring threads do not read neighbouring elements, so more bytes move than needed: {each}. See notebook "
        "05."
    )
