"""Variants of `streaming` run beside it with the same logits; one with other logits is not timed, as one that fails."""

from types import SimpleNamespace

import pytest

from luce_edu import load_model
from luce_edu.backends.host import HostBackend
from luce_edu.faults import fault, planted
from luce_edu.machine.cards import find_card
from luce_edu.measure.bench import ablations
from luce_edu.measure.bench.ablations import STAGE, SYSTEMS, ablate, make_variants
from luce_edu.measure.bench.bench import PROMPT, ROUNDS, STEPS, WrongChoice
from luce_edu.measure.bench.systems import StageSystem
from luce_edu.stages.streaming import StreamingDecoder

pytestmark = pytest.mark.usefixtures("compiled_quickly")
H100 = SimpleNamespace(shared_memory_per_block=find_card("H100").shared_per_block, capability=(9, 0))


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture
def timed(monkeypatch) -> list[str]:
    """The systems that are timed, in order; a GPU would time them, and here they take 100 µs or, with barriers, 150."""
    happened = []

    def time_decode(system, *, steps):
        happened.append(system.name)
        return [150.0 if system.barriers else 100.0] * steps, 10.0

    monkeypatch.setattr(StageSystem, "time_decode", time_decode)
    monkeypatch.setattr(ablations, "check_system", lambda system, model, progress: None)  # test_bench.py tests it
    return happened


def some(model, *variants: str):
    """The stage, and these variants of it."""
    makers, _ = make_variants(model, H100)
    return {name: makers[name] for name in (STAGE, *(f"{STAGE}, {variant}" for variant in variants))}


def test_variants_are_timed_in_turns_with_the_stage_and_each_is_saved(tiny, timed):
    saved = []
    makers = some(tiny, "no ring", "grid barriers", "8 warps, 2 blocks per SM")
    names = list(makers)
    result = ablate(tiny, makers, known=names[1:2], save=lambda result: saved.append(len(result.decode)))
    assert timed == [STAGE, names[2], names[2], STAGE, STAGE, names[3], names[3], STAGE] and saved == [2, 3]
    rows = {row.system: row for row in result.decode}
    assert list(rows) == [STAGE, *names[2:]] and result.not_run == []
    assert {row.context for row in result.decode} == {PROMPT} and rows[STAGE].latency_us.count == 2 * ROUNDS * STEPS
    assert rows[names[2]].latency_us.median == 150 and rows[names[2]].barriers > 0 == rows[STAGE].barriers


@pytest.mark.planted
@pytest.mark.parametrize("variant, said", [
    ("grid barriers", "other bits than streaming"), ("8 warps", "its logits differ from those of streaming by "),
])  # fmt: skip
def test_a_variant_with_a_fault_is_told_from_the_stage_and_not_timed(variant, said, tiny, timed):
    wrong, right = f"{STAGE}, {variant}", f"{STAGE}, no ring"
    makers = some(tiny, variant, "no ring")

    def broken():
        system = sound()
        with planted(fault("streaming: residual dropped")) as tree:
            backend = HostBackend(csrc_dir=tree)
            system._decoder = StreamingDecoder(
                tiny, device="host", max_seq_len=PROMPT + 4 * STEPS, backend=backend, variant=variant
            )
        return system

    sound, makers[wrong] = makers[wrong], broken
    result = ablate(tiny, makers)
    assert timed == [STAGE, right, right, STAGE] and [row.system for row in result.decode] == [STAGE, right]
    (row,) = result.not_run
    assert (row.system, row.kind, row.parts) == (wrong, "wrong", ("ablations",)) and said in row.reason


@pytest.mark.planted
def test_a_variant_that_fails_costs_no_other(tiny, timed):
    makers = some(tiny, "no ring", "words")

    def fails():
        raise RuntimeError("too many resources requested")

    makers[f"{STAGE}, no ring"] = fails
    result = ablate(tiny, makers)
    assert [row.system for row in result.decode] == [STAGE, f"{STAGE}, words"]
    assert str(result.not_run[0]) == f"{STAGE}, no ring, ablations: RuntimeError: too many resources requested"


@pytest.mark.planted
def test_a_stage_that_is_wrong_itself_compares_nothing(tiny, timed, monkeypatch):
    def wrong(*_):
        raise WrongChoice("wrong, so not timed")

    monkeypatch.setattr(ablations, "check_system", wrong)
    with pytest.raises(WrongChoice):
        ablate(tiny, some(tiny, "no ring"))
    assert timed == []


def test_variants_that_are_the_same_on_this_gpu_are_left_out_by_name(tiny):
    makers, alike = make_variants(tiny, SimpleNamespace(shared_memory_per_block=64 * 1024, capability=(7, 5)))
    left_out = {row.system: row for row in alike}
    assert set(makers) == {STAGE, *SYSTEMS} - set(left_out)
    row = left_out[f"{STAGE}, ring of 2"]
    assert row.kind == "absent" and row.reason == "on this GPU it is the same as streaming"
