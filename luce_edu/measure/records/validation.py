"""Kernels that others described and timed, written again in csrc/validation, to validate the virtual GPU's clock.

    for row in MEASUREMENTS:
        result = validate(row, backend_for(row), modelled_us)
        print(row.id, row.published, row.unit, result.figure, result.ratio)

A row is data: kernel, launch, arguments, the published figure, what that figure includes and its source. Of a large
launch only a part is run; the row says which part, and how the whole is computed from it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from luce_edu.backends.host import HostBackend
from luce_edu.machine.cards import GIB, MIB, Card, find_card
from luce_edu.machine.clock import find_clock
from luce_edu.machine.kernels import Kernel, Prepared
from luce_edu.machine.timed import Device, run_timed
from luce_edu.stages.dims import GRID_BARRIER_WORDS

# What a published figure includes.

KERNEL = "the kernel alone, from the start of its first block to the end of its last, as a profiler gives it"
ROW = "launches in a row, their time divided by their number: what a launch adds to a queue that is never empty"
SINGLE = "one launch between two events: the kernel and 2 to 5 us around it"
WALL = "the host's clock from the launch to the end of a wait for the device: the kernel and some 5 us"
INCLUDES = (KERNEL, ROW, SINGLE, WALL)

# Microseconds around one launch. Two events with an empty kernel between them are 5.9 us apart on a B300, of which 2.2
# are the events' own (ademeure/QuickRunCUDA, b300_clean/10_launch_overhead.md), and a kernel for 4 numbers takes 5.1 us
# on an RTX 3060 laptop (R100001/Programming-Massively-Parallel-Processors, convolution, cold runs of nvbench).
AROUND_US = {KERNEL: 0.0, SINGLE: 4.0, WALL: 5.0}

UNITS = {  # by unit: the figure from `work`, µs and the clock in MHz
    "GFLOP/s": lambda work, us, mhz: work / us / 1e3,
    "GB/s": lambda work, us, mhz: work / us / 1e3,
    "us": lambda work, us, mhz: us / work,
    "ms": lambda work, us, mhz: us / work / 1e3,
    "cycles": lambda work, us, mhz: us * mhz / work,
}


# One measurement.


@dataclass(frozen=True)
class Array:
    """Memory for a kernel: `elements` numbers of a NumPy type, all 0 unless they are a chain of pointers.

    chain  bytes between the elements of a chain that visits each once in random order; 0: no chain
    """

    dtype: str
    elements: int
    chain: int = 0

    def allocate(self) -> torch.Tensor:
        """Return new memory. Zeros take no physical memory until a kernel writes to them."""
        values = np.zeros(self.elements, self.dtype)
        if self.chain:
            step = self.chain // values.itemsize
            places = np.arange(0, self.elements, step)
            order = np.random.default_rng(0).permutation(places[1:])
            order = np.concatenate([places[:1], order])
            values[order] = values.ctypes.data + np.roll(order, -1) * values.itemsize
        # PyTorch has no large unsigned types with arithmetic, so the signed ones stand for them.
        return torch.from_numpy(values.view(values.dtype.str.replace("u", "i")))


SIZE = "size"  # an argument that stands for the size of a cut run: a depth of a loop, a number of steps
WHOLE, WAVES, BLOCKS, LOOP, DEPTH, LAUNCHES = "whole", "waves", "blocks", "loop", "depth", "launches"
CUTS = (WHOLE, WAVES, BLOCKS, LOOP, DEPTH, LAUNCHES)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Launches of one kernel, and which part of them is run.

    grid, block   blocks and threads of the published launch; shared: bytes of dynamic shared memory
    args          Arrays to allocate (the same object is the same memory), ints, floats, bools, SIZE
    swap          positions of two arguments that are exchanged from each launch to the next
    cooperative   all blocks at once, for a kernel with grid barriers
    blocks_per_sm resident blocks per SM; None: as registers, threads and shared memory allow
    cut           what `sizes` counts, and how the whole is computed:
                  WHOLE     nothing is cut; the time is that of `full` launches in a row (1 by default)
                  WAVES     waves of resident blocks of the whole card, from the first block on; linear in waves
                  BLOCKS    blocks, from the first on; linear in blocks
                  LOOP      the argument SIZE, with the published grid; linear in SIZE
                  DEPTH     the argument SIZE, with the grid cut to one wave. The whole depth is computed as for LOOP;
                            the time of an SM is then proportional to its blocks, and the SM with most blocks counts
                  LAUNCHES  launches in a row; linear in launches
    sizes         of the cut runs, ascending; two or more define the line that is extrapolated
    full          the published size in the same unit; None: the slope of that line, the time of one more unit
    """

    kernel: str
    grid: int | tuple[int, ...]
    block: int | tuple[int, ...]
    args: tuple
    shared: int = 0
    swap: tuple[int, int] | None = None
    cooperative: bool = False
    blocks_per_sm: int | None = None
    cut: str = WHOLE
    sizes: tuple[int, ...] = (1,)
    full: float | None = 1

    @property
    def blocks(self) -> int:
        return math.prod(self.grid) if isinstance(self.grid, tuple) else self.grid


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A published figure, and what is needed to model it.

    id, ladder     rows of one ladder are steps to the same result on one card, whose order is compared
    card           a name for `card_of`
    source_file    in csrc/;  defines: -D name=value
    parts          launches one after another, whose times are added
    work           floating-point operations or bytes of the whole, or how many units the time is divided by; for
                   cycles, how many of the counted instructions one more unit of `sizes` brings
    published, unit  the figure, in a unit of UNITS
    includes       one of INCLUDES;  graph: the launches are the nodes of a CUDA graph
    cold           L2 holds nothing of the arrays when a launch starts;  before: launches that come first, uncounted
    fit            may be used to fit constants; all else is held out
    confidence     A: kernel and launch are fixed by the source. B: one or two things were chosen, named in `note`
    source         where the figure is published;  note: what was chosen, and further figures
    """

    id: str
    ladder: str
    card: str
    source_file: str
    defines: tuple[tuple[str, object], ...] = ()
    parts: tuple[Part, ...]
    work: float = 1.0
    published: float
    unit: str
    includes: str
    graph: bool = False
    cold: bool = False
    before: int = 0
    fit: bool = False
    confidence: str = "A"
    source: str
    note: str = ""

    def figure(self, us: float, clock_mhz: float) -> float:
        """Return the figure in the published unit for the time of the whole, at the modelled clock."""
        return UNITS[self.unit](self.work, us, clock_mhz)

    def published_us(self, clock_mhz: float) -> float:
        """Return the µs that the published figure corresponds to."""
        # Every unit is proportional to the time or to its inverse, so the figure of 1 µs is enough.
        at_one = self.figure(1.0, clock_mhz)
        return at_one / self.published if self.unit.endswith("/s") else self.published / at_one


@dataclass(frozen=True)
class Run:
    """Prepared launches that are timed together.

    before    launches that run first and are not timed;  launches: those that are timed, in order
    size      in the unit of the part's `sizes`;  full: the published size in that unit, None for the slope alone
    scale     the time of the part over that of the run
    """

    measurement: Measurement
    before: tuple[Prepared, ...]
    launches: tuple[Prepared, ...]
    size: float
    full: float | None
    scale: float


TimeUs = Callable[[Run], float]  # microseconds of run.launches, including what run.measurement.includes says


@dataclass(frozen=True)
class Result:
    """The modelled time and figure of a measurement; ratio: modelled over published time."""

    measurement: Measurement
    us: float
    figure: float
    ratio: float


# From a row to launches, and from their times to a figure.


def card_of(measurement: Measurement) -> Card:
    """Return the card of a row. A variant of a card has the name of the card whose constants it shares."""
    return _card(measurement.card)


def _card(name: str) -> Card:
    if name not in VARIANTS:
        return find_card(name)
    base, changes = VARIANTS[name]
    return dataclasses.replace(find_card(base), **changes)


def backend_for(measurement: Measurement, **options) -> HostBackend:
    """Return a virtual GPU of the row's card."""
    return HostBackend(card=card_of(measurement), **options)


