"""NVRTC's PTX: kernels by name, lines by file, no folder of this machine; a damaged cache entry is made again."""

import re
import sys
import time

import pytest
from starting import in_two_processes

from luce_edu.errors import CacheError, CompileError
from luce_edu.machine import nvrtc
from luce_edu.machine.cubin import compile_cubin, registers_of
from luce_edu.machine.nvrtc import compile_ptx

ARCH = "compute_86"
KERNEL = """#include "twice.cuh"
extern "C" __global__ void f(int* a) {
    assert(a[0] > 0);
    a[threadIdx.x] = twice(a[threadIdx.x]) + ADDED;
}
extern "C" __global__ void g(int* a) { printf("%d", a[0]); }
"""
HEADER = """#pragma once
__device__ inline int twice(int x) {
    assert(x != 7);
    return 2 * x;
}
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A csrc/ of its own, and an empty cache."""
    monkeypatch.setenv("LUCE_CACHE", str(tmp_path / "cache"))
    csrc = tmp_path / "csrc"
    for folder in (csrc, csrc / "machine"):
        folder.mkdir()
    (csrc / "kernel.cu").write_text(KERNEL)
    (csrc / "twice.cuh").write_text(HEADER)
    (csrc / "other.cuh").write_text("// not included\n")
    (csrc / "machine" / "machine.h").write_text("")
    return csrc


@pytest.fixture
def compiled(monkeypatch):
    """A list with an entry for each run of NVRTC."""
    runs, run = [], nvrtc.run

    def counted(*args):
        runs.append(args)
        return run(*args)

    monkeypatch.setattr(nvrtc, "run", counted)
    return runs


def ptx(tree, text=None, *, kernels=("f",), defines=None, arch=ARCH, source="kernel.cu"):
    return compile_ptx(source, text, kernels, {"ADDED": 1} if defines is None else defines, arch, csrc=tree)


def strings(text: str) -> list[str]:
    """The constant strings of a module: those of printf and assert."""
    arrays = re.findall(r"\.b8 [\w$]+\[\d+\] = \{([\d, ]+)\}", text)
    return [bytes(map(int, numbers.split(", "))).rstrip(b"\0").decode() for numbers in arrays]


# ---- What is made ----


def test_ptx_has_kernels_and_line_numbers_by_the_names_of_the_sources(tree):
    made = ptx(tree, kernels=["f", "g"])
    assert ".target sm_86" in made and ".entry f(" in made and ".entry g(" in made
    files = dict(re.findall(r'\.file\s+(\d+) "(.*)"', made))
    assert set(files.values()) == {"kernel.cu", "twice.cuh"}
    lines = {(files[file], int(line)) for file, line in re.findall(r"\.loc\s+(\d+) (\d+)", made)}
    assert {("kernel.cu", 4), ("twice.cuh", 3)} <= lines


def test_no_folder_of_this_machine_is_left(tree, monkeypatch):
    monkeypatch.chdir(tree.parent)  # NVRTC puts the working directory before names
    made = ptx(tree)
    everything = made + "".join(strings(made))
    assert str(tree.parent) not in everything and str(tree) not in everything


def test_assert_and_printf_work_as_in_cuda_without_an_include(tree):
    made = ptx(tree)
    assert "call.uni (retval0), \n\tvprintf" in made and "__assertfail" in made
    assert {"a[0] > 0", "kernel.cu", "x != 7", "twice.cuh", "%d"} <= set(strings(made))
    assert "__assertfail" not in ptx(tree, defines={"ADDED": 1, "NDEBUG": 1})


def test_a_text_stands_in_for_the_file(tree):
    text = 'extern "C" __global__ void mine(int* a) { a[0] = 1; }'
    made = ptx(tree, text, kernels=["mine"], source="cell.cu")
    assert '"cell.cu"' in made and not (tree / "cell.cu").exists()


def test_it_works_in_a_shipped_source():
    made = compile_ptx("microbench.cu", None, ["nothing", "barriers"], {"BLOCK_THREADS": 128}, "compute_90a")
    assert ".target sm_90a" in made and '"grid_barrier.cuh"' in made


def test_registers_are_those_of_ptxas(tree):
    binary = compile_cubin("kernel.cu", ["f", "g"], {"ADDED": 1}, "sm_86", csrc=tree)
    registers = registers_of("kernel.cu", None, ["f", "g"], {"ADDED": 1}, ARCH, csrc=tree)
    assert registers == {name: binary.resources[name].registers for name in ("f", "g")}
    assert all(0 < count < 256 for count in registers.values())


def test_registers_of_a_text_are_its_own(tree):
    text = """extern "C" __global__ void f(float* x) {
        float a[64];
        for (int i = 0; i < 64; ++i) a[i] = x[i * 32 + threadIdx.x];
        for (int i = 0; i < 64; ++i) x[(63 - i) * 32 + threadIdx.x] = a[i];
    }"""
    many, few = (registers_of("kernel.cu", t, ["f"], {"ADDED": 1}, ARCH, csrc=tree)["f"] for t in (text, None))
    assert many > few


# ---- What is refused ----


