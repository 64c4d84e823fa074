"""Published results come from the record, and the shares computed from them agree with their sources."""

import pytest
import synthetic

from luce_edu.machine.cards import DATASHEET_GB_PER_S
from luce_edu.measure.floor import bytes_per_token
from luce_edu.measure.records.published import PUBLISHED, RESULTS, decode_results, launch_us, published

EVERY = decode_results(PUBLISHED)


def test_shares_are_those_of_the_sources():
    shares = {(result.system, result.gpu): round(100 * result.share) for result in RESULTS}
    assert list(shares.items()) == list({
        ("PyTorch + transformers", "RTX 3090"): 18,
        ("llama.cpp", "RTX 3090"): 44,
        ("Luce megakernel", "RTX 3090"): 68,
        ("AlpinDale megakernel", "RTX 5090"): 67,
        ("CUDA graph, dependent launch", "H100 SXM"): 75,
        ("Hazy Research megakernel", "H100 SXM"): 76,
    }.items())  # in this order, from slow to fast


def test_every_result_names_a_known_gpu_and_a_source():
    for result in EVERY:
        assert result.gpu in DATASHEET_GB_PER_S and result.source.strip()
        assert result.us_per_token == pytest.approx(1e6 / result.tokens_per_s)


def test_a_second_gpu_of_a_system_is_in_the_record_and_not_among_the_results():
    left_out = [result for result in EVERY if result not in RESULTS]
    assert [(result.gpu, round(100 * result.share), round(result.us_per_token, 1)) for result in left_out] == [
        ("H200 SXM", 65, 794.7),
        ("H200 SXM", 68, 759.8),
    ]
    assert tuple(result for result in EVERY if result not in left_out) == RESULTS


def test_pytorchs_prefill_figures_are_of_two_sources():
    prefill = PUBLISHED.content.prefill
    assert {(row.tokens_per_s, row.source) for row in prefill if row.system == "PyTorch + transformers"} == {
        (7578, "Luce-Org/lucebox, megakernel README"),
        (8747, "Luce-Org/lucebox#5"),
    }


def test_a_recorded_record_holds_no_published_results():
    with pytest.raises(ValueError, match="synthetic-h100: "):
        decode_results(synthetic.h100())


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="Qwen3.5-0.8B"):
        bytes_per_token("GPT-9")


def test_one_row_is_found_by_its_fields():
    row = published("prefill", system="Luce megakernel", source="Luce-Org/lucebox#5")
    assert (row.tokens_per_s, row.tokens, row.gpu) == (8505, 520, "RTX 3090")
    assert launch_us("plain launch") == 347.5 / 225


@pytest.mark.planted
@pytest.mark.parametrize("wanted, found", [({"system": "llama.cpp"}, "found 2"), ({"system": "vLLM"}, "found 0")])
def test_fields_of_no_row_or_of_two_are_refused(wanted, found):
    with pytest.raises(ValueError, match=found):
        published("prefill", **wanted)
