// promises.cu: small kernels that show, one by one, what CUDA promises
#include "primitives.cuh"

__device__ unsigned thread_number() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }

// out [modes, threads]: each lane's result of each shuffle of x [threads]
extern "C" __global__ void shuffles(const float* x, const int* source, float* out, int amount, int width) {
    const int i = threadIdx.x, n = blockDim.x;
    out[0 * n + i] = __shfl_sync(~0u, x[i], source[i], width);
    out[1 * n + i] = __shfl_up_sync(~0u, x[i], amount, width);
    out[2 * n + i] = __shfl_down_sync(~0u, x[i], amount, width);
    out[3 * n + i] = __shfl_xor_sync(~0u, x[i], amount, width);
}

extern "C" __global__ void votes(const int* x, int* out) {
    const int i = threadIdx.x, n = blockDim.x;
    out[0 * n + i] = static_cast<int>(__ballot_sync(~0u, x[i]));
    out[1 * n + i] = __any_sync(~0u, x[i]);
    out[2 * n + i] = __all_sync(~0u, x[i]);
}

// Each half of a warp sums on its own, the upper half first in its own way.
extern "C" __global__ void half_warp_sums(const int* x, int* out) {
    const int i = threadIdx.x;
    int sum = x[i];
    if (i % 32 < 16) {
        for (int d = 8; d > 0; d /= 2) sum += __shfl_xor_sync(0x0000ffffu, sum, d);
    } else {
        for (int d = 1; d < 16; d *= 2) sum += __shfl_xor_sync(0xffff0000u, sum, d);
    }
    __syncwarp();
    out[i] = sum;
}

extern "C" __global__ void long_shuffle(const int* low, const int* high, int* out_low, int* out_high) {
    const int i = threadIdx.x;
    const unsigned long long x = (static_cast<unsigned long long>(static_cast<unsigned>(high[i])) << 32) |
                                 static_cast<unsigned>(low[i]);
    const unsigned long long y = __shfl_xor_sync(~0u, x, 5);
    out_low[i] = static_cast<int>(y);
    out_high[i] = static_cast<int>(y >> 32);
}

extern "C" __global__ void indices(int* out) {
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int* row = out + (block * blockDim.x * blockDim.y * blockDim.z + thread_number()) * 6;
    row[0] = threadIdx.x, row[1] = threadIdx.y, row[2] = threadIdx.z;
    row[3] = blockIdx.x, row[4] = blockIdx.y, row[5] = blockIdx.z;
}

// counts: add, max, min, or, and, a sum by compare-and-swap; fsum: a float sum
extern "C" __global__ void atomics(int* counts, float* fsum) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&counts[0], i);
    atomicMax(&counts[1], i);
    atomicMin(&counts[2], -i);
    atomicOr(&counts[3], 1 << (i % 32));
    atomicAnd(&counts[4], ~(1 << (i % 32)));
    for (int seen = counts[5], old;; seen = old) {
        old = atomicCAS(&counts[5], seen, seen + i);
        if (old == seen) break;
    }
    atomicAdd(fsum, 0.5f);
}

// A generation barrier: the last block to come opens it for all.
__device__ void grid_barrier(unsigned* barrier) {
    __syncthreads();
    if (thread_number() == 0) {
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

// Each round every block reads what its neighbour wrote the round before. buffer [2, blocks]
extern "C" __global__ void rounds(unsigned* barrier, int* buffer, int count) {
    const int b = blockIdx.x, n = gridDim.x;
    if (threadIdx.x == 0) buffer[b] = b;
    for (int round = 0; round < count; ++round) {
        grid_barrier(barrier);
        if (threadIdx.x == 0) buffer[(round + 1) % 2 * n + b] = buffer[round % 2 * n + (b + 1) % n] + 1;
    }
}

extern "C" __global__ void fill(float* out, float value) { out[blockIdx.x * blockDim.x + threadIdx.x] = value; }

// Thread 0 waits, with a spin written by hand, for a thread of its own block and for block 1, which says so with a
// plain store.
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
