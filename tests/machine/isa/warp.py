"""Instructions across the lanes of a warp: for each a function of the active lanes and of every lane's inputs.

The kernel runs the instruction in the lanes of %mask only; the registers of other lanes keep their values.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from isa.kernel import THREADS, UNWRITTEN, ptx
from isa.model import ANY, INPUTS, Instruction, Masked, signed


class WarpInstruction(NamedTuple):
    """`run(lane, active, *columns)` gives one lane's outputs; the kinds "lane" and "clamp" are 32-bit words."""

    text: str
    outs: tuple[str, ...]
    kinds: tuple[str, ...]
    run: Callable

    @property
    def plain(self):
        """This instruction as one of isa.model, with the mask as its last input."""
        ins = [{"lane": "b32", "clamp": "b32"}.get(kind, kind) for kind in self.kinds]
        return Instruction(self.text, self.outs, (*ins, "b32"), None, False)


WARP: dict[str, WarpInstruction] = {}


def define(text, outs, kinds, run):
    WARP[text] = WarpInstruction(text, tuple(outs.split()), tuple(kinds.split()), run)


def shuffle(mode):
    def run(lane, active, a, b, c):
        """`c` holds the last lane of a segment in bits 0 to 4 and, in bits 8 to 12, which bits of a lane name one."""
        shift, clamp, segment = b[lane] & 31, c[lane] & 31, c[lane] >> 8 & 31
        first, last = lane & segment, lane & segment | clamp & ~segment
        source = {"up": lane - shift, "down": lane + shift, "bfly": lane ^ shift, "idx": first | shift & ~segment}[mode]
        inside = source >= last if mode == "up" else source <= last
        source = source if inside else lane
        return a[source] if source in active else ANY, int(inside)

    return run


for mode in ("up", "down", "bfly", "idx"):
    run = shuffle(mode)
    define(f"shfl.sync.{mode}.b32 %d|%e, %a, %b, %c, %mask", "b32 pred", "b32 lane clamp", run)
    define(f"shfl.sync.{mode}.b32 %d, %a, %b, %c, %mask", "b32", "b32 lane clamp", lambda *x, f=run: f(*x)[0])

    def fixed(lane, active, a, f=run, mode=mode):
        clamp = 0 if mode == "up" else 31
        return f(lane, active, a, [3] * 32, [clamp] * 32)

    text = f"shfl.sync.{mode}.b32 %d|%e, %a, 3, {0 if mode == 'up' else 31}, %mask"
    define(text, "b32 pred", "b32", fixed)


def bits(lanes):
    return sum(1 << lane for lane in lanes)


define("vote.sync.all.pred %d, %a, %mask", "pred", "pred", lambda lane, on, a: int(all(a[i] for i in on)))
define("vote.sync.any.pred %d, %a, %mask", "pred", "pred", lambda lane, on, a: int(any(a[i] for i in on)))
define("vote.sync.any.pred %d, !%a, %mask", "pred", "pred", lambda lane, on, a: int(not all(a[i] for i in on)))
define("vote.sync.uni.pred %d, %a, %mask", "pred", "pred", lambda lane, on, a: int(len({a[i] for i in on}) == 1))
define("vote.sync.ballot.b32 %d, %a, %mask", "b32", "pred", lambda lane, on, a: bits(i for i in on if a[i]))
define("vote.sync.ballot.b32 %d, !%a, %mask", "b32", "pred", lambda lane, on, a: bits(i for i in on if not a[i]))
for kind in ("b32", "b64"):

    def match_all(lane, active, a):
        same = len({a[i] for i in active}) == 1
        return bits(active) if same else 0, int(same)

    any_ = lambda lane, on, a: bits(i for i in on if a[i] == a[lane])  # noqa: E731
    define(f"match.any.sync.{kind} %d, %a, %mask", "b32", kind, any_)
    define(f"match.all.sync.{kind} %d|%e, %a, %mask", "b32 pred", kind, match_all)


def reduce(step, read=lambda x: x):
    def run(lane, active, a):
        values = [read(a[i]) for i in active]
        total = values[0]
        for value in values[1:]:
            total = step(total, value)
        return total

    return run


def signed32(value):
    return signed(value, 32)


for name, step in (("add", lambda x, y: x + y), ("min", min), ("max", max)):
    define(f"redux.sync.{name}.u32 %d, %a, %mask", "b32", "b32", reduce(step))
    define(f"redux.sync.{name}.s32 %d, %a, %mask", "b32", "b32", reduce(step, signed32))
