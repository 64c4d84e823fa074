// streaming.cu: tokens by one cooperative launch, with weights that stream across the phases
//
// The phases are those of megakernel.cu, except that the merging of the attention's splits is one of its own. Two things
// differ:
//   1. Weights come from a stream that runs ahead (weight_stream.cuh). Each warp owns fixed rows of every matrix, and
//      the host has packed them in the order of use. So memory keeps working while blocks wait for each other.
//   2. Blocks exchange activations as cells, which are empty until they are published (exchange.cuh), and partial
//      results as tagged words (tagged.cuh). A block waits for the values that it needs, and for no other block. No
//      grid barrier stands between two phases.
//
//   phase            waits for                        publishes
//   deltanet_in      x of the layer                   in: qkv after the convolution, z, beta, g
//   delta_rule       q, k, v, z, beta, g of a head    mixed: o * norm * silu(z), and squares of o per tile
//   deltanet_out     mixed, squares                   mid
//   attention_in     x of the layer                   in: q with its gate, k, v
//   attend           q of a kv head; for the newest   partials
//                    position k and v, too
//   merge            partials of a head, its gate     mixed: o
//   attention_out    mixed                            mid
//   mlp_up           mid                              act
//   mlp_down         act                              x of the next layer
//   lm_head          the last x                       the best logit of the block
//   next token       every block's best               the token
//   draw             the token above                  with DRAWS: the token drawn in its place, by a grid barrier
//
// Deadlock  A wait ends when other blocks have finished an earlier phase, and phases are in one order for all blocks.
//           The launch is cooperative, so every block runs. Copies of weights wait for no block.
// Reuse     A word or cell is published once per token. Block B may write for token t + 1 only after it has that token.
//           It is chosen from the logits of all blocks, and a block reads all that it needs of token t before it has
//           its logits. So nobody still reads the cells of token t, and token t + 1 empties them one by one. Every
//           block releases this with its best of token t + 1, and block B acquires the choice before token t + 2. So
//           it finds each of these cells empty, or published for token t + 2.
// State     conv_state and recurrent_state: an element is read and written by the same thread in every token.
//           k_cache, v_cache: the block that needs the newest row writes it; later, other blocks read it. The exchange
//           of the next token is a release by every block and an acquire by every block, which orders the two.
// Order     of sums: fixed by the sizes of the model, whatever the card and its number of blocks
// Checked   tests/stages/test_streaming.py
#include "attention.cuh"
#include "argmax.cuh"
#include "causal_conv.cuh"
#include "delta_rule.cuh"
#include "exchange.cuh"
#include "grid_barrier.cuh"
#include "rms_norm.cuh"
#include "sampling.cuh"
#include "tagged.cuh"
#include "weight_stream.cuh"

// ---- Sizes

// Rows of a group, which a warp multiplies at once. The out projections and mlp_down have few rows and many columns.
// Their groups are smaller, so that the blocks get nearly equal parts.
constexpr int in_rows = 4, out_rows = 2;
__device__ constexpr int groups_of(int rows, int group) { return (rows + group - 1) / group; }

// The columns of a slot that holds so many rows, and the slots of a group, whose last one is filled up with zeros
__device__ constexpr int slot_cols(int rows) { return slot_weights / rows; }
__device__ constexpr int slots_of(int cols, int rows) { return (cols + slot_cols(rows) - 1) / slot_cols(rows); }
__device__ constexpr int padded(int cols, int rows) { return slots_of(cols, rows) * slot_cols(rows); }

// The number of warps that share a group, each with a part of the columns. A product with few rows would leave warps
// idle otherwise. SPLIT_ROWS == 0: none are shared.
__device__ constexpr int split_of(int cols, int rows) { return SPLIT_ROWS && rows == out_rows ? slots_of(cols, rows) : 1; }

constexpr int batch_units = 120;  // units of work between two barriers of the block
static_assert(batch_units % block_warps == 0, "lm_head() has no batches, but takes the same groups as if it had");

// Rows of the input projections, as in phases.cuh
constexpr int z_row = conv_dim, b_row = z_row + value_dim, a_row = b_row + num_value_heads;
constexpr int deltanet_in_rows = a_row + num_value_heads;
constexpr int k_row = 2 * q_dim, v_row = k_row + kv_dim, attention_in_rows = v_row + kv_dim;
static_assert(hidden_size % 4 == 0 && intermediate_size % 2 == 0, "whole groups of rows");

// A layer's cells. Each vector begins at a multiple of four, which one load takes. The squares of each head have a line
// of 128 bytes: every block reads all of them, and L2 answers one request after another for the same line.
constexpr int line_cells = 32;
static_assert(tiles_per_head <= line_cells, "a cell for each tile");
__device__ constexpr int fours(int n) { return (n + 3) / 4 * 4; }
constexpr int in_cells = 0;
constexpr int mixed_cells = in_cells + fours(max_of(deltanet_in_rows, attention_in_rows));
constexpr int squares_cells = mixed_cells + fours(max_of(value_dim, q_dim));
constexpr int mid_cells = squares_cells + num_value_heads * line_cells;
constexpr int act_cells = mid_cells + fours(hidden_size);
constexpr int x_cells = act_cells + fours(intermediate_size);
constexpr int layer_cells = (x_cells + hidden_size + line_cells - 1) / line_cells * line_cells;
static_assert(layer_cells == LAYER_CELLS, "luce_edu/stages/streaming.py allocates them");

// luce_edu/stages/streaming.py reads the names of the fields from here and fills them by name.
struct Layer {
    const float *input_norm, *post_attention_norm;
    const float *conv1d, *A_log, *dt_bias, *norm;  // null in an attention layer
    float *conv_state, *recurrent_state;
    const float *q_norm, *k_norm;  // null in a DeltaNet layer
    bf16 *k_cache, *v_cache;
    Word* partials;
};

