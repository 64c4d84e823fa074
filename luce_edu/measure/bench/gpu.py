"""`luce-edu gpu`: the parts of `evidence` and the tests within six minutes, the most valuable first.

Each step runs in its own process, so a kernel that crashes, hangs or breaks the CUDA context costs one step. The
processes are forked from this one, which imports PyTorch and loads the model once. This process never calls CUDA,
because CUDA does not work in a fork of a process that has used it. No step changes a setting of the GPU.

The record always says what is still to be done: a step has a row in `not_run` until it has ended without a failure. A
second call in the same folder runs the steps that have such a row.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib.util
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from luce_edu.backends.devices import DRIVER_FOR_CUDA
from luce_edu.errors import NotMeasured
from luce_edu.measure.bench import evidence
from luce_edu.measure.bench.ablations import STAGE, SYSTEMS
from luce_edu.measure.bench.bench import CONTEXTS, PROMPT, reason
from luce_edu.measure.constants import KERNELS, SOURCE
from luce_edu.measure.nvml import Sensors
from luce_edu.measure.records.record import Record, commit
from luce_edu.measure.records.rows import GpuTests, NotRun, Recorded
from luce_edu.stages import STAGES
from luce_edu.stages.dims import BLOCK_THREADS

BUDGET = 350.0  # seconds for everything: six minutes with the start and the end of Python
DRAWING = 15.0  # of these, for the figures at the end
LOOKING = 60.0  # seconds for the first look, in which a broken driver may hang
OLDEST_CUDA_CORE = (1, 0)  # older versions have another name for a cooperative launch
TESTS = Path(__file__).resolve().parents[3] / "tests"
PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that a process gets when its parent ends

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """A piece of work that runs in its own process.

    parts     the parts of the record that it fills
    estimate  seconds on a card such as an H100, estimated from the work; the step is not begun if less time is left
    limit     seconds after which it is stopped
    run       called with folder, model name, model and progress; returns what failed or was left out, else ""
    """

    name: str
    parts: Sequence[str]
    estimate: float
    limit: float
    run: Callable[[Path, str, object, Progress], str]


def steps() -> list[Step]:
    """Return the steps in order of value, because the machine may be taken away at any time.

    First the last stage, the two that the course compares, and the constants of the hardware; then the other stages.
    Where each step takes as long as estimated, those behind the ablations need a second call.
    """
    side_by_side = [*STAGES, "transformers"]
    # Python sets the time of eager, at any context, and it is the slowest.
    at_contexts = [system for system in side_by_side if system != "eager"]
    last, mega, rival, *others = [
        _measured(f"stage {stage}", 15, 60, ["verify", "decode"], [stage]) for stage in reversed(STAGES)
    ]
    return [
        last,
        mega,
        rival,
        _measured("constants", 10, 30, ["launch", "bandwidth"]),
        *others,
        _measured("paths", 18, 60, ["verify_paths"], STAGES),
        _measured("prompts", 66, 120, ["verify_prefill"], STAGES),
        _measured("side by side", 76, 120, ["decode", "prefill", "energy"], side_by_side),
        _measured("ablations", 50, 90, ["ablations"], [STAGE, *SYSTEMS]),
        _measured("contexts", 55, 120, ["decode"], at_contexts, [n for n in CONTEXTS if n != PROMPT]),
        Step("tests", ["tests"], 40, 90, _run_tests),
        _measured("tasks", 30, 60, ["tasks"]),  # torch.compile of a few lines takes some ten seconds
        # Last, because torch.compile of 24 layers takes a minute or more on the CPU.
        _measured("compiled", 90, 150, ["decode"], ["transformers, compiled"]),
    ]


def _measured(name, estimate, limit, parts: Sequence[str], systems=None, contexts: Sequence[int] = (PROMPT,)) -> Step:
    """Return a step that runs parts of `evidence`, for some systems or all."""

    def run(out: Path, model_name: str, model, progress: Progress) -> str:
        left_out = [] if "verify" in parts or systems is None else _unverified(out, systems)
        chosen = None if systems is None else [system for system in systems if system not in left_out]
        record = evidence.gather(
            out, model_name=model_name, model=model, only=parts, systems=chosen, contexts=contexts, progress=progress
        )
        reports = [record.parts[part] for part in parts if part in evidence.VERIFIED and part in record.parts]
        rows = [row for report in reports for row in report.rows if row.stage in (chosen or STAGES)]
        failed = [f"{stage} does not verify" for stage in dict.fromkeys(r.stage for r in rows if not r.passed)]
        failed += [str(row) for row in record.not_run if row.kind != "absent" and row.concerns(parts, chosen)]
        return "; ".join([*failed, *(f"without {stage}, which has not been verified" for stage in left_out)])

    return Step(name, parts, estimate, limit, run)


def _unverified(out: Path, systems: Sequence[str]) -> list[str]:
    """Return the stages whose verification crashed or hung; in one process they would stop the other stages too."""
    report = Record.load(out / evidence.RECORD).parts.get("verify")
    ended = {row.stage for row in report.rows} if report else ()
    return [stage for stage in STAGES if stage in systems and stage not in ended]


def _run_tests(out: Path, model_name: str, model, progress: Progress) -> str:
    """Run `pytest -m gpu` on the files with such tests; without pytest or tests, list them as absent."""
    absent = "" if TESTS.is_dir() else "there are no tests here; run from a checkout"
    if not importlib.util.find_spec("pytest"):
        absent = "pytest is not installed; pip install pytest"
    def say(content: Recorded) -> None:
        content.not_run = [left for row in content.not_run if (left := row.without(["tests"]))]
        if absent:
            content.not_run.append(NotRun(("tests",), absent, kind="absent"))

    _edit(out, say)
    if absent:
        return ""
    files = [str(path) for path in sorted(TESTS.rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text("utf-8")]
    report = out.resolve() / "tests.xml"
    report.unlink(missing_ok=True)
    without = ["-p", "no:cacheprovider", "-p", "no:nbval"]  # loading nbval takes a second or two
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *without, f"--junitxml={report}", *files]
    progress(" ".join(command))
    done = subprocess.run(command, cwd=TESTS.parent, stdin=subprocess.DEVNULL)
    if not report.exists():
        raise NotMeasured(f"pytest ended with status {done.returncode} and no report; see tests.log")
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [f"{case.get('classname')}::{case.get('name')}" for case in cases if _has(case, "failure", "error")]
    skipped = sum(_has(case, "skipped") for case in cases)
    result = GpuTests(len(cases) - len(failed) - skipped, skipped, tuple(failed))
    _edit(out, lambda content: content.parts.update(tests=result))
    return "; ".join(failed)


def _has(case: ElementTree.Element, *tags: str) -> bool:
    return any(case.find(tag) is not None for tag in tags)


def run(out: str | Path, *, draw: Callable[[Record, Path], list[Path]], model_name: str = "random-0.8b",
        say: Progress = print) -> tuple[Record, list[Path]]:  # fmt: skip
    """Look at the machine, run the steps that the record in `out` lacks, draw figures; return record and figures.

    draw  writes the figures of a record into a folder, and returns their paths
    Raises NotMeasured, with a line to type, for a machine that cannot be used, before anything runs; ValueError and
    OSError as `evidence.gather` does.
    """
    from luce_edu.models import load_model

    begun, out = time.monotonic(), Path(out)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fork has no copies of a thread pool's threads, and waits for them forever
    with _signals_interrupt():
        try:
            for line in _apart(look, LOOKING, threads=threads):
                say(line)
            model = load_model(model_name)
            out.mkdir(parents=True, exist_ok=True)
            todo = _apart(lambda _: _begin(out, model_name), LOOKING, threads=threads)
            for step in steps():
                if step.name in todo:
                    left = BUDGET - DRAWING - (time.monotonic() - begun)
                    outcome = _run_step(step, out, model_name, model, left, threads)
                    say(f"{time.monotonic() - begun:4.0f} s  {step.name}: {outcome or 'done'}")
            record = Record.load(out / evidence.RECORD)
            try:
                limit = max(DRAWING, BUDGET - (time.monotonic() - begun))
                drawn = _apart(lambda _: draw(record, out), limit, out / "figures.log", threads)
            except (NotMeasured, ValueError, OSError) as error:
                say(f"no figures: {error}")
                drawn = []
        finally:
            torch.set_num_threads(threads)
    return record, drawn


def _run_step(step: Step, out: Path, model_name: str, model, left: float, threads: int) -> str:
    """Run one step; write into the record what failed, and return it; "" for nothing."""
    if left < step.estimate:
        outcome = f"not begun: it takes about {step.estimate:.0f} s, and of {BUDGET:.0f} s {max(0, left):.0f} are left"
        _list(out, step, outcome)
        return outcome

    def attempt(progress: Progress) -> str:
        try:
            return step.run(out, model_name, model, progress)
        except Exception as error:
            return f"{reason(error)}; see {log.name}"

    log = out / f"{step.name.replace(' ', '-')}.log"
    _list(out, step, "it was interrupted")  # replaced when the step ends
    try:
        outcome = _apart(attempt, min(step.limit, left), log, threads)
    except NotMeasured as error:
        outcome = f"{error}; see {log.name}"
    _list(out, step, outcome)
    return outcome


def _begin(out: Path, model_name: str) -> list[str]:
    """Begin or continue the record in `out`, list the steps to run in it, and return their names."""
    content, path = evidence.begin_record(out, model_name)
    listed = {row.step for row in content.not_run}
    todo = [
        step for step in steps() if step.name in listed or any(evidence.lacks(content, part) for part in step.parts)
    ]
    content.not_run += [_open(step, "not begun") for step in todo if step.name not in listed]
    Record(path.stem, content).save(path)
    return [step.name for step in todo]


def _edit(out: Path, change: Callable[[Recorded], object]) -> None:
    record = Record.load(out / evidence.RECORD)
    change(record.content)
    record.save(out / evidence.RECORD)


def _open(step: Step, why: str) -> NotRun:
    """Return the row of a step that is still to be done."""
    return NotRun(tuple(step.parts), why, step=step.name, kind="unfinished")


def _list(out: Path, step: Step, why: str) -> None:
    """Write into the record why a step is still to be done; "" removes its row."""

    def change(content: Recorded) -> None:
        content.not_run = [row for row in content.not_run if row.step != step.name]
        content.not_run += [_open(step, why)] if why else []

    _edit(out, change)


# ---- Processes ----


def _apart(task: Callable[[Progress], object], limit: float, log: Path | None = None, threads: int = 1):
    """Run `task` in a forked process and return its result.

    Raises NotMeasured if the process died or took longer than `limit` seconds, and for any error of the task except
    ValueError and OSError, which are raised again here.
    log  a file for its output, its progress with the time, and tracebacks
    """
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(task, send, log, threads))
    process.start()
    try:
        process.join(limit)
        if process.exitcode is None:
            hangs = "" if log else ", so the GPU or its driver may hang; restart the machine"
            raise NotMeasured(f"cut off after {limit:.0f} s{_last_line(log)}{hangs}")
        if process.exitcode < 0:
            raise NotMeasured(f"ended by {signal.Signals(-process.exitcode).name}{_last_line(log)}")
        if not receive.poll():
            raise NotMeasured(f"ended with status {process.exitcode}{_last_line(log)}")
        answer = receive.recv()
    finally:
        for kill in (lambda: os.killpg(process.pid, signal.SIGKILL), process.kill):  # its children too
            with suppress(ProcessLookupError):
                kill()
        process.join(10)
        receive.close()
        send.close()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _child(task, send, log: Path | None, threads: int) -> None:
    os.setpgid(0, 0)  # Ctrl-C goes to the parent alone, which then ends this group
    with suppress(AttributeError):  # only Linux has prctl
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent may ignore them
        signal.signal(number, signal.SIG_DFL)
    with open(log or os.devnull, "w", buffering=1) as file, open(os.devnull) as nothing:
        for source, target in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(source.fileno(), target)
        sys.stdout = sys.stderr = file
        faulthandler.enable(file)
        logging.basicConfig(stream=file, force=True)
        logging.getLogger("luce_edu").setLevel(logging.DEBUG)
        torch.set_num_threads(threads)
        begun = time.monotonic()
        try:
            answer = task(lambda line: print(f"{time.monotonic() - begun:6.1f} s  {line}"))
        except Exception as error:
            kinds = (kind for kind in (NotMeasured, ValueError, OSError) if isinstance(error, kind))
            # A new exception of a plain type, because not every exception can be pickled.
            answer = next((kind(str(error)) for kind in kinds), NotMeasured(reason(error)))
        send.send(answer)


def _last_line(log: Path | None) -> str:
    """Return the last progress of a process that ended, from its log."""
    lines = log.read_text(errors="replace").split("\n") if log and log.exists() else []
    said = [line.partition(" s  ")[2] for line in lines if re.match(r" *\d+\.\d s  ", line)]
    return f", at: {said[-1]}" if said else ""


@contextmanager
def _signals_interrupt():
    """Let SIGTERM and SIGHUP end this command as Ctrl-C does, unless they were ignored at the start (nohup)."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- The first look ----


