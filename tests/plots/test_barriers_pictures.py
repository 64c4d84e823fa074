"""Notebook 08's pictures show the path of arrows from a write to a read, and the blocks that a block waits for."""

import pytest

from luce_edu.plots.barriers import Arrow, barrier_waits, happens_before, memory_order, who_waits

THREADS = {"a": ["write x"], "b": ["release", "later"], "c": ["acquire", "read x"]}
ARROWS = [Arrow("write x", "release", "barrier"), Arrow("release", "acquire", "word")]
UNEVEN = [3, 3, 1, 3], [1, 1, 1, 1]
TOO_MANY = [2, 2, 2], [0, 0, None]

PICTURES = {
    "order": lambda provenance: memory_order(THREADS, ARROWS, "write x", "read x", provenance=provenance),
    "waits": lambda provenance: barrier_waits(*UNEVEN, provenance=provenance),
}


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


def test_a_block_waits_for_those_that_have_not_arrived():
    assert who_waits(*UNEVEN) == {0: [2], 1: [2], 3: [2]}
    assert who_waits(*TOO_MANY) == {0: [2], 1: [2], 2: [0, 1]}
    assert who_waits([3, 3], [1, None]) == {0: [1], 1: [0]}
    assert who_waits([2, 1], [2, 1]) == {}


@pytest.mark.planted
@pytest.mark.parametrize("passed, said", [([1, 1], "4 and 2"), ([0, 0, 0, 0], "barrier 1")])
def test_counts_that_are_impossible_are_refused(passed, said):
    with pytest.raises(ValueError, match=said):
        who_waits(UNEVEN[0], passed)


@pytest.mark.parametrize("case, arrows", [(UNEVEN, 3), (TOO_MANY, 4)])
def test_a_picture_has_a_row_for_each_block_and_an_arrow_for_each_wait(case, arrows):
    (axes,) = barrier_waits(*case, provenance="measured").axes
    assert len(axes.get_yticklabels()) == len(case[0])
    assert sum(hasattr(text, "arrow_patch") and text.arrow_patch is not None for text in axes.texts) == arrows
    states = [text.get_text() for text in axes.texts if text.get_text()]
    assert len(states) == len(case[0]) and len(set(states)) == 2
