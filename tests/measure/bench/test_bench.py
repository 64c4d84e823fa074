"""Systems are checked, then timed in turns; one that fails is listed with its reason, and the others go on."""

import dataclasses
import functools
import json
import math
import weakref

import pytest
import torch
from fake_nvml import Clock, FakeNvml
from models import UNTIED, make_model

from luce_edu import load_model
from luce_edu.errors import NotMeasured
from luce_edu.measure.bench import bench as bench_module
from luce_edu.measure.bench.bench import Bench, bench
from luce_edu.measure.bench.systems import READER, StageSystem, System
from luce_edu.measure.energy import measure_energy, measure_idle
from luce_edu.measure.floor import decode_bytes
from luce_edu.measure.latency import Quartiles
from luce_edu.measure.nvml import Sensors
from luce_edu.measure.records.record import Record
from luce_edu.measure.records.rows import Machine, NotRun, Recorded
from luce_edu.reference.model import forward

MODEL = make_model(UNTIED)
# Prompt, next token, the one after it. A Toy gives these answers. None: the reference decides no token.
CHOICES = [([1, 2, 3], 4, 5), ([9], 8, None)]


class Toy(System):
    """Chooses as in CHOICES, and takes 100 µs per step. `log` lists the calls to all systems, in order."""

    launches, kernels, barriers = 7, 70, 3
    us = 100.0

    def __init__(self, name: str, log: list):
        self.name, self.log = name, log
        self._answers = {tuple(prompt): (first, second) for prompt, first, second in CHOICES}

    def prefill(self, tokens):
        self.log.append((self.name, "prefill", len(tokens)))
        self._saying, self._at = self._answers.get(tuple(tokens), (0, 0)), 0

    def step(self):
        self._at += 1

    def choice(self):
        return self._saying[self._at]

    def pretend(self, context):
        self.log.append((self.name, "pretend", context))

    def time_decode(self, *, steps):
        return [self.us] * steps, 12.5

    def wait(self):
        pass

    def close(self):
        self.log.append((self.name, "close", None))


@pytest.fixture
def log(monkeypatch):
    """An empty log; the reference's choices are CHOICES."""
    monkeypatch.setattr(bench_module, "_decided_choices", lambda model, progress: CHOICES)
    return []


def run(log, contexts=(1, 512), prompts=(16,), others=None, **options) -> Bench:
    """Two good systems with `others`, {name: how to make it}, between them."""
    makers = {"first": lambda: Toy("first", log)} | (others or {}) | {"last": lambda: Toy("last", log)}
    return bench(MODEL, makers, contexts=contexts, prompts=prompts, steps=4, **options)


def timed(result) -> list[tuple[str, int]]:
    return [(row.system, row.context) for row in result.decode]


ASKED = ("decode", "prefill")
GOOD = [(name, context) for context in (1, 512) for name in ("first", "last")]


# ---- Order ----


def test_systems_are_timed_there_and_back_at_each_context(log):
    run(log, others={"middle": lambda: Toy("middle", log)})
    order = [(name, context) for name, what, context in log if what == "pretend"]
    there = ["first", "middle", "last"]
    assert order == [(name, context) for context in (1, 512) for name in there + there[::-1]]


def test_all_are_checked_before_any_is_timed_and_closed_after_the_last(log):
    run(log)
    whats = [what if what != "prefill" or size != 16 else "prompt" for _, what, size in log]
    assert whats == ["prefill"] * 4 + ["pretend"] * 8 + ["prompt"] * 16 + ["close"] * 2


def test_systems_that_read_a_prompt_the_same_way_are_timed_once_under_its_name(log):
    class Stage(Toy):
        reader = "kernels"

    result = run(log, others={name: lambda name=name: Stage(name, log) for name in ("graph", "megakernel")})
    assert [row.system for row in result.prefill] == ["first", "kernels", "last"]
    assert {name for name, what, size in log if what == "prefill" and size == 16} == {"first", "graph", "last"}


