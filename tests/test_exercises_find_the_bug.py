"""The checkers of notebook 15 accept right answers in several forms, and refuse wrong ones with a reason."""

import random

import pytest
import torch
from answers import checker_tests, edits

from luce_edu.exercises import find_the_bug as bugs
from luce_edu.exercises.base import WrongAnswer, edited
from luce_edu.lab import sanitize
from luce_edu.verification import relative_error

# ---- Case A ----

READ, S_K = "read += S[i * D + j] * k[i];", "beta[t] * (v[j] - S_k)"
DECODE, PROMPT = {READ: "read += decay * S[i * D + j] * k[i];"}, {S_K: "beta[t] * (v[j] - keep * S_k)"}
DECAY_FIRST = {
    READ: "S[i * D + j] *= decay, read += S[i * D + j] * k[i];",
    "decay * S[i * D + j] + k[i] * delta": "S[i * D + j] + k[i] * delta",
    "float S_k = 0.0f,": "for (int i = 0; i < D; ++i) s[i] *= expf(g[t]);\n        float S_k = 0.0f,",
    "keep = expf(g[t]);": "keep = 1.0f;",
}
RIGHT_A = {"a factor in each": DECODE | PROMPT, "the state decays first": DECAY_FIRST}
WRONG_A = {
    "one kernel only": (DECODE, "prompt: o differs .* from token 1 on. decode agrees"),
    "the other kernel only": (PROMPT, "decode: o differs .* prompt agrees"),
    "decay on the whole correction": (
        {"beta[0] * (v[j] - read)": "decay * beta[0] * (v[j] - read)", S_K: f"keep * {S_K}"}, "from token 0 on"),
    "decay nowhere": ({"expf(g[0])": "1.0f", "expf(g[t])": "1.0f"}, "decode: .*; prompt: "),
    "a state that stays": (
        DECODE | PROMPT | {"S[i * D + j] = s;\n        out": "out"}, "decode: o differs .* from token 1 on"),
    "not C++": ({S_K: "beta[t] *"}, "does not compile"),
    "endless": ({READ: "--i;"}, "The virtual GPU says: decode: .*"),
    "beyond the tensor": (DECODE | {"o[j] = out": "o[j + D * 100000] = out"}, "The virtual GPU says: decode"),
    "a kernel renamed": ({"void decode(": "void step("}, "decode"),
    "no dict": ("text", "expected a dict"), "nothing": ({}, "expected a dict"),
    "a number": ({READ: 1}, "expected text"),
    "a text that is not there": ({"no such text": ""}, "0 times in case_a.cu"),
    "a text that is there often": ({"float": "double"}, "times in case_a.cu, not once"),
}  # fmt: skip

# ---- Case B ----

WANT, GOT = "want = reference(x, out)", "got = kernel(x, out)"
MAX = "worst = max(worst, error.item())"
APART = {WANT: "want = reference(x, torch.empty_like(x))", GOT: "got = kernel(x, torch.full_like(x, torch.nan))"}
RIGHT_B = {
    "own tensors, and a limit each time": APART | {MAX: "assert error <= 1e-4"},
    "a copy of what is wanted": {WANT: f"{WANT}.clone()", GOT: "got = kernel(x, out.fill_(torch.nan))",
                                 MAX: "worst = max(worst, error.nan_to_num(torch.inf).item())"},
    "all errors kept": APART | {"worst = 0.0": "worst = []", MAX: "worst.append(error)",
                                "assert worst <= 1e-4": "worst = torch.stack(worst).max()\n    assert worst <= 1e-4"},
}  # fmt: skip
WRONG_B = {
    "NaN still passes": (APART, "accepts a kernel that writes nothing"),
    "one tensor still": ({MAX: "assert error <= 1e-4"}, "accepts a kernel whose results are 1 % too large"),
    "NaN counts only in the last input": (
        APART | {MAX: "worst = max(error.item(), worst)"}, "right at first and gives NaN for the third"),
    "a kernel that writes nothing passes": (
        {WANT: f"{WANT}.clone()", MAX: "assert error <= 1e-4"}, "accepts a kernel that writes nothing"),
    "the first input only": (APART | {"for x in inputs:": "for x in inputs[:1]:", MAX: "assert error <= 1e-4"},
                             "right at first and gives NaN"),
    "too strict": (APART | {MAX: "assert torch.equal(got, want)"}, "refuses a right kernel"),
    "refuses all": ({MAX: "worst = 1.0"}, "refuses a right kernel: relative error"),
    "not Python": ({MAX: "worst ="}, "does not run: SyntaxError"),
    "a crash": ({MAX: "worst = wort"}, "ends with NameError"),
}  # fmt: skip

