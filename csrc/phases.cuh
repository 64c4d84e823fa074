// phases.cuh: the phases of a layer. per_layer.cu launches each as a kernel; megakernel.cu runs them between grid
// barriers. The whole grid computes a phase, whatever its size, and all blocks must finish it before the next starts.
//
//   DeltaNet layer    deltanet_in -> delta_rule -> deltanet_out -> mlp_up -> mlp_down
//   attention layer   attention_in -> attention -> attention_out -> mlp_up -> mlp_down
//
//   for each layer: mid = x + mixer(norm(x)), where the mixer is DeltaNet or attention;  x = mid + MLP(norm(mid))
//
// Activations are fp32 and small. So every block reads the whole input vector and normalises it itself: that costs a
// few KiB from L2 and saves a pass through memory. hidden_states has one row per layer for x and its successors, so no
// phase overwrites what another block may still read.
#pragma once
#include "argmax.cuh"
#include "attention.cuh"
#include "causal_conv.cuh"
#include "delta_rule.cuh"
#include "rms_norm.cuh"

union MatvecShared {  // scratch is needed only beside a vector of hidden_size, so a longer one may take its place
    alignas(16) float x[staged_size(longest_vector)];
    struct { float normed[staged_size(hidden_size)], scratch[block_warps]; };
};

union PhaseShared {
    MatvecShared matvec;
    DeltaRuleShared delta_rule;
    AttentionShared attention;
    ArgmaxShared argmax;
};
static_assert(sizeof(PhaseShared) <= 48 * 1024, "fits in the static shared memory of every GPU");

// ---- the input vector of a matrix product, staged in shared memory. Each function ends with a barrier of the block.

__device__ __forceinline__ void stage_norm(const float* x, const float* norm, MatvecShared* shared) {
    block_rms_norm<hidden_size>(x, norm, shared->scratch, [&](int i, float y) { shared->x[staged(i)] = y; });
    __syncthreads();
}

template <int n>
__device__ __forceinline__ void stage_vector(const float* x, MatvecShared* shared) {
    constexpr int per_thread = (n + block_threads - 1) / block_threads;
    float value[per_thread];  // all loads come first, because a load after a store would wait for it
#pragma unroll
    for (int i = 0; i < per_thread; ++i) {
        const int c = threadIdx.x + i * block_threads;
        value[i] = c < n ? x[c] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < per_thread; ++i) {
        const int c = threadIdx.x + i * block_threads;
        if (c < n) shared->x[staged(c)] = value[i];
    }
    __syncthreads();
}

__device__ __forceinline__ void stage_gated_norm(const float* o, const float* z, const float* norm, MatvecShared* shared) {
    for (int head = warp_id(); head < num_value_heads; head += block_warps) {
        const int at = head * value_head_dim;
        warp_gated_rms_norm<value_head_dim>(o + at, z + at, norm,
                                            [&](int i, float y) { shared->x[staged(at + i)] = y; });
    }
    __syncthreads();
}

// ---- embedding

__device__ __forceinline__ void embed_phase(const bf16* embed_tokens, int token, float* x) {
    const bf16* row = embed_tokens + static_cast<size_t>(token) * hidden_size;
    for (int i = blockIdx.x * block_threads + threadIdx.x; i < hidden_size; i += gridDim.x * block_threads)
        x[i] = to_float(row[i]);
}

// ---- DeltaNet

struct DeltaNetWeights {
    const bf16 *in_proj_qkv, *in_proj_z, *in_proj_b, *in_proj_a, *out_proj;
    const float *conv1d, *A_log, *dt_bias, *norm;
};

// One row index in [0, deltanet_in_rows) for all four input matrices. A warp takes two rows, both of the same matrix.
static_assert(conv_dim % 2 == 0 && value_dim % 2 == 0 && num_value_heads % 2 == 0, "rows go in pairs");
constexpr int z_row = conv_dim, b_row = z_row + value_dim, a_row = b_row + num_value_heads;
constexpr int deltanet_in_rows = a_row + num_value_heads;

