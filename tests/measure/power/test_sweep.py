"""A sweep measures each power limit once the GPU has settled, and puts the limit back whatever happens."""

import re

import fake_nvml
import pytest
from fake_nvml import FakeNvml
from settable_nvml import AS_SHIPPED, SettableNvml, clock_mhz, draw_w

import luce_edu.measure.power.sweep as module
from luce_edu import cli, doctor
from luce_edu.errors import NotMeasured
from luce_edu.measure.bench import bench, evidence, systems
from luce_edu.measure.energy import LEAST_SECONDS
from luce_edu.measure.nvml import Sensors
from luce_edu.measure.power import limits as power
from luce_edu.measure.power.limits import NotPermitted, PowerLimit
from luce_edu.measure.power.model import sweeps
from luce_edu.measure.power.sweep import (
    LOOK_EVERY_S,
    MEASURED_S,
    SETTLE_AT_MOST_S,
    SETTLE_WINDOW_S,
    SETTLE_WINDOWS,
    plan,
    settle,
    sweep,
)
from luce_edu.measure.records.record import Record
from luce_edu.measure.records.rows import Machine, SweepRow


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LUCE_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    assert (power._active, power._handlers) == (None, {})


class Decoding(SettableNvml):
    """A GPU that decodes 0.2 tokens per second for each MHz of its SM clock, 0.1 s at a time."""

    runs = 0

    def decode(self) -> int:
        self.runs += 1
        tokens = 0.02 * self.mhz(self.clock())
        self.clock.wait(0.1)
        return tokens


def swept(gpu: Decoding, limits=(200, 150), **options) -> SweepRow:
    sensors = Sensors.open(gpu.UUID, nvml=gpu)
    options = {"system": "graph", "context": 520, "allow": True, "clock": gpu.clock, "wait": gpu.clock.wait} | options
    return sweep(gpu.decode, sensors, limits, **options)


# ---- Points ----


def test_each_point_has_the_gpus_figures_under_its_limit():
    gpu = Decoding()
    part = swept(gpu, (250, 150, 200))
    assert [point.limit_w for point in part.points] == [250, 150, 200]
    for point in part.points:
        clock = clock_mhz(point.limit_w)
        assert point.settled is True
        assert point.clock_mhz == pytest.approx(clock, rel=0.01)
        assert point.draw_w == pytest.approx(draw_w(clock), rel=0.02)
        assert point.tokens_per_s == pytest.approx(0.2 * clock, rel=0.01)
        assert point.tokens_per_joule == pytest.approx(0.2 * clock / draw_w(clock), rel=0.03)
        assert point.temperature_c == pytest.approx(25 + 0.15 * draw_w(clock), abs=2)
    assert part.default_limit_w == 350 and part.range_w == (100, 350)
    assert gpu.settings == AS_SHIPPED and gpu.calls == [250, 350, 150, 350, 200, 350]


def test_the_idle_draw_is_measured_before_anything_is_set():
    gpu = Decoding()
    assert swept(gpu).idle_w == pytest.approx(draw_w(clock_mhz(350)), rel=0.01)


def test_the_reasons_for_a_low_clock_are_in_the_point():
    gpu = Decoding()
    gpu.held_by = gpu.nvmlClocksThrottleReasonSwPowerCap | gpu.nvmlClocksThrottleReasonHwThermalSlowdown
    assert {tuple(point.slowed_by) for point in swept(gpu).points} == {("heat", "power limit")}


@pytest.mark.planted
@pytest.mark.parametrize("lag_s", [0.2, 2.0, 6.0])
def test_a_point_waits_for_a_slow_gpu_and_is_not_measured_on_the_way(lag_s):
    """The clock still falls after the limit is set; a point measured at once would be further off than the bound."""
    point = swept(Decoding(lag_s=lag_s), [150]).points[0]
    assert point.clock_mhz == pytest.approx(clock_mhz(150), rel=0.05) and point.settled


