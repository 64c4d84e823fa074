// sgemm_checked.cu: another author's ladder of matrix products, with 64-bit indices and a check of every bound
// Computes  for i in [0, M), j in [0, N):
//               C[i][j] = alpha * (sum over k in [0, depth) of A[i][k] * B[k][j]) + beta * C[i][j]
// Shapes    A [M, K], B [K, N], C [M, N] fp32, row-major; any sizes, but M, N and depth whole tiles for *_fours
// Work      blocks are numbered in one dimension, TILES_X of them in x: see sgemm.cu
//           *_fours load 16 bytes at a time, the others 4, so only some threads of a block load a tile
// Slow by choice: 64-bit index arithmetic and bounds checks stay, as they were timed. The *_fours also clear elements
//           beyond the end of a row, which do not occur here.
// Checked   tests/measure/records/test_validation.py
// Source    leimao/CUDA-GEMM-Optimization, README.md and steps 00 to 05; written anew
#include "primitives.cuh"

typedef unsigned long long size;

#define CHECKED(name)                                                                                            \
    extern "C" __global__ void name(size M, size N, size K, size depth, float alpha, const float* A, const float* B, \
                                    float beta, float* C)
#define PASS_ON M, N, K, depth, alpha, A, B, beta, C

__device__ __forceinline__ size block_x() { return blockIdx.x % TILES_X; }
__device__ __forceinline__ size block_y() { return blockIdx.x / TILES_X; }

__device__ __forceinline__ void one_each(size M, size N, size K, size depth, float alpha, const float* A,
                                         const float* B, float beta, float* C, size row, size column) {
    if (row >= M || column >= N) return;
    float sum = 0.0f;
    for (size k = 0; k < depth; ++k) sum += A[row * K + k] * B[k * N + column];
    C[row * N + column] = alpha * sum + beta * C[row * N + column];
}

// Steps 00 and 01. Block (32, 32). Neighbouring threads take neighbouring rows in 00, neighbouring columns in 01.
CHECKED(checked_naive) { one_each(PASS_ON, block_x() * 32 + threadIdx.x, block_y() * 32 + threadIdx.y); }
CHECKED(checked_coalesced) { one_each(PASS_ON, block_y() * 32 + threadIdx.y, block_x() * 32 + threadIdx.x); }

// Copies a tile of rows x columns to shared memory, transposed or not. Its first element is [first_row, first_column]
// of a matrix of height x width whose rows are `pitch` elements apart. t: this thread's index in the block.
template <int rows, int columns, int threads, bool transposed>
__device__ __forceinline__ void load_tile(const float* from, size pitch, size height, size width, size first_row,
                                          size first_column, size t, float* tile) {
#pragma unroll
    for (size i = 0; i < rows * columns / threads; ++i) {
        const size r = (t + i * threads) / columns, c = (t + i * threads) % columns;
        float value = 0.0f;
        if (first_row + r < height && first_column + c < width)
            value = from[(first_row + r) * pitch + first_column + c];
        tile[transposed ? c * rows + r : r * columns + c] = value;
    }
}

struct alignas(16) Four {
    float value[4];
};

template <int rows, int columns, int threads, bool transposed>
__device__ __forceinline__ void load_tile_fours(const float* from, size pitch, size height, size width, size first_row,
                                                size first_column, size t, float* tile) {
    constexpr size fours = columns / 4;
#pragma unroll
    for (size i = 0; i < (rows * fours + threads - 1) / threads; ++i) {
        const size r = (t + i * threads) / fours, c = (t + i * threads) % fours * 4;
        Four v = {};
        if (first_row + r < height && first_column + c < width)
            v = *reinterpret_cast<const Four*>(from + (first_row + r) * pitch + first_column + c);
        if (first_column + c + 4 > width) {  // clears elements beyond the end of the row
#pragma unroll
            for (size j = 0; j < 4; ++j)
                if (first_column + c + j >= width) v.value[j] = 0.0f;
        }
        if (r < rows && c < columns) {
            if (transposed)
#pragma unroll
                for (size j = 0; j < 4; ++j) tile[(c + j) * rows + r] = v.value[j];
            else
                *reinterpret_cast<Four*>(tile + r * columns + c) = v;
        }
    }
}

// Copies the tiles of A [BM, BK] and B [BK, BN] at k0. As is [BK, BM] if transposed.
template <int BM, int BN, int BK, int threads, bool transposed, bool fours>
__device__ __forceinline__ void load_tiles(size M, size N, size K, size depth, const float* A, const float* B, size k0,
                                           size t, float* As, float* Bs) {
    if (fours) {
        load_tile_fours<BM, BK, threads, transposed>(A, K, M, depth, block_y() * BM, k0, t, As);
        load_tile_fours<BK, BN, threads, false>(B, N, depth, N, k0, block_x() * BN, t, Bs);
    } else {
        load_tile<BM, BK, threads, transposed>(A, K, M, depth, block_y() * BM, k0, t, As);
        load_tile<BK, BN, threads, false>(B, N, depth, N, k0, block_x() * BN, t, Bs);
    }
}

