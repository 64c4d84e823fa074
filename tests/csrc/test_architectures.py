"""Every stage and every prompt verifies on the code of each architecture, and repeats its bits there.

The sources have three branches of #if: Turing multiplies by shuffles (compute_75), Ampere on tensor cores
(compute_80), and from Hopper on (compute_90a, compute_120) kernels overlap by dependent launch.
"""

import dataclasses
import os

import pytest
import torch
from models import TINY, make_model
from tensors import state_of

from luce_edu.backends.host import HostBackend
from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION
from luce_edu.faults import Fault, planted
from luce_edu.machine.cards import find_card
from luce_edu.stages import KERNEL_STAGES, decoder
from luce_edu.verification import verify, verify_prefill

CARDS = {"T4": "compute_75", "A100": "compute_80", "H100": "compute_90a", "RTX 5090": "compute_120"}
PROMPT = [(7 * i) % 256 for i in range(65)]  # one token more than a chunk of the delta rule


def card(name, sm_count=2):
    """A card with few SMs, so that a token is quick. Without registers_per_sm, nothing asks ptxas, which is slow."""
    return dataclasses.replace(find_card(name), sm_count=sm_count, registers_per_sm=None)


@pytest.fixture(scope="module")
def model():
    return make_model(
        dataclasses.replace(TINY, num_hidden_layers=2, layer_types=(LINEAR_ATTENTION, FULL_ATTENTION)), seed=3
    )


def maker(model, name):
    def make(stage):
        backend = HostBackend(card=card(name))
        assert backend.card.arch == CARDS[name]
        return decoder(stage, model, max_seq_len=80, backend=backend)

    return make


@pytest.mark.parametrize("name", CARDS)
def test_every_stage_verifies(name, model):
    report = verify(model, device="host", stages=KERNEL_STAGES, steps=6, seed=1, make=maker(model, name))
    assert report.passed, str(report)


@pytest.mark.parametrize("name", CARDS)
def test_prompts_verify(name, model):
    make = maker(model, name)
    report = verify_prefill(model, device="host", stages=["per_layer"], prompts=(3, 65), steps=3, seed=1, make=make)
    assert report.passed, str(report)


# ---- Bits ----


def bits(stage, model, **options) -> list[torch.Tensor]:
    """Logits and states of a prompt and of three tokens after it."""
    dec = decoder(stage, model, max_seq_len=80, backend=HostBackend(**options))
    dec.poison()
    logits = [dec.prefill(PROMPT), *(dec.step(token) for token in (3, 250, 17))]
    return [*logits, *state_of(dec).values()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


OTHERS = {
    "one thread": {"threads": 1}, "two threads": {"threads": 2}, "another order": {"seed": 11},
    "five SMs": {"card": card("RTX 3090", 5)},
}  # fmt: skip


@pytest.mark.parametrize("stage", KERNEL_STAGES)
def test_orders_threads_and_cards_of_an_architecture_give_the_same_bits(stage, model):
    """No sum depends on the grid: one warp or one block computes it, and splits of the cache depend on the position."""
    first = bits(stage, model, card=card("RTX 3090"))
    for name, options in OTHERS.items():
        assert same(bits(stage, model, **{"card": card("RTX 3090")} | options), first), name


@pytest.mark.parametrize("stage", KERNEL_STAGES)
def test_hostile_memory_gives_the_same_bits_and_nothing_races(stage, model):
    first = bits(stage, model, card=card("H100"))
    for seed in range(100 if os.environ.get("LUCE_FULL") == "1" else 3):
        hostile = bits(stage, model, card=card("H100"), seed=seed, hostile=True, races=True)
        assert same(hostile, first), f"seed {seed}"


@pytest.mark.parametrize("seed", range(3))
def test_kernels_that_overlap_give_the_same_bits(seed, model):
    assert same(bits("graph", model, card=card("H100"), seed=seed), bits("per_layer", model, card=card("H100")))


@pytest.mark.planted
def test_a_kernel_that_does_not_wait_shows_where_kernels_overlap(model):
    late = "    begin_phase();\n    mlp_down_phase(act, down_proj, x, out, &shared);"
    early = late.replace("    begin_phase();\n", "") + "\n    begin_phase();"
    with planted(Fault("", "per_layer.cu", late, early)) as tree:
        in_turn, *overlapping = (
            bits("graph", model, card=card("H100"), csrc_dir=tree, seed=seed) for seed in (None, 0, 1, 2, 3, 4)
        )
    expected = bits("graph", model, card=card("H100"))
    assert same(in_turn, expected)
    assert not all(same(other, expected) for other in overlapping)