def test_the_readings_that_load_and_capture_are_not_in_a_prompts_time(log, monkeypatch):
    class Clock:
        now = 0.0

    class Captures(Toy):
        """The first reading takes 9 s, the second 5 s, all others 2 ms."""

        times = [9.0, 5.0]

        def prefill(self, tokens):
            super().prefill(tokens)
            if len(tokens) == 16:
                Clock.now += self.times.pop(0) if self.times else 2e-3

    monkeypatch.setattr(bench_module.time, "perf_counter", lambda: Clock.now)
    result = run(log, contexts=(1,), others={"captures": lambda: Captures("captures", log)})
    row = next(row for row in result.prefill if row.system == "captures")
    assert row.latency_us.q3 == pytest.approx(2000) and row.latency_us.count == 5


def test_a_row_has_the_steps_of_both_rounds_and_what_the_system_says_of_itself(log):
    row = run(log).decode[1]
    assert row.latency_us == Quartiles(100, 100, 100, 8)
    assert (row.system, row.context, row.enqueue_us) == ("last", 1, 12.5)
    assert (row.launches, row.kernels, row.barriers) == (7, 70, 3)
    assert row.bytes == decode_bytes(MODEL.config, 1).total


def test_the_rows_so_far_can_be_saved_after_each_context_and_each_prompt(log):
    seen = []
    run(log, save=lambda result: seen.append((result.running, len(result.decode), len(result.prefill))))
    assert seen == [("decode", 2, 0), ("decode", 4, 0), ("prefill", 4, 0), ("prefill", 4, 2), ("energy", 4, 2)]


# ---- Wrong systems are not timed ----


class Foreign(Toy):
    """Its launches take a profiler to count."""

    launches = None

    def count_launches(self):
        self.log.append((self.name, "profile", None))
        return 345


class Unprofiled(Foreign):
    def count_launches(self):
        self.log.append((self.name, "profile", None))
        raise NotMeasured("no permission")


def test_launches_of_a_foreign_program_are_counted_once_after_its_times(log):
    result = run(log, others={"foreign": lambda: Foreign("foreign", log)})
    assert [row.launches for row in result.decode if row.system == "foreign"] == [345, 345]
    what = [what for name, what, _ in log if name == "foreign"]
    assert what.count("profile") == 1 and what.index("profile") > what.index("pretend")


@pytest.mark.planted
def test_launches_that_cannot_be_counted_are_listed_once_and_cost_no_time(log):
    result = run(log, others={"foreign": lambda: Unprofiled("foreign", log)})
    assert [row.launches for row in result.decode if row.system == "foreign"] == [None, None]
    assert result.not_run == [NotRun(("decode",), "counting its launches: no permission", "foreign")]


class WrongAtOnce(Toy):
    def choice(self):
        return super().choice() + 1


class WrongAfterAStep(Toy):
    def choice(self):
        return super().choice() + (self._at > 0)


class WrongAtTheSecondPrompt(Toy):
    def choice(self):
        return 77 if self._saying == (8, None) else super().choice()


WRONG = {
    WrongAtOnce: "after 3 tokens it chooses 5, the reference 4",
    WrongAfterAStep: "after 4 tokens it chooses 6, the reference 5",
    WrongAtTheSecondPrompt: "after 1 tokens it chooses 77, the reference 8",
}


@pytest.mark.planted
@pytest.mark.parametrize("kind", WRONG)
def test_a_system_that_chooses_otherwise_is_never_timed(kind, log):
    result = run(log, others={"wrong": lambda: kind("wrong", log)})
    assert result.not_run == [NotRun(ASKED, f"wrong, so not timed: {WRONG[kind]}", "wrong", kind="wrong")]
    assert {what for name, what, _ in log if name == "wrong"} == {"prefill"}
    assert timed(result) == GOOD and [row.system for row in result.prefill] == ["first", "last"]


def test_a_choice_that_bf16_may_decide_is_not_held_against_a_system(log):
    class OtherWhereUndecided(Toy):
        def choice(self):
            return 99 if self._at and self._saying == (8, None) else super().choice()

    assert run(log, others={"other": lambda: OtherWhereUndecided("other", log)}).not_run == []


