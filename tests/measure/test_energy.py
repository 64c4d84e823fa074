"""Joules are those that were drawn, or a reason is given why there are none; no setting of a GPU is changed."""

import inspect
import re
import sys
import threading
from types import SimpleNamespace

import fake_nvml
import pytest
from fake_nvml import Clock, FakeNvml, SettingChanged
from settable_nvml import SettableNvml

from luce_edu.errors import NotMeasured
from luce_edu.measure import energy, nvml
from luce_edu.measure.energy import measure_energy, measure_idle
from luce_edu.measure.nvml import Sensors, or_none

COUNTER, POWER = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"
TOLERANCE = 0.05  # the counter ticks every 0.05 s, at up to 240 W, in windows of 2 s and 200 W or more


@pytest.fixture(autouse=True)
def quick_samples(monkeypatch):
    """The sampler waits by the real clock; the GPU's time is fake."""
    monkeypatch.setattr(energy, "SAMPLE_EVERY", 0.0003)


def gpu(**faults) -> tuple[FakeNvml, Sensors]:
    fake = FakeNvml(Clock(), **faults)
    return fake, Sensors.open(FakeNvml.UUID, nvml=fake)


def measured(fake, sensors, seconds=2.5, **options):
    """A measurement, and the joules that the fake GPU drew meanwhile."""
    started = fake.clock()
    result = measure_energy(fake.work, sensors, seconds=seconds, clock=fake.clock, **options)
    return result, fake.joules(started, fake.clock())


# ---- Right ----


@pytest.mark.parametrize("seconds", [2.0, 3.3])
def test_joules_of_counter_and_samples_are_those_that_were_drawn(seconds):
    fake, sensors = gpu()
    result, drawn = measured(fake, sensors, seconds, idle_w=71.0)
    assert (result.method, result.idle_w) == ("counter", 71.0)
    assert result.joules == pytest.approx(drawn, rel=TOLERANCE)
    assert result.sampled_joules == pytest.approx(drawn, rel=0.02)
    assert result.seconds == pytest.approx(seconds, abs=0.03)
    assert result.work == pytest.approx(seconds / 0.02, abs=2)
    assert result.per_joule == result.work / result.joules


def test_without_a_counter_the_samples_alone_give_joules():
    fake, sensors = gpu(faults={COUNTER: fake_nvml.NVMLError_NotSupported()})
    result, drawn = measured(fake, sensors)
    assert result.method == "samples" and result.joules == result.sampled_joules
    assert result.joules == pytest.approx(drawn, rel=0.02)


def test_without_power_the_counter_alone_gives_joules():
    fake, sensors = gpu(faults={POWER: fake_nvml.NVMLError_NotSupported()})
    result, drawn = measured(fake, sensors)
    assert result.method == "counter" and result.sampled_joules is None
    assert result.joules == pytest.approx(drawn, rel=TOLERANCE)


def test_idle_draw_is_the_mean_over_its_window():
    fake, sensors = gpu()
    started = fake.clock()

    def wait(seconds):
        fake.clock.wait(seconds * 0.02 / energy.SAMPLE_EVERY)

    watts = measure_idle(sensors, seconds=100 * energy.SAMPLE_EVERY, wait=wait)
    assert fake.clock() - started == pytest.approx(2.0)
    assert watts == pytest.approx(fake.joules(started, fake.clock()) / 2.0, rel=0.02)


def test_readings_are_in_the_units_of_their_names():
    fake, sensors = gpu()
    assert sensors.power_limit_w() == 350
    assert (sensors.sm_clock_mhz(), sensors.memory_clock_mhz()) == (1755, 2619)
    assert sensors.driver() == "580.65.06"
    assert sensors.uuid() == FakeNvml.UUID
    assert (sensors.chosen_power_limit_w(), sensors.default_power_limit_w()) == (350, 350)
    assert sensors.power_limit_range_w() == (100, 350)
    assert sensors.temperature_c() == 61
    assert sensors.power_w() == pytest.approx(fake.watts(fake.clock()), abs=0.001)


