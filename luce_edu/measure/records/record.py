"""Records: measurements with their provenance, one JSON file each, under figures/records/.

One schema (luce_edu/data/record.schema.json) for both kinds: `recorded`, by this project on a named GPU, and
`published`, by others, each figure with its source. Every table and plot of a time or an energy reads these.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SCHEMA_FILE = Path(__file__).resolve().parents[2] / "data" / "record.schema.json"
SCHEMA = "luce_edu record 1"


class RecordError(ValueError):
    """A file that is no record of this schema; the message names file and field."""


def records_dir() -> Path:
    """Where the records are: inside an installed package, or in figures/ of a checkout."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "records"
    return installed if installed.is_dir() else package.parent / "figures" / "records"


@dataclass(frozen=True)
class Record:
    """One file's content, checked, so that every record has a provenance. `name` is the file's, without .json.

    Raises RecordError for any other content.
    """

    name: str
    content: Mapping

    def __post_init__(self) -> None:
        self.checked()

    def checked(self) -> Record:
        """Itself; asked again where it counts, as the content of a record in the making changes."""
        check(self.content, f"{self.name}.json")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read and check one file; raises RecordError."""
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RecordError(f"{path.name}: not a readable record ({error})") from None
        return cls(path.stem, content)

    def save(self, path: str | Path) -> None:
        """Write it so that no reader sees half of it; raises RecordError for content that `load` would refuse."""
        check(self.content, Path(path).name)
        unfinished = Path(path).with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, path)

    @property
    def kind(self) -> str:
        return self.content["kind"]

    @property
    def parts(self) -> Mapping:
        """Of a recorded one: what was measured, by part."""
        return self.content.get("parts", {})

    @property
    def gpu(self) -> str:
        return self.content["machine"]["gpu"]

    @cached_property
    def provenance(self) -> str:
        """One line for a caption: kind, GPU, power limit, driver, date, commit; RecordError where it has no source."""
        if self.checked().kind == "published":
            if not sources(self.content):
                raise RecordError(f"{self.name}.json: no row, so no source")
            return "published; sources: " + "; ".join(sources(self.content))
        machine, limit = self.content["machine"], self.content["machine"]["power_limit_w"]
        at = f" at {limit:g} W" if limit else ""
        driver = f", driver {machine['driver']}" if machine["driver"] else ""
        commit = f", commit {self.content['commit'][:12]}" if self.content["commit"] else ""
        return f"recorded: {machine['gpu']}{at}{driver}, {self.content['date']}{commit}, {self.content['model']}"


def sources(content: Mapping) -> list[str]:
    """The sources of a published record, each once, in order."""
    rows = [row for name in ("decode", "prefill", "launch", "sweeps", "energy") for row in content.get(name, ())]
    return list(dict.fromkeys(row["source"] for row in rows))


def check(content: object, name: str) -> None:
    """Raise RecordError naming the first field that is not as the schema says.

    Without the package jsonschema, as on a bare machine that only measures, kind, version and the names of its fields
    are checked and no more.
    """
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise RecordError(f"{name}: expected schema {SCHEMA!r}, found {found!r}")
    if content.get("kind") not in ("recorded", "published"):
        raise RecordError(f"{name}: kind: expected 'recorded' or 'published', found {content.get('kind')!r}")
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.validators import extend
    except ImportError:
        missing = [field for field in schema["$defs"][content["kind"]]["required"] if field not in content]
        if missing:
            raise RecordError(f"{name}: it has no {', '.join(missing)}") from None
        return
    schema["$ref"] = f"#/$defs/{content['kind']}"  # one branch, so that an error names the field and not both branches
    del schema["oneOf"]
    types = Draft202012Validator.TYPE_CHECKER.redefine("number", _is_finite_number)
    validator = extend(Draft202012Validator, type_checker=types)(schema)
    errors = sorted(validator.iter_errors(content), key=lambda e: list(map(str, e.absolute_path)))
    if errors:
        where = "/".join(map(str, errors[0].absolute_path)) or "the record"
        raise RecordError(f"{name}: {where}: {errors[0].message[:200]}")


def _is_finite_number(_, value: object) -> bool:
    """JSON has no NaN, but Python reads and writes one, and no minimum refuses it."""
    return isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and math.isfinite(value)


def load_records(folder: str | Path | None = None) -> list[Record]:
    """Every record in a folder, by name; None for the project's own. Raises RecordError for a file that is none."""
    return [Record.load(path) for path in sorted(Path(folder or records_dir()).glob("*.json"))]


def recorded(records: Iterable[Record], part: str) -> list[Record]:
    """Those that hold a part, the newest first."""
    having = [record for record in records if record.kind == "recorded" and record.parts.get(part)]
    return sorted(having, key=lambda record: record.content["date"], reverse=True)


def commit() -> str | None:
    """The commit of the checkout that runs, with a + where code differs from it; None without git."""
    top = Path(__file__).resolve().parents[3]
    git = ["git", "-C", os.fspath(top)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        # Not all files: a record that is written into the checkout would make its own second run another commit's.
        status = [*git, "status", "--porcelain", "--", "luce_edu", "csrc"]
        changed = subprocess.run(status, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
