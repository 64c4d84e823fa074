"""Exercises of notebook 13: mend a timer, find the ratios that published tables support, name the slip in each row."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from luce_edu.exercises.base import Exercise, WrongAnswer, call, close
from luce_edu.measure.records.published import published
from luce_edu.measure.simulated import SimulatedEvent, SimulatedGPU
from luce_edu.tables import Tabular

# Exercise 1.


@dataclass(frozen=True)
class Situation:
    """A state of the GPU in which one slip of a timer changes the result, and a hint for a timer that fails there.

    cold        calls until the GPU is warm, each three times as slow; the first also loads the kernel
    busy_us     µs of other work in the queue at the start
    skewed      the time of a call varies around the median, and now and then is several times as long
    """

    name: str
    hint: str
    cold: int = 0
    busy_us: float = 0.0
    skewed: bool = False


SITUATIONS = (
    Situation("warm and idle", "Had the GPU finished when you read the clock for the second time?"),
    Situation(
        "warm, with other work in its queue",
        "Does the GPU still work on something else when you read the clock for the first time?",
        busy_us=40_000,
    ),
    Situation("cold", "The first calls take longer. Are they among the timed ones?", cold=5),
    Situation(
        "warm, and interrupted now and then",
        "What does one interrupted call do to the number that you return?",
        skewed=True,
    ),
    Situation(
        "cold, with a queue, and interrupted now and then",
        "Your timer is right where only one of these applies. Does it also wait, and warm up, before the first "
        "reading?",
        cold=5,
        busy_us=40_000,
        skewed=True,
    ),
)
TOLERANCE = 0.06
LEAST_TIMED = 20
PHASES = (0.0, 0.25, 0.5, 0.75)  # fixed starts in the pattern of interruptions, so that the verdict repeats

# The times of calls over their median, by share of the calls: few are close to 1, and some are several times as long.
SHARES, FACTORS = (0.0, 0.1, 0.44, 0.56, 0.9, 1.0), (0.6, 0.72, 0.98, 1.02, 1.7, 4.0)


def _interrupted(call: int, phase: float) -> float:
    """Return the time of a call, by its number, over the median.

    Steps of the golden ratio spread any 20 calls in a row evenly over SHARES. So their median is within 4 % of 1, and
    means, quartiles and extremes are further away.
    """
    golden = (5**0.5 - 1) / 2
    return float(np.interp((phase + call * golden) % 1, SHARES, FACTORS))


class _Watched(SimulatedGPU):
    """A simulated GPU that counts the calls that are timed alone, by `reading`."""

    def __init__(self, **options):
        super().__init__(**options)
        self.timed = self.calls = 0  # calls that were timed alone; calls since the last reading of a clock

    def reading(self) -> None:
        """Note that a clock is read: the CPU's, or the GPU's by an event. A single call between two is timed alone."""
        self.timed += self.calls == 1
        self.calls = 0

    def now(self) -> float:
        self.reading()
        return super().now()

    def event(self, enable_timing: bool = False) -> SimulatedEvent:
        return _WatchedEvent(self)


class _WatchedEvent(SimulatedEvent):
    def record(self) -> None:
        self._of.reading()
        super().record()


def _try(timer: Callable, situation: Situation, phase: float) -> None:
    """Let the timer time new work on a new GPU. Raises WrongAnswer unless it returns the work's time."""
    launches, each_us = random.randint(20, 40), random.uniform(8, 30)
    truth_us, calls = launches * each_us, 0
    # The queue is too deep to fill. A full one would make the CPU wait, and a timer without a wait would seem right.
    gpu = _Watched(ask_us=random.uniform(0.1, 0.3), load_us=25_000 if situation.cold else 0.0, depth=10**6)
    if situation.busy_us:
        gpu.launch(situation.busy_us, kernel="other work")

    def work() -> None:
        nonlocal calls
        calls += 1
        gpu.calls += 1
        factor = 3.0 if calls <= situation.cold else _interrupted(calls, phase) if situation.skewed else 1.0
        for _ in range(launches):
            gpu.launch(factor * each_us)

    got = call(timer, gpu, work)
    if situation.skewed and gpu.timed < LEAST_TIMED:
        raise WrongAnswer(_too_few(gpu.timed, calls))
    hint = situation.hint
    for factor, name in ((gpu.timed, "summed over all rounds"), (1e-3, "in milliseconds"), (1e-6, "in seconds")):
        if factor != 1 and isinstance(got, int | float) and abs(got - factor * truth_us) <= 0.1 * factor * truth_us:
            hint = f"This looks like the right time {name}."
    hint = f"The work takes {truth_us:.6g} µs, on a GPU that is {situation.name}. {hint}"
    close(got, truth_us, tolerance=TOLERANCE, hint=hint)


