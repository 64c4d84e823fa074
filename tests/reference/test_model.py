"""The reference against transformers' Qwen3.5 on small random models, layer by layer, in fp32.

The limit 1e-5 is about 80 units in fp32's last place. Sums run over up to 130 tokens and 96 inputs, in another order,
through four layers.
"""

import pytest
import torch
from cases import CONFIGS, empty_state, make_case, relative_error, transformers_trace
from transformers import DynamicCache

from luce_edu.reference import attention, block, model
from luce_edu.reference.model import forward

LIMIT = 1e-5
LENGTHS = (1, 2, 3, 63, 64, 65, 130)


def traced(case, tokens, state=None, **kwargs):
    """Hidden states after the embedding and each layer, then the logits."""
    trace = []
    logits = forward(case.weights, case.config, tokens, state, trace=trace, **kwargs)
    return [*trace, logits]


def assert_close(trace, expected):
    names = ["embedding", *(f"layer {i}" for i in range(len(expected) - 2)), "logits"]
    for name, x, reference in zip(names, trace, expected, strict=True):
        error = relative_error(x, reference)
        assert error <= LIMIT, f"{name}: relative error {error:.2g} is above {LIMIT}"


def random_tokens(case, count, seed=1):
    return torch.randint(case.config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=CONFIGS)
def case(request):
    return make_case(request.param)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_layer_equals_transformers_in_both_forms_of_the_delta_rule(case, length):
    tokens = random_tokens(case, length)
    expected = transformers_trace(case.model, tokens)
    for chunked in (True, False):
        assert_close(traced(case, tokens, empty_state(case.config), chunked=chunked), expected)


@pytest.mark.parametrize("prompt", [1, 3, 65])
def test_decode_after_prefill_equals_transformers_with_its_cache(case, prompt):
    tokens = random_tokens(case, prompt + 12)
    state, cache = empty_state(case.config), DynamicCache(config=case.model.config)
    # One token at a time, then several at once.
    for piece in tokens.split([prompt, 1, 1, 1, 1, 1, 2, 5]):
        assert_close(traced(case, piece, state), transformers_trace(case.model, piece, cache))
    assert state.position == prompt + 12


def test_decoding_in_pieces_leaves_the_state_of_one_prefill(case):
    tokens = random_tokens(case, 70)
    whole, pieces = empty_state(case.config), empty_state(case.config)
    forward(case.weights, case.config, tokens, whole)
    for piece in tokens.split([64, 1, 1, 4]):
        forward(case.weights, case.config, piece, pieces, chunked=False)
    for name in ("conv_state", "recurrent_state"):
        assert relative_error(getattr(pieces, name), getattr(whole, name)) <= LIMIT, name
    for name in ("k_cache", "v_cache"):
        seen = (getattr(state, name)[:, :, :70] for state in (pieces, whole))
        assert relative_error(*seen) <= LIMIT, name


def test_a_batch_without_state_equals_its_rows_one_by_one():
    case = make_case()
    rows = torch.stack([random_tokens(case, 70, seed) for seed in (1, 2)])
    together = forward(case.weights, case.config, rows)
    for row, logits in zip(rows, together, strict=True):
        alone = forward(case.weights, case.config, row, empty_state(case.config))
        assert relative_error(logits, alone) <= LIMIT


# Planted faults: each replaces a function by a wrong one.


def decay_left_out_of_the_prediction(q, k, v, *, beta, g, recurrent_state):
    out = []
    for t in range(len(v)):
        delta = beta[t][:, None] * (v[t] - torch.einsum("hkv,hk->hv", recurrent_state, k[t]))
        recurrent_state *= g[t].exp()[:, None, None]
        recurrent_state += k[t][:, :, None] * delta[:, None, :]
        out.append(torch.einsum("hkv,hk->hv", recurrent_state, q[t]))
    return torch.stack(out)


def A_log_without_exp(a, b, A_log, dt_bias):
    return A_log * torch.nn.functional.softplus(a + dt_bias), b.sigmoid()


def beta_before_sigmoid(a, b, A_log, dt_bias, right=block.delta_rule_gates):
    return right(a, b, A_log, dt_bias)[0], b


def norm_weight_not_zero_centred(x, weight, *, eps, right=block.rms_norm):
    return right(x, weight - 1, eps=eps)


def q_unscaled(q, k, v, *, right=block.delta_rule_recurrent, **kwargs):
    # The gated norm that follows removes the scale, except for its eps. So only a large error in scale shows.
    return right(q * 1e-4, k, v, **kwargs)


def q_and_k_not_normalised(x):
    return x


def key_heads_tiled(q, k, v, *, right=block.delta_rule_recurrent, **kwargs):
    tiled = [0, 2, 1, 3]  # key heads 0 0 1 1 become 0 1 0 1
    return right(q[..., tiled, :], k[..., tiled, :], v, **kwargs)


def gate_forgotten(x, z, weight, *, eps, right=block.gated_rms_norm):
    return right(x, torch.ones_like(z), weight, eps=eps)


def conv_taps_reversed(x, weight, conv_state, right=block.causal_conv):
    return right(x, weight.flip(-1), conv_state)


def conv_state_a_token_late(x, weight, conv_state, right=block.causal_conv):
    late = torch.cat([conv_state[:, -1:], conv_state], dim=-1)[:, : conv_state.shape[-1]]
    out = right(x, weight, conv_state)
    conv_state.copy_(torch.cat([late[:, :1], conv_state[:, :-1]], dim=-1))
    return out


