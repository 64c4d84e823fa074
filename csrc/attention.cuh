// attention.cuh: one decode token of gated attention with grouped heads, fused from q/k norm to output gate
// Computes  k_cache[position] = rope(norm(k)),  v_cache[position] = v        for each kv head
//           for each query head h, whose kv head is h / heads_per_kv:
//               q = rope(norm(q)) / sqrt(head_dim)
//               for p in [0, position]: score[p] = q . k_cache[p]
//               weight[p] = exp(score[p] - max(score))
//               o = (sum over p of weight[p] * v_cache[p]) / (sum over p of weight[p]) * sigmoid(gate)
// Shapes    projected: q with its gate [heads, 2, head_dim], then k, then v [kv heads, head_dim], fp32
//           k_cache, v_cache [kv heads, max_seq_len, head_dim] bf16;  o [heads, head_dim] fp32
// Work      A block takes one kv head and one split of the positions. All query heads of a kv head share one read of
//           the cache. Inside the block, head_dim / 8 lanes form a worker. The workers take two positions at a time in
//           turn, each with its own online softmax, and shared memory merges them. Each split writes a partial result
//           to device memory. The last block to arrive merges them, each warp a part of a head. If there are more than
//           32 splits, that happens in two steps: the last block of each eight splits, then the last of these blocks.
// Traffic   the cache up to `position` is read once, 16 bytes per lane. A worker loads k of the next two positions
//           before it uses v of the last two, so up to 32 KiB per SM are in flight.
// Checked   tests/csrc/test_attention.py
#pragma once
#include "activations.cuh"
#include "matvec.cuh"
#include "rope.cuh"

constexpr int worker_lanes = head_dim / lane_weights;
constexpr int workers = block_threads / worker_lanes;
static_assert(head_dim % lane_weights == 0 && worker_lanes <= warp_threads && warp_threads % worker_lanes == 0,
              "head_dim must be 8, 16, 32, 64, 128 or 256");
static_assert(head_dim <= block_threads, "a thread for each element of a head");

constexpr int min_positions_per_split = workers < 16 ? 2 * workers : 32;  // by the clock, fewer or more take longer
constexpr int many_positions = 1024;         // splits of more are longer, so that one warp merges them up to 2048
constexpr int max_splits = MAX_SPLITS;
constexpr int partial_size = head_dim + 4;   // a split's weighted sum of v, its maximum, its sum of weights, padding

// One warp merges all splits of a head if there is a lane for each. More splits are merged in groups first.
constexpr int splits_per_group = SPLITS_PER_GROUP;
constexpr int max_groups = (max_splits + splits_per_group - 1) / splits_per_group;
static_assert(max_groups <= warp_threads, "a lane for each group_positions");

struct AttentionArgs {
    const float *projected, *q_norm, *k_norm, *rope_cos, *rope_sin;  // rope tables [rows, rotary_dim / 2]
    bf16 *k_cache, *v_cache;
    float *partials, *o;  // partials [heads, max_splits + max_groups, partial_size], 16-byte aligned
    unsigned* arrivals;  // [kv heads, 1 + max_groups], 0 between launches
    int position, max_seq_len;
    int rope_row;  // of the position, in the rope tables
};

// A row for each worker. Before they are used, streaming.cu keeps the inputs of the heads there, which need this many.
constexpr int merged_rows = max_of(workers, heads_per_kv + 5);

struct AttentionShared {
    AttentionArgs args;  // here they save a dozen registers: the megakernel uses nearly all that a thread may have
    alignas(16) float q[heads_per_kv + 1][head_dim];  // the last row holds this token's k, in the block that caches it
    alignas(16) float merged[merged_rows][head_dim];  // of one head
    float maximum[heads_per_kv][workers], weight[heads_per_kv][workers], scale[heads_per_kv][workers];
    int flag;
};

