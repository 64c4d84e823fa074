"""Each tool of the laboratory finds its planted faults, names threads, lines and elements, and passes sound kernels."""

import dataclasses
import time

import pytest
import torch
from models import TINY, make_model
from planted.kernels import HERE, planted, words

from luce_edu import cli, load_model
from luce_edu.backends.host import HostBackend
from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION
from luce_edu.faults import fault
from luce_edu.faults import planted as planted_in_stage
from luce_edu.inline.trial import Attempt, try_kernel
from luce_edu.lab import RULES, TOOLS, Finding, sanitize
from luce_edu.machine import cards
from luce_edu.measure.constants import KERNELS, SOURCE
from luce_edu.stages import KERNEL_STAGES
from luce_edu.stages.dims import BLOCK_THREADS, GRID_BARRIER_WORDS

X = torch.arange(128, dtype=torch.float32)


def tensors(sizes) -> list:
    return [4 if size == "rounds" else words(size) for size in sizes]


# ---- Planted faults and their sound twins, by tool and kernel ----
# (file, grid, block, arguments, options), and the same of the twin after its name

TOGETHER = {"cooperative": True}


def of_reports(grid, block, make, twin, **options):
    """twin: the arguments with which the same kernel is sound."""
    return ("reports.cu", grid, block, make, options), ("reports.cu", grid, block, twin, options)


def with_twin(file, name, *launch, **options):
    case = (file, *launch, options)
    return {name: (case, (f"{name}_sound", *case))}


def of_lab(name, grid, block, *sizes, unwritten=(), **options):
    named = [f"argument {i}" for i in unwritten]
    return with_twin("lab.cu", name, grid, block, lambda: tensors(sizes), unwritten=named, **options)


def of_races(name, grid, block, *sizes):
    return with_twin("races.cu", name, grid, block, lambda: tensors(sizes))


def hostile(family, faults, *launch, **options):
    case = ("hostile.cu", *launch, options)
    return {f"{family}_{one}": (case, (f"{family}_sound", *case)) for one in faults}


def memory(name, grid, block, make, twin, **options):
    wrong, right = of_reports(grid, block, make, twin, **options)
    return {name: (wrong, (name, *right))}


CHANNEL = 2, 64, lambda: [words(64), words(64), words(6, 64), 6]
GRID = 4, 64, lambda: [words(1), words(2, 4, 64), 6]
RING = 1, 64, lambda: [torch.arange(1792).int().view(7, 256), words(7, 256), 7]


def x():
    return X.clone()


RACE = (
    of_races("shared_pair", 1, 64, 1)
    | of_races("shared_write_after_read", 1, 64, 64, "rounds")
    | of_races("shared_lanes", 1, 32, 32)
    | of_races("shared_named_barrier", 1, 96, 96)
    | of_races("global_exchange", 1, 64, 64, 64)
    | of_races("blocks_two_writers", 3, 64, 128)
    | of_races("blocks_scope", 4, 32, 8)
    | hostile("channel", ["release_relaxed"], *CHANNEL, **TOGETHER)
    | hostile("grid", ["barrier_missing"], *GRID, **TOGETHER)
    | hostile("ring", ["wait_missing"], *RING)
)
MEM = (
    memory("store_outside", 2, 64, lambda: [x(), 128], lambda: [x(), 101])
    | memory("load_outside", 2, 64, lambda: [x(), x(), -1], lambda: [x(), x(), 5])
    | memory("shared_outside", 2, 64, lambda: [x(), 64], lambda: [x(), 37])
    | memory("dynamic_shared_outside", 2, 64, lambda: [x(), 64], lambda: [x(), 37], smem=256)
    | memory("local_outside", 1, 64, lambda: [x(), 1000], lambda: [x(), 3])
    | memory("misaligned_shared", 1, 64, lambda: [words(64), 2], lambda: [words(64), 8])
)
INIT = (
    of_lab("adds_to_output", 1, 64, 64, 64, unwritten=[1])
    | of_lab("counts_from_nothing", 2, 64, 64, unwritten=[0])
    | of_lab("buffer_with_a_hole", 1, 64, 64, 64, unwritten=[0, 1])
    | of_lab("copies_nothing", 1, 64, 256, 64, unwritten=[0, 1])
    | of_lab("shared_with_a_hole", 1, 64, 64, unwritten=[0])
)
SYNC = (
    with_twin("lab.cu", "token_loop", 4, 64, lambda: [words(1), torch.tensor([3, 3, 2, 3]).int()], **TOGETHER)
    | of_lab("barrier_in_a_branch", 2, 64, 64)
    | of_lab("shuffle_in_a_branch", 2, 32, 32)
    | of_lab("locks_crossed", 2, 1, 64, 1, **TOGETHER)
    | of_lab("named_barrier_waits_for_two", 1, 64, 64)
    | of_lab("mbarrier_counts_two", 1, 64, 64)
    | {"block_leaves": (("reports.cu", 5, 64, lambda: [words(2), 3], TOGETHER),
                        ("meet", "reports.cu", 5, 64, lambda: [words(2)], TOGETHER))}
    | {"meet": (("reports.cu", 300, 1024, lambda: [words(2)], {}),
                ("meet", "reports.cu", 200, 1024, lambda: [words(2)], {}))}
)  # fmt: skip
ORDER = (
    hostile("channel", ["release_relaxed", "acquire_relaxed"], *CHANNEL, **TOGETHER)
    | hostile("message", ["fence_missing"], 2, 64, lambda: tensors([64, 64, 64]), **TOGETHER)
    | hostile("last", ["fence_missing"], 6, 64,
              lambda: [torch.arange(384).int(), words(6, 64), words(1), words(64)])
    | hostile("grid", ["release_relaxed"], *GRID, **TOGETHER)
    | hostile("locked", ["acquire_relaxed"], 4, 1, lambda: [words(1), words(1), 8], **TOGETHER)
    | hostile("ring", ["wait_missing"], *RING)
    | with_twin("lab.cu", "sum_in_any_order", 8, 32, lambda: [torch.randn(8), torch.zeros(1)])
    | of_lab("rows_as_they_come", 8, 1, 1, 8)
)  # fmt: skip
ALL = {"race": RACE, "mem": MEM, "init": INIT, "sync": SYNC, "order": ORDER}
CASES = [(tool, name) for tool, cases in ALL.items() for name in cases]

