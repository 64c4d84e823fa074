"""Times on a GPU: CUDA events around enqueued work, warmed up, medians with quartiles. Never a virtual GPU's clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from luce_edu.measure.schema import Positive, Size


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of `count` repetitions, in whatever unit went in."""

    median: Positive
    q1: Positive
    q3: Positive
    count: Size

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """ValueError for fewer than two values, or for one that is not a positive number."""
        if len(values) < 2 or not all(0 < value < float("inf") for value in values):
            raise ValueError(f"expected two or more positive times, got {values!r}")
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3, len(values))

    def scaled(self, factor: float) -> Quartiles:
        return Quartiles(self.median * factor, self.q1 * factor, self.q3 * factor, self.count)


def elapsed_us(enqueue: Callable[[], object]) -> float:
    """Microseconds between two events around what `enqueue` puts on the current stream."""
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
    """Microseconds of one of the `each` things that a call of `enqueue` does: quartiles over rounds.

    before  enqueued on the same stream ahead of each round's first event, so it is done by then and not counted; it
            decides what the caches hold. While the GPU is at it the CPU asks for the round, which then takes the GPU's
            time alone
    The rounds before are not counted: module loads, clocks and caches settle there.
    """
    for _ in range(warm_up):
        enqueue()
    times = []
    for _ in range(rounds):
        before()
        times.append(elapsed_us(enqueue) / each)
    return Quartiles.of(times)


def time_steps(step: Callable[[], object], *, steps: int = 64, warm_up: int = 8) -> tuple[list[float], float]:
    """(GPU microseconds of each step, CPU microseconds to ask for one), both by themselves.

    All steps are enqueued back to back with an event between each two, so a GPU that is fast waits for a CPU that is
    slow, as it would in use; that the GPU waited shows where the two numbers are the same. The second is the median
    over single steps asked of an idle GPU, so no full queue holds the CPU back.
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
    """A function that enqueues writing a buffer of twice the device's L2 or more, after which L2 holds nothing else.

    The buffer takes 2**28 bytes at least, so that the GPU is at it for longer than the CPU needs to ask for a launch.
    """
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(max(2 * l2_bytes, 2**28), dtype=torch.uint8, device=device).zero_
