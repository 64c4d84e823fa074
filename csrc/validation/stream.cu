// stream.cu: reads, writes and copies of DRAM, L2 and L1, and chains of dependent loads
// Computes  for each i: init A[i] = 0.23;  read: only loads B[i];  scaled A[i] = 1.2 B[i];
//           triad A[i] = 1.2 B[i] + C[i];  stencils of 3 and 5 points; sums of matrices; copies of V floats per thread;
//           sums of a footprint; a pointer chase
// Shapes    stated at each kernel. No kernel writes memory that it reads.
// Work      one element per thread unless stated. Pointers are __restrict__ as in the sources.
// Checked   tests/measure/records/test_validation.py
// Source    te42kyfo/gpu-benches (gpu-stream, gpu-cache, gpu-l2-cache, gpu-latency); xytpai/nvbench (vector widths);
//           R100001/Programming-Massively-Parallel-Processors (matrix sums); UoB-HPC/BabelStream
#include "primitives.cuh"

// ---- A, B, C [n] fp64. 6 KiB of unused shared memory limit the number of blocks per SM ----

struct Spoiler {
    double word[768];
};

// `never` is false. The compiler does not know that, so it keeps the shared memory.
#define SPOILED(name)                                                                                       \
    extern "C" __global__ void name(double* A, const double* __restrict__ B, const double* __restrict__ C,  \
                                    unsigned long long n, bool never)
#define SPOIL_BEFORE                        \
    __shared__ Spoiler spoiler;             \
    if (never) spoiler.word[threadIdx.x] = B[threadIdx.x]
#define SPOIL_AFTER \
    if (never) A[i] = spoiler.word[i]

SPOILED(init) {
    const int i = threadIdx.x + blockIdx.x * blockDim.x;
    if (i >= n) return;
    SPOIL_BEFORE;
    A[i] = 0.23;
    SPOIL_AFTER;
}

SPOILED(read) {
    const int i = threadIdx.x + blockIdx.x * blockDim.x;
    if (i >= n) return;
    SPOIL_BEFORE;
    const double value = B[i];
    if (never || value == 123.0) A[i] = value + spoiler.word[i];
}

SPOILED(scaled) {
    const int i = threadIdx.x + blockIdx.x * blockDim.x;
    if (i >= n) return;
    SPOIL_BEFORE;
    A[i] = B[i] * 1.2;
    SPOIL_AFTER;
}

SPOILED(triad) {
    const int i = threadIdx.x + blockIdx.x * blockDim.x;
    if (i >= n) return;
    SPOIL_BEFORE;
    A[i] = B[i] * 1.2 + C[i];
    SPOIL_AFTER;
}

SPOILED(stencil3) {
    const int i = threadIdx.x + blockIdx.x * blockDim.x;
    if (i >= n - 1 || i == 0) return;
    SPOIL_BEFORE;
    A[i] = 0.5 * B[i - 1] - 1.0 * B[i] + 0.5 * B[i + 1];
    SPOIL_AFTER;
}

SPOILED(stencil5) {
    const int i = threadIdx.x + blockIdx.x * blockDim.x;
    if (i >= n - 2 || i < 2) return;
    SPOIL_BEFORE;
    A[i] = 0.25 * B[i - 2] + 0.25 * B[i - 1] - 1.0 * B[i] + 0.5 * B[i + 1] + 0.5 * B[i + 2];
    SPOIL_AFTER;
}

// ---- Four kernels of the STREAM benchmark: a, b, c [n] fp64, block of 1024, n a multiple of it ----

extern "C" __global__ void babel_copy(const double* a, double* c) {
    const int i = blockDim.x * blockIdx.x + threadIdx.x;
    c[i] = a[i];
}

extern "C" __global__ void babel_mul(double* b, const double* c) {
    const int i = blockDim.x * blockIdx.x + threadIdx.x;
    b[i] = 0.4 * c[i];
}

extern "C" __global__ void babel_add(const double* a, const double* b, double* c) {
    const int i = blockDim.x * blockIdx.x + threadIdx.x;
    c[i] = a[i] + b[i];
}

extern "C" __global__ void babel_triad(double* a, const double* b, const double* c) {
    const int i = blockDim.x * blockIdx.x + threadIdx.x;
    a[i] = b[i] + 0.4 * c[i];
}

// ---- c = a + b for matrices [n, n] of 4-byte words, block (16, 16), n a multiple of 16 ----
// The grid is one-dimensional, with TILES_X blocks in x: see sgemm.cu.