SAYS = {  # kernel: text of the lines that its finding must name
    "shared_pair": ["s[17] = 7", "out[0] = s[17]"],
    "shared_lanes": ["s[threadIdx.x] = threadIdx.x", "s[threadIdx.x ^ 1]"],
    "blocks_two_writers": ["first writer", "second writer"],
    "global_exchange": ["block writes", "block reads"],
    "store_outside": ["store outside"],
    "load_outside": ["load outside"],
    "shared_outside": ["shared outside"],
    "misaligned_shared": ["misaligned shared"],
    "adds_to_output": ["adds to unwritten memory"],
    "counts_from_nothing": ["counts from nothing"],
    "buffer_with_a_hole": ["reads the buffer"],
    "copies_nothing": ["buffer"],
    "shared_with_a_hole": ["reads shared memory"],
    "token_loop": ["waits for the grid"],
    "barrier_in_a_branch": ["barrier of one warp"],
    "named_barrier_waits_for_two": ["waits for a second warp"],
    "mbarrier_counts_two": ["waits for the mbarrier"],
    "block_leaves": ["wait in the grid barrier"],
    "sum_in_any_order": ["adds when it comes"],
    "rows_as_they_come": ["takes a row"],
}
WHO = {  # kernel: block and thread of each side
    "shared_pair": {(0, 41), (0, 5)},
    "blocks_two_writers": {(1, 9), (2, 33)},
    "store_outside": {(1, 37)},
    "misaligned_shared": {(0, 37)},
    "buffer_with_a_hole": {(0, 26)},
    "shared_with_a_hole": {(0, 26)},
}
WHERE = {  # kernel: tensor and index. Tensors are named by position; None: shared memory
    "shared_pair": (None, 17), "blocks_two_writers": ("argument 0", 77), "store_outside": ("argument 0", 128),
    "load_outside": ("argument 0", -1), "counts_from_nothing": ("argument 0", 3),
    "buffer_with_a_hole": ("argument 0", 37), "shared_with_a_hole": (None, 37),
}  # fmt: skip


def run(name, file, grid, block, make, options, tool=None):
    return sanitize(planted(file)[name], tool, grid=grid, block=block, args=make(), csrc_dir=HERE, **options)


@pytest.mark.planted
@pytest.mark.parametrize("tool, name", CASES)
def test_a_planted_fault_is_found_and_named(tool, name, record_property):
    found = run(name, *ALL[tool][name][0], tool)
    record_property("counted", f"planted faults that {tool} finds")  # conftest.py adds them up
    [finding] = found.findings
    assert not found.clean and finding.tool == tool and finding.kernel == name
    assert finding.fault in RULES and finding.rule
    lines = [line for side in finding.sides for line in (side.text, *(text for *_, text in side.inside + side.calls))]
    text = "\n".join(lines)
    for marker in SAYS.get(name, ()):
        assert marker in text
    if tool == "race":
        assert len(finding.sides) == 2 and all(side.line and side.text for side in finding.sides)
        assert {side.does for side in finding.sides} <= {"reads", "writes"}
    if name in WHO:
        assert {(side.block[0], side.thread) for side in finding.sides} == WHO[name]
    if name in WHERE:
        assert (finding.tensor, finding.index) == WHERE[name]
    if tool == "order" and finding.fault == "differs":
        assert finding.seed is not None and finding.tensor and finding.index is not None


