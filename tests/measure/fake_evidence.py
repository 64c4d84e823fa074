"""A fake machine with a GPU, on which everything is measured instantly, for tests of `evidence`."""

import os
import signal
import time
from types import SimpleNamespace

import torch
from fake_nvml import Clock, FakeNvml

from luce_edu.measure import energy
from luce_edu.measure.bench import bench, evidence
from luce_edu.measure.bench.ablations import STAGE, SYSTEMS
from luce_edu.measure.bench.systems import System
from luce_edu.measure.constants import Bandwidth, LaunchCosts
from luce_edu.measure.latency import Quartiles
from luce_edu.measure.records.rows import Machine as Description
from luce_edu.measure.records.rows import TaskRow, Tasks, Verified, VerifiedStage
from luce_edu.stages import STAGES

MACHINE = Description(
    "NVIDIA Fake 80GB", "sm_90", 132, 80 * 2**30, 50 * 2**20, driver="580.65.06", power_limit_w=350.0,
    versions={"python": "3.12.3", "torch": "2.11.0"},
)  # fmt: skip
FOR_GOOD = SimpleNamespace(setattr=setattr)  # in place of pytest's monkeypatch, in child processes
TASKS = Tasks((
    TaskRow("rms_norm", "ours", Quartiles(2.0, 1.9, 2.2, 15)), TaskRow("matvec", "torch.compile", None, "no compiler"),
))  # fmt: skip


class Quick(System):
    """A system that chooses as its machine says, and takes the time that its machine says."""

    launches, kernels, barriers = 1, 42, 0

    def __init__(self, machine, name: str):
        self._machine, self.name = machine, name

    def prefill(self, tokens):
        self._machine.happens("prefill" if len(tokens) == bench.PROMPT else "check")

    def step(self):
        pass

    def choice(self):
        return self._machine.token

    def pretend(self, context):
        self._machine.happens("decode" if self._machine.timing else "energy")
        if context == self._machine.hangs_at:
            time.sleep(600)

    def time_decode(self, *, steps):
        return [self._machine.decode_us] * steps, 10.0

    def wait(self):
        if self._machine.in_window:
            self._machine.nvml.work(0.5)

    def close(self):
        self._machine.happens("close")


class QuickVariant(Quick):
    """The stage `streaming` or a variant of it, with the logits that its machine says."""

    def prefill(self, tokens):
        self._machine.happens("ablations")

    def pretend(self, context):
        if self.name == self._machine.hangs_as:
            time.sleep(600)

    def logits_after(self, context, tokens):
        if self.name in self._machine.crashes:
            os.kill(os.getpid(), signal.SIGSEGV)
        return self._machine.logits.get(self.name, torch.ones(2, 3))

    def close(self):
        pass


class Machine:
    """`happened` lists the events in order; `on` holds, by the name of an event, the error to raise at it."""

    BASELINES = ("transformers", "transformers, compiled")

    def __init__(self):
        self.happened: list[str] = []
        self.on: dict[str, BaseException] = {}
        self.description, self.commit = MACHINE, "1" * 40
        self.wrong: set[str] = set()  # stages that do not verify
        self.crashes: set[str] = set()  # stages that end the process that verifies them
        self.hangs_at = 0  # the context at which a step never ends
        self.hangs_as: str | None = None  # the variant of which a step never ends
        self.logits: dict[str, torch.Tensor] = {}  # of variants with other logits than the rest
        self.token, self.decode_us = 4, 100.0  # the token that every system chooses, and its time per step
        self.nvml = FakeNvml(Clock())
        self.no_sensors: Exception | None = None
        self.launch = LaunchCosts(4.0, 1.5, 0.9, 1.2)
        self.timing = self.in_window = False

    def happens(self, what: str) -> None:
        if not self.happened or self.happened[-1] != what:
            self.happened.append(what)
        if what in self.on:
            raise self.on[what]

    def verify(self, part, model, *, seed, stages, progress) -> Verified:
        """The verdicts on these stages; None for all."""
        self.happens(part)
        if self.crashes & set(stages or STAGES):
            os.kill(os.getpid(), signal.SIGSEGV)
        rows = [
            VerifiedStage(stage, stage not in self.wrong, ("it differs",) * (stage in self.wrong))
            for stage in (STAGES if stages is None else stages)
        ]
        return Verified("tiny", "cuda", 24, 1, tuple(rows))

    def install(self, monkeypatch) -> None:
        """Replace PyTorch's GPU and everything that measures it."""

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
                self.timing = result.running == "decode"
                options["save"](result)

            return bench.bench(*args, **options | {"save": save})

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(evidence, "machine", lambda: self.description)
        monkeypatch.setattr(evidence, "commit", lambda: self.commit)
        monkeypatch.setattr(evidence, "make_backend", answer("backend", SimpleNamespace(device=torch.device("cpu"))))
        monkeypatch.setattr(evidence, "_verify", self.verify)
        monkeypatch.setattr(evidence, "measure_launch_costs", answer("launch", lambda: self.launch))
        monkeypatch.setattr(evidence, "measure_bandwidth", answer("bandwidth", Bandwidth(3000.0, 2800.0, 3350.0)))
        monkeypatch.setattr(evidence, "measure_tasks", answer("tasks", TASKS))
        monkeypatch.setattr(evidence.Sensors, "open", staticmethod(open_sensors))
        monkeypatch.setattr(evidence, "make_systems", lambda *args, **options: {
            name: (lambda name=name: Quick(self, name)) for name in ("graph", "megakernel")
        })  # fmt: skip
        monkeypatch.setattr(evidence, "make_variants", lambda model, backend: (
            {name: (lambda name=name: QuickVariant(self, name)) for name in (STAGE, *SYSTEMS)}, []
        ))  # fmt: skip
        monkeypatch.setattr(evidence, "bench", timed)
        monkeypatch.setattr(bench, "_decided_choices", lambda model, progress: [([1, 2], 4, 4)])
        monkeypatch.setattr(bench, "measure_energy", measure_energy)
        monkeypatch.setattr(bench, "measure_idle", lambda sensors: 70.0)
        monkeypatch.setattr(energy, "SAMPLE_EVERY", 0.001)

    def install_look(self, monkeypatch) -> None:
        """Also replace what `luce-edu gpu` checks before it measures; make_systems then gives all systems."""
        backend = SimpleNamespace(
            device=torch.device("cpu"), compile=lambda source, kernels, defines: dict.fromkeys(kernels),
            launch=lambda *args: self.happens("probe"), synchronize=lambda: None,
        )  # fmt: skip

        def make_backend(device):
            self.happens("backend")
            return backend

        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "init", lambda: self.happens("init"))
        monkeypatch.setattr(evidence, "make_backend", make_backend)
        monkeypatch.setattr(evidence, "make_systems", lambda *args, **options: {
            name: (lambda name=name: Quick(self, name)) for name in (*STAGES, *self.BASELINES)
        })  # fmt: skip
