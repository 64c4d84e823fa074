"""Each picture of a record shows its rows and provenance, without overlapping texts; without data there is none."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

import luce_edu
from luce_edu import cli, models, scoreboard
from luce_edu.measure import launches
from luce_edu.measure.launches import Count
from luce_edu.measure.records import steps
from luce_edu.measure.records.record import load_records, records_dir
from luce_edu.plots import records as figures
from luce_edu.plots.records import (
    NoData,
    ablations,
    context,
    draw,
    energy,
    ladder,
    latency,
    results_table,
    waterfall,
)
from luce_edu.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
PICTURES = {picture.__name__: picture for picture in (latency, waterfall, energy, context, ablations)}
BEGIN, END = "<!-- results -->", "<!-- /results -->"
RECORDS = {"h100": synthetic.h100, "3090": synthetic.rtx_3090}
every_picture = pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
every_record = pytest.mark.parametrize("make", RECORDS.values(), ids=RECORDS)


@pytest.fixture
def counted(monkeypatch):
    """Counts for the ladder that need no virtual GPU; tests/measure/test_launches.py tests the real ones."""
    counts = {"eager": Count(2041, 0, 2041), "megakernel": Count(1, 121, 1)}
    monkeypatch.setattr(launches, "count_launches", lambda config: counts)


def texts(figure):
    """Every text in a picture, its line breaks as spaces, with its box on the canvas."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    never_drawn = {tick.label1 for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
                   for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
                   if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())}  # fmt: skip
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    shown = [text for text in shown if text not in never_drawn]
    return [(" ".join(text.get_text().split()), text.get_window_extent(canvas.get_renderer())) for text in shown]


def said(figure):
    return " | ".join(words for words, _ in texts(figure))


def rows_of(record, system):
    return [row for row in record.parts["decode"] if row.system == system]


@every_record
@every_picture
def test_the_caption_holds_the_records_provenance_and_says_what_is_modelled(picture, make):
    record = make()
    caption = " ".join(picture(record).get_supxlabel().split())
    assert record.provenance in caption and "synthetic" in caption
    assert ("modelled" in caption) == (picture is not energy)


@every_record
@every_picture
def test_axes_are_labelled_with_units_on_white(picture, make):
    figure = picture(make())
    labels = figure.axes[0].get_xlabel() + figure.axes[0].get_ylabel()
    assert "µs per token" in labels or "tokens per joule" in labels
    assert figure.get_facecolor() == (1, 1, 1, 1)


def crowded(record):
    """With three more systems and very long names."""
    for rows in (record.parts["decode"], record.parts["energy"]):
        rows += [replace(row, system=f"another system with a long name, {row.system}")
                 for row in rows if row.system in ("per_op", "graph", "llama.cpp")]  # fmt: skip
    gpu = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition, one of eight (synthetic)"
    return synthetic.of_machine(record, gpu=gpu)


def only(record, *systems):
    kept = {part: [row for row in record.parts[part] if row.system in systems] for part in ("decode", "energy")}
    return synthetic.with_parts(record, **kept)


CASES = {
    "h100": synthetic.h100,
    "3090": synthetic.rtx_3090,
    "crowded": lambda: crowded(synthetic.h100()),
    "two stages": lambda: only(synthetic.h100(), "graph", "megakernel"),
    "two without bandwidth": lambda: only(synthetic.without(synthetic.rtx_3090(), "bandwidth"), "per_layer", "graph"),
}


@every_picture
@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_no_text_lies_on_another_or_beyond_the_edge(picture, make):
    figure = picture(make())
    boxes, size = texts(figure), figure.bbox.padded(1)
    assert len(boxes) > 5
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), (one, other)
    for words, box in boxes:
        assert size.x0 <= box.x0 and box.x1 <= size.x1 and size.y0 <= box.y0 and box.y1 <= size.y1, words


@pytest.mark.planted
def test_an_overlap_is_seen():
    figure = latency(synthetic.h100())
    figure.axes[0].text(1000, 0, "in the way")
    figure.axes[0].text(1010, 0.05, "of this")
    boxes = texts(figure)
    assert any(a.overlaps(b) for (_, a), (_, b) in itertools.combinations(boxes, 2))


