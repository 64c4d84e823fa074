"""What a cell's kernel can be checked against: its parameters, shapes, inputs, and the expected result.

The expected result is computed in fp32, by luce_edu.reference or by PyTorch. The shapes include sizes that are no
multiple of a warp or block, and a single element. Inputs are random, so that neighbours differ and a wrong index shows.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from luce_edu.reference.causal_conv import causal_conv
from luce_edu.reference.delta_rule import delta_rule_step, l2_norm
from luce_edu.reference.rms_norm import rms_norm

Shape = Mapping[str, int]
EPS = 1e-6


@dataclass(frozen=True)
class Spec:
    """One function that a kernel can compute.

    name        its name after --against
    computes    a formula, in one line
    parameters  C++ type by name; a kernel takes any of them, in any order
    shapes      each gives a size for every dimension; the counts that are shown are those of the last one
    timed       the shape that --profile times: that of one token of Qwen3.5-0.8B, if the spec supports it
    make        make(shape, random) -> inputs by name; random(*size) draws from a normal distribution
    outputs     outputs(shape) -> size by name; the trial allocates them and fills them with NaN
    truth       truth(inputs, shape) -> the expected values of outputs, and of inputs that the kernel changes
    grid        number of blocks: an expression in the dimensions and `block`, rounded up
    block       threads per block
    needs       what a kernel may assume about the sizes and addresses
    """

    name: str
    computes: str
    parameters: Mapping[str, str]
    shapes: tuple[Shape, ...]
    timed: Shape
    make: Callable[[Shape, Callable[..., torch.Tensor]], dict[str, torch.Tensor | float]]
    outputs: Callable[[Shape], dict[str, tuple[int, ...]]]
    truth: Callable[[dict, Shape], dict[str, torch.Tensor]]
    grid: str
    block: int = 256
    needs: str = ""
    limit: float = 1e-5  # enough for fp32 sums of a few thousand terms, in any order

    @property
    def signature(self) -> str:
        """The parameters as they stand in a kernel's parentheses."""
        return ", ".join(f"{kind} {name}" for name, kind in self.parameters.items())


def find_spec(name: str) -> Spec:
    """Return the spec of that name; ValueError with the known names."""
    if name not in SPECS:
        raise ValueError(f"unknown reference {name!r}; expected one of {', '.join(SPECS)}")
    return SPECS[name]


