"""A GPU's time for tests: a CPU that asks, a queue, a GPU that works it off, and events; all by a clock of its own."""

from collections import deque
from types import SimpleNamespace

import torch

from luce_edu.measure import latency


class FakeCuda:
    """Times in microseconds. The queue holds `depth` launches; asked for one more, the CPU waits for the oldest.

    Memory takes 2 TB/s. L2 forgets for certain only what twice as many bytes as it holds have been written after.
    slowness  how many times longer a launch takes once the GPU has worked for so many microseconds: its clock
    """

    def __init__(self, depth: int = 4, l2_bytes: int = 48 * 2**20, slowness=lambda worked_us: 1.0):
        self.cpu = self.gpu = 0.0  # what time it is for the CPU; when the GPU will have worked off all
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
        """A launch that takes as long as where its data are found says; the next one finds them in L2."""
        self.launch(warm_us if self.warm else cold_us, ask_us)
        self.warm = True

    def empty(self, size: int, *, dtype: torch.dtype, device) -> SimpleNamespace:
        """In the place of torch.empty, for a buffer that is only written."""

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
        """Put it in the place of torch.cuda's events and memory, and of the clock that `module` reads."""
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
        """Milliseconds, as of a real event, and refused where a real one would refuse."""
        for event in (self, end):
            if not event._timing or event.at is None or event.at > self._cuda.cpu:
                raise RuntimeError("an event without timing, not recorded, or not completed")
        return (end.at - self.at) / 1e3
