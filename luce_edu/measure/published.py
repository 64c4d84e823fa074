"""Decode results that other people published: batch 1, bf16 weights, each with its source."""

from __future__ import annotations

from dataclasses import dataclass

from luce_edu.config import ModelConfig
from luce_edu.measure.floor import DATASHEET_GB_PER_S, decode_bytes


@dataclass(frozen=True)
class Published:
    """One result. `gpu` is a name in DATASHEET_GB_PER_S, `source` where the number stands."""

    system: str
    model: str
    gpu: str
    tokens_per_s: float
    source: str

    @property
    def us_per_token(self) -> float:
        return 1e6 / self.tokens_per_s

    @property
    def share(self) -> float:
        """Share of the datasheet bandwidth that the model's bytes took (modelled: each weight moves once)."""
        return bytes_per_token(self.model) * self.tokens_per_s / (DATASHEET_GB_PER_S[self.gpu] * 1e9)


def bytes_per_token(model: str) -> int:
    """The least that a token of a published model moves; ValueError for a model that is not in RESULTS."""
    if model == "Qwen3.5-0.8B":
        from luce_edu.models import RANDOM_CONFIG

        return decode_bytes(ModelConfig.from_file(RANDOM_CONFIG), position=520).total
    if model not in _PARAMETERS:
        raise ValueError(f"model: expected Qwen3.5-0.8B, {' or '.join(_PARAMETERS)}, got {model!r}")
    return 2 * _PARAMETERS[model]


# Parameters by the models' cards, head and embedding tied, so all but a row of it is read for each token.
_PARAMETERS = {"Llama-3.2-1B": 1_235_814_400, "Qwen3-0.6B": 596_049_920}

_LUCE = "Luce-Org/lucebox, megakernel README"
_GRAPHS = "msaroufim/megakernels-vs-cuda-graphs, September 2026"
RESULTS = (
    Published("PyTorch + transformers", "Qwen3.5-0.8B", "RTX 3090", 108, _LUCE),
    Published("llama.cpp", "Qwen3.5-0.8B", "RTX 3090", 267, _LUCE),
    Published("Luce megakernel", "Qwen3.5-0.8B", "RTX 3090", 413, _LUCE),
    Published(
        "AlpinDale megakernel", "Qwen3-0.6B", "RTX 5090", 1000, "blog.alpindale.net, 5090_decode_optimization"
    ),
    Published("CUDA graph, dependent launch", "Llama-3.2-1B", "H100 SXM", 1e6 / 979.5, _GRAPHS),
    Published("Hazy Research megakernel", "Llama-3.2-1B", "H100 SXM", 1e6 / 972.8, _GRAPHS),
)
