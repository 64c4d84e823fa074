"""Compare stages made of kernels with fp64, by the error of fp32, so that small faults show.

The error of bf16 hides a fault a hundred times smaller than itself. A stage made of kernels computes in fp32 and rounds
to fewer bits only where it says so. So it is also compared with the model in fp64, with the roundings that the stage
states. The baseline is the same model in fp32 PyTorch: two programs that round in fp32 at different places have errors
of about the same size.

A sum that comes out 1e-7 higher may round up instead of down. That is no fault, yet it moves a number by a whole step
of bf16. So a value that a stage has rounded and stored must lie within half a step of the exact value, and the code
that reads it is judged with the stored value as its input.
  Decoding rounds only the KV cache: the fp64 model reads the cache that the stage wrote (`stated_run`).
  A prompt rounds between any two kernels: each launch is judged on its own inputs (`PromptListener`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from luce_edu.errors import CaptureError
from luce_edu.reference.causal_conv import causal_conv
from luce_edu.reference.delta_rule import delta_rule_gates, l2_norm
from luce_edu.reference.model import forward
from luce_edu.reference.rms_norm import gated_rms_norm, rms_norm
from luce_edu.reference.rope import apply_rope, rope_tables
from luce_edu.stages.prefill import CHUNK, FORGETS_ALL
from luce_edu.state import DecodeState

FP32_LIMIT = 3.0  # times the error of fp32 PyTorch: a kernel adds in another order, so its error differs
BF16_BITS, TF32_BITS = 8, 11  # significant bits, the hidden one included
HALF_STEP_OF_FP32 = 2.0**-24
# What a tensor core's sum may lose per term, as a share of the largest result. A tensor core truncates, at about 2^-23,
# once per 8 or 16 terms. This is our estimate; it has not been measured on a GPU.
CUT_PER_TERM = 2.0**-26


def half_step(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return, in fp64, half the distance between neighbouring numbers of `bits` significant bits, at each x."""
    _, exponent = torch.frexp(x.double())  # x = m * 2^exponent with |m| in [0.5, 1)
    exponent = torch.where(x == 0, -125, exponent).clamp_min(-125)
    return torch.ldexp(torch.ones_like(x, dtype=torch.float64), exponent - bits - 1)


def excess(
    got: torch.Tensor,
    exact: torch.Tensor,
    fp32: torch.Tensor,
    *,
    bits: int | None = None,
    cut: float = 0.0,
    even: bool = True,
) -> float:
    """Return the error of `got` divided by the error of fp32; infinity if any of the three tensors is not finite.

    exact, fp32  the same tensor computed in fp64 and in fp32 PyTorch
    bits         significant bits of the format that `got` was rounded to last. None: the norms of both errors are
                 compared. Otherwise each element may be half a step away, and the largest distance beyond that is
                 compared with fp32's largest error
    cut          what tensor cores may lose by truncation, relative to the largest exact element
    even         whether a value exactly halfway between two bf16 numbers must be rounded to the even one. False for
                 products of bf16 numbers: their exact sums often lie halfway, and sums in fp32 slightly off
    """
    if not all(torch.isfinite(x).all() for x in (got, exact, fp32)):
        return float("inf")
    if exact.numel() == 0:  # such as the cache of a model without attention
        return 0.0
    got, fp32 = got.double(), fp32.double()
    if bits is None:
        error, allowed = torch.linalg.vector_norm(got - exact), torch.linalg.vector_norm(fp32 - exact)
        # At least half a step of fp32 is allowed, even where the rounding errors of fp32 happened to cancel.
        floor = max(cut, HALF_STEP_OF_FP32 if allowed > 0 else 0.0)
        allowed = allowed.clamp_min(floor * float(torch.linalg.vector_norm(exact)))
    else:
        step = half_step(exact, bits)
        away = (got - exact).abs()
        is_tie = torch.remainder(exact.abs(), 2 * step) == step
        neighbour = torch.round(exact / (2 * step)) * 2 * step  # torch.round takes a half to the even one
        away = torch.where(is_tie & (even and bits == BF16_BITS), step + (got - neighbour).abs(), away)
        error = (away - step).max().clamp_min(0.0)
        allowed = (fp32 - exact).abs().max().clamp_min(cut * float(exact.abs().max()))
    # Where fp32 is exact, such as in the embedding, the stage must be exact too.
    return float(error / allowed) if allowed > 0 else (0.0 if error == 0 else float("inf"))


