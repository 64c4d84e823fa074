"""Order the blocks of a function, find when its registers are live, and assign a slot to each register.

All this works on one function at a time, in Ops on numbered registers; lower.py makes them, assemble.py writes them.

Ordinary liveness is enough, although 32 lanes share one arena. Each lane has a column of every slot, and an instruction
changes only the columns of its active lanes. So the lanes of a diverged warp cannot change each other's values, and a
slot is free for a lane as soon as no path from that lane's position reads the value. A shuffle reads the columns of
other lanes, but only of lanes at the same shuffle, where the register is live for all of them.
"""

from heapq import heappop, heappush

PREDICATE, WORD, DOUBLE = range(3)  # classes of registers: a mask, 4 bytes per lane, 8 bytes per lane
SLOT_BYTES = (4, 128, 256)


class Op:
    """An instruction of the core, on numbered registers.

    shape    the fields of the registers in `defs` and `uses`
    raw      (field, value) for other fields
    source   the number of the PTX instruction that it came from
    partial  it has a predicate, so that its result may keep the old value
    keep     it has an effect besides its results
    """

    __slots__ = ("name", "defs", "uses", "shape", "imm", "raw", "source", "partial", "keep", "symbol", "targets")

    def __init__(self, name, defs, uses, shape, imm=0, raw=(), source=-1, partial=False, keep=False):
        self.name, self.defs, self.uses, self.shape, self.imm = name, defs, uses, shape, imm
        self.raw, self.source, self.partial, self.keep = raw, source, partial, keep
        self.symbol = self.targets = None


class Block:
    """A basic block: `first` and `count` of its PTX instructions, and its successors, fall-through last."""

    __slots__ = ("ops", "first", "count", "fall", "targets", "label", "number", "live_in", "live_out", "begin", "end")

    def __init__(self, label, first):
        self.label, self.first = label, first
        self.ops, self.count, self.fall, self.targets = [], 0, None, []

    @property
    def successors(self):
        return [*self.targets, self.fall] if self.fall else self.targets


def lay_out(entry):
    """Order the reachable blocks so that diverged lanes meet again early.

    It is a reverse postorder in which the blocks of every loop are together, its head first. In a plain reverse
    postorder the exit of a loop may come before a part of its body. Lanes that left the loop would then run to the end
    before the others.
    """
    order = []
    _lay_out(entry, None, order)
    return order


def _lay_out(head, inside, order):
    for part in reversed(_components(head, inside)):
        if len(part) == 1:
            order.append(part[0])
        else:
            _lay_out(part[-1], set(part), order)  # the block that was found first is the loop's head


def _components(head, inside):
    """Return the strongly connected components reachable from head, last first, without the edges back to head."""
    found, low, stack, parts = {head: 0}, {head: 0}, [head], []
    waiting = set(stack)
    work = [(head, iter(head.successors))]
    while work:
        block, successors = work[-1]
        for following in successors:
            if following is head or (inside is not None and following not in inside):
                continue
            if following not in found:
                found[following] = low[following] = len(found)
                stack.append(following)
                waiting.add(following)
                work.append((following, iter(following.successors)))
                break
            if following in waiting and found[following] < low[block]:
                low[block] = found[following]
        else:
            work.pop()
            if work and low[block] < low[work[-1][0]]:
                low[work[-1][0]] = low[block]
            if low[block] == found[block]:
                part = []
                while not part or part[-1] is not block:
                    part.append(stack.pop())
                    waiting.discard(part[-1])
                parts.append(part)
    return parts


def drop_unread(blocks, pinned):
    """Remove instructions that have no effect but their results, if nothing reads these."""
    read = {}
    for block in blocks:
        for op in block.ops:
            for use in op.uses:
                read[use] = read.get(use, 0) + 1
    for block in reversed(blocks):
        kept = []
        for op in reversed(block.ops):
            if not op.keep and not any(read.get(d) or d in pinned for d in op.defs):
                for use in op.uses:
                    read[use] -= 1
            else:
                kept.append(op)
        kept.reverse()
        block.ops = kept


