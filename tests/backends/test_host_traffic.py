"""The traffic that a launch on the host counts, against counts by hand, and the accesses that it refuses."""

import re
from pathlib import Path

import pytest
import torch

from luce_edu.backends.host import HostBackend
from luce_edu.errors import KernelError
from luce_edu.machine.counters import Traffic

SOURCE = Path(__file__).parent / "kernels" / "traffic.cu"
KERNELS = re.findall(r'extern "C" __global__ void (\w+)', SOURCE.read_text())
ORDERS = (None, 0, 1)  # None: blocks in parallel


def line(marker: str) -> str:
    """'traffic.cu:number' of the one line that ends with the comment `marker`."""
    (number,) = [i for i, text in enumerate(SOURCE.read_text().splitlines(), 1) if text.endswith(f"// {marker}")]
    return f"traffic.cu:{number}"


@pytest.fixture
def backend(kernel_tree, four_sms):
    return HostBackend(csrc_dir=kernel_tree, card=four_sms)


@pytest.fixture
def kernels(backend):
    return backend.compile("traffic.cu", KERNELS, {})


def count(backend, kernel, grid, block, args, smem=0) -> dict[str, Traffic]:
    backend.launch(kernel, grid, block, smem, args)
    return backend.ledger.entries[-1].traffic


def read(asked, moved, distinct) -> Traffic:
    return Traffic(asked_read=asked, moved_read=moved, distinct_read=distinct)


def written(asked, moved, distinct) -> Traffic:
    return Traffic(asked_write=asked, moved_write=moved, distinct_write=distinct)


# ---- Patterns, by hand ----

X = torch.randn(8192)
BF16 = torch.randn(8192).bfloat16()

# kernel, grid, block, x, the arguments after x and y, what is read of x, what is written of y.
# A warp's 32 floats are 128 bytes: 4 sectors of 32.
PATTERNS = {
    "coalesced": ("copy", 1, 32, X, [32], read(128, 128, 128), written(128, 128, 128)),
    "8 blocks": ("copy", 8, 256, X, [2048], read(8192, 8192, 8192), written(8192, 8192, 8192)),
    "a partial warp": ("copy", 1, 40, X, [40], read(160, 160, 160), written(160, 160, 160)),
    "a guarded tail": ("copy", 2, 64, X, [67], read(268, 288, 268), written(268, 288, 268)),
    # 128 bytes from byte 4 on touch sectors 0 to 4.
    "unaligned start": ("copy", 1, 32, X[1:], [32], read(128, 160, 128), written(128, 128, 128)),
    "half a sector off": ("copy", 1, 64, X[4:], [64], read(256, 320, 256), written(256, 256, 256)),
    "stride 1": ("strided", 1, 32, X, [1], read(128, 128, 128), written(128, 128, 128)),
    "stride 2": ("strided", 1, 32, X, [2], read(128, 256, 128), written(128, 128, 128)),
    "stride 32": ("strided", 2, 64, X, [32], read(512, 4096, 512), written(512, 512, 512)),
    "one address": ("broadcast", 1, 96, X, [], read(384, 96, 4), written(384, 384, 384)),
    "float2": ("copy2", 1, 32, X, [], read(256, 256, 256), written(256, 256, 256)),
    "float4": ("copy4", 1, 32, X, [], read(512, 512, 512), written(512, 512, 512)),
    # Aligned to 16 but not to 32: 512 bytes touch one sector more.
    "float4 half a sector off": ("copy4", 1, 32, X[4:], [], read(512, 544, 512), written(512, 512, 512)),
    "a float4's member": ("member", 1, 32, X, [], read(128, 512, 128), written(128, 128, 128)),
    "bf16x8": ("copy_weights", 1, 32, BF16, [], read(512, 512, 512), written(512, 512, 512)),
    "bf16": ("copy_bf16", 1, 32, BF16, [], read(64, 64, 64), written(64, 64, 64)),
    "bytes": ("copy_bytes", 1, 32, X.view(torch.uint8), [], read(32, 32, 32), written(32, 32, 32)),
    # NVIDIA's compiler makes a loop over single bytes of either call: each pass touches all 4 sectors.
    "memset and memcpy": ("copy_by_memcpy", 1, 32, X, [4], read(128, 512, 128), written(256, 1024, 128)),
    "upper half leaves": ("upper_half_leaves", 1, 64, X, [], read(128, 128, 128), written(128, 128, 128)),
    "odd lanes leave": ("odd_lanes_leave", 1, 32, X, [], read(64, 128, 64), written(64, 128, 64)),
    # 8 lanes each read 1, 2, 3 and 4 rows: 80 floats; each of the 4 rows has all its 4 sectors touched.
    "ragged loop": ("ragged", 1, 32, X, [], read(320, 512, 320), written(128, 128, 128)),
    # 3 blocks, each 2 rows of 32 twice.
    "rows twice": ("rows_twice", 3, 32, X, [2, 32], read(1536, 1536, 256), written(384, 384, 384)),
    # Each sector counts once, although a lane makes all of its 256 loads before the next lane begins.
    "long loop": ("long_loop", 1, 32, X, [8192], read(32768, 32768, 32768), written(128, 128, 128)),
}


