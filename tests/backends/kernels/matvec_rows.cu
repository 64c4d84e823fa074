// matvec_rows.cu: y = W x for a large W in bf16, to time the virtual GPU: one warp per row, 16-byte loads, a fixed grid
#include "primitives.cuh"

extern "C" __global__ void matvec_rows(const bf16* weight, const float* x, float* y, int rows, int columns) {
    DYNAMIC_SHARED(float, x_shared);
    for (int i = threadIdx.x; i < columns; i += blockDim.x) x_shared[i] = x[i];
    __syncthreads();
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int row = blockIdx.x * warps + threadIdx.x / 32; row < rows; row += gridDim.x * warps) {
        float sum = 0;
        for (int i = lane * 8; i < columns; i += 256) {
            const bf16x8 w = load_weights(weight + static_cast<long long>(row) * columns + i);
            for (int j = 0; j < 4; ++j)
                sum += even(w.pair[j]) * x_shared[i + 2 * j] + odd(w.pair[j]) * x_shared[i + 2 * j + 1];
        }
        for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
        if (lane == 0) y[row] = sum;
    }
}