def look(progress: Progress) -> list[str]:
    """Describe this machine, a line each; raise NotMeasured, with a line to type, if something is missing."""
    progress("packages")
    if not torch.version.cuda:
        raise NotMeasured(f"PyTorch {torch.__version__} is built without CUDA; type: pip install torch")
    cuda = int(torch.version.cuda.split(".")[0])
    install = f"type: pip install --upgrade 'cuda-core[cu{cuda}]'"
    try:
        cuda_core = version("cuda-core")
    except PackageNotFoundError:
        raise NotMeasured(f"cuda-core is not installed; {install}") from None
    if tuple(map(int, re.findall(r"\d+", cuda_core)[:2])) < OLDEST_CUDA_CORE:
        raise NotMeasured(f"cuda-core {cuda_core} is too old, 1.0 or newer is needed; {install}")
    progress("driver")
    driver = DRIVER_FOR_CUDA.get(cuda, max(DRIVER_FOR_CUDA.values()))
    try:
        torch.cuda.init()
    except Exception as error:
        raise NotMeasured(
            f"no CUDA GPU can be used here ({reason(error)}); PyTorch {torch.__version__} for CUDA "
            f"{torch.version.cuda} needs an NVIDIA GPU and driver {driver} or newer; "
            f"type: sudo apt install nvidia-driver-{driver}"
        ) from None
    progress("backend")
    try:
        backend = evidence.make_backend("cuda")  # refuses a GPU that is too old, or that PyTorch has no code for
    except ValueError as error:
        raise NotMeasured(str(error)) from None
    progress("first kernel")
    try:
        kernel = backend.compile(SOURCE, KERNELS, {"BLOCK_THREADS": BLOCK_THREADS})["nothing"]
        backend.launch(kernel, 1, BLOCK_THREADS, 0, ())
        backend.synchronize()
    except Exception as error:
        raise NotMeasured(f"a first, empty kernel cannot be compiled and run: {reason(error)}; {install}") from None
    progress("machine")
    return _describe()


def _describe() -> list[str]:
    """Return the versions and the state of the GPU, a line each."""
    machine = evidence.machine()
    lines = [f"{name} {number or 'not installed'}" for name, number in machine.versions.items()]
    lines += [
        f"NVRTC {_nvrtc()}",
        f"commit {commit() or 'unknown, as there is no git or no checkout'}",
        f"{machine.gpu}, {machine.arch}, {machine.sm_count} SMs, {machine.memory_bytes / 2**30:.0f} GiB, "
        f"driver {machine.driver or 'unknown'}",
    ]
    try:
        sensors = Sensors.open()
        lines.append(
            f"as found: SM clock {sensors.sm_clock_mhz()} MHz, memory clock {sensors.memory_clock_mhz()} MHz, "
            f"power limit {sensors.power_limit_w():g} W"
        )
    except NotMeasured as error:
        lines.append(f"no clocks, no power limit and no energy: {error}")
    return lines


def _nvrtc() -> str:
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    return f"{major}.{minor}"
