"""Products of small tiles: by shuffles and by tensor cores, their layouts, and the rounding of operands."""

import shutil
from pathlib import Path

import pytest
import torch
from tensors import poisoned

from luce_edu.backends import make_backend
from luce_edu.faults import Fault, planted
from luce_edu.machine.cubin import ARCHITECTURES, compile_cubin
from luce_edu.machine.nvrtc import compile_ptx

SOURCE = Path(__file__).parent / "kernels" / "tensor_core.cu"
KERNELS = (
    "products", "bf16_products", "block_by_columns", "block_by_rows", "reads_of_tile_b", "round_all", "cut_all",
    "eights",
)  # fmt: skip
THREADS = 96  # three warps per block, each with tiles of its own
INF = float("inf")
TF32 = 2.0**-11  # the largest relative error of rounding to 10 bits of fraction


class Kernels:
    def __init__(self, card, *changes):
        with planted(*changes) as tree:
            shutil.copy(SOURCE, tree)
            self.backend = make_backend("host", csrc_dir=tree, card=card, seed=3)
            self.module = self.backend.compile(SOURCE.name, KERNELS, {"BLOCK_THREADS": THREADS})

    def run(self, name, grid, *args, threads=THREADS):
        self.backend.launch(self.module[name], grid, threads, 0, args)


@pytest.fixture(scope="module", params=["T4", "A100"])
def kernels(request):
    """By shuffles on a T4, by tensor cores on an A100."""
    return Kernels(request.param)


@pytest.mark.parametrize("count", [1, 3])
def test_products_of_random_tiles_equal_fp64_within_the_rounding_of_their_operands(kernels, count):
    warps = 2 * THREADS // 32
    a, b, c = torch.randn(warps, count, 16, 8), torch.randn(warps, count, 8, 8), torch.randn(warps, 16, 8)
    expected = c.double() + (a.double() @ b.double()).sum(1)
    allowed = 2.1 * TF32 * (a.abs().double() @ b.abs().double()).sum(1) + 1e-6
    kernels.run("products", 2, a, b, c, count)
    assert ((c.double() - expected).abs() <= allowed).all()


def test_products_of_small_integers_are_exact(kernels):
    warps = THREADS // 32
    a, b = (torch.randint(-128, 129, (warps, 2, n, 8)).float() for n in (16, 8))
    c = torch.randint(-128, 129, (warps, 16, 8)).float()
    expected = c + (a @ b).sum(1)
    kernels.run("products", 1, a, b, c, 2)
    assert torch.equal(c, expected)


@pytest.mark.parametrize("is_transposed", [0, 1])
def test_bf16_products_of_small_integers_are_exact(kernels, is_transposed):
    a, b = (torch.randint(-128, 129, shape).bfloat16() for shape in ((16, 16), (4, 16, 8)))
    c = torch.randint(-128, 129, (4, 16, 8)).float()
    expected = c + 2 * (a.float() @ b.float())
    halves = b.unflatten(1, (2, 8))
    b = (halves.mT if is_transposed else halves).contiguous()
    kernels.run("bf16_products", 1, a, b, c, is_transposed, threads=32)
    assert torch.equal(c, expected)


def test_a_number_cut_to_two_of_bf16_keeps_14_bits(kernels):
    x, y = torch.randn(THREADS), poisoned(THREADS)
    x[:4] = torch.tensor([1.0, 0.0, 2.0**-126, -(2.0**100)])
    kernels.run("cut_all", 1, x, y)
    assert ((x - y).abs() <= 2.0**-14 * x.abs()).all() and (x[4:] != y[4:]).any() and torch.equal(x[:4], y[:4])


def test_a_block_of_32_terms_equals_the_product_from_columns_and_from_rows(kernels):
    a, b = torch.randint(-16, 17, (16, 32)).bfloat16(), torch.randint(-16, 17, (8, 32)).bfloat16()
    expected = a.float() @ b.float().T
    c = poisoned(16, 8)
    kernels.run("block_by_columns", 1, a, b, c, threads=32)
    assert torch.equal(c, expected)
    for stride in (8, 9, 17, 33):
        rows = poisoned(32, stride)
        rows[:, :8] = b.float().T
        c = poisoned(16, 8)
        kernels.run("block_by_rows", 1, a, rows, c, stride, threads=32)
        assert torch.equal(c, expected), stride


@pytest.mark.parametrize(
    "stride, conflict_free", [(9, True), (17, True), (33, True), (8, False), (16, False), (32, False)]
)
def test_the_lanes_of_tile_b_read_32_banks_where_the_stride_is_1_modulo_4(kernels, stride, conflict_free):
    b = torch.arange(32 * stride, dtype=torch.float32)  # each number is its own place
    read = poisoned(4, 2, 32)
    kernels.run("reads_of_tile_b", 1, b, read, stride, threads=32)
    banks = [len({int(place) % 32 for place in instruction}) for instruction in read.flatten(0, 1)]
    assert (banks == [32] * 8) is conflict_free, banks