@pytest.mark.parametrize("bits, names", [
    (0x01, set()), (0x04, {"power limit"}), (0x20, {"heat"}), (0x40, {"heat"}), (0x08, {"the board"}),
    (0x81, {"the board"}), (0x02, {"a clock setting"}), (0x24, {"power limit", "heat"}),
])  # fmt: skip
def test_what_keeps_the_clock_down_has_a_name(bits, names):
    fake, sensors = gpu()
    fake.held_by = bits
    assert sensors.slowed_by() == names


# ---- A measurement that cannot be made has its reason ----

SEEN = {
    "not supported": (fake_nvml.NVMLError_NotSupported(), "this GPU does not report it"),
    "no permission": (fake_nvml.NVMLError_NoPermission(), "no permission"),
    "lost": (fake_nvml.NVMLError_GpuIsLost(), "the GPU is gone from the bus"),
    "no driver": (fake_nvml.NVMLError_LibraryNotFound(), "no NVIDIA driver here"),
    "driver not loaded": (fake_nvml.NVMLError_DriverNotLoaded(), "the NVIDIA driver is not loaded"),
    "an old driver": (fake_nvml.NVMLError_FunctionNotFound(), "this driver does not have the function"),
    "something else": (fake_nvml.NVMLError_Unknown("Unknown Error"), "Unknown Error"),
}


@pytest.mark.parametrize("seen", SEEN)
def test_sensors_that_cannot_be_opened_say_why(seen):
    error, reason = SEEN[seen]
    with pytest.raises(NotMeasured, match=f"^NVML: {reason}$"):
        gpu(faults={"nvmlInit": error})


@pytest.mark.parametrize("seen", SEEN)
def test_a_reading_that_cannot_be_made_is_named(seen):
    error, _ = SEEN[seen]
    readings = {
        "energy counter": (COUNTER, Sensors.energy_j),
        "power": (POWER, Sensors.power_w),
        "power limit": ("nvmlDeviceGetEnforcedPowerLimit", Sensors.power_limit_w),
        "SM clock": ("nvmlDeviceGetClockInfo", Sensors.sm_clock_mhz),
        "memory clock": ("nvmlDeviceGetClockInfo", Sensors.memory_clock_mhz),
        "chosen power limit": ("nvmlDeviceGetPowerManagementLimit", Sensors.chosen_power_limit_w),
        "default power limit": ("nvmlDeviceGetPowerManagementDefaultLimit", Sensors.default_power_limit_w),
        "range of power limits": ("nvmlDeviceGetPowerManagementLimitConstraints", Sensors.power_limit_range_w),
        "temperature": ("nvmlDeviceGetTemperature", Sensors.temperature_c),
        "what holds the clock": ("nvmlDeviceGetCurrentClocksThrottleReasons", Sensors.slowed_by),
        "UUID": ("nvmlDeviceGetUUID", Sensors.uuid),
        "driver version": ("nvmlSystemGetDriverVersion", Sensors.driver),
    }
    for name, (function, reading) in readings.items():
        _, sensors = gpu(faults={function: error})
        with pytest.raises(NotMeasured, match=f"^{name}: "):
            reading(sensors)
        assert or_none(lambda reading=reading, sensors=sensors: reading(sensors)) is None


def test_a_gpu_that_nvml_does_not_know_is_named():
    with pytest.raises(NotMeasured, match="NVML's GPU-other: no such GPU"):
        Sensors.open("GPU-other", nvml=FakeNvml(Clock()))


# ---- The GPU that PyTorch uses ----

SLICE = FakeNvml.UUID.replace("GPU-", "MIG-")


@pytest.fixture
def torch_uses(monkeypatch):
    """Give PyTorch's GPU a UUID, as CUDA_VISIBLE_DEVICES does."""

    def use(uuid: str, visible: str) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
        properties = SimpleNamespace(uuid=uuid.partition("-")[2])
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)

    return use


