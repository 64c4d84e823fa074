"""The assembler: programs keep the meaning of their PTX, and instructions that the virtual GPU lacks are refused.

Random kernels run on the virtual GPU. An interpreter in this file runs the same PTX for some of their threads, with the
functions of isa/model.py.
"""

import importlib
import random
from pathlib import Path

import pytest
import torch
from isa.model import INSTRUCTIONS, evaluate

from luce_edu import machine
from luce_edu.errors import CompileError, KernelError
from luce_edu.machine import kernels, ptx
from luce_edu.machine.assemble import assemble
from luce_edu.machine.core import operations
from luce_edu.machine.ptx import Imm, Label, Not, Pair, Reg, Special, Symbol, Vector

SAMPLES = {path.stem: path.read_text() for path in (Path(__file__).parent / "samples").glob("*.ptx")}
NAMES = {number: name for name, number in operations().items()}


def program_of(text):
    return assemble(ptx.parse(text), "k", operations())


def ops_of(program):
    return [NAMES[op] for op in program.code["op"].tolist() if op >= 0]


# ---- Random kernels as PTX

THREADS, ROOM = 64, 544  # ROOM: bytes that a thread may store
INPUTS = torch.arange(2400, dtype=torch.int64).mul_(2654435761).bitwise_right_shift_(7).int()
UNTOUCHED = 0xA5


