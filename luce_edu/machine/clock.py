"""The timing constants of every card, with which the clock of the virtual GPU computes, and their sources.

The first words of a source say how well a number is known:

    measured on this card           by somebody else's test, on this very board
    measured on the A40, a sister   on another board with the same chip
    published                       stated for the architecture by NVIDIA, a paper or the files of a simulator
    assumed                         taken from another chip, scaled, or guessed; the rest says how

`owner/name, path` is a file of a repository on GitHub. "To be checked" marks a number that was written down from memory
of a document and has not been compared with it yet. No constant was fitted to a kernel of this course, and none comes
from a measurement with which the clock is compared. From te42kyfo/gpu-benches, the strided, cached and pointer-chasing
reads, the watts and the small blocks of the L40 are used here; its other copies, barriers and small kernels are not.
Its files named h200 read memory at 3,889 GB/s, which is 97 % of a GH200's bandwidth and 81 % of an H200's; so they are
taken as a GH200's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from types import MappingProxyType

from luce_edu.machine.cards import CARDS, KIB, Card, find_card

LANES = 128  # threads of the four warps that an SM's four schedulers issue per cycle
MAY_BE_ZERO = frozenset({"l2_far_extra"})


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The rates and latencies of an SM's arithmetic, which depend on the compute capability.

    Every `_rate` but tensor_rate is in thread instructions per cycle and SM, so that 32 is one warp instruction per
    cycle in the whole SM. Every `_latency` is in cycles, from issue until an instruction that needs the result may
    issue.

    fma_rate              fp32 add, multiply, multiply-add
    alu_rate              32-bit integer add, logic, shift, compare, select, minimum and maximum
    imad_rate             32-bit integer multiply and multiply-add
    half_rate             fp16 and bf16 arithmetic, in instructions; a packed one gives two results
    mufu_rate             reciprocal, square root, exponential, logarithm, sine, cosine, all approximate
    bit_rate              population count, leading zeros, reversal
    conversion_rate       between types of up to 32 bits
    wide_conversion_rate  to and from types of 64 bits
    memory_rate           loads and stores that leave a quadrant; the SM's pipe after it is Clock.shared_floor
    tensor_rate           multiply-adds of mma.sync per cycle and SM, fp16 or bf16 in and fp32 sums

    predicate_latency     from a compare to an instruction or branch with its predicate
    wide_imad_latency     32 x 32 + 64 bits, for addresses
    tensor_latency        of mma.m16n8k16

    sources  by field. Raises ValueError, naming the field, for a number that is missing or impossible.
    """

    fma_rate: float
    alu_rate: float
    imad_rate: float
    fp64_rate: float
    half_rate: float
    mufu_rate: float
    bit_rate: float
    conversion_rate: float
    wide_conversion_rate: float
    shuffle_rate: float
    vote_rate: float
    branch_rate: float
    memory_rate: float
    tensor_rate: float
    fma_latency: float
    alu_latency: float
    predicate_latency: float
    imad_latency: float
    wide_imad_latency: float
    fp64_latency: float
    half_latency: float
    mufu_latency: float
    conversion_latency: float
    shuffle_latency: float
    vote_latency: float
    branch_latency: float
    tensor_latency: float
    sources: Mapping[str, str]

    def __post_init__(self):
        object.__setattr__(self, "sources", MappingProxyType(dict(self.sources)))
        for name in _numbers(type(self)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                self._refuse(name, f"must be a number, got {value!r}")
            if not math.isfinite(value) or value < 0 or (value == 0 and name not in MAY_BE_ZERO):
                self._refuse(name, f"must be a positive, finite number, got {value!r}")
            if not self.sources.get(name, "").strip():
                self._refuse(name, "has no source")
            if name.endswith("_rate") and name != "tensor_rate" and value > LANES:
                self._refuse(name, f"is {value}, more than the {LANES} thread instructions that an SM issues a cycle")
            if name.endswith("_latency") and value < 1:
                self._refuse(name, f"is {value}; nothing is ready before the next cycle")
        if unknown := set(self.sources) - set(_numbers(type(self))):
            self._refuse(min(unknown), "has a source and is no field")

    @cached_property
    def arithmetic(self) -> tuple[float, ...]:
        """Return the numbers, to compare two of these."""
        return tuple(getattr(self, name) for name in _numbers(Rates))

    @property
    def _owner(self) -> str:
        return "rates"

    def _refuse(self, name: str, why: str):
        raise ValueError(f"{self._owner}: {name} {why}")

    def busy(self, pipe: str) -> float:
        """Return the cycles for which a warp instruction occupies a pipe of its quadrant.

        pipe  the name of a `_rate` without this ending. ValueError for another one, and for the tensor core, whose
              cycles depend on the shape: mma_busy()
        """
        if pipe == "tensor" or f"{pipe}_rate" not in _numbers(Rates):
            pipes = [name.removesuffix("_rate") for name in _numbers(Rates) if name.endswith("_rate")]
            raise ValueError(f"pipe must be one of {', '.join(sorted(set(pipes) - {'tensor'}))}, got {pipe!r}")
        return LANES / getattr(self, f"{pipe}_rate")

    def mma_busy(self, m: int, n: int, k: int) -> float:
        """Return the cycles for which an mma.sync of this shape occupies the tensor core of its quadrant."""
        return m * n * k / (self.tensor_rate / 4)


@dataclass(frozen=True, kw_only=True)
class Clock(Rates):
    """The timing constants of a card. Cycles are those of the SM clock.

    card             its name
    clock_mhz, sm_count, l2_bytes, dram_gb_per_s   from its Card: boost clock, datasheet bandwidth in 10^9 bytes

    Latencies of loads are from issue to the first instruction that needs the value, for 32 bits per lane, with the
    address ready. Tests that chase pointers through an index measure some 5 cycles more.
    shared_latency, l1_latency    hits
    load_64_extra, load_128_extra additional cycles for loads of 64 and 128 bits per lane
    l2_latency       a hit in the near half of L2
    l2_far_extra     additional cycles for the far half; 0 if L2 has one part
    dram_latency_ns  a miss in L2 with no other request in flight, nanoseconds

    A warp instruction occupies the SM's memory pipe for max(shared_floor, conflicts) cycles, where conflicts is the
    largest number of words that it accesses in one of the 32 banks. In L1 it takes at least bytes / l1_bytes_per_cycle,
    and l1_overhead + lines / l1_lines_per_cycle if it touches more than two lines of 128 bytes: l1_cycles().
    shared_floor, l1_overhead              cycles
    l1_bytes_per_cycle, l1_lines_per_cycle per SM

    l1_bytes         L1 and shared memory of an SM together; L1 gets what the resident blocks leave
    l2_share         the share of L2 that can be read repeatedly without misses; below 1 if each half keeps copies
    l2_bytes_per_cycle   reads, the whole GPU
    sm_bytes_per_cycle   from L2 to one SM
    dram_share           the share of the datasheet's bandwidth that a long read reaches
    dram_copy_share      the share that a long copy reaches, read and written bytes together

    inflight_bytes_per_sm, inflight_lines_per_sm   the most bytes and 128-byte lines that an SM can have in flight
    queue_per_quadrant   instructions that a quadrant can queue for the SM's memory pipe before its warps must wait
    slice_interval   cycles between two requests, of any kind, to one line in L2

    atomic_extra     additional cycles of an atomic with a result, compared with a hit in L2
    atomic_interval  cycles between two atomics on one address, of two lanes or two warps
    fence            cycles of fence.acq_rel.gpu if all writes of the thread have arrived
    sc_fence         cycles of fence.sc.gpu and membar.gl, to which __threadfence() is compiled
    block_fence, system_fence   cycles of fences for a block, and for the whole system with the host
    barrier_base, barrier_per_warp   cycles of bar.sync after its last warp has arrived; the second one per warp
    cluster_barrier  cycles of barrier.cluster after its last arrival, with the fence of its release
    cluster_barrier_relaxed   the same without that fence: barrier.cluster.arrive.relaxed
    cluster_latency  a load from shared memory of another block of the cluster; the bandwidth between two SMs is not
                     modelled
    async_copy_extra, bulk_copy_extra   additional cycles of cp.async and cp.async.bulk, compared with a load
    block_interval   cycles between the starts of two blocks, in the whole GPU
    block_start      cycles from the end of a block to the start of the block that replaces it

    launch_us        between two launches of a stream; host and driver determine it
    graph_gap_us     between two nodes in a graph of empty kernels in a row
    dependent_gap_us the same with programmatic dependent launch; equal to graph_gap_us if the card has none. Launches
                     do not overlap in this model, so all that a dependent launch gains is the shorter gap
    cooperative_extra_us  additional microseconds of a cooperative launch

    power_limit_w    by the datasheet
    idle_w, active_w watts at rest, and with the clocks up and the SMs waiting
    pj_per_byte_dram picojoules per byte from DRAM to a register; pj_per_byte_l2, pj_per_byte_l1: from L2, from L1
    pj_per_flop      picojoules per operation with its share of the instruction; a multiply-add has two operations
    pj_per_instruction   picojoules per warp instruction of any other kind
    """

    card: str
    clock_mhz: float
    sm_count: int
    l2_bytes: int
    dram_gb_per_s: float
    shared_latency: float
    shared_floor: float
    l1_latency: float
    load_64_extra: float
    load_128_extra: float
    l1_bytes: int
    l1_bytes_per_cycle: float
    l1_lines_per_cycle: float
    l1_overhead: float
    l2_latency: float
    l2_far_extra: float
    l2_share: float
    l2_bytes_per_cycle: float
    sm_bytes_per_cycle: float
    dram_latency_ns: float
    dram_share: float
    dram_copy_share: float
    inflight_bytes_per_sm: int
    inflight_lines_per_sm: int
    queue_per_quadrant: float
    slice_interval: float
    atomic_extra: float
    atomic_interval: float
    fence: float
    sc_fence: float
    block_fence: float
    system_fence: float
    barrier_base: float
    barrier_per_warp: float
    cluster_barrier: float
    cluster_barrier_relaxed: float
    cluster_latency: float
    async_copy_extra: float
    bulk_copy_extra: float
    block_interval: float
    block_start: float
    launch_us: float
    graph_gap_us: float
    dependent_gap_us: float
    cooperative_extra_us: float
    power_limit_w: float
    idle_w: float
    active_w: float
    pj_per_byte_dram: float
    pj_per_byte_l2: float
    pj_per_byte_l1: float
    pj_per_flop: float
    pj_per_instruction: float

    def __post_init__(self):
        super().__post_init__()
        for share in ("dram_share", "dram_copy_share", "l2_share"):
            if getattr(self, share) > 1:
                self._refuse(share, f"is {getattr(self, share)}; a share is at most 1")
        if self.sm_bytes_per_cycle < 32:
            self._refuse("sm_bytes_per_cycle", f"is {self.sm_bytes_per_cycle}, less than a sector of 32 bytes")
        for more, less, why in (
            ("l1_latency", "shared_latency", "a hit in L1 looks up a tag first"),
            ("l2_latency", "l1_latency", "L1 is on the way"),
            ("dram_cycles", "l2_latency", "L2 is on the way"),
            ("load_128_extra", "load_64_extra", "it carries more"),
            ("dram_share", "dram_copy_share", "a copy turns the memory around between reading and writing"),
            ("fence", "block_fence", "it reaches further"),
            ("sc_fence", "fence", "it orders more"),
            ("system_fence", "sc_fence", "it reaches further"),
            ("cluster_barrier", "cluster_barrier_relaxed", "it has a fence"),
            ("cluster_latency", "shared_latency", "it is further away"),
            ("launch_us", "graph_gap_us", "a graph was prepared"),
            ("graph_gap_us", "dependent_gap_us", "a dependent launch begins early"),
            ("power_limit_w", "active_w", "it bounds all of them"),
            ("active_w", "idle_w", "its clocks are up"),
            ("pj_per_byte_dram", "pj_per_byte_l2", "L2 is on the way"),
            ("pj_per_byte_l2", "pj_per_byte_l1", "L1 is on the way"),
            ("inflight_bytes_per_sm", "inflight_lines_per_sm", "a line under way has at least a sector"),
        ):
            if getattr(self, more) < getattr(self, less):
                named = "dram_latency_ns" if more == "dram_cycles" else more
                self._refuse(named, f"must be at least {less}: {getattr(self, more)} < {getattr(self, less)}; {why}")

    @property
    def _owner(self) -> str:
        return f"clock of the {self.card}"

    def l1_cycles(self, *, lines: int, conflicts: int, moved: int) -> float:
        """Return the cycles for which a warp's load that hits in L1 occupies the SM's memory pipe; `moved` in bytes."""
        tags = self.l1_overhead + lines / self.l1_lines_per_cycle if lines > 2 else 0
        return max(self.shared_floor, conflicts, moved / self.l1_bytes_per_cycle, tags)

    def at(self, clock_mhz: float) -> Clock:
        """Return the constants of the same card with its SMs at another clock.

        Constants in cycles stay the same, as L1, L2 and the path between them follow the SM clock (assumed for L2).
        DRAM keeps its bandwidth, and the nanoseconds that a miss takes longer than a hit in L2. The gaps between
        launches keep their microseconds (assumed: most of a plain launch is the host's time, and it is not known which
        part of a graph's gap follows the clock).
        """
        beyond_l2_ns = self.dram_latency_ns - self.l2_latency * 1e3 / self.clock_mhz
        return replace(
            self, clock_mhz=clock_mhz, dram_latency_ns=beyond_l2_ns + self.l2_latency * 1e3 / clock_mhz
        )  # fmt: skip

    @property
    def dram_cycles(self) -> float:
        """dram_latency_ns in cycles."""
        return self.dram_latency_ns * self.clock_mhz / 1e3

    @property
    def dram_bytes_per_cycle(self) -> float:
        """Bytes per cycle that a long read gets from DRAM, in the whole GPU."""
        return self.dram_share * self.dram_gb_per_s * 1e3 / self.clock_mhz

    @property
    def dram_turn(self) -> float:
        """Additional cycles for each byte read and byte written in turn, so that a copy reaches dram_copy_share."""
        return 2 * (self.dram_share / self.dram_copy_share - 1) / self.dram_bytes_per_cycle


def _numbers(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind) if field.name not in ("card", "sources"))


