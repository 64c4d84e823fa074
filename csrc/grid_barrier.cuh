// grid_barrier.cuh: a barrier for all blocks of a cooperative launch
// Computes  for each block:
//               wait for all threads of the block
//               before = word;  word += block == 0 ? 2^31 - (blocks - 1) : 1        as one atomic operation
//               while bit 31 of word == bit 31 of before: wait
// Why       All additions of one barrier sum to 2^31. So the last one to arrive, whichever block makes it, flips bit 31
//           and leaves the bits below it at 0. The next barrier flips bit 31 back. Nothing has to be reset.
// Needs     All blocks of the grid must be resident at once, which a cooperative launch guarantees. Every block must
//           pass the barrier equally often. Between launches the word is 0 or 2^31; it starts as zeroed memory. Only a
//           launch that was cut off leaves another value.
// Memory    What any thread wrote before the barrier, every thread of every block can read after it:
//           1. The first __syncthreads orders the writes of the block before thread 0's addition.
//           2. The addition is a release. It publishes the writes of its own thread and of the threads with which that
//              thread has synchronised, so of the whole block.
//           3. Each addition reads the result of the one before it. By PTX's observation order, the load that reads the
//              last result has observed all additions. It is an acquire, so it synchronises with every block's release.
//           4. The second __syncthreads orders this load before the reads of the block's other threads. The acquire
//              also makes the GPU drop stale lines of L1.
// Checked   tests/csrc/test_grid_barrier.py
// Source    the scheme of NVIDIA's cooperative groups; the PTX manual, "Memory Consistency Model"
#pragma once
#include "primitives.cuh"

struct GridBarrier {
    unsigned word;                 // alone on its 128-byte line, because every block polls it
    alignas(128) unsigned passed;  // number of barriers passed, counted by block 0
};

constexpr unsigned top_bit = 1u << 31;

__device__ __forceinline__ void grid_barrier(GridBarrier* barrier) {
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned share = blockIdx.x == 0 ? top_bit - (gridDim.x - 1) : 1u;
        const unsigned before = add_release(&barrier->word, share);
        // Block 0 takes part in every barrier, so it can count for all. Nothing waits for the result of this addition.
        if (blockIdx.x == 0) atomicAdd(&barrier->passed, 1u);
        // Bit 31 cannot flip again before this block arrives at the next barrier, so a late load misses nothing.
        wait_while_equal(&barrier->word, before, top_bit);
    }
    __syncthreads();
}
