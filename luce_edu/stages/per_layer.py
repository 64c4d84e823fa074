"""Stage `per_layer`: five fused kernels per layer. Values that one operation passes to the next stay in registers."""

from __future__ import annotations

import torch

from luce_edu.config import LINEAR_ATTENTION
from luce_edu.stages.base import KernelDecoder


class PerLayerDecoder(KernelDecoder):
    """Launch a kernel per phase of csrc/phases.cuh, each with as many blocks as the device holds at once."""

    stage = "per_layer"
    words = "five kernels per layer"
    colour = "blue"
    starts = "plain"
    source = "per_layer.cu"
    kernels = (
        "embed", "deltanet_in", "delta_rule", "deltanet_out", "attention_in", "attention", "attention_out",
        "mlp_up", "mlp_down", "lm_head",
    )  # fmt: skip

    def __init__(self, model, *, device, max_seq_len, backend=None):
        super().__init__(model, device=device, max_seq_len=max_seq_len, backend=backend)
        self._grid = {name: self._blocks(name) for name in self.kernels}
        # The kernels advance the position themselves, so before a token it is one less.
        self.device_position = self._buffer(1, dtype=torch.int32)
        self._prepared = None  # the launches of a token
        self._position_there: int | None = None  # its value on the device, once the launches so far have run

    def _blocks(self, kernel: str) -> int:
        """Return the grid of a kernel; any size gives the same result."""
        return self._resident_blocks(kernel)

    def _argmax_blocks(self) -> int:
        return self._blocks("lm_head")

    def reset(self) -> None:
        super().reset()
        self._position_there = None  # unknown, because a kernel may have failed

    def _step(self, token):
        self._place_token(token)
        if self._position_there != self.state.position:
            self.device_position.fill_(self.state.position - 1)
        self._position_there = self.state.position + 1
        self._run_step()

    def _run_step(self) -> None:
        if self._prepared is None:
            self._prepared = self.backend.prepare(self._enqueue)
        self.backend.run(self._prepared)

    def _enqueue(self) -> None:
        """Launch the kernels of one token; no argument changes from one token to the next."""
        config, weights, state = self.config, self.weights, self.state
        linear = attention = 0
        self._fused("embed", weights.embed_tokens, self.next_token, self.device_position, self.hidden_states)
        for i, (layer, kind) in enumerate(zip(weights.layers, config.layer_types, strict=True)):
            x, y = self.hidden_states[i], self.hidden_states[i + 1]
            norm = layer["input_layernorm.weight"]
            if kind == LINEAR_ATTENTION:
                w = {name.removeprefix("linear_attn."): tensor for name, tensor in layer.items()}
                self._fused(
                    "deltanet_in", x, norm, w["in_proj_qkv.weight"], w["in_proj_z.weight"], w["in_proj_b.weight"],
                    w["in_proj_a.weight"], w["conv1d.weight"], w["A_log"], w["dt_bias"], state.conv_state[linear],
                    self.qkv, self.z, self.beta, self.g,
                )  # fmt: skip
                self._fused("delta_rule", self.qkv, self.beta, self.g, state.recurrent_state[linear], self.o)
                self._fused(
                    "deltanet_out", self.o, self.z, w["norm.weight"], w["out_proj.weight"], x, self.mid
                )
                linear += 1
            else:
                w = {name.removeprefix("self_attn."): tensor for name, tensor in layer.items()}
                self._fused(
                    "attention_in",
                    x,
                    norm,
                    w["q_proj.weight"],
                    w["k_proj.weight"],
                    w["v_proj.weight"],
                    self.projected,
                )
                self._fused(
                    "attention", self.projected, w["q_norm.weight"], w["k_norm.weight"], self.rope_cos, self.rope_sin,
                    state.k_cache[attention], state.v_cache[attention], self.partials, self.o, self.attention_arrivals,
                    self.device_position, state.max_seq_len,
                )  # fmt: skip
                self._fused("attention_out", self.o, w["o_proj.weight"], x, self.mid)
                attention += 1
            norm = layer["post_attention_layernorm.weight"]
            self._fused(
                "mlp_up", self.mid, norm, layer["mlp.gate_proj.weight"], layer["mlp.up_proj.weight"], self.act
            )
            self._fused("mlp_down", self.act, layer["mlp.down_proj.weight"], self.mid, y)
        self._fused(
            "lm_head", self.hidden_states[-1], weights.norm, weights.lm_head, self.logits, self.block_best,
            self.argmax_arrivals, self.next_token,
        )  # fmt: skip

    def _fused(self, kernel: str, *args) -> None:
        self._launch(kernel, self._grid[kernel], *args)
