"""The launch ledger: both backends write a line for every kernel they start, so a count is never an assertion."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Launch:
    """One kernel start: grid and block in blocks and threads, smem in bytes of dynamic shared memory."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    smem: int
    cooperative: bool


@dataclass
class Ledger:
    """What was launched since the last `clear`, in order."""

    entries: list[Launch] = field(default_factory=list)

    def record(self, *, kernel: str, grid, block, smem: int, cooperative: bool) -> None:
        self.entries.append(Launch(kernel, grid, block, smem, cooperative))

    def clear(self) -> None:
        self.entries.clear()

    def __len__(self) -> int:
        return len(self.entries)

    def by_kernel(self) -> dict[str, int]:
        """Launches of each kernel, most frequent first."""
        return dict(Counter(entry.kernel for entry in self.entries).most_common())