def find_clock(card: Card) -> Clock:
    """Return the timing constants of `card`, with the clock, SMs, L2 and bandwidth of the Card.

    Raises ValueError with the card's name if there are none, and with the field's name if a value is impossible.
    """
    if card.name not in CLOCKS:
        raise ValueError(f"{card.name}: no timing constants; expected one of {', '.join(CLOCKS)}")
    clock = replace(CLOCKS[card.name], **_from_card(card))
    if clock.l1_bytes < card.shared_per_sm:
        clock._refuse("l1_bytes", f"is {clock.l1_bytes}, less than the shared memory of an SM, {card.shared_per_sm}")
    return clock


def _from_card(card: Card) -> dict:
    return {
        "clock_mhz": card.boost_clock_mhz, "sm_count": card.sm_count, "l2_bytes": card.l2_bytes,
        "dram_gb_per_s": card.memory_gb_per_s,
    }  # fmt: skip


# ---- Numbers and their sources ----

_CHIPS = {
    "TU104": ("T4", "RTX 2080 SUPER"),
    "GA102": ("RTX 3090", "RTX A6000", "A40"),
    "AD102": ("RTX 4090", "L40"),
    "GA100": ("A100", "A100 40GB"),
    "GH100": ("H100", "H200", "H100 PCIe", "GH200"),
}
_CHIP = {board: chip for chip, boards in _CHIPS.items() for board in boards}