@pytest.mark.planted
def test_a_gpu_that_does_not_settle_is_measured_and_its_point_marked():
    gpu = Decoding(wave_w=60.0)
    point = swept(gpu, [150]).points[0]
    assert point.settled is False
    assert gpu.clock() - 1000 > SETTLE_AT_MOST_S


def test_settling_takes_three_windows_even_where_nothing_moves():
    gpu = Decoding(lag_s=0.01)
    sensors = Sensors.open(gpu.UUID, nvml=gpu)
    started = gpu.clock()
    assert settle(gpu.decode, sensors, clock=gpu.clock)
    least = SETTLE_WINDOWS * SETTLE_WINDOW_S
    assert least <= gpu.clock() - started < least + 1


def test_the_points_so_far_are_saved_after_each_point():
    seen = []
    swept(Decoding(), (200, 150, 250), save=lambda part: seen.append(len(part.points)))
    assert seen == [1, 2, 3]


# ---- Refusals, and the limit afterwards ----


@pytest.mark.parametrize("limits", [(200, 90), (351,), (200, float("nan"))])
def test_a_limit_out_of_range_is_refused_with_the_range_before_the_first_is_set(limits):
    gpu = Decoding()
    with pytest.raises(ValueError, match="this GPU takes 100 to 350 W"):
        swept(gpu, limits)
    assert gpu.calls == [] and gpu.runs == 0


def test_without_limits_there_is_nothing_to_sweep():
    with pytest.raises(ValueError, match="expected at least one"):
        swept(Decoding(), ())


def test_without_allow_or_permission_nothing_is_set():
    gpu = Decoding()
    with pytest.raises(NotPermitted, match="allow=True"):
        swept(gpu, allow=False)
    assert gpu.calls == []
    gpu = Decoding(permitted=False)
    with pytest.raises(NotPermitted, match="-pl 200"):
        swept(gpu)
    assert gpu.settings == AS_SHIPPED


@pytest.mark.parametrize("missing", [
    {"nvmlDeviceGetPowerUsage": fake_nvml.NVMLError_NotSupported()},
    {"nvmlDeviceGetClockInfo": fake_nvml.NVMLError_NotSupported()},
])  # fmt: skip
def test_a_gpu_that_does_not_report_its_draw_or_clock_is_put_back(missing):
    gpu = Decoding(faults=missing)
    with pytest.raises(NotMeasured):
        swept(gpu)
    assert gpu.settings == AS_SHIPPED


def test_a_gpu_without_an_energy_counter_is_measured_by_samples():
    gpu = Decoding(faults={"nvmlDeviceGetTotalEnergyConsumption": fake_nvml.NVMLError_NotSupported()})

    def work() -> int:  # takes real time too, so that the sampling thread runs
        tokens = gpu.decode()
        FakeNvml.work(gpu, 0)
        return tokens

    sensors = Sensors.open(gpu.UUID, nvml=gpu)
    assert MEASURED_S >= LEAST_SECONDS
    point = module._measure(work, sensors, 350.0, True, gpu.clock)
    assert point.draw_w == pytest.approx(draw_w(clock_mhz(350)), rel=0.1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, NotMeasured])
def test_a_sweep_that_breaks_off_puts_the_limit_back_and_keeps_its_points(error):
    gpu, saved = Decoding(), []
    decode = gpu.decode

    def breaks_off() -> int:
        if 150 in gpu.calls:
            raise error("planted")
        return decode()

    gpu.decode = breaks_off
    with pytest.raises(error):
        swept(gpu, (200, 150), save=lambda part: saved.append(len(part.points)))
    assert saved == [1] and gpu.settings == AS_SHIPPED


@pytest.mark.planted
def test_a_limit_that_another_program_changes_meanwhile_is_noticed():
    gpu = Decoding()
    decode, count = gpu.decode, [0]

    def disturbed() -> int:
        count[0] += 1
        if count[0] == 20:
            gpu.change(limit_mw=300_000)
        return decode()

    gpu.decode = disturbed
    with pytest.raises(NotMeasured, match="the GPU reports a limit of 300 W"):
        swept(gpu, [200])


