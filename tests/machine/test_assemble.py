"""The assembler: programs keep the meaning of their PTX, and what the virtual GPU does not have is refused by name.

Random kernels are run twice for one thread: as PTX, by the names of its registers, and as the program that the
assembler made of it, by slots. A slot here is cells of 128 bytes, and a value knows which cells it lies in, so a value
that another one has overwritten is noticed rather than read.
"""

import importlib
import random
import re
from pathlib import Path

import pytest

from luce_edu.errors import CompileError
from luce_edu.machine import ptx
from luce_edu.machine.assemble import assemble
from luce_edu.machine.ptx import Imm, Label, Not, Pair, Reg, Symbol, Vector

SAMPLES = Path(__file__).parent / "samples"

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
    # Any function of three numbers shows whether the right ones are multiplied, so integers stand in for floats.
    "fma.f32": lambda a, b, c: a * b + c & M32,
    "fused.bf16lo.fma.f32": lambda a, b, c: (a << 16) * b + c & M32,
    "fused.bf16hi.fma.f32": lambda a, b, c: (a & 0xFFFF0000) * b + c & M32,
}
CONTROL = ["enter", "bra", "bra.p", "bra.np", "exit", "if.p", "if.np", "end.if", "call", "ret", "st.global.b32",
           "st.global.b64", "ld.global.b32", "ld.global.k.b32", "fused.dot8.f32", "fused.dot8.f32.z",
           "st.global.b16", "unpack.b32", "unpack.b64.v2", "ld.param.k.b64", "ld.param.k.b32"]  # fmt: skip
WIDTH_8 = {"mul.wide.u32", "add.b64", "xor.b64", "cvt.u64.u32", "cvt.s64.s32", "mov.b64", "pack.b64.v2"}


def registry(forms):
    """A core that has these instructions, and `.i` and `.ib` of those for which `forms` says so."""
    names = [*CORE, *CONTROL]
    names += [f"{name}.i" for name in CORE if name[:4] not in ("selp", "pack", "cvt.", "not.", "fuse") and forms(name)]
    names += [f"{name}.ib" for name in ("mad.lo.b32", "fma.f32") if forms(name)]
    return {name: number for number, name in enumerate(names)}


