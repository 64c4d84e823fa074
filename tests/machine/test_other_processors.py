"""Every build of the core gives the same bits: launches of this process are run again by code for other processors.

A driver (replay/replay.cpp) is linked with the core and given the launches as the core takes them. All memory that they
may touch is at the addresses that it had here, so pointers in memory stay valid.
"""

import dataclasses
import os
import pickle
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from models import TINY, make_model
from replay import MEMORY, REPORT, Recorder, Recording, replayed

from luce_edu.backends.host import HostBackend
from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION
from luce_edu.machine import core
from luce_edu.paths import csrc_dir
from luce_edu.stages import decoder

HERE = Path(__file__).parent
CONFORMANCE = ("conformance", "conformance_blocks", "conformance_fuzz", "conformance_memory", "conformance_tiles")
CARDS = ("T4", "H100")  # compute_75 and compute_90a, whose code differs most

# Less optimised than the core, which halves the time of the build and must not change a bit. Each instruction calls the
# next one; with -O1 alone these calls would use the stack.
FLAGS = [flag for flag in core.FLAGS if flag not in ("-O2", "-march=native")] + ["-O1", "-foptimize-sibling-calls"]
X86 = [*FLAGS, *core.X86_FLAGS, "-no-pie"]
AARCH64 = ("aarch64-linux-gnu-g++", "qemu-aarch64")


@pytest.fixture(scope="module")
def decoded() -> Recording:
    """Prompts and tokens of a model of two layers, launch by launch and by the megakernel."""
    config = dataclasses.replace(TINY, num_hidden_layers=2, layer_types=(LINEAR_ATTENTION, FULL_ATTENTION))
    model = make_model(config)
    with Recorder() as recorder:
        for card in CARDS:
            dec = decoder("per_layer", model, "host", 64, backend=HostBackend(card=card, seed=5))
            dec.prefill(list(range(1, 40)))
            dec.step(7)
            decoder("megakernel", model, "host", 16, backend=HostBackend(card=card, seed=5)).step(9)
        for how in ({"hostile": True}, {"races": True}):  # on the smallest card, since both keep state per block
            decoder("megakernel", model, "host", 16, backend=HostBackend(card="laptop", seed=5, **how)).step(9)
    return recorder.recording()


@pytest.fixture(scope="module")
def conformance(tmp_path_factory) -> Recording:
    """Every launch of the conformance tests."""
    file = tmp_path_factory.mktemp("conformance") / "recording"
    paths = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
    tests = [HERE / f"test_{name}.py" for name in CONFORMANCE]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "replay.plugin", *tests],
        env=os.environ | {"REPLAY_RECORDING": str(file), "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return pickle.loads(file.read_bytes())


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> list[str]:
    """The driver with the core that this process uses."""
    driver = tmp_path_factory.mktemp("native") / "replay"
    link(core.find_compiler(), ["-O1", "-std=c++20", "-no-pie", "-pthread"], [core.build()], driver)
    return [str(driver)]


def test_another_process_gets_the_same_from_every_order(decoded, native, tmp_path):
    assert decoded.differences(replayed(native, decoded.image, tmp_path)) == []
    # How often a waiting warp polls depends on the order, so counters are left out.
    for order in ({"seed": 6}, {"seeded": 0, "threads": 3}, {"seeded": 0, "threads": 1}):
        assert decoded.differences(replayed(native, decoded.ordered(**order), tmp_path), [MEMORY, REPORT]) == []


def test_a_replay_that_ends_early_is_seen(decoded, native, tmp_path):
    cut = replayed(native, decoded.ordered(instructions=1000), tmp_path)
    assert decoded.differences(cut, [MEMORY]) and decoded.differences(cut, [REPORT])


@pytest.mark.full
@pytest.mark.parametrize("processor", ["x86-64", "haswell", "aarch64"])
def test_other_processors_get_the_same(processor, decoded, conformance, tmp_path):
    if processor == "aarch64":
        if not all(map(shutil.which, AARCH64)):
            pytest.skip("no cross compiler or no emulator: apt-get install g++-aarch64-linux-gnu qemu-user")
        compiler, flags, runner = [AARCH64[0]], [*FLAGS, "-static"], [AARCH64[1]]
    else:
        if platform.machine() != "x86_64":
            pytest.skip("needs an x86-64 processor")
        if processor == "haswell" and " avx2 " not in Path("/proc/cpuinfo").read_text():
            pytest.skip("this processor has no AVX2")
        compiler, flags, runner = core.find_compiler(), [*X86, f"-march={processor}"], []
    command = [*runner, str(build(compiler, flags, tmp_path))]
    for recording in (decoded, conformance):
        assert recording.differences(replayed(command, recording.image, tmp_path)) == []
    threads = replayed(command, decoded.ordered(seeded=0, threads=3), tmp_path)
    assert decoded.differences(threads, [MEMORY, REPORT]) == []


def build(compiler: list[str], flags: list[str], folder: Path) -> Path:
    """The driver, with the core compiled for it."""

    def compiled(source: Path) -> Path:
        subprocess.run([*compiler, *flags, "-c", source, "-o", folder / f"{source.stem}.o"], check=True)
        return folder / f"{source.stem}.o"

    with ThreadPoolExecutor(core.thread_count()) as threads:
        objects = list(threads.map(compiled, (csrc_dir() / "machine").glob("*.cpp")))
    link(compiler, flags, objects, folder / "replay")
    return folder / "replay"


def link(compiler: list[str], flags: list[str], core_parts: list[Path], driver: Path) -> None:
    include = ["-I", csrc_dir() / "machine"]
    subprocess.run([*compiler, *flags, *include, HERE / "replay" / "replay.cpp", *core_parts, "-o", driver], check=True)
