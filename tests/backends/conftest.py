"""Kernels for the tests, in a source tree of their own, and the card that they count on."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from luce_edu.machine.cards import Card, find_card
from luce_edu.paths import csrc_dir

KERNELS = Path(__file__).parent / "kernels"


@pytest.fixture(scope="session")
def kernel_tree(tmp_path_factory) -> Path:
    """A copy of csrc/ with the test kernels in it."""
    tree = tmp_path_factory.mktemp("tree") / "csrc"
    tree.mkdir()
    shutil.copy(csrc_dir() / "primitives.cuh", tree)
    for path in KERNELS.iterdir():
        shutil.copy(path, tree)
    return tree


@pytest.fixture(scope="session")
def four_sms() -> Card:
    """The laptop with four SMs, whatever LUCE_CARD says: 8 blocks of 512 threads at a time."""
    return dataclasses.replace(find_card("laptop"), sm_count=4)


@pytest.fixture
def poisoned():
    """Outputs start as NaN, or as the least integer, so that an element that nothing wrote shows."""

    def make(*shape, dtype=torch.float32):
        return torch.full(shape, float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min, dtype=dtype)

    return make
