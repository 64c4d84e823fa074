"""Exercises of notebook 04: mend an index, write a sum, fuse an add into a norm."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from luce_edu.exercises.base import WrongAnswer
from luce_edu.exercises.kernel import kernel_exercise, reads
from luce_edu.inline.trial import Mistake, Verdict


def _within(verdict: Verdict, most: Mapping[str, int], hint: str) -> None:
    """Raise WrongAnswer, with counts and `hint`, if a correct kernel reads a tensor more often than `most` allows."""
    over = [
        f"{name} {reads(verdict, name):.3g} times ({times} is enough)"
        for name, times in most.items()
        if reads(verdict, name) > times
    ]
    if over:
        raise WrongAnswer(f"The results are right, but {verdict.kernel} reads {', '.join(over)}. {hint}")


rms_rows = kernel_exercise(
    "rms_rows",
    kernel="rms_rows",
    against="reference.rms_norm",
    accept=lambda verdict: "Every row is now scaled by the mean square of its own elements.",
    hint="Row 0 is right. In every other row all elements are wrong by one common factor: where does it come from?",
    spec="Mend the kernel above, so that it is right when rows differ.",
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
    # The whole body that may contain the mistake, so that a change anywhere in it counts as an answer.
    hole="""\
    float squares = 0.0f;
    for (int c = threadIdx.x; c < n; c += blockDim.x) squares += x[c] * x[c];
    const float scale = rsqrtf(block_sum(squares, scratch) / n + eps);
    for (int c = threadIdx.x; c < n; c += blockDim.x)
        y[blockIdx.x * n + c] = x[blockIdx.x * n + c] * scale * (1.0f + weight[c]);
""",
    budget="5 minutes, one line",
)


MOST_INSTRUCTIONS = 4000  # of all warps, for 4,096 elements; one thread that adds alone takes several times that


def _by_all_threads(verdict: Verdict) -> str:
    _within(verdict, {"x": 1}, "One thread per element is enough.")
    if verdict.instructions > MOST_INSTRUCTIONS:
        raise WrongAnswer(
            f"The results are right, but the warps of {verdict.kernel} execute {verdict.instructions:,} instructions, "
            f"and {MOST_INSTRUCTIONS:,} are enough. How many threads add while the others wait?"
        )
    return (
        f"4,096 elements take {verdict.instructions:,} warp instructions and {verdict.barriers:g} barriers, and each "
        "is read once."
    )


def _part_of_sum(inputs, shape, *, turn, threads):
    """The sum of some elements only: the first `threads` of every `turn`."""
    x = inputs["x"]
    return {"y": x[torch.arange(len(x)) % turn < threads].sum().reshape(1)}


total = kernel_exercise(
    "total",
    kernel="total",
    against="torch.sum",
    accept=_by_all_threads,
    neighbours=("x",),
    hint="Each thread adds some elements. Are the sums of all 256 threads then added, in a fixed order, and after a "
    "barrier if they are in shared memory? y[0] starts as NaN, and one thread must store the whole sum there.",
    mistakes=(
        Mistake("y holds the sum of thread 0 only.", partial(_part_of_sum, turn=256, threads=1)),
        Mistake("y holds the sum of the first warp only.", partial(_part_of_sum, turn=256, threads=32)),
        Mistake("y holds only the first 256 elements.", partial(_part_of_sum, turn=8192, threads=256)),
    ),
    spec="Write a whole kernel for the sum of an array. Each element is read once, and all threads work.",
    skeleton="""\
// y[0] = x[0] + ... + x[n - 1], n from 1 to 4096. One block of 256 threads runs.
// Write the whole kernel here: total(const float* x, float* y, int n)
""",
    hole="// Write the whole kernel here: total(const float* x, float* y, int n)",
    budget="15 minutes, about ten lines",
)


def _one_trip(verdict: Verdict) -> str:
    # The weight has no budget: every block needs it.
    hint = "A thread can keep in a register what it has read or computed."
    _within(verdict, {"x": 1, "r": 1, "mid": 0, "y": 0}, hint)
    return "One launch in place of two. x and r are read once, and mid is written but never read back."


def _norm_of_sum(inputs, shape, *, one=1.0, eps=True, mean=True, squares="mid", scaled="mid", root=True, row=None):
    """mid and y as the exercise defines them, with the change that an argument asks for."""
    rows = {"x": inputs["x"], "mid": inputs["x"] + inputs["r"]}
    sums = rows[squares][:row].square().sum(-1, keepdim=True)
    under_root = sums / (shape["n"] if mean else 1) + (inputs["eps"] if eps else 0)
    scale = under_root.rsqrt() if root else 1 / under_root
    return {"mid": rows["mid"], "y": rows[scaled] * scale * (one + inputs["weight"])}


def _x_in_mid(inputs, shape):
    return {"mid": inputs["x"]}


NORM_MISTAKES = (
    Mistake("y is scaled by weight. By what does this model's norm scale?", partial(_norm_of_sum, one=0.0)),
    Mistake("The epsilon under the root is missing. Rows of small numbers need it.", partial(_norm_of_sum, eps=False)),
    Mistake("The scale comes from the sum of squares. The norm takes their mean.", partial(_norm_of_sum, mean=False)),
    Mistake("The mean square is that of x. It should be that of mid.", partial(_norm_of_sum, squares="x")),
    Mistake("y is a scaled x. It should be a scaled mid.", partial(_norm_of_sum, scaled="x")),
    Mistake("y is the norm of x. It should be the norm of mid.", partial(_norm_of_sum, squares="x", scaled="x")),
    Mistake("mid is divided by the mean square, without the square root.", partial(_norm_of_sum, root=False)),
    Mistake("Every row is scaled by the mean square of row 0.", partial(_norm_of_sum, row=1)),
    Mistake("mid holds x only; r is missing.", _x_in_mid),
)


add_rms_norm = kernel_exercise(
    "add_rms_norm",
    kernel="add_rms_norm",
    against="torch.add+reference.rms_norm",
    accept=_one_trip,
    hint="Compare mid first, then y. Does a thread read an element of mid that another thread may not have written "
    "yet?",
    mistakes=NORM_MISTAKES,
    neighbours=("x", "r"),
    spec="Compute mid = x + r and y = rms_norm(mid) in one launch. x and r are read once, and mid is not read.",
    skeleton="""\
__global__ void add_rms_norm(const float* x, const float* r, const float* weight,
                             float* mid, float* y, int n, float eps) {
    // One block per row; n is at most 1024. Write mid and y.
}
""",
    hole="// One block per row; n is at most 1024. Write mid and y.",
    budget="20 minutes, ten to fifteen lines",
)
