"""NVML, read only: energy counter, power, clocks, limits of the GPU that PyTorch uses. Nothing here sets anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from luce_edu.errors import NotMeasured

# NVML's bits; heat and the board's own brake have two each, by what notices first.
SLOWED_BY = {
    "power limit": ("nvmlClocksThrottleReasonSwPowerCap",),
    "heat": ("nvmlClocksThrottleReasonSwThermalSlowdown", "nvmlClocksThrottleReasonHwThermalSlowdown"),
    "the board": ("nvmlClocksThrottleReasonHwSlowdown", "nvmlClocksThrottleReasonHwPowerBrakeSlowdown"),
    "a clock setting": ("nvmlClocksThrottleReasonApplicationsClocksSetting",),
}


@dataclass(frozen=True)
class Sensors:
    """One GPU's sensors. A reading that this GPU or user cannot have raises NotMeasured with the reason."""

    nvml: ModuleType
    handle: object

    @classmethod
    def open(cls, uuid: str | None = None, nvml: ModuleType | None = None) -> Sensors:
        """uuid: such as 'GPU-4f…'; None for PyTorch's current GPU.

        Raises NotMeasured without driver, NVML or permission, and where PyTorch's GPU is a MIG slice.
        """
        if nvml is None:
            try:
                import pynvml as nvml
            except ImportError:
                raise NotMeasured("the module pynvml is not there; pip install nvidia-ml-py") from None
        by_torch = uuid is None
        if by_torch:
            import torch

            if not torch.cuda.is_available():
                raise NotMeasured("no CUDA GPU here")
            # By UUID: with CUDA_VISIBLE_DEVICES, PyTorch's numbers are not NVML's.
            uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        _ask(nvml, "NVML", nvml.nvmlInit)
        if by_torch and _is_slice(nvml, uuid):
            raise NotMeasured(
                f"PyTorch's {uuid} is a MIG slice; NVML reads power and energy of the whole GPU only, which others may "
                "use too: measure on a GPU without MIG"
            )
        return cls(nvml, _ask(nvml, f"NVML's {uuid}", lambda: nvml.nvmlDeviceGetHandleByUUID(uuid)))

    def _read(self, what: str, function: str, *args):
        return _ask(self.nvml, what, lambda: getattr(self.nvml, function)(self.handle, *args))

    def energy_j(self) -> float:
        """Joules since the driver was loaded. The counter ticks every 10 to 100 ms: take windows of seconds."""
        return self._read("energy counter", "nvmlDeviceGetTotalEnergyConsumption") / 1e3

    def power_w(self) -> float:
        """Draw of the board now, as the driver averages it."""
        return self._read("power", "nvmlDeviceGetPowerUsage") / 1e3

    def power_limit_w(self) -> float:
        """The limit in force: the least of all that hold."""
        return self._read("power limit", "nvmlDeviceGetEnforcedPowerLimit") / 1e3

    def chosen_power_limit_w(self) -> float:
        """The limit that somebody chose, or the default; what may be set anew."""
        return self._read("chosen power limit", "nvmlDeviceGetPowerManagementLimit") / 1e3

    def default_power_limit_w(self) -> float:
        return self._read("default power limit", "nvmlDeviceGetPowerManagementDefaultLimit") / 1e3

    def power_limit_range_w(self) -> tuple[float, float]:
        """The lowest and the highest limit that may be chosen."""
        low, high = self._read("range of power limits", "nvmlDeviceGetPowerManagementLimitConstraints")
        return low / 1e3, high / 1e3

    def temperature_c(self) -> int:
        """Of the chip, in degrees Celsius."""
        return self._read("temperature", "nvmlDeviceGetTemperature", self.nvml.NVML_TEMPERATURE_GPU)

    def slowed_by(self) -> set[str]:
        """What keeps the clock down now, by the names of SLOWED_BY; idling is not among them."""
        # By its older name, which drivers before 535 know too.
        reasons = self._read("what holds the clock", "nvmlDeviceGetCurrentClocksThrottleReasons")
        return {name for name, bits in SLOWED_BY.items() if any(reasons & getattr(self.nvml, bit) for bit in bits)}

    def sm_clock_mhz(self) -> int:
        return self._read("SM clock", "nvmlDeviceGetClockInfo", self.nvml.NVML_CLOCK_SM)

    def memory_clock_mhz(self) -> int:
        return self._read("memory clock", "nvmlDeviceGetClockInfo", self.nvml.NVML_CLOCK_MEM)

    def uuid(self) -> str:
        return _text(self._read("UUID", "nvmlDeviceGetUUID"))

    def driver(self) -> str:
        return _text(_ask(self.nvml, "driver version", self.nvml.nvmlSystemGetDriverVersion))


def _text(value: str | bytes) -> str:
    """Older bindings return bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _is_slice(nvml: ModuleType, uuid: str) -> bool:
    """Whether what CUDA uses is a MIG slice of a GPU. `uuid` may be the slice's own or its GPU's, both as GPU-…"""
    try:
        nvml.nvmlDeviceGetHandleByUUID(uuid.replace("GPU-", "MIG-", 1))  # the name that NVML has for a slice
        return True
    except nvml.NVMLError:
        pass
    try:
        mode, _after_reset = nvml.nvmlDeviceGetMigMode(nvml.nvmlDeviceGetHandleByUUID(uuid))
        return bool(mode)
    except nvml.NVMLError:  # NVML does not know it, or it is a GPU that cannot be cut
        return os.environ.get("CUDA_VISIBLE_DEVICES", "").startswith("MIG-")


def or_none(reading: Callable[[], object]):
    """A reading, or None where it cannot be had: for what only accompanies a measurement."""
    try:
        return reading()
    except NotMeasured:
        return None


def _ask(nvml: ModuleType, what: str, question: Callable[[], object]):
    try:
        return question()
    except nvml.NVMLError as error:
        raise NotMeasured(f"{what}: {_reason(nvml, error)}") from None


def _reason(nvml: ModuleType, error: Exception) -> str:
    known = {
        "NVMLError_NotSupported": "this GPU does not report it",
        "NVMLError_NoPermission": "no permission",
        "NVMLError_GpuIsLost": "the GPU is gone from the bus",
        "NVMLError_LibraryNotFound": "no NVIDIA driver here",
        "NVMLError_DriverNotLoaded": "the NVIDIA driver is not loaded",
        "NVMLError_NotFound": "no such GPU",
        "NVMLError_FunctionNotFound": "this driver does not know the question",
    }
    for name, reason in known.items():
        if isinstance(error, getattr(nvml, name, ())):
            return reason
    return str(error)
