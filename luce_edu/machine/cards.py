"""The cards that the virtual GPU models: their resources, how many blocks an SM holds, which launches they refuse."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from luce_edu.errors import LaunchError
from luce_edu.tables import Tabular

WARP = 32  # threads
PARTITIONS = 4  # of an SM; a warp runs in one of them, with a quarter of the SM's registers
KIB, MIB, GIB = 2**10, 2**20, 2**30
MOST_GRID = (2**31 - 1, 65535, 65535)  # blocks in x, y, z, on every GPU since Kepler
MOST_BLOCK = (1024, 1024, 64)  # threads in x, y, z

# Memory bandwidth by datasheet, GB/s: NVIDIA's product pages. In practice a GPU reaches some 85 to 93 % of it.
DATASHEET_GB_PER_S = {
    "T4": 320,
    "RTX 3090": 936,
    "RTX 4090": 1008,
    "A100 80GB SXM": 2039,
    "RTX 5090": 1792,
    "H100 SXM": 3350,
    "H200 SXM": 4800,
    "RTX A6000": 768,
    "A40": 696,
    "L40": 864,
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of an SM and of a block, which depend on the compute capability. Memory is in bytes.

    registers_per_sm, registers_per_block  None if they limit nothing
    register_unit    a warp's registers are allocated in units of so many
    shared_per_block the most that a block may opt in to, static and dynamic together
    shared_unit      a block's shared memory is allocated in units of so many bytes
    shared_reserved  shared memory that CUDA reserves for each block
    max_cluster      the largest cluster that every GPU of this capability supports, in blocks; 1: no clusters
    """

    threads_per_sm: int
    blocks_per_sm: int
    shared_per_sm: int
    shared_per_block: int
    shared_unit: int = 128
    shared_reserved: int = KIB
    max_cluster: int = 1
    threads_per_block: int = 1024
    registers_per_sm: int | None = 64 * KIB
    registers_per_block: int | None = 64 * KIB
    register_unit: int = 256

    @property
    def warps_per_sm(self) -> int:
        return self.threads_per_sm // WARP


def _limits(threads: int, blocks: int, shared: int, **others) -> dict:
    """Make fields of Limits; `shared` is an SM's in KiB, of which a block may have all but the reserved part."""
    reserved = others.get("shared_reserved", KIB)
    return {
        "threads_per_sm": threads, "blocks_per_sm": blocks, "shared_per_sm": shared * KIB,
        "shared_per_block": shared * KIB - reserved,
    } | others  # fmt: skip


_LIMITS = {
    "sm_75": _limits(1024, 16, 64, shared_reserved=0, shared_unit=256),
    "sm_80": _limits(2048, 32, 164),
    "sm_86": _limits(1536, 16, 100),
    "sm_89": _limits(1536, 24, 100),
    "sm_90a": _limits(2048, 32, 228, max_cluster=8),
    "sm_100a": _limits(2048, 32, 228, max_cluster=8),
    "sm_120": _limits(1536, 24, 100, max_cluster=8),
}
LIMITS = {arch: Limits(**fields) for arch, fields in _LIMITS.items()}
LIMITS_SOURCE = (
    "CUDA C++ Programming Guide, technical specifications per compute capability; the units in which registers and "
    "shared memory are handed out, cuda_occupancy.h of CUDA 13.0"
)


@dataclass(frozen=True, kw_only=True)
class Card(Limits):
    """A GPU. Clocks are in MHz, memory_gb_per_s is the datasheet's (10^9 bytes), memory and L2 are in bytes.

    product         its name in DATASHEET_GB_PER_S
    arch            the virtual architecture that NVRTC compiles for
    base_clock_mhz  None if NVIDIA does not publish it
    source          of SMs, clocks, L2 and memory; the limits' is LIMITS_SOURCE
    """

    name: str
    product: str
    capability: tuple[int, int]
    arch: str
    sm_count: int
    base_clock_mhz: int | None
    boost_clock_mhz: int
    memory_gb_per_s: float
    memory_bytes: int
    dram: str
    l2_bytes: int
    source: str


def _card(name: str, arch: str, *, product: str | None = None, memory_gib: int, l2_mib: int, **facts) -> Card:
    number = int(arch.removeprefix("sm_").removesuffix("a"))
    facts.setdefault("memory_gb_per_s", DATASHEET_GB_PER_S.get(product or name))
    return Card(**_LIMITS[arch] | facts | {
        "name": name, "product": product or name, "capability": divmod(number, 10),
        "arch": arch.replace("sm", "compute"), "memory_bytes": memory_gib * GIB, "l2_bytes": l2_mib * MIB,
    })  # fmt: skip


