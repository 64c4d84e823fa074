"""The launches of a token and their bytes, counted on one layer of each kind, are those of the whole model."""

import pytest
import torch
from fake_cuda import FakeCuda

from luce_edu.config import ModelConfig
from luce_edu.measure import launch_cost
from luce_edu.measure.floor import decode_bytes
from luce_edu.measure.launch_cost import count_launch_bytes, measure_launches
from luce_edu.measure.launches import count_launches, narrow
from luce_edu.measure.traffic import count_traffic
from luce_edu.models import RANDOM_CONFIG, load_model

BIG = ModelConfig.from_file(RANDOM_CONFIG)
SIZES = count_launch_bytes(BIG)


def test_there_are_as_many_launches_as_in_the_ledger_of_a_whole_model():
    assert sum(size.launches for size in SIZES) == count_launches(BIG, ["per_op"])["per_op"].launches


def test_their_bytes_are_the_floor_and_the_activations():
    total = sum(size.launches * size.bytes for size in SIZES)
    assert decode_bytes(BIG, position=520).total < total < 1.02 * decode_bytes(BIG, position=520).total


def test_a_norm_reads_x_and_weight_and_writes_y():
    (norm,) = (size for size in SIZES if size.kernel == "rms_norm")
    assert norm.bytes == 3 * 4 * BIG.hidden_size and norm.launches == 2 * BIG.num_hidden_layers + 1
    assert norm.us(1.0) == norm.bytes / 1e3


def test_a_small_model_counted_whole_gives_the_same_launches():
    tiny = load_model("tiny")
    traffic = count_traffic("per_op", tiny, [65])
    whole = {}
    for entry in traffic.entries:
        size = sum(t.distinct_read + t.distinct_write for t in entry.traffic.values())
        whole[entry.kernel, size] = whole.get((entry.kernel, size), 0) + 1
    sizes = count_launch_bytes(tiny.config, position=0)
    assert {(size.kernel, size.bytes): size.launches for size in sizes} == whole


class FakeBackend:
    """RMSNorm takes 3 µs with a warm L2 and 8 with a cold one, an empty kernel 1 and 2; the CPU launches in 20."""

    device = torch.device("cpu")

    def __init__(self, cuda: FakeCuda):
        self._cuda = cuda

    def compile(self, source, kernels, defines):
        return {name: name for name in kernels}

    def launch(self, kernel, grid, block, smem, args):
        warm_us, cold_us = {"add": (1, 2), "rms_norm": (3, 8)}[kernel]
        self._cuda.read(cold_us=cold_us, warm_us=warm_us, ask_us=20)

    def capture(self, enqueue):
        """The kernels that one call of `enqueue` launches, in order."""
        found = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self, "launch", lambda kernel, *_: found.append(kernel))
            enqueue()
        return found

    def replay(self, graph):
        self._cuda.launch(sum({"add": 1, "rms_norm": 3}[kernel] for kernel in graph), ask_us=20)


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    monkeypatch.setattr(launch_cost, "make_backend", lambda name: FakeBackend(fake))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    return fake


NORM = f"RMSNorm of {BIG.hidden_size:,}"
ALONE = ("alone, warm L2", "alone, cold L2")


def test_a_launch_is_timed_among_many_and_alone_with_a_warm_and_a_cold_l2(cuda):
    table = measure_launches(BIG, launches=100, rounds=4)
    found = {(time.what, time.how): time.us.median for time in table.times}
    assert found == pytest.approx({
        ("nothing", "one by one"): 20, ("nothing", "as a graph"): 1, ("nothing", ALONE[0]): 1, ("nothing", ALONE[1]): 2,
        (NORM, "one by one"): 20, (NORM, "as a graph"): 3, (NORM, ALONE[0]): 3, (NORM, ALONE[1]): 8,
    })  # fmt: skip
    assert [NORM, "alone, cold L2", "8.00", "8.00 to 8.00"] in table.body


@pytest.mark.planted
@pytest.mark.parametrize(
    "emptier", [lambda device: lambda: None, lambda device: torch.empty(2**20, dtype=torch.uint8, device=device).zero_]
)
def test_an_l2_that_is_not_emptied_does_not_pass_for_a_cold_one(emptier, cuda, monkeypatch):
    monkeypatch.setattr(launch_cost, "l2_emptier", emptier)
    with pytest.raises(AssertionError):
        test_a_launch_is_timed_among_many_and_alone_with_a_warm_and_a_cold_l2(cuda)


@pytest.mark.planted
def test_a_graph_that_is_timed_on_an_idle_gpu_is_seen(cuda, monkeypatch):
    """On an idle GPU the CPU's time to launch the graph would count."""
    alone = launch_cost.time_rounds
    monkeypatch.setattr(launch_cost, "time_rounds", lambda enqueue, before, **how: alone(
        enqueue, before=before if before is not enqueue else lambda: None, **how))  # fmt: skip
    with pytest.raises(AssertionError):
        test_a_launch_is_timed_among_many_and_alone_with_a_warm_and_a_cold_l2(cuda)


@pytest.mark.gpu
def test_a_launch_takes_time_on_a_gpu_and_a_graph_of_them_no_more():
    times = {(time.what, time.how): time for time in measure_launches(narrow(BIG), launches=100, rounds=5).times}
    assert len(times) == 8
    for time in times.values():
        assert 0 < time.us.q1 <= time.us.median <= time.us.q3
    assert times["nothing", "as a graph"].us.median <= times["nothing", "one by one"].us.median
    norm = f"RMSNorm of {narrow(BIG).hidden_size:,}"
    assert times[norm, ALONE[0]].us.median < times[norm, ALONE[1]].us.median
