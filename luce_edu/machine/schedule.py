"""Turn a Program into machine instructions for the clock, as the assembler would schedule each basic block.

The core executes PTX statements; a GPU issues machine instructions. A table says how many of them the assembler makes
from a statement, on which pipe, and after how many cycles the result is ready. Moves, widened indices, packing and
signs cost nothing. A multiply and the add after it are one instruction; so are a shift and an add, two adds, and two
logic operations. Neighbouring shared loads of 4 or 8 bytes become one of up to 16, if they are known to be aligned.

Then each piece between two pauses is put in order, as a compiler does for straight-line code: among the instructions
whose operands are ready, the one with the longest path to the end issues first. So loads come early, as far as the
registers of a thread allow. A load stays after a store that may write what it reads. Nothing moves across a pause,
which is an instruction that other warps may see or wait for.

How many instructions a statement becomes was measured with ptxas 13.0 for sm_75, sm_86 and sm_90: the difference in
code size between PTX with two and with six copies of the statement. For a rounded division, reciprocal or root, the
instructions of the common path are counted, without the routine that it calls for denormal and huge numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from luce_edu.machine.assemble import Program
from luce_edu.machine.clock import Rates
from luce_edu.machine.ptx import Address, Imm, Instruction, Not, Pair, Reg, Selector, Special, Symbol, Vector
from luce_edu.machine.table import BITS

ENTRY = np.dtype([
    ("row", "<i4"), ("pipe", "u1"), ("kind", "u1"), ("issues", "<u2"), ("latency", "<f4"), ("busy", "<f4"),
    ("sources", "<i4", 6), ("result", "<i4"), ("result2", "<i4"), ("result3", "<i4"), ("result4", "<i4"),
    ("statement", "<i4"), ("joined", "<i2"), ("evict_first", "<i2"),
])  # fmt: skip

PIPES = (
    "none", "fma", "alu", "imad", "fp64", "mufu", "conversion", "memory", "shuffle", "tensor", "half", "branch"
)  # fmt: skip
NONE, FMA, ALU, IMAD, FP64, MUFU, CONVERSION, MEMORY, SHUFFLE, TENSOR, HALF, BRANCH = range(12)
KINDS = (
    "plain", "free", "load", "store", "shared load", "shared store", "pause", "shared atomic", "copy", "prefetch",
    "bypass", "bypass copy",
)  # fmt: skip
(
    PLAIN, FREE, LOAD, STORE, SHARED_LOAD, SHARED_STORE, PAUSE, SHARED_ATOMIC, COPY, PREFETCH, BYPASS, BYPASS_COPY
) = range(12)  # fmt: skip
COPIES = (COPY, BYPASS_COPY)
IN_SHARED = (SHARED_LOAD, SHARED_STORE, SHARED_ATOMIC, *COPIES)

# Latencies in cycles that the order assumes for memory. An assembler does not know in which cache the data will be.
ASSUMED = {
    LOAD: 300.0, BYPASS: 300.0, COPY: 300.0, BYPASS_COPY: 300.0, PREFETCH: 300.0, SHARED_LOAD: 25.0,
    SHARED_ATOMIC: 60.0, PAUSE: 30.0,
}  # fmt: skip
# Cycles to read a special register such as threadIdx, and constant memory at a computed address. Both are guesses.
SPECIAL_LATENCY, CONSTANT_LATENCY = 20.0, 30.0
MOST_REGISTERS = 255  # of a thread, on every card
REGISTERS_PER_SM = 65536
STATIC = "static shared memory"  # the common base of its addresses


@dataclass(frozen=True)
class Schedule:
    """The machine instructions of a program, block by block, in the order in which they issue.

    entries   rows of ENTRY:
        row       the slot of the program's code that it belongs to; -1 if the core executes nothing for it
        pipe      index into PIPES
        kind      index into KINDS
        issues    number of machine instructions; each takes an issue slot. 0 if the entry is free
        latency   cycles from its issue until a dependent one may issue; a read of memory adds its own
        busy      cycles for which it occupies its pipe of the quadrant, for all its issues together
        sources   n >= 0: entry n of the same block, counted from the block's first; -1: none; -2 - k: register slot k,
                  with the time that it had when the block began
        result    the register slot whose time this entry sets for later blocks, or -1; result2 to result4 likewise
        statement its index in Program.instructions, or -1
        joined    1, or the number of shared loads that it joins: its own, and those of the same size after it in
                  memory, which follow as free entries
        evict_first  1 if L2 shall evict what it touches before other lines
    blocks    int32 [n, 2]: first entry and number of entries, by the number of the basic block
    slots     number of register slots. A register's slot is its offset in the arena // 128; predicates, of which many
              share 128 bytes, have the numbers from arena_bytes // 128 on

    A free entry, such as the load of a kernel's parameter, only passes on the latest time of its sources. Each memory
    instruction of the program (Program.sites) and each pause is the row of exactly one entry.
    """

    entries: np.ndarray
    blocks: np.ndarray
    slots: int


def schedule(program: Program, rates: Rates) -> Schedule:
    """Return the machine instructions of a program, in an order that an assembler could choose. rates: the card's."""
    return _Scheduler(program, rates).run()


# ---- The cost of a statement


class Cost:
    """The cost of a statement: `issues` instructions, of which `on_pipe` use `pipe`, at its rate or `rate` of Rates.

    `fold` names the case in which it may be free (see _Function).
    """

    __slots__ = ("kind", "pipe", "issues", "latency", "busy", "fold")

    def __init__(self, rates, pipe, issues=1, on_pipe=None, latency=None, kind=PLAIN, fold=None, rate=None):
        self.kind, self.pipe, self.issues, self.fold = kind, pipe, issues, fold
        name = PIPES[pipe]
        # The cycles of a tensor core depend on the shape.
        busy = 0.0 if pipe in (NONE, TENSOR) else rates.busy(rate or name)
        self.busy = busy * (issues if on_pipe is None else on_pipe)
        self.latency = getattr(rates, f"{name}_latency", 0.0) if latency is None else latency


