"""Profiles of modelled time: shares add up, constants change the time the right way, threads do not change it."""

import dataclasses
import json

import pytest
import torch

import luce_edu
from luce_edu.cli import main
from luce_edu.faults import Fault, planted
from luce_edu.machine import load
from luce_edu.machine.cards import find_card
from luce_edu.machine.clock import find_clock
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.machine.timed import run_timed
from luce_edu.measure.records.validation import backend_for, measurement, modelled_us, validate
from luce_edu.measure.trace import trace

SOURCE = """
extern "C" __global__ void read(const float4* x, float* y, int n, int times) {
    float sum = 0.0f;
    for (int k = 0; k < times; ++k)
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
            sum += x[i].x + x[i].y + x[i].z + x[i].w;
    y[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
"""
LAPTOP = find_card("laptop")
CLOCK = find_clock(LAPTOP)


@pytest.fixture(scope="module")
def megakernel():
    return luce_edu.profile("megakernel", card="laptop", position=20)


def test_the_parts_of_a_token_add_up(megakernel):
    assert sum(megakernel.split.values()) == pytest.approx(megakernel.total_us)
    assert sum(row.us for row in megakernel.phases) <= megakernel.total_us
    assert sum(row.count for row in megakernel.phases) == 1 + 3 * 8 + 2 * 8 + 1
    assert megakernel.power_w > 0 and megakernel.dram_bytes > 0


def test_without_grid_barriers_there_are_no_phases_and_polls_are_waits_for_other_blocks():
    # Without the prefetch beyond the ring, which takes issue slots on so small a card
    found = luce_edu.profile("streaming", card="laptop", position=20, variant="none beyond the ring")
    assert found.order == found.phases == () and len(found.tables) == 3  # the summary, kernels and lines
    assert sum(found.split.values()) == pytest.approx(found.total_us) and found.barrier_us > found.issue_us
    polls = max((line for line in found.lines if line.file == "csrc/exchange.cuh"), key=lambda line: line.stalls)
    assert polls.barrier > 0.9 * polls.stalls
    assert {event["ph"] for event in trace(found)["traceEvents"]} >= {"X", "C"}


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(megakernel, threads):
    again = luce_edu.profile("megakernel", card="laptop", position=20, threads=threads)
    assert again.total_us == megakernel.total_us and again.to_dict() == megakernel.to_dict()


@pytest.mark.parametrize("stage", ["megakernel", "per_layer"])
@pytest.mark.parametrize(
    "field, factor, longer",
    [("dram_latency_ns", 2, True), ("barrier_base", 20, True), ("l2_latency", 1.3, True), ("launch_us", 3, True),
     ("fma_latency", 3, True), ("dram_gb_per_s", 2, False), ("l2_bytes_per_cycle", 2, False)],
)  # fmt: skip
def test_constants_move_a_stage_the_right_way(stage, field, factor, longer):
    changed = dataclasses.replace(CLOCK, **{field: getattr(CLOCK, field) * factor})
    usual = luce_edu.profile(stage, card="laptop", position=20, clock=CLOCK).total_us
    after = luce_edu.profile(stage, card="laptop", position=20, clock=changed).total_us
    assert after > usual if longer else after < usual


