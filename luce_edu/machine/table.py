"""The instruction table: the PTX instructions, their operands, and their names in the core.

A line describes a family: `opcode.modifiers | operands | core | needs`.

modifiers  `{a b}`: one of these; `[a b]`: one of these or none; `a?`: this or nothing; other words stand for
           themselves. The last `{}` is T, the type of the instruction; a `{}` before it that holds types is U.
operands   in the order of PTX. The first letter is d (result) or s (source); the type follows: T or U as above, W
           (twice as wide as T), or a name, as in `sb32`, a source of 32 bits. A source predicate may be negated. Lines
           that end in `@name` are lowered by the method of that name in lower.py, which knows their operands.
core       the name in the core: empty if it is that of PTX, `b` for the type's bits (if the sign makes no difference),
           or a name with `*` for T. Words without meaning for the core (DROPPED) are left out.
needs      the first architecture that has it, by ptxas: `80` is sm_80 or newer, `90a` only sm_90a.

Source: PTX ISA 9.0, chapter 9, the syntax and "Target ISA Notes" of each instruction.
"""

import re
from functools import lru_cache

BITS = {  # of each type that a register or an instruction can have
    **{f"{letter}{bits}": bits for letter in "bsu" for bits in (8, 16, 32, 64, 128)},
    "f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32, "u16x2": 32, "s16x2": 32, "f32": 32, "f64": 64, "tf32": 32,
    "e4m3x2": 16, "e5m2x2": 16, "pred": 1,
}  # fmt: skip
DROPPED = {"rn", "sync", "aligned", "uni", "noftz"}
COMPARISONS = "eq ne lt le gt ge lo ls hi hs equ neu ltu leu gtu geu num nan"
INTEGERS = "u16 s16 u32 s32 u64 s64"
ANY = "b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64"
WHOLE = "u8 u16 u32 u64 s8 s16 s32 s64"
NUMBERS = f"{WHOLE} f16 f32 f64"
ROUNDINGS = "rn rz rm rp"