def prepare(
    measurement: Measurement, backend: HostBackend, *, sizes: Sequence[int] | None = None
) -> tuple[tuple[Run, ...], ...]:
    """Compile a row's kernels and prepare the runs of each part, in the order of its sizes.

    sizes  replace the parts' own, for all parts that are cut
    Every run has its own memory. Raises CompileError, LaunchError, and ValueError for the backend of another card.
    """
    wanted = card_of(measurement)
    if (backend.card.name, backend.card.sm_count) != (wanted.name, wanted.sm_count):
        raise ValueError(f"backend: {measurement.id} is a figure of the {measurement.card}, got a {backend.card.name}")
    names = [part.kernel for part in measurement.parts]
    module = backend.compile(measurement.source_file, names, dict(measurement.defines))
    return tuple(
        tuple(
            _run(measurement, part, module[part.kernel], backend, size)
            for size in (part.sizes if sizes is None or part.cut == WHOLE else sizes)
        )
        for part in measurement.parts
    )


def resident_blocks(part: Part, kernel: Kernel) -> int:
    """Return the blocks that the whole card holds at once."""
    if part.blocks_per_sm is not None:
        return part.blocks_per_sm * kernel.card.sm_count
    return kernel.resident_blocks(part.block, part.shared)


def _run(measurement: Measurement, part: Part, kernel: Kernel, backend: HostBackend, size: int) -> Run:
    resident = resident_blocks(part, kernel)
    blocks = {WAVES: size * resident, BLOCKS: size, DEPTH: resident}.get(part.cut, part.blocks)
    count = size if part.cut == LAUNCHES else part.full if part.cut == WHOLE else 1
    blocks = min(blocks, part.blocks)
    scale = 1.0
    if part.cut == DEPTH and blocks < part.blocks:
        sms = kernel.card.sm_count
        scale = -(-part.blocks // sms) / (blocks / sms)
    args = _allocated([size if arg is SIZE else arg for arg in part.args])
    launches = []
    for i in range(measurement.before + count):
        now = list(args)
        if part.swap and i % 2:
            one, other = part.swap
            now[one], now[other] = now[other], now[one]
        launches.append(
            Prepared(
                kernel, _first(part.grid, blocks), part.block, now, smem=part.shared, cooperative=part.cooperative,
                strict=False, memory=backend.memory, resident=resident,
            )
        )  # fmt: skip
    done, full = part.full if part.cut == WHOLE else size, part.full
    if part.cut == WAVES:
        done, full = blocks / resident, part.blocks / resident
    elif part.cut == BLOCKS and full is not None:
        full = part.blocks
    before = measurement.before
    return Run(measurement, tuple(launches[:before]), tuple(launches[before:]), done, full, scale)


def _allocated(args: Sequence) -> list:
    memory: dict[int, torch.Tensor] = {}
    for arg in args:
        if isinstance(arg, Array) and id(arg) not in memory:
            memory[id(arg)] = arg.allocate()
    return [memory[id(arg)] if isinstance(arg, Array) else arg for arg in args]


def _first(grid: int | tuple[int, ...], blocks: int) -> int | tuple[int, ...]:
    """Return the grid of about the first `blocks` blocks, cut along the longest dimension."""
    if not isinstance(grid, tuple):
        return blocks
    axis = grid.index(max(grid))
    return grid[:axis] + (blocks * grid[axis] // math.prod(grid),) + grid[axis + 1 :]


def whole_us(runs: Sequence[Run], times_us: Sequence[float]) -> float:
    """Return the µs of a whole part from those of its cut runs, in the order of their sizes."""
    last, us = runs[-1], times_us[-1]
    if last.full is not None and last.size >= last.full:
        return us * last.scale
    if len(runs) > 1:
        slope = (us - times_us[-2]) / (last.size - runs[-2].size)
    else:
        slope = us / last.size
    if last.full is None:
        return slope * last.scale
    return (us + slope * (last.full - last.size)) * last.scale


def validate(
    measurement: Measurement, backend: HostBackend, time_us: TimeUs, *, clock_mhz: float | None = None,
    sizes: Sequence[int] | None = None,
) -> Result:  # fmt: skip
    """Prepare a row, time its runs with `time_us`, and return the figure with its ratio to the published one.

    clock_mhz  the clock of time_us, for figures in cycles; None for the card's boost clock
    """
    mhz = backend.card.boost_clock_mhz if clock_mhz is None else clock_mhz
    parts = prepare(measurement, backend, sizes=sizes)
    us = sum(whole_us(runs, [time_us(run) for run in runs]) for runs in parts)
    return Result(measurement, us, measurement.figure(us, mhz), us / measurement.published_us(mhz))


def modelled_us(run: Run) -> float:
    """Return the modelled µs of a run, with the launch costs that its figure includes.

    L2 holds what `before` has left there, or nothing. A single launch has AROUND_US added. A variant of a card has the
    constants of the card whose name it has.
    """
    clock = find_clock(run.launches[0].kernel.card)
    device = Device(clock)
    if run.before:
        run_timed(run.before, device)
    us = [one.us for one in run_timed(run.launches, device)[0]]
    measurement = run.measurement
    if measurement.includes != ROW:
        return sum(us) + AROUND_US[measurement.includes]
    if measurement.graph:
        return sum(clock.graph_gap_us + one for one in us)
    # The host needs `launch_us` per launch, and the GPU `graph_gap_us` between two; the slower of them counts.
    extra = clock.cooperative_extra_us if any(part.cooperative for part in measurement.parts) else 0.0
    return sum(max(clock.launch_us + extra, clock.graph_gap_us + one) for one in us)


def misordered(results: Iterable[Result], *, clock_mhz: float = 1000.0, tie: float = 0.05) -> list[tuple[str, str]]:
    """Return pairs of ids (faster, slower as measured) of one ladder that the model puts in another order.

    Steps whose published times differ by less than `tie` count as equal. Rows with different units are not compared.
    """
    results = list(results)
    wrong = []
    for one in results:
        for other in results:
            a, b = one.measurement, other.measurement
            if (a.ladder, a.card, a.unit) != (b.ladder, b.card, b.unit):
                continue
            faster = a.published_us(clock_mhz) * (1 + tie) < b.published_us(clock_mhz)
            if faster and one.us >= other.us:
                wrong.append((a.id, b.id))
    return wrong


# Cards that are variants of others: the same chip with other counts or memory.

VARIANTS: Mapping[str, tuple[str, Mapping]] = {
    "RTX 3080": ("RTX 3090", {
        "product": "RTX 3080", "sm_count": 68, "boost_clock_mhz": 1710, "memory_gb_per_s": 760,
        "memory_bytes": 10 * GIB, "l2_bytes": 5 * MIB,
        "source": "NVIDIA Ampere GA102 GPU Architecture whitepaper, table of GeForce RTX 3080",
    }),
    "GH200": ("H200", {
        "product": "GH200 96GB", "memory_gb_per_s": 4000, "memory_bytes": 96 * GIB, "dram": "HBM3",
        "source": "NVIDIA GH200 Grace Hopper Superchip datasheet, the version with HBM3",
    }),
    "A100 40GB": ("A100", {
        "product": "A100 40GB SXM", "memory_gb_per_s": 1555, "memory_bytes": 40 * GIB, "dram": "HBM2",
        "source": "NVIDIA A100 Tensor Core GPU Architecture whitepaper",
    }),
}  # fmt: skip


# The SGEMM ladders.

SGEMM_CUDA = "siboehm/SGEMM_CUDA, README.md, table of kernels"
SGEMM_STEPS = {  # id: kernel, block, edge of C's tile
    "G1": ("naive", (32, 32), 32),
    "G2": ("coalesced", 1024, 32),
    "G3": ("tiled", 1024, 32),
    "G4": ("column_of_8", 512, 64),
    "G5": ("square_of_8", 256, 128),
    "G6": ("vectorised", 256, 128),
    "G7": ("interleaved", 256, 128),
    "G8": ("padded", 256, 128),
    "G9": ("autotuned", 256, 128),
    "G10": ("warp_tiles", 128, 128),
}


def _product(
    kernel: str, block, tile: int, *, n: int = 4096, alpha: float = 0.5, beta: float = 3.0, sizes=(256, 512), cut=DEPTH
) -> dict:
    """Return the source, the defines and the part of an n x n x n product."""
    tiles = -(-n // tile)
    a, b, c = (Array("f4", n * n) for _ in range(3))
    depth = SIZE if cut == DEPTH else n
    part = Part(
        kernel=kernel, grid=tiles * tiles, block=block, args=(n, n, n, depth, alpha, a, b, beta, c), cut=cut,
        sizes=sizes if cut == DEPTH else (1,), full=n if cut == DEPTH else 1,
    )  # fmt: skip
    return {"defines": (("TILES_X", tiles),), "parts": (part,)}


def _sgemm() -> Iterable[Measurement]:
    a6000 = dict(zip(
        SGEMM_STEPS, (309.0, 1986.5, 2980.3, 8474.7, 15971.7, 18237.3, 16213.4, 16459.2, 19721.0, 21779.3), strict=True
    ))  # fmt: skip
    ada = dict(zip(
        SGEMM_STEPS, (681.3, 4834.0, 6552.0, 19282.0, 36053.0, 43326.0, 36746.0, 37438.0, 42946.0, 46350.0), strict=True
    ))  # fmt: skip
    for prefix, ladder, card, published, source in (
        ("", "SGEMM", "RTX A6000", a6000, SGEMM_CUDA),
        ("H1.", "SGEMM", "RTX 4090", ada, "a fork of siboehm/SGEMM_CUDA, README.md, the first of its two runs"),
    ):
        for step, (kernel, block, tile) in SGEMM_STEPS.items():
            yield Measurement(
                id=prefix + step, ladder=ladder, card=card, source_file="validation/sgemm.cu",
                **_product(kernel, block, tile), work=2 * 4096**3, published=published[step], unit="GFLOP/s",
                includes=ROW, confidence="B" if step in ("G9", "G10") else "A", source=source,
                note="boost clock, not stated; power may lower it from G5 on; runs differ by up to 8 %",
            )  # fmt: skip

    independent = {  # ms, then the profiler's share of issue slots used, active warps an SM, share of DRAM bandwidth
        "coalesced": (1024, 32, 66.51, "issue 26.9 %, 32 warps, DRAM 15.3 %"),
        "tiled": (1024, 32, 48.03, "issue 20.3 %, 32 warps, DRAM 20.3 %"),
        "column_of_8": (512, 64, 16.79, "issue 37.3 %, 32 warps, DRAM 24.7 %"),
        "square_of_8": (256, 128, 10.55, "issue 44.9 %, 8 warps, DRAM 11.1 %"),
        "vectorised": (256, 128, 8.07, "issue 60.7 %, 16 warps, DRAM 14.5 %"),
        "padded_twice": (256, 128, 8.69, "issue 61.1 %, 16 warps, DRAM 13.5 %"),
        "padded_twice_deep": (256, 128, 8.05, "issue 66.8 %, 16 warps, DRAM 14.9 %"),
        "warp_tiles_64x32": (256, 128, 7.27, "issue 66.5 %, 16 warps, DRAM 17.2 %"),
    }
    for i, (kernel, (block, tile, ms, beside)) in enumerate(independent.items(), 1):
        row = _product(kernel, block, tile, alpha=1.0, beta=0.0)
        defines = (*row["defines"], ("OVERWRITE", 1), ("X_IS_COLUMN", 1))
        if kernel == "square_of_8":  # in the source's build, registers allowed one block per SM
            row["parts"] = (dataclasses.replace(row["parts"][0], blocks_per_sm=1),)
        yield Measurement(
            id=f"H6.{i}", ladder="SGEMM, independent", card="RTX A6000", source_file="validation/sgemm.cu",
            **row | {"defines": defines}, published=ms, unit="ms", includes=KERNEL,
            confidence="B" if "twice" in kernel or "warp" in kernel else "A",
            source="a report on SGEMM on an RTX A6000 with counters of Nsight Compute; repository not named",
            note=f"{beside}; the library takes 5.98 ms",
        )  # fmt: skip

    checked = {  # by the author's number of the step, "v" for 16-byte loads: TFLOPS on an RTX 3090
        "00": ("naive", (32, 32), 32, 0.278),
        "01": ("coalesced", (32, 32), 32, 1.722),
        "02": ("tiled", (32, 32), 32, 2.662),
        "02v": ("tiled_fours", (32, 32), 32, 1.905),
        "03": ("column_of_8", 512, 64, 8.913),
        "03v": ("column_of_8_fours", 512, 64, 4.048),
        "04": ("square_of_8", 256, 128, 13.02),
        "04v": ("square_of_8_fours", 256, 128, 15.03),
        "05": ("transposed", 256, 128, 11.14),
        "05v": ("transposed_fours", 256, 128, 19.67),
    }
    for step, (kernel, block, tile, tflops) in checked.items():
        yield Measurement(
            id=f"H3.{step}", ladder="SGEMM, checked", card="RTX 3090", source_file="validation/sgemm_checked.cu",
            **_product(f"checked_{kernel}", block, tile), work=2 * 4096**3,
            published=tflops * 1e3, unit="GFLOP/s", includes=ROW,
            source="leimao/CUDA-GEMM-Optimization, README.md",
            note="its author saw up to 25 % between runs; alpha and beta were chosen",
        )  # fmt: skip

    n, tiles = 4096, 256
    a, b, c = (Array("f4", n * n) for _ in range(3))
    yield Measurement(
        id="H9.1", ladder="SGEMM, cp.async", card="RTX 3090", source_file="validation/sgemm_async.cu",
        defines=(("TILES_X", tiles),),
        parts=(
            Part(
                kernel="async_fours", grid=tiles * tiles, block=(16, 16), args=(n, SIZE, a, b, c), cut=DEPTH,
                sizes=(256, 512), full=n,
            ),
        ),
        work=2 * n**3, published=2721.41, unit="GFLOP/s", includes=ROW,
        source="NVIDIA/cuda-samples, issue 93: globalToShmemAsyncCopy, kernel 1, AsyncCopyLargeChunk",
        note="a reader's run, clock not stated",
    )  # fmt: skip

    for n, us in ((32, 5.90), (1008, 217.6), (10000, 225.6e3)):
        whole = n == 32
        row = _product("tiled_16", (16, 16), 16, n=n, alpha=1.0, beta=0.0, cut=WHOLE if whole else DEPTH)
        yield Measurement(
            id=f"H8.{n}", ladder=f"SGEMM {n}", card="RTX 5090", source_file="validation/sgemm.cu",
            **row | {"defines": (*row["defines"], ("OVERWRITE", 1))}, published=us, unit="us", includes=WALL,
            source="eunomia-bpf/bpftime, benchmark/gpu, matrixMul, rows Baseline",
            note="some 5.2 us of it are launch and wait: see L6; block of 16 x 16 is the program's default",
        )  # fmt: skip


# Launches, graphs, barriers.

MEGAQWEN = "Infatoshi/MegaQwen, experiments/RESULTS.md"
SMALL_KERNELS = "te42kyfo/gpu-benches, gpu-small-kernels"
BLOCKS_OF_SCALE = (32, 64, 128, 256, 512, 1024)


def _launches() -> Iterable[Measurement]:
    visits = Array("u4", 1)
    common = {"card": "RTX 3090", "source_file": "validation/launches.cu", "unit": "us", "source": MEGAQWEN}
    note = "82 blocks of 256, thread 0 of block 0 adds 1 to a word; boost clock, a card of 420 W"
    for letter, count, us in (("a", 225, 167.3), ("b", 1, 3.9)):
        yield Measurement(
            id=f"L1{letter}", ladder="empty phases", **common, published=us, includes=ROW, note=note, parts=(Part(
                kernel="phases", grid=82, block=256, args=(visits, count, Array("u4", GRID_BARRIER_WORDS)),
                cooperative=True,
            ),),
        )  # fmt: skip
    for letter, graph, us in (("c", False, 347.5), ("d", True, 186.9)):
        yield Measurement(
            id=f"L1{letter}", ladder="empty phases", **common, published=us, includes=ROW, graph=graph, note=note,
            parts=(Part(kernel="phase", grid=82, block=256, args=(visits,), full=225),),
        )

    # GB/s for n = 4096 and blocks of 32, 64, 128, 256, 512, 1024; for a dict, only of some
    small = {
        "L2": ("A40", {"launches": (31, 32, 31, 32, 32, 29), "graph": (54, 59, 60, 58, 53, 47),
                       "hand": (71, 81, 81, 77, 66, 55)}),
        "L3": ("L40", {"launches": {256: 65536 / 1640}, "graph": {256: 65536 / 960},
                       "grid": (78, 80, 78, 75, 71, 61), "hand": (88, 100, 100, 96, 85, 72)}),
        "L4": ("A100", {"launches": {256: 65536 / 2730}, "graph": {256: 65536 / 1340},
                        "grid": (40, 49, 49, 49, 49, 45)}),
        "L5": ("GH200", {"launches": (26, 26, 26, 26, 27, 27), "graph": {256: 65536 / 2260},
                        "grid": (52, 53, 52, 52, 58, 53), "hand": (57, 62, 63, 63, 53, 50)}),
    }  # fmt: skip
    for row, (card, kinds) in small.items():
        for kind, figures in kinds.items():
            if not isinstance(figures, dict):
                figures = dict(zip(BLOCKS_OF_SCALE, figures, strict=True))
            for block, gb_per_s in figures.items():
                yield _scale(f"{row}.{kind}.{block}", "small steps", card, 4096, block, kind, gb_per_s)

    for row, card, n, block, figures in (
        ("B1", "GH200", 271378, 1024, {"grid": 2176, "hand": 1972}),
        ("B1", "GH200", 271378, 32, {"grid": 1001, "hand": 653}),
        ("B1", "GH200", 142962, 1024, {"grid": 16 * 142.962 / 1.71, "hand": 16 * 142.962 / 1.75}),
        ("B2", "L40", 151539, 1024, {"grid": 16 * 151.539 / 1.49, "hand": 16 * 151.539 / 1.41}),
        ("B2", "L40", 113240, 32, {"grid": 16 * 113.240 / 9.8, "hand": 16 * 113.240 / 11.5}),
        ("B3", "A40", 84622, 1024, {"hand": 946}),
        ("B3", "A40", 84622, 256, {"hand": 922}),
        ("B3", "A40", 84622, 32, {"hand": 353}),
        ("B4", "A100", 113240, 1024, {"grid": 1001}),
        ("B4", "A100", 113240, 32, {"grid": 112}),
    ):  # fmt: skip
        for kind, gb_per_s in figures.items():
            yield _scale(f"{row}.{kind}.{n}.{block}", "full residency", card, n, block, kind, gb_per_s)

    for card, figures in (
        ("GH200", {16: 426, 32: 852, 64: 1702}),
        ("A100", {4: 86, 8: 173, 16: 345, 32: 690, 64: 1378}),
        ("L40", {4: 121, 8: 242, 16: 484}),
    ):
        for block, gb_per_s in figures.items():
            n = 2**28  # 2 GiB per array; the source found the same for all large arrays
            arrays = Array("f8", n), Array("f8", n)
            yield Measurement(
                id=f"B5.{card}.{block}", ladder="block dispatch", card=card, source_file="validation/launches.cu",
                work=16 * block, published=gb_per_s, unit="GB/s", includes=KERNEL, graph=True,
                source=f"{SMALL_KERNELS}, h200_graph, a100_80_graph, l40_graph", parts=(Part(
                    kernel="scale", grid=n // block + 1, block=block, args=(*arrays, n), cut=BLOCKS,
                    sizes=(20_000, 60_000), full=None,
                ),), note="only the hand-out of blocks limits it: 0.84, 0.95, 0.76 blocks a cycle",
            )  # fmt: skip

    # In L2, launch after launch.
    for row, card, n, block, graph, gb_per_s in (
        ("M5.A40.4MB", "A40", 271378, 256, False, 1688), ("M5.A40.5MB", "A40", 342606, 256, False, 1702),
        ("M5.A40.1GB", "A40", 2**26, 256, False, 649), ("M5.GH200.31MB", "GH200", 1_918_750, 256, False, 4152),
        ("M5.GH200.31MB.graph", "GH200", 1_937_500, 512, True, 4325),
        ("M5.GH200.288MB", "GH200", 18_000_000, 256, False, 3282),
    ):  # fmt: skip
        large = n > 2**24
        part = Part(
            kernel="scale", grid=n // block + 1, block=block, args=(Array("f8", n), Array("f8", n), n), swap=(0, 1),
            cut=WAVES if large else LAUNCHES, sizes=_waves(card, block, 16) if large else (2, 4),
            full=1 if large else None,
        )  # fmt: skip
        yield Measurement(
            id=row, ladder="L2 or DRAM", card=card, source_file="validation/launches.cu", parts=(part,), work=16 * n,
            published=gb_per_s, unit="GB/s", includes=ROW, graph=graph, confidence="B", source=SMALL_KERNELS,
            note="for the A40, launches or a graph is not said; launches were chosen",
        )  # fmt: skip

    for n, grid, block, us in (
        (32, 1, 32, 5.23), (1000, 4, 256, 5.29), (10**4, 40, 256, 5.31), (10**5, 196, 512, 5.60),
        (10**6, 1954, 512, 7.02),
    ):  # fmt: skip
        yield Measurement(
            id=f"L6.{n}", ladder="launch and wait", card="RTX 5090", source_file="validation/launches.cu", parts=(Part(
                kernel="add", grid=grid, block=block, args=(*(Array("f4", n) for _ in range(3)), n)
            ),), published=us, unit="us", includes=WALL,
            before=1, source="eunomia-bpf/bpftime, benchmark/gpu, vec_add, rows Baseline",
            note="the differences are the GPU's; 5.2 us are host and launch",
        )  # fmt: skip


def _scale(name: str, ladder: str, card: str, n: int, block: int, kind: str, gb_per_s: float) -> Measurement:
    """Return a row for steps of A = B / 4: "launches", nodes of a "graph", or one kernel with a grid barrier per step.

    "grid" has the barrier of cooperative groups, "hand" that of its authors.
    """
    a, b = Array("f8", n), Array("f8", n)
    if kind in ("launches", "graph"):
        part = Part(
            kernel="scale", grid=n // block + 1, block=block, args=(a, b, n), swap=(0, 1), cut=LAUNCHES, sizes=(8, 24),
            full=None,
        )  # fmt: skip
    else:
        words = GRID_BARRIER_WORDS if kind == "grid" else 128  # "hand" uses a word per step
        part = Part(
            kernel=f"scale_{kind}", grid=min(n // block, _FULL.get((card, block), 2**31)), block=block,
            args=(a, b, n, SIZE, Array("u4", words)), cooperative=True, cut=LOOP, sizes=(8, 24), full=None,
        )  # fmt: skip
    return Measurement(
        id=name, ladder=f"{ladder}, n {n}" if n == 4096 else f"{ladder}, n {n}, block {block}", card=card,
        source_file="validation/launches.cu", parts=(part,), work=16 * n, published=round(gb_per_s, 1), unit="GB/s",
        includes=ROW, graph=kind == "graph", source=SMALL_KERNELS,
        note="clocks: A40 1740, L40 2490, A100 1410, GH200 1980 MHz; plain launches on a GH200 are bound by the host",
    )  # fmt: skip


# Blocks that the card holds at once, by card and threads per block, where n would give more.
_FULL = {
    ("GH200", 1024): 264, ("GH200", 32): 4224, ("L40", 1024): 142, ("L40", 32): 3408, ("A40", 1024): 84,
    ("A40", 32): 1344, ("A40", 256): 504, ("A100", 1024): 216, ("A100", 32): 3456,
}  # fmt: skip


# Strides, copies, caches.

STRIDES = "te42kyfo/gpu-benches, gpu-strides"
STREAM = "te42kyfo/gpu-benches, gpu-stream"
GA102_STRIDES = {
    "f4": {0: 2.0, 1: 2.0, 2: 2.0, 3: 2.0, 4: 4.0, 5: 2.20, 6: 2.36, 7: 2.67, 8: 8.0, 9: 3.03, 10: 3.31, 12: 4.0,
           15: 4.45, 16: 16.0, 17: 5.1, 24: 8.0, 31: 8.5, 32: 32.0, 33: 8.8, 48: 16.0, 64: 32.0},
    "f8": {0: 8.0, 1: 8.0, 2: 8.0, 4: 8.0, 8: 16.0, 16: 32.0, 17: 8.9, 32: 32.0},
}  # fmt: skip
GH100_STRIDES = {
    "f4": {0: 1.01, 1: 1.01, 2: 2.01, 3: 1.63, 4: 4.01, 5: 2.0, 6: 2.32, 7: 2.41, 8: 8.0, 9: 3.0, 12: 4.01, 15: 4.6},
    "f8": {0: 2.01, 1: 2.01, 2: 4.01, 3: 2.32, 4: 8.0, 8: 16.0},
}
GA100_STRIDES = {
    "f4": GA102_STRIDES["f4"] | {0: 1.02, 1: 1.02, 2: 2.0, 3: 1.63},
    "f8": {0: 2.01, 1: 2.01, 2: 4.0, 3: 2.42, 4: 8.0, 5: 3.34, 8: 16.0, 16: 32.0, 17: 8.9, 32: 32.0},
}
BLOCK_WIDTHS = {  # cycles by the width of the block, pitch 4098
    "A40": {"f4": {1: 9.2, 2: 5.1, 4: 3.13, 8: 4.0, 16: 2.0, 32: 2.0}, "f8": {1: 9.3, 2: 8.3, 4: 8.1, 8: 8.1, 16: 8.1}},
    "GH200": {"f4": {1: 9.3, 2: 4.82, 4: 3.0, 8: 4.01, 16: 2.01, 32: 1.02}},
    "A100": {"f4": {1: 9.2, 2: 5.1, 4: 3.13, 8: 4.0, 16: 2.0, 32: 1.02},
             "f8": {1: 9.3, 2: 5.4, 4: 4.0, 8: 4.0, 16: 2.01}},
}  # fmt: skip
HELD_OUT_STRIDES = {5, 6, 7, 9, 10, 12, 15, 17, 31, 33}
_C_NAMES = {"f4": "float", "f8": "double"}


def _strides() -> Iterable[Measurement]:
    def row(name, card, kernel, block, dtype, elements, step, cycles, fit):
        part = Part(
            kernel=kernel, grid=1, block=block,
            args=(Array(dtype, elements), Array(dtype, 64), 0, step, SIZE, 123123.25), cut=LOOP, sizes=(1024, 3072),
            full=None,
        )  # fmt: skip
        return Measurement(
            id=name, ladder=f"{kernel} {dtype}", card=card, source_file="validation/strides.cu",
            defines=(("ELEMENT", _C_NAMES[dtype]),), parts=(part,), work=32, published=cycles, unit="cycles",
            includes=KERNEL, fit=fit, source=STRIDES,
            note="cycles for a warp's load; clocks printed beside: A40 1740, GH200 1980, A100 1410 MHz",
        )  # fmt: skip

    for number, card, table in (
        ("S1", "A40", GA102_STRIDES), ("S3", "GH200", GH100_STRIDES), ("S4", "A100", GA100_STRIDES)
    ):  # fmt: skip
        for dtype, by_stride in table.items():
            for stride, cycles in by_stride.items():
                yield row(
                    f"{number}.{dtype}.{stride}", card, "strided", 1024, dtype, 63 * stride + 29, stride, cycles,
                    stride not in HELD_OUT_STRIDES,
                )  # fmt: skip
    for card, table in BLOCK_WIDTHS.items():
        for dtype, by_width in table.items():
            for width, cycles in by_width.items():
                yield row(
                    f"S2.{card}.{dtype}.{width}", card, "blocked", (width, 1024 // width), dtype, 33 * 4098 + 93, 4098,
                    cycles, False,
                )  # fmt: skip


STREAM_BYTES = {"init": 8, "read": 8, "scaled": 16, "triad": 24, "stencil3": 16, "stencil5": 16}  # an element


def _waves(card: str, block: int, bytes_a_thread: int, blocks_per_sm: int | None = None, writes: bool = True):
    """Return two numbers of waves, past the start and past what L2 holds back of a kernel's writes."""
    limits = _card(card)
    blocks = blocks_per_sm or min(limits.blocks_per_sm, limits.threads_per_sm // block)
    wave = limits.sm_count * blocks * block * bytes_a_thread
    if not writes:
        return 16, 48
    first = max(16, math.ceil(1.5 * limits.l2_bytes / wave))
    return first, first + max(16, math.ceil(limits.l2_bytes / wave))


def _streams() -> Iterable[Measurement]:
    n = 128 * 2**20 + 2
    everything = tuple(STREAM_BYTES)
    for number, card, kernels, by_block in (
        ("M1", "A40", everything, {
            32: (201, 82, 154, 219, 142, 126), 64: (397, 160, 290, 400, 268, 236), 128: (679, 304, 514, 625, 466, 391),
            256: (679, 552, 643, 660, 630, 512), 512: (679, 679, 655, 655, 655, 641),
            768: (679, 679, 652, 653, 653, 655),
        }),
        ("M2", "GH200", everything, {
            32: (297, 123, 240, 334, 222, 218), 128: (1163, 485, 852, 1129, 779, 771),
            256: (2196, 935, 1395, 1905, 1338, 1315), 512: (3670, 1707, 2263, 2919, 2181, 2150),
            1024: (3884, 2756, 3165, 3534, 3128, 3110),
        }),
        ("M3", "L40", everything[:4], {
            32: (322, 163, 298, 425), 64: (643, 320, 549, 702), 128: (845, 615, 772, 769), 256: (846, 844, 792, 795),
            768: (846, 844, 770, 768),
        }),
        ("M4", "A100 40GB", everything[:4], {
            32: (159, 81, 151, 210), 128: (788, 304, 548, 743), 256: (1473, 579, 954, 1231),
            512: (1503, 1042, 1338, 1359), 1024: (1503, 1490, 1381, 1360),
        }),
    ):  # fmt: skip
        for block, figures in by_block.items():
            for kernel, gb_per_s in zip(kernels, figures, strict=True):
                moved = STREAM_BYTES[kernel]
                a, b, c = (Array("f8", n) for _ in range(3))
                part = Part(
                    kernel=kernel, grid=n // block + 1, block=block, args=(a, b, c, n, False), blocks_per_sm=2,
                    cut=WAVES, sizes=_waves(card, block, moved, 2, kernel != "read"),
                )  # fmt: skip
                yield Measurement(
                    id=f"{number}.{kernel}.{block}", ladder=f"two blocks an SM, {kernel}", card=card,
                    source_file="validation/stream.cu", parts=(part,), work=moved * n, published=gb_per_s, unit="GB/s",
                    includes=WALL, fit=card == "L40", source=STREAM,
                    note="stencils count one read and one write an element",
                )  # fmt: skip

    n = 2**28 + 2
    for card, figures in (
        ("RTX 4090", (920, 904, 922, 915, 921)), ("A100 40GB", (1337, 1380, 1379, 1315, 1117)),
    ):  # fmt: skip
        for width, gb_per_s in zip((1, 2, 4, 8, 16), figures, strict=True):
            part = Part(
                kernel=f"copy_{width}", grid=-(-n // (256 * width)), block=256,
                args=(Array("f4", n), Array("f4", n), n), cut=WAVES, sizes=_waves(card, 256, 8 * width),
            )  # fmt: skip
            yield Measurement(
                id=f"M9.{card}.{width}", ladder="vector widths", card=card, source_file="validation/stream.cu",
                parts=(part,), work=8 * n, published=gb_per_s, unit="GB/s", includes=SINGLE,
                source="xytpai/nvbench, README.md, global_memory_bandwidth",
            )  # fmt: skip

    for n, along_rows, along_columns in ((8192, 1151.5, 2131.5), (2048, 76.5, 122.2), (512, 8.25, 8.54)):
        for kernel, us in (("add_along_rows", along_rows), ("add_along_columns", along_columns)):
            part = Part(
                kernel=kernel, grid=(n // 16) ** 2, block=(16, 16), args=(*(Array("f4", n * n) for _ in range(3)), n),
                cut=WAVES if n > 2048 else WHOLE, sizes=(20, 40) if n > 2048 else (1,),
            )  # fmt: skip
            yield Measurement(
                id=f"M6.{kernel}.{n}", ladder=f"matrix sums {n}", card="RTX 3080", source_file="validation/stream.cu",
                defines=(("TILES_X", n // 16),), parts=(part,), published=us, unit="us", includes=SINGLE, cold=True,
                confidence="B", source="R100001/Programming-Massively-Parallel-Processors, array_add",
            )  # fmt: skip

    for kernel, us in (("reads_rows", 161.1), ("writes_rows", 143.6), ("copy", 66.0)):
        n = 4096
        part = Part(
            kernel=f"transpose_{kernel}", grid=(n // 16) ** 2, block=(16, 16),
            args=(Array("f4", n * n), Array("f4", n * n), n),
        )  # fmt: skip
        yield Measurement(
            id=f"T3.{kernel}", ladder="transpose, a thread an element", card="A100 40GB",
            source_file="validation/transpose.cu", defines=(("TILES_X", n // 16),), parts=(part,), published=us,
            unit="us", includes=SINGLE, source="ayush-os/transpose",
        )  # fmt: skip
    for kernel, us in (("reads_rows", 7760), ("writes_rows", 3129)):
        n = 16384
        part = Part(
            kernel=f"transpose_tile_{kernel}", grid=n // 64 * (n // 32), block=256,
            args=(Array("f4", n * n), Array("f4", n * n), n), cut=WAVES, sizes=(4, 8),
        )  # fmt: skip
        yield Measurement(
            id=f"T1.{kernel}", ladder="transpose, tiles", card="RTX 3090", source_file="validation/transpose.cu",
            defines=(("TILES_X", n // 64),), parts=(part,), published=us, unit="us", includes=ROW, confidence="B",
            source="Lei Mao, article on transposes with CuTe",
            note="chosen: a tile is 64 long where the lanes run, and x counts tiles that way",
        )  # fmt: skip

    n = 2**25
    for kernel, arrays, us in (("copy", 2, 383.7), ("mul", 2, 393.9), ("add", 3, 584.6), ("triad", 3, 581.4)):
        part = Part(
            kernel=f"babel_{kernel}", grid=n // 1024, block=1024, args=tuple(Array("f8", n) for _ in range(arrays)),
            cut=WAVES, sizes=_waves("A100 40GB", 1024, 8 * arrays),
        )  # fmt: skip
        yield Measurement(
            id=f"M11.{kernel}", ladder="BabelStream", card="A100 40GB", source_file="validation/stream.cu",
            parts=(part,), published=us, unit="us", includes=KERNEL,
            source="ALCF beginners' guide, BabelStream on an A100-SXM4-40GB under a profiler",
        )  # fmt: skip

    for card, figures in (  # by MB of footprint, 4 pieces of 256 KiB each
        ("GH200", {1.5: 13527, 4: 10619, 20: 9885, 40: 9666, 63: 4464, 120: 3888}),
        ("L40", {4: 5240, 50: 5240, 110: 1075, 200: 820}),
        ("A100", {10: 5415, 33: 3622, 48: 2027, 100: 1800}),
    ):
        for mb, gb_per_s in figures.items():
            run = round(4 * mb)
            per_sm = 1 if card == "L40" else 2
            sms = {"GH200": 132, "L40": 142, "A100": 108}[card]
            first = math.ceil(run / (per_sm * sms)) + 2  # every piece has been read once
            part = Part(
                kernel="footprint", grid=100_000, block=1024,
                args=(Array("f8", 1024), Array("f8", 32 * 1024 * run), run, 23.12), cut=WAVES, sizes=(first, first + 4),
            )  # fmt: skip
            yield Measurement(
                id=f"C2.{card}.{mb}MB", ladder="footprint", card=card, source_file="validation/stream.cu",
                parts=(part,), work=100_000 * 32 * 8192, published=gb_per_s, unit="GB/s", includes=WALL, fit=True,
                source="te42kyfo/gpu-benches, gpu-l2-cache",
            )  # fmt: skip

    for kb, rounds, gb_per_s in ((16, 64, 9350), (32, 32, 9350), (118, 8, 8123), (1024, 2, 2365), (4096, 1, 2365)):
        floats = kb * 256
        part = Part(
            kernel="same_buffer", grid=84, block=256, args=(Array("f4", 256), Array("f4", floats), 0, SIZE, 1233.0),
            cut=LOOP, sizes=(rounds, 3 * rounds), full=None,
        )  # fmt: skip
        yield Measurement(
            id=f"C1.{kb}KB", ladder="one buffer for all", card="A40", source_file="validation/stream.cu",
            defines=(("BUFFER", floats),), parts=(part,), work=84 * 4 * floats, published=gb_per_s, unit="GB/s",
            includes=KERNEL, fit=True, source="te42kyfo/gpu-benches, gpu-cache",
            note="1725 MHz; from 262 KB to 6 MB between 2290 and 2440",
        )  # fmt: skip

    for card, figures in (("L40", (36, 276, 631)), ("A100", (36, 211, 570))):
        for where, places, cycles in zip(("L1", "L2", "DRAM"), (2**8, 2**15, 2**22), figures, strict=True):
            # The first round fills the cache that holds the chain; the second is counted.
            sizes = (2048, 6144) if where == "DRAM" else (max(places, 1024), 2 * max(places, 1024))
            part = Part(
                kernel="chase", grid=1, block=64,
                args=(Array("u8", 8 * places, chain=64), Array("u8", 1), SIZE), cut=LOOP, sizes=sizes, full=None,
            )  # fmt: skip
            yield Measurement(
                id=f"P1.{card}.{where}", ladder="pointer chase", card=card, source_file="validation/stream.cu",
                parts=(part,), published=cycles, unit="cycles", includes=KERNEL, fit=True,
                source="te42kyfo/gpu-benches, gpu-latency",
                note="cycles a hop; a far half of the A100's L2 answers after 424; clocks 2490 and 1410 MHz",
            )  # fmt: skip


# Sums, norms, matrix-vector products, atomics.

REDUCTIONS = "MasterSkepticista/parallel_reductions_cuda, README.md"
SIMVEIT = "simveit/effective_reduction, README.md"


def _sums() -> Iterable[Measurement]:
    n = 2**25
    steps = {  # elements a thread, GB/s
        "1": ("sum_every_thread", 1, 2.47), "1b": ("sum_every_four", 4, 9.9), "2": ("sum_divergent", 1, 223),
        "3": ("sum_conflicting", 1, 317), "4": ("sum_sequential", 1, 331), "5": ("sum_two_each", 2, 618),
        "6": ("sum_last_warp", 2, 859),
    }  # fmt: skip
    for step, (kernel, each, gb_per_s) in steps.items():
        atomics = step in ("1", "1b")  # additions to one word set the time, for any number of blocks
        for block in (256,) if atomics else (256, 512, 1024):
            part = Part(
                kernel=kernel, grid=n // (block * each), block=block, shared=0 if atomics else 4 * block,
                args=(Array("f4", 1), Array("f4", n), n), cut=BLOCKS if atomics else WAVES,
                sizes=(200, 400) if atomics else (16, 48),
            )  # fmt: skip
            yield Measurement(
                id=f"D1.{step}.{block}", ladder=f"sum of floats, block {block}", card="RTX 3090",
                source_file="validation/reductions.cu", parts=(part,), work=4 * n, published=gb_per_s, unit="GB/s",
                includes=SINGLE, cold=True, confidence="B", source=REDUCTIONS,
                note="the published figure is the best of blocks of 64 to 1024, so quote the best here; a memset of 4 "
                "bytes is in it; the library reaches 871",
            )  # fmt: skip

    n, block = 2**30, 512
    blocks = n // block
    for step, gb_per_s, parts in (
        ("k0", 639.4, (("count_tree", 1), ("count_tree", 0))),
        ("k1", 661.2, (("count_last_warp", 1), ("count_last_warp", 0))),
        ("k2", 882.8, (("count_atomic", 1),)),
        ("k3", 3226.9, (("count_twelve", 12),)),
        ("k4", 3230.0, (("count_vectors", 12),)),
    ):
        made = []
        for kernel, each in parts:
            if each:
                made.append(Part(
                    kernel=kernel, grid=-(-n // (block * each)), block=block,
                    args=(Array("i4", blocks), Array("i4", n), n), cut=WAVES, sizes=(16, 48),
                ))  # fmt: skip
            else:  # one block adds the partial sums of all blocks
                made.append(Part(
                    kernel=kernel, grid=1, block=block, args=(Array("i4", 1), Array("i4", blocks), blocks)
                ))  # fmt: skip
        yield Measurement(
            id=f"D2.{step}", ladder="sum of integers", card="H100", source_file="validation/reductions.cu",
            parts=tuple(made), work=4 * n, published=gb_per_s, unit="GB/s", includes=ROW, source=SIMVEIT,
            note="k2 to k4 have a memset of 4 bytes in it",
        )  # fmt: skip

    rows, width = 8192, 768
    for card, number, kernel, grid, block, gb_per_s in (
        ("RTX 3090", "N1", "norm_warp", rows, 32, 689.1), ("RTX 3090", "N2", "norm_block", rows, 256, 773.1),
        ("H100", "N1", "norm_warp", rows // 8, 256, 1191.4), ("H100", "N2", "norm_block", rows, 256, 1244.5),
    ):  # fmt: skip
        data, out = Array("f4", rows * width), Array("f4", rows * width)
        vectors = [Array("f4", size) for size in (rows, rows, width, width)]
        part = Part(
            kernel=kernel, grid=grid, block=block, args=(out, *vectors[:2], data, *vectors[2:], rows, width)
        )  # fmt: skip
        yield Measurement(
            id=f"{number}.{card}", ladder="layer norm", card=card, source_file="validation/layer_norm.cu",
            parts=(part,), work=2 * 4 * rows * width, published=gb_per_s, unit="GB/s", includes=SINGLE, cold=True,
            confidence="A" if card == "RTX 3090" else "B",
            source="karpathy/llm.c, pull request 600 and dev/cuda/layernorm_forward.cu",
            note="L2 scrubbed before each; which H100 is not said",
        )  # fmt: skip

    for n, (x, y), us in (
        (512, (32, 16), 3.237), (1024, (32, 32), 4.372), (2048, (32, 32), 12.395), (4096, (256, 1), 40.621),
        (8192, (256, 4), 156.45), (16384, (512, 2), 609.2),
    ):  # fmt: skip
        whole = n <= 4096
        part = Part(
            kernel="gemv_half", grid=(1, n // y), block=(x, y),
            args=(Array("u2", n * n), Array("u2", n), Array("u2", n), n, n // x), cut=WHOLE if whole else WAVES,
            sizes=(1,) if whole else (4, 8),
        )  # fmt: skip
        yield Measurement(
            id=f"V1.{n}", ladder=f"fp16 matrix times vector {n}", card="RTX 3090", source_file="validation/gemv.cu",
            parts=(part,), published=us, unit="us", includes=KERNEL, before=1 if n <= 2048 else 0,
            source="wangsiping97/FastGEMV, method_and_result.md",
            note="the matrix was read before: up to 1024 it is in L2, at 2048 a part of it",
        )  # fmt: skip

    for rows, columns, us in (
        (8192, 8192, 2227), (131072, 512, 2999), (512, 8192, 2224), (8192, 512, 142.8), (2097152, 32, 547),
        (33554432, 2, 657), (512, 131072, 35370),
    ):  # fmt: skip
        depth = SIZE if columns > 256 else columns
        part = Part(
            kernel="mad_rows", grid=-(-rows // 512), block=512,
            args=(Array("u4", rows * columns), Array("u4", columns), Array("u4", rows), rows, columns, depth),
            cut=LOOP if depth is SIZE else WAVES, sizes=(128, 256) if depth is SIZE else (8, 16), full=columns,
        )  # fmt: skip
        yield Measurement(
            id=f"V3.{rows}x{columns}", ladder="a thread a row", card="RTX 3080", source_file="validation/gemv.cu",
            parts=(part,), published=us, unit="us", includes=SINGLE, cold=True,
            source="R100001/Programming-Massively-Parallel-Processors, mat_vec",
        )  # fmt: skip

    for power, us in ((26, 36170), (22, 2263), (18, 144.3), (14, 11.65)):
        n = 2**power
        part = Part(
            kernel="histogram_global", grid=n // 512, block=512, args=(Array("u4", n), Array("u4", 512), n),
            cut=BLOCKS if power > 18 else WHOLE, sizes=(200, 400) if power > 18 else (1,),
        )  # fmt: skip
        yield Measurement(
            id=f"A1.{power}", ladder="histogram", card="RTX 3080", source_file="validation/histogram.cu", parts=(part,),
            published=us, unit="us", includes=SINGLE, cold=True,
            source="R100001/Programming-Massively-Parallel-Processors, histogram", note="all inputs are 0: one word",
        )  # fmt: skip
    n = 2**26
    for block, us in ((32, 22600), (64, 11310), (128, 5670), (256, 2844), (512, 1432), (1024, 732.6)):
        part = Part(
            kernel="histogram_shared", grid=n // block, block=block, args=(Array("u4", n), Array("u4", 512), n),
            cut=WAVES, sizes=(2, 6),
        )  # fmt: skip
        yield Measurement(
            id=f"A2.{block}", ladder="histogram in shared memory", card="RTX 3080",
            source_file="validation/histogram.cu", parts=(part,), published=us, unit="us", includes=SINGLE, cold=True,
            source="R100001/Programming-Massively-Parallel-Processors, histogram",
            note="all inputs are 0. ptxas makes one instruction of a warp's additions to one word of shared memory",
        )  # fmt: skip


MEASUREMENTS: tuple[Measurement, ...] = (*_sgemm(), *_launches(), *_strides(), *_streams(), *_sums())


# The sixteen comparisons that validate the clock, with the beginnings of their rows' ids.
PICKS: Mapping[str, tuple[str, ...]] = {
    "launch, graph node, barrier, empty": ("L1",),
    "launch, graph node, barrier, with work": ("L2.", "L3."),
    "barriers at full residency": ("B1.", "B2.", "B3.", "B4."),
    "hand-out of blocks": ("B5.",),
    "strides in L1, GA102": ("S1.", "S2.A40."),
    "strides in L1, GH100 and GA100": ("S3.", "S4.", "S2.GH200.", "S2.A100."),
    "copies and bytes in flight, A40": ("M1.",),
    "copies and bytes in flight, H200 and A100": ("M2.", "M4."),
    "vector widths, uncoalesced writes": ("M9.", "M6."),
    "L2 against DRAM": ("M5.", "C2."),
    "sum of floats": ("D1.",),
    "sum of integers": ("D2.",),
    "layer norm": ("N1.", "N2."),
    "matrix times vector": ("V1.", "V3."),
    "SGEMM, RTX A6000": ("G", "H6."),
    "SGEMM, other cards": ("H1.", "H3.", "H8.", "H9.", "L6."),
}


def picked(pick: str) -> tuple[Measurement, ...]:
    """Return the rows of one of PICKS, in the order of MEASUREMENTS."""
    return tuple(row for row in MEASUREMENTS if row.id.startswith(PICKS[pick]))


def measurement(name: str) -> Measurement:
    """Return the row of this id. Raises ValueError if there is none."""
    for row in MEASUREMENTS:
        if row.id == name:
            return row
    raise ValueError(f"unknown measurement {name!r}; ids are those of MEASUREMENTS")
