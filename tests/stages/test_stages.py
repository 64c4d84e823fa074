"""Every stage verifies, also with awkward sizes, and each method of its interface does what its docstring says."""

import dataclasses

import pytest
import torch
from models import CONFIGS, FULL_SIZE, TINY, make_model

from luce_edu import load_model
from luce_edu.backends import make_backend
from luce_edu.backends.host import HostBackend
from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION
from luce_edu.errors import ConfigError, KernelError
from luce_edu.faults import Fault, planted
from luce_edu.models import Model
from luce_edu.plots.style import colour_of
from luce_edu.reference.sampling import draw as reference_draw
from luce_edu.stages import KERNEL_STAGES, STAGES, decoder, stage_class
from luce_edu.verification import relative_error, stage_trace, verify


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def test_each_stage_has_a_name_words_and_a_colour_of_its_own():
    classes = [stage_class(stage) for stage in STAGES]
    assert [kind.stage for kind in classes] == list(STAGES)
    assert len({kind.words for kind in classes}) == len({colour_of(stage) for stage in STAGES}) == len(STAGES)
    assert {stage_class(stage).starts for stage in STAGES} == {"plain", "graph", "barrier", None}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_stage_verifies(config):
    report = verify(make_model(CONFIGS[config], seed=3), device="host", steps=12)
    assert report.passed, str(report)
    assert [row.stage for row in report.rows] == list(STAGES)


def test_the_trained_model_verifies_past_the_first_split_of_the_cache(tiny):
    report = verify(tiny, device="host", stages=["megakernel"], steps=40)
    assert report.passed, str(report)
    assert report.rows[0].decided > 20, "too few greedy choices are decided"


def test_many_splits_and_an_uneven_last_one_equal_one_split():
    """Beyond 64 splits of 32 positions, splits become longer, and the last one may be shorter than the others."""
    config = dataclasses.replace(TINY, num_hidden_layers=1, layer_types=(FULL_ATTENTION,))
    model = make_model(config)
    positions = (2049, 2100)
    traces = []
    for stage in ("per_op", "per_layer"):
        dec = decoder(stage, model, "host", max_seq_len=2200)
        generator = torch.Generator().manual_seed(5)
        outputs = []
        for position in positions:
            for cache in (dec.state.k_cache, dec.state.v_cache):
                cache[:, :, :position] = torch.randn(cache[:, :, :position].shape, generator=generator)
            dec.state.position = position - 1
            dec.poison()
            outputs.append(dec.step(17))
        traces.append(torch.stack(outputs))
    assert torch.isfinite(traces[1]).all()
    assert torch.linalg.vector_norm(traces[0] - traces[1]) <= 1e-5 * torch.linalg.vector_norm(traces[0])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("stage", KERNEL_STAGES)
def test_any_order_of_threads_gives_the_same_bits(stage, seed, tiny):
    tokens = [3, 250, 17]
    usual, _ = stage_trace(decoder(stage, tiny, "host", 8), tokens)
    shuffled, _ = stage_trace(decoder(stage, tiny, "host", 8, backend=make_backend("host", seed=seed)), tokens)
    for name, part in usual.parts().items():
        assert torch.equal(part, shuffled.parts()[name]), name


def test_launches_fall_down_the_ladder_to_one(tiny):
    decoders = {stage: decoder(stage, tiny, "host", 8) for stage in STAGES}
    for dec in decoders.values():
        dec.step(1)
        dec.step(2)
    launches = {stage: dec.launches for stage, dec in decoders.items()}
    assert launches["eager"] > launches["per_op"] > launches["per_layer"] > launches["megakernel"] == 1
    assert launches["per_layer"] == 5 * tiny.config.num_hidden_layers + 2
    entry = decoders["megakernel"].ledger.entries[0]
    assert entry.cooperative and entry.kernel == "megakernel"
    assert decoders["megakernel"].barriers == 5 * tiny.config.num_hidden_layers + 1


@pytest.mark.parametrize("stage", STAGES)
def test_prefill_steps_and_generate_agree(stage, tiny):
    dec = decoder(stage, tiny, "host", 32)
    prompt = list(b"ROMEO:")
    first = dec.prefill(prompt)
    assert first.shape == (tiny.config.vocab_size,) and first.dtype == torch.float32
    by_hand, logits = [], first
    for _ in range(5):
        by_hand.append(int(logits.argmax()))
        logits = dec.step(by_hand[-1])
    assert dec.position == len(prompt) + 5
    assert dec.generate(prompt, 5) == by_hand
    assert list(dec.stream(prompt, 5)) == by_hand
    dec.reset()
    assert dec.position == 0
    for token in prompt:
        again = dec.step(token)
    dec.reset()
    assert relative_error(first, again) < 0.02, "a prompt's activations enter products in bf16"


