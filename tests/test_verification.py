"""Verification accepts right results, and refuses each planted fault."""

import dataclasses
import io
import math

import pytest
import torch
from models import TINY, make_model

from luce_edu.stages import decoder
from luce_edu.verification import LIMIT, Report, StageResult, Trace, judge, relative_error, stage_trace, verify


def make_traces(seed=0, steps=6, vocab=40, layers=3, hidden=16):
    """A reference, a baseline with an error of about 1 %, and a stage with half of that error."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    truth = Trace(
        draw(steps, vocab),
        draw(steps, layers + 1, hidden),
        {"recurrent_state": draw(2, 4, 4), "k_cache": draw(1, 2, 6, 4)},
    )

    def noisy(size):
        def add(x):
            return x + size * draw(*x.shape)

        hidden_states = add(truth.hidden_states)
        hidden_states[:, 0] = truth.hidden_states[:, 0]  # the embedding is exact
        return Trace(add(truth.logits), hidden_states, {n: add(x) for n, x in truth.states.items()})

    return truth, noisy(0.01), noisy(0.005)


def choices(trace):
    return trace.logits.argmax(-1).tolist()


def test_a_stage_with_half_of_bf16s_error_passes():
    truth, baseline, stage = make_traces()
    verdict = judge(stage, choices(stage), truth, baseline)
    assert verdict["problems"] == [] and 0.3 < verdict["ratio"] < 0.8
    assert verdict["agree"] == verdict["decided"] > 0


@pytest.mark.planted
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_baseline_that_is_not_finite_allows_nothing(value):
    truth, baseline, stage = make_traces()
    baseline.hidden_states[1, 2, 0] = value
    stage.hidden_states[:, 2] *= 3
    problems = judge(stage, choices(stage), truth, baseline)["problems"]
    assert problems and problems[0].startswith("layer 1 is the first of 1 parts")


def put(tensor, at, value):
    tensor[at] = value


SPOILS = {  # the change to a trace, and the part that must be named first
    "a logit of NaN": (lambda t: put(t.logits, (3, 7), math.nan), "logits"),
    "a layer 5 % too large": (lambda t: t.hidden_states[2, 2].mul_(1.05), "layer 1"),
    "an embedding that is not exact": (lambda t: t.hidden_states[0, 0, :1].add_(1e-6), "embedding"),
    "a row of the state lost": (lambda t: put(t.states["recurrent_state"], (1, 2), 0.0), "recurrent_state"),
    "a cache one position late": (
        lambda t: t.states.update(k_cache=t.states["k_cache"].roll(1, dims=2)), "k_cache"),
    "the logits of the token before": (lambda t: put(t.logits, 4, t.logits[3]), "logits"),
}  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("spoil, part", SPOILS.values(), ids=SPOILS)
def test_a_planted_fault_is_named_by_its_first_part(spoil, part):
    truth, baseline, stage = make_traces()
    spoil(stage)
    verdict = judge(stage, choices(stage), truth, baseline)
    assert verdict["problems"] and verdict["problems"][0].startswith(f"{part} is the first of")


def test_one_wrong_greedy_choice_is_seen():
    truth, baseline, stage = make_traces()
    wrong = choices(stage)
    margins = truth.logits.topk(2).values
    step = int((margins[:, 0] - margins[:, 1]).argmax())
    wrong[step] = (wrong[step] + 1) % truth.logits.shape[1]
    verdict = judge(stage, wrong, truth, baseline)
    assert verdict["agree"] == verdict["decided"] - 1
    assert verdict["problems"][0].startswith(f"token {step}: chose {wrong[step]}, but the largest of its own")
    assert verdict["problems"][1].startswith(f"token {step}: chose {wrong[step]}, the reference")


@pytest.mark.parametrize("lead, decided", [(1.9, False), (2.1, True)])
def test_a_choice_is_decided_by_a_lead_that_two_errors_cannot_undo(lead, decided):
    truth, baseline, stage = make_traces(steps=1)
    slack = LIMIT * float((baseline.logits - truth.logits).abs().max())
    truth.logits[0, 3] = truth.logits.max() + 1
    truth.logits[0, 4] = truth.logits[0, 3] - lead * slack
    baseline.logits[0, 3:5] = truth.logits[0, 3:5]
    verdict = judge(stage, choices(stage), truth, baseline)
    assert verdict["decided"] == decided


def test_a_choice_that_is_not_the_largest_logit_is_seen_even_where_either_would_do():
    truth, baseline, stage = make_traces()
    for trace in (truth, baseline, stage):
        trace.logits[2, 5:7] = 9.0  # equal: the lower index is right, and the choice is not decided
    chosen = choices(stage)
    chosen[2] = 5
    assert judge(stage, chosen, truth, baseline)["problems"] == []
    chosen[2] = 6
    assert judge(stage, chosen, truth, baseline)["problems"] == [
        "token 2: chose 6, but the largest of its own logits is 5"
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_passes(value):
    x = torch.ones(5)
    x[2] = value
    assert relative_error(x, torch.ones(5)) == math.inf


def test_a_run_that_does_not_repeat_is_seen():
    model = make_model(dataclasses.replace(TINY, num_hidden_layers=1, layer_types=TINY.layer_types[:1]))
    made = []

    class Unsteady:
        """A decoder whose second run differs in one bit of one logit."""

        def __init__(self, stage):
            self.inner = decoder(stage, model, "host", 4)
            made.append(self)
            self.resets = 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def reset(self):
            self.resets += 1
            self.inner.reset()

        def step(self, token):
            logits = self.inner.step(token)
            if self.resets == 2:
                logits[0] = torch.nextafter(logits[0], torch.tensor(math.inf))
            return logits

    report = verify(model, device="host", stages=["per_layer"], steps=4, make=Unsteady)
    assert made and not report.passed
    assert not report.rows[0].repeats and report.rows[0].problems == ["a second run gave different bits"]


def test_poison_reaches_everything_that_a_token_must_write():
    model = make_model(TINY)
    for stage in ("per_op", "per_layer", "megakernel"):
        dec = decoder(stage, model, "host", 4)
        dec.poison()
        assert all(t.isnan().all() for t in dec._scratch() if t.is_floating_point())
        trace, _ = stage_trace(dec, [1, 2])
        assert all(torch.isfinite(part).all() for part in trace.parts().values())


def test_the_table_fits_a_terminal_of_80_columns():
    from rich.console import Console

    result = StageResult(
        "megakernel", 1.4e-2, 3.8e-3, 12.34, "layer 17", 3.45, "logits", 40, 40, True, launches=2041, kernels=2041,
        barriers=121,
    )
    console = Console(width=80, file=io.StringIO())
    console.print(Report("random-0.8b", "host", 40, 123456, [result]))
    text = console.file.getvalue()
    cells = ("1.4e-02", "3.8e-03", "12.34", "3.45", "40/40", "2041", "121", "verdict", "pass")
    assert all(cell in text for cell in cells)


def test_a_report_without_rows_has_not_passed():
    assert not Report("tiny", "host", 4, 0, []).passed


@pytest.mark.parametrize(
    "arguments, message",
    [({"stages": "megakernel"}, "expected a list of names"), ({"stages": 5}, "expected a list of names"),
     ({"seed": "a"}, "seed: expected an integer"), ({"stages": ["nope"]}, "unknown stage 'nope'"),
     ({"stages": []}, "unknown stage"), ({"steps": 1}, "steps"),
     ({"steps": 2.5}, "steps"), ({"device": "abacus"}, "unknown device")],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        verify(make_model(TINY), **({"device": "host"} | arguments))
