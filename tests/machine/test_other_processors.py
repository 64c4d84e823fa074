"""The same bits from every build of the core: launches that this process ran, run again by other processors' code.

A driver (replay/replay.cpp) is linked with the core, built for x86-64 with and without AVX and for aarch64, and given
the launches at the core's own interface. All memory that a launch may touch is at the addresses that it had here, so
pointers in memory mean what they meant.
"""

import dataclasses
import functools
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from models import TINY, make_model
from replay import COUNTERS, MEMORY, REPORT, Recorder, replayed

from luce_edu.backends import csrc_dir
from luce_edu.backends.host import HostBackend
from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION
from luce_edu.machine import core
from luce_edu.stages import decoder

DRIVER = Path(__file__).parent / "replay" / "replay.cpp"
CARDS = ("T4", "H100")  # compute_75 and compute_90a: kernels differ most between these
SEED = 5


@pytest.fixture(scope="module")
def recorded():
    """Prompts and tokens of a model of two layers, launch by launch and by the megakernel."""
    config = dataclasses.replace(TINY, num_hidden_layers=2, layer_types=(LINEAR_ATTENTION, FULL_ATTENTION))
    model = make_model(config)
    with Recorder() as recorder:
        for card in CARDS:
            backend = HostBackend(card=card, seed=SEED)
            dec = decoder("per_layer", model, "host", 64, backend=backend)
            dec.prefill(list(range(1, 40)))
            dec.step(7)
            dec = decoder("megakernel", model, "host", 16, backend=HostBackend(card=card, seed=SEED))
            dec.step(9)
    return recorder


def test_record(recorded):
    print(len(recorded.expected), len(recorded.image()))