struct Model {
    const bf16 *embed_tokens, *stream;
    const int* first_slot;  // [blocks * block_warps + 1]
    const float *norm, *rope_cos, *rope_sin;
    float *hidden_states, *logits;
    Cell* cells;           // [2, num_hidden_layers, layer_cells]
    Word *bests, *chosen;  // [blocks, 2], [1]
    int* next_token;
    int* generated;        // [max_seq_len], in memory that the host can read meanwhile
    const int *stop, *end_tokens;  // stop: set by the host;  end_tokens [END_TOKENS]
    GridBarrier* barrier;
    const Sampling* sampling;  // for draws only, as all that follow
    SamplingMemory* sampling_memory;
    Best* block_best;  // [blocks]
    unsigned* arrivals;
};

// What all phases of a token share. x of layer 0 is a row of the embedding; later ones are cells of the layer before.
struct Token {
    unsigned tag;
    int position, max_seq_len;
    const bf16* embedding;  // [hidden_size]
    Cell* cells;            // this token's copy of them
    int to_other;           // from there to the other copy
};

struct DeltaShared {
    DeltaRuleShared rule;
    float q[key_head_dim], k[key_head_dim], v[tile_columns], z[tile_columns], beta, g;
};

// The products by their number of groups of rows; both out projections and mlp_down have hidden_size rows.
enum Product { deltanet_in_product, attention_in_product, out_product, up_product, head_product, products };
struct Part {
    int first, count;  // groups
};

struct StreamShared {
    union {
        // the staged vector of a product
        alignas(16) float x[max_of(padded(hidden_size, in_rows), padded(longest_vector, out_rows))];
        DeltaShared delta;
        AttentionShared attention;
        SamplingShared sampling;
    };
    float partial[2][batch_units][4];
    float scratch[block_warps];
    Best warp_best[block_warps];
    Token token;  // here it saves registers
    int chosen;
    int unit;  // of attention(); here it saves a register, which would be spilled on sm_80 to sm_89
    Part parts[products];
    WeightStream parked[block_warps];
    Model model;
    Layer layers[num_hidden_layers];
};
static_assert(sizeof(StreamShared) <= SHARED_BYTES, "luce_edu/stages/streaming.py leaves this much beside the ring");

// ---- Matrix products

using Sums = const float (*)[4];  // of a group's rows, by unit

// Computes each product's part of this block: neighbouring groups. A division is slow, so it happens once per launch.
__device__ __forceinline__ void compute_parts(Part* parts) {
    constexpr unsigned groups[products] = {
        groups_of(deltanet_in_rows, in_rows), groups_of(attention_in_rows, in_rows), hidden_size / out_rows,
        intermediate_size / 2, groups_of(vocab_size, in_rows)};
    const unsigned blocks = gridDim.x, block = blockIdx.x;
#pragma unroll
    for (int i = 0; i < products; ++i) {
        if (threadIdx.x != i) continue;
        const int first = groups[i] * block / blocks;
        parts[i] = {first, static_cast<int>(groups[i] * (block + 1) / blocks) - first};
    }
}

// The grid computes W . x for all groups of rows of a product. A unit is one group and one of `split` parts of its
// columns; the warps of a block take units in turn. After a barrier, finish(first, count, partial) gets the sums of
// `count` groups from `first` on: those of group first + i are partial[i * split + part][row of the group].
template <int cols, int rows, typename Finish>
__device__ __forceinline__ void stream_groups(WeightStream& stream, StreamShared* shared, Product product, Finish finish) {
    constexpr int split = split_of(cols, rows), slots_per_unit = slots_of(cols, rows) / split;
    static_assert(slots_of(cols, rows) % split == 0 && split <= batch_units, "parts of equal size");
    constexpr int batch = batch_units / split * split;
    const int begin = shared->parts[product].first, units = shared->parts[product].count * split;
    for (int first = 0, turn = 0; first < units; first += batch, turn ^= 1) {
        const int here = units - first < batch ? units - first : batch;
        for (int u = warp_id(); u < here; u += block_warps) {
            const float* x = shared->x + u % split * slots_per_unit * slot_cols(rows);
            float sum[rows] = {};
#pragma unroll 1
            for (int i = 0; i < slots_per_unit; ++i) add_slot(stream, x + i * slot_cols(rows), sum);
            const float total = warp_sums(sum);
            constexpr int lanes = warp_threads / rows;
            if (lane_id() % lanes == 0) shared->partial[turn][u][lane_id() / lanes] = total;
        }
        if (first + batch >= units) stream.prefetch_next();
        __syncthreads();  // the sums of this batch are there
        finish(begin + first / split, here / split, shared->partial[turn]);
    }
}

// ---- The vector of a product, staged in shared memory. Each function ends with a barrier of the block.

// Thread t stages elements 4 * i to 4 * i + 3 for i = t + k * block_threads.
template <int n>
__device__ __forceinline__ void stage_four(int thread, int k, float4 value, StreamShared* shared) {
    static_assert(4 * block_threads % chunk == 0, "staged(c + 4 * block_threads) = staged(c) + 4 * block_threads");
    if (has_four<n>(thread, k))
        *reinterpret_cast<float4*>(shared->x + staged(4 * thread) + 4 * k * block_threads) = value;
}

// Elements from n on are zeros.
template <int n, int rows>
__device__ __forceinline__ void end_staging(StreamShared* shared) {
    for (int c = n + threadIdx.x; c < padded(n, rows); c += block_threads) shared->x[staged(c)] = 0.0f;
    __syncthreads();  // the vector is in shared memory
}

