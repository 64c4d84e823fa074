"""The checkers of notebook 10 accept right answers in several forms, and refuse wrong ones with a reason."""

import numpy as np
from answers import checker_tests

from luce_edu.exercises import registers as exercises
from luce_edu.machine.cards import check_launch, resident_blocks

# ---- the tile at which a launch is refused


def held(used, card, *, unit=True, threads=True):
    warp = -(-32 * used // card.register_unit) * card.register_unit if unit else 32 * used
    blocks = card.registers_per_sm // (4 * warp)
    return card.sm_count * (min(blocks, card.threads_per_sm // 128) if threads else blocks)


def by_arithmetic(registers, grid, card):
    return min([tile for tile in registers if held(registers[tile], card) < grid], default=None)


def by_trying(registers, grid, card):
    for tile in sorted(registers):
        try:
            check_launch(card, grid, 128, registers=registers[tile], cooperative=True)
        except ValueError:
            return np.int64(tile)


def by_a_loop(registers, grid, card):
    smallest = None
    for tile, used in registers.items():
        units = 0
        while units * card.register_unit < 32 * used:
            units += 1
        partitions = card.registers_per_sm // 4 // (units * card.register_unit)  # each holds one warp of a block
        if min(partitions, card.threads_per_sm / 128) * card.sm_count < grid and (smallest is None or tile < smallest):
            smallest = tile
    return smallest if smallest is None else float(smallest)


def smallest(refuses):
    """The smallest tile for which `refuses` is true, as an answer."""
    return lambda registers, grid, card: min((t for t in registers if refuses(registers[t], grid, card)), default=None)


def largest(refuses):
    return lambda registers, grid, card: max((t for t in registers if refuses(registers[t], grid, card)), default=None)


WRONG = {
    "without units": (smallest(lambda used, grid, card: held(used, card, unit=False) < grid), "whole units"),
    "registers alone": (smallest(lambda used, grid, card: held(used, card, threads=False) < grid), "Which other one"),
    "one block too few": (smallest(lambda used, grid, card: held(used, card) <= grid), "exactly as many"),
    "of one SM": (smallest(lambda used, grid, card: held(used, card) // card.sm_count < grid), "one SM holds"),
    "the largest that fits": (largest(lambda used, grid, card: held(used, card) >= grid), "is wrong"),
    "the largest that is refused": (largest(lambda used, grid, card: held(used, card) < grid), "is wrong"),
    "never refused": (lambda registers, grid, card: None, "None is wrong"),
    "0 where none is": (lambda registers, grid, card: by_arithmetic(registers, grid, card) or 0, "one of the tiles"),
    "a text": (lambda registers, grid, card: str(by_arithmetic(registers, grid, card)), "one of the tiles"),
    "a crash": (lambda registers, grid, card: registers[5], "raises KeyError"),
    "no function": (8, "expected a function"),
}


def test_the_formula_of_the_notebook_is_what_the_cards_say():
    for registers, _, card in exercises._cases():
        for used in registers.values():
            assert held(used, card) == card.sm_count * resident_blocks(card, threads=128, registers=used)


# ---- the row in registers

HEAD = exercises.kept_row.skeleton.replace(exercises.kept_row.hole, "")
UNROLLED = """\
#pragma unroll
for (int j = 0; j < 4; ++j) {
    const int i = threadIdx.x + j * block_threads;
    kept[j] = i < n ? x[blockIdx.x * n + i] : 0.0f;
    squares += kept[j] * kept[j];
}
const float scale = rsqrtf(block_sum(squares, scratch) / n + eps);
#pragma unroll
for (int j = 0; j < 4; ++j) {
    const int i = threadIdx.x + j * block_threads;
    if (i < n) y[blockIdx.x * n + i] = kept[j] * scale * (1.0f + weight[i]);
}
"""
BY_NAME = """\
const int t = threadIdx.x, at = blockIdx.x * n + t;
const float a = t < n ? x[at] : 0.0f, b = t + 256 < n ? x[at + 256] : 0.0f;
const float c = t + 512 < n ? x[at + 512] : 0.0f, d = t + 768 < n ? x[at + 768] : 0.0f;
const float scale = rsqrtf(block_sum(a * a + b * b + c * c + d * d, scratch) / n + eps);
if (t < n) y[at] = a * scale * (1.0f + weight[t]);
if (t + 256 < n) y[at + 256] = b * scale * (1.0f + weight[t + 256]);
if (t + 512 < n) y[at + 512] = c * scale * (1.0f + weight[t + 512]);
if (t + 768 < n) y[at + 768] = d * scale * (1.0f + weight[t + 768]);
"""
# Each element is selected by comparisons with constants, so that no variable indexes the array.
SELECTED = """\
for (int j = 0, i = threadIdx.x; i < n; i += block_threads, ++j) {
    const float value = x[blockIdx.x * n + i];
#pragma unroll
    for (int slot = 0; slot < 4; ++slot) if (slot == j) kept[slot] = value;
    squares += value * value;
}
const float scale = rsqrtf(block_sum(squares, scratch) / n + eps);
for (int j = 0, i = threadIdx.x; i < n; i += block_threads, ++j) {
    float value = 0.0f;
#pragma unroll
    for (int slot = 0; slot < 4; ++slot) if (slot == j) value = kept[slot];
    y[blockIdx.x * n + i] = value * scale * (1.0f + weight[i]);
}
"""
RIGHT_ROWS = {
    name: (HEAD + text, "x is read once")
    for name, text in {"unrolled": UNROLLED, "four names": BY_NAME, "selected": SELECTED}.items()
}
TWICE = UNROLLED.replace("kept[j] * scale", "x[blockIdx.x * n + i] * scale")
SHARED = """\
__shared__ float staged[1024];
for (int i = threadIdx.x; i < n; i += block_threads) {
    staged[i] = x[blockIdx.x * n + i];
    squares += staged[i] * staged[i];
}
const float scale = rsqrtf(block_sum(squares, scratch) / n + eps);
for (int i = threadIdx.x; i < n; i += block_threads) y[blockIdx.x * n + i] = staged[i] * scale * (1.0f + weight[i]);
"""
WRONG_ROWS = {
    "the skeleton with a pragma": (exercises.LOCAL_ROW.replace("= 0;\nfor", "= 0;\n#pragma unroll\nfor"),
                                   "16 bytes per thread are in local memory"),
    "no loop unrolled": (UNROLLED.replace("#pragma unroll", "#pragma unroll 1"), "local memory"),
    "x read again": (TWICE, "x is read 2 times"),
    "the row in shared memory": (SHARED, "bytes of shared memory"),
    "no bound": (UNROLLED.replace("i < n ? ", "true ? "), "out of bounds|is wrong"),
    "eps forgotten": (UNROLLED.replace(" + eps", ""), "is wrong"),
    "a fourth left out": (UNROLLED.replace("j < 4", "j < 3"), "nobody wrote|is wrong"),
    "no C++": (UNROLLED.replace(";", ""), "does not compile"),
    "it does not end": (UNROLLED + "while (squares >= 0.0f) {}\n", "does not end|has not ended"),
}  # fmt: skip
WRONG_ROWS = {name: (HEAD + text, reason) for name, (text, reason) in WRONG_ROWS.items()}

RIGHT = {answer.__name__: answer for answer in (by_arithmetic, by_trying, by_a_loop)}
test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (exercises.refused_from, RIGHT, WRONG), (exercises.kept_row, RIGHT_ROWS, WRONG_ROWS), times=5
)
