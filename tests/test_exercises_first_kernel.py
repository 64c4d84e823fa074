"""The checkers of notebook 04 take right kernels however they are written, and refuse wrong ones with a reason."""

import pytest

from luce_edu.exercises import WrongAnswer
from luce_edu.exercises import first_kernel as exercises

SUM = "    for (int c = threadIdx.x; c < n; c += blockDim.x) squares += x[c] * x[c];\n"
ROWS_SUM = SUM.replace("x[c]", "x[blockIdx.x * n + c]")
ROWS = exercises.rms_rows.skeleton.replace(SUM, ROWS_SUM)
ROWS_RIGHT = {
    "the index": ROWS,
    "a pointer to the row": exercises.rms_rows.skeleton.replace(
        "    float squares", "    x += blockIdx.x * n, y += blockIdx.x * n;\n    float squares"
    ).replace("[blockIdx.x * n + c]", "[c]"),
    "another kernel": """__global__ void rms_rows(const float* x, const float* weight, float* y, int n, float eps) {
        float squares = 0.0f;
        for (int c = 0; c < n; ++c) squares += x[blockIdx.x * n + c] * x[blockIdx.x * n + c];
        for (int c = threadIdx.x; c < n; c += blockDim.x)
            y[blockIdx.x * n + c] = x[blockIdx.x * n + c] / sqrtf(squares / n + eps) * (1.0f + weight[c]);
    }""",
}
LAST = "    for (int c = threadIdx.x; c < n; c += blockDim.x)\n        y"
# Wrong of three with 31 elements; about once in 100 runs one lies so near 0 that it counts as right.
TWO_ROWS = "6[012] of 93"
ROWS_WRONG = {
    "the mistake left in": (exercises.rms_rows.skeleton.replace("float squares", "float  squares"), TWO_ROWS),
    "the wrong index changed": (
        exercises.rms_rows.skeleton.replace("weight[c]", "weight[blockIdx.x]"), "elements are off"),
    "block and thread mixed": (
        ROWS.replace(ROWS_SUM, ROWS_SUM.replace("blockIdx", "threadIdx")), "outside every tensor|elements are off"),
    "hidden by uniform data and by short rows": (
        ROWS.replace(ROWS_SUM, ROWS_SUM.replace("n + c]", "n + threadIdx.x]")), "n 257.*elements are off"),
    "the row of a neighbour": (ROWS.replace(ROWS_SUM, ROWS_SUM.replace("blockIdx.x", "(gridDim.x - 1 - blockIdx.x)")),
                               TWO_ROWS),
    "one past the end": (ROWS.replace(ROWS_SUM, ROWS_SUM.replace("c < n", "c <= n")), "outside every tensor"),
    "one short of the end": (ROWS.replace(ROWS_SUM, ROWS_SUM.replace("c < n", "c < n - 1")), "elements are off"),
    "written by the first pass only": (
        ROWS.replace(LAST, LAST.replace("for (int c = threadIdx.x; c < n; c += blockDim.x)",
                                        "if (int c = threadIdx.x; c < n)")), "nothing wrote it"),
    "NaN": (ROWS.replace("+ eps", "- 1e9f"), "93 of 93|1 of 1"),
    "no eps": (ROWS.replace(" + eps", ""), "elements are off"),
    "each warp for itself": (ROWS.replace("block_sum(squares, scratch)", "warp_sum(squares)"), "elements are off"),
    "a barrier that some threads miss": (
        ROWS.replace("    float squares", "    if (threadIdx.x >= n) return;\n    float squares"), "does not finish"),
    "not C++": (ROWS.replace("float squares", "flaot squares"), "does not compile.*flaot"),
    "another name": (ROWS.replace("rms_rows", "rms_norm"), "no kernel named 'rms_rows'"),
    "a number": (42, "expected CUDA C"),
}  # fmt: skip

GUARD = "    if (i < n) y[i] = x[i] + r[i];\n"
ADD = exercises.add_any.skeleton
START, STRIDE = "blockIdx.x * blockDim.x + threadIdx.x", "gridDim.x * blockDim.x"
ANY_HEAD = "__global__ void add_any(const float* x, const float* r, float* y, int n) {\n"


def strided(start=START, stride=STRIDE, end="i < n", value="x[i] + r[i]"):
    return f"{ANY_HEAD}    for (int i = {start}; {end}; i += {stride}) y[i] = {value};\n}}\n"


