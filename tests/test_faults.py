"""Verification catches every planted fault, in each stage that runs its line."""

import functools
import os
from contextlib import contextmanager

import numpy as np
import pytest
from piecewise import PIECES, Piecewise

from luce_edu import verification
from luce_edu.backends import make_backend
from luce_edu.backends.host import HostBackend
from luce_edu.errors import KernelError
from luce_edu.faults import (
    FAULTS,
    PREFILL_FAULTS,
    SMALL_FAULTS,
    SMALL_PREFILL_FAULTS,
    STREAMING_FAULTS,
    Fault,
    fault,
    planted,
)
from luce_edu.models import load_model
from luce_edu.paths import csrc_dir
from luce_edu.stages import KERNEL_STAGES, decoder, prefill
from luce_edu.verification import LIMIT, verify, verify_prefill

MODELS = {name: load_model(name) for name in ("tiny", "random-odd")}
DECODED = 12  # number of tokens after a prompt
pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module", autouse=True)
def references_once():
    """Runs of the plain model, which no fault changes, are made once for each model, seed and length."""
    calls = {
        "choose_tokens": lambda model, steps, seed, *_: (model.name, steps, seed),
        "reference_trace": lambda model, tokens, *_: (model.name, *tokens),
        "stage_trace": lambda dec, tokens, *_: (dec.model.name, *tokens) if dec.stage == "eager" else None,
        "_continuations": lambda model, tokens, lengths, *how: (model.name, *tokens, *lengths, *how[:2]),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, key in calls.items():
            patch.setattr(verification, name, once(getattr(verification, name), key))
        yield


def once(function, key):
    """The function with a cache: key(*args) gives the key of its result, or None where it must be called."""
    known = {}

    @functools.wraps(function)
    def call(*args):
        of = key(*args)
        if of is None:
            return function(*args)
        if of not in known:
            known[of] = function(*args)
        return known[of]

    return call


@pytest.fixture
def first_look(monkeypatch):
    """A context: verification without draws, second run, reading in pieces and search for races.

    Most faults show in the first results. For the others, the test runs the whole verification.
    """

    @contextmanager
    def looking():
        with monkeypatch.context() as patch:
            patch.setattr(verification, "_wrong_draws", lambda *_: [])
            patch.setattr(verification, "_second_run", lambda *_: None)
            patch.setattr(verification, "_same_bits", lambda *_: True)
            patch.setattr(verification, "_pieces", lambda length, _: [length])
            patch.setattr(verification, "_races", lambda *_: [])
            yield

    return looking


def in_stages(faults):
    """Every fault in one of its stages; in the others only in a long run."""
    return [
        pytest.param(one, stage, id=f"{stage}: {one.name}", marks=[pytest.mark.full] if i else [])
        for one in faults
        for i, stage in enumerate(one.stages)
    ]


def by_name(faults):
    return [pytest.param(one, id=one.name) for one in faults]


def verdict(stage, seed, *faults, steps=4):
    """Verification's row for a stage with these faults."""
    model = MODELS[faults[0].model if faults else "random-odd"]
    with planted(*faults) as tree:

        def make(name):
            backend = make_backend("host", csrc_dir=tree)
            return decoder(name, model, "host", steps + 1, backend=backend)  # room for a read too far

        return verify(model, stages=[stage], device="host", steps=steps, seed=seed, make=make).rows[0]


def problems(stage, seed, *faults, steps=4):
    try:
        return verdict(stage, seed, *faults, steps=steps).problems
    except KernelError as error:  # the virtual GPU refused the kernel
        return [str(error)]


@pytest.mark.planted
@pytest.mark.parametrize("one, stage", in_stages(FAULTS))
def test_verification_catches(one, stage, first_look):
    seeds = (0, 1, 2) if one.name.startswith("no grid barrier") or os.environ.get("LUCE_FULL") == "1" else (0,)
    for seed in seeds:
        with first_look():
            found = problems(stage, seed, one, steps=one.steps)
        assert found or problems(stage, seed, one, steps=one.steps), f"seed {seed}: {one.name} passed"


@pytest.mark.planted
@pytest.mark.parametrize("one, stage", in_stages(SMALL_FAULTS))
def test_fp32_error_catches_small_faults(one, stage, first_look, record_property):
    with first_look():
        row = verdict(stage, 0, one, steps=one.steps)
    assert row.problems, f"{one.name} passed"
    record_property("counted", "small faults caught")
    if row.ratio <= LIMIT:
        record_property("counted", "small faults that the error of bf16 alone would have passed")


def verdicts_of_prompts(length, *faults, seed=0, stage="per_layer"):
    """Rows for prompts that are read with these faults. The kernels that decode tokens after them have none."""
    model = MODELS[faults[0].model if faults else "random-odd"]
    with planted(*faults) as tree:

        def make(stage):
            dec = decoder(stage, model, "host", length + DECODED + 2, backend=Piecewise())  # room for a read too far
            dec.backend.csrc_dir = tree  # the prompt's kernels are compiled from this tree
            return dec

        return verify_prefill(
            model, stages=[stage], device="host", prompts=[length], steps=DECODED, seed=seed, make=make
        ).rows


def problems_of_a_prompt(length, *faults, seed=0):
    try:
        return [problem for row in verdicts_of_prompts(length, *faults, seed=seed) for problem in row.problems]
    except KernelError as error:
        return [str(error)]


@pytest.mark.planted
@pytest.mark.parametrize("one", by_name(PREFILL_FAULTS))
def test_verification_of_prompts_catches(one, first_look):
    with first_look():
        found = problems_of_a_prompt(one.steps, one)
    assert found or problems_of_a_prompt(one.steps, one), f"{one.name} passed"


@pytest.mark.planted
@pytest.mark.parametrize("one", by_name(SMALL_PREFILL_FAULTS))
def test_fp32_error_catches_small_faults_of_prompts(one, first_look, record_property):
    with first_look():
        rows = verdicts_of_prompts(one.steps, one)
    assert any(row.problems for row in rows), f"{one.name} passed"
    record_property("counted", "small faults caught")
    if all(row.ratio <= LIMIT for row in rows):
        record_property("counted", "small faults that the error of bf16 alone would have passed")


def test_kernels_of_prompts_compiled_in_pieces_are_those_of_the_whole_file():
    defines = prefill.prefill_defines(MODELS["random-odd"].config)
    pieces, whole = (kind().compile("prefill.cu", prefill.KERNELS, defines) for kind in (Piecewise, HostBackend))
    assert sorted(name for names in PIECES for name in names) == sorted(prefill.KERNELS)
    for name in prefill.KERNELS:
        assert np.array_equal(pieces[name].program.code, whole[name].program.code), name


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("length", sorted({one.steps for one in PREFILL_FAULTS}))
def test_without_a_fault_the_same_check_of_prompts_passes(length, seed):
    assert problems_of_a_prompt(length, seed=seed) == []


@pytest.mark.parametrize("stage", KERNEL_STAGES)
def test_without_a_fault_the_same_check_passes(stage):
    assert problems(stage, 0, steps=8) == []


def test_a_correct_grid_barrier_survives_the_pause_that_breaks_the_other():
    add = "        const unsigned before = add_release(&barrier->word, share);\n"
    pause = Fault("pause after adding", "grid_barrier.cuh", add, add + "        __nanosleep(1000);\n")
    assert problems("megakernel", 0, pause) == []


@pytest.mark.planted
def test_a_missing_barrier_is_named_by_the_first_part_that_it_spoils():
    found = problems("megakernel", 0, fault("no grid barrier after attention"))
    assert found[0].startswith("layer 0 is the first of")  # an attention layer


def test_names_are_unique_and_an_unknown_one_is_refused():
    every = FAULTS + SMALL_FAULTS + STREAMING_FAULTS + PREFILL_FAULTS + SMALL_PREFILL_FAULTS
    assert len({one.name for one in every}) == len(every)
    with pytest.raises(ValueError, match="unknown fault 'typo'.*A_log without exp"):
        fault("typo")


@pytest.mark.parametrize(
    "path, old, message",
    [("megakernel.cu", "grid_barrier(m.barrier);", "found it 8 times"), ("block.cuh", "no such text", "0 times"),
     ("gone.cu", "x", "no file csrc/gone.cu")],
)  # fmt: skip
def test_a_fault_that_no_longer_fits_is_an_error(path, old, message):
    with pytest.raises(ValueError, match=f"rotten: .*{message}"), planted(Fault("rotten", path, old, "")):
        pass


def test_the_sources_themselves_are_untouched():
    before = {path: path.read_bytes() for path in csrc_dir().rglob("*") if path.is_file()}
    with planted(fault("A_log without exp")) as tree:
        assert tree != csrc_dir()
        assert "-expf(A_log)" not in (tree / "activations.cuh").read_text()
    assert {path: path.read_bytes() for path in csrc_dir().rglob("*") if path.is_file()} == before
    assert not tree.exists()


def test_a_decoder_draws_after_its_planted_tree_is_gone():
    tiny = load_model("tiny")
    with planted(fault("A_log without exp")) as tree:
        made = decoder("megakernel", tiny, max_seq_len=8, backend=make_backend("host", csrc_dir=tree))
    made.step(1)
    made.draw(1.0)
    assert 0 <= made.choice() < tiny.config.vocab_size
