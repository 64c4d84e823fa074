// argmax.cuh: the index of the largest logit
// Computes  best = no_token
//           for i in [0, vocab_size), if logits[i] is not NaN:
//               if best == no_token or logits[i] > logits[best]: best = i        so the lowest index wins a tie
// Work      Each thread keeps the best of the rows it has seen. Then each warp finds its best, then each block. The
//           last block to arrive finds the best of all blocks.
// Checked   tests/csrc/test_kernels.py
#pragma once
#include "block.cuh"
#include "dims.cuh"

struct Best {
    float value;
    int index;
};

constexpr int no_token = 0x7fffffff;  // the result where every logit is NaN: no comparison with NaN is true

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

// Returns the token to decode, in [0, vocab_size). *p is either the last step's choice or a token of the host. The host
// stores its token as ~token (negative), so a missing argmax write is detected. no_token becomes vocab_size - 1, so a
// loop of steps without the host still reads inside the embedding. grid_argmax() keeps no_token for the host to see.
__device__ __forceinline__ int token_at(const int* p) {
    const int token = *p;
    const int chosen = token < 0 ? ~token : token;  // 0 or more
    return chosen < vocab_size ? chosen : vocab_size - 1;
}

struct ArgmaxShared {
    Best warp[block_warps];
    int flag;
};

// Each thread passes its best; *token gets the index of the best of the grid. If *token is no_token it stays so until
// the host stores a token: the model did not choose what follows, even if the logits are numbers again.
// Returns true in the last block to arrive. Until then, no block has written *token.
// block_best: one Best per block, in device memory;  arrivals: 0 between launches.
__device__ __forceinline__ bool grid_argmax(Best best, Best* block_best, unsigned* arrivals, int* token,
                                            ArgmaxShared* shared) {
    best = warp_best(best);
    if (lane_id() == 0) shared->warp[warp_id()] = best;
    __syncthreads();  // every warp's best is in shared memory
    bool lost = false;
    if (threadIdx.x == 0) {
        lost = *token == no_token;  // loaded early to hide its latency; it changes only after all blocks have arrived
        for (int w = 1; w < block_warps; ++w) best = better(best, shared->warp[w]);
        block_best[blockIdx.x] = best;
    }
    const bool last = last_block_to_arrive(arrivals, gridDim.x, &shared->flag);
    if (last && warp_id() == 0) {
        best = no_best();
        for (int b = lane_id(); b < static_cast<int>(gridDim.x); b += warp_threads) best = better(best, block_best[b]);
        best = warp_best(best);
        if (lane_id() == 0) *token = lost ? no_token : best.index;
    }
    return last;
}
