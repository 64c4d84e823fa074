"""Small random Qwen3.5 models of transformers, with which the reference is compared."""

import functools
from types import SimpleNamespace

import torch
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from luce_edu import verification
from luce_edu.config import ModelConfig
from luce_edu.state import DecodeState

BASE = {
    "model_type": "qwen3_5_text", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 24, "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"], "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    "tie_word_embeddings": True, "max_position_embeddings": 512,
}  # fmt: skip
CONFIGS = {
    "grouped value heads": {},
    "equal heads": {"linear_num_key_heads": 4, "linear_value_head_dim": 16},
    "one kv head, untied": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "attention first, wide rope": {
        "num_attention_heads": 2,
        "layer_types": ["full_attention", "linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 1,
        "linear_conv_kernel_dim": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.5},
    },
}


@functools.cache
def make_case(name="grouped value heads", *, dtype=torch.float32, seed=1):
    """A transformers model with every parameter random, and the same parameters as the reference takes them.

    The weights are rounded to bf16 first, so that a bf16 copy of the model has the same ones.
    """
    fields = BASE | CONFIGS[name]
    model_config = ModelConfig.from_dict(fields)
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**fields)).eval().requires_grad_(False)
    torch.manual_seed(seed)
    for key, weight in model.named_parameters():
        if key.endswith("A_log"):
            weight.uniform_(-4, -0.5)
        elif key.endswith(("dt_bias", "norm.weight")):
            weight.normal_(0.5 if "linear_attn" in key else 0, 0.4)
        else:
            weight.normal_(0, 0.5 if "conv1d" in key else weight.shape[-1] ** -0.5)
        if key.endswith(("in_proj_qkv.weight", "conv1d.weight")):
            # The output of the first token is q.k times its own v. Where q.k is nearly 0, the norm that follows
            # magnifies rounding errors, in transformers too. Similar q and k keep q.k away from 0.
            q, k = weight[: model_config.key_dim], weight[model_config.key_dim : 2 * model_config.key_dim]
            q.copy_(k + 0.3 * q)
        weight.copy_(weight.bfloat16())
    weights = weights_of(model)
    return SimpleNamespace(model=model.to(dtype), weights=weights, config=model_config)


def weights_of(model):
    """The parameters of a transformers model in the structure that the reference reads."""
    named = {key.removeprefix("model."): weight.clone() for key, weight in model.state_dict().items()}
    layers = [{} for _ in range(model.config.num_hidden_layers)]
    for key, weight in named.items():
        if key.startswith("layers."):
            _, index, name = key.split(".", 2)
            layers[int(index)][name] = weight
    return SimpleNamespace(
        embed_tokens=named["embed_tokens.weight"],
        norm=named["norm.weight"],
        lm_head=named["lm_head.weight"],
        layers=layers,
    )


def transformers_trace(model, tokens, cache=None):
    """Hidden states after the embedding and each layer, then the logits; cache is advanced in place."""
    trace = []
    hooks = [model.model.embed_tokens.register_forward_hook(lambda _, __, out: trace.append(out[0]))]
    for layer in model.model.layers:
        hooks.append(layer.register_forward_hook(lambda _, __, out: trace.append(out[0])))
    try:
        out = model(tokens[None], past_key_values=cache, use_cache=cache is not None)
    finally:
        for hook in hooks:
            hook.remove()
    return [*trace, out.logits[0]]


def relative_error(x, reference):
    """‖x - reference‖ / ‖reference‖; infinity where an element of x is not finite, or the shapes differ."""
    return verification.relative_error(x, reference) if x.shape == reference.shape else float("inf")


def empty_state(config, max_seq_len=160):
    """A zero state with fp32 caches of large noise, so that a read of an unused row shows."""
    state = DecodeState.empty(config, max_seq_len, cache_dtype=torch.float32)
    for cache in (state.k_cache, state.v_cache):
        cache.normal_(0, 1e3)
    return state
