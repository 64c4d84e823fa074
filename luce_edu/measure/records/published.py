"""What other people published, each figure with its source. The numbers are in figures/records/published.json.

    published("prefill", system="Luce megakernel", source="Luce-Org/lucebox#5").tokens_per_s

A text that needs one takes it from there, so that it stands in one place. `RESULTS` are the decode results: batch 1,
bf16 weights.
"""

from __future__ import annotations

from collections.abc import Iterable

from luce_edu.measure.records.record import Record, records_dir
from luce_edu.measure.records.rows import Figures, Published


def decode_results(record: Record) -> tuple[Published, ...]:
    """The decode rows of a published record, in its order; ValueError for one of another kind or without sources."""
    if not isinstance(record.checked().content, Figures):
        raise ValueError(f"{record.name}: expected a published record, got a {record.kind} one")
    return record.content.decode


def once_each(results: Iterable[Published]) -> tuple[Published, ...]:
    """Each system on the first GPU that it comes with, so that a picture compares systems and not GPUs."""
    first: dict[tuple[str, str], Published] = {}
    for result in results:
        first.setdefault((result.system, result.model), result)
    return tuple(first.values())


PUBLISHED = Record.load(records_dir() / "published.json")
RESULTS = once_each(decode_results(PUBLISHED))


def published(part: str, **wanted: object):
    """The one row of a part ("decode", "prefill", "launch", ...) whose fields are `wanted`.

    ValueError where there is none, or more than one.
    """
    rows = getattr(PUBLISHED.content, part)
    found = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    if len(found) != 1:
        raise ValueError(f"published: expected one row of {part!r} with {wanted}, found {len(found)} of {len(rows)}")
    return found[0]


def launch_us(what: str) -> float:
    """Microseconds for one of what was timed: "plain launch", "kernel in a graph" or "grid barrier", on an RTX 3090."""
    row = published("launch", what=what)
    return row.total_us / row.count
