"""What other people published, each figure with its source. The numbers are in figures/records/published.json.

    published("prefill", system="Luce megakernel", source="Luce-Org/lucebox#5")["tokens_per_s"]

A text that needs one takes it from there, so that it stands in one place. `RESULTS` are the decode results: batch 1,
bf16 weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from luce_edu.config import ModelConfig
from luce_edu.machine.cards import DATASHEET_GB_PER_S
from luce_edu.measure.floor import decode_bytes
from luce_edu.measure.records.record import Record, records_dir


@dataclass(frozen=True)
class Published:
    """One result. `gpu` is a name in DATASHEET_GB_PER_S, `source` where the number stands, `note` what it adds."""

    system: str
    model: str
    gpu: str
    tokens_per_s: float
    source: str
    note: str = ""

    @property
    def us_per_token(self) -> float:
        return 1e6 / self.tokens_per_s

    @property
    def share(self) -> float:
        """Share of the datasheet bandwidth that the model's bytes took (modelled: each weight moves once)."""
        return bytes_per_token(self.model) * self.tokens_per_s / (DATASHEET_GB_PER_S[self.gpu] * 1e9)


def bytes_per_token(model: str) -> int:
    """The least that a token of a published model moves; ValueError for a model whose size is not known here."""
    if model == "Qwen3.5-0.8B":
        from luce_edu.models import RANDOM_CONFIG

        return decode_bytes(ModelConfig.from_file(RANDOM_CONFIG), position=520).total
    if model not in _PARAMETERS:
        raise ValueError(f"model: expected Qwen3.5-0.8B, {' or '.join(_PARAMETERS)}, got {model!r}")
    return 2 * _PARAMETERS[model]


# Parameters by the models' cards, head and embedding tied, so all but a row of it is read for each token.
_PARAMETERS = {"Llama-3.2-1B": 1_235_814_400, "Qwen3-0.6B": 596_049_920}


def decode_results(record: Record) -> tuple[Published, ...]:
    """The decode rows of a published record, in its order; ValueError for one of another kind or without sources."""
    if record.checked().kind != "published":
        raise ValueError(f"{record.name}: expected a published record, got a {record.kind} one")
    return tuple(Published(**row) for row in record.content["decode"])


def once_each(results: Iterable[Published]) -> tuple[Published, ...]:
    """Each system on the first GPU that it comes with, so that a picture compares systems and not GPUs."""
    first: dict[tuple[str, str], Published] = {}
    for result in results:
        first.setdefault((result.system, result.model), result)
    return tuple(first.values())


PUBLISHED = Record.load(records_dir() / "published.json").checked()
RESULTS = once_each(decode_results(PUBLISHED))


def published(part: str, **wanted: object) -> Mapping:
    """The one row of a part ("decode", "prefill", "launch", ...) whose fields are `wanted`.

    ValueError where there is none, or more than one.
    """
    rows = PUBLISHED.content[part]
    found = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
    if len(found) != 1:
        raise ValueError(f"published: expected one row of {part!r} with {wanted}, found {len(found)} of {len(rows)}")
    return found[0]


def launch_us(what: str) -> float:
    """Microseconds for one of what was timed: "plain launch", "kernel in a graph" or "grid barrier", on an RTX 3090."""
    row = published("launch", what=what)
    return row["total_us"] / row["count"]
