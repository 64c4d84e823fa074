"""Compile to machine code for any architecture by NVRTC, and read its report: registers, spills, shared memory.

It needs neither a GPU nor a driver, so it works on a laptop.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from luce_edu.machine import nvrtc

# Turing to Blackwell. Instructions that an architecture lacks are refused, never silently emulated.
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120")


@dataclass(frozen=True)
class Resources:
    """The report of ptxas on one kernel: per thread registers, and bytes of stack and spills; static shared bytes."""

    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Binary:
    """Machine code for one architecture, with the resources of each kernel."""

    arch: str
    cubin: bytes
    resources: dict[str, Resources]


def compile_cubin(
    source: str, kernels: Sequence[str], defines: Mapping[str, object], arch: str, *, csrc: Path | None = None,
    text: str | None = None,
) -> Binary:  # fmt: skip
    """Compile csrc/`source`, or `text` under its name, for `arch` (such as 'sm_86') with NVRTC. Cached on disk.

    Needs no GPU. Raises CompileError with the compiler's log, or if the source lacks a kernel of `kernels`.
    """
    sources = nvrtc.read_sources(source, text, csrc)

    def make() -> str:
        cubin, log = nvrtc.run(sources, defines, arch, "CUBIN", ["--ptxas-options=-v"])
        resources = {name: asdict(fields) for name, fields in parse_ptxas(log).items()}
        return json.dumps({"cubin": cubin.hex(), "resources": resources})

    stored = json.loads(nvrtc.cached(f"cuda/{nvrtc.entry_name(sources, defines, arch, 'cubin')}.json", make))
    resources = {name: Resources(**fields) for name, fields in stored["resources"].items()}
    nvrtc.check_kernels(source, kernels, list(resources))
    return Binary(arch, bytes.fromhex(stored["cubin"]), resources)


def parse_ptxas(log: str) -> dict[str, Resources]:
    """Read the report of `ptxas -v`: the Resources of each kernel that it compiled."""
    report: dict[str, Resources] = {}
    pattern = re.compile(
        r"Function properties for (\w+)\n[^\n]*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        # A device function that is not inlined has properties too, but no line of registers.
        r"(\d+) bytes spill loads(?:(?!Function properties).)*?Used (\d+) registers([^\n]*)",
        re.DOTALL,
    )
    for name, stack, stores, loads, registers, rest in pattern.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        report[name] = Resources(
            int(registers), int(stack), int(stores), int(loads), int(shared[1]) if shared else 0
        )
    return report


def registers_of(
    source: str, text: str | None, kernels: Sequence[str], defines: Mapping[str, object], arch: str, *,
    csrc: Path | None = None,
) -> dict[str, int]:  # fmt: skip
    """Return the registers per thread of each kernel on a GPU of this architecture; arguments as for `compile_ptx`.

    The first call takes longer than compiling to PTX, so call it only if needed. Cached on disk.
    """
    binary = compile_cubin(source, kernels, defines, arch.replace("compute_", "sm_"), csrc=csrc, text=text)
    return {kernel: binary.resources[kernel].registers for kernel in kernels}
