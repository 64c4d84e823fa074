// prefill.cu: the kernels between a prompt's matrix products, which cuBLAS computes (luce_edu/stages/prefill.py)
//
//   DeltaNet layer    norm | product | causal_conv -> delta_rule_prepare -> delta_rule_scan -> gated_rms_norm | product
//   attention layer   norm | product | attention_prepare -> attention | product
//   both then         norm | product | swiglu | product
//
// The residual x is fp32; inputs and outputs of a product are bf16. A row is a token. The kernels read position and
// length of the segment from memory, so a CUDA graph serves every prompt that fits its rows. Rows from `length` on are
// not valid, except where a comment says that they are zero.
#include "causal_attention.cuh"
#include "causal_conv_sequence.cuh"
#include "delta_rule_chunk.cuh"
#include "phases.cuh"

#define KERNEL extern "C" __global__ void __launch_bounds__(block_threads)
// blocks: how many blocks must fit on an SM, which limits the registers of a thread.
#define KERNEL_FOR(blocks) extern "C" __global__ void __launch_bounds__(block_threads, blocks)

// The first two ints of the buffer `tokens`. The segment's tokens follow them.
struct Segment {
    int position, length;  // tokens before the segment, and in it
};

// The width of a row that holds all outputs of a layer's input projections.
constexpr int deltanet_width = deltanet_in_rows, attention_width = attention_in_rows;

// Reads a bf16 vector as floats.
struct Bf16Row {
    const bf16* p;
    __device__ __forceinline__ float operator[](int i) const { return to_float(p[i]); }
};

// One block computes one row: x[i] = value(i), normed = rms_norm(x), and last = x unless last is null. value(i) gives
// elements i to i + 3.
template <typename Value>
__device__ __forceinline__ void norm_row(Value value, const float* norm, float* x, bf16* normed, float* last) {
    __shared__ float scratch[block_warps];
    constexpr int quads = (hidden_size / 4 + block_threads - 1) / block_threads;
    float4 here[quads], weight[quads];  // both loaded now: the sum hides the latency of the weights
    float squares = 0.0f;
#pragma unroll
    for (int p = 0; p < quads; ++p) {
        const int i = 4 * (threadIdx.x + p * block_threads);
        const bool is_there = i < hidden_size;
        weight[p] = is_there ? *reinterpret_cast<const float4*>(norm + i) : float4{};
        here[p] = is_there ? value(i) : float4{};
        squares += here[p].x * here[p].x + here[p].y * here[p].y + (here[p].z * here[p].z + here[p].w * here[p].w);
    }
    const float scale = rsqrtf(block_sum(squares, scratch) / hidden_size + rms_norm_eps);
#pragma unroll
    for (int p = 0; p < quads; ++p) {
        const int i = 4 * (threadIdx.x + p * block_threads);
        if (i >= hidden_size) break;
        const float4 h = here[p], w = weight[p];
        store4(x + i, h);
        *reinterpret_cast<uint2*>(normed + i) =
            uint2{to_bf16_pair(h.x * scale * (1.0f + w.x), h.y * scale * (1.0f + w.y)),
                  to_bf16_pair(h.z * scale * (1.0f + w.z), h.w * scale * (1.0f + w.w))};
        if (last != nullptr) store4(last + i, h);
    }
}

// Four neighbouring bf16 numbers.
__device__ __forceinline__ float4 load_four(const bf16* p) {
    const uint2 four = *reinterpret_cast<const uint2*>(p);
    return float4{even(four.x), odd(four.x), even(four.y), odd(four.y)};
}

// x = embed_tokens[tokens], normed = rms_norm(x); hidden gets the segment's last row. One block per row.
KERNEL embed_norm(const bf16* embed_tokens, const int* tokens, const float* norm, float* x, bf16* normed, float* hidden) {
    const Segment segment = *reinterpret_cast<const Segment*>(tokens);
    const int row = blockIdx.x;
    if (row >= segment.length) return;
    const bf16* embedding = embed_tokens + static_cast<size_t>(tokens[2 + row]) * hidden_size;
    const size_t at = static_cast<size_t>(row) * hidden_size;
    norm_row([&](int i) { return load_four(embedding + i); }, norm, x + at, normed + at,
             row == segment.length - 1 ? hidden : nullptr);
}

