"""Verify each stage: compare it with an independent fp32 reference, on the same tokens.

The error is ||x - reference|| / ||reference||. The baseline is the same model in plain bf16 PyTorch, whose error is the
cost of bf16 rounding. A stage passes when all of this holds:
  - For the logits, for every layer's output and for every state, its error is at most LIMIT times the baseline's.
  - Its next token is the largest of its own logits. Where the reference prefers one token by more than that error can
    change, the stage chooses the same.
  - From its own logits it draws the tokens that the reference draws, by temperature, top-k and top-p.
  - A second run gives the same bits.
  - On the virtual GPU, with a small model, one token, a draw and one prompt run without a data race.

A stage made of kernels computes in fp32, so it must also pass against an fp32 baseline, whose error is about a thousand
times smaller (luce_edu/exactness.py).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from luce_edu.errors import KernelError, check_int, check_seed
from luce_edu.exactness import BF16_BITS, FP32_LIMIT, PromptListener, excess, stated_run
from luce_edu.reference.model import forward
from luce_edu.reference.sampling import draw
from luce_edu.state import DecodeState
from luce_edu.tables import Tabular

LIMIT = 1.25  # times the error of bf16
STEPS = 24  # tokens to decode
# With these lengths and this few blocks, the model of awkward sizes takes paths that others leave out: two splits of
# the cache, several units of a phase per block, prompts with several tiles of keys per warp, and after the longest
# prompt more splits than a block has workers.
ODD = {"steps": 40}
ODD_PREFILL = {"prompts": (3, 65, 600), "steps": 12}
ODD_BLOCKS = 3
# Lengths of the prompts to verify: shorter than the convolution, around one chunk of the delta rule, several chunks,
# and an end inside a chunk.
PROMPTS = (1, 2, 3, 63, 64, 65, 127, 520, 1000)
# The race check makes a token up to ten times slower. So it runs for one token, or for one prompt of at most WATCHED
# tokens, and only for models with at most MOST_WATCHED bytes of weights.
WATCHED, MOST_WATCHED = 130, 64 * 2**20
DECODED = 64  # tokens that a stage decodes after each prompt
# How tokens are drawn. A high temperature makes the kept tokens equally likely. As these are few, one too many or too
# few shows after some draws.
DRAWN_BY = (
    {"temperature": 1.0}, {"temperature": 30.0, "top_k": 2}, {"temperature": 30.0, "top_p": 0.02},
    {"temperature": 30.0, "top_k": 8, "top_p": 0.5},
)  # fmt: skip
DRAWS, MOST_LOGITS = 8, 2**15  # by each of these; one, if there are more logits, which the reference sorts slowly


@dataclass
class Trace:
    """Hold what one run over the tokens produced, on the CPU in fp32.

    logits [steps, vocab_size];  hidden_states [steps, num_hidden_layers + 1, hidden_size]
    states: conv_state, recurrent_state, and the part of k_cache and v_cache that is in use
    """

    logits: torch.Tensor
    hidden_states: torch.Tensor
    states: dict[str, torch.Tensor]

    def parts(self) -> dict[str, torch.Tensor]:
        """Return every tensor that is compared, by name, in the order of the computation."""
        layers = self.hidden_states.unbind(1)
        names = ["embedding", *(f"layer {i}" for i in range(len(layers) - 1))]
        return dict(zip(names, layers, strict=True)) | self.states | {"logits": self.logits}


@dataclass
class StageResult:
    """One row of the verification table. Errors are norm ratios; `problems` is empty for a stage that passes."""

    stage: str
    error: float  # logits, against the fp32 reference
    error_before: float | None  # logits, against the stage before
    ratio: float  # the largest error / bf16's own error over logits, layers and states
    worst: str  # the part with that ratio
    fp32_ratio: float | None  # the same with fp32's own error; None for a stage that computes in bf16
    fp32_worst: str | None
    decided: int  # tokens whose margin in the reference exceeds what bf16's error, or for kernels fp32's, can change
    agree: int  # greedy choices equal to the reference's, among those
    repeats: bool
    launches: int  # for a token, or for the last piece of a prompt
    kernels: int  # that ran in these launches; those of a graph are counted one by one
    barriers: int
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.problems

    @property
    def name(self) -> str:
        return self.stage


@dataclass(repr=False)
class Report(Tabular):
    """The verdict on all stages, with the model, device, number of tokens and seed that it rests on."""

    model: str
    device: str
    steps: int
    seed: int
    rows: list[StageResult]

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_dict(self) -> dict:
        """Return the report for JSON. JSON has no infinity, so an infinite error becomes None."""
        head = {name: getattr(self, name) for name in ("model", "device", "steps", "seed", "passed")}
        rows = [vars(row) | {"passed": row.passed} for row in self.rows]
        rows = [{name: None if value == math.inf else value for name, value in row.items()} for row in rows]
        return head | {"limits": {"bf16": LIMIT, "fp32": FP32_LIMIT}, "rows": rows}

    @property
    def title(self) -> str:
        where = {"host": "the virtual GPU", "cuda": "the GPU"}[self.device]
        return f"{self.model} on {where}: {self.what}, seed {self.seed} (measured now)"

    @property
    def what(self) -> str:
        """Say what was run, for the title."""
        return f"{self.steps} tokens"

    header = ("stage", "error", "before", "×bf16", "×fp32", "greedy", "repeats", "launches", "barriers", "verdict")

    @property
    def body(self) -> list[list[str]]:
        return [
            [
                row.stage,
                f"{row.error:.1e}",
                "–" if row.error_before is None else f"{row.error_before:.1e}",
                f"{row.ratio:.2f}",
                _times(row.fp32_ratio),
                f"{row.agree}/{row.decided}",
                "yes" if row.repeats else "NO",
                str(row.launches),
                str(row.barriers),
                "pass" if row.passed else "FAIL",
            ]
            for row in self.rows
        ]

    @property
    def caption(self) -> str:
        """List what is wrong, one line per problem."""
        return "\n".join(f"{row.name}: {problem}" for row in self.rows for problem in row.problems)


@dataclass
class PromptResult(StageResult):
    """One row of the table of prompts: a prompt of `tokens`, read in `pieces` calls, then decoded from."""

    tokens: int = 0
    pieces: int = 1

    @property
    def name(self) -> str:
        return f"{self.stage}, prompt of {self.tokens} in {self.pieces}"


@dataclass(repr=False)
class PromptReport(Report):
    """The verdict on prompts; `steps` tokens are decoded after each."""

    rows: list[PromptResult]

    @property
    def what(self) -> str:
        return f"prompts, and {self.steps} tokens decoded after each"

    header = ("stage", "prompt", "calls", "error", "×bf16", "×fp32", "greedy", "repeats", "launches", "verdict")

    @property
    def body(self) -> list[list[str]]:
        return [
            [
                row.stage, str(row.tokens), str(row.pieces), f"{row.error:.1e}", f"{row.ratio:.2f}",
                _times(row.fp32_ratio), f"{row.agree}/{row.decided}", "yes" if row.repeats else "NO", str(row.launches),
                "pass" if row.passed else "FAIL",
            ]
            for row in self.rows
        ]  # fmt: skip


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def relative_error(x: torch.Tensor, reference: torch.Tensor) -> float:
    """Return ||x - reference|| / ||reference||; infinity if an element of x is not finite, so that NaN never passes."""
    if not torch.isfinite(x).all():
        return float("inf")
    difference = torch.linalg.vector_norm(x.double() - reference.double())
    return float(difference / torch.linalg.vector_norm(reference.double()).clamp_min(1e-30))


@contextmanager
def true_fp32():
    """Switch TF32 off, so that it does not round the reference, whatever the process has chosen for its products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@true_fp32()