// Stages n cells as they are.
template <int n>
__device__ __forceinline__ void stage_cells(const Cell* cells, StreamShared* shared) {
    const int own = fresh_thread_index();
    await_vector<n>(cells, own, [&](int k, float4 value) { stage_four<n>(own, k, value, shared); });
    end_staging<n, out_rows>(shared);
}

// A thread's elements of a vector [hidden_size], as in stage_four(): of x, or of the weights of a norm
struct Norm {
    float4 of[fours_per_thread<hidden_size>];
};

__device__ __forceinline__ Norm load_norm(const float* p) {
    Norm norm;
#pragma unroll
    for (int k = 0; k < fours_per_thread<hidden_size>; ++k) {
        const bool has = has_four<hidden_size>(threadIdx.x, k);
        norm.of[k] = has ? reinterpret_cast<const float4*>(p)[threadIdx.x + k * block_threads] : float4{};
    }
    return norm;
}

// The weights of a norm are loaded one phase before the phase that uses them, so that they do not queue behind copies.
// Of a larger model, they would need more registers than there are: load_now() loads them when the phase begins.
constexpr bool norms_are_early = fours_per_thread<hidden_size> <= 1;
__device__ __forceinline__ Norm load_early(const float* p) { return norms_are_early ? load_norm(p) : Norm{}; }
__device__ __forceinline__ Norm load_now(const Norm& early, const float* p) { return norms_are_early ? early : load_norm(p); }

// Stages x / sqrt(mean of squares + eps) * (1 + norm).
__device__ __forceinline__ void stage_norm(const Norm& x, const Norm& norm, StreamShared* shared) {
    float squares = 0.0f;
#pragma unroll
    for (int k = 0; k < fours_per_thread<hidden_size>; ++k) {
        const float4 v = x.of[k];
        if (has_four<hidden_size>(threadIdx.x, k)) squares += v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
    }
    const float scale = rsqrtf(block_sum(squares, shared->scratch) / hidden_size + rms_norm_eps);
    const int own = fresh_thread_index();
#pragma unroll
    for (int k = 0; k < fours_per_thread<hidden_size>; ++k) {
        const float4 v = x.of[k], w = norm.of[k];
        const float4 value{v.x * (scale * (1.0f + w.x)), v.y * (scale * (1.0f + w.y)), v.z * (scale * (1.0f + w.z)),
                           v.w * (scale * (1.0f + w.w))};
        stage_four<hidden_size>(own, k, value, shared);
    }
    end_staging<hidden_size, in_rows>(shared);
}

// ---- A token

// The end of a phase. Cells and words make a barrier superfluous. GRID_BARRIERS keeps it, so that its cost can be compared.
__device__ __forceinline__ void end_phase(const Model& m) {
    if constexpr (GRID_BARRIERS) grid_barrier(m.barrier);
}

__device__ __forceinline__ void await_vector(const Cell* cells, Norm& x) {
    await_vector<hidden_size>(cells, fresh_thread_index(), [&](int k, float4 value) {
        if (k < fours_per_thread<hidden_size>) x.of[k] = value;
    });
}

// x of the layer before
__device__ __forceinline__ const Cell* x_before(const Token& token, int layer) {
    return token.cells + (layer - 1) * layer_cells + x_cells;
}

__device__ __forceinline__ void await_x(const Token& token, int layer, Norm& x) {
    if (layer > 0) return await_vector(x_before(token, layer), x);
#pragma unroll
    for (int k = 0; k < fours_per_thread<hidden_size>; ++k) {
        const int i = threadIdx.x + k * block_threads;
        const uint2 four = i < hidden_size / 4 ? reinterpret_cast<const uint2*>(token.embedding)[i] : uint2{};
        x.of[k] = float4{even(four.x), odd(four.x), even(four.y), odd(four.y)};
    }
}

// x[i], which this block has waited for before
__device__ __forceinline__ float x_at(const Token& token, int layer, int i) {
    return layer == 0 ? to_float(token.embedding[i]) : __uint_as_float(load_cell(x_before(token, layer) + i));
}

// One batch's rows, one thread each: row() gets the row's number and its sum.
template <int rows, int split, typename Row>
__device__ __forceinline__ void for_each_row(int first, int count, Sums partial, Row row) {
    for (int r = threadIdx.x; r < rows * count; r += block_threads) {
        float sum = partial[r / rows * split][r % rows];
        for (int part = 1; part < split; ++part) sum += partial[r / rows * split + part][r % rows];
        row(rows * first + r, sum);
    }
}

// The first row that this thread finishes, or -1. It loads the row's other inputs before it waits for the vector.
template <int rows>
__device__ __forceinline__ int early_row(const StreamShared* shared, Product product) {
    const Part part = shared->parts[product];
    const int r = threadIdx.x;
    return r < rows * part.count ? rows * part.first + r : -1;
}

// What finishes a row of deltanet_in, besides its sum.
struct InRow {
    ConvWindow window;
    float A_log, dt_bias;
};
__device__ __forceinline__ InRow load_in_row(const Layer& layer, int r) {
    InRow with{};
    if (r < z_row) with.window = load_conv_window(r, layer.conv1d, layer.conv_state);
    if (r >= a_row && r < deltanet_in_rows) with.A_log = layer.A_log[r - a_row], with.dt_bias = layer.dt_bias[r - a_row];
    return with;
}

