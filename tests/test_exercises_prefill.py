"""Each checker of notebook 12 takes right answers however written, and refuses the usual wrong ones."""

import math

import numpy as np
import pytest
import torch

import luce_edu
from luce_edu.exercises import WrongAnswer
from luce_edu.exercises.prefill import blocks, prepare, scan

NAN = math.nan


def system(k, beta, g, *, diagonal=-1):
    G = g.cumsum(0)
    decay = (G[:, None] - G[None, :]).exp()
    return (beta[:, None] * decay * (k @ k.T)).tril(diagonal), G


# U and W


def by_solver(k, v, beta, g):
    L, G = system(k, beta, g)
    right = torch.cat([v, G.exp()[:, None] * k], 1) * beta[:, None]
    solved = torch.linalg.solve_triangular(torch.eye(len(k)) + L, right, upper=False, unitriangular=True)
    return solved.split([v.shape[1], k.shape[1]], dim=1)


def by_inverse(k, v, beta, g):
    L, G = system(k, beta, g)
    inverse = torch.linalg.inv(torch.eye(len(k)) + L)
    return inverse @ (beta[:, None] * v), inverse @ ((beta * G.exp())[:, None] * k)


def by_rows(k, v, beta, g):
    """With a running state in place of a system: what each token asks, as a function of the first state."""
    U, W, T = [], [], len(k)
    written, asked = torch.zeros(k.shape[1], v.shape[1]), torch.eye(k.shape[1])
    for t in range(T):
        written, asked = g[t].exp() * written, g[t].exp() * asked
        U.append(beta[t] * (v[t] - written.T @ k[t]))
        W.append(beta[t] * (asked.T @ k[t]))
        written, asked = written + torch.outer(k[t], U[-1]), asked - torch.outer(k[t], W[-1])
    return [torch.stack(U), torch.stack(W)]


def by_doubling(k, v, beta, g):
    """(I + L)^-1 = (I - L)(I + L^2)(I + L^4) ..., as L is nilpotent."""
    L, G = system(k, beta, g)
    inverse, power = torch.eye(len(k)) - L, L @ L
    for _ in range(6):
        inverse, power = inverse @ (torch.eye(len(k)) + power), power @ power
    return inverse @ (beta[:, None] * v), inverse @ ((beta * G.exp())[:, None] * k)


def prepared_wrongly(fault):
    def answer(k, v, beta, g):
        L, G = system(k, beta, g)
        decay = (G[:, None] - G[None, :]).exp()
        right_k = beta * G.exp()
        right_v = beta
        if fault == "diagonal counted twice":
            L = system(k, beta, g, diagonal=0)[0]
        if fault == "decay on the wrong side":
            L = (beta[:, None] * decay.T * (k @ k.T)).tril(-1)
        if fault == "no decay between tokens":
            L = (beta[:, None] * (k @ k.T)).tril(-1)
        if fault == "no beta in the system":
            L = (decay * (k @ k.T)).tril(-1)
        if fault == "beta of the other token":
            L = (beta[None, :] * decay * (k @ k.T)).tril(-1)
        if fault == "added in place of taken back":
            L = -L
        if fault == "no beta on the right":
            right_v, right_k = torch.ones_like(beta), G.exp()
        if fault == "W without decay":
            right_k = beta
        if fault == "decay one token early":
            right_k = beta * (G - g).exp()
        right = torch.cat([right_v[:, None] * v, right_k[:, None] * k], 1)
        solved = torch.linalg.solve_triangular(torch.eye(len(k)) + L, right, upper=False)
        if fault == "right-hand sides, not solutions":
            solved = right - L @ right
        if fault == "not solved":
            solved = right
        if fault == "upper":
            solved = torch.linalg.solve_triangular(torch.eye(len(k)) + L.T, right, upper=True)
        U, W = solved.split([v.shape[1], k.shape[1]], dim=1)
        if fault == "one NaN":
            U = U.clone()
            U[-1, -1] = NAN
        if fault == "W without its sign":
            W = -W
        return (W, U) if fault == "swapped" else U if fault == "U alone" else (U.T, W) if fault == "columns" else (U, W)

    return answer


