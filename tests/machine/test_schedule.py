"""The schedule of machine instructions: what the assembler folds, hoists and must leave where it is.

Small kernels say what one rule does; the shipped kernels are checked against what the core will execute.
"""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from models import TINY
from planted.kernels import ptx as planted_ptx

from luce_edu.machine import ptx
from luce_edu.machine.assemble import assemble
from luce_edu.machine.clock import RATES
from luce_edu.machine.core import operations
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.machine.schedule import (
    ALU,
    BRANCH,
    BYPASS,
    CONVERSION,
    FMA,
    FREE,
    IMAD,
    KINDS,
    LOAD,
    MEMORY,
    MUFU,
    NONE,
    PAUSE,
    SHUFFLE,
    TENSOR,
    registers_of_a_thread,
    schedule,
)  # fmt: skip
from luce_edu.stages.dims import kernel_defines
from luce_edu.stages.prefill import prefill_defines

GA102 = RATES[8, 6]
KERNEL = """.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 p, .param .u64 q)
{
    .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<40>; .reg .f32 %f<90>; .reg .b64 %rd<40>; .reg .f64 %fd<9>;
    .shared .align 16 .b8 tile[4096];
    ld.param.u64 %rd1, [p];
    ld.param.u64 %rd2, [q];
    mov.u32 %r1, %tid.x;
BODY
    ret;
}
"""


def program_of(body):
    return assemble(ptx.parse(KERNEL.replace("BODY", body)), "k", operations())


def entries(body, rates=GA102):
    """[(text of the statement, entry)] of the body; a source is an index into this list."""
    text = KERNEL.replace("BODY", body).split("\n")
    program, kept, places = program_of(body), [], {}
    for at, entry in enumerate(schedule(program, rates).entries):
        statement = program.statement(int(entry["row"]))
        name = text[statement.line - 1].strip() if statement else ""
        special = entry["pipe"] == NONE and entry["kind"] not in (PAUSE, FREE)
        if not special and not name.startswith(("ld.param", "ret")):
            places[at] = len(kept)
            entry["sources"] = [places.get(s, -1) if s >= 0 else s for s in entry["sources"].tolist()]
            kept.append((name, entry))
    return kept


def names(body):
    return [name.split()[0] for name, _ in entries(body)]


def kinds(found):
    return [KINDS[e["kind"]] for _, e in found]


def sources(entry):
    return [int(s) for s in entry["sources"] if s != -1]


def results(entry):
    return [int(entry[name]) for name in ("result", "result2", "result3", "result4") if entry[name] >= 0]


# ---- Order


def test_a_chain_stays_in_its_order_and_each_waits_for_the_one_before():
    body = """ld.global.f32 %f1, [%rd1];
    add.f32 %f2, %f1, %f1;
    mul.f32 %f3, %f2, %f2;
    ex2.approx.ftz.f32 %f4, %f3;
    st.global.f32 [%rd1+4], %f4;"""
    found = entries(body)
    assert [name.split()[0] for name, _ in found] == [line.split()[0] for line in body.split("\n")]
    first = sources(found[1][1])[0]
    assert [sources(e) for _, e in found[1:]] == [[first], [first + 1], [first + 2], [first + 3]]
    assert kinds(found) == ["load", "plain", "plain", "plain", "store"]
    assert [e["pipe"] for _, e in found[1:4]] == [FMA, FMA, MUFU]


def test_independent_loads_come_before_arithmetic_that_waits_for_another_load():
    body = """ld.global.f32 %f1, [%rd1];
    fma.rn.f32 %f2, %f1, %f1, %f1;
    ld.global.f32 %f3, [%rd1+512];
    fma.rn.f32 %f4, %f3, %f3, %f2;
    ld.shared.f32 %f5, [tile+16];
    fma.rn.f32 %f6, %f5, %f5, %f4;
    st.global.f32 [%rd2], %f6;"""
    assert names(body) == ["ld.global.f32"] * 2 + ["ld.shared.f32"] + ["fma.rn.f32"] * 3 + ["st.global.f32"]


