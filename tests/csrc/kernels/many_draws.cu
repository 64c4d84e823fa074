// many_draws.cu: draws of several tokens in one cooperative launch, as a kernel that decodes many tokens makes them
#include "grid_barrier.cuh"
#include "sampling.cuh"

// tokens[i] = a draw from row i of logits [count, row], at position first + i. *next starts as the first row's choice.
extern "C" __global__ void __launch_bounds__(block_threads)
many_draws(const float* logits, int row, int count, const Sampling* sampling, int first, SamplingMemory* memory,
           Best* block_best, unsigned* arrivals, GridBarrier* barrier, int* next, int* tokens) {
    __shared__ SamplingShared shared;
    for (int i = 0; i < count; ++i) {
        const float* own = logits + static_cast<size_t>(i) * row;
        Best best = no_best();
        for (int t = blockIdx.x * block_threads + threadIdx.x; t < vocab_size; t += gridDim.x * block_threads)
            best = better(best, Best{own[t], t});
        grid_argmax(best, block_best, arrivals, next, &shared.argmax);
        grid_barrier(barrier);  // the greedy choice is in *next
        draw_token(own, own[*next], *sampling, first + i, memory, block_best, arrivals, next, &shared,
                   [&] { grid_barrier(barrier); });
        grid_barrier(barrier);  // the draw is in *next
        if (blockIdx.x == 0 && threadIdx.x == 0) tokens[i] = *next;
    }
}