// The place of element c in [0, head_dim) of a head, in shared memory and in a partial result: first the lower four
// elements of every lane, then the upper four, as in staged(). So neighbouring lanes access neighbouring 16 bytes, and
// no bank conflict occurs. element_at() is the inverse.
__device__ __forceinline__ int place_of(int c) { return c % 8 / 4 * (head_dim / 2) + c / 8 * 4 + c % 4; }
__device__ __forceinline__ int element_at(int place) {
    return place % (head_dim / 2) / 4 * 8 + place / (head_dim / 2) * 4 + place % 4;
}

// The number of splits follows from this size. With a fixed number, the last splits could be empty.
__device__ __forceinline__ int positions_per_split(int positions) {
    const int least = positions > many_positions ? 2 * min_positions_per_split : min_positions_per_split;
    return max_of((positions + max_splits - 1) / max_splits, least);
}

// x[at + i] as element i. x is anything with x[i], such as a pointer.
template <typename Input>
struct From {
    Input x;
    int at;
    __device__ __forceinline__ float operator[](int i) const { return x[at + i]; }
};

// A lane calls act(n, x[c]) for its elements c = lane_id() + n * warp_threads of x [head_dim]. It loads all of them
// first, because a load after a store would have to wait for it.
template <typename Input, typename Act>
__device__ __forceinline__ void for_each_element(Input x, Act act) {
    constexpr int per_lane = (head_dim + warp_threads - 1) / warp_threads;
    float value[per_lane];
#pragma unroll
    for (int n = 0; n < per_lane; ++n)
        value[n] = lane_id() + n * warp_threads < head_dim ? x[lane_id() + n * warp_threads] : 0.0f;
    __syncwarp();  // all of x is read before `act` may overwrite it
#pragma unroll
    for (int n = 0; n < per_lane; ++n)
        if (lane_id() + n * warp_threads < head_dim) act(n, value[n]);
}

// Applies norm and RoPE to the queries of this kv head and stores them in shared memory, scaled, in the order of
// place_of(). The block that owns the newest position also puts this token's k and v into the cache.
template <typename Input>
__device__ __forceinline__ void prepare_heads(Input projected, const AttentionArgs& a, int kv_head, bool owns_newest,
                                              AttentionShared* shared) {
    const float* cos = a.rope_cos + static_cast<size_t>(a.rope_row) * (rotary_dim / 2);
    const float* sin = a.rope_sin + static_cast<size_t>(a.rope_row) * (rotary_dim / 2);
    const size_t newest = (static_cast<size_t>(kv_head) * a.max_seq_len + a.position) * head_dim;
    constexpr int k_row = heads_per_kv, v_row = k_row + 1;  // the rows before them are queries
    for (int row = warp_id(); row < heads_per_kv + 2 * owns_newest; row += block_warps) {
        const From<Input> x{projected, row < k_row ? (kv_head * heads_per_kv + row) * 2 * head_dim
                                                   : 2 * q_dim + (row - k_row) * kv_dim + kv_head * head_dim};
        if (row == v_row) {
            for_each_element(x, [&](int n, float v) { a.v_cache[newest + lane_id() + n * warp_threads] = to_bf16(v); });
            continue;
        }
        float* y = shared->q[row];
        warp_head_norm(x, row == k_row ? a.k_norm : a.q_norm, y);
        __syncwarp();  // RoPE reads what other lanes wrote
        warp_rope(y, cos, sin);
        __syncwarp();
        if (row == k_row)
            for_each_element(y, [&](int n, float k) { a.k_cache[newest + lane_id() + n * warp_threads] = to_bf16(k); });
        else  // place_of(c + 32) = place_of(c) + 16
            for_each_element(y, [&](int n, float q) {
                y[place_of(lane_id()) + n * (warp_threads / 2)] = q * rsqrtf(static_cast<float>(head_dim));
            });
    }
    __syncthreads();  // the queries are in shared memory, and the newest k and v in the cache for this block to read
}