def _too_few(timed: int, calls: int) -> str:
    if timed == 0 and calls > 1:
        return f"No call is timed alone. The time of {calls} calls, divided by their number, is their mean."
    return (
        f"Only {timed} of {calls} calls are timed alone. Time {LEAST_TIMED} or more and return their median: on a GPU "
        "that is interrupted now and then, the median of a few calls is right only by chance."
    )


def _careful(answer) -> str:
    for situation in SITUATIONS:
        for phase in PHASES:
            _try(answer, situation, phase)
    return (
        f"Within {100 * TOLERANCE:g} % in {len(SITUATIONS)} situations, each tried {len(PHASES)} times: the timer "
        "waits for the GPU, leaves out cold calls, and its median is not changed by an interruption."
    )


careful = Exercise(
    name="careful",
    judge=_careful,
    spec="Time a piece of work on a GPU that is cold, has other work in its queue, and is now and then interrupted.",
    skeleton='''\
def careful(gpu, work):
    """Return the microseconds that the GPU takes for one call of `work`: the median of 20 or more.

    The GPU is warm after five calls.
    work()      launches some kernels and returns at once
    gpu.now()   the CPU's time in microseconds
    gpu.wait()  returns when the GPU has finished all work in its queue
    """
    return ...
''',
    hole="return ...",
    budget="10 minutes, six to ten lines",
)

# Exercise 2. Sources:
# - the first table, and 21,347 in a later one: README and RESULTS.md of Luce-Org/lucebox, as its forks keep them
#   (Danmoreng/lucebox-hub at 04b22df, xsession/lucebox-hub at 39fe251);
# - how the first table was made, and a user's table: Luce-Org/lucebox#5;
# - that llama.cpp was "run separately": final_bench.py of that fork; later llama.cpp: Luce-Org/lucebox#41.
# The later table differs from the first in one number only, so its other rows belong to the first run.
README, FIRST_README = "Luce-Org/lucebox, megakernel README", "Luce-Org/lucebox, first megakernel README"
OURS, BASELINE = "megakernel", "PyTorch"
NAMES = {OURS: "Luce megakernel", BASELINE: "PyTorch + transformers", "llama.cpp": "llama.cpp"}  # in the record


def _public(table: str, run: str, system: str, source: str) -> dict:
    """Return a published row; its tokens/s come from the package's record of published figures."""
    rate = published("prefill", system=NAMES[system], source=source).tokens_per_s
    return {"table": table, "run": run, "system": system, "tokens_per_s": rate}


PUBLIC = (
    _public("first", "final_bench.py", OURS, FIRST_README),
    _public("first", "llama.cpp's own", "llama.cpp", README),
    _public("first", "final_bench.py", BASELINE, README),
    _public("later", "not said", OURS, README),
    _public("later", "llama.cpp's own", "llama.cpp", README),
    _public("later", "final_bench.py", BASELINE, README),
    _public("a user's, #5", "a user's", OURS, "Luce-Org/lucebox#5"),
    _public("a user's, #5", "a user's", BASELINE, "Luce-Org/lucebox#5"),
    _public("#41", "llama.cpp's own, later", "llama.cpp", "Luce-Org/lucebox#41"),
)


