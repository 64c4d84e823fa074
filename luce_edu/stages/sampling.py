"""Draw tokens from logits."""

from __future__ import annotations

import math

import torch

from luce_edu.errors import check_seed


class Sampler:
    """Draw tokens from softmax(logits / temperature), on the CPU, so that a seed gives the same text on every device.

    temperature  0 is greedy: nothing is drawn, see `Decoder.choice`
    Raises ValueError for a bad temperature or seed.
    """

    def __init__(self, temperature: float, seed: int):
        if not isinstance(temperature, (int, float)) or not 0 <= temperature < math.inf:
            raise ValueError(f"temperature: expected a number of 0 or more, got {temperature!r}")
        self.temperature = temperature
        self._generator = torch.Generator().manual_seed(check_seed(seed))

    def draw(self, logits: torch.Tensor) -> int | None:
        """Draw a token by the logits [vocab_size]; None if some are not numbers."""
        weights = torch.softmax(logits.cpu().double() / self.temperature, -1)
        return int(torch.multinomial(weights, 1, generator=self._generator)) if weights.isfinite().all() else None
