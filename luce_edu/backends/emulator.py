"""The host backend: csrc/ compiled by the machine's C++ compiler and run by the emulator in csrc/host/.

Needs no GPU. It is exact, not fast, and it names what a GPU would hang on: see csrc/host/runtime.cpp.
Environment: CXX, the compiler; LUCE_HOST_SMS, multiprocessors of the emulated device (2 unless told);
LUCE_HOST_FLAGS, more compiler flags, such as -DLUCE_UCONTEXT for the portable stack switch.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import math
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from luce_edu import backends
from luce_edu.backends.ledger import PRODUCT, Launch, Ledger, Traffic, check_product, graph_launch
from luce_edu.backends.module import Module, unusable_cache
from luce_edu.errors import CacheError, CompileError, KernelError, LaunchError

# The emulated device: threads and blocks a multiprocessor as on Turing, shared memory as on Hopper, so that any
# kernel that fits a GPU fits here. Registers and static shared memory do not count.
THREADS_PER_BLOCK = 1024
THREADS_PER_SM = 1024
BLOCKS_PER_SM = 16
SHARED_BYTES_PER_SM = 228 * 1024
SHARED_BYTES_PER_BLOCK = 227 * 1024  # the device keeps 1 KiB of each block for itself

MOST_SMS = 512  # two blocks of 512 threads on each: more stacks than that, and Linux runs out of mappings

COMPILERS = ("g++", "clang++", "c++")
OTHER_COMPILER = "install g++ (Debian: build-essential), or name another compiler in CXX"
# Aliasing: kernels read arrays through wider types, which CUDA allows. Hidden: or libraries would share the
# `__shared__` variables of inline functions.
FLAGS = (
    "-std=c++20 -O3 -march=native -ffp-contract=fast -fno-math-errno -fno-strict-aliasing "
    "-fvisibility=hidden -fPIC -Wno-unknown-pragmas -DLUCE_HOST"
).split()
FAR = 2**28  # bytes; what is further away than that is no index that went astray
# Calls before each load and store, for csrc/host/traffic.h; and line numbers for what it reports.
COUNTING = "-fsanitize=thread -g1 -DLUCE_COUNT".split()
_EXPORT = (
    'extern "C" __attribute__((visibility("default"))) const emulator::Export luce_kernel_{name};\n'
    "const emulator::Export luce_kernel_{name} = emulator::exported<&{name}>();"
)
# FORTIFY: takes a longjmp to another stack for an attack.
RUNTIME_FLAGS = (
    "-std=c++20 -O2 -fPIC -pthread -ftls-model=initial-exec -fvisibility=hidden -U_FORTIFY_SOURCE"
).split()


@dataclass(frozen=True)
class HostKernel:
    """A compiled kernel; `signature` has a letter for each parameter: p a pointer, i int, u unsigned, f float."""

    name: str
    signature: str
    entry: int  # address of a function that takes the packed arguments
    shared_module: int
    shared_bytes: int  # static shared memory of all kernels of the module together
    library: Path

    @property
    def packing(self) -> str:
        """How `struct` lays the arguments out: 8 bytes each."""
        return "=" + "".join({"p": "Q", "i": "i4x", "u": "I4x", "f": "f4x"}[letter] for letter in self.signature)


@dataclass(frozen=True)
class HostGraph:
    """What stands in for a CUDA graph here: launches with their arguments, checked and not run.

    Each is called with what writes the ledger.
    """

    launches: tuple[Callable[[Callable[[Launch], None]], None], ...]


class HostBackend:
    """Runs kernels on the CPU, each launch to its end.

    csrc_dir  another source tree, such as one with a planted fault
    count_traffic  count what each launch reads and writes of every tensor, and refuse an access outside all of them
              or at an address that its size does not divide. Some ten times slower. Tensors that a kernel reaches
              through a pointer in memory must be named in `tensors`.
    seed      None: blocks in parallel, threads in turn. An int: one thread at a time in an order drawn from it, the
              same each time; blocks start in any order and run as far as they can before another goes on.
    strict    refuse a __syncthreads that a thread of the block misses because it has left. A GPU since Volta waits only
              for threads that have not exited, and so does the emulator with False.
    """

    name = "host"
    dependent_launch = False
    lazy_loading = False

    def __init__(
        self, *, csrc_dir: Path | None = None, seed: int | None = None, count_traffic: bool = False, strict: bool = True
    ):
        import torch

        self.device = torch.device("cpu")
        self.csrc_dir = backends.csrc_dir() if csrc_dir is None else Path(csrc_dir)
        self.seed = seed
        self.count_traffic = count_traffic
        self.strict = strict
        self.tensors: dict[str, torch.Tensor] = {}  # names for the traffic; an argument without one is "argument 0"
        self.ledger = Ledger()
        self._capturing: list | None = None
        sm_count = os.environ.get("LUCE_HOST_SMS", "2")
        if not sm_count.isdecimal() or not 1 <= int(sm_count) <= MOST_SMS:
            raise ValueError(f"LUCE_HOST_SMS: expected multiprocessors from 1 to {MOST_SMS}, got {sm_count!r}")
        self.sm_count = int(sm_count)

    def compile(self, source: str, kernels: Sequence[str], defines: Mapping[str, object]) -> Module[HostKernel]:
        """Compile csrc/`source`, or find it in the cache, and load it.

        Raises CompileError: no compiler (with the package to install), no such file, or the compiler's log.
        """
        if not (self.csrc_dir / source).is_file():
            raise CompileError(f"{source}: no such file in {self.csrc_dir.name}/")
        runtime = _load_runtime(self.csrc_dir)
        wrapper = [f'#include "{source}"', '#include "host/export.h"']
        wrapper += [_EXPORT.format(name=name) for name in kernels]
        flags = [*FLAGS, *(COUNTING if self.count_traffic else ()), *(f"-D{n}={v}" for n, v in defines.items())]
        library = _build(self.csrc_dir, source, "\n".join(wrapper), flags, self.csrc_dir)
        return Module(source, {name: _find_kernel(runtime, library, name) for name in kernels})

    def name_tensors(self, tensors) -> None:
        self.tensors |= tensors

    def launch(
        self, kernel: HostKernel, grid, block, smem: int, args, cooperative: bool = False, dependent: bool = False
    ) -> None:
        """Run `kernel` to its end. Tensors pass as pointers, ints as int32, floats as float.

        grid, block: an int or a tuple of up to three; smem: bytes of dynamic shared memory; dependent: may start before
        the kernel before it has ended, which the emulator never makes use of.
        Raises LaunchError before anything runs; KernelError, with who waits where, for a kernel that cannot finish.
        """
        grid, block = _triple(kernel.name, "grid", grid), _triple(kernel.name, "block", block)
        blocks, resident = math.prod(grid), self.max_resident_blocks(kernel, block, smem)
        if blocks >= 2**31:
            raise LaunchError(f"{kernel.name}: grid {grid} has {blocks} blocks; at most {2**31 - 1}")
        if cooperative and blocks > resident:
            raise LaunchError(
                f"{kernel.name}: a cooperative launch of {blocks} blocks, but the device holds only {resident} of "
                f"{math.prod(block)} threads and {smem} bytes of shared memory at the same time"
            )
        _pack(kernel, args)  # refuses wrong arguments
        entry = Launch(kernel.name, grid, block, smem, cooperative)
        self._do(lambda record: self._run(kernel, entry, resident, args, record))

    def matmul(self, x, weights: Sequence, out) -> None:
        """As `CudaBackend.matmul`: the same function, computed by PyTorch in fp32 and rounded once."""
        check_product(x, weights, out)
        self._do(lambda record: _multiply(x, tuple(weights), out, record))

    def _do(self, run: Callable[[Callable[[Launch], None]], None]) -> None:
        """Run something that gives its line of the ledger to the function that it is called with, or capture it."""
        if self._capturing is not None:
            self._capturing.append(run)
        else:
            run(self.ledger.record)

    def capture(self, enqueue: Callable[[], None]) -> HostGraph:
        """What `enqueue` launches, unrun, to be replayed as one launch with these very arguments."""
        self._capturing = []
        try:
            enqueue()
            return HostGraph(tuple(self._capturing))
        finally:
            self._capturing = None

    def prepare(self, enqueue: Callable[[], None]) -> HostGraph:
        """What `enqueue` launches, unrun, for `run` to start with these very arguments."""
        return self.capture(enqueue)

    def run(self, prepared: HostGraph) -> None:
        """Run prepared launches in their order. The ledger gets a line for each."""
        for run in prepared.launches:
            run(self.ledger.record)

    def replay(self, graph: HostGraph) -> None:
        """Run the launches of a graph in their order. The ledger gets one line."""
        entries: list[Launch] = []
        try:
            for run in graph.launches:
                run(entries.append)
        finally:
            self.ledger.record(graph_launch(entries))

    def _run(self, kernel: HostKernel, entry: Launch, resident: int, args, record: Callable[[Launch], None]) -> None:
        ranges = self._ranges(args) if self.count_traffic else []
        tensors = (_Tensor * len(ranges))(*((begin, end) for begin, end, _ in ranges))
        traffic, barriers = (_Traffic * len(ranges))(), ctypes.c_uint64()
        request = _Request(
            kernel.name.encode(), kernel.entry, _pack(kernel, args), len(args), kernel.shared_module,
            kernel.shared_bytes, entry.grid, entry.block, entry.smem, resident, entry.cooperative,
            self.seed is not None, self.strict, (self.seed or 0) % 2**64,
            tensors if self.count_traffic else None, len(ranges), traffic, ctypes.pointer(barriers),
        )  # fmt: skip
        report = _load_runtime(self.csrc_dir).luce_launch(ctypes.byref(request))
        counted = None
        if self.count_traffic:
            each = {name: Traffic(*(getattr(t, f) for f, _ in _Traffic._fields_))
                    for (_, _, name), t in zip(ranges, traffic, strict=True)}  # fmt: skip
            counted = {name: t for name, t in each.items() if t != Traffic()}
        barriers_a_block = barriers.value / math.prod(entry.grid)
        record(dataclasses.replace(entry, traffic=counted, barriers_a_block=barriers_a_block))
        if report is not None:
            raise KernelError(_with_names(report.decode(), kernel, ranges))

    def _ranges(self, args) -> list[tuple[int, int, str]]:
        """Begin, end and name of every tensor that may be touched, sorted; those that overlap go by the first."""
        import torch

        named = {f"argument {i}": arg for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)}
        tensors = (self.tensors | named).items()
        found = [(t.data_ptr(), t.data_ptr() + t.nbytes, name) for name, t in tensors if t.nbytes]
        # Of equal ranges the first named one stays; Python's sort keeps their order.
        ranges: list[tuple[int, int, str]] = []
        for begin, end, name in sorted(found, key=lambda r: (r[0], -r[1])):
            if not ranges or begin >= ranges[-1][1]:
                ranges.append((begin, end, name))
            elif end > ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], end, ranges[-1][2])
        return ranges

    def max_resident_blocks(self, kernel: HostKernel, block, smem: int) -> int:
        """Blocks that the emulated device holds at the same time: the largest cooperative grid."""
        threads = math.prod(_triple(kernel.name, "block", block))
        if threads > THREADS_PER_BLOCK:
            raise LaunchError(f"{kernel.name}: {threads} threads a block; at most {THREADS_PER_BLOCK}")
        if not 0 <= smem <= SHARED_BYTES_PER_BLOCK:
            raise LaunchError(
                f"{kernel.name}: {smem} bytes of dynamic shared memory; from 0 to {SHARED_BYTES_PER_BLOCK}"
            )
        warps = -(-threads // 32)
        by_threads, by_shared = THREADS_PER_SM // (32 * warps), SHARED_BYTES_PER_SM // (smem + 1024)
        return self.sm_count * min(BLOCKS_PER_SM, by_threads, by_shared)

    def synchronize(self) -> None:
        """Nothing to wait for: a launch returns when the kernel has ended."""


class _Tensor(ctypes.Structure):
    """emulator::Tensor of csrc/host/runtime.h."""

    _fields_ = (("begin", ctypes.c_uint64), ("end", ctypes.c_uint64))


class _Traffic(ctypes.Structure):
    """emulator::Traffic of csrc/host/runtime.h; the names are those of ledger.Traffic."""

    _fields_ = tuple((field.name, ctypes.c_uint64) for field in dataclasses.fields(Traffic))


class _Request(ctypes.Structure):
    """emulator::Request of csrc/host/runtime.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("entry", ctypes.c_void_p),
        ("args", ctypes.c_char_p),
        ("args_count", ctypes.c_uint64),
        ("shared_module", ctypes.c_uint64),
        ("shared_bytes", ctypes.c_uint64),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_shared_bytes", ctypes.c_uint),
        ("resident_blocks", ctypes.c_uint),
        ("cooperative", ctypes.c_uint),
        ("seeded", ctypes.c_uint),
        ("strict", ctypes.c_uint),
        ("seed", ctypes.c_uint64),
        ("tensors", ctypes.POINTER(_Tensor)),
        ("tensors_count", ctypes.c_uint64),
        ("traffic", ctypes.POINTER(_Traffic)),
        ("block_barriers", ctypes.POINTER(ctypes.c_uint64)),
    )