# ---- Failures are listed, and the rest goes on ----


def failing(error, log, *, at=None, name="fails"):
    """A system that fails at `at`: the name of a method, and the argument at which it fails; None: when it is made."""
    if at is None:
        raise error
    method, *argument = at

    def fail(self, *args, **options):
        if argument and argument != list(args):
            return getattr(Toy, method)(self, *args, **options)
        raise error

    return type("Failing", (Toy,), {method: fail})(name, log)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total of ...")
REASONS = {
    "not there": (NotMeasured("flash-linear-attention is not installed"), "flash-linear-attention is not installed"),
    "out of memory": (OUT_OF_MEMORY, "the GPU's memory does not suffice"),
    "raises": (RuntimeError("CUDA error: an illegal memory access\nCompile with ..."),
               "RuntimeError: CUDA error: an illegal memory access"),
    "raises without a word": (AssertionError(), "AssertionError: (no message)"),
}  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("at", [None, ("choice",)])
@pytest.mark.parametrize("how", REASONS)
def test_a_system_that_cannot_be_made_or_checked_is_listed_with_its_reason(how, at, log):
    error, reason = REASONS[how]
    result = run(log, others={"fails": lambda: failing(error, log, at=at)})
    kind = "absent" if how == "not there" else "failed"
    assert result.not_run == [NotRun(ASKED, reason, "fails", kind=kind)]
    assert timed(result) == GOOD


@pytest.mark.planted
@pytest.mark.parametrize(
    "at, parts, contexts, others",
    [
        (("pretend", 512), ("decode",), [512], {("fails", 1)}),
        (("time_decode",), ("decode",), [1, 512], set()),
        (("close",), ("decode", "prefill"), [None], {("fails", 1), ("fails", 512)}),
    ],
)
def test_a_failure_at_one_place_costs_that_place_alone_and_is_listed_once(at, parts, contexts, others, log):
    result = run(log, others={"fails": lambda: failing(OUT_OF_MEMORY, log, at=at)})
    assert {(row.system, row.parts) for row in result.not_run} == {("fails", parts)}
    assert [row.at for row in result.not_run] == contexts
    assert set(timed(result)) == {*GOOD, *others}
    assert [row.system for row in result.prefill] == ["first", "fails", "last"]
    assert [name for name, what, _ in log if what == "close"][-1] == "last"


@pytest.mark.planted
@pytest.mark.parametrize("fields, why", [
    ({"us": math.nan}, "two or more positive times"),
    ({"launches": "many"}, "launches: expected an integer, got 'many'"),
])  # fmt: skip
def test_a_row_that_no_record_takes_is_listed_instead(fields, why, log):
    result = run(log, others={"odd": lambda: type("Odd", (Toy,), fields)("odd", log)})
    assert timed(result) == GOOD
    assert [(row.system, row.parts, row.at) for row in result.not_run] == [("odd", ("decode",), at) for at in (1, 512)]
    assert all(why in row.reason for row in result.not_run)


class ReadsLittle(Toy):
    def prefill(self, tokens):
        if len(tokens) > 10:
            raise ValueError("no room")
        super().prefill(tokens)


def test_a_prompt_that_cannot_be_read_is_listed(log):
    result = run(log, others={"short": lambda: ReadsLittle("short", log)})
    assert result.not_run == [NotRun(("prefill",), "ValueError: no room", "short", at=16)]
    assert len(result.decode) == 6 and len(result.prefill) == 2


def test_a_failed_way_to_read_prompts_of_several_stages_is_listed_without_a_system(log):
    class Stage(ReadsLittle):
        reader = "kernels"

    result = run(log, others={name: lambda name=name: Stage(name, log) for name in ("graph", "megakernel")})
    assert result.not_run == [NotRun(("prefill",), "kernels: ValueError: no room", at=16)]


def test_a_system_that_failed_is_freed_before_the_next_is_made(log):
    alive = []

    def wrong():
        system = WrongAtOnce("wrong", log)
        system.itself = system  # a cycle of references, as in large models
        alive.append(weakref.ref(system))
        return system

    def next_one():
        assert alive[0]() is None
        return Toy("next", log)

    assert [row.system for row in run(log, others={"wrong": wrong, "next": next_one}).not_run] == ["wrong"]


