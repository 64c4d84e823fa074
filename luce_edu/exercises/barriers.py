"""Exercises of notebook 08: break the rules of a grid barrier, mend an uneven loop, hand sums from block to block."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch

from luce_edu.errors import KernelError
from luce_edu.exercises.base import Exercise, WrongAnswer, as_number
from luce_edu.inline.pasted import code
from luce_edu.lab import Sanitized, sanitize
from luce_edu.machine import Kernel, load
from luce_edu.machine.cards import find_card
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.measure.profile import profile
from luce_edu.stages.dims import GRID_BARRIER_WORDS

HEAD = '#include "primitives.cuh"\n'
# The barrier of step 5 and the kernel around it, as the notebook has them.
BARRIER = """\
__device__ void grid_barrier(unsigned* word) {
    const unsigned top_bit = 1u << 31;
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned share = blockIdx.x == 0 ? top_bit - (gridDim.x - 1) : 1u;
        const unsigned before = add_release(word, share);
        while (((load_acquire(word) ^ before) & top_bit) == 0) {}
    }
    __syncthreads();
}
"""
EXCHANGE = """
extern "C" __global__ void exchange(unsigned* mid, unsigned* out, unsigned* word, int rounds) {
    const int n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
    for (int r = 0; r < rounds; ++r) {
        // phase 1: write
        mid[r * n + i] = 1000 * r + i + 1;
        grid_barrier(word);
        // phase 2: read what the next block wrote
        out[r * n + i] = mid[r * n + (i + blockDim.x) % n];
    }
}
"""
THREADS, ROUNDS = 64, 2
CARD, CARD_THREADS = "RTX 3090", 1024
INSTRUCTIONS = 1_000_000  # of the warps of a launch; a right answer needs a few thousand
ORDERS = 10


# ---- Exercise 1 ----


def _compile(text: str, kernel: str, card: str | None = None) -> Kernel:
    arch = find_card(card).arch
    return load(compile_ptx("source", text, [kernel], {"BLOCK_THREADS": THREADS}, arch), card=card)[kernel]


def _exchanges(grid: int, run: Callable[[list], object]) -> bool:
    """Whether each thread gets what its neighbour in the next block wrote, where run(args) runs the kernel."""
    mid, out, word = (torch.zeros(size, dtype=torch.int32) for size in (ROUNDS * grid * THREADS,) * 2 + (1,))
    run([mid, out, word, ROUNDS])
    n = grid * THREADS
    expected = torch.stack([1000 * r + 1 + torch.arange(n).roll(-THREADS) for r in range(ROUNDS)]).int().flatten()
    return torch.equal(out, expected)


def _edited(name: str, text: str, edit: object) -> str:
    if not isinstance(edit, Sequence) or isinstance(edit, str) or [type(part) for part in edit] != [str, str]:
        raise WrongAnswer(f"{name}: expected two texts, (old, new), got {edit!r}")
    old, new = edit
    if text.count(old) != 1:
        raise WrongAnswer(f"{name}: this text occurs {text.count(old)} times, not once:\n{old}")
    return text.replace(old, new)


def _sanitized(name: str, text: str, kernel: str, **launch) -> Sanitized:
    try:
        return sanitize(text, kernel=kernel, instructions=INSTRUCTIONS, orders=ORDERS, **launch)
    except ValueError as error:
        raise WrongAnswer(f"{name}: {error}") from None


def _exchange_report(name: str, text: str, tool: str, grid: int) -> Sanitized:
    zeros = [torch.zeros(size, dtype=torch.int32) for size in (ROUNDS * grid * THREADS,) * 2 + (1,)]
    args = dict(zip(("mid", "out", "word"), zeros, strict=True)) | {"rounds": ROUNDS}
    return _sanitized(name, text, "exchange", tool=tool, grid=grid, block=THREADS, args=args, cooperative=True)


def _break_rules(answer: object) -> str:
    names = ("order", "equally often", "resident")
    if not isinstance(answer, Mapping) or set(answer) != set(names):
        raise WrongAnswer(f"expected a dict with {', '.join(map(repr, names))}, got {answer!r}")
    _break_order(_edited("order", BARRIER, answer["order"]))
    _break_count(_edited("equally often", EXCHANGE, answer["equally often"]))
    _break_residency(answer["resident"])
    return (
        f"The first is right on an idle {CARD} (modelled) and has a race. The second is right with one block and hangs "
        f"with four. The third is the smallest grid that does not fit."
    )


def _break_order(barrier: str) -> None:
    text = HEAD + barrier + EXCHANGE
    report = _exchange_report("order", text, "race", 4)
    races = [finding for finding in report.findings if finding.fault == "race"]
    if not report.clean and not races:
        raise WrongAnswer(f"order: expected a race, and the barrier fails in another way.\n{report.findings[0]}")
    if not races:
        raise WrongAnswer("order: no race was found. With your edit the barrier still orders the two phases.")
    if races[0].tensor != "mid":
        raise WrongAnswer(f"order: expected a race on mid, got one on {races[0].element}. Keep the counting atomic.")
    kernel = _compile(text, "exchange", CARD)
    try:
        right = _exchanges(4, lambda args: profile(kernel.prepare(4, THREADS, args)))
    except KernelError as error:
        raise WrongAnswer(f"order: on an idle {CARD} (modelled) the kernel should end. {error}") from None
    if not right:
        raise WrongAnswer(f"order: on an idle {CARD} (modelled) the result is wrong, so a test would find the fault.")


def _break_count(kernel_text: str) -> None:
    text = HEAD + BARRIER + kernel_text
    alone = _exchange_report("equally often", text, "sync", 1)
    if not alone.clean:
        raise WrongAnswer(f"equally often: with one block the kernel should still end.\n{alone.findings[0]}")
    kernel = _compile(text, "exchange")
    if not _exchanges(1, lambda args: kernel.launch(1, THREADS, args, seed=0)):
        raise WrongAnswer("equally often: with one block the result should still be right.")
    report = _exchange_report("equally often", text, "sync", 4)
    if report.clean:
        raise WrongAnswer("equally often: with four blocks nothing hangs. Let one block come to fewer barriers.")
    if report.findings[0].fault != "deadlock":
        raise WrongAnswer(f"equally often: expected a deadlock with four blocks.\n{report.findings[0]}")


def _break_residency(grid: object) -> None:
    number = as_number(grid)
    held = _compile(HEAD + BARRIER + EXCHANGE, "exchange", CARD).resident_blocks(CARD_THREADS, 0)
    if number is None or number != int(number):
        raise WrongAnswer(f"resident: expected a whole number of blocks, got {grid!r}")
    if number <= held:
        raise WrongAnswer(f"resident: an {CARD} holds {int(number)} blocks of {CARD_THREADS} threads at once.")
    if number > held + 1:
        raise WrongAnswer("resident: that grid does not fit, and a smaller one does not fit either.")


break_rules = Exercise(
    name="break_rules",
    judge=_break_rules,
    spec="Break each of the three rules once, so that a weak test does not notice.",
    skeleton="""\
