"""Turn a kernel's PTX into a program for the core: rows of numbers, one per slot of 32 bytes (Ins in csrc/machine).

lower.py makes instructions on numbered registers; slots.py orders the blocks and assigns slots to registers. This
module optimises between the two, and writes the rows. It removes moves that only rename. It puts constants into
instructions for which the core has such a form (`.i`: the last source, `.ib`: the second of three), and the others into
the arena's image. The core counts PTX instructions, so each block holds how many it had.

The operands of control instructions follow. "next" is the slot after one; it holds more operands and is never executed.
A field that is not named is -1, imm 0; `r|-1` is a register's offset, or -1 if the named constant is used instead.
Distances are in slots, from the instruction itself. The program starts at slot 0. Functions come before their callers.
    enter           imm = block number, a = PTX instructions in it, d = 1 if a branch goes backwards to it
    bra             imm = distance
    bra.p, bra.np   a = predicate, imm = distance: lanes where it is true (false) go there, the others to p + 1
    brx             a = index (32 bits), imm = n; n next slots, imm = distance of each target from the brx
    if.p, if.np     a = predicate, imm = distance to the slot after the end.if, taken if no lane is active; only around
                    arithmetic, plain loads and stores: other instructions get a branch
    end.if, exit    nothing
    call            imm = distance to the function, d = its return slot (4 bytes a lane), which gets the index of p + 1
    ret             a = the return slot
    bar.sync, bar.arrive         a = barrier|-1 (imm), b = count|-1; next: imm = count (0: all threads)
    bar.red.{popc,and,or}        the same, d = result, c = source predicate
    barrier.cluster.{arrive,wait}   c = Access flags
    bar.warp.sync   a = mask|-1 (imm)
    shfl.{up,down,bfly,idx}      d, a = value, b = lane operand; next: d = result predicate|-1, a = members|-1 (imm),
    shfl.….i                     imm = lane operand                    b = clamp|-1 (c)
    vote.{all,any,uni,ballot}    d, a = predicate, b = member mask|-1 (imm)
    match.any.…, redux.…         d, a = value, b = member mask|-1 (imm)
    match.all.…                  the same; next: d = result predicate|-1
    elect           d = leader (32 bits)|-1, c = result predicate, b = member mask|-1 (imm)
    nanosleep       a = time|-1 (imm)
    vprintf         d = result|-1, a = format, b = arguments (generic addresses)
    assertfail      a = message, b = file, c = line (32 bits); next: a = function, b = bytes of a character
    clock, clock_hi, clock64, globaltimer, globaltimer_lo, globaltimer_hi, activemask    d
    griddepcontrol.…, trap, brkpt    nothing
Writing a predicate changes active lanes only. A result never shares a slot with a source of the same instruction,
unless it is the same register.
"""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from luce_edu.errors import CompileError
from luce_edu.machine import ptx
from luce_edu.machine.fuse import fuse
from luce_edu.machine.lower import DYNAMIC, Lowering, shape
from luce_edu.machine.slots import (
    DOUBLE,
    PREDICATE,
    SLOT_BYTES,
    coalesce,
    drop_unread,
    find_intervals,
    find_liveness,
    lay_out,
    place,
)

ROW = np.dtype([("op", "<i8"), ("d", "<i4"), ("a", "<i4"), ("b", "<i4"), ("c", "<i4"), ("imm", "<i8")])
MOVES = {"mov.b32", "mov.b64", "mov.pred"}
COMMUTING = ("add.", "mul.", "mad.lo", "mad.wide", "fma.", "min.", "max.", "and.", "or.", "xor.", "setp.eq", "setp.ne")

# Operands that may be constants inside the instruction: for each place (see lower.py), the place of the constant.
CONSTANT_PLACES = {
    "shfl": {3: 5, 9: 10, 8: 11}, "bar": {2: 5, 3: 11}, "nanosleep": {2: 5}, "vote": {3: 5}, "match": {3: 5},
    "redux": {3: 5}, "elect": {3: 5},
}  # fmt: skip


