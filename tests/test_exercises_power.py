"""The checkers of notebook 14 accept right answers in several forms, and refuse wrong ones with a reason."""

from answers import checker_tests

from luce_edu.exercises import power as exercises

# ---- Exercise 1 ----


def in_two_steps(points, loss):
    best = max(point["tokens_per_s"] for point in points)
    return min((p for p in points if p["tokens_per_s"] >= (1 - loss) * best), key=lambda p: p["draw_w"])


def by_sorting(points, loss):
    top = sorted(points, key=lambda p: -p["tokens_per_s"])[0]["tokens_per_s"]
    for point in sorted(points, key=lambda p: p["draw_w"]):
        if 1 - point["tokens_per_s"] / top <= loss:
            return point


def by_a_loop(points, loss):
    best = max(p["tokens_per_s"] for p in points)
    found = None
    for p in points:
        if (best - p["tokens_per_s"]) / best <= loss and (found is None or p["draw_w"] < found["draw_w"]):
            found = dict(p)
    return found


def against(points, loss, *, reference=None, key=None, pick=min):
    """The right answer with one change."""
    reference = reference(points) if reference else max(p["tokens_per_s"] for p in points)
    return pick((p for p in points if p["tokens_per_s"] >= (1 - loss) * reference), key=key or (lambda p: p["draw_w"]))


def stale():
    kept = []

    def knee(points, loss):
        kept.append(in_two_steps(points, loss))
        return kept[0]

    return knee


WRONG_KNEES = {
    "the lowest limit": (
        lambda points, loss: against(points, loss, key=lambda p: p["limit_w"]), "another point .* draws less"),
    "against the speed at the top limit": (
        lambda points, loss: against(
            points, loss, reference=lambda ps: max(ps, key=lambda p: p["limit_w"])["tokens_per_s"]),
        "loses .* of the best speed|draws less"),
    "the most tokens for a joule": (
        lambda points, loss: max(points, key=lambda p: p["tokens_per_s"] / p["draw_w"]),
        "of the best speed|draws less"),
    "the most tokens for a joule that is fast enough, by limit": (
        lambda points, loss: against(points, loss, key=lambda p: p["tokens_per_s"] / p["limit_w"], pick=max),
        "draws less"),
    "the fastest": (lambda points, loss: max(points, key=lambda p: p["tokens_per_s"]), "another point"),
    "the least draw of all": (lambda points, loss: min(points, key=lambda p: p["draw_w"]), "of the best speed"),
    "the loss in per cent": (lambda points, loss: against(points, loss / 100), "another point"),
    "a fixed loss": (lambda points, loss: against(points, 0.05), "of the best speed|draws less"),
    "the first that is fast enough": (
        lambda points, loss: next(p for p in points if p["tokens_per_s"] >= (1 - loss) * max(
            q["tokens_per_s"] for q in points)), "another point"),
    "a stale point": (stale(), "not one of the given points|of the best speed|draws less"),
    "a limit": (lambda points, loss: in_two_steps(points, loss)["limit_w"], "expected one of the points"),
    "nothing": (lambda points, loss: None, "expected one of the points"),
    "a point": ({"limit_w": 220, "draw_w": 220, "tokens_per_s": 411}, "expected a function"),
}  # fmt: skip


def test_the_spec_is_that_of_the_package():
    from luce_edu.measure.power.model import Point, sweet_spot

    for _ in range(50):
        points = exercises._fresh_sweep()
        spot = sweet_spot([Point(p["limit_w"], None, p["draw_w"], p["tokens_per_s"]) for p in points], 0.05)
        if exercises._is_clear(points, 0.05):
            assert in_two_steps(points, 0.05)["limit_w"] == spot.limit_w


# ---- Exercise 2 ----


def per_joule(point):
    return point["tokens_per_s"] / point["draw_w"]


def plain(ours, theirs):
    def default(side):
        return next(per_joule(p) for p in side if p["is_default"])

    def best(side):
        return max(per_joule(p) for p in side)

    return {"neither": default(ours) > default(theirs), "ours": best(ours) > default(theirs),
            "both": best(ours) > best(theirs)}  # fmt: skip


