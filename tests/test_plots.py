"""Every picture says where its numbers come from, and shows the numbers that it was given."""

from dataclasses import replace

import numpy as np
import pytest

from luce_edu.backends.ledger import Launch, Traffic
from luce_edu.config import ModelConfig
from luce_edu.measure.launch_cost import LaunchBytes
from luce_edu.measure.launches import Count
from luce_edu.measure.power_model import BASELINES, fit, sweeps
from luce_edu.measure.published import RESULTS
from luce_edu.measure.records import Record, records_dir
from luce_edu.models import RANDOM_CONFIG
from luce_edu.overlap import timelines
from luce_edu.plots import (
    BLUE,
    VERMILLION,
    answers_by_write,
    blocks_over_rows,
    conv_windows,
    dataflow,
    energy_windows,
    error_by_part,
    grid_over_array,
    intensity_by_tokens,
    ladder,
    launch_timeline,
    launches_by_size,
    margins_against_slack,
    mistakes,
    power_band,
    power_curves,
    power_errors,
    prefill_against_ceiling,
    published_against_floor,
    roofline,
    shown_by_steps,
    spread,
    state_against_kv,
    state_owners,
    state_update,
    tensor_core_tile,
    tree_sum,
    warp_loads,
    work_by_length,
)

LANES = np.arange(32)
LOADS = {"down": (2048 * LANES + 2 * np.arange(3)[:, None], 2), "along": (16 * LANES + 512 * np.arange(2)[:, None], 16)}
GPUS = {"RTX 3090": (936, 35.6), "H100 SXM": (3350, 67)}
COUNTS = {"eager": Count(2000, 0), "per_op": Count(460, 0), "megakernel": Count(1, 121)}
BIG = ModelConfig.from_file(RANDOM_CONFIG)
UPDATE = ([[6, 12], [8, 16]], [[-1.8, -7.8], [-2.4, -10.4]], [[4.2, 4.2], [5.6, 5.6]])
PANELS = ["before", "written", "after"]
ERRORS = {
    "eager": {"embedding": 0.0, "layer 0": 5e-3, "layer 1": 6e-3, "k_cache": 8e-3, "logits": 4e-3},
    "wrong kv head": {"embedding": 0.0, "layer 0": 3e-7, "layer 1": 0.09, "k_cache": np.inf, "logits": np.nan},
}
MARGINS = ([0.6, 0.06, 0.03, 2.0], [0.1, 0.1, 0.1, 0.1], [True, False, True, True])
PICTURES = {
    "ladder": lambda provenance: ladder(COUNTS, RESULTS, provenance=provenance),
    "floor": lambda provenance: published_against_floor(RESULTS[:3], provenance=provenance),
    "state": lambda provenance: state_against_kv(BIG, provenance=provenance),
    "update": lambda provenance: state_update(*UPDATE, names=PANELS, provenance=provenance),
    "answers": lambda provenance: answers_by_write({"delta": [10, 10], "none": [10, 15.5]}, 10, provenance=provenance),
    "errors": lambda provenance: error_by_part(ERRORS, limit=1.25, provenance=provenance),
    "margins": lambda provenance: margins_against_slack(*MARGINS, provenance=provenance),
    "windows": lambda provenance: conv_windows([[0, 0, 7], [0, 7, 8.5]], provenance=provenance),
    "loads": lambda provenance: warp_loads(LOADS, row_bytes=2048, provenance=provenance),
    "roofline": lambda provenance: roofline(GPUS, {"1 token": 1, "64 tokens": 55}, provenance=provenance),
}


def texts(figure):
    return " ".join(
        text.get_text() for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()]
    )


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize("provenance", ["", "   ", "numbers from somewhere"])
def test_a_picture_without_provenance_is_refused(picture, provenance):
    with pytest.raises(ValueError, match="provenance"):
        picture(provenance)


def test_provenance_has_no_default_that_passes():
    with pytest.raises(ValueError, match="provenance"):
        state_against_kv(BIG)


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_a_picture_shows_itself_in_a_notebook(picture):
    assert picture("modelled from the config")._repr_png_().startswith(b"\x89PNG")


