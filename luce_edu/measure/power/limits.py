"""The one place that changes a setting of a GPU: its power limit, for the length of a `with` block.

Nothing is set unless the caller says allow=True and the driver grants it. The limit before is put back on every way
out: the block's end, an exception, Ctrl-C, a signal that ends the process, the interpreter's exit (a kernel that is
restarted). Against a kill that leaves no time for any of that a marker file, written before the limit is set, says what
to put back; the next PowerLimit on that GPU, or `luce-edu sweep --restore`, does.

    with PowerLimit(200, allow=True):
        ...

A GPU is held by one process at a time: by a lock on a file beside the marker, which the kernel drops with the process,
however that ends. So a marker whose lock is free is a leftover, and one whose lock is held is left alone.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import math
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
from luce_edu.paths import cache_dir

TAKEN_W = 0.5  # a limit that reads back further off than this is another one
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # by default these end Python without its exit hooks


class NotPermitted(NotMeasured):
    """A limit that was not to be set, or that the driver does not let this user set. Nothing was."""


@dataclass(frozen=True)
class Change:
    """A limit that was set, as its marker file keeps it: watts now and before, and the process that set it."""

    uuid: str
    limit_w: float
    before_w: float
    pid: int

    def __post_init__(self) -> None:
        """ValueError for anything else, such as a file that somebody edited."""
        watts = (self.limit_w, self.before_w)
        sound = isinstance(self.uuid, str) and isinstance(self.pid, int)
        if not sound or not all(isinstance(w, int | float) and math.isfinite(w) and w > 0 for w in watts):
            raise ValueError(f"no change of a GPU's limit: {self}")

    @property
    def path(self) -> Path:
        """The marker file."""
        return _marker(self.uuid)

    def command(self, limit_w: float) -> str:
        """What an administrator would type for a limit."""
        return f"sudo nvidia-smi -i {self.uuid} -pl {limit_w:g}"

    def __str__(self) -> str:
        return f"{self.uuid}: power limit of {self.limit_w:g} W, before that {self.before_w:g} W"


@dataclass(frozen=True)
class Leftover:
    """A marker file that was found. `change` is None for one that cannot be read; said: one line on it.

    alive  its process is at work: the limit is that one's affair
    done   put back, or nothing to put back any more
    """

    path: Path
    change: Change | None
    said: str
    alive: bool = False
    done: bool = False


class PowerLimit:
    """At most `limit_w` watts for the GPU of `sensors` (None: PyTorch's current one); see the top of this file.

    Raises ValueError, with the range, for a limit outside it; NotPermitted without allow=True or permission, with what
    an administrator would type; NotMeasured without NVML, for a GPU that has no such limit or does not take this one,
    and where another process, or a block around this one, has set one. The GPU is then as it was.
    Used from another thread than the main one, signals that end the process leave it to the marker.
    """

    def __init__(self, limit_w: float, *, sensors: Sensors | None = None, allow: bool = False):
        self.limit_w, self.sensors = limit_w, Sensors.open() if sensors is None else sensors
        self.change: Change | None = None
        self._lock: int | None = None
        self._refused = False  # by the driver, so that there is nothing to put back
        low, high = self.sensors.power_limit_range_w()
        if not low <= limit_w <= high:
            raise ValueError(f"power limit: this GPU takes {low:g} to {high:g} W, got {limit_w:g}")
        if allow is not True:
            raise NotPermitted(f"{self}: it is set only where the caller says so, with allow=True")

    def __str__(self) -> str:
        return f"power limit of {self.limit_w:g} W"

    def __enter__(self) -> PowerLimit:
        global _active
        if _active is not None:
            raise NotMeasured(f"{_active.change}: this process has set it already; leave that block first")
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
        except BaseException:  # Ctrl-C too: `with` asks for no exit where the entry did not succeed
            self.restore()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self.restore()

    def restore(self) -> None:
        """Put back the limit before; once is enough. NotMeasured where the driver refuses: the marker stays."""
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
        """NotMeasured where the GPU says that another limit is in force than this one."""
        now = self.sensors.chosen_power_limit_w()
        if not _is(now, self.limit_w):
            raise NotMeasured(f"{self}: the GPU says that its limit is {now:g} W")

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
    """Raises what NVML raises."""
    sensors.nvml.nvmlDeviceSetPowerManagementLimit(sensors.handle, round(1e3 * limit_w))


def _is(now_w: float, limit_w: float) -> bool:
    return abs(now_w - limit_w) <= TAKEN_W


# ---- Leftovers ----


def leftovers() -> list[Leftover]:
    """What marker files say, those of living processes too. Reads only, and never raises for what it finds."""
    return [_look_at(path) for path in _markers()]


def restore_leftovers(nvml: ModuleType | None = None) -> list[Leftover]:
    """Put back what processes that are gone have left; what cannot be put back is said, and the others go on."""
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
    """Of a GPU that this process holds."""
    change = None
    try:
        change = _read(path)
        return Leftover(path, change, f"{change.uuid}: {_put_back(change, nvml)}", done=True)
    except NotMeasured as error:
        return Leftover(path, change, str(error))


def _put_back(change: Change, nvml: ModuleType | None) -> str:
    """Undo a change, and forget it; one line on what was done. NotMeasured where it cannot be undone."""
    failed = f"power limit of {change.uuid} not put back to {change.before_w:g} W"
    remedy = f"an administrator would type: {change.command(change.before_w)}"
    try:
        sensors = Sensors.open(change.uuid, nvml)
        # Not where somebody else has set another one meanwhile, or the machine was started anew.
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


# ---- Files: the marker, and the lock beside it ----


def _folder() -> Path:
    return cache_dir() / "gpu-settings"


def _marker(uuid: str) -> Path:
    return _folder() / f"{uuid}.power-limit.json"


def _markers() -> list[Path]:
    return sorted(_folder().glob("*.json"))


def _write(change: Change) -> None:
    """On the disk, whole, before anything is set."""
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
        change = Change(**json.loads(path.read_text(encoding="utf-8")))
        if change.path != path:
            raise ValueError("another GPU's")
        return change
    except (OSError, ValueError, TypeError):
        raise NotMeasured(
            f"{path}: not readable as a marker of a power limit; compare the limits that `nvidia-smi -q -d POWER` "
            "shows with the defaults beside them, then delete the file"
        ) from None


def _hold(uuid: str) -> int:
    """A lock that this process alone has, until it is closed; NotMeasured, by name, where another one has the GPU."""
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
    except OSError:  # it is, or cannot be asked: left alone either way
        return True
    return False


# ---- Ways out ----

_active: PowerLimit | None = None  # in force
_handlers: dict[signal.Signals, object] = {}  # what handled a signal before


def _restore_active() -> None:
    try:
        if _active is not None:
            _active.restore()
    except (NotMeasured, OSError) as error:
        print(f"luce-edu: {error}", file=sys.stderr)


def _on_signal(number: int, frame: FrameType | None) -> None:
    """Put the limit back, then let the signal do what it would have done."""
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
        # Not one that is ignored, as under nohup, or handled by something that is not Python and cannot be put back.
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
    """A second Ctrl-C must not cut a restoration short: signals come after it."""
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
        for number in sorted(came, key=lambda number: number == signal.SIGINT):  # which raises, so it comes last
            signal.raise_signal(number)


def _forget_in_child() -> None:
    """What a process has set is its own to put back, not its child's; closed, not unlocked, as the lock is shared."""
    global _active
    if _active is not None:
        os.close(_active._lock)
        _active._lock = _active = None


atexit.register(_restore_active)
os.register_at_fork(after_in_child=_forget_in_child)
