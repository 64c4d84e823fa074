"""Exercises of notebook 10: the tile at which a cooperative launch is refused, and an array that stays in registers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from luce_edu.exercises.base import Exercise, WrongAnswer, as_number, call
from luce_edu.exercises.kernel import kernel_exercise, reads
from luce_edu.inline.trial import Verdict
from luce_edu.machine.cards import CARDS, WARP, Card, find_card, resident_blocks

THREADS = 128  # of a block
SCRATCH_BYTES = 64  # of shared memory that `kept_row` may use: the sums of the warps


def _refused(registers: Mapping[int, int], grid: int, held: Callable[[int], int]) -> int | None:
    """The smallest tile of which the card holds fewer than `grid` blocks; held(registers per thread) is how many."""
    return min((tile for tile, used in registers.items() if held(used) < grid), default=None)


def _most(card: Card) -> Callable[[int], int]:
    return lambda used: card.sm_count * resident_blocks(card, threads=THREADS, registers=used)


# What people compute instead of the blocks that a card holds, and what to tell them.
def _without_units(card: Card) -> Callable[[int], int]:
    by_threads = card.threads_per_sm // THREADS
    return lambda used: card.sm_count * min(by_threads, card.registers_per_sm // (THREADS * used))


def _without_threads(card: Card) -> Callable[[int], int]:
    def held(used: int) -> int:
        units = -(-WARP * used // card.register_unit)
        return card.sm_count * (card.registers_per_sm // (THREADS // WARP * units * card.register_unit))

    return held


def _one_too_few(card: Card) -> Callable[[int], int]:
    return lambda used: _most(card)(used) - 1


def _of_one_sm(card: Card) -> Callable[[int], int]:
    return lambda used: _most(card)(used) // card.sm_count


_MISTAKES = (
    (_without_units, "A warp gets its registers in whole units. How many does it really take?"),
    (_without_threads, "Registers are one limit of an SM. Which other one do these blocks reach?"),
    (_one_too_few, "A grid of exactly as many blocks as the card holds is not refused."),
    (_of_one_sm, "That is what one SM holds. The card has more."),
)


def _cases() -> Iterator[tuple[dict[int, int], int, Card]]:
    """Registers by tile, the grid and the card; the first ones each catch a mistake."""
    ampere, hopper = find_card("RTX 3090"), find_card("H100")
    tiles = {4: 48, 8: 64, 16: 96, 32: 161}
    yield tiles, 8 * ampere.sm_count, ampere  # 8 fits exactly
    yield tiles, 3 * ampere.sm_count, ampere  # all fit
    yield {4: 57, 8: 73, 16: 121}, 7 * hopper.sm_count, hopper  # 73 take 80
    yield {4: 20, 8: 24, 16: 200}, 13 * ampere.sm_count, ampere  # 12 blocks are 1,536 threads
    yield {16: 96, 32: 161, 4: 130, 8: 64}, 5 * ampere.sm_count, ampere  # in no order
    cards = [card for card in CARDS if card.registers_per_sm]
    for _ in range(30):
        card = random.choice(cards)
        drawn = {tile: random.randrange(16, 256) for tile in (4, 8, 16, 32)}
        edge = _most(card)(random.choice(list(drawn.values())))
        yield drawn, max(1, edge + random.choice((-card.sm_count, -1, 0, 1))), card


def _refused_from(answer) -> str:
    for registers, grid, card in _cases():
        case = f"Case: registers {registers}, a grid of {grid} blocks, on the {card.name}."
        try:
            got = call(answer, dict(registers), grid, card)
        except Exception as error:
            if type(error).__module__.startswith("luce_edu."):  # ours: the skeleton is untouched, or no function came
                raise
            raise WrongAnswer(f"{case} Your function raises {type(error).__name__}: {error}") from error
        want = _refused(registers, grid, _most(card))
        if got is want or want is not None and as_number(got) == want:
            continue
        if got is not None and as_number(got) not in registers:
            raise WrongAnswer(f"{case} Expected one of the tiles, or None, got {got!r}.")
        made = (hint for mistake, hint in _MISTAKES if as_number(got) == _refused(registers, grid, mistake(card)))
        hint = next(made, "How many blocks does an SM hold with so many registers, and how many the card?")
        raise WrongAnswer(f"{case} {got!r} is wrong. {hint}")
    return "Right for 5 chosen and 30 drawn cases, on cards from Turing to Blackwell."


refused_from = Exercise(
    name="refused_from",
    judge=_refused_from,
    spec="The smallest tile whose cooperative launch is refused, from registers, grid and card.",
    skeleton='''\
def refused_from(registers, grid, card):
    """Return the smallest tile whose cooperative launch is refused; None if none is.

    registers  per thread, by tile, such as {4: 48, 8: 64};  grid  blocks of 128 threads
    card       has sm_count, registers_per_sm, register_unit (registers of a warp) and threads_per_sm
    """
    return ...
''',
    hole="return ...",
    budget="15 minutes, five lines",
)


def _kept(verdict: Verdict) -> str:
    times, used = reads(verdict, "x"), verdict.resources
    shared = used.shared_bytes + verdict.dynamic_bytes
    if times > 1:
        raise WrongAnswer(
            f"The results are right, but x is read {times:.3g} times, and should be read once. Where can a thread keep "
            "what it has loaded until the sum is known?"
        )
    if shared > SCRATCH_BYTES:
        raise WrongAnswer(
            f"The results are right, and x is read once, but a block uses {shared:,} bytes of shared memory, and "
            f"should use at most {SCRATCH_BYTES}. Here the row belongs into registers."
        )
    if used.stack_bytes:
        raise WrongAnswer(
            f"The results are right, and x is read once, but {used.stack_bytes} bytes per thread are in local memory "
            f"({verdict.arch}). For each index of the array: does the compiler know its value?"
        )
    return f"x is read once, and a thread keeps its elements in {used.registers} registers ({verdict.arch})."


LOCAL_ROW = """\
int count = 0;
for (int i = threadIdx.x; i < n; i += block_threads) kept[count++] = x[blockIdx.x * n + i];
for (int j = 0; j < count; ++j) squares += kept[j] * kept[j];
const float scale = rsqrtf(block_sum(squares, scratch) / n + eps);
for (int j = 0; j < count; ++j) {
    const int i = threadIdx.x + j * block_threads;
    y[blockIdx.x * n + i] = kept[j] * scale * (1.0f + weight[i]);
}
"""
kept_row = kernel_exercise(
    "kept_row",
    kernel="kept_row",
    against="reference.rms_norm",
    accept=_kept,
    hint="A thread has up to four elements, block_threads apart. Is an element at n or beyond left out?",
    spec="RMSNorm with x read once, and what a thread keeps of it in registers.",
    skeleton="""\
// One block of 256 threads per row of n elements, n up to 1024. Change what follows the third line.
__shared__ float scratch[block_warps];
float kept[4], squares = 0.0f;
"""
    + LOCAL_ROW,
    hole=LOCAL_ROW,
    budget="15 minutes, ten lines",
)
