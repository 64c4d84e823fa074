"""The dense Qwen3.5 models that the kernels serve: what differs from the 0.8B model, whose config.json is in data/.

Source  Second-hand: the models' own config.json files were not read. Sizes and heads: apxml.com/models/qwen35-2b and
        qwen35-4b, and Qwen3.5-9B's model card as 2048ai.net prints it. DeltaNet heads of 2B: awesomeagents.ai, of 4B:
        the tensors that quantumaikr/quant.cpp#94 lists, of 9B: its model card. Only the 9B model has a head of its own.
        A checkpoint's own config.json decides; these are the shapes of random weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION, ModelConfig

CONFIG_08B = Path(__file__).parent / "data" / "qwen3_5-0.8b.config.json"
_GROUPED = {"num_attention_heads": 16, "num_key_value_heads": 4, "linear_num_value_heads": 32}
_DIFFERENT: Mapping[str, dict] = {
    "0.8b": {},
    "2b": {"hidden_size": 2048, "intermediate_size": 6144},
    "4b": {"hidden_size": 2560, "intermediate_size": 9216, "num_hidden_layers": 32, **_GROUPED},
    "9b": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32, "tie_word_embeddings": False,
        **_GROUPED,
    },
}  # fmt: skip
FAMILY = tuple(_DIFFERENT)


def family_config(size: str) -> ModelConfig:
    """Return the config of a size: "0.8b", "2b", "4b" or "9b". Every fourth layer is attention."""
    config = replace(ModelConfig.from_file(CONFIG_08B), **_DIFFERENT[size])
    kinds = (LINEAR_ATTENTION, LINEAR_ATTENTION, LINEAR_ATTENTION, FULL_ATTENTION)
    return replace(config, layer_types=kinds * (config.num_hidden_layers // 4))


def one_of_each(config: ModelConfig, vocab_size: int = 1001) -> ModelConfig:
    """Return the config of a model with one full-size layer of each kind and a small vocabulary, for checks."""
    return replace(config, vocab_size=vocab_size, num_hidden_layers=2, layer_types=(LINEAR_ATTENTION, FULL_ATTENTION))