def test_drawn_tokens_repeat_with_their_seed_and_follow_the_logits(tiny):
    dec = decoder("per_layer", tiny, "host", 64)
    prompt = list(b"ROMEO:")
    draws = [list(dec.stream(prompt, 20, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert dec.generate(prompt, 20, temperature=1.0, seed=1) == draws[0]
    greedy = dec.generate(prompt, 5)
    for how in ({"temperature": 1e-6}, {"temperature": 2.0, "top_k": 1}, {"temperature": 2.0, "top_p": 1e-6}):
        assert list(dec.stream(prompt, 5, **how)) == greedy


@pytest.mark.parametrize("stage", STAGES)
def test_a_draw_is_the_choice_that_the_next_step_decodes(stage, tiny):
    dec, twin = (decoder(stage, tiny, "host", 16) for _ in range(2))
    ways = [{"temperature": 3.0}, {"temperature": 3.0, "top_k": 9, "top_p": 0.8, "seed": 4}]
    for d in (dec, twin):
        d.prefill(list(b"ROMEO:"))
    launches, drawn = dec.launches, []
    for how in ways:
        dec.draw(**how)
        drawn.append(dec.choice())
        how = {"top_k": None, "top_p": None, "seed": 0} | how
        assert drawn[-1] == int(reference_draw(dec.logits, **how, position=6))
    if stage != "eager":
        assert [entry.kernel for entry in dec.ledger.entries[launches:]] == ["draw", "draw"]
    dec.step()
    twin.step(drawn[-1])
    assert torch.equal(dec.logits, twin.logits) and dec.choice() == twin.choice(), "greedy again"


@pytest.mark.parametrize("stage", KERNEL_STAGES)
def test_stages_with_the_same_seed_write_the_same_text(stage, tiny):
    how = {"temperature": 1.2, "top_k": 30, "top_p": 0.95, "seed": 8}
    texts = [decoder(name, tiny, "host", 16).generate([82, 79], 8, **how) for name in (stage, "megakernel")]
    assert texts[0] == texts[1] and len(set(texts[0])) > 2


@pytest.mark.parametrize(
    "how, message",
    [
        ({"temperature": -0.1}, "temperature: .*got -0.1"),
        ({"temperature": float("nan")}, "temperature: .*got nan"),
        ({"temperature": float("inf")}, "temperature: .*got inf"),
        ({"temperature": "hot"}, "temperature: .*got 'hot'"),
        ({"temperature": True}, "temperature: .*got True"),
        ({"top_k": 0}, "top_k: .*1 or more, got 0"),
        ({"top_k": 2.0}, "top_k: .*got 2.0"),
        ({"top_p": 0}, "top_p: .*got 0"),
        ({"top_p": 1.5}, "top_p: .*at most 1, got 1.5"),
        ({"top_p": float("nan")}, "top_p: .*got nan"),
        ({"seed": 2**63}, "seed: "),
    ],
)
def test_bad_sampling_is_refused_before_anything_runs(how, message, tiny):
    dec = decoder("per_layer", tiny, "host", 8)
    dec.prefill([1, 2])
    logits, launches = dec.logits.clone(), dec.launches
    with pytest.raises(ValueError, match=message):
        dec.stream([65], 4, **{"temperature": 1.0} | how)
    with pytest.raises(ValueError, match=message):
        dec.draw(**how)
    assert dec.position == 2 and dec.launches == launches and torch.equal(dec.logits, logits)


def test_a_draw_needs_logits_and_a_temperature(tiny):
    dec = decoder("per_layer", tiny, "host", 8)
    with pytest.raises(ValueError, match="no logits to draw from"):
        dec.draw()
    dec.step(1)
    with pytest.raises(ValueError, match="temperature: expected a number above 0"):
        dec.draw(0)
    dec.poison()
    with pytest.raises(ValueError, match="no logits to draw from"):
        dec.draw()


def test_a_reset_clears_what_a_failed_draw_has_left(tiny):
    dec, how = decoder("per_layer", tiny, "host", 8), {"temperature": 1.0, "top_k": 20, "top_p": 0.9}
    text = dec.generate([65], 3, **how)
    dec._sampling.memory.fill_(1)
    dec._sampling.arrivals.fill_(1)
    assert dec.generate([65], 3, **how) == text


@pytest.mark.parametrize("other", ["step", "reset", "stream"])
def test_a_stream_that_another_call_has_overtaken_ends_with_an_error(other, tiny):
    dec = decoder("per_layer", tiny, "host", 8)
    stream = dec.stream([65], 8)
    next(stream)
    {"step": lambda: dec.step(66), "reset": dec.reset, "stream": lambda: next(dec.stream([66], 8))}[other]()
    with pytest.raises(ValueError, match="another call has advanced this decoder"):
        next(stream)
    assert len(dec.generate([65], 8)) == 8


@pytest.mark.parametrize("seed", [1.5, None, -1, True, 2**64])
def test_a_bad_seed_is_refused(seed, tiny):
    with pytest.raises(ValueError, match="seed: expected an integer"):
        decoder("eager", tiny, "host", 8).stream([65], 4, temperature=1.0, seed=seed)


def test_generate_stops_at_the_end_of_text(tiny):
    dec = decoder("per_layer", tiny, "host", 32)
    tokens = dec.generate([65], 8)
    config = dataclasses.replace(tiny.config, eos_token_ids=(tokens[2],))
    stopped = decoder("per_layer", dataclasses.replace(tiny, config=config), "host", 32)
    assert stopped.generate([65], 8) == tokens[: tokens.index(tokens[2]) + 1]


BAD_TOKENS = {
    "empty": ([], "empty"),
    "negative": ([1, -1], "0 to 255, got -1"),
    "too large": ([256], "0 to 255, got 256"),
    "a float": ([1, 2.0], "expected integers, got 2.0"),
    "a bool": ([True], "got True"),
    "text": ("abc", "list of integers"),
    "a set": ({1, 2}, "list of integers"),
    "a tensor without dimensions": (torch.tensor(5), "list of integers"),
    "none": (None, "list of integers"),
    "too many": ([1] * 7, "7 tokens do not fit; there is room for 6"),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("bad", BAD_TOKENS)
def test_bad_tokens_are_refused_and_change_nothing(stage, bad, tiny):
    tokens, message = BAD_TOKENS[bad]
    dec, undisturbed = (decoder(stage, tiny, "host", 8) for _ in range(2))
    for d in (dec, undisturbed):
        d.prefill([7, 8])
    launches = dec.launches
    with pytest.raises(ValueError, match=message):
        dec.prefill(tokens)
    if isinstance(tokens, list) and len(tokens) == 1:
        with pytest.raises(ValueError, match=message):
            dec.step(tokens[0])
    assert dec.position == 2 and dec.launches == launches
    assert torch.equal(dec.step(9), undisturbed.step(9))


def test_stepping_past_the_end_is_refused_and_the_rest_stays(tiny):
    dec = decoder("megakernel", tiny, "host", 3)
    dec.prefill([1, 2, 3])
    with pytest.raises(ValueError, match="room for 0"):
        dec.step(4)
    with pytest.raises(ValueError, match="do not fit"):
        dec.generate([1, 2], 3)
    with pytest.raises(ValueError, match="max_new_tokens"):
        dec.generate([1], 0)
    assert dec.position == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"stage": ["megakernel"]}, "unknown stage"),
        ({"model": "tiny"}, "expected what luce_edu.load_model returns, got str"),
        ({"stage": "warp_speed"}, "unknown stage 'warp_speed'; expected one of eager, per_op"),
        ({"device": "tpu"}, "unknown device 'tpu'; expected one of cuda, host"),
        ({"max_seq_len": 0}, "max_seq_len: .*got 0"),
        ({"max_seq_len": 10**9}, "made for 4096 positions"),
        ({"max_seq_len": "8"}, "max_seq_len: .*got '8'"),
    ],
)
def test_a_bad_decoder_is_refused(arguments, message, tiny):
    with pytest.raises(ValueError, match=message):
        decoder(**({"stage": "megakernel", "model": tiny, "device": "host"} | arguments))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_asking_for_a_gpu_that_is_not_there_is_refused(tiny):
    with pytest.raises(ValueError, match="PyTorch sees no GPU"):
        decoder("megakernel", tiny, "cuda")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_size": 132}, "hidden_size to be a multiple of 8, got 132"),
        ({"intermediate_size": 12296}, "intermediate_size of at most 12288, .* 48 KiB .*, got 12296"),
        ({"hidden_size": 12040}, "hidden_size of at most 12032"),
        ({"num_hidden_layers": 85, "layer_types": (LINEAR_ATTENTION,) * 85}, "84 layers, .* num_hidden_layers 85"),
        ({"head_dim": 96, "partial_rotary_factor": 0.25}, "head_dim 8, 16, 32, 64, 128 or 256, got 96"),
        ({"linear_value_head_dim": 24}, "linear_value_head_dim to be a multiple of 16, got 24"),
        ({"linear_conv_kernel_dim": 18}, "linear_conv_kernel_dim from 2 to 17, got 18"),
        ({"num_attention_heads": 64, "num_key_value_heads": 1, "head_dim": 256}, "48 KiB"),
        ({"linear_num_value_heads": 3, "linear_num_key_heads": 1}, "linear_num_value_heads to be a multiple of 2"),
    ],
)
@pytest.mark.parametrize("stage", KERNEL_STAGES)
def test_a_config_that_kernels_cannot_serve_is_refused_by_name(stage, change, message):
    one_layer = {"num_hidden_layers": 1, "layer_types": (LINEAR_ATTENTION,)}
    config = dataclasses.replace(TINY, **(one_layer | change))
    # The config is refused before the weights are read, so there need not be any.
    with pytest.raises(ConfigError, match=message):
        decoder(stage, Model("none", config, None, tokenizer=None, folder=None), "host", 8)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("stage", STAGES)