@pytest.mark.parametrize("tool, name", CASES)
def test_its_sound_twin_is_clean(tool, name):
    twin, *launch = ALL[tool][name][1]
    found = run(twin, *launch, tool)
    assert found.clean, str(found)
    assert [ran.tool for ran in found.tools] == [tool] and not found.tools[0].stopped


def test_every_tool_has_planted_faults_enough():
    assert list(ALL) == list(TOOLS)
    assert [len(cases) >= least for cases, least in zip(ALL.values(), (6, 5, 4, 5, 5), strict=True)] == [True] * 5


# ---- Shipped kernels ----


@pytest.fixture(scope="module")
def small():
    """A layer of each kind, which together run every kernel."""
    kinds = (LINEAR_ATTENTION, FULL_ATTENTION)
    return make_model(dataclasses.replace(TINY, num_hidden_layers=2, layer_types=kinds), seed=3)


@pytest.mark.parametrize("what", [*KERNEL_STAGES, "prompt"])
def test_shipped_kernels_are_clean_under_every_tool(what, small):
    found = sanitize(what, model=small, orders=1)
    assert found.clean, str(found)
    assert [ran.tool for ran in found.tools] == list(TOOLS) and all(ran.runs for ran in found.tools)


def test_kernels_that_overlap_are_clean(small):
    """From Hopper on, a kernel of a graph may start before the previous one has ended."""
    few = dataclasses.replace(cards.find_card("H100"), sm_count=2, registers_per_sm=None)
    found = sanitize("graph", model=small, card=few, orders=2)
    assert found.clean, str(found)


BENCHES = {
    "nothing": (2, [], {}),
    "barriers": (2, [words(GRID_BARRIER_WORDS), 3], TOGETHER),
    "read_all": (2, [torch.ones(512 * 8, dtype=torch.int16), 512, words(1)], {}),
    "copy_all": (2, [torch.ones(512 * 8, dtype=torch.int16), torch.ones(512 * 8, dtype=torch.int16), 512],
                 {"unwritten": ["argument 1"]}),
}  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
def test_microbenchmarks_are_clean(kernel):
    grid, args, options = BENCHES[kernel]
    module = HostBackend().compile(SOURCE, KERNELS, {"BLOCK_THREADS": BLOCK_THREADS})
    found = sanitize(module[kernel], grid=grid, block=BLOCK_THREADS, args=args, orders=5, **options)
    assert found.clean, str(found)


def test_a_whole_step_of_the_megakernel_takes_seconds_under_race():
    tiny, started = load_model("tiny"), time.process_time()
    assert sanitize("megakernel", "race", model=tiny).clean
    assert time.process_time() - started < 20  # seconds, for three orders; about 0.5 on an idle machine


@pytest.mark.planted
@pytest.mark.parametrize(
    "name, stage, tool",
    [
        ("no grid barrier after mlp_up", "megakernel", "race"),
        ("no grid barrier after mlp_up", "megakernel", "init"),
        ("no __syncthreads in delta_rule_tile, after the sums", "per_layer.delta_rule", "race"),
    ],
)
def test_a_fault_planted_in_a_stage_is_found(name, stage, tool, small, compiled_quickly):
    with planted_in_stage(fault(name)) as tree:
        found = sanitize(stage, tool, model=small, csrc_dir=tree)
    [finding] = found.findings
    assert finding.tool == tool and finding.element and finding.sides[0].text


# ---- Sources, cells and reports ----

EXCHANGE = """\
__global__ void exchange(const float* x, float* y, float* out) {
    y[threadIdx.x] = 2.0f * x[threadIdx.x];
    out[threadIdx.x] = y[63 - threadIdx.x];
}
"""
LAUNCH = {"kernel": "exchange", "grid": 1, "block": 64}


def exchange_args() -> dict:
    return {"out": torch.zeros(64), "x": torch.arange(64.0), "y": torch.full((64,), 7.0)}  # other order


def test_a_source_is_compiled_and_its_tensors_are_as_before():
    args = exchange_args()
    found = sanitize(EXCHANGE, "race", **LAUNCH, args=args)
    [finding] = found.findings
    assert (finding.fault, finding.tensor) == ("race", "y") and finding.index in range(64)
    sides = {side.does: side for side in finding.sides}
    assert (sides["writes"].file, sides["writes"].line, sides["reads"].line) == ("source", 2, 3)
    assert sides["reads"].text == "out[threadIdx.x] = y[63 - threadIdx.x];"
    assert sides["reads"].thread == 63 - sides["writes"].thread
    assert all(torch.equal(args[name], value) for name, value in exchange_args().items())
    mended = EXCHANGE.replace("    out", "    __syncthreads();\n    out")
    assert sanitize(mended, **LAUNCH, args=exchange_args(), unwritten=["y", "out"]).clean


