"""The PTX parser: what it reads from NVRTC, LLVM, Triton-like text and people, and what it refuses.

The files in samples/ were all accepted by ptxas 13.0; it gives the constants these values
and refuses what is refused here, except a variable above our limit, deep brackets and a shift by 64.
"""

import random
import re
import struct
import time
from pathlib import Path

import pytest
from models import TINY

from luce_edu.errors import CompileError
from luce_edu.machine import ptx
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.machine.ptx import Address, Imm, Label, Loc, Not, Pair, Reg, Selector, Special, Symbol, Vector, parse
from luce_edu.stages.dims import kernel_defines

SAMPLES = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "samples").glob("*.ptx"))}
HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
REGISTERS = ".reg .pred p, q, %p<4>; .reg .b32 r, %r<20>, %x1<3>; .reg .b64 %rd<4>; .reg .v4 .f32 quad;"


def kernel(body, module=""):
    """A module with one kernel: its body begins on line 6."""
    return f"{HEADER}{module}\n.visible .entry k(.param .u64 p0) {{ {REGISTERS}\n{body}\n}}\n"


def instructions(text, name="k"):
    return [item for item in parse(text).functions[name].body if not isinstance(item, Label)]


def variable(declaration, before=""):
    return parse(f"{HEADER}.global .u32 other; {before} {declaration};").variables["v"]


def integer(value):
    return Imm(value, "int", value % 2**64)


# ---- whole files


def spelled(operand):
    """An operand as compilers write it, without the number of its block."""
    match operand:
        case Reg(name) | Special(name):
            return name.split("#")[0]
        case Imm(value, "int"):
            return str(value)
        case Imm(_, kind, bits):
            return f"0f{bits:08X}" if kind == "f32" else f"0d{bits:016X}"
        case Symbol(name, offset):
            return name.split("#")[0] + (f"+{offset}" if offset else "")
        case Address(base, offset):
            return f"[{spelled(base)}" + (f"+{offset}]" if offset else "]")
        case Vector(items):
            return "{" + ",".join(map(spelled, items)) + "}"
        case Pair(first, second):
            return f"{spelled(first)}|{spelled(second)}"
        case Not(reg):
            return f"!{reg.name}"


def compiled(source, arch):
    return compile_ptx(source, None, [], kernel_defines(TINY), arch)


@pytest.mark.parametrize("source, arch", [("per_op.cu", "compute_75"), ("per_layer.cu", "compute_90a")])
def test_a_compiled_source_can_be_spelled_again_from_what_was_read(source, arch):
    text = compiled(source, arch)
    lines, module = text.splitlines(), parse(text)
    read, at = {}, set()
    for function in module.functions.values():
        for item in function.body:
            at.add(item.line)
            if isinstance(item, Label):
                read[item.line] = f"{item.name}:"
            elif item.opcode != "call":  # its text has several lines
                guard = f"@{'!' * item.negated}{item.predicate}" if item.predicate else ""
                opcode = ".".join((item.opcode, *item.modifiers))
                read[item.line] = f"{guard}{opcode}{','.join(map(spelled, item.operands))};"
                assert item.loc.file.endswith((".cu", ".cuh")) and 0 <= item.loc.line < 1000
    assert len(read) > 1000
    for line, text in read.items():
        # Inline assembly may hold a block on one line.
        assert text in re.sub(r"\s", "", lines[line - 1]).replace("+0]", "]")
    statements = {i for i, line in enumerate(lines, 1) if re.match(r"\s*(@|[a-z]+[.;]|\$L__BB)", line)}
    assert statements <= at


def test_inlined_calls_are_followed_to_the_kernel():
    module = parse(compiled("per_layer.cu", "compute_80"))
    body = [item for function in module.functions.values() for item in function.body]
    deepest = max((item.loc for item in body if not isinstance(item, Label)), key=depth)
    assert depth(deepest) >= 3
    while deepest.inlined_at is not None:
        assert deepest.function.startswith("_Z")
        deepest = deepest.inlined_at
    assert deepest.file.endswith("per_layer.cu") and deepest.function is None


def depth(loc):
    return 0 if loc is None else 1 + depth(loc.inlined_at)


