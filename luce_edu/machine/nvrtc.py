"""Compile a source in csrc/ by NVRTC: to PTX for the virtual GPU, or to machine code. Needs no GPU and no driver.

The compiler gets every text in memory, under the name of its #include line. So neither its output nor its messages
contain a folder of this machine. The output is cached on disk.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from luce_edu.errors import CompileError, unusable_cache
from luce_edu.paths import cache_dir, csrc_dir

PACKAGES = (
    "cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"
)  # fmt: skip
ELSEWHERE = "machine/"  # the folder of csrc/ that only the C++ compiler reads
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^">\n]+)[">]', re.MULTILINE)
_FILE = re.compile(r'^([ \t]*\.file[ \t]+\d+[ \t]+)"([^"\n]*)"', re.MULTILINE)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)")


# ---- Headers that are not in csrc/ ----


def _unless_there(**macros: str) -> str:
    return "".join(f"#ifndef {name}\n#define {name} {value}\n#endif\n" for name, value in macros.items())


_INTEGERS = "".join(
    f"typedef signed {kind} int{size}_t;\ntypedef unsigned {kind} uint{size}_t;\n"
    for size, kind in {"8": "char", "16": "short", "32": "int", "64": "long long", "ptr": "long long"}.items()
)
_FLOATS = _unless_there(
    FLT_MAX="3.402823466e+38f", FLT_MIN="1.175494351e-38f", FLT_EPSILON="1.192092896e-7f",
    DBL_MAX="1.7976931348623157e+308", DBL_MIN="2.2250738585072014e-308", DBL_EPSILON="2.220446049250313e-16",
)  # fmt: skip
_LIMITS = _unless_there(
    CHAR_BIT="8", INT_MAX="2147483647", INT_MIN="(-2147483647 - 1)", UINT_MAX="4294967295u",
    LLONG_MAX="9223372036854775807ll", LLONG_MIN="(-9223372036854775807ll - 1)", ULLONG_MAX="18446744073709551615ull",
)  # fmt: skip
_MATH = _unless_there(
    INFINITY="__int_as_float(0x7f800000)", NAN="__int_as_float(0x7fffffff)", M_PI="3.14159265358979323846"
)
# Headers of C, C++ and CUDA's runtime that NVRTC lacks. It has most of their contents built in.
HEADERS = (
    dict.fromkeys(
        (
            "assert.h", "cassert", "stdio.h", "cstdio", "stdlib.h", "cstdlib", "string.h", "cstring", "stddef.h",
            "cstddef", "cuda_runtime.h", "cuda_runtime_api.h", "device_launch_parameters.h", "nv/target",
        ),
        "",
    )
    | {"stdint.h": _INTEGERS, "float.h": _FLOATS, "limits.h": _LIMITS, "math.h": _MATH}
    | {"cstdint": _INTEGERS, "cfloat": _FLOATS, "climits": _LIMITS, "cmath": _MATH}
)  # fmt: skip
HEADERS = {name: f"#pragma once\n{text}" for name, text in HEADERS.items()}


@functools.cache
def toolkit() -> Path | None:
    """Find the folder of CUDA's headers, such as cuda_fp16.h, in NVIDIA's Python packages; None if there is none."""
    spec = find_spec("nvidia")
    folders = [Path(root) / part / "include" for root in (spec and spec.submodule_search_locations) or ()
               for part in (f"cu{_major()}", "cuda_runtime")]  # fmt: skip
    return next((folder for folder in folders if (folder / "cuda_fp16.h").is_file()), None)


def _major() -> int:
    return int(version("cuda-bindings").split(".")[0])


def has_header(name: str) -> bool:
    """Whether `#include <name>` finds a header outside csrc/."""
    return name in HEADERS or bool(toolkit() and (toolkit() / name).is_file())


def compile_ptx(
    source: str, text: str | None, kernels: Sequence[str], defines: Mapping[str, object], arch: str, *,
    csrc: Path | None = None,
) -> str:  # fmt: skip
    """Compile csrc/`source`, or `text` under that name, to PTX with line numbers. Cached on disk.

    kernels  names of kernels that it must have
    arch     a virtual architecture such as 'compute_86'
    Raises CompileError with the compiler's log, or if a kernel is missing.
    """
    sources = read_sources(source, text, csrc)
    name = entry_name(sources, defines, arch, "ptx")

    def make() -> str:
        ptx, _ = run(sources, defines, arch, "PTX")
        return _FILE.sub(lambda line: f'{line[1]}"{_spelled(line[2], sources)}"', ptx.rstrip(b"\0").decode())

    ptx = cached(f"ptx/{name}.ptx", make)
    if any(f".entry {kernel}(" not in ptx for kernel in kernels):
        check_kernels(source, kernels, _ENTRY.findall(ptx))
    return ptx


def check_kernels(source: str, wanted: Sequence[str], there: Sequence[str]) -> None:
    """Raise CompileError if a kernel is missing."""
    missing = [name for name in wanted if name not in there]
    if missing:
        raise CompileError(f"{source}: no kernel named {', '.join(missing)}; it has {', '.join(there) or 'none'}")


# ---- Sources ----


def read_sources(source: str, text: str | None = None, csrc: Path | None = None) -> dict[str, str]:
    """Read csrc/`source`, or take `text` in its place, and all that it includes from csrc/; by name, `source` first.

    Raises CompileError if there is no such file. An include that is not found is left to the compiler to report.
    """
    csrc = csrc_dir() if csrc is None else Path(csrc)
    sources = {} if text is None else {source: text}
    to_read = [source]
    while to_read:
        name = to_read.pop()
        if name not in sources and not name.startswith(ELSEWHERE):
            with suppress(OSError):
                sources[name] = (csrc / name).read_text(encoding="utf-8", errors="replace")
        if name in sources:
            to_read += [other for other in _INCLUDE.findall(sources[name]) if other not in sources]
        elif has_header(name):  # CUDA's own headers, read from their folder, include some of HEADERS
            sources |= HEADERS
    if source not in sources:
        raise CompileError(f"{source}: no such file in {csrc.name}/")
    return sources


def _spelled(path: str, sources: Mapping[str, str]) -> str:
    """Remove the working directory, which NVRTC puts before a name."""
    names = [name for name in sources if path == name or path.endswith(f"/{name}")]
    return max(names, key=len, default=path.rpartition("/")[2])


# ---- The compiler ----


def run(
    sources: Mapping[str, str], defines: Mapping[str, object], arch: str, kind: str, options: Sequence[str] = ()
) -> tuple[bytes, str]:
    """Compile the first of `sources` to kind 'PTX' or 'CUBIN'; return the result and NVRTC's log.

    Raises CompileError if NVRTC is missing, with what to install, or with the compiler's log.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise CompileError(f"cuda-bindings is not installed ({error}); {_INSTALL}") from None
    (source, text), *headers = sources.items()
    try:
        program = _checked(
            nvrtc.nvrtcCreateProgram(
                text.encode(), source.encode(), len(headers), [text.encode() for _, text in headers],
                [name.encode() for name, _ in headers],
            )
        )  # fmt: skip
    except RuntimeError as error:  # the library was not found
        raise CompileError(f"NVRTC cannot be loaded; {_INSTALL}", str(error)) from None
    try:
        arguments = [f"--gpu-architecture={arch}", "--std=c++17", "-lineinfo", *options]
        headers_of_cuda = toolkit() if HEADERS.keys() <= sources.keys() else None
        if headers_of_cuda:
            # With this macro cooperative groups do not need libcu++, which no package here contains.
            arguments += [f"--include-path={headers_of_cuda}", "-D_CG_LIMIT_INCLUDED_DEPENDENCIES"]
        arguments = [argument.encode() for argument in arguments + [f"-D{n}={v}" for n, v in defines.items()]]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(arguments), arguments)
        log = _output(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
        log = log.strip(" \n\0").replace(f"{headers_of_cuda}{os.sep}", "")
        if status:
            name = status.name.removeprefix("NVRTC_ERROR_").lower().replace("_", " ")
            raise CompileError(f"{source}: NVRTC refused it for {arch}", log or name)
        size, get = (getattr(nvrtc, f"nvrtcGet{kind}{end}") for end in ("Size", ""))
        return _output(size, get, program), log
    finally:
        nvrtc.nvrtcDestroyProgram(program)


_INSTALL = "pip install -e '.[cu13]', or '.[cu12]' for an NVIDIA driver older than CUDA 13"


def _checked(answer):
    status, *values = answer
    if status:
        raise CompileError(f"NVRTC failed: {status.name}")
    return values[0] if values else None


def _output(size: Callable, get: Callable, program) -> bytes:
    buffer = bytearray(_checked(size(program)))
    _checked(get(program, buffer))
    return bytes(buffer)


@functools.cache
def _compiler() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


# ---- The cache ----


def entry_name(sources: Mapping[str, str], defines: Mapping[str, object], arch: str, *more: str) -> str:
    """Hash everything that determines NVRTC's result: its version, every source that may be included, the options."""
    decisive = (_compiler(), list(sources.items()), sorted(defines.items()), arch, more)
    return hashlib.sha256(repr(decisive).encode()).hexdigest()[:32]


def cached(entry: str, make: Callable[[], str]) -> str:
    """Return the text of a cache entry such as 'ptx/NAME.ptx'; make and store it if it is missing or damaged.

    The entry's first line is the hash of the rest. Raises CacheError if the cache cannot be written.
    """
    path = cache_dir() / entry
    try:
        stamp, _, text = path.read_text(encoding="utf-8").partition("\n")
        if stamp == _stamp(text):
            return text
    except (OSError, ValueError):
        pass
    text = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(f"{_stamp(text)}\n{text}")
        os.replace(file.name, path)  # atomic, so that nobody reads a half-written entry
    except OSError as error:
        raise unusable_cache(error) from None
    return text


def _stamp(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
