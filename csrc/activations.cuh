// activations.cuh: the four scalar functions of the model
#pragma once
#include "primitives.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }
__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }  // as PyTorch

// The log decay of a DeltaNet head: g = -exp(A_log) * softplus(a + dt_bias), at most 0.
__device__ __forceinline__ float log_decay(float a, float A_log, float dt_bias) {
    return -expf(A_log) * softplus(a + dt_bias);
}
