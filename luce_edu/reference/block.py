"""A layer of the hybrid model: a token mixer (Gated DeltaNet or attention), then the feed-forward network."""

import torch.nn.functional as F

from luce_edu.reference.causal_conv import causal_conv
from luce_edu.reference.delta_rule import delta_rule_chunked, delta_rule_gates, delta_rule_recurrent, l2_norm
from luce_edu.reference.mlp import swiglu
from luce_edu.reference.precision import at_least_fp32
from luce_edu.reference.rms_norm import gated_rms_norm, rms_norm


def deltanet(x, layer, config, *, conv_state, recurrent_state, chunked=True):
    """Compute Gated DeltaNet of x [..., T, hidden_size], the normalised input; return its shape and dtype.

    layer maps "linear_attn.…" names to tensors.  conv_state [..., conv_dim, kernel - 1] and
    recurrent_state [..., linear_num_value_heads, K, V], both fp32, are updated in place.
    chunked selects the form of the delta rule; both give the same values.
    """

    def project(name):
        return F.linear(x, layer[f"linear_attn.{name}.weight"].to(x.dtype))

    key_dim, heads = config.linear_key_head_dim, config.linear_num_value_heads
    qkv = at_least_fp32(causal_conv(project("in_proj_qkv"), layer["linear_attn.conv1d.weight"], conv_state))
    q, k, v = qkv.split([config.key_dim, config.key_dim, config.value_dim], dim=-1)
    # Consecutive value heads share a key head.
    repeats = heads // config.linear_num_key_heads
    q, k = (l2_norm(h.unflatten(-1, (-1, key_dim))).repeat_interleave(repeats, dim=-2) for h in (q, k))
    v = v.unflatten(-1, (heads, -1))
    g, beta = delta_rule_gates(
        project("in_proj_a"), project("in_proj_b"), layer["linear_attn.A_log"], layer["linear_attn.dt_bias"]
    )
    delta_rule = delta_rule_chunked if chunked else delta_rule_recurrent
    out = delta_rule(q * key_dim**-0.5, k, v, beta=beta, g=g, recurrent_state=recurrent_state).to(x.dtype)
    z = project("in_proj_z").unflatten(-1, (heads, -1))
    out = gated_rms_norm(out, z, layer["linear_attn.norm.weight"], eps=config.rms_norm_eps).flatten(-2)
    return F.linear(out, layer["linear_attn.out_proj.weight"].to(x.dtype))


def hybrid_block(x, layer, config, mixer, **memory):
    """Compute one layer of x [..., T, hidden_size]: two residual halves, each with a norm at its input.

    mixer is `deltanet` or `gated_attention`; memory holds its keyword arguments.
    """
    hidden = rms_norm(x, layer["input_layernorm.weight"], eps=config.rms_norm_eps)
    x = x + mixer(hidden, layer, config, **memory)
    hidden = rms_norm(x, layer["post_attention_layernorm.weight"], eps=config.rms_norm_eps)
    return x + swiglu(hidden, *(layer[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down")))
