"""Read NVML: energy counter, power, clocks and limits of the GPU that PyTorch uses. Nothing here sets anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from luce_edu.errors import NotMeasured

# NVML's bits by cause. Heat and the board have two bits each.
SLOWED_BY = {
    "power limit": ("nvmlClocksThrottleReasonSwPowerCap",),
    "heat": ("nvmlClocksThrottleReasonSwThermalSlowdown", "nvmlClocksThrottleReasonHwThermalSlowdown"),
    "the board": ("nvmlClocksThrottleReasonHwSlowdown", "nvmlClocksThrottleReasonHwPowerBrakeSlowdown"),
    "a clock setting": ("nvmlClocksThrottleReasonApplicationsClocksSetting",),
}


@dataclass(frozen=True)
class Sensors:
    """The sensors of one GPU. A reading that is not available raises NotMeasured with the reason."""

    nvml: ModuleType
    handle: object

    @classmethod
    def open(cls, uuid: str | None = None, nvml: ModuleType | None = None) -> Sensors:
        """Return the sensors of the GPU with this uuid, such as 'GPU-4f…'; None for PyTorch's current GPU.

        Raises NotMeasured without a driver, NVML or permission, and if PyTorch's GPU is a MIG slice.
        """
        if nvml is None:
            try:
                import pynvml as nvml
            except ImportError:
                raise NotMeasured("the module pynvml is not installed; pip install nvidia-ml-py") from None
        by_torch = uuid is None
        if by_torch:
            import torch

            if not torch.cuda.is_available():
                raise NotMeasured("no CUDA GPU here")
            # By UUID, as CUDA_VISIBLE_DEVICES makes PyTorch's indices differ from NVML's.
            uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        _ask(nvml, "NVML", nvml.nvmlInit)
        if by_torch and _is_slice(nvml, uuid):
            raise NotMeasured(
                f"PyTorch's {uuid} is a MIG slice, and NVML reads power and energy only of the whole GPU, which others "
                "may use too; measure on a GPU without MIG"
            )
        return cls(nvml, _ask(nvml, f"NVML's {uuid}", lambda: nvml.nvmlDeviceGetHandleByUUID(uuid)))

    def _read(self, what: str, function: str, *args):
        return _ask(self.nvml, what, lambda: getattr(self.nvml, function)(self.handle, *args))

    def energy_j(self) -> float:
        """Return the joules since the driver was loaded. The counter advances only every 10 to 100 ms."""
        return self._read("energy counter", "nvmlDeviceGetTotalEnergyConsumption") / 1e3

    def power_w(self) -> float:
        """Return the current draw of the board, averaged by the driver."""
        return self._read("power", "nvmlDeviceGetPowerUsage") / 1e3

    def power_limit_w(self) -> float:
        """Return the limit in force, the lowest of all that apply."""
        return self._read("power limit", "nvmlDeviceGetEnforcedPowerLimit") / 1e3

    def chosen_power_limit_w(self) -> float:
        """Return the limit that was set, or the default. This is the one that can be set."""
        return self._read("chosen power limit", "nvmlDeviceGetPowerManagementLimit") / 1e3

    def default_power_limit_w(self) -> float:
        return self._read("default power limit", "nvmlDeviceGetPowerManagementDefaultLimit") / 1e3

    def power_limit_range_w(self) -> tuple[float, float]:
        """Return the lowest and the highest limit that can be set."""
        low, high = self._read("range of power limits", "nvmlDeviceGetPowerManagementLimitConstraints")
        return low / 1e3, high / 1e3

    def temperature_c(self) -> int:
        """Return the temperature of the chip in degrees Celsius."""
        return self._read("temperature", "nvmlDeviceGetTemperature", self.nvml.NVML_TEMPERATURE_GPU)

    def slowed_by(self) -> set[str]:
        """Return what lowers the clock now, by the names of SLOWED_BY; idling does not count."""
        # The function's older name also exists in drivers before 535.
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
    """Return NVML's text; older bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _is_slice(nvml: ModuleType, uuid: str) -> bool:
    """Return whether CUDA uses a MIG slice of a GPU. `uuid` is the slice's or its GPU's, both as GPU-…"""
    try:
        nvml.nvmlDeviceGetHandleByUUID(uuid.replace("GPU-", "MIG-", 1))  # NVML's name for a slice
        return True
    except nvml.NVMLError:
        pass
    try:
        mode, _after_reset = nvml.nvmlDeviceGetMigMode(nvml.nvmlDeviceGetHandleByUUID(uuid))
        return bool(mode)
    except nvml.NVMLError:  # NVML does not know it, or the GPU has no MIG
        return os.environ.get("CUDA_VISIBLE_DEVICES", "").startswith("MIG-")


def or_none(reading: Callable[[], object]):
    """Return a reading, or None if it is not available. For readings that only accompany a measurement."""
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
        "NVMLError_FunctionNotFound": "this driver does not have the function",
    }
    for name, reason in known.items():
        if isinstance(error, getattr(nvml, name, ())):
            return reason
    return str(error)
