"""Exercises of notebook 03: a check that no planted fault passes, the choices that count, data that hides nothing."""

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
LIMIT = 1.25  # times bf16's error, the border that the exercise states


@dataclass(frozen=True)
class Case:
    """A pair that a check must accept or refuse. hint: what a check that gets it wrong has overlooked."""

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
    """Tokens [length] of words in a random order, which the model knows better than random bytes."""
    words = "KING:\n" + "".join(random.choice(WORDS) + random.choice((" ", " ", ", ", ".\n")) for _ in range(length))
    return torch.tensor(list(words[:length].encode()))


def _run(tokens: torch.Tensor, *, cache_dtype=torch.float32, **options) -> dict[str, torch.Tensor]:
    """What the model makes of the tokens, by part, all in fp32: the embedding, each layer, the states, the logits."""
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
    """S^T k read before the decay: with beta / decay and decay * v, the right rule computes exactly that."""
    decay = g.exp()
    return delta_rule.delta_rule_chunked(
        q, k, decay[..., None] * v, beta=beta / decay, g=g, recurrent_state=recurrent_state
    )


def _faulty(rule: Callable, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """As `_run`, with another delta rule."""
    with patch.object(block, "delta_rule_chunked", rule):
        return _run(tokens)


@dataclass(frozen=True)
class Runs:
    """The same tokens in fp32 and in bf16."""

    tokens: torch.Tensor
    truth: dict[str, torch.Tensor]
    low: dict[str, torch.Tensor]

    @classmethod
    def of(cls, tokens: torch.Tensor) -> Runs:
        return cls(tokens, _run(tokens), _run(tokens, dtype=torch.bfloat16))


def _cases() -> list[Case]:
    """All pairs, on fresh text: a long one, and a short one for programs that are slow or go astray."""
    long, short = Runs.of(_text(random.randrange(512, 640))), Runs.of(_text(random.randrange(40, 60)))
    return [*_right_cases(long, short), *_wrong_cases(long, short)]


def _quiet_head(runs: Runs) -> tuple[torch.Tensor, torch.Tensor]:
    """The head of a recurrent state whose largest number is the smallest, [K, V], in fp32 and in bf16."""
    heads, low_heads = (run["recurrent_state"].flatten(0, 1) for run in (runs.truth, runs.low))
    quietest = int(heads.abs().amax((-2, -1)).argmin())
    return heads[quietest], low_heads[quietest]


UNITS = "How large a difference may be depends on how large the numbers of the part are."
BORDER = f"The border is {LIMIT} times bf16's error."


def _right_cases(long: Runs, short: Runs) -> list[Case]:
    truth, low = long.truth, long.low
    step_by_step = _run(short.tokens, chunked=False)
    cached = _run(long.tokens, cache_dtype=torch.bfloat16)
    want, bf16 = truth["logits"], low["logits"]
    error = low["layer 4"] - truth["layer 4"]
    quiet, quiet_low = _quiet_head(long)
    rounding = "Two right programs differ by rounding, in every number; `bf16` says by how much."
    near_zero = "A number near zero has no relative error to speak of; measure a whole part at once."
    exact = "Here bf16 loses nothing, so its error is 0, and so is this one: 0 is not more than 0."

    def case(name, got, hint, want=want, bf16=bf16):
        return Case(name, True, got, want, bf16, hint)

    def of_short(name):
        return step_by_step[name], near_zero, short.truth[name], short.low[name]

    return [
        case("the same bits", want, "It is the reference itself."),
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
    beginning = Runs.of(short.tokens[:8])  # with g above 0 a state grows with every token, and soon is no number

    def case(name, got, hint, want=want, bf16=bf16):
        return Case(name, False, got, want, bf16, hint)

    def with_value(row, index, value):
        got = want.clone()
        got[row, index] = value
        return got

    # A token whose output differs from the one before by more than most do: some pairs are nearly alike.
    steps_apart = (want[1:] - want[:-1]).norm(dim=1)
    late = random.choice((steps_apart >= steps_apart.median()).nonzero()[:, 0].tolist()) + 1
    stale = want.clone()
    stale[late] = want[late - 1]
    # One element of the token before, as a lost write would leave it: where it makes a difference, and a norm hides it.
    apart = (want[1:] - want[:-1]).abs()
    places = ((apart > 12 * worst) & (apart < 0.9 * (bf16 - want).norm())).nonzero()
    row, index = places[random.randrange(len(places))].tolist()
    heads = random.sample(range(state.shape[1]), 2)
    exchanged = state.clone()
    exchanged[:, heads] = state[:, heads[::-1]]
    shuffled = want.flatten()[torch.randperm(want.numel())].view_as(want)

    moved = "The same numbers in other places: sum, mean, norm and maximum stay as they are. Compare place by place."
    look = "Is every place looked at?"
    nan = "A comparison with NaN is False, whichever way round it is written."
    return [
        case("one NaN", with_value(token, column, torch.nan), nan),
        case("one infinity", with_value(token, column, random.choice((torch.inf, -torch.inf))), "Finite first."),
        case("nothing written, all NaN", torch.full_like(want, torch.nan), nan),
        case("all zeros", torch.zeros_like(want), "Nothing was computed."),
        case("a quiet head left at zero", torch.zeros_like(quiet), UNITS, quiet, quiet_low),
        case(f"one wrong element among {want.numel():,}", with_value(row + 1, index, want[row, index]),
             "A norm over so many numbers hides one of them. Which number looks at a single element?"),
        case("one token's output is that of the token before", stale, look),
        case("every output one token late", want.roll(1, 0), moved),
        case("two heads swapped", exchanged, moved, state, state_low),
        case("right values in the wrong order", shuffled, moved),
        case("right values with an axis too many", want[None], "A shape that broadcasts is not the same shape."),
        case("right values in fp64", want.double(), "The type is part of the answer."),
        case("every value 1 % too large", 1.01 * want, BORDER),
        case("the sign flipped", -want, "Two norms can be equal while nothing else is."),
        case("a small number added everywhere", want + random.choice((-0.8, 0.8)) * worst,
             "No element is further off than bf16's worst, but all of them are. Look at all together."),
        case("twice bf16's error", want - 2 * (bf16 - want), BORDER),
        case("a state one token late", _run(short.tokens[:-1])["recurrent_state"], look,
             short.truth["recurrent_state"], short.low["recurrent_state"]),
        case("decay left out of S^T k", _faulty(_without_decay, short.tokens)["logits"], BORDER,
             short.truth["logits"], short.low["logits"]),
        case("beta and g swapped", _faulty(_swapped, beginning.tokens)["layer 0"], BORDER,
             beginning.truth["layer 0"], beginning.low["layer 0"]),
        case("a reference with a NaN", want, f"A truth that is not a number proves nothing. {nan}",
             with_value(token, column, torch.nan)),
    ]  # fmt: skip


def _verdict(answer: Callable, case: Case) -> bool | Exception:
    """Whether the check accepts the case, or the exception that it raises."""

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
    """A single bool of PyTorch or NumPy as Python's; anything else as it is."""
    single = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    return value.item() if single else value


def _accept(answer) -> str:
    if not callable(answer):
        raise WrongAnswer(f"expected a function, got {type(answer).__name__}")
    ones = torch.ones(3)
    _verdict(answer, Case("three equal tensors", True, ones, ones, ones, ""))  # untouched? Known before any model runs
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
    return f"It {score}."


def _listed(title: str, cases: Sequence[tuple[Case, str]]) -> list[str]:
    """Lines that name all cases, and explain the first."""
    if not cases:
        return []
    names = "; ".join(case.name for case, _ in cases)
    case, more = cases[0]
    return [f"{title}: {names}.", f"  {case.name}: {case.hint}{more}"]


accept = Exercise(
    name="accept",
    judge=_accept,
    spec=(
        "Is `got` the same function as `want`? Both are one part of the model (logits, a layer's output, a state): "
        "`want` from the fp32 reference, `got` from the program on trial, and `bf16` the same part from plain bf16 "
        "PyTorch, kept in fp32. Return True to accept and False to refuse; raising anything refuses too. Right is what "
        "has the shape and the type of `want`, an error of at most 1.25 times bf16's, and no single element that is "
        "lost."
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
    """Logits whose margins and whose errors are of one size, so that some steps are decided and some are not."""
    reference = torch.randn(steps, vocab) * random.choice((0.1, 1.0, 20.0)) + random.uniform(-50, 50)
    margins = reference.topk(2, dim=1).values.diff(dim=1).abs()
    errors = torch.randn(steps, vocab)
    largest = margins * (0.15 + 0.7 * torch.rand(steps, 1))
    return reference, reference + largest * errors / errors.abs().amax(1, keepdim=True)


def _decided(answer) -> str:
    # A tie is not decided, though bf16 agrees to the last bit; nor is a margin of exactly twice the error.
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
                    f"best logit is {float(best[step, 0]):.4g}, its second {float(best[step, 1]):.4g}, and bf16 moves "
                    f"some logit of that step by {float(error):.4g}, up or down. More than twice that decides."
                )
    return "Where the margin is larger than two errors, every right program makes the same choice."


decided = Exercise(
    name="decided",
    judge=_decided,
    spec=(
        "In which steps is the greedy choice decided? Both arguments are logits [steps, vocab_size], from the "
        "reference and from bf16. A step is decided where the reference's largest logit leads its second by more than "
        "twice the most that bf16 moves any logit of that step: the first may fall by that much, the second rise."
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


# y = W x gone wrong, given W [rows, cols], x [cols] and what the output holds from the call before, [rows].
WRONG_KERNELS: dict[str, tuple[Callable, str]] = {
    "x read at the index inside its group of 4": (
        lambda W, x, before: W @ x[torch.arange(len(x)) % 4], "Can it be seen which element of x was read?"),
    "x read backwards": (lambda W, x, before: W @ x.flip(0), "Can it be seen which element of x was read?"),
    "x read one element late": (lambda W, x, before: W @ x.roll(1), "Can it be seen which element of x was read?"),
    "always the first row of W": (
        lambda W, x, before: W[:1].expand_as(W) @ x, "Can it be seen which row of W was read?"),
    "the row inside its group of 4": (
        lambda W, x, before: W[torch.arange(len(W)) % 4] @ x, "Can it be seen which row of W was read?"),
    "the next row of W": (lambda W, x, before: W.roll(-1, 0) @ x, "Can it be seen which row of W was read?"),
    "W read down its columns": (
        lambda W, x, before: W.reshape(W.shape[1], W.shape[0]).T @ x, "Can it be seen which element of W was read?"),
    "the last column not added": (lambda W, x, before: W[:, :-1] @ x[:-1], "Does every product matter?"),
    "the largest product in place of the sum": (
        lambda W, x, before: (W * x).amax(1), "How many products make up an element of y?"),
    "negative weights taken as positive": (lambda W, x, before: W.abs() @ x, "Which numbers does a model hold?"),
    "negative inputs taken as zero": (lambda W, x, before: W @ x.relu(), "Which numbers does a model hold?"),
    "the last row not written": (
        lambda W, x, before: _last_row(W @ x, before), "What lies in the output before the kernel runs?"),
    "nothing written": (lambda W, x, before: before, "What lies in the output before the kernel runs?"),
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
        raise WrongAnswer("Some of it is not finite: then the right kernel's output is no number either.")
    return W.clone(), x.clone()


def _inputs(answer) -> str:
    hidden = {}
    for rows, cols in ((8, 8), (12, 16), (random.randrange(9, 40), random.randrange(9, 40))):
        W, x = _data(answer, rows, cols)
        before = W @ x  # the right kernel has run once, as in a warm-up, and its output is still there
        seen = set()
        for _ in range(6):
            W, x = _data(answer, rows, cols)
            y = W @ x
            for name, (kernel, _) in WRONG_KERNELS.items():
                if relative_error(kernel(W, x, before), y) > 1e-3:
                    seen.add(name)
            before = y
        hidden |= {name: (rows, cols) for name in WRONG_KERNELS if name not in seen and name not in hidden}
    score = f"told {len(WRONG_KERNELS) - len(hidden)} of {len(WRONG_KERNELS)} wrong kernels from the right one"
    if hidden:
        name, (rows, cols) = next(iter(hidden.items()))
        raise WrongAnswer(
            f"{score}\nNot told apart in six calls: {'; '.join(hidden)}.\n  {name}, at {rows} by {cols}: "
            f"{WRONG_KERNELS[name][1]}"
        )
    return f"Your data {score}."


inputs = Exercise(
    name="inputs",
    judge=_inputs,
    spec=(
        "Make data to test a kernel for y = W x on. A family of wrong kernels runs on it: with wrong indices, lost "
        "signs, forgotten writes. Each must give something else than the right kernel, in at least one of six calls."
    ),
    skeleton='''\
def inputs(rows, cols):
    """Return W [rows, cols] and x [cols], fp32, to test y = W x on."""
    return ...
''',
    hole="return ...",
    budget="5 minutes, one or two lines",
)
