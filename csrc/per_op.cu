// per_op.cu: one kernel per operation. The comment above each kernel says what it computes.
// luce_edu/stages/per_op.py calls them next to the line of PyTorch that each replaces.
// Slow by choice: every intermediate goes through device memory, and every operation costs a launch.
#include "argmax.cuh"
#include "causal_conv.cuh"
#include "delta_rule.cuh"
#include "matvec.cuh"
#include "rms_norm.cuh"
#include "rope.cuh"

#define KERNEL extern "C" __global__ void __launch_bounds__(block_threads)

// This thread's element of a flat array. The grid covers the array and may exceed it, so kernels check the index.
__device__ __forceinline__ int element_id() { return blockIdx.x * blockDim.x + threadIdx.x; }

// x = embed_tokens[token]
KERNEL embed(const bf16* embed_tokens, const int* token, float* x) {
    const int i = element_id();
    if (i < hidden_size) x[i] = to_float(embed_tokens[static_cast<size_t>(token_at(token)) * hidden_size + i]);
}

// y = rms_norm(x, weight), see rms_norm.cuh; one block
KERNEL rms_norm(const float* x, const float* weight, float* y) {
    __shared__ float scratch[block_warps];
    block_rms_norm<hidden_size>(x, weight, scratch, [&](int i, float value) { y[i] = value; });
}

// y = W @ x, W [rows, cols]; one warp per row; staged_size(cols) floats of dynamic shared memory hold x
KERNEL matvec(const bf16* W, const float* x, float* y, int rows, int cols) {
    DYNAMIC_SHARED(float, shared_x);
    for (int i = threadIdx.x; i < cols; i += blockDim.x) shared_x[staged(i)] = x[i];
    __syncthreads();  // x is in shared memory
    const int row = blockIdx.x * block_warps + warp_id();
    if (row >= rows) return;  // the whole warp returns, and no barrier follows
    const bf16* w = W + static_cast<size_t>(row) * cols;
    float sum = 0.0f;
    for (int c = lane_id() * lane_weights; c < cols; c += chunk) {
        const float* at = shared_x + staged(c);
        sum = dot8(load_weights(w + c), *reinterpret_cast<const float4*>(at),
                   *reinterpret_cast<const float4*>(at + chunk / 2), sum);
    }
    sum = warp_sum(sum);
    if (lane_id() == 0) y[row] = sum;
}

// y = x + r
KERNEL add(const float* x, const float* r, float* y, int n) {
    const int i = element_id();
    if (i < n) y[i] = x[i] + r[i];
}

// y = silu(gate) * up
KERNEL swiglu(const float* gate, const float* up, float* y, int n) {
    const int i = element_id();
    if (i < n) y[i] = silu(gate[i]) * up[i];
}

// qkv = silu(conv(qkv)) in place, and conv_state takes the new input; one thread per channel
KERNEL causal_conv(float* qkv, const float* weight, float* conv_state) {
    const int channel = element_id();
    if (channel < conv_dim) qkv[channel] = causal_conv_step(qkv[channel], channel, weight, conv_state);
}

// q, k = l2_norm(q) / sqrt(K), l2_norm(k) in place; one warp per head, the q heads first
KERNEL l2_norm(float* qkv) {
    const int head = blockIdx.x * block_warps + warp_id();
    if (head >= 2 * num_key_heads) return;
    float* x = qkv + head * key_head_dim;
    warp_l2_norm(x, x, head < num_key_heads ? rsqrtf(static_cast<float>(key_head_dim)) : 1.0f);
}

// beta = sigmoid(b), g = -exp(A_log) * softplus(a + dt_bias)
KERNEL gates(const float* b, const float* a, const float* A_log, const float* dt_bias, float* beta, float* g) {
    const int head = element_id();
    if (head >= num_value_heads) return;
    beta[head] = sigmoid(b[head]);
    g[head] = log_decay(a[head], A_log[head], dt_bias[head]);
}

// o = delta_rule(q, k, v, beta, g, recurrent_state), see delta_rule.cuh; one block per value head, a thread per column
KERNEL delta_rule(const float* qkv, const float* beta, const float* g, float* recurrent_state, float* o) {
    const int head = blockIdx.x, key_head = head / value_heads_per_key;
    const float* q = qkv + key_head * key_head_dim;
    const float* k = qkv + key_dim + key_head * key_head_dim;
    const float* v = qkv + 2 * key_dim + head * value_head_dim;
    float* S = recurrent_state + static_cast<size_t>(head) * key_head_dim * value_head_dim;
    for (int column = threadIdx.x; column < value_head_dim; column += blockDim.x)
        delta_rule_column(q, k, v, beta[head], g[head], S, o + head * value_head_dim, column);
}

// y = rms_norm(o) * weight * silu(z) for each head; one warp per head
KERNEL gated_rms_norm(const float* o, const float* z, const float* weight, float* y) {
    const int head = blockIdx.x * block_warps + warp_id();
    if (head >= num_value_heads) return;
    const int at = head * value_head_dim;
    warp_gated_rms_norm<value_head_dim>(o + at, z + at, weight, [&](int i, float value) { y[at + i] = value; });
}

