// sampling.cu: draw the next token after a token of any stage, in one cooperative launch
#include "grid_barrier.cuh"
#include "sampling.cuh"

// Replaces the greedy choice in *token by a draw. If all logits were NaN, there is no choice, and *token stays.
// redraw: whether *token is a draw from the same logits already, so that the greedy choice is to be found in memory
extern "C" __global__ void __launch_bounds__(block_threads)
draw(const float* logits, const Sampling* sampling, int position, int redraw, SamplingMemory* memory, Best* block_best,
     unsigned* arrivals, GridBarrier* barrier, int* token) {
    __shared__ SamplingShared shared;
    const int greedy = redraw ? memory->greedy : *token;
    if (!redraw && blockIdx.x == 0 && threadIdx.x == 0) memory->greedy = greedy;
    if (greedy < 0 || greedy >= vocab_size) return;  // in every block; no_token, or a value that no argmax wrote
    draw_token(logits, logits[greedy], *sampling, position, memory, block_best, arrivals, token, &shared,
               [&] { grid_barrier(barrier); });
}