@dataclass(frozen=True)
class _Number:
    value: float
    source: str
    board: str | None = None  # on which it was measured
    published: bool = False

    def of(self, card: str | None) -> str:
        """Write the source as it reads for this card; None: for a compute capability."""
        if self.published:
            return f"published: {self.source}"
        if self.board is None:
            return f"assumed: {self.source}"
        if self.board == card:
            return f"measured on this card: {self.source}"
        if card is None:
            return f"measured on the {self.board}: {self.source}"
        if _CHIP.get(self.board, self.board) == _CHIP.get(card, card):
            return f"measured on the {self.board}, a sister card: {self.source}"
        return f"assumed, as measured on the {self.board}: {self.source}"


def _measured(value: float, board: str, source: str) -> _Number:
    return _Number(value, source, board=board)


def _published(value: float, source: str) -> _Number:
    return _Number(value, source, published=True)


def _assumed(value: float, source: str) -> _Number:
    return _Number(value, source)


def _parts(kind: type, card: str | None, *tables: Mapping[str, _Number]) -> dict:
    """Collect the fields of `kind` from tables; later ones take precedence."""
    known = {name: number for table in tables for name, number in table.items()}
    if missing := set(_numbers(kind)) - set(known):
        raise ValueError(f"{card or 'rates'}: {min(missing)} is missing")
    return {name: number.value for name, number in known.items()} | {
        "sources": {name: number.of(card) for name, number in known.items()}
    }


_GUIDE = "CUDA C++ Programming Guide, throughput of native arithmetic instructions, to be checked"
_AMALI_3090 = "ShihengCao/AMALi, hardware/NVIDIA_GeForce_RTX_3090/stats.txt"
_AMALI_A100 = "ShihengCao/AMALi, hardware/NVIDIA_A100_80GB/stat.txt"
_ARABEL = "arabel1a/gpu-micro-bench, results/memtest/results.md"
_ARABEL_ARITHMETIC = "arabel1a/gpu-micro-bench, results/arithm_gen/results.md"
_BENCHES = "te42kyfo/gpu-benches, "
_STRIDES = f"{_BENCHES}gpu-strides/"
_DEWING = "markdewing/AI_kernels, latency/README.md, clocks not locked"
_HUERTA = (
    "simulator of Huerta et al., arXiv 2503.20481: dzwduan/modern-gpu-simulator-micro-2025, "
    "tested-cfgs/SM86_RTXA6000/gpgpusim.config, much the same in its files for other cards"
)
_ACCEL = "accel-sim/gpgpu-sim_distribution, configs/tested-cfgs/"
_B300 = "ademeure/QuickRunCUDA, b300_clean/"
_B300_SYNC = f"{_B300}08_sync_primitives.md"
_H100_STUDY = "CUDA Performance Study, NVIDIA H100 SXM5, a public README whose repository is to be named"
_HAZY = "hazyresearch.stanford.edu, blog of 27 May 2025, as mlops.substack.com/p/one-megakernel-to-rule-llama-1b has it"
_AZURE = "samuel-bohman/AI-benchmarking-guide, Azure_Results/"
_JIA = "Jia et al., Dissecting the NVidia Turing T4 GPU, arXiv 1903.07486, to be checked"
_ABDELKHALIK = "Abdelkhalik et al., arXiv 2208.11174, to be checked"
_SUN = "Sun et al., Dissecting tensor cores, arXiv 2206.02874, to be checked"
_LUO = "Luo et al., arXiv 2402.13499, to be checked"
_JARMUSCH = "Jarmusch et al., arXiv 2507.10789, to be checked"
_WHITEPAPER = "NVIDIA's architecture whitepaper, to be checked"

