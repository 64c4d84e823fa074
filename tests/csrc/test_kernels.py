"""Each kernel of per_op.cu against a line of the reference: fresh random inputs, poisoned outputs, odd sizes."""

import pytest
import torch
import torch.nn.functional as F
from models import CONFIGS
from tensors import assert_close, poisoned

from luce_edu.backends import make_backend
from luce_edu.reference.causal_conv import causal_conv
from luce_edu.reference.delta_rule import delta_rule_gates, delta_rule_step, l2_norm
from luce_edu.reference.rms_norm import gated_rms_norm, rms_norm
from luce_edu.reference.rope import apply_rope, rope_tables
from luce_edu.stages.dims import BLOCK_THREADS, kernel_defines
from luce_edu.stages.per_op import PerOpDecoder

NAN = float("nan")


class Kernels:
    """per_op.cu compiled for one config on the virtual GPU, with threads in shuffled order."""

    def __init__(self, config):
        self.config = config
        self.backend = make_backend("host", seed=7)
        self.module = self.backend.compile(PerOpDecoder.source, PerOpDecoder.kernels, kernel_defines(config))

    def run(self, name, grid, *args, smem=0):
        self.backend.launch(self.module[name], grid, BLOCK_THREADS, smem, args)


@pytest.fixture(scope="module", params=CONFIGS)
def kernels(request):
    return Kernels(CONFIGS[request.param])


