"""Exercises of notebook 06: the delta update, a merge of softmaxes, a state that is read and written once."""

from __future__ import annotations

from functools import partial

import torch

from luce_edu.exercises.base import WrongAnswer
from luce_edu.exercises.kernel import kernel_exercise, reads
from luce_edu.inline.trial import Mistake, Verdict
from luce_edu.measure.occupancy import registers_allowed


def _walks(verdict: Verdict) -> tuple[float, float]:
    """Return how often each element of S is read from memory, and how often written."""
    S = verdict.traffic["S"]
    return reads(verdict, "S"), min(S.asked_write, S.moved_write) / S.distinct_write


def _times(n: float) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n:.3g} times")


def _any_walks(verdict: Verdict) -> str:
    read, written = map(_times, _walks(verdict))
    return f"S is read {read} and written {written}. Exercise 3 asks for once each."


def _token(
    inputs, shape, *, beta=True, decay_k=True, decay_q=True, decay_S=True, update=True, log=False, beta_v=False, sign=1
):
    """One token of the delta rule from the sums over the old state. An argument that is False leaves its factor out.

    log     use g as the decay, not exp(g)
    beta_v  scale v by beta, and not the whole difference
    sign    of delta
    """
    S, q, k, v = (inputs[name] for name in "Sqkv")
    decay = (inputs["g"] if log else inputs["g"].exp())[:, None]
    S_k, S_q = (torch.einsum("hkv,hk->hv", S, x) for x in (k, q))
    scale, read = inputs["beta"][:, None] if beta else 1, (decay if decay_k else 1) * S_k
    delta = sign * (scale * v - read if beta_v else scale * (v - read))
    o = (decay if decay_q else 1) * S_q + (delta * (k * q).sum(-1, keepdim=True) if update else 0)
    new = (decay[:, :, None] if decay_S else 1) * S + k[:, :, None] * delta[:, None]
    return {"o": o, "S": new}


TOKEN_MISTAKES = (
    Mistake("delta uses S^T k without the decay. Does the state decay before or after it is read with k?",
            partial(_token, decay_k=False)),
    Mistake("o uses S^T q without the decay. Which state is read with q?",
            partial(_token, decay_q=False)),
    Mistake("Both sums lack the decay: they were taken over the state before it decayed.",
            partial(_token, decay_k=False, decay_q=False)),
    Mistake("The decay is missing everywhere: in delta, in o and in the new state.",
            partial(_token, decay_k=False, decay_q=False, decay_S=False)),
    Mistake("o is read from the state before the update. What does this token's own update add to it?",
            partial(_token, update=False)),
    Mistake("The old state is in the new one without its decay.", partial(_token, decay_S=False)),
    Mistake("delta is not scaled by beta.", partial(_token, beta=False)),
    Mistake("beta scales v only. It scales the whole difference between v and what the state says.",
            partial(_token, beta_v=True)),
    Mistake("delta has the wrong sign: the state has to move towards v.", partial(_token, sign=-1)),
    Mistake("g is the logarithm of the decay; the factor is exp(g).", partial(_token, log=True)),
)  # fmt: skip


delta_update = kernel_exercise(
    "delta_update",
    kernel="delta_update",
    against="reference.delta_rule_step",
    accept=_any_walks,
    hint="Both sums are over the old state. Which steps of the rule come before S^T k, and which before S^T q? Does "
    "each index belong to this head?",
    mistakes=TOKEN_MISTAKES,
    neighbours=("S",),
    spec="Complete one token of the delta rule: from the sums over the old state, compute delta, the new state and o.",
    skeleton="""\
// One block per head. Thread j owns column j of its S [K, V]: row i of it is column[i * V].
const int head = blockIdx.x, j = threadIdx.x;
if (j >= V) return;
float* column = S + head * K * V + j;
const float *q_head = q + head * K, *k_head = k + head * K;
float S_k = 0.0f, S_q = 0.0f, k_q = 0.0f;   // S^T k, S^T q and k . q, with S as it was
for (int i = 0; i < K; ++i) {
    S_k += column[i * V] * k_head[i];
    S_q += column[i * V] * q_head[i];
    k_q += k_head[i] * q_head[i];
}
// your lines, with v, beta and g of this head: delta, the new column, and o[head * V + j]
""",
    hole="// your lines, with v, beta and g of this head: delta, the new column, and o[head * V + j]",
    budget="10 minutes, four lines",
)


def _merged(verdict: Verdict) -> str:
    return f"Barriers per block: {verdict.barriers:g}. One softmax over all threads needs two per position."


