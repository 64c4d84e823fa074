"""The pictures of records, and the table of results in docs/measuring.md. `luce-edu figures` writes them.

A picture is drawn only if a record has its data. Its caption says what was recorded, where and when, what is modelled
beside it, and who published what.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from luce_edu.config import ModelConfig
from luce_edu.measure.bench.bench import PROMPT
from luce_edu.measure.records.cost_model import fit, is_modelled
from luce_edu.measure.records.published import decode_results, once_each
from luce_edu.measure.records.record import Record
from luce_edu.measure.records.rows import DecodeRow, EnergyRow, Published
from luce_edu.plots.start_here import ladder as plot_ladder
from luce_edu.plots.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    VERMILLION,
    Picture,
    colour_of,
    label_rows,
    picture,
)
from luce_edu.stages import STAGES, stage_class

WIDTH = 5.8  # inches; in a printed column of 3.4 inches, letters of 10 points are then 6 points high
CAPTION, TITLE, NAME = 82, 56, 28  # characters per line
MARK = {"color": INK, "markerfacecolor": "white", "markersize": 8}
WHISKERS = {"ecolor": INK, "elinewidth": 1.2, "capsize": 3}
PARTS = {"bytes": BLUE, "launches": ORANGE, "kernels of a graph": PURPLE, "barriers": VERMILLION}
UNEXPLAINED, TOO_MUCH = "rest: above what is modelled", "rest: below what is modelled"
THOUSANDS = StrMethodFormatter("{x:,.0f}")
MARKERS = "os^Dv<>P*X"


class NoData(ValueError):
    """The record has no data for the picture. The message says what is missing."""


def draw(records: Iterable[Record], out: str | Path) -> list[Path]:
    """Write every picture for which the records have data into the folder `out`, as SVG; return their paths.

    The pictures of a recorded file are named after it: latency-NAME.svg. The same records give the same bytes.
    """
    records, out = list(records), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    pictures = {
        f"{picture.__name__}-{record.name}": (lambda picture=picture, record=record: picture(record))
        for record in records
        if record.kind == "recorded"
        for picture in (latency, waterfall, energy, context, prediction, ablations)
    }
    pictures["ladder"] = lambda: ladder(records)
    paths = []
    for name, make in pictures.items():
        try:
            picture = make()
        except NoData:
            continue
        paths.append(out / f"{name}.svg")
        # A fixed salt and no date: the same picture is the same file.
        with matplotlib.rc_context({"svg.hashsalt": "luce_edu"}):
            picture.savefig(paths[-1], metadata={"Date": None})
    return paths


def latency(record: Record) -> Picture:
    """Draw the µs per token at a context of 520, or the nearest recorded one, with quartiles, beside the floors.

    A logarithmic axis has no zero, so bars begin at the floor, and their length is the factor above it. Without a
    recorded bandwidth there is no floor, and the axis is linear.
    """
    at, rows = _nearest(record, "decode")
    floors = _floors(record, rows[0].bytes)
    modelled = "; floors modelled: the bytes of a token, each moved once, over the bandwidth" if floors else ""
    figure = _figure(f"Medians and quartiles {record.provenance}{modelled}", 1.9 + _rows_height(rows))
    axes = figure.subplots()
    start = min((us for us, _ in floors), default=0)
    times = [row.latency_us for row in rows]
    axes.barh(
        range(len(rows)), [us.median - start for us in times], left=start, height=0.62,
        color=[colour_of(row.system) for row in rows], error_kw=WHISKERS,
        xerr=[[us.median - us.q1 for us in times], [us.q3 - us.median for us in times]],
    )  # fmt: skip
    for i, us in enumerate(times):
        above = f", {us.median / start:.2f} ×" if floors else ""
        _beside(axes, max(us.q3, start), i, f"{us.median:,.0f} µs{above}")
    lines = [axes.axvline(us, color=INK, linewidth=1.2, linestyle=style, label=label)
             for (us, label), style in zip(floors, ("--", ":"), strict=False)]  # fmt: skip
    if floors:
        axes.set_xscale("log")
        axes.set_xlim(left=0.95 * min(start, *(us.q1 for us in times)))
        _plain_ticks(axes.xaxis)
    else:
        axes.xaxis.set_major_formatter(THOUSANDS)
    label_rows(axes, [_name(row.system) for row in rows])
    axes.tick_params(axis="y", labelsize=9)
    axes.set_xlabel(f"µs per token{' (×: times the floor)' if floors else ''}")
    _title(figure, f"Time per token at a context of {at:,}, {record.gpu}", lines)
    return figure


def waterfall(record: Record) -> Picture:
    """Draw the parts of a token's µs at each modelled stage: bytes, launches or barriers, and the rest.

    The rest is the recorded time minus the modelled parts, and may be negative. A mark shows the time that the CPU
    takes to enqueue a step of many launches; where it is longer than the GPU's, it sets the time of the step.
    """
    at, rows = _nearest(record, "decode")
    rows = [row for row in rows if is_modelled(row)]
    try:
        model = fit(record.parts["decode"])
    except ValueError as error:
        raise NoData(f"{record.name}: {error}") from None
    if not rows:
        raise NoData(f"{record.name}: no modelled stage at a context of {at}")
    names = {"plain": "per launch", "graph": "per kernel of a graph", "barrier": "per barrier"}
    costs = "".join(f", {model.each_us[how]:.2f} µs {name}" for how, name in names.items() if how in model.each_us)
    caption = f"Medians {record.provenance}; parts modelled, fitted to this record: {model.gb_per_s:,.0f} GB/s{costs}"
    figure = _figure(caption, 2.2 + 0.56 * len(rows))
    axes = figure.subplots()
    shown = {}
    beyond = [max(row.latency_us.median, model.us(row)) for row in rows]
    for i, row in enumerate(rows):
        left, median = 0.0, row.latency_us.median
        for part, us in model.parts(row).items():
            shown[part] = axes.barh(i, us, left=left, height=0.62, color=PARTS[part], label=f"{part} (modelled)")
            left += us
        rest = UNEXPLAINED if median >= left else TOO_MUCH
        shown[rest] = axes.barh(
            i, median - left, left=left, height=0.62, facecolor="#FFFFFFB0", edgecolor=INK, linewidth=0.8,
            hatch="////" if median >= left else r"\\\\", label=rest,
        )  # fmt: skip
        line = {"color": INK, "linewidth": 2, "label": "recorded median"}
        shown["median"] = axes.plot([median, median], [i - 0.42, i + 0.42], **line)[0]
        if row.system in STAGES and stage_class(row.system).starts == "plain" and row.enqueue_us is not None:
            mark = {"color": INK, "markerfacecolor": "white", "markersize": 7, "label": "CPU's time to enqueue it"}
            shown["asked"] = axes.plot(row.enqueue_us, i, "D", **mark)[0]
            beyond[i] = max(beyond[i], row.enqueue_us)
        _beside(axes, beyond[i], i, f"{median:,.0f} µs, rest {_signed_percent(1 - left / median)}", 9)
    label_rows(axes, [row.system for row in rows])
    axes.set_xlim(0, 1.02 * max(beyond))
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.set_xlabel("µs per token (rest: recorded minus modelled, in % of recorded)")
    order = [*PARTS, UNEXPLAINED, TOO_MUCH, "median", "asked"]
    handles = [shown[name] for name in order if name in shown]
    _title(figure, f"Parts of the time per token at a context of {at:,}, {record.gpu}", handles, columns=2)
    return figure


def energy(record: Record) -> Picture:
    """Draw tokens per joule: gross, for all energy that the board drew, and in a lighter bar net of its idle draw."""
    at, rows = _nearest(record, "energy")
    sampled = [row.sampled_joules / row.joules for row in rows
               if row.sampled_joules is not None and row.method == "counter"]  # fmt: skip
    by_samples = [row.system for row in rows if row.method == "samples"]
    idle = sorted({row.idle_w for row in rows if row.idle_w is not None})
    said = [
        f"NVML's energy counter over {min(row.seconds for row in rows):.0f} s or more",
        f"idle {' and '.join(f'{watts:.0f} W' for watts in idle)}" if idle else "",
        f"power samples give {_percents(sampled)} of it" if sampled else "",
        f"from power samples alone: {', '.join(by_samples)}" if by_samples else "",
    ]
    caption = f"Tokens and joules {record.provenance}; {'; '.join(filter(None, said))}"
    figure = _figure(caption, 1.9 + _rows_height(rows))
    axes = figure.subplots()
    shown = {"gross": Patch(color=GREY, label="gross")}
    for i, row in enumerate(rows):
        colour = colour_of(row.system)
        gross, net = row.tokens / row.joules, _net(row)
        words = f"{gross:.2f}"
        if net is not None:
            axes.barh(i, net, color=colour, alpha=0.35, height=0.62)
            words += f"; net {net:.2f}"
            shown["net"] = Patch(color=GREY, alpha=0.35, label="net of the idle draw")
        axes.barh(i, gross, color=colour, height=0.62)
        _beside(axes, max(gross, net or 0), i, words)
    label_rows(axes, [_name(row.system) for row in rows])
    axes.tick_params(axis="y", labelsize=9)
    axes.set_xlabel("tokens per joule")
    _title(figure, f"Tokens per joule at a context of {at:,}, {record.gpu}", list(shown.values()))
    return figure


def prediction(record: Record) -> Picture:
    """Draw recorded µs and J per token as bars, and as marks what the clock had predicted for this card.

    Shows the stages and the context that were predicted. The caption gives the card's clock if the record has it.
    """
    parts = {name: [row for row in record.parts.get(name, ()) if row.modelled] for name in ("decode", "energy")}
    if not parts["decode"]:
        raise NoData(f"{record.name}: nothing was predicted")
    panels = [
        ("µs per token", parts["decode"], lambda row: row.latency_us.median, lambda row: row.modelled.us),
        ("J per token", parts["energy"], lambda row: row.joules / row.tokens, lambda row: row.modelled.joules),
    ]
    panels = [panel for panel in panels if panel[1]]
    first = parts["decode"][0].modelled
    recorded_mhz = record.content.machine.sm_clock_mhz
    at = f"; recorded at {recorded_mhz:,.0f} MHz" if recorded_mhz else ""
    caption = (
        f"Bars {record.provenance}{at}; marks modelled for {first.card} at {first.clock_mhz:,.0f} MHz: "
        f"{first.source}"
    )
    figure = _figure(caption, 1.4 + sum(0.5 + _rows_height(rows) for _, rows, *_ in panels))
    shown = {}
    for axes, (unit, rows, recorded, predicted) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels,
                                                       strict=True):  # fmt: skip
        for i, row in enumerate(rows):
            value, modelled = recorded(row), predicted(row)
            axes.barh(i, value, color=colour_of(row.system), height=0.62)
            shown["modelled"] = axes.plot(modelled, i, "D", **MARK, label="modelled")[0]
            _beside(axes, max(value, modelled), i, f"recorded {_signed_percent(value / modelled - 1)}", 9)
        label_rows(axes, [_name(row.system) for row in rows])
        axes.set_xlim(0, 1.3 * max(max(recorded(row), predicted(row)) for row in rows))
        axes.set_xlabel(unit)
    handles = [Patch(color=GREY, label="recorded"), *shown.values()]
    _title(figure, f"Recorded against modelled, {record.gpu}", handles, columns=2)
    return figure


def ablations(record: Record) -> Picture:
    """Draw the µs per token of `streaming` and of its variants, with quartiles; as marks what the clock had predicted.

    The words beside a bar say by how much the variant is slower than the stage, which was timed in turns with it.
    """
    at, rows = _nearest(record, "ablations")
    stage = next(row for row in rows if "," not in row.system)
    caption = f"Medians and quartiles {record.provenance}"
    if first := next((row.modelled for row in rows if row.modelled), None):
        caption += f"; marks modelled for {first.card} at {first.clock_mhz:,.0f} MHz: {first.source}"
    figure = _figure(caption, 1.9 + _rows_height(rows))
    axes = figure.subplots()
    shown = {"recorded": Patch(color=GREY, label="recorded")}
    for i, row in enumerate(rows):
        us = row.latency_us
        axes.barh(
            i, us.median, color=colour_of(row.system), height=0.62, error_kw=WHISKERS,
            xerr=[[us.median - us.q1], [us.q3 - us.median]],
        )  # fmt: skip
        end, words = us.q3, f"{us.median:,.0f} µs"
        if row is not stage:
            words += f", {_signed_percent(us.median / stage.latency_us.median - 1)}"
        if row.modelled:
            shown["modelled"] = axes.plot(row.modelled.us, i, "D", **MARK, label="modelled")[0]
            end = max(end, row.modelled.us)
        _beside(axes, end, i, words, 9)
    label_rows(axes, [_name(row.system.removeprefix(f"{stage.system}, ")) for row in rows])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.set_xlabel(f"µs per token (%: beside {stage.system})")
    _title(figure, f"Variants of {stage.system} at a context of {at:,}, {record.gpu}", list(shown.values()), columns=2)
    return figure


def context(record: Record) -> Picture:
    """Draw µs per token by context, one line per system, and the floor.

    The time of weights and DeltaNet's state is constant, and that of the KV cache grows. A context of 0 has no place on
    a logarithmic axis and is left out.
    """
    rows = [row for row in record.parts.get("decode", ()) if row.context > 0]
    contexts = sorted({row.context for row in rows})
    if len(contexts) < 2:
        raise NoData(f"{record.name}: decode at two contexts or more")
    least = {row.context: row.bytes for row in rows}
    gb_per_s, which = next(iter(_bandwidths(record)), (None, ""))
    caption = f"Medians {record.provenance}"
    if gb_per_s:
        caption += f"; floor modelled at {which}"
    systems = list(dict.fromkeys(row.system for row in rows))
    figure = _figure(caption, 4 + 0.15 * len(systems))
    axes = figure.subplots()
    lines = []
    for i, system in enumerate(systems):
        points = sorted((row.context, row.latency_us.median) for row in rows if row.system == system)
        style = "-" if system in STAGES else "--"
        lines += axes.plot(
            *zip(*points, strict=True), style, marker=MARKERS[i % len(MARKERS)], markersize=5,
            color=colour_of(system), label=_name(system, 30),
        )  # fmt: skip
    if gb_per_s:
        floor = [least[c] / (gb_per_s * 1e3) for c in contexts]
        a_token = (least[contexts[-1]] - least[contexts[0]]) / (contexts[-1] - contexts[0])  # bytes of k and v
        flat = (least[contexts[0]] - a_token * contexts[0]) / (gb_per_s * 1e3)
        lines += axes.plot(contexts, floor, color=INK, linewidth=2, label="floor: every byte moves once")
        lines += axes.plot(contexts, [flat] * len(contexts), ":", color=INK, label="constant part: weights, DeltaNet")
        band = axes.fill_between(contexts, flat, floor, color=INK, alpha=0.2, linewidth=0)
        band.set_label("growing part: KV cache")
        lines.append(band)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = contexts[:1]
    for c in contexts:
        if c >= 4 * ticks[-1]:  # so that labels do not touch
            ticks.append(c)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    _plain_ticks(axes.yaxis)
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("µs per token")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _title(figure, f"Time per token by context, {record.gpu}", lines, columns=2)
    return figure


def ladder(records: Sequence[Record]) -> Picture:
    """Draw the launches per token of every stage, counted now, beside the results of published records."""
    from luce_edu.measure.launches import count_launches
    from luce_edu.models import RANDOM_CONFIG

    results = once_each(_published(records))
    if not results:
        raise NoData("no published record")
    counts = count_launches(ModelConfig.from_file(RANDOM_CONFIG))
    sources = "; ".join(dict.fromkeys(result.source for result in results))
    caption = (
        "Left: measured. Counted on the virtual GPU for Qwen3.5-0.8B's layers at reduced width, as counts depend on "
        "layers alone.\n"
        "Right: published by others; shares modelled from the bytes of a token, each weight once. "
        f"Sources:\n{sources}."
    )
    return plot_ladder(counts, results, provenance=caption)


def results_table(records: Iterable[Record]) -> str:
    """Return the table of decode results in docs/measuring.md: recorded rows first, then by GPU, from slow to fast."""
    records = [record.checked() for record in records]
    rows = [row for record in records if record.parts.get("decode") for row in _recorded_rows(record)]
    rows += [
        ("published", result.gpu, result.model, result.us_per_token, result.system, _percents([result.share]), "–", "–",
         "; ".join(filter(None, [f"published: {result.source}", result.note])))
        for result in _published(records)
    ]  # fmt: skip
    rows.sort(key=lambda row: (row[0] != "recorded", row[1], row[2], -row[3]))
    header = ("system", "model", "GPU", "µs per token", "of datasheet bandwidth", "launches", "tok/J", "provenance")
    lines = [header, ("---", "---", "---", "--:", "--:", "--:", "--:", "---")]
    for _, gpu, model, us, system, share, launches, per_joule, provenance in rows:
        lines.append((system, model, gpu, f"{us:,.0f}", share, launches, per_joule, provenance))
    table = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
    return (
        f"{table}\n\nBatch 1, bf16 weights. Recorded: median at a context of {PROMPT}, or the nearest one recorded; "
        "joules gross. Published: by others, as their sources measured. Shares are modelled: the bytes of a token, "
        "each weight once, over its time."
    )


def write_table(name: str, table: str, page: Path) -> bool:
    """Put a table between a page's marks of this name; return whether the file and the marks exist."""
    if not page.is_file():
        return False
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if end:
        page.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")
    return bool(end)


