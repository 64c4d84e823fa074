"""Loads, stores, parameters, addresses and atomics of the virtual GPU against what the PTX ISA says of them."""

import itertools
import random

import numpy as np
import pytest
import torch
from isa import floats, kernel
from isa.floats import BF16, F16, F32, F64
from isa.kernel import HEADER, UNWRITTEN, entry, launch, patterns, tensor
from isa.model import limits, signed, width

TYPES = [letter + bits for letter, bits in itertools.product("bus", ("8", "16", "32", "64"))] + ["f32", "f64"]


def extended(value, kind, bits):
    """A register of so many bits after a load: signed types are extended with their sign, others with zeros."""
    return (signed(value, width(kind)) if kind[0] == "s" else value) & (1 << bits) - 1


def registers(kind):
    """The widths of registers that this type may be loaded into: its own and all wider ones; floats only their own."""
    own = width(kind)
    return [own] if kind[0] == "f" else [bits for bits in (16, 32, 64) if bits >= own]


PREFIX = {16: "%h", 32: "%r", 64: "%x"}


def vectors(kind):
    """1, 2 and 4 elements, if they fit 16 bytes."""
    return [count for count in (1, 2, 4) if count * width(kind) <= 128]


def operand(bits, count, first=4):
    names = [f"{PREFIX[bits]}{first + n}" for n in range(count)]
    return names[0] if count == 1 else "{" + ", ".join(names) + "}"


@pytest.mark.parametrize("space", ("global", "global.nc", "shared", "local", ""))
@pytest.mark.parametrize("kind", TYPES)
def test_loads_extend_and_stores_cut(kind, space):
    """Elements pass through the space by loads and stores of this type; then whole registers are stored."""
    rng = random.Random(f"{kind} {space}")
    size = width(kind) // 8
    jobs, source = [], HEADER
    for n, (bits, count) in enumerate(itertools.product(registers(kind), vectors(kind))):
        bytes_, wide = size * count, bits // 8
        v = "" if count == 1 else f".v{count}"
        through = "ld.global.nc" if space == "global.nc" else f"ld.{space}" if space else "ld"
        body = [f"mad.wide.u32 %x0, %t, {bytes_}, %p1;"]
        base = "%x0"
        if space in ("shared", "local"):
            # Written there first by a store of this type, from registers that are at least as wide.
            at = "room" if space == "local" else "%x2"
            if space == "shared":
                body += ["mov.u64 %x2, tile;", f"mad.wide.u32 %x2, %me, {bytes_}, %x2;"]
            body += [f"ld.global{v}.{kind} {operand(bits, count)}, [%x0];"]
            body += [f"st.{space}{v}.{kind} [{at}], {operand(bits, count)};"]
            body += [f"mov.b{bits} {PREFIX[bits]}{4 + i}, 1;" for i in range(count)]
            base = at
        body += [f"{through}{v}.{kind} {operand(bits, count)}, [{base}];"]
        body += [f"mad.wide.u32 %x1, %t, {wide * count}, %p0;"]
        body += [f"st.global.b{bits} [%x1+{wide * i}], {PREFIX[bits]}{4 + i};" for i in range(count)]
        body += [f"mad.wide.u32 %x1, %t, {bytes_}, %p2;"]
        body += [f"st.global{v}.{kind} [%x1], {operand(bits, count)};"]
        room = {"shared": f".shared .align 16 .b8 tile[{64 * bytes_}];", "local": ".local .align 16 .b8 room[16];"}
        source += entry(["out", "in", "cut"], "\n".join([room.get(space, ""), *body]), f"k{n}")
        values = [rng.choice([rng.getrandbits(64), 0x80 << width(kind) - 8]) for _ in range(64 * count)]
        jobs.append((bits, [value & (1 << width(kind)) - 1 for value in values]))
    module = kernel.load(source)
    for n, (bits, values) in enumerate(jobs):
        given = memory(values, width(kind))
        out, cut = tensor([UNWRITTEN] * len(values), bits), memory([0x5A] * len(values), width(kind))
        module[f"k{n}"].launch(1, 64, [out, given, cut])
        assert patterns(out) == [extended(value, kind, bits) for value in values]
        assert cut.tolist() == given.tolist()