TABLE = f"""
# ---- integers
add.{{{INTEGERS}}}                     | dT sT sT      | b
sub.{{{INTEGERS}}}                     | dT sT sT      | b
add.{{u16x2 s16x2}}                    | dT sT sT      | add.u16x2 | 90
add.sat.s32                            | ds32 ss32 ss32
sub.sat.s32                            | ds32 ss32 ss32
add.cc.{{u32 s32 u64 s64}}             | dT sT sT      | @carry
addc.cc?.{{u32 s32 u64 s64}}           | dT sT sT      | @carry
sub.cc.{{u32 s32 u64 s64}}             | dT sT sT      | @carry
subc.cc?.{{u32 s32 u64 s64}}           | dT sT sT      | @carry
mad.{{lo hi}}.cc.{{u32 s32 u64 s64}}   | dT sT sT sT   | @carry
madc.{{lo hi}}.cc?.{{u32 s32 u64 s64}} | dT sT sT sT   | @carry
mul.lo.{{{INTEGERS}}}                  | dT sT sT      | b
mul.hi.{{{INTEGERS}}}                  | dT sT sT
mul.wide.{{u16 s16 u32 s32}}           | dW sT sT
mad.lo.{{{INTEGERS}}}                  | dT sT sT sT   | b
mad.hi.{{{INTEGERS}}}                  | dT sT sT sT
mad.hi.sat.s32                         | ds32 ss32 ss32 ss32
mad.wide.{{u16 s16 u32 s32}}           | dW sT sT sW
mul24.{{lo hi}}.{{u32 s32}}            | dT sT sT
mad24.{{lo hi}}.{{u32 s32}}            | dT sT sT sT
mad24.hi.sat.s32                       | ds32 ss32 ss32 ss32
sad.{{{INTEGERS}}}                     | dT sT sT sT
div.{{{INTEGERS}}}                     | dT sT sT
rem.{{{INTEGERS}}}                     | dT sT sT
abs.{{s16 s32 s64}}                    | dT sT
neg.{{s16 s32 s64}}                    | dT sT         | b
min.{{{INTEGERS}}}                     | dT sT sT
max.{{{INTEGERS}}}                     | dT sT sT
min.relu.s32                           | ds32 ss32 ss32 | | 90
max.relu.s32                           | ds32 ss32 ss32 | | 90
min.relu?.{{u16x2 s16x2}}              | dT sT sT      | | 90
max.relu?.{{u16x2 s16x2}}              | dT sT sT      | | 90
popc.{{b32 b64}}                       | db32 sT
clz.{{b32 b64}}                        | db32 sT
bfind.shiftamt?.{{u32 s32 u64 s64}}    | db32 sT
fns.b32                                | db32 sb32 sb32 sb32
brev.{{b32 b64}}                       | dT sT
bfe.{{u32 s32 u64 s64}}                | dT sT sb32 sb32
bfi.{{b32 b64}}                        | dT sT sT sb32 sb32
szext.{{clamp wrap}}.{{u32 s32}}       | dT sT sb32    | | 70
bmsk.{{clamp wrap}}.b32                | db32 sb32 sb32 | | 70
dp4a.{{u32 s32}}.{{u32 s32}}           | db32 sU sT sb32 | | 61
dp2a.{{lo hi}}.{{u32 s32}}.{{u32 s32}} | db32 sU sT sb32 | | 61
and.{{pred b16 b32 b64}}               | dT sT sT
or.{{pred b16 b32 b64}}                | dT sT sT
xor.{{pred b16 b32 b64}}               | dT sT sT
not.{{pred b16 b32 b64}}               | dT sT
cnot.{{b16 b32 b64}}                   | dT sT
lop3.b32                               | @lop3 | | 50
lop3.{{or and}}.b32                    | @lop3 | | 70
shl.{{b16 b32 b64}}                    | dT sT sb32
shr.{{b16 b32 b64}}                    | dT sT sb32    | @shr
shr.{{{INTEGERS}}}                     | dT sT sb32
shf.{{l r}}.{{clamp wrap}}.b32         | db32 sb32 sb32 sb32 | | 32
prmt.b32                               | db32 sb32 sb32 sb32
prmt.b32.{{f4e b4e rc8 ecl ecr rc16}}  | db32 sb32 sb32 sb32

# ---- floating point
add.[{ROUNDINGS}].ftz?.sat?.f32        | df32 sf32 sf32
sub.[{ROUNDINGS}].ftz?.sat?.f32        | df32 sf32 sf32
mul.[{ROUNDINGS}].ftz?.sat?.f32        | df32 sf32 sf32
add.[{ROUNDINGS}].f64                  | df64 sf64 sf64
sub.[{ROUNDINGS}].f64                  | df64 sf64 sf64
mul.[{ROUNDINGS}].f64                  | df64 sf64 sf64
add.[rn].ftz?.sat?.{{f16 f16x2}}       | dT sT sT      | | 53
sub.[rn].ftz?.sat?.{{f16 f16x2}}       | dT sT sT      | | 53
mul.[rn].ftz?.sat?.{{f16 f16x2}}       | dT sT sT      | | 53
add.[rn].{{bf16 bf16x2}}               | dT sT sT      | | 90
sub.[rn].{{bf16 bf16x2}}               | dT sT sT      | | 90
mul.[rn].{{bf16 bf16x2}}               | dT sT sT      | | 90
fma.{{{ROUNDINGS}}}.ftz?.sat?.f32      | df32 sf32 sf32 sf32
fma.{{{ROUNDINGS}}}.f64                | df64 sf64 sf64 sf64
fma.rn.ftz?.[sat relu].{{f16 f16x2}}   | dT sT sT sT   | | 53
fma.rn.relu?.{{bf16 bf16x2}}           | dT sT sT sT   | | 80
mad.{{{ROUNDINGS}}}.ftz?.sat?.f32      | df32 sf32 sf32 sf32 | @mad
mad.{{{ROUNDINGS}}}.f64                | df64 sf64 sf64 sf64 | @mad
div.{{approx full {ROUNDINGS}}}.ftz?.f32 | df32 sf32 sf32
div.{{{ROUNDINGS}}}.f64                | df64 sf64 sf64
rcp.{{approx {ROUNDINGS}}}.ftz?.f32    | df32 sf32
rcp.{{{ROUNDINGS}}}.f64                | df64 sf64
rcp.approx.ftz.f64                     | df64 sf64
sqrt.{{approx {ROUNDINGS}}}.ftz?.f32   | df32 sf32
sqrt.{{{ROUNDINGS}}}.f64               | df64 sf64
rsqrt.approx.ftz?.{{f32 f64}}          | dT sT
sin.approx.ftz?.f32                    | df32 sf32
cos.approx.ftz?.f32                    | df32 sf32
lg2.approx.ftz?.f32                    | df32 sf32
ex2.approx.ftz?.f32                    | df32 sf32
ex2.approx.{{f16 f16x2}}               | dT sT         | | 75
ex2.approx.ftz.{{bf16 bf16x2}}         | dT sT         | | 90
tanh.approx.{{f32 f16 f16x2}}          | dT sT         | | 75
tanh.approx.{{bf16 bf16x2}}            | dT sT         | | 90
abs.ftz?.f32                           | df32 sf32
neg.ftz?.f32                           | df32 sf32
abs.f64                                | df64 sf64
neg.f64                                | df64 sf64
abs.ftz?.{{f16 f16x2}}                 | dT sT         | | 53
neg.ftz?.{{f16 f16x2}}                 | dT sT         | | 53
abs.{{bf16 bf16x2}}                    | dT sT         | | 80
neg.{{bf16 bf16x2}}                    | dT sT         | | 80
min.ftz?.f32                           | df32 sf32 sf32
max.ftz?.f32                           | df32 sf32 sf32
min.ftz?.NaN?.[xorsign].[abs].f32      | df32 sf32 sf32 | | 80
max.ftz?.NaN?.[xorsign].[abs].f32      | df32 sf32 sf32 | | 80
min.f64                                | df64 sf64 sf64
max.f64                                | df64 sf64 sf64
min.ftz?.NaN?.[xorsign].[abs].{{f16 f16x2}} | dT sT sT | | 80
max.ftz?.NaN?.[xorsign].[abs].{{f16 f16x2}} | dT sT sT | | 80
min.NaN?.[xorsign].[abs].{{bf16 bf16x2}} | dT sT sT    | | 80
max.NaN?.[xorsign].[abs].{{bf16 bf16x2}} | dT sT sT    | | 80
copysign.{{f32 f64}}                   | dT sT sT
testp.{{finite infinite number notanumber normal subnormal}}.{{f32 f64}} | dpred sT

# ---- comparisons, moves, conversions
setp.{{{COMPARISONS}}}.[and or xor].ftz?.{{{ANY}}}       | @setp
setp.{{{COMPARISONS}}}.[and or xor].ftz?.{{f16}}         | @setp | | 53
setp.{{{COMPARISONS}}}.[and or xor].{{bf16}}             | @setp | | 90
setp.{{{COMPARISONS}}}.[and or xor].ftz?.{{f16x2}}       | @setp | | 53
setp.{{{COMPARISONS}}}.[and or xor].{{bf16x2}}           | @setp | | 90
set.{{{COMPARISONS}}}.[and or xor].ftz?.{{u32 s32 f32}}.{{{ANY}}} | @set
selp.{{{ANY}}}                         | dT sT sT spred | b
slct.ftz?.{{{ANY}}}.{{s32 f32}}        | dU sU sU sT   | @slct
mov.{{pred {ANY} f16 f16x2 bf16 bf16x2}} | @mov
cvt.[rni rzi rmi rpi rn rz rm rp rna].ftz?.sat?.{{{NUMBERS}}}.{{{NUMBERS}}} | @cvt
cvt.{{rn rz rm rp}}.sat?.{{{WHOLE} bf16}}.{{{NUMBERS} bf16}} | @cvt | | 90
cvt.[rni rzi rmi rpi rn].ftz?.sat?.{{{NUMBERS} bf16}}.bf16 | @cvt | | 90
cvt.{{rn rz}}.relu?.satfinite?.bf16.f32 | @cvt | | 80
cvt.{{rn rz}}.relu?.satfinite?.f16.f32 | @cvt | | 80
cvt.f32.bf16                           | @cvt | | 80
cvt.{{rn rz}}.relu?.satfinite?.{{f16x2 bf16x2}}.f32 | dU sf32 sf32 | @cvt2 | 80
cvt.rna.satfinite?.tf32.f32            | @cvt | | 80
cvt.{{rn rz}}.relu?.satfinite?.tf32.f32 | @cvt | | 90
cvt.rn.satfinite.relu?.{{e4m3x2 e5m2x2}}.f32     | @cvt2 | | 89
cvt.rn.satfinite.relu?.{{e4m3x2 e5m2x2}}.f16x2   | @cvt | | 89
cvt.rn.relu?.f16x2.{{e4m3x2 e5m2x2}}   | @cvt | | 89
cvta.{{global shared shared::cta shared::cluster local const param param::entry}}.{{u64}}  | @cvta
cvta.to.{{global shared shared::cta shared::cluster local const param param::entry}}.{{u64}} | @cvta
isspacep.{{global shared shared::cta shared::cluster local const param param::entry}} | dpred sb64
mapa.[shared::cluster].{{u32 u64}}     | dT sT sb32    | @mapa | 90
getctarank.[shared::cluster].{{u32 u64}} | db32 sT     | @mapa | 90

# ---- memory
ld.*                                   | @load
ldu.*                                  | @load
st.*                                   | @store
atom.*                                 | @atomic
red.*                                  | @atomic
prefetch.[global local const param].{{L1 L2}}          | @prefetch
prefetch.global.{{L2::evict_last L2::evict_normal}}    | @prefetch | | 80
prefetch.tensormap                     | @refuse
prefetchu.L1                           | @prefetch
membar.{{cta gl sys}}                  | @fence
fence.[sc acq_rel acquire release].{{cta gpu sys}}     | @fence | | 70
fence.[sc acq_rel acquire release].cluster             | @fence | | 90
fence.proxy.*                          | @fence_proxy | | 80
fence.mbarrier_init.*                  | @fence_proxy | | 90
cp.*                                   | @copy  | | 80
mbarrier.*                             | @mbarrier | | 80
discard.global?.L2                     | @prefetch | | 80
applypriority.global?.L2::evict_normal | @prefetch | | 80
createpolicy.*                         | @policy | | 80

# ---- warps, blocks, clusters, control
bra.uni?                               | @branch
brx.idx.uni?                           | @branch_table
call.uni?                              | @call
ret.uni?                               | @leave
exit                                   | @leave
trap                                   | @plain
brkpt                                  | @plain
nanosleep.u32                          | @nanosleep | | 70
pmevent.mask?                          | @nothing
setmaxnreg.{{inc dec}}.sync.aligned.u32 | @nothing | | 90a
bar.{{sync arrive}}                    | @barrier
barrier.{{sync arrive}}.aligned?       | @barrier | | 30
barrier.cta.{{sync arrive}}.aligned?   | @barrier | | 30
bar.cta.{{sync arrive}}                | @barrier
bar.red.popc.{{u32}}                   | @barrier
bar.red.{{and or}}.pred                | @barrier
bar.cta.red.popc.{{u32}}               | @barrier
bar.cta.red.{{and or}}.pred            | @barrier
barrier.red.popc.aligned?.{{u32}}      | @barrier | | 30
barrier.red.{{and or}}.aligned?.pred   | @barrier | | 30
barrier.cta.red.popc.aligned?.{{u32}}  | @barrier | | 30
barrier.cta.red.{{and or}}.aligned?.pred | @barrier | | 30
barrier.cluster.arrive.[release relaxed].aligned? | @cluster_barrier | | 90
barrier.cluster.wait.[acquire].aligned? | @cluster_barrier | | 90
bar.warp.sync                          | @warp_sync | | 30
shfl.sync.{{up down bfly idx}}.b32     | @shuffle | | 30
shfl.{{up down bfly idx}}.b32          | @shuffle
vote.sync.{{all any uni}}.pred         | @vote | | 30
vote.sync.ballot.b32                   | @vote | | 30
vote.{{all any uni}}.pred              | @vote
vote.ballot.b32                        | @vote
match.any.sync.{{b32 b64}}             | @match | | 70
match.all.sync.{{b32 b64}}             | @match | | 70
redux.sync.{{add min max}}.{{u32 s32}} | @redux | | 80
redux.sync.{{and or xor}}.b32          | @redux | | 80
redux.sync.{{min max}}.[abs].[NaN].f32 | @redux | | 100a
activemask.b32                         | db32 | activemask
elect.sync                             | @elect | | 90
griddepcontrol.{{launch_dependents wait}} | @plain | | 90

# ---- tensor cores
mma.sync.aligned.*                     | @mma | | 70
ldmatrix.sync.aligned.m8n8.{{x1 x2 x4}}.trans?.[shared shared::cta].b16 | @ldmatrix | | 75
stmatrix.sync.aligned.m8n8.{{x1 x2 x4}}.trans?.[shared shared::cta].b16 | @stmatrix | | 90
movmatrix.sync.aligned.m8n8.trans.b16  | db32 sb32 | | 75
"""