def test_a_report_can_be_read():
    found = sanitize(EXCHANGE, **LAUNCH, args=exchange_args(), unwritten=["y", "out"])
    assert {finding.tool for finding in found.findings} >= {"race", "order"}
    for text in (str(found), found._repr_html_(), repr(found)):
        assert "source:2" in text and RULES["race"][1] in text and "block 0, thread" in text
    assert isinstance(found.findings[0], Finding) and found._repr_html_().count("<table>") == 1 + len(found.findings)


@pytest.mark.planted
def test_a_cells_verdict_is_taken_and_its_lines_count_from_the_magic():
    cell = "int i = blockIdx.x * blockDim.x + threadIdx.x;\nif (i < n) y[i] += x[i] + r[i];\n"
    found = sanitize(try_kernel(Attempt("adds", "torch.add", cell)))
    [finding] = found.findings
    assert (finding.tool, finding.tensor, finding.index) == ("init", "y", 0) and "n 1:" in finding.said
    assert [(side.file, side.line) for side in finding.sides] == [("cell", 3)]


@pytest.mark.planted
def test_a_grid_that_is_not_resident_is_named_with_the_card():
    grid = 33  # the laptop holds 32 blocks of 64 threads
    found = sanitize(EXCHANGE, kernel="exchange", grid=grid, block=64, args=exchange_args(), cooperative=True)
    [finding] = found.findings
    assert (finding.tool, finding.fault) == ("sync", "not_resident") and "laptop" in finding.said
    assert [ran.found for ran in found.tools] == [tool == "sync" for tool in TOOLS]


@pytest.mark.planted
def test_a_kernel_that_does_not_end_is_named():
    loop = "__global__ void loop(int* x) { while (x[0] == 0) x[1] += 1; }"
    found = sanitize(loop, "sync", kernel="loop", grid=1, block=32, args={"x": words(2)}, instructions=100_000)
    [finding] = found.findings
    assert finding.fault == "budget"


# ---- Bad input ----

BAD = {
    "an unknown stage": (("warp_speed",), {}, "unknown stage or kernel 'warp_speed'"),
    "a stage without kernels": (("eager",), {}, "PyTorch's kernels"),
    "a reference": (("torch.add",), {}, "--against torch.add"),
    "an unknown tool": (("megakernel", "races"), {}, "unknown tool 'races'; expected one of race, mem"),
    "an unknown card": (("megakernel",), {"card": "RTX 9999"}, "'RTX 9999'"),
    "no orders": (("megakernel",), {"orders": 0}, "orders: .*got 0"),
    "neither name nor kernel": ((3,), {}, "got int"),
    "a source without its kernel's name": ((EXCHANGE,), {}, "needs kernel="),
    "a kernel that is not there": ((EXCHANGE,), {"kernel": "swap"}, "no kernel named 'swap'.*exchange"),
    "no launch": ((EXCHANGE,), {"kernel": "exchange"}, "needs grid, block and args"),
    "arguments of other names": ((EXCHANGE,), LAUNCH | {"args": {"x": X}}, "expected x, y, out, got x"),
    "too few arguments": ((EXCHANGE,), LAUNCH | {"args": [X]}, "expected 3 arguments, got 1"),
    "no such output": ((EXCHANGE,), LAUNCH | {"args": exchange_args(), "unwritten": ["z"]}, "no tensor z"),
    "a block that no card takes": ((EXCHANGE,), LAUNCH | {"args": exchange_args(), "block": 2048}, "2048"),
    "a source that does not compile": (
        (EXCHANGE.replace("2.0f", "twice"),), LAUNCH | {"args": exchange_args()}, r"source\(2\): error.*\"twice\""),
    "an unknown reference": ((EXCHANGE,), {"kernel": "exchange", "against": "torch.swap"}, "unknown reference"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case):
    args, options, words_of_it = BAD[case]
    with pytest.raises(ValueError, match=words_of_it) as error:
        sanitize(*args, **options)
    assert "\n" not in str(error.value)


def test_the_commands_status_says_whether_faults_were_found(capsys, monkeypatch):
    assert cli.main(["sanitize", "per_layer.delta_rule", "--tool", "mem"]) == 0
    assert "clean" in capsys.readouterr().out
    for arguments in (["megakernel", "--tool", "speed"], ["warp_speed"], ["megakernel", "--card", "RTX 9999"]):
        assert cli.main(["sanitize", *arguments]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("luce-edu: ")
    found = sanitize(EXCHANGE, "race", **LAUNCH, args=exchange_args())
    monkeypatch.setattr("luce_edu.lab.sanitize", lambda *_, **__: found)
    assert cli.main(["sanitize", "megakernel"]) == 1
    assert "race in exchange" in capsys.readouterr().out
