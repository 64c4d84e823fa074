// dims.cuh: the model's dimensions as compile-time constants, under the names of config.json
// luce_edu/stages/dims.py sets the -D macros from luce_edu.config.ModelConfig, so each number has one source.
#pragma once
#include "primitives.cuh"

constexpr int vocab_size = VOCAB_SIZE;
constexpr int hidden_size = HIDDEN_SIZE;
constexpr int intermediate_size = INTERMEDIATE_SIZE;
constexpr int num_hidden_layers = NUM_HIDDEN_LAYERS;
constexpr float rms_norm_eps = static_cast<float>(RMS_NORM_EPS);

// Full attention
constexpr int num_attention_heads = NUM_ATTENTION_HEADS;
constexpr int num_key_value_heads = NUM_KEY_VALUE_HEADS;
constexpr int head_dim = HEAD_DIM;
constexpr int rotary_dim = ROTARY_DIM;
constexpr int heads_per_kv = num_attention_heads / num_key_value_heads;
constexpr int q_dim = num_attention_heads * head_dim;
constexpr int kv_dim = num_key_value_heads * head_dim;

// Gated DeltaNet
constexpr int num_key_heads = LINEAR_NUM_KEY_HEADS;
constexpr int num_value_heads = LINEAR_NUM_VALUE_HEADS;
constexpr int key_head_dim = LINEAR_KEY_HEAD_DIM;
constexpr int value_head_dim = LINEAR_VALUE_HEAD_DIM;
constexpr int conv_kernel = LINEAR_CONV_KERNEL_DIM;
constexpr int key_dim = num_key_heads * key_head_dim;
constexpr int value_dim = num_value_heads * value_head_dim;
constexpr int conv_dim = 2 * key_dim + value_dim;
constexpr int value_heads_per_key = num_value_heads / num_key_heads;
constexpr float l2_norm_eps = 1e-6f;

__device__ constexpr int max_of(int a, int b) { return a > b ? a : b; }

// Each vector that a matrix product reads is staged in shared memory. The longest one sets the size of that memory.
constexpr int longest_vector =
    max_of(max_of(hidden_size, intermediate_size), max_of(value_dim, q_dim));

static_assert(hidden_size % 8 == 0 && intermediate_size % 8 == 0, "a thread loads 8 weights at a time");
static_assert(value_dim % 8 == 0 && q_dim % 8 == 0, "a thread loads 8 weights at a time");
static_assert(rotary_dim % 2 == 0 && rotary_dim <= head_dim, "RoPE rotates pairs");