# ---- Arithmetic, by compute capability ----

_EVERY_RATE = {
    "alu_rate": _published(64, _GUIDE), "imad_rate": _published(64, _GUIDE), "bit_rate": _published(16, _GUIDE),
    "mufu_rate": _published(16, f"{_GUIDE}; 15.97 in {_AMALI_3090} and 15.96 in {_AMALI_A100}"),
    "conversion_rate": _published(16, _GUIDE), "wide_conversion_rate": _published(16, _GUIDE),
    "shuffle_rate": _published(32, f"{_GUIDE}; one each 4 cycles and quadrant in {_B300}A6_PER_PIPE_REFERENCE.md"),
    "vote_rate": _published(64, _GUIDE),
    "branch_rate": _published(128, f"{_HUERTA}: a branch a cycle and quadrant"),
    "memory_rate": _published(64, f"{_HUERTA}: a memory instruction leaves a quadrant each 2 cycles"),
    "fma_latency": _measured(4, "RTX 3090", f"4.07 in {_AMALI_3090}"),
    "alu_latency": _measured(4, "RTX 3090", f"4.17 to 4.21 in {_AMALI_3090}"),
    "predicate_latency": _published(13, f"{_HUERTA}; control codes that ptxas writes, to be checked"),
    "imad_latency": _published(4, f"{_JIA}; 4.25 on a B300, {_B300}M15_V9_LATENCY_LADDER.md"),
    "wide_imad_latency": _published(5, _JIA),
    "half_latency": _measured(4, "RTX 3090", f"4.26 in {_AMALI_3090}"),
    "mufu_latency": _published(18, f"the function alone, without scaling: {_ABDELKHALIK}; with it 23, {_AMALI_3090}"),
    "conversion_latency": _published(14, f"Jia et al. on Volta, arXiv 1804.06826, to be checked; {_ABDELKHALIK}"),
    "shuffle_latency": _published(24, f"22 to 25: {_JIA}; Zhang et al., arXiv 2004.05371, to be checked"),
    "vote_latency": _assumed(10, "6 to 10 cycles, from memory, to be checked"),
    "branch_latency": _published(4, f"{_HUERTA}: 2 cycles after the 2 of reading operands"),
}  # fmt: skip
_AMPERE_LATER = {
    "fma_rate": _published(128, _GUIDE), "fp64_rate": _published(2, _GUIDE), "half_rate": _published(64, _GUIDE),
    "wide_conversion_rate": _published(2, _GUIDE),
    "tensor_rate": _published(256, f"GeForce cards have half the rate with fp32 sums: {_WHITEPAPER}"),
    "fp64_latency": _measured(55, "RTX 3090", f"55.0 in {_AMALI_3090}"),
    "tensor_latency": _published(33, f"m16n8k16 on a 3070 Ti: {_SUN}"),
}  # fmt: skip
_FULL_TENSOR_RATE = _published(512, f"no half rate on professional boards: {_WHITEPAPER}")
_RATES = {
    (7, 5): _EVERY_RATE | {
        "fma_rate": _published(64, _GUIDE), "fp64_rate": _published(2, _GUIDE), "half_rate": _published(64, _GUIDE),
        "wide_conversion_rate": _published(2, _GUIDE),
        "tensor_rate": _published(512, "65 TFLOPS of the T4 datasheet, to be checked"),
        "fma_latency": _published(4, f"{_ACCEL}SM75_RTX2060/gpgpusim.config; {_JIA}"),
        "alu_latency": _published(4, f"{_ACCEL}SM75_RTX2060/gpgpusim.config; {_JIA}"),
        "half_latency": _measured(6, "RTX 2080 SUPER", f"1.5 times the fp32 chain in {_ARABEL_ARITHMETIC}"),
        "fp64_latency": _published(48, _JIA),
        "tensor_latency": _assumed(32, f"m16n8k16 as two of m16n8k8, some 14 to 20 each: {_JIA}"),
    },
    (8, 0): _EVERY_RATE | {
        "fma_rate": _published(64, f"{_GUIDE}; 63.5 in {_AMALI_A100}"),
        "fp64_rate": _published(32, f"{_GUIDE}; 31.9 in {_AMALI_A100}"),
        "half_rate": _published(128, f"{_GUIDE}; 108 in {_AMALI_A100}"),
        "tensor_rate": _measured(1024, "A100", f"1,018 in {_AMALI_A100}"),
        "fma_latency": _measured(4, "A100", f"4.08 in {_AMALI_A100}"),
        "alu_latency": _measured(4, "A100", f"4.19 to 4.22 in {_AMALI_A100}"),
        "half_latency": _assumed(5, f"between the RTX 3090's 4.3 and the 8.2 of {_AMALI_A100}"),
        "fp64_latency": _measured(6, "A100", f"6.07 in {_AMALI_A100}"),
        "tensor_latency": _measured(25, "A100", f"25.1 for m16n16k16 in {_AMALI_A100}; m16n8k16 24.7: {_SUN}"),
    },
    (8, 6): _EVERY_RATE | _AMPERE_LATER | {
        "fma_rate": _published(128, f"{_GUIDE}; 128 on the RTX 3090 by a copy of Accel-Sim's tests"),
        "alu_rate": _published(64, f"{_GUIDE}; 63.3 in {_AMALI_3090}"),
        "half_rate": _published(64, f"{_GUIDE}; 62 in {_AMALI_3090}"),
        "tensor_rate": _measured(256, "RTX 3090", f"255.8 in {_AMALI_3090}"),
    },
    (8, 9): _EVERY_RATE | _AMPERE_LATER,
    (9, 0): _EVERY_RATE | {
        "fma_rate": _published(128, _GUIDE), "fp64_rate": _published(64, _GUIDE), "half_rate": _published(128, _GUIDE),
        "conversion_rate": _published(64, _GUIDE),
        "tensor_rate": _published(1270, f"mma.sync reaches 62 % of the 2,048 that wgmma has: {_LUO}"),
        "fp64_latency": _published(8, f"{_ACCEL}SM90_H100/gpgpusim.config"),
        "half_latency": _measured(4, "B300", f"4.04 in {_B300}CHAIN_FP_MUFU_LATENCY.md"),
        "tensor_latency": _published(32, _LUO),
    },
    (12, 0): _EVERY_RATE | _AMPERE_LATER | {
        "alu_rate": _published(128, f"integer and fp32 share their units: {_WHITEPAPER}, RTX Blackwell"),
        "fma_latency": _published(4, _JARMUSCH), "alu_latency": _published(4, _JARMUSCH),
    },
}  # fmt: skip
RATES = {capability: Rates(**_parts(Rates, None, table)) for capability, table in _RATES.items()}

