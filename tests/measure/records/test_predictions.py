"""Stored predictions are those of the present clock, stand beside recorded rows, and agree with them within 20 %."""

import json
from dataclasses import replace

import pytest
import synthetic
from models import FULL_SIZE

from luce_edu.machine.cards import CARDS, card_of, find_card
from luce_edu.machine.clock import CLOCKS, find_clock
from luce_edu.measure.records import predictions
from luce_edu.measure.records.predictions import at_boost, beside, find, predict, stored, write
from luce_edu.measure.records.record import Record, load_records
from luce_edu.measure.records.rows import Modelled
from luce_edu.models import load_model
from luce_edu.plots.records import NoData, prediction

RTX_3090 = find_card("RTX 3090")
GPU = "NVIDIA GeForce RTX 3090"
NEAR = 0.2  # how far a recorded time may be from the prediction


def recorded(*, us: float = 1.0, joules: float = 1.0, gpu: str = GPU) -> Record:
    """A made-up record of the megakernel on an RTX 3090: `us` and `joules` are multiples of the prediction."""
    record, known = synthetic.of_machine(synthetic.rtx_3090(), gpu=gpu), at_boost("megakernel", RTX_3090)
    rows = {
        part: [
            replace(row, modelled=beside(row, GPU, FULL_SIZE), **changes(row))
            for row in record.parts[part]
            if row.system == "megakernel"
        ]
        for part, changes in {
            "decode": lambda row: {"latency_us": synthetic.quartiles(us * known.us)},
            "energy": lambda row: {"joules": joules * known.joules * row.tokens},
        }.items()
    }
    return synthetic.with_parts(record, **rows)


def test_the_stored_predictions_are_those_of_the_present_clock():
    (stored_token,) = find("megakernel", "RTX 3090", model="tiny")
    now = predict("megakernel", RTX_3090, model="tiny")
    anew = "the clock has changed; store its predictions anew: python -m luce_edu.measure.records.predictions"
    assert now.us == pytest.approx(stored_token.us, rel=0.01), anew
    assert now.joules == pytest.approx(stored_token.joules, rel=0.01), anew


def unstored() -> list[tuple]:
    """Stage, card, model and clock of each prediction that is missing for a card that has others."""
    kept = {(row.stage, row.card, row.model, row.clock_mhz) for row in stored()}
    cards = [card for card in predictions.PREDICTED if any(card.name == name for _, name, *_ in kept)]
    wanted = [(stage, card.name, *rest) for card in cards for stage, *rest in predictions.wanted(card)]
    return [one for one in wanted if one not in kept]


def test_no_stage_is_missing_of_a_card_that_has_predictions():
    assert unstored() == [], "predict them: python -m luce_edu.measure.records.predictions CARD"


def test_no_variant_is_missing_of_a_card_that_has_predictions_of_some():
    for card in predictions.PREDICTED:
        wanted = {stage for stage, *_ in predictions.wanted_variants(card)}
        kept = {row.stage for row in stored() if row.card == card.name and ", " in row.stage}
        assert kept in (set(), wanted), "predict them: python -m luce_edu.measure.records.predictions --ablations CARD"


def test_a_variant_is_predicted_as_itself_and_stands_beside_its_row():
    stage, changed = (predict(name, RTX_3090, model="tiny") for name in ("streaming", "streaming, grid barriers"))
    assert changed.stage == "streaming, grid barriers" and changed.us > 1.1 * stage.us
    row = next(row for row in synthetic.rtx_3090().parts["decode"] if (row.system, row.context) == ("streaming", 520))
    known = at_boost("streaming", RTX_3090)
    predicted = replace(known, stage="streaming, grid barriers", us=2 * known.us)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictions, "stored", lambda: (known, predicted))
        assert beside(replace(row, system="streaming, grid barriers"), GPU, FULL_SIZE).us == 2 * known.us
        assert beside(replace(row, system="streaming, no ring"), GPU, FULL_SIZE) is None


@pytest.mark.planted
def test_a_stage_without_predictions_is_named(monkeypatch):
    before = unstored()
    monkeypatch.setattr(predictions, "STAGES", (*predictions.STAGES, "newest"))
    assert {stage for stage, *_ in set(unstored()) - set(before)} == {"newest"}


def test_each_prediction_is_plausible_and_says_where_it_is_from():
    for token in stored():
        clock = CLOCKS[token.card]
        assert clock.active_w < token.power_w < clock.power_limit_w, token
        assert token.energy["active"] == pytest.approx(clock.active_w * token.us * 1e-6)
        assert "commit" in token.source


@pytest.mark.parametrize("card", [card for card in CARDS if card.name in CLOCKS], ids=lambda card: card.name)
def test_a_card_at_another_clock_keeps_its_memory(card):
    clock = find_clock(card)
    half = clock.at(clock.clock_mhz / 2)
    assert half.dram_bytes_per_cycle == pytest.approx(2 * clock.dram_bytes_per_cycle)
    beyond_l2_ns = (clock.dram_cycles - clock.l2_latency) / clock.clock_mhz
    assert (half.dram_cycles - half.l2_latency) / half.clock_mhz == pytest.approx(beyond_l2_ns)
    assert half.at(clock.clock_mhz).dram_latency_ns == pytest.approx(clock.dram_latency_ns)


