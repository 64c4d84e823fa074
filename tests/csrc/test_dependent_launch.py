"""Dependent launch in the compiler's PTX: no kernel loads anything before its wait, on any path.

The virtual GPU overlaps two kernels only for some seeds. The text of the PTX has every path.
"""

from collections import Counter

import pytest
from models import CONFIGS, FULL_SIZE

from luce_edu.faults import Fault, planted
from luce_edu.machine import ptx
from luce_edu.machine.cubin import compile_cubin
from luce_edu.machine.kernels import parsed
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.overlap import is_access, is_control
from luce_edu.stages.dims import BLOCK_THREADS, kernel_defines
from luce_edu.stages.per_layer import PerLayerDecoder

ARCHITECTURES = ("sm_90a", "sm_100a", "sm_120")  # all that have dependent launch, of those that we name
MACRO = {"DEPENDENT_LAUNCH": 1}
SHIPPED = {"tiny": CONFIGS["tiny"], "0.8b": FULL_SIZE}
ALONE = {"deltanet_out", "attention", "attention_out"}
WITH_MATRICES = {"deltanet_in", "deltanet_out", "attention_in", "attention_out", "mlp_up", "mlp_down", "lm_head"}

BEFORE, WAITED, LET_START = "before its wait", "after its wait", "after letting its successor start"


def compiled(source, arch, defines, csrc=None) -> str:
    return compile_ptx(source, None, (), defines, arch.replace("sm", "compute"), csrc=csrc)


def per_layer(arch, config="tiny", csrc=None) -> dict[str, ptx.Function]:
    """The kernels of per_layer.cu, by name."""
    module = parsed(compiled("per_layer.cu", arch, kernel_defines(SHIPPED[config]) | MACRO, csrc))
    return {name: function for name, function in module.functions.items() if function.entry}


def problems(kernel: ptx.Function) -> set[str]:
    """The faults on any path from the kernel's start to one of its ends."""
    labels = {item.name: at for at, item in enumerate(kernel.body) if isinstance(item, ptx.Label)}
    found, seen, todo = set(), set(), [(0, BEFORE)]
    while todo:
        at, state = todo.pop()
        if (at, state) in seen:
            continue
        seen.add((at, state))
        one = kernel.body[at]
        if isinstance(one, ptx.Label):
            todo.append((at + 1, state))
            continue
        after = state
        if is_control(one, "wait"):
            after = WAITED if state == BEFORE else state
        elif is_control(one, "launch_dependents"):
            if state != WAITED:
                found.add(f"lets its successor start {state}")
            after = LET_START
        elif state == BEFORE and is_access(one):
            found.add(f"{one.opcode} {state}")
        elif one.opcode in ("ret", "exit", "trap") and state != LET_START:
            found.add(f"may end {state}")
        assert one.opcode != "brx", "this test does not follow jumps by table"
        if one.opcode == "bra":
            todo.append((labels[one.operands[0].name], after))
        if one.predicate or one.opcode not in ("bra", "ret", "exit", "trap"):
            todo.append((at + 1, after))
    return found


def verdict(kernels: dict[str, ptx.Function]) -> dict[str, set[str]]:
    """The kernels with problems."""
    found = {name: problems(kernel) for name, kernel in kernels.items()}
    return {name: of_it for name, of_it in found.items() if of_it}


def instructions(kernel: ptx.Function) -> list[ptx.Instruction]:
    return [item for item in kernel.body if isinstance(item, ptx.Instruction)]


def prefetches_before_its_wait(kernel: ptx.Function) -> int:
    body = instructions(kernel)
    wait = next(at for at, one in enumerate(body) if is_control(one, "wait"))
    return sum(one.opcode == "prefetch" and one.modifiers[:2] == ("global", "L2") for one in body[:wait])


@pytest.mark.parametrize("config", SHIPPED)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_waits_before_its_first_load_and_lets_its_successor_start_once_after_that(arch, config):
    kernels = per_layer(arch, config)
    assert set(kernels) == set(PerLayerDecoder.kernels)
    assert verdict(kernels) == {}
    for name, kernel in kernels.items():
        count = Counter(one.modifiers for one in instructions(kernel) if one.opcode == "griddepcontrol")
        assert count == {("wait",): 1, ("launch_dependents",): 1}, name
        assert any(map(is_access, instructions(kernel))), f"{name}: no load was recognised"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_with_a_matrix_asks_for_it_before_it_waits(arch):
    assert {name for name, kernel in per_layer(arch).items() if prefetches_before_its_wait(kernel)} == WITH_MATRICES


@pytest.mark.parametrize("source", ["per_layer.cu", "per_op.cu", "megakernel.cu", "microbench.cu"])
def test_without_the_macro_there_is_neither_wait_nor_prefetch(source):
    defines = {"BLOCK_THREADS": BLOCK_THREADS} if source == "microbench.cu" else kernel_defines(SHIPPED["tiny"])
    text = compiled(source, "sm_90a", defines)
    assert ".entry" in text and "griddepcontrol" not in text and "prefetch" not in text


def test_the_empty_kernel_that_is_timed_with_dependent_launch_has_both():
    module = parsed(compiled("microbench.cu", "sm_90a", {"BLOCK_THREADS": BLOCK_THREADS} | MACRO))
    assert problems(module.functions["nothing"]) == set()


