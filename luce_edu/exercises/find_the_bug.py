"""Exercises of notebook 15: five cases, each with code or a table that has a fault.

Cases A to D hold their code as text. The reader submits edits of it, and the checker runs the edited code.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import torch

from luce_edu.backends import make_backend
from luce_edu.errors import CompileError, KernelError, LaunchError
from luce_edu.exercises.base import Exercise, WrongAnswer, call, edited, numbers
from luce_edu.faults import planted
from luce_edu.inline.trial import cell_defines, first_error
from luce_edu.lab import sanitize
from luce_edu.machine.cards import find_card
from luce_edu.reference.delta_rule import delta_rule_recurrent, l2_norm
from luce_edu.show import Source
from luce_edu.verification import relative_error

LIMIT = 1e-5  # relative error; fp32 sums of at most a few hundred numbers, in any order
INSTRUCTIONS = 5_000_000  # most warp instructions of a launch; the cases need some ten thousand


def compiled(case: Source, *kernels: str, block: int):
    """Compile the kernels of a case for the virtual GPU; return its backend and the loaded kernels by name.

    Raises WrongAnswer, with the compiler's first error, for code that does not compile.
    """
    with planted() as tree:
        (tree / case.path).write_text(case.text, encoding="utf-8")
        backend = make_backend("host", csrc_dir=tree, instructions=INSTRUCTIONS)
        try:
            return backend, backend.compile(case.path, kernels, cell_defines(block))
        except CompileError as error:
            raise WrongAnswer(f"It does not compile.\n{first_error(error.log or str(error), case.text)}") from None


def _mend(case: Source, run: Callable[[Source], str]) -> Callable[[object], str]:
    """Return a judge: it edits the code of a case, and `run` checks the edited code.

    A crash of the edited code becomes a WrongAnswer.
    """

    def judge(answer: object) -> str:
        mended = Source(case.path, 1, edited(case.text, answer, case.path))
        try:
            return run(mended)
        except (KernelError, LaunchError, ValueError) as error:
            raise WrongAnswer(f"The virtual GPU says: {error}") from None

    return judge


def load(case: Source) -> dict[str, object]:
    """Run a case that is Python; return what it defines, by name."""
    names: dict[str, object] = {}
    exec(compile(case.text, case.path, "exec"), names)
    return names


def _case(letter: str, case: Source, run: Callable[[Source], str], spec: str, budget: str) -> Exercise:
    hole = f'...   # {{"text in {case.path}": "its replacement", ...}}'
    return Exercise(
        name=f"case_{letter}", judge=_mend(case, run), spec=spec, skeleton=f"mend_{letter} = {hole}\n", hole=hole,
        budget=budget,
    )  # fmt: skip


# Case A. The decay is missing from S^T k, in both kernels.

CASE_A = Source("case_a.cu", 1, """\
// One head of a gated delta rule. S [D, D] is the state; q, k, v, o [tokens, D]; beta, g [tokens].
// Launched with one block of D threads. Thread j owns column j of S.
constexpr int D = 32;

// One token. S stays in device memory.
extern "C" __global__ void decode(const float* q, const float* k, const float* v, const float* beta, const float* g,
                                  float* S, float* o) {
    const int j = threadIdx.x;
    const float decay = expf(g[0]);
    float read = 0.0f, out = 0.0f;
    for (int i = 0; i < D; ++i) read += S[i * D + j] * k[i];
    const float delta = beta[0] * (v[j] - read);
    for (int i = 0; i < D; ++i) {
        const float s = decay * S[i * D + j] + k[i] * delta;
        S[i * D + j] = s;
        out += s * q[i];
    }
    o[j] = out;
}

