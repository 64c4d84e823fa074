// In each round, a block reads what its neighbour wrote in the round before. buffer [2, blocks]
// The last thread reads and writes, since thread 0 is busy in the barrier. The pause makes a missing wait visible.
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

// Block 0 passes one barrier less than the others.
extern "C" __global__ void leaves_early(GridBarrier* barrier, int count) {
    for (int i = blockIdx.x == 0; i < count; ++i) grid_barrier(barrier);
}