STORES = {  # address of a store, address of the load behind it, whether the load may pass the store
    "another pointer": ("[%rd1]", "[%rd2]", False),
    "the same bytes": ("[%rd1+16]", "[%rd1+16]", False),
    "overlapping bytes": ("[%rd1+16]", "[%rd1+18]", False),
    "a moved pointer that meets it": ("[%rd1+16]", "[%rd3+12]", False),
    "other bytes of the same pointer": ("[%rd1+16]", "[%rd1+20]", True),
    "other bytes of a moved pointer": ("[%rd1+16]", "[%rd3+16]", True),
}


@pytest.mark.parametrize("case", STORES)
def test_a_load_passes_only_a_store_that_cannot_write_what_it_reads(case):
    to, source, passes = STORES[case]
    body = f"""add.s64 %rd3, %rd1, 4;
    cvt.rn.f32.s32 %f9, %r1;
    st.global.f32 {to}, %f9;
    ld.global.f32 %f1, {source};
    st.global.f32 [%rd2+64], %f1;"""
    order = names(body)
    assert (order.index("ld.global.f32") < order.index("st.global.f32")) == passes


def test_a_load_of_read_only_data_passes_every_store():
    body = """cvt.rn.f32.s32 %f9, %r1;
    st.global.f32 [%rd1], %f9;
    ld.global.nc.f32 %f1, [%rd1];
    st.global.f32 [%rd2], %f1;"""
    assert names(body) == ["ld.global.nc.f32", "cvt.rn.f32.s32", "st.global.f32", "st.global.f32"]


def test_a_load_of_another_space_passes_a_store_and_a_generic_one_does_not():
    body = """cvt.rn.f32.s32 %f9, %r1;
    st.shared.f32 [tile], %f9;
    ld.{}f32 %f1, [%rd1];
    st.global.f32 [%rd2], %f1;"""
    order = names(body.format("global."))
    assert order.index("ld.global.f32") < order.index("st.shared.f32")
    order = names(body.format(""))
    assert order.index("ld.f32") > order.index("st.shared.f32")


def test_a_store_stays_behind_loads_of_what_it_may_write_and_behind_other_stores():
    body = """ld.global.f32 %f1, [%rd1];
    st.global.f32 [%rd2], %f8;
    cvt.rn.f32.s32 %f9, %r1;
    st.global.f32 [%rd1+8], %f9;
    st.global.f32 [%rd1+12], %f8;
    st.global.f32 [%rd2+4], %f1;"""
    found = [name for name, _ in entries(body) if "global" in name]
    assert found == [line.strip() for line in body.split("\n") if "global" in line]


PAUSING = [
    "bar.sync 0;", "barrier.sync 1, 64;", "fence.acq_rel.gpu;", "membar.gl;", "nanosleep.u32 20;",
    "ld.acquire.gpu.global.u32 %r5, [%rd2];", "st.release.gpu.global.u32 [%rd2], %r1;",
    "ld.volatile.global.u32 %r5, [%rd2];", "ld.relaxed.gpu.global.u32 %r5, [%rd2];",
    "atom.global.add.u32 %r5, [%rd2], 1;", "red.global.add.u32 [%rd2], 1;", "atom.add.u32 %r5, [%rd2], 1;",
    "cp.async.wait_group 0;", "cp.async.wait_all;", "mov.u64 %rd9, %clock64;", "mbarrier.init.shared.b64 [tile], 3;",
]  # fmt: skip


@pytest.mark.parametrize("pause", PAUSING, ids=lambda text: text.split()[0])
def test_nothing_passes_a_pause(pause):
    body = f"""cvt.rn.f32.s32 %f9, %r1;
    st.shared.f32 [tile], %f9;
    {pause}
    ld.global.f32 %f1, [%rd1];
    add.s32 %r6, %r1, 7;
    st.global.u32 [%rd1+8], %r6;
    st.global.f32 [%rd1+4], %f1;
    {"st.global.u32 [%rd1+12], %r5;" if "%r5" in pause else ""}
    {"st.global.u64 [%rd1+16], %rd9;" if "%rd9" in pause else ""}"""
    found = entries(body)
    (at,) = [i for i, (name, _) in enumerate(found) if name == pause]
    assert KINDS[found[at][1]["kind"]] == "pause"
    assert [name.split()[0] for name, _ in found[:at]] == ["cvt.rn.f32.s32", "st.shared.f32"]
    assert found[at + 1][0].startswith("ld.global")


