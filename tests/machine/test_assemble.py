"""The assembler: programs keep the meaning of their PTX, and what the virtual GPU does not have is refused by name.

Random kernels are run twice for one thread: as PTX, by the names of its registers, and as the program that the
assembler made of it, by slots. A slot here is cells of 128 bytes, and a value knows which cells it lies in, so a value
that another one has overwritten is noticed rather than read.
"""

import random
import re

import pytest

from luce_edu.errors import CompileError
from luce_edu.machine import ptx
from luce_edu.machine.assemble import assemble
from luce_edu.machine.ptx import Imm, Label, Not, Pair, Reg, Symbol, Vector

M32, M64 = (1 << 32) - 1, (1 << 64) - 1


def s32(value):
    return value - ((value & 1 << 31) << 1)


# What the core's instructions compute, on unsigned bits.
CORE = {
    "add.b32": lambda a, b: a + b & M32,
    "sub.b32": lambda a, b: a - b & M32,
    "mul.lo.b32": lambda a, b: a * b & M32,
    "mad.lo.b32": lambda a, b, c: a * b + c & M32,
    "and.b32": lambda a, b: a & b,
    "xor.b32": lambda a, b: a ^ b,
    "shl.b32": lambda a, b: a << b & M32 if b < 32 else 0,
    "shr.u32": lambda a, b: a >> b if b < 32 else 0,
    "min.s32": lambda a, b: a if s32(a) < s32(b) else b,
    "mul.wide.u32": lambda a, b: a * b,
    "add.b64": lambda a, b: a + b & M64,
    "xor.b64": lambda a, b: a ^ b,
    "cvt.u32.u64": lambda a: a & M32,
    "cvt.u64.u32": lambda a: a,
    "cvt.s64.s32": lambda a: s32(a) & M64,
    "cvt.u16.u32": lambda a: a & 0xFFFF,
    "mov.b32": lambda a: a,
    "mov.b64": lambda a: a,
    "mov.pred": lambda a: a,
    "setp.lt.s32": lambda a, b: s32(a) < s32(b),
    "setp.eq.b32": lambda a, b: a == b,
    "selp.b32": lambda a, b, p: a if p else b,
    "and.pred": lambda a, b: a and b,
    "or.pred": lambda a, b: a or b,
    "not.pred": lambda a: not a,
    "pack.b32": lambda a, b: a | b << 16,
    "pack.b64.v2": lambda a, b: a | b << 32,
}
CONTROL = ["enter", "bra", "bra.p", "bra.np", "exit", "if.p", "if.np", "end.if", "call", "ret", "st.global.b32",
           "st.global.b64", "st.global.b16", "unpack.b32", "unpack.b64.v2", "ld.param.k.b64", "ld.param.k.b32"]  # fmt: skip
WIDTH_8 = {"mul.wide.u32", "add.b64", "xor.b64", "cvt.u64.u32", "cvt.s64.s32", "mov.b64", "pack.b64.v2"}


def registry(forms):
    """A core that has these instructions, and `.i` and `.ib` of those for which `forms` says so."""
    names = [*CORE, *CONTROL]
    names += [f"{name}.i" for name in CORE if name[:4] not in ("selp", "pack", "cvt.", "not.") and forms(name)]
    names += [f"{name}.ib" for name in ("mad.lo.b32",) if forms(name)]
    return {name: number for number, name in enumerate(names)}


class Overwritten(AssertionError):
    pass


class Arena:
    """Registers of one lane: a value lies in one cell or in two, and is whole only if both still hold it."""

    def __init__(self):
        self.cells = {}

    def put(self, at, value, cells):
        for i in range(cells):
            self.cells[at + 128 * i] = (value, cells, i)

    def get(self, at, cells):
        found = [self.cells.get(at + 128 * i) for i in range(cells)]
        if any(entry is None or entry[1:] != (cells, i) or entry[0] != found[0][0] for i, entry in enumerate(found)):
            raise Overwritten(at)
        return found[0][0]


