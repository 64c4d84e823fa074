"""What one warp's loads do on the virtual GPU: when each is issued and used, and where they collide in shared memory.

The kernels are in csrc/probes.cu.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from luce_edu.backends.host import HostBackend
from luce_edu.errors import check_int
from luce_edu.machine.cards import WARP, find_card
from luce_edu.machine.clock import find_clock
from luce_edu.machine.schedule import BYPASS, LOAD
from luce_edu.machine.timed import LaunchTimes, run_timed

SOURCE, KERNELS = "probes.cu", ("one_at_a_time", "all_at_once", "read_shared")
MOST_LOADS = 16
BANKS = 32  # of shared memory, each a word of 4 bytes wide


@dataclass(frozen=True)
class Loads:
    """Some 16-byte loads of one warp in time; modelled for `card`.

    begin_ns, end_ns  by load: when it is issued, and when the first instruction that needs its value is
    bytes_each        of the 32 lanes together
    """

    card: str
    begin_ns: Sequence[float]
    end_ns: Sequence[float]
    bytes_each: int = 16 * WARP

    @property
    def total_ns(self) -> float:
        """From the first issue until the last value is used."""
        return max(self.end_ns) - min(self.begin_ns)

    @property
    def gb_per_s(self) -> float:
        """Bytes over time."""
        return self.bytes_each * len(self.begin_ns) / self.total_ns


def time_loads(kernel: str, *, card: str = "RTX 3090", loads: int = 8) -> Loads:
    """Run `one_at_a_time` or `all_at_once` with the clock on, alone on the card and with nothing in a cache.

    Raises ValueError for another kernel, an unknown card, and a number of loads beyond 1 to MOST_LOADS.
    """
    if kernel not in KERNELS[:2]:
        raise ValueError(f"kernel: expected one of {', '.join(KERNELS[:2])}; got {kernel!r}")
    check_int("loads", loads, 1, MOST_LOADS)
    card = find_card(card)
    compiled = HostBackend(card=card).compile(SOURCE, KERNELS, {"BLOCK_THREADS": WARP, "LOADS": loads})[kernel]
    zeros, total = torch.zeros(loads * WARP * 8, dtype=torch.bfloat16), torch.zeros(WARP, dtype=torch.int32)
    (times,), _ = run_timed([compiled.prepare(1, WARP, [zeros, total])])
    entries, issued = times.schedule.entries, issue_cycles(times)
    found = np.flatnonzero(np.isin(entries["kind"], (LOAD, BYPASS)))
    # The kernel is one basic block, so an entry's sources are numbers of entries.
    used = [min(issued[i] for i in range(len(entries)) if load in entries["sources"][i]) for load in found]
    ns = 1e3 / find_clock(card).clock_mhz
    return Loads(card.name, (issued[found] * ns).tolist(), (np.array(used) * ns).tolist())


def issue_cycles(times: LaunchTimes) -> np.ndarray:
    """Return the cycle, counted from the start, at which each machine instruction issues.

    The kernel must be run by one warp, once from top to bottom.

    A warp issues in order, so an instruction comes after all issues and waits before it. ValueError where instructions
    were issued more than once: by a loop, or by several warps.
    """
    entries, spent = times.schedule.entries, times.instructions
    if len(times.schedule.blocks) != 1 or (spent["issued"] > entries["issues"]).any():
        raise ValueError(f"{times.kernel}: expected one warp and no branch, got several issues of an instruction")
    waited = sum(spent[reason] for reason in ("slot", "operand", "memory", "barrier"))
    return np.cumsum(waited + spent["issued"]) - spent["issued"]


def bank_conflicts(first_words: Sequence[int]) -> int:
    """Return the turns beyond the fewest of a shared load in which lane l reads 16 bytes from word first_words[l].

    Counted by the virtual GPU. ValueError unless there are 32 multiples of 4 from 0 to 252.
    """
    words = torch.as_tensor(np.asarray(first_words), dtype=torch.int32)
    if words.shape != (WARP,) or (words % 4).any() or words.min() < 0 or words.max() > 252:
        raise ValueError(f"first_words: expected 32 multiples of 4 from 0 to 252, got {words.tolist()}")
    backend = HostBackend()
    kernel = backend.compile(SOURCE, KERNELS, {"BLOCK_THREADS": WARP, "LOADS": 1})["read_shared"]
    backend.launch(kernel, 1, WARP, 0, [words, torch.zeros(WARP)])
    return backend.ledger.entries[-1].counters.bank_conflicts