CARDS = (
    _card(
        "laptop", "sm_89", sm_count=2, base_clock_mhz=1500, boost_clock_mhz=1500, memory_gb_per_s=16, memory_gib=4,
        dram="fictional", l2_mib=2, threads_per_sm=1024, blocks_per_sm=16, shared_per_sm=228 * KIB,
        shared_per_block=227 * KIB, registers_per_sm=None, registers_per_block=None, max_cluster=8,
        source="fictional: two SMs, so that kernels run quickly; shared memory as on Hopper and registers without "
        "limit, so that each kernel that fits a GPU fits here; bandwidth an SM as on an RTX 4090",
    ),
    _card(
        "T4", "sm_75", sm_count=40, base_clock_mhz=585, boost_clock_mhz=1590, memory_gib=16, dram="GDDR6", l2_mib=4,
        source="NVIDIA Turing GPU Architecture whitepaper, table of TU104; NVIDIA T4 datasheet",
    ),
    _card(
        "RTX 3090", "sm_86", sm_count=82, base_clock_mhz=1395, boost_clock_mhz=1695, memory_gib=24, dram="GDDR6X",
        l2_mib=6, source="NVIDIA Ampere GA102 GPU Architecture whitepaper, appendix A",
    ),
    _card(
        "RTX 4090", "sm_89", sm_count=128, base_clock_mhz=2235, boost_clock_mhz=2520, memory_gib=24, dram="GDDR6X",
        l2_mib=72, source="NVIDIA Ada GPU Architecture whitepaper, appendix A",
    ),
    _card(
        "RTX 5090", "sm_120", sm_count=170, base_clock_mhz=2017, boost_clock_mhz=2407, memory_gib=32, dram="GDDR7",
        l2_mib=96, source="NVIDIA RTX Blackwell GPU Architecture whitepaper; base clock, fpsbench.com",
    ),
    _card(
        "A100", "sm_80", product="A100 80GB SXM", sm_count=108, base_clock_mhz=None, boost_clock_mhz=1410,
        memory_gib=80, dram="HBM2e", l2_mib=40,
        source="NVIDIA A100 Tensor Core GPU Architecture whitepaper; memory, A100 80GB datasheet",
    ),
    _card(
        "H100", "sm_90a", product="H100 SXM", sm_count=132, base_clock_mhz=None, boost_clock_mhz=1980, memory_gib=80,
        dram="HBM3", l2_mib=50,
        source="NVIDIA H100 Tensor Core GPU Architecture whitepaper; the clock is the one behind the datasheet's "
        "67 TFLOPS of fp32",
    ),
    _card(
        "H200", "sm_90a", product="H200 SXM", sm_count=132, base_clock_mhz=None, boost_clock_mhz=1980, memory_gib=141,
        dram="HBM3e", l2_mib=60,
        source="NVIDIA H200 datasheet, compute as on the H100; SMs and L2 as PyTorch prints its device properties",
    ),
    # These three are here because the clock is compared with published measurements on them.
    _card(
        "RTX A6000", "sm_86", sm_count=84, base_clock_mhz=1410, boost_clock_mhz=1800, memory_gib=48, dram="GDDR6",
        l2_mib=6, source="NVIDIA RTX A6000 datasheet; clocks and L2 as card databases list them, sysrqmts.com",
    ),
    _card(
        "A40", "sm_86", sm_count=84, base_clock_mhz=1305, boost_clock_mhz=1740, memory_gib=48, dram="GDDR6", l2_mib=6,
        source="NVIDIA A40 product brief; clocks and L2 as card databases list them, sysrqmts.com",
    ),
    _card(
        "L40", "sm_89", sm_count=142, base_clock_mhz=735, boost_clock_mhz=2490, memory_gib=48, dram="GDDR6", l2_mib=96,
        source="NVIDIA L40 datasheet; clocks, pcpartdb.com; L2, where reads fall off it in te42kyfo/gpu-benches, "
        "gpu-l2-cache/l40.txt",
    ),
)  # fmt: skip


def find_card(name: str | None = None) -> Card:
    """Find a card by name; None: by LUCE_CARD, or `laptop`. Case, spaces, "NVIDIA" and "GeForce" do not matter.

    Raises ValueError with the known names.
    """
    origin = "card"
    if name is None:
        name, origin = os.environ.get("LUCE_CARD") or "laptop", "LUCE_CARD"
    for card in CARDS:
        if _plain(str(name)) in (_plain(card.name), _plain(card.product)):
            return card
    raise ValueError(f"{origin}: unknown card {name!r}; expected one of {', '.join(card.name for card in CARDS)}")


# Names of boards in PyTorch that are not NVIDIA's names of the products.
_BOARDS = {"Tesla T4": "T4", "NVIDIA A100-SXM4-80GB": "A100", "NVIDIA H100 80GB HBM3": "H100"}


def card_of(gpu: str) -> Card | None:
    """Return the card of a GPU with this name in PyTorch and NVML; None if it is not among CARDS."""
    try:
        return find_card(_BOARDS.get(gpu, gpu))
    except ValueError:
        return None


def _plain(name: str) -> str:
    name = name.lower().replace("nvidia", "").replace("geforce", "")
    return "".join(name.split())


