// causal_attention.cuh: gated attention with grouped heads for a sequence that follows `position` earlier tokens
// Computes  for each token t in [0, length) and query head h, whose kv head is h / heads_per_kv:
//               for p in [0, position + t]: weight[p] = exp(q[t][h] . k_cache[p] - maximum)        q is already scaled
//               o[t][h] = (sum over p of weight[p] * v_cache[p]) / (sum over p of weight[p]) * sigmoid(gate[t][h])
// Shapes    q, o [tokens, heads, head_dim] bf16;  gates in `projected`;  k_cache, v_cache [kv heads, max_seq_len,
//           head_dim] bf16, which already hold k and v of the sequence itself
// Work      A row is one token and one of the query heads of a kv head, so that these heads share the keys. A warp
//           takes 16 rows and goes over tiles of 32 keys with an online softmax in registers. Four warps, a team, share
//           16 rows: each takes every fourth tile, and the team merges its results at the end. A block has two teams.
// Traffic   a warp reads 32 keys and values, 32 KB at head_dim 256, for 16 rows; its block's other team hits L1 mostly
// Layout    Operands come from memory in the layout of the tensor cores, so nothing is staged or transposed. A lane
//           gets the scores of (row, key 2 slot) and (row, key 2 slot + 1). It uses them as terms slot and slot + 4 of
//           the sum over keys: term slot is key 2 slot, and term slot + 4 is key 2 slot + 1. A lane's eight
//           neighbouring elements of v belong to eight tiles of columns: column `row` of tile j is element 8 row + j.
// Checked   tests/csrc/test_prefill.py      Source  arXiv 1805.02867 (online softmax)
#pragma once
#include "activations.cuh"
#include "dims.cuh"
#include "tensor_core.cuh"

constexpr int query_rows = 16;  // rows per warp
constexpr int key_tile = 32;
constexpr int team_warps = 4;   // warps that share their rows
constexpr int teams = block_warps / team_warps;
constexpr int block_rows = BLOCK_ROWS;
static_assert(teams * query_rows == block_rows, "the grid counts on it");
constexpr int value_blocks = (head_dim + 63) / 64;  // a block is 64 elements: eight tiles of columns
constexpr int value_tiles = 8 * value_blocks;

struct CausalArgs {
    const bf16 *q, *k_cache, *v_cache, *projected;
    bf16* o;
    int position, length, max_seq_len;  // position: tokens before the sequence; length: tokens in it
};

struct CausalShared {
    float sum[teams][value_tiles][4][warp_threads];
    float maximum[teams][2][warp_threads], weight[teams][2][warp_threads];
};

// The running softmax of rows tile_row() and tile_row() + 8 over the keys that this warp has taken. `weight` is the sum
// over this lane's keys only.
struct RowSoftmax {
    float maximum[2], weight[2];
    TileC sum[value_tiles];
};

__device__ __forceinline__ Eight zeros() { return Eight{}; }

// scores[tile] += q k^T for keys 8 * tile to 8 * tile + 7. q: this lane's two rows; k: this lane's key of each tile.
__device__ __forceinline__ void key_scores(const bf16* const (&q)[2], const bf16* const (&k)[key_tile / 8],
                                           TileC (&scores)[key_tile / 8]) {
#pragma unroll 2
    for (int block = 0; block < head_dim; block += block_terms) {
        const bool is_there = head_dim % block_terms == 0 || block + terms_at() < head_dim;
        const Eight upper = is_there ? load_eight(q[0] + block + terms_at()) : zeros();
        const Eight lower = is_there ? load_eight(q[1] + block + terms_at()) : zeros();
#pragma unroll
        for (int tile = 0; tile < key_tile / 8; ++tile) {
            const Eight key = is_there ? load_eight(k[tile] + block + terms_at()) : zeros();
#pragma unroll
            for (int step = 0; step < block_steps; ++step)
                multiply_add(scores[tile], tile_a(upper, lower, step), tile_b(key, step));
        }
    }
}

