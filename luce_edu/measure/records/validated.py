"""How far to trust the clock: its times beside those that others published, as `luce-edu validate` stored them.

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
        """A row with figures to five digits, which is more than a model knows."""
        row = result.measurement
        figures = (float(f"{figure:.5g}") for figure in (result.figure, result.us, result.ratio))
        return cls(row.id, pick, row.ladder, row.card, row.published, row.unit, *figures, row.fit)

    @property
    def error(self) -> float:
        """By what share the slower of the two times is longer: 0.15 for 15 % too slow and for 15 % too fast."""
        return max(self.ratio, 1 / self.ratio) - 1


@dataclass(frozen=True)
class Token:
    """The modelled time of one token of random-0.8b at position 520, by a stage of the course.

    phases  name, how often, microseconds each; of the megakernel only
    """

    card: str
    stage: str
    us: float
    phases: tuple[tuple[str, int, float], ...] = ()


@dataclass(frozen=True)
class Validated:
    """The rows of a run, with its date and the commit of its checkout, and tokens to hold against earlier models."""

    date: str
    commit: str | None
    rows: tuple[Row, ...]
    tokens: tuple[Token, ...] = ()

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
        """The median error is within TARGET, and every ladder is in order."""
        return self.median_error <= TARGET and all(self.ladders().values())

    def band(self, us: float) -> tuple[float, float]:
        """What a modelled time may be: half of the rows held out lie within these bounds of their modelled time."""
        return us / (1 + self.median_error), us * (1 + self.median_error)

    def by_pick(self) -> Mapping[str, tuple[Row, ...]]:
        """The rows by pick, in their order."""
        picks: dict[str, list[Row]] = {}
        for row in self.rows:
            picks.setdefault(row.pick, []).append(row)
        return {pick: tuple(rows) for pick, rows in picks.items()}

    def ladders(self) -> Mapping[tuple[str, str], bool]:
        """By card and ladder of two rows or more: whether the model puts their times in the order that was measured."""
        groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in self.rows:
            groups[row.card, row.ladder].append(row)
        return {
            key: not misordered(Result(measurement(r.id), r.us, r.modelled, r.ratio) for r in rows)
            for key, rows in groups.items()
            if len(rows) > 1
        }

    def to_dict(self) -> dict:
        """As in the stored file; of_dict turns it back."""
        return {"kind": "modelled"} | dataclasses.asdict(self)

    @classmethod
    def of_dict(cls, content: Mapping) -> Validated:
        tokens = tuple(
            Token(**token | {"phases": tuple(map(tuple, token["phases"]))}) for token in content.get("tokens", ())
        )
        return cls(content["date"], content["commit"], tuple(Row(**row) for row in content["rows"]), tokens)

    def to_json(self) -> str:
        """A row a line, so that two runs can be compared line by line."""
        content = self.to_dict()
        lists = [
            f'  "{name}": [\n' + ",\n".join(f"    {json.dumps(row)}" for row in content.pop(name)) + "\n  ]"
            for name in ("rows", "tokens")
        ]
        return "{\n" + ",\n".join([f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in content.items()] + lists) + "\n}\n"


def worst(of: Validated) -> list[Row]:
    """The worst row held out of each ladder of a card, the worst first."""
    by_ladder: dict[tuple[str, str], Row] = {}
    for row in sorted(of.held_out, key=lambda row: -row.error):
        by_ladder.setdefault((row.card, row.ladder), row)
    return list(by_ladder.values())


@functools.cache
def stored() -> Validated:
    """The run of all picks that the package carries."""
    return Validated.of_dict(json.loads(STORED.read_text(encoding="utf-8")))


def rows_named(names: Sequence[str]) -> list[tuple[str, Measurement]]:
    """Rows with their picks: of picks and ids by name, or of all picks where none is named.

    ValueError for a name that is neither.
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
    """Model rows one after another, and give each as soon as it is there.

    commit  of the checkout, where no file differs from it: its rows are kept in the cache for kernels, so that an
            interrupted run goes on where it was
    """
    for i, (pick, row) in enumerate(rows, 1):
        progress(f"{i} of {len(rows)}: {row.id} ({pick})")

        def make(pick=pick, row=row) -> str:
            return json.dumps(dataclasses.asdict(Row.of(pick, validate(row, backend_for(row), modelled_us))))

        yield Row(**json.loads(cached(f"validation/{commit}/{row.id}.json", make) if commit else make()))


def tokens(progress: Callable[[str], object] = str) -> tuple[Token, ...]:
    """The tokens of STAGES on CARDS; some 20 s each."""
    found = []
    for card in CARDS:
        for stage in STAGES:
            progress(f"a token of random-0.8b, {stage} on a virtual {card}")
            one = profile(stage, card=card, model="random-0.8b")
            phases = tuple((p.phase, p.count, round(p.us_each, 3)) for p in one.phases)
            found.append(Token(card, stage, round(one.total_us, 2), phases))
    return tuple(found)


def of_rows(rows: Sequence[tuple[str, Measurement]], progress: Callable[[str], object] = str) -> Validated:
    """Rows with their picks, modelled now."""
    now = commit()
    kept = None if now is None or now.endswith("+") else now
    done = tuple(run(rows, commit=kept, progress=progress))
    return Validated(datetime.date.today().isoformat(), now, done)


def run_all(progress: Callable[[str], object] = str) -> Validated:
    """All picks and the tokens, some 15 minutes on two cores."""
    return dataclasses.replace(of_rows(rows_named(()), progress), tokens=tokens(progress))
