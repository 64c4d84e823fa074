"""Exercises of notebook 04: an index that uniform data hides, a grid of any size, and an add fused into a norm."""

from __future__ import annotations

from luce_edu.exercises import WrongAnswer
from luce_edu.inline.exercise import kernel_exercise
from luce_edu.inline.trial import Verdict


def _within(verdict: Verdict, most: int, hint: str) -> None:
    """WrongAnswer, with the bytes read of every tensor, for a right kernel that reads more than `most` bytes."""
    if verdict.bytes_read <= most:
        return
    each = ", ".join(f"{name} {t.moved_read:,}" for name, t in sorted(verdict.traffic.items()) if t.moved_read)
    raise WrongAnswer(
        f"{verdict.kernel} is right, and reads {verdict.bytes_read:,} bytes where {most:,} are enough: {each}. {hint}"
    )


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


def _every_element_once(verdict: Verdict) -> str:
    _within(verdict, verdict.least_read, "Each element needs one thread, and some have more: how far does a step go?")
    return "Two blocks serve any n, and every element is read by one thread."


add_any = kernel_exercise(
    "add_any",
    kernel="add_any",
    against="torch.add",
    grid="2",
    accept=_every_element_once,
    hint="All threads of the grid together are 512; whoever is done with an element takes the next that is free.",
    spec="The sum y = x + r for any n, by a grid that is always two blocks of 256 threads, with no element read twice.",
    skeleton="""\
__global__ void add_any(const float* x, const float* r, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] + r[i];
}
""",
    hole="""\
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] + r[i];
""",
    budget="10 minutes, one or two lines",
)


def _one_trip(verdict: Verdict) -> str:
    # x and r once, and the weight once a block: blocks share nothing but the memory that is counted here.
    rows, n = verdict.shape["rows"], verdict.shape["n"]
    _within(verdict, 3 * 4 * rows * n, "Whatever a thread has had in its hands, it need not fetch again.")
    return "One launch in place of two, and what lay between them never came back from memory."


add_rms_norm = kernel_exercise(
    "add_rms_norm",
    kernel="add_rms_norm",
    against="torch.add+reference.rms_norm",
    accept=_one_trip,
    hint="First mid, then the norm of mid; who needs whose numbers, and when?",
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
