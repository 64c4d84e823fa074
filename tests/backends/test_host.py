"""The host backend around the emulator: arguments, compiling, the cache."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from luce_edu import backends
from luce_edu.backends import host
from luce_edu.backends.host import HostBackend
from luce_edu.errors import CompileError, LaunchError

ROOT = Path(__file__).resolve().parents[2]
DEFINES = {"SCALE": "2.5f"}


@pytest.fixture
def backend(kernel_tree):
    return HostBackend(csrc_dir=kernel_tree)


@pytest.fixture
def module(backend):
    return backend.compile("promises.cu", ["types", "fill"], DEFINES)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LUCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---- Arguments ----


def test_arguments_arrive_as_they_were_given(backend, module, poisoned):
    out = poisoned(4)
    backend.launch(module["types"], 1, 1, 0, [out, -(2**31), 2**32 - 256, -0.75])
    assert out.tolist() == [-(2.0**31), 2.0**32 - 256, -0.75, 2.5]


def test_a_launch_is_in_the_ledger(backend, module, poisoned):
    backend.launch(module["fill"], (2, 1), 32, 16, [poisoned(64), 1.0], cooperative=True)
    (entry,) = backend.ledger.entries
    assert (entry.kernel, entry.grid, entry.block, entry.smem) == ("fill", (2, 1, 1), (32, 1, 1), 16)
    assert entry.cooperative


BAD_ARGUMENTS = {
    "too few": ([0], "expected 4 arguments, got 1"),
    "int for a tensor": ([0, 1, 2, 3.0], "argument 0 must be a contiguous tensor on the CPU, got int 0"),
    "not contiguous": ([torch.zeros(4, 4).T, 1, 2, 3.0], "argument 0 .* got a non-contiguous torch.float32 tensor"),
    "wrong device": ([torch.zeros(4, device="meta"), 1, 2, 3.0], "argument 0 .* on meta"),
    "float for an int": ([torch.zeros(4), 1.0, 2, 3.0], "argument 1 must be an int of 32 bits, got float 1.0"),
    "bool for an int": ([torch.zeros(4), True, 2, 3.0], "argument 1 must be an int of 32 bits, got bool True"),
    "too large": ([torch.zeros(4), 2**31, 2, 3.0], "argument 1 must be an int of 32 bits, got int 2147483648"),
    "negative": ([torch.zeros(4), 1, -1, 3.0], "argument 2 must be an unsigned int of 32 bits, got int -1"),
    "int for a float": ([torch.zeros(4), 1, 2, 3], "argument 3 must be a float, got int 3"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_before_anything_runs(backend, module, case):
    args, message = BAD_ARGUMENTS[case]
    with pytest.raises(LaunchError, match=f"types: .*{message}"):
        backend.launch(module["types"], 1, 1, 0, args)
    assert len(backend.ledger) == 0


@pytest.mark.parametrize(
    "grid, block, smem, message",
    [
        (0, 32, 0, "grid must be one to three positive ints, got 0"),
        ((1, 1, 1, 1), 32, 0, "grid must be"),
        (1, 2.0, 0, "block must be"),
        (1, (32, -1), 0, "block must be"),
        (1, (64, 32), 0, "2048 threads a block; at most 1024"),
        (1, 32, 228 * 1024, "bytes of dynamic shared memory; from 0 to 232448"),
        (1, 32, -4, "-4 bytes of dynamic shared memory"),
        ((2**20, 2**20), 1, 0, "blocks; at most"),
    ],
)
def test_bad_launch_shapes_are_refused_before_anything_runs(backend, module, poisoned, grid, block, smem, message):
    with pytest.raises(LaunchError, match=message):
        backend.launch(module["fill"], grid, block, smem, [poisoned(32), 1.0])
    assert len(backend.ledger) == 0


def test_resident_blocks_follow_the_limits_of_the_device(backend, module, monkeypatch):
    resident = backend.max_resident_blocks
    assert [resident(module["fill"], threads, 0) for threads in (1, 64, 65, 512, 1024)] == [64, 64, 40, 8, 4]
    assert resident(module["fill"], 32, 227 * 1024) == 4
    assert resident(module["fill"], (32, 2), 75 * 1024) == 12
    monkeypatch.setenv("LUCE_HOST_SMS", "132")
    assert HostBackend().max_resident_blocks(module["fill"], 256, 0) == 4 * 132
    monkeypatch.setenv("LUCE_HOST_SMS", "0")
    with pytest.raises(ValueError, match="LUCE_HOST_SMS: .* got '0'"):
        HostBackend()


def test_132_blocks_of_256_threads_are_resident_together(kernel_tree, monkeypatch):
    monkeypatch.setenv("LUCE_HOST_SMS", "132")
    backend = HostBackend(csrc_dir=kernel_tree)
    rounds = backend.compile("promises.cu", ["rounds"], DEFINES)["rounds"]
    buffer = torch.zeros(2, 132, dtype=torch.int32)
    backend.launch(rounds, 132, 256, 0, [torch.zeros(2, dtype=torch.int32), buffer, 4], cooperative=True)
    assert buffer[0].tolist() == [(block + 4) % 132 + 4 for block in range(132)]


def test_an_unknown_kernel_is_refused_with_those_there_are(module):
    with pytest.raises(LaunchError, match="no kernel named 'full'; it has types, fill"):
        module["full"]


# ---- Products ----


def matrices(*outputs, inputs=24, rows=5):
    x = torch.randn(rows, inputs).bfloat16()
    return x, [torch.randn(n, inputs).bfloat16() for n in outputs]


def test_a_product_is_fp32_rounded_once_with_the_outputs_side_by_side_and_one_line_of_the_ledger(backend, poisoned):
    x, weights = matrices(16, 3, 8)
    out = poisoned(5, 27, dtype=torch.bfloat16)
    backend.matmul(x, weights, out)
    exact = x.double() @ torch.cat(weights).double().T
    size = x.double().abs() @ torch.cat(weights).double().abs().T
    assert ((out.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6 * size).all()
    assert [entry.kernel for entry in backend.ledger.entries] == ["matmul"]


def test_a_captured_product_runs_with_the_graph_and_among_its_launches(backend, module, poisoned):
    x, weights = matrices(16)
    out, filled = poisoned(5, 16, dtype=torch.bfloat16), poisoned(32)

    def enqueue():
        backend.matmul(x, weights, out)
        backend.launch(module["fill"], 1, 32, 0, [filled, 1.0])

    graph = backend.capture(enqueue)
    assert out.isnan().all() and len(backend.ledger) == 0
    for _ in range(2):
        x.copy_(torch.randn(x.shape))  # what is in the tensors when it runs
        backend.replay(graph)
        assert torch.equal(out, (x.float() @ weights[0].float().T).bfloat16())
    assert [entry.kernel for entry in backend.ledger.entries] == ["graph", "graph"]
    assert [entry.kernel for entry in backend.ledger.kernels()] == ["matmul", "fill"] * 2


def wrong_products():
    x, weights = matrices(16, 8)
    out = torch.zeros(5, 24).bfloat16()
    return {
        "fp32 x": (x.float(), weights, out),
        "an fp32 weight": (x, [weights[0], weights[1].float()], out),
        "fp32 out": (x, weights, out.float()),
        "too few rows of out": (x, weights, out[:4]),
        "too many columns of out": (x, weights[:1], out),
        "other inputs": (x[:, :16], weights, out),
        "one weight with other inputs": (x, [weights[0], weights[1][:, :16]], out),
        "a vector": (x[0], weights, out),
        "out not contiguous": (x, weights, torch.zeros(24, 5).bfloat16().T),
    }


@pytest.mark.parametrize("case", wrong_products())
def test_a_product_that_does_not_fit_is_refused_before_anything_runs(backend, case):
    x, weights, out = wrong_products()[case]
    with pytest.raises(LaunchError, match=r"matmul: expected bf16 x \[rows, inputs\].*got torch\."):
        backend.matmul(x, weights, out)
    assert not out.any() and len(backend.ledger) == 0


# ---- Compiling ----


def test_a_missing_source_is_named(backend):
    with pytest.raises(CompileError, match="absent.cu: no such file in csrc/"):
        backend.compile("absent.cu", ["fill"], {})


def test_a_refused_source_shows_the_compilers_log_with_paths_inside_csrc(kernel_tree, tmp_path):
    tree = shutil.copytree(kernel_tree, tmp_path / "csrc")
    (tree / "wrong.cu").write_text('#include "primitives.cuh"\nextern "C" __global__ void wrong() { mistake; }\n')
    with pytest.raises(CompileError, match="wrong.cu: .* did not compile it for the host backend") as error:
        HostBackend(csrc_dir=tree).compile("wrong.cu", ["wrong"], {})
    assert "wrong.cu:2" in error.value.log and "mistake" in error.value.log
    assert str(tree) not in error.value.log


def test_a_kernel_that_is_not_in_the_source_is_named(backend):
    with pytest.raises(CompileError) as error:
        backend.compile("promises.cu", ["nowhere"], DEFINES)
    assert "nowhere" in error.value.log


def test_a_missing_compiler_is_one_clear_line(backend, own_cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CompileError, match="build-essential") as error:
        backend.compile("promises.cu", ["fill"], DEFINES)
    assert "\n" not in str(error.value)


def test_a_compiler_named_by_cxx_that_is_not_there_is_refused(backend, own_cache, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompileError, match="CXX is 'no-such-compiler'"):
        backend.compile("promises.cu", ["fill"], DEFINES)


# ---- The cache ----


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "host").glob("*/module.so"))


def test_an_edited_kernel_is_compiled_again_and_the_first_form_is_still_there(kernel_tree, own_cache, tmp_path):
    tree = shutil.copytree(kernel_tree, tmp_path / "csrc")
    backend, source = HostBackend(csrc_dir=tree), tree / "promises.cu"
    text, results = source.read_text(), []
    for value in ("value", "value * 2", "value"):
        source.write_text(text.replace("= value; }", f"= {value}; }}"))
        out = torch.zeros(8)
        backend.launch(backend.compile("promises.cu", ["fill"], DEFINES)["fill"], 1, 8, 0, [out, 3.0])
        results.append((out[0].item(), len(entries(own_cache))))
    compiled = results[0][1]
    assert results == [(3.0, compiled), (6.0, compiled + 1), (3.0, compiled + 1)]


TITLE, CODE, FLAGS = "promises.cu", '#include "promises.cu"', [*host.FLAGS, "-DSCALE=1.0f"]


def build(tree: Path) -> Path:
    return host._build(tree, TITLE, CODE, FLAGS, tree)


def test_two_processes_compile_the_same_at_once_and_a_third_finds_it(kernel_tree, own_cache):
    code = (
        "import time\nfrom pathlib import Path\nfrom luce_edu.backends import host\nstarted = time.monotonic()\n"
        f"tree = Path({str(kernel_tree)!r})\n"
        f"path = host._build(tree, {TITLE!r}, {CODE!r}, {FLAGS!r}, tree)\nseconds = time.monotonic() - started\n"
        "print(seconds)"
    )
    command = [sys.executable, "-c", code]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start():
        return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    pair = [start(), start()]
    for process in pair:
        out, err = process.communicate()
        assert process.returncode == 0, err
    assert [path.name for path in (own_cache / "host").rglob("*") if path.is_file()] == ["module.so"]
    out, err = start().communicate()
    assert float(out) < 0.3, err


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_entry_is_compiled_again(kernel_tree, own_cache, damage):
    library = build(kernel_tree)
    content = library.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    library.write_bytes({"truncated": content[: len(content) // 2], "flipped": bytes(flipped), "empty": b""}[damage])
    assert build(kernel_tree) == library
    assert library.read_bytes() == content


def test_a_module_in_the_cache_is_found_in_under_300_ms(backend, module):
    started = time.monotonic()
    backend.compile("promises.cu", ["types", "fill"], DEFINES)
    assert time.monotonic() - started < 0.3


def test_the_shipped_tree_is_the_default():
    assert HostBackend().csrc_dir == backends.csrc_dir()


# ---- Speed ----


def test_a_large_matvec_is_right_and_takes_seconds_at_most(backend, poisoned):
    rows, columns = 31040, 1024  # an eighth of Qwen3.5-0.8B's LM head
    weight, x, y = torch.randn(rows, columns).bfloat16(), torch.randn(columns), poisoned(rows)
    matvec = backend.compile("matvec_rows.cu", ["matvec_rows"], {})["matvec_rows"]
    started = time.monotonic()
    backend.launch(matvec, 4, 512, 4 * columns, [weight, x, y, rows, columns], cooperative=True)
    assert time.monotonic() - started < 2  # 0.06 s on two idle cores
    expected = weight.float() @ x
    assert y.isfinite().all()
    assert (y - expected).norm() <= 1e-6 * expected.norm()
