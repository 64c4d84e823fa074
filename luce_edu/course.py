"""The scoreboard of the course: every row of its ledger on one page, each with a link to the cell that made it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from luce_edu.config import ModelConfig
from luce_edu.measure.floor import decode_bytes
from luce_edu.measure.launches import count_launches
from luce_edu.measure.profile import Profile, profile
from luce_edu.measure.records.predictions import MODEL, POSITION, PREDICTED, at_boost
from luce_edu.models import RANDOM_CONFIG
from luce_edu.scoreboard import NEITHER, Modelled, model_stage, modelled_caption, readers_card, stage_table
from luce_edu.stages import KERNEL_STAGES, STAGES
from luce_edu.tables import Tabular
from luce_edu.verification import Report, verify_prefill

TOKENS = 65  # of the prompt: one more than a chunk of the delta rule

# Notebook and heading of the cell that makes a row.
CELLS = {
    "the floor": ("00_start_here.ipynb", "The floor of one token"),
    "eager": ("01_the_hybrid_model.ipynb", "Recap"),
    "per_op": ("04_the_first_kernel.ipynb", "Recap"),
    "per_layer": ("06_layer_kernels.ipynb", "Recap"),
    "graph": ("07_graphs_the_honest_rival.ipynb", "Recap"),
    "megakernel": ("09_the_megakernel.ipynb", "Recap"),
    "streaming": ("11_the_memory_pipe.ipynb", "Recap"),
    "prompt": ("12_prefill.ipynb", "Where a prompt's time goes"),
    MODEL: ("15_find_the_bug.ipynb", "The full-size model"),
}
OWN = ("15_find_the_bug.ipynb", "Capstone: change one phase")


@dataclass(frozen=True)
class Row:
    """One row of the ledger, as text.

    launches, kernels, barriers  counted, per token; of a prompt, for the whole prompt
    megabytes  the least that a token moves
    us, joules  modelled for `card`, or from a record of a GPU
    cell       notebook and heading of the cell that made it
    """

    name: str
    model: str
    card: str
    launches: str
    kernels: str
    barriers: str
    megabytes: str
    us: str
    joules: str
    error: str
    cell: tuple[str, str]

    @property
    def made_in(self) -> str:
        return f"{self.cell[0][:2]}, {self.cell[1]}"

    @property
    def address(self) -> str:
        """The link to the cell's heading, as JupyterLab names it."""
        return f"{self.cell[0]}#{self.cell[1].replace(' ', '-')}"


@dataclass(frozen=True, repr=False)
class Scoreboard(Tabular):
    """Rows of the ledger. In a notebook the last column holds links."""

    rows: Sequence[Row]
    caption: str = ""

    header = ("row", "model", "card", "launches", "kernels", "barriers", "MB", "µs", "J", "error", "made in")

    @property
    def body(self) -> list[list[str]]:
        return [
            [row.name, row.model, row.card, row.launches, row.kernels, row.barriers, row.megabytes, row.us, row.joules,
             row.error, row.made_in]
            for row in self.rows
        ]  # fmt: skip

    def _repr_html_(self) -> str:
        page = super()._repr_html_()
        for text, address in {escape(row.made_in): escape(row.address) for row in self.rows}.items():
            page = page.replace(f">{text}<", f'><a href="{address}">{text}</a><')
        return page


def tiny_rows(model, *, steps: int = 4, seed: int = 1, progress: Callable[[str], None] | None = None) -> list[Row]:
    """Make the rows of all stages and of a prompt for a small model, by running them now.

    Counts and errors are measured. µs and J are those of `stage_table`. Arguments and errors are those of `verify`.
    """
    card = readers_card().name
    table = stage_table(model, steps=steps, seed=seed, progress=progress)
    rows = [
        Row(stage, model.name, card, *numbers, cell=CELLS[stage])
        for stage, *numbers, _ in table.body  # without the verdict
    ]
    report = verify_prefill(model, stages=["per_layer"], prompts=(TOKENS,), steps=steps, seed=seed, progress=progress)
    read = next(row for row in report.rows if row.pieces == 1)
    found = profile("prompt", model=model, tokens=TOKENS, card=card)
    us, joules = Modelled(found.total_us, found.energy_j, TOKENS).cells
    launches = str(read.launches)
    prompt = Row(f"prompt of {TOKENS}", model.name, card, launches, launches, "0", NEITHER, us, joules,
                 f"{read.error:.1e}", CELLS["prompt"])  # fmt: skip
    return [*rows, prompt]