__device__ __forceinline__ const bf16* deltanet_in_row(const DeltaNetWeights& w, int row) {
    return row < z_row   ? w.in_proj_qkv + static_cast<size_t>(row) * hidden_size
           : row < b_row ? w.in_proj_z + static_cast<size_t>(row - z_row) * hidden_size
           : row < a_row ? w.in_proj_b + static_cast<size_t>(row - b_row) * hidden_size
                         : w.in_proj_a + static_cast<size_t>(row - a_row) * hidden_size;
}

// Computes the norm, the four input projections, and what needs one row only: convolution, beta, g.
// qkv [conv_dim] after convolution and SiLU;  z [value_dim];  beta, g [num_value_heads]
__device__ __forceinline__ void deltanet_in_phase(const float* x, const float* input_norm, const DeltaNetWeights& w,
                                                  float* conv_state, float* qkv, float* z, float* beta, float* g,
                                                  MatvecShared* shared) {
    stage_norm(x, input_norm, shared);
    for (int pair = grid_warp(); pair < deltanet_in_rows / 2; pair += grid_warps()) {
        const int row = 2 * pair;
        const bf16* W = deltanet_in_row(w, row);
        const bf16* const two[2] = {W, W + hidden_size};
        float sum[2];
        warp_dot<hidden_size>(two, shared->x, sum);
        // <epilogue>
        if (lane_id() < 2) {  // lane 0 takes the first row, lane 1 the second: the two epilogues run at the same time
            const int r = row + lane_id();  // in [0, deltanet_in_rows)
            const float value = lane_id() == 0 ? sum[0] : sum[1];
            if (r < z_row) {
                qkv[r] = causal_conv_step(value, r, w.conv1d, conv_state);
            } else if (r < b_row) {
                z[r - z_row] = value;
            } else if (r < a_row) {
                beta[r - b_row] = sigmoid(value);
            } else {
                g[r - a_row] = log_decay(value, w.A_log[r - a_row], w.dt_bias[r - a_row]);
            }
        }
        // </epilogue>
    }
}

// Computes o [value_dim], before the gated norm. A unit is one head and one tile of columns.
__device__ __forceinline__ void delta_rule_phase(const float* qkv, const float* beta, const float* g,
                                                 float* recurrent_state, float* o, DeltaRuleShared* shared) {
    for (int unit = blockIdx.x; unit < num_value_heads * tiles_per_head; unit += gridDim.x) {
        // head in [0, num_value_heads); column, the tile's first, in [0, value_head_dim)
        const int head = unit / tiles_per_head, column = unit % tiles_per_head * tile_columns;
        const int key_head = head / value_heads_per_key;  // in [0, num_key_heads)
        const int at = head * value_head_dim + column;
        float* S = recurrent_state + static_cast<size_t>(head) * key_head_dim * value_head_dim + column;
        float4 tile[rows_per_thread];
        load_state_tile(S, tile);  // issued first: the norms run while these loads are in flight
        delta_rule_tile(qkv + key_head * key_head_dim, qkv + key_dim + key_head * key_head_dim, qkv + 2 * key_dim + at,
                        beta[head], g[head], tile, S, shared,
                        [first = o + at](int own, float value) { first[own] = value; });
        __syncthreads();  // the next tile reuses the shared memory
    }
}

// Computes out = x + out_proj(gated_norm(o, z))
__device__ __forceinline__ void deltanet_out_phase(const float* o, const float* z, const DeltaNetWeights& w,
                                                   const float* x, float* out, MatvecShared* shared) {
    stage_gated_norm(o, z, w.norm, shared);
    grid_matvec_residual<value_dim>(w.out_proj, shared->x, hidden_size, x, out);
}

// ---- attention

struct AttentionWeights {
    const bf16 *q_proj, *k_proj, *v_proj, *o_proj;
    const float *q_norm, *k_norm;
};

constexpr int k_row = 2 * q_dim, v_row = k_row + kv_dim;  // pairs of rows fit here too: kv_dim is a multiple of 8
constexpr int attention_in_rows = v_row + kv_dim;

