"""A GPU's limit is changed only on request and with permission, and is put back whatever ends the block."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import fake_nvml
import pytest
from fake_nvml import Clock, FakeNvml, SettingChanged
from settable_nvml import AS_SHIPPED, SettableNvml
from starting import default_signals

import luce_edu
from luce_edu.errors import NotMeasured
from luce_edu.measure.nvml import Sensors
from luce_edu.measure.power import limits as power
from luce_edu.measure.power.limits import NotPermitted, PowerLimit, leftovers, restore_leftovers

PACKAGE = Path(luce_edu.__file__).parent
TESTS = Path(__file__).resolve().parents[1]
UUID = FakeNvml.UUID


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    """A cache of the test's own. At its end no limit is in force and no signal is caught."""
    monkeypatch.setenv("LUCE_CACHE", str(tmp_path / "cache"))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # these tests may have been started with it ignored
    yield tmp_path / "cache"
    assert (power._active, power._handlers) == (None, {})
    assert signal.signal(signal.SIGTERM, before) == signal.SIG_DFL


def gpu(**options) -> tuple[SettableNvml, Sensors]:
    fake = SettableNvml(**options)
    return fake, Sensors.open(UUID, nvml=fake)


def markers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.suffix not in (".lock", ""))


# ---- Set, and put back ----


def test_a_limit_holds_in_the_block_and_the_one_before_after_it(cache):
    fake, sensors = gpu()
    with PowerLimit(200, sensors=sensors, allow=True):
        assert fake.settings == {"limit_mw": 200_000} and len(markers(cache)) == 1
        assert signal.getsignal(signal.SIGTERM) == power._on_signal
    assert fake.settings == AS_SHIPPED and markers(cache) == [] and leftovers() == []


def test_the_limit_before_is_what_was_chosen_and_not_the_default():
    fake, sensors = gpu()
    fake.change(limit_mw=287_500)
    with PowerLimit(150, sensors=sensors, allow=True):
        assert fake.settings["limit_mw"] == 150_000
    assert fake.settings["limit_mw"] == 287_500
    assert fake.calls == [150, 287.5]


def test_a_second_one_in_a_block_is_refused_and_the_first_stays():
    fake, sensors = gpu()
    with PowerLimit(200, sensors=sensors, allow=True):
        with pytest.raises(NotMeasured, match=f"{UUID}.*200 W.*leave that block first"):
            PowerLimit(150, sensors=sensors, allow=True).__enter__()
        assert fake.calls == [200] and signal.getsignal(signal.SIGTERM) == power._on_signal
    assert fake.settings == AS_SHIPPED


def test_the_ends_of_the_range_are_in_it():
    fake, sensors = gpu()
    for limit_w in (100, 350):
        with PowerLimit(limit_w, sensors=sensors, allow=True):
            assert fake.settings["limit_mw"] == 1e3 * limit_w


def test_a_limit_that_is_already_in_force_is_set_once():
    fake, sensors = gpu()
    with PowerLimit(350, sensors=sensors, allow=True):
        pass
    assert fake.calls == [350]


# ---- Refused, and nothing is changed ----


@pytest.mark.planted
@pytest.mark.parametrize("allow", [False, None, 0, "yes"])
def test_without_allow_nothing_is_set(allow, cache):
    fake, sensors = gpu()
    with pytest.raises(NotPermitted, match="allow=True"):
        PowerLimit(200, sensors=sensors, allow=allow)
    assert fake.calls == [] and not cache.exists()


@pytest.mark.planted
@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("limit_w", [99.9, 350.1, -200, float("nan")])
def test_a_limit_out_of_range_is_refused_with_the_range(limit_w, allow, cache):
    fake, sensors = gpu()
    with pytest.raises(ValueError) as said:
        PowerLimit(limit_w, sensors=sensors, allow=allow)
    assert re.search(rf"100 to 350 W.* {re.escape(f'{limit_w:g}')}$", str(said.value))
    assert fake.calls == [] and not cache.exists()


