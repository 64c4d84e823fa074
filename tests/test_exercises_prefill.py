"""Each checker of notebook 12 takes right answers however written, and refuses the usual wrong ones."""

import math

import numpy as np
import pytest
import torch
from answers import checker_tests

import luce_edu
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


def by_arrays(k, v, beta, g):
    """NumPy in fp64, and a mask before the exponential."""
    k, v, beta, g = (x.double().numpy() for x in (k, v, beta, g))
    G = np.cumsum(g)
    before = np.tri(len(g), k=-1, dtype=bool)
    L = beta[:, None] * np.exp(np.where(before, G[:, None] - G, -np.inf)) * (k @ k.T)
    right = beta[:, None] * np.concatenate([v, np.exp(G)[:, None] * k], axis=1)
    U, W = np.split(np.linalg.solve(np.eye(len(g)) + L, right), [v.shape[1]], axis=1)
    return torch.from_numpy(U), torch.from_numpy(W)


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
        if fault == "masked by a product":
            L = beta[:, None] * decay * (k @ k.T) * torch.ones_like(L).tril(-1)
        if fault == "decays divided":
            L = (beta[:, None] * (G.exp()[:, None] / G.exp()) * (k @ k.T)).tril(-1)
        if fault == "of four tokens":
            L = L * (torch.arange(len(k)) < 4)
        right = torch.cat([right_v[:, None] * v, right_k[:, None] * k], 1)
        solved = torch.linalg.solve_triangular(torch.eye(len(k)) + L, right, upper=False)
        if fault == "masked by a product":
            solved = torch.linalg.solve(torch.eye(len(k)) + L, right)
        if fault == "right-hand sides, not solutions":
            solved = right - L @ right
        if fault == "not solved":
            solved = right
        U, W = solved.split([v.shape[1], k.shape[1]], dim=1)
        if fault == "one NaN":
            U = U.clone()
            U[-1, -1] = NAN
        if fault == "W without its sign":
            W = -W
        if fault == "what was given":
            U, W = v, k
        return U if fault == "U alone" else (U.T, W) if fault == "columns" else (U, W)

    return answer


