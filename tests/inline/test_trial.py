"""The verdict of a trial: right kernels pass with right counts, wrong kernels are refused for their mistakes."""

import hashlib
import re
import time

import pytest
from kernels import ADD, CAUSAL_CONV, LINEAR, RMS_NORM, whole

from luce_edu.inline import trial
from luce_edu.inline.specs import SPECS
from luce_edu.inline.trial import Attempt, Mistake, try_kernel
from luce_edu.machine.core import core
from luce_edu.machine.counters import Traffic
from luce_edu.measure.occupancy import registers_allowed
from luce_edu.paths import csrc_dir


def csrc_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(csrc_dir().rglob("*")):
        if path.is_file():
            digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module", autouse=True)
def csrc_before() -> str:
    """The hash of csrc/ before the first test of this file."""
    return csrc_hash()


def attempt(text: str, against: str = "torch.add", **options):
    return try_kernel(Attempt("mine", against, text, **options))


INDEX = "const int i = blockIdx.x * blockDim.x + threadIdx.x;\n"

# ---- Right ----


def test_a_verdict_counts_what_the_last_shape_moved():
    verdict = attempt(ADD)
    assert verdict.passed and verdict.problem is None
    each = Traffic(asked_read=16384, moved_read=16384, distinct_read=16384)
    assert verdict.traffic["x"] == verdict.traffic["r"] == each
    assert (verdict.bytes_read, verdict.bytes_written) == (32768, 16384) == (verdict.least_read, verdict.least_written)
    assert (verdict.grid, verdict.block, verdict.launches, verdict.barriers) == (16, 256, 1, 0)
    assert verdict.instructions > 16 * 8 * 5 and verdict.bank_conflicts == 0
    assert 0 < verdict.resources.registers < 64 and verdict.resources.shared_bytes == 0
    text = str(verdict)
    assert "mine is right: 5 shapes, each in two orders of threads" in text
    assert re.search(r"bytes read +32,768 +32,768", text) and "registers per thread, sm_86" in text
    assert "<table>" in verdict._repr_html_()


def test_dynamic_shared_memory_counts_beside_static():
    verdict = attempt("__shared__ int one[64];\nDYNAMIC_SHARED(float, s);\n"
                      "if (threadIdx.x < 64) one[threadIdx.x] = n;\n"
                      "__syncthreads();\ns[threadIdx.x] = one[threadIdx.x / 4];\n" + ADD, smem="4*block")  # fmt: skip
    assert verdict.passed, verdict
    assert (verdict.resources.shared_bytes, verdict.dynamic_bytes) == (256, 1024)
    assert ["shared memory per block, bytes", "1,280", ""] in verdict.body


EARLY_EXIT = """\
__shared__ float s[block_threads];
const int i = blockIdx.x * blockDim.x + threadIdx.x;
if (i >= n) return;
s[threadIdx.x] = x[i];
__syncthreads();
y[i] = s[threadIdx.x] + r[i];
"""


def test_shared_memory_32_words_apart_conflicts():
    verdict = attempt("__shared__ float s[32][32];\ns[threadIdx.x % 32][threadIdx.x / 32] = n;\n__syncthreads();\n"
                      + ADD.replace("x[i] + r[i]", "x[i] + r[i] * (s[threadIdx.x % 32][0] / n)"))  # fmt: skip
    assert verdict.passed and verdict.bank_conflicts == 2 * 31 * 8 * verdict.grid, verdict
    assert ["bank conflicts", f"{verdict.bank_conflicts:,}", "0"] in verdict.body


def test_threads_that_exit_before_a_barrier_are_a_remark_where_the_kernel_is_right():
    verdict = attempt(EARLY_EXIT)
    assert verdict.passed and "divergent barrier" in verdict.remark and verdict.remark in str(verdict)
    assert not attempt(ADD).remark
    wrong = attempt(EARLY_EXIT.replace("+ r[i]", "- r[i]"))
    assert wrong.kind == "kernel" and "divergent barrier" in wrong.problem


