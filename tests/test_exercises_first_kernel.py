"""The checkers of notebook 04 accept right kernels in several forms, and refuse wrong ones with a reason."""

import pytest
from answers import checker_tests

from luce_edu.exercises import first_kernel as exercises

SUM = "    for (int c = threadIdx.x; c < n; c += blockDim.x) squares += x[c] * x[c];\n"
ROWS_SUM = SUM.replace("x[c]", "x[blockIdx.x * n + c]")
ROWS = exercises.rms_rows.skeleton.replace(SUM, ROWS_SUM)
ROWS_HEAD = ROWS[: ROWS.index("\n")]
ROWS_RIGHT = {
    "the index": ROWS,
    "a pointer to the row": exercises.rms_rows.skeleton.replace(
        "    float squares", "    x += blockIdx.x * n, y += blockIdx.x * n;\n    float squares"
    ).replace("[blockIdx.x * n + c]", "[c]"),
    "a body without a signature": ROWS[ROWS.index("{") + 1 : ROWS.rindex("}")],
    "a tree in shared memory": ROWS_HEAD + """
        __shared__ float partial[256];
        float squares = 0;
        for (unsigned c = threadIdx.x; c < n; c += 256) squares += powf(x[blockIdx.x * n + c], 2);
        partial[threadIdx.x] = squares;
        __syncthreads();
        for (int half = 128; half; half >>= 1) {
            if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
            __syncthreads();
        }
        for (size_t c = threadIdx.x; c < n; c += 256)
            y[blockIdx.x * n + c] = x[blockIdx.x * n + c] * rsqrtf(partial[0] / n + eps) * (weight[c] + 1);
    }""",
    "the threads of one warp": ROWS_HEAD + """
        if (threadIdx.x >= 32) return;
        const float* row = x + blockIdx.x * n;
        float squares = 0.0f;
        for (int c = threadIdx.x; c < n; c += 32) squares = fmaf(row[c], row[c], squares);
        const float scale = rsqrt(warp_sum(squares) / float(n) + eps);
        for (int c = threadIdx.x; c < n; c += 32) y[blockIdx.x * n + c] = row[c] * scale * (1.0f + weight[c]);
    }""",
}  # fmt: skip
LAST = "    for (int c = threadIdx.x; c < n; c += blockDim.x)\n        y"
# Two of three rows of 31 elements are wrong. In about 1 of 100 runs an element is so near 0 that it counts as right.
TWO_ROWS = "6[012] of 93"
ROWS_WRONG = {
    "the mistake left in": (exercises.rms_rows.skeleton.replace("float squares", "float  squares"), TWO_ROWS),
    "the wrong index changed": (
        exercises.rms_rows.skeleton.replace("weight[c]", "weight[blockIdx.x]"), "elements are wrong"),
    "hidden by uniform data and by short rows": (
        ROWS.replace(ROWS_SUM, ROWS_SUM.replace("n + c]", "n + threadIdx.x]")), "n 257.*elements are wrong"),
    "one past the end": (ROWS.replace(ROWS_SUM, ROWS_SUM.replace("c < n", "c <= n")), "out of bounds"),
    "written by the first pass only": (
        ROWS.replace(LAST, LAST.replace("for (int c = threadIdx.x; c < n; c += blockDim.x)",
                                        "if (int c = threadIdx.x; c < n)")), "the kernel never wrote"),
    "no eps": (ROWS.replace(" + eps", ""), "elements are wrong"),
    "each warp for itself": (ROWS.replace("block_sum(squares, scratch)", "warp_sum(squares)"), "elements are wrong"),
    "a barrier that some threads miss": (
        ROWS.replace("    float squares", "    if (threadIdx.x >= n) return;\n    float squares"),
        "fails.*lanes 1..31"),
    "another name": (ROWS.replace("rms_rows", "rms_norm"), "no kernel named 'rms_rows'"),
}  # fmt: skip

