"""Write a profile as a trace over time for Perfetto (ui.perfetto.dev) and chrome://tracing.

The format is Chrome's JSON, a list of events with times in µs. One track shows the launches and, inside the megakernel,
its phases. Each SM has one track per block that it holds at a time, with the kernel or phase of the block and inside it
the block's waits at barriers. A counter shows the rate of DRAM. Source: "Trace Event Format", a document of the
Chromium project.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from luce_edu.measure.profile import BUCKET_US, Profile, completions

# In the format, the card is a process and its tracks are threads. Perfetto shows the thread with the process's number
# first, then the others in order of their numbers.
GPU = 1
FIRST_SM, SLOTS = 10_000, 100  # number of SM 0's first track; tracks per SM, more than it can hold blocks


def trace(profile: Profile) -> dict:
    """Return the trace of a profile as a dict for JSON."""
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
    """Raise OSError, which names the file, if it cannot be written. Leaves no new file."""
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
    """Round to whole nanoseconds. Perfetto would round otherwise, and drop slices that then overlap."""
    return round(time, 3)


def _name(kind: str, name: str, tid: int = GPU) -> dict:
    return {"ph": "M", "name": f"{kind}_name", "pid": GPU, "tid": tid, "args": {"name": name}}


def _slice(name: str, begin: float, end: float, tid: int = GPU, **args) -> dict:
    """Return a slice on a track. A slice within an earlier one is shown inside it."""
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
    """Yield the blocks on the tracks of their SM, which has as many tracks as blocks at the same time."""
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
