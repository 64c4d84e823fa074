"""Fixtures of these tests: a source tree with the test kernels, and a small card."""

import dataclasses
import shutil
from pathlib import Path

import pytest

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
    """The laptop's card with four SMs, whatever LUCE_CARD is. It holds 8 blocks of 512 threads at a time."""
    return dataclasses.replace(find_card("laptop"), sm_count=4)
