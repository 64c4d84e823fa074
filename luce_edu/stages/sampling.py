"""How text is drawn from logits."""

from __future__ import annotations

import math

import torch

from luce_edu.errors import check_seed


class Sampler:
    """Draws tokens from softmax(logits / temperature), on the CPU, so that a seed gives the same text everywhere.

    temperature  0 is greedy: nothing is drawn, see `Decoder.choice`
    Raises ValueError for a temperature or a seed that is none.
    """

    def __init__(self, temperature: float, seed: int):
        if not isinstance(temperature, (int, float)) or not 0 <= temperature < math.inf:
            raise ValueError(f"temperature: expected a number of 0 or more, got {temperature!r}")
        self.temperature = temperature
        self._generator = torch.Generator().manual_seed(check_seed(seed))

    def draw(self, logits: torch.Tensor) -> int | None:
        """A token by the logits [vocab_size]; None where they are not all numbers."""
        weights = torch.softmax(logits.cpu().double() / self.temperature, -1)
        return int(torch.multinomial(weights, 1, generator=self._generator)) if weights.isfinite().all() else None
