// attention.cuh: one decode token of gated attention with grouped heads, fused from q/k norm to output gate
// Computes  q, k = rope(norm(q)), rope(norm(k));  k, v join the cache;  o = softmax(q k^T / sqrt(head_dim)) v * sigmoid(gate)
// Shapes    projected: q with its gate [heads, 2, head_dim], then k, then v [kv heads, head_dim], fp32
//           k_cache, v_cache [kv heads, max_seq_len, head_dim] bf16;  o [heads, head_dim] fp32
// Work      a unit is one kv head and one split of the positions; a block takes a unit. All query heads of a kv head
//           share one read of the cache. Inside the block, head_dim / 8 lanes form a worker; workers take positions
//           in turn, each with its own online softmax; they are merged in shared memory, splits in device memory by
//           the last block to arrive.
// Traffic   the cache up to `position` is read once, 16 bytes a lane
// Checked   tests/csrc/test_kernels.py
#pragma once
#include "activations.cuh"
#include "matvec.cuh"
#include "rope.cuh"

constexpr int worker_lanes = head_dim / lane_weights;
constexpr int workers = block_threads / worker_lanes;
static_assert(head_dim % lane_weights == 0 && worker_lanes <= warp_threads && warp_threads % worker_lanes == 0,
              "head_dim must be 8, 16, 32, 64, 128 or 256");

constexpr int min_positions_per_split = 32;  // fewer are not worth a block and a merge
constexpr int max_splits = MAX_SPLITS;
constexpr int partial_size = head_dim + 2;   // a split's weighted sum of v, its maximum and its sum of weights

struct AttentionArgs {
    const float *projected, *q_norm, *k_norm, *rope_cos, *rope_sin;  // rope tables [max_seq_len, rotary_dim / 2]
    bf16 *k_cache, *v_cache;
    float *partials, *o;  // partials [heads, max_splits, partial_size]
    unsigned* arrivals;  // [kv heads], 0 between launches
    int position, max_seq_len;
};

struct AttentionShared {
    AttentionArgs args;  // a dozen registers saved: the megakernel is at the limit of what a thread has
    alignas(16) float q[heads_per_kv + 1][head_dim];  // the last row is this token's k, where this block owns it
    float merged[workers][head_dim];
    float maximum[workers], weight[workers];
    int flag;
};

// Counting splits from their size, not the size from a count, leaves none of them empty.
__device__ __forceinline__ int positions_per_split(int positions) {
    const int least = (positions + max_splits - 1) / max_splits;
    return least > min_positions_per_split ? least : min_positions_per_split;
}

// Norm and RoPE of this kv head's queries, and in the block that owns the newest position of its k and v.
__device__ __forceinline__ void prepare_heads(const AttentionArgs& a, int kv_head, bool owns_newest, AttentionShared* shared) {
    const float* cos = a.rope_cos + static_cast<size_t>(a.position) * (rotary_dim / 2);
    const float* sin = a.rope_sin + static_cast<size_t>(a.position) * (rotary_dim / 2);
    const float* k = a.projected + 2 * q_dim + kv_head * head_dim;
    const float* v = a.projected + 2 * q_dim + kv_dim + kv_head * head_dim;
    const size_t newest = (static_cast<size_t>(kv_head) * a.max_seq_len + a.position) * head_dim;
    for (int row = warp_id(); row < heads_per_kv + owns_newest; row += block_warps) {
        const bool is_k = row == heads_per_kv;
        const float* x = is_k ? k : a.projected + (kv_head * heads_per_kv + row) * 2 * head_dim;
        warp_head_norm(x, is_k ? a.k_norm : a.q_norm, shared->q[row]);
        __syncwarp();  // RoPE reads what other lanes wrote
        warp_rope(shared->q[row], cos, sin);
        __syncwarp();
        for (int c = lane_id(); c < head_dim; c += warp_threads) {
            if (is_k) {
                a.k_cache[newest + c] = to_bf16(shared->q[row][c]);
                a.v_cache[newest + c] = to_bf16(v[c]);
            } else {
                shared->q[row][c] *= rsqrtf(static_cast<float>(head_dim));
            }
        }
    }
    __syncthreads();  // the queries are in shared memory, and the newest k and v in the cache for this block to read
}

// A worker's running softmax over the positions it has seen, for all query heads of one kv head.
struct OnlineSoftmax {
    float maximum[heads_per_kv], weight[heads_per_kv];
    float sum[heads_per_kv][lane_weights];  // of v, this lane's 8 elements
};

