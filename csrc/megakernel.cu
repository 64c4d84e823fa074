// megakernel.cu: one cooperative launch for a whole token, from the embedding to the next token
//
// A grid barrier separates two phases, because every block reads what all blocks wrote.
//   phase            reads                            writes
//   embed            next_token, embed_tokens         hidden_states[0]
//   then, for every DeltaNet layer l
//     deltanet_in    hidden_states[l], conv_state     qkv, z, beta, g, conv_state
//     delta_rule     qkv, beta, g, recurrent_state    o, recurrent_state
//     deltanet_out   o, z, hidden_states[l]           mid
//   or, for every attention layer l
//     attention_in   hidden_states[l]                 projected
//     attention      projected, k_cache, v_cache      partials, o, k_cache, v_cache
//     attention_out  o, hidden_states[l]              mid
//   and for either
//     mlp_up         mid                              act
//     mlp_down       act, mid                         hidden_states[l + 1]
//   at the end
//   lm_head          the last hidden_states           logits, next_token
// A barrier follows every phase except lm_head, after which the kernel ends. That makes
// 1 + 5 * num_hidden_layers barriers per token. A buffer is written again one layer later at the
// earliest, at least two barriers after its last read.
#include "grid_barrier.cuh"
#include "phases.cuh"

// luce_edu/stages/megakernel.py reads the names of the fields from here and fills them by name.
struct Layer {
    const float *input_norm, *post_attention_norm;
    const bf16 *gate_proj, *up_proj, *down_proj;
    DeltaNetWeights deltanet;  // null in an attention layer
    float *conv_state, *recurrent_state;
    AttentionWeights attention;  // null in a DeltaNet layer
    bf16 *k_cache, *v_cache;
};

struct Model {
    const bf16 *embed_tokens, *lm_head;
    const float *norm, *rope_cos, *rope_sin;
    float *hidden_states, *mid, *qkv, *z, *beta, *g, *o, *projected, *partials, *act, *logits;
    Best* block_best;
    int* next_token;
    unsigned *attention_arrivals, *argmax_arrivals;
    GridBarrier* barrier;
};

extern "C" __global__ void __launch_bounds__(block_threads, 1)
megakernel(const Model* model, const Layer* layers, int position, int max_seq_len) {
    __shared__ PhaseShared shared;
    DYNAMIC_SHARED(Layer, all_layers);  // num_hidden_layers of them, then the model's pointers
    Model& m = *reinterpret_cast<Model*>(all_layers + num_hidden_layers);
    copy_to_shared(&m, model, 1);
    copy_to_shared(all_layers, layers, num_hidden_layers);
    __syncthreads();  // the pointers are in shared memory

    const int token = token_at(m.next_token);  // lm_head overwrites it, many barriers after all blocks have read it
    embed_phase(m.embed_tokens, token, m.hidden_states);
    grid_barrier(m.barrier);

    for (int l = 0; l < num_hidden_layers; ++l) {
        const Layer& layer = all_layers[l];
        const float* x = m.hidden_states + l * hidden_size;
        if (layer.recurrent_state != nullptr) {
            deltanet_in_phase(x, layer.input_norm, layer.deltanet, layer.conv_state, m.qkv, m.z,
                              m.beta, m.g, &shared.matvec);
            grid_barrier(m.barrier);
            delta_rule_phase(m.qkv, m.beta, m.g, layer.recurrent_state, m.o, &shared.delta_rule);
            grid_barrier(m.barrier);
            deltanet_out_phase(m.o, m.z, layer.deltanet, x, m.mid, &shared.matvec);
        } else {
            attention_in_phase(x, layer.input_norm, layer.attention, m.projected, &shared.matvec);
            grid_barrier(m.barrier);
            attention_phase({m.projected, layer.attention.q_norm, layer.attention.k_norm,
                             m.rope_cos, m.rope_sin, layer.k_cache, layer.v_cache, m.partials, m.o,
                             m.attention_arrivals, position, max_seq_len, position},
                            &shared.attention);
            grid_barrier(m.barrier);
            attention_out_phase(m.o, layer.attention, x, m.mid, &shared.matvec);
        }
        grid_barrier(m.barrier);
        mlp_up_phase(m.mid, layer.post_attention_norm, layer.gate_proj, layer.up_proj,
                     m.act, &shared.matvec);
        grid_barrier(m.barrier);
        mlp_down_phase(m.act, layer.down_proj, m.mid,
                       m.hidden_states + (l + 1) * hidden_size, &shared.matvec);
        grid_barrier(m.barrier);
    }

    lm_head_phase(m.hidden_states + num_hidden_layers * hidden_size, m.norm, m.lm_head, m.logits,
                  m.block_best, m.argmax_arrivals, m.next_token, &shared);
}
