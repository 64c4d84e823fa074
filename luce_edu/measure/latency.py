"""Measure times on a GPU: CUDA events around enqueued work, after a warm-up, as medians with quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from luce_edu.measure.schema import Positive, Size


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of `count` values, in the unit of the values."""

    median: Positive
    q1: Positive
    q3: Positive
    count: Size

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Return the quartiles of `values`. Raises ValueError unless there are two or more, all positive and finite."""
        if len(values) < 2 or not all(0 < value < float("inf") for value in values):
            raise ValueError(f"expected two or more positive times, got {values!r}")
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3, len(values))

    def scaled(self, factor: float) -> Quartiles:
        return Quartiles(self.median * factor, self.q1 * factor, self.q3 * factor, self.count)


def elapsed_us(enqueue: Callable[[], object]) -> float:
    """Return the µs between two events around the work that `enqueue` puts on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    enqueue()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)


def time_rounds(
    enqueue: Callable[[], object],
    *,
    rounds: int = 15,
    warm_up: int = 3,
    each: int = 1,
    before: Callable[[], object] = lambda: None,
) -> Quartiles:
    """Return quartiles over rounds of the µs per item, where a call of `enqueue` does `each` items.

    before   enqueued on the same stream before the first event of each round, so it is not counted. It decides what
             the caches hold, and keeps the GPU busy while the CPU enqueues the round.
    warm_up  calls before the first round, which are not counted: modules load, and clocks and caches settle
    """
    for _ in range(warm_up):
        enqueue()
    times = []
    for _ in range(rounds):
        before()
        times.append(elapsed_us(enqueue) / each)
    return Quartiles.of(times)


def time_steps(step: Callable[[], object], *, steps: int = 64, warm_up: int = 8) -> tuple[list[float], float]:
    """Return (GPU µs of each step, median CPU µs to enqueue one step).

    All steps are enqueued back to back with an event between every two. A fast GPU then waits for a slow CPU, as in
    use, and the two numbers are about equal. The second number is the median over single steps on an idle GPU, where
    no full queue makes the CPU wait.
    """
    for _ in range(warm_up):
        step()
    torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    between = [1e3 * a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False)]
    asked = []
    for _ in range(max(3, min(15, steps))):
        started = time.perf_counter()
        step()
        asked.append(1e6 * (time.perf_counter() - started))
        torch.cuda.synchronize()
    return between, statistics.median(asked)


def l2_emptier(device: torch.device | str) -> Callable[[], object]:
    """Return a function that enqueues a write of a buffer of at least twice the L2, which then holds nothing else.

    The buffer has at least 2**28 bytes, so that writing it takes longer than the CPU needs to enqueue a launch.
    """
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(max(2 * l2_bytes, 2**28), dtype=torch.uint8, device=device).zero_
