"""Build the core of the virtual GPU, csrc/machine/, once by this machine's C++ compiler; keep it in the cache; load it.

Environment: CXX is the compiler, LUCE_CACHE the folder of the cache.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from luce_edu.errors import CacheError, CompileError, unusable_cache
from luce_edu.paths import alone, cache_dir, csrc_dir

COMPILERS = ("g++", "clang++", "c++")
OTHER_COMPILER = "install g++ (Debian: build-essential), or name another compiler in CXX"
# No contraction: PTX itself says where a product and a sum are one operation. No strict aliasing: the type of a
# register depends on the instruction. No vzeroupper: instructions pass control to each other, not to older SSE code.
FLAGS = (
    "-std=c++20 -O2 -march=native -fno-strict-aliasing -ffp-contract=off -fno-math-errno -fno-trapping-math "
    "-fPIC -fvisibility=hidden -pthread"
).split()
X86_FLAGS = ["-mno-vzeroupper"]
_DIGEST = 32  # bytes of the SHA-256 at the end of each cache entry


# ---- Structs that Python and the core share; their sizes are checked when the core is loaded ----


class Tensor(ctypes.Structure):
    """A range of memory that a launch may access, with its bits for bytes read and written."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("begin", "end", "read", "written", "read_only"))


class ProgramText(ctypes.Structure):
    """A program for the core; see assemble.Program."""

    _fields_ = (
        ("code", ctypes.c_void_p), ("count", ctypes.c_int32), ("arena_bytes", ctypes.c_int32),
        ("image", ctypes.c_void_p), ("image_at", ctypes.c_int32), ("image_bytes", ctypes.c_int32),
        ("specials", ctypes.c_void_p), ("specials_count", ctypes.c_int32), ("shared_bytes", ctypes.c_int32),
        ("local_bytes", ctypes.c_int32), ("blocks_count", ctypes.c_int32), ("sites_count", ctypes.c_int32),
        ("parameter_bytes", ctypes.c_int32), ("block_lengths", ctypes.c_void_p), ("lines", ctypes.c_void_p),
    )  # fmt: skip


class LaunchText(ctypes.Structure):
    """A launch, with the arrays into which the core counts."""

    _fields_ = (
        ("program", ctypes.c_void_p), ("parameters", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3), ("block", ctypes.c_uint32 * 3), ("cluster", ctypes.c_uint32 * 3),
        ("dynamic_shared_bytes", ctypes.c_uint32), ("sm_count", ctypes.c_uint32), ("resident", ctypes.c_uint32),
        ("cooperative", ctypes.c_uint32), ("dependent", ctypes.c_uint32), ("strict", ctypes.c_uint32),
        ("tensors", ctypes.c_void_p), ("tensors_count", ctypes.c_uint32),
        ("counts", ctypes.c_void_p), ("sites", ctypes.c_void_p), ("traffic", ctypes.c_void_p),
        ("totals", ctypes.c_void_p),
    )  # fmt: skip


class OrderText(ctypes.Structure):
    """How launches run: threads, seed, checks and limit; see kernels.run."""

    _fields_ = (
        ("threads", ctypes.c_uint32), ("seeded", ctypes.c_uint32), ("seed", ctypes.c_uint64),
        ("instructions", ctypes.c_uint64), ("hostile", ctypes.c_uint32), ("races", ctypes.c_uint32),
        ("trace", ctypes.c_void_p), ("marked", ctypes.c_void_p), ("marked_count", ctypes.c_uint64),
    )  # fmt: skip


class Marked(ctypes.Structure):
    """A range of memory with a mark per byte; see marks.Marks."""

    _fields_ = (("begin", ctypes.c_uint64), ("end", ctypes.c_uint64), ("marks", ctypes.c_void_p))


class Report(ctypes.Structure):
    """The fault of a launch: what, where, by which thread; report.py puts it in words."""

    _fields_ = (
        ("fault", ctypes.c_int32), ("ins", ctypes.c_int32), ("block", ctypes.c_uint32 * 3), ("thread", ctypes.c_uint32),
        ("space", ctypes.c_int32), ("is_write", ctypes.c_int32), ("address", ctypes.c_uint64),
        ("size", ctypes.c_uint64), ("launch", ctypes.c_int32), ("other_ins", ctypes.c_int32),
        ("other_block", ctypes.c_uint32 * 3), ("other_thread", ctypes.c_uint32), ("value", ctypes.c_int64),
        ("text", ctypes.c_char * 4096),
    )  # fmt: skip


