// argmax.cuh: the index of the largest logit; the lowest index among equals
// Work      each warp keeps the best of the rows it computes, then a block its best, then the last block to arrive
//           the best of all
// Checked   tests/csrc/test_kernels.py
#pragma once
#include "block.cuh"
#include "dims.cuh"

struct Best {
    float value;
    int index;
};

constexpr int no_token = 0x7fffffff;  // the choice where no logit is a number: NaN compares greater than nothing

__device__ __forceinline__ Best no_best() { return Best{-INFINITY, no_token}; }

__device__ __forceinline__ Best better(Best a, Best b) {
    if (b.value > a.value || (b.value == a.value && b.index < a.index)) return b;
    return a;
}

__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
    for (int offset = warp_threads / 2; offset > 0; offset /= 2) {
        const float value = __shfl_xor_sync(full_warp, best.value, offset);
        const int index = __shfl_xor_sync(full_warp, best.index, offset);
        best = better(best, Best{value, index});
    }
    return best;
}

// The token to decode. Where the last step's choice is written the host puts its own tokens too, as their complement:
// negative, so that a choice that nothing wrote cannot pass for one. no_token becomes the last of the vocabulary: a loop
// that the host does not watch goes on inside the embedding, and grid_argmax tells the host when it looks.
__device__ __forceinline__ int token_at(const int* p) {
    const int token = *p;
    const int chosen = token < 0 ? ~token : token;  // 0 or more
    return chosen < vocab_size ? chosen : vocab_size - 1;
}

struct ArgmaxShared {
    Best warp[block_warps];
    int flag;
};

// Each thread gives its best; *token gets the index of the best of the whole grid. no_token stays, until the host puts a
// token there: what follows it is no choice of the model's, even if its logits are numbers.
// block_best: one Best for each block, in device memory;  arrivals: 0 between launches.
__device__ __forceinline__ void grid_argmax(Best best, Best* block_best, unsigned* arrivals, int* token,
                                            ArgmaxShared* shared) {
    best = warp_best(best);
    if (lane_id() == 0) shared->warp[warp_id()] = best;
    __syncthreads();  // every warp's best is there
    bool lost = false;
    if (threadIdx.x == 0) {
        lost = *token == no_token;  // loaded now, so that the last block need not wait; nobody writes before all arrive
        for (int w = 1; w < block_warps; ++w) best = better(best, shared->warp[w]);
        block_best[blockIdx.x] = best;
    }
    if (last_block_to_arrive(arrivals, gridDim.x, &shared->flag) && warp_id() == 0) {
        best = no_best();
        for (int b = lane_id(); b < static_cast<int>(gridDim.x); b += warp_threads) best = better(best, block_best[b]);
        best = warp_best(best);
        if (lane_id() == 0) *token = lost ? no_token : best.index;
    }
}
