"""Launches per token: counted in the ledger for our stages, by PyTorch's profiler for other programs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from luce_edu.config import ModelConfig
from luce_edu.errors import NotMeasured

# Calls of the CUDA runtime and driver that put a kernel, or a graph of kernels, on a stream.
LAUNCH_CALL = re.compile(r"cu(da)?(LaunchKernel(Ex|ExC)?|LaunchCooperativeKernel|GraphLaunch)")


@dataclass(frozen=True)
class Count:
    """The ledger's counts for one token. For `eager`, launches and kernels are PyTorch operations that compute.

    kernels  that ran in these launches; those of a graph are counted one by one
    """

    launches: int
    barriers: int
    kernels: int


def narrow(config: ModelConfig) -> ModelConfig:
    """Return a config with the same layers and heads and small widths, so that a step on the virtual GPU is fast.

    Launch counts depend only on layers; tests/measure/test_launches.py compares with full-width models.
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
    """Decode two tokens at every stage with random weights of `narrow(config)`; return the counts of the second.

    Raises what `luce_edu.decoder` raises for a bad stage, device or config.
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
        counts[stage] = Count(dec.launches, dec.barriers, max(dec.launches, len(dec.ledger.kernels())))
    return counts


def profiled_launches(step: Callable[[], object]) -> int:
    """Run `step` once under PyTorch's profiler and return its launch calls; a graph counts as one.

    Raises NotMeasured if the profiler sees no launch, as without CUPTI or the permission to use it.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    return count_launch_calls(event.name for event in profiler.events())


def count_launch_calls(names: Iterable[str]) -> int:
    """Return how many of a profile's events are launch calls, by name. Raises NotMeasured if none is."""
    count = sum(LAUNCH_CALL.fullmatch(name) is not None for name in names)
    if count == 0:
        raise NotMeasured("PyTorch's profiler saw no launch; it needs CUPTI, and permission to use it")
    return count
