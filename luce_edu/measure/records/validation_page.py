"""Write the page docs/validation.md: the clock beside published figures, and beside two earlier models of ours.

All figures of the clock come from a Validated. This file has the prose and the figures of the earlier models.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from luce_edu.measure.profile import Table
from luce_edu.measure.records.published import published
from luce_edu.measure.records.validated import STORED, TARGET, Row, Token, Validated, worst
from luce_edu.measure.records.validation import PICKS, measurement, picked

PAGE = Path(__file__).parents[3] / "docs" / "validation.md"
WORST = 12  # rows that the page names

# Probable causes of errors, by the beginning of a row's id. The longest that matches is used.
_BARRIERS = (
    "a step is a barrier of the whole grid, and then a read of what other SMs have just written; the clock gives both "
    "less time than the card takes"
)
_FLIGHT = "few warps reach too much bandwidth, so the model's way to DRAM is too short or holds too many requests"
_ORDER = "the order of machine instructions between two barriers is a guess of the model"
WHY: Mapping[str, str] = {
    "A": "all threads add to one word; how many additions a cycle L2 takes is assumed",
    "B": f"{_BARRIERS}; with short blocks, thousands of them add to one word and poll it",
    "B5.": "the model hands out blocks at one rate on every card, and cards differ",
    "C2.": "the L2 of an A100 and of a GH200 has two halves; how much each holds twice is not modelled",
    "D1.1": "all threads add to one word; how many additions a cycle L2 takes is assumed",
    "D1.": "the published figure is the best of five block sizes, and this row is one of them; one block of 1,024 "
    "threads fills an SM that has room for 1,536",
    "D2.": "a second kernel of one block adds two million sums, and latency limits what one block can read",
    "G": _ORDER,
    "H": f"{_ORDER}; the sources see 8 to 25 % between their own runs",
    "L1": "the cost of each kind of launch is from one source for one card, and sources differ",
    "L2.": "a step is little more than a launch, a node or a barrier; sources give 1.5 to 2.7 µs for a launch",
    "L3.": _BARRIERS,
    "L4.": _BARRIERS,
    "L5.": _BARRIERS,
    "M": _FLIGHT,
    "M5.": "the L2 of a GH200 has two halves; how much each holds twice is not modelled",
    "M6.": "the lanes of a warp touch lines far apart, and DRAM's loss on them is not modelled",
    "N": "the source does not say which H100; and the 25 MB that are written stay in L2 in the model",
    "S": "how many passes L1 takes for a stride is a rule of ours, as none is published",
    "V": "a profiler counts 1 or 2 µs of start and end even for the smallest kernel, and the clock does not",
    "V3.": "each lane reads its own line; which lines L1 evicts first is not published",
}

# Two earlier models of ours, in µs. By hand: bytes over bandwidth plus latencies and barriers, for the kernels' present
# barrier. First clock: a model whose constants had no sources.
BY_HAND = {
    ("RTX 3090", "graph"): 2200.0, ("RTX 3090", "megakernel"): 2117.0,
    ("H200", "graph"): 720.0, ("H200", "megakernel"): 763.0,
}  # fmt: skip
FIRST_CLOCK = {
    "RTX 3090": {
        "deltanet_in": 21.6, "delta_rule": 3.8, "deltanet_out": 6.6, "attention_in": 13.9, "attention": 8.0,
        "attention_out": 6.1, "mlp_up": 18.8, "mlp_down": 9.9, "lm_head": 587.0, "token": 2024.0,
    },
    "H200": {
        "deltanet_in": 6.5, "delta_rule": 2.3, "deltanet_out": 2.8, "attention_in": 4.5, "attention": 8.2,
        "attention_out": 2.4, "mlp_up": 5.6, "mlp_down": 3.2, "lm_head": 120.0, "token": 633.0,
    },
}  # fmt: skip
APART = {  # why a phase or token is more than TARGET from an earlier model
    "delta_rule": "a short phase between two barriers that consists of round trips to L2. The first clock assumed "
    "125 ns for one at 1.9 GHz; the clock has 151 ns on an RTX 3090, at 1.7 GHz.",
    "attention": "round trips one after another: a block reads what others have written, and adds its splits. The "
    "first clock assumed shorter round trips, as for `delta_rule`.",
    "deltanet_out": "a short phase, of which the barrier is a large part. The first clock assumed 150 ns for a fence; "
    "the clock has some 95 ns.",
    "megakernel": "by hand, a barrier costs 1.1 µs, DRAM's start after it 0.7 and the copy of a phase's input 0.7, one "
    "after another: some 300 µs for 121 barriers. In the clock they overlap, since warps arrive one by one.",
    "graph": "by hand, each of 122 kernels starts and ends in turn. In the clock, blocks start while others end.",
}


def places(folder: str | Path | None = None) -> tuple[Path, Path, Path]:
    """Return the paths of figures, page and picture: in `folder`, or in the checkout; ValueError outside of one."""
    if folder is None:
        if not (PAGE.parents[1] / "pyproject.toml").is_file():
            raise ValueError("validate: this is not a checkout of the project; name a folder with --out")
        return STORED, PAGE, PAGE.with_suffix(".png")
    return tuple(Path(folder) / f"validation{end}" for end in (".json", ".md", ".png"))


def check_writable(folder: str | Path | None = None) -> None:
    """Raise OSError, before a long run, if its results could not be written. Makes missing folders."""
    for path in places(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab"):
            pass


SUMMARY = ("comparison", "rows held out", "median error", "within 15 %", "ladders in order")


def summary(of: Validated) -> Table:
    """Return the summary as a table, one line per pick."""
    return Table("", SUMMARY, summary_rows(of), f"Modelled against published; run of {of.date}. {verdict(of)}")


def row_table(rows: Iterable[Row]) -> Table:
    """Return rows as a table."""
    body = [
        (row.id + (" (fit)" if row.fit else ""), row.card, number(row.published), number(row.modelled), row.unit,
         error_in_words(row.ratio))
        for row in rows
    ]  # fmt: skip
    caption = "Published: measured by others on the card. Modelled: by the clock."
    return Table("", ("row", "card", "published", "modelled", "unit", "error"), body, caption)


def page(of: Validated) -> str:
    """Return the whole page as Markdown."""
    return "\n\n".join([*_top(of), *_summary(of), *_worst(of), *_earlier(of), *_picks(of)]) + "\n"


def summary_rows(of: Validated) -> list[tuple[str, ...]]:
    """Return a line per pick and one for all: rows held out, median error, share within TARGET, ladders in order."""
    kept = of.ladders()
    rows = []
    for pick, of_pick in [*of.by_pick().items(), ("all", of.rows)]:
        held_out = _held_out(of_pick)
        ladders = [kept[key] for key in dict.fromkeys((row.card, row.ladder) for row in of_pick) if key in kept]
        errors = [row.error for row in held_out]
        rows.append((
            pick, f"{len(held_out)}", percent(median(errors)) if errors else "–",
            percent(sum(e <= TARGET for e in errors) / len(errors)) if errors else "–",
            f"{sum(ladders)} of {len(ladders)}" if ladders else "–",
        ))  # fmt: skip
    return rows


def why(row: Row) -> str:
    """Return the probable cause of a row's error, or "not explained"."""
    found = [start for start in WHY if row.id.startswith(start)]
    return WHY[max(found, key=len)] if found else "not explained"


