"""What runs apart may crash, hang or be interrupted: the next call works, and nothing of it stays behind.

Functions go by name, so these tests send Python's own: eval and exec of a text.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from luce_edu.inline import apart
from luce_edu.inline.apart import Crashed, TimedOut, run_apart

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20  # generous: what ends by itself takes milliseconds


def apart_exec(code: str, seconds: float = SECONDS) -> str:
    """Run `code` apart; what it printed."""
    return run_apart(exec, code, time_limit=seconds).printed


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether a process ends soon; a zombie has ended."""
    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where these tests inherit that SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def in_a_moment(action, *args, until: Path) -> threading.Thread:
    """Do it once the file `until` is there."""

    def wait():
        deadline = time.monotonic() + SECONDS
        while not until.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        action(*args)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def hang(started: Path) -> str:
    """Code that says its process in the file `started`, and never ends; so does a program that it starts."""
    return (
        "import os, subprocess, sys\n"
        "program = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(started)!r} + '.new', 'w').write(f'{{os.getpid()}} {{program.pid}}')\n"
        f"os.rename({str(started)!r} + '.new', {str(started)!r})\n"
        "while True: pass"
    )


# ---- Values, errors, words ----


def test_a_call_returns_its_value_from_another_process_each_time():
    pids = {run_apart(os.getpid, time_limit=SECONDS).value for _ in range(3)}
    assert len(pids) == 3 and os.getpid() not in pids


def test_a_call_is_a_matter_of_milliseconds():
    run_apart(os.getpid, time_limit=SECONDS)
    started = time.monotonic()
    run_apart(os.getpid, time_limit=SECONDS)
    assert time.monotonic() - started < 0.5  # 0.01 s on two idle cores


def test_what_a_function_raises_is_raised_here():
    with pytest.raises(ValueError, match="of its own"):
        apart_exec("raise ValueError('of its own')")
    with pytest.raises(ZeroDivisionError):
        run_apart(eval, "1 / 0", time_limit=SECONDS)


def test_a_value_that_cannot_travel_is_an_error_and_not_a_hang():
    with pytest.raises(Exception, match="pickle"):
        run_apart(eval, "lambda: 0", time_limit=SECONDS)
    assert run_apart(eval, "6 * 7", time_limit=SECONDS).value == 42


def test_pythons_and_cs_words_are_printed():
    said = apart_exec("import ctypes; print('Python'); ctypes.CDLL(None).printf(b'C\\n')")
    assert sorted(said.split()) == ["C", "Python"]


def test_a_flood_of_words_is_cut_and_does_not_fill_the_disk():
    written = run_apart(eval, "__import__('os').write(1, bytes(10**9))", time_limit=SECONDS)
    assert written.value <= 64 * 2**20 and len(written.printed) == apart.PRINTED_CHARACTERS


def test_the_callers_environment_arrives(monkeypatch):
    monkeypatch.setenv("LUCE_CACHE", "/nowhere")
    monkeypatch.setenv("CXX", "some-compiler")
    assert run_apart(os.getenv, "LUCE_CACHE", time_limit=SECONDS).value == "/nowhere"
    monkeypatch.delenv("CXX")
    assert run_apart(os.getenv, "CXX", time_limit=SECONDS).value is None


def test_calls_from_two_threads_get_their_own_answers():
    answers = {}

    def ask(number):
        for i in range(5):
            answers[number, i] = run_apart(eval, f"{number} * {i}", time_limit=SECONDS).value

    threads = [threading.Thread(target=ask, args=(number,)) for number in (10, 20)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert answers == {(number, i): number * i for number in (10, 20) for i in range(5)}


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e12])
def test_a_time_limit_that_is_none_is_refused(seconds):
    with pytest.raises(ValueError, match="time limit must be above 0 and at most 3600 s"):
        run_apart(os.getpid, time_limit=seconds)


# ---- Bad ends ----

DEATHS = {
    "abort": ("import os; os.abort()", "SIGABRT"),
    "exit": ("import ctypes; ctypes.CDLL(None).exit(0)", "exit status 0"),
    "exit of Python": ("import os; os._exit(3)", "exit status 3"),
    "null": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "killed": ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
}


