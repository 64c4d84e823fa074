"""Two ways to run the kernels in csrc/: `cuda` on an NVIDIA GPU, `host` on the virtual GPU (luce_edu/machine).

Both have the same few members:
    compile(source, kernels, defines) -> Module; module[name] -> Kernel
    launch(kernel, grid, block, smem, args, cooperative=False, dependent=False), which writes the ledger
    matmul(x, weights, out), a library's product, which does so too
    prepare(enqueue) -> launches, run(launches): what `enqueue` launches, checked once and started again and again
    capture(enqueue) -> graph, replay(graph): many launches as one; dependent_launch: whether the device has it
    lazy_loading: whether the device may load a kernel only when it first runs, which a capture does not allow
    max_resident_blocks(kernel, block, smem), sm_count, synchronize(), device, name, ledger
    name_tensors(tensors): what kernels reach through pointers in memory, by name
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

DEVICES = ("cuda", "host")
OLDEST_CAPABILITY = (7, 5)  # Turing
# The first NVIDIA driver that knows each CUDA version (CUDA release notes, table of driver versions).
DRIVER_FOR_CUDA = {12: 525, 13: 580}


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
    """'cuda' where PyTorch sees a GPU of Turing or newer and has code for it, else 'host'."""
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < OLDEST_CAPABILITY:
        return "host"
    problem = torch_lacks(torch.cuda.get_device_capability())
    if problem:
        warnings.warn(f"kernels run on the virtual GPU: {problem}", RuntimeWarning, stacklevel=2)
    return "host" if problem else "cuda"


def torch_lacks(capability: tuple[int, int]) -> str:
    """What to do where this PyTorch has no code for a GPU of this compute capability; "" where it has.

    PyTorch for CUDA 12.6, which `make CUDA=cu12` installs, ends with Hopper (9.0).
    """
    import torch

    major, minor = capability
    built_for = torch.cuda.get_arch_list()  # such as sm_90, or compute_90 for PTX; empty for a CPU build
    for name in built_for:
        kind, _, number = name.partition("_")
        has = divmod(int(re.sub(r"\D", "", number)), 10)
        if has[0] == major and has[1] <= minor or kind == "compute" and has <= capability:
            return ""
    if not built_for:
        return ""
    needs = f"this PyTorch, for CUDA {torch.version.cuda}, has no code for compute capability {major}.{minor}"
    if int(torch.version.cuda.split(".")[0]) >= 13:
        return f"{needs}; a newer PyTorch is needed"
    return f"{needs}; update the NVIDIA driver to {DRIVER_FOR_CUDA[13]} or newer, then rm -rf .venv && make"


def make_backend(device: str | None = None, **options):
    """A new backend with a ledger of its own; None takes the best there is.

    options: csrc_dir (another source tree, such as one with a planted fault); for host also what HostBackend takes.
    Raises ValueError for an unknown device, or for 'cuda' where there is no GPU that can serve.
    """
    device = default_device() if device is None else device
    if device == "host":
        from luce_edu.backends.host import HostBackend

        return HostBackend(**options)
    if device == "cuda":
        if options.pop("card", None) is not None:
            raise ValueError("card: a GPU that is there is the one it is; a card is imitated with device='host'")
        from luce_edu.backends.cuda import CudaBackend

        return CudaBackend(**options)
    raise ValueError(f"unknown device {device!r}; expected one of {', '.join(DEVICES)}, or None for the best")
