// Each round every block reads what its neighbour wrote in the round before; not thread 0 does, which keeps the barrier,
// but the last thread, after a pause in which one that does not wait for it goes wrong. buffer [2, blocks]
#include "block.cuh"
#include "grid_barrier.cuh"

extern "C" __global__ void rounds(GridBarrier* barrier, int* buffer, int count) {
    const int b = blockIdx.x, blocks = gridDim.x;
    const bool works = threadIdx.x == block_threads - 1;
    if (works) buffer[b] = b;
    for (int round = 0; round < count; ++round) {
        grid_barrier(barrier);
        if (works) __nanosleep(100);
        if (works) buffer[(round + 1) % 2 * blocks + b] = buffer[round % 2 * blocks + (b + 1) % blocks] + 1;
    }
}

// Block 0 leaves after fewer barriers than the others pass.
extern "C" __global__ void leaves_early(GridBarrier* barrier, int count) {
    for (int i = blockIdx.x == 0; i < count; ++i) grid_barrier(barrier);
}