#ifdef TILES_X
// A warp reads 16 neighbouring words from each of two rows.
extern "C" __global__ void add_along_rows(const float* a, const float* b, float* c, int n) {
    const int column = blockIdx.x % TILES_X * 16 + threadIdx.x, row = blockIdx.x / TILES_X * 16 + threadIdx.y;
    if (row < n && column < n) c[row * n + column] = a[row * n + column] + b[row * n + column];
}

// Slow by choice: a warp reads 2 neighbouring words from each of 16 rows, which is not coalesced.
extern "C" __global__ void add_along_columns(const float* a, const float* b, float* c, int n) {
    const int row = blockIdx.x % TILES_X * 16 + threadIdx.x, column = blockIdx.x / TILES_X * 16 + threadIdx.y;
    if (row < n && column < n) c[row * n + column] = a[row * n + column] + b[row * n + column];
}
#endif

// ---- to = from, [n] floats. Thread i copies V neighbouring floats, with accesses of at most 16 bytes ----

template <int V>
struct alignas(V < 4 ? 4 * V : 16) Floats {
    float value[V];
};

template <int V>
__device__ __forceinline__ void copy_vector(const float* from, float* to, int n) {
    const int first = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (first + V <= n) {
        constexpr int width = V < 4 ? V : 4;  // floats per access
        Floats<width> part[V / width];
        for (int i = 0; i < V / width; ++i) part[i] = reinterpret_cast<const Floats<width>*>(from + first)[i];
        for (int i = 0; i < V / width; ++i) {
            if (width == 4) {
                const float* v = part[i].value;
                store4(to + first + 4 * i, make_float4(v[0], v[1], v[2], v[3]));
            } else {
                reinterpret_cast<Floats<width>*>(to + first)[i] = part[i];
            }
        }
    } else {
        for (int i = first; i < n; ++i) to[i] = from[i];  // fewer than V floats are left
    }
}

extern "C" __global__ void copy_1(const float* from, float* to, int n) { copy_vector<1>(from, to, n); }
extern "C" __global__ void copy_2(const float* from, float* to, int n) { copy_vector<2>(from, to, n); }
extern "C" __global__ void copy_4(const float* from, float* to, int n) { copy_vector<4>(from, to, n); }
extern "C" __global__ void copy_8(const float* from, float* to, int n) { copy_vector<8>(from, to, n); }
extern "C" __global__ void copy_16(const float* from, float* to, int n) { copy_vector<16>(from, to, n); }

// ---- Reads of a footprint: blocks of 1024; each `run` neighbouring blocks read the whole footprint ----
// from [32 * 1024 * run] fp64; a block reads 32 * 1024 of these numbers. out is written only if the sum is `never`. As
// published, the fastest index is the thread, then the block in its run.
extern "C" __global__ void footprint(double* __restrict__ out, const double* __restrict__ from, int run, double never) {
    double sum = 0.0;
    for (int i = 0; i < 32; ++i)
        sum += from[blockDim.x * run * i + blockIdx.x % run * 1024 + threadIdx.x];
    sum *= 1.3;
    if (sum == never) out[threadIdx.x] += sum;
}

// ---- Reads of one buffer by every block: blocks of 256, from [BUFFER] floats, BUFFER a multiple of 256 ----
// Each block reads it `rounds` times. `zero` is 0, but the compiler does not know that, so it repeats the loads. out is
// written only if the sum is `never`.

#ifdef BUFFER
extern "C" __global__ void same_buffer(float* __restrict__ out, const float* __restrict__ from, int zero, int rounds,
                                       float never) {
    constexpr int reads = BUFFER / 256;
    float sum = 0.0f;
    from += threadIdx.x;
#pragma unroll(reads > 32 ? 1 : 32 / reads)
    for (int round = 0; round < rounds; ++round) {
        from += zero;
#pragma unroll(reads >= 64 ? 32 : reads)
        for (int i = 0; i < BUFFER; i += 256) sum += from[i];
        sum *= 1.3f;
    }
    if (sum == never) out[threadIdx.x] += sum;
}
#endif

// ---- A pointer chase ----
// for i in [0, hops): at = *at. Every thread follows the same chain. A round of the outer loop makes 32 hops.
extern "C" __global__ void chase(const unsigned long long* next, unsigned long long* out, int hops) {
    const unsigned long long* at = next;
#pragma unroll 1
    for (int n = 0; n < hops; n += 32) {
#pragma unroll
        for (int i = 0; i < 32; ++i) at = reinterpret_cast<const unsigned long long*>(*at);
    }
    // Always written, so that a test can check the end of the chain. Compared with the hops it costs nothing.
    if (threadIdx.x == 0) *out = reinterpret_cast<unsigned long long>(at);
}
