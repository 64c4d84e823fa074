"""The checkers of notebook 03 accept right answers in several forms, and name what a wrong one overlooks."""

import numpy as np
import pytest
import torch
from answers import checker_tests

from luce_edu.exercises import equality as exercises
from luce_edu.verification import relative_error

# ---- accept ----


def whole(got, want, bf16):
    if got.shape != want.shape or got.dtype != want.dtype or not torch.isfinite(got).all():
        return False
    off, allowed = got - want, bf16 - want
    return bool(off.norm() <= 1.25 * allowed.norm() and off.abs().max() <= 4 * allowed.abs().max())


def by_ratios(got, want, bf16):
    if got.size() != want.size() or got.type() != want.type():
        return False
    error, allowed = relative_error(got, want), relative_error(bf16, want)
    worst = ((got - want).abs().max() / (bf16 - want).abs().max().clamp_min(1e-12)).item()
    return error <= 1.25 * allowed and worst < 10


def by_raising(got, want, bf16):
    off, allowed = (got - want).double(), (bf16 - want).double()
    assert got.shape == want.shape and got.dtype is want.dtype
    assert off.square().sum() <= 1.5 * allowed.square().sum()
    torch.testing.assert_close(got, want, rtol=0, atol=1.5 * float(allowed.abs().max()))
    return True


def in_numpy(got, want, bf16):
    got, want, bf16 = got.numpy(), want.numpy(), bf16.numpy()
    alike = got.shape == want.shape and got.dtype == want.dtype and np.isfinite(got).all()
    norm, worst = np.linalg.norm, lambda x: np.abs(x).max()
    return alike and norm(got - want) <= 1.25 * norm(bf16 - want) and worst(got - want) <= 2 * worst(bf16 - want)


def ignoring(what):
    """The whole check without one of its parts."""

    def check(got, want, bf16):
        if what != "shape" and got.shape != want.shape or what != "dtype" and got.dtype != want.dtype:
            return False
        off, allowed = got - want, bf16 - want
        norms = what == "norm" or off.norm() <= 1.25 * allowed.norm()
        return bool(norms and (what == "worst element" or off.abs().max() <= 4 * allowed.abs().max()))

    return check


ACCEPT_WRONG = {
    "allclose with its defaults": (lambda g, w, b: torch.allclose(g, w), "Refused, though right: .*bf16 itself"),
    "allclose with loose tolerances": (
        lambda g, w, b: torch.allclose(g, w, rtol=0.1, atol=6.0), "though wrong: .*a quiet head left at zero"),
    "largest difference below bf16's": (ignoring("norm"), "though wrong: .*a small number added everywhere"),
    "no look at single elements": (ignoring("worst element"), "though wrong: one wrong element among [0-9,]+\\."),
    "no look at the shape": (ignoring("shape"), "though wrong: right values with an axis too many\\."),
    "no look at the type": (ignoring("dtype"), "though wrong: right values in fp64\\."),
    "not more than the limit": (
        lambda g, w, b: not (g - w).norm() > 1.25 * (b - w).norm(), "though wrong: one NaN; nothing written, all NaN"),
    "sums": (
        lambda g, w, b: bool((g.sum() - w.sum()).abs() <= 0.01 * w.sum().abs()), "though wrong: .*in the wrong order"),
    "norms": (
        lambda g, w, b: bool((g.norm() - w.norm()).abs() <= 0.004 * w.norm()), "though wrong: .*the sign flipped"),
    "each number's relative error": (
        lambda g, w, b: bool(((g - w).abs() <= 0.01 * w.abs()).all()), "though right: .*error with the other sign"),
    "a limit typed in": (
        lambda g, w, b: bool((g - w).norm() <= 0.02 * w.norm()), "though wrong: .*every value 1 % too large"),
    "bf16 in place of the reference": (
        lambda g, w, b: bool((g - b).norm() <= 0.001 * b.norm()), "Refused, though right: the same bits"),
    "less than the error of bf16": (
        lambda g, w, b: bool((g - w).norm() < 1.25 * (b - w).norm()), "Refused, though right: an exact part"),
    "everything": (lambda g, w, b: True, "caught 0 of 20 planted faults, accepted 9 of 9"),
    "nothing": (lambda g, w, b: False, "caught 20 of 20 planted faults, accepted 0 of 9"),
    "a check with an error in it": (lambda g, w, b: g.shap == w.shape, "It raised AttributeError"),
    "a check that says nothing": (lambda g, w, b: None, "expected True or False, got None"),
    "a bool for each element": (lambda g, w, b: (g - w).abs() < 1, "expected True or False, got tensor"),
    "no function": (True, "expected a function"),
}  # fmt: skip


def test_every_case_has_the_error_that_its_name_says():
    cases = exercises._cases()
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        ratio = relative_error(case.got, case.want) if case.got.shape == case.want.shape else None
        allowed = relative_error(case.bf16, case.want)
        hidden = case.name.startswith(("one wrong element", "right values with", "right values in fp64"))
        if case.right:
            assert ratio <= 1.2 * allowed, case.name
        elif not hidden:  # the hidden faults pass a check of the norm
            assert not ratio <= 1.8 * allowed, case.name
        else:
            assert ratio is None or ratio <= allowed, case.name


# ---- decided ----


def margin(reference):
    best = reference.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def by_topk(reference, bf16):
    return margin(reference) > 2 * (bf16 - reference).abs().amax(1)


