"""Times and energies in the stage table come from a record of the same model, or are not there."""

import synthetic

from luce_edu.scoreboard import NOT_RECORDED, StageTable
from luce_edu.verification import Report, StageResult


def table(record):
    rows = [
        StageResult(
            stage, 1e-3, None, 0.1, "logits", 0.5, "logits", 3, 3, True, launches=1, kernels=42, barriers=0
        )
        for stage in ("eager", "graph", "unheard of")
    ]
    return StageTable(Report("random-0.8b", "host", 4, 1, rows), 1550.0, record)


def test_a_graph_is_one_launch_of_many_kernels():
    assert [cells[1:3] for cells in table(None).body] == [["1", "42"]] * 3


def test_without_a_record_no_time_is_shown():
    assert all(cells[5:7] == [NOT_RECORDED, NOT_RECORDED] for cells in table(None).body)
    assert "no GPU record yet" in table(None).caption


def test_a_record_gives_its_medians_at_the_usual_context_and_its_provenance():
    record = synthetic.h100()
    _, graph, unknown = table(record).body
    row = next(r for r in record.parts["decode"] if r["system"] == "graph" and r["context"] == 520)
    energy = next(r for r in record.parts["energy"] if r["system"] == "graph")
    assert graph[5:7] == [f"{row['latency_us']['median']:,.0f}", f"{energy['joules'] / energy['tokens']:.3g}"]
    assert unknown[5:7] == [NOT_RECORDED, NOT_RECORDED]
    assert record.provenance in table(record).caption
