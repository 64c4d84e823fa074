"""The pictures of notebook 02: one update of a state, values read by rule, the windows of a convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from luce_edu.plots.style import BLUE, GREEN, INK, PURPLE, SKY, VERMILLION, Picture, picture


def state_update(before, written, after, *, names: Sequence[str], provenance: str = "") -> Picture:
    """Draw one update of a state as three annotated heatmaps: before + written = after.

    before, written, after  matrices [K, V], as nested lists, arrays or CPU tensors
    names                   the titles of the three
    Raises ValueError unless the third is the sum of the first two.
    """
    matrices = [np.asarray(matrix, dtype=float) for matrix in (before, written, after)]
    rows, columns = matrices[0].shape
    if any(matrix.shape != (rows, columns) for matrix in matrices):
        raise ValueError(f"expected three matrices of one shape, got {[matrix.shape for matrix in matrices]}")
    if not np.allclose(matrices[0] + matrices[1], matrices[2], atol=1e-4):
        raise ValueError("after: expected the sum of before and written")
    figure = picture(3.2 + 1.8 * columns, 1.5 + 0.5 * rows, provenance)
    largest = max(np.abs(matrix).max() for matrix in matrices) or 1
    colours = LinearSegmentedColormap.from_list("signed", [VERMILLION, "white", BLUE])
    panels = zip(figure.subplots(1, 3), matrices, names, ("", "+", "="), strict=True)
    for axes, matrix, name, sign in panels:
        axes.imshow(matrix, cmap=colours, vmin=-1.3 * largest, vmax=1.3 * largest, aspect="auto")
        for (i, j), value in np.ndenumerate(matrix):
            axes.text(j, i, _signed(value), ha="center", va="center", fontsize=11)
        axes.set_title(name, fontsize=11)
        axes.set_xticks(range(columns))
        axes.set_yticks(range(rows))
        axes.set_xlabel("value dimension")
        axes.tick_params(length=0)
        axes.text(-0.2, 0.5, sign, transform=axes.transAxes, fontsize=20, ha="center", va="center")
        _grid(axes, rows, columns)
    figure.axes[0].set_ylabel("key dimension")
    return figure


def answers_by_write(answers: Mapping[str, Sequence[float]], truth: float, *, provenance: str = "") -> Picture:
    """Draw the value that is read with a key after each write of the same value under it, one line per rule.

    answers  by rule: the value read after each write
    truth    the value that was written each time
    """
    figure = picture(8, 3.4, provenance)
    axes = figure.subplots()
    writes = max(map(len, answers.values()))
    axes.hlines(truth, 0.7, writes, color=INK, linewidth=1.2, linestyle="--")
    styles = zip((VERMILLION, GREEN, BLUE, PURPLE), "s^oD", strict=True)
    for (name, values), (colour, marker) in zip(answers.items(), styles, strict=False):
        axes.plot(range(1, len(values) + 1), values, color=colour, marker=marker)
        axes.annotate(f"{values[-1]:.1f}  {name}", (len(values), values[-1]), xytext=(10, 0), va="center",
                      textcoords="offset points", color=colour)  # fmt: skip
    axes.set_xlim(0.7, 1.5 * writes)
    axes.set_xticks(range(1, writes + 1))
    axes.set_ylim(0, 1.15 * max(map(max, answers.values())))
    axes.set_xlabel("number of writes of v under k", x=0.35)
    axes.set_ylabel("value read with k (dashed: v)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def conv_windows(windows, *, provenance: str = "") -> Picture:
    """Draw the inputs of one channel in each token's window of a causal convolution, and which of them the state keeps.

    windows  [T, kernel], oldest input first, as nested lists, an array or a CPU tensor; zeros before the first token
    """
    windows = np.asarray(windows, dtype=float)
    tokens, kernel = windows.shape
    before = kernel - 1
    figure = picture(8, 1.7 + 0.44 * tokens, provenance)
    axes = figure.subplots()
    for t, window in enumerate(windows):
        for j, value in enumerate(window):
            colour = "#E4E4E4" if j == 0 else SKY
            axes.add_patch(Rectangle((t + j - before - 0.5, t - 0.42), 1, 0.84, facecolor=colour, edgecolor="white"))
            axes.text(t + j - before, t, f"{value:g}", ha="center", va="center", fontsize=11)
        axes.add_patch(Rectangle((t - 0.5, t - 0.42), 1, 0.84, facecolor="none", edgecolor=INK, linewidth=1.6))
    axes.axvline(-0.5, color=INK, linewidth=1, linestyle="--")
    axes.set_xlim(-before - 0.6, tokens - 0.4)
    axes.set_ylim(tokens - 0.4, -0.6)
    axes.set_xticks(range(-before, tokens))
    axes.set_yticks(range(tokens), [f"token {t}" for t in range(tokens)])
    axes.tick_params(length=0)
    axes.set_xlabel("position of the input (left of the dashed line: zeros, before the first token)")
    axes.legend(
        [Rectangle((0, 0), 1, 1, facecolor="#E4E4E4"), Rectangle((0, 0), 1, 1, facecolor=SKY),
         Rectangle((0, 0), 1, 1, facecolor="none", edgecolor=INK, linewidth=1.6)],
        ["used for the last time", "used, and kept in conv_state", "the token's own input"],
        frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 1),
    )  # fmt: skip
    axes.spines[:].set_visible(False)
    return figure


def _signed(value: float) -> str:
    """Return a number with three digits; 0 for a rounding error."""
    return "0" if abs(value) < 1e-4 else f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _grid(axes: Axes, rows: int, columns: int) -> None:
    """Draw thin lines between the cells of a heatmap."""
    axes.set_xticks([j - 0.5 for j in range(1, columns)], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, rows)], minor=True)
    axes.grid(which="minor", color="#BBBBBB", linewidth=0.8)
    axes.tick_params(which="minor", length=0)


def chunk_triangles(matrices: Mapping[str, Sequence], *, provenance: str = "") -> Picture:
    """Draw L of some chunks as heatmaps: how much of an earlier token's correction a later token subtracts.

    matrices  by name: [T, T], zero on the diagonal and above, as nested lists, arrays or CPU tensors. Up to eight
              tokens have their numbers written in
    Raises ValueError for a matrix with anything else on or above its diagonal.
    """
    figure = picture(1.5 + 4.8 * len(matrices), 4.9, provenance)
    colours = LinearSegmentedColormap.from_list("signed", [VERMILLION, "white", BLUE])
    for axes, (name, matrix) in zip(np.atleast_1d(figure.subplots(1, len(matrices))), matrices.items(), strict=True):
        matrix = np.asarray(matrix, dtype=float)
        tokens = len(matrix)
        if matrix.shape != (tokens, tokens) or np.triu(matrix).any() or not np.isfinite(matrix).all():
            raise ValueError(f"{name}: expected [T, T], finite, and zero on the diagonal and above")
        largest = np.abs(matrix).max() or 1
        below = np.ma.masked_array(matrix, np.triu(np.ones_like(matrix, dtype=bool)))
        axes.set_facecolor("#E4E4E4")
        image = axes.imshow(below, cmap=colours, vmin=-largest, vmax=largest, interpolation="nearest")
        if tokens <= 8:
            for i, j in zip(*np.tril_indices(tokens, -1), strict=True):
                ink = "white" if abs(matrix[i, j]) > 0.6 * largest else INK
                axes.text(j, i, _signed(matrix[i, j]), ha="center", va="center", fontsize=12, color=ink)
            _grid(axes, tokens, tokens)
        figure.colorbar(image, ax=axes, shrink=0.7)
        shown = range(0, tokens, 1 if tokens <= 8 else 16)
        axes.set_xticks(shown)
        axes.set_yticks(shown)
        axes.tick_params(length=0)
        axes.set_title(name, loc="left", fontsize=11)
        axes.set_xlabel("token j, whose correction is subtracted")
        axes.set_ylabel("token i, which subtracts")
    return figure
