"""What tests of kernels share: outputs that show an element that was never written, and the distance of results."""

import torch

from luce_edu.verification import relative_error

FP32 = 2e-6  # fp32 against fp32, with sums of at most a few hundred terms in another order


def poisoned(*shape, dtype=torch.float32) -> torch.Tensor:
    """NaN in every element, with bits that no computation gives."""
    x = torch.empty(shape, dtype=dtype)
    x.view(torch.uint8).fill_(0xFF)
    return x


def assert_close(x, reference, limit=FP32) -> None:
    error = relative_error(x, reference)
    assert error <= limit, f"error {error:.2e}"
