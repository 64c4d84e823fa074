"""Stages and foreign programs behind one interface: each gives the reference's greedy tokens, or a reason why not."""

import dataclasses
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from models import TINY, make_model

from luce_edu import load_model
from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION
from luce_edu.errors import NotMeasured
from luce_edu.measure.bench import systems
from luce_edu.measure.bench.systems import LlamaCppSystem, StageSystem, TransformersSystem, make_systems
from luce_edu.reference.model import forward
from luce_edu.stages import STAGES
from luce_edu.state import DecodeState

PROMPTS = list(b"ROMEO:"), list(b"My ")
COUNT = 4


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def expected(tiny):
    """The fp32 reference's greedy continuations; it reads the whole text again for each token."""
    texts = [list(prompt) for prompt in PROMPTS]
    with torch.no_grad():
        for text in texts * COUNT:
            text.append(int(forward(tiny.weights, tiny.config, torch.tensor(text))[-1].argmax()))
    return [text[-COUNT:] for text in texts]


def greedy(system, prompt, count: int) -> list[int]:
    system.prefill(prompt)
    tokens = [system.choice()]
    while len(tokens) < count:
        system.step()
        tokens.append(system.choice())
    return tokens


def continuations(system):
    return [greedy(system, prompt, COUNT) for prompt in PROMPTS]


def stage(name, model):
    return StageSystem(name, model, max_seq_len=64, device="host")


def hugging_face(model):
    return TransformersSystem(model, max_seq_len=64, device="cpu")


@pytest.mark.parametrize("name", [*STAGES, "transformers"])
def test_every_system_continues_two_texts_as_the_reference_does(name, tiny, expected):
    system = hugging_face(tiny) if name == "transformers" else stage(name, tiny)
    assert continuations(system) == expected
    assert system.name.startswith(name)
    system.close()


class Echo(StageSystem):
    """Repeats the last token of the prompt."""

    def prefill(self, tokens):
        super().prefill(tokens)
        self._last = tokens[-1]

    def step(self):
        pass

    def choice(self):
        return self._last


class Stale(StageSystem):
    """Keeps its state between two prompts."""

    def prefill(self, tokens):
        self._decoder.prefill(tokens)


@pytest.mark.planted
@pytest.mark.parametrize("kind", [Echo, Stale])
def test_a_system_that_echoes_or_remembers_the_text_before_is_told_from_the_reference(kind, tiny, expected):
    assert continuations(kind("per_layer", tiny, max_seq_len=64, device="host")) != expected


# ---- Stages ----


def test_launches_kernels_and_barriers_are_those_of_one_step(tiny):
    layers = tiny.config.num_hidden_layers
    counts = {name: stage(name, tiny) for name in ("eager", "per_layer", "graph", "megakernel")}
    counts = {name: (s.launches, s.kernels, s.barriers) for name, s in counts.items()}
    assert counts["per_layer"] == (2 + 5 * layers, 2 + 5 * layers, 0)
    assert counts["graph"] == (1, 2 + 5 * layers, 0)
    assert counts["megakernel"] == (1, 1, 5 * layers + 1)
    launches, kernels, barriers = counts["eager"]
    assert launches > counts["per_layer"][0] and kernels is None and barriers == 0


def test_eager_is_counted_once_and_then_not_recorded(tiny):
    system = stage("eager", tiny)
    system.prefill(PROMPTS[0])
    system.step()
    assert system.launches > 0 and len(system._decoder.ledger) == 0


@pytest.mark.parametrize("name", STAGES)
def test_pretend_and_rewind_stand_where_they_say(name, tiny):
    system = stage(name, tiny)
    system.pretend(40)
    for _ in range(3):
        system.step()
    assert system._decoder.position == 43
    system.rewind(40)
    system.step()
    assert system._decoder.position == 41 and 0 <= system.choice() < 256


# ---- transformers ----


def test_transformers_has_our_weights_in_bf16_and_the_angles_of_rope_in_fp32(tiny):
    model = hugging_face(tiny)._model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    for name, tensor in tiny.weights.named_tensors():
        assert torch.equal(model.get_parameter(name), tensor.bfloat16()), name
    theta, half = tiny.config.rope_theta, tiny.config.rotary_dim // 2
    exact = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    assert rope_error(model.model.rotary_emb.inv_freq, exact) < 1e-6


@pytest.mark.planted
def test_angles_that_bf16_has_rounded_are_seen():
    """A model made in fp32 and converted to bf16 has such angles: half a turn off after a thousand tokens."""
    exact = 10000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    assert rope_error(exact.bfloat16(), exact) > 1e-6


def rope_error(frequencies, exact) -> float:
    return float(((frequencies.double() - exact) / exact).abs().max())


def test_transformers_serves_an_untied_head_and_other_layers():
    config = dataclasses.replace(
        TINY, num_hidden_layers=2, layer_types=(LINEAR_ATTENTION, FULL_ATTENTION), tie_word_embeddings=False
    )
    model = make_model(config, seed=4)
    system = hugging_face(model)
    system.prefill([1, 2, 3])
    assert torch.equal(system._model.lm_head.weight, model.weights.lm_head)


def test_transformers_stands_at_any_context_and_goes_on_from_there(tiny):
    system = hugging_face(tiny)
    system.pretend(33)
    system.step()
    system.rewind(33)
    system.step()
    assert system._cache.get_seq_length() == 35 and 0 <= system.choice() < 256


