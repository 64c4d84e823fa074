// delta_rule_chunk.cuh: the gated delta rule for a sequence, in chunks of 64 tokens
// Computes  the same as delta_rule.cuh called for each token in turn. In a chunk let G_i be the sum of g over tokens
//           0 to i, S the state before the chunk and d_i the correction that token i writes. d_i depends on earlier d:
//             d_i + sum_{j<i} beta_i exp(G_i - G_j) (k_i . k_j) d_j = beta_i v_i - beta_i exp(G_i) S^T k_i
//           This is a unit lower-triangular system (I + L) d = beta (v - exp(G) k S). Only S depends on earlier chunks.
//             prepare: for each chunk, in parallel: T = (I + L)^-1 beta;  A_ij = exp(G_i - G_j) (q_i . k_j) for j <= i
//             scan:    for each chunk, in order:
//                          r_i = v_i - exp(G_i) S^T k_i
//                          d_i = sum_{j<=i} T_ij r_j
//                          o_i = exp(G_i) S^T q_i + sum_{j<=i} A_ij d_j
//                          S = exp(G_end) S + sum_i exp(G_end - G_i) k_i d_i^T
// Shapes    qkv [tokens, qkv_width] bf16, from causal_conv_sequence.cuh: q and k normalised, q scaled, each key head
//           padded with zeros to key_width; zero rows fill the last chunk
//           T, A [chunks, heads, 64, 64], G [chunks, heads, 64]; T and A are stored rounded to TF32, because only tensor
//           cores read them
//           recurrent_state [heads, K, V] fp32, read and written
// Work      prepare: one block per chunk and value head. scan: one block per value head and `scan_columns` columns of
//           V; its part of the state stays in registers from the first chunk to the last
// Checked   tests/csrc/test_prefill.py      Source  arXiv 2412.06464
#pragma once
#include "activations.cuh"
#include "dims.cuh"
#include "tensor_core.cuh"

constexpr int chunk_tokens = CHUNK_TOKENS;
constexpr float forgets_all = FORGETS_ALL;
constexpr int key_block = KEY_BLOCK;  // rows of the state that a warp updates together: eight per tile_row()
static_assert(chunk_tokens == 64 && key_block == 64, "four warps take 16 tokens each; a lane takes eight rows");
constexpr int key_width = (key_head_dim + key_block - 1) / key_block * key_block;
constexpr int qkv_width = 2 * num_key_heads * key_width + value_dim;
constexpr int k_offset = num_key_heads * key_width, v_offset = 2 * k_offset;
static_assert(block_warps == 8, "four warps for the rows of k, four for those of q");

struct ChunkArgs {
    const bf16* qkv;
    float *T, *A, *G;
};

__device__ __forceinline__ size_t chunk_head(int chunk, int head) {
    return static_cast<size_t>(chunk) * num_value_heads + head;
}

// ---- prepare

constexpr int products_stride = chunk_tokens + 4;  // keeps rows 16-byte aligned and transposed stores free of conflicts

struct PrepareShared {
    // [j][i]: the factor of d_j in the equation of token i > j. Transposed, because the solver goes down a column.
    alignas(16) float products[chunk_tokens][products_stride];
    float beta[chunk_tokens], G[chunk_tokens];
};

// One warp computes beta and G of the chunk, two neighbouring tokens per lane. a, b: this head's projections at the
// chunk's first token; tokens are `stride` apart. Tokens from `tokens` on get g = 0 and beta = 0, which change nothing.
__device__ __forceinline__ void chunk_gates(const bf16* a, const bf16* b, int stride, float A_log, float dt_bias, int tokens,
                                            float* G, PrepareShared* shared) {
    const int token = 2 * lane_id();  // in [0, chunk_tokens), even
    float g[2] = {}, beta[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (token + i >= tokens) continue;
        const size_t at = static_cast<size_t>(token + i) * stride;
        // exp(forgets_all) leaves nothing of the state. A larger |g| would only cost digits in all later sums.
        g[i] = fmaxf(log_decay(to_float(a[at]), A_log, dt_bias), forgets_all);
        beta[i] = sigmoid(to_float(b[at]));
    }
    float sum = g[0] + g[1];
#pragma unroll
    for (int offset = 1; offset < warp_threads; offset *= 2) {
        const float before = __shfl_up_sync(full_warp, sum, offset);
        if (lane_id() >= offset) sum += before;
    }
    // The sum before this lane's tokens comes from the lane below: sum - g[1] would lose digits where g[1] is large.
    const float neighbour = __shfl_up_sync(full_warp, sum, 1);
    const float before = lane_id() == 0 ? 0.0f : neighbour;
    const float sums[2] = {before + g[0], sum};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        shared->beta[token + i] = beta[i];
        shared->G[token + i] = G[token + i] = sums[i];
    }
}