# ---- The command ----


class Stage:
    """Decodes on the fake GPU."""

    def __init__(self, gpu):
        self._gpu, self._done = gpu, 0

    def ways_to_read(self):
        return (lambda tokens: None,)

    def choice(self):
        return 4

    def pretend(self, context):
        assert context == 520

    def rewind(self, context):
        self._done = 0

    def step(self):
        self._done += 1

    def wait(self):
        self._gpu.clock.wait(self._done / (0.2 * self._gpu.mhz(self._gpu.clock())))


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that `luce-edu sweep` finds, with a clock that only its work moves."""
    fake = Decoding()
    monkeypatch.setattr(Sensors, "open", classmethod(lambda cls, uuid=None, nvml=None: cls(fake, "handle")))
    monkeypatch.setattr(systems, "StageSystem", lambda *a, **o: Stage(fake))
    monkeypatch.setattr(bench, "_decided_choices", lambda model, progress: [([1, 2], 4, None)])
    monkeypatch.setattr(module.sweep, "__kwdefaults__", module.sweep.__kwdefaults__ | {
        "clock": fake.clock, "wait": fake.clock.wait,
    })  # fmt: skip
    machine = Machine("a GPU", "sm_90", 132, 1, 1, None, None, {})
    monkeypatch.setattr(evidence, "machine", lambda: machine)
    monkeypatch.setattr(evidence, "commit", lambda: "abc")
    return fake


def test_the_command_writes_a_record_that_the_explorer_reads(gpu, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["sweep", "--model", "tiny", "--allow-power-limit", "--out", str(out)]
    assert cli.main([*arguments, "--limits", "150,200,250,350"]) == 0
    said = capsys.readouterr().out
    assert re.match(r"150 W: 14\d\d MHz, 15\d W drawn, 2\d\d tok/s, 1.9\d tok/J\n200 W: ", said) and "wrote" in said
    record = Record.load(out / "record.json")
    (found,) = sweeps(record)
    assert found.system == "megakernel" and [point.limit_w for point in found.points] == [150, 200, 250, 350]
    assert "context 520" in found.provenance and gpu.settings == AS_SHIPPED
    assert cli.main([*arguments, "--limits", "150", "--stage", "graph"]) == 0
    assert [found.system for found in sweeps(Record.load(out / "record.json"))] == ["megakernel", "graph"]


@pytest.mark.planted
def test_a_stage_that_chooses_otherwise_than_the_reference_is_not_swept(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Stage, "choice", lambda self: 5)
    arguments = ["sweep", "--model", "tiny", "--limits", "150", "--allow-power-limit", "--out", str(tmp_path)]
    assert cli.main(arguments) == cli.DOES_NOT_HOLD
    assert "megakernel: wrong" in capsys.readouterr().err
    assert gpu.calls == [] and not (tmp_path / "record.json").exists()


def test_a_point_that_has_not_settled_shows_in_the_commands_line_and_status(gpu, tmp_path, capsys):
    gpu.WAVE_W = 60.0
    arguments = ["sweep", "--model", "tiny", "--limits", "150", "--allow-power-limit", "--out", str(tmp_path)]
    assert cli.main(arguments) == cli.NOT_MEASURED
    assert "(had not settled)" in capsys.readouterr().out and (tmp_path / "record.json").exists()


def test_the_clock_is_looked_at_a_few_times_and_not_after_each_run():
    class Counting(Decoding):
        looks = 0

        def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
            self.looks += 1
            return super().nvmlDeviceGetCurrentClocksThrottleReasons(handle)

    gpu = Counting()
    swept(gpu, [200])
    assert 10 <= gpu.looks <= MEASURED_S / LOOK_EVERY_S + 1


def test_without_being_allowed_the_command_says_what_it_would_do(gpu, tmp_path, capsys):
    assert cli.main(["sweep", "--limits", "150,200", "--out", str(tmp_path / "out")]) == cli.NOT_MEASURED
    said = capsys.readouterr().err
    assert "to 150, 200 W in turn" in said and "100 to 350 W" in said and "add --allow-power-limit" in said
    assert gpu.calls == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments, said", [
    (["--limits", "90", "--allow-power-limit"], "100 to 350 W, got 90"),
    (["--limits", "90"], "100 to 350 W, got 90"),
    ([], "--limits"),
    (["--limits", "150", "--stage", "warp"], "'warp'"),
])
def test_bad_input_is_refused_and_nothing_is_set(gpu, tmp_path, capsys, arguments, said):
    assert cli.main(["sweep", "--model", "tiny", "--out", str(tmp_path / "out"), *arguments]) == cli.BAD_INPUT
    assert said in capsys.readouterr().err and gpu.calls == []


@pytest.mark.parametrize("limits", ["", "watts", "0", "-5", "inf", "nan", "150;200"])
def test_limits_that_are_no_watts_are_refused(limits, capsys):
    with pytest.raises(SystemExit):
        cli.main(["sweep", f"--limits={limits}"])
    assert "expected watts such as 150,200" in capsys.readouterr().err


def test_without_permission_the_command_says_what_an_administrator_would_type(gpu, tmp_path, capsys):
    gpu.permitted = False
    arguments = ["sweep", "--model", "tiny", "--limits", "150", "--allow-power-limit", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == cli.NOT_MEASURED
    assert "-pl 150" in capsys.readouterr().err
    assert gpu.settings == AS_SHIPPED and not (tmp_path / "out" / "record.json").exists()


def test_without_a_gpu_the_command_says_so(capsys, tmp_path):
    assert cli.main(["sweep", "--limits", "150", "--out", str(tmp_path / "out")]) == cli.NOT_MEASURED
    assert "no CUDA GPU here" in capsys.readouterr().err


def test_ctrl_c_ends_with_130_keeps_the_points_and_puts_the_limit_back(gpu, tmp_path, monkeypatch):
    wait = Stage.wait

    def interrupted(self):
        if 150 in gpu.calls:
            raise KeyboardInterrupt
        wait(self)

    monkeypatch.setattr(Stage, "wait", interrupted)
    arguments = ["sweep", "--model", "tiny", "--limits", "200,150", "--allow-power-limit", "--out", str(tmp_path)]
    assert cli.main(arguments) == cli.INTERRUPTED
    assert gpu.settings == AS_SHIPPED
    assert len(Record.load(tmp_path / "record.json").parts["sweep"][0].points) == 1


def leave_a_limit_behind(gpu):
    """Leave the limit and its marker as a killed process does."""
    sensors = Sensors(gpu, "handle")
    limit = PowerLimit(200, sensors=sensors, allow=True)
    limit.__enter__()
    power._active = None
    limit.restore()  # of a limit that is not in force: only releases the signals and the lock
    assert gpu.settings["limit_mw"] == 200_000


def test_the_doctor_reports_a_leftover_and_sweep_restore_puts_it_back(gpu, capsys):
    assert doctor._gpu_settings() == []
    leave_a_limit_behind(gpu)
    (found,) = doctor._gpu_settings()
    assert found.status == "problem" and found.remedy == "luce-edu sweep --restore" and "200 W" in found.detail
    assert gpu.settings["limit_mw"] == 200_000, "the doctor changes nothing"
    assert cli.main(["sweep", "--restore"]) == 0
    assert "put back from 200 W to 350 W" in capsys.readouterr().out and gpu.settings == AS_SHIPPED
    assert cli.main(["sweep", "--restore"]) == 0 and "nothing to put back" in capsys.readouterr().out


def test_the_plan_names_gpu_range_and_the_limit_to_go_back_to():
    gpu = Decoding()
    said = plan(Sensors.open(gpu.UUID, nvml=gpu), [150])
    assert gpu.UUID in said and "back to 350 W" in said and gpu.calls == []
