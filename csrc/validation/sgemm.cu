// sgemm.cu: a ladder of matrix products, each step as others published and timed it (luce_edu/measure/records/validation.py)
// Computes  for i in [0, M), j in [0, N):
//               C[i][j] = alpha * (sum over k in [0, depth) of A[i][k] * B[k][j]) + beta * C[i][j]
//           with -DOVERWRITE only the sum
// Shapes    A [M, K], B [K, N], C [M, N] fp32, row-major. M and N are whole tiles; depth is a multiple of the tile's
//           depth. depth = K is the whole product; a smaller depth does less work on the same matrices.
// Work      Blocks are numbered in one dimension: x = number % TILES_X, y = number / TILES_X. TILES_X is the size in x
//           of the whole grid, so a launch of few blocks has those that a GPU would start first. x counts tiles along a
//           row of C; in naive, coalesced and tiled it counts them down a column, unless -DX_IS_COLUMN.
// Slow by choice: each step keeps the weakness that the next one removes. No pointer is __restrict__, as published.
// Machine   ptxas unrolls the loops over k and merges neighbouring loads of shared memory into wide ones. The virtual
//           GPU runs PTX. So alignments and #pragma unroll give the PTX the loads that ptxas makes of the plain loops
//           (CUDA 13.0, sm_86). A thread's loads in 8 steps of k, of 16 bytes + of 4 bytes: column_of_8 16 + 8,
//           square_of_8 16 + 64, vectorised 32 + 0, interleaved 16 + 64; tiled in 32 steps 8 + 32. One kernel differs:
//           padded has 20 + 32 and 8 of 8 bytes, in PTX 16 + 32 and 16 of 8 bytes.
// Checked   tests/measure/records/test_validation.py
// Source    siboehm/SGEMM_CUDA, README.md and its steps 1 to 10; written anew from their index formulas
#include "primitives.cuh"

#define SGEMM(name) \
    extern "C" __global__ void name(int M, int N, int K, int depth, float alpha, const float* A, const float* B, \
                                    float beta, float* C)
#define PASS_ON M, N, K, depth, alpha, A, B, beta, C

#ifdef OVERWRITE
constexpr bool overwrite = true;
#else
constexpr bool overwrite = false;
#endif

__device__ __forceinline__ int block_x() { return blockIdx.x % TILES_X; }
__device__ __forceinline__ int block_y() { return blockIdx.x / TILES_X; }

// The tile of C that a block computes in the first three steps.
#ifdef X_IS_COLUMN
__device__ __forceinline__ int tile_row() { return block_y(); }
__device__ __forceinline__ int tile_column() { return block_x(); }
#else
__device__ __forceinline__ int tile_row() { return block_x(); }
__device__ __forceinline__ int tile_column() { return block_y(); }
#endif

__device__ __forceinline__ void finish(float* c, float sum, float alpha, float beta) {
    *c = overwrite ? sum : alpha * sum + beta * *c;
}

// Four neighbouring results, with one 16-byte load and one 16-byte store.
__device__ __forceinline__ void finish4(float* c, const float* sum, float alpha, float beta) {
    float4 v = make_float4(sum[0], sum[1], sum[2], sum[3]);
    if (!overwrite) {
        const float4 old = *reinterpret_cast<const float4*>(c);
        v = make_float4(alpha * v.x + beta * old.x, alpha * v.y + beta * old.y, alpha * v.z + beta * old.z,
                        alpha * v.w + beta * old.w);
    }
    store4(c, v);
}

// Step 1. Block (32, 32). Neighbouring threads take neighbouring ROWS: a warp loads 32 lines of A for 32 words.
SGEMM(naive) {
    const int row = tile_row() * 32 + threadIdx.x;
    const int column = tile_column() * 32 + threadIdx.y;
    if (row >= M || column >= N) return;
    float sum = 0.0f;
    for (int k = 0; k < depth; ++k) sum += A[row * K + k] * B[k * N + column];
    finish(C + row * N + column, sum, alpha, beta);
}