def test_ctrl_c_is_no_measurement_that_failed(log):
    with pytest.raises(KeyboardInterrupt):
        run(log, others={"slow": lambda: failing(KeyboardInterrupt(), log, at=("pretend", 512))})


# ---- Real stages on the virtual GPU, with made-up times ----


class TimedStage(StageSystem):
    """A stage that decodes on the virtual GPU and takes made-up times."""

    def time_decode(self, *, steps):
        for _ in range(steps):
            self.step()
        return [50.0 + step for step in range(steps)], 3.0

    def wait(self):
        pass


def on_the_host(stage, kind=TimedStage):
    return lambda: kind(stage, MODEL, max_seq_len=64, device="host")


class ForgetsItsState(TimedStage):
    """Treats every token of a prompt as the first."""

    def prefill(self, tokens):
        super().prefill(tokens[-1:])


class DecodesAsIfFresh(TimedStage):
    """Reads a prompt correctly as a whole, and forgets its state at every decoding step."""

    def _prefill_by_steps(self, tokens):
        for token in tokens:
            super()._prefill_by_steps([token])


@pytest.mark.planted
def test_stages_pass_the_check_against_the_reference_and_one_without_memory_does_not(monkeypatch):
    monkeypatch.setattr(bench_module, "CHECKED_TEXT", 16)
    wrong = {"forgetful": ForgetsItsState, "wrong in decode alone": DecodesAsIfFresh}
    makers = {"graph": on_the_host("graph")} | {name: on_the_host("graph", kind) for name, kind in wrong.items()}
    result = bench(MODEL, makers | {"megakernel": on_the_host("megakernel")}, contexts=(20,), prompts=(8,), steps=4)
    assert timed(result) == [("graph", 20), ("megakernel", 20)]
    assert [(row.system, row.kind) for row in result.not_run] == [(name, "wrong") for name in wrong]
    assert all(row.reason.startswith("wrong, so not timed") for row in result.not_run)
    assert [row.system for row in result.prefill] == [READER]
    assert result.decode[0].launches == 1 and result.decode[0].kernels == 12
    assert_record_takes(result)


def assert_record_takes(result: Bench) -> None:
    """Assert that the parts fit the schema of a record."""
    parts = {name: getattr(result, name) for name in ("decode", "prefill", "energy") if getattr(result, name)}
    machine = Machine("a GPU", "sm_90", 132, 1, 1, None, None, {}, **result.clocks)
    record = Record("record", Recorded("2026-01-02", None, "random", machine, parts, result.not_run))
    assert Record.from_json("record", json.loads(json.dumps(record.to_json()))) == record


# ---- The reference's choices ----


def test_systems_are_checked_on_choices_that_the_reference_decides():
    tiny = load_model("tiny")
    choices = bench_module._decided_choices(tiny, lambda _: None)
    assert len(choices) == bench_module.CHECKED_CHOICES
    for prompt, first, second in choices:
        assert first == choose(tiny, prompt)
        assert second is None or second == choose(tiny, [*prompt, first])
    assert len({first for _, first, _ in choices}) > 1, "a system that always chooses the same would pass"
    assert any(first != prompt[-1] for prompt, first, _ in choices), "a system that echoes would pass"


def choose(model, tokens) -> int:
    with torch.no_grad():
        return int(forward(model.weights, model.config, torch.tensor(tokens))[-1].argmax())


@pytest.mark.planted
@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_model_that_decides_nothing_cannot_check_anything(value):
    model = dataclasses.replace(MODEL, weights=dataclasses.replace(MODEL.weights))
    model.weights.lm_head = torch.full_like(MODEL.weights.lm_head, value)
    with pytest.raises(NotMeasured, match="decides no choice by more than bf16's error"):
        bench(model, {"first": lambda: pytest.fail("made")}, contexts=(1,))


# ---- Energy ----


