"""What learners paste into a cell from elsewhere and cannot run there, found by name before anything is compiled."""

from __future__ import annotations

import re

# What is looked for, with KERNEL for the kernel's name, and what the reader is told. The first row that fits is shown.
# {1} and {2} in a hint are the parentheses of its pattern. What compiles and runs everywhere has no row.
HINTS: tuple[tuple[str, str], ...] = (
    (
        r"^[ \t]*(?:import[ \t]+\w+|from[ \t]+[\w.]+[ \t]+import\b|@triton\b)",
        "this is Python; below its first line the cell is CUDA C++, a whole kernel or only its body",
    ),
    (
        r"\btorch/\w+\.h\b|\bATen/\w+|\b(?:torch|at|c10|py)::\w+|\b(?:TORCH_LIBRARY|PYBIND11_MODULE|AT_DISPATCH)\w*",
        "no binding to PyTorch is needed; keep the kernel alone. %%kernel makes the tensors, launches the kernel on "
        "them and compares with the line after --against",
    ),
    (
        r"\bint\s+main\s*\(|\bcuda[A-Z]\w*|<<<",
        "this is host code; keep the kernel alone. %%kernel makes the tensors and launches the kernel; --grid, --block "
        "and --smem say how",
    ),
    (
        r"#\s*include\s*[<\"]cooperative_groups\S*|\b(?:cooperative_groups|cg)::\w+",
        "a cell has no cooperative groups; write __syncthreads() for a barrier of the block, __syncwarp() for one of "
        "the warp and warp_sum(value) for a sum over it (block.cuh). grid_barrier.cuh has a barrier for all blocks",
    ),
    (
        r"#\s*include\s*[<\"]cuda_(?:bf16|fp16)\S*|\b__(?:half|nv_bfloat16)2?\b|\b(?:half2|nv_bfloat162?)\b"
        r"|\b__(?:floats?|half2?|bfloat16)2(?:half|float|bfloat16)\w*",
        "a cell has no 16-bit types of CUDA; a stored number is of type bf16 (primitives.cuh), to_float(x) reads it "
        "and to_bf16(x) rounds to it. The arithmetic between them is in float",
    ),
    (
        r"#\s*include\s*[<\"](?:cassert|assert\.h)[>\"]|\bassert\s*\(",
        "write `if (!(condition)) __trap();` instead: the emulator then names block, thread and line",
    ),
    (
        r"\bclock(?:64)?\s*\(\s*\)",
        "the emulator has no clock, as its time says nothing about a GPU's. %%kernel counts bytes and barriers; "
        "time_matvecs of luce_edu.inline.timing times a cell's kernel on a GPU",
    ),
    (
        r"\b__reduce_\w+_sync\b",
        "only GPUs from sm_80 on have it, and only for integers; write warp_sum(value) for a sum over the warp "
        "(block.cuh), and combine the lanes with __shfl_xor_sync for anything else",
    ),
    (
        r"\b__(shfl|shfl_up|shfl_down|shfl_xor|any|all|ballot)\s*\(",
        "CUDA no longer has this form; write __{1}_sync(full_warp, ...), which says which lanes take part",
    ),
    (
        r"\btemplate\s*<[^;{}]*>[^;{}]*?\b__global__\b[^;{}]*?\bKERNEL\s*\(",
        "a template kernel exists only where host code launches it with its types; write types and sizes out here. "
        "A __device__ function may stay a template",
    ),
    (
        r"\bstatic\b[^;{}()]*\b__global__\b[^;{}]*?\bKERNEL\s*\(|\b__global__\s+static\b[^;{}]*?\bKERNEL\s*\(",
        "leave `static` out: a static kernel cannot be found by its name",
    ),
    (
        r"\bextern\s+__shared__\s+(?:__align__\s*\([^)]*\)\s*)?([\w ]*\w)\s+(\w+)",
        "expected DYNAMIC_SHARED({1}, {2}); inside the kernel. --smem says how many bytes there are",
    ),
    (
        r"#\s*include\s*<(?:c?std(?:io|lib|def)|c?math|cuda|cuda_runtime|cuda_runtime_api|device_launch_parameters)"
        r"(?:\.h)?>",
        "leave this line out: printf, the functions of math.h and CUDA's own words are there without it",
    ),
    (
        r"#\s*include\s*<[\w./]+>",
        "a cell has no headers of C, C++ or CUDA, only those of csrc/, such as #include \"matvec.cuh\". Built in are "
        "the types int, unsigned and long long, printf, the functions of math.h and INFINITY",
    ),
    (
        r"\b(__syncthreads_(?:count|and|or)|__match_(?:any|all)_sync|atomic(?:Inc|Dec|Xor)|atomic\w+_(?:block|system)"
        r"|__ld(?:cs|cg|ca|cv|lu)|__st(?:cs|cg|wb|wt)|__f(?!rcp_rn)\w+_r[nduz]|__byte_perm|__brev|__u?mulhi)\s*\(",
        "a GPU has {1}, the emulator does not; csrc/host/emulator.h lists what it has",
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

    A name that the cell itself defines as a macro, a type or a __device__ function is left alone.
    """
    text = code(text)
    for pattern, hint in HINTS:
        for found in re.finditer(pattern.replace("KERNEL", re.escape(kernel)), text, re.MULTILINE):
            came = " ".join(found[0].split())
            name = re.match(r"\W*(\w*)", came)[1]
            own = rf"#\s*define\s+{name}\b|\busing\s+{name}\s*=|\btypedef\b[^;]*\b{name}\s*;"
            if not name or not re.search(rf"{own}|\b__device__\b[^;{{}}()=]*\b{name}\s*\(", text):
                line = text.count("\n", 0, found.start()) + 2  # the magic is the reader's line 1
                return f"line {line}, `{came}`: {hint.format(found[0], *found.groups())}"
    return None
