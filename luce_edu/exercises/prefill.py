"""Exercises of notebook 12: U and W of a chunk, its outputs and final state, the number of blocks with work."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from luce_edu.exercises.base import Exercise, WrongAnswer, call, numbers
from luce_edu.reference.delta_rule import delta_rule_recurrent

LIMIT = 1e-4  # relative; fp32, with a triangular system of up to 33 tokens solved in any way
SIZES = ((4, 6, 3), (1, 5, 2), (2, 3, 5), (7, 5, 9), (16, 8, 4), (33, 12, 7))  # tokens, K, V
STEEP = 40  # times the usual log decay, so that exp of its sum over a chunk overflows fp32 if the sign is wrong
CASES = (*((size, 1) for size in SIZES), ((16, 8, 4), STEEP))


def _chunk(tokens: int, key_dim: int, value_dim: int, steep: float = 1) -> dict[str, torch.Tensor]:
    """Draw one head's chunk in fp32: q, k [tokens, K], v [tokens, V], beta, g [tokens], and S [K, V] before it.

    All keys and queries have a common direction and no two beta are equal, so that every mistake changes its token.
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
    """Return U [tokens, V] and W [tokens, K] in fp64, row by row."""
    k, v, beta, G = k.double(), v.double(), beta.double(), g.double().cumsum(0)
    U, W = beta[:, None] * v, (beta * G.exp())[:, None] * k
    for i in range(len(k)):
        for j in range(i):
            taken_back = beta[i] * (G[i] - G[j]).exp() * (k[i] @ k[j])
            U[i] -= taken_back * U[j]
            W[i] -= taken_back * W[j]
    return U, W


def _recurrent(q, k, v, beta, g, S) -> tuple[torch.Tensor, torch.Tensor]:
    """Return o [tokens, V] and the S after the chunk in fp64, by the recurrence."""
    q, k, v, beta, g = (x.double()[:, None] for x in (q, k, v, beta, g))  # one head
    S = S.double()[None]
    o = delta_rule_recurrent(q, k, v, beta=beta, g=g, recurrent_state=S)
    return o[:, 0], S[0]


def _overflow(steep: float) -> str:
    """Return why a result may not be finite in a case of strong decay; "" in other cases."""
    if steep == 1:
        return ""
    return (
        " With a decay this strong, exp(G_i - G_j) overflows to inf for a token j after i, and so does exp(-G), and 0 "
        "* inf is NaN. Take exp only of differences that are at most 0, or drop the others with tril or where."
    )


def _pair(result: object, names: str, shapes: list[torch.Size], case: str, steep: float) -> list[torch.Tensor]:
    """Return the two tensors in fp64. Raises WrongAnswer unless they are finite and of these shapes."""
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
    """Return the first row whose error norm exceeds LIMIT times the largest row norm, or None."""
    limit = LIMIT * truth.norm(dim=-1).max()
    wrong = ~((got - truth).norm(dim=-1) <= limit)
    return int(wrong.nonzero()[0]) if wrong.any() else None


def _case(tokens: int, key_dim: int, value_dim: int, steep: float) -> str:
    decay = f", g around {-0.35 * steep:.0f}" if steep > 1 else ""
    return f"Case: {tokens} tokens, K {key_dim}, V {value_dim}{decay}."


def _cause(got: torch.Tensor, mistakes: Mapping[str, torch.Tensor]) -> str | None:
    """Return the mistake whose result equals `got`, or None."""
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
    return (
        f"U and W are right in {len(CASES)} cases of 1 to 33 tokens. No state is needed, so all chunks of a prompt can "
        "be prepared at the same time."
    )


