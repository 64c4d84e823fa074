// delta_rule.cuh: one decode token of the gated delta rule
// Computes  for each value head, for j in [0, V):
//               for i in [0, K): S[i][j] *= exp(g)
//               delta = beta * (v[j] - sum over i of S[i][j] * k[i])
//               for i in [0, K): S[i][j] += k[i] * delta
//               o[j] = sum over i of S[i][j] * q[i]
// Shapes    q, k [key heads, K]  v, o [value heads, V]  beta, g [value heads]  S [value heads, K, V], V contiguous;
//           all fp32. Each key head serves value_heads_per_key consecutive value heads.
// Traffic   S is read and written once: 2*H*K*V*4 = 2 MiB per layer at H=16, K=V=128; all else is under 2 %
// Checked   tests/csrc/test_kernels.py      Source  arXiv 2412.06464
#pragma once
#include "block.cuh"
#include "dims.cuh"

// One warp computes out[i] = scale * x[i] / sqrt(sum(x^2) + eps) for one head. out may be x.
__device__ __forceinline__ void warp_l2_norm(const float* x, float* out, float scale) {
    warp_normalise<key_head_dim>(
        x, [](int) { return 0.0f; }, [&](float squares) { return scale * rsqrtf(squares + l2_norm_eps); },
        [&](int i, float value, float) { out[i] = value; });
}

// The plain form: thread j owns column j of one head's state and goes down it twice.
// Slow by choice: one block per head leaves most SMs idle, and a thread makes K loads one after another. See
// delta_rule_tile() for a faster form. q, k, v, S, o point at this head; q and k are L2-normalised, q is scaled.
__device__ __forceinline__ void delta_rule_column(const float* q, const float* k, const float* v, float beta, float g,
                                                  float* S, float* o, int column) {
    // <column>
    const float decay = expf(g);
    float S_k = 0.0f;
    for (int i = 0; i < key_head_dim; ++i) S_k = fmaf(decay * S[i * value_head_dim + column], k[i], S_k);
    const float delta = beta * (v[column] - S_k);
    float S_q = 0.0f;
    for (int i = 0; i < key_head_dim; ++i) {
        const float s = fmaf(k[i], delta, decay * S[i * value_head_dim + column]);
        S[i * value_head_dim + column] = s;
        S_q = fmaf(s, q[i], S_q);
    }
    o[column] = S_q;
    // </column>
}

// The tiled form. A block takes `tile_columns` columns of one head. A thread keeps four neighbouring columns of a few
// rows in registers, so S is read once and written once, 16 bytes per thread. Both products need only the old state:
//     S_new^T q = exp(g) * S^T q + delta * (k . q)
// So one pass over S and one reduction compute both.
constexpr int tile_columns = TILE_COLUMNS;
constexpr int tile_quads = tile_columns / 4;                              // threads per row of the tile
constexpr int tile_rows = block_threads / tile_quads;                     // rows that the block covers at once
constexpr int rows_per_thread = (key_head_dim + tile_rows - 1) / tile_rows;
constexpr int tiles_per_head = value_head_dim / tile_columns;
static_assert(value_head_dim % tile_columns == 0, "whole tiles");

struct DeltaRuleShared {
    float q[key_head_dim], k[key_head_dim];
    float k_dot_q;
    float S_k[block_warps][tile_columns], S_q[block_warps][tile_columns];  // one partial sum per warp
    float delta[tile_columns];
};

// Loads this thread's part of a tile. S (row 0) points at the tile's first column. The loads may be issued before the
// token's q, k and v are there, because only this tile's block writes the state.
__device__ __forceinline__ void load_state_tile(const float* S, float4 (&s)[rows_per_thread]) {
    const int quad = threadIdx.x % tile_quads, first_row = threadIdx.x / tile_quads;  // as in delta_rule_tile()
#pragma unroll
    // <load>
    for (int i = 0; i < rows_per_thread; ++i) {
        const int row = first_row + i * tile_rows;
        if (row < key_head_dim) s[i] = *reinterpret_cast<const float4*>(S + row * value_head_dim + quad * 4);
    }
    // </load>
}

