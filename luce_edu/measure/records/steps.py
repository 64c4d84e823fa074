"""The tables of docs/streaming.md: what each step of the streaming stage gains, and what each ablation costs, modelled.

`luce-edu figures --modelled` writes them. The steps are modelled then, on five cards, with four layers at full size,
three of DeltaNet and one of attention, and a small head: a whole token takes a minute. The ablations are
those of the stored predictions of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from luce_edu.config import ModelConfig
from luce_edu.family import family_config
from luce_edu.machine.cards import find_card
from luce_edu.machine.clock import find_clock
from luce_edu.measure.profile import Profile, profile
from luce_edu.measure.records.predictions import ABLATED, ABOVE_LIMIT, at_boost
from luce_edu.models import RANDOM_CONFIG, Model
from luce_edu.stages.streaming import STEPS, VARIANTS, distinct_variants
from luce_edu.weights import random_weights

CARDS = ("H200", "H100", "RTX 5090", "RTX 3090", "T4")
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
    return found | {
        name: profile("streaming", model=model, card=card, position=POSITION, variant=name) for name in STEPS
    }


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


def ablations_table() -> str:
    """Return the table of all variants as Markdown, from the stored predictions of the whole model.

    A cell has µs and the change from the stage as it ships, or the name of what the variant equals on this card. It has
    neither where the model would take more than the card's power limit.
    """
    config = ModelConfig.from_file(RANDOM_CONFIG)
    cards = [find_card(name) for name in ABLATED]
    same_as = {card: distinct_variants(config, card.shared_per_block, card.capability) for card in cards}
    lines = [["", *ABLATED], ["---", *["--:" for _ in cards]]]
    lines.append(["`streaming`", *(f"{at_boost('streaming', card).us:,.1f} µs" for card in cards)])
    for name in VARIANTS:
        cells = []
        for card in cards:
            if same := same_as[card][name]:
                cells.append(f"as {same}")
                continue
            if (card.name, name) in ABOVE_LIMIT:
                cells.append(f"above {find_clock(card).power_limit_w:g} W")
                continue
            us = at_boost(f"streaming, {name}", card).us
            change = f"{us / at_boost('streaming', card).us - 1:+.1%}".replace("-", "\N{MINUS SIGN}")
            cells.append(f"{us:,.1f} µs, {change}")
        lines.append([name, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