@pytest.mark.planted
@pytest.mark.parametrize("limit_w", [200, 350])
def test_without_permission_it_says_what_an_administrator_would_type(limit_w, cache):
    fake, sensors = gpu(permitted=False)
    there, back = (f"sudo nvidia-smi -i {UUID} -pl {watts}" for watts in (limit_w, 350))
    with pytest.raises(NotPermitted, match=f"{there}, and .*: {back}$"):
        PowerLimit(limit_w, sensors=sensors, allow=True).__enter__()
    assert fake.settings == AS_SHIPPED and fake.calls == [] and markers(cache) == []


@pytest.mark.planted
@pytest.mark.parametrize("error", [
    fake_nvml.NVMLError_NotSupported("Not Supported"), fake_nvml.NVMLError_Unknown("Unknown Error"),
])  # fmt: skip
def test_a_driver_that_refuses_leaves_nothing_behind(error, cache):
    fake, sensors = gpu(faults={"nvmlDeviceSetPowerManagementLimit": error})
    with pytest.raises(NotMeasured, match=f"200 W.*{error}"):
        PowerLimit(200, sensors=sensors, allow=True).__enter__()
    assert fake.settings == AS_SHIPPED and markers(cache) == []


@pytest.mark.planted
def test_a_gpu_that_ignores_the_limit_is_noticed(cache):
    fake, sensors = gpu(ignores=True)
    with pytest.raises(NotMeasured, match="200 W.*350 W"):
        PowerLimit(200, sensors=sensors, allow=True).__enter__()
    assert fake.calls == [200] and markers(cache) == []


@pytest.mark.planted
def test_a_gpu_without_power_limits_says_so():
    fake, sensors = gpu(faults={"nvmlDeviceGetPowerManagementLimitConstraints": fake_nvml.NVMLError_NotSupported()})
    with pytest.raises(NotMeasured, match="^range of power limits: "):
        PowerLimit(200, sensors=sensors, allow=True)
    assert fake.calls == []


@pytest.mark.planted
def test_a_marker_that_cannot_be_written_keeps_the_limit_from_being_set(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LUCE_CACHE", str(tmp_path / "file"))
    fake, sensors = gpu()
    with pytest.raises(NotADirectoryError):
        PowerLimit(200, sensors=sensors, allow=True).__enter__()
    assert fake.calls == []


def test_the_marker_is_on_the_disk_before_the_limit_is_set(monkeypatch):
    fake, sensors = gpu()
    seen, synced = [], []
    real, fsync = SettableNvml.nvmlDeviceSetPowerManagementLimit, os.fsync

    def set_limit(self, handle, limit_mw):
        seen.append((limit_mw, len(synced), [leftover.change for leftover in leftovers()]))
        return real(self, handle, limit_mw)

    monkeypatch.setattr(SettableNvml, "nvmlDeviceSetPowerManagementLimit", set_limit)
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(file) or fsync(file))
    with PowerLimit(200, sensors=sensors, allow=True):
        pass
    change = power.Change(UUID, 200, 350.0, os.getpid())
    assert seen == [(200_000, 2, [change]), (350_000, 2, [change])]


# ---- Every way out, in this process ----


class Planted(Exception):
    pass


@pytest.mark.planted
@pytest.mark.parametrize("error", [Planted, KeyboardInterrupt])
def test_an_exception_puts_it_back(error):
    fake, sensors = gpu()
    with pytest.raises(error):
        with PowerLimit(200, sensors=sensors, allow=True):
            raise error
    assert fake.settings == AS_SHIPPED


@pytest.mark.planted
@pytest.mark.parametrize("where", ["_write", "_catch_signals", "PowerLimit._apply", "PowerLimit.check"])
def test_ctrl_c_while_it_is_being_set_puts_it_back(monkeypatch, where, cache):
    owner = power
    *path, name = where.split(".")
    for part in path:
        owner = getattr(owner, part)
    real = getattr(owner, name)

    def interrupted(*args):
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    fake, sensors = gpu()
    with pytest.raises(KeyboardInterrupt):
        PowerLimit(200, sensors=sensors, allow=True).__enter__()
    assert fake.settings == AS_SHIPPED and markers(cache) == []


