"""Try a cell's kernel: compile it, run it on new inputs, judge it, count what it did.

It runs in this process. That is safe: the virtual GPU checks every access, and stops a kernel that does not end.
"""

from __future__ import annotations

import functools
import io
import math
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

import numpy as np
import torch

from luce_edu.backends import make_backend
from luce_edu.backends.cuda import CudaBackend
from luce_edu.backends.devices import default_device
from luce_edu.backends.host import HostBackend
from luce_edu.backends.ledger import Launch
from luce_edu.config import ModelConfig
from luce_edu.errors import CompileError, KernelError, LaunchError
from luce_edu.faults import planted
from luce_edu.inline.pasted import code, find_hint
from luce_edu.inline.specs import Spec, evaluate, find_spec
from luce_edu.machine.cards import Card, find_card
from luce_edu.machine.counters import Traffic
from luce_edu.machine.cubin import Resources, compile_cubin
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.measure.profile import Profile, number, profile
from luce_edu.models import DATA
from luce_edu.stages.dims import kernel_defines
from luce_edu.tables import Tabular
from luce_edu.verification import relative_error

CELL = "cell"  # the file name of the cell's text in the compiler's messages
SOURCE = "cell.cu"
LOG_LINES = 12
INSTRUCTIONS = 50_000_000  # of all warps of a launch: a second or two; the course's cells need less than a million
PRINTED_CHARACTERS = 10_000  # of a kernel's output that are kept, as a loop of printf could fill the notebook

# The kinds of problems with a kernel, in words.
WORDS = {
    "cell": "cannot be checked",
    "compile": "does not compile",
    "launch": "cannot be launched",
    "kernel": "fails",
    "wrong": "is wrong",
    "time": "does not end",
}