def choose_tokens(model, steps: int, seed: int, device) -> list[int]:
    """Choose the tokens to run on: the first half at random, the rest by the reference's greedy continuation."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(model.config.vocab_size, (max(1, steps // 2),), generator=generator).tolist()
    weights = model.weights_on(device)
    state = DecodeState.empty(model.config, steps, device=device, cache_dtype=torch.float32)
    pending = tokens
    while len(tokens) < steps:
        with torch.no_grad():
            logits = forward(weights, model.config, torch.tensor(pending, device=device), state)
        pending = [int(logits[-1].argmax())]
        tokens = tokens + pending
    return tokens


@true_fp32()
def reference_trace(model, tokens: Sequence[int], device, progress: Callable[[str], None]) -> Trace:
    """Run the independent fp32 reference, one token at a time with the plain recurrence."""
    weights = model.weights_on(device)
    state = DecodeState.empty(model.config, len(tokens), device=device, cache_dtype=torch.float32)
    logits, hidden = [], []
    for i, token in enumerate(tokens):
        progress(f"fp32 reference: token {i + 1} of {len(tokens)}")
        trace: list[torch.Tensor] = []
        with torch.no_grad():
            one = forward(
                weights, model.config, torch.tensor([token], device=device), state, chunked=False, trace=trace
            )
        logits.append(one[0].cpu())
        hidden.append(torch.cat(trace).cpu())
    return Trace(torch.stack(logits), torch.stack(hidden), _states(state))


def stage_trace(
    decoder, tokens: Sequence[int], progress: Callable[[str], None] = lambda _: None
) -> tuple[Trace, list[int]]:
    """Run a stage from a fresh state, with its buffers poisoned before each token; return trace and greedy choices."""
    decoder.reset()
    logits, hidden, choices = [], [], []
    for i, token in enumerate(tokens):
        progress(f"{decoder.stage}: token {i + 1} of {len(tokens)}")
        decoder.poison()
        logits.append(decoder.step(token).cpu())
        hidden.append(decoder.hidden_states.float().cpu().clone())
        choices.append(decoder._next_token())
    return Trace(torch.stack(logits), torch.stack(hidden), _states(decoder.state)), choices


def _states(state: DecodeState) -> dict[str, torch.Tensor]:
    used = {name: getattr(state, name) for name in DecodeState.TENSORS}
    used |= {name: used[name][:, :, : state.position] for name in ("k_cache", "v_cache")}
    return {name: tensor.float().cpu().clone() for name, tensor in used.items()}


def judge(trace: Trace, choices: Sequence[int], reference: Trace, baseline: Trace) -> dict:
    """Compare one stage with the reference, by the error of bf16; return the StageResult fields that the traces give.

    baseline  the same model in bf16 PyTorch, whose error sets what is allowed
    """
    expected, bf16, got = reference.parts(), baseline.parts(), trace.parts()
    ratios = {}
    for name, truth in expected.items():
        error, allowed = relative_error(got[name], truth), relative_error(bf16[name], truth)
        # The embedding is exact in bf16, so the allowed error is 0 there. An infinite one would allow anything.
        usable = 0 < allowed < float("inf")
        ratios[name] = error / allowed if usable else (0.0 if error == allowed == 0 else float("inf"))
    problems = _exceeded(ratios, LIMIT, "bf16", got, expected)
    for step, logits in enumerate(trace.logits):
        own = int((logits == logits.max()).nonzero()[0]) if torch.isfinite(logits).all() else None
        if choices[step] != own:
            problems.append(f"token {step}: chose {choices[step]}, but the largest of its own logits is {own}")
            break
    agree, decided, wrong = _greedy(choices, reference.logits, baseline.logits, LIMIT, "bf16")
    worst = max(ratios, key=lambda name: ratios[name])
    return {
        "error": relative_error(trace.logits, reference.logits),
        "ratio": ratios[worst],
        "worst": worst,
        "fp32_ratio": None,
        "fp32_worst": None,
        "agree": agree,
        "decided": decided,
        "problems": problems + wrong,
    }


def judge_exactly(trace: Trace, choices: Sequence[int], exact: Trace, fp32: Trace) -> dict:
    """Compare a stage that computes in fp32 with `exact`, by the error of fp32; return StageResult fields as `judge`.

    exact, fp32  the model in fp64 and in fp32, with the stage's own KV cache (luce_edu.exactness.stated_run)
    """
    got, expected, baseline = trace.parts(), exact.parts(), fp32.parts()
    ratios = {
        name: excess(got[name], truth, baseline[name], bits=BF16_BITS if name in ("k_cache", "v_cache") else None)
        for name, truth in expected.items()
    }
    worst = max(ratios, key=lambda name: ratios[name])
    agree, decided, wrong = _greedy(choices, exact.logits, fp32.logits, FP32_LIMIT, "fp32")
    problems = _exceeded(ratios, FP32_LIMIT, "fp32", got, expected) + wrong
    return {
        "fp32_ratio": ratios[worst], "fp32_worst": worst, "agree": agree, "decided": decided, "problems": problems
    }  # fmt: skip


def _exceeded(ratios: dict[str, float], limit: float, precision: str, got: dict, expected: dict) -> list[str]:
    """Name the first part whose ratio exceeds the limit, with its worst element; NaN exceeds it too."""
    exceeded = [name for name, ratio in ratios.items() if not ratio <= limit]
    if not exceeded:
        return []
    first = exceeded[0]
    return [
        f"{first} is the first of {len(exceeded)} parts that differ: {ratios[first]:.3g} times {precision}'s error, "
        f"limit {limit}{_worst_element(got[first], expected[first])}"
    ]


def _greedy(choices, truth: torch.Tensor, baseline: torch.Tensor, limit: float, precision: str):
    """Return how many choices agree with the reference, how many tokens the reference decides, and the problems.

    The reference decides a token where its largest logit leads by more than twice the error that a correct program may
    have: the largest may come out lower by that error, and the second higher.
    """
    agree = decided = 0
    problems = []
    top = truth.topk(2).values
    for step, choice in enumerate(choices):
        slack = limit * float((baseline[step] - truth[step]).abs().max())
        if not float(top[step, 0] - top[step, 1]) > 2 * slack:
            continue
        decided += 1
        want = int(truth[step].argmax())
        if choice == want:
            agree += 1
        elif not problems:
            problems.append(
                f"token {step}: chose {choice}, the reference prefers {want} by more than {precision}'s error"
            )
    return agree, decided, problems


def _worst_element(got: torch.Tensor, truth: torch.Tensor) -> str:
    difference = (got.double() - truth.double()).abs()
    index = int(torch.where(difference.isnan(), torch.inf, difference).argmax())
    at = [int(i) for i in torch.unravel_index(torch.tensor(index), got.shape)]
    return (
        f"; worst at {at}: {float(got.flatten()[index]):.5g} in place of {float(truth.flatten()[index]):.5g}"
    )


def verify(
    model,
    *,
    stages: Sequence[str] | None = None,
    device: str | None = None,
    steps: int = STEPS,
    seed: int | None = None,
    make=None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Verify stages on fresh tokens; return the Report. A wrong result does not raise: look at `.passed`.

    stages    names from luce_edu.STAGES, in order; None for all
    device    "cuda", "host" or None, as for `decoder`
    steps     number of tokens, at least 2
    seed      draws the tokens, and on the virtual GPU the order of warps in the second run; None for a fresh one,
              which the report names
    make      function from a stage's name to its decoder, for planted faults; None for luce_edu.decoder
    progress  called with a line of text before each token
    Raises ValueError for an unknown stage or device, or too few steps.
    """
    from luce_edu.stages import decoder

    stages, device, seed = _checked(model, stages, device, seed)
    check_int("steps", steps, 2)
    progress = progress or (lambda _: None)
    make = make or (lambda stage: decoder(stage, model, device, max_seq_len=steps))

    eager = decoder("eager", model, device, max_seq_len=steps)
    torch_device = eager.device
    tokens = choose_tokens(model, steps, seed, torch_device)
    reference = reference_trace(model, tokens, torch_device, progress)
    with _uncounted(eager):
        baseline, _ = stage_trace(eager, tokens, progress)
    rows, before = [], None
    for stage in stages:
        dec = make(stage)
        trace, choices = stage_trace(dec, tokens, progress)
        counts = {"launches": dec.launches, "kernels": len(dec.ledger.kernels()), "barriers": dec.barriers}
        verdict = judge(trace, choices, reference, baseline)
        if dec.activations == torch.float32:
            progress(f"{stage}: comparing with fp64")
            exactly = judge_exactly(trace, choices, *_stated(model, tokens, trace, torch_device))
            verdict |= exactly | {"problems": verdict["problems"] + exactly["problems"]}
        again = _second_run(dec, tokens, seed, progress)
        row = StageResult(
            stage=stage,
            error_before=None if before is None else relative_error(trace.logits, before.logits),
            repeats=_same_bits(trace, again),
            **counts,
            **verdict,
        )
        if not row.repeats:
            row.problems.append("a second run gave different bits")
        row.problems += _wrong_draws(dec, seed) or _races(dec, seed, lambda dec=dec: _step_again(dec, tokens))
        rows.append(row)
        before = trace
    return Report(model.name, device, steps, seed, rows)