def test_a_thread_has_the_registers_that_its_block_leaves_it():
    kept = """\
    float a[160];
    #pragma unroll
    for (int j = 0; j < 160; ++j) a[j] = x[(j * 37 + threadIdx.x) % n];
    __syncthreads();
    float sum = 0.0f;
    #pragma unroll
    for (int j = 0; j < 160; ++j) sum += a[j] * a[159 - j];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] + r[i] + (sum != sum ? 1.0f : 0.0f);
    """
    whole_kernel = f"__global__ void mine(const float* x, const float* r, float* y, int n) {{\n{kept}}}\n"
    large, small = attempt(whole_kernel, block=512).resources, attempt(kept, block=128).resources
    assert large.registers == registers_allowed(512) and large.spill_store_bytes > 0
    assert registers_allowed(512) < small.registers <= registers_allowed(128) and small.spill_store_bytes == 0


def test_barriers_shared_memory_and_another_architecture_are_reported():
    verdict = attempt(RMS_NORM, "reference.rms_norm", arch="sm_90a")
    assert verdict.passed, verdict
    assert verdict.barriers == 1 and verdict.resources.shared_bytes >= 4 * 8
    assert "registers per thread, sm_90a" in str(verdict)


def test_a_verdict_is_of_the_cell_and_not_of_one_with_the_same_parameters():
    """The compilers' caches distinguish cells that have the same name, block and parameters."""
    for floats in (100, 200):
        text = f"__shared__ float s[{floats}];\n" + ADD.replace("y[i] = x[i]", "s[i % 32] = x[i], y[i] = s[i % 32]")
        verdict = attempt(text, block=32)
        assert verdict.passed and verdict.resources.shared_bytes == 4 * floats, verdict


def test_a_sector_that_is_touched_again_counts_again():
    verdict = attempt(LINEAR, "F.linear")
    assert verdict.passed, verdict
    assert verdict.traffic["W"].moved_read == 16 * verdict.traffic["W"].asked_read  # 2 bytes of each sector of 32 bytes
    assert verdict.least_read < verdict.bytes_read


def test_grid_block_and_dynamic_shared_memory_follow_the_cell():
    text = """
        DYNAMIC_SHARED(float, staged);
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
            staged[threadIdx.x] = x[i] + r[i];
            y[i] = staged[threadIdx.x];
        }"""
    verdict = attempt(text, grid="2 * 1", block=64, smem="4 * block")
    assert verdict.passed, verdict
    assert (verdict.grid, verdict.block) == (2, 64)
    short = attempt(text, grid="2", block=64, smem="4 * block - 4")
    assert short.kind == "kernel" and "byte 252 of shared memory" in short.problem and "out of bounds" in short.problem


@pytest.mark.parametrize(
    "parameters",
    [
        "float* y, const float* x, const float* r, int n",
        "float const *x, const float* __restrict__ r, float* const __restrict__ y, const int n",
        "const float *const x,const float*r,float *y,int const n",
        "\n    const float* x,  // first\n    const float* r, /* then */\n    float* y, int n\n",
    ],
)
def test_parameters_may_be_written_in_any_usual_way(parameters):
    verdict = attempt(f"__global__ void __launch_bounds__(256) mine({parameters}) {{\n{ADD}}}")
    assert verdict.passed, verdict


def test_a_cell_may_hold_helpers_headers_and_other_kernels():
    verdict = attempt(
        '#include "matvec.cuh"\n'
        "// __global__ void mine(int nothing) is only a comment\n"
        "__constant__ float one = 1.0f;\n"
        "__device__ float sum_of(float a, float b) { return one * a + b; }\n"
        "__global__ void other(float* anything) { anything[0] = 0.0f; }\n"
        + whole("mine", SPECS["torch.add"], ADD.replace("x[i] + r[i]", "sum_of(x[i], r[i])"))
    )
    assert verdict.passed, verdict


def test_a_kernel_may_stand_in_extern_c_or_after_a_namespace():
    helpers = "namespace ours {\n__device__ float twice(float x) { return 2 * x; }\n}\n"
    for text in (f'extern "C" {{\n{WHOLE}}}\n', helpers + WHOLE):
        assert attempt(text).passed


