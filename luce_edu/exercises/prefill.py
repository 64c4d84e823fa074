"""Exercises of notebook 12: U and W of a chunk, its outputs and last state, and how many blocks have work."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from luce_edu.exercises.base import Exercise, WrongAnswer, call, numbers
from luce_edu.reference.delta_rule import delta_rule_recurrent

LIMIT = 1e-4  # fp32, and a triangular system of up to 33 tokens solved in whatever way
SIZES = ((4, 6, 3), (1, 5, 2), (2, 3, 5), (7, 5, 9), (16, 8, 4), (33, 12, 7))  # tokens, K, V
STEEP = 40  # times the usual log decay: over a chunk, exp of its sum with the wrong sign is more than fp32 holds
CASES = (*((size, 1) for size in SIZES), ((16, 8, 4), STEEP))


def _chunk(tokens: int, key_dim: int, value_dim: int, steep: float = 1) -> dict[str, torch.Tensor]:
    """One head's chunk in fp32: q, k [tokens, K], v [tokens, V], beta, g [tokens]; S [K, V] stands before it.

    All keys and queries lean to one side and no two beta are alike, so that every mistake shows where it is made.
    """
    lean = 2 * torch.nn.functional.normalize(torch.randn(key_dim), dim=0)
    own = torch.randn(2, tokens, key_dim) * key_dim**-0.5
    q, k = torch.nn.functional.normalize(own + lean, dim=-1)
    beta = torch.linspace(0.2, 0.8, tokens + 1)[torch.randperm(tokens)]
    return {
        "q": q * key_dim**-0.5, "k": k, "v": torch.randn(tokens, value_dim), "beta": beta,
        "g": steep * (-0.1 - 0.5 * torch.rand(tokens)), "S": torch.randn(key_dim, value_dim),
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


def _overflow(steep: float) -> str:
    if steep == 1:
        return ""
    return (
        " With a decay this strong, exp(G_i - G_j) overflows to inf for a token j after i, and so does exp(-G). Zero "
        "times inf is NaN: take exp of differences that are at most 0, or drop the others with tril or where."
    )


def _pair(result: object, names: str, shapes: list[torch.Size], case: str, steep: float) -> list[torch.Tensor]:
    """Two finite tensors of these shapes in fp64, or WrongAnswer; names: a letter for each."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise WrongAnswer(f"expected two tensors, {names[0]} and {names[1]}, got {type(result).__name__}.")
    for got, name, shape in zip(result, names, shapes, strict=True):
        if not isinstance(got, torch.Tensor):
            raise WrongAnswer(f"{case} {name}: expected a tensor, got {type(got).__name__}.")
        if got.shape != shape:
            raise WrongAnswer(f"{case} {name}: expected shape {list(shape)}, got {list(got.shape)}.")
        if not torch.isfinite(got).all():
            raise WrongAnswer(f"{case} {name}: not every element is a finite number.{_overflow(steep)}")
    return [got.detach().double() for got in result]


def _first_wrong(got: torch.Tensor, truth: torch.Tensor) -> int | None:
    """The first row that is off by more than LIMIT of the largest row; None where none is."""
    limit = LIMIT * truth.norm(dim=-1).max()
    wrong = ~((got - truth).norm(dim=-1) <= limit)
    return int(wrong.nonzero()[0]) if wrong.any() else None


def _case(tokens: int, key_dim: int, value_dim: int, steep: float) -> str:
    decay = f", g around {-0.35 * steep:.0f}" if steep > 1 else ""
    return f"Case: {tokens} tokens, K {key_dim}, V {value_dim}{decay}."


def _cause(got: torch.Tensor, mistakes: Mapping[str, torch.Tensor]) -> str | None:
    """The mistake whose result this is."""
    for cause, result in mistakes.items():
        if _first_wrong(got, result) is None:
            return cause
    return None


def _prepare(answer) -> str:
    for size, steep in CASES:
        chunk = _chunk(*size, steep)
        given = {name: chunk[name].clone() for name in ("k", "v", "beta", "g")}
        truth, case = _solved(*given.values()), _case(*size, steep)
        got = _pair(call(answer, **given), "UW", [part.shape for part in truth], case, steep)
        for part, (name, ours, right) in enumerate(zip("UW", got, truth, strict=True)):
            token = _first_wrong(ours, right)
            if token is not None:
                results = _prepare_mistakes(*(chunk[name].double() for name in ("k", "v", "beta", "g")))
                cause = _cause(ours, {cause: result[part] for cause, result in results.items()})
                hint = cause or _prepare_hint(name, token)
                raise WrongAnswer(f"{case} {name} of token {token} is the first that differs. {hint}")
    return "No state went in: every chunk of a prompt can do this at the same time."


