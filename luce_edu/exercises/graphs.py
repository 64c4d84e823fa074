"""Exercises of notebook 07: the launch cost that a graph removes, a step as one graph, safe orders of a wait."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from inspect import signature

import torch

from luce_edu.backends import make_backend
from luce_edu.errors import KernelError, LaunchError
from luce_edu.exercises.base import Exercise, WrongAnswer, call, close
from luce_edu.faults import planted
from luce_edu.overlap import play

# Exercise 1.


def _share_removed(answer) -> str:
    cases = [
        ((225, 347.5), (225, 186.9)),  # as published
        ((100, 200.0), (400, 360.0)),  # counts that differ
        ((300, 250.0), (200, 240.0)),  # a graph that costs more
    ]
    # Draw more, so that an answer made for the published numbers fails.
    for _ in range(3):
        counts = random.sample(range(50, 2000), 2)
        cases.append(tuple((count, count * random.uniform(0.4, 6.0)) for count in counts))
    for plain, graph in cases:
        each_plain, each_graph = (total / count for count, total in (plain, graph))
        got = call(answer, plain, graph)
        close(
            got, 1 - each_graph / each_plain, tolerance=1e-6,
            hint=f"Case: {plain[0]} plain launches in {plain[1]:.4g} µs, a graph of {graph[0]} in {graph[1]:.4g} µs. "
            + _share_hint(got, each_plain, each_graph, graph[1] / plain[1]),
        )  # fmt: skip
    return (
        f"Checked on {len(cases)} pairs. From the published one the share is 0.462: a graph's kernel still costs more "
        "than half of a plain launch."
    )


def _share_hint(got: object, plain: float, graph: float, totals: float) -> str:
    """Name the mistake that gives `got`.

    plain, graph  µs per kernel
    totals        the graph's total µs over the plain launches'
    """
    mistakes = {
        "This compares the totals, but the counts differ. Compare the cost per kernel.": 1 - totals,
        "This is the share that remains. Return the share that is removed.": graph / plain,
        "This is per cent. A share is a fraction of 1.": 100 * (1 - graph / plain),
        "This is the cost of a plain launch over that of a graph's kernel.": plain / graph,
        "This is a share of the graph's cost. Divide by the cost of a plain launch.": plain / graph - 1,
        "These are microseconds. Divide them by the cost of a plain launch.": plain - graph,
        "Here the graph costs more per kernel, so the share is below 0.": 0.0,
        "Plain and graph are swapped.": 1 - plain / graph,
    }
    for cause, value in mistakes.items():
        if isinstance(got, int | float) and abs(got - value) <= 1e-6 * abs(value):
            return cause
    return "Compute the cost per kernel of each. The share is a fraction of 1, not rounded."


share_removed = Exercise(
    name="share_removed",
    judge=_share_removed,
    spec="The share of the launch cost that a graph removes, from two measurements of empty kernels.",
    skeleton='''\
def share_removed(plain, graph):
    """Return the share (0.25 is a quarter) of what a plain launch costs that is gone in a graph.

    plain, graph  (how many kernels, the microseconds that they took together); the two counts may differ
    """
    return ...
''',
    hole="return ...",
    budget="5 minutes, one or two lines",
)


# Exercise 2.

KERNELS = """
// cache[position] = table[token]
extern "C" __global__ void put(const float* table, const int* token, float* cache, const int* position) {
    if (threadIdx.x == 0) cache[*position] = table[*token];
}

