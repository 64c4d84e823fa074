"""Measure the joules of a loop that runs for seconds, by NVML's energy counter and by power samples.

Joules are gross: all that the board draws in the window, its idle draw included. The idle draw before the window is
kept, so that it can be subtracted. The counter is too coarse to measure a single kernel.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from luce_edu.errors import NotMeasured
from luce_edu.measure.nvml import Sensors

LEAST_SECONDS = 2.0  # the counter advances every 10 to 100 ms, so a window of 2 s is at most 5 % off
SAMPLE_EVERY = 0.02  # seconds


@dataclass(frozen=True)
class Energy:
    """One window: joules by `method` ("counter" or "samples"), and by power samples if there were any."""

    work: int
    seconds: float
    joules: float
    sampled_joules: float | None
    idle_w: float | None
    method: str

    @property
    def per_joule(self) -> float:
        """Work per joule, gross: tokens per joule if the work is counted in tokens."""
        return self.work / self.joules


def measure_idle(sensors: Sensors, *, seconds: float = LEAST_SECONDS, wait=time.sleep) -> float:
    """Return the mean draw in watts over a window without work. Raises NotMeasured if power cannot be read."""
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
    """Call `run` until `seconds` have passed, and return the work and the joules of this window.

    run     does some work, waits for it and returns its amount
    idle_w  the idle draw, which is kept in the result
    Raises ValueError for a window below LEAST_SECONDS. Raises NotMeasured, with the reason, if neither the counter nor
    power can be read, if the counter did not advance or went back, or if no work was done.
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
        raise NotMeasured(f"energy counter: it did not advance for {elapsed:.1f} s")
    return Energy(work, elapsed, after - before, sampled, idle_w, "counter")


class _Sampler:
    """Samples power in its own thread and gives the mean over the window.

    mean_w is None, and `missing` says why, if power cannot be read until the end of the window, as samples of a part
    do not give its mean.
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
