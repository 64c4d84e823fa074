"""The checkers of notebook 05 accept right answers in several forms, and refuse wrong ones with a reason."""

import textwrap

import numpy as np
import torch
from answers import checker_tests
from cells import A_WARP_A_ROW

from luce_edu.exercises import bytes_are_time as exercises

# ---- Exercise 1 ----


def by_lanes(start, stride, size):
    return len({(start + stride * lane) // 32 for lane in range(32)})


def by_bytes(start, stride, size):
    return len({(start + stride * lane + byte) // 32 for lane in range(32) for byte in range(size)})


def closed_form(start, stride, size):
    return 32 if stride >= 32 else (start + 31 * stride) // 32 - start // 32 + 1


WRONG_SECTORS = {
    "the bytes asked for": (lambda start, stride, size: -(-32 * size // 32), "bytes over 32"),
    "aligned starts only": (lambda start, stride, size: min(32, -(-(31 * stride + size) // 32)), "Case: start"),
    "one for each lane": (lambda start, stride, size: 32, "per lane"),
    "lines in place of sectors": (
        lambda start, stride, size: len({(start + stride * i) // 128 for i in range(32)}), "cache lines"),
    "31 lanes": (lambda start, stride, size: len({(start + stride * i) // 32 for i in range(31)}), "Case: start"),
    "the span, gaps and all": (
        lambda start, stride, size: (start + 31 * stride + size - 1) // 32 - start // 32 + 1, "no lane touches"),
    "NaN": (lambda start, stride, size: float("nan"), "expected a number|Case: start"),
    "a number": (32, "expected a function"),
}  # fmt: skip


def by_numpy(start, stride, size):
    return np.unique((start + stride * np.arange(32)) // 32).size


def by_torch(start, stride, size):
    return torch.unique((start + stride * torch.arange(32)) // 32).numel() * torch.ones(())


SECTORS = {function.__name__: function for function in (by_lanes, by_bytes, closed_form, by_numpy, by_torch)}

# ---- Exercise 2: a whole kernel ----

HEAD = "__global__ void product(const bf16* W, const float* x, float* y, int rows, int cols) {\n"
WARP_A_ROW = HEAD + textwrap.indent(A_WARP_A_ROW, "    ") + "}\n"
PRODUCTS = {
    "a warp for each row": WARP_A_ROW,
    "the whole block on one row after another": HEAD + """\
    __shared__ float scratch[block_warps];
    for (int row = 8 * blockIdx.x; row < min(rows, 8 * (int(blockIdx.x) + 1)); ++row) {
        float sum = 0.0f;
        for (int c = threadIdx.x; c < cols; c += blockDim.x) sum += to_float(W[row * cols + c]) * x[c];
        sum = block_sum(sum, scratch);
        if (threadIdx.x == 0) y[row] = sum;
        __syncthreads();
    }\n}\n""",
    "half a warp for each row, half of the warps": HEAD + """\
    const int row = 8 * blockIdx.x + threadIdx.x / 16, lane = threadIdx.x % 16;
    if (threadIdx.x >= 128) return;
    float sum = 0.0f;
    if (row < rows) for (int c = lane; c < cols; c += 16) sum += to_float(W[row * cols + c]) * x[c];
    for (int offset = 8; offset; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    if (row < rows && lane == 0) y[row] = sum;\n}\n""",
}
NO_PRODUCTS = {
    "a thread for each row": (HEAD + """\
    const int row = 8 * blockIdx.x + threadIdx.x;
    if (threadIdx.x >= 8 || row >= rows) return;
    float sum = 0.0f;
    for (int c = 0; c < cols; ++c) sum += to_float(W[row * cols + c]) * x[c];
    y[row] = sum;\n}\n""", "moves 16 times"),
    "lane 0 alone": (WARP_A_ROW.replace("warp_sum(sum)", "sum"), "sum of lane 0 only"),
    "the first columns only": (
        WARP_A_ROW.replace("for (int c = lane_id(); c < cols; c += 32)", "if (const int c = lane_id(); c < cols)"),
        "first 32 columns"),
    "columns first": (WARP_A_ROW.replace("row * cols + c", "c * rows + row"), "stored by columns"),
    "no check of the row": (WARP_A_ROW.replace("    if (row >= rows) return;\n", ""), "out of bounds"),
    "every even column twice": (
        WARP_A_ROW.replace("W[row * cols + c]) * x[c]", "W[row * cols + c / 2 * 2]) * x[c / 2 * 2]"), "is wrong"),
    "NaN": (WARP_A_ROW.replace("y[row] = sum", "y[row] = sum * (0.0f / 0.0f)"), r"is wrong.*y\["),
    "the last row never written": (WARP_A_ROW.replace("row >= rows", "row >= rows - 1"), r"is wrong.*y\["),
}  # fmt: skip


# ---- Exercise 3: the text in the hole ----

STAGE = """\
    DYNAMIC_SHARED(float, shared_x);
    for (int c = threadIdx.x; c < cols; c += block_threads) shared_x[staged(c)] = x[c];
    __syncthreads();
"""
WIDE = """\
    for (int row = first + warp_id(); row < last; row += block_warps) {
        float sum = 0.0f;
        for (int c = lane_weights * lane_id(); c < cols; c += chunk) {
            const float* at = shared_x + staged(c);
            sum = dot8(load_weights(W + row * cols + c), *reinterpret_cast<const float4*>(at),
                       *reinterpret_cast<const float4*>(at + chunk / 2), sum);
        }
        sum = warp_sum(sum);
        if (lane_id() == 0) y[row] = sum;
    }
"""
NARROW = exercises.bytes_per_output.hole.replace("x[c]", "shared_x[c]")
IN_ORDER = STAGE.replace("shared_x[staged(c)]", "shared_x[c]") + NARROW
PAIRS = (
    STAGE
    + """\
    const int a = first + warp_id(), b = a + block_warps;
    float sum_a = 0.0f, sum_b = 0.0f;
    for (int c = lane_weights * lane_id(); c < cols; c += chunk) {
        const float* at = shared_x + staged(c);
        const float4 lo = *reinterpret_cast<const float4*>(at);
        const float4 hi = *reinterpret_cast<const float4*>(at + chunk / 2);
        if (a < last) sum_a = dot8(load_weights(W + a * cols + c), lo, hi, sum_a);
        if (b < last) sum_b = dot8(load_weights(W + b * cols + c), lo, hi, sum_b);
    }
    sum_a = warp_sum(sum_a);
    sum_b = warp_sum(sum_b);
    if (lane_id() == 0 && a < last) y[a] = sum_a;
    if (lane_id() == 0 && b < last) y[b] = sum_b;
"""
)

def early(body):
    """Warps without a row exit before the barrier, after they have copied their part of x."""
    return body.replace(MEET, "    if (first + warp_id() >= last) return;\n" + MEET)


MEET, LOOP = "    __syncthreads();\n", "{\n        float"
STATIC = """
    __shared__ float4 copy[1024 / 4];
    for (int i = threadIdx.x; i < cols / 4; i += 256) copy[i] = reinterpret_cast<const float4*>(x)[i];
    __syncthreads();
    const float* own = reinterpret_cast<const float*>(copy);
    for (int row = first + threadIdx.x / 32; row < last; row += 8) {
        double sum = 0;
        for (unsigned c = threadIdx.x % 32; c < cols; c += 32) sum += double(own[c]) * to_float(W[row * cols + c]);
        for (int offset = 16; offset; offset >>= 1) sum += __shfl_xor_sync(~0u, sum, offset);
        if (threadIdx.x % 32 == 0) y[row] = static_cast<float>(sum);
    }
"""
WITHIN = {
    "warps without a row leave before the barrier": early(STAGE + WIDE),
    "a barrier in the loop, which warps without a row never meet": (
        STAGE.replace(MEET, "") + WIDE.replace(LOOP, LOOP.replace("\n", "\n" + MEET))),
    "x copied 16 bytes at a time, by other words": STATIC,
    "wide loads, x staged": STAGE + WIDE,
    "x in its natural order": IN_ORDER,
    "two rows a warp": PAIRS,
}
RIGHT = STAGE + WIDE
BARRIER = "    __syncthreads();\n"
AGAIN = IN_ORDER[IN_ORDER.index("    for") : IN_ORDER.index(BARRIER)]
NOT_WITHIN = {
    "x from memory for each row": (
        exercises.bytes_per_output.hole.replace("float sum", "float  sum"), "4,096 of x.*For how many rows"),
    "x twice a block": (IN_ORDER + BARRIER + AGAIN, "moves 2,560 .* 512 of x"),
    "x again while others read it": (IN_ORDER + AGAIN, "race on"),
    "W twice": (IN_ORDER + NARROW, "4,096 of W and 256 of x.*twice"),
    "W in strips": (
        IN_ORDER.replace("int c = lane_id(); c < cols; c += 32",
                         "int c = lane_id() * cols / 32; c < (lane_id() + 1) * cols / 32; ++c"), "not coalesced"),
    "wide loads that begin anywhere": (
        RIGHT.replace("lane_weights * lane_id(); c < cols; c += chunk", "4 * lane_id(); c < cols; c += 128"),
        "misaligned|out of bounds"),
    "no barrier": (RIGHT.replace(BARRIER, ""), "(race on|uninitialised).*is it complete by then"),
    "a barrier for the first warp alone": (
        RIGHT.replace(BARRIER, "").replace(LOOP, LOOP.replace("\n", "\n        if (row == first) __syncthreads();\n")),
        "fails.*divergent barrier"),
    "x up to the block's threads": (
        RIGHT.replace("for (int c = threadIdx.x; c < cols; c += block_threads)",
                      "if (const int c = threadIdx.x; c < cols)"), "fails. rows 7, cols 264: .*uninitialised"),
    "x in an order that equal elements hide": (
        RIGHT.replace("shared_x[staged(c)] =", "shared_x[staged(c ^ 1)] ="), "is wrong.*should be"),
    "the first 8 rows only": (RIGHT.replace("row += block_warps", "row += 16"), r"is wrong. rows 33.*y\[8\]"),
    "off by one in the tail": (RIGHT.replace("row < last", "row <= last"), "out of bounds"),
    "the last row never written": (RIGHT.replace("row < last", "row < last - 1"), r"never wrote y\[0\]"),
}  # fmt: skip


def frugal(body):
    exercise = exercises.bytes_per_output
    return exercise.skeleton.replace(exercise.hole, body)


MOVED, WITHIN_SAID = "262,144 bytes", "2,304 bytes.*2,048 of W and 256 of x"
test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (exercises.sectors, SECTORS, WRONG_SECTORS),
    (exercises.product, {name: (text, MOVED) for name, text in PRODUCTS.items()}, NO_PRODUCTS),
    (exercises.bytes_per_output, {name: (frugal(body), WITHIN_SAID) for name, body in WITHIN.items()},
     {name: (frugal(body), reason) for name, (body, reason) in NOT_WITHIN.items()}),
)  # fmt: skip