def test_a_shared_atomic_and_a_warp_barrier_are_no_pauses_and_keep_their_place():
    body = """st.shared.u32 [tile], %r1;
    bar.warp.sync -1;
    atom.shared.add.u32 %r5, [tile+4], 1;
    ld.shared.u32 %r6, [tile+4];
    add.s32 %r7, %r6, %r5;
    st.shared.u32 [tile+8], %r7;"""
    found = entries(body)
    assert kinds(found) == ["shared store", "plain", "shared atomic", "shared load", "plain", "shared store"]


def test_a_branch_comes_last_and_a_copy_to_a_later_block_is_its_source():
    body = """mov.u32 %r2, 0;
LOOP:
    ld.global.f32 %f1, [%rd1];
    add.s32 %r3, %r2, 1;
    st.global.f32 [%rd2], %f1;
    setp.lt.s32 %p1, %r3, 10;
    mov.u32 %r2, %r3;
    @%p1 bra LOOP;"""
    found = entries(body)
    assert found[-1][0].startswith("@%p1 bra")
    assert not [name for name, _ in found if name.startswith("mov.u32 	%r2, %r3")]
    (counter,) = [e for name, e in found if name.startswith("add.s32")]
    slot = next(r[3] for r in program_of(body).registers if r[1] == "%r3") // 128
    assert sources(counter) == [-2 - slot] and results(counter) == [slot]


def test_loads_run_ahead_only_as_far_as_there_are_registers():
    body = "\n".join(f"ld.global.v4.f32 {{%f1, %f2, %f3, %f4}}, [%rd1+{16 * i}];\n"
                     f"add.f32 %f5, %f1, %f2; add.f32 %f6, %f3, %f4; add.f32 %f{20 + i}, %f5, %f6;"
                     for i in range(40))  # fmt: skip
    body += "\n".join(f"st.global.f32 [%rd2+{4 * i}], %f{20 + i};" for i in range(40))

    def ahead(limit):
        text = KERNEL.replace("BODY", body).replace("q)", f"q) .maxnreg {limit}")
        found = schedule(assemble(ptx.parse(text), "k", operations()), GA102).entries
        order = "".join({"load": "l", "plain": "a"}.get(KINDS[e["kind"]], "") for e in found)
        return len(order[order.index("l") :].partition("a")[0])

    assert ahead(255) == 40 and 4 <= ahead(40) <= 10


def test_shared_loads_run_about_their_latency_ahead():
    body = "\n".join(f"ld.shared.f32 %f{i}, [%rd1+{128 * i}];\nfma.rn.f32 %f80, %f{i}, %f{i}, %f80;" for i in range(40))
    order = "".join(name[0] for name in names(body + "\nst.global.f32 [%rd2], %f80;"))
    assert 10 <= order.index("f") <= 20 and order.count("l") == order.count("f") == 40, "not all 40 loads first"


def test_the_launch_bounds_say_how_many_registers_a_thread_has():
    assert registers_of_a_thread({}) == 255 == registers_of_a_thread({"maxntid": (128, 1, 1)})
    assert registers_of_a_thread({"maxntid": (512, 1, 1), "minnctapersm": (1,)}) == 128
    assert registers_of_a_thread({"reqntid": (256,), "minnctapersm": (2,)}) == 128
    assert registers_of_a_thread({"maxnreg": (64,)}) == 64


# ---- Instructions that fold


def test_a_multiplication_and_the_addition_behind_it_are_one_instruction():
    body = """ld.global.u32 %r2, [%rd1];
    mul.wide.s32 %rd5, %r2, 4;
    add.s64 %rd6, %rd1, %rd5;
    ld.global.f32 %f1, [%rd6];
    add.s64 %rd7, %rd2, %rd5;
    st.global.f32 [%rd7+8], %f1;"""
    (_, *sums, load, store) = entries(body)
    assert [e["pipe"] for _, e in sums] == [IMAD, IMAD] and [e["issues"] for _, e in sums] == [1, 1]
    assert [sources(e) for _, e in sums] == [[0], [0]], "of the load of %r2"
    assert sources(load[1]) == [1] and sources(store[1]) == [2, 3]


