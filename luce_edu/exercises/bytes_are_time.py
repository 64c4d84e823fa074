"""Exercises of notebook 05: count sectors, write a matrix-vector product, keep a budget of bytes."""

from __future__ import annotations

import random
from functools import partial

import torch
import torch.nn.functional as F

from luce_edu.exercises.base import Exercise, WrongAnswer, as_number, call, close
from luce_edu.exercises.kernel import kernel_exercise
from luce_edu.inline.trial import Mistake, Verdict

SECTOR = 32
LANES = 32
BUDGET = 2304  # bytes per output: 2 * 1024 of W, and the 4 * 1024 of x shared by 16 rows


def _every_byte_once(verdict: Verdict) -> str:
    W = verdict.traffic["W"]
    if W.moved_read > W.distinct_read:
        raise WrongAnswer(
            f"The results are right, but the kernel moves {W.moved_read / W.distinct_read:.3g} times the bytes of W. "
            "Write down the columns that lanes 0, 1 and 2 read in the same iteration: how many bytes are they apart?"
        )
    return f"Each byte of W moves once: {W.moved_read:,} bytes in all, which is the minimum."


def _touched(start: int, stride: int, size: int) -> int:
    """Count the sectors that contain any byte of any lane."""
    return len({(start + lane * stride + byte) // SECTOR for lane in range(LANES) for byte in range(size)})


def _sectors(answer) -> str:
    cases = [(0, 2, 2), (0, 16, 16), (0, 2048, 2), (0, 0, 4), (2, 2, 2), (16, 16, 16), (28, 4, 4), (0, 48, 16)]
    for _ in range(40):
        size = random.choice((2, 4, 8, 16))
        start = size * random.randrange(512 // size)
        stride = size * random.choice((0, 1, 2, 3, 5, 6, 7, 12, 24, random.randrange(64)))
        cases.append((start, stride, size))
    for start, stride, size in cases:
        got = call(answer, start, stride, size)
        hint = _sectors_hint(start, stride, size, as_number(got))
        hint = f"Case: start {start}, stride {stride}, size {size}. {hint}"
        close(got, _touched(start, stride, size), tolerance=0, hint=hint)
    return (
        f"Checked on {len(cases)} loads. 32 lanes that read 2 bytes each touch 2 sectors side by side, and 32 sectors "
        "when they are 2,048 bytes apart: what moves is whole sectors, however few bytes are requested."
    )


def _sectors_hint(start: int, stride: int, size: int, got: float | None) -> str:
    """Name the mistake that gives `got`; otherwise say what is special about this case."""
    first, last = start, start + (LANES - 1) * stride + size - 1
    mistakes = {
        "This is the number of requested bytes over 32. Lanes may share a sector, and a sector may have gaps.": size,
        "This counts cache lines of 128 bytes.": len({(start + lane * stride) // 128 for lane in range(LANES)}),
        "This counts all sectors from the first to the last. Some of them no lane touches.":
            last // SECTOR - first // SECTOR + 1,
        "This counts one sector per lane. Here some lanes share a sector.": LANES,
    }  # fmt: skip
    if named := next((name for name, count in mistakes.items() if got == count), None):
        return named
    if stride == 0:
        return "All lanes read the same bytes here."
    if start % SECTOR and stride == size:
        return "The bytes are side by side, but the first is not at the start of a sector."
    if stride >= SECTOR:
        return "Here no two lanes share a sector."
    return "Write down the sectors of lanes 0 and 1, by number. Is each sector counted once?"


sectors = Exercise(
    name="sectors",
    judge=_sectors,
    spec="The number of 32-byte sectors that one load of a warp touches.",
    skeleton='''\
def sectors(start, stride, size):
    """Return how many sectors a load touches: lane i of 32 reads `size` bytes from byte start + i * stride on.

    start and stride are multiples of size, which is 2, 4, 8 or 16, as the hardware demands.
    """
    return ...
''',
    hole="return ...",
    budget="10 minutes, one or two lines",
)


def _some_columns(inputs, shape, *, turn, lanes):
    """The product over some columns only: the first `lanes` of every `turn`."""
    kept = torch.arange(shape["cols"]) % turn < lanes
    return {"y": F.linear(inputs["x"][kept], inputs["W"].float()[:, kept])}


def _columns_first(inputs, shape):
    return {"y": inputs["x"] @ inputs["W"].float().reshape(shape["cols"], shape["rows"])}


product = kernel_exercise(
    "product",
    kernel="product",
    against="F.linear",
    grid="rows/8",
    accept=_every_byte_once,
    hint="Which row does a warp compute, and does this row exist? Which columns does a lane take? Where are the sums "
    "of the 32 lanes added, and which lane writes the result?",
    mistakes=(
        Mistake("y holds the sum of lane 0 only.", partial(_some_columns, turn=LANES, lanes=1)),
        Mistake("y holds only the first 32 columns.", partial(_some_columns, turn=1 << 20, lanes=LANES)),
        Mistake("W is read as if it were stored by columns. Element (r, c) is at W[r * cols + c].", _columns_first),
    ),
    spec="Write a whole kernel for a matrix times a vector. Each byte of W moves once.",
    skeleton="""\
// y[r] = sum over c of W[r, c] * x[c]. Launched as product<<<(rows + 7) / 8, 256>>>(W, x, y, rows, cols).
// Write the whole kernel here: product(const bf16* W, const float* x, float* y, int rows, int cols)
""",
    hole="// Write the whole kernel here: product(const bf16* W, const float* x, float* y, int rows, int cols)",
    budget="15 minutes, about ten lines",
)


def _within_budget(verdict: Verdict) -> str:
    rows, cols = verdict.shape["rows"], verdict.shape["cols"]
    W, x = (verdict.traffic[name].moved_read / rows for name in ("W", "x"))
    moved = f"{W + x:,.0f} bytes per output, {W:,.0f} of W and {x:,.0f} of x"
    if not W + x <= BUDGET:
        help_W, help_x = "W is read twice, or its loads are not coalesced.", "For how many rows is x read once?"
        raise WrongAnswer(
            f"The results are right, but the kernel moves {moved}. The budget is {BUDGET:,}. "
            + (help_W if W > 2 * cols else help_x)
        )
    return f"The kernel moves {moved}, within the budget of {BUDGET:,}."


bytes_per_output = kernel_exercise(
    "bytes_per_output",
    kernel="frugal",
    against="F.linear",
    grid="rows/16",
    smem="4*cols+1024",
    accept=_within_budget,
    hint="Which threads write the shared memory that a warp reads, and is it complete by then? (Shared memory starts "
    "as NaN, so a sum over unwritten elements is NaN.) What does the last block do where it has fewer than 16 rows?",
    spec=f"Move at most {BUDGET:,} bytes of W and x together per output, at 1,024 columns.",
    skeleton="""\
#include "matvec.cuh"

// A block of 8 warps computes 16 rows. It has 4 * cols + 1024 bytes of dynamic shared memory.
__global__ void frugal(const bf16* W, const float* x, float* y, int rows, int cols) {
    const int first = 16 * blockIdx.x, last = first + 16 < rows ? first + 16 : rows;
    for (int row = first + warp_id(); row < last; row += block_warps) {
        float sum = 0.0f;
        for (int c = lane_id(); c < cols; c += 32) sum += to_float(W[row * cols + c]) * x[c];
        sum = warp_sum(sum);
        if (lane_id() == 0) y[row] = sum;
    }
}
""",
    hole="""\
    for (int row = first + warp_id(); row < last; row += block_warps) {
        float sum = 0.0f;
        for (int c = lane_id(); c < cols; c += 32) sum += to_float(W[row * cols + c]) * x[c];
        sum = warp_sum(sum);
        if (lane_id() == 0) y[row] = sum;
    }
""",
    budget="20 minutes, five to twenty lines",
)