SPACES = ("global", "shared", "local", "const", "param")
ORDERED = {"volatile", "relaxed", "acquire", "release", "acq_rel", "sc", "mmio"}
PAUSES = {"bar", "barrier", "fence", "membar", "nanosleep", "griddepcontrol", "exit", "trap", "brkpt", "mbarrier"}
WIDTHS_APART = {"and", "or", "xor", "not", "shl", "shr", "selp", "slct", "addc", "subc"}  # two for 64 bits
LOGIC = {"and", "or", "xor", "not", "lop3", "cnot"}
TAKES_SIGN = {"add", "sub", "mul", "fma", "mad", "min", "max", "setp"}  # in fp32 they negate a source at no cost
NO_RESULT = {
    "st", "red", "bra", "brx", "ret", "exit", "trap", "brkpt", "prefetch", "prefetchu", "discard", "applypriority",
    "fence", "membar", "cp", "nanosleep", "griddepcontrol", "stmatrix", "pmevent", "setmaxnreg",
}  # fmt: skip
CLOCKS = {"%clock", "%clock_hi", "%clock64", "%globaltimer", "%globaltimer_lo", "%globaltimer_hi"}
# Special registers that an instruction can read like a constant.
IN_CONSTANTS = ("%ntid", "%nctaid", "%dynamic_smem_size", "%total_smem_size", "WARP_SZ")


def _space(words):
    for word in words:
        if word.partition("::")[0] in SPACES:
            return word.partition("::")[0]
    return "generic"


def find_cost(opcode: str, words: tuple[str, ...], rates: Rates) -> Cost:
    """Return the Cost of an opcode with these modifiers. Others than those below are one integer instruction."""

    def cost(pipe, *args, **more):
        return Cost(rates, pipe, *args, **more)

    types = [word for word in words if word in BITS]
    kind = types[-1] if types else "b32"
    double = BITS[kind] == 64
    real = kind[0] == "f" or kind[:2] == "bf"
    if opcode in ("ld", "ldu", "st", "atom", "red", "ldmatrix", "stmatrix"):
        return _memory_cost(opcode, words, rates)
    if opcode in PAUSES and words[:1] != ("warp",) and words != ("pending_count", "b64"):
        return cost(BRANCH if opcode in ("exit", "bar", "barrier", "nanosleep") else MEMORY, latency=4, kind=PAUSE)
    if opcode == "cp":
        if "prefetch" in words:
            return cost(MEMORY, kind=PREFETCH)
        # A bulk copy changes an mbarrier, which other warps may see.
        if "commit_group" not in words and {"wait_group", "wait_all", "mbarrier", "bulk"} & set(words):
            return cost(MEMORY, latency=4, kind=PAUSE)
        return cost(MEMORY, kind=BYPASS_COPY if "cg" in words else COPY)
    if opcode in ("prefetch", "prefetchu"):
        return cost(MEMORY, kind=PREFETCH)
    if opcode in ("discard", "applypriority"):
        return cost(MEMORY)
    if opcode in ("bra", "brx", "ret", "call"):
        return cost(BRANCH, 1 if opcode == "bra" else 2)
    if opcode in ("shfl", "vote", "match", "redux", "elect", "activemask", "bar"):
        if opcode == "redux":
            return cost(SHUFFLE, 2, 2)
        rate = "vote" if opcode == "vote" else None
        return cost(SHUFFLE, latency=None if opcode in ("shfl", "match") else rates.vote_latency, rate=rate)
    if opcode in ("mma", "movmatrix"):
        return _mma_cost(words, rates)
    if opcode in ("cvta", "isspacep", "createpolicy", "pmevent", "setmaxnreg", "mov") or (
        opcode == "not" and kind == "pred"
    ):
        return cost(NONE, 0, kind=FREE)
    if opcode == "cvt":
        return _conversion_cost(words, types, rates)
    if opcode in ("setp", "set"):
        return cost(
            HALF if BITS[kind] == 16 and real else FP64 if real and double else ALU,
            2 if double and not real else 1,
            latency=rates.predicate_latency if not (real and double) else None,
        )
    if kind == "pred":
        return cost(ALU, latency=rates.predicate_latency, fold="predicate")
    if opcode in APPROXIMATE and real:
        issues, turns = APPROXIMATE[opcode]["ftz" if "ftz" in words else ""]
        if opcode in ("rcp", "sqrt", "div", "rsqrt") and not {"approx", "full"} & set(words) or double:
            if double:  # a first estimate of 32 bits and some multiply-adds, as ptxas does for sm_86
                return cost(FP64, 21, 9, 9 * rates.fp64_latency)
            issues, turns = 8, 5
        elif "full" in words:
            issues = 5 if "ftz" in words else 8
        return cost(MUFU, issues, 1, rates.mufu_latency + turns * rates.fma_latency)
    if real:
        if double:
            return cost(FP64, 6, 2) if opcode in ("min", "max") else cost(FP64)
        if BITS[kind] == 16 or kind.endswith("x2"):
            return cost(HALF)
        if opcode in ("neg", "abs"):
            return cost(ALU, fold="sign")
        return cost(FMA if opcode in ("add", "sub", "mul", "fma", "mad") else ALU)
    if opcode in ("mul", "mad", "mul24", "mad24"):
        wide, high = "wide" in words and BITS[kind] == 32, "hi" in words
        if double:
            return cost(IMAD, 10 if high else 4, latency=(4 if high else 3) * rates.imad_latency)
        fold = "add" if opcode == "mul" and not high and (wide or BITS[kind] == 32) else None
        return cost(IMAD, 1 if opcode[-1] != "4" else 2, 2 if wide or high else 1,
                    rates.wide_imad_latency if wide or high else rates.imad_latency, fold=fold)  # fmt: skip
    # An integer division uses a reciprocal in fp32; 57 cycles by arabel1a/gpu-micro-bench (RTX 2080 SUPER, GA102).
    # One of 64 bits calls a routine: its 70 instructions and 200 cycles are guesses.
    if opcode in ("div", "rem"):
        return cost(MUFU, 70 if double else 25 if kind[0] == "s" else 18, 4 if double else 3, 200 if double else 57)
    if opcode in ("popc", "brev", "bfind", "clz", "fns"):
        return cost(MUFU, (2 if opcode in ("clz", "brev") else 1) * (1 + double), rate="bit")
    if opcode in ("add", "sub"):
        return cost(ALU, 1 + double, latency=(1 + double) * rates.alu_latency, fold="sum" if BITS[kind] > 16 else None)
    if opcode in ("bfe", "bfi"):
        return cost(ALU, 2 * (1 + double), latency=2 * rates.alu_latency)
    if opcode in ("min", "max", "abs") and double:
        return cost(ALU, 4, latency=3 * rates.alu_latency)
    fold = "add" if opcode == "shl" and BITS[kind] > 16 else "logic" if opcode in LOGIC and BITS[kind] == 32 else None
    return cost(ALU, 1 + (double and opcode in WIDTHS_APART), fold=fold)