@true_fp32()
def _stated(model, tokens: Sequence[int], trace: Trace, device) -> tuple[Trace, Trace]:
    """Run the model in fp64 and in fp32 with the KV cache that a stage wrote."""
    caches = {name: trace.states[name] for name in ("k_cache", "v_cache")}
    return tuple(
        Trace(*stated_run(model, tokens, caches, dtype, device)) for dtype in (torch.float64, torch.float32)
    )


def _checked(model, stages, device, seed) -> tuple[Sequence[str], str, int]:
    """Return stages, device and seed, with defaults filled in; ValueError for arguments that cannot be verified."""
    from luce_edu.backends.devices import default_device
    from luce_edu.stages import STAGES

    if not hasattr(model, "weights_on"):
        raise ValueError(f"model: expected what luce_edu.load_model returns, got {type(model).__name__}")
    if seed is not None:
        check_seed(seed)
    if isinstance(stages, str) or not isinstance(stages, Sequence | None):
        raise ValueError(f"stages: expected a list of names, got {stages!r}")
    stages = STAGES if stages is None else tuple(stages)
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise ValueError(
            f"unknown stage {', '.join(map(repr, unknown)) or '(none)'}; expected some of {', '.join(STAGES)}"
        )
    device = default_device() if device is None else device
    return stages, device, secrets.randbelow(10**6) if seed is None else seed


