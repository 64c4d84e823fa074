"""How exactly the reference computes what even a bf16 model does not round to bf16: sums, norms, gates, the state."""

import torch


def at_least_fp32(x):
    """x as fp32, or as it is where it is wider: in fp64 the whole model is computed in fp64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
