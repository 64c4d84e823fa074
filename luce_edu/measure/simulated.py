"""A simulated GPU whose true times are known, to test a way of measuring on. Its constants are invented.

A CPU enqueues launches, a queue holds them, and the device runs one after another. Its clock is simulated too: nothing
here takes time, and no number is that of any hardware.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import torch

from luce_edu.measure import latency


class SimulatedGPU:
    """A GPU and its CPU, both idle at time 0. Times in µs.

    ask_us   CPU time to enqueue a launch
    load_us  additional CPU time for the first launch of a kernel
    depth    launches that the queue holds; when it is full, the CPU waits until the oldest has ended
    pace     factor on the time of a launch, by the time at which it starts
    """

    def __init__(
        self,
        *,
        ask_us: float = 1.5,
        load_us: float = 0.0,
        depth: int = 1024,
        pace: Callable[[float], float] = lambda us: 1.0,
    ):
        self.ask_us, self.load_us, self.depth, self.pace = ask_us, load_us, depth, pace
        self.cpu = self.gpu = 0.0  # the CPU's time; the time at which the GPU will have finished all work
        self._ends: deque[float] = deque(maxlen=depth)
        self._loaded: set[str] = set()

    def launch(self, us: float, kernel: str = "kernel") -> None:
        """Enqueue a launch that takes `us` at a pace of 1. Returns when it is enqueued."""
        if len(self._ends) == self.depth:
            self.cpu = max(self.cpu, self._ends[0])
        if kernel not in self._loaded:
            self._loaded.add(kernel)
            self.cpu += self.load_us
        self.cpu += self.ask_us
        start = max(self.cpu, self.gpu)
        self.gpu = start + us * self.pace(start)
        self._ends.append(self.gpu)

    def now(self) -> float:
        """Return the CPU's time in µs."""
        return self.cpu

    def wait(self) -> None:
        """Return when the GPU has finished all work in the queue."""
        self.cpu = max(self.cpu, self.gpu)
        self._ends.clear()

    def event(self, enable_timing: bool = False) -> SimulatedEvent:
        return SimulatedEvent(self)

    @contextmanager
    def as_cuda(self) -> Iterator[None]:
        """Within this context the functions of `latency` use this GPU's events, wait and clock."""
        clock = SimpleNamespace(perf_counter=lambda: self.now() / 1e6)
        with (
            patch.object(torch.cuda, "Event", self.event),
            patch.object(torch.cuda, "synchronize", self.wait),
            patch.object(latency, "time", clock),
        ):
            yield


class SimulatedEvent:
    """An event in the queue that takes the time at which the GPU reaches it."""

    def __init__(self, of: SimulatedGPU):
        self._of = of
        self.at: float | None = None

    def record(self) -> None:
        self.at = max(self._of.cpu, self._of.gpu)

    def synchronize(self) -> None:
        self._of.cpu = max(self._of.cpu, self.at)

    def elapsed_time(self, end: SimulatedEvent) -> float:
        """Return milliseconds, as CUDA's events do."""
        return (end.at - self.at) / 1e3