def _prepare_mistakes(k, v, beta, g) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """U and W by usual mistakes, by what is wrong with them."""
    G, row, column = g.cumsum(0), beta[:, None], beta[None, :]
    decay, pairs = (G[:, None] - G[None, :]).exp(), k @ k.T
    v, k = row * v, row * G.exp()[:, None] * k  # the right-hand sides

    def solve(L, v=v, k=k):
        return tuple(torch.linalg.solve(torch.eye(len(g)).double() + L, right) for right in (v, k))

    L = (row * decay * pairs).tril(-1)
    U, W = solve(L)
    return {
        "These are the right-hand sides; the system is not solved.": (v, k),
        "L times the right-hand sides is taken back. What has to be taken back are the solutions before.": (
            v - L @ v, k - L @ k),
        "L has its diagonal, so a token takes back its own write.": solve((row * decay * pairs).tril()),
        "L has beta of token j, which wrote; it needs that of token i, which corrects.": (
            solve((column * decay * pairs).tril(-1))),
        "L has no beta.": solve((decay * pairs).tril(-1)),
        "L has no decay between its two tokens.": solve((row * pairs).tril(-1)),
        "The decay in L has the wrong sign: what is left at i of what j wrote is exp(G_i - G_j).": (
            solve((row * decay.T * pairs).tril(-1))),
        "L has the wrong sign: what stands there is added in place of taken back.": solve(-L),
        "The right-hand side has no beta.": solve(L, v / row, k / row),
        "W's right-hand side has no decay: the state before the chunk is older than every token of it.": (
            solve(L, v, k / G.exp()[:, None])),
        "W's decay stops one token early: a token decays the state before it asks.": (
            solve(L, v, k / g.exp()[:, None])),
        "W has the wrong sign: the corrections are U - W S.": (U, -W),
    }  # fmt: skip


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
    for size, steep in CASES:
        chunk = _chunk(*size, steep)
        o, S = _recurrent(**chunk)
        case = _case(*size, steep)
        got_o, got_S = _pair(call(answer, **_scanned(chunk)), "oS", [o.shape, S.shape], case, steep)
        token = _first_wrong(got_o, o)
        if token is not None:
            hint = _cause(got_o, _o_mistakes(**_scanned(chunk, double=True))) or _scan_hint(token)
            raise WrongAnswer(f"{case} o of token {token} is the first that differs. {hint}")
        if not (got_S - S).norm() <= LIMIT * S.norm():
            hint = _cause(got_S, _state_mistakes(**_scanned(chunk, double=True)))
            hint = hint or "Of each thing in it: how much is left when the chunk ends?"
            raise WrongAnswer(f"{case} All of o is right, and S is not. {hint}")
    _, few, many = (_python_steps(answer, tokens) for tokens in (LOOP_SIZES[0], *LOOP_SIZES))  # 3.12 misses the first
    if many - few >= LOOP_SIZES[1] - LOOP_SIZES[0]:
        raise WrongAnswer(
            f"The results are right, but Python takes {few:,} steps for {LOOP_SIZES[0]} tokens and {many:,} for "
            f"{LOOP_SIZES[1]}: something goes from token to token. What each token sees of each is one matrix [T, T]."
        )
    return "One state in, one state out: the only line between two chunks."


def _scanned(chunk: Mapping[str, torch.Tensor], *, double: bool = False) -> dict[str, torch.Tensor]:
    """What `scan` is given for a chunk; new tensors, as it may write into them."""
    U, W = _solved(*(chunk[name] for name in ("k", "v", "beta", "g")))
    given = {name: chunk[name] for name in ("q", "k", "g", "S")} | {"U": U, "W": W}
    return {name: x.double() if double else x.float().clone() for name, x in given.items()}


LOOP_SIZES = (16, 160)


