"""The table that all notebooks share: one row a stage, each number with its provenance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from luce_edu.measure.floor import decode_bytes
from luce_edu.verification import Report, verify

# A time or an energy is shown once a record of a GPU exists for it; an emulator's time is none.
NOT_RECORDED = "–"


@dataclass
class StageTable:
    """Rows of launches, barriers, bytes, time, energy and error, for the stages of one verification."""

    report: Report
    megabytes: float

    HEADER = ("stage", "launches", "barriers", "MB", "µs", "J", "error", "verdict")

    def cells(self) -> list[list[str]]:
        return [
            [row.stage, str(row.launches), str(row.barriers), f"{self.megabytes:.3g}", NOT_RECORDED, NOT_RECORDED,
             f"{row.error:.1e}", "pass" if row.passed else "FAIL"]
            for row in self.report.rows
        ]  # fmt: skip

    @property
    def provenance(self) -> str:
        where = {"host": "in the CPU emulator", "cuda": "on this GPU"}[self.report.device]
        return (
            f"{self.report.model}: launches, barriers and error measured {where} now ({self.report.steps} tokens, seed "
            f"{self.report.seed}); MB a token modelled from the config, each weight once; µs and J a token: no GPU "
            "record yet; eager's launches are the PyTorch operations that compute"
        )

    def __rich__(self):
        from rich.table import Table

        table = Table(caption=self.provenance)
        for i, name in enumerate(self.HEADER):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for cells in self.cells():
            table.add_row(*cells)
        return table

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in self.HEADER)
        rows = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in self.cells()
        )
        return f"<table><tr>{head}</tr>{rows}</table><p><small>{self.provenance}</small></p>"

    def __str__(self) -> str:
        rows = [list(self.HEADER), *self.cells()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.HEADER))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        return "\n".join([*lines, self.provenance])

    __repr__ = __str__


def stage_table(
    model,
    *,
    upto: str | None = None,
    device: str | None = None,
    steps: int = 8,
    seed: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> StageTable:
    """Verify the stages up to and including `upto` (None for all) and set them side by side.

    Arguments and errors otherwise as for `luce_edu.verify`.
    """
    from luce_edu.stages import STAGES

    if upto is not None and upto not in STAGES:
        raise ValueError(f"unknown stage {upto!r}; expected one of {', '.join(STAGES)}")
    stages = STAGES if upto is None else STAGES[: STAGES.index(upto) + 1]
    report = verify(model, stages=stages, device=device, steps=steps, seed=seed, progress=progress)
    return StageTable(report, decode_bytes(model.config, report.steps).total / 1e6)