# The shapes of mma, as shape.result:inputs -> registers of A, of B, of C and D, and the first architecture.
MMA = {
    "m8n8k4.f16:f16": (2, 2, 4, 70), "m16n8k8.f16:f16": (2, 1, 2, 75), "m16n8k16.f16:f16": (4, 2, 2, 80),
    "m8n8k4.f32:f16": (2, 2, 8, 70), "m16n8k8.f32:f16": (2, 1, 4, 75), "m16n8k16.f32:f16": (4, 2, 4, 80),
    "m16n8k8.f32:bf16": (2, 1, 4, 80), "m16n8k16.f32:bf16": (4, 2, 4, 80),
    "m16n8k4.f32:tf32": (2, 1, 4, 80), "m16n8k8.f32:tf32": (4, 2, 4, 80),
    "m8n8k16.s32:int8": (1, 1, 2, 75), "m16n8k16.s32:int8": (2, 1, 4, 80), "m16n8k32.s32:int8": (4, 2, 4, 80),
    "m16n8k16.f32:fp8": (2, 1, 4, 89), "m16n8k32.f32:fp8": (4, 2, 4, 89), "m8n8k4.f64:f64": (1, 1, 2, 80),
}  # fmt: skip
MMA_KIND = {"s8": "int8", "u8": "int8", "e4m3": "fp8", "e5m2": "fp8"}

