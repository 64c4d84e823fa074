"""`luce-edu gpu` on a fake machine: a step that fails, crashes, hangs or comes too late costs no other step."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_evidence import Machine
from starting import default_signals

import luce_edu
from luce_edu import cli
from luce_edu.measure.bench import evidence, gpu
from luce_edu.measure.bench.ablations import STAGE, SYSTEMS
from luce_edu.measure.bench.bench import PROMPT
from luce_edu.measure.bench.gpu import Step
from luce_edu.measure.records.record import Record
from luce_edu.measure.records.rows import GpuTests, NotRun
from luce_edu.stages import STAGES

ROOT = Path(luce_edu.__file__).resolve().parents[1]
NAMES = ["stage streaming", "stage megakernel", "stage graph", "constants", "stage per_layer", "stage per_op",
         "stage eager", "paths", "prompts", "side by side", "ablations", "contexts", "tests", "tasks",
         "compiled"]  # fmt: skip


@pytest.fixture
def machine(monkeypatch) -> Machine:
    fake = Machine()
    fake.install(monkeypatch)
    fake.install_look(monkeypatch)
    monkeypatch.setattr(gpu, "_run_tests", lambda out, *_: gpu._edit(
        out, lambda content: content.parts.update(tests=GpuTests(9, 0, ()))) or "")  # fmt: skip
    return fake


RUN_TESTS = gpu._run_tests  # which the fake machine replaces


def command(out) -> int:
    return cli.main(["gpu", "--out", str(out), "--model", "tiny"])


def written(out) -> Record:
    return Record.load(Path(out) / "record.json")


def to_do(out) -> dict[str, str]:
    """The steps that a record lists as unfinished, with their reasons."""
    return {row.step: row.reason for row in written(out).not_run if row.kind == "unfinished"}


def few(monkeypatch, *steps: Step) -> None:
    monkeypatch.setattr(gpu, "steps", lambda: list(steps))


def step(name, run, *, estimate=0.0, limit=30.0, part="launch") -> Step:
    return Step(name, [part], estimate, limit, run)


def measures(part):
    """The function of a step that fills a part of the record."""
    return lambda out, name, model, progress: gpu._measured("", 0, 0, [part]).run(out, name, model, progress)


# ---- Nothing fails ----


def test_everything_is_in_one_record_with_figures_and_the_status_is_0(machine, tmp_path, capfd):
    assert command(tmp_path) == 0
    record = written(tmp_path)
    assert set(record.parts) == {*evidence.PARTS, "tests"} and record.not_run == []
    assert [row.stage for row in record.parts["verify"].rows] == list(STAGES)
    decoded = [(row.context, row.system) for row in record.parts["decode"]]
    assert {system for context, system in decoded if context == PROMPT} == {*STAGES, *machine.BASELINES}
    assert {context for context, _ in decoded} >= {1, 512, 2048} and len(set(decoded)) == len(decoded)
    assert {system for context, system in decoded if context == 2048} == {*STAGES, *machine.BASELINES[:1]} - {"eager"}
    assert list(tmp_path.glob("latency-*.svg"))
    out, err = capfd.readouterr()
    assert [line.split(" s  ")[1].split(":")[0] for line in out.splitlines() if line.endswith(": done")] == NAMES
    for said in ("python 3.12.3", "torch 2.11.0", "NVRTC ", "NVIDIA Fake 80GB, sm_90", "driver 580.65.06",
                 "SM clock 1755 MHz", "power limit 350 W", "commit 1111"):  # fmt: skip
        assert said in out
    assert "record.json, " in out and out.endswith(".svg\n") and err == ""


def test_steps_fit_into_their_limits_and_most_of_them_into_the_budget():
    steps = gpu.steps()
    assert [step.name for step in steps] == NAMES
    assert all(0 < step.estimate < step.limit for step in steps)
    assert gpu.BUDGET < 360 and sum(step.estimate for step in steps[:-4]) < gpu.BUDGET - gpu.DRAWING


# ---- Steps that fail ----


def crash(*_):
    os.kill(os.getpid(), signal.SIGSEGV)


def fail(*_):
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")


def hang(out, name, model, progress):
    progress("waiting at the barrier")
    time.sleep(600)


def leave(*_):
    os._exit(7)


def hold_on(out, name, model, progress):
    """Ignore every signal that can be ignored, and start a child that does so too."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (Path(out) / "pid").write_text(str(child.pid))
    child.wait()


