"""The tokens of PTX, and its constant expressions, with which declarations and rarer operands are parsed.

Source: PTX ISA 9.x, chapter 4. Constant expressions give the bits that ptxas 13.0 gives (tests/machine/test_ptx.py).
"""

import operator
import re
import struct

WHITE = " \t\n\r\f\v"  # what \s matches in the patterns below, all of ASCII

NUMBER = r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|\d+\.\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+"
INTEGER = r"0[xX][0-9a-fA-F]+U?|0[bB][01]+U?|0[0-7]*U?|[1-9]\d*U?"
TOKEN = re.compile(
    rf"""\s*(?:
      ((?:{NUMBER})(?![\w$.])) | ((?:{INTEGER})(?![\w$.]))
    | ([A-Za-z][\w$]*|[_$%][\w$]+|_) | \.([A-Za-z_][\w:]*) | ("[^"\n]*")
    | (&&|\|\||<<|>>|<=|>=|==|!=|[-+*/%~!()\[\]{{}},;:|=?<>&^@])
    )""",
    re.X | re.A,
)
KINDS = (None, "float", "integer", "name", "dot", "string", "sign")

BITS64 = (1 << 64) - 1


class Malformed(Exception):
    """Text that is not PTX; `parse` adds the line and raises CompileError."""


class Single(float):
    """A constant given as the 32 bits of a float, such as 0f3F800000; `bits` keeps the bits of a NaN too."""

    @classmethod
    def of_bits(cls, bits):
        single = cls(struct.unpack("<f", struct.pack("<I", bits))[0])
        single.bits = bits
        return single


class Unsigned(int):
    """A .u64 in a constant expression; a plain int is a .s64."""


def _typed(number, unsigned):
    """Return `number` cut to 64 bits."""
    number &= BITS64
    return Unsigned(number) if unsigned else number - (number >> 63 << 64)


def _divide(a, b):
    """Divide two integers, rounded to zero, or two doubles."""
    if isinstance(a, float):
        return a / b
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


LEVELS = (  # binary operators, in the order of increasing precedence
    {"||": lambda a, b: bool(a) or bool(b)},
    {"&&": lambda a, b: bool(a) and bool(b)},
    {"|": operator.or_},
    {"^": operator.xor},
    {"&": operator.and_},
    {"==": operator.eq, "!=": operator.ne},
    {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge},
    {"<<": operator.lshift, ">>": operator.rshift},
    {"+": operator.add, "-": operator.sub},
    {"*": operator.mul, "/": _divide, "%": operator.mod},
)
LEVEL = {sign: level for level, signs in enumerate(LEVELS) for sign in signs}


def _apply(sign, a, b):
    """Apply an operator of C to two doubles or 64-bit integers. They are unsigned if one is; ptxas's % always is."""
    real = isinstance(a, float)
    if real != isinstance(b, float) or real and sign not in "+-*/":
        raise Malformed(f"{a} {sign} {b} is not a constant")
    shift = sign in ("<<", ">>")
    if shift and not 0 <= b < 64 or sign in "/%" and b == 0:
        raise Malformed(f"{a} {sign} {b} has no value")
    if real:
        return LEVELS[LEVEL[sign]][sign](a, b)
    unsigned = isinstance(a, Unsigned) or isinstance(b, Unsigned) and not shift or sign == "%"
    result = LEVELS[LEVEL[sign]][sign](_typed(a, unsigned), b if shift else _typed(b, unsigned))
    return int(result) if isinstance(result, bool) else _typed(result, unsigned)


