"""Find out what this machine has and what the course needs; for what is missing, say which line to type."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from luce_edu.backends.devices import DRIVER_FOR_CUDA, OLDEST_CAPABILITY, torch_lacks
from luce_edu.errors import CacheError, CompileError
from luce_edu.machine import nvrtc
from luce_edu.machine.core import find_compiler, try_out
from luce_edu.paths import cache_dir

CU12_NEWEST = (9, 0)  # the newest GPU of the PyTorch that `make CUDA=cu12` installs, which is for CUDA 12.6
RANDOM_MODEL_GIB = 5  # random-0.8b: 1.5 GB of bf16 weights, and the fp32 reference beside them
INSTALL_COMPILER = "sudo apt install g++"
OTHER_CACHE = "export LUCE_CACHE=/a/folder/of/yours"
CXX20_PROBE = """
#include <atomic>
#include <source_location>
int main() {
    int x = 0;
    std::atomic_ref<int>(x).fetch_add(1);
    return std::source_location::current().line() == 0;
}
"""
CUDA_PROBE = 'extern "C" __global__ void probe(float* x) { x[threadIdx.x] += 1.0f; }'


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    status  "ok", "info" (nothing to do), "missing" or "problem"
    detail  what was found
    remedy  a line to type, or "" if nothing needs to be done
    needed  whether the walkthrough needs it
    """

    name: str
    status: str
    detail: str
    remedy: str = ""
    needed: bool = False

    @property
    def good(self) -> bool:
        return self.status in ("ok", "info")


def diagnose() -> list[Finding]:
    """Look at everything and return the findings; what is missing or broken does not raise."""
    compiler, cache = _compiler(), _cache()
    return [
        _python(),
        _torch(),
        *_gpus(),
        *_gpu_settings(),
        _nvrtc(),
        compiler,
        cache,
        *([_kernels()] if compiler.good and cache.good else []),
        _tiny(),
        _jupyter(),
        _memory(),
    ]


def ready(findings: Sequence[Finding]) -> bool:
    """Whether the walkthrough can run on this machine."""
    return all(finding.good for finding in findings if finding.needed)


def to_dict(findings: Sequence[Finding]) -> dict:
    """Return the report for --json."""
    return {"ready": ready(findings), "findings": [asdict(finding) for finding in findings]}


