// grid_barrier.cuh: a barrier for all blocks of a cooperative launch, by hand
// Work      thread 0 of each block adds its share to one word: block 0 adds 2^31 - (blocks - 1), every other block 1.
//           All shares together are 2^31, so bit 31 changes with the last arrival and with no other, and the 31 bits
//           below it are 0 again. A block has passed once bit 31 differs from what its own addition found. Nothing is
//           reset, no second store opens the barrier, and the word goes from one state to the other for ever.
// Needs     every block of the grid resident at once (a cooperative launch guarantees it), and every block at every
//           barrier equally often. The word is 0 or 2^31 between launches, as zeroed memory is and as each launch
//           leaves it; only a launch that was cut off leaves anything else
// Memory    What any thread of any block wrote before the barrier, every thread of every block reads after it.
//           The first __syncthreads puts the block's writes before thread 0's addition, which is a release. A release
//           covers not only what its own thread wrote but also what that thread was synchronised with: so thread 0
//           may speak for the whole block. The additions are atomic and each reads the one before it; by PTX's rule of
//           observation order, a load that reads the last one has therefore observed all of them, and as an acquire
//           it synchronises with every block's release. The second __syncthreads puts this acquire before the reads
//           of the other threads, which touched no flag themselves. On the GPU it also drops stale lines of L1.
// Checked   tests/csrc/test_grid_barrier.py
// Source    the same scheme as in NVIDIA's cooperative groups; the PTX manual, "Memory Consistency Model"
#pragma once
#include "primitives.cuh"

struct GridBarrier {
    unsigned word;                 // every block polls it, so nothing else lies on its 128 bytes
    alignas(128) unsigned passed;  // barriers passed, counted by block 0
};

constexpr unsigned top_bit = 1u << 31;

__device__ __forceinline__ void grid_barrier(GridBarrier* barrier) {
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned share = blockIdx.x == 0 ? top_bit - (gridDim.x - 1) : 1u;
        const unsigned before = add_release(&barrier->word, share);
        // No barrier opens without block 0, so its count is the count. Nothing waits for the result of this addition.
        if (blockIdx.x == 0) atomicAdd(&barrier->passed, 1u);
        // The next change of the bit needs this block again, so however late it looks it cannot miss this one.
        wait_while_equal(&barrier->word, before, top_bit);
    }
    __syncthreads();
}
