"""luce_edu: from plain PyTorch to one launch per token, every stage checked against the one before.

    model = luce_edu.load_model("tiny")
    dec = luce_edu.decoder("megakernel", model)
    luce_edu.verify(model)

Names load on first use, so that `import luce_edu` does not import PyTorch.
"""

import os
from importlib import import_module

# By default, PyTorch's CPU threads spin for a while after each operation, which takes cores from the virtual GPU's
# threads. OpenMP reads this variable once, when PyTorch is loaded. A value that the user has set is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"

_HOMES = {
    "STAGES": "luce_edu.stages",
    "decoder": "luce_edu.stages",
    "load_model": "luce_edu.models",
    "profile": "luce_edu.measure.profile",
    "progress": "luce_edu.exercises.progress",
    "stage_table": "luce_edu.scoreboard",
    "verify": "luce_edu.verification",
    "verify_paths": "luce_edu.verification",
    "verify_prefill": "luce_edu.verification",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def load_ipython_extension(ipython) -> None:
    """Add the magics %%kernel and %kernels to a notebook, on `%load_ext luce_edu`."""
    from luce_edu.magic import load

    load(ipython)
