"""The checkers of notebook 07 accept right answers in several forms, and refuse wrong ones with a reason."""

from fractions import Fraction

import numpy as np
import torch
from answers import checker_tests

from luce_edu.exercises import graphs as exercises
from luce_edu.overlap import play, try_all

# ---- Exercise 1 ----


def one_of_each(plain, graph):
    (many, total), (many_graph, total_graph) = plain, graph
    return 1 - total_graph / many_graph / (total / many)


def saved_over_paid(plain, graph):
    each = [total / count for count, total in (plain, graph)]
    return (each[0] - each[1]) / each[0]


def by_arrays(plain, graph):
    (counts, totals) = np.array([plain, graph]).T
    plain_each, graph_each = totals / counts
    return (plain_each - graph_each) / plain_each


def exactly(plain, graph):
    each = [Fraction(total) / count for count, total in (plain, graph)]
    return 1 - each[1] / each[0]


def as_a_tensor(plain, graph):
    return torch.tensor(one_of_each(plain, graph), dtype=torch.float64)


WRONG_SHARES = {
    "totals, whatever the counts": (lambda plain, graph: 1 - graph[1] / plain[1], "the counts differ"),
    "what is left": (lambda plain, graph: 1 - one_of_each(plain, graph), "the share that remains"),
    "per cent": (lambda plain, graph: 100 * one_of_each(plain, graph), "This is per cent"),
    "how many times dearer": (lambda plain, graph: 1 / (1 - one_of_each(plain, graph)), "cost of a plain launch over"),
    "of the graph's cost": (lambda plain, graph: -one_of_each(graph, plain), "a share of the graph's cost"),
    "microseconds": (lambda plain, graph: plain[1] / plain[0] - graph[1] / graph[0], "These are microseconds"),
    "never below 0": (lambda plain, graph: max(0, one_of_each(plain, graph)), "the graph costs more"),
    "graph and plain swapped": (lambda plain, graph: one_of_each(graph, plain), "swapped"),
    "rounded": (lambda plain, graph: round(one_of_each(plain, graph), 2), "Case: 225 plain .* not rounded"),
    "the published one": (lambda plain, graph: 0.46215827338, "Case: 100 plain"),
    "a text": (lambda plain, graph: "46 %", "expected a number"),
}  # fmt: skip


RIGHT_SHARES = {
    share.__name__: (share, "0.462") for share in (one_of_each, saved_over_paid, by_arrays, exactly, as_a_tensor)
}


def test_the_share_that_the_verdict_names_is_that_of_the_published_figures():
    assert f"{one_of_each((225, 347.5), (225, 186.9)):.3f}" == "0.462"


# ---- Exercise 2: the text in the hole ----

