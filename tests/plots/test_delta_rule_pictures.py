"""Notebook 02's pictures show every number of their data."""

import pytest

from luce_edu.plots.delta_rule import answers_by_write, chunk_triangles, conv_windows, state_update

UPDATE = ([[6, 12], [8, 16]], [[-1.8, -7.8], [-2.4, -10.4]], [[4.2, 4.2], [5.6, 5.6]])
L = [[0, 0, 0], [0.15, 0, 0], [0.1, -0.12, 0]]
PANELS = ["before", "written", "after"]

PICTURES = {
    "update": lambda provenance: state_update(*UPDATE, names=PANELS, provenance=provenance),
    "answers": lambda provenance: answers_by_write({"delta": [10, 10], "none": [10, 15.5]}, 10, provenance=provenance),
    "triangles": lambda provenance: chunk_triangles({"L": L}, provenance=provenance),
    "windows": lambda provenance: conv_windows([[0, 0, 7], [0, 7, 8.5]], provenance=provenance),
}


def test_an_update_shows_every_number_of_its_three_matrices():
    axes = PICTURES["update"]("measured").axes
    assert [panel.get_title() for panel in axes] == PANELS
    shown = [[text.get_text() for text in panel.texts] for panel in axes]
    minus = "\N{MINUS SIGN}"
    assert shown[0][:4] == ["6", "12", "8", "16"]
    assert shown[1][:4] == [f"{minus}1.8", f"{minus}7.8", f"{minus}2.4", f"{minus}10.4"]
    assert shown[2][:4] == ["4.2", "4.2", "5.6", "5.6"]


@pytest.mark.planted
@pytest.mark.parametrize(
    "after, reason",
    [([[4.2, 4.2], [5.6, 5.7]], "the sum"), ([[4.2, 4.2], [5.6, float("nan")]], "the sum"), ([[1, 2]], "one shape")],
    ids=["another number", "NaN", "another shape"],
)
def test_an_update_that_does_not_add_up_is_refused(after, reason):
    with pytest.raises(ValueError, match=reason):
        state_update(*UPDATE[:2], after, names=PANELS, provenance="measured")


def test_answers_are_drawn_write_by_write_with_the_last_one_named():
    (axes,) = PICTURES["answers"]("measured").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[10, 10], [10, 15.5]]
    assert [text.get_text() for text in axes.texts] == ["10.0  delta", "15.5  none"]


def test_a_conv_window_stands_under_the_inputs_that_it_sees():
    (axes,) = PICTURES["windows"]("measured").axes
    seen = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert {((-2, 0), "0"), ((0, 0), "7"), ((0, 1), "7"), ((1, 1), "8.5")} <= seen and len(seen) == 6


def test_a_triangle_shows_each_number_below_its_diagonal_and_nothing_above():
    axes = PICTURES["triangles"]("measured").axes[0]
    numbers = {(text.get_position()[::-1], text.get_text()) for text in axes.texts}
    assert numbers == {((1, 0), "0.15"), ((2, 0), "0.1"), ((2, 1), "\N{MINUS SIGN}0.12")}
    drawn = axes.images[0].get_array()
    assert drawn.mask.tolist() == [[j >= i for j in range(3)] for i in range(3)]


@pytest.mark.planted
@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_matrix_that_is_no_triangle_is_refused(value):
    with pytest.raises(ValueError, match="L: expected"):
        chunk_triangles({"L": [[0, value], [0.1, 0]]}, provenance="measured")
