"""The model: what each instruction reads and writes, and a plain function from one lane's inputs to its outputs.

A key of INSTRUCTIONS is PTX: a bare opcode, or text with its operands, where outputs are named %d, %e, %f … and inputs
%a, %b, %c …. Types are PTX's: a function gets s types as signed integers and all others as bit patterns, and returns
one value or a tuple of them. Where the ISA leaves bits of a result open, it is ANY, Either, Masked or Near.
"""

import math
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import NamedTuple

from isa import floats
from isa.floats import BF16, E4M3, E5M2, F16, F32, F64, FORMATS, TF32, decode, is_nan, negative


class Instruction(NamedTuple):
    """`outs` and `ins` are types; a `~` behind a float type means that the ISA leaves the NaN's bits open.

    `rare`: NVRTC seldom emits the instruction, so the machine may refuse it; if it runs it, the result must be right.
    """

    text: str
    outs: tuple[str, ...]
    ins: tuple[str, ...]
    run: Callable
    rare: bool


class Either(NamedTuple):
    """One of two results; the ISA allows both."""

    first: int
    second: int


class Masked(NamedTuple):
    """A result of which the ISA gives only the bits of `mask`."""

    value: int
    mask: int


class Near(NamedTuple):
    """An approximation: a real value and the largest error allowed."""

    value: float
    limit: float


ANY = Masked(0, 0)
NAN = float("nan")  # for Near: any NaN
INSTRUCTIONS: dict[str, Instruction] = {}


@cache
def width(kind):
    """How many bits a value of this type has."""
    if kind == "pred":
        return 1
    if kind.endswith("x2"):
        return 2 * width(kind[:-2])
    return FORMATS[kind].bits if kind in FORMATS else int(kind[1:])


def signed(value, bits):
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


def limits(kind):
    """The smallest and the largest integer of a type."""
    bits = width(kind)
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)


def clamp(value, kind):
    low, high = limits(kind)
    return min(max(value, low), high)


def define(text, outs, ins, run, *, rare=False):
    assert text not in INSTRUCTIONS, text
    INSTRUCTIONS[text] = Instruction(text, tuple(outs.split()), tuple(ins.split()), run, rare)


def evaluate(instruction, bits):
    """The results of one lane from the patterns of its inputs: a tuple of patterns, ANY, Either, Masked or Near."""
    arguments = [
        signed(value, width(kind)) if kind[0] == "s" else value & (1 << width(kind)) - 1
        for kind, value in zip(instruction.ins, bits, strict=True)
    ]
    results = instruction.run(*arguments)
    # Either, Masked and Near are tuples too; a plain tuple is one of several results.
    results = results if type(results) is tuple else (results,)
    return tuple(
        int(value) & (1 << width(kind.rstrip("~"))) - 1 if isinstance(value, int) else value
        for kind, value in zip(instruction.outs, results, strict=True)
    )


def agrees(kind, expected, got):
    """Whether a bit pattern is a right result of this type."""
    form = FORMATS.get(kind.rstrip("~"))
    if isinstance(expected, Either):
        return agrees(kind, expected.first, got) or agrees(kind, expected.second, got)
    if isinstance(expected, Masked):
        return not (expected.value ^ got) & expected.mask
    if isinstance(expected, Near):
        if is_nan(form, got) or math.isnan(expected.value):
            return is_nan(form, got) and math.isnan(expected.value)
        if floats.is_inf(form, got) or math.isinf(expected.value):
            return floats.is_inf(form, got) and expected.value == (-math.inf if negative(form, got) else math.inf)
        return abs(float(decode(form, got)) - expected.value) <= expected.limit
    if form and (kind.endswith("~") or form is F64) and is_nan(form, expected):
        return is_nan(form, got)
    if kind.rstrip("~") in ("f16x2", "bf16x2") and kind.endswith("~"):
        half = kind[:-3] + "~"
        return all(agrees(half, expected >> shift & 0xFFFF, got >> shift & 0xFFFF) for shift in (0, 16))
    return expected == got


def some_result(kind, expected):
    """One pattern of those that the ISA allows."""
    if isinstance(expected, Either):
        return expected.first
    if isinstance(expected, Masked):
        return expected.value
    if isinstance(expected, Near):
        form = FORMATS[kind.rstrip("~")]
        if math.isnan(expected.value) or math.isinf(expected.value):
            return form.nan if math.isnan(expected.value) else form.inf | (form.sign if expected.value < 0 else 0)
        return floats.encode(form, floats.Fraction(expected.value))
    return expected


SIGNED, UNSIGNED = ("s16", "s32", "s64"), ("u16", "u32", "u64")
INTEGERS = UNSIGNED + SIGNED
BITS = ("b16", "b32", "b64")
ROUNDINGS = ("rn", "rz", "rm", "rp")


# Integers: results wrap, since a pattern is cut to its width.


def divide(a, b, kind):
    """The quotient, rounded towards zero; ANY for a division by zero, which the ISA leaves open, or that overflows."""
    if b == 0 or (a, b) == (limits(kind)[0], -1):
        return ANY
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a, b, kind):
    quotient = divide(a, b, kind)
    return ANY if quotient is ANY else a - quotient * b


