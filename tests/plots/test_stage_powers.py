"""The picture of our stages under a limit has a line, a band and two marks for each stage in both panels."""

from dataclasses import replace

import pytest

from luce_edu.measure.dvfs import stage_curves
from luce_edu.plots.dvfs import stage_powers


def test_each_stage_has_its_line_band_and_marks():
    (curve, *_) = stage_curves()
    picture = stage_powers([curve, replace(curve, system="per_op")], provenance="Modelled.")
    for axes in picture.axes:
        marks = [line.get_marker() for line in axes.lines if len(line.get_xdata()) == 1]
        assert sorted(marks) == sorted(["o", "*"] * 2)
        assert len([line for line in axes.lines if len(line.get_xdata()) > 1]) == 2
        assert len(axes.collections) == 2
    left, right = picture.axes
    speed, joules = (axes.lines[0].get_ydata() for axes in (left, right))
    assert speed[-1] == pytest.approx(100) and joules[-1] == pytest.approx(1e3 / curve.top.tokens_per_joule)


@pytest.mark.planted
def test_a_caption_that_names_no_kind_is_refused():
    with pytest.raises(ValueError, match="provenance"):
        stage_powers(stage_curves(), provenance="Ours.")
