"""Find the folders of the kernels' sources and of the cache of compiled kernels."""

from __future__ import annotations

import os
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
