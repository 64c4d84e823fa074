"""The launches of a token, sized by counting one layer of each kind, are those of the whole model."""

import pytest

from luce_edu.config import ModelConfig
from luce_edu.measure.floor import decode_bytes
from luce_edu.measure.launch_cost import count_launch_bytes, measure_launches
from luce_edu.measure.launches import count_launches, narrow
from luce_edu.measure.traffic import count_traffic
from luce_edu.models import RANDOM_CONFIG, load_model

BIG = ModelConfig.from_file(RANDOM_CONFIG)
SIZES = count_launch_bytes(BIG)


def test_they_are_as_many_as_the_ledger_of_a_whole_model_holds():
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


@pytest.mark.gpu
def test_a_launch_takes_time_on_a_gpu_and_a_graph_of_them_no_more():
    times = {(time.what, time.how): time for time in measure_launches(narrow(BIG), launches=100, rounds=5).times}
    assert len(times) == 4
    for time in times.values():
        assert 0 < time.us.q1 <= time.us.median <= time.us.q3
    assert times["nothing", "as a graph"].us.median <= times["nothing", "one by one"].us.median
