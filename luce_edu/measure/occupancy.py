"""How many blocks of a kernel an SM holds at once, from the compiler's report and the GPU's limits. Needs no GPU."""

from __future__ import annotations

from luce_edu.machine.cards import LIMITS, PARTITIONS, WARP, resident_blocks
from luce_edu.machine.cubin import Resources


def registers_allowed(block_threads: int) -> int:
    """Registers that a thread of such a block may have: its warps share an SM's, and no thread has more than 255."""
    limits = LIMITS["sm_80"]  # as on every architecture here
    in_a_partition = -(-block_threads // WARP // PARTITIONS)
    a_warp = limits.registers_per_sm // PARTITIONS // in_a_partition
    return min(255, a_warp // limits.register_unit * limits.register_unit // WARP)


def blocks_per_sm(resources: Resources, block_threads: int, *, arch: str, dynamic_bytes: int = 0) -> int:
    """Blocks that an SM holds at once; 0 for a kernel that cannot be launched with so many threads.

    resources      of the kernel, compiled for `arch`
    dynamic_bytes  of shared memory, asked for at the launch
    Raises ValueError for an unknown arch. On a GPU tests/measure/test_occupancy.py asks the driver for the same number.
    """
    if arch not in LIMITS:
        raise ValueError(f"unknown architecture {arch!r}; expected one of {', '.join(LIMITS)}")
    return resident_blocks(
        LIMITS[arch], threads=block_threads, registers=resources.registers,
        shared_bytes=resources.shared_bytes + dynamic_bytes,
    )  # fmt: skip