define("redux.sync.and.b32 %d, %a, %mask", "b32", "b32", reduce(lambda x, y: x & y))
define("redux.sync.or.b32 %d, %a, %mask", "b32", "b32", reduce(lambda x, y: x | y))
define("redux.sync.xor.b32 %d, %a, %mask", "b32", "b32", reduce(lambda x, y: x ^ y))
# The ISA leaves open which lanes of the mask run together; the lane itself runs, lanes outside the mask do not.
define("activemask.b32 %d", "b32", "b32", lambda lane, on, a: Masked(1 << lane, 1 << lane | ~bits(on)))
define("bar.warp.sync %mask; mov.b32 %d, %a", "b32", "b32", lambda lane, on, a: a[lane])


def kernel(instruction, name="kernel", guard=False):
    """The instruction in the lanes of the mask: behind a branch, or under a predicate."""
    text = instruction.text.replace("%mask", f"%{INPUTS[len(instruction.kinds)]}")
    if guard:
        assert ";" not in text
        body = f"@!%out {text}"
    else:
        body = f"@%out bra SKIP;\n    {text};\nSKIP:"
    before = [f"mov.b{64 if kind == 'b64' else 32} %{reg}, {UNWRITTEN & 0xFFFFFFFF:#x};" for reg, kind in
              zip("de", instruction.outs, strict=False) if kind != "pred"]
    before += [f"setp.ne.u32 %{reg}, 0, 0;" for reg, kind in zip("de", instruction.outs, strict=False)
               if kind == "pred"]
    mask = INPUTS[len(instruction.kinds)]
    before += [
        ".reg .pred %out;",
        ".reg .b32 %own;",
        "mov.u32 %own, %laneid;",
        "shr.u32 %own, %" + mask + ", %own;",
        "and.b32 %own, %own, 1;",
        "setp.eq.u32 %out, %own, 0;",
    ]
    return ptx(instruction.plain._replace(text="\n    ".join([*before, body])), name)


MASKS = (0xFFFFFFFF, 0xFFFF0000, 0x00FF00FF, 0x0F0F0F0F)


def reads_elsewhere(instruction, lanes, mask):
    """Whether a lane of the mask takes a value from one outside it, which is undefined."""
    active = lanes_of(mask)
    columns = list(zip(*lanes, strict=True))
    results = [instruction.run(lane, active, *columns) for lane in active]
    return any(result is ANY or type(result) is tuple and result[0] is ANY for result in results)


def lanes_of(mask):
    return [lane for lane in range(32) if mask >> lane & 1]


def inputs(instruction, warps, seed):
    """Rows of one lane each, the mask last; values are often equal, and so are masks of one lane and of all."""
    rng = random.Random(f"{instruction.text} {seed}")
    rows = []
    for _ in range(warps):
        mask = rng.choice([rng.getrandbits(32) | 1 << rng.randrange(32), 1 << rng.randrange(32), *MASKS])
        few = [rng.getrandbits(64) for _ in range(rng.choice([1, 2, 8]))]
        often = rng.choice([0.02, 0.5, 0.98])
        common = rng.choice([0, 0x1F, 0x1C1F, 0x181F, 0x1C00, 0x0F, None])
        step = rng.choice([1, 2, 4, 8, 16, 31, None, None])

        def draw(kind, few=few, often=often, common=common, step=step):
            if kind == "pred":
                return int(rng.random() < often)
            if kind == "lane":
                return rng.randrange(64) if step is None else step
            if kind == "clamp":
                return rng.getrandbits(16) & 0x1F1F if common is None else common
            value = rng.choice(few) if rng.random() < 0.8 else rng.getrandbits(64)
            return value if kind == "b64" else value & 0xFFFFFFFF

        lanes = [tuple(draw(kind) for kind in instruction.kinds) for _ in range(32)]
        if reads_elsewhere(instruction, lanes, mask):
            mask = 0xFFFFFFFF
        rows += [(*lane, mask) for lane in lanes]
    assert len(rows) % THREADS == 0
    return rows


def expectations(instruction, rows):
    """Outputs of each row; a lane outside the mask keeps its values."""
    kept = tuple(0 if kind == "pred" else UNWRITTEN & 0xFFFFFFFF for kind in instruction.outs)
    results = []
    for start in range(0, len(rows), 32):
        columns = list(zip(*rows[start : start + 32], strict=True))
        mask = columns.pop()[0]
        active = lanes_of(mask)
        for lane in range(32):
            if lane not in active:
                results.append(kept)
                continue
            result = instruction.run(lane, active, *columns)
            result = result if type(result) is tuple else (result,)
            results.append(tuple(x & 0xFFFFFFFF if isinstance(x, int) else x for x in result))
    return results