class Trace(ctypes.Structure):
    """The record of one warp, step by step; see step.py."""

    _fields_ = (
        ("block", ctypes.c_uint32), ("warp", ctypes.c_uint32), ("program", ctypes.c_void_p), ("code", ctypes.c_void_p),
        ("most", ctypes.c_uint64), ("steps", ctypes.c_uint64), ("at", ctypes.c_void_p), ("mask", ctypes.c_void_p),
        ("registers", ctypes.c_void_p),
    )  # fmt: skip


STRUCTS = (Tensor, ProgramText, LaunchText, OrderText, Marked, Report, Trace)


# ---- Loading ----


@functools.cache
def core() -> ctypes.CDLL:
    """Load the core, once per process. Raises CompileError, with what to do, if there is no usable compiler."""
    library = _load(build())
    library.luce_load.restype = ctypes.c_void_p
    library.luce_unload.argtypes = (ctypes.c_void_p,)
    library.luce_printed.restype = ctypes.c_char_p
    library.luce_run.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p)
    library.luce_device.restype = ctypes.c_void_p
    library.luce_device.argtypes = library.luce_free_device.argtypes = (ctypes.c_void_p,)
    library.luce_time.argtypes = (
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32,
        ctypes.c_void_p,
    )  # fmt: skip
    for struct in STRUCTS:
        if library.luce_size(struct.__name__.encode()) != ctypes.sizeof(struct):
            raise CompileError(f"core.py and csrc/machine/ differ about struct {struct.__name__}")
    return library


@functools.cache
def operations() -> dict[str, int]:
    """Return the core's instructions: their names with their numbers."""
    count = core().luce_operations(None)
    names = (ctypes.c_char_p * count)()
    core().luce_operations(names)
    found = {name.decode(): number for number, name in enumerate(names)}
    if len(found) != count:
        raise CompileError("csrc/machine/ registers an instruction twice")
    return found


def thread_count() -> int:
    """Return the number of OS threads for blocks: as many as processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- Building ----


def build() -> Path:
    """Build the core's library, unless the cache has an undamaged one.

    The last bytes of an entry are the SHA-256 of the rest, and an atomic rename puts it in place, so damage is noticed.
    """
    folder, compiler = csrc_dir() / "machine", find_compiler()
    # The slowest file first, so that the last one to be compiled is short.
    sources = sorted(folder.glob("*.cpp"), key=lambda source: (-source.stat().st_size, source.name))
    headers = [path.read_bytes() for path in sorted(folder.glob("*.h"))]
    keys = {source: _key(compiler, [*headers, source.name.encode(), source.read_bytes()]) for source in sources}
    library = cache_dir() / "machine" / f"{_key(compiler, [key.encode() for key in keys.values()])}.so"
    if _is_whole(library):
        return library
    # One process at a time, because two that start together would each compile everything.
    with _scratch_in(library.parent) as scratch, alone(library.parent), ThreadPoolExecutor(thread_count()) as threads:
        if _is_whole(library):  # built by another process while this one waited
            return library
        objects = [scratch / f"{source.stem}.o" for source in sources]

        def compile_source(source: Path, object_: Path) -> None:
            kept = library.parent / f"{keys[source]}.o"  # so that after a change of one file only that file is compiled
            if _is_whole(kept):
                object_.write_bytes(kept.read_bytes()[:-_DIGEST])
                return
            _compile(compiler, ["-c", str(source), "-o", str(object_)])
            if object_.is_file():
                _keep(object_.read_bytes(), scratch, kept)

        jobs = [threads.submit(compile_source, *pair) for pair in zip(sources, objects, strict=True)]
        for job in _with_progress(jobs):
            job.result()
        output = scratch / "core.so"
        _link(compiler, objects, output)
        _keep(output.read_bytes(), scratch, library)
    return library


def _keep(content: bytes, scratch: Path, entry: Path) -> None:
    """Make a cache entry; other processes see the whole entry or none."""
    file = scratch / f"{entry.name}.new"
    file.write_bytes(content + hashlib.sha256(content).digest())
    os.replace(file, entry)


def try_out() -> None:
    """Build a small library in the cache, in the way that the core is built, load it and call it.

    Raises CompileError, as the first kernel would, if one of the three does not work.
    """
    compiler = find_compiler()
    with _scratch_in(cache_dir() / "machine") as scratch:
        source, object_, output = scratch / "small.cpp", scratch / "small.o", scratch / "small.so"
        source.write_text('extern "C" __attribute__((visibility("default"))) int luce_try_out(int x) { return 3 * x; }')
        _compile(compiler, ["-c", str(source), "-o", str(object_)])
        _link(compiler, [object_], output)
        if _load(output).luce_try_out(14) != 42:
            raise CompileError(f"the compiler {compiler[0]} made a library with wrong results: {OTHER_COMPILER}")


def find_compiler() -> list[str]:
    """Return the C++ compiler's command: CXX, or the first of g++, clang++, c++ that is found. Raises CompileError."""
    named = os.environ.get("CXX")
    for command in [named] if named else COMPILERS:
        try:
            program, *options = shlex.split(command)
        except ValueError:
            raise CompileError(f"CXX is {named!r}, which is not a command; unset it, or name a compiler") from None
        if path := shutil.which(program):
            return [path, *options]
    found = f"CXX is {named!r}, which is not there" if named else f"found none of {', '.join(COMPILERS)}"
    raise CompileError(f"the virtual GPU needs a C++20 compiler; {found}: install g++ (Debian: build-essential)")