def test_old_text_is_read():
    module = parse(SAMPLES["old"])
    assert (module.version, module.target, module.address_size) == ((2, 0), ("sm_20",), 32)
    body = module.functions["_Z6squarePf"].body
    assert [item.name for item in body if isinstance(item, Label)] == ["$LBB1__Z6squarePf", "$LDWend__Z6squarePf"]
    assert body[-3].predicate == "sel" and body[-3].loc == Loc("square.cu", 5, 0)


def test_text_of_triton_is_read():
    function = parse(SAMPLES["like_triton"]).functions["add_kernel"]
    assert [param.size for param in function.params] == [8, 8, 4]
    assert function.directives == {"reqntid": (128, 1, 1)}
    waits = [item for item in function.body if item[0] == "mbarrier"]
    assert [item.operands[0] for item in waits] == [Reg("complete#1"), Reg("complete#2")]
    assert {"waitLoop#1", "waitLoop#2"} <= {item.name for item in function.body if isinstance(item, Label)}
    store = next(item for item in function.body if item[0] == "st")
    assert (store.predicate, store.operands) == ("%p1", (Address(Reg("%rd1"), 0), Vector((Reg("%r6"),))))


def test_text_of_llvm_is_read():
    module = parse(SAMPLES["like_clang"])
    assert module.files == {1: "/src/step.cu", 2: "/src/inline.h"}
    assert [f.name for f in module.functions.values() if f.external] == ["vprintf", "elsewhere", "fail"]
    assert module.functions["fail"].directives == {"noreturn": ()}
    assert module.variables["format"].init == b"t%d\n\0\0"
    assert module.variables["entry_points"].relocations == ((0, "step", 0, False),)
    say = module.functions["say"]
    assert say.entry and say.directives == {"reqntid": (32, 1, 1), "maxnreg": (40,)}
    assert say.variables["__local_depot1"].space == "local" and say.variables["buffer"].size == 128
    first, second = (item for item in say.body if item[0] == "call")
    assert first.operands == (
        Vector((Symbol("retval0#1"),)), Symbol("vprintf"), Vector((Symbol("param0#1"), Symbol("param1#1"))), None
    )  # fmt: skip
    assert second.operands[2] == Vector((Symbol("param0#2"),))
    add = next(item for item in module.functions["step"].body if item[0] == "add")
    outer = Loc("/src/inline.h", 8, 5, Loc("/src/step.cu", 4, 9), "outer")
    assert add.loc == Loc("/src/inline.h", 21, 7, outer, "inner")


def test_text_by_hand_is_read():
    module = parse(SAMPLES["by_hand"])
    function = module.functions["saxpy"]
    assert module.target == ("sm_90a", "texmode_independent")
    assert [(p.name, p.type, p.align, p.size) for p in function.params] == [
        ("x", "u64", 8, 8), ("pair", "b8", 8, 16), ("a", "f32", 4, 4)
    ]  # fmt: skip
    assert function.directives == {"maxntid": (128, 1, 1), "minnctapersm": (2,)}
    assert function.registers["quad.z"] == "f32" and function.registers["%rx1"] == "b32"
    assert function.targets == {"branches": ("start", "done"), "callees": ("twice",)}
    assert [p.size for p in function.prototypes["prototype"].params] == [4, 16]
    twice = module.functions["twice"]
    assert twice.registers == {"out": "b32", "in": "b32"} and twice.params[0].space == "reg"
    assert not module.functions["later"].external and module.variables["dynamic"].extern


# ---- operands


