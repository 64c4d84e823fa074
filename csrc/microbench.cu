// microbench.cu: what a launch, a grid barrier and a byte cost on the GPU that is there (luce_edu/measure/constants.py)
#include "block.cuh"
#include "grid_barrier.cuh"

#define KERNEL extern "C" __global__ void __launch_bounds__(block_threads)

constexpr int in_flight = 8;  // 16-byte loads a thread issues before it uses one: as the kernels of the stages do

// Starts and ends; with dependent launch it lets the next one start at once.
KERNEL nothing() {
    wait_for_predecessor();
    let_successor_start();
}

// `count` grid barriers and nothing between them; a cooperative launch.
KERNEL barriers(GridBarrier* barrier, int count) {
    for (int i = 0; i < count; ++i) grid_barrier(barrier);
}

// Reads 8 * `vectors` bf16 numbers. They are added up as bits so that no load can be left out; *sink is all but never written.
KERNEL read_all(const bf16* from, int vectors, unsigned* sink) {
    const int stride = gridDim.x * block_threads;
    unsigned sum = 0;
    for (int first = blockIdx.x * block_threads + threadIdx.x; first < vectors; first += in_flight * stride) {
        bf16x8 v[in_flight];
#pragma unroll
        for (int i = 0; i < in_flight; ++i) {
            const int at = first + i * stride;
            v[i] = load_weights(from + static_cast<size_t>(at < vectors ? at : first) * 8);
        }
#pragma unroll
        for (int i = 0; i < in_flight; ++i) sum += v[i].pair[0] ^ v[i].pair[1] ^ v[i].pair[2] ^ v[i].pair[3];
    }
    if (sum == 0x12345678u) *sink = sum;
}

// to = from, 16 bytes a thread at a time
KERNEL copy_all(const bf16* from, bf16* to, int vectors) {
    const int stride = gridDim.x * block_threads;
    for (int first = blockIdx.x * block_threads + threadIdx.x; first < vectors; first += in_flight * stride) {
        bf16x8 v[in_flight];
#pragma unroll
        for (int i = 0; i < in_flight; ++i) {
            const int at = first + i * stride;
            v[i] = load_weights(from + static_cast<size_t>(at < vectors ? at : first) * 8);
        }
#pragma unroll
        for (int i = 0; i < in_flight; ++i) {
            const int at = first + i * stride;
            if (at < vectors) *reinterpret_cast<bf16x8*>(to + static_cast<size_t>(at) * 8) = v[i];
        }
    }
}