def _multiply(x, weights, out, record: Callable[[Launch], None]) -> None:
    """out = x @ weights^T for bf16 tensors: products of bf16 numbers and sums in fp32, as tensor cores have it."""
    at = 0
    for weight in weights:
        out[:, at : at + len(weight)] = x.float() @ weight.float().T
        at += len(weight)
    record(PRODUCT)


def _with_names(report: str, kernel: HostKernel, ranges) -> str:
    """An emulator's report with the tensor's name and the source line in place of their numbers."""

    def named(match: re.Match) -> str:
        line = _source_line(kernel.library, int(match[3]))
        if not ranges or abs(int(match[2])) > FAR:
            return f"an address far from all of them{line}"
        begin, end, name = ranges[int(match[1])]
        return f"byte {match[2]} of {name}, which has {end - begin}{line}"

    return re.sub(r"\{access (\d+) (-?\d+) (\d+)\}", named, report)


# Where the words of the language stand; a report names the line that uses them.
WORDS = ("emulator.h", "primitives.cuh")


def _source_line(library: Path, offset: int) -> str:
    """" at file:line" of the instruction before an address in a library, or nothing where binutils is missing."""
    command = ["addr2line", "--inlines", "--basenames", "--exe", str(library), hex(offset - 1)]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # Innermost first: a function that was inlined, then the one that it was inlined into.
    places = [line.split(" ")[0] for line in said.splitlines() if line and line[0] not in "?<"]
    place = next((place for place in places if not place.startswith(WORDS)), "".join(places[:1]))
    return f" at {place}" if place else ""


