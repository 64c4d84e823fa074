"""The table of docs/streaming.md: what each step of the streaming stage gains on each card, modelled.

`luce-edu figures --modelled` writes it.

A whole token takes minutes under the clock. So this models four layers at full size, three of DeltaNet and one
of attention, and a small head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from luce_edu.family import family_config
from luce_edu.measure.profile import Profile, profile
from luce_edu.models import Model
from luce_edu.stages.streaming import STEPS
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
    """Return the profile of one token by row of the table: the stages before, then `streaming` with each step more."""
    found = {stage: profile(stage, model=model, card=card, position=POSITION) for stage in BEFORE}
    for k, name in enumerate(("no step", *STEPS)):
        found[name] = profile("streaming", model=model, card=card, position=POSITION, steps=k)
    return found


def steps_table(cards: Sequence[str] = CARDS, progress: Callable[[str], None] = print) -> str:
    """Return the table as Markdown: µs, and the share of the datasheet's bandwidth that DRAM moves meanwhile."""
    model, by_card = four_layers(), {}
    for card in cards:
        progress(f"modelling the steps of streaming, {card}")
        by_card[card] = rows(model, card)
    lines = [["", *cards], ["---", *["--:" for _ in cards]]]
    for name in by_card[cards[0]]:
        words = f"`{name}`" if name in BEFORE else "packed weights, no step" if name == "no step" else f"+ `{name}`"
        cells = [f"{by_card[card][name].total_us:.1f} µs, {by_card[card][name].dram_share:.0%}" for card in cards]
        lines.append([words, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
