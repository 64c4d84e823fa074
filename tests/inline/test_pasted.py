"""Pasted code that does not compile gets a hint that names the cause; code that runs gets none."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from kernels import ADD, RIGHT, RMS_NORM, whole

from luce_edu.inline import trial
from luce_edu.inline.pasted import HINTS, code, find_hint
from luce_edu.inline.specs import SPECS
from luce_edu.inline.trial import Attempt, try_kernel
from luce_edu.paths import csrc_dir

ROOT = Path(__file__).resolve().parents[2]
WHOLE = whole("mine", SPECS["torch.add"], ADD)
SIGNATURE = SPECS["torch.add"].signature


def first(line: str) -> str:
    """The right kernel with a line before its own."""
    return whole("mine", SPECS["torch.add"], f"{line}\n{ADD}")


# what: the cell, the text that the hint quotes from it, a word of the advice
PASTED = {
    "a grid barrier": (
        "#include <cooperative_groups.h>\ncooperative_groups::this_grid().sync();\n" + ADD, "this_grid().sync",
        "grid_barrier.cuh"),
    "groups without their header": (first("auto b = cg::this_thread_block();"), "cg::this_thread_block",
        "cooperative_groups.h"),
    "wmma": ("#include <mma.h>\n" + WHOLE, "#include <mma.h>", "tensor_core.cuh"),
    "a fragment": (first("nvcuda::wmma::fragment<int> a;"), "wmma::fragment", "tensor_core.cuh"),
    "fp16 without its header": (first("__half h = __float2half(1.0f);"), "__half", "cuda_fp16.h"),
    "two halves": (first("half2 h;"), "half2", "bf16"),
    "bf16's type": (first("__nv_bfloat16* h = nullptr;"), "__nv_bfloat16", "primitives.cuh"),
    "bf16 to float": (first("y[0] = __bfloat162float(1);"), "__bfloat162float", "to_float(x)"),
    "a type without its header": (first("uint32_t u = 3;"), "uint32_t", "<cstdint>"),
    "a limit without its header": (first("float least = -FLT_MAX;"), "FLT_MAX", "<cfloat>"),
    "C++'s functions": (first("float most = std::max(x[0], r[0]);"), "std::max", "need no std::"),
    "a shuffle of old": (first("float s = __shfl_down(x[0], 1);"), "__shfl_down(", "__shfl_down_sync(full_warp"),
    "a vote of old": (first("bool s = __any(n);"), "__any(", "__any_sync(full_warp"),
    "a template kernel": (
        "template <typename T>\n" + WHOLE.replace("float", "T"), "template <typename T> __global__ void mine(",
        "types"),
    "a template for sizes": (
        "template <int width, int rows = 4>\n" + WHOLE.replace("__global__", "__global__ __launch_bounds__(256)"),
        "template <int width", "write types and sizes out"),
    "a static kernel": ("static " + WHOLE, "static __global__ void mine(", "static"),
    "main": (WHOLE + "int main() {\n    return 0;\n}\n", "int main(", "%%kernel makes the tensors"),
    "cudaMalloc": (WHOLE + "void run() {\n    float* x;\n    cudaMalloc(&x, 4);\n}\n", "cudaMalloc", "host code"),
    "a launch": (WHOLE + "void run(float* x) { mine<<<1, 32>>>(x, x, x, 1); }\n", "<<<", "--grid"),
    "a launch beside a macro": (
        "#define D 4\n" + WHOLE + "void run(float* x) { mine<<<1, D>>>(x, x, x, 1); }\n", "<<<", "--grid"),
    "torch's header": ("#include <torch/extension.h>\n" + WHOLE, "torch/extension.h", "no binding"),
    "a tensor": (WHOLE + "torch::Tensor f(torch::Tensor x) { return x; }\n", "torch::Tensor", "no binding"),
    "a binding": (
        WHOLE + "PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def(\"f\", &f); }\n", "PYBIND11_MODULE", "no binding"),
    "Python": ("import torch\nx = torch.ones(3)\n", "import torch", "CUDA C++"),
    "Python's other import": ("from torch.utils.cpp_extension import load_inline\n", "from torch.utils", "CUDA C++"),
    "Triton": ("@triton.jit\ndef add(x, y):\n    pass\n", "@triton", "CUDA C++"),
    "a vector": ("#include <vector>\n" + WHOLE, "#include <vector>", "those of csrc/"),
    "cub": ("#include <cub/cub.cuh>\n" + WHOLE, "#include <cub/cub.cuh>", "those of csrc/"),
}  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("what", PASTED)
def test_a_hint_quotes_the_pasted_text_and_gives_advice(what):
    text, came, instead = PASTED[what]
    said = find_hint("mine", text)
    named, _, hint = re.fullmatch(r"line (\d+, `.*?)`(: )(.*)", said).groups()
    line, _, shown = named.partition(", `")
    assert came in shown and instead in hint and "{" not in said, said
    assert came.split()[0] in text.splitlines()[int(line) - 2]


@pytest.mark.parametrize("what", PASTED)
def test_a_cell_with_a_hint_would_be_refused_without_it(monkeypatch, what):
    """Without the hint, the cell is refused too: NVRTC or the virtual GPU refuses it, or it has no kernel `mine`."""
    monkeypatch.setattr(trial, "find_hint", lambda kernel, text: None)
    assert try_kernel(Attempt("mine", "torch.add", PASTED[what][0])).kind in ("cell", "compile")


def test_every_row_of_the_table_is_tried():
    used = {next(hint for pattern, hint, unless in HINTS
                 if re.search(pattern.replace("KERNEL", "mine"), code(text), re.M)
                 and not (unless and re.search(unless, text)))
            for text, _, _ in PASTED.values()}  # fmt: skip
    assert used == {hint for _, hint, _ in HINTS}


LEFT_ALONE = {
    "comments": "// #include <cuda_fp16.h>, then assert(n) and cudaMalloc\n/* clock64()\n__reduce_add_sync */\n" + ADD,
    "strings": first(r'if (n == 0) printf("clock64() \" cudaMalloc <<< // assert(n) %s", "__half");'),
    "a comment's mark in a string": first('if (n == 0) printf("// %d", n); float half = 0.5f; y[0] = half;'),
    "printf": first('if (n == 0) printf("n is %d", n);'),
    "variables": first("int half = n / 2, clock = half, main = clock; half = main * half; int cudafree = half;"),
    "static_assert": "static_assert(block_threads == 256);\n" + WHOLE,
    "an assert of its own": "#define assert(condition) if (!(condition)) __trap()\n" + first("assert(n > 0);"),
    "a clock of its own": "__device__ long long clock64() { return 1; }\n" + first("long long t = clock64();"),
    "a type of its own": "using half2 = float2;\n" + first("half2 h; h.x = 1.0f; y[0] = h.x;"),
    "a template for a device function": "template <int n>\n__device__ float f(float x) { return n * x; }\n"
        + first("y[0] = f<3>(x[0]);"),
    "a template kernel beside it": "template <class T> __global__ void other(T* x) { x[0] = 0; }\n" + WHOLE,
    "a static device function": "static __device__ float f(float x) { return x; }\n" + first("y[0] = f(x[0]);"),
    "sync shuffles and votes": first(
        "float s = __shfl_down_sync(full_warp, r[0], 1); if (__any_sync(full_warp, n < 0)) y[0] = s;"),
    "headers of C and CUDA": "#include <cstdint>\n#include <math.h>\n#include <cuda_fp16.h>\n#include <cassert>\n"
        + first("uint32_t u = 0; __half h = __float2half(NAN); assert(u == 0); if (n < 0) y[0] = __half2float(h);"),
    "headers of csrc": '#include "matvec.cuh"\n#include "grid_barrier.cuh"\n' + WHOLE,
    "dynamic shared memory": first("DYNAMIC_SHARED(float, s); if (n < 0) y[0] = s[0];"),
    "shifts and comparisons": first("int a = 1 << 3, b = a < 3; if (a >> 1 < b) y[0] = a << b;"),
    "what a GPU has": first("y[0] = __frcp_rn(__fdividef(__ldg(x), 2.0f)); atomicOr((unsigned*)y, 0u);"),
    "a trap": first("if (n < 0) __trap();"),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT_ALONE)
def test_similar_text_that_compiles_gets_no_hint_and_runs(what):
    assert find_hint("mine", LEFT_ALONE[what]) is None
    verdict = try_kernel(Attempt("mine", "torch.add", LEFT_ALONE[what]))
    assert verdict.kind not in ("cell", "compile", "launch"), verdict  # some write a wrong y[0], but all run


def test_our_own_kernels_have_no_hint():
    """In sources, cells of notebooks and solutions, skeletons of exercises, and the right kernels of these tests."""
    texts = {path.name: path.read_text() for path in csrc_dir().glob("*.cu*")}
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.source.startswith("%%kernel"):
                texts[f"{path.name}[{i}]"] = cell.source.partition("\n")[2]
    for path in (ROOT / "luce_edu" / "exercises").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "threadIdx" in node.value:
                texts[f"{path.name}:{node.lineno}"] = node.value
    texts |= {name: body for name, (body, _) in RIGHT.items()} | {"row": RMS_NORM}
    assert len(texts) > 40
    names = {name: re.findall(r"__global__[^;{}]*?(\w+)\s*\(", code(text)) or ["none"] for name, text in texts.items()}
    assert {
        f"{name}: {hint}" for name, text in texts.items() for kernel in names[name] if (hint := find_hint(kernel, text))
    } == set()


def test_a_cell_with_a_hint_is_refused_before_anything_is_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("LUCE_CACHE", str(tmp_path))
    verdict = try_kernel(Attempt("mine", "torch.add", "#include <vector>\n" + WHOLE))
    assert verdict.kind == "cell" and "line 2, `#include <vector>`: " in verdict.problem
    assert not any(tmp_path.iterdir())


def test_code_keeps_lines_and_what_is_included():
    text = 'a "b // c" // d\n/* e\n"f" */ g \'"\' h "\\"" i\n#include "block.cuh"\n'
    assert code(text).split() == ["a", "g", "h", "i", "#include", '"block.cuh"']
    assert [len(line) for line in code(text).split("\n")] == [len(line) for line in text.split("\n")]
