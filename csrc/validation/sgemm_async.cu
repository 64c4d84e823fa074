// sgemm_async.cu: a matrix product that copies its tiles with cp.async and waits for each at once
// Computes  for i, j in [0, N): C[i][j] = sum over k in [0, depth) of A[i][k] * B[k][j], if B has one value everywhere
// Shapes    A, B, C [N, N] fp32, row-major; N and depth multiples of 16
// Work      block (16, 16) owns a tile of C, thread (x, y) an element; a quarter of the threads copy 16 bytes of each
//           tile
// Slow by choice: there is one buffer, so the copies are not hidden. As in the source, B's tile is read from the same
//           place as A's. The source fills B with one value, so the result is right.
// Checked   tests/measure/records/test_validation.py
// Source    NVIDIA/cuda-samples, globalToShmemAsyncCopy, AsyncCopyLargeChunk; written anew
#include "primitives.cuh"

__device__ __forceinline__ void copy_four(float* to, const float* from) {
    const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}

extern "C" __global__ void async_fours(int N, int depth, const float* A, const float* B, float* C) {
    __shared__ alignas(16) float As[16][16], Bs[16][16];
    const int x = threadIdx.x, y = threadIdx.y, row = blockIdx.x / TILES_X * 16, column = blockIdx.x % TILES_X * 16;
    float sum = 0.0f;
    for (int k0 = 0; k0 < depth; k0 += 16) {
        if (4 * x < 16) {
            const int at = (row + y) * N + k0 + 4 * x;
            copy_four(&As[y][4 * x], A + at);
            copy_four(&Bs[y][4 * x], B + at);
            asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 16; ++k) sum += As[y][k] * Bs[k][x];
        __syncthreads();
    }
    C[(row + y) * N + column + x] = sum;
}
