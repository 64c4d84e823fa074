"""The virtual GPU against the plain model of PTX: seeded bit patterns with a bias to edge values."""

import itertools
import os

import pytest
from isa import kernel, warp
from isa.model import INSTRUCTIONS, some_result

ROWS = 16384 if os.environ.get("LUCE_FULL") == "1" else 768
WARPS = ROWS // 32


def family(text):
    """The opcode, with the type behind it where one opcode has many instructions."""
    words = text.split(" ")[0].split(".")
    return f"{words[0]}.{words[-1]}" if words[0] in ("cvt", "setp") else words[0]


FAMILIES = {}
for _instruction in INSTRUCTIONS.values():
    FAMILIES.setdefault(family(_instruction.text), []).append(_instruction)


@pytest.mark.parametrize("name", FAMILIES)
def test_machine_agrees_with_the_model(name):
    jobs = []
    for instruction in FAMILIES[name]:
        rows = kernel.inputs(instruction, ROWS, 0)
        jobs.append((instruction, rows, kernel.expectations(instruction, rows)))
    assert kernel.check(jobs) == []


MODIFIERS = (".ftz", ".sat", ".NaN", ".relu", ".xorsign.abs", ".cc", ".clamp", ".shiftamt")
# The modifier changes nothing here: a subnormal number rounds to the same integer, and within the bound of .approx.
SAME = ("cvt.rni.ftz", "cvt.rzi.ftz", "cvt.rmi.ftz.u", "sin.approx.ftz", "cos.approx.ftz", "setp.num", "setp.nan")


@pytest.mark.planted
def test_rows_tell_an_instruction_from_the_one_without_a_modifier():
    """The model's results differ on these rows, so the test above fails for a machine that ignores a modifier."""
    pairs = []
    for text, modifier in itertools.product(INSTRUCTIONS, MODIFIERS):
        plain = text.replace(modifier, "", 1)
        if plain != text and plain in INSTRUCTIONS and not text.startswith(SAME) and not text.endswith("x2"):
            pairs.append((INSTRUCTIONS[text], INSTRUCTIONS[plain]))
    alike = []
    for instruction, plain in pairs:
        rows = kernel.inputs(instruction, ROWS, 0)[:400]
        if kernel.wrong(plain, rows, kernel.expectations(plain, rows), _exact(instruction, rows)) == []:
            alike.append(instruction.text)
    assert alike == []


def _exact(instruction, rows):
    """The model's results as a machine would give them."""
    return [
        tuple(some_result(kind, value) for kind, value in zip(instruction.outs, row, strict=True))
        for row in kernel.expectations(instruction, rows)
    ]


CONSTANTS = {name: [v for plain in group for v in kernel.with_constants(plain)] for name, group in FAMILIES.items()}


@pytest.mark.parametrize("name", [name for name, variants in CONSTANTS.items() if variants])
def test_constants_are_operands_too(name):
    jobs = []
    for instruction in CONSTANTS[name]:
        rows = kernel.inputs(instruction, 64, 1)
        jobs.append((instruction, rows, kernel.expectations(instruction, rows)))
    assert kernel.check(jobs) == []


# A predicate guards one instruction; behind a branch there may be two.
GUARDS = [(text, guard) for text in warp.WARP for guard in (False, True) if not (guard and ";" in text)]


@pytest.mark.parametrize("text, guard", GUARDS)
def test_warps_agree_with_the_model(text, guard):
    instruction = warp.WARP[text]
    rows = warp.inputs(instruction, WARPS, 0)
    expected = warp.expectations(instruction, rows)
    loaded = kernel.load(kernel.HEADER + warp.kernel(instruction, guard=guard))["kernel"]
    got = kernel.run(loaded, instruction.plain, rows)
    assert kernel.wrong(instruction.plain, rows, expected, got) == []
