"""The stored results of the validation are those of its present rows; the summary and the page show them."""

import dataclasses
import json
import os
from types import SimpleNamespace

import pytest

from luce_edu import cli
from luce_edu.measure.records import validated, validation_page
from luce_edu.measure.records.validated import (
    STORED,
    Row,
    Token,
    Validated,
    of_rows,
    rows_named,
    run_all,
    stored,
    worst,
)
from luce_edu.measure.records.validation import MEASUREMENTS, PICKS, Result, measurement, picked
from luce_edu.measure.records.validation_page import PAGE, SUMMARY, page, summary_rows, why
from luce_edu.plots.validation import modelled_against_published


def differences(rows) -> list[str]:
    """Ids of rows that differ from MEASUREMENTS, or whose ratio does not follow from their figures."""
    known = {row.id: row for row in MEASUREMENTS}
    wrong = []
    for row in rows:
        now = known.get(row.id)
        if now is None or row.pick not in PICKS or now not in picked(row.pick):
            wrong.append(row.id)
            continue
        same = all(getattr(row, name) == getattr(now, name) for name in ("ladder", "card", "published", "unit", "fit"))
        ratio = row.published / row.modelled if row.unit.endswith("/s") else row.modelled / row.published
        if not same or row.ratio != pytest.approx(ratio, rel=1e-3):
            wrong.append(row.id)
    return wrong


def row(name, ratio, *, fit=False, pick="SGEMM, RTX A6000") -> Row:
    """A row of MEASUREMENTS, as if the model had been `ratio` times as slow as the card."""
    m = measurement(name)
    us = ratio * m.published_us(1000.0)
    return Row(m.id, pick, m.ladder, m.card, m.published, m.unit, m.figure(us, 1000.0), us, ratio, fit)


FIVE = (row("G1", 1.1), row("G2", 0.8), row("G3", 1.0), row("G4", 3.0), row("G5", 9.0, fit=True))
OF = Validated("2026-01-02", "abc", FIVE, (
    Token("RTX 3090", "megakernel", 2000.0, (("attention", 6, 16.0), ("lm_head", 1, 587.0))),
))  # fmt: skip


def test_the_stored_rows_are_those_of_the_measurements():
    assert len(stored().rows) > 100 and differences(stored().rows) == []


@pytest.mark.parametrize(
    "change", [{"published": 1.0}, {"unit": "ms"}, {"id": "G99"}, {"pick": "hand-out of blocks"}, {"fit": True},
               {"modelled": 1.0}]
)  # fmt: skip
def test_a_stored_row_that_differs_is_found(change):
    assert differences([FIVE[0], dataclasses.replace(FIVE[0], **change)]) == [change.get("id", "G1")]


def test_the_median_is_of_the_rows_held_out_and_treats_too_slow_and_too_fast_alike():
    assert OF.median_error == pytest.approx((0.1 + 0.25) / 2)  # of 0, 0.1, 0.25, 2
    assert OF.within_15 == 0.5 and not OF.reached
    low, high = OF.band(100.0)
    assert (low, high) == (pytest.approx(100 / 1.175), pytest.approx(117.5))
    assert Validated("", None, FIVE[:1]).reached


def test_a_ladder_in_another_order_is_found():
    assert Validated("", None, FIVE[:3]).ladders() == {("RTX A6000", "SGEMM"): True}
    slow = row("G3", 9.0)  # published as faster than G2
    assert Validated("", None, (*FIVE[:2], slow)).ladders() == {("RTX A6000", "SGEMM"): False}
    exact = [row(name, 1.0) for name in ("G1", "G2", "G4")]
    assert Validated("", None, (*exact, row("G3", 1.0))).reached and not Validated("", None, (*exact, slow)).reached


def test_a_run_reads_back_as_it_was_written():
    assert Validated.of_dict(json.loads(OF.to_json())) == OF
    assert stored().to_json() == STORED.read_text(encoding="utf-8")


def test_the_stored_page_is_that_of_the_stored_figures():
    assert PAGE.read_text(encoding="utf-8") == page(stored())


def test_the_page_says_whether_the_target_is_reached_and_shows_every_row():
    shown = page(OF)
    assert "is not reached" in shown and "is reached" in page(Validated("", None, FIVE[:1]))
    assert all(f"| {r.id}" in shown for r in FIVE) and "G5 (fit)" in shown
    summary = {cells[0]: dict(zip(SUMMARY, cells, strict=True)) for cells in summary_rows(OF)}
    assert summary["all"]["rows held out"] == "4" and summary["all"]["within 15 %"] == "50 %"


def test_a_difference_from_an_earlier_model_is_explained_where_it_is_large():
    notes = [line for line in page(OF).splitlines() if line.startswith("- `")]
    assert [note.split("`")[1] for note in notes] == ["attention"] and "not explained" not in notes[0]