// ---- Scores. A worker takes some positions at a time, which gives it group_scores sums over its lanes.

// Four positions at a time would need fewer instructions for each, but more registers than there are.
constexpr int group_positions = worker_lanes < 2 ? worker_lanes : 2;
constexpr int round_positions = group_positions * workers;  // of a block
__device__ constexpr int power_of_two(int least) { return least <= 1 ? 1 : 2 * power_of_two((least + 1) / 2); }
constexpr int padded_heads = power_of_two(heads_per_kv);
constexpr int group_scores = group_positions * padded_heads;  // that of position g, head h is g * padded_heads + h

// After sum_each() the scores lie in order in the lanes of the worker: own_scores in each lane, or each score in
// score_copies lanes. So position_lanes neighbouring lanes hold the scores of a position.
constexpr int own_scores = max_of(group_scores / worker_lanes, 1);
constexpr int score_copies = max_of(worker_lanes / group_scores, 1);
constexpr int position_lanes = worker_lanes / group_positions;

// Sums n values over `lanes` neighbouring lanes. When two lanes exchange values, each goes on with one half of the
// sums. So n sums take about n shuffles, and not n * log2(lanes). The additions are those of warp_sum(), in its order.
template <int n, int lanes, int size>
__device__ __forceinline__ void sum_each(float (&value)[size]) {
    if constexpr (lanes > 1) {
        constexpr int half = max_of(n / 2, 1), distance = lanes / 2;
        const bool upper = threadIdx.x % lanes >= distance;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            const float kept = upper && n > 1 ? value[half + i] : value[i];
            const float given = upper || n == 1 ? value[i] : value[half + i];
            value[i] = kept + __shfl_xor_sync(full_warp, given, distance);
        }
        sum_each<half, distance>(value);
    }
}

// Returns to every lane of a worker what the lane with the score of position g and head h has. g and h are constants.
__device__ __forceinline__ float of_score(const float (&value)[own_scores], int g, int h) {
    const int lane = g * position_lanes + h / own_scores * score_copies;
    return __shfl_sync(full_warp, value[h % own_scores], lane, worker_lanes);
}

// A worker's running softmax over the positions it has taken, for the query heads of one kv head.
struct OnlineSoftmax {
    float maximum[own_scores];  // of all positions, for the heads whose scores this lane gets
    float weight[own_scores];   // of the positions whose scores this lane gets
    float sum[heads_per_kv][lane_weights];  // this lane's 8 elements of the weighted sum of v
};

__device__ __forceinline__ void start(OnlineSoftmax& soft) {
#pragma unroll
    for (int i = 0; i < own_scores; ++i) soft.maximum[i] = -INFINITY, soft.weight[i] = 0.0f;
#pragma unroll
    for (int h = 0; h < heads_per_kv; ++h)
#pragma unroll
        for (int j = 0; j < lane_weights; ++j) soft.sum[h][j] = 0.0f;
}

// Takes a group's scores into the softmax: from each score follows its weight, relative to the new maximum.
__device__ __forceinline__ void take_scores(const float (&score)[group_scores], bool valid, float (&weight)[own_scores],
                                            OnlineSoftmax& soft) {
    float maximum[own_scores];
    bool grown = false;
#pragma unroll
    for (int i = 0; i < own_scores; ++i) {
        maximum[i] = valid ? score[i] : -INFINITY;
#pragma unroll
        for (int distance = position_lanes; distance < worker_lanes; distance *= 2)  // the maximum of the group
            maximum[i] = fmaxf(maximum[i], __shfl_xor_sync(full_warp, maximum[i], distance));
        grown |= maximum[i] > soft.maximum[i];
    }
    // <rescale>
    if (__any_sync(full_warp, grown)) {  // rescales the sums so far to the new maximum
        float old[own_scores];
#pragma unroll
        for (int i = 0; i < own_scores; ++i) {
            old[i] = maximum[i] > soft.maximum[i] ? expf(soft.maximum[i] - maximum[i]) : 1.0f;
            soft.maximum[i] = fmaxf(soft.maximum[i], maximum[i]);
            soft.weight[i] *= old[i];
        }
#pragma unroll
        for (int h = 0; h < heads_per_kv; ++h) {
            const float scale = of_score(old, 0, h);
#pragma unroll
            for (int j = 0; j < lane_weights; ++j) soft.sum[h][j] *= scale;
        }
    }
    // </rescale>
#pragma unroll
    for (int i = 0; i < own_scores; ++i) {
        weight[i] = valid ? expf(score[i] - soft.maximum[i]) : 0.0f;
        soft.weight[i] += weight[i];
    }
}

