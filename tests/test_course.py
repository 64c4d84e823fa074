"""The scoreboard: each row has its figures, their provenance, and a link to the cell that computed them."""

from pathlib import Path

import nbformat
import pytest

from luce_edu import course
from luce_edu.course import CELLS, OWN, Row, own_row, scoreboard, stored_rows
from luce_edu.machine.cards import find_card
from luce_edu.measure.profile import profile
from luce_edu.measure.records.predictions import MODEL, POSITION, at_boost
from luce_edu.models import load_model
from luce_edu.scoreboard import NEITHER, Modelled
from luce_edu.stages import STAGES
from luce_edu.verification import Report, StageResult

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
# {row: code that makes it}. All other rows come from stage_table(..., upto=stage).
MADE_BY = {"the floor": "decode_bytes(big", "prompt": 'luce_edu.profile("prompt"', MODEL: "stored_rows()"}


@pytest.fixture(scope="module")
def full():
    rows = stored_rows()
    assert rows, "no card has a prediction of every stage: python -m luce_edu.measure.records.predictions"
    return rows


def below(cell: tuple[str, str]) -> str:
    """The code of a notebook between a heading and the next one."""
    file, heading = cell
    code, inside = [], False
    for one in nbformat.read(NOTEBOOKS / file, as_version=4).cells:
        for line in one.source.split("\n") if one.cell_type == "markdown" else ():
            inside = line == f"## {heading}" if line.startswith("## ") else inside
        if inside and one.cell_type == "code":
            code.append(one.source)
    return "\n".join(code)


@pytest.mark.parametrize("name", dict.fromkeys([*STAGES, *CELLS]))
def test_each_row_leads_to_the_cell_that_made_it(name):
    assert name in CELLS, "a stage needs a line in CELLS of luce_edu/course.py"
    assert MADE_BY.get(name, f'upto="{name}"') in below(CELLS[name])


def test_an_own_row_leads_to_the_capstone():
    assert "own_row(" in below(OWN) or "try_change" in below(OWN)


def test_the_full_size_rows_are_the_stored_predictions(full):
    stages = full[1 : 1 + len(STAGES)]
    assert [row.name for row in (full[0], *stages)] == ["the floor", *STAGES] and {row.model for row in full} == {MODEL}
    launches = {"eager": "2,041", "per_op": "460", "per_layer": "122", "graph": "1", "megakernel": "1",
                "streaming": "1"}  # fmt: skip
    assert {row.name: row.launches for row in stages} == launches
    assert (full[0].us, full[0].launches) == ("1,656", NEITHER)
    mega = next(row for row in full if (row.name, row.card) == ("megakernel", "H200"))
    stored = at_boost("megakernel", find_card("H200"))
    assert [mega.us, mega.joules] == Modelled(stored.us, stored.joules, POSITION).cells
    assert (mega.barriers, mega.error) == ("121", NEITHER)
    assert {row.barriers for row in full if row.name == "streaming"} == {"0"}


def test_a_page_holds_one_link_for_each_row(full):
    page = scoreboard(*full)._repr_html_()
    assert page.count("<a href=") == len(full)
    assert page.count('<a href="00_start_here.ipynb#The-floor-of-one-token">') == len({row.card for row in full})
    assert "RTX 3090" in scoreboard(*full).caption and "modelled" in scoreboard(*full).caption


def report(**problems):
    row = StageResult("megakernel", 1e-4, None, 0.1, "logits", 0.5, "logits", 3, 3, True, launches=1, kernels=1,
                      barriers=40, **problems)  # fmt: skip
    return Report("tiny", "host", 4, 1, [row])


def test_an_own_row_is_that_of_its_verification_and_profile():
    tiny = load_model("tiny")
    found = profile("megakernel", model=tiny, card="T4")
    row = own_row("mine", tiny, report(), found)
    assert isinstance(row, Row) and (row.name, row.card, row.barriers) == ("mine (yours)", "T4", "40")
    assert row.us == Modelled(found.total_us, found.energy_j, POSITION).cells[0] and row.cell == course.OWN


@pytest.mark.planted
def test_a_change_that_fails_gets_no_row():
    with pytest.raises(ValueError, match="mine: .* layer 0 is wrong"):
        own_row("mine", load_model("tiny"), report(problems=["layer 0 is wrong"]), None)
