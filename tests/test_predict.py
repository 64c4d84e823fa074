"""A guess is shown beside the result with their ratio; values that cannot be compared are refused."""

import pytest

from luce_edu.predict import predict


def test_guess_and_result_stand_in_one_row_with_their_ratio():
    shown = str(predict(launches=100, bytes_read=None).reveal("measured", launches=400, bytes_read=4096))
    rows = [line.split() for line in shown.split("\n")]
    assert rows == [["your", "guess", "measured", "guess", "/", "result"], ["launches", "100", "400", "0.25"],
                    ["bytes", "read", "–", "4,096", "–"]]  # fmt: skip


def test_a_word_is_right_or_not():
    shown = predict(verdict="A Hang", other="nothing").reveal("measured", verdict="a hang", other="a hang")
    assert [row[-1] for row in shown.body] == ["right", "no"]


def test_a_result_of_zero_has_no_ratio():
    assert [row[-1] for row in predict(a=0, b=2).reveal("measured", a=0, b=0).body] == ["right", "no"]


@pytest.mark.parametrize("guesses", [{}, {"a": True}, {"a": [1]}])
def test_a_bad_guess_is_refused(guesses):
    with pytest.raises(ValueError, match="predict: "):
        predict(**guesses)


@pytest.mark.parametrize(("kind", "results"), [("seen", {"a": 1}), ("measured", {}), ("measured", {"a": 1, "b": 2})])
def test_a_reveal_names_its_kind_and_every_guess(kind, results):
    with pytest.raises(ValueError, match="reveal: "):
        predict(a=1).reveal(kind, **results)
