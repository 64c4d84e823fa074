"""A machine with a GPU that measures everything at once, for tests of what `evidence` does with it."""

from types import SimpleNamespace

import torch
from fake_nvml import Clock, FakeNvml

from luce_edu.measure import bench, energy, evidence
from luce_edu.measure.constants import Bandwidth, LaunchCosts
from luce_edu.measure.systems import System

MACHINE = {
    "gpu": "NVIDIA Fake 80GB", "arch": "sm_90", "sm_count": 132, "memory_bytes": 80 * 2**30, "l2_bytes": 50 * 2**20,
    "driver": "580.65.06", "power_limit_w": 350.0, "versions": {"python": "3.12.3", "torch": "2.11.0"},
}  # fmt: skip
VERIFIED = {"model": "tiny", "device": "cuda", "steps": 24, "seed": 1, "passed": True, "limit": 1.25, "rows": []}


class Quick(System):
    """Always right, and as fast as it says."""

    launches, kernels, barriers = 1, 42, 0

    def __init__(self, machine, name: str):
        self._machine, self.name = machine, name

    def prefill(self, tokens):
        self._machine.happens("prefill" if len(tokens) == bench.PROMPT else "check")

    def advance(self):
        pass

    def choice(self):
        return 4

    def pretend(self, context):
        self._machine.happens("decode" if self._machine.timing else "energy")

    def time_decode(self, *, steps):
        return [100.0] * steps, 10.0

    def wait(self):
        if self._machine.in_window:
            self._machine.nvml.work(0.5)

    def close(self):
        self._machine.happens("close")


class Machine:
    """What happened, in order, in `happened`; `on` holds by name what is to be raised when it happens."""

    def __init__(self):
        self.happened: list[str] = []
        self.on: dict[str, BaseException] = {}
        self.fields, self.commit, self.verified = dict(MACHINE), "1" * 40, VERIFIED
        self.nvml = FakeNvml(Clock())
        self.no_sensors: Exception | None = None
        self.launch = LaunchCosts(4.0, 1.5, 0.9, 1.2)
        self.timing = self.in_window = False

    def happens(self, what: str) -> None:
        if not self.happened or self.happened[-1] != what:
            self.happened.append(what)
        if what in self.on:
            raise self.on[what]

    def install(self, monkeypatch) -> None:
        """Put it in the place of PyTorch's GPU and of all that measures it."""

        def answer(what, value):
            def measure(*args, **options):
                self.happens(what)
                return value() if callable(value) else value

            return measure

        def open_sensors():
            if self.no_sensors:
                raise self.no_sensors
            return evidence.Sensors(self.nvml, "handle")

        def measure_energy(run, sensors, **options):
            self.in_window = True
            try:
                return energy.measure_energy(run, sensors, **options | {"clock": self.nvml.clock})
            finally:
                self.in_window = False

        def timed(*args, **options):
            self.timing = bool(options["contexts"])

            def save(result):
                self.timing = False
                options["save"](result)

            return bench.bench(*args, **options | {"save": save})

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(evidence, "machine", lambda: dict(self.fields))
        monkeypatch.setattr(evidence, "commit", lambda: self.commit)
        monkeypatch.setattr(evidence, "make_backend", answer("backend", SimpleNamespace(device=torch.device("cpu"))))
        monkeypatch.setattr(evidence, "_verify", answer("verify", lambda: self.verified))
        monkeypatch.setattr(evidence, "measure_launch_costs", answer("launch", lambda: self.launch))
        monkeypatch.setattr(evidence, "measure_bandwidth", answer("bandwidth", Bandwidth(3000.0, 2800.0, 3350.0)))
        monkeypatch.setattr(evidence.Sensors, "open", staticmethod(open_sensors))
        monkeypatch.setattr(evidence, "make_systems", lambda *args, **options: {
            name: (lambda name=name: Quick(self, name)) for name in ("graph", "megakernel")
        })  # fmt: skip
        monkeypatch.setattr(evidence, "bench", timed)
        monkeypatch.setattr(bench, "_decided_choices", lambda model, progress: [([1, 2], 4, 4)])
        monkeypatch.setattr(bench, "measure_energy", measure_energy)
        monkeypatch.setattr(bench, "measure_idle", lambda sensors: 70.0)
        monkeypatch.setattr(energy, "SAMPLE_EVERY", 0.001)
