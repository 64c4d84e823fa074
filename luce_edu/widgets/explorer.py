"""The power explorer: move a power limit and see speed, draw and tokens per joule change.

    from luce_edu.widgets import PowerExplorer
    PowerExplorer()

It reads records and sensors. It never changes a setting of a GPU.
"""

from __future__ import annotations

import base64
import csv
import io
import re
import threading
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

try:
    import ipywidgets
except ImportError:
    from luce_edu.widgets import absent as ipywidgets

from luce_edu import plots
from luce_edu.errors import NotMeasured
from luce_edu.measure.nvml import Sensors, or_none
from luce_edu.measure.power.dvfs import StageCurve, stage_curves
from luce_edu.measure.power.model import (
    BASELINES,
    Baseline,
    CannotFit,
    Fit,
    Point,
    Sweep,
    baselines,
    expected,
    fit,
    price_of,
    sweeps,
    sweet_spot,
)
from luce_edu.measure.records.record import Record, RecordError, records_dir
from luce_edu.plots.style import Picture
from luce_edu.widgets.chart import chart, legend

POLL_S = 0.5
HERE, NOTHING = "this machine", "nothing"  # entries of the two lists that are no sweeps
WIDE = {"description_width": "170px"}
# A kernel cannot know whether the page that shows its output can show widgets, so the picture says what to do.
STILL = (
    "This picture is static, as this kernel has no ipywidgets. For sliders, run %pip install ipywidgets in a cell, "
    "then restart the kernel."
    if ipywidgets.__name__ == "luce_edu.widgets.absent"
    else "This picture is static. For sliders: pip install jupyterlab_widgets where JupyterLab itself is installed, "
    "then reload the page and run the cell again."
)