def test_what_is_read_twice_from_memory_takes_twice_as_long():
    read = load(compile_ptx("read.cu", SOURCE, ["read"], {}, LAPTOP.arch), card=LAPTOP)["read"]
    x, y = torch.zeros(4 * LAPTOP.l2_bytes // 4), torch.zeros(4 * 256)
    once, twice = (luce_edu.profile(read.prepare(4, 256, [x, y, len(x) // 4, times])).total_us for times in (1, 2))
    assert twice / once == pytest.approx(2, rel=0.1)


def test_the_command_prints_fields_and_writes_a_trace(tmp_path, capsys):
    trace = tmp_path / "trace.json"
    assert main(["profile", "per_layer", "--card", "laptop", "--position", "5", "--json", "--trace", str(trace)]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["card"] == "laptop" and fields["total_us"] > 0
    assert any(event["ph"] == "X" for event in json.loads(trace.read_text())["traceEvents"])


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["per_op.mlp_up"], ["eager.rms_norm"], ["rms_norm", "--tokens", "5"],
     ["megakernel", "--card", "RTX 9999"], ["megakernel", "--position", "0"],
     ["megakernel", "--trace", "/nowhere/trace.json"]],
)  # fmt: skip
def test_bad_input_is_one_line(arguments, capsys):
    assert main(["profile", *arguments]) != 0
    said = capsys.readouterr().err.strip()
    assert said.startswith("luce-edu: ") and "\n" not in said


def test_a_published_step_of_the_sgemm_ladder_is_met():
    row = measurement("G3")
    assert validate(row, backend_for(row), modelled_us).ratio == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name, run, launches", [("delta_rule", "per_op", 6), ("per_layer.delta_rule", "per_layer", 6)])
def test_a_kernel_has_its_share_of_its_stage(name, run, launches):
    of_kernel = luce_edu.profile(name, card="laptop", position=5)
    stage = luce_edu.profile(run, card="laptop", position=5)
    (row,) = [row for row in stage.kernels if row.kernel == "delta_rule"]
    assert of_kernel.what == f"{run}.delta_rule" and len(of_kernel.spans) == row.launches == launches
    assert of_kernel.kernels[0].us == row.us == pytest.approx(of_kernel.total_us)
    assert set(of_kernel.events["launch"]) <= set(range(launches)) and of_kernel.dram_use.sum() < stage.dram_use.sum()
    assert {line.file for line in of_kernel.lines} < {line.file for line in stage.lines}


def test_a_line_and_the_lines_that_call_it_hold_the_same_cycles(megakernel):
    cycles = sum(row[1:].sum() for row in megakernel.calls.values())
    assert cycles == pytest.approx(sum(line.stalls for line in megakernel.lines))
    deepest = max(megakernel.calls, key=len)
    assert len(deepest) >= 3 and deepest[-1][0] == "csrc/megakernel.cu"


@pytest.mark.planted
def test_a_wait_for_a_load_is_for_memory_also_in_another_block_of_code():
    """A value that is loaded under an `if` is used behind it, in another basic block."""
    source = """extern "C" __global__ void late(const float* x, float* y, int n) {
        float v[4], sum = 0.0f;
        for (int i = 0; i < 4; ++i) {
            if (threadIdx.x + 256 * i < n) v[i] = x[threadIdx.x + 256 * i]; else v[i] = 0.0f;
            sum += v[i] * v[i];
        }
        y[threadIdx.x] = sum;
    }"""
    late = load(compile_ptx("late.cu", source, ["late"], {}, LAPTOP.arch), card=LAPTOP)["late"]
    found = luce_edu.profile(late.prepare(1, 256, [torch.zeros(1024), torch.zeros(256), 1024]))
    assert found.memory_us > 5 * found.issue_us


def test_the_time_lines_of_many_launches_take_little_memory():
    waits = run_timed([_reads(4)], wait_from_us=0.0)[1].waits
    assert waits.base is None and len(waits) < 100  # a copy, not a view of an array for a million waits


def _reads(blocks: int):
    read = load(compile_ptx("read.cu", SOURCE, ["read"], {}, LAPTOP.arch), card=LAPTOP)["read"]
    return read.prepare(blocks, 256, [torch.zeros(4096), torch.zeros(256 * blocks), 1024, 1])


def test_another_source_tree_is_profiled():
    with planted(Fault("wider", "delta_rule.cuh", "tile_columns = TILE_COLUMNS;", "tile_columns = 32;")) as tree:
        changed = luce_edu.profile("per_layer.delta_rule", card="laptop", position=5, csrc_dir=tree)
    assert changed.total_us != luce_edu.profile("per_layer.delta_rule", card="laptop", position=5).total_us