def _recorded_rows(record: Record) -> list[tuple]:
    at, rows = _nearest(record, "decode")
    joules = {row.system: row for row in record.parts.get("energy", ())}
    bandwidth = record.parts.get("bandwidth")
    datasheet = bandwidth and bandwidth.datasheet
    kind, _, where = record.provenance.partition(": ")
    provenance = f"[{kind}](../figures/records/{record.name}.json): {where}"
    if at != PROMPT:
        provenance += f"; at a context of {at:,}"
    found = []
    for row in rows:
        us, spent = row.latency_us.median, joules.get(row.system)
        found.append((
            "recorded", record.gpu, record.content.model, us, row.system,
            _percents([row.bytes / (us * 1e3 * datasheet)]) if datasheet else "–",
            "–" if row.launches is None else f"{row.launches:,}",
            f"{spent.tokens / spent.joules:.2f}" if spent else "–",
            provenance,
        ))  # fmt: skip
    return found


def _published(records: Iterable[Record]) -> list[Published]:
    return [result for record in records if record.kind == "published" for result in decode_results(record)]


def _nearest(record: Record, part: str) -> tuple[int, list[DecodeRow] | list[EnergyRow]]:
    """Return the recorded context nearest to PROMPT, and the rows of a part at it. Raises NoData if there are none."""
    rows = record.parts.get(part)
    if not rows:
        raise NoData(f"{record.name}: {part}")
    at = min({row.context for row in rows}, key=lambda tokens: (abs(tokens - PROMPT), tokens))
    return at, [row for row in rows if row.context == at]