# ---- The rest, by chip ----

_LESS_ADDRESS = "less 5 for the address arithmetic of its pointer chase"
_LINES = "0.7 + lines / 4 cycles, which fits the tag stage at strides of 0 to 35 words with a mean error of 4 %: "
_TWO_CYCLES = "16 load/store lanes an SM: a warp's access takes 2 cycles"
_POOL = "L1 and shared memory of an SM together"
_SMALL_L2_LINK = "64 bytes a cycle to an SM: Jia et al., arXiv 1804.06826, and NVIDIA's A100 whitepaper, to be checked"
_WEAK_ENERGY = "from memory of Delestrac et al. 2024 and Arafa et al., arXiv 2002.07795, to be checked"
_ADD_TO_FFMA = f"0.7 of a warp's multiply-adds, as an integer add needs on a B300, {_B300}M11_PER_PIPE_ENERGY.md"
_WIDER = "on an RTX A6000: Huerta et al., arXiv 2503.20481, table of loads, to be checked"
_TWO_SECTORS = "two sectors for each of inflight_lines_per_sm"
_ECO = "nordeim/openclaw-curated-skills, hongping-zh/ecocompute/references/hardware_profiles.md"
_SYNC = "neozhang307/SyncMicrobenchmark, Implicit_Barrier/CudaGraph/README.md"
_A100_WATTS = f"least squares over {_BENCHES}gpu-roofline/alex_a100_40.txt, worst miss 5 W"
_GH200_WATTS = f"least squares over {_BENCHES}gpu-roofline/h200.txt, worst miss 10 W"
_NOT_NAMED = "a public README of September 2026, its repository to be named"
_BARRIER = f"22 + 2 a warp in {_B300}M15_V9_LATENCY_LADDER.md; 28 to 77 for 8 to 32 warps in {_B300_SYNC}"
_TOGETHER = "the ratio of copy to read of the RTX 5090, 0.946, times dram_share"
_NO_DEPENDENT = "no dependent launch before compute capability 9.0, so as graph_gap_us"
_LIMIT = "NVIDIA's datasheet, to be checked"

