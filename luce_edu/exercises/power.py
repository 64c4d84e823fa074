"""Exercises of notebook 14: the knee of a power sweep, and a comparison that depends on which side is swept."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from luce_edu.exercises.base import Exercise, WrongAnswer, call

# Exercise 1.


def _fresh_sweep() -> list[dict]:
    """Draw the sweep of an invented card: limits above the draw, a noisy decline, perhaps a cliff; shuffled."""
    best, peak_w = random.uniform(60, 900), random.uniform(180, 480)
    points, limit_w = [], peak_w * random.uniform(1.1, 1.4)
    share = 1.0
    for _ in range(random.randint(5, 9)):
        draw_w = min(limit_w, peak_w) * random.uniform(0.985, 1.0)
        points.append({"limit_w": round(limit_w, 1), "draw_w": round(draw_w, 1), "tokens_per_s": best * share})
        limit_w *= random.uniform(0.82, 0.95)
        share *= random.uniform(0.97, 0.998) if limit_w < peak_w else random.uniform(0.995, 1.005)
    for _ in range(random.randint(0, 2)):
        limit_w *= 0.8
        share *= random.uniform(0.4, 0.7)
        points.append({"limit_w": round(limit_w, 1), "draw_w": round(limit_w, 1), "tokens_per_s": best * share})
    random.shuffle(points)
    return points


# Each refutes one shortcut: the fastest point is not at the highest limit; the least draw is not at the lowest limit;
# all points are within the loss; only the fastest is; the most tokens per joule lie beyond the loss. The last one has
# published figures.
_SPECIAL = (
    ([(400, 300, 99), (350, 310, 101), (300, 290, 95.5), (250, 250, 94)], 0.05),
    ([(400, 300, 100), (380, 260, 100.5), (360, 280, 99), (340, 275, 98.8)], 0.03),
    ([(400, 300, 100), (300, 295, 99.5), (200, 200, 99.2)], 0.02),
    ([(400, 300, 100), (300, 299, 96), (200, 200, 80)], 0.01),
    ([(400, 300, 100), (300, 280, 99), (200, 200, 90), (150, 150, 85)], 0.05),
    ([(420, 314, 433), (300, 299, 432), (220, 220, 411), (150, 150, 194)], 0.051),
)


def _points(rows: Sequence[tuple]) -> list[dict]:
    return [dict(zip(("limit_w", "draw_w", "tokens_per_s"), row, strict=True)) for row in rows]


def _the_knee(points: Sequence[Mapping], loss: float) -> Mapping:
    best = max(point["tokens_per_s"] for point in points)
    fast = [point for point in points if point["tokens_per_s"] >= (1 - loss) * best]
    return min(fast, key=lambda point: point["draw_w"])


def _is_clear(points: Sequence[Mapping], loss: float) -> bool:
    """Whether the knee does not depend on rounding: no point at the border of the loss, no two draws within 0.05 W."""
    best = max(point["tokens_per_s"] for point in points)
    draws = sorted(point["draw_w"] for point in points)
    near = any(abs(point["tokens_per_s"] / best - (1 - loss)) < 1e-6 for point in points)
    return not near and all(b - a > 0.05 for a, b in zip(draws, draws[1:], strict=False))


def _knee(answer) -> str:
    tasks = [(_points(rows), loss) for rows, loss in _SPECIAL]
    while len(tasks) < 60:
        points, loss = _fresh_sweep(), random.choice((0.01, 0.02, 0.05, 0.1, 0.2))
        if _is_clear(points, loss):
            tasks.append((points, loss))
    for points, loss in tasks:
        got = call(answer, [dict(point) for point in points], loss)
        if not isinstance(got, Mapping):
            raise WrongAnswer(f"expected one of the points, a dict, got {type(got).__name__}")
        want = _the_knee(points, loss)
        if dict(got) == dict(want):
            continue
        if dict(got) not in [dict(point) for point in points]:
            raise WrongAnswer(f"{got!r} is not one of the given points.")
        best = max(point["tokens_per_s"] for point in points)
        lost = 1 - got["tokens_per_s"] / best
        if lost > loss:
            told = (
                f"it loses {100 * lost:.1f} % of the best speed, {best:.1f} tok/s, which need not be at the highest "
                "limit."
            )
        else:
            told = (
                f"it draws {got['draw_w']} W, and another point that is fast enough draws less. Compare draws, not "
                "limits."
            )
        raise WrongAnswer(
            f"With a loss of {100 * loss:g} % allowed, you return the point at a limit of {got['limit_w']} W: {told} "
            f"The points as (limit W, draw W, tok/s): {_short(points)}."
        )
    return (
        f"Checked on {len(tasks)} sweeps in any order. Some limits are above the draw, and some points are far too "
        "slow; the knee is chosen by draw."
    )


def _short(points: Sequence[Mapping]) -> str:
    return ", ".join(f"({p['limit_w']:g}, {p['draw_w']:g}, {p['tokens_per_s']:.1f})" for p in points)


knee = Exercise(
    name="knee",
    judge=_knee,
    spec="Find the point of a sweep that draws least among those that lose no more speed than allowed.",
    skeleton='''\
def knee(points, loss):
    """Return the point of least draw among those that lose at most `loss` of the best speed.

    points  dicts with "limit_w", "draw_w" and "tokens_per_s", in any order
    loss    a share, such as 0.05
    """
    return ...
''',
    hole="return ...",
    budget="5 minutes, two or three lines",
)

# Exercise 2.


def _side(name: str, rows: Sequence[tuple], default: int) -> list[dict]:
    return [point | {"system": name, "is_default": i == default} for i, point in enumerate(_points(rows))]


def _fresh_side(name: str) -> list[dict]:
    points = _fresh_sweep()
    default = max(range(len(points)), key=lambda i: points[i]["limit_w"])
    if random.random() < 0.3:  # a card that does not come set to its highest limit
        default = random.randrange(len(points))
    scale = random.uniform(0.8, 1.25)
    return [
        point | {"tokens_per_s": scale * point["tokens_per_s"] / 2, "system": name, "is_default": i == default}
        for i, point in enumerate(points)
    ]


def _per_joule(point: Mapping) -> float:
    return point["tokens_per_s"] / point["draw_w"]


def _ratios(ours: Sequence[Mapping], theirs: Sequence[Mapping]) -> dict[str, float]:
    """Return our tokens per joule over theirs, by which side is swept."""
    best = {id(side): max(map(_per_joule, side)) for side in (ours, theirs)}
    (our_default,), (their_default,) = ([_per_joule(p) for p in side if p["is_default"]] for side in (ours, theirs))
    return {
        "neither": our_default / their_default,
        "ours": best[id(ours)] / their_default,
        "both": best[id(ours)] / best[id(theirs)],
    }


def _wins(ours: Sequence[Mapping], theirs: Sequence[Mapping]) -> dict[str, bool]:
    return {swept: ratio > 1 for swept, ratio in _ratios(ours, theirs).items()}


# The published pair, in which only one side was swept; a pair whose verdict changes twice; one in which a limit
# is far above the draw; one whose default is neither the highest limit nor the first point.
_PUBLISHED = (
    _side("megakernel", [(420, 314, 433), (300, 299, 432), (220, 220, 411), (150, 150, 194)], 0),
    _side("M5 Max", [(130, 130, 229)], 0),
)
_PAIRS = (
    _PUBLISHED,
    (_side("ours", [(350, 300, 400), (200, 200, 380)], 0), _side("theirs", [(350, 340, 500), (180, 180, 450)], 0)),
    (_side("ours", [(500, 200, 300), (190, 190, 290)], 0), _side("theirs", [(400, 390, 400), (300, 300, 390)], 0)),
    (_side("ours", [(200, 200, 380), (350, 300, 400), (450, 440, 410)], 1),
     _side("theirs", [(180, 180, 450), (400, 400, 480)], 1)),
)  # fmt: skip


def _verdicts(answer) -> str:
    tasks: list[tuple[list[dict], list[dict]]] = list(_PAIRS)
    kinds: dict[tuple, int] = {}
    while len(tasks) < 60:
        pair = _fresh_side("ours"), _fresh_side("theirs")
        ratios, wins = _ratios(*pair), tuple(_wins(*pair).values())
        # At most 20 of each combination of verdicts, and none that depends on rounding.
        if all(abs(ratio - 1) > 0.005 for ratio in ratios.values()) and kinds.get(wins, 0) < 20:
            kinds[wins] = kinds.get(wins, 0) + 1
            tasks.append(pair)
    for ours, theirs in tasks:
        want = _wins(ours, theirs)
        got = call(answer, *([dict(point) for point in side] for side in (ours, theirs)))
        if not isinstance(got, Mapping) or set(got) != set(want):
            raise WrongAnswer(f"expected a dict with the keys {', '.join(want)}, got {got!r}")
        for swept, is_ours in want.items():
            if got[swept] not in (True, False):
                raise WrongAnswer(f"{swept}: expected True or False, got {got[swept]!r}")
            if bool(got[swept]) != is_ours:
                raise WrongAnswer(
                    f"{_HINTS[swept]} You say {bool(got[swept])}. Ours, as (limit W, draw W, tok/s): {_short(ours)}, "
                    f"default {_default(ours)} W; theirs: {_short(theirs)}, default {_default(theirs)} W."
                )
    published = _ratios(*_PUBLISHED)
    return (
        f"Checked on {len(tasks)} pairs. In the published one, ours gets {published['neither']:.2f} times the tokens "
        f"per joule at the defaults, and {published['ours']:.2f} times once ours alone is swept: the verdict changes."
    )


_HINTS = {
    "neither": "Neither is swept: compare tokens per joule at the default limits, by draw.",
    "ours": "Ours alone is swept: compare our most tokens per joule with theirs at the default limit.",
    "both": "Both are swept: compare the most tokens per joule of each.",
}


def _default(side: Sequence[Mapping]) -> float:
    return next(point["limit_w"] for point in side if point["is_default"])


verdicts = Exercise(
    name="verdicts",
    judge=_verdicts,
    spec="Which side gets more tokens per joule: with neither swept, with ours alone swept, and with both swept?",
    skeleton='''\
def verdicts(ours, theirs):
    """Return {"neither": ..., "ours": ..., "both": ...}: whether ours gets more tokens per joule.

    neither  each at its default limit
    ours     our point of most tokens per joule, theirs at its default limit
    both     the point of most tokens per joule of each

    ours, theirs  points: dicts with "limit_w", "draw_w", "tokens_per_s" and "is_default", true for one point per side
    """
    return ...
''',
    hole="return ...",
    budget="10 minutes, four to eight lines",
)