@pytest.fixture
def gpu(monkeypatch):
    """A fake GPU's sensors, and energy windows by its clock."""
    monkeypatch.setattr("luce_edu.measure.energy.SAMPLE_EVERY", 0.001)
    fake = FakeNvml(Clock())
    monkeypatch.setattr(bench_module, "measure_energy", functools.partial(measure_energy, clock=fake.clock))
    idle = functools.partial(measure_idle, seconds=0.05, wait=fake.clock.wait)
    monkeypatch.setattr(bench_module, "measure_idle", idle)
    return fake


class Drawing(Toy):
    """Takes 0.25 s of the fake GPU for a loop of STEPS steps."""

    def __init__(self, name, log, fake):
        super().__init__(name, log)
        self._fake, self.steps = fake, 0

    def step(self):
        self.steps += 1
        super().step()

    def rewind(self, context):
        self.log.append((self.name, "rewind", context))

    def wait(self):
        self._fake.work(0.25)


def test_energy_is_that_of_whole_loops_at_the_prompts_context_with_idle_draw_beside_it(gpu, log):
    sensors = Sensors.open(FakeNvml.UUID, nvml=gpu)
    makers = {"draws": lambda: Drawing("draws", log, gpu)}
    result = bench(MODEL, makers, contexts=(1,), prompts=(), steps=4, sensors=sensors, energy_seconds=2.0)
    (row,) = result.energy
    assert row.tokens == bench_module.STEPS * 8 and row.context == bench_module.PROMPT
    assert row.seconds == pytest.approx(2.0)
    assert row.joules == pytest.approx(gpu.joules(gpu.clock() - 2.0, gpu.clock()), rel=0.05)
    assert row.idle_w == pytest.approx(200, rel=0.25) and row.method == "counter"
    assert [entry for entry in log if entry[1] == "rewind"] == [("draws", "rewind", bench_module.PROMPT)] * 9
    assert result.clocks == {"sm_clock_mhz": 1755, "memory_clock_mhz": 2619}
    assert_record_takes(result)


@pytest.mark.planted
def test_sensors_that_fail_cost_the_energy_alone(gpu, log):
    sensors = Sensors.open(FakeNvml.UUID, nvml=gpu)
    gpu.lost_at = 0.0
    makers = {"draws": lambda: Drawing("draws", log, gpu)}
    result = bench(MODEL, makers, contexts=(1,), prompts=(), steps=4, sensors=sensors, energy_seconds=2.0)
    assert timed(result) == [("draws", 1)] and result.energy == []
    assert [(row.parts, row.system) for row in result.not_run] == [(("energy",), None), (("energy",), "draws")]
    assert all("the GPU is gone from the bus" in row.reason for row in result.not_run)
    assert result.clocks == {"sm_clock_mhz": None, "memory_clock_mhz": None}
    assert_record_takes(result)


def test_energy_without_sensors_is_listed(log):
    assert run(log, energy_seconds=4.0).not_run == [NotRun(("energy",), "NVML cannot be had")]


# ---- The table ----


def test_the_table_gives_times_rates_and_the_share_of_the_floor(log):
    result = run(log, contexts=(512,), where="a GPU, random (measured now)", datasheet_gb_per_s=1000)
    floor = decode_bytes(MODEL.config, 512).total / 1e6  # µs at 1000 GB/s
    assert result.title == "a GPU, random (measured now)"
    row = dict(zip(result.header, result.body[0], strict=True))
    assert row["system"] == "first" and row["test"] == "decode at 512"
    assert (row["µs per token"], row["tok/s"], row["quartiles"]) == ("100", "10,000", "100 to 100")
    assert row["of the floor"] == f"{100 / floor:.2f} ×"
    assert "prompt of 16" in str(result) and len(result.body) == 4
    assert "–" in str(run(log, contexts=(512,))), "no floor without a bandwidth"
    assert "<table>" in result._repr_html_()


def test_the_caption_names_what_was_not_run(log):
    result = run(log, others={"absent": lambda: failing(NotMeasured("not installed"), log)})
    assert result.caption == "not run: absent: not installed"