def memory(values, bits):
    """A tensor of elements of so many bits; bytes are unsigned."""
    return torch.tensor([value & 255 for value in values], dtype=torch.uint8) if bits == 8 else tensor(values, bits)


LOAD_HINTS = (".ca", ".cg", ".cs", ".lu", ".cv", ".L1::evict_last", ".L1::no_allocate", ".L1::evict_first")
LOAD_HINTS += (".L2::64B", ".L2::128B", ".L2::256B", ".nc.L1::no_allocate", ".nc.L1::evict_last.L2::128B", ".volatile")
STORE_HINTS = (".wb", ".cg", ".cs", ".wt", ".L1::no_allocate", ".L1::evict_first", ".volatile")


@pytest.mark.parametrize("hint", LOAD_HINTS)
def test_hints_of_loads_change_no_value(hint):
    load_ = f"ld{hint}.global" if hint == ".volatile" else f"ld.global{hint}"
    body = f"""
    mad.wide.u32 %x0, %t, 16, %p1;
    {load_}.v4.u32 {{%r4, %r5, %r6, %r7}}, [%x0];
    {load_}.f32 %r8, [%x0+12];
    add.u32 %r4, %r4, %r8;
    mad.wide.u32 %x1, %t, 16, %p0;
    st.global.v4.u32 [%x1], {{%r4, %r5, %r6, %r7}};"""
    out = tensor([UNWRITTEN] * 128, 32)
    launch(entry(["out", "in"], body), 1, 32, [out, tensor(range(128), 32)])
    assert patterns(out) == [n + n + 3 if n % 4 == 0 else n for n in range(128)]


@pytest.mark.parametrize("hint", STORE_HINTS)
def test_hints_of_stores_change_no_value(hint):
    store = f"st{hint}.global" if hint == ".volatile" else f"st.global{hint}"
    body = f"""
    mad.wide.u32 %x0, %t, 8, %p0;
    not.b32 %r4, %t;
    {store}.v2.u32 [%x0], {{%t, %r4}};
    prefetch.global.L2 [%x0];"""
    out = tensor([UNWRITTEN] * 64, 32)
    launch(entry(["out"], body), 1, 32, [out])
    assert patterns(out) == [x for n in range(32) for x in (n, ~n & 0xFFFFFFFF)]


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind[0] != "f"])
def test_parameters_are_read_with_their_type(kind):
    bits = max(width(kind), 16)
    body = f"""
    ld.param.{kind} {PREFIX[bits]}4, [q1];
    ld.param.{kind} %x5, [q1];
    st.global.b{bits} [%p0], {PREFIX[bits]}4;
    st.global.b64 [%p0+8], %x5;"""
    declared = kind.replace("b", "u") if kind[0] == "b" else kind
    out = tensor([UNWRITTEN] * 2, 64)
    value = limits(declared)[0] + 3 if declared[0] == "s" else limits(declared)[1] - 3
    launch(entry(["out", f".{declared}"], body), 1, 1, [out, value])
    small, wide = patterns(out)
    assert small & (1 << bits) - 1 == extended(value & (1 << width(kind)) - 1, kind, bits)
    assert wide == extended(value & (1 << width(kind)) - 1, kind, 64)


def test_float_parameters_arrive_as_their_bits():
    body = """
    ld.param.f32 %r4, [q1];
    ld.param.f64 %x5, [q2];
    ld.param.b32 %r6, [q2+4];
    st.global.b32 [%p0], %r4;
    st.global.b32 [%p0+4], %r6;
    st.global.b64 [%p0+8], %x5;"""
    out = tensor([UNWRITTEN] * 2, 64)
    launch(entry(["out", ".f32", ".f64"], body), 1, 1, [out, -1.5, 0.1])
    assert patterns(out.view(torch.int32)) == [0xBFC00000, 0x3FB99999, 0x9999999A, 0x3FB99999]


