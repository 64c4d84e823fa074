"""The cuda backend on a stand-in for CUDA that records calls: captures, products, and refusals.

test_cuda_driver.py checks what a launch hands to the driver.
"""

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest
import torch

from luce_edu.backends import make_backend
from luce_edu.backends.cuda import CudaKernel
from luce_edu.backends.devices import default_device
from luce_edu.errors import CaptureError, CompileError, LaunchError
from luce_edu.machine.cubin import Resources


class LaunchConfig:
    """As in cuda-core 1.2 and newer."""

    programmatic_stream_serialization = is_cooperative = False

    def __init__(self, grid, block, shmem_size, is_cooperative=False, programmatic_stream_serialization=False):
        self.grid, self.block, self.cooperative = grid, block, is_cooperative
        self.dependent = programmatic_stream_serialization


class LaunchConfigBefore12:
    is_cooperative = False

    def __init__(self, grid, block, shmem_size, is_cooperative=False):
        self.grid, self.block, self.cooperative, self.dependent = grid, block, is_cooperative, False


class FakeCuda:
    """launched: (stream, name, config, values) of every launch;  replayed: the number of replays."""

    def __init__(self, capability=(9, 0), launch_config=LaunchConfig):
        self.capability, self.launch_config = capability, launch_config
        self.launched, self.stream, self.replayed = [], 7, 0
        self.captures, self.capture_fails = [], False

    def install(self, monkeypatch) -> None:
        core = ModuleType("cuda.core")
        core.LaunchConfig, core.launch = self.launch_config, self._launch
        core.Stream = SimpleNamespace(from_handle=lambda handle: handle)
        core.Device = lambda index: SimpleNamespace(
            set_current=lambda: None,
            properties=SimpleNamespace(multiprocessor_count=132, max_shared_memory_per_block_optin=227 * 1024),
        )
        monkeypatch.setitem(sys.modules, "cuda.core", core)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: self.capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Fake GPU")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=self.stream))
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "stream", stream.cuda_stream))
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(cuda_stream=99, device=device))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: object())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self._replay))
        monkeypatch.setattr(torch.cuda, "graph", self._capture)
        monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)  # the real one creates a context

    def _launch(self, stream, config, kernel, *values):
        self.launched.append((stream, kernel, config, values))

    @contextmanager
    def _capture(self, graph, *, pool, stream, capture_error_mode):
        """As in PyTorch: where the end of a capture fails, the capture's stream stays the current one."""
        self.captures.append((pool, stream.device, capture_error_mode))
        self.stream, before = stream.cuda_stream, self.stream
        try:
            yield
        finally:
            if self.capture_fails:
                raise RuntimeError("operation failed due to a previous error during capture\nand more")
            self.stream = before

    def _replay(self):
        self.replayed += 1


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def kernel(name):
    return CudaKernel(name, Resources(32, 0, 0, 0, 0), name, ())


def enqueue(backend, names=("a", "b", "c")):
    for name in names:
        backend.launch(kernel(name), 4, 512, 0, ())


def test_a_replay_is_one_entry_of_the_ledger_with_all_its_kernels(cuda):
    backend = make_backend("cuda")
    graph = backend.capture(lambda: enqueue(backend))
    for _ in range(2):
        backend.replay(graph)
    assert cuda.replayed == 2 and backend.ledger.by_kernel() == {"graph": 2}
    assert [entry.kernel for entry in backend.ledger.kernels()] == ["a", "b", "c"] * 2


def test_captures_are_on_the_backends_device_and_share_one_pool(cuda):
    backends = [make_backend("cuda") for _ in range(2)]
    for backend in backends * 2:
        backend.capture(lambda backend=backend: enqueue(backend))
    assert {device for _, device, _ in cuda.captures} == {torch.device("cuda", 0)}
    assert len({id(pool) for pool, *_ in cuda.captures}) == 1
    assert {mode for *_, mode in cuda.captures} == {"thread_local"}, "other threads may allocate"


@pytest.mark.planted
def test_a_capture_whose_end_fails_is_one_line_and_leaves_pytorch_on_its_stream(cuda):
    backend = make_backend("cuda")
    ledger, cuda.capture_fails = backend.ledger, True
    with pytest.raises(CaptureError, match="operation failed .* capture$"):
        backend.capture(lambda: enqueue(backend))
    assert cuda.stream == 7 and backend.ledger is ledger and len(ledger) == 0


@pytest.mark.parametrize(
    "error, seen", [(LaunchError, LaunchError), (torch.OutOfMemoryError, CaptureError)], ids=["a launch", "memory"]
)
def test_a_capture_that_fails_gives_stream_and_ledger_back(cuda, error, seen):
    backend = make_backend("cuda")
    ledger = backend.ledger

    def fail():
        enqueue(backend)
        raise error("planted")

    with pytest.raises(seen, match="planted"):
        backend.capture(fail)
    assert cuda.stream == 7 and backend.ledger is ledger and len(ledger) == 0
    enqueue(backend)
    assert len(ledger) == 3


@pytest.mark.parametrize("capability, there", [((7, 5), False), ((8, 9), False), ((9, 0), True), ((12, 0), True)])
def test_dependent_launch_is_there_from_hopper_on(capability, there, monkeypatch):
    FakeCuda(capability).install(monkeypatch)
    assert make_backend("cuda").dependent_launch is there


def test_a_cuda_core_that_does_not_know_dependent_launch_serves_everything_else(monkeypatch):
    cuda = FakeCuda(launch_config=LaunchConfigBefore12)
    cuda.install(monkeypatch)
    backend = make_backend("cuda")
    assert not backend.dependent_launch
    enqueue(backend)
    backend.launch(kernel("barriers"), 132, 512, 0, (), cooperative=True)
    assert len(cuda.launched) == len(backend.ledger) == 4


