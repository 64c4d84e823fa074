"""The launch ledger: both backends add a line for every kernel that they start, so that launches are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luce_edu.errors import LaunchError
from luce_edu.machine.counters import Counters, Traffic

if TYPE_CHECKING:
    from luce_edu.machine.timed import LaunchTimes


@dataclass(frozen=True)
class Launch:
    """One launch: grid in blocks, block in threads, smem in bytes of dynamic shared memory.

    captured          for a CUDA graph: the launches in one replay
    traffic           bytes by tensor; None if they were not counted
    barriers_a_block  __syncthreads per block, on average; None on a GPU
    counters          everything that the virtual GPU counted; None on a GPU
    times             modelled by the clock of the virtual GPU; None without a clock
    product           for a library's matrix product: its rows, outputs and inputs; None for a kernel
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    smem: int
    cooperative: bool
    captured: tuple[Launch, ...] = ()
    traffic: Mapping[str, Traffic] | None = None
    barriers_a_block: float | None = None
    counters: Counters | None = field(default=None, compare=False, repr=False)
    times: LaunchTimes | None = field(default=None, compare=False, repr=False)
    product: tuple[int, int, int] | None = field(default=None, compare=False)


def graph_launch(captured: Sequence[Launch]) -> Launch:
    """Make the one line for a replay of a CUDA graph."""
    return Launch("graph", (1, 1, 1), (1, 1, 1), smem=0, cooperative=False, captured=tuple(captured))


# A matrix product by a library counts as one line, however many kernels the library uses.
PRODUCT = Launch("matmul", (1, 1, 1), (1, 1, 1), smem=0, cooperative=False)


def check_product(x, weights: Sequence, out) -> None:
    """Raise LaunchError unless x [rows, inputs], weights [outputs, inputs], out [rows, all outputs] fit, all bf16."""
    import torch

    wanted = (len(x), sum(len(weight) for weight in weights))
    fits = all(t.dtype == torch.bfloat16 and t.dim() == 2 for t in (x, out, *weights)) and out.is_contiguous()
    if not fits or tuple(out.shape) != wanted or any(weight.shape[1] != x.shape[1] for weight in weights):
        shapes = ", ".join(f"{t.dtype} {list(t.shape)}" for t in (x, *weights, out))
        raise LaunchError(f"matmul: expected bf16 x [rows, inputs], weights [outputs, inputs] and out, got {shapes}")


@dataclass
class Ledger:
    """The launches since the last `clear`, in order."""

    entries: list[Launch] = field(default_factory=list)

    def record(self, launch: Launch) -> None:
        self.entries.append(launch)

    def clear(self) -> None:
        self.entries.clear()

    def __len__(self) -> int:
        return len(self.entries)

    def by_kernel(self) -> dict[str, int]:
        """Count the launches of each kernel, most frequent first."""
        return dict(Counter(entry.kernel for entry in self.entries).most_common())

    def kernels(self) -> list[Launch]:
        """List every kernel that ran; those of a graph one by one."""
        return [kernel for entry in self.entries for kernel in (entry.captured or (entry,))]

    def traffic(self) -> dict[str, Traffic]:
        """Add up the traffic of all kernels, by tensor. Raises ValueError if some kernel was not counted."""
        total: dict[str, Traffic] = {}
        for entry in self.kernels():
            if entry.traffic is None:
                raise ValueError(f"{entry.kernel}: a GPU does not count traffic; use the virtual GPU, device='host'")
            for name, traffic in entry.traffic.items():
                total[name] = total.get(name, Traffic()) + traffic
        return total
