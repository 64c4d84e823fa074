"""The state that a hybrid model keeps between tokens. All stages use this layout, so that any two can be compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from luce_edu.config import ModelConfig


@dataclass
class DecodeState:
    """The state of one sequence (batch 1).

    conv_state       [linear layers, conv_dim, linear_conv_kernel_dim - 1] fp32, the last inputs of the
                     causal convolution, oldest first
    recurrent_state  [linear layers, linear_num_value_heads, linear_key_head_dim, linear_value_head_dim] fp32
    k_cache, v_cache [attention layers, num_key_value_heads, max_seq_len, head_dim]; k after RoPE;
                     rows from `position` on must not be read
    position         number of tokens seen so far
    """

    conv_state: torch.Tensor
    recurrent_state: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    position: int = 0

    TENSORS = ("conv_state", "recurrent_state", "k_cache", "v_cache")

    @classmethod
    def empty(
        cls, config: ModelConfig, max_seq_len: int, *, device="cpu", cache_dtype=torch.bfloat16, dtype=torch.float32
    ):
        """Make a zero state with room for max_seq_len tokens.

        The reference uses float32 as cache_dtype, or float64 for both dtypes.
        """
        linear, attention = len(config.linear_layers), len(config.attention_layers)
        cache = (attention, config.num_key_value_heads, max_seq_len, config.head_dim)
        heads = (config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim)
        return cls(
            conv_state=torch.zeros(
                linear, config.conv_dim, config.linear_conv_kernel_dim - 1, dtype=dtype, device=device
            ),
            recurrent_state=torch.zeros(linear, *heads, dtype=dtype, device=device),
            k_cache=torch.zeros(cache, dtype=cache_dtype, device=device),
            v_cache=torch.zeros(cache, dtype=cache_dtype, device=device),
        )

    @property
    def max_seq_len(self) -> int:
        return self.k_cache.shape[2]

    def reset(self) -> None:
        """Go back to the state before the first token."""
        for name in self.TENSORS:
            getattr(self, name).zero_()
        self.position = 0
