"""The clock's predictions for the full-size model on each card. They are stored, as one stage takes 20 s or more.

    python -m luce_edu.measure.records.predictions               # every card: an hour on two cores
    python -m luce_edu.measure.records.predictions "RTX 3090"    # this card again; the rows of the others stay
    python -m luce_edu.measure.records.predictions --ablations   # instead the variants of streaming: half an hour

This writes luce_edu/data/predictions.json. `evidence` compares these figures with what it measures, and the power
curves of our stages (luce_edu/measure/power/dvfs.py) are drawn from them. All of them are modelled.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from luce_edu.config import ModelConfig
from luce_edu.machine.cards import Card, card_of, find_card
from luce_edu.machine.clock import find_clock
from luce_edu.measure.floor import decode_bytes
from luce_edu.measure.records.record import commit
from luce_edu.measure.records.rows import DecodeRow, EnergyRow, Modelled
from luce_edu.stages import KERNEL_STAGES
from luce_edu.stages.streaming import VARIANTS, distinct_variants

FILE = Path(__file__).resolve().parents[2] / "data" / "predictions.json"
MODEL = "random-0.8b"
POSITION = 520  # as PROMPT of luce_edu/measure/bench/bench.py
STAGES = KERNEL_STAGES[::-1]
SWEPT_STAGES = ("megakernel", "per_op", "per_layer")  # the curve of `graph` is close to the megakernel's
# Not the T4: by the model it would take more than its 70 W at the boost clock. So it slows down, which is not modelled.
PREDICTED = [find_card(name) for name in ("RTX 3090", "H100", "H200", "A100", "RTX 4090", "RTX 5090")]
SWEPT = "RTX 3090"  # the card of the published sweep; the curves cover its clocks
SWEPT_MHZ = (405.0, 1980.0, 900.0, 1250.0, 600.0)  # beside its boost clock
ABLATED = ("H200", "RTX 3090")  # the cards on which the variants of streaming are predicted
ABOVE_LIMIT = {("H200", "8 warps, 2 blocks per SM")}  # not predicted, as the T4: 712 W by the model
CANARY = "tiny"  # its token is modelled in less than a second, and shows whether the clock has changed since


@dataclass(frozen=True)
class Prediction:
    """One token of a stage, or of a variant such as "streaming, no ring", on a card, modelled.

    us      in µs, at clock_mhz
    energy  joules by part, as in a Profile; their constants are those of the card at its boost clock
    source  commit and date of the clock
    """

    stage: str
    card: str
    model: str
    position: int
    clock_mhz: float
    us: float
    energy: Mapping[str, float]
    source: str

    @property
    def joules(self) -> float:
        return sum(self.energy.values())

    @property
    def power_w(self) -> float:
        return self.joules / self.us * 1e6


@functools.cache
def stored() -> tuple[Prediction, ...]:
    """Return the predictions that the package has stored."""
    return tuple(Prediction(**row) for row in json.loads(FILE.read_text(encoding="utf-8"))["rows"])


def find(stage: str, card: str, *, model: str = MODEL) -> list[Prediction]:
    """Return the stored predictions of a stage, the lowest clock first; empty if there is none."""
    found = [row for row in stored() if (row.stage, row.card, row.model) == (stage, card, model)]
    return sorted(found, key=lambda row: row.clock_mhz)


def at_boost(stage: str, card: Card) -> Prediction | None:
    """Return the stored prediction of a stage at the card's boost clock, or None."""
    return next((row for row in find(stage, card.name) if row.clock_mhz == card.boost_clock_mhz), None)


def predict(
    stage: str, card: Card, *, model=MODEL, clock_mhz: float | None = None, position: int = POSITION
) -> Prediction:  # fmt: skip
    """Model one token now.

    stage      or a variant, as in a Prediction
    model      a name or a model
    clock_mhz  of the SMs; None for the boost clock
    Raises what `profile` raises.
    """
    from luce_edu.measure.profile import profile

    clock = find_clock(card)
    clock = clock if clock_mhz is None else clock.at(clock_mhz)
    run, _, variant = stage.partition(", ")
    found = profile(run, card=card, model=model, clock=clock, position=position, variant=variant or None)
    energy = {name: float(joules) for name, joules in found.energy.items()}
    return Prediction(stage, card.name, found.model, position, clock.clock_mhz, found.total_us, energy, _source())


