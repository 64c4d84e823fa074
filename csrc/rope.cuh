// rope.cuh: per-head RMS norm, then rotary position embedding on the first rotary_dim elements
// Computes  for i in [0, head_dim): y[i] = x[i] / rms(x) * (1 + weight[i])
//           for i in [0, rotary_dim / 2):
//               a = y[i], b = y[i + rotary_dim / 2]
//               y[i] = a * cos[i] - b * sin[i],  y[i + rotary_dim / 2] = b * cos[i] + a * sin[i]
// Shapes    x, y [head_dim] fp32;  weight [head_dim];  cos, sin [rotary_dim / 2] fp32, the row of this position
// Work      one warp per head
// Checked   tests/csrc/test_kernels.py
#pragma once
#include "block.cuh"
#include "dims.cuh"

// x is anything with x[i]. As a pointer it may be y.
template <typename Input>
__device__ __forceinline__ void warp_head_norm(Input x, const float* weight, float* y) {
    warp_normalise<head_dim>(
        x, [&](int i) { return weight[i]; },
        [](float squares) { return rsqrtf(squares / head_dim + rms_norm_eps); },
        [&](int i, float value, float with) { y[i] = value * (1.0f + with); });
}

// Rotates y in place.
__device__ __forceinline__ void warp_rope(float* y, const float* cos, const float* sin) {
    for (int i = lane_id(); i < rotary_dim / 2; i += warp_threads) {
        const float a = y[i], b = y[i + rotary_dim / 2];
        y[i] = a * cos[i] - b * sin[i];
        y[i + rotary_dim / 2] = b * cos[i] + a * sin[i];
    }
}
