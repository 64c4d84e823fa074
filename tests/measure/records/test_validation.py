"""The kernels of csrc/validation give the right results, and rows become launches and figures as they say."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from luce_edu.backends.host import HostBackend
from luce_edu.errors import KernelError
from luce_edu.faults import Fault, planted
from luce_edu.machine.kernels import run as run_on_host
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.machine.ptx import parse
from luce_edu.measure.records import validation
from luce_edu.measure.records.validation import MEASUREMENTS, SIZE, Array, Run, backend_for, measurement
from luce_edu.paths import csrc_dir
from luce_edu.stages.dims import GRID_BARRIER_WORDS

FOLDER = csrc_dir() / "validation"


# ---- Small launches of every kernel, with the right results ----


@dataclass(frozen=True)
class Case:
    """A small launch. make() returns the arguments, and a function that tells after it whether they are right."""

    source: str
    kernel: str
    grid: object
    block: object
    make: Callable[[], tuple[tuple, Callable[[], bool]]]
    defines: tuple = ()
    shared: int = 0
    cooperative: bool = False


def right(case: Case, tree=None, **how) -> bool:
    backend = HostBackend(csrc_dir=tree, strict=False, **how)
    module = backend.compile(f"validation/{case.source}.cu", [case.kernel], dict(case.defines))
    args, check = case.make()
    backend.launch(module[case.kernel], case.grid, case.block, case.shared, args, cooperative=case.cooperative)
    return check()


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def whole(*shape, most=7, seed=0, dtype=np.float32):
    """Small whole numbers, so that sums are exact in any order."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-most, most + 1, shape).astype(dtype))


def close(got, want, limit=1e-5) -> bool:
    """Every number is finite, and the largest error is at most `limit` times the largest number."""
    return bool(torch.isfinite(got).all() and (got - want).abs().max() <= limit * want.abs().max())


def product(source, kernel, block, tile, *, x_counts_rows=False, defines=(), ragged=0, overwrite=False):
    rows, columns, k, depth = 2 * tile - ragged, 3 * tile - ragged, 48, 32 - ragged
    grid_rows, grid_columns = 2, 3

    def make():
        a, b, c = random(rows, k), random(k, columns, seed=1), random(rows, columns, seed=2)
        alpha, beta = 0.5, 3.0
        want = a[:, :depth] @ b[:depth] if overwrite else alpha * (a[:, :depth] @ b[:depth]) + beta * c
        return (rows, columns, k, depth, alpha, a, b, beta, c), lambda: close(c, want)

    tiles = ("TILES_X", grid_rows if x_counts_rows else grid_columns)
    return Case(source, kernel, grid_rows * grid_columns, block, make, (tiles, *defines))


OVERWRITE = ("OVERWRITE", 1)
PRODUCTS = [
    product("sgemm", "naive", (32, 32), 32, x_counts_rows=True),
    product("sgemm", "coalesced", 1024, 32, x_counts_rows=True),
    product("sgemm", "coalesced", 1024, 32, defines=(OVERWRITE, ("X_IS_COLUMN", 1)), overwrite=True),
    product("sgemm", "tiled", 1024, 32, x_counts_rows=True),
    product("sgemm", "tiled", 1024, 32, defines=(OVERWRITE, ("X_IS_COLUMN", 1)), overwrite=True),
    product("sgemm", "column_of_8", 512, 64),
    *(
        product("sgemm", kernel, 256, 128)
        for kernel in ("square_of_8", "vectorised", "interleaved", "padded", "padded_twice", "padded_twice_deep",
                       "autotuned", "warp_tiles_64x32")
    ),
    product("sgemm", "warp_tiles", 128, 128),
    product("sgemm", "warp_tiles", 128, 128, defines=(OVERWRITE,), overwrite=True),
    product("sgemm", "tiled_16", (16, 16), 16),
    product("sgemm_checked", "checked_naive", (32, 32), 32, x_counts_rows=True, ragged=3),
    *(
        product("sgemm_checked", f"checked_{kernel}", block, tile, ragged=ragged)
        for kernel, block, tile, ragged in (
            ("coalesced", (32, 32), 32, 3), ("tiled", (32, 32), 32, 3), ("tiled_fours", (32, 32), 32, 0),
            ("column_of_8", 512, 64, 3), ("column_of_8_fours", 512, 64, 0), ("square_of_8", 256, 128, 3),
            ("square_of_8_fours", 256, 128, 0), ("transposed", 256, 128, 3), ("transposed_fours", 256, 128, 0),
        )
    ),
]  # fmt: skip