def test_what_a_kernel_prints_is_shown():
    verdict = attempt(ADD + 'if (i == 0) printf("n is %d\\n", n);')
    assert verdict.passed
    sizes = [shape["n"] for shape in SPECS["torch.add"].shapes for order in range(2)]
    assert verdict.printed.splitlines() == [f"n is {n}" for n in sizes]
    assert "printed:\nn is 1\n" in str(verdict) and "printed:" in verdict._repr_html_()


def test_a_flood_of_text_is_cut():
    verdict = attempt(ADD + 'if (i < n) printf("n is %d, and this is thread %d of them all\\n", n, i);')
    assert verdict.passed and len(verdict.printed) == trial.PRINTED_CHARACTERS


# Features of CUDA: lines before the kernel, lines in it, and an expression that is 0 if the feature works.
GROUPS = "#include <cooperative_groups.h>\n#include <cooperative_groups/reduce.h>\nnamespace cg = cooperative_groups;\n"
CUDA = {
    "dynamic shared memory by CUDA's keyword": (
        "", "extern __shared__ float s[];\ns[threadIdx.x] = 1.0f;\n__syncthreads();\n", "s[threadIdx.x ^ 1] - 1.0f"),
    "__restrict__ and __ldg": ("", "", "__ldg(x) - x[0]"),
    "an assertion that holds": ("#include <cassert>\n", "assert(n > 0);", "0"),
    "a clock": ("", "const long long before = clock64();", "(clock64() < before) + (clock() == clock() + 1)"),
    "sums rounded as asked": ("", "", "__fadd_rn(1.0f, 1e-10f) - 1.0f"),
    "a barrier that counts": ("", "const int many = __syncthreads_count(threadIdx.x < 7);", "many - 7"),
    "a maximum over the warp": ("", "", "__reduce_max_sync(full_warp, lane_id()) - 31"),
    "bits": ("", "", "__brev(1u) - 0x80000000u + __popc(7) - 3 + __byte_perm(1, 2, 0x7654) - 2"),
    "C's headers": (
        "#include <cstdio>\n#include <stdint.h>\n#include <cfloat>\n#include <cmath>\n#include <cuda_runtime.h>\n",
        "uint32_t u = 3; int64_t wide = u;", "(FLT_MAX < 1e38f) + wide - 3"),
    "halves": ("#include <cuda_fp16.h>\n", "const half two = __hadd(__float2half(1.0f), __float2half(1.0f));",
        "__half2float(two) - 2.0f"),
    "two bf16 at once": ("#include <cuda_bf16.h>\n",
        "const __nv_bfloat162 pair = __hmul2(__floats2bfloat162_rn(1, 3), __floats2bfloat162_rn(2, 2));",
        "__low2float(pair) + __high2float(pair) - 8"),
    "cooperative groups": (GROUPS, "const auto block = cg::this_thread_block();\n"
        "const auto tile = cg::tiled_partition<32>(block);\nblock.sync();\n",
        "cg::reduce(tile, 1, cg::plus<int>()) - tile.shfl(32, 3) + block.thread_rank() - threadIdx.x"),
    "copies by cp.async": ("#include <cuda_pipeline.h>\n",
        "__shared__ float s[256];\nif (i < n) __pipeline_memcpy_async(s + threadIdx.x, x + i, 4);\n"
        "__pipeline_commit();\n__pipeline_wait_prior(0);\n", "i < n ? s[threadIdx.x] - x[i] : 0.0f"),
}  # fmt: skip


@pytest.mark.parametrize("what", CUDA)
def test_a_feature_of_cuda_works(what):
    before, inside, zero = CUDA[what]
    body = f"{INDEX}{inside}\nconst float zero = {zero};\nif (i < n) y[i] = x[i] + r[i] + zero;\n"
    verdict = attempt(before + whole("mine", SPECS["torch.add"], body), smem="4 * block")
    assert verdict.passed, verdict


# ---- Wrong ----

SIGNATURE = SPECS["torch.add"].signature
KERNEL = f"__global__ void mine({SIGNATURE})"


