"""How far to trust the clock: its times beside those that others published, as `luce-edu validate` stored them.

    clock = stored()
    print(f"{clock.median_error:.0%} off at the median, {clock.within_15:.0%} of the rows within 15 %")
    low, high = clock.band(100.0)  # what a modelled 100 us may be
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from luce_edu.measure.validation import Result

STORED = Path(__file__).parents[1] / "data" / "validation.json"
TARGET = 0.15  # the median error to reach, and the error within which a row counts as met


@dataclass(frozen=True)
class Row:
    """A published figure and the modelled one beside it, in `unit`; `pick` is a name of validation.PICKS.

    us     modelled microseconds;  ratio: modelled time to published time, above 1 where the clock is too slow
    fit    the row was used to fit constants, so it proves nothing
    """

    id: str
    pick: str
    ladder: str
    card: str
    published: float
    unit: str
    modelled: float
    us: float
    ratio: float
    fit: bool

    @classmethod
    def of(cls, pick: str, result: Result) -> Row:
        row = result.measurement
        return cls(
            row.id, pick, row.ladder, row.card, row.published, row.unit, result.figure, result.us, result.ratio, row.fit
        )

    @property
    def error(self) -> float:
        """By what share the slower of the two times is longer: 0.15 for 15 % too slow and for 15 % too fast."""
        return max(self.ratio, 1 / self.ratio) - 1


@dataclass(frozen=True)
class Validated:
    """The rows of a run, with its date and the commit of its checkout."""

    date: str
    commit: str | None
    rows: tuple[Row, ...]

    @property
    def held_out(self) -> tuple[Row, ...]:
        """The rows that no constant was fitted to."""
        return tuple(row for row in self.rows if not row.fit)

    @property
    def median_error(self) -> float:
        """Median error of the rows held out."""
        return median(row.error for row in self.held_out)

    @property
    def within_15(self) -> float:
        """Share of the rows held out whose error is within TARGET."""
        return sum(row.error <= TARGET for row in self.held_out) / len(self.held_out)

    @property
    def reached(self) -> bool:
        """The median error is within TARGET."""
        return self.median_error <= TARGET

    def band(self, us: float) -> tuple[float, float]:
        """What a modelled time may be: half of the rows held out lie within these bounds of their modelled time."""
        return us / (1 + self.median_error), us * (1 + self.median_error)

    def by_pick(self) -> Mapping[str, tuple[Row, ...]]:
        """The rows by pick, in their order."""
        picks: dict[str, list[Row]] = {}
        for row in self.rows:
            picks.setdefault(row.pick, []).append(row)
        return {pick: tuple(rows) for pick, rows in picks.items()}

    def to_dict(self) -> dict:
        """As in the stored file; of_dict turns it back."""
        return {"date": self.date, "commit": self.commit, "rows": [dataclasses.asdict(row) for row in self.rows]}

    @classmethod
    def of_dict(cls, content: Mapping) -> Validated:
        return cls(content["date"], content["commit"], tuple(Row(**row) for row in content["rows"]))


@functools.cache
def stored() -> Validated:
    """The run of all picks that the package carries."""
    return Validated.of_dict(json.loads(STORED.read_text(encoding="utf-8")))