def find_liveness(blocks, extra, pinned):
    """Set live_in and live_out of each block, sets of registers as bits of an int; return register -> bit.

    Registers that are live in one block only have no bit, except those in `extra`. `pinned` registers are left out.
    """
    exposed, killed = [], []
    for block in blocks:
        reads, writes = set(), set()
        for op in block.ops:
            for use in op.uses:
                if use not in writes:
                    reads.add(use)
            if not op.partial:
                writes.update(op.defs)
        exposed.append(reads)
        killed.append(writes)
    bit = {}
    for register in sorted(set(extra).union(*exposed) - pinned):
        bit[register] = 1 << len(bit)
    exposed = [sum(bit[v] for v in reads if v in bit) for reads in exposed]
    killed = [sum(bit[v] for v in writes if v in bit) for writes in killed]
    for block, reads in zip(blocks, exposed, strict=True):
        block.live_in, block.live_out = reads, 0
    changed = True
    while changed:
        changed = False
        for block, reads, writes in zip(blocks[::-1], exposed[::-1], killed[::-1], strict=True):
            out = 0
            for following in block.successors:
                out |= following.live_in
            if out != block.live_out:
                block.live_out = out
                live = reads | (out & ~writes)
                if live != block.live_in:
                    block.live_in = live
                    changed = True
    return bit


def coalesce(blocks, bit, moves, classes):
    """Give the two registers of a move one slot if they do not interfere; return register -> root.

    A compiler leaves such moves at the end of a loop's body. Two registers interfere if one is written where the other
    is live. The move itself does not count, because there both hold the same value.
    """
    if not moves:
        return {}
    members = {register for op in moves for register in (op.defs[0], op.uses[0])}
    interferes = dict.fromkeys(members, 0)
    moves_set = set(map(id, moves))
    for block in blocks:
        live = block.live_out
        for op in reversed(block.ops):
            defs = op.defs
            if defs:
                after = live
                if len(defs) > 1:
                    for d in defs:
                        after |= bit.get(d, 0)
                if id(op) in moves_set:
                    after &= ~bit[op.uses[0]]
                for d in defs:
                    if d in members:
                        interferes[d] |= after & ~bit[d]
                if not op.partial:
                    for d in defs:
                        if d in bit:
                            live &= ~bit[d]
            for use in op.uses:
                if use in bit:
                    live |= bit[use]
    root = {register: register for register in members}
    group = {register: bit[register] for register in members}

    def find(register):
        while root[register] != register:
            root[register] = register = root[root[register]]
        return register

    for op in moves:
        d, s = find(op.defs[0]), find(op.uses[0])
        if d == s or classes[d] != classes[s] or interferes[d] & group[s] or interferes[s] & group[d]:
            continue
        root[s] = d
        group[d] |= group[s]
        interferes[d] |= interferes[s]
    return {register: find(register) for register in members}


def find_intervals(blocks, bit, root, pinned):
    """Number the ops; return root -> [first, last] position where it is live."""
    position = 0
    intervals = {}
    for block in blocks:
        block.begin = position
        for op in block.ops:
            for register in (*op.uses, *op.defs):
                if register not in pinned:
                    register = root.get(register, register)
                    interval = intervals.get(register)
                    if interval is None:
                        intervals[register] = [position, position]
                    else:
                        interval[1] = position
            position += 1
        position += 1  # the end of a block has a position of its own
        block.end = position - 1
    registers = list(bit)

    def stretch(mask, first=None, last=None):
        while mask:
            low = mask & -mask
            mask ^= low
            register = registers[low.bit_length() - 1]
            interval = intervals.setdefault(root.get(register, register), [first or last or 0, last or first or 0])
            if first is not None and first < interval[0]:
                interval[0] = first
            if last is not None and last > interval[1]:
                interval[1] = last

    seen = 0
    for block in blocks:
        stretch(block.live_in & ~seen, first=block.begin)
        seen |= block.live_in
    seen = 0
    for block in reversed(blocks):
        stretch(block.live_out & ~seen, last=block.end)
        seen |= block.live_out
    return intervals


def place(intervals, classes, begin):
    """Give each interval a slot from offset `begin` on; return register -> offset, and the offset after the last slot.

    A result never shares a slot with a source of the same instruction, unless it is the same register. Predicates come
    last.
    """
    slots, free, ending, top = {}, ([], [], []), [], begin
    counts = [0]
    for register, (first, last) in sorted(intervals.items(), key=lambda item: item[1][0]):
        kind = classes[register]
        while ending and ending[0][0] < first:
            _, done = heappop(ending)
            heappush(free[classes[done]], slots[done])
        if free[kind]:
            slots[register] = heappop(free[kind])
        elif kind == PREDICATE:
            slots[register] = counts[0]
            counts[0] += 1
        else:
            slots[register] = top
            top += SLOT_BYTES[kind]
        heappush(ending, (last, register))
    for register in slots:
        if classes[register] == PREDICATE:
            slots[register] = top + 4 * slots[register]
    top += 4 * counts[0]
    return slots, -(-top // 64) * 64
