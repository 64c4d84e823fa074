"""The comparison by fp32's error: what it allows and refuses, and that right stages pass with gates of any size."""

import dataclasses
import math

import pytest
import torch
from models import TINY, make_model

from luce_edu.exactness import BF16_BITS, FP32_LIMIT, excess, half_step
from luce_edu.faults import Fault, planted
from luce_edu.models import Model
from luce_edu.odd_model import ODD_CONFIG
from luce_edu.stages import decoder
from luce_edu.verification import verify, verify_prefill

# A quicker form of verification's model of awkward sizes.
SMALL = dataclasses.replace(ODD_CONFIG, head_dim=32, partial_rotary_factor=0.5)


def test_half_a_step_is_half_the_distance_of_neighbours():
    x = torch.tensor([1.0, 1.99, 2.0, -3.0, 0.1, 0.0], dtype=torch.float64)
    assert half_step(x, BF16_BITS)[:4].tolist() == [2**-8, 2**-8, 2**-7, 2**-7]
    assert half_step(x, BF16_BITS)[5] < 1e-38
    rounded = torch.randn(10_000, dtype=torch.float64)
    assert ((rounded.bfloat16().double() - rounded).abs() <= half_step(rounded, BF16_BITS)).all()


def draws():
    exact = torch.randn(4096, dtype=torch.float64)
    return exact, exact.float() + 1e-7 * torch.randn(4096)


def test_one_rounding_is_allowed_and_two_or_a_cut_are_not():
    exact, fp32 = draws()
    assert excess(exact.bfloat16(), exact, fp32, bits=BF16_BITS) == 0
    assert excess(fp32.bfloat16(), exact, fp32, bits=BF16_BITS) <= 1
    assert excess(exact.half().bfloat16(), exact, fp32, bits=BF16_BITS) > FP32_LIMIT
    cut = (exact.float().view(torch.int32) & ~0xFFFF).view(torch.float32)
    assert excess(cut, exact, fp32, bits=BF16_BITS) > FP32_LIMIT


def test_exact_ties_go_to_the_even_neighbour_unless_they_need_not():
    exact = torch.tensor([1 + 2**-8, -1 - 3 * 2**-8, 0.3], dtype=torch.float64)
    right, fp32 = exact.bfloat16(), exact.float()
    assert right[:2].tolist() == [1.0, -1 - 2**-6]
    for i, wrong in ((0, 1 + 2**-7), (1, -1 - 2**-7)):
        got = right.clone()
        got[i] = wrong
        assert excess(got, exact, fp32, bits=BF16_BITS) > FP32_LIMIT
        assert excess(got, exact, fp32, bits=BF16_BITS, even=False) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bits", [None, BF16_BITS])
def test_what_is_not_finite_is_infinitely_far(value, bits):
    exact, fp32 = draws()
    got = exact.bfloat16()
    got[7] = value
    assert excess(got, exact, fp32, bits=bits) == math.inf
    assert excess(exact.bfloat16(), torch.full_like(exact, value), fp32, bits=bits) == math.inf
    assert excess(exact.bfloat16(), exact, torch.full_like(fp32, value), bits=bits) == math.inf


def test_where_fp32_is_exact_so_must_be_the_stage():
    exact = torch.arange(8, dtype=torch.float64)
    got = exact.float()
    assert excess(got, exact, got) == 0
    got = got.clone()
    got[3] = torch.nextafter(got[3], torch.tensor(9.0))
    assert excess(got, exact, exact.float()) == math.inf


# ---- Gates ----


def with_gates(config, A_log: float, dt_bias: float, seed: int = 0, in_proj_a: float = 1.0) -> Model:
    model = make_model(config, seed)
    for layer in model.weights.layers:
        if "linear_attn.A_log" in layer:
            layer["linear_attn.A_log"][:] = A_log
            layer["linear_attn.dt_bias"][:] = dt_bias
            layer["linear_attn.in_proj_a.weight"] *= in_proj_a
    return model


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(2, 8))])
def test_a_memory_that_never_forgets_raises_no_false_alarm(seed):
    """Where g is 0, errors add up. Two logits may then move towards each other, each by the largest error."""
    model = with_gates(TINY, A_log=-100.0, dt_bias=-30.0)
    report = verify(model, stages=["eager", "per_layer"] if seed == 0 else ["eager"], device="host", seed=seed)
    assert report.passed, report


# Where gates sum to -1e5, fp32 loses the small gates that follow. At A_log = 100, exp(A_log) is infinite in fp32.
@pytest.mark.parametrize("A_log, in_proj_a", [(5.0, 8.0), (12.0, 30.0), (60.0, 30.0), (100.0, 30.0)])
def test_gates_of_any_size_are_within_what_fp32_costs(A_log, in_proj_a):
    """The input drives the gates, so that a token that forgets everything may follow one that forgets nothing."""
    model = with_gates(SMALL, A_log, dt_bias=-in_proj_a, in_proj_a=in_proj_a)
    prompts = verify_prefill(model, stages=["per_layer"], device="host", prompts=[70, 130], steps=4, seed=1)
    assert all(row.fp32_ratio <= FP32_LIMIT for row in prompts.rows), prompts
    decoded = verify(model, stages=["per_layer"], device="host", steps=12, seed=1)
    assert all(row.fp32_ratio <= FP32_LIMIT for row in decoded.rows), decoded


@pytest.mark.planted
def test_sums_of_unbounded_gates_are_caught():
    bounded = "fmaxf(log_decay(to_float(a[at]), A_log, dt_bias), forgets_all)"
    fault = Fault("", "delta_rule_chunk.cuh", bounded, "log_decay(to_float(a[at]), A_log, dt_bias)")
    model = with_gates(SMALL, 12.0, dt_bias=-30.0, in_proj_a=30.0)
    with planted(fault) as tree:

        def make(stage):
            dec = decoder(stage, model, "host", 80)
            dec.backend.csrc_dir = tree  # the prompt's kernels are compiled from this tree
            return dec

        report = verify_prefill(model, stages=["per_layer"], device="host", prompts=[70], steps=4, seed=1, make=make)
    assert not report.passed