broken = ...   # {"order": (old, new), "equally often": (old, new), "resident": number of blocks}
""",
    hole='...   # {"order": (old, new), "equally often": (old, new), "resident": number of blocks}',
    budget="15 minutes, three lines",
)


# ---- Exercise 2 ----

COLS = 64


def _uneven(answer: object) -> str:
    text = _source(answer, "neighbours")
    cases = ((4, 8), (4, 6), (3, 7), (4, 2), (1, 3))
    for grid, tokens in cases:
        x = torch.randn(tokens, COLS)
        args = {"x": x, "mid": torch.full_like(x, torch.nan), "out": torch.full_like(x, torch.nan),
                "barrier": torch.zeros(GRID_BARRIER_WORDS, dtype=torch.int32), "tokens": tokens}  # fmt: skip
        expected = 2 * x
        expected[1:] += 2 * x[:-1]
        case = f"Grid of {grid}, {tokens} tokens"
        _judge_launch(case, text, "neighbours", grid, args, "out", expected)
        kernel = _compile(text, "neighbours")
        kernel.launch(grid, COLS, list(args.values()), seed=0, cooperative=True)
        if grid > 1 and int(args["barrier"].count_nonzero()) == 0:
            raise WrongAnswer(f"{case}: no grid barrier was passed. Keep one: out should be made from mid.")
    return f"No deadlock and no race, and the right sums, for {len(cases)} pairs of blocks and tokens."


uneven = Exercise(
    name="uneven",
    judge=_uneven,
    spec="Mend a kernel whose loop has a grid barrier in it and a number of turns that differs by block.",
    skeleton="""\
