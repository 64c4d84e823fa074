"""A trace follows Chrome's trace event format, as Perfetto reads it, and has the figures of its profile."""

import json
import math
from collections import defaultdict

import pytest

import luce_edu
from luce_edu.measure.trace import FIRST_SM, GPU, trace

NUMBER = (int, float)


@pytest.fixture(scope="module", params=[("megakernel", "laptop"), ("per_layer", "laptop"), ("per_op", "RTX 3090")])
def profile(request):
    stage, card = request.param
    return luce_edu.profile(stage, card=card, position=20)


@pytest.fixture(scope="module")
def events(profile):
    return json.loads(json.dumps(trace(profile)))["traceEvents"]


def broken_rules(events):
    """A line for each rule of the format that an event breaks; empty for a valid trace."""
    found, named, tracks = [], set(), defaultdict(list)
    for event in events:
        where = json.dumps(event)
        if event.get("ph") not in ("M", "X", "C") or not isinstance(event.get("name"), str):
            found.append(f"phase or name: {where}")
        elif type(event.get("pid")) is not int or event["ph"] != "C" and type(event.get("tid")) is not int:
            found.append(f"pid or tid: {where}")
        elif event["ph"] == "M":
            known = event["name"] in ("process_name", "thread_name") and isinstance(event["args"].get("name"), str)
            found += [] if known else [f"metadata: {where}"]
            named.add((event["name"], event["pid"], event["tid"]))
        else:
            times = [event.get("ts")] + [event.get("dur")] * (event["ph"] == "X")
            if not all(isinstance(t, NUMBER) and math.isfinite(t) and t >= 0 for t in times):
                found.append(f"times: {where}")
            elif event["ph"] == "C":
                numbers = event.get("args") and all(isinstance(v, NUMBER) for v in event["args"].values())
                found += [] if numbers else [f"counter: {where}"]
            else:
                begin, end = (round(1e3 * us) for us in (event["ts"], event["ts"] + event["dur"]))
                if abs(1e3 * event["ts"] - begin) > 1e-6 or abs(1e3 * event["dur"] - (end - begin)) > 1e-6:
                    found.append(f"no whole nanoseconds: {where}")
                tracks[event["pid"], event["tid"]].append((begin, -end))
    for (pid, tid), slices in tracks.items():
        if ("thread_name", pid, tid) not in named or ("process_name", pid, GPU) not in named:
            found.append(f"no name for {pid}, {tid}")
        ends = []
        for begin, end in sorted(slices):
            while ends and ends[-1] <= begin:
                ends.pop()
            if ends and -end > ends[-1]:  # two slices of a track are apart, or one contains the other
                found.append(f"slices cross on {pid}, {tid} at {begin} ns")
            ends.append(-end)
    return found


def test_a_trace_follows_the_format(events):
    assert broken_rules(events) == []


@pytest.mark.planted
@pytest.mark.parametrize(
    "spoil",
    [
        lambda slice_: slice_ | {"ts": "0"},
        lambda slice_: slice_ | {"dur": -1.0},
        lambda slice_: slice_ | {"ph": "Z"},
        lambda slice_: slice_ | {"tid": 4711},
        lambda slice_: slice_ | {"ts": slice_["ts"] + 0.0004},
        lambda slice_: slice_ | {"ts": round(slice_["ts"] + 0.001, 3)},
    ],
)
def test_a_spoilt_trace_does_not_follow_the_format(events, spoil):
    longest = max((e for e in events if e["ph"] == "X" and e["tid"] >= FIRST_SM), key=lambda e: e["dur"])
    assert broken_rules([*events, spoil(longest)])


def test_it_holds_launches_waits_and_drams_bytes(profile, events):
    launches = [e for e in events if e["ph"] == "X" and e["tid"] == GPU and e["name"] not in profile.order]
    assert [e["name"] for e in launches] == [name for name, *_ in profile.spans]
    assert {e["name"] for e in events if e["ph"] == "X"} & {"wait at a barrier", "wait at the grid barrier"}
    rates = [e["args"]["GB/s"] for e in events if e["ph"] == "C"]
    assert sum(rates) * 0.25e3 == pytest.approx(profile.dram_use.sum(), rel=0.01, abs=1)
    assert max(e["ts"] + e["dur"] for e in launches) == pytest.approx(profile.total_us, rel=1e-3)


def test_sms_stand_in_their_order_and_each_of_their_blocks_has_a_track(profile, events):
    tracks = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    names = sorted(tracks, key=tracks.get)
    lives = profile.events[profile.events["place"] == -1]
    assert names[0] == "launches" and [name for name in names[1:] if "slot" not in name] == [
        f"SM {sm}" for sm in sorted(set(lives["sm"].tolist()))
    ]
    assert len(set(tracks.values())) == len(tracks)
