"""Kernels of the suite: one instruction with an array for each operand, or a body written by hand."""

import random
from functools import cache

import numpy as np
import torch

from isa import floats
from isa.floats import FORMATS
from isa.model import INPUTS, OUTPUTS, Instruction, agrees, evaluate, signed, width
from luce_edu.errors import CompileError
from luce_edu.machine import load

HEADER = ".version 8.0\n.target sm_90\n.address_size 64\n"
THREADS = 128
_SIGNED = {16: np.int16, 32: np.int32, 64: np.int64}
_UNSIGNED = {16: np.uint16, 32: np.uint32, 64: np.uint64}
UNWRITTEN = 0x5A5A5A5A5A5A5A5A


def stored_bits(kind):
    """The width in memory of a value: predicates are words there."""
    return max(width(kind.rstrip("~")), 16) if kind != "pred" else 32


def with_operands(instruction):
    """The PTX of an instruction; a bare opcode gets all outputs and inputs as its operands."""
    if " " in instruction.text:
        return instruction.text
    names = [*OUTPUTS[: len(instruction.outs)], *INPUTS[: len(instruction.ins)]]
    return f"{instruction.text} {', '.join('%' + name for name in names)}"


def ptx(instruction, name="kernel"):
    """A kernel (outputs, then inputs, as pointers) that runs the instruction in each thread."""
    outs = list(zip(OUTPUTS, instruction.outs, strict=False))
    ins = list(zip(INPUTS, instruction.ins, strict=False))
    lines = [f".reg .{'pred' if kind == 'pred' else f'b{stored_bits(kind)}'} %{reg};" for reg, kind in outs + ins]
    lines += [
        ".reg .b32 %i0, %i1, %word;",
        ".reg .b64 %at;",
        "mov.u32 %i0, %ctaid.x;",
        "mov.u32 %i1, %ntid.x;",
        "mul.lo.u32 %i0, %i0, %i1;",
        "mov.u32 %i1, %tid.x;",
        "add.u32 %i0, %i0, %i1;",
    ]

    def address(reg, kind):
        return [f"ld.param.u64 %at, [p_{reg}];", f"mad.wide.u32 %at, %i0, {stored_bits(kind) // 8}, %at;"]

    for reg, kind in ins:
        lines += address(reg, kind)
        if kind == "pred":
            lines += ["ld.global.b32 %word, [%at];", f"setp.ne.b32 %{reg}, %word, 0;"]
        else:
            lines += [f"ld.global.b{stored_bits(kind)} %{reg}, [%at];"]
    lines += [with_operands(instruction) + ("" if instruction.text.endswith(":") else ";")]
    for reg, kind in outs:
        lines += address(reg, kind)
        if kind == "pred":
            lines += [f"selp.b32 %word, 1, 0, %{reg};", "st.global.b32 [%at], %word;"]
        else:
            lines += [f"st.global.b{stored_bits(kind)} [%at], %{reg};"]
    params = ", ".join(f".param .u64 p_{reg}" for reg, _ in outs + ins)
    body = "\n".join("    " + line for line in lines)
    return f".visible .entry {name}({params})\n{{\n{body}\n    ret;\n}}\n"


def tensor(values, bits):
    """Bit patterns as a torch tensor of signed integers."""
    wrapped = [value & (1 << bits) - 1 for value in values]
    return torch.from_numpy(np.array(wrapped, dtype=_UNSIGNED[bits]).view(_SIGNED[bits]))


def patterns(values):
    """A tensor of signed integers as bit patterns."""
    array = values.numpy()
    return array.view(_UNSIGNED[8 * array.itemsize]).tolist()


