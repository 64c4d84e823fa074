"""Joules of a loop that runs for seconds: from NVML's energy counter, with power samples beside it.

Gross: whatever the board drew in the window, idle included. The idle draw just before is kept, so that a reader can
take it off. No joules are given for a single kernel: the counter is far too coarse for one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from luce_edu.errors import NotMeasured
from luce_edu.measure.nvml import Sensors

LEAST_SECONDS = 2.0  # the counter ticks every 10 to 100 ms, so a window of 2 s is known to 5 % at worst
SAMPLE_EVERY = 0.02  # seconds


@dataclass(frozen=True)
class Energy:
    """One window. joules from `method`; sampled_joules from power samples alone, where there were some."""

    work: int
    seconds: float
    joules: float
    sampled_joules: float | None
    idle_w: float | None
    method: str

    @property
    def per_joule(self) -> float:
        """Work for a joule, gross: tokens, if the work was counted in tokens."""
        return self.work / self.joules


def measure_idle(sensors: Sensors, *, seconds: float = LEAST_SECONDS, wait=time.sleep) -> float:
    """Mean draw in watts over a window in which the caller does nothing; NotMeasured where power cannot be read."""
    samples = []
    for _ in range(max(1, round(seconds / SAMPLE_EVERY))):
        samples.append(sensors.power_w())
        wait(SAMPLE_EVERY)
    return sum(samples) / len(samples)


def measure_energy(
    run: Callable[[], int],
    sensors: Sensors,
    *,
    seconds: float = 4.0,
    idle_w: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Energy:
    """Call `run`, which does some work, waits for it and returns how much it was, until `seconds` have passed.

    Raises ValueError for a window below LEAST_SECONDS, and NotMeasured, with the reason, where neither the counter nor
    power can be read, where the counter went backwards or stood still, or where nothing was done.
    """
    if not seconds >= LEAST_SECONDS:
        raise ValueError(f"seconds: expected {LEAST_SECONDS:g} or more, got {seconds!r}")
    try:
        before: float | None = sensors.energy_j()
        missing = ""
    except NotMeasured as error:
        before, missing = None, str(error)
    work = 0
    with _Sampler(sensors, clock) as sampler:
        started = clock()
        while clock() - started < seconds:
            work += run()
        elapsed = clock() - started
        after = sensors.energy_j() if before is not None else None
    if work <= 0:
        raise NotMeasured("no work was done in the window")
    sampled = None if sampler.mean_w is None else sampler.mean_w * elapsed
    if before is None:
        if sampled is None:
            raise NotMeasured(f"{missing}; {sampler.missing}")
        return Energy(work, elapsed, sampled, sampled, idle_w, "samples")
    if after < before:
        raise NotMeasured(f"energy counter: it went back from {before:.3f} to {after:.3f} J, so it has wrapped")
    if after == before:
        raise NotMeasured(f"energy counter: it stood still for {elapsed:.1f} s")
    return Energy(work, elapsed, after - before, sampled, idle_w, "counter")


class _Sampler:
    """Mean power over a window, from a thread of its own.

    mean_w is None, and `missing` says why, where power cannot be read to the window's end: half of it is no mean.
    """

    def __init__(self, sensors: Sensors, clock: Callable[[], float]):
        self._sensors, self._clock = sensors, clock
        self._samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._failed = False
        self.mean_w: float | None = None
        self.missing = "no power samples"

    def _sample(self) -> None:
        while not self._stop.is_set():
            try:
                self._samples.append((self._clock(), self._sensors.power_w()))
            except NotMeasured as error:
                self._failed, self.missing = True, str(error)
                return
            self._stop.wait(SAMPLE_EVERY)

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._thread.join()
        seconds = self._samples[-1][0] - self._samples[0][0] if self._samples else 0
        if seconds > 0 and not self._failed:
            pairs = zip(self._samples, self._samples[1:], strict=False)
            self.mean_w = sum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in pairs) / seconds