@functools.cache
def _source() -> str:
    """Return commit and date. Read once, as the file that a run writes changes the checkout."""
    now = commit() or "unknown"
    return f"the clock at commit {now[:12]}{'+' * now.endswith('+')}, {datetime.date.today().isoformat()}"


def beside(row: DecodeRow | EnergyRow, gpu: str, config: ModelConfig) -> Modelled | None:
    """Return the prediction for a row of a record; None if there is none for its GPU, model, system and context."""
    card = card_of(gpu)
    if card is None or row.context != POSITION or not _is_full_size(config):
        return None
    found = at_boost(row.system, card)
    return found and Modelled(found.us, found.joules, found.card, found.clock_mhz, found.source)


def _is_full_size(config: ModelConfig) -> bool:
    """Return whether a model is as large as the predicted one, by its shapes; its name does not matter."""
    from luce_edu.models import RANDOM_CONFIG

    return decode_bytes(config, POSITION) == decode_bytes(ModelConfig.from_file(RANDOM_CONFIG), POSITION)


# Writing predictions.


def wanted(card: Card) -> list[tuple[str, str, float]]:
    """Return (stage, model, clock in MHz) of every prediction for a card, without those of variants."""
    boost = float(card.boost_clock_mhz)
    found = [(stage, MODEL, boost) for stage in STAGES]
    if card.name == SWEPT:
        found = [("megakernel", CANARY, boost), *found]
        found += [(stage, MODEL, mhz) for mhz in SWEPT_MHZ for stage in SWEPT_STAGES]
    return found


def wanted_variants(card: Card) -> list[tuple[str, str, float]]:
    """Return the same for the variants of `streaming` that `make gpu` times on this card."""
    from luce_edu.models import RANDOM_CONFIG

    if card.name not in ABLATED:
        return []
    same_as = distinct_variants(ModelConfig.from_file(RANDOM_CONFIG), card.shared_per_block, card.capability)
    names = [name for name in VARIANTS if same_as[name] is None and (card.name, name) not in ABOVE_LIMIT]
    return [(f"streaming, {name}", MODEL, float(card.boost_clock_mhz)) for name in names]


def write(
    names: Sequence[str] = (), *, variants: bool = False, file: Path = FILE, say: Callable[[str], None] = print
) -> None:  # fmt: skip
    """Predict again for the named cards, or for all. Each prediction is written to the file at once.

    variants  predict the variants of `streaming` in place of the stages
    Raises ValueError for a card of which these are not predicted.
    """
    from luce_edu.models import load_model

    known = [card for card in PREDICTED if not variants or card.name in ABLATED]
    cards = [find_card(name) for name in names] or known
    if others := [card.name for card in cards if card not in known]:
        raise ValueError(f"{', '.join(others)}: not predicted; expected some of {', '.join(c.name for c in known)}")
    models = {name: load_model(name) for name in (CANARY, MODEL)}
    rows = {_key(row): row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]} if file.exists() else {}
    stages, others = ([(stage, card.name, model, mhz) for card in PREDICTED for stage, model, mhz in of(card)]
                      for of in (wanted, wanted_variants))  # fmt: skip
    keys = [*stages, *others]
    for stage, name, model, mhz in others if variants else stages:
        if name not in [card.name for card in cards]:
            continue
        row = predict(stage, find_card(name), model=models[model], clock_mhz=mhz)
        say(f"{name}, {stage}, {model}, {mhz:,.0f} MHz: {row.us:,.1f} µs, {row.power_w:.0f} W")
        rows[stage, name, model, mhz] = asdict(row)
        kept = [rows[key] for key in keys if key in rows]
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"kind": "modelled", "rows": kept}, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, file)


def _key(row: Mapping) -> tuple:
    return row["stage"], row["card"], row["model"], row["clock_mhz"]


if __name__ == "__main__":
    try:
        names = [name for name in sys.argv[1:] if name != "--ablations"]
        write(names, variants="--ablations" in sys.argv[1:])
    except ValueError as error:
        raise SystemExit(f"predictions: {error}") from None