def _prepare_mistakes(k, v, beta, g) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return (U, W) as usual mistakes make them, by what is wrong."""
    G, row, column = g.cumsum(0), beta[:, None], beta[None, :]
    decay, pairs = (G[:, None] - G[None, :]).exp(), k @ k.T
    v, k = row * v, row * G.exp()[:, None] * k  # the right-hand sides

    def solve(L, v=v, k=k):
        return tuple(torch.linalg.solve(torch.eye(len(g)).double() + L, right) for right in (v, k))

    L = (row * decay * pairs).tril(-1)
    U, W = solve(L)
    return {
        "These are the right-hand sides; the system is not solved.": (v, k),
        "You subtract L times the right-hand sides. Which rows of U and W should L multiply?": (
            v - L @ v, k - L @ k),
        "L has a diagonal, so a token subtracts its own write.": solve((row * decay * pairs).tril()),
        "L has the beta of token j, the earlier one. Which token's correction does a row of L belong to?": (
            solve((column * decay * pairs).tril(-1))),
        "L has no beta.": solve((decay * pairs).tril(-1)),
        "L lacks the decay between its two tokens.": solve((row * pairs).tril(-1)),
        "The decay in L has the wrong sign: a write of token j should shrink until token i.": (
            solve((row * decay.T * pairs).tril(-1))),
        "L has the wrong sign: what the earlier tokens wrote is added, not subtracted.": solve(-L),
        "The right-hand sides have no beta.": solve(L, v / row, k / row),
        "The right-hand side of W has no decay. How much of the state before the chunk is left at each token?": (
            solve(L, v, k / G.exp()[:, None])),
        "The decay of W stops one token early: a token decays the state before it reads.": (
            solve(L, v, k / g.exp()[:, None])),
        "W has the wrong sign: the corrections are U - W S, not U + W S.": (U, -W),
    }  # fmt: skip


def _prepare_hint(name: str, token: int) -> str:
    if token == 0 and name == "U":
        return "No token comes before it. What does it write into an empty state?"
    if token == 0:
        return (
            "No token comes before it. With which key does it read the state, and how much of the state is left by "
            "then?"
        )
    if token == 1:
        return (
            "It corrects for token 0 only. Check whose beta stands there, how much of token 0's write is left, and the "
            "sign."
        )
    return "Tokens 0 and 1 are right. Does L multiply right-hand sides here, or the rows of U and W found before?"


prepare = Exercise(
    name="prepare",
    judge=_prepare,
    spec="U and W of one head's chunk of any length, such that its corrections are U - W S for every S.",
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
            hint = hint or "Check how much of the old state, and of each write, is left at the end of the chunk."
            raise WrongAnswer(f"{case} o is right, but S is not. {hint}")
    _, few, many = (_python_steps(answer, tokens) for tokens in (LOOP_SIZES[0], *LOOP_SIZES))  # 3.12 misses the first
    if many - few >= LOOP_SIZES[1] - LOOP_SIZES[0]:
        raise WrongAnswer(
            f"The results are right, but Python executes {few:,} instructions for {LOOP_SIZES[0]} tokens and {many:,} "
            f"for {LOOP_SIZES[1]}, so there is a loop over tokens. Write what token i reads of token j as a matrix [T, "
            "T]."
        )
    return (
        f"o and S are right in {len(CASES)} cases of 1 to 33 tokens, without a loop over tokens. A chunk needs nothing "
        "but S from the chunk before it."
    )


def _scanned(chunk: Mapping[str, torch.Tensor], *, double: bool = False) -> dict[str, torch.Tensor]:
    """Return the arguments of `scan` for a chunk, as new tensors that it may overwrite."""
    U, W = _solved(*(chunk[name] for name in ("k", "v", "beta", "g")))
    given = {name: chunk[name] for name in ("q", "k", "g", "S")} | {"U": U, "W": W}
    return {name: x.double() if double else x.float().clone() for name, x in given.items()}


LOOP_SIZES = (16, 160)


class _EachOperation(TorchDispatchMode):
    """Makes each PyTorch operation execute some Python, so that a loop over tokens inside C code is counted too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def _python_steps(answer: Callable, tokens: int) -> int:
    """Return how many instructions Python executes in a call with this number of tokens."""
    chunk = _chunk(tokens, 8, 4)
    given = {name: chunk[name] for name in ("q", "k", "g", "S")} | {"U": chunk["v"], "W": chunk["k"]}  # any values
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
    """Return o as usual mistakes make it, by what is wrong."""
    G, d = g.cumsum(0), U - W @ S
    decay, scores, reads = (G[:, None] - G[None, :]).exp(), q @ k.T, G.exp()[:, None]
    seen = decay.tril()

    def o(reads=reads, left=seen, d=d, scores=scores):
        return reads * (q @ S) + (left * scores) @ d

    return {
        "You scale q, which is scaled already.": o() * q.shape[1] ** -0.5,
        "The corrections have W S with the wrong sign.": o(d=U + W @ S),
        "The corrections are U alone, as if the state before the chunk were empty.": o(d=U),
        "The corrections use a decayed state. Which S belongs into U - W S?": (
            o(d=U - W @ (G[-1].exp() * S))),
        "You apply the decay to W S, but W contains it already.": o(d=U - reads * (W @ S)),
        "What q reads from the state before the chunk is missing in o.": o(reads=0),
        "The state before the chunk is read without its decay.": o(reads=1),
        "The state's decay stops one token early: a token decays the state before it reads.": (
            o(reads=(G - g).exp()[:, None])),
        "A token should read its own write too.": o(left=decay.tril(-1)),
        "A token reads the writes of later tokens.": o(left=decay),
        "The writes of earlier tokens are read without their decay.": o(left=torch.ones_like(decay).tril()),
        "The decay between two tokens has the wrong sign.": o(left=decay.T.tril()),
        "Token i reads token j's write with its own query, q_i . k_j; these are k_i . q_j.": o(scores=scores.T),
        "Every token reads the state after the chunk. It should see the writes up to its own only.": (
            q @ (G[-1].exp() * S + ((G[-1] - G).exp()[:, None] * k).T @ d)),
    }  # fmt: skip


