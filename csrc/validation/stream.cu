// stream.cu: reads, writes and copies of DRAM, L2 and L1, and chains of dependent loads
// Computes  init A = c;  read: nothing;  scaled A = 1.2 B;  triad A = 1.2 B + C;  stencils of 3 and 5 points;
//           sums of rows and columns of matrices; copies of V floats a thread; sums of a footprint; a chase of pointers
// Shapes    stated at each kernel. No kernel writes what it reads.
// Work      one element a thread unless stated. Pointers are __restrict__ where they were when this was timed
// Checked   tests/measure/test_validation.py
// Source    te42kyfo/gpu-benches (gpu-stream, gpu-cache, gpu-l2-cache, gpu-latency); xytpai/nvbench (vector widths);
//           R100001/Programming-Massively-Parallel-Processors (matrix sums); UoB-HPC/BabelStream
#include "primitives.cuh"

// ---- Two blocks an SM: A, B, C [n] fp64, and 6 KiB of shared memory that nothing uses but that limits the blocks ----

struct Spoiler {
    double word[768];
};

// `never` is false, which the compiler does not know, so it keeps the shared memory.
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
// The grid is one-dimensional, TILES_X blocks of it beside each other: see sgemm.cu.

#ifdef TILES_X
// A warp reads two rows of 16 neighbouring words.
extern "C" __global__ void add_along_rows(const float* a, const float* b, float* c, int n) {
    const int column = blockIdx.x % TILES_X * 16 + threadIdx.x, row = blockIdx.x / TILES_X * 16 + threadIdx.y;
    if (row < n && column < n) c[row * n + column] = a[row * n + column] + b[row * n + column];
}

// A warp reads 16 rows of 2 neighbouring words: uncoalesced, by choice.
extern "C" __global__ void add_along_columns(const float* a, const float* b, float* c, int n) {
    const int row = blockIdx.x % TILES_X * 16 + threadIdx.x, column = blockIdx.x / TILES_X * 16 + threadIdx.y;
    if (row < n && column < n) c[row * n + column] = a[row * n + column] + b[row * n + column];
}
#endif

// ---- to = from, [n] floats; thread i copies V neighbouring ones, and 16 bytes an access where V is more than 4 ----

template <int V>
struct alignas(V < 4 ? 4 * V : 16) Floats {
    float value[V];
};

template <int V>
__device__ __forceinline__ void copy_vector(const float* from, float* to, int n) {
    const int first = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (first + V <= n) {
        constexpr int width = V < 4 ? V : 4;  // floats an access
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
        for (int i = first; i < n; ++i) to[i] = from[i];  // the ragged end
    }
}

extern "C" __global__ void copy_1(const float* from, float* to, int n) { copy_vector<1>(from, to, n); }
extern "C" __global__ void copy_2(const float* from, float* to, int n) { copy_vector<2>(from, to, n); }
extern "C" __global__ void copy_4(const float* from, float* to, int n) { copy_vector<4>(from, to, n); }
extern "C" __global__ void copy_8(const float* from, float* to, int n) { copy_vector<8>(from, to, n); }
extern "C" __global__ void copy_16(const float* from, float* to, int n) { copy_vector<16>(from, to, n); }

// ---- Reads of a footprint: blocks of 1024, `run` blocks read `run` different pieces of 32 * 1024 numbers each ----
// from [32 * 1024 * run] fp64. out is written where the sum is `never`. As published, the fastest index is the thread,
// then the block in its run.
extern "C" __global__ void footprint(double* __restrict__ out, const double* __restrict__ from, int run, double never) {
    double sum = 0.0;
    for (int i = 0; i < 32; ++i)
        sum += from[blockDim.x * run * i + blockIdx.x % run * 1024 + threadIdx.x];
    sum *= 1.3;
    if (sum == never) out[threadIdx.x] += sum;
}

// ---- Reads of one buffer by every block: blocks of 256, from [BUFFER] floats, a multiple of 256 ----
// It is read `rounds` times. `zero` is 0, which the compiler does not know. out is written where the sum is `never`.

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

// ---- A chase ----
// Every thread follows the same chain: `next` holds at each place the address of the next place. 32 hops a round.
extern "C" __global__ void chase(const unsigned long long* next, unsigned long long* out, int hops) {
    const unsigned long long* at = next;
#pragma unroll 1
    for (int n = 0; n < hops; n += 32) {
#pragma unroll
        for (int i = 0; i < 32; ++i) at = reinterpret_cast<const unsigned long long*>(*at);
    }
    // Written in any case, at no cost beside the hops: so the test sees where the chain has led.
    if (threadIdx.x == 0) *out = reinterpret_cast<unsigned long long>(at);
}
