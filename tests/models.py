"""Small models for tests: real architecture, fresh random weights, awkward sizes."""

import dataclasses

from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION, ModelConfig
from luce_edu.models import DATA, RANDOM_CONFIG, Model
from luce_edu.weights import random_weights

TINY = ModelConfig.from_file(DATA / "tiny" / "config.json")
FULL_SIZE = ModelConfig.from_file(RANDOM_CONFIG)

# Nothing here is a power of two that need not be: tails in every loop, heads that do not fill a warp, an odd
# vocabulary, three query heads a kv head, two value heads a key head, layers in no pattern.
ODD = dataclasses.replace(
    TINY, vocab_size=301, hidden_size=264, intermediate_size=360, num_hidden_layers=5,
    layer_types=(FULL_ATTENTION, LINEAR_ATTENTION, LINEAR_ATTENTION, FULL_ATTENTION, LINEAR_ATTENTION),
    num_attention_heads=6, num_key_value_heads=2, head_dim=16, partial_rotary_factor=0.25, linear_num_key_heads=3,
    linear_num_value_heads=6, linear_key_head_dim=40, linear_value_head_dim=48, linear_conv_kernel_dim=3,
)  # fmt: skip
# Untied head, one key head for four value heads, head_dim as wide as a warp's load, no grouping in attention.
WIDE = dataclasses.replace(
    TINY, vocab_size=64, hidden_size=520, num_hidden_layers=2, layer_types=(LINEAR_ATTENTION, FULL_ATTENTION),
    num_attention_heads=2, num_key_value_heads=2, head_dim=256, linear_num_key_heads=1, linear_num_value_heads=4,
    linear_key_head_dim=128, linear_value_head_dim=16, tie_word_embeddings=False,
)  # fmt: skip
# Small and quick. An untied head: with a tied one, a random model's choice is the token that it was given.
UNTIED = dataclasses.replace(
    TINY, vocab_size=131, num_hidden_layers=2, layer_types=(LINEAR_ATTENTION, FULL_ATTENTION), tie_word_embeddings=False
)
CONFIGS = {"tiny": TINY, "odd": ODD, "wide": WIDE}


def make_model(config: ModelConfig, seed: int = 0, name: str = "random") -> Model:
    return Model(name, config, random_weights(config, seed), tokenizer=None, folder=None)