#include "grid_barrier.cuh"

// mid[t] = 2 * x[t], then out[t] = mid[t] + mid[t - 1], for each token t; out[0] = mid[0]. A thread has one column.
extern "C" __global__ void neighbours(const float* x, float* mid, float* out, GridBarrier* barrier, int tokens) {
    const int cols = blockDim.x, c = threadIdx.x;
    for (int t = blockIdx.x; t < tokens; t += gridDim.x) {
        mid[t * cols + c] = 2.0f * x[t * cols + c];
        grid_barrier(barrier);
        out[t * cols + c] = mid[t * cols + c] + (t > 0 ? mid[(t - 1) * cols + c] : 0.0f);
    }
}
""",
    hole="""\
    for (int t = blockIdx.x; t < tokens; t += gridDim.x) {
        mid[t * cols + c] = 2.0f * x[t * cols + c];
        grid_barrier(barrier);
        out[t * cols + c] = mid[t * cols + c] + (t > 0 ? mid[(t - 1) * cols + c] : 0.0f);
    }
}""",
    budget="10 minutes, two to six lines",
)


def _source(answer: object, kernel: str) -> str:
    if not isinstance(answer, str):
        raise WrongAnswer(f"expected CUDA C++ as text, got {type(answer).__name__}")
    if not re.search(rf"\b{kernel}\s*\(", code(answer)):
        raise WrongAnswer(f"expected a kernel named {kernel}")
    named = answer if 'extern "C"' in answer else answer.replace("__global__", 'extern "C" __global__')
    return named if "#include" in answer else HEAD + named


def _judge_launch(case: str, text: str, kernel: str, grid: int, args: dict, output: str, expected) -> None:
    """Raise WrongAnswer for a launch that breaks a rule or leaves something else in `output`."""
    launch = {"grid": grid, "block": COLS, "args": args, "cooperative": True}
    for tool in ("sync", "race", "order"):
        report = _sanitized(case, text, kernel, tool=tool, **launch)
        if not report.clean:
            raise WrongAnswer(f"{case}.\n{report.findings[0]}")
    loaded = _compile(text, kernel)
    copies = [value.clone() if isinstance(value, torch.Tensor) else value for value in args.values()]
    loaded.launch(grid, COLS, copies, seed=0, cooperative=True)
    got = copies[list(args).index(output)]
    wrong = (~torch.isclose(got, expected, rtol=1e-5, atol=1e-6)).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise WrongAnswer(
            f"{case}. {output}[{row}, {column}] is {got[row, column]:.4g}, and {expected[row, column]:.4g} is right."
        )


# ---- Exercise 3 ----


def _running_sum(answer: object) -> str:
    text = _source(answer, "running_sum")
    for grid in (1, 2, 5, 8):
        x = torch.randn(grid, COLS)
        args = {"x": x, "y": torch.full_like(x, torch.nan), "ready": torch.zeros(grid, dtype=torch.int32)}
        _judge_launch(f"Grid of {grid}", text, "running_sum", grid, args, "y", x.cumsum(0))
    counters = _compile(text, "running_sum").launch(grid, COLS, list(args.values()), seed=0, cooperative=True)
    read = max(counters.traffic[name].asked_read for name in counters.traffic if name in ("x", "argument 0"))
    if read > x.nbytes:
        raise WrongAnswer(
            f"The sums are right, but {read:,} bytes of x are read. It has {x.nbytes:,}. Let block b read row b of x "
            "alone, and take the sum of the rows before it from y."
        )
    return "The right sums without a grid barrier, no race and no deadlock, for 1, 2, 5 and 8 blocks."


running_sum = Exercise(
    name="running_sum",
    judge=_running_sum,
    spec="Write a kernel in which each block adds its row to the sum of the block before it.",
    skeleton="""\
// y[b] = x[0] + ... + x[b] for each row b; x, y [blocks, 64]. Block b reads row b of x alone, and y[b - 1].
// ready [blocks] starts as zeros. Launched as running_sum<<<blocks, 64>>>(x, y, ready), with all blocks resident.
// Write the whole kernel here: running_sum(const float* x, float* y, unsigned* ready)
""",
    hole="// Write the whole kernel here: running_sum(const float* x, float* y, unsigned* ready)\n",
    budget="20 minutes, about a dozen lines",
)
