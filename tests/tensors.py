"""What tests of kernels and stages share: poisoned outputs, the distance of results, and what a decoder holds."""

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


def state_of(dec) -> dict[str, torch.Tensor]:
    """Copies of a decoder's position, its states, and the part of its caches that is in use."""
    state = dec.state
    found = {name: getattr(state, name)[:, :, : state.position] for name in ("k_cache", "v_cache")}
    found |= {"position": torch.tensor(state.position)}
    found |= {name: getattr(state, name) for name in ("conv_state", "recurrent_state")}
    return {name: tensor.clone() for name, tensor in found.items()}


def left_by(dec) -> dict[str, torch.Tensor]:
    """Copies of a decoder's state, hidden states and logits after a token."""
    return state_of(dec) | {"hidden_states": dec.hidden_states.clone(), "logits": dec.logits.clone()}


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
