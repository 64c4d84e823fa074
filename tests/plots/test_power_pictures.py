"""Notebook 14's pictures show each point, the fitted curve, and the band of curves that the points allow."""

from dataclasses import replace

import numpy as np
import pytest

from luce_edu.measure.power.dvfs import stage_curves
from luce_edu.measure.power.model import BASELINES, fit, sweeps
from luce_edu.measure.records.record import Record, records_dir
from luce_edu.plots.power import power_band, power_curves, power_errors, stage_powers

SWEEPS = sweeps(Record.load(records_dir() / "published.json"))
FITTED = fit(SWEEPS[0])


def curves(index=0, **marks):
    sweep = SWEEPS[index]
    return power_curves(sweep, fit(sweep) if index == 0 else None, provenance="published and modelled", **marks)


def label_of(axes, words):
    (line,) = [line for line in axes.lines if words in line.get_label()]
    return line


PICTURES = {
    "curves": lambda provenance: power_curves(SWEEPS[0], FITTED, provenance=provenance),
    "errors": lambda provenance: power_errors(FITTED, provenance=provenance),
    "stages": lambda provenance: stage_powers(stage_curves(), provenance=provenance),
    "band": lambda provenance: power_band(FITTED, provenance=provenance),
}


def test_power_curves_show_each_point_in_three_panels_and_the_curve_through_them():
    for axes, value in zip(curves().axes, (lambda p: p.tokens_per_s, lambda p: p.draw_w, lambda p: p.tokens_per_joule),
                           strict=True):  # fmt: skip
        points = label_of(axes, "published: Luce megakernel")
        assert list(points.get_xdata()) == [150, 220, 300, 420]
        assert list(points.get_ydata()) == [value(p) for p in SWEEPS[0].points]
        guess = label_of(axes, "modelled, far from a point")
        assert guess.get_linestyle() == "--" and (min(guess.get_xdata()), max(guess.get_xdata())) == (150, 219)
        assert axes.get_ylim()[0] == 0 and axes.get_xlabel() == "power limit, W"


def test_power_curves_without_a_model_are_points_alone():
    for axes in curves(2).axes:
        assert [line.get_label() for line in axes.lines] == ["published: llama.cpp"]


def test_power_curves_mark_the_limit_the_sweet_spot_and_what_stands_beside():
    axes = curves(limit_w=300, loss=0.05, beside=BASELINES[1]).axes[0]
    assert list(label_of(axes, "at 300 W").get_xdata()) == [300]
    assert list(label_of(axes, "least draw at 5 % less speed").get_xdata()) == [222]
    assert list(label_of(axes, "Apple M5 Max").get_ydata()) == [229, 229]
    other = curves(beside=SWEEPS[3]).axes[1]
    assert list(label_of(other, "RTX 5060 Ti").get_ydata()) == [147.2, 159.3, 172.7]


def test_power_errors_show_fitted_and_left_out_points():
    found = fit(SWEEPS[0])
    draw, _ = power_errors(found, provenance="modelled").axes
    assert list(label_of(draw, "fitted to all points").get_ydata()) == [100 * e.draw for e in found.errors]
    assert list(label_of(draw, "fitted without this point").get_ydata()) == [100 * e.draw for e in found.left_out]
    lone = replace(found, left_out=(None, *found.left_out[1:]))
    assert np.isnan(label_of(power_errors(lone, provenance="modelled").axes[0], "without this").get_ydata()[0])


def test_the_band_spans_every_admissible_curve_and_holds_the_best_fit():
    found = fit(SWEEPS[0])
    draw, rate = power_band(found, provenance="modelled").axes
    for axes, value, at in ((draw, lambda m, x: m.draw_w(x), 1000), (rate, lambda m, x: m.at(x).tokens_per_joule, 200)):
        (corners,) = [path.vertices for path in axes.collections[0].get_paths()]
        here = corners[np.abs(corners[:, 0] - at).argsort()[:2]]
        values = [value(model, here[0, 0]) for model in found.admissible]
        assert sorted(here[:, 1]) == pytest.approx([min(values), max(values)])
        assert here[:, 1].min() <= value(found.model, here[0, 0]) <= here[:, 1].max()
    assert list(label_of(draw, "published").get_ydata()) == [point.draw_w for point in found.sweep.points]


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
