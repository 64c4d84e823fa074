"""Builds the fake driver: `python tests/fake_driver/build.py FOLDER` writes libcuda.so.1 there, for LD_LIBRARY_PATH."""

import subprocess
import sys
from pathlib import Path

from luce_edu.machine.core import find_compiler


def build(folder: Path) -> None:
    """With this machine's compiler, against the CUDA headers of the extra cu13 or cu12."""
    from cuda.pathfinder import find_nvidia_header_directory

    headers = find_nvidia_header_directory("cudart")
    if headers is None:
        raise FileNotFoundError("cuda.h; install the extra cu13 or cu12, as `make` does")
    exports = folder / "exports"  # hides the symbols of the standard library, which NVRTC would find
    exports.write_text("{ global: cu*; fake_*; local: *; };")
    source = Path(__file__).with_name("driver.cc")
    subprocess.run(
        [*find_compiler(), "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{headers}",
         str(source), f"-Wl,-soname,libcuda.so.1,--version-script={exports}", "-o", str(folder / "libcuda.so.1")],
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    build(Path(sys.argv[1]))
