"""One trial of a cell's kernel: compile it for both worlds, run it on fresh inputs, judge it, count what it moved."""

from __future__ import annotations

import math
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

import numpy as np
import torch

from luce_edu.backends import csrc_dir, default_device, make_backend
from luce_edu.backends.cuda import CudaBackend, Resources, compile_cubin
from luce_edu.backends.host import HostBackend
from luce_edu.backends.ledger import Traffic
from luce_edu.config import ModelConfig
from luce_edu.errors import CompileError, KernelError, LaunchError
from luce_edu.inline.apart import Crashed, TimedOut, run_apart
from luce_edu.inline.pasted import code, find_hint
from luce_edu.inline.specs import Spec, evaluate, find_spec
from luce_edu.models import DATA
from luce_edu.stages.dims import kernel_defines
from luce_edu.tables import Tabular
from luce_edu.verification import relative_error

CELL = "cell"  # what compilers call the reader's text
SOURCE = "cell.cu"
LOG_LINES = 12
SECONDS = 20.0  # for compiling and all runs; a small kernel needs one or two

# What is wrong with a kernel, by kind.
WORDS = {
    "cell": "cannot be checked",
    "compile": "does not compile",
    "launch": "cannot be launched",
    "kernel": "does not finish",
    "wrong": "is wrong",
    "crash": "crashed",
    "time": "does not end",
}


