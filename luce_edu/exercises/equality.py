"""Exercises of notebook 03: write a check, find the decided steps, make data that shows wrong kernels."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from unittest.mock import patch

import torch

from luce_edu.exercises.base import Exercise, WrongAnswer, call
from luce_edu.reference import block, delta_rule
from luce_edu.reference.model import forward
from luce_edu.state import DecodeState
from luce_edu.verification import relative_error

WORDS = (
    "the and my thou king lord good love night death I not shall is what come hath sweet blood fair sir thy eyes "
    "world heart speak let us go to be with all this for so honour crown grace father mother daughter war peace heaven"
).split()
LIMIT = 1.25  # times bf16's error; the exercise states it


@dataclass(frozen=True)
class Case:
    """A pair that a check must accept (`right`) or refuse, and a hint for a check that gets it wrong."""

    name: str
    right: bool
    got: torch.Tensor
    want: torch.Tensor
    bf16: torch.Tensor
    hint: str


@cache
def _tiny():
    from luce_edu.models import load_model

    return load_model("tiny")


def _text(length: int) -> torch.Tensor:
    """Tokens [length] of words in random order. The tiny model was trained on text, and random bytes are unlike it."""
    words = "KING:\n" + "".join(random.choice(WORDS) + random.choice((" ", " ", ", ", ".\n")) for _ in range(length))
    return torch.tensor(list(words[:length].encode()))


def _run(tokens: torch.Tensor, *, cache_dtype=torch.float32, **options) -> dict[str, torch.Tensor]:
    """Run the model; return the embedding, each layer's output, the states and the logits, by name, in fp32."""
    model, trace = _tiny(), []
    state = DecodeState.empty(model.config, len(tokens), cache_dtype=cache_dtype)
    with torch.no_grad():
        logits = forward(model.weights, model.config, tokens, state, trace=trace, **options)
    parts = {f"layer {i}": hidden for i, hidden in enumerate(trace[1:])} | {"embedding": trace[0], "logits": logits}
    parts |= {name: getattr(state, name) for name in DecodeState.TENSORS}
    return {name: part.float() for name, part in parts.items()}


def _swapped(q, k, v, *, beta, g, recurrent_state):
    return delta_rule.delta_rule_chunked(q, k, v, beta=g, g=beta, recurrent_state=recurrent_state)


def _without_decay(q, k, v, *, beta, g, recurrent_state):
    """The delta rule with S^T k taken before the decay. The right rule gives it for beta / decay and decay * v."""
    decay = g.exp()
    return delta_rule.delta_rule_chunked(
        q, k, decay[..., None] * v, beta=beta / decay, g=g, recurrent_state=recurrent_state
    )