// x += y, normed = rms_norm(x); if is_layer_end, hidden gets the segment's last row. One block per row.
KERNEL add_norm(const bf16* y, const int* tokens, const float* norm, float* x, bf16* normed, float* hidden,
                int is_layer_end) {
    const Segment segment = *reinterpret_cast<const Segment*>(tokens);
    const int row = blockIdx.x;
    if (row >= segment.length) return;
    const size_t at = static_cast<size_t>(row) * hidden_size;
    norm_row(
        [&](int i) {
            const float4 before = *reinterpret_cast<const float4*>(x + at + i), more = load_four(y + at + i);
            return float4{before.x + more.x, before.y + more.y, before.z + more.z, before.w + more.w};
        },
        norm, x + at, normed + at, is_layer_end && row == segment.length - 1 ? hidden : nullptr);
}

// hidden = x + y of the segment's last row, which the final norm and the LM head read
KERNEL last_hidden(const bf16* y, const int* tokens, const float* x, float* hidden) {
    const Segment segment = *reinterpret_cast<const Segment*>(tokens);
    const int i = blockIdx.x * block_threads + threadIdx.x;
    const size_t at = static_cast<size_t>(segment.length - 1) * hidden_size + i;
    if (i < hidden_size) hidden[i] = x[at] + to_float(y[at]);
}

// qkv = silu(conv(projected)), q and k normalised; conv_state gets the last inputs. A warp takes a head and 16 tokens.
KERNEL_FOR(2) causal_conv(const bf16* projected, const int* tokens, const float* weight, float* conv_state, bf16* qkv) {
    const int length = reinterpret_cast<const Segment*>(tokens)->length;
    const int unit = blockIdx.x * block_warps + warp_id();
    causal_conv_sequence(projected, deltanet_width, weight, conv_state, qkv, unit, length);
}

// T, A, G of delta_rule_chunk.cuh, for each chunk and value head
KERNEL_FOR(2) delta_rule_prepare(const bf16* projected, const int* tokens, const bf16* qkv, const float* A_log,
                          const float* dt_bias, float* T, float* A, float* G) {
    __shared__ PrepareShared shared;
    const int length = reinterpret_cast<const Segment*>(tokens)->length;
    const int chunk = blockIdx.y, head = blockIdx.x;
    if (chunk * chunk_tokens >= length) return;
    prepare_chunk(ChunkArgs{qkv, T, A, G}, chunk, head, projected + a_row + head, projected + b_row + head,
                  deltanet_width, A_log[head], dt_bias[head], length - chunk * chunk_tokens, &shared);
}

// o of each token, and recurrent_state after the segment
KERNEL_FOR(1) delta_rule_scan(const int* tokens, const bf16* qkv, float* T, float* A, float* G, float* recurrent_state,
                              float* o) {
    __shared__ ScanShared shared;
    const int length = reinterpret_cast<const Segment*>(tokens)->length;
    const int head = blockIdx.x, column = blockIdx.y * scan_columns;
    if (column >= value_head_dim) return;  // the grid is sized for the narrowest tile; surplus blocks return at once
    scan_chunks(ChunkArgs{qkv, T, A, G}, head, column, (length + chunk_tokens - 1) / chunk_tokens,
                recurrent_state + static_cast<size_t>(head) * key_head_dim * value_head_dim, o, &shared);
}

// mixed = rms_norm(o) * weight * silu(z) for each head; one warp per token and head
KERNEL gated_rms_norm(const float* o, const bf16* projected, const int* tokens, const float* weight, bf16* mixed) {
    struct Pair {
        float weight, z;
    };
    const int unit = blockIdx.x * block_warps + warp_id();
    const int row = unit / num_value_heads, head = unit % num_value_heads;
    if (row >= reinterpret_cast<const Segment*>(tokens)->length) return;
    const size_t at = static_cast<size_t>(row) * value_dim + head * value_head_dim;
    const bf16* z = projected + static_cast<size_t>(row) * deltanet_width + z_row + head * value_head_dim;
    warp_normalise<value_head_dim>(
        o + at, [&](int i) { return Pair{weight[i], to_float(z[i])}; },
        [](float squares) { return rsqrtf(squares / value_head_dim + rms_norm_eps); },
        [&](int i, float value, Pair with) { mixed[at + i] = to_bf16(value * with.weight * silu(with.z)); });
}