@dataclass
class Program:
    """A kernel for the core. Offsets of registers are in bytes, in a warp's arena.

    code          rows of ROW; op is the core's number of the instruction, -1 in a slot of operands
    image         the arena's initial bytes from image_at on: constants
    specials      (number of the special register, offset)
    parameters    (name, type, offset, bytes) of each kernel parameter; parameter_bytes is their total
    shared        name -> offset of static shared variables; shared_bytes is their total, where dynamic memory begins
    relocations   (slot, symbol, addend): imm becomes the address of this module variable plus addend
    blocks        [n, 3]: first slot, first PTX instruction, number of PTX instructions
    sources       for each slot the index of its PTX instruction in `instructions`, or -1
    lines         for each slot a number that identifies its source line
    instructions  the PTX instructions
    functions     the name of the function that each instruction is in
    sites         the slot of each memory instruction
    least_wavefronts  for each site the fewest passes over the 32 banks of 4 bytes
    registers     (function, PTX name, type, offset, first slot, last slot): where a register holds its value
    needs         the kernel's directives: {"maxntid": (256, 1, 1), ...}
    """

    name: str
    code: np.ndarray
    arena_bytes: int
    image: bytes
    image_at: int
    specials: list[tuple[int, int]]
    parameters: list[tuple[str, str, int, int]]
    parameter_bytes: int
    shared: dict[str, int]
    shared_bytes: int
    local_bytes: int
    relocations: list[tuple[int, str, int]]
    blocks: np.ndarray
    sources: np.ndarray
    lines: np.ndarray
    instructions: list[ptx.Instruction]
    functions: list[str]
    sites: list[int]
    least_wavefronts: list[int]
    registers: list[tuple[str, str, str, int, int, int]]
    needs: dict[str, tuple[int, ...]]

    def statement(self, slot: int) -> ptx.Instruction | None:
        """Return the PTX instruction that a slot came from; None if the assembler added the slot."""
        source = self.sources[slot] if 0 <= slot < len(self.sources) else -1
        return self.instructions[source] if source >= 0 else None

    @cached_property
    def block_lengths(self) -> np.ndarray:
        return self.blocks[:, 2]

    @cached_property
    def block_instructions(self) -> list[list[ptx.Instruction]]:
        """List the PTX instructions of each basic block."""
        return [self.instructions[first : first + count] for _, first, count in self.blocks]


def assemble(module: ptx.Module, name: str, registry: Mapping[str, int] | Callable[[str], int | None]) -> Program:
    """Turn the kernel `name` of a parsed module into a Program.

    registry  maps the name of an instruction to the core's number, or None
    Raises CompileError, with the instruction, its PTX line and its source line, for instructions that the virtual GPU
    does not support or PTX does not allow.
    """
    function = module.functions.get(name)
    if function is None or not function.entry or function.external:
        kernels = ", ".join(f.name for f in module.functions.values() if f.entry and not f.external)
        raise CompileError(f"this PTX has no kernel {name}; it has {kernels or 'none'}")
    if module.address_size != 64:
        raise CompileError("this PTX has .address_size 32; the virtual GPU needs 64-bit addresses")
    look_up = registry.get if isinstance(registry, Mapping) else registry
    numbers = {}

    def core(instruction):
        if instruction not in numbers:
            numbers[instruction] = look_up(instruction)
        return numbers[instruction]

    # This makes tens of thousands of small objects without cycles, which Python's collector would scan again and again.
    collects = gc.isenabled()
    gc.disable()
    try:
        lowering = Lowering(module, core)
        lowering.lower(function)
        return _Writer(lowering, function).program()
    finally:
        if collects:
            gc.enable()