FAULTS = {
    "an exception": (fail, "RuntimeError: CUDA error: an illegal memory access was encountered; see second.log"),
    "a signal": (crash, "ended by SIGSEGV; see second.log"),
    "a hang": (hang, "cut off after 2 s, at: waiting at the barrier; see second.log"),
    "an exit": (leave, "ended with status 7; see second.log"),
    "something left out": (lambda *_: "without graph", "without graph"),
}


@pytest.mark.planted
@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_that_fails_costs_itself_alone_and_is_done_again_by_the_next_call(
    fault, machine, tmp_path, monkeypatch, capfd
):
    run, said = FAULTS[fault]
    others = step("first", measures("launch")), step("third", measures("bandwidth"), part="bandwidth")
    few(monkeypatch, others[0], step("second", run, limit=2.0, part="verify"), others[1])
    assert command(tmp_path) == 3
    assert set(written(tmp_path).parts) == {"launch", "bandwidth"} and to_do(tmp_path) == {"second": said}
    assert f"not run: second: {said}" in capfd.readouterr().out
    few(monkeypatch, others[0], step("second", measures("verify"), part="verify"), others[1])
    command(tmp_path)
    out = capfd.readouterr().out
    assert "second: done" in out and "first: done" not in out and "third: done" not in out
    assert set(written(tmp_path).parts) == {"launch", "bandwidth", "verify"} and to_do(tmp_path) == {}


def test_a_step_that_fails_leaves_its_traceback_in_its_log(machine, tmp_path, monkeypatch):
    few(monkeypatch, step("first", fail), step("second", crash), step("third", measures("launch")))
    machine.on["launch"] = RuntimeError("no barrier today")
    command(tmp_path)
    assert "in fail" in (tmp_path / "first.log").read_text() and "and more" in (tmp_path / "first.log").read_text()
    assert "Segmentation fault" in (tmp_path / "second.log").read_text()
    log = (tmp_path / "third.log").read_text()
    assert "Traceback" in log and "no barrier today" in log and "s  launch" in log


@pytest.mark.planted
def test_a_step_that_ignores_signals_is_ended_with_its_children(machine, tmp_path, monkeypatch):
    few(monkeypatch, step("stubborn", hold_on, limit=5.0))
    assert command(tmp_path) == 3
    assert ends(int((tmp_path / "pid").read_text()))