def run(kernel, instruction, rows):
    """Launch with one row of inputs per thread; return one row of output patterns per row."""
    blocks = -(-len(rows) // THREADS) or 1
    threads = THREADS if len(rows) >= THREADS else -(-len(rows) // 32) * 32
    padded = rows + [rows[-1]] * (blocks * threads - len(rows))
    columns = list(zip(*padded, strict=True))
    ins = [tensor(column, stored_bits(kind)) for kind, column in zip(instruction.ins, columns, strict=True)]
    outs = [tensor([UNWRITTEN] * len(padded), stored_bits(kind)) for kind in instruction.outs]
    kernel.launch(blocks, threads, [*outs, *ins])
    return list(zip(*(patterns(out) for out in outs), strict=True))[: len(rows)]


def wrong(instruction, rows, expected, got):
    """Rows with other outputs than expected, each as a line of hexadecimal patterns."""
    lines = []
    for inputs, wanted, found in zip(rows, expected, got, strict=True):
        if not all(agrees(kind, w, g) for kind, w, g in zip(instruction.outs, wanted, found, strict=True)):
            lines.append(f"{instruction.text}  {words(inputs)} -> {words(found)}, not {words(wanted)}")
    return lines


def words(values):
    return "(" + ", ".join(f"{value:#x}" if isinstance(value, int) else str(value) for value in values) + ")"


def entry(params, body, name="kernel"):
    """A kernel of pointers: %p0, %p1 … hold them, %t is the thread's number in the grid, %me that in the block."""
    kinds = [param if param.startswith(".") else ".u64" for param in params]
    heads = ", ".join(f".param {kind} q{n}" for n, kind in enumerate(kinds))
    loads = "\n".join(f"    ld.param.u64 %p{n}, [q{n}];" for n, kind in enumerate(kinds) if kind == ".u64")
    return f"""
.visible .entry {name}({heads})
{{
    .reg .b64 %p<{len(params) + 1}>, %x<20>;
    .reg .b32 %r<20>, %t, %me;
    .reg .b16 %h<20>;
    .reg .pred %q<8>;
{loads}
    mov.u32 %r0, %ctaid.x;
    mov.u32 %r1, %ntid.x;
    mov.u32 %me, %tid.x;
    mad.lo.u32 %t, %r0, %r1, %me;
{body}
    ret;
}}
"""


def launch(text, grid, block, args, **options):
    load(HEADER + text)["kernel"].launch(grid, block, args, **options)


def check(jobs):
    """Run (instruction, rows, expected) jobs; return a line for each wrong result.

    An instruction that the machine refuses is wrong too, unless it is rare.
    """
    try:
        source = HEADER + "".join(ptx(instruction, f"k{n}") for n, (instruction, *_) in enumerate(jobs))
        module = load(source)
    except CompileError as error:
        if len(jobs) > 1:
            return [line for job in jobs for line in check([job])]
        instruction = jobs[0][0]
        return [] if instruction.rare else [f"{instruction.text}: refused: {error}"]
    return [
        line
        for n, (instruction, rows, expected) in enumerate(jobs)
        for line in wrong(instruction, rows, expected, run(module[f"k{n}"], instruction, rows))
    ]


def expectations(instruction, rows):
    return [evaluate(instruction, row) for row in rows]


# Inputs, with a bias to the values near which results change in kind.


@cache
def _edges(kind):
    if kind == "pred":
        return [0, 1]
    if kind in FORMATS:
        form = FORMATS[kind]
        one = floats.one(form)
        half = 1 << form.mantissa - 1
        plain = [0, 1, form.min_normal - 1, form.min_normal, form.min_normal + 1, one - 1, one, one + 1]
        plain += [one - form.min_normal, one + half, one + form.min_normal + (half >> 1), form.max, form.inf]
        plain += [form.inf + 1, form.inf + half, form.nan]
        for value in (2.5, 3, 127.5, 128, 255.5, 32767.5, 65535, 2**23 + 1, 2**31, 2**32, 2**63, 2**64, 2**-20):
            plain += [floats.encode(form, floats.Fraction(value), mode) for mode in ("rz", "rm", "rp")]
        return [x ^ minus for x in plain for minus in (0, form.sign)]
    bits = width(kind)
    top = 1 << bits - 1
    small = [0, 1, 2, 3, 7, 8, 15, 16, 24, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256]
    large = [(1 << n) + d for n in (15, 16, 23, 24, 31, 32, 63) if n < bits for d in (-1, 0, 1)]
    return [x & 2 * top - 1 for x in [*small, *large, top - 1, top, top + 1, *(-x for x in small)]]


def inputs(instruction, count, seed):
    """Seeded rows of patterns; instructions with the same operand types get the same rows."""
    return _rows(instruction.ins, count, seed)


@cache
def _rows(kinds, count, seed):
    rng = random.Random(f"{kinds} {seed}")
    return [_related(rng, kinds, [_draw(rng, kind) for kind in kinds]) for _ in range(count)]


def _draw(rng, kind):
    """An edge value, a number of a chosen form, or any bits at all."""
    if kind.endswith("x2"):
        return _draw(rng, kind[:-2]) << width(kind[:-2]) | _draw(rng, kind[:-2])
    choice, bits = rng.random(), rng.getrandbits(width(kind))
    if choice < 0.3:
        return rng.choice(_edges(kind))
    if kind not in FORMATS:  # short integers, so that they are equal, carry and cancel often
        return bits & 0xFF if choice < 0.5 else bits
    form = FORMATS[kind]
    if choice < 0.6:  # near one, so that sums and products neither vanish nor overflow
        bits = bits & ~form.inf | form.bias + rng.randint(-4, 4) << form.mantissa
    elif choice < 0.7:  # subnormal, or near it
        bits = bits & ~form.inf | rng.randint(0, 1) << form.mantissa
    if rng.random() < 0.3:  # a mantissa that ends early: halfway for a format with fewer bits
        cut = rng.randint(0, form.mantissa - 1)
        bits = bits >> cut << cut | 1 << cut
    return bits


def _related(rng, kinds, row):
    """Sometimes two operands of a type are equal, next to each other, or of opposite sign."""
    for place in range(1, len(row)):
        if kinds[place] == kinds[place - 1] and rng.random() < 0.15:
            row[place] = row[place - 1] ^ rng.choice([0, 0, 1, 1 << width(kinds[place]) - 1])
    return tuple(row)


def literal(kind, bits):
    """A constant in PTX."""
    if kind in ("f32", "f64"):
        return f"0{'f' if kind == 'f32' else 'd'}{bits:0{width(kind) // 4}X}"
    return str(signed(bits, width(kind))) if kind[0] == "s" else f"{bits:#x}"


def with_constants(instruction):
    """The instruction with a constant in place of an operand, for each operand that may be one."""
    if " " in instruction.text or len(instruction.ins) < 2 or instruction.text.endswith("x2"):
        return
    rng = random.Random(instruction.text)
    for place, kind in enumerate(instruction.ins):
        if kind == "pred" or kind[0] == "f" and kind not in ("f32", "f64") or kind.startswith("bf16"):
            continue
        value = rng.choice(_edges(kind))
        if instruction.text.startswith(("bfe", "bfi")) and kind == "u32" and place:
            value &= 255  # the assembler refuses larger ones
        names = list(INPUTS[: len(instruction.ins) - 1])
        operands = ["%" + name for name in names]
        operands.insert(place, literal(kind, value))
        outs = ["%" + name for name in OUTPUTS[: len(instruction.outs)]]
        argument = signed(value, width(kind)) if kind[0] == "s" else value

        def run(*args, place=place, argument=argument):
            return instruction.run(*args[:place], argument, *args[place:])

        yield Instruction(
            f"{instruction.text} {', '.join(outs + operands)}",
            instruction.outs,
            instruction.ins[:place] + instruction.ins[place + 1 :],
            run,
            instruction.rare,
        )
