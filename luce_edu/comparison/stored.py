"""The PTX that Triton makes of triton_kernels.py, stored, so that it runs where Triton is not installed.

    python -m luce_edu.comparison.stored     # writes luce_edu/data/triton/ anew; needs Triton, and no GPU
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from luce_edu.errors import CompileError
from luce_edu.machine.cubin import Resources, parse_ptxas

FOLDER = Path(__file__).resolve().parents[1] / "data" / "triton"
INDEX = "compiled.json"
SOURCE = Path(__file__).with_name("triton_kernels.py")
KERNELS = ("rms_norm", "matvec")
ARCHITECTURES = ("sm_86", "sm_90a")
_TYPES = {
    "x": "*fp32", "weight": "*fp32", "y": "*fp32", "W": "*bf16", "rows": "i32", "eps": "fp32",
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """A kernel that Triton compiled for one architecture.

    triton, ptxas   the versions that did it
    source          the SHA-256 of triton_kernels.py
    arguments       that a launch has, in order
    constants       arguments that were given at compile time
    threads         of a block;  shared_bytes: of dynamic shared memory per block
    resources       what Triton's ptxas reports
    """

    kernel: str
    arch: str
    triton: str
    ptxas: str
    source: str
    arguments: Sequence[str]
    constants: Mapping[str, int]
    threads: int
    shared_bytes: int
    resources: Resources
    ptx: str

    @property
    def file(self) -> str:
        return f"{self.kernel}.{self.arch}.ptx"


def source_digest() -> str:
    """Return the value of `Compiled.source` for the present source."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()


@functools.cache
def stored() -> Mapping[tuple[str, str], Compiled]:
    """Load the stored kernels, by kernel and architecture."""
    rows = json.loads((FOLDER / INDEX).read_text(encoding="utf-8"))
    found = {}
    for row in rows:
        text = (FOLDER / f"{row['kernel']}.{row['arch']}.ptx").read_text(encoding="utf-8")
        made = Compiled(**row | {"resources": Resources(**row["resources"]), "ptx": text})
        found[made.kernel, made.arch] = made
    return found


def compile_triton(kernel: str, arch: str) -> Compiled:
    """Compile one of KERNELS for one of ARCHITECTURES. Raises CompileError where Triton is not installed."""
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
    except ImportError:
        raise CompileError("Triton is not installed; python -m pip install -e '.[triton]'") from None
    from luce_edu.comparison import triton_kernels

    function = getattr(triton_kernels, kernel)
    constants, warps = triton_kernels.TILES[kernel]
    types = {name: "constexpr" if name in constants else _TYPES[name] for name in function.arg_names}
    # As Triton finds at a launch for PyTorch's tensors: they begin at a multiple of 16 bytes.
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    target = GPUTarget("cuda", int(re.sub(r"\D", "", arch)), 32)
    with TemporaryDirectory() as folder, triton.knobs.cache.scope(), triton.knobs.compilation.scope():
        triton.knobs.cache.dir = folder
        triton.knobs.compilation.disable_line_info = True  # it would name a folder of this machine
        source = ASTSource(function, types, constants, aligned)
        made = triton.compile(source, target=target, options={"num_warps": warps})
        text, ptxas = made.asm["ptx"].rstrip() + "\n", triton.knobs.nvidia.ptxas
        (Path(folder) / "kernel.ptx").write_text(text, encoding="utf-8")
        command = [ptxas.path, "-v", f"--gpu-name={arch}", "kernel.ptx", "-o", "kernel.cubin"]
        said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    return Compiled(
        kernel, arch, triton.__version__, ptxas.version, source_digest(),
        [name for name in types if name not in constants], constants, 32 * warps, made.metadata.shared,
        parse_ptxas(said)[kernel], text,
    )  # fmt: skip


def write(folder: Path = FOLDER) -> None:
    """Compile every kernel for every architecture, and store it."""
    made = [compile_triton(kernel, arch) for kernel in KERNELS for arch in ARCHITECTURES]
    folder.mkdir(parents=True, exist_ok=True)
    for one in made:
        (folder / one.file).write_text(one.ptx, encoding="utf-8")
    rows = [{name: value for name, value in asdict(one).items() if name != "ptx"} for one in made]
    (folder / INDEX).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        write()
    except CompileError as error:
        raise SystemExit(f"stored: {error}") from None
