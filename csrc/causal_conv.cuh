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

// What a channel's step reads besides x. It can be loaded before x is there.
struct ConvWindow {
    float weight[conv_kernel], input[conv_kernel - 1];
};

__device__ __forceinline__ ConvWindow load_conv_window(int channel, const float* weight, const float* conv_state) {
    ConvWindow window;
#pragma unroll
    for (int j = 0; j < conv_kernel; ++j) window.weight[j] = weight[channel * conv_kernel + j];
#pragma unroll
    for (int j = 0; j < conv_kernel - 1; ++j) window.input[j] = conv_state[channel * (conv_kernel - 1) + j];
    return window;
}

__device__ __forceinline__ float causal_conv_step(float x, int channel, const ConvWindow& window, float* conv_state) {
    float* state = conv_state + channel * (conv_kernel - 1);
    float sum = window.weight[conv_kernel - 1] * x;
#pragma unroll
    for (int j = 0; j < conv_kernel - 1; ++j) {
        sum = fmaf(window.weight[j], window.input[j], sum);
        if (j > 0) state[j - 1] = window.input[j];
    }
    state[conv_kernel - 2] = x;
    return silu(sum);
}

__device__ __forceinline__ float causal_conv_step(float x, int channel, const float* weight, float* conv_state) {
    return causal_conv_step(x, channel, load_conv_window(channel, weight, conv_state), conv_state);
}