RIGHT = """
        self.token, self.position = (torch.zeros(1, dtype=torch.int32) for _ in range(2))
        self.graph = gpu.capture(lambda: self.enqueue(self.token, self.position))

    def __call__(self, token, position):
        self.token.fill_(token)
        self.position.fill_(position)
        self.gpu.replay(self.graph)
        return self.out
"""
IN_ONE_TENSOR = """
        self.both = torch.zeros(2, dtype=torch.int32)
        self.graph = gpu.capture(lambda: self.enqueue(self.both[:1], self.both[1:]))

    def __call__(self, token, position):
        self.both.copy_(torch.tensor([token, position]))
        self.gpu.replay(self.graph)
        return float(self.out)
"""
AT_THE_FIRST_CALL = """
        self.graph = None

    def __call__(self, token, position):
        if self.graph is None:
            self.where = torch.tensor([token], dtype=torch.int32), torch.tensor([position], dtype=torch.int32)
            self.graph = gpu_capture(self)
        for tensor, value in zip(self.where, (token, position)):
            tensor[0] = value
        self.gpu.replay(self.graph)
        return self.out.clone()


def gpu_capture(self):
    return self.gpu.capture(lambda: self.enqueue(*self.where))
"""
FILLS = "        self.token.fill_(token)\n        self.position.fill_(position)\n"
REPLAY = "        self.gpu.replay(self.graph)\n"
AGAIN = "self.gpu.capture(lambda: self.enqueue(self.token, self.position))"
TENSOR = "torch.tensor([{}], dtype=torch.int32)"
STALE = r"(?s)out is .* and should be .*read token \d+ and position -?\d+. A replay passes the same addresses"
CAPTURED = "lambda: self.enqueue(self.token, self.position)"
RIGHT_STEPS = {
    "fill": RIGHT,
    "one tensor": IN_ONE_TENSOR,
    "lazy": AT_THE_FIRST_CALL,
    "through NumPy": RIGHT.replace("self.token.fill_(token)", "self.token.numpy()[0] = token"),
    "a method, and launches of its own": RIGHT.replace(CAPTURED, "self.both").replace(
        "    def __call__", "    def both(self):\n        self.enqueue(self.token, self.position)\n\n    def __call__"),
    "a warm-up before the capture": RIGHT.replace(
        "        self.graph =", "        self.enqueue(self.token, self.position)\n        self.graph ="),
    "out emptied before": RIGHT.replace("        self.gpu.replay", "        self.out.zero_()\n        self.gpu.replay"),
    "a number": RIGHT.replace("return self.out", "return self.out.item()"),
}  # fmt: skip
WORK = "        self.cache[position] = self.table[token]\n        self.out[0] = self.cache[: position + 1].mean()\n"
BY_PYTORCH = "replay ended. The graph holds no launch"
OTHERS = "self.other = [torch.zeros(9), torch.zeros(99), torch.zeros(1)]"
NEW = "".join(f"        self.{name} = {TENSOR.format(name)}\n" for name in ("token", "position"))
WRONG_STEPS = {
    "new tensors under the old names": (RIGHT.replace(FILLS, NEW), STALE),
    "filled after the replay": (RIGHT.replace(FILLS + REPLAY, REPLAY + FILLS), STALE),
    "only the token": (RIGHT.replace("        self.position.fill_(position)\n", ""), STALE),
    "a position that only counts on": (
        RIGHT.replace("self.position.fill_(position)", "self.position.add_(1)")
        .replace("        self.graph = ", "        self.position.fill_(-1)\n        self.graph = "), STALE),
    "a copy is captured": (RIGHT.replace("enqueue(self.token,", "enqueue(self.token.clone(),"), STALE),
    "only the first kernel is captured": (
        RIGHT.replace(CAPTURED, 'lambda: gpu.launch("put", table, self.token, cache, self.position)'),
        "out is nan .* The graph holds put, but a step"),
    "both twice": (
        RIGHT.replace(CAPTURED, "lambda: [self.enqueue(self.token, self.position) for _ in range(2)] and None")
        .replace("        return self.out", "        self.out.mul_(1 + 1e-9)\n        return self.out.sub_(1)"),
        "holds put and mean and put and mean"),
    "an empty graph, and PyTorch before it": (
        RIGHT.replace(CAPTURED, "lambda: None").replace(REPLAY, WORK + REPLAY), "out is nan .* holds no launch"),
    "an empty graph, and PyTorch after it": (
        RIGHT.replace(CAPTURED, "lambda: None").replace(REPLAY, REPLAY + WORK), f"from the graph.*{BY_PYTORCH}"),
    "the graph of other tensors, and PyTorch": (
        RIGHT.replace("        self.graph = ", f"        {OTHERS}\n        self.graph = ").replace(
            CAPTURED, "lambda: [gpu.launch('put', self.other[0], self.token, self.other[1], self.position), "
            "gpu.launch('mean', self.other[1], self.position, self.other[2])]")
        .replace("torch.zeros(9)", "torch.zeros(len(table))").replace(REPLAY, REPLAY + WORK),
        "not come from the graph.*was the graph recorded with"),
    "the graph of the first token, and PyTorch": (
        RIGHT.replace(FILLS, "").replace(REPLAY, "        old = self.cache[0].item()\n" + REPLAY
                                         + "        self.cache[0] = old\n" + WORK), "from the graph.* read token 0"),
    "PyTorch and no graph": (RIGHT.replace(REPLAY, WORK), "replayed 0 graphs"),
    "a call in place of a function": (
        RIGHT.replace(CAPTURED, "self.enqueue(self.token, self.position)"), "got None.*write `lambda:`"),
    "a function that wants more": (RIGHT.replace(CAPTURED, "self.enqueue"), "without arguments, got"),
    "no graph": (
        RIGHT.replace("        self.graph = gpu", "        self.graph = None\n        gpu"), "replay takes a graph"),
    "out as it was before": (
        RIGHT.replace(REPLAY, "        out = self.out.clone()\n" + REPLAY).replace("return self.", "return "),
        "Is out read after the replay"),
    "one graph of all Steps": (
        RIGHT.replace("        self.graph = ", "        Step.graph = ").replace("self.token,", "Step.token,")
        .replace("self.token.", "Step.token."), r"out is|should be|recorded"),
    "recorded at each call": (
        RIGHT.replace(REPLAY, f"        self.graph = {AGAIN}\n" + REPLAY), r"recorded \d+ graphs"),
    "a graph for each token and position": (
        RIGHT.replace(REPLAY, "        self.graphs = getattr(self, 'graphs', {})\n"
                      "        if (token, position) not in self.graphs:\n"
                      f"            self.where = {TENSOR.format('token')}, {TENSOR.format('position')}\n"
                      "            where = self.where\n"
                      "            self.graphs[token, position] = self.gpu.capture(lambda: self.enqueue(*where))\n"
                      "        self.gpu.replay(self.graphs[token, position])\n"), r"recorded \d+ graphs"),
    "launched one by one": (
        RIGHT.replace(REPLAY, "        self.enqueue(self.token, self.position)\n"), "launched 2 kernels one by one"),
    "replayed twice": (RIGHT.replace(REPLAY, REPLAY + REPLAY), "replayed 2 graphs"),
    "numbers in place of tensors": (
        RIGHT.replace("(torch.zeros(1, dtype=torch.int32) for _ in range(2))", "0, 0"),
        "must be a tensor of one int32, got 0"),
    "floats": (RIGHT.replace(", dtype=torch.int32", ""), "must be int32"),
    "a token beyond the table": (RIGHT.replace("fill_(token)", "fill_(token + 10**6)"),
        "reads 4 bytes at .*: out of bounds"),
    "nothing is returned": (RIGHT.replace("        return self.out\n", ""), "expected the value of out, got None"),
}  # fmt: skip


