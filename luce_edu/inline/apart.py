"""Run a function in a process of its own, which may crash or hang without taking the caller with it.

A server that has imported PyTorch once forks a child for each call, so a call costs milliseconds and not the seconds
that an import takes. Fork is safe there: the server has one thread and has never launched a kernel.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PRINTED_CHARACTERS = 10_000  # of what a child prints; a loop of printf could fill the notebook


class Crashed(RuntimeError):
    """The child died of a signal, such as SIGSEGV; `printed` is what it had said."""

    def __init__(self, message: str, printed: str = ""):
        super().__init__(message)
        self.printed = printed


class TimedOut(Crashed):
    """The child had not ended within the time limit."""


@dataclass(frozen=True)
class Outcome:
    """What a call returned, and what it and its kernels printed."""

    value: Any
    printed: str


def run_apart(function: Callable, *args, time_limit: float) -> Outcome:
    """Call `function(*args)` in a child process; time_limit in seconds.

    function  of a module, so that the child finds it by name; it and its result go through pickle
    Raises Crashed or TimedOut; what the function itself raises is raised here.
    """
    with _lock:
        server = _running_server()
        try:
            server.connection.send((function, args, dict(os.environ), time_limit))
            outcome = server.connection.recv()
        except (EOFError, OSError) as error:
            server.stop()
            raise Crashed(f"The process that runs kernels is gone ({type(error).__name__}); run the cell again.") from None
        except BaseException:  # the cell was interrupted: the answer to this call must not be taken for the next one's
            server.stop()
            raise
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def warm_up() -> None:
    """Start the server, without waiting for it."""
    with _lock:
        _running_server()


class _Server:
    def __init__(self):
        ours, theirs = socket.socketpair()
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from luce_edu.inline.apart import serve; serve({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal of a notebook server is not for this process
        )
        theirs.close()
        self.connection = Connection(ours.detach())

    def stop(self) -> None:
        """End it, and the child that it may be waiting for."""
        global _server
        _server = None
        self.connection.close()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


_lock = threading.Lock()
_server: _Server | None = None


def _running_server() -> _Server:
    global _server
    if _server is None or _server.process.poll() is not None:
        _server = _Server()
    return _server


# ---- In the server ----


def serve(descriptor: int) -> None:
    """Answer calls until the caller is gone."""
    import torch

    import luce_edu.inline.trial  # noqa: F401 (what the children will need)

    torch.set_num_threads(1)
    connection = Connection(descriptor)
    while True:
        try:
            function, args, environment, time_limit = connection.recv()
        except EOFError:
            return
        os.environ.clear()
        os.environ.update(environment)
        connection.send(_fork(function, args, time_limit))


def _fork(function: Callable, args: tuple, time_limit: float) -> Outcome | BaseException:
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            _child(function, args, Connection(writing, readable=False), said.fileno())
        os.close(writing)
        with Connection(reading, writable=False) as result:
            ended = result.poll(time_limit)
            try:
                value = result.recv() if ended else None
            except EOFError:  # it died before it had an answer
                value = None
        for victim in (os.kill, os.killpg):  # its compiler too; the group may not be made yet
            try:
                victim(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        printed = said.read(PRINTED_CHARACTERS).decode(errors="replace")
    if not ended:
        return TimedOut(f"It had not ended after {time_limit:g} s, and was stopped.", printed)
    if value is None:
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return Crashed(f"It took its process with it ({how}).", printed)
    kind, content = value
    return Outcome(content, printed) if kind == "value" else content


def _child(function: Callable, args: tuple, connection: Connection, said: int) -> None:
    os.setpgid(0, 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    try:
        answer = ("value", function(*args))
        pickle.dumps(answer)
    except BaseException as error:
        answer = ("error", error)
    sys.stdout.flush()
    connection.send(answer)
    os._exit(0)  # no exit handlers of the server