@pytest.mark.parametrize("seed", ORDERS)
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_counted_as_by_hand(backend, kernels, name, seed):
    kernel, grid, block, x, more, wanted_x, wanted_y = PATTERNS[name]
    backend.seed = seed
    y = torch.zeros(8192, dtype=x.dtype)
    backend.name_tensors({"x": x, "y": y})
    traffic = count(backend, kernels[kernel], grid, block, [x, y, *more], smem=128)
    assert traffic == {"x": wanted_x, "y": wanted_y}


@pytest.mark.parametrize("seed", ORDERS)
def test_variables_of_the_module_are_tensors_and_shared_and_local_memory_is_none(backend, kernels, seed):
    backend.seed = seed
    x, y = torch.randn(32), torch.zeros(32)
    traffic = count(backend, kernels["detours"], 1, 32, [x, y], smem=128)
    factors = torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat(8)
    assert torch.equal(y, x * factors / factors)
    assert traffic == {
        "argument 0": read(128, 128, 128), "argument 1": written(128, 128, 128), "table": read(128, 32, 16),
        "calls": Traffic(128, 128, 32, 32, 4, 4),
    }  # fmt: skip


@pytest.mark.parametrize("seed", ORDERS)
def test_a_loop_of_thousands_is_counted_as_if_lanes_went_together(backend, kernels, seed):
    backend.seed = seed
    n = 32 * 20_000
    x, y = torch.ones(n), torch.zeros(32)
    traffic = count(backend, kernels["long_loop"], 1, 32, [x, y, n])
    assert traffic["argument 0"] == read(4 * n, 4 * n, 4 * n)


