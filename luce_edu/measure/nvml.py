"""NVML, read only: energy counter, power, clocks, limits of the GPU that PyTorch uses. Nothing here sets anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from luce_edu.measure.latency import NotMeasured


@dataclass(frozen=True)
class Sensors:
    """One GPU's sensors. A reading that this GPU or user cannot have raises NotMeasured with the reason."""

    nvml: ModuleType
    handle: object

    @classmethod
    def open(cls, uuid: str | None = None, nvml: ModuleType | None = None) -> Sensors:
        """uuid: such as 'GPU-4f…'; None for PyTorch's current GPU.

        Raises NotMeasured without driver, NVML or permission.
        """
        if nvml is None:
            try:
                import pynvml as nvml
            except ImportError:
                raise NotMeasured("the module pynvml is not there; pip install nvidia-ml-py") from None
        if uuid is None:
            import torch

            if not torch.cuda.is_available():
                raise NotMeasured("no CUDA GPU here")
            uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        _ask(nvml, "NVML", nvml.nvmlInit)
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
        """The limit in force."""
        return self._read("power limit", "nvmlDeviceGetEnforcedPowerLimit") / 1e3

    def sm_clock_mhz(self) -> int:
        return self._read("SM clock", "nvmlDeviceGetClockInfo", self.nvml.NVML_CLOCK_SM)

    def memory_clock_mhz(self) -> int:
        return self._read("memory clock", "nvmlDeviceGetClockInfo", self.nvml.NVML_CLOCK_MEM)

    def driver(self) -> str:
        version = _ask(self.nvml, "driver version", self.nvml.nvmlSystemGetDriverVersion)
        return version.decode() if isinstance(version, bytes) else version


def or_none(reading: Callable[[], float | int | str]):
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
    }
    for name, reason in known.items():
        if isinstance(error, getattr(nvml, name, ())):
            return reason
    return str(error)