for kind in INTEGERS:
    n, letter = width(kind), kind[0]
    define(f"add.{kind}", kind, f"{kind} {kind}", lambda a, b: a + b)
    define(f"sub.{kind}", kind, f"{kind} {kind}", lambda a, b: a - b)
    define(f"mul.lo.{kind}", kind, f"{kind} {kind}", lambda a, b: a * b)
    define(f"mul.hi.{kind}", kind, f"{kind} {kind}", lambda a, b, n=n: a * b >> n)
    define(f"mad.lo.{kind}", kind, f"{kind} {kind} {kind}", lambda a, b, c: a * b + c)
    define(f"mad.hi.{kind}", kind, f"{kind} {kind} {kind}", lambda a, b, c, n=n: (a * b >> n) + c)
    if n < 64:
        wide = f"{letter}{2 * n}"
        define(f"mul.wide.{kind}", wide, f"{kind} {kind}", lambda a, b: a * b)
        define(f"mad.wide.{kind}", wide, f"{kind} {kind} {wide}", lambda a, b, c: a * b + c)
    define(f"div.{kind}", kind, f"{kind} {kind}", lambda a, b, kind=kind: divide(a, b, kind))
    define(f"rem.{kind}", kind, f"{kind} {kind}", lambda a, b, kind=kind: remainder(a, b, kind))
    define(f"min.{kind}", kind, f"{kind} {kind}", min)
    define(f"max.{kind}", kind, f"{kind} {kind}", max)
    define(f"sad.{kind}", kind, f"{kind} {kind} {kind}", lambda a, b, c: abs(a - b) + c)
    define(f"shr.{kind}", kind, f"{kind} u32", lambda a, b: a >> min(b, 64))  # counts past the width are clamped
for kind in SIGNED:
    define(f"abs.{kind}", kind, kind, abs)
    define(f"neg.{kind}", kind, kind, lambda a: -a)
for kind in BITS:
    n = width(kind)
    define(f"shl.{kind}", kind, f"{kind} u32", lambda a, b: a << min(b, 64))
    define(f"shr.{kind}", kind, f"{kind} u32", lambda a, b: a >> min(b, 64))
    define(f"shl.{kind} %d, %a, 5", kind, kind, lambda a: a << 5)
    define(f"shl.{kind} %d, %a, 70", kind, kind, lambda a: 0)
    define(f"cnot.{kind}", kind, kind, lambda a: a == 0, rare=True)
    define(f"mov.{kind}", kind, kind, lambda a: a)
define("shr.s32 %d, %a, 40", "s32", "s32", lambda a: a >> 31)
define("shr.u64 %d, %a, 33", "u64", "u64", lambda a: a >> 33)
for kind in ("pred", *BITS):
    ones = (1 << width(kind)) - 1
    define(f"and.{kind}", kind, f"{kind} {kind}", lambda a, b: a & b)
    define(f"or.{kind}", kind, f"{kind} {kind}", lambda a, b: a | b)
    define(f"xor.{kind}", kind, f"{kind} {kind}", lambda a, b: a ^ b)
    define(f"not.{kind}", kind, kind, lambda a, ones=ones: a ^ ones)
define("mov.pred", "pred", "pred", lambda a: a)
define("mad.lo.s32 %d, %a, 12, 5", "s32", "s32", lambda a: a * 12 + 5)
define("mul.wide.u32 %d, %a, 4", "u64", "u32", lambda a: a * 4)
define("add.sat.s32", "s32", "s32 s32", lambda a, b: clamp(a + b, "s32"))
define("sub.sat.s32", "s32", "s32 s32", lambda a, b: clamp(a - b, "s32"))
define("mad.hi.sat.s32", "s32", "s32 s32 s32", lambda a, b, c: clamp((a * b >> 32) + c, "s32"), rare=True)
define("min.relu.s32", "s32", "s32 s32", lambda a, b: max(min(a, b), 0), rare=True)
define("max.relu.s32", "s32", "s32 s32", lambda a, b: max(a, b, 0), rare=True)
for kind in ("u16", "s16"):
    for name, run in (("add", lambda a, b: a + b), ("min", min), ("max", max)):

        def pair(a, b, kind=kind, run=run):
            read = (lambda x: signed(x, 16)) if kind == "s16" else (lambda x: x & 0xFFFF)
            return (run(read(a >> 16), read(b >> 16)) & 0xFFFF) << 16 | run(read(a), read(b)) & 0xFFFF

        define(f"{name}.{kind}x2", "b32", "b32 b32", pair, rare=True)


def low24(value, kind):
    return signed(value, 24) if kind[0] == "s" else value & 0xFFFFFF


for kind in ("u32", "s32"):
    for half, cut in (("lo", 0), ("hi", 16)):

        def mul24(a, b, c=0, kind=kind, cut=cut):
            return (low24(a, kind) * low24(b, kind) >> cut) + c

        define(f"mul24.{half}.{kind}", kind, f"{kind} {kind}", mul24, rare=True)
        define(f"mad24.{half}.{kind}", kind, f"{kind} {kind} {kind}", mul24, rare=True)


def dp(a, b, c, a_kind, b_kind, pairs):
    """The dot product of the bytes of `a` with those of `b`, or of its two halves with two bytes of `b`."""
    read = {"s": signed, "u": lambda value, bits: value & (1 << bits) - 1}
    bits = 16 if pairs else 8
    terms = range(2 if pairs else 4)
    lane = 2 if pairs == "hi" else 0
    return c + sum(read[a_kind[0]](a >> bits * i, bits) * read[b_kind[0]](b >> 8 * (i + lane), 8) for i in terms)


for a_kind, b_kind in product(("u32", "s32"), repeat=2):
    c_kind = "u32" if a_kind == b_kind == "u32" else "s32"
    ins = f"b32 b32 {c_kind}"
    define(f"dp4a.{a_kind}.{b_kind}", c_kind, ins, lambda a, b, c, s=a_kind, t=b_kind: dp(a, b, c, s, t, ""), rare=True)
    for half in ("lo", "hi"):

        def dp2a(a, b, c, s=a_kind, t=b_kind, half=half):
            return dp(a, b, c, s, t, half)

        define(f"dp2a.{half}.{a_kind}.{b_kind}", c_kind, ins, dp2a, rare=True)