// Step 2. Block of 1024. Neighbouring threads take neighbouring columns: a warp loads one word of A and one line of B.
SGEMM(coalesced) {
    const int row = tile_row() * 32 + threadIdx.x / 32;
    const int column = tile_column() * 32 + threadIdx.x % 32;
    if (row >= M || column >= N) return;
    float sum = 0.0f;
    for (int k = 0; k < depth; ++k) sum += A[row * K + k] * B[k * N + column];
    finish(C + row * N + column, sum, alpha, beta);
}

// Step 3. Block of 1024. Shared memory holds a 32x32 tile of A and of B; a thread loads one element of each.
SGEMM(tiled) {
    __shared__ __align__(16) float As[32 * 32];
    __shared__ float Bs[32 * 32];
    const int row = threadIdx.x / 32, column = threadIdx.x % 32;
    A += tile_row() * 32 * K;
    B += tile_column() * 32;
    C += tile_row() * 32 * N + tile_column() * 32;
    float sum = 0.0f;
    for (int k0 = 0; k0 < depth; k0 += 32) {
        As[row * 32 + column] = A[row * K + column];
        Bs[row * 32 + column] = B[row * N + column];
        __syncthreads();
        A += 32;
        B += 32 * N;
#pragma unroll
        for (int k = 0; k < 32; ++k) sum += As[row * 32 + k] * Bs[k * 32 + column];
        __syncthreads();  // all threads have read the tiles, so the next round may overwrite them
    }
    finish(C + row * N + column, sum, alpha, beta);
}

// Step 4. Block of 512. A thread computes TM results of one column, with one load of Bs for all of them.
SGEMM(column_of_8) {
    constexpr int BM = 64, BN = 64, BK = 8, TM = 8;
    __shared__ __align__(16) float As[BM * BK];
    __shared__ float Bs[BK * BN];
    const int column = threadIdx.x % BN, row = threadIdx.x / BN * TM;
    const int a_row = threadIdx.x / BK, a_column = threadIdx.x % BK;
    const int b_row = threadIdx.x / BN, b_column = threadIdx.x % BN;
    A += block_y() * BM * K;
    B += block_x() * BN;
    C += block_y() * BM * N + block_x() * BN;
    float sum[TM] = {};
    for (int k0 = 0; k0 < depth; k0 += BK) {
        As[a_row * BK + a_column] = A[a_row * K + a_column];
        Bs[b_row * BN + b_column] = B[b_row * N + b_column];
        __syncthreads();
        A += BK;
        B += BK * N;
#pragma unroll
        for (int k = 0; k < BK; ++k) {
            const float b = Bs[k * BN + column];
            for (int i = 0; i < TM; ++i) sum[i] += As[(row + i) * BK + k] * b;
        }
        __syncthreads();
    }
    for (int i = 0; i < TM; ++i) finish(C + (row + i) * N + column, sum[i], alpha, beta);
}

