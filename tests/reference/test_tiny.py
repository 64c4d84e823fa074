"""The trained model of the package, and the parts of the script that trained it."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import empty_state, relative_error, transformers_trace
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import luce_edu
from luce_edu import train_tiny
from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION, ModelConfig
from luce_edu.reference.model import forward
from luce_edu.train_tiny import bits_per_byte, byte_tokenizer, clean, initial_parameters, orthogonalise, train
from luce_edu.weights import Weights, load_weights

FOLDER = Path(luce_edu.__file__).parent / "data" / "tiny"
# The start of Macbeth's second act, which is not in the training text. It is in the public domain, and cleaned alike.
EXCERPT = Path(__file__).with_name("held_out.txt").read_bytes()


@pytest.fixture(scope="module")
def config():
    return ModelConfig.from_file(FOLDER / "config.json")


@pytest.fixture(scope="module")
def weights(config):
    return load_weights(FOLDER, config)


def test_all_files_together_are_under_4_megabytes():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4e6


def test_held_out_text_costs_at_most_2_4_bits_per_byte(weights, config):
    assert 1 < bits_per_byte(weights, config, torch.tensor(list(EXCERPT))) <= 2.4


def test_noise_and_an_untrained_model_are_above_that_limit(weights, config):
    tokens = torch.tensor(list(EXCERPT[:2048]))
    shuffled = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))]
    assert bits_per_byte(weights, config, shuffled) > 4
    untrained = Weights.from_named(initial_parameters(config, torch.Generator().manual_seed(0)), config)
    assert bits_per_byte(untrained, config, tokens) > 7.5


def test_transformers_loads_it_and_agrees_layer_by_layer(weights, config):
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval().requires_grad_(False)
    tokens = torch.tensor(list(EXCERPT[:200]))
    state, cache = empty_state(config, 200), DynamicCache(config=model.config)
    for piece in tokens.split([190, 1, 1, 8]):
        trace = []
        logits = forward(weights, config, piece, state, trace=trace)
        for i, pair in enumerate(zip([*trace, logits], transformers_trace(model, piece, cache), strict=True)):
            assert relative_error(*pair) <= 1e-5, f"layer {i - 1}: {relative_error(*pair):.2g}"


def test_greedy_text_is_made_of_lines_and_words(weights, config):
    """After a speaker's name, the text is mostly letters and spaces, in lines of less than 80 characters."""
    state, tokens = empty_state(config, 256), list(b"ROMEO:\n")
    logits = forward(weights, config, torch.tensor(tokens), state)
    for _ in range(200):
        tokens.append(logits[-1].argmax().item())
        logits = forward(weights, config, torch.tensor(tokens[-1:]), state)
    text = bytes(tokens).decode("ascii")
    assert sum(character.isalpha() or character.isspace() for character in text) > 0.85 * len(text)
    assert max(map(len, text.splitlines())) < 80


@pytest.mark.parametrize("source", ["the script", "the files"])
def test_a_token_is_a_byte(source):
    made = source == "the script"
    tokenizer = byte_tokenizer() if made else AutoTokenizer.from_pretrained(FOLDER).backend_tokenizer
    assert tokenizer.get_vocab_size() == 256
    # Of the 256 bytes, UTF-8 never uses 13. The text has all others.
    codes = range(0x800), range(0x800, 0xD800, 97), range(0xE000, 0x10000, 97), range(0x10000, 0x110000, 4099)
    text = "".join(map(chr, itertools.chain(*codes)))
    assert len(set(text.encode())) == 243
    assert tokenizer.encode(text).ids == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.decode([*b"caf", 0xC3]) == "caf\ufffd"


def test_cleaning_leaves_the_play_alone():
    raw = (
        "HAMLET\n\nby William Shakespeare\n\n\nPERSONS REPRESENTED.\n\nHamlet, a prince.\n\n\n\nACT I.\n\n"
        "Scene I. A  platform.\n\n[Enter two.]\n\nBer.\n  Who's there? \nHe.\n\nLADY MACBETH\nHark!\n\n"
        "THE PLAYER KING.\nWhat.\n\nSCENE II.\nA room."
    )
    assert clean(raw) == (
        "ACT I.\n\nScene I. A platform.\n\n[Enter two.]\n\nBER:\nWho's there?\nHe.\n\n"
        "LADY MACBETH:\nHark!\n\nTHE PLAYER KING:\nWhat.\n\nSCENE II.\nA room.\n\n"
    )


def test_training_learns_a_pattern_and_its_checks_hold_the_last_step(config, monkeypatch):
    for name, value in {"SHORT": (4, 32), "LONG": (2, 64), "WARM_UP": 5}.items():
        monkeypatch.setattr(train_tiny, name, value)
    kinds = (LINEAR_ATTENTION, FULL_ATTENTION)
    small = replace(config, hidden_size=64, intermediate_size=64, num_hidden_layers=2, layer_types=kinds)
    tokens, checks = torch.tensor(list(b"to be or not " * 40)), []

    def on_check(parameters, step, line):
        checks.append((step, bits_per_byte(Weights.from_named(parameters, small), small, tokens)))

    train(small, tokens, tokens, steps=40, minutes=10, seed=0, on_check=on_check)
    ((step, bits),) = checks
    assert step == 40 and bits <= 0.5


def test_orthogonalise_keeps_directions_and_evens_out_sizes():
    x = torch.randn(3, 40, 24, generator=torch.Generator().manual_seed(0))
    u, sizes, v = torch.linalg.svd(orthogonalise(x), full_matrices=False)
    assert 0.6 < sizes.min() and sizes.max() < 1.3
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    assert relative_error(orthogonalise(x), left @ right) < 0.35
