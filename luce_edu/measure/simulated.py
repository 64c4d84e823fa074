"""A GPU whose truth is known, to try a way of measuring on. Its constants are invented, and its clock is its own.

A CPU asks for launches, a queue holds them, a device works them off one after the other. Nothing here takes time, and
no number that comes out of it is any hardware's.
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
    """One GPU and the CPU that asks it, both idle at 0. Times in microseconds.

    ask_us   what the CPU needs to ask for a launch
    load_us  what it needs besides when it asks for a kernel for the first time
    depth    launches that the queue holds; before the CPU can ask for one more, the oldest must have ended
    pace     how many times as long as asked for a launch takes, by the time at which it starts
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
        self.cpu = self.gpu = 0.0  # what time it is for the CPU; when the GPU will have worked off all
        self._ends: deque[float] = deque(maxlen=depth)
        self._loaded: set[str] = set()

    def launch(self, us: float, kernel: str = "kernel") -> None:
        """Ask for a launch that keeps the GPU busy for `us` at a pace of 1; returns when the CPU has asked."""
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
        """The CPU's clock."""
        return self.cpu

    def wait(self) -> None:
        """Returns when all that was asked for is done."""
        self.cpu = max(self.cpu, self.gpu)
        self._ends.clear()

    def event(self, enable_timing: bool = False) -> SimulatedEvent:
        return SimulatedEvent(self)

    @contextmanager
    def as_cuda(self) -> Iterator[None]:
        """Inside, the functions of `latency` time this GPU: its events, its waiting, its CPU's clock."""
        clock = SimpleNamespace(perf_counter=lambda: self.now() / 1e6)
        with (
            patch.object(torch.cuda, "Event", self.event),
            patch.object(torch.cuda, "synchronize", self.wait),
            patch.object(latency, "time", clock),
        ):
            yield


class SimulatedEvent:
    """A mark in the queue that notes the time at which the GPU comes by."""

    def __init__(self, of: SimulatedGPU):
        self._of = of
        self.at: float | None = None

    def record(self) -> None:
        self.at = max(self._of.cpu, self._of.gpu)

    def synchronize(self) -> None:
        self._of.cpu = max(self._of.cpu, self.at)

    def elapsed_time(self, end: SimulatedEvent) -> float:
        """Milliseconds, as of CUDA's events."""
        return (end.at - self.at) / 1e3