HEAD = exercises.add_rms_norm.skeleton.partition("    //")[0]
KEPT = HEAD + """\
    __shared__ float scratch[block_warps];
    constexpr int each = 1024 / block_threads;
    const int first = blockIdx.x * n;
    float value[each], squares = 0.0f;
    for (int i = 0, c = threadIdx.x; i < each; ++i, c += block_threads) {
        value[i] = c < n ? x[first + c] + r[first + c] : 0.0f;
        squares += value[i] * value[i];
        if (c < n) mid[first + c] = value[i];
    }
    const float scale = rsqrtf(block_sum(squares, scratch) / n + eps);
    for (int i = 0, c = threadIdx.x; i < each; ++i, c += block_threads)
        if (c < n) y[first + c] = value[i] * scale * (1.0f + weight[c]);
}
"""
SHARED = HEAD + """\
    __shared__ float row[1024], partial[block_threads];
    const int t = threadIdx.x, first = blockIdx.x * n;
    float squares = 0.0f;
    for (int c = t; c < n; c += block_threads) {
        row[c] = x[first + c] + r[first + c];
        mid[first + c] = row[c];
        squares += row[c] * row[c];
    }
    partial[t] = squares;
    __syncthreads();
    for (int half = block_threads / 2; half > 0; half /= 2) {
        if (t < half) partial[t] += partial[t + half];
        __syncthreads();
    }
    const float scale = rsqrtf(partial[0] / n + eps);
    for (int c = t; c < n; c += block_threads) y[first + c] = row[c] * scale * (1.0f + weight[c]);
}
"""
TWO_READS = HEAD + """\
    __shared__ float scratch[block_warps];
    float squares = 0.0f;
    for (int c = blockIdx.x * n + threadIdx.x; c < (blockIdx.x + 1) * n; c += blockDim.x) {
        mid[c] = x[c] + r[c];
        squares += mid[c] * mid[c];
    }
    const float scale = rsqrtf(block_sum(squares, scratch) / n + eps);
    for (int c = threadIdx.x; c < n; c += blockDim.x)
        y[blockIdx.x * n + c] = mid[blockIdx.x * n + c] * scale * (1.0f + weight[c]);
}
"""
ONE_SUMS = SHARED.replace("partial[block_threads]", "scale").replace(
    SHARED[SHARED.index("    partial[t] = squares") : SHARED.index("    for (int c = t; c < n; c += block_threads) y")],
    """    __syncthreads();
    if (t == 0) {
        squares = 0.0f;
        for (int c = 0; c < n; ++c) squares += row[c] * row[c];
        scale = rsqrtf(squares / n + eps);
    }
    __syncthreads();
""",
)
BARRIER = "    __syncthreads();\n"
NEIGHBOURS = KEPT.replace("c = threadIdx.x;", "c = threadIdx.x * each;").replace("c += block_threads", "++c")
ONE_WARP = HEAD + """\
    if (threadIdx.x >= 32) return;
    x += blockIdx.x * n, r += blockIdx.x * n, mid += blockIdx.x * n, y += blockIdx.x * n;
    float value[32], squares = 0.0f;
    #pragma unroll
    for (int i = 0; i < 32; ++i) {
        const int c = 32 * i + lane_id();
        value[i] = c < n ? mid[c] = x[c] + r[c] : 0.0f;
        squares = fmaf(value[i], value[i], squares);
    }
    const float root = sqrtf(warp_sum(squares) / n + eps);
    #pragma unroll
    for (int i = 0; i < 32; ++i)
        if (const int c = 32 * i + lane_id(); c < n) y[c] = value[i] / root * (weight[c] + 1.0f);
}
"""
FUSED_RIGHT = {
    "kept in registers": KEPT,
    "kept in shared memory": SHARED,
    "one thread sums": ONE_SUMS,
    "a warp": ONE_WARP,
    "y written twice": KEPT.replace("mid[first + c] = value[i];", "y[first + c] = mid[first + c] = value[i];"),
    "threads without an element leave": SHARED.replace(
        "    for (int c = t; c < n; c += block_threads) y",
        "    if (t >= n) return;\n    for (int c = t; c < n; c += block_threads) y"),
    "four neighbours a thread": NEIGHBOURS,
}  # fmt: skip
FUSED_WRONG = {
    "mid read back": (TWO_READS, "reads mid 1 times"),
    "x and r read again": (KEPT.replace("value[i] * scale", "(x[first + c] + r[first + c]) * scale"),
                           "reads x 2 times .*r 2 times"),
    "y as a note of mid": (
        KEPT.replace("mid[first + c] = value[i];", "y[first + c] = mid[first + c] = value[i];")
        .replace("value[i] * scale", "y[first + c] * scale"), "reads y 1 times"),
    # Mistakes that the checker recognises by their results.
    "weight for 1 + weight": (KEPT.replace("(1.0f + weight[c])", "weight[c]"), "scaled by weight"),
    "no eps": (KEPT.replace(" + eps", ""), "epsilon"),
    "the sum for the mean": (KEPT.replace(" / n + eps", " + eps"), "takes their mean"),
    "the squares of x": (KEPT.replace("value[i] * value[i]", "(c < n ? x[first + c] * x[first + c] : 0.0f)"),
                         "mean square is that of x"),
    "x scaled": (KEPT.replace("value[i] * scale", "x[first + c] * scale"), "should be a scaled mid"),
    "the norm of x": (KEPT.replace("value[i] = c < n ? x[first + c] + r[first + c]", "value[i] = c < n ? x[first + c]")
                      .replace("= value[i];", "= value[i] + r[first + c];"), "y is the norm of x"),
    "no root": (KEPT.replace("rsqrtf(", "1.0f / ("), "without the square root"),
    "the mean square of row 0": (
        KEPT.replace("float value[each]", "float value[each], other[each]")
        .replace("        squares += value[i] * value[i];",
                 "        other[i] = c < n ? x[c] + r[c] : 0.0f;\n        squares += other[i] * other[i];"),
        "mean square of row 0"),
    "mid never written": (KEPT.replace("if (c < n) mid[first + c] = value[i];", ""), "the kernel never wrote mid"),
    "mid is x": (KEPT.replace("mid[first + c] = value[i]", "mid[first + c] = x[first + c]"), "mid holds x only"),
    "the first pass only": (KEPT.replace("float value[each]", "float value[each + 1]").replace("1024 / ", "256 / "),
                            "n 257.*never wrote"),
    "no barrier before the sum": (ONE_SUMS.replace(f"{BARRIER}    if (t == 0)", "    if (t == 0)"), "race on"),
    "no barrier after the sum": (
        ONE_SUMS.replace(f"eps);\n    }}\n{BARRIER}", "eps);\n    }\n"), "race on|uninitialised"),
}  # fmt: skip

