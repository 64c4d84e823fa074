"""Figures that others published, each with its source. The numbers are in figures/records/published.json.

    published("prefill", system="Luce megakernel", source="Luce-Org/lucebox#5").tokens_per_s

Notebooks and pictures take them from there. `RESULTS` are the decode results: batch 1, bf16 weights.
"""

from __future__ import annotations

from collections.abc import Iterable

from luce_edu.measure.records.record import Record, records_dir
from luce_edu.measure.records.rows import Figures, Published


def decode_results(record: Record) -> tuple[Published, ...]:
    """Return the decode rows of a published record, in its order; raise ValueError for a recorded one."""
    if not isinstance(record.checked().content, Figures):
        raise ValueError(f"{record.name}: expected a published record, got a {record.kind} one")
    return record.content.decode


def once_each(results: Iterable[Published]) -> tuple[Published, ...]:
    """Keep the first result of each system and model, because the pictures compare systems and not GPUs."""
    first: dict[tuple[str, str], Published] = {}
    for result in results:
        first.setdefault((result.system, result.model), result)
    return tuple(first.values())


PUBLISHED = Record.load(records_dir() / "published.json")
RESULTS = once_each(decode_results(PUBLISHED))


def published(part: str, **wanted: object):
    """Return the one row of a part ("decode", "prefill", "launch", ...) that has the wanted fields.

    Raises ValueError if there is no such row, or more than one.
    """
    rows = getattr(PUBLISHED.content, part)
    found = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    if len(found) != 1:
        raise ValueError(f"published: expected one row of {part!r} with {wanted}, found {len(found)} of {len(rows)}")
    return found[0]


def launch_us(what: str) -> float:
    """Return the µs of one "plain launch", "kernel in a graph" or "grid barrier", on an RTX 3090."""
    row = published("launch", what=what)
    return row.total_us / row.count
