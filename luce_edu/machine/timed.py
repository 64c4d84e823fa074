"""Run launches with the clock on, which models when each machine instruction issues on a card.

The kernels' results are the same as without a clock. All times are modelled, for the card that they name.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luce_edu.errors import LaunchError
from luce_edu.machine.assemble import Program
from luce_edu.machine.clock import Clock, find_clock
from luce_edu.machine.core import Report, core, thread_count
from luce_edu.machine.counters import Counters
from luce_edu.machine.kernels import Prepared, finish, launch_texts
from luce_edu.machine.schedule import Schedule, schedule

WAIT = np.dtype([
    ("sm", "i4"), ("block", "i4"), ("warp", "i4"), ("row", "i4"), ("launch", "i4"), ("begin", "f8"), ("end", "f8"),
], align=True)  # fmt: skip
_REASONS = ("slot", "operand", "memory", "barrier")
INSTRUCTION_TIMES = np.dtype([(name, "f8") for name in ("issued", *_REASONS)])
QUADRANTS = 4  # of an SM
_ALIGNMENT = 512  # bytes, as with cudaMalloc and PyTorch
_NO_WAITS = 1e300
_MOST_WAITS = 1_000_000
_MOST_BUCKETS = 1 << 20


def _doubles(*names: str):
    return tuple((name, ctypes.c_double) for name in names)


class Times(ctypes.Structure):
    """The constants of a card, from a Clock."""

    _fields_ = _doubles(
        "sm_count", "shared_latency", "l1_latency", "l2_latency", "dram_latency", "load_64_extra", "load_128_extra",
        "memory_floor", "lines_base", "lines_per_cycle", "l1_bytes_per_cycle", "l1_bytes", "l2_bytes",
        "l2_bytes_per_cycle", "sm_bytes_per_cycle", "dram_bytes_per_cycle", "inflight_bytes", "inflight_lines",
        "atomic_extra", "atomic_interval", "fence", "sc_fence", "block_fence", "system_fence", "barrier_base",
        "barrier_per_warp", "block_interval", "block_start", "dram_turn", "l2_far_extra", "slice_interval", "queue",
        "async_copy_extra", "bulk_copy_extra", "cluster_barrier", "cluster_barrier_relaxed", "cluster_latency",
    )  # fmt: skip


class Found(ctypes.Structure):
    """The times and traffic of a launch."""

    _fields_ = (
        *_doubles("begin", "end", "dram_read", "dram_written", "l2_bytes", "l1_hits", "l1_misses", "issued"),
        ("waited", ctypes.c_double * 4),
    )


class TimedText(ctypes.Structure):
    """A launch for the clock: its machine instructions, addresses, and results."""

    _fields_ = (
        ("instructions", ctypes.c_void_p), ("blocks", ctypes.c_void_p), ("blocks_count", ctypes.c_int32),
        ("instructions_count", ctypes.c_int32), ("slots_count", ctypes.c_int32), ("addresses", ctypes.c_void_p),
        ("start", ctypes.c_double),
        ("found", Found), ("times", ctypes.c_void_p),
    )  # fmt: skip


class ClockText(ctypes.Structure):
    """A card for the clock, and the arrays of its time line."""

    _fields_ = (
        ("times", Times), ("wait_from", ctypes.c_double), ("bucket", ctypes.c_double), ("waits", ctypes.c_void_p),
        ("dram_use", ctypes.c_void_p), ("waits_count", ctypes.c_uint64), ("dram_count", ctypes.c_uint64),
    )  # fmt: skip


@dataclass(frozen=True)
class LaunchTimes:
    """The modelled times of one launch.

    begin_us, us     its start, counted from the start of the run, and its duration from the first block to the last
    gap_us           time between the end of the launch before it and its start
    dram_read_bytes, dram_written_bytes, l2_bytes  bytes moved
    l1_hits, l1_misses   sectors of 32 bytes
    issued           machine instructions of warps
    waited_us        of all warps together, for: an issue slot or pipe, operands, memory, barriers
    instructions     by machine instruction (INSTRUCTION_TIMES), in cycles; `schedule` describes them
    """

    kernel: str
    begin_us: float
    us: float
    dram_read_bytes: float
    dram_written_bytes: float
    l2_bytes: float
    l1_hits: float
    l1_misses: float
    issued: float
    waited_us: dict[str, float]
    instructions: np.ndarray
    schedule: Schedule
    counters: Counters
    gap_us: float = 0.0


@dataclass(frozen=True)
class Timeline:
    """The time line of a run, SM by SM. Times are in cycles from the start of the run.

    waits       rows of WAIT: a block at a barrier, from the arrival of its first warp until the barrier opened.
                `launch` counts from 0, and `row` is a slot of the kernel's code. Row -1: the time of the block on its
                SM
    dram_bytes  bytes that DRAM moved, by bucket
    """

    waits: np.ndarray
    dram_bytes: np.ndarray
    bucket_us: float


class Device:
    """A card with a clock. Its L2 keeps its contents from run to run."""

    def __init__(self, clock: Clock):
        self.clock = clock
        self.times = times_of(clock)
        self._core = core()
        self._handle = ctypes.c_void_p(self._core.luce_device(ctypes.byref(self.times)))
        self._places: dict[tuple[int, int], int] = {}
        self._end = 0

    def place(self, launch: Prepared) -> np.ndarray:
        """Return the addresses of a launch's tensors on this card, which depend only on the names."""
        tensors = launch.tensors
        for _, bounds in sorted(zip(tensors.names, tensors.bounds, strict=True)):
            if bounds not in self._places:
                self._places[bounds] = self._end
                self._end += -(-(bounds[1] - bounds[0]) // _ALIGNMENT) * _ALIGNMENT
        return np.array([self._places[bounds] for bounds in tensors.bounds], np.uint64)

    def __del__(self):
        if hasattr(self, "_handle"):
            self._core.luce_free_device(self._handle)


def times_of(clock: Clock) -> Times:
    """Convert a card's constants to the core's struct."""
    return Times(
        sm_count=clock.sm_count, shared_latency=clock.shared_latency, l1_latency=clock.l1_latency,
        l2_latency=clock.l2_latency, dram_latency=clock.dram_cycles, load_64_extra=clock.load_64_extra,
        load_128_extra=clock.load_128_extra, memory_floor=clock.shared_floor, lines_base=clock.l1_overhead,
        lines_per_cycle=clock.l1_lines_per_cycle, l1_bytes_per_cycle=clock.l1_bytes_per_cycle,
        l1_bytes=clock.l1_bytes, l2_bytes=clock.l2_bytes * clock.l2_share,
        l2_bytes_per_cycle=clock.l2_bytes_per_cycle, sm_bytes_per_cycle=clock.sm_bytes_per_cycle,
        dram_bytes_per_cycle=clock.dram_bytes_per_cycle, inflight_bytes=clock.inflight_bytes_per_sm,
        inflight_lines=clock.inflight_lines_per_sm, atomic_extra=clock.atomic_extra,
        atomic_interval=clock.atomic_interval, fence=clock.fence, sc_fence=clock.sc_fence,
        block_fence=clock.block_fence, system_fence=clock.system_fence, barrier_base=clock.barrier_base,
        barrier_per_warp=clock.barrier_per_warp,
        block_interval=clock.block_interval, block_start=clock.block_start,
        dram_turn=clock.dram_turn, l2_far_extra=clock.l2_far_extra, slice_interval=clock.slice_interval,
        queue=clock.queue_per_quadrant * QUADRANTS * clock.shared_floor, async_copy_extra=clock.async_copy_extra,
        bulk_copy_extra=clock.bulk_copy_extra, cluster_barrier=clock.cluster_barrier,
        cluster_barrier_relaxed=clock.cluster_barrier_relaxed, cluster_latency=clock.cluster_latency,
    )  # fmt: skip


_schedules: dict[tuple, tuple[Program, Schedule]] = {}


def schedule_of(program: Program, clock: Clock) -> Schedule:
    """Return the machine instructions of a program on a card; computed once."""
    key = id(program), clock.arithmetic
    if key not in _schedules:
        if len(_schedules) > 256:
            _schedules.clear()
        _schedules[key] = program, schedule(program, clock)  # keeps the program alive, so that no other gets its id
    return _schedules[key][1]


def run_timed(
    launches: Sequence[Prepared], device: Device | None = None, *, gap_us: float | Sequence[float] = 0.0,
    threads: int | None = None, wait_from_us: float | None = None, bucket_us: float = 1.0,
) -> tuple[list[LaunchTimes], Timeline]:  # fmt: skip
    """Run launches one after another with the clock on. A dependent launch does not overlap the one before it.

    device   the card; None: that of the launches, with an empty L2
    gap_us   by launch: time from the end of the launch before to its first block
    wait_from_us  the shortest wait that goes into the time line; None: no time line
    Raises LaunchError if there is no launch; KernelError and KeyboardInterrupt as `run` does.
    """
    if not launches:
        raise LaunchError("nothing to time: no launch")
    device = device or Device(find_clock(launches[0].kernel.card))
    clock, mhz = device.clock, device.clock.clock_mhz
    gaps = [gap_us] * len(launches) if isinstance(gap_us, int | float) else list(gap_us)
    texts = launch_texts(launches)
    timed = (TimedText * len(launches))()
    schedules = [schedule_of(launch.kernel.program, clock) for launch in launches]
    instructions = [np.zeros(len(s.entries), INSTRUCTION_TIMES) for s in schedules]
    places = [device.place(launch) for launch in launches]
    for text, s, times, gap, place in zip(timed, schedules, instructions, gaps, places, strict=True):
        text.addresses = place.ctypes.data
        text.instructions, text.blocks = s.entries.ctypes.data, s.blocks.ctypes.data
        text.blocks_count, text.instructions_count = len(s.blocks), len(s.entries)
        text.slots_count = s.slots
        text.start, text.times = gap * mhz, times.ctypes.data
    waits = np.zeros(_MOST_WAITS if wait_from_us is not None else 1, WAIT)
    dram_use = np.zeros(_MOST_BUCKETS if wait_from_us is not None else 1, np.float32)
    kept = (_NO_WAITS, 0.0) if wait_from_us is None else (wait_from_us * mhz, bucket_us * mhz)
    text = ClockText(
        device.times, *kept,
        waits.ctypes.data, dram_use.ctypes.data, len(waits), len(dram_use),
    )  # fmt: skip
    report = Report()
    core().luce_time(
        texts, timed, len(launches), ctypes.byref(text), device._handle, threads or thread_count(), ctypes.byref(report)
    )
    finish(report, launches)
    origin = timed[0].found.begin - timed[0].start
    found = [
        LaunchTimes(
            launch.kernel.name, (t.found.begin - origin) / mhz, (t.found.end - t.found.begin) / mhz, t.found.dram_read,
            t.found.dram_written, t.found.l2_bytes, t.found.l1_hits, t.found.l1_misses, t.found.issued,
            {name: cycles / mhz for name, cycles in zip(_REASONS, t.found.waited, strict=True)},
            times, s, Counters(launch), gap,
        )
        for launch, t, times, s, gap in zip(launches, timed, instructions, schedules, gaps, strict=True)
    ]  # fmt: skip
    if text.waits_count > len(waits):
        raise LaunchError(f"the time line has room for {len(waits):,} waits, got {text.waits_count:,}")
    waits = waits[: text.waits_count].copy()  # only the written part of both arrays takes memory
    for end in ("begin", "end"):
        waits[end] -= origin
    timeline = Timeline(waits, dram_use[: min(text.dram_count, len(dram_use))].copy(), bucket_us)
    return found, timeline
