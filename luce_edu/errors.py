"""The errors a reader can meet, and checks that raise them. Bad input is always a ValueError, before anything runs."""


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


def check_int(
    name: str, value: object, least: int, most: int | None = None, error: type[ValueError] = ValueError
) -> int:
    """`value`; `error` with its name, what was expected and what came where it is no int (a bool is none) in range."""
    if type(value) is not int or value < least or most is not None and value > most:
        limits = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise error(f"{name}: expected an integer {limits}, got {value!r}")
    return value


def check_seed(seed: object) -> int:
    """A seed that PyTorch's generators take; ValueError for anything else."""
    return check_int("seed", seed, 0, 2**63 - 1)


def unusable_cache(error: OSError) -> CacheError:
    """The error for a cache folder that cannot be made or written."""
    return CacheError(f"the cache for kernels cannot be used ({error}); name another folder in LUCE_CACHE")