class PowerExplorer(ipywidgets.VBox):
    """The widget. Everything that it shows as a curve it also says as text.

    records  files or loaded records; None for the project's own. A record that cannot be read, or has no sweep, is
             named in the widget and left out
    folder   where the export button writes
    sensors  of the GPU to watch; None for PyTorch's current GPU, if there is one
    """

    def __init__(
        self,
        records: Sequence[str | Path | Record] | None = None,
        *,
        folder: str | Path = ".",
        sensors: Sensors | None = None,
    ):
        self.folder = Path(folder)
        self.price = 0.30  # per kWh, in any currency; an example value
        self._told: dict[str, str] = {}  # by field: what is wrong with it
        self._sweeps: list[Sweep] = []
        self._beside: list[Baseline | StageCurve] = [*BASELINES, *stage_curves()]
        self._fits: dict[Sweep, Fit | str] = {}  # a model, or why there is none
        self._busy = False
        self._stop = threading.Event()
        self._sensors, self._gpu, self._no_gpu = _this_machine(sensors)
        self._make_controls()
        for record in sorted(records_dir().glob("*.json")) if records is None else records:
            self._take(record)
        if not self._sweeps:
            raise RecordError("; ".join(self._told.values()) or "there is no record, so there is no sweep to show")
        self._offer(self._sweeps[0])
        super().__init__([
            ipywidgets.HBox([self.source, self.beside], layout={"flex_flow": "row wrap"}),
            ipywidgets.HBox([self._limit_box, self._loss_box], layout={"flex_flow": "row wrap"}),
            ipywidgets.HBox([self.price_text, self.add, self.save], layout={"flex_flow": "row wrap"}),
            self.message, self.picture, self.readout,
            ipywidgets.HBox([self.watch, self.gauge], layout={"flex_flow": "row wrap"}),
        ], layout={"width": "100%"})  # fmt: skip

    def _make_controls(self) -> None:
        half = {"width": "min(540px, 98%)"}
        self.source = ipywidgets.Dropdown(description="GPU and sweep", style=WIDE, layout=half)
        self.beside = ipywidgets.Dropdown(description="Compare with", style=WIDE, layout=half)
        self.limit, self._limit_box = _slider("Power limit, W", 0, 0, 1)
        self.loss, self._loss_box = _slider("Allowed loss of speed, %", 5, 0, 30)
        self.price_text = ipywidgets.Text(
            f"{self.price:.2f}", description="Price per kWh", style=WIDE, layout={"width": "260px"},
            continuous_update=False,
        )  # fmt: skip
        self.add = ipywidgets.Text(
            "", description="Add a record", placeholder="path of a .json, then Enter", continuous_update=False,
            style={"description_width": "100px"}, layout={"width": "400px"},
        )  # fmt: skip
        self.save = ipywidgets.Button(description="Save picture and data", layout={"width": "190px"})
        self.message, self.picture, self.readout, self.gauge = (ipywidgets.HTML() for _ in range(4))
        for wide in (self.message, self.picture, self.readout):
            wide.layout = {"width": "auto", "min_width": "0"}
        self.watch = ipywidgets.ToggleButton(
            False, description="Watch the GPU", disabled=self._sensors is None, layout={"width": "150px"}
        )
        if self._sensors is None:
            self.gauge.value = f"<div>Live: {escape(self._no_gpu)}.</div>"
        self.source.observe(self._choose, "value")
        for control in (self.beside, self.limit, self.loss):
            control.observe(lambda change: self._busy or self._show(), "value")
        self.price_text.observe(self._set_price, "value")
        self.add.observe(self._add, "value")
        self.save.on_click(lambda button: self.export())
        self.watch.observe(self._watch, "value")

    # State.

    @property
    def sweep(self) -> Sweep:
        return self._chosen

    @property
    def other(self) -> Sweep | Baseline | StageCurve | None:
        """What the sweep is compared with, or None."""
        return None if self.beside.value == NOTHING else self.beside.value

    def fit_of(self, sweep: Sweep) -> Fit | None:
        """Return the model of a sweep, or None; it is fitted once."""
        if sweep not in self._fits:
            try:
                self._fits[sweep] = fit(sweep)
            except CannotFit as why:
                self._fits[sweep] = str(why)
        found = self._fits[sweep]
        return found if isinstance(found, Fit) else None

    def _take(self, source: str | Path | Record) -> Sweep | None:
        """Add the sweeps of a record and return the first. Without one, note a message and return None."""
        name = source.name if isinstance(source, Record | Path) else Path(source).name
        try:
            record = source if isinstance(source, Record) else Record.load(source)
            found = sweeps(record)
            single = baselines(record)
            if not found and not single:
                raise RecordError(f"{name}: it has no sweep and no energy; `luce-edu sweep` measures a sweep")
        except RecordError as error:
            self._told[f"record {name}"] = str(error)
            return None
        self._sweeps += [sweep for sweep in found if sweep not in self._sweeps]
        self._beside += [baseline for baseline in single if baseline not in self._beside]
        self._told.pop(f"record {name}", None)
        return found[0] if found else None

    # Handlers.

    def _offer(self, sweep: Sweep) -> None:
        """Fill both lists, with this sweep chosen, and show it."""
        gpu = self._gpu or "no NVIDIA GPU"
        self._chosen = sweep
        low, high = (round(limit_w) for limit_w in sweep.limits_w)
        self._busy = True  # each line below calls handlers, which must not run while half of the state is old
        try:
            self.source.options = [*((s.name, s) for s in self._sweeps), (f"This machine · {gpu}", HERE)]
            self.source.value = sweep
            kept, others = self.beside.value, [i for i in (*self._beside, *self._sweeps) if i != sweep]
            self.beside.options = [(NOTHING, NOTHING), *((item.name, item) for item in others)]
            self.beside.value = kept if kept in others else NOTHING
            self.limit.max = max(self.limit.max, high)
            self.limit.min, self.limit.max, self.limit.value = low, max(high, low + 1), high
        finally:
            self._busy = False
        self._show()

    def _choose(self, change) -> None:
        chosen = change["new"]
        if self._busy or chosen == self._chosen:
            return
        if chosen == HERE:
            mine = [sweep for sweep in self._sweeps if sweep.kind == "recorded" and sweep.gpu == self._gpu]
            if not mine:
                why = self._no_gpu or f"no sweep of {self._gpu} is recorded; `luce-edu sweep` measures one"
                self._told["this machine"] = f"this machine: {why}"
                self.source.value = self._chosen
                self._tell()
                return
            chosen = mine[-1]
        self._told.pop("this machine", None)
        self._offer(chosen)

    def _set_price(self, change) -> None:
        try:
            self.price = price_of(change["new"])
            self._told.pop("price", None)
        except ValueError as error:
            self._told["price"] = f"{error}; the costs below are still at {self.price:g}"
        self._show()

    def _add(self, change) -> None:
        path = change["new"].strip()
        for name in [name for name in self._told if name.startswith("record ")]:
            del self._told[name]
        sweep = self._take(path) if path else None
        self._offer(sweep or self._chosen) if path and not self._told else self._tell()

    def export(self) -> list[Path]:
        """Write the picture (PNG) and its data (CSV) into the folder and return their paths; the button calls this."""
        words = re.findall("[a-z0-9]+", f"{self.sweep.gpu} {self.sweep.system}".lower())
        stem = f"power_explorer_{'-'.join(words)}"
        paths = [self.folder / f"{stem}.png", self.folder / f"{stem}.csv"]
        try:
            paths[0].write_bytes(self.still()._repr_png_())
            paths[1].write_text(self.data(), encoding="utf-8", newline="")
        except OSError as error:
            self._told["export"] = f"export: nothing was written: {error.strerror}"
            paths = []
        else:
            self._told.pop("export", None)
        self._tell(f"saved: {', '.join(path.name for path in paths)}" if paths else "")
        return paths

    # Output.

    def still(self, note: str = "") -> Picture:
        """Return the current state as a picture, with `note` in its caption."""
        model = self.fit_of(self.sweep)
        captions = [f"Points {self.sweep.provenance}"]
        if model:
            captions.append("Curve, diamond and star modelled: luce_edu/measure/power/model.py, fitted to these points")
        if self.other:
            captions.append(f"Compared with {self.other.provenance}")
        lines = [f"{caption}." for caption in captions] + [note] * bool(note)
        return plots.power_curves(
            self.sweep, model, limit_w=self.limit.value, loss=self.loss.value / 100, beside=self.other,
            provenance="\n".join(lines),
        )  # fmt: skip

    def data(self) -> str:
        """Return points and modelled curve as CSV, with kind and source of each row."""
        model, beside = self.fit_of(self.sweep), self.other
        rows = [(self.sweep, self.sweep.kind, self.sweep.source, point) for point in self.sweep.points]
        rows += [(self.sweep, "modelled", "fitted to the points", point) for point in (model.curve if model else ())]
        if beside:
            rows += [(beside, beside.kind, beside.source, point) for point in self._points_of(beside)]
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["gpu", "system", "model", "kind", "limit_w", "clock_mhz", "draw_w", "tokens_per_s",
                        "tokens_per_joule", "source"])  # fmt: skip
        for of, kind, source, p in rows:
            numbers = (p.limit_w, p.clock_mhz, p.draw_w, p.tokens_per_s, p.tokens_per_joule)
            cells = ["" if number is None else f"{number:.6g}" for number in numbers]
            table.writerow([of.gpu, of.system, of.model, kind, *cells, source])
        return text.getvalue()

    def _points_of(self, beside: Sweep | Baseline | StageCurve) -> Sequence[Point]:
        if isinstance(beside, StageCurve):
            return [point for point, _ in beside.over(*self.sweep.limits_w)]
        return beside.points if isinstance(beside, Sweep) else [beside.point]

    def _show(self) -> None:
        sweep, model, beside = self.sweep, self.fit_of(self.sweep), self.other
        limit_w = self.limit.value
        here = expected(sweep, model, limit_w)
        spot = sweet_spot(model.curve if model else sweep.points, self.loss.value / 100)
        top = expected(sweep, model, sweep.limits_w[1])
        is_modelled = model and limit_w > model.model.static_w
        kind = "modelled" if is_modelled else f"{sweep.kind}, the nearest point"
        words = (
            f"At a limit of {limit_w} W ({kind}): {here.tokens_per_s:.0f} tokens per second, {here.draw_w:.0f} W, "
            f"{here.tokens_per_joule:.2f} tokens per joule; compared with {sweep.limits_w[1]:g} W that is "
            f"{_change(here.tokens_per_s / top.tokens_per_s)} speed and {_change(here.draw_w / top.draw_w)} draw."
        )
        if is_modelled and not model.is_trusted(limit_w):
            words += " No point was measured near it, so this is uncertain."
        nearest = sweep.nearest(limit_w)
        columns = {f"{kind}, at {limit_w}\N{NO-BREAK SPACE}W": here}
        if model:
            columns[f"{sweep.kind}, nearest point"] = nearest
        columns[f"★ for {self.loss.value} % less speed, {'modelled' if model else sweep.kind}"] = spot
        if isinstance(beside, Sweep):
            columns[f"{beside.system}, {beside.gpu}, {beside.kind}, nearest point"] = beside.nearest(limit_w)
        elif isinstance(beside, StageCurve):
            columns[f"our {beside.system}, modelled for {beside.gpu}"] = beside.at(limit_w)
        elif beside:
            columns[f"{beside.system}, {beside.gpu}, {beside.kind}"] = beside.point
        self.picture.value = chart(
            sweep, model, here=here, limit_w=limit_w, spot=spot, beside=beside, words=words
        ) + legend(sweep, model, beside)  # fmt: skip
        self.readout.value = (
            f'<p class="luce-now" data-limit-w="{limit_w}" role="status" aria-live="polite" '
            f'style="margin: 4px 0; font-size: 15px; line-height: 1.35"><b>{escape(words)}</b></p>'
            f"{self._table(columns)}{self._notes(model, beside)}"
        )
        self._tell()

    def _table(self, columns: dict[str, Point]) -> str:
        rows: dict[str, Callable[[Point], str]] = {
            "limit, W": lambda p: _number(p.limit_w, 0),
            "clock, MHz": lambda p: _number(p.clock_mhz, 0),
            "draw, W": lambda p: _number(p.draw_w, 0),
            "speed, tok/s": lambda p: _number(p.tokens_per_s, 0 if p.tokens_per_s >= 100 else 1),
            "tokens per joule": lambda p: _number(p.tokens_per_joule, 2),
            "kWh per million tokens": lambda p: _number(p.kwh_per_million, 3),
            f"cost per million tokens, at {self.price:g} per kWh": lambda p: _number(self.price * p.kwh_per_million, 3),
        }
        cell = 'style="text-align: right; padding: 1px 10px; max-width: 230px; line-height: 1.3"'
        left = 'style="text-align: left; padding: 1px 10px; line-height: 1.3"'
        head = "".join(f'<th scope="col" {cell}>{escape(name)}</th>' for name in columns)
        body = "".join(
            f'<tr><th scope="row" {left}>{escape(name)}</th>'
            + "".join(f"<td {cell}>{show(point)}</td>" for point in columns.values())
            + "</tr>"
            for name, show in rows.items()
        )
        style = "font-size: 14px; line-height: 1.3"
        return f'<table style="{style}"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'

    def _notes(self, model: Fit | None, beside: Sweep | Baseline | StageCurve | None) -> str:
        notes = [f"Points {self.sweep.provenance}."]
        if model:
            numbers = 2 * len(self.sweep.points)
            notes.append(f"Curve modelled: {model.model.PARAMETERS} parameters, fitted to {numbers} numbers.")
            notes += model.doubts
        else:
            notes.append(f"No curve: {self._fits[self.sweep]}.")
        if beside:
            notes.append(f"Compared with {beside.provenance}.")
        notes.append("Watts and joules are of the accelerator alone, as far as the sources say.")
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        return f'<ul style="font-size: 13px; line-height: 1.4; margin: 4px 0">{items}</ul>'

    def _tell(self, saved: str = "") -> None:
        wrong = "".join(f"<div>⚠ {escape(told)}</div>" for told in self._told.values())
        good = f"<div>{escape(saved)}</div>" if saved else ""
        alert = f'<div role="alert" style="color: #A63C00; font-size: 15px">{wrong}</div>' if wrong else ""
        self.message.value = alert + good

    # Live readings.

    def _watch(self, change) -> None:
        self._stop.set()
        if change["new"]:
            self._stop = threading.Event()
            threading.Thread(target=self._poll, args=(self._stop,), daemon=True).start()

    def _poll(self, stop: threading.Event) -> None:
        while not stop.wait(POLL_S):
            self.gauge.value = gauge(self._sensors)

    def close(self) -> None:
        """Close the widget and stop the live readings."""
        self._stop.set()
        super().close()

    def _repr_mimebundle_(self, **kwargs):
        """Add a static picture and what to install, for pages that do not show widgets."""
        bundle = super()._repr_mimebundle_(**kwargs)
        bundle["image/png"] = base64.b64encode(self.still(STILL)._repr_png_()).decode()
        bundle["text/plain"] += f"\n{STILL}"
        return bundle


