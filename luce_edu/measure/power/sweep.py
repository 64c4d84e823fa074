"""Measure speed and draw of decoding at one power limit after another.

A point is measured after draw and clock have settled under its limit, which is checked by readings.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from luce_edu.measure.energy import measure_energy, measure_idle
from luce_edu.measure.nvml import Sensors, or_none
from luce_edu.measure.power.limits import PowerLimit
from luce_edu.measure.records.rows import SweepPoint, SweepRow

SETTLE_WINDOW_S = 1.0  # about the time over which the driver averages the draw
SETTLE_WINDOWS = 3  # two may agree by chance while the draw swings
SETTLED_WITHIN = 0.02  # relative, between the lowest and the highest window
SETTLE_AT_MOST_S = 40.0
MEASURED_S = 4.0
LOOK_EVERY_S = 0.25  # between readings of the clock while a point is measured

Progress = Callable[[str], None]


def check_limits(limits_w: Sequence[float], sensors: Sensors) -> None:
    """Raise ValueError, with the range, if a limit is out of the GPU's range, or if there is none. Sets nothing."""
    if not limits_w:
        raise ValueError("limits: expected at least one, such as 200")
    for limit_w in limits_w:
        PowerLimit(limit_w, sensors=sensors, allow=True)  # checks the limit without setting it


def sweep(
    run: Callable[[], int],
    sensors: Sensors,
    limits_w: Sequence[float],
    *,
    system: str,
    context: int,
    allow: bool,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[float], None] = time.sleep,
    progress: Progress = lambda _: None,
    save: Callable[[SweepRow], None] = lambda _: None,
) -> SweepRow:
    """Measure at each limit in the given order, and restore the earlier limit after each.

    run   decodes with `system` after `context` tokens for a short time, waits for it and returns the number of tokens
    save  called with the row after each point, so that an interruption does not lose it
    Raises what PowerLimit raises; ValueError for a bad limit before anything is set.
    """
    check_limits(limits_w, sensors)
    run()  # the first step loads kernels and captures graphs
    progress("idle draw")
    default_w, range_w, idle_w = (
        sensors.default_power_limit_w(), tuple(sensors.power_limit_range_w()), measure_idle(sensors, wait=wait)
    )  # fmt: skip
    points: tuple[SweepPoint, ...] = ()
    for limit_w in limits_w:
        with PowerLimit(limit_w, sensors=sensors, allow=allow) as limit:
            progress(f"{limit_w:g} W: waiting for draw and clock to settle")
            settled = settle(run, sensors, clock=clock)
            progress(f"{limit_w:g} W: measuring")
            points += (_measure(run, sensors, limit_w, settled, clock),)
            limit.check()  # another program may have set another limit meanwhile
        row = SweepRow(system, context, default_w, range_w, idle_w, points)
        save(row)
    return row


def settle(run: Callable[[], int], sensors: Sensors, *, clock: Callable[[], float] = time.perf_counter) -> bool:
    """Decode until SETTLE_WINDOWS in a row agree in draw and clock; return False if they do not in SETTLE_AT_MOST_S."""
    windows: list[tuple[float, float]] = []  # mean draw in watts, mean clock in MHz
    started = clock()
    while clock() - started < SETTLE_AT_MOST_S:
        opened, draws, clocks = clock(), [], []
        while not draws or clock() - opened < SETTLE_WINDOW_S:
            run()
            draws.append(sensors.power_w())
            clocks.append(sensors.sm_clock_mhz())
        windows = [*windows[1 - SETTLE_WINDOWS :], (statistics.fmean(draws), statistics.fmean(clocks))]
        spreads = [(max(values) - min(values)) / max(values) for values in zip(*windows, strict=True)]
        if len(windows) == SETTLE_WINDOWS and max(spreads) <= SETTLED_WITHIN:
            return True
    return False


def _measure(run, sensors: Sensors, limit_w: float, settled: bool, clock) -> SweepPoint:
    clocks: list[int] = []
    slowed: set[str] = set()
    looked = clock()

    def watched() -> int:
        nonlocal looked
        tokens = run()
        if not clocks or clock() - looked >= LOOK_EVERY_S:  # not after each run, as the GPU idles meanwhile
            clocks.append(sensors.sm_clock_mhz())
            slowed.update(or_none(sensors.slowed_by) or ())
            looked = clock()
        return tokens

    energy = measure_energy(watched, sensors, seconds=MEASURED_S, clock=clock)
    return SweepPoint(
        limit_w, statistics.fmean(clocks), draw_w=energy.joules / energy.seconds,
        tokens_per_s=energy.work / energy.seconds, tokens_per_joule=energy.per_joule,
        temperature_c=or_none(sensors.temperature_c), slowed_by=tuple(sorted(slowed)), settled=settled,
    )  # fmt: skip


def decode_run(system, context: int, steps: int) -> Callable[[], int]:
    """Return a `run` for `sweep`: `steps` tokens of a system of `luce_edu.measure.bench.systems` from `context` on."""
    system.pretend(context)

    def run() -> int:
        system.rewind(context)
        for _ in range(steps):
            system.step()
        system.wait()
        return steps

    return run


def plan(sensors: Sensors, limits_w: Sequence[float]) -> str:
    """Return in words what a sweep would do, for a user who has not allowed it. Raises ValueError for a bad limit."""
    check_limits(limits_w, sensors)
    low, high = sensors.power_limit_range_w()
    limits = ", ".join(f"{limit_w:g}" for limit_w in limits_w)
    about = len(limits_w) * (SETTLE_WINDOWS * SETTLE_WINDOW_S + MEASURED_S)
    return (
        f"would set the power limit of {sensors.uuid()} to {limits} W in turn, decode under each, {about:.0f} s "
        f"or more in all, and put it back to {sensors.chosen_power_limit_w():g} W (allowed: {low:g} to {high:g} W). "
        "Nothing was set; add --allow-power-limit"
    )