@pytest.mark.parametrize(
    "text, operand",
    {
        "%r7": Reg("%r7"), "%x12": Reg("%x12"), "%tid.x": Special("%tid.x"), "%lanemask_lt": Special("%lanemask_lt"),
        "%envreg31": Special("%envreg31"), "quad.w": Reg("quad.w"),
        "quad": Vector(tuple(Reg(f"quad.{c}") for c in "xyzw")), "{r, _}": Vector((Reg("r"), Symbol("_"))),
        "{%r1,-1 , 0f3F800000}": Vector((Reg("%r1"), integer(-1), Imm(1.0, "f32", 0x3F800000))),
        "p|q": Pair(Reg("p"), Reg("q")), "_ | %p1": Pair(Symbol("_"), Reg("%p1")), "!%p3": Not(Reg("%p3")),
        "! p": Not(Reg("p")), "[%rd1]": Address(Reg("%rd1"), 0), "[%rd1+8]": Address(Reg("%rd1"), 8),
        "[%rd1+-8]": Address(Reg("%rd1"), -8), "[ %rd1 + (4 * 2) ]": Address(Reg("%rd1"), 8),
        "[%rd1+010]": Address(Reg("%rd1"), 8), "[p0]": Address(Symbol("p0"), 0),
        "[buffer+0x10]": Address(Symbol("buffer"), 16), "[64]": Address(None, 64),
        "[%rd1, {%r1, %r2}]": Address(Reg("%rd1"), 0, (Vector((Reg("%r1"), Reg("%r2"))),)),
        "buffer": Symbol("buffer"), "buffer+4": Symbol("buffer", 4), "%r1.b3": Selector(Reg("%r1"), "b3"),
        "-%r1.h0": Selector(Reg("%r1"), "h0", True), "1.5": Imm(1.5, "f64", 0x3FF8000000000000),
        "-1.5": Imm(-1.5, "f64", 0xBFF8000000000000), "0d3FF8000000000000": Imm(1.5, "f64", 0x3FF8000000000000),
        "0F80000000": Imm(-0.0, "f32", 0x80000000), "0f7F800000": Imm(float("inf"), "f32", 0x7F800000),
    }.items(),
)  # fmt: skip
def test_an_operand_is_read(text, operand):
    (item,) = instructions(kernel(f"mov.b32 %r1, {text};", ".global .align 4 .b8 buffer[64];"))
    assert item.operands == (Reg("%r1"), operand)


def test_a_nan_keeps_its_bits():
    (item,) = instructions(kernel("mov.b32 %r1, 0f7FA00001; "))
    assert item.operands[1].bits == 0x7FA00001 and item.operands[1].value != item.operands[1].value


@pytest.mark.parametrize(
    "text, bits",
    {
        "0x1F": 31, "017": 15, "0b101U": 5, "0XfFU": 255, "18446744073709551615": 2**64 - 1, "-1": 2**64 - 1,
        "WARP_SZ-1": 31, "1+2<<3": 24, "1|2^3&4": 3, "5>3==1": 1, "!0+~5": 2**64 - 5, "~0>>60": 15, "-1/2U": 2**63 - 1,
        "(.u64)-8/3": 0x5555555555555552, "(.s64)(-8)/3": 2**64 - 2, "-7/2": 2**64 - 3, "10%-5": 10, "-1<1U": 0,
        "-1<1": 1, "1?2:3": 2, "0||5": 1, "2&&0": 0, "-(3-5)*(2+2)": 8, "-1>>1": 2**64 - 1, "7-3-2": 2,
    }.items(),
)  # fmt: skip
def test_a_constant_has_the_bits_that_ptxas_gives_it(text, bits):
    (item,) = instructions(kernel(f"mov.b64 %rd1, {text};"))
    assert (item.operands[1].kind, item.operands[1].bits) == ("int", bits)


def test_an_instruction_has_its_parts():
    text = kernel("\n  @!p ld.global.nc.L1::no_allocate.v2.b32 {%r1,\n %r2},[%rd1 ] ; ret;@p bra done;done:exit;")
    load, ret, bra, done, leave = parse(text).functions["k"].body
    assert load.opcode == "ld" and load.modifiers == ("global", "nc", "L1::no_allocate", "v2", "b32")
    assert (load.predicate, load.negated, load.line, load.loc) == ("p", True, 7, None)
    assert (ret.operands, ret.predicate, ret.line) == ((), None, 8)
    assert (bra.operands, bra.predicate, bra.negated) == ((Symbol("done"),), "p", False)
    assert done == Label("done", 8) and leave.line == 8


