"""The checkers of notebook 12 accept right answers in several forms, and refuse wrong ones with a reason."""

import math

import numpy as np
import pytest
import torch
from answers import checker_tests, edits

import luce_edu
from luce_edu.exercises.prefill import blocks, prepare, scan


def system(k, beta, g):
    G = g.cumsum(0)
    decay = (G[:, None] - G[None, :]).exp()
    return (beta[:, None] * decay * (k @ k.T)).tril(-1), G


# ---- U and W ----


def by_solver(k, v, beta, g):
    L, G = system(k, beta, g)
    right = torch.cat([v, G.exp()[:, None] * k], 1) * beta[:, None]
    solved = torch.linalg.solve_triangular(torch.eye(len(k)) + L, right, upper=False, unitriangular=True)
    return solved.split([v.shape[1], k.shape[1]], dim=1)


def by_rows(k, v, beta, g):
    """With a running state in place of a system: `written` from the chunk's values, `asked` from its first state."""
    U, W, T = [], [], len(k)
    written, asked = torch.zeros(k.shape[1], v.shape[1]), torch.eye(k.shape[1])
    for t in range(T):
        written, asked = g[t].exp() * written, g[t].exp() * asked
        U.append(beta[t] * (v[t] - written.T @ k[t]))
        W.append(beta[t] * (asked.T @ k[t]))
        written, asked = written + torch.outer(k[t], U[-1]), asked - torch.outer(k[t], W[-1])
    return [torch.stack(U), torch.stack(W)]


def by_arrays(k, v, beta, g):
    """In NumPy and fp64, with the mask before the exponential."""
    k, v, beta, g = (x.double().numpy() for x in (k, v, beta, g))
    G = np.cumsum(g)
    before = np.tri(len(g), k=-1, dtype=bool)
    L = beta[:, None] * np.exp(np.where(before, G[:, None] - G, -np.inf)) * (k @ k.T)
    right = beta[:, None] * np.concatenate([v, np.exp(G)[:, None] * k], axis=1)
    U, W = np.split(np.linalg.solve(np.eye(len(g)) + L, right), [v.shape[1]], axis=1)
    return torch.from_numpy(U), torch.from_numpy(W)


PREPARE = """
def prepare(k, v, beta, g):
    G = g.cumsum(0)
    decay = (G[:, None] - G).exp()
    L = (beta[:, None] * decay * (k @ k.T)).tril(-1)
    right = beta[:, None] * torch.cat([v, G.exp()[:, None] * k], 1)
    U, W = torch.linalg.solve(torch.eye(len(k)) + L, right).split([v.shape[1], k.shape[1]], dim=1)
    return U, W
"""
PREPARE_RIGHT = {"a solver": by_solver, "row by row": by_rows, "NumPy": by_arrays}
PREPARE_WRONG = {  # an edit of PREPARE, a pattern of the refusal
    "diagonal counted twice": ("tril(-1)", "tril(0)", "U of token 0 .* has a diagonal"),
    "decay on the wrong side": ("decay * (k", "decay.T * (k", "token 1 .* decay in L has the wrong sign"),
    "no decay between tokens": ("decay * (k", "(k", "token 1 .* L lacks the decay"),
    "no beta in the system": ("beta[:, None] * decay", "decay", "token 1 .* L has no beta"),
    "beta of the other token": ("beta[:, None] * decay", "beta[None, :] * decay", "token 1 .* the beta of token j"),
    "added in place of taken back": ("+ L", "- L", "token 1 .* L has the wrong sign"),
    "no beta on the right": ("beta[:, None] * torch", "torch", "right-hand sides have no beta"),
    "W without decay": ("G.exp()[:, None] * k", "k", "W of token 0 .* has no decay"),
    "decay one token early": (
        "G.exp()[:, None] * k", "(G - g).exp()[:, None] * k", "W of token 0 .* stops one token early"),
    "masked by a product": (".tril(-1)", " * torch.ones(len(k), len(k)).tril(-1)", "g around .* overflows to inf"),
    "decays divided": ("(G[:, None] - G).exp()", "G.exp()[:, None] / G.exp()", "g around .* overflows to inf"),
    "of four tokens": (
        ".tril(-1)", ".tril(-1) * (torch.arange(len(k)) < 4)", "token 5 is the first .* Tokens 0 and 1 are right"),
    "what was given": ("return U, W", "return v, k", "U of token 0 .* No token comes before it"),
    "right-hand sides, not solutions": (
        "torch.linalg.solve(torch.eye(len(k)) + L, right)", "(right - L @ right)", "token 2 .* Which rows of U and W"),
    "not solved": ("torch.linalg.solve(torch.eye(len(k)) + L, right)", "right", "token 1 .* not solved"),
    "one NaN": ("return", "U[-1, -1] = math.nan\n    return", "finite"),
    "W without its sign": ("return U, W", "return U, -W", "W of token 0 .* wrong sign"),
    "columns": ("return U, W", "return U.T, W", "expected shape"),
    "U alone": ("return U, W", "return U", "expected two tensors"),
}  # fmt: skip

