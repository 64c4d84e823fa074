"""Tensor-core instructions of the virtual GPU: which lane holds which element of a tile, and what the products are.

Products of tiles of small integers are exact in any order of the sum. Those of random numbers are compared with exact
sums; the limit is the error that a sum in single precision can have, whatever its order.
"""

from fractions import Fraction

import numpy as np
import pytest
from isa import floats
from isa.floats import BF16, F16, F32, TF32
from isa.kernel import UNWRITTEN, entry, launch, patterns, tensor

# The elements (row, column) that a lane holds, in the order of its registers: 16-bit ones are two to a register.


def a_16x16(lane):
    row, column = lane // 4, lane % 4 * 2
    return [(row + down, column + right + i) for right in (0, 8) for down in (0, 8) for i in (0, 1)]


def a_16x8(lane):
    row, column = lane // 4, lane % 4 * 2
    return [(row + down, column + i) for down in (0, 8) for i in (0, 1)]


def b_16x8(lane):
    row, column = lane % 4 * 2, lane // 4
    return [(row + down + i, column) for down in (0, 8) for i in (0, 1)]


def b_8x8(lane):
    return [(lane % 4 * 2 + i, lane // 4) for i in (0, 1)]


def a_16x8_words(lane):
    return [(lane // 4 + down, lane % 4 + right) for right in (0, 4) for down in (0, 8)]


def b_8x8_words(lane):
    return [(lane % 4 + down, lane // 4) for down in (0, 4)]


def a_16x4_words(lane):
    return [(lane // 4 + down, lane % 4) for down in (0, 8)]


def b_4x8_words(lane):
    return [(lane % 4, lane // 4)]


c_16x8 = a_16x8


SHAPES = {
    "m16n8k16.row.col.f32.f16.f16.f32": (16, F16, a_16x16, b_16x8, F32),
    "m16n8k16.row.col.f32.bf16.bf16.f32": (16, BF16, a_16x16, b_16x8, F32),
    "m16n8k16.row.col.f16.f16.f16.f16": (16, F16, a_16x16, b_16x8, F16),
    "m16n8k8.row.col.f32.f16.f16.f32": (8, F16, a_16x8, b_8x8, F32),
    "m16n8k8.row.col.f32.bf16.bf16.f32": (8, BF16, a_16x8, b_8x8, F32),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (8, TF32, a_16x8_words, b_8x8_words, F32),
    "m16n8k4.row.col.f32.tf32.tf32.f32": (4, TF32, a_16x4_words, b_4x8_words, F32),
}
RARE = {"m16n8k16.row.col.f16.f16.f16.f16", "m16n8k4.row.col.f32.tf32.tf32.f32"}


def packed(form, tile, place):
    """The registers of all lanes for a tile of patterns: a list for each register."""
    lanes = [[tile[row][column] for row, column in place(lane)] for lane in range(32)]
    if form.bits == 16:
        lanes = [[low | high << 16 for low, high in zip(x[::2], x[1::2], strict=True)] for x in lanes]
    if form is TF32:
        lanes = [[x << 13 for x in values] for values in lanes]
    return [word for values in lanes for word in values], len(lanes[0])


def multiply(shape, a, b, c):
    """D = A B + C by the machine; tiles and the result are patterns."""
    _, form, place_a, place_b, sum_form = SHAPES[shape]
    (a_words, n_a), (b_words, n_b) = packed(form, a, place_a), packed(form, b, place_b)
    c_words, n_c = packed(sum_form, c, c_16x8)

    def group(first, count):
        return "{" + ", ".join(f"%r{first + i}" for i in range(count)) + "}"

    lines = []
    for pointer, first, count in ((1, 2, n_a), (2, 6, n_b), (3, 8, n_c)):
        lines += [f"mad.wide.u32 %x0, %me, {4 * count}, %p{pointer};"]
        lines += [f"ld.global.b32 %r{first + i}, [%x0+{4 * i}];" for i in range(count)]
    operands = f"{group(12, n_c)}, {group(2, n_a)}, {group(6, n_b) if n_b > 1 else '{%r6}'}, {group(8, n_c)}"
    lines += [f"mma.sync.aligned.{shape} {operands};", f"mad.wide.u32 %x0, %me, {4 * n_c}, %p0;"]
    lines += [f"st.global.b32 [%x0+{4 * i}], %r{12 + i};" for i in range(n_c)]
    out = tensor([UNWRITTEN] * 32 * n_c, 32)
    launch(entry("dabc", "\n".join(lines)), 1, 32, [out, *(tensor(x, 32) for x in (a_words, b_words, c_words))])
    words = patterns(out)
    if sum_form is F16:
        words = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    d = [[None] * 8 for _ in range(16)]
    for lane in range(32):
        for (row, column), word in zip(c_16x8(lane), words[4 * lane : 4 * lane + 4], strict=True):
            d[row][column] = word
    return d


def tile(form, values):
    return [[floats.encode(form, Fraction(float(value))) for value in row] for row in values]


def values(form, tile):
    return [[floats.decode(form, word) for word in row] for row in tile]


@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_of_small_integers_are_exact(shape):
    k, form, *_, sum_form = SHAPES[shape]
    rng = np.random.default_rng(0)
    a, b = rng.integers(-8, 9, (16, k)), rng.integers(-8, 9, (k, 8))
    c = rng.integers(-20, 21, (16, 8))
    d = multiply(shape, tile(form, a), tile(form, b), tile(sum_form, c))
    assert d == tile(sum_form, a @ b + c)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape not in RARE])
def test_tiles_of_random_numbers_are_within_the_order_of_the_sum(shape):
    """Each of the k additions may err by one unit of single precision of the sum of magnitudes."""
    k, form, *_ = SHAPES[shape]
    rng = np.random.default_rng(1)
    a, b = tile(form, rng.standard_normal((16, k))), tile(form, rng.standard_normal((k, 8)))
    c = tile(F32, rng.standard_normal((16, 8)))
    d = values(F32, multiply(shape, a, b, c))
    a, b, c = values(form, a), values(form, b), values(F32, c)
    for row in range(16):
        for column in range(8):
            terms = [a[row][i] * b[i][column] for i in range(k)] + [c[row][column]]
            limit = (k + 1) * Fraction(1, 1 << 23) * sum(abs(term) for term in terms)
            assert abs(d[row][column] - sum(terms)) <= limit, (row, column)


def test_tiles_keep_infinity_and_nan_to_their_row_and_column():
    shape = "m16n8k16.row.col.f32.bf16.bf16.f32"
    ones = tile(BF16, np.ones((16, 16)))
    a, b = [row[:] for row in ones], [row[:8] for row in ones]
    a[3][5], a[9][0] = BF16.inf, BF16.inf + 1
    b[7][2] = BF16.sign | BF16.inf
    d = multiply(shape, a, b, tile(F32, np.zeros((16, 8))))
    for row in range(16):
        for column in range(8):
            if row == 9 or row == 3 and column == 2:
                assert floats.is_nan(F32, d[row][column])
            elif row == 3 or column == 2:
                assert d[row][column] == (F32.inf if row == 3 else F32.sign | F32.inf)
            else:
                assert d[row][column] == 0x41800000


def _ldmatrix(count, trans):
    registers = [f"%r{4 + i}" for i in range(count)]
    return f"""
    .shared .align 16 .b8 tile[1024];
    mov.u64 %x1, tile;
    mad.wide.u32 %x2, %me, 16, %p1;
    ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%x2];
    mad.wide.u32 %x3, %me, 32, %x1;
    st.shared.v4.b32 [%x3], {{%r4, %r5, %r6, %r7}};
    bar.sync 0;
    xor.b32 %r8, %me, 5;
    mad.wide.u32 %x3, %r8, 32, %x1;
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{", ".join(registers)}}}, [%x3];
    mad.wide.u32 %x2, %me, {4 * count}, %p0;
    {" ".join(f"st.global.b32 [%x2+{4 * i}], {register};" for i, register in enumerate(registers))}"""


@pytest.mark.parametrize("trans", ("", ".trans"))
@pytest.mark.parametrize("count", (1, 2, 4))
def test_ldmatrix_hands_out_rows(count, trans):
    """Lane 8 i + j gives the address of row j of matrix i. Here rows lie 32 bytes apart, and lane l gives row l ^ 5."""
    elements = list(range(1000, 1000 + 32 * 8))  # 32 rows of 8 elements of 16 bits
    words = [low | high << 16 for low, high in zip(elements[::2], elements[1::2], strict=True)]
    out = tensor([UNWRITTEN] * 32 * count, 32)
    launch(entry(["out", "rows"], _ldmatrix(count, trans)), 1, 32, [out, tensor(words, 32)])
    expected = []
    for lane in range(32):
        for matrix in range(count):
            rows = [elements[8 * (8 * matrix + j ^ 5) :][:8] for j in range(8)]
            row, column = lane // 4, lane % 4 * 2
            low, high = (rows[column + i][row] if trans else rows[row][column + i] for i in (0, 1))
            expected.append(low | high << 16)
    assert patterns(out) == expected