__device__ __forceinline__ void deltanet_in(const Layer& layer, int l, Cell* cells, const Token& token,
                                            const Norm& early_norm, WeightStream& stream, StreamShared* shared) {
    const int early = early_row<in_rows>(shared, deltanet_in_product);
    InRow with{};
    if (early >= 0) with = load_in_row(layer, early);
    const Norm norm = load_now(early_norm, layer.input_norm);
    Norm x;
    await_x(token, l, x);
    stage_norm(x, norm, shared);
    stream_groups<hidden_size, in_rows>(stream, shared, deltanet_in_product, [&](int first, int count, Sums partial) {
        for_each_row<in_rows, split_of(hidden_size, in_rows)>(first, count, partial, [&](int r, float sum) {
            if (r >= deltanet_in_rows) return;
            const InRow more = r == early ? with : load_in_row(layer, r);
            const float value = r < z_row   ? causal_conv_step(sum, r, more.window, layer.conv_state)
                                : r < b_row ? sum
                                : r < a_row ? sigmoid(sum)
                                            : log_decay(sum, more.A_log, more.dt_bias);
            publish(cells + in_cells + r, value, token.to_other);
        });
    });
}

// The tile of the state that belongs to a unit of delta_rule()
__device__ __forceinline__ float* state_of(const Layer& layer, int unit) {
    const int head = unit / tiles_per_head, column = unit % tiles_per_head * tile_columns;
    return layer.recurrent_state + static_cast<size_t>(head) * key_head_dim * value_head_dim + column;
}

// What a unit reads that is there before the token: its tile of the state, and a thread's weight of the norm.
struct Tile {
    float4 state[rows_per_thread];
    float norm;
};

// The cell of a tile's sum of squares of o
__device__ __forceinline__ Cell* square_of(Cell* cells, int head, int tile) {
    return cells + squares_cells + head * line_cells + tile;
}

// The first unit's is loaded before deltanet_in, so that its loads do not queue behind the copies of weights that
// deltanet_in requests.
__device__ __forceinline__ void load_tile(const Layer& layer, int unit, Tile& tile) {
    if (unit >= num_value_heads * tiles_per_head) return;
    load_state_tile(state_of(layer, unit), tile.state);
    const int column = unit % tiles_per_head * tile_columns;
    tile.norm = threadIdx.x < tile_columns ? layer.norm[column + threadIdx.x] : 0.0f;
}

// A unit is one head and one tile of its columns, as in delta_rule_phase() of phases.cuh. The gated norm needs the mean
// of squares of the whole head, so this phase publishes o * norm * silu(z) and the tile's sum of squares.
// tile: of the block's first unit, loaded early
__device__ __forceinline__ void delta_rule(const Layer& layer, Cell* cells, const Token& token,
                                           Tile& tile, StreamShared* shared) {
    static_assert(tile_columns <= warp_threads && (tile_columns & (tile_columns - 1)) == 0, "a tile is part of a warp");
    DeltaShared* own = &shared->delta;
    for (int unit = blockIdx.x; unit < num_value_heads * tiles_per_head; unit += gridDim.x) {
        const int head = unit / tiles_per_head, column = unit % tiles_per_head * tile_columns;
        const int key_head = head / value_heads_per_key;  // in [0, num_key_heads)
        const int at = head * value_head_dim + column;
        float* S = state_of(layer, unit);
        if (unit != static_cast<int>(blockIdx.x)) load_tile(layer, unit, tile);
        const auto gather = [&](float* to, int first, int count, int thread) {  // threads from `thread` on
            for (int i = static_cast<int>(threadIdx.x) - thread; i < count; i += block_threads)
                if (i >= 0) to[i] = await(cells + in_cells + first + i);
        };
        // Different warps wait for different parts, if the block has enough.
        gather(own->q, key_head * key_head_dim, key_head_dim, 0);
        gather(own->k, key_dim + key_head * key_head_dim, key_head_dim, key_head_dim % block_threads);
        gather(own->v, 2 * key_dim + at, tile_columns, 2 * key_head_dim % block_threads);
        gather(own->z, z_row + at, tile_columns, (2 * key_head_dim + warp_threads) % block_threads);
        gather(&own->beta, b_row + head, 1, (2 * key_head_dim + 2 * warp_threads) % block_threads);
        gather(&own->g, a_row + head, 1, (2 * key_head_dim + 3 * warp_threads) % block_threads);
        __syncthreads();  // the inputs are in shared memory
        delta_rule_tile(own->q, own->k, own->v, own->beta, own->g, tile.state, S, &own->rule, [&](int, float o) {
            constexpr unsigned lanes = tile_columns == warp_threads ? full_warp : (1u << tile_columns % 32) - 1u;
            const float value = o * tile.norm * silu(own->z[threadIdx.x]);
            publish(cells + mixed_cells + at + threadIdx.x, value, token.to_other);
            float squares = o * o;
            for (int offset = tile_columns / 2; offset > 0; offset /= 2)
                squares += __shfl_xor_sync(lanes, squares, offset);
            if (threadIdx.x == 0) publish(square_of(cells, head, unit % tiles_per_head), squares, token.to_other);
        });
        __syncthreads();  // the next unit or phase reuses the shared memory
    }
}