// x = rms_norm(x, weight) in place for each head of head_dim; heads start `stride` floats apart; one warp per head
KERNEL head_norm(float* x, const float* weight, int heads, int stride) {
    const int head = blockIdx.x * block_warps + warp_id();
    if (head < heads) warp_head_norm(x + head * stride, weight, x + head * stride);
}

// x = rope(x) in place for each head; rope_cos, rope_sin [max_seq_len, rotary_dim / 2]; one warp per head
KERNEL rope(float* x, const float* rope_cos, const float* rope_sin, int position, int heads, int stride) {
    const int head = blockIdx.x * block_warps + warp_id();
    const size_t at = static_cast<size_t>(position) * (rotary_dim / 2);
    if (head < heads) warp_rope(x + head * stride, rope_cos + at, rope_sin + at);
}

// cache[:, position] = x, x [kv heads, head_dim]
KERNEL cache_write(const float* x, bf16* cache, int position, int max_seq_len) {
    const int i = element_id();
    if (i >= kv_dim) return;
    const int kv_head = i / head_dim;
    cache[(static_cast<size_t>(kv_head) * max_seq_len + position) * head_dim + i % head_dim] = to_bf16(x[i]);
}

// scores[head, p] = q[head] . k_cache[kv head, p] / sqrt(head_dim) for p in [0, position]; one warp per score
// q [heads, 2, head_dim]: each head's query is followed by its gate
KERNEL attention_scores(const float* q, const bf16* k_cache, float* scores, int position, int max_seq_len) {
    const int p = blockIdx.x * block_warps + warp_id(), head = blockIdx.y;
    if (p > position) return;
    const bf16* k = k_cache + (static_cast<size_t>(head / heads_per_kv) * max_seq_len + p) * head_dim;
    float sum = 0.0f;
    for (int c = lane_id(); c < head_dim; c += warp_threads) sum = fmaf(q[head * 2 * head_dim + c], to_float(k[c]), sum);
    sum = warp_sum(sum);
    if (lane_id() == 0) scores[static_cast<size_t>(head) * max_seq_len + p] = sum * rsqrtf(static_cast<float>(head_dim));
}

// scores[head] = softmax(scores[head, :position + 1]) in place; one block per head
KERNEL softmax(float* scores, int position, int max_seq_len) {
    __shared__ float scratch[block_warps];
    float* s = scores + static_cast<size_t>(blockIdx.x) * max_seq_len;
    float maximum = -INFINITY;
    for (int p = threadIdx.x; p <= position; p += blockDim.x) maximum = fmaxf(maximum, s[p]);
#pragma unroll
    for (int offset = warp_threads / 2; offset > 0; offset /= 2)
        maximum = fmaxf(maximum, __shfl_xor_sync(full_warp, maximum, offset));
    if (lane_id() == 0) scratch[warp_id()] = maximum;
    __syncthreads();  // every warp's maximum is in shared memory
    for (int w = 0; w < block_warps; ++w) maximum = fmaxf(maximum, scratch[w]);
    __syncthreads();  // everyone has read them, so block_sum() may reuse scratch
    float sum = 0.0f;
    for (int p = threadIdx.x; p <= position; p += blockDim.x) sum += expf(s[p] - maximum);
    sum = block_sum(sum, scratch);
    for (int p = threadIdx.x; p <= position; p += blockDim.x) s[p] = expf(s[p] - maximum) / sum;
}

// o[head, c] = sum over p of scores[head, p] * v_cache[kv head, p, c]; one block per head, one thread per element
KERNEL attention_values(const float* scores, const bf16* v_cache, float* o, int position, int max_seq_len) {
    const int head = blockIdx.x;
    const float* s = scores + static_cast<size_t>(head) * max_seq_len;
    const bf16* v = v_cache + static_cast<size_t>(head / heads_per_kv) * max_seq_len * head_dim;
    for (int c = threadIdx.x; c < head_dim; c += blockDim.x) {
        float sum = 0.0f;
        for (int p = 0; p <= position; ++p) sum = fmaf(s[p], to_float(v[static_cast<size_t>(p) * head_dim + c]), sum);
        o[head * head_dim + c] = sum;
    }
}

// o = o * sigmoid(gate) in place; q [heads, 2, head_dim] holds the gates
KERNEL output_gate(float* o, const float* q) {
    const int i = element_id();
    if (i < q_dim) o[i] *= sigmoid(q[i / head_dim * 2 * head_dim + head_dim + i % head_dim]);
}

// next_token = argmax(logits)
KERNEL argmax(const float* logits, Best* block_best, unsigned* arrivals, int* next_token) {
    __shared__ ArgmaxShared shared;
    Best best = no_best();
    for (int i = element_id(); i < vocab_size; i += gridDim.x * blockDim.x) best = better(best, Best{logits[i], i});
    grid_argmax(best, block_best, arrivals, next_token, &shared);
}
