"""Run a function in a process of its own, which may crash or hang without taking the caller with it.

A server that has imported PyTorch once forks a child for each call, so a call costs milliseconds and not the seconds
that an import takes. Fork is safe there: the server has one thread and has never launched a kernel.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

PRINTED_CHARACTERS = 10_000  # of what a child prints; a loop of printf could fill the notebook
LARGEST_FILE = 64 * 2**20  # bytes that a child may write to one file; such a loop could fill the disk, too
LONGEST = 3600.0  # seconds that a call may ask for
PATIENCE = 5.0  # seconds for a server to end its child and itself


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
    """Call `function(*args)` in a child process; time_limit in seconds, at most LONGEST.

    function  of a module, so that the child finds it by name; it and its result go through pickle
    Raises Crashed or TimedOut, or ValueError for another time limit; what the function itself raises is raised here.
    """
    if not 0 < time_limit <= LONGEST:
        raise ValueError(f"the time limit must be above 0 and at most {LONGEST:g} s, got {time_limit:g}")
    with _lock:
        server = _running_server()
        try:
            server.connection.send((function, args, dict(os.environ), time_limit))
            outcome = server.connection.recv()
        except (EOFError, OSError) as error:
            server.stop()
            gone = f"The process that runs kernels is gone ({type(error).__name__}); run the cell again."
            raise Crashed(gone) from None
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
        self.connection.close()  # it sees that its caller is gone, and tidies up
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_lock = threading.Lock()
_server: _Server | None = None


def _running_server() -> _Server:
    global _server
    if _server is None or _server.process.poll() is not None:
        _server = _Server()
    return _server


# ---- In the server ----

PR_SET_PDEATHSIG = 1  # linux/prctl.h
IOLBF = 1  # stdio.h


def serve(descriptor: int) -> None:
    """Answer calls until the caller is gone."""
    import torch

    import luce_edu.inline.trial  # noqa: F401 (what the children will need)

    torch.set_num_threads(1)
    connection = Connection(descriptor)
    while True:
        try:
            function, args, environment, time_limit = connection.recv()
            os.environ.clear()
            os.environ.update(environment)
            connection.send(_fork(function, args, time_limit, connection))
        except (EOFError, OSError):
            return


def _fork(function: Callable, args: tuple, time_limit: float, caller: Connection) -> Outcome | BaseException:
    reading, writing = os.pipe()
    # The folder is the server's, as a child that is stopped removes nothing.
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            _child(function, args, Connection(writing, readable=False), said.fileno(), scratch)
        os.close(writing)
        with Connection(reading, writable=False) as result:
            # The caller has nothing to say now: if it is heard, it is gone.
            ended = wait([result, caller], time_limit)
            try:
                value = result.recv() if result in ended else None
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


def _child(function: Callable, args: tuple, connection: Connection, said: int, scratch: str) -> None:
    os.setpgid(0, 0)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # where the server is killed, it can end nobody
    os.dup2(said, 1)
    os.dup2(said, 2)
    # Written line by line, as a kernel that crashes empties no buffer.
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, IOLBF, ctypes.c_size_t(0))
    sys.stdout.reconfigure(line_buffering=True)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = LARGEST_FILE if most == resource.RLIM_INFINITY else min(LARGEST_FILE, most)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, most))
    tempfile.tempdir = os.environ["TMPDIR"] = scratch
    try:
        answer = ("value", function(*args))
        pickle.dumps(answer)
    except BaseException as error:
        answer = ("error", error)
    sys.stdout.flush()
    libc.fflush(None)
    connection.send(answer)
    os._exit(0)  # no exit handlers of the server