def _triple(kernel: str, what: str, size) -> tuple[int, int, int]:
    sizes = tuple(size) if isinstance(size, tuple | list) else (size,)
    if not 1 <= len(sizes) <= 3 or not all(type(n) is int and 1 <= n < 2**31 for n in sizes):
        raise LaunchError(f"{kernel}: {what} must be one to three positive ints, got {size!r}")
    return sizes + (1,) * (3 - len(sizes))


def _pack(kernel: HostKernel, args) -> bytes:
    """The arguments, checked against the kernel's C++ parameters, 8 bytes each."""
    import torch

    if len(args) != len(kernel.signature):
        raise LaunchError(f"{kernel.name}: expected {len(kernel.signature)} arguments, got {len(args)}")
    values = []
    for i, (letter, value) in enumerate(zip(kernel.signature, args, strict=True)):
        if letter == "p" and isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.is_contiguous():
            values.append(value.data_ptr())
        elif letter == "i" and type(value) is int and -(2**31) <= value < 2**31:
            values.append(value)
        elif letter == "u" and type(value) is int and 0 <= value < 2**32:
            values.append(value)
        elif letter == "f" and isinstance(value, float):
            values.append(value)
        else:
            raise LaunchError(f"{kernel.name}: argument {i} must be {_EXPECTED[letter]}, got {_describe(value)}")
    return struct.pack(kernel.packing, *values)


