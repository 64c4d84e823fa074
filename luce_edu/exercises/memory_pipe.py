"""Exercises of notebook 11: how deep a ring has to be, a wait for a tagged word, and one turn of a ring."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator, Mapping

import torch

from luce_edu.exercises.base import Exercise, WrongAnswer, as_number, call
from luce_edu.family import family_config, one_of_each
from luce_edu.faults import Fault, planted
from luce_edu.lab import sanitize
from luce_edu.machine import load
from luce_edu.machine.cards import find_card
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.measure.profile import profile
from luce_edu.models import Model
from luce_edu.show import find_source
from luce_edu.stages.streaming import PLACE_BYTES, WARPS
from luce_edu.weights import random_weights

SLOT_BYTES = PLACE_BYTES - 16  # a place of the ring has an mbarrier, too
LANES = 32
INSTRUCTIONS = 1_000_000  # of the warps of a launch; a right answer needs a few thousand
ORDERS = 10


@functools.lru_cache(maxsize=1)
def two_layers() -> Model:
    """Return a model with one DeltaNet and one attention layer of the 0.8B model's size, and a small vocabulary."""
    config = one_of_each(family_config("0.8b"))
    return Model("two layers", config, random_weights(config), tokenizer=None, folder=None)


# ---- Exercise 1 ----

CARD, LATENCY_US, GAP_US, MOST_SLOTS = "H200", 0.5, 1.6, 8


def _needed(gb_per_s: float, latency_us: float, gap_us: float, warps: int, slot_bytes: int) -> int:
    return math.ceil(1e3 * gb_per_s * (latency_us + gap_us) / (warps * slot_bytes))


