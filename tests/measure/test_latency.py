"""Measured times are those of the work, without warm-up and waits, and are divided by the right number."""

import math
import random

import pytest
import torch
from fake_cuda import FakeCuda
from mistake import with_mistake

from luce_edu.measure import latency
from luce_edu.measure.latency import Quartiles

# ---- Quartiles ----


def test_quartiles_of_five_and_of_four_values_in_any_order():
    five = [9.0, 1.0, 5.0, 3.0, 7.0]
    assert Quartiles.of(five) == Quartiles(median=5, q1=3, q3=7, count=5)
    assert Quartiles.of([4, 1, 3, 2]) == Quartiles(median=2.5, q1=1.75, q3=3.25, count=4)
    assert Quartiles.of(five).scaled(1e-3) == Quartiles(median=0.005, q1=0.003, q3=0.007, count=5)


def test_half_of_all_values_lie_between_the_quartiles():
    draw = random.Random(0)
    for count in range(2, 60):
        values = [draw.expovariate(1) + 1e-6 for _ in range(count)]
        found = Quartiles.of(values)
        assert found.q1 <= found.median <= found.q3 and found.count == count
        inside = sum(found.q1 <= value <= found.q3 for value in values)
        assert abs(inside - count / 2) <= 2


@pytest.mark.planted
@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, -math.inf])
def test_an_invalid_time_is_refused_at_any_place(wrong):
    for at in range(4):
        values = [1.0, 2.0, 3.0]
        values.insert(at, wrong)
        with pytest.raises(ValueError):
            Quartiles.of(values)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_one_value_has_no_quartiles(values):
    with pytest.raises(ValueError, match="two or more positive times"):
        Quartiles.of(values)


# ---- Rounds and steps, on a GPU whose times are known ----


def rounds_are_right(module, monkeypatch) -> None:
    """Seven rounds of ten launches of 300 to 900 µs; three slower rounds before them warm up."""
    cuda = FakeCuda()
    cuda.install(monkeypatch, module)
    rounds = iter([9000, 8000, 7000, 500, 300, 900, 600, 700, 400, 800])

    def enqueue():
        gpu_us = next(rounds)
        for _ in range(10):
            cuda.launch(gpu_us, ask_us=0)

    times = module.time_rounds(enqueue, rounds=7, warm_up=3, each=10)
    assert vars(times) == pytest.approx({"median": 600, "q1": 450, "q3": 750, "count": 7})
    assert next(rounds, None) is None, "all rounds were asked for"


def rounds_before_which_l2_is_emptied_are_right(module, monkeypatch) -> None:
    """A launch of 7 µs with a warm L2 and 30 with a cold one, on GPUs with a small L2 and with a very large one.

    The CPU takes 20 µs to launch it; these must not be counted.
    """
    for l2_bytes in (4 * 2**20, 192 * 2**20):
        cuda = FakeCuda(l2_bytes=l2_bytes)
        cuda.install(monkeypatch, module)

        def launch(cuda=cuda):
            cuda.read(cold_us=30, warm_us=7, ask_us=20)

        empty_l2 = module.l2_emptier("cuda")

        def empty_and_launch(launch=launch, empty_l2=empty_l2):
            empty_l2()
            launch()

        for before, us in ((empty_l2, 30), (empty_and_launch, 7), (empty_l2, 30)):
            times = module.time_rounds(launch, rounds=3, before=before)
            assert vars(times) == pytest.approx({"median": us, "q1": us, "q3": us, "count": 3})


def steps_are_right(module, monkeypatch) -> None:
    """A GPU that is slower than its CPU, and one that is faster."""
    for gpu_us, ask_us in ((500, 20), (5, 100)):
        cuda = FakeCuda()
        cuda.install(monkeypatch, module)
        slowness = iter([100] * 4 + [1] * (4 + 32 + 15))  # half of the steps that warm up are slow

        def step(cuda=cuda, gpu_us=gpu_us, ask_us=ask_us, slowness=slowness):
            slow = next(slowness)
            cuda.launch(slow * gpu_us, slow * ask_us)

        (first, *others), ask = module.time_steps(step, steps=32, warm_up=8)
        assert others == pytest.approx([max(gpu_us, ask_us)] * 31)
        assert max(gpu_us, ask_us) <= first <= gpu_us + ask_us  # the GPU waits for the first launch
        assert next(slowness, None) is None, "all steps were asked for"
        assert ask == pytest.approx(ask_us)