def test_module_variables_hold_their_initial_values():
    source = """
.const .align 4 .u32 primes[4] = {2, 3, 5, 7};
.const .f32 half = 0f3F000000;
.global .align 8 .b8 bytes[6] = {1, 2, 255};
.global .u64 big = 0x123456789ABCDEF0;
.global .s16 below[2] = {-2, 7};
""" + entry(
        ["out"],
        """
    mul.wide.u32 %x0, %me, 4;
    add.u64 %x1, %p0, %x0;
    mov.u64 %x2, primes;
    add.u64 %x2, %x2, %x0;
    ld.const.u32 %r4, [%x2];
    st.global.u32 [%x1], %r4;
    ld.const.f32 %r5, [half];
    st.global.f32 [%p0+16], %r5;
    ld.global.u8 %r6, [bytes+2];
    st.global.u32 [%p0+20], %r6;
    ld.global.u8 %r6, [bytes+5];
    st.global.u32 [%p0+24], %r6;
    ld.global.u64 %x4, [big];
    st.global.u64 [%p0+32], %x4;
    ld.global.s16 %r7, [below];
    st.global.u32 [%p0+28], %r7;""",
    )
    out = tensor([UNWRITTEN] * 5, 64)
    launch(source, 1, 4, [out])
    assert patterns(out.view(torch.int32)) == [2, 3, 5, 7, 0x3F000000, 255, 0, 0xFFFFFFFE, 0x9ABCDEF0, 0x12345678]


def test_generic_addresses_reach_every_space():
    """cvta to generic and back, isspacep, and a generic access to each."""
    body = """
    .shared .align 8 .b32 tile[64];
    .local .align 8 .b32 room[2];
    mul.wide.u32 %x0, %me, 4;
    mov.u64 %x1, tile;
    add.u64 %x1, %x1, %x0;
    cvta.shared.u64 %x2, %x1;
    mov.u64 %x3, room;
    cvta.local.u64 %x4, %x3;
    cvta.to.global.u64 %x5, %p1;
    cvta.global.u64 %x6, %x5;
    add.u64 %x6, %x6, %x0;
    ld.u32 %r4, [%x6];
    st.u32 [%x2], %r4;
    st.u32 [%x4+4], %r4;
    ld.shared.u32 %r5, [%x1];
    ld.local.u32 %r6, [room+4];
    cvta.to.shared.u64 %x7, %x2;
    cvta.to.local.u64 %x8, %x4;
    ld.shared.u32 %r7, [%x7];
    ld.local.u32 %r8, [%x8+4];
    add.u32 %r5, %r5, %r6;
    add.u32 %r7, %r7, %r8;
    add.u32 %r5, %r5, %r7;
    isspacep.global %q0, %x6;
    isspacep.shared %q1, %x6;
    isspacep.local %q2, %x6;
    isspacep.global %q3, %x2;
    isspacep.shared %q4, %x2;
    isspacep.local %q5, %x2;
    isspacep.shared %q6, %x4;
    isspacep.local %q7, %x4;
    selp.b32 %r9, 1, 0, %q0;
    @%q1 or.b32 %r9, %r9, 2;
    @%q2 or.b32 %r9, %r9, 4;
    @%q3 or.b32 %r9, %r9, 8;
    @%q4 or.b32 %r9, %r9, 16;
    @%q5 or.b32 %r9, %r9, 32;
    @%q6 or.b32 %r9, %r9, 64;
    @%q7 or.b32 %r9, %r9, 128;
    mad.wide.u32 %x9, %me, 8, %p0;
    st.global.v2.u32 [%x9], {%r5, %r9};"""
    values = list(range(100, 164))
    out = tensor([0] * 128, 32)
    launch(entry(["out", "in"], body), 1, 64, [out, tensor(values, 32)])
    assert patterns(out) == [x for value in values for x in (4 * value, 0b10010001)]


def test_shared_memory_of_a_launch_lies_behind_that_of_the_kernel():
    source = ".extern .shared .align 16 .b8 more[];\n" + entry(
        ["out"],
        """
    .shared .align 4 .b32 own[64];
    mul.wide.u32 %x0, %me, 4;
    mov.u64 %x1, own;
    add.u64 %x1, %x1, %x0;
    mov.u64 %x2, more;
    add.u64 %x2, %x2, %x0;
    st.shared.u32 [%x1], %me;
    not.b32 %r4, %me;
    st.shared.u32 [%x2], %r4;
    ld.shared.u32 %r5, [%x1];
    ld.shared.u32 %r6, [%x2];
    mad.wide.u32 %x3, %me, 8, %p0;
    st.global.v2.u32 [%x3], {%r5, %r6};""",
    )
    out = tensor([0] * 128, 32)
    launch(source, 1, 64, [out], smem=256)
    assert patterns(out) == [x for n in range(64) for x in (n, ~n & 0xFFFFFFFF)]


