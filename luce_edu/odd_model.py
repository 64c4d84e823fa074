"""A small model of awkward sizes: with few tokens it takes the paths of the kernels that `tiny` leaves out.

`tiny` is small in every dimension: 24 of its tokens fit one split of the cache, each position has a worker of its own,
so that no online softmax is ever rescaled, and a matrix has fewer rows than there are warps. Verification runs this
model beside it, because here each of these shows:
  attention    40 positions make two splits and, with the blocks that verification allows, more units than blocks. Heads
               of 256 leave 16 workers per block, so each sees two positions. More splits than workers need 513
               positions, which only `verify --prefill` reaches, after a prompt of 600
  sizes        no power of two unless one is required: every loop has a tail, the vocabulary is odd, key heads are
               padded, there are two value heads per key head and two query heads per KV head, and RoPE pairs lie in
               different lanes of a warp
  epsilon of   the keys and queries of the first key head are short, so that adding 1e-6 to their squared length
    l2_norm    changes the result
  ties         the first layer is attention, and the embedding is 1 or -1, whose norm is exact. Two of its channels have
               norm factors halfway between two bf16 numbers, one with an even and one with an odd lower neighbour. Two
               rows of v_proj in each KV head copy these channels. So exact ties enter the KV cache, and a kernel that
               rounds them the other way is found
"""

from __future__ import annotations

import torch

from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION, ModelConfig
from luce_edu.weights import Weights, random_weights

ODD_CONFIG = ModelConfig(
    vocab_size=131,
    hidden_size=264,
    intermediate_size=360,
    num_hidden_layers=3,
    # After a layer of each kind comes another one, whose state keeps what the first has written.
    layer_types=(FULL_ATTENTION, LINEAR_ATTENTION, FULL_ATTENTION),
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=256,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=160,
    linear_value_head_dim=48,
    linear_conv_kernel_dim=3,
    rms_norm_eps=1e-20,  # vanishes beside a mean square of 1, even in fp64; `tiny` has the usual epsilon
    rope_theta=10000.0,
    partial_rotary_factor=0.125,
    tie_word_embeddings=False,
    max_position_embeddings=4096,
    eos_token_ids=(),
)
SHORT = 0.05  # factor on the length of the short keys and queries


def odd_weights(seed: int = 0) -> Weights:
    """Draw weights for ODD_CONFIG. Raises ValueError for a bad seed."""
    weights = random_weights(ODD_CONFIG, seed)
    c = ODD_CONFIG
    weights.embed_tokens.copy_(torch.where(weights.embed_tokens < 0, -1.0, 1.0))
    first, second = weights.layers[:2]
    first["input_layernorm.weight"][:2] = torch.tensor([2.0**-8, 3 * 2.0**-8])
    for head in range(c.num_key_value_heads):
        rows = first["self_attn.v_proj.weight"][head * c.head_dim :][:2]
        rows.copy_(torch.eye(2, c.hidden_size))
    for first_channel in (0, c.key_dim):  # where q and k begin
        second["linear_attn.conv1d.weight"][first_channel : first_channel + c.linear_key_head_dim] *= SHORT
    return weights