def run_program(program, names, tid):
    """Execute a program for one thread; return what it stored, by address."""
    arena, memory, code = Arena(), {}, program.code
    predicates = {}
    for special, at in program.specials:
        arena.put(at, {0: tid}.get(special, 7), 1)
    image = program.image

    def read(offset, cells):
        start = offset - program.image_at
        if 0 <= start < len(image):
            return int.from_bytes(image[start : start + 4 * cells], "little")
        return arena.get(offset, cells)

    def truth(offset):
        start = offset - program.image_at
        if 0 <= start < len(image):
            return image[start] != 0
        if offset not in predicates:
            raise Overwritten(offset)
        return predicates[offset]

    pc, steps = 0, 0
    while True:
        steps += 1
        assert steps < 20000
        op, d, a, b, c, imm = code[pc].tolist()
        name = names[op]
        base = re.sub(r"\.ib?$", "", name)
        if name == "enter":
            assert program.blocks[imm][0] == pc
        elif name == "exit":
            return memory
        elif name == "bra":
            pc += imm
            continue
        elif name in ("bra.p", "bra.np"):
            if truth(a) == (name == "bra.p"):
                pc += imm
                continue
        elif name in ("if.p", "if.np"):
            if truth(a) != (name == "if.p"):
                pc += imm
                continue
        elif name == "end.if":
            pass
        elif name == "call":
            arena.put(d, pc + 1, 1)
            pc += imm
            continue
        elif name == "ret":
            pc = arena.get(a, 1)
            continue
        elif name.startswith("st.global"):
            size = int(name[-2:]) // 8
            memory[read(a, 2) + imm] = read(d, 2 if size == 8 else 1) & ((1 << 8 * size) - 1)
            pc += 1
        elif name.startswith("ld.param"):
            arena.put(d, 0x1000 + imm, 2 if name.endswith("64") else 1)
            pc += 1
        elif base == "unpack.b32":
            value = read(a, 1)
            for where, part in ((d, value & 0xFFFF), (b, value >> 16)):
                if where >= 0:
                    arena.put(where, part, 1)
        elif base == "unpack.b64.v2":
            value = read(a, 2)
            for where, part in ((d, value & M32), (b, value >> 32)):
                if where >= 0:
                    arena.put(where, part, 1)
        else:
            kinds = {"mul.wide.u32": (1, 1), "cvt.u32.u64": (2,), "add.b64": (2, 2), "xor.b64": (2, 2), "mov.b64": (2,)}
            count = CORE[base].__code__.co_argcount
            sizes = kinds.get(base, (1,) * count)
            places = [a, b, c]
            if name.endswith(".ib"):
                places = [a, None, c]
            elif name.endswith(".i"):
                places[count - 1] = None
            values = []
            for index, size in enumerate(sizes):
                where = places[index]
                if base.endswith(".pred") or base == "selp.b32" and index == 2:
                    values.append(bool(imm) if where is None else truth(where))
                elif where is None:
                    values.append(imm & (M64 if size == 2 else M32))
                else:
                    values.append(read(where, size))
            result = CORE[base](*values)
            if base.endswith(".pred") or base.startswith("setp"):
                predicates[d] = bool(result)
            else:
                arena.put(d, result, 2 if base in WIDTH_8 else 1)
        pc += 1


# ---- The same as PTX

MEANING = {
    "add.s32": "add.b32", "sub.s32": "sub.b32", "mul.lo.s32": "mul.lo.b32", "mad.lo.s32": "mad.lo.b32",
    "and.b32": "and.b32", "xor.b32": "xor.b32", "shl.b32": "shl.b32", "shr.u32": "shr.u32", "min.s32": "min.s32",
    "mul.wide.u32": "mul.wide.u32", "add.s64": "add.b64", "xor.b64": "xor.b64", "cvt.u32.u64": "cvt.u32.u64",
    "cvt.u64.u32": "cvt.u64.u32", "cvt.s64.s32": "cvt.s64.s32", "cvt.u16.u32": "cvt.u16.u32", "mov.b32": "mov.b32",
    "mov.u32": "mov.b32", "mov.u64": "mov.b64", "mov.b16": "mov.b32", "cvt.u32.u16": "mov.b32", "mov.pred": "mov.pred",
    "selp.b32": "selp.b32", "and.pred": "and.pred", "not.pred": "not.pred", "setp.lt.s32": "setp.lt.s32",
    "setp.eq.s32": "setp.eq.b32", "cvta.to.global.u64": "mov.b64",
}  # fmt: skip


