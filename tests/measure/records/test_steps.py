"""The tables of the streaming stage's steps and ablations stand in its page as the clock models them."""

from types import SimpleNamespace

import pytest

from luce_edu.machine.cards import find_card
from luce_edu.measure.records import steps
from luce_edu.measure.records.predictions import ABLATED, at_boost
from luce_edu.measure.records.steps import BEFORE, CARDS, ablations_table, four_layers, rows, step_cell
from luce_edu.paths import csrc_dir
from luce_edu.stages.streaming import STEPS, VARIANTS


def test_the_page_has_a_row_for_each_step_and_a_column_for_each_card():
    header, _, *lines = stored()
    assert header == ["", *CARDS]
    assert all(name in words for (words, *_), name in zip(lines, (*BEFORE, *STEPS), strict=True))


def test_streaming_is_never_slower_than_the_stages_before_it():
    *before, last = [[float(cell.split(" ")[0]) for cell in line[1:]] for line in stored()[2:] if "step" not in line[0]]
    assert all(us <= min(others) for us, *others in zip(last, *before[: len(BEFORE)], strict=True))


def test_the_page_has_the_ablations_of_the_stored_predictions():
    header, _, shipped, *lines = stored("modelled ablations")
    assert header == ["", *ABLATED] and [name for name, *_ in lines] == list(VARIANTS)
    assert [header, _, shipped, *lines] == parsed(ablations_table())
    for name, *cells in lines:
        for card, cell in zip(ABLATED, cells, strict=True):
            row = at_boost(f"streaming, {name}", find_card(card))
            assert cell.startswith(("as ", "above ")) if row is None else cell.startswith(f"{row.us:,.1f} µs, ")


def test_a_variant_has_its_change_or_what_it_is_the_same_as_on_a_card(monkeypatch):
    us = {"streaming": 1000.0, "streaming, grid barriers": 1234.0, "streaming, 8 warps": 984.0}
    monkeypatch.setattr(steps, "at_boost", lambda stage, card: SimpleNamespace(us=us.get(stage, 1000.0)))
    found = {name.strip("`"): cells for name, *cells in parsed(ablations_table())[2:]}
    assert found["streaming"] == ["1,000.0 µs"] * 2 and found["ring of 4"] == ["1,000.0 µs, +0.0%", "as streaming"]
    assert found["8 warps, 2 blocks per SM"][0] == "above 700 W"
    assert found["grid barriers"][0] == "1,234.0 µs, +23.4%" and found["8 warps"][1] == "984.0 µs, \N{MINUS SIGN}1.6%"


@pytest.mark.full
def test_the_page_has_what_the_clock_models_now():
    column = CARDS.index("T4") + 1
    for line, found in zip(stored()[2:], rows(four_layers(), "T4").values(), strict=True):
        assert line[column] == step_cell(found)


def stored(name: str = "modelled steps") -> list[list[str]]:
    text = (csrc_dir().parent / "docs" / "streaming.md").read_text(encoding="utf-8")
    return parsed(text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0].strip())


def parsed(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
