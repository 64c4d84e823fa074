"""The delta rule with tiles of other sizes: what the compiler says of them, whether they are right, how long they take.

The kernel is in csrc/delta_tiles.cu. A block of 128 threads has a tile of one head's state: all rows, and as many
columns as its threads can hold. A thread has four neighbouring columns of some rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from luce_edu.backends.host import HostBackend
from luce_edu.config import ModelConfig
from luce_edu.errors import check_int
from luce_edu.faults import Fault, planted
from luce_edu.machine.cards import Card, find_card
from luce_edu.machine.cubin import Binary, Resources, compile_cubin
from luce_edu.machine.kernels import Kernel
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.machine.sass import memory_instructions
from luce_edu.machine.timed import run_timed
from luce_edu.measure.occupancy import blocks_per_sm
from luce_edu.models import RANDOM_CONFIG
from luce_edu.reference.delta_rule import delta_rule_step, l2_norm
from luce_edu.stages.dims import kernel_defines
from luce_edu.verification import relative_error

SOURCE, KERNEL = "delta_tiles.cu", "delta_rule"
THREADS = 128  # of a block: the only size with which all four tiles fit into a head of 128 rows and columns
ROWS = (4, 8, 16, 32)  # that a thread may have
COLUMNS = 4  # that a thread has: 16 bytes of a row
LIMIT = 1e-5  # fp32 sums of 128 terms, in another order

# Loops that are not unrolled, so that the index of a thread's array is a variable, and the array in local memory.
_ROLLED = tuple(
    Fault(f"the {part} not unrolled", "delta_rule.cuh", f"#pragma unroll\n    // <{part}>", "#pragma unroll 1\n")
    for part in ("load", "products", "write")
)


@dataclass(frozen=True)
class Tile:
    """The kernel for one size of tile, for one card.

    rows         that a thread has, one of ROWS
    card         a name that `luce-edu cards` lists
    at_least     blocks that the compiler must make room for on an SM; 1 asks for nothing
    local_memory keep each thread's part of the state in local memory, not in registers
    Raises ValueError for other rows, an unknown card, and less than one block.
    """

    rows: int
    card: str = "RTX 3090"
    at_least: int = 1
    local_memory: bool = False

    def __post_init__(self):
        if self.rows not in ROWS:
            raise ValueError(f"rows: expected one of {', '.join(map(str, ROWS))}, got {self.rows!r}")
        check_int("at_least", self.at_least, 1)
        find_card(self.card)

    @property
    def columns(self) -> int:
        """The number of columns of the state in a block's tile."""
        return COLUMNS * THREADS * self.rows // _config().linear_key_head_dim

    @property
    def tiles(self) -> int:
        """The number of tiles in a layer of Qwen3.5-0.8B, and so of blocks that have work."""
        return _config().value_dim // self.columns

    @property
    def arch(self) -> str:
        """The architecture that machine code is compiled for, such as sm_86."""
        return self._card.arch.replace("compute", "sm")

    @cached_property
    def binary(self) -> Binary:
        """Machine code, by NVIDIA's compiler."""
        with planted(*_ROLLED * self.local_memory) as tree:
            return compile_cubin(SOURCE, [KERNEL], self._defines, self.arch, csrc=tree)

    @cached_property
    def ptx(self) -> str:
        """PTX by NVRTC, which the virtual GPU executes."""
        with planted(*_ROLLED * self.local_memory) as tree:
            return compile_ptx(SOURCE, None, [KERNEL], self._defines, self._card.arch, csrc=tree)

    @property
    def resources(self) -> Resources:
        """The compiler's report: registers, stack and spills of a thread, shared memory of a block."""
        return self.binary.resources[KERNEL]

    @property
    def memory_instructions(self) -> dict[str, int]:
        """Loads and stores in the machine code, by name."""
        return memory_instructions(self.binary, KERNEL)

    @property
    def resident(self) -> int:
        """The number of blocks that an SM holds at once."""
        return blocks_per_sm(self.resources, THREADS, arch=self.arch)

    @property
    def occupancy(self) -> float:
        """Warps of these blocks, as a share of the most that an SM holds."""
        return self.resident * THREADS / self._card.threads_per_sm

    def launch(self, grid: int | None = None, *, cooperative: bool = False) -> float:
        """Launch `grid` blocks (None: one per tile) on the virtual GPU; return the relative error of o and the state.

        Inputs are drawn, the outputs start as NaN. Raises AssertionError for an error above LIMIT, LaunchError where
        the card refuses the launch.
        """
        inputs, wanted = _case()
        tensors = [tensor.clone() for tensor in inputs]
        backend, kernel = self._compiled
        backend.launch(kernel, self.tiles if grid is None else grid, THREADS, 0, tensors, cooperative=cooperative)
        error = max(relative_error(got, want) for got, want in zip(tensors[-2:], wanted, strict=True))
        assert error <= LIMIT, f"{self.rows} rows per thread: relative error {error:.1e}, above {LIMIT:.0e}"
        return error

    def time_us(self) -> float:
        """Microseconds of a launch with a block per tile and nothing in a cache, modelled. Checks the result first.

        The clock times the PTX. So spills cost nothing here, and local memory does.
        """
        self.launch()
        _, kernel = self._compiled
        tensors = [tensor.clone() for tensor in _case()[0]]
        resident = kernel.resident_blocks(THREADS, 0)
        (times,), _ = run_timed([kernel.prepare(self.tiles, THREADS, tensors, resident=resident)])
        return times.us

    @property
    def _card(self) -> Card:
        return find_card(self.card)

    @property
    def _defines(self) -> dict[str, object]:
        sizes = {"BLOCK_THREADS": THREADS, "TILE_COLUMNS": self.columns, "BLOCKS_PER_SM": self.at_least}
        return kernel_defines(_config()) | sizes

    @cached_property
    def _compiled(self) -> tuple[HostBackend, Kernel]:
        with planted(*_ROLLED * self.local_memory) as tree:
            backend = HostBackend(card=self.card, csrc_dir=tree)
            kernel = backend.compile(SOURCE, [KERNEL], self._defines)[KERNEL]
            assert kernel.registers == self.resources.registers  # read while the tree is there
        return backend, kernel


def _config() -> ModelConfig:
    return ModelConfig.from_file(RANDOM_CONFIG)


def _case() -> tuple[list[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Arguments of the kernel for a drawn token, the outputs last, and what state and o should become."""
    config = _config()
    heads, key, value = config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(heads, key, generator=draw) for _ in range(2))
    v, state = torch.randn(heads, value, generator=draw), torch.randn(heads, key, value, generator=draw)
    beta, g = torch.rand(heads, generator=draw), -torch.rand(heads, generator=draw)
    wanted = state.clone()
    o = delta_rule_step(l2_norm(q) * key**-0.5, l2_norm(k), v, beta=beta, g=g, recurrent_state=wanted)
    return [q, k, v, beta, g, state, torch.full_like(o, torch.nan)], (wanted, o)
