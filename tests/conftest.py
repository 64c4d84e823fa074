"""Shared by all tests: poisoned memory, one thread, reasons for skips, and a last line that counts what ran."""

import gc
import os
import signal
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import PurePath

import pytest
import torch

# The parent process may have blocked signals that tests send, and set these variables. With the first two, a child
# treats a pipe as a terminal; with the third, a warning is an error in a child.
signal.pthread_sigmask(signal.SIG_SETMASK, ())
for variable in ("FORCE_COLOR", "PY_COLORS", "PYTHONWARNINGS"):
    os.environ.pop(variable, None)
torch.set_num_threads(1)  # the models are so small that a second thread does not help
# With this, PyTorch fills torch.empty with NaN, or an integer's maximum, so that a forgotten write fails a test.
torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture
def ctrl_c():
    """A context that sends SIGINT, as Ctrl-C does, after `after_s` seconds, also where the parent ignores it."""

    @contextmanager
    def pressed(*, after_s: float):
        usual = signal.signal(signal.SIGINT, signal.default_int_handler)
        key = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT))
        key.start()
        try:
            yield
        finally:
            key.cancel()  # else it could interrupt the next test
            signal.signal(signal.SIGINT, usual)

    return pressed


@pytest.fixture
def compiled_quickly(monkeypatch):
    """NVRTC optimises less, for kernels with a planted fault. They have cache entries of their own."""
    from cuda.bindings import nvrtc as bindings

    from luce_edu.machine import nvrtc

    run, entry_name, quickly = nvrtc.run, nvrtc.entry_name, "--Ofast-compile=min"

    def run_quickly(sources, defines, arch, kind, options=()):
        return run(sources, defines, arch, kind, [*options, quickly])

    if bindings.nvrtcVersion()[1] >= 13:  # older versions lack the option
        monkeypatch.setattr(nvrtc, "run", run_quickly)
        monkeypatch.setattr(nvrtc, "entry_name", lambda *args: entry_name(*args, quickly))


def pytest_collection_modifyitems(items):
    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "no CUDA GPU here"
    if os.environ.get("LUCE_FULL") != "1":
        reasons["full"] = "full-size or long; set LUCE_FULL=1"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {reason}"))


def pytest_collection_finish():
    """Python's garbage collector skips the objects that exist now, and runs less often for the rest."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest's own, so that the line follows its list of failures
def pytest_terminal_summary(terminalreporter):
    """Write a last line such as "notebooks 3, cells 83 · planted wrong answers and faults refused: 93 of 93".

    It counts the whole run, so with `pytest tests notebooks` every cell too. A test that passes also adds one to each
    name that it has recorded as "counted", as in "bad checkpoints refused: 100".
    """
    result = yield
    line = _what_ran(terminalreporter.stats)
    if line:
        terminalreporter.write_line(line)
    return result


def _what_ran(stats) -> str:
    """The line, from the run's reports: "2" where all passed, "2 of 3" where one failed, nothing where none ran."""
    passed, failed, errors, skipped = (
        {report.nodeid: report for report in stats.get(outcome, ()) if isinstance(report, pytest.TestReport)}
        for outcome in ("passed", "failed", "error", "skipped")
    )
    bad = failed | errors  # a test that passed may have an error in its teardown
    cells, solutions, exercises, planted = {}, {}, {}, {}  # each {test: its notebook, exercise or itself}
    counted = Counter()
    for test, report in (passed | bad).items():
        path = PurePath(test.partition("::")[0])
        if path.suffix == ".ipynb":
            (solutions if path.parent.name == "solutions" else cells)[test] = path
        for name, value in report.user_properties:
            if name == "exercise":
                exercises[test] = value
            if name == "counted" and test not in bad:
                counted[value] += 1
        if "planted" in report.keywords:
            planted[test] = test

    def good(parts: dict) -> str:
        spoilt = {part for test, part in parts.items() if test in bad}
        every = set(parts.values())
        return f"{len(every) - len(spoilt)} of {len(every)}" if spoilt else f"{len(every)}"

    line = []
    if cells:
        line.append(f"notebooks {good(cells)}, cells {good({test: test for test in cells})}")
    if solutions:
        line.append(f"solutions {good(solutions)}")
    if exercises:
        line.append(f"exercises {good(exercises)}")
    if planted:
        left_out = sum("planted" in report.keywords for report in skipped.values())
        line.append(
            f"planted wrong answers and faults refused: {len(planted.keys() - bad.keys())} of {len(planted)}"
            + (f" ({left_out} more skipped)" if left_out else "")
        )
    line += [f"{what}: {count}" for what, count in counted.items()]
    return " · ".join(line)
