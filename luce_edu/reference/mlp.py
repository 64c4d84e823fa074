"""The feed-forward network of a layer."""

import torch.nn.functional as F


def swiglu(x, gate_proj, up_proj, down_proj):
    """Return down(silu(gate(x)) * up(x)) for x [..., hidden_size]; same shape and dtype.

    gate_proj, up_proj [intermediate_size, hidden_size];  down_proj [hidden_size, intermediate_size].
    """
    gate, up = F.linear(x, gate_proj.to(x.dtype)), F.linear(x, up_proj.to(x.dtype))
    return F.linear(F.silu(gate) * up, down_proj.to(x.dtype))
