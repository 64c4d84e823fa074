"""How many kernels a token launches, counted in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from luce_edu.config import ModelConfig


@dataclass(frozen=True)
class Count:
    """What the ledger holds after one token. For `eager`, launches are PyTorch operations that compute."""

    launches: int
    barriers: int


def narrow(config: ModelConfig) -> ModelConfig:
    """The same layers and heads with every width cut down, so that a step in the emulator takes little time.

    A launch count depends on layers alone: tests/measure/test_launches.py compares with full-width models.
    """
    return replace(
        config,
        vocab_size=256,
        hidden_size=64,
        intermediate_size=64,
        head_dim=16,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        eos_token_ids=(),
    )


def count_launches(
    config: ModelConfig, stages: Sequence[str] | None = None, device: str = "host"
) -> dict[str, Count]:
    """Decode two tokens at every stage with random weights of `narrow(config)`; the counts of the second.

    Raises what `luce_edu.decoder` raises for a stage, a device or a config.
    """
    from luce_edu.models import Model
    from luce_edu.stages import STAGES, decoder
    from luce_edu.weights import random_weights

    small = narrow(config)
    model = Model("narrow", small, random_weights(small), tokenizer=None, folder=None)
    counts = {}
    for stage in STAGES if stages is None else stages:
        dec = decoder(stage, model, device, max_seq_len=2)
        for token in (1, 2):
            dec.step(token)
        counts[stage] = Count(dec.launches, dec.barriers)
    return counts
