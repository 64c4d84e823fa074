"""The table that all notebooks share: one row a stage, each number with its provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from luce_edu.measure.bench import PROMPT
from luce_edu.measure.floor import decode_bytes
from luce_edu.measure.records import Record, load_records, recorded
from luce_edu.tables import Tabular
from luce_edu.verification import Report, verify

# A time or an energy is shown once a record of a GPU holds it for this model; a virtual GPU's time is none.
NOT_RECORDED = "–"


@dataclass(repr=False)
class StageTable(Tabular):
    """Launches, barriers, bytes, time, energy and error of the stages of one verification.

    megabytes  the least that a token moves;  record  where times and energies come from, None where there is none
    """

    report: Report
    megabytes: float
    record: Record | None = None

    header = ("stage", "launches", "kernels", "barriers", "MB", "µs", "J", "error", "verdict")

    @property
    def body(self) -> list[list[str]]:
        megabytes = f"{self.megabytes:.3g}"
        return [
            [row.stage, str(row.launches), str(row.kernels), str(row.barriers), megabytes, self._us(row.stage),
             self._joules(row.stage), f"{row.error:.1e}", "pass" if row.passed else "FAIL"]
            for row in self.report.rows
        ]  # fmt: skip

    def _us(self, stage: str) -> str:
        row = self._recorded("decode", stage)
        return f"{row['latency_us']['median']:,.0f}" if row else NOT_RECORDED

    def _joules(self, stage: str) -> str:
        row = self._recorded("energy", stage)
        return f"{row['joules'] / row['tokens']:.3g}" if row else NOT_RECORDED

    def _recorded(self, part: str, stage: str) -> Mapping | None:
        rows = self.record.parts.get(part, ()) if self.record else ()
        return next((row for row in rows if row["system"] == stage and row["context"] == PROMPT), None)

    @property
    def caption(self) -> str:
        where = {"host": "on the virtual GPU", "cuda": "on this GPU"}[self.report.device]
        times = f"at a context of {PROMPT}, {self.record.provenance}" if self.record else "no GPU record yet"
        return (
            f"{self.report.model}: launches, the kernels in them, barriers and error measured {where} now "
            f"({self.report.steps} tokens, seed {self.report.seed}); MB a token modelled from the config, each weight "
            f"once; µs and J a token: {times}; eager's launches are the PyTorch operations that compute"
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
    of_this_model = [r for r in recorded(load_records(), "decode") if r.content["model"] == model.name]
    record = of_this_model[0] if of_this_model else None
    return StageTable(report, decode_bytes(model.config, report.steps).total / 1e6, record)
