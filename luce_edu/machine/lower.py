"""Turn PTX instructions into instructions of the core, on numbered registers.

The table describes most families of instructions. Those that it marks with a name (`@load`) are lowered by the method
of that name here. The operands of the core's control instructions are in assemble.py; the others are in csrc/machine.
"""

import struct
from functools import cache

from luce_edu.errors import CompileError
from luce_edu.machine import table
from luce_edu.machine.ptx import Address, Imm, Label, Not, Pair, Reg, Special, Symbol, Vector
from luce_edu.machine.slots import DOUBLE, PREDICATE, WORD, Block, Op
from luce_edu.machine.table import BITS

# The fields of an instruction and of the slots after it, as places in a row of six numbers per slot.
FIELDS = {"op": 0, "d": 1, "a": 2, "b": 3, "c": 4, "imm": 5}

# Access flags of csrc/machine/machine.h.
RELAXED, ACQUIRE, RELEASE, SEQ_CST, CTA, SYSTEM, CLUSTER, NON_COHERENT, VOLATILE = (1 << n for n in range(9))
ORDERS = {
    "relaxed": RELAXED, "acquire": ACQUIRE, "release": RELEASE, "acq_rel": ACQUIRE | RELEASE, "sc": SEQ_CST,
    "volatile": RELAXED | VOLATILE | SYSTEM, "mmio": RELAXED | SYSTEM,
}  # fmt: skip
SCOPES = {"cta": CTA, "cluster": CLUSTER, "gpu": 0, "gl": 0, "sys": SYSTEM}
SPACES = {
    "global": "global", "shared": "shared", "shared::cta": "shared", "shared::cluster": "shared", "local": "local",
    "const": "const", "param": "param", "param::entry": "param", "param::func": "param",
}  # fmt: skip
HINTS = {
    "weak", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "unified", "L1::evict_normal", "L1::evict_unchanged",
    "L1::evict_first", "L1::evict_last", "L1::no_allocate", "L2::evict_normal", "L2::evict_first", "L2::evict_last",
    "L2::64B", "L2::128B", "L2::256B", "L2::cache_hint",
}  # fmt: skip

# Special registers whose slot is filled when a warp starts, in the order of enum Special in machine.h.
SPECIALS = {
    name: number
    for number, name in enumerate(
        """tid.x tid.y tid.z ntid.x ntid.y ntid.z ctaid.x ctaid.y ctaid.z nctaid.x nctaid.y nctaid.z laneid warpid
        nwarpid smid nsmid gridid lanemask_eq lanemask_lt lanemask_le lanemask_gt lanemask_ge dynamic_smem_size
        total_smem_size clusterid.x clusterid.y clusterid.z nclusterid.x nclusterid.y nclusterid.z cluster_ctaid.x
        cluster_ctaid.y cluster_ctaid.z cluster_nctaid.x cluster_nctaid.y cluster_nctaid.z cluster_ctarank
        cluster_nctarank is_explicit_cluster""".split()
    )
}
CLOCKS = {
    "clock": WORD,
    "clock_hi": WORD,
    "clock64": DOUBLE,
    "globaltimer": DOUBLE,
    "globaltimer_lo": WORD,
    "globaltimer_hi": WORD,
}


def _fits(held, kind):
    """Whether a register declared as `held` can be an operand of type `kind`: same size and kind, or untyped bits."""
    plain = [name for name in (held, kind) if name[0] == "b" and name[1].isdigit()]
    integers = [name for name in (held, kind) if name[0] in "us" and name[1:].isdigit()]
    return BITS[held] == BITS[kind] and (held == kind or bool(plain) or len(integers) == 2)


ACCEPTS = {kind: frozenset(held for held in BITS if _fits(held, kind)) for kind in BITS}

# The attributes of a Lowering that belong to the present function.
OF_A_FUNCTION = (
    "ins",
    "statement",
    "function",
    "reg",
    "guarded",
    "local",
    "pieces",
    "active",
    "labels",
    "blocks",
    "return_slot",
    "block",
)

# For registers of 16 bits, whose upper half is zero, these give the same result with 32 bits.
AS_WORDS = {f"{name}.b16": f"{name}.b32" for name in ("and", "or", "xor", "mov", "selp", "setp.eq", "setp.ne")}


@cache
def shape(defs, uses):
    """Return the places of an op's results and sources from field names such as "d a1" (a1: field a of the next slot).
    """

    def places(names):
        return tuple(
            FIELDS[name.rstrip("123")] + 6 * int("0" + name[len(name.rstrip("123")) :]) for name in names.split()
        )

    return places(defs), places(uses)


def wide(kind):
    """Return the type that is twice as wide."""
    return f"{kind[0]}{2 * BITS[kind]}"


def words_of(kind):
    """Return the class of a register of this type."""
    bits = BITS[kind]
    return PREDICATE if bits == 1 else WORD if bits <= 32 else DOUBLE


DYNAMIC = "dynamic shared memory"  # the symbol whose address is the size of static shared memory
# The symbol of the memory that a driver gives to a cooperative launch, where cooperative groups keep their barrier.
GRID_WORKSPACE = "the grid's workspace"


