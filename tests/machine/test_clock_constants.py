"""The clock's constants: complete and sourced for every card, checked, and in the order that sources give of chips."""

import collections
import dataclasses
import itertools
import math

import pytest

from luce_edu.machine.cards import CARDS, LIMITS, find_card
from luce_edu.machine.clock import CLOCKS, LANES, MAY_BE_ZERO, RATES, Clock, Rates, find_clock

REAL = [card for card in CARDS if card.name != "laptop"]
NUMBERS = [field.name for field in dataclasses.fields(Clock) if field.name not in ("card", "sources")]
BASES = ("measured on this card: ", "measured on the ", "published: ", "assumed: ", "assumed, as measured on the ")


def clock(name: str) -> Clock:
    return find_clock(find_card(name))


# ---- Complete, with sources ----


def test_every_card_has_constants():
    assert set(CLOCKS) == {card.name for card in CARDS}
    assert set(RATES) == {card.capability for card in CARDS}
    for card in CARDS:
        found = find_clock(card)
        assert found.card == card.name
        for name in NUMBERS:
            value = getattr(found, name)
            assert math.isfinite(value) and (value > 0 or name in MAY_BE_ZERO), (card.name, name)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_constant_says_where_it_stands_and_how_well_it_is_known(card):
    sources = find_clock(card).sources
    assert set(sources) == set(NUMBERS)
    for name, source in sources.items():
        assert source.startswith(BASES), (name, source)
        assert len(source) > 20 and source == source.strip(), name


def test_a_measurement_is_the_cards_own_or_a_sisters_or_an_assumption():
    def of(card, field):
        return clock(card).sources[field]

    assert of("A40", "l2_bytes_per_cycle").startswith("measured on this card: ")
    assert of("RTX A6000", "l2_bytes_per_cycle").startswith("measured on the A40, a sister card: ")
    assert of("RTX 3090", "l2_latency").startswith("measured on this card: ")
    assert of("A40", "l2_latency").startswith("measured on the RTX 3090, a sister card: ")
    assert of("H200", "shared_floor").startswith("measured on the GH200, a sister card: ")
    assert of("H100", "barrier_base").startswith("assumed, as measured on the B300: ")
    assert of("T4", "l1_overhead").startswith("assumed, as measured on the A100: ")


def test_nothing_of_the_fictional_card_passes_for_a_measurement():
    assert all(source.startswith("assumed: ") for source in clock("laptop").sources.values())


def test_the_sources_of_the_rates_name_the_card_that_was_measured():
    for rates in RATES.values():
        assert not any("this card" in source or "sister" in source for source in rates.sources.values())
    assert RATES[8, 0].sources["tensor_rate"].startswith("measured on the A100: ")


def test_sources_cannot_be_changed():
    with pytest.raises(TypeError):
        clock("T4").sources["fence"] = "somebody said so"


# ---- Agreement with the cards ----


def test_clock_and_size_are_those_of_the_card_that_is_asked_for():
    h100 = find_card("H100")
    found = find_clock(dataclasses.replace(h100, sm_count=2, boost_clock_mhz=1000, memory_gb_per_s=100, l2_bytes=2**20))
    assert (found.sm_count, found.clock_mhz, found.dram_gb_per_s, found.l2_bytes) == (2, 1000, 100, 2**20)
    assert found.dram_cycles == pytest.approx(found.dram_latency_ns)
    assert found.dram_bytes_per_cycle == pytest.approx(100 * found.dram_share)
    # Reading and writing a byte takes 2 / dram_bytes_per_cycle and the turn; dram_copy_share gives the sum.
    assert 2 / found.dram_bytes_per_cycle + found.dram_turn == pytest.approx(2 / (100 * found.dram_copy_share))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_l1_has_room_for_the_shared_memory_of_an_sm(card):
    assert find_clock(card).l1_bytes >= card.shared_per_sm


def test_the_laptop_has_its_share_of_an_rtx_4090():
    laptop, real = clock("laptop"), clock("RTX 4090")
    for name in ("l2_bytes_per_cycle", "idle_w", "active_w", "power_limit_w"):
        assert getattr(laptop, name) / laptop.sm_count == pytest.approx(getattr(real, name) / real.sm_count)
    for name in ("l2_latency", "fence", "dram_latency_ns", "inflight_bytes_per_sm", "launch_us", "dram_share"):
        assert getattr(laptop, name) == getattr(real, name)


# fp32 and, with fp16 inputs and fp32 sums, tensor TFLOPS of datasheets and whitepapers. On the H100, mma.sync reaches
# 62 % of wgmma, which has 1,071 at this clock (the datasheet's 989 are at a lower one).
@pytest.mark.parametrize("name, fp32, tensor", [
    ("T4", 8.1, 65), ("RTX 3090", 35.6, 71), ("RTX 4090", 82.6, 165), ("A100", 19.5, 312), ("H100", 66.9, 0.62 * 1071),
    ("H200", 66.9, 0.62 * 1071), ("RTX A6000", 38.7, 154.8), ("A40", 37.4, 149.7), ("L40", 90.5, 181),
    ("RTX 5090", 104.8, 209.5),
])  # fmt: skip
def test_rates_give_the_published_flops(name, fp32, tensor):
    found = clock(name)
    flops = 2 * found.sm_count * found.clock_mhz / 1e6
    assert flops * found.fma_rate == pytest.approx(fp32, rel=0.01)
    assert flops * found.tensor_rate == pytest.approx(tensor, rel=0.02)