@pytest.mark.planted
@pytest.mark.parametrize("how", DEATHS)
def test_a_death_is_named_and_the_next_call_works(how):
    code, word = DEATHS[how]
    with pytest.raises(Crashed, match=word) as death:
        apart_exec("import ctypes; ctypes.CDLL(None).printf(b'last words\\n')\n" + code)
    assert "last words" in death.value.printed
    assert run_apart(eval, "6 * 7", time_limit=SECONDS).value == 42


@pytest.mark.planted
def test_a_hang_is_stopped_in_time_with_all_that_it_started(tmp_path):
    started = time.monotonic()
    with pytest.raises(TimedOut, match="not ended after 1 s") as stopped:
        apart_exec("print('begun', flush=True)\n" + hang(tmp_path / "pids"), seconds=1)
    assert time.monotonic() - started < 5
    assert stopped.value.printed == "begun\n"
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())
    assert run_apart(eval, "6 * 7", time_limit=SECONDS).value == 42


@pytest.mark.planted
@pytest.mark.parametrize("end", ["", "import os; os.abort()", "while True: pass"])
def test_temporary_files_go_with_their_process(end):
    code = "import tempfile; print(tempfile.mkdtemp(), tempfile.gettempdir(), flush=True)\n"
    try:
        said = apart_exec(code + end, seconds=0.5 if end else SECONDS)
    except Crashed as error:
        said = error.printed
    folder, around = said.split()
    assert not Path(folder).exists() and not Path(around).exists()
    assert Path(around).parent == Path(tempfile.gettempdir())


def test_an_interrupted_call_ends_and_the_next_one_gets_its_own_answer(tmp_path, interruptible):
    thread = in_a_moment(os.kill, os.getpid(), signal.SIGINT, until=tmp_path / "pids")
    with pytest.raises(KeyboardInterrupt):
        apart_exec(hang(tmp_path / "pids"))
    thread.join()
    assert run_apart(eval, "6 * 7", time_limit=SECONDS).value == 42
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


@pytest.mark.planted
def test_a_server_that_is_killed_between_calls_is_replaced():
    run_apart(os.getpid, time_limit=SECONDS)
    first = apart._server.process.pid
    os.kill(first, signal.SIGKILL)
    apart._server.process.wait()
    assert run_apart(os.getppid, time_limit=SECONDS).value not in (first, os.getpid())


@pytest.mark.planted
def test_a_server_that_is_killed_during_a_call_is_a_crash_that_says_so(tmp_path):
    run_apart(os.getpid, time_limit=SECONDS)
    thread = in_a_moment(os.kill, apart._server.process.pid, signal.SIGKILL, until=tmp_path / "pids")
    with pytest.raises(Crashed, match="is gone .*run the cell again"):
        apart_exec(hang(tmp_path / "pids"))
    thread.join()
    child, program = map(int, (tmp_path / "pids").read_text().split())
    os.kill(program, signal.SIGKILL)  # a compiler would end by itself
    assert gone(child)
    assert run_apart(eval, "6 * 7", time_limit=SECONDS).value == 42


# ---- The caller's end ----


def test_nothing_stays_behind_when_the_caller_exits_or_is_killed(tmp_path):
    calls = {
        "exits": "print(run_apart(os.getppid, time_limit=60).value)",
        "killed": f"print(run_apart(os.getppid, time_limit=60).value, flush=True)\n"
        f"run_apart(exec, {hang(tmp_path / 'pids')!r}, time_limit=600)",
    }
    callers = {
        how: subprocess.Popen(
            [sys.executable, "-c", f"import os\nfrom luce_edu.inline.apart import run_apart\n{code}"],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for how, code in calls.items()
    }  # fmt: skip
    in_a_moment(callers["killed"].kill, until=tmp_path / "pids").join()
    servers = [int(caller.communicate()[0]) for caller in callers.values()]
    assert [caller.returncode for caller in callers.values()] == [0, -signal.SIGKILL]
    assert all(gone(int(pid)) for pid in [*servers, *(tmp_path / "pids").read_text().split()])