_EVERY_CARD = {
    "load_64_extra": _published(2, _WIDER),
    "load_128_extra": _published(6, _WIDER),
    "l1_bytes_per_cycle": _measured(128, "RTX 3090", f"the path, of which 128-bit loads get 120 in {_AMALI_3090}"),
    "l1_lines_per_cycle": _measured(4, "A100", f"{_LINES}{_STRIDES}a100.txt"),
    "l1_overhead": _measured(0.7, "A100", f"{_LINES}{_STRIDES}a100.txt"),
    "l2_far_extra": _assumed(0, "one L2, or none of its halves seen to be slower"),
    "l2_share": _assumed(1, f"one L2; an L40 reads 91 of its 96 MB without a miss in {_BENCHES}gpu-l2-cache/l40.txt"),
    "sm_bytes_per_cycle": _published(64, _SMALL_L2_LINK),
    "queue_per_quadrant": _published(4, _HUERTA),
    "slice_interval": _assumed(
        1, "a slice of L2 moves 64 bytes a cycle, by NVIDIA's A100 whitepaper, to be checked; so one request in each"
    ),
    "atomic_extra": _measured(15, "RTX 3090", f"270.3 cycles in {_AMALI_3090}, less a hit in L2"),
    "atomic_interval": _published(
        1, "one operation a clock on a common address: NVIDIA's Kepler GK110 whitepaper, to be checked; "
        f"1.3 cycles a warp's request on a B300 in {_B300}07_atomics.md"
    ),
    "fence": _published(186, f"{_HUERTA}; 186 on a B300, too, in notes of ademeure/QuickRunCUDA"),
    "sc_fence": _measured(285, "B300", f"277 to 292 with nothing under way in {_B300_SYNC}"),
    "block_fence": _measured(16, "B300", f"9 to 16 in {_B300_SYNC}; 53 in the simulator of Huerta et al."),
    "system_fence": _measured(1750, "B300", f"{_B300_SYNC}; 2,900 in the simulator of Huerta et al."),
    "barrier_base": _measured(22, "B300", _BARRIER), "barrier_per_warp": _measured(2, "B300", _BARRIER),
    "cluster_barrier": _measured(370, "B300", f"{_B300}M15_V9_LATENCY_LADDER.md; 373 in {_B300_SYNC}"),
    "cluster_barrier_relaxed": _measured(102, "B300", f"a cluster of 2 in {_B300_SYNC}"),
    "cluster_latency": _measured(180, "B300", f"clusters of 3 to 8, 215 in one of 2: {_B300}DSMEM_REFERENCE.md; 181 to "
                                 "213 on an H800, as others cite Luo et al., arXiv 2501.12084"),
    "async_copy_extra": _published(19, _HUERTA),
    "bulk_copy_extra": _assumed(170, "over a load, from memory of Luo et al., arXiv 2501.12084, to be checked"),
    "block_interval": _measured(
        1.1, "B300", f"543 us for a million blocks at 2,032 MHz in {_B300}10_launch_overhead.md"
    ),
    "block_start": _assumed(
        320, "fitted: what a block of 32 threads with one read each takes on an L40 beyond all else here, by "
        f"{_BENCHES}gpu-stream; held against the other cards, whose rows had been looked at before"
    ),
    "launch_us": _assumed(
        2, f"the host's: about 2.0 in {_SYNC}, card not stated; 1.85 on a B300 in {_B300}10_launch_overhead.md"
    ),
    "graph_gap_us": _measured(
        0.58, "RTX 5070 Ti laptop",
        f"github.com/ahrefs/ocannl/issues/488; 0.56 on a B300 in {_B300}10_launch_overhead.md"
    ),
    "dependent_gap_us": _assumed(0.58, _NO_DEPENDENT),
    "cooperative_extra_us": _assumed(
        0.75, f"halfway between none in {_SYNC}, and 1.5 on a B300 in {_B300}10_launch_overhead.md"
    ),
    "pj_per_byte_l2": _assumed(38, f"30 to 45: {_WEAK_ENERGY}"),
    "pj_per_byte_l1": _assumed(10, f"8 to 12: {_WEAK_ENERGY}"),
}  # fmt: skip
_ONE_CYCLE = f"a 32-bit load a cycle: 1.01 to 1.02 at stride 1 in {_STRIDES}"
_TURING = {
    "queue_per_quadrant": _published(3, f"{_HUERTA}: on Turing"),
    "shared_latency": _published(24, f"28 on a GTX 1650 in caps-tum/mt4g, sampleResults/turing.csv, {_LESS_ADDRESS}"),
    "shared_floor": _published(2, f"{_TWO_CYCLES}: {_JIA}"),
    "l1_latency": _published(28, f"32 in {_ACCEL}SM75_RTX2060/gpgpusim.config and by {_JIA}, less address arithmetic"),
    "l1_bytes": _published(96 * KIB, f"{_POOL}: {_WHITEPAPER}, Turing"),
    "l1_bytes_per_cycle": _published(64, _JIA),
    "l2_latency": _measured(190, "RTX 2080 SUPER", f"116 ns in {_ARABEL}, 188 cycles by {_JIA}"),
    "l2_bytes_per_cycle": _published(800, f"1,270 GB/s on a T4: {_JIA}"),
    "dram_latency_ns": _measured(236, "RTX 2080 SUPER", f"234 to 238 ns in {_ARABEL}"),
    "inflight_lines_per_sm": _published(256, f"L1 misses in {_ACCEL}SM75_RTX2060/gpgpusim.config"),
    "inflight_bytes_per_sm": _assumed(16 * KIB, _TWO_SECTORS),
}  # fmt: skip
_GA102 = {
    "shared_latency": _measured(24, "RTX 3090", f"29.0 in {_AMALI_3090}, {_LESS_ADDRESS}"),
    "shared_floor": _measured(2, "RTX 3090", f"63.9 bytes a cycle in {_AMALI_3090}; 2.00 in {_STRIDES}a40.txt"),
    "l1_latency": _measured(34, "RTX 3090", f"39.4 by the 20.2 to 23.1 ns of {_ARABEL}, {_LESS_ADDRESS}"),
    "l1_bytes": _published(128 * KIB, f"{_POOL}: {_WHITEPAPER}, GA102"),
    "l2_latency": _measured(256, "RTX 3090", f"131 ns at 1.95 GHz, 150 ns at 1.71 GHz in {_ARABEL}"),
    "l2_bytes_per_cycle": _measured(1400, "A40", f"2,440 GB/s at 1,740 MHz in {_BENCHES}gpu-cache/a40.txt"),
    "dram_latency_ns": _measured(266, "RTX 3090", f"264 to 270 ns in {_ARABEL}"),
    "dram_share": _measured(
        0.955, "RTX 3090", "a sum of 256 million fp32 at 889 to 895 GB/s, clock locked: Cro22/mojo-cuda-ampere, "
        "docs/roofline-3090.md"
    ),
    "dram_copy_share": _assumed(0.9, _TOGETHER),
    "inflight_lines_per_sm": _published(384, f"L1 misses in the configuration of {_AMALI_3090}"),
    "inflight_bytes_per_sm": _assumed(24 * KIB, _TWO_SECTORS),
    "active_w": _assumed(80, "a guess for boards of 300 to 350 W"),
    "pj_per_byte_dram": _measured(183, "A40", f"(204 W - active_w) / 679 GB/s in {_BENCHES}gpu-roofline/alex_a40.txt"),
    "pj_per_flop": _measured(6.3, "A40", f"94 W for 14.8 TFLOPS more in {_BENCHES}gpu-roofline/alex_a40.txt"),
    "pj_per_instruction": _assumed(280, _ADD_TO_FFMA),
}  # fmt: skip
_AD102 = {
    "shared_latency": _assumed(
        25, "one more than on GA102: 30.03 for an RTX 4090 in dzwduan/modern-gpu-simulator-micro-2025, "
        f"tests/remodeled_trace, whose measurement is to be checked, {_LESS_ADDRESS}"
    ),
    "shared_floor": _measured(2, "L40", f"64.0 bytes a cycle and SM from L1 in {_BENCHES}gpu-cache/l40.txt"),
    "l1_latency": _measured(34, "L40", f"36.0, less load_64_extra, in {_BENCHES}gpu-latency/l40.txt"),
    "l1_bytes": _published(128 * KIB, f"{_POOL}: {_WHITEPAPER}, Ada"),
    "l2_latency": _measured(276, "L40", f"276.5 in {_BENCHES}gpu-latency/l40.txt"),
    "l2_bytes_per_cycle": _measured(2100, "L40", f"5,230 GB/s at 2,490 MHz in {_BENCHES}gpu-l2-cache/l40.txt"),
    "dram_latency_ns": _measured(253, "L40", f"631 cycles at 2,490 MHz in {_BENCHES}gpu-latency/l40.txt"),
    "inflight_lines_per_sm": _published(384, f"L1 misses in {_ACCEL}SM89_RTX4060_LAPTOP/gpgpusim.config"),
    "inflight_bytes_per_sm": _assumed(24 * KIB, _TWO_SECTORS),
    "active_w": _assumed(80, "a guess for boards of 300 to 450 W"),
    "pj_per_byte_dram": _measured(141, "L40", f"(199 W - active_w) / 845 GB/s in {_BENCHES}gpu-roofline/genoa_l40.txt"),
    "pj_per_flop": _measured(5.5, "L40", f"{_BENCHES}gpu-roofline/genoa_l40.txt"),
    "pj_per_instruction": _assumed(250, _ADD_TO_FFMA),
}  # fmt: skip
_GH100 = {
    "shared_latency": _measured(24, "H100", f"28.6 in {_H100_STUDY}, {_LESS_ADDRESS}"),
    "shared_floor": _measured(1, "GH200", f"{_ONE_CYCLE}h200.txt"),
    "l1_latency": _measured(34, "H100", f"40.2 in {_H100_STUDY}, {_LESS_ADDRESS}; 34 to 35 in "
                            f"{_BENCHES}gpu-latency/h100_pcie.txt"),
    "l1_bytes": _published(256 * KIB, f"{_POOL}: {_WHITEPAPER}, H100"),
    "l2_latency": _measured(262, "H100", f"259.9 in {_H100_STUDY}; 265.5 in {_BENCHES}gpu-latency/h100_pcie.txt"),
    "l2_far_extra": _assumed(60, f"one hop; the 475 of {_BENCHES}gpu-latency/h100_pcie.txt holds misses as well"),
    "dram_latency_ns": _measured(288, "H100", f"570.5 cycles at 1.98 GHz in {_H100_STUDY}; 370 ns, far apart, in "
                                 f"{_BENCHES}gpu-latency/h100_pcie.txt"),
    "inflight_lines_per_sm": _published(512, f"L1 misses in {_ACCEL}SM90_H100/gpgpusim.config"),
    "inflight_bytes_per_sm": _assumed(32 * KIB, _TWO_SECTORS),
    "atomic_extra": _published(60, "325 cycles in ShihengCao/AMALi, hardware/ISA/Hopper.py, less a hit in L2"),
    "launch_us": _published(2.1, f"the host's, on an H100: {_HAZY}, to be checked"),
    "graph_gap_us": _measured(1.3, "H100", _HAZY),
    "dependent_gap_us": _assumed(0.5, "0.3 to 0.7 with an early trigger, a guess"),
    "power_limit_w": _published(700, _LIMIT),
    "active_w": _measured(119, "GH200", _GH200_WATTS),
    "pj_per_byte_dram": _measured(119, "GH200", _GH200_WATTS),
    "pj_per_byte_l2": _assumed(30, f"25 to 35: {_WEAK_ENERGY}"),
    "pj_per_byte_l1": _assumed(6, f"5 to 8: {_WEAK_ENERGY}"),
    "pj_per_flop": _measured(5.6, "GH200", _GH200_WATTS),
    "pj_per_instruction": _assumed(250, _ADD_TO_FFMA),
}  # fmt: skip

