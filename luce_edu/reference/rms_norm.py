"""Root-mean-square normalisation, in the two forms that the model uses."""

import torch
import torch.nn.functional as F

from luce_edu.reference.precision import at_least_fp32


def _normalise(x, eps):
    """Divide x [..., D] by its root mean square over D, in fp32 or wider."""
    x = at_least_fp32(x)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rms_norm(x, weight, *, eps):
    """Normalise x [..., D] and scale it by (1 + weight); the result has x's dtype.

    weight [D] is zero-centred: a weight of zero leaves the normalised value as it is.
    Norm and scale are computed in fp32 or wider, and rounded once at the end.
    """
    normalised = _normalise(x, eps)
    return (normalised * (1 + weight.to(normalised.dtype))).to(x.dtype)


def gated_rms_norm(x, z, weight, *, eps):
    """Normalise x [..., D], scale it by weight [D] (not zero-centred), and gate it by silu(z); in x's dtype.

    z [..., D] is the output gate before its activation. Source of the casts' order: transformers' Qwen3.5.
    """
    scaled = _normalise(x, eps).to(x.dtype) * weight.to(x.dtype)
    return (scaled * F.silu(at_least_fp32(z))).to(x.dtype)
