"""The picture of notebook 01: the memory of the recurrent state and of the KV cache."""

from __future__ import annotations

from luce_edu.config import ModelConfig
from luce_edu.measure.floor import kv_bytes_per_token, recurrent_state_bytes
from luce_edu.plots.style import BLUE, GREEN, INK, VERMILLION, Picture, picture


def state_against_kv(config: ModelConfig, *, max_tokens: int = 262_144, provenance: str = "") -> Picture:
    """Draw the MB of DeltaNet's state and of the KV cache by context length, and where the two are equal."""
    state, per_token = recurrent_state_bytes(config), kv_bytes_per_token(config)
    crossing = state / per_token
    tokens = [2**i for i in range(max_tokens.bit_length())]
    layers, attention = config.num_hidden_layers, len(config.attention_layers)
    were_all_attention = [layers / attention * per_token * n / 1e6 for n in tokens]
    figure = picture(8, 4.4, provenance)
    axes = figure.subplots()
    axes.plot(tokens, were_all_attention, color=VERMILLION, linestyle=":",
              label=f"KV cache if all {layers} layers were attention")  # fmt: skip
    axes.plot(tokens, [per_token * n / 1e6 for n in tokens], color=BLUE, linestyle="--",
              label=f"KV cache of {attention} attention layers")  # fmt: skip
    axes.plot(tokens, [state / 1e6] * len(tokens), color=GREEN, linewidth=2.5,
              label=f"state of {layers - attention} DeltaNet layers")  # fmt: skip
    axes.plot(crossing, state / 1e6, "o", color=INK)
    axes.annotate(f"equal at {crossing:,.0f} tokens", (crossing, state / 1e6), xytext=(8, -16),
                  textcoords="offset points")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [2**i for i in range(0, max_tokens.bit_length(), 3)]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_yticks([0.01, 0.1, 1, 10, 100, 1000, 10_000], ["0.01", "0.1", "1", "10", "100", "1,000", "10,000"])
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("memory, MB")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