class _Writer:
    def __init__(self, lowering, function):
        self.lowering, self.kernel, self.core = lowering, function, lowering.core
        self.rows, self.sources, self.relocations, self.sites, self.blocks = [], [], [], [], []
        self.registers, self.passes, self.positions = [], [], {}

    def program(self):
        low = self.lowering
        intervals, roots, orders, renamed = {}, {}, {}, {}
        for name, (blocks, _, _) in low.functions.items():
            order = orders[name] = lay_out(blocks[0])
            renamed[name] = self.settle(name, order)
            fuse(order, self.core)
            drop_unread(order, low.pinned)
            moves = [
                op for block in order for op in block.ops if op.name in MOVES and not op.partial and self.plain(op)
            ]
            bit = find_liveness(order, {r for op in moves for r in (*op.defs, *op.uses)}, low.pinned)
            roots[name] = root = coalesce(order, bit, moves, low.classes)
            if root:
                for block in order:
                    block.ops = [op for op in block.ops if not self.same(op, root)]
            intervals[name] = find_intervals(order, bit, root, low.pinned)
        self.place(intervals, roots)
        self.write(orders)
        for name, (_, registers, _) in low.functions.items():
            self.list_registers(name, registers, renamed[name], roots[name], intervals[name])
        return self.finish()

    def plain(self, op):
        return op.defs[0] not in self.lowering.pinned and op.uses[0] not in self.lowering.pinned

    @staticmethod
    def same(op, root):
        return op.name in MOVES and not op.partial and root.get(op.defs[0], -1) == root.get(op.uses[0], -2)

    # ---- Renaming moves and constants

    def settle(self, name, blocks):
        """Remove moves that only rename a register, and put constants into the instructions.

        A move only renames if its result and its source are each written once. Then the source still holds its value
        wherever the result may be read: the move is on every path to there, and the source's write is on every path to
        the move. Returns register -> the register that is read in its place.
        """
        low = self.lowering
        pinned, constants = low.pinned, low.constants
        writes = {}
        for block in blocks:
            for op in block.ops:
                for d in op.defs:
                    writes[d] = writes.get(d, 0) + 1
        steady = {register for register in low.formals.get(name, {}).values() if register not in writes}
        returns = {parameter.name for parameter in low.module.functions[name].returns}
        steady -= {register for key, register in low.formals.get(name, {}).items() if key[0] in returns}
        renamed = {}
        for block in blocks:
            kept = []
            for op in block.ops:
                if op.name in MOVES and not op.partial and writes[op.defs[0]] == 1 and op.defs[0] not in pinned:
                    source = op.uses[0]
                    if source in constants or source in low.specials or source in steady or (
                        source not in pinned and writes.get(source) == 1
                    ):  # fmt: skip
                        renamed[op.defs[0]] = source
                        continue
                kept.append(op)
            block.ops = kept
        for register in renamed:
            source = renamed[register]
            while source in renamed:
                source = renamed[source]
            renamed[register] = source
        for block in blocks:
            for op in block.ops:
                uses = op.uses
                if not uses:
                    continue
                for use in uses:
                    if use in renamed:
                        uses = op.uses = tuple([renamed.get(u, u) for u in uses])
                        break
                for use in uses:
                    if use in constants:
                        self.constants_inside(op)
                        break
        return renamed

    def constants_inside(self, op):
        """Put constants among an instruction's sources into the instruction, if the core has a form for that."""
        constants, uses, name = self.lowering.constants, op.uses, op.name
        first = name.partition(".")[0]
        if first in ("ld", "st") and op.shape[1][:1] == (2,):
            if uses[0] in constants:
                words = [word for word in name.split(".") if word != "a32"]
                at = 2 if words[1] != "sync" else 3
                direct = ".".join([*words[:at], "k", *words[at:]])
                if self.core(direct) is not None:
                    op.name, op.imm = direct, op.imm + signed(constants[uses[0]], 64)
                    op.uses, op.shape = uses[1:], (op.shape[0], op.shape[1][1:])
            return
        inside = CONSTANT_PLACES.get(first)
        if inside:
            kept, places, raw = [], [], list(op.raw)
            for use, at in zip(uses, op.shape[1], strict=True):
                value = constants.get(use)
                if value is None or at not in inside or at == 3 and first == "shfl" and self.core(name + ".i") is None:
                    kept.append(use)
                    places.append(at)
                    continue
                if at == 3 and first == "shfl":
                    op.name = name + ".i"
                raw.append((inside[at], signed(value, 32)))
            op.uses, op.shape, op.raw = tuple(kept), (op.shape[0], tuple(places)), tuple(raw)
            return
        if first == "bfi":
            if uses[2] in constants and uses[3] in constants and self.core(name + ".i") is not None:
                position, length = constants[uses[2]], constants[uses[3]]
                if position < 256 and length < 256:
                    op.name, op.imm, op.uses, op.shape = (
                        name + ".i",
                        position | length << 8,
                        uses[:2],
                        shape("d", "a b"),
                    )
            return
        if op.imm or op.raw or len(op.defs) != 1 or op.shape[1][-1] == 5:
            return
        if len(uses) > 1 and uses[0] in constants and uses[1] not in constants and name.startswith(COMMUTING):
            uses = op.uses = (uses[1], uses[0], *uses[2:])
        if uses[-1] in constants and self.core(name + ".i") is not None:
            op.name, at = name + ".i", len(uses) - 1
        elif len(uses) == 3 and uses[1] in constants and self.core(name + ".ib") is not None:
            op.name, at = name + ".ib", 1
        else:
            return
        register = uses[at]
        op.imm = signed(constants[register], 64 if self.lowering.classes[register] == DOUBLE else 32)
        op.uses = uses[:at] + uses[at + 1 :]
        op.shape = op.shape[0], op.shape[1][:at] + op.shape[1][at + 1 :]

    # ---- Places

    def place(self, intervals, roots):
        """Give every register an offset: first pinned ones, then each function's after its callers', then constants."""
        low = self.lowering
        used = set()
        for blocks, _, _ in low.functions.values():
            for block in blocks:
                for op in block.ops:
                    used.update(op.uses)
        self.slots, top = {}, 0
        fixed = [r for r in low.pinned if r not in low.constants and (r not in low.specials or r in used)]
        for register in sorted(fixed, key=lambda r: (-low.classes[r], r)):
            self.slots[register] = top
            top += SLOT_BYTES[low.classes[register]]
        self.specials = [(low.specials[r], self.slots[r]) for r in sorted(low.specials) if r in used]
        begin = -(-top // 64) * 64
        ends = {}
        for name in reversed(low.functions):  # callers first
            base = max((ends[caller] for caller in low.callers.get(name, ())), default=begin)
            slots, ends[name] = place(intervals[name], low.classes, base)
            self.slots.update(slots)
            for register, root in roots[name].items():
                if root in slots:
                    self.slots[register] = slots[root]
        top = self.image_at = max(ends.values())
        image = bytearray()
        for register in sorted(
            (r for r in used if r in low.constants), key=lambda r: (-low.classes[r], low.constants[r])
        ):
            self.slots[register] = top + len(image)
            value = low.constants[register]
            if low.classes[register] == PREDICATE:
                image += (0xFFFFFFFF * value).to_bytes(4, "little")
            else:
                image += value.to_bytes(SLOT_BYTES[low.classes[register]] // 32, "little") * 32
        self.image = bytes(image)
        self.arena_bytes = -(-(top + len(image)) // 64) * 64

    # ---- Rows

    def write(self, orders):
        self.starts, calls, number = {}, [], 0
        if len(orders) > 1:
            calls.append((0, self.kernel.name))
            self.row("bra")
        for name, order in orders.items():
            self.starts[name] = len(self.rows)
            branches = []
            place_of = {id(block): index for index, block in enumerate(order)}
            backward = {
                id(following)
                for index, block in enumerate(order)
                for following in block.successors
                if place_of[id(following)] <= index
            }
            first_row, positions = {}, []
            self.positions[name] = positions
            for index, block in enumerate(order):
                following = order[index + 1] if index + 1 < len(order) else None
                first_row[id(block)] = len(self.rows)
                self.blocks.append((len(self.rows), block.first, block.count))
                self.row("enter", a=block.count, d=int(id(block) in backward), imm=number)
                number += 1
                openings = []
                for op in block.ops:
                    positions.append(len(self.rows))
                    if op.targets is None:
                        self.write_op(op, openings)
                    elif op.name == "call":
                        calls.append((len(self.rows), op.targets[0]))
                        self.write_op(op, openings)
                    else:
                        self.branch(op, block, following, branches)
                if block.fall is not None and block.fall is not following:
                    branches.append((len(self.rows), len(self.rows), block.fall))
                    self.row("bra")
                positions.append(len(self.rows) - 1)
            for row, origin, target in branches:
                self.rows[row][5] = first_row[id(target)] - origin
        for row, name in calls:
            self.rows[row][5] = self.starts[name] - row

    def row(self, name, d=-1, a=-1, imm=0, source=-1):
        number = self.core(name)
        if number is None:
            raise CompileError(f"kernel {self.kernel.name}: the virtual GPU's core has no instruction {name}")
        self.rows.append([number, d, a, -1, -1, imm])
        self.sources.append(source)

    def branch(self, op, block, following, branches):
        """Write a branch. If it goes to the block after it, leave it out, or negate it and use the other target."""
        targets = [self.lowering_target(target, block) for target in op.targets]
        if op.name == "bra" and targets[0] is following:
            return
        if op.name in ("bra.p", "bra.np") and targets[0] is following and block.fall is not following:
            name = "bra.np" if op.name == "bra.p" else "bra.p"
            if self.core(name) is not None:
                op.name, targets, block.fall = name, [block.fall], targets[0]
        row = len(self.rows)
        self.write_op(op, [])
        if op.name == "brx":
            for target in targets:
                branches.append((len(self.rows), row, target))
                self.rows.append([-1, -1, -1, -1, -1, 0])
                self.sources.append(op.source)
        else:
            branches.append((row, row, targets[0]))

    def lowering_target(self, target, block):
        return target if not isinstance(target, str) else next(b for b in block.targets if b.label == target)

    def write_op(self, op, openings):
        slots, row = self.slots, [self.core(op.name), -1, -1, -1, -1, op.imm]
        index = len(self.rows)
        if op.name in ("if.p", "if.np"):
            openings.append(index)
        elif op.name == "end.if":
            opening = openings.pop()
            if opening == index - 1:  # nothing is left between if and end.if
                self.rows.pop()
                self.sources.pop()
                return
            self.rows[opening][5] = index + 1 - opening
        (results, sources), long = op.shape, 6
        if op.raw or len(op.defs) > 1 or len(op.uses) > 3:
            long = 6 * (1 + max([at for at, _ in op.raw] + [*results, *sources]) // 6)
            row += [-1, -1, -1, -1, -1, 0] * (long // 6 - 1)
            for at, value in op.raw:
                row[at] = value
            for slot in range(6, long, 6):
                row[slot] = -1
            if op.raw and op.raw[0] == (4, None):
                row[4] = len(self.sites)
                self.sites.append(index)
                self.passes.append(passes(op.name))
        for at, register in zip(results, op.defs, strict=True):
            row[at] = slots[register]
        for at, register in zip(sources, op.uses, strict=True):
            row[at] = slots[register]
        if op.symbol is not None:
            self.relocations.append((index, op.symbol, op.imm))
        if long == 6:
            self.rows.append(row)
            self.sources.append(op.source)
        else:
            for slot in range(0, long, 6):
                self.rows.append(row[slot : slot + 6])
                self.sources.append(op.source)

    # ---- The rest

    def list_registers(self, name, registers, renamed, root, intervals):
        """Record where each PTX register holds its value, for the stepper."""
        position, slots, kinds = self.positions[name], self.slots, self.lowering.kinds
        for text, register in registers.items():
            final = renamed.get(register, register)
            final = root.get(final, final)
            if final in slots:
                first, last = intervals.get(final, (0, len(position) - 1))
                where = (slots[final], position[first], position[last])
                self.registers.append((name, text, kinds[register], *where))

    def finish(self):
        low, kernel = self.lowering, self.kernel
        if low.extern_align:
            align = max(low.extern_align, 16)
            low.shared_bytes = -(-low.shared_bytes // align) * align
        relocations = []
        for row, symbol, addend in self.relocations:
            if symbol == DYNAMIC:
                self.rows[row][5] = addend + low.shared_bytes
            else:
                relocations.append((row, symbol, addend))
        code = np.empty(len(self.rows), ROW)
        table = np.array(self.rows, dtype=np.int64)
        for index, name in enumerate(ROW.names):
            code[name] = table[:, index]
        parameters, size = [], 0
        for parameter in kernel.params:
            parameters.append((parameter.name, parameter.type, low.parameters[parameter.name], parameter.size))
            size = parameters[-1][2] + parameter.size
        numbers = {}
        line_of = [
            numbers.setdefault((ins.loc.file, ins.loc.line) if ins.loc else ins.line, len(numbers))
            for _, ins in low.instructions
        ]
        sources = np.array(self.sources, dtype=np.int32)
        return Program(
            name=kernel.name,
            code=code,
            arena_bytes=self.arena_bytes,
            image=self.image,
            image_at=self.image_at,
            specials=self.specials,
            parameters=parameters,
            parameter_bytes=size,
            shared=low.shared,
            shared_bytes=low.shared_bytes,
            local_bytes=low.local_bytes,
            relocations=relocations,
            blocks=np.array(self.blocks, dtype=np.int32).reshape(-1, 3),
            sources=sources,
            lines=np.append(np.array(line_of, dtype=np.int32), np.int32(-1))[sources],
            instructions=[ins for _, ins in low.instructions],
            functions=[function for function, _ in low.instructions],
            sites=self.sites,
            least_wavefronts=self.passes,
            registers=self.registers,
            needs=dict(kernel.directives),
        )


def passes(name):
    """Return the fewest passes over the banks of shared memory, of 128 bytes each, that a full warp's access needs."""
    size = next((int(word[1:]) for word in name.split(".") if word[0] == "b" and word[1:].isdigit()), 32)
    elements = next((int(word[1:]) for word in name.split(".") if word in ("v2", "v4", "x2", "x4")), 1)
    if "matrix" in name:
        return elements  # a matrix of eight rows of 16 bytes per pass
    return max(1, size * elements // 32)


def signed(value, bits):
    """Return the bits of a constant as a signed number."""
    return value - (value >> (bits - 1) << bits)