def registers_without_spills(arch, config, csrc=None) -> dict[str, int]:
    defines = kernel_defines(SHIPPED[config]) | MACRO
    binary = compile_cubin("per_layer.cu", PerLayerDecoder.kernels, defines, arch, **({"csrc": csrc} if csrc else {}))
    for name, resources in binary.resources.items():
        assert resources.stack_bytes == resources.spill_store_bytes == resources.spill_load_bytes == 0, name
        assert resources.shared_bytes <= 48 * 1024, name
    return {name: resources.registers for name, resources in binary.resources.items()}


@pytest.mark.parametrize("config", SHIPPED)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_kernel_finds_room_beside_its_predecessor_without_spills(arch, config):
    """Two blocks of 64 registers per thread fill an SM. Kernels that would spill at 64 have an SM to themselves."""
    registers = registers_without_spills(arch, config)
    most = 65536 // BLOCK_THREADS
    assert all(count <= (most if name in ALONE else most // 2) for name, count in registers.items()), registers


@pytest.mark.planted
@pytest.mark.parametrize("alone", ["deltanet_out", "attention_out", "attention"])
def test_those_that_have_an_sm_to_themselves_would_spill(alone):
    tighter = Fault("", "per_layer.cu", f"KERNEL {alone}(", f"KERNEL_FOR(beside_predecessor) {alone}(")
    with planted(tighter) as tree, pytest.raises(AssertionError, match=f"^{alone}"):
        registers_without_spills("sm_120", "0.8b", csrc=tree)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_warp_of_the_head_asks_for_both_rows_of_its_pair(arch):
    lines_of_128_bytes = 2 * FULL_SIZE.hidden_size * 2 // 128  # two rows of bf16
    asked = prefetches_before_its_wait(per_layer(arch, "0.8b")["lm_head"])
    assert 32 * asked == max(64, lines_of_128_bytes), "one line per lane"


# ---- Planted ----

PHASE = "mlp_down_phase(act, down_proj, x, out, &shared);"
BEGIN = "    wait_for_predecessor();\n    let_successor_start();\n}"
PLANTS = {
    "a kernel that loads first": (
        Fault("", "per_layer.cu", f"begin_phase();\n    {PHASE}", f"{PHASE}\n    begin_phase();"),
        {"mlp_down": {"ld before its wait", "st before its wait"}},
    ),
    "one early load among the prefetches": (
        Fault(
            "", "per_layer.cu", f"begin_phase();\n    {PHASE}",
            f"const float early = act[0];\n    begin_phase();\n    {PHASE}\n    if (early > 9.0f) out[0] = early;",
        ),
        {"mlp_down": {"ld before its wait"}},
    ),
    "a wait by some threads only": (
        Fault("", "per_layer.cu", f"begin_phase();\n    {PHASE}", f"if (threadIdx.x < 32) begin_phase();\n    {PHASE}"),
        {"mlp_down": {"ld before its wait", "st before its wait", "may end before its wait"}},
    ),
    "a successor that starts before the wait": (
        Fault("", "per_layer.cu", BEGIN, "    let_successor_start();\n    wait_for_predecessor();\n}"),
        dict.fromkeys(PerLayerDecoder.kernels, {"lets its successor start before its wait"}),
    ),
    "a successor that is started twice": (
        Fault("", "per_layer.cu", BEGIN, BEGIN[:-1] + "    let_successor_start();\n}"),
        dict.fromkeys(
            PerLayerDecoder.kernels, {"lets its successor start after letting its successor start"}
        ),
    ),
    "a successor that is never let start": (
        Fault("", "per_layer.cu", BEGIN, "    wait_for_predecessor();\n}"),
        dict.fromkeys(PerLayerDecoder.kernels, {"may end after its wait"}),
    ),
    "a wait that is none": (
        Fault("", "primitives.cuh", 'asm volatile("griddepcontrol.wait;" ::: "memory");', ""),
        None,  # every kernel has some fault
    ),
}  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("plant", PLANTS)
def test_the_check_catches(plant):
    fault, expected = PLANTS[plant]
    with planted(fault) as tree:
        found = verdict(per_layer("sm_90a", csrc=tree))
    assert set(found) == set(PerLayerDecoder.kernels) if expected is None else found == expected


@pytest.mark.planted
def test_a_matrix_that_is_asked_for_after_the_wait_is_seen():
    prefetch = "    prefetch_first_row<intermediate_size>(down_proj, hidden_size);\n"
    late = Fault("", "per_layer.cu", f"{prefetch}    begin_phase();\n", f"    begin_phase();\n{prefetch}")
    with planted(late) as tree:
        kernels = per_layer("sm_90a", csrc=tree)
    asking = {name for name, kernel in kernels.items() if prefetches_before_its_wait(kernel)}
    assert asking == WITH_MATRICES - {"mlp_down"}


@pytest.mark.planted
def test_a_wait_that_does_not_ask_for_the_macro_is_seen():
    always = Fault("", "primitives.cuh", "#ifdef DEPENDENT_LAUNCH", "#if 1")
    with planted(always) as tree:
        assert "griddepcontrol" in compiled("per_layer.cu", "sm_90a", kernel_defines(SHIPPED["tiny"]), csrc=tree)
