"""Exercises of notebook 02: the conv state, a step with shared key heads, three wrong update rules."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch

from luce_edu.exercises.base import Exercise, WrongAnswer, call

LIMIT = 1e-5  # relative; fp32 sums of at most a few dozen products, in any order


def _expect(got: object, want: torch.Tensor, what: str, hint: str = "") -> torch.Tensor:
    """Return `got` in fp64. Raises WrongAnswer unless it is a finite tensor of `want`'s shape; `hint`: on shapes."""
    if not isinstance(got, torch.Tensor):
        raise WrongAnswer(f"{what}: expected a tensor, got {type(got).__name__}.")
    if got.shape != want.shape:
        raise WrongAnswer(f"{what}: expected shape {list(want.shape)}, got {list(got.shape)}. {hint}".rstrip())
    if not torch.isfinite(got).all():
        raise WrongAnswer(f"{what}: not every element is a finite number.")
    return got.detach().double()


def _next_conv_state(answer) -> str:
    for kernel, tokens in ((4, 4), (4, 3), (4, 1), (4, 2), (6, 2), (2, 5), (2, 1), (5, 9)):
        remembered = kernel - 1
        channels = remembered + random.randrange(1, 4)  # so that a transposed answer has another shape
        # All numbers differ, so that each can be traced. Whole numbers are easy to read in a hint.
        numbers = torch.randperm(channels * (remembered + tokens)).float() + 1
        inputs = numbers.view(channels, remembered + tokens)
        got = call(answer, inputs[:, :remembered].clone(), inputs[:, remembered:].T.clone())
        case = f"Case: kernel {kernel}, so {remembered} inputs remembered; {tokens} new tokens."
        want = inputs[:, tokens:].double()
        hint = _slice_hint(got, inputs, remembered) if isinstance(got, torch.Tensor) else ""
        got = _expect(got, want, f"{case} conv_state", hint)
        if not torch.equal(got, want):
            channel = int((got != want).any(1).nonzero()[0])
            seen, kept = ([f"{x:g}" for x in row[channel].tolist()] for row in (inputs, got))
            raise WrongAnswer(
                f"{case} Channel {channel} remembered {' '.join(seen[:remembered])}, then came "
                f"{' '.join(seen[remembered:])}. You return {' '.join(kept)}, which are not the last {remembered} of "
                "these, "
                f"oldest first. {hint}".rstrip()
            )
    return (
        "Checked on 8 pairs of kernel width and chunk length. In 3 of them the chunk has fewer tokens than are "
        "remembered, and a part of the old conv state stays."
    )


def _slice_hint(got: torch.Tensor, inputs: torch.Tensor, remembered: int) -> str:
    """Name the mistake if `got` is a wrong part of `inputs` [channels, remembered + new], transposed or not."""
    old, new = inputs[:, :remembered], inputs[:, remembered:]
    parts = {
        "These are the last tokens of x only. When x has fewer tokens than are remembered, a part of conv_state stays.":
            new[:, -remembered:],
        "This is the old state, without x.": old,
        "This is one token late: the newest token is missing.": inputs[:, -remembered - 1 : -1],
        "These are all inputs. Keep only the last ones.": inputs,
        "The order is reversed: the newest token comes first.": inputs[:, -remembered:].flip(1),
        "These are the first tokens of x. Keep the last ones.": new[:, :remembered],
    }  # fmt: skip
    right = inputs[:, -remembered:]
    if torch.equal(got, right.T):
        return "It is transposed: channels come first."
    for name, part in parts.items():
        if torch.equal(got, part):
            return name
        if torch.equal(got, part.T):
            return f"It is transposed: channels come first. {name}"
    return ""


next_conv_state = Exercise(
    name="next_conv_state",
    judge=_next_conv_state,
    spec="The conv state after a chunk of any length, also one shorter than the state.",
    skeleton='''\
def next_conv_state(conv_state, x):
    """Return [channels, kernel - 1], oldest first; conv_state like it, x [tokens, channels]."""
    return ...
''',
    hole="return ...",
    budget="5 minutes, one or two lines",
)


def _right_step(S, q, k, v, beta, g):
    """Return (S, o) of one head after one token; S [K, V], q, k [K], v [V], beta and g scalars."""
    S = g.exp() * S
    S = S + torch.outer(k, beta * (v - S.T @ k))
    return S, S.T @ q