__device__ __forceinline__ const bf16* attention_in_row(const AttentionWeights& w, int row) {
    return row < k_row   ? w.q_proj + static_cast<size_t>(row) * hidden_size
           : row < v_row ? w.k_proj + static_cast<size_t>(row - k_row) * hidden_size
                         : w.v_proj + static_cast<size_t>(row - v_row) * hidden_size;
}

// Computes projected [attention_in_rows]: q and its gate head by head, then k, then v
__device__ __forceinline__ void attention_in_phase(const float* x, const float* input_norm, const AttentionWeights& w,
                                                   float* projected, MatvecShared* shared) {
    stage_norm(x, input_norm, shared);
    for (int pair = grid_warp(); pair < attention_in_rows / 2; pair += grid_warps()) {
        const int row = 2 * pair;
        const bf16* W = attention_in_row(w, row);
        const bf16* const two[2] = {W, W + hidden_size};
        float sum[2];
        warp_dot<hidden_size>(two, shared->x, sum);
        if (lane_id() < 2) projected[row + lane_id()] = lane_id() == 0 ? sum[0] : sum[1];
    }
}

// Computes out = x + o_proj(o)
__device__ __forceinline__ void attention_out_phase(const float* o, const AttentionWeights& w, const float* x, float* out,
                                                    MatvecShared* shared) {
    stage_vector<q_dim>(o, shared);
    grid_matvec_residual<q_dim>(w.o_proj, shared->x, hidden_size, x, out);
}

// ---- MLP

// Computes act [intermediate_size] = silu(gate_proj(norm(x))) * up_proj(norm(x)). A warp takes row i of both matrices.
__device__ __forceinline__ void mlp_up_phase(const float* x, const float* post_attention_norm, const bf16* gate_proj,
                                             const bf16* up_proj, float* act, MatvecShared* shared) {
    stage_norm(x, post_attention_norm, shared);
    for (int row = grid_warp(); row < intermediate_size; row += grid_warps()) {
        const size_t at = static_cast<size_t>(row) * hidden_size;
        const bf16* const two[2] = {gate_proj + at, up_proj + at};
        float sum[2];
        warp_dot<hidden_size>(two, shared->x, sum);
        if (lane_id() == 0) act[row] = silu(sum[0]) * sum[1];
    }
}

// Computes out = x + down_proj(act)
__device__ __forceinline__ void mlp_down_phase(const float* act, const bf16* down_proj, const float* x, float* out,
                                               MatvecShared* shared) {
    stage_vector<intermediate_size>(act, shared);
    grid_matvec_residual<intermediate_size>(down_proj, shared->x, hidden_size, x, out);
}

// ---- LM head

// Computes logits [vocab_size] = lm_head(norm(x)), and the index of the largest
__device__ __forceinline__ void lm_head_phase(const float* x, const float* final_norm, const bf16* lm_head, float* logits,
                                              Best* block_best, unsigned* arrivals, int* next_token, PhaseShared* shared) {
    stage_norm(x, final_norm, &shared->matvec);
    Best best = no_best();
    for (int row = 2 * grid_warp(); row < vocab_size; row += 2 * grid_warps()) {
        const bool pair = row + 1 < vocab_size;  // false for the last row of an odd vocabulary, which is read twice
        const bf16* W = lm_head + static_cast<size_t>(row) * hidden_size;
        const bf16* const two[2] = {W, pair ? W + hidden_size : W};
        float sum[2];
        warp_dot<hidden_size>(two, shared->matvec.x, sum);
        if (lane_id() < 1 + pair) {
            const float logit = lane_id() == 0 ? sum[0] : sum[1];
            logits[row + lane_id()] = logit;
            best = better(best, Best{logit, row + lane_id()});
        }
    }
    __syncthreads();  // the staged vector is no longer needed, so the argmax may reuse its memory
    grid_argmax(best, block_best, arrivals, next_token, &shared->argmax);
}