@pytest.fixture
def products(monkeypatch):
    """(rows of the weight, whether cuBLAS might add up in bf16) of every product; computed on the CPU."""
    seen, multiply = [], torch.mm

    def mm(x, weight, out):
        seen.append((weight.shape[1], torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction))
        return out.copy_(multiply(x.float(), weight.float()))

    monkeypatch.setattr(torch, "mm", mm)
    return seen


def matrices(*outputs, together):
    inputs = 24
    whole = torch.randn(sum(outputs), inputs).bfloat16()
    weights = list(whole.split(list(outputs)))
    return torch.randn(5, inputs).bfloat16(), weights if together else [weight.clone() for weight in weights]


@pytest.mark.parametrize("together, rows", [(True, [27]), (False, [16, 3, 8])])
def test_weights_side_by_side_are_one_product_and_others_one_each(cuda, products, together, rows):
    backend = make_backend("cuda")
    x, weights = matrices(16, 3, 8, together=together)
    out = torch.full((5, 27), float("nan")).bfloat16()
    backend.matmul(x, weights, out)
    assert torch.equal(out, (x.float() @ torch.cat(weights).float().T).bfloat16())
    assert [n for n, _ in products] == rows
    assert [entry.kernel for entry in backend.ledger.entries] == ["matmul"] * len(rows)


@pytest.mark.parametrize("allowed", [True, False, (False, False)])
def test_sums_stay_in_fp32_and_the_users_own_setting_comes_back(cuda, products, allowed, monkeypatch):
    setting = torch.backends.cuda.matmul

    def both():
        split_k = setting.allow_bf16_reduced_precision_reduction_split_k
        return setting.allow_bf16_reduced_precision_reduction, split_k

    before = both()
    try:
        setting.allow_bf16_reduced_precision_reduction = allowed
        chosen = both()
        backend = make_backend("cuda")
        x, weights = matrices(16, together=True)
        backend.matmul(x, weights, torch.ones(5, 16).bfloat16())
        assert both() == chosen

        def fails(*_, **__):
            raise torch.OutOfMemoryError("planted")

        monkeypatch.setattr(torch, "mm", fails)
        with pytest.raises(torch.OutOfMemoryError):
            backend.matmul(x, weights, torch.ones(5, 16).bfloat16())
        assert both() == chosen
    finally:
        setting.allow_bf16_reduced_precision_reduction = before
    assert products == [(16, False)] and len(backend.ledger) == 1


def test_a_captured_product_is_among_the_graphs_launches(cuda, products):
    backend = make_backend("cuda")
    x, weights = matrices(16, 8, together=True)
    graph = backend.capture(lambda: backend.matmul(x, weights, torch.ones(5, 24).bfloat16()))
    assert [entry.kernel for entry in graph.launches] == ["matmul"] and len(backend.ledger) == 0


def test_a_product_that_does_not_fit_is_refused(cuda, products):
    backend = make_backend("cuda")
    x, weights = matrices(16, 8, together=True)
    for out in (torch.ones(5, 16).bfloat16(), torch.ones(5, 24), torch.ones(24, 5).bfloat16().T):
        with pytest.raises(LaunchError, match="^matmul: expected bf16 x"):
            backend.matmul(x, weights, out)
    assert products == [] and len(backend.ledger) == 0


PYTORCH_FOR = {"12.6": ["sm_75", "sm_80", "sm_86", "sm_90"], "13.0": ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"]}


@pytest.mark.parametrize(
    "cuda_version, capability, code, served",
    [
        ("12.6", (7, 5), None, True), ("12.6", (8, 9), None, True), ("12.6", (9, 0), None, True),
        ("12.6", (12, 0), None, False), ("12.6", (10, 0), None, False), ("13.0", (12, 0), None, True),
        ("13.0", (12, 1), None, True), ("13.0", (13, 0), None, False), ("12.8", (12, 0), ["compute_90"], True),
        ("12.8", (9, 0), ["sm_90a"], True), ("12.6", (12, 0), [], True),
    ],
)  # fmt: skip
def test_a_gpu_that_pytorch_has_no_code_for_is_told_to_update_the_driver(
    cuda_version, capability, code, served, monkeypatch
):
    FakeCuda(capability).install(monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", cuda_version)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: PYTORCH_FOR[cuda_version] if code is None else code)
    if served:
        assert make_backend("cuda").name == "cuda" and default_device() == "cuda"
        return
    wanted = "newer PyTorch" if cuda_version == "13.0" else "driver to 580"
    with pytest.raises(ValueError, match=f"Fake GPU.*{wanted}"):
        make_backend("cuda")
    with pytest.warns(RuntimeWarning, match=wanted):
        assert default_device() == "host"


@pytest.mark.parametrize("old", [type("LaunchConfig", (), {"cooperative_launch": False}), None])
def test_a_cuda_core_before_1_is_refused_by_its_version(old, monkeypatch):
    FakeCuda(launch_config=old).install(monkeypatch)
    monkeypatch.setattr("luce_edu.backends.cuda.version", lambda package: {"cuda-core": "0.3.2"}[package])
    with pytest.raises(CompileError, match=r"^cuda-core 0.3.2 .*1.0"):
        make_backend("cuda")


def test_a_gpu_or_package_that_does_not_suffice_is_named(monkeypatch):
    FakeCuda((7, 0)).install(monkeypatch)
    with pytest.raises(ValueError, match=r"Fake GPU .*7.0.*7.5"):
        make_backend("cuda")
    FakeCuda().install(monkeypatch)
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(CompileError, match="cuda-core is not installed"):
        make_backend("cuda")