# ---- Decoding


class _GivenCache:
    """A KV cache whose reads give what the stage wrote, while writes of the reference go to a tensor of their own."""

    def __init__(self, given: torch.Tensor, written: torch.Tensor):
        self.given, self.written, self.shape = given, written, given.shape

    def __getitem__(self, where):
        if isinstance(where, int):  # a layer
            return _GivenCache(self.given[where], self.written[where])
        return self.given[where]

    def __setitem__(self, where, value):
        self.written[where] = value


def stated_run(model, tokens: Sequence[int], caches: dict[str, torch.Tensor], dtype: torch.dtype, device):
    """Run the model in `dtype` on all tokens at once by the recurrence, reading the bf16 caches that a stage wrote.

    caches  k_cache and v_cache [attention layers, num_key_value_heads, len(tokens), head_dim]
    Returns logits [tokens, vocab_size], hidden_states [tokens, layers + 1, hidden_size] and the states, whose caches
    hold the values that should have been written, before rounding. All in `dtype`, on the CPU.
    """
    state = DecodeState.empty(model.config, len(tokens), device=device, dtype=dtype)
    for name, cache in caches.items():
        given = cache.to(device, torch.bfloat16)
        setattr(state, name, _GivenCache(given, torch.zeros(given.shape, dtype=dtype, device=device)))
    trace: list[torch.Tensor] = []
    with torch.no_grad():
        logits = forward(
            model.weights_on(device), model.config, torch.tensor(tokens, device=device), state, dtype=dtype,
            chunked=False, trace=trace,
        )  # fmt: skip
    states = {name: getattr(state, name) for name in DecodeState.TENSORS}
    states = {name: getattr(tensor, "written", tensor).cpu() for name, tensor in states.items()}
    return logits.cpu(), torch.stack(trace, dim=1).cpu(), states


# ---- Prompts


def _tf32(x: torch.Tensor) -> torch.Tensor:
    """Round x to TF32 if it is fp32; return fp64 unchanged."""
    if x.dtype == torch.float64:
        return x
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _two_bf16(x: torch.Tensor) -> torch.Tensor:
    """Cut x to the sum of two bf16 numbers, its upper eight bits and the next eight, if it is fp32; else unchanged."""
    if x.dtype == torch.float64:
        return x
    upper = (x.contiguous().view(torch.int32) & ~0xFFFF).view(torch.float32)
    return upper + ((x - upper).view(torch.int32) & ~0xFFFF).view(torch.float32)


@dataclass(frozen=True)
class _Output:
    """One output of a kernel: what it wrote, what it should have written, and how it rounds; see `excess`."""

    name: str
    got: torch.Tensor
    expected: torch.Tensor
    bits: int | None = None
    cut: float = 0.0