// Warps 0 to 3 compute beta_i exp(G_i - G_j) (k_i . k_j) into shared memory, warps 4 to 7 compute A. A warp takes 16
// tokens i.
__device__ __forceinline__ void chunk_products(const bf16* q, const bf16* k, float* A, PrepareShared* shared) {
    const int first = warp_id() % 4 * 16;
    const bool is_q = warp_id() >= 4;
    const bf16* rows = (is_q ? q : k) + static_cast<size_t>(first + tile_row()) * qkv_width + terms_at();
    constexpr int tiles = chunk_tokens / 8;
    TileC product[tiles] = {};
#pragma unroll 1
    for (int block = 0; block < key_width; block += block_terms) {
        const bf16x8 upper = *reinterpret_cast<const bf16x8*>(rows + block);
        const bf16x8 lower = *reinterpret_cast<const bf16x8*>(rows + 8 * qkv_width + block);
#pragma unroll
        for (int four = 0; four < tiles; four += 4) {
            if (8 * four >= first + 16) break;  // these tokens j and all further ones come after every i of the warp
            bf16x8 other[4];
#pragma unroll
            for (int n = 0; n < 4; ++n)
                other[n] = *reinterpret_cast<const bf16x8*>(
                    k + static_cast<size_t>(8 * (four + n) + tile_row()) * qkv_width + terms_at() + block);
            multiply_add_block(&product[four], upper, lower, other);
        }
    }
    __syncthreads();  // beta and G are in shared memory
    const int row = first + tile_row(), slot = 2 * tile_slot();
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
        for (int x = 0; x < 4; ++x) {
            // Both in [0, chunk_tokens): i is the later token, j the earlier one. For others exp() would overflow.
            const int i = row + x / 2 * 8, j = 8 * tile + slot + x % 2;
            const bool sees = j <= i;
            const float decayed = expf(sees ? shared->G[i] - shared->G[j] : 0.0f) * product[tile].x[x];
            product[tile].x[x] = sees ? decayed : 0.0f;
        }
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int i = row + 8 * half, j = 8 * tile + slot;
            const float* two = &product[tile].x[2 * half];
            if (is_q) {
                *reinterpret_cast<float2*>(A + i * chunk_tokens + j) = float2{to_tf32(two[0]), to_tf32(two[1])};
            } else {
                const float beta = shared->beta[i];
                shared->products[j][i] = beta * two[0];
                shared->products[j + 1][i] = beta * two[1];
            }
        }
}

// Solves x_i = right_i - sum_{j<i} products[j][i] x_j in place, for one column of the right-hand side in x:
//     for j in [0, 64): for i in [j + 1, 64): x[i] -= products[j][i] * x[j]
// The inner iterations are independent of each other.
__device__ __forceinline__ void solve_column(float (&x)[chunk_tokens], const PrepareShared* shared) {
    // <solve>
#pragma unroll
    for (int j = 0; j < chunk_tokens - 1; ++j) {
        if (j % 4 == 0) asm volatile("" ::: "memory");  // else the compiler hoists all loads to the front, and spills
#pragma unroll
        for (int four = (j + 1) / 4; four < chunk_tokens / 4; ++four) {
            const float4 p = *reinterpret_cast<const float4*>(&shared->products[j][4 * four]);  // a broadcast
            if (4 * four + 0 > j) x[4 * four + 0] = fmaf(-p.x, x[j], x[4 * four + 0]);
            if (4 * four + 1 > j) x[4 * four + 1] = fmaf(-p.y, x[j], x[4 * four + 1]);
            if (4 * four + 2 > j) x[4 * four + 2] = fmaf(-p.z, x[j], x[4 * four + 2]);
            if (4 * four + 3 > j) x[4 * four + 3] = fmaf(-p.w, x[j], x[4 * four + 3]);
        }
    }
    // </solve>
}