@every_record
def test_latency_shows_medians_quartiles_and_both_floors(make):
    record = make()
    figure = latency(record)
    words = said(figure)
    (row,) = [row for row in rows_of(record, "graph") if row.context == 520]
    assert f"{row.latency_us.median:,.0f} µs" in words and "context of 520" in words
    datasheet, read = (row.bytes / 1e3 / getattr(record.parts["bandwidth"], name) for name in ("datasheet", "read"))
    assert f"floor, {datasheet:,.0f} µs" in words and f"floor, {read:,.0f} µs" in words
    lines = [line.get_xdata()[0] for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1]
    assert lines == pytest.approx([datasheet, read])
    bars = figure.axes[0].patches
    assert len(bars) == len(synthetic.COUNTS) + len(synthetic.BASELINES)
    assert bars[3].get_x() + bars[3].get_width() == pytest.approx(row.latency_us.median)
    ends = figure.axes[0].collections[0].get_segments()[3][:, 0]
    assert list(ends) == pytest.approx([row.latency_us.q1, row.latency_us.q3])


def test_latency_without_a_bandwidth_claims_no_floor():
    figure = latency(synthetic.without(synthetic.h100(), "bandwidth"))
    assert "floor" not in said(figure) and "modelled" not in figure.get_supxlabel()
    assert figure.axes[0].patches[0].get_x() == 0


def test_the_context_nearest_to_520_is_taken_and_named():
    record = synthetic.h100()
    record.parts["decode"][:] = [row for row in record.parts["decode"] if row.context in (1, 2048)]
    assert "context of 1," in said(latency(record))


@every_record
def test_the_parts_of_the_waterfall_add_up_to_the_recorded_median(make):
    record = make()
    figure = waterfall(record)
    for i, stage in enumerate(("per_op", "per_layer", "graph", "megakernel")):
        bars = [bar for bar in figure.axes[0].patches if abs(bar.get_y() + 0.31 - i) < 1e-9]
        (row,) = [row for row in rows_of(record, stage) if row.context == 520]
        assert len(bars) == 3
        assert sum(bar.get_width() for bar in bars) == pytest.approx(row.latency_us.median)
        # The synthetic rest is above zero for two stages and below zero for two.
        assert (bars[2].get_width() > 0) == (synthetic.UNEXPLAINED[stage] > 1)
    words = said(figure)
    for shown in ("rest: above what is modelled", "rest: below what is modelled", "rest \N{MINUS SIGN}", "rest +"):
        assert shown in words
    asked = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert asked == [row.enqueue_us for stage in ("per_op", "per_layer") for row in rows_of(record, stage)[:1]]
    caption = " ".join(figure.get_supxlabel().split())
    for constant in ("GB/s", "µs per launch", "µs per kernel of a graph", "µs per barrier"):
        assert constant in caption


def test_the_waterfall_of_too_few_rows_or_of_uncounted_kernels_is_not_drawn():
    one = only(synthetic.h100(), "megakernel")
    one.parts["decode"][:] = one.parts["decode"][:2]
    with pytest.raises(NoData, match="2 rows for 2 constants"):
        waterfall(one)
    uncounted = only(synthetic.h100(), "per_op", "eager")
    uncounted.parts["decode"][:] = [replace(row, kernels=None) for row in uncounted.parts["decode"]]
    with pytest.raises(NoData):
        waterfall(uncounted)


def test_energy_shows_gross_and_net_of_idle():
    record = synthetic.h100()
    row = record.parts["energy"][4]
    gross = row.tokens / row.joules
    net = row.tokens / (row.joules - row.seconds * row.idle_w)
    assert net > gross and f"{gross:.2f}; net {net:.2f}" in said(energy(record))
    assert "power samples give 97 % of it" in " ".join(energy(record).get_supxlabel().split())
    assert "from power samples alone: llama.cpp" in " ".join(energy(synthetic.rtx_3090()).get_supxlabel().split())


@pytest.mark.parametrize("idle_w", [None, 1e6])
def test_energy_claims_no_net_where_idle_is_unknown_or_above_the_draw(idle_w):
    record = synthetic.h100()
    record.parts["energy"][:] = [replace(row, idle_w=idle_w) for row in record.parts["energy"]]
    assert "net" not in said(energy(record))


@every_record
def test_ablations_show_each_variant_beside_the_stage_and_its_prediction(make):
    record = make()
    figure = ablations(record)
    stage, *variants = record.parts["ablations"]
    words = said(figure)
    for name, change in (("no ring", "+40 %"), ("8 warps, 2 blocks per SM", "\N{MINUS SIGN}2 %")):
        assert name in words and change in words
    assert f"{stage.latency_us.median:,.0f} µs" in words and "Variants of streaming at a context of 520" in words
    marks = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert marks == [row.modelled.us for row in (stage, *variants)]
    with pytest.raises(NoData):
        ablations(synthetic.without(record, "ablations"))


