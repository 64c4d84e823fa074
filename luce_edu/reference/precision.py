"""The precision of values that even a bf16 model does not round to bf16: sums, norms, gates, the state."""

import torch


def at_least_fp32(x):
    """Return x as fp32; wider dtypes stay, so that in fp64 the whole model is computed in fp64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
