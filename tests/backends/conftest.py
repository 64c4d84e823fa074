"""Kernels for the tests, in a source tree of their own beside the emulator."""

import shutil
from pathlib import Path

import pytest
import torch

from luce_edu import backends

KERNELS = Path(__file__).parent / "kernels"


@pytest.fixture(scope="session")
def kernel_tree(tmp_path_factory) -> Path:
    """A copy of csrc/ with the test kernels in it."""
    tree = tmp_path_factory.mktemp("tree") / "csrc"
    shutil.copytree(backends.csrc_dir() / "host", tree / "host")
    shutil.copy(backends.csrc_dir() / "primitives.cuh", tree)
    for path in KERNELS.iterdir():
        shutil.copy(path, tree)
    return tree


@pytest.fixture(autouse=True)
def four_multiprocessors(monkeypatch):
    """The device that these tests count on, whatever the default and the environment say."""
    monkeypatch.setenv("LUCE_HOST_SMS", "4")


@pytest.fixture
def poisoned():
    """Outputs start as NaN, or as the least integer, so that an element that nothing wrote shows."""

    def make(*shape, dtype=torch.float32):
        return torch.full(shape, float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min, dtype=dtype)

    return make