@pytest.mark.planted
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_is_put_back_waits_until_it_is(monkeypatch, number):
    """The signal gets a handler that returns, since it would end the tests otherwise."""
    came = []
    fake, sensors = gpu()
    real = SettableNvml.nvmlDeviceSetPowerManagementLimit

    def slow(self, handle, limit_mw):
        if limit_mw == 350_000:
            signal.raise_signal(number)
        real(self, handle, limit_mw)

    monkeypatch.setattr(SettableNvml, "nvmlDeviceSetPowerManagementLimit", slow)
    before = signal.signal(number, lambda *args: came.append(fake.settings["limit_mw"]))
    try:
        with PowerLimit(200, sensors=sensors, allow=True):
            pass
    finally:
        signal.signal(number, before)
    assert came == [350_000] and fake.settings == AS_SHIPPED


@pytest.mark.planted
def test_a_program_with_its_own_handler_gets_its_signal_after_the_limit_is_back():
    fake, sensors = gpu()
    came = []
    before = signal.signal(signal.SIGTERM, lambda *args: came.append(fake.settings["limit_mw"]))
    try:
        with PowerLimit(200, sensors=sensors, allow=True):
            signal.raise_signal(signal.SIGTERM)
            assert came == [350_000]
        assert signal.getsignal(signal.SIGTERM) != power._on_signal
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_is_ignored_stays_ignored():
    fake, sensors = gpu()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with PowerLimit(200, sensors=sensors, allow=True):
            signal.raise_signal(signal.SIGHUP)
            assert fake.settings["limit_mw"] == 200_000
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_sets_it_too_and_puts_it_back():
    fake, sensors = gpu()
    seen = []

    def work():
        with PowerLimit(200, sensors=sensors, allow=True):
            seen.append(fake.settings["limit_mw"])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [200_000] and fake.settings == AS_SHIPPED


@pytest.mark.planted
def test_a_limit_that_cannot_be_put_back_is_reported_and_its_marker_stays(cache):
    fake, sensors = gpu()
    with pytest.raises(NotMeasured) as said:
        with PowerLimit(200, sensors=sensors, allow=True):
            fake.permitted = False
    assert str(said.value) == (
        f"power limit of {UUID} not put back to 350 W (Insufficient Permissions); an administrator would type: "
        f"sudo nvidia-smi -i {UUID} -pl 350"
    )
    assert len(markers(cache)) == 1
    fake.permitted = True
    with PowerLimit(150, sensors=sensors, allow=True):  # the next limit first puts that one back
        assert fake.calls == [200, 350, 150]
    assert fake.settings == AS_SHIPPED and markers(cache) == []


@pytest.mark.planted
def test_a_limit_that_another_program_has_set_meanwhile_is_left(cache):
    fake, sensors = gpu()
    limit = PowerLimit(200, sensors=sensors, allow=True)
    with limit:
        fake.change(limit_mw=250_000)
        with pytest.raises(NotMeasured, match="200 W.*250 W"):
            limit.check()
    assert fake.settings["limit_mw"] == 250_000 and markers(cache) == []


# ---- Every way out of a process ----

CHILD = """
import os, signal, subprocess, sys, threading, time
from settable_nvml import SettableNvml
from luce_edu.measure.nvml import Sensors
from luce_edu.measure.power.limits import PowerLimit

sensors = Sensors.open(SettableNvml.UUID, nvml=SettableNvml(hardware=sys.argv[1]))

def wait():
    print("set", flush=True)
    while True:  # in short pieces: a signal that comes just before a sleep begins is not seen until it ends
        time.sleep(0.05)
"""
SET = CHILD + "with PowerLimit(200, sensors=sensors, allow=True):\n    wait()\n"
OPEN = CHILD + "limit = PowerLimit(200, sensors=sensors, allow=True).__enter__()\n"