@pytest.mark.parametrize("check", [rounds_are_right, rounds_before_which_l2_is_emptied_are_right, steps_are_right])
def test_times_are_those_of_the_work(check, monkeypatch):
    check(latency, monkeypatch)


COLD = rounds_before_which_l2_is_emptied_are_right
BEFORE = "        before()\n        times.append(elapsed_us(enqueue) / each)\n"
MISTAKES = {
    "rounds: no warm-up": ("    for _ in range(warm_up):\n        enqueue()\n", "", rounds_are_right),
    "rounds: the warm-up counts": ("for _ in range(rounds):", "for _ in range(rounds + warm_up):", rounds_are_right),
    "rounds: not divided": ("elapsed_us(enqueue) / each", "elapsed_us(enqueue)", rounds_are_right),
    "rounds: divided by the rounds": ("elapsed_us(enqueue) / each", "elapsed_us(enqueue) / rounds", rounds_are_right),
    "rounds: milliseconds": ("return 1e3 * start", "return start", rounds_are_right),
    "rounds: not waited for": ("    end.synchronize()\n", "", rounds_are_right),
    "rounds: quartiles of more than there is": ('method="inclusive"', 'method="exclusive"', rounds_are_right),
    "cold: never emptied": (BEFORE, BEFORE.replace("before()", "pass"), COLD),
    "cold: emptied once": (
        "    for _ in range(rounds):\n        before()\n", "    before()\n    for _ in range(rounds):\n", COLD,
    ),
    "cold: emptying is timed": (BEFORE, BEFORE.replace("before()", "pass").replace(
        "(enqueue)", "(lambda: (before(), enqueue()))"), COLD,
    ),
    "cold: emptied after the round": (
        BEFORE, "        times.append(elapsed_us(enqueue) / each)\n        before()\n", COLD,
    ),
    "cold: waited for, so the CPU's asking is timed": (
        BEFORE, BEFORE.replace("before()", "before()\n        torch.cuda.synchronize()"), COLD,
    ),
    "cold: a buffer as large as L2": ("max(2 * l2_bytes, ", "max(l2_bytes, ", COLD),
    "cold: a buffer that is written too soon": ("max(2 * l2_bytes, 2**28)", "2 * l2_bytes", COLD),
    "cold: a buffer of one size": ("max(2 * l2_bytes, 2**28)", "2**28", COLD),
    "steps: no warm-up": ("    for _ in range(warm_up):\n        step()\n", "", steps_are_right),
    "steps: two in one": ("zip(events, events[1:]", "zip(events, events[2:]", steps_are_right),
    "steps: from the first": ("for a, b in zip(events, events[1:]", "for a, b in zip([events[0]] * steps, events[1:]",
                              steps_are_right),
    "steps: nothing before the first": ("    events[0].record()\n", "", steps_are_right),
    "steps: milliseconds": ("[1e3 * a.elapsed_time(b)", "[a.elapsed_time(b)", steps_are_right),
    "steps: asked of a GPU that is busy": (
        "started))\n        torch.cuda.synchronize()\n", "started))\n", steps_are_right,
    ),
    "steps: the answer waited for, too": (
        "step()\n        asked", "step()\n        torch.cuda.synchronize()\n        asked", steps_are_right,
    ),
}  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_timing_is_caught(mistake, monkeypatch):
    old, new, check = MISTAKES[mistake]
    module = with_mistake(latency, old, new)
    with pytest.raises((AssertionError, RuntimeError, StopIteration)):
        check(module, monkeypatch)


@pytest.mark.gpu
def test_what_l2_held_takes_longer_to_read_after_it_was_emptied():
    x = torch.randn(torch.cuda.get_device_properties(0).L2_cache_size // 16, device="cuda")  # fills a quarter of L2
    y, empty_l2 = torch.empty_like(x), latency.l2_emptier("cuda")

    def double():
        torch.mul(x, 2, out=y)

    def empty_and_double():
        empty_l2()
        double()

    warm, cold = (latency.time_rounds(double, before=before) for before in (empty_and_double, empty_l2))
    assert cold.q1 > warm.q3


@pytest.mark.gpu
def test_twice_the_work_takes_twice_the_time_on_the_gpu():
    one, two = (latency.time_rounds(lambda n=n: torch.cuda._sleep(n)).median for n in (2_000_000, 4_000_000))
    assert two == pytest.approx(2 * one, rel=0.2)