__device__ __forceinline__ void attend(const AttentionArgs& a, int kv_head, int begin, int end,
                                       const AttentionShared* shared, OnlineSoftmax& soft) {
    const int worker = threadIdx.x / worker_lanes;
    const int element = threadIdx.x % worker_lanes * lane_weights;  // this lane's first of head_dim
#pragma unroll
    for (int h = 0; h < heads_per_kv; ++h) {
        soft.maximum[h] = -INFINITY, soft.weight[h] = 0.0f;
#pragma unroll
        for (int j = 0; j < lane_weights; ++j) soft.sum[h][j] = 0.0f;
    }
    // The trip count is the same for the whole block, so that every shuffle has all its lanes.
    for (int first = begin; first < end; first += workers) {
        const bool valid = first + worker < end;
        const int p = valid ? first + worker : begin;
        const size_t at = (static_cast<size_t>(kv_head) * a.max_seq_len + p) * head_dim + element;
        const bf16x8 k = *reinterpret_cast<const bf16x8*>(a.k_cache + at);  // not the read-only path: just written
        const bf16x8 v = *reinterpret_cast<const bf16x8*>(a.v_cache + at);
#pragma unroll
        for (int h = 0; h < heads_per_kv; ++h) {
            const float* q = shared->q[h] + element;
            const float score = warp_sum<worker_lanes>(
                dot8(k, *reinterpret_cast<const float4*>(q), *reinterpret_cast<const float4*>(q + 4), 0.0f));
            if (!valid) continue;
            // <rescale>
            const float maximum = fmaxf(soft.maximum[h], score);
            const float old = expf(soft.maximum[h] - maximum);  // what the sums so far are worth on the new scale
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

// Workers of one block into one partial result for (head, split), always in the same order.
__device__ __forceinline__ void merge_workers(const OnlineSoftmax& soft, int h, float* partial, AttentionShared* shared) {
    const int worker = threadIdx.x / worker_lanes;
    const int element = threadIdx.x % worker_lanes * lane_weights;
#pragma unroll
    for (int j = 0; j < lane_weights; ++j) shared->merged[worker][element + j] = soft.sum[h][j];
    if (element == 0) shared->maximum[worker] = soft.maximum[h], shared->weight[worker] = soft.weight[h];
    __syncthreads();  // every worker's sums are there
    float maximum = -INFINITY;
    for (int w = 0; w < workers; ++w) maximum = fmaxf(maximum, shared->maximum[w]);
    for (int c = threadIdx.x; c < head_dim; c += block_threads) {
        float sum = 0.0f, weight = 0.0f;
        for (int w = 0; w < workers; ++w) {
            const float scale = expf(shared->maximum[w] - maximum);  // 0 for a worker that saw no position
            sum = fmaf(shared->merged[w][c], scale, sum);
            weight = fmaf(shared->weight[w], scale, weight);
        }
        partial[c] = sum;
        if (c == 0) partial[head_dim] = maximum, partial[head_dim + 1] = weight;
    }
    __syncthreads();  // the next head may overwrite
}

// All splits of one kv head into o, with the output gate; the last block to arrive does it.
__device__ __forceinline__ void merge_splits(const AttentionArgs& a, int kv_head, int splits) {
    for (int i = threadIdx.x; i < heads_per_kv * head_dim; i += block_threads) {
        const int head = kv_head * heads_per_kv + i / head_dim, c = i % head_dim;
        const float* partial = a.partials + static_cast<size_t>(head) * max_splits * partial_size;
        float maximum = -INFINITY, sum = 0.0f, weight = 0.0f;
        for (int s = 0; s < splits; ++s) maximum = fmaxf(maximum, partial[s * partial_size + head_dim]);
        for (int s = 0; s < splits; ++s) {
            const float scale = expf(partial[s * partial_size + head_dim] - maximum);
            sum = fmaf(partial[s * partial_size + c], scale, sum);
            weight = fmaf(partial[s * partial_size + head_dim + 1], scale, weight);
        }
        const float gate = a.projected[head * 2 * head_dim + head_dim + c];
        a.o[head * head_dim + c] = sum / weight * sigmoid(gate);
    }
}

// The whole grid: units are dealt to the blocks in turn.
__device__ __forceinline__ void attention_phase(const AttentionArgs& args, AttentionShared* shared) {
    if (threadIdx.x == 0) shared->args = args;
    __syncthreads();  // the arguments are in shared memory
    const AttentionArgs& a = shared->args;
    const int positions = a.position + 1;
    const int per_split = positions_per_split(positions);
    const int splits = (positions + per_split - 1) / per_split;
    for (int unit = blockIdx.x; unit < num_key_value_heads * splits; unit += gridDim.x) {
        const int kv_head = unit / splits, split = unit % splits;
        const int begin = split * per_split;
        const int end = begin + per_split < positions ? begin + per_split : positions;
        prepare_heads(a, kv_head, begin <= a.position && a.position < end, shared);
        OnlineSoftmax soft;
        attend(a, kv_head, begin, end, shared, soft);
#pragma unroll
        for (int h = 0; h < heads_per_kv; ++h) {
            const int head = kv_head * heads_per_kv + h;
            merge_workers(soft, h, a.partials + (static_cast<size_t>(head) * max_splits + split) * partial_size, shared);
        }
        if (last_block_to_arrive(a.arrivals + kv_head, splits, &shared->flag)) merge_splits(a, kv_head, splits);
        __syncthreads();  // the next unit reuses the shared memory
    }
}
