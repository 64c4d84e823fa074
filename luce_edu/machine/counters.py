"""What a launch on the virtual GPU counted: instructions by kind and by line, lanes, bytes, barriers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Traffic:
    """Bytes of one tensor that a launch read and wrote, counted three ways by the virtual GPU.

    asked     what the threads asked for, added up
    moved     32 bytes for each sector that a warp's access touches: what has to reach the multiprocessors when nothing
              is kept in L1
    distinct  what was touched at all: the least that has to come from, or go to, memory
    """

    asked_read: int = 0
    asked_write: int = 0
    moved_read: int = 0
    moved_write: int = 0
    distinct_read: int = 0
    distinct_write: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Counters:
    """What one launch counted. All figures are exact counts of what it executed, none is a time.

    traffic    by tensor: bytes asked for, moved in sectors of 32, and touched at all
    gaps       by tensor that was written and not wholly: the first bytes in a row that nobody wrote
    barriers_a_block  bar.sync that a block passed, on average
    atomics    of single lanes
    program    what ran
    """

    def __init__(self, launch):
        self.kernel, self.grid, self.block = launch.kernel.name, launch.grid, launch.block
        self.program = launch.kernel.program
        self._counts, self._sites = launch.counts.copy(), launch.sites.copy()
        self._traffic, self._names = launch.traffic.copy(), launch.tensors.names
        self.barriers_a_block = float(launch.totals[0]) / math.prod(launch.grid)
        self.atomics = int(launch.totals[1])

    @cached_property
    def traffic(self) -> dict[str, Traffic]:
        touched = np.flatnonzero(self._traffic["asked_read"] | self._traffic["asked_write"])
        # In the order of Traffic's fields, which are the first of a row's.
        return {self._names[i]: Traffic(*self._traffic[i].item()[:6]) for i in touched.tolist()}

    @cached_property
    def gaps(self) -> dict[str, tuple[int, int]]:
        return {
            name: (int(row["gap_begin"]), int(row["gap_end"]))
            for name, row in zip(self._names, self._traffic, strict=True)
            if row["distinct_write"] and row["gap_end"]
        }

    @cached_property
    def instructions(self) -> int:
        """PTX instructions that warps executed."""
        return int(self._counts["times"] @ self.program.block_lengths.astype("u8"))

    def _by(self, key) -> Counter:
        total: Counter = Counter()
        for statements, times in zip(self.program.block_instructions, self._counts["times"], strict=True):
            if times:
                for statement in statements:
                    total[key(statement)] += int(times)
        return Counter(dict(total.most_common()))

    @cached_property
    def by_kind(self) -> Counter:
        """PTX instructions of warps by opcode, most frequent first."""
        return self._by(lambda statement: statement.opcode)

    @cached_property
    def by_line(self) -> Counter:
        """PTX instructions of warps by source line, as (file, line), most frequent first."""
        return self._by(lambda s: (s.loc.file, s.loc.line) if s.loc else ("", s.line))

    @cached_property
    def active_lanes(self) -> float:
        """Lanes that were on in an instruction, on average."""
        lanes = int(self._counts["lanes"] @ self.program.block_lengths.astype("u8"))
        return lanes / self.instructions if self.instructions else 0.0

    @cached_property
    def bank_conflicts(self) -> int:
        """Passes over the 32 banks of shared memory beyond the fewest that each access needs."""
        fewest = self._sites["times"].astype("i8") * np.array(self.program.least_wavefronts, "i8")
        return int(np.maximum(self._sites["wavefronts"].astype("i8") - fewest, 0).sum())