def _bandwidths(record: Record) -> list[tuple[float, str]]:
    """Return (GB/s, words) for the bandwidths of a record: the datasheet's if known, and the one reached by reading."""
    known = record.parts.get("bandwidth")
    if not known:
        return []
    datasheet = [(known.datasheet, f"{known.datasheet:,.0f} GB/s (datasheet)")] if known.datasheet else []
    return [*datasheet, (known.read, f"{known.read:,.0f} GB/s (reached by reading)")]


def _floors(record: Record, size: int) -> list[tuple[float, str]]:
    """Return (µs, label) for `size` bytes at each known bandwidth."""
    found = [(size / (gb_per_s * 1e3), which) for gb_per_s, which in _bandwidths(record)]
    return [(us, f"floor, {us:,.0f} µs: at {which}") for us, which in found]


def _net(row: EnergyRow) -> float | None:
    """Return tokens per joule above the idle draw; None if that is unknown, or the board drew no more."""
    above = row.joules - row.idle_w * row.seconds if row.idle_w is not None else 0
    return row.tokens / above if above > 0 else None


def _figure(caption: str, height: float) -> Picture:
    lines = textwrap.wrap(f"{caption}.", CAPTION)
    return picture(WIDTH, height + 0.14 * len(lines), "\n".join(lines))