// out[0] = the mean of cache[0] to cache[position]
extern "C" __global__ void mean(const float* cache, const int* position, float* out) {
    float sum = 0.0f;
    for (int p = threadIdx.x; p <= *position; p += 32) sum += cache[p];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) out[0] = sum / (*position + 1);
}
"""
THREADS = 32
WHOLE = {"put": (1, 3), "mean": (1,)}  # which arguments are tokens and positions


@cache
def _compiled():
    """The two kernels on the virtual GPU."""
    with planted() as tree:
        (tree / "step.cu").write_text(f'#include "block.cuh"\n{KERNELS}', encoding="utf-8")
        backend = make_backend("host", csrc_dir=tree)
        return backend, backend.compile("step.cu", ["put", "mean"], {"BLOCK_THREADS": THREADS})


class Gpu:
    """The virtual GPU with `put` and `mean`, each launched with one block of 32 threads. It counts all calls.

    watched  (cache, position, out) of the current call. Before a replay the elements that a step writes become NaN,
             and after it they are copied to `last`, so that only the graph's own work counts as the graph's
    """

    def __init__(self):
        self._backend, self._module = _compiled()
        self._recording: list[tuple[str, tuple]] | None = None
        self._recorded: dict[int, list[tuple[str, tuple]]] = {}  # by graph: kernels with their arguments
        self.captures = self.replays = self.launches = 0
        self.watched: tuple[torch.Tensor, int, torch.Tensor] | None = None
        self.last: Replayed | None = None

    def launch(self, name: str, *tensors: torch.Tensor) -> None:
        """Run a kernel, or record it inside `capture`. `token` and `position` are tensors of one int32."""
        for i in WHOLE[name]:
            if not isinstance(tensors[i], torch.Tensor):
                raise LaunchError(f"{name}: argument {i} must be a tensor of one int32, got {tensors[i]!r}")
            if tensors[i].dtype != torch.int32:
                raise LaunchError(f"{name}: argument {i} must be int32, got {tensors[i].dtype}")
        self._backend.launch(self._module[name], 1, THREADS, 0, tensors)
        if self._recording is None:
            self.launches += 1
        else:
            self._recording.append((name, tensors))

    def capture(self, enqueue: Callable[[], object]):
        """Return a graph of what `enqueue` launches; nothing runs yet."""
        try:
            signature(enqueue).bind()
        except TypeError:
            raise WrongAnswer(
                f"capture takes a function without arguments, got {enqueue!r}. self.enqueue(...) with parentheses is "
                "already the call; write `lambda:` before it."
            ) from None
        self.captures += 1
        self._recording = []
        try:
            graph = self._backend.capture(enqueue)
            self._recorded[id(graph)] = self._recording
            return graph
        finally:
            self._recording = None

    def replay(self, graph) -> None:
        """Run what was recorded, with the arguments of the recording."""
        if id(graph) not in self._recorded:
            raise WrongAnswer(f"replay takes a graph that capture returned, got {graph!r}.")
        self.replays += 1
        recorded = self._recorded[id(graph)]
        held = dict.fromkeys(("token", "position"))
        for name, tensors in recorded:
            for i, what in zip(WHOLE[name], ("token", "position") if name == "put" else ("position",), strict=True):
                held[what] = int(tensors[i].flatten()[0])
        if self.watched:
            cache, position, out = self.watched
            out.fill_(torch.nan)
            cache[position] = torch.nan
        self._backend.replay(graph)
        self._backend.ledger.clear()
        if self.watched:
            self.last = Replayed([name for name, _ in recorded], held, cache.clone(), out.clone())


@dataclass(frozen=True)
class Replayed:
    """The kernels of a replay, the token and position that they read, and cache and out after it."""

    kernels: list[str]
    held: dict[str, int | None]
    cache: torch.Tensor
    out: torch.Tensor


def _text(table: torch.Tensor, room: int) -> list[tuple[int, int]]:
    """Return (token, position) pairs: a text, one step back in it, and a second text from position 0."""
    length = random.randrange(4, room)
    positions = [*range(length), length - 2, *range(random.randrange(2, room))]
    tokens = [random.randrange(len(table)) for _ in positions]
    tokens[1] = (tokens[0] + random.randrange(1, len(table))) % len(table)  # differs, so that a stale token is noticed
    return list(zip(tokens, positions, strict=True))


def _step(answer) -> str:
    if not isinstance(answer, type):
        raise WrongAnswer(f"expected the class Step, got {answer!r}")
    gpu = Gpu()
    runs = []
    for vocabulary, room in ((5, 8), (random.randrange(20, 50), random.randrange(36, 60))):
        tensors = torch.randn(vocabulary), torch.full((room,), torch.nan), torch.full((1,), torch.nan)
        runs.append((_guarded("making a Step", answer, gpu, *tensors), tensors, _text(tensors[0], room)))
    calls = 0
    while any(text for *_, text in runs):  # in turn, as a Step must not rely on being the only one
        for step, tensors, text in runs:
            if text:
                _call(gpu, step, tensors, *text.pop(0))
                calls += 1
    if gpu.captures != len(runs):
        raise WrongAnswer(
            f"The results are right, but {len(runs)} Steps recorded {gpu.captures} graphs in {calls} calls. Recording "
            "costs as much as launching every kernel. Record once per Step, and replay for every token."
        )
    return f"All results are right. Each call was one replay, and each of {len(runs)} Steps recorded its graph once."


def _guarded(where: str, function: Callable, *args):
    """Call the reader's function; an error of the virtual GPU becomes a WrongAnswer that begins with `where`."""
    try:
        return call(function, *args)
    except (KernelError, LaunchError) as error:
        raise WrongAnswer(f"{where}: {error}") from None