class _EachOperation(TorchDispatchMode):
    """Inside, each operation of PyTorch takes steps of Python, so that a loop over tokens in C shows too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def _python_steps(answer: Callable, tokens: int) -> int:
    """How many instructions Python executes in a call with so many tokens."""
    chunk = _chunk(tokens, 8, 4)
    given = {name: chunk[name] for name in ("q", "k", "g", "S")} | {"U": chunk["v"], "W": chunk["k"]}  # of that shape
    steps = 0

    def count(frame, event, arg):
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return count

    with _EachOperation():
        answer(**given)  # the first call may import something
        before = sys.gettrace()
        sys.settrace(count)
        try:
            answer(**given)
        finally:
            sys.settrace(before)
    return steps


def _o_mistakes(q, k, g, U, W, S) -> dict[str, torch.Tensor]:
    """o by usual mistakes, by what is wrong with it."""
    G, d = g.cumsum(0), U - W @ S
    decay, scores, reads = (G[:, None] - G[None, :]).exp(), q @ k.T, G.exp()[:, None]
    seen = decay.tril()

    def o(reads=reads, left=seen, d=d):
        return reads * (q @ S) + (left * scores) @ d

    return {
        "q is scaled already.": o() * q.shape[1] ** -0.5,
        "d is U minus W S, not plus.": o(d=U + W @ S),
        "d is U alone, as if the state before the chunk were empty.": o(d=U),
        "d comes from the state before the chunk, not from the one after it or from a decayed one.": (
            o(d=U - W @ (G[-1].exp() * S))),
        "W has its decay already.": o(d=U - reads * (W @ S)),
        "The state before the chunk is not read.": o(reads=0),
        "The state before the chunk is read without its decay.": o(reads=1),
        "The state's decay stops one token early: a token decays the state before it reads.": (
            o(reads=(G - g).exp()[:, None])),
        "A token has to see what it wrote itself, too.": o(left=decay.tril(-1)),
        "A token sees tokens that come after it.": o(left=decay),
        "The writes of the tokens before have not decayed.": o(left=torch.ones_like(decay).tril()),
        "The decay between two tokens has the wrong sign.": o(left=decay.T.tril()),
    }  # fmt: skip


def _state_mistakes(q, k, g, U, W, S) -> dict[str, torch.Tensor]:
    """The state after the chunk by usual mistakes, by what is wrong with it."""
    G, d = g.cumsum(0), U - W @ S
    kept, left = G[-1].exp(), (G[-1] - G).exp()[:, None]
    return {
        "This is the state before the chunk.": S,
        "The state before the chunk has not decayed.": S + (left * k).T @ d,
        "The state before the chunk is missing.": (left * k).T @ d,
        "The writes have not decayed.": kept * S + k.T @ d,
        "Of a write, what is left when the chunk ends is exp(G_T - G_i), not exp(G_i).": (
            kept * S + (G.exp()[:, None] * k).T @ d),
        "The writes are U, without what the state before the chunk takes off.": kept * S + (left * k).T @ U,
    }  # fmt: skip


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


def _blocks_mistakes(tokens: int, heads: int, value_dim: int, columns: int) -> tuple[dict[str, float], ...]:
    """Of each of the three numbers, what usual mistakes make of it, by what is wrong."""
    down, up, strips = tokens // 64, -(-tokens // 64), value_dim // columns
    rounding = {"The last chunk counts, though it is not full: round up.": down,
                "Where the last chunk is full, there is none after it.": down + 1,
                "A chunk that is not full is a whole turn: round up.": tokens / 64}  # fmt: skip
    return (
        {cause: heads * chunks for cause, chunks in rounding.items()} | {"Each head has its own chunks.": up,
         "Its blocks have no columns of their own.": heads * up * strips},
        {"Each head has its own state.": strips, "A head's state is cut into strips of `columns` columns.": heads,
         "A block of scan stays for all chunks; it is not launched anew for each.": heads * strips * up},
        rounding | {"A turn is a chunk, not a token.": tokens,
                    "All heads go through their chunks at the same time.": heads * up},
    )  # fmt: skip


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
        mistakes = _blocks_mistakes(tokens, heads, value_dim, columns)
        for part, (mine, right) in enumerate(zip(got, want, strict=True)):
            if mine != right:
                causes = [cause for cause, wrong in mistakes[part].items() if mine == wrong]
                hint = causes[0] if causes else hints[part]
                raise WrongAnswer(f"{case}: {mine:g} is not the number of {names[part]}. {hint}")
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