template <typename Input>
__device__ __forceinline__ void attend(Input projected, const AttentionArgs& a, int kv_head, int begin, int end,
                                       AttentionShared* shared, OnlineSoftmax& soft) {
    // worker in [0, workers); lane in [0, worker_lanes) holds elements 8 * lane to 8 * lane + 7 of a head
    const int worker = threadIdx.x / worker_lanes, lane = threadIdx.x % worker_lanes;
    const size_t row = static_cast<size_t>(kv_head) * a.max_seq_len + begin + worker;
    const size_t first = row * head_dim + lane * lane_weights;
    const bf16 *k_row = a.k_cache + first, *v_row = a.v_cache + first;
    // not through the read-only path: this launch writes the newest position
    const auto read = [&](const bf16* row, int g) {
        return *reinterpret_cast<const bf16x8*>(row + g * workers * head_dim);
    };
    const auto load = [&](bf16x8 (&rows)[group_positions], const bf16* row, int positions) {
#pragma unroll
        for (int g = 0; g < group_positions; ++g) rows[g] = g * workers < positions ? read(row, g) : bf16x8{};
    };
    // K of the first positions is loaded before the queries are prepared, except of the newest, which is not there yet.
    // V is not: then the inputs of the queries would have to wait until part of it has arrived.
    int left = end - begin - worker;  // positions of the split from the worker's next one on; it takes every workers-th
    const int newest = a.position < end ? a.position - begin - worker : left;
    bf16x8 k[group_positions], v[group_positions];
    load(k, k_row, newest);
    prepare_heads(projected, a, kv_head, a.position < end, shared);
#pragma unroll
    for (int g = 0; g < group_positions; ++g)
        if (newest < left && g * workers == newest) k[g] = read(k_row, g);
    load(v, v_row, left);
    start(soft);
    // All workers do the same number of rounds, so that every shuffle has all its lanes.
    for (int rounds = (end - begin + round_positions - 1) / round_positions; rounds > 0; --rounds) {
        float score[group_scores];
        // Without this line the compiler would keep q in registers, and too few would be left for the megakernel.
        asm volatile("" ::: "memory");
#pragma unroll
        for (int h = 0; h < padded_heads; ++h) {
            const float* q = shared->q[h % heads_per_kv] + lane * 4;  // see place_of()
            const float4 lo = *reinterpret_cast<const float4*>(q);
            const float4 hi = *reinterpret_cast<const float4*>(q + head_dim / 2);
#pragma unroll
            for (int g = 0; g < group_positions; ++g)
                score[g * padded_heads + h] = h < heads_per_kv ? dot8(k[g], lo, hi, 0.0f) : 0.0f;
        }
        const bool valid = lane / position_lanes * workers < left;
        left -= round_positions, k_row += round_positions * head_dim, v_row += round_positions * head_dim;
        load(k, k_row, left);  // in flight while the rest of this group is computed
        sum_each<group_scores, worker_lanes>(score);
        float weight[own_scores];
        take_scores(score, valid, weight, soft);
#pragma unroll
        for (int g = 0; g < group_positions; ++g)
#pragma unroll
            for (int h = 0; h < heads_per_kv; ++h) {
                const float now = of_score(weight, g, h);
#pragma unroll
                // <values>
                for (int j = 0; j < 4; ++j) {
                    soft.sum[h][2 * j] = fmaf(now, even(v[g].pair[j]), soft.sum[h][2 * j]);
                    soft.sum[h][2 * j + 1] = fmaf(now, odd(v[g].pair[j]), soft.sum[h][2 * j + 1]);
                }
                // </values>
            }
        load(v, v_row, left);
    }
}

