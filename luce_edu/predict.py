"""Take a reader's predictions before a measurement, and show them beside its results.

    guess = predict(launches=None, bytes_read=None)     # your numbers in place of None
    ...
    guess.reveal("measured", launches=460, bytes_read=1_550_000_000)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from luce_edu.tables import Tabular

KINDS = ("measured", "recorded", "published", "modelled")


def predict(**guesses: float | str | None) -> Prediction:
    """Take guesses by name, with units in the names; None is no guess. ValueError for other values than number or text.
    """
    if not guesses:
        raise ValueError("predict: expected at least one guess, such as launches=None")
    for name, guess in guesses.items():
        if isinstance(guess, bool) or not isinstance(guess, int | float | str | None):
            raise ValueError(f"predict: {name} must be a number, a text or None, got {guess!r}")
    return Prediction(guesses)


@dataclass(frozen=True, repr=False)
class Prediction:
    """Guesses, before their results are known."""

    guesses: Mapping[str, float | str | None]

    def reveal(self, kind: str, /, **results: float | str) -> Revealed:
        """Return a table of guess, result and their ratio.

        kind     where the results come from: measured, recorded, published or modelled
        results  one for each guess, by the same name; ValueError names those that are missing or have no guess
        """
        if kind not in KINDS:
            raise ValueError(f"reveal: expected one of {', '.join(KINDS)}, got {kind!r}")
        if set(results) != set(self.guesses):
            wrong = sorted(set(results) ^ set(self.guesses))
            raise ValueError(f"reveal: expected results for {', '.join(self.guesses)}; {', '.join(wrong)} do not match")
        return Revealed(kind, self.guesses, results)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {'no guess' if guess is None else guess}" for name, guess in self.guesses.items())


@dataclass(repr=False)
class Revealed(Tabular):
    """The table of guesses beside results."""

    kind: str
    guesses: Mapping[str, float | str | None]
    results: Mapping[str, float | str]

    @property
    def header(self) -> list[str]:
        return ["", "your guess", self.kind, "guess / result"]

    @property
    def body(self) -> list[list[str]]:
        return [
            [name.replace("_", " "), _word(self.guesses[name]), _word(result), _ratio(self.guesses[name], result)]
            for name, result in self.results.items()
        ]


def _word(value: float | str | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:,.4g}"


def _ratio(guess: float | str | None, result: float | str) -> str:
    if guess is None:
        return "–"
    if isinstance(guess, str) or isinstance(result, str):
        return "right" if str(guess).strip().lower() == str(result).strip().lower() else "no"
    return f"{guess / result:.2g}" if result else ("right" if guess == 0 else "no")