HASTY = """
__shared__ float scale;
if (threadIdx.x == 0) {
    float squares = 0.0f;
    for (int c = 0; c < n; ++c) squares += x[blockIdx.x * n + c] * x[blockIdx.x * n + c];
    scale = rsqrtf(squares / n + eps);
}
// no __syncthreads()
x += blockIdx.x * n, y += blockIdx.x * n;
for (int c = threadIdx.x; c < n; c += blockDim.x) y[c] = x[c] * scale * (1 + weight[c]);
"""
WHOLE = whole("mine", SPECS["torch.add"], ADD)
FROM_NULL = "float* p = y - (reinterpret_cast<unsigned long long>(y) >> 2);\n"

# what: text, kind, what the verdict must say; then, where they are not the usual ones, against and options
WRONG = {
    # Numbers
    "no barrier": (HASTY,
        "kernel", "shared memory.*: uninitialised at cell:|race on", "reference.rms_norm"),
    "an index that short rows hide": (
        RMS_NORM.replace("weight[c]", "weight[threadIdx.x]"),
        "wrong", r"^rows \d, n (257|264|1024): .*; \d+ of [\d,]+ elements", "reference.rms_norm"),
    "one short of the end": (ADD.replace("i < n", "i < n - 1"),
        "wrong", r"^n 1: the kernel never wrote y\[0\]; 1 of 1 elements are wrong"),
    "not a number": (ADD.replace("= x[i]", "= 0.0f / 0.0f + x[i]"), "wrong", r"^n 1: y\[0\] is NaN, and should be"),
    "added to what was never written": (ADD.replace("y[i] = ", "y[i] += "), "wrong", r"y\[0\] is NaN, and should be"),
    "one of 4096": (ADD + "if (i == 4000) y[i] += 0.01f;", "wrong", r"^n 4096: y\[4000\] is .*; 1 of 4,096 elements"),
    "a state that stays": (
        CAUSAL_CONV.replace("state[taps - 2] = x[channel];", ""),
        "wrong", r"the kernel never wrote conv_state\[0, 0\]; ", "reference.causal_conv"),
    "a sum in any order": (
        "if (blockIdx.x == 0) y[threadIdx.x % n] = 0.0f;\n__syncthreads();\n"
        "if (blockIdx.x == 0) for (int j = threadIdx.x; j < n; j += blockDim.x) y[j] = x[j] + r[j];\n"
        "if (blockIdx.x == 0) atomicExch(&y[0], x[0] + r[0] + 1e-7f * threadIdx.x);",
        "(wrong|kernel)", "has different bits in another order of threads|is |race on"),
    # Memory
    "a read past the end": (INDEX + "y[i] = i < n ? x[i + 1] + r[i] : 0;",
        "kernel", r"thread 0 reads .* x\[1\].*: out of bounds at cell:3"),
    "null": (FROM_NULL + "p[0] = 1.0f;", "kernel", "a null pointer: .* cell:3"),
    "memory of its own": (
        "volatile float* p = static_cast<float*>(malloc(1ull << 46));\np[0] = 1.0f;", "compile", "malloc is external"),
    "shared memory that nobody filled": (
        "__shared__ volatile float s[64];\nif (threadIdx.x < 63) s[threadIdx.x] = 0;\n__syncthreads();\n"
        + ADD.replace("x[i]", "s[63] + x[i]"), "kernel",
        "byte 252 of shared memory.*: uninitialised at cell:6"),
    "an assertion": ("\nassert(n < 256);\n" + ADD, "kernel",
        "^n 257: block 0, thread 0: assertion `n < 256` failed in .*mine.* at cell:3"),
    # Waiting
    "an endless loop": ("while (n > 0) y[0] = 0.0f;", "time", "not ended after 50,000,000 instructions"),
    "a spin on what nobody changes": (
        "__shared__ volatile int flag;\nflag = 0;\nwhile (flag == 0) {}",
        "kernel", "deadlock, .* spins? .* at cell:4"),
    "a barrier that some miss": (INDEX + "if (i < n) __syncthreads();",
        "kernel", r"divergent barrier: .* at cell:3"),
    "a warp that parts": (
        "if (threadIdx.x < 16) y[0] = warp_sum(x[0]);\nelse y[0] = __shfl_sync(full_warp, r[0], 1);", "kernel",
        r"lanes of the warp at cell:3\. .* at block\.cuh:\d+, called from cell:2"),
    "a trap": ("if (n > 31) __trap();\n" + ADD, "kernel", "n 257: .* trap at cell:2"),
    # The cell
    "empty": ("", "cell", "the cell is empty"),
    "only a comment": ("// __global__ void mine() {}\n/* nothing */", "cell", "the cell is empty"),
    "another kernel's name": (f"__global__ void other({SIGNATURE}) {{}}",
        "cell", r"no kernel named 'mine' .*mine\(const float\* x, "),
    "a kernel in a namespace": (
        "namespace ours {\n" + WHOLE + "}\n", "cell", "^mine is inside a namespace or other braces"),
    "a parameter of no spec": ("__global__ void mine(float* y, int count) {}",
        "cell", "unknown parameter 'count'; expected some of const float"),
    "another type": (
        "__global__ void mine(float* y, long n) {}", "cell", "parameter n: expected int n, got long n"),
    "const left out": ("__global__ void mine(float* x) {}", "cell", r"expected const float\* x, got float\* x"),
    "a pointer too many": ("__global__ void mine(const float** x) {}", "cell", r"got const float\*\* x"),
    "a parameter without a name": ("__global__ void mine(const float*) {}", "cell", "parameter '\\*'"),
    # Compilers
    "no semicolon": (INDEX + "if (i < n) y[i] = x[i] + r[i]", "compile",
        r'^at the end of the cell: error: expected a ";"'),
    "an unknown name": (f"\n{KERNEL} {{\n    y[0] = z;\n}}", "compile", r'^cell\(4\): error: identifier "z"'),
    "an open brace": (KERNEL + " {\n{", "compile", r"^the cell has 2 \{ and 0 \}"),
    "a brace in a text beside an error": ('printf("{");\ny[0] = z;', "compile", r'^cell\(3\): error: identifier "z"'),
    "a brace too many": (ADD + "}", "compile", r"^the cell has 0 \{ and 1 \}"),
    "no such header": ('#include "gone.cuh"\n' + WHOLE, "compile",
        r'^cell\(2\): catastrophic error: cannot open source file "gone.cuh"'),
    "an error in a header of csrc": (
        '#undef HEAD_DIM\n#define HEAD_DIM\n#include "rope.cuh"\n' + WHOLE, "compile", r"^dims\.cuh\(\d+\): error"),
    "a function that is not for the GPU": (
        "float twice(float x) { return 2 * x; }\n" + whole("mine", SPECS["torch.add"], "y[0] = twice(x[0]);\n"),
        "compile", r"^cell\(2\): error: A function without execution space[^\0]*$"),
    "a header that NVRTC lacks": ("#include <vector>\n" + WHOLE, "cell", r"^line 2, `#include <vector>`: "),
    # Sizes
    **{f"--grid {grid}": (ADD, "launch", "grid must be|expected numbers", {"grid": grid})
       for grid in ("0", "m")},
    **{f"--block {block}": (ADD, "launch", f"--block {block}: expected whole warps, 32 to 1024", {"block": block})
       for block in (31, 2048)},
    "--grid too large": (ADD, "launch", "grid", {"grid": "n * 3000000000"}),
    "--smem too large": (ADD, "launch", "300000 bytes of shared memory per block", {"smem": "300000"}),
    "--smem negative": (ADD, "launch", "dynamic shared memory must be 0 or more bytes, got -4", {"smem": "0 - 4"}),
    "--arch": (ADD, "compile", "invalid value for --gpu-architecture", {"arch": "sm_1"}),
}  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_kernel_is_refused_for_its_mistake_and_the_next_one_passes(what):
    text, kind, said, *more = WRONG[what]
    against = more.pop(0) if more and isinstance(more[0], str) else "torch.add"
    started = time.monotonic()
    verdict = attempt(text, against, **(more[0] if more else {}))
    assert not verdict.passed and re.fullmatch(kind, verdict.kind), verdict
    assert re.search(said, verdict.problem, re.DOTALL), verdict.problem
    assert "/tmp" not in verdict.problem and time.monotonic() - started < 10
    assert str(verdict).startswith("mine ") and verdict.problem in str(verdict)
    if kind in ("kernel", "time"):
        assert attempt(ADD).passed


