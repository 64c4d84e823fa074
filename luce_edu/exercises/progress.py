"""Which exercises a reader has solved: `luce_edu.progress()`, for one notebook `luce_edu.progress("09")`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from luce_edu.exercises.base import Exercise
from luce_edu.exercises.solved import solved
from luce_edu.tables import Tabular

_OPENING = re.compile(r'"""Exercises of notebook (\d\d)\b')  # how the file of a notebook's exercises begins


@dataclass(frozen=True, repr=False)
class Progress(Tabular):
    """The result of `progress`. solved: by notebook and exercise, whether it is solved."""

    solved: Mapping[str, Mapping[str, bool]]

    header = ("notebook", "exercise", "")

    @property
    def title(self) -> str:
        every = [is_solved for exercises in self.solved.values() for is_solved in exercises.values()]
        return f"Exercises solved: {sum(every)} of {len(every)}"

    @property
    def body(self) -> list[list[str]]:
        return [
            [notebook, name.partition(".")[2], "solved" if is_solved else "open"]
            for notebook, exercises in self.solved.items()
            for name, is_solved in exercises.items()
        ]


def progress(notebook: str | None = None) -> Progress:
    """Show which exercises were solved on this machine, of one notebook such as "09", or of all.

    Raises ValueError for a notebook without exercises.
    """
    files = notebook_files()
    if notebook is not None:
        if notebook not in files:
            raise ValueError(f"no exercises of notebook {notebook!r}; there are those of {', '.join(files)}")
        files = {notebook: files[notebook]}
    done = solved()
    return Progress({number: {name: name in done for name in _exercises_of(file)} for number, file in files.items()})


def notebook_files() -> dict[str, str]:
    """Return the file of exercises, without its ending, by the number of its notebook: {"00": "start_here", ...}."""
    found = {}
    for path in Path(__file__).parent.glob("*.py"):
        if opening := _OPENING.match(path.read_text(encoding="utf-8")):
            found[opening[1]] = path.stem
    return dict(sorted(found.items()))


def _exercises_of(file: str) -> list[str]:
    module = import_module(f"luce_edu.exercises.{file}")
    return [f"{file}.{name}" for name, value in vars(module).items() if isinstance(value, Exercise)]