def verdict(of: Validated) -> str:
    """Return the result in words: the median error, and whether the target is reached."""
    groups = filter(None, map(_held_out, of.by_pick().values()))
    by_pick = [median(row.error for row in rows) for rows in groups]
    ladders = of.ladders().values()
    partial = " by this partial run, which proves nothing" if _missing(of) else ""
    return (
        f"Over {len(of.held_out)} rows held out the median error is {percent(of.median_error)}, and "
        f"{percent(of.within_15)} of them are within 15 %; the median of the comparisons' own medians is "
        f"{percent(median(by_pick))}. {sum(ladders)} of {len(ladders)} ladders are in order. "
        f"The target, a median of 15 % and every ladder in order, is {'' if of.reached else 'not '}reached{partial}."
    )


def _held_out(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if not row.fit]


def _missing(of: Validated) -> list[str]:
    """Return the picks with missing rows."""
    there = of.by_pick()
    return [pick for pick in PICKS if len(there.get(pick, ())) < len(picked(pick))]


def error_in_words(ratio: float) -> str:
    """Return the error of a row in words, with its direction."""
    error = percent(max(ratio, 1 / ratio) - 1)
    return f"{error} too {'slow' if ratio > 1 else 'fast'}"


def _top(of: Validated) -> Iterable[str]:
    low, high = of.band(100.0)
    missing = _missing(of)
    yield "# How far to trust the clock"
    yield _text("Written by `luce-edu validate`; do not edit. All times of the virtual GPU are modelled. All published "
                "figures are measurements by others on real cards.")  # fmt: skip
    yield f"**{verdict(of)}**"
    if not of.reached:
        yield f"So a modelled time is shown as a range: 100 µs becomes {low:.0f} to {high:.0f} µs."
    if missing:
        yield _text(f"This run is partial. Missing or incomplete: {'; '.join(missing)}.")
    yield _text(f"Run of {of.date}, commit {(of.commit or 'unknown')[:12]}.")
    yield "## Method"
    yield _text(
        "Each row is a kernel that somebody described and timed. We wrote it from the description "
        "([csrc/validation](../csrc/validation)), run it on a virtual GPU of the same card with the clock on, and "
        "convert the time to the unit of the source. Of a large launch we run two parts of different size, and compute "
        "the whole from the difference. [validation.py](../luce_edu/measure/records/validation.py) says for each row "
        "what is run, what its figure includes, and what we had to choose."
    )
    yield _text(
        "*Error* is the share by which the longer of the two times exceeds the shorter, so a time half as long as "
        "published has an error of 100 %. Rows marked *fit* were used for the clock's constants. They are shown, but "
        "left out of every summary. A *ladder* is a set of rows that the source compares with each other. It is in "
        "order if no step that was measured as faster by 5 % or more is modelled as slower."
    )
    yield _text(
        "The rows held out are not blind: we looked at all rows while we built the model, and added a mechanism of the "
        "hardware where rows were off. Three choices depend on rows. `block_start`, the pause before a block that "
        "takes another's place, was fitted to a row of an L40 after we had seen similar gaps on other cards. The order "
        "that the model gives to machine instructions was found on tiled matrix products, as in the SGEMM rows. Rows "
        "that their source names H200 run as a GH200, because of the bandwidth that they reach. So expect larger "
        "errors on a kernel that is not in this table."
    )


