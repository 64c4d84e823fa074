// causal_attention.cuh: gated attention with grouped heads for a sequence that follows `position` earlier tokens
// Computes  for each token t in [0, length) and query head h, whose kv head is h / heads_per_kv:
//               for p in [0, position + t]: weight[p] = exp(q[t][h] . k_cache[p] - maximum)        q is already scaled
//               o[t][h] = (sum over p of weight[p] * v_cache[p]) / (sum over p of weight[p]) * sigmoid(gate[t][h])
// Shapes    q, o [tokens, heads, head_dim] bf16;  gates in `projected`;  k_cache, v_cache [kv heads, max_seq_len,
//           head_dim] bf16, which already hold k and v of the sequence itself
// Work      A row is one token and one of the query heads of a kv head, so that these heads share the keys. A warp
//           takes 16 rows, a block of four warps 64. The block goes over tiles of 32 keys with an online softmax in
//           registers.
// Layout    Lanes read 16 bytes of q and k, eight terms that their slots hold in two products: see terms_at(). ldmatrix
//           transposes v.
// Staging   k and v of a tile are copied to shared memory, v while the scores are computed, the next k while the sums of
//           v are. Their rows in shared memory are longer by what keeps the reads free of bank conflicts.
// Products  q, k and v are bf16, so bf16 tiles lose nothing. A weight is the sum of two bf16 numbers, its upper eight bits
//           and the next eight, with a product for each: together they keep more than TF32 does.
// Traffic   a block reads 32 KB of keys and values per tile at head_dim 256, for 64 rows
// Checked   tests/csrc/test_prefill.py      Source  arXiv 1805.02867 (online softmax)
#pragma once
#include "activations.cuh"
#include "dims.cuh"
#include "tensor_core.cuh"

constexpr int query_rows = 16;  // rows per warp
constexpr int key_tile = 32;  // four tiles of scores
constexpr int block_rows = BLOCK_ROWS;
constexpr int attention_threads = block_rows / query_rows * warp_threads;
constexpr int head_width = (head_dim + block_terms - 1) / block_terms * block_terms;  // padded with zeros
constexpr int value_tiles = head_width / 8;
constexpr int k_width = (head_width + 63) / 64 * 64 + 32, v_width = head_width + 8;  // the latter suits ldmatrix

struct CausalArgs {
    const bf16 *q, *k_cache, *v_cache, *projected;
    bf16* o;
    int position, length, max_seq_len;  // position: tokens before the sequence; length: tokens in it
};

struct CausalShared {
    alignas(16) bf16 k[key_tile][k_width], v[key_tile][v_width];
};

// The running softmax of rows tile_row() and tile_row() + 8. `weight` is the sum over this lane's keys only.
struct RowSoftmax {
    float maximum[2], weight[2];
    TileC sum[value_tiles];
};

// Starts to copy the keys [first, first + key_tile) of one head, of which `keys` may be read. Later ones repeat the last.
template <int width>
__device__ __forceinline__ void stage_tile(const bf16* head, int first, int keys, bf16 (&to)[key_tile][width]) {
    constexpr int pieces = head_width / 8;
#pragma unroll 4
    for (int piece = threadIdx.x; piece < key_tile * pieces; piece += attention_threads) {
        const int key = piece / pieces, element = piece % pieces * 8;
        if (head_width == head_dim || element < head_dim)
            copy_16_bytes(&to[key][element], head + static_cast<size_t>(min(first + key, keys - 1)) * head_dim + element);
        else
            *reinterpret_cast<bf16x8*>(&to[key][element]) = bf16x8{};
    }
}

// scores[tile] = q k^T for the staged keys 8 * tile to 8 * tile + 7. q: this lane's two rows
__device__ __forceinline__ void key_scores(const bf16* const (&q)[2], const bf16 (&k)[key_tile][k_width],
                                           TileC (&scores)[key_tile / 8]) {
#pragma unroll 2
    for (int block = 0; block < head_width; block += block_terms) {
        const bool is_there = head_dim % block_terms == 0 || block + terms_at() < head_dim;
        const bf16x8 upper = is_there ? *reinterpret_cast<const bf16x8*>(q[0] + block + terms_at()) : bf16x8{};
        const bf16x8 lower = is_there ? *reinterpret_cast<const bf16x8*>(q[1] + block + terms_at()) : bf16x8{};
        bf16x8 key[4];
#pragma unroll
        for (int tile = 0; tile < 4; ++tile)
            key[tile] = *reinterpret_cast<const bf16x8*>(&k[8 * tile + tile_row()][block + terms_at()]);
        multiply_add_block(scores, upper, lower, key);
    }
}

// Turns the scores of the keys from `first` on into weights, and adjusts the softmax of their rows. visible: the number
// of keys that each of this lane's two rows may see.
__device__ __forceinline__ void weigh(TileC (&scores)[key_tile / 8], int first, const int (&visible)[2], RowSoftmax& soft) {
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
        const float old = expf(soft.maximum[half] - maximum);  // every row sees key 0, so the maximum is finite
        soft.maximum[half] = maximum;
        soft.weight[half] *= old;
#pragma unroll
        for (int tile = 0; tile < key_tile / 8; ++tile)
#pragma unroll
            for (int x = 0; x < 2; ++x) {
                float& score = scores[tile].x[2 * half + x];
                score = expf(score - maximum);
                soft.weight[half] += score;
            }
#pragma unroll
        for (int tile = 0; tile < value_tiles; ++tile)
            soft.sum[tile].x[2 * half] *= old, soft.sum[tile].x[2 * half + 1] *= old;
    }
}

