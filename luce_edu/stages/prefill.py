"""Read a prompt at once: matrix products by cuBLAS, with the kernels of csrc/prefill.cu between them.

Every stage made of kernels uses it. It leaves the same state as decoding the prompt token by token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luce_edu.config import LINEAR_ATTENTION, ModelConfig
from luce_edu.errors import CaptureError
from luce_edu.stages.dims import kernel_defines

SEGMENT = 4096  # tokens at a time. Buffers take 69 KB per token for the 0.8B model: 282 MB.
BLOCK_THREADS = 256
WARPS = BLOCK_THREADS // 32
CHUNK = 64  # tokens per chunk of the delta rule; buffers have a multiple of it as rows
KEY_BLOCK = 64  # csrc/delta_rule_chunk.cuh pads a key head to a multiple of this
BLOCK_ROWS = 64  # rows of queries per block of csrc/causal_attention.cuh, 16 per warp
ATTENTION_THREADS = BLOCK_ROWS // 16 * 32
# A smaller log decay is replaced by this: exp(-100) is 4e-44, and sums of g stay accurate enough to be subtracted.
FORGETS_ALL = -100.0
CONV_TOKENS = 16  # tokens per warp of csrc/causal_conv_sequence.cuh

KERNELS = (
    "embed_norm", "add_norm", "last_hidden", "causal_conv", "delta_rule_prepare", "delta_rule_scan", "gated_rms_norm",
    "attention_prepare", "attention", "swiglu", "lm_head",
)  # fmt: skip


def prefill_defines(config: ModelConfig) -> dict[str, object]:
    """Return the -D macros of csrc/prefill.cu: the model's, and the sizes above, which both sides use."""
    return kernel_defines(config) | {
        "BLOCK_THREADS": BLOCK_THREADS, "CHUNK_TOKENS": CHUNK, "KEY_BLOCK": KEY_BLOCK, "BLOCK_ROWS": BLOCK_ROWS,
        "CONV_TOKENS": CONV_TOKENS, "FORGETS_ALL": f"{FORGETS_ALL}f",
    }  # fmt: skip


