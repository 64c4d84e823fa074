"""A model of a stage's time with a cost per byte, launch and barrier, fitted to a record.

    us = bytes / bandwidth + kernels * kernel_us[how they start] + barriers * barrier_us

`bytes` are the least that a step must move; `kernels` and `barriers` are counted in the ledger. The costs are fitted to
recorded stages and are larger than those of an empty kernel: the cost per kernel includes its ramp up, its tail and the
bytes that it moves twice. At most five constants are fitted to one row per stage and context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from luce_edu.measure.records.least_squares import non_negative_least_squares
from luce_edu.measure.records.rows import DecodeRow
from luce_edu.stages import STAGES, stage_class

# By stage: how its kernels start. Others are not modelled: Python sets the time of eager, and the blocks of streaming
# wait for words, which nothing counts.
STARTS = {stage: how for stage in STAGES if (how := stage_class(stage).starts)}


@dataclass(frozen=True)
class CostModel:
    """Constants: GB/s, and µs per kernel that starts "plain" or in a "graph", or per grid "barrier"."""

    gb_per_s: float
    each_us: Mapping[str, float]

    def us(self, row: DecodeRow) -> float:
        """Return the modelled µs of a row of a record's decode part; ValueError if its system is not modelled."""
        start, count = counted(row)
        return row.bytes / (self.gb_per_s * 1e3) + count * self.each_us[start]

    def parts(self, row: DecodeRow) -> dict[str, float]:
        """Return the modelled µs by part: bytes, and launches or barriers."""
        start, count = counted(row)
        name = {"plain": "launches", "graph": "kernels of a graph", "barrier": "barriers"}[start]
        return {"bytes": row.bytes / (self.gb_per_s * 1e3), name: count * self.each_us[start]}

    def error(self, row: DecodeRow) -> float:
        """Return modelled over recorded time, minus 1."""
        return self.us(row) / row.latency_us.median - 1


def is_modelled(row: DecodeRow) -> bool:
    """Return whether a row's system is modelled and its kernels or barriers were counted."""
    return _count(row) is not None


def counted(row: DecodeRow) -> tuple[str, int]:
    """Return how the kernels of a row start, and the number of kernels or barriers."""
    if (count := _count(row)) is None:
        raise ValueError(f"{row.system}: expected one of {', '.join(STARTS)}, with its kernels or barriers counted")
    return STARTS[row.system], count


def _count(row: DecodeRow) -> int | None:
    start = STARTS.get(row.system)
    return row.barriers if start == "barrier" else row.kernels if start else None


def fit(rows: Sequence[DecodeRow]) -> CostModel:
    """Fit non-negative constants by least squares of the relative errors.

    rows  a record's decode part; rows that are not modelled are left out
    Raises ValueError unless there are more rows than constants, as the fit would be exact and prove nothing, and if the
    rows do not separate bytes from launches.
    """
    rows = [row for row in rows if is_modelled(row)]
    starts = sorted({STARTS[row.system] for row in rows})
    if len(rows) <= 1 + len(starts):
        raise ValueError(f"{len(rows)} rows for {1 + len(starts)} constants: expected more rows than constants")
    measured = np.array([row.latency_us.median for row in rows])
    columns = [np.array([row.bytes / 1e3 for row in rows])]
    for start in starts:
        columns.append(np.array([counted(row)[1] if STARTS[row.system] == start else 0 for row in rows]))
    matrix = np.stack(columns, axis=1) / measured[:, None]
    costs, _ = non_negative_least_squares(matrix, np.ones(len(rows)))
    if costs[0] <= 0:
        raise ValueError("the rows do not separate bytes from launches: their times do not grow with their bytes")
    return CostModel(1 / costs[0], dict(zip(starts, costs[1:].tolist(), strict=True)))
