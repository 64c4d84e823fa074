"""The result of compiling on either backend: the kernels of one source file, by name."""

from __future__ import annotations

from typing import Generic, TypeVar

from luce_edu.errors import LaunchError

Kernel = TypeVar("Kernel")


class Module(Generic[Kernel]):
    """The kernels of one source file: `module[name]`. Raises LaunchError, with the known names, for another name."""

    def __init__(self, source: str, kernels: dict[str, Kernel]):
        self.source, self._kernels = source, kernels

    def __getitem__(self, name: str) -> Kernel:
        if name not in self._kernels:
            raise LaunchError(f"{self.source}: no kernel named {name!r}; it has {', '.join(self._kernels)}")
        return self._kernels[name]
