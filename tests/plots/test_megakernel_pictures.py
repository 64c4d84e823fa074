"""Notebook 09's picture finds the path that the arrows make, and draws what it was given."""

import pytest

from luce_edu.plots.megakernel import Arrow, happens_before, memory_order

THREADS = {"a": ["write x"], "b": ["release", "later"], "c": ["acquire", "read x"]}
ARROWS = [Arrow("write x", "release", "barrier"), Arrow("release", "acquire", "word")]


def picture_of(arrows):
    (axes,) = memory_order(THREADS, arrows, "write x", "read x", provenance="published").axes
    return axes, [text.get_text() for text in axes.texts]


def test_the_path_leads_through_threads_and_arrows():
    assert happens_before(THREADS, ARROWS, "write x", "read x")
    assert not happens_before(THREADS, ARROWS, "later", "read x")
    assert not happens_before(THREADS, ARROWS, "read x", "write x")


@pytest.mark.planted
@pytest.mark.parametrize("arrows", [ARROWS[:1], ARROWS[1:], [ARROWS[0], ARROWS[1]._replace(orders=False)]])
def test_without_an_arrow_that_orders_there_is_no_path(arrows):
    assert not happens_before(THREADS, arrows, "write x", "read x")


def test_a_picture_holds_every_step_and_arrow_with_time_going_down():
    axes, texts = picture_of(ARROWS)
    assert {*THREADS, *(step for own in THREADS.values() for step in own), "barrier", "word"} < set(texts)
    row = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert row["write x"] < row["release"] < row["acquire"] < row["read x"]
    assert texts[-1] != picture_of(ARROWS[:1])[1][-1]


def test_unknown_steps_and_circles_are_refused():
    with pytest.raises(ValueError, match="nobody"):
        happens_before(THREADS, ARROWS, "nobody", "read x")
    with pytest.raises(ValueError, match="circle"):
        picture_of([*ARROWS, Arrow("acquire", "write x", "back")])
