"""What CUDA promises holds on the virtual GPU, for blocks in parallel and in any order.

What a kernel does wrong is in tests/machine: test_reports.py, test_orders.py.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from luce_edu.backends.host import HostBackend

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).parent / "kernels" / "promises.cu"
KERNELS = re.findall(r'extern "C" __global__ void (\w+)', SOURCE.read_text())
ORDERS = (None, 0, 1, 2, 3, 4)  # None: blocks in parallel


@pytest.fixture
def backend(kernel_tree, four_sms):
    return HostBackend(csrc_dir=kernel_tree, card=four_sms)


@pytest.fixture
def kernels(backend):
    return backend.compile("promises.cu", KERNELS, {"SCALE": "2.5f"})


def ints(*shape) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.int32)


@pytest.mark.parametrize("width", [32, 16, 4])
@pytest.mark.parametrize("amount", [0, 1, 3, 17, 31])
def test_shuffles_equal_numpy(backend, kernels, poisoned, width, amount):
    threads = 96
    x, source = torch.randn(threads), torch.randint(0, 64, (threads,), dtype=torch.int32)
    out = poisoned(4, threads)
    backend.launch(kernels["shuffles"], 1, threads, 0, [x, source, out, amount, width])
    lane = np.arange(threads) % 32
    first, place = lane - lane % width, lane % width
    xor = lane ^ amount
    sources = [
        first + source.numpy() % width,
        np.where(place >= amount, lane - amount, lane),
        np.where(place + amount < width, lane + amount, lane),
        np.where(xor < first + width, xor, lane),
    ]
    warp = np.arange(threads) - lane
    expected = np.stack([x.numpy()[warp + s] for s in sources])
    np.testing.assert_array_equal(out.numpy(), expected)


def test_votes_equal_numpy(backend, kernels, poisoned):
    x = (torch.rand(128) < torch.tensor([0.5, 0.0, 1.0, 0.03]).repeat_interleave(32)).int()
    out = poisoned(3, 128, dtype=torch.int32)
    backend.launch(kernels["votes"], 1, 128, 0, [x, out])
    rows = x.numpy().reshape(4, 32)
    ballots = (rows.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32).astype(np.int32)
    expected = np.stack([ballots, rows.any(1), rows.all(1)]).repeat(32, axis=1)
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize("seed", ORDERS)
def test_halves_of_a_warp_shuffle_on_their_own(backend, kernels, poisoned, seed):
    backend.seed = seed
    x, out = torch.randint(-1000, 1000, (64,), dtype=torch.int32), poisoned(64, dtype=torch.int32)
    backend.launch(kernels["half_warp_sums"], 1, 64, 0, [x, out])
    assert torch.equal(out, x.view(4, 16).sum(1).int().repeat_interleave(16))


def test_shuffles_carry_8_bytes(backend, kernels, poisoned):
    low, high = (torch.randint(-(2**31), 2**31 - 1, (32,), dtype=torch.int32) for _ in range(2))
    out = poisoned(2, 32, dtype=torch.int32)
    backend.launch(kernels["long_shuffle"], 1, 32, 0, [low, high, out[0], out[1]])
    partner = torch.arange(32) ^ 5
    assert torch.equal(out, torch.stack([low[partner], high[partner]]))


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("grid, block", [((2, 3, 4), (5, 3, 2)), ((7,), 33), (1, (1, 1, 9))])
def test_every_thread_of_every_block_runs_once_with_its_indices(backend, kernels, poisoned, grid, block, seed):
    backend.seed = seed
    sizes = [(size,) if isinstance(size, int) else size for size in (block, grid)]
    (bx, by, bz), (gx, gy, gz) = (size + (1,) * (3 - len(size)) for size in sizes)
    out = poisoned(gz, gy, gx, bz, by, bx, 6, dtype=torch.int32)
    backend.launch(kernels["indices"], grid, block, 0, [out])
    places = np.stack(np.indices(out.shape[:-1])[[5, 4, 3, 2, 1, 0]], axis=-1)
    np.testing.assert_array_equal(out.numpy(), places)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_atomics_of_many_blocks_lose_nothing(backend, kernels, seed):
    backend.seed = seed
    blocks, threads = 13, 96
    counts, total, n = ints(6), torch.zeros(1), 13 * 96
    counts[4] = -1
    backend.launch(kernels["atomics"], blocks, threads, 0, [counts, total])
    assert counts.tolist() == [n * (n - 1) // 2, n - 1, 1 - n, -1, 0, n * (n - 1) // 2]
    assert total.item() == n / 2


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_150_grid_barriers_keep_8_blocks_in_step(backend, kernels, poisoned, seed):
    backend.seed = seed
    buffer = poisoned(2, 8, dtype=torch.int32)
    backend.launch(kernels["rounds"], 8, 128, 0, [ints(2), buffer, 150], cooperative=True)
    block = torch.arange(8)
    assert torch.equal(buffer[0], ((block + 150) % 8 + 150).int())
    assert torch.equal(buffer[1], ((block + 149) % 8 + 149).int())


@pytest.mark.parametrize("seed", ORDERS)
def test_hand_written_spins_end_when_their_flag_comes(backend, kernels, seed):
    backend.seed = seed
    flags = ints(3)
    backend.launch(kernels["spins"], 2, 64, 0, [flags])
    assert flags.tolist() == [1, 1, 2]


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
        "    print('good\\n', end='', flush=True)\n"  # in one piece, as two threads say it
        "launch()\nthreads = [threading.Thread(target=launch) for _ in range(2)]\n"
        "[thread.start() for thread in threads]\n[thread.join() for thread in threads]\n"
        "child = os.fork()\nif child == 0:\n    launch()\n    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0"
    )
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "good\n" * 4), done.stderr