def test_the_ladder_shows_counts_shares_and_its_caption():
    figure = PICTURES["ladder"]("published by others")
    shown = texts(figure)
    for expected in ("2,000", "460", "121 grid barriers", "18 %", "Luce megakernel"):
        assert expected in shown
    assert figure.get_supxlabel() == "published by others"


def test_the_crossing_is_where_the_cache_passes_the_state():
    assert "1,536 tokens" in texts(PICTURES["state"]("modelled"))


def test_results_of_two_gpus_do_not_share_a_ceiling():
    with pytest.raises(ValueError, match="one model on one GPU"):
        published_against_floor(RESULTS, provenance="published")


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


def test_loads_of_a_warp_show_each_sector_once_and_every_lane_in_it():
    down, along = PICTURES["loads"]("modelled").axes
    assert down.get_title(loc="left") == "down: 64 bytes asked for,\n32 sectors touched, 1,024 bytes"
    assert along.get_title(loc="left") == "along: 512 bytes asked for,\n16 sectors touched, 512 bytes"
    assert sorted(patch.get_width() for patch in down.patches) == [2] * 3 * 32 + [32] * 32
    assert sorted(patch.get_width() for patch in along.patches) == [16] * 2 * 32 + [32] * 2 * 16
    with pytest.raises(ValueError, match="whole sectors"):
        warp_loads(LOADS, row_bytes=2040, provenance="modelled")


def test_a_roofline_rises_to_the_arithmetic_and_stays_there():
    (axes,) = PICTURES["roofline"]("modelled").axes
    points = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "o"]
    assert points == [[pytest.approx(0.936), 35.6], [pytest.approx(3.35), 67]]
    assert [text.get_text() for text in axes.texts] == ["1 token", "64 tokens"]


def test_errors_stand_where_they_are_and_what_has_no_logarithm_at_the_edges():
    (axes,) = PICTURES["errors"]("measured").axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines if not line.get_label().startswith("_")}
    low, *eager = drawn["eager"]
    assert list(drawn) == list(ERRORS) and eager == [5e-3, 6e-3, 8e-3, 4e-3]
    lowest, *inside, infinite, nan = drawn["wrong kv head"]
    assert low == lowest < 3e-7 and inside == [3e-7, 0.09] and infinite == nan > 0.09
    assert [text.get_text() for text in axes.texts] == ["0", "not finite"]
    assert axes.get_yscale() == "log" and "1.25 times the error of eager" in axes.get_title(loc="right")


def test_what_is_refused_begins_at_the_limit_times_the_yardstick():
    (axes,) = PICTURES["errors"]("measured").axes
    heights = {round(float(y), 9) for path in axes.collections[0].get_paths() for _, y in path.vertices}
    assert {round(1.25 * error, 9) for error in (5e-3, 6e-3, 8e-3, 4e-3)} <= heights


def test_programs_with_other_parts_are_not_compared():
    with pytest.raises(ValueError, match="the same parts"):
        error_by_part(ERRORS | {"per_op": {"logits": 1e-4}}, limit=1.25, provenance="measured")


def test_each_margin_is_in_the_group_that_its_slack_puts_it_in():
    (axes,) = PICTURES["margins"]("measured").axes
    drawn = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert drawn == {
        "decided, and bf16 chose the same": [0, 3],
        "not decided, bf16 chose the same": [2],
        "not decided, bf16 chose another": [1],
    }
    assert [bar.get_height() for bar in axes.patches] == [0.1] * 4


# Notebook 04.

SIZES = [LaunchBytes("rms_norm", 3, 12_288), LaunchBytes("matvec", 2, 12_611_584)]
FIRST_KERNEL = {
    "grid": lambda provenance: grid_over_array(n=11, block=4, provenance=provenance),
    "rows": lambda provenance: blocks_over_rows(rows=2, n=10, block=4, provenance=provenance),
    "tree": lambda provenance: tree_sum([3, 1, 4, 1, 5, 9, 2, 6], provenance=provenance),
    "launches": lambda provenance: launches_by_size(SIZES, 1.54, 936, provenance=provenance),
}