def _fresh_rows() -> list[dict]:
    """Draw runs of several systems, in tables that mix runs, in random order."""
    rows, runs = [], random.sample([f"run {letter}" for letter in "ABCDEFGHJK"], random.randint(4, 7))
    for i, run in enumerate(runs):
        both = (OURS, BASELINE, random.choice(("llama.cpp", "vLLM")))
        systems = both if i < 2 else random.choice(((OURS,), (BASELINE,), both, ("llama.cpp",), (OURS, "vLLM")))
        for system in systems:
            rate = round(random.uniform(2_000, 40_000))
            rows.append({"table": f"table {random.randint(1, 3)}", "run": run, "system": system, "tokens_per_s": rate})
    rows += [row | {"table": "table 4"} for row in random.sample(rows, 2)]  # a later table keeps some rows
    random.shuffle(rows)
    return rows


def _true_leads(rows: Sequence[Mapping]) -> dict[str, float]:
    """Return the megakernel's tokens/s over PyTorch's, by run, for the runs that timed both."""
    rates = {(row["run"], row["system"]): row["tokens_per_s"] for row in rows}
    return {
        run: rates[run, OURS] / rates[run, BASELINE]
        for run, system in rates
        if system == OURS and (run, BASELINE) in rates
    }


def _leads(answer) -> str:
    for rows in [list(PUBLIC), *(_fresh_rows() for _ in range(20))]:
        want = _true_leads(rows)
        got = call(answer, [dict(row) for row in rows])
        if not isinstance(got, Mapping):
            raise WrongAnswer(f"expected a dict of runs, got {type(got).__name__}")
        _same_runs(set(got), set(want), rows)
        for run, lead in want.items():
            close(got[run], lead, tolerance=1e-6, hint=f"In {run}: {_lead_hint(got[run], lead)}")
    first, user = (_true_leads(PUBLIC)[run] for run in ("final_bench.py", "a user's"))
    return (
        "Checked on the published rows and 20 drawn tables. Two published runs timed both systems: the megakernel is "
        f"{first:.1f} times as fast in one, and {user:.2f} times in the other."
    )


def _same_runs(got: set, want: set, rows: Sequence[Mapping]) -> None:
    """Raise WrongAnswer where the lead of a run is missing, or is given for something that did not time both."""
    for run in sorted(want - got):
        raise WrongAnswer(
            f"The run {run!r} timed both, but its lead is missing. Its rows may be in more than one table."
        )
    for name in sorted(got - want, key=str):
        systems = sorted({row["system"] for row in rows if row["run"] == name})
        if systems:
            raise WrongAnswer(f"You give a lead for the run {name!r}, which timed only {', '.join(systems)}.")
        is_table = name in {row["table"] for row in rows}
        raise WrongAnswer(f"{name!r} is " + ("a table. Return leads by run." if is_table else "not the name of a run."))


def _lead_hint(got: object, lead: float) -> str:
    if isinstance(got, int | float):
        for mistaken, cause in ((1 / lead, "PyTorch over the megakernel"), (100 * lead, "in per cent"),
                                (lead - 1, "1 less than the ratio")):  # fmt: skip
            if abs(got - mistaken) <= 1e-6 * abs(mistaken):
                return f"this is {cause}."
    return f"divide the {OURS}'s tokens/s by those of {BASELINE}, both from rows of this run."


leads = Exercise(
    name="leads",
    judge=_leads,
    spec="Which leads do published figures support? Divide only numbers of one run by each other.",
    skeleton='''\
def leads(rows):
    """Return {run: how many times as fast as "PyTorch" the "megakernel" is}, for each run that timed both.

    rows  dicts with "table" (where the row was printed), "run" (how it was made), "system", "tokens_per_s"
    """
    return ...
''',
    hole="return ...",
    budget="5 minutes, two to five lines",
)

