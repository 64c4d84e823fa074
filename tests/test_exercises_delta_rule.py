"""The checkers of notebook 02 accept right answers in several forms, and refuse wrong ones with a reason."""

import math

import torch
from answers import checker_tests, edits

from luce_edu.exercises.delta_rule import RULES, four_rules, grouped_step, next_conv_state
from luce_edu.reference.causal_conv import causal_conv
from luce_edu.reference.delta_rule import delta_rule_step

NAN = math.nan

# ---- The conv state ----


def by_the_package(conv_state, x):
    channels, remembered = conv_state.shape
    causal_conv(x, torch.ones(channels, 1, remembered + 1), conv_state)
    return conv_state


def in_place(conv_state, x):
    everything = torch.cat([conv_state.T, x])
    conv_state[:] = everything[-conv_state.shape[1] :].T
    return conv_state


def padded(conv_state, x):
    """The last inputs of the chunk alone, with zeros before them if the chunk is too short."""
    n = conv_state.shape[1]
    return torch.nn.functional.pad(x.T, (n, 0))[:, -n:]


CONV_RIGHT = {
    "all of it, less the first": lambda s, x: torch.cat([s, x.T], dim=-1)[:, x.shape[0] :],
    "the package": by_the_package,
    "in place": in_place,
}
CONV_WRONG = {
    "unchanged": (lambda s, x: s, "the old state, without x"),
    "the chunk's last inputs": (lambda s, x: x.T[:, -s.shape[1] :], "expected shape.*the last tokens of x only"),
    "the chunk's first inputs": (
        lambda s, x: x.T[:, : s.shape[1]] if len(x) >= s.shape[1] else s, "the first tokens of x|one token late"),
    "all that came": (lambda s, x: torch.cat([s, x.T], 1), "These are all inputs"),
    "the chunk's last inputs, zeros before": (padded, "not the last"),
    "newest first": (lambda s, x: torch.cat([s, x.T], 1)[:, x.shape[0] :].flip(1), "order is reversed"),
    "one too old": (lambda s, x: torch.cat([s, x.T], 1)[:, x.shape[0] - 1 : -1], "one token late"),
    "one step, whatever the chunk": (lambda s, x: torch.cat([s, x.T], 1)[:, 1 : 1 + s.shape[1]], "not the last"),
    "by token, not by channel": (lambda s, x: torch.cat([s.T, x])[-s.shape[1] :], "expected shape.*It is transposed"),
    "NaN": (lambda s, x: torch.full_like(s, NAN), "finite"),
    "a list": (lambda s, x: s.tolist(), "expected a tensor, got list"),
    "no function": (3, "expected a function"),
}  # fmt: skip

# ---- One step with shared key heads ----


