"""The errors a reader can meet. Bad input is always a ValueError, raised before anything runs."""


class ConfigError(ValueError):
    """A model config that is not a Qwen3.5 text config, or that a kernel cannot serve."""


class CheckpointError(ValueError):
    """A checkpoint folder that is incomplete or damaged; the message names the file or tensor."""


class CompileError(ValueError):
    """A kernel source that a compiler refused, or a compiler that is missing; `log` is what it said."""

    def __init__(self, message: str, log: str = ""):
        super().__init__(f"{message}\n{log}" if log else message)
        self.log = log


class CacheError(CompileError):
    """The folder for compiled kernels cannot be written, or no library loads from it."""


class LaunchError(ValueError):
    """A launch that was refused before it started: unknown kernel, bad grid, wrong arguments."""


class CaptureError(RuntimeError):
    """Launches that could not become a CUDA graph, such as where memory is short; none of them has run."""


class KernelError(RuntimeError):
    """A kernel that could not finish, such as one that deadlocked (names who waits where), or that a driver refused.

    fault  what the virtual GPU found, one of FAULTS in luce_edu/machine/report.py; "" from elsewhere
    """

    def __init__(self, message: str, fault: str = ""):
        super().__init__(message)
        self.fault = fault


class NotMeasured(Exception):
    """A measurement that cannot be had here; the message is the reason, for the table of what was not run."""
