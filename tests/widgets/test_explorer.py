"""The explorer shows its sweeps. A bad input gives a message and changes nothing else. No setting of a GPU changes."""

import base64
import csv
import functools
import io
import json
import re
import time
from dataclasses import replace
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest

from luce_edu import plots
from luce_edu.errors import NotMeasured
from luce_edu.measure.power.dvfs import StageCurve
from luce_edu.measure.power.model import BASELINES, fit, sweeps
from luce_edu.measure.records.published import PUBLISHED
from luce_edu.measure.records.record import SCHEMA, RecordError
from luce_edu.plots.power import power_curves
from luce_edu.plots.style import BLUE, GREEN, ORANGE, VERMILLION
from luce_edu.walkthrough import execute
from luce_edu.widgets import PowerExplorer
from luce_edu.widgets import explorer as explorer_module
from luce_edu.widgets.explorer import HERE, gauge

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "14_the_power_explorer.ipynb"
SWEEPS = sweeps(PUBLISHED)


@pytest.fixture(scope="module", autouse=True)
def fitted_once():
    """All explorers share the fits of the published sweeps."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fit", "stage_curves"):
            patch.setattr(f"luce_edu.widgets.explorer.{name}", functools.cache(getattr(explorer_module, name)))
        yield


class FakeSensors:
    """A GPU at 200 of 350 W that counts readings. It has no method that changes a setting."""

    def __init__(self, power_w=200.0):
        self.asked, self.power = 0, power_w

    def power_w(self):
        self.asked += 1
        if self.power is None:
            raise NotMeasured("power: this GPU does not report it")
        return self.power

    def power_limit_w(self):
        return 350.0

    def sm_clock_mhz(self):
        return 1800

    def memory_clock_mhz(self):
        raise NotMeasured("memory clock: this GPU does not report it")


@pytest.fixture
def explorer(tmp_path):
    explorer = PowerExplorer([PUBLISHED], folder=tmp_path)
    yield explorer
    explorer.close()


def words(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", " ", html)).replace("\N{NO-BREAK SPACE}", " ")


def state(explorer) -> tuple:
    """Everything that a user sees or saves, except the message."""
    return explorer.picture.value, explorer.readout.value, explorer.limit.value, explorer.data(), explorer.source.value


def svg(explorer) -> ElementTree.Element:
    return ElementTree.fromstring(explorer.picture.value.partition("</svg>")[0] + "</svg>")


# ---- The picture and the readout ----


def test_it_opens_on_the_first_sweep_at_its_highest_limit(explorer):
    assert explorer.sweep == SWEEPS[0]
    assert (explorer.limit.min, explorer.limit.max, explorer.limit.value) == (150, 420, 420)
    assert "At a limit of 420 W (modelled): 432 tokens per second, 309 W" in words(explorer.readout.value)


def test_the_slider_moves_the_readout_and_the_marks(explorer):
    before = explorer.picture.value
    explorer.limit.value = 220
    said = words(explorer.readout.value)
    assert "At a limit of 220 W (modelled): 408 tokens per second, 220 W, 1.85 tokens per joule" in said
    assert "5.5 % less speed and 28.8 % less draw" in said
    assert re.search(r"speed, tok/s\s+408\s+411", said)
    assert explorer.picture.value != before


def test_what_is_modelled_is_marked_as_modelled(explorer):
    explorer.limit.value = 180
    said = words(explorer.readout.value)
    assert "(modelled)" in said and "uncertain" in said and "Curve modelled: 5 parameters, fitted to 8 numbers." in said
    assert "modelled" in words(explorer.picture.value.partition("</svg>")[2])
    for doubt in fit(SWEEPS[0]).doubts:
        assert doubt in said


def test_a_sweep_without_a_curve_shows_its_points_and_says_why(explorer):
    explorer.source.value = SWEEPS[2]
    explorer.limit.value = 460
    said = words(explorer.readout.value)
    assert "(published, the nearest point)" in said and "modelled" not in said
    assert "No curve: 5 of 5 points have no clock" in said
    assert svg(explorer).findall(".//{*}polyline") == svg(explorer).findall(".//polyline") == []
    assert len(svg(explorer).findall(".//circle")) == 3 * 5


def test_each_panel_shows_every_point_the_curve_and_the_marks(explorer):
    drawn = svg(explorer)
    assert len(drawn.findall(".//circle")) == 3 * 4
    assert len(drawn.findall(".//polygon")) == 3 * 2
    assert {line.get("stroke-dasharray") for line in drawn.findall(".//polyline")} == {None, "5 5"}
    assert drawn.get("role") == "img" and "At a limit of 420 W" in drawn.get("aria-label")


def test_the_sweet_spot_follows_the_speed_to_give_up(explorer):
    def star():
        said = words(explorer.readout.value)
        return re.search(r"★ for (\d+) % less speed.*?limit, W\s+\d+\s+\d+\s+(\d+)", said, re.S).groups()

    assert star() == ("5", "222")
    explorer.loss.value = 20
    assert star()[0] == "20" and 150 < int(star()[1]) < 200


def test_another_system_stands_beside_it_with_its_source(explorer):
    explorer.beside.value = BASELINES[1]
    said = words(explorer.readout.value)
    assert "Apple M5 Max" in said and "1.76" in said and BASELINES[1].source in said
    explorer.beside.value = SWEEPS[1]
    assert "nearest point" in words(explorer.readout.value)
    assert len(svg(explorer).findall(".//rect")) == 3 * len(SWEEPS[1].points)


def test_our_stages_stand_beside_it_modelled_for_their_card(explorer):
    stages = [item for _, item in explorer.beside.options if isinstance(item, StageCurve)]
    assert "megakernel" in [stage.system for stage in stages]
    before = len(svg(explorer).findall(".//polyline"))
    explorer.beside.value = stages[0]
    explorer.limit.value = 220
    said, drawn = words(explorer.readout.value), svg(explorer)
    assert "our megakernel, modelled for RTX 3090" in said and stages[0].provenance in said
    assert "modelled for RTX 3090: our megakernel" in words(explorer.picture.value.partition("</svg>")[2])
    here = stages[0].at(220)
    assert f"{here.tokens_per_joule:.2f}" in said
    lines = [line for line in drawn.findall(".//polyline") if line.get("stroke") == VERMILLION]
    bands = [band for band in drawn.findall(".//polygon") if band.get("fill") == VERMILLION]
    assert len(lines) == len(bands) == 3 and len(drawn.findall(".//polyline")) == before + 3
    assert all(band.get("fill-opacity") == "0.2" for band in bands)
    rows = list(csv.DictReader(io.StringIO(explorer.data())))
    ours = [row for row in rows if row["system"] == "megakernel"]
    assert len(ours) > 50 and {row["kind"] for row in ours} == {"modelled"} and all(row["source"] for row in ours)
    assert "modelled for RTX 3090" in explorer.still().get_supxlabel()


def test_a_redraw_with_a_stage_beside_it_takes_little_of_200_ms(explorer):
    explorer.beside.value = next(item for _, item in explorer.beside.options if isinstance(item, StageCurve))
    spent = []
    for limit in (200, 210, 220, 230, 240):
        begun = time.process_time()  # of this process alone
        explorer.limit.value = limit
        spent.append(time.process_time() - begun)
    assert min(spent) < 0.1


def test_a_sweep_is_not_offered_beside_itself(explorer):
    assert explorer.sweep not in [value for _, value in explorer.beside.options]
    explorer.beside.value = SWEEPS[1]
    explorer.source.value = SWEEPS[1]
    assert explorer.other is None


def test_every_sweep_can_be_chosen_in_any_order(explorer):
    for sweep in [*SWEEPS, *reversed(SWEEPS)]:
        explorer.source.value = sweep
        low, high = sweep.limits_w
        assert (explorer.limit.min, explorer.limit.max, explorer.limit.value) == (low, high, high)
        assert explorer.sweep == sweep


def test_the_field_and_the_slider_are_one_value(explorer):
    field = explorer._limit_box.children[0]
    assert field.description == "Power limit, W"
    field.value = 250
    assert explorer.limit.value == 250
    explorer.limit.value = 260
    assert field.value == 260


def test_every_control_has_a_name(explorer):
    named = [explorer.source, explorer.beside, explorer._limit_box.children[0], explorer._loss_box.children[0],
             explorer.price_text, explorer.add, explorer.save, explorer.watch]  # fmt: skip
    assert all(control.description for control in named)


def test_marks_differ_in_shape_and_in_colours_that_the_colour_blind_tell_apart(explorer):
    explorer.beside.value = SWEEPS[1]
    shapes = {BLUE: "circle", VERMILLION: "rect"}
    for colour, shape in shapes.items():
        assert {e.tag for e in svg(explorer).iter() if e.get("fill") == colour} == {shape}
    marks = {e.get("fill"): e.get("points") for e in svg(explorer).findall(".//polygon")}
    assert set(marks) == {GREEN, ORANGE} and marks[GREEN] != marks[ORANGE]


def test_a_limit_without_a_model_of_it_is_not_called_modelled(explorer):
    found = explorer.fit_of(explorer.sweep)
    explorer._fits[explorer.sweep] = replace(found, model=replace(found.model, static_w=160))
    explorer.limit.value = 155
    assert "(published, the nearest point): 194 tokens" in words(explorer.readout.value)


# ---- Prices ----


def test_costs_follow_the_price(explorer):
    explorer.limit.value = 220
    explorer.price_text.value = "0,60"
    said = words(explorer.readout.value)
    assert re.search(r"cost per million tokens, at 0.6 per kWh\s+0\.090\s+0\.089", said)
    assert explorer.message.value == ""


@pytest.mark.planted
@pytest.mark.parametrize("text", ["0", "free", "", "-1", "nan"])
def test_a_bad_price_gives_a_message_and_changes_nothing(explorer, text):
    before = state(explorer)
    explorer.price_text.value = text
    assert "price: expected a number above 0" in words(explorer.message.value)
    assert 'role="alert"' in explorer.message.value
    assert state(explorer) == before and explorer.price == 0.30
    explorer.price_text.value = "0.25"
    assert explorer.message.value == "" and explorer.price == 0.25


# ---- Records ----


def published_with(change) -> str:
    content = PUBLISHED.to_json()
    change(content)
    return json.dumps(content)


BAD = {
    "another schema": (published_with(lambda c: c.update(schema="luce_edu record 7")), "expected schema"),
    "not JSON": ("{", "not a readable record"),
    "a list": ("[]", "expected schema"),
    "no sweep": (published_with(lambda c: [c.pop(part) for part in ("sweeps", "energy")]), "it has no sweep"),
    "a sweep without points": (published_with(lambda c: c["sweeps"][0].update(points=[])), "sweeps/0/points"),
    "a hole": (published_with(lambda c: c["sweeps"][0]["points"][1].pop("draw_w")), "draw_w: it is missing"),
    "NaN": (published_with(lambda c: c["sweeps"][0]["points"][1].update(draw_w=float("nan"))), "draw_w"),
    "a draw of zero": (published_with(lambda c: c["sweeps"][0]["points"][1].update(draw_w=0)), "draw_w"),
}


@pytest.mark.planted
@pytest.mark.parametrize("text, reason", BAD.values(), ids=BAD)
def test_a_bad_record_gives_a_message_and_changes_nothing(explorer, tmp_path, text, reason):
    path = tmp_path / "bad.json"
    path.write_text(text)
    before = state(explorer), explorer.source.options
    explorer.add.value = str(path)
    assert "bad.json" in words(explorer.message.value) and reason in words(explorer.message.value)
    assert (state(explorer), explorer.source.options) == before


def test_a_record_that_is_not_there_is_said(explorer):
    explorer.add.value = "nowhere.json"
    assert "nowhere.json: not a readable record" in words(explorer.message.value)
    explorer.add.value = ""
    assert explorer.message.value == ""


def test_a_record_is_added_and_chosen(explorer, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(published_with(lambda c: c["sweeps"][0].update(system="Mine", gpu="RTX 9999")))
    explorer.add.value = str(path)
    assert explorer.message.value == ""
    assert (explorer.sweep.system, explorer.sweep.gpu) == ("Mine", "RTX 9999")
    assert len(explorer.source.options) == len(SWEEPS) + 1 + 1


def test_a_bad_record_among_good_ones_is_named_and_left_out(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"schema": SCHEMA}))
    explorer = PowerExplorer([bad, PUBLISHED])
    assert "bad.json" in words(explorer.message.value)
    assert explorer.sweep == SWEEPS[0]


def test_no_record_at_all_is_refused_with_the_reason(tmp_path):
    with pytest.raises(RecordError, match="no record"):
        PowerExplorer([])
    with pytest.raises(RecordError, match="gone.json: not a readable record"):
        PowerExplorer([tmp_path / "gone.json"])


def test_text_of_a_record_is_shown_as_text(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(published_with(lambda c: c["sweeps"][0].update(system="<script>", source="<script>")))
    explorer = PowerExplorer([path])
    for html in (explorer.picture.value, explorer.readout.value):
        assert "<script" not in html and "&lt;script" in html
    explorer.add.value = "<b>gone</b>.json"
    assert "<b>gone" not in explorer.message.value


# ---- This machine ----


def test_a_machine_without_a_gpu_says_so_and_stays_where_it_was(explorer):
    if explorer._sensors is not None:
        pytest.skip("there is a GPU here")
    before = state(explorer)
    explorer.source.value = HERE
    assert "this machine: no CUDA GPU here" in words(explorer.message.value)
    assert state(explorer) == before
    assert explorer.watch.disabled and "no CUDA GPU here" in words(explorer.gauge.value)


def test_a_gpu_without_a_sweep_is_told_how_to_get_one(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA Test 1")
    explorer = PowerExplorer([PUBLISHED], sensors=FakeSensors())
    explorer.source.value = HERE
    assert "no sweep of NVIDIA Test 1 is recorded; `luce-edu sweep` measures one" in words(explorer.message.value)
    assert explorer.sweep == SWEEPS[0]


def test_the_gauge_follows_the_gpu_while_it_is_watched(monkeypatch):
    monkeypatch.setattr("luce_edu.widgets.explorer.POLL_S", 0.01)
    sensors = FakeSensors()
    explorer = PowerExplorer([PUBLISHED], sensors=sensors)
    assert not explorer.watch.disabled and sensors.asked == 0
    explorer.watch.value = True
    deadline = time.monotonic() + 5
    while "200 W of 350 W" not in explorer.gauge.value and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "Live, measured: 200 W of 350 W; SMs at 1,800 MHz, memory at – MHz." in words(explorer.gauge.value)
    explorer.close()
    time.sleep(0.1)
    asked = sensors.asked
    time.sleep(0.1)
    assert sensors.asked == asked


def test_a_reading_that_cannot_be_had_is_a_dash():
    assert "Live, measured: – W of 350 W" in words(gauge(FakeSensors(power_w=None)))


def test_the_widgets_never_change_a_setting():
    from luce_edu import widgets

    files = sorted(Path(widgets.__file__).parent.glob("*.py"))
    assert len(files) >= 3
    setting = r"nvmlDeviceSet|nvidia-smi|PowerLimit|ClockLock|power\.(limits|sweep)\b|import (limits|sweep)\b"
    assert re.search(setting, "pynvml.nvmlDeviceSetPowerManagementLimit(gpu, 200_000)"), "the pattern finds a call"
    for file in files:
        assert not re.search(setting, file.read_text())


# ---- Saved files, and a kernel without widgets ----


def test_picture_and_data_are_saved_and_named(explorer, tmp_path):
    explorer.beside.value = BASELINES[0]
    explorer.save.click()
    png, table = sorted(tmp_path.iterdir(), reverse=True)
    assert png.read_bytes().startswith(b"\x89PNG") and png.name in words(explorer.message.value)
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    kinds = [row["kind"] for row in rows]
    assert kinds.count("published") == 5 and kinds.count("modelled") >= 420 - 150
    assert float(rows[1]["tokens_per_joule"]) == pytest.approx(411 / 220, rel=1e-5)
    assert all(row["source"] for row in rows)


@pytest.mark.planted
def test_a_folder_that_cannot_be_written_is_said(explorer, tmp_path):
    explorer.folder = tmp_path / "gone"
    assert explorer.export() == []
    assert "export: nothing was written: No such file" in words(explorer.message.value)


def test_where_widgets_are_not_shown_there_is_a_picture_with_a_line_on_what_to_install(explorer, monkeypatch):
    drawn = []

    def drawing(*args, **kwargs):
        drawn.append(power_curves(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(plots, "power_curves", drawing)
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    for said in (drawn[0].get_supxlabel(), bundle["text/plain"]):
        assert "pip install jupyterlab_widgets" in said.splitlines()[-1]
    assert "pip install" not in explorer.still().get_supxlabel()


def test_a_kernel_without_ipywidgets_shows_the_still_picture_and_takes_the_notebooks_cells(tmp_path):
    """Runs the cells of notebook 14 that create and use the explorer, and then sets the limit."""
    cells = {cell.id: cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells}
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell("import sys\nsys.modules['ipywidgets'] = None  # as without the package"),
        *(nbformat.v4.new_code_cell(cells[name].source) for name in ("c02", "c29", "c32")),
        nbformat.v4.new_code_cell("explorer.limit.value = 220\nprint(explorer.readout.value)\nexplorer.close()"),
    ])  # fmt: skip
    nbformat.write(notebook, tmp_path / "without.ipynb")
    _, _, shown, told, moved = execute(tmp_path / "without.ipynb").cells
    [output] = shown.outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert "%pip install ipywidgets" in output.data["text/plain"].splitlines()[-1]
    assert told.outputs == cells["c32"].outputs
    assert 'data-limit-w="220"' in moved.outputs[0].text


def test_the_picture_says_what_is_published_and_what_is_modelled(explorer):
    caption = explorer.still().get_supxlabel()
    assert "published: Luce-Org/lucebox" in caption and "Curve, diamond and star modelled" in caption