def test_ablations_without_predictions_claim_none():
    record = synthetic.h100()
    rows = [replace(row, modelled=None) for row in record.parts["ablations"]]
    figure = ablations(synthetic.with_parts(record, ablations=rows))
    assert "modelled" not in said(figure) + figure.get_supxlabel()


@every_record
def test_context_shows_a_line_for_each_system_and_the_floor_of_which_deltanet_is_flat(make):
    record = make()
    axes = context(record).axes[0]
    lines = {" ".join(line.get_label().split()): line for line in axes.lines}
    assert {*synthetic.COUNTS, *synthetic.BASELINES} <= lines.keys()
    assert list(lines["graph"].get_ydata()) == [row.latency_us.median for row in rows_of(record, "graph")]
    floor, flat = (lines[name].get_ydata() for name in ("floor: every byte moves once",
                                                         "constant part: weights, DeltaNet"))  # fmt: skip
    assert len(set(flat)) == 1 and list(floor) == sorted(floor)
    rows = rows_of(record, "graph")
    gb_per_s = record.parts["bandwidth"].datasheet
    assert floor[-1] == pytest.approx(rows[-1].bytes / gb_per_s / 1e3)
    assert floor[-1] - flat[0] == pytest.approx(32_768 * 12_288 / gb_per_s / 1e3)  # the bytes of the KV cache
    styles = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines]
    assert len(set(styles)) == len(styles)


def test_a_record_draws_what_it_holds_and_an_empty_one_nothing(tmp_path):
    record = synthetic.h100()

    def drawn(record):
        return {path.name.split("-")[0] for path in draw([record], tmp_path / "new" / "folder")}

    assert drawn(record) == {"latency", "waterfall", "energy", "context", "ablations"}
    assert drawn(synthetic.without(record, "energy", "ablations")) == {"latency", "waterfall", "context"}
    assert drawn(synthetic.without(record, "decode", "ablations")) == {"energy"}
    assert drawn(synthetic.without(record, "bandwidth", "launch", "verify", "prefill")) == drawn(record)
    assert drawn(only(record, "eager")) == {"latency", "energy", "context", "ablations"}
    assert drawn(synthetic.without(record, *record.parts)) == set()
    assert draw([], tmp_path / "none") == [] and list((tmp_path / "none").iterdir()) == []


def test_the_same_records_give_the_same_bytes(tmp_path, counted):
    records = [synthetic.h100(), synthetic.rtx_3090(), *load_records()]
    first, again = draw(records, tmp_path / "a"), draw(records[::-1], tmp_path / "b")
    assert {path.name for path in first} == {path.name for path in again} and len(first) == 11
    for path in first:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
        assert b"<dc:date>" not in path.read_bytes()


def test_the_ladder_shows_published_results_and_their_sources(counted):
    figure = ladder(load_records())
    words = said(figure)
    assert "2,041" in words and "Luce megakernel" in words and "H200" not in words
    assert "measured" in figure.get_supxlabel() and "published" in figure.get_supxlabel()
    with pytest.raises(NoData):
        ladder([synthetic.h100()])


def test_the_table_sets_recorded_rows_before_published_ones_and_says_which_are_which():
    text = results_table([*load_records(records_dir()), synthetic.rtx_3090(), synthetic.h100()])
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    marks = [line.split("|")[-2].split(":")[0].strip() for line in lines]
    count = len(synthetic.COUNTS) + len(synthetic.BASELINES)
    assert marks == ["[recorded](../figures/records/synthetic-3090.json)"] * count + [
        "[recorded](../figures/records/synthetic-h100.json)"
    ] * count + ["published"] * 8
    times = [float(line.split("|")[4].replace(",", "")) for line in lines[:count]]
    assert times == sorted(times, reverse=True)
    (mega,) = [line for line in lines if line.startswith("| megakernel") and "H100" in line]
    record = synthetic.h100()
    (row,) = [row for row in rows_of(record, "megakernel") if row.context == 520]
    us = row.latency_us.median
    share = row.bytes / us / 1e3 / 3350
    assert [cell.strip() for cell in mega.split("|")[2:7]] == [
        "random-0.8b", record.gpu, f"{us:,.0f}", f"{100 * share:.0f} %", "1",
    ]  # fmt: skip
    assert record.provenance.removeprefix("recorded: ") in mega


