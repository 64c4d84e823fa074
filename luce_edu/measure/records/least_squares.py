"""Least squares with non-negative coefficients, for a few columns."""

from __future__ import annotations

import numpy as np


def non_negative_least_squares(matrix: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the x >= 0 for which matrix @ x is nearest to `wanted`, and the remaining sum of squares.

    matrix  [rows, columns]. Every choice of columns whose coefficient is not 0 is tried, so it may have only a few.
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