def full_size() -> dict[str, dict[str, Modelled]]:
    """Return the modelled token of every stage of the full-size model, by card, from the stored predictions.

    No GPU has run them. The time of eager follows from its operations, which are counted now with narrow matrices.
    """
    operations = count_launches(_full_config(), ["eager"])["eager"].launches
    found = {}
    for card in PREDICTED:
        stages = {stage: at_boost(stage, card) for stage in KERNEL_STAGES}
        if None not in stages.values():
            found[card.name] = {"eager": model_stage(None, "eager", card, operations=operations)} | {
                stage: Modelled(one.us, one.joules, one.position) for stage, one in stages.items()
            }
    return found


def floors() -> dict[str, float]:
    """Return the floor of the full-size model's token by card, in µs: its bytes over the datasheet's bandwidth."""
    token = decode_bytes(_full_config(), POSITION)
    return {card.name: token.floor_us(card.memory_gb_per_s) for card in PREDICTED}


def _full_config() -> ModelConfig:
    return ModelConfig.from_file(RANDOM_CONFIG)


def stored_rows() -> list[Row]:
    """Make the rows of `full_size`: for each card its floor, then its stages. Launches are counted now."""
    counts, megabytes = count_launches(_full_config()), f"{decode_bytes(_full_config(), POSITION).total / 1e6:,.0f}"
    rows = []
    for card, stages in full_size().items():
        rows.append(Row("the floor", MODEL, card, *3 * [NEITHER], megabytes, f"{floors()[card]:,.0f}", NEITHER, NEITHER,
                        CELLS["the floor"]))  # fmt: skip
        for stage in STAGES:
            count = counts[stage]
            rows.append(
                Row(stage, MODEL, card, f"{count.launches:,}", f"{count.kernels:,}", str(count.barriers), megabytes,
                    *stages[stage].cells, NEITHER, CELLS[MODEL])
            )  # fmt: skip
    return rows


def own_row(name: str, model, report: Report, found: Profile) -> Row:
    """Make the reader's row from a verification of one stage of `model` and a profile of it.

    ValueError if the verification did not pass.
    """
    row = report.rows[-1]
    if not row.passed:
        raise ValueError(f"{name}: a row needs a verification that passes; {row.problems[0]}")
    megabytes = f"{decode_bytes(model.config, report.steps).total / 1e6:.3g}"
    us, joules = Modelled(found.total_us, found.energy_j, found.position).cells
    return Row(f"{name} (yours)", model.name, found.card, str(row.launches), str(row.kernels), str(row.barriers),
               megabytes, us, joules, f"{row.error:.1e}", OWN)  # fmt: skip


def scoreboard(*rows: Row) -> Scoreboard:
    """Show rows as one table, with a caption that says what is measured and what is modelled."""
    cards = list(dict.fromkeys(row.card for row in rows))
    by_clock, by_operations = Modelled(1.0, 1.0, POSITION), Modelled(1.0, 1.0)
    return Scoreboard(
        rows,
        "Launches, kernels, barriers and errors are measured on the virtual GPU. MB per token are modelled from the "
        "config: each weight is read once. Launches of eager are PyTorch operations. "
        f"{modelled_caption({'clock': by_clock, 'eager': by_operations}, cards)} "
        f"A row of a prompt is for the whole prompt. The floor is MB over the datasheet's bandwidth. {NEITHER}: none.",
    )
