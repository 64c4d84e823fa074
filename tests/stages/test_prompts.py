"""Prompts read together: every stage goes on as after single tokens, and a call that fails leaves no trace."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models import CONFIGS, FULL_SIZE, TINY, make_model
from tensors import assert_same_bits, left_by, state_of

from luce_edu import load_model
from luce_edu.backends import make_backend
from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION
from luce_edu.errors import CaptureError, KernelError
from luce_edu.models import DATA
from luce_edu.stages import STAGES, decoder, prefill
from luce_edu.verification import LIMIT, PROMPTS, relative_error, verify_prefill

HELD_OUT = Path(__file__).parents[1] / "reference" / "held_out.txt"


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def small():
    """A model of two layers, for tests that do not depend on the number of layers."""
    return make_model(dataclasses.replace(TINY, num_hidden_layers=2, layer_types=(LINEAR_ATTENTION, FULL_ATTENTION)))


def drawn(count, vocab_size=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (count,), generator=generator).tolist()


# ---- Against the reference ----


# All stages share the kernels that read a prompt. The longest prompt, and many tokens after it, are slow.
@pytest.mark.parametrize(
    "stage, prompts, steps",
    [("megakernel", PROMPTS[:-1], 12), *(pytest.param(stage, PROMPTS, 64, marks=pytest.mark.full) for stage in STAGES)],
)
def test_prompts_of_all_lengths_verify(stage, prompts, steps, tiny):
    report = verify_prefill(tiny, stages=[stage], device="host", prompts=prompts, steps=steps, seed=0)
    assert report.passed, str(report)
    assert {row.tokens for row in report.rows} == set(prompts) and {row.pieces for row in report.rows} >= {1, 5}


@pytest.mark.parametrize("stage", ["eager", "per_op", "graph", "megakernel"])  # graph launches per_layer's kernels
def test_every_stage_decodes_64_tokens_from_a_prompt(stage, tiny, small):
    model = tiny if stage == "megakernel" else small  # with a quarter of its layers
    report = verify_prefill(model, stages=[stage], device="host", prompts=[65], steps=64, seed=1)
    assert report.passed, str(report)


@pytest.mark.parametrize("config", ["odd", "wide"])
def test_awkward_sizes_verify(config):
    model = make_model(CONFIGS[config], seed=3)
    report = verify_prefill(model, stages=["per_layer"], device="host", prompts=(3, 66), steps=12, seed=2)
    assert report.passed, str(report)


@pytest.mark.parametrize("length", [150, pytest.param(128, marks=pytest.mark.full)])
def test_a_prompt_over_several_segments_verifies(length, tiny, monkeypatch):
    monkeypatch.setattr(prefill, "SEGMENT", 64)
    report = verify_prefill(tiny, stages=["megakernel"], device="host", prompts=[length], steps=32, seed=3)
    assert report.passed, str(report)


def test_segments_that_end_with_the_prompt_leave_the_bits_of_one_call_each(small, monkeypatch):
    monkeypatch.setattr(prefill, "SEGMENT", 64)
    dec, twin = (decoder("per_layer", small, "host", 128) for _ in range(2))
    tokens = drawn(128)
    dec.prefill(tokens)
    for first in (0, 64):
        twin.prefill(tokens[first : first + 64])
    assert_same_bits(left_by(dec), left_by(twin))


def test_a_segment_of_another_size_is_launched_and_one_of_the_same_size_replayed(small, monkeypatch):
    monkeypatch.setattr(prefill, "SEGMENT", 128)
    dec = decoder("per_layer", small, "host", 300)
    dec.prefill(drawn(300))
    counted = dec.ledger.by_kernel()
    assert counted["embed_norm"] == 2 and counted["graph"] == counted["lm_head"] == 1, "128, 128 again, 44"


@pytest.mark.parametrize("kind", [LINEAR_ATTENTION, FULL_ATTENTION])
def test_a_full_size_layer_verifies(kind):
    """The shapes of Qwen3.5-0.8B except its vocabulary: one layer of each kind."""
    config = dataclasses.replace(FULL_SIZE, num_hidden_layers=1, layer_types=(kind,), vocab_size=1001)
    report = verify_prefill(make_model(config), stages=["per_layer"], device="host", prompts=[66], steps=4, seed=0)
    assert report.passed, str(report)


def test_a_prompt_and_what_follows_equal_transformers(tiny):
    from transformers import AutoModelForCausalLM

    models = [
        AutoModelForCausalLM.from_pretrained(DATA / "tiny", dtype=dtype).eval().requires_grad_(False)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    prompt = list(HELD_OUT.read_bytes()[:130])
    dec = decoder("per_layer", tiny, "host", 160)
    logits = dec.prefill(prompt)
    continuation = dec.generate(prompt, 30)
    ids = torch.tensor([prompt + continuation])
    truth, rounded = (model(ids).logits[0, len(prompt) - 1 : -1].float() for model in models)
    assert relative_error(logits, truth[0]) <= LIMIT * relative_error(rounded[0], truth[0])
    slack = (rounded - truth).abs().amax(-1)
    behind = truth.amax(-1) - truth.gather(-1, torch.tensor(continuation)[:, None])[:, 0]
    assert (behind <= slack).all(), "a choice differs from that of transformers by more than bf16's error"
    assert (behind == 0).sum() > 25


# ---- Launches ----


def test_the_first_prompt_of_a_size_launches_each_kernel_and_the_next_is_a_graph_with_the_same_bits(small):
    dec, fresh = (decoder("per_layer", small, "host", 192) for _ in range(2))
    first = drawn(100)
    dec.prefill(first)
    read, launched = left_by(dec), dec.ledger.entries[:]
    assert dec.launches == len(launched) == 14 + 8, "kernels and products"
    assert {entry.kernel for entry in launched} == {*prefill.KERNELS, "matmul"}
    for _ in range(2):
        dec.reset()
        dec.poison()
        dec.prefill(first)
        assert_same_bits(left_by(dec), read)
        assert [entry.kernel for entry in dec.ledger.entries] == ["graph", "lm_head"]
        assert [entry.kernel for entry in dec.ledger.kernels()] == [entry.kernel for entry in launched]
    # The same graph serves another length with the same number of chunks.
    other = drawn(65, seed=1)
    for d in (dec, fresh):
        d.reset()
        d.poison()
        d.prefill(other)
    assert dec.launches == 2 < fresh.launches
    assert_same_bits(left_by(dec), left_by(fresh))


@pytest.mark.planted
def test_a_prompt_whose_launches_cannot_be_captured_is_read_one_by_one_with_the_same_bits(small, monkeypatch):
    dec, twin = (decoder("per_layer", small, "host", 128) for _ in range(2))
    asked = []

    def fails(enqueue):
        asked.append(enqueue)
        raise CaptureError("planted")

    monkeypatch.setattr(dec.backend, "capture", fails)
    for _ in range(3):
        for d in (dec, twin):
            d.reset()
            d.poison()
            d.prefill(drawn(100))
        assert_same_bits(left_by(dec), left_by(twin))
    assert dec.launches == 14 + 8 and twin.launches == 2
    assert len(asked) == 1, "a capture that failed is not tried again"


@pytest.mark.parametrize("stage", STAGES)
def test_the_models_own_choice_follows_a_prompt(stage, small):
    dec, twin = (decoder(stage, small, "host", 80) for _ in range(2))
    for length in (70, 3):
        choice = int(dec.prefill(drawn(length)).argmax())
        twin.prefill(drawn(length))
        dec.step()
        twin.step(choice)
        assert_same_bits(left_by(dec), left_by(twin))


def test_a_prompt_after_tokens_and_tokens_after_a_prompt_find_each_others_state(small):
    tokens = drawn(90, small.config.vocab_size)
    dec, by_token = (decoder("graph", small, "host", 90) for _ in range(2))
    for token in tokens[:5]:
        dec.step(token)
    dec.prefill(tokens[5:80])
    for token in tokens[80:85]:
        dec.step(token)
    dec.prefill(tokens[85:])
    for token in tokens:
        by_token.step(token)
    assert dec.position == 90
    wanted = state_of(by_token)
    for name, got in state_of(dec).items():
        assert relative_error(got.float(), wanted[name].float()) < 0.01, name


# ---- What is refused ----

# test_stages.py has every kind of bad token.
@pytest.mark.parametrize("position", [0, 70])
@pytest.mark.parametrize("tokens", [[1] * 9, [1, 2, 256]], ids=["one too many", "the last too large"])
@pytest.mark.parametrize("stage", ["eager", "per_layer"])
def test_a_bad_prompt_is_refused_before_anything_runs(stage, tokens, position, small):
    dec = decoder(stage, small, "host", position + 8)
    if position:
        dec.prefill(drawn(position))

    def whole():
        return [x.nan_to_num(7.0) for x in (dec.state.k_cache, dec.state.v_cache, dec.logits, dec.hidden_states)]

    before, everything, launches = state_of(dec), whole(), dec.launches
    with pytest.raises(ValueError, match="tokens: .*(9|256)"):
        dec.prefill(tokens)
    assert_same_bits(state_of(dec), before)
    assert all(map(torch.equal, whole(), everything))
    assert dec.launches == launches
    dec.prefill([1] * 8)  # a prompt that fits still works
    assert dec.position == position + 8


# ---- Out of memory, and kernels that fail ----


def failing(function, nth, error):
    """The function, except that its nth call raises."""
    calls = iter(range(1, 10**6))

    def call(*args, **kwargs):
        if next(calls) == nth:
            raise error
        return function(*args, **kwargs)

    return call


OUT_OF_MEMORY = torch.OutOfMemoryError("planted")
PLACES = {  # stage, the function that runs out of memory, and at which call
    "the buffers": ("per_layer", lambda dec: (dec, "_buffer"), 7),
    "the first product": ("per_layer", lambda dec: (dec.backend, "matmul"), 1),
    "a product in the middle": ("per_layer", lambda dec: (dec.backend, "matmul"), 5),
    "the last product": ("per_layer", lambda dec: (dec.backend, "matmul"), 8),
    "a launch after the state has moved on": ("megakernel", lambda dec: (dec.backend, "launch"), 6),
    "the head": ("per_op", lambda dec: (dec.backend, "launch"), 14),
    "PyTorch's own": ("eager", lambda dec: (torch.nn.functional, "linear"), 10),
    "the copies of the state": ("graph", lambda dec: (torch.Tensor, "clone"), 2),
}


# A prefix of 60 tokens has fewer chunks than the prompt, so that the prompt's launches are not captured yet. The state
# before the first token is not copied.
@pytest.mark.parametrize(
    "place, position",
    [(place, at) for place in PLACES for at in (0, 60) if (place, at) != ("the copies of the state", 0)],
)
def test_running_out_of_memory_leaves_the_state_as_it_was(place, position, small, monkeypatch):
    stage, where, nth = PLACES[place]
    dec, twin = (decoder(stage, small, "host", 160) for _ in range(2))
    tokens = drawn(position + 80)
    if position:
        for d in (dec, twin):
            d.prefill(tokens[:position])
        if place == "the buffers":
            dec._prefill = None  # as after tokens that were decoded one by one
    before = state_of(dec)
    owner, name = where(dec)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), nth, OUT_OF_MEMORY))
        with pytest.raises(torch.OutOfMemoryError, match=f"^{stage}: .*80 tokens"):
            dec.prefill(tokens[position:])
    assert_same_bits(state_of(dec), before)
    for _ in range(2):  # one launch at a time, and as a graph
        for d in (dec, twin):
            d.prefill(tokens[position:])
            d.step(3)
        assert_same_bits(left_by(dec), left_by(twin))
        for d in (dec, twin):
            d.reset()
            d.prefill(tokens[:position] or [1])


def test_running_out_of_memory_while_capturing_leaves_the_state_as_it_was(small, monkeypatch):
    dec, twin = (decoder("per_layer", small, "host", 200) for _ in range(2))
    tokens = drawn(40)
    for d in (dec, twin):
        d.prefill(tokens)
    before = state_of(dec)
    with monkeypatch.context() as patch:
        patch.setattr(dec.backend, "matmul", failing(dec.backend.matmul, 5, OUT_OF_MEMORY))
        with pytest.raises(torch.OutOfMemoryError, match="40 tokens"):
            dec.prefill(tokens)
    assert_same_bits(state_of(dec), before)
    for d in (dec, twin):
        d.prefill(tokens)
        d.step(3)
    assert_same_bits(left_by(dec), left_by(twin))


@pytest.mark.planted
def test_without_the_copies_the_check_of_the_state_fails(small, monkeypatch):
    monkeypatch.setattr("luce_edu.stages.base.KernelDecoder._recurrent_tensors", lambda self: ())
    with pytest.raises(AssertionError):
        test_running_out_of_memory_leaves_the_state_as_it_was("the last product", 60, small, monkeypatch)


def test_a_kernel_that_fails_in_the_middle_demands_a_reset(small, monkeypatch):
    dec, twin = (decoder("per_layer", small, "host", 160) for _ in range(2))
    tokens = drawn(70)
    with monkeypatch.context() as patch:
        patch.setattr(dec.backend, "launch", failing(dec.backend.launch, 6, KernelError("planted")))
        with pytest.raises(KernelError, match="planted"):
            dec.prefill(tokens)
    for call in (lambda: dec.prefill([1]), lambda: dec.step(1), dec.step):
        with pytest.raises(ValueError, match=r"reset\(\)"):
            call()
    dec.reset()
    for d in (dec, twin):
        d.prefill(tokens)
    assert_same_bits(left_by(dec), left_by(twin))


# ---- Memory ----


@pytest.mark.parametrize("config", CONFIGS)
def test_no_kernel_touches_anything_outside_its_tensors(config):
    """Buffers and caches are full to the last row, and the virtual GPU checks every access; also of a second prompt."""
    layers = {"num_hidden_layers": 2, "layer_types": (LINEAR_ATTENTION, FULL_ATTENTION)}
    model = make_model(dataclasses.replace(CONFIGS[config], **layers))
    dec = decoder("per_layer", model, "host", 64, backend=make_backend("host"))
    dec.poison()
    for piece in (3, 61):
        dec.prefill(drawn(piece, model.config.vocab_size))
    dec.reset()
    assert torch.isfinite(dec.prefill(drawn(64, model.config.vocab_size))).all()
    assert dec.ledger.kernels()[0].traffic is not None


def test_a_prompt_of_any_length_takes_no_more_than_a_segments_memory():
    """With 1.5 GB of weights, the same again packed, and 0.4 GB of cache, 32k tokens then fit on a card of 8 GB."""

    class Anything(dict):
        def __missing__(self, kernel):
            return kernel

    state = SimpleNamespace(max_seq_len=32768)
    backend = SimpleNamespace(compile=lambda *_: Anything(), max_resident_blocks=lambda *_: 132)

    def buffer(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    made = prefill.Prefill(SimpleNamespace(config=FULL_SIZE, state=state, backend=backend, _buffer=buffer))
    tensors = [tensor for tensor in vars(made).values() if isinstance(tensor, torch.Tensor)]
    assert {id(tensor) for tensor in tensors} == {id(tensor) for tensor in made.scratch()}, "poison fills all of them"
    assert 0 < sum(tensor.nbytes for tensor in tensors) < 290e6


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tiny", "random-0.8b"])
def test_prompts_verify_on_the_gpu(name):
    report = verify_prefill(load_model(name), device="cuda")
    assert report.passed, str(report)
