"""Notebook 01's picture marks where the cache passes the state."""

from luce_edu.config import ModelConfig
from luce_edu.models import RANDOM_CONFIG
from luce_edu.plots.hybrid_model import state_against_kv

BIG = ModelConfig.from_file(RANDOM_CONFIG)

PICTURES = {
    "state": lambda provenance: state_against_kv(BIG, provenance=provenance),
}


def test_the_crossing_is_where_the_cache_passes_the_state():
    (axes,) = PICTURES["state"]("modelled").axes
    assert "equal at 1,536 tokens" in [text.get_text() for text in axes.texts]