def ends(pid: int) -> bool:
    """Whether a process ends within 10 s. A zombie has ended."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.planted
def test_a_stage_that_crashes_is_kept_away_from_the_others(machine, tmp_path):
    """It crashes whenever it runs, and would end every other stage in its process."""
    machine.crashes.add("per_layer")
    assert command(tmp_path) == 3
    record = written(tmp_path)
    others = [stage for stage in STAGES if stage != "per_layer"]
    assert [row.stage for row in record.parts["verify"].rows] == others
    assert {row.system for row in record.parts["decode"]} == {*others, *machine.BASELINES}
    assert [row.stage for row in record.parts["verify_prefill"].rows] == others
    found = to_do(tmp_path)
    assert found.pop("stage per_layer").startswith("ended by SIGSEGV")
    assert found == dict.fromkeys(
        ["paths", "prompts", "side by side", "contexts"], "without per_layer, which has not been verified"
    )
    machine.crashes.clear()
    assert command(tmp_path) == 0 and to_do(tmp_path) == {}
    assert {row.system for row in written(tmp_path).parts["decode"]} == {*STAGES, *machine.BASELINES}


def test_a_step_that_is_cut_off_keeps_what_it_had_measured_and_it_alone_runs_again(
    machine, tmp_path, monkeypatch, capfd
):
    graph = gpu._measured("stage graph", 0, 30, ["verify", "decode"], ["graph"])
    contexts = gpu._measured("contexts", 0, 5, ["decode"], ["graph", "megakernel"], [1, 512, 2048])
    few(monkeypatch, gpu._measured("stage megakernel", 0, 30, ["verify", "decode"], ["megakernel"]), graph, contexts)
    machine.hangs_at = 512
    assert command(tmp_path) == 3
    assert {row.context for row in written(tmp_path).parts["decode"]} == {1, PROMPT}
    assert list(to_do(tmp_path)) == ["contexts"] and "decode at 512: graph, round 1" in to_do(tmp_path)["contexts"]
    machine.hangs_at = 0
    capfd.readouterr()
    command(tmp_path)
    assert {row.context for row in written(tmp_path).parts["decode"]} == {1, 512, PROMPT, 2048}
    out = capfd.readouterr().out
    assert "contexts: done" in out and "stage" not in out and written(tmp_path).not_run == []


def ablations(**options) -> Step:
    return gpu._measured("ablations", 0, options.get("limit", 30), ["ablations"], [STAGE, *SYSTEMS])


@pytest.mark.planted
def test_a_variant_with_other_logits_than_the_stage_is_told_and_not_timed(machine, tmp_path, monkeypatch, capfd):
    few(monkeypatch, gpu._measured(f"stage {STAGE}", 0, 30, ["verify"], [STAGE]), ablations())
    other_bits, far = f"{STAGE}, ring of 2", f"{STAGE}, 8 warps"
    machine.logits = {other_bits: torch.ones(2, 3) * (1 + 1e-6), far: torch.ones(2, 3) + 1e-2}
    assert command(tmp_path) == 3
    timed = [row.system for row in written(tmp_path).parts["ablations"]]
    assert timed == [name for name in (STAGE, *SYSTEMS) if name not in (other_bits, far)]
    wrong = {row.system: row.reason for row in written(tmp_path).not_run if row.kind == "wrong"}
    assert "not timed: other bits than streaming" in wrong[other_bits] and set(wrong) == {other_bits, far}
    assert "differ from those of streaming by 1.0e-02, limit 0.0001" in wrong[far]
    assert other_bits in to_do(tmp_path)["ablations"] and "not timed" in capfd.readouterr().out
    machine.logits = {far: torch.ones(2, 3) * (1 + 1e-6)}
    command(tmp_path)
    assert {row.system for row in written(tmp_path).parts["ablations"]} == {STAGE, *SYSTEMS}
    assert "ablations" not in to_do(tmp_path)


def test_ablations_that_are_cut_off_keep_what_was_timed_and_go_on_from_there(machine, tmp_path, monkeypatch):
    few(monkeypatch, gpu._measured(f"stage {STAGE}", 0, 30, ["verify"], [STAGE]), ablations(limit=5))
    machine.hangs_as = list(SYSTEMS)[3]
    command(tmp_path)
    before = written(tmp_path).parts["ablations"]
    assert [row.system for row in before] == [STAGE, *list(SYSTEMS)[:3]]
    assert f"at: {machine.hangs_as}: " in to_do(tmp_path)["ablations"]
    machine.hangs_as, machine.decode_us = None, 200.0
    command(tmp_path)
    rows = {row.system: row.latency_us.median for row in written(tmp_path).parts["ablations"]}
    assert rows == {STAGE: 200.0} | {name: 100.0 if name in list(SYSTEMS)[:3] else 200.0 for name in SYSTEMS}


@pytest.mark.planted
def test_without_a_verified_stage_no_variant_runs(machine, tmp_path, monkeypatch):
    machine.crashes.add(STAGE)
    few(monkeypatch, gpu._measured(f"stage {STAGE}", 0, 30, ["verify"], [STAGE]), ablations())
    command(tmp_path)
    assert "ablations" not in written(tmp_path).parts and "ablations" not in machine.happened
    assert to_do(tmp_path)["ablations"] == "without streaming, which has not been verified"


@pytest.mark.planted
def test_a_stage_that_does_not_verify_ends_with_1_and_says_so(machine, tmp_path, capfd):
    machine.wrong = {"graph"}
    assert command(tmp_path) == 1
    assert set(written(tmp_path).parts) == {*evidence.PARTS, "tests"}
    assert to_do(tmp_path) == dict.fromkeys(["stage graph", "paths", "prompts"], "graph does not verify")
    assert "wrong: verify: graph: it differs" in capfd.readouterr().out


@pytest.mark.planted
def test_a_folder_that_cannot_be_made_ends_the_command_with_2(machine, tmp_path):
    (tmp_path / "file").write_text("")
    assert command(tmp_path / "file") == 2


# ---- Time ----


@pytest.mark.planted
def test_a_step_that_does_not_fit_the_budget_is_not_begun_and_one_that_fits_is(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "BUDGET", 60.0)
    few(
        monkeypatch, step("large", measures("launch"), estimate=50),
        step("small", measures("bandwidth"), part="bandwidth", estimate=1),
    )  # fmt: skip
    assert command(tmp_path) == 3
    assert set(written(tmp_path).parts) == {"bandwidth"}
    assert to_do(tmp_path)["large"].startswith("not begun: it takes about 50 s, and of 60 s 4")


@pytest.mark.planted
def test_the_last_step_ends_with_the_budget_and_not_with_its_own_limit(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "BUDGET", gpu.DRAWING + 7.0)
    few(monkeypatch, step("first", hang, limit=600), step("second", measures("launch"), estimate=5))
    begun = time.monotonic()
    assert command(tmp_path) == 3
    assert time.monotonic() - begun < gpu.BUDGET + 15
    found = to_do(tmp_path)
    assert found["first"].startswith("cut off after ") and found["second"].startswith("not begun: ")


# ---- Interrupted ----

INTERRUPTED = """
import sys, time
sys.path.insert(0, sys.argv[1])
import signal
from fake_evidence import FOR_GOOD, Machine
from luce_edu import cli
from luce_edu.measure.bench import gpu
machine = Machine()
machine.install(FOR_GOOD)
machine.install_look(FOR_GOOD)
def hang(out, name, model, progress):
    (out / "hanging").touch()
    time.sleep(600)
