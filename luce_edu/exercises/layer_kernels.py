"""Exercises of notebook 06: the delta update, softmaxes that become one, and a state that is read once."""

from __future__ import annotations

from functools import partial

import torch

from luce_edu.exercises.base import WrongAnswer
from luce_edu.exercises.kernel import kernel_exercise, reads
from luce_edu.inline.trial import Mistake, Verdict
from luce_edu.measure.occupancy import registers_allowed


def _walks(verdict: Verdict) -> tuple[float, float]:
    """How often each element of S is read from memory, and how often written."""
    S = verdict.traffic["S"]
    return reads(verdict, "S"), min(S.asked_write, S.moved_write) / S.distinct_write


def _times(n: float) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n:.3g} times")


def _any_walks(verdict: Verdict) -> str:
    read, written = map(_times, _walks(verdict))
    return f"S is read {read} and written {written}. The decay belongs to both sums, once each."


def _token(inputs, shape, *, beta=True, decay_k=True, decay_q=True, decay_S=True, update=True, log=False):
    """One token of the delta rule from the sums over the old state, without what an argument leaves out.

    log  the decay is g in place of exp(g)
    """
    S, q, k, v = (inputs[name] for name in "Sqkv")
    decay = (inputs["g"] if log else inputs["g"].exp())[:, None]
    S_k, S_q = (torch.einsum("hkv,hk->hv", S, x) for x in (k, q))
    delta = v - (decay if decay_k else 1) * S_k
    if beta:
        delta = inputs["beta"][:, None] * delta
    o = (decay if decay_q else 1) * S_q + (delta * (k * q).sum(-1, keepdim=True) if update else 0)
    new = (decay[:, :, None] if decay_S else 1) * S + k[:, :, None] * delta[:, None]
    return {"o": o, "S": new}


TOKEN_MISTAKES = (
    Mistake("delta has S^T k without the decay: the state decays before it is read with k.",
            partial(_token, decay_k=False)),
    Mistake("o has S^T q without the decay: it is taken over the new state, which has decayed.",
            partial(_token, decay_q=False)),
    Mistake("Both sums lack the decay; they are of the state as it was.",
            partial(_token, decay_k=False, decay_q=False)),
    Mistake("The decay is nowhere.", partial(_token, decay_k=False, decay_q=False, decay_S=False)),
    Mistake("o is read before the update: it lacks delta times k . q.", partial(_token, update=False)),
    Mistake("The new state keeps the old one undecayed.", partial(_token, decay_S=False)),
    Mistake("delta is not scaled by beta.", partial(_token, beta=False)),
    Mistake("g is the logarithm of the decay; the factor is exp(g).", partial(_token, log=True)),
)  # fmt: skip


delta_update = kernel_exercise(
    "delta_update",
    kernel="delta_update",
    against="reference.delta_rule_step",
    accept=_any_walks,
    hint="The sums are of the state as it was. Which of the four steps of the rule come before S^T k, and which before "
    "S^T q?",
    mistakes=TOKEN_MISTAKES,
    neighbours=("S",),
    spec="One token of the delta rule: the sums over the old state are there; delta, the new state and o are missing.",
    skeleton="""\
// A block has a head. Thread j owns column j of its S [K, V]: row i of it is column[i * V].
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
    return f"Barriers a block: {verdict.barriers:g}. With one softmax for all the threads it was two for each position."


def _warps(inputs, shape, *, weights=True, sums=True, divide=True, mean=False, warps=4):
    """The merge of four softmaxes, without what an argument leaves out.

    weights, sums  are rescaled to the common maximum;  mean: of the four softmaxes, each finished
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
    Mistake("The weights are added as they are; each is in units of its own warp's maximum.",
            partial(_warps, weights=False)),
    Mistake("The sums are added as they are; each is in units of its own warp's maximum.", partial(_warps, sums=False)),
    Mistake("Weights and sums are added as they are; each is in units of its own warp's maximum.",
            partial(_warps, weights=False, sums=False)),
    Mistake("The sum is not divided by the weights.", partial(_warps, divide=False)),
    Mistake("This is the mean of four softmaxes; they have unequal weights.", partial(_warps, mean=True)),
    Mistake("This is the softmax of one warp, over a quarter of the positions.", partial(_warps, warps=1)),
    Mistake("The last warp's positions are left out.", partial(_warps, warps=3)),
)  # fmt: skip


merge_softmax = kernel_exercise(
    "merge_softmax",
    kernel="merge_softmax",
    against="F.scaled_dot_product_attention",
    accept=_merged,
    hint="Each warp's weight and sum are in units of its own maximum; a warp may have seen no position at all; and who "
    "reads what another thread wrote has to know that it is there.",
    mistakes=MERGE_MISTAKES,
    spec="Attention in one pass: four warps have a softmax each, over a quarter of the positions; make them one.",
    skeleton="""\
// A block has a head. Warp w takes positions w, w + 4, ... and keeps a softmax of its own.
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
            f"The results are right, but S is read {_times(read)} and written {_times(written)}. Once each is asked "
            "for: what a thread has loaded it must still have when delta is known."
        )
    used = verdict.resources
    most = registers_allowed(verdict.block)
    if used.stack_bytes or used.spill_store_bytes or used.spill_load_bytes:
        raise WrongAnswer(
            f"The results are right, and S is read once, but {used.stack_bytes:,} bytes a thread did not fit into "
            f"registers ({verdict.arch}), and the compiler puts them into memory. A thread has at most {most} registers"
            f" in a block of {verdict.block}. An array lives in them only if all its indices are known when it is "
            "compiled."
        )
    return f"S is read once and written once; {used.registers} registers a thread, nothing spilled ({verdict.arch})."


one_walk = kernel_exercise(
    "one_walk",
    kernel="one_walk",
    against="reference.delta_rule_step",
    accept=_one_walk,
    block=512,
    hint="Four threads share a column here: each sum is one of four parts, and a row may lie beyond K.",
    mistakes=TOKEN_MISTAKES,
    neighbours=("S",),
    spec="The same token with S read once and written once, and nothing spilled.",
    skeleton="""\
// A block of 512 threads has a head. Four threads share column j: this one has rows part, part + 4, ... of it.
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