# PTX instructions that the virtual GPU does not support: the start of the name, and the words for the message.
UNSUPPORTED = {
    "tex": "textures", "tld4": "textures", "txq": "textures", "istypep": "textures", "suld": "surfaces",
    "sust": "surfaces", "sured": "surfaces", "suq": "surfaces", "wmma": "wmma; use mma.sync", "wgmma": "wgmma",
    "tcgen05": "tensor memory (tcgen05)", "alloca": "alloca", "stacksave": "alloca", "stackrestore": "alloca",
    "multimem": "multicast memory", "tensormap": "tensor maps", "clusterlaunchcontrol": "cluster launch control",
    **{f"v{op}": "video instructions" for op in (
        "add", "sub", "absdiff", "min", "max", "shl", "shr", "mad", "set", "add2", "sub2", "avrg2", "absdiff2", "min2",
        "max2", "set2", "add4", "sub4", "avrg4", "absdiff4", "min4", "max4", "set4")},
}  # fmt: skip


class Line:
    """One line of the table: `match` recognises its modifiers, the other fields are its columns."""

    __slots__ = ("pattern", "operands", "core", "method", "needs", "match")

    def __init__(self, pattern, columns):
        self.pattern = pattern
        operands, core, needs = (columns + ["", "", ""])[:3]
        self.method = None
        if operands.startswith("@"):
            operands, self.method = "", operands[1:]
        if core.startswith("@"):
            core, self.method = "", core[1:]
        self.operands, self.core, self.needs = operands.split(), core, needs
        self.match = None

    def fits(self, modifiers):
        """Return the types {T: …, U: …} if this line has these modifiers, each with a dot before it; else None."""
        if self.match is None:
            self.match = re.compile(_expression(self.pattern.partition(".")[2])).fullmatch
        found = self.match(modifiers)
        if found is None:
            return None
        types = [word for word in (found.groups() or ()) if word in BITS] or [
            w for w in modifiers.split(".") if w in BITS
        ]
        return {"T": types[-1] if types else None, "U": types[-2] if len(types) > 1 else None}


def _expression(pattern):
    """Return the regular expression for the modifiers of a line."""
    if pattern == "*":
        return ".*"
    text = ""
    for part in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^.]+", pattern):
        words = "|".join(re.escape(word) for word in part.strip("{}[]?").split())
        if part.endswith("*"):
            text += r"(?:\..*)?"
        elif part[0] == "{":
            text += rf"\.({words})"
        elif part[0] == "[" or part.endswith("?"):
            text += rf"(?:\.(?:{words}))?"
        else:
            text += rf"\.{words}"
    return text


@lru_cache(maxsize=1)
def lines():
    """Return the table: opcode -> its lines."""
    table = {}
    for text in TABLE.splitlines():
        if text and not text.startswith("#"):
            pattern, *columns = (column.strip() for column in text.split("|"))
            table.setdefault(pattern.partition(".")[0], []).append(Line(pattern, columns))
    return table


def core_name(line, opcode, modifiers, types):
    """Return the core's name of this instruction."""
    words = [word for word in modifiers if word not in DROPPED]
    kind = types["T"]
    if line.core == "b" and kind:
        words = words[:-1] + [f"b{BITS[kind]}"]
    elif line.core:
        return line.core.replace("*", kind or "")
    return ".".join([opcode, *words])