@pytest.mark.parametrize(
    "text, operands",
    {
        "f": (Vector(()), Symbol("f"), Vector(()), None),
        "f, (%r1)": (Vector(()), Symbol("f"), Vector((Reg("%r1"),)), None),
        "(r), f": (Vector((Reg("r"),)), Symbol("f"), Vector(()), None),
        "(r), %rd1, (%r1, 2), shape": (
            Vector((Reg("r"),)), Reg("%rd1"), Vector((Reg("%r1"), integer(2))), Symbol("shape")
        ),
        "%rd1, shape": (Vector(()), Reg("%rd1"), Vector(()), Symbol("shape")),
    }.items(),
)  # fmt: skip
def test_a_call_has_four_operands(text, operands):
    (call,) = instructions(kernel(f"shape: .callprototype _ ();\ncall.uni {text};", ".func f;"))
    assert (call.opcode, call.modifiers, call.operands) == ("call", ("uni",), operands)


# ---- names and blocks


def test_a_block_has_names_of_its_own():
    text = kernel("""
        mov.b32 r, 0;
        { .reg .b32 r, %r<2>; mov.b32 r, %r1; mov.b32 r, %r2; again: bra again; bra after;
          { .reg .f32 r; mov.f32 r, r; } mov.b32 r, 1; }
        { again: bra again; .reg .b32 t; mov.b32 t, r; }
        mov.b32 r, 2;
        after: ret;""")
    function = parse(text).functions["k"]
    operands = [item.operands for item in function.body if not isinstance(item, Label)]
    assert operands[:3] == [(Reg("r"), integer(0)), (Reg("r#1"), Reg("%r1#1")), (Reg("r#1"), Reg("%r2"))]
    assert operands[3:5] == [(Symbol("again#1"),), (Symbol("after"),)]
    assert operands[5:7] == [(Reg("r#2"), Reg("r#2")), (Reg("r#1"), integer(1))]
    assert operands[7:9] == [(Symbol("again#3"),), (Reg("t#3"), Reg("r"))]
    assert operands[9] == (Reg("r"), integer(2))
    assert function.registers["r#2"] == "f32"


def test_a_range_declares_its_registers_and_no_others():
    function = parse(kernel("mov.b32 %r0, %r19; mov.b32 %x10, %x12;")).functions["k"]
    assert set(function.registers) >= {"%r0", "%r19", "%x10", "%x12"} and "%r20" not in function.registers
    for name in ("%r20", "%r01", "%x13", "%r", "%p4"):
        with pytest.raises(CompileError):
            parse(kernel(f"mov.b32 %r0, {name};"))


def test_a_huge_range_is_not_expanded():
    assert instructions(kernel(".reg .b32 big<2000000000>; mov.b32 r, big1999999999;"))[0].operands[1].name[:3] == "big"


def test_labels_of_tables_are_their_blocks():
    text = kernel("{ a: b: t: .branchtargets a, b, out; brx.idx r, t; } out: ret;")
    function = parse(text).functions["k"]
    assert function.targets == {"t#1": ("a#1", "b#1", "out")}
    assert next(item for item in function.body if item[0] == "brx").operands == (Reg("r"), Symbol("t#1"))


def test_a_declaration_gives_way_to_its_definition():
    module = parse(f"{HEADER}.func f; .func f {{ ret; }} .extern .global .u32 g[]; .visible .global .u32 g[2];")
    assert not module.functions["f"].external and len(module.functions["f"].body) == 1
    assert module.variables["g"].size == 8 and not module.variables["g"].extern


# ---- variables


@pytest.mark.parametrize(
    "declaration, align, size, init",
    [
        (".global .u32 v", 4, 4, None),
        (".global .align 16 .b8 v[3]", 16, 3, None),
        (".const[2] .f32 v", 4, 4, None),
        (".shared .v4 .f32 v[2]", 16, 32, None),
        (".global .attribute(.managed) .b64 v", 8, 8, None),
        (".global .u8 v = 300", 1, 1, b"\x2c"),
        (".global .s16 v[] = {1, -2, 0x10}", 2, 6, struct.pack("<3h", 1, -2, 16)),
        (".global .u32 v[2][2] = {{1}, {2, 3}}", 4, 16, struct.pack("<4I", 1, 0, 2, 3)),
        (".global .v2 .f32 v[2] = {{1.5, 2.0}, {0f3F800000, .5}}", 8, 16, struct.pack("<4f", 1.5, 2, 1, 0.5)),
        (".global .f32 v = 0d3FF8000000000000", 4, 4, struct.pack("<f", 1.5)),
        (".global .f32 v = 1e300", 4, 4, struct.pack("<f", float("inf"))),
        (".global .f64 v = 1.5e3", 8, 8, struct.pack("<d", 1500)),
        (".global .b32 v = 0f7FA00001", 4, 4, struct.pack("<I", 0x7FA00001)),
        (".global .u64 v[3] = {1, other}", 8, 24, struct.pack("<3Q", 1, 0, 0)),
    ],
)
def test_a_variable_is_read(declaration, align, size, init):
    found = variable(declaration)
    assert (found.align, found.size, found.init) == (align, size, init)