PREPARE_RIGHT = {"a solver": by_solver, "row by row": by_rows, "NumPy": by_arrays}
PREPARE_WRONG = {
    "diagonal counted twice": "U of token 0 .* has a diagonal",
    "decay on the wrong side": "token 1 .* decay in L has the wrong sign",
    "no decay between tokens": "token 1 .* L lacks the decay",
    "no beta in the system": "token 1 .* L has no beta",
    "beta of the other token": "token 1 .* the beta of token j",
    "added in place of taken back": "token 1 .* L has the wrong sign",
    "no beta on the right": "right-hand sides have no beta",
    "W without decay": "W of token 0 .* has no decay",
    "decay one token early": "W of token 0 .* stops one token early",
    "masked by a product": "g around .* overflows to inf",
    "decays divided": "g around .* overflows to inf",
    "of four tokens": "token 5 is the first .* Tokens 0 and 1 are right",
    "what was given": "U of token 0 .* No token comes before it",
    "right-hand sides, not solutions": "token 2 .* Which rows of U and W",
    "not solved": "token 1 .* not solved",
    "one NaN": "finite",
    "W without its sign": "W of token 0 .* wrong sign",
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
    """S is written over."""
    G, d = g.cumsum(0), U - W @ S
    o = torch.exp(G).unsqueeze(1) * (q @ S)
    o += torch.where(torch.ones(len(g), len(g)).tril() > 0, (G[:, None] - G).exp(), 0) * (q @ k.T) @ d
    S *= G[-1].exp()
    S += (k * (G[-1] - G).exp()[:, None]).T @ d
    return [o, S]


def scanned_by_arrays(q, k, g, U, W, S):
    q, k, g, U, W, S = (x.numpy() for x in (q, k, g, U, W, S))
    G, d = np.cumsum(g), U - W @ S
    left = np.tril(np.exp(np.minimum(0, G[:, None] - G)))
    o, after = np.exp(G)[:, None] * (q @ S) + (left * (q @ k.T)) @ d, np.exp(G[-1]) * S + (left[-1][:, None] * k).T @ d
    return torch.from_numpy(o), torch.from_numpy(after)


def token_by_token(q, k, g, U, W, S):
    d = U - W @ S
    o = torch.empty_like(U)
    for t in range(len(q)):
        S *= g[t].exp()
        S += torch.outer(k[t], d[t])
        o[t] = q[t] @ S
    return [o, S]


def rows_in_a_comprehension(q, k, g, U, W, S):
    G, d = g.cumsum(0), U - W @ S
    o = [
        G[t].exp() * (q[t] @ S) + ((G[t] - G[: t + 1]).exp() * (k[: t + 1] @ q[t])) @ d[: t + 1] for t in range(len(g))
    ]
    return torch.stack(o), in_one_go(q, k, g, U, W, S)[1]


def writes_one_by_one(q, k, g, U, W, S):
    """The loop is in sum and map."""
    G, d = g.cumsum(0), U - W @ S
    return in_one_go(q, k, g, U, W, S)[0], G[-1].exp() * S + sum(map(torch.outer, (G[-1] - G).exp()[:, None] * k, d))


LOOPS = {
    "token by token": token_by_token,
    "rows in a comprehension": rows_in_a_comprehension,
    "writes one by one": writes_one_by_one,
}


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
        at_end = {
            "writes not decayed": torch.ones_like(left[-1]),
            "from the start": left[:, 0],
            "as o reads the state": G.exp(),
        }.get(fault, left[-1])
        kept = torch.tensor(1.0) if fault == "state not decayed" else G[-1].exp()
        after = kept * S + (at_end[:, None] * k).T @ d
        if fault == "stale state":
            after = S
        if fault == "decays divided":
            o = reads * (q @ S) + ((G.exp()[:, None] * (-G).exp()).tril() * scores) @ d
        if fault == "masked by a product":
            o = reads * (q @ S) + ((G[:, None] - G).exp() * torch.ones_like(left).tril() * scores) @ d
        if fault == "no old state":
            after = after - kept * S
        if fault == "what was given":
            o, after = U, S
        if fault == "one NaN":
            after = after.clone()
            after[0, 0] = NAN
        return o if fault == "o alone" else (o, after)

    return answer


SCAN_RIGHT = {"in one go": in_one_go, "in place": in_place, "NumPy": scanned_by_arrays}
SCAN_WRONG = {
    "added": "o of token 0 .* W S with the wrong sign",
    "no state in d": "o of token 0 .* corrections are U alone",
    "d from the state at the end": "o of token 0 .* use a decayed state",
    "d decayed twice": "o of token 0 .* W contains it already",
    "decay one token early": "o of token 0 .* stops one token early",
    "decays divided": "g around .* overflows to inf",
    "masked by a product": "g around .* overflows to inf",
    "no old state": "S is not. The state before the chunk is missing",
    "what was given": "o of token 0",
    "old state not read": "o of token 0 .* is missing in o",
    "q scaled twice": "scaled already",
    "itself not seen": "o of token 0 .* its own write too",
    "the future seen": "o of token 0 .* writes of later tokens",
    "no decay in o": "o of token 1 .* without their decay",
    "writes not decayed": "S is not. The writes are added without",
    "from the start": "S is not. Check how much",
    "as o reads the state": "S is not. The writes decay by",
    "state not decayed": "S is not. The state before the chunk has not decayed",
    "stale state": "S is not. This is the state before",
    "one NaN": "finite",
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
    "NumPy's numbers": lambda tokens, heads, value_dim, columns: np.array(
        [heads * np.ceil(tokens / 64), heads * value_dim // columns, np.ceil(tokens / 64)]
    ),
}  # fmt: skip
BLOCKS_WRONG = {
    "rounded down": (lambda t, h, v, c: (h * (t // 64), h * v // c, t // 64), "blocks of prepare .* not full"),
    "one chunk too many": (
        lambda t, h, v, c: (h * (t // 64 + 1), h * v // c, t // 64 + 1),
        "blocks of prepare .* one more after it",
    ),
    "no heads": (lambda t, h, v, c: (-(-t // 64), v // c, -(-t // 64)), "blocks of prepare .* chunks of one head"),
    "scan with chunks too": (
        lambda t, h, v, c: (h * -(-t // 64), h * v // c * -(-t // 64), 1),
        "blocks of scan .* once per chunk",
    ),
    "a head a block": (lambda t, h, v, c: (h * -(-t // 64), h, -(-t // 64)), "blocks of scan .* one block per head"),
    "token by token": (lambda t, h, v, c: (h * -(-t // 64), h * v // c, t), "chunks per block .* These are tokens"),
    "turns of all heads": (
        lambda t, h, v, c: (h * -(-t // 64), h * v // c, h * -(-t // 64)),
        "chunks per block .* of all heads",
    ),
    "the answer for 520 tokens": (lambda t, h, v, c: (144, 64, 9), "64 tokens.*blocks of prepare"),
    "True": (
        lambda t, h, v, c: (h * -(-t // 64), h * v // c, -(-t // 64) == 9 or -(-t // 64)),
        "is not 1",
    ),
    "fractions": (lambda t, h, v, c: (h * -(-t // 64), h * v // c, t / 64), "chunks per block .* as a whole one"),
    "text": (lambda t, h, v, c: ("144", "64", "9"), "expected three numbers"),
}


def called(function):
    return lambda tokens, heads, value_dim, columns: function(tokens, heads, value_dim, columns)


LOOPED = {name: (loop, r"Python .* \[T, T\]") for name, loop in LOOPS.items()}
test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (prepare, PREPARE_RIGHT, {name: (prepared_wrongly(name), reason) for name, reason in PREPARE_WRONG.items()}),
    (scan, SCAN_RIGHT, {name: (scanned_wrongly(name), reason) for name, reason in SCAN_WRONG.items()} | LOOPED),
    (blocks, BLOCKS_RIGHT, {name: (called(answer), reason) for name, (answer, reason) in BLOCKS_WRONG.items()}),
    times=3,
)


@pytest.mark.parametrize("tokens", [1, 64, 130])
def test_prepare_launches_as_many_blocks_as_the_exercise_says(tokens):
    model = luce_edu.load_model("tiny")
    decoder = luce_edu.decoder("per_layer", model, "host", max_seq_len=tokens)
    decoder.prefill([1] * tokens)
    grids = {math.prod(entry.grid) for entry in decoder.ledger.kernels() if entry.kernel == "delta_rule_prepare"}
    heads, value_dim = model.config.linear_num_value_heads, model.config.linear_value_head_dim
    assert grids == {BLOCKS_RIGHT["rounded up"](tokens, heads, value_dim, 32)[0]}
