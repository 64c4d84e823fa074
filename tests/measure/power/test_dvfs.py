"""A stage's power curve has the time and joules of its predictions, the voltage of the published sweep, and a band."""

from dataclasses import replace

import pytest

from luce_edu.machine.cards import find_card
from luce_edu.measure.power.dvfs import StageCurves, stage_curve, stage_curves
from luce_edu.measure.power.model import fit, sweeps
from luce_edu.measure.records.predictions import SWEPT, Prediction, find, predict
from luce_edu.measure.records.published import PUBLISHED

SWEEP = fit(sweeps(PUBLISHED)[0])
CLOCKS = (405.0, 900.0, 1695.0, 1980.0)


def tokens(*, cycles: float = 0.5e6, waits_us: float = 1500, watts: float = 200, clocks=CLOCKS, card: str = SWEPT):
    """Predictions of a made-up stage that takes `cycles` cycles, and `waits_us` at any clock."""
    return [
        Prediction("made up", card, "a model", 520, mhz, us, {"active": 0.4 * watts * us * 1e-6,
                                                              "dram": 0.6 * watts * us * 1e-6}, "this test")
        for mhz in clocks
        for us in [waits_us + cycles / mhz]
    ]  # fmt: skip


def test_at_the_boost_clock_it_takes_and_draws_what_was_predicted():
    curve = stage_curve(tokens())
    for model in (curve.best_knee, *curve.admissible):
        assert model.us_per_token(1695) == pytest.approx(1500 + 0.5e6 / 1695)
        assert model.draw_w(1695) == pytest.approx(200)
    assert curve.at(200).clock_mhz == pytest.approx(1695)


def test_times_between_clocks_are_straight_in_the_period():
    model = stage_curve(tokens()).best_knee
    assert model.us_per_token(600) == pytest.approx(1500 + 0.5e6 / 600)


def test_a_limit_that_binds_is_drawn_and_a_higher_one_changes_nothing():
    curve = stage_curve(tokens())
    assert curve.at(170).draw_w == pytest.approx(170)
    top = curve.top
    assert top.clock_mhz == SWEEP.model.top_mhz
    assert curve.at(400).tokens_per_s == top.tokens_per_s and curve.at(400).draw_w == top.draw_w < 400


def test_the_draw_follows_the_clock_as_that_of_the_sweep():
    model = stage_curve(tokens()).best_knee
    for mhz in (405, 1000, 1980):
        assert model.draw_w(mhz) / model.draw_w(1695) == pytest.approx(
            SWEEP.model.draw_w(mhz) / SWEEP.model.draw_w(1695)
        )


@pytest.mark.planted
def test_joules_move_the_draw_and_cycles_the_sweet_spot():
    usual, hungry, bound = (stage_curve(tokens(**more)) for more in ({}, {"watts": 300}, {"cycles": 3e6}))
    assert hungry.top.draw_w == pytest.approx(1.5 * usual.top.draw_w)
    assert hungry.best()[0].limit_w == pytest.approx(1.5 * usual.best()[0].limit_w, abs=2)
    # A stage that mostly takes cycles loses speed with every watt.
    assert bound.spot()[0].limit_w / bound.top.draw_w > usual.spot()[0].limit_w / usual.top.draw_w


def test_bands_hold_the_best_knee_and_come_from_all():
    curve = stage_curve(tokens())
    assert len(curve.admissible) == 9
    assert curve.admissible[0].power == SWEEP.admissible[0] and curve.admissible[-1].power == SWEEP.admissible[-1]
    for point, low, high in (curve.best(), curve.spot()):
        assert low <= point.limit_w <= high
    assert curve.best()[1] < curve.best()[2]


@pytest.mark.parametrize(
    "found, said",
    [(tokens(card="T4"), "T4: there is no published sweep"), (tokens(clocks=CLOCKS[2:]), "expected 3 clocks or more"),
     (tokens(clocks=(405.0, 900.0, 1980.0)), "1695 MHz among them")],
)  # fmt: skip
def test_predictions_that_give_no_curve_are_refused(found, said):
    with pytest.raises(ValueError, match=said):
        stage_curve(found)


def test_a_limit_below_the_lowest_clock_is_refused_and_drawn_as_that_clock():
    curve = stage_curve(tokens())
    with pytest.raises(ValueError, match="limit_w: expected 1.. W or more"):
        curve.best_knee.at(50)
    assert curve.at(50).clock_mhz == pytest.approx(405)


def test_the_stored_stages_are_modelled_for_the_card_of_the_sweep():
    curves = stage_curves()
    assert "megakernel" in [curve.system for curve in curves]
    for curve in curves:
        assert curve.kind == "modelled" and curve.provenance.startswith("modelled for RTX 3090")
        clocks = [token.clock_mhz for token in find(curve.system, SWEPT)]
        assert clocks[0] == min(point.clock_mhz for point in SWEEP.sweep.points)
        assert clocks[-1] == SWEEP.model.top_mhz
    assert len(StageCurves(curves).body) == len(curves)
    assert all(len(row) == len(StageCurves.header) for row in StageCurves(curves).body)


def test_a_small_model_has_a_curve_in_seconds():
    card = find_card(SWEPT)
    made = [predict("megakernel", card, model="tiny", clock_mhz=mhz, position=20) for mhz in (405.0, 1695.0, 1980.0)]
    between = predict("megakernel", card, model="tiny", clock_mhz=900.0, position=20)
    curve = stage_curve(made)
    assert curve.best_knee.us_per_token(900) == pytest.approx(between.us, rel=0.02)
    assert between.us > made[1].us and between.power_w == pytest.approx(made[1].power_w, rel=0.2)
    assert curve.top.tokens_per_s == pytest.approx(1e6 / made[-1].us)
    assert stage_curve([replace(token, us=2 * token.us) for token in made]).top.tokens_per_s < curve.top.tokens_per_s