def verify_paths(*, prefill: bool = False, device: str | None = None, **options) -> Report:
    """Verify on random-odd, whose awkward sizes take paths that `tiny` and few tokens of a large model leave out.

    It runs on few blocks, as some paths need that (odd_model.py).
    prefill  run `verify_prefill` instead of `verify`; the other arguments and the errors are theirs
    """
    from luce_edu.backends import make_backend
    from luce_edu.models import load_model
    from luce_edu.stages import decoder

    check, defaults = (verify_prefill, ODD_PREFILL) if prefill else (verify, ODD)
    options = defaults | options
    model, room = load_model("random-odd"), options["steps"] + max(options.get("prompts", [0]))

    def make(stage):
        backend = make_backend(device)
        resident = backend.max_resident_blocks
        backend.max_resident_blocks = lambda *of_kernel: min(ODD_BLOCKS, resident(*of_kernel))
        return decoder(stage, model, backend=backend, max_seq_len=room)

    return check(model, device=device, make=make, **options)


def verify_prefill(
    model,
    *,
    stages: Sequence[str] | None = None,
    device: str | None = None,
    prompts: Sequence[int] = PROMPTS,
    steps: int = DECODED,
    seed: int | None = None,
    make=None,
    progress: Callable[[str], None] | None = None,
) -> PromptReport:
    """Verify prompts: each stage reads prompts of several lengths, then decodes tokens after each.

    Each prompt is read in one call, and again in pieces that the seed draws; then `steps` given tokens are decoded.
    The rule of `verify` is applied to the logits after the prompt and after each of these tokens, to every layer's
    output for them, and to the states at the end. The baseline is plain bf16 PyTorch, by the recurrence. While a stage
    made of kernels reads a prompt, each launch is also compared on its own inputs, by the error of fp32. A second
    reading must give the same bits; on the virtual GPU its warps run in a hostile order.

    prompts  lengths, each 1 or more
    steps    1 or more. The error after a prompt is about as large as the baseline's, so with a small model and few
             tokens it can exceed the limit by chance; with 32 tokens it has not
    Other arguments and errors are those of `verify`.
    """
    from luce_edu.stages import decoder

    stages, device, seed = _checked(model, stages, device, seed)
    lengths = sorted({check_int("prompts", length, 1) for length in prompts})
    if not lengths:
        raise ValueError("prompts: expected at least one length")
    check_int("steps", steps, 1)
    room = lengths[-1] + steps
    if room > model.config.max_position_embeddings:
        most = model.config.max_position_embeddings
        raise ValueError(f"prompts: the model was made for {most} positions, got {room}")
    progress = progress or (lambda _: None)
    make = make or (lambda stage: decoder(stage, model, device, max_seq_len=room))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(model.config.vocab_size, (room,), generator=generator).tolist()
    torch_device = make(stages[0]).device
    reference = _continuations(model, tokens, lengths, steps, torch.float32, torch_device, progress)
    baseline = _continuations(model, tokens, lengths, steps, torch.bfloat16, torch_device, progress)
    watched = max([length for length in lengths if length <= WATCHED], default=0)
    rows = []
    for stage in stages:
        dec = make(stage)
        for length in lengths:
            pieces = _pieces(length, generator)
            for parts in ([length], pieces) if len(pieces) > 1 else ([length],):
                progress(f"{stage}: prompt of {length} in {len(parts)}, then {steps} tokens")
                listener = PromptListener(model.config)
                with listener.listening_to(dec) if dec.activations == torch.float32 else nullcontext(), true_fp32():
                    _read_in(dec, tokens, parts)
                counts = {"launches": dec.launches, "kernels": len(dec.ledger.kernels())}
                read = _read_out(dec)
                with _uncounted(dec):
                    trace, choices = _decode_on(dec, tokens[length : length + steps])
                with _hostile_order(dec, seed):
                    _read_in(dec, tokens, parts)
                again = _read_out(dec)
                verdict = judge(trace, choices, reference[length], baseline[length])
                if listener.worst:
                    worst = max(listener.worst, key=listener.worst.get)
                    verdict |= {"fp32_ratio": listener.worst[worst], "fp32_worst": worst}
                    verdict["problems"] += listener.problems()
                row = PromptResult(
                    stage=stage, tokens=length, pieces=len(parts), error_before=None, barriers=0,
                    repeats=all(torch.equal(a, b) for a, b in zip(read, again, strict=True)),
                    **counts, **verdict,
                )  # fmt: skip
                if not row.repeats:
                    row.problems.append("a second reading gave different bits")
                if length == watched and len(parts) == 1:
                    row.problems += _races(dec, seed, lambda dec=dec, parts=parts: _read_in(dec, tokens, parts))
                rows.append(row)
    return PromptReport(model.name, device, steps, seed, rows)