def async_product():
    n, depth = 48, 32

    def make():
        a, b, c = random(n, n), random(n, n, seed=1), torch.empty(n, n)
        # In each step B's tile is at the position of A's, so the result is the same in all columns of tiles.
        rows = [
            sum(a[r : r + 16, k : k + 16] @ b[r : r + 16, k : k + 16] for k in range(0, depth, 16)).repeat(1, 3)
            for r in range(0, n, 16)
        ]
        return (n, depth, a, b, c), lambda: close(c, torch.cat(rows))

    return Case("sgemm_async", "async_fours", 9, (16, 16), make, (("TILES_X", 3),))


def phase(kernel, count):
    def make():
        visits, barrier = torch.zeros(1, dtype=torch.int32), torch.zeros(GRID_BARRIER_WORDS, dtype=torch.int32)
        return (visits,) if kernel == "phase" else (visits, count, barrier), lambda: int(visits[0]) == count

    return Case("launches", kernel, 2, 64, make, cooperative=kernel == "phases")


def scale(kernel, steps=3):
    def make():
        n, words = 200, GRID_BARRIER_WORDS if kernel == "scale_grid" else steps
        a, b, flags = torch.full((n,), float("nan")).double(), random(n).double(), torch.zeros(words, dtype=torch.int32)

        def check():
            counted = kernel != "scale_hand" or flags.tolist() == [2] * steps
            return torch.equal(a, b / 4) and counted

        return ((a, b, n) if kernel == "scale" else (a, b, n, steps, flags)), check

    return Case("launches", kernel, 4 if kernel == "scale" else 2, 64, make, cooperative=kernel != "scale")


def added():
    a, b, c = random(100), random(100, seed=1), torch.full((100,), float("nan"))
    return (a, b, c, 100), lambda: torch.equal(c, a + b)


