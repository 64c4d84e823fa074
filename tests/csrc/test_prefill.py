"""Each kernel of prefill.cu against a line of the reference: fresh random inputs, poisoned outputs, odd sizes.

Inputs and caches are NaN from the sequence's end on, which must not matter. Outputs start as NaN, and keep these bits
where nothing may be written. A seed decides the order of warps.
"""

import dataclasses
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from models import CONFIGS
from piecewise import Piecewise
from tensors import FP32, assert_close, poisoned

from luce_edu.errors import KernelError
from luce_edu.faults import Fault, planted
from luce_edu.reference.attention import causal_attention
from luce_edu.reference.causal_conv import causal_conv
from luce_edu.reference.delta_rule import delta_rule_gates, delta_rule_recurrent, l2_norm
from luce_edu.reference.rms_norm import gated_rms_norm, rms_norm
from luce_edu.reference.rope import apply_rope, rope_tables
from luce_edu.stages.prefill import (
    ATTENTION_THREADS,
    BLOCK_ROWS,
    BLOCK_THREADS,
    CHUNK,
    CONV_TOKENS,
    FORGETS_ALL,
    KEY_BLOCK,
    WARPS,
    prefill_defines,
)

LENGTHS = (1, 2, 3, 63, 64, 65, 127)
BF16 = 2.0**-8  # the largest relative error of rounding to bf16
TF32 = 2.0**-11  # the same for rounding to TF32
CUT = 2.0**-14  # the same for cutting to two bf16 numbers
SUMS = 2.0**-21  # relative error of exp(G_i - G_j) for each unit of G: two sums in six rounded steps each
NAN = float("nan")


