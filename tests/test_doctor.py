"""The doctor names what is missing and the command that installs it, for many kinds of drivers and tools."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pynvml
import pytest
import torch

from luce_edu import doctor
from luce_edu.errors import CompileError
from luce_edu.machine import core, nvrtc

REAL_ERRORS = {name: getattr(pynvml, name) for name in dir(pynvml) if name.startswith("NVML")}
TURING = ("Tesla T4", (7, 5), 16 * 2**30)
RTX_50 = ("NVIDIA GeForce RTX 5090", (12, 0), 32 * 2**30)
PASCAL = ("GTX 1080", (6, 1), 8 * 2**30)


def nvml(*, cuda=13000, gpus=(TURING,), fails=None, memory_fails=None):
    """A stand-in for pynvml: a driver of CUDA version `cuda`, and its GPUs; `fails` is the error of nvmlInit."""

    def init():
        if fails is not None:
            raise fails

    def memory(gpu):
        if memory_fails is not None:
            raise memory_fails
        return SimpleNamespace(total=gpu[2])

    return SimpleNamespace(
        **{name: error for name, error in REAL_ERRORS.items() if isinstance(error, type)},
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlSystemGetCudaDriverVersion_v2=lambda: cuda,
        nvmlSystemGetDriverVersion=lambda: b"580.65.06",
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: gpus[index],
        nvmlDeviceGetName=lambda gpu: gpu[0],
        nvmlDeviceGetCudaComputeCapability=lambda gpu: gpu[1],
        nvmlDeviceGetMemoryInfo=memory,
    )


@pytest.fixture
def machine(monkeypatch):
    """The doctor's findings for a stand-in driver, with PyTorch and cuda-bindings for these CUDA versions."""

    def diagnose(fake, *, torch_cuda="13.0", bindings=13):
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(doctor, "_installed_major", lambda package: bindings)
        return {finding.name: finding for finding in doctor._gpus()}

    return diagnose


def test_no_driver_is_no_problem(machine):
    found = machine(nvml(fails=pynvml.NVMLError_LibraryNotFound()))
    assert found["driver"].status == "info" and "virtual GPU" in found["driver"].detail


def test_a_cuda_13_driver_with_a_gpu_is_ok(machine):
    found = machine(nvml())
    assert found["driver"].status == "ok" and "580.65.06, knows CUDA up to 13.0; extra cu13" in found["driver"].detail
    assert found["gpu 0"].detail == "Tesla T4, 16 GiB, compute capability 7.5"
    assert found["gpu 0"].status == "ok"


UPDATE_DRIVER = "sudo apt install nvidia-driver-580"
DRIVERS = {  # the driver's CUDA and GPUs, CUDA of PyTorch and of cuda-bindings, words of detail and remedy; None: ok
    "CUDA 12": (12080, (TURING,), "13.0", 13, "up to 12.8", "rm -rf .venv && make CUDA=cu12 walkthrough"),
    "CUDA 12, PyTorch alone for 13": (12080, (TURING,), "13.0", 12, "up to 12.8", "make CUDA=cu12"),
    "CUDA 12 and the extra cu12": (12080, (TURING,), "12.6", 12, "", None),
    "CUDA 13 and the extra cu12": (13000, (TURING,), "12.6", 12, "", None),
    "CUDA 12 and an RTX 50": (12080, (TURING, RTX_50), "12.6", 12, "", UPDATE_DRIVER),
    "CUDA 12 and an RTX 50, PyTorch for 13": (12080, (TURING, RTX_50), "13.0", 12, "", UPDATE_DRIVER),
    "a CPU build of PyTorch": (13000, (TURING,), None, 13, "CPU build", "CUDA=cu13"),
    "before CUDA 12": (11040, (TURING,), "13.0", 13, "525 or newer", UPDATE_DRIVER),
}


@pytest.mark.parametrize("cuda, gpus, torch_cuda, bindings, detail, remedy", DRIVERS.values(), ids=DRIVERS)
def test_a_driver_that_does_not_fit_is_a_problem_with_its_remedy(
    machine, cuda, gpus, torch_cuda, bindings, detail, remedy
):
    driver = machine(nvml(cuda=cuda, gpus=gpus), torch_cuda=torch_cuda, bindings=bindings)["driver"]
    assert driver.status == ("ok" if remedy is None else "problem")
    assert detail in driver.detail and (remedy or "") in driver.remedy


