"""Times and energies in the stage table: recorded for the same model, or modelled and marked, or absent."""

import re

import pytest
import synthetic
import torch

import luce_edu
from luce_edu import scoreboard
from luce_edu.machine.cards import find_card
from luce_edu.machine.clock import find_clock
from luce_edu.measure.launch_cost import PYTORCH_US
from luce_edu.measure.records.validated import stored
from luce_edu.scoreboard import NEITHER, Modelled, StageTable, model_stage, readers_card, stage_table
from luce_edu.verification import Report, StageResult

LAPTOP = find_card("laptop")


def report(stages):
    rows = [
        StageResult(stage, 1e-3, None, 0.1, "logits", 0.5, "logits", 3, 3, True, launches=1, kernels=42, barriers=0)
        for stage in stages
    ]
    return Report("random-0.8b", "host", 4, 1, rows)


def table(record, **others):
    return StageTable(report(("eager", "graph", "unheard of")), 1550.0, record, **others)


def test_a_graph_is_one_launch_of_many_kernels():
    assert [cells[1:3] for cells in table(None).body] == [["1", "42"]] * 3


def test_without_a_record_and_a_model_no_time_is_shown():
    assert all(cells[5:7] == [NEITHER, NEITHER] for cells in table(None).body)
    assert table(None).header[5:7] == ("µs", "J")


def test_a_record_gives_its_medians_at_the_usual_context_and_its_provenance():
    record = synthetic.h100()
    _, graph, unknown = table(record).body
    row = next(r for r in record.parts["decode"] if r.key == ("graph", 520))
    energy = next(r for r in record.parts["energy"] if r.system == "graph")
    assert graph[5:7] == [f"{row.latency_us.median:,.0f}", f"{energy.joules / energy.tokens:.3g}"]
    assert unknown[5:7] == [NEITHER, NEITHER]
    assert record.provenance in table(record).caption


@pytest.mark.parametrize("reached", [False, True])
def test_modelled_figures_are_marked_and_are_ranges_while_the_clock_is_too_far_off(monkeypatch, reached):
    monkeypatch.setattr(type(stored()), "reached", reached)
    made = table(None, modelled={"eager": Modelled(2756, 0.22), "graph": Modelled(1000, 0.5, 520)}, card=LAPTOP)
    eager, graph, unknown = made.body
    low, high = stored().band(1000)
    if reached:
        assert graph[5:7] == ["1,000", "0.5"]
    else:
        assert [float(end.replace(",", "")) for end in graph[5].split("–")] == pytest.approx([low, high], rel=0.05)
        assert graph[6].count("–") == 1
    assert eager[5:7] == ["~2,800", "~0.22"] and unknown[5:7] == [NEITHER, NEITHER]
    assert made.header[5:7] == ("µs*", "J*")
    assert "modelled for the laptop" in made.caption and "520" in made.caption


def test_eager_follows_from_its_operations():
    clock = find_clock(LAPTOP)
    found = model_stage(None, "eager", LAPTOP, operations=100)
    assert found.us == 100 * (PYTORCH_US + clock.launch_us)
    assert found.joules == pytest.approx(clock.active_w * found.us * 1e-6) and found.position is None


def test_the_readers_card(monkeypatch):
    monkeypatch.delenv("LUCE_CARD", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert readers_card().name == "RTX 3090"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for gpu, card in (("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA GeForce GT 710", "RTX 3090")):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu=gpu: gpu)
        assert readers_card().name == card
    monkeypatch.setenv("LUCE_CARD", "laptop")
    assert readers_card().name == "laptop"
    monkeypatch.setenv("LUCE_CARD", "RTX 9999")
    with pytest.raises(ValueError, match="RTX 9999"):
        readers_card()


def test_the_table_models_a_stage_once_and_repeats_exactly(monkeypatch):
    monkeypatch.setenv("LUCE_CARD", "laptop")
    tiny, asked = luce_edu.load_model("tiny"), []
    monkeypatch.setattr(scoreboard, "_profiles", {})
    real = scoreboard.profile
    monkeypatch.setattr(scoreboard, "profile", lambda stage, **how: asked.append(stage) or real(stage, **how))
    first, second = (stage_table(tiny, upto="per_op", device="host", steps=2, seed=1) for _ in range(2))
    assert asked == ["per_op"] and str(first) == str(second)
    assert all(re.fullmatch(r"[\d,.]+–[\d,.]+|~?[\d,.]+", cell) for row in first.body for cell in row[5:7])
    again = real("per_op", model=tiny, card=LAPTOP, position=520)
    assert again.total_us == first.modelled["per_op"].us