// Computes T, A, G of one chunk and head. a, b: this head's projections of the whole sequence, `stride` apart. The
// chunk has `tokens` valid tokens, or all 64 if `tokens` is larger.
__device__ __forceinline__ void prepare_chunk(const ChunkArgs& args, int chunk, int head, const bf16* a, const bf16* b,
                                                   int stride, float A_log, float dt_bias, int tokens,
                                                   PrepareShared* shared) {
    const int key_head = head / value_heads_per_key;
    const size_t first = static_cast<size_t>(chunk) * chunk_tokens, at = chunk_head(chunk, head);
    const bf16* q = args.qkv + first * qkv_width + key_head * key_width;
    const bf16* k = q + k_offset;
    if (warp_id() == 0)  // which has the fewest products
        chunk_gates(a + first * stride, b + first * stride, stride, A_log, dt_bias, tokens, args.G + at * chunk_tokens,
                    shared);
    chunk_products(q, k, args.A + at * chunk_tokens * chunk_tokens, shared);
    __syncthreads();  // the products of k are in shared memory
    const int column = threadIdx.x;
    if (column >= chunk_tokens) return;
    float x[chunk_tokens];
#pragma unroll
    for (int i = 0; i < chunk_tokens; ++i) x[i] = i == column ? shared->beta[column] : 0.0f;
    solve_column(x, shared);
    float* T = args.T + at * chunk_tokens * chunk_tokens + column;
#pragma unroll
    for (int i = 0; i < chunk_tokens; ++i) T[i * chunk_tokens] = to_tf32(x[i]);
}

// ---- scan

// Each block reads all of q, k, T and A, mostly from L2. Narrow tiles read them more often, but the scan waits for its
// own results most of the time, so it is faster on more SMs: 16 heads of 128 columns make 128 blocks.
constexpr int scan_columns = key_width <= 512 ? 16 : 8;
constexpr int scan_tiles = scan_columns / 8;
constexpr int scan_stride = scan_columns + (scan_columns == 8 ? 1 : 3);  // odd, see tile_b(); + 3 also spreads stores
constexpr int scan_units = key_width / key_block * scan_tiles;  // 64 rows by 8 columns of the state
constexpr int scan_units_per_warp = (scan_units + block_warps - 1) / block_warps;
static_assert(value_head_dim % scan_columns == 0, "whole tiles");

struct ScanShared {
    float S[key_width][scan_stride];  // the state before the chunk, rounded to TF32
    float r[chunk_tokens][scan_stride];  // what the state lacks of v
    float delta[chunk_tokens][scan_stride], delta_at_end[chunk_tokens][scan_stride];  // d_i and exp(G_end - G_i) d_i
};

// The row of the state, in [0, key_width), that register (tile, x) of a unit holds. A lane's eight rows of a unit are
// neighbours, so that one instruction loads their elements of k.
__device__ __forceinline__ int state_row(int unit, int tile, int x) {
    return unit / scan_tiles * key_block + 8 * tile_row() + 2 * tile + x / 2;
}
// The column, in [0, scan_columns).
__device__ __forceinline__ int state_column(int unit, int x) { return unit % scan_tiles * 8 + 2 * tile_slot() + x % 2; }

// Calls use(element, row, column) for each element of the state that this lane holds, including padding rows.
template <typename Use>
__device__ __forceinline__ void each_of_state(TileC (&state)[scan_units_per_warp][4], Use use) {
#pragma unroll
    for (int u = 0; u < scan_units_per_warp; ++u) {
        const int unit = warp_id() + u * block_warps;
        if (unit >= scan_units) break;
#pragma unroll
        for (int tile = 0; tile < 4; ++tile)
#pragma unroll
            for (int x = 0; x < 4; ++x) use(state[u][tile].x[x], state_row(unit, tile, x), state_column(unit, x));
    }
}

