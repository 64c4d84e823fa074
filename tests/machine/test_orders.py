"""A seed decides the order of warps and blocks; results of sound kernels do not depend on it."""

import pytest
import torch
from planted.kernels import planted, words

from luce_edu.errors import KernelError

SEEDS = range(10)
ORDERS = (None, *range(20))  # None: blocks run in parallel, in no fixed order


@pytest.fixture(scope="module")
def module():
    return planted("orders.cu", "compute_80")


# ---- A seed decides the order ----


def order_of_arrival(module, seed) -> tuple[int, ...]:
    order = words(6 * 96)
    module["arrival"].launch(6, 96, [words(1), order], seed=seed)
    assert sorted(order.tolist()) == list(range(6 * 96))
    return tuple(order.tolist())


def test_a_seed_decides_the_order_of_blocks_and_warps(module):
    orders = [order_of_arrival(module, seed) for seed in SEEDS]
    assert orders == [order_of_arrival(module, seed) for seed in SEEDS]
    assert len(set(orders)) == len(SEEDS)
    assert len({order[0] // 96 for order in orders}) > 1, "the first block is always the same"
    first_warps = {next(thread % 96 // 32 for thread in order if thread // 96 == 0) for order in orders}
    assert len(first_warps) > 1, "the first warp of a block is always the same"


def test_a_seed_is_the_same_order_with_another_launch_before_it(module):
    alone = order_of_arrival(module, 3)
    order_of_arrival(module, 8)
    module["arrival"].launch(2, 32, [words(1), words(64)])
    assert order_of_arrival(module, 3) == alone


# ---- Deterministic kernels give the same bits in any order ----


def block_sums(module, **order):
    x, sums = torch.randn(9, 256, generator=torch.Generator().manual_seed(0)), torch.full((9,), torch.nan)
    module["block_sums"].launch(9, 256, [x, sums], **order)
    torch.testing.assert_close(sums, x.sum(1), rtol=1e-5, atol=1e-4)
    return sums


def mixing(module, **order):
    buffer = torch.full((2, 8, 64), torch.nan)
    buffer[0] = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    expected = buffer[0].double()
    for _ in range(12):
        left = expected.roll(-1, 0).roll(-3, 1)
        right = expected.roll(1, 0).roll(-5, 1)
        expected = 0.3 * left + 0.6 * right + 0.1 * expected
    module["mixing"].launch(8, 64, [words(1), buffer, 12], cooperative=True, **order)
    torch.testing.assert_close(buffer[0].double(), expected, rtol=1e-5, atol=1e-6)
    return buffer


def histogram(module, **order):
    x = torch.randint(0, 1000, (3000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    bins = words(16)
    module["histogram"].launch(5, 128, [x, bins, 3000], **order)
    assert torch.equal(bins, torch.bincount(x % 16, minlength=16).int())
    return bins


@pytest.mark.parametrize("run", [block_sums, mixing, histogram], ids=lambda run: run.__name__)
def test_every_order_gives_the_same_bits(module, run):
    first = run(module)
    for seed in ORDERS:
        assert torch.equal(run(module, seed=seed), first), f"seed {seed}"
        assert torch.equal(run(module, seed=seed, hostile=True), first), f"hostile memory, seed {seed}"


@pytest.mark.parametrize("run", [block_sums, mixing, histogram], ids=lambda run: run.__name__)
def test_every_card_gives_the_same_bits(run):
    results = [run(planted("orders.cu", "compute_80", card)) for card in ("laptop", "RTX 3090", "A100", "H100")]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("seed", [None, *SEEDS])
def test_lanes_that_wait_for_each_other_all_get_their_turn(module, seed):
    token, out = words(1), words(32)
    module["token_in_a_warp"].launch(1, 32, [token, out], seed=seed)
    assert token.item() == 32 and out.tolist() == list(range(31, -1, -1))


# ---- A missing barrier changes the result ----


@pytest.mark.planted
@pytest.mark.parametrize("seed", SEEDS)
def test_missing_syncthreads_shows_under_every_seed(module, seed):
    x = torch.randn(4, 256)
    for with_barrier in (True, False):
        out = torch.full((4, 256), torch.nan)
        kind = wrong_or_right(module["reverse"], 4, 256, [x, out, int(with_barrier)], out, x.flip(1), seed=seed)
        assert kind == ("right" if with_barrier else "wrong")


def wrong_or_right(kernel, grid, block, args, out, expected, **options) -> str:
    """Also "wrong" where the launch is ended by a report, as of a read of shared memory before it is written."""
    try:
        kernel.launch(grid, block, args, **options)
    except KernelError:
        return "wrong"
    return "right" if torch.equal(out, expected) else "wrong"
