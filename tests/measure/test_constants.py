"""The kernels that measure a launch, a barrier and a byte do the work that is timed; the constants are right."""

import math
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import FakeCuda
from mistake import with_mistake

from luce_edu.backends.host import HostBackend
from luce_edu.faults import Fault, planted
from luce_edu.machine.cubin import ARCHITECTURES, compile_cubin
from luce_edu.measure import constants
from luce_edu.measure.constants import KERNELS, SOURCE, datasheet_bandwidth
from luce_edu.stages.dims import BLOCK_THREADS, GRID_BARRIER_PASSED, GRID_BARRIER_WORDS

DEFINES = {"BLOCK_THREADS": BLOCK_THREADS}
BLOCKS = 2
IN_FLIGHT = 8  # in_flight of microbench.cu
WHOLE = BLOCKS * BLOCK_THREADS * IN_FLIGHT  # vectors: a multiple leaves every thread the same number
SIZES = (1, 511, 513, WHOLE - 1, WHOLE, WHOLE + 1, 2 * WHOLE - 700)


def bits(vectors: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vectors)
    return torch.randint(-(2**15), 2**15, (vectors * 8,), dtype=torch.int16, generator=generator)


# ---- The kernels ----


def copy_is_right(backend, vectors: int) -> bool:
    """Whether copy_all copies `vectors` vectors and writes nothing behind them."""
    kernel = backend.compile(SOURCE, KERNELS, DEFINES)["copy_all"]
    source, behind = bits(vectors + 3), 77
    copy = torch.full_like(source, behind)
    backend.launch(kernel, BLOCKS, BLOCK_THREADS, 0, (source, copy, vectors))
    return torch.equal(copy[: vectors * 8], source[: vectors * 8]) and bool((copy[vectors * 8 :] == behind).all())


@pytest.mark.parametrize("vectors", SIZES)
def test_the_copy_is_equal_and_nothing_behind_it_is_touched(vectors):
    assert copy_is_right(HostBackend(), vectors)


def reading(backend, vectors: int):
    """The traffic of read_all on `vectors` vectors, counted by the virtual GPU; and whether it wrote anything."""
    kernel = backend.compile(SOURCE, KERNELS, DEFINES)["read_all"]
    source, sink = bits(vectors), torch.zeros(1, dtype=torch.int32)
    backend.launch(kernel, BLOCKS, BLOCK_THREADS, 0, (source, vectors, sink))
    (entry,) = backend.ledger.entries
    traffic = entry.traffic["argument 0"]
    return traffic, int(sink) != 0 or traffic.asked_write != 0


@pytest.mark.parametrize("vectors", SIZES)
def test_reading_asks_for_every_byte_and_for_each_once_but_at_a_ragged_end(vectors):
    traffic, wrote = reading(HostBackend(), vectors)
    assert traffic.distinct_read == 16 * vectors and not wrote
    # A thread reads eight vectors at a time; at the end it reads its first one in place of the missing ones.
    assert traffic.asked_read <= 16 * math.ceil(vectors / WHOLE) * WHOLE
    if vectors % WHOLE == 0:
        assert traffic.asked_read == traffic.moved_read == 16 * vectors


@pytest.mark.parametrize("count", [0, 1, 7])
def test_barriers_are_as_many_as_were_asked_for(count):
    backend = HostBackend()
    kernel = backend.compile(SOURCE, KERNELS, DEFINES)["barriers"]
    state = torch.zeros(GRID_BARRIER_WORDS, dtype=torch.int32)
    state[GRID_BARRIER_PASSED] = 5  # the count goes on from its value
    blocks = backend.max_resident_blocks(kernel, BLOCK_THREADS, 0)
    backend.launch(kernel, blocks, BLOCK_THREADS, 0, (state, count), cooperative=True)
    assert blocks > 1 and state[GRID_BARRIER_PASSED] == 5 + count


def test_the_empty_kernel_starts_and_ends():
    backend = HostBackend()
    backend.launch(backend.compile(SOURCE, KERNELS, DEFINES)["nothing"], BLOCKS, BLOCK_THREADS, 0, ())
    assert backend.ledger.traffic() == {}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_they_compile_for_every_gpu_without_spills(arch):
    dependent = [{}, {"DEPENDENT_LAUNCH": 1}] if arch in ("sm_90a", "sm_100a", "sm_120") else [{}]
    for macro in dependent:
        binary = compile_cubin(SOURCE, KERNELS, DEFINES | macro, arch)
        assert set(binary.resources) == set(KERNELS)
        for name, resources in binary.resources.items():
            assert resources.stack_bytes == resources.spill_store_bytes == resources.spill_load_bytes == 0, name
            assert resources.registers <= 65536 // BLOCK_THREADS, f"{name} cannot be launched"


