"""How a test starts a child process, so that it does not matter how the tests themselves were started."""

import multiprocessing
import signal
import sys

# As `python -m pytest`, and a second quicker: nbval loads jsonschema, which builds a grammar to check the format "iri"
# where JupyterLab is installed. Nothing here has that format.
PYTEST = [
    sys.executable, "-c", "import sys; sys.modules['rfc3987_syntax'] = None; import pytest; sys.exit(pytest.main())"
]  # fmt: skip


def default_signals(ignored: tuple[signal.Signals, ...] = ()) -> None:
    """In a child, as its preexec_fn: every signal as a terminal starts a program, except the `ignored` ones.

    A child inherits which signals are ignored or blocked: SIGHUP under nohup, SIGINT and SIGQUIT in a script's
    background job.
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