# Exercise 3.
SLIPS = {
    "unchecked": "its results were not compared with an independent reference",
    "other work": "another model, precision, batch or context than the task's",
    "cold": "fewer than 3 rounds before the first that counts",
    "not waited for": "the clock was read before the GPU had finished",
    "cached": "it touches less than twice the L2 cache",
    "easy data": "all numbers are equal",
    "no spread": "fewer than 5 rounds, or no report of how much they differ",
    "short window": "joules measured over less than 2 s",
    "no provenance": "no GPU is named, or it is not a real one",
}
TASK = {"model": "Qwen3.5-0.8B", "dtype": "bf16", "batch": 1, "context": 520}


TASKS = (
    TASK,
    {"model": "Qwen3.5-2B", "dtype": "bf16", "batch": 1, "context": 8192},
    {"model": "Qwen3.5-0.8B", "dtype": "fp8", "batch": 32, "context": 520},
    {"model": "Llama-3.2-1B", "dtype": "fp16", "batch": 2, "context": 1},
)


def _good_row(task: Mapping = TASK) -> dict:
    """Draw a row without a slip, so that it may be compared with others of its task."""
    clock = random.choice(("events", "host"))
    l2_mb = random.choice((4, 6, 40, 50, 96))  # of some GPUs
    return {
        "system": "".join(random.sample("bcdfghklmnprstvz", 2)) + random.choice("aeiou"),
        **task,
        "checked_against": random.choice(("reference", "transformers")),
        "warm_up": random.choice((3, 5, 10, 100)),
        "clock": clock,
        "waits": clock == "host" or random.random() < 0.5,
        "touches_mb": random.choice((2 * l2_mb, 2 * l2_mb + 1, 1550)),
        "l2_mb": l2_mb,
        "data": random.choice(("weights", "random")),
        "rounds": random.choice((5, 7, 20, 200)),
        "reports": random.choice(("quartiles", "deviation", "all times")),
        "window_s": random.choice((None, None, 2.0, 4.0, 30.0)),
        "gpu": random.choice(("RTX 3090", "H100 SXM", "Tesla T4")),
        "tokens_per_s": random.randint(100, 1500),
    }


def _ways(row: Mapping, task: Mapping) -> dict[str, list[dict]]:
    """Return, by slip, every way to make it, as changes of a row that has none."""
    others = {"model": ("Qwen3-0.6B", "Qwen3.5-0.8B"), "dtype": ("int4", "fp8", "bf16", "fp32"), "batch": (1, 2, 32),
              "context": (1, 520, 32_768)}  # fmt: skip
    return {
        "unchecked": [{"checked_against": "nothing"}, {"checked_against": "itself"}],
        "other work": [{name: other} for name, values in others.items() for other in values if other != task[name]],
        "cold": [{"warm_up": 0}, {"warm_up": 1}, {"warm_up": 2}],
        "not waited for": [{"clock": "host", "waits": False}],
        "cached": [{"touches_mb": 1}, {"touches_mb": row["l2_mb"] + 1}, {"touches_mb": 2 * row["l2_mb"] - 1}],
        "easy data": [{"data": "zeros"}, {"data": "ones"}],
        "no spread": [{"rounds": 1}, {"rounds": 4}, {"reports": "best"}, {"reports": "mean"}],
        "short window": [{"window_s": 0.02}, {"window_s": 1.9}],
        "no provenance": [{"gpu": None}, {"gpu": "virtual GPU"}],
    }  # fmt: skip


@dataclass(frozen=True)
class _Judged:
    """A row, its task, its slip, and the lines of the row in which the slip can be seen."""

    row: Mapping
    task: Mapping
    slip: str | None = None
    lines: tuple[str, ...] = ()