def _grouped_step(answer) -> str:
    for key_heads, served, key_dim, value_dim in ((1, 1, 4, 3), (2, 1, 5, 5), (2, 2, 4, 7), (2, 3, 8, 5), (3, 2, 7, 9)):
        heads = key_heads * served
        q, k = (torch.nn.functional.normalize(torch.randn(key_heads, key_dim), dim=-1) for _ in range(2))
        v, S = torch.randn(heads, value_dim), torch.randn(heads, key_dim, value_dim)
        beta, g = 0.2 + 0.6 * torch.rand(heads), -0.1 - torch.rand(heads)
        arguments = {"S": S, "q": q, "k": k, "v": v, "beta": beta, "g": g}
        result = call(answer, **{name: tensor.clone() for name, tensor in arguments.items()})
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise WrongAnswer(f"expected two tensors, S and o, got {type(result).__name__}.")
        S, q, k, v, beta, g = (tensor.double() for tensor in arguments.values())
        want = [
            _right_step(S[h], q[h // served], k[h // served], v[h], beta[h], g[h]) for h in range(heads)
        ]
        case = f"Case: {key_heads} key heads, {heads} value heads."
        for i, name in enumerate(("S", "o")):
            truth = torch.stack([head[i] for head in want])
            got = _expect(result[i], truth, f"{case} {name}")
            for h in range(heads):
                if not (got[h] - truth[h]).norm() <= LIMIT * truth[h].norm():
                    raise WrongAnswer(
                        f"{case} {name} of value head {h} is the first that differs. {_grouped_hint(name, h, served)}"
                    )
    return "S and o are right in 5 cases with 1 to 3 value heads per key head. Each value head has its own matrix S."


def _grouped_hint(name: str, head: int, served: int) -> str:
    if name == "o":
        return "S is right in every head. Look at how o is read from it, and whether that is after the update."
    if served > 1 and head > 0:
        return f"Which key head does it use? Each key head serves {served} value heads in a row."
    return "Check the order of decay, prediction and update: which S does each of them read?"


grouped_step = Exercise(
    name="grouped_step",
    judge=_grouped_step,
    spec="One token of the delta rule for all heads at once. A key head serves several value heads in a row.",
    skeleton='''\
def grouped_step(S, q, k, v, beta, g):
    """Return (S, o) after one token, o [value heads, V].

    S [value heads, K, V];  q, k [key heads, K];  v [value heads, V];  beta, g [value heads]
    """
    return ...
''',
    hole="return ...",
    budget="10 minutes, six lines",
)


# Four rules for one head: S [K, V], q, k [K], v [V], beta and g scalars. Each returns (S, o).


def rule_a(S, q, k, v, beta, g):
    S = S + torch.outer(k, beta * (v - S.T @ k))
    S = g.exp() * S
    return S, S.T @ q


def rule_b(S, q, k, v, beta, g):
    S = g.exp() * S
    S = S + torch.outer(k, v - beta * (S.T @ k))
    return S, S.T @ q


def rule_c(S, q, k, v, beta, g):
    predicted, read = g.exp() * (S.T @ k), g.exp() * (S.T @ q)
    delta = beta * (v - predicted)
    return g.exp() * S + torch.outer(k, delta), read + (k @ q) * delta


def rule_d(S, q, k, v, beta, g):
    delta = beta * (v - S.T @ k)
    S = g.exp() * S + torch.outer(k, delta)
    return S, S.T @ q


RULES = {"A": rule_a, "B": rule_b, "C": rule_c, "D": rule_d}

# Limits of the norm of the error of S and o together, over the norm of the right ones, in fp64.
DIFFERS, AGREES = 1e-2, 1e-6


def _four_rules(answer) -> str:
    if not isinstance(answer, Mapping) or len(answer) != 3 or not set(answer) <= set(RULES):
        raise WrongAnswer(f"expected a token for each of three rules out of {', '.join(RULES)}, got {answer!r}")
    for accused, token in answer.items():
        arguments = _token(accused, token)
        errors = _errors(arguments)
        if not errors[accused] >= DIFFERS:
            raise WrongAnswer(
                f"Your token for {accused} does not show its mistake: S and o differ from the right ones by "
                f"{errors[accused]:.1g} of their norm, and should differ by at least {DIFFERS}."
            )
        others = [other for other in answer if other != accused and not errors[other] <= AGREES]
        if others:
            raise WrongAnswer(
                f"On your token for {accused}, {others[0]} is wrong too. Which value of g, beta, v or S makes the "
                f"mistake of {others[0]} vanish?"
            )
    return (
        "On each of the three tokens exactly one rule is wrong by 1 % or more, and the others are right to 1e-6. One "
        "test input is not enough: each wrong rule is right on two of your three."
    )


def _token(rule: str, token: object) -> dict[str, torch.Tensor]:
    """Return the reader's token in fp64. Raises WrongAnswer unless shapes and ranges are those of a model."""
    names = ("S", "q", "k", "v", "beta", "g")
    if not isinstance(token, Mapping) or set(token) != set(names):
        raise WrongAnswer(f"{rule}: expected a dict with {', '.join(names)}, got {token!r}")
    try:
        arguments = {name: torch.as_tensor(token[name]).detach().double() for name in names}
    except (TypeError, ValueError, RuntimeError) as error:
        raise WrongAnswer(f"{rule}: expected tensors or numbers ({error})") from None
    S, q, k, v, beta, g = arguments.values()
    if S.dim() != 2 or q.shape != S.shape[:1] or k.shape != q.shape or v.shape != S.shape[1:] or beta.dim() or g.dim():
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in arguments.items())
        raise WrongAnswer(f"{rule}: expected S [K, V], q and k [K], v [V], beta and g single numbers; got {shapes}")
    for name, x in arguments.items():
        if not torch.isfinite(x).all():
            raise WrongAnswer(f"{rule}: {name} is not finite.")
    if not 0 <= beta <= 1 or not g <= 0:
        raise WrongAnswer(f"{rule}: expected beta from 0 to 1 and g of at most 0, got {beta:.3g} and {g:.3g}.")
    return arguments


def _errors(arguments: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return, by rule, the norm of its error over the right norm, of S and o together."""

    def both(rule):
        return torch.cat([part.flatten() for part in rule(**arguments)])

    right = both(_right_step)
    return {name: float((both(rule) - right).norm() / right.norm().clamp_min(1e-30)) for name, rule in RULES.items()}


four_rules = Exercise(
    name="four_rules",
    judge=_four_rules,
    spec="For each of the three wrong rules, a token on which only it is wrong, by at least 1 % of S and o together.",
    skeleton="""\
tokens = ...   # {"A": dict(S=..., q=..., k=..., v=..., beta=..., g=...), ...}: the wrong three
""",
    hole="""...   # {"A": dict(S=..., q=..., k=..., v=..., beta=..., g=...), ...}: the wrong three""",
    budget="20 minutes, three tokens",
)
