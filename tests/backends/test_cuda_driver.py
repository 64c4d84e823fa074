"""The cuda backend's launches through the real cuda-core, as the fake driver of tests/fake_driver receives them.

All checks run in one child process. Its dynamic loader finds the fake driver, and a warning is an error there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "fake_driver"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}
CHECKS = [
    line.removeprefix("def check_").partition("(")[0]
    for line in (FOLDER / "checks.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("def check_")
]
CONFIGURED = "if how not in self._configs:"
SAME_FLAGS = "next((key for key in self._configs if key[0] == how[0] and key[4:] == how[4:]), how)"
NAMED = "raise _driver_error(kernel.name, error)"
RECORD = "        self.ledger.record(entry)\n"
TRY = "        try:\n            self._core.launch("
TOO_LARGE = "        except ValueError as error:  # a cooperative"
STREAM = "stream = self._current_stream()\n"
PREPARE = "self._preparing.append("
RESTORE = "            self.ledger = before"


def keyed_by(first: int) -> tuple[str, str]:
    """A fault: a configuration is found by the first parts of its key, of kernel, grid, block, smem and flags."""
    found = f"how = next((key for key in self._configs if key[:{first}] == how[:{first}]), how)"
    return CONFIGURED, f"{found}\n        {CONFIGURED}"


# {fault: (text in backends/cuda.py, the text in its place)}
FAULTS = {
    "no cooperative flag": ("is_cooperative=cooperative", "is_cooperative=False"),
    "every launch is cooperative": ("is_cooperative=cooperative", "is_cooperative=True"),
    "no launch is dependent": ("if dependent else {}", "if False else {}"),
    "every launch is dependent": ("if dependent else {}", "if True else {}"),
    "dependent launch on no device": ("self.dependent_launch = able and", "self.dependent_launch = False and"),
    "clusters of one block": ("shmem_size=smem, is_coop", "shmem_size=smem, cluster=1, is_coop"),
    "grid and block swapped": ("grid=grid, block=block, sh", "grid=block, block=grid, sh"),
    "no dynamic shared memory": ("shmem_size=smem", "shmem_size=0"),
    "large shared memory that is not asked for": ("if smem + static > UNASKED_SHARED and", "if False and"),
    "large shared memory without a kernel's own": ("if smem + static > UNASKED", "if smem > UNASKED"),
    "shared memory beside a kernel's own": ("shared_memory_per_block - static:", "shared_memory_per_block:"),
    "as much shared memory as anyone asks for": ("if not 0 <= smem <= self.shared", "if 2**30 < smem - self.shared"),
    "48 KiB on every device": ("max_shared_memory_per_block_optin", "max_shared_memory_per_block"),
    "asked for at each launch": ("and smem > self._asked_shared.get(kernel, 0):", "and smem > 0:"),
    "asked for once, whatever the size": ("smem > self._asked_shared.get(kernel, 0)", "not self._asked_shared"),
    "a refusal that is not seen": ("            if refused:", "            if False:"),
    "blocks without asking for their memory": (
        "        self._ask_for_shared(kernel, smem)\n        with", "        with",
    ),
    "one configuration for each kernel": keyed_by(1),
    "one configuration for each grid": keyed_by(2),
    "one configuration whatever the flags": keyed_by(4),
    "one configuration for all sizes": (CONFIGURED, f"how = {SAME_FLAGS}\n        {CONFIGURED}"),
    "arguments from the last to the first": ("enumerate(zip(args,", "enumerate(zip(args[::-1],"),
    "a float of 64 bits": ("ctypes.c_float(value)", "ctypes.c_double(value)"),
    "a float cut to an int": ("ctypes.c_float(value)", "numpy.int32(value)"),
    "an int of 16 bits": ("numpy.int32(value) if", "numpy.int16(value) if"),
    "an int as a float": ("numpy.int32(value) if", "numpy.float32(value) if"),
    "a negative int made positive": ("numpy.int32(value) if", "numpy.int32(abs(value)) if"),
    "an int of any size": ("if not -(2**31) <= value < 2**32:", "value %= 2**32\n    if False:"),
    "a view's storage in its place": ("value.data_ptr()\n", "value.untyped_storage().data_ptr()\n"),
    "a tensor on any device": (" and value.device == device and", " and"),
    "a tensor that is not contiguous": (" and value.is_contiguous()\n", "\n"),
    "a tensor where the kernel has a number": ("and size != 4 and value.device", "and value.device"),
    "a number where the kernel has a pointer": ("if size == 8:", "if False:"),
    "a wrong count that is not seen": ("elif len(args) != len(sizes):", "elif False:"),
    "the default stream": ("torch.cuda.current_stream(self.device).cuda_stream\n", "0\n"),
    "the first stream for ever": ("return self._streams[handle]", "return next(iter(self._streams.values()))"),
    "cuda-core's default stream": ("self._core.Stream.from_handle(handle)", "self._device.default_stream"),
    "a foreign stream, which is deprecated": (
        "self._core.Stream.from_handle(handle)", 'type("S", (), {"__cuda_stream__": lambda self: (0, handle)})()',
    ),
    "prepared launches keep their stream": (STREAM, "stream = self._streams.setdefault(-1, self._current_stream())\n"),
    "prepared launches run at once too": (
        PREPARE, f"self._start(self._current_stream(), config, kernel, values, entry)\n            {PREPARE}",
    ),
    "preparing that failed goes on for ever": ("            self._preparing = None", "            pass"),
    "a line in the ledger before the launch": (TRY, RECORD + TRY),
    "no line in the ledger": (RECORD, ""),
    "a grid that is too large as an error of the driver": (TOO_LARGE, TOO_LARGE.replace("ValueError", "KeyError")),
    "an error that does not name the kernel": (NAMED, 'raise _driver_error("", error)'),
    "the driver's error as it is": (f"{NAMED} from error", "raise"),
    "an error of the driver that is forgotten": (f"{NAMED} from error", "return"),
    "the blocks of one multiprocessor": ("per_sm * self._device.properties.multiprocessor_count", "per_sm"),
    "a stream for each capture": ("@functools.cache\ndef _capture_stream", "def _capture_stream"),
    "captures on the current stream": ("_capture_stream(self.device)\n", "torch.cuda.current_stream()\n"),
    "the end of a capture in its launch's place": ("first = failed or error", "first = error"),
    "a capture that fails and keeps its stream": ("            torch.cuda.set_stream(current)", "            pass"),
    "captured launches in the ledger": (RESTORE, f"            before.entries += self.ledger.entries\n{RESTORE}"),
    "no kernel runs before it is captured": ("lazy_loading = True", "lazy_loading = False"),
}  # fmt: skip


@pytest.fixture(scope="session")
def driver(tmp_path_factory) -> Path:
    """The folder with libcuda.so.1."""
    folder = tmp_path_factory.mktemp("driver")
    subprocess.run([sys.executable, str(FOLDER / "build.py"), str(folder)], env=ENVIRONMENT, check=True)
    return folder


@pytest.fixture(scope="session")
def seen(driver) -> dict:
    """The output of checks.py: the checks that fail on the backend as it is, and on a copy with each fault."""
    paths = [str(driver), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    environment = ENVIRONMENT | {"LD_LIBRARY_PATH": os.pathsep.join(paths)}
    run = subprocess.run(
        [sys.executable, str(FOLDER / "checks.py"), json.dumps(FAULTS)],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_passes(check, seen, record_property):
    record_property("counted", "checks by the fake driver")
    assert check in seen["checks"]
    assert check not in seen["right"], seen["right"][check]


@pytest.mark.planted
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen_by_a_check(fault, seen, record_property):
    record_property("counted", "faults of the CUDA backend seen by them")
    assert seen["faults"][fault], f"no check of {len(seen['checks'])} saw it"
