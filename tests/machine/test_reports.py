"""A wrong kernel ends with a report that names the place; other memory is untouched, and the next launch works."""

import time

import pytest
import torch
from planted.kernels import HERE, line, planted, ptx, says, words

from luce_edu import machine
from luce_edu.errors import CompileError, KernelError, LaunchError

ORDERS = (None, 0, 1)


@pytest.fixture(scope="module")
def module():
    return planted("reports.cu", "compute_80")


@pytest.fixture(autouse=True)
def the_next_launch_works(module):
    yield
    x, out = torch.randn(130), torch.full((130,), torch.nan)
    module["good"].launch(3, 64, [x, out, 130])
    padded = torch.nn.functional.pad(x, (0, 62))
    assert torch.equal(out, (padded + padded[torch.arange(192) ^ 1])[:130])


def report(fault: str, kernel: str, grid, block, args, **options) -> str:
    """The report of a launch that must end with this fault; it names the kernel."""
    with pytest.raises(KernelError) as error:
        planted("reports.cu", "compute_80")[kernel].launch(grid, block, args, **options)
    assert error.value.fault == fault
    says(str(error.value), kernel)
    return str(error.value)


def at(marker: str) -> str:
    return line("reports.cu", marker)


def inside(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """n floats in the middle of a larger tensor, and that tensor, whose rest a kernel must not touch."""
    everything = torch.randn(n + 128)
    return everything[64 : 64 + n], everything


# ---- Memory; tests/backends/test_host_traffic.py has loads, atomics and vectors outside a tensor ----

OUTSIDE = [128, 133, -1, 1 << 40, -(1 << 40)]  # elements of a tensor of 128


@pytest.mark.planted
@pytest.mark.parametrize("seed", ORDERS)
@pytest.mark.parametrize("where", OUTSIDE)
def test_store_outside_a_tensor_is_named_and_nothing_else_is_touched(where, seed):
    x, everything = inside(128)
    before = everything.clone()
    said = report("out_of_bounds", "store_outside", 2, 64, [x, where], seed=seed)
    says(said, at("store outside"), 37)  # of block 1
    says(said, where if abs(where) < 1000 else "store_outside")  # an index far outside is not named
    x[x == 1.0] = before[64:-64][x == 1.0]  # other threads may have stored before that one
    assert torch.equal(everything, before)


PLACES = {
    "shared_outside": (64, 5000, 1 << 28, -1), "dynamic_shared_outside": (64, 5000, -1),
    "local_outside": (1000, 1 << 26, -1000), "misaligned_shared": (1, 2, 7),
}  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("kernel, where", [(kernel, where) for kernel, places in PLACES.items() for where in places])
def test_access_outside_shared_or_local_memory_or_misaligned_is_named(kernel, where):
    smem = 256 if kernel.startswith("dynamic") else 0
    fault = "misaligned" if kernel == "misaligned_shared" else "out_of_bounds"
    says(report(fault, kernel, 2, 64, [torch.zeros(64), where], smem=smem), at(kernel.replace("_", " ")), 37)


@pytest.mark.planted
def test_dynamic_shared_memory_that_was_not_asked_for_is_named():
    report("out_of_bounds", "dynamic_shared_outside", 2, 64, [torch.zeros(64), 0])


@pytest.mark.planted
@pytest.mark.parametrize("seed", ORDERS)
def test_uninitialised_shared_memory_is_named(seed):
    for races in (False, True):
        said = report("uninitialised", "uninitialised", 2, 64, [torch.zeros(64)], seed=seed, races=races)
        says(said, at("uninitialised"), 26)
    said = report("uninitialised", "uninitialised_dynamic", 2, 64, [torch.zeros(64)], smem=256, seed=seed)
    says(said, at("uninitialised dynamic"), 26)


@pytest.mark.planted
@pytest.mark.parametrize("how", [{}, {"seed": 0}, {"seed": 1, "races": True}, {"seed": 1, "hostile": True}], ids=str)
def test_uninitialised_local_memory_is_named(module, how):
    """Neither the other threads' writes to their local memory nor those of the launch before count as written."""
    out = torch.zeros(64)
    for where in (5, 13):
        module["uninitialised_local"].launch(2, 26, [out, where], **how)  # without thread 26
        said = report("uninitialised", "uninitialised_local", 2, 64, [out, where], **how)
        says(said, "reports.cu", "local memory", 26)


@pytest.mark.planted
def test_null_and_foreign_pointers_are_named(module):
    foreign, freed = torch.randn(128), torch.randn(128).data_ptr()
    before = foreign.clone()
    for pointer in (0, 8, foreign.data_ptr(), freed, 0x7F00_0000_0000_0000, 2**64 - 64):
        with pytest.raises((KernelError, LaunchError)):
            module["store_outside"].launch(2, 64, [pointer, 0])
    with pytest.raises(KernelError):
        module["load_outside"].launch(2, 64, [torch.zeros(0), torch.zeros(128), 0])
    assert torch.equal(foreign, before)


# ---- Barriers; test_lab.py has named barriers and mbarriers that are never full ----


@pytest.mark.planted
@pytest.mark.parametrize("seed", ORDERS)
@pytest.mark.parametrize("strict", [True, False])
def test_barriers_on_both_paths_of_a_warp_are_refused(strict, seed):
    said = report("divergent_barrier", "two_barriers_of_a_warp", 3, 32, [words(32)], seed=seed, strict=strict)
    assert at("first barrier of a warp") in said or at("second barrier of a warp") in said


@pytest.mark.planted
@pytest.mark.parametrize("seed", ORDERS)
@pytest.mark.parametrize(
    "kernel, markers, expected",
    [("two_barriers_of_a_block", ["first barrier of a block", "second barrier of a block"], [1] * 32 + [2] * 32),
     ("barrier_after_exit", ["barrier that 5 misses"], [1] * 5 + [0] + [1] * 58),
     ("barrier_of_some_warps", ["barrier that the last warp misses"], [1] * 32 + [0] * 32)],
)  # fmt: skip
def test_what_hardware_lets_pass_is_refused_unless_asked_for(module, kernel, markers, expected, seed):
    said = report("divergent_barrier", kernel, 3, 64, [words(64)], seed=seed)
    says(said, *(at(marker) for marker in markers))
    out = words(64)
    module[kernel].launch(3, 64, [out], strict=False, seed=seed)
    assert out.tolist() == expected


@pytest.mark.planted
@pytest.mark.parametrize("seed", ORDERS)
def test_barrier_and_flag_that_wait_for_each_other_are_named(seed):
    says(report("deadlock", "barrier_against_flag", 1, 64, [words(1)], seed=seed), at("barrier of thread 0"))


# ---- Operations of a warp ----

WARP_FAULTS = {  # kernel: fault, markers of lines of which the report must name one, and numbers that it must name
    "two_warp_operations": ("deadlock", ["shuffle of the lower half", "vote of the upper half"], []),
    "two_masks": ("deadlock", ["masks differ"], []),
    "lane_has_left": ("missing_lanes", ["lane 3 has left"], [3]),
    "source_outside_mask": ("missing_lanes", ["reads lane 20"], [20]),
    "not_in_own_mask": ("missing_lanes", ["mask of the lower half"], []),
    "barrier_against_shuffle": ("deadlock", ["barrier of one lane", "shuffle of the others"], []),
}


@pytest.mark.planted
@pytest.mark.parametrize("seed", ORDERS)
@pytest.mark.parametrize("kernel", WARP_FAULTS)
def test_warp_operation_whose_lanes_do_not_come_is_named(kernel, seed):
    fault, markers, numbers = WARP_FAULTS[kernel]
    said = report(fault, kernel, 3, 32, [words(32)], seed=seed)
    assert any(at(marker) in said for marker in markers)
    says(said, *numbers)


# ---- Waits that never end ----


@pytest.mark.planted
@pytest.mark.parametrize("seed", ORDERS)
def test_block_that_left_before_a_grid_barrier_is_named(seed):
    said = report("deadlock", "block_leaves", 5, 64, [words(2), 3], cooperative=True, seed=seed)
    says(said, at("wait in the grid barrier"), at("end of the grid barrier"), 3)


@pytest.mark.planted
@pytest.mark.parametrize("seed", ORDERS)
@pytest.mark.parametrize(
    "kernel, marker, start",
    [("spin_on_load", "spin on a load", 0), ("spin_on_lock", "spin on a lock", 1),
     ("spin_on_two", "spin on two flags", 0), ("spin_in_two_groups", "spin in two groups", 0),
     ("spin_asleep", "spin asleep", 0),
     ("spin_on_shared", "spin on shared memory", 0), ("each_waits_for_the_other", "waits for the other", 0)],
)  # fmt: skip
def test_spin_that_never_ends_is_named(kernel, marker, start, seed):
    started = time.monotonic()
    said = report("deadlock", kernel, 2, 64, [torch.full((64,), start, dtype=torch.int32)], seed=seed)
    says(said, at(marker))
    assert time.monotonic() - started < 10


@pytest.mark.planted
@pytest.mark.parametrize("seed", ORDERS)
def test_blocks_that_never_start_are_named(module, seed):
    """`laptop` holds 2 blocks of 1024 threads. They wait for 6 more, which cannot start before these end."""
    module["meet"].launch(2, 1024, [words(2)], seed=seed)
    says(report("lost_launch", "meet", 8, 1024, [words(2)], seed=seed), at("wait in the grid barrier"))


@pytest.mark.planted
@pytest.mark.parametrize("seed", ORDERS)
def test_loop_that_never_ends_meets_the_budget(seed):
    started = time.monotonic()
    report("budget", "endless", 1, 32, [torch.arange(32, dtype=torch.int32)], seed=seed, instructions=1_000_000)
    report("budget", "endless_in_registers", 1, 32, [words(32), 1], seed=seed, instructions=1_000_000)
    assert time.monotonic() - started < 20


def test_ctrl_c_ends_a_long_launch(module, ctrl_c):
    started, out = time.monotonic(), torch.full((64,), -1, dtype=torch.int32)
    with pytest.raises(KeyboardInterrupt), ctrl_c(after_s=0.3):
        module["long_loop"].launch(2, 32, [out, 1 << 31])
    assert 0.2 < time.monotonic() - started < 5
    assert (out == -1).all()
    module["long_loop"].launch(2, 32, [out, 10])
    assert not (out == -1).any()


# ---- Kernels that end themselves ----


@pytest.mark.planted
@pytest.mark.parametrize("seed", ORDERS)
def test_trap_and_assert_are_named(module, seed):
    says(report("trap", "traps", 2, 64, [words(64)], seed=seed), at("trap"), 37)
    x = torch.arange(64, dtype=torch.int32)
    says(report("assertion", "asserts", 1, 64, [x, words(64)], seed=seed), at("assert"), 41, "x[threadIdx.x] != 41")
    module["asserts"].launch(1, 32, [x, words(64)], seed=seed)


@pytest.mark.planted
def test_recursion_is_refused():
    out = words(1)
    with pytest.raises((CompileError, LaunchError), match="deep"):
        planted("recursion.cu", "compute_80")["endless_recursion"].launch(1, 1, [out])
    assert not out.any()


# ---- Refused before anything runs ----


@pytest.mark.planted
@pytest.mark.parametrize(
    "file, words_of_it",
    [("unknown_instruction", ["frobnicate", "guess.cu:18"]), ("unknown_modifier", ["frob", "guess.cu:23"]),
     ("newer", ["99"])],
)  # fmt: skip
def test_unknown_ptx_is_refused_by_name(file, words_of_it):
    with pytest.raises(CompileError) as error:
        machine.load((HERE / f"{file}.ptx").read_text())
    says(str(error.value), *words_of_it)


@pytest.mark.planted
def test_ptx_of_another_architecture_is_refused():
    with pytest.raises((CompileError, LaunchError), match="T4"):
        planted("reports.cu", "compute_80", "T4")["good"].launch(1, 64, [torch.zeros(64), torch.zeros(64), 64])
    with pytest.raises((CompileError, LaunchError), match="RTX 3090"):
        module = machine.load(ptx("hostile.cu", "compute_90a"), card="RTX 3090")
        module["own_writes"].launch(1, 64, [words(64), words(64), 1])


def test_unknown_kernel_is_refused_with_those_there_are(module):
    with pytest.raises(LaunchError) as error:
        module["store_outsid"]
    says(str(error.value), "store_outsid", "store_outside")


X = torch.zeros(64)
GOOD_ARGUMENTS = [X, 3, 2.0, True, -1]


@pytest.mark.planted
@pytest.mark.parametrize(
    "place, wrong",
    [(0, 3.5), (0, None), (0, "x"), (0, [X]), (0, torch.zeros(64, 2)[:, 0]), (0, torch.zeros(64, device="meta")),
     (1, X), (1, 2.5), (1, 1 << 40), (2, X), (2, 1), (2, "2"), (3, 300), (4, 1 << 70), (4, None)],
)  # fmt: skip
def test_argument_of_another_type_is_refused(module, place, wrong):
    arguments = [*GOOD_ARGUMENTS]
    arguments[place] = wrong
    X.fill_(7)
    with pytest.raises(LaunchError) as error:
        module["arguments"].launch(1, 64, arguments)
    says(str(error.value), "arguments")
    assert (X == 7).all()
    module["arguments"].launch(1, 64, GOOD_ARGUMENTS)
    assert (X == 6).all()


@pytest.mark.planted
@pytest.mark.parametrize("arguments", [[], GOOD_ARGUMENTS[:-1], [*GOOD_ARGUMENTS, 1]])
def test_another_number_of_arguments_is_refused(module, arguments):
    X.fill_(7)
    with pytest.raises(LaunchError) as error:
        module["arguments"].launch(1, 64, arguments)
    says(str(error.value), len(arguments), 5)
    assert (X == 7).all()


@pytest.mark.planted
@pytest.mark.parametrize(  # test_cards.py has every limit
    "grid, block, options",
    [(0, 64, {}), (1, 1025, {}), (1, 2.5, {}), (1, 64, {"smem": 1 << 20}), (1, 64, {"seed": "seven"}),
     (5, 64, {"cluster": 2})],
)  # fmt: skip
def test_launch_beyond_the_card_is_refused(module, grid, block, options):
    x, out = torch.zeros(64), torch.full((64,), 7.0)
    with pytest.raises(LaunchError):
        module["good"].launch(grid, block, [x, out, 64], **options)
    assert (out == 7).all()


@pytest.mark.planted
def test_block_larger_than_the_kernel_was_compiled_for_is_refused(module):
    module["at_most_64"].launch(1, 64, [words(128)])
    out = words(128)
    with pytest.raises(LaunchError) as error:
        module["at_most_64"].launch(1, 128, [out])
    says(str(error.value), 64, 128)
    assert not out.any()
