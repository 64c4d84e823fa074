"""Set the power limit of a GPU for the length of a `with` block. Nothing else in the project changes a GPU's setting.

    with PowerLimit(200, allow=True):
        ...

Nothing is set without allow=True and the driver's permission. The earlier limit is restored at the end of the block, on
an exception, Ctrl-C, a signal that ends the process, and at the interpreter's exit, as when a kernel is restarted. A
process may also be killed without time to restore. Therefore a marker file is written before the limit is set, and says
what to restore; the next PowerLimit on that GPU, or `luce-edu sweep --restore`, does it.

One process at a time holds a GPU, by a lock on a file beside the marker. The operating system releases the lock when
the process ends. So a marker whose lock is free is a leftover, and one whose lock is held belongs to a live process.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, ModuleType

from luce_edu.errors import NotMeasured
from luce_edu.measure.nvml import Sensors
from luce_edu.measure.schema import Positive, read
from luce_edu.paths import cache_dir

TAKEN_W = 0.5  # a limit that differs by more than this is another one
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # by default these end Python without its exit hooks


class NotPermitted(NotMeasured):
    """The caller did not allow the limit, or the driver does not permit this user to set it. Nothing was set."""


@dataclass(frozen=True)
class Change:
    """A limit that was set, as stored in its marker file: the new and the earlier watts, and the process."""

    uuid: str
    limit_w: Positive
    before_w: Positive
    pid: int

    @property
    def path(self) -> Path:
        """The path of the marker file."""
        return _marker(self.uuid)

    def command(self, limit_w: float) -> str:
        """Return the shell command with which an administrator sets a limit."""
        return f"sudo nvidia-smi -i {self.uuid} -pl {limit_w:g}"

    def __str__(self) -> str:
        return f"{self.uuid}: power limit of {self.limit_w:g} W, before that {self.before_w:g} W"


@dataclass(frozen=True)
class Leftover:
    """A marker file that was found. change: None if it cannot be read; said: one line about it.

    alive  its process is running, so the limit is left alone
    done   the limit was restored, or needs no restoring
    """

    path: Path
    change: Change | None
    said: str
    alive: bool = False
    done: bool = False


class PowerLimit:
    """A power limit of `limit_w` watts for the GPU of `sensors` (None: PyTorch's current one), as a context manager.

    Raises ValueError, with the range, for a limit outside it. Raises NotPermitted without allow=True or without
    permission, with the command for an administrator. Raises NotMeasured without NVML, for a GPU that has no limit or
    that refuses this one, and if another process or an enclosing block has set one. In all cases the GPU is as before.
    Outside the main thread, signals cannot be caught; then only the marker file restores the limit.
    """

    def __init__(self, limit_w: float, *, sensors: Sensors | None = None, allow: bool = False):
        self.limit_w, self.sensors = limit_w, Sensors.open() if sensors is None else sensors
        self.change: Change | None = None
        self._lock: int | None = None
        self._refused = False  # by the driver, so that there is nothing to restore
        low, high = self.sensors.power_limit_range_w()
        if not low <= limit_w <= high:
            raise ValueError(f"power limit: this GPU takes {low:g} to {high:g} W, got {limit_w:g}")
        if allow is not True:
            raise NotPermitted(f"{self}: not set, as allow=True was not given")

    def __str__(self) -> str:
        return f"power limit of {self.limit_w:g} W"

    def __enter__(self) -> PowerLimit:
        global _active
        if _active is not None:
            raise NotMeasured(f"{_active.change}: this process has already set it; leave that block first")
        uuid = self.sensors.uuid()
        try:
            self._lock = _hold(uuid)
            if _marker(uuid).exists():
                leftover = _put_back_leftover(_marker(uuid), self.sensors.nvml)
                if not leftover.done:
                    raise NotMeasured(leftover.said)
            self.change = Change(uuid, self.limit_w, self.sensors.chosen_power_limit_w(), os.getpid())
            self._refused = False
            _active = self
            _catch_signals()
            _write(self.change)
            self._apply()
            self.check()
        except BaseException:  # also Ctrl-C, as `with` does not call __exit__ if __enter__ fails
            self.restore()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self.restore()

    def restore(self) -> None:
        """Restore the earlier limit; further calls do nothing. Raises NotMeasured, and keeps the marker, if refused."""
        global _active
        try:
            if _active is self:
                with _signals_wait():
                    try:
                        if self._refused:
                            self.change.path.unlink(missing_ok=True)
                        else:
                            _put_back(self.change, self.sensors.nvml)
                    finally:
                        _active = None
        finally:
            if _active is None:
                _leave_signals()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def check(self) -> None:
        """Raise NotMeasured if the GPU reports another limit than this one."""
        now = self.sensors.chosen_power_limit_w()
        if not _is(now, self.limit_w):
            raise NotMeasured(f"{self}: the GPU reports a limit of {now:g} W")

    def _apply(self) -> None:
        nvml = self.sensors.nvml
        try:
            _set(self.sensors, self.limit_w)
        except nvml.NVMLError_NoPermission:
            self._refused = True
            raise NotPermitted(
                "no permission to set a power limit; an administrator would type: "
                f"{self.change.command(self.limit_w)}, and to go back: {self.change.command(self.change.before_w)}"
            ) from None
        except nvml.NVMLError as error:
            self._refused = isinstance(error, nvml.NVMLError_NotSupported | nvml.NVMLError_InvalidArgument)
            raise NotMeasured(f"{self}: the driver refuses it ({error})") from None


def _set(sensors: Sensors, limit_w: float) -> None:
    """Set a limit. Raises what NVML raises."""
    sensors.nvml.nvmlDeviceSetPowerManagementLimit(sensors.handle, round(1e3 * limit_w))


def _is(now_w: float, limit_w: float) -> bool:
    return abs(now_w - limit_w) <= TAKEN_W


# Leftovers.


def leftovers() -> list[Leftover]:
    """Return what the marker files say, also those of live processes. Reads only, and does not raise for a bad file."""
    return [_look_at(path) for path in _markers()]


def restore_leftovers(nvml: ModuleType | None = None) -> list[Leftover]:
    """Restore the limits that ended processes have left, and return what was done. A failure does not stop the rest."""
    results = []
    for path in _markers():
        found = _look_at(path)
        if found.change is not None and not found.alive:
            try:
                lock = _hold(found.change.uuid)
            except NotMeasured as error:
                found = Leftover(path, found.change, str(error), alive=True)
            else:
                try:
                    found = _put_back_leftover(path, nvml)
                finally:
                    os.close(lock)
        results.append(found)
    return results


def _put_back_leftover(path: Path, nvml: ModuleType | None) -> Leftover:
    """Restore the limit of a GPU that this process holds."""
    change = None
    try:
        change = _read(path)
        return Leftover(path, change, f"{change.uuid}: {_put_back(change, nvml)}", done=True)
    except NotMeasured as error:
        return Leftover(path, change, str(error))


def _put_back(change: Change, nvml: ModuleType | None) -> str:
    """Undo a change, delete its marker, and return what was done. Raises NotMeasured if it cannot be undone."""
    failed = f"power limit of {change.uuid} not put back to {change.before_w:g} W"
    remedy = f"an administrator would type: {change.command(change.before_w)}"
    try:
        sensors = Sensors.open(change.uuid, nvml)
        # Another program may have set another limit since, or the machine may have been restarted.
        ours = _is(sensors.chosen_power_limit_w(), change.limit_w)
        if ours and change.before_w != change.limit_w:
            _set(sensors, change.before_w)
    except NotMeasured as error:
        raise NotMeasured(f"{failed}: {error}; {remedy}") from None
    except sensors.nvml.NVMLError as error:
        raise NotMeasured(f"{failed} ({error}); {remedy}") from None
    change.path.unlink(missing_ok=True)
    if ours:
        return f"power limit put back from {change.limit_w:g} W to {change.before_w:g} W"
    return f"power limit is no longer {change.limit_w:g} W: left as it is"


def _look_at(path: Path) -> Leftover:
    try:
        change = _read(path)
    except NotMeasured as error:
        return Leftover(path, None, str(error))
    if _is_held(change.uuid):
        return Leftover(path, change, f"{change} (process {change.pid} is at work)", alive=True)
    return Leftover(path, change, f"{change} (process {change.pid}, which set it, is gone)")


# Files: the marker, and the lock beside it.


def _folder() -> Path:
    return cache_dir() / "gpu-settings"


def _marker(uuid: str) -> Path:
    return _folder() / f"{uuid}.power-limit.json"


def _markers() -> list[Path]:
    return sorted(_folder().glob("*.json"))


def _write(change: Change) -> None:
    """Write the marker so that it is complete on disk when this returns."""
    unfinished = change.path.with_suffix(".unfinished")
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump(asdict(change), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, change.path)
    folder = os.open(change.path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> Change:
    try:
        change = read(Change, json.loads(path.read_text(encoding="utf-8")))
        if change.path != path:
            raise ValueError("another GPU's")
        return change
    except (OSError, ValueError):
        raise NotMeasured(
            f"{path}: not readable as a marker of a power limit; compare the limits that `nvidia-smi -q -d POWER` "
            "shows with the defaults beside them, then delete the file"
        ) from None


def _hold(uuid: str) -> int:
    """Return an exclusive lock on a GPU, held until it is closed. Raises NotMeasured if another process has it."""
    _folder().mkdir(parents=True, exist_ok=True)
    lock = os.open(_folder() / f"{uuid}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        said = _look_at(_marker(uuid)).said if _marker(uuid).exists() else uuid
        raise NotMeasured(f"another process changes this GPU's limit now: {said}") from None
    return lock


def _is_held(uuid: str) -> bool:
    try:
        with open(_folder() / f"{uuid}.lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # it is held, or it is unknown; both mean to leave it alone
        return True
    return False


# Restoring at exit and on signals.

_active: PowerLimit | None = None  # in force
_handlers: dict[signal.Signals, object] = {}  # by signal: its earlier handler


def _restore_active() -> None:
    try:
        if _active is not None:
            _active.restore()
    except (NotMeasured, OSError) as error:
        print(f"luce-edu: {error}", file=sys.stderr)


def _on_signal(number: int, frame: FrameType | None) -> None:
    """Restore the limit, then handle the signal as before."""
    handler = _handlers.get(number, signal.SIG_DFL)
    _restore_active()
    _leave_signals()
    if callable(handler):
        handler(number, frame)
    else:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def _catch_signals() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number in ENDING:
        # Leave a signal that is ignored, as under nohup, or whose handler is not Python and could not be restored.
        if number not in _handlers and signal.getsignal(number) not in (signal.SIG_IGN, None):
            _handlers[number] = signal.signal(number, _on_signal)


def _leave_signals() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number in list(_handlers):
        if signal.getsignal(number) == _on_signal:
            signal.signal(number, _handlers[number])
        del _handlers[number]


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold signals back until the block has ended, so that a second Ctrl-C does not interrupt a restoration."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in sorted(came, key=lambda number: number == signal.SIGINT):  # SIGINT raises, so it is last
            signal.raise_signal(number)


def _forget_in_child() -> None:
    """In a forked child, drop the limit: the parent restores it. The lock is closed, as unlocking would affect both."""
    global _active
    if _active is not None:
        os.close(_active._lock)
        _active._lock = _active = None


atexit.register(_restore_active)
os.register_at_fork(after_in_child=_forget_in_child)