// sum += weights v for the staged values
__device__ __forceinline__ void add_values(const TileC (&weights)[key_tile / 8], const bf16 (&v)[key_tile][v_width],
                                           RowSoftmax& soft) {
    // Four matrices: keys 0 to 7 and 8 to 15 of eight columns, then of the next eight.
    const bf16* at = &v[lane_id() % 16][lane_id() / 16 * 8];
#pragma unroll
    for (int tile = 0; tile < key_tile / 8; tile += 2) {
        Bf16A parts[2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // a lane's two keys of (row, tile), (row + 8, tile), and the same of tile + 1
            const float* two = &weights[tile + i / 2].x[2 * (i % 2)];
            const unsigned upper = upper_halves(two[0], two[1]);
            parts[0].x[i] = upper;
            parts[1].x[i] = upper_halves(two[0] - even(upper), two[1] - odd(upper));
        }
#pragma unroll
        for (int column = 0; column < value_tiles; column += 4) {
            const Matrices left = load_matrices<true>(at + 8 * tile * v_width + 8 * column);
            const Matrices right = load_matrices<true>(at + 8 * tile * v_width + 8 * column + 16);
            const Bf16B b[4] = {
                {left.x[0], left.x[1]}, {left.x[2], left.x[3]}, {right.x[0], right.x[1]}, {right.x[2], right.x[3]}};
            multiply_add_four(&soft.sum[column], parts, b);
        }
    }
}

// One block computes rows [block_row, block_row + block_rows) of one kv head.
__device__ __forceinline__ void causal_attention(const CausalArgs& a, int kv_head, int block_row, int gate_stride,
                                                 CausalShared* shared) {
    const bf16* q[2];
    int visible[2], token[2], head[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        // row = token * heads_per_kv + head in the group
        const int row = block_row + warp_id() * query_rows + tile_row() + 8 * half;
        token[half] = row / heads_per_kv;
        head[half] = kv_head * heads_per_kv + row % heads_per_kv;
        // A row past the end repeats the last token and stores nothing.
        const int there = min(token[half], a.length - 1);
        visible[half] = a.position + there + 1;
        q[half] = a.q + (static_cast<size_t>(there) * num_attention_heads + head[half]) * head_dim;
    }
    const bf16* k_head = a.k_cache + static_cast<size_t>(kv_head) * a.max_seq_len * head_dim;
    const bf16* v_head = a.v_cache + static_cast<size_t>(kv_head) * a.max_seq_len * head_dim;
    const int keys = a.position + min((block_row + block_rows - 1) / heads_per_kv, a.length - 1) + 1;
    RowSoftmax soft{{-INFINITY, -INFINITY}, {0.0f, 0.0f}, {}};
    stage_tile(k_head, 0, keys, shared->k);
#pragma unroll 1
    for (int first = 0; first < keys; first += key_tile) {
        wait_for_own_copies();
        __syncthreads();  // k is in shared memory, and every warp has finished with the v before
        stage_tile(v_head, first, keys, shared->v);
        TileC scores[key_tile / 8] = {};
        key_scores(q, shared->k, scores);
        weigh(scores, first, visible, soft);
        wait_for_own_copies();
        __syncthreads();  // v is in shared memory, and every warp has finished with this k
        if (first + key_tile < keys) stage_tile(k_head, first + key_tile, keys, shared->k);
        add_values(scores, shared->v, soft);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float weight = soft.weight[half];
        weight += __shfl_xor_sync(full_warp, weight, 1);
        weight += __shfl_xor_sync(full_warp, weight, 2);
        if (token[half] >= a.length) continue;
        const bf16* gate = a.projected + static_cast<size_t>(token[half]) * gate_stride + (2 * head[half] + 1) * head_dim;
        bf16* o = a.o + (static_cast<size_t>(token[half]) * num_attention_heads + head[half]) * head_dim;
        const float scale = 1.0f / weight;
        // loads before the first store, which the compiler would not pass
        constexpr int group = head_dim / 8 < 8 ? head_dim / 8 : 8;
#pragma unroll
        for (int first = 0; first < head_dim / 8; first += group) {
            unsigned gates[group];
#pragma unroll
            for (int i = 0; i < group; ++i)
                gates[i] = *reinterpret_cast<const unsigned*>(gate + 8 * (first + i) + 2 * tile_slot());
#pragma unroll
            for (int i = 0; i < group; ++i) {
                const float* sum = &soft.sum[first + i].x[2 * half];
                store_two(o + 8 * (first + i) + 2 * tile_slot(), sum[0] * scale * sigmoid(even(gates[i])),
                          sum[1] * scale * sigmoid(odd(gates[i])));
            }
        }
    }
}
