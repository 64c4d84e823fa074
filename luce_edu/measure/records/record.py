"""Records: measurements with their provenance, one JSON file each, under figures/records/.

There are two kinds: `recorded`, by this project on a named GPU, and `published`, by others, each figure with its
source. luce_edu/measure/records/rows.py is the schema of both. Every table and plot of a time or an energy reads these.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from luce_edu.measure.records.rows import Figures, NotRun, Parts, Recorded
from luce_edu.measure.schema import as_json, read

SCHEMA = "luce_edu record 2"
KINDS = {"recorded": Recorded, "published": Figures}


class RecordError(ValueError):
    """A file that is not a record of this schema; the message names file and field."""


def records_dir() -> Path:
    """Return the folder of the records: inside an installed package, or in figures/ of a checkout."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "records"
    return installed if installed.is_dir() else package.parent / "figures" / "records"


@dataclass(frozen=True)
class Record:
    """The content of one file, checked, so that every record has a provenance.

    name  of the file, without .json
    Raises RecordError if the content does not fit the schema.
    """

    name: str
    content: Recorded | Figures

    def __post_init__(self) -> None:
        self.checked()

    def checked(self) -> Record:
        """Check the content again, which may have changed since the record was made, and return the record."""
        _read(self.to_json(), f"{self.name}.json")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read and check one file; raise RecordError."""
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RecordError(f"{path.name}: not a readable record ({error})") from None
        return cls.from_json(path.stem, content)

    @classmethod
    def from_json(cls, name: str, content: object) -> Record:
        """Make a record from what `to_json` returns; raise RecordError if it does not fit the schema."""
        return cls(name, _read(content, f"{name}.json"))

    def to_json(self) -> dict:
        return {"schema": SCHEMA, "kind": self.kind} | as_json(self.content)

    def save(self, path: str | Path) -> None:
        """Replace the file at once, so that no reader sees half of it; raise RecordError as `load` would."""
        self.checked()
        unfinished = Path(path).with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, path)

    @property
    def kind(self) -> str:
        return "published" if isinstance(self.content, Figures) else "recorded"

    @property
    def parts(self) -> Parts:
        """What was measured, by part; empty for a published record."""
        return self.content.parts if isinstance(self.content, Recorded) else {}

    @property
    def not_run(self) -> list[NotRun]:
        """What was not measured, and why; for a recorded one."""
        return self.content.not_run

    @property
    def gpu(self) -> str:
        return self.content.machine.gpu

    @cached_property
    def provenance(self) -> str:
        """A line for captions: kind, GPU, power limit, driver, date, commit; or kind and sources.

        Raises RecordError if a published record has no row, and so no source.
        """
        content = self.checked().content
        if isinstance(content, Figures):
            if not content.sources:
                raise RecordError(f"{self.name}.json: no row, so no source")
            return "published; sources: " + "; ".join(content.sources)
        machine = content.machine
        at = f" at {machine.power_limit_w:g} W" if machine.power_limit_w else ""
        driver = f", driver {machine.driver}" if machine.driver else ""
        commit = f", commit {content.commit[:12]}" if content.commit else ""
        return f"recorded: {machine.gpu}{at}{driver}, {content.date}{commit}, {content.model}"


def _read(content: object, name: str) -> Recorded | Figures:
    """Return the content of a file; raise RecordError with the first field that does not fit the schema."""
    content = dict(content) if isinstance(content, dict) else {"schema": type(content).__name__}
    if (found := content.pop("schema", None)) != SCHEMA:
        raise RecordError(f"{name}: expected schema {SCHEMA!r}, found {found!r}")
    if (kind := content.pop("kind", None)) not in KINDS:
        raise RecordError(f"{name}: kind: expected 'recorded' or 'published', found {kind!r}")
    try:
        return read(KINDS[kind], content)
    except ValueError as error:
        raise RecordError(f"{name}: {error}") from None


def load_records(folder: str | Path | None = None) -> list[Record]:
    """Return the records in a folder, sorted by name; None: the project's own. Raises RecordError."""
    return [Record.load(path) for path in sorted(Path(folder or records_dir()).glob("*.json"))]


def recorded(records: Iterable[Record], part: str) -> list[Record]:
    """Return the records that have a part, the newest first."""
    having = [record for record in records if record.parts.get(part)]
    return sorted(having, key=lambda record: record.content.date, reverse=True)


def commit() -> str | None:
    """Return the commit of this checkout, with a + if code was changed since; None without git."""
    top = Path(__file__).resolve().parents[3]
    git = ["git", "-C", os.fspath(top)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        # Only code: a record that is written into the checkout must not change the commit of the next run.
        status = [*git, "status", "--porcelain", "--", "luce_edu", "csrc"]
        changed = subprocess.run(status, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
