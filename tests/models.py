"""Small models for tests, with the real architecture, random weights and awkward sizes."""

import dataclasses

from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION, ModelConfig
from luce_edu.models import DATA, RANDOM_CONFIG, Model
from luce_edu.weights import random_weights

TINY = ModelConfig.from_file(DATA / "tiny" / "config.json")
FULL_SIZE = ModelConfig.from_file(RANDOM_CONFIG)

# Few sizes are powers of two: every loop has a tail, heads do not fill a warp, the vocabulary is odd, and the order of
# layers has no pattern. Three query heads share a kv head, and two value heads share a key head.
ODD = dataclasses.replace(
    TINY, vocab_size=301, hidden_size=264, intermediate_size=360, num_hidden_layers=5,
    layer_types=(FULL_ATTENTION, LINEAR_ATTENTION, LINEAR_ATTENTION, FULL_ATTENTION, LINEAR_ATTENTION),
    num_attention_heads=6, num_key_value_heads=2, head_dim=16, partial_rotary_factor=0.25, linear_num_key_heads=3,
    linear_num_value_heads=6, linear_key_head_dim=40, linear_value_head_dim=48, linear_conv_kernel_dim=3,
)  # fmt: skip
# An untied head, one key head for four value heads, a head_dim as wide as a warp's load, and attention without groups.
WIDE = dataclasses.replace(
    TINY, vocab_size=64, hidden_size=520, num_hidden_layers=2, layer_types=(LINEAR_ATTENTION, FULL_ATTENTION),
    num_attention_heads=2, num_key_value_heads=2, head_dim=256, linear_num_key_heads=1, linear_num_value_heads=4,
    linear_key_head_dim=128, linear_value_head_dim=16, tie_word_embeddings=False,
)  # fmt: skip
# Small and quick. With a tied head, a random model would always choose its input token.
UNTIED = dataclasses.replace(
    TINY, vocab_size=131, num_hidden_layers=2, layer_types=(LINEAR_ATTENTION, FULL_ATTENTION), tie_word_embeddings=False
)
CONFIGS = {"tiny": TINY, "odd": ODD, "wide": WIDE}


def make_model(config: ModelConfig, seed: int = 0, name: str = "random") -> Model:
    return Model(name, config, random_weights(config, seed), tokenizer=None, folder=None)