@pytest.mark.parametrize("picture", FIRST_KERNEL.values(), ids=FIRST_KERNEL)
def test_a_picture_of_a_kernel_shows_itself_and_only_with_provenance(picture):
    assert picture("modelled")._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="provenance"):
        picture("drawn")


def test_every_element_of_an_array_has_one_thread_and_the_spare_thread_has_none():
    (axes,) = FIRST_KERNEL["grid"]("modelled").axes
    shown = [text.get_text() for text in axes.texts]
    assert [text for text in shown if text.startswith("blockIdx")] == [f"blockIdx.x = {b}" for b in range(3)]
    assert [text for text in shown if text.startswith("no")] == ["no\nx[11]"]
    elements = {text.get_position()[0]: text.get_text() for text in axes.texts if text.get_position()[1] == 0.35}
    assert elements == {i + 0.5: str(i) for i in range(11)}


def test_a_block_goes_over_its_row_in_passes():
    (axes,) = FIRST_KERNEL["rows"]("modelled").axes
    for row in range(2):
        owners = [text.get_text() for text in axes.texts if text.get_position()[1] == row]
        assert owners == [str(c % 4) for c in range(10)]
    passes = [text.get_text() for text in axes.texts if text.get_text().startswith("pass")]
    assert passes == ["pass 0", "pass 1", "pass 2"]


def test_a_tree_ends_in_the_sum_with_a_barrier_after_every_step():
    (axes,) = FIRST_KERNEL["tree"]("modelled").axes
    shown = [text.get_text() for text in axes.texts]
    assert shown.count("__syncthreads()") == 4
    last = [text.get_text() for text in axes.texts if text.get_position()[1] == 3]
    assert last[0] == "31"


def test_launches_are_split_where_starting_takes_as_long_as_their_bytes():
    (axes,) = FIRST_KERNEL["launches"]("modelled").axes
    shown = " ".join(text.get_text() for text in axes.texts)
    assert "3 launches: starting takes longer" in shown and "2: moving does" in shown
    assert "starting it: 1.54 µs" in shown and "rms_norm: 12,288 bytes" in shown


# Notebook 06.


def _launch(kernel: str, **tensors: str) -> Launch:
    """A ledger's entry that reads ("r"), writes ("w") or changes ("rw") tensors of 4 bytes."""
    traffic = {
        name: Traffic(distinct_read=4 * ("r" in how), distinct_write=4 * ("w" in how)) for name, how in tensors.items()
    }
    return Launch(kernel, (1, 1, 1), (32, 1, 1), 0, False, traffic=traffic, barriers_a_block=0.0)


FLOW = [
    _launch("norm", x="r", y="w"),
    _launch("matvec", y="r", z="w"),
    _launch("silu", z="rw"),
    _launch("add", z="r", y="w"),
    _launch("copy", y="r", x="w"),
]
OWNERS = {"heads": 16, "key_dim": 128, "value_dim": 128, "tile_columns": 16, "block_threads": 512, "sm_count": 82}
LAYER_KERNELS = {
    "dataflow": lambda provenance: dataflow(FLOW, ["x", "y", "z"], {"front": 3, "back": 2}, provenance=provenance),
    "owners": lambda provenance: state_owners(**OWNERS, provenance=provenance),
}


@pytest.mark.parametrize("picture", LAYER_KERNELS.values(), ids=LAYER_KERNELS)
def test_a_picture_of_a_layer_shows_itself_and_only_with_provenance(picture):
    assert picture("measured")._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="provenance"):
        picture("drawn")


