// microbench.cu: kernels that measure the cost of a launch, a grid barrier and a byte (luce_edu/measure/constants.py)
#include "block.cuh"
#include "grid_barrier.cuh"

#define KERNEL extern "C" __global__ void __launch_bounds__(block_threads)

constexpr int in_flight = 8;  // 16-byte loads that a thread issues before it uses one, as in the stages' kernels

// An empty kernel. With dependent launch it lets its successor start at once.
KERNEL nothing() {
    wait_for_predecessor();
    let_successor_start();
}

// `count` grid barriers with nothing between them; needs a cooperative launch.
KERNEL barriers(GridBarrier* barrier, int count) {
    for (int i = 0; i < count; ++i) grid_barrier(barrier);
}

// Reads 8 * `vectors` bf16 numbers. It adds up their bits, so that the compiler cannot remove a load. *sink is written
// only if the sum has one arbitrary value.
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

// to[i] = from[i] for i in [0, 8 * vectors), 16 bytes per access
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
