"""The cell magic %%kernel: its options, its outputs, its errors; later cells of a notebook still run."""

import importlib.machinery
import sys
import types
from pathlib import Path

import nbclient
import nbformat
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from kernels import ADD

from luce_edu.exercises.base import WrongAnswer, find_exercise
from luce_edu.exercises.kernel import kernel_exercise
from luce_edu.inline.specs import SPECS
from luce_edu.inline.trial import Verdict
from luce_edu.magic import KernelRefused

ROOT = Path(__file__).resolve().parents[2]
SHORT = ADD.replace("i < n", "i < n - 1")
ONLY_SMALL = """const int row = blockIdx.x * blockDim.x + threadIdx.x;
if (row >= rows || row >= 1000) return;
float sum = 0.0f;
for (int c = 0; c < cols; ++c) sum += to_float(W[row * cols + c]) * x[c];
y[row] = sum;
"""
AGAINST = "%%kernel mine --against torch.add"


@pytest.fixture(scope="module")
def shell():
    shell = InteractiveShell()
    shell.run_line_magic("load_ext", "luce_edu")
    return shell


@pytest.fixture
def run(shell):
    """run(cell) returns the cell's error or None, and its text output."""

    def one(text: str):
        with capture_output() as shown:
            result = shell.run_cell(text)
        said = shown.stdout + "".join(output.data.get("text/plain", "") for output in shown.outputs)
        return result.error_before_exec or result.error_in_exec, said

    return one


@pytest.fixture(scope="module", autouse=True)
def sample():
    """The module luce_edu.exercises.sample, with an exercise whose answer is a kernel."""

    def accept(verdict: Verdict) -> str:
        if verdict.bytes_read > verdict.least_read:
            raise WrongAnswer(f"it reads {verdict.bytes_read:,} bytes; {verdict.least_read:,} are enough.")
        return "Each byte once."

    module = types.ModuleType("luce_edu.exercises.sample")
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    module.add_up = kernel_exercise(
        "add_up", kernel="add_up", against="torch.add", accept=accept, grid="n / block", block=128,
        hint="Look at the guard.", spec="y = x + r", skeleton="const int i = 0;\n// ...\n", hole="// ...",
        budget="5 minutes",
    )  # fmt: skip
    module.number = 3
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


# ---- Verdicts ----


def test_a_right_kernel_shows_its_table(run):
    error, said = run(f"{AGAINST}\n{ADD}")
    assert error is None
    assert "mine is right" in said and "bytes read" in said and "registers per thread, sm_86" in said


@pytest.mark.planted
def test_a_wrong_kernel_raises_with_its_verdict_alone(run):
    error, said = run(f"{AGAINST}\n{SHORT}")
    assert isinstance(error, KernelRefused)
    assert said.startswith("mine is wrong. n 1: ") and "y[0]" in said and "Traceback" not in said


@pytest.mark.planted
def test_wrong_shows_a_mistake_and_raises_on_a_right_kernel(run):
    error, said = run(f"{AGAINST} --wrong\n{SHORT}")
    assert error is None and "mine is wrong" in said
    error, said = run(f"{AGAINST} --wrong\n{ADD}")
    assert isinstance(error, KernelRefused) and "--wrong" in said


def test_as_keeps_the_verdict_also_of_a_wrong_kernel(run, shell):
    run(f"{AGAINST} --as right --grid 'n / block' --block 64 --smem 0 --arch sm_75 --seed 7 --instructions 9999\n{ADD}")
    run(f"{AGAINST} --as wrong\n{SHORT}")
    right, wrong = shell.user_ns["right"], shell.user_ns["wrong"]
    assert isinstance(right, Verdict) and right.passed and right.bytes_read == 32768
    assert (right.block, right.arch) == (64, "sm_75")
    assert isinstance(wrong, Verdict) and not wrong.passed and wrong.kind == "wrong"


def test_profile_adds_modelled_time_and_a_heat_map(run, shell):
    error, said = run(f"{AGAINST} --profile --card 'RTX 3090' --as timed\n{ADD}")
    timed = shell.user_ns["timed"]
    assert error is None and "µs on an RTX 3090, modelled" in said and "of the waits of mine" in said
    assert timed.profile.card == "RTX 3090" and timed.least_bytes == 3 * 4 * 1024
    assert 0 < timed.least_us < timed.us < 2 and timed.peak_share == pytest.approx(timed.least_us / timed.us)
    assert run(f"{AGAINST} --profile --card 'RTX 3090'\n{ADD}")[1] == said, "modelled figures repeat"


