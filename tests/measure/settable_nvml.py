"""A fake GPU whose power limit can be set, with the driver's ranges and permissions; its draw follows the limit."""

import json
import math
from pathlib import Path

from fake_nvml import Clock, FakeNvml, NVMLError_InvalidArgument, NVMLError_NoPermission

AS_SHIPPED = {"limit_mw": 350_000}


def clock_mhz(limit_w: float) -> float:
    """The SM clock at a power limit: the draw is 40 W and a part that grows with the cube of the clock."""
    return min(1980.0, 1980 * ((limit_w - 40) / 280) ** (1 / 3))


def draw_w(clock: float) -> float:
    return 40 + 280 * (clock / 1980) ** 3


class SettableNvml(FakeNvml):
    """A FakeNvml whose power limit can be set.

    hardware   a file that holds the settings and outlives the process; None for a GPU of this process only
    permitted  whether this user may set anything
    lag_s      time constant with which draw and clock follow a new setting
    wave_w     amplitude of a periodic draw, so that no window is like the next
    ignores    accepts a power limit and keeps the old one
    calls      the limits asked for, in watts and in order
    """

    def __init__(self, clock=None, *, hardware=None, permitted=True, lag_s=0.5, wave_w=0.0, ignores=False, **faults):
        super().__init__(clock or Clock(), **faults)
        self.hardware, self.permitted, self.lag_s, self.ignores = hardware, permitted, lag_s, ignores
        self.WAVE_W = wave_w
        self.calls: list[float] = []
        self._settings = dict(AS_SHIPPED)
        # The time of the last setting, the clock then, and the joules up to then.
        self._since, self._from_mhz, self._joules = self.clock(), clock_mhz(350), 0.0

    @property
    def settings(self) -> dict:
        if self.hardware and Path(self.hardware).exists():
            return json.loads(Path(self.hardware).read_text())
        return self._settings

    def change(self, **setting) -> None:
        """Change a setting, as this program or another one does."""
        now = self.clock()
        self._joules, self._from_mhz, self._since = self.joules(0, now), self.mhz(now), now
        self._settings = self.settings | setting
        if self.hardware:
            Path(self.hardware).write_text(json.dumps(self._settings))

    def mhz(self, time: float) -> float:
        target = clock_mhz(self.settings["limit_mw"] / 1e3)
        return target + (self._from_mhz - target) * math.exp(-(time - self._since) / self.lag_s)

    def watts(self, time):
        return draw_w(self.mhz(time)) + self.WAVE_W * math.sin(2 * math.pi * time / self.WAVE_S)

    def joules(self, since, until):
        """The joules drawn, by Simpson's rule from the last setting on."""
        assert since == 0 and until >= self._since - self.TICK
        steps = 2 * max(1, math.ceil((until - self._since) / 0.1))
        width = (until - self._since) / steps
        weights = (1, *(4 if i % 2 else 2 for i in range(1, steps)), 1)
        return self._joules + width / 3 * sum(w * self.watts(self._since + i * width) for i, w in enumerate(weights))

    def nvmlDeviceGetPowerManagementLimit(self, handle):
        self._answer("nvmlDeviceGetPowerManagementLimit")
        return self.settings["limit_mw"]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        self._answer("nvmlDeviceGetEnforcedPowerLimit")
        return self.settings["limit_mw"]

    def nvmlDeviceGetClockInfo(self, handle, kind):
        if kind != self.NVML_CLOCK_SM:
            return super().nvmlDeviceGetClockInfo(handle, kind)
        self._answer("nvmlDeviceGetClockInfo")
        return round(self.mhz(self.clock()))

    def nvmlDeviceGetTemperature(self, handle, sensor):
        super().nvmlDeviceGetTemperature(handle, sensor)
        return round(25 + 0.15 * self.watts(self.clock()))

    def nvmlDeviceSetPowerManagementLimit(self, handle, limit_mw):
        self._answer("nvmlDeviceSetPowerManagementLimit")
        if not self.permitted:
            raise NVMLError_NoPermission("Insufficient Permissions")
        if not self.LIMITS_MW[0] <= limit_mw <= self.LIMITS_MW[1]:
            raise NVMLError_InvalidArgument("Invalid Argument")
        self.calls.append(limit_mw / 1e3)
        if not self.ignores:
            self.change(limit_mw=limit_mw)