// Merges all workers of a block, always in the same order, and calls store(h, place, value) for all values of head h's
// result; see partial_at().
template <typename Store>
__device__ __forceinline__ void merge_workers(OnlineSoftmax& soft, AttentionShared* shared, Store store) {
    const int worker = threadIdx.x / worker_lanes, lane = threadIdx.x % worker_lanes;
    const int first_head = lane / score_copies * own_scores;  // of those whose maximum this lane has
    const bool writes = lane % score_copies == 0 && lane < position_lanes;
#pragma unroll
    for (int i = 0; i < own_scores; ++i) {
#pragma unroll
        for (int distance = position_lanes; distance < worker_lanes; distance *= 2)
            soft.weight[i] += __shfl_xor_sync(full_warp, soft.weight[i], distance);
        if (writes && first_head + i < heads_per_kv) {
            shared->maximum[first_head + i][worker] = soft.maximum[i];
            shared->weight[first_head + i][worker] = soft.weight[i];
        }
    }
    __syncthreads();  // every worker's maximum is in shared memory
#pragma unroll
    for (int i = 0; i < own_scores; ++i)
        if (writes && first_head + i < heads_per_kv) {
            float maximum = -INFINITY;
            for (int w = 0; w < workers; ++w) maximum = fmaxf(maximum, shared->maximum[first_head + i][w]);
            // 0 for a worker that took no position
            shared->scale[first_head + i][worker] = expf(soft.maximum[i] - maximum);
        }
#pragma unroll
    for (int h = 0; h < heads_per_kv; ++h) {
        const float* sum = soft.sum[h];
        float* merged = shared->merged[worker] + lane * 4;
        *reinterpret_cast<float4*>(merged) = float4{sum[0], sum[1], sum[2], sum[3]};
        *reinterpret_cast<float4*>(merged + head_dim / 2) = float4{sum[4], sum[5], sum[6], sum[7]};
        __syncthreads();  // every worker's sums are in shared memory
        if (threadIdx.x < head_dim) {
            float total = 0.0f;
            for (int w = 0; w < workers; ++w) total = fmaf(shared->merged[w][threadIdx.x], shared->scale[h][w], total);
            store(h, threadIdx.x, total);
        }
        if (threadIdx.x == block_threads - 1) {
            float maximum = -INFINITY, weight = 0.0f;
            for (int w = 0; w < workers; ++w) {
                maximum = fmaxf(maximum, shared->maximum[h][w]);
                weight = fmaf(shared->weight[h][w], shared->scale[h][w], weight);
            }
            store(h, head_dim, maximum), store(h, head_dim + 1, weight);
        }
        __syncthreads();  // the next head may overwrite
    }
}

// The place in `partials` of a value of one split's result for one query head. Places in [0, head_dim) hold the
// weighted sum, the next two its maximum and its sum of weights. Results of groups follow those of the splits.
__device__ __forceinline__ size_t partial_at(int head, int split, int place) {
    return (static_cast<size_t>(head) * (max_splits + max_groups) + split) * partial_size + place;
}