# What people compute in place of it, and what to tell them.
_MISTAKES: tuple[tuple[Callable[..., float], str], ...] = (
    (lambda b, t, gap, w, s: _needed(b, t, 0.0, w, s), "For how long does no warp request anything?"),
    (lambda b, t, gap, w, s: _needed(b, 0.0, gap, w, s),
     "After the wait, requests begin again. How long does the first of them take?"),
    (lambda b, t, gap, w, s: 1e3 * b * (t + gap) // (w * s), "With so few slots some of the bytes are missing."),
    (lambda b, t, gap, w, s: _needed(b, t, gap, w, s) + 1, "One slot less is enough."),
    (lambda b, t, gap, w, s: _needed(b / 1e3, t, gap, w, s), "How many bytes are 1 GB/s times 1 µs?"),
    (lambda b, t, gap, w, s: _needed(b, t, gap, 1, s), "That many slots are enough for the whole card."),
)  # fmt: skip


def _depth_cases() -> Iterator[tuple[float, float, float, int, int]]:
    """Bandwidth, latency, gap, warps of the card, bytes of a slot. In the first case no two mistakes agree."""
    yield 1000, 0.5, 2.2, 100, 2048
    for name in ("H200", "RTX 3090", "T4"):
        card = find_card(name)
        yield card.memory_gb_per_s, LATENCY_US, GAP_US, card.sm_count * WARPS, SLOT_BYTES
    for _ in range(20):
        times = random.uniform(0.3, 0.9), random.uniform(0.2, 6)
        yield random.randrange(300, 8000), *times, random.randrange(200, 2500), random.choice((1024, 2048, 4096))


@functools.lru_cache(maxsize=8)
def ring_us(slots: int) -> float:
    """Return the modelled µs of `two_layers` on an H200, where a warp's ring has `slots` slots. At most 8 fit."""
    old = "constexpr int ring_slots = RING_SLOTS;"
    with planted(Fault("a shorter ring", "weight_stream.cuh", old, old.replace("RING_SLOTS", str(slots)))) as tree:
        return profile("streaming", card=CARD, model=two_layers(), csrc_dir=tree).total_us


def _slots_needed(answer) -> str:
    for case in _depth_cases():
        want, shown = _needed(*case), "{:g} GB/s, {:.3g} µs, {:.3g} µs, {} warps, {} bytes".format(*case)
        got = as_number(found := call(answer, *case))
        if got == want:
            continue
        if got is None:
            raise WrongAnswer(f"expected a number of slots, got {found!r}")
        if got != int(got):
            raise WrongAnswer(f"Case: {shown}. {got:.4g} is no whole number of slots.")
        made = (hint for mistake, hint in _MISTAKES if got == mistake(*case))
        hint = next(made, "How many bytes pass in latency and gap together, and how many are in one slot of each warp?")
        raise WrongAnswer(f"Case: {shown}. {int(got)} is wrong. {hint}")
    few = _needed(find_card(CARD).memory_gb_per_s, LATENCY_US, GAP_US, find_card(CARD).sm_count * WARPS, SLOT_BYTES)
    us = {slots: ring_us(slots) for slots in (few // 2, few, MOST_SLOTS)}
    timed = ", ".join(f"{time:.1f} µs with {slots} slots" for slots, time in us.items())
    return f"Your function says {few} slots for an {CARD} and a gap of {GAP_US} µs. Two layers take {timed} (modelled)."


slots_needed = Exercise(
    name="slots_needed",
    judge=_slots_needed,
    spec="The fewest slots per warp with which memory never runs dry.",
    skeleton='''\
def slots_needed(gb_per_s, latency_us, gap_us, warps, slot_bytes):
    """Return the fewest slots per warp with which memory always has requests to work on.

    gb_per_s    bandwidth, in 10**9 bytes per second;  latency_us  from a request to its bytes
    gap_us      for how long all warps wait and request nothing
    warps       of the whole card;  slot_bytes  of one slot
    """
    return ...
''',
    hole="return ...",
    budget="10 minutes, two lines",
)


# ---- Exercises 2 and 3: a kernel with a hole ----


def _functions(path: str, *names: str) -> str:
    return "\n".join(find_source(path, name).text for name in names) + "\n"


def words_head() -> str:
    """Return the functions that exercise 2 may use, as they are in csrc/tagged.cuh."""
    return "using Word = unsigned long long;\n" + _functions(
        "csrc/tagged.cuh", "publish", "value_of", "tag_of", "load_word"
    )


INIT_TWO = """\
__device__ void init_two(unsigned long long* barriers) {
    barrier_init(barriers), barrier_init(barriers + 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // before a copy uses them
}
"""


def ring_head() -> str:
    """Return the functions that exercise 3 may use: those of csrc/weight_stream.cuh, and init_two."""
    return (
        _functions("csrc/primitives.cuh", "shared_address")
        + _functions("csrc/weight_stream.cuh", "read_once", "barrier_init", "bulk_copy", "barrier_wait")
        + INIT_TWO
    )


def _judge_kernel(
    exercise: Exercise, answer: object, head: str, kernel: str, card: str, grid: int, args: Mapping[str, object],
    output: str, expected: torch.Tensor, hint: str,
) -> None:  # fmt: skip
    """Raise WrongAnswer for an answer that breaks a rule in some order, or leaves something else in `output`."""
    if not isinstance(answer, str):
        raise WrongAnswer(f"expected CUDA C++ as text, got {type(answer).__name__}")
    if not exercise.is_filled(answer):
        raise WrongAnswer("Change only the line with the hole. The rest of the cell should be as it was.")
    text = head + answer
    launch = {"grid": grid, "block": LANES, "args": args, "cooperative": True}
    for tool in ("sync", "race", "order"):
        try:
            report = sanitize(
                text, tool, kernel=kernel, card=card, orders=ORDERS, instructions=INSTRUCTIONS, **launch
            )  # fmt: skip
        except ValueError as error:
            raise WrongAnswer(str(error)) from None
        if not report.clean:
            raise WrongAnswer(f"{report.findings[0]}\n{hint}")
    loaded = load(compile_ptx("source", text, [kernel], {"BLOCK_THREADS": LANES}, find_card(card).arch), card=card)
    copies = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in args.items()}
    loaded[kernel].launch(grid, LANES, list(copies.values()), seed=0, cooperative=True)
    wrong = (~torch.isclose(copies[output], expected, rtol=1e-4, atol=1e-5)).nonzero()
    if len(wrong):
        at = tuple(wrong[0].tolist())
        raise WrongAnswer(
            f"{output}{list(at)} is {copies[output][at]:.4g}, and {expected[at]:.4g} is right. The result is the same "
            f"in every order of warps. {hint}"
        )


def _await_word(answer: object) -> str:
    cases = ((1, 3), (2, 4), (5, 3))
    for grid, tokens in cases:
        x = torch.randn(tokens, grid, LANES)
        words = torch.zeros(grid, LANES, dtype=torch.int64)
        _judge_kernel(
            await_word, answer, words_head(), "relay", "laptop", grid,
            {"x": x, "y": torch.full_like(x, torch.nan), "words": words, "tokens": tokens},
            "y", x.flatten(0, 1).cumsum(0).view_as(x),
            "To which token does the value belong, and does it come with its tag, from the same load?",
        )  # fmt: skip
    return f"The right sums and no race for {len(cases)} pairs of blocks and tokens, however late a word arrives."


await_word = Exercise(
    name="await_word",
    judge=_await_word,
    spec="Wait for the word of a token, and return its value.",
    skeleton="""\
__device__ float await_word(const Word* p, unsigned tag) {
    // Wait for the word whose tag is `tag`, and return its value.
}

// Each block adds its x to the sum of the block before it. Block 0 goes on with the last block's sum of the last token.
extern "C" __global__ void relay(const float* x, float* y, Word* words, int tokens) {
    const int cols = blockDim.x, c = threadIdx.x, b = blockIdx.x, last = gridDim.x - 1;
    for (int tag = 1; tag <= tokens; ++tag) {
        const int i = ((tag - 1) * gridDim.x + b) * cols + c;
        float sum = x[i];
        if (b > 0) sum += await_word(words + (b - 1) * cols + c, tag);
        else if (tag > 1) sum += await_word(words + last * cols + c, tag - 1);
        publish(words + b * cols + c, sum, tag);
        y[i] = sum;
    }
}
""",
    hole="    // Wait for the word whose tag is `tag`, and return its value.\n",
    budget="10 minutes, three lines",
)


def _ring_turn(answer: object) -> str:
    cases = (1, 2, 3, 8)
    for slots in cases:
        x = torch.randn(2, slots, 4 * LANES)
        sums = x.sum(1).view(2, LANES, 4).flip(1).reshape(2, 4 * LANES)  # of float4 31 - lane
        _judge_kernel(
            ring_turn, answer, ring_head(), "ring_sum", CARD, 2,
            {"stream": x, "out": torch.full_like(sums, torch.nan), "slots": slots}, "out", sums,
            "For each turn: which parity has the phase, which lanes read the place, and when have all of them read it?",
        )  # fmt: skip
    return f"The right sums and no race with {', '.join(map(str, cases))} slots, however late a copy lands."


ring_turn = Exercise(
    name="ring_turn",
    judge=_ring_turn,
    spec="Take a slot from a ring of two places, and request the one after the next.",
    skeleton="""\
// A warp adds up its `slots` slots of 32 float4 each. Lane l takes float4 31 - l of each slot.
extern "C" __global__ void ring_sum(const float4* stream, float4* out, int slots) {
    __shared__ __align__(16) float4 place[2][32];
    __shared__ unsigned long long full[2];  // an mbarrier for each place
    const int lane = threadIdx.x, bytes = sizeof(place[0]);
    stream += blockIdx.x * slots * 32;
    if (lane == 0) init_two(full);
    for (int p = 0; lane == 0 && p < 2 && p < slots; ++p) bulk_copy(place[p], stream + p * 32, bytes, &full[p]);
    __syncwarp();
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = 0; i < slots; ++i) {
        float4 w;
        // Wait for slot i, load w, and request slot i + 2 if there is one.
        sum.x += w.x, sum.y += w.y, sum.z += w.z, sum.w += w.w;
    }
    out[blockIdx.x * 32 + lane] = sum;
}
""",
    hole="        // Wait for slot i, load w, and request slot i + 2 if there is one.\n",
    budget="20 minutes, five lines",
)