// All tokens of a prompt. The column stays in registers, and one pass over it gives both products.
extern "C" __global__ void prompt(const float* q, const float* k, const float* v, const float* beta, const float* g,
                                  float* S, float* o, int tokens) {
    const int j = threadIdx.x;
    float s[D];
    for (int i = 0; i < D; ++i) s[i] = S[i * D + j];
    for (int t = 0; t < tokens; ++t, q += D, k += D, v += D, o += D) {
        float S_k = 0.0f, S_q = 0.0f, k_q = 0.0f;
        for (int i = 0; i < D; ++i) S_k += s[i] * k[i], S_q += s[i] * q[i], k_q += k[i] * q[i];
        const float keep = expf(g[t]);
        const float change = beta[t] * (v[j] - S_k);
        o[j] = keep * S_q + change * k_q;
        for (int i = 0; i < D; ++i) s[i] = keep * s[i] + change * k[i];
    }
    for (int i = 0; i < D; ++i) S[i * D + j] = s[i];
}""")  # fmt: skip
WIDTH, TOKENS = 32, 6


def draw_head(seed: int) -> dict[str, torch.Tensor]:
    """Draw the inputs of one head for TOKENS tokens: q, k, v [TOKENS, WIDTH]; beta, g [TOKENS]; S [WIDTH, WIDTH]."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, TOKENS, WIDTH, generator=generator)
    common = torch.randn(WIDTH, generator=generator)  # so that every token reads what the ones before wrote
    q, k = q + common, k + common
    beta, g = 0.2 + 0.8 * torch.rand(TOKENS, generator=generator), -0.2 - torch.rand(TOKENS, generator=generator)
    return {"q": l2_norm(q) / WIDTH**0.5, "k": l2_norm(k), "v": v, "beta": beta, "g": g,
            "S": torch.zeros(WIDTH, WIDTH)}  # fmt: skip


