"""The tables of the streaming stage's steps and ablations stand in its page as the clock models them."""

from types import SimpleNamespace

import pytest

from luce_edu.measure.records import steps
from luce_edu.measure.records.steps import ABLATION_CARDS, BEFORE, CARDS, ablations_table, four_layers, rows, step_cell
from luce_edu.models import load_model
from luce_edu.paths import csrc_dir
from luce_edu.stages.streaming import ABLATIONS, STEPS


def test_the_page_has_a_row_for_each_step_and_a_column_for_each_card():
    header, _, *lines = stored()
    assert header == ["", *CARDS]
    assert all(name in words for (words, *_), name in zip(lines, (*BEFORE, *STEPS), strict=True))


def test_streaming_is_never_slower_than_the_stages_before_it():
    *before, last = [[float(cell.split(" ")[0]) for cell in line[1:]] for line in stored()[2:] if "step" not in line[0]]
    assert all(us <= min(others) for us, *others in zip(last, *before[: len(BEFORE)], strict=True))


def test_the_page_has_a_row_for_each_ablation_and_a_column_for_each_card():
    header, _, *lines = stored("modelled ablations")
    assert header == ["", *ABLATION_CARDS]
    assert [words.strip("`") for words, *_ in lines] == ["streaming", *ABLATIONS]
    (_, *now), (_, *before) = lines[0], stored()[-1]
    assert now == [before[CARDS.index(card)].split(",")[0] for card in ABLATION_CARDS], "both are the shipped stage"


def test_an_ablation_has_its_change_or_what_it_is_the_same_as_on_a_card(monkeypatch):
    us = {None: 100.0, "grid barriers": 123.0, "8 warps": 98.0}
    monkeypatch.setattr(steps, "variant", lambda model, card, name: SimpleNamespace(total_us=us.get(name, 100.0)))
    table = parsed(ablations_table(["T4", "H200"], lambda _: None, load_model("tiny")))
    found = {words.strip("`"): cells for words, *cells in table[2:]}
    assert found["streaming"] == ["100.0 µs", "100.0 µs"] and found["ring of 2"] == ["as streaming", "100.0 µs, +0%"]
    assert found["grid barriers"][1] == "123.0 µs, +23%" and found["8 warps"][1] == "98.0 µs, \N{MINUS SIGN}2%"


@pytest.mark.full
def test_the_page_has_what_the_clock_models_now():
    column = CARDS.index("T4") + 1
    for line, found in zip(stored()[2:], rows(four_layers(), "T4").values(), strict=True):
        assert line[column] == step_cell(found)


@pytest.mark.full
def test_the_page_has_the_ablations_that_the_clock_models_now():
    now = parsed(ablations_table(["RTX 3090"], lambda _: None))
    assert [cells[-1] for cells in now[2:]] == [cells[-1] for cells in stored("modelled ablations")[2:]]


def stored(name: str = "modelled steps") -> list[list[str]]:
    text = (csrc_dir().parent / "docs" / "streaming.md").read_text(encoding="utf-8")
    return parsed(text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0].strip())


def parsed(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