class Prefill:
    """Read prompts into the state of a `KernelDecoder`.

    The launches of a segment depend only on its length, rounded up to whole chunks. The first segment of a size runs
    them one by one, which loads the kernels. Later ones replay them as one CUDA graph, unless it cannot be captured.

    Buffers hold `rows` tokens:
    x [rows, hidden_size] fp32, the residual stream;  normed [rows, hidden_size], act [rows, intermediate_size],
    mixed [rows, value_dim or q_dim], out [rows, hidden_size], all bf16: inputs and outputs of the products;
    projected, the outputs of a layer's first product, or of gate and up, side by side in a row;
    qkv, T, A, G: see csrc/delta_rule_chunk.cuh;  q [rows, q_dim] bf16
    """

    def __init__(self, decoder):
        config = decoder.config
        self._decoder, self._backend = decoder, decoder.backend
        self._module = self._backend.compile("prefill.cu", KERNELS, prefill_defines(config))
        self._head_blocks = self._backend.max_resident_blocks(self._module["lm_head"], BLOCK_THREADS, 0)
        rows = _whole_chunks(min(SEGMENT, decoder.state.max_seq_len))
        heads, key_heads = config.linear_num_value_heads, config.linear_num_key_heads
        key_width = -(-config.linear_key_head_dim // KEY_BLOCK) * KEY_BLOCK
        q_dim, kv_dim = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.rows = rows
        self._widths = {
            "deltanet": config.conv_dim + config.value_dim + 2 * heads,
            "attention": 2 * q_dim + 2 * kv_dim,
            "mlp": 2 * config.intermediate_size,
        }
        buffer, bf16 = decoder._buffer, torch.bfloat16
        self.tokens = buffer(2 + rows, dtype=torch.int32)  # position and length of the segment, then its tokens
        self.x = buffer(rows, config.hidden_size)
        self.normed = buffer(rows, config.hidden_size, dtype=bf16)
        self.projected = buffer(rows * max(self._widths.values()), dtype=bf16)
        self.mixed = buffer(rows * max(config.value_dim, q_dim), dtype=bf16)
        self.act = buffer(rows, config.intermediate_size, dtype=bf16)
        self.out = buffer(rows, config.hidden_size, dtype=bf16)
        self.qkv = buffer(rows, 2 * key_heads * key_width + config.value_dim, dtype=bf16)
        self.T = buffer(rows // CHUNK, heads, CHUNK, CHUNK)
        self.A = buffer(rows // CHUNK, heads, CHUNK, CHUNK)
        self.G = buffer(rows // CHUNK, heads, CHUNK)
        self.o = buffer(rows, config.value_dim)
        self.q = buffer(rows, q_dim, dtype=bf16)
        self.block_best = buffer(self._head_blocks, 2)
        self._met: set[int] = set()
        self._graphs: dict[int, object] = {}

    def scratch(self) -> list[torch.Tensor]:
        """List all buffers that a segment writes before it reads them."""
        return [
            self.tokens, self.x, self.normed, self.projected, self.mixed, self.act, self.out, self.qkv, self.T,
            self.A, self.G, self.o, self.q, self.block_best,
        ]  # fmt: skip

    def forget_graphs(self) -> None:
        """Forget the graphs: each launch of the next segment runs one by one again."""
        self._met.clear()
        self._graphs.clear()

    def read(self, tokens: Sequence[int]) -> None:
        """Enqueue a prompt that continues the decoder's state. The caller advances the position.

        Writes logits, the choice after the last token, and that token's hidden states into the decoder's buffers.
        """
        for first in range(0, len(tokens), self.rows):
            segment = tokens[first : first + self.rows]
            head = [self._decoder.position + first, len(segment), *segment]
            self.tokens[: len(head)].copy_(torch.tensor(head, dtype=torch.int32))
            self._run_segment(_whole_chunks(len(segment)))
        decoder, weights = self._decoder, self._decoder.weights
        self._launch(
            "lm_head", self._head_blocks, decoder.hidden_states[-1], weights.norm, weights.lm_head, decoder.logits,
            self.block_best, decoder.argmax_arrivals, decoder.next_token,
        )  # fmt: skip

    def _run_segment(self, rows: int) -> None:
        if rows not in self._met:
            self._enqueue(rows)
            self._met.add(rows)  # now every kernel is loaded, so that the next time they can be captured
            return
        if rows not in self._graphs:
            try:
                self._graphs[rows] = self._backend.capture(lambda: self._enqueue(rows))
            except CaptureError:  # for lack of memory, which single launches do not need
                self._graphs[rows] = None
        graph = self._graphs[rows]
        if graph is None:
            self._enqueue(rows)
        else:
            self._backend.replay(graph)

    def _enqueue(self, rows: int) -> None:
        """Launch everything for a segment of up to `rows` tokens except the head; its tokens are in device memory."""
        decoder = self._decoder
        config, weights, state, hidden = decoder.config, decoder.weights, decoder.state, decoder.hidden_states
        out = self.out[:rows]
        linear = attention = 0
        for i, (layer, kind) in enumerate(zip(weights.layers, config.layer_types, strict=True)):
            norm = layer["input_layernorm.weight"]
            if i == 0:
                embed = weights.embed_tokens
                self._launch("embed_norm", rows, embed, self.tokens, norm, self.x, self.normed, hidden[0])
            else:
                self._launch("add_norm", rows, self.out, self.tokens, norm, self.x, self.normed, hidden[i], 1)
            if kind == LINEAR_ATTENTION:
                self._deltanet(rows, layer, state.conv_state[linear], state.recurrent_state[linear])
                last = layer["linear_attn.out_proj.weight"]
                linear += 1
            else:
                self._attention(rows, layer, state.k_cache[attention], state.v_cache[attention])
                last = layer["self_attn.o_proj.weight"]
                attention += 1
            self._backend.matmul(self._view(self.mixed, rows, last.shape[1]), [last], out)
            norm = layer["post_attention_layernorm.weight"]
            self._launch("add_norm", rows, self.out, self.tokens, norm, self.x, self.normed, hidden[i + 1], 0)
            self._project(rows, "mlp", layer["mlp.gate_proj.weight"], layer["mlp.up_proj.weight"])
            threads = rows * config.intermediate_size // 8
            self._launch("swiglu", _ceil(threads, BLOCK_THREADS), self.projected, self.tokens, self.act)
            self._backend.matmul(self.act[:rows], [layer["mlp.down_proj.weight"]], out)
        self._launch("last_hidden", _ceil(config.hidden_size, BLOCK_THREADS), self.out, self.tokens, self.x, hidden[-1])

    def _deltanet(self, rows: int, layer: dict, conv_state: torch.Tensor, recurrent_state: torch.Tensor) -> None:
        config = self._decoder.config
        w = {name.removeprefix("linear_attn."): tensor for name, tensor in layer.items()}
        heads = config.linear_num_value_heads
        self._project(rows, "deltanet", *(w[f"in_proj_{name}.weight"] for name in ("qkv", "z", "b", "a")))
        units = (2 * config.linear_num_key_heads + heads) * (rows // CONV_TOKENS)
        self._launch(
            "causal_conv", _ceil(units, WARPS), self.projected, self.tokens, w["conv1d.weight"], conv_state, self.qkv
        )
        between = (self.T, self.A, self.G)
        self._launch(
            "delta_rule_prepare", (heads, rows // CHUNK), self.projected, self.tokens, self.qkv, w["A_log"],
            w["dt_bias"], *between,
        )  # fmt: skip
        grid = (heads, config.linear_value_head_dim // 8)  # for tiles of 8 columns; if they are wider, blocks return
        self._launch("delta_rule_scan", grid, self.tokens, self.qkv, *between, recurrent_state, self.o)
        self._launch(
            "gated_rms_norm", _ceil(rows * heads, WARPS), self.o, self.projected, self.tokens, w["norm.weight"],
            self.mixed,
        )  # fmt: skip

    def _attention(self, rows: int, layer: dict, k_cache: torch.Tensor, v_cache: torch.Tensor) -> None:
        decoder, config = self._decoder, self._decoder.config
        w = {name.removeprefix("self_attn."): tensor for name, tensor in layer.items()}
        heads, kv_heads, room = config.num_attention_heads, config.num_key_value_heads, decoder.state.max_seq_len
        self._project(rows, "attention", *(w[f"{name}_proj.weight"] for name in "qkv"))
        self._launch(
            "attention_prepare", _ceil(rows * (heads + 2 * kv_heads), WARPS), self.projected, self.tokens,
            w["q_norm.weight"], w["k_norm.weight"], decoder.rope_cos, decoder.rope_sin, self.q, k_cache, v_cache, room,
        )  # fmt: skip
        grid = (kv_heads, _ceil(rows * (heads // kv_heads), BLOCK_ROWS))
        args = (self.q, k_cache, v_cache, self.projected, self.tokens, self.mixed, room)
        self._launch("attention", grid, *args, threads=ATTENTION_THREADS)

    def _project(self, rows: int, part: str, *weights: torch.Tensor) -> None:
        out = self._view(self.projected, rows, self._widths[part])
        self._backend.matmul(self.normed[:rows], weights, out)

    @staticmethod
    def _view(buffer: torch.Tensor, rows: int, width: int) -> torch.Tensor:
        return buffer[: rows * width].view(rows, width)

    def _launch(self, kernel: str, grid, *args, threads: int = BLOCK_THREADS) -> None:
        self._backend.launch(self._module[kernel], grid, threads, 0, args)


def _ceil(count: int, per: int) -> int:
    return -(-count // per)


def _whole_chunks(tokens: int) -> int:
    return _ceil(tokens, CHUNK) * CHUNK
