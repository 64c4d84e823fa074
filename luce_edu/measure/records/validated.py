"""The validation of the clock, as `luce-edu validate` stored it: modelled times beside published ones.

    clock = stored()
    print(f"{clock.median_error:.0%} off at the median, {clock.within_15:.0%} of the rows within 15 %")
    low, high = clock.band(100.0)  # what a modelled 100 us may be
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from luce_edu.machine.nvrtc import cached
from luce_edu.measure.profile import profile
from luce_edu.measure.records.record import commit
from luce_edu.measure.records.validation import (
    PICKS,
    Measurement,
    Result,
    backend_for,
    measurement,
    misordered,
    modelled_us,
    picked,
    validate,
)  # fmt: skip

STORED = Path(__file__).parents[2] / "data" / "validation.json"
CARDS, STAGES = ("RTX 3090", "H200"), ("graph", "megakernel")  # of the tokens beside the rows
TARGET = 0.15  # of the median error; also the error within which a row counts as met


@dataclass(frozen=True)
class Row:
    """A published figure and the modelled one, in `unit`. pick: a name of validation.PICKS.

    us     modelled microseconds
    ratio  modelled over published time; above 1 the clock is too slow
    fit    the row was used to fit constants, so it does not test the clock
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
        """Return a row with figures rounded to five digits."""
        row = result.measurement
        figures = (float(f"{figure:.5g}") for figure in (result.figure, result.us, result.ratio))
        return cls(row.id, pick, row.ladder, row.card, row.published, row.unit, *figures, row.fit)

    @property
    def error(self) -> float:
        """Return by what share the longer of the two times is longer: 0.15 if it is 15 % too slow or 15 % too fast."""
        return max(self.ratio, 1 / self.ratio) - 1


@dataclass(frozen=True)
class Token:
    """The modelled time of one token of random-0.8b at position 520, by a stage.

    phases  (name, count, µs each) of the megakernel's phases; empty for other stages
    """

    card: str
    stage: str
    us: float
    phases: tuple[tuple[str, int, float], ...] = ()


@dataclass(frozen=True)
class Validated:
    """The rows of a run, its date and commit, and tokens to compare with earlier models."""

    date: str
    commit: str | None
    rows: tuple[Row, ...]
    tokens: tuple[Token, ...] = ()

    @property
    def held_out(self) -> tuple[Row, ...]:
        """The rows that were not used to fit a constant."""
        return tuple(row for row in self.rows if not row.fit)

    @property
    def median_error(self) -> float:
        """The median error of the rows held out."""
        return median(row.error for row in self.held_out)

    @property
    def within_15(self) -> float:
        """The share of rows held out whose error is within TARGET."""
        return sum(row.error <= TARGET for row in self.held_out) / len(self.held_out)

    @property
    def reached(self) -> bool:
        """Whether the median error is within TARGET and every ladder is in order."""
        return self.median_error <= TARGET and all(self.ladders().values())

    def band(self, us: float) -> tuple[float, float]:
        """Return the range for a modelled time: it holds for half of the rows held out."""
        return us / (1 + self.median_error), us * (1 + self.median_error)

    def by_pick(self) -> Mapping[str, tuple[Row, ...]]:
        """Return the rows by pick, in order."""
        picks: dict[str, list[Row]] = {}
        for row in self.rows:
            picks.setdefault(row.pick, []).append(row)
        return {pick: tuple(rows) for pick, rows in picks.items()}

    def ladders(self) -> Mapping[tuple[str, str], bool]:
        """Return, by (card, ladder) of two rows or more, whether the modelled times have the published order."""
        groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in self.rows:
            groups[row.card, row.ladder].append(row)
        return {
            key: not misordered(Result(measurement(r.id), r.us, r.modelled, r.ratio) for r in rows)
            for key, rows in groups.items()
            if len(rows) > 1
        }

    def to_dict(self) -> dict:
        """Return the content of the stored file; `of_dict` reads it."""
        return {"kind": "modelled"} | dataclasses.asdict(self)

    @classmethod
    def of_dict(cls, content: Mapping) -> Validated:
        tokens = tuple(
            Token(**token | {"phases": tuple(map(tuple, token["phases"]))}) for token in content.get("tokens", ())
        )
        return cls(content["date"], content["commit"], tuple(Row(**row) for row in content["rows"]), tokens)

    def to_json(self) -> str:
        """Return JSON with one row per line, so that two runs can be compared by lines."""
        content = self.to_dict()
        lists = [
            f'  "{name}": [\n' + ",\n".join(f"    {json.dumps(row)}" for row in content.pop(name)) + "\n  ]"
            for name in ("rows", "tokens")
        ]
        return "{\n" + ",\n".join([f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in content.items()] + lists) + "\n}\n"


