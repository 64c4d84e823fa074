"""The cost model finds planted constants, refuses rows that do not determine them, and explains every record."""

from dataclasses import replace

import pytest
import synthetic

from luce_edu.measure.latency import Quartiles
from luce_edu.measure.records.cost_model import CostModel, fit, is_modelled
from luce_edu.measure.records.record import load_records, recorded
from luce_edu.measure.records.rows import DecodeRow

LIMIT = 0.15  # of the recorded median


def row(system, *, size, us, kernels=None, barriers=0):
    return DecodeRow(system, 520, Quartiles(us, us, us, 2), None, None, kernels, barriers, size)


def planted(costs: CostModel):
    """A row for each modelled stage and context, with the time that `costs` gives it."""
    rows = [row for row in synthetic.h100().parts["decode"] if is_modelled(row)]
    return [replace(one, latency_us=synthetic.quartiles(costs.us(one))) for one in rows]


def unexplained(record) -> list[str]:
    """The rows of a record that the model fitted to it misses by more than LIMIT."""
    rows = record.parts["decode"]
    model = fit(rows)
    return [
        f"{record.name}: {one.system} at {one.context}: {100 * model.error(one):+.0f} %"
        for one in rows
        if is_modelled(one) and not abs(model.error(one)) <= LIMIT
    ]


@pytest.mark.parametrize("costs", [synthetic.H100_COSTS, synthetic.RTX_3090_COSTS])
def test_planted_constants_are_found(costs):
    found = fit(planted(costs))
    assert found.gb_per_s == pytest.approx(costs.gb_per_s)
    assert found.each_us == pytest.approx(costs.each_us)


def test_a_cost_of_zero_is_found():
    costs = CostModel(2000, {"plain": 3.0, "graph": 0.0, "barrier": 1.0})
    assert fit(planted(costs)).each_us == pytest.approx(costs.each_us, abs=1e-9)


def test_no_constant_is_negative():
    # More launches take less time here, so least squares alone would give a launch a negative cost.
    rows = [row("per_op", size=size, kernels=460, us=size / 2e6) for size in (1e9, 2e9)]
    rows += [row("per_layer", size=size, kernels=122, us=size / 1e6) for size in (1e9, 2e9)]
    found = fit(rows)
    assert found.gb_per_s > 0 and found.each_us == {"plain": 0}


def test_parts_add_up_and_are_named_after_what_they_count():
    costs = synthetic.H100_COSTS
    names = {"per_op": "launches", "per_layer": "launches", "graph": "kernels of a graph", "megakernel": "barriers"}
    for one in planted(costs)[:4]:
        parts = costs.parts(one)
        assert list(parts) == ["bytes", names[one.system]]
        assert sum(parts.values()) == pytest.approx(costs.us(one)) and costs.error(one) == pytest.approx(0)


@pytest.mark.parametrize("count", range(5))
def test_as_many_rows_as_constants_are_refused(count):
    rows = [one for one in planted(synthetic.H100_COSTS) if one.context == 1][:count]
    assert len(rows) == min(count, 4)
    with pytest.raises(ValueError, match="rows for [0-9] constants"):
        fit(rows)


def test_times_that_do_not_grow_with_bytes_are_refused():
    rows = [row("megakernel", size=1e-9, barriers=count, us=10.0 * count) for count in (10, 20, 40)]
    with pytest.raises(ValueError, match="do not separate bytes from launches"):
        fit(rows)


def test_a_row_that_is_not_modelled_is_left_out_or_refused():
    others = [row for row in synthetic.h100().parts["decode"] if not is_modelled(row)]
    assert {one.system for one in others} == {"eager", "streaming", *synthetic.BASELINES}
    rows = planted(synthetic.H100_COSTS)
    assert fit([*others, *rows]) == fit(rows)
    for one in (others[0], row("per_op", size=1e9, us=1.0), row("megakernel", size=1e9, us=1.0, barriers=None)):
        with pytest.raises(ValueError, match=f"^{one.system}: "):
            synthetic.H100_COSTS.us(one)


def test_every_recorded_stage_is_explained_within_15_percent():
    assert [line for record in recorded(load_records(), "decode") for line in unexplained(record)] == []


@pytest.mark.parametrize("make", [synthetic.h100, synthetic.rtx_3090])
def test_a_record_that_follows_the_model_is_explained(make):
    assert unexplained(make()) == []


@pytest.mark.planted
@pytest.mark.parametrize("factor", [0.6, 1.6])
def test_a_stage_that_the_model_cannot_explain_is_seen(factor):
    record = synthetic.h100()
    rows = record.parts["decode"]
    (i,) = [i for i, one in enumerate(rows) if one.key == ("megakernel", 8192)]
    rows[i] = replace(rows[i], latency_us=synthetic.quartiles(factor * rows[i].latency_us.median))
    assert any("megakernel at 8192" in line for line in unexplained(record))


def test_the_unit_costs_of_the_published_225_phases_follow_from_their_totals():
    (published,) = [record for record in load_records() if record.name == "published"]
    totals = {one.what: one.total_us for one in published.content.launch}
    assert all(one.count == 225 for one in published.content.launch)
    rows = []
    for size in (0, 936e3, 936e6):  # 0, 1 and 1000 µs on an RTX 3090
        moving = size / 936e3
        rows += [
            row("per_op", size=size, kernels=225, us=totals["plain launch"] + moving),
            row("graph", size=size, kernels=225, us=totals["kernel in a graph"] + moving),
            row("megakernel", size=size, kernels=1, barriers=225, us=totals["grid barrier"] + moving),
        ]
    found = fit(rows)
    assert found.gb_per_s == pytest.approx(936)
    # 348, 187 and 167 µs for 225 phases: a barrier costs 0.74 µs, as in notebook 09.
    assert found.each_us == pytest.approx({"plain": 1.54, "graph": 0.83, "barrier": 0.74}, abs=0.005)