def test_special_registers_of_a_launch_in_three_dimensions():
    names = [f"{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
    names += ["laneid", *(f"lanemask_{name}" for name in ("eq", "lt", "le", "gt", "ge"))]
    reads = "\n".join(f"mov.u32 %r4, %{name}; st.global.u32 [%x0+{4 * n}], %r4;" for n, name in enumerate(names))
    body = f"""
    mov.u32 %r2, %ctaid.z;
    mov.u32 %r3, %nctaid.y;
    mov.u32 %r4, %ctaid.y;
    mad.lo.u32 %r2, %r2, %r3, %r4;
    mov.u32 %r3, %nctaid.x;
    mad.lo.u32 %r2, %r2, %r3, %r0;
    mov.u32 %r3, %tid.z;
    mov.u32 %r4, %ntid.y;
    mov.u32 %r5, %tid.y;
    mad.lo.u32 %r3, %r3, %r4, %r5;
    mad.lo.u32 %r3, %r3, %r1, %me;
    mad.lo.u32 %r2, %r2, 105, %r3;
    mad.wide.u32 %x0, %r2, {4 * len(names)}, %p0;
{reads}"""
    grid, block = (2, 3, 2), (7, 5, 3)
    threads = 12 * 105
    out = tensor([UNWRITTEN] * threads * len(names), 32)
    launch(entry(["out"], body), grid, block, [out])
    rows = np.array(patterns(out)).reshape(threads, len(names)).tolist()
    places = itertools.product(*(range(n) for n in grid[::-1]), *(range(n) for n in block[::-1]))
    for number, (row, (cz, cy, cx, tz, ty, tx)) in enumerate(zip(rows, places, strict=True)):
        lane = number % 105 % 32
        masks = [1 << lane, (1 << lane) - 1, (2 << lane) - 1, -2 << lane, -1 << lane]
        expected = [tx, ty, tz, *block, cx, cy, cz, *grid, lane, *(mask & 0xFFFFFFFF for mask in masks)]
        assert row == expected, number


# Atomics: each is a function from the old value and the operands to the new value.


def wrap_up(old, value):
    return 0 if old >= value else old + 1


def wrap_down(old, value):
    return value if old == 0 or old > value else old - 1


def float_add(form):
    return lambda old, value: floats.add(form, old, value)


ATOMICS = {}
for _kind in ("u32", "s32", "u64", "s64"):
    for _name, _run in (("add", lambda a, b: a + b), ("min", min), ("max", max)):
        if (_name, _kind) != ("add", "s64"):
            ATOMICS[f"{_name}.{_kind}"] = _run
for _kind in ("b32", "b64"):
    ATOMICS |= {
        f"and.{_kind}": lambda a, b: a & b,
        f"or.{_kind}": lambda a, b: a | b,
        f"xor.{_kind}": lambda a, b: a ^ b,
        f"exch.{_kind}": lambda a, b: b,
        f"cas.{_kind}": lambda a, b, c: c if a == b else a,
    }
ATOMICS |= {"inc.u32": wrap_up, "dec.u32": wrap_down, "cas.b16": ATOMICS["cas.b32"]}
ATOMICS |= {"add.f32": float_add(F32), "add.f64": float_add(F64)}


def pair_add(form):
    return lambda a, b: floats.add(form, a >> 16, b >> 16) << 16 | floats.add(form, a & 0xFFFF, b & 0xFFFF)


ATOMICS |= {"add.noftz.f16": float_add(F16), "add.noftz.bf16": float_add(BF16)}
ATOMICS |= {"add.noftz.f16x2": pair_add(F16), "add.noftz.bf16x2": pair_add(BF16)}
SPACES = {"global": "[%x2]", "shared": "[%x3]", "": "[%x2]"}


def _atomic(name, space, red):
    """Every thread acts on a cell of its own, in global memory, in shared memory or by a generic address."""
    kind = name.split(".")[-1]
    bits = width(kind)
    reg = PREFIX[bits]
    dot = f".{space}" if space else ""
    extra = f", {reg}6" if name.startswith("cas") else ""
    target = SPACES[space] if red else f"{reg}4, {SPACES[space]}"
    operation = f"{'red' if red else 'atom'}{dot}.{name} {target}, {reg}5"
    return entry(
        ["old", "cells", "b", "c"],
        f"""
    .shared .align 8 .b8 tile[{128 * bits // 8}];
    mul.wide.u32 %x0, %t, {bits // 8};
    add.u64 %x1, %p0, %x0;
    add.u64 %x2, %p1, %x0;
    mov.u64 %x3, tile;
    add.u64 %x3, %x3, %x0;
    add.u64 %x7, %p2, %x0;
    ld.global.b{bits} {reg}5, [%x7];
    add.u64 %x7, %p3, %x0;
    ld.global.b{bits} {reg}6, [%x7];
    ld.global.b{bits} {reg}8, [%x2];
    st.shared.b{bits} [%x3], {reg}8;
    mov.b{bits} {reg}4, {UNWRITTEN & (1 << bits) - 1:#x};
    {operation}{extra};
    {f"ld.shared.b{bits} {reg}9, [%x3]; st.global.b{bits} [%x2], {reg}9;" if space == "shared" else ""}
    st.global.b{bits} [%x1], {reg}4;""",
    )


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ATOMICS)
def test_atomics_return_the_old_value_and_store_the_new(name, space):
    kind = name.split(".")[-1]
    bits = width(kind)
    rng = random.Random(name)

    def draw():
        value = rng.choice([0, 1, 2, 5, 1 << bits - 1, (1 << bits) - 1, rng.getrandbits(bits)])
        if kind in ("f32", "f64"):
            form = F32 if kind == "f32" else F64
            return rng.getrandbits(bits) & ~form.inf | form.bias + rng.randint(-3, 3) << form.mantissa
        return value & 0x7B7F7B7F & (1 << bits) - 1 if "f16" in kind else value  # finite

    cells, b, c = ([draw() for _ in range(128)] for _ in range(3))
    b = [x if rng.random() < 0.5 else y for x, y in zip(cells, b, strict=True)] if name.startswith("cas") else b
    expected = []
    for old, first, second in zip(cells, b, c, strict=True):
        read = [signed(x, bits) if kind[0] == "s" else x for x in (old, first, second)]
        expected.append(ATOMICS[name](*read[: 3 if name.startswith("cas") else 2]) & (1 << bits) - 1)
    for red in (False, True):
        if red and name.split(".")[0] in ("exch", "cas"):
            continue
        olds, after = tensor([0] * 128, bits), tensor(cells, bits)
        launch(_atomic(name, space, red), 1, 128, [olds, after, tensor(b, bits), tensor(c, bits)])
        assert patterns(after) == expected
        assert patterns(olds) == ([UNWRITTEN & (1 << bits) - 1] * 128 if red else cells)