def rope_on_the_last_dimensions(x, cos, sin, right=attention.apply_rope):
    return right(x.flip(-1), cos, sin).flip(-1)


def query_heads_tiled(q, k, v, right=attention.causal_attention):
    tiled = [0, 2, 1, 3]
    return right(q[..., tiled, :], k, v)[..., tiled, :]


def kv_cache_off_by_one(x, layer, config, *, position, k_cache, v_cache, right=attention.gated_attention):
    return right(x, layer, config, position=position, k_cache=k_cache.roll(1, 1), v_cache=v_cache.roll(1, 1))


def position_not_advanced(x, layer, config, *, position, k_cache, v_cache, right=attention.gated_attention):
    return right(x, layer, config, position=max(position - 1, 0), k_cache=k_cache, v_cache=v_cache)


def query_sees_the_next_token(q, k, v):
    k, v = (x.repeat_interleave(2, dim=-2) for x in (k, v))
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    tokens, total = q.shape[-2], k.shape[-2]
    future = torch.ones(tokens, total, dtype=torch.bool).triu(total - tokens + 2)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(future, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(-3, -2)


FAULTS = [
    (block, "delta_rule_recurrent", decay_left_out_of_the_prediction),
    (block, "delta_rule_gates", A_log_without_exp),
    (block, "delta_rule_gates", beta_before_sigmoid),
    (block, "rms_norm", norm_weight_not_zero_centred),
    (attention, "rms_norm", norm_weight_not_zero_centred),
    (block, "delta_rule_recurrent", q_unscaled),
    (block, "l2_norm", q_and_k_not_normalised),
    (block, "delta_rule_recurrent", key_heads_tiled),
    (block, "gated_rms_norm", gate_forgotten),
    (block, "causal_conv", conv_taps_reversed),
    (block, "causal_conv", conv_state_a_token_late),
    (attention, "apply_rope", rope_on_the_last_dimensions),
    (attention, "causal_attention", query_heads_tiled),
    (attention, "causal_attention", query_sees_the_next_token),
    (model, "gated_attention", kv_cache_off_by_one),
    (model, "gated_attention", position_not_advanced),
]


@pytest.fixture(scope="module")
def expected_pieces():
    """What transformers computes for a prompt and three decode steps."""
    case = make_case()
    cache = DynamicCache(config=case.model.config)
    pieces = random_tokens(case, 20).split([16, 1, 1, 2])
    return [(piece, transformers_trace(case.model, piece, cache)) for piece in pieces]


def compare_pieces(expected_pieces):
    case = make_case()
    state = empty_state(case.config)
    for piece, expected in expected_pieces:
        assert_close(traced(case, piece, state, chunked=False), expected)


def test_the_comparison_passes_without_a_fault(expected_pieces):
    compare_pieces(expected_pieces)


@pytest.mark.parametrize(("module", "name", "wrong"), FAULTS, ids=[wrong.__name__ for _, _, wrong in FAULTS])
def test_the_comparison_catches(module, name, wrong, expected_pieces, monkeypatch):
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError, match="relative error"):
        compare_pieces(expected_pieces)


def test_a_value_that_is_not_finite_fails_the_comparison():
    right = torch.ones(4)
    for last in (float("nan"), float("inf")):
        assert not relative_error(torch.tensor([1, 1, 1, last]), right) <= LIMIT
    assert not relative_error(torch.ones(1), right) <= LIMIT


# bf16: the reference also gives the error that rounding to bf16 causes.


@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_error_is_of_the_size_of_transformers_own(name):
    exact, rounded = make_case(name), make_case(name, dtype=torch.bfloat16)
    tokens = random_tokens(exact, 100)
    expected = transformers_trace(exact.model, tokens)
    ours = traced(exact, tokens, empty_state(exact.config), dtype=torch.bfloat16)
    theirs = transformers_trace(rounded.model, tokens)
    for i in range(1, len(expected)):
        our_error, their_error = relative_error(ours[i], expected[i]), relative_error(theirs[i], expected[i])
        assert 1e-4 < our_error <= 1.5 * their_error, f"layer {i}: {our_error:.2g}, theirs {their_error:.2g}"
        assert their_error <= 1.5 * our_error, f"layer {i}: {our_error:.2g}, theirs {their_error:.2g}"


# Bad input


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 2], "int64 tensor.*got list"),
        (torch.tensor([1.0]), "int64 tensor.*got torch.float32"),
        (torch.tensor([], dtype=torch.int64), r"at least one token, got torch.int64 \[0\]"),
        (torch.tensor([1, 96]), "from 0 to 95, got 96"),
        (torch.tensor([1, -1]), "from 0 to 95, got -1"),
        (torch.tensor([[1, 2]]), r"one sequence \[T\] with a state, got \[1, 2\]"),
        (torch.zeros(9, dtype=torch.int64), r"at most 8 more \(position 2 of 10\), got 9"),
    ],
)
def test_bad_tokens_are_refused_and_leave_the_state_alone(tokens, message):
    case = make_case()
    states = [empty_state(case.config, max_seq_len=10) for _ in range(2)]
    for state in states:
        forward(case.weights, case.config, torch.tensor([5, 6]), state)
    with pytest.raises(ValueError, match=message):
        forward(case.weights, case.config, tokens, states[0])
    after = [forward(case.weights, case.config, torch.tensor([7]), state) for state in states]
    assert torch.equal(*after)