// q = rope(norm(q)) / sqrt(head_dim);  the caches get k = rope(norm(k)) and v. One warp per token and head of q, k, v.
KERNEL attention_prepare(const bf16* projected, const int* tokens, const float* q_norm, const float* k_norm,
                         const float* rope_cos, const float* rope_sin, bf16* q, bf16* k_cache, bf16* v_cache,
                         int max_seq_len) {
    __shared__ float heads[block_warps][head_dim];
    constexpr int units = num_attention_heads + 2 * num_key_value_heads;
    const Segment segment = *reinterpret_cast<const Segment*>(tokens);
    // unit in [0, units): first the heads of q, then those of k, then those of v
    const int row = (blockIdx.x * block_warps + warp_id()) / units, unit = (blockIdx.x * block_warps + warp_id()) % units;
    if (row >= segment.length) return;  // the whole warp returns, and no barrier of the block follows
    const bf16* in = projected + static_cast<size_t>(row) * attention_width;
    const int position = segment.position + row, kv = (unit - num_attention_heads) % num_key_value_heads;
    const size_t cached = (static_cast<size_t>(max_of(kv, 0)) * max_seq_len + position) * head_dim;
    if (unit >= num_attention_heads + num_key_value_heads) {
        for (int i = lane_id(); i < head_dim; i += warp_threads) v_cache[cached + i] = in[v_row + kv * head_dim + i];
        return;
    }
    const bool is_k = unit >= num_attention_heads;
    const bf16* head = in + (is_k ? k_row + kv * head_dim : 2 * unit * head_dim);
    const float* norm = is_k ? k_norm : q_norm;
    float* own = heads[warp_id()];
    warp_normalise<head_dim>(
        Bf16Row{head}, [&](int i) { return norm[i]; },
        [](float squares) { return rsqrtf(squares / head_dim + rms_norm_eps); },
        [&](int i, float value, float with) { own[i] = value * (1.0f + with); });
    __syncwarp();  // RoPE reads what other lanes wrote
    const size_t angles = static_cast<size_t>(position) * (rotary_dim / 2);
    warp_rope(own, rope_cos + angles, rope_sin + angles);
    __syncwarp();
    bf16* out = is_k ? k_cache + cached : q + (static_cast<size_t>(row) * num_attention_heads + unit) * head_dim;
    const float scale = is_k ? 1.0f : rsqrtf(static_cast<float>(head_dim));
    for (int i = lane_id(); i < head_dim; i += warp_threads) out[i] = to_bf16(own[i] * scale);
}

// mixed = attention * sigmoid(gate), see causal_attention.cuh; a block takes 64 rows of a kv head
KERNEL_FOR(1) attention(const bf16* q, const bf16* k_cache, const bf16* v_cache, const bf16* projected, const int* tokens,
                 bf16* mixed, int max_seq_len) {
    __shared__ CausalShared shared;
    const Segment segment = *reinterpret_cast<const Segment*>(tokens);
    // The last rows see the most keys. Their blocks start first, so that short ones fill the end.
    const int first_row = (gridDim.y - 1 - blockIdx.y) * block_rows;
    if (first_row >= segment.length * heads_per_kv) return;
    causal_attention(CausalArgs{q, k_cache, v_cache, projected, mixed, segment.position, segment.length, max_seq_len},
                     blockIdx.x, first_row, attention_width, &shared);
}

// act = silu(gate) * up; a row of `projected` holds gate, then up. A thread takes eight elements.
KERNEL swiglu(const bf16* projected, const int* tokens, bf16* act) {
    constexpr int per_row = intermediate_size / 8;
    const int unit = blockIdx.x * block_threads + threadIdx.x;
    const int row = unit / per_row, i = unit % per_row * 8;
    if (row >= reinterpret_cast<const Segment*>(tokens)->length) return;
    const bf16* at = projected + static_cast<size_t>(row) * 2 * intermediate_size + i;
    const Eight gate = load_eight(at), up = load_eight(at + intermediate_size);
    Eight out;
#pragma unroll
    for (int j = 0; j < 8; ++j) out.x[j] = silu(gate.x[j]) * up.x[j];
    store_eight(act + static_cast<size_t>(row) * intermediate_size + i, out);
}

// logits = lm_head(norm(x)) and the next token, for the segment's last row
KERNEL_FOR(2) lm_head(const float* x, const float* norm, const bf16* lm_head, float* logits, Best* block_best,
                      unsigned* arrivals, int* next_token) {
    __shared__ PhaseShared shared;
    lm_head_phase(x, norm, lm_head, logits, block_best, arrivals, next_token, &shared);
}