// One block computes a unit: the query heads of kv_head over the positions of one split. It calls
// store(head, split, place, value) for all values of the results; see partial_at().
template <typename Input, typename Store>
__device__ __forceinline__ void attend_unit(Input projected, const AttentionArgs& a, int kv_head, int split,
                                            int per_split, AttentionShared* shared, Store store) {
    const int positions = a.position + 1;
    const int begin = split * per_split;  // the split is positions [begin, end)
    const int end = begin + per_split < positions ? begin + per_split : positions;
    OnlineSoftmax soft;
    attend(projected, a, kv_head, begin, end, shared, soft);
    merge_workers(soft, shared,
                  [&](int h, int place, float value) { store(kv_head * heads_per_kv + h, split, place, value); });
}

// One warp merges `count` results of a query head, at most `most`, for merged_elements<result_lanes> elements of it,
// always in the same order. result_lanes lanes share the results, and the others the elements. A lane takes elements
// `place` and `place + 1`; see merged_place(). load(result, place, value) puts these two values of results
// result + i * result_lanes, below count, into value[i]; load_ends(i) returns maximum and weight of result i. The warp
// calls store(sum, maximum, weight) with the two sums, in the lanes of the first result.
template <int result_lanes>
constexpr int merged_elements = head_dim < 2 * warp_threads / result_lanes ? head_dim : 2 * warp_threads / result_lanes;

// Results of a lane that merge_results() loads at once
template <int result_lanes, int most>
constexpr int merged_in_flight = most < 8 * result_lanes ? (most + result_lanes - 1) / result_lanes : 8;

template <int result_lanes>
__device__ __forceinline__ int merged_place(int slice) {
    return slice * merged_elements<result_lanes> + 2 * (lane_id() % (warp_threads / result_lanes));
}

template <int result_lanes, int most, typename Load, typename LoadEnds, typename Store>
__device__ __forceinline__ void merge_results(int count, int place, Load load, LoadEnds load_ends, Store store) {
    constexpr int pairs = warp_threads / result_lanes, in_flight = merged_in_flight<result_lanes, most>;
    constexpr int own_ends = (most + warp_threads - 1) / warp_threads;  // a lane has those of every 32nd result
    const int lane = lane_id(), own = lane / pairs;
    float2 sum{0.0f, 0.0f}, value[in_flight], ends[own_ends];
    const auto load_from = [&](int first) {
#pragma unroll
        for (int i = 0; i < in_flight; ++i) value[i] = float2{0.0f, 0.0f};
        if (first + own < count && place < head_dim) load(first + own, place, value);
    };
    float maximum = -INFINITY;
#pragma unroll
    for (int e = 0; e < own_ends; ++e) {
        const int result = lane + e * warp_threads;
        ends[e] = result < count ? load_ends(result) : float2{-INFINITY, 0.0f};
        maximum = fmaxf(maximum, ends[e].x);
    }
    load_from(0);
#pragma unroll
    for (int distance = warp_threads / 2; distance > 0; distance /= 2)
        maximum = fmaxf(maximum, __shfl_xor_sync(full_warp, maximum, distance));
    float weight = 0.0f;
#pragma unroll
    for (int e = 0; e < own_ends; ++e) {
        const float scale = expf(ends[e].x - maximum);  // 0 where there is no result
        weight = fmaf(ends[e].y, scale, weight);
        ends[e].x = scale;
    }
    weight = warp_sum(weight);
    constexpr int at_once = in_flight * result_lanes, rounds = (most + at_once - 1) / at_once;
#pragma unroll(own_ends > 1 ? rounds : 1)  // then it is known which of its scales a lane passes on
    for (int first = 0; first < rounds * at_once; first += at_once) {
        if (first >= count) break;
#pragma unroll
        for (int i = 0; i < in_flight; ++i) {
            const float own_scale = ends[own_ends > 1 ? (first + i * result_lanes) / warp_threads : 0].x;
            const float scale = __shfl_sync(full_warp, own_scale, (first + own + i * result_lanes) % warp_threads);
            sum.x = fmaf(value[i].x, scale, sum.x);
            sum.y = fmaf(value[i].y, scale, sum.y);
        }
        load_from(first + in_flight * result_lanes);
    }
#pragma unroll
    for (int distance = pairs; distance < warp_threads; distance *= 2) {
        sum.x += __shfl_xor_sync(full_warp, sum.x, distance);
        sum.y += __shfl_xor_sync(full_warp, sum.y, distance);
    }
    if (own == 0 && place < head_dim) store(sum, maximum, weight);
}

