"""The host backend around the virtual GPU: arguments, the ledger, options, products, compiling."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensors import poisoned

from luce_edu.backends.host import HostBackend
from luce_edu.errors import CompileError, KernelError, LaunchError
from luce_edu.machine.cards import find_card
from luce_edu.paths import csrc_dir

ROOT = Path(__file__).resolve().parents[2]
DEFINES = {"SCALE": "2.5f"}


@pytest.fixture
def backend(kernel_tree, four_sms):
    return HostBackend(csrc_dir=kernel_tree, card=four_sms)


@pytest.fixture
def module(backend):
    return backend.compile("promises.cu", ["types", "fill", "rounds", "spins"], DEFINES)


# ---- Launches ----


def test_arguments_arrive_as_they_were_given(backend, module):
    out = poisoned(4)
    backend.launch(module["types"], 1, 1, 0, [out, -(2**31), 2**32 - 256, -0.75])
    assert out.tolist() == [-(2.0**31), 2.0**32 - 256, -0.75, 2.5]


def test_a_launch_is_in_the_ledger_with_what_it_counted(backend, module):
    backend.launch(module["fill"], (2, 1), 32, 16, [poisoned(64), 1.0], cooperative=True)
    (entry,) = backend.ledger.entries
    assert (entry.kernel, entry.grid, entry.block, entry.smem) == ("fill", (2, 1, 1), (32, 1, 1), 16)
    assert entry.cooperative and entry.barriers_a_block == 0
    assert entry.traffic["argument 0"].distinct_write == 256
    counters = entry.counters
    assert counters.by_kind["st"] == 2 and sum(counters.by_line.values()) == counters.instructions
    assert all(file == "promises.cu" for file, _ in counters.by_line) and counters.active_lanes == 32


REFUSED = {  # grid, block, smem, arguments of `types`; tests/machine/test_reports.py has the other wrong arguments
    "too few arguments": (1, 1, 0, [torch.zeros(4)]),
    "on another device": (1, 1, 0, [torch.zeros(4, device="meta"), 1, 2, 3.0]),
    "no grid": (0, 1, 0, [torch.zeros(4), 1, 2, 3.0]),
    "too much shared memory": (1, 1, 228 * 1024, [torch.zeros(4), 1, 2, 3.0]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_launch_runs_nothing_and_is_not_in_the_ledger(backend, module, case):
    grid, block, smem, args = REFUSED[case]
    with pytest.raises(LaunchError, match="types: "):
        backend.launch(module["types"], grid, block, smem, args)
    assert len(backend.ledger) == 0
    assert all(not arg.any() for arg in args if isinstance(arg, torch.Tensor) and arg.device.type == "cpu")


def test_a_null_pointer_is_named_and_its_launch_is_in_the_ledger(backend, module):
    with pytest.raises(KernelError, match="types: ") as error:
        backend.launch(module["types"], 1, 1, 0, [0, 1, 2, 3.0])
    assert (error.value.fault, error.value.scene.element) == ("out_of_bounds", "a null pointer")
    assert [entry.kernel for entry in backend.ledger.entries] == ["types"]


def test_resident_blocks_follow_the_card(backend, module, kernel_tree):
    resident = backend.max_resident_blocks
    assert [resident(module["fill"], threads, 0) for threads in (1, 64, 65, 512, 1024)] == [64, 64, 40, 8, 4]
    assert resident(module["fill"], 32, 227 * 1024) == 4
    assert resident(module["fill"], (32, 2), 75 * 1024) == 12
    hopper = HostBackend(csrc_dir=kernel_tree, card="H100")
    fill = hopper.compile("promises.cu", ["fill"], DEFINES)["fill"]
    assert hopper.max_resident_blocks(fill, 256, 0) == 8 * 132
    assert HostBackend().card.name == find_card().name


@pytest.mark.parametrize("card, kib", [("T4", 64), ("RTX 3090", 99), ("A100", 163), ("H200", 227), ("RTX 5090", 99)])
def test_a_block_may_have_all_the_shared_memory_of_the_card_and_no_more(card, kib, kernel_tree):
    backend = HostBackend(csrc_dir=kernel_tree, card=card)
    most = backend.shared_memory_per_block
    assert most == kib * 1024
    ends, out = backend.compile("promises.cu", ["ends"], DEFINES)["ends"], poisoned(32)
    backend.launch(ends, 1, 32, most, [out, most // 4])
    assert out.tolist() == [most // 4 - 1] * 32
    assert backend.max_resident_blocks(ends, 32, most) == backend.sm_count
    for call in (backend.max_resident_blocks, lambda *how: backend.launch(*how, [out, 1])):
        with pytest.raises(LaunchError, match=f"^ends: {most + 1} bytes of shared memory .*{most}"):
            call(ends, *([32] if call == backend.max_resident_blocks else [1, 32]), most + 1)
    assert len(backend.ledger) == 1


def test_a_cooperative_grid_up_to_what_the_card_holds(backend, module):
    backend.launch(module["fill"], 8, 512, 0, [poisoned(8 * 512), 1.0], cooperative=True)
    out = poisoned(9 * 512)
    with pytest.raises(LaunchError, match="9 blocks.* holds 8 of them"):
        backend.launch(module["fill"], 9, 512, 0, [out, 1.0], cooperative=True)
    assert out.isnan().all() and len(backend.ledger) == 1


def test_132_blocks_of_256_threads_are_resident_together(kernel_tree):
    backend = HostBackend(csrc_dir=kernel_tree, card="H100")
    rounds = backend.compile("promises.cu", ["rounds"], DEFINES)["rounds"]
    buffer = torch.zeros(2, 132, dtype=torch.int32)
    backend.launch(rounds, 132, 256, 0, [torch.zeros(2, dtype=torch.int32), buffer, 4], cooperative=True)
    assert buffer[0].tolist() == [(block + 4) % 132 + 4 for block in range(132)]


@pytest.mark.parametrize("seed", [None, *range(5)])
def test_spins_written_by_hand_end_when_their_flag_comes(backend, module, seed):
    backend.seed = seed
    flags = torch.zeros(3, dtype=torch.int32)
    backend.launch(module["spins"], 2, 64, 0, [flags])
    assert flags.tolist() == [1, 1, 2]


def test_options_of_the_backend_reach_the_run(kernel_tree, four_sms):
    def ends(rounds: int = 10, **options) -> bool:
        backend = HostBackend(csrc_dir=kernel_tree, card=four_sms, **options)
        late = backend.compile("options.cu", ["late"], {})["late"]
        try:
            backend.launch(late, 1, 64, 0, [torch.zeros(64, dtype=torch.int32), rounds])
        except KernelError:
            return False
        return True

    assert not ends() and ends(strict=False)
    assert not ends(rounds=2**30, strict=False, instructions=1000)
    assert not ends(strict=False, races=True, seed=0)


def test_an_unknown_kernel_is_refused_with_those_there_are(module):
    with pytest.raises(LaunchError, match="no kernel named 'full'; it has types, fill"):
        module["full"]


# ---- Products ----


def matrices(*outputs, inputs=24, rows=5):
    x = torch.randn(rows, inputs).bfloat16()
    return x, [torch.randn(n, inputs).bfloat16() for n in outputs]


def test_a_product_is_fp32_rounded_once_with_the_outputs_side_by_side_and_one_line_of_the_ledger(backend):
    x, weights = matrices(16, 3, 8)
    out = poisoned(5, 27, dtype=torch.bfloat16)
    backend.matmul(x, weights, out)
    exact = x.double() @ torch.cat(weights).double().T
    size = x.double().abs() @ torch.cat(weights).double().abs().T
    assert ((out.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6 * size).all()
    assert [entry.kernel for entry in backend.ledger.entries] == ["matmul"]


def test_a_captured_product_runs_with_the_graph_and_among_its_launches(backend, module):
    x, weights = matrices(16)
    out, filled = poisoned(5, 16, dtype=torch.bfloat16), poisoned(32)

    def enqueue():
        backend.matmul(x, weights, out)
        backend.launch(module["fill"], 1, 32, 0, [filled, 1.0])

    graph = backend.capture(enqueue)
    assert out.isnan().all() and len(backend.ledger) == 0
    for _ in range(2):
        x.copy_(torch.randn(x.shape))  # a replay reads the tensors as they are then
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
    with pytest.raises(CompileError, match="wrong.cu: NVRTC refused it for compute_89") as error:
        HostBackend(csrc_dir=tree).compile("wrong.cu", ["wrong"], {})
    assert "wrong.cu(2)" in error.value.log and "mistake" in error.value.log
    assert str(tree) not in error.value.log


def test_a_kernel_that_is_not_in_the_source_is_named(backend):
    with pytest.raises(CompileError, match="promises.cu: .*nowhere.*fill"):
        backend.compile("promises.cu", ["nowhere"], DEFINES)


def test_an_edited_kernel_is_compiled_again_and_the_first_form_is_still_there(kernel_tree, tmp_path, monkeypatch):
    monkeypatch.setenv("LUCE_CACHE", str(tmp_path / "cache"))
    tree = shutil.copytree(kernel_tree, tmp_path / "csrc")
    backend, source = HostBackend(csrc_dir=tree), tree / "promises.cu"
    text, results = source.read_text(), []
    for value in ("value", "value * 2", "value"):
        source.write_text(text.replace("= value; }", f"= {value}; }}"))
        out = torch.zeros(8)
        backend.launch(backend.compile("promises.cu", ["fill"], DEFINES)["fill"], 1, 8, 0, [out, 3.0])
        results.append((out[0].item(), len(list((tmp_path / "cache" / "ptx").iterdir()))))
    assert results == [(3.0, 1), (6.0, 2), (3.0, 2)]


def test_a_module_in_the_cache_is_found_in_under_300_ms(backend, module):
    started = time.monotonic()
    backend.compile("promises.cu", ["types", "fill"], DEFINES)
    assert time.monotonic() - started < 0.3


def test_the_shipped_tree_is_the_default():
    assert HostBackend().csrc_dir == csrc_dir()


# ---- Processes and threads ----


def test_the_child_of_a_fork_and_two_threads_at_once_can_launch(kernel_tree):
    code = (
        "import os, threading, torch\nfrom pathlib import Path\nfrom luce_edu.backends.host import HostBackend\n"
        f"backend = HostBackend(csrc_dir=Path({str(kernel_tree)!r}))\n"
        "module = backend.compile('promises.cu', ['rounds'], {'SCALE': '1.0f'})\n"
        "def launch():\n"
        "    for _ in range(20):\n"
        "        buffer = torch.zeros(2, 8, dtype=torch.int32)\n"
        "        args = [torch.zeros(2, dtype=torch.int32), buffer, 4]\n"
        "        backend.launch(module['rounds'], 8, 32, 0, args, cooperative=True)\n"
        "        assert buffer[0].tolist() == [(b + 4) % 8 + 4 for b in range(8)]\n"
        "    print('good\\n', end='', flush=True)\n"  # one write, since two threads print at once
        "launch()\nthreads = [threading.Thread(target=launch) for _ in range(2)]\n"
        "[thread.start() for thread in threads]\n[thread.join() for thread in threads]\n"
        "child = os.fork()\nif child == 0:\n    launch()\n    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0"
    )
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "good\n" * 4), done.stderr


def test_a_barrier_is_no_deadlock_on_more_threads_than_processors(kernel_tree):
    """A turn that opens a barrier and then waits at the next one is progress, however late the others see it."""
    crowd = HostBackend(csrc_dir=kernel_tree, threads=8)
    rounds = crowd.compile("promises.cu", ["rounds"], DEFINES)["rounds"]
    for _ in range(100):
        barrier, buffer = torch.zeros(2, dtype=torch.int32), torch.zeros(2, 8, dtype=torch.int32)
        crowd.launch(rounds, 8, 32, 0, [barrier, buffer, 40], cooperative=True)
        assert buffer[0].tolist() == [(b + 40) % 8 + 40 for b in range(8)]


# ---- Speed ----


def test_a_large_matvec_is_right_and_takes_seconds_at_most(backend):
    rows, columns = 31040, 1024  # an eighth of Qwen3.5-0.8B's LM head
    weight, x, y = torch.randn(rows, columns).bfloat16(), torch.randn(columns), poisoned(rows)
    matvec = backend.compile("matvec_rows.cu", ["matvec_rows"], {})["matvec_rows"]
    started = time.monotonic()
    backend.launch(matvec, 4, 512, 4 * columns, [weight, x, y, rows, columns], cooperative=True)
    assert time.monotonic() - started < 2  # 0.08 s on one processor
    expected = weight.float() @ x
    assert y.isfinite().all()
    assert (y - expected).norm() <= 1e-6 * expected.norm()