@pytest.mark.parametrize("space", ("global", "shared"))
def test_atomics_on_one_cell_lose_nothing(space):
    """1,024 threads add to one cell: all old values differ, and a float sum of small integers is exact."""
    at = "[%p0]" if space == "global" else "[cell]"
    at_float = "[%p0+4]" if space == "global" else "[cell+4]"
    body = f"""
    .shared .align 8 .b32 cell[2];
    setp.eq.u32 %q0, %me, 0;
    mov.u32 %r4, 0;
    @%q0 st.shared.v2.u32 [cell], {{%r4, %r4}};
    bar.sync 0;
    atom.{space}.add.u32 %r5, {at}, 1;
    red.{space}.add.f32 {at_float}, 0f40000000;
    mad.wide.u32 %x0, %t, 4, %p1;
    st.global.u32 [%x0], %r5;
    bar.sync 0;
    ld.shared.v2.u32 {{%r6, %r7}}, [cell];
    {"@%q0 st.global.v2.u32 [%p0], {%r6, %r7};" if space == "shared" else ""}"""
    blocks, threads = (4, 256) if space == "global" else (1, 1024)
    cells, olds = tensor([0, 0], 32), tensor([UNWRITTEN] * 1024, 32)
    launch(entry(["cells", "old"], body), blocks, threads, [cells, olds])
    assert sorted(patterns(olds)) == list(range(1024))
    assert patterns(cells) == [1024, 0x45000000]