@pytest.mark.parametrize(
    "name, card",
    [(GPU, "RTX 3090"), ("Tesla T4", "T4"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA RTX A6000", "RTX A6000"),
     ("NVIDIA GeForce RTX 3090 Ti", None), ("NVIDIA L40S", None), ("none", None)],
)  # fmt: skip
def test_a_gpu_is_the_card_of_exactly_its_name(name, card):
    found = card_of(name)
    assert (found and found.name) == card


def test_a_row_gets_the_prediction_of_its_own_card_model_system_and_context():
    row = next(row for row in synthetic.rtx_3090().parts["energy"] if row.system == "megakernel")
    known = at_boost("megakernel", RTX_3090)
    assert beside(row, GPU, FULL_SIZE) == Modelled(known.us, known.joules, "RTX 3090", 1695, known.source)
    for gpu, config, other in (
        ("NVIDIA L40S", FULL_SIZE, row), (GPU, load_model("tiny").config, row),
        (GPU, FULL_SIZE, replace(row, system="transformers")), (GPU, FULL_SIZE, replace(row, context=512)),
    ):  # fmt: skip
        assert beside(other, gpu, config) is None


def misses(record: Record) -> list[str]:
    """The stages of a predicted card whose recorded time is further than NEAR from the present prediction."""
    card, found = card_of(record.gpu), []
    for row in record.parts.get("decode", ()) if card else ():
        known = at_boost(row.system, card) if row.modelled else None  # of this context and these shapes
        recorded_us = row.latency_us.median
        if known and not abs(recorded_us / known.us - 1) <= NEAR:
            found.append(f"{record.name}: {row.system}: recorded {recorded_us:,.0f} µs, modelled {known.us:,.0f}")
    return found


def test_recorded_stages_are_within_20_percent_of_what_is_predicted():
    records = [record for record in load_records() if record.kind == "recorded"]
    if not records:
        pytest.skip("there is no record of a GPU yet")
    assert [line for record in records for line in misses(record)] == []


@pytest.mark.planted
@pytest.mark.parametrize("us, caught", [(0.75, True), (0.85, False), (1.0, False), (1.15, False), (1.25, True)])
def test_a_record_a_quarter_off_its_prediction_is_caught(us, caught):
    found = misses(recorded(us=us))
    assert len(found) == caught and all("megakernel" in line for line in found)


def test_a_card_without_predictions_is_left_out():
    assert misses(recorded(us=2.0, gpu="NVIDIA L40S")) == []


def test_the_picture_sets_recorded_beside_modelled_and_says_the_error():
    figure = prediction(recorded(us=1.25, joules=0.9))
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert words == ["recorded +25 %", "recorded \N{MINUS SIGN}10 %"]
    caption = " ".join(figure.get_supxlabel().split())
    assert "recorded: NVIDIA GeForce RTX 3090" in caption and "modelled for RTX 3090 at 1,695 MHz" in caption
    known = at_boost("megakernel", RTX_3090)
    marks = [line.get_xdata()[0] for axes in figure.axes for line in axes.lines]
    assert marks == pytest.approx([known.us, known.joules])
    with pytest.raises(NoData):
        prediction(synthetic.rtx_3090())


@pytest.fixture
def quick(monkeypatch):
    """Predictions that take no time: 1,000 µs each."""

    def predict(stage, card, *, model, clock_mhz):
        return predictions.Prediction(stage, card.name, model, 520, clock_mhz, 1e3, {"active": 0.1}, "this test")

    monkeypatch.setattr("luce_edu.models.load_model", lambda name: name)
    monkeypatch.setattr(predictions, "predict", predict)


def test_new_predictions_replace_only_their_rows(tmp_path, quick):
    file = tmp_path / "predictions.json"
    file.write_text(predictions.FILE.read_text(encoding="utf-8"), encoding="utf-8")
    write(["A100"], file=file, say=lambda line: None)
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    before = json.loads(predictions.FILE.read_text(encoding="utf-8"))["rows"]
    kept, there = ([row for row in some if row["card"] != "A100"] for some in (rows, before))
    assert kept == there
    assert {row["stage"] for row in rows if row["source"] == "this test"} == set(predictions.STAGES)
    with pytest.raises(ValueError, match="laptop: .*RTX 3090"):
        write(["laptop"], file=file)


def test_predictions_of_variants_join_those_of_the_stages(tmp_path, quick):
    file = tmp_path / "predictions.json"
    write(["H200"], file=file, say=lambda line: None)
    write(["H200"], variants=True, file=file, say=lambda line: None)
    write(["H200"], file=file, say=lambda line: None)
    names = [row["stage"] for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]
    variants = [name for name in names if ", " in name]
    assert set(names) - set(variants) == set(predictions.STAGES) and len(variants) == len(set(variants)) == 17
    assert [row for row in predictions.wanted_variants(find_card("RTX 3090")) if "ring of 4" in row[0]] == []
    with pytest.raises(ValueError, match="A100: not predicted; expected some of RTX 3090, H200"):
        write(["A100"], variants=True, file=file)
