// grid_barrier.cuh: a barrier for all blocks of a cooperative launch, by hand
// Work      thread 0 of each block arrives at a counter; the last arrival starts the next
//           generation, the others wait for it. The counter is 0 again afterwards and the
//           generation simply goes on, so a launch needs no memset, and the difference in
//           `generation` counts the barriers that were really passed.
// Needs     every block of the grid resident at once (a cooperative launch guarantees it), and
//           every block at every barrier equally often
// Memory    What any thread of any block wrote before the barrier, every thread of every block
//           sees after it: the first __syncthreads puts the block's writes before thread 0's
//           arrival, which releases them; the counter's and the generation's acquire take them
//           over; the second __syncthreads puts thread 0's acquire before the block's reads.
//           Release and acquire are cumulative in the PTX memory model, so this holds for threads
//           that touched no flag themselves. On the GPU the acquire also drops stale L1 lines.
#pragma once
#include "primitives.cuh"

struct GridBarrier {
    unsigned arrived;
    unsigned generation;
};

__device__ __forceinline__ void grid_barrier(GridBarrier* barrier) {
    __syncthreads();
    if (threadIdx.x == 0) {
        // Read before arriving: afterwards the last block may already have moved it on.
        const unsigned generation = load_acquire(&barrier->generation);
        if (add_acq_rel(&barrier->arrived, 1u) == gridDim.x - 1) {
            // Nobody arrives again before seeing the new generation, which is released after this.
            barrier->arrived = 0u;
            store_release(&barrier->generation, generation + 1u);
        } else {
            wait_while_equal(&barrier->generation, generation);
        }
    }
    __syncthreads();
}