_NUMBERS = {
    "T4": _TURING | {
        "dram_share": _measured(0.83, "T4", "an add of two arrays at 265 GB/s: NVIDIA developer blog, An Even Easier "
                                "Introduction to CUDA; a read alone may reach more"),
        "dram_copy_share": _measured(0.77, "T4", "246 GB/s, the kernel not stated, in a public report to be named"),
        "graph_gap_us": _assumed(1, "an older card than those measured, a guess"),
        "dependent_gap_us": _assumed(1, _NO_DEPENDENT),
        "power_limit_w": _published(70, _LIMIT), "idle_w": _assumed(10, "9 to 10, from memory, to be checked"),
        "active_w": _assumed(25, "a guess for a board of 70 W"),
        "pj_per_byte_dram": _assumed(180, "about as on the A40, which has the same kind of memory"),
        "pj_per_flop": _assumed(8, "above GA102's 6.3, as the process is older; a guess"),
        "pj_per_instruction": _assumed(360, _ADD_TO_FFMA),
    },
    "RTX 3090": _GA102 | {
        "l2_bytes_per_cycle": _measured(1390, "RTX 3090", f"1,386 in {_AMALI_3090}"),
        "power_limit_w": _published(350, _LIMIT),
        "idle_w": _measured(25, "RTX 3090", "8 to 30 on four boards: github.com/ilya-zlobintsev/LACT/issues/908"),
    },
    "RTX A6000": _GA102 | {
        "tensor_rate": _FULL_TENSOR_RATE, "power_limit_w": _published(300, _LIMIT),
        "idle_w": _assumed(25, "about as on the RTX 3090"),
    },
    "A40": _GA102 | {
        "tensor_rate": _FULL_TENSOR_RATE, "power_limit_w": _published(300, _LIMIT),
        "idle_w": _assumed(25, "about as on the RTX 3090"),
    },
    "RTX 4090": _AD102 | {
        "l2_latency": _measured(280, "RTX 4090", f"296 in {_DEWING}; 276.5 on the L40, {_BENCHES}gpu-latency/l40.txt"),
        "l2_bytes_per_cycle": _assumed(1890, "the L40's 2,100, as it has 128 SMs to the L40's 142"),
        "dram_latency_ns": _measured(252, "RTX 4090", f"636 cycles in {_DEWING}, taken as 2,520 MHz"),
        "dram_share": _assumed(0.955, "as on the RTX 3090, whose memory is GDDR6X too"),
        "dram_copy_share": _assumed(0.9, _TOGETHER),
        "power_limit_w": _published(450, _LIMIT),
        "idle_w": _assumed(17, f"a 4090 D: {_ECO}"),
    },
    "L40": _AD102 | {
        "tensor_rate": _published(256, "the 181 TFLOPS of the L40 datasheet, which are those without sparsity"),
        "dram_share": _measured(0.979, "L40", f"846 GB/s at 130 to 200 MB in {_BENCHES}gpu-l2-cache/l40.txt; 797 from "
                                "1.2 GB on, with 32 streams far apart"),
        "dram_copy_share": _assumed(0.926, _TOGETHER),
        "power_limit_w": _published(300, _LIMIT), "idle_w": _assumed(35, "a guess for a passively cooled board"),
    },
    "RTX 5090": {
        "shared_latency": _published(25, f"30 on GB203: {_JARMUSCH}; {_LESS_ADDRESS}"),
        "shared_floor": _assumed(2, "as on GA102 and AD102"),
        "l1_latency": _measured(39, "RTX 5090", f"44 in {_DEWING}, {_LESS_ADDRESS}"),
        "l1_bytes": _published(128 * KIB, f"{_POOL}: {_WHITEPAPER}, RTX Blackwell"),
        "l2_latency": _measured(360, "RTX 5090", f"360 in {_DEWING}"),
        "l2_bytes_per_cycle": _assumed(2700, "16 a cycle and SM, a little above AD102"),
        "dram_latency_ns": _measured(380, "RTX 5090", f"936 cycles in {_DEWING}, so 360 to 390 ns by its clock"),
        "dram_share": _measured(0.896, "RTX 5090", f"a sum at 1,607 GB/s, {_NOT_NAMED}"),
        "dram_copy_share": _measured(0.848, "RTX 5090", f"1,520 GB/s, {_NOT_NAMED}"),
        "inflight_lines_per_sm": _assumed(384, "as in the files for AD102"),
        "inflight_bytes_per_sm": _assumed(24 * KIB, _TWO_SECTORS),
        "dependent_gap_us": _assumed(0.43, f"0.15 less in a graph, as on a B300, {_B300}10_launch_overhead.md"),
        "power_limit_w": _published(575, _LIMIT),
        "idle_w": _measured(22, "RTX 5090", _ECO),
        "active_w": _assumed(100, "a guess for a board of 575 W"),
        "pj_per_byte_dram": _assumed(130, "a little below AD102, a guess"),
        "pj_per_flop": _assumed(4, "below AD102's 5.5, a guess"), "pj_per_instruction": _assumed(180, _ADD_TO_FFMA),
    },
    "A100": {
        "shared_latency": _measured(23, "A100", f"29.0 in {_AMALI_A100}; 23 with the address ready, {_ABDELKHALIK}"),
        "shared_floor": _measured(1, "A100", f"127.8 bytes a cycle in {_AMALI_A100}; {_ONE_CYCLE}a100.txt"),
        "l1_latency": _measured(33, "A100", f"37.9 in {_AMALI_A100}, {_LESS_ADDRESS}; 36.0 for 64-bit pointers in "
                                f"{_BENCHES}cuda-latency/a100_80.txt"),
        "l1_bytes": _published(192 * KIB, f"{_POOL}: {_WHITEPAPER}, A100"),
        "l1_bytes_per_cycle": _measured(128, "A100", f"the path, of which 128-bit loads get 120 in {_AMALI_A100}"),
        "l2_latency": _measured(211, "A100", f"211.0 in {_BENCHES}cuda-latency/a100_80.txt"),
        "l2_far_extra": _measured(52, "A100", f"263 for a buffer that is not near in {_AMALI_A100}, less l2_latency"),
        "l2_share": _measured(0.7, "A100", f"up to 28 of 40 MiB at full speed: {_BENCHES}gpu-l2-cache/a100_80.txt"),
        "l2_bytes_per_cycle": _measured(3830, "A100", f"5,400 GB/s at 1,410 MHz in {_BENCHES}gpu-l2-cache/a100_80.txt"),
        "dram_latency_ns": _measured(327, "A100", f"460.8 cycles at 1,410 MHz in {_AMALI_A100}; 403 ns, far apart, in "
                                     f"{_BENCHES}cuda-latency/a100_80.txt"),
        "dram_share": _measured(
            0.92, "A100", f"1,880 GB/s at 70 to 110 MB in {_BENCHES}gpu-l2-cache/a100_80.txt; 1,732 from 700 MB on; a "
            f"dot product at 1,750 in {_AZURE}ND_A100_v4_results.md"
        ),
        "dram_copy_share": _measured(0.79, "A100", f"1,610 GB/s in {_AZURE}ND_A100_v4_results.md"),
        "inflight_lines_per_sm": _published(512, f"L1 misses in the configuration of {_AMALI_A100}"),
        "inflight_bytes_per_sm": _assumed(32 * KIB, _TWO_SECTORS),
        "atomic_extra": _assumed(60, f"as on the H100; 382 cycles in {_AMALI_A100} may be its far half"),
        "graph_gap_us": _measured(1.3, "H100", _HAZY), "dependent_gap_us": _assumed(1.3, _NO_DEPENDENT),
        "power_limit_w": _published(400, _LIMIT), "idle_w": _assumed(50, "45 to 55, from memory, to be checked"),
        "active_w": _measured(59, "A100 40GB", _A100_WATTS),
        "pj_per_byte_dram": _measured(122, "A100 40GB", _A100_WATTS),
        "pj_per_byte_l2": _assumed(35, f"30 to 40: {_WEAK_ENERGY}"),
        "pj_per_byte_l1": _assumed(8, f"6 to 10: {_WEAK_ENERGY}"),
        "pj_per_flop": _measured(5.3, "A100 40GB", _A100_WATTS),
        "pj_per_instruction": _assumed(240, _ADD_TO_FFMA),
    },
    "H100": _GH100 | {
        "l2_share": _measured(0.68, "H100 PCIe", f"34 of 50 MiB before reads slow down in "
                              f"{_BENCHES}gpu-l2-cache/h100_pcie.txt"),
        "l2_bytes_per_cycle": _measured(4550, "H100 PCIe", f"6,900 GB/s at 1,755 MHz with 114 SMs in "
                                        f"{_BENCHES}gpu-l2-cache/h100_pcie.txt, for 132"),
        "dram_share": _measured(0.95, "H100", f"3.18 TB/s, a dot product, in {_AZURE}ND_H100_v5_results.md"),
        "dram_copy_share": _measured(0.866, "H100", f"2.90 TB/s in {_AZURE}ND_H100_v5_results.md"),
        "idle_w": _assumed(70, "65 to 75, from memory, to be checked"),
    },
    "H200": _GH100 | {
        "l2_share": _measured(0.67, "GH200", f"40 of 60 MiB before reads slow down in {_BENCHES}gpu-l2-cache/h200.txt"),
        "l2_bytes_per_cycle": _measured(4920, "GH200", f"9,750 GB/s at 1,980 MHz in {_BENCHES}gpu-l2-cache/h200.txt"),
        "dram_share": _measured(0.933, "H200", f"4.48 TB/s, a dot product, in {_AZURE}ND_H200_v5_results.md"),
        "dram_copy_share": _measured(0.835, "H200", f"4.01 TB/s in {_AZURE}ND_H200_v5_results.md"),
        "idle_w": _assumed(75, "70 to 80, from memory, to be checked"),
    },
}  # fmt: skip


