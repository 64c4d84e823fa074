"""RMSNorm and the matrix-vector product of csrc/per_op.cu, written in Triton. Importing this file needs Triton.

Checked   tests/comparison/test_beside.py, on the PTX that Triton makes of them (stored.py)
"""

import triton
import triton.language as tl


@triton.jit
def rms_norm(x, weight, y, eps, n: tl.constexpr, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)  # one block, for all n elements
    inside = c < n
    value = tl.load(x + c, mask=inside, other=0.0)
    factor = 1.0 + tl.load(weight + c, mask=inside, other=0.0)
    scale = tl.rsqrt(tl.sum(value * value) / n + eps)
    tl.store(y + c, value * scale * factor, mask=inside)


@triton.jit
def matvec(W, x, y, rows, cols: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # a block has ROWS rows ...
    sums = tl.zeros((ROWS, COLS), tl.float32)
    for first in range(0, cols, COLS):  # ... and takes COLS columns of them at a time
        c = first + tl.arange(0, COLS)
        inside = (r < rows)[:, None] & (c < cols)[None, :]
        weights = tl.load(W + r[:, None] * cols + c[None, :], mask=inside, other=0.0)
        sums += weights.to(tl.float32) * tl.load(x + c, mask=c < cols, other=0.0)[None, :]
    tl.store(y + r, tl.sum(sums, axis=1), mask=r < rows)


# Compile-time arguments, and warps of a block. On the clock's RTX 3090 and H200 they are the best, or within 1 % of the
# best, of what was tried. rms_norm: 1 to 32 warps. matvec: 1 to 32 rows, 256 to 1,024 columns and 1 to 8 warps, 64
# combinations, each with a sum over the columns in the loop and with one after it.
TILES = {
    "rms_norm": ({"n": 1024, "BLOCK": 1024}, 2),
    "matvec": ({"cols": 1024, "ROWS": 8, "COLS": 256}, 4),
}
