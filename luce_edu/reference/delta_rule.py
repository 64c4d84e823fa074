"""The gated delta rule: a state of fixed size that decays, is corrected, and is read, once per token.

Per head, with the state S [K, V]:

    S *= exp(g);  delta = beta * (v - S^T k);  S += k delta^T;  o = S^T q

The decay is applied before S^T k is read. Everything is fp32. `delta_rule_recurrent` computes this token by token;
`delta_rule_chunked` computes the same in matrix products over chunks of tokens, for prefill and training.
Source: arXiv 2412.06464; compared with transformers in tests/reference/test_model.py.
"""

import torch
import torch.nn.functional as F

from luce_edu.reference.precision import at_least_fp32


def l2_norm(x, *, eps=1e-6):
    """Divide x [..., D] by its L2 norm over D."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def delta_rule_gates(a, b, A_log, dt_bias):
    """Compute g and beta [..., H] fp32 from the projections a, b [..., H]; A_log, dt_bias [H].

    g <= 0 is the log of the decay, -exp(A_log) * softplus(a + dt_bias); beta = sigmoid(b) in (0, 1) is the
    share of the correction that is written.
    """
    a = at_least_fp32(a)
    g = -A_log.to(a.dtype).exp() * F.softplus(a + dt_bias.to(a.dtype))
    return g, at_least_fp32(b.sigmoid())


def delta_rule_step(q, k, v, *, beta, g, recurrent_state):
    """Advance one token; return o [..., H, V] and update recurrent_state in place.

    q, k [..., H, K] fp32, L2-normalised, q scaled by K**-0.5;  v [..., H, V] fp32;  beta [..., H] in (0, 1);
    g [..., H] log decay, <= 0;  recurrent_state [..., H, K, V] fp32.
    """
    recurrent_state *= g.exp()[..., None, None]
    predicted = torch.einsum("...hkv,...hk->...hv", recurrent_state, k)
    delta = beta[..., None] * (v - predicted)
    recurrent_state += k[..., :, None] * delta[..., None, :]
    return torch.einsum("...hkv,...hk->...hv", recurrent_state, q)


def delta_rule_recurrent(q, k, v, *, beta, g, recurrent_state):
    """Advance T tokens one after the other; return o [..., T, H, V] and update recurrent_state in place.

    As `delta_rule_step`, with an axis of T tokens before the heads: q, k [..., T, H, K], beta, g [..., T, H].
    """
    steps = zip(*(x.unbind(-3) for x in (q, k, v)), beta.unbind(-2), g.unbind(-2), strict=True)
    out = [
        delta_rule_step(q_t, k_t, v_t, beta=beta_t, g=g_t, recurrent_state=recurrent_state)
        for q_t, k_t, v_t, beta_t, g_t in steps
    ]
    return torch.stack(out, dim=-3)


def delta_rule_chunked(q, k, v, *, beta, g, recurrent_state, chunk_size=None):
    """Compute what `delta_rule_recurrent` does, with one sequential step per chunk instead of one per token.

    Inside a chunk every correction depends on the ones before it, which is a unit lower-triangular system:
    with L the decayed products beta_i k_i.k_j (j < i), (I + L) delta = beta v - beta exp(g_sum) k S.
    It is solved for all chunks at once, as (values, reads) with delta = values - reads @ S.
    A chunk has by default K tokens, but at most 64: then the work inside chunks and the work on the state are similar.
    Differentiable in q, k, v, beta and g; no gradient flows through recurrent_state.
    """
    tokens = v.shape[-3]
    chunk_size = min(chunk_size or min(k.shape[-1], 64), tokens)

    def split(x):
        # [..., T, H, D] -> [..., H, chunks, chunk_size, D]; padding with zeros leaves the state unchanged
        x = F.pad(x.transpose(-3, -2), (0, 0, 0, -tokens % chunk_size))
        return x.unflatten(-2, (-1, chunk_size))

    # Sums of g are subtracted from each other below, so that one huge g would cost all later ones their digits. At -100
    # nothing of the state is left: exp(-100) is 4e-44.
    g = g.clamp_min(-100.0)
    q, k, v, beta, g = split(q), split(k), split(v), split(beta[..., None]), split(g[..., None])
    g_sum = g.cumsum(-2)
    # decay[i, j] is the share of token j's write that is left at token i. Masked before exp, which could overflow.
    future = torch.ones(chunk_size, chunk_size, dtype=torch.bool, device=q.device).triu(1)
    decay = (g_sum - g_sum.mT).masked_fill(future, float("-inf")).exp()

    right = torch.cat([beta * v, beta * g_sum.exp() * k], dim=-1)
    solved = torch.linalg.solve_triangular(beta * (k @ k.mT) * decay, right, upper=False, unitriangular=True)
    values, reads = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    attention = (q @ k.mT) * decay
    q = q * g_sum.exp()
    k_at_end = (k * (g_sum[..., -1:, :] - g_sum).exp()).mT
    decay_at_end = g_sum[..., -1:, :].exp()

    state, out = recurrent_state.clone(), []
    for i in range(v.shape[-3]):
        delta = values[..., i, :, :] - reads[..., i, :, :] @ state
        out.append(q[..., i, :, :] @ state + attention[..., i, :, :] @ delta)
        state = state * decay_at_end[..., i, :, :] + k_at_end[..., i, :, :] @ delta
    recurrent_state.copy_(state.detach())
    return torch.cat(out, dim=-2)[..., :tokens, :].transpose(-3, -2)