def run_ptx(module, kernel, tid):
    """Execute the PTX of a kernel for one thread; return what it stored, by address."""
    memory = {}

    def call(function, arguments):
        registers, scope = {}, dict(arguments)
        labels = {item.name: i for i, item in enumerate(function.body) if type(item) is Label}
        pc = 0

        def value(operand):
            if type(operand) is Imm:
                return operand.bits
            if type(operand) is Not:
                return not registers[operand.reg.name]
            if type(operand) is ptx.Special:
                return tid if operand.name == "%tid.x" else 7
            return registers[operand.name]

        steps = 0
        while pc < len(function.body):
            steps += 1
            assert steps < 20000
            ins = function.body[pc]
            pc += 1
            if type(ins) is Label:
                continue
            if ins.predicate is not None and registers[ins.predicate] == ins.negated:
                continue
            name, operands = ".".join((ins.opcode, *ins.modifiers)), ins.operands
            if ins.opcode == "bra":
                pc = labels[operands[0].name]
            elif ins.opcode in ("ret", "exit"):
                break
            elif name.startswith("ld.param"):
                address = operands[1]
                if function.entry and address.base.name not in scope:
                    registers[operands[0].name] = 0x1000
                else:
                    registers[operands[0].name] = scope[address.base.name, address.offset]
            elif name.startswith("st.param"):
                scope[operands[0].base.name, operands[0].offset] = value(operands[1])
            elif ins.opcode == "call":
                results, callee, passed, _ = operands
                inner = module.functions[callee.name]
                given = {
                    (formal.name, offset): stored
                    for formal, actual in zip(inner.params, passed.items, strict=True)
                    for (where, offset), stored in scope.items()
                    if where == actual.name
                }
                left = call(inner, given)
                for formal, actual in zip(inner.returns, results.items, strict=True):
                    scope.update({(actual.name, at): v for (where, at), v in left.items() if where == formal.name})
            elif ins.opcode == "st":
                size = int(name[-2:]) // 8
                memory[value(operands[0].base) + operands[0].offset] = value(operands[1]) & ((1 << 8 * size) - 1)
            elif ins.opcode == "setp":
                words = list(ins.modifiers)
                combine = words.pop(1) if words[1] in ("and", "or") else None
                test = CORE[MEANING[".".join(["setp", *words])]](
                    *(value(x) & M32 for x in operands[1:3])
                )
                other = value(operands[3]) if combine else None
                pair = operands[0] if type(operands[0]) is Pair else Pair(operands[0], Symbol("_"))
                for result, outcome in ((pair.first, test), (pair.second, not test)):
                    if type(result) is Reg:
                        if combine:
                            outcome = CORE[f"{combine}.pred"](outcome, other)
                        registers[result.name] = bool(outcome)
            elif type(operands[0]) is Vector:
                whole, bits = value(operands[1]), 16 if name == "mov.b32" else 32
                for index, item in enumerate(operands[0].items):
                    if type(item) is Reg:
                        registers[item.name] = whole >> bits * index & ((1 << bits) - 1)
            elif type(operands[1]) is Vector:
                low, high = (value(item) for item in operands[1].items)
                registers[operands[0].name] = low | high << (16 if name == "mov.b32" else 32)
            else:
                core = MEANING[name]
                wide = core in WIDTH_8 and core not in ("mul.wide.u32", "cvt.u64.u32", "cvt.s64.s32")
                sources = [value(x) for x in operands[1:]]
                if not core.endswith(".pred"):
                    sources = [v if type(v) is bool else v & (M64 if wide or core == "cvt.u32.u64" else M32) for v in sources]
                registers[operands[0].name] = CORE[core](*sources)
        return scope

    call(module.functions[kernel], {})
    return memory