def blocks(count, per_block=BLOCK_THREADS):
    return -(-count // per_block)


def warps(count):
    return blocks(count, BLOCK_THREADS // 32)


def test_embed_is_exact(kernels):
    c = kernels.config
    table = torch.randn(c.vocab_size, c.hidden_size).bfloat16()
    for token in (0, 1, c.vocab_size - 1):
        x = poisoned(c.hidden_size)
        for stored in (token, ~token):  # the model's own choice, and a token that the host has written
            kernels.run("embed", blocks(c.hidden_size), table, torch.tensor([stored], dtype=torch.int32), x.fill_(NAN))
            assert torch.equal(x, table[token].float())


def test_rms_norm_equals_reference(kernels):
    c = kernels.config
    x, weight, y = 3 * torch.randn(c.hidden_size), torch.randn(c.hidden_size), poisoned(c.hidden_size)
    kernels.run("rms_norm", 1, x, weight, y)
    assert_close(y, rms_norm(x, weight, eps=c.rms_norm_eps))


@pytest.mark.parametrize("cols", [8, 248, 256, 264, 1000])
@pytest.mark.parametrize("rows", [1, 15, 16, 33])
def test_matvec_equals_reference(kernels, rows, cols):
    W, x, y = torch.randn(rows, cols).bfloat16(), torch.randn(cols), poisoned(rows)
    kernels.run("matvec", warps(rows), W, x, y, rows, cols, smem=blocks(cols, 256) * 256 * 4)
    # Relative to sum |w x|: a sum that cancels is small, and its rounding error is not.
    error = (y.double() - F.linear(x.double(), W.double())).abs()
    size = F.linear(x.double().abs(), W.double().abs())
    assert torch.isfinite(y).all() and (error <= 5e-7 * size).all(), f"error {(error / size).max():.2e}"


def test_matvec_does_not_write_past_its_rows(kernels):
    rows, cols = 5, 64
    W, x, y = torch.randn(rows, cols).bfloat16(), torch.randn(cols), poisoned(rows + 32)
    kernels.run("matvec", warps(rows), W, x, y, rows, cols, smem=256 * 4)
    assert y[rows:].isnan().all() and not y[:rows].isnan().any()


def test_add_and_swiglu_equal_reference(kernels):
    c = kernels.config
    a, b, y = torch.randn(c.hidden_size), torch.randn(c.hidden_size), poisoned(c.hidden_size)
    kernels.run("add", blocks(c.hidden_size), a, b, y, c.hidden_size)
    assert torch.equal(y, a + b)
    gate, up = 4 * torch.randn(c.intermediate_size), torch.randn(c.intermediate_size)
    y = poisoned(c.intermediate_size)
    kernels.run("swiglu", blocks(c.intermediate_size), gate, up, y, c.intermediate_size)
    assert_close(y, F.silu(gate) * up)


def test_causal_conv_equals_reference_over_several_tokens(kernels):
    c = kernels.config
    weight = torch.randn(c.conv_dim, 1, c.linear_conv_kernel_dim)
    state = torch.randn(c.conv_dim, c.linear_conv_kernel_dim - 1)
    expected_state = state.clone()
    for _ in range(c.linear_conv_kernel_dim + 2):
        x = torch.randn(c.conv_dim)
        expected = causal_conv(x[None], weight, expected_state)[0]
        kernels.run("causal_conv", blocks(c.conv_dim), x, weight, state)
        assert_close(x, expected)
        assert torch.equal(state, expected_state)


def test_l2_norm_equals_reference_and_leaves_v_alone(kernels):
    c = kernels.config
    qkv = torch.randn(c.conv_dim)
    v = qkv[2 * c.key_dim :].clone()
    q, k = (part.view(-1, c.linear_key_head_dim).clone() for part in qkv[: 2 * c.key_dim].chunk(2))
    kernels.run("l2_norm", warps(2 * c.linear_num_key_heads), qkv)
    expected = torch.cat([l2_norm(q) * c.linear_key_head_dim**-0.5, l2_norm(k)]).flatten()
    assert_close(qkv[: 2 * c.key_dim], expected)
    assert torch.equal(qkv[2 * c.key_dim :], v)


def test_gates_equal_reference(kernels):
    heads = kernels.config.linear_num_value_heads
    b, a, A_log, dt_bias = (3 * torch.randn(heads) for _ in range(4))
    a[0] = 40.0  # beyond softplus' threshold
    beta, g = poisoned(heads), poisoned(heads)
    kernels.run("gates", blocks(heads), b, a, A_log, dt_bias, beta, g)
    expected_g, expected_beta = delta_rule_gates(a, b, A_log, dt_bias)
    assert_close(g, expected_g)
    assert_close(beta, expected_beta)


def test_delta_rule_equals_reference_over_several_tokens(kernels):
    c = kernels.config
    K, V, heads = c.linear_key_head_dim, c.linear_value_head_dim, c.linear_num_value_heads
    state = torch.randn(heads, K, V)
    expected_state = state.clone()
    served = heads // c.linear_num_key_heads
    for _ in range(5):
        q, k = (l2_norm(torch.randn(c.linear_num_key_heads, K)) for _ in range(2))
        q, v = q * K**-0.5, torch.randn(heads, V)
        beta, g, o = torch.rand(heads), -torch.rand(heads), poisoned(heads * V)
        qkv = torch.cat([q.flatten(), k.flatten(), v.flatten()])
        kernels.run("delta_rule", heads, qkv, beta, g, state, o)
        q, k = q.repeat_interleave(served, 0), k.repeat_interleave(served, 0)
        expected = delta_rule_step(q, k, v, beta=beta, g=g, recurrent_state=expected_state)
        assert_close(o, expected.flatten())
        assert_close(state, expected_state)


def test_gated_rms_norm_equals_reference(kernels):
    c = kernels.config
    shape = c.linear_num_value_heads, c.linear_value_head_dim
    o, z, weight, y = torch.randn(shape), torch.randn(shape), torch.randn(shape[1]), poisoned(*shape)
    kernels.run("gated_rms_norm", warps(shape[0]), o, z, weight, y)
    assert_close(y, gated_rms_norm(o, z, weight, eps=c.rms_norm_eps))


def test_head_norm_and_rope_equal_reference_and_leave_gates_alone(kernels):
    c = kernels.config
    heads, position = c.num_attention_heads, 37
    q = torch.randn(heads, 2, c.head_dim)
    before, weight = q.clone(), torch.randn(c.head_dim)
    cos, sin = rope_tables(torch.arange(64), rotary_dim=c.rotary_dim, theta=c.rope_theta)
    half = c.rotary_dim // 2
    kernels.run("head_norm", warps(heads), q, weight, heads, 2 * c.head_dim)
    tables = [table[:, :half].contiguous() for table in (cos, sin)]
    kernels.run("rope", warps(heads), q, *tables, position, heads, 2 * c.head_dim)
    normed = rms_norm(before[:, 0], weight, eps=c.rms_norm_eps)
    expected = apply_rope(normed[:, None], cos[position : position + 1], sin[position : position + 1])[:, 0]
    assert_close(q[:, 0], expected)
    assert torch.equal(q[:, 1], before[:, 1])


def test_cache_write_touches_one_position_only(kernels):
    c = kernels.config
    kv_dim = c.num_key_value_heads * c.head_dim
    x, cache = torch.randn(kv_dim), torch.randn(c.num_key_value_heads, 9, c.head_dim).bfloat16()
    expected = cache.clone()
    expected[:, 4] = x.view(c.num_key_value_heads, c.head_dim).bfloat16()
    kernels.run("cache_write", blocks(kv_dim), x, cache, 4, 9)
    assert torch.equal(cache, expected)


@pytest.mark.parametrize("position", [0, 1, 15, 16, 70])
def test_attention_in_four_kernels_equals_reference(kernels, position):
    c = kernels.config
    heads, room = c.num_attention_heads, 80
    q = torch.randn(heads, 2, c.head_dim)
    caches = [torch.randn(c.num_key_value_heads, room, c.head_dim).bfloat16() for _ in range(2)]
    for cache in caches:
        cache[:, position + 1 :] = 1e4  # later positions, which must not be read
    scores, o = poisoned(heads, room), poisoned(heads, c.head_dim)
    k, v = caches
    kernels.run("attention_scores", (warps(position + 1), heads), q, k, scores, position, room)
    kernels.run("softmax", heads, scores, position, room)
    kernels.run("attention_values", heads, scores, v, o, position, room)
    kernels.run("output_gate", blocks(heads * c.head_dim), o, q)
    k, v = (x[:, : position + 1].float().repeat_interleave(heads // c.num_key_value_heads, 0) for x in caches)
    expected = F.scaled_dot_product_attention(q[:, :1], k, v)[:, 0] * torch.sigmoid(q[:, 1])
    assert_close(o, expected)


@pytest.mark.parametrize("grid", [1, 3, 8])
def test_argmax_takes_the_lowest_of_equals_and_resets_its_counter(kernels, grid):
    c = kernels.config
    arrivals = torch.zeros(1, dtype=torch.int32)
    for trial in range(3):
        logits = torch.randn(c.vocab_size)
        best = sorted(torch.randperm(c.vocab_size)[:3].tolist())
        logits[best] = 10.0
        token = torch.full((1,), -1, dtype=torch.int32)
        kernels.run("argmax", grid, logits, poisoned(grid, 2), arrivals, token)
        assert token.item() == best[0], f"trial {trial}"
        assert arrivals.item() == 0