COPY = "if (at < vectors) *reinterpret_cast<bf16x8*>(to + static_cast<size_t>(at) * 8) = v[i];"
READ = "    unsigned sum = 0;\n    for (int first = blockIdx.x * block_threads + threadIdx.x; first < vectors;"
COPY_FAULTS = {
    "the last vector is left out": Fault("", SOURCE, COPY, COPY.replace("at < vectors", "at < vectors - 1")),
    "one more is copied": Fault("", SOURCE, COPY, COPY.replace("at < vectors", "at <= vectors")),
    "one in eight is left out": Fault("", SOURCE, COPY, COPY.replace("(at <", "(i > 0 && at <")),
}


@pytest.mark.planted
@pytest.mark.parametrize("fault", COPY_FAULTS)
def test_a_wrong_copy_is_caught(fault):
    with planted(COPY_FAULTS[fault]) as tree:
        assert not all(copy_is_right(HostBackend(csrc_dir=tree), vectors) for vectors in SIZES)


@pytest.mark.planted
def test_a_read_that_skips_is_caught():
    skip = Fault("", SOURCE, READ, READ.replace("threadIdx.x; first", "threadIdx.x + 1; first"))
    with planted(skip) as tree:
        assert reading(HostBackend(csrc_dir=tree), WHOLE)[0].distinct_read < 16 * WHOLE


# ---- The constants, on a GPU whose costs are known ----


class FakeBackend:
    """A launch takes the CPU 9 µs, a prepared one 4, that of a graph 6, that of a pass over memory 20.

    A kernel takes the GPU 1 µs, in a graph 1.5, there with dependent launch 0.9; a KiB takes 2 µs to read, 6 to copy.
    """

    device = torch.device("cpu")

    def __init__(self, cuda: FakeCuda, dependent_launch: bool):
        self.cuda, self.dependent_launch = cuda, dependent_launch
        self._capturing, self._asking_us = None, 9

    def compile(self, source, kernels, defines):
        assert (source, kernels) == (SOURCE, KERNELS)
        return {name: SimpleNamespace(name=name, waits="DEPENDENT_LAUNCH" in defines) for name in kernels}

    def max_resident_blocks(self, kernel, block, smem):
        return 264

    def launch(self, kernel, grid, block, smem, args, cooperative=False, dependent=False):
        assert block == BLOCK_THREADS and cooperative == (kernel.name == "barriers") and dependent == kernel.waits
        if self._capturing is not None:
            self._capturing += 0.9 if dependent else 1.5
        elif kernel.name == "barriers":
            assert grid == 132, "as many blocks as multiprocessors"
            self.cuda.launch(gpu_us=30 + 1.2 * args[1], ask_us=4)
        elif kernel.name == "nothing":
            self.cuda.launch(gpu_us=1, ask_us=self._asking_us)
        else:
            self.cuda.launch(gpu_us=args[0].nbytes / 1024 * {"read_all": 2, "copy_all": 6}[kernel.name], ask_us=20)
            if kernel.name == "copy_all":
                args[1].copy_(args[0])

    def prepare(self, enqueue):
        return enqueue

    def run(self, prepared):
        self._asking_us = 4
        prepared()
        self._asking_us = 9

    def capture(self, enqueue):
        self._capturing = 0.0
        enqueue()
        graph, self._capturing = self._capturing, None
        return graph

    def replay(self, graph):
        self.cuda.launch(gpu_us=graph, ask_us=6)


@pytest.fixture
def gpu(monkeypatch):
    """A function that makes a backend on a GPU of 132 multiprocessors whose speed changes by `slowness`."""

    def make(slowness=lambda worked_us: 1.0, dependent_launch=True) -> FakeBackend:
        cuda = FakeCuda(slowness=slowness)
        cuda.install(monkeypatch)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Something")
        return FakeBackend(cuda, dependent_launch)

    return make


def idle(worked_us: float) -> float:
    """The slowness of a GPU that was idle: 345 in place of 1980 MHz until it has worked for 0.4 s."""
    return 1980 / 345 if worked_us < 4e5 else 1.0


def warming(worked_us: float) -> float:
    """The slowness of a GPU that slows down all the time, by about a fifth while the rounds run."""
    return 1 + worked_us / 2.5e5


def costs_are_right(module, gpu) -> None:
    """The costs of one launch and of one barrier, on a GPU that was idle before."""
    for dependent_launch in (True, False):
        costs = module.measure_launch_costs(gpu(idle, dependent_launch))
        assert costs.plain_us == pytest.approx(4), "the GPU waits for the CPU, which launches one by one"
        assert costs.graph_us == pytest.approx(1.5)
        assert costs.barrier_us == pytest.approx(1.2), "without the launch around the barriers"
        assert costs.dependent_us == (pytest.approx(0.9) if dependent_launch else None)


def costs_keep_their_proportion(module, gpu) -> None:
    """The ratio of two costs is right while the clock drifts."""
    costs = module.measure_launch_costs(gpu(warming))
    assert costs.barrier_us / costs.graph_us == pytest.approx(1.2 / 1.5, rel=0.02)