class Process:
    """A Python process with a GPU whose settings are in a file; it ignores only the given signals."""

    def __init__(self, folder: Path, source: str, ignored: tuple[signal.Signals, ...] = ()):
        self.hardware = folder / "hardware.json"
        paths = [str(PACKAGE.parent), str(TESTS)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", source, str(self.hardware)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            preexec_fn=lambda: default_signals(ignored),
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.kill()
        self._process.communicate()

    def says(self) -> str:
        return self._process.stdout.readline().strip()

    def settings(self) -> dict:
        return json.loads(self.hardware.read_text())

    def end(self, number: int | None = None) -> tuple[int, str]:
        """(exit status, what it printed on stderr)"""
        if number is not None:
            self._process.send_signal(number)
        _, errors = self._process.communicate(timeout=60)
        return self._process.returncode, errors

    @property
    def pid(self) -> int:
        return self._process.pid


@pytest.mark.planted
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_ends_the_process_puts_it_back(tmp_path, cache, number):
    with Process(tmp_path, SET) as process:
        assert process.says() == "set"
        assert process.settings() == {"limit_mw": 200_000}
        assert process.end(number)[0] == -number  # as without the handler
        assert process.settings() == AS_SHIPPED and markers(cache) == []


def test_under_nohup_a_hangup_changes_nothing(tmp_path, cache):
    with Process(tmp_path, SET, ignored=(signal.SIGHUP,)) as process:
        assert process.says() == "set"
        for _ in range(3):
            os.kill(process.pid, signal.SIGHUP)
        assert process.settings() == {"limit_mw": 200_000} and len(markers(cache)) == 1
        assert process.end(signal.SIGTERM)[0] == -signal.SIGTERM  # not SIGHUP
        assert process.settings() == AS_SHIPPED and markers(cache) == []


@pytest.mark.planted
@pytest.mark.parametrize("ending, status", [("1 / 0", 1), ("", 0)])
def test_the_end_of_the_interpreter_puts_it_back(tmp_path, cache, ending, status):
    """As when a kernel is restarted after a cell has entered a limit and no cell has left it."""
    with Process(tmp_path, OPEN + "assert limit.change\n" + ending) as process:
        assert process.end()[0] == status
        assert process.settings() == AS_SHIPPED and markers(cache) == []


@pytest.mark.planted
def test_after_a_hard_kill_the_next_start_puts_it_back(tmp_path, cache):
    with Process(tmp_path, SET) as process:
        assert process.says() == "set"
        assert process.end(signal.SIGKILL)[0] == -signal.SIGKILL
        assert process.settings() == {"limit_mw": 200_000}
        pid = process.pid
    found = leftovers()
    assert [leftover.change for leftover in found] == [power.Change(UUID, 200, 350, pid)]
    assert f"process {pid}" in found[0].said and not found[0].alive and not found[0].done
    (done,) = restore_leftovers(SettableNvml(hardware=process.hardware))
    assert done.done and "from 200 W to 350 W" in done.said
    assert process.settings() == AS_SHIPPED and markers(cache) == [] and leftovers() == []
    assert restore_leftovers(SettableNvml(hardware=process.hardware)) == []


@pytest.mark.planted
def test_after_a_hard_kill_the_next_limit_starts_from_what_there_was(tmp_path, cache):
    with Process(tmp_path, SET) as process:
        assert process.says() == "set" and process.end(signal.SIGKILL)
    fake, sensors = gpu(hardware=process.hardware)
    with PowerLimit(150, sensors=sensors, allow=True):
        assert fake.calls == [350, 150]
    assert fake.settings == AS_SHIPPED and markers(cache) == []


@pytest.mark.planted
def test_after_a_hard_kill_a_limit_set_by_another_program_is_left(tmp_path, cache):
    with Process(tmp_path, SET) as process:
        assert process.says() == "set" and process.end(signal.SIGKILL)
    fake = SettableNvml(hardware=process.hardware)
    fake.change(limit_mw=250_000)
    (done,) = restore_leftovers(fake)
    assert done.done and "no longer 200 W" in done.said
    assert fake.settings["limit_mw"] == 250_000 and fake.calls == [] and markers(cache) == []


@pytest.mark.planted
def test_a_second_process_is_refused_by_name_while_the_first_is_at_work(tmp_path):
    with Process(tmp_path, SET) as process:
        assert process.says() == "set"
        fake, sensors = gpu(hardware=process.hardware)
        with pytest.raises(NotMeasured, match=f"another process.*process {process.pid} "):
            PowerLimit(150, sensors=sensors, allow=True).__enter__()
        for (found,) in (leftovers(), restore_leftovers(fake)):
            assert (found.change, found.alive, found.done) == (power.Change(UUID, 200, 350, process.pid), True, False)
        assert fake.calls == [] and process.settings()["limit_mw"] == 200_000
        process.end(signal.SIGTERM)
        assert process.settings() == AS_SHIPPED
        with PowerLimit(150, sensors=sensors, allow=True):
            assert process.settings()["limit_mw"] == 150_000


FORK = CHILD + """
with PowerLimit(200, sensors=sensors, allow=True):
    child = os.fork()
    if child == 0:
        {child}
    os.waitpid(child, 0)
    print(sensors.chosen_power_limit_w(), flush=True)
    while True:
        time.sleep(0.05)
"""


@pytest.mark.planted
@pytest.mark.parametrize("child", ["sys.exit()", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_child_that_ends_leaves_its_parents_limit(tmp_path, child):
    with Process(tmp_path, FORK.format(child=child)) as process:
        assert process.says() == "200.0"
        assert leftovers()[0].alive  # the parent's lock is still held after the child's end
        process.end(signal.SIGTERM)
        assert process.settings() == AS_SHIPPED


@pytest.mark.planted
def test_a_child_that_lives_on_does_not_keep_a_killed_parents_limit(tmp_path):
    source = CHILD + textwrap.dedent("""
        with PowerLimit(200, sensors=sensors, allow=True):
            child = os.fork()
            if child == 0:
                os.close(1), os.close(2), time.sleep(60)
            print(child, flush=True)
            time.sleep(60)
    """)
    with Process(tmp_path, source) as process:
        child = int(process.says())
        try:
            process.end(signal.SIGKILL)
            (done,) = restore_leftovers(SettableNvml(hardware=process.hardware))
            assert done.done and process.settings() == AS_SHIPPED
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.planted
@pytest.mark.parametrize("busy", [False, True])
def test_a_kernel_that_is_restarted_puts_it_back(tmp_path, cache, busy):
    """A kernel that is asked to stop runs its exit hook; after a kill the next start puts the limit back."""
    manager = pytest.importorskip("jupyter_client.manager").KernelManager(kernel_name="python3")
    hardware = tmp_path / "hardware.json"
    paths = os.pathsep.join([str(PACKAGE.parent), str(TESTS)])
    manager.shutdown_wait_time = 5.0
    manager.start_kernel(env=os.environ | {"PYTHONPATH": paths})
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        code = f"import sys; sys.argv = ['', {str(hardware)!r}]\n{OPEN}"
        assert client.execute_interactive(code, timeout=60)["content"]["status"] == "ok"
        assert json.loads(hardware.read_text())["limit_mw"] == 200_000
        if busy:
            client.execute("while True: time.sleep(1)")
        client.stop_channels()
        manager.shutdown_kernel(now=busy)
    finally:
        if manager.is_alive():
            manager.shutdown_kernel(now=True)
    if busy:
        restore_leftovers(SettableNvml(hardware=hardware))
    assert json.loads(hardware.read_text()) == AS_SHIPPED and markers(cache) == []


# ---- Markers that cannot be read, or of a GPU that is not here ----


@pytest.mark.planted
@pytest.mark.parametrize("content", [
    "{", "null", '{"uuid": "%s", "limit_w": 200, "pid": 1}',
    '{"uuid": "%s", "limit_w": 200, "before_w": 350, "pid": 1, "what": "fan speed"}',
    '{"uuid": "%s", "limit_w": 200, "before_w": NaN, "pid": 1}',
    '{"uuid": "GPU-other", "limit_w": 200, "before_w": 350, "pid": 1}',
])  # fmt: skip
def test_a_marker_that_cannot_be_read_is_named_and_nothing_is_set(cache, content):
    path = cache / "gpu-settings" / f"{UUID}.power-limit.json"
    path.parent.mkdir(parents=True)
    path.write_text(content.replace("%s", UUID))
    fake, sensors = gpu()
    for found in (leftovers(), restore_leftovers(fake)):
        assert [(leftover.change, leftover.done) for leftover in found] == [(None, False)]
        assert found[0].said.startswith(f"{path}: ") and "\n" not in found[0].said
    with pytest.raises(NotMeasured, match=re.escape(str(path))):
        PowerLimit(200, sensors=sensors, allow=True).__enter__()
    assert fake.calls == [] and path.exists()


@pytest.mark.planted
def test_a_leftover_of_a_gpu_that_is_not_here_is_kept_and_the_others_go_on(cache):
    fake, sensors = gpu()
    (cache / "gpu-settings").mkdir(parents=True)
    for uuid in ("GPU-0", UUID):
        power._write(power.Change(uuid, 200, 350, 1))
    fake.change(limit_mw=200_000)
    other, mine = sorted(restore_leftovers(fake), key=lambda leftover: leftover.done)
    assert "GPU-0 -pl 350" in other.said and not other.done
    assert mine.done and fake.settings == AS_SHIPPED
    assert markers(cache) == ["GPU-0.power-limit.json"]


@pytest.mark.planted
def test_a_leftover_without_permission_says_what_an_administrator_would_type(cache):
    fake, _ = gpu(permitted=False)
    (cache / "gpu-settings").mkdir(parents=True)
    power._write(power.Change(UUID, 200, 350, 1))
    fake.change(limit_mw=200_000)
    (found,) = restore_leftovers(fake)
    assert not found.done and f"{UUID} -pl 350" in found.said
    assert len(markers(cache)) == 1


# ---- No other code changes a setting ----

SETTER = re.compile(r"nvml\w*(Set|Reset|Modify|Clear)[A-Z]\w*")
MAY_IMPORT = {"cli.py", "doctor.py", "measure/power/sweep.py"}  # the sweep and its command; doctor reads the markers


def setters(folder: Path) -> list[str]:
    """Files that name a function of NVML that changes a GPU."""
    files = (path for path in folder.rglob("*") if path.suffix in (".py", ".ipynb", ".cu", ".cuh"))
    return sorted(str(path.relative_to(folder)) for path in files if SETTER.search(path.read_text(encoding="utf-8")))


def importers(folder: Path) -> list[str]:
    """Files that import luce_edu.measure.power.limits, at the top or in a function."""
    found = []
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if "luce_edu.measure.power.limits" in names:
                found.append(str(path.relative_to(folder)))
    return sorted(set(found))


def test_one_file_of_the_package_names_functions_that_change_a_gpu():
    assert setters(PACKAGE) == ["measure/power/limits.py"]
    assert setters(PACKAGE.parent / "csrc") == setters(PACKAGE.parent / "notebooks") == []


def test_only_the_sweep_and_what_reports_leftovers_import_it():
    assert set(importers(PACKAGE)) <= MAY_IMPORT


def test_evidence_and_bench_do_not_load_the_code_that_changes_settings():
    code = (
        "import sys, luce_edu, luce_edu.measure.bench.bench, luce_edu.measure.bench.evidence, luce_edu.plots.records\n"
        "print(*{*sys.modules} & {'luce_edu.measure.power.limits', 'luce_edu.measure.power.sweep'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == ""


@pytest.mark.planted
def test_a_file_that_sets_or_imports_is_named(tmp_path):
    (tmp_path / "sets.py").write_text("pynvml.nvmlDeviceSetPowerManagementLimit(handle, 200_000)\n")
    (tmp_path / "reads.py").write_text("pynvml.nvmlDeviceGetPowerManagementLimit(handle)\n")
    assert setters(tmp_path) == ["sets.py"]
    for i, line in enumerate(("import luce_edu.measure.power.limits", "from luce_edu.measure.power import limits",
                              "def f():\n    from luce_edu.measure.power.limits import PowerLimit")):  # fmt: skip
        (tmp_path / f"imports{i}.py").write_text(line)
    (tmp_path / "model.py").write_text("from luce_edu.measure.power.model import fit")
    assert importers(tmp_path) == ["imports0.py", "imports1.py", "imports2.py"]


def test_a_gpu_that_only_measures_cannot_be_set():
    with pytest.raises(SettingChanged):
        PowerLimit(200, sensors=Sensors(FakeNvml(Clock()), "handle"), allow=True).__enter__()


def test_the_settable_gpu_has_the_names_of_the_real_module():
    pynvml = pytest.importorskip("pynvml")
    used = set(re.findall(r"\b(nvml[A-Z]\w+|NVML\w+)", Path(power.__file__).read_text()))
    used |= {name for name in vars(SettableNvml) if name.startswith("nvml")}
    assert {"nvmlDeviceSetPowerManagementLimit", "NVMLError_NoPermission"} < used
    for name in used - {"NVML"}:
        assert hasattr(pynvml, name) and hasattr(SettableNvml, name), name