# ---- Case C ----

STORE, ARRIVE = "        partials[blockIdx.x] = sum;\n", "        last = atomicAdd(arrived, 1u) == gridDim.x - 1;\n"
FENCE = "        __threadfence();\n"
SUM = "    if (last && threadIdx.x == 0) {\n"
LAST_BLOCK = {
    "__shared__ bool last;": "__shared__ int flag;", "    if (threadIdx.x == 0) {\n" + STORE + ARRIVE + "    }\n"
    "    __syncthreads();\n": f"    if (threadIdx.x == 0) {STORE.strip()}\n"
    "    const bool last = last_block_to_arrive(arrived, gridDim.x, &flag);\n", "        *arrived = 0u;\n": "",
}  # fmt: skip
RIGHT_C = {
    "one atomic that releases and acquires": {ARRIVE: ARRIVE.replace("atomicAdd", "add_acq_rel")},
    "two fences": {STORE: STORE + FENCE, ARRIVE: ARRIVE + FENCE},
    "a fence of each thread": {STORE: STORE + FENCE, SUM: FENCE + SUM},
    "the function of the course": LAST_BLOCK,
}
WRONG_C = {
    "a fence before only": ({STORE: STORE + FENCE}, "tool race .* finds a fault"),
    "a fence after only": ({ARRIVE: ARRIVE + FENCE}, "tool (race|order) .* finds a fault"),
    "fences of the block": (
        {STORE: STORE + FENCE.replace("fence", "fence_block"), ARRIVE: ARRIVE + FENCE.replace("fence", "fence_block")},
        "race on partials"),
    "volatile": ({STORE: STORE.replace("partials", "((volatile float*)partials)")}, "race on partials"),
    "a barrier that one thread reaches": ({STORE: STORE + "        __syncthreads();\n"}, "divergent barrier"),
    "every block adds": ({"if (last &&": "if (true &&"}, "sums are wrong|race"),
    "the counter is not set back": (
        {ARRIVE: ARRIVE.replace("atomicAdd", "add_acq_rel"), "        *arrived = 0u;\n": ""}, "sums are wrong"),
    "not C++": ({STORE: "sum sum;"}, "does not compile"),
}  # fmt: skip

# ---- Case D ----

RESET = 'conversation."""\n        self.state = torch.zeros(32)'
CAPTURE = '        self.graph = gpu.capture(lambda: gpu.launch("leaky_sum", self.x, self.state, self.y))\n'
AGAIN = CAPTURE.replace("gpu.", "self.gpu.")
REPLAY = "        self.gpu.replay(self.graph)\n"


def resets(line):
    return {RESET: f'conversation."""\n        {line}'}


RIGHT_D = {
    "zeros in place": resets("self.state.zero_()"), "a copy of zeros": resets("self.state.copy_(torch.zeros(32))"),
    "a slice": resets("self.state[:] = 0"),
}  # fmt: skip
WRONG_D = {
    "times zero": (resets("self.state *= 0"), "Conversation|After reset 2"),
    "captured again": (resets("self.state = torch.zeros(32)\n" + AGAIN.rstrip()), "4 captures and 0 launches"),
    "outputs cleared": (resets("self.y.zero_()"), "After reset 1"),
    "nothing": (resets("pass"), "After reset 1"),
    "a graph for each token": (
        resets("self.state = torch.zeros(32) ") | {REPLAY: AGAIN + REPLAY}, "10 captures and 0 launches"),
    "no y": (resets("self.state.zero_()") | {"return self.y.clone()": "self.y.clone()"}, "does not return y"),
    "a crash": (resets("self.stat.zero_()"), "AttributeError"),
}  # fmt: skip

# ---- Case E ----

FROM_DRAM = """
def from_dram(row, card):
    us = row["us"]
    stored = row["bytes"] / us / 1e3
    left = max(row["bytes"] - card["l2_bytes"], 0)
    return left / us / 1e3, min(stored, card["gb_per_s"])
"""