def bandwidth_is_right(module, gpu) -> None:
    found = module.measure_bandwidth(gpu(idle), size=2**17)
    assert found.read == pytest.approx(1.024 / 2) and found.copy == pytest.approx(2 * 1.024 / 6)


@pytest.mark.parametrize("check", [costs_are_right, costs_keep_their_proportion, bandwidth_is_right])
def test_constants_are_those_of_the_gpu_alone_at_its_full_clock(check, gpu):
    check(constants, gpu)


TURNS = "    for _ in range(ROUNDS):\n        for name, enqueue in works.items():\n"
BLOCKS_OF_ROUNDS = "    for name, enqueue in works.items():\n        for _ in range(ROUNDS):\n"
AHEAD = "            enqueue()\n            times"
MISTAKES = {
    "a graph at a time on an idle GPU": (AHEAD, "            times", costs_are_right),
    "a pass at a time on an idle GPU": (AHEAD, "            times", bandwidth_is_right),
    "the same, waited for": (AHEAD, AHEAD.replace("times", "torch.cuda.synchronize()\n            times"),
                             bandwidth_is_right),
    "costs at an idle clock": ("while worked < LOAD_US", "while worked < 0", costs_are_right),
    "bandwidth at an idle clock": ("while worked < LOAD_US", "while worked < 0", bandwidth_is_right),
    "one kind after the other": (TURNS, BLOCKS_OF_ROUNDS, costs_keep_their_proportion),
    "barriers with their launch": ('us["long"] - us["short"]) / (2 * MANY)', 'us["long"]) / (3 * MANY)',
                                   costs_are_right),
    "passes not counted": ("bytes_moved * PASSES", "bytes_moved", bandwidth_is_right),
}  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_measurement_of_constants_is_caught(mistake, gpu):
    old, new, check = MISTAKES[mistake]
    module = with_mistake(constants, old, new)
    with pytest.raises(AssertionError):
        check(module, gpu)


class TimedHost(HostBackend):
    """The virtual GPU with a fake clock: a KiB takes 10 ns to read and 30 to copy."""

    def __init__(self, cuda: FakeCuda, csrc_dir=None):
        super().__init__(csrc_dir=csrc_dir)
        self.cuda = cuda

    def launch(self, kernel, grid, block, smem, args, **how):
        super().launch(kernel, grid, block, smem, args, **how)
        kib = args[0].nbytes / 1024
        self.cuda.launch(gpu_us=kib * {"read_all": 0.010, "copy_all": 0.030}[kernel.name], ask_us=0)


def bandwidth(monkeypatch, csrc_dir=None):
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    monkeypatch.setattr(constants, "LOAD_US", 0)  # half a second of work takes long on the virtual GPU
    monkeypatch.setattr(constants, "ROUNDS", 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Something")
    return constants.measure_bandwidth(TimedHost(cuda, csrc_dir), size=2**17)


def test_bandwidth_is_bytes_read_or_bytes_read_and_written_over_time(monkeypatch):
    found = bandwidth(monkeypatch)
    assert found.read == pytest.approx(1024 / 10)  # bytes per nanosecond are GB/s
    assert found.copy == pytest.approx(2 * 1024 / 30)
    assert found.datasheet is None


@pytest.mark.planted
@pytest.mark.parametrize("fault", ["the last vector is left out", "one in eight is left out"])
def test_the_bandwidth_of_a_wrong_copy_is_not_given(fault, monkeypatch):
    with planted(COPY_FAULTS[fault]) as tree, pytest.raises(AssertionError, match="copied"):
        bandwidth(monkeypatch, tree)


@pytest.mark.parametrize(
    "name, gb_per_s",
    [
        ("NVIDIA H100 80GB HBM3", 3350),
        ("NVIDIA H200", 4800),
        ("NVIDIA A100-SXM4-80GB", 2039),
        ("NVIDIA GeForce RTX 3090", 936),
        ("NVIDIA GeForce RTX 4090", 1008),
        ("NVIDIA GeForce RTX 5090", 1792),
        ("Tesla T4", 320),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_a_datasheet_is_that_of_the_very_gpu_or_none(name, gb_per_s, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert datasheet_bandwidth() == gb_per_s


@pytest.mark.gpu
def test_the_constants_of_a_real_gpu_are_of_the_right_size():
    costs, found = constants.measure_launch_costs(), constants.measure_bandwidth()
    assert 0.3 < costs.graph_us <= costs.plain_us < 50 and 0.2 < costs.barrier_us < 20
    assert costs.dependent_us is None or costs.dependent_us < 1.2 * costs.graph_us
    assert 50 < found.read < 20_000 and 50 < found.copy < 20_000
    assert found.datasheet is None or max(found.read, found.copy) < found.datasheet
    assert all(map(math.isfinite, (costs.graph_us, found.read)))
