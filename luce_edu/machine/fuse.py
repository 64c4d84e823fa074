"""Fuse several instructions of the core into one, if the result is the same to the last bit.

Weights are packed bf16, which PTX widens by a shift or a mask before it multiplies; an address is computed by an
addition first. A GPU overlaps such instructions, but here each costs a turn of the interpreter. The counts of a program
do not change, because they are by PTX instruction.
"""

from luce_edu.machine.lower import shape

LOW, HIGH = "fused.bf16lo.fma.f32", "fused.bf16hi.fma.f32"
DOT = shape("d", "a d1 a1 b1 c1 d2 a2 b2 c2 d3 a3 b3 c3")
DOT_FROM_ZERO = shape("d", "d1 a1 b1 c1 d2 a2 b2 c2 d3 a3 b3 c3")
MMA = "mma.m16n8k8.f32.tf32.tf32.f32"
MMA_PLACES = shape("d d1 d2 d3", "a a1 a2 a3 b b1 c c1 c2 c3")
FUSED_MMA_PLACES = shape("d d1 d2 d3", "a a1 a2 a3 b c c1 c2 c3")


class Product:
    """An fma(half of `packed`, x, c) at `index` of its block; `chain` is the run of products that ends with it."""

    __slots__ = ("index", "high", "packed", "x", "c", "op", "chain")

    def __init__(self, index, high, packed, x, c, op):
        self.index, self.high, self.packed, self.x, self.c, self.op = index, high, packed, x, c, op


def fuse(blocks, core):
    """Fuse where the core has a fused instruction; drop_unread later removes the parts, whose results are unread."""
    writes, reads = {}, {}
    for block in blocks:
        for op in block.ops:
            for d in op.defs:
                writes[d] = writes.get(d, 0) + 1
            for use in op.uses:
                reads[use] = reads.get(use, 0) + 1
    has = {
        name
        for name in (LOW, HIGH, "fused.dot8.f32", "fused.dot8.f32.z", "fused.bf16." + MMA)
        if core(name) is not None
    }
    sums, halves = {}, {}  # register -> (register, constant); register -> (packed register, whether its upper half)
    for block in blocks:
        _fuse_block(block, has, writes, reads, sums, halves)


def _fuse_block(block, has, writes, reads, sums, halves):
    """Fuse inside a block. `sums` and `halves` of registers written once hold everywhere; others until they change."""
    ops, products, written = block.ops, {}, {}
    local_sums, local_halves = {}, {}

    def sum_of(register):
        return local_sums.get(register) or sums.get(register)

    def half_of(register):
        return local_halves.get(register) or halves.get(register)

    def unchanged(register, since):
        return written.get(register, -1) < since

    for index, op in enumerate(ops):
        name = op.name
        if name == "fma.f32" or name == "fma.f32.i" and op.imm == 0:
            product = None if op.partial else _product(op, index, half_of)
            if product is not None:
                _chain(product, products, reads, writes, has)
                if len(product.chain) == 8:
                    _dot8(product, ops, unchanged)
        elif name == MMA and "fused.bf16." + MMA in has:
            low, high = half_of(op.uses[4]), half_of(op.uses[5])
            if low and high and low[0] == high[0] and not low[1] and high[1] and op.shape == MMA_PLACES:
                op.name, op.shape = "fused.bf16." + MMA, FUSED_MMA_PLACES
                op.uses = (*op.uses[:4], low[0], *op.uses[6:])
        elif name[:3] in ("ld.", "st.") and op.shape[1][:1] == (2,) and sum_of(op.uses[0]):
            base, offset = sum_of(op.uses[0])
            if -(2**31) <= op.imm + offset < 2**31:
                op.uses, op.imm = (base, *op.uses[1:]), op.imm + offset
        for d in op.defs:
            if writes[d] > 1:
                written[d] = index
                for known in (local_sums, local_halves):
                    known.pop(d, None)
                    for register in [r for r, (source, _) in known.items() if source == d]:
                        del known[register]
        if not op.partial and len(op.defs) == 1 and len(op.uses) == 1 and op.uses[0] != op.defs[0]:
            d, source = op.defs[0], op.uses[0]
            if name == "add.b64.i" and op.symbol is None:
                known, value, everywhere = local_sums, op.imm, sums
            elif name == "shl.b32.i" and op.imm == 16:
                known, value, everywhere = local_halves, False, halves
            elif name == "and.b32.i" and op.imm == -65536:
                known, value, everywhere = local_halves, True, halves
            else:
                continue
            if known is local_sums and sum_of(source):
                source, value = sum_of(source)[0], sum_of(source)[1] + value
            (everywhere if writes[d] == 1 and writes.get(source) == 1 else known)[d] = (source, value)
    for product in products.values():
        if product.op.name == "fma.f32" and (LOW, HIGH)[product.high] in has:
            product.op.name = (LOW, HIGH)[product.high]
            product.op.uses = (product.packed, product.x, product.c)
    block.ops = [op for op in ops if op is not None]


def _product(op, index, half_of):
    """Return the Product that this fma is, or None."""
    for half, x in ((0, 1), (1, 0)):
        found = half_of(op.uses[half])
        if found:
            c = op.uses[2] if len(op.uses) > 2 else None
            return Product(index, found[1], found[0], op.uses[x], c, op)
    return None


def _chain(product, products, reads, writes, has):
    """Find the run of products that this one continues: low and high halves in turn, each added to the one before."""
    before = products.get(product.c)
    fits = (
        before is not None
        and len(before.chain) < 8
        and before.high != product.high
        and (not product.high or before.packed == product.packed)
        and writes[product.c] == 1
        and reads[product.c] == 1
    )
    product.chain = [*before.chain, product] if fits else [product]
    if product.chain[0].high or not {"fused.dot8.f32", "fused.dot8.f32.z"} <= has:
        product.chain = [product]
    products[product.op.defs[0]] = product


def _dot8(product, ops, unchanged):
    """Replace the last product by the whole run, if all its operands still hold their values there."""
    chain = product.chain
    start = chain[0]
    if not all(unchanged(r, p.index) for p in chain for r in (p.packed, p.x)):
        return
    if start.c is not None and not unchanged(start.c, start.index):
        return
    last = product.op
    weights = tuple(p.packed for p in chain[::2])
    last.uses = (*(() if start.c is None else (start.c,)), *weights, *(p.x for p in chain))
    last.name, last.imm = ("fused.dot8.f32.z", 0) if start.c is None else ("fused.dot8.f32", 0)
    last.shape = DOT_FROM_ZERO if start.c is None else DOT
    for p in chain[:-1]:
        ops[p.index] = None
        p.op.name = "fused away"