# ---- Pipes ----


def test_a_rate_keeps_the_pipe_of_a_quadrant_busy():
    assert [RATES[8, 6].busy(pipe) for pipe in ("fma", "alu", "mufu", "shuffle", "fp64")] == [1, 2, 8, 4, 64]
    assert [RATES[8, 0].busy(pipe) for pipe in ("fma", "alu", "mufu", "shuffle", "fp64")] == [2, 2, 8, 4, 4]
    assert clock("RTX 3090").mma_busy(16, 8, 16) == 32 and clock("A100").mma_busy(16, 8, 16) == 8


@pytest.mark.parametrize("pipe", ["tensor", "fma_rate", "l1", ""])
def test_a_pipe_without_a_rate_is_refused(pipe):
    with pytest.raises(ValueError, match="pipe must be one of"):
        RATES[8, 6].busy(pipe)


# ---- Refused ----


@pytest.mark.parametrize("name", NUMBERS)
def test_a_value_that_is_no_valid_number_is_refused_by_the_name_of_its_field(name):
    for value in (None, math.nan, math.inf, -1.0, "4", True, *(() if name in MAY_BE_ZERO else (0,))):
        with pytest.raises(ValueError, match=rf"^clock of the A40: {name} "):
            dataclasses.replace(clock("A40"), **{name: value})


@pytest.mark.parametrize("field, planted", [
    ("l1_latency", {"l1_latency": 20}),
    ("l2_latency", {"l2_latency": 30}),
    ("dram_latency_ns", {"dram_latency_ns": 100}),
    ("dram_share", {"dram_share": 1.01}),
    ("dram_share", {"dram_share": 0.5}),  # below what a copy reaches
    ("dram_copy_share", {"dram_share": 1, "dram_copy_share": 1.2}),
    ("l2_share", {"l2_share": 1.5}),
    ("load_128_extra", {"load_128_extra": 1}),
    ("sm_bytes_per_cycle", {"sm_bytes_per_cycle": 16}),
    ("inflight_bytes_per_sm", {"inflight_bytes_per_sm": 300}),
    ("fence", {"fence": 10}),
    ("sc_fence", {"sc_fence": 100}),
    ("system_fence", {"system_fence": 100}),
    ("launch_us", {"launch_us": 0.2}),
    ("graph_gap_us", {"graph_gap_us": 0.2}),
    ("power_limit_w", {"power_limit_w": 40}),
    ("active_w", {"active_w": 10}),
    ("pj_per_byte_dram", {"pj_per_byte_dram": 10}),
    ("pj_per_byte_l2", {"pj_per_byte_l2": 5}),
    ("fma_rate", {"fma_rate": 256}),
    ("shuffle_latency", {"shuffle_latency": 0.5}),
])  # fmt: skip
def test_an_impossible_value_is_refused_by_the_name_of_its_field(field, planted):
    with pytest.raises(ValueError, match=rf"^clock of the A40: {field} "):
        dataclasses.replace(clock("A40"), **planted)


def test_a_constant_without_a_source_is_refused_and_a_source_without_a_constant():
    a40 = clock("A40")
    for name in NUMBERS:
        for without in ({n: s for n, s in a40.sources.items() if n != name}, a40.sources | {name: "  "}):
            with pytest.raises(ValueError, match=name):
                dataclasses.replace(a40, sources=without)
    with pytest.raises(ValueError, match="l3_latency"):
        dataclasses.replace(a40, sources=a40.sources | {"l3_latency": "published: nowhere"})


def test_rates_are_refused_on_their_own_too():
    with pytest.raises(ValueError, match="^rates: mufu_rate "):
        dataclasses.replace(RATES[9, 0], mufu_rate=0)
    assert set(Rates.__dataclass_fields__) < set(Clock.__dataclass_fields__)


def test_a_card_without_constants_is_refused_by_name():
    with pytest.raises(ValueError, match="^GTX 1080: .*T4, "):
        find_clock(dataclasses.replace(find_card("T4"), name="GTX 1080"))


def test_more_shared_memory_than_the_sm_has_is_refused():
    with pytest.raises(ValueError, match="^clock of the T4: l1_bytes "):
        find_clock(dataclasses.replace(find_card("T4"), shared_per_sm=LIMITS["sm_90a"].shared_per_sm))


# ---- Chips compared, by their sources ----