# For special functions: the number of instructions, and how many of them depend on each other besides the function.
APPROXIMATE = {
    "ex2": {"": (4, 3), "ftz": (1, 0)}, "lg2": {"": (4, 3), "ftz": (1, 0)}, "rcp": {"": (7, 4), "ftz": (1, 0)},
    "rsqrt": {"": (4, 3), "ftz": (1, 0)}, "sqrt": {"": (4, 3), "ftz": (1, 0)}, "div": {"": (5, 3), "ftz": (2, 1)},
    "sin": {"": (2, 1), "ftz": (2, 1)}, "cos": {"": (2, 1), "ftz": (2, 1)}, "tanh": {"": (1, 0), "ftz": (1, 0)},
}  # fmt: skip


def _memory_cost(opcode, words, rates):
    space, store = _space(words), opcode in ("st", "stmatrix")
    if opcode in ("ldmatrix", "stmatrix"):
        space = "shared"
    if space == "param":
        return Cost(rates, NONE, 0, kind=FREE)
    if space == "const":
        return Cost(rates, MEMORY, latency=CONSTANT_LATENCY, fold="constant")
    if opcode in ("atom", "red"):
        plain = space == "shared" and not {"acquire", "release", "acq_rel"} & set(words)
        return Cost(rates, MEMORY, kind=SHARED_ATOMIC if plain else PAUSE)
    if ORDERED & set(words):
        return Cost(rates, MEMORY, kind=PAUSE)
    if space == "shared":
        kind = SHARED_STORE if store else SHARED_LOAD
    else:  # it bypasses L1
        kind = STORE if store else BYPASS if "L1::no_allocate" in words else LOAD
    return Cost(rates, MEMORY, kind=kind)


def _mma_cost(words, rates):
    shape = next((word for word in words if word[0] == "m" and word[1:2].isdigit()), None)
    if shape is None or "trans" in words:
        return Cost(rates, SHUFFLE)
    sizes = (int(part) for part in shape.replace("n", " ").replace("k", " ")[1:].split())
    inputs = [word for word in words if word in BITS or word in ("s4", "u4", "b1", "e4m3", "e5m2")][1]
    weight = {"tf32": 2, "f64": 16, "s8": 0.5, "u8": 0.5, "e4m3": 0.5, "e5m2": 0.5}.get(inputs, 1)
    found = Cost(rates, TENSOR)
    found.busy = rates.mma_busy(*sizes) * weight
    return found


def _conversion_cost(words, types, rates):
    to, kind = types[-2:] if len(types) > 1 else (types[-1], types[-1])
    real, was_real = (name[0] == "f" or name[:2] == "bf" for name in (to, kind))
    if not (real or was_real or "tf32" in types):
        # 64-bit index arithmetic can use a 32-bit register or its sign; signed bytes and halves must be widened.
        widened = BITS[kind] < 32 and kind[0] == "s" and BITS[to] > BITS[kind] or "sat" in words
        narrow = BITS[to] < 16 or BITS[kind] == 8
        return Cost(rates, ALU) if widened or narrow else Cost(rates, NONE, 0, kind=FREE)
    if to == "tf32":
        return Cost(rates, ALU, 3, latency=3 * rates.alu_latency)
    if 64 in (BITS[to], BITS[kind]):
        return Cost(rates, FP64, rate="wide_conversion")
    if to == kind == "f32":
        rounds = any(word in ("rni", "rzi", "rmi", "rpi") for word in words)
        return Cost(rates, CONVERSION) if rounds else Cost(rates, FMA, fold="saturate")
    if kind == "bf16":
        return Cost(rates, ALU)
    if real and was_real or to.endswith("x2"):
        return Cost(rates, HALF)
    return Cost(rates, CONVERSION)


# ---- Registers that a statement reads and writes