@true_fp32()
def _continuations(model, tokens, lengths, steps, dtype, device, progress) -> dict[int, Trace]:
    """Run the plain model by the recurrence; return by length the trace of the prompt's last token and `steps` more."""
    weights, config = model.weights_on(device), model.config
    state = DecodeState.empty(config, len(tokens), device=device, cache_dtype=dtype)
    wanted = {at for length in lengths for at in range(length - 1, length + steps)}
    logits, hidden, states = {}, {}, {}
    cuts = sorted({*lengths, *(length + steps for length in lengths)})
    for begin, end in zip([0, *cuts], cuts, strict=False):
        progress(f"{'fp32 reference' if dtype == torch.float32 else 'bf16 baseline'}: tokens {begin} to {end}")
        trace: list[torch.Tensor] = []
        piece = torch.tensor(tokens[begin:end], device=device)
        with torch.no_grad():
            out = forward(weights, config, piece, state, dtype=dtype, chunked=False, trace=trace)
        together = torch.stack(trace, dim=1)
        for at in wanted & set(range(begin, end)):
            logits[at], hidden[at] = out[at - begin].float().cpu(), together[at - begin].float().cpu()
        states[end] = _states(state)
    return {
        length: Trace(
            *(torch.stack([rows[at] for at in range(length - 1, length + steps)]) for rows in (logits, hidden)),
            states[length + steps],
        )
        for length in lengths
    }  # fmt: skip