def _faulty(rule: Callable, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what `_run` returns, with `rule` in place of the delta rule."""
    with patch.object(block, "delta_rule_chunked", rule):
        return _run(tokens)


@dataclass(frozen=True)
class Runs:
    """What the model computes for the same tokens in fp32 (`truth`) and in bf16 (`low`)."""

    tokens: torch.Tensor
    truth: dict[str, torch.Tensor]
    low: dict[str, torch.Tensor]

    @classmethod
    def of(cls, tokens: torch.Tensor) -> Runs:
        return cls(tokens, _run(tokens), _run(tokens, dtype=torch.bfloat16))


def _cases() -> list[Case]:
    """Return all pairs, on fresh text: a long one, and a short one for faults that are slow to compute or overflow."""
    long, short = Runs.of(_text(random.randrange(512, 640))), Runs.of(_text(random.randrange(40, 60)))
    return [*_right_cases(long, short), *_wrong_cases(long, short)]


def _quiet_head(runs: Runs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, in fp32 and in bf16, the head [K, V] of the recurrent state whose largest element is the smallest."""
    heads, low_heads = (run["recurrent_state"].flatten(0, 1) for run in (runs.truth, runs.low))
    quietest = int(heads.abs().amax((-2, -1)).argmin())
    return heads[quietest], low_heads[quietest]


UNITS = "A fixed limit fails here: how large an error may be depends on the size of the numbers of the part."
BORDER = f"The limit is {LIMIT} times bf16's error."


def _right_cases(long: Runs, short: Runs) -> list[Case]:
    truth, low = long.truth, long.low
    step_by_step = _run(short.tokens, chunked=False)
    cached = _run(long.tokens, cache_dtype=torch.bfloat16)
    want, bf16 = truth["logits"], low["logits"]
    error = low["layer 4"] - truth["layer 4"]
    quiet, quiet_low = _quiet_head(long)
    rounding = "Two right programs differ by rounding in nearly every element. Compare the error with that of `bf16`."
    near_zero = "The relative error of an element near zero says nothing. Measure the error of a whole part at once."
    exact = "Here bf16's error is 0, and so is that of `got`, which is not more. Check how you compare equal errors."

    def case(name, got, hint, want=want, bf16=bf16):
        return Case(name, True, got, want, bf16, hint)

    def of_short(name):
        return step_by_step[name], near_zero, short.truth[name], short.low[name]

    return [
        case("the same bits", want, "This is the reference itself."),
        case("fp32, one token at a time", *of_short("logits")),
        case("a state, one token at a time", *of_short("recurrent_state")),
        case("fp32 with its KV cache in bf16", cached["logits"], rounding),
        case("bf16 itself", low["layer 7"], UNITS, truth["layer 7"], low["layer 7"]),
        case("bf16's error with the other sign", 2 * want - bf16, rounding),
        case("1.15 times bf16's error", truth["layer 4"] + 1.15 * error, BORDER, truth["layer 4"], low["layer 4"]),
        case("a quiet head in bf16", quiet_low, UNITS, quiet, quiet_low),
        case("an exact part", truth["embedding"], exact, truth["embedding"], low["embedding"]),
    ]


def _wrong_cases(long: Runs, short: Runs) -> list[Case]:
    want, bf16 = long.truth["logits"], long.low["logits"]
    state, state_low = long.truth["recurrent_state"], long.low["recurrent_state"]
    quiet, quiet_low = _quiet_head(long)
    steps, vocab = want.shape
    token, column = random.randrange(1, steps), random.randrange(vocab)
    worst = float((bf16 - want).abs().max())
    beginning = Runs.of(short.tokens[:8])  # with g above 0 the state grows with every token and soon overflows

    def case(name, got, hint, want=want, bf16=bf16):
        return Case(name, False, got, want, bf16, hint)

    def with_value(row, index, value):
        got = want.clone()
        got[row, index] = value
        return got

    # Take a token whose output differs clearly from the one before, as some neighbours are nearly alike.
    steps_apart = (want[1:] - want[:-1]).norm(dim=1)
    late = random.choice((steps_apart >= steps_apart.median()).nonzero()[:, 0].tolist()) + 1
    stale = want.clone()
    stale[late] = want[late - 1]
    # A lost write leaves one element of the token before. Take one that differs clearly, and that a norm still hides.
    apart = (want[1:] - want[:-1]).abs()
    places = ((apart > 12 * worst) & (apart < 0.9 * (bf16 - want).norm())).nonzero()
    row, index = places[random.randrange(len(places))].tolist()
    heads = random.sample(range(state.shape[1]), 2)
    exchanged = state.clone()
    exchanged[:, heads] = state[:, heads[::-1]]
    shuffled = want.flatten()[torch.randperm(want.numel())].view_as(want)

    moved = (
        "These are the same numbers in other places, so sum, mean, norm and maximum agree. Compare element by element."
    )
    look = "Only one part is wrong. Does your check look at every element?"
    nan = "Every comparison with NaN is False, so `error > limit` refuses nothing here."
    return [
        case("one NaN", with_value(token, column, torch.nan), nan),
        case("one infinity", with_value(token, column, random.choice((torch.inf, -torch.inf))),
             "Not every element is finite. Check that before you compare."),
        case("nothing written, all NaN", torch.full_like(want, torch.nan), nan),
        case("all zeros", torch.zeros_like(want), "The error is as large as the output itself."),
        case("a quiet head left at zero", torch.zeros_like(quiet), UNITS, quiet, quiet_low),
        case(f"one wrong element among {want.numel():,}", with_value(row + 1, index, want[row, index]),
             "A norm over so many elements hides a single wrong one. Which measure shows the worst element?"),
        case("one token's output is that of the token before", stale, look),
        case("every output one token late", want.roll(1, 0), moved),
        case("two heads swapped", exchanged, moved, state, state_low),
        case("right values in the wrong order", shuffled, moved),
        case("right values with an axis too many", want[None],
             "The shapes differ, and PyTorch broadcasts them without an error."),
        case("right values in fp64", want.double(), "The type differs from that of `want`."),
        case("every value 1 % too large", 1.01 * want, BORDER),
        case("the sign flipped", -want,
             "The norms of `got` and `want` are equal here. Take the norm of the difference."),
        case("a small number added everywhere", want + random.choice((-0.8, 0.8)) * worst,
             "No element is further off than the worst of bf16, but all are off by nearly that much. Measure all "
             "together."),
        case("twice bf16's error", want - 2 * (bf16 - want), BORDER),
        case("a state one token late", _run(short.tokens[:-1])["recurrent_state"], look,
             short.truth["recurrent_state"], short.low["recurrent_state"]),
        case("decay left out of S^T k", _faulty(_without_decay, short.tokens)["logits"], BORDER,
             short.truth["logits"], short.low["logits"]),
        case("beta and g swapped", _faulty(_swapped, beginning.tokens)["layer 0"], BORDER,
             beginning.truth["layer 0"], beginning.low["layer 0"]),
        case("a reference with a NaN", want, f"`want` itself has a NaN, so nothing can be compared with it. {nan}",
             with_value(token, column, torch.nan)),
    ]  # fmt: skip


def _verdict(answer: Callable, case: Case) -> bool | Exception:
    """Return whether the check accepts the case, or the exception that it raises."""

    def attempt(*tensors):
        try:
            return answer(*tensors)
        except Exception as error:
            return error

    result = call(attempt, case.got.clone(), case.want.clone(), case.bf16.clone())
    result = _as_bool(result)
    if not isinstance(result, bool | Exception):
        raise WrongAnswer(f"{case.name}: expected True or False, got {result!r}")
    return result


def _as_bool(value):
    """Return a single element of PyTorch or NumPy as Python's; anything else unchanged."""
    single = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    return value.item() if single else value


def _accept(answer) -> str:
    if not callable(answer):
        raise WrongAnswer(f"expected a function, got {type(answer).__name__}")
    ones = torch.ones(3)
    _verdict(answer, Case("three equal tensors", True, ones, ones, ones, ""))  # an untouched answer ends here
    missed, refused = [], []
    cases = _cases()
    for case in cases:
        verdict = _verdict(answer, case)
        if case.right and verdict is not True:
            refused.append((case, f" It raised {type(verdict).__name__}: {verdict}" if verdict else ""))
        if not case.right and verdict is True:
            missed.append((case, ""))
    right = sum(case.right for case in cases)
    wrong = len(cases) - right
    caught, accepted = wrong - len(missed), right - len(refused)
    score = f"caught {caught} of {wrong} planted faults, accepted {accepted} of {right} right results"
    if missed or refused:
        lines = [score, *_listed("Accepted, though wrong", missed), *_listed("Refused, though right", refused)]
        raise WrongAnswer("\n".join(lines))
    return f"Your check {score}."


def _listed(title: str, cases: Sequence[tuple[Case, str]]) -> list[str]:
    """Return lines that name all cases and give the first one's hint."""
    if not cases:
        return []
    names = "; ".join(case.name for case, _ in cases)
    case, more = cases[0]
    return [f"{title}: {names}.", f"  {case.name}: {case.hint}{more}"]


accept = Exercise(
    name="accept",
    judge=_accept,
    spec=(
        "Decide whether `got` is right. It is one part of the model (logits, a layer's output, a state) from the "
        "program under test; `want` is the same part from the fp32 reference, and `bf16` from plain bf16 PyTorch, kept "
        "in fp32. Return True to accept; False or an exception refuses. A right result has the shape and type of "
        "`want`, an error of at most 1.25 times bf16's, and no single lost element."
    ),
    skeleton='''\
def accept(got, want, bf16):
    """Return True to accept `got` as the same function as `want`, False to refuse it."""
    return ...
''',
    hole="return ...",
    budget="20 minutes, five to ten lines",
)


def _choices(steps: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw logits with errors of the size of their margins, so that some steps are decided and some are not."""
    reference = torch.randn(steps, vocab) * random.choice((0.1, 1.0, 20.0)) + random.uniform(-50, 50)
    margins = reference.topk(2, dim=1).values.diff(dim=1).abs()
    errors = torch.randn(steps, vocab)
    largest = margins * (0.15 + 0.7 * torch.rand(steps, 1))
    return reference, reference + largest * errors / errors.abs().amax(1, keepdim=True)


def _decided(answer) -> str:
    # A tie is not decided, even where bf16 has no error. A margin of exactly twice the error is not decided either.
    tie = torch.tensor([[1.0, 3.0, 3.0], [1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    moved = tie.clone()
    moved[2, 0] -= 0.5
    cases = [(tie, moved)] + [_choices(*size) for size in ((1, 2), (64, 7), (64, 256), (random.randrange(40, 80), 33))]
    for reference, bf16 in cases:
        got = call(answer, reference.clone(), bf16.clone())
        steps = len(reference)
        listed = got.tolist() if hasattr(got, "tolist") else got
        if not isinstance(listed, list) or len(listed) != steps or not all(isinstance(x, bool) for x in listed):
            raise WrongAnswer(f"expected {steps} bools, one for each step, got {got!r}")
        best = reference.topk(2, dim=1).values
        slack = (bf16 - reference).abs().amax(1)
        for step, (claimed, margin, error) in enumerate(zip(listed, best[:, 0] - best[:, 1], slack, strict=True)):
            if claimed != bool(margin > 2 * error):
                raise WrongAnswer(
                    f"{'decided' if claimed else 'not decided'} is wrong for step {step} of {steps}: the reference's "
                    f"largest logit is {float(best[step, 0]):.4g}, its second {float(best[step, 1]):.4g}, and bf16 "
                    f"changes a logit of that step by up to {float(error):.4g}. A step is decided if the margin is "
                    "more than twice that."
                )
    return (
        f"Checked on {len(cases)} tables of logits, with ties and with margins of exactly two errors. In a decided "
        "step an error of bf16's size cannot change the choice."
    )


decided = Exercise(
    name="decided",
    judge=_decided,
    spec=(
        "In which steps is the greedy choice decided? Both arguments are logits [steps, vocab_size], from the "
        "reference and from bf16. A step is decided if the reference's largest logit exceeds its second by more than "
        "twice the largest error of bf16 in that step, as the first may fall by that error and the second rise."
    ),
    skeleton='''\
def decided(reference, bf16):
    """Return a bool tensor [steps]: whether the reference decides that step by more than twice bf16's error."""
    return ...
''',
    hole="return ...",
    budget="5 minutes, two or three lines",
)


def _last_row(y: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    return torch.cat([y[:-1], before[-1:]])


READS_X = "Do the elements of x differ, so that a wrong index changes y?"
READS_ROW = "Do the rows of W differ, so that a wrong row changes y?"
SIGNS = "A model holds positive and negative numbers. Does your data?"
STALE = "An element that is not written keeps the result of the call before. Would your data show that?"
# Wrong kernels for y = W x, each with a hint. Arguments: W [rows, cols], x [cols], and y [rows] of the call before.
WRONG_KERNELS: dict[str, tuple[Callable, str]] = {
    "x read at the index inside its group of 4": (
        lambda W, x, before: W @ x[torch.arange(len(x)) % 4], READS_X),
    "x read backwards": (lambda W, x, before: W @ x.flip(0), READS_X),
    "x read one element late": (lambda W, x, before: W @ x.roll(1), READS_X),
    "always the first row of W": (
        lambda W, x, before: W[:1].expand_as(W) @ x, READS_ROW),
    "the row inside its group of 4": (
        lambda W, x, before: W[torch.arange(len(W)) % 4] @ x, READS_ROW),
    "the next row of W": (lambda W, x, before: W.roll(-1, 0) @ x, READS_ROW),
    "W read down its columns": (
        lambda W, x, before: W.reshape(W.shape[1], W.shape[0]).T @ x,
        "Do the elements of W differ, so that a transposed index changes y?"),
    "the last column not added": (
        lambda W, x, before: W[:, :-1] @ x[:-1], "Does the last product change the sum by more than rounding?"),
    "the largest product in place of the sum": (
        lambda W, x, before: (W * x).amax(1), "Is the sum of the products clearly different from the largest of them?"),
    "negative weights taken as positive": (lambda W, x, before: W.abs() @ x, SIGNS),
    "negative inputs taken as zero": (lambda W, x, before: W @ x.relu(), SIGNS),
    "the last row not written": (
        lambda W, x, before: _last_row(W @ x, before), STALE),
    "nothing written": (lambda W, x, before: before, STALE),
}  # fmt: skip


def _data(answer: Callable, rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    got = call(answer, rows, cols)
    if not isinstance(got, (tuple, list)) or len(got) != 2 or not all(isinstance(part, torch.Tensor) for part in got):
        raise WrongAnswer(f"expected two tensors, W and x, got {got!r}")
    W, x = got
    if (W.shape, x.shape) != ((rows, cols), (cols,)) or W.dtype != torch.float32 or x.dtype != torch.float32:
        raise WrongAnswer(
            f"expected fp32 of [{rows}, {cols}] and [{cols}], "
            f"got {W.dtype} {list(W.shape)} and {x.dtype} {list(x.shape)}"
        )
    if not (W.isfinite().all() and x.isfinite().all()):
        raise WrongAnswer("Not every number is finite, so even the right kernel's output is NaN or infinite.")
    return W.clone(), x.clone()


def _inputs(answer) -> str:
    hidden = {}
    for rows, cols in ((8, 8), (12, 16), (random.randrange(9, 40), random.randrange(9, 40))):
        W, x = _data(answer, rows, cols)
        before = W @ x  # as after a warm-up: the output still holds the right kernel's result
        seen = set()
        for _ in range(6):
            W, x = _data(answer, rows, cols)
            y = W @ x
            for name, (kernel, _) in WRONG_KERNELS.items():
                if relative_error(kernel(W, x, before), y) > 1e-3:
                    seen.add(name)
            before = y
        hidden |= {name: (rows, cols) for name in WRONG_KERNELS if name not in seen and name not in hidden}
    score = (
        f"{len(WRONG_KERNELS) - len(hidden)} of {len(WRONG_KERNELS)} wrong kernels gave another result than the right "
        "one"
    )
    if hidden:
        name, (rows, cols) = next(iter(hidden.items()))
        raise WrongAnswer(
            f"{score}\nNot found in six calls: {'; '.join(hidden)}.\n  {name}, at {rows} by {cols}: "
            f"{WRONG_KERNELS[name][1]}"
        )
    return f"On your data, {score}, at each of 3 sizes."


inputs = Exercise(
    name="inputs",
    judge=_inputs,
    spec=(
        "Make data to test a kernel for y = W x. Wrong kernels run on it: with wrong indices, lost signs, missing "
        "writes. Each must give another result than the right kernel in at least one of six calls."
    ),
    skeleton='''\
def inputs(rows, cols):
    """Return W [rows, cols] and x [cols], fp32, to test y = W x on."""
    return ...
''',
    hole="return ...",
    budget="5 minutes, one or two lines",
)
