"""Find the device to run on: a GPU that can be used, or the virtual one."""

from __future__ import annotations

import re
import warnings

OLDEST_CAPABILITY = (7, 5)  # Turing
# The first NVIDIA driver that knows each CUDA version (CUDA release notes, table of driver versions).
DRIVER_FOR_CUDA = {12: 525, 13: 580}


def default_device() -> str:
    """Return 'cuda' if PyTorch sees a GPU, Turing or newer, and has code for it; else 'host'."""
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < OLDEST_CAPABILITY:
        return "host"
    problem = torch_lacks(torch.cuda.get_device_capability())
    if problem:
        warnings.warn(f"kernels run on the virtual GPU: {problem}", RuntimeWarning, stacklevel=2)
    return "host" if problem else "cuda"


def torch_lacks(capability: tuple[int, int]) -> str:
    """Say what to do if this PyTorch has no code for a GPU of this compute capability; "" if it has.

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
        return f"{needs}; install a newer PyTorch"
    return f"{needs}; update the NVIDIA driver to {DRIVER_FOR_CUDA[13]} or newer, then rm -rf .venv && make"