def _title(figure: Picture, words: str, handles: Sequence, columns: int = 1) -> None:
    """Put title and legend above the axes, where they hide nothing."""
    figure.legend(
        handles=handles, title=textwrap.fill(words, TITLE), title_fontproperties={"weight": "bold", "size": 11},
        loc="outside upper left", alignment="left", frameon=False, ncols=columns, fontsize=9,
    )  # fmt: skip


def _rows_height(rows: Sequence[DecodeRow | EnergyRow]) -> float:
    """Return the inches for rows of a bar and a name, by the number of lines of the longest name."""
    lines = max(_name(row.system).count("\n") + 1 for row in rows)
    return len(rows) * max(0.46, 0.1 + 0.15 * lines)


def _name(system: str, characters: int = NAME) -> str:
    return textwrap.fill(system, characters, break_on_hyphens=False)


def _beside(axes: Axes, x: float, y: float, words: str, gap: float = 6) -> None:
    axes.annotate(words, (x, y), xytext=(gap, 0), textcoords="offset points", va="center", fontsize=9.5)


def _plain_ticks(axis) -> None:
    """Write round numbers out on a logarithmic axis; fewer for more decades, so that they do not touch."""
    low, high = axis.get_view_interval()
    digits = (1, 3) if high > 10 * low else (1, 2, 3, 5) if high > 3 * low else range(1, 10)
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(THOUSANDS)
    axis.set_minor_formatter(NullFormatter())


def _signed_percent(share: float) -> str:
    return f"{round(100 * share):+d} %".replace("-", "\N{MINUS SIGN}")


def _percents(shares: Sequence[float]) -> str:
    """Return "97 %", or "95 to 98 %"."""
    ends = dict.fromkeys(f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{' to '.join(ends)} %"