@dataclass(frozen=True)
class Mistake:
    """A likely one: `computes` is what it gives in place of a spec's `truth`, and `hint` names it.

    computes  goes through pickle, so a function of a module, or a partial of one
    """

    hint: str
    computes: Callable[[dict, Mapping[str, int]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Attempt:
    """What a reader asks for. `text` is the cell below its magic line; sizes that are None are the spec's.

    grid, smem  expressions in the spec's dimensions and `block`: blocks, and bytes of dynamic shared memory
    arch        whose registers to report
    seed        draws the inputs and the hostile order of threads; None for fresh ones
    mistakes    whose hint is added to the verdict on a kernel that computes one of them
    """

    kernel: str
    against: str
    text: str
    grid: str | None = None
    block: int | None = None
    smem: str = "0"
    arch: str = "sm_86"
    seed: int | None = None
    mistakes: tuple[Mistake, ...] = ()


@dataclass(frozen=True, repr=False)
class Verdict(Tabular):
    """What a trial of `attempt` found. `problem` is None for a kernel that is right; then the counts are there.

    kind         of problem, one of WORDS
    shape        the one that the counts are of, with grid and block
    traffic      by parameter, of one launch
    least_read, least_written  bytes of the tensors, each once
    """

    attempt: Attempt
    problem: str | None = None
    kind: str | None = None
    devices: tuple[str, ...] = ()
    shapes: int = 0
    limit: float = 0.0
    shape: Mapping[str, int] = field(default_factory=dict)
    grid: int = 0
    block: int = 0
    dynamic_bytes: int = 0  # of shared memory a block, by --smem
    launches: int = 0
    barriers: float = 0.0
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    least_read: int = 0
    least_written: int = 0
    resources: Resources | None = None
    remark: str = ""  # on a kernel that is right, and not as the course writes them
    printed: str = ""

    @property
    def kernel(self) -> str:
        return self.attempt.kernel

    @property
    def arch(self) -> str:
        return self.attempt.arch

    @property
    def passed(self) -> bool:
        return self.problem is None

    @property
    def total(self) -> Traffic:
        return sum(self.traffic.values(), Traffic())

    @property
    def bytes_read(self) -> int:
        """32 for each sector that a warp's load touches (Traffic.moved_read)."""
        return self.total.moved_read

    @property
    def bytes_written(self) -> int:
        return self.total.moved_write

    @property
    def title(self) -> str:
        said = f"\nprinted:\n{self.printed.rstrip()}" if self.printed.strip() else ""
        if not self.passed:
            return f"{self.kernel} {WORDS[self.kind]}. {self.problem}{said}"
        where = " and ".join({"host": "in the emulator", "cuda": "on the GPU"}[device] for device in self.devices)
        remark = f"\n{self.remark}" if self.remark else ""
        return (
            f"{self.kernel} is right: {self.shapes} shapes, each in two orders of threads, within {self.limit:.0e} of "
            f"{self.attempt.against} (measured {where}){remark}{said}"
        )

    @property
    def header(self) -> list[str]:
        return ["", "this kernel", "at least"] if self.passed else [""]

    @property
    def body(self) -> list[list[str]]:
        if not self.passed:
            return []
        used = self.resources
        return [
            ["bytes read", f"{self.bytes_read:,}", f"{self.least_read:,}"],
            ["bytes written", f"{self.bytes_written:,}", f"{self.least_written:,}"],
            ["launches", str(self.launches), "1"],
            ["barriers a block", f"{self.barriers:g}", ""],
            [f"registers a thread, {self.arch}", str(used.registers), ""],
            ["bytes spilled a thread", f"{used.spill_store_bytes + used.spill_load_bytes:,}", "0"],
            ["shared memory a block, bytes", f"{used.shared_bytes + self.dynamic_bytes:,}", ""],
        ]

    @property
    def caption(self) -> str:
        if not self.passed:
            return ""
        return (
            f"{_words(self.shape)}: {self.grid:,} blocks of {self.block} threads. Bytes: 32 for each sector that a "
            "warp touches, counted in the emulator. Registers, spills and static shared memory: NVIDIA's compiler."
            + (f" {self.dynamic_bytes:,} bytes of shared memory by --smem." if self.dynamic_bytes else "")
        )

    def _repr_html_(self) -> str:
        return super()._repr_html_() if self.passed else f"<pre>{escape(self.title)}</pre>"

    def __str__(self) -> str:
        return super().__str__() if self.passed else self.title

    __repr__ = __str__


def try_kernel(attempt: Attempt, *, seconds: float = SECONDS) -> Verdict:
    """`trial` in a process of its own: a kernel that crashes or never ends is a verdict too."""
    try:
        outcome = run_apart(trial, attempt, time_limit=seconds)
    except Crashed as error:
        kind = "time" if isinstance(error, TimedOut) else "crash"
        return Verdict(attempt, problem=str(error), kind=kind, printed=error.printed)
    return replace(outcome.value, printed=outcome.printed)


class _Problem(Exception):
    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def trial(attempt: Attempt) -> Verdict:
    """Run one attempt in this process. Raises ValueError for an unknown spec."""
    spec = find_spec(attempt.against)
    verdict = Verdict(attempt)
    try:
        order, source = _read_cell(attempt, spec)
        with _tree(attempt.text, source) as tree:
            try:
                return _run(attempt, spec, order, tree, verdict)
            except _Problem as problem:
                return _run_with_exits(attempt, spec, order, tree, verdict, problem)
    except _Problem as problem:
        return replace(verdict, problem=str(problem), kind=problem.kind)


# ---- The reader's text ----


def _read_cell(attempt: Attempt, spec: Spec) -> tuple[list[str], str]:
    """The parameters' names in the kernel's order, and the source that includes the cell."""
    name = attempt.kernel
    cell = code(attempt.text)
    if not cell.strip():
        raise _Problem("cell", "the cell is empty")
    if hint := find_hint(name, attempt.text):
        raise _Problem("cell", hint)
    if dynamic := re.search(r"\bextern\s+__shared__\s+(\w+)\s+(\w+)", cell):
        expected = f"DYNAMIC_SHARED({dynamic[1]}, {dynamic[2]}); inside the kernel"
        raise _Problem("cell", f"extern __shared__: expected {expected}")
    if not re.search(r"\b__global__\b", cell):  # a body: the spec says the rest
        head = f'extern "C" __global__ void {_BOUNDS} {name}({spec.signature}) {{\n'
        return list(spec.parameters), _PRELUDE + head + f'#include "{CELL}"\n}}\n'
    found = re.search(rf"\b__global__\b[^;{{}}]*?\b{re.escape(name)}\s*\(([^)]*)\)", cell)
    if not found:
        expected = f"__global__ void {name}({spec.signature})"
        raise _Problem("cell", f"no kernel named {name!r} in the cell; expected {expected}")
    before = cell[: found.start()]
    if before.count("{") - len(re.findall(r"\bextern\s*\{", before)) > before.count("}"):  # extern "C" changes no name
        raise _Problem("cell", f"{name} stands inside a namespace or other braces; write it outside of them")
    order = []
    for parameter in filter(str.strip, found[1].split(",")):
        *words, given = re.sub(r"\b__restrict__\b", " ", parameter).replace("*", " * ").split()
        if given not in spec.parameters:
            raise _Problem("cell", f"parameter {given!r}: {spec.name} gives {spec.signature}")
        kind = _type(words)
        if kind != spec.parameters[given]:
            raise _Problem("cell", f"parameter {given}: expected {spec.parameters[given]} {given}, got {kind} {given}")
        order.append(given)
    # Declared before, so that the reader need not write extern "C", without which a compiler changes the name.
    declared = f'extern "C" __global__ void {_BOUNDS} {name}({" ".join(found[1].split())});\n'
    return order, _PRELUDE + declared + f'#include "{CELL}"\n'


def _type(words: list[str]) -> str:
    """A parameter's type as the specs write it: `float const * const` is const float*, and a const int an int."""
    pointee = words[: words.index("*")] if "*" in words else []
    const = ["const"] if "const" in pointee else []
    return " ".join(const + [word for word in words if word not in ("const", "*")]) + "*" * words.count("*")


# As the shipped kernels have it: all the registers that a thread of such a block may have.
_BOUNDS = "__launch_bounds__(block_threads, 1)"
_PRELUDE = '#include "block.cuh"\n'  # warps, sums, bf16; the emulator on the host


@contextmanager
def _tree(text: str, source: str) -> Iterator[Path]:
    """A copy of csrc/ with the cell in it, so that no cell can change what ships."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "csrc"
        shutil.copytree(csrc_dir(), tree)
        (tree / CELL).write_text("\n" + text, encoding="utf-8")  # the magic is the reader's line 1
        (tree / SOURCE).write_text(source, encoding="utf-8")
        yield tree


# ---- Compiling and running ----


def _run_with_exits(
    attempt: Attempt, spec: Spec, order: list[str], tree: Path, verdict: Verdict, problem: _Problem
) -> Verdict:
    """The verdict, with a remark, where all that is wrong is a thread that exits before a barrier of its block.

    A GPU since Volta has such a barrier wait for the others. Raises `problem` where the kernel is wrong even so.
    """
    if problem.kind != "kernel" or "divergent barrier" not in str(problem):
        raise problem
    try:
        verdict = _run(attempt, spec, order, tree, verdict, strict=False)
    except _Problem:
        raise problem from None
    return replace(
        verdict,
        remark="Threads exit before a barrier of their block. A GPU since Volta waits only for threads that have not "
        "exited, so this is right there. The house rule of this course is that all threads of a block come to each of "
        f"its barriers. ({problem})",
    )


def _run(
    attempt: Attempt, spec: Spec, order: list[str], tree: Path, verdict: Verdict, *, strict: bool = True
) -> Verdict:
    block = spec.block if attempt.block is None else attempt.block
    if not 32 <= block <= 1024 or block % 32:
        raise _Problem("launch", f"--block {block}: expected whole warps, 32 to 1024 threads")
    defines = _defines(block)
    backends = [make_backend("host", csrc_dir=tree, count_traffic=True, strict=strict)]
    try:
        if default_device() == "cuda":
            backends.append(make_backend("cuda", csrc_dir=tree))
        kernels = [backend.compile(SOURCE, [attempt.kernel], defines)[attempt.kernel] for backend in backends]
        resources = compile_cubin(SOURCE, [attempt.kernel], defines, attempt.arch, csrc=tree).resources[attempt.kernel]
    except CompileError as error:
        raise _Problem("compile", _first_error(error.log or str(error), attempt.text)) from None
    seed = secrets.randbelow(2**32) if attempt.seed is None else attempt.seed
    for backend, kernel in zip(backends, kernels, strict=True):
        random = _normal(seed)
        for shape in spec.shapes:
            inputs = spec.make(shape, random)
            orders = (None, seed) if backend.name == "host" else (None,)
            results = [_launch(attempt, spec, order, backend, kernel, shape, block, inputs, o) for o in orders]
            _judge(attempt, spec, shape, inputs, results)
            if backend.name == "host":
                counted, reported = backend.ledger.entries[-len(orders)], inputs
    tensors = {name: t for name, t in reported.items() if isinstance(t, torch.Tensor)}
    written = [t for name, t in tensors.items() if not spec.parameters[name].startswith("const")]
    outputs = sum(4 * torch.Size(size).numel() for size in spec.outputs(shape).values())
    return replace(
        verdict,
        devices=tuple(backend.name for backend in backends),
        shapes=len(spec.shapes),
        limit=spec.limit,
        shape=dict(shape),
        grid=counted.grid[0],
        block=block,
        dynamic_bytes=counted.smem,
        launches=1,
        barriers=counted.barriers_a_block,
        traffic=counted.traffic,
        least_read=sum(t.nbytes for t in tensors.values()),
        least_written=sum(t.nbytes for t in written) + outputs,
        resources=resources,
    )


def _defines(block: int) -> dict[str, object]:
    """What headers of csrc/ want to know: the dimensions of tiny, and the threads of a block."""
    return kernel_defines(ModelConfig.from_file(DATA / "tiny" / "config.json")) | {"BLOCK_THREADS": block}


def prepare(
    attempt: Attempt, shape: Mapping[str, int], tensors: Mapping[str, torch.Tensor], backend: HostBackend | CudaBackend
) -> Callable[[], None]:
    """Compile an attempt that has passed its trial; a function that launches it on `tensors`, by parameter."""
    spec = find_spec(attempt.against)
    block = spec.block if attempt.block is None else attempt.block
    order, source = _read_cell(attempt, spec)
    with _tree(attempt.text, source) as tree:
        backend.csrc_dir = tree
        kernel = backend.compile(SOURCE, [attempt.kernel], _defines(block))[attempt.kernel]
    names = dict(shape) | {"block": block}
    grid, smem = evaluate(attempt.grid or spec.grid, names), evaluate(attempt.smem, names)
    values = dict(shape) | dict(tensors)
    return lambda: backend.launch(kernel, grid, block, smem, [values[name] for name in order])


def _normal(seed: int) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: torch.randn(size, generator=generator)


# What outputs start as: a NaN that signals, so that arithmetic never gives one, and any that is left was not written.
UNWRITTEN = 0x7FA5A5A5


def _launch(attempt, spec, order, backend, kernel, shape, block, inputs, seed) -> dict[str, torch.Tensor]:
    """One run on copies of the inputs and poisoned outputs; all that the kernel could have changed."""
    names = dict(shape) | {"block": block}
    try:
        grid = evaluate(spec.grid if attempt.grid is None else attempt.grid, names)
        smem = evaluate(attempt.smem, names)
    except ValueError as error:
        raise _Problem("launch", str(error)) from None
    tensors = {name: t.to(backend.device, copy=True) for name, t in inputs.items() if isinstance(t, torch.Tensor)}
    for name, size in spec.outputs(shape).items():
        bits = torch.full(size, UNWRITTEN, dtype=torch.int32, device=backend.device)
        tensors[name] = bits.view(torch.float32)
    values = dict(shape) | {name: v for name, v in inputs.items() if isinstance(v, float)} | tensors
    if backend.name == "host":
        backend.seed, backend.tensors = seed, tensors
    try:
        backend.launch(kernel, grid, block, smem, [values[name] for name in order])
        backend.synchronize()
    except LaunchError as error:
        raise _Problem("launch", str(error)) from None
    except (KernelError, RuntimeError) as error:  # the GPU's own errors are RuntimeErrors of PyTorch or cuda-core
        raise _Problem("kernel", f"{_words(shape)}: {error}") from None
    return {name: t.cpu() for name, t in tensors.items() if not spec.parameters[name].startswith("const")}


def _judge(attempt: Attempt, spec: Spec, shape, inputs: dict, results: list[dict]) -> None:
    for name, want in spec.truth(inputs, shape).items():
        for i, result in enumerate(results):
            got = result[name]
            if relative_error(got, want) <= spec.limit:
                continue
            hostile = ", in a hostile order of threads only" if i else ""
            hint = next((f". {m.hint}" for m in attempt.mistakes if _is_made(m, spec, shape, inputs, result)), "")
            raise _Problem("wrong", f"{_words(shape)}{hostile}: {_worst(name, got, want, spec.limit)}{hint}")
        if not all(torch.equal(result[name], results[0][name]) for result in results):
            raise _Problem("wrong", f"{_words(shape)}: {name} has other bits in another order of threads")


def _is_made(mistake: Mistake, spec: Spec, shape, inputs: dict, result: dict) -> bool:
    """Whether a kernel's result is what a mistake gives; NaN is no result."""
    made = mistake.computes(inputs, shape)
    return all(relative_error(result[name], made[name]) <= spec.limit for name in made)


def _worst(name: str, got: torch.Tensor, want: torch.Tensor, limit: float) -> str:
    """The worst element, and how many are off: a norm alone says neither."""
    difference = (got.double() - want.double()).abs()
    difference = torch.where(difference.isnan(), torch.inf, difference)
    size = want.double().abs().max()
    off = int((~(difference <= limit * size)).sum())
    at = np.unravel_index(int(difference.argmax()), want.shape)  # torch's own would import sympy first
    index = ", ".join(str(int(i)) for i in at)
    value = float(got[at])
    unwritten = got.dtype == torch.float32 and int(got.view(torch.int32)[at]) == UNWRITTEN
    shown = "NaN" if math.isnan(value) else f"{value:.5g}"
    verb = "nothing wrote it; it should be" if unwritten else f"is {shown}, and should be"
    return f"{name}[{index}] {verb} {float(want[at]):.5g}; {off:,} of {want.numel():,} elements are off"


def _words(shape: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in shape.items())


def _first_error(log: str, cell: str) -> str:
    """A compiler's log from its first error on; warnings and the emulator's own files before it are no help."""
    lines = log.splitlines()
    first = next((i for i, line in enumerate(lines) if re.search(r"\berror\b", line)), 0)
    # A brace too few shows in a file that comes after the cell, one too many in the one around it.
    opened, closed = (code(cell).count(brace) for brace in "{}")
    if opened != closed and not lines[first].startswith((f"{CELL}:", f"{CELL}(")):
        return f"the cell has {opened} {{ and {closed} }}"
    return "\n".join(lines[first : first + LOG_LINES])