def test_the_table_leaves_open_what_was_not_recorded():
    record = synthetic.without(synthetic.h100(), "bandwidth", "energy")
    line = next(line for line in results_table([record]).splitlines() if line.startswith("| llama.cpp"))
    assert [cell.strip() for cell in line.split("|")[5:8]] == ["–", "–", "–"]
    assert results_table([synthetic.without(record, "decode")]).count("\n| ") == 1  # the header's rule


def test_the_page_holds_the_table_of_the_records():
    before, begin, rest = (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8").partition(BEGIN)
    table, end, _ = rest.partition(END)
    assert begin and end
    assert table == f"\n{results_table(load_records(ROOT / 'figures' / 'records'))}\n"


def test_a_page_is_rewritten_between_its_marks_alone(tmp_path):
    page = tmp_path / "measuring.md"
    table = results_table(load_records())
    assert not figures.write_table("results", table, page)
    page.write_text("no marks", encoding="utf-8")
    assert not figures.write_table("results", table, page) and page.read_text(encoding="utf-8") == "no marks"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n", encoding="utf-8")
    for _ in range(2):
        assert figures.write_table("results", table, page)
        assert page.read_text(encoding="utf-8") == f"above\n{BEGIN}\n{table}\n{END}\nbelow\n"


def test_the_readme_has_a_place_for_what_is_modelled():
    before, begin, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- modelled -->")
    table, end, _ = rest.partition("<!-- /modelled -->")
    missing = [stage for stage in STAGES if f"| `{stage}` |" not in table]
    assert begin and end and missing == [], "luce-edu figures --modelled"
    assert "modelled for the RTX 3090 and the H200" in table


def test_the_command_writes_what_is_modelled_beside_its_folder(tmp_path, monkeypatch, capsys):
    tiny = models.load_model("tiny")
    found = luce_edu.profile("megakernel", model=tiny, card="laptop", position=20)
    monkeypatch.setattr(models, "load_model", lambda name: tiny)
    monkeypatch.setattr(scoreboard, "profile", lambda stage, **how: found)
    monkeypatch.setattr(scoreboard, "_profiles", {})
    monkeypatch.setattr(steps, "profile", lambda stage, **how: found)
    (tmp_path / "docs").mkdir()
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "streaming.md"
    readme.write_text("<!-- modelled --><!-- /modelled -->", encoding="utf-8")
    marks = [f"<!-- {name} --><!-- /{name} -->" for name in ("modelled steps", "modelled ablations")]
    page.write_text("\n\n".join(marks), encoding="utf-8")
    assert cli.main(["figures", "--modelled", "--out", str(tmp_path / "figures")]) == 0
    written = [tmp_path / "figures" / "timeline.png", readme, page, page]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    of_steps, of_variants = page.read_text("utf-8").split("<!-- /modelled steps -->")
    assert of_steps.count(f"{found.total_us:.1f} µs") == len(steps.CARDS) * 7
    assert steps.ablations_table() in of_variants
    header, _, *rows = (tmp_path / "README.md").read_text(encoding="utf-8").splitlines()[1 : 3 + len(STAGES)]
    assert header.count("|") == 8 and [row.split("|")[1].strip(" `") for row in rows] == list(STAGES)
    assert "–" not in {cell.strip() for row in rows for cell in row.split("|")}


@pytest.fixture
def page(tmp_path):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "measuring.md"
    page.write_text(f"{BEGIN}{END}", encoding="utf-8")
    return page


def test_the_command_draws_and_writes_the_page_beside_its_folder(tmp_path, page, counted, capsys):
    assert cli.main(["figures", "--out", str(tmp_path / "figures")]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "figures" / "ladder.svg"), str(page)]
    assert "Hazy Research" in page.read_text(encoding="utf-8")


def test_the_command_leaves_the_page_to_the_projects_own_records(tmp_path, page, capsys):
    (tmp_path / "records").mkdir()
    record = synthetic.rtx_3090()
    record.save(tmp_path / "records" / f"{record.name}.json")
    assert cli.main(["figures", "--records", str(tmp_path / "records"), "--out", str(tmp_path / "figures")]) == 0
    assert str(page) not in capsys.readouterr().out and "waterfall-synthetic-3090.svg" in {
        path.name for path in (tmp_path / "figures").iterdir()
    }
    assert page.read_text(encoding="utf-8") == f"{BEGIN}{END}"


def test_the_command_names_a_file_that_is_no_record(tmp_path, capsys):
    (tmp_path / "half.json").write_text('{"schema": ', encoding="utf-8")
    assert cli.main(["figures", "--records", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("luce-edu: half.json: not a readable record")