// q_raw, k_raw [K] come from the convolution, not normalised. v and S (row 0) point at this tile's first column; s is what
// load_state_tile() has loaded of S. The thread of each column calls store(column, o) before the tile is written, because
// others wait for o. It is thread `column` of the block.
template <typename Store>
__device__ __forceinline__ void delta_rule_tile(const float* q_raw, const float* k_raw, const float* v, float beta,
                                                float g, float4 (&s)[rows_per_thread], float* S,
                                                DeltaRuleShared* shared, Store store) {
    const int quad = threadIdx.x % tile_quads;       // this thread's columns of the tile: 4 * quad to 4 * quad + 3
    const int first_row = threadIdx.x / tile_quads;  // in [0, tile_rows); its next rows follow tile_rows apart
    const float v_column = threadIdx.x < tile_columns ? v[threadIdx.x] : 0.0f;  // loaded early, used after the sums
    if (warp_id() == 0) {
        warp_l2_norm(q_raw, shared->q, rsqrtf(static_cast<float>(key_head_dim)));
        warp_l2_norm(k_raw, shared->k, 1.0f);
        __syncwarp();
        float products = 0.0f;
        for (int c = lane_id(); c < key_head_dim; c += warp_threads) products = fmaf(shared->q[c], shared->k[c], products);
        products = warp_sum(products);
        if (lane_id() == 0) shared->k_dot_q = products;
    }
    __syncthreads();  // q, k and k_dot_q are in shared memory

    float S_k[4] = {}, S_q[4] = {};
#pragma unroll
    // <products>
    for (int i = 0; i < rows_per_thread; ++i) {
        const int row = first_row + i * tile_rows;
        if (row >= key_head_dim) break;
        const float k = shared->k[row], q = shared->q[row];
        S_k[0] = fmaf(s[i].x, k, S_k[0]), S_q[0] = fmaf(s[i].x, q, S_q[0]);
        S_k[1] = fmaf(s[i].y, k, S_k[1]), S_q[1] = fmaf(s[i].y, q, S_q[1]);
        S_k[2] = fmaf(s[i].z, k, S_k[2]), S_q[2] = fmaf(s[i].z, q, S_q[2]);
        S_k[3] = fmaf(s[i].w, k, S_k[3]), S_q[3] = fmaf(s[i].w, q, S_q[3]);
    }
    // </products>
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int offset = tile_quads; offset < warp_threads; offset *= 2) {  // sums over lanes with the same columns
            S_k[j] += __shfl_xor_sync(full_warp, S_k[j], offset);
            S_q[j] += __shfl_xor_sync(full_warp, S_q[j], offset);
        }
        if (lane_id() < tile_quads) {
            shared->S_k[warp_id()][quad * 4 + j] = S_k[j];
            shared->S_q[warp_id()][quad * 4 + j] = S_q[j];
        }
    }
    __syncthreads();  // every warp's partial sums are in shared memory

    const float decay = expf(g);
    if (threadIdx.x < tile_columns) {
        const int column = threadIdx.x;
        float k_sum = 0.0f, q_sum = 0.0f;
#pragma unroll
        for (int w = 0; w < block_warps; ++w) k_sum += shared->S_k[w][column], q_sum += shared->S_q[w][column];
        // <delta>
        const float delta = beta * (v_column - decay * k_sum);
        shared->delta[column] = delta;
        store(column, fmaf(delta, shared->k_dot_q, decay * q_sum));
        // </delta>
    }
    __syncthreads();  // delta is in shared memory

#pragma unroll
    // <write>
    for (int i = 0; i < rows_per_thread; ++i) {
        const int row = first_row + i * tile_rows;
        if (row >= key_head_dim) break;
        const float k = shared->k[row];
        s[i].x = fmaf(k, shared->delta[quad * 4 + 0], decay * s[i].x);
        s[i].y = fmaf(k, shared->delta[quad * 4 + 1], decay * s[i].y);
        s[i].z = fmaf(k, shared->delta[quad * 4 + 2], decay * s[i].z);
        s[i].w = fmaf(k, shared->delta[quad * 4 + 3], decay * s[i].w);
        store4(S + row * value_head_dim + quad * 4, s[i]);
    }
    // </write>
}
