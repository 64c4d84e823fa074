"""A profile as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open: SM by SM over time.

The format is Chrome's JSON: a list of events, times in µs. A track has the launches, and inside the megakernel's its
phases. Each SM has a track, or one for each block that it holds at a time: the kernel or phase that the block is in,
and inside it the block's waits at barriers. A counter has DRAM's rate. Source: "Trace Event Format", a document of the
Chromium project.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from luce_edu.measure.profile import BUCKET_US, Profile, completions

# To the format the card is a process, and its tracks are threads. Perfetto shows the thread with the process's number
# first, then the others in the order of their numbers, which it writes behind their names.
GPU = 1
FIRST_SM, SLOTS = 10_000, 100  # the number of SM 0's first track; from one SM to the next, more than an SM holds blocks


def trace(profile: Profile) -> dict:
    """The trace as JSON would hold it."""
    events = [_name("process", f"{profile.card}, modelled"), _name("thread", "launches"), *_launches(profile)]
    passed = completions(profile.events, profile.places) if profile.order else {}
    events += _phases(profile, passed) if passed else []
    events += _blocks(profile, passed)
    rates = profile.dram_use / BUCKET_US / 1e3
    events += [
        {"ph": "C", "name": "DRAM", "pid": GPU, "ts": _us(i * BUCKET_US), "args": {"GB/s": round(rate, 3)}}
        for i, rate in enumerate(rates.tolist())
    ]
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": {"kind": "modelled", "what": profile.title}}


def check_writable(path: str | Path) -> None:
    """OSError, naming the file, where it cannot be written. Leaves no file behind."""
    path = Path(path)
    there = path.exists()
    with path.open("a"):
        pass
    if not there:
        path.unlink()


def write_trace(profile: Profile, path: str | Path) -> None:
    """Write the trace of a profile to a file. Raises OSError."""
    Path(path).write_text(json.dumps(trace(profile), separators=(",", ":")), encoding="utf-8")


def _us(time: float) -> float:
    """To whole nanoseconds, as Perfetto keeps time. If it has to round, slices overlap, and it drops them."""
    return round(time, 3)


def _name(kind: str, name: str, tid: int = GPU) -> dict:
    return {"ph": "M", "name": f"{kind}_name", "pid": GPU, "tid": tid, "args": {"name": name}}


def _slice(name: str, begin: float, end: float, tid: int = GPU, **args) -> dict:
    """A box on a track; one that begins and ends within another, written before it, lies inside that."""
    begin, end = _us(begin), _us(end)
    event = {"ph": "X", "name": name, "pid": GPU, "tid": tid, "ts": begin, "dur": _us(end - begin)}
    return event | ({"args": args} if args else {})


def _launches(profile: Profile) -> Iterator[dict]:
    for name, begin, us in profile.spans:
        yield _slice(name, begin, begin + us)


def _phases(profile: Profile, passed: dict[int, np.ndarray]) -> Iterator[dict]:
    _, begin, us = profile.spans[0]
    ends = [*np.max(list(passed.values()), axis=0).tolist(), begin + us]
    for name, end in zip(profile.order, ends, strict=True):
        yield _slice(name, begin, end)
        begin = end


def _blocks(profile: Profile, passed: dict[int, np.ndarray]) -> Iterator[dict]:
    """Blocks on the tracks of their SM, of which there are as many as it had blocks at the same time."""
    events = profile.events
    free: dict[int, list[float]] = {}  # by SM: when each of its tracks is free
    tracks: dict[tuple[int, int], int] = {}
    lives = events[events["place"] == -1]
    for life in lives[np.lexsort((lives["block"], lives["begin_us"]))].tolist():
        launch, sm, block, _, begin, end = life
        own = free.setdefault(sm, [])
        at = next((i for i, time in enumerate(own) if time <= begin), len(own))
        tracks[launch, block] = tid = FIRST_SM + SLOTS * sm + at
        if at == len(own):
            own.append(0.0)
            yield _name("thread", f"SM {sm}" + (f", slot {at + 1}" if at else ""), tid)
        own[at] = end
        if block not in passed:
            yield _slice(profile.spans[launch][0], begin, end, tid, block=block)
            continue
        for name, until in zip(profile.order, [*passed[block].tolist(), end], strict=True):
            yield _slice(name, begin, until, tid, block=block)
            begin = until
    for launch, _, block, place, begin, end in events[events["place"] >= 0].tolist():
        file, line = profile.places[place]
        name = "wait at the grid barrier" if file.endswith("grid_barrier.cuh") else "wait at a barrier"
        yield _slice(name, begin, end, tracks[launch, block], where=f"{file}:{line}")