PREPARE_RIGHT = {"a solver": by_solver, "an inverse": by_inverse, "row by row": by_rows, "doubling": by_doubling}
PREPARE_WRONG = {
    "diagonal counted twice": "token 0 is the first",
    "decay on the wrong side": "token 1 is the first",
    "no decay between tokens": "token 1 is the first",
    "no beta in the system": "token 1 is the first",
    "beta of the other token": "token 1 is the first",
    "added in place of taken back": "which sign",
    "no beta on the right": "what does it write",
    "W without decay": "W of token 0",
    "decay one token early": "W of token 0",
    "right-hand sides, not solutions": "token 2 is the first",
    "not solved": "token 1 is the first",
    "upper": "U of token 0",
    "one NaN": "finite",
    "W without its sign": "W of token 0",
    "swapped": "expected shape",
    "columns": "expected shape",
    "U alone": "expected two tensors",
}

# o and the state


def in_one_go(q, k, g, U, W, S):
    G = g.cumsum(0)
    left = (G[:, None] - G[None, :]).exp().tril()
    d = U - W @ S
    o = G.exp()[:, None] * (q @ S) + (left * (q @ k.T)) @ d
    return o, G[-1].exp() * S + (left[-1][:, None] * k).T @ d


def in_place(q, k, g, U, W, S):
    d = U - W @ S
    o = torch.empty_like(U)
    for t in range(len(q)):  # a loop is no mistake, only slow
        S *= g[t].exp()
        S += torch.outer(k[t], d[t])
        o[t] = q[t] @ S
    return [o, S]


def scanned_wrongly(fault):
    def answer(q, k, g, U, W, S):
        G = g.cumsum(0)
        left = (G[:, None] - G[None, :]).exp().tril()
        reads = (G - g if fault == "decay one token early" else G).exp()[:, None]
        d = U + W @ S if fault == "added" else U if fault == "no state in d" else U - W @ (G[-1].exp() * S)
        if fault not in ("added", "no state in d", "d from the state at the end"):
            d = U - W @ S
        if fault == "d decayed twice":
            d = U - reads * (W @ S)
        scores = q @ k.T
        if fault == "q scaled twice":
            q, scores = q * q.shape[1] ** -0.5, scores * q.shape[1] ** -0.5
        if fault == "itself not seen":
            left_o = left.tril(-1)
        elif fault == "the future seen":
            left_o = (G[:, None] - G[None, :]).exp()
        elif fault == "no decay in o":
            left_o = torch.ones_like(left).tril()
        else:
            left_o = left
        o = reads * (q @ S) + (left_o * scores) @ d
        if fault == "old state not read":
            o = (left_o * scores) @ d
        at_end = {"writes not decayed": torch.ones_like(left[-1]), "from the start": left[:, 0]}.get(fault, left[-1])
        kept = torch.tensor(1.0) if fault == "state not decayed" else G[-1].exp()
        after = kept * S + (at_end[:, None] * k).T @ d
        if fault == "stale state":
            after = S
        if fault == "one NaN":
            after = after.clone()
            after[0, 0] = NAN
        return (after, o) if fault == "swapped" else o if fault == "o alone" else (o, after)

    return answer


SCAN_RIGHT = {"in one go": in_one_go, "in place, a loop": in_place}
SCAN_WRONG = {
    "added": "o of token 0",
    "no state in d": "o of token 0",
    "d from the state at the end": "o of token 0",
    "d decayed twice": "o of token 0",
    "decay one token early": "o of token 0",
    "old state not read": "o of token 0",
    "q scaled twice": "scaled already",
    "itself not seen": "o of token 0",
    "the future seen": "o of token 0",
    "no decay in o": "o of token 1",
    "writes not decayed": "S is not",
    "from the start": "S is not",
    "state not decayed": "S is not",
    "stale state": "S is not",
    "one NaN": "finite",
    "swapped": "expected shape",
    "o alone": "expected two tensors",
}

# Blocks