# ---- Random kernels


class Writer:
    """A random kernel: arithmetic on a few registers that are written again and again, branches, loops, guards."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.lines, self.labels, self.fresh = [], 0, 0
        self.words = [f"%r{i}" for i in range(8)]
        self.doubles = [f"%rd{i}" for i in range(4)]
        self.halves = [f"%rs{i}" for i in range(2)]
        self.predicates = [f"%p{i}" for i in range(3)]
        self.counters = [f"%c{i}" for i in range(4)]

    def word(self, constants=True):
        if constants and self.random.random() < 0.25:
            return str(self.random.choice([0, 1, 5, 31, -1, 65536, 123456789]))
        return self.random.choice(self.words)

    def once(self, kind):
        """A register that is written once, here, and may be read in the statements that follow at once."""
        self.fresh += 1
        return f"%{kind}{self.fresh}"

    def statement(self, depth):
        r, pick = self.random, self.random.choice
        kind = r.random()
        guard = f"@{pick(['', '!'])}{pick(self.predicates)} " if r.random() < 0.15 else ""
        if kind < 0.30:
            op = pick(["add.s32", "sub.s32", "mul.lo.s32", "and.b32", "xor.b32", "shl.b32", "shr.u32", "min.s32"])
            self.lines.append(f"{guard}{op} {pick(self.words)}, {self.word()}, {self.word()};")
        elif kind < 0.36:
            self.lines.append(f"{guard}mad.lo.s32 {pick(self.words)}, {self.word()}, {self.word()}, {self.word()};")
        elif kind < 0.46:
            self.lines.append(f"{guard}mov.u32 {pick(self.words)}, {pick([self.word(), '%tid.x'])};")
        elif kind < 0.52:
            a, b = self.once("x"), self.once("x")
            self.lines += [
                f"mov.b32 {a}, {pick(self.words)};", f"mov.b32 {b}, {a};",
                f"add.s32 {pick(self.words)}, {a}, {self.word()};", f"xor.b32 {pick(self.words)}, {b}, {a};",
            ]  # fmt: skip
        elif kind < 0.60:
            d, a, b = (pick(self.doubles) for _ in range(3))
            self.lines.append(pick([
                f"{guard}mul.wide.u32 {d}, {self.word()}, {pick(self.words)};", f"{guard}add.s64 {d}, {a}, {b};",
                f"{guard}xor.b64 {d}, {a}, 77;", f"{guard}mov.u64 {d}, {a};", f"cvt.u64.u32 {d}, {pick(self.words)};",
                f"cvt.s64.s32 {d}, {pick(self.words)};", f"cvt.u32.u64 {pick(self.words)}, {a};",
                f"mov.b64 {d}, {{{pick(self.words)}, {pick(self.words)}}};",
            ]))  # fmt: skip
        elif kind < 0.66:
            a, b = pick(self.halves), pick(self.halves)
            x, y = self.random.sample(self.words, 2)
            self.lines.append(pick([
                f"cvt.u16.u32 {a}, {pick(self.words)};", f"cvt.u32.u16 {pick(self.words)}, {a};", f"mov.b16 {a}, {b};",
                f"mov.b32 {pick(self.words)}, {{{a}, {b}}};", f"mov.b32 {{{self.halves[0]}, {self.halves[1]}}}, {pick(self.words)};",
                f"mov.b32 {{{a}, _}}, {pick(self.words)};", f"mov.b64 {{{x}, {y}}}, {pick(self.doubles)};",
            ]))  # fmt: skip
        elif kind < 0.76:
            p, q = r.sample(self.predicates, 2)
            comparison = pick(["lt", "eq"])
            self.lines.append(pick([
                f"{guard}setp.{comparison}.s32 {p}, {self.word()}, {self.word()};",
                f"setp.{comparison}.s32 {p}|{q}, {self.word()}, {self.word()};",
                f"setp.{comparison}.and.s32 {p}|{q}, {self.word()}, {self.word()}, !{pick(self.predicates)};",
                f"setp.{comparison}.or.s32 {p}|{q}, {self.word()}, {self.word()}, {pick(self.predicates)};",
                f"and.pred {p}, {q}, {pick(self.predicates)};", f"not.pred {p}, {q};", f"{guard}mov.pred {p}, {q};",
            ]))  # fmt: skip
        elif kind < 0.80:
            self.lines.append(f"{guard}selp.b32 {pick(self.words)}, {self.word()}, {self.word()}, {pick(self.predicates)};")
        elif depth > 0:
            self.nest(depth - 1)

    def body(self, depth):
        for _ in range(self.random.randrange(1, 7)):
            self.statement(depth)

    def nest(self, depth):
        self.labels += 1
        at, choice = self.labels, self.random.random()
        guard = f"@{self.random.choice(['', '!'])}{self.random.choice(self.predicates)}"
        if choice < 0.35:  # if
            self.lines.append(f"{guard} bra $end{at};")
            self.body(depth)
            self.lines.append(f"$end{at}:")
        elif choice < 0.65:  # if, else
            self.lines.append(f"{guard} bra $else{at};")
            self.body(depth)
            self.lines += [f"bra.uni $end{at};", f"$else{at}:"]
            self.body(depth)
            self.lines.append(f"$end{at}:")
        else:  # a loop with a counter of its own, and perhaps a way out in the middle
            counter, p = self.counters[depth], "%loop"
            self.lines += [f"mov.u32 {counter}, {self.random.randrange(1, 4)};", f"$loop{at}:"]
            self.body(depth)
            if self.random.random() < 0.5:
                self.lines.append(f"{guard} bra $out{at};")
                self.body(depth)
            if self.random.random() < 0.1:
                self.lines.append(f"{guard} exit;")
            self.lines += [
                f"add.s32 {counter}, {counter}, -1;", f"setp.eq.s32 {p}, {counter}, 0;", f"@!{p} bra $loop{at};",
                f"$out{at}:",
            ]  # fmt: skip

    def text(self):
        begin = [f"mov.u32 {x}, {i * 37 + 1};" for i, x in enumerate(self.words)]
        begin += [f"mov.u64 {x}, {i + 5};" for i, x in enumerate(self.doubles)]
        begin += [f"cvt.u16.u32 {x}, %r1;" for x in self.halves]
        begin += [f"setp.lt.s32 {x}, %r{i}, %tid.x;" for i, x in enumerate(self.predicates)]
        begin += ["mov.u32 %r0, %tid.x;", "ld.param.u64 %out, [to];", "cvta.to.global.u64 %out, %out;"]
        for _ in range(12):
            self.statement(3)
        end = [f"selp.b32 %x0, 1, 0, {p};\nst.global.u32 [%out+{512 + 4 * i}], %x0;" for i, p in enumerate(self.predicates)]
        end += [f"st.global.u32 [%out+{4 * i}], {x};" for i, x in enumerate(self.words)]
        end += [f"st.global.u64 [%out+{256 + 8 * i}], {x};" for i, x in enumerate(self.doubles)]
        end += [f"st.global.u16 [%out+{400 + 8 * i}], {x};" for i, x in enumerate(self.halves)]
        return f"""
        .version 8.0
        .target sm_80
        .address_size 64
        .visible .entry k(.param .u64 to)
        {{
        .reg .b32 %r<8>; .reg .b64 %rd<4>; .reg .b16 %rs<2>; .reg .pred %p<3>; .reg .pred %loop; .reg .b32 %c<4>;
        .reg .b32 %x<{self.fresh + 1}>; .reg .b64 %out;
        """ + "\n".join([*begin, *self.lines, *end, "ret;", "}"])


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_programs_keep_the_meaning_of_random_kernels(first):
    for seed in range(first, first + 20):
        text = Writer(seed).text()
        module = ptx.parse(text)
        forms = random.Random(seed)
        names = registry(lambda name: forms.random() < 0.6)  # noqa: B023
        program = assemble(module, "k", names)
        for tid in (0, 3, 100):
            stored = run_program(program, list(names), tid)
            expected = run_ptx(module, "k", tid)
            assert stored == expected, (seed, tid)