def test_rounding_to_tf32_is_to_nearest_with_ties_away_from_0_and_keeps_nan(kernels):
    ulp = 2.0**-10  # of TF32 at 1
    largest = torch.finfo(torch.float32).max
    cases = {
        0.0: 0.0, 1.0: 1.0, 1 + ulp: 1 + ulp, 1 + ulp / 2: 1 + ulp, -1 - ulp / 2: -1 - ulp,
        1 + 1.5 * ulp: 1 + 2 * ulp, 1 + ulp / 2 - 2**-23: 1.0, -1 - ulp / 2 + 2**-23: -1.0,
        1 + ulp / 2 + 2**-23: 1 + ulp,
        2 - 2**-23: 2.0, 2.0**-126: 2.0**-126, largest: INF, -largest: -INF, INF: INF, -INF: -INF,
    }  # fmt: skip
    x, y = torch.zeros(THREADS), poisoned(THREADS)
    x[: len(cases)] = torch.tensor(list(cases), dtype=torch.float64).float()
    kernels.run("round_all", 1, x, y)
    for given, wanted, got in zip(cases, cases.values(), y.tolist(), strict=False):
        assert got == wanted, f"{given!r}: {got!r}"
    nans = torch.tensor([0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    x[:4] = nans
    kernels.run("round_all", 1, x, y)
    assert y[:4].isnan().all()
    assert not y[4:].isnan().any()


def test_rounding_to_tf32_leaves_13_bits_of_0_and_every_bf16_number_as_it_is(kernels):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = every[: len(every) // THREADS * THREADS].float()
    rounded = poisoned(len(every))
    kernels.run("round_all", len(every) // THREADS, every, rounded)
    assert torch.equal(rounded.nan_to_num(7.0), every.nan_to_num(7.0))
    x, y = torch.randn(4 * THREADS), poisoned(4 * THREADS)
    kernels.run("round_all", 4, x, y)
    assert (y.view(torch.int32) & 0x1FFF == 0).all()
    assert ((x - y).abs() <= TF32 * x.abs()).all() and (x != y).any()


def test_eight_numbers_come_back_as_they_were(kernels):
    x = torch.randn(2 * THREADS * 8).bfloat16()
    x[:5] = torch.tensor([INF, -INF, 0.0, -0.0, 1e-40])
    floats, packed = poisoned(len(x)), poisoned(len(x), dtype=torch.bfloat16)
    kernels.run("eights", 2, x, floats, packed)
    assert torch.equal(floats, x.float())
    assert torch.equal(packed.view(torch.int16), x.view(torch.int16))


# ---- Machine code ----


@pytest.fixture(scope="module")
def tree():
    with planted() as tree:
        shutil.copy(SOURCE, tree)
        yield tree


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tensor_cores_are_used_from_ampere_on_and_shuffles_before(arch, tree):
    defines = {"BLOCK_THREADS": THREADS}
    text = compile_ptx(SOURCE.name, None, KERNELS, defines, arch.replace("sm", "compute"), csrc=tree)
    shapes = [f"mma.sync.aligned.{shape}.row.col.f32" for shape in ("m16n8k8", "m16n8k16")]
    uses = [word in text for word in (*shapes, "cvt.rna.tf32.f32", "shfl.sync")]
    assert uses == ([False, False, False, True] if arch == "sm_75" else [True, True, True, False])
    binary = compile_cubin(SOURCE.name, KERNELS, defines, arch, csrc=tree)
    for name, resources in binary.resources.items():
        assert resources.spill_store_bytes == resources.spill_load_bytes == 0, name


# ---- Planted ----

TF32_MMA = "f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
PLANTS = {
    "the halves of the terms swapped": (
        "A100", '"r"(__float_as_uint(b.x[0])), "r"(__float_as_uint(b.x[1]))',
        '"r"(__float_as_uint(b.x[1])), "r"(__float_as_uint(b.x[0]))',
    ),
    "the halves of the rows swapped": ("A100", TF32_MMA, TF32_MMA.replace("%4, %5, %6, %7", "%5, %4, %7, %6")),
    "a sum that starts anew": ("A100", TF32_MMA, TF32_MMA.replace("{%0, %1, %2, %3};", "{%0, %0, %2, %2};")),
    "bf16: the first terms twice": ("A100", '"r"(b[n].x[1]));', '"r"(b[n].x[0]));'),
    "bf16 by shuffles: the halves of the terms swapped": ("T4", "b[n].x[half], column", "b[n].x[1 - half], column"),
    "matrices not transposed": ("A100", "m8n8.x4.trans.shared", "m8n8.x4.shared"),
    "shuffles: a lane multiplies its own lower rows": (
        "T4", "__shfl_sync(full_warp, a.x[2 * half + 1], row + slot)", "a.x[2 * half + 1]"
    ),
}  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("plant", PLANTS)
def test_the_check_catches(plant):
    card, old, new = PLANTS[plant]
    with pytest.raises(AssertionError):
        kernels = Kernels(card, Fault("", "tensor_core.cuh", old, new))
        test_products_of_small_integers_are_exact(kernels)
        test_bf16_products_of_small_integers_are_exact(kernels, 0)


@pytest.mark.planted
@pytest.mark.parametrize(
    "card, old, new",
    [("T4", "if ((bits & 0x7f800000u) == 0x7f800000u) return x;", ""), ("T4", "(bits + 0x1000u)", "(bits + 0x0fffu)"),
     ("T4", "(bits + 0x1000u)", "bits"), ("A100", 'asm("cvt.rna.tf32.f32 %0, %1;"', 'asm("mov.b32 %0, %1;"')],
    ids=["NaN carried over", "ties to 0", "cut off", "not at all"],
)  # fmt: skip
def test_wrong_rounding_is_caught(card, old, new):
    with pytest.raises(AssertionError):
        test_rounding_to_tf32_is_to_nearest_with_ties_away_from_0_and_keeps_nan(
            Kernels(card, Fault("", "tensor_core.cuh", old, new))
        )
