"""Notebook 01's pictures show the shape of every tensor, and mark where the cache becomes larger than the state."""

from dataclasses import replace

import pytest

from luce_edu.config import ModelConfig
from luce_edu.models import RANDOM_CONFIG
from luce_edu.plots.hybrid_model import model_shapes, state_against_kv
from luce_edu.weights import expected_tensors

BIG = ModelConfig.from_file(RANDOM_CONFIG)

PICTURES = {
    "shapes": lambda provenance: model_shapes(BIG, provenance=provenance),
    "state": lambda provenance: state_against_kv(BIG, provenance=provenance),
}


def test_the_crossing_is_where_the_cache_passes_the_state():
    (axes,) = PICTURES["state"]("modelled").axes
    assert "equal at 1,536 tokens" in [text.get_text() for text in axes.texts]


def test_every_tensor_of_a_deltanet_layer_stands_in_the_picture_with_its_shape():
    model, layer = PICTURES["shapes"]("modelled").axes
    shown = [line for text in layer.texts for line in text.get_text().split("\n")]
    own = {name.split(".", 3)[-1]: list(shape) for name, shape in expected_tensors(BIG).items() if ".layers.0." in name}
    wanted = [f"{name.removesuffix('.weight').split('.')[-1]} {shape}" for name, shape in own.items()]
    assert len(wanted) == 14
    assert [words for words in wanted if not any(line.startswith(words) for line in shown)] == []
    assert {"delta rule: S [16, 128, 128]", "conv_state [6144, 3]"} <= set(shown)
    assert "lm_head [248320, 1024]" in [text.get_text() for text in model.texts]
    assert "18 DeltaNet (green), 6 attention" in model.get_title(loc="left")


@pytest.mark.planted
def test_a_model_without_deltanet_layers_is_refused():
    with pytest.raises(ValueError, match="DeltaNet"):
        model_shapes(replace(BIG, layer_types=("full_attention",) * 24), provenance="modelled")
