"""The table that all notebooks share: one row a stage, each number with its provenance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from luce_edu.measure.floor import decode_bytes
from luce_edu.tables import Tabular
from luce_edu.verification import Report, verify

# A time or an energy is shown once a record of a GPU exists for it; an emulator's time is none.
NOT_RECORDED = "–"


@dataclass(repr=False)
class StageTable(Tabular):
    """Launches, barriers, bytes, time, energy and error of the stages of one verification."""

    report: Report
    megabytes: float

    header = ("stage", "launches", "barriers", "MB", "µs", "J", "error", "verdict")

    @property
    def body(self) -> list[list[str]]:
        megabytes = f"{self.megabytes:.3g}"
        return [
            [row.stage, str(row.launches), str(row.barriers), megabytes, NOT_RECORDED, NOT_RECORDED, f"{row.error:.1e}",
             "pass" if row.passed else "FAIL"]
            for row in self.report.rows
        ]  # fmt: skip

    @property
    def caption(self) -> str:
        where = {"host": "in the CPU emulator", "cuda": "on this GPU"}[self.report.device]
        return (
            f"{self.report.model}: launches, barriers and error measured {where} now ({self.report.steps} tokens, seed "
            f"{self.report.seed}); MB a token modelled from the config, each weight once; µs and J a token: no GPU "
            "record yet; eager's launches are the PyTorch operations that compute"
        )


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
