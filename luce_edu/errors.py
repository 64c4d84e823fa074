"""The package's errors, and checks that raise them. Bad input always raises a ValueError, before anything runs."""


class ConfigError(ValueError):
    """A model config that is not a Qwen3.5 text config, or that the kernels do not support."""


class CheckpointError(ValueError):
    """A checkpoint folder that is incomplete or damaged; the message names the file or tensor."""


class CompileError(ValueError):
    """A kernel source that the compiler refused, or a missing compiler; `log` is the compiler's output."""

    def __init__(self, message: str, log: str = ""):
        super().__init__(f"{message}\n{log}" if log else message)
        self.log = log


class CacheError(CompileError):
    """A cache folder for compiled kernels that cannot be written, or from which no library can be loaded."""


class LaunchError(ValueError):
    """A launch that was refused before it started: unknown kernel, bad grid, wrong arguments.

    fault  "not_resident" or "not_cooperative" where a grid that waits for itself could not; "" for all else
    """

    def __init__(self, message: str, fault: str = ""):
        super().__init__(message)
        self.fault = fault


class CaptureError(RuntimeError):
    """Launches that could not be captured as a CUDA graph, for lack of memory for instance; none of them has run."""


class KernelError(RuntimeError):
    """A kernel that did not finish, or that the driver refused. For a deadlock the message says which warps wait where.

    fault  what the virtual GPU found, one of FAULTS in luce_edu/machine/report.py; "" for errors from elsewhere
    scene  who did what where, a Scene of luce_edu/machine/report.py; None for errors from elsewhere
    """

    def __init__(self, message: str, fault: str = "", scene=None):
        super().__init__(message)
        self.fault, self.scene = fault, scene


class NotMeasured(Exception):
    """A measurement that this machine cannot make; the message is the reason, for the list of what was not run."""


def check_int(
    name: str, value: object, least: int, most: int | None = None, error: type[ValueError] = ValueError
) -> int:
    """Return `value` if it is an integer in range (a bool is not); else raise `error`: name, expected range, value."""
    if type(value) is not int or value < least or most is not None and value > most:
        limits = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise error(f"{name}: expected an integer {limits}, got {value!r}")
    return value


def check_seed(seed: object) -> int:
    """Return `seed` if PyTorch's generators accept it; ValueError if not."""
    return check_int("seed", seed, 0, 2**63 - 1)


def unusable_cache(error: OSError) -> CacheError:
    """Make the error for a cache folder that cannot be created or written."""
    return CacheError(f"the cache of compiled kernels cannot be used ({error}); set LUCE_CACHE to another folder")
