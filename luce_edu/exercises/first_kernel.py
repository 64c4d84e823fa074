"""Exercises of notebook 04: a wrong index, a sum from an empty cell, an add fused into a norm."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from luce_edu.exercises.base import WrongAnswer
from luce_edu.exercises.kernel import kernel_exercise, reads
from luce_edu.inline.trial import Mistake, Verdict


def _within(verdict: Verdict, most: Mapping[str, int], hint: str) -> None:
    """WrongAnswer, with the counts, for a right kernel that reads the elements of a tensor more than `most` times."""
    over = [
        f"{name} {reads(verdict, name):.3g} times where {times} will do"
        for name, times in most.items()
        if reads(verdict, name) > times
    ]
    if over:
        raise WrongAnswer(f"{verdict.kernel} is right, and reads {', '.join(over)}. {hint}")


rms_rows = kernel_exercise(
    "rms_rows",
    kernel="rms_rows",
    against="reference.rms_norm",
    accept=lambda verdict: "Each row by its own mean square.",
    hint="Which rows are right, and what do all the others have in common?",
    spec="The kernel above, so that it is right on numbers that differ.",
    skeleton="""\
__global__ void rms_rows(const float* x, const float* weight, float* y, int n, float eps) {
    __shared__ float scratch[block_warps];
    float squares = 0.0f;
    for (int c = threadIdx.x; c < n; c += blockDim.x) squares += x[c] * x[c];
    const float scale = rsqrtf(block_sum(squares, scratch) / n + eps);
    for (int c = threadIdx.x; c < n; c += blockDim.x)
        y[blockIdx.x * n + c] = x[blockIdx.x * n + c] * scale * (1.0f + weight[c]);
}
""",
    # All that may hold the mistake, so that a change anywhere counts as an answer.
    hole="""\
    float squares = 0.0f;
    for (int c = threadIdx.x; c < n; c += blockDim.x) squares += x[c] * x[c];
    const float scale = rsqrtf(block_sum(squares, scratch) / n + eps);
    for (int c = threadIdx.x; c < n; c += blockDim.x)
        y[blockIdx.x * n + c] = x[blockIdx.x * n + c] * scale * (1.0f + weight[c]);
""",
    budget="5 minutes, one line",
)


MOST_INSTRUCTIONS = 4000  # of warps, for 4,096 elements; one thread that adds alone takes several times as many


def _by_all_threads(verdict: Verdict) -> str:
    _within(verdict, {"x": 1}, "Each element needs to be read by one thread only.")
    if verdict.instructions > MOST_INSTRUCTIONS:
        raise WrongAnswer(
            f"{verdict.kernel} is right, and its warps execute {verdict.instructions:,} instructions, where "
            f"{MOST_INSTRUCTIONS:,} will do. How many threads add up while the others wait?"
        )
    return f"{verdict.barriers:g} barriers and {verdict.instructions:,} instructions of warps for 4,096 elements."


def _part_of_sum(inputs, shape, *, turn, threads):
    """The sum of the elements that the first `threads` of every `turn` threads take."""
    x = inputs["x"]
    return {"y": x[torch.arange(len(x)) % turn < threads].sum().reshape(1)}


total = kernel_exercise(
    "total",
    kernel="total",
    against="torch.sum",
    accept=_by_all_threads,
    neighbours=("x",),
    hint="Each thread adds up some elements; then the sums of 256 threads have to become one, in a fixed order.",
    mistakes=(
        Mistake("y holds the sum of thread 0 alone.", partial(_part_of_sum, turn=256, threads=1)),
        Mistake("y holds the sum of the first warp alone.", partial(_part_of_sum, turn=256, threads=32)),
        Mistake("Only the first 256 elements are in y.", partial(_part_of_sum, turn=8192, threads=256)),
    ),
    spec="The sum of an array, by a whole kernel of your own: each element is read once, and all threads work.",
    skeleton="""\
// y[0] = x[0] + ... + x[n - 1], n from 1 to 4096. One block of 256 threads runs.
// Write the whole kernel here: total(const float* x, float* y, int n)
""",
    hole="// Write the whole kernel here: total(const float* x, float* y, int n)",
    budget="15 minutes, about ten lines",
)


def _one_trip(verdict: Verdict) -> str:
    # Of the weight nothing is asked: each block needs it.
    hint = "A value that a thread has read already can stay in a register; it need not be read again."
    _within(verdict, {"x": 1, "r": 1, "mid": 0, "y": 0}, hint)
    return "One launch in place of two, and what lay between them never came back from memory."


def _norm_of_sum(inputs, shape, *, one=1.0, eps=True, mean=True, squares="mid", scaled="mid", root=True, row=None):
    """mid and y as the exercise wants them, but for what an argument changes."""
    rows = {"x": inputs["x"], "mid": inputs["x"] + inputs["r"]}
    sums = rows[squares][:row].square().sum(-1, keepdim=True)
    under_root = sums / (shape["n"] if mean else 1) + (inputs["eps"] if eps else 0)
    scale = under_root.rsqrt() if root else 1 / under_root
    return {"mid": rows["mid"], "y": rows[scaled] * scale * (one + inputs["weight"])}


def _x_in_mid(inputs, shape):
    return {"mid": inputs["x"]}


NORM_MISTAKES = (
    Mistake("y is scaled by weight; the norm of this model scales by 1 + weight.", partial(_norm_of_sum, one=0.0)),
    Mistake("The epsilon under the root is missing, which small rows need.", partial(_norm_of_sum, eps=False)),
    Mistake("The scale is of the sum of squares; the norm takes their mean.", partial(_norm_of_sum, mean=False)),
    Mistake("The squares are those of x; the norm is of mid = x + r.", partial(_norm_of_sum, squares="x")),
    Mistake("y is a scaled x; it should be a scaled mid, with r in it.", partial(_norm_of_sum, scaled="x")),
    Mistake("y is a norm of x alone; it should be one of mid.", partial(_norm_of_sum, squares="x", scaled="x")),
    Mistake("mid is divided by the mean square, without the square root.", partial(_norm_of_sum, root=False)),
    Mistake("Every row has the scale of row 0.", partial(_norm_of_sum, row=1)),
    Mistake("mid holds x alone; r is to be added.", _x_in_mid),
)


add_rms_norm = kernel_exercise(
    "add_rms_norm",
    kernel="add_rms_norm",
    against="torch.add+reference.rms_norm",
    accept=_one_trip,
    hint="First mid, then the norm of mid; who needs whose numbers, and when?",
    mistakes=NORM_MISTAKES,
    neighbours=("x", "r"),
    spec="Both mid = x + r and y = rms_norm(mid) in one launch: x and r are read once, and mid not at all.",
    skeleton="""\
__global__ void add_rms_norm(const float* x, const float* r, const float* weight,
                             float* mid, float* y, int n, float eps) {
    // One block a row; n is at most 1024. Write mid and y.
}
""",
    hole="// One block a row; n is at most 1024. Write mid and y.",
    budget="20 minutes, ten to fifteen lines",
)