def test_its_static_cache_gives_the_same_tokens(tiny, expected, monkeypatch):
    """The compiled system without compiling, which needs a GPU."""
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda function, **how: asked.update(how) or function)
    system = TransformersSystem(tiny, max_seq_len=64, device="cpu", compiled=True)
    assert continuations(system) == expected
    assert asked == {"mode": "reduce-overhead", "fullgraph": True}
    assert system.name == "transformers, static cache and CUDA graphs"


def test_a_transformers_without_the_model_is_not_measured(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    with pytest.raises(NotMeasured, match="transformers has no Qwen3.5 here"):
        hugging_face(tiny)


@pytest.mark.planted
@pytest.mark.parametrize("name, more", [("model.extra.weight", [torch.zeros(1)]), ("model.norm.weight", [])])
def test_a_tensor_too_many_or_too_few_for_transformers_is_not_measured(name, more, tiny, monkeypatch):
    named = [pair for pair in tiny.weights.named_tensors() if pair[0] != name] + [(name, tensor) for tensor in more]
    monkeypatch.setattr(type(tiny), "weights_on", lambda self, device: SimpleNamespace(named_tensors=lambda: named))
    with pytest.raises(NotMeasured, match=name):
        hugging_face(tiny)


# ---- llama.cpp ----


class Llama:
    """The part of llama-cpp-python that is used: a model that counts up from the last token, modulo 50."""

    def __init__(self, path, **options):
        if path == "broken.gguf":
            raise ValueError(f"Failed to load model from file: {path}")
        self.options, self.tokens, self.closed = options, [], False

    def n_vocab(self):
        return 50

    def reset(self):
        self.tokens = []

    def eval(self, tokens):
        if len(self.tokens) + len(tokens) > self.options["n_ctx"]:
            raise RuntimeError("llama_decode returned 1")
        self.tokens += tokens

    def sample(self, *, temp):
        assert temp == 0.0, "greedy"
        return (self.tokens[-1] + 1) % 50

    def close(self):
        self.closed = True


@pytest.fixture
def llama_cpp(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=Llama))


def test_llama_cpp_decodes_greedily_from_a_fresh_state_with_all_layers_on_the_gpu(llama_cpp):
    system = LlamaCppSystem("model.gguf", max_seq_len=64)
    assert greedy(system, [3, 47], 5) == [48, 49, 0, 1, 2]
    assert greedy(system, [7], 2) == [8, 9]
    assert system._llama.options["n_gpu_layers"] == -1 and system._llama.options["n_ctx"] == 64
    assert (system.launches, system.kernels, system.barriers) == (None, None, None)
    llama = system._llama
    system.close()
    assert llama.closed


def test_llama_cpp_is_timed_by_the_hosts_clock_without_the_steps_that_warm_up(llama_cpp, monkeypatch):
    now = 0.0
    system = LlamaCppSystem("model.gguf", max_seq_len=64)
    system.pretend(10)
    step = system.step
    steps = iter([100] * 8 + [2, 3, 4, 5])

    def slow():
        nonlocal now
        now += next(steps) / 1e6
        step()

    system.step = slow
    monkeypatch.setattr(systems, "time", SimpleNamespace(perf_counter=lambda: now))
    times, asked = system.time_decode(steps=4)
    assert times == pytest.approx([2, 3, 4, 5]) and asked is None
    assert len(system._llama.tokens) == 10 + 8 + 4


def test_a_broken_file_or_a_missing_llama_cpp_is_named(llama_cpp, monkeypatch):
    with pytest.raises(NotMeasured, match="broken.gguf: Failed to load model"):
        LlamaCppSystem("broken.gguf", max_seq_len=64)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(NotMeasured, match="^llama-cpp-python is not installed$"):
        LlamaCppSystem("model.gguf", max_seq_len=64)


# ---- All of them ----


def test_makers_make_nothing_until_asked_and_are_in_the_ladders_order(tiny, monkeypatch):
    monkeypatch.setattr(systems, "decoder", lambda *args, **kwargs: pytest.fail("made"))
    makers = make_systems(tiny, max_seq_len=64)
    assert list(makers) == [*STAGES, "transformers", "transformers, compiled", "llama.cpp"]
    assert list(make_systems(tiny, max_seq_len=64, stages=["graph"], baselines=False)) == ["graph"]
    with pytest.raises(NotMeasured, match="no GGUF file was given; --gguf FILE"):
        makers["llama.cpp"]()


def test_each_maker_makes_its_own_stage(tiny, monkeypatch):
    monkeypatch.setattr(systems, "StageSystem", lambda stage, model, max_seq_len: (stage, max_seq_len))
    makers = make_systems(tiny, max_seq_len=99, baselines=False)
    assert [make() for make in makers.values()] == [(stage, 99) for stage in STAGES]


def test_an_unknown_stage_is_refused_with_those_there_are(tiny):
    with pytest.raises(ValueError, match="'warp'.*eager, per_op"):
        make_systems(tiny, max_seq_len=64, stages=["graph", "warp"])


def test_a_pretended_context_fills_the_state(tiny):
    """`bytes` of a record are those at the context, so the cache must be in use up to there."""
    system = stage("per_layer", tiny)
    system.pretend(40)
    state = system._decoder.state
    assert state.position == 40 and state.max_seq_len == 64
    for name in DecodeState.TENSORS:
        assert getattr(state, name).count_nonzero() > 0, name
