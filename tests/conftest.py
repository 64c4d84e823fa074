"""What all tests share: poisoned memory, few threads, which tests are skipped here, and why, and a line of what ran."""

import gc
import os
import signal
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import PurePath

import pytest
import torch

# What starts the tests may have blocked signals that they send, and set what changes how programs print: with the first
# two a pipe is taken for a terminal, with the third each warning of a child is its error.
signal.pthread_sigmask(signal.SIG_SETMASK, ())
for variable in ("FORCE_COLOR", "PY_COLORS", "PYTHONWARNINGS"):
    os.environ.pop(variable, None)
torch.set_num_threads(1)  # the models are tiny: a second thread only waits for the first
# PyTorch then fills torch.empty with NaN (integers: their maximum), so a forgotten write fails a test.
torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture
def ctrl_c():
    """A context in which Ctrl-C is pressed after `after_s` seconds, and is heard, whoever started the tests."""

    @contextmanager
    def pressed(*, after_s: float):
        usual = signal.signal(signal.SIGINT, signal.default_int_handler)
        key = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT))
        key.start()
        try:
            yield
        finally:
            key.cancel()  # so that it ends no other test
            signal.signal(signal.SIGINT, usual)

    return pressed


@pytest.fixture
def compiled_quickly(monkeypatch):
    """NVRTC unrolls and optimises less, for kernels with a planted fault; they have cache entries of their own."""
    from cuda.bindings import nvrtc as bindings

    from luce_edu.machine import nvrtc

    run, entry_name, quickly = nvrtc.run, nvrtc.entry_name, "--Ofast-compile=min"

    def run_quickly(sources, defines, arch, kind, options=()):
        return run(sources, defines, arch, kind, [*options, quickly])

    if bindings.nvrtcVersion()[1] >= 13:  # the first that knows the option
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
    """Python's collector leaves alone what is there by now, and looks less often through the rest."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest's own, to stand below its list of failures
def pytest_terminal_summary(terminalreporter):
    """End with what this run did, such as "notebooks 3, cells 83 · planted wrong answers and faults refused: 93 of 93".

    What was collected elsewhere in the same run counts too, so `pytest tests notebooks` counts every cell. A test that
    passes counts as well for what it has recorded as "counted", such as "bad checkpoints refused: 100".
    """
    result = yield
    line = _what_ran(terminalreporter.stats)
    if line:
        terminalreporter.write_line(line)
    return result


def _what_ran(stats) -> str:
    """Counted from the run's reports: "2" of what passed, "2 of 3" where one did not, nothing of what did not run."""
    passed, failed, errors, skipped = (
        {report.nodeid: report for report in stats.get(outcome, ()) if isinstance(report, pytest.TestReport)}
        for outcome in ("passed", "failed", "error", "skipped")
    )
    bad = failed | errors  # an error while tearing down comes on top of a pass
    cells, solutions, exercises, planted = {}, {}, {}, {}  # each {test: what it is a part of}
    counted = Counter()  # by what a passed test says that it counts for
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
