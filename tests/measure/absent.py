"""Hides the packages that a bare machine lacks, for scripts of child processes."""

import sys

BARE = {
    "IPython", "ipykernel", "ipywidgets", "jsonschema", "jupyter_client", "jupyter_core", "jupyterlab", "nbclient",
    "nbformat", "nbval", "psutil", "pynvml", "rich", "traitlets", "yaml",
}  # fmt: skip


class _Missing:
    def __init__(self, names):
        self._names = names

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hide(*more: str) -> None:
    """Make imports of the packages of BARE, and of these, fail from here on."""
    sys.meta_path.insert(0, _Missing({*BARE, *more}))