def _slider(name: str, value: int, low: int, high: int) -> tuple[ipywidgets.IntSlider, ipywidgets.HBox]:
    """Return a slider, and a box with the slider and a field for the same number.

    The handle of an ipywidgets slider has no name for screen readers; the field has one.
    """
    slider = ipywidgets.IntSlider(value, low, high, readout=False, layout={"width": "calc(100% - 260px)"})
    field = ipywidgets.BoundedIntText(value, low, high, description=name, style=WIDE, layout={"width": "250px"})
    for trait in ("max", "min", "value"):
        ipywidgets.link((slider, trait), (field, trait))
    return slider, ipywidgets.HBox([field, slider], layout={"width": "min(540px, 98%)"})


def gauge(sensors: Sensors) -> str:
    """Return the current draw, limit and clocks of a GPU as HTML, text and bar; a dash where a reading fails."""
    power, limit, sm, memory = (
        or_none(reading)
        for reading in (sensors.power_w, sensors.power_limit_w, sensors.sm_clock_mhz, sensors.memory_clock_mhz)
    )
    words = (
        f"Live, measured: {_number(power, 0)} W of {_number(limit, 0)} W; SMs at {_number(sm, 0)} MHz, "
        f"memory at {_number(memory, 0)} MHz."
    )
    bar = ""
    if power is not None and limit:
        values = f'min="0" max="{limit:g}" value="{power:g}"'
        bar = f'<meter {values} style="width: 240px" aria-label="draw, of the limit"></meter> '
    return f'<div style="font-size: 15px">{bar}{words}</div>'


def _this_machine(sensors: Sensors | None) -> tuple[Sensors | None, str | None, str]:
    """Return (sensors, name of the GPU as in records, why there is none)."""
    try:
        sensors = sensors or Sensors.open()
    except NotMeasured as why:
        return None, None, str(why)
    import torch

    return sensors, torch.cuda.get_device_name() if torch.cuda.is_available() else None, ""


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _change(ratio: float) -> str:
    percent = 100 * (ratio - 1)
    if abs(percent) < 0.05:
        return "the same"
    return f"{abs(percent):.1f}\N{NO-BREAK SPACE}% {'more' if percent > 0 else 'less'}"
