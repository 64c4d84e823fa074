"""Put instructions together where the core has one for all of them: the products of bf16 weights.

PTX widens a bf16, the upper half of an fp32, with a shift or a mask and then multiplies. Eight such products in a row
are the inner step of every matrix-vector product (dot8 in csrc/matvec.cuh); two of them feed a tensor core's tile. One
instruction of the core does the same arithmetic in the same order, so no bit of a result changes. What is counted does
not change either: counts come from the PTX of each block.
"""

from luce_edu.machine.lower import shape
from luce_edu.machine.slots import Op

LOW, HIGH, DOT = "fused.bf16lo.fma.f32", "fused.bf16hi.fma.f32", "fused.dot8.f32"
MMA = "mma.m16n8k8.f32.tf32.tf32.f32"
WIDENINGS = {("shl.b32.i", 16): LOW, ("and.b32.i", -65536): HIGH}
B0, B1 = shape("b", "b1")  # where a tile's instruction has the two registers of b
DOT_PLACES = "d1 a1 b1 c1 d2 a2 b2 c2 d3 a3 b3 c3"  # four packed registers, eight factors


def fuse(blocks, pinned, core):
    """Replace what the core has as one instruction, in the blocks of one function.

    pinned: registers with a meaning outside of these instructions. core: name -> number of an instruction, or None
    """
    if any(core(name) is None for name in (LOW, HIGH, DOT, DOT + ".z", "fused.bf16." + MMA)):
        return
    reads, writes = {}, {}
    for block in blocks:
        for op in block.ops:
            for use in op.uses:
                reads[use] = reads.get(use, 0) + 1
            for d in op.defs:
                writes[d] = writes.get(d, 0) + 1
    # Written once: it holds its value wherever it may be read.
    once = {register for register, count in writes.items() if count == 1 and register not in pinned}
    for block in blocks:
        if any(op.imm in (16, -65536) and (op.name, op.imm) in WIDENINGS for op in block.ops):
            _Fusion(block, reads, once).run()


class _Fusion:
    def __init__(self, block, reads, once):
        self.block, self.reads, self.once = block, reads, once
        self.widened = {}  # register -> the product that reads its source instead, the source
        self.products = {}  # index -> (LOW or HIGH, packed register, factor, sum so far or None for 0)

    def run(self):
        for index, op in enumerate(self.block.ops):
            if op.partial:
                continue
            if (op.name, op.imm) in WIDENINGS:
                if op.defs[0] in self.once and op.uses[0] in self.once:
                    self.widened[op.defs[0]] = WIDENINGS[op.name, op.imm], op.uses[0]
            elif op.name == "fma.f32" or op.name == "fma.f32.i" and op.imm == 0:
                self.note_product(index, op)
            elif op.name == MMA:
                self.widen_tile(op)
        joined = self.join()
        for index, (name, packed, factor, total) in self.products.items():
            op = self.block.ops[index]
            if index not in joined and total is not None:
                self.count(op.uses, -1)
                op.name, op.uses = name, (packed, factor, total)
                self.count(op.uses, 1)
        ops = [joined.get(index, op) for index, op in enumerate(self.block.ops)]
        self.block.ops = [op for op in ops if op is not None and not self.is_idle(op)]

    def count(self, registers, by):
        for register in registers:
            self.reads[register] = self.reads.get(register, 0) + by

    def is_idle(self, op):
        return (op.name, op.imm) in WIDENINGS and op.defs[0] in self.widened and not self.reads[op.defs[0]]

    def note_product(self, index, op):
        for first, second in ((0, 1), (1, 0)):
            if op.uses[first] in self.widened:
                name, packed = self.widened[op.uses[first]]
                self.products[index] = name, packed, op.uses[second], op.uses[2] if op.name == "fma.f32" else None
                return

    def widen_tile(self, op):
        """Let a tile read the packed register if b is its lower and its upper half."""
        places, uses = list(op.shape[1]), list(op.uses)
        low, high = (self.widened.get(uses[places.index(at)]) for at in (*B0, *B1))
        if low is None or high is None or (low[0], high[0]) != (LOW, HIGH) or low[1] != high[1]:
            return
        self.count(op.uses, -1)
        uses[places.index(*B0)] = low[1]
        second = places.index(*B1)
        del uses[second], places[second]
        op.name, op.uses, op.shape = "fused.bf16." + MMA, tuple(uses), (op.shape[0], tuple(places))
        self.count(op.uses, 1)

    def join(self):
        """Find eight products whose sums run through. Returns index -> the new instruction at the last one's, or None."""
        following = {
            total: index
            for index, (_, _, _, total) in self.products.items()
            if total in self.once and self.reads[total] == 1
        }
        joined = {}
        for first in self.products:
            chain = [first]
            while len(chain) < 8 and (index := following.get(self.block.ops[chain[-1]].defs[0])):
                chain.append(index)
            products = [self.products[index] for index in chain]
            if len(chain) < 8 or any(index in joined for index in chain) or not self.is_dot(products):
                continue
            total = products[0][3]
            uses = [*(p[1] for p in products[::2]), *(p[2] for p in products)]
            if total is not None:
                uses.insert(0, total)
            if not self.holds_until(chain, uses):
                continue
            last = self.block.ops[chain[-1]]
            places = shape("d", DOT_PLACES if total is None else "a " + DOT_PLACES)
            for index in chain:
                self.count(self.block.ops[index].uses, -1)
            self.count(uses, 1)
            joined.update(dict.fromkeys(chain))
            name = DOT + ".z" if total is None else DOT
            joined[chain[-1]] = Op(name, last.defs, tuple(uses), places, source=last.source)
        return joined

    @staticmethod
    def is_dot(products):
        pairs = list(zip(products[::2], products[1::2]))
        return all(low[0] == LOW and high[0] == HIGH and low[1] == high[1] for low, high in pairs)

    def holds_until(self, chain, uses):
        """Whether what the first products read is still there at the last one."""
        changing = [use for use in uses if use not in self.once]
        between = self.block.ops[chain[0] : chain[-1]]
        return not changing or not any(d in changing for op in between for d in op.defs)