def _call(gpu: Gpu, step, tensors, token: int, position: int) -> None:
    """Judge one call of a reader's Step by its result, by what its graph wrote, and by the requests that it made."""
    table, cache, out = tensors
    want = cache.clone()
    want[position] = table[token]
    mean = float(want[: position + 1].double().mean())
    out.fill_(torch.nan)
    launches, replays = gpu.launches, gpu.replays
    gpu.watched, gpu.last = (cache, position, out), None
    where = f"token {token} at position {position}"
    got = _guarded(where, step, token, position)
    gpu.watched = None
    try:
        value = float(got)
    except (TypeError, ValueError, RuntimeError):
        raise WrongAnswer(f"{where}: expected the value of out, got {got!r}") from None
    if not abs(value - mean) <= 1e-5 * (1 + abs(mean)):
        raise WrongAnswer(f"{where}: out is {value:.4g} and should be {mean:.4g}. {_why(gpu.last, token, position)}")
    if not _same(cache, want):
        raise WrongAnswer(f"{where}: out is right, but the cache is not. Only cache[position] should change.")
    launched, replayed = gpu.launches - launches, gpu.replays - replays
    if (launched, replayed) != (0, 1):
        raise WrongAnswer(
            f"{where}: the result is right, but the call launched {launched} kernels one by one and replayed "
            f"{replayed} graphs. It should make one request: replay one graph."
        )
    if not _same(gpu.last.cache, want) or not abs(float(gpu.last.out) - mean) <= 1e-5 * (1 + abs(mean)):
        raise WrongAnswer(
            f"{where}: the result is right, but it does not come from the graph: cache and out did not hold it when "
            f"the replay ended. {_why(gpu.last, token, position)}"
        )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal, with NaN in the same places."""
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())


def _why(last: Replayed | None, token: int, position: int) -> str:
    """Return the likely cause of a wrong result, from what the graph did."""
    if last is None:
        return "No graph was replayed."
    if sorted(last.kernels) != ["mean", "put"]:
        return (
            f"The graph holds {' and '.join(last.kernels) or 'no launch'}, but a step is put and mean. A graph holds "
            "only what is launched while capture's function runs."
        )
    if last.held != {"token": token, "position": position}:
        return (
            f"The graph read token {last.held['token']} and position {last.held['position']}. A replay passes the same "
            "addresses as the recording: what do they hold when it starts?"
        )
    return (
        "The graph read the right token and position. Is out read after the replay, and was the graph recorded with "
        "the table, cache and out of this Step?"
    )


step = Exercise(
    name="step",
    judge=_step,
    spec="Make each call of `Step` one replay of a graph that is recorded once, for any token and position.",
    skeleton='''\
class Step:
    """cache[position] = table[token]; then out is the mean of cache[0] to cache[position]."""

    def enqueue(self, token, position):   # tensors of one int32 each, as the kernels take them
        self.gpu.launch("put", self.table, token, self.cache, position)
        self.gpu.launch("mean", self.cache, position, self.out)

    def __init__(self, gpu, table, cache, out):   # there are gpu.capture(function) and gpu.replay(graph)
        self.gpu, self.table, self.cache, self.out = gpu, table, cache, out
        # your lines

    def __call__(self, token, position):   # two ints; returns out
        return ...   # your lines
''',
    hole="""\
