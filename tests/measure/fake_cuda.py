"""A GPU's times for tests: a model of the CPU that launches, the queue, the GPU and events, with a clock of its own."""

from collections import deque
from types import SimpleNamespace

import torch

from luce_edu.measure import latency


class FakeCuda:
    """Times in microseconds. The queue holds `depth` launches; if it is full, the CPU waits for the oldest.

    Memory takes 2 TB/s. Data leave L2 for certain once twice its size has been written after them.
    slowness  function of the microseconds that the GPU has worked: how many times longer a launch then takes
    """

    def __init__(self, depth: int = 4, l2_bytes: int = 48 * 2**20, slowness=lambda worked_us: 1.0):
        self.cpu = self.gpu = 0.0  # the CPU's time; the time at which the queue will be empty
        self.worked, self.slowness = 0.0, slowness
        self.depth, self._ends = depth, deque()
        self.l2_bytes, self.warm = l2_bytes, False  # warm: L2 holds what `read` reads

    def launch(self, gpu_us: float, ask_us: float) -> None:
        if len(self._ends) == self.depth:
            self.cpu = max(self.cpu, self._ends.popleft())
        self.cpu += ask_us
        gpu_us *= self.slowness(self.worked)
        self.worked += gpu_us
        self.gpu = max(self.gpu, self.cpu) + gpu_us
        self._ends.append(self.gpu)

    def read(self, *, cold_us: float, warm_us: float, ask_us: float) -> None:
        """A launch that reads its data from memory, or from L2 where the last launch has left them."""
        self.launch(warm_us if self.warm else cold_us, ask_us)
        self.warm = True

    def empty(self, size: int, *, dtype: torch.dtype, device) -> SimpleNamespace:
        """Replaces torch.empty, for a buffer that is only written."""

        def zero_():
            self.launch(size * dtype.itemsize / 2e6, ask_us=5)
            self.warm = self.warm and size * dtype.itemsize < 2 * self.l2_bytes

        return SimpleNamespace(zero_=zero_)

    def synchronize(self, device=None) -> None:
        self.cpu = max(self.cpu, self.gpu)
        self._ends.clear()

    def event(self, enable_timing: bool = False):
        return _Event(self, enable_timing)

    def install(self, monkeypatch, module=latency) -> None:
        """Replace torch.cuda's events and memory, and the clock that `module` reads."""
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)
        properties = SimpleNamespace(L2_cache_size=self.l2_bytes)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch, "empty", self.empty)
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.cpu / 1e6))


class _Event:
    def __init__(self, cuda: FakeCuda, enable_timing: bool):
        self._cuda, self._timing, self.at = cuda, enable_timing, None

    def record(self) -> None:
        self.at = max(self._cuda.gpu, self._cuda.cpu)

    def synchronize(self) -> None:
        self._cuda.cpu = max(self._cuda.cpu, self.at)

    def elapsed_time(self, end) -> float:
        """Milliseconds; raises where a real event raises."""
        for event in (self, end):
            if not event._timing or event.at is None or event.at > self._cuda.cpu:
                raise RuntimeError("an event without timing, not recorded, or not completed")
        return (end.at - self.at) / 1e3