def by_sorting(reference, bf16):
    best = reference.sort(dim=-1, descending=True).values
    error = (reference - bf16).abs().max(-1).values
    return best[:, 0] - error > best[:, 1] + error


def by_loop(reference, bf16):
    listed = []
    for row, other in zip(reference.tolist(), bf16.tolist(), strict=True):
        second, first = sorted(row)[-2:]
        listed.append(first - second > 2 * max(abs(a - b) for a, b in zip(row, other, strict=True)))
    return listed


DECIDED_WRONG = {
    "one error": lambda r, b: margin(r) > (b - r).abs().amax(1),
    "as much is enough": lambda r, b: margin(r) >= 2 * (b - r).abs().amax(1),
    "bf16's own margin": lambda r, b: margin(b) > 2 * (b - r).abs().amax(1),
    "one error for all steps": lambda r, b: margin(r) > 2 * (b - r).abs().max(),
    "only upwards": lambda r, b: margin(r) > 2 * (b - r).amax(1),
    "the mean error": lambda r, b: margin(r) > 2 * (b - r).abs().mean(1),
    "the error of the best": lambda r, b: margin(r) > 2 * (b - r).abs().gather(1, r.argmax(1, keepdim=True))[:, 0],
    "the same choice": lambda r, b: r.argmax(1) == b.argmax(1),
    "the first two": lambda r, b: (r[:, 0] - r[:, 1]).abs() > 2 * (b - r).abs().amax(1),
    "shifted by a step": lambda r, b: by_topk(r, b).roll(1),
    "always": lambda r, b: torch.ones(len(r), dtype=torch.bool),
}
DECIDED_WRONG = {name: (answer, r"step \d+ of \d+") for name, answer in DECIDED_WRONG.items()} | {
    "margins": (lambda r, b: margin(r), r"expected \d+ bools"),
    "one bool": (lambda r, b: bool(by_topk(r, b).all()), r"expected \d+ bools"),
    "too few": (lambda r, b: by_topk(r, b)[1:], r"expected \d+ bools"),
    "a column": (lambda r, b: by_topk(r, b)[:, None], r"expected \d+ bools"),
    "nothing": (lambda r, b: None, r"expected \d+ bools"),
}


# ---- inputs ----


def seeded(rows, cols):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, cols, generator=generator), torch.randn(cols, generator=generator)


INPUTS_RIGHT = {
    "normal": lambda rows, cols: (torch.randn(rows, cols), torch.randn(cols)),
    "uniform on both sides of zero": lambda rows, cols: (2 * torch.rand(rows, cols) - 1, 2 * torch.rand(cols) - 1),
    "whole numbers": lambda r, c: [torch.randint(-9, 10, (r, c)).float(), torch.randint(-9, 10, (c,)).float()],
}
INPUTS_WRONG = {
    "ones": (lambda r, c: (torch.ones(r, c), torch.ones(c)), "2 of 13 .*\n.*x read backwards"),
    "a constant, another on each call": (
        lambda r, c: (torch.randn(1).expand(r, c).clone(), torch.randn(1).expand(c).clone()), "always the first row"),
    "x uniform": (lambda r, c: (torch.randn(r, c), torch.ones(c)), "\n.*x read backwards"),
    "W uniform": (lambda r, c: (torch.ones(r, c), torch.randn(c)), "\n.*always the first row"),
    "a single one in x": (
        lambda r, c: (torch.randn(r, c), torch.eye(c)[1]), "\n.*the last column not added; negative inputs taken"),
    "positive": (lambda r, c: (torch.rand(r, c), torch.rand(c)), "negative weights taken as positive; negative inputs"),
    "positive x": (lambda r, c: (torch.randn(r, c), torch.rand(c)), "\nNot .*: negative inputs taken as zero\\.\n"),
    "the same each time": (seeded, "\nNot .*the last row not written; nothing written"),
    "counted up": (
        lambda r, c: (torch.arange(r * c).view(r, c).float(), torch.arange(c).float()), "negative weights taken"),
    "NaN": (lambda r, c: (torch.full((r, c), torch.nan), torch.randn(c)), "Not every number is finite"),
    "fp64": (lambda r, c: (torch.randn(r, c).double(), torch.randn(c).double()), "expected fp32"),
    "transposed": (lambda r, c: (torch.randn(c, r), torch.randn(c)), "expected fp32 of"),
    "one tensor": (lambda r, c: torch.randn(r, c), "expected two tensors"),
}  # fmt: skip


FULL_MARKS = "20 of 20 .*9 of 9 "
ACCEPT_RIGHT = {answer.__name__: (answer, FULL_MARKS) for answer in (whole, by_ratios, by_raising, in_numpy)}
DECIDED_RIGHT = {answer.__name__: answer for answer in (by_topk, by_sorting, by_loop)}
DECIDED_RIGHT["in NumPy"] = lambda r, b: by_topk(r, b).numpy()
test_a_check_of_norm_and_worst_element_gets_full_marks, test_a_check_with_a_hole_is_told_what_it_missed = (
    checker_tests((exercises.accept, ACCEPT_RIGHT, ACCEPT_WRONG))
)
test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (exercises.decided, DECIDED_RIGHT, DECIDED_WRONG), (exercises.inputs, INPUTS_RIGHT, INPUTS_WRONG), times=5
)


def test_untouched_runs_no_model(monkeypatch, capsys):
    monkeypatch.setattr(exercises, "_cases", lambda: pytest.fail("a model ran"))
    exercises.accept.check(lambda got, want, bf16: ...)
    assert "not tried yet" in capsys.readouterr().out
