"""Starts child processes whose behaviour does not depend on how the tests were started."""

import multiprocessing
import signal
import sys

# `python -m pytest`, and a second quicker. nbval loads jsonschema, which builds a grammar for the format "iri" where
# JupyterLab is installed. No notebook has that format.
PYTEST = [
    sys.executable, "-c", "import sys; sys.modules['rfc3987_syntax'] = None; import pytest; sys.exit(pytest.main())"
]  # fmt: skip


def default_signals(ignored: tuple[signal.Signals, ...] = ()) -> None:
    """For a child's preexec_fn: handle every signal as in a program started from a terminal, except the `ignored` ones.

    A child inherits ignored and blocked signals, such as SIGHUP under nohup, or SIGINT in a script's background job.
    """
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def in_two_processes(function) -> None:
    """Call a function in two forked processes at once; both must end well."""
    context = multiprocessing.get_context("fork")
    pair = [context.Process(target=function) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [0, 0]
