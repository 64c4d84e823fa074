"""How a test starts a child process, so that it does not matter how the tests themselves were started."""

import signal


def default_signals(ignored: tuple[signal.Signals, ...] = ()) -> None:
    """In a child, as its preexec_fn: every signal as a terminal starts a program, except the `ignored` ones.

    A child inherits which signals are ignored or blocked: SIGHUP under nohup, SIGINT and SIGQUIT in a script's
    background job.
    """
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
