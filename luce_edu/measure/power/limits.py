"""The one place that changes a setting of a GPU: a power limit or a clock lock for the length of a `with` block.

Nothing is set unless the caller says allow=True and the driver grants it. What was there before is put back on every
way out: the block's end, an exception, Ctrl-C, a signal that ends the process, the interpreter's exit (a kernel that is
restarted). Against a kill that leaves no time for any of that a marker file, written before the setting, says what to
put back; the next PowerLimit on that GPU, or `luce-edu sweep --restore`, does.

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
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, ModuleType

from luce_edu.backends import cache_dir
from luce_edu.errors import NotMeasured
from luce_edu.measure.nvml import Sensors, or_none

TAKEN_W = 0.5  # a limit that reads back further off than this is another one
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # by default these end Python without its exit hooks


class NotPermitted(NotMeasured):
    """A setting that was not to be changed, or that the driver does not let this user change. Nothing was."""


@dataclass(frozen=True)
class Change:
    """One changed setting, as its marker file keeps it.

    what    "power limit" or "clock lock"
    value   watts, or (lowest, highest) MHz
    before  watts; None for a clock lock, as NVML cannot say what lock there was: none is what it is put back to
    pid     the process that made it
    """

    uuid: str
    what: str
    value: float | tuple[int, int]
    before: float | None
    pid: int

    def __post_init__(self) -> None:
        """ValueError for anything else, such as a file that somebody edited."""
        numbers = (self.value, self.before) if self.what == "power limit" else self.value
        sound = self.what in SETTINGS and isinstance(self.uuid, str) and isinstance(self.pid, int)
        if self.what == "clock lock":
            sound = sound and isinstance(numbers, tuple) and len(numbers) == 2 and self.before is None
        if not sound or not all(isinstance(n, int | float) and math.isfinite(n) and n > 0 for n in numbers):
            raise ValueError(f"no change of a GPU's setting: {self}")

    @property
    def path(self) -> Path:
        """The marker file."""
        return _folder() / f"{self.uuid}.{self.what.replace(' ', '-')}.json"

    @property
    def command(self) -> str:
        """What an administrator would type for it."""
        return f"sudo nvidia-smi -i {self.uuid} {SETTINGS[self.what].option(self.value)}"

    @property
    def command_back(self) -> str:
        return f"sudo nvidia-smi -i {self.uuid} {SETTINGS[self.what].option(self.before)}"

    def __str__(self) -> str:
        value, before = (SETTINGS[self.what].text(setting) for setting in (self.value, self.before))
        return f"{self.uuid}: {self.what} of {value}, before that {before}"


@dataclass(frozen=True)
class Leftover:
    """A marker file that was found. `change` is None for one that cannot be read; said: one line on it.

    alive  its process is at work: the setting is that one's affair
    done   put back, or nothing to put back any more
    """

    path: Path
    change: Change | None
    said: str
    alive: bool = False
    done: bool = False


class Setting(ABC):
    """A setting of a GPU for the length of a `with` block; see the top of this file.

    Used from another thread than the main one, signals that end the process leave it to the marker.
    """

    what: str

    def __init__(self, value, sensors: Sensors | None, allow: bool):
        self.value, self.sensors = value, Sensors.open() if sensors is None else sensors
        self.change: Change | None = None
        self._refused = False
        self._refuse_out_of_range()
        if allow is not True:
            raise NotPermitted(
                f"{self.what} of {self.text(value)}: it is set only where the caller says so, with allow=True"
            )

    def __enter__(self):
        uuid = self.sensors.uuid()
        if any((setting.change.uuid, setting.what) == (uuid, self.what) for setting in _active):
            raise NotMeasured(f"{uuid}: this process has set a {self.what} already; leave that block first")
        try:
            _hold(uuid)
            for leftover in _put_back_leftovers(uuid, self.sensors.nvml):
                if not leftover.done:
                    raise NotMeasured(leftover.said)
            self.change = Change(uuid, self.what, self.value, self._before(), os.getpid())
            self._refused = False
            _active.append(self)
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
        """Put back what was there before; once is enough. NotMeasured where the driver refuses: the marker stays."""
        try:
            if self in _active:
                with _signals_wait():
                    try:
                        if self._refused:
                            self.change.path.unlink(missing_ok=True)
                        else:
                            _put_back(self.change, self.sensors.nvml)
                    finally:
                        _active.remove(self)
        finally:
            if not _active:
                _leave_signals()
            _let_go()

    def _apply(self) -> None:
        nvml = self.sensors.nvml
        try:
            self.apply(self.sensors, self.value)
        except nvml.NVMLError_NoPermission:
            self._refused = True
            raise NotPermitted(
                f"no permission to set a {self.what}; an administrator would type: {self.change.command}, "
                f"and to go back: {self.change.command_back}"
            ) from None
        except nvml.NVMLError as error:
            self._refused = isinstance(error, nvml.NVMLError_NotSupported | nvml.NVMLError_InvalidArgument)
            raise NotMeasured(f"{self.what} of {self.text(self.value)}: the driver refuses it ({error})") from None

    @abstractmethod
    def _refuse_out_of_range(self) -> None:
        """ValueError with the range; NotMeasured where the GPU has none."""

    @abstractmethod
    def _before(self) -> float | None:
        """What is to be put back."""

    @abstractmethod
    def check(self) -> None:
        """NotMeasured where the GPU says that another setting is in force than this one."""

    @staticmethod
    @abstractmethod
    def apply(sensors: Sensors, value) -> None:
        """Set it; None sets what there is without a setting. Raises what NVML raises."""

    @staticmethod
    @abstractmethod
    def is_in_force(sensors: Sensors, value) -> bool:
        """As far as NVML can say; True where it cannot."""

    @staticmethod
    @abstractmethod
    def text(value) -> str:
        """For a person."""

    @staticmethod
    @abstractmethod
    def option(value) -> str:
        """For nvidia-smi."""


class PowerLimit(Setting):
    """At most `limit_w` watts for the GPU of `sensors` (None: PyTorch's current one).

    Raises ValueError, with the range, for a limit outside it; NotPermitted without allow=True or permission, with what
    an administrator would type; NotMeasured without NVML, for a GPU that has no such limit or does not take this one,
    and where another process, or a block around this one, has set something. The GPU is then as it was.
    """

    what = "power limit"

    def __init__(self, limit_w: float, *, sensors: Sensors | None = None, allow: bool = False):
        super().__init__(limit_w, sensors, allow)

    def _refuse_out_of_range(self):
        low, high = self.sensors.power_limit_range_w()
        if not low <= self.value <= high:
            raise ValueError(f"power limit: this GPU takes {low:g} to {high:g} W, got {self.value:g}")

    def _before(self):
        return self.sensors.chosen_power_limit_w()

    def check(self):
        if not self.is_in_force(self.sensors, self.value):
            now = self.text(self.sensors.chosen_power_limit_w())
            raise NotMeasured(f"power limit of {self.text(self.value)}: the GPU says that its limit is {now}")

    @staticmethod
    def apply(sensors, value):
        sensors.nvml.nvmlDeviceSetPowerManagementLimit(sensors.handle, round(1e3 * value))

    @staticmethod
    def is_in_force(sensors, value):
        return abs(sensors.chosen_power_limit_w() - value) <= TAKEN_W

    @staticmethod
    def text(value):
        return f"{value:g} W"

    @staticmethod
    def option(value):
        return f"-pl {value:g}"


class ClockLock(Setting):
    """The SMs' clock between `low_mhz` and `high_mhz` (None: the same) for the GPU of `sensors`; raises as PowerLimit.

    NVML cannot read a lock, so none is what is put back: one that somebody else had set would be lifted. Where the
    driver says that a clock setting holds the clock already, this one is refused; on an idle GPU it may not say so.
    """

    what = "clock lock"

    def __init__(
        self, low_mhz: int, high_mhz: int | None = None, *, sensors: Sensors | None = None, allow: bool = False
    ):
        super().__init__((low_mhz, low_mhz if high_mhz is None else high_mhz), sensors, allow)

    def _refuse_out_of_range(self):
        low, high = self.sensors.sm_clock_range_mhz()
        if not low <= self.value[0] <= self.value[1] <= high:
            raise ValueError(f"clock lock: this GPU's SMs have {low} to {high} MHz, got {self.text(self.value)}")

    def _before(self):
        if "a clock setting" in (or_none(self.sensors.slowed_by) or ()):
            raise NotMeasured("clock lock: a clock setting is in force already, and NVML cannot say which to put back")
        return None

    def check(self):
        """NVML cannot say."""

    @staticmethod
    def apply(sensors, value):
        if value is None:
            sensors.nvml.nvmlDeviceResetGpuLockedClocks(sensors.handle)
        else:
            sensors.nvml.nvmlDeviceSetGpuLockedClocks(sensors.handle, *value)

    @staticmethod
    def is_in_force(sensors, value):
        return True

    @staticmethod
    def text(value):
        return "none" if value is None else f"{value[0]} to {value[1]} MHz"

    @staticmethod
    def option(value):
        return "-rgc" if value is None else f"-lgc {value[0]},{value[1]}"


SETTINGS: dict[str, type[Setting]] = {kind.what: kind for kind in (PowerLimit, ClockLock)}


# ---- Leftovers ----


def leftovers() -> list[Leftover]:
    """What marker files say, those of living processes too. Reads only, and never raises for what it finds."""
    return [_look_at(path) for path in _markers()]


def restore_leftovers(nvml: ModuleType | None = None) -> list[Leftover]:
    """Put back what processes that are gone have left; what cannot be put back is said, and the others go on."""
    results = []
    for path in _markers():
        found = _look_at(path)
        if found.change is None or found.alive:
            results.append(found)
            continue
        try:
            _hold(found.change.uuid)
            results += _put_back_leftovers(found.change.uuid, nvml, path)
        except NotMeasured as error:
            results.append(Leftover(path, found.change, str(error), alive=True))
        finally:
            _let_go()
    return results


def _put_back_leftovers(uuid: str, nvml: ModuleType | None, only: Path | None = None) -> list[Leftover]:
    """Of one GPU, which this process holds."""
    mine = [setting.change.path for setting in _active]
    results = []
    for path in _markers(uuid):
        if path in mine or only not in (None, path):
            continue
        change = None
        try:
            change = _read(path)
            results.append(Leftover(path, change, f"{change.uuid}: {_put_back(change, nvml)}", done=True))
        except NotMeasured as error:
            results.append(Leftover(path, change, str(error)))
    return results


def _put_back(change: Change, nvml: ModuleType | None) -> str:
    """Undo a change, and forget it; one line on what was done. NotMeasured where it cannot be undone."""
    kind = SETTINGS[change.what]
    failed = f"{change.what} of {change.uuid} not put back to {kind.text(change.before)}"
    try:
        sensors = Sensors.open(change.uuid, nvml)
        # Not where somebody else has set another one meanwhile, or the machine was started anew.
        ours = kind.is_in_force(sensors, change.value)
        if ours and change.before != change.value:
            kind.apply(sensors, change.before)
    except NotMeasured as error:
        raise NotMeasured(f"{failed}: {error}; an administrator would type: {change.command_back}") from None
    except sensors.nvml.NVMLError as error:
        raise NotMeasured(f"{failed} ({error}); an administrator would type: {change.command_back}") from None
    change.path.unlink(missing_ok=True)
    if ours:
        return f"{change.what} put back from {kind.text(change.value)} to {kind.text(change.before)}"
    return f"{change.what} is no longer {kind.text(change.value)}: left as it is"


def _look_at(path: Path) -> Leftover:
    try:
        change = _read(path)
    except NotMeasured as error:
        return Leftover(path, None, str(error))
    if _is_held(change.uuid):
        return Leftover(path, change, f"{change} (process {change.pid} is at work)", alive=True)
    return Leftover(path, change, f"{change} (process {change.pid}, which set it, is gone)")


# ---- Files: the marker, and the lock beside it ----

_held: dict[str, int] = {}  # by UUID, the open lock files of this process


def _folder() -> Path:
    return cache_dir() / "gpu-settings"


def _markers(uuid: str = "*") -> list[Path]:
    return sorted(_folder().glob(f"{uuid}.*.json"))


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
        fields = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(fields["value"], list):
            fields["value"] = tuple(fields["value"])
        change = Change(**fields)
        if change.path != path:
            raise ValueError("another GPU's")
        return change
    except (OSError, ValueError, TypeError, KeyError):
        raise NotMeasured(
            f"{path}: not readable as a marker of a changed setting; compare the limits that `nvidia-smi -q -d POWER` "
            "shows with the defaults beside them, then delete the file"
        ) from None


def _hold(uuid: str) -> None:
    """This process alone from here on; NotMeasured, by name, where another one has the GPU."""
    if uuid in _held:
        return
    _folder().mkdir(parents=True, exist_ok=True)
    lock = os.open(_folder() / f"{uuid}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        found = [leftover.said for leftover in map(_look_at, _markers(uuid))]
        raise NotMeasured(f"another process changes this GPU's settings now: {'; '.join(found) or uuid}") from None
    _held[uuid] = lock


def _is_held(uuid: str) -> bool:
    if uuid in _held:
        return True
    try:
        with open(_folder() / f"{uuid}.lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # it is, or cannot be asked: left alone either way
        return True
    return False


def _let_go() -> None:
    """Of GPUs on which this process has nothing set."""
    for uuid in set(_held) - {setting.change.uuid for setting in _active}:
        os.close(_held.pop(uuid))


# ---- Ways out ----

_active: list[Setting] = []  # in force, in the order of their blocks
_handlers: dict[signal.Signals, object] = {}  # what handled a signal before


def _restore_all() -> None:
    for setting in reversed(_active[:]):
        try:
            setting.restore()
        except (NotMeasured, OSError) as error:
            print(f"luce-edu: {error}", file=sys.stderr)


def _on_signal(number: int, frame: FrameType | None) -> None:
    """Put everything back, then let the signal do what it would have done."""
    handler = _handlers.get(number, signal.SIG_DFL)
    _restore_all()
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
    _active.clear()
    _let_go()


atexit.register(_restore_all)
os.register_at_fork(after_in_child=_forget_in_child)