# Carries: one condition bit, written by .cc and read by addc, subc and madc.
for n in (32, 64):
    kind, ones = f"u{n}", (1 << n) - 1
    two, three = " ".join([kind] * 4), " ".join([kind] * 6)

    def add_pair(a, b, c, h, n=n):
        total = a + (b << n) + c + (h << n)
        return total, total >> n

    def sub_pair(a, b, c, h, n=n):
        total = a + (b << n) - c - (h << n)
        return total, total >> n

    define(f"add.cc.{kind} %d, %a, %c; addc.{kind} %e, %b, %h", f"{kind} {kind}", two, add_pair)
    define(f"sub.cc.{kind} %d, %a, %c; subc.{kind} %e, %b, %h", f"{kind} {kind}", two, sub_pair)
    text = f"add.cc.{kind} %d, %a, %b; addc.cc.{kind} %e, %c, %h; addc.{kind} %f, %i, %j"

    def add_three(a, b, c, h, i, j, n=n):
        total = a + b + (c + h << n) + (i + j << 2 * n)
        return total, total >> n, total >> 2 * n

    define(text, f"{kind} {kind} {kind}", three, add_three)

    def sub_three(a, b, c, h, i, j, n=n):
        total = a - b + (c - h << n) + (i - j << 2 * n)
        return total, total >> n, total >> 2 * n

    text = f"sub.cc.{kind} %d, %a, %b; subc.cc.{kind} %e, %c, %h; subc.{kind} %f, %i, %j"
    define(text, f"{kind} {kind} {kind}", three, sub_three)

    def mad_pair(a, b, c, h, n=n):
        total = a * b + c + (h << n)
        return total, total >> n

    text = f"mad.lo.cc.{kind} %d, %a, %b, %c; madc.hi.{kind} %e, %a, %b, %h"
    define(text, f"{kind} {kind}", two, mad_pair)
    text = f"mad.lo.cc.{kind} %d, %a, %b, %c; madc.hi.cc.{kind} %e, %a, %b, %h; addc.{kind} %f, 0, 0"

    def mad_carry(a, b, c, h, n=n):
        total = a * b + c + (h << n)
        return total, total >> n, total >> 2 * n

    define(text, f"{kind} {kind} {kind}", two, mad_carry)


# Bits.


def bfe(a, start, length, kind):
    """Bits start to start + length - 1; a signed field is filled with its top bit, or with that of `a` past its end."""
    n = width(kind)
    if n == 64 and max(start, length) > 255:
        return ANY  # the ISA cuts these to 8 bits, NVIDIA's assembler does not
    start, length = start & 255, length & 255
    if length == 0:
        return 0
    a &= (1 << n) - 1
    field = (a >> start) & (1 << length) - 1
    top = min(start + length - 1, n - 1)
    if kind[0] == "s" and a >> top & 1:
        field |= -1 << max(top - start + 1, 0)
    return field


def bfi(a, b, start, length, n):
    if n == 64 and max(start, length) > 255:
        return ANY
    start, length = start & 255, length & 255
    mask = ((1 << length) - 1 << start) & (1 << n) - 1
    return b & ~mask | a << start & mask


def bfind(a, kind):
    """The place of the top bit; of a negative number that of the top zero; -1 if there is none."""
    return (~a if a < 0 else a).bit_length() - 1


def fns(mask, base, offset):
    """The place of the offset-th set bit at or above the base, or at or below it; all ones if there is none."""
    if base > 31:
        return ANY
    if offset == 0:
        return base if mask >> base & 1 else 0xFFFFFFFF
    places = range(base, 32) if offset > 0 else range(base, -1, -1)
    found = [place for place in places if mask >> place & 1]
    return found[abs(offset) - 1] if abs(offset) <= len(found) else 0xFFFFFFFF


for kind in ("u32", "u64", "s32", "s64"):
    n = width(kind)
    define(f"bfe.{kind}", kind, f"{kind} u32 u32", lambda a, b, c, kind=kind: bfe(a, b, c, kind))
    define(f"bfind.{kind}", "u32", kind, lambda a, kind=kind: bfind(a, kind))

    def bfind_shift(a, kind=kind, n=n):
        place = bfind(a, kind)
        return place if place < 0 else n - 1 - place

    define(f"bfind.shiftamt.{kind}", "u32", kind, bfind_shift)
for kind in ("b32", "b64"):
    n = width(kind)
    define(f"bfi.{kind}", kind, f"{kind} {kind} u32 u32", lambda a, b, c, h, n=n: bfi(a, b, c, h, n))
    define(f"popc.{kind}", "u32", kind, int.bit_count)
    define(f"clz.{kind}", "u32", kind, lambda a, n=n: n - a.bit_length())
    define(f"brev.{kind}", kind, kind, lambda a, n=n: int(f"{a:0{n}b}"[::-1], 2))
define("bfe.u32 %d, %a, 3, 7", "u32", "u32", lambda a: a >> 3 & 127)
define("bfe.s32 %d, %a, 8, 8", "s32", "s32", lambda a: signed(a >> 8, 8))
define("bfi.b32 %d, %a, %b, 4, 9", "b32", "b32 b32", lambda a, b: bfi(a, b, 4, 9, 32))
define("fns.b32", "b32", "b32 b32 s32", fns, rare=True)
for mode, count in (("wrap", lambda c: c & 31), ("clamp", lambda c: min(c, 32))):
    # Both take the 64 bits b:a; left keeps the upper half, right the lower one.
    define(f"shf.l.{mode}.b32", "b32", "b32 b32 u32", lambda a, b, c, f=count: (b << 32 | a) << f(c) >> 32)
    define(f"shf.r.{mode}.b32", "b32", "b32 b32 u32", lambda a, b, c, f=count: (b << 32 | a) >> f(c))


def lop3(a, b, c, table):
    """Bit 4 a + 2 b + c of the table, for each bit of the operands."""
    result = 0
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result


