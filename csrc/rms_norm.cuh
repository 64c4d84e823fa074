// rms_norm.cuh: the two RMS norms of the model
// Computes  squares = sum over i in [0, n) of x[i]^2
//           for i in [0, n): y[i] = x[i] / sqrt(squares / n + eps) * (1 + weight[i])            zero-centred
//           for i in [0, n): y[i] = x[i] / sqrt(squares / n + eps) * weight[i] * silu(z[i])     gated, for each head
// Shapes    x, weight [n] fp32;  gated: x, z [heads, n], weight [n]
// Work      zero-centred: one block per vector;  gated: one warp per head
// Checked   tests/csrc/test_kernels.py
#pragma once
#include "activations.cuh"
#include "block.cuh"
#include "dims.cuh"

// Calls store(i, y[i]) for each i in [0, n). `scratch` is block_warps floats of shared memory.
template <int n, typename Store>
__device__ __forceinline__ void block_rms_norm(const float* x, const float* weight, float* scratch, Store store) {
    constexpr int per_thread = (n + block_threads - 1) / block_threads;
    float value[per_thread], factor[per_thread];  // both loaded now: the sum hides the latency of the weights
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < per_thread; ++i) {
        const int c = threadIdx.x + i * block_threads;  // the last ones may exceed n
        value[i] = c < n ? x[c] : 0.0f;
        factor[i] = c < n ? (1.0f + weight[c]) : 0.0f;
        squares = fmaf(value[i], value[i], squares);
    }
    const float scale = rsqrtf(block_sum(squares, scratch) / n + rms_norm_eps);
#pragma unroll
    for (int i = 0; i < per_thread; ++i) {
        const int c = threadIdx.x + i * block_threads;
        if (c < n) store(c, value[i] * scale * factor[i]);
    }
}

// One warp takes one head and calls store(i, y[i]) for each i in [0, n).
template <int n, typename Store>
__device__ __forceinline__ void warp_gated_rms_norm(const float* x, const float* z, const float* weight, Store store) {
    struct Pair {
        float weight, z;
    };
    warp_normalise<n>(
        x, [&](int i) { return Pair{weight[i], z[i]}; },
        [](float squares) { return rsqrtf(squares / n + rms_norm_eps); },
        [&](int i, float value, Pair with) { store(i, value * with.weight * silu(with.z)); });
}