class Lowering:
    """The functions of one program: registers are numbers, and a function is a list of Blocks.

    classes, kinds, names   of each register: its class, its declared type (None: only the class matters), its PTX name
    constants, specials     register -> value; register -> number of the special register
    pinned                  registers that keep their place during the whole program
    instructions            the PTX instructions that were lowered, with the names of their functions
    """

    def __init__(self, module, core):
        self.module, self.core = module, core
        self.classes, self.kinds, self.names = [], [], []
        self.constants, self.specials, self.pinned = {}, {}, set()
        self._constants, self._specials = {}, {}
        self.instructions = []
        self.functions = {}  # name -> (blocks, registers by name, return slot), callees first
        self.callers = {}  # name -> names
        self.formals = {}  # (function, parameter, offset, bytes) -> register
        self.shared, self.shared_bytes, self.extern_align = {}, 0, 0
        self.local_bytes = 0
        self.parameters = {}  # of the kernel: name -> offset
        self.recipes = {}
        self.active = []

    # ---- Registers

    def new(self, cls, kind=None, name=None):
        """Make a register of this class; return its number."""
        self.classes.append(cls)
        self.kinds.append(kind)
        self.names.append(name)
        return len(self.classes) - 1

    def constant(self, value, cls):
        """Return the register that always holds this value, given by its bits as an int."""
        value &= (1, 0xFFFFFFFF, (1 << 64) - 1)[cls]
        register = self._constants.get((value, cls))
        if register is None:
            register = self._constants[value, cls] = self.new(cls)
            self.constants[register] = value
            self.pinned.add(register)
        return register

    def special(self, name):
        """Return the register that holds a special register of PTX."""
        register = self._specials.get(name)
        if register is None:
            register = self._specials[name] = self.new(WORD)
            self.specials[register] = SPECIALS[name]
            self.pinned.add(register)
        return register

    def register(self, reg):
        """Return the number of a PTX register."""
        found = self.reg.get(reg.name)
        if found is None:
            kind = self.function.registers[reg.name]
            if BITS.get(kind, 128) > 64:
                self.refuse(f"{reg.name} is a register of type .{kind}, which the virtual GPU does not have")
            found = self.reg[reg.name] = self.new(words_of(kind), kind, reg.name)
        return found

    # ---- Errors

    def refuse(self, why):
        """Raise CompileError with the instruction that is being lowered."""
        raise CompileError(f"{self.place()}: {why}")

    def place(self):
        """Name the instruction that is being lowered, with its lines in PTX and source."""
        ins = self.ins
        if ins is None:
            return f"kernel {self.function.name}"
        text = ".".join((ins.opcode, *ins.modifiers))
        source = f", {ins.loc.file}:{ins.loc.line}" if ins.loc else ""
        return f"{self.function.name}: {text} (line {ins.line} of the PTX{source})"

    # ---- Operands

    def source(self, operand, kind):
        """Return the register of a source operand of this type."""
        what = type(operand)
        if what is Reg:
            register = self.reg.get(operand.name)
            if register is None:
                register = self.register(operand)
            if self.kinds[register] not in ACCEPTS[kind]:
                self.refuse(f"{operand.name} is .{self.kinds[register]}; an operand of type .{kind} is needed")
            return register
        if what is Imm:
            return self.constant(self.bits(operand, kind), words_of(kind))
        if what is Special:
            return self.read_special(operand, kind)
        if what is Not and kind == "pred":
            return self.negated(self.source(operand.reg, kind))
        if what is Symbol and kind in ("u32", "s32", "b32", "u64", "s64", "b64"):
            return self.address_of(operand, words_of(kind))
        self.refuse(f"{self.text(operand)} cannot be an operand of type .{kind}")

    def result(self, operand, kind):
        """Return the register of a result of this type."""
        if type(operand) is Reg:
            register = self.register(operand)
            if self.kinds[register] not in ACCEPTS[kind]:
                self.refuse(f"{operand.name} is .{self.kinds[register]}; a result of type .{kind} is needed")
            return register
        if type(operand) is Symbol and operand.name == "_":
            return self.new(words_of(kind), kind)
        self.refuse(f"{self.text(operand)} cannot hold a result of type .{kind}")

    def bits(self, imm, kind):
        """Return the bits of a constant as a value of this type."""
        if kind == "pred":
            return int(imm.value != 0)
        if imm.kind == "int":
            if kind[0] == "f" or kind[:2] == "bf":
                self.refuse(f"{imm.value} is an integer; a constant of type .{kind} is needed, such as 0f3F800000")
            return imm.bits & ((1 << BITS[kind]) - 1)
        if kind[0] in "us" or BITS[kind] < 32:
            self.refuse(f"{imm.value} is not an integer; expected a constant of type .{kind}")
        if BITS[kind] == 64:
            return imm.bits if imm.kind == "f64" else struct.unpack("<Q", struct.pack("<d", imm.value))[0]
        return imm.bits if imm.kind == "f32" else struct.unpack("<I", struct.pack("<f", imm.value))[0]

    def read_special(self, operand, kind):
        """Return the register of a special register, resized to this type."""
        name = operand.name[1:]
        if name in SPECIALS:
            register = self.special(name)
            if words_of(kind) == PREDICATE:
                result = self.new(PREDICATE)
                self.emit("setp.ne.b32", (result,), (register, self.constant(0, WORD)), shape("d", "a b"))
                return result
            if words_of(kind) == WORD:
                return register
            result = self.new(DOUBLE)
            self.emit("cvt.u64.u32", (result,), (register,), shape("d", "a"))
            return result
        if name in CLOCKS:
            result = self.new(CLOCKS[name])
            self.emit(name, (result,), (), shape("d", ""), keep=True)
            return self.resized(result, CLOCKS[name], words_of(kind))
        if name in ("envreg1", "envreg2"):  # the upper and the lower half of the workspace's address
            address = self.new(DOUBLE)
            self.emit("mov.b64.i", (address,), (), shape("d", "")).symbol = GRID_WORKSPACE
            if name == "envreg1":
                upper = self.new(DOUBLE)
                self.emit("shr.u64", (upper,), (address, self.constant(32, WORD)), shape("d", "a b"))
                address = upper
            half = self.resized(address, DOUBLE, WORD)
            return self.resized(half, WORD, words_of(kind))
        if name in ("aggr_smem_size",):
            return self.read_special(Special("%total_smem_size"), kind)
        if name in ("reserved_smem_offset_begin", "reserved_smem_offset_end", "current_graph_exec"):
            return self.constant(0, words_of(kind))
        self.refuse(f"the virtual GPU has no special register {operand.name}")

    def resized(self, register, cls, wanted):
        """Return a register of the wanted class with the same low bits."""
        if cls == wanted:
            return register
        result = self.new(wanted)
        self.emit("cvt.u64.u32" if wanted == DOUBLE else "cvt.u32.u64", (result,), (register,), shape("d", "a"))
        return result

    def negated(self, predicate):
        """Return a new predicate that is the negation of this one."""
        result = self.new(PREDICATE)
        self.emit("not.pred", (result,), (predicate,), shape("d", "a"))
        return result

    def text(self, operand):
        """Name an operand for a message."""
        return getattr(operand, "name", None) or str(operand)

    def variable(self, name):
        """Find a variable of the function or module by name."""
        found = self.function.variables.get(name) or self.module.variables.get(name)
        if found is None:
            for parameter in self.function.params:
                if parameter.name == name:
                    return parameter
            self.refuse(f"{name} is not a variable")
        return found

    def offset_of(self, variable):
        """Return the offset of a shared, local or parameter variable in its space."""
        if variable.space == "shared":
            if variable.extern or variable.size == 0:
                self.extern_align = max(self.extern_align, variable.align)
                return None
            return self.allot(self.shared, variable, "shared_bytes")
        if variable.space == "local":
            return self.allot(self.local, variable, "local_bytes")
        if variable.space == "param" and self.function.entry:
            return self.parameters[variable.name]
        self.refuse(f"the address of {variable.name} cannot be taken: parameters of calls are kept in registers here")

    def allot(self, places, variable, total):
        """Return a variable's offset; if it has none yet, put it after the others, aligned."""
        place = places.get(variable.name)
        if place is None:
            place = -(-getattr(self, total) // variable.align) * variable.align
            places[variable.name] = place
            setattr(self, total, place + variable.size)
        return place

    def address_of(self, symbol, cls):
        """Return the register that holds a variable's address in its space."""
        variable = self.variable(symbol.name)
        if variable.space in ("global", "const"):
            if cls != DOUBLE:
                self.refuse(f"the address of {symbol.name} needs 64 bits")
            result = self.new(DOUBLE)
            op = self.emit("mov.b64.i", (result,), (), shape("d", ""), imm=symbol.offset)
            op.symbol = symbol.name
            return result
        place = self.offset_of(variable)
        if place is None:
            return self.dynamic(symbol.offset, cls)
        return self.constant(place + symbol.offset, cls)

    def dynamic(self, offset, cls):
        """Return the address of dynamic shared memory, after the static, whose size is known only at the end."""
        result = self.new(cls)
        op = self.emit("mov.b64.i" if cls == DOUBLE else "mov.b32.i", (result,), (), shape("d", ""), imm=offset)
        op.symbol = DYNAMIC
        return result

    # ---- Emitting

    def emit(self, name, defs, uses, shape, imm=0, raw=(), keep=False):
        """Append an instruction of the core to the block."""
        name = AS_WORDS.get(name, name)
        if self.core(name) is None:
            self.refuse(f"the virtual GPU's core has no instruction {name}")
        partial = self.guarded and any(self.names[d] is not None for d in defs)
        op = Op(name, defs, uses, shape, imm, raw, self.statement, partial, keep)
        self.block.ops.append(op)
        return op

    def move(self, result, source):
        """Emit a move between registers of one class."""
        self.emit(("mov.pred", "mov.b32", "mov.b64")[self.classes[result]], (result,), (source,), shape("d", "a"))

    def has(self, name):
        """Whether the core has an instruction of this name."""
        return self.core(name) is not None

    # ---- Functions and blocks

    def lower(self, function):
        """Lower a function and, before it, those that it calls."""
        outer = {name: self.__dict__.get(name) for name in OF_A_FUNCTION} if self.active else {}
        self.ins = None
        self.function, self.reg, self.guarded = function, {}, False
        self.local, self.pieces = {}, {}
        self.active = [*self.active, function.name]
        self.labels, self.blocks = {}, []
        self.return_slot = None if function.entry else self.new(WORD)
        if function.entry:
            size = 0
            for parameter in function.params:
                size = -(-size // parameter.align) * parameter.align
                self.parameters[parameter.name] = size
                size += parameter.size
        else:
            self.pinned.add(self.return_slot)
            for parameter in (*function.params, *function.returns):
                if parameter.space == "reg":
                    register = self.register(Reg(parameter.name))
                    self.pinned.add(register)
                    self.formals.setdefault(function.name, {})[parameter.name, 0, parameter.size] = register
        self.block = None
        self.start()
        for item in function.body:
            if type(item) is Label:
                if self.block.ops or self.block.count or self.block.label:
                    self.start()
                self.block.label = item.name
                self.labels[item.name] = self.block
            else:
                self.instruction(item)
        self.ins, self.statement = None, -1
        if self.block.fall is None:
            self.emit("exit" if function.entry else "ret", (), () if function.entry else (self.return_slot,),
                      shape("", "") if function.entry else shape("", "a"), keep=True)  # fmt: skip
            self.block.fall = False
        for block in self.blocks:
            block.targets = [self.labels[name] if isinstance(name, str) else name for name in block.targets]
            block.fall = block.fall or None
        self.functions[function.name] = (self.blocks, self.reg, self.return_slot)
        self.__dict__.update(outer)

    def start(self):
        """Begin a block. The block before falls through to it, unless it has ended in another way (fall is False)."""
        block = Block(None, len(self.instructions))
        if self.block is not None and self.block.fall is None:
            self.block.fall = block
        self.blocks.append(block)
        self.block = block

    def branch_to(self, target, predicate=None, negated=False):
        """End the block with a branch to a label or Block."""
        if predicate is None:
            op = self.emit("bra", (), (), shape("", ""), keep=True)
            self.block.fall = False
        else:
            op = self.emit("bra.np" if negated else "bra.p", (), (predicate,), shape("", "a"), keep=True)
        op.targets = [target]
        self.block.targets.append(target)

    def instruction(self, ins):
        """Lower one PTX instruction, with its predicate."""
        if self.block.fall is False or self.block.targets:
            self.start()
        self.ins = ins
        self.statement = len(self.instructions)
        self.instructions.append((self.function.name, ins))
        self.block.count += 1
        key = (ins.opcode, ins.modifiers)
        recipe = self.recipes.get(key)
        if recipe is None:
            recipe = self.recipes[key] = self.find(ins)
        lower, line, quiet = recipe
        if ins.predicate is None:
            lower(ins, line)
            return
        predicate = self.source(Reg(ins.predicate), "pred")
        if ins.opcode == "bra":
            (label,) = self.only(ins, 1)
            self.branch_to(label.name, predicate, ins.negated)
        elif quiet:
            self.emit("if.np" if ins.negated else "if.p", (), (predicate,), shape("", "a"), keep=True)
            self.guarded = True
            lower(ins, line)
            self.guarded = False
            self.emit("end.if", (), (), shape("", ""), keep=True)
        else:  # an instruction that may wait or exit gets a block of its own, around which the other lanes branch
            before = self.block
            op = self.emit("bra.p" if ins.negated else "bra.np", (), (predicate,), shape("", "a"), keep=True)
            before.targets.append(None)
            self.start()
            lower(ins, line)
            self.start()
            before.targets[-1] = self.block
            op.targets = [self.block]

    def only(self, ins, count):
        """Return the operands; refuse another number of them."""
        if len(ins.operands) != count:
            self.refuse(f"it has {len(ins.operands)} operands; {count} are needed")
        return ins.operands

    def find(self, ins):
        """Return the method that lowers this opcode and modifiers, the types, and whether a mask can guard it."""
        opcode, text = ins.opcode, "".join(f".{word}" for word in ins.modifiers)
        lines = table.lines().get(opcode)
        if lines is None:
            if opcode in table.UNSUPPORTED:
                self.refuse(f"the virtual GPU does not have {table.UNSUPPORTED[opcode]}")
            self.refuse("unknown instruction")
        fitting = [(line, types) for line in lines if (types := line.fits(text)) is not None]
        if not fitting:
            known = ", ".join(line.pattern for line in lines)
            self.refuse(f"unknown modifiers; the virtual GPU knows {known}")
        # A form of an older architecture may also match the line of a wider family that came later.
        line, types = min(fitting, key=lambda found: int("0" + found[0].needs.rstrip("a")))
        self.require(line.needs)
        if line.method:
            ordered = {"relaxed", "acquire", "release", "volatile", "mmio"} & set(ins.modifiers)
            return getattr(self, "_" + line.method), (line, types), line.method in QUIET and not ordered
        return self._simple(line, opcode, ins.modifiers, types), None, True

    def require(self, needs):
        """Raise CompileError if the module's .target is older than `needs`."""
        if not needs:
            return
        target = next((word for word in self.module.target if word.startswith("sm_")), "sm_0")
        has = target[3:].rstrip("af")
        if int(has) < int(needs.rstrip("a")) or (needs.endswith("a") and target[-1] not in "af"):
            self.refuse(f"it needs .target sm_{needs} or later; this PTX is for {target}")

    def _simple(self, line, opcode, modifiers, types):
        """Make the lowering of an instruction that the table describes completely."""
        name = table.core_name(line, opcode, modifiers, types)
        kinds = []
        for word in line.operands:
            kind = word[1:]
            kinds.append(wide(types["T"]) if kind == "W" else types.get(kind) or kind)
        count, result, sources = len(kinds), line.operands[0][0] == "d", kinds[1:]
        fields = shape("d" if result else "", ("", "a", "a b", "a b c", "a b c a1")[count - 1])

        def lower(ins, _):
            operands = ins.operands
            if len(operands) != count:
                self.refuse(f"it has {len(operands)} operands; {count} are needed")
            uses = tuple([self.source(operand, kind) for operand, kind in zip(operands[1:], sources, strict=True)])
            self.emit(name, (self.result(operands[0], kinds[0]),), uses, fields)

        return lower

    # ---- Arithmetic whose operands are not in the table

    def _plain(self, ins, _):
        self.only(ins, 0)
        self.emit(".".join((ins.opcode, *ins.modifiers)), (), (), shape("", ""), keep=True)

    def _nothing(self, ins, _):
        pass

    def _refuse(self, ins, _):
        self.refuse("the virtual GPU does not have it")

    def _mad(self, ins, line):
        self._simple(line[0], "fma", ins.modifiers, line[1])(ins, None)

    def _shr(self, ins, line):
        kind = "u" + line[1]["T"][1:]
        d, a, b = self.only(ins, 3)
        self.emit(
            f"shr.{kind}",
            (self.result(d, line[1]["T"]),),
            (self.source(a, line[1]["T"]), self.source(b, "b32")),
            shape("d", "a b"),
        )

    def _slct(self, ins, line):
        kind, test = line[1]["U"], line[1]["T"]
        d, a, b, c = self.only(ins, 4)
        name = ".".join(["slct", *(["ftz"] if "ftz" in ins.modifiers else []), f"b{max(BITS[kind], 32)}", test])
        uses = (self.source(a, kind), self.source(b, kind), self.source(c, test))
        self.emit(name, (self.result(d, kind),), uses, shape("d", "a b c"))

    def _lop3(self, ins, line):
        if "or" in ins.modifiers or "and" in ins.modifiers:
            pair, a, b, c, lut, q = self.only(ins, 6)
            if type(pair) is not Pair:
                self.refuse("its result is d|p")
            d, p = self.result(pair.first, "b32"), self.result(pair.second, "pred")
        else:
            d, a, b, c, lut = self.only(ins, 5)
            d, p = self.result(d, "b32"), None
        if type(lut) is not Imm or not 0 <= lut.bits < 256:
            self.refuse("its table must be a constant from 0 to 255")
        uses = tuple(self.source(x, "b32") for x in (a, b, c))
        self.emit("lop3.b32", (d,), uses, shape("d", "a b c"), imm=lut.bits)
        if p is not None:
            test = self.new(PREDICATE)
            self.emit("setp.ne.b32", (test,), (d, self.constant(0, WORD)), shape("d", "a b"))
            self.emit(f"{ins.modifiers[0]}.pred", (p,), (test, self.source(q, "pred")), shape("d", "a b"))

    def _carry(self, ins, line):
        kind, opcode = line[1]["T"], ins.opcode
        carry = self.reg.get("carry flag")
        if carry is None:
            carry = self.reg["carry flag"] = self.new(PREDICATE, None, "carry flag")
            self.pinned.add(carry)
        exact = "hi" in ins.modifiers
        name = ".".join([opcode, *ins.modifiers[:-1], kind if exact else f"b{BITS[kind]}"])
        operands = self.only(ins, 4 if opcode[0] == "m" else 3)
        uses = [self.source(operand, kind) for operand in operands[1:]]
        # The carry flag is read, written or both. It keeps its place all the time, so its liveness does not matter.
        fields = shape("d", "a b imm" if len(uses) == 2 else "a b c imm")
        self.emit(name, (self.result(operands[0], kind),), (*uses, carry), fields, keep=True)

    def _setp(self, ins, line):
        words, kind = list(ins.modifiers), line[1]["T"]
        combine = words.pop(1) if words[1] in ("and", "or", "xor") else None
        results, a, b = self.only(ins, 4 if combine else 3)[:3]
        first, second = (results.first, results.second) if type(results) is Pair else (results, None)
        a, b = self.source(a, kind), self.source(b, kind)
        if kind in ("f16x2", "bf16x2"):
            low, high = self.new(PREDICATE), self.new(PREDICATE)
            self.emit(".".join(["setp", *words]), (low, high), (a, b), shape("d c", "a b"))
            tests = (low, high)
        else:
            tests = (self.compare(words, kind, a, b, None if combine or second else self.result(first, "pred")),)
            if not combine and second is None:
                return
        other = self.source(ins.operands[3], "pred") if combine else None
        if second is not None and other is not None:  # because the first result may overwrite the combined register
            copy = self.new(PREDICATE)
            self.move(copy, other)
            other = copy
        for index, result in enumerate((first, second)):
            if result is None or type(result) is Symbol:
                continue
            test = tests[index] if len(tests) > 1 else tests[0] if index == 0 else self.negated(tests[0])
            if combine:
                self.emit(f"{combine}.pred", (self.result(result, "pred"),), (test, other), shape("d", "a b"))
            else:
                self.move(self.result(result, "pred"), test)

    def compare(self, words, kind, a, b, result=None):
        """Emit the comparison that `words` names; return its predicate."""
        comparison = words[0]
        if kind[0] in "usb" and kind[:2] != "bf":
            unsigned = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
            if comparison in unsigned:
                comparison, kind = unsigned[comparison], f"u{BITS[kind]}"
            if comparison in ("eq", "ne"):
                kind = f"b{BITS[kind]}"
            elif kind[0] == "b" or comparison not in ("lt", "le", "gt", "ge"):
                self.refuse(f".{comparison} does not compare values of type .{kind}")
        result = self.new(PREDICATE) if result is None else result
        self.emit(".".join(["setp", comparison, *words[1:-1], kind]), (result,), (a, b), shape("d", "a b"))
        return result

    def _set(self, ins, line):
        words, to, kind = list(ins.modifiers), line[1]["U"], line[1]["T"]
        combine = words.pop(1) if words[1] in ("and", "or", "xor") else None
        d, a, b = self.only(ins, 4 if combine else 3)[:3]
        words.pop(-2)
        test = self.compare(words, kind, self.source(a, kind), self.source(b, kind))
        if combine:
            both = self.new(PREDICATE)
            self.emit(f"{combine}.pred", (both,), (test, self.source(ins.operands[3], "pred")), shape("d", "a b"))
            test = both
        yes = self.constant(0x3F800000 if to == "f32" else 0xFFFFFFFF, WORD)
        self.emit("selp.b32", (self.result(d, to),), (yes, self.constant(0, WORD), test), shape("d", "a b c"))

    def _mov(self, ins, line):
        kind = line[1]["T"]
        d, a = self.only(ins, 2)
        if type(d) is Vector:
            self.unpack(d.items, self.source(a, kind), kind)
        elif type(a) is Vector:
            self.pack(self.result(d, kind), a.items, kind)
        elif type(a) is Special and a.name[1:] in CLOCKS and CLOCKS[a.name[1:]] == words_of(kind):
            self.emit(a.name[1:], (self.result(d, kind),), (), shape("d", ""), keep=True)
        else:
            self.move(self.result(d, kind), self.source(a, kind))

    def part_kind(self, kind, count):
        """Return the type of each of `count` parts of a value; refuse sizes that the core cannot pack."""
        bits = BITS[kind] // count
        if bits not in (16, 32) or count not in (2, 4):
            self.refuse(f"{count} parts of .{kind} are not supported; two or four of 16 or 32 bits are")
        return f"b{bits}"

    def pack(self, result, items, kind):
        """Emit the packing of parts into one register."""
        part = self.part_kind(kind, len(items))
        uses = tuple(self.source(item, part) for item in items)
        name = "pack.b32" if kind[1:] == "32" else f"pack.b64.v{len(items)}"
        self.emit(name, (result,), uses, shape("d", ("a b", "a b c a1")[len(items) > 2]))

    def unpack(self, items, source, kind):
        """Emit the unpacking of a register into parts, of which some may be dropped."""
        part = self.part_kind(kind, len(items))
        name = "unpack.b32" if kind[1:] == "32" else f"unpack.b64.v{len(items)}"
        wanted = [
            (self.result(item, part), field)
            for item, field in zip(items, ("d", "b") if len(items) == 2 else ("d", "b", "c", "d1"), strict=True)
            if not (type(item) is Symbol and item.name == "_")
        ]
        if part == "b16" and BITS[kind] == 32 and len(wanted) == 1 and not self.guarded:
            (result, field), other = wanted[0], 16
            if field == "b":
                self.emit("shr.u32", (result,), (source, self.constant(other, WORD)), shape("d", "a b"))
            else:
                self.emit("and.b32", (result,), (source, self.constant(0xFFFF, WORD)), shape("d", "a b"))
            return
        op = self.emit(name, tuple(r for r, _ in wanted), (source,), shape(" ".join(f for _, f in wanted), "a"))
        if len(items) == 4:
            op.raw = ((6 + FIELDS["imm"], 0),)  # the core expects the next slot even if it holds no operand

    def _cvt(self, ins, line):
        words = ins.modifiers
        to, kind = words[-2:]
        d, a = self.only(ins, 2)
        numbers = "usb"
        if type(d) is Symbol and d.name == "_":
            return
        result = self.register(d) if type(d) is Reg else self.refuse(f"{self.text(d)} cannot hold a result")
        held = self.kinds[result]
        if held == "pred" or BITS[held] < BITS[to] or (BITS[held] > max(BITS[to], 16) and to[0] not in numbers):
            self.refuse(f"{d.name} is .{held}, which cannot hold a .{to}")
        source = self.narrow(a, kind)
        plain = len(words) == 2
        integers = to[0] in "us" and kind[0] in "us"
        if plain and BITS[held] == BITS[to] and (
            to == kind or integers and (BITS[to] == BITS[kind] or (to[1:], kind) == ("32", "u16"))
        ):  # fmt: skip
            self.move(result, source)  # the upper half of a 16-bit register is zero
            return
        name = "cvt." + ".".join(words)
        direct = BITS[held] == BITS[to] or (BITS[to] == 8 and BITS[held] == 16)
        target = result if direct else self.new(words_of(to))
        self.emit(name, (target,), (source,), shape("d", "a"))
        if not direct:
            narrow = f"{to[0]}{max(BITS[to], 16)}"
            self.emit(f"cvt.{to[0]}{BITS[held]}.{narrow}", (result,), (target,), shape("d", "a"))

    def narrow(self, operand, kind):
        """Return the low bits of a source of a conversion or store, whose register may be wider than the type."""
        if type(operand) is not Reg:
            return self.source(operand, f"u{max(BITS[kind], 16)}" if BITS[kind] == 8 else kind)
        register = self.register(operand)
        held, bits = self.kinds[register], BITS[kind]
        if held == "pred" or BITS[held] < bits:
            self.refuse(f"{operand.name} is .{held}; a source of type .{kind} is needed")
        if BITS[held] == bits or BITS[held] <= 32 and bits == 8:
            if BITS[held] == bits and held not in ACCEPTS[kind] and kind != "tf32":
                self.refuse(f"{operand.name} is .{held}; a source of type .{kind} is needed")
            return register
        result = self.new(WORD)
        self.emit(f"cvt.u{max(bits, 16)}.u{BITS[held]}", (result,), (register,), shape("d", "a"))
        return result

    def _cvt2(self, ins, line):
        to = ins.modifiers[-2]
        d, a, b = self.only(ins, 3)
        uses = (self.source(a, "f32"), self.source(b, "f32"))
        held = "b16" if BITS[to] == 16 else "b32"
        self.emit("cvt." + ".".join(ins.modifiers), (self.result(d, held),), uses, shape("d", "a b"))

    def _cvta(self, ins, line):
        words = list(ins.modifiers)
        space = SPACES[words[-2]]
        d, a = self.only(ins, 2)
        result = self.result(d, "u64")
        source = self.address_of(a, DOUBLE) if type(a) is Symbol else self.source(a, "u64")
        if space in ("global", "const"):
            self.move(result, source)  # a generic address of global memory is its address
        else:
            name = ".".join(["cvta", *(["to"] if words[0] == "to" else []), space, "b64"])
            self.emit(name, (result,), (source,), shape("d", "a"))

    def _isspacep(self, ins, line):
        d, a = self.only(ins, 2)
        space = ins.modifiers[0]
        space = "param" if space == "param::entry" else space
        self.emit(f"isspacep.{space}", (self.result(d, "pred"),), (self.source(a, "b64"),), shape("d", "a"))

    def _mapa(self, ins, line):
        kind = line[1]["T"]
        name = f"{ins.opcode}.b{BITS[kind]}"
        if ins.opcode == "mapa":
            d, a, b = self.only(ins, 3)
            uses, fields = (self.source(a, kind), self.source(b, "b32")), shape("d", "a b")
            self.emit(name, (self.result(d, kind),), uses, fields)
        else:
            d, a = self.only(ins, 2)
            self.emit(name, (self.result(d, "b32"),), (self.source(a, kind),), shape("d", "a"))

    # ---- Memory

    def address(self, operand, space):
        """Return (space, registers, offset, symbol) of an address; there is no register if it is a constant."""
        if type(operand) is not Address or operand.rest:
            self.refuse(f"{self.text(operand)} is not an address such as [%rd1+8]")
        base, offset = operand.base, operand.offset
        if base is None:
            return space, (self.constant(offset, DOUBLE),), 0, None
        if type(base) is Symbol:
            variable = self.variable(base.name)
            if space == "gen":
                space = variable.space
            if variable.space != space and not (variable.space == "const" and space == "global"):
                self.refuse(f"{base.name} is in .{variable.space}, not in .{space}")
            offset += base.offset
            if variable.space in ("global", "const"):
                return space, (), offset, base.name
            place = self.offset_of(variable)
            if place is None:
                return space, (), offset, DYNAMIC
            return space, (self.constant(place, DOUBLE),), offset, None
        register = self.register(base)
        kind = self.kinds[register]
        if kind not in ("b64", "u64", "s64", "b32", "u32", "s32"):
            self.refuse(f"{base.name} is .{kind}, which is no address")
        if self.classes[register] == WORD and space in ("global", "gen", "const"):
            register = self.resized(register, WORD, DOUBLE)
        return space, (register,), offset, None

    def order(self, words):
        """Return (flags, whether it is a synchronising access) from the modifiers of a memory instruction."""
        flags = 0
        for word in words:
            flags |= ORDERS.get(word, 0) | SCOPES.get(word, 0)
        if "nc" in words:
            flags |= NON_COHERENT
        return flags, any(word in ORDERS for word in words)

    def access(self, ins):
        """Return (space, flags, synchronising, elements, type) from the modifiers of a load or store."""
        space, elements, kind = "gen", 1, ins.modifiers[-1]
        for word in ins.modifiers[:-1]:
            if word in SPACES:
                space = SPACES[word]
            elif word in ("v2", "v4"):
                elements = int(word[1])
            elif word not in HINTS and word not in ORDERS and word not in SCOPES:
                self.refuse(f"unknown modifier .{word}")
        if kind not in BITS or not 8 <= BITS[kind] <= 64 or "x" in kind or kind in ("f16", "bf16", "tf32"):
            self.refuse(f"it cannot move values of type .{kind}")
        flags, synchronising = self.order(ins.modifiers)
        if {"acquire", "release", "relaxed"} & set(ins.modifiers):
            self.require("90" if "cluster" in ins.modifiers else "70")
        if "nc" in ins.modifiers:
            self.require("32")
        return space, flags, synchronising, elements, kind

    def elements(self, operand, count):
        """Return the registers of a vector operand; refuse another number than `count`."""
        items = operand.items if type(operand) is Vector else (operand,)
        if len(items) != count:
            self.refuse(f"it moves {count} values; {len(items)} registers are given")
        return items

    def _load(self, ins, line):
        space, flags, synchronising, count, kind = self.access(ins)
        operands = (
            ins.operands[:2] if "L2::cache_hint" in ins.modifiers and len(ins.operands) == 3 else self.only(ins, 2)
        )
        items = self.elements(operands[0], count)
        if space == "param" and self.piece_load(items, operands[1], kind):
            return
        space, uses, offset, symbol = self.address(operands[1], space)
        bits, defs, fields, extend = BITS[kind], [], [], []
        for item, field in zip(items, ("d", "d1", "a1", "b1"), strict=False):
            if type(item) is Symbol and item.name == "_":
                continue
            result = self.register(item) if type(item) is Reg else self.refuse(f"{self.text(item)} is not a register")
            held = self.kinds[result]
            if held == "pred" or BITS[held] < bits or (kind[0] == "f" and held not in ACCEPTS[kind]):
                self.refuse(f"{item.name} is .{held}, which cannot hold a .{kind}")
            if kind[0] == "s" and bits < 32 and BITS[held] > bits:
                extend.append((f"cvt.s{BITS[held]}.{kind}", result, self.new(WORD)))
            elif BITS[held] == 64 and bits < 64:
                extend.append((f"cvt.{'s64.s32' if kind[0] == 's' else 'u64.u32'}", result, self.new(WORD)))
            else:
                defs.append(result)
                fields.append(field)
                continue
            defs.append(extend[-1][2])
            fields.append(field)
        self.memory(
            "ld", space, synchronising, bits, count, tuple(defs), " ".join(fields), uses, (), "", offset, symbol, flags
        )
        for name, result, loaded in extend:
            self.emit(name, (result,), (loaded,), shape("d", "a"))

    def _store(self, ins, line):
        space, flags, synchronising, count, kind = self.access(ins)
        operands = (
            ins.operands[:2] if "L2::cache_hint" in ins.modifiers and len(ins.operands) == 3 else self.only(ins, 2)
        )
        items = self.elements(operands[1], count)
        if space == "param":
            self.piece_store(operands[0], items, kind)
            return
        space, uses, offset, symbol = self.address(operands[0], space)
        values = tuple(self.stored(item, kind) for item in items)
        fields = " ".join(("d", "d1", "a1", "b1")[:count])
        self.memory("st", space, synchronising, BITS[kind], count, (), "", uses, values, fields, offset, symbol, flags)

    def stored(self, item, kind):
        """Return the register of a value to store. It may be wider, as only its low bits are read."""
        if type(item) is Reg:
            register = self.register(item)
            held = self.kinds[register]
            if held != "pred" and BITS[kind] <= BITS[held] <= 32 and kind[0] != "f":
                return register
            if kind[0] == "f" and held not in ACCEPTS[kind]:
                self.refuse(f"{item.name} is .{held}; a value of type .{kind} is needed")
        return self.narrow(item, kind)

    def memory(
        self, opcode, space, synchronising, bits, count, defs, results, uses, values, fields, offset, symbol, flags
    ):
        """Emit a memory instruction whose address is a register plus a constant offset, or constant."""
        if uses and uses[0] in self.constants:
            offset, uses = offset + self.constants[uses[0]], ()
        form = ".k" if not uses else ".a32" if self.classes[uses[0]] == WORD else ""
        name = f"{opcode}{'.sync' if synchronising else ''}.{space}{form}.b{bits}{f'.v{count}' if count > 1 else ''}"
        places = shape(results, ("a " if uses else "") + fields)
        raw = ((FIELDS["c"], None), (6 + FIELDS["c"], flags))
        op = self.emit(name, defs, (*uses, *values), places, offset, raw, keep=True)
        op.symbol = symbol

    # Parameters of calls are kept in registers, one for each (name, offset, bytes) that is stored.

    def piece(self, name, offset, size):
        """Return the register that holds part of a parameter of a call."""
        key = (name, offset, size)
        register = self.pieces.get(key)
        if register is None:
            for other, at, length in self.pieces:
                if other == name and at < offset + size and offset < at + length:
                    self.refuse(f"{name} is written and read in parts of different sizes, which is not supported")
            register = self.pieces[key] = self.new(DOUBLE if size == 8 else WORD, None, f"{name}+{offset}")
            formal = next((p for p in (*self.function.params, *self.function.returns) if p.name == name), None)
            if formal is not None:
                self.pinned.add(register)
                self.formals.setdefault(self.function.name, {})[key] = register
        return register

    def piece_base(self, operand):
        """Return (name, offset) of a parameter of a call or of this function; None for a kernel's parameter."""
        if type(operand) is not Address or type(operand.base) is not Symbol:
            return None
        name = operand.base.name
        if self.function.entry and name in self.parameters:
            return None
        return name, operand.base.offset + operand.offset

    def piece_load(self, items, operand, kind):
        """Load from a parameter of a call, if the operand is one; return whether it is."""
        base = self.piece_base(operand)
        if base is None:
            if not self.function.entry:
                self.refuse("the address of a parameter of a call cannot be computed")
            return False
        size = BITS[kind] // 8
        for index, item in enumerate(items):
            if type(item) is Symbol and item.name == "_":
                continue
            source = self.piece(base[0], base[1] + index * size, size)
            result = self.register(item) if type(item) is Reg else self.refuse(f"{self.text(item)} is not a register")
            held = self.kinds[result]
            if held == "pred" or BITS[held] < BITS[kind]:
                self.refuse(f"{item.name} is .{held}, which cannot hold a .{kind}")
            if BITS[held] == BITS[kind] or kind[0] != "s" and BITS[held] <= 32:
                self.move(result, source)
            else:
                sign = "s" if kind[0] == "s" else "u"
                self.emit(f"cvt.{sign}{BITS[held]}.{sign}{BITS[kind]}", (result,), (source,), shape("d", "a"))
        return True

    def piece_store(self, operand, items, kind):
        """Store into a parameter of a call."""
        base = self.piece_base(operand)
        if base is None:
            self.refuse("a kernel's parameters cannot be written")
        size = BITS[kind] // 8
        for index, item in enumerate(items):
            source = self.stored(item, kind)
            target = self.piece(base[0], base[1] + index * size, size)
            if size < 4 and not (type(item) is Reg and BITS[self.kinds[source]] == BITS[kind]):
                self.emit("and.b32", (target,), (source, self.constant((1 << BITS[kind]) - 1, WORD)), shape("d", "a b"))
            else:
                self.move(target, source)

    def _atomic(self, ins, line):
        space, operation, words = "gen", None, list(ins.modifiers)
        kind = words.pop() if words else ""
        for word in words:
            if word in SPACES and SPACES[word] in ("global", "shared"):
                space = SPACES[word]
            elif word in ("add", "min", "max", "inc", "dec", "exch", "cas", "and", "or", "xor"):
                operation = word
            elif word not in ("noftz", "L2::cache_hint") and word not in ORDERS and word not in SCOPES:
                self.refuse(f"unknown modifier .{word}")
        if kind not in BITS or operation is None:
            self.refuse(f"it has no known {'type' if operation else 'operation'}")
        has_result, operands = ins.opcode == "atom", list(ins.operands)
        if "L2::cache_hint" in words:
            operands.pop()
        needed = has_result + 2 + (operation == "cas")
        if len(operands) != needed:
            self.refuse(f"it has {len(operands)} operands; {needed} are needed")
        flags, _ = self.order(words)
        if flags & (ACQUIRE | RELEASE):
            self.require("70")
        flags |= RELAXED
        if operation in ("exch", "cas", "and", "or", "xor"):
            kind = f"b{BITS[kind]}"
        held = f"b{BITS[kind]}" if BITS[kind] == 16 else kind
        defs = ()
        if has_result:
            result = operands.pop(0)
            if not (type(result) is Symbol and result.name == "_"):
                defs = (self.result(result, held),)
        space, uses, offset, symbol = self.address(operands[0], space)
        if symbol:
            result = self.new(DOUBLE)
            self.emit("mov.b64.i", (result,), (), shape("d", ""), imm=0).symbol = symbol
            uses = (result,)
        form = ".a32" if self.classes[uses[0]] == WORD else ""
        values = tuple(self.source(value, held) for value in operands[1:])
        raw = ((FIELDS["c"], None), (6 + FIELDS["c"], flags))
        places = shape("d" if defs else "", "a b d1" if len(values) == 2 else "a b")
        self.emit(f"atom.{space}{form}.{operation}.{kind}", defs, (*uses, *values), places, offset, raw, keep=True)

    def _prefetch(self, ins, line):
        operand = ins.operands[0] if ins.operands else None
        space, uses, offset, symbol = self.address(
            operand, next((SPACES[w] for w in ins.modifiers if w in SPACES), "gen")
        )
        if uses and self.classes[uses[0]] == WORD:
            uses = (self.resized(uses[0], WORD, DOUBLE),)
        places = "a" if uses else ""
        if "bulk" in ins.modifiers:
            uses, places = (*uses, self.source(ins.operands[1], "b32")), f"{places} b"
        raw = ((FIELDS["c"], None), (6 + FIELDS["c"], 0))
        self.emit("prefetch", (), uses, shape("", places), offset, raw, keep=True).symbol = symbol

    def _policy(self, ins, line):
        self.emit("createpolicy", (self.result(ins.operands[0], "b64"),), (), shape("d", ""))

    def _fence(self, ins, line):
        flags, _ = self.order(ins.modifiers)
        if ins.opcode == "membar" or not flags & (SEQ_CST | ACQUIRE | RELEASE):
            flags |= SEQ_CST if ins.opcode == "membar" else ACQUIRE | RELEASE
        self.emit("fence", (), (), shape("", ""), imm=flags, keep=True)

    def _fence_proxy(self, ins, line):
        self.emit("fence.proxy", (), (), shape("", ""), keep=True)

    def shared_address(self, operand):
        """Return (registers, offset, 1 if the register has 32 bits, symbol) of a shared or generic address."""
        space, uses, offset, symbol = self.address(operand, "shared")
        if symbol:
            uses = (self.dynamic(0, DOUBLE),)
        return uses[0], offset, int(self.classes[uses[0]] == WORD)

    def _copy(self, ins, line):
        words, operands = ins.modifiers, list(ins.operands)
        if words[:1] != ("async",) and words[:2] != ("reduce", "async"):
            self.refuse("unknown modifiers")
        if "bulk" in words:
            self.require("90")
        if "commit_group" in words or "wait_all" in words:
            self.only(ins, 0)
            self.emit("cp." + ".".join(words), (), (), shape("", ""), keep=True)
        elif "wait_group" in words:
            (count,) = self.only(ins, 1)
            self.emit("cp." + ".".join(words), (), (), shape("", ""), imm=self.number(count), keep=True)
        elif "tensor" in words:
            self.refuse("the virtual GPU does not have tensor maps")
        elif "mbarrier" in words:
            register, offset, narrow = self.shared_address(operands[0])
            name = "cp.async.mbarrier.arrive" + (".noinc" if "noinc" in words else "")
            raw = ((FIELDS["c"], None), (6 + FIELDS["a"], narrow), (6 + FIELDS["c"], 0))
            self.emit(name, (), (register,), shape("", "a"), offset, raw, keep=True)
        elif "prefetch" in words:
            self._prefetch(ins, line)
        elif "bulk" in words:
            self.bulk(ins, operands)
        else:
            self.copy_small(ins, operands)

    def number(self, operand):
        """Return the value of an operand that must be a constant integer."""
        if type(operand) is not Imm or operand.kind != "int":
            self.refuse(f"{self.text(operand)} must be a constant")
        return operand.value

    def copy_small(self, ins, operands):
        """Lower cp.async, a copy of 4, 8 or 16 bytes per lane."""
        if "L2::cache_hint" in ins.modifiers:
            operands.pop()
        to, at, narrow = self.shared_address(operands[0])
        space, source, from_at, symbol = self.address(operands[1], "global")
        if symbol:
            loaded = self.new(DOUBLE)
            self.emit("mov.b64.i", (loaded,), (), shape("d", "")).symbol = symbol
            source = (loaded,)
        size = self.number(operands[2])
        if size not in (4, 8, 16) or ("cg" in ins.modifiers and size != 16):
            self.refuse(f"it cannot copy {size} bytes")
        uses, fields = [to, source[0]], "d a"
        if len(operands) > 3:
            extra = operands[3]
            if type(extra) is Not or type(extra) is Reg and self.kinds[self.register(extra)] == "pred":
                uses.append(self.source(extra, "pred"))
                fields += " b1"
            else:
                uses.append(self.source(extra, "b32"))
                fields += " b"
        raw = (
            (FIELDS["c"], None),
            (11, from_at),
            (6 + FIELDS["a"], narrow),
            (6 + FIELDS["d"], size),
            (6 + FIELDS["c"], 0),
        )
        self.emit("cp.async", (), tuple(uses), shape("", fields), at, raw, keep=True)

    def bulk(self, ins, operands):
        """Lower a bulk copy or a bulk reduction."""
        words = ins.modifiers
        reduce = words[0] == "reduce"
        spaces = [SPACES[word] for word in words if word in SPACES]
        if len(spaces) != 2:
            self.refuse("it needs the space it copies to and the one it copies from")
        if "L2::cache_hint" in words:
            operands.pop()
        multicast = operands.pop() if "multicast::cluster" in words else None
        barrier = operands[3] if len(operands) > 3 else None
        to_space, from_space = spaces
        flag = 0
        registers = []
        for index, (operand, space) in enumerate(
            ((operands[0], to_space), (operands[1], from_space), (barrier, "shared"))
        ):
            if operand is None:
                registers.append((None, 0))
                continue
            _, uses, offset, symbol = self.address(operand, space)
            if symbol:
                loaded = self.dynamic(0, DOUBLE) if space == "shared" else self.new(DOUBLE)
                if space != "shared":
                    self.emit("mov.b64.i", (loaded,), (), shape("d", "")).symbol = symbol
                uses = (loaded,)
            flag |= (self.classes[uses[0]] == WORD) << index
            registers.append((uses[0], offset))
        uses, fields = [registers[0][0], registers[1][0], self.source(operands[2], "b32")], "d a b"
        if barrier is not None:
            uses.append(registers[2][0])
            fields += " d1"
        if multicast is not None:
            uses.append(self.source(multicast, "b16"))
            fields += " b1"
        raw = (
            (FIELDS["c"], None),
            (11, registers[1][1]),
            (6 + FIELDS["a"], flag),
            (6 + FIELDS["c"], 0),
            (17, registers[2][1]),
        )
        name = f"cp.async.bulk.{to_space}.{from_space}"
        if reduce:
            kind, operation = (
                words[-1],
                next((w for w in words if w in ("add", "min", "max", "inc", "dec", "and", "or", "xor")), ""),
            )
            name = f"cp.reduce.async.bulk.{to_space}.{from_space}.{operation}.{kind}"
        self.emit(name, (), tuple(uses), shape("", fields), registers[0][1], raw, keep=True)

    def _mbarrier(self, ins, line):
        words = [w for w in ins.modifiers if w not in SPACES and w not in SCOPES and w not in ORDERS and w != "b64"]
        operands = list(ins.operands)
        flags, _ = self.order(ins.modifiers)
        name = "mbarrier." + ".".join(words)
        if words == ["pending_count"]:
            d, a = self.only(ins, 2)
            self.emit(name, (self.result(d, "b32"),), (self.source(a, "b64"),), shape("d", "a"))
            return
        waits = words[0] in ("test_wait", "try_wait")
        if waits or "expect_tx" in words or "shared::cluster" in ins.modifiers:
            self.require("80" if words == ["test_wait"] else "90")
        defs, fields = (), ""
        if words[0] not in ("init", "inval", "expect_tx", "complete_tx") and type(operands[0]) is not Address:
            first = operands.pop(0)
            if not (type(first) is Symbol and first.name == "_"):
                defs, fields = (self.result(first, "pred" if waits else "b64"),), "d1" if waits else "d"
        register, offset, narrow = self.shared_address(operands[0])
        uses, places = [register], "a"
        if waits:
            uses.append(self.source(operands[1], "b32" if "parity" in words else "b64"))
            places += " b1"
        elif len(operands) > 1:
            uses.append(self.source(operands[1], "b32"))
            places += " b"
        raw = ((FIELDS["c"], None), (6 + FIELDS["a"], narrow), (6 + FIELDS["c"], flags))
        self.emit(name, defs, tuple(uses), shape(fields, places), offset, raw, keep=True)

    # ---- Control

    def _branch(self, ins, line):
        (label,) = self.only(ins, 1)
        self.branch_to(label.name)

    def _branch_table(self, ins, line):
        index, table_name = self.only(ins, 2)
        names = self.function.targets.get(table_name.name)
        if not names:
            self.refuse(f"{table_name.name} is not a list of .branchtargets")
        op = self.emit("brx", (), (self.source(index, "u32"),), shape("", "a"), imm=len(names), keep=True)
        op.targets = list(names)
        self.block.targets.extend(names)
        self.block.fall = False

    def _leave(self, ins, line):
        self.only(ins, 0)
        if self.function.entry or ins.opcode == "exit":
            self.emit("exit", (), (), shape("", ""), keep=True)
        else:
            self.emit("ret", (), (self.return_slot,), shape("", "a"), keep=True)
        self.block.fall = False

    def _nanosleep(self, ins, line):
        (a,) = self.only(ins, 1)
        self.emit("nanosleep", (), (self.source(a, "u32"),), shape("", "a"), keep=True)

    def _barrier(self, ins, line):
        words = [word for word in ins.modifiers if word not in ("cta", "aligned")]
        operands = list(ins.operands)
        if words[0] != "red":
            if not 1 <= len(operands) <= 2:
                self.refuse(f"it has {len(operands)} operands; a barrier and perhaps a count of threads are needed")
            uses = [self.source(operand, "u32") for operand in operands]
            raw = ((11, 0),)
            self.emit(
                f"bar.{words[0]}", (), tuple(uses), shape("", "a b" if len(uses) > 1 else "a"), raw=raw, keep=True
            )
            return
        if not 3 <= len(operands) <= 4:
            self.refuse(f"it has {len(operands)} operands; 3 or 4 are needed")
        result, predicate = operands.pop(0), operands.pop()
        defs = (self.result(result, "u32" if words[1] == "popc" else "pred"),)
        uses = [self.source(operand, "u32") for operand in operands] + [self.source(predicate, "pred")]
        fields = shape("d", "a b c" if len(operands) > 1 else "a c")
        self.emit(f"bar.red.{words[1]}", defs, tuple(uses), fields, raw=((11, 0),), keep=True)

    def _cluster_barrier(self, ins, line):
        flags, _ = self.order(ins.modifiers)
        what = ins.modifiers[1]
        if not flags:
            flags = RELEASE if what == "arrive" else ACQUIRE
        self.emit(f"barrier.cluster.{what}", (), (), shape("", ""), raw=((FIELDS["c"], flags),), keep=True)

    def _warp_sync(self, ins, line):
        (mask,) = self.only(ins, 1)
        self.emit("bar.warp.sync", (), (self.source(mask, "b32"),), shape("", "a"), keep=True)

    def _shuffle(self, ins, line):
        mode = next(word for word in ins.modifiers if word in ("up", "down", "bfly", "idx"))
        operands = list(self.only(ins, 5 if "sync" in ins.modifiers else 4))
        d, p = (operands[0].first, operands[0].second) if type(operands[0]) is Pair else (operands[0], None)
        defs, fields = [self.result(d, "b32")], "d"
        if p is not None and not (type(p) is Symbol and p.name == "_"):
            defs.append(self.result(p, "pred"))
            fields += " d1"
        if len(operands) == 4:
            operands.append(Imm(-1, "int", 0xFFFFFFFF))
        uses = [self.source(operand, "b32") for operand in operands[1:]]
        self.emit(f"shfl.{mode}", tuple(defs), tuple(uses), shape(fields, "a b b1 a1"), raw=((11, 0),), keep=True)

    def membermask(self, ins, sync):
        """Return the register of an instruction's mask of lanes; all lanes if it has none."""
        return self.source(ins.operands[-1], "b32") if sync else self.constant(0xFFFFFFFF, WORD)

    def _vote(self, ins, line):
        sync = "sync" in ins.modifiers
        d, a = self.only(ins, 3 if sync else 2)[:2]
        mode = next(word for word in ins.modifiers if word in ("all", "any", "uni", "ballot"))
        result = self.result(d, "b32" if mode == "ballot" else "pred")
        uses = (self.source(a, "pred"), self.membermask(ins, sync))
        self.emit(f"vote.{mode}", (result,), uses, shape("d", "a b"), keep=True)

    def _match(self, ins, line):
        d, a, mask = self.only(ins, 3)
        kind, mode = ins.modifiers[-1], ins.modifiers[0]
        d, p = (d.first, d.second) if type(d) is Pair else (d, None)
        defs, fields = [self.result(d, "b32")], "d"
        if p is not None and not (type(p) is Symbol and p.name == "_"):
            defs.append(self.result(p, "pred"))
            fields += " d1"
        uses = (self.source(a, kind), self.source(mask, "b32"))
        raw = ((11, 0),) if mode == "all" else ()
        self.emit(f"match.{mode}.{kind}", tuple(defs), uses, shape(fields, "a b"), raw=raw, keep=True)

    def _redux(self, ins, line):
        d, a, mask = self.only(ins, 3)
        kind = ins.modifiers[-1]
        name = "redux." + ".".join(ins.modifiers[1:])
        uses = (self.source(a, kind), self.source(mask, "b32"))
        self.emit(name, (self.result(d, kind),), uses, shape("d", "a b"), keep=True)

    def _elect(self, ins, line):
        d, mask = self.only(ins, 2)
        if type(d) is not Pair:
            self.refuse("its result is d|p")
        defs, fields = [self.result(d.second, "pred")], "c"
        if not (type(d.first) is Symbol and d.first.name == "_"):
            defs.append(self.result(d.first, "b32"))
            fields += " d"
        self.emit("elect", tuple(defs), (self.source(mask, "b32"),), shape(fields, "b"), keep=True)

    # ---- Calls

    def _call(self, ins, line):
        results, function, arguments, prototype = ins.operands
        if type(function) is not Symbol:
            self.refuse("calls through a register are not supported: the function must be named")
        name = function.name
        callee = self.module.functions.get(name)
        if callee is None:
            self.refuse(f"{name} is not a function of this PTX")
        if callee.external:
            self.call_host(name, results.items, arguments.items)
            return
        if callee.entry:
            self.refuse(f"{name} is a kernel; a kernel cannot be called")
        if name in self.active:
            chain = " calls ".join(self.active[self.active.index(name) :] + [name])
            self.refuse(f"recursion is not supported: {chain}")
        if len(results.items) != len(callee.returns) or len(arguments.items) != len(callee.params):
            self.refuse(f"{name} has {len(callee.params)} parameters and {len(callee.returns)} results")
        if name not in self.functions:
            self.lower(callee)
        self.callers.setdefault(name, set()).add(self.function.name)
        formals = self.formals.get(name, {})
        for formal, actual in zip(callee.params, arguments.items, strict=True):
            for (parameter, offset, size), register in formals.items():
                if parameter == formal.name:
                    self.move(register, self.argument(actual, offset, size))
        op = self.emit("call", (self.functions[name][2],), (), shape("d", ""), keep=True)
        op.targets = [name]
        self.start()
        for formal, actual in zip(callee.returns, results.items, strict=True):
            for (parameter, offset, size), register in formals.items():
                if parameter == formal.name:
                    target = self.register(actual) if type(actual) is Reg else self.piece(actual.name, offset, size)
                    self.move(target, register)

    def argument(self, actual, offset, size):
        """Return the register with one part of an argument, which is a parameter variable, a register or a constant."""
        if type(actual) is Symbol:
            return self.piece(actual.name, offset, size)
        return self.source(actual, f"b{8 * size}")

    def call_host(self, name, results, arguments):
        """Lower a call of printf or assert, which CUDA declares as external functions."""
        if name == "vprintf" and len(arguments) == 2:
            uses = tuple(self.argument(item, 0, 8) for item in arguments)
            defs = (self.piece(results[0].name, 0, 4),) if results else ()
            self.emit("vprintf", defs, uses, shape("d" if defs else "", "a b"), keep=True)
        elif name == "__assertfail" and len(arguments) == 5:
            uses = tuple(self.argument(item, 0, size) for item, size in zip(arguments, (8, 8, 4, 8, 8), strict=True))
            self.emit("assertfail", (), uses, shape("", "a b c a1 b1"), keep=True)
        else:
            self.refuse(f"{name} is external: no code for it is in this PTX; only printf and assert are built in")

    # ---- Tensor cores

    def _mma(self, ins, line):
        words = [word for word in ins.modifiers if word not in ("sync", "aligned", "row", "col")]
        layouts = [word for word in ins.modifiers if word in ("row", "col")]
        types = [word for word in words[1:] if word in BITS or word in ("s4", "u4", "b1")]
        rest = [word for word in words[1:] if word not in types]
        if len(types) != 4 or rest not in ([], ["satfinite"]):
            self.refuse("unknown modifiers: the shape, two layouts and four types are needed")
        d, a, b, c = self.only(ins, 4)
        family = f"{words[0]}.{types[0]}:{table.MMA_KIND.get(types[1], types[1])}"
        if family not in table.MMA or types[0] != types[3]:
            self.refuse(f"the virtual GPU has no such shape and types; it has {', '.join(table.MMA)}")
        counts = table.MMA[family]
        self.require(str(counts[3]))
        if layouts != ["row", "col"]:
            self.refuse("only .row.col is supported")
        accumulator = "b32" if types[0] in ("f16", "s32") else types[0]
        inputs = "f64" if types[1] == "f64" else "b32"
        lists = []
        for operand, count, kind in zip(
            (d, a, b, c), (counts[2], *counts[:3]), (accumulator, inputs, inputs, accumulator), strict=True
        ):
            find = self.result if operand is d and not lists else self.source
            lists.append([find(item, kind) for item in self.elements(operand, count)])
        fields = [
            " ".join(f"{letter}{i or ''}" for i in range(len(r))) for letter, r in zip("dabc", lists, strict=True)
        ]
        slots = max(map(len, lists))
        raw = ((6 * slots - 1, 0),)
        name = ".".join(["mma", words[0], *rest, *types])
        uses = (*lists[1], *lists[2], *lists[3])
        self.emit(name, tuple(lists[0]), uses, shape(fields[0], " ".join(fields[1:])), raw=raw, keep=False)

    def matrix_name(self, ins, space, narrow):
        """Return the core's name of a matrix load or store."""
        words = [w for w in ins.modifiers if w not in ("sync", "aligned") and w not in SPACES and w != "b16"]
        return ".".join([ins.opcode, *words, space, *(["a32"] if narrow else []), "b16"])

    def _ldmatrix(self, ins, line):
        self._matrix(ins, 0, 1)

    def _stmatrix(self, ins, line):
        self._matrix(ins, 1, 0)

    def _matrix(self, ins, registers, address):
        operands = self.only(ins, 2)
        count = int(next(word for word in ins.modifiers if word in ("x1", "x2", "x4"))[1])
        space = "shared" if any(word in SPACES for word in ins.modifiers) else "gen"
        items = self.elements(operands[registers], count)
        space, uses, offset, symbol = self.address(operands[address], space)
        if symbol:
            uses = (self.dynamic(0, DOUBLE),)
        find = self.result if ins.opcode == "ldmatrix" else self.source
        moved = tuple(find(item, "b32") for item in items)
        fields = " ".join(("d", "d1", "a1", "b1")[:count])
        raw = ((FIELDS["c"], None), (6 + FIELDS["c"], 0))
        name = self.matrix_name(ins, space, self.classes[uses[0]] == WORD)
        if ins.opcode == "ldmatrix":
            self.emit(name, moved, uses, shape(fields, "a"), offset, raw, keep=True)
        else:
            self.emit(name, (), (*uses, *moved), shape("", "a " + fields), offset, raw, keep=True)


# Methods for instructions that never wait, never exit and never read other lanes.
QUIET = {
    "mad", "shr", "slct", "lop3", "carry", "setp", "set", "mov", "cvt", "cvt2", "cvta", "isspacep", "mapa", "load",
    "store", "prefetch", "policy", "fence", "fence_proxy", "nothing", "refuse",
}  # fmt: skip