def test_a_gpu_that_pytorch_has_no_code_for_is_a_problem_whatever_the_driver(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90"])
    found = machine(nvml(gpus=(TURING, RTX_50)), torch_cuda="12.6", bindings=12)
    assert found["gpu 0"].status == "ok" and found["gpu 1"].status == "problem"
    assert found["gpu 1"].remedy.startswith("update the NVIDIA driver to 580 or newer")


def test_a_gpu_before_turing_leaves_the_work_to_the_virtual_gpu(machine):
    found = machine(nvml(gpus=(PASCAL, TURING)))
    assert found["gpu 0"].status == "info" and "6.1; Turing (7.5) or newer is needed" in found["gpu 0"].detail
    assert found["gpu 1"].status == "ok"


def test_a_gpu_without_memory_of_its_own_is_listed(machine):
    found = machine(nvml(memory_fails=pynvml.NVMLError_NotSupported()))
    assert "shared memory" in found["gpu 0"].detail and found["gpu 0"].status == "ok"


@pytest.mark.parametrize(
    "error, remedy",
    [
        (pynvml.NVMLError_NoPermission(), "usermod"),
        (pynvml.NVMLError_DriverNotLoaded(), "modprobe nvidia"),
        (pynvml.NVMLError_LibRmVersionMismatch(), "reboot"),
        (pynvml.NVMLError_Unknown(), "nvidia-smi"),
    ],
)
def test_a_driver_that_does_not_answer_has_a_remedy(machine, error, remedy):
    driver = machine(nvml(fails=error))["driver"]
    assert driver.status == "problem" and remedy in driver.remedy


def test_gpu_problems_do_not_keep_the_walkthrough_from_running(machine):
    findings = machine(nvml(cuda=11040, gpus=(PASCAL,))).values()
    assert doctor.ready(findings)


def test_a_missing_compiler_is_named_with_its_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    finding = doctor._compiler()
    assert (finding.status, finding.remedy) == ("missing", "sudo apt install g++")
    assert not doctor.ready([finding])


@pytest.mark.parametrize(
    "body, status, said",
    [
        ('case "$1" in --version) ;; *) echo "error: -std=c++20" >&2; exit 1; esac', "problem", "error: -std=c++20"),
        ('[ "$1" != --version ] || echo "g++ 99.1"', "ok", "g++ 99.1; C++20 works"),
    ],
)
def test_the_compiler_is_asked_whether_it_knows_cxx20(monkeypatch, tmp_path, body, status, said):
    compiler = tmp_path / "some-g++"
    compiler.write_text(f"#!/bin/sh\n{body}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    finding = doctor._compiler()
    assert finding.status == status and finding.detail.endswith(said)
    assert doctor.ready([finding]) == (status == "ok")


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUCE_CACHE", str(tmp_path / "file" / "cache"))
    finding = doctor._cache()
    assert finding.status == "problem" and "LUCE_CACHE" in finding.remedy and not doctor.ready([finding])


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache; the compiler is the machine's."""
    monkeypatch.setenv("LUCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kernels():
    """The doctor's finding about kernels, with a good compiler and cache, and the error of the first kernel."""
    assert doctor._compiler().good and doctor._cache().good
    finding = doctor._kernels()
    (reported,) = (other for other in doctor.diagnose() if other.name == finding.name)
    assert (reported.status, reported.remedy) == (finding.status, finding.remedy)
    with pytest.raises(CompileError) as error:
        core.try_out()
    return finding, str(error.value)


def test_a_library_that_loads_from_the_cache_is_ok(cache):
    assert doctor._cache().good
    assert doctor._kernels().status == "ok"
    assert not [path for path in cache.rglob("*") if path.is_file()], "the trial leaves no file"


# A compiler that accepts C++20 but writes no library: it writes a text, or only the first bytes of an ELF file.
NO_LIBRARY = """#!/bin/sh
for last; do :; done
case "$*" in *-fsyntax-only*|*--version*) ;; *) printf '%s' > "$last" ;; esac
"""


@pytest.mark.parametrize("written, said", [("object", "wrote no library"), (r"\177ELF", "cannot be loaded")])
def test_a_compiler_whose_library_does_not_load_is_named_with_what_to_install(
    cache, monkeypatch, tmp_path, written, said
):
    compiler = tmp_path / "odd-g++"
    compiler.write_text(NO_LIBRARY % written)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    finding, first_use = kernels()
    assert (finding.status, finding.remedy) == ("problem", doctor.INSTALL_COMPILER)
    assert not doctor.ready([finding])
    assert str(compiler) in first_use and said in first_use and "install g++" in first_use


def test_a_compiler_whose_library_computes_wrongly_is_named(cache, monkeypatch):
    monkeypatch.setattr(core, "_load", lambda library: SimpleNamespace(luce_try_out=lambda x: 0))
    assert "wrong results" in kernels()[1]


def test_a_cache_from_which_no_library_loads_is_named(cache, monkeypatch):
    """With the loader's error and the flag of a noexec mount."""

    def refuse(*args, **kwargs):
        raise OSError("failed to map segment from shared object")

    monkeypatch.setattr(core.ctypes, "CDLL", refuse)
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_flag=os.ST_NOEXEC))
    finding, first_use = kernels()
    assert (finding.status, finding.remedy) == ("problem", doctor.OTHER_CACHE)
    assert "noexec" in first_use and "LUCE_CACHE" in first_use and str(cache) in first_use


def test_a_cache_that_is_full_is_named(cache, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(core.Path, "write_text", refuse)
    finding, first_use = kernels()
    assert (finding.status, finding.remedy) == ("problem", doctor.OTHER_CACHE)
    assert "No space left" in first_use and "LUCE_CACHE" in first_use


@pytest.fixture
def noexec_mount(tmp_path):
    """A real noexec mount. Where this user may not mount, the test is skipped."""
    folder = tmp_path / "noexec"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", str(folder)]
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs can be mounted here: {getattr(error, 'stderr', error)}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a library that failed to load keeps the mount busy


def test_a_cache_on_a_real_noexec_mount_is_named(noexec_mount, monkeypatch):
    monkeypatch.setenv("LUCE_CACHE", str(noexec_mount))
    finding, first_use = kernels()
    assert (finding.status, finding.remedy) == ("problem", doctor.OTHER_CACHE)
    assert "noexec" in first_use and "LUCE_CACHE" in first_use


def test_nvrtc_that_is_missing_or_fails_is_named(monkeypatch):
    assert doctor._nvrtc().status == "ok" and "nvidia-cuda-nvrtc" in doctor._nvrtc().detail
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    finding = doctor._nvrtc()
    assert finding.status == "missing" and "'.[cu13]'" in finding.remedy and not doctor.ready([finding])

    def refuse(*args):
        raise RuntimeError("nvrtcCompileProgram fell over")

    monkeypatch.setattr(nvrtc, "run", refuse)
    assert doctor._nvrtc().status == "problem" and "fell over" in doctor._nvrtc().detail


@pytest.mark.parametrize("module", ["torch", "pynvml", "psutil"])
def test_a_package_that_does_not_import_is_a_finding(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    check = {"torch": doctor._torch, "pynvml": lambda: doctor._gpus()[0], "psutil": doctor._memory}[module]
    assert check().status == "missing" and "pip install" in check().remedy


def test_this_machine_is_ready_for_the_walkthrough():
    findings = doctor.diagnose()
    assert doctor.ready(findings), [finding for finding in findings if not finding.good]


def test_the_table_shows_every_remedy_and_the_verdict():
    from rich.console import Console

    findings = [doctor.Finding("compiler", "missing", "no C++ compiler", "sudo apt install g++", True)]
    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    console.print(doctor.table(findings))
    shown = console.export_text()
    assert "to do: sudo apt install g++" in shown and "cannot run here yet; to be done first: compiler" in shown
