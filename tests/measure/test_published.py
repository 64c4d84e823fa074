"""Published results are those of the sources, and the shares computed from them agree with theirs."""

import pytest

from luce_edu.measure.floor import DATASHEET_GB_PER_S
from luce_edu.measure.published import RESULTS, bytes_per_token


def test_shares_are_those_of_the_sources():
    shares = {(result.system, result.gpu): round(100 * result.share) for result in RESULTS}
    assert shares == {
        ("PyTorch + transformers", "RTX 3090"): 18,
        ("llama.cpp", "RTX 3090"): 44,
        ("Luce megakernel", "RTX 3090"): 68,
        ("AlpinDale megakernel", "RTX 5090"): 67,
        ("CUDA graph, dependent launch", "H100 SXM"): 75,
        ("Hazy Research megakernel", "H100 SXM"): 76,
    }


def test_every_result_names_a_known_gpu_and_a_source():
    for result in RESULTS:
        assert result.gpu in DATASHEET_GB_PER_S and result.source.strip()
        assert result.us_per_token == pytest.approx(1e6 / result.tokens_per_s)


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="Qwen3.5-0.8B"):
        bytes_per_token("GPT-9")