def run_ptx(body, tid, out, inputs):
    """The ROOM bytes that one thread of a kernel without calls stores; `out` and `inputs` are its two parameters."""
    registers, room = {}, bytearray([UNTOUCHED]) * ROOM
    labels = {item.name: i for i, item in enumerate(body) if type(item) is Label}

    def value(operand):
        if type(operand) is Imm:
            return operand.bits
        if type(operand) is Not:
            return 1 - registers[operand.reg.name]
        return tid if type(operand) is Special else registers[operand.name]

    pc, steps = 0, 0
    while True:
        steps += 1
        assert steps < 20000
        ins, pc = body[pc], pc + 1
        if type(ins) is Label or ins.predicate is not None and registers[ins.predicate] == ins.negated:
            continue
        name, (first, *rest) = ".".join((ins.opcode, *ins.modifiers)), ins.operands or (None,)
        if ins.opcode in ("ret", "exit"):
            return bytes(room)
        if ins.opcode == "bra":
            pc = labels[first.name]
        elif name.startswith("ld.param"):
            registers[first.name] = {"to": out, "from": inputs}[rest[0].base.name]
        elif ins.opcode == "ld":
            at = value(rest[0].base) + rest[0].offset - inputs
            registers[first.name] = int(INPUTS[at // 4]) & 0xFFFFFFFF
        elif ins.opcode == "st":
            at, size = value(first.base) + first.offset - out - tid * ROOM, int(name[-2:]) // 8
            room[at : at + size] = value(rest[0]).to_bytes(8, "little")[:size]
        elif ins.opcode == "setp":
            words = list(ins.modifiers)
            combine = words.pop(1) if words[1] in ("and", "or") else None
            (test,) = evaluate(INSTRUCTIONS[".".join(["setp", *words])], [value(x) for x in rest[:2]])
            other = value(rest[2]) if combine else 1
            pair = first if type(first) is Pair else Pair(first, Symbol("_"))
            for result, outcome in ((pair.first, test), (pair.second, 1 - test)):
                if type(result) is Reg:
                    registers[result.name] = outcome | other if combine == "or" else outcome & other
        elif type(first) is Vector:
            whole, bits = value(rest[0]), 16 if name == "mov.b32" else 32
            for index, item in enumerate(first.items):
                if type(item) is Reg:
                    registers[item.name] = whole >> bits * index & ((1 << bits) - 1)
        elif type(rest[0]) is Vector:
            low, high = map(value, rest[0].items)
            registers[first.name] = low | high << (16 if name == "mov.b32" else 32)
        else:
            instruction = INSTRUCTIONS[name.replace("cvta.to.global", "mov")]
            (registers[first.name],) = evaluate(instruction, [value(x) for x in rest])


# ---- Random kernels

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"


def kernel(body, head=HEAD, params="", before=""):
    return f"{head}{before}\n.visible .entry k({params})\n{{\n{body}\n}}\n"


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
        """A new register, which is written once and read only by the statements directly behind."""
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
            base, at = self.once("y"), self.once("y")
            self.lines += [
                f"and.b64 {base}, {pick(self.doubles)}, 4088;", f"add.s64 {base}, {base}, %in;",
                f"add.s64 {at}, {base}, {pick([8, 512, -16])};",
            ]  # fmt: skip
            if r.random() < 0.3:
                self.lines.append(f"add.s64 {base}, {base}, 24;")
            if r.random() < 0.3:
                self.lines.append(f"add.s64 {at}, {at}, 4096;")
            self.lines.append(f"{guard}ld.global.u32 {pick(self.words)}, [{at}+{pick([0, 4])}];")
        elif kind < 0.84:
            self.lines.append(
                f"{guard}selp.b32 {pick(self.words)}, {self.word()}, {self.word()}, {pick(self.predicates)};"
            )
        elif depth > 0:
            self.nest(depth - 1)

    def products(self):
        """A sum of packed products, as in a matrix-vector kernel, of any length; some break the fused pattern."""
        r, pick = self.random, self.random.choice
        total, zero = pick(self.words), r.random() < 0.4
        for word in self.words:  # each word and its halves become numbers between 0.5 and 2
            self.lines += [f"and.b32 {word}, {word}, {0x80FF80FF};", f"or.b32 {word}, {word}, {0x3F003F00};"]
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
            counter, p, kept = self.counters[depth], "%loop", self.once("x")  # kept: read at the top of each round
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
        begin += ["mov.u32 %r0, %tid.x;", "ld.param.u64 %in, [from];", "add.s64 %in, %in, 64;"]
        begin += ["ld.param.u64 %out, [to];", "cvta.to.global.u64 %out, %out;"]
        begin += [f"mul.wide.u32 %at, %r0, {ROOM};", "add.s64 %out, %out, %at;"]
        for _ in range(12):
            self.statement(3)
        end = [
            f"selp.b32 %x0, 1, 0, {p};\nst.global.u32 [%out+{512 + 4 * i}], %x0;" for i, p in enumerate(self.predicates)
        ]
        end += [f"st.global.u32 [%out+{4 * i}], {x};" for i, x in enumerate(self.words)]
        end += [f"st.global.u64 [%out+{256 + 8 * i}], {x};" for i, x in enumerate(self.doubles)]
        end += [f"st.global.u16 [%out+{400 + 8 * i}], {x};" for i, x in enumerate(self.halves)]
        return kernel(f"""
        .reg .b32 %r<8>; .reg .b64 %rd<4>; .reg .b16 %rs<2>; .reg .pred %p<3>; .reg .pred %loop; .reg .b32 %c<4>;
        .reg .b32 %x<{self.fresh + 1}>; .reg .b64 %y<{self.fresh + 1}>; .reg .b64 %out, %in, %at;
        """ + "\n".join([*begin, *self.lines, *end, "ret;"]), params=".param .u64 to, .param .u64 from")  # fmt: skip


def check(seed):
    """Whether threads of both warps of a random kernel store the same as the interpreter."""
    text = Writer(seed).text()
    out = torch.full((THREADS, ROOM), UNTOUCHED, dtype=torch.uint8)
    machine.load(text)["k"].launch(1, THREADS, [out, INPUTS], instructions=10**6)
    body, places = ptx.parse(text).functions["k"].body, (out.data_ptr(), INPUTS.data_ptr())
    return all(out[tid].numpy().tobytes() == run_ptx(body, tid, *places) for tid in (0, 3, 50))


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_programs_keep_the_meaning_of_random_kernels(first):
    assert [seed for seed in range(first, first + 20) if not check(seed)] == []


def caught():
    """How many of 40 random kernels go wrong."""
    wrong = 0
    for seed in range(40):
        try:
            wrong += not check(seed)
        except KernelError:
            wrong += 1
    return wrong


def forget_loops(find_intervals):
    def find(blocks, *rest):
        for block in blocks:
            block.live_in = block.live_out = 0
        return find_intervals(blocks, *rest)

    return find


def join_registers_that_live_side_by_side(coalesce):
    return lambda blocks, bit, moves, classes: {r: op.defs[0] for op in moves for r in (*op.defs, *op.uses)}


@pytest.mark.planted
@pytest.mark.parametrize(
    "name, fault", [("find_intervals", forget_loops), ("coalesce", join_registers_that_live_side_by_side)]
)
def test_a_wrong_assembler_is_noticed(name, fault, monkeypatch):
    module = importlib.import_module("luce_edu.machine.assemble")
    monkeypatch.setattr(module, name, fault(getattr(module, name)))
    monkeypatch.setattr(kernels, "_assembled", lambda text, name: assemble(ptx.parse(text), name, operations()))
    assert caught() > 3


def test_fused_instructions_appear_in_random_kernels():
    found = {op for seed in range(40) for op in ops_of(program_of(Writer(seed).text()))}
    assert {"fused.bf16lo.fma.f32", "fused.bf16hi.fma.f32", "fused.dot8.f32", "fused.dot8.f32.z"} <= found


# ---- Calls, order of blocks, fields of a program

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
    mul.wide.u32 %rd1, %r0, 8;
    add.s64 %rd0, %rd0, %rd1;
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


def stored_by(text, count):
    """What 128 threads store, each in `count` words of its own."""
    out = torch.full((128, count), -1, dtype=torch.int32)
    machine.load(text)["k"].launch(1, 128, [out])
    return out.tolist()


def test_calls_keep_their_meaning_and_their_registers():
    def twice(x):
        return 77 if x < 5 else 2 * x

    for tid, stored in enumerate(stored_by(CALLS, 2)):
        results = [tid * y + (twice(y) ^ twice(tid)) for y in range(3, 8)]
        assert stored == [sum(map(twice, results)), results[-1]]


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
    mul.wide.u32 %rd1, %r0, 12;
    add.s64 %rd0, %rd0, %rd1;
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


def test_parameters_in_registers_and_stores_under_a_predicate():
    assert stored_by(REGISTER_CALL, 3) == [[min(tid, 40), min(tid, 7), min(tid, 7)] for tid in range(128)]


def test_functions_lie_before_their_callers():
    program = program_of(CALLS)
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
        program_of(text)


def test_what_follows_a_loop_lies_behind_all_of_it():
    """Also where one path through the body leaves the loop: lanes that left would otherwise run ahead of the rest."""
    program = program_of(
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
    program = program_of(text)
    assert ops_of(program) == ["enter", "ld.param.k.b64", "add.b32.i", "st.global.b32", "exit"]
    assert program.blocks.tolist() == [[0, 0, 10]]  # all ten are counted all the same


def test_a_phi_of_a_loop_costs_no_move():
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
    assert ops_of(program_of(text)).count("mov.b32") == 2  # before the loop


def test_shared_memory_is_laid_out_and_dynamic_memory_lies_behind_it():
    program = program_of(kernel("""
    .shared .align 4 .b8 a[10];
    .shared .align 16 .b8 b[32];
    .reg .b32 %r<4>;
    mov.u32 %r0, a; mov.u32 %r1, b; mov.u32 %r2, d;
    st.shared.u32 [%r0], %r1; st.shared.u32 [%r1+4], %r2;
    ret;""", before=".extern .shared .align 16 .b8 d[];"))  # fmt: skip
    assert program.shared == {"a": 0, "b": 16}
    assert program.shared_bytes == 48


def test_module_variables_are_relocations():
    program = program_of(kernel("""
    .reg .b32 %r<4>; .reg .b64 %rd;
    ld.global.u32 %r0, [v+4]; mov.u64 %rd, v; st.global.u32 [%rd+8], %r0;
    ret;""", before=".global .align 4 .b8 v[64];"))  # fmt: skip
    assert [(symbol, addend) for _, symbol, addend in program.relocations] == [("v", 4), ("v", 0)]
    assert program.code["imm"][program.sites[0]] == 4


def test_every_memory_instruction_is_a_site():
    program = program_of(kernel("""
    .reg .b32 %r<4>; .reg .b64 %rd;
    ld.global.v2.u32 {%r0, %r1}, [%rd]; atom.global.add.u32 %r2, [%rd], %r0; red.shared.add.u32 [%r1], %r2;
    st.shared.u32 [%r1], %r2;
    ret;"""))  # fmt: skip
    assert program.code["c"][program.sites].tolist() == [0, 1, 2, 3]
    assert program.least_wavefronts == [2, 1, 1, 1]


# ---- Refused

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
def test_an_unknown_instruction_is_refused_with_its_line(what):
    registers = (
        ".reg .b32 %r<9>; .reg .u32 %u<3>; .reg .b64 %rd<3>; .reg .b16 %rs<3>; .reg .f32 %f<4>; .reg .pred %p<3>;\n"
    )
    text = kernel(registers + REFUSED[what] + "\nret;", before=".extern .func malloc();")
    with pytest.raises(CompileError, match="line 8 of the PTX"):
        program_of(text)


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
    program_of(kernel(registers + statement + "\nret;", head=head.format(needed)))
    with pytest.raises(CompileError, match=needed):
        program_of(kernel(registers + statement + "\nret;", head=head.format(before)))


def test_an_instruction_that_the_core_lacks_is_refused_by_name():
    with pytest.raises(CompileError, match=r"popc\.b32"):
        text = kernel(".reg .b32 %r<3>;\npopc.b32 %r0, %r1;\nst.shared.u32 [%r0], %r0; ret;")
        assemble(ptx.parse(text), "k", lambda name: None if name == "popc.b32" else 1)


def test_a_source_line_is_named():
    text = kernel(".reg .b32 %r<3>;\n.loc 1 42 7\nfrobnicate %r0;\nret;", before='.file 1 "wrong.cu"')
    with pytest.raises(CompileError, match=r"wrong\.cu:42"):
        program_of(text)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(CompileError, match="other"):
        assemble(ptx.parse(kernel("ret;")), "other", operations())


def test_text_of_llvm_assembles():
    program = assemble(ptx.parse(SAMPLES["like_clang"]), "say", operations())
    assert program.blocks[:, 2].sum() == len(program.instructions)


@pytest.mark.parametrize(
    "sample, kernel, lacking",
    [("by_hand", "saxpy", "call"), ("like_triton", "add_kernel", "wgmma"), ("old", "_Z6squarePf", "address_size 32")],
)
def test_a_sample_is_refused_by_the_name_of_what_the_virtual_gpu_lacks(sample, kernel, lacking):
    with pytest.raises(CompileError, match=lacking):
        assemble(ptx.parse(SAMPLES[sample]), kernel, operations())