def _registers_of(operand, found):
    """Add the names of an operand's registers to `found`; return the name of the address register, or None."""
    kind = type(operand)
    if kind is Reg:
        found.append(operand.name)
    elif kind is Address:
        if type(operand.base) is Reg:
            found.append(operand.base.name)
            return operand.base.name
    elif kind is Vector:
        for item in operand.items:
            _registers_of(item, found)
    elif kind is Pair:
        _registers_of(operand.first, found)
        _registers_of(operand.second, found)
    elif kind is Not or kind is Selector:
        found.append(operand.reg.name)
    return None


class Statement:
    """A PTX instruction with the register names that it reads and writes; `address` is its address register."""

    __slots__ = ("ins", "defs", "uses", "address", "cost", "block", "index")

    def __init__(self, index, ins, cost, block):
        self.index, self.ins, self.cost, self.block = index, ins, cost, block
        operands, defs, uses, self.address = ins.operands, [], [], None
        if ins.opcode == "call":
            results, _, arguments, _ = operands
            _registers_of(results, defs)
            _registers_of(arguments, uses)
            operands = ()
        elif operands and type(operands[0]) is not Address and (
            "red" in ins.modifiers if ins.opcode in ("bar", "barrier") else ins.opcode not in NO_RESULT
        ):
            _registers_of(operands[0], defs)
            operands = operands[1:]
        for operand in operands:
            address = _registers_of(operand, uses)
            if address is not None:
                self.address = address
        if ins.predicate is not None:
            uses.append(ins.predicate)
            uses += [name for name in defs if name not in uses]  # because they keep their values in inactive lanes
        if ins.opcode in ("addc", "subc", "madc"):
            uses.append("carry flag")
        if "cc" in ins.modifiers:
            defs.append("carry flag")
        self.defs, self.uses = defs, uses


class _Function:
    """The statements that read and write each register of a function, which show what costs nothing.

    sum         an addition of a constant that only makes an address, and the first of two additions
    add         a multiplication or a shift by a constant whose result is only added
    logic       one of two logic operations that have three operands together
    sign        a sign change of an fp32 number that only arithmetic reads
    saturate    a limit to 0 … 1 on the result of fp32 arithmetic
    predicate   a combination with a comparison that nothing else reads
    constant    a read of constant memory at a fixed address
    """

    def __init__(self, statements, slots, words, shared):
        self.slots, self.words = slots, words
        self.width_of = {slots[name][0]: words[name] for name in slots}
        # Slot, first and last row of a value, number of registers: each value once, even if it has several names.
        values = {(*where, words[name]) for name, where in slots.items()}
        self.intervals = np.array(sorted(values), np.int64).reshape(-1, 4)
        self.readers, self.writers = {}, {}
        for statement in statements:
            for name in statement.uses:
                self.readers.setdefault(name, []).append(statement)
            for name in statement.defs:
                self.writers.setdefault(name, []).append(statement)
        self.only_addresses = {}
        self.joined = {}  # index of a statement that includes another one -> that one's cost
        self.inherited = {}
        self.shared, self.aligned, self.settled = shared, {}, set()

    def only_address(self, name):
        """Whether a register is used only as an address, perhaps after more constants are added."""
        known = self.only_addresses.get(name)
        if known is None:
            self.only_addresses[name] = False  # ends the recursion for a cycle of registers
            known = self.only_addresses[name] = all(
                s.address == name and s.uses.count(name) == 1 or self.is_offset(s) for s in self.readers.get(name, ())
            )
        return known

    def is_offset(self, statement):
        """Whether a statement adds a constant to a register that is used only as an address."""
        return (
            statement.cost.fold == "sum"
            and statement.ins.opcode == "add"
            and statement.ins.predicate is None
            and _has_constant(statement)
            and len(self.writers[statement.defs[0]]) == 1
            and self.only_address(statement.defs[0])
        )

    def is_dead(self, statement):
        """Whether a statement has no effect but its results, and nothing reads them."""
        return (
            bool(statement.defs)
            and statement.cost.kind in (PLAIN, FREE)
            and statement.ins.opcode not in ("call", "ld")
            and not any(name in self.readers for name in statement.defs)
        )

    def evicts_first(self, statement):
        """Whether an access has a cache policy, and createpolicy has made it with the primary priority evict_first."""
        if "L2::cache_hint" not in statement.ins.modifiers:
            return False
        makers = [maker.ins for name in statement.uses for maker in self.writers.get(name, ())]
        policies = [maker.modifiers for maker in makers if maker.opcode == "createpolicy"]
        return bool(policies) and all("L2::evict_first" in words for words in policies)

    def is_free(self, statement):
        """Whether the assembler makes this statement part of another one."""
        fold = statement.cost.fold
        if fold == "constant":
            return not statement.uses
        if len(statement.defs) != 1 or statement.ins.predicate is not None:
            return False
        name = statement.defs[0]
        if len(self.writers[name]) != 1:
            return False
        readers = self.readers.get(name, ())
        if fold == "sign":
            return all(s.ins.opcode in TAKES_SIGN and s.ins.modifiers[-1] == "f32" for s in readers)
        if fold == "saturate":
            maker = self.writers.get(statement.uses[0], ()) if statement.uses else ()
            return "sat" in statement.ins.modifiers and len(maker) == 1 and maker[0].cost.pipe == FMA and (
                len(self.readers[statement.uses[0]]) == 1 and maker[0].block == statement.block
            )  # fmt: skip
        if fold == "predicate":
            return any(
                len(self.readers[use]) == 1
                and len(self.writers.get(use, ())) == 1
                and self.writers[use][0].ins.opcode == "setp"
                and self.writers[use][0].block == statement.block
                for use in statement.uses
            )
        if self.is_offset(statement):
            return True
        if fold == "sum" or fold == "add":
            bits = BITS[statement.ins.modifiers[-1]]
            double = bits == 64 or bits == 32 and "wide" in statement.ins.modifiers
            if fold == "sum":
                fits = len(readers) == 1 and len(statement.uses) + len(readers[0].uses) - 1 <= 3
            else:
                fits = statement.ins.opcode == "mul" or _has_constant(statement)
            if not fits or not readers:
                return False
            for s in readers:
                if s.cost.fold != "sum" or s.ins.opcode != "add" or (BITS[s.ins.modifiers[-1]] == 64) != double:
                    return False
                if s.block != statement.block or s.index in self.joined or s.uses.count(name) > 1 or s.ins.predicate:
                    return False
            for reader in readers:
                self.joined[reader.index] = statement.cost
            return True
        if fold == "logic" and len(readers) == 1:
            (reader,) = readers
            if (
                reader.cost.fold == "logic"
                and reader.block == statement.block
                and reader.index not in self.joined
                and statement.index not in self.joined
                and len(statement.uses) + len(reader.uses) - 1 <= 3
                and reader.ins.predicate is None
            ):
                self.joined[reader.index] = statement.cost
                return True
        return False

    def alignment(self, name):
        """Return the power of two that a register is known to be a multiple of, whichever statement wrote it."""
        found, asked = self.aligned, [name]
        while asked:
            if (one := asked.pop()) not in found:
                found[one] = 4096
                asked += [use for writer in self.writers.get(one, ()) for use in writer.uses]
        changed = name not in self.settled
        while changed:
            changed = False
            for one in found:
                known = min([_alignment(writer, self.shared, found) for writer in self.writers.get(one, ())], default=1)
                if known < found[one]:
                    found[one], changed = known, True
        self.settled.update(found)
        return found[name]

    def outside(self, name):
        """Return the source of a register that was written in another block: -2 - slot, or -1."""
        found = self.inherited.get(name)
        if found is None:
            self.inherited[name] = ()
            slot, writers = self.slots.get(name), self.writers.get(name, ())
            if slot is not None:
                found = (-2 - slot[0],)
            elif len(writers) == 1:  # the core has no register for it, so its time follows from its own sources
                found = tuple(dict.fromkeys(v for use in writers[0].uses for v in self.outside(use)))[:6]
            else:
                found = ()
            self.inherited[name] = found
        return found


