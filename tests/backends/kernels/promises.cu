// promises.cu: small kernels for the tests of the host backend
#include "primitives.cuh"

// A grid barrier that counts generations: the last block to arrive raises the generation, which releases the others.
__device__ void grid_barrier(unsigned* barrier) {
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned generation = load_acquire(&barrier[1]);
        if (add_acq_rel(&barrier[0], 1) == gridDim.x - 1) {
            barrier[0] = 0;
            store_release(&barrier[1], generation + 1);
        } else {
            wait_while_equal(&barrier[1], generation);
        }
    }
    __syncthreads();
}

// In each round, a block reads what its neighbour wrote in the round before. buffer [2, blocks]
extern "C" __global__ void rounds(unsigned* barrier, int* buffer, int count) {
    const int b = blockIdx.x, n = gridDim.x;
    if (threadIdx.x == 0) buffer[b] = b;
    for (int round = 0; round < count; ++round) {
        grid_barrier(barrier);
        if (threadIdx.x == 0) buffer[(round + 1) % 2 * n + b] = buffer[round % 2 * n + (b + 1) % n] + 1;
    }
}

extern "C" __global__ void fill(float* out, float value) { out[blockIdx.x * blockDim.x + threadIdx.x] = value; }

// Thread 0 of block 0 spins in loops of its own until thread 40 of its block has set flags[0], and block 1 flags[1].
// Block 1 sets its flag with a plain store.
extern "C" __global__ void spins(unsigned* flags) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        while (load_acquire(&flags[0]) == 0) {
        }
        while (atomicAdd(&flags[1], 0) == 0) __nanosleep(20);
        store_release(&flags[2], flags[0] + flags[1]);
    }
    if (blockIdx.x == 0 && threadIdx.x == 40) store_release(&flags[0], 1);
    if (blockIdx.x == 1 && threadIdx.x == 0) *static_cast<volatile unsigned*>(&flags[1]) = 1;
}

extern "C" __global__ void types(float* out, int i, unsigned u, float f) {
    out[0] = static_cast<float>(i);
    out[1] = static_cast<float>(u);
    out[2] = f;
    out[3] = SCALE;
}

// Writes `words` words of dynamic shared memory, and adds up the first and the last.
extern "C" __global__ void ends(float* out, int words) {
    DYNAMIC_SHARED(float, shared);
    for (int i = threadIdx.x; i < words; i += blockDim.x) shared[i] = i;
    __syncthreads();
    out[threadIdx.x] = shared[0] + shared[words - 1];
}
