// causal_conv_sequence.cuh: the causal convolution of causal_conv.cuh over a sequence, and the norm of q and k
// Computes  for each token t and channel c, with the inputs before the sequence from conv_state:
//               y[t][c] = silu(sum over j in [0, conv_kernel) of weight[c][j] * input[t - conv_kernel + 1 + j][c])
//           for each head of q and k: y[t] = y[t] / sqrt(sum(y[t]^2) + eps), and q also / sqrt(K)
//           conv_state = the last conv_kernel - 1 inputs
// Shapes    projected [tokens, stride] bf16, a row's first conv_dim are q, k, v;  qkv as delta_rule_chunk.cuh reads it;
//           weight [conv_dim, conv_kernel], conv_state [conv_dim, conv_kernel - 1] fp32
// Work      A warp takes one head of q, k or v and `conv_tokens` tokens. A lane takes two neighbouring channels and
//           keeps their last inputs in registers. Only the warp with a head's first tokens reads its conv_state, so
//           this warp can also update it.
// Traffic   each input is read once, and conv_kernel - 1 of every conv_tokens a second time
// Checked   tests/csrc/test_prefill.py
#pragma once
#include "activations.cuh"
#include "delta_rule_chunk.cuh"

constexpr int conv_tokens = CONV_TOKENS;
constexpr int conv_heads = 2 * num_key_heads + num_value_heads;
static_assert(key_head_dim % 2 == 0, "a lane takes two neighbouring channels");
static_assert(conv_kernel - 1 <= conv_tokens, "only a head's first warp may read its conv_state, which it updates");

// One warp computes tokens [first, first + conv_tokens) of one head of `dim` channels, padded with zeros to `width`.
// in, out point at the head's first channel at token 0, weight and conv_state at that channel. Rows from `length` to
// the end of the last chunk become zero. scale is 0 for a head that is not normalised.
template <int dim, int width>
__device__ __forceinline__ void conv_head(const bf16* in, int stride, const float* weight, float* conv_state, bf16* out,
                                          int first, int length, float scale) {
    constexpr int pairs = (width / 2 + warp_threads - 1) / warp_threads;  // pairs of channels per lane
    constexpr int history = conv_kernel - 1;
    const int chunks_end = (length + chunk_tokens - 1) / chunk_tokens * chunk_tokens;
    const int end = first + conv_tokens < chunks_end ? first + conv_tokens : chunks_end;
    if (first >= end) return;
    float taps[pairs][2][conv_kernel], window[pairs][2][history];
#pragma unroll
    for (int p = 0; p < pairs; ++p) {
        const int c = 2 * (lane_id() + p * warp_threads);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
            for (int j = 0; j < conv_kernel; ++j) taps[p][h][j] = c < dim ? weight[(c + h) * conv_kernel + j] : 0.0f;
#pragma unroll
            for (int j = 0; j < history; ++j) {
                const int t = first - history + j;  // negative before the sequence
                window[p][h][j] = c >= dim ? 0.0f
                                  : t >= 0 ? to_float(in[static_cast<size_t>(t) * stride + c + h])
                                           : conv_state[(c + h) * history + history + t];
            }
        }
    }
    // All loads before the first store, which the compiler would not pass.
    unsigned input[conv_tokens][pairs];
#pragma unroll
    for (int i = 0; i < conv_tokens; ++i)
#pragma unroll
        for (int p = 0; p < pairs; ++p) {
            const int c = 2 * (lane_id() + p * warp_threads), t = first + i;
            input[i][p] = c < dim && t < length
                              ? *reinterpret_cast<const unsigned*>(in + static_cast<size_t>(t) * stride + c) : 0u;
        }
    constexpr int group = 4;  // tokens whose norms' sums are in flight together
#pragma unroll
    for (int g = 0; g < conv_tokens; g += group) {
        float y[group][pairs][2], factor[group];
#pragma unroll
        for (int i = 0; i < group; ++i) {
            factor[i] = 0.0f;
#pragma unroll
            for (int p = 0; p < pairs; ++p) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float now = h == 0 ? even(input[g + i][p]) : odd(input[g + i][p]);
                    float sum = taps[p][h][history] * now;
#pragma unroll
                    for (int j = 0; j < history; ++j) {
                        sum = fmaf(taps[p][h][j], window[p][h][j], sum);
                        window[p][h][j] = j + 1 < history ? window[p][h][j + 1] : now;
                    }
                    y[i][p][h] = silu(sum);  // 0 where c >= dim
                    factor[i] = fmaf(y[i][p][h], y[i][p][h], factor[i]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < group; ++i)
            factor[i] = scale != 0.0f ? scale * rsqrtf(warp_sum(factor[i]) + l2_norm_eps) : 1.0f;
#pragma unroll
        for (int i = 0; i < group; ++i)
#pragma unroll
            for (int p = 0; p < pairs; ++p) {
                const int c = 2 * (lane_id() + p * warp_threads), t = first + g + i;
                const unsigned pair = to_bf16_pair(factor[i] * y[i][p][0], factor[i] * y[i][p][1]);
                if (c < width && t < end)
                    *reinterpret_cast<unsigned*>(out + static_cast<size_t>(t) * qkv_width + c) = t < length ? pair : 0u;
            }
    }
    if (first != 0) return;
#pragma unroll
    for (int p = 0; p < pairs; ++p) {
        for (int h = 0; h < 2; ++h) {
            const int c = 2 * (lane_id() + p * warp_threads) + h;  // the same channels whose state this lane has read
            if (c >= dim) continue;
            float* state = conv_state + c * history;
            for (int j = 0; j < history; ++j) {  // upwards: a short sequence moves old inputs to a lower j
                const int t = length - history + j;
                state[j] = t >= 0 ? to_float(in[static_cast<size_t>(t) * stride + c]) : state[history + t];
            }
        }
    }
}

// One warp takes head unit % conv_heads and its tokens from unit / conv_heads * conv_tokens on.
__device__ __forceinline__ void causal_conv_sequence(const bf16* projected, int stride, const float* weight,
                                                     float* conv_state, bf16* qkv, int unit, int length) {
    const int head = unit % conv_heads, first = unit / conv_heads * conv_tokens;  // heads of q, then k, then v
    const bool is_v = head >= 2 * num_key_heads;
    const int channel = is_v ? 2 * key_dim + (head - 2 * num_key_heads) * value_head_dim : head * key_head_dim;
    const bf16* in = projected + channel;
    const float* w = weight + channel * conv_kernel;
    float* state = conv_state + channel * (conv_kernel - 1);
    if (is_v) {
        conv_head<value_head_dim, value_head_dim>(
            in, stride, w, state, qkv + v_offset + (head - 2 * num_key_heads) * value_head_dim, first, length, 0.0f);
    } else {
        const float scale = head < num_key_heads ? rsqrtf(static_cast<float>(key_head_dim)) : 1.0f;
        conv_head<key_head_dim, key_width>(in, stride, w, state, qkv + head * key_width, first, length, scale);
    }
}
