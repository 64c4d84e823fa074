"""A short causal convolution over time, with one filter per channel."""

import torch
import torch.nn.functional as F

from luce_edu.reference.precision import at_least_fp32


def causal_conv(x, weight, conv_state):
    """Return silu(convolution of x) for x [T, channels] or [B, T, channels]; same shape and dtype.

    weight [channels, 1, kernel]; its last tap multiplies the token itself. Sums are fp32 or wider.
    conv_state [channels, kernel - 1] or [B, channels, kernel - 1], fp32, holds the inputs before x, oldest
    first (zeros at the start of a sequence), and is overwritten in place with the last kernel - 1 inputs.
    No gradient flows through it.
    """
    inputs = torch.cat([conv_state, at_least_fp32(x).mT], dim=-1)
    conv_state.copy_(inputs[..., x.shape[-2] :].detach())
    out = F.conv1d(inputs, at_least_fp32(weight.to(x.dtype)), groups=weight.shape[0]).mT
    return F.silu(out.to(x.dtype))