def test_addresses_in_a_variable_are_relocations():
    found = variable(".global .u64 v[4] = {7, generic(other)+4, other, other+-8}")
    assert found.relocations == ((8, "other", 4, True), (16, "other", 0, False), (24, "other", -8, False))
    assert parse(SAMPLES["by_hand"]).variables["packed"].relocations == ((1, "alpha", 0, True),)


# ---- what is refused

REFUSED_MODULES = {
    "": 1, "\x7fELF\x02\x01\x01": 1, "int main() { return 0; }": 1, ".target sm_80\n.version 8.0\n": 1,
    ".version 8.0\n": 1, ".version 9.9\n.target sm_80\n": 1, ".version 10.0\n.target sm_80\n": 1,
    HEADER + ".alias a, b;": 4, HEADER + ".bogus .u32 x;": 4, HEADER + "mov.b32 a, b;": 4, HEADER + "}": 4,
    HEADER + ".global .u32 v": 4, HEADER + ".global v;": 4, HEADER + ".global .u32 v[-1];": 4,
    HEADER + ".global .u32 v[];": 4, HEADER + ".global .u32 v[2][];": 4, HEADER + ".global .align 3 .u32 v;": 4,
    HEADER + ".global .u32 v; .global .u32 v;": 4, HEADER + ".global .u32 v[9999999999];": 4,
    HEADER + ".global .u32 v = 1.5;": 4, HEADER + ".global .f32 v = 1;": 4,
    HEADER + ".global .u32 v[2] = {1, 2, 3};": 4, HEADER + ".global .u32 v[2] = 1;": 4,
    HEADER + ".global .u32 v = {1};": 4, HEADER + ".shared .u32 v = 1;": 4, HEADER + ".global .u64 v = nowhere;": 4,
    HEADER + ".global .u8 w[2] = {0xFF(v), 0xFF00(v)}; .global .u32 v;": 4,
    HEADER + ".entry k() { ret; }\n.entry k() { ret; }": 5,
    HEADER + ".entry k(.param .u32 a .param .u32 b) { ret; }": 4, HEADER + ".entry k(.u32 a) { ret; }": 4,
    HEADER + ".entry k() .maxthreads 3 { ret; }": 4, HEADER + ".entry k()\n.maxntid 32\nret;": 6,
    HEADER + ".section .debug_str {\n.b8 1": 4, HEADER + "/* no end": 4,
}  # fmt: skip
REFUSED_BODIES = [
    "add.s32 %r1, %r2, %r3", "add.s32 %r1, %r2,;", "add.s32 %r1 %r2;", "add..s32 %r1, %r2, %r3;",
    "add.s32 %r1, %q1, 2;",
    "bra nowhere;", "a: a: ret;", "r: ret;", ".reg .b32 r;", ".reg .b32 %r5;", ".reg .b32 %r<3>;", ".reg .b32 n<4+1>;",
    ".reg s;", ".reg .b31 s;", ".reg .b32 s", "{ ret;", "bra inner; { inner: }", "@bogus ret;", "@p0 ret;",
    "@p { ret; }", "@p a: ret;", "ld.global.b32 r, [%rd1;",
    "ld.global.b32 r, [%rd1-4];", "ld.global.b32 r, [%rd1+%rd2];",
    "ld.global.b32 r, 4[%rd1];", "ld.global.b32 r, [%tid.x];", "mov.b32 r, {%r1, %r2;", "mov.b32 r, %tid.q;",
    "mov.b32 r, quad.q;", "mov.b32 r, %r1.b4;", "mov.b32 r, 089;", "mov.b32 r, 99999999999999999999;",
    f"mov.b32 r, {'9' * 5000};", "mov.b32 r, 1/0;", "mov.b32 r, 1 % (0);", "mov.b32 r, 1<<64;", "mov.b32 r, 1+2.5;",
    "mov.b32 r, -0f3F800000;", "mov.b32 r, (1;", "mov.b32 r, 1 ? 2;", "mov.b32 r, 'a';", "mov.b32 r, 12x;",
    f"mov.b32 r, {'(' * 5000}1{')' * 5000};", "setp.eq.s32 p|3, r, r;", "not.pred p, !3.5;", "call (r) f;",
    "call 3, (r);", "call (r), p0, (r;", "t: .branchtargets nowhere;", "t: .branchtargets;",
    "t: .branchtargets quad;", "call (r), p0, (r), quad;",
    "t: .callprototype 3;", ".loc 1 2;", ";",
    ".entry inner() { ret; }", ".shared .u32 s[];", "MOV.b32 r, r;", "\x00", "mov.b32 r, r\u00e9;",
]  # fmt: skip


