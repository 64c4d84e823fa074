"""The virtual GPU against cases that were derived by hand from the text of the PTX ISA."""

from itertools import groupby

import numpy as np
import pytest
from isa import floats, kernel, warp
from isa.cases import CASES
from isa.floats import BF16, F16, F32, F64
from isa.model import INSTRUCTIONS, Near, agrees, evaluate


def family(text):
    return text.split(" ")[0].split(".")[0]


FAMILIES = {
    name: [case for case in CASES if family(case[0]) == name] for name in dict.fromkeys(family(c[0]) for c in CASES)
}


@pytest.mark.parametrize("name", FAMILIES)
def test_machine_gives_the_results_of_the_isa(name):
    by_text = groupby(sorted(FAMILIES[name], key=lambda case: case[0]), key=lambda case: case[0])
    cases = {text: list(group) for text, group in by_text}
    jobs = [
        (INSTRUCTIONS[text], [inputs for _, inputs, _ in group], [outputs for *_, outputs in group])
        for text, group in cases.items()
    ]
    assert kernel.check(jobs) == []


def test_model_gives_the_results_of_the_isa():
    wrong = []
    for text, inputs, outputs in CASES:
        instruction = INSTRUCTIONS[text]
        modelled = evaluate(instruction, inputs)
        for kind, said, by_hand in zip(instruction.outs, modelled, outputs, strict=True):
            same = agrees(kind, said, by_hand) if isinstance(said, Near) else said == by_hand
            if not same and not (isinstance(by_hand, int) and isinstance(said, int) and agrees(kind, by_hand, said)):
                wrong.append((text, inputs, modelled))
    assert wrong == []


def _arrays(form):
    """Patterns of two operands, edge values and random ones, with their numpy values."""
    unsigned, real = {16: (np.uint16, np.float16), 32: (np.uint32, np.float32), 64: (np.uint64, np.float64)}[form.bits]
    rows = kernel.inputs(INSTRUCTIONS[f"add.{form.name}"], 3000, "numpy")
    a, b = (np.array(column, dtype=unsigned) for column in zip(*rows, strict=True))
    return rows, a.view(real), b.view(real), unsigned


@pytest.mark.parametrize("form", (F16, F32, F64), ids=lambda form: form.name)
@pytest.mark.parametrize("name", ("add", "mul", "div", "sqrt"))
def test_model_rounds_as_numpy_does(form, name):
    rows, a, b, unsigned = _arrays(form)
    run = {"add": np.add, "mul": np.multiply, "div": np.divide, "sqrt": np.sqrt}[name]
    with np.errstate(all="ignore"):
        result = run(a) if name == "sqrt" else run(a, b)
    modelled = [getattr(floats, name)(form, *row[: 1 if name == "sqrt" else 2]) for row in rows]
    there = result.view(unsigned).tolist()
    assert [agrees(form.name + "~", x, y) for x, y in zip(modelled, there, strict=True)].count(False) == 0


def test_model_converts_as_numpy_does():
    rows, a, _, _ = _arrays(F64)
    with np.errstate(all="ignore"):
        for form, real, unsigned in ((F32, np.float32, np.uint32), (F16, np.float16, np.uint16)):
            there = a.astype(real).view(unsigned).tolist()
            modelled = [floats.convert(F64, form, row[0]) for row in rows]
            assert all(agrees(form.name + "~", x, y) for x, y in zip(modelled, there, strict=True))
    words = [row[0] >> 32 for row in rows]
    upper = [word >> 16 for word in words]
    assert [floats.convert(F32, BF16, word, "rz") for word in words if not floats.is_nan(F32, word)] == [
        half for half, word in zip(upper, words, strict=True) if not floats.is_nan(F32, word)
    ]


def test_every_kernel_of_the_suite_is_ptx_to_nvidias_assembler():
    linker = pytest.importorskip("cuda.bindings.nvjitlink")
    variants = [variant for plain in INSTRUCTIONS.values() for variant in kernel.with_constants(plain)]
    kernels = [kernel.ptx(instruction, f"i{n}") for n, instruction in enumerate([*INSTRUCTIONS.values(), *variants])]
    kernels += [warp.kernel(instruction, f"w{n}") for n, instruction in enumerate(warp.WARP.values())]
    text = (kernel.HEADER + "".join(kernels)).encode()
    handle = linker.create(2, ["-arch=sm_90", "-O0"])
    try:
        linker.add_data(handle, linker.InputType.PTX, text, len(text), "conformance")
        linker.complete(handle)
        assert linker.get_linked_cubin_size(handle) > 0
    finally:
        linker.destroy(handle)


@pytest.mark.planted
def test_a_wrong_expectation_is_seen():
    instruction = INSTRUCTIONS["add.s32"]
    rows = [(1, 2), (0x7FFFFFFF, 1), (5, 5)]
    assert len(kernel.check([(instruction, rows, [(3,), (0x7FFFFFFF,), (10,)])])) == 1


@pytest.mark.planted
def test_a_wrong_instruction_is_seen():
    """A machine that subtracts instead of adding, rounds another way or flushes where it must not fails the check."""
    for right, planted in (("add.s32", "sub.s32"), ("add.rz.f32", "add.rn.f32"), ("mul.rn.f32", "mul.rn.ftz.f32")):
        rows = kernel.inputs(INSTRUCTIONS[right], 512, "planted")
        expected = kernel.expectations(INSTRUCTIONS[right], rows)
        assert kernel.check([(INSTRUCTIONS[planted], rows, expected)])
