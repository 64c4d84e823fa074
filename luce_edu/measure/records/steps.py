"""The tables of docs/streaming.md: what each step of the streaming stage gains, and what each ablation costs, modelled.

`luce-edu figures --modelled` writes them.

A whole token takes minutes under the clock. So this models four layers at full size, three of DeltaNet and one
of attention, and a small head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from luce_edu.family import family_config
from luce_edu.machine.cards import find_card
from luce_edu.measure.profile import Profile, profile
from luce_edu.models import Model
from luce_edu.stages.streaming import ABLATIONS, STEPS, distinct_variants
from luce_edu.weights import random_weights

CARDS = ("H200", "H100", "RTX 5090", "RTX 3090", "T4")
ABLATION_CARDS = ("H200", "RTX 3090")
LAYERS, HEAD_ROWS, POSITION = 4, 8192, 520
BEFORE = ("graph", "megakernel")


def four_layers() -> Model:
    """Return the first layers of the 0.8B shapes with random weights."""
    config = family_config("0.8b")
    layer_types = config.layer_types[:LAYERS]
    config = replace(config, vocab_size=HEAD_ROWS, num_hidden_layers=LAYERS, layer_types=layer_types)
    return Model("four layers", config, random_weights(config), tokenizer=None, folder=None)


def rows(model: Model, card: str) -> dict[str, Profile]:
    """Return the profile of one token by row of the table: the stages before, then `streaming` after each step."""
    found = {stage: profile(stage, model=model, card=card, position=POSITION) for stage in BEFORE}
    return found | {name: variant(model, card, name) for name in STEPS}


def variant(model: Model, card: str, name: str | None) -> Profile:
    """Return the profile of one token of a variant of `streaming`."""
    return profile("streaming", model=model, card=card, position=POSITION, variant=name)


def steps_table(cards: Sequence[str] = CARDS, progress: Callable[[str], None] = print) -> str:
    """Return the table as Markdown: see `step_cell`."""
    model, by_card = four_layers(), {}
    for card in cards:
        progress(f"modelling the steps of streaming, {card}")
        by_card[card] = rows(model, card)
    lines = [["", *cards], ["---", *["--:" for _ in cards]]]
    for name in by_card[cards[0]]:
        words = f"`{name}`" if name in BEFORE else "packed weights, no step" if name == "no step" else f"+ `{name}`"
        lines.append([words, *(step_cell(by_card[card][name]) for card in cards)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def step_cell(now: Profile) -> str:
    """Return µs, the share of the datasheet's bandwidth that DRAM moves, and of the time in which it is silent."""
    return f"{now.total_us:.1f} µs, {now.dram_share:.0%}, {now.silent_us / now.total_us:.0%}"


def ablations(model: Model, card: str, progress: Callable[[str], None] = lambda _: None) -> dict[str, Profile | str]:
    """Return the profile of one token by ablation, or the name of what it equals on this card; "streaming" is first."""
    limits = find_card(card)
    found: dict[str, Profile | str] = {"streaming": variant(model, card, None)}
    same_as = distinct_variants(model.config, limits.shared_per_block, limits.capability)
    for name in ABLATIONS:
        progress(f"modelling the ablations of streaming, {card}: {name}")
        found[name] = same_as[name] or variant(model, card, name)
    return found


def ablations_table(
    cards: Sequence[str] = ABLATION_CARDS, progress: Callable[[str], None] = print, model: Model | None = None
) -> str:  # fmt: skip
    """Return the table of ablations as Markdown: µs, and the change from the stage as it ships.

    model  None: four layers
    """
    model = model or four_layers()
    by_card = {card: ablations(model, card, progress) for card in cards}
    lines = [["", *cards], ["---", *["--:" for _ in cards]]]
    for name in ("streaming", *ABLATIONS):
        cells = []
        for found in by_card.values():
            now = found[name]
            if isinstance(now, str):
                cells.append(f"as {now}")
            else:
                change = f"{now.total_us / found['streaming'].total_us - 1:+.0%}".replace("-", "\N{MINUS SIGN}")
                cells.append(f"{now.total_us:.1f} µs" + (f", {change}" if name != "streaming" else ""))
        lines.append([f"`{name}`" if name == "streaming" else name, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
