"""Exercises of notebook 12: U and W of a chunk, its outputs and last state, and how many blocks have work."""

from __future__ import annotations

import random

import torch

from luce_edu.exercises import Exercise, WrongAnswer, call, numbers
from luce_edu.reference.delta_rule import delta_rule_recurrent

LIMIT = 1e-4  # fp32, and a triangular system of up to 33 tokens solved in whatever way
SIZES = ((4, 6, 3), (1, 5, 2), (2, 3, 5), (7, 5, 9), (16, 8, 4), (33, 12, 7))  # tokens, K, V


def _chunk(tokens: int, key_dim: int, value_dim: int) -> dict[str, torch.Tensor]:
    """One head's chunk in fp32: q, k [tokens, K], v [tokens, V], beta, g [tokens]; S [K, V] stands before it.

    All keys and queries lean to one side and no two beta are alike, so that every mistake shows where it is made.
    """
    lean = 2 * torch.nn.functional.normalize(torch.randn(key_dim), dim=0)
    own = torch.randn(2, tokens, key_dim) * key_dim**-0.5
    q, k = torch.nn.functional.normalize(own + lean, dim=-1)
    beta = torch.linspace(0.2, 0.8, tokens + 1)[torch.randperm(tokens)]
    return {
        "q": q * key_dim**-0.5, "k": k, "v": torch.randn(tokens, value_dim), "beta": beta,
        "g": -0.1 - 0.5 * torch.rand(tokens), "S": torch.randn(key_dim, value_dim),
    }  # fmt: skip


def _solved(k, v, beta, g) -> tuple[torch.Tensor, torch.Tensor]:
    """U [tokens, V] and W [tokens, K] row by row, in fp64."""
    k, v, beta, G = k.double(), v.double(), beta.double(), g.double().cumsum(0)
    U, W = beta[:, None] * v, (beta * G.exp())[:, None] * k
    for i in range(len(k)):
        for j in range(i):
            taken_back = beta[i] * (G[i] - G[j]).exp() * (k[i] @ k[j])
            U[i] -= taken_back * U[j]
            W[i] -= taken_back * W[j]
    return U, W


def _recurrent(q, k, v, beta, g, S) -> tuple[torch.Tensor, torch.Tensor]:
    """o [tokens, V] and the last S by the recurrence, in fp64."""
    q, k, v, beta, g = (x.double()[:, None] for x in (q, k, v, beta, g))  # of one head
    S = S.double()[None]
    o = delta_rule_recurrent(q, k, v, beta=beta, g=g, recurrent_state=S)
    return o[:, 0], S[0]


