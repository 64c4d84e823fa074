"""The model of overlapping kernels follows its rules and finds every hazard; the order of actions is read from PTX."""

import pytest

from luce_edu.config import ModelConfig
from luce_edu.errors import CompileError
from luce_edu.faults import Fault, planted
from luce_edu.models import DATA
from luce_edu.overlap import Span, order_in_ptx, play, timelines, try_all
from luce_edu.stages.dims import kernel_defines

CHAIN = {
    "A": ["wait", "launch_dependents", "read o", "write mid"],
    "B": ["prefetch", "wait", "launch_dependents", "read mid", "write act"],
    "C": ["prefetch", "wait", "launch_dependents", "read act", "read mid", "write x"],
}
DEFINES = kernel_defines(ModelConfig.from_file(DATA / "tiny" / "config.json"))


def chain(**other):
    return CHAIN | other


def every_schedule(kernels, schedule=""):
    """All schedules up to their end or their first hazard, found with `play` alone."""
    played = play(kernels, schedule)
    if played.finished or played.hazard:
        yield schedule, played
        return
    for name in kernels:
        try:
            play(kernels, schedule + name)
        except ValueError:
            continue
        yield from every_schedule(kernels, schedule + name)


def without(action, kernel):
    return [a for a in kernel if a != action]


FIRST = {name: ["launch_dependents", *without("launch_dependents", actions)] for name, actions in CHAIN.items()}
SAFE = {
    "waits, then launch_dependents": CHAIN,
    "launch_dependents, then waits": FIRST,
    "never launch_dependents": {name: without("launch_dependents", actions) for name, actions in CHAIN.items()},
    "clears what ended two kernels back": chain(C=["write o", *CHAIN["C"]]),
    "one kernel": {"A": CHAIN["A"]},
}
UNSAFE = {
    "reads before it waits": chain(C=["read act", *without("read act", CHAIN["C"])]),
    "writes what the one before reads": chain(C=["write mid", *CHAIN["C"]]),
    "writes what the one before writes": chain(C=["write act", *CHAIN["C"]]),
    "never waits": chain(C=without("wait", CHAIN["C"])),
    "one in the middle that never waits": chain(B=["launch_dependents", "write count"]),
    "launch_dependents first, and clears what is two back": FIRST | {"C": ["write o", *FIRST["C"]]},
}


@pytest.mark.parametrize("kernels", SAFE.values(), ids=SAFE)
def test_no_schedule_of_a_safe_order_has_a_hazard(kernels):
    schedules, hazards = try_all(kernels)
    assert hazards == 0 < schedules == len(list(every_schedule(kernels)))


@pytest.mark.planted
@pytest.mark.parametrize("kernels", UNSAFE.values(), ids=UNSAFE)
def test_an_unsafe_order_is_found_and_would_pass_in_some_schedules(kernels):
    schedules, hazards = try_all(kernels)
    assert 0 < hazards < schedules
    ends = [played for _, played in every_schedule(kernels)]
    assert any(played.hazard for played in ends)
    assert sum(played.finished for played in ends) == schedules - hazards


def test_kernels_without_launch_dependents_follow_each_other():
    assert try_all(SAFE["never launch_dependents"]) == (1, 0)


def test_a_schedule_is_shown_step_by_step_up_to_its_hazard():
    played = play(UNSAFE["reads before it waits"], "AAB AABB CCCC")
    assert played.steps[-1] == ("C", "read act") and not played.finished
    assert played.hazard == "C reads act, which B writes, and B has not ended"
    assert played.header == ["step", "A", "B", "C"]
    assert played.body[2] == ["3", "", "prefetch", ""] and played.body[-1] == ["8", "", "", "read act"]
    assert str(played).splitlines()[-1] == played.hazard


def test_a_schedule_that_ends_well_says_so():
    played = play(CHAIN, "AAAA" + "BBBBB" + "CCCCCC")
    assert played.finished and played.hazard is None and played.caption == "all kernels have ended, without a hazard"
    assert play(CHAIN, list("AA")).caption == "no hazard so far"


@pytest.mark.planted
@pytest.mark.parametrize(
    "schedule, reason",
    [
        ("B", "step 1: B cannot start: A has neither done launch_dependents nor ended"),
        ("AAC", "step 3: C cannot start: B has neither done launch_dependents nor ended"),
        ("AABB", "step 4: B waits until A has ended"),
        ("AAAAA", "step 5: A has ended"),
        ("AAD", "step 3: no kernel 'D'; expected one of A, B, C"),
    ],
)
def test_a_step_that_cannot_happen_is_named(schedule, reason):
    with pytest.raises(ValueError) as error:
        play(CHAIN, schedule)
    assert str(error.value) == reason