ANY_RIGHT = {
    "a stride of the grid": strided(),
    "while": ADD.replace(GUARD, f"    while (i < n) {{\n        y[i] = x[i] + r[i];\n        i += {STRIDE};\n    }}\n"),
    "a part for each block": ANY_HEAD
    + """    const int each = (n + gridDim.x - 1) / gridDim.x / 8 * 8 + 8, first = blockIdx.x * each;
        for (int i = first + threadIdx.x; i < min(n, first + each); i += blockDim.x) y[i] = x[i] + r[i];\n}\n""",
    "one block does it all": strided("threadIdx.x", "blockDim.x", "i < n && blockIdx.x == 0"),
}
ANY_WRONG = {
    "one element each": (ADD.replace("int i", "int  i"), "n 1000: y.512. nothing wrote it"),
    "both blocks do everything": (strided("threadIdx.x", "blockDim.x"), "is right, and reads 65,536 .*r 32,768, x 32,"),
    "a stride of the block": (strided(stride="blockDim.x"), "is right, and reads .* where 32,768 are enough"),
    "a stride that skips": (strided(stride=f"2 * {STRIDE}"), "nothing wrote it"),
    "the last stride left out": (strided(end="i + 512 < n"), "nothing wrote it"),
    "one past the end": (strided(end="i <= n"), "outside every tensor"),
    "no end": (strided(end="i < n + 1024"), "outside every tensor"),
    "NaN at the end": (strided(value="i == 4095 ? 0.0f / 0.0f : x[i] + r[i]"), "1 of 4,096 elements"),
    "the neighbour's": (strided(value="x[i] + r[i ^ (i < n - 1)]"), "elements are off"),
    "not the sum": (strided(value="x[i] - r[i]"), "elements are off"),
}

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
FUSED_RIGHT = {"kept in registers": KEPT, "kept in shared memory": SHARED, "one thread sums": ONE_SUMS}
FUSED_WRONG = {
    "mid read back": (TWO_READS, r"reads 65,536 bytes where 49,152 are enough: mid 16,384"),
    "x and r read again": (KEPT.replace("value[i] * scale", "(x[first + c] + r[first + c]) * scale"),
                           "reads 81,920 .*r 32,768, weight 16,384, x 32,768"),
    "four neighbours a thread": (
        KEPT.replace("c = threadIdx.x;", "c = threadIdx.x * each;").replace("c += block_threads", "++c"),
        "is right, and reads .* where 49,152 are enough"),
    "mid never written": (KEPT.replace("if (c < n) mid[first + c] = value[i];", ""), "mid.* nothing wrote it"),
    "mid is x": (KEPT.replace("mid[first + c] = value[i]", "mid[first + c] = x[first + c]"), "mid.* elements are off"),
    "r added after the norm": (
        KEPT.replace("x[first + c] + r[first + c]", "x[first + c]").replace("weight[c])", "weight[c]) + r[first + c]"),
        "elements are off"),
    "the first pass only": (KEPT.replace("float value[each]", "float value[each + 1]").replace("1024 / ", "256 / "),
                            "n 257.*nothing wrote it"),
    "no barrier before the sum": (ONE_SUMS.replace(f"{BARRIER}    if (t == 0)", "    if (t == 0)"), "elements are off"),
    "no barrier after the sum": (
        ONE_SUMS.replace(f"eps);\n    }}\n{BARRIER}", "eps);\n    }\n"), "in a hostile order of threads only"),
    "no barrier in the tree": (SHARED.replace("        __syncthreads();\n", ""), "elements are off"),
    "weight by row": (KEPT.replace("weight[c]", "weight[blockIdx.x]"), "elements are off"),
    "one past the end": (KEPT.replace("c < n ?", "c <= n ?"), "outside every tensor"),
    "NaN where nothing is": (KEPT.replace(": 0.0f;", ": 0.0f / 0.0f;"), "elements are off"),
    "one row only": (KEPT.replace("first = blockIdx.x * n", "first = 0"), "nothing wrote it"),
}  # fmt: skip


EXERCISES = [exercises.rms_rows, exercises.add_any, exercises.add_rms_norm]


def planted(wrong):
    return pytest.mark.parametrize("answer, reason", wrong.values(), ids=wrong)


@pytest.mark.parametrize("answer", ROWS_RIGHT.values(), ids=ROWS_RIGHT)
def test_a_repaired_norm_is_right(answer, capsys):
    exercises.rms_rows.check(answer)
    assert "right" in capsys.readouterr().out


@pytest.mark.planted
@planted(ROWS_WRONG)
def test_a_norm_that_is_wrong_is_refused_with_the_reason(answer, reason):
    with pytest.raises(WrongAnswer, match=f"(?s){reason}"):
        exercises.rms_rows.check(answer)


@pytest.mark.parametrize("answer", ANY_RIGHT.values(), ids=ANY_RIGHT)
def test_two_blocks_that_serve_any_n_are_right(answer, capsys):
    exercises.add_any.check(answer)
    assert "right" in capsys.readouterr().out


@pytest.mark.planted
@planted(ANY_WRONG)
def test_two_blocks_that_do_not_serve_any_n_are_refused(answer, reason):
    with pytest.raises(WrongAnswer, match=f"(?s){reason}"):
        exercises.add_any.check(answer)


@pytest.mark.planted
def test_a_stride_of_nothing_is_stopped(monkeypatch):
    monkeypatch.setattr("luce_edu.inline.exercise.SECONDS", 4.0)
    with pytest.raises(WrongAnswer, match="does not end"):
        exercises.add_any.check(strided(stride="0"))


@pytest.mark.parametrize("answer", FUSED_RIGHT.values(), ids=FUSED_RIGHT)
def test_a_fused_norm_within_its_bytes_is_right(answer, capsys):
    exercises.add_rms_norm.check(answer)
    assert "right" in capsys.readouterr().out


@pytest.mark.planted
@planted(FUSED_WRONG)
def test_a_fused_norm_that_is_wrong_or_reads_too_much_is_refused(answer, reason):
    with pytest.raises(WrongAnswer, match=f"(?s){reason}"):
        exercises.add_rms_norm.check(answer)


@pytest.mark.parametrize("exercise", EXERCISES, ids=[exercise.name for exercise in EXERCISES])
def test_an_untouched_skeleton_is_not_tried_yet(exercise, capsys):
    exercise.check(exercise.skeleton)
    assert capsys.readouterr().out == f"{exercise.name}: not tried yet\n"


@pytest.mark.planted
def test_uniform_data_hides_the_mistake_that_random_data_shows():
    from luce_edu.inline.trial import Attempt, try_kernel

    def passes(against):
        return try_kernel(Attempt("rms_rows", against, exercises.rms_rows.skeleton)).passed

    assert passes("uniform.rms_norm") and not passes("reference.rms_norm")