def _alignment(statement, shared, known):
    """Return the power of two that the result of integer arithmetic is a multiple of, from those of its operands."""
    ins = statement.ins

    def of(operand):
        if type(operand) is Reg:
            return known.get(operand.name, 1)
        value = 1
        if type(operand) is Imm and operand.kind == "int":
            value = operand.value
        elif type(operand) is Symbol:
            value = shared.get(operand.name, 16) + operand.offset
        return min(value & -value or 4096, 4096)

    operands = [of(operand) for operand in ins.operands[1:]]
    if ins.opcode in ("add", "sub", "or", "xor") or ins.opcode == "selp":
        return min(operands[:2])
    if ins.opcode in ("mov", "cvta", "cvt") and len(operands) == 1:
        return operands[0]
    if ins.opcode == "and":
        return max(operands)
    if ins.opcode == "shl":
        return min(operands[0] << min(ins.operands[2].value, 12), 4096) if type(ins.operands[2]) is Imm else operands[0]
    if ins.opcode in ("mul", "mad") and "hi" not in ins.modifiers and ins.modifiers[-1][0] in "us":
        product = min(operands[0] * operands[1], 4096)
        return product if ins.opcode == "mul" else min(product, operands[2])
    return 1


def _has_constant(statement):
    return any(type(operand) is Imm for operand in statement.ins.operands[1:])


# ---- A block


class Node:
    """A machine instruction before it is placed: `sources` as in Schedule, by Node number; `after`: those before it."""

    __slots__ = (
        "row", "statement", "cost", "sources", "after", "results", "words", "assumed", "time", "readers", "joined",
        "evict_first",
    )  # fmt: skip

    def __init__(self, row, statement, cost, sources, words):
        self.row, self.statement, self.cost, self.sources, self.words = row, statement, cost, sources, words
        self.evict_first = False
        self.after, self.results, self.joined, self.time, self.readers = [], [], [], 0.0, 0
        self.assumed = cost.latency + ASSUMED.get(cost.kind, 0.0)


class _Memory:
    """The order of loads and stores in a piece.

    Stores stay in order. So a load must follow only the last store that it may not pass, and a store must follow only
    the loads since the last store that already follows them.
    """

    def __init__(self):
        self.stores, self.loads = [], []

    @staticmethod
    def may_touch(one, other):
        (space, base, begin, end), (space2, base2, begin2, end2) = one, other
        if space != space2 and "generic" not in (space, space2):
            return False
        return base is None or base != base2 or begin < end2 and begin2 < end

    def load(self, number, where):
        self.loads.append((number, where))
        for store, other in reversed(self.stores):
            if self.may_touch(where, other):
                return [store]
        return []

    def store(self, number, where):
        after = [self.stores[-1][0]] if self.stores else []
        kept = []
        for entry in self.loads:
            if self.may_touch(where, entry[1]):
                after.append(entry[0])
            else:
                kept.append(entry)
        self.loads = kept
        self.stores.append((number, where))
        return after