def test_an_error_names_file_and_line_and_no_folder(tree):
    (tree / "twice.cuh").write_text("#pragma once\n\n__device__ inline int twice(int x) { return missing; }\n")
    with pytest.raises(CompileError) as error:
        ptx(tree)
    assert "twice.cuh(3): error" in error.value.log and "missing" in error.value.log
    assert str(tree.parent) not in str(error.value)
    with pytest.raises(CompileError) as error:
        ptx(tree, 'extern "C" __global__ void f() {\n    wrong;\n}', source="cell.cu")
    assert "cell.cu(2): error" in error.value.log


@pytest.mark.parametrize("asked, named", [
    ({"source": "none.cu"}, "none.cu: no such file in csrc/"),
    ({"kernels": ["f", "h"]}, "kernel.cu: no kernel named h; it has f, g"),
    ({"text": "// empty"}, "kernel.cu: no kernel named f; it has none"),
    ({"text": '#include "nowhere.cuh"'}, "nowhere.cuh"),
    ({"arch": "compute_20"}, "compute_20"),
])  # fmt: skip
def test_what_cannot_be_compiled_is_named_each_time(tree, asked, named):
    for _ in range(2):
        with pytest.raises(CompileError, match=re.escape(named)):
            ptx(tree, **asked)


def test_without_the_compiler_it_says_what_to_install(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.delitem(sys.modules, "cuda.bindings.nvrtc", raising=False)
    with pytest.raises(CompileError, match="cuda-bindings is not installed .*pip install"):
        ptx(tree)


def test_a_library_that_does_not_load_is_told_from_a_wrong_source(tree, monkeypatch):
    from cuda.bindings import nvrtc as bindings

    def missing(*_):
        raise RuntimeError("libnvrtc.so.13 not found")

    monkeypatch.setattr(bindings, "nvrtcCreateProgram", missing)
    with pytest.raises(CompileError, match="NVRTC cannot be loaded; pip install"):
        ptx(tree)


# ---- The cache ----


def test_the_second_time_nothing_is_compiled(tree, compiled):
    first = ptx(tree)
    assert ptx(tree) == first and ptx(tree, kernels=["g"]) == first and len(compiled) == 1


CHANGES = {
    "the source": lambda tree, patch: (tree / "kernel.cu").write_text(KERNEL + "\n"),
    "a header": lambda tree, patch: (tree / "twice.cuh").write_text(HEADER + "\n"),
    "the compiler": lambda tree, patch: patch.setattr(nvrtc, "_compiler", lambda: "nvidia-cuda-nvrtc 99.0"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_decides_the_ptx_decides_the_entry(tree, compiled, monkeypatch, change):
    ptx(tree)
    change(tree, monkeypatch)
    ptx(tree)
    assert len(compiled) == 2


def test_text_defines_architecture_and_kind_decide_the_entry(tree, compiled):
    ptx(tree)
    for asked in ({"text": KERNEL + " "}, {"defines": {"ADDED": 2}}, {"arch": "compute_80"}):
        ptx(tree, **asked)
    compile_cubin("kernel.cu", ["f"], {"ADDED": 1}, "sm_86", csrc=tree)
    assert len(compiled) == 5


def test_what_the_source_does_not_include_decides_nothing(tree, compiled):
    (tree / "kernel.cu").write_text(f'#ifdef CORE\n#include "machine/machine.h"\n#endif\n{KERNEL}')
    ptx(tree)
    for other in ("other.cuh", "machine/machine.h"):
        (tree / other).write_text("// changed\n")
    ptx(tree)
    assert len(compiled) == 1


DAMAGE = {
    "truncated": lambda entry: entry[:-1],
    "a byte": lambda entry: entry.replace(b".entry f(", b".entry e("),
    "empty": lambda entry: b"",
    "no text": lambda entry: b"\xff\xfe" + entry,
    "of something else": lambda entry: b"{}\n",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_compiled_again(tree, compiled, damage):
    first = ptx(tree)
    (entry,) = (tree.parent / "cache" / "ptx").iterdir()
    stored = entry.read_bytes()
    entry.write_bytes(damage(stored))
    assert entry.read_bytes() != stored
    assert ptx(tree) == first and len(compiled) == 2 and entry.read_bytes() == stored


def test_two_processes_that_store_the_same_entry_leave_one(tree):
    def store():
        assert nvrtc.cached("ptx/one.ptx", lambda: time.sleep(0.1) or "text") == "text"

    in_two_processes(store)
    assert [path.name for path in (tree.parent / "cache" / "ptx").iterdir()] == ["one.ptx"]
    assert nvrtc.cached("ptx/one.ptx", None) == "text"


def test_a_refusal_stores_nothing(tree):
    with pytest.raises(CompileError):
        ptx(tree, "wrong")
    assert not (tree.parent / "cache").exists()


def test_a_cache_that_cannot_be_written_is_named(tree, monkeypatch):
    (tree.parent / "file").write_text("")
    monkeypatch.setenv("LUCE_CACHE", str(tree.parent / "file"))
    with pytest.raises(CacheError, match="LUCE_CACHE"):
        ptx(tree)
