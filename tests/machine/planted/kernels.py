"""The planted kernels, compiled and loaded once, and the lines of their sources that reports must name."""

import re
from functools import cache
from pathlib import Path

import torch

from luce_edu import machine
from luce_edu.machine.nvrtc import compile_ptx

HERE = Path(__file__).parent
CARDS = {"compute_80": "laptop", "compute_90a": "H100"}  # the second has bulk copies, clusters and dependent launches


@cache
def ptx(file: str, arch: str) -> str:
    return compile_ptx(file, None, [], {}, arch, csrc=HERE)


@cache
def planted(file: str, arch: str = "compute_90a", card: str | None = None):
    """The module of planted/`file`."""
    return machine.load(ptx(file, arch), card=card or CARDS[arch])


def line(file: str, marker: str) -> str:
    """'file:number' of the one line whose comment is `marker`."""
    lines = (HERE / file).read_text().splitlines()
    (number,) = [i for i, text in enumerate(lines, 1) if text.endswith(f"// {marker}")]
    return f"{file}:{number}"


def says(report: str, *what: str | int) -> None:
    """Assert that a report has each text, and each number as a number of its own."""
    for part in what:
        found = part in report if isinstance(part, str) else re.search(rf"(?<![\w.]){part}(?!\w)", report)
        assert found, f"no {part!r} in: {report}"


def words(*shape: int) -> torch.Tensor:
    """Zeros of int32."""
    return torch.zeros(*shape, dtype=torch.int32)
