"""Parse PTX text into dataclasses: the syntax only, not the meaning.

`parse` returns a Module of variables and functions. An Instruction is an opcode with modifiers and operands, which are
names. The instruction table (table.py) knows what an instruction does and which operands it takes.

Three things are resolved here:
  scopes     a name declared inside a nested { } becomes `name#2`, with the number of its block in the function, so that
             every register, variable and label of a function has a unique name
  .loc       an instruction gets its source line, with the chain of calls that the compiler inlined
  constants  a constant expression becomes one Imm

PTX may come from NVRTC, nvcc, LLVM or a person, in versions 1.0 to NEWEST. Malformed text raises CompileError with its
PTX line. Source: PTX ISA 9.x, chapters 4, 5, 7 and 11; unclear cases were tried with ptxas 13.0.
"""

import re
import struct
from dataclasses import dataclass, replace
from typing import NamedTuple

from luce_edu.errors import CompileError
from luce_edu.machine.ptx_tokens import BITS64, WHITE, Malformed, Single, Tokens

NEWEST = (9, 3)
LARGEST_VARIABLE = 1 << 31  # bytes; initial values are stored in full, so a typo must not fill the memory
DEEPEST_INLINING = 64

SIZES = {  # bytes of the types of variables and registers; a predicate has no size
    **{f"{letter}{bits}": bits // 8 for letter in "bsu" for bits in (8, 16, 32, 64)},
    "b128": 16, "f16": 2, "bf16": 2, "f16x2": 4, "bf16x2": 4, "f32": 4, "f64": 8,
    "texref": 8, "samplerref": 8, "surfref": 8,
}  # fmt: skip
FLOATS = {"f32": "<f", "b32": "<f", "f64": "<d", "b64": "<d"}  # types whose initial value can be a fraction
LANES = {"v2": 2, "v4": 4}

SPECIAL = frozenset(
    """tid ntid ctaid nctaid laneid warpid nwarpid smid nsmid gridid is_explicit_cluster clusterid nclusterid
    cluster_ctaid cluster_nctaid cluster_ctarank cluster_nctarank lanemask_eq lanemask_le lanemask_lt lanemask_ge
    lanemask_gt clock clock_hi clock64 globaltimer globaltimer_lo globaltimer_hi reserved_smem_offset_begin
    reserved_smem_offset_end reserved_smem_offset_cap reserved_smem_offset_0 reserved_smem_offset_1 total_smem_size
    aggr_smem_size dynamic_smem_size current_graph_exec""".split()
    + [f"pm{i}{half}" for i in range(8) for half in ("", "_64")]
    + [f"envreg{i}" for i in range(32)]
)


# ---- The parts of a module


@dataclass(frozen=True, slots=True)
class Reg:
    """A register, by its unique name in the function."""

    name: str


@dataclass(frozen=True, slots=True)
class Special:
    """A special register, with its component: `%tid.x`, `%laneid`."""

    name: str


@dataclass(frozen=True, slots=True)
class Imm:
    """A constant. `bits` are the exact bits: 64 for an 'int' (two's complement) or 'f64', 32 for an 'f32'."""

    value: int | float
    kind: str
    bits: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """The name of a variable, label or function, plus `offset` bytes; also `_`, a result that is not kept."""

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """[base+offset], offset in bytes. `rest` holds the items of a tensor or texture address after its first comma."""

    base: Reg | Symbol | None
    offset: int
    rest: tuple = ()


@dataclass(frozen=True, slots=True)
class Vector:
    """Several operands in braces, as in `{%r1, %r2}`."""

    items: tuple


@dataclass(frozen=True, slots=True)
class Pair:
    """Two results, as in `%p1|%p2`."""

    first: "Reg | Symbol"
    second: "Reg | Symbol"


@dataclass(frozen=True, slots=True)
class Not:
    """A negated predicate, as in `!%p1`."""

    reg: Reg


@dataclass(frozen=True, slots=True)
class Selector:
    """A part of a register for a video instruction: b0 to b3, h0 or h1."""

    reg: Reg
    part: str
    negative: bool = False


@dataclass(frozen=True, slots=True)
class Loc:
    """A source position; `function` (mangled) is the inlined function that holds it, called from `inlined_at`.

    Line 0 is code that the compiler made for no particular line.
    """

    file: str
    line: int
    column: int
    inlined_at: "Loc | None" = None
    function: str | None = None


class Label(NamedTuple):
    """A label, with its line in the PTX text."""

    name: str
    line: int


class Instruction(NamedTuple):
    """One instruction. A call has four operands: results, function, arguments and the prototype's name or None."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple
    predicate: str | None
    negated: bool
    line: int  # of the PTX text
    loc: Loc | None


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable or parameter; `size` in bytes is 0 for an array without bounds.

    `init` is its initial content, `size` bytes; None if the text gives none, which means zero. A relocation (offset,
    symbol, addend, generic) adds the address of `symbol` to an element of `init` (8 bytes for a mask()).
    """

    name: str
    space: str
    type: str
    align: int
    size: int
    init: bytes | None = None
    relocations: tuple[tuple[int, str, int, bool], ...] = ()
    extern: bool = False


@dataclass(frozen=True, slots=True)
class Prototype:
    """The prototype of an indirect call, from a .callprototype."""

    returns: tuple[Variable, ...]
    params: tuple[Variable, ...]


@dataclass(frozen=True, slots=True)
class Function:
    """A kernel or function. `registers` are those named in the body; `targets` its .branchtargets and .calltargets."""

    name: str
    entry: bool
    params: tuple[Variable, ...]
    returns: tuple[Variable, ...]
    registers: dict[str, str]
    variables: dict[str, Variable]
    body: list[Instruction | Label]
    directives: dict[str, tuple[int, ...]]
    external: bool
    line: int
    targets: dict[str, tuple[str, ...]]
    prototypes: dict[str, Prototype]


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed PTX text. `files` are its .file entries by number."""

    version: tuple[int, int]
    target: tuple[str, ...]
    address_size: int
    files: dict[int, str]
    variables: dict[str, Variable]
    functions: dict[str, Function]


# ---- The text

COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*.*?(?:\*/|\Z)', re.S)
FILE = re.compile(r'\.file\s+(\d{1,9})\s+"([^"\n]*)"')
STRING_PART = re.compile(r"([A-Za-z_$][\w$]*)\s*:|\.b8\s+((?:\d{1,3}[\s,]*)+)", re.A)
STRINGS = re.compile(r"\.section\s+\.debug_str\s*\{([^{}]*)\}")

# One match per statement. An opcode is matched possessively, so that `name:` cannot be taken for one.
NUMBERS = r"\d{1,9}\s+\d{1,9}\s+\d{1,9}"
STATEMENT = re.compile(
    rf"""\s*(?:
      (?:@\s*(!?)\s*([A-Za-z_$%][\w$.]*)\s+)? ([a-z][\w.]*+(?:::[\w.]++)*+)(?=[\s;{{(\[%])(?!\s*:) \s*([^;]*+);
    | \.loc\s+({NUMBERS}(?:\s*,\s*(?:function_name\s+[\w$]+(?:\s*\+\s*\d{{1,9}})?|inlined_at\s+{NUMBERS}))*)(?![\w$+])
    | ([A-Za-z_$%][\w$]*)\s*:(?!:)(?!\s*\.(?:callprototype|branchtargets|calltargets)\b)
    | ([{{}}])
    | ([A-Za-z_$%][\w$]*)\s*:\s*\.(?=[bc])
    | (\.file\s+\d+\s+"[^"\n]*"(?:\s*,\s*\d+\s*,\s*\d+)?|\.section\s+[\w.]+\s*\{{[^{{}}]*\}}|@@[^\n]*
      |\.pragma\s+(?:"[^"\n]*"\s*,?\s*)+;)
    | (\.[a-z_]\w*)
    )""",
    re.X | re.A,
)
(NEGATED, GUARD, OPCODE, OPERANDS, LOC, LABEL, BRACE, TABLE, SKIPPED, DIRECTIVE) = range(1, 11)

HEADER = re.compile(
    r"\s*\.version\s+(\d{1,3})\.(\d{1,3})\s+\.target\s+([a-z]\w*(?:\s*,\s*[a-z]\w*)*)"
    r"(?:\s+\.address_size\s+(32|64)\b)?",
    re.A,
)
# The most common operands: a name, an address, two results, a decimal number.
SIMPLE = re.compile(
    r"([A-Za-z_$%][\w$]*)|\[([A-Za-z_$%][\w$]*)(?:\+(-?(?:0|[1-9]\d{0,17})))?\]"
    r"|(-?(?:0|[1-9]\d{0,17}))|([A-Za-z_$%][\w$]*)\|([A-Za-z_$%][\w$]*)",
    re.A,
)
IS_NAME, IS_ADDRESS, IS_OFFSET, IS_INTEGER, _, IS_PAIR = range(1, 7)

DIRECTIVES = set(
    """maxntid reqntid minnctapersm maxnctapersm maxnreg reqnctapercluster maxclusterrank explicitcluster
    blocksareclusters noreturn unified abi_preserve abi_preserve_control""".split()
)
SPACES = {"global", "shared", "const", "local", "param"}
LINKING = {"visible", "extern", "weak", "common"}
PARTS = {"b0", "b1", "b2", "b3", "h0", "h1"}
COMPONENTS = {"x": 0, "y": 1, "z": 2, "w": 3, "r": 0, "g": 1, "b": 2, "a": 3}


def _unknown(directive):
    if directive in ("loc", "file", "section", "pragma"):
        return Malformed(f".{directive} is malformed or cut short")
    return Malformed(f"the directive '.{directive}' is not known here")


def _imm(value):
    """Return the Imm of a constant's value."""
    if isinstance(value, Single):
        return Imm(float(value), "f32", value.bits)
    if isinstance(value, float):
        return Imm(value, "f64", struct.unpack("<Q", struct.pack("<d", value))[0])
    return Imm(int(value), "int", value & BITS64)


class Scope(dict):
    """The names of one { }, and a cache of the operands parsed in it: scope["[%rd1+8]"] is an Address.

    names       declared name -> a Reg, a Symbol, or a Vector of Regs for a .v2 or .v4 register
    ranges      prefix -> (count, type, components), as in %r<12>; a register is created when it is first named
    unresolved  names used before they were declared, with their place in the text; mostly labels
    """

    def __init__(self, parser, parent=None, suffix="", registers=None, first=0):
        super().__init__()
        self.parser, self.parent, self.suffix, self.first = parser, parent, suffix, first
        self.registers = {} if registers is None else registers
        self.names, self.ranges, self.unresolved, self.labels = {}, {}, {}, {}

    def __missing__(self, text):
        found = SIMPLE.fullmatch(text)
        if found is None:
            if (stripped := text.strip(WHITE)) != text:
                return self[stripped]
            tokens = Tokens(text)
            operand = self.operand(tokens)
            tokens.done("an operand")
        elif found.lastindex == IS_NAME:
            operand = self.lookup(text)
        elif found.lastindex == IS_INTEGER:
            operand = _imm(int(text))
        elif found.lastindex == IS_PAIR:
            operand = Pair(self.result(found[IS_PAIR - 1]), self.result(found[IS_PAIR]))
        else:
            operand = Address(self.base(found[IS_ADDRESS]), int(found[IS_OFFSET] or 0))
        self[text] = operand
        return operand

    # Names

    def declare(self, name, meaning):
        if name in self.names or name in self.labels or self.ranged(name):
            raise Malformed(f"'{name}' is declared twice")
        self.names[name] = meaning
        self.clear()

    def register(self, name, type, components):
        """Make a Reg with a unique name, or a Vector of the components of a vector register."""
        full = name + self.suffix
        if components > 1:
            return Vector(tuple(self.register(f"{name}.{letter}", type, 1) for letter in "xyzw"[:components]))
        self.registers[full] = type
        return Reg(full)

    def ranged(self, name):
        """Look a name up in ranges such as %r<12>; %r12 may belong to %r<20> or to %r1<3>."""
        for cut in range(len(name.rstrip("0123456789")), len(name) if self.ranges else 0):
            count, type, components = self.ranges.get(name[:cut], (0, None, 1))
            digits = name[cut:]
            if len(digits) < 19 and int(digits) < count and (digits[0] != "0" or digits == "0"):
                meaning = self.names[name] = self.register(name, type, components)
                return meaning
        return None

    def declare_range(self, prefix, count, type, components):
        for name in self.names:
            digits = name[len(prefix) :]
            if name.startswith(prefix) and digits.isdecimal() and int(digits[:19]) < count:
                raise Malformed(f"'{name}' is declared twice")
        if prefix in self.ranges:
            raise Malformed(f"'{prefix}<' is declared twice")
        self.ranges[prefix] = count, type, components
        self.clear()

    def label(self, name):
        """Define a label here; return its unique name."""
        if name in self.labels or name in self.names or self.ranged(name):
            raise Malformed(f"the label '{name}' is declared twice")
        full = self.labels[name] = name + self.suffix
        return full

    def close(self, body):
        """Resolve the labels of this block. A name that is still unknown may be the outer block's or the module's."""
        here = {name: self.labels[name] for name in self.unresolved if self.labels.get(name, name) != name}
        for i in range(self.first, len(body)) if here else ():
            if type(body[i]) is Instruction:
                operands = tuple(
                    Symbol(here[item.name], item.offset) if type(item) is Symbol and item.name in here else item
                    for item in body[i].operands
                )
                body[i] = body[i]._replace(operands=operands)
        outside = self.parser.unresolved if self.parent is None else self.parent.unresolved
        for name, where in self.unresolved.items():
            if name not in self.labels:
                outside.setdefault(name, where)

    def lookup(self, name):
        scope = self
        while scope is not None:
            meaning = scope.names.get(name) or scope.ranged(name)
            if meaning is not None:
                return meaning
            scope = scope.parent
        if name[0] == "%" and name[1:] in SPECIAL:
            return Special(name)
        if name == "WARP_SZ":
            return _imm(32)
        if name != "_":
            self.unresolved.setdefault(name, self.parser.where)
        return Symbol(name)

    def symbol(self, tokens, what):
        operand = self.lookup(tokens.name(what))
        if not isinstance(operand, Symbol):
            raise Malformed(f"expected {what}, found {operand}")
        return operand

    def base(self, name):
        operand = self.lookup(name)
        if not isinstance(operand, Reg | Symbol) or name == "_":
            raise Malformed(f"'{name}' is neither a register nor a variable, so it has no address")
        return operand

    def result(self, name):
        operand = self.lookup(name)
        if not isinstance(operand, Reg | Symbol):
            raise Malformed(f"'{name}' cannot be written")
        return operand

    def guard(self, name):
        operand = self[name]
        if not isinstance(operand, Reg):
            raise Malformed(f"the guard '{name}' is not a declared predicate register")
        return operand.name

    # Operands

    def operands(self, opcode, text):
        """Parse the operands of an instruction, from the text between opcode and semicolon."""
        tokens = Tokens(text)
        items = self.call(tokens) if opcode == "call" else self.items(tokens) if tokens.kind != "end" else ()
        tokens.done("an operand")
        return items

    def items(self, tokens):
        items = [self.operand(tokens)]
        while tokens.sign(","):
            items.append(self.operand(tokens))
        return tuple(items)

    def call(self, tokens):
        results, arguments, prototype = Vector(()), Vector(()), None
        if tokens.kind == "sign" and tokens.value == "(":
            results = self.arguments(tokens)
            tokens.expect(",", "after the results of a call")
        function = self.lookup(tokens.name("the function to call"))
        if not isinstance(function, Reg | Symbol):
            raise Malformed("a call needs a function's name or a register")
        if tokens.sign(","):
            if tokens.kind == "sign" and tokens.value == "(":
                arguments = self.arguments(tokens)
                if tokens.sign(","):
                    prototype = self.symbol(tokens, "a prototype's name")
            else:
                prototype = self.symbol(tokens, "arguments in parentheses or a prototype's name")
        return results, function, arguments, prototype

    def arguments(self, tokens):
        tokens.expect("(", "before arguments")
        if tokens.sign(")"):
            return Vector(())
        items = self.items(tokens)
        tokens.expect(")", "after arguments")
        return Vector(items)

    def operand(self, tokens):
        first = self.single(tokens)
        if not tokens.sign("|"):
            return first
        second = self.single(tokens)
        if not (isinstance(first, Reg | Symbol) and isinstance(second, Reg | Symbol)):
            raise Malformed("'|' joins two results, which must be registers")
        return Pair(first, second)

    def single(self, tokens):
        if tokens.kind == "name" and tokens.value != "WARP_SZ":
            return self.named(tokens)
        if tokens.sign("{"):
            items = self.items(tokens)
            tokens.expect("}", "to close '{'")
            return Vector(items)
        if tokens.sign("["):
            return self.address(tokens)
        if tokens.kind == "sign" and tokens.value in "!-" and (ahead := Tokens(tokens.text, tokens.at)):
            if ahead.kind == "name" and ahead.value != "WARP_SZ":
                sign = tokens.advance()
                operand = self.named(tokens)
                if sign == "!" and isinstance(operand, Reg):
                    return Not(operand)
                if sign == "-" and isinstance(operand, Selector | Reg):
                    part = operand if isinstance(operand, Selector) else Selector(operand, "")
                    return replace(part, negative=True)
                raise Malformed(f"'{sign}' cannot go before this operand")
        return _imm(tokens.constant())

    def named(self, tokens):
        """Parse a name, and a component or constant offset after it."""
        name = tokens.advance()
        operand = self.lookup(name)
        if tokens.kind == "dot":
            part = tokens.advance()
            if isinstance(operand, Special) and part in ("x", "y", "z", "w"):
                return Special(f"{name}.{part}")
            if isinstance(operand, Vector) and COMPONENTS.get(part, 9) < len(operand.items):
                return operand.items[COMPONENTS[part]]
            if isinstance(operand, Reg) and part in PARTS:
                return Selector(operand, part)
            raise Malformed(f"'{name}' has no part '.{part}'")
        if isinstance(operand, Symbol) and tokens.sign("+"):
            return Symbol(operand.name, tokens.integer("an offset"))
        return operand

    def address(self, tokens):
        base, offset, rest = None, 0, ()
        if tokens.kind == "name":
            base = self.base(tokens.advance())
            if tokens.kind == "sign" and tokens.value == "-":
                raise Malformed("an address has no '-'; write a negative offset as [base+-4]")
            if tokens.sign("+"):
                offset = tokens.integer("an offset")
        else:
            offset = tokens.integer("an address")
        if tokens.sign(","):
            rest = self.items(tokens)
        tokens.expect("]", "to close '['")
        return Address(base, offset, rest)


class Opcodes(dict):
    """A cache from the text of an opcode to (opcode, modifiers)."""

    def __missing__(self, text):
        opcode, *modifiers = text.split(".")
        if not all(modifiers):
            raise Malformed(f"'{text}' has an empty modifier")
        self[text] = opcode, tuple(modifiers)
        return self[text]


def _blank(comment):
    """Replace a comment by as many line breaks; strings and comments without an end stay."""
    if comment[0] == '"' or comment[1] == "*" and (len(comment) < 4 or not comment.endswith("*/")):
        return comment
    return "\n" * comment.count("\n") or " "


class Parser:
    """Parse one text. `where` is the place in the text that an error names."""

    def __init__(self, text):
        # Comments are removed first. Their line breaks stay, so that line numbers remain right.
        self.text = COMMENT.sub(lambda found: _blank(found[0]), text)
        self.where = 0
        self.files, self.variables, self.functions, self.unresolved = {}, {}, {}, {}
        self.opcodes = Opcodes()
        self.strings = None
        self.loc_texts, self.locs, self.depths = {}, {}, {}

    # The module

    def module(self):
        header = HEADER.match(self.text)
        if header is None:
            raise Malformed("this is not PTX, which begins with .version and .target")
        version = int(header[1]), int(header[2])
        if version > NEWEST:
            raise Malformed("PTX {}.{} is newer than {}.{}, the newest known here".format(*version, *NEWEST))
        self.files = {int(number): name for number, name in FILE.findall(self.text)}  # a .file may come after its use
        at = header.end()
        while (found := STATEMENT.match(self.text, at)) is not None:
            self.where = found.start(found.lastindex)
            if found.lastindex == DIRECTIVE:
                at = self.reading(self.where, self.definition)
            elif found.lastindex in (SKIPPED, LOC):
                at = found.end()
            else:
                raise Malformed("only directives may stand outside a function")
        self.finished(at, "the module")
        for name, where in self.unresolved.items():
            self.where = where
            if name not in self.variables and name not in self.functions:
                raise Malformed(f"'{name}' is not declared" + (", nor is it a label" if name[0] != "%" else ""))
        target = tuple(word.strip(WHITE) for word in header[3].split(","))
        return Module(version, target, int(header[4] or 32), self.files, self.variables, self.functions)

    def finished(self, at, what):
        """Raise Malformed unless only white space is left of the text."""
        rest = self.text[at:]
        self.where = at + len(rest) - len(rest.lstrip(WHITE))
        if self.where < len(self.text):
            raise Malformed(f"no statement of {what} begins like this; is a semicolon or a closing brace missing?")

    def reading(self, at, read, *more):
        """Call `read` with the tokens from `at` on; return where it stopped."""
        tokens = Tokens(self.text, at)
        try:
            return read(tokens, *more) or tokens.resume
        except Malformed:
            self.where = max(self.where, tokens.start)
            raise

    def definition(self, tokens):
        """Parse a variable or a function of the module; for a function with a body, return the place after it."""
        linking = set()
        while tokens.kind == "dot" and tokens.value in LINKING:
            linking.add(tokens.advance())
        if tokens.kind != "dot":
            raise Malformed(f"expected .entry, .func or a state space, found {tokens.found()}")
        word = tokens.advance()
        if word in ("entry", "func"):
            return self.function(tokens, word == "entry")
        if word not in SPACES:
            raise _unknown(word)
        for variable in self.declarations(tokens, word, "extern" in linking):
            known = self.variables.get(variable.name)
            if variable.name in self.functions or known and not (known.extern or variable.extern):
                raise Malformed(f"'{variable.name}' is declared twice")
            if known is None or known.extern:
                self.variables[variable.name] = variable
        return None

    # Variables

    def declarations(self, tokens, space, extern=False):
        """Parse the variables of one statement, up to its semicolon."""
        kind = self.kind(tokens)
        variables = [self.declarator(tokens, space, extern, *kind)]
        while tokens.sign(","):
            variables.append(self.declarator(tokens, space, extern, *kind))
        tokens.expect(";", "after a variable")
        return variables

    def kind(self, tokens):
        """Parse type, components and alignment, which stand before a variable's name."""
        type, lanes, align, pointer = None, 1, None, False
        if tokens.sign("["):  # a bank such as .const[2], in PTX 1 and 2
            tokens.integer("a bank")
            tokens.expect("]", "after a bank")
        while tokens.kind == "dot":
            word = tokens.advance()
            if word == "align":
                number = tokens.integer("an alignment")
                if number < 1 or number & (number - 1):
                    raise Malformed(f"an alignment is a power of two, not {number}")
                align = align if pointer else number  # after .ptr, the alignment is that of the pointer's target
            elif word == "attribute":
                self.skip_parentheses(tokens)
            elif word in SIZES:
                type = word
            elif word in LANES:
                lanes = LANES[word]
            elif word == "ptr":
                pointer = True
            elif not (pointer and word in SPACES):
                raise Malformed(f"'.{word}' is not a type or attribute of a variable")
        if type is None:
            raise Malformed("a variable needs a type")
        return type, lanes, align or SIZES[type] * lanes

    def skip_parentheses(self, tokens):
        tokens.expect("(", "here")
        depth = 1
        while depth:
            if tokens.kind in ("end", "stray"):
                raise Malformed("'(' is not closed")
            word = tokens.advance()
            depth += (word == "(") - (word == ")")

    def declarator(self, tokens, space, extern, type, lanes, align):
        name = tokens.name("a variable's name")
        dims = []
        while tokens.sign("["):
            dims.append(None if tokens.kind == "sign" and tokens.value == "]" else tokens.integer("an array's size"))
            tokens.expect("]", "after an array's size")
            if dims[-1] is None and len(dims) > 1 or (dims[-1] or 0) < 0:
                raise Malformed(f"'{name}' has an array size that is missing or negative")
        dims += [lanes] if lanes > 1 else []
        count = 1
        for dim in dims[bool(dims) and dims[0] is None :]:
            count *= dim
        size = count * SIZES[type]
        if size > LARGEST_VARIABLE:
            raise Malformed(f"'{name}' has {size} bytes, above the {LARGEST_VARIABLE} of a variable here")
        unbounded = bool(dims) and dims[0] is None
        if unbounded and not extern and space != "param" and tokens.value != "=":
            raise Malformed(f"'{name}' needs the size of its array")
        if not tokens.sign("="):
            return Variable(name, space, type, align, 0 if unbounded else size, extern=extern)
        if space not in ("global", "const") or extern:
            raise Malformed(f"'{name}' cannot have an initial value: only a .global or .const that is defined here can")
        first = Initialiser(self, tokens, type)
        items = first.read(dims, 0)
        size *= items if unbounded else 1
        return Variable(name, space, type, align, size, first.content(size), first.all_relocations())

    # Functions

    def parameters(self, tokens):
        """Parse parameters in parentheses; in old PTX they may be registers."""
        tokens.expect("(", "before parameters")
        variables = []
        while not tokens.sign(")"):
            if variables:
                tokens.expect(",", "between parameters")
            space = tokens.advance() if tokens.kind == "dot" else None
            if space not in ("param", "reg"):
                raise Malformed(f"expected .param, found {tokens.found()}")
            if space == "reg" and tokens.kind == "dot" and tokens.value == "pred":
                tokens.advance()
                variables.append(Variable(tokens.name("a parameter's name"), "reg", "pred", 1, 1))
            else:
                variables.append(self.declarator(tokens, space, False, *self.kind(tokens)))
        return tuple(variables)

    def function(self, tokens, entry):
        line = 1 + self.text.count("\n", 0, self.where)
        while tokens.kind == "dot" and tokens.value == "attribute":
            tokens.advance()
            self.skip_parentheses(tokens)
        returns = self.parameters(tokens) if not entry and tokens.kind == "sign" else ()
        name = tokens.name("a function's name")
        params = self.parameters(tokens) if tokens.kind == "sign" and tokens.value == "(" else ()
        directives = self.directives(tokens)
        known = self.functions.get(name)
        external = tokens.sign(";")
        if name in self.variables or known and not (known.external or external):
            raise Malformed(f"'{name}' is defined twice")
        if external:
            if known is None:
                self.functions[name] = Function(
                    name, entry, params, returns, {}, {}, [], directives, True, line, {}, {}
                )
            return None
        if not (tokens.kind == "sign" and tokens.value == "{"):
            raise Malformed(f"expected the body of '{name}' or a semicolon, found {tokens.found()}")

        scope = Scope(self)
        for variable in returns + params:
            if variable.space == "reg":
                scope.declare(variable.name, scope.register(variable.name, variable.type, 1))
            elif variable.name != "_":
                scope.declare(variable.name, Symbol(variable.name))
        function = Function(name, entry, params, returns, scope.registers, {}, [], directives, False, line, {}, {})
        end = self.body(function, scope, tokens.at)
        self.functions[name] = function
        return end

    def directives(self, tokens):
        """Parse the directives between a function's parameters and its body, each with its numbers."""
        directives = {}
        while tokens.kind == "dot":
            word = tokens.advance()
            if word == "pragma":
                while tokens.kind == "string":
                    tokens.advance()
                    tokens.sign(",")
                tokens.expect(";", "after .pragma")
            elif word == "attribute":
                self.skip_parentheses(tokens)
            elif word in DIRECTIVES:
                numbers = [tokens.integer(f".{word}")] if tokens.kind == "integer" else []
                while numbers and tokens.sign(","):
                    numbers.append(tokens.integer(f".{word}"))
                directives[word] = tuple(numbers)
            else:
                raise _unknown(word)
        return directives

    def body(self, function, scope, at):
        """Parse the statements of a function after its opening brace; return the place after the closing one."""
        text, match, count, opcodes, make = self.text, STATEMENT.match, self.text.count, self.opcodes, tuple.__new__
        operand = scope.__getitem__
        body, blocks, loc, self.latest = function.body, 0, None, {}
        seen, line = at, 1 + count("\n", 0, at)
        while (found := match(text, at)) is not None:
            at, kind = found.end(), found.lastindex
            start = found.start(OPCODE if kind == OPERANDS else kind)
            line += count("\n", seen, start)
            self.where = seen = start
            if kind == OPERANDS:
                negated, guard, opcode, operands = found.group(NEGATED, GUARD, OPCODE, OPERANDS)
                opcode, modifiers = opcodes[opcode]
                if "{" in operands or "(" in operands or opcode == "call":
                    operands = scope.operands(opcode, operands)
                else:
                    operands = tuple(map(operand, operands.replace(", ", ",").split(","))) if operands else ()
                guard = guard and scope.guard(guard)
                body.append(make(Instruction, (opcode, modifiers, operands, guard, negated == "!", line, loc)))
            elif kind == LOC:
                loc = self.loc(found[LOC])
            elif kind == LABEL:
                body.append(Label(scope.label(found[LABEL]), line))
            elif kind == BRACE and found[BRACE] == "{":
                blocks += 1
                scope = Scope(self, scope, f"#{blocks}", function.registers, len(body))
                operand = scope.__getitem__
            elif kind == BRACE:
                scope.close(body)
                if scope.parent is None:
                    self.hoist(function)
                    return at
                scope = scope.parent
                operand = scope.__getitem__
            elif kind == DIRECTIVE:
                at = self.reading(start, self.local, function, scope)
            elif kind == TABLE:
                name = scope.label(found[TABLE])
                at = self.reading(at - 1, self.table, function, scope, name, line)
        self.finished(at, f"'{function.name}'")
        raise Malformed(f"the text ends within '{function.name}'")

    def local(self, tokens, function, scope):
        """Parse a declaration inside a body: registers or variables."""
        word = tokens.advance()
        if word == "reg":
            return self.register(tokens, scope)
        extern = word == "extern"
        if extern and tokens.kind == "dot":
            word = tokens.advance()
        if word not in SPACES:
            raise _unknown(word)
        for variable in self.declarations(tokens, word, extern):
            full = variable.name + scope.suffix
            scope.declare(variable.name, Symbol(full))
            function.variables[full] = replace(variable, name=full)

    def register(self, tokens, scope):
        type, lanes = None, 1
        while tokens.kind == "dot":
            word = tokens.advance()
            if word in LANES:
                lanes = LANES[word]
            elif word in SIZES or word == "pred":
                type = word
            else:
                raise Malformed(f"'.{word}' is not a type of a register")
        if type is None:
            raise Malformed("a register needs a type")
        while True:
            name = tokens.name("a register's name")
            if tokens.sign("<"):
                scope.declare_range(name, tokens.literal("a number of registers"), type, lanes)
                tokens.expect(">", "after a number of registers")
            else:
                scope.declare(name, scope.register(name, type, lanes))
            if not tokens.sign(","):
                break
        tokens.expect(";", "after registers")

    def table(self, tokens, function, scope, name, line):
        """Parse the targets of a branch or call, or a prototype, under the label `name`."""
        word = tokens.advance()
        if word == "callprototype":
            returns = self.parameters(tokens) if tokens.kind == "sign" else ()
            tokens.name("'_'")
            params = self.parameters(tokens) if tokens.kind == "sign" and tokens.value == "(" else ()
            self.directives(tokens)
            function.prototypes[name] = Prototype(returns, params)
        elif word in ("branchtargets", "calltargets"):
            targets = [Symbol(name), scope.symbol(tokens, "a target")]
            while tokens.sign(","):
                targets.append(scope.symbol(tokens, "a target"))
            # Until the body ends it is kept as an instruction, so that its labels are resolved like those of branches.
            function.body.append(Instruction(".targets", (), tuple(targets), None, False, line, None))
        else:
            raise _unknown(word)
        tokens.expect(";", f"after .{word}")

    def hoist(self, function):
        """Move the targets of branches and calls out of a complete body."""
        rest = []
        for item in function.body:
            if type(item) is Instruction and item.opcode == ".targets":
                name, *targets = (symbol.name for symbol in item.operands)
                function.targets[name] = tuple(targets)
            else:
                rest.append(item)
        function.body[:] = rest

    # Source positions

    def loc(self, text):
        """Make the Loc of a .loc. Its caller is the latest .loc of this function at the place that it names."""
        key, caller_key, function = self.loc_texts.get(text) or self.loc_text(text)
        caller = None
        if caller_key:
            caller = self.latest.get(caller_key)
            if caller is None or self.depths[id(caller)] >= DEEPEST_INLINING:
                caller = self.place(caller_key, None, None)
        loc = self.latest[key] = self.place(key, caller, function)
        return loc

    def place(self, key, caller, function):
        """Return the Loc of these parts. Equal ones are shared, as a body has thousands of them."""
        loc = self.locs.get((key, id(caller), function))
        if loc is None:
            number, line, column = key
            loc = Loc(self.files.get(number, f"file {number}"), line, column, caller, function)
            self.locs[key, id(caller), function] = loc
            self.depths[id(loc)] = 1 + self.depths[id(caller)] if caller else 0
        return loc

    def loc_text(self, text):
        first, *rest = text.split(",")
        key, caller, function = tuple(map(int, first.split())), None, None
        for part in rest:
            word, *values = part.replace("+", " + ").split()
            if word == "inlined_at":
                caller = tuple(map(int, values))
            else:
                function = self.string(values[0], int(values[2]) if len(values) > 1 else 0)
        self.loc_texts[text] = key, caller, function
        return key, caller, function

    def string(self, label, offset):
        """Return the string of .debug_str at a label; None if there is none."""
        if self.strings is None:
            self.strings, self.string_at = bytearray(), {}
            section = STRINGS.search(self.text)
            for name, values in STRING_PART.findall(section[1] if section else ""):
                if name:
                    self.string_at[name] = len(self.strings)
                self.strings += bytes(int(value) & 255 for value in re.findall(r"\d+", values))
        if label not in self.string_at:
            return None
        start = self.string_at[label] + offset
        return bytes(self.strings[start:].partition(b"\0")[0]).decode("utf-8", "replace")


class Initialiser:
    """Parse the value after a variable's '=' : numbers, nested lists, addresses."""

    def __init__(self, parser, tokens, type):
        self.parser, self.tokens, self.type = parser, tokens, type
        self.written, self.relocations, self.masked = bytearray(), [], []

    def read(self, dims, at):
        """Parse a list for these dimensions into the bytes from `at` on; return its number of items."""
        tokens = self.tokens
        if not dims:
            self.element(at)
            return 1
        tokens.expect("{", "before the values of an array")
        stride = SIZES[self.type]
        for dim in dims[1:]:
            stride *= dim
        items = 0
        while not tokens.sign("}"):
            if items:
                tokens.expect(",", "between values")
            if items == dims[0]:
                raise Malformed(f"an array of {items} elements has more values")
            self.read(dims[1:], at + items * stride)
            items += 1
        return items

    def element(self, at):
        tokens, size = self.tokens, SIZES[self.type]
        mask = None
        if tokens.kind != "name" or tokens.value == "WARP_SZ":
            value = tokens.constant()
            if not tokens.sign("("):
                self.put(at, self.encode(value))
                return
            mask = value
        symbol, addend, generic = self.symbol()
        if mask is not None:
            tokens.expect(")", "after a masked address")
            self.masked.append((at, mask, symbol, addend, generic))
        elif size < 4 or self.type[0] == "f":
            raise Malformed(f"the address of '{symbol}' does not fit a .{self.type}")
        else:
            self.relocations.append((at, symbol, addend, generic))
        self.put(at, bytes(size))

    def symbol(self):
        """Parse name, name+4, generic(name) or generic(name)+4."""
        tokens = self.tokens
        name = tokens.name("an address")
        generic = name == "generic" and tokens.sign("(")
        if generic:
            name = tokens.name("a variable's name")
            tokens.expect(")", "after generic(")
        self.parser.unresolved.setdefault(name, self.parser.where)
        addend = tokens.integer("an offset") if tokens.sign("+") else 0
        return name, addend, generic

    def encode(self, value):
        """Return the bytes of a constant as an element; an integer that is too wide is cut, as ptxas does."""
        size = SIZES[self.type]
        if isinstance(value, int) and self.type[0] in "bsu" and self.type[1:].isdecimal():
            return (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        single = isinstance(value, Single)
        if isinstance(value, int) or self.type not in FLOATS or single and size == 8:
            raise Malformed(f"{value} cannot be the initial value of a .{self.type}")
        if single:
            return value.bits.to_bytes(4, "little")
        try:
            return struct.pack(FLOATS[self.type], value)
        except OverflowError:
            return struct.pack("<f", float("-inf" if value < 0 else "inf"))

    def put(self, at, bytes):
        self.written.extend(b"\0" * (at - len(self.written)))
        self.written[at : at + len(bytes)] = bytes

    def content(self, size):
        return bytes(self.written).ljust(size, b"\0")

    def all_relocations(self):
        """Return the relocations; eight single bytes that mask() takes from one address are joined to one."""
        for first in range(0, len(self.masked), 8):
            group = self.masked[first : first + 8]
            at, _, symbol, addend, generic = group[0]
            whole = [(at + byte, 0xFF << 8 * byte, symbol, addend, generic) for byte in range(8)]
            if group != whole or SIZES[self.type] != 1:
                raise Malformed(f"mask() must give the eight bytes of the address of '{symbol}' one after the other")
            self.relocations.append((at, symbol, addend, generic))
        return tuple(sorted(self.relocations))


def parse(text):
    """Parse PTX text into a Module.

    Raises CompileError, with the line of the PTX and its text, if the text is not PTX, is malformed or cut short, or is
    newer than NEWEST.
    """
    if not isinstance(text, str):
        raise CompileError(f"PTX: expected text (str), got {type(text).__name__}")
    parser = Parser(text.rstrip("\0"))
    try:
        return parser.module()
    except Malformed as problem:
        message = str(problem)
    except RecursionError:
        message = "brackets are nested too deeply"
    where = min(parser.where, len(parser.text))
    line = parser.text.count("\n", 0, where) + 1
    start = parser.text.rfind("\n", 0, where) + 1
    quoted = parser.text[start : start + 200].partition("\n")[0].strip(WHITE)[:120]
    quoted = "".join(letter if letter.isprintable() else " " for letter in quoted)
    raise CompileError(f"PTX line {line}: {message}", f"    {quoted}" if quoted else "")
