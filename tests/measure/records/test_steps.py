"""The table of the streaming stage's steps stands in its page as the clock models it."""

import pytest

from luce_edu.measure.records.steps import BEFORE, CARDS, four_layers, rows
from luce_edu.paths import csrc_dir
from luce_edu.stages.streaming import STEPS


def test_the_page_has_a_row_for_each_step_and_a_column_for_each_card():
    header, _, *lines = stored()
    assert header == ["", *CARDS]
    assert all(name in words for (words, *_), name in zip(lines, (*BEFORE, *STEPS), strict=True))


def test_streaming_is_never_slower_than_the_stages_before_it():
    *before, last = [[float(cell.split(" ")[0]) for cell in line[1:]] for line in stored()[2:] if "step" not in line[0]]
    assert all(us <= min(others) for us, *others in zip(last, *before[: len(BEFORE)], strict=True))


@pytest.mark.full
def test_the_page_has_what_the_clock_models_now():
    column = CARDS.index("T4") + 1
    for line, found in zip(stored()[2:], rows(four_layers(), "T4").values(), strict=True):
        assert line[column] == f"{found.total_us:.1f} µs, {found.dram_share:.0%}"


def stored() -> list[list[str]]:
    text = (csrc_dir().parent / "docs" / "streaming.md").read_text(encoding="utf-8")
    table = text.partition("<!-- modelled steps -->")[2].partition("<!-- /modelled steps -->")[0].strip()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