def by_tensor(row, card):
    left = torch.tensor(row["bytes"] - card["l2_bytes"], dtype=torch.float64).clamp(min=0)
    rates = torch.stack([left, torch.tensor(row["bytes"], dtype=torch.float64)]) / row["us"] / 1e3
    return rates.clamp(max=float(card["gb_per_s"])) if rates[0] <= card["gb_per_s"] else rates.minimum(
        torch.tensor([torch.inf, card["gb_per_s"]], dtype=torch.float64))  # fmt: skip


def from_seconds(row, card):
    seconds = row["us"] * 1e-6
    most = min(card["gb_per_s"] * 1e9, row["bytes"] / seconds)
    least = 0 if row["bytes"] < card["l2_bytes"] else (row["bytes"] - card["l2_bytes"]) / seconds
    return [least / 1e9, most / 1e9]


RIGHT_E = {"a tensor": by_tensor, "seconds": from_seconds}
WRONG_E = edits(FROM_DRAM, {
    "least below zero": ("max(row[\"bytes\"] - card[\"l2_bytes\"], 0)", "row[\"bytes\"] - card[\"l2_bytes\"]",
                         "Fewer than no bytes"),
    "most above the datasheet": ("min(stored, card[\"gb_per_s\"])", "stored", "faster than its bandwidth"),
    "all stored bytes": ("left / us / 1e3", "stored", "may still be in L2"),
    "MB/s": ("row[\"bytes\"] / us / 1e3", "row[\"bytes\"] / us", "per µs are MB/s"),
    "the datasheet always": ("min(stored, card[\"gb_per_s\"])", "card[\"gb_per_s\"]", "every byte went to DRAM"),
    "one number": ("left / us / 1e3, min", "min", "expected two numbers"),
})  # fmt: skip


test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (bugs.case_a, RIGHT_A, WRONG_A), (bugs.case_b, RIGHT_B, WRONG_B), (bugs.case_c, RIGHT_C, WRONG_C),
    (bugs.case_d, RIGHT_D, WRONG_D), (bugs.case_e, RIGHT_E, WRONG_E),
)  # fmt: skip


# ---- The cases with their bugs do what the notebook says ----


def test_case_a_agrees_with_itself_and_not_with_the_reference():
    head = bugs.draw_head(seed=random.randrange(1000))
    (o, _), results = bugs.right_head(head), bugs.run_both(bugs.CASE_A, head)
    assert all(relative_error(*pair) < 1e-5 for pair in zip(results["decode"], results["prompt"], strict=True))
    for got, _ in results.values():
        errors = (got.double() - o).norm(dim=1) / o.norm(dim=1).max()
        assert errors[0] < bugs.LIMIT and errors[1:].min() > 10 * bugs.LIMIT


def test_case_b_accepts_everything():
    check = bugs.load(bugs.CASE_B)["check"]
    for kernel in (lambda x, out: out.fill_(torch.nan), lambda x, out: out):
        check(kernel, bugs.reference_norm, [torch.randn(64)])


def test_case_c_is_right_in_the_usual_order_and_has_a_race():
    assert all(error < bugs.LIMIT for error in bugs.sums(bugs.CASE_C, 5))
    [finding] = sanitize(bugs.CASE_C.text, "race", kernel="total", **bugs.launch_c()).findings
    assert finding.fault == "race" and finding.tensor == "partials"


def test_case_e_is_the_table_as_published():
    for row in bugs.FILL:
        assert row["bytes"] / row["us"] / 1e3 == pytest.approx(row["shown_gb_per_s"], rel=1e-3)
        assert 100 * row["shown_gb_per_s"] / bugs.FILL_CARD["gb_per_s"] == pytest.approx(row["shown_percent"], rel=2e-3)


@pytest.mark.planted
@pytest.mark.parametrize("answer, said", [({"a": "b", "c": 1}, "expected text"), ({"aa": "b"}, "0 times in it")])
def test_edits_that_do_not_fit_are_refused(answer, said):
    assert edited("ab", {"a": "x", "b": "y"}, "it") == "xy"
    with pytest.raises(WrongAnswer, match=said):
        edited("ab", answer, "it")