def table(findings: Sequence[Finding]):
    """Return the report as a rich table, with the verdict under it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "info": "cyan", "missing": "red", "problem": "red"}
    result = Table(title="luce-edu doctor", title_justify="left")
    for column in ("", "status", "found"):
        result.add_column(column, overflow="fold")
    for finding in findings:
        colour = colours[finding.status] if finding.needed or finding.good else "yellow"
        detail = Text(finding.detail)
        if finding.remedy:
            detail.append(f"\nto do: {finding.remedy}", style="bold")
        result.add_row(finding.name, Text(finding.status, style=colour), detail)
    verdict = "The walkthrough can run here: make walkthrough"
    if not ready(findings):
        missing = [finding.name for finding in findings if finding.needed and not finding.good]
        verdict = f"The walkthrough cannot run here yet; to be done first: {', '.join(missing)}"
    return Group(result, verdict)


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", f"{found} ({sys.executable})", needed=True)


def _torch() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        remedy = "pip install -c constraints.txt torch"
        return Finding("torch", "missing", f"cannot be imported: {error}", remedy, True)
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Finding("torch", "ok", f"{torch.__version__}, {build}", needed=True)


def _gpus() -> list[Finding]:
    """Look for the NVIDIA driver and GPUs, by NVML. Neither is needed, because there is the virtual GPU."""
    try:
        import pynvml
    except ImportError:
        return [Finding("driver", "missing", "module pynvml is not installed", "pip install nvidia-ml-py")]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [_no_driver(pynvml, error)]
    try:
        findings = [_driver(pynvml)]
        count = pynvml.nvmlDeviceGetCount()
        findings += [_gpu(pynvml, index) for index in range(count)]
        if count == 0:
            findings.append(Finding("gpu", "info", "the driver sees no GPU; kernels run on the virtual GPU"))
        return findings
    except pynvml.NVMLError as error:
        return [Finding("driver", "problem", f"NVML failed: {error}", "nvidia-smi")]
    finally:
        pynvml.nvmlShutdown()


def _gpu_settings() -> list[Finding]:
    """Look for power limits that a sweep has set and not restored; they are not changed here."""
    try:
        from luce_edu.measure.power.limits import leftovers
    except ImportError:  # without PyTorch, for instance, which has a finding of its own
        return []
    remedy = "luce-edu sweep --restore"
    return [
        Finding("gpu settings", "info" if left.alive else "problem", left.said, "" if left.alive else remedy)
        for left in leftovers()
    ]


def _no_driver(pynvml, error) -> Finding:
    if isinstance(error, pynvml.NVMLError_LibraryNotFound):
        return Finding("driver", "info", "no NVIDIA driver, so no GPU; kernels run on the virtual GPU")
    if isinstance(error, pynvml.NVMLError_NoPermission):
        remedy = "sudo usermod -aG video,render $USER   (then log in again)"
        return Finding("driver", "problem", f"no permission to use the GPU ({error})", remedy)
    if isinstance(error, pynvml.NVMLError_DriverNotLoaded):
        return Finding("driver", "problem", f"installed but not loaded ({error})", "sudo modprobe nvidia")
    if isinstance(error, pynvml.NVMLError_LibRmVersionMismatch):
        return Finding("driver", "problem", f"updated, but the old one is still loaded ({error})", "sudo reboot")
    return Finding("driver", "problem", f"NVML does not start: {error}", "nvidia-smi")


def _driver(pynvml) -> Finding:
    """Look at the driver, and whether it knows the CUDA version of the installed packages."""
    cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()  # 12080 means 12.8
    major, minor = cuda // 1000, cuda % 1000 // 10
    found = f"{_text(pynvml.nvmlSystemGetDriverVersion())}, knows CUDA up to {major}.{minor}"
    if major < min(DRIVER_FOR_CUDA):
        detail = f"{found}; {DRIVER_FOR_CUDA[12]} or newer is needed, and {DRIVER_FOR_CUDA[13]} for CUDA 13"
        return Finding("driver", "problem", detail, f"sudo apt install nvidia-driver-{DRIVER_FOR_CUDA[13]}")
    extra = "cu13" if major >= 13 else "cu12"
    newest = max((_capability(pynvml, i) for i in range(pynvml.nvmlDeviceGetCount())), default=OLDEST_CAPABILITY)
    if extra == "cu12" and newest > CU12_NEWEST:
        detail = f"{found}; a GPU of compute capability {newest[0]}.{newest[1]} needs {DRIVER_FOR_CUDA[13]} or newer"
        return Finding("driver", "problem", detail, f"sudo apt install nvidia-driver-{DRIVER_FOR_CUDA[13]}")
    remedy = f"rm -rf .venv && make CUDA={extra} walkthrough"
    torch_cuda = _torch_cuda_major()
    if torch_cuda is None:
        return Finding("driver", "problem", f"{found}; this PyTorch is a CPU build and sees no GPU", remedy)
    made_for = {"PyTorch": torch_cuda, "cuda-bindings": _installed_major("cuda-bindings") or major}
    newer = [f"{name} is for CUDA {cuda}" for name, cuda in made_for.items() if cuda > major]
    if newer:
        return Finding("driver", "problem", f"{found}; {', '.join(newer)}: use {extra}", remedy)
    return Finding("driver", "ok", f"{found}; extra {extra}")


def _gpu(pynvml, index: int) -> Finding:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    capability = _capability(pynvml, index)
    try:
        memory = f"{pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30:.0f} GiB"
    except pynvml.NVMLError:  # a GPU that shares the machine's memory reports no memory of its own
        memory = "shared memory"
    name = _text(pynvml.nvmlDeviceGetName(handle))
    detail = f"{name}, {memory}, compute capability {capability[0]}.{capability[1]}"
    if capability < OLDEST_CAPABILITY:
        detail += "; Turing (7.5) or newer is needed, so the virtual GPU takes over"
        return Finding(f"gpu {index}", "info", detail)
    if _torch_cuda_major() and (problem := torch_lacks(capability)):
        why, _, remedy = problem.partition("; ")
        return Finding(f"gpu {index}", "problem", f"{detail}; {why}", remedy)
    return Finding(f"gpu {index}", "ok", detail)


def _capability(pynvml, index: int) -> tuple[int, int]:
    return tuple(pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(index)))


def _text(value: str | bytes) -> str:
    """Return a text that older NVML bindings give as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _installed_major(package: str) -> int | None:
    try:
        return int(version(package).split(".")[0])
    except PackageNotFoundError:
        return None


