"""Hostile memory does to a wrong kernel what a GPU may do and x86 does not. Each planted fault has a sound twin."""

import pytest
import torch
from planted.kernels import planted, words

from luce_edu import machine
from luce_edu.errors import KernelError

SEEDS_TO_FIND = 20
SEEDS_TO_PASS = 100
INSTRUCTIONS = 5_000_000  # most per launch: a loop on a plain load does not end if the load keeps the old value


@pytest.fixture(scope="module")
def module():
    return planted("hostile.cu")


# ---- How each family is launched; returns whether the numbers are right ----


def channel(kernel, **how) -> bool:
    threads, rounds = 64, 6
    out, data = words(rounds, threads), words(threads)
    kernel.launch(2, threads, [words(64), data, out, rounds], cooperative=True, **how)
    return torch.equal(out, (torch.arange(1, rounds + 1)[:, None] * 1000 + torch.arange(threads)).int())


def message(kernel, **how) -> bool:
    out = words(64)
    kernel.launch(2, 64, [words(64), words(64), out], cooperative=True, **how)
    return torch.equal(out, (1000 + torch.arange(64)).int())


def announce(kernel, **how) -> bool:
    out = words(16, 2)
    kernel.launch(2, 1, [words(1), words(32), out, 16], cooperative=True, **how)
    return bool(out.any(1).all())


def grid(kernel, **how) -> bool:
    blocks, threads, rounds = 4, 64, 6
    buffer = words(2, blocks, threads)
    kernel.launch(blocks, threads, [words(1), buffer, rounds], cooperative=True, **how)
    last = (torch.arange(blocks) + rounds) % blocks + rounds
    return torch.equal(buffer[rounds % 2], last.int()[:, None].expand(blocks, threads))


def last(kernel, **how) -> bool:
    x, out = torch.arange(6 * 64, dtype=torch.int32).view(6, 64), words(64)
    kernel.launch(6, 64, [x, words(6, 64), words(1), out], **how)
    return torch.equal(out, x.sum(0).int())


def locked(kernel, **how) -> bool:
    total = words(1)
    kernel.launch(4, 1, [words(1), total, 8], cooperative=True, **how)
    return total.item() == 32


def ring(kernel, **how) -> bool:
    tiles = 7
    x, out = torch.arange(tiles * 256, dtype=torch.int32).view(tiles, 256), words(tiles, 256)
    kernel.launch(1, 64, [x, out, tiles], **how)
    return torch.equal(out, x.flip(1))


bulk = ring


FAMILIES = {  # family: its faults
    channel: [
        "release_relaxed", "release_plain", "release_block", "release_fence_block", "flag_before_data",
        "acquire_relaxed", "acquire_volatile", "acquire_block", "acquire_plain",
        "barrier_missing", "barrier_missing_after", "data_nc",
    ],
    message: ["fence_missing", "fence_late"],
    announce: ["fence_missing"],
    grid: ["release_relaxed", "acquire_relaxed", "acquire_volatile", "acquire_block", "barrier_missing", "data_nc"],
    last: ["fence_missing", "release_fence_block", "barrier_missing"],
    locked: ["acquire_relaxed", "release_relaxed"],
    ring: ["wait_missing", "wait_short", "barrier_missing_after", "slot_reused"],
}  # fmt: skip
RUNS = {f"{family.__name__}_{fault}": family for family, faults in FAMILIES.items() for fault in faults}
RUNS |= {f"bulk_{fault}": bulk for fault in ("wait_missing", "wait_parity", "slot_reused")}
SOUND = {f"{family.__name__}_sound": family for family in FAMILIES} | {"bulk_sound": bulk}

# Some orders of threads show these on x86 too.
X86_SHOWS = {
    "channel_flag_before_data", "channel_barrier_missing", "channel_barrier_missing_after", "grid_barrier_missing",
    "last_barrier_missing", "ring_barrier_missing_after", "ring_slot_reused", "bulk_wait_parity", "bulk_slot_reused",
}  # fmt: skip


def is_right(run, kernels, **how) -> bool:
    try:
        return run(kernels, instructions=INSTRUCTIONS, **how)
    except KernelError:
        return False


def is_caught(run, kernels) -> bool:
    """Whether some seed gives wrong numbers or a report under hostile memory."""
    return any(not is_right(run, kernels, seed=seed, hostile=True) for seed in range(SEEDS_TO_FIND))


@pytest.mark.planted
@pytest.mark.parametrize("name", RUNS)
def test_fault_is_caught_within_20_seeds(module, name):
    assert is_caught(RUNS[name], module[name])


@pytest.mark.parametrize("name", [name for name in RUNS if name not in X86_SHOWS])
def test_x86_does_not_show_the_fault(module, name):
    for seed in range(5):
        assert is_right(RUNS[name], module[name], seed=seed), f"seed {seed}"


@pytest.mark.parametrize("name", SOUND)
def test_sound_twin_passes_100_seeds(module, name):
    for seed in range(SEEDS_TO_PASS):
        assert SOUND[name](module[name], seed=seed, hostile=True), f"seed {seed}"