// Stages the gated norm: what delta_rule() has published, divided by the root mean square of the head. A piece is four
// elements of one head per lane. A warp takes every block_warps-th piece, and waits for all of its own at once.
__device__ __forceinline__ void stage_gated_norm(Cell* cells, StreamShared* shared) {
    static_assert(tiles_per_head <= warp_threads, "a lane for each tile");
    constexpr int head_fours = value_head_dim / 4, head_pieces = (head_fours + warp_threads - 1) / warp_threads;
    constexpr int pieces = num_value_heads * head_pieces, count = (pieces + block_warps - 1) / block_warps;
    const auto piece = [](int k) { return warp_id() + k * block_warps; };
    const auto head = [&](int k) { return min(piece(k), pieces - 1) / head_pieces; };
    const auto four = [&](int k) { return piece(k) % head_pieces * warp_threads + lane_id(); };  // of the head

    const auto has = [&](int k) { return piece(k) < pieces && four(k) < head_fours; };
    const int tile = min(lane_id(), tiles_per_head - 1);
    await(cells + mixed_cells + head(0) * value_head_dim);  // the loop below would take more bandwidth from the weights
    Cell squares[count];
    uint4 value[count];
    do {
        load_fours([&](int k) { return cells + mixed_cells + head(k) * value_head_dim + 4 * four(k); }, has, value);
        load_cells([&](int k) { return square_of(cells, head(k), tile); }, squares);
    } while (any_empty(value) | any_empty(squares));
    __syncwarp();
#pragma unroll
    for (int k = 0; k < count; ++k) {
        const float mean = warp_sum(lane_id() < tiles_per_head ? __uint_as_float(squares[k]) : 0.0f) / value_head_dim;
        const float scale = rsqrtf(mean + rms_norm_eps);
        const float4 v = to_floats(value[k]);
        if (has(k))
            *reinterpret_cast<float4*>(shared->x + staged(head(k) * value_head_dim + 4 * four(k))) =
                float4{v.x * scale, v.y * scale, v.z * scale, v.w * scale};
    }
    for (int c = value_dim + threadIdx.x; c < padded(value_dim, out_rows); c += block_threads)
        shared->x[staged(c)] = 0.0f;
    __syncthreads();
}

// Publishes out = residual(row) + W . x for the staged vector. early: the thread's first row, `before` its residual.
template <int cols, typename Residual>
__device__ __forceinline__ void residual_rows(WeightStream& stream, StreamShared* shared, Cell* out, float* plain,
                                              const Token& token, int early, float before, Residual residual) {
    stream_groups<cols, out_rows>(stream, shared, out_product, [&](int first, int count, Sums partial) {
        for_each_row<out_rows, split_of(cols, out_rows)>(first, count, partial, [&](int r, float sum) {
            const float value = (r == early ? before : residual(r)) + sum;
            publish(out + r, value, token.to_other);
            if (plain != nullptr) plain[r] = value;
        });
    });
}

__device__ __forceinline__ void deltanet_out(int l, Cell* cells, const Token& token, WeightStream& stream,
                                             StreamShared* shared) {
    const int early = early_row<out_rows>(shared, out_product);
    const float before = early >= 0 ? x_at(token, l, early) : 0.0f;
    stage_gated_norm(cells, shared);
    residual_rows<value_dim>(stream, shared, cells + mid_cells, nullptr, token, early, before,
                             [&](int r) { return x_at(token, l, r); });
}

// What an attention unit finds in shared memory, where its workers' sums are merged later: the queries of its kv head,
// its k and v, q_norm, k_norm, and this position's rows of the rope tables.
constexpr int gathered_size = (heads_per_kv + 2) * head_dim, head_inputs_size = 2 * head_dim + rotary_dim;
static_assert(gathered_size + head_inputs_size <= merged_rows * head_dim, "room for them");
__device__ __forceinline__ float* gathered(StreamShared* shared) { return &shared->attention.merged[0][0]; }
__device__ __forceinline__ float* head_inputs(StreamShared* shared) { return gathered(shared) + gathered_size; }

// The norms and rope rows of the first unit are loaded before the copies of weights that attention_in requests, so that
// they do not queue behind them.
constexpr int head_inputs_per_thread = (head_inputs_size + block_threads - 1) / block_threads;
struct HeadInputs {
    float of[head_inputs_per_thread];
};

__device__ __forceinline__ HeadInputs load_head_inputs(const Model& m, const Layer& layer, const Token& token) {
    constexpr int half = rotary_dim / 2, cos = 2 * head_dim, sin = cos + half;  // the first element of each
    const int row = token.position * half, own = fresh_thread_index();
    HeadInputs inputs;
#pragma unroll
    for (int i = 0; i < head_inputs_per_thread; ++i) {
        const int c = own + i * block_threads;
        inputs.of[i] = c < head_dim           ? layer.q_norm[c]
                       : c < cos              ? layer.k_norm[c - head_dim]
                       : c < sin              ? m.rope_cos[row + c - cos]
                       : c < head_inputs_size ? m.rope_sin[row + c - sin]
                                              : 0.0f;
    }
    return inputs;
}

__device__ __forceinline__ void store_head_inputs(const HeadInputs& inputs, StreamShared* shared) {
    const int own = fresh_thread_index();
#pragma unroll
    for (int i = 0; i < head_inputs_per_thread; ++i) {
        const int c = own + i * block_threads;
        if (c < head_inputs_size) head_inputs(shared)[c] = inputs.of[i];
    }
}

__device__ __forceinline__ void attention_in(const Model& m, const Layer& layer, int l, Cell* cells, const Token& token,
                                             const Norm& early_norm, WeightStream& stream, StreamShared* shared) {
    const HeadInputs inputs = load_head_inputs(m, layer, token);
    const Norm norm = load_now(early_norm, layer.input_norm);
    Norm x;
    await_x(token, l, x);
    stage_norm(x, norm, shared);
    stream_groups<hidden_size, in_rows>(stream, shared, attention_in_product, [&](int first, int count, Sums partial) {
        for_each_row<in_rows, split_of(hidden_size, in_rows)>(first, count, partial, [&](int r, float sum) {
            if (r < attention_in_rows) publish(cells + in_cells + r, sum, token.to_other);
        });
    });
    store_head_inputs(inputs, shared);  // all warps have read the staged vector, which was there before
}

// The queries of one kv head, and its k and v, in shared memory, one head after another. attend_unit() looks for a head
// by its place in `projected`.
struct GatheredHeads {
    const float* heads;  // [heads_per_kv + 2, head_dim]
    int kv_head;
};