@pytest.mark.parametrize("seed", ORDERS)
def test_an_atomic_reads_and_writes_its_element(backend, kernels, seed):
    backend.seed = seed
    counts, flag = torch.zeros(8, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    assert count(backend, kernels["atomics"], 2, 32, [counts]) == {"argument 0": Traffic(256, 256, 64, 64, 32, 32)}
    assert backend.ledger.entries[-1].counters.atomics == 64
    assert counts.tolist() == [8] * 8
    assert count(backend, kernels["flags"], 1, 1, [flag])["argument 0"] == Traffic(4, 4, 32, 32, 4, 4)


def test_the_ledger_adds_up_what_its_launches_moved(backend, kernels):
    x, y = torch.randn(32), torch.zeros(32)
    backend.name_tensors({"x": x, "y": y})
    for _ in range(3):
        count(backend, kernels["copy"], 1, 32, [x, y, 32])
    assert backend.ledger.traffic() == {"x": read(384, 384, 384), "y": written(384, 384, 384)}


# ---- Names ----


def test_each_tensor_is_counted_under_its_name(backend, kernels):
    a, b, c, y = (torch.randn(64) for _ in range(4))
    backend.name_tensors({"b": b, "unused": torch.randn(9)})
    traffic = count(backend, kernels["add_up"], 1, 64, [a, b, c, y])
    each = read(256, 256, 256)
    assert traffic == {"argument 0": each, "b": each, "argument 2": each, "argument 3": written(256, 256, 256)}


def test_a_view_goes_by_the_tensor_around_it(backend, kernels):
    whole, y = torch.randn(128), torch.zeros(32)
    backend.name_tensors({"row": whole[32:64], "whole": whole, "y": y})
    rows = whole[:32], whole[32:64], whole[32:64]
    traffic = count(backend, kernels["add_up"], 1, 32, [*rows, y])
    assert traffic == {"whole": read(384, 384, 256), "y": written(128, 128, 128)}


def test_tied_tensors_go_by_the_first_name(backend, kernels):
    x, y = torch.randn(32), torch.zeros(32)
    backend.name_tensors({"embed": x, "head": x.view(4, 8), "y": y})
    traffic = count(backend, kernels["add_up"], 1, 32, [x, x.view(4, 8), x, y])
    assert set(traffic) == {"embed", "y"}


@pytest.mark.parametrize("seed", ORDERS)
def test_tensors_that_overlap_go_by_the_first_of_them(backend, kernels, seed):
    backend.seed = seed
    memory, y = torch.randn(96), torch.zeros(64)
    backend.name_tensors({"left": memory[:64], "right": memory[32:], "y": y})
    traffic = count(backend, kernels["add_up"], 2, 32, [memory[:64], memory[32:], memory[:64], y])
    assert traffic == {"left": read(768, 768, 384), "y": written(256, 256, 256)}


def test_tensors_behind_pointers_count_once_they_are_named(backend, kernels):
    rows, y = [torch.randn(32) for _ in range(3)], torch.zeros(32)
    table = torch.tensor([row.data_ptr() for row in rows])
    backend.name_tensors({f"row {i}": rows[i] for i in (0, 2)})
    with pytest.raises(KernelError, match="thread 0 reads 4 bytes at .*: out of bounds"):
        count(backend, kernels["pointers"], 1, 32, [table, y, 3])
    backend.name_tensors({"row 1": rows[1]})
    traffic = count(backend, kernels["pointers"], 1, 32, [table, y, 3])
    assert traffic["row 1"] == read(128, 128, 128)
    assert traffic["argument 0"] == read(32 * 24, 96, 24)


@pytest.mark.parametrize("seed", ORDERS)
def test_barriers_are_those_that_a_block_passes_on_average(backend, kernels, seed):
    backend.seed = seed
    for each in (0, 1, 5):
        count(backend, kernels["barriers"], 4, 64, [each])
        assert backend.ledger.entries[-1].barriers_a_block == each * (0 + 1 + 2 + 3) / 4


# ---- Wrong accesses ----


def refusal(backend, kernel, grid, block, args, smem=0, **options) -> str:
    with pytest.raises(KernelError) as error:
        backend.launch(kernel, grid, block, smem, args, **options)
    return str(error.value)


def said(does: str, size: int, name: str, at: int, fault: str) -> str:
    """The words of a report on `size` bytes from element `at` of a tensor of 30 floats."""
    return f"{does} {size} bytes at {name}[{at}], byte {4 * at} of {name}, which has 120 bytes: {fault}"


# what: kernel, index that its thread takes of a tensor of 30 floats in a memory of 64, bytes, fault
STRAY = {
    "past the end": ("store", 30, 4, "out of bounds"),
    "before the begin": ("store", -1, 4, "out of bounds"),
    "half outside": ("store4", 28, 16, "out of bounds"),
    "atomic": ("add", 30, 4, "out of bounds"),
    "flag": ("release", 31, 4, "out of bounds"),
    "not aligned": ("store4", 1, 16, "misaligned"),
    "far away": ("store", 2**29, 4, "far from every tensor: out of bounds"),
}


@pytest.mark.planted
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("what", STRAY)
def test_a_stray_write_is_named_and_does_not_happen(backend, kernels, what, seed):
    kernel, index, size, fault = STRAY[what]
    words = fault if what == "far away" else said("writes", size, "y", index, fault)
    backend.seed = seed
    memory = torch.arange(64.0)
    y = memory[16:46]
    backend.name_tensors({"y": y})
    report = refusal(backend, kernels[kernel], 2, 32, [y, index, 41])
    assert f"{kernel}: block 1, thread 9 " in report and words in report and line(kernel) in report
    assert torch.equal(memory, torch.arange(64.0))
    copied = torch.zeros(32)
    count(backend, kernels["copy"], 1, 32, [memory, copied, 32])  # the next launch works
    assert torch.equal(copied, memory[:32])


@pytest.mark.planted
def test_a_copy_goes_up_to_the_end_and_no_further(backend, kernels):
    """memcpy is a loop over single bytes: stores inside happen, the first one outside is named."""
    memory = torch.arange(64.0)
    y = memory[16:46]
    report = refusal(backend, kernels["move"], 2, 32, [y, 29, 41])
    assert said("writes", 1, "argument 0", 30, "out of bounds") in report
    assert memory[45] == 16 and torch.equal(memory[46:], torch.arange(46.0, 64))


STRAY_READS = {  # kernel, index, bytes, fault; the index into bf16 weights is twice that into floats
    "past the end": ("load", 30, 4, "out of bounds"),
    "before the begin": ("load", -3, 4, "out of bounds"),
    "half outside": ("load4", 28, 16, "out of bounds"),
    "not aligned": ("load4", 2, 16, "misaligned"),
    "weights": ("weights", 64, 16, "out of bounds"),
    "weights not aligned": ("weights", 4, 16, "misaligned"),
}


@pytest.mark.planted
@pytest.mark.parametrize("what", STRAY_READS)
def test_a_stray_read_is_named(backend, kernels, what):
    kernel, index, size, fault = STRAY_READS[what]
    x, y = torch.randn(64)[16:46], torch.zeros(1)
    backend.name_tensors({"x": x})
    report = refusal(backend, kernels[kernel], 1, 32, [x, y, index, 3])
    at = index // 2 if kernel == "weights" else index
    assert f"block 0, thread 3 {said('reads', size, 'x', at, fault)}" in report and line(kernel) in report
    assert y.item() == 0


@pytest.mark.planted
def test_an_access_in_the_gap_between_two_tensors_is_named_by_the_nearer(backend, kernels):
    memory = torch.zeros(64)
    a, b = memory[:16], memory[48:]
    backend.name_tensors({"a": a, "b": b})
    for index, words in ((20, "byte 80 of a, which has 64"), (44, "byte -16 of b, which has 64")):
        assert words in refusal(backend, kernels["store"], 1, 1, [a, index, 0])
    backend.launch(kernels["store"], 1, 1, 0, [a, 50, 0])  # this is also an address in b, so it is allowed
    assert memory.nonzero().tolist() == [[50]]


@pytest.mark.planted
@pytest.mark.parametrize("address", [0, 4096, -4, -64])
def test_an_address_from_nowhere_is_named_in_a_kernel_without_tensors(backend, kernels, address):
    report = refusal(backend, kernels["nowhere"], 1, 1, [address])
    assert "thread 0 writes 4 bytes at address" in report and line("nowhere") in report


@pytest.mark.planted
def test_once_one_block_is_refused_no_other_writes_out_of_bounds(backend, kernels):
    """A block that still runs while another one is refused must be checked too."""
    for _ in range(5):
        memory = torch.zeros(64)
        refusal(backend, kernels["all_outside"], 3, 1, [torch.randn(32), memory[:32], 32, 100_000], cooperative=True)
        assert not memory.any()
