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
//           the cache. Inside the block, head_dim / 8 lanes form a worker. The workers take positions in turn, each
//           with its own online softmax, and shared memory merges them. Each split writes a partial result to device
//           memory. The last block to arrive merges the splits in the same way: its workers take splits in turn.
// Traffic   the cache up to `position` is read once, 16 bytes per lane; k and v of two positions are in flight
// Checked   tests/csrc/test_kernels.py
#pragma once
#include "activations.cuh"
#include "matvec.cuh"
#include "rope.cuh"

constexpr int worker_lanes = head_dim / lane_weights;
constexpr int workers = block_threads / worker_lanes;
static_assert(head_dim % lane_weights == 0 && worker_lanes <= warp_threads && warp_threads % worker_lanes == 0,
              "head_dim must be 8, 16, 32, 64, 128 or 256");
static_assert(head_dim <= block_threads, "a thread for each element of a head");

constexpr int min_positions_per_split = 32;  // fewer cost more to merge than another block saves
constexpr int max_splits = MAX_SPLITS;
constexpr int partial_size = head_dim + 4;   // a split's weighted sum of v, its maximum, its sum of weights, padding

struct AttentionArgs {
    const float *projected, *q_norm, *k_norm, *rope_cos, *rope_sin;  // rope tables [max_seq_len, rotary_dim / 2]
    bf16 *k_cache, *v_cache;
    float *partials, *o;  // partials [heads, max_splits, partial_size], 16-byte aligned
    unsigned* arrivals;  // [kv heads], 0 between launches
    int position, max_seq_len;
};

struct AttentionShared {
    AttentionArgs args;  // here they save a dozen registers: the megakernel uses nearly all that a thread may have
    alignas(16) float q[heads_per_kv + 1][head_dim];  // the last row holds this token's k, in the block that caches it
    alignas(16) float merged[workers][head_dim];
    float maximum[workers], weight[workers];
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
    const int least = (positions + max_splits - 1) / max_splits;
    return least > min_positions_per_split ? least : min_positions_per_split;
}

// x[at + i] as element i. x is anything with x[i], such as a pointer.
template <typename Input>
struct From {
    Input x;
    int at;
    __device__ __forceinline__ float operator[](int i) const { return x[at + i]; }
};

// Applies norm and RoPE to the queries of this kv head and stores them in shared memory, scaled, in the order of
// place_of(). The block that owns the newest position also puts this token's k and v into the cache.
template <typename Input>
__device__ __forceinline__ void prepare_heads(Input projected, const AttentionArgs& a, int kv_head, bool owns_newest,
                                              AttentionShared* shared) {
    const float* cos = a.rope_cos + static_cast<size_t>(a.position) * (rotary_dim / 2);
    const float* sin = a.rope_sin + static_cast<size_t>(a.position) * (rotary_dim / 2);
    const From<Input> v{projected, 2 * q_dim + kv_dim + kv_head * head_dim};
    const size_t newest = (static_cast<size_t>(kv_head) * a.max_seq_len + a.position) * head_dim;
    for (int row = warp_id(); row < heads_per_kv + owns_newest; row += block_warps) {
        const bool is_k = row == heads_per_kv;
        const int at = is_k ? 2 * q_dim + kv_head * head_dim : (kv_head * heads_per_kv + row) * 2 * head_dim;
        warp_head_norm(From<Input>{projected, at}, is_k ? a.k_norm : a.q_norm, shared->q[row]);
        __syncwarp();  // RoPE reads what other lanes wrote
        warp_rope(shared->q[row], cos, sin);
        __syncwarp();
        constexpr int per_lane = (head_dim + warp_threads - 1) / warp_threads;
        float value[per_lane];
#pragma unroll
        for (int i = 0; i < per_lane; ++i) {
            const int c = lane_id() + i * warp_threads;
            if (c < head_dim) value[i] = shared->q[row][c];
        }
        __syncwarp();  // the whole row is read before any of it is stored in another order
#pragma unroll
        for (int i = 0; i < per_lane; ++i) {
            const int c = lane_id() + i * warp_threads;
            if (c >= head_dim) continue;
            if (is_k) {
                a.k_cache[newest + c] = to_bf16(value[i]);
                a.v_cache[newest + c] = to_bf16(v[c]);
            } else {
                shared->q[row][place_of(c)] = value[i] * rsqrtf(static_cast<float>(head_dim));
            }
        }
    }
    __syncthreads();  // the queries are in shared memory, and the newest k and v in the cache for this block to read
}

// A worker's running softmax over the positions or splits it has taken, for some query heads of one kv head.
template <int heads>
struct OnlineSoftmax {
    float maximum[heads], weight[heads];
    float sum[heads][lane_weights];  // this lane's 8 elements of the weighted sum of v
};

