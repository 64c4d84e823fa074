"""Compute how many blocks of a kernel an SM holds at once, from the compiler's report and the GPU's limits."""

from __future__ import annotations

from luce_edu.machine.cards import LIMITS, PARTITIONS, WARP, resident_blocks
from luce_edu.machine.cubin import Resources


def registers_allowed(block_threads: int) -> int:
    """Return the registers that a thread of a block of this size may have: its share of the SM's, and at most 255."""
    limits = LIMITS["sm_80"]  # the same on every architecture here
    in_a_partition = -(-block_threads // WARP // PARTITIONS)
    a_warp = limits.registers_per_sm // PARTITIONS // in_a_partition
    return min(255, a_warp // limits.register_unit * limits.register_unit // WARP)


def blocks_per_sm(resources: Resources, block_threads: int, *, arch: str, dynamic_bytes: int = 0) -> int:
    """Return the blocks that an SM holds at once; 0 if the kernel cannot be launched with this many threads.

    resources      of the kernel, compiled for `arch`
    dynamic_bytes  of shared memory, requested at the launch
    Raises ValueError for an unknown arch. tests/measure/test_occupancy.py compares with the driver on a GPU.
    """
    if arch not in LIMITS:
        raise ValueError(f"unknown architecture {arch!r}; expected one of {', '.join(LIMITS)}")
    return resident_blocks(
        LIMITS[arch], threads=block_threads, registers=resources.registers,
        shared_bytes=resources.shared_bytes + dynamic_bytes,
    )  # fmt: skip