class Kernels:
    """prefill.cu for one config on the virtual GPU, with threads in shuffled order; a kernel is compiled at first use.

    So a test with a fault or another size compiles only the pieces that it runs.
    """

    def __init__(self, config, *faults, card=None):
        self.config = config
        self.defines = prefill_defines(config)
        self.planted = ExitStack()  # its tree stays until the last kernel is compiled
        self.backend = Piecewise(csrc_dir=self.planted.enter_context(planted(*faults)), seed=7, card=card)
        self.compiled = {}
        self.value_width = config.conv_dim + config.value_dim
        self.deltanet_width = self.value_width + 2 * config.linear_num_value_heads
        self.key_width = blocks(config.linear_key_head_dim, KEY_BLOCK) * KEY_BLOCK
        self.q_dim, self.kv_dim = (
            n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.attention_width = 2 * self.q_dim + 2 * self.kv_dim

    def run(self, name, grid, *args, threads=BLOCK_THREADS):
        if name not in self.compiled:
            self.compiled[name] = self.backend.compile("prefill.cu", [name], self.defines)[name]
        self.backend.launch(self.compiled[name], grid, threads, 0, args)


def without_rounding(config):
    """Kernels whose operands are not rounded to TF32, with products in fp32 as on Turing: only fp32's error is left."""
    return Kernels(config, Fault("", "tensor_core.cuh", "(bits + 0x1000u) & 0xffffe000u", "bits"), card="T4")


@pytest.fixture(scope="module", params=CONFIGS)
def kernels(request):
    return Kernels(CONFIGS[request.param])


@pytest.fixture(scope="module", params=CONFIGS)
def unrounded(request):
    return without_rounding(CONFIGS[request.param])


def blocks(count, per_block):
    return -(-count // per_block)


def whole_chunks(tokens):
    return blocks(tokens, CHUNK) * CHUNK


def drawn(length, rows, width):
    """bf16 [rows, width], random up to `length` and NaN from there on."""
    x = torch.full((rows, width), NAN, dtype=torch.bfloat16)
    x[:length] = torch.randn(length, width)
    return x


def segment(position, length, tokens=None):
    """The int32 tensor that the kernels read: position, length, then the tokens."""
    head = torch.tensor([position, length], dtype=torch.int32)
    return head if tokens is None else torch.cat([head, tokens.int()])


def assert_rounded(x, reference):
    """x is bf16, and each element is the reference's, rounded once. Near 0, fp32's error of the largest is allowed."""
    error = (x.double() - reference.double()).abs()
    allowed = 1.01 * BF16 * reference.double().abs() + FP32 * reference.abs().max()
    assert x.dtype == torch.bfloat16 and (error <= allowed).all(), f"{(error / allowed).max():.3f} of what is allowed"


def assert_untouched(x):
    """Nothing was written to any element of a poisoned tensor."""
    assert (x.contiguous().view(torch.uint8) == 0xFF).all()


# ---- Between the products ----


@pytest.mark.parametrize("length", [1, 2, 63, 65])
def test_embed_norm_is_exact_and_leaves_the_last_row_as_hidden(kernels, length):
    c, rows = kernels.config, whole_chunks(length)
    table, norm = torch.randn(c.vocab_size, c.hidden_size).bfloat16(), torch.randn(c.hidden_size)
    tokens = torch.randint(c.vocab_size, (rows,))
    tokens[0], tokens[length:] = c.vocab_size - 1, -1
    x, normed = poisoned(rows, c.hidden_size), poisoned(rows, c.hidden_size, dtype=torch.bfloat16)
    hidden = poisoned(c.hidden_size)
    kernels.run("embed_norm", rows, table, segment(5, length, tokens), norm, x, normed, hidden)
    expected = table[tokens[:length]].float()
    assert torch.equal(x[:length], expected) and torch.equal(hidden, expected[-1])
    assert_rounded(normed[:length], rms_norm(expected, norm, eps=c.rms_norm_eps))
    assert_untouched(x[length:]), assert_untouched(normed[length:])


@pytest.mark.parametrize("is_layer_end", [0, 1])
@pytest.mark.parametrize("length", [1, 64, 65])
def test_add_norm_equals_reference_and_leaves_the_last_row_as_hidden_at_a_layers_end(kernels, length, is_layer_end):
    c, rows = kernels.config, whole_chunks(length)
    y, x = drawn(length, rows, c.hidden_size), poisoned(rows, c.hidden_size)
    x[:length] = 30 * torch.randn(length, c.hidden_size)
    norm, hidden = torch.randn(c.hidden_size), poisoned(c.hidden_size)
    normed = poisoned(rows, c.hidden_size, dtype=torch.bfloat16)
    expected = (x + y.float())[:length]
    kernels.run("add_norm", rows, y, segment(0, length), norm, x, normed, hidden, is_layer_end)
    assert torch.equal(x[:length], expected)
    assert_rounded(normed[:length], rms_norm(expected, norm, eps=c.rms_norm_eps))
    assert torch.equal(hidden, expected[-1]) if is_layer_end else hidden.isnan().all()
    assert_untouched(x[length:]), assert_untouched(normed[length:])


@pytest.mark.parametrize("length", [1, 64, 65])
def test_last_hidden_is_the_sum_of_the_last_row(kernels, length):
    c, rows = kernels.config, whole_chunks(length)
    y, x, hidden = drawn(length, rows, c.hidden_size), torch.randn(rows, c.hidden_size), poisoned(c.hidden_size)
    kernels.run("last_hidden", blocks(c.hidden_size, BLOCK_THREADS), y, segment(9, length), x, hidden)
    assert torch.equal(hidden, x[length - 1] + y[length - 1].float())


@pytest.mark.parametrize("length", [1, 3, 64, 65])
def test_swiglu_equals_reference(kernels, length):
    c, rows = kernels.config, whole_chunks(length)
    projected = drawn(length, rows, 2 * c.intermediate_size)
    act = poisoned(rows, c.intermediate_size, dtype=torch.bfloat16)
    kernels.run("swiglu", blocks(rows * c.intermediate_size // 8, BLOCK_THREADS), projected, segment(0, length), act)
    gate, up = projected[:length].float().chunk(2, dim=-1)
    assert_rounded(act[:length], F.silu(gate) * up)
    assert_untouched(act[length:])


@pytest.mark.parametrize("length", [1, 3, 64, 65])
def test_gated_rms_norm_equals_reference(kernels, length):
    c, rows = kernels.config, whole_chunks(length)
    heads, V = c.linear_num_value_heads, c.linear_value_head_dim
    projected, o, weight = drawn(length, rows, kernels.deltanet_width), torch.randn(rows, heads, V), torch.randn(V)
    o[length:] = NAN
    mixed = poisoned(rows, heads * V, dtype=torch.bfloat16)
    kernels.run("gated_rms_norm", blocks(rows * heads, WARPS), o, projected, segment(0, length), weight, mixed)
    z = projected[:length, c.conv_dim : kernels.value_width].unflatten(-1, (heads, V)).float()
    assert_rounded(mixed[:length], gated_rms_norm(o[:length], z, weight, eps=c.rms_norm_eps).flatten(1))
    assert_untouched(mixed[length:])


def test_lm_head_equals_reference_and_resets_its_counter(kernels):
    c = kernels.config
    x, norm, head = torch.randn(c.hidden_size), torch.randn(c.hidden_size), torch.randn(c.vocab_size, c.hidden_size)
    head, arrivals = head.bfloat16(), torch.zeros(1, dtype=torch.int32)
    for blocks in (1, 8):
        logits, token = poisoned(c.vocab_size), torch.full((1,), -1, dtype=torch.int32)
        kernels.run("lm_head", blocks, x, norm, head, logits, poisoned(blocks, 2), arrivals, token)
        assert_close(logits, F.linear(rms_norm(x, norm, eps=c.rms_norm_eps), head.float()), FP32)
        assert token.item() == logits.argmax() and arrivals.item() == 0


# ---- DeltaNet ----


@pytest.mark.parametrize("length", [*LENGTHS, 16, 17])
def test_causal_conv_equals_reference_and_pads_with_zeros(kernels, length):
    check_causal_conv(kernels, length)


def check_causal_conv(kernels, length):
    c, rows = kernels.config, whole_chunks(length)
    key_heads, heads, K = c.linear_num_key_heads, c.linear_num_value_heads, c.linear_key_head_dim
    projected = drawn(length, rows + CHUNK, kernels.deltanet_width)
    weight, state = torch.randn(c.conv_dim, 1, c.linear_conv_kernel_dim), torch.randn(c.conv_dim, history(c))
    qkv = poisoned(rows + CHUNK, 2 * key_heads * kernels.key_width + c.value_dim, dtype=torch.bfloat16)
    expected_state = state.clone()
    expected = causal_conv(projected[:length, : c.conv_dim].float(), weight, expected_state)
    units = (2 * key_heads + heads) * ((rows + CHUNK) // CONV_TOKENS)
    kernels.run("causal_conv", blocks(units, WARPS), projected, segment(3, length), weight, state, qkv)
    assert torch.equal(state, expected_state)
    q, k, v = expected.split([c.key_dim, c.key_dim, c.value_dim], dim=-1)
    q, k = (F.pad(l2_norm(x.unflatten(-1, (-1, K))), (0, kernels.key_width - K)) for x in (q, k))
    expected = torch.cat([(q * K**-0.5).flatten(1), k.flatten(1), v], dim=1)
    for got, wanted in zip(split_qkv(kernels, qkv[:length]), split_qkv(kernels, expected), strict=True):
        assert_rounded(got, wanted)
    assert (split_qkv(kernels, qkv[:length])[0][..., K:] == 0).all()
    assert (qkv[length:rows] == 0).all()
    assert_untouched(qkv[rows:])


def history(config):
    return config.linear_conv_kernel_dim - 1


def split_qkv(kernels, qkv):
    """q, k [tokens, key heads, key_width] and v [tokens, value heads, V]."""
    c = kernels.config
    width = c.linear_num_key_heads * kernels.key_width
    q, k, v = qkv.split([width, width, c.value_dim], dim=-1)
    q, k = (x.unflatten(-1, (c.linear_num_key_heads, kernels.key_width)) for x in (q, k))
    return q, k, v.unflatten(-1, (c.linear_num_value_heads, -1))


class DeltaRule:
    """Inputs and outputs of prepare and scan. Heads differ in how fast they forget, from never to at once."""

    def __init__(self, kernels, length, keys="random"):
        c, rows = kernels.config, whole_chunks(length)
        heads, K, V = c.linear_num_value_heads, c.linear_key_head_dim, c.linear_value_head_dim
        self.kernels, self.length, self.rows = kernels, length, rows
        q, k = (torch.randn(length, c.linear_num_key_heads, K) for _ in range(2))
        if keys == "equal":
            k[:] = k[0]
        q = k + 0.3 * q  # keeps q.k away from 0, where the output of the first token would be nearly 0 too
        q, k = (F.pad(l2_norm(x), (0, kernels.key_width - K)) for x in (q, k))
        width = 2 * c.linear_num_key_heads * kernels.key_width + c.value_dim
        self.qkv = poisoned(rows + CHUNK, width, dtype=torch.bfloat16)
        self.qkv[:rows] = 0
        self.qkv[:length] = torch.cat([(q * K**-0.5).flatten(1), k.flatten(1), torch.randn(length, c.value_dim)], dim=1)
        self.projected = poisoned(rows + CHUNK, kernels.deltanet_width, dtype=torch.bfloat16)
        self.projected[:length, kernels.value_width :] = 2 * torch.randn(length, 2 * heads)
        self.A_log, self.dt_bias = torch.linspace(-12.0, 3.0, heads), torch.randn(heads)
        self.state = torch.randn(heads, K, V)
        self.expected_state = self.state.clone()
        chunks = rows // CHUNK + 1
        self.T, self.A = (poisoned(chunks, heads, CHUNK, CHUNK) for _ in "TA")
        self.G = poisoned(chunks, heads, CHUNK)
        self.o = poisoned(rows + CHUNK, heads, V)

    def gates(self):
        b, a = self.projected[: self.length, self.kernels.value_width :].float().chunk(2, dim=-1)
        return delta_rule_gates(a, b, self.A_log, self.dt_bias)

    def qkv_of_value_heads(self):
        c = self.kernels.config
        q, k, v = (x.float() for x in split_qkv(self.kernels, self.qkv[: self.length]))
        served = c.linear_num_value_heads // c.linear_num_key_heads
        q, k = (x[..., : c.linear_key_head_dim].repeat_interleave(served, dim=-2) for x in (q, k))
        return q, k, v

    def run(self):
        tokens, between = segment(11, self.length), (self.T, self.A, self.G)
        heads, V = self.o.shape[1:]
        self.kernels.run(
            "delta_rule_prepare", (heads, self.rows // CHUNK + 1), self.projected, tokens, self.qkv, self.A_log,
            self.dt_bias, *between,
        )  # fmt: skip
        self.kernels.run("delta_rule_scan", (heads, V // 8), tokens, self.qkv, *between, self.state, self.o)
        g, beta = self.gates()
        q, k, v = self.qkv_of_value_heads()
        expected = delta_rule_recurrent(q, k, v, beta=beta, g=g, recurrent_state=self.expected_state)
        return expected


@pytest.mark.parametrize("keys", ["random", "equal"])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_delta_rule_in_chunks_equals_the_recurrence(unrounded, length, keys):
    check_delta_rule(unrounded, length, keys, limit=10 * FP32)


@pytest.mark.parametrize("length", LENGTHS)
def test_rounding_to_tf32_costs_the_delta_rule_no_more_than_four_operands(kernels, length):
    check_delta_rule(kernels, length, limit=4 * TF32)  # rounded: the state, r, T, A and the corrections


def check_delta_rule(kernels, length, keys="random", *, limit):
    case = DeltaRule(kernels, length, keys)
    expected = case.run()
    for head in range(kernels.config.linear_num_value_heads):  # one by one, so that a large head hides no other
        allowed = limit + SUMS * float(case.G[: case.rows // CHUNK, head].abs().max())
        assert_close(case.o[:length, head], expected[:, head], allowed)
        assert_close(case.state[head], case.expected_state[head], allowed)
    for x in (case.T, case.A, case.G):
        assert_untouched(x[case.rows // CHUNK :])
    assert_untouched(case.o[case.rows :])


def test_a_token_that_forgets_everything_leaves_the_sums_before_it_exact(kernels):
    """A lane adds up g of two tokens. If it subtracted one of them again, a small sum before it would be lost."""
    case = DeltaRule(kernels, 64)
    heads = case.o.shape[1]
    case.A_log[:] = case.dt_bias[:] = 0
    case.projected[0:64:2, kernels.value_width + heads :] = -3  # g = -0.05
    case.projected[1:64:2, kernels.value_width + heads :] = 1e5
    case.run()
    g, _ = case.gates()
    first = case.G[0, :, 0]
    assert g[1].max() < -9e4 and ((first - g[0]).abs() <= FP32 * g[0].abs()).all()


@pytest.mark.planted
def test_a_sum_that_is_taken_apart_by_subtraction_is_caught():
    fault = Fault("cancels", "delta_rule_chunk.cuh", "= {before + g[0], sum};", "= {sum - g[1], sum};")
    with pytest.raises(AssertionError):
        test_a_token_that_forgets_everything_leaves_the_sums_before_it_exact(Kernels(CONFIGS["tiny"], fault))


@pytest.mark.parametrize("length", [1, 64, 65, 127])
def test_prepare_equals_a_triangular_solve(kernels, length):
    case = DeltaRule(kernels, length)
    case.run()
    heads, chunks = kernels.config.linear_num_value_heads, case.rows // CHUNK
    g, beta = (F.pad(x, (0, 0, 0, case.rows - length)).unflatten(0, (chunks, CHUNK)).mT for x in case.gates())
    padded = (F.pad(x, (0, 0, 0, 0, 0, case.rows - length)) for x in case.qkv_of_value_heads())
    q, k, _ = (x.unflatten(0, (chunks, CHUNK)).transpose(1, 2) for x in padded)
    G = g.clamp_min(FORGETS_ALL).cumsum(-1)
    assert_close(case.G[:chunks], G, FP32)
    of_exp = SUMS * G.abs().amax((0, 2))  # by head
    decay = (G[..., :, None] - G[..., None, :]).tril().exp()
    A = ((q @ k.mT) * decay).tril()
    error = (case.A[:chunks] - A).abs()
    assert (error <= (1.01 * TF32 + of_exp[:, None, None]) * A.abs() + 1e-6).all()
    L = (beta[..., None] * (k @ k.mT) * decay).tril(-1)
    solved = torch.linalg.solve_triangular(L, torch.diag_embed(beta), upper=False, unitriangular=True)
    for head in range(heads):
        assert_close(case.T[:chunks, head], solved[:, head], TF32 + of_exp[head])
    assert (case.T[:chunks].view(torch.int32) & 0x1FFF == 0).all(), "T is rounded to TF32"


# ---- Attention ----


@pytest.mark.parametrize("position, length", [(0, 1), (0, 65), (5, 3), (60, 64), (37, 127)])
def test_attention_prepare_equals_reference_and_writes_its_positions_only(kernels, position, length):
    c, rows = kernels.config, whole_chunks(length)
    heads, kv_heads, D, room = c.num_attention_heads, c.num_key_value_heads, c.head_dim, position + length + 2
    projected = drawn(length, rows, kernels.attention_width)
    q_norm, k_norm = torch.randn(D), torch.randn(D)
    cos, sin = rope_tables(torch.arange(room), rotary_dim=c.rotary_dim, theta=c.rope_theta)
    half = c.rotary_dim // 2
    q = poisoned(rows, heads, D, dtype=torch.bfloat16)
    caches = [poisoned(kv_heads, room, D, dtype=torch.bfloat16) for _ in range(2)]
    kernels.run(
        "attention_prepare", blocks(rows * (heads + 2 * kv_heads), WARPS), projected, segment(position, length), q_norm,
        k_norm, cos[:, :half].contiguous(), sin[:, :half].contiguous(), q, *caches, room,
    )  # fmt: skip
    at = slice(position, position + length)
    sizes = [2 * kernels.q_dim, kernels.kv_dim, kernels.kv_dim]
    in_q, in_k, in_v = (x.unflatten(-1, (-1, D)) for x in projected[:length].split(sizes, dim=-1))
    in_q = in_q.unflatten(1, (heads, 2))[:, :, 0]
    normed = [rms_norm(x.float(), w, eps=c.rms_norm_eps) for x, w in ((in_q, q_norm), (in_k, k_norm))]
    expected_q, expected_k = (apply_rope(x, cos[at], sin[at]) for x in normed)
    assert_rounded(q[:length], expected_q * D**-0.5)
    assert_rounded(caches[0][:, at].transpose(0, 1), expected_k)
    assert torch.equal(caches[1][:, at].transpose(0, 1), in_v)
    assert_untouched(q[length:])
    for cache in caches:
        assert_untouched(cache[:, :position]), assert_untouched(cache[:, position + length :])


POSITIONS = [*((0, length) for length in LENGTHS), (1, 1), (31, 33), (32, 32), (64, 3), (100, 65), (200, 1), (255, 2)]


@pytest.mark.parametrize("position, length", POSITIONS)
def test_attention_equals_reference(kernels, position, length):
    check_attention(kernels, position, length)


def check_attention(kernels, position, length, spread=1.0):
    c, rows = kernels.config, whole_chunks(length)
    heads, kv_heads, D, room = c.num_attention_heads, c.num_key_value_heads, c.head_dim, position + length + 3
    q, projected = drawn(length, rows, kernels.q_dim), drawn(length, rows, kernels.attention_width)
    q *= spread * D**-0.5
    caches = [torch.randn(kv_heads, room, D).bfloat16() for _ in range(2)]
    for cache in caches:
        cache[:, position + length :] = NAN
    mixed = poisoned(rows, heads, D, dtype=torch.bfloat16)
    grid = (kv_heads, blocks(rows * (heads // kv_heads), BLOCK_ROWS))
    args = (q, *caches, projected, segment(position, length), mixed, room)
    kernels.run("attention", grid, *args, threads=ATTENTION_THREADS)
    k, v = (cache[:, : position + length].transpose(0, 1).double() for cache in caches)
    queries = q[:length].unflatten(-1, (heads, D)).double() * D**0.5
    gate = projected[:length, : 2 * kernels.q_dim].unflatten(-1, (heads, 2, D))[:, :, 1].double()
    expected = causal_attention(queries, k, v) * gate.sigmoid()
    # Weights are cut to two bf16 numbers. The error is relative to the sum of sizes, since a sum may cancel.
    size = causal_attention(queries, k, v.abs()) * gate.sigmoid()
    error = (mixed[:length].double() - expected).abs()
    allowed = 1.01 * BF16 * expected.abs() + 2 * CUT * size
    assert (error <= allowed).all(), f"error {(error / allowed).max():.2f} of what is allowed"
    assert_untouched(mixed[length:])


@pytest.mark.parametrize("position, length", [(0, 127), (150, 65)])
def test_attention_to_few_keys_of_many_equals_reference(kernels, position, length):
    """Scores lie so far apart that at each step either the old sums or the new ones become nearly 0."""
    check_attention(kernels, position, length, spread=12.0)


# ---- Other sizes than those of CONFIGS ----

SIZES = {
    "heads of 8 and 4 taps": {"head_dim": 8, "linear_key_head_dim": 2, "linear_conv_kernel_dim": 4},
    "2 taps and heads of 64": {"head_dim": 64, "linear_key_head_dim": 66, "linear_conv_kernel_dim": 2},
    "one head each": {
        "num_attention_heads": 1, "num_key_value_heads": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
        "linear_key_head_dim": 30,
    },
    "keys of 200, 17 taps": {"linear_key_head_dim": 200, "linear_conv_kernel_dim": 17, "linear_value_head_dim": 32},
    "keys of 1024": {
        "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 1024,
    },
    "seven query heads": {"num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 16},
}  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES)
def test_kernels_equal_the_reference_at_other_sizes(sizes):
    kernels = without_rounding(dataclasses.replace(CONFIGS["tiny"], **SIZES[sizes]))
    for length in (1, 65):
        check_causal_conv(kernels, length)
        check_delta_rule(kernels, length, limit=10 * FP32)
        check_attention(kernels, 7, length)


# ---- Planted: reads past the sequence, which finite noise in the cache would hide ----

PLANTS = {
    "keys past the sequence": (
        "causal_attention.cuh", "static_cast<size_t>(min(first + key, keys - 1))", "static_cast<size_t>(first + key)",
        check_attention, (3, 30),
    ),
    "rows past the sequence written": (
        "causal_attention.cuh", "if (token[half] >= a.length) continue;", "", check_attention, (0, 63),
    ),
    "old inputs of a short prompt forgotten": (
        "causal_conv_sequence.cuh", ": state[history + t];", ": 0.0f;", check_causal_conv, (1,),
    ),
    "the state's inputs one too new": (
        "causal_conv_sequence.cuh", "conv_state[(c + h) * history + history + t]",
        "conv_state[(c + h) * history + (history + t + 1) % history]", check_causal_conv, (5,),
    ),
}  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("plant", PLANTS)
def test_the_check_catches(plant):
    path, old, new, check, case = PLANTS[plant]
    with pytest.raises((AssertionError, KernelError)):
        check(Kernels(CONFIGS["tiny"], Fault("", path, old, new)), *case)