def run_both(case: Source, head: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Run case A token by token, and as a prompt. Return for each kernel o [TOKENS, WIDTH] and the last S."""
    backend, kernels = compiled(case, "decode", "prompt", block=WIDTH)
    inputs = [head[name] for name in ("q", "k", "v", "beta", "g")]
    results = {}
    for name in ("decode", "prompt"):
        S, o = head["S"].clone(), torch.full((TOKENS, WIDTH), torch.nan)
        if name == "prompt":
            backend.launch(kernels[name], 1, WIDTH, 0, [*inputs, S, o, TOKENS])
        else:
            for t in range(TOKENS):
                backend.launch(kernels[name], 1, WIDTH, 0, [*(x[t : t + 1] for x in inputs), S, o[t]])
        results[name] = o, S
    return results


def right_head(head: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return o and the last S of `run_both` by the reference, in fp64."""
    q, k, v, beta, g, S = (head[name].double()[:, None] for name in ("q", "k", "v", "beta", "g", "S"))
    S = S.transpose(0, 1).contiguous()
    return delta_rule_recurrent(q, k, v, beta=beta, g=g, recurrent_state=S)[:, 0], S[0]


def _run_a(case: Source) -> str:
    for start in ("an empty state", "a random state"):
        head = draw_head(random.randrange(2**31))
        if start == "a random state":
            head["S"] = torch.randn(WIDTH, WIDTH)
        want, results = right_head(head), run_both(case, head)
        wrong = {}
        for name, (o, S) in results.items():
            errors = (o.double() - want[0]).norm(dim=1) / want[0].norm(dim=1).max()
            tokens = [t for t in range(TOKENS) if not errors[t] <= LIMIT]
            if tokens:
                wrong[name] = f"o differs from the reference from token {tokens[0]} on"
            elif not relative_error(S.double(), want[1]) <= LIMIT:
                wrong[name] = "o is right and the state after the last token is not"
        if wrong:
            said = "; ".join(f"{name}: {problem}" for name, problem in wrong.items())
            right = [name for name in results if name not in wrong]
            also = f" {right[0]} agrees with the reference." if right else ""
            raise WrongAnswer(
                f"Started from {start}. {said}.{also} Compare each line with the four steps of notebook 02."
            )
    return "Both kernels agree with the fp64 reference, in outputs and states, from an empty and from a random state."


case_a = _case("a", CASE_A, _run_a, "Edit case A so that both kernels agree with the reference.",
               "15 minutes, one line in each kernel")  # fmt: skip


# Case B. `want` and `got` are the same tensor, and max() drops NaN.

CASE_B = Source("case_b.py", 1, """\
import torch


def check(kernel, reference, inputs):
    \"\"\"Raise AssertionError unless the kernel's result is right for each input, to 1e-4 of its norm.

    kernel(x, out) and reference(x, out) fill out, a tensor like x, and return it
    \"\"\"
    out = torch.empty_like(inputs[0])
    worst = 0.0
    for x in inputs:
        want = reference(x, out)
        got = kernel(x, out)
        error = torch.linalg.vector_norm(got - want) / torch.linalg.vector_norm(want)
        worst = max(worst, error.item())
    assert worst <= 1e-4, f'relative error {worst:.1e}'""")  # fmt: skip


def _double(x: torch.Tensor) -> torch.Tensor:
    return (x.double() / x.double().square().mean().sqrt()).float()


def reference_norm(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """What case B's check compares with: x over its root mean square."""
    return out.copy_(_double(x))


def _kernels_b() -> list[tuple[str, bool, Callable]]:
    """Kernels for case B's check: name, whether it is right, and the function."""

    def one_wrong(x, out):
        out.copy_(_double(x))[len(x) // 2] *= 1.5
        return out

    def one_nan(x, out):
        out.copy_(_double(x))[-1] = torch.nan
        return out

    def last_input_nan(x, out, calls=[0]):  # noqa: B006  the list is the memory of the calls
        calls[0] += 1
        out.copy_(_double(x))
        return out.fill_(torch.nan) if calls[0] == 3 else out

    def in_fp32(x, out):
        return torch.mul(x, torch.rsqrt(x.square().sum() / len(x)), out=out)

    return [
        ("a right kernel", True, lambda x, out: out.copy_(_double(x))),
        ("a right kernel that sums in another order", True, in_fp32),
        ("a kernel whose results are 1 % too large", False, lambda x, out: out.copy_(1.01 * _double(x))),
        ("a kernel that writes nothing", False, lambda x, out: out),
        ("a kernel with one wrong element", False, one_wrong),
        ("a kernel with one NaN", False, one_nan),
        ("a kernel that is right at first and gives NaN for the third input", False, last_input_nan),
        ("a kernel that returns all zeros", False, lambda x, out: out.zero_()),
        ("a kernel that gives infinity", False, lambda x, out: out.fill_(torch.inf)),
    ]


def _run_b(case: Source) -> str:
    try:
        check = load(case)["check"]
    except Exception as error:
        raise WrongAnswer(f"The edited code does not run: {type(error).__name__}: {error}") from None
    inputs = [torch.randn(64) for _ in range(4)]
    kernels = _kernels_b()
    for kind, is_right, kernel in kernels:
        try:
            check(kernel, reference_norm, [x.clone() for x in inputs])
            refused = ""
        except AssertionError as error:
            refused = str(error) or "AssertionError"
        except Exception as error:
            raise WrongAnswer(f"On {kind} the check ends with {type(error).__name__}: {error}") from None
        if is_right and refused:
            raise WrongAnswer(f"Your check refuses {kind}: {refused}")
        if not is_right and not refused:
            raise WrongAnswer(
                f"Your check accepts {kind}. Call it by hand with such a kernel, and print what it compares."
            )
    wrong = sum(not is_right for _, is_right, _ in kernels)
    return f"The check refuses {wrong} wrong kernels and accepts {len(kernels) - wrong} right ones."


case_b = _case("b", CASE_B, _run_b, "Edit case B so that the check refuses wrong kernels and accepts right ones.",
               "10 minutes, two or three lines")  # fmt: skip


# Case C. Nothing orders the store of a partial sum before another block's load of it.

CASE_C = Source("case_c.cu", 1, """\
#include "block.cuh"

// result[0] = x[0] + ... + x[n - 1]. Each block adds a part of x into partials[blockIdx.x]. The block that ends last
// adds the parts. arrived[0] is 0 before the launch, and after it.
extern "C" __global__ void total(const float* x, float* partials, unsigned* arrived, float* result, int n) {
    __shared__ float scratch[block_warps];
    __shared__ bool last;
    float sum = 0.0f;
    for (int i = blockIdx.x * block_threads + threadIdx.x; i < n; i += gridDim.x * block_threads) sum += x[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sum;
        last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float all = 0.0f;
        for (int b = 0; b < gridDim.x; ++b) all += partials[b];
        result[0] = all;
        *arrived = 0u;
    }
}""")  # fmt: skip
BLOCKS, COUNT = 4, 1000


def launch_c() -> dict:
    """Grid, block and arguments of case C, for `sanitize(CASE_C.text, kernel="total", **launch_c())`."""
    x = torch.rand(COUNT, generator=torch.Generator().manual_seed(0))
    args = {"x": x, "partials": torch.zeros(BLOCKS), "arrived": torch.zeros(1, dtype=torch.int32),
            "result": torch.zeros(1), "n": COUNT}  # fmt: skip
    return {"grid": BLOCKS, "block": 64, "args": args}


def sums(case: Source, runs: int) -> list[float]:
    """Run case C several times in the usual order of warps; return the relative error of each sum."""
    launch = launch_c()
    args = launch["args"]
    backend, kernels = compiled(case, "total", block=launch["block"])
    want, errors = float(args["x"].double().sum()), []
    for _ in range(runs):
        args["partials"].fill_(torch.nan)
        args["result"].fill_(torch.nan)
        backend.launch(kernels["total"], launch["grid"], launch["block"], 0, list(args.values()))
        errors.append(abs(float(args["result"]) - want) / want)
    return errors


def _run_c(case: Source) -> str:
    runs = 3
    right = sum(error <= LIMIT for error in sums(case, runs))
    if right < runs:
        raise WrongAnswer(f"{runs - right} of {runs} sums are wrong, already in the usual order of warps.")
    # A right kernel stays right if a thread pauses anywhere. Before a fence, a pause shows a fence that comes too late.
    paused = case.text.replace("__threadfence();", "{ __nanosleep(1000); __threadfence(); }")
    for text in dict.fromkeys((case.text, paused)):
        found = sanitize(
            text, kernel="total", unwritten=("partials", "result"), orders=20, instructions=INSTRUCTIONS, **launch_c()
        )
        if found.clean:
            continue
        first = found.findings[0]
        where = f" on {first.element}" if first.element else ""
        raise WrongAnswer(
            f"The sums are right in the usual order, but the tool {first.tool} of sanitize finds a fault: "
            f"{first.fault.replace('_', ' ')}{where}. Both sides need something: the block that publishes a partial "
            "sum, and the block that reads it."
        )
    return f"{runs} of {runs} sums are right, and the five tools of sanitize find nothing."


case_c = _case("c", CASE_C, _run_c, "Edit case C so that its result does not depend on the order of memory accesses.",
               "15 minutes, one line or two")  # fmt: skip


# Case D. The graph keeps the address of the first state, and reset makes another one.

CASE_D = Source("case_d.py", 1, """\
import torch


class Session:
    \"\"\"One conversation after another. Each token is the replay of a graph, captured once.

    A step computes  state = 0.5 * state + x;  y = state  for 32 numbers.
    \"\"\"

    def __init__(self, gpu):
        self.gpu = gpu
        self.x, self.y = torch.zeros(32), torch.zeros(32)
        self.state = torch.zeros(32)
        self.graph = gpu.capture(lambda: gpu.launch("leaky_sum", self.x, self.state, self.y))

    def reset(self):
        \"\"\"Forget the conversation.\"\"\"
        self.state = torch.zeros(32)

    def step(self, x):
        \"\"\"Take the next token, x [32]; return y [32].\"\"\"
        self.x.copy_(x)
        self.gpu.replay(self.graph)
        return self.y.clone()""")  # fmt: skip
LEAKY_SUM = Source("leaky_sum.cu", 1, """\
extern "C" __global__ void leaky_sum(const float* x, float* state, float* y) {
    const int i = threadIdx.x;
    state[i] = 0.5f * state[i] + x[i];
    y[i] = state[i];
}""")  # fmt: skip


class Gpu:
    """The virtual GPU with the kernel of case D. It counts captures, replays, and launches outside of a graph."""

    def __init__(self):
        self._backend, self._kernels = compiled(LEAKY_SUM, "leaky_sum", block=32)
        self._capturing = False
        self.captures = self.replays = self.launches = 0

    def launch(self, name: str, *tensors: torch.Tensor) -> None:
        """Run the kernel on x, state and y, or record it inside `capture`."""
        self.launches += not self._capturing
        self._backend.launch(self._kernels[name], 1, 32, 0, tensors)

    def capture(self, enqueue: Callable[[], None]):
        """Record the launches of `enqueue` with the addresses that they get now, without running them."""
        self.captures += 1
        self._capturing = True
        try:
            return self._backend.capture(enqueue)
        finally:
            self._capturing = False

    def replay(self, graph) -> None:
        """Run the launches of a graph."""
        self.replays += 1
        self._backend.replay(graph)


def _run_d(case: Source) -> str:
    gpu = Gpu()
    try:
        ours = load(case)["Session"](gpu)
        for conversation in range(1, 4):
            state = torch.zeros(32)
            for token in range(1, 4):
                x = torch.randn(32)
                if (conversation, token) == (2, 3):
                    x[7] = torch.inf  # a conversation that went wrong; the next one must not see it
                state = 0.5 * state + x
                y = ours.step(x)
                if not isinstance(y, torch.Tensor) or y.shape != state.shape:
                    raise WrongAnswer("step does not return y [32].")
                if not torch.equal(y, state):
                    before = ". The conversation before ended with an infinite number" if conversation == 3 else ""
                    raise WrongAnswer(f"Conversation {conversation}, token {token}: y is wrong{before}.")
            ours.reset()
            if not torch.equal(ours.state, torch.zeros(32)):
                raise WrongAnswer(f"After reset {conversation}, session.state is not all zeros.")
    except (KernelError, LaunchError, WrongAnswer):
        raise
    except Exception as error:
        raise WrongAnswer(f"The edited code ends with {type(error).__name__}: {error}") from None
    if (gpu.captures, gpu.launches) != (1, 0):
        raise WrongAnswer(
            f"The results are right, with {gpu.captures} captures and {gpu.launches} launches outside of a graph. One "
            "capture is enough: which tensor does its kernel write?"
        )
    return "Three conversations of three tokens are right, with one capture and nine replays."


case_d = _case("d", CASE_D, _run_d, "Edit case D so that each conversation starts from an empty state.",
               "10 minutes, one line")  # fmt: skip


# Case E. The table counts bytes that a kernel stored, and divides them by the bandwidth of DRAM.

# NVIDIA/nvbench#270 (published, September 2025): cub::DeviceTransform fills a buffer with 8-bit values. RTX 5090.
FILL = (
    {"bytes": 2**16, "us": 2.836, "shown_gb_per_s": 23.108, "shown_percent": 1.29},
    {"bytes": 2**20, "us": 2.683, "shown_gb_per_s": 390.860, "shown_percent": 21.81},
    {"bytes": 2**24, "us": 8.182, "shown_gb_per_s": 2050.0, "shown_percent": 114.41},
    {"bytes": 2**28, "us": 158.758, "shown_gb_per_s": 1691.0, "shown_percent": 94.35},
)
FILL_CARD = {"name": "RTX 5090", "gb_per_s": find_card("RTX 5090").memory_gb_per_s,
             "l2_bytes": find_card("RTX 5090").l2_bytes}  # fmt: skip


def _dram_bounds(row: Mapping, card: Mapping) -> tuple[float, float]:
    least = max(row["bytes"] - card["l2_bytes"], 0) / row["us"] / 1e3
    return least, min(row["bytes"] / row["us"] / 1e3, card["gb_per_s"])


def _case_e(answer) -> str:
    drawn = [
        ({"bytes": random.randrange(2**20, 2**31), "us": random.uniform(20.0, 2000.0)},
         {"name": "drawn", "gb_per_s": random.randrange(300, 5000), "l2_bytes": random.randrange(2**22, 2**27)})
        for _ in range(20)
    ]  # fmt: skip
    for row, card in [*((row, FILL_CARD) for row in FILL), *drawn]:
        want = _dram_bounds(row, card)
        got = numbers(call(answer, dict(row), dict(card)), 2, "two numbers, least and most")
        case = f"Case: {row['bytes']:,} bytes in {row['us']:.6g} µs; {card['l2_bytes']:,} bytes of L2, "
        case += f"{card['gb_per_s']:,} GB/s."
        for name, value, right in zip(("least", "most"), got, want, strict=True):
            if not abs(value - right) <= 1e-6 * max(right, 1.0):
                raise WrongAnswer(f"{case} {name}: {value:.6g} is wrong. {_hint_e(name, value, row, card)}")
    return f"Right for the four published rows and {len(drawn)} drawn ones."


def _hint_e(name: str, value: float, row: Mapping, card: Mapping) -> str:
    stored = row["bytes"] / row["us"] / 1e3
    if value < 0:
        return "Fewer than no bytes cannot have left L2."
    if name == "least" and abs(value - stored) <= 1e-6 * stored:
        return "This is the rate at which the kernel stored. How many of its bytes may still be in L2 when it ends?"
    if name == "most" and value > card["gb_per_s"]:
        return "DRAM cannot write faster than its bandwidth."
    return {
        "least": "Suppose that L2 is full of this kernel's bytes when the kernel ends. The rest must have left it.",
        "most": "Suppose that every byte went to DRAM before the kernel ended. Is that possible in the time? (Bytes "
        "per µs are MB/s.)",
    }[name]


case_e = Exercise(
    name="case_e",
    judge=_case_e,
    spec="The least and the most GB/s that DRAM can have written while a kernel ran, for a row of the table.",
    skeleton='''\
def from_dram(row, card):
    """Return (least, most): the GB/s that DRAM can have written while the kernel ran.

    row   a dict with "bytes" that the kernel stored, and "us", its time. L2 held none of them before.
    card  a dict with "gb_per_s", the bandwidth of DRAM, and "l2_bytes"
    """
    return ...
''',
    hole="return ...",
    budget="10 minutes, two lines",
)