// Step 02. Block (32, 32), one result per thread.
template <bool fours>
__device__ __forceinline__ void tile_32(size M, size N, size K, size depth, float alpha, const float* A, const float* B,
                                        float beta, float* C) {
    __shared__ __align__(16) float As[32 * 32];
    __shared__ __align__(16) float Bs[32 * 32];
    const size t = threadIdx.y * blockDim.x + threadIdx.x;
    const size row = block_y() * 32 + threadIdx.y, column = block_x() * 32 + threadIdx.x;
    const size steps = (depth + 31) / 32;
    float sum = 0.0f;
    for (size step = 0; step < steps; ++step) {
        load_tiles<32, 32, 32, 1024, false, fours>(M, N, K, depth, A, B, step * 32, t, As, Bs);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 32; ++k) sum += As[threadIdx.y * 32 + k] * Bs[k * 32 + threadIdx.x];
        __syncthreads();
    }
    if (row < M && column < N) C[row * N + column] = alpha * sum + beta * C[row * N + column];
}

CHECKED(checked_tiled) { tile_32<false>(PASS_ON); }
CHECKED(checked_tiled_fours) { tile_32<true>(PASS_ON); }

// Step 03. Block of 512, tiles 64 x 64 x 8, eight results of one column per thread.
template <bool fours>
__device__ __forceinline__ void column_tile(size M, size N, size K, size depth, float alpha, const float* A,
                                            const float* B, float beta, float* C) {
    constexpr int BM = 64, BN = 64, BK = 8, TM = 8;
    __shared__ __align__(16) float As[BM * BK];
    __shared__ __align__(16) float Bs[BK * BN];
    const size t = threadIdx.x, row = t / BN * TM, column = t % BN;
    const size steps = (depth + BK - 1) / BK;
    float sum[TM] = {};
    for (size step = 0; step < steps; ++step) {
        load_tiles<BM, BN, BK, BM * BN / TM, false, fours>(M, N, K, depth, A, B, step * BK, t, As, Bs);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < BK; ++k) {
            const float b = Bs[k * BN + column];
#pragma unroll
            for (int i = 0; i < TM; ++i) sum[i] += As[(row + i) * BK + k] * b;
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < TM; ++i) {
        const size r = block_y() * BM + row + i, c = block_x() * BN + column;
        if (r < M && c < N) C[r * N + c] = alpha * sum[i] + beta * C[r * N + c];
    }
}

CHECKED(checked_column_of_8) { column_tile<false>(PASS_ON); }
CHECKED(checked_column_of_8_fours) { column_tile<true>(PASS_ON); }

// Steps 04 and 05. Block of 256, tiles 128 x 128 x 16, 8x8 results per thread. As is transposed in step 05.
// With `wide` a thread reads B from shared memory and C from global memory 16 bytes at a time.
template <bool transposed, bool fours, bool wide>
__device__ __forceinline__ void square_tile(size M, size N, size K, size depth, float alpha, const float* A,
                                            const float* B, float beta, float* C) {
    constexpr int BM = 128, BN = 128, BK = 16, TM = 8, TN = 8, threads = BM * BN / (TM * TN);
    __shared__ __align__(16) float As[BM * BK];
    __shared__ __align__(16) float Bs[BK * BN];
    const size t = threadIdx.x, row = t / (BN / TN) * TM, column = t % (BN / TN) * TN;
    const size steps = (depth + BK - 1) / BK;
    float sum[TM][TN] = {}, a[TM], b[TN];
    for (size step = 0; step < steps; ++step) {
        load_tiles<BM, BN, BK, threads, transposed, fours>(M, N, K, depth, A, B, step * BK, t, As, Bs);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < BK; ++k) {
#pragma unroll
            for (int i = 0; i < TM; ++i) a[i] = transposed ? As[k * BM + row + i] : As[(row + i) * BK + k];
#pragma unroll
            for (int j = 0; j < TN; ++j) b[j] = Bs[k * BN + column + j];
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TN; ++j) sum[i][j] += a[i] * b[j];
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < TM; ++i) {
        const size r = block_y() * BM + row + i;
        if (wide) {
#pragma unroll
            for (int j = 0; j < TN; j += 4) {
                const size c = block_x() * BN + column + j;
                const float4 old = *reinterpret_cast<const float4*>(C + r * N + c);
                const float* s = sum[i] + j;
                const float4 v = make_float4(alpha * s[0] + beta * old.x, alpha * s[1] + beta * old.y,
                                             alpha * s[2] + beta * old.z, alpha * s[3] + beta * old.w);
                if (r < M && c < N) store4(C + r * N + c, v);
            }
        } else {
#pragma unroll
            for (int j = 0; j < TN; ++j) {
                const size c = block_x() * BN + column + j;
                if (r < M && c < N) C[r * N + c] = alpha * sum[i][j] + beta * C[r * N + c];
            }
        }
    }
}

// As published, the wide version of step 04 still loads its tiles 4 bytes at a time.
CHECKED(checked_square_of_8) { square_tile<false, false, false>(PASS_ON); }
CHECKED(checked_square_of_8_fours) { square_tile<false, false, true>(PASS_ON); }
CHECKED(checked_transposed) { square_tile<true, false, false>(PASS_ON); }
CHECKED(checked_transposed_fours) { square_tile<true, true, true>(PASS_ON); }