def strided(kernel, element, thread):
    """A thread stores its sum only if it equals that of the right elements of `thread`; all other sums differ."""
    dtype, loads = {"float": np.float32, "double": np.float64}[element], 16
    step, block = (3, 1024) if kernel == "strided" else (70, (8, 128))

    def make():
        one = thread % 8 + (thread // 8 % 32 + 1) * step
        first = np.arange(64) * step if kernel == "strided" else np.array([one])
        values = whole(4000, most=50, dtype=dtype).numpy()
        sums = loads // 8 * sum(values[first + i] * values[first + j] for i, j in ((0, 4), (8, 12), (20, 16), (24, 28)))
        wanted = sums[thread] if kernel == "strided" else sums[0]
        out = torch.zeros(64, dtype=torch.from_numpy(values).dtype)
        args = (torch.from_numpy(values), out, 0, step, loads, float(wanted))
        at = thread if kernel == "strided" else thread % 8
        return args, lambda: float(out[at]) == wanted

    return Case("strides", kernel, 1, block, make, (("ELEMENT", element),))


def streamed(kernel):
    def make():
        n = 150
        a, b, c = (random(n, seed=seed).double() for seed in range(3))
        want = a.clone()
        if kernel == "init":
            want[:] = 0.23
        elif kernel == "scaled":
            want = b * 1.2
        elif kernel == "triad":
            want = b * 1.2 + c
        elif kernel == "stencil3":
            want[1:-1] = 0.5 * b[:-2] - b[1:-1] + 0.5 * b[2:]
        elif kernel == "stencil5":
            want[2:-2] = 0.25 * b[:-4] + 0.25 * b[1:-3] - b[2:-2] + 0.5 * b[3:-1] + 0.5 * b[4:]
        return (a, b, c, n, False), lambda: close(a, want, 1e-12)

    return Case("stream", kernel, 3, 64, make)


def babel(kernel):
    def make():
        a, b, c = (random(256, seed=seed).double() for seed in range(3))
        args, out, want = {
            "copy": ((a, c), c, a.clone()), "mul": ((b, c), b, 0.4 * c), "add": ((a, b, c), c, a + b),
            "triad": ((a, b, c), a, b + 0.4 * c),
        }[kernel]  # fmt: skip
        return args, lambda: close(out, want, 1e-12)

    return Case("stream", f"babel_{kernel}", 2, 128, make)


def matrix_sum(kernel):
    def make():
        a, b, c = random(48, 48), random(48, 48, seed=1), torch.full((48, 48), float("nan"))
        return (a, b, c, 48), lambda: torch.equal(c, a + b)

    return Case("stream", kernel, 9, (16, 16), make, (("TILES_X", 3),))


def copied(width):
    def make():
        n = 32 * width * 2 + 2
        a, b = random(n), torch.full((n,), float("nan"))
        return (a, b, n), lambda: torch.equal(a, b)

    return Case("stream", f"copy_{width}", 3, 32, make)


def footprint():
    run = 2
    values = whole(32 * run * 1024, most=10**6, dtype=np.float64)
    sums = values.view(32, run, 1024).sum(0) * 1.3  # by block of a run and thread
    out, never = torch.zeros(1024, dtype=torch.float64), float(sums[1, 5])
    return (out, values, run, never), lambda: float(out[5]) == never


def same_buffer(floats, rounds=3):
    def make():
        values, out = whole(floats, most=100), torch.zeros(256)
        factor, one = np.float64(np.float32(1.3)), np.float32(0)
        for _ in range(rounds):  # a round's product and the next first sum are rounded once: a fused multiply-add
            first, *more = values[7::256].numpy().tolist()
            one = np.float32(one * factor + first)
            for value in more:
                one = np.float32(one + np.float32(value))
        one = np.float32(one * factor)
        return (out, values, 0, rounds, float(one)), lambda: float(out[7]) == float(one)

    return Case("stream", "same_buffer", 1, 256, make, (("BUFFER", floats),))


def transposed(kernel, tile_x, tile_y, block):
    def make():
        n = 128
        values, out = random(n, n), torch.full((n, n), float("nan"))
        want = values if kernel == "copy" else values.T
        return (values, out, n), lambda: torch.equal(out, want)

    return Case("transpose", f"transpose_{kernel}", 128 // tile_x * (128 // tile_y), block, make,
                (("TILES_X", 128 // tile_x),))  # fmt: skip


def chased():
    chain, out = Array("u8", 8 * 50, chain=64).allocate(), torch.zeros(1, dtype=torch.int64)
    begin = chain.data_ptr()
    at = begin
    for _ in range(64):
        at = int(chain[(at - begin) // 8])
    return (chain, out, 64), lambda: int(out[0]) == at


def float_sum(kernel, blocks, shared=True):
    def make():
        values, out = whole(1024), torch.zeros(1)
        return (out, values, 1024), lambda: float(out[0]) == float(values.sum())

    return Case("reductions", kernel, blocks, 128, make, shared=512 if shared else 0)


def counted(kernel, blocks, n, partial=False):
    def make():
        values, out = whole(n, most=1000, dtype=np.int32), torch.zeros(blocks, dtype=torch.int32)
        want = values.view(blocks, -1).sum(1).int() if partial else values.sum().int().view(1)
        return (out, values, n), lambda: torch.equal(out[: len(want)], want)

    return Case("reductions", kernel, blocks, 512, make)


def histogram(kernel, block):
    def make():
        n = 1000
        values = torch.from_numpy(np.random.default_rng(0).integers(0, 512, n).astype(np.int32))
        bins = torch.zeros(512, dtype=torch.int32)
        return (values, bins, n), lambda: torch.equal(bins, torch.bincount(values, minlength=512).int())

    # The global kernel runs as one block: with more, another could add before the first has cleared the bins.
    return Case("histogram", kernel, -(-1000 // block), block, make)


def normed(kernel, grid, block, rows=6, width=200):
    def make():
        x, weight, bias = random(rows, width) + 1, random(width, seed=1), random(width, seed=2)
        out, mean, rstd = (torch.full(shape, float("nan")) for shape in ((rows, width), (rows,), (rows,)))
        want = torch.nn.functional.layer_norm(x, (width,), weight, bias, 1e-5)
        deviation = x.var(1, unbiased=False)

        def check():
            return close(out, want) and close(mean, x.mean(1)) and close(rstd, (deviation + 1e-5).rsqrt())

        return (out, mean, rstd, x, weight, bias, rows, width), check

    return Case("layer_norm", kernel, grid, block, make)


def half_product(x, y, n, rows=8):
    def make():
        w, v = random(rows, n).half(), random(n, seed=1).half()
        out = torch.full((rows,), float("nan")).half()
        want = w.float() @ v.float()
        args = (w.view(torch.int16), v.view(torch.int16), out.view(torch.int16), n, n // x)
        return args, lambda: close(out.float(), want, 1e-3)

    return Case("gemv", "gemv_half", (1, rows // y), (x, y), make)


def mad():
    rows, columns, depth = 70, 9, 7
    w, v = (torch.from_numpy(np.random.default_rng(s).integers(0, 2**32, size, np.uint64).astype(np.int64))
            for s, size in ((0, (rows, columns)), (1, (columns,))))  # fmt: skip
    want = (w[:, :depth] * v[:depth]).sum(1) & 0xFFFFFFFF  # int64 wraps, and its low half is right
    out = torch.zeros(rows, dtype=torch.int32)
    bits = (t.numpy().astype(np.uint32).view(np.int32) for t in (w, v))
    w, v = (torch.from_numpy(t) for t in bits)
    return (w, v, out, rows, columns, depth), lambda: torch.equal(out.long() & 0xFFFFFFFF, want)


CASES = [
    *PRODUCTS, async_product(),
    phase("phase", 1), phase("phases", 5), scale("scale"), scale("scale_grid"), scale("scale_hand"),
    Case("launches", "add", 4, 32, added),
    *(
        strided(kernel, element, thread)
        for kernel, thread in (("strided", 5), ("blocked", 253))
        for element in ("float", "double")
    ),
    *(streamed(kernel) for kernel in ("init", "read", "scaled", "triad", "stencil3", "stencil5")),
    *(babel(kernel) for kernel in ("copy", "mul", "add", "triad")),
    matrix_sum("add_along_rows"), matrix_sum("add_along_columns"),
    *(copied(width) for width in (1, 2, 4, 8, 16)),
    Case("stream", "footprint", 3, 1024, footprint), Case("stream", "chase", 1, 64, chased),
    same_buffer(512), same_buffer(256 * 40), same_buffer(256 * 70),
    *(transposed(kernel, 16, 16, (16, 16)) for kernel in ("reads_rows", "writes_rows", "copy")),
    *(transposed(f"tile_{kernel}", 64, 32, 256) for kernel in ("reads_rows", "writes_rows")),
    float_sum("sum_every_thread", 8, shared=False), float_sum("sum_every_four", 2, shared=False),
    float_sum("sum_divergent", 8), float_sum("sum_conflicting", 8), float_sum("sum_sequential", 8),
    float_sum("sum_two_each", 4), float_sum("sum_last_warp", 4),
    counted("count_tree", 3, 1536, partial=True), counted("count_last_warp", 3, 1536, partial=True),
    counted("count_tree", 1, 1300), counted("count_last_warp", 1, 1300), counted("count_atomic", 3, 1300),
    counted("count_twelve", 2, 7000), counted("count_vectors", 2, 7000),
    histogram("histogram_global", 1024), histogram("histogram_shared", 128),
    normed("norm_warp", 3, 64), normed("norm_block", 6, 96),
    half_product(32, 4, 512), half_product(64, 2, 512), half_product(512, 1, 4096),
    Case("gemv", "mad_rows", 3, 32, mad),
]  # fmt: skip


def named(case: Case) -> str:
    return "-".join([case.kernel, *(str(value) for name, value in case.defines if name != "TILES_X")])


IN_STEP = "sum_last_warp"  # relies on warps whose lanes run in step; see reductions.cu
HOSTILE = {"seed": 0, "hostile": True, "races": True}


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_kernel_is_right_in_a_hostile_order_and_nothing_races(case):
    assert right(case, **({} if case.kernel == IN_STEP else HOSTILE))


@pytest.mark.planted
def test_a_kernel_that_relies_on_warps_in_step_is_wrong_in_a_hostile_order():
    [case] = [case for case in CASES if case.kernel == IN_STEP]
    assert not right(case, **HOSTILE)


FAULTS = [
    ("naive", "tile_row() * 32 + threadIdx.x;", "tile_row() * 32 + threadIdx.y;"),
    ("tiled", "As[row * 32 + k] * Bs[k * 32 + column]", "As[row * 32 + k] * Bs[column * 32 + k]"),
    ("column_of_8", "threadIdx.x / BN * TM;", "threadIdx.x / BN;"),
    ("square_of_8", "a[i] = As[(row + i) * BK + k]", "a[i] = As[(row + i) * BK + k / 2]"),
    ("vectorised", "As[(a_column + 3) * pitch", "As[(a_column + 2) * pitch"),
    ("interleaved", "column / 4 % 2 * 4 + k * 8", "column / 4 % 2 * 4 + k * 4"),
    ("padded", "return k * (BN + extra) + thread_column * TN + j;", "return k * BN + thread_column * TN + j;"),
    ("warp_tiles", "lane / (WSN / TN) * TM", "lane / (WSN / TN) * TN"),
    ("tiled_16", "B[(k0 + threadIdx.y) * N + column]", "B[(k0 + threadIdx.x) * N + column]"),
    ("async_fours", "As[y][k] * Bs[k][x]", "As[y][k] * Bs[x][k]"),
    ("checked_tiled", "tile[transposed ? c * rows + r : r * columns + c] = value", "tile[c * rows + r] = value"),
    ("checked_transposed_fours", "tile[(c + j) * rows + r]", "tile[(c + j) * rows + r / 2]"),
    ("checked_square_of_8", "t % (BN / TN) * TN;", "t % (BN / TN);"),
    ("scale", "A[i] = B[i] * 0.25;\n}\n\nextern \"C\" __global__ void scale_grid",
     "A[i] = B[0] * 0.25;\n}\n\nextern \"C\" __global__ void scale_grid"),
    ("scale_hand", "atomicAdd(flags + step, 1u)", "atomicAdd(flags + step, 2u)"),
    ("phases", "for (int i = 0; i < count; ++i) {\n        if", "for (int i = 1; i < count; ++i) {\n        if"),
    ("strided", "in + threadIdx.x % 64 * stride", "in + threadIdx.x % 32 / 2 * stride"),
    ("blocked", "(threadIdx.y % 32 + 1) * pitch", "(threadIdx.y % 32) * pitch"),
    ("stencil5", "0.5 * B[i + 2]", "0.5 * B[i + 1]"),
    ("add_along_columns", "threadIdx.x, column = blockIdx.x / TILES_X", "threadIdx.x, column = blockIdx.x % TILES_X"),
    ("copy_16", "store4(to + first + 4 * i,", "store4(to + first + 4 * (i / 2),"),
    ("same_buffer", "i += 256) sum += from[i]", "i += 256) sum += from[i / 2]"),
    ("transpose_writes_rows", "row = block_x() * 16 + threadIdx.x, c", "row = block_x() * 8 + threadIdx.x, c"),
    ("transpose_tile_reads_rows", "out[(along + 32 * i) * out_along", "out[(along + 16 * i) * out_along"),
    ("footprint", "blockIdx.x % run * 1024", "blockIdx.x % run * 512"),
    ("chase", "for (int i = 0; i < 32; ++i) at", "for (int i = 0; i < 31; ++i) at"),
    ("sum_conflicting", "buffer[at] += buffer[at + s]", "buffer[at] += buffer[at + 1]"),
    ("sum_last_warp", "buffer[t] = buffer[t] + buffer[t + s];", "buffer[t] = buffer[t] + buffer[t + 1];"),
    ("count_tree", "if (t < s) buffer[t] += buffer[t + s];\n        __syncthreads();\n    }\n    volatile",
     "if (t < s) buffer[t] += buffer[s];\n        __syncthreads();\n    }\n    volatile"),
    ("count_last_warp", "words[t] + words[t + s]", "words[t] + words[s]"),
    ("count_vectors", "count_threads + threadIdx.x) * 3", "count_threads + threadIdx.x) * 2"),
    ("histogram_shared", "atomicAdd(bins + bin, mine[bin])", "atomicAdd(bins + bin, mine[0])"),
    ("norm_block", "lane < warps ? squares[lane]", "lane < warps ? sums[lane]"),
    ("norm_warp", "n * weight[c] + bias[c]);\n    }\n}\n\nNORM", "n * weight[lane] + bias[c]);\n    }\n}\n\nNORM"),
    ("gemv_half", "w[row * (n / 8) + at]", "w[row * (n / 8) + threadIdx.x]"),
    ("mad_rows", "W[row * cols + c]", "W[row * depth + c]"),
]  # fmt: skip


@pytest.mark.planted
@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("kernel, old, new", FAULTS, ids=[kernel for kernel, *_ in FAULTS])
def test_a_kernel_with_a_wrong_index_is_refused(kernel, old, new):
    cases = [case for case in CASES if case.kernel == kernel]
    with planted(Fault(kernel, f"validation/{cases[0].source}.cu", old, new)) as tree:
        try:
            assert not all(right(case, tree) for case in cases)
        except KernelError:
            pass  # the index left the array, and the virtual GPU reports it


def test_every_kernel_has_a_case_and_is_in_a_row():
    there = set()
    for path in FOLDER.glob("*.cu"):
        text = re.sub(r"#define(.*\\\n)*.*", "", path.read_text())
        there |= set(re.findall(r"^(?:SGEMM|CHECKED|SPOILED|COUNT|NORM|TRANSPOSE)\((\w+)\)", text, re.MULTILINE))
        there |= set(re.findall(r"__global__ void (?:__launch_bounds__\(\w+\)\s+)?(\w+)\(", text))
    assert there == {case.kernel for case in CASES}
    assert there == {part.kernel for row in MEASUREMENTS for part in row.parts}


# ---- Rows ----


def test_ids_are_unique_and_rows_are_whole():
    assert len({row.id for row in MEASUREMENTS}) == len(MEASUREMENTS)
    for row in MEASUREMENTS:
        assert row.includes in validation.INCLUDES and row.unit in validation.UNITS, row.id
        assert row.published > 0 and row.work > 0 and row.source and row.confidence in "AB", row.id
        assert (csrc_dir() / row.source_file).is_file(), row.id
        for part in row.parts:
            assert part.cut in validation.CUTS and list(part.sizes) == sorted(set(part.sizes)), row.id
            assert (SIZE in part.args) == (part.cut in (validation.LOOP, validation.DEPTH)), row.id
            assert part.full is not None or len(part.sizes) > 1, row.id
    with pytest.raises(ValueError, match="unknown measurement 'G0'"):
        measurement("G0")


def test_each_pick_has_rows_and_no_row_is_in_two():
    ids = [row.id for pick in validation.PICKS for row in validation.picked(pick)]
    assert len(ids) == len(set(ids))
    assert all(validation.picked(pick) for pick in validation.PICKS) and len(validation.PICKS) == 16


def test_rows_give_a_kernel_as_many_arguments_as_it_takes():
    modules = {}
    for row in MEASUREMENTS:
        defines = dict(row.defines)
        for name in {"TILES_X", "BUFFER"} & set(defines):
            defines[name] = 512
        key = row.source_file, *sorted(defines.items())
        if key not in modules:
            modules[key] = parse(compile_ptx(row.source_file, None, [], defines, "compute_86"))
        for part in row.parts:
            takes = modules[key].functions[part.kernel].params
            assert len(part.args) == len(takes), (row.id, part.kernel)


@pytest.mark.parametrize(
    "name, blocks, scale",
    [("G3", 84, 196), ("G10", 252, 13 / 3), ("H8.32", 4, 1), ("D1.4.256", 48 * 82 * 6, 1), ("M1.read.64", 48 * 168, 1),
     ("V1.512", 32, 1), ("B5.A100.4", 60_000, 1), ("L2.hand.1024", 4, 1)],
)  # fmt: skip
def test_a_row_becomes_launches_of_a_part_of_the_grid(name, blocks, scale):
    row = measurement(name)
    run = validation.prepare(row, backend_for(row))[-1][-1]
    assert np.prod(run.launches[-1].grid) == blocks
    assert run.scale == pytest.approx(scale)
    assert len(run.before) == row.before and len(run.launches) == 1


def test_a_row_runs_on_the_virtual_gpu_as_prepared():
    for name in ("H8.32", "L1b", "S1.f4.1", "P1.L40.L1", "L2.launches.256"):
        row = measurement(name)
        backend = backend_for(row)
        sizes = None if row.parts[0].cut == validation.WHOLE else (32, 64)

        def us(run: Run) -> float:
            counters = run_on_host((*run.before, *run.launches))
            return 1.0 + sum(counter.instructions for counter in counters)

        result = validation.validate(row, backend, us, sizes=sizes)
        assert result.us > 0
        assert result.ratio == pytest.approx(result.us / row.published_us(backend.card.boost_clock_mhz))


def test_another_card_is_refused():
    with pytest.raises(ValueError, match="RTX A6000.*laptop"):
        validation.prepare(measurement("G1"), HostBackend())


def runs_of(size, full, scale=1.0):
    return [Run(measurement("G1"), (), (), s, full, scale) for s in size]


def test_the_whole_follows_from_a_line_through_the_cut_runs():
    assert validation.whole_us(runs_of((10, 20), 100), [15.0, 25.0]) == pytest.approx(105.0)
    assert validation.whole_us(runs_of((10, 20), 100, scale=3.0), [15.0, 25.0]) == pytest.approx(315.0)
    assert validation.whole_us(runs_of((10, 20), None), [15.0, 25.0]) == pytest.approx(1.0)
    assert validation.whole_us(runs_of((10,), 100), [15.0]) == pytest.approx(150.0)
    assert validation.whole_us(runs_of((10, 20), 20), [15.0, 25.0]) == 25.0


def test_a_figure_follows_from_its_time_and_back():
    for row in MEASUREMENTS:
        assert row.figure(row.published_us(1740), 1740) == pytest.approx(row.published), row.id
    assert measurement("L3.launches.256").published_us(2490) == pytest.approx(1.64, rel=0.01)
    assert measurement("G1").published_us(1800) == pytest.approx(444.8e3, rel=1e-3)
    assert measurement("S1.f4.32").published_us(1740) * 1740 / 32 == pytest.approx(32.0)
    assert measurement("N1.RTX 3090").published_us(1695) == pytest.approx(73.0, rel=1e-3)


def test_steps_in_another_order_than_measured_are_named():
    def results(**us):
        return [validation.Result(measurement(name), time, 0.0, 0.0) for name, time in us.items()]

    assert validation.misordered(results(G1=445e3, G2=69e3, G3=46e3)) == []
    assert validation.misordered(results(G1=445e3, G2=46e3, G3=69e3)) == [("G3", "G2")]
    assert validation.misordered(results(G5=8.0, G7=9.0)) == [], "published figures within 5 % are a tie"


def test_a_chain_visits_every_place_once():
    chain = Array("u8", 8 * 30, chain=64).allocate()
    at, seen = 0, set()
    for _ in range(30):
        seen.add(at)
        at = (int(chain[at]) - chain.data_ptr()) // 8
    assert at == 0 and seen == set(range(0, 240, 8))


def test_rows_name_no_machine_and_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        measurement("G1").published = 1.0
    text = (FOLDER.parent.parent / "luce_edu" / "measure" / "records" / "validation.py").read_text()
    assert "/work" not in text and "/tmp" not in text
