// matvec.cuh: dot products of bf16 weight rows with an fp32 vector
// Computes  for r in [0, rows):
//               y[r] = 0
//               for c in [0, cols): y[r] += W[r][c] * x[c]        in fp32
// Shapes    W [rows, cols] bf16, row-major, 16-byte aligned; x [cols] fp32, staged in shared memory
// Work      one warp per row, or per few rows at once; per load a lane takes 8 neighbouring weights, the warp 256
// Traffic   every weight is read once, 16 bytes per lane, 512 contiguous bytes per warp
// Needs     cols a multiple of 8
// Checked   tests/csrc/test_kernels.py
#pragma once
#include "block.cuh"

constexpr int lane_weights = 8;                      // bf16 in one 16-byte load
constexpr int chunk = warp_threads * lane_weights;   // weights that a warp covers with one load
constexpr int loads_in_flight = 8;                   // 16-byte loads a lane issues before it waits

// The place in shared memory of element c of x. A lane needs 8 neighbouring floats, which are two 16-byte reads. In
// natural order lanes 0 and 4 would start in the same bank. So a chunk holds first the lower four floats of every lane,
// then the upper four. Each of the two reads then covers 128 neighbouring floats.
__device__ __forceinline__ int staged(int c) {
    const int in_chunk = c % chunk;
    return c - in_chunk + (in_chunk % 8 / 4) * (chunk / 2) + in_chunk / 8 * 4 + in_chunk % 4;
}

// The number of floats that a staged vector of n elements takes in shared memory: whole chunks.
__device__ constexpr int staged_size(int n) { return (n + chunk - 1) / chunk * chunk; }

__device__ __forceinline__ float dot8(bf16x8 w, float4 lo, float4 hi, float sum) {
    sum = fmaf(even(w.pair[0]), lo.x, sum);
    sum = fmaf(odd(w.pair[0]), lo.y, sum);
    sum = fmaf(even(w.pair[1]), lo.z, sum);
    sum = fmaf(odd(w.pair[1]), lo.w, sum);
    sum = fmaf(even(w.pair[2]), hi.x, sum);
    sum = fmaf(odd(w.pair[2]), hi.y, sum);
    sum = fmaf(even(w.pair[3]), hi.z, sum);
    return fmaf(odd(w.pair[3]), hi.w, sum);
}

// The number of chunks to load together: the largest divisor of `chunks` up to `most`, so that all groups are full.
__device__ constexpr int group_size(int chunks, int most) {
    while (chunks % most != 0) --most;
    return most;
}

// One warp computes sum[r] = W_r . x for r in [0, rows), and every lane gets all sums. w[r] is the row's first weight.
template <int cols, int rows>
__device__ __forceinline__ void warp_dot(const bf16* const (&w)[rows], const float* x, float (&sum)[rows]) {
    constexpr int chunks = cols / chunk;  // whole chunks; the rest of the row follows after the loop
    constexpr int group = group_size(chunks, loads_in_flight / rows);
    const int lane = lane_id();
#pragma unroll
    for (int r = 0; r < rows; ++r) sum[r] = 0.0f;

#pragma unroll 1
    for (int first = 0; first < chunks; first += group) {
        bf16x8 weights[group][rows];
#pragma unroll
        for (int i = 0; i < group; ++i)
#pragma unroll
            for (int r = 0; r < rows; ++r)
                weights[i][r] = load_weights(w[r] + (first + i) * chunk + lane * lane_weights);
#pragma unroll
        for (int i = 0; i < group; ++i) {
            const float* at = x + (first + i) * chunk + lane * 4;  // see staged()
            const float4 lo = *reinterpret_cast<const float4*>(at);
            const float4 hi = *reinterpret_cast<const float4*>(at + chunk / 2);
#pragma unroll
            for (int r = 0; r < rows; ++r) sum[r] = dot8(weights[i][r], lo, hi, sum[r]);
        }
    }
    if (cols % chunk != 0 && lane * lane_weights < cols % chunk) {
        const float* at = x + chunks * chunk + lane * 4;
        const float4 lo = *reinterpret_cast<const float4*>(at);
        const float4 hi = *reinterpret_cast<const float4*>(at + chunk / 2);
#pragma unroll
        for (int r = 0; r < rows; ++r)
            sum[r] = dot8(load_weights(w[r] + chunks * chunk + lane * lane_weights), lo, hi, sum[r]);
    }
#pragma unroll
    for (int r = 0; r < rows; ++r) sum[r] = warp_sum(sum[r]);
}

// The grid computes out[row] = residual[row] + W[row] . x for row in [0, rows). x is staged in shared memory.
template <int cols>
__device__ __forceinline__ void grid_matvec_residual(const bf16* W, const float* x, int rows, const float* residual,
                                                     float* out) {
    for (int row = grid_warp(); row < rows; row += grid_warps()) {  // a warp takes every grid_warps()-th row
        const float before = residual[row];  // loaded early, so that it has arrived when the sum is ready
        const bf16* const w[1] = {W + static_cast<size_t>(row) * cols};
        float sum[1];
        warp_dot<cols>(w, x, sum);
        if (lane_id() == 0) out[row] = before + sum[0];
    }
}

// One warp prefetches a row of weights into L2 while the vector is not ready yet: see wait_for_predecessor().
template <int cols>
__device__ __forceinline__ void prefetch_row(const bf16* w) {
    constexpr int line = 128 / sizeof(bf16);
#pragma unroll
    for (int c = lane_id() * line; c < cols; c += warp_threads * line) prefetch(w + c);
}

// Prefetches the first row of W that this warp will take in grid_matvec_residual() and similar loops.
template <int cols>
__device__ __forceinline__ void prefetch_first_row(const bf16* W, int rows) {
    if (grid_warp() < rows) prefetch_row<cols>(W + static_cast<size_t>(grid_warp()) * cols);
}
