"""The cuda backend's launches, through the real cuda-core, as a driver sees them: the fake one of tests/fake_driver.

All run in one child process, whose dynamic loader finds that driver and where every warning is an error.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luce_edu.backends.host import find_compiler

FOLDER = Path(__file__).parents[1] / "fake_driver"
CHECKS = [
    line.removeprefix("def check_").partition("(")[0]
    for line in (FOLDER / "checks.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("def check_")
]
# {what: (text in backends/cuda.py, what stands there instead)}
FAULTS = {}


@pytest.fixture(scope="session")
def driver(tmp_path_factory) -> Path:
    """The folder with libcuda.so.1, built with this machine's compiler."""
    from cuda.pathfinder import find_nvidia_header_directory

    headers = find_nvidia_header_directory("cudart")
    if headers is None:
        pytest.fail("cuda.h is missing; install the extra cu13 or cu12, as `make` does")
    folder = tmp_path_factory.mktemp("driver")
    exports = folder / "exports"
    exports.write_text("{ global: cu*; fake_*; local: *; };")
    subprocess.run(
        [*find_compiler(), "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{headers}",
         str(FOLDER / "driver.cc"), f"-Wl,-soname,libcuda.so.1,--version-script={exports}",
         "-o", str(folder / "libcuda.so.1")],
        check=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def seen(driver) -> dict:
    """What checks.py printed: the checks that fail on the backend as it is, and with each fault planted in it."""
    root = FOLDER.parents[1]
    paths = [str(driver), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(paths), "PYTHONPATH": str(root)}
    run = subprocess.run(
        [sys.executable, str(FOLDER / "checks.py"), json.dumps(FAULTS)],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("check", CHECKS)
def test_at_the_drivers_door(check, seen):
    assert check in seen["checks"]
    assert check not in seen["right"], seen["right"][check]