def _flags() -> list[str]:
    return FLAGS + (X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else [])


def _compile(compiler: list[str], arguments: list[str]) -> None:
    plain = os.environ | {"LC_ALL": "C"}  # so that messages are the same in every locale
    try:
        done = subprocess.run([*compiler, *_flags(), *arguments], capture_output=True, text=True, env=plain)
    except OSError as error:
        raise CompileError(f"the compiler {compiler[0]} does not run ({error.strerror}): {OTHER_COMPILER}") from None
    if done.returncode != 0:
        log = (done.stderr or done.stdout).replace(f"{csrc_dir()}{os.sep}", "")
        name = f"{Path(compiler[0]).name} (exit status {done.returncode})"
        raise CompileError(f"{name} did not compile the virtual GPU", log.strip())


def _link(compiler: list[str], objects: list[Path], output: Path) -> None:
    _compile(compiler, ["-shared", *map(str, objects), "-o", str(output)])
    # A compiler may report success and still not have written a library.
    if not output.is_file() or output.read_bytes()[:4] != b"\x7fELF":
        raise CompileError(f"the compiler {compiler[0]} wrote no library: {OTHER_COMPILER}")


def _with_progress(jobs: list) -> Iterator:
    """Yield the jobs one after another, with a line of progress in the terminal."""
    shown = sys.stderr is not None and sys.stderr.isatty()
    for number, job in enumerate(jobs):
        if shown:
            print(f"\rbuilding the virtual GPU, once: {number} of {len(jobs)} files", end="", file=sys.stderr)
            sys.stderr.flush()
        yield job
    if shown:
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr)


@contextmanager
def _scratch_in(folder: Path) -> Iterator[Path]:
    """Make a temporary folder inside a folder of the cache. Raises CacheError if that is read-only or full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            yield Path(scratch)
    except OSError as error:
        raise unusable_cache(error) from None


def _is_whole(entry: Path) -> bool:
    try:
        content = entry.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


def _key(compiler: list[str], texts: list[bytes]) -> str:
    """Hash everything that determines the machine code: the texts, the compiler, its flags, the processor."""
    binary = Path(compiler[0]).resolve()
    stat = binary.stat()  # in place of the version, for which a process would have to be started
    identity = (compiler, _flags(), str(binary), stat.st_size, stat.st_mtime_ns, _processor())
    digest = hashlib.sha256(repr(identity).encode())
    for text in texts:
        digest.update(hashlib.sha256(text).digest())
    return digest.hexdigest()[:32]


def _processor() -> str:
    """Return the processor's instruction sets, on which -march=native depends."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.machine() + platform.processor()


def _load(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        if os.statvfs(library.parent).f_flag & os.ST_NOEXEC:
            raise CacheError(
                f"the cache of compiled kernels is on a mount that runs no code (noexec), so {library} cannot be "
                "loaded: set LUCE_CACHE to a folder elsewhere"
            ) from None
        raise CompileError(
            f"the compiler {find_compiler()[0]} made a library that cannot be loaded ({error}): {OTHER_COMPILER}; if "
            "the folder is the cause, set LUCE_CACHE to another"
        ) from None
