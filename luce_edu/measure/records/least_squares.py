"""Least squares with few columns, where no coefficient may be negative."""

from __future__ import annotations

import numpy as np


def non_negative_least_squares(matrix: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, float]:
    """The x >= 0 with matrix @ x nearest to `wanted`, and the sum of squares that is left.

    matrix  [rows, columns]. With a handful of columns, every choice of those that are not 0 can be tried
    """
    columns = matrix.shape[1]
    best, least = np.zeros(columns), float("inf")
    for choice in range(1, 2**columns):
        used = [i for i in range(columns) if choice >> i & 1]
        solution = np.linalg.lstsq(matrix[:, used], wanted, rcond=None)[0]
        left = float(np.sum((matrix[:, used] @ solution - wanted) ** 2))
        if (solution >= 0).all() and left < least:
            best, least = np.zeros(columns), left
            best[used] = solution
    return best, least
