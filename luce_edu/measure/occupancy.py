"""How many blocks of a kernel an SM holds at once, from the compiler's report and the GPU's limits. Needs no GPU."""

from __future__ import annotations

from dataclasses import dataclass

from luce_edu.backends.cuda import Resources

REGISTERS = 64 * 1024  # of an SM, on every architecture here
REGISTER_UNIT = 256  # a warp's registers are handed out in units of this many
PARTITIONS = 4  # of an SM; a warp lives in one of them, with a quarter of the registers


@dataclass(frozen=True)
class Limits:
    """What an SM holds at most: threads, blocks, bytes of shared memory. Each block costs `reserved` of these too."""

    threads: int
    blocks: int
    shared_bytes: int
    reserved: int = 1024


# NVIDIA, CUDA C++ Programming Guide, technical specifications by compute capability; the same numbers stand in CCCL's
# cuda/__device/arch_traits.h.
LIMITS = {
    "sm_75": Limits(1024, 16, 64 * 1024, reserved=0),
    "sm_80": Limits(2048, 32, 164 * 1024),
    "sm_86": Limits(1536, 16, 100 * 1024),
    "sm_89": Limits(1536, 24, 100 * 1024),
    "sm_90a": Limits(2048, 32, 228 * 1024),
    "sm_100a": Limits(2048, 32, 228 * 1024),
    "sm_120": Limits(1536, 24, 100 * 1024),
}


def registers_allowed(block_threads: int) -> int:
    """Registers that a thread of such a block may have: its warps share an SM's, and no thread has more than 255."""
    warps = -(-block_threads // 32)
    in_a_partition = -(-warps // PARTITIONS)
    return min(255, REGISTERS // PARTITIONS // in_a_partition // REGISTER_UNIT * REGISTER_UNIT // 32)


def blocks_per_sm(resources: Resources, block_threads: int, *, arch: str, dynamic_bytes: int = 0) -> int:
    """Blocks that an SM holds at once; 0 for a kernel that cannot be launched with so many threads.

    resources      of the kernel, compiled for `arch`
    dynamic_bytes  of shared memory, asked for at the launch
    Raises ValueError for an unknown arch. On a GPU tests/measure/test_occupancy.py asks the driver for the same number.
    """
    if arch not in LIMITS:
        raise ValueError(f"unknown architecture {arch!r}; expected one of {', '.join(LIMITS)}")
    limits, warps = LIMITS[arch], -(-block_threads // 32)
    of_a_warp = -(-32 * resources.registers // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = PARTITIONS * (REGISTERS // PARTITIONS // of_a_warp) // warps if of_a_warp else limits.blocks
    shared = resources.shared_bytes + dynamic_bytes + limits.reserved
    by_shared = limits.shared_bytes // shared if shared else limits.blocks
    return min(limits.blocks, limits.threads // (32 * warps), by_registers, by_shared)