// A block merges `count` results for each query head of a kv head, from row `first` of `partials` on. The merged result
// becomes row `to`. The last one becomes o, with the output gate. A warp takes some elements of one head.
__device__ __forceinline__ void merge_heads(const AttentionArgs& a, int kv_head, int first, int count, bool is_last,
                                            int to) {
    constexpr int slices = head_dim / merged_elements<1>;
    for (int i = warp_id(); i < heads_per_kv * slices; i += block_warps) {
        const int head = kv_head * heads_per_kv + i / slices, place = merged_place<1>(i % slices);
        const int c = element_at(place);  // place + 1 is that of element c + 1
        float gate[2] = {0.0f, 0.0f};     // loaded early, used at the end
        if (is_last && place < head_dim)
            for (int j = 0; j < 2; ++j) gate[j] = a.projected[head * 2 * head_dim + head_dim + c + j];
        const auto partial = [&](int row, int at) {
            return *reinterpret_cast<const float2*>(a.partials + partial_at(head, row, at));
        };
        constexpr int in_flight = merged_in_flight<1, warp_threads>;
        merge_results<1, warp_threads>(
            count, place,
            [&](int from, int at, float2 (&value)[in_flight]) {
#pragma unroll
                for (int i = 0; i < in_flight; ++i)
                    if (from + i < count) value[i] = partial(first + from + i, at);
            },
            [&](int result) { return partial(first + result, head_dim); },
            [&](float2 sum, float maximum, float weight) {
                if (is_last) {
                    const float mean[2] = {sum.x / weight, sum.y / weight};
                    for (int j = 0; j < 2; ++j) a.o[head * head_dim + c + j] = mean[j] * sigmoid(gate[j]);
                } else {
                    float* result = a.partials + partial_at(head, to, 0);
                    *reinterpret_cast<float2*>(result + place) = sum;
                    if (place == 0) *reinterpret_cast<float2*>(result + head_dim) = float2{maximum, weight};
                }
            });
    }
}

// Runs on the whole grid. A unit is one kv head and one split; the blocks take units in turn. The last block to arrive
// in a group merges its splits, and the last of these blocks merges the groups. Few splits are one group.
__device__ __forceinline__ void attention_phase(const AttentionArgs& args, AttentionShared* shared) {
    if (threadIdx.x == 0) shared->args = args;
    __syncthreads();  // the arguments are in shared memory
    const AttentionArgs& a = shared->args;
    const int per_split = positions_per_split(a.position + 1);
    const int splits = a.position / per_split + 1;
    const int groups = splits <= warp_threads ? 1 : (splits + splits_per_group - 1) / splits_per_group;
    for (int unit = blockIdx.x; unit < num_key_value_heads * splits; unit += gridDim.x) {
        const int kv_head = unit / splits, split = unit % splits;
        attend_unit(a.projected, a, kv_head, split, per_split, shared, [&](int head, int at, int place, float value) {
            a.partials[partial_at(head, at, place)] = value;
        });
        const int own_group = groups == 1 ? 0 : split / splits_per_group;
        unsigned* arrivals = a.arrivals + kv_head * (1 + max_groups);
        int first = own_group * splits_per_group, counter = 1 + own_group;
        int count = groups == 1 ? splits : min(splits_per_group, splits - first);
        bool is_last = groups == 1;
        while (last_block_to_arrive(arrivals + counter, count, &shared->flag)) {
            merge_heads(a, kv_head, first, count, is_last, max_splits + own_group);
            if (is_last) break;
            first = max_splits, count = groups, counter = 0, is_last = true;
        }
    }
}
