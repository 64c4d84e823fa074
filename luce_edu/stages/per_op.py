"""Stage `per_op`: one kernel per operation. Beside each launch stands the line of PyTorch that it replaces."""

from __future__ import annotations

from luce_edu.config import LINEAR_ATTENTION
from luce_edu.stages.base import KernelDecoder
from luce_edu.stages.dims import BLOCK_THREADS

WARPS = BLOCK_THREADS // 32
STAGED_CHUNK = 256  # csrc/matvec.cuh stages a vector in chunks of this many floats


class PerOpDecoder(KernelDecoder):
    """Launch hundreds of small kernels per token; every intermediate result goes through device memory."""

    stage = "per_op"
    words = "a kernel per operation"
    colour = "sky"
    starts = "plain"
    source = "per_op.cu"
    kernels = (
        "embed", "rms_norm", "matvec", "add", "swiglu", "causal_conv", "l2_norm", "gates", "delta_rule",
        "gated_rms_norm", "head_norm", "rope", "cache_write", "attention_scores", "softmax", "attention_values",
        "output_gate", "argmax",
    )  # fmt: skip

    def __init__(self, model, *, device, max_seq_len, backend=None):
        super().__init__(model, device=device, max_seq_len=max_seq_len, backend=backend)
        config = self.config
        self.normed = self._buffer(max(config.hidden_size, config.value_dim))
        self.b, self.a = (self._buffer(config.linear_num_value_heads) for _ in range(2))
        self.mixed = self._buffer(config.hidden_size)
        self.gate, self.up = (self._buffer(config.intermediate_size) for _ in range(2))
        self.scores = self._buffer(config.num_attention_heads, max_seq_len)

    def _scratch(self):
        own = [self.normed, self.b, self.a, self.mixed, self.gate, self.up, self.scores]
        return super()._scratch() + own

    def _argmax_blocks(self) -> int:
        return _blocks(self.config.vocab_size, BLOCK_THREADS)

    def _step(self, token):
        self._place_token(token)
        config, weights = self.config, self.weights
        linear = attention = 0
        self._launch(
            "embed",
            _blocks(config.hidden_size, BLOCK_THREADS),
            weights.embed_tokens,
            self.next_token,
            self.hidden_states,
        )
        for i, (layer, kind) in enumerate(zip(weights.layers, config.layer_types, strict=True)):
            x, y = self.hidden_states[i], self.hidden_states[i + 1]
            self._launch("rms_norm", 1, x, layer["input_layernorm.weight"], self.normed)  # rms_norm(x, w)
            if kind == LINEAR_ATTENTION:
                self._deltanet(layer, linear)
                linear += 1
            else:
                self._attention(layer, attention)
                attention += 1
            self._add(x, self.mixed, self.mid)  # x + mixer(...)
            self._launch("rms_norm", 1, self.mid, layer["post_attention_layernorm.weight"], self.normed)
            self._matvec(layer["mlp.gate_proj.weight"], self.normed, self.gate)
            self._matvec(layer["mlp.up_proj.weight"], self.normed, self.up)
            size = config.intermediate_size
            self._launch(
                "swiglu", _blocks(size, BLOCK_THREADS), self.gate, self.up, self.act, size
            )  # silu(gate) * up
            self._matvec(layer["mlp.down_proj.weight"], self.act, self.mixed)
            self._add(self.mid, self.mixed, y)  # x + swiglu(...)
        self._launch("rms_norm", 1, self.hidden_states[-1], weights.norm, self.normed)
        self._matvec(weights.lm_head, self.normed, self.logits)
        self._launch(
            "argmax",
            self._argmax_blocks(),
            self.logits,
            self.block_best,
            self.argmax_arrivals,
            self.next_token,
        )  # logits.argmax()

    def _deltanet(self, layer, index: int) -> None:
        config, state = self.config, self.state
        heads, key_heads = config.linear_num_value_heads, config.linear_num_key_heads
        self._matvec(layer["linear_attn.in_proj_qkv.weight"], self.normed, self.qkv)  # F.linear(x, w)
        self._matvec(layer["linear_attn.in_proj_z.weight"], self.normed, self.z)
        self._matvec(layer["linear_attn.in_proj_b.weight"], self.normed, self.b)
        self._matvec(layer["linear_attn.in_proj_a.weight"], self.normed, self.a)
        self._launch(
            "causal_conv", _blocks(config.conv_dim, BLOCK_THREADS),
            self.qkv, layer["linear_attn.conv1d.weight"], state.conv_state[index],
        )  # silu(conv1d(cat(conv_state, qkv)))  # fmt: skip
        self._launch("l2_norm", _blocks(2 * key_heads, WARPS), self.qkv)  # l2_norm(q) * K**-0.5, l2_norm(k)
        self._launch(
            "gates", _blocks(heads, BLOCK_THREADS),
            self.b, self.a, layer["linear_attn.A_log"], layer["linear_attn.dt_bias"], self.beta, self.g,
        )  # sigmoid(b), -exp(A_log) * softplus(a + dt_bias)  # fmt: skip
        self._launch("delta_rule", heads, self.qkv, self.beta, self.g, state.recurrent_state[index], self.o)
        self._launch(
            "gated_rms_norm",
            _blocks(heads, WARPS),
            self.o,
            self.z,
            layer["linear_attn.norm.weight"],
            self.normed,
        )  # rms_norm(o, w) * silu(z)
        self._matvec(layer["linear_attn.out_proj.weight"], self.normed, self.mixed)

    def _attention(self, layer, index: int) -> None:
        config, position, room = self.config, self.state.position, self.state.max_seq_len
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        k_cache, v_cache = self.state.k_cache[index], self.state.v_cache[index]
        q_size, kv_size = 2 * heads * head_dim, kv_heads * head_dim
        q, k, v = self.projected.split([q_size, kv_size, kv_size])
        self._matvec(layer["self_attn.q_proj.weight"], self.normed, q)  # per head: the query, then its gate
        self._matvec(layer["self_attn.k_proj.weight"], self.normed, k)
        self._matvec(layer["self_attn.v_proj.weight"], self.normed, v)
        for part, norm, count, stride in ((q, "q", heads, 2 * head_dim), (k, "k", kv_heads, head_dim)):
            grid = _blocks(count, WARPS)
            self._launch("head_norm", grid, part, layer[f"self_attn.{norm}_norm.weight"], count, stride)
            self._launch("rope", grid, part, self.rope_cos, self.rope_sin, position, count, stride)
        for part, cache in ((k, k_cache), (v, v_cache)):  # cache[:, position] = part
            self._launch("cache_write", _blocks(kv_size, BLOCK_THREADS), part, cache, position, room)
        grid = (_blocks(position + 1, WARPS), heads)
        self._launch(
            "attention_scores", grid, q, k_cache, self.scores, position, room
        )  # q @ k.T * head_dim**-0.5
        self._launch("softmax", heads, self.scores, position, room)  # scores.softmax(-1)
        self._launch("attention_values", heads, self.scores, v_cache, self.o, position, room)  # scores @ v
        self._launch("output_gate", _blocks(heads * head_dim, BLOCK_THREADS), self.o, q)  # o * sigmoid(gate)
        self._matvec(layer["self_attn.o_proj.weight"], self.o, self.mixed)

    def _matvec(self, W, x, y) -> None:
        """Launch y = F.linear(x, W)."""
        rows, cols = W.shape
        smem = _blocks(cols, STAGED_CHUNK) * STAGED_CHUNK * 4
        self._launch("matvec", _blocks(rows, WARPS), W, x, y, rows, cols, smem=smem)

    def _add(self, x, r, y) -> None:
        size = self.config.hidden_size
        self._launch("add", _blocks(size, BLOCK_THREADS), x, r, y, size)


def _blocks(count: int, per_block: int) -> int:
    """Return how many blocks cover `count`."""
    return -(-count // per_block)
