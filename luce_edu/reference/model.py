"""The whole model: embedding, hybrid layers, final norm, LM head."""

from functools import partial

import torch
import torch.nn.functional as F

from luce_edu.config import LINEAR_ATTENTION
from luce_edu.reference.attention import gated_attention
from luce_edu.reference.block import deltanet, hybrid_block
from luce_edu.reference.rms_norm import rms_norm


def forward(
    weights, config, tokens, state=None, *, dtype=torch.float32, chunked=True, trace=None, logits_to_keep=None
):
    """Return logits [..., T, vocab_size] in dtype for tokens [..., T] (int64), or only the last `logits_to_keep`.

    With a `DecodeState`, tokens is [T] and continues the state's sequence; the state is advanced in place.
    Without one, tokens is [T] or [B, T], whole sequences, and no state is kept; that form is differentiable.
    chunked selects the form of the delta rule; both give the same values.
    trace is a list to which the hidden state [..., T, hidden_size] after the embedding and each layer is appended.
    Raises ValueError, before the state changes, for tokens outside the vocabulary or more than the state has room for.
    """
    _check(tokens, config, state)
    x = weights.embed_tokens[tokens].to(dtype)
    if trace is not None:
        trace.append(x)
    mixers = {LINEAR_ATTENTION: partial(deltanet, chunked=chunked)}
    memories = _memories(config, state, tokens.shape[:-1], x.device)
    for layer, kind, memory in zip(weights.layers, config.layer_types, memories, strict=True):
        x = hybrid_block(x, layer, config, mixers.get(kind, gated_attention), **memory)
        if trace is not None:
            trace.append(x)
    if state is not None:
        state.position += len(tokens)
    if logits_to_keep is not None:
        x = x[..., -logits_to_keep:, :]
    return F.linear(rms_norm(x, weights.norm, eps=config.rms_norm_eps), weights.lm_head.to(dtype))


def _memories(config, state, batch, device):
    """Yield the state of each layer's mixer: views of `state`, or, without one, a new state per sequence."""
    conv = (*batch, config.conv_dim, config.linear_conv_kernel_dim - 1)
    heads = (*batch, config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim)
    linear = attention = 0
    for kind in config.layer_types:
        if kind == LINEAR_ATTENTION:
            yield {
                "conv_state": torch.zeros(conv, device=device) if state is None else state.conv_state[linear],
                "recurrent_state": torch.zeros(heads, device=device)
                if state is None
                else state.recurrent_state[linear],
            }
            linear += 1
        elif state is None:
            yield {}
        else:
            caches = {"k_cache": state.k_cache[attention], "v_cache": state.v_cache[attention]}
            yield {"position": state.position, **caches}
            attention += 1


def _check(tokens, config, state):
    if not isinstance(tokens, torch.Tensor) or tokens.dtype != torch.int64 or tokens.numel() == 0:
        is_tensor = isinstance(tokens, torch.Tensor)
        came = f"{tokens.dtype} {list(tokens.shape)}" if is_tensor else type(tokens).__name__
        raise ValueError(f"tokens: expected an int64 tensor with at least one token, got {came}")
    low, high = tokens.min().item(), tokens.max().item()
    if low < 0 or high >= config.vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"tokens: expected ids from 0 to {config.vocab_size - 1}, got {wrong}")
    if state is not None:
        if tokens.dim() != 1:
            raise ValueError(f"tokens: expected one sequence [T] with a state, got {list(tokens.shape)}")
        if state.position + len(tokens) > state.max_seq_len:
            raise ValueError(
                f"tokens: expected at most {state.max_seq_len - state.position} more "
                f"(position {state.position} of {state.max_seq_len}), got {len(tokens)}"
            )