template <>
struct From<GatheredHeads> {
    const float* x;
    __device__ __forceinline__ From(GatheredHeads gathered, int at) {
        const int query = at / (2 * head_dim) - gathered.kv_head * heads_per_kv;  // each query is followed by its gate
        x = gathered.heads + (at < k_row ? query : heads_per_kv + (at >= v_row)) * head_dim;
    }
    __device__ __forceinline__ float operator[](int i) const { return x[i]; }
};

// The block waits for the first `count` of these heads: the last two are needed by the block that caches them.
__device__ __forceinline__ void gather_heads(const Cell* cells, int kv_head, int count, float* heads) {
    for (int i = threadIdx.x; i < count * head_dim / 4; i += block_threads) {
        const int head = 4 * i / head_dim, c = 4 * i % head_dim;
        const int at = head < heads_per_kv    ? (kv_head * heads_per_kv + head) * 2 * head_dim
                       : head == heads_per_kv ? k_row + kv_head * head_dim
                                              : v_row + kv_head * head_dim;
        uint4 four;
        do four = load_four(cells + in_cells + at + c);
        while (is_empty(four));
        *reinterpret_cast<float4*>(heads + 4 * i) = to_floats(four);
    }
    __syncthreads();  // the heads are in shared memory
}

// Merges all splits of each query head: one warp takes one head and a few of its elements; 16 lanes share the splits
// for each pair of elements. So all words of a warp are on their way at once. These warps are spread over the blocks,
// beginning with the last block, which is the last to get a split.
__device__ __forceinline__ void merge_splits(const Word* partials, Cell* cells, const Token& token, int splits) {
    constexpr int result_lanes = 16, slices = head_dim / merged_elements<result_lanes>;
    constexpr int in_flight = merged_in_flight<result_lanes, max_splits>;
    for (int unit = warp_id() * gridDim.x + gridDim.x - 1 - blockIdx.x; unit < num_attention_heads * slices;
         unit += block_warps * gridDim.x) {
        const int head = unit / slices, place = merged_place<result_lanes>(unit % slices);
        const int c = element_at(place);  // place + 1 is that of element c + 1
        const Cell* gate = cells + in_cells + head * 2 * head_dim + head_dim + c;
        Cell gates[2] = {};  // loaded early, used at the end
        if (place < head_dim) do load_cells([&](int j) { return gate + j; }, gates); while (any_empty(gates));
        merge_results<result_lanes, max_splits>(
            splits, place,
            [&](int first, int at, float2 (&value)[in_flight]) {
                const auto result = [&](int i) { return first + i * result_lanes; };
                await_pairs([&](int i) { return partials + partial_at(head, min(result(i), splits - 1), at); },
                            token.tag, value);
#pragma unroll
                for (int i = 0; i < in_flight; ++i)
                    if (result(i) >= splits) value[i] = float2{0.0f, 0.0f};
            },
            // These words are published last, so few of the others are missing then.
            [&](int result) { return await_two(partials + partial_at(head, result, head_dim), token.tag); },
            [&](float2 sum, float, float weight) {
                Cell* o = cells + mixed_cells + head * head_dim + c;
                publish(o, sum.x / weight * sigmoid(__uint_as_float(gates[0])), token.to_other);
                publish(o + 1, sum.y / weight * sigmoid(__uint_as_float(gates[1])), token.to_other);
            });
    }
}

// Attends over one split per unit. Then one warp merges all splits for some elements of a head.
__device__ __forceinline__ void attention(const Model& m, const Layer& layer, Cell* cells, const Token& token,
                                          StreamShared* shared) {
    float *heads = gathered(shared), *norms = head_inputs(shared), *rope = norms + 2 * head_dim;
    if (threadIdx.x == 0)
        shared->attention.args = {nullptr, norms, norms + head_dim, rope, rope + rotary_dim / 2,
                                  layer.k_cache, layer.v_cache, nullptr, nullptr, nullptr, token.position,
                                  token.max_seq_len, 0};
    const AttentionArgs& a = shared->attention.args;
    for (int unit = blockIdx.x;; unit += gridDim.x) {
        const int per_split = positions_per_split(token.position + 1), splits = token.position / per_split + 1;
        if (unit >= num_key_value_heads * splits) break;
        const int kv_head = unit / splits, split = unit % splits;
        if (threadIdx.x == 0) shared->unit = unit;
        // Merging has overwritten those of the unit before.
        if (unit != static_cast<int>(blockIdx.x)) store_head_inputs(load_head_inputs(m, layer, token), shared);
        gather_heads(cells, kv_head, heads_per_kv + (split == splits - 1 ? 2 : 0), heads);
        attend_unit(GatheredHeads{heads, kv_head}, a, kv_head, split, per_split, &shared->attention,
                    [&](int head, int of, int place, float value) {
                        publish(layer.partials + partial_at(head, of, place), value, token.tag);
                    });
        unit = shared->unit;
        __syncthreads();  // the next unit or phase reuses the shared memory
    }
    const int per_split = positions_per_split(token.position + 1), splits = token.position / per_split + 1;
    end_phase(m);
    shared->parked[warp_id()].prefetch_slots<ATTENTION_SLOTS>();  // the ring is full, and memory would be idle
    merge_splits(layer.partials, cells, token, splits);
}

