"""The virtual GPU against the plain model of PTX: seeded bit patterns with a bias to edge values."""

import os

import pytest
from isa import kernel, warp
from isa.model import INSTRUCTIONS

ROWS = 16384 if os.environ.get("LUCE_FULL") == "1" else 1024
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


CONSTANTS = {name: [v for plain in group for v in kernel.with_constants(plain)] for name, group in FAMILIES.items()}


@pytest.mark.parametrize("name", [name for name, variants in CONSTANTS.items() if variants])
def test_constants_are_operands_too(name):
    jobs = []
    for instruction in CONSTANTS[name]:
        rows = kernel.inputs(instruction, 64, 1)
        jobs.append((instruction, rows, kernel.expectations(instruction, rows)))
    assert kernel.check(jobs) == []


# Under a predicate goes one instruction; behind a branch also two.
GUARDS = [(text, guard) for text in warp.WARP for guard in (False, True) if not (guard and ";" in text)]


@pytest.mark.parametrize("text, guard", GUARDS)
def test_warps_agree_with_the_model(text, guard):
    instruction = warp.WARP[text]
    rows = warp.inputs(instruction, WARPS, 0)
    expected = warp.expectations(instruction, rows)
    loaded = kernel.load(kernel.HEADER + warp.kernel(instruction, guard=guard))["kernel"]
    got = kernel.run(loaded, instruction.plain, rows)
    assert kernel.wrong(instruction.plain, rows, expected, got) == []