// Step 5. Block of 256. A thread computes 8x8 results from 8 words of As and 8 of Bs.
SGEMM(square_of_8) {
    constexpr int BM = 128, BN = 128, BK = 8, TM = 8, TN = 8, threads = BM * BN / (TM * TN);
    __shared__ float As[BM * BK];
    __shared__ __align__(16) float Bs[BK * BN];
    const int row = threadIdx.x / (BN / TN) * TM, column = threadIdx.x % (BN / TN) * TN;
    const int a_row = threadIdx.x / BK, a_column = threadIdx.x % BK;
    const int b_row = threadIdx.x / BN, b_column = threadIdx.x % BN;
    A += block_y() * BM * K;
    B += block_x() * BN;
    C += block_y() * BM * N + block_x() * BN;
    float sum[TM][TN] = {}, a[TM], b[TN];
    for (int k0 = 0; k0 < depth; k0 += BK) {
        for (int r = 0; r < BM; r += threads / BK) As[(a_row + r) * BK + a_column] = A[(a_row + r) * K + a_column];
        for (int r = 0; r < BK; r += threads / BN) Bs[(b_row + r) * BN + b_column] = B[(b_row + r) * N + b_column];
        __syncthreads();
        A += BK;
        B += BK * N;
#pragma unroll
        for (int k = 0; k < BK; ++k) {
            for (int i = 0; i < TM; ++i) a[i] = As[(row + i) * BK + k];
            for (int i = 0; i < TN; ++i) b[i] = Bs[k * BN + column + i];
            for (int i = 0; i < TM; ++i)
                for (int j = 0; j < TN; ++j) sum[i][j] += a[i] * b[j];
        }
        __syncthreads();
    }
    for (int i = 0; i < TM; ++i)
        for (int j = 0; j < TN; ++j) finish(C + (row + i) * N + column + j, sum[i][j], alpha, beta);
}

// The layout in shared memory of the vectorised steps: the pitch of As, and the place of word (k, column) of Bs.
struct Plain {  // step 6: row-major
    __device__ static constexpr int a_pitch(int BM) { return BM; }
    __device__ static constexpr int b_words(int BK, int BN) { return BK * BN; }
    static constexpr bool b_in_fours = true;
    __device__ static int b_store(int k, int column, int BN) { return k * BN + column; }
    __device__ static int b_load(int k, int thread_column, int j, int BN, int TN) {
        return k * BN + thread_column * TN + j;
    }
};

struct Interleaved {  // step 7: the words that 16 neighbouring threads load together are neighbours
    __device__ static constexpr int a_pitch(int BM) { return BM; }
    __device__ static constexpr int b_words(int BK, int BN) { return BK * BN; }
    static constexpr bool b_in_fours = false;
    __device__ static int b_store(int k, int column, int) {
        return (column / 4 % 2 * 4 + k * 8 + column % 4) * 16 + column / 8;
    }
    __device__ static int b_load(int k, int thread_column, int j, int, int) { return (k * 8 + j) * 16 + thread_column; }
};

struct Padded {  // step 8: five words of padding after each row of Bs
    static constexpr int extra = 5;
    __device__ static constexpr int a_pitch(int BM) { return BM; }
    __device__ static constexpr int b_words(int BK, int BN) { return BK * (BN + extra); }
    static constexpr bool b_in_fours = false;
    __device__ static int b_store(int k, int column, int BN) { return k * (BN + extra) + column; }
    __device__ static int b_load(int k, int thread_column, int j, int BN, int TN) {
        return k * (BN + extra) + thread_column * TN + j;
    }
};

struct PaddedTwice {  // As with one word after each row, Bs with one word after each eight columns
    __device__ static constexpr int a_pitch(int BM) { return BM + 1; }
    __device__ static constexpr int b_words(int BK, int BN) { return BK * (BN + BN / 8); }
    static constexpr bool b_in_fours = false;
    __device__ static int b_store(int k, int column, int BN) { return k * (BN + BN / 8) + column + column / 8; }
    __device__ static int b_load(int k, int thread_column, int j, int BN, int TN) {
        return b_store(k, thread_column * TN + j, BN);
    }
};