@pytest.mark.planted
@pytest.mark.parametrize(
    "actions, reason", [(["reed x"], "got 'reed x'"), (["read"], "got 'read'"), ([], "at least one action")]
)
def test_an_unknown_action_is_refused(actions, reason):
    with pytest.raises(ValueError, match=f"B: .*{reason}"):
        try_all({"A": ["wait"], "B": actions})


# ---- Lanes ----

WORK = {"in": 5.0, "rule": 0.5, "out": 1.0}


def test_lanes_show_who_waits_for_whom():
    lanes = timelines(WORK, launch_us=4, gap_us=1.5, prefetch_us={"in": 2.5, "out": 1.0})
    calls, plain, graph, dependent, alone = lanes.values()
    assert calls == [Span("launch call", 0, 4), Span("launch call", 4, 4), Span("launch call", 8, 4)]
    assert plain == [Span("in", 4, 5), Span("rule", 10.5, 0.5), Span("out", 12.5, 1)]
    assert graph == [Span("in", 1.5, 5), Span("rule", 8, 0.5), Span("out", 10, 1)]
    assert alone == [Span("in", 0, 5), Span("rule", 5, 0.5), Span("out", 5.5, 1)]
    # The prefetched part is at most the gap and at most the whole, and 0 for a kernel that prefetches nothing.
    assert dependent == [
        Span("in", 0, 1.5, prefetched=True), Span("in", 1.5, 3.5), Span("rule", 6.5, 0.5),
        Span("out", 7.5, 1.0, prefetched=True), Span("out", 8.5, 0.0),
    ]  # fmt: skip


def test_a_slow_gpu_hides_the_launch_calls():
    slow = {name: 20 * us for name, us in WORK.items()}
    lanes = timelines(slow, launch_us=4, gap_us=1.5, prefetch_us={})
    assert lanes["GPU, plain launches"][1:] == [Span("rule", 105.5, 10), Span("out", 117, 20)]
    assert lanes["with dependent launch"] == lanes["as a graph"]


def test_every_lane_moves_all_bytes():
    for name, spans in timelines(WORK, launch_us=4, gap_us=1.5, prefetch_us={"in": 2.5}).items():
        if name != "CPU, launch calls":
            assert sum(span.us for span in spans) == pytest.approx(sum(WORK.values())), name


@pytest.mark.planted
@pytest.mark.parametrize("prefetch_us", [{"in": 5.1}, {"up": 1.0}, {"in": float("nan")}, {"in": -1.0}])
def test_more_ahead_than_there_is_is_refused(prefetch_us):
    with pytest.raises(ValueError, match="prefetch_us: expected kernels of work_us"):
        timelines(WORK, launch_us=4, gap_us=1.5, prefetch_us=prefetch_us)


# ---- The compiler's text ----


def test_in_ptx_nothing_stands_before_the_wait_but_prefetches():
    orders = {order.kernel: order for order in order_in_ptx(DEFINES).kernels}
    assert len(orders) == 10
    for order in orders.values():
        assert (order.waits, order.launch_dependents, order.accesses_before) == (1, 1, 0) and order.accesses > 0
    without_matrix = {name for name, order in orders.items() if not order.prefetches_before}
    assert without_matrix == {"embed", "delta_rule", "attention"}


BEGIN = "    begin_phase();\n    mlp_down_phase"


@pytest.mark.planted
@pytest.mark.parametrize(
    "new, expected",
    [(f"    out[0] = act[0];\n{BEGIN}", (1, 1)), ("    mlp_down_phase", (0, 0))],
    ids=["an early load and store", "no wait"],
)
def test_what_stands_before_the_wait_is_counted(new, expected):
    with planted(Fault("", "per_layer.cu", BEGIN, new)) as tree:
        orders = {order.kernel: order for order in order_in_ptx(DEFINES, csrc=tree).kernels}
    assert (orders["mlp_down"].waits, orders["mlp_down"].launch_dependents) == expected
    assert orders["mlp_down"].accesses_before > 0 == orders["mlp_up"].accesses_before


def test_a_source_that_does_not_compile_is_refused_with_the_log():
    with planted(Fault("", "per_layer.cu", "++*position;", "++*positon;")) as tree:
        with pytest.raises(CompileError, match="NVRTC refused it for compute_90a") as error:
            order_in_ptx(DEFINES, csrc=tree)
    assert "positon" in error.value.log