UNORDERED = """__shared__ float s[256];
const int i = blockIdx.x * blockDim.x + threadIdx.x;
s[threadIdx.x] = i < n ? x[i] : 0.0f;
if (i < n) y[i] = s[threadIdx.x] + r[i] + 0.0f * s[threadIdx.x ^ 1];
"""


def test_sanitize_adds_a_report_and_is_clean_for_a_right_kernel(run):
    error, said = run(f"{AGAINST} --sanitize\n{ADD}")
    assert error is None and "mine is right" in said and "mine: clean" in said


@pytest.mark.planted
def test_sanitize_names_the_rule_and_the_lines_of_a_wrong_kernel(run):
    error, said = run(f"{AGAINST} --sanitize\n{UNORDERED}")
    assert isinstance(error, KernelRefused) and "race in mine, on shared memory" in said and "cell:4" in said
    assert run(f"{AGAINST} --sanitize --wrong\n{UNORDERED}")[0] is None
    error, said = run(f"{AGAINST} --sanitize --wrong\n{ADD}")
    assert isinstance(error, KernelRefused) and "--wrong" in said


@pytest.mark.planted
def test_sanitize_refuses_a_kernel_whose_results_are_right(run):
    """The kernel adds to an output that nothing has written, and then overwrites it."""
    error, said = run(f"{AGAINST} --sanitize\n{ADD.replace('y[i] =', 'y[i] += 1.0f, y[i] =')}")
    assert isinstance(error, KernelRefused) and "mine is right" in said and "breaks a rule" in str(error)


def test_sanitize_says_nothing_of_a_cell_that_does_not_compile(run):
    error, said = run(f"{AGAINST} --sanitize\ny[0] = q;")
    assert isinstance(error, KernelRefused) and "does not compile" in said and "looks for" not in said


@pytest.mark.parametrize(
    "options, kind, words",
    [("--card T4", UsageError, "add --profile"), ("--profile --card 'RTX 9999'", KernelRefused, "RTX 3090"),
     ("--profile --card T4 --smem 70000", KernelRefused, "shared memory")],
)  # fmt: skip
def test_a_card_that_cannot_be_used_is_refused(run, options, kind, words):
    """A T4 has 64 KB of shared memory per SM; the laptop, on which the check runs, has more."""
    error, said = run(f"{AGAINST} {options}\n{ADD}")
    assert isinstance(error, kind) and words in f"{error}{said}" and "Traceback" not in said


@pytest.mark.planted
def test_a_kernel_that_is_wrong_at_the_timed_size_only_gets_no_time(run, shell):
    error, _ = run(f"%%kernel sums --against F.linear --profile --as sums\n{ONLY_SMALL}")
    assert isinstance(error, KernelRefused) and shell.user_ns["sums"].profile is None
    assert run(f"%%kernel sums --against F.linear\n{ONLY_SMALL}")[0] is None


def test_the_output_of_a_right_kernel_is_the_same_each_time(run):
    assert run(f"{AGAINST}\n{ADD}") == run(f"{AGAINST}\n{ADD}")


@pytest.mark.planted
def test_an_error_has_the_line_of_the_cell(run):
    """Line 1 of the cell is the line of the magic."""
    error, said = run(f"{AGAINST}\n\nfor (int i = 0; i < n; ++i)\n    y[i] = x[i] + q[i];\n")
    assert isinstance(error, KernelRefused) and 'does not compile. cell(4): error: identifier "q" is undefined' in said
    error, said = run(f"{AGAINST}\n\ny[n] = x[0];")
    assert "y[1]" in said and "out of bounds at cell:3" in said


def test_kernels_lists_every_spec_with_its_parameters(run):
    error, said = run("%kernels")
    assert error is None
    for spec in SPECS.values():
        assert f"--against {spec.name}\n" in said and spec.signature in said


# ---- The line ----

BAD_LINES = {
    "": "expected the kernel's name",
    "--against torch.add": "expected the kernel's name",
    "7up --against torch.add": "expected the kernel's name",
    "mine": "expected --against with one of torch.add",
    "mine --against 'torch.add": "No closing quotation",
    "mine --against torch.add --gird 4": "unrecognized arguments: --gird 4",
    "mine --against torch.add --grid n / 4": "unrecognized arguments: / 4",
    "mine --against torch.add --block many": "--block: invalid int value: 'many'",
    "mine --against torch.add --seed -1": "--seed must be from 0 to",
    "mine --against torch.add --seed 4294967296": "--seed must be from 0 to",
    "mine --against torch.add --arch sm_61": "--arch: invalid choice: 'sm_61'",
    "mine --against torch.add --instructions 0": "--instructions must be from 1",
    "mine --against torch.add --instructions 9223372036854775808": "--instructions must be from 1",
    "mine --against torch.add --as 2": "expects the name of a variable, got '2'",
    "mine --against torch.add --as for": "expects the name of a variable, got 'for'",
    "mine --against torch.add --as ''": "expects the name of a variable, got ''",
    "mine --against torch.add --exercise sample.add_up": "give --exercise alone",
    "--exercise sample.add_up --block 64": "give --exercise alone",
}