// Copies a tile of A [BM, BK] and of B [BK, BN] from global to shared memory, four floats per load. As is transposed,
// [BK, pitch], so that the words of a thread's rows are neighbours.
template <int BM, int BN, int BK, int threads, typename Layout>
__device__ __forceinline__ void load_tiles(const float* A, const float* B, int K, int N, float* As, float* Bs) {
    constexpr int pitch = Layout::a_pitch(BM);
    const int a_row = threadIdx.x / (BK / 4), a_column = threadIdx.x % (BK / 4) * 4;
    const int b_row = threadIdx.x / (BN / 4), b_column = threadIdx.x % (BN / 4) * 4;
    for (int r = 0; r + threads * 4 / BK <= BM; r += threads * 4 / BK) {
        const float4 v = *reinterpret_cast<const float4*>(A + (a_row + r) * K + a_column);
        As[(a_column + 0) * pitch + a_row + r] = v.x;
        As[(a_column + 1) * pitch + a_row + r] = v.y;
        As[(a_column + 2) * pitch + a_row + r] = v.z;
        As[(a_column + 3) * pitch + a_row + r] = v.w;
    }
    for (int r = 0; r + threads * 4 / BN <= BK; r += threads * 4 / BN) {
        const float4 v = *reinterpret_cast<const float4*>(B + (b_row + r) * N + b_column);
        if (Layout::b_in_fours) {
            *reinterpret_cast<float4*>(Bs + Layout::b_store(b_row + r, b_column, BN)) = v;
        } else {
            Bs[Layout::b_store(b_row + r, b_column + 0, BN)] = v.x;
            Bs[Layout::b_store(b_row + r, b_column + 1, BN)] = v.y;
            Bs[Layout::b_store(b_row + r, b_column + 2, BN)] = v.z;
            Bs[Layout::b_store(b_row + r, b_column + 3, BN)] = v.w;
        }
    }
}

// Steps 6 to 9. Block of 256, 8x8 results per thread, 16-byte loads and stores of global memory.
template <int BK, typename Layout, int unrolled>
__device__ __forceinline__ void square_tiles(int M, int N, int K, int depth, float alpha, const float* A,
                                             const float* B, float beta, float* C) {
    constexpr int BM = 128, BN = 128, TM = 8, TN = 8, threads = BM * BN / (TM * TN), pitch = Layout::a_pitch(BM);
    __shared__ __align__(16) float As[BK * pitch];
    __shared__ __align__(16) float Bs[Layout::b_words(BK, BN)];
    const int thread_row = threadIdx.x / (BN / TN), thread_column = threadIdx.x % (BN / TN);
    A += block_y() * BM * K;
    B += block_x() * BN;
    C += block_y() * BM * N + block_x() * BN;
    float sum[TM][TN] = {}, a[TM], b[TN];
    for (int k0 = 0; k0 < depth; k0 += BK) {
        load_tiles<BM, BN, BK, threads, Layout>(A, B, K, N, As, Bs);
        __syncthreads();
        A += BK;
        B += BK * N;
#pragma unroll(unrolled)
        for (int k = 0; k < BK; ++k) {
            for (int i = 0; i < TM; ++i) a[i] = As[k * pitch + thread_row * TM + i];
            for (int j = 0; j < TN; ++j) b[j] = Bs[Layout::b_load(k, thread_column, j, BN, TN)];
            for (int i = 0; i < TM; ++i)
                for (int j = 0; j < TN; ++j) sum[i][j] += a[i] * b[j];
        }
        __syncthreads();
    }
    for (int i = 0; i < TM; ++i)
        for (int j = 0; j < TN; j += 4)
            finish4(C + (thread_row * TM + i) * N + thread_column * TN + j, sum[i] + j, alpha, beta);
}

SGEMM(vectorised) { square_tiles<8, Plain, 8>(PASS_ON); }
SGEMM(interleaved) { square_tiles<8, Interleaved, 8>(PASS_ON); }
SGEMM(padded) { square_tiles<8, Padded, 2>(PASS_ON); }
SGEMM(padded_twice) { square_tiles<8, PaddedTwice, 2>(PASS_ON); }
SGEMM(padded_twice_deep) { square_tiles<16, PaddedTwice, 2>(PASS_ON); }
extern "C" __global__ void __launch_bounds__(256)
    autotuned(int M, int N, int K, int depth, float alpha, const float* A, const float* B, float beta, float* C) {
    square_tiles<16, Plain, 16>(PASS_ON);
}

