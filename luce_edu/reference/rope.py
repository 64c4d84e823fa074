"""Rotary position embedding on the first dimensions of a head; the others stay as they are."""

import torch


def rope_tables(positions, *, rotary_dim, theta):
    """Return cos and sin [T, rotary_dim] fp32 for positions [T] (integers, counted from 0).

    Pair i of rotary_dim / 2 is rotated by theta ** (-2 i / rotary_dim) radians per token. Its two members are
    rotary_dim / 2 apart, so each table holds the same numbers twice, side by side.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions.device) / rotary_dim
    angles = positions.float()[:, None] * (1.0 / theta**exponents)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x, cos, sin):
    """Rotate the first rotary_dim dimensions of x [..., T, heads, head_dim]; cos, sin [T, rotary_dim]."""
    rotary_dim = cos.shape[-1]
    cos, sin = (table.to(x.dtype)[:, None] for table in (cos, sin))
    turned, unturned = x[..., :rotary_dim], x[..., rotary_dim:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, unturned], dim=-1)