# ---- o and the state ----


def in_one_go(q, k, g, U, W, S):
    G = g.cumsum(0)
    left = (G[:, None] - G[None, :]).exp().tril()
    d = U - W @ S
    o = G.exp()[:, None] * (q @ S) + (left * (q @ k.T)) @ d
    return o, G[-1].exp() * S + (left[-1][:, None] * k).T @ d


def in_place(q, k, g, U, W, S):
    """S is changed in place."""
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
    """The loop is inside sum and map."""
    G, d = g.cumsum(0), U - W @ S
    return in_one_go(q, k, g, U, W, S)[0], G[-1].exp() * S + sum(map(torch.outer, (G[-1] - G).exp()[:, None] * k, d))


LOOPS = {
    "token by token": token_by_token,
    "rows in a comprehension": rows_in_a_comprehension,
    "writes one by one": writes_one_by_one,
}


SCAN = """
def scan(q, k, g, U, W, S):
    G = g.cumsum(0)
    left = (G[:, None] - G).exp().tril()
    d = U - W @ S
    o = G.exp()[:, None] * (q @ S) + (left * (q @ k.T)) @ d
    after = G[-1].exp() * S + (left[-1][:, None] * k).T @ d
    return o, after
"""
SCAN_RIGHT = {"in one go": in_one_go, "in place": in_place, "NumPy": scanned_by_arrays}
SCAN_WRONG = {
    "added": ("U - W @ S", "U + W @ S", "o of token 0 .* W S with the wrong sign"),
    "no state in d": ("U - W @ S", "U", "o of token 0 .* corrections are U alone"),
    "d from the state at the end": ("W @ S", "W @ (G[-1].exp() * S)", "o of token 0 .* use a decayed state"),
    "d decayed twice": ("W @ S", "G.exp()[:, None] * (W @ S)", "o of token 0 .* W contains it already"),
    "decay one token early": ("o = G", "o = (G - g)", "o of token 0 .* stops one token early"),
    "decays divided": ("(left * (q", "((G.exp()[:, None] * (-G).exp()).tril() * (q", "g around .* overflows to inf"),
    "masked by a product": (
        "(left * (q", "((G[:, None] - G).exp() * torch.ones_like(left).tril() * (q", "g around .* overflows to inf"),
    "key and query exchanged": ("q @ k.T", "k @ q.T", "o of token 1 .* its own query"),
    "o of the state at the end": (
        "return o, after", "return q @ after, after", "o of token 0 .* reads the state after the chunk"),
    "the last decay alone": ("G[-1].exp() * S", "g[-1].exp() * S", "S is not. .* decayed at the last token only"),
    "no old state": ("after = G[-1].exp() * S +", "after =", "S is not. The state before the chunk is missing"),
    "what was given": ("return o, after", "return U, S", "o of token 0"),
    "old state not read": ("o = G.exp()[:, None] * (q @ S) +", "o =", "o of token 0 .* is missing in o"),
    "q scaled twice": ("G = g.cumsum(0)", "G, q = g.cumsum(0), q * q.shape[1] ** -0.5", "scaled already"),
    "itself not seen": ("(left * (q", "(left.tril(-1) * (q", "o of token 0 .* its own write too"),
    "the future seen": ("(left * (q", "((G[:, None] - G).exp() * (q", "o of token 0 .* writes of later tokens"),
    "no decay in o": ("(left * (q", "(torch.ones_like(left).tril() * (q", "o of token 1 .* without their decay"),
    "writes not decayed": ("(left[-1][:, None] * k)", "k", "S is not. The writes are added without"),
    "from the start": ("left[-1]", "left[:, 0]", "S is not. Check how much"),
    "as o reads the state": ("left[-1]", "G.exp()", "S is not. The writes decay by"),
    "state not decayed": ("G[-1].exp() * S", "S", "S is not. The state before the chunk has not decayed"),
    "stale state": ("return o, after", "return o, S", "S is not. This is the state before"),
    "one NaN": ("return", "after[0, 0] = math.nan\n    return", "finite"),
    "o alone": ("return o, after", "return o", "expected two tensors"),
}  # fmt: skip

# ---- Blocks ----

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
    "True": (lambda t, h, v, c: (h * -(-t // 64), h * v // c, -(-t // 64) == 9 or -(-t // 64)), "is not 1"),
    "fractions": (lambda t, h, v, c: (h * -(-t // 64), h * v // c, t / 64), "chunks per block .* as a whole one"),
    "text": (lambda t, h, v, c: ("144", "64", "9"), "expected three numbers"),
}


def called(function):
    return lambda tokens, heads, value_dim, columns: function(tokens, heads, value_dim, columns)


LOOPED = {name: (loop, r"Python .* \[T, T\]") for name, loop in LOOPS.items()}
test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (prepare, PREPARE_RIGHT, edits(PREPARE, PREPARE_WRONG)),
    (scan, SCAN_RIGHT, edits(SCAN, SCAN_WRONG) | LOOPED),
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