def test_the_worst_rows_come_first_one_a_ladder_and_each_stored_one_is_explained():
    assert [r.id for r in worst(OF)] == ["G4"]
    assert why(dataclasses.replace(FIVE[0], id="?")) == "not explained"
    assert [r.id for r in worst(stored())[: validation_page.WORST] if why(r) == "not explained"] == []


def test_rows_are_named_by_pick_or_id():
    assert [r.id for _, r in rows_named(["G1", "launch, graph node, barrier, empty", "L1b"])] == [
        "G1", "L1a", "L1b", "L1c", "L1d",
    ]  # fmt: skip
    assert len(rows_named(())) == sum(len(picked(pick)) for pick in PICKS)


def test_rows_are_modelled_and_kept_for_a_clean_checkout_only(monkeypatch):
    calls = []
    monkeypatch.setattr(validated, "cached", lambda entry, make: calls.append(entry) or make())
    monkeypatch.setattr(validated, "commit", lambda: "abc+")
    (found,) = of_rows(rows_named(["L1b"])).rows
    assert (found.unit, found.pick, calls) == ("us", "launch, graph node, barrier, empty", [])
    assert found.ratio == pytest.approx(found.modelled / 3.9, rel=1e-3)
    monkeypatch.setattr(validated, "commit", lambda: "abc")
    assert of_rows(rows_named(["L1b"])).rows == (found,) and calls == ["validation/abc/L1b.json"]


def test_a_whole_run_has_all_picks_and_a_token_by_every_stage_on_every_card(monkeypatch):
    pick = "launch, graph node, barrier, empty"
    asked = []

    def profile(stage, *, card, model):
        asked.append((card, stage, model))
        phases = [SimpleNamespace(phase="attention", count=6, us_each=8.0)]
        return SimpleNamespace(total_us=2000.0, phases=phases if stage == "megakernel" else ())

    monkeypatch.setattr(validated, "profile", profile)
    monkeypatch.setattr(validated, "PICKS", {pick: PICKS[pick]})
    monkeypatch.setattr(validated, "validate", lambda row, backend, time_us: Result(row, 1.0, row.published, 1.0))
    monkeypatch.setattr(validated, "cached", lambda entry, make: make())  # keeps these rows out of the real cache
    lines = []
    found = run_all(lines.append)
    assert [r.id for r in found.rows] == ["L1a", "L1b", "L1c", "L1d"] and lines[0].startswith("1 of 4: L1a")
    assert {(t.card, t.stage, "random-0.8b") for t in found.tokens} == set(asked) and len(asked) == 4
    assert found.tokens[1].phases == (("attention", 6, 8.0),) and found.tokens[0].phases == ()


def test_the_picture_shows_the_rows_held_out():
    figure = modelled_against_published(OF, provenance="modelled against published")
    left, right = figure.axes
    assert sum(len(c.get_offsets()) for c in right.collections if len(c.get_offsets()) > 1) == 4
    assert left.get_xscale() == left.get_yscale() == right.get_xscale() == "log"
    with pytest.raises(ValueError, match="provenance"):
        modelled_against_published(OF, provenance="")


# ---- The command ----


@pytest.fixture
def written(monkeypatch, tmp_path):
    """A folder that replaces the checkout, for a run that takes no time."""
    places, checkout = validation_page.places, tmp_path / "checkout"
    monkeypatch.setattr(validation_page, "places", lambda folder=None: places(folder or checkout))
    monkeypatch.setattr(validated, "run_all", lambda progress: OF)
    return checkout


def test_a_plain_run_writes_figures_page_and_picture(written, capsys):
    assert cli.main(["validate"]) == cli.HOLDS
    assert sorted(path.name for path in written.iterdir()) == ["validation.json", "validation.md", "validation.png"]
    assert (written / "validation.md").read_text(encoding="utf-8") == page(OF)
    assert "not reached" in capsys.readouterr().out


def test_only_prints_and_writes_nothing_unless_told(written, tmp_path, capsys):
    assert cli.main(["validate", "--only", "L1b", "--json"]) == cli.HOLDS
    (found,) = json.loads(capsys.readouterr().out)["rows"]
    assert (found["id"], found["published"]) == ("L1b", 3.9) and not written.exists()
    assert cli.main(["validate", "--only", "L1b", "--out", str(tmp_path / "mine")]) == cli.HOLDS
    assert (tmp_path / "mine" / "validation.md").is_file() and not written.exists()


def test_an_unknown_pick_and_an_unwritable_folder_are_one_clear_line(written, tmp_path, capsys):
    assert cli.main(["validate", "--only", "hand-out"]) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert "'hand-out'" in error and "hand-out of blocks" in error and error.count("\n") == 1
    (tmp_path / "file").write_text("")
    assert cli.main(["validate", "--out", os.fspath(tmp_path / "file")]) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert "file" in error and error.count("\n") == 1
