"""The pictures of notebook 01: the model with its shapes, and the memory of the recurrent state and the KV cache."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from luce_edu.config import LINEAR_ATTENTION, ModelConfig
from luce_edu.measure.floor import kv_bytes_per_token, recurrent_state_bytes
from luce_edu.plots.style import BLUE, GREEN, GREY, INK, VERMILLION, Picture, picture
from luce_edu.weights import expected_tensors


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


_WEIGHT, _STATE, _VALUE = "#C5E4F7", "#F9E3B4", "white"


def model_shapes(config: ModelConfig, *, provenance: str = "") -> Picture:
    """Draw the model from token to logits, a strip for each layer, and beside it its first DeltaNet layer, box by box.

    Shapes are those of the checkpoint's tensors, one token's values, and the two states.
    Raises ValueError for a config without a DeltaNet layer.
    """
    if not config.linear_layers:
        raise ValueError("config: expected a DeltaNet layer, got none")
    figure = picture(10.5, 7.6, provenance)
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.35))
    shapes = expected_tensors(config)
    _stack(left, config, shapes["model.embed_tokens.weight"])
    prefix = f"model.layers.{config.linear_layers[0]}."
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    _deltanet_layer(right, config, {name.removesuffix(".weight").split(".")[-1]: own[name] for name in own})
    marks = [Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor=GREY) for colour in (_WEIGHT, _STATE, _VALUE)]
    figure.legend(marks, ["weights", "state, kept from token to token", "values of one token"], ncols=3, frameon=False,
                  loc="outside upper left")  # fmt: skip
    return figure


def _stack(axes: Axes, config: ModelConfig, embedding: tuple[int, ...]) -> None:
    """The model from top to bottom."""
    layers, hidden = config.num_hidden_layers, config.hidden_size
    step = 7.8 / layers
    _box(axes, 0, 1, 0, "token", _VALUE)
    _box(axes, 0, 1, 1, f"embed_tokens {_shape(embedding)}", _WEIGHT)
    for i, kind in enumerate(config.layer_types):
        linear = kind == LINEAR_ATTENTION
        axes.add_patch(Rectangle((0.02, 2.05 + step * i), 0.96, 0.86 * step, facecolor=GREEN if linear else VERMILLION))
        if layers <= 12:
            axes.text(0.5, 2.05 + step * (i + 0.43), f"layer {i}: {'DeltaNet' if linear else 'attention'}", ha="center",
                      va="center", fontsize=9.5, color="white")  # fmt: skip
    _box(axes, 0, 1, 10, f"norm {_shape((hidden,))}", _WEIGHT)
    _box(axes, 0, 1, 11, f"lm_head {_shape(embedding)}", _WEIGHT)
    _box(axes, 0, 1, 12, f"logits {_shape(embedding[:1])}", _VALUE)
    attention = len(config.attention_layers)
    words = f"{layers - attention} DeltaNet (green), {attention} attention"
    axes.set_title(f"{layers} layers on {_shape((hidden,))}:\n{words}", loc="left", fontsize=10.5)
    _finish(axes, 13)


def _deltanet_layer(axes: Axes, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A DeltaNet layer from top to bottom: the mixer, then the MLP, each added to its input."""
    heads, key_heads = config.linear_num_value_heads, config.linear_num_key_heads
    keys, values = config.linear_key_head_dim, config.linear_value_head_dim
    hidden, inner = config.hidden_size, config.intermediate_size

    def weight(left, width, row, *names):
        _box(axes, left, width, row, "\n".join(f"{name} {_shape(shapes[name])}" for name in names), _WEIGHT)

    _box(axes, 0, 1, 0, f"x {_shape((hidden,))}", _VALUE)
    weight(0, 1, 1, "input_layernorm")
    weight(0, 0.38, 2, "in_proj_qkv")
    weight(0.38, 0.32, 2, "in_proj_a", "in_proj_b")
    weight(0.70, 0.30, 2, "in_proj_z")
    weight(0, 0.38, 3, "conv1d")
    weight(0.38, 0.32, 3, "A_log", "dt_bias")
    _box(axes, 0, 0.38, 4, f"conv_state {_shape((config.conv_dim, config.linear_conv_kernel_dim - 1))}", _STATE)
    _box(axes, 0.38, 0.32, 4, f"g, beta {_shape((heads,))} each", _VALUE)
    _box(axes, 0.70, 0.30, 4, f"z {_shape((heads, values))}", _VALUE)
    _box(axes, 0, 0.70, 5, f"q, k {_shape((key_heads, keys))} each, v {_shape((heads, values))}", _VALUE)
    _box(axes, 0, 0.70, 6, f"delta rule: S {_shape((heads, keys, values))}", _STATE)
    _box(axes, 0, 1, 7, f"norm {_shape(shapes['norm'])} of each head, scaled by silu(z)", _WEIGHT)
    weight(0, 1, 8, "out_proj")
    weight(0, 1, 9, "post_attention_layernorm")
    weight(0, 0.5, 10, "gate_proj")
    weight(0.5, 0.5, 10, "up_proj")
    _box(axes, 0, 1, 11, f"silu(gate) * up {_shape((inner,))}", _VALUE)
    weight(0, 1, 12, "down_proj")
    for row, word in ((8, "h = x + this"), (12, "h + this")):
        axes.text(0.985, row + 0.5, word, ha="right", va="center", fontsize=10, fontweight="bold")
    _arrow(axes, 0.85, 2.95, 4.05)
    _arrow(axes, 0.85, 4.95, 7.05)
    axes.set_title(f"layer {config.linear_layers[0]}, a DeltaNet layer", loc="left", fontsize=10.5)
    _finish(axes, 13)


def _box(axes: Axes, left: float, width: float, row: float, words: str, fill: str) -> None:
    axes.add_patch(Rectangle((left + 0.01, row + 0.08), width - 0.02, 0.82, facecolor=fill, edgecolor=GREY))
    axes.text(left + width / 2, row + 0.49, words, ha="center", va="center", fontsize=9.5, linespacing=1.0)


def _arrow(axes: Axes, x: float, top: float, bottom: float) -> None:
    axes.annotate("", (x, bottom), xytext=(x, top), arrowprops={"arrowstyle": "->", "color": GREY})


def _finish(axes: Axes, rows: float) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(rows, 0)
    axes.set_axis_off()


def _shape(sizes: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, sizes))}]"