def test_text_ends_with_an_error_where_no_logit_is_a_number(stage, temperature):
    model = make_model(dataclasses.replace(TINY, num_hidden_layers=1, layer_types=(LINEAR_ATTENTION,)))
    model.weights.norm.fill_(float("nan"))
    with pytest.raises(KernelError, match="all logits are NaN"):
        list(decoder(stage, model, "host", 8).stream([1], 4, temperature=temperature))


def without_a_largest_logit(stage, backend=None):
    """A decoder after one token, whose final norm was set to NaN so that every logit is NaN; and the norm before."""
    config = dataclasses.replace(TINY, num_hidden_layers=1, layer_types=(LINEAR_ATTENTION,))
    dec = decoder(stage, make_model(config), "host", 16, backend=backend)
    norm = dec.weights.norm.clone()
    dec.weights.norm.fill_(float("nan"))
    dec.step(1)
    return dec, norm


@pytest.mark.parametrize("stage", STAGES)
def test_steps_without_a_host_read_end_in_the_same_error(stage):
    dec, norm = without_a_largest_logit(stage)
    for _ in range(3):
        dec.step()
    with pytest.raises(KernelError, match="all logits are NaN"):
        dec.choice()
    dec.weights.norm.copy_(norm)
    dec.step()
    assert torch.isfinite(dec.logits).all(), "the next token is finite again, although there was no choice"
    with pytest.raises(KernelError):
        dec.choice()
    dec.step(5)
    assert dec.choice() == int(dec.logits.argmax())
    dec.step()
    assert dec.choice() == int(dec.logits.argmax())