// Prefetches a part of K and V of the block's first unit into L2, before attention_in. A thread prefetches one line of
// each, of a long unit every third piece of four lines. A whole range in L2 would be read faster than the loop
// can ask DRAM for the rest, and DRAM would be idle meanwhile. More lines would not stay in a small L2 until their use.
constexpr int line_weights = 128 / sizeof(bf16), cache_lines = block_threads / 3, piece_lines = 4;
__device__ __forceinline__ void prefetch_cache(const Layer& layer, const Token& token) {
    const int per_split = positions_per_split(token.position + 1), splits = token.position / per_split + 1;
    if (threadIdx.x >= cache_lines || blockIdx.x >= num_key_value_heads * splits) return;
    const int begin = blockIdx.x % splits * per_split;
    const int end = min(per_split, token.position - begin) * head_dim;  // the newest position is not there yet
    const bool is_long = end >= 3 * cache_lines * line_weights;
    const int at = (threadIdx.x + (is_long ? threadIdx.x / piece_lines * 2 * piece_lines : 0)) * line_weights;
    if (at >= end) return;
    const size_t row = static_cast<size_t>(blockIdx.x / splits) * token.max_seq_len + begin;
    prefetch_l2(layer.k_cache + row * head_dim + at);
    prefetch_l2(layer.v_cache + row * head_dim + at);
}

__device__ __forceinline__ void attention_out(int l, Cell* cells, const Token& token, WeightStream& stream,
                                              StreamShared* shared) {
    const int early = early_row<out_rows>(shared, out_product);
    const float before = early >= 0 ? x_at(token, l, early) : 0.0f;
    __syncthreads();  // the attention's part of the shared memory is no longer needed
    stage_cells<q_dim>(cells + mixed_cells, shared);
    residual_rows<q_dim>(stream, shared, cells + mid_cells, nullptr, token, early, before,
                         [&](int r) { return x_at(token, l, r); });
}

__device__ __forceinline__ void mlp(const Model& m, const Layer& layer, int l, Cell* cells, const Token& token,
                                    const Norm& early_norm, WeightStream& stream, StreamShared* shared) {
    const Norm norm = load_now(early_norm, layer.post_attention_norm);
    Norm x;
    await_vector(cells + mid_cells, x);
    stage_norm(x, norm, shared);
    // A group holds rows 2 * i and 2 * i + 1 of gate_proj, then the same rows of up_proj.
    stream_groups<hidden_size, in_rows>(stream, shared, up_product, [&](int first, int count, Sums partial) {
        for (int i = threadIdx.x; i < 2 * count; i += block_threads) {
            const float gate = partial[i / 2][i % 2], up = partial[i / 2][2 + i % 2];
            publish(cells + act_cells + 2 * first + i, silu(gate) * up, token.to_other);
        }
    });
    end_phase(m);

    const int early = early_row<out_rows>(shared, out_product);
    const auto residual = [&](int r) { return __uint_as_float(load_cell(cells + mid_cells + r)); };
    const float before = early >= 0 ? residual(early) : 0.0f;
    stage_cells<intermediate_size>(cells + act_cells, shared);
    residual_rows<intermediate_size>(stream, shared, cells + x_cells, m.hidden_states + (l + 1) * hidden_size, token, early,
                                     before, residual);
}

// Computes the logits, and publishes the block's best.
__device__ __forceinline__ void lm_head(const Model& m, const Token& token, const Norm& early_norm, WeightStream& stream,
                                        StreamShared* shared) {
    const Norm norm = load_now(early_norm, m.norm);
    Norm x;
    await_x(token, num_hidden_layers, x);
    stage_norm(x, norm, shared);
    const Part part = shared->parts[head_product];
    Best best = no_best();
    for (int group = part.first + warp_id(); group < part.first + part.count; group += block_warps) {
        constexpr int rows = in_rows, lanes = warp_threads / rows;
        float sum[rows] = {};
#pragma unroll 1
        for (int i = 0; i < slots_of(hidden_size, rows); ++i) add_slot(stream, shared->x + i * slot_cols(rows), sum);
        const float logit = warp_sums(sum);
        const int row = rows * group + lane_id() / lanes;
        if (lane_id() % lanes == 0 && row < vocab_size) {
            m.logits[row] = logit;
            best = better(best, Best{logit, row});
        }
    }
    stream.prefetch_next();
    best = warp_best(best);
    if (lane_id() == 0) shared->warp_best[warp_id()] = best;
    __syncthreads();  // every warp's best is in shared memory
    if (threadIdx.x == 0) {
        for (int w = 1; w < block_warps; ++w) best = better(best, shared->warp_best[w]);
        publish(m.bests + 2 * blockIdx.x, best.value, token.tag);
        // A release: what this block has read and written for this token comes before all that follows the choice.
        publish_release(m.bests + 2 * blockIdx.x + 1, __int_as_float(best.index), token.tag);
    }
}

__device__ __forceinline__ bool is_end(const Model& m, int token) {
    bool ends = false;
    for (int i = 0; i < END_TOKENS; ++i) ends |= token == m.end_tokens[i];
    return ends;
}

// Warp 0 of block 0 waits for the best of every block, stores the next token, and tells all blocks which one it is: as
// ~token if the launch ends with it. It ends with the last of `tokens`, a token of end_tokens, when the host has set
// *stop, and if no token could be chosen. With DRAWS, draw() replaces the token, and shows it to the host.
__device__ __forceinline__ void choose(const Model& m, const Token& token, int number, int tokens) {
    const int stop = load_system(m.stop);  // early: the host's memory is far away
    Best best = no_best();
    for (int b = lane_id(); b < static_cast<int>(gridDim.x); b += warp_threads) {
        const int index = __float_as_int(await_acquire(m.bests + 2 * b + 1, token.tag));
        best = better(best, Best{value_of(load_word(m.bests + 2 * b)), index});  // stored before the index
    }
    best = warp_best(best);
    __syncwarp();  // every lane's acquires come before lane 0's stores
    if (lane_id() != 0) return;
    const int chosen = *m.next_token == no_token ? no_token : best.index;
    const bool ends = number + 1 == tokens || chosen == no_token || stop != 0 || (!DRAWS && is_end(m, chosen));
    *m.next_token = chosen;
    if (DRAWS || number + 1 < tokens) publish_release(m.chosen, __int_as_float(ends ? ~chosen : chosen), token.tag);
    if (!DRAWS) store_system(m.generated + number, chosen);  // the host may be reading along
}