@pytest.mark.planted
def test_of_two_mistakes_within_the_limit_the_nearest_is_named():
    near = Mistake("the near one", lambda inputs, shape: {"y": inputs["x"] * (1 + 5e-6)})
    made = Mistake("the one that was made", lambda inputs, shape: {"y": inputs["x"]})
    for mistakes in ((near, made), (made, near)):
        title = attempt(ADD.replace("x[i] + r[i]", "x[i]"), mistakes=mistakes).title
        assert title.endswith("the one that was made")


def test_data_that_are_all_alike_hide_a_wrong_index():
    wrong = RMS_NORM.replace("weight[c]", "weight[0]")
    assert attempt(wrong, "uniform.rms_norm").passed
    assert attempt(wrong, "reference.rms_norm").kind == "wrong"


@pytest.mark.planted
def test_what_was_printed_before_a_failure_is_shown():
    verdict = attempt('printf("line %d\\n", 1);\n__trap();')
    assert verdict.kind == "kernel" and "printed:\nline 1" in str(verdict)


@pytest.mark.planted
def test_an_interrupted_trial_leaves_the_next_one_as_it_is(capsys, ctrl_c):
    with pytest.raises(KeyboardInterrupt), ctrl_c(after_s=0.5):
        try_kernel(Attempt("mine", "torch.add", "while (n > 0) y[0] = 0.0f;"), instructions=10**13)
    assert attempt(ADD).passed
    print("still printed")
    assert capsys.readouterr().out == "still printed\n"


