"""The names of the exercises that a reader has solved, in a small file on this machine. Nothing is sent anywhere.

Where there is no file (luce_edu.paths.progress_file), as in tests, they are kept for as long as the process lives.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from luce_edu.paths import alone, progress_file

_here: set[str] = set()  # what this process has seen solved


def solved() -> set[str]:
    """Return full names, such as "megakernel.count_barriers". A damaged file is moved aside, with a line on stderr."""
    path = progress_file()
    return _here | (_read(path) if path else set())


def remember(full_name: str) -> None:
    """Add an exercise. A line on stderr says where it cannot be kept; nothing is raised."""
    _here.add(full_name)
    path = progress_file()
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path.parent):  # two notebooks may be open
            names = _read(path)
            if full_name in names:
                return
            new = path.with_name(f"{path.name}.new")
            new.write_text(json.dumps({"solved": sorted(names | {full_name})}, indent=1) + "\n", encoding="utf-8")
            os.replace(new, path)
    except OSError as error:
        _say(f"your progress cannot be kept ({error}); LUCE_PROGRESS names another file")


def _read(path: Path) -> set[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["solved"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError
        return set(names)
    except FileNotFoundError:
        return set()
    except OSError as error:
        _say(f"your progress cannot be read ({error}); LUCE_PROGRESS names another file")
    except (ValueError, TypeError, KeyError, RecursionError):
        aside = _aside(path)
        try:
            os.replace(path, aside)
            _say(f"{path} is damaged: it is now {aside.name}, and your progress starts anew")
        except OSError as error:
            _say(f"{path} is damaged and cannot be moved ({error}); LUCE_PROGRESS names another file")
    return set()


def _aside(path: Path) -> Path:
    """Return an unused name for the damaged file."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return aside


def _say(line: str) -> None:
    print(f"luce-edu: {line}", file=sys.stderr)
