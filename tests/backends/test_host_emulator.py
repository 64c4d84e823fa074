"""The emulator in csrc/host: what CUDA promises holds, and what it leaves undefined gets a name."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from luce_edu.backends.host import HostBackend
from luce_edu.errors import KernelError, LaunchError

KERNELS = Path(__file__).parent / "kernels"
SEEDS = (0, 1, 2, 3, 4)
ORDERS = (None, *SEEDS)  # None: in parallel


def kernel_names(file: str) -> list[str]:
    return re.findall(r'extern "C" __global__ void (\w+)', (KERNELS / file).read_text())


def line(file: str, marker: str) -> str:
    """'file:number' of the one line whose comment is `marker`."""
    lines = (KERNELS / file).read_text().splitlines()
    (number,) = [i for i, text in enumerate(lines, 1) if text.endswith(f"// {marker}")]
    return f"{file}:{number}"


@pytest.fixture
def backend(kernel_tree):
    return HostBackend(csrc_dir=kernel_tree)


@pytest.fixture
def good(backend):
    return backend.compile("emulator.cu", kernel_names("emulator.cu"), {"SCALE": "2.5f"})


@pytest.fixture
def bad(backend):
    return backend.compile("faults.cu", kernel_names("faults.cu"), {})


def ints(*shape) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.int32)


# ---- What CUDA promises ----


@pytest.mark.parametrize("width", [32, 16, 4])
@pytest.mark.parametrize("amount", [0, 1, 3, 17, 31])
def test_shuffles_equal_numpy(backend, good, poisoned, width, amount):
    threads = 96
    x, source = torch.randn(threads), torch.randint(0, 64, (threads,), dtype=torch.int32)
    out = poisoned(4, threads)
    backend.launch(good["shuffles"], 1, threads, 0, [x, source, out, amount, width])
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


def test_votes_equal_numpy(backend, good, poisoned):
    x = (torch.rand(128) < torch.tensor([0.5, 0.0, 1.0, 0.03]).repeat_interleave(32)).int()
    out = poisoned(3, 128, dtype=torch.int32)
    backend.launch(good["votes"], 1, 128, 0, [x, out])
    rows = x.numpy().reshape(4, 32)
    ballots = (rows.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32).astype(np.int32)
    expected = np.stack([ballots, rows.any(1), rows.all(1)]).repeat(32, axis=1)
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize("seed", ORDERS)
def test_halves_of_a_warp_shuffle_on_their_own(backend, good, poisoned, seed):
    backend.seed = seed
    x, out = torch.randint(-1000, 1000, (64,), dtype=torch.int32), poisoned(64, dtype=torch.int32)
    backend.launch(good["half_warp_sums"], 1, 64, 0, [x, out])
    assert torch.equal(out, x.view(4, 16).sum(1).int().repeat_interleave(16))


def test_shuffles_carry_8_bytes(backend, good, poisoned):
    low, high = (torch.randint(-(2**31), 2**31 - 1, (32,), dtype=torch.int32) for _ in range(2))
    out = poisoned(2, 32, dtype=torch.int32)
    backend.launch(good["long_shuffle"], 1, 32, 0, [low, high, out[0], out[1]])
    partner = torch.arange(32) ^ 5
    assert torch.equal(out, torch.stack([low[partner], high[partner]]))


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("threads", [32, 256, 1024])
def test_block_sums_through_shared_memory(backend, good, poisoned, threads, seed):
    backend.seed = seed
    x, out = torch.randint(-99, 99, (37, threads)).float(), poisoned(37)
    backend.launch(good["block_sums"], 37, threads, 0, [x, out])
    assert torch.equal(out, x.sum(1))


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("grid, block", [((2, 3, 4), (5, 3, 2)), ((7,), 33), (1, (1, 1, 9))])
def test_every_thread_of_every_block_runs_once_with_its_indices(backend, good, poisoned, grid, block, seed):
    backend.seed = seed
    sizes = [(size,) if isinstance(size, int) else size for size in (block, grid)]
    (bx, by, bz), (gx, gy, gz) = (size + (1,) * (3 - len(size)) for size in sizes)
    out = poisoned(gz, gy, gx, bz, by, bx, 6, dtype=torch.int32)
    backend.launch(good["indices"], grid, block, 0, [out])
    places = np.stack(np.indices(out.shape[:-1])[[5, 4, 3, 2, 1, 0]], axis=-1)
    np.testing.assert_array_equal(out.numpy(), places)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_atomics_of_many_blocks_lose_nothing(backend, good, seed):
    backend.seed = seed
    blocks, threads = 13, 96
    counts, total, n = ints(6), torch.zeros(1), 13 * 96
    counts[4] = -1
    backend.launch(good["atomics"], blocks, threads, 0, [counts, total])
    assert counts.tolist() == [n * (n - 1) // 2, n - 1, 1 - n, -1, 0, n * (n - 1) // 2]
    assert total.item() == n / 2


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_150_grid_barriers_keep_8_blocks_in_step(backend, good, poisoned, seed):
    backend.seed = seed
    buffer = poisoned(2, 8, dtype=torch.int32)
    backend.launch(good["rounds"], 8, 128, 0, [ints(2), buffer, 150], cooperative=True)
    block = torch.arange(8)
    assert torch.equal(buffer[0], ((block + 150) % 8 + 150).int())
    assert torch.equal(buffer[1], ((block + 149) % 8 + 149).int())


@pytest.mark.parametrize("seed", ORDERS)
def test_hand_written_spins_end_when_their_flag_comes(backend, good, seed):
    backend.seed = seed
    flags = ints(3)
    backend.launch(good["spins"], 2, 64, 0, [flags])
    assert flags.tolist() == [1, 1, 2]


@pytest.mark.parametrize("blocks", [1, 8, 50])
def test_shared_memory_that_nothing_wrote_is_nan_in_every_block(backend, bad, blocks):
    out = torch.zeros(blocks, 64)
    backend.launch(bad["unwritten"], blocks, 32, 128, [out])
    assert out.isnan().all()


# ---- Orders that a seed decides ----


def order_of_arrival(backend, module, seed) -> list[int]:
    backend.seed = seed
    out = ints(6 * 48)
    backend.launch(module["arrival_order"], 6, 48, 0, [ints(1), out])
    assert sorted(out.tolist()) == list(range(6 * 48))
    return out.tolist()


def test_a_seed_decides_the_order(backend, good):
    orders = [order_of_arrival(backend, good, seed) for seed in SEEDS]
    assert orders == [order_of_arrival(backend, good, seed) for seed in SEEDS]
    assert len({tuple(order) for order in orders}) == len(SEEDS)
    assert len({order[0] // 48 for order in orders}) > 1, "the first block is always the same"


@pytest.mark.parametrize("seed", SEEDS)
def test_missing_syncthreads_shows_under_every_seed(backend, bad, poisoned, seed):
    backend.seed = seed
    x = torch.randn(4, 256)
    for with_barrier in (1, 0):
        out = poisoned(4, 256)
        backend.launch(bad["reverse"], 4, 256, 0, [x, out, with_barrier])
        assert torch.equal(out, x.flip(1)) == bool(with_barrier)


@pytest.mark.parametrize("seed", SEEDS)
def test_missing_grid_barrier_shows_under_every_seed(backend, bad, poisoned, seed):
    backend.seed = seed
    for with_barrier in (1, 0):
        first, second = poisoned(8), poisoned(8)
        backend.launch(bad["pass_on"], 8, 32, 0, [ints(2), first, second, with_barrier], cooperative=True)
        assert torch.equal(second, (torch.arange(8.0) + 1) % 8) == bool(with_barrier)


# ---- What gets a name ----


def report(backend, kernel, grid, block, args, **options) -> str:
    """What the emulator says; the launch after it must work."""
    with pytest.raises(KernelError) as error:
        backend.launch(kernel, grid, block, 0, args, **options)
    assert kernel.name in str(error.value)
    after = backend.compile("emulator.cu", kernel_names("emulator.cu"), {"SCALE": "2.5f"})["rounds"]
    buffer = ints(2, 8)
    backend.launch(after, 8, 64, 0, [ints(2), buffer, 3], cooperative=True)
    assert buffer[1].tolist() == [(b + 3) % 8 + 3 for b in range(8)]
    return str(error.value)


FAULTS = {  # kernel: what its report must say
    "two_barriers": ["divergent barrier", "__syncthreads", "first barrier", "second barrier"],
    "barrier_after_exit": ["divergent barrier", "left", "barrier that 5 misses"],
    "exit_during_barrier": ["divergent barrier", "left", "barrier that the last warps miss"],
    "two_warp_operations": ["meet in different places", "shuffle of the lower half", "vote of the upper half"],
    "two_masks": ["different masks", "masks differ"],
    "lane_has_left": ["thread 3", "left", "lane 3 has left"],
    "source_outside_mask": ["reads from thread 20, not in its mask", "reads lane 20"],
    "not_in_own_mask": ["is not in the mask", "mask of the lower half"],
    "barrier_against_shuffle": ["divergent barrier", "barrier of one lane", "shuffle of the others"],
    "traps": ["thread 2", "__trap", "trap"],
}


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named_with_its_lines(backend, bad, name, seed):
    backend.seed = seed
    block = 32 if name != "exit_during_barrier" else 128
    said = report(backend, bad[name], 3, block, [ints(block)])
    source = (KERNELS / "faults.cu").read_text()
    for words in FAULTS[name]:
        assert (line("faults.cu", words) if source.count(f"// {words}\n") else words) in said
    assert ("(seed" in said) == (seed is not None)


@pytest.mark.parametrize("seed", ORDERS)
@pytest.mark.parametrize("name, left", [("barrier_after_exit", {5}), ("exit_during_barrier", set(range(64, 128)))])
def test_a_barrier_that_is_not_strict_waits_for_those_that_are_left(backend, bad, name, left, seed):
    backend.seed, backend.strict = seed, False
    out = ints(128)
    backend.launch(bad[name], 3, 128, 0, [out])
    assert {i for i, value in enumerate(out.tolist()) if value == 0} == left
    assert backend.ledger.entries[-1].barriers_a_block == 1
    # What else is divergent stays refused.
    assert "divergent barrier" in report(backend, bad["two_barriers"], 3, 32, [ints(32)])
    assert "thread 3" in report(backend, bad["lane_has_left"], 3, 32, [ints(32)])


@pytest.mark.parametrize("seed", ORDERS)
def test_block_that_left_before_a_grid_barrier_is_named(backend, bad, seed):
    backend.seed = seed
    said = report(backend, bad["block_leaves"], 5, 64, [ints(2), 3], cooperative=True)
    waits = f"thread 0 in wait_while_equal at {line('faults.cu', 'wait in the grid barrier')}"
    rest = f"threads 1..63 in __syncthreads at {line('faults.cu', 'end of the grid barrier')}"
    assert "deadlock" in said
    assert f"blocks 0..2, 4: {waits}, {rest}; block 3: all threads have left" in said


@pytest.mark.parametrize("seed", [None, 0])
def test_blocks_that_never_start_are_named(backend, bad, seed):
    backend.seed = seed
    resident = backend.max_resident_blocks(bad["meet"], 1024, 0)
    assert resident == 4
    said = report(backend, bad["meet"], 8, 1024, [ints(2)])
    assert re.search(r"blocks [\d., ]+: thread 0 in wait_while_equal", said)
    assert re.search(r"blocks [\d., ]+ not started", said)
    if seed is None:
        assert "blocks 4..7 not started" in said


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(
    "name, marker, start",
    [
        ("spin_on_load", "spin on a load", 0),
        ("spin_on_lock", "spin on a lock", 1),
        ("spin_on_two", "spin on two flags", 0),
        ("spin_asleep", "spin asleep", 0),
    ],
)
def test_hand_written_spin_that_never_ends_is_named(backend, bad, name, marker, start, seed):
    backend.seed = seed
    started = time.monotonic()
    said = report(backend, bad[name], 2, 32, [torch.full((2,), start, dtype=torch.int32)])
    assert "deadlock" in said and "spinning with" in said and line("faults.cu", marker) in said
    assert time.monotonic() - started < 10


def test_cooperative_grid_that_does_not_fit_is_refused_before_it_runs(backend, good, poisoned):
    out = poisoned(9 * 512)
    with pytest.raises(LaunchError, match="9 blocks.*holds only 8 of 512 threads"):
        backend.launch(good["fill"], 9, 512, 0, [out, 1.0], cooperative=True)
    assert out.isnan().all() and len(backend.ledger) == 0


def in_a_process(kernel_tree, code: str, **environment) -> subprocess.CompletedProcess:
    root = Path(__file__).resolve().parents[2]
    setup = (
        "import torch\nfrom pathlib import Path\nfrom luce_edu.backends.host import HostBackend\n"
        f"backend = HostBackend(csrc_dir=Path({str(kernel_tree)!r}))\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", setup + code], env=variables, capture_output=True, text=True)


def test_the_child_of_a_fork_and_two_threads_at_once_can_launch(kernel_tree):
    code = (
        "import os, threading\nmodule = backend.compile('emulator.cu', ['rounds'], {'SCALE': '1.0f'})\n"
        "def launch():\n"
        "    for _ in range(20):\n"
        "        buffer = torch.zeros(2, 8, dtype=torch.int32)\n"
        "        args = [torch.zeros(2, dtype=torch.int32), buffer, 4]\n"
        "        backend.launch(module['rounds'], 8, 32, 0, args, cooperative=True)\n"
        "        assert buffer[0].tolist() == [(b + 4) % 8 + 4 for b in range(8)]\n"
        "    print('good', flush=True)\n"
        "launch()\nthreads = [threading.Thread(target=launch) for _ in range(2)]\n"
        "[thread.start() for thread in threads]\n[thread.join() for thread in threads]\n"
        "child = os.fork()\nif child == 0:\n    launch()\n    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0"
    )
    done = in_a_process(kernel_tree, code)
    assert (done.returncode, done.stdout) == (0, "good\n" * 4), done.stderr


def test_stack_overflow_stops_at_a_guard_page(kernel_tree):
    code = (
        "out = torch.zeros(1, dtype=torch.int32)\n"
        "module = backend.compile('faults.cu', ['endless_recursion'], {})\n"
        "backend.launch(module['endless_recursion'], 1, 1, 0, [out])\nprint('survived')"
    )
    done = in_a_process(kernel_tree, code)
    assert done.returncode == -11 and "survived" not in done.stdout, done.stderr


@pytest.mark.skipif("LUCE_HOST_FLAGS" in os.environ, reason="runs inside the other stack switch already")
def test_the_portable_stack_switch_passes_the_same_tests(tmp_path):
    chosen = "shuffles or block_sums or grid_barriers or spin or seed or fault or named or halves"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", chosen]
    variables = {**os.environ, "LUCE_HOST_FLAGS": "-DLUCE_UCONTEXT", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