def make_step(body):
    exercise = exercises.step
    text = exercise.skeleton.replace(exercise.hole, body.strip("\n").removeprefix("        "))
    names = {"torch": torch}
    exec(text, names)
    return names["Step"]


STEPS = {name: (make_step(body), "each of 2 Steps") for name, body in RIGHT_STEPS.items()}
NO_STEPS = {name: (make_step(body), reason) for name, (body, reason) in WRONG_STEPS.items()} | {
    name: (answer, "expected the class Step")
    for name, answer in {"a function": lambda *args: None, "a number": 3, "a text": "Step"}.items()
}


def test_each_wrong_step_differs_from_the_right_one():
    assert RIGHT.strip() not in {body.strip() for body, _ in WRONG_STEPS.values()}


# ---- Exercise 3 ----

PROOFS = {
    "C reads act first": "AAAABBBCC",
    "launch_dependents first": "safe",
    "B never waits": "AABBCCCC",
    "C clears sum first": "safe",
    "launch_dependents first, then C clears": "ABCC",
}
OTHER_PROOFS = PROOFS | {
    "C reads act first": ["A", "A", "B", "A", "A", "B", "B", "B", "C", "C"],
    "launch_dependents first": " Safe",
    "B never waits": "AAABBCCCCCC",
    "launch_dependents first, then C clears": "ABBAACC",
}
WRONG_PROOFS = {
    "safe, which it is not": ("C reads act first", "safe", "C reads act first: it is not safe"),
    "unsafe, which it is not": ("launch_dependents first", "ABCAAABBBBCCCCC", "no kernel in it touches"),
    "C starts before it may": ("C reads act first", "AABCC", "step 4: C cannot start"),
    "a wait that is not over": ("B never waits", "AABCCC", "step 5: C waits until B has ended"),
    "one step short of the hazard": ("B never waits", "AABBCCC", "no kernel in it touches"),
    "a kernel that is not there": ("C reads act first", "AAD", "no kernel 'D'"),
    "nothing": ("B never waits", "", "no kernel in it touches"),
    "still open": ("B never waits", ..., "B never waits: not answered"),
    "True": ("C clears sum first", True, 'expected "safe" or a schedule'),
}


def test_what_is_called_safe_is_so_in_every_schedule_and_the_others_are_not():
    assert set(exercises.ORDERS) == set(PROOFS)
    for name, kernels in exercises.ORDERS.items():
        schedules, hazards = try_all(kernels)
        assert (hazards == 0) == (name in exercises.SAFE), name
        assert hazards < schedules, name
        if hazards:
            assert play(kernels, PROOFS[name]).hazard, name


NO_PROOFS = {what: (PROOFS | {name: given}, reason) for what, (name, given, reason) in WRONG_PROOFS.items()} | {
    name: (answer, "expected a dict with 'C reads act first'")
    for name, answer in {
        "a list": ["safe"] * 5, "one order": {"B never waits": "safe"}, "an order too many": PROOFS | {"more": "safe"},
        "nothing at all": None,
    }.items()
}  # fmt: skip
PROVEN = {name: (proofs, "3 of the 5") for name, proofs in (("short", PROOFS), ("other", OTHER_PROOFS))}
test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (exercises.share_removed, RIGHT_SHARES, WRONG_SHARES), (exercises.step, STEPS, NO_STEPS),
    (exercises.schedules, PROVEN, NO_PROOFS),
)  # fmt: skip
