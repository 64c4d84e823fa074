"""The launch ledger: both backends write a line for every kernel they start, so a count is never an assertion."""

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
    """One kernel start: grid and block in blocks and threads, smem in bytes of dynamic shared memory.

    captured          of a CUDA graph: the launches that one replay of it stands for
    traffic           by tensor; None where it was not counted
    barriers_a_block  __syncthreads that a block passed, on average; None on a GPU
    counters          all that the virtual GPU counted; None on a GPU
    times             what the clock of a virtual GPU says, modelled; None where there is no clock
    product           of a product by a library: its rows, outputs and inputs; None of a kernel
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
    """The one line for a replay of a CUDA graph."""
    return Launch("graph", (1, 1, 1), (1, 1, 1), smem=0, cooperative=False, captured=tuple(captured))


# A product of matrices by a library: one line, however many kernels the library takes for it.
PRODUCT = Launch("matmul", (1, 1, 1), (1, 1, 1), smem=0, cooperative=False)


def check_product(x, weights: Sequence, out) -> None:
    """LaunchError unless x [rows, inputs], weights [outputs, inputs] and out [rows, all outputs] are bf16 and fit."""
    import torch

    wanted = (len(x), sum(len(weight) for weight in weights))
    fits = all(t.dtype == torch.bfloat16 and t.dim() == 2 for t in (x, out, *weights)) and out.is_contiguous()
    if not fits or tuple(out.shape) != wanted or any(weight.shape[1] != x.shape[1] for weight in weights):
        shapes = ", ".join(f"{t.dtype} {list(t.shape)}" for t in (x, *weights, out))
        raise LaunchError(f"matmul: expected bf16 x [rows, inputs], weights [outputs, inputs] and out, got {shapes}")


@dataclass
class Ledger:
    """What was launched since the last `clear`, in order."""

    entries: list[Launch] = field(default_factory=list)

    def record(self, launch: Launch) -> None:
        self.entries.append(launch)

    def clear(self) -> None:
        self.entries.clear()

    def __len__(self) -> int:
        return len(self.entries)

    def by_kernel(self) -> dict[str, int]:
        """Launches of each kernel, most frequent first."""
        return dict(Counter(entry.kernel for entry in self.entries).most_common())

    def kernels(self) -> list[Launch]:
        """Every kernel that ran, those of graphs one by one."""
        return [kernel for entry in self.entries for kernel in (entry.captured or (entry,))]

    def traffic(self) -> dict[str, Traffic]:
        """The traffic of all kernels together, by tensor; ValueError where some kernel was not counted."""
        total: dict[str, Traffic] = {}
        for entry in self.kernels():
            if entry.traffic is None:
                raise ValueError(f"{entry.kernel}: a GPU counts no traffic; the virtual GPU does, with device='host'")
            for name, traffic in entry.traffic.items():
                total[name] = total.get(name, Traffic()) + traffic
        return total
