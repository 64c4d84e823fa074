"""A race is two unordered accesses to one element, one of them a write. Each planted race has a sound twin."""

import pytest
import torch
from planted.kernels import line, planted, says, words
from test_hostile import INSTRUCTIONS
from test_hostile import RUNS as HOSTILE
from test_hostile import SOUND as HOSTILE_SOUND

from luce_edu import machine
from luce_edu.errors import KernelError

SEEDS = (None, 0, 1, 2)
SOUND_SEEDS = (None, *range(20))


@pytest.fixture(scope="module")
def module():
    return planted("races.cu")


ROUNDS = 4
# kernel: grid, block, arguments. A tensor is given as its number of words.
SHARED = {
    "shared_exchange": (1, 64, [64]), "shared_pair": (1, 64, [1]),
    "shared_write_after_read": (1, 64, [64, "rounds"]), "shared_two_writers": (1, 64, [64]),
    "shared_lanes": (1, 32, [32]), "shared_half_warp": (1, 32, [32]), "shared_atomics": (1, 64, [64]),
    "shared_named_barrier": (1, 96, [96]), "cluster_shared": (2, 64, [128]),
}  # fmt: skip
GLOBAL = {
    "global_exchange": (1, 64, [64, 64]), "blocks_two_writers": (3, 64, [128]), "blocks_count": (4, 32, [8]),
    "blocks_atomic_and_plain": (2, 64, [64, 64]), "blocks_scope": (4, 32, [8]),
    "answer_relaxed": (2, 1, [64, 1, ROUNDS, "rounds"]), "chain_broken": (3, 1, [64, 1, 1]),
}  # fmt: skip
PLANTED = SHARED | GLOBAL
TWINS = {"answer_relaxed": "answer_sound", "chain_broken": "chain_sound"}  # other names of twins
SOUND = {TWINS.get(name, f"{name}_sound"): case for name, case in PLANTED.items()}
SOUND |= {"bytes_apart_sound": (1, 64, [64]), "registers_sound": (1, 64, [64, 64])}

LINES = {  # kernel: markers of the lines that its report must name
    "shared_exchange": ["exchange writes", "exchange reads"],
    "shared_pair": ["pair writes", "pair reads"],
    "shared_write_after_read": ["war writes", "war reads"],
    "shared_two_writers": ["both write"],
    "shared_lanes": ["lanes write", "lanes read"],
    "shared_half_warp": ["halves write", "halves read"],
    "shared_atomics": ["counts", "reads the count"],
    "shared_named_barrier": ["three warps write", "two warps read"],
    "global_exchange": ["block writes", "block reads"],
    "blocks_two_writers": ["first writer", "second writer"],
    "blocks_count": ["plain count"],
    "blocks_atomic_and_plain": ["atomic side", "plain side"],
    "answer_relaxed": ["fills again", "reads, then answers"],
    "chain_broken": ["chain begins", "chain ends"],
}


def launch(module, name, cases, **how):
    grid, block, sizes = cases[name]
    args = [ROUNDS if size == "rounds" else words(size) for size in sizes]
    together = {"cooperative": True} if name.startswith(("answer", "chain")) else {}
    module[name].launch(grid, block, args, **together, **how)


@pytest.mark.planted
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", PLANTED)
def test_race_is_reported_with_its_lines(module, name, seed):
    with pytest.raises(KernelError) as error:
        launch(module, name, PLANTED, races=True, seed=seed)
    assert error.value.fault == "race"
    says(str(error.value), name, *(line("races.cu", marker) for marker in LINES.get(name, ())))


@pytest.mark.parametrize("name", SOUND)
def test_sound_twin_gives_no_report(module, name):
    for seed in SOUND_SEEDS:
        launch(module, name, SOUND, races=True, seed=seed)
        launch(module, name, SOUND, races=True, seed=seed, hostile=True)


HOSTILE_LINES = {  # of hostile.cu, by family
    "channel": ["hands over", "takes over"], "message": ["writes its message", "reads its message"],
    "grid": ["before the grid barrier", "after the grid barrier"], "last": ["partial sums", "adds up"],
    "locked": ["under the lock"], "ring": ["reads what was copied"], "bulk": ["reads what was copied in bulk"],
}  # fmt: skip
# The race is on the flag itself: one access is plain, or its scope leaves out the other block.
ON_THE_FLAG = {
    "channel_release_plain", "channel_release_block", "channel_acquire_plain", "channel_acquire_block",
    "grid_acquire_block",
}  # fmt: skip
# Relaxed accesses do not race, and a wait for the wrong phase may never end.
NO_RACE = {"announce_fence_missing", "bulk_wait_parity"}


@pytest.mark.planted
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in NO_RACE])
def test_race_of_a_hostile_kernel_is_reported_with_its_lines(name, seed):
    with pytest.raises(KernelError) as error:
        HOSTILE[name](planted("hostile.cu")[name], races=True, seed=seed, instructions=INSTRUCTIONS)
    assert error.value.fault == "race"
    markers = [] if name in ON_THE_FLAG else HOSTILE_LINES[name.partition("_")[0]]
    says(str(error.value), name, *(line("hostile.cu", marker) for marker in markers))


@pytest.mark.parametrize("name", HOSTILE_SOUND)
def test_sound_twin_of_a_hostile_kernel_gives_no_report(name):
    for seed in SOUND_SEEDS:
        for hostile in (False, True):
            assert HOSTILE_SOUND[name](planted("hostile.cu")[name], races=True, seed=seed, hostile=hostile)


@pytest.mark.planted
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name, numbers", [("shared_pair", (5, 41, 4 * 17)), ("blocks_two_writers", (1, 9, 2, 33, 77))])
def test_report_names_both_threads_and_the_element(module, name, numbers, seed):
    with pytest.raises(KernelError) as error:
        launch(module, name, PLANTED, races=True, seed=seed)
    says(str(error.value), *numbers)


def test_races_are_not_looked_for_unless_asked(module):
    launch(module, "blocks_two_writers", PLANTED)
    launch(module, "shared_pair", PLANTED)


def test_launches_are_ordered(module):
    for seed in SOUND_SEEDS:
        x, out = words(256), words(256)
        writes, reads = module["launch_writes"], module["launch_reads"]
        for _ in range(2):
            writes.launch(4, 64, [x], races=True, seed=seed)
            reads.launch(4, 64, [x, out], races=True, seed=seed)
        assert torch.equal(out, torch.arange(64).repeat(4).int())
        machine.run([writes.prepare(4, 64, [x]), reads.prepare(4, 64, [x, out])] * 2, races=True, seed=seed)


@pytest.mark.planted
def test_dependent_launch_that_reads_before_it_waits_is_a_race(module):
    def run(second, seed):
        x, out = words(256), words(256)
        second = module[second].prepare(4, 64, [x, out], dependent=True)
        machine.run([module["dependent_writes"].prepare(4, 64, [x]), second], races=True, seed=seed)

    for seed in range(10):
        run("dependent_reads_sound", seed)
        with pytest.raises(KernelError) as error:
            run("dependent_reads", seed)
        says(str(error.value), line("races.cu", "first kernel writes"), line("races.cu", "second kernel reads"))


def test_the_launch_after_a_race_is_clean(module):
    with pytest.raises(KernelError):
        launch(module, "global_exchange", PLANTED, races=True)
    launch(module, "global_exchange_sound", SOUND, races=True)