def test_atomics_of_one_warp_on_few_cells_with_predicates():
    """Active lanes of a warp on the same cell act one after another; lanes that are off do nothing."""
    body = """
    and.b32 %r4, %me, 3;
    mad.wide.u32 %x0, %r4, 4, %p0;
    and.b32 %r5, %me, 8;
    setp.ne.u32 %q0, %r5, 0;
    mov.u32 %r6, 77;
    @%q0 atom.global.max.s32 %r6, [%x0], %me;
    @!%q0 red.global.add.u32 [%x0+16], %me;
    mad.wide.u32 %x1, %me, 4, %p1;
    st.global.u32 [%x1], %r6;"""
    cells, olds = tensor([0xFFFFFFFF] * 4 + [0] * 4, 32), tensor([UNWRITTEN] * 32, 32)
    launch(entry(["cells", "old"], body), 1, 32, [cells, olds])
    on = [lane for lane in range(32) if lane & 8]
    off = [lane for lane in range(32) if not lane & 8]
    assert patterns(cells) == [max(x for x in on if x % 4 == n) for n in range(4)] + [
        sum(x for x in off if x % 4 == n) for n in range(4)
    ]
    got = patterns(olds)
    assert [got[lane] for lane in off] == [77] * len(off)
    for cell in range(4):  # the old values fit some order of the lanes
        seen = {lane: signed(got[lane], 32) for lane in on if lane % 4 == cell}
        assert -1 in seen.values() and all(old == -1 or old in seen for old in seen.values())


@pytest.mark.parametrize("scope", ("", ".cta", ".gpu", ".sys"))
@pytest.mark.parametrize("order", (".relaxed", ".acquire", ".release", ".acq_rel", ""))
def test_orders_and_scopes_change_no_value_in_one_thread(order, scope):
    load = {".relaxed": "ld.relaxed", ".acquire": "ld.acquire"}.get(order)
    store = {".relaxed": "st.relaxed", ".release": "st.release"}.get(order)
    level = scope or ".gpu"
    load = f"{load}{level}.global.u32" if load else "ld.volatile.global.u32"
    store = f"{store}{level}.global.u32" if store else "st.volatile.global.u32"
    body = f"""
    mad.wide.u32 %x0, %t, 4, %p0;
    {load} %r4, [%x0];
    add.u32 %r4, %r4, 1;
    {store} [%x0], %r4;
    atom{order}{scope}.global.add.u32 %r5, [%x0], 10;
    add.u32 %r5, %r5, 100;
    st.global.u32 [%x0+256], %r5;
    fence.acq_rel{level};
    membar.gl;"""
    cells = tensor([*range(64)] + [0] * 64, 32)
    launch(entry(["cells"], body), 1, 64, [cells])
    assert patterns(cells) == [n + 11 for n in range(64)] + [n + 101 for n in range(64)]


def test_registers_may_have_plain_names_types_and_scopes():
    """Names without %, registers of a type, a scope in braces that hides a name, and several instructions a line."""
    source = """
.visible .entry kernel(.param .u64 .ptr .global .align 4 out, .param .f32 scale)
{
    .reg .f32 a, b; .reg .u32 n; .reg .s64 at; .reg .pred odd;
    ld.param.u64 at, [out]; ld.param.f32 b, [scale];
    mov.u32 n, %tid.x;
    {
        .reg .u64 n;
        .reg .u32 wide;
        mov.u32 wide, %tid.x;
        mul.wide.u32 n, wide, 4;
        add.s64 at, at, n;
    }
    cvt.rn.f32.u32 a, n; /* a comment
    of two lines */ and.b32 n, n, 1;
    setp.ne.u32 odd, n, 0;
    @odd mul.f32 a, a, b;
    @!odd neg.f32 a, a; // the even ones
    st.global.f32 [at], a;
    ret;
}
"""
    out = tensor([UNWRITTEN] * 32, 32)
    launch(source, 1, 32, [out, 0.5])
    assert out.view(torch.float32).tolist() == [n * 0.5 if n & 1 else -float(n) for n in range(32)]