# your lines

    def __call__(self, token, position):   # two ints; returns out
        return ...   # your lines""",
    budget="15 minutes, six lines",
)


# Exercise 3.


def _order(**kernels: str) -> dict[str, tuple[str, ...]]:
    return {name: tuple(actions.split(", ")) for name, actions in kernels.items()}


ORDERS = {
    "C reads act first": _order(
        A="wait, launch_dependents, read sum, write mid",
        B="prefetch, wait, launch_dependents, read mid, write act",
        C="prefetch, read act, wait, launch_dependents, read mid, write x",
    ),
    "launch_dependents first": _order(
        A="launch_dependents, wait, read sum, write mid",
        B="launch_dependents, prefetch, wait, read mid, write act",
        C="launch_dependents, prefetch, wait, read act, read mid, write x",
    ),
    "B never waits": _order(  # as it needs nothing from A
        A="wait, launch_dependents, read sum, write mid",
        B="launch_dependents, write count",
        C="prefetch, wait, launch_dependents, read mid, write x",
    ),
    "C clears sum first": _order(
        A="wait, launch_dependents, read sum, write mid",
        B="prefetch, wait, launch_dependents, read mid, write act",
        C="write sum, wait, launch_dependents, read act, read mid, write x",
    ),
    "launch_dependents first, then C clears": _order(
        A="launch_dependents, wait, read sum, write mid",
        B="launch_dependents, prefetch, wait, read mid, write act",
        C="launch_dependents, write sum, wait, read act, read mid, write x",
    ),
}
SAFE = {"launch_dependents first", "C clears sum first"}


def _schedules(answer) -> str:
    if not isinstance(answer, dict) or set(answer) != set(ORDERS):
        raise WrongAnswer(f"expected a dict with {', '.join(map(repr, ORDERS))}, got {answer!r}")
    if all(given is ... for given in answer.values()):
        call(lambda: ...)  # untouched
    for name, kernels in ORDERS.items():
        given = answer[name]
        if isinstance(given, list | tuple) and all(isinstance(turn, str) for turn in given):
            given = "".join(given)
        if not isinstance(given, str | type(...)):
            raise WrongAnswer(f'{name}: expected "safe" or a schedule such as "AAB", got {given!r}')
        if given is ...:
            raise WrongAnswer(f"{name}: not answered yet. The answers before it are right.")
        if given.strip().lower() == "safe":
            if name not in SAFE:
                raise WrongAnswer(
                    f"{name}: it is not safe. Which kernel can still be running when another reads or writes the same "
                    "buffer?"
                )
            continue
        try:
            played = play(kernels, given.strip().upper())
        except ValueError as error:
            raise WrongAnswer(f"{name}: {error}.") from None
        if played.hazard is None:
            raise WrongAnswer(f"{name}: this schedule is possible, but no kernel in it touches a buffer too early.")
    return "Your schedules show that 3 of the 5 orders are unsafe. The other 2 are safe in every possible schedule."


schedules = Exercise(
    name="schedules",
    judge=_schedules,
    spec='For each order, a schedule in which a kernel touches a buffer too early, or "safe" where there is none.',
    skeleton="""\
answer = {
    "C reads act first": ...,
    "launch_dependents first": ...,
    "B never waits": ...,
    "C clears sum first": ...,
    "launch_dependents first, then C clears": ...,
}
""",
    hole="""\
    "C reads act first": ...,
    "launch_dependents first": ...,
    "B never waits": ...,
    "C clears sum first": ...,
    "launch_dependents first, then C clears": ...,
""",
    budget="20 minutes, five short texts",
)