def test_an_unknown_reference_is_a_value_error():
    with pytest.raises(ValueError, match="unknown reference 'torch.sub'"):
        attempt(ADD, "torch.sub")


def test_a_seed_makes_a_verdict_repeat_and_no_seed_makes_it_fresh():
    wrong = ADD.replace("x[i] +", "2 * x[i] +")
    seeded = {attempt(wrong, seed=seed).problem for seed in (7, 7, 8)}
    assert len(seeded) == 2
    assert len({attempt(wrong).problem for _ in range(3)}) == 3


# ---- Around it ----


def test_the_callers_cache_and_card_count(tmp_path, monkeypatch):
    core()  # its build is slow, so it stays in the usual cache
    monkeypatch.setenv("LUCE_CACHE", str(tmp_path))
    assert attempt(ADD).passed
    assert {path.name for path in tmp_path.iterdir()} == {"ptx", "cuda"}
    monkeypatch.setenv("LUCE_CARD", "none")
    with pytest.raises(ValueError, match="LUCE_CARD"):
        attempt(ADD)


@pytest.mark.parametrize("card", ["T4", "A100", "H100", "RTX 5090"])
def test_a_verdict_counts_the_same_bytes_on_every_card(card, monkeypatch):
    usual = attempt(RMS_NORM, "reference.rms_norm", seed=1)
    monkeypatch.setenv("LUCE_CARD", card)
    verdict = attempt(RMS_NORM, "reference.rms_norm", seed=1)
    assert verdict.passed and verdict.traffic == usual.traffic and verdict.barriers == usual.barriers


def test_a_new_cell_takes_under_2_seconds_and_a_known_one_under_half_of_one():
    """The best of three tries, since other programs may use the processor."""

    def seconds(text) -> float:
        started = time.monotonic()
        assert attempt(text, "reference.rms_norm").passed
        return time.monotonic() - started

    first, again = zip(
        *((seconds(text), seconds(text)) for text in (f"{RMS_NORM}// {time.time_ns()}" for _ in range(3))), strict=True
    )
    print(f"first {min(first):.2f} s, again {min(again):.2f} s")
    assert min(first) < 2 and min(again) < 0.5  # 0.3 s and 0.05 s on two busy cores


def test_csrc_has_not_changed(csrc_before):
    assert csrc_hash() == csrc_before
