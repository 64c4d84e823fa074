"""Two ways to run the kernels in csrc/: `cuda` on an NVIDIA GPU, `host` in the CPU emulator.

Both have the same few members:
    compile(source, kernels, defines) -> Module; module[name] -> Kernel
    launch(kernel, grid, block, smem, args, cooperative=False, dependent=False), which writes the ledger
    matmul(x, weights, out), a library's product, which does so too
    capture(enqueue) -> graph, replay(graph): many launches as one; dependent_launch: whether the device has it
    max_resident_blocks(kernel, block, smem), sm_count, synchronize(), device, name, ledger
"""

from __future__ import annotations

import os
from pathlib import Path

DEVICES = ("cuda", "host")
OLDEST_CAPABILITY = (7, 5)  # Turing


def csrc_dir() -> Path:
    """Where the kernel sources are: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "csrc"
    return installed if installed.is_dir() else package.parent / "csrc"


def cache_dir() -> Path:
    """Where compiled kernels are kept; LUCE_CACHE overrides it."""
    if "LUCE_CACHE" in os.environ:
        return Path(os.environ["LUCE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "luce_edu"


def default_device() -> str:
    """'cuda' where PyTorch sees a GPU of Turing or newer, else 'host'."""
    import torch

    usable = torch.cuda.is_available() and torch.cuda.get_device_capability() >= OLDEST_CAPABILITY
    return "cuda" if usable else "host"


def make_backend(device: str | None = None, **options):
    """A new backend with a ledger of its own; None takes the best there is.

    options: csrc_dir (another source tree, such as one with a planted fault); seed (host only).
    Raises ValueError for an unknown device, or for 'cuda' where there is no GPU that can serve.
    """
    device = default_device() if device is None else device
    if device == "host":
        from luce_edu.backends.host import HostBackend

        return HostBackend(**options)
    if device == "cuda":
        from luce_edu.backends.cuda import CudaBackend

        return CudaBackend(**options)
    raise ValueError(f"unknown device {device!r}; expected one of {', '.join(DEVICES)}, or None for the best")