@dataclass(frozen=True)
class Mistake:
    """A likely mistake: `computes` gives its result in place of a spec's `truth`, and `hint` explains it."""

    hint: str
    computes: Callable[[dict, Mapping[str, int]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Attempt:
    """A cell and its options. `text` is the cell below its magic line; for sizes that are None the spec's are used.

    grid, smem  expressions in the spec's dimensions and `block`: blocks, and bytes of dynamic shared memory
    arch        the architecture whose registers are reported
    seed        draws the inputs and the hostile order of warps; None for a new one
    profile_on  the card on which a right kernel is timed (modelled); None: no times
    mistakes    likely mistakes; the verdict on a kernel that makes one gets its hint
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
    profile_on: Card | None = None


@dataclass(frozen=True, repr=False)
class Verdict(Tabular):
    """The result of a trial of `attempt`. `problem` is None for a right kernel, and then the counts are set.

    kind         the kind of the problem, a key of WORDS
    shape, grid, block  those of the launch that was counted
    traffic      bytes by parameter in that launch; instructions (PTX, of warps) and bank_conflicts are its too
    least_read, least_written  bytes of the tensors, each counted once
    profile      one launch at the spec's `timed` shape, with an empty L2; modelled, None unless asked for
    least_bytes  bytes of the tensors at that shape, each counted once
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
    dynamic_bytes: int = 0  # shared memory per block, by --smem
    launches: int = 0
    barriers: float = 0.0
    instructions: int = 0
    bank_conflicts: int = 0
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    least_read: int = 0
    least_written: int = 0
    resources: Resources | None = None
    profile: Profile | None = None
    least_bytes: int = 0
    remark: str = ""  # on a right kernel that breaks a rule of the course
    printed: str = ""

    @property
    def kernel(self) -> str:
        return self.attempt.kernel

    @property
    def arch(self) -> str:
        return self.attempt.arch

    @property
    def passed(self) -> bool:
        """Whether the kernel is right."""
        return self.problem is None

    @property
    def total(self) -> Traffic:
        """The traffic of all parameters together."""
        return sum(self.traffic.values(), Traffic())

    @property
    def bytes_read(self) -> int:
        """Bytes read: 32 for each sector that a warp's load touches (Traffic.moved_read)."""
        return self.total.moved_read

    @property
    def bytes_written(self) -> int:
        """Bytes written: 32 for each sector that a warp's store touches (Traffic.moved_write)."""
        return self.total.moved_write

    @property
    def us(self) -> float:
        """Modelled microseconds from the first block to the last, without the launch. ValueError if not profiled."""
        if self.profile is None:
            raise ValueError(f"{self.kernel} was not profiled: add --profile to its %%kernel line")
        return self.profile.total_us - self.profile.launch_us

    @property
    def least_us(self) -> float:
        """Microseconds to move least_bytes at the card's datasheet bandwidth."""
        return self.least_bytes / (find_card(self.profile.card).memory_gb_per_s * 1e3) if self.profile else 0.0

    @property
    def peak_share(self) -> float:
        """least_us / us: the share of the card's bandwidth that the kernel uses, counting each byte once."""
        return self.least_us / self.us

    @property
    def ptx(self) -> str:
        """The PTX that NVIDIA's compiler makes from the cell, for `luce_edu.machine.load` and `show_ptx`.

        Raises CompileError for a cell that does not compile.
        """
        spec = find_spec(self.attempt.against)
        block = spec.block if self.attempt.block is None else self.attempt.block
        _, source = _read_cell(self.attempt, spec)
        with _tree(self.attempt.text, source) as tree:
            return compile_ptx(SOURCE, None, [self.kernel], cell_defines(block), find_card(None).arch, csrc=tree)

    @property
    def title(self) -> str:
        said = f"\nprinted:\n{self.printed.rstrip()}" if self.printed.strip() else ""
        if not self.passed:
            return f"{self.kernel} {WORDS[self.kind]}. {self.problem}{said}"
        where = " and ".join({"host": "on the virtual GPU", "cuda": "on the GPU"}[device] for device in self.devices)
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
            ["warp instructions", f"{self.instructions:,}", ""],
            ["bank conflicts", f"{self.bank_conflicts:,}", "0"],
            ["barriers per block", f"{self.barriers:g}", ""],
            [f"registers per thread, {self.arch}", str(used.registers), ""],
            ["bytes spilled per thread", f"{used.spill_store_bytes + used.spill_load_bytes:,}", "0"],
            ["shared memory per block, bytes", f"{used.shared_bytes + self.dynamic_bytes:,}", ""],
            *(self._times() if self.profile else ()),
        ]

    def _times(self) -> list[list[str]]:
        found = self.profile
        split = {name: us / self.us for name, us in found.split.items() if name != "launch"}
        return [
            [f"µs on {found.on_card}, modelled", number(self.us), number(self.least_us)],
            ["  " + ", ".join(split), ", ".join(f"{share:.0%}" for share in split.values()), ""],
            ["  µs for the launch before it", number(found.launch_us), ""],
            ["  GB/s, each byte counted once", number(self.least_bytes / self.us / 1e3), ""],
            ["  share of the card's bandwidth", f"{self.peak_share:.1%}", "100%"],
            ["  MB from and to DRAM", number(found.dram_bytes / 1e6), number(self.least_bytes / 1e6)],
            ["  sectors at that size", f"{found.sectors:,}", f"{-(-self.least_bytes // 32):,}"],
            ["  bank conflicts at that size", f"{found.bank_conflicts:,}", "0"],
        ]

    @property
    def caption(self) -> str:
        if not self.passed:
            return ""
        return (
            f"{_words(self.shape)}: {self.grid:,} blocks of {self.block} threads. Bytes are 32 for each sector that a "
            "warp touches, counted on the virtual GPU. NVIDIA's compiler reports registers, spills and static shared "
            "memory." + (f" --smem adds {self.dynamic_bytes:,} bytes of shared memory." if self.dynamic_bytes else "")
            + (self._timed if self.profile else "")
        )

    @property
    def _timed(self) -> str:
        size = _words(find_spec(self.attempt.against).timed)
        return (
            f" Time and the rows below it are for another size, {size}, with an empty L2 at the start. Bytes that are "
            "written may stay in L2."
        )

    def _repr_html_(self) -> str:
        return super()._repr_html_() if self.passed else f"<pre>{escape(self.title)}</pre>"

    def __str__(self) -> str:
        return super().__str__() if self.passed else self.title

    __repr__ = __str__


def try_kernel(attempt: Attempt, *, instructions: int = INSTRUCTIONS) -> Verdict:
    """Compile and run one attempt. Raises ValueError for an unknown spec.

    instructions  that the warps of a launch may execute before it is stopped
    """
    spec = find_spec(attempt.against)
    said = io.StringIO()
    with redirect_stdout(said):
        try:
            order, source = _read_cell(attempt, spec)
            with _tree(attempt.text, source) as tree:
                verdict = _run_with_exits(attempt, spec, order, tree, instructions)
        except _Problem as problem:
            verdict = Verdict(attempt, problem=str(problem), kind=problem.kind)
    return replace(verdict, printed=said.getvalue()[:PRINTED_CHARACTERS])


class _Problem(Exception):
    def __init__(self, kind: str, message: str, fault: str = ""):
        super().__init__(message)
        self.kind, self.fault = kind, fault


# ---- The reader's text ----


def _read_cell(attempt: Attempt, spec: Spec) -> tuple[list[str], str]:
    """Return the parameters' names in the kernel's order, and the source that includes the cell."""
    name = attempt.kernel
    cell = code(attempt.text)
    if not cell.strip():
        raise _Problem("cell", "the cell is empty")
    if hint := find_hint(name, attempt.text):
        raise _Problem("cell", hint)
    if not re.search(r"\b__global__\b", cell):  # only a body: the signature is the spec's
        head = f'extern "C" __global__ void {_BOUNDS} {name}({spec.signature}) {{\n'
        return list(spec.parameters), _PRELUDE + head + f'#include "{CELL}"\n}}\n'
    found = re.search(rf"\b__global__\b[^;{{}}]*?\b{re.escape(name)}\s*\(([^)]*)\)", cell)
    if not found:
        expected = f"__global__ void {name}({spec.signature})"
        raise _Problem("cell", f"no kernel named {name!r} in the cell; expected {expected}")
    before = cell[: found.start()]
    if before.count("{") - len(re.findall(r"\bextern\s*\{", before)) > before.count("}"):  # extern "C" changes no name
        raise _Problem("cell", f"{name} is inside a namespace or other braces; move it out of them")
    order = []
    for parameter in filter(str.strip, found[1].split(",")):
        *words, given = re.sub(r"\b__restrict__\b", " ", parameter).replace("*", " * ").split()
        if given not in spec.parameters:
            raise _Problem("cell", f"unknown parameter {given!r}; expected some of {spec.signature}")
        kind = _type(words)
        if kind != spec.parameters[given]:
            raise _Problem("cell", f"parameter {given}: expected {spec.parameters[given]} {given}, got {kind} {given}")
        order.append(given)
    # This declaration has extern "C", without which the compiler would change the name, so the cell need not have it.
    declared = f'extern "C" __global__ void {_BOUNDS} {name}({" ".join(found[1].split())});\n'
    return order, _PRELUDE + declared + f'#include "{CELL}"\n'


def _type(words: list[str]) -> str:
    """Write a parameter's type as the specs do: `float const * const` is const float*, and a const int is int."""
    pointee = words[: words.index("*")] if "*" in words else []
    const = ["const"] if "const" in pointee else []
    return " ".join(const + [word for word in words if word not in ("const", "*")]) + "*" * words.count("*")


# As in the kernels of csrc/: a thread may have all the registers that such a block allows.
_BOUNDS = "__launch_bounds__(block_threads, 1)"
_PRELUDE = '#include "block.cuh"\n'  # warps, sums, bf16


@contextmanager
def _tree(text: str, source: str) -> Iterator[Path]:
    """Make a copy of csrc/ with the cell in it, so that no cell can change the original."""
    with planted() as tree:
        (tree / CELL).write_text("\n" + text, encoding="utf-8")  # the line of the magic is line 1
        (tree / SOURCE).write_text(source, encoding="utf-8")
        yield tree


# ---- Compiling and running ----


def _run_with_exits(attempt: Attempt, spec: Spec, order: list[str], tree: Path, instructions: int) -> Verdict:
    """Run an attempt; if only a barrier that some threads miss is wrong, pass it with a remark.

    Since Volta, a GPU's barrier waits only for threads that have not exited.
    """
    try:
        return _run(attempt, spec, order, tree, instructions)
    except _Problem as problem:
        if problem.fault != "divergent_barrier":
            raise
        try:
            verdict = _run(attempt, spec, order, tree, instructions, strict=False)
        except _Problem:
            raise problem from None
        return replace(
            verdict,
            remark="Some threads of a block exit before a barrier. Since Volta, a GPU waits only for threads that have "
            "not exited, so this is right there. The rule of this course is that all threads of a block reach each of "
            f"its barriers. ({problem})",
        )


def _run(
    attempt: Attempt, spec: Spec, order: list[str], tree: Path, instructions: int, *, strict: bool = True
) -> Verdict:
    block = spec.block if attempt.block is None else attempt.block
    if not 32 <= block <= 1024 or block % 32:
        raise _Problem("launch", f"--block {block}: expected whole warps, 32 to 1024 threads")
    defines = cell_defines(block)
    seed = secrets.randbelow(2**32) if attempt.seed is None else attempt.seed
    usual = {"csrc_dir": tree, "strict": strict, "instructions": instructions}
    # For the second run of each shape: warps in an order drawn from the seed, stores that reach other blocks as late as
    # the memory model allows, and the race check.
    hostile = make_backend("host", **usual, seed=seed, hostile=True, races=True)
    devices = [[make_backend("host", **usual), hostile]]
    if default_device() == "cuda":
        devices.append([make_backend("cuda", csrc_dir=tree)])
    for backends in devices:
        kernels = [_compiled(backend.compile, SOURCE, [attempt.kernel], defines, cell=attempt) for backend in backends]
        random = _normal(seed)
        for shape in spec.shapes:
            inputs = spec.make(shape, random)
            results = [
                _launch(attempt, spec, order, backend, module[attempt.kernel], shape, block, inputs)
                for backend, module in zip(backends, kernels, strict=True)
            ]
            _judge(attempt, spec, shape, inputs, results)
            if backends is devices[0]:
                counted, reported = results[0].launch, inputs
    binary = _compiled(compile_cubin, SOURCE, [attempt.kernel], defines, attempt.arch, csrc=tree, cell=attempt)
    timed = {}
    if attempt.profile_on:
        timed = _profiled(attempt, spec, order, make_backend("host", **usual, card=attempt.profile_on), block, defines)
    tensors = {name: t for name, t in reported.items() if isinstance(t, torch.Tensor)}
    written = [t for name, t in tensors.items() if not spec.parameters[name].startswith("const")]
    outputs = sum(4 * torch.Size(size).numel() for size in spec.outputs(shape).values())
    return Verdict(
        attempt,
        devices=tuple(backends[0].name for backends in devices),
        shapes=len(spec.shapes),
        limit=spec.limit,
        shape=dict(shape),
        grid=counted.grid[0],
        block=block,
        dynamic_bytes=counted.smem,
        launches=1,
        barriers=counted.barriers_a_block,
        instructions=counted.counters.instructions,
        bank_conflicts=counted.counters.bank_conflicts,
        traffic=counted.traffic,
        least_read=sum(t.nbytes for t in tensors.values()),
        least_written=sum(t.nbytes for t in written) + outputs,
        resources=binary.resources[attempt.kernel],
        **timed,
    )


def _profiled(attempt: Attempt, spec: Spec, order: list[str], backend: HostBackend, block: int, defines) -> dict:
    """Run and judge the kernel at the timed shape, and again with the clock on; return these fields of the verdict."""
    kernel = _compiled(backend.compile, SOURCE, [attempt.kernel], defines, cell=attempt)[attempt.kernel]
    inputs = spec.make(spec.timed, _normal(0))
    result = _launch(attempt, spec, order, backend, kernel, spec.timed, block, inputs)
    _judge(attempt, spec, spec.timed, inputs, [result])
    graph = backend.capture(result.again)
    least = sum(tensor.nbytes for tensor in result.given.values())
    least += sum(tensor.nbytes for name, tensor in result.tensors.items() if name in inputs)  # read and written
    return {"profile": profile(graph.steps), "least_bytes": least}


def _compiled(compile: Callable, *args, cell: Attempt, **options):
    try:
        return compile(*args, **options)
    except CompileError as error:
        raise _Problem("compile", first_error(error.log or str(error), cell.text)) from None


def cell_defines(block: int) -> dict[str, object]:
    """Return the macros that headers of csrc/ need: the dimensions of tiny, and the threads per block."""
    return kernel_defines(ModelConfig.from_file(DATA / "tiny" / "config.json")) | {"BLOCK_THREADS": block}


def prepare(
    attempt: Attempt, shape: Mapping[str, int], tensors: Mapping[str, torch.Tensor], backend: HostBackend | CudaBackend
) -> Callable[[], None]:
    """Compile an attempt; return a function that launches it on `tensors`, by parameter.

    Raises ValueError for a cell that does not compile or cannot be checked.
    """
    spec = find_spec(attempt.against)
    block = spec.block if attempt.block is None else attempt.block
    try:
        order, source = _read_cell(attempt, spec)
        with _tree(attempt.text, source) as tree:
            backend.csrc_dir = tree
            kernel = _compiled(backend.compile, SOURCE, [attempt.kernel], cell_defines(block), cell=attempt)
    except _Problem as problem:
        raise ValueError(f"{attempt.kernel} {WORDS[problem.kind]}. {one_line(str(problem))}") from None
    kernel = kernel[attempt.kernel]
    names = dict(shape) | {"block": block}
    grid, smem = evaluate(attempt.grid or spec.grid, names), evaluate(attempt.smem, names)
    values = dict(shape) | dict(tensors)
    return lambda: backend.launch(kernel, grid, block, smem, [values[name] for name in order])


def _normal(seed: int) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: torch.randn(size, generator=generator)


@dataclass(frozen=True)
class _Result:
    """The tensors that a run could have changed, and its line of the ledger.

    hostile  how the run differs, in words
    given    all tensors of the launch
    again    launches once more on them, as they are now
    """

    tensors: Mapping[str, torch.Tensor]
    launch: Launch
    hostile: str
    given: Mapping[str, torch.Tensor]
    again: Callable[[], None]


def _launch(attempt, spec, order, backend, kernel, shape, block, inputs) -> _Result:
    """Run once on copies of the inputs, with outputs full of NaN."""
    names = dict(shape) | {"block": block}
    try:
        grid = evaluate(spec.grid if attempt.grid is None else attempt.grid, names)
        smem = evaluate(attempt.smem, names)
    except ValueError as error:
        raise _Problem("launch", str(error)) from None
    tensors = {name: t.to(backend.device, copy=True) for name, t in inputs.items() if isinstance(t, torch.Tensor)}
    for name, size in spec.outputs(shape).items():
        tensors[name] = torch.full(size, torch.nan, device=backend.device)
    values = dict(shape) | {name: v for name, v in inputs.items() if isinstance(v, float)} | tensors
    hostile = ", in a hostile order of threads only" if getattr(backend, "seed", None) is not None else ""
    backend.name_tensors(tensors)
    launch = functools.partial(backend.launch, kernel, grid, block, smem, [values[name] for name in order])
    try:
        launch()
        backend.synchronize()
    except LaunchError as error:
        raise _Problem("launch", str(error)) from None
    except (KernelError, RuntimeError) as error:  # the GPU's own errors are RuntimeErrors of PyTorch or cuda-core
        fault = getattr(error, "fault", "")
        said = str(error).removeprefix(f"{attempt.kernel}: ")
        if fault == "race":  # the usual run has no race check
            hostile = ""
        if fault == "budget":
            said = f"it had not ended after {backend.instructions:,} instructions of its warps, and was stopped"
        raise _Problem("time" if fault == "budget" else "kernel", f"{_words(shape)}{hostile}: {said}", fault) from None
    changed = {name: t.cpu() for name, t in tensors.items() if not spec.parameters[name].startswith("const")}
    return _Result(changed, backend.ledger.entries[-1], hostile, tensors, launch)


def _judge(attempt: Attempt, spec: Spec, shape, inputs: dict, results: Sequence[_Result]) -> None:
    for name, want in spec.truth(inputs, shape).items():
        for result in results:
            got = result.tensors[name]
            if relative_error(got, want) <= spec.limit:
                continue
            distances = [(_distance(m, shape, inputs, result.tensors), m.hint) for m in attempt.mistakes]
            # At small sizes several mistakes may be within the limit. The nearest is most likely the one that was made.
            near = [pair for pair in distances if pair[0] <= spec.limit]
            hint = f". {min(near, key=lambda pair: pair[0])[1]}" if near else ""
            wrong = _worst(name, got, want, spec.limit, _unwritten(name, got, result.launch))
            raise _Problem("wrong", f"{_words(shape)}{result.hostile}: {wrong}{hint}")
        if not all(torch.equal(result.tensors[name], results[0].tensors[name]) for result in results):
            raise _Problem("wrong", f"{_words(shape)}: {name} has different bits in another order of threads")


def _unwritten(name: str, tensor: torch.Tensor, launch: Launch) -> tuple[int, int] | None:
    """Return the first consecutive elements that were never written, as (first, last); None if none, or on a GPU."""
    if launch.counters is None:
        return None
    traffic = launch.traffic.get(name)
    if traffic is None or not traffic.distinct_write:
        return 0, tensor.numel() - 1
    if name not in launch.counters.gaps:
        return None
    begin, end = launch.counters.gaps[name]
    return begin // tensor.element_size(), (end - 1) // tensor.element_size()


def _distance(mistake: Mistake, shape, inputs: dict, result: dict) -> float:
    """Return the largest relative error of a kernel's result against that of a mistake; infinity if either has NaN."""
    made = mistake.computes(inputs, shape)
    errors = [relative_error(result[name], made[name]) for name in made]
    return max(errors) if all(error < float("inf") for error in errors) else float("inf")


def _worst(
    name: str, got: torch.Tensor, want: torch.Tensor, limit: float, unwritten: tuple[int, int] | None = None
) -> str:
    """Describe the worst element, or those never written, and how many are wrong, which a norm does not tell."""
    difference = (got.double() - want.double()).abs()
    difference = torch.where(difference.isnan(), torch.inf, difference)
    off = ~(difference <= limit * want.double().abs().max())
    count = f"{int(off.sum()):,} of {want.numel():,} elements are wrong"

    def element(flat: int) -> str:
        at = np.unravel_index(flat, want.shape)  # because torch.unravel_index imports sympy
        return f"{name}[{', '.join(str(int(i)) for i in at)}]"

    if unwritten and off.flatten()[unwritten[0]]:
        first, last = unwritten
        return f"the kernel never wrote {element(first)}{f' to {element(last)}' if last > first else ''}; {count}"
    worst = int(difference.argmax())
    value = float(got.flatten()[worst])
    shown = "NaN" if math.isnan(value) else f"{value:.5g}"
    return f"{element(worst)} is {shown}, and should be {float(want.flatten()[worst]):.5g}; {count}"


def _words(shape: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in shape.items())


def one_line(log: str) -> str:
    """Return the first two errors of a log, without the lines that they quote; the whole log if it has no error."""
    errors = [line.strip() for line in log.splitlines() if re.search(r"\berror\b", line)]
    return "; ".join(errors[:2] or [" ".join(log.split())])


def first_error(log: str, cell: str) -> str:
    """Return the first errors of a compiler's log, without warnings and summary."""
    errors = [part for part in re.split(r"\n\s*\n", log) if re.search(r"\berror\b.*:", part.partition("\n")[0])]
    lines = "\n\n".join(errors or [log]).splitlines()
    # A missing brace is reported in a file after the cell, and a surplus one in the file that includes it.
    opened, closed = (code(cell).count(brace) for brace in "{}")
    if opened != closed and not lines[0].startswith(f"{CELL}("):
        return f"the cell has {opened} {{ and {closed} }}"
    # What is missing at the end of the cell is reported in the file that includes it.
    return re.sub(rf"^{re.escape(SOURCE)}\(\d+\): ", "at the end of the cell: ", "\n".join(lines[:LOG_LINES]))