class CardTable(Tabular):
    """The table of cards. Shared memory is that of an SM, the clock is the boost clock."""

    title = "Cards of the virtual GPU"
    header = ("card", "cc", "SMs", "threads/SM", "blocks/SM", "shared KiB", "MHz", "GB/s", "L2 MiB", "GiB")

    def __init__(self, chosen: Card):
        self.caption = f"default: {chosen.name}; choose another by LUCE_CARD or card="

    @property
    def body(self) -> list[list[str]]:
        return [
            [
                card.name, ".".join(map(str, card.capability)), *map(str, (
                    card.sm_count, card.threads_per_sm, card.blocks_per_sm, card.shared_per_sm // KIB,
                    card.boost_clock_mhz, card.memory_gb_per_s, card.l2_bytes // MIB, card.memory_bytes // GIB,
                )),
            ]
            for card in CARDS
        ]  # fmt: skip


def resident_blocks(limits: Limits, *, threads: int, registers: int = 0, shared_bytes: int = 0) -> int:
    """Return how many blocks an SM holds at once; 0 if a kernel cannot be launched with so many threads.

    registers     per thread, as ptxas reports them
    shared_bytes  per block, static and dynamic
    """
    if not 1 <= threads <= limits.threads_per_block or shared_bytes > limits.shared_per_block:
        return 0
    warps = -(-threads // WARP)
    blocks = [limits.blocks_per_sm, limits.warps_per_sm // warps]
    if registers and limits.registers_per_sm is not None:
        in_a_partition = limits.registers_per_sm // PARTITIONS // _round_up(WARP * registers, limits.register_unit)
        blocks.append(PARTITIONS * in_a_partition // warps)
    if shared := _round_up(shared_bytes + limits.shared_reserved, limits.shared_unit):
        blocks.append(limits.shared_per_sm // shared)
    return min(blocks)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def check_launch(
    card: Card, grid, block, smem: int = 0, registers: int = 0, static_shared: int = 0, cluster=None, *,
    cooperative: bool = False, kernel: str = "kernel",
) -> None:  # fmt: skip
    """Raise LaunchError for a launch that `card` refuses, with what was asked and the card's limit.

    grid, block, cluster  an int or up to three: blocks, threads per block, blocks per cluster
    smem, static_shared   shared memory per block in bytes, dynamic and static
    registers             per thread, as ptxas reports them; 0 if they are unknown
    cooperative           whether all blocks must be on the card at once
    """

    def refuse(what: str):
        raise LaunchError(f"{kernel}: {what}")

    grid, block = triple(kernel, "grid", grid), triple(kernel, "block", block)
    for what, unit, asked, most in (("grid", "blocks", grid, MOST_GRID), ("block", "threads", block, MOST_BLOCK)):
        for axis, n, limit in zip("xyz", asked, most, strict=True):
            if n > limit:
                refuse(f"{what} of {n} {unit} in {axis}; {card.name} takes at most {limit}")
    threads, blocks = block[0] * block[1] * block[2], grid[0] * grid[1] * grid[2]
    if threads > card.threads_per_block:
        refuse(f"block of {threads} threads; {card.name} takes at most {card.threads_per_block}")
    if type(smem) is not int or smem < 0:
        refuse(f"dynamic shared memory must be 0 or more bytes, got {smem!r}")
    if (shared := smem + static_shared) > card.shared_per_block:
        refuse(
            f"{shared} bytes of shared memory per block ({static_shared} static, {smem} dynamic); {card.name} has "
            f"{card.shared_per_block}"
        )
    if not resident_blocks(card, threads=threads, registers=registers):
        refuse(
            f"too many resources requested: {threads} threads of {registers} registers need {threads * registers}; "
            f"{card.name} has {card.registers_per_block} for a block, and a warp's come in units of "
            f"{card.register_unit}. Use fewer threads per block, or state their number in __launch_bounds__"
        )
    if cluster is not None:
        _check_cluster(card, grid, triple(kernel, "cluster", cluster), refuse)
    if cooperative:
        at_once = card.sm_count * resident_blocks(card, threads=threads, registers=registers, shared_bytes=shared)
        if blocks > at_once:
            refuse(f"cooperative grid of {blocks} blocks; {card.name} holds {at_once} of them at once")


def triple(kernel: str, what: str, size: int | Sequence[int]) -> tuple[int, int, int]:
    """Extend one to three sizes to three. Raises LaunchError for anything else."""
    sizes = tuple(size) if isinstance(size, tuple | list) else (size,)
    if not 1 <= len(sizes) <= 3 or not all(type(n) is int and n > 0 for n in sizes):
        raise LaunchError(f"{kernel}: {what} must be one to three positive ints, got {size!r}")
    return sizes + (1,) * (3 - len(sizes))


def _check_cluster(card: Card, grid: tuple[int, ...], cluster: tuple[int, ...], refuse) -> None:
    size = cluster[0] * cluster[1] * cluster[2]
    if size > 1 and card.max_cluster == 1:
        major, minor = card.capability
        refuse(f"cluster of {size} blocks; {card.name} has compute capability {major}.{minor}, clusters need 9.0")
    if size > card.max_cluster:
        refuse(f"cluster of {size} blocks; {card.name} takes at most {card.max_cluster}")
    if any(n % c for n, c in zip(grid, cluster, strict=True)):
        refuse(f"grid {grid} is not whole clusters of {cluster}")