BLOCKS_RIGHT = {
    "rounded up": lambda tokens, heads, value_dim, columns: (
        heads * -(-tokens // 64), heads * value_dim // columns, math.ceil(tokens / 64),
    ),
    "floats": lambda tokens, heads, value_dim, columns: [
        heads * math.ceil(tokens / 64), heads * (value_dim / columns), (tokens + 63) // 64,
    ],
    "NumPy": lambda tokens, heads, value_dim, columns: np.array(
        [heads * np.ceil(tokens / 64), heads * value_dim / columns, np.ceil(tokens / 64)]
    ),
    "numbers of NumPy": lambda tokens, heads, value_dim, columns: (
        np.int64(heads * -(-tokens // 64)), np.float32(heads * value_dim // columns), np.int32(-(-tokens // 64)),
    ),
    "PyTorch": lambda tokens, heads, value_dim, columns: torch.tensor(
        [heads * -(-tokens // 64), heads * value_dim // columns, -(-tokens // 64)]
    ),
}  # fmt: skip
BLOCKS_WRONG = {
    "rounded down": (lambda t, h, v, c: (h * (t // 64), h * v // c, t // 64), "blocks of prepare"),
    "one chunk too many": (lambda t, h, v, c: (h * (t // 64 + 1), h * v // c, t // 64 + 1), "blocks of prepare"),
    "no heads": (lambda t, h, v, c: (-(-t // 64), v // c, -(-t // 64)), "blocks of prepare"),
    "scan with chunks too": (lambda t, h, v, c: (h * -(-t // 64), h * v // c * -(-t // 64), 1), "blocks of scan"),
    "a head a block": (lambda t, h, v, c: (h * -(-t // 64), h, -(-t // 64)), "blocks of scan"),
    "the whole grid of scan": (lambda t, h, v, c: (h * -(-t // 64), h * v // 8, -(-t // 64)), "blocks of scan"),
    "token by token": (lambda t, h, v, c: (h * -(-t // 64), h * v // c, t), "in turn|goes through"),
    "fractions": (lambda t, h, v, c: (h * -(-t // 64), h * v // c, t / 64), "goes through"),
    "NaN": (lambda t, h, v, c: (NAN, h * v // c, -(-t // 64)), "blocks of prepare"),
    "two numbers": (lambda t, h, v, c: (h, v), "expected three numbers"),
    "text": (lambda t, h, v, c: ("144", "64", "9"), "expected three numbers"),
}


def named(function):
    return lambda tokens, heads, value_dim, columns: function(tokens, heads, value_dim, columns)


RIGHT = {
    f"{exercise.name}, {name}": (exercise, answer)
    for exercise, answers in ((prepare, PREPARE_RIGHT), (scan, SCAN_RIGHT), (blocks, BLOCKS_RIGHT))
    for name, answer in answers.items()
}
WRONG = (
    {f"prepare, {name}": (prepare, prepared_wrongly(name), reason) for name, reason in PREPARE_WRONG.items()}
    | {f"scan, {name}": (scan, scanned_wrongly(name), reason) for name, reason in SCAN_WRONG.items()}
    | {f"blocks, {name}": (blocks, named(answer), reason) for name, (answer, reason) in BLOCKS_WRONG.items()}
)


@pytest.mark.parametrize("exercise, answer", RIGHT.values(), ids=RIGHT)
def test_right_answers_pass(exercise, answer, capsys):
    for _ in range(20):  # inputs are drawn
        exercise.check(answer)
        assert f"{exercise.name}: right" in capsys.readouterr().out


@pytest.mark.planted
@pytest.mark.parametrize("exercise, answer, reason", WRONG.values(), ids=WRONG)
def test_wrong_answers_are_refused(exercise, answer, reason):
    for _ in range(20):
        with pytest.raises(WrongAnswer, match=reason):
            exercise.check(answer)


@pytest.mark.parametrize("exercise", [prepare, scan, blocks], ids=lambda exercise: exercise.name)
def test_an_untouched_skeleton_is_not_tried_yet(exercise, capsys):
    names = {}
    exec(exercise.skeleton, names)
    exercise.check(names[exercise.name])
    assert f"{exercise.name}: not tried yet" in capsys.readouterr().out


@pytest.mark.parametrize("tokens", [1, 64, 130])
def test_prepare_launches_as_many_blocks_as_the_exercise_says(tokens):
    model = luce_edu.load_model("tiny")
    decoder = luce_edu.decoder("per_layer", model, "host", max_seq_len=tokens)
    decoder.prefill([1] * tokens)
    grids = {math.prod(entry.grid) for entry in decoder.ledger.kernels() if entry.kernel == "delta_rule_prepare"}
    heads, value_dim = model.config.linear_num_value_heads, model.config.linear_value_head_dim
    assert grids == {BLOCKS_RIGHT["rounded up"](tokens, heads, value_dim, 32)[0]}