def _clock(card: Card) -> Clock:
    own = {name: _published(value, card.source) for name, value in _from_card(card).items()}
    tables = (_RATES[card.capability], _EVERY_CARD, own, _NUMBERS[card.name])
    return Clock(card=card.name, **_parts(Clock, card.name, *tables))


def _fictional(laptop: Card, real: Clock) -> Clock:
    """Make the constants of a fictional card from a real one's; those of the whole GPU are scaled by the SM count."""
    scaled = ("l2_bytes_per_cycle", "power_limit_w", "idle_w", "active_w")
    numbers = _from_card(laptop) | {name: getattr(real, name) * laptop.sm_count / real.sm_count for name in scaled}
    numbers["l1_bytes"] = -(-laptop.shared_per_sm // (64 * KIB)) * 64 * KIB
    sources = {name: f"assumed: fictional, as the {real.card}: {text}" for name, text in real.sources.items()}
    sources |= {name: f"assumed: the {real.card}'s by the number of SMs" for name in scaled}
    sources |= {name: f"assumed: {laptop.source}" for name in _from_card(laptop)}
    sources["l1_bytes"] = "assumed: room for its shared memory, which is Hopper's"
    return replace(real, card=laptop.name, **numbers, sources=sources)


CLOCKS = {card.name: _clock(card) for card in CARDS if card.name in _NUMBERS}
CLOCKS["laptop"] = _fictional(find_card("laptop"), CLOCKS["RTX 4090"])
