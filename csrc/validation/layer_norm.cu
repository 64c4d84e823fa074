// layer_norm.cu: layer norm, by one warp per row and by one block per row
// Computes  for each row:
//               mean = sum(x) / C
//               rstd = 1 / sqrt(sum((x - mean)^2) / C + 1e-5)
//               for c in [0, C): out[c] = (x[c] - mean) * rstd * weight[c] + bias[c]
//           norm_block computes sum((x - mean)^2) / C as sum(x^2) / C - mean^2, so it reads x twice instead of three
//           times
// Shapes    x, out [rows, C] fp32; weight, bias [C]; mean, rstd [rows]
// Work      norm_warp: rows / (warps per block) blocks; norm_block: `rows` blocks of at most 32 warps
// Traffic   x is read from DRAM once, out written once; the last pass streams (ld and st with .cs)
//           All pointers are __restrict__, as published, so weight and bias take the read-only path
// Checked   tests/measure/records/test_validation.py
// Source    karpathy/llm.c, dev/cuda/layernorm_forward.cu, kernels 3 and 5; written anew, without cooperative groups
#define NORM(name)                                                                                             \
    extern "C" __global__ void name(float* __restrict__ out, float* __restrict__ mean, float* __restrict__ rstd, \
                                    const float* __restrict__ in, const float* __restrict__ weight,            \
                                    const float* __restrict__ bias, int rows, int C)

__device__ __forceinline__ float warp_total(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

NORM(norm_warp) {
    const int lane = threadIdx.x % 32, row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    const float* x = in + row * C;
    float sum = 0.0f;
    for (int c = lane; c < C; c += 32) sum += x[c];
    const float m = warp_total(sum) / C;
    if (lane == 0 && mean != nullptr) __stcs(mean + row, m);
    float squares = 0.0f;
    for (int c = lane; c < C; c += 32) {
        const float difference = x[c] - m;
        squares += difference * difference;
    }
    const float s = rsqrtf(warp_total(squares) / C + 1e-5f);
    if (lane == 0 && rstd != nullptr) __stcs(rstd + row, s);
    float* o = out + row * C;
    for (int c = lane; c < C; c += 32) {
        const float n = s * (__ldcs(x + c) - m);
        __stcs(o + c, n * weight[c] + bias[c]);
    }
}

NORM(norm_block) {
    __shared__ float sums[32];
    __shared__ float squares[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, row = blockIdx.x;
    const float* x = in + row * C;
    float sum = 0.0f, square = 0.0f;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        const float v = x[c];
        sum += v;
        square += v * v;
    }
    sum = warp_total(sum);
    square = warp_total(square);
    if (lane == 0) {
        sums[warp] = sum;
        squares[warp] = square;
    }
    __syncthreads();  // all warps have stored their sums, which every warp now adds
    const float m = warp_total(lane < warps ? sums[lane] : 0.0f) / C;
    const float m2 = warp_total(lane < warps ? squares[lane] : 0.0f) / C;
    const float s = rsqrtf(m2 - m * m + 1e-5f);
    if (threadIdx.x == 0 && mean != nullptr) __stcs(mean + row, m);
    if (threadIdx.x == 0 && rstd != nullptr) __stcs(rstd + row, s);
    float* o = out + row * C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        const float n = s * (__ldcs(x + c) - m);
        __stcs(o + c, n * weight[c] + bias[c]);
    }
}