@pytest.mark.parametrize("stage", KERNEL_STAGES)
def test_a_prompt_after_such_a_loop_has_a_choice_again(stage):
    dec, norm = without_a_largest_logit(stage)
    dec.weights.norm.copy_(norm)
    dec.reset()
    dec.prefill([3, 4])
    assert dec.choice() == int(dec.logits.argmax())


def step_without_a_choice(stage, *faults):
    """A step without a choice, on a virtual GPU that checks every access."""
    with planted(*faults) as tree:
        dec, _ = without_a_largest_logit(stage, HostBackend(csrc_dir=tree))
        dec.step()


@pytest.mark.parametrize("stage", KERNEL_STAGES)
def test_a_step_without_a_choice_reads_nothing_outside_the_embedding(stage):
    step_without_a_choice(stage)


@pytest.mark.planted
@pytest.mark.parametrize("stage", KERNEL_STAGES)
def test_a_missing_choice_that_is_used_as_an_index_is_caught(stage):
    clamp = Fault("", "argmax.cuh", "chosen < vocab_size ? chosen : vocab_size - 1", "chosen")
    with pytest.raises(KernelError, match=r"read.*(far from|which has)"):
        step_without_a_choice(stage, clamp)


@pytest.mark.parametrize("kind", [LINEAR_ATTENTION, FULL_ATTENTION])
def test_a_full_size_layer_verifies(kind):
    """The shapes of Qwen3.5-0.8B except its vocabulary: one layer of each kind."""
    config = dataclasses.replace(FULL_SIZE, num_hidden_layers=1, layer_types=(kind,), vocab_size=1001)
    report = verify(make_model(config), device="host", steps=2)
    assert report.passed, str(report)


@pytest.mark.full
def test_the_full_size_model_verifies():
    report = verify(load_model("random-0.8b"), device="host", steps=3)
    assert report.passed, str(report)
    assert report.rows[-1].launches == 1 and report.rows[-1].barriers == 121


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tiny", "random-0.8b"])
def test_every_stage_verifies_on_the_gpu(name):
    report = verify(load_model(name), device="cuda", steps=40)
    assert report.passed, str(report)