def test_load_store_lanes():
    """GA100 and GH100 have 32 load/store lanes an SM, a warp's 32 bits a cycle; the others 16."""
    assert {card.name: find_clock(card).shared_floor for card in REAL} == {
        "T4": 2, "RTX 3090": 2, "RTX 4090": 2, "RTX 5090": 2, "A100": 1, "H100": 1, "H200": 1, "RTX A6000": 2, "A40": 2,
        "L40": 2,
    }  # fmt: skip


# Cycles of a warp's fp32 load that hits in L1, by stride in words: gpu-strides/a100.txt and h200.txt of
# te42kyfo/gpu-benches.
STRIDES = {
    "A100": {
        0: 1.02, 1: 1.02, 2: 2, 3: 1.63, 4: 4, 5: 2.2, 6: 2.36, 7: 2.67, 8: 8, 9: 3.03, 11: 3.64, 13: 4.02, 15: 4.45,
        16: 16, 17: 5.1, 24: 8, 31: 8.5, 32: 32, 33: 8.8,
    },
    "H200": {0: 1.01, 1: 1.01, 2: 2.01, 3: 1.63, 4: 4.01, 5: 2, 6: 2.32, 8: 8, 9: 3, 12: 4.01, 15: 4.6},
}  # fmt: skip


@pytest.mark.parametrize("name", STRIDES)
def test_the_rule_of_l1_gives_the_measured_strides(name):
    """A lane of the benchmark starts at word (thread % 64) * stride and reads at eight offsets from there."""
    found, errors = clock(name), {}
    for stride, measured in STRIDES[name].items():
        cycles = []
        for start, offset in itertools.product((0, 32), (0, 4, 8, 12, 16, 20, 24, 28)):
            words = {(start + lane) * stride + offset for lane in range(32)}
            banks = collections.Counter(word % 32 for word in words)
            lines = len({word // 32 for word in words})
            cycles.append(found.l1_cycles(lines=lines, conflicts=max(banks.values()), moved=4 * len(words)))
        errors[stride] = sum(cycles) / len(cycles) / measured - 1
    assert max(map(abs, errors.values())) < 0.1, errors
    assert sum(map(abs, errors.values())) / len(errors) < 0.03, errors


def test_wide_loads_move_128_bytes_a_cycle_and_a_strided_line_each_a_quarter():
    a100, a40 = clock("A100"), clock("A40")
    assert a100.l1_cycles(lines=4, conflicts=1, moved=512) == 4 and a40.l1_cycles(lines=4, conflicts=1, moved=512) == 4
    assert a100.l1_cycles(lines=1, conflicts=1, moved=128) == 1 and a40.l1_cycles(lines=1, conflicts=1, moved=128) == 2
    assert a100.l1_cycles(lines=32, conflicts=1, moved=128) == pytest.approx(8.7)


def test_one_chip_has_one_set_of_pipes_and_caches():
    board = {
        "clock_mhz", "sm_count", "dram_gb_per_s", "l2_bytes", "l2_bytes_per_cycle", "l2_latency", "l2_share", "idle_w",
        "tensor_rate", "power_limit_w", "dram_latency_ns", "dram_share", "dram_copy_share",
    }  # fmt: skip
    for one, other in (("RTX 3090", "RTX A6000"), ("RTX A6000", "A40"), ("RTX 4090", "L40"), ("H100", "H200")):
        for name in set(NUMBERS) - board:
            assert getattr(clock(one), name) == getattr(clock(other), name), (one, other, name)


def test_the_rtx_3090_has_half_the_tensor_rate_of_its_professional_sisters():
    for other in ("RTX A6000", "A40"):
        assert 2 * clock("RTX 3090").tensor_rate == clock(other).tensor_rate


def test_only_server_chips_have_fast_fp64():
    for card in REAL:
        assert (find_clock(card).fp64_rate > 2) == (card.name in ("A100", "H100", "H200"))


def test_caches_are_further_away_on_later_and_larger_chips():
    at = {card.name: find_clock(card) for card in REAL}
    assert at["T4"].l2_latency < at["A100"].l2_latency < at["RTX 3090"].l2_latency < at["RTX 4090"].l2_latency
    assert at["RTX 4090"].l2_latency < at["RTX 5090"].l2_latency
    assert at["T4"].l1_bytes < at["RTX 3090"].l1_bytes < at["A100"].l1_bytes < at["H100"].l1_bytes
    assert {name for name, found in at.items() if found.l2_far_extra} == {"A100", "H100", "H200"}


def test_a_dependent_launch_saves_only_where_there_is_one():
    for card in REAL:
        found = find_clock(card)
        assert (found.dependent_gap_us < found.graph_gap_us) == (card.capability >= (9, 0))


def test_every_sm_gets_less_from_l2_than_its_port_takes_when_all_read():
    for card in CARDS:
        found = find_clock(card)
        assert found.l2_bytes_per_cycle / found.sm_count < found.sm_bytes_per_cycle
        assert found.dram_bytes_per_cycle < found.l2_bytes_per_cycle
        assert found.fma_rate <= LANES