def test_a_seed_repeats_what_hostile_memory_does(module):
    def outcomes():
        return [is_right(channel, module["channel_release_relaxed"], seed=seed, hostile=True) for seed in range(20)]

    assert outcomes() == outcomes()


# ---- Dependent launches: a kernel may start while the one before it runs ----

BLOCKS, THREADS = 3, 64


def two_kernels(second: str, **how) -> bool:
    kernels = planted("hostile.cu")
    data, out = words(BLOCKS * THREADS), words(BLOCKS * THREADS)
    launches = [
        kernels["first_kernel"].prepare(BLOCKS, THREADS, [data]),
        kernels[second].prepare(BLOCKS, THREADS, [data, out], dependent=True),
    ]
    machine.run(launches, **how)
    return torch.equal(out, (1001 + torch.arange(BLOCKS * THREADS)).int())


def three_kernels(between: str, **how) -> bool:
    kernels = planted("hostile.cu")
    data, other, out = words(3, BLOCKS * THREADS)
    launches = [
        kernels["first_kernel"].prepare(BLOCKS, THREADS, [data]),
        kernels[between].prepare(BLOCKS, THREADS, [other], dependent=True),
        kernels["second_kernel_sound"].prepare(BLOCKS, THREADS, [data, out], dependent=True),
    ]
    machine.run(launches, **how)
    return torch.equal(out, (1001 + torch.arange(BLOCKS * THREADS)).int()) and bool((other == 7).all())


def copy_and_clear(clear: str, **how) -> bool:
    kernels = planted("hostile.cu")
    n = 10 * BLOCKS * THREADS
    data, out = torch.arange(1, n + 1, dtype=torch.int32), words(n)
    expected = data.clone()
    launches = [
        kernels["copy_kernel"].prepare(BLOCKS, THREADS, [data, out, n]),
        kernels[clear].prepare(BLOCKS, THREADS, [data, n], dependent=True),
    ]
    machine.run(launches, **how)
    return torch.equal(out, expected) and not data.any()


DEPENDENT = {
    "second_kernel_reads_early": two_kernels,
    "second_kernel_never_waits": two_kernels,
    "kernel_between_never_waits": three_kernels,
    "clear_kernel_writes_early": copy_and_clear,
}
DEPENDENT_SOUND = {
    "second_kernel_sound": two_kernels,
    "kernel_between_sound": three_kernels,
    "clear_kernel_sound": copy_and_clear,
}


@pytest.mark.planted
@pytest.mark.parametrize("name", DEPENDENT)
def test_dependent_launch_without_its_wait_is_caught_within_20_seeds(name):
    assert is_caught(DEPENDENT[name], name)
    assert DEPENDENT[name](name), "without hostile memory it is right"


@pytest.mark.parametrize("name", DEPENDENT_SOUND)
def test_dependent_launch_that_waits_passes_100_seeds(name):
    for seed in range(SEEDS_TO_PASS):
        assert DEPENDENT_SOUND[name](name, seed=seed, hostile=True), f"seed {seed}"


@pytest.mark.parametrize("name", ["second_kernel_reads_early", "second_kernel_never_waits"])
def test_a_launch_that_is_not_dependent_starts_after_the_one_before_it(module, name):
    for seed in range(SEEDS_TO_FIND):
        data, out = words(BLOCKS * THREADS), words(BLOCKS * THREADS)
        first = module["first_kernel"].prepare(BLOCKS, THREADS, [data])
        machine.run([first, module[name].prepare(BLOCKS, THREADS, [data, out])], seed=seed, hostile=True)
        assert torch.equal(out, (1001 + torch.arange(BLOCKS * THREADS)).int())


# ---- Guarantees that hold under hostile memory too ----


@pytest.mark.parametrize("name", ["own_writes", "block_writes", "one_word"])
def test_threads_see_what_they_must_see(module, name):
    for seed in range(SEEDS_TO_PASS):
        data, out = words(BLOCKS * THREADS), torch.full((BLOCKS * THREADS,), 99, dtype=torch.int32)
        module[name].launch(BLOCKS, THREADS, [data, out, 5], seed=seed, hostile=True)
        assert not out.any(), f"seed {seed}"
        if name == "one_word":
            assert data[0].item() == BLOCKS * THREADS * 5


@pytest.mark.parametrize("name, flags", [("chain", 128), ("release_sequence", 1)])
def test_what_was_released_reaches_blocks_further_on(module, name, flags):
    for seed in range(SEEDS_TO_PASS):
        out = words(64)
        module[name].launch(4, 64, [words(flags), words(64), out], seed=seed, hostile=True, cooperative=True)
        assert torch.equal(out, (1000 + torch.arange(64)).int()), f"seed {seed}"


def test_a_launch_finds_what_the_launch_before_it_wrote(module):
    plus_one = module["plus_one"]
    for seed in range(SEEDS_TO_FIND):
        x, y = words(2, 256)
        for _ in range(3):
            plus_one.launch(4, 64, [x, y], seed=seed, hostile=True)
            assert torch.equal(y, x + 1)
            plus_one.launch(4, 64, [y, x], seed=seed, hostile=True)
        assert (x == 6).all()