// A lane's terms of rows `row` and row + 8 of k or q.
constexpr int key_blocks = key_width / block_terms;
struct KeyRows {
    bf16x8 upper[key_blocks], lower[key_blocks];
};

__device__ __forceinline__ KeyRows load_rows(const bf16* row) {
    KeyRows rows;
#pragma unroll
    for (int i = 0; i < key_blocks; ++i) {
        rows.upper[i] = load_x8(row + i * block_terms);
        rows.lower[i] = load_x8(row + i * block_terms + 8 * qkv_width);
    }
    return rows;
}

// product += upper and lower rows . the columns of a block in shared memory. Odd steps have sums of their own, so
// that fewer products wait for the one before.
template <int tiles>
__device__ __forceinline__ void multiply_add_columns(TileC (&product)[2][tiles], const Eight& upper, const Eight& lower,
                                                     const float* columns) {
#pragma unroll
    for (int step = 0; step < block_steps; ++step)
#pragma unroll
        for (int tile = 0; tile < tiles; ++tile)
            multiply_add(product[step % 2][tile], tile_a(upper, lower, step),
                         tile_b(columns + 8 * tile, scan_stride, step));
}

// A lane's terms of rows `row` and row + 8 of T or A.
struct TriangleRows {
    Eight upper[chunk_tokens / block_terms], lower[chunk_tokens / block_terms];
};

__device__ __forceinline__ TriangleRows load_triangle(const float* matrix, int row) {
    const float* at = matrix + row * chunk_tokens + terms_at();
    TriangleRows rows;
#pragma unroll
    for (int i = 0; i < chunk_tokens / block_terms; ++i) {
        if (i * block_terms > row) break;  // these tokens come after `row`; the whole warp takes the same branch
        rows.upper[i] = load_eight(at + i * block_terms);
        rows.lower[i] = load_eight(at + 8 * chunk_tokens + i * block_terms);
    }
    return rows;
}

// product += rows . columns, which are [chunk_tokens][scan_stride] in shared memory
template <int tiles>
__device__ __forceinline__ void triangle_times(const TriangleRows& rows, int row, const float* columns,
                                               TileC (&product)[2][tiles]) {
#pragma unroll
    for (int i = 0; i < chunk_tokens / block_terms; ++i) {
        if (i * block_terms > row) break;
        multiply_add_columns(product, rows.upper[i], rows.lower[i], columns + i * block_terms * scan_stride);
    }
}