template <int heads>
__device__ __forceinline__ void start(OnlineSoftmax<heads>& soft) {
#pragma unroll
    for (int h = 0; h < heads; ++h) {
        soft.maximum[h] = -INFINITY, soft.weight[h] = 0.0f;
#pragma unroll
        for (int j = 0; j < lane_weights; ++j) soft.sum[h][j] = 0.0f;
    }
}

struct KeyAndValue {
    bf16x8 k, v;  // a lane's 8 elements of each, at one position
};

__device__ __forceinline__ void attend(const AttentionArgs& a, int kv_head, int begin, int end,
                                       const AttentionShared* shared, OnlineSoftmax<heads_per_kv>& soft) {
    // worker in [0, workers); lane in [0, worker_lanes) holds elements 8 * lane to 8 * lane + 7 of a head
    const int worker = threadIdx.x / worker_lanes, lane = threadIdx.x % worker_lanes;
    const size_t head = static_cast<size_t>(kv_head) * a.max_seq_len * head_dim + lane * lane_weights;
    const auto load = [&](int p) {  // not through the read-only path: this launch wrote the newest position
        KeyAndValue at{};
        if (p < end) {
            at.k = *reinterpret_cast<const bf16x8*>(a.k_cache + head + static_cast<size_t>(p) * head_dim);
            at.v = *reinterpret_cast<const bf16x8*>(a.v_cache + head + static_cast<size_t>(p) * head_dim);
        }
        return at;
    };
    start(soft);
    KeyAndValue next = load(begin + worker);
    // All workers do the same number of rounds, so that every shuffle has all its lanes.
    for (int first = begin; first < end; first += workers) {
        const bool valid = first + worker < end;
        const bf16x8 k = next.k, v = next.v;
        next = load(first + workers + worker);  // in flight while this position is computed
#pragma unroll
        for (int h = 0; h < heads_per_kv; ++h) {
            const float* q = shared->q[h] + lane * 4;  // see place_of()
            const float score =
                warp_sum<worker_lanes>(dot8(k, *reinterpret_cast<const float4*>(q),
                                            *reinterpret_cast<const float4*>(q + head_dim / 2), 0.0f));
            if (!valid) continue;
            // <rescale>
            const float maximum = fmaxf(soft.maximum[h], score);
            const float old = expf(soft.maximum[h] - maximum);  // rescales the sums so far to the new maximum
            const float now = expf(score - maximum);
            soft.maximum[h] = maximum;
            soft.weight[h] = fmaf(soft.weight[h], old, now);
            // </rescale>
#pragma unroll
            // <values>
            for (int j = 0; j < 4; ++j) {
                soft.sum[h][2 * j] = fmaf(soft.sum[h][2 * j], old, now * even(v.pair[j]));
                soft.sum[h][2 * j + 1] = fmaf(soft.sum[h][2 * j + 1], old, now * odd(v.pair[j]));
            }
            // </values>
        }
    }
}

// Merges all workers of a block for head h of `soft`, always in the same order. Thread t in [0, head_dim) then calls
// store(t, sum, maximum, weight) for the element at place t.
template <int heads, typename Store>
__device__ __forceinline__ void merge_workers(const OnlineSoftmax<heads>& soft, int h, AttentionShared* shared,
                                              Store store) {
    const int worker = threadIdx.x / worker_lanes, lane = threadIdx.x % worker_lanes;
    const float* sum = soft.sum[h];
    float* merged = shared->merged[worker] + lane * 4;
    *reinterpret_cast<float4*>(merged) = float4{sum[0], sum[1], sum[2], sum[3]};
    *reinterpret_cast<float4*>(merged + head_dim / 2) = float4{sum[4], sum[5], sum[6], sum[7]};
    if (lane == 0) shared->maximum[worker] = soft.maximum[h], shared->weight[worker] = soft.weight[h];
    __syncthreads();  // every worker's sums are in shared memory
    if (threadIdx.x < head_dim) {
        float maximum = -INFINITY, total = 0.0f, weight = 0.0f;
        for (int w = 0; w < workers; ++w) maximum = fmaxf(maximum, shared->maximum[w]);
        for (int w = 0; w < workers; ++w) {
            const float scale = expf(shared->maximum[w] - maximum);  // 0 for a worker that took no position
            total = fmaf(shared->merged[w][threadIdx.x], scale, total);
            weight = fmaf(shared->weight[w], scale, weight);
        }
        store(threadIdx.x, total, maximum, weight);
    }
    __syncthreads();  // the next head may overwrite
}

