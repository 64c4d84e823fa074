"""Show a heat map of source lines: beside each line its share of all waits, its instructions, and what they waited for.

    show_heat("csrc/matvec.cuh", luce_edu.profile("per_layer"), "warp_dot")
    show_heat(verdict)                                              of a %%kernel cell with --profile, kept with --as
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luce_edu.inline.trial import CELL, Verdict
from luce_edu.measure.profile import Profile
from luce_edu.show import Source, as_html, cell_source, coloured, display, find_source, whole_file

_COLUMNS = ("waits", "instr.", "slot", "operand", "memory", "barrier")
_WIDTHS = (6, 10, 5, 8, 7, 8)
_HOT = "230, 81, 0"  # red, green, blue; text in the theme's colour stays readable on it, in light and dark
_MOST_OPAQUE = 0.6


@dataclass(frozen=True)
class Heat:
    """The heat map that `show_heat` displays.

    cycles    by line of `source`: instructions that warps executed, and cycles that they waited for an issue slot, an
              operand, memory and a barrier, as in profile.LineTimes
    waits     cycles of all waits in the profile, of other lines too
    where     what ran, and on which card
    """

    source: Source
    cycles: np.ndarray
    waits: float
    where: str

    @property
    def shares(self) -> np.ndarray:
        """Return, for each line, its share of all waits."""
        return self.cycles[:, 1:].sum(axis=1) / (self.waits or 1.0)

    @property
    def heading(self) -> str:
        return f"{self.source.heading}: {self.shares.sum():.0%} of the waits of {self.where}"

    @property
    def _rows(self) -> list[list[str]]:
        """Return, for each line, the text of each column."""
        rows = []
        for share, (issued, *parts) in zip(self.shares, self.cycles.tolist(), strict=True):
            stalls = sum(parts) or 1.0
            kinds = [f"{part / stalls:.0%}" if part / stalls >= 0.005 else "" for part in parts]
            rows.append([f"{share:.1%}", f"{issued:,.0f}", *kinds] if issued + sum(parts) else [""] * len(_COLUMNS))
        return rows

    def __repr__(self) -> str:
        lines = self.source.numbered(self.source.text.split("\n"))
        shown = zip(map(_line, self._rows), lines, strict=True)
        rows = [f"{row}  {number}  {line}".rstrip() for row, (number, line) in shown]
        return "\n".join([self.heading, _line(_COLUMNS), *rows])

    def _repr_html_(self) -> str:
        faint = '<span style="opacity: 0.5; user-select: none">{}</span>'
        lines = self.source.numbered(coloured(self.source.text, self.source.path))
        hottest = self.shares.max() or 1.0
        shown = [faint.format(html.escape(_line(_COLUMNS)))]
        for share, row, (number, line) in zip(self.shares, self._rows, lines, strict=True):
            colour = f"rgba({_HOT}, {_MOST_OPAQUE * share / hottest:.2f})"
            shown.append(f'<span style="background: {colour}">{_line(row)} </span>{faint.format(f" {number}  ")}{line}')
        return as_html(self.heading, shown)


def _line(row: Sequence[str]) -> str:
    return "".join(text.rjust(width) for text, width in zip(row, _WIDTHS, strict=True))


def show_heat(what: object, profile: Profile | None = None, name: str | None = None) -> None:
    """Display source lines, and beside each its share of all waits, its machine instructions, and what they wait for.

    what     a path that starts with "csrc/", or the verdict of a %%kernel cell with --profile, kept with --as
    profile  the result of `luce_edu.profile`; not needed for a verdict, which has its own
    name     with a path: a region, as for `show_source`; None for the whole file
    Waits are cycles of warps, all modelled: for an issue slot or pipe, for the result of arithmetic or of a load from
    shared memory (operand), for memory, and at barriers. A wait is counted at the line that waits; a wait for a load,
    at the line that uses the value. A line also gets the waits of functions that were inlined into it, unless their
    lines are shown themselves.
    Raises ValueError as `show_source` does, if `profile` is no profile, and if the profile ran none of these lines.
    """
    display(find_heat(what, profile, name))


def find_heat(what: object, profile: Profile | None = None, name: str | None = None) -> Heat:
    """Make the heat map that `show_heat` displays, with its arguments and errors."""
    if isinstance(what, Verdict):
        profile = what.profile if profile is None else profile
        if profile is None:
            raise ValueError(f"{what.kernel}: the verdict has no profile; write %%kernel {what.kernel} ... --profile")
        if name is not None:
            raise ValueError(f"{what.kernel}: a verdict shows its whole cell; give a name only with a path")
        source, file = cell_source(what.attempt.text), CELL
    elif isinstance(what, str | Path):
        source = whole_file(what) if name is None else find_source(what, name)
        file = source.path
    else:
        raise ValueError(f"expected a path or the verdict of a %%kernel cell, got {what!r}")
    if not isinstance(profile, Profile):
        raise ValueError(f"{source.path}: expected a profile, as luce_edu.profile(...) returns it, got {profile!r}")
    lines = range(source.first_line, source.first_line + source.text.count("\n") + 1)
    cycles = np.zeros((len(lines), 5))
    for call, found in profile.calls.items():
        if shown := next((line for at, line in call if at == file and line in lines), None):
            cycles[shown - source.first_line] += found
    if not cycles.any():
        ran = ", ".join(sorted({at for call in profile.calls for at, _ in call}))
        raise ValueError(f"{source.heading}: {profile.what} executed none of these lines; it ran lines of {ran}")
    waits = float(sum(found[1:].sum() for found in profile.calls.values()))
    return Heat(source, cycles, waits, f"{profile.what} (modelled for {profile.on_card})")