def _summary(of: Validated) -> Iterable[str]:
    yield "## Summary"
    yield "![modelled against published](validation.png)"
    yield table(SUMMARY, summary_rows(of))


def _worst(of: Validated) -> Iterable[str]:
    yield "## The worst rows"
    yield _text("The worst row of each ladder, the worst first, with the probable cause.")
    header = ("row", "card", "what", "published", "modelled", "", "error", "probable cause")
    yield table(header, [
        (r.id, r.card, r.ladder, number(r.published), number(r.modelled), r.unit, error_in_words(r.ratio), why(r))
        for r in worst(of)[:WORST]
    ], left=(0, 1, 2, 7))  # fmt: skip


def _earlier(of: Validated) -> Iterable[str]:
    if not of.tokens:
        return
    yield "## Earlier models of ours"
    yield _text(
        "One token of Qwen3.5-0.8B's shapes at position 520, all modelled, in µs. *By hand* is a sum of bytes over "
        "bandwidth, latencies and barriers that was made before the clock. *First clock* is an earlier model of ours "
        "whose constants had no sources. Neither is evidence for the clock, as we made all three. Differences above "
        "15 % are explained below each table."
    )
    for card in dict.fromkeys(token.card for token in of.tokens):
        rows, notes = _tokens_of(card, of.tokens)
        yield f"### {card}"
        yield table(("", "clock", "by hand", "clock / by hand", "first clock", "clock / first clock"), rows)
        if notes:
            yield "\n".join(f"- `{name}`: {text}" for name, text in notes.items())
    ours = next((t.us for t in of.tokens if (t.card, t.stage) == ("RTX 3090", "megakernel")), None)
    if ours:
        yield from _others(of, ours)


def _tokens_of(card: str, tokens: Sequence[Token]) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    first, rows, notes = FIRST_CLOCK.get(card, {}), [], {}
    for token in (t for t in tokens if t.card == card):
        lines = [(f"{name} ({count})", name, us, None) for name, count, us in token.phases]
        lines.append((f"{token.stage}, the whole token", token.stage, token.us, BY_HAND.get((card, token.stage))))
        for label, name, us, hand in lines:
            early = first.get("token" if name == "megakernel" else name)
            cells = [cell for other in (hand, early) for cell in (
                (number(other), f"{us / other:.2f}") if other else ("–", "–")
            )]  # fmt: skip
            rows.append((label, number(us), *cells))
            if any(other and max(us / other, other / us) - 1 > TARGET for other in (hand, early)):
                notes[name] = APART.get(name, "not explained")
    return rows, notes


def _others(of: Validated, ours: float) -> Iterable[str]:
    theirs = 1e6 / published("decode", system="Luce megakernel", gpu="RTX 3090").tokens_per_s
    low, high = of.band(ours)
    yield "### Another megakernel"
    yield _text(
        f"Luce's megakernel takes {theirs:,.0f} µs per token of the same model on an RTX 3090 (published: "
        f"Luce-Org/lucebox, megakernel README). The clock gives ours {ours:,.0f} µs there (modelled), "
        f"{ours / theirs:.2f} times as long; with the median error, {low:,.0f} to {high:,.0f} µs. The differences:"
    )
    yield "\n".join([
        "- Theirs is computed from tokens per second, with the host's time between tokens; ours is the GPU's time "
        "alone.",
        "- Theirs is the mean of 128 generated tokens; ours is one token at position 520.",
        "- The kernels differ: other phases, other barriers, another split of the rows over the blocks.",
        "- Theirs ran at the clock that the board chose under its power limit (433 tokens per second at 420 W); ours "
        "is modelled at the boost clock, without a limit.",
    ])  # fmt: skip


def _picks(of: Validated) -> Iterable[str]:
    yield "## All rows"
    for pick, rows in of.by_pick().items():
        yield f"### {pick[0].upper()}{pick[1:]}"
        yield "Sources: " + "; ".join(dict.fromkeys(measurement(row.id).source for row in rows)) + "."
        yield table(("row", "card", "ladder", "published", "modelled", "", "error"), [
            (r.id + (" (fit)" if r.fit else ""), r.card, r.ladder, number(r.published), number(r.modelled), r.unit,
             error_in_words(r.ratio))
            for r in rows
        ], left=(0, 1, 2))  # fmt: skip


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """Return a Markdown table; columns with an index in `left` are aligned left, others right."""
    marks = ["---" if i in left else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, marks, *rows))


def number(value: float) -> str:
    """Return a number with three digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _text(words: str) -> str:
    return textwrap.fill(words, 118, break_long_words=False, break_on_hyphens=False)