class _Scheduler:
    def __init__(self, program: Program, rates: Rates):
        self.program, self.rates = program, rates
        self.costs, self.entries, self.blocks = {}, [], []
        self.free = Cost(rates, NONE, 0, kind=FREE)
        self.special = Cost(rates, NONE, latency=SPECIAL_LATENCY)
        self.clock = Cost(rates, NONE, kind=PAUSE, latency=SPECIAL_LATENCY)
        self.registers = registers_of_a_thread(program.needs)

    def run(self):
        program = self.program
        self.find_rows()
        slots, words, predicates = {}, {}, {}
        for function, name, kind, offset, first, last in program.registers:
            if offset >= program.image_at:
                continue  # a constant
            slot = offset // 128
            bits = BITS.get(kind, 1)  # 1 for the carry flag, which has no type
            if bits == 1:
                slot = program.arena_bytes // 128 + predicates.setdefault(offset, len(predicates))
            slots.setdefault(function, {})[name] = (slot, first, last)
            words.setdefault(function, {})[name] = 0 if bits == 1 else bits // 64 + 1
        statements = self.statements()
        by_function = {}
        for block in statements:
            for statement in block:
                by_function.setdefault(program.functions[statement.index], []).append(statement)
        functions = {
            name: _Function(found, slots.get(name, {}), words.get(name, {}), program.shared)
            for name, found in by_function.items()
        }
        for number, block in enumerate(statements):
            first = len(self.entries)
            if block:
                self.block(number, block, functions[program.functions[block[0].index]])
            if number in self.ends:
                self.entry(Node(self.ends[number], -1, find_cost("exit", (), self.rates), [], 0), [], first)
            self.blocks.append((first, len(self.entries) - first))
        blocks = np.array(self.blocks, np.int32).reshape(-1, 2)
        return Schedule(_table(self.entries), blocks, program.arena_bytes // 128 + len(predicates))

    def find_rows(self):
        """Find the row of the code that stands for each statement, and the block of that row."""
        program = self.program
        rows = np.flatnonzero((program.sources >= 0) & (program.code["op"] >= 0))
        self.row = np.full(len(program.instructions), -1)
        self.row[program.sources[rows]] = rows  # the last one
        sites = np.array(program.sites, np.int64)
        self.sites = set(program.sites)
        self.row[program.sources[sites]] = sites
        home = np.full(len(program.instructions), -1)
        for number, (_, first, count) in enumerate(program.blocks.tolist()):
            home[first : first + count] = number
        there = np.searchsorted(program.blocks[:, 0], self.row, side="right") - 1
        self.home = home.tolist()
        for index in np.flatnonzero((self.row >= 0) & (there != home)).tolist():
            ins = program.instructions[index]
            if ins.opcode == "call":  # the block after it fetches its results
                own = rows[(program.sources[rows] == index) & (rows < program.blocks[home[index] + 1, 0])]
                self.row[index] = max(own[own > program.blocks[home[index], 0]], default=-1)
            elif ins.predicate is not None and ins.opcode != "bra":
                self.home[index] = int(there[index])  # its predicate put it into a block of its own
        self.row = self.row.tolist()
        # An exit that the PTX leaves out is neither the head of a block nor a branch.
        code = program.code
        added = (program.sources < 0) & (code["op"] >= 0) & (code["a"] < 0) & (code["imm"] == 0)
        added[program.blocks[:, 0]] = False
        ends = np.flatnonzero(added)
        blocks = np.searchsorted(program.blocks[:, 0], ends, side="right") - 1
        self.ends = dict(zip(blocks.tolist(), ends.tolist(), strict=True))

    def statements(self):
        """Return the Statements of each block, without those that the assembler leaves out."""
        program, blocks = self.program, [[] for _ in self.program.blocks]
        for index, (ins, home) in enumerate(zip(program.instructions, self.home, strict=True)):
            if home < 0 or ins.opcode == "bra" and ins.predicate is None and self.row[index] < 0:
                continue
            blocks[home].append(Statement(index, ins, self.cost(index, ins), home))
        return blocks

    def cost(self, index: int, ins: Instruction) -> Cost:
        if ins.opcode == "mov" and type(ins.operands[1]) is Special:
            name = ins.operands[1].name
            return self.clock if name in CLOCKS else self.free if name.startswith(IN_CONSTANTS) else self.special
        key = ins.opcode, ins.modifiers
        if ins.opcode == "ret" and self.program.functions[index] == self.program.name:
            key = "exit", ()
        found = self.costs.get(key)
        if found is None:
            found = self.costs[key] = find_cost(*key, self.rates)
        return found

    def block(self, number, statements, function):
        program, words, nodes, values = self.program, function.words, [], {}
        pieces, piece, memory, sides = [], [], _Memory(), {}
        origins, versions = {}, {}
        begin = int(program.blocks[number][0])
        stop = int(program.blocks[number + 1][0]) if number + 1 < len(program.blocks) else len(program.code)

        for statement in statements:
            if function.is_dead(statement):
                continue
            ins, cost, defs = statement.ins, statement.cost, statement.defs
            sources = []
            for name in statement.uses:
                value = values.get(name)
                if value is None:
                    value = values[name] = function.outside(name)
                for source in value:
                    if source not in sources:
                        sources.append(source)
            free = cost.kind == FREE or cost.fold is not None and function.is_free(statement)
            self.note_origin(statement, origins, versions)
            if free and self.row[statement.index] not in self.sites:
                value = tuple(sources)
            else:
                if free:  # a parameter or constant that an instruction can use as an operand
                    cost = self.free
                elif statement.index in function.joined and function.joined[statement.index].pipe == IMAD:
                    cost = function.joined[statement.index]
                at, wide = len(nodes), sum([words.get(name, 1) for name in defs])
                nodes.append(node := Node(self.row[statement.index], statement.index, cost, sources, wide))
                node.evict_first = function.evicts_first(statement)
                value = () if free else (at,)
                if cost.kind == PAUSE or cost.pipe == BRANCH or ins.opcode == "bar":
                    pieces += [piece, [at]]
                    piece, memory = [], _Memory()
                else:
                    piece.append(at)
                    if "nc" in ins.modifiers:
                        pass  # ld.global.nc: the kernel's author promises that nothing writes this memory
                    elif cost.kind in (LOAD, BYPASS, SHARED_LOAD):
                        where = self.where(statement, origins, versions)
                        node.after = memory.load(at, where)
                        if cost.kind == SHARED_LOAD and ins.predicate is None and where[1] is not None:
                            key = len(pieces), where[1], where[3] - where[2], *node.after
                            sides.setdefault(key, {}).setdefault(where[2], at)
                    elif cost.kind in (STORE, SHARED_STORE, SHARED_ATOMIC, *COPIES):
                        node.after = memory.store(at, self.where(statement, origins, versions))
            for name in defs:
                values[name] = value
                versions[name] = versions.get(name, 0) + 1
        pieces.append(piece)
        self.join_loads(nodes, pieces, values, sides, function)

        final = {}
        for statement in statements:
            for name in statement.defs:
                slot = function.slots.get(name)
                if slot is not None and name in values and (slot[1] < begin or slot[2] >= stop):
                    final[slot[0]] = values[name]
        tail = []
        for slot, value in final.items():
            if len(value) == 1 and value[0] >= 0 and len(nodes[value[0]].results) < 4:
                nodes[value[0]].results.append(slot)
            elif value and value != (-2 - slot,):
                node = Node(-1, statements[-1].index, self.free, list(value), 0)
                node.results.append(slot)
                tail.append(node)
        order = self.order(nodes, pieces, self.registers - self.live_through(function, begin, stop, final))
        self.write(nodes, order, tail)

    def join_loads(self, nodes, pieces, values, sides, function):
        """Join neighbouring shared loads into one.

        sides   (piece, base, bytes, the store that they follow) -> {offset: number of the node}
        """
        leader = {}
        for (_, base, size, *_), loads in sides.items():
            for count in (16 // size, 8 // size):
                total = count * size
                if size not in (4, 8) or count < 2 or len(loads) < count or self.alignment(base, function) < total:
                    continue
                for offset in sorted(loads):
                    group = [loads.get(offset + i * size) for i in range(count)]
                    if offset % total == 0 and None not in group:
                        for i in range(count):
                            del loads[offset + i * size]
                        first, *others = sorted(group)
                        nodes[first].joined = others
                        nodes[first].words = total // 4
                        leader |= dict.fromkeys(others, first)
        if not leader:
            return
        for node in nodes:
            node.after = [leader.get(n, n) for n in node.after]
            node.sources = list(dict.fromkeys([leader.get(n, n) for n in node.sources]))
        for number, first in leader.items():
            nodes[number].cost, nodes[number].sources = self.free, [first]
        for name, value in values.items():
            values[name] = tuple(dict.fromkeys([leader.get(n, n) for n in value]))
        for i, piece in enumerate(pieces):
            pieces[i] = [number for number in piece if number not in leader]

    def alignment(self, base, function):
        """Return the power of two that the address `base` is known to be a multiple of."""
        if type(base) is str:
            return 4096 if base == STATIC else 16
        return function.alignment(base[0])

    def note_origin(self, statement, origins, versions):
        """Keep track of addresses that are another register or a variable plus a constant."""
        ins, defs = statement.ins, statement.defs
        if len(defs) != 1:
            return
        name, found = defs[0], None
        if ins.predicate is None:
            if statement.cost.fold == "sum" and ins.opcode == "add" and len(statement.uses) == 1:
                constant = next((o for o in ins.operands[1:] if type(o) is Imm), None)
                if constant is not None:
                    base, offset = self.origin(statement.uses[0], origins, versions)
                    found = base, offset + constant.value
            elif ins.opcode in ("mov", "cvta"):
                if len(statement.uses) == 1:
                    found = self.origin(statement.uses[0], origins, versions)
                elif type(ins.operands[1]) is Symbol:
                    found = self.variable(ins.operands[1])
        if found is None:
            found = (name, versions.get(name, 0) + 1), 0
        origins[name] = found

    def variable(self, symbol):
        """Return base and offset of a variable; all static shared variables have the same base."""
        place = self.program.shared.get(symbol.name)
        return (symbol.name, symbol.offset) if place is None else (STATIC, place + symbol.offset)

    @staticmethod
    def origin(name, origins, versions):
        return origins.get(name) or ((name, versions.get(name, 0)), 0)

    def where(self, statement, origins, versions):
        """Return (space, base, first byte, end) of an access; the base is None if it is unknown."""
        words = statement.ins.modifiers
        space = "shared" if statement.cost.kind in IN_SHARED else _space(words)
        address = next((o for o in statement.ins.operands if type(o) is Address), None)
        if address is None or statement.cost.kind in COPIES or statement.ins.opcode[2:] == "matrix":
            return space, None, 0, 0
        size = BITS[words[-1]] // 8 * (4 if "v4" in words else 2 if "v2" in words else 1)
        if type(address.base) is Reg:
            base, offset = self.origin(address.base.name, origins, versions)
        else:
            base, offset = self.variable(address.base) if address.base is not None else (STATIC, 0)
        offset += address.offset
        return space, base, offset, offset + size

    def live_through(self, function, begin, stop, final):
        """Count the registers that hold a value across the whole block; at most half of all registers."""
        table = function.intervals
        through = (table[:, 1] < begin) & (table[:, 2] >= stop)
        count = int(table[through, 3].sum()) - sum(function.width_of.get(slot, 0) for slot in final)
        return max(0, min(count, self.registers // 2))

    # ---- Order

    def order(self, nodes, pieces, registers):
        """Return the numbers of the nodes in the order in which they issue."""
        for piece in pieces:
            for number in piece:
                for source in nodes[number].sources:
                    if source >= 0:
                        nodes[source].readers += 1
        order, state = [], [0.0, 0]
        for piece in pieces:
            if len(piece) > 1:
                self.order_piece(nodes, piece, order, state, registers)
            elif piece:
                node = nodes[piece[0]]
                start = max([state[0], *(nodes[s].time for s in node.sources if s >= 0)])
                self.issue(nodes, piece[0], start, order, state)
        return order

    @staticmethod
    def issue(nodes, number, start, order, state):
        """Issue a node; update `state`, the time after it and the number of live registers.

        An access counts for two cycles. Then shared loads come about as early as in the code of ptxas for sm_86; this
        was tried on a matrix product with tiles in shared memory.
        """
        node = nodes[number]
        node.time = start + node.assumed
        state[0] = start + (2 if node.cost.pipe == MEMORY else node.cost.issues)
        if node.readers or node.results:
            state[1] += node.words
        for source in node.sources:
            if source >= 0:
                before = nodes[source]
                before.readers -= 1
                if not before.readers and not before.results:
                    state[1] -= before.words
        order.append(number)

    def order_piece(self, nodes, piece, order, state, registers):
        place = {number: at for at, number in enumerate(piece)}
        followers = [[] for _ in piece]
        missing, ready_at = [0] * len(piece), [state[0]] * len(piece)
        for at, number in enumerate(piece):
            node = nodes[number]
            for source in node.sources:
                if source in place:
                    followers[place[source]].append(at)
                    missing[at] += 1
                elif source >= 0 and nodes[source].time > ready_at[at]:
                    ready_at[at] = nodes[source].time
            for source in node.after:
                followers[place[source]].append(at)
                missing[at] += 1
        length = [0.0] * len(piece)  # of the longest path to the end
        for at in range(len(piece) - 1, -1, -1):
            follow = followers[at]
            length[at] = nodes[piece[at]].assumed + (max([length[f] for f in follow]) if follow else 0.0)
        waiting = [(ready_at[at], at) for at in range(len(piece)) if not missing[at]]
        heapify(waiting)
        ready, held = [], []
        left = len(piece)
        while left:
            now = state[0]
            while waiting and waiting[0][0] <= now:
                at = heappop(waiting)[1]
                heappush(ready, (-length[at], at))
            if not ready:
                if waiting:
                    state[0] = waiting[0][0]
                    continue
                # All that are left need more registers. The one that comes first in the program needs the fewest.
                key = min(held, key=lambda entry: entry[1])
                held.remove(key)
                at = key[1]
            else:
                key = heappop(ready)
                at = key[1]
                node = nodes[piece[at]]
                if state[1] + node.words > registers and node.words and self.grows(nodes, node):
                    held.append(key)
                    continue
            number = piece[at]
            live = state[1]
            self.issue(nodes, number, now, order, state)
            left -= 1
            if held and state[1] < live:
                held.sort(reverse=True)
                heappush(ready, held.pop())
            node = nodes[number]
            for f in followers[at]:
                missing[f] -= 1
                after = nodes[piece[f]]
                time = node.time if number in after.sources else now
                if time > ready_at[f]:
                    ready_at[f] = time
                if not missing[f]:
                    heappush(waiting, (ready_at[f], f))

    @staticmethod
    def grows(nodes, node):
        """Whether more registers are live after a node than before it."""
        freed = sum(nodes[s].words for s in node.sources if s >= 0 and nodes[s].readers == 1 and not nodes[s].results)
        return node.words > freed

    # ---- Rows

    def write(self, nodes, order, tail):
        place, base = [0] * len(nodes), len(self.entries)
        last = order[-1:] if order and nodes[order[-1]].cost.pipe == BRANCH else []  # a branch stays last
        for number in order[: len(order) - len(last)]:
            self.entry(nodes[number], place, base)
            place[number] = len(self.entries) - 1 - base
            for other in nodes[number].joined:
                self.entry(nodes[other], place, base)
        if last and any(last[0] in node.sources for node in tail):
            self.entry(nodes[last[0]], place, base)
            place[last[0]], last = len(self.entries) - 1 - base, []
        for node in tail:
            self.entry(node, place, base)
        if last:
            self.entry(nodes[last[0]], place, base)

    def entry(self, node, place, base):
        sources = [place[source] if source >= 0 else source for source in node.sources]
        while len(sources) > 6:
            self.entries.append((-1, NONE, FREE, 0, 0.0, 0.0, tuple(sources[:6]), -1, -1, -1, -1, node.statement, 1, 0))
            sources = [*sources[6:], len(self.entries) - 1 - base]
        cost = node.cost
        self.entries.append((
            node.row, cost.pipe, cost.kind, cost.issues, cost.latency, cost.busy,
            tuple(sources + [-1] * (6 - len(sources))), *node.results, *[-1] * (4 - len(node.results)), node.statement,
            1 + len(node.joined), node.evict_first,
        ))  # fmt: skip


def _table(entries):
    return np.array(entries, ENTRY) if entries else np.zeros(0, ENTRY)


def registers_of_a_thread(needs) -> int:
    """Return the most registers per thread with which the kernel's directives can be satisfied."""
    most = min([MOST_REGISTERS, *needs.get("maxnreg", ())])
    threads = math.prod(needs.get("reqntid") or needs.get("maxntid") or (0,))
    if threads:
        blocks = max(1, *needs.get("minnctapersm", (1,)), 1)
        most = min(most, max(16, REGISTERS_PER_SM // (threads * blocks) // 8 * 8))
    return most