// The place in `partials` of a value of one split's result for one query head. Places in [0, head_dim) hold the
// weighted sum, the next two its maximum and its sum of weights.
__device__ __forceinline__ size_t partial_at(int head, int split, int place) {
    return (static_cast<size_t>(head) * max_splits + split) * partial_size + place;
}

// One block computes a unit: the query heads of kv_head over the positions of one split. It calls
// store(head, split, place, value) for all values of the results; see partial_at().
template <typename Input, typename Store>
__device__ __forceinline__ void attend_unit(Input projected, const AttentionArgs& a, int kv_head, int split,
                                            int per_split, AttentionShared* shared, Store store) {
    const int positions = a.position + 1;
    const int begin = split * per_split;  // the split is positions [begin, end)
    const int end = begin + per_split < positions ? begin + per_split : positions;
    prepare_heads(projected, a, kv_head, begin <= a.position && a.position < end, shared);
    OnlineSoftmax<heads_per_kv> soft;
    attend(a, kv_head, begin, end, shared, soft);
#pragma unroll
    for (int h = 0; h < heads_per_kv; ++h) {
        const int head = kv_head * heads_per_kv + h;
        merge_workers(soft, h, shared, [&](int place, float sum, float maximum, float weight) {
            store(head, split, place, sum);
            if (place == 0) store(head, split, head_dim, maximum), store(head, split, head_dim + 1, weight);
        });
    }
}

// One block merges the splits of `heads` neighbouring query heads and applies the output gate. Its workers take splits in
// turn, so that many partial results are loaded at the same time. load(head, split, place) returns the four values from
// `place` on, a multiple of 4. The block calls store(head, c, o) for each element c in [0, head_dim).
template <int heads, typename Input, typename Load, typename Store>
__device__ __forceinline__ void merge_splits(Input projected, int first_head, int splits, AttentionShared* shared,
                                             Load load, Store store) {
    const int worker = threadIdx.x / worker_lanes, lane = threadIdx.x % worker_lanes;
    const int c = element_at(threadIdx.x);  // in [0, head_dim), for threads below head_dim
    float gate[heads];                      // loaded early, used at the end
#pragma unroll
    for (int h = 0; h < heads; ++h)
        gate[h] = threadIdx.x < head_dim ? projected[(first_head + h) * 2 * head_dim + head_dim + c] : 0.0f;
    OnlineSoftmax<heads> soft;
    start(soft);
    for (int split = worker; split < splits; split += workers) {
#pragma unroll
        for (int h = 0; h < heads; ++h) {
            const float4 lo = load(first_head + h, split, lane * 4);
            const float4 hi = load(first_head + h, split, head_dim / 2 + lane * 4);
            const float4 end = load(first_head + h, split, head_dim);
            const float theirs = end.x, weight = end.y;
            const float base = fmaxf(soft.maximum[h], theirs);
            const float old = expf(soft.maximum[h] - base), now = expf(theirs - base);
            const float value[lane_weights] = {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
            soft.maximum[h] = base;
            soft.weight[h] = fmaf(soft.weight[h], old, now * weight);
#pragma unroll
            for (int j = 0; j < lane_weights; ++j) soft.sum[h][j] = fmaf(soft.sum[h][j], old, now * value[j]);
        }
    }
#pragma unroll
    for (int h = 0; h < heads; ++h)
        merge_workers(soft, h, shared, [&](int, float sum, float, float weight) {
            store(first_head + h, c, sum / weight * sigmoid(gate[h]));
        });
}

// Runs on the whole grid. A unit is one kv head and one split; the blocks take units in turn. The last block to arrive
// of a kv head merges its splits.
__device__ __forceinline__ void attention_phase(const AttentionArgs& args, AttentionShared* shared) {
    if (threadIdx.x == 0) shared->args = args;
    __syncthreads();  // the arguments are in shared memory
    const AttentionArgs& a = shared->args;
    const int per_split = positions_per_split(a.position + 1);
    const int splits = a.position / per_split + 1;
    for (int unit = blockIdx.x; unit < num_key_value_heads * splits; unit += gridDim.x) {
        const int kv_head = unit / splits, split = unit % splits;
        attend_unit(a.projected, a, kv_head, split, per_split, shared, [&](int head, int at, int place, float value) {
            a.partials[partial_at(head, at, place)] = value;
        });
        if (last_block_to_arrive(a.arrivals + kv_head, splits, &shared->flag))
            merge_splits<heads_per_kv>(
                a.projected, kv_head * heads_per_kv, splits, shared,
                [&](int head, int at, int place) {
                    return *reinterpret_cast<const float4*>(a.partials + partial_at(head, at, place));
                },
                [&](int head, int c, float o) { a.o[head * head_dim + c] = o; });
        __syncthreads();  // the next unit reuses the shared memory
    }
}
