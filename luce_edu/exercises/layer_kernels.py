"""Exercises of notebook 06: the delta update, softmaxes that become one, and a state that is read once."""

from __future__ import annotations

from luce_edu.exercises import WrongAnswer
from luce_edu.inline.exercise import kernel_exercise
from luce_edu.inline.trial import Verdict


def _walks(verdict: Verdict) -> tuple[float, float]:
    """How often each element of S is read from memory, and how often written."""
    S = verdict.traffic["S"]
    return S.moved_read / S.distinct_read, S.moved_write / S.distinct_write


def _times(n: float) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n:g} times")


def _any_walks(verdict: Verdict) -> str:
    reads, writes = map(_times, _walks(verdict))
    return f"S is read {reads} and written {writes}. The decay belongs to both sums, once each."


delta_update = kernel_exercise(
    "delta_update",
    kernel="delta_update",
    against="reference.delta_rule_step",
    accept=_any_walks,
    hint="The sums are of the state as it was. Which of the four steps of the rule come before S^T k, and which before "
    "S^T q?",
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


merge_softmax = kernel_exercise(
    "merge_softmax",
    kernel="merge_softmax",
    against="F.scaled_dot_product_attention",
    accept=_merged,
    hint="Each warp's weight and sum are in units of its own maximum; a warp may have seen no position at all; and who "
    "reads what another thread wrote has to know that it is there.",
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
    reads, writes = _walks(verdict)
    if reads > 1 or writes > 1:
        raise WrongAnswer(
            f"The results are right, but S is read {_times(reads)} and written {_times(writes)}. Once each is asked "
            "for: what a thread has loaded it must still have when delta is known."
        )
    used = verdict.resources
    if used.stack_bytes or used.spill_store_bytes or used.spill_load_bytes:
        raise WrongAnswer(
            f"The results are right, and S is read once, but {used.stack_bytes:,} bytes a thread did not fit into "
            f"registers ({verdict.arch}), and memory is where the compiler puts them. A thread has 255 registers at "
            "most, and an array lives in them only if each of its indices is known when it is compiled."
        )
    return f"S is read once and written once; {used.registers} registers a thread, nothing spilled ({verdict.arch})."


one_walk = kernel_exercise(
    "one_walk",
    kernel="one_walk",
    against="reference.delta_rule_step",
    accept=_one_walk,
    block=512,
    hint="Four threads share a column here: each sum is one of four parts, and a row may lie beyond K.",
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