def _pair(result: object, names: str, shapes: list[torch.Size], case: str) -> list[torch.Tensor]:
    """Two finite tensors of these shapes in fp64, or WrongAnswer; names: a letter for each."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise WrongAnswer(f"expected two tensors, {names[0]} and {names[1]}, got {type(result).__name__}.")
    for got, name, shape in zip(result, names, shapes, strict=True):
        if not isinstance(got, torch.Tensor):
            raise WrongAnswer(f"{case} {name}: expected a tensor, got {type(got).__name__}.")
        if got.shape != shape:
            raise WrongAnswer(f"{case} {name}: expected shape {list(shape)}, got {list(got.shape)}.")
        if not torch.isfinite(got).all():
            raise WrongAnswer(f"{case} {name}: not every element is a finite number.")
    return [got.detach().double() for got in result]


def _first_wrong(got: torch.Tensor, truth: torch.Tensor) -> int | None:
    """The first row that is off by more than LIMIT of the largest row; None where none is."""
    limit = LIMIT * truth.norm(dim=-1).max()
    wrong = ~((got - truth).norm(dim=-1) <= limit)
    return int(wrong.nonzero()[0]) if wrong.any() else None


def _prepare(answer) -> str:
    for tokens, key_dim, value_dim in SIZES:
        chunk = _chunk(tokens, key_dim, value_dim)
        given = {name: chunk[name].clone() for name in ("k", "v", "beta", "g")}
        truth = _solved(*given.values())
        case = f"Case: {tokens} tokens, K {key_dim}, V {value_dim}."
        got = _pair(call(answer, **given), "UW", [part.shape for part in truth], case)
        for name, ours, right in zip("UW", got, truth, strict=True):
            token = _first_wrong(ours, right)
            if token is not None:
                hint = _prepare_hint(name, token)
                raise WrongAnswer(f"{case} {name} of token {token} is the first that differs. {hint}")
    return "No state went in: every chunk of a prompt can do this at the same time."


def _prepare_hint(name: str, token: int) -> str:
    if token == 0 and name == "U":
        return "It has nobody before it: what does it write into an empty memory?"
    if token == 0:
        return "It has nobody before it: what does it ask the state for, and how much of that is left by then?"
    if token == 1:
        return "It takes back one thing. Whose beta, how much of token 0's write is left by then, and with which sign?"
    return "The first two are right. What is taken back of those before: right-hand sides, or solutions?"


prepare = Exercise(
    name="prepare",
    judge=_prepare,
    spec="U and W of one head's chunk, of any number of tokens, so that its corrections are U - W S for every S.",
    skeleton='''\
def prepare(k, v, beta, g):
    """Return (U, W), U [T, V] and W [T, K];  k [T, K] normalised, v [T, V], beta [T], g [T] log decay, <= 0."""
    return ...
''',
    hole="return ...",
    budget="15 minutes, six lines",
)


def _scan(answer) -> str:
    for tokens, key_dim, value_dim in SIZES:
        chunk = _chunk(tokens, key_dim, value_dim)
        U, W = (x.float() for x in _solved(*(chunk[name] for name in ("k", "v", "beta", "g"))))
        given = {name: chunk[name].clone() for name in ("q", "k", "g")} | {"U": U, "W": W, "S": chunk["S"].clone()}
        o, S = _recurrent(**chunk)
        case = f"Case: {tokens} tokens, K {key_dim}, V {value_dim}."
        got_o, got_S = _pair(call(answer, **given), "oS", [o.shape, S.shape], case)
        token = _first_wrong(got_o, o)
        if token is not None:
            raise WrongAnswer(f"{case} o of token {token} is the first that differs. {_scan_hint(token)}")
        if not (got_S - S).norm() <= LIMIT * S.norm():
            raise WrongAnswer(
                f"{case} All of o is right, and S is not. Of each thing in it: how much is left when the chunk ends?"
            )
    return "One state in, one state out: the only line between two chunks."


def _scan_hint(token: int) -> str:
    if token == 0:
        return "It reads what is left of S, and what it wrote itself; q is scaled already. From which S are the d?"
    return "Token 0 is right. Which tokens does this one see, and how much of each one's write is left by then?"


scan = Exercise(
    name="scan",
    judge=_scan,
    spec="A chunk's outputs and the state after it, from U, W and the state before it, with no loop over tokens.",
    skeleton='''\
def scan(q, k, g, U, W, S):
    """Return (o, S after the chunk), o [T, V].

    q, k [T, K] normalised, q already scaled;  g [T] log decay;  U [T, V], W [T, K];  S [K, V] before the chunk
    """
    return ...
''',
    hole="return ...",
    budget="10 minutes, five lines",
)


def _blocks(answer) -> str:
    draws = [(520, 16, 128, 32), (64, 16, 128, 32), (65, 4, 32, 32), (1, 8, 96, 16)]
    draws += [
        (random.randrange(2, 5000), 4 * random.randrange(1, 9), 32 * random.randrange(1, 6), random.choice((8, 16, 32)))
        for _ in range(20)
    ]
    for tokens, heads, value_dim, columns in draws:
        chunks = -(-tokens // 64)
        want = (heads * chunks, heads * (value_dim // columns), chunks)
        case = f"{tokens} tokens, {heads} heads, V {value_dim}, {columns} columns a block"
        got = call(answer, tokens=tokens, heads=heads, value_dim=value_dim, columns=columns)
        got = numbers(got, 3, "three numbers")
        names = ("blocks of prepare", "blocks of scan", "chunks that a block of scan goes through")
        hints = (
            "It needs no state: one block for each head and each chunk, also one that is not full.",
            "A block keeps its part of one head's state from the first chunk to the last.",
            "A chunk that is not full takes a turn like any other.",
        )
        for mine, right, name, hint in zip(got, want, names, hints, strict=True):
            if mine != right:
                raise WrongAnswer(f"{case}: {mine:g} is not the number of {name}. {hint}")
    return "A longer prompt brings prepare more blocks, and scan only more turns."


blocks = Exercise(
    name="blocks",
    judge=_blocks,
    spec="How many blocks have work in prepare and in scan, and how many chunks each block of scan takes in turn.",
    skeleton='''\
def blocks(tokens, heads, value_dim, columns):
    """Return (blocks of prepare, blocks of scan, chunks in turn) of one layer; chunks are of 64 tokens.

    columns  of a head's state that a block of scan keeps; divides value_dim
    """
    return ...
''',
    hole="return ...",
    budget="5 minutes, three lines",
)