TOTAL = """\
__global__ void total(const float* x, float* y, int n) {
    __shared__ float scratch[block_warps];
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) y[0] = sum;
}
"""
TREE = """\
__global__ void total(int n, const float* x, float* y) {
    __shared__ float partial[256];
    const int t = threadIdx.x;
    partial[t] = 0.0f;
    for (int i = t; i < n; i += 256) partial[t] += x[i];
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (t < half) partial[t] += partial[t + half];
    }
    if (t == 0) *y = partial[0];
}
"""
TOTAL_RIGHT = {
    "the sums of warps": TOTAL,
    "a tree": TREE,
    "one warp, in double": TOTAL[: TOTAL.index("{") + 1] + """
        if (threadIdx.x >= 32) return;
        double sum = 0;
        for (int i = threadIdx.x; i < n; i += 32) sum += x[i];
        for (int offset = 16; offset; offset /= 2) sum += __shfl_down_sync(~0u, sum, offset);
        if (threadIdx.x == 0) y[0] = sum;\n}\n""",
    "a contiguous chunk a thread": TOTAL.replace(
        "int i = threadIdx.x; i < n; i += blockDim.x",
        "int i = threadIdx.x * 16; i < min(n, 16 * (int(threadIdx.x) + 1)); ++i"),
    "four elements a load, the sums added by thread 0": TOTAL[: TOTAL.index("{") + 1] + """
        __shared__ float sums[256];
        float4 four = {0, 0, 0, 0};
        for (int i = threadIdx.x; i < n / 4; i += 256) {
            const float4 v = reinterpret_cast<const float4*>(x)[i];
            four.x += v.x, four.y += v.y, four.z += v.z, four.w += v.w;
        }
        if (const int i = n / 4 * 4 + threadIdx.x; i < n) four.x += x[i];
        sums[threadIdx.x] = four.x + four.y + four.z + four.w;
        __syncthreads();
        if (threadIdx.x == 0) { for (int t = 1; t < 256; ++t) sums[0] += sums[t]; y[0] = sums[0]; }\n}\n""",
}  # fmt: skip
TOTAL_WRONG = {
    "one thread adds up": (
        TOTAL.replace("threadIdx.x; i < n; i += blockDim.x", "0; i < n && threadIdx.x == 0; ++i"), "How many threads"),
    "every thread adds up everything": (
        TOTAL.replace("threadIdx.x; i < n; i += blockDim.x", "0; i < n; ++i").replace("block_sum(sum, scratch)", "sum"),
        "reads x 64 times"),
    "thread 0 alone": (TOTAL.replace("block_sum(sum, scratch)", "sum"), "sum of thread 0 only"),
    "the first warp alone": (TOTAL.replace("block_sum(sum, scratch)", "warp_sum(sum)"), "sum of the first warp"),
    "no loop": (TOTAL.replace("for (int i = threadIdx.x; i < n; i += blockDim.x)",
                              "if (const int i = threadIdx.x; i < n)"), "only the first 256 elements"),
    "no barrier in the tree": (TREE.replace("        __syncthreads();\n", ""), "race on|uninitialised"),
    "atomics, in the order in which they come": (
        TOTAL.replace("sum = block_sum(sum, scratch);", "if (threadIdx.x == 0) scratch[0] = 0.0f;\n    "
                      "__syncthreads();\n    atomicAdd(scratch, sum);\n    __syncthreads();\n    sum = scratch[0];"),
        "different bits in another order.*fixed order"),
    "a sum that never ends": (TOTAL.replace("i += blockDim.x", "i += 0"), "does not end"),
}  # fmt: skip


test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (exercises.rms_rows, ROWS_RIGHT, ROWS_WRONG), (exercises.total, TOTAL_RIGHT, TOTAL_WRONG),
    (exercises.add_rms_norm, FUSED_RIGHT, FUSED_WRONG),
)  # fmt: skip


def test_loads_that_do_not_coalesce_are_a_remark(capsys):
    exercises.add_rms_norm.check(NEIGHBOURS)
    exercises.total.check(TOTAL_RIGHT["a contiguous chunk a thread"])
    assert capsys.readouterr().out.count("Neighbouring threads do not read neighbouring elements") == 2
    exercises.add_rms_norm.check(KEPT)
    exercises.total.check(TOTAL)
    assert "Neighbouring" not in capsys.readouterr().out


@pytest.mark.planted
def test_uniform_data_hides_the_mistake_that_random_data_shows():
    from luce_edu.inline.trial import Attempt, try_kernel

    def passes(against):
        return try_kernel(Attempt("rms_rows", against, exercises.rms_rows.skeleton)).passed

    assert passes("uniform.rms_norm") and not passes("reference.rms_norm")