def test_a_product_that_something_else_reads_too_stays_an_instruction():
    body = """mul.wide.s32 %rd5, %r1, 4;
    add.s64 %rd6, %rd1, %rd5;
    st.global.u64 [%rd6], %rd5;"""
    found = entries(body)
    assert [name.split()[0] for name, _ in found] == ["mul.wide.s32", "add.s64", "st.global.u64"]
    assert [e["issues"] for _, e in found] == [1, 2, 1]


def test_a_constant_added_to_an_address_is_part_of_the_access():
    body = """add.s64 %rd5, %rd1, 512;
    add.s64 %rd6, %rd5, 512;
    ld.global.f32 %f1, [%rd6];
    st.global.f32 [%rd5], %f1;"""
    assert names(body) == ["ld.global.f32", "st.global.f32"]


def test_an_address_that_is_also_stored_stays_an_instruction():
    body = """add.s64 %rd5, %rd1, 512;
    st.global.u64 [%rd5], %rd5;"""
    assert names(body) == ["add.s64", "st.global.u64"]


ONE = {
    "shift and add": "shl.b32 %r5, %r1, 3; add.s32 %r6, %r5, %r2;",
    "three summands": "add.s32 %r5, %r1, %r2; add.s32 %r6, %r5, %r3;",
    "two logic operations": "and.b32 %r5, %r1, %r2; xor.b32 %r6, %r5, %r3;",
    "multiply and add": "mul.lo.s32 %r5, %r1, %r2; add.s32 %r6, %r5, %r3;",
    "half of a word": "shl.b32 %r6, %r1, 16;",
    "other half": "and.b32 %r6, %r1, -65536;",
}


@pytest.mark.parametrize("case", ONE)
def test_what_is_one_machine_instruction(case):
    found = entries(f"mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ctaid.y; {ONE[case]} st.global.u32 [%rd1], %r6;")
    assert [e["pipe"] in (ALU, IMAD) for _, e in found].count(True) == 1
    assert sum(int(e["issues"]) for _, e in found if e["pipe"] in (ALU, IMAD)) == 1


NOTHING = {
    "sign": "neg.f32 %f2, %f1; fma.rn.f32 %f3, %f2, %f1, %f1;",
    "limit": "fma.rn.f32 %f2, %f1, %f1, %f1; cvt.sat.f32.f32 %f3, %f2;",
    "rename": "mov.f32 %f2, %f1; mul.f32 %f3, %f2, %f2;",
    "bits": "mov.b32 %r5, %f1; mov.b32 %f2, %r5; mul.f32 %f3, %f2, %f2;",
    "unused": "mul.f32 %f2, %f1, %f1; add.f32 %f3, %f1, %f1;",
}


@pytest.mark.parametrize("case", NOTHING)
def test_what_is_free_leaves_one_instruction_between_load_and_store(case):
    found = entries(f"ld.global.f32 %f1, [%rd1]; {NOTHING[case]} st.global.f32 [%rd2], %f3;")
    assert [e["pipe"] == FMA for _, e in found] == [False, True, False]
    assert sources(found[2][1])[-1] == sources(found[1][1])[0] + 1, "the store waits for the arithmetic"


def test_multiply_and_add_are_fused_only_where_ptx_says_so():
    body = """ld.global.f32 %f1, [%rd1];
    mul.f32 %f2, %f1, %f1;
    add.f32 %f3, %f2, %f1;
    st.global.f32 [%rd2], %f3;"""
    assert names(body) == ["ld.global.f32", "mul.f32", "add.f32", "st.global.f32"]