def loaded(address):
    """What memory holds: something else at every address."""
    return (address & M64) * 2654435761 >> 7 & M32


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
        elif name.startswith("ld.global"):
            arena.put(d, loaded((0 if ".k" in name else read(a, 2)) + imm), 1)
            pc += 1
        elif name.startswith("fused.dot8"):
            weights, xs = code[pc + 1].tolist()[1:5], [x for i in (2, 3) for x in code[pc + i].tolist()[1:5]]
            total = 0 if name.endswith(".z") else read(a, 1)
            for index, x in enumerate(xs):
                half = "hi" if index % 2 else "lo"
                total = CORE[f"fused.bf16{half}.fma.f32"](read(weights[index // 2], 1), read(x, 1), total)
            arena.put(d, total, 1)
            pc += 3
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
    "fma.rn.f32": "fma.f32",
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
                if function.entry and (address.base.name, address.offset) not in scope:
                    registers[operands[0].name] = 0x1000
                else:
                    registers[operands[0].name] = scope[address.base.name, address.offset]
            elif ins.opcode == "ld":
                registers[operands[0].name] = loaded(value(operands[1].base) + operands[1].offset)
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
                test = CORE[MEANING[".".join(["setp", *words])]](*(value(x) & M32 for x in operands[1:3]))
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
                    sources = [
                        v if type(v) is bool else v & (M64 if wide or core == "cvt.u32.u64" else M32) for v in sources
                    ]
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
                f"mov.b32 {pick(self.words)}, {{{a}, {b}}};",
                f"mov.b32 {{{self.halves[0]}, {self.halves[1]}}}, {pick(self.words)};",
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
        elif kind < 0.79:
            self.products()
        elif kind < 0.81:
            at, d = self.once("y"), pick(self.words)
            base = pick(self.doubles)
            self.lines.append(f"add.s64 {at}, {base}, {pick([8, 512, -16])};")
            if r.random() < 0.3:
                self.lines.append(f"add.s64 {base}, {base}, 24;")
            if r.random() < 0.3:
                self.lines.append(f"add.s64 {at}, {at}, 4096;")
            self.lines.append(f"{guard}ld.global.u32 {d}, [{at}+{pick([0, 4])}];")
        elif kind < 0.84:
            self.lines.append(
                f"{guard}selp.b32 {pick(self.words)}, {self.word()}, {self.word()}, {pick(self.predicates)};"
            )
        elif depth > 0:
            self.nest(depth - 1)

    def products(self):
        """A sum of packed products such as a matrix-vector kernel has, of any length and sometimes with a flaw."""
        r, pick = self.random, self.random.choice
        total, zero = pick(self.words), r.random() < 0.4
        for index in range(r.choice([1, 3, 8, 8, 9, 16, 17])):
            if index % 2 == 0:
                packed = pick(self.words)
                if r.random() < 0.1:
                    self.lines.append(f"mov.u32 {packed}, %tid.x;")
            half, final = self.once("x"), self.once("x") if r.random() < 0.97 else pick(self.words)
            self.lines.append(f"{['shl.b32', 'and.b32'][index % 2]} {half}, {packed}, {['16', '-65536'][index % 2]};")
            if r.random() < 0.03:
                self.lines.append(f"xor.b32 {packed}, {packed}, 1;")
            before = "0f00000000" if zero and index == 0 else total
            x = pick(self.words)
            factors = f"{half}, {x}" if r.random() < 0.8 else f"{x}, {half}"
            self.lines.append(f"fma.rn.f32 {final}, {factors}, {before};")
            total = final
        self.lines.append(f"mov.b32 {pick(self.words)}, {total};")

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
            counter, p, kept = self.counters[depth], "%loop", self.once("x")  # kept: read at the top of each turn
            self.lines += [
                f"mov.u32 {counter}, {self.random.randrange(1, 4)};", f"xor.b32 {kept}, {self.word()}, {self.word()};",
                f"$loop{at}:", f"add.s32 {self.random.choice(self.words)}, {kept}, {self.word()};",
            ]  # fmt: skip
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
        end = [
            f"selp.b32 %x0, 1, 0, {p};\nst.global.u32 [%out+{512 + 4 * i}], %x0;" for i, p in enumerate(self.predicates)
        ]
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
        .reg .b32 %x<{self.fresh + 1}>; .reg .b64 %y<{self.fresh + 1}>; .reg .b64 %out;
        """ + "\n".join([*begin, *self.lines, *end, "ret;", "}"])


def check(seed):
    """Whether the program of this random kernel stores what its PTX does."""
    module = ptx.parse(Writer(seed).text())
    forms = random.Random(seed)
    names = registry(lambda name: forms.random() < 0.6)
    program = assemble(module, "k", names)
    return all(run_program(program, list(names), tid) == run_ptx(module, "k", tid) for tid in (0, 3, 100))


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_programs_keep_the_meaning_of_random_kernels(first):
    assert [seed for seed in range(first, first + 20) if not check(seed)] == []


def caught():
    """How many of 40 random kernels go wrong."""
    wrong = 0
    for seed in range(40):
        try:
            wrong += not check(seed)
        except Overwritten:
            wrong += 1
    return wrong


def test_an_assembler_that_forgets_loops_is_noticed(monkeypatch):
    module = importlib.import_module("luce_edu.machine.assemble")
    real = module.find_intervals

    def forgetful(blocks, *rest):
        for block in blocks:
            block.live_in = block.live_out = 0
        return real(blocks, *rest)

    monkeypatch.setattr(module, "find_intervals", forgetful)
    assert caught() > 3


def test_an_assembler_that_joins_registers_which_live_side_by_side_is_noticed(monkeypatch):
    module = importlib.import_module("luce_edu.machine.assemble")
    monkeypatch.setattr(
        module,
        "coalesce",
        lambda blocks, bit, moves, classes: {r: op.defs[0] for op in moves for r in (*op.defs, *op.uses)},
    )
    assert caught() > 3


def test_fused_instructions_appear_in_random_kernels():
    found = set()
    for seed in range(40):
        names = list(registry(lambda name: True))
        program = assemble(ptx.parse(Writer(seed).text()), "k", {name: i for i, name in enumerate(names)})
        found |= {names[op] for op in program.code["op"].tolist() if op >= 0}
    assert {"fused.bf16lo.fma.f32", "fused.bf16hi.fma.f32", "fused.dot8.f32", "fused.dot8.f32.z"} <= found


# ---- Calls, order of blocks, what a program tells


HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"


def everything(name):
    """A core that has every instruction."""
    return len(name)


def kernel(body, head=HEAD, params="", before=""):
    return f"{head}{before}\n.visible .entry k({params})\n{{\n{body}\n}}\n"


def assembled(text, core=everything):
    module = ptx.parse(text)
    return assemble(module, "k", core)


CALLS = (
    HEAD
    + """
.func (.param .b32 out) twice(.param .b32 x)
{
    .reg .b32 %r<4>; .reg .pred %p;
    ld.param.b32 %r0, [x];
    setp.lt.s32 %p, %r0, 5;
    @%p bra $small;
    add.s32 %r1, %r0, %r0;
    st.param.b32 [out], %r1;
    ret;
$small:
    mov.u32 %r2, 77;
    st.param.b32 [out], %r2;
    ret;
}
.func (.param .b32 out) both(.param .b32 x, .param .b32 y)
{
    .reg .b32 %r<6>;
    ld.param.b32 %r0, [x];
    ld.param.b32 %r1, [y];
    { .param .b32 a; .param .b32 r; st.param.b32 [a], %r1; call.uni (r), twice, (a); ld.param.b32 %r2, [r]; }
    { .param .b32 a; .param .b32 r; st.param.b32 [a], %r0; call.uni (r), twice, (a); ld.param.b32 %r3, [r]; }
    xor.b32 %r4, %r2, %r3;
    mad.lo.s32 %r5, %r0, %r1, %r4;
    st.param.b32 [out], %r5;
    ret;
}
.visible .entry k(.param .u64 to)
{
    .reg .b32 %r<9>; .reg .b64 %rd<2>; .reg .pred %p;
    ld.param.u64 %rd0, [to];
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, 3;
    mov.u32 %r6, 0;
$again:
    { .param .b32 a; .param .b32 b; .param .b32 r; st.param.b32 [a], %r0; st.param.b32 [b], %r1;
      call.uni (r), both, (a, b); ld.param.b32 %r2, [r]; }
    { .param .b32 a; .param .b32 r; st.param.b32 [a], %r2; call.uni (r), twice, (a); ld.param.b32 %r3, [r]; }
    add.s32 %r6, %r6, %r3;
    add.s32 %r1, %r1, 1;
    setp.lt.s32 %p, %r1, 8;
    @%p bra $again;
    st.global.u32 [%rd0], %r6;
    st.global.u32 [%rd0+4], %r2;
    ret;
}
"""
)


@pytest.mark.parametrize("tid", [0, 4, 5, 90])
def test_calls_keep_their_meaning_and_their_registers(tid):
    module = ptx.parse(CALLS)
    names = registry(lambda name: True)
    program = assemble(module, "k", names)
    assert run_program(program, list(names), tid) == run_ptx(module, "k", tid)


REGISTER_CALL = (
    HEAD
    + """
.func (.reg .b32 out) least(.reg .b32 x, .reg .b32 y)
{
    .reg .pred %p;
    mov.u32 out, x;
    setp.lt.s32 %p, y, x;
    @%p mov.u32 out, y;
    ret;
}
.func (.param .b32 out) clipped(.param .b32 x)
{
    .reg .b32 %r<3>; .reg .pred %p;
    ld.param.b32 %r0, [x];
    st.param.b32 [out], %r0;
    setp.lt.s32 %p, %r0, 7;
    @!%p st.param.b32 [out], 7;
    ret;
}
.visible .entry k(.param .u64 to)
{
    .reg .b32 %r<9>; .reg .b64 %rd<2>;
    ld.param.u64 %rd0, [to];
    mov.u32 %r0, %tid.x;
    call.uni (%r1), least, (%r0, 40);
    { .param .b32 a; .param .b32 r; st.param.b32 [a], %r0; call.uni (r), clipped, (a); ld.param.b32 %r2, [r]; }
    call.uni (%r3), least, (%r2, %r1);
    st.global.u32 [%rd0], %r1;
    st.global.u32 [%rd0+4], %r2;
    st.global.u32 [%rd0+8], %r3;
    ret;
}
"""
)


@pytest.mark.parametrize("tid", [0, 7, 39, 100])
def test_parameters_in_registers_and_stores_under_a_predicate(tid):
    names = registry(lambda name: True)
    program = assemble(ptx.parse(REGISTER_CALL), "k", names)
    stored = list(run_program(program, list(names), tid).values())
    assert stored == [min(tid, 40), min(tid, 7), min(tid, 7)]


def test_functions_lie_before_their_callers():
    names = list(registry(lambda name: True))
    program = assemble(ptx.parse(CALLS), "k", {name: i for i, name in enumerate(names)})
    order = list(dict.fromkeys(program.functions[s] for s in program.sources.tolist() if s >= 0))
    assert order == ["twice", "both", "k"]


def test_recursion_is_refused_with_its_chain():
    text = (
        HEAD
        + """
    .func b();
    .func a() { call.uni b, (); ret; }
    .func b() { call.uni a, (); ret; }
    .visible .entry k() { call.uni a, (); ret; }"""
    )
    with pytest.raises(CompileError, match="a calls b calls a"):
        assembled(text)


def test_what_follows_a_loop_lies_behind_all_of_it():
    """Also where one way through the body leads out and another does not: who left would run ahead of the rest."""
    program = assembled(
        kernel("""
    .reg .pred %p<3>; .reg .b32 %r<3>; .reg .b64 %rd0;
    mov.u32 %r0, %tid.x; setp.eq.s32 %p0, %r0, 1; setp.eq.s32 %p1, %r0, 2;
    $head: add.s32 %r0, %r0, 1;
    @%p0 bra $a;
    add.s32 %r1, %r0, 2;
    @%p1 bra $out;
    bra $head;
    $a: add.s32 %r1, %r0, 3;
    bra $head;
    $out: st.global.u32 [%rd0], %r1;
    ret;""")
    )
    line = {program.instructions[s].opcode: i for i, s in enumerate(program.sources.tolist()) if s >= 0}
    last_add = max(
        i for i, s in enumerate(program.sources.tolist()) if s >= 0 and program.instructions[s].opcode == "add"
    )
    assert line["st"] > last_add


def test_renaming_moves_and_parameters_cost_nothing():
    names = list(registry(lambda name: True))
    text = kernel("""
    .reg .b32 %r<6>; .reg .f32 %f<3>; .reg .b64 %rd<3>;
    ld.param.u64 %rd0, [to];
    cvta.to.global.u64 %rd1, %rd0;
    mov.u32 %r0, %tid.x;
    mov.b32 %f0, %r0;
    mov.f32 %f1, %f0;
    mov.b32 %r1, %f1;
    mov.u32 %r2, 5;
    add.s32 %r3, %r2, %r1;
    st.global.u32 [%rd1], %r3;
    ret;""", params=".param .u64 to")  # fmt: skip
    program = assemble(ptx.parse(text), "k", {name: i for i, name in enumerate(names)})
    ops = [names[op] for op in program.code["op"].tolist() if op >= 0]
    assert ops == ["enter", "ld.param.k.b64", "add.b32.i", "st.global.b32", "exit"]
    assert program.blocks.tolist() == [[0, 0, 10]]  # and yet all ten are counted


def test_a_phi_of_a_loop_costs_no_move():
    names = list(registry(lambda name: True))
    text = kernel("""
    .reg .b32 %r<9>; .reg .b64 %rd<3>; .reg .pred %p;
    ld.param.u64 %rd0, [to];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %tid.x;
    $loop:
    mad.lo.s32 %r3, %r1, %r2, 7;
    add.s32 %r4, %r2, 1;
    setp.lt.s32 %p, %r4, 100;
    mov.u32 %r1, %r3;
    mov.u32 %r2, %r4;
    @%p bra $loop;
    st.global.u32 [%rd0], %r3;
    ret;""", params=".param .u64 to")  # fmt: skip
    program = assemble(ptx.parse(text), "k", {name: i for i, name in enumerate(names)})
    ops = [names[op] for op in program.code["op"].tolist() if op >= 0]
    assert ops.count("mov.b32") == 2  # before the loop


def test_shared_memory_is_laid_out_and_dynamic_memory_lies_behind_it():
    program = assembled(kernel("""
    .shared .align 4 .b8 a[10];
    .shared .align 16 .b8 b[32];
    .reg .b32 %r<4>;
    mov.u32 %r0, a; mov.u32 %r1, b; mov.u32 %r2, d;
    st.shared.u32 [%r0], %r1; st.shared.u32 [%r1+4], %r2;
    ret;""", before=".extern .shared .align 16 .b8 d[];"))  # fmt: skip
    assert program.shared == {"a": 0, "b": 16}
    assert program.shared_bytes == 48


def test_module_variables_are_relocations():
    program = assembled(kernel("""
    .reg .b32 %r<4>; .reg .b64 %rd;
    ld.global.u32 %r0, [v+4]; mov.u64 %rd, v; st.global.u32 [%rd+8], %r0;
    ret;""", before=".global .align 4 .b8 v[64];"))  # fmt: skip
    assert [(symbol, addend) for _, symbol, addend in program.relocations] == [("v", 4), ("v", 0)]
    assert program.code["imm"][program.sites[0]] == 4


def test_every_memory_instruction_is_a_site():
    program = assembled(kernel("""
    .reg .b32 %r<4>; .reg .b64 %rd;
    ld.global.v2.u32 {%r0, %r1}, [%rd]; atom.global.add.u32 %r2, [%rd], %r0; red.shared.add.u32 [%r1], %r2;
    st.shared.u32 [%r1], %r2;
    ret;"""))  # fmt: skip
    assert program.code["c"][program.sites].tolist() == [0, 1, 2, 3]
    assert program.least_wavefronts == [2, 1, 1, 1]


# ---- What is refused

REFUSED = {
    "unknown opcode": "frobnicate.u32 %r0, %r1;",
    "unknown modifier": "add.rni.s32 %r0, %r1, %r2;",
    "unknown type": "add.b32 %r0, %r1, %r2;",
    "too few operands": "add.s32 %r0, %r1;",
    "too many operands": "add.s32 %r0, %r1, %r2, %r2;",
    "a register that is too wide": "add.s32 %r0, %rd1, %r2;",
    "a register that is too narrow": "add.s32 %r0, %rs1, %r2;",
    "a float register in integer arithmetic": "add.s32 %r0, %f1, %r2;",
    "an integer register in float arithmetic": "add.f32 %f0, %u1, %f2;",
    "a predicate as a number": "add.s32 %r0, %p1, %r2;",
    "a number as a predicate": "selp.b32 %r0, %r1, %r2, %r3;",
    "a guard that is no predicate": "@%r1 add.s32 %r0, %r1, %r2;",
    "an integer constant in float arithmetic": "add.f32 %f0, %f1, 1;",
    "a float constant in integer arithmetic": "add.s32 %r0, %r1, 0f3F800000;",
    "a constant as a result": "add.s32 5, %r1, %r2;",
    "a comparison that the type does not have": "setp.lt.b32 %p0, %r1, %r2;",
    "a float comparison of integers": "setp.ltu.s32 %p0, %r1, %r2;",
    "a load into a predicate": "ld.global.u32 %p0, [%rd0];",
    "a load into a narrower register": "ld.global.u32 %rs0, [%rd0];",
    "a vector with a register missing": "ld.global.v4.u32 {%r0, %r1, %r2}, [%rd0];",
    "an address in a float register": "ld.global.u32 %r0, [%f0];",
    "an unknown space": "ld.texture.u32 %r0, [%rd0];",
    "a load of an unknown type": "ld.global.tf32 %r0, [%rd0];",
    "an atomic without an operation": "atom.global.u32 %r0, [%rd0], %r1;",
    "an unknown scope": "atom.warp.global.add.u32 %r0, [%rd0], %r1;",
    "an unknown special register": "mov.u32 %r0, %envreg3;",
    "textures": "tex.1d.v4.f32.s32 {%r0, %r1, %r2, %r3}, [%rd0, {%r4}];",
    "wmma": "wmma.load.a.sync.aligned.m16n16k16.row.f16 {%r0, %r1}, [%rd0];",
    "an mma of an unknown shape": "mma.sync.aligned.m16n8k64.row.col.f32.tf32.tf32.f32 {%f0}, {%r0}, {%r1}, {%f1};",
    "an mma with too few registers": (
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f0, %f1}, {%r0, %r1, %r2, %r3}, {%r0, %r1}, {%f0, %f1};"
    ),
    "a function from elsewhere": "call.uni malloc, ();",
    "a call through a register": (
        "call (%r0), %rd0, (%r1), proto;\nproto: .callprototype (.param .b32 _) _ (.param .b32 _);"
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_known_is_refused_with_its_line(what):
    registers = (
        ".reg .b32 %r<9>; .reg .u32 %u<3>; .reg .b64 %rd<3>; .reg .b16 %rs<3>; .reg .f32 %f<4>; .reg .pred %p<3>;\n"
    )
    text = kernel(registers + REFUSED[what] + "\nret;", before=".extern .func malloc();")
    with pytest.raises(CompileError, match="line 8 of the PTX"):
        assembled(text)


NEEDS = {
    "sm_80": (
        "cp.async.ca.shared.global [%r0], [%rd0], 16;", "redux.sync.add.s32 %r0, %r1, -1;",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, "
        "{%f0, %f1, %f2, %f3};", "cvt.rna.tf32.f32 %r0, %f0;", "cvt.rn.bf16.f32 %h, %f0;",
    ),
    "sm_90": (
        "griddepcontrol.wait;", "barrier.cluster.arrive;", "mapa.shared::cluster.u32 %r0, %r1, %r2;",
        "elect.sync %r0|%p0, -1;", "cp.async.bulk.commit_group;", "fence.acq_rel.cluster;",
        "cvt.rn.bf16.s32 %h, %r0;",
    ),
    "sm_70": ("nanosleep.u32 %r0;", "match.any.sync.b32 %r0, %r1, -1;", "ld.acquire.gpu.global.u32 %r0, [%rd0];"),
}  # fmt: skip


@pytest.mark.parametrize(("needed", "statement"), [(arch, s) for arch, all_ in NEEDS.items() for s in all_])
def test_an_architecture_without_the_instruction_is_refused(needed, statement):
    registers = ".reg .b32 %r<9>; .reg .b64 %rd<3>; .reg .f32 %f<4>; .reg .b16 %h; .reg .pred %p<3>;\n"
    before = {"sm_80": "sm_75", "sm_90": "sm_89", "sm_70": "sm_61"}[needed]
    head = ".version 8.0\n.target {}\n.address_size 64\n"
    assembled(kernel(registers + statement + "\nret;", head=head.format(needed)))
    with pytest.raises(CompileError, match=needed):
        assembled(kernel(registers + statement + "\nret;", head=head.format(before)))


def test_an_instruction_that_the_core_lacks_is_refused_by_name():
    with pytest.raises(CompileError, match=r"popc\.b32"):
        assembled(
            kernel(".reg .b32 %r<3>;\npopc.b32 %r0, %r1;\nst.shared.u32 [%r0], %r0; ret;"),
            lambda name: None if name == "popc.b32" else 1,
        )


def test_a_source_line_is_named():
    text = kernel(".reg .b32 %r<3>;\n.loc 1 42 7\nfrobnicate %r0;\nret;", before='.file 1 "wrong.cu"')
    with pytest.raises(CompileError, match=r"wrong\.cu:42"):
        assembled(text)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(CompileError, match="other"):
        assemble(ptx.parse(kernel("ret;")), "other", everything)


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.ptx")), ids=lambda path: path.stem)
def test_samples_of_other_compilers_assemble_or_are_refused(path):
    module = ptx.parse(path.read_text())
    for function in module.functions.values():
        if function.entry:
            try:
                program = assemble(module, function.name, everything)
            except CompileError:
                continue
            assert program.blocks[:, 2].sum() == len(program.instructions)