// One block scans columns [first_column, first_column + scan_columns) of one head. o [tokens, value_dim] fp32; S: this
// head's state.
__device__ __forceinline__ void scan_chunks(const ChunkArgs& args, int head, int first_column, int chunks, float* S,
                                                float* o, ScanShared* shared) {
    const int key_head = head / value_heads_per_key;
    S += first_column;
    TileC state[scan_units_per_warp][4];
    each_of_state(state, [&](float& s, int row, int column) {
        s = row < key_head_dim ? S[static_cast<size_t>(row) * value_head_dim + column] : 0.0f;
    });

#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
        const size_t at = chunk_head(chunk, head), token = static_cast<size_t>(chunk) * chunk_tokens;
        const bf16* q = args.qkv + token * qkv_width + key_head * key_width;
        const bf16* k = q + k_offset;
        const bf16* values = args.qkv + token * qkv_width + v_offset + head * value_head_dim + first_column;
        const float* G = args.G + at * chunk_tokens;
        const float G_end = G[chunk_tokens - 1];
        const int row = warp_id() % 4 * 16 + tile_row();  // this lane's tokens of the chunk are row and row + 8
        const float G_row[2] = {G[row], G[row + 8]};
        // Loads of what the next products need come before the barrier, so that they wait together.
        const KeyRows rows = load_rows((warp_id() < 4 ? k : q) + static_cast<size_t>(row) * qkv_width + terms_at());
        each_of_state(state, [&](float& s, int row, int column) { shared->S[row][column] = to_tf32(s); });
        __syncthreads();  // S is in shared memory, and every warp has finished with the previous chunk

        TileC product[2][scan_tiles] = {};
#pragma unroll
        for (int i = 0; i < key_blocks; ++i)
            multiply_add_columns(product, widen(rows.upper[i]), widen(rows.lower[i]), shared->S[i * block_terms]);
#pragma unroll
        for (int tile = 0; tile < scan_tiles; ++tile)
#pragma unroll
            for (int x = 0; x < 4; ++x) {
                product[0][tile].x[x] = expf(G_row[x / 2]) * (product[0][tile].x[x] + product[1][tile].x[x]);
                product[1][tile].x[x] = 0.0f;
            }
        if (warp_id() < 4) {
#pragma unroll
            for (int tile = 0; tile < scan_tiles; ++tile)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int i = row + 8 * half, column = 8 * tile + 2 * tile_slot();
                    const float2 v = load_two(values + static_cast<size_t>(i) * qkv_width + column);
                    shared->r[i][column] = to_tf32(v.x - product[0][tile].x[2 * half]);
                    shared->r[i][column + 1] = to_tf32(v.y - product[0][tile].x[2 * half + 1]);
                }
        }
        const int tile = warp_id() / 4;  // of r, for the product with T
        TriangleRows triangle;
        if (tile < scan_tiles) triangle = load_triangle(args.T + at * chunk_tokens * chunk_tokens, row);
        __syncthreads();  // r is in shared memory, and every warp has finished reading S

        if (tile < scan_tiles) {
            TileC sums[2][1] = {};
            triangle_times(triangle, row, &shared->r[0][8 * tile], sums);
#pragma unroll
            for (int x = 0; x < 4; ++x) {
                const int i = row + x / 2 * 8, column = 8 * tile + 2 * tile_slot() + x % 2;
                const float delta = sums[0][0].x[x] + sums[1][0].x[x];
                shared->delta[i][column] = to_tf32(delta);
                shared->delta_at_end[i][column] = to_tf32(expf(G_end - G_row[x / 2]) * delta);
            }
        }
        if (warp_id() >= 4) triangle = load_triangle(args.A + at * chunk_tokens * chunk_tokens, row);
        __syncthreads();  // the corrections are in shared memory

        const float decay = expf(G_end);
        each_of_state(state, [&](float& s, int, int) { s *= decay; });
#pragma unroll
        for (int u = 0; u < scan_units_per_warp; ++u) {
            const int unit = warp_id() + u * block_warps;
            if (unit >= scan_units) break;
            const bf16* keys = k + static_cast<size_t>(terms_at()) * qkv_width + state_row(unit, 0, 0);
#pragma unroll
            for (int block = 0; block < chunk_tokens; block += block_terms)
#pragma unroll
                for (int step = 0; step < block_steps; ++step) {
                    const bf16* two = keys + static_cast<size_t>(block + 2 * step) * qkv_width;
                    const Eight first = load_eight(two), second = load_eight(two + qkv_width);
                    const TileB b = tile_b(&shared->delta_at_end[block][unit % scan_tiles * 8], scan_stride, step);
#pragma unroll
                    for (int tile = 0; tile < 4; ++tile)
                        multiply_add(state[u][tile],
                                     TileA{{first.x[2 * tile], first.x[2 * tile + 1], second.x[2 * tile],
                                            second.x[2 * tile + 1]}},
                                     b);
                }
        }
        if (warp_id() >= 4) {
            triangle_times(triangle, row, &shared->delta[0][0], product);
#pragma unroll
            for (int tile = 0; tile < scan_tiles; ++tile)
#pragma unroll
                for (int x = 0; x < 4; x += 2)
                    *reinterpret_cast<float2*>(o + (token + row + x / 2 * 8) * value_dim + head * value_head_dim +
                                               first_column + 8 * tile + 2 * tile_slot()) =
                        float2{product[0][tile].x[x] + product[1][tile].x[x],
                               product[0][tile].x[x + 1] + product[1][tile].x[x + 1]};
        }
    }

    each_of_state(state, [&](float& s, int row, int column) {
        if (row < key_head_dim) S[static_cast<size_t>(row) * value_head_dim + column] = s;
    });
}