// Adds the keys [first, first + key_tile) to the rows' softmax. visible: the number of keys that each of this lane's
// two rows may see; keys: the number of keys that may be read.
__device__ __forceinline__ void attend_tile(const CausalArgs& a, const bf16* const (&q)[2], const bf16* k_head,
                                            const bf16* v_head, int first, const int (&visible)[2], int keys,
                                            RowSoftmax& soft) {
    TileC scores[key_tile / 8] = {};
    const bf16* k[key_tile / 8];
#pragma unroll
    for (int tile = 0; tile < key_tile / 8; ++tile)
        k[tile] = k_head + static_cast<size_t>(min(first + 8 * tile + tile_row(), keys - 1)) * head_dim;
    key_scores(q, k, scores);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float maximum = soft.maximum[half];
#pragma unroll
        for (int tile = 0; tile < key_tile / 8; ++tile)
#pragma unroll
            for (int x = 0; x < 2; ++x) {
                float& score = scores[tile].x[2 * half + x];
                if (first + 8 * tile + 2 * tile_slot() + x >= visible[half]) score = -INFINITY;
                maximum = fmaxf(maximum, score);
            }
        maximum = fmaxf(maximum, __shfl_xor_sync(full_warp, maximum, 1));
        maximum = fmaxf(maximum, __shfl_xor_sync(full_warp, maximum, 2));  // the maximum over the four lanes of the row
        const float base = maximum == -INFINITY ? 0.0f : maximum;  // -INFINITY: the row has seen no key yet
        const float old = expf(soft.maximum[half] - base);
        soft.maximum[half] = maximum;
        soft.weight[half] *= old;
#pragma unroll
        for (int tile = 0; tile < key_tile / 8; ++tile)
#pragma unroll
            for (int x = 0; x < 2; ++x) {
                float& score = scores[tile].x[2 * half + x];
                score = expf(score - base);
                soft.weight[half] += score;
                score = to_tf32(score);
            }
#pragma unroll
        for (int tile = 0; tile < value_tiles; ++tile)
            soft.sum[tile].x[2 * half] *= old, soft.sum[tile].x[2 * half + 1] *= old;
    }
#pragma unroll
    for (int tile = 0; tile < key_tile / 8; ++tile) {
        const float* p = scores[tile].x;
        const TileA weights{{p[0], p[2], p[1], p[3]}};
        const int key = first + 8 * tile + 2 * tile_slot();
        const bf16* v[2] = {v_head + static_cast<size_t>(min(key, keys - 1)) * head_dim,
                            v_head + static_cast<size_t>(min(key + 1, keys - 1)) * head_dim};
#pragma unroll
        for (int block = 0; block < value_blocks; ++block) {
            const int element = 64 * block + 8 * tile_row();
            const bool is_there = head_dim % 64 == 0 || element < head_dim;
            const Eight even_key = is_there ? load_eight(v[0] + element) : zeros();
            const Eight odd_key = is_there ? load_eight(v[1] + element) : zeros();
#pragma unroll
            for (int j = 0; j < 8; ++j)
                multiply_add(soft.sum[8 * block + j], weights, TileB{{even_key.x[j], odd_key.x[j]}});
        }
    }
}

// Merges the warps of a team into its first warp, always in the same order.
__device__ __forceinline__ void merge_team(RowSoftmax& soft, CausalShared* shared) {
    const int team = warp_id() / team_warps, member = warp_id() % team_warps;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        soft.weight[half] += __shfl_xor_sync(full_warp, soft.weight[half], 1);
        soft.weight[half] += __shfl_xor_sync(full_warp, soft.weight[half], 2);
    }
#pragma unroll 1
    for (int other = 1; other < team_warps; ++other) {
        if (member == other) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                shared->maximum[team][half][lane_id()] = soft.maximum[half];
                shared->weight[team][half][lane_id()] = soft.weight[half];
            }
