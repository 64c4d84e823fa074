"""Exact floating-point arithmetic on bit patterns: every result is a fraction that is rounded once.

It is slow and plain on purpose. A bit pattern is an int, a format gives its meaning, and only `encode` rounds.
"""

from fractions import Fraction
from functools import lru_cache
from math import isqrt


class Format:
    """A binary format: a sign, `exponent` bits and `mantissa` bits; `finite` ones have a NaN and no infinity."""

    def __init__(self, name, exponent, mantissa, nan, finite=False):
        self.name, self.mantissa, self.finite = name, mantissa, finite
        self.nan = nan  # the canonical NaN
        self.bits = 1 + exponent + mantissa
        self.bias = (1 << exponent - 1) - 1
        self.sign = 1 << self.bits - 1
        self.min_normal = 1 << mantissa
        # The pattern above the largest finite number; where there is no infinity, that of the only NaN.
        self.inf = nan if finite else (1 << exponent) - 1 << mantissa
        self.max = self.inf - 1


F16 = Format("f16", 5, 10, 0x7FFF)
BF16 = Format("bf16", 8, 7, 0x7FFF)
F32 = Format("f32", 8, 23, 0x7FFFFFFF)
F64 = Format("f64", 11, 52, 0x7FF8000000000000)
TF32 = Format("tf32", 8, 10, 0x3FFFF)
E5M2 = Format("e5m2", 5, 2, 0x7F)
E4M3 = Format("e4m3", 4, 3, 0x7F, finite=True)
FORMATS = {form.name: form for form in (F16, BF16, F32, F64)}


def is_nan(form, bits):
    return bits & ~form.sign > (form.max if form.finite else form.inf)


def is_inf(form, bits):
    return not form.finite and bits & ~form.sign == form.inf


def is_zero(form, bits):
    return bits & ~form.sign == 0


def is_subnormal(form, bits):
    return 0 < bits & ~form.sign < form.min_normal


def negative(form, bits):
    return bits >> form.bits - 1 & 1


def flush(form, bits):
    """The number after .ftz: a subnormal one becomes a zero of its sign."""
    return bits & form.sign if is_subnormal(form, bits) else bits


@lru_cache(1 << 17)
def decode(form, bits):
    """The value of a finite pattern."""
    magnitude = bits & ~form.sign
    exponent, mantissa = magnitude >> form.mantissa, magnitude & form.min_normal - 1
    if exponent:
        mantissa += form.min_normal
    else:
        exponent = 1
    shift = exponent - form.bias - form.mantissa
    value = Fraction(mantissa << shift) if shift >= 0 else Fraction(mantissa, 1 << -shift)
    return -value if negative(form, bits) else value


def rounded_up(down, rest, whole, minus, mode):
    """Whether `down` + rest / whole, of the given sign, goes to the integer of the next larger magnitude."""
    if mode == "rn":
        return 2 * rest > whole or 2 * rest == whole and down & 1
    if mode == "rna":
        return 2 * rest >= whole
    return rest and mode == ("rm" if minus else "rp")


def encode(form, value, mode="rn", *, minus_zero=False):
    """Round a fraction to a format; `minus_zero` is the sign of a result of exactly zero."""
    top, bottom = abs(value.numerator), value.denominator
    if top == 0:
        return form.sign if minus_zero else 0
    minus = value.numerator < 0
    lowest = 1 - form.bias
    exponent = top.bit_length() - bottom.bit_length()
    if top << max(-exponent, 0) < bottom << max(exponent, 0):
        exponent -= 1
    exponent = max(exponent, lowest)
    shift = form.mantissa - exponent  # the unit in the last place is 2 ** -shift
    down, rest = divmod(top << max(shift, 0), bottom << max(-shift, 0))
    whole = bottom << max(-shift, 0)
    magnitude = (exponent - lowest << form.mantissa) + down + bool(rounded_up(down, rest, whole, minus, mode))
    if magnitude >= form.inf:
        outwards = mode in ("rn", "rna") or mode == ("rm" if minus else "rp")
        magnitude = form.inf if outwards else form.max
    return magnitude | (form.sign if minus else 0)