def evaluate(expression: str, names: Mapping[str, int]) -> int:
    """Evaluate an expression of whole numbers, names of dimensions, + - * / and parentheses; round the result up.

    Raises ValueError for anything else.
    """
    operators = {ast.Add: float.__add__, ast.Sub: float.__sub__, ast.Mult: float.__mul__, ast.Div: float.__truediv__}

    def value(node: ast.AST) -> float:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return float(node.value)
        if isinstance(node, ast.Name) and node.id in names:
            return float(names[node.id])
        if isinstance(node, ast.BinOp) and type(node.op) in operators:
            return operators[type(node.op)](value(node.left), value(node.right))
        raise ValueError

    try:
        return math.ceil(value(ast.parse(expression, mode="eval").body) - 1e-9)
    except (ValueError, SyntaxError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        raise ValueError(
            f"{expression!r}: expected numbers, + - * / and the names {', '.join(names)}"
        ) from None


def _scaled(x: torch.Tensor) -> torch.Tensor:
    """Scale the rows very differently, some so small that the epsilon matters."""
    return x * torch.tensor([1.0, 1e-3, 30.0]).repeat(-(-len(x) // 3))[: len(x), None]


def _add(shape, random):
    return {"x": random(shape["n"]), "r": random(shape["n"])}


def _sum(shape, random):
    """Make positive inputs, so that no digits cancel, and none near 0, so that a missing element shows."""
    return {"x": random(shape["n"]).abs() + 0.5}


def _rms_norm(shape, random):
    return {"x": _scaled(random(shape["rows"], shape["n"])), "weight": random(shape["n"]), "eps": EPS}


def _alike(shape, random):
    """Make the inputs of `_rms_norm` with all elements of a row alike."""
    return {
        "x": random(1).expand(shape["rows"], shape["n"]).contiguous(),
        "weight": random(1).expand(shape["n"]).contiguous(),
        "eps": EPS,
    }


def _add_rms_norm(shape, random):
    x, r = (_scaled(random(shape["rows"], shape["n"])) for _ in range(2))
    return {"x": x, "r": r, "weight": random(shape["n"]), "eps": EPS}


def _add_rms_norm_truth(inputs, shape):
    mid = torch.add(inputs["x"], inputs["r"])
    return {"mid": mid, "y": rms_norm(mid, inputs["weight"], eps=inputs["eps"])}


def _linear(shape, random):
    """Draw inputs until the sums do not nearly cancel: fp32 keeps too few digits of such a sum for the limit."""
    while True:
        W, x = random(shape["rows"], shape["cols"]).bfloat16(), random(shape["cols"])
        if F.linear(x, W.float()).norm() > 0.1 * math.sqrt(shape["rows"] * shape["cols"]):
            return {"W": W, "x": x}


def _causal_conv(shape, random):
    channels, taps = shape["channels"], shape["taps"]
    return {"x": random(channels), "weight": random(channels, taps), "conv_state": random(channels, taps - 1)}


def _causal_conv_truth(inputs, shape):
    conv_state = inputs["conv_state"].clone()
    y = causal_conv(inputs["x"][None], inputs["weight"][:, None], conv_state)[0]
    return {"y": y, "conv_state": conv_state}


def _delta_rule(shape, random):
    heads, K, V = shape["heads"], shape["K"], shape["V"]
    return {
        "q": l2_norm(random(heads, K)) * K**-0.5, "k": l2_norm(random(heads, K)), "v": random(heads, V),
        "beta": random(heads).sigmoid(), "g": -random(heads).abs(), "S": random(heads, K, V),
    }  # fmt: skip


def _delta_rule_truth(inputs, shape):
    S = inputs["S"].clone()
    q, k, v = (inputs[name] for name in "qkv")
    return {"o": delta_rule_step(q, k, v, beta=inputs["beta"], g=inputs["g"], recurrent_state=S), "S": S}


def _attention(shape, random):
    heads, positions, D = shape["heads"], shape["positions"], shape["head_dim"]
    q, k, v = random(heads, D), random(heads, positions, D), random(heads, positions, D)
    # The scores of a head are near 100 or near -120, where exp() overflows or is 0 unless the maximum is subtracted
    # first. They differ by a few, so that many positions contribute.
    level = torch.tensor([100.0, -120.0]).repeat(heads)[:heads] * D**0.5 / q.square().sum(-1)
    return {"q": q, "k": 1.5 * k + level[:, None, None] * q[:, None], "v": v}


def _attention_truth(inputs, shape):
    q, k, v = (inputs[name].double() for name in "qkv")
    return {"o": F.scaled_dot_product_attention(q[:, None], k, v)[:, 0].float()}


def _shapes(names: str, *sizes: tuple[int, ...]) -> tuple[Shape, ...]:
    return tuple(dict(zip(names.split(), each, strict=True)) for each in sizes)


_TENSOR, _OUT, _BF16 = "const float*", "float*", "const bf16*"

SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec(
            "torch.add", "y = x + r",
            {"x": _TENSOR, "r": _TENSOR, "y": _OUT, "n": "int"},
            _shapes("n", (1,), (31,), (257,), (1000,), (4096,)), {"n": 1024},
            _add, lambda s: {"y": (s["n"],)}, lambda i, s: {"y": torch.add(i["x"], i["r"])},
            grid="n / block",
        ),
        Spec(
            "torch.sum", "y[0] = the sum of x",
            {"x": _TENSOR, "y": _OUT, "n": "int"},
            _shapes("n", (1,), (31,), (257,), (1000,), (4096,)), {"n": 1024},
            _sum, lambda s: {"y": (1,)}, lambda i, s: {"y": i["x"].double().sum().float().reshape(1)},
            grid="1",
        ),
        Spec(
            "reference.rms_norm", "y[r] = x[r] / sqrt(mean(x[r]^2) + eps) * (1 + weight), row by row",
            {"x": _TENSOR, "weight": _TENSOR, "y": _OUT, "rows": "int", "n": "int", "eps": "float"},
            _shapes("rows n", (1, 1), (3, 31), (2, 257), (5, 264), (4, 1024)), {"rows": 1, "n": 1024},
            _rms_norm, lambda s: {"y": (s["rows"], s["n"])},
            lambda i, s: {"y": rms_norm(i["x"], i["weight"], eps=i["eps"])},
            grid="rows", needs="n up to 1024",
        ),
        Spec(  # for notebook 04, which shows the mistakes that such a check misses
            "uniform.rms_norm",
            "as reference.rms_norm, on inputs whose elements are all alike: this check cannot see wrong indices",
            {"x": _TENSOR, "weight": _TENSOR, "y": _OUT, "rows": "int", "n": "int", "eps": "float"},
            _shapes("rows n", (1, 1), (3, 31), (2, 257), (5, 264), (4, 1024)), {"rows": 1, "n": 1024},
            _alike, lambda s: {"y": (s["rows"], s["n"])},
            lambda i, s: {"y": rms_norm(i["x"], i["weight"], eps=i["eps"])},
            grid="rows", needs="n up to 1024",
        ),
        Spec(
            "torch.add+reference.rms_norm", "mid = x + r; y = rms_norm(mid, weight), row by row",
            {"x": _TENSOR, "r": _TENSOR, "weight": _TENSOR, "mid": _OUT, "y": _OUT, "rows": "int", "n": "int",
             "eps": "float"},
            _shapes("rows n", (1, 1), (3, 31), (2, 257), (5, 264), (4, 1024)), {"rows": 1, "n": 1024},
            _add_rms_norm, lambda s: {"mid": (s["rows"], s["n"]), "y": (s["rows"], s["n"])}, _add_rms_norm_truth,
            grid="rows", needs="n up to 1024",
        ),
        Spec(
            "F.linear", "y[r] = sum over c of W[r, c] * x[c]; W in bf16",
            {"W": _BF16, "x": _TENSOR, "y": _OUT, "rows": "int", "cols": "int"},
            _shapes("rows cols", (1, 8), (7, 264), (33, 520), (130, 256), (128, 1024)),
            {"rows": 3584, "cols": 1024},  # gate_proj
            _linear, lambda s: {"y": (s["rows"],)}, lambda i, s: {"y": F.linear(i["x"], i["W"].float())},
            grid="rows / block", needs="cols a multiple of 8; W and x 16-byte aligned",
        ),
        Spec(
            "reference.causal_conv", "one token of the depthwise convolution with SiLU; conv_state is updated",
            {"x": _TENSOR, "weight": _TENSOR, "conv_state": _OUT, "y": _OUT, "channels": "int", "taps": "int"},
            _shapes("channels taps", (1, 2), (37, 3), (300, 5), (640, 4)), {"channels": 6144, "taps": 4},
            _causal_conv, lambda s: {"y": (s["channels"],)}, _causal_conv_truth,
            grid="channels / block", needs="taps from 2 to 8",
        ),
        Spec(
            "reference.delta_rule_step",
            "S *= exp(g); delta = beta * (v - S^T k); S += k delta^T; o = S^T q, head by head",
            {"q": _TENSOR, "k": _TENSOR, "v": _TENSOR, "beta": _TENSOR, "g": _TENSOR, "S": _OUT, "o": _OUT,
             "heads": "int", "K": "int", "V": "int"},
            _shapes("heads K V", (1, 1, 4), (3, 40, 48), (2, 33, 20), (2, 128, 128)),
            {"heads": 16, "K": 128, "V": 128},
            _delta_rule, lambda s: {"o": (s["heads"], s["V"])}, _delta_rule_truth,
            grid="heads", block=128, needs="V a multiple of 4, up to 128; K up to 128",
        ),
        Spec(
            "F.scaled_dot_product_attention", "o = softmax(q k^T / sqrt(head_dim)) v, one query per head",
            {"q": _TENSOR, "k": _TENSOR, "v": _TENSOR, "o": _OUT,
             "heads": "int", "positions": "int", "head_dim": "int"},
            _shapes("heads positions head_dim", (1, 1, 32), (2, 33, 64), (3, 7, 96), (2, 130, 128)),
            {"heads": 8, "positions": 520, "head_dim": 128},  # half of the model's head_dim
            _attention, lambda s: {"o": (s["heads"], s["head_dim"])}, _attention_truth,
            grid="heads", block=128, needs="head_dim a multiple of 32, up to 128",
            limit=1e-4,  # roundings change a score of 100 by some 3e-5, and its exp() by the same share
        ),
    )
}  # fmt: skip
