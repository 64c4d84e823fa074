// gemv.cu: matrix times vector, in fp16 by blocks of X x Y threads, and in integers by one thread per row
// Computes  for each row r: y[r] = sum over c of W[r][c] * x[c]
// Shapes    gemv_half: W [n, n], x [n], y [n] fp16, summed in fp32, n a multiple of 8;  mad_rows: W [rows, cols],
//           x [cols], y [rows] uint32; c goes over the first `depth` columns, depth = cols for the whole product
// Work      gemv_half: thread (a, b) of a block takes row blockIdx.y * Y + b, and every X-th group of eight elements
//           of it: per_thread = n / X elements. X is a power of two.
//           mad_rows: thread i takes row i. Slow by choice: the addresses of a warp's load are `cols` words apart.
// Checked   tests/measure/records/test_validation.py
// Source    wangsiping97/FastGEMV; R100001/Programming-Massively-Parallel-Processors, mat_vec; written anew
struct alignas(16) Eight {
    unsigned short half[8];
};

__device__ __forceinline__ float from_half(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ unsigned short to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// Lane 0 gets the sum over lanes [0, min(lanes, 32)).
__device__ __forceinline__ float lanes_total(float value, unsigned lanes) {
    if (lanes >= 32) value += __shfl_down_sync(0xffffffffu, value, 16);
    if (lanes >= 16) value += __shfl_down_sync(0xffffffffu, value, 8);
    if (lanes >= 8) value += __shfl_down_sync(0xffffffffu, value, 4);
    if (lanes >= 4) value += __shfl_down_sync(0xffffffffu, value, 2);
    if (lanes >= 2) value += __shfl_down_sync(0xffffffffu, value, 1);
    return value;
}

extern "C" __global__ void gemv_half(const unsigned short* W, const unsigned short* x, unsigned short* y, unsigned n,
                                     unsigned per_thread) {
    const unsigned row = blockIdx.y * blockDim.y + threadIdx.y;
    const Eight* w = reinterpret_cast<const Eight*>(W);
    const Eight* v = reinterpret_cast<const Eight*>(x);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < per_thread / 8; ++i) {
        const unsigned at = threadIdx.x + i * blockDim.x;
        if (at < n / 8) {
            const Eight a = v[at], b = w[row * (n / 8) + at];
#pragma unroll
            for (int k = 0; k < 8; ++k) sum += from_half(a.half[k]) * from_half(b.half[k]);
        }
    }
    sum = lanes_total(sum, blockDim.x);
    if (blockDim.x <= 32) {
        if (threadIdx.x == 0) y[row] = to_half(sum);
        return;
    }
    // A row has several warps, which exchange their sums in shared memory: [Y, X / 32].
    __shared__ float warp_sums[32][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane == 0) warp_sums[threadIdx.y][warp] = sum;
    __syncthreads();
    sum = threadIdx.x < blockDim.x / 32 ? warp_sums[threadIdx.y][lane] : 0.0f;
    if (warp == 0) sum = lanes_total(sum, blockDim.x / 32);
    if (threadIdx.x == 0) y[row] = to_half(sum);
}

extern "C" __global__ void mad_rows(const unsigned* W, const unsigned* x, unsigned* y, int rows, int cols,
                                    int depth) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    unsigned sum = 0u;
    for (int c = 0; c < depth; ++c) sum += W[row * cols + c] * x[c];
    y[row] = sum;
}