def to_integer(value, mode):
    """A fraction rounded to an integer."""
    down, rest = divmod(abs(value.numerator), value.denominator)
    size = down + bool(rounded_up(down, rest, value.denominator, value < 0, mode))
    return -size if value < 0 else size


def fma(form, a, b, c, mode="rn"):
    """a * b + c, rounded once."""
    if is_nan(form, a) or is_nan(form, b) or is_nan(form, c):
        return form.nan
    minus = negative(form, a) ^ negative(form, b)
    if is_inf(form, a) or is_inf(form, b):
        if is_zero(form, a) or is_zero(form, b) or is_inf(form, c) and negative(form, c) != minus:
            return form.nan
        return form.inf | (form.sign if minus else 0)
    if is_inf(form, c):
        return c
    # Two zeros of one sign keep it; a sum that cancels is +0, and -0 when rounding down.
    product_is_zero = is_zero(form, a) or is_zero(form, b)
    if product_is_zero and is_zero(form, c) and minus == negative(form, c):
        minus_zero = minus
    else:
        minus_zero = mode == "rm"
    return encode(form, decode(form, a) * decode(form, b) + decode(form, c), mode, minus_zero=minus_zero)


def one(form):
    return form.bias << form.mantissa


def add(form, a, b, mode="rn"):
    return fma(form, a, one(form), b, mode)


def mul(form, a, b, mode="rn"):
    return fma(form, a, b, (a ^ b) & form.sign, mode)


def div(form, a, b, mode="rn"):
    minus = (a ^ b) & form.sign
    if is_nan(form, a) or is_nan(form, b):
        return form.nan
    if is_inf(form, a) and is_inf(form, b) or is_zero(form, a) and is_zero(form, b):
        return form.nan
    if is_inf(form, a) or is_zero(form, b):
        return minus | form.inf
    if is_inf(form, b) or is_zero(form, a):
        return minus
    return encode(form, decode(form, a) / decode(form, b), mode)


def root(value):
    """The square root of a positive fraction, to 200 bits; the last bit is set where digits were cut off."""
    scale = 1 << 2 * max(200, value.denominator.bit_length())
    square = value.numerator * scale // value.denominator
    down = isqrt(square)
    exact = down * down * value.denominator == value.numerator * scale
    return Fraction(2 * down + (not exact), 2 * isqrt(scale))


def sqrt(form, a, mode="rn"):
    if is_nan(form, a) or is_zero(form, a):
        return form.nan if is_nan(form, a) else a
    if negative(form, a):
        return form.nan
    return a if is_inf(form, a) else encode(form, root(decode(form, a)), mode)


def convert(source, target, bits, mode="rn"):
    """From one format to another."""
    if is_nan(source, bits):
        return target.nan
    minus = target.sign if negative(source, bits) else 0
    if is_inf(source, bits):
        return minus | target.inf
    return encode(target, decode(source, bits), mode, minus_zero=minus)


def order(form, a, b):
    """-1, 0 or 1 as a is below, at or above b; None if one of them is NaN."""
    if is_nan(form, a) or is_nan(form, b):
        return None
    key = [-(x & ~form.sign) if negative(form, x) else x for x in (a, b)]
    return (key[0] > key[1]) - (key[0] < key[1])


def smaller(form, a, b, *, largest=False, nan=False):
    """min, or max with `largest`: NaN loses to a number unless `nan`, and -0 is below +0."""
    if is_nan(form, a) or is_nan(form, b):
        return form.nan if nan or is_nan(form, a) and is_nan(form, b) else b if is_nan(form, a) else a
    a_first = (order(form, a, b) or negative(form, b) - negative(form, a)) <= 0
    return a if a_first != largest else b