def by_joules_a_token(ours, theirs):
    joules = {
        name: {p["is_default"] or i: p["draw_w"] / p["tokens_per_s"] for i, p in enumerate(side, start=2)}
        for name, side in (("ours", ours), ("theirs", theirs))
    }
    us, them = joules["ours"], joules["theirs"]
    return {"both": min(us.values()) < min(them.values()), "neither": us[True] < them[True],
            "ours": min(us.values()) < them[True]}  # fmt: skip


def built(*, measure=per_joule, default=None, best=None, ours_against="default"):
    """The right comparison with one change."""

    def verdicts(ours, theirs):
        def set_to(side):
            return measure(default(side)) if default else next(measure(p) for p in side if p["is_default"])

        def top(side):
            return measure(best(side)) if best else max(measure(p) for p in side)

        other = set_to(theirs) if ours_against == "default" else top(theirs)
        return {"neither": set_to(ours) > set_to(theirs), "ours": top(ours) > other, "both": top(ours) > top(theirs)}

    return verdicts


WRONG_VERDICTS = {
    "by the limit, not the draw": (
        built(measure=lambda p: p["tokens_per_s"] / p["limit_w"]), "Neither is swept: .* by draw"),
    "by speed": (built(measure=lambda p: p["tokens_per_s"]), "Neither is swept"),
    "joules a token, the more the better": (
        built(measure=lambda p: p["draw_w"] / p["tokens_per_s"]), "Neither is swept"),
    "the highest limit as what it comes set to": (
        built(default=lambda side: max(side, key=lambda p: p["limit_w"])), "Neither is swept"),
    "the fastest as the best": (built(best=lambda side: max(side, key=lambda p: p["tokens_per_s"])),
        "Ours alone is swept|Both are swept"),
    "both swept where ours alone is": (built(ours_against="best"), "Ours alone is swept"),
    "theirs alone is swept": (
        lambda ours, theirs: plain(ours, theirs) | {"ours": not plain(theirs, ours)["ours"]}, "Ours alone is swept"),
    "the other way round": (
        lambda ours, theirs: {k: not v for k, v in plain(ours, theirs).items()}, "Neither is swept"),
    "the headline for all": (
        lambda ours, theirs: dict.fromkeys(plain(ours, theirs), plain(ours, theirs)["ours"]), "swept"),
    "one verdict": (lambda ours, theirs: plain(ours, theirs)["both"], "expected a dict"),
    "a key missing": (lambda ours, theirs: {"neither": True, "both": True}, "expected a dict with the keys"),
    "names": (
        lambda ours, theirs: {k: "ours" if v else "theirs" for k, v in plain(ours, theirs).items()},
        "expected True or False"),
    "a dict": ({"neither": False, "ours": True, "both": True}, "expected a function"),
}  # fmt: skip


KNEES = {function.__name__: function for function in (in_two_steps, by_sorting, by_a_loop)}
VERDICTS = {"plain": plain, "by joules a token": by_joules_a_token, "built": built()}
test_right_answers_pass, test_wrong_answers_are_refused = checker_tests(
    (exercises.knee, KNEES, WRONG_KNEES), (exercises.verdicts, VERDICTS, WRONG_VERDICTS), times=3
)


def test_the_published_pair_flips_and_is_as_published():
    from luce_edu.measure.power.model import BASELINES, sweeps
    from luce_edu.measure.records.record import Record, records_dir

    ours, theirs = exercises._PUBLISHED
    assert plain(ours, theirs) == {"neither": False, "ours": True, "both": True}
    points = sweeps(Record.load(records_dir() / "published.json"))[0].points
    assert {(p["limit_w"], p["draw_w"], p["tokens_per_s"]) for p in ours} == {
        (p.limit_w, p.draw_w, p.tokens_per_s) for p in points
    }
    assert per_joule(theirs[0]) == BASELINES[1].point.tokens_per_joule