COUNTS = {  # machine instructions that ptxas 13.0 makes for sm_86
    "ex2.approx.f32": 4, "ex2.approx.ftz.f32": 1, "lg2.approx.f32": 4, "rcp.rn.f32": 8, "sqrt.rn.f32": 8,
    "rsqrt.approx.f32": 4, "sin.approx.f32": 2, "tanh.approx.f32": 1, "cvt.rni.f32.f32": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_special_functions_take_as_many_instructions_as_ptxas_makes(name):
    found = entries(f"ld.global.f32 %f1, [%rd1]; {name} %f2, %f1; st.global.f32 [%rd2], %f2;")
    assert found[1][1]["issues"] == COUNTS[name]


def test_rates_say_how_long_a_pipe_is_kept_and_when_a_result_is_there():
    body = """ld.global.f32 %f1, [%rd1];
    fma.rn.f32 %f2, %f1, %f1, %f1;
    cvt.rzi.s32.f32 %r5, %f2;
    xor.b32 %r6, %r5, 1;
    st.global.u32 [%rd2], %r6;"""
    found = entries(body, replace(GA102, fma_rate=64, alu_rate=64, conversion_rate=16, alu_latency=5))
    assert [e["pipe"] for _, e in found[1:4]] == [FMA, CONVERSION, ALU]
    assert [(e["busy"], e["latency"]) for _, e in found[1:4]] == [(2, 4), (8, 14), (2, 5)]
    assert found[0][1]["latency"] == 0, "memory adds its own"


def test_a_tensor_core_is_kept_by_the_products_that_it_makes_and_waits_for_all_its_operands():
    a, b, c = "{%r10, %r11, %r12, %r13}", "{%r14, %r15}", "{%f0, %f1, %f2, %f3}"
    body = "\n".join(f"ld.global.b32 %r{i}, [%rd1+{4 * i}];" for i in range(10, 16))
    body += "\n".join(f"ld.global.f32 %f{i}, [%rd2+{4 * i}];" for i in range(4))
    body += f"""
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {c}, {a}, {b}, {c};
    st.global.v4.f32 [%rd1], {c};"""
    found = entries(body, replace(GA102, tensor_rate=1024))
    (mma,) = [e for _, e in found if e["pipe"] == TENSOR]
    assert mma["busy"] == 8 and mma["issues"] == 1
    (joined,) = [e for _, e in found if KINDS[e["kind"]] == "free"]
    assert sorted(sources(joined) + sources(mma)) == [*range(11)], "ten loads and what joins six of them"


def test_a_predicated_instruction_waits_for_its_predicate_and_what_it_overwrites():
    body = """ld.global.f32 %f1, [%rd1];
    ld.global.f32 %f2, [%rd1+4];
    setp.lt.s32 %p1, %r1, 5;
    @%p1 add.f32 %f2, %f1, %f1;
    st.global.f32 [%rd2], %f2;"""
    (entry,) = [e for name, e in entries(body) if name.startswith("@%p1")]
    assert len(sources(entry)) == 3


def test_a_predicated_pause_is_in_the_block_that_the_core_gives_it():
    body = """setp.lt.s32 %p1, %r1, 5;
    @%p1 red.global.add.u32 [%rd1], 1;
    st.global.u32 [%rd2], %r1;"""
    program = program_of(body)
    found = schedule(program, GA102)
    (at,) = np.flatnonzero((found.entries["kind"] == PAUSE) & (found.entries["pipe"] == MEMORY))
    (block,) = [i for i, (first, count) in enumerate(found.blocks) if first <= at < first + count]
    first = program.blocks[block][0]
    assert first < found.entries["row"][at] < program.blocks[block + 1][0] and found.entries["row"][at] in program.sites


SIDE_BY_SIDE = {  # code before four loads, code between the second and the third, how many loads each entry joins
    "a variable": ("mov.u64 %rd3, tile;", "", [4]),
    "a row of 128 bytes for each thread": ("mul.wide.u32 %rd4, %r1, 128; add.s64 %rd3, %rd5, %rd4;", "", [4]),
    "pairs": ("mul.wide.u32 %rd4, %r1, 8; add.s64 %rd3, %rd5, %rd4;", "", [2, 2]),
    "words": ("mul.wide.u32 %rd4, %r1, 4; add.s64 %rd3, %rd5, %rd4;", "", [1, 1, 1, 1]),
    "an unknown address": ("ld.global.u64 %rd3, [%rd1];", "", [1, 1, 1, 1]),
    "a store between that may hit": ("mov.u64 %rd3, tile;", "st.shared.f32 [%rd1], %f9;", [2, 2]),
    "a store between that cannot": ("mov.u64 %rd3, tile;", "st.shared.f32 [%rd3+64], %f9;", [4]),
    "a barrier between": ("mov.u64 %rd3, tile;", "bar.sync 0;", [2, 2]),
}


@pytest.mark.parametrize("case", SIDE_BY_SIDE)
def test_shared_loads_side_by_side_are_one_where_their_address_is_known_to_be_aligned(case):
    before, between, joined = SIDE_BY_SIDE[case]
    found = entries(f"""mov.u64 %rd5, tile;
    {before}
    ld.shared.f32 %f1, [%rd3];
    ld.shared.f32 %f2, [%rd3+4];
    {between}
    ld.shared.f32 %f3, [%rd3+8];
    ld.shared.f32 %f4, [%rd3+12];
    add.f32 %f5, %f1, %f2;
    add.f32 %f6, %f3, %f4;
    add.f32 %f7, %f5, %f6;
    st.global.f32 [%rd2], %f7;""")
    loads = [(at, e) for at, (_, e) in enumerate(found) if KINDS[e["kind"]] == "shared load"]
    assert [e["joined"] for _, e in loads] == joined
    for at, entry in loads:
        for i in range(1, entry["joined"]):
            assert found[at + i][0].startswith("ld.shared") and sources(found[at + i][1]) == [at]
    asked = {source for name, e in found if name.startswith("add.f32 %f5") for source in sources(e)}
    assert asked == {at for at, _ in loads[: 1 if joined[0] > 1 else 2]}, "the sum waits for the joined loads"


def test_a_pointer_that_a_loop_moves_is_as_aligned_as_its_step():
    body = """mov.u64 %rd3, tile;
LOOP:
    ld.shared.f32 %f1, [%rd3];
    ld.shared.f32 %f2, [%rd3+4];
    st.global.v2.f32 [%rd1], {%f1, %f2};
    add.s64 %rd3, %rd3, STEP;
    setp.lt.u64 %p1, %rd3, 512;
    @%p1 bra LOOP;"""
    joined = [sorted(int(e["joined"]) for _, e in entries(body.replace("STEP", step))) for step in ("64", "12", "8")]
    assert [counts[-1] for counts in joined] == [2, 1, 2]


def test_a_carry_is_waited_for():
    body = """ld.global.u32 %r2, [%rd1];
    add.cc.u32 %r3, %r2, %r2;
    addc.u32 %r4, 0, 0;
    st.global.u32 [%rd2], %r4;"""
    assert [sources(e) for _, e in entries(body)] == [[], [0], [1], [2]]


def test_a_kernel_ends_with_a_pause_also_where_its_ptx_has_no_ret():
    program = assemble(ptx.parse(KERNEL.replace("ret;", "").replace("BODY", "bar.sync 0;")), "k", operations())
    found = schedule(program, GA102)
    assert [KINDS[e["kind"]] for e in found.entries][-2:] == ["pause", "pause"]
    check(program, found)


CALL = """.version 8.0
.target sm_80
.address_size 64
.func (.param .b32 r) twice (.param .b32 x)
{
    .reg .b32 %r<9>;
    ld.param.u32 %r1, [x];
    add.s32 %r2, %r1, %r1;
    st.param.b32 [r], %r2;
    ret;
}
.visible .entry k(.param .u64 p)
{
    .reg .b32 %r<9>; .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [p];
    ld.global.u32 %r1, [%rd1];
    { .param .b32 x; .param .b32 r;
    st.param.b32 [x], %r1;
    call.uni (r), twice, (x);
    ld.param.b32 %r2, [r]; }
    st.global.u32 [%rd1+8], %r2;
    ret;
}
"""


def test_a_called_function_has_its_blocks():
    program = assemble(ptx.parse(CALL), "k", operations())
    found = schedule(program, GA102)
    check(program, found)
    names = [(s.opcode if (s := program.statement(int(e["row"]))) else "") for e in found.entries]
    assert names == ["add", "ret", "ld", "ld", "call", "st", "ret"]
    assert [KINDS[k] for k in found.entries["kind"][[1, 4, 6]]] == ["plain", "plain", "pause"]


def test_printf_keeps_its_place():
    text = """.version 8.0
.target sm_80
.address_size 64
.extern .func (.param .b32 r) vprintf (.param .b64 f, .param .b64 a);
.visible .entry k(.param .u64 p)
{
    .reg .b32 %r<9>; .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [p];
    st.global.u32 [%rd1], 1;
    { .param .b64 f; .param .b64 a; .param .b32 r;
    st.param.b64 [f], %rd1; st.param.b64 [a], %rd1;
    call.uni (r), vprintf, (f, a);
    ld.param.b32 %r1, [r]; }
    ld.global.u32 %r2, [%rd1+4];
    st.global.u32 [%rd1+8], %r2;
    ret;
}
"""
    found = schedule(assemble(ptx.parse(text), "k", operations()), GA102).entries
    assert [KINDS[e["kind"]] for e in found] == ["free", "store", "plain", "load", "store", "pause"]


# ---- The shipped kernels

SOURCES = {
    "per_op.cu compute_75": kernel_defines(TINY), "per_layer.cu compute_90a": kernel_defines(TINY),
    "megakernel.cu compute_80": kernel_defines(TINY), "prefill.cu compute_80": prefill_defines(TINY),
    "microbench.cu compute_90a": {"BLOCK_THREADS": 128}, "hostile.cu compute_90a": None, "orders.cu compute_90a": None,
}  # fmt: skip


@cache
def programs(which):
    source, arch = which.split()
    defines = SOURCES[which]
    text = planted_ptx(source, arch) if defines is None else compile_ptx(source, None, [], defines, arch)
    module = ptx.parse(text)
    made = [assemble(module, name, operations()) for name, f in module.functions.items() if f.entry and not f.external]
    return [(program, schedule(program, GA102)) for program in made]


def check(program, found):
    """Assert everything that a Schedule promises for any kernel."""
    entries, blocks = found.entries, found.blocks
    names = {number: name for name, number in operations().items()}
    op = [names.get(number, "") for number in program.code["op"].tolist()]
    assert len(blocks) == len(program.blocks) and blocks[:, 1].sum() == len(entries)
    rows, sites = entries["row"].tolist(), set(program.sites)
    assert sorted(row for row in rows if row in sites) == sorted(sites), "each access has one entry"
    paused = {rows[i] for i in np.flatnonzero(entries["kind"] == PAUSE)}
    for row, name in enumerate(op):
        assert not pauses(name) or row in paused, f"{name} is no pause"
    assert all(pauses(op[row]) for row in paused), "only a pausing instruction has a pause"
    starts = set(slots_of(program).values())
    assert all(slot < found.slots for slot in starts)
    for number, (first, count) in enumerate(blocks.tolist()):
        begin = program.blocks[number][0]
        end = program.blocks[number + 1][0] if number + 1 < len(blocks) else len(op)
        written = []
        for i in range(count):
            entry = entries[first + i]
            assert entry["row"] == -1 or begin < entry["row"] < end
            assert entry["row"] == -1 or entry["statement"] == program.sources[entry["row"]]
            for source in sources(entry):
                assert source < i and (source >= -1 or -2 - source in starts), "a source comes before, or is a register"
            for other in entries[first + i + 1 : first + i + entry["joined"]]:
                assert other["kind"] == FREE and sources(other) == [i] and other["row"] in program.sites
            for result in results(entry):
                assert result in starts
            written += results(entry)
            last = entry["pipe"] == BRANCH and entry["kind"] != PAUSE and op[entry["row"]] != "vprintf"
            assert not last or i == count - 1, "a branch ends its block"
        assert len(written) == len(set(written)), "a register is set once"
    assert (entries["issues"] > 0).tolist() == (entries["kind"] != FREE).tolist()
    assert np.isfinite(entries["latency"]).all() and (entries["latency"] >= 0).all() and (entries["busy"] >= 0).all()


def pauses(name):
    words = name.split(".")
    if words[0] in ("ld", "st"):
        return words[1] == "sync"
    if words[0] == "atom":
        return words[1] != "shared"
    if words[0] == "bar":
        return words[1] != "warp"
    if words[0] == "cp":
        return "commit" not in name and any(word in name for word in ("wait_group", "wait_all", "mbarrier", "bulk"))
    return words[0] in ("exit", "fence", "nanosleep", "griddepcontrol", "barrier", "trap", "brkpt") or (
        words[0] in ("clock", "clock_hi", "clock64", "globaltimer", "globaltimer_lo", "globaltimer_hi")
        or words[0] == "mbarrier" and words[1] != "pending_count"
    )


@pytest.mark.parametrize("which", SOURCES)
def test_shipped_kernels_have_an_entry_for_each_access_and_each_pause(which):
    for program, found in programs(which):
        check(program, found)


def slots_of(program):
    """The slot of each PTX register (function, name), as Schedule says; constants have none."""
    found, predicates = {}, {}
    for function, name, kind, offset, _, _ in program.registers:
        if offset < program.image_at:
            found[function, name] = offset // 128
            if kind == "pred":
                found[function, name] = program.arena_bytes // 128 + predicates.setdefault(offset, len(predicates))
    return found


def spelled(operand):
    """The names of an operand's registers, from its printed form."""
    return re.findall(r"Reg\(name='([^']*)'\)", str(operand))


def reads_and_writes(statements):
    """The registers that a block reads before it writes them, and {register: the last statement that writes it}."""
    reads, writes = set(), {}
    for ins in statements:
        results = spelled(ins.operands[0]) if ins.operands and ins.opcode not in ("st", "red", "bra", "bar") else []
        uses = [name for operand in ins.operands[bool(results) :] for name in spelled(operand)]
        uses += [ins.predicate] if ins.predicate else []
        reads |= {name for name in uses if name not in writes}
        writes |= dict.fromkeys(results, ins)
    return reads, writes


def test_a_block_reads_and_sets_the_registers_that_its_statements_name():
    """A block reads slots for values of earlier blocks, and writes slots for later ones, except constants."""
    for program, found in programs("megakernel.cu compute_80"):
        slots = {name: slot for (_, name), slot in slots_of(program).items()}
        of_block = [reads_and_writes(statements) for statements in program.block_instructions]
        everywhere = set().union(*(reads for reads, _ in of_block))
        sets = set()
        for (first, count), (reads, writes) in zip(found.blocks.tolist(), of_block, strict=True):
            entries = found.entries[first : first + count]
            read = {-2 - s for s in entries["sources"].ravel().tolist() if s < -1}
            written = {slot for entry in entries for slot in results(entry)}
            assert len(read - {slots[n] for n in reads if n in slots}) <= 1, "one for a fused register"
            assert written <= {slots[n] for n in writes if n in slots}
            for name, ins in writes.items():
                if name in everywhere and slots.get(name, -1) not in written and name in slots:
                    assert ins.opcode in ("mov", "cvta") or "param" in ins.modifiers, f"{name} is lost"
            sets |= written
        assert max(sets) < found.slots and len(sets) > 50


PLANTED = {
    "an access without an entry": lambda e: e["row"].__setitem__(e["kind"] == LOAD, -1),
    "a pause that is none": lambda e: e["kind"].__setitem__(e["kind"] == PAUSE, 0),
    "an access with two entries": lambda e: e["row"].__setitem__(
        np.flatnonzero(e["kind"] == BYPASS)[:2], e["row"][e["kind"] == BYPASS][0]
    ),
    "a source that comes later": lambda e: e["sources"].__setitem__((slice(None), 0), 10**6),
    "a register that does not exist": lambda e: e["result"].__setitem__(slice(None), 10**6),
    "another statement": lambda e: e["statement"].__setitem__(slice(None), e["statement"] + 1),
    "an instruction that is not issued": lambda e: e["issues"].__setitem__(slice(None), 0),
}


@pytest.mark.planted
@pytest.mark.parametrize("fault", PLANTED)
def test_the_check_refuses(fault):
    program, found = next(p for p in programs("per_op.cu compute_75") if p[0].name == "matvec")
    entries = found.entries.copy()
    PLANTED[fault](entries)
    with pytest.raises(AssertionError):
        check(program, replace(found, entries=entries))


def test_a_dot_product_of_bf16_overlaps_its_loads():
    """In the matvec's unrolled loop all loads of weights come first, then the shared loads, then arithmetic."""
    program, found = next(p for p in programs("per_op.cu compute_75") if p[0].name == "matvec")
    runs = []
    for first, count in found.blocks.tolist():
        kinds = [KINDS[k] for k in found.entries["kind"][first : first + count]]
        if kinds.count("bypass") == 4:
            runs.append(kinds)
    assert runs and all(run[:4] == ["bypass"] * 4 and "bypass" not in run[4:] for run in runs)


def test_shuffles_have_their_pipe():
    body = "shfl.sync.bfly.b32 %r5|%p1, %r1, 1, 31, -1; st.global.u32 [%rd1], %r5;"
    assert [e["pipe"] for _, e in entries(body)][0] == SHUFFLE