class PromptListener:
    """Compare each kernel of a prompt with the maths on its own inputs, while the backend runs the prompt.

    worst  {"kernel: output": the largest excess() so far}
    """

    # By kernel, the index of the argument that it updates in place.
    IN_PLACE = {"add_norm": 3, "causal_conv": 3, "delta_rule_scan": 5}

    def __init__(self, config):
        self.config = config
        self.worst: dict[str, float] = {}
        self._length = 0  # of the segment that is being read: a product does not get it as an argument

    @contextmanager
    def listening_to(self, decoder):
        """Judge all launches of the prompts that the decoder reads meanwhile; they run one by one, not as graphs."""
        backend, usual_launch, usual_matmul = decoder.backend, decoder.backend.launch, decoder.backend.matmul

        def launch(kernel, grid, block, smem, args, **how):
            before = args[self.IN_PLACE[kernel.name]].clone() if kernel.name in self.IN_PLACE else None
            usual_launch(kernel, grid, block, smem, args, **how)
            contract = getattr(self, f"_{kernel.name}")
            exact, fp32 = (contract(dtype, before, *args) for dtype in (torch.float64, torch.float32))
            for output, other in zip(exact, fp32, strict=True):
                self._note(
                    f"{kernel.name}: {output.name}",
                    excess(output.got, output.expected, other.expected, bits=output.bits, cut=output.cut),
                )

        def matmul(x, weights, out):
            usual_matmul(x, weights, out)
            rows = x[: self._length]
            exact, fp32 = (
                torch.cat([F.linear(rows.to(dtype), weight.to(dtype)) for weight in weights], dim=-1)
                for dtype in (torch.float64, torch.float32)
            )
            cut = x.shape[1] * CUT_PER_TERM
            self._note("matmul", excess(out[: self._length], exact, fp32, bits=BF16_BITS, cut=cut, even=False))

        def capture(enqueue):
            raise CaptureError("the launches of a graph cannot be judged one by one")

        self._forget_graphs(decoder)
        backend.launch, backend.matmul, backend.capture = launch, matmul, capture
        try:
            yield
        finally:
            del backend.launch, backend.matmul, backend.capture
            self._forget_graphs(decoder)  # so that later prompts try again to capture one

    @staticmethod
    def _forget_graphs(decoder) -> None:
        if decoder._prefill is not None:
            decoder._prefill.forget_graphs()

    def problems(self) -> list[str]:
        """Name the first output that exceeds FP32_LIMIT, as one line; an empty list if there is none."""
        exceeded = [what for what, ratio in self.worst.items() if not ratio <= FP32_LIMIT]
        if not exceeded:
            return []
        first = exceeded[0]
        return [
            f"{first} is the first of {len(exceeded)} outputs of kernels that differ: {self.worst[first]:.3g} times "
            f"fp32's error, limit {FP32_LIMIT}"
        ]

    def _note(self, what: str, ratio: float) -> None:
        self.worst[what] = max(ratio, self.worst.get(what, 0.0))

    # The methods below compute in `dtype` what each kernel of csrc/prefill.cu should have written, from the arguments
    # that it got (luce_edu/stages/prefill.py). `before` is the argument of IN_PLACE before the launch. Rows from
    # `length` on are unused.

    def _embed_norm(self, dtype, before, embed_tokens, tokens, norm, x, normed, hidden):
        self._length = length = int(tokens[1])
        return self._normed(embed_tokens[tokens[2 : 2 + length].long()].to(dtype), norm, x, normed, hidden)

    def _add_norm(self, dtype, before, y, tokens, norm, x, normed, hidden, is_layer_end):
        length = int(tokens[1])
        rows = before[:length].to(dtype) + y[:length].to(dtype)
        return self._normed(rows, norm, x, normed, hidden if is_layer_end else None)

    def _normed(self, rows, norm, x, normed, hidden):
        outputs = [
            _Output("x", x[: len(rows)], rows),
            # The kernel normalises the x that it has stored, in which the sum is already rounded.
            _Output(
                "normed", normed[: len(rows)],
                rms_norm(x[: len(rows)].to(rows.dtype), norm, eps=self.config.rms_norm_eps), BF16_BITS,
            ),
        ]  # fmt: skip
        return outputs + ([_Output("hidden", hidden, rows[-1])] if hidden is not None else [])

    def _last_hidden(self, dtype, before, y, tokens, x, hidden):
        last = int(tokens[1]) - 1
        return [_Output("hidden", hidden, x[last].to(dtype) + y[last].to(dtype))]

    def _causal_conv(self, dtype, conv_state, projected, tokens, weight, after, qkv):
        c, length = self.config, int(tokens[1])
        state = conv_state.to(dtype, copy=True)
        inputs = _rows(projected, length, _deltanet_width(c))[:, : c.conv_dim].to(dtype)
        q, k, v = causal_conv(inputs, weight, state).split([c.key_dim, c.key_dim, c.value_dim], dim=-1)
        padding = (0, _key_width(qkv, c) - c.linear_key_head_dim)
        q, k = (F.pad(l2_norm(x.unflatten(-1, (-1, c.linear_key_head_dim))), padding) for x in (q, k))
        q = q * c.linear_key_head_dim**-0.5
        return [
            _Output("conv_state", after, state),
            *(
                _Output(name, qkv[:length].split([q[0].numel(), k[0].numel(), c.value_dim], dim=-1)[i], x, BF16_BITS)
                for i, (name, x) in enumerate((("q", q.flatten(1)), ("k", k.flatten(1)), ("v", v)))
            ),
        ]

    def _delta_rule_prepare(self, dtype, before, projected, tokens, qkv, A_log, dt_bias, T, A, G):
        c, length = self.config, int(tokens[1])
        heads, chunks = c.linear_num_value_heads, -(-length // CHUNK)
        b, a = _rows(projected, length, _deltanet_width(c))[:, -2 * heads :].to(dtype).chunk(2, dim=-1)
        gates = delta_rule_gates(a, b, A_log, dt_bias)
        # Per chunk and head. Tokens past the end have g = beta = 0, so that they leave the state unchanged.
        g, beta = (F.pad(x, (0, 0, 0, chunks * CHUNK - length)).unflatten(0, (chunks, CHUNK)).mT for x in gates)
        q, k, _ = (x.transpose(1, 2) for x in self._of_chunks(dtype, qkv, chunks))
        sums = G[:chunks].to(dtype)
        decay = (sums[..., :, None] - sums[..., None, :]).tril().exp().tril()
        L = (beta[..., None] * (k @ k.mT) * decay).tril(-1)
        solved = torch.linalg.solve_triangular(L, torch.diag_embed(beta), upper=False, unitriangular=True)
        cut = k.shape[-1] * CUT_PER_TERM
        # Sums by a product with a triangle of ones, because PyTorch's cumsum adds in fp64 on a CPU.
        up_to_here = torch.ones(CHUNK, CHUNK, dtype=dtype, device=g.device).tril()
        return [
            # All sums of a head share the error of exp(A_log), softplus and their product: a few last-place units.
            _Output("G", G[:chunks], g.clamp_min(FORGETS_ALL) @ up_to_here.mT, cut=4 * HALF_STEP_OF_FP32),
            _Output("A", A[:chunks], (q @ k.mT) * decay, TF32_BITS, cut),
            _Output("T", T[:chunks], solved, TF32_BITS, cut),
        ]

    def _delta_rule_scan(self, dtype, recurrent_state, tokens, qkv, T, A, G, after, o):
        c, length = self.config, int(tokens[1])
        chunks = -(-length // CHUNK)
        K = c.linear_key_head_dim
        q, k, v = (x.transpose(1, 2) for x in self._of_chunks(dtype, qkv, chunks))
        T, A, G = (x[:chunks].to(dtype) for x in (T, A, G))
        state, out = F.pad(recurrent_state.to(dtype), (0, 0, 0, q.shape[-1] - K)), []
        for i in range(chunks):
            rounded = _tf32(state)
            delta = T[i] @ _tf32(v[i] - G[i].exp()[..., None] * (k[i] @ rounded))
            out.append(G[i].exp()[..., None] * (q[i] @ rounded) + A[i] @ _tf32(delta))
            at_end = (G[i, :, -1:] - G[i]).exp()[..., None] * delta
            state = G[i, :, -1].exp()[:, None, None] * state + k[i].mT @ _tf32(at_end)
        cut = (q.shape[-1] + 2 * CHUNK) * CUT_PER_TERM
        o = _rows(o, length, c.value_dim).unflatten(-1, (c.linear_num_value_heads, -1))
        return [
            _Output("o", o, torch.cat(out, dim=1).transpose(0, 1)[:length], cut=cut),
            _Output("recurrent_state", after, state[:, :K], cut=cut),
        ]

    def _of_chunks(self, dtype, qkv, chunks):
        """Return q, k [chunks, CHUNK, value heads, key_width] and v [chunks, CHUNK, value heads, V]."""
        c = self.config
        width = _key_width(qkv, c)
        rows = qkv[: chunks * CHUNK].to(dtype).unflatten(0, (chunks, CHUNK))
        q, k, v = rows.split([c.linear_num_key_heads * width] * 2 + [c.value_dim], dim=-1)
        repeats = c.linear_num_value_heads // c.linear_num_key_heads
        q, k = (x.unflatten(-1, (-1, width)).repeat_interleave(repeats, dim=-2) for x in (q, k))
        return q, k, v.unflatten(-1, (c.linear_num_value_heads, -1))

    def _gated_rms_norm(self, dtype, before, o, projected, tokens, weight, mixed):
        c, length = self.config, int(tokens[1])
        heads = (c.linear_num_value_heads, c.linear_value_head_dim)
        z = _rows(projected, length, _deltanet_width(c))[:, c.conv_dim : c.conv_dim + c.value_dim].to(dtype)
        o = _rows(o, length, c.value_dim).to(dtype).unflatten(-1, heads)
        expected = gated_rms_norm(o, z.unflatten(-1, heads), weight, eps=c.rms_norm_eps)
        return [_Output("mixed", _rows(mixed, length, c.value_dim), expected.flatten(1), BF16_BITS)]

    def _attention_prepare(
        self, dtype, before, projected, tokens, q_norm, k_norm, rope_cos, rope_sin, q, k_cache, v_cache, room
    ):
        c, (position, length) = self.config, tokens[:2].tolist()
        in_q, _, in_k, in_v = self._projected(dtype, projected, length)
        positions = torch.arange(position, position + length, device=projected.device)
        cos, sin = rope_tables(positions, rotary_dim=c.rotary_dim, theta=c.rope_theta)
        turned_q, turned_k = (
            apply_rope(rms_norm(x, norm, eps=c.rms_norm_eps), cos, sin) for x, norm in ((in_q, q_norm), (in_k, k_norm))
        )
        at = slice(position, position + length)
        return [
            _Output("q", q[:length], turned_q.flatten(1) * c.head_dim**-0.5, BF16_BITS),
            _Output("k_cache", k_cache[:, at], turned_k.transpose(0, 1), BF16_BITS),
            _Output("v_cache", v_cache[:, at], in_v.transpose(0, 1)),
        ]

    def _projected(self, dtype, projected, length):
        """Return q, gate [length, heads, head_dim], k and v [length, kv heads, head_dim]."""
        c = self.config
        kv_dim = c.num_key_value_heads * c.head_dim
        q_dim = c.num_attention_heads * c.head_dim
        rows = _rows(projected, length, 2 * q_dim + 2 * kv_dim).to(dtype)
        q, k, v = (x.unflatten(-1, (-1, c.head_dim)) for x in rows.split([2 * q_dim, kv_dim, kv_dim], dim=-1))
        return *q.unflatten(1, (-1, 2)).unbind(2), k, v

    def _attention(self, dtype, before, q, k_cache, v_cache, projected, tokens, mixed, room):
        c, (position, length) = self.config, tokens[:2].tolist()
        _, gate, _, _ = self._projected(dtype, projected, length)
        repeats, seen = c.num_attention_heads // c.num_key_value_heads, position + length
        k, v = (cache[:, :seen].to(dtype).repeat_interleave(repeats, dim=0) for cache in (k_cache, v_cache))
        queries = q[:length].to(dtype).unflatten(-1, (-1, c.head_dim)).transpose(0, 1)
        future = torch.ones(length, seen, dtype=torch.bool, device=q.device).triu(position + 1)
        scores = (queries @ k.mT).masked_fill(future, float("-inf"))
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        expected = (_two_bf16(weights) @ v / weights.sum(-1, keepdim=True)).transpose(0, 1) * gate.sigmoid()
        mixed = _rows(mixed, length, q.shape[1])
        return [_Output("mixed", mixed, expected.flatten(1), BF16_BITS, seen * CUT_PER_TERM)]

    def _swiglu(self, dtype, before, projected, tokens, act):
        length = int(tokens[1])
        gate, up = _rows(projected, length, 2 * act.shape[1]).to(dtype).chunk(2, dim=-1)
        return [_Output("act", act[:length], F.silu(gate) * up, BF16_BITS)]

    def _lm_head(self, dtype, before, x, norm, lm_head, logits, block_best, arrivals, next_token):
        normed = rms_norm(x.to(dtype), norm, eps=self.config.rms_norm_eps)
        return [_Output("logits", logits, F.linear(normed, lm_head.to(dtype)))]


def _rows(buffer: torch.Tensor, length: int, width: int) -> torch.Tensor:
    """View the start of a buffer as [length, width]."""
    return buffer.view(-1)[: length * width].view(length, width)


def _deltanet_width(config) -> int:
    return config.conv_dim + config.value_dim + 2 * config.linear_num_value_heads


def _key_width(qkv: torch.Tensor, config) -> int:
    """Return the width of a key head in `qkv`, with the zeros that pad it."""
    return (qkv.shape[1] - config.value_dim) // (2 * config.linear_num_key_heads)