def _table() -> list[_Judged]:
    """Return rows with a slip, in every way for every task, and as many rows without one, shuffled."""
    rows = []
    for task in TASKS:
        row = _good_row(task)
        spoilt = [
            _Judged(row | change, task, name, tuple(change))
            for name, ways in _ways(row, task).items()
            for change in ways
        ]
        rows += spoilt + [_Judged(_good_row(task), task) for _ in spoilt]
    random.shuffle(rows)
    return rows


def _slip(answer) -> str:
    table = _table()
    for judged in table:
        row, want = judged.row, judged.slip
        got = call(answer, dict(row), dict(judged.task))
        if got is not None and not (isinstance(got, str) and got in SLIPS):
            raise WrongAnswer(f"expected None or one of {', '.join(SLIPS)}; got {got!r}")
        if got == want:
            continue
        look = f"Look at its {' and '.join(judged.lines)}."
        if want is None:
            told = f"You say {got!r} ({SLIPS[got]}), but this row has no slip."
        elif got is None:
            told = f"You find no slip in this row. {look}"
        else:
            told = f"You say {got!r}, but the slip of this row is another. {look}"
        shown, asked = (", ".join(f"{name} {value}" for name, value in one.items()) for one in (row, judged.task))
        raise WrongAnswer(f"{told} The row: {shown}. The task: {asked}.")
    return f"All {len(table)} drawn rows are judged correctly. Half of them have no slip."


slip = Exercise(
    name="slip",
    judge=_slip,
    spec="Name the slip of each row of a table; return None for a row without one.",
    skeleton='''\
def slip(row, task):
    """Return the name of the slip in a row, a key of measuring.SLIPS, or None. A row has at most one.

    row   a dict with the lines of the table above; window_s is None where no joules are claimed
    task  a dict with "model", "dtype", "batch" and "context": the work that every row should have timed
    """
    return ...
''',
    hole="return ...",
    budget="20 minutes, ten to twenty lines",
)


@dataclass(repr=False)
class Rows(Tabular):
    """Dicts with the same keys, shown as a table: one per row, or, if `across`, one per column."""

    rows: Sequence[Mapping]
    caption: str = ""
    across: bool = False

    @property
    def _cells(self) -> list[list[str]]:
        cells = [[name.replace("_", " ") for name in self.rows[0]]]
        cells += [[_cell(value) for value in row.values()] for row in self.rows]
        return [list(column) for column in zip(*cells, strict=True)] if self.across else cells

    @property
    def header(self) -> list[str]:
        return self._cells[0]

    @property
    def body(self) -> list[list[str]]:
        return self._cells[1:]


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}"
    return "–" if value is None else str(value)


def sample() -> Rows:
    """Return an invented table of ten rows, nine of them with a slip."""
    good = _good_row() | {
        "l2_mb": 6, "touches_mb": 1550, "gpu": "RTX 3090", "clock": "events", "waits": False, "warm_up": 8,
        "data": "weights", "rounds": 64, "reports": "quartiles", "window_s": None,
        "checked_against": "reference", "tokens_per_s": 411,
    }  # fmt: skip
    spoilt = (
        {"checked_against": "itself", "tokens_per_s": 413},
        {"dtype": "int4", "tokens_per_s": 560},
        {"warm_up": 1, "rounds": 5, "tokens_per_s": 180},
        {"clock": "host", "tokens_per_s": 2_900},
        {"touches_mb": 7.3, "l2_mb": 50, "gpu": "H100 SXM", "tokens_per_s": 5_100},
        {"data": "zeros", "tokens_per_s": 470},
        {"rounds": 500, "reports": "best", "tokens_per_s": 433},
        {"window_s": 0.05, "tokens_per_s": 409},
        {"gpu": "virtual GPU", "tokens_per_s": 0.3},
    )
    rows = [good | change | {"system": letter} for letter, change in zip("ABCDEFGHI", spoilt, strict=True)]
    rows.insert(4, good | {"system": "J"})
    return Rows(rows, "Invented rows, in the form of published tables.", across=True)
