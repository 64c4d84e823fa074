"""Find code that was pasted from elsewhere and cannot run in a cell, before anything is compiled."""

from __future__ import annotations

import re

from luce_edu.machine.nvrtc import has_header

# Each row: a pattern (KERNEL stands for the kernel's name), the hint for the reader, and a pattern of what in the cell
# makes the code right. The first row that matches is shown. {1} in a hint is the first group of its pattern.
HINTS: tuple[tuple[str, str, str], ...] = (
    (
        r"^[ \t]*(?:import[ \t]+\w+|from[ \t]+[\w.]+[ \t]+import\b|@triton\b)",
        "this is Python; the lines after %%kernel must be CUDA C++, a whole kernel or only its body",
        "",
    ),
    (
        r"\btorch/\w+\.h\b|\bATen/\w+|\b(?:torch|at|c10|py)::\w+|\b(?:TORCH_LIBRARY|PYBIND11_MODULE|AT_DISPATCH)\w*",
        "no binding to PyTorch is needed; keep only the kernel. %%kernel makes the tensors, launches the kernel on "
        "them and compares the result with the reference after --against",
        "",
    ),
    (
        r"\bint\s+main\s*\(|\bcuda[A-Z]\w*|<<<",
        "this is host code; keep only the kernel. %%kernel makes the tensors and launches the kernel, with the sizes "
        "of --grid, --block and --smem",
        "",
    ),
    (
        r"\bthis_grid\s*\(\s*\)\s*\.\s*sync\s*\(",
        "a barrier of the whole grid needs a cooperative launch, which a cell does not get. Groups of a block and of a "
        "warp work; grid_barrier.cuh shows a barrier for all blocks",
        "",
    ),
    (
        r"#\s*include\s*[<\"]mma\.h[>\"]|\bwmma::\w+",
        "no package that this course installs has the header of wmma; use mma of tensor_core.cuh, which does the same "
        "with one PTX instruction",
        "",
    ),
    (
        r"\b(?:cooperative_groups|cg)::\w+",
        "add #include <cooperative_groups.h>, and namespace cg = cooperative_groups; for the short name",
        r"#\s*include\s*[<\"]cooperative_groups",
    ),
    (
        r"\b__(?:half|nv_bfloat16)2?\b|\b(?:half2|nv_bfloat162?)\b"
        r"|\b__(?:floats?|half2?|bfloat16)2(?:half|float|bfloat16)\w*",
        "CUDA's 16-bit types need #include <cuda_fp16.h> or <cuda_bf16.h>. A stored number of this course is of type "
        "bf16 (primitives.cuh): to_float(x) reads it and to_bf16(x) rounds to it",
        r"#\s*include\s*[<\"]cuda_[bf][pf]?16",
    ),
    (
        r"\b(?:u?int(?:8|16|32|64|ptr)_t|(?:FLT|DBL)_(?:MAX|MIN|EPSILON)|U?(?:INT|LLONG)_(?:MAX|MIN)|M_PI|NAN)\b",
        "its header is missing: <cstdint> for the types, <cfloat> or <climits> for limits, <cmath> for M_PI and NAN",
        r"#\s*include\s*<(?:c?stdint|c?float|c?limits|c?math)",
    ),
    (
        r"\bstd::(?!size_t|ptrdiff_t|nullptr_t|initializer_list|move|forward)(\w+)",
        "a kernel has no C++ library; CUDA's own functions, such as min, max, sqrtf and expf, need no std::",
        "",
    ),
    (
        r"\b__(shfl|shfl_up|shfl_down|shfl_xor|any|all|ballot)\s*\(",
        "CUDA no longer has this form; write __{1}_sync(full_warp, ...), which says which lanes take part",
        "",
    ),
    (
        r"\btemplate\s*<[^;{}]*>[^;{}]*?\b__global__\b[^;{}]*?\bKERNEL\s*\(",
        "a template kernel is compiled only where host code launches it with types; write types and sizes out here. "
        "A __device__ function may be a template",
        "",
    ),
    (
        r"\bstatic\b[^;{}()]*\b__global__\b[^;{}]*?\bKERNEL\s*\(|\b__global__\s+static\b[^;{}]*?\bKERNEL\s*\(",
        "leave `static` out: a static kernel cannot be found by its name",
        "",
    ),
    (
        r"#\s*include\s*<([\w./]+)>",
        "a cell cannot include headers of the C++ library. It can include those of csrc/, such as \"matvec.cuh\", of "
        "CUDA, such as <cuda_fp16.h> and <cooperative_groups.h>, and small ones of C, such as <cstdint>",
        "",
    ),
)


def code(text: str) -> str:
    """Return C++ with comments and strings blanked out; lines and the names of included files stay."""
    included = r'#\s*include\s*"[^"\n]*"'
    string = r'"(?:\\.|[^"\\\n])*"' + r"|'(?:\\.|[^'\\\n])*'"
    left_out = rf"{string}|//[^\n]*|/\*.*?\*/"
    return re.sub(f"({included})|{left_out}", lambda m: m[1] or re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL)


def find_hint(kernel: str, text: str) -> str | None:
    """Find what cannot run in a cell: return its line, and what to write instead; None if there is nothing.

    Names that the cell itself defines as a macro, a type or a __device__ function are accepted, and so are headers
    that exist.
    """
    text = code(text)
    for pattern, hint, unless in HINTS:
        if unless and re.search(unless, text):
            continue
        for found in re.finditer(pattern.replace("KERNEL", re.escape(kernel)), text, re.MULTILINE):
            if found[0].startswith("#") and found.lastindex and has_header(found[1]):
                continue
            came = " ".join(found[0].split())
            name = re.match(r"\W*(\w*)", came)[1]
            own = rf"#\s*define\s+{name}\b|\busing\s+{name}\s*=|\btypedef\b[^;]*\b{name}\s*;"
            if not name or not re.search(rf"{own}|\b__device__\b[^;{{}}()=]*\b{name}\s*\(", text):
                line = text.count("\n", 0, found.start()) + 2  # the line of the magic is line 1
                return f"line {line}, `{came}`: {hint.format(found[0], *found.groups())}"
    return None