def _pieces(length: int, generator: torch.Generator) -> list[int]:
    """Cut `length` into up to five pieces of any size."""
    cuts = torch.randint(1, length + 1, (4,), generator=generator).tolist()
    edges = sorted({0, length, *cuts})
    return [b - a for a, b in zip(edges, edges[1:], strict=False)]


def _read_in(dec, tokens: Sequence[int], pieces: Sequence[int]) -> None:
    """Read the prompt from a fresh state, with the buffers poisoned before each piece."""
    dec.reset()
    at = 0
    for piece in pieces:
        dec.poison()
        dec.prefill(tokens[at : at + piece])
        at += piece


def _read_out(dec) -> list[torch.Tensor]:
    """Return what reading a prompt has produced: logits, hidden states and states."""
    return [dec.logits.cpu().clone(), dec.hidden_states.cpu().clone(), *_states(dec.state).values()]


def _decode_on(dec, tokens: Sequence[int]) -> tuple[Trace, list[int]]:
    """Return trace and choices after the prompt that was just read, and after each of the tokens that follow."""
    logits, hidden, choices = [], [], []
    for token in (None, *tokens):
        if token is not None:
            dec.poison()
            dec.step(token)
        logits.append(dec.logits.float().cpu().clone())
        hidden.append(dec.hidden_states.float().cpu().clone())
        choices.append(dec._next_token())
    return Trace(torch.stack(logits), torch.stack(hidden), _states(dec.state)), choices


