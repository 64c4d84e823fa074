// per_layer.cu: fused kernels, five per layer. Each kernel is one phase of phases.cuh.
// The kernels read token and position from memory: a CUDA graph replays the arguments of its capture, and so serves
// every step. lm_head writes the next token, and embed increments the position.
// For stage `graph` on Hopper and newer (-DDEPENDENT_LAUNCH) each kernel prefetches weights, which no kernel writes,
// and then waits for its predecessor. Without the macro, prefetch and wait compile to nothing.
#include "phases.cuh"

// blocks: how many blocks must fit on an SM. It limits a thread's registers: to 128 for one block, to 64 for two.
#define KERNEL_FOR(blocks) extern "C" __global__ void __launch_bounds__(block_threads, blocks)
#define KERNEL KERNEL_FOR(1)

// With dependent launch a grid has one block per SM (luce_edu/stages/graph.py). A block with 64 registers per thread
// fits on an SM beside its predecessor's block, and prefetches its weights while that one finishes. Kernels that would
// spill at 64 on some architecture keep 128: deltanet_out and attention_out on Blackwell, attention on all.
#ifdef DEPENDENT_LAUNCH
constexpr int beside_predecessor = 2;
#else
constexpr int beside_predecessor = 1;
#endif

// After this call a kernel may read what the earlier kernels of the step wrote.
__device__ __forceinline__ void begin_phase() {
    wait_for_predecessor();
    let_successor_start();
}

// x = embed_tokens[token]. *position is -1 before the first token; only one thread of this launch accesses it.
KERNEL embed(const bf16* embed_tokens, const int* token, int* position, float* x) {
    begin_phase();
    if (blockIdx.x == 0 && threadIdx.x == 0) ++*position;
    embed_phase(embed_tokens, token_at(token), x);
}

KERNEL_FOR(beside_predecessor)
deltanet_in(const float* x, const float* input_norm, const bf16* in_proj_qkv, const bf16* in_proj_z,
            const bf16* in_proj_b, const bf16* in_proj_a, const float* conv1d, const float* A_log, const float* dt_bias,
            float* conv_state, float* qkv, float* z, float* beta, float* g) {
    __shared__ MatvecShared shared;
    DeltaNetWeights w{in_proj_qkv, in_proj_z, in_proj_b, in_proj_a, nullptr, conv1d, A_log, dt_bias, nullptr};
    if (2 * grid_warp() < deltanet_in_rows) {
        const bf16* row = deltanet_in_row(w, 2 * grid_warp());
        prefetch_row<hidden_size>(row);
        prefetch_row<hidden_size>(row + hidden_size);
    }
    begin_phase();
    deltanet_in_phase(x, input_norm, w, conv_state, qkv, z, beta, g, &shared);
}

KERNEL delta_rule(const float* qkv, const float* beta, const float* g, float* recurrent_state, float* o) {
    __shared__ DeltaRuleShared shared;
    begin_phase();
    delta_rule_phase(qkv, beta, g, recurrent_state, o, &shared);
}

KERNEL deltanet_out(const float* o, const float* z, const float* norm, const bf16* out_proj, const float* x, float* out) {
    __shared__ MatvecShared shared;
    DeltaNetWeights w{};
    w.out_proj = out_proj;
    w.norm = norm;
    prefetch_first_row<value_dim>(out_proj, hidden_size);
    begin_phase();
    deltanet_out_phase(o, z, w, x, out, &shared);
}

KERNEL_FOR(beside_predecessor)
attention_in(const float* x, const float* input_norm, const bf16* q_proj, const bf16* k_proj, const bf16* v_proj,
             float* projected) {
    __shared__ MatvecShared shared;
    AttentionWeights w{q_proj, k_proj, v_proj, nullptr, nullptr, nullptr};
    if (2 * grid_warp() < attention_in_rows) {
        const bf16* row = attention_in_row(w, 2 * grid_warp());
        prefetch_row<hidden_size>(row);
        prefetch_row<hidden_size>(row + hidden_size);
    }
    begin_phase();
    attention_in_phase(x, input_norm, w, projected, &shared);
}

KERNEL attention(const float* projected, const float* q_norm, const float* k_norm, const float* rope_cos,
                 const float* rope_sin, bf16* k_cache, bf16* v_cache, float* partials, float* o, unsigned* arrivals,
                 const int* position, int max_seq_len) {
    __shared__ AttentionShared shared;
    begin_phase();
    attention_phase({projected, q_norm, k_norm, rope_cos, rope_sin, k_cache, v_cache, partials, o, arrivals, *position,
                     max_seq_len, *position},
                    &shared);
}

KERNEL attention_out(const float* o, const bf16* o_proj, const float* x, float* out) {
    __shared__ MatvecShared shared;
    AttentionWeights w{};
    w.o_proj = o_proj;
    prefetch_first_row<q_dim>(o_proj, hidden_size);
    begin_phase();
    attention_out_phase(o, w, x, out, &shared);
}

KERNEL_FOR(beside_predecessor)
mlp_up(const float* x, const float* norm, const bf16* gate_proj, const bf16* up_proj, float* act) {
    __shared__ MatvecShared shared;
    prefetch_first_row<hidden_size>(gate_proj, intermediate_size);
    prefetch_first_row<hidden_size>(up_proj, intermediate_size);
    begin_phase();
    mlp_up_phase(x, norm, gate_proj, up_proj, act, &shared);
}

KERNEL_FOR(beside_predecessor)
mlp_down(const float* act, const bf16* down_proj, const float* x, float* out) {
    __shared__ MatvecShared shared;
    prefetch_first_row<intermediate_size>(down_proj, hidden_size);
    begin_phase();
    mlp_down_phase(act, down_proj, x, out, &shared);
}

KERNEL_FOR(beside_predecessor)
lm_head(const float* x, const float* norm, const bf16* weight, float* logits, Best* block_best, unsigned* arrivals,
        int* next_token) {
    __shared__ PhaseShared shared;
    const int row = 2 * grid_warp();  // this warp's first pair of rows; an odd vocabulary ends with a single row
    if (row < vocab_size) prefetch_row<hidden_size>(weight + static_cast<size_t>(row) * hidden_size);
    if (row + 1 < vocab_size) prefetch_row<hidden_size>(weight + static_cast<size_t>(row + 1) * hidden_size);
    begin_phase();
    lm_head_phase(x, norm, weight, logits, block_best, arrivals, next_token, &shared);
}