// Returns the next token to every thread of the block, or a negative number at the end of the launch. With the release
// in choose() it orders what every block has written for this token before what any block reads for the next.
__device__ __forceinline__ int await_choice(const Model& m, const Token& token, StreamShared* shared) {
    if (threadIdx.x == 0) shared->chosen = __float_as_int(await_acquire(m.chosen, token.tag));
    __syncthreads();  // the choice is in shared memory; the acquire comes before the block's reads
    return shared->chosen;
}

// All blocks draw a token in place of the greedy choice that choose() has told them. Every thread gets it in the form of
// the choice. The choice has ordered all logits before these reads. The search adds to counts in device memory, which
// only a barrier can complete. A barrier orders the draw before the next token, too.
__device__ __forceinline__ int draw(const Model& m, const Token& token, int number, int choice, StreamShared* shared) {
    const int greedy = choice < 0 ? ~choice : choice;
    int drawn = greedy;
    if (blockIdx.x == 0 && threadIdx.x == 0) m.sampling_memory->greedy = greedy;  // for a draw after this launch
    if (greedy != no_token) {
        draw_token(m.logits, m.logits[greedy], *m.sampling, token.position + 1, m.sampling_memory, m.block_best, m.arrivals,
                   m.next_token, &shared->sampling, [&] { grid_barrier(m.barrier); });
        grid_barrier(m.barrier);  // the draw is in *next_token, and the bins are 0 again
        drawn = *m.next_token;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) store_system(m.generated + number, drawn);
    return choice < 0 || is_end(m, drawn) ? ~drawn : drawn;
}

// One token, from its embedding to the block's best logit
__device__ __forceinline__ void decode(const Model& m, const Token& token, WeightStream& stream, StreamShared* shared) {
    if (blockIdx.x == 0)
        for (int i = threadIdx.x; i < hidden_size; i += block_threads) m.hidden_states[i] = to_float(token.embedding[i]);

    Norm norm = load_early(shared->layers[0].input_norm);
    for (int l = 0; l < num_hidden_layers; ++l) {
        const Layer& layer = shared->layers[l];
        Cell* cells = token.cells + l * layer_cells;
        Norm middle, next;
        if (layer.recurrent_state != nullptr) {
            Tile tile;
            load_tile(layer, blockIdx.x, tile);
            middle = load_early(layer.post_attention_norm);
            deltanet_in(layer, l, cells, token, norm, stream, shared);
            end_phase(m);
            delta_rule(layer, cells, token, tile, shared);
            end_phase(m);
            next = load_early(l + 1 < num_hidden_layers ? shared->layers[l + 1].input_norm : m.norm);
            deltanet_out(l, cells, token, stream, shared);
        } else {
            prefetch_cache(layer, token);
            attention_in(m, layer, l, cells, token, norm, stream, shared);
            end_phase(m);
            if (lane_id() == 0) shared->parked[warp_id()] = stream;  // attention needs nearly all registers
            __syncwarp();  // all lanes find it there
            attention(m, layer, cells, token, shared);
            stream = shared->parked[warp_id()];
            end_phase(m);
            middle = load_early(layer.post_attention_norm);
            next = load_early(l + 1 < num_hidden_layers ? shared->layers[l + 1].input_norm : m.norm);
            attention_out(l, cells, token, stream, shared);
        }
        end_phase(m);
        mlp(m, layer, l, cells, token, middle, stream, shared);
        end_phase(m);
        norm = next;
    }
    lm_head(m, token, norm, stream, shared);
}

__device__ __forceinline__ Token token_of(const Model& m, int tag, int position, int max_seq_len, int current) {
    constexpr int copy = num_hidden_layers * layer_cells;
    const bool is_odd = tag % 2 != 0;
    return {static_cast<unsigned>(tag), position, max_seq_len, m.embed_tokens + static_cast<size_t>(current) * hidden_size,
            m.cells + (is_odd ? copy : 0), is_odd ? -copy : copy};
}

// tokens: at most so many, in [1, max_seq_len - position];  tag: of the first one; each next one has the next number
extern "C" __global__ void __launch_bounds__(block_threads, BLOCKS_PER_SM)
streaming(const Model* model, const Layer* layers, int position, int max_seq_len, int tag, int tokens) {
    StreamShared* shared = reinterpret_cast<StreamShared*>(dynamic_shared_memory);
    copy_to_shared(&shared->model, model, 1);
    copy_to_shared(shared->layers, layers, num_hidden_layers);
    __syncthreads();  // the pointers are in shared memory
    const Model& m = shared->model;

    WeightStream stream;
    const int* slots = m.first_slot + blockIdx.x * block_warps + warp_id();
    stream.start(m.stream + static_cast<size_t>(slots[0]) * slot_weights, slots[1] - slots[0], tokens);
    compute_parts(shared->parts);

    int current = token_at(m.next_token);
    for (int number = 0;; ++number) {
        if (threadIdx.x == 0)
            shared->token = token_of(m, tag + number, position + number, max_seq_len, current);
        __syncthreads();  // the token is in shared memory, and so are the parts
        decode(m, shared->token, stream, shared);
        number = shared->token.position - position;  // as before, but it needs no register meanwhile
        if (blockIdx.x == 0 && warp_id() == 0) choose(m, shared->token, number, tokens);
        if (!DRAWS && number + 1 == tokens) break;
        current = await_choice(m, shared->token, shared);
        if constexpr (DRAWS) current = draw(m, shared->token, number, current, shared);
        if (current < 0) {
            stream.drain();
            break;
        }
    }
}