OUTPUTS = "defgklmnopqrstuv"  # the names of outputs; those of inputs are below
INPUTS = "abchij"
for first in range(0, 256, 16):  # every table, sixteen to a kernel
    tables = range(first, first + 16)
    text = "; ".join(f"lop3.b32 %{OUTPUTS[t - first]}, %a, %b, %c, {t:#x}" for t in tables)
    define(text, "b32 " * 16, "b32 b32 b32", lambda a, b, c, tables=tables: tuple(lop3(a, b, c, t) for t in tables))


def prmt(a, b, selector, mode=""):
    """Four bytes out of the eight of b:a. In the default mode bit 3 of a selector spreads the byte's sign."""
    bytes_ = [(b << 32 | a) >> 8 * i & 255 for i in range(8)]
    low = selector & 3
    if not mode:
        nibbles = [selector >> 4 * i & 15 for i in range(4)]
        chosen = [bytes_[x & 7] if x < 8 else 255 * (bytes_[x & 7] >> 7) for x in nibbles]
    else:
        places = {
            "f4e": [low, low + 1, low + 2, low + 3], "b4e": [low, (low - 1) & 7, (low - 2) & 7, (low - 3) & 7],
            "rc8": [low] * 4, "ecl": [max(low, i) for i in range(4)], "ecr": [min(low, i) for i in range(4)],
            "rc16": [0, 1, 0, 1] if low & 1 == 0 else [2, 3, 2, 3],
        }[mode]  # fmt: skip
        chosen = [bytes_[place] for place in places]
    return sum(byte << 8 * i for i, byte in enumerate(chosen))


define("prmt.b32", "b32", "b32 b32 b32", prmt)
define("prmt.b32 %d, %a, %b, 0x5410", "b32", "b32 b32", lambda a, b: prmt(a, b, 0x5410))
define("prmt.b32 %d, %a, 0, 0x4440", "b32", "b32", lambda a: a & 255)
for mode in ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16"):
    run = lambda a, b, c, mode=mode: prmt(a, b, c, mode)  # noqa: E731
    define(f"prmt.b32.{mode}", "b32", "b32 b32 b32", run, rare=True)

# Parts of registers, and moves of every type.
for kind in (*INTEGERS, "f32", "f64"):
    define(f"mov.{kind}", "b" + kind[1:], "b" + kind[1:], lambda a: a)
define("mov.b64 %d, {%a, %b}", "b64", "b32 b32", lambda a, b: b << 32 | a)
define("mov.b64 {%d, %e}, %a", "b32 b32", "b64", lambda a: (a, a >> 32))
define("mov.b64 {_, %d}, %a", "b32", "b64", lambda a: a >> 32)
define("mov.b64 {%d, _}, %a", "b32", "b64", lambda a: a)
define("mov.b32 %d, {%a, %b}", "b32", "b16 b16", lambda a, b: b << 16 | a)
define("mov.b32 {%d, %e}, %a", "b16 b16", "b32", lambda a: (a, a >> 16))
define("mov.b64 %d, {%a, %b, %c, %h}", "b64", "b16 b16 b16 b16", lambda a, b, c, h: a | b << 16 | c << 32 | h << 48)
define("mov.b64 {%d, %e, %f, %g}, %a", "b16 b16 b16 b16", "b64", lambda a: (a, a >> 16, a >> 32, a >> 48))
define("mov.b32 %d, 0f3fc00000", "b32", "b32", lambda a: 0x3FC00000)
define("mov.b64 %d, 0dBFF8000000000000", "b64", "b32", lambda a: 0xBFF8000000000000)
define("mov.b32 %d, -5", "b32", "b32", lambda a: -5)
define("mov.b64 %d, -5", "b64", "b32", lambda a: -5)
define("mov.b16 %d, 0xABCD", "b16", "b32", lambda a: 0xABCD)

# Choice.
for kind in (*BITS, *INTEGERS, "f32", "f64"):
    define(f"selp.{kind}", kind, f"{kind} {kind} pred", lambda a, b, c: a if c else b)
define("selp.b32 %d, 1, 0, %a", "b32", "pred", lambda a: a)
for kind in ("b32", "b64", "u32", "s32"):
    define(f"slct.{kind}.s32", kind, f"{kind} {kind} s32", lambda a, b, c: a if c >= 0 else b, rare=True)


def slct_f32(a, b, c):
    return b if is_nan(F32, c) or negative(F32, c) and not floats.is_zero(F32, c) else a


define("slct.b32.f32", "b32", "b32 b32 f32", slct_f32, rare=True)