class Tokens:
    """The tokens of a text, with one token of lookahead.

    kind, value  of the next token
    start, at    where it begins and ends
    resume       where the token before it ends
    """

    def __init__(self, text, at=0):
        self.text, self.at, self.value = text, at, ""
        self.advance()

    def advance(self):
        """Return the next token's value and step over it."""
        passed, self.resume = self.value, self.at
        found = TOKEN.match(self.text, self.at)
        if found:
            self.kind, self.value = KINDS[found.lastindex], found[found.lastindex]
            self.start, self.at = found.start(found.lastindex), found.end()
        else:
            rest = self.text[self.at :].lstrip(WHITE)
            self.start = len(self.text) - len(rest)
            self.kind, self.value = ("stray", rest[0]) if rest else ("end", "")
        return passed

    def sign(self, value):
        """Step over this sign if it is next."""
        if self.kind == "sign" and self.value == value:
            self.advance()
            return True
        return False

    def expect(self, value, after):
        """Step over this sign; raise Malformed if another token is next."""
        if not self.sign(value):
            raise Malformed(f"expected '{value}' {after}, found {self.found()}")

    def name(self, what):
        """Step over a name and return it; raise Malformed if another token is next."""
        if self.kind != "name":
            raise Malformed(f"expected {what}, found {self.found()}")
        return self.advance()

    def found(self):
        """Describe the next token for a message."""
        return "the end of it" if self.kind == "end" else repr(self.value.strip()[:40])

    def done(self, what):
        """Raise Malformed unless all tokens are used."""
        if self.kind != "end":
            raise Malformed(f"{what} is followed by {self.found()}; is a comma or a semicolon missing?")

    # Constant expressions

    def constant(self):
        """Parse a constant expression; return an int, a float, or a Single, which stands alone."""
        if self.kind == "float" and self.value[:2] in ("0f", "0F"):
            return Single.of_bits(int(self.advance()[2:], 16))
        return self._ternary()

    def integer(self, what, read=None):
        """Parse a constant expression that must be an integer."""
        value = (read or self._ternary)()
        if isinstance(value, float):
            raise Malformed(f"{what} must be an integer, not {value}")
        return int(value)

    def literal(self, what):
        """Parse an integer without operators, because in %r<12> the '>' ends it."""
        return self.integer(what, self._unary)

    def _ternary(self):
        value = self._binary(0)
        if self.sign("?"):
            first = self._ternary()
            self.expect(":", "in a ?: expression")
            second = self._ternary()
            value = first if value else second
        return value

    def _binary(self, level):
        left = self._unary()
        while self.kind == "sign" and LEVEL.get(self.value, -1) >= level:
            sign = self.advance()
            left = _apply(sign, left, self._binary(LEVEL[sign] + 1))
        return left

    def _unary(self):
        if self.kind == "sign" and self.value in ("+", "-", "!", "~"):
            sign = self.advance()
            value = self._unary()
            if isinstance(value, float):
                if sign in "!~":
                    raise Malformed(f"{sign}{value} is not a constant")
                return -value if sign == "-" else value
            if sign == "!":
                return int(not value)
            return _typed(~value, True) if sign == "~" else _apply("-", 0, value) if sign == "-" else value
        if self.sign("("):
            if self.kind == "dot" and self.value in ("s64", "u64"):
                unsigned = self.advance() == "u64"
                self.expect(")", "after the type of a cast")
                return _typed(self.integer("what is cast", self._unary), unsigned)
            value = self._ternary()
            self.expect(")", "to close '('")
            return value
        if self.kind == "integer":
            return self._digits(self.advance())
        if self.kind == "float" and self.value[:2] not in ("0f", "0F"):
            digits = self.advance()
            if digits[:2] in ("0d", "0D"):
                return struct.unpack("<d", struct.pack("<Q", int(digits[2:], 16)))[0]
            return float(digits)
        if self.kind == "name" and self.value == "WARP_SZ":
            self.advance()
            return 32
        raise Malformed(f"expected a constant, found {self.found()}")

    def _digits(self, text):
        digits = text.rstrip("U")
        octal = digits.isdecimal() and digits[0] == "0"
        number = int(digits, 8 if octal else 0) if len(digits) < 80 else BITS64 + 1
        if number > BITS64:
            raise Malformed("an integer constant has more than 64 bits")
        return _typed(number, text.endswith("U") or number >> 63 == 1)