// Step 10. Each warp computes a WM x WN part of the block's tile, in parts of WSM x WSN. In each of these, a thread
// computes TM x TN results, so that a warp's loads of shared memory are close together. Single-buffered.
template <int WM, int WN, int steps_n, int TM, int TN, int threads, int unrolled>
__device__ __forceinline__ void warp_tile(int M, int N, int K, int depth, float alpha, const float* A, const float* B,
                                          float beta, float* C) {
    constexpr int BM = 128, BN = 128, BK = 16;
    constexpr int steps_m = WM * WN / (32 * TM * TN * steps_n), WSM = WM / steps_m, WSN = WN / steps_n;
    static_assert(BM / WM * (BN / WN) * 32 == threads, "one warp a warp tile");
    __shared__ __align__(16) float As[BK * BM];
    __shared__ __align__(16) float Bs[BK * BN];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = warp / (BN / WN) * WM + lane / (WSN / TN) * TM;
    const int column = warp % (BN / WN) * WN + lane % (WSN / TN) * TN;
    A += block_y() * BM * K;
    B += block_x() * BN;
    C += block_y() * BM * N + block_x() * BN;
    float sum[steps_m * TM][steps_n * TN] = {}, a[steps_m * TM], b[steps_n * TN];
    for (int k0 = 0; k0 < depth; k0 += BK) {
        load_tiles<BM, BN, BK, threads, Plain>(A, B, K, N, As, Bs);
        __syncthreads();
#pragma unroll(unrolled)
        for (int k = 0; k < BK; ++k) {
            for (int s = 0; s < steps_m; ++s)
                for (int i = 0; i < TM; ++i) a[s * TM + i] = As[k * BM + row + s * WSM + i];
            for (int s = 0; s < steps_n; ++s)
                for (int j = 0; j < TN; ++j) b[s * TN + j] = Bs[k * BN + column + s * WSN + j];
            for (int i = 0; i < steps_m * TM; ++i)
                for (int j = 0; j < steps_n * TN; ++j) sum[i][j] += a[i] * b[j];
        }
        A += BK;
        B += BK * N;
        __syncthreads();
    }
    for (int i = 0; i < steps_m * TM; ++i)
        for (int j = 0; j < steps_n * TN; j += 4)
            finish4(C + (row + i / TM * WSM + i % TM) * N + column + j / TN * WSN + j % TN, sum[i] + j, alpha, beta);
}

extern "C" __global__ void __launch_bounds__(128)
    warp_tiles(int M, int N, int K, int depth, float alpha, const float* A, const float* B, float beta, float* C) {
    warp_tile<64, 64, 4, 8, 4, 128, 1>(PASS_ON);
}

// Another author's warp tiles: 64x32 per warp, 8x8 per thread, eight warps.
extern "C" __global__ void __launch_bounds__(256)
    warp_tiles_64x32(int M, int N, int K, int depth, float alpha, const float* A, const float* B, float beta,
                     float* C) {
    warp_tile<64, 32, 1, 8, 8, 256, 16>(PASS_ON);
}

// A small tile: block (16, 16), one result per thread, 16x16 tiles of A and B in shared memory, C = A B.
SGEMM(tiled_16) {
    __shared__ __align__(16) float As[16][16];
    __shared__ float Bs[16][16];
    const int row = block_y() * 16 + threadIdx.y, column = block_x() * 16 + threadIdx.x;
    float sum = 0.0f;
    for (int k0 = 0; k0 < depth; k0 += 16) {
        As[threadIdx.y][threadIdx.x] = A[row * K + k0 + threadIdx.x];
        Bs[threadIdx.y][threadIdx.x] = B[(k0 + threadIdx.y) * N + column];
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 16; ++k) sum += As[threadIdx.y][k] * Bs[k][threadIdx.x];
        __syncthreads();
    }
    finish(C + row * N + column, sum, alpha, beta);
}
