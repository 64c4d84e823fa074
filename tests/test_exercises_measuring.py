"""The checkers of notebook 13 accept right answers in several forms, and refuse wrong ones with a reason."""

import random
import statistics
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
import torch
from answers import checker_tests

from luce_edu.exercises import measuring as exercises
from luce_edu.exercises.base import WrongAnswer
from luce_edu.measure.latency import time_steps

# ---- Exercise 1 ----


def timed(gpu, work, *, rounds=25, warm_up=5, wait_before=True, wait_after=True, pick=statistics.median, scale=1):
    """A timer that is right by default. Each option can make it wrong."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(rounds):
        if wait_before:
            gpu.wait()
        start = gpu.now()
        work()
        if wait_after:
            gpu.wait()
        times.append(gpu.now() - start)
    return scale * pick(times)


def waiting_once_before(gpu, work):
    """The wait after a round is also the wait before the next round."""
    for _ in range(8):
        work()
        gpu.wait()
    marks = [gpu.now()]
    for _ in range(31):
        work()
        gpu.wait()
        marks.append(gpu.now())
    return statistics.median(b - a for a, b in zip(marks, marks[1:], strict=False))


def by_events(gpu, work):
    """With events of the GPU, as in `latency.elapsed_us`."""
    for _ in range(6):
        work()
    times = []
    for _ in range(41):
        start, end = gpu.event(), gpu.event()
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return sorted(times)[20]


def by_time_steps(gpu, work):
    with gpu.as_cuda():
        return statistics.median(time_steps(work, steps=64)[0])


RIGHT_TIMERS = {
    "as the solution": timed,
    "waiting once between rounds": waiting_once_before,
    "by events": by_events,
    "many rounds, and no warm-up that a median needs": lambda gpu, work: timed(gpu, work, warm_up=0, rounds=201),
    "a higher median of the fewest rounds": lambda gpu, work: timed(gpu, work, rounds=20, pick=statistics.median_high),
    "by PyTorch, as a tensor": lambda gpu, work: timed(gpu, work, rounds=21, pick=lambda t: torch.tensor(t).median()),
    "no wait before the first round": lambda gpu, work: timed(gpu, work, rounds=41, wait_before=False),
    "by the package's own timer": by_time_steps,
}


def by_inner_attributes(gpu, work):
    """Reads a private counter of the simulation in place of a clock."""
    times = []
    for _ in range(30):
        before = gpu.gpu
        work()
        times.append(gpu.gpu - before)
    return statistics.median(times[5:])


def trimmed(times):
    times = sorted(times)[len(times) // 10 : -len(times) // 10]
    return sum(times) / len(times)


def around_all_rounds(gpu, work):
    for _ in range(5):
        work()
    gpu.wait()
    start = gpu.now()
    for _ in range(200):
        work()
    gpu.wait()
    return (gpu.now() - start) / 200


WRONG_TIMERS = {
    "no wait after": (lambda gpu, work: timed(gpu, work, wait_after=False), "warm and idle.*Had the GPU finished"),
    "the notebook's careless one": (
        lambda gpu, work: timed(gpu, work, rounds=10, warm_up=0, wait_before=False, wait_after=False, pick=min),
        "Had the GPU finished"),
    "no wait in a long loop": (
        lambda gpu, work: timed(gpu, work, rounds=300, wait_before=False, wait_after=False), "idle.*Had the GPU"),
    "no wait before, one round": (
        lambda gpu, work: timed(gpu, work, warm_up=0, rounds=1, wait_before=False), "in its queue.*still work"),
    "no warm-up, few rounds": (lambda gpu, work: timed(gpu, work, warm_up=0, rounds=5), "cold.*first calls"),
    "one warm-up": (lambda gpu, work: timed(gpu, work, warm_up=1, rounds=20), "cold, with a queue"),
    "the best": (lambda gpu, work: timed(gpu, work, pick=min, rounds=100), "interrupted.*What does one"),
    "the mean": (lambda gpu, work: timed(gpu, work, pick=statistics.mean, rounds=100), "interrupted.*What does one"),
    "the mean, by one clock around all": (around_all_rounds, "is their mean"),
    "by what no GPU tells": (by_inner_attributes, "No call is timed alone"),
    **{
        f"the median of {n}": (
            lambda gpu, work, n=n: timed(gpu, work, rounds=n), f"{n} of {n + 5} calls are timed.*20 or more")
        for n in (1, 2, 19)
    },
    "the median of 5, after a long warm-up": (
        lambda gpu, work: timed(gpu, work, warm_up=100, rounds=5), "5 of 105 calls are timed"),
    **{
        f"the {name}": (lambda gpu, work, pick=pick: timed(gpu, work, rounds=50, pick=pick), "does one interrupted")
        for name, pick in {
            "lower quartile": lambda times: np.quantile(times, 0.25),
            "trimmed mean": trimmed,
            "middle of the extremes": lambda times: (min(times) + max(times)) / 2,
        }.items()
    },
    "milliseconds": (lambda gpu, work: timed(gpu, work, scale=1e-3), "the right time in milliseconds"),
    "all rounds added up": (lambda gpu, work: timed(gpu, work, pick=sum), "summed over all rounds"),
    "NaN": (lambda gpu, work: float("nan"), "nan is wrong"),
    "nothing": (lambda gpu, work: None, "expected a number"),
    "a number": (1000.0, "expected a function"),
}  # fmt: skip


# The verdict must depend on the timer and not on the random draw.
SEEDS = range(8)


@pytest.mark.parametrize("timer", RIGHT_TIMERS.values(), ids=RIGHT_TIMERS)
def test_a_careful_timer_is_right_however_it_is_written_and_drawn(timer, capsys):
    for seed in SEEDS:
        random.seed(seed)
        exercises.careful.check(timer)
    assert capsys.readouterr().out.count("careful: right") == len(SEEDS)


@pytest.mark.planted
@pytest.mark.parametrize("timer, reason", WRONG_TIMERS.values(), ids=WRONG_TIMERS)
def test_a_timer_with_a_slip_is_refused_however_it_is_drawn(timer, reason):
    for seed in SEEDS:
        random.seed(seed)
        with pytest.raises(WrongAnswer, match=f"(?s){reason}"):
            exercises.careful.check(timer)


# ---- Exercise 2 ----


def by_dict(rows):
    rate = {(row["run"], row["system"]): row["tokens_per_s"] for row in rows}
    return {
        run: rate[run, "megakernel"] / rate[run, "PyTorch"]
        for run in {row["run"] for row in rows}
        if (run, "megakernel") in rate and (run, "PyTorch") in rate
    }


def by_pairs(rows):
    return {
        a["run"]: a["tokens_per_s"] / b["tokens_per_s"]
        for a in rows
        for b in rows
        if a["run"] == b["run"] and (a["system"], b["system"]) == ("megakernel", "PyTorch")
    }


def _by(column):
    """Leads grouped by a column of the table."""

    def leads(rows):
        rate = {(row[column], row["system"]): row["tokens_per_s"] for row in rows}
        names = {name for name, _ in rate}
        both = [n for n in names if (n, "megakernel") in rate and (n, "PyTorch") in rate]
        return {n: rate[n, "megakernel"] / rate[n, "PyTorch"] for n in both}

    return leads


def by_table_and_run(rows):
    rate = {(row["table"], row["run"], row["system"]): row["tokens_per_s"] for row in rows}
    both = [(table, run) for table, run, system in rate if system == "megakernel" and (table, run, "PyTorch") in rate]
    return {run: rate[table, run, "megakernel"] / rate[table, run, "PyTorch"] for table, run in both}


def _rates(rows, system):
    return [row["tokens_per_s"] for row in rows if row["system"] == system]


def one_of_each(pick_ours, pick_theirs):
    """One lead for all runs: a rate of the megakernel over a rate of PyTorch."""

    def leads(rows):
        lead = pick_ours(_rates(rows, "megakernel")) / pick_theirs(_rates(rows, "PyTorch"))
        return dict.fromkeys(by_dict(rows), lead)

    return leads


def with_gaps(rows):
    return {row["run"]: float("nan") for row in rows} | by_dict(rows)


WRONG_LEADS = {
    "by table": (_by("table"), "its lead is missing|is a table"),
    "only within one table": (by_table_and_run, "its lead is missing.*more than one table"),
    "how much faster": (lambda rows: {run: lead - 1 for run, lead in by_dict(rows).items()}, "1 less than the ratio"),
    "a made up name": (lambda rows: by_dict(rows) | {"overall": 5.0}, "'overall' is not the name"),
    "the first over the first": (one_of_each(lambda r: r[0], lambda r: r[0]), "divide the megakernel"),
    "upside down": (lambda rows: {run: 1 / lead for run, lead in by_dict(rows).items()}, "PyTorch over the megakernel"),
    "over any other system": (
        lambda rows: {a["run"]: a["tokens_per_s"] / b["tokens_per_s"] for a in rows for b in rows
                      if a["run"] == b["run"] and a["system"] == "megakernel" != b["system"]},
        "its lead|timed only|divide the"),
    "runs that have one of them": (with_gaps, "timed only"),
    "one run forgotten": (lambda rows: dict(list(by_dict(rows).items())[1:]), "its lead is missing"),
    "per cent": (lambda rows: {run: 100 * lead for run, lead in by_dict(rows).items()}, "in per cent"),
    "a list": (lambda rows: list(by_dict(rows).values()), "expected a dict"),
    "a dict": ({"final_bench.py": 4.99}, "expected a function"),
}  # fmt: skip


def as_fractions(rows):
    """A defaultdict of exact ratios, in another order."""
    leads = defaultdict(Fraction)
    for run, lead in reversed(by_pairs(rows).items()):
        leads[run] = Fraction(lead)
    return leads


def by_arrays(rows):
    table = np.array([(row["run"], row["system"], row["tokens_per_s"]) for row in rows], dtype=object)
    ours, theirs = (dict(table[table[:, 1] == system][:, [0, 2]]) for system in ("megakernel", "PyTorch"))
    return {run: np.float64(ours[run]) / theirs[run] for run in set(ours) & set(theirs)}


LEADS = {function.__name__: (function, "5.0 times") for function in (by_dict, by_pairs, as_fractions, by_arrays)}
test_leads_within_runs_are_right, test_leads_that_no_run_has_are_refused = checker_tests(
    (exercises.leads, LEADS, WRONG_LEADS)
)


def test_the_public_rows_are_the_figures_of_their_sources():
    rates = {(row["table"], row["system"]): row["tokens_per_s"] for row in exercises.PUBLIC}
    assert len(rates) == len(exercises.PUBLIC)
    assert [rates["first", name] for name in exercises.NAMES] == [37_800, 7_578, 11_247]
    assert [rates["later", name] for name in exercises.NAMES] == [21_347, 7_578, 11_247]
    assert [rates["a user's, #5", name] for name in ("megakernel", "PyTorch")] == [8_505, 8_747]


# ---- Exercise 3 ----


def found_in(row, task):
    """{slip: whether a row has it}."""
    return {
        "unchecked": row["checked_against"] in ("nothing", "itself"),
        "other work": any(row[name] != task[name] for name in task),
        "cold": row["warm_up"] < 3,
        "not waited for": row["clock"] == "host" and not row["waits"],
        "cached": row["touches_mb"] < 2 * row["l2_mb"],
        "easy data": row["data"] in ("zeros", "ones"),
        "no spread": row["rounds"] < 5 or row["reports"] in ("best", "mean"),
        "short window": row["window_s"] is not None and row["window_s"] < 2,
        "no provenance": row["gpu"] in (None, "virtual GPU"),
    }


def named(row, task, **changes):
    found = found_in(row, task) | {name.replace("_", " "): is_so(row) for name, is_so in changes.items()}
    return next((name for name, is_so in found.items() if is_so), None)


def by_what_is_allowed(row, task):
    """The same rules, written as what is allowed."""
    if row["checked_against"] not in ("reference", "transformers"):
        return "unchecked"
    if {name: row[name] for name in task} != task:
        return "other work"
    if not row["warm_up"] >= 3:
        return "cold"
    if not (row["clock"] == "events" or row["waits"]):
        return "not waited for"
    if not row["touches_mb"] / row["l2_mb"] >= 2:
        return "cached"
    if row["data"] not in ("weights", "random"):
        return "easy data"
    if not (row["rounds"] >= 5 and row["reports"] in ("quartiles", "deviation", "all times")):
        return "no spread"
    if not (row["window_s"] or 2) >= 2:
        return "short window"
    return None if row["gpu"] and row["gpu"] != "virtual GPU" else "no provenance"


WRONG_SLIPS = {
    "nothing is ever wrong": (lambda row, task: None, "You find no slip in this row. Look at its .*The task: model"),
    "the task of the sample, whatever the task": (
        lambda row, task: named(row, exercises.TASK), "You say 'other work'|no slip"),
    "precisions that are known": (
        lambda row, task: named(row, task, other_work=lambda r: r["dtype"] in ("int4", "fp8") or any(
            r[name] != task[name] for name in ("model", "batch", "context"))),
        "no slip|is another"),
    "the mean is a spread": (
        lambda row, task: named(row, task, no_spread=lambda r: r["rounds"] < 5 or r["reports"] == "best"),
        "Look at its reports"),
    "more than 2 s": (
        lambda row, task: named(row, task, short_window=lambda r: r["window_s"] is not None and r["window_s"] <= 2),
        "has no slip|is another"),
    "everything is": (lambda row, task: "cold", "You say 'cold'"),
    "itself is a reference": (
        lambda row, task: named(row, task, unchecked=lambda r: r["checked_against"] == "nothing"), "You find no slip"),
    "off by one warm-up": (
        lambda row, task: named(row, task, cold=lambda r: r["warm_up"] <= 3), "has no slip|is another"),
    "events must be waited for": (
        lambda row, task: named(row, task, not_waited_for=lambda r: not r["waits"]),
        "(has no slip|is another).*clock events"),
    "larger than the cache will do": (
        lambda row, task: named(row, task, cached=lambda r: r["touches_mb"] < r["l2_mb"]), "You find no slip"),
    "ones are numbers": (
        lambda row, task: named(row, task, easy_data=lambda r: r["data"] == "zeros"), "You find no slip"),
    "many rounds make a best honest": (
        lambda row, task: named(row, task, no_spread=lambda r: r["rounds"] < 5), "You find no slip"),
    "only quartiles say how much": (
        lambda row, task: named(row, task, no_spread=lambda r: r["rounds"] < 5 or r["reports"] != "quartiles"),
        "has no slip|is another"),
    "no joules are a short window": (
        lambda row, task: named(row, task, short_window=lambda r: (r["window_s"] or 0) < 2),
        "has no slip|is another"),
    "a second is a window": (
        lambda row, task: named(row, task, short_window=lambda r: (r["window_s"] or 2) < 1), "You find no slip"),
    "the virtual GPU is a GPU": (
        lambda row, task: named(row, task, no_provenance=lambda r: r["gpu"] is None), "You find no slip"),
    "whether, and not which": (lambda row, task: named(row, task) is not None, "expected None or one of"),
    "another name": (lambda row, task: named(row, task) and "cache", "expected None or one of"),
    "a name": ("cold", "expected a function"),
}  # fmt: skip


def by_counting(row, task):
    """Find every slip, and return it if there is only one."""
    found = [name for name, is_so in found_in(row, task).items() if is_so]
    return found[0] if len(found) == 1 else None


def matched(row, task):
    match row:
        case {"checked_against": "nothing" | "itself"}:
            return "unchecked"
        case {"clock": "host", "waits": False}:
            return "not waited for"
        case {"gpu": None | "virtual GPU"}:
            return "no provenance"
        case {"data": "zeros" | "ones"}:
            return "easy data"
        case {"reports": "best" | "mean"}:
            return "no spread"
    return named(row, task)


SLIPS = {function.__name__: function for function in (named, by_what_is_allowed, by_counting, matched)}
test_slips_by_any_rule_are_right, test_other_slips_are_wrong = checker_tests(
    (exercises.slip, SLIPS, WRONG_SLIPS), times=5
)


def test_each_row_of_the_sample_has_the_slip_that_its_solution_names():
    names = {row["system"]: named(row, exercises.TASK) for row in exercises.sample().rows}
    assert names["J"] is None
    assert [names[letter] for letter in "ABCDEFGHI"] == list(exercises.SLIPS)
    for row in exercises.sample().rows:
        assert sum(found_in(row, exercises.TASK).values()) == (row["system"] != "J")


def test_a_table_shows_rows_or_columns_and_each_value_in_words():
    rows = [{"gpu_name": "T4", "waits": True, "window_s": None}, {"gpu_name": "H100", "waits": False, "window_s": 2000}]
    assert exercises.Rows(rows).header == ["gpu name", "waits", "window s"]
    assert exercises.Rows(rows).body == [["T4", "yes", "–"], ["H100", "no", "2,000"]]
    across = exercises.Rows(rows, "as said", across=True)
    assert across.header == ["gpu name", "T4", "H100"]
    assert across.body == [["waits", "yes", "no"], ["window s", "–", "2,000"]]
    assert str(across).endswith("as said")