#pragma unroll
            for (int tile = 0; tile < value_tiles; ++tile)
#pragma unroll
                for (int x = 0; x < 4; ++x) shared->sum[team][tile][x][lane_id()] = soft.sum[tile].x[x];
        }
        __syncthreads();  // the other warp's sums are in shared memory
        if (member == 0) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float theirs = shared->maximum[team][half][lane_id()];
                const float maximum = fmaxf(soft.maximum[half], theirs);
                const float base = maximum == -INFINITY ? 0.0f : maximum;
                const float old = expf(soft.maximum[half] - base), now = expf(theirs - base);
                soft.maximum[half] = maximum;
                soft.weight[half] = fmaf(soft.weight[half], old, shared->weight[team][half][lane_id()] * now);
#pragma unroll
                for (int tile = 0; tile < value_tiles; ++tile)
#pragma unroll
                    for (int x = 2 * half; x < 2 * half + 2; ++x)
                        soft.sum[tile].x[x] = fmaf(soft.sum[tile].x[x], old, shared->sum[team][tile][x][lane_id()] * now);
            }
        }
        __syncthreads();  // the next warp may overwrite
    }
}

// One block computes rows [block_row, block_row + block_rows) of one kv head.
__device__ __forceinline__ void causal_attention(const CausalArgs& a, int kv_head, int block_row, int gate_stride,
                                                 CausalShared* shared) {
    const int first_row = block_row + warp_id() / team_warps * query_rows;
    const int last_token = min((first_row + query_rows - 1) / heads_per_kv, a.length - 1);
    const bf16* q[2];
    int visible[2], token[2], head[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first_row + tile_row() + 8 * half;  // row = token * heads_per_kv + head in the group
        token[half] = row / heads_per_kv;
        head[half] = kv_head * heads_per_kv + row % heads_per_kv;
        // A row past the end repeats the last token and stores nothing.
        const int there = min(token[half], a.length - 1);
        q[half] = a.q + (static_cast<size_t>(there) * num_attention_heads + head[half]) * head_dim;
        visible[half] = a.position + there + 1;
    }
    const bf16* k_head = a.k_cache + static_cast<size_t>(kv_head) * a.max_seq_len * head_dim;
    const bf16* v_head = a.v_cache + static_cast<size_t>(kv_head) * a.max_seq_len * head_dim;
    const int keys = first_row < a.length * heads_per_kv ? a.position + last_token + 1 : 0;
    RowSoftmax soft{{-INFINITY, -INFINITY}, {0.0f, 0.0f}, {}};
#pragma unroll 1
    for (int first = warp_id() % team_warps * key_tile; first < keys; first += team_warps * key_tile)
        attend_tile(a, q, k_head, v_head, first, visible, keys, soft);
    merge_team(soft, shared);
    if (warp_id() % team_warps != 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (token[half] >= a.length) continue;
        const bf16* gate = a.projected + static_cast<size_t>(token[half]) * gate_stride + (2 * head[half] + 1) * head_dim;
        bf16* o = a.o + (static_cast<size_t>(token[half]) * num_attention_heads + head[half]) * head_dim;
        const float scale = 1.0f / soft.weight[half];
#pragma unroll
        for (int block = 0; block < value_blocks; ++block)
#pragma unroll
            for (int x = 0; x < 2; ++x) {  // columns 2 slot and 2 slot + 1 of eight tiles: eight neighbours for each x
                const int element = 64 * block + 8 * (2 * tile_slot() + x);
                if (element >= head_dim) continue;
                const Eight gates = load_eight(gate + element);
                Eight out;
#pragma unroll
                for (int j = 0; j < 8; ++j)
                    out.x[j] = soft.sum[8 * block + j].x[2 * half + x] * scale * sigmoid(gates.x[j]);
                store_eight(o + element, out);
            }
    }
}