# Comparisons. Of floats, lt and its like are false for NaN, ltu and its like true.
COMPARE = {
    "eq": lambda o: o == 0, "ne": lambda o: o != 0, "lt": lambda o: o < 0, "le": lambda o: o <= 0,
    "gt": lambda o: o > 0, "ge": lambda o: o >= 0,
}  # fmt: skip
COMPARE |= {"lo": COMPARE["lt"], "ls": COMPARE["le"], "hi": COMPARE["gt"], "hs": COMPARE["ge"]}
FLOAT_COMPARE = [*list(COMPARE)[:6], "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]


def compare_float(name, order):
    if name in ("num", "nan"):
        return (order is None) == (name == "nan")
    if order is None:
        return len(name) == 3
    return COMPARE[name[:2]](order)


def comparison(name, kind, ftz=False):
    form = FORMATS.get(kind)
    if not form:
        return lambda a, b: COMPARE[name]((a > b) - (a < b))
    read = (lambda x: floats.flush(form, x)) if ftz else (lambda x: x)
    return lambda a, b: compare_float(name, floats.order(form, read(a), read(b)))


COMBINE = {"and": lambda p, c: p & c, "or": lambda p, c: p | c, "xor": lambda p, c: p ^ c}


def compares():
    """Each comparison as (name, .ftz or nothing, type)."""
    for kind in INTEGERS:
        names = [*COMPARE][:6] + ([*COMPARE][6:] if kind[0] == "u" else [])
        yield from ((name, "", kind) for name in names)
    yield from ((name, "", kind) for kind in BITS for name in ("eq", "ne"))
    yield from ((name, "", kind) for kind in ("f16", "bf16", "f32", "f64") for name in FLOAT_COMPARE)
    yield from ((name, ".ftz", "f32") for name in FLOAT_COMPARE)


for name, ftz, kind in compares():
    run = comparison(name, kind, bool(ftz))
    define(f"setp.{name}{ftz}.{kind}", "pred", f"{kind} {kind}", lambda a, b, run=run: int(run(a, b)))
for combine, f in COMBINE.items():
    for name, kind in (("lt", "s32"), ("gt", "u64"), ("leu", "f32"), ("ne", "b16"), ("eq", "f64")):
        run = comparison(name, kind)

        def both(a, b, c, run=run, f=f):
            return f(int(run(a, b)), c), f(int(not run(a, b)), c)

        text = f"setp.{name}.{combine}.{kind}"
        define(f"{text} %d|%e, %a, %b, %c", "pred pred", f"{kind} {kind} pred", both)
        define(f"{text} %d, %a, %b, %c", "pred", f"{kind} {kind} pred", lambda a, b, c, both=both: both(a, b, c)[0])
        negated = f"{text} %d, %a, %b, !%c"
        define(negated, "pred", f"{kind} {kind} pred", lambda a, b, c, both=both: both(a, b, 1 - c)[0])
run = comparison("lt", "s32")
define("setp.lt.s32 %d|%e, %a, %b", "pred pred", "s32 s32", lambda a, b, f=run: (int(f(a, b)), int(not f(a, b))))
for combine in ("and", "or", "xor"):
    define(
        f"{combine}.pred %d, %a, %b; not.pred %e, %d; @%d bra L; not.pred %d, %e; L:",
        "pred pred",
        "pred pred",
        lambda a, b, f=COMBINE[combine]: (f(a, b), 1 - f(a, b)),
    )
for name, kind in (("lt", "s32"), ("hs", "u32"), ("gtu", "f32"), ("nan", "f64"), ("eq", "u64")):
    run = comparison(name, kind)
    both = f"{kind} {kind}"
    define(f"set.{name}.u32.{kind}", "u32", both, lambda a, b, run=run: -int(run(a, b)), rare=True)
    define(f"set.{name}.s32.{kind}", "s32", both, lambda a, b, run=run: -int(run(a, b)), rare=True)
    define(f"set.{name}.f32.{kind}", "f32", both, lambda a, b, run=run: floats.one(F32) * run(a, b), rare=True)
    text = f"set.{name}.and.u32.{kind} %d, %a, %b, %c"
    define(text, "u32", f"{both} pred", lambda a, b, c, run=run: -(run(a, b) & c), rare=True)
for form in (F16, BF16):
    for name in ("lt", "neu", "nan"):
        run = comparison(name, form.name)
        halves = lambda a, b, run=run: (int(run(a & 0xFFFF, b & 0xFFFF)), int(run(a >> 16, b >> 16)))  # noqa: E731
        define(f"setp.{name}.{form.name}x2 %d|%e, %a, %b", "pred pred", "b32 b32", halves)


# Floats.


def flushed(form, result, towards_zero):
    """The result of .ftz. The ISA leaves open whether it flushes a number that rounds up to the smallest normal one."""
    if floats.is_subnormal(form, towards_zero) and result & ~form.sign == form.min_normal:
        return Either(result, result & form.sign)
    return floats.flush(form, result)


def saturated(form, result):
    """Clamped to [0, 1]; NaN becomes +0. The ISA leaves open whether -0 becomes +0."""
    if isinstance(result, Either):  # the smallest normal number or zero, both of one sign
        return Either(0, form.sign) if negative(form, result.first) else result
    if is_nan(form, result):
        return 0
    if result == form.sign:
        return Either(0, form.sign)
    return 0 if negative(form, result) else min(result, floats.one(form))


def rectified(form, result):
    """Negative results become a zero whose sign the ISA leaves open; NaN stays."""
    if is_nan(form, result) or not negative(form, result):
        return result
    return Either(0, form.sign)


def rounding(operation, form, mode="rn", ftz=False, sat=False, relu=False):
    """An operation on patterns with the modifiers of PTX."""

    def run(*args):
        if ftz:
            args = [floats.flush(form, a) for a in args]
        result = operation(form, *args, mode)
        if ftz:
            result = flushed(form, result, operation(form, *args, "rz"))
        if sat:
            result = saturated(form, result)
        return rectified(form, result) if relu else result

    return run


def halves(run):
    """`run` on both halves of a 32-bit register."""

    def packed(*args):
        low, high = run(*(a & 0xFFFF for a in args)), run(*(a >> 16 for a in args))
        if isinstance(low, Either) or isinstance(high, Either):
            # Only the sign of a zero, or a number near the smallest normal one, is open: compare the rest.
            mask, value = 0, 0
            for half, shift in ((low, 0), (high, 16)):
                if isinstance(half, Either):
                    mask |= (0xFFFF & ~(half.first ^ half.second)) << shift
                    value |= half.first << shift
                else:
                    mask |= 0xFFFF << shift
                    value |= half << shift
            return Masked(value, mask)
        return high << 16 | low

    return packed


def sub(form, a, b, mode="rn"):
    return floats.add(form, a, b if is_nan(form, b) else b ^ form.sign, mode)


def rcp(form, a, mode="rn"):
    return floats.div(form, floats.one(form), a, mode)


def is_normal(form, a):
    """The result of testp.normal, which counts zeros as normal numbers."""
    return floats.is_zero(form, a) or form.min_normal <= a & ~form.sign < form.inf


for mode, form in product(ROUNDINGS, (F32, F64)):
    kind = form.name
    one, two, three = kind, f"{kind} {kind}", f"{kind} {kind} {kind}"
    for ftz, sat in product(("", ".ftz"), ("", ".sat")) if form is F32 else [("", "")]:
        for name, operation, ins in (("add", floats.add, two), ("sub", sub, two), ("mul", floats.mul, two)):
            run = rounding(operation, form, mode, bool(ftz), bool(sat))
            define(f"{name}.{mode}{ftz}{sat}.{kind}", kind, ins, run)
        define(f"fma.{mode}{ftz}{sat}.{kind}", kind, three, rounding(floats.fma, form, mode, bool(ftz), bool(sat)))
        if not sat:
            open_ = kind + "~"
            define(f"div.{mode}{ftz}.{kind}", open_, two, rounding(floats.div, form, mode, bool(ftz)))
            define(f"rcp.{mode}{ftz}.{kind}", open_, one, rounding(rcp, form, mode, bool(ftz)))
            define(f"sqrt.{mode}{ftz}.{kind}", open_, one, rounding(floats.sqrt, form, mode, bool(ftz)))
for form in (F32, F64):
    kind = form.name
    two = f"{kind} {kind}"
    define(f"add.{kind}", kind, two, rounding(floats.add, form))
    define(f"sub.{kind}", kind, two, rounding(sub, form))
    define(f"mul.{kind}", kind, two, rounding(floats.mul, form))
    define(f"mad.rn.{kind}", kind, f"{two} {kind}", rounding(floats.fma, form))
    define(f"copysign.{kind}", kind, two, lambda a, b, f=form: a & f.sign | b & ~f.sign)
    define(f"testp.finite.{kind}", "pred", kind, lambda a, f=form: int(a & ~f.sign < f.inf))
    define(f"testp.infinite.{kind}", "pred", kind, lambda a, f=form: int(floats.is_inf(f, a)))
    define(f"testp.number.{kind}", "pred", kind, lambda a, f=form: int(not is_nan(f, a)))
    define(f"testp.notanumber.{kind}", "pred", kind, lambda a, f=form: int(is_nan(f, a)))
    define(f"testp.normal.{kind}", "pred", kind, lambda a, f=form: int(is_normal(f, a)))
    define(f"testp.subnormal.{kind}", "pred", kind, lambda a, f=form: int(floats.is_subnormal(f, a)))
define("fma.rn.f32 %d, %a, 0f3FC00000, 0fBF800000", "f32", "f32", lambda a: floats.fma(F32, a, 0x3FC00000, 0xBF800000))


def magnitude(form, a, ftz=False):
    return (floats.flush(form, a) if ftz else a) & ~form.sign


def opposite(form, a, ftz=False):
    return (floats.flush(form, a) if ftz else a) ^ form.sign


for form in (F16, BF16, F32, F64):
    for ftz in ("", ".ftz") if form in (F16, F32) else ("",):
        kind, flag = form.name, bool(ftz)
        # The ISA leaves the bits of the NaN open.
        define(f"abs{ftz}.{kind}", kind + "~", kind, lambda a, f=form, z=flag: magnitude(f, a, z))
        define(f"neg{ftz}.{kind}", kind + "~", kind, lambda a, f=form, z=flag: opposite(f, a, z))
        if width(kind) == 16:
            pair = f"{kind}x2"
            define(f"abs{ftz}.{pair}", pair + "~", pair, halves(lambda a, f=form, z=flag: magnitude(f, a, z)))
            define(f"neg{ftz}.{pair}", pair + "~", pair, halves(lambda a, f=form, z=flag: opposite(f, a, z)))


def extreme(form, largest, nan, ftz, xorsign):
    def run(a, b):
        if ftz:
            a, b = floats.flush(form, a), floats.flush(form, b)
        minus = (a ^ b) & form.sign
        if xorsign:
            a, b = a & ~form.sign, b & ~form.sign
        result = floats.smaller(form, a, b, largest=largest, nan=nan)
        return result | minus if xorsign and not is_nan(form, result) else result

    return run


for form in (F16, BF16, F32, F64):
    many = form is not F64
    for name, ftz, nan, sign in product(("min", "max"), ("", ".ftz"), ("", ".NaN"), ("", ".xorsign.abs")):
        if not many and (ftz or nan or sign) or form is BF16 and ftz:
            continue
        run = extreme(form, name == "max", bool(nan), bool(ftz), bool(sign))
        kind, flags = form.name, f"{name}{ftz}{nan}{sign}"
        # With .xorsign.abs the ISA leaves the sign of a NaN open.
        define(f"{flags}.{kind}", kind + "~" * bool(sign), f"{kind} {kind}", run, rare=bool(sign))
        if width(kind) == 16:
            pair = f"{kind}x2"
            define(f"{flags}.{pair}", pair + "~" * bool(sign), f"{pair} {pair}", halves(run), rare=bool(sign))

for form in (F16, BF16):
    kind = form.name
    for ftz, sat in product(("", ".ftz"), ("", ".sat")) if form is F16 else [("", "")]:
        for name, operation, count in (("add", floats.add, 2), ("sub", sub, 2), ("mul", floats.mul, 2)):
            run = rounding(operation, form, "rn", bool(ftz), bool(sat))
            for rn in ("", ".rn"):
                define(f"{name}{rn}{ftz}{sat}.{kind}", kind + "~", f"{kind} " * count, run)
                define(f"{name}{rn}{ftz}{sat}.{kind}x2", kind + "x2~", f"{kind}x2 " * count, halves(run))
        run = rounding(floats.fma, form, "rn", bool(ftz), bool(sat))
        define(f"fma.rn{ftz}{sat}.{kind}", kind + "~", f"{kind} " * 3, run)
        define(f"fma.rn{ftz}{sat}.{kind}x2", kind + "x2~", f"{kind}x2 " * 3, halves(run))
    run = rounding(floats.fma, form, relu=True)
    define(f"fma.rn.relu.{kind}", kind + "~", f"{kind} " * 3, run, rare=True)
    define(f"fma.rn.relu.{kind}x2", kind + "x2~", f"{kind}x2 " * 3, halves(run), rare=True)


# Conversions.


def to_range(value, kind):
    """An integer as its register holds it; 8-bit integers are extended to 16 bits."""
    n = width(kind)
    return signed(value, n) if kind[0] == "s" else value & (1 << n) - 1


def register(kind):
    """The type of the register that holds a value of this type, or receives it."""
    return {"u8": "b16", "s8": "b16"}.get(kind, kind)


ALL_INTEGERS = ("u8", "s8", *INTEGERS)
for source, target in product(ALL_INTEGERS, repeat=2):

    def integer(a, source=source, target=target, sat=False):
        value = to_range(a, source)
        return clamp(value, target) if sat else to_range(value, target)

    if source != target:
        define(f"cvt.{target}.{source}", register(target), register(source), integer)
        if limits(source)[0] < limits(target)[0] or limits(source)[1] > limits(target)[1]:
            run = lambda a, f=integer: f(a, sat=True)  # noqa: E731
            define(f"cvt.sat.{target}.{source}", register(target), register(source), run, rare=True)
# A register may be wider than the type that is read from it or written to it.
define("cvt.u32.u8 %d, %a", "b32", "b32", lambda a: a & 255)
define("cvt.s32.s8 %d, %a", "b32", "b32", lambda a: signed(a, 8))
define("cvt.s64.s16 %d, %a", "b64", "b32", lambda a: signed(a, 16))
define("cvt.u16.u32 %d, %a", "b32", "b32", lambda a: a & 0xFFFF)
define("cvt.s16.s32 %d, %a", "b32", "b32", lambda a: signed(a, 16))
define("cvt.s8.s32 %d, %a", "b32", "b32", lambda a: signed(a, 8))
define("cvt.u8.u64 %d, %a", "b64", "b64", lambda a: a & 255)

for source, form in product(ALL_INTEGERS, (F16, F32, F64)):
    for mode in ROUNDINGS:

        def from_integer(a, source=source, form=form, mode=mode):
            return floats.encode(form, floats.Fraction(to_range(a, source)), mode)

        rare = mode != "rn" and form is not F32
        define(f"cvt.{mode}.{form.name}.{source}", form.name, register(source), from_integer, rare=rare)


def integral(form, target, mode, a):
    """To an integer, clamped to its range. NaN: zero, or the top bit alone if either type has 64 bits."""
    if is_nan(form, a):
        return to_range(1 << width(target) - 1, target) if form is F64 or width(target) == 64 else 0
    if floats.is_inf(form, a):
        return limits(target)[0 if negative(form, a) else 1]
    return clamp(floats.to_integer(decode(form, a), mode[:2]), target)


for form, target in product((F16, F32, F64), ALL_INTEGERS):
    for mode, ftz in product(("rni", "rzi", "rmi", "rpi"), ("", ".ftz") if form is F32 else ("",)):

        def to_int(a, form=form, target=target, mode=mode, ftz=ftz):
            return integral(form, target, mode, floats.flush(form, a) if ftz else a)

        rare = width(target) < 32 or form is F16 and mode != "rzi"
        define(f"cvt.{mode}{ftz}.{target}.{form.name}", register(target), form.name, to_int, rare=rare)

for form in (F16, F32, F64):
    for mode in ("rni", "rzi", "rmi", "rpi"):

        def whole(a, form=form, mode=mode):
            if is_nan(form, a) or floats.is_inf(form, a):
                return form.nan if is_nan(form, a) else a
            value = floats.Fraction(floats.to_integer(decode(form, a), mode[:2]))
            return floats.encode(form, value, minus_zero=negative(form, a))

        define(f"cvt.{mode}.{form.name}.{form.name}", form.name + "~", form.name, whole)
for source, form in ((F32, F16), (F64, F16), (F64, F32)):
    for mode in ROUNDINGS:

        def narrow(a, source=source, form=form, mode=mode):
            return floats.convert(source, form, a, mode)

        define(f"cvt.{mode}.{form.name}.{source.name}", form.name + "~", source.name, narrow)
for source, form in ((F16, F32), (F16, F64), (F32, F64), (BF16, F32)):
    run = lambda a, s=source, f=form: floats.convert(s, f, a)  # noqa: E731
    define(f"cvt.{form.name}.{source.name}", form.name + "~", source.name, run)
define("cvt.sat.f32.f32", "f32", "f32", lambda a: saturated(F32, a))
define("cvt.ftz.f32.f32", "f32~", "f32", lambda a: floats.flush(F32, a))
define("cvt.ftz.f64.f32", "f64", "f32", lambda a: floats.convert(F32, F64, floats.flush(F32, a)))
for mode in ("rn", "rz"):
    for form in (F16, BF16):
        for relu in ("", ".relu"):

            def narrow(a, form=form, mode=mode, relu=relu):
                result = floats.convert(F32, form, a, mode)
                return rectified(form, result) if relu else result

            def narrow_pair(a, b, narrow=narrow):  # the first operand goes to the upper half
                return halves(lambda x: narrow(a) if x else narrow(b))(1 << 16)

            if form is BF16 or relu:
                define(f"cvt.{mode}{relu}.{form.name}.f32", form.name, "f32", narrow, rare=bool(relu))
            define(f"cvt.{mode}{relu}.{form.name}x2.f32", f"{form.name}x2", "f32 f32", narrow_pair, rare=bool(relu))


def tf32(a, mode):
    """32 bits of which only the upper 19 are a number."""
    if is_nan(F32, a):
        return Masked(F32.inf, F32.inf)
    return Masked(floats.convert(F32, TF32, a, mode) << 13, ~0x1FFF)


for mode in ("rna", "rn", "rz"):
    define(f"cvt.{mode}.tf32.f32", "b32", "f32", lambda a, mode=mode: tf32(a, mode), rare=mode != "rna")
for form in (E4M3, E5M2):

    def finite(a, form=form):
        minus = form.sign if negative(F32, a) else 0
        result = floats.convert(F32, form, a)
        return form.nan if is_nan(F32, a) else min(result & ~form.sign, form.max) | minus

    text = f"cvt.rn.satfinite.{form.name}x2.f32"
    define(text, "b16", "f32 f32", lambda a, b, f=finite: f(a) << 8 | f(b), rare=True)
    text = f"cvt.rn.f16x2.{form.name}x2"
    run = lambda a, f=form: floats.convert(f, F16, a >> 8) << 16 | floats.convert(f, F16, a & 255)  # noqa: E731
    define(text, "f16x2~", "b16", run, rare=True)


# Approximations, with the error that the ISA allows: relative to the result, or absolute.


def approximate(form, function, relative=0.0, absolute=0.0, ftz=False):
    """A function of floats, with a bound; below the smallest normal number a result may also be off by one step."""
    step = float(decode(form, 1))

    def run(*args):
        if ftz:
            args = [floats.flush(form, a) for a in args]
        if any(is_nan(form, a) for a in args):
            return Near(NAN, 0)
        value = function(*(to_float(form, a) for a in args))
        if math.isnan(value) or math.isinf(value):
            return Near(value, 0)
        if value == 0 and function is not log2:  # the ISA's tables give zeros with their signs
            return form.sign if math.copysign(1, value) < 0 else 0
        limit = abs(value) * relative + absolute + step
        largest = float(decode(form, form.max))
        smallest = float(decode(form, form.min_normal))
        if abs(value) > largest:
            return Near(math.copysign(math.inf, value), 0)
        if ftz and abs(value) < smallest - limit and form is F32:  # of bf16 only the flush of inputs is certain
            return form.sign if value < 0 else 0
        return Near(value, limit + smallest if ftz and abs(value) < smallest else limit)

    return run


def to_float(form, bits):
    if is_nan(form, bits):
        return NAN
    if floats.is_inf(form, bits):
        return -math.inf if negative(form, bits) else math.inf
    value = float(decode(form, bits))
    return -0.0 if value == 0 and negative(form, bits) else value


def divided(a, b):
    if b == 0 or math.isinf(a):
        minus = math.copysign(1, a) * math.copysign(1, b)
        return math.nan if a == 0 and b == 0 or math.isinf(a) and math.isinf(b) else math.inf * minus
    return a / b


def reciprocal_root(a):
    if a == 0:
        return math.copysign(math.inf, a)
    return math.nan if a < 0 else 0.0 if a == math.inf else 1 / math.sqrt(a)


def log2(a):
    return -math.inf if a == 0 else math.nan if a < 0 else a if a == math.inf else math.log2(a)


def exp2(a):
    return math.inf if a > 1023 else 0.0 if a < -1074 else 2.0**a


def square_root(a):
    return math.nan if a < 0 else math.sqrt(a)


def wave(function):
    """sin or cos. Their bound holds from -pi to pi; outside, the ISA gives none."""
    inside = approximate(F32, function, absolute=2.0**-20.5)

    def run(a):
        if is_nan(F32, a) or floats.is_inf(F32, a):
            return Near(NAN, 0)
        return inside(a) if abs(to_float(F32, a)) <= math.pi else Near(0, 1.001)

    return run


def logarithm(ftz):
    """The bound of lg2 is absolute between a half and two, and relative elsewhere."""
    inner, outer = approximate(F32, log2, absolute=2.0**-22, ftz=ftz), approximate(F32, log2, 2.0**-22, ftz=ftz)
    return lambda a: (inner if 0.5 <= to_float(F32, a) <= 2 else outer)(a)


def quotient(ftz):
    """The bound of div.approx holds for divisors from 2**-126 to 2**126; past that the result may be zero."""
    run = approximate(F32, divided, 2.0**-22, ftz=ftz)

    def approximate_quotient(a, b):
        size = abs(to_float(F32, b))
        return run(a, b) if 2.0**-126 <= size <= 2.0**126 or size in (0, math.inf) or math.isnan(size) else ANY

    return approximate_quotient


for ftz in ("", ".ftz"):
    z = bool(ftz)
    open_ = "f32~"
    define(f"rcp.approx{ftz}.f32", open_, "f32", approximate(F32, lambda a: divided(1.0, a), 2.0**-23, ftz=z))
    define(f"sqrt.approx{ftz}.f32", open_, "f32", approximate(F32, square_root, 2.0**-23, ftz=z))
    define(f"rsqrt.approx{ftz}.f32", open_, "f32", approximate(F32, reciprocal_root, 2.0**-22.9, ftz=z))
    define(f"ex2.approx{ftz}.f32", open_, "f32", approximate(F32, exp2, 2.0**-22.5, ftz=z))
    define(f"lg2.approx{ftz}.f32", open_, "f32", logarithm(z))
    define(f"sin.approx{ftz}.f32", open_, "f32", wave(math.sin))
    define(f"cos.approx{ftz}.f32", open_, "f32", wave(math.cos))
    define(f"div.full{ftz}.f32", open_, "f32 f32", approximate(F32, divided, 2.0**-22, ftz=z))
    define(f"div.approx{ftz}.f32", open_, "f32 f32", quotient(z))
define("tanh.approx.f32", "f32~", "f32", approximate(F32, math.tanh, 2.0**-11))
define("ex2.approx.f16", "f16~", "f16", approximate(F16, exp2, 2.0**-9.9), rare=True)
define("tanh.approx.f16", "f16~", "f16", approximate(F16, math.tanh, absolute=2.0**-10.987), rare=True)
define("ex2.approx.ftz.bf16", "bf16~", "bf16", approximate(BF16, exp2, 2.0**-7, ftz=True), rare=True)
define("tanh.approx.bf16", "bf16~", "bf16", approximate(BF16, math.tanh, 2.0**-8), rare=True)