SLICES = {
    "only slices are known": {"slices": (SLICE,)},
    "other slices are known": {"slices": ("MIG-0",)},
    "the GPU is known, and MIG is on": {"cut": True},
}


@pytest.mark.parametrize("kind", [FakeNvml, SettableNvml])
@pytest.mark.parametrize("row", SLICES)
def test_a_mig_slice_is_said_to_be_why_there_are_no_joules(torch_uses, row, kind):
    torch_uses(FakeNvml.UUID, SLICE)
    fake = kind(Clock(), **SLICES[row])
    with pytest.raises(NotMeasured, match=f"{FakeNvml.UUID}.*MIG"):
        Sensors.open(nvml=fake)
    assert not {COUNTER, POWER} & fake.asked


class TwoGpus(FakeNvml):
    """Two whole GPUs, of which the second draws twice as much; a handle is a UUID."""

    SECOND = "GPU-87654321-9abc-def0-1234-56789abcdef0"

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in (self.UUID, self.SECOND):
            raise fake_nvml.NVMLError_NotFound("Not Found")
        return uuid

    def nvmlDeviceGetUUID(self, handle):
        return handle

    def nvmlDeviceGetPowerUsage(self, handle):
        return super().nvmlDeviceGetPowerUsage(handle) * (2 if handle == self.SECOND else 1)


@pytest.mark.parametrize("uuid", [TwoGpus.UUID, TwoGpus.SECOND])
@pytest.mark.parametrize("fault", [None, fake_nvml.NVMLError_NotSupported()])
def test_a_uuid_in_cuda_visible_devices_leads_to_that_gpu(torch_uses, uuid, fault):
    torch_uses(uuid, uuid)
    fake = TwoGpus(Clock(), faults={"nvmlDeviceGetMigMode": fault} if fault else None)
    sensors = Sensors.open(nvml=fake)
    times = 2 if uuid == TwoGpus.SECOND else 1
    assert sensors.uuid() == uuid and sensors.power_w() == pytest.approx(times * fake.watts(fake.clock()), abs=0.01)


def test_a_gpu_by_its_uuid_is_found_with_mig_on_so_that_a_setting_can_be_put_back():
    assert Sensors.open(FakeNvml.UUID, nvml=FakeNvml(Clock(), cut=True)).uuid() == FakeNvml.UUID


def test_a_missing_pynvml_is_named_with_the_package_that_has_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NotMeasured, match="pip install nvidia-ml-py"):
        Sensors.open()


