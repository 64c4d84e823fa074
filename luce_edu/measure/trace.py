"""A profile as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open: SM by SM over time.

The format is Chrome's JSON: a list of events, times in µs. There is a track of launches (for the megakernel of phases
too), and DRAM's rate as a counter. Each SM has a track with the kernel or phase that its block is in, and inside it the
block's waits at barriers. Source: "Trace Event Format", a document of the Chromium project.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from luce_edu.measure.profile import BUCKET_US, Profile, completions

GPU, SMS = 1, 2  # the trace's two processes


def trace(profile: Profile) -> dict:
    """The trace as JSON would hold it."""
    events = [_name("process", GPU, f"{profile.card}, modelled"), _name("process", SMS, "SMs")]
    events += [_name("thread", GPU, "launches", 0), *_launches(profile)]
    passed = completions(profile.events, profile.places) if profile.order else {}
    if passed:
        events += [_name("thread", GPU, "phases", 1), *_phases(profile, passed)]
    events += _blocks(profile, passed)
    rates = profile.dram_use / BUCKET_US / 1e3
    events += [
        {"ph": "C", "name": "DRAM GB/s", "pid": GPU, "ts": _us(i * BUCKET_US), "args": {"GB/s": round(rate, 3)}}
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
    return round(time, 4)


def _name(kind: str, pid: int, name: str, tid: int = 0) -> dict:
    return {"ph": "M", "name": f"{kind}_name", "pid": pid, "tid": tid, "args": {"name": name}}


def _slice(name: str, pid: int, tid: int, begin: float, end: float, **args) -> dict:
    """A box on a track; one that ends within another on it lies inside that."""
    begin, end = _us(begin), _us(end)
    event = {"ph": "X", "name": name, "pid": pid, "tid": tid, "ts": begin, "dur": _us(end - begin)}
    return event | ({"args": args} if args else {})


def _launches(profile: Profile) -> Iterator[dict]:
    for name, begin, us in profile.spans:
        yield _slice(name, GPU, 0, begin, begin + us)


def _phases(profile: Profile, passed: dict[int, np.ndarray]) -> Iterator[dict]:
    _, begin, us = profile.spans[0]
    ends = [*np.max(list(passed.values()), axis=0).tolist(), begin + us]
    for name, end in zip(profile.order, ends, strict=True):
        yield _slice(name, GPU, 1, begin, end)
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
        if at == len(own):
            own.append(0.0)
            yield _name("thread", SMS, f"SM {sm}" + (f", block {at + 1}" if at else ""), sm * 32 + at)
        own[at] = end
        tracks[launch, block] = tid = sm * 32 + at
        if block not in passed:
            yield _slice(profile.spans[launch][0], SMS, tid, begin, end, block=block)
            continue
        for name, until in zip(profile.order, [*passed[block].tolist(), end], strict=True):
            yield _slice(name, SMS, tid, begin, until, block=block)
            begin = until
    for launch, _, block, place, begin, end in events[events["place"] >= 0].tolist():
        file, line = profile.places[place]
        name = "grid barrier" if file.endswith("grid_barrier.cuh") else "barrier"
        yield _slice(name, SMS, tracks[launch, block], begin, end, where=f"{file}:{line}")