def test_a_buffer_lives_from_the_launch_that_writes_it_to_the_last_that_reads_it():
    (axes,) = LAYER_KERNELS["dataflow"]("measured").axes
    bars = [line for line in axes.lines if line.get_linewidth() == 4]
    spans = [(line.get_ydata()[0], *line.get_xdata(), line.get_color()) for line in bars]
    # x comes from before and goes on after; y has two contents, each inside one kernel; z crosses.
    assert spans == [(0, -1, 0, BLUE), (0, 4, 5, BLUE), (1, 0, 1, VERMILLION), (1, 3, 4, VERMILLION), (2, 1, 3, BLUE)]
    assert [text.get_text() for text in axes.texts] == ["front", "back"]


@pytest.mark.planted
@pytest.mark.parametrize("kernels, total", [({"front": 3}, 3), ({"front": 3, "back": 3}, 6), ({}, 0)])
def test_kernels_that_do_not_replace_all_launches_are_refused(kernels, total):
    with pytest.raises(ValueError, match=f"they replace {total} launches, and there are 5"):
        dataflow(FLOW, ["x"], kernels, provenance="measured")


def test_sixteen_blocks_leave_most_multiprocessors_idle_and_tiles_leave_none():
    column, few, tile, many = LAYER_KERNELS["owners"]("modelled").axes
    assert few.get_title(loc="left") == "16 blocks: 16 of 82 SMs have work"
    assert many.get_title(loc="left") == "128 blocks: 82 of 82 SMs have work"
    assert [len(axes.texts) for axes in (few, many)] == [16, 82]
    assert sum(int(text.get_text()) for text in many.texts) == 128
    assert ["128 numbers" in text.get_text() for text in column.texts] == [True]
    assert ["4 numbers" in text.get_text() for text in tile.texts] == [True]


@pytest.mark.planted
@pytest.mark.parametrize("columns", [12, 6, 256])
def test_tiles_that_do_not_divide_a_head_are_refused(columns):
    with pytest.raises(ValueError, match="tile_columns"):
        state_owners(**OWNERS | {"tile_columns": columns}, provenance="modelled")


# Notebook 07.

LANES_OF_KERNELS = timelines({"up": 4.0, "rule": 0.5, "down": 1.0}, ask_us=3, gap_us=1.5, ahead_us={"up": 4, "down": 1})


def test_a_timeline_shows_itself_and_only_with_provenance():
    assert launch_timeline(LANES_OF_KERNELS, provenance="modelled")._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="provenance"):
        launch_timeline(LANES_OF_KERNELS, provenance="drawn")


def test_a_timeline_draws_every_span_where_it_is_and_names_each_end():
    (axes,) = launch_timeline(LANES_OF_KERNELS, provenance="modelled").axes
    drawn = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert drawn == [(span.start_us, span.us) for spans in LANES_OF_KERNELS.values() for span in spans]
    hatched = [bar.get_x() for bar in axes.patches if bar.get_hatch()]
    assert hatched == [span.start_us for span in LANES_OF_KERNELS["with dependent launch"] if span.ahead]
    assert [text.get_text() for text in axes.texts] == ["  9.0 µs", "  11.5 µs", "  10.0 µs", "  7.5 µs", "  5.5 µs"]


# Notebook 13.

SHOWN = {"hasty": {1: 183.0, 10: 294.0, 100: 1676.0}, "honest": {1: 1830.0, 10: 1830.0, 100: 1830.0}}
TIMES_US = [100, 101, 102, 103, 104, 105, 106, 107, 1000]
WINDOWS = [(0.02, 0.0), (0.02, 2.5), (0.5, 0.9), (2.0, 1.01), (10.0, 0.999)]
FACTORS = {"not waited for": {"modelled": 10.0}, "first call": {"measured": 0.1, "published": 0.225}, "zeros": {
    "published": 1.148}}  # fmt: skip
MEASURING = {
    "steps": lambda provenance: shown_by_steps(SHOWN, 1830.0, provenance=provenance),
    "spread": lambda provenance: spread(TIMES_US, provenance=provenance),
    "windows": lambda provenance: energy_windows(WINDOWS, tick=0.05, least=2.0, provenance=provenance),
    "mistakes": lambda provenance: mistakes(FACTORS, provenance=provenance),
}


