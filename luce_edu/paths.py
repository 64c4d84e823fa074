"""Find the kernels' sources, the cache of compiled kernels, and the file of a reader's progress."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def csrc_dir() -> Path:
    """Return the folder of the kernel sources: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "csrc"
    return installed if installed.is_dir() else package.parent / "csrc"


def cache_dir() -> Path:
    """Return the folder of compiled kernels; LUCE_CACHE overrides it."""
    if "LUCE_CACHE" in os.environ:
        return Path(os.environ["LUCE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "luce_edu"


def progress_file() -> Path | None:
    """Return the file of solved exercises. LUCE_PROGRESS names another one; if it is empty, there is none."""
    if "LUCE_PROGRESS" in os.environ:
        return Path(os.environ["LUCE_PROGRESS"]) if os.environ["LUCE_PROGRESS"] else None
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")) / "luce_edu" / "progress.json"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let only one process at a time run the body, for each folder. The system releases the lock if a process ends."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
