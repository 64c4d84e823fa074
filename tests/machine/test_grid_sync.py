"""this_grid().sync() of CUDA's cooperative groups holds the whole grid of a cooperative launch, and no other."""

import pytest
import torch
from planted.kernels import planted, says, words

from luce_edu.errors import KernelError, LaunchError
from luce_edu.machine.timed import run_timed

BLOCKS, THREADS = 5, 64
ORDERS = [{}, {"seed": 0}, {"seed": 1}, {"seed": 2, "hostile": True}, {"seed": 3, "hostile": True, "races": True}]
ARCHS = ("compute_80", "compute_90a")


def arguments() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The expected value of a kernel's last argument, and its three arguments."""
    x = torch.randn(BLOCKS * THREADS)
    return 2 * x.flip(0), [x, torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)]


def launch(kernel, args, **options):
    kernel.launch(BLOCKS, THREADS, args, cooperative=True, **options)


@pytest.mark.parametrize("how", ORDERS, ids=str)
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kernel", ["synced", "synced_apart"])
def test_each_block_reads_what_the_others_wrote_before_it(kernel, arch, how):
    module = planted("grid_sync.cu", arch)
    for _ in range(2):  # the second launch finds the barrier's word as the first left it
        expected, args = arguments()
        launch(module[kernel], args, **how)
        assert torch.equal(args[-1], expected)


@pytest.mark.planted
def test_a_barrier_of_the_block_alone_shows():
    kernel = planted("grid_sync.cu", "compute_80")["of_the_block_alone"]
    expected, args = arguments()
    with pytest.raises(KernelError) as error:
        launch(kernel, args, seed=0, races=True)
    assert error.value.fault == "race"
    wrong = 0
    for seed in range(5):
        expected, args = arguments()
        launch(kernel, args, seed=seed, hostile=True)
        wrong += not torch.equal(args[-1], expected)
    assert wrong


@pytest.mark.planted
@pytest.mark.parametrize("seed", [None, 0])
def test_a_block_that_leaves_is_named_and_the_next_launch_works(seed):
    module = planted("grid_sync.cu", "compute_80")
    _, args = arguments()
    with pytest.raises(KernelError) as error:
        launch(module["without_its_last_block"], args, seed=seed)
    assert error.value.fault == "deadlock"
    says(str(error.value), "sync.h", f"Block {BLOCKS - 1} has ended")
    expected, args = arguments()
    launch(module["synced"], args, seed=seed)
    assert torch.equal(args[-1], expected)


@pytest.mark.planted
def test_a_launch_that_is_not_cooperative_is_refused_where_the_grid_would_wait():
    module = planted("grid_sync.cu", "compute_80")
    _, args = arguments()
    with pytest.raises(LaunchError, match="synced.*cooperative=True"):
        module["synced"].launch(BLOCKS, THREADS, args)
    assert args[1].isnan().all(), "nothing has run"
    out = words(BLOCKS * THREADS)
    module["ranks"].launch(BLOCKS, THREADS, [out])
    assert (out == BLOCKS * THREADS).all()


def test_the_clock_runs_it_too():
    expected, args = arguments()
    kernel = planted("grid_sync.cu", "compute_90a")["synced"]
    times, _ = run_timed([kernel.prepare(BLOCKS, THREADS, args, cooperative=True)])
    assert torch.equal(args[-1], expected)
    assert times[0].us > 0