def with_einsum(S, q, k, v, beta, g):
    q, k = (x.repeat_interleave(len(v) // len(k), 0) for x in (q, k))
    S = S.clone()
    o = delta_rule_step(q, k, v, beta=beta, g=g, recurrent_state=S)
    return S, o


def with_loops(S, q, k, v, beta, g):
    o = torch.empty_like(v)
    served = v.shape[0] // k.shape[0]
    for h in range(v.shape[0]):
        S[h] *= math.exp(g[h])
        S[h] += torch.outer(k[h // served], beta[h] * (v[h] - k[h // served] @ S[h]))
        o[h] = q[h // served] @ S[h]
    return [S, o]


def in_one_pass(S, q, k, v, beta, g):
    """As in the kernels, both products are of the old state."""
    q, k = (x[:, None].expand(-1, len(v) // len(k), -1).flatten(0, 1) for x in (q, k))
    decay = g.exp()[:, None]
    delta = beta[:, None] * (v - decay * (k[:, None] @ S)[:, 0])
    o = decay * (q[:, None] @ S)[:, 0] + delta * (q * k).sum(1, keepdim=True)
    return decay[..., None] * S + k[..., None] * delta[:, None], o


STEP = """
def step(S, q, k, v, beta, g):
    q, k = (x.repeat_interleave(len(v) // len(k), 0) for x in (q, k))
    old, decayed = S, S * g.exp()[:, None, None]
    predicted = (decayed * k[..., None]).sum(1)
    new = decayed + k[..., None] * (beta[:, None] * (v - predicted))[:, None]
    o = (new * q[..., None]).sum(1)
    return new, o
"""
STEP_RIGHT = {"the package": with_einsum, "loops, in place": with_loops, "in one pass": in_one_pass}
STEP_WRONG = {
    "repeat": ("x.repeat_interleave(len(v) // len(k), 0)", "x.repeat(len(v) // len(k), 1)",
               "S of value head 1 is the first.*Which key head"),
    "asked before the decay": ("(decayed * k", "(old * k", "S of value head 0 is the first.*the order of decay"),
    "decay after the write": (
        "decayed + k[..., None] * (beta[:, None] * (v - predicted))[:, None]",
        "(old + k[..., None] * (beta[:, None] * (v - (old * k[..., None]).sum(1)))[:, None]) * g.exp()[:, None, None]",
        "S of value head 0"),
    "no delta": ("(v - predicted)", "v", "S of value head 0"),
    "g is the decay": ("g.exp()", "g", "S of value head 0"),
    "read before the write": ("(new * q", "(decayed * q", "o of value head 0 is the first.*S is right in every head"),
    "one NaN": ("return", "o[-1, -1] = math.nan\n    return", "o: not every element is a finite"),
    "the state of the last head is stale": (
        "return new, o", "return torch.cat([new[:-1], old[-1:]]), o", "S of value head"),
    "S alone": ("return new, o", "return new", "expected two tensors"),
}  # fmt: skip

# ---- Four rules ----


def token(S=((0.0,), (0.0,)), q=(1.0, 0.0), k=(1.0, 0.0), v=(10.0,), beta=1.0, g=0.0):
    return {"S": S, "q": q, "k": k, "v": v, "beta": beta, "g": g}


FULL = ((8.0,), (2.0,))
A, B, D = token(g=-0.7), token(beta=0.5), token(S=FULL, v=(0.0,), g=-0.7)


def drawn():
    """The same three tokens with random numbers, as fp32 tensors."""
    K, V = 6, 5
    random = {"q": torch.randn(K), "k": torch.randn(K), "v": torch.randn(V), "beta": torch.tensor(1.0)}
    return {
        "A": token(torch.zeros(K, V), **random, g=torch.tensor(-1.0)),
        "B": token(torch.randn(K, V), **(random | {"beta": torch.tensor(0.3)}), g=torch.tensor(0.0)),
        "D": token(torch.randn(K, V), **(random | {"v": torch.zeros(V)}), g=torch.tensor(-0.5)),
    }


RULES_RIGHT = {
    "lists": {"A": A, "B": B, "D": D},
    "another order, other sizes": {"D": D | {"beta": 0.4}, "B": B | {"S": FULL}, "A": A},
    "random tensors": drawn(),
}
RULES_WRONG = {
    "a letter": ("C", "a token for each of three rules"),
    "another right one": ({"A": A, "B": B, "C": D}, "for C does not show"),
    "one token for all": (dict.fromkeys("ABD", token(S=FULL, beta=0.5, g=-0.7)), "for A, B is wrong too"),
    "D with a value to write": ({"A": A, "B": B, "D": D | {"v": (1.0,)}}, "for D, A is wrong too"),
    "B with a decay": ({"A": A, "B": B | {"g": -0.7}, "D": D}, "for B, A is wrong too"),
    "A with a share": ({"A": A | {"beta": 0.5}, "B": B, "D": D}, "for A, B is wrong too"),
    "a decay of next to nothing": ({"A": A | {"g": -1e-4}, "B": B, "D": D}, "for A does not show"),
    "NaN": ({"A": A | {"v": (NAN,)}, "B": B, "D": D}, "A: v is not finite"),
    "a share of two": ({"A": A, "B": B | {"beta": 2.0}, "D": D}, "beta from 0 to 1"),
    "a decay that grows": ({"A": A | {"g": 0.7}, "B": B, "D": D}, "g of at most 0"),
    "a key too long": ({"A": A | {"k": (1.0, 0.0, 0.0)}, "B": B, "D": D}, r"expected S \[K, V\]"),
    "no state": ({"A": {"k": (1.0, 0.0)}, "B": B, "D": D}, "expected a dict with S"),
    "text": ({"A": A | {"v": "ten"}, "B": B, "D": D}, "expected tensors or numbers"),
}  # fmt: skip

test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (next_conv_state, CONV_RIGHT, CONV_WRONG), (grouped_step, STEP_RIGHT, edits(STEP, STEP_WRONG)),
    (four_rules, RULES_RIGHT, RULES_WRONG), times=5,
)  # fmt: skip


def test_one_of_the_four_rules_is_the_reference_and_the_others_are_not():
    def run(rule):
        generator = torch.Generator().manual_seed(0)
        S, q, k = torch.randn(5, 4, generator=generator), *torch.randn(2, 5, generator=generator)
        v, beta, g = torch.randn(4, generator=generator), torch.tensor(0.5), torch.tensor(-0.5)
        if rule in RULES:
            return torch.cat([part.flatten() for part in RULES[rule](S, q, k, v, beta, g)])
        heads = S[None].clone()
        o = delta_rule_step(q[None], k[None], v[None], beta=beta[None], g=g[None], recurrent_state=heads)
        return torch.cat([heads.flatten(), o.flatten()])

    truth = run("the reference")
    equal = [rule for rule in RULES if (run(rule) - truth).norm() <= 1e-5 * truth.norm()]
    assert equal == ["C"]