def _torch_cuda_major() -> int | None:
    try:
        import torch
    except (ImportError, OSError):
        return None
    return int(torch.version.cuda.split(".")[0]) if torch.version.cuda else None


def _nvrtc() -> Finding:
    """Compile a small kernel to machine code, which needs neither a GPU nor a driver."""
    remedy = "pip install -c constraints.txt -e '.[cu13]'"
    try:
        nvrtc.run({"probe.cu": CUDA_PROBE}, {}, "sm_80", "CUBIN")
    except CompileError as error:
        return Finding("nvrtc", "missing", f"{error}{error.log and f': {error.log}'}", remedy, True)
    except Exception as error:  # a broken library may raise anything, and the report must go on
        return Finding("nvrtc", "problem", f"does not compile a small kernel: {error}", remedy, True)
    packages = [name for name in nvrtc.PACKAGES if _installed_major(name)]
    found = ", ".join(f"{name} {version(name)}" for name in packages) or "no NVRTC package"
    return Finding("nvrtc", "ok", f"compiles for any GPU; {found}", needed=True)


def _compiler() -> Finding:
    remedy = INSTALL_COMPILER
    try:
        command = find_compiler()
    except CompileError as error:
        return Finding("compiler", "missing", str(error), remedy, True)
    try:
        name = _output([*command, "--version"])
        _output([*command, "-std=c++20", "-x", "c++", "-fsyntax-only", "-"], CXX20_PROBE)
    except subprocess.CalledProcessError as error:
        why = " ".join(error.stderr.splitlines()[:1])
        return Finding("compiler", "problem", f"{command[0]} does not compile C++20: {why}", remedy, True)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("compiler", "problem", f"{command[0]} does not run: {error}", remedy, True)
    version_line = " ".join(name.splitlines()[:1])
    return Finding("compiler", "ok", f"{command[0]}, {version_line}; C++20 works", needed=True)


def _output(command: list[str], stdin: str = "") -> str:
    run = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=True)
    return run.stdout


def _cache() -> Finding:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except OSError as error:
        return Finding(
            "cache", "problem", f"compiled kernels cannot be kept in {folder}: {error}", OTHER_CACHE, True
        )
    return Finding("cache", "ok", f"{folder}, {size / 2**20:.1f} MiB of compiled kernels", needed=True)


def _kernels() -> Finding:
    """Build a small library and load it from the cache, as the virtual GPU's core is."""
    try:
        try_out()
    except CompileError as error:
        remedy = OTHER_CACHE if isinstance(error, CacheError) else INSTALL_COMPILER
        return Finding("kernels", "problem", str(error), remedy, True)
    return Finding("kernels", "ok", "a small library builds, loads from the cache and runs", needed=True)


def _tiny() -> Finding:
    folder = Path(__file__).parent / "data" / "tiny"
    names = ("config.json", "model.safetensors", "tokenizer.json")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        detail = f"{', '.join(missing)} not in {folder}"
        return Finding("tiny model", "missing", detail, "git checkout -- luce_edu/data/tiny", True)
    size = (folder / "model.safetensors").stat().st_size
    return Finding("tiny model", "ok", f"{size / 2**20:.1f} MiB of weights, in the package", needed=True)


def _jupyter() -> Finding:
    names = ("jupyterlab", "nbclient", "ipykernel")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        remedy = f"pip install -c constraints.txt {' '.join(missing)}"
        return Finding("jupyter", "missing", f"not installed: {', '.join(missing)}", remedy, True)
    return Finding("jupyter", "ok", f"jupyterlab {version('jupyterlab')}", needed=True)


def _memory() -> Finding:
    try:
        import psutil
    except ImportError:
        return Finding("memory", "missing", "module psutil is not installed", "pip install psutil")
    free = psutil.virtual_memory().available / 2**30
    if free < RANDOM_MODEL_GIB:
        detail = f"{free:.1f} GiB free: enough for 'tiny'; 'random-0.8b' needs about {RANDOM_MODEL_GIB}"
        return Finding("memory", "info", detail)
    detail = f"{free:.1f} GiB free: enough for 'random-0.8b', which needs about {RANDOM_MODEL_GIB}"
    return Finding("memory", "ok", detail)
