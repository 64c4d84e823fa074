"""A GPU's sensors for tests: the functions of NVML that are read here, by a clock that tests move. It cannot be set."""

import math
import threading


class SettingChanged(BaseException):
    """Something asked NVML to change the GPU. No `except Exception` swallows it."""


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_NoPermission(NVMLError):
    pass


class NVMLError_GpuIsLost(NVMLError):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    pass


class NVMLError_DriverNotLoaded(NVMLError):
    pass


class NVMLError_NotFound(NVMLError):
    pass


class NVMLError_FunctionNotFound(NVMLError):
    pass


class NVMLError_InvalidArgument(NVMLError):
    pass


class NVMLError_Unknown(NVMLError):
    pass


class Clock:
    """A clock in seconds that only `wait` moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


class FakeNvml:
    """Replaces the module pynvml: one GPU whose draw swings by 40 W about 200 W with a period of 3 s.

    faults    by function name, an exception to raise in place of the answer
    lost_at   the time from which every question about the GPU ends in NVMLError_GpuIsLost
    slices    UUIDs of MIG slices ("MIG-…"); if there are any, NVML knows no others
    cut       MIG is on: NVML knows the GPU, and CUDA runs on slices of it
    wraps_at  joules of the energy counter at which it starts from 0 again;  stuck: the counter stands still
    asked     the names of all functions that were called
    """

    UUID = "GPU-12345678-9abc-def0-1234-56789abcdef0"
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
    MEAN_W, WAVE_W, WAVE_S = 200.0, 40.0, 3.0
    TICK = 0.05  # seconds between two updates of the energy counter

    NVML_TEMPERATURE_GPU = 0
    nvmlClocksThrottleReasonApplicationsClocksSetting = 0x02
    nvmlClocksThrottleReasonSwPowerCap = 0x04
    nvmlClocksThrottleReasonHwSlowdown = 0x08
    nvmlClocksThrottleReasonSwThermalSlowdown = 0x20
    nvmlClocksThrottleReasonHwThermalSlowdown = 0x40
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 0x80
    held_by = 0x01  # the reasons for the clock, as bits: here that the GPU idles; tests set others
    LIMITS_MW, DEFAULT_MW = (100_000, 350_000), 350_000

    def __init__(
        self, clock: Clock, *, faults=None, lost_at=math.inf, wraps_at=math.inf, stuck=False, slices=(), cut=False
    ):
        self.slices, self.cut = slices, cut
        self.clock, self.faults, self.lost_at = clock, faults or {}, lost_at
        self.wraps_at, self.stuck = wraps_at, stuck
        self.asked: set[str] = set()
        self._power_was_asked = threading.Condition()
        self._times_asked, self._power_refused = 0, False

    def watts(self, time: float) -> float:
        return self.MEAN_W + self.WAVE_W * math.sin(2 * math.pi * time / self.WAVE_S)

    def joules(self, since: float, until: float) -> float:
        """The joules that the GPU drew between two times."""
        wave = self.WAVE_W * self.WAVE_S / (2 * math.pi)
        angles = (2 * math.pi * time / self.WAVE_S for time in (since, until))
        low, high = (-wave * math.cos(angle) for angle in angles)
        return self.MEAN_W * (until - since) + high - low

    def work(self, seconds: float = 0.02) -> int:
        """Keep the GPU busy for a while, until a sample of its power is taken; return one unit of work."""
        self.clock.wait(seconds)
        with self._power_was_asked:
            before = self._times_asked
            # A sampler that was refused does not ask again.
            self._power_was_asked.wait_for(lambda: self._times_asked > before or self._power_refused, timeout=1)
        return 1

    def _answer(self, name: str, of_gpu: bool = True) -> None:
        self.asked.add(name)
        if name in self.faults:
            raise self.faults[name]
        if of_gpu and self.clock() >= self.lost_at:
            raise NVMLError_GpuIsLost("GPU is lost")

    def nvmlInit(self):
        self._answer("nvmlInit", of_gpu=False)

    def nvmlSystemGetDriverVersion(self):
        self._answer("nvmlSystemGetDriverVersion", of_gpu=False)
        return b"580.65.06"  # older bindings return bytes

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self._answer("nvmlDeviceGetHandleByUUID")
        if uuid not in (self.slices or (self.UUID,)):
            raise NVMLError_NotFound("Not Found")
        return "handle"

    def nvmlDeviceGetMigMode(self, handle):
        self._answer("nvmlDeviceGetMigMode")
        return [int(self.cut), int(self.cut)]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self._answer("nvmlDeviceGetTotalEnergyConsumption")
        seen = 0.0 if self.stuck else self.clock() // self.TICK * self.TICK
        return int(1e3 * (self.joules(0, seen) % self.wraps_at))

    def nvmlDeviceGetPowerUsage(self, handle):
        try:
            self._answer("nvmlDeviceGetPowerUsage")
            return int(1e3 * self.watts(self.clock()))
        except NVMLError:
            self._power_refused = True
            raise
        finally:
            with self._power_was_asked:
                self._times_asked += 1
                self._power_was_asked.notify_all()

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        self._answer("nvmlDeviceGetEnforcedPowerLimit")
        return 350_000

    def nvmlDeviceGetClockInfo(self, handle, kind):
        self._answer("nvmlDeviceGetClockInfo")
        return {self.NVML_CLOCK_SM: 1755, self.NVML_CLOCK_MEM: 2619}[kind]

    def nvmlDeviceGetUUID(self, handle):
        self._answer("nvmlDeviceGetUUID")
        return self.UUID.encode()  # older bindings return bytes

    def nvmlDeviceGetPowerManagementLimit(self, handle):
        self._answer("nvmlDeviceGetPowerManagementLimit")
        return self.DEFAULT_MW

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle):
        self._answer("nvmlDeviceGetPowerManagementDefaultLimit")
        return self.DEFAULT_MW

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle):
        self._answer("nvmlDeviceGetPowerManagementLimitConstraints")
        return list(self.LIMITS_MW)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        self._answer("nvmlDeviceGetTemperature")
        return {self.NVML_TEMPERATURE_GPU: 61}[sensor]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        self._answer("nvmlDeviceGetCurrentClocksThrottleReasons")
        return self.held_by

    def __getattr__(self, name):
        if name.startswith(("nvmlDeviceSet", "nvmlDeviceReset", "nvmlUnitSet", "nvmlDeviceModify", "nvmlDeviceClear")):
            raise SettingChanged(name)
        raise AttributeError(name)


for error in (NVMLError, *NVMLError.__subclasses__()):  # pynvml is a module, and has them as attributes
    setattr(FakeNvml, error.__name__, error)
