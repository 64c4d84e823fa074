"""Modules with a planted mistake."""

import sys
from pathlib import Path
from types import ModuleType


def with_mistake(module: ModuleType, old: str, new: str) -> ModuleType:
    """A copy of a module in whose source `new` stands in the one place of `old`."""
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"the mistake no longer fits: {old!r}"
    name = f"{module.__name__} with a mistake"
    wrong = sys.modules[name] = ModuleType(name)  # dataclasses look for the names of their annotations there
    try:
        exec(compile(source.replace(old, new), name, "exec"), vars(wrong))
    finally:
        del sys.modules[name]
    return wrong