def _state_mistakes(q, k, g, U, W, S) -> dict[str, torch.Tensor]:
    """Return the state after the chunk as usual mistakes make it, by what is wrong."""
    G, d = g.cumsum(0), U - W @ S
    kept, left = G[-1].exp(), (G[-1] - G).exp()[:, None]
    return {
        "This is the state before the chunk.": S,
        "The state before the chunk has not decayed.": S + (left * k).T @ d,
        "The state before the chunk is missing.": (left * k).T @ d,
        "The state before the chunk has decayed at the last token only. It decays at every token.": (
            g[-1].exp() * S + (left * k).T @ d),
        "The writes are added without their decay.": kept * S + k.T @ d,
        "The writes decay by exp(G_i), which is the decay up to token i. Which decay comes after it?": (
            kept * S + (G.exp()[:, None] * k).T @ d),
        "The writes are U alone, without the part that depends on the state before the chunk.": (
            kept * S + (left * k).T @ U),
    }  # fmt: skip


def _scan_hint(token: int) -> str:
    if token == 0:
        return "It reads what is left of S, and its own write. Check the decay of S, and which S the corrections use."
    return "Token 0 is right. Check which tokens this one reads, and how much of each one's write is left by then."


scan = Exercise(
    name="scan",
    judge=_scan,
    spec="The outputs of a chunk and the state after it, from U, W and the state before it, without a loop over "
    "tokens.",
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
    """Return, for each of the three numbers, what usual mistakes make of it, by what is wrong."""
    down, up, strips = tokens // 64, -(-tokens // 64), value_dim // columns
    rounding = {"The last chunk counts even if it is not full.": down,
                "Here the last chunk is full, and you count one more after it.": down + 1,
                "A chunk that is not full counts as a whole one.": tokens / 64}  # fmt: skip
    return (
        {cause: heads * chunks for cause, chunks in rounding.items()} |
        {"These are the chunks of one head. Each head has its own.": up,
         "In prepare, a block has a whole chunk; its columns are not divided.": heads * up * strips},
        {"These are the blocks of one head. Each head has its own state.": strips,
         "You count one block per head. A block keeps only `columns` columns of a head's state.": heads,
         "You count one block per column. A block keeps `columns` of them.": heads * value_dim,
         "You count the blocks once per chunk. A block of scan goes through all chunks.": heads * strips * up},
        rounding | {"These are tokens. Return chunks.": tokens,
                    "You count the chunks of all heads. They go through their chunks at the same time.": heads * up},
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
        case = f"{tokens} tokens, {heads} heads, V {value_dim}, {columns} columns per block"
        got = call(answer, tokens=tokens, heads=heads, value_dim=value_dim, columns=columns)
        got = numbers(got, 3, "three numbers")
        names = ("blocks of prepare", "blocks of scan", "chunks per block of scan")
        hints = (
            "What does a block of prepare work on? It needs no state, so its blocks do not wait for each other.",
            "A block keeps its part of one head's state from the first chunk to the last.",
            "How many chunks does a prompt have, the last one included?",
        )
        mistakes = _blocks_mistakes(tokens, heads, value_dim, columns)
        for part, (mine, right) in enumerate(zip(got, want, strict=True)):
            if mine != right:
                causes = [cause for cause, wrong in mistakes[part].items() if mine == wrong]
                hint = causes[0] if causes else hints[part]
                raise WrongAnswer(f"Case: {case}. The number of {names[part]} is not {mine:g}. {hint}")
    return (
        f"Right for {len(draws)} prompts. A longer prompt gives prepare more blocks, and each block of scan more "
        "chunks."
    )


blocks = Exercise(
    name="blocks",
    judge=_blocks,
    spec="The number of blocks with work in prepare and in scan, and of chunks that a block of scan goes through.",
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
