"""Our kernels, cuBLAS and torch.compile do the same two tasks; a system that cannot is a row with its reason."""

import pytest
import torch

from luce_edu.backends.host import HostBackend
from luce_edu.faults import Fault, planted
from luce_edu.measure.bench import tasks
from luce_edu.measure.bench.tasks import measure_tasks
from luce_edu.measure.latency import Quartiles
from luce_edu.measure.records.rows import TaskRow
from luce_edu.measure.schema import checked

SYSTEMS = [("rms_norm", "ours"), ("rms_norm", "torch.compile"), ("matvec", "ours"), ("matvec", "cuBLAS"),
           ("matvec", "torch.compile")]  # fmt: skip


@pytest.fixture
def backend(monkeypatch) -> HostBackend:
    """The virtual GPU. A task takes a microsecond per element; torch.compile leaves a function as it is."""
    monkeypatch.setattr(tasks, "l2_emptier", lambda device: lambda: None)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(tasks, "time_rounds", lambda enqueue, before: Quartiles.of(2 * [float(enqueue().numel())]))
    backend = HostBackend()
    backend.device = torch.device("cpu")
    return backend


def reasons(backend) -> dict[tuple[str, str], str]:
    return {(row.task, row.system): row.reason for row in measure_tasks(backend).rows if row.latency_us is None}


def test_every_system_does_both_tasks_right_and_the_rows_can_be_stored(backend):
    found = measure_tasks(backend)
    assert [(row.task, row.system) for row in found.rows] == SYSTEMS
    assert [row.reason for row in found.rows] == [""] * 5 and checked(found) == found
    assert {row.task: row.latency_us.median for row in found.rows} == {"rms_norm": 1024, "matvec": 3584}


@pytest.mark.planted
def test_a_system_that_is_wrong_is_not_timed(backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: lambda *args: 1.001 * function(*args))
    assert {key: "off by 1.0e-03" in why for key, why in reasons(backend).items()} == {
        ("rms_norm", "torch.compile"): True, ("matvec", "torch.compile"): True,
    }  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("fault", [
    Fault("no 1 +", "rms_norm.cuh", "1.0f + weight[", "weight["),
    Fault("a small scale", "rms_norm.cuh", "1.0f + weight[", "1.0001f + weight["),
])  # fmt: skip
def test_a_kernel_of_ours_that_is_wrong_fails_the_part(backend, fault):
    with planted(fault) as tree:
        broken = HostBackend(csrc_dir=tree)
        broken.device = torch.device("cpu")
        with pytest.raises(AssertionError, match="rms_norm by ours is off"):
            measure_tasks(broken)


@pytest.mark.planted
def test_a_compiler_that_is_missing_costs_its_own_rows_alone(backend, monkeypatch):
    def compile(function):
        raise RuntimeError("Cannot find a working triton installation.\nAnd more.")

    monkeypatch.setattr(torch, "compile", compile)
    assert reasons(backend) == dict.fromkeys(
        [SYSTEMS[1], SYSTEMS[4]], "RuntimeError: Cannot find a working triton installation."
    )


def test_a_row_says_why_it_has_no_time():
    assert checked(TaskRow("matvec", "cuBLAS", None, "no library")).latency_us is None