@pytest.mark.parametrize("picture", MEASURING.values(), ids=MEASURING)
def test_a_picture_of_measuring_shows_itself_and_only_with_provenance(picture):
    assert picture("modelled")._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="provenance"):
        picture("drawn")


def test_each_way_of_timing_is_a_line_beside_the_truth():
    (axes,) = MEASURING["steps"]("modelled").axes
    truth, hasty, honest = axes.lines
    assert set(truth.get_ydata()) == {1830.0} and truth.get_label() == "the truth: 1,830 µs"
    assert dict(zip(hasty.get_xdata(), hasty.get_ydata(), strict=True)) == SHOWN["hasty"]
    assert dict(zip(honest.get_xdata(), honest.get_ydata(), strict=True)) == SHOWN["honest"]


def test_a_spread_shows_all_times_and_the_numbers_that_one_might_report():
    (axes,) = MEASURING["spread"]("measured").axes
    assert sum(bar.get_height() for bar in axes.patches[:70]) == len(TIMES_US)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["quartiles, 102 to 106", "best, 100", "median, 104", "mean, 203", "worst, 1,000"]


def test_each_window_stands_at_its_error_in_per_cent():
    (axes,) = MEASURING["windows"]("modelled").axes
    (points,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert points.get_xdata().tolist() == [seconds for seconds, _ in WINDOWS]
    assert points.get_ydata() == pytest.approx([-100, 150, -10, 1, -0.1])
    assert min(points.get_ydata()) > axes.get_ylim()[0] and max(points.get_ydata()) < axes.get_ylim()[1]


def test_each_mistake_has_a_row_and_each_kind_of_evidence_a_mark_of_its_own():
    figure = MEASURING["mistakes"]("modelled")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["10 ×", "0.1 ×", "0.23 ×", "1.15 ×"]
    marks = [(line.get_xdata()[0], line.get_marker()) for line in axes.lines if line.get_marker() != "None"]
    assert marks == [(10.0, "s"), (0.1, "o"), (0.225, "D"), (1.148, "D")]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(FACTORS)
    figure.draw_without_rendering()
    left = axes.get_window_extent().x0
    assert all(text.get_window_extent().x0 > left for text in axes.texts)


# Notebook 12.

BY_TOKENS = {n: float(n) for n in range(1, 401)}
RATES = [("Luce megakernel\nfirst README", 37800.0), ("llama.cpp\nmegakernel README", 11247.0), ("PyTorch\n#5", 8747.0)]
WORK = {
    "products": dict.fromkeys((100, 1000, 10_000), 3e9),
    "delta rule": dict.fromkeys((100, 1000, 10_000), 1e9),
    "attention": {n: 2e6 * n for n in (100, 1000, 10_000)},
}
PREFILL = {
    "intensity": lambda provenance: intensity_by_tokens(
        BY_TOKENS, {"slow": 76.5, "fast": 295.0}, mark=(1, 300), provenance=provenance
    ),
    "tile": lambda provenance: tensor_core_tile(5, provenance=provenance),
    "work": lambda provenance: work_by_length(WORK, provenance=provenance),
    "rates": lambda provenance: prefill_against_ceiling(RATES, 67_676, provenance=provenance),
}


@pytest.mark.parametrize("picture", PREFILL.values(), ids=PREFILL)
def test_a_picture_of_prefill_shows_itself_and_only_with_provenance(picture):
    assert picture("modelled")._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="provenance"):
        picture("drawn")


def test_each_gpu_is_reached_with_the_first_number_of_tokens_above_its_corner():
    (axes,) = PREFILL["intensity"]("modelled").axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["slow: 76, reached with 77 tokens", "fast: 295, reached with 295 tokens"]
    assert [text.get_text() for text in axes.texts] == ["1 token: 1", "300 tokens: 300"]