_EXPECTED = {
    "p": "a contiguous tensor on the CPU",
    "i": "an int of 32 bits",
    "u": "an unsigned int of 32 bits",
    "f": "a float",
}


def _describe(value) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        contiguous = "" if value.is_contiguous() else "non-contiguous "
        return f"a {contiguous}{value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r}"


# ---- Compiling and caching ----


def find_compiler() -> list[str]:
    """The C++ compiler's command: CXX, or the first of g++, clang++, c++ that is there. Raises CompileError."""
    named = os.environ.get("CXX")
    for command in [named] if named else COMPILERS:
        try:
            program, *options = shlex.split(command)
        except ValueError:
            raise CompileError(f"CXX is {named!r}, which is not a command; unset it, or name a compiler") from None
        if path := shutil.which(program):
            return [path, *options]
    found = f"CXX is {named!r}, which is not there" if named else f"found none of {', '.join(COMPILERS)}"
    raise CompileError(f"the host backend needs a C++20 compiler; {found}: install g++ (Debian: build-essential)")


def _build(csrc: Path, title: str, code: str, flags: list[str], sources: Path) -> Path:
    """The shared library that `code` compiles to with the files in `sources`, from the cache where it is whole.

    Its last 32 bytes are the SHA-256 of the rest, so one atomic rename makes an entry and damage is seen.
    """
    compiler = find_compiler()
    flags = [*flags, *shlex.split(os.environ.get("LUCE_HOST_FLAGS", ""))]
    library = backends.cache_dir() / "host" / _key(sources, code, compiler, flags) / "module.so"
    if _is_whole(library):
        return library
    with _scratch_in(library.parent) as scratch:
        output = scratch / "module.so"
        # Names in reports are relative to csrc/, as an entry serves every tree with the same contents.
        paths = ["-I", str(csrc), f"-ffile-prefix-map={csrc}{os.sep}="]
        # Two steps: one would link the thread sanitizer's runtime into a library built for counting.
        compiled = scratch / "module.o"
        plain = os.environ | {"LC_ALL": "C"}  # the same words and quotes everywhere
        try:
            done = subprocess.run(
                [*compiler, *flags, *paths, "-x", "c++", "-c", "-", "-o", str(compiled)],
                input=code, capture_output=True, text=True, env=plain,
            )  # fmt: skip
            if done.returncode == 0:
                linked = [flag for flag in flags if flag not in COUNTING]
                done = subprocess.run(
                    [*compiler, *linked, "-shared", str(compiled), "-o", str(output)], capture_output=True, text=True
                )
        except OSError as error:
            raise CompileError(
                f"{title}: the compiler {compiler[0]} does not run ({error.strerror}): {OTHER_COMPILER}"
            ) from None
        if done.returncode == 0 and not _is_library(output):
            raise CompileError(f"{title}: the compiler {compiler[0]} wrote no library: {OTHER_COMPILER}", done.stderr)
        if done.returncode != 0:
            log = (done.stderr or done.stdout).replace(f"{csrc}{os.sep}", "")
            name = f"{Path(compiler[0]).name} (exit status {done.returncode})"
            raise CompileError(f"{title}: {name} did not compile it for the host backend", log.strip())
        content = output.read_bytes()
        output.write_bytes(content + hashlib.sha256(content).digest())
        os.replace(output, library)
    return library


