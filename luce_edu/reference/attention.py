"""Causal softmax attention with grouped heads, a KV cache and a sigmoid gate on its output."""

import torch
import torch.nn.functional as F

from luce_edu.reference.precision import at_least_fp32
from luce_edu.reference.rms_norm import rms_norm
from luce_edu.reference.rope import apply_rope, rope_tables


def causal_attention(q, k, v):
    """Return softmax(q k^T / sqrt(D)) v; q [..., T, H, D], k, v [..., S, Hkv, D], S >= T; the result has q's shape.

    The T queries are those of the last T of the S positions. Each sees the positions up to its own.
    H / Hkv consecutive query heads share a key head. The softmax is fp32 or wider.
    """
    tokens, heads, head_dim = q.shape[-3:]
    total, kv_heads = k.shape[-3:-1]
    k, v = (x.repeat_interleave(heads // kv_heads, dim=-2) for x in (k, v))
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    future = torch.ones(tokens, total, dtype=torch.bool, device=q.device).triu(total - tokens + 1)
    scores = (q @ k.mT * head_dim**-0.5).masked_fill(future, float("-inf"))
    return (F.softmax(at_least_fp32(scores), dim=-1).to(q.dtype) @ v).transpose(-3, -2)


def gated_attention(x, layer, config, *, position=0, k_cache=None, v_cache=None):
    """Compute gated attention of x [..., T, hidden_size], the normalised input; return its shape and dtype.

    layer maps "self_attn.…" names to tensors. Per head, q_proj gives head_dim rows of query, then
    head_dim rows of gate. q and k are normalised per head, then rotated by RoPE.
    k_cache, v_cache [num_key_value_heads, max_seq_len, head_dim] hold the tokens before `position`; the new
    ones are written in place. Without caches, x is the whole sequence and may have batch dimensions.
    """
    tokens = x.shape[-2]

    def project(name):
        weight = layer[f"self_attn.{name}_proj.weight"]
        return F.linear(x, weight.to(x.dtype)).unflatten(-1, (-1, config.head_dim))

    q, gate = project("q").unflatten(-2, (-1, 2)).unbind(-2)
    k, v = project("k"), project("v")
    q = rms_norm(q, layer["self_attn.q_norm.weight"], eps=config.rms_norm_eps)
    k = rms_norm(k, layer["self_attn.k_norm.weight"], eps=config.rms_norm_eps)
    positions = torch.arange(position, position + tokens, device=x.device)
    cos, sin = rope_tables(positions, rotary_dim=config.rotary_dim, theta=config.rope_theta)
    q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)

    if k_cache is not None:
        k_cache[:, position : position + tokens] = k.transpose(0, 1)
        v_cache[:, position : position + tokens] = v.transpose(0, 1)
        k, v = (cache[:, : position + tokens].transpose(0, 1).to(x.dtype) for cache in (k_cache, v_cache))
    out = (causal_attention(q, k, v) * gate.sigmoid()).flatten(-2)
    return F.linear(out, layer["self_attn.o_proj.weight"].to(x.dtype))
