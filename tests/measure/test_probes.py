"""The probes time one warp's loads, one after another and together, and count where its reads collide."""

from functools import cache, partial

import numpy as np
import pytest
import torch

from luce_edu.backends.host import HostBackend
from luce_edu.faults import Fault, planted
from luce_edu.machine.cards import find_card
from luce_edu.machine.clock import find_clock
from luce_edu.machine.timed import run_timed
from luce_edu.measure import probes
from luce_edu.measure.probes import bank_conflicts, issue_cycles, time_loads
from luce_edu.plots.bytes_are_time import bytes_in_flight

LANES = np.arange(32)
timed = cache(time_loads)


def test_a_load_that_needs_the_value_before_it_is_issued_after_it():
    run = timed("one_at_a_time")
    assert len(run.begin_ns) == 8 and all(b > e for b, e in zip(run.begin_ns[1:], run.end_ns, strict=False))
    assert max(bytes_in_flight(run)[1]) == 512
    dram = find_clock(find_card("RTX 3090")).dram_latency_ns
    assert all(dram < e - b < 1.1 * dram for b, e in zip(run.begin_ns, run.end_ns, strict=True))


def test_loads_that_need_no_value_are_all_in_flight_before_the_first_is_used():
    run = timed("all_at_once")
    assert max(run.begin_ns) < min(run.end_ns)
    assert max(bytes_in_flight(run)[1]) == 8 * 512 and bytes_in_flight(run)[1][-1] == 0
    assert run.gb_per_s > 6 * timed("one_at_a_time").gb_per_s


@pytest.mark.planted
def test_loads_that_depend_on_each_other_by_mistake_are_noticed(monkeypatch):
    apart, chained = "value += mixed(load_weights(zeros + (i", "value = mixed(load_weights(zeros + value + (i"
    with planted(Fault("", "probes.cu", apart, chained)) as tree:
        monkeypatch.setattr(probes, "HostBackend", partial(HostBackend, csrc_dir=tree))
        run = time_loads("all_at_once")
    assert max(run.begin_ns) > min(run.end_ns)


def test_reads_collide_where_a_bank_gives_more_words_than_the_others():
    assert [bank_conflicts(first) for first in (8 * LANES, 4 * LANES, 4 * (LANES % 8))] == [4, 0, 0]


@pytest.mark.parametrize("first", [4 * LANES + 1, 12 * LANES, 4 * LANES[:8], 4 * LANES - 4])
def test_reads_that_do_not_fit_are_refused(first):
    with pytest.raises(ValueError, match="^first_words: "):
        bank_conflicts(first)


@pytest.mark.parametrize(
    "kernel, options", [("read_shared", {}), ("all_at_once", {"loads": 0}), ("all_at_once", {"card": "RTX 1"})]
)
def test_what_cannot_be_timed_is_refused(kernel, options):
    with pytest.raises(ValueError):
        time_loads(kernel, **options)


@pytest.mark.planted
def test_a_kernel_with_a_branch_has_no_single_time_of_issue():
    backend = HostBackend(card="RTX 3090")
    kernel = backend.compile(probes.SOURCE, probes.KERNELS, {"BLOCK_THREADS": 32, "LOADS": 1})["read_shared"]
    (times,), _ = run_timed([kernel.prepare(1, 32, [torch.zeros(32, dtype=torch.int32), torch.zeros(32)])])
    with pytest.raises(ValueError, match="one warp and no branch"):
        issue_cycles(times)
