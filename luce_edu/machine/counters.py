"""The counts of a launch on the virtual GPU: instructions by kind and by line, lanes, bytes, barriers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Traffic:
    """Bytes of one tensor that a launch read and wrote, counted in three ways.

    asked     the sum of the bytes that all threads request
    moved     32 bytes for each sector that a warp's access touches: what must reach the SMs if L1 keeps nothing
    distinct  bytes that are touched at least once: the least that must come from, or go to, memory
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
    """The counts of one launch. All are exact counts of what it executed; none is a time.

    traffic    by tensor, see Traffic
    gaps       by tensor that was written in part: the first consecutive bytes that were never written
    barriers_a_block  bar.sync per block, on average
    atomics    counted per lane
    program    the program that ran
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
        """Bytes by tensor, for the tensors that were touched."""
        touched = np.flatnonzero(self._traffic["asked_read"] | self._traffic["asked_write"])
        # The first numbers of a row are Traffic's fields, in its order.
        return {self._names[i]: Traffic(*self._traffic[i].item()[:6]) for i in touched.tolist()}

    @cached_property
    def gaps(self) -> dict[str, tuple[int, int]]:
        """By tensor: begin and end of the first consecutive bytes that were never written."""
        return {
            name: (int(row["gap_begin"]), int(row["gap_end"]))
            for name, row in zip(self._names, self._traffic, strict=True)
            if row["distinct_write"] and row["gap_end"]
        }

    @cached_property
    def instructions(self) -> int:
        """Number of PTX instructions that warps executed."""
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
        """Count the warps' PTX instructions by opcode, most frequent first."""
        return self._by(lambda statement: statement.opcode)

    @cached_property
    def by_line(self) -> Counter:
        """Count the warps' PTX instructions by source line, (file, line), most frequent first."""
        return self._by(lambda s: (s.loc.file, s.loc.line) if s.loc else ("", s.line))

    @cached_property
    def active_lanes(self) -> float:
        """Average number of active lanes per instruction."""
        lanes = int(self._counts["lanes"] @ self.program.block_lengths.astype("u8"))
        return lanes / self.instructions if self.instructions else 0.0

    @cached_property
    def bank_conflicts(self) -> int:
        """Number of passes over the 32 banks of shared memory beyond the fewest that the accesses need."""
        fewest = self._sites["times"].astype("i8") * np.array(self.program.least_wavefronts, "i8")
        return int(np.maximum(self._sites["wavefronts"].astype("i8") - fewest, 0).sum())