def _second_run(dec, tokens, seed, progress) -> Trace:
    """Run the tokens again; on the virtual GPU, in an order of warps that the seed decides."""
    with _hostile_order(dec, seed), _uncounted(dec):
        return stage_trace(dec, tokens, lambda line: progress(f"{line} (again)"))[0]


def _wrong_draws(dec, seed: int) -> list[str]:
    """Draw from the last token's logits; return the first draw that is not the reference's, if any, as a problem."""
    logits = dec.logits.cpu()
    if logits.isnan().all():
        return []
    seeds = [(seed + i) % 2**63 for i in range(DRAWS if len(logits) <= MOST_LOGITS else 1)]
    for how in ({**way, "seed": of_draw} for way in DRAWN_BY for of_draw in seeds):
        try:
            with _uncounted(dec):
                dec.draw(**how)
        except KernelError as error:
            return [f"draw: {error}"]
        drawn, want = dec._next_token(), int(draw(logits, **how, position=dec.position))
        if drawn != want:
            named = ", ".join(f"{name} {value}" for name, value in how.items())
            return [f"drew {drawn} by {named}; from the same logits, the reference draws {want}"]
    return []


def _step_again(dec, tokens) -> None:
    """Decode the last token once more, and draw the next."""
    dec.state.position -= 1
    dec.poison()
    dec.step(tokens[-1])
    dec.draw(**DRAWN_BY[-1])


def _races(dec, seed: int, run: Callable[[], None]) -> list[str]:
    """Call `run` on the virtual GPU with its race check on; return the race that it found, if any, as a problem.

    Lanes of a warp run in lockstep there, so a missing __syncwarp never changes a result; only this check finds it.
    """
    if not hasattr(dec.backend, "races") or dec.activations != torch.float32:
        return []
    if sum(weight.nbytes for _, weight in dec.weights.named_tensors()) > MOST_WATCHED:
        return []
    usual, dec.backend.races = dec.backend.races, True
    try:
        with _hostile_order(dec, seed):
            run()
    except KernelError as error:
        return [f"race check: {error}"]
    finally:
        dec.backend.races = usual
    return []


@contextmanager
def _uncounted(dec):
    """Switch off eager's count of PyTorch operations, which takes longer than the operations."""
    if not hasattr(dec, "counts"):
        yield
        return
    before, dec.counts = dec.counts, False
    try:
        yield
    finally:
        dec.counts = before


@contextmanager
def _hostile_order(dec, seed: int):
    """Make the virtual GPU run warps one at a time, in an order that the seed decides."""
    if not hasattr(dec.backend, "seed"):
        yield
        return
    usual, dec.backend.seed = dec.backend.seed, seed
    try:
        yield
    finally:
        dec.backend.seed = usual


def _same_bits(a: Trace, b: Trace) -> bool:
    """Whether two traces are equal to the last bit; NaN equals nothing."""
    return all(torch.equal(x, y) for x, y in zip(a.parts().values(), b.parts().values(), strict=True))
