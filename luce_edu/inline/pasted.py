"""What learners paste into a cell from elsewhere and cannot run there, found by name before anything is compiled."""

from __future__ import annotations

import re

from luce_edu.machine.nvrtc import has_header

# What is looked for, with KERNEL for the kernel's name, what the reader is told, and what in the cell makes it right.
# The first row that fits is shown. {1} in a hint is the parentheses of its pattern. What compiles has no row.
HINTS: tuple[tuple[str, str, str], ...] = (
    (
        r"^[ \t]*(?:import[ \t]+\w+|from[ \t]+[\w.]+[ \t]+import\b|@triton\b)",
        "this is Python; below its first line the cell is CUDA C++, a whole kernel or only its body",
        "",
    ),
    (
        r"\btorch/\w+\.h\b|\bATen/\w+|\b(?:torch|at|c10|py)::\w+|\b(?:TORCH_LIBRARY|PYBIND11_MODULE|AT_DISPATCH)\w*",
        "no binding to PyTorch is needed; keep the kernel alone. %%kernel makes the tensors, launches the kernel on "
        "them and compares with the line after --against",
        "",
    ),
    (
        r"\bint\s+main\s*\(|\bcuda[A-Z]\w*|<<<",
        "this is host code; keep the kernel alone. %%kernel makes the tensors and launches the kernel; --grid, --block "
        "and --smem say how",
        "",
    ),
    (
        r"\bthis_grid\s*\(\s*\)\s*\.\s*sync\s*\(",
        "a barrier of the whole grid needs a cooperative launch, which a cell does not have. Groups of the block and "
        "of a warp are there; grid_barrier.cuh shows the barrier for all blocks",
        "",
    ),
    (
        r"#\s*include\s*[<\"]mma\.h[>\"]|\bwmma::\w+",
        "the header of wmma is in none of the packages that this course installs; tensor_core.cuh has mma, which does "
        "the same by one instruction of PTX",
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
        "a template kernel exists only where host code launches it with its types; write types and sizes out here. "
        "A __device__ function may stay a template",
        "",
    ),
    (
        r"\bstatic\b[^;{}()]*\b__global__\b[^;{}]*?\bKERNEL\s*\(|\b__global__\s+static\b[^;{}]*?\bKERNEL\s*\(",
        "leave `static` out: a static kernel cannot be found by its name",
        "",
    ),
    (
        r"#\s*include\s*<([\w./]+)>",
        "a cell has no headers of the C++ library. There are those of csrc/, such as #include \"matvec.cuh\", CUDA's "
        "own, such as <cuda_fp16.h> and <cooperative_groups.h>, and C's small ones, such as <cstdint>",
        "",
    ),
)


def code(text: str) -> str:
    """C++ with the same lines, blank where comments and strings stood; the name of an included file stays."""
    included = r'#\s*include\s*"[^"\n]*"'
    string = r'"(?:\\.|[^"\\\n])*"' + r"|'(?:\\.|[^'\\\n])*'"
    left_out = rf"{string}|//[^\n]*|/\*.*?\*/"
    return re.sub(f"({included})|{left_out}", lambda m: m[1] or re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL)


def find_hint(kernel: str, text: str) -> str | None:
    """What a cell's text holds that no cell can have, with its line and what to write in its place; None for nothing.

    A name that the cell itself defines as a macro, a type or a __device__ function is left alone, and so is a header
    that is there.
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
                line = text.count("\n", 0, found.start()) + 2  # the magic is the reader's line 1
                return f"line {line}, `{came}`: {hint.format(found[0], *found.groups())}"
    return None