def test_a_lane_of_a_tile_stands_out_where_the_kernel_has_its_elements():
    lane = 5
    row, slot = divmod(lane, 4)
    expected = [
        {(row, slot), (row + 8, slot), (row, slot + 4), (row + 8, slot + 4)},
        {(slot, row), (slot + 4, row)},
        {(row, 2 * slot), (row, 2 * slot + 1), (row + 8, 2 * slot), (row + 8, 2 * slot + 1)},
    ]
    for axes, elements in zip(PREFILL["tile"]("published").axes, expected, strict=True):
        own = [text.get_position()[::-1] for text in axes.texts if text.get_text() == str(lane)]
        assert set(own) == elements and len(own) == len(elements)
        assert len({text.get_text() for text in axes.texts}) == 32


def test_the_length_at_which_the_last_part_overtakes_the_others_is_marked():
    (axes,) = PREFILL["work"]("modelled").axes
    assert [text.get_text() for text in axes.texts] == ["2,000 tokens: as much as all else"]


def test_each_rate_has_its_share_of_the_ceiling_and_the_colour_of_its_system():
    (axes,) = PREFILL["rates"]("published").axes
    assert [text.get_text() for text in axes.texts] == [
        "37,800  (56 %)", "11,247  (17 %)", "8,747  (13 %)", "ceiling: 67,676",
    ]  # fmt: skip
    assert len({bar.get_facecolor() for bar in axes.patches}) == 3
# Notebook 14.

SWEEPS = sweeps(Record.load(records_dir() / "published.json"))


def curves(index=0, **marks):
    sweep = SWEEPS[index]
    return power_curves(sweep, fit(sweep) if index == 0 else None, provenance="published and modelled", **marks)


def label_of(axes, words):
    (line,) = [line for line in axes.lines if words in line.get_label()]
    return line


def test_power_curves_show_each_point_in_three_panels_and_the_curve_through_them():
    for axes, value in zip(curves().axes, (lambda p: p.tokens_per_s, lambda p: p.draw_w, lambda p: p.tokens_per_joule),
                           strict=True):  # fmt: skip
        points = label_of(axes, "published: Luce megakernel")
        assert list(points.get_xdata()) == [150, 220, 300, 420]
        assert list(points.get_ydata()) == [value(p) for p in SWEEPS[0].points]
        guess = label_of(axes, "modelled, a guess")
        assert guess.get_linestyle() == "--" and (min(guess.get_xdata()), max(guess.get_xdata())) == (150, 219)
        assert axes.get_ylim()[0] == 0 and axes.get_xlabel() == "power limit, W"


def test_power_curves_without_a_model_are_points_alone():
    for axes in curves(2).axes:
        assert [line.get_label() for line in axes.lines] == ["published: llama.cpp"]


def test_power_curves_mark_the_limit_the_sweet_spot_and_what_stands_beside():
    axes = curves(limit_w=300, loss=0.05, beside=BASELINES[1]).axes[0]
    assert list(label_of(axes, "at 300 W").get_xdata()) == [300]
    assert list(label_of(axes, "least draw for 5 % less speed").get_xdata()) == [222]
    assert list(label_of(axes, "Apple M5 Max").get_ydata()) == [229, 229]
    other = curves(beside=SWEEPS[3]).axes[1]
    assert list(label_of(other, "RTX 5060 Ti").get_ydata()) == [147.2, 159.3, 172.7]


def test_power_errors_show_fitted_and_left_out_points():
    found = fit(SWEEPS[0])
    draw, _ = power_errors(found, provenance="modelled").axes
    assert list(label_of(draw, "fitted to all points").get_ydata()) == [100 * e.draw for e in found.errors]
    assert list(label_of(draw, "fitted to the others").get_ydata()) == [100 * e.draw for e in found.left_out]
    lone = replace(found, left_out=(None, *found.left_out[1:]))
    assert np.isnan(label_of(power_errors(lone, provenance="modelled").axes[0], "others").get_ydata()[0])


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


def test_a_power_picture_without_provenance_is_refused():
    found = fit(SWEEPS[0])
    for picture in (
        lambda: power_errors(found), lambda: power_band(found),
        lambda: power_curves(SWEEPS[0], found, provenance="somewhere"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="provenance"):
            picture()
