"""Show tables in a terminal (rich), in a notebook (HTML), and as plain text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape


class Tabular(ABC):
    """Mix-in for a result that is a table. The subclass gives header and body, and optionally title and caption.

    The first column is text; the others are aligned to the right.
    """

    title = caption = ""

    @property
    @abstractmethod
    def header(self) -> Sequence[str]: ...

    @property
    @abstractmethod
    def body(self) -> Sequence[Sequence[str]]: ...

    def __rich__(self):
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        # Narrow enough for ten columns in a terminal of 80.
        table = Table(
            title=self.title or None, caption=self.caption or None, box=SIMPLE_HEAD, show_edge=False, padding=0
        )  # fmt: skip
        for i, name in enumerate(self.header):
            table.add_column(name, justify="right" if i else "left", no_wrap=True)
        for cells in self.body:
            table.add_row(*cells)
        return table

    def _repr_html_(self) -> str:
        def row(tag: str, cells: Sequence[str]) -> str:
            first, *others = (escape(cell) for cell in cells)
            numbers = "".join(f"<{tag}>{cell}</{tag}>" for cell in others)
            return f'<tr><{tag} style="text-align: left">{first}</{tag}>{numbers}</tr>'

        rows = row("th", self.header) + "".join(row("td", cells) for cells in self.body)
        above = f"<p>{escape(self.title)}</p>" if self.title else ""
        below = f"<p><small>{escape(self.caption)}</small></p>" if self.caption else ""
        return f"{above}<table>{rows}</table>{below}"

    def __str__(self) -> str:
        rows = [self.header, *self.body]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.header))]
        lines = []
        for first, *others in rows:
            numbers = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *numbers]))
        return "\n".join(filter(None, [self.title, *lines, self.caption]))

    __repr__ = __str__