def test_without_a_gpu_pytorch_is_asked_first(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    fake = FakeNvml(Clock())
    with pytest.raises(NotMeasured, match="no CUDA GPU here"):
        Sensors.open(nvml=fake)


@pytest.mark.planted
def test_a_counter_that_wraps_gives_no_joules():
    fake, _ = gpu()
    fake, sensors = gpu(wraps_at=fake.joules(0, fake.clock()) + 300)
    with pytest.raises(NotMeasured, match=r"counter: .*\d+\.\d{3} to \d+\.\d{3} J"):
        measured(fake, sensors)


@pytest.mark.planted
def test_a_counter_that_stands_still_gives_no_joules():
    with pytest.raises(NotMeasured, match="^energy counter: "):
        measured(*gpu(stuck=True))


@pytest.mark.planted
def test_without_counter_and_power_both_reasons_are_given():
    refused = {COUNTER: fake_nvml.NVMLError_NotSupported(), POWER: fake_nvml.NVMLError_NoPermission()}
    with pytest.raises(NotMeasured, match="^energy counter: .*; power: "):
        measured(*gpu(faults=refused))


@pytest.mark.planted
@pytest.mark.parametrize("counter", [True, False])
def test_a_gpu_that_is_lost_in_the_middle_gives_no_joules(counter):
    faults = {} if counter else {COUNTER: fake_nvml.NVMLError_NotSupported()}
    fake, sensors = gpu(faults=faults, lost_at=1001.2)
    with pytest.raises(NotMeasured, match="the GPU is gone from the bus"):
        measured(fake, sensors)


@pytest.mark.planted
def test_power_that_fails_in_the_middle_is_no_mean_of_the_window():
    """The counter still gives joules; the samples would only give those of the first half."""
    fake, sensors = gpu()
    work = fake.work

    def fails_later():
        if fake.clock() > 1001.2:
            fake.faults[POWER] = fake_nvml.NVMLError_Unknown("hiccup")
        return work()

    fake.work = fails_later
    result, drawn = measured(fake, sensors)
    assert result.joules == pytest.approx(drawn, rel=TOLERANCE) and result.sampled_joules is None


@pytest.mark.planted
@pytest.mark.parametrize("seconds", [1.99, 0, -1, float("nan")])
def test_a_window_too_short_for_the_counter_is_refused_before_anything_runs(seconds):
    fake, sensors = gpu()
    with pytest.raises(ValueError, match="seconds: expected 2 or more, got"):
        measure_energy(lambda: pytest.fail("it ran"), sensors, seconds=seconds, clock=fake.clock)


@pytest.mark.planted
def test_a_window_without_work_gives_no_joules():
    fake, sensors = gpu()
    with pytest.raises(NotMeasured, match="no work was done"):
        measure_energy(lambda: fake.work() * 0, sensors, seconds=2, clock=fake.clock)


def test_work_that_fails_leaves_no_thread_behind():
    fake, sensors = gpu()

    def fail():
        fake.work()
        raise RuntimeError("out of order")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="out of order"):
        measure_energy(fail, sensors, seconds=2, clock=fake.clock)
    assert threading.active_count() == before


class Milli(Sensors):
    """Takes NVML's milliwatts and millijoules for watts and joules."""

    def energy_j(self):
        return super().energy_j() * 1e3

    def power_w(self):
        return super().power_w() * 1e3


class Lagging(Sensors):
    """Reads the counter 0.3 s before the work ends."""

    def energy_j(self):
        return self.nvml.joules(0, self.nvml.clock() - 0.3) if self.nvml.clock() > 1001 else super().energy_j()


@pytest.mark.planted
@pytest.mark.parametrize("kind", [Milli, Lagging])
def test_a_wrong_unit_or_a_late_counter_is_outside_the_tolerance(kind):
    fake = FakeNvml(Clock())
    result, drawn = measured(fake, kind.open(FakeNvml.UUID, nvml=fake))
    assert result.joules != pytest.approx(drawn, rel=TOLERANCE)


# ---- Read only ----


def test_no_measurement_asks_nvml_to_change_anything():
    fake, sensors = gpu()
    measured(fake, sensors, 2.0)
    measure_idle(sensors, seconds=2, wait=lambda _: fake.clock.wait(1))
    for reading in (sensors.power_limit_w, sensors.sm_clock_mhz, sensors.memory_clock_mhz, sensors.driver):
        reading()
    assert {COUNTER, POWER} < fake.asked
    assert all(re.match(r"nvml(Device|System)Get|nvmlInit", name) for name in fake.asked)


@pytest.mark.planted
@pytest.mark.parametrize("name", ["nvmlDeviceSetPowerManagementLimit", "nvmlDeviceSetGpuLockedClocks"])
def test_the_fake_refuses_to_be_set(name):
    fake, sensors = gpu()
    with pytest.raises(SettingChanged, match=name):
        or_none(lambda: getattr(fake, name)(sensors.handle, 100_000))


def test_the_fake_has_the_names_of_the_real_module():
    pynvml = pytest.importorskip("pynvml")
    used = set(re.findall(r"\b(nvml[A-Z]\w+|NVML\w+)", inspect.getsource(nvml)))
    assert len(used) > 12
    for name in used:
        assert hasattr(pynvml, name) and hasattr(FakeNvml, name), name
    assert issubclass(pynvml.NVMLError_NotSupported, pynvml.NVMLError)
