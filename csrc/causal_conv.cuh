// causal_conv.cuh: one token of the depthwise causal convolution, with SiLU
// Computes  for each channel c:
//               window = the last conv_kernel - 1 inputs of c, oldest first, then x[c]
//               y[c] = silu(sum over j in [0, conv_kernel) of weight[c][j] * window[j])
// Shapes    weight [conv_dim, conv_kernel] fp32;  conv_state [conv_dim, conv_kernel - 1] fp32, oldest first
// Work      one thread per channel; it shifts conv_state by one and appends x[c]
// Checked   tests/csrc/test_kernels.py
#pragma once
#include "activations.cuh"
#include "dims.cuh"

__device__ __forceinline__ float causal_conv_step(float x, int channel, const float* weight, float* conv_state) {
    const float* w = weight + channel * conv_kernel;
    float* state = conv_state + channel * (conv_kernel - 1);
    float input[conv_kernel - 1];
#pragma unroll
    for (int j = 0; j < conv_kernel - 1; ++j) input[j] = state[j];
    float sum = w[conv_kernel - 1] * x;
#pragma unroll
    for (int j = 0; j < conv_kernel - 1; ++j) {
        sum = fmaf(w[j], input[j], sum);
        if (j > 0) state[j - 1] = input[j];
    }
    state[conv_kernel - 2] = x;
    return silu(sum);
}