def worst(of: Validated) -> list[Row]:
    """Return the worst row held out of each card and ladder, the worst first."""
    by_ladder: dict[tuple[str, str], Row] = {}
    for row in sorted(of.held_out, key=lambda row: -row.error):
        by_ladder.setdefault((row.card, row.ladder), row)
    return list(by_ladder.values())


@functools.cache
def stored() -> Validated:
    """Return the run of all picks that the package has stored."""
    return Validated.of_dict(json.loads(STORED.read_text(encoding="utf-8")))


def rows_named(names: Sequence[str]) -> list[tuple[str, Measurement]]:
    """Return (pick, row) for the named picks and row ids, or for all picks if no name is given.

    Raises ValueError for an unknown name.
    """
    wanted = []
    pick_of = {row.id: pick for pick in PICKS for row in picked(pick)}
    for name in names or PICKS:
        if name in PICKS:
            wanted += [(name, row) for row in picked(name)]
        elif name in pick_of:
            wanted.append((pick_of[name], measurement(name)))
        else:
            picks = ", ".join(map(repr, PICKS))
            raise ValueError(f"unknown pick or row {name!r}; expected a row's id, such as G1, or one of {picks}")
    return list({row.id: (pick, row) for pick, row in wanted}.values())


def run(
    rows: Sequence[tuple[str, Measurement]], *, commit: str | None = None, progress: Callable[[str], object] = str
) -> Iterable[Row]:
    """Model rows one after another, and yield each as soon as it is done.

    commit  of the checkout if no file differs from it. Rows are then kept in the cache, so that an interrupted run
            continues where it stopped.
    """
    for i, (pick, row) in enumerate(rows, 1):
        progress(f"{i} of {len(rows)}: {row.id} ({pick})")

        def make(pick=pick, row=row) -> str:
            return json.dumps(dataclasses.asdict(Row.of(pick, validate(row, backend_for(row), modelled_us))))

        yield Row(**json.loads(cached(f"validation/{commit}/{row.id}.json", make) if commit else make()))


def tokens(progress: Callable[[str], object] = str) -> tuple[Token, ...]:
    """Model the tokens of STAGES on CARDS; each takes some 20 s."""
    found = []
    for card in CARDS:
        for stage in STAGES:
            progress(f"a token of random-0.8b, {stage} on a virtual {card}")
            one = profile(stage, card=card, model="random-0.8b")
            phases = tuple((p.phase, p.count, round(p.us_each, 3)) for p in one.phases)
            found.append(Token(card, stage, round(one.total_us, 2), phases))
    return tuple(found)


def of_rows(rows: Sequence[tuple[str, Measurement]], progress: Callable[[str], object] = str) -> Validated:
    """Model rows now, given with their picks."""
    now = commit()
    kept = None if now is None or now.endswith("+") else now
    done = tuple(run(rows, commit=kept, progress=progress))
    return Validated(datetime.date.today().isoformat(), now, done)


def run_all(progress: Callable[[str], object] = str) -> Validated:
    """Model all picks and the tokens; it takes some 15 minutes on two cores."""
    return dataclasses.replace(of_rows(rows_named(()), progress), tokens=tokens(progress))