launch = lambda *args: gpu._measured("", 0, 0, ["launch"]).run(*args)
gpu.steps = lambda: [gpu.Step("first", ["launch"], 0, 60, launch), gpu.Step("second", ["verify"], 0, 600, hang),
                     gpu.Step("third", ["bandwidth"], 0, 60, hang)]
sys.exit(cli.main(["gpu", "--out", sys.argv[2], "--model", "tiny"]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_half_way_leaves_a_record_of_what_was_done_and_no_process(number, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(Path(__file__).parents[1]), str(tmp_path)], cwd=ROOT, text=True,
        env=os.environ | {"PYTHONPATH": "."}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=default_signals,
    )  # fmt: skip
    try:
        for _ in range(1200):
            if (tmp_path / "hanging").exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (-number if number == signal.SIGKILL else 130) and err == "", out + err
    assert set(written(tmp_path).parts) == {"launch"}
    assert to_do(tmp_path) == {"second": "it was interrupted", "third": "not begun"}
    assert len(children) == 1
    assert ends(int(children[0]))


# ---- Refused before anything runs ----


def without_cuda(machine, patch):
    patch.setattr(torch.version, "cuda", None)


def old_cuda_core(machine, patch):
    patch.setattr(gpu, "version", lambda package: {"cuda-core": "0.7.0"}[package])


def no_cuda_core(machine, patch):
    def missing(package):
        raise gpu.PackageNotFoundError(package)

    patch.setattr(gpu, "version", missing)


def old_driver(machine, patch):
    machine.on["init"] = RuntimeError("The NVIDIA driver on your system is too old (found version 12040).")


def no_gpu(machine, patch):
    machine.on["init"] = RuntimeError("Found no NVIDIA driver on your system.\nPlease check")


def old_gpu(machine, patch):
    machine.on["backend"] = ValueError("device 'cuda': Tesla V100 has compute capability 7.0; Turing (7.5) or newer")


def no_kernel(machine, patch):
    machine.on["probe"] = RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")


def hanging_driver(machine, patch):
    patch.setattr(gpu, "LOOKING", 1.0)
    patch.setattr(torch.cuda, "init", lambda: time.sleep(600))


REFUSED = {
    without_cuda: ("is built without CUDA", "pip install torch"),
    old_cuda_core: ("cuda-core 0.7.0 is too old, 1.0 or newer is needed", "pip install --upgrade 'cuda-core[cu13]'"),
    no_cuda_core: ("cuda-core is not installed", "pip install --upgrade 'cuda-core[cu13]'"),
    old_driver: ("too old (found version 12040)", "sudo apt install nvidia-driver-580"),
    no_gpu: ("Found no NVIDIA driver", "sudo apt install nvidia-driver-580"),
    old_gpu: ("Tesla V100 has compute capability 7.0; Turing (7.5) or newer", ""),
    no_kernel: ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "pip install --upgrade 'cuda-core[cu13]'"),
    hanging_driver: ("cut off after 1 s", "restart the machine"),
}


@pytest.mark.planted
@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault.__name__)
def test_a_machine_that_cannot_serve_is_refused_in_one_line_and_nothing_is_written(
    fault, machine, tmp_path, monkeypatch, capfd
):
    fault(machine, monkeypatch)
    assert command(tmp_path / "out") == 3
    out, err = capfd.readouterr()
    found, to_type = REFUSED[fault]
    assert found in err and to_type in err and err.count("\n") == 1 and out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.planted
