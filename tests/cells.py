"""A right cell that several tests use: the product of a matrix and a vector, with one warp per row."""

A_WARP_A_ROW = """\
const int row = blockIdx.x * block_warps + warp_id();
if (row >= rows) return;
float sum = 0.0f;
for (int c = lane_id(); c < cols; c += 32) sum += to_float(W[row * cols + c]) * x[c];
sum = warp_sum(sum);
if (lane_id() == 0) y[row] = sum;
"""
