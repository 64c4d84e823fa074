"""The specs that a kernel is checked against: each accepts a plain kernel, and has inputs that show a wrong one."""

import pytest
import torch
from kernels import RIGHT, whole

from luce_edu.inline.specs import SPECS, evaluate, find_spec
from luce_edu.inline.trial import Attempt, try_kernel
from luce_edu.lab import sanitize
from luce_edu.verification import relative_error


def test_every_spec_has_a_kernel_here():
    assert set(SPECS) <= set(RIGHT)


@pytest.mark.parametrize("form", ["body", "whole"])
@pytest.mark.parametrize("name", SPECS)
def test_a_plain_kernel_passes(name, form):
    """Also with another name, another block, and parameters in another order."""
    spec, (body, order) = SPECS[name], RIGHT[name]
    if form == "body":
        attempt = Attempt("plain", name, body)
    else:  # half the threads, except where each thread has one element of a head
        block = None if spec.grid == "heads" else spec.block // 2
        attempt = Attempt("another", name, whole("another", spec, body, order), block=block)
    verdict = try_kernel(attempt)
    assert verdict.passed, verdict
    assert verdict.shapes == len(spec.shapes) and verdict.shape == spec.shapes[-1]
    assert verdict.bytes_read >= verdict.least_read
    assert verdict.bytes_written >= verdict.least_written > 0
    assert verdict.traffic and set(verdict.traffic) <= set(spec.parameters)
    if form == "body":
        assert (found := sanitize(verdict, orders=len(spec.shapes))).clean, str(found)


def random(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: torch.randn(size, generator=generator)


@pytest.mark.parametrize("name", SPECS)
def test_inputs_are_of_the_shape_fresh_and_unlike_their_neighbours(name):
    spec = SPECS[name]
    for shape in spec.shapes:
        inputs, others = spec.make(shape, random(0)), spec.make(shape, random(1))
        assert set(inputs) | set(spec.outputs(shape)) | set(shape) == set(spec.parameters)
        for key, value in inputs.items():
            if not isinstance(value, torch.Tensor):
                continue
            assert value.is_contiguous() and value.isfinite().all()
            assert not torch.equal(value, others[key])
            if name != "uniform.rms_norm" and value.dtype == torch.float32:  # bf16 has few values
                assert value.unique().numel() > 0.99 * value.numel(), f"{key} of {shape}"


@pytest.mark.parametrize("name", SPECS)
def test_the_truth_covers_every_output_and_changes_no_input(name):
    spec = SPECS[name]
    for shape in spec.shapes:
        inputs = spec.make(shape, random(0))
        before = {key: value.clone() for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        truth = spec.truth(inputs, shape)
        changed = {key for key, kind in spec.parameters.items() if kind == "float*"}
        assert set(truth) == changed
        assert all(torch.equal(inputs[key], value) for key, value in before.items())
        for key, size in spec.outputs(shape).items():
            assert truth[key].shape == size and truth[key].isfinite().all()
        for key in changed & set(inputs):
            assert relative_error(inputs[key], truth[key]) > 100 * spec.limit, f"{key} may be left as it is"


@pytest.mark.parametrize("name", SPECS)
def test_shapes_hold_a_small_one_odd_ones_and_the_reported_one_last(name):
    sizes = [tuple(shape.values()) for shape in SPECS[name].shapes]
    assert len(sizes) >= 4 and len(set(sizes)) == len(sizes)
    assert min(map(max, sizes[:-1])) <= 32
    assert any(size % 2 for shape in sizes for size in shape if size > 1)


def test_an_unknown_spec_is_an_error_with_those_there_are():
    with pytest.raises(ValueError, match=r"'rms'.* reference.rms_norm, "):
        find_spec("rms")


NAMES = {"n": 1000, "block": 256}


@pytest.mark.parametrize(
    "expression, value",
    [
        ("n / block", 4), ("n", 1000), ("7", 7), ("(n + block - 1) / block", 5), ("4 * n", 4000), ("n - block", 744),
        ("n / 3 * 3", 1000), ("n / 1000", 1), ("0", 0), ("2 - 4", -2),
    ],
)  # fmt: skip
def test_an_expression_is_evaluated_and_rounded_up(expression, value):
    assert evaluate(expression, NAMES) == value


BAD_EXPRESSIONS = [
    "", " ", "m", "n +", "n / 0", "n ** 2", "n // 2", "-n", "1.5 * n", "True", "'n'", "n, n", "n[0]", "abs(n)",
    "n.real", "__import__('os')", "(n for n in n)", "9" * 400, "9" * 300 + " * " + "9" * 300, "n\0",
    "(" * 500 + "n" + ")" * 500, "n" + " + n" * 20_000,
]  # fmt: skip


@pytest.mark.parametrize("expression", BAD_EXPRESSIONS, ids=range(len(BAD_EXPRESSIONS)))
def test_any_other_expression_is_refused_with_the_names(expression):
    with pytest.raises(ValueError, match="expected numbers, .* and the names n, block"):
        evaluate(expression, NAMES)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_timed_shape_is_one_that_the_spec_serves(spec):
    assert spec.timed.keys() == spec.shapes[0].keys()
    inputs = spec.make(spec.timed, lambda *size: torch.randn(size))
    for name, want in spec.truth(inputs, spec.timed).items():
        size = spec.outputs(spec.timed).get(name) or inputs[name].shape
        assert want.shape == torch.Size(size) and want.isfinite().all()
