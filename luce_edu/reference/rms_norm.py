"""Root-mean-square normalisation, in the two forms that the model uses."""

import torch
import torch.nn.functional as F


def _normalise(x, eps):
    """x [..., D] divided by its root mean square over D, in fp32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rms_norm(x, weight, *, eps):
    """Normalise x [..., D] and scale it by (1 + weight); the result has x's dtype.

    weight [D] is zero-centred: a weight of zero leaves the normalised value as it is.
    Norm and scale are computed in fp32, and rounded once at the end.
    """
    return (_normalise(x, eps) * (1 + weight.float())).to(x.dtype)


def gated_rms_norm(x, z, weight, *, eps):
    """Normalise x [..., D], scale it by weight [D] (not zero-centred), and gate it by silu(z); in x's dtype.

    z [..., D] is the output gate before its activation. Source of the casts' order: transformers' Qwen3.5.
    """
    scaled = _normalise(x, eps).to(x.dtype) * weight.to(x.dtype)
    return (scaled * F.silu(z.float())).to(x.dtype)