REFUSED_LINES = {
    "mine --against torch.sub": "unknown reference 'torch.sub'; expected one of torch.add",
    "mine --against torch.add --grid m": "mine cannot be launched. 'm': expected numbers, + - * / and the names n, bl",
    "mine --against torch.add --block 33": "mine cannot be launched. --block 33: expected whole warps",
    "mine --against torch.add --block 0": "mine cannot be launched. --block 0: expected whole warps",
    "mine --against torch.add --smem x": "mine cannot be launched. 'x': expected numbers",
    "--exercise sample.gone": "no exercise 'sample.gone'; expected module.name of luce_edu.exercises",
    "--exercise sample.number": "no exercise 'sample.number'",
    "--exercise gone.add_up": "no exercise 'gone.add_up'",
    "--exercise sample": "no exercise 'sample'",
    "--exercise ../x.y": "no exercise '../x.y'",
    "--exercise .x": "no exercise '.x'",
}


@pytest.mark.parametrize("line", BAD_LINES | REFUSED_LINES)
def test_a_bad_line_is_a_usage_error_and_an_unknown_name_or_size_is_refused(run, line):
    error, said = run(f"%%kernel {line}\n{ADD}")
    assert isinstance(error, UsageError if line in BAD_LINES else KernelRefused), said
    assert (BAD_LINES | REFUSED_LINES)[line] in f"{error}{said}" and "Traceback" not in said


# ---- Exercises ----


def test_an_exercise_is_untouched_right_or_wrong(run, sample):
    cell = "%%kernel --exercise sample.add_up\n"
    assert run(cell + sample.add_up.skeleton) == (None, "add_up: not tried yet\n")
    assert run(cell + ADD) == (None, "add_up: right. Each byte once.\n")
    error, said = run(cell + SHORT)
    assert isinstance(error, WrongAnswer)
    assert said.startswith("WrongAnswer: add_up is wrong") and said.strip().endswith("Look at the guard.")
    assert "Traceback" not in said


WRONG_ANSWERS = {
    "no guard": ("y[blockIdx.x * blockDim.x + threadIdx.x] = 0;\n", "out of bounds.*Look at the guard"),
    "too many bytes": (ADD.replace("x[i] +", "x[i] + 0 * x[n - 1 - i] +"), "^it reads 49,152 bytes; 32,768 are enough"),
    "not C++": ("y[0] = nothing;\n",
        r'^add_up does not compile. cell\(2\): error: identifier "nothing" is undefined[^L]*$'),
    "no text": (3, r"expected CUDA C\+\+ as text, got int"),
}


@pytest.mark.planted
@pytest.mark.parametrize("what", WRONG_ANSWERS)
def test_a_wrong_answer_is_refused_with_a_hint_where_it_helps(sample, what):
    answer, said = WRONG_ANSWERS[what]
    with pytest.raises(WrongAnswer, match=f"(?s){said}"):
        sample.add_up.check(answer)


def test_an_exercise_is_found_by_its_path(sample):
    assert find_exercise("sample.add_up") is sample.add_up


# ---- A notebook ----


def test_a_notebook_goes_on_after_every_kind_of_refusal(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = {
        "%load_ext luce_edu": None,
        f"{AGAINST}\n{SHORT}": "mine is wrong",
        f"{AGAINST}\ny[n] = 0;": "mine fails",
        f"{AGAINST} --instructions 1000\nfor (;;) y[0] = 0;": "mine does not end",
        f"{AGAINST}\nint x;": "mine does not compile",
        f"{AGAINST} --block 3\n{ADD}": "mine cannot be launched",
        f"{AGAINST} --wrong\n{ADD}": "--wrong",
        "%%kernel --exercise none.none\n;": "'none.none'",
        f"%%kernel\n{ADD}": "UsageError",
        f"{AGAINST} --as verdict\n{ADD}": None,
        "assert verdict.passed": None,
    }
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    nbclient.NotebookClient(notebook, kernel_name="python3", allow_errors=True, timeout=120).execute()
    for cell, said in zip(notebook.cells, cells.values(), strict=True):
        told = []
        for output in cell.outputs:
            if output.output_type == "error":
                told += output.traceback
            elif output.output_type == "stream" and output.name == "stderr":
                told.append(output.text)
        told = "\n".join(told)
        assert (said in told and len(told.splitlines()) <= 12) if said else told == "", f"{cell.source}\n{told}"