@contextmanager
def _scratch_in(folder: Path):
    """A folder for a while inside one of the cache. Raises CacheError where that is read-only or full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            yield Path(scratch)
    except OSError as error:
        raise unusable_cache(error) from None


def _is_library(output: Path) -> bool:
    """Whether a compiler that says it succeeded has written machine code."""
    return output.is_file() and output.read_bytes()[:4] == b"\x7fELF"


def _is_whole(library: Path) -> bool:
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _key(sources: Path, code: str, compiler: list[str], flags: list[str]) -> str:
    """A hash of all that decides the machine code: every source, the compiler, its flags, the processor."""
    binary = Path(compiler[0]).resolve()
    stat = binary.stat()  # stands for the version, which would take a process to ask for
    identity = (code, compiler, flags, str(binary), stat.st_size, stat.st_mtime_ns, _processor())
    digest = hashlib.sha256(repr(identity).encode())
    for path in sorted(sources.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(sources)).encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def _processor() -> str:
    """What -march=native looks at: the processor's instruction sets."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.machine() + platform.processor()


_loaded: dict[Path, ctypes.CDLL] = {}


def _load(library: Path, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
    if library not in _loaded:
        try:
            _loaded[library] = ctypes.CDLL(str(library), mode=mode)
        except OSError as error:
            raise _unloadable(library, error) from None
    return _loaded[library]


def _unloadable(library: Path, error: OSError) -> CompileError:
    """The error for a library that was built and does not load, with what to do."""
    if os.statvfs(library.parent).f_flag & os.ST_NOEXEC:
        return CacheError(
            f"the cache for kernels is on a mount that runs no code (noexec), so {library} does not load: name a "
            "folder elsewhere in LUCE_CACHE"
        )
    return CompileError(
        f"the compiler {find_compiler()[0]} made a library that does not load ({error}): {OTHER_COMPILER}; if the "
        "folder is to blame, name another in LUCE_CACHE"
    )


def try_out() -> None:
    """Build a small library in the cache with the kernels' flags, load it and call it.

    Raises CompileError, as the first kernel would, where one of the three does not work.
    """
    csrc = backends.csrc_dir()
    code = 'extern "C" __attribute__((visibility("default"))) int luce_try_out(int x) { return 3 * x; }'
    library = _build(csrc, "a small library", code, FLAGS, csrc / "host")
    if _load(library).luce_try_out(14) != 42:
        raise CompileError(f"the compiler {find_compiler()[0]} made a library that computes wrongly: {OTHER_COMPILER}")


_runtime: ctypes.CDLL | None = None


def _load_runtime(csrc: Path) -> ctypes.CDLL:
    """The emulator's runtime, one for the process; kernel libraries find its functions by name, hence global."""
    global _runtime
    if _runtime is None:
        code = '#include "host/runtime.cpp"'
        library = _build(csrc, "host/runtime.cpp", code, RUNTIME_FLAGS, csrc / "host")
        _runtime = _load(library, ctypes.RTLD_GLOBAL)
        _runtime.luce_launch.restype = ctypes.c_char_p
    return _runtime


def _find_kernel(runtime: ctypes.CDLL, library: Path, name: str) -> HostKernel:
    class Export(ctypes.Structure):
        _fields_ = (("entry", ctypes.c_void_p), ("signature", ctypes.c_char_p))

    export = Export.in_dll(_load(library), f"luce_kernel_{name}")
    module, size = ctypes.c_uint64(), ctypes.c_uint64()
    runtime.luce_shared_memory(ctypes.c_void_p(export.entry), ctypes.byref(module), ctypes.byref(size))
    return HostKernel(name, export.signature.decode(), export.entry, module.value, size.value, library)