def _warps(inputs, shape, *, weights=True, sums=True, divide=True, mean=False, warps=4):
    """The merge of four warps' softmaxes. An argument that is False leaves its step out.

    weights, sums  rescale them to the common maximum
    mean           return the mean of the four finished softmaxes instead;  warps: merge only that many
    """
    q, k, v = (inputs[name].double() for name in "qkv")
    scores = torch.einsum("hd,hpd->hp", q, k) * shape["head_dim"] ** -0.5
    parts = [slice(w, None, 4) for w in range(min(warps, shape["positions"]))]
    maxima = torch.stack([scores[:, part].amax(1) for part in parts])
    own = [(scores[:, part] - m[:, None]).exp() for part, m in zip(parts, maxima, strict=True)]
    weight = torch.stack([exp.sum(1) for exp in own])
    value = torch.stack([torch.einsum("hp,hpd->hd", exp, v[:, p]) for exp, p in zip(own, parts, strict=True)])
    if mean:
        return {"o": (value / weight[:, :, None]).mean(0).float()}
    scale = (maxima - maxima.amax(0)).exp()
    total = (scale * weight if weights else weight).sum(0)[:, None]
    o = (scale[:, :, None] * value if sums else value).sum(0)
    return {"o": (o / total if divide else o).float()}


MERGE_MISTAKES = (
    Mistake("The weights are added without rescaling. Each is relative to its own warp's maximum.",
            partial(_warps, weights=False)),
    Mistake("The sums are added without rescaling. Each is relative to its own warp's maximum.",
            partial(_warps, sums=False)),
    Mistake("Weights and sums are added without rescaling. Each is relative to its own warp's maximum.",
            partial(_warps, weights=False, sums=False)),
    Mistake("The sum is not divided by the weights.", partial(_warps, divide=False)),
    Mistake("This is the plain mean of four softmaxes, but their weights differ.", partial(_warps, mean=True)),
    Mistake("This is the softmax of warp 0 only, over a quarter of the positions.", partial(_warps, warps=1)),
    Mistake("The positions of warp 3 are missing.", partial(_warps, warps=3)),
)  # fmt: skip


merge_softmax = kernel_exercise(
    "merge_softmax",
    kernel="merge_softmax",
    against="F.scaled_dot_product_attention",
    accept=_merged,
    hint="Each warp's weight and sum are relative to its own maximum. A warp may have had no position. All scores may "
    "be far below zero. A thread may read what another thread wrote only after a barrier.",
    mistakes=MERGE_MISTAKES,
    spec="Attention in one pass: four warps have a softmax each, over a quarter of the positions. Merge the four.",
    skeleton="""\
__shared__ float maxima[4], weights[4], sums[4][128];
const int head = blockIdx.x, w = warp_id(), lane = lane_id(), c = threadIdx.x;
for (int e = lane; e < 128; e += 32) sums[w][e] = 0.0f;
float maximum = -INFINITY, weight = 0.0f;
for (int p = w; p < positions; p += 4) {
    const int row = (head * positions + p) * head_dim;
    float score = 0.0f;
    for (int e = lane; e < head_dim; e += 32) score += q[head * head_dim + e] * k[row + e];
    score = warp_sum(score) * rsqrtf(head_dim);
    const float largest = fmaxf(maximum, score), old = expf(maximum - largest), now = expf(score - largest);
    maximum = largest, weight = weight * old + now;
    for (int e = lane; e < head_dim; e += 32) sums[w][e] = sums[w][e] * old + now * v[row + e];
}
maxima[w] = maximum, weights[w] = weight;
// your lines: thread c, where c < head_dim, writes o[head * head_dim + c]
""",
    hole="// your lines: thread c, where c < head_dim, writes o[head * head_dim + c]",
    budget="15 minutes, five lines",
)


def _one_walk(verdict: Verdict) -> str:
    read, written = _walks(verdict)
    if read > 1 or written > 1:
        raise WrongAnswer(
            f"The results are right, but S is read {_times(read)} and written {_times(written)}, and should be read "
            "and written once. Where can a thread keep what it has loaded until delta is known?"
        )
    used = verdict.resources
    most = registers_allowed(verdict.block)
    if used.stack_bytes or used.spill_store_bytes or used.spill_load_bytes:
        raise WrongAnswer(
            f"The results are right, and S is read once, but the compiler puts {used.stack_bytes:,} bytes per thread "
            f"into memory instead of registers ({verdict.arch}). A thread has at most {most} registers in a block of "
            f"{verdict.block}, and an array stays in registers only if all its indices are known at compile time."
        )
    return (
        f"S is read once and written once, with {used.registers} registers per thread and no spills ({verdict.arch})."
    )


one_walk = kernel_exercise(
    "one_walk",
    kernel="one_walk",
    against="reference.delta_rule_step",
    accept=_one_walk,
    block=512,
    hint="Four threads share a column, so each thread has a quarter of each sum. Is a row beyond K left out? A thread "
    "may read what another thread wrote only after a barrier.",
    mistakes=TOKEN_MISTAKES,
    neighbours=("S",),
    spec="Compute the same token with S read once and written once, and no register spilled.",
    skeleton="""\
// One block of 512 threads per head. Four threads share column j; this one has rows part, part + 4, ... of it.
const int head = blockIdx.x, j = threadIdx.x % 128, part = threadIdx.x / 128;
float* column = S + head * K * V + j;
const float *q_head = q + head * K, *k_head = k + head * K;
__shared__ float S_k[4][128], S_q[4][128];
float s[32];   // the thread's rows, in registers
// your lines
""",
    hole="// your lines",
    budget="20 minutes, fifteen lines",
)