def test_a_record_of_another_machine_is_refused_and_stays(machine, tmp_path, monkeypatch, capfd):
    few(monkeypatch, step("first", measures("launch")))
    assert command(tmp_path) == 3
    before = (tmp_path / "record.json").read_bytes()
    machine.description = replace(machine.description, gpu="NVIDIA Other")
    assert command(tmp_path) == 2
    assert "name another folder" in capfd.readouterr().err and (tmp_path / "record.json").read_bytes() == before


def test_an_unknown_model_is_refused_and_nothing_is_written(machine, tmp_path, capfd):
    assert cli.main(["gpu", "--out", str(tmp_path / "out"), "--model", "huge"]) == 2
    assert "unknown name 'huge'" in capfd.readouterr().err and not (tmp_path / "out").exists()


# ---- The tests that need a GPU ----


def run_tests(tmp_path, monkeypatch, text):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text("import pytest\n" + text)
    (tmp_path / "tests" / "test_other.py").write_text("import a_package_that_is_not_here\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    monkeypatch.setattr(gpu, "TESTS", tmp_path / "tests")
    few(monkeypatch, step("tests", RUN_TESTS, part="tests", limit=120))
    return command(tmp_path / "out")


def test_the_marked_tests_run_and_are_counted(machine, tmp_path, monkeypatch):
    marked = "@pytest.mark.gpu\ndef test_{}():\n    {}\n"
    text = marked.format("good", "pass") + marked.format("bad", "assert False") + marked.format("out", "pytest.skip()")
    assert run_tests(tmp_path, monkeypatch, text + "def test_unmarked():\n    assert False\n") == 1
    found = written(tmp_path / "out").parts["tests"]
    assert (found.passed, found.skipped) == (1, 1)
    assert [name.split("::")[1] for name in found.failed] == ["test_bad"]
    assert "assert False" in (tmp_path / "out" / "tests.log").read_text()


def test_without_pytest_the_tests_are_left_out_by_name(machine, tmp_path, monkeypatch, capfd):
    find_spec = gpu.importlib.util.find_spec
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name == "pytest" else find_spec(name))
    few(monkeypatch, step("tests", RUN_TESTS, part="tests"))
    command(tmp_path)
    command(tmp_path)
    row = NotRun(("tests",), "pytest is not installed; pip install pytest", kind="absent")
    assert written(tmp_path).not_run == [row] and "tests: done" in capfd.readouterr().out


# ---- A bare machine ----


def test_make_gpu_runs_it_without_an_environment_and_installs_nothing(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    make = ["make", "-s", "gpu", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}"]
    for options, said in (([], ""), (["OUT=my record"], " --out my record")):
        done = subprocess.run([*make, *options], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"-m luce_edu gpu{said}\n"), done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_it_runs_as_a_module_from_the_checkout_and_refuses_a_machine_without_a_gpu(tmp_path):
    command = [sys.executable, "-m", "luce_edu", "gpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True)
    assert done.returncode == 3 and done.stderr.startswith("luce-edu: gpu: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing, said", [("torch", "type: pip install torch"), ("nothing", "")])
def test_without_pytorch_it_says_what_to_type_and_it_needs_neither_jupyter_nor_git(missing, said, tmp_path):
    command = [sys.executable, "-c", BARE, missing, str(Path(__file__).parents[1]), str(tmp_path / "out")]
    env = os.environ | {"PYTHONPATH": ".", "PATH": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert f"status {3 if said else 0}" in done.stdout and said in done.stderr, done.stdout + done.stderr
    if not said:
        assert done.stderr == "" and set(written(tmp_path / "out").parts) == set(evidence.PARTS)
        assert "pytest is not installed" in done.stdout


BARE = """
import sys
sys.path.insert(0, sys.argv[2])
from absent import hide
hide("huggingface_hub", "pytest", sys.argv[1])
from luce_edu import cli
if sys.argv[1] != "torch":
    import importlib.util
    find_spec = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "pytest" else find_spec(name, *rest)
    from fake_evidence import FOR_GOOD, Machine
    machine = Machine()
    machine.install(FOR_GOOD)
    machine.install_look(FOR_GOOD)
print("status", cli.main(["gpu", "--out", sys.argv[3], "--model", "tiny"]))
"""
