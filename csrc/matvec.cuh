// matvec.cuh: dot products of bf16 weight rows with an fp32 vector
// Computes  y[r] = sum_c W[r, c] * x[c], fp32 accumulation
// Shapes    W [rows, cols] bf16, row-major, 16-byte aligned; x [cols] fp32, staged in shared memory
// Work      one warp a row (or a few rows at once); a lane takes 8 neighbouring weights, the warp 256
// Traffic   every weight is read once, 16 bytes a lane, 512 contiguous bytes a warp
// Needs     cols a multiple of 8
// Checked   tests/csrc/test_kernels.py
#pragma once
#include "block.cuh"

constexpr int lane_weights = 8;                      // bf16 in one 16-byte load
constexpr int chunk = warp_threads * lane_weights;   // weights that a warp covers with one load
constexpr int loads_in_flight = 8;                   // 16-byte loads a lane issues before it waits

// Where element c of x stands in shared memory. A lane needs 8 neighbouring floats, two 16-byte reads; in natural
// order lanes 0 and 4 would start in the same bank. So a chunk is stored as all lanes' first four floats, then all
// lanes' last four: both reads run through 128 neighbouring floats.
__device__ __forceinline__ int staged(int c) {
    const int in_chunk = c % chunk;
    return c - in_chunk + (in_chunk % 8 / 4) * (chunk / 2) + in_chunk / 8 * 4 + in_chunk % 4;
}

// Floats of shared memory that a staged vector of n elements takes: whole chunks.
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

// How many of `chunks` to load together: the most that divide them, up to `most`, so that no group is ragged.
__device__ constexpr int group_size(int chunks, int most) {
    while (chunks % most != 0) --most;
    return most;
}

// One warp, `rows` rows at once: sum[r] = W_r . x in every lane. w[r] points at the row's first weight.
template <int cols, int rows>
__device__ __forceinline__ void warp_dot(const bf16* const (&w)[rows], const float* x, float (&sum)[rows]) {
    constexpr int chunks = cols / chunk;  // whole chunks; a shorter tail comes after them
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

// The whole grid: out[row] = residual[row] + W[row] . x for every row. x is staged in shared memory.
template <int cols>
__device__ __forceinline__ void grid_matvec_residual(const bf16* W, const float* x, int rows, const float* residual,
                                                     float* out) {
    for (int row = grid_warp(); row < rows; row += grid_warps()) {
        const float before = residual[row];  // asked for now, needed after the weights
        const bf16* const w[1] = {W + static_cast<size_t>(row) * cols};
        float sum[1];
        warp_dot<cols>(w, x, sum);
        if (lane_id() == 0) out[row] = before + sum[0];
    }
}

// One warp asks L2 for the weights of a row before it may have the vector: see wait_for_predecessor().
template <int cols>
__device__ __forceinline__ void prefetch_row(const bf16* w) {
    constexpr int line = 128 / sizeof(bf16);
#pragma unroll
    for (int c = lane_id() * line; c < cols; c += warp_threads * line) prefetch(w + c);
}

// The row of W that the warp takes first in a phase that deals single rows.
template <int cols>
__device__ __forceinline__ void prefetch_first_row(const bf16* W, int rows) {
    if (grid_warp() < rows) prefetch_row<cols>(W + static_cast<size_t>(grid_warp()) * cols);
}
