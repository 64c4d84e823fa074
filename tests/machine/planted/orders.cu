// orders.cu: kernels whose results must not depend on the order of warps and blocks, and one whose result must
#include "words.cuh"

// The order in which threads arrive: order[k] is the thread that came at place k.
extern "C" __global__ void arrival(unsigned* count, unsigned* order) {
    const unsigned place = atomicAdd(count, 1u);
    order[place] = blockIdx.x * blockDim.x + threadIdx.x;
}

// Each block reverses its part of x; the barrier that this needs can be left out.
extern "C" __global__ void reverse(const float* x, float* out, int with_barrier) {
    __shared__ float shared[256];
    const int i = threadIdx.x, offset = blockIdx.x * blockDim.x;
    shared[i] = x[offset + i];
    if (with_barrier) __syncthreads();
    out[offset + i] = shared[blockDim.x - 1 - i];
}

// ---- Deterministic: float sums whose order the code fixes ----

// sums[b]: a tree over the block, through shuffles and shared memory.
extern "C" __global__ void block_sums(const float* x, float* sums) {
    __shared__ float partial[32];
    const int i = threadIdx.x;
    float value = x[blockIdx.x * blockDim.x + i];
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
    if (i % 32 == 0) partial[i / 32] = value;
    __syncthreads();
    if (i == 0) {
        float total = 0.0f;
        for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) total += partial[w];
        sums[blockIdx.x] = total;
    }
}

// Many rounds in which every block mixes the values of its neighbours; two buffers, and a grid barrier per round.
extern "C" __global__ void mixing(unsigned* barrier, float* buffer, int rounds) {  // buffer [2, blocks, threads]
    const int i = threadIdx.x, n = blockDim.x, blocks = gridDim.x, b = blockIdx.x;
    for (int round = 0; round < rounds; ++round) {
        const float* from = buffer + round % 2 * blocks * n;
        float* to = buffer + (round + 1) % 2 * blocks * n;
        const float left = from[(b + 1) % blocks * n + (i + 3) % n];
        const float right = from[(b + blocks - 1) % blocks * n + (i + 5) % n];
        to[b * n + i] = 0.3f * left + 0.6f * right + 0.1f * from[b * n + i];
        grid_barrier(barrier);
    }
}

// Integer atomics: the total is the same in any order.
extern "C" __global__ void histogram(const unsigned* x, unsigned* bins, int n) {
    __shared__ unsigned mine[16];
    if (threadIdx.x < 16) mine[threadIdx.x] = 0;
    __syncthreads();
    const int threads = gridDim.x * blockDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += threads) atomicAdd(&mine[x[i] % 16], 1u);
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&bins[threadIdx.x], mine[threadIdx.x]);
}

// Lanes of one warp pass a token: each waits for the next lane, so the warp must let all of them make progress.
extern "C" __global__ void token_in_a_warp(unsigned* token, unsigned* out) {
    const unsigned lane = threadIdx.x;
    while (load_acquire(token) != 31 - lane) {}
    out[lane] = 31 - lane;
    store_release(token, 32 - lane);
}
