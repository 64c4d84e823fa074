"""The barrier of csrc/grid_barrier.cuh keeps all blocks in step, from either state of its word, and counts passes."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from luce_edu.backends import make_backend
from luce_edu.errors import KernelError
from luce_edu.faults import Fault, planted
from luce_edu.machine import ptx
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.paths import csrc_dir
from luce_edu.stages.dims import GRID_BARRIER_PASSED, GRID_BARRIER_WORDS

SOURCE = Path(__file__).parent / "kernels" / "grid_barrier.cu"
KERNELS = ("rounds", "leaves_early")
THREADS = 64
TOP_BIT = -(2**31)  # the word's other state, as an int32


def launch(kernel, blocks, barrier, *args, changes=(), **options):
    with planted(*changes) as tree:
        shutil.copy(SOURCE, tree)
        backend = make_backend("host", csrc_dir=tree, **options)
        module = backend.compile(SOURCE.name, KERNELS, {"BLOCK_THREADS": THREADS})
    backend.launch(module[kernel], blocks, THREADS, 0, (barrier, *args), cooperative=True)


def in_step(blocks, barrier, count, **how) -> bool:
    """Whether `count` rounds end as if all blocks had entered each round together."""
    buffer = torch.full((2, blocks), -1, dtype=torch.int32)
    launch("rounds", blocks, barrier, buffer, count, **how)
    block = torch.arange(blocks)
    expected = [((block + n) % blocks + n).int() for n in (count, count - 1)]
    return all(torch.equal(buffer[n % 2], rows) for n, rows in zip((count, count - 1), expected, strict=True))


def words(word=0, passed=0):
    barrier = torch.zeros(GRID_BARRIER_WORDS, dtype=torch.int32)
    barrier[0], barrier[GRID_BARRIER_PASSED] = word, passed
    return barrier


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("word", [0, TOP_BIT])
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_blocks_stay_in_step_from_either_state_of_the_word(blocks, word, seed):
    """With five blocks, arrivals take the word through 0x7fffffff or 0xffffffff."""
    for count in (1, 2, 41):
        barrier = words(word)
        assert in_step(blocks, barrier, count, seed=seed)
        flipped = word if count % 2 == 0 else (0 if word else TOP_BIT)
        assert int(barrier[0]) == flipped
        assert int(barrier[GRID_BARRIER_PASSED]) == count
        assert torch.count_nonzero(barrier) == (flipped != 0) + 1, "nothing else is written"


@pytest.mark.parametrize("seed", range(10))
def test_blocks_stay_in_step_on_memory_that_shows_them_nothing_too_early(seed):
    assert in_step(5, words(), 11, seed=seed, hostile=True)
    assert in_step(5, words(), 11, seed=seed, races=True)


def test_the_count_goes_on_over_launches_and_wraps():
    barrier = words(passed=2**31 - 3)
    for _ in range(2):
        assert in_step(3, barrier, 5)
    assert int(barrier[GRID_BARRIER_PASSED]) == 2**31 - 3 + 10 - 2**32 and int(barrier[0]) == 0


@pytest.mark.parametrize("seed", [None, 1])
def test_a_block_that_meets_one_barrier_less_is_a_deadlock_with_a_name(seed):
    with pytest.raises(KernelError, match=r"deadlock.* thread 0 .*called from grid_barrier\.cuh:\d+"):
        launch("leaves_early", 2, words(), 3, seed=seed)


def test_blocks_poll_a_line_that_holds_nothing_else():
    text = (csrc_dir() / "grid_barrier.cuh").read_text()
    assert re.search(r"unsigned word;.*\n\s*alignas\(128\) unsigned passed;", text)
    assert GRID_BARRIER_PASSED * 4 == 128 and GRID_BARRIER_WORDS * 4 == 2 * 128


@pytest.mark.parametrize("arch", ["compute_75", "compute_90a"])
def test_the_ptx_releases_once_and_acquires_where_it_waits(arch):
    """A missing release or acquire shows on hostile memory; a superfluous one shows in the compiler's output only."""
    with planted() as tree:
        shutil.copy(SOURCE, tree)
        text = compile_ptx(SOURCE.name, None, KERNELS, {"BLOCK_THREADS": THREADS}, arch, csrc=tree)
    body = [item for item in ptx.parse(text).functions["rounds"].body if isinstance(item, ptx.Instruction)]
    spelled = [".".join((one.opcode, *one.modifiers)) for one in body]
    words = ("bar.", "atom.", "red.", "ld.acquire", "st.release", "fence.", "membar.")
    order = [one for one in spelled if one.startswith(words)]
    assert order == [
        "bar.sync", "atom.release.gpu.global.add.u32", order[2], "ld.acquire.gpu.global.u32", "bar.sync",
    ]  # fmt: skip
    assert re.fullmatch(r"(atom|red)(\.relaxed\.gpu)?\.global\.add\.u32", order[2]), "the count is relaxed"


@pytest.mark.planted
@pytest.mark.parametrize(
    "old, new",
    [("__syncthreads();\n}", "}"), ("GridBarrier* barrier) {\n    __syncthreads();", "GridBarrier* barrier) {"),
     ("(gridDim.x - 1)", "(gridDim.x - 2)"), ("before, top_bit", "0u, top_bit")],
)  # fmt: skip
def test_a_barrier_with_a_fault_does_not_keep_them_in_step(old, new):
    change = Fault("", "grid_barrier.cuh", old, new)
    try:
        kept = all(in_step(5, words(), 41, seed=seed, changes=[change]) for seed in range(3))
    except KernelError:
        kept = False
    assert not kept


@pytest.mark.planted
@pytest.mark.parametrize(
    "old, new",
    [("atom.release.gpu.global.add.u32", "atom.relaxed.gpu.global.add.u32"),
     ("ld.acquire.gpu.global.u32", "ld.relaxed.gpu.global.u32")],
    ids=["an addition that releases nothing", "a wait that acquires nothing"],
)  # fmt: skip
def test_a_missing_order_shows_on_hostile_memory_alone(old, new):
    change = Fault("", "primitives.cuh", old, new)
    assert all(in_step(5, words(), 11, seed=seed, changes=[change]) for seed in range(3))
    assert not all(in_step(5, words(), 11, seed=seed, hostile=True, changes=[change]) for seed in range(20))
    with pytest.raises(KernelError, match="race on argument 1"):
        in_step(5, words(), 11, races=True, changes=[change])