def line_of(error):
    return int(re.match(r"PTX line (\d+): ", str(error))[1])


@pytest.mark.parametrize("text", REFUSED_MODULES, ids=range(len(REFUSED_MODULES)))
def test_a_malformed_module_is_refused_with_its_line(text):
    with pytest.raises(CompileError) as refused:
        parse(text)
    assert line_of(refused.value) == REFUSED_MODULES[text]


@pytest.mark.parametrize("body", REFUSED_BODIES, ids=range(len(REFUSED_BODIES)))
def test_a_malformed_body_is_refused_with_its_line(body):
    with pytest.raises(CompileError) as refused:
        parse(kernel(body))
    assert line_of(refused.value) in (6, 7, 8)  # 7 and 8 where the statement swallowed the closing brace


def test_a_refusal_quotes_the_line():
    with pytest.raises(CompileError) as refused:
        parse(kernel("add.s32 %r1, %r2, %r99;"))
    assert str(refused.value) == "PTX line 6: '%r99' is not declared\n    add.s32 %r1, %r2, %r99;"


def test_only_text_is_read():
    with pytest.raises(CompileError):
        parse(HEADER.encode())


def test_the_newest_version_is_read():
    newest = "{}.{}".format(*ptx.NEWEST)
    assert parse(f".version {newest}\n.target sm_120\n").version == ptx.NEWEST


@pytest.mark.parametrize("name", SAMPLES)
def test_text_cut_anywhere_is_refused_or_read(name):
    text = SAMPLES[name]
    for end in range(0, len(text), 7):
        outcome(text[:end])
    assert outcome(text[: text.index("{", text.index(".entry")) + 40]) == "refused"


@pytest.mark.parametrize("name", SAMPLES)
def test_text_with_changed_bytes_is_refused_or_read(name):
    random_ = random.Random(name)
    outcomes = set()
    for _ in range(300):
        text = list(SAMPLES[name])
        for at in random_.choices(range(len(text)), k=random_.choice((1, 1, 4))):
            text[at] = random_.choice((chr(ord(text[at]) ^ 1 << random_.randrange(8)), "", text[at] * 2))
        outcomes.add(outcome("".join(text)))
    assert outcomes == {"read", "refused"}


def outcome(text):
    """Whether the text is read or refused; any other exception fails the test."""
    try:
        parse(text)
    except CompileError as refused:
        assert line_of(refused) <= text.count("\n") + 1
        return "refused"
    return "read"


@pytest.mark.parametrize("text", ["/* " * 50_000, "{" * 50_000, "a:" * 50_000, "(" * 50_000, "mov.b32 r, " * 50_000])
def test_text_made_to_be_slow_is_refused_soon(text):
    start = time.process_time()
    assert outcome(kernel(text)) == "refused"
    assert time.process_time() - start < 5  # seconds; time that grows with the square of the length would be minutes
