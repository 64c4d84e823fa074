"""One call measures a machine or gives a reason for each part; it continues a record, and overwrites no other one."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_evidence import MACHINE, Machine

import luce_edu
from luce_edu import cli, load_model
from luce_edu.backends import make_backend
from luce_edu.errors import NotMeasured
from luce_edu.measure.bench import evidence
from luce_edu.measure.bench.bench import STEPS
from luce_edu.measure.bench.evidence import BENCHED, PARTS, gather
from luce_edu.measure.records import record as record_module
from luce_edu.measure.records.record import Record, RecordError, commit
from luce_edu.measure.records.rows import NotRun
from luce_edu.stages import STAGES
from luce_edu.verification import verify, verify_paths, verify_prefill

ROOT = Path(luce_edu.__file__).resolve().parents[1]
REAL_VERIFY = evidence._verify  # which the fake machine replaces
SYSTEMS = ("graph", "megakernel")  # of the fake machine
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture
def machine(monkeypatch) -> Machine:
    fake = Machine()
    fake.install(monkeypatch)
    return fake


def measured(out, **options) -> Record:
    return gather(out, model_name="tiny", **options)


def written(out) -> Record:
    """The record in the folder, checked as it is loaded."""
    return Record.load(out / "record.json")


def reasons(record) -> dict[str, str]:
    """The reasons of the rows that were not run, by the name shown."""
    found = {row.what: row.reason for row in record.not_run}
    assert len(found) == len(record.not_run), "each is listed once"
    return found


def raising(error):
    """A function that raises this error, whatever its arguments."""

    def fail(*args, **options):
        raise error

    return fail


# ---- Everything is measured ----


def test_a_machine_is_measured_part_by_part_into_one_record(machine, tmp_path):
    said = []
    record = measured(tmp_path / "new" / "folder", progress=said.append)
    assert written(tmp_path / "new" / "folder").content == record.content
    assert list(record.parts) == list(PARTS) and record.not_run == []
    assert machine.happened == ["backend", *PARTS[:6], "check", *BENCHED, "close", "ablations"]
    assert {(row.system, row.context) for row in record.parts["decode"]} >= {("graph", 1), ("megakernel", 2048)}
    assert record.parts["launch"] == machine.launch
    assert record.parts["energy"][0].idle_w == 70.0
    assert record.content.machine == dataclasses.replace(MACHINE, sm_clock_mhz=1755, memory_clock_mhz=2619)
    assert record.provenance.startswith("recorded: NVIDIA Fake 80GB at 350 W, driver 580.65.06, ")
    assert {"launch", "bandwidth"} <= set(said)


def test_the_command_prints_the_table_draws_figures_and_ends_with_0(machine, tmp_path, capsys):
    assert cli.main(["evidence", "--out", str(tmp_path), "--model", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "megakernel" in out and "decode at 2,048" in out and "not run" not in out
    assert "record.json, " in out and list(tmp_path.glob("*.svg"))


def test_contexts_are_those_that_the_model_has_room_for(machine, tmp_path):
    record = measured(tmp_path, only=["decode"])
    room = load_model("tiny").config.max_position_embeddings
    assert max(row.context for row in record.parts["decode"]) == 2048 <= room - 4 * STEPS


def test_a_model_without_room_to_time_anything_says_so(machine, tmp_path, monkeypatch):
    model = load_model("tiny")
    small = dataclasses.replace(model, config=dataclasses.replace(model.config, max_position_embeddings=200))
    monkeypatch.setattr("luce_edu.models.load_model", lambda name: small)
    assert reasons(measured(tmp_path)) == {", ".join(BENCHED): "the model has room for 200 tokens, too few to time"}


# ---- Nothing can be measured ----


@WITHOUT_GPU
def test_without_a_gpu_every_part_has_its_reason_and_the_status_is_3(tmp_path, capsys):
    assert cli.main(["evidence", "--out", str(tmp_path), "--model", "tiny"]) == 3
    record = written(tmp_path)
    assert record.not_run == [NotRun(PARTS, "no CUDA GPU here; nothing is measured on the virtual GPU")]
    assert record.parts == {} and record.gpu == "none"
    out = capsys.readouterr().out
    assert all(part in out for part in PARTS) and "record.json" in out


def test_a_gpu_older_than_turing_is_refused_by_name(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr(evidence, "make_backend", make_backend)
    assert cli.main(["evidence", "--out", str(tmp_path), "--model", "tiny"]) == 3
    (row,) = written(tmp_path).not_run
    assert row.parts == PARTS and "Tesla V100-SXM2-16GB has compute capability 7.0; Turing" in row.reason


@pytest.mark.parametrize(
    "error, reason",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ..."), "the GPU's memory does not suffice"),
        (RuntimeError("CUDA driver version is insufficient\nfor CUDA runtime version"),
         "RuntimeError: CUDA driver version is insufficient"),
    ],
)  # fmt: skip
def test_a_gpu_that_cannot_hold_the_model_or_does_not_work_is_a_record_with_the_reason(
    machine, tmp_path, monkeypatch, error, reason
):
    monkeypatch.setattr("luce_edu.models.Model.weights_on", raising(error))
    assert measured(tmp_path).not_run == [NotRun(PARTS, reason)]


def test_energy_without_sensors_costs_the_energy_alone(machine, tmp_path):
    machine.no_sensors = NotMeasured("NVML: no permission")
    record = measured(tmp_path)
    assert set(record.parts) == set(PARTS) - {"energy"}
    assert reasons(record) == {"energy": "NVML: no permission"}
    assert record.content.machine.sm_clock_mhz is None


# ---- Parts that fail ----


@pytest.mark.planted
@pytest.mark.parametrize("part", ["verify", "launch"])
def test_a_part_that_fails_is_listed_and_the_others_go_on(part, machine, tmp_path):
    machine.on[part] = torch.OutOfMemoryError("CUDA out of memory")
    record = measured(tmp_path)
    assert set(record.parts) == set(PARTS) - {part}
    assert reasons(written(tmp_path)) == {part: "the GPU's memory does not suffice"}


@pytest.mark.planted
@pytest.mark.parametrize("part", ["decode", "prefill", "energy"])
def test_a_benchmark_in_which_every_system_fails_is_no_part(part, machine, tmp_path):
    machine.on[part] = RuntimeError("out of order")
    record = measured(tmp_path)
    assert set(record.parts) == set(PARTS) - {part}
    assert reasons(record)[part] == "no system could be measured"
    assert {(row.parts, row.system) for row in record.not_run} == {((part,), system) for system in (*SYSTEMS, None)}


@pytest.mark.planted
def test_a_system_that_cannot_be_closed_costs_no_measurement(machine, tmp_path):
    machine.on["close"] = RuntimeError("CUDA error: an illegal memory access was encountered")
    record = measured(tmp_path)
    assert set(record.parts) == set(PARTS)
    assert [(row.parts, row.system) for row in record.not_run] == [(BENCHED, system) for system in SYSTEMS]


@pytest.mark.planted
def test_an_impossible_constant_is_not_recorded_and_the_rest_is(machine, tmp_path):
    machine.launch = dataclasses.replace(machine.launch, barrier_us=-0.2)
    record = measured(tmp_path)
    assert set(written(tmp_path).parts) == set(PARTS) - {"launch"}
    assert "barrier_us: " in reasons(record)["launch"]


@pytest.mark.planted
def test_stages_that_do_not_verify_end_with_1(machine, tmp_path):
    machine.wrong = {"graph"}
    assert cli.main(["evidence", "--out", str(tmp_path), "--model", "tiny"]) == 1
    assert set(written(tmp_path).parts) == set(PARTS)


@pytest.mark.planted
def test_a_part_without_a_result_ends_with_3(machine, tmp_path):
    machine.on["launch"] = NotMeasured("not today")
    assert cli.main(["evidence", "--out", str(tmp_path), "--model", "tiny"]) == 3


# ---- Records that are continued ----


def test_parts_that_are_there_are_kept_and_only_the_others_run(machine, tmp_path):
    first = measured(tmp_path, only=[*evidence.VERIFIED, "decode"])
    machine.happened.clear()
    machine.launch = dataclasses.replace(machine.launch, plain_us=5.0)
    record = measured(tmp_path)
    others = ["launch", "bandwidth", "tasks", "check", "prefill", "energy", "close", "ablations"]
    assert machine.happened == ["backend", *others]
    assert all(record.parts[part] == first.parts[part] for part in ("verify", "decode"))
    assert set(record.parts) == set(PARTS) and record.parts["launch"].plain_us == 5.0
    machine.happened.clear()
    assert measured(tmp_path).parts == record.parts
    assert machine.happened == ["backend"]


def test_only_runs_what_it_names_again_and_leaves_the_rest(machine, tmp_path):
    first = measured(tmp_path)
    machine.happened.clear()
    machine.launch = dataclasses.replace(machine.launch, plain_us=5.0)
    record = measured(tmp_path, only=["launch"])
    assert machine.happened == ["backend", "launch"]
    assert record.parts["launch"].plain_us == 5.0
    assert {part: value for part, value in record.parts.items() if part != "launch"} == {
        part: value for part, value in first.parts.items() if part != "launch"
    }
    assert record.content.machine == first.content.machine, "with the clocks of the decode part"
    assert cli.main(["evidence", "--out", str(tmp_path), "--model", "tiny", "--only", "launch"]) == 0


def test_reasons_of_a_part_are_replaced_when_it_runs_again(machine, tmp_path):
    machine.on = {what: RuntimeError("out of order") for what in ("launch", "decode", "energy")}
    before = measured(tmp_path).not_run
    assert {("launch", None), ("decode", None), ("decode", "graph"), ("energy", "graph")} < {
        (part, row.system) for row in before for part in row.parts
    }
    machine.on.pop("decode")
    assert measured(tmp_path, only=["decode"]).not_run == [row for row in before if "decode" not in row.parts]
    machine.on.clear()
    assert measured(tmp_path).not_run == []
    machine.on["check"] = RuntimeError("no weights")
    lacking = measured(tmp_path, only=["decode", "prefill"]).not_run
    assert {(row.parts, row.system) for row in lacking} == {
        *((("decode", "prefill"), system) for system in SYSTEMS), (("decode",), None), (("prefill",), None)
    }  # fmt: skip
    machine.on.clear()
    left = measured(tmp_path, only=["decode"]).not_run
    assert {(row.parts, row.system) for row in left} == {(("prefill",), system) for system in (*SYSTEMS, None)}


def test_a_failed_start_of_the_bench_is_removed_when_it_starts(machine, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(evidence, "bench", raising(NotMeasured("the reference decides nothing")))
        assert reasons(measured(tmp_path)) == {", ".join(BENCHED): "the reference decides nothing"}
    assert set(reasons(measured(tmp_path, only=["decode"]))) == {"prefill, energy"}
    assert reasons(measured(tmp_path)) == {}


@pytest.mark.parametrize("at, done", [
    ("verify", []),
    ("launch", PARTS[:3]),
    ("check", PARTS[:6]),
    ("prefill", PARTS[:7]),
    ("energy", PARTS[:8]),
    ("ablations", PARTS[:9]),
])  # fmt: skip
def test_an_interruption_leaves_a_record_of_what_was_done_and_the_next_call_goes_on(at, done, machine, tmp_path):
    machine.on[at] = KeyboardInterrupt()
    assert cli.main(["evidence", "--out", str(tmp_path), "--model", "tiny"]) == 130
    assert not done and not (tmp_path / "record.json").exists() or list(written(tmp_path).parts) == list(done)
    assert not list(tmp_path.glob("*.unfinished"))
    machine.on.clear()
    machine.happened.clear()
    record = measured(tmp_path)
    assert set(record.parts) == set(PARTS) and record.not_run == []
    assert not set(done) & set(machine.happened)


@pytest.mark.planted
def test_parts_that_are_saved_only_at_the_end_are_lost_to_an_interruption(machine, tmp_path, monkeypatch):
    """The planted fault for the test above: a benchmark that does not save after each part."""
    real = evidence.bench
    monkeypatch.setattr(evidence, "bench", lambda *args, save, **options: real(*args, save=lambda _: None, **options))
    machine.on["energy"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path)
    assert "decode" not in written(tmp_path).parts


# ---- Some systems alone ----


def rows(record, part) -> dict:
    """The medians of a part, by system and context."""
    return {(row.system, row.context): row.latency_us.median for row in record.parts[part]}


def test_rows_of_some_systems_are_added_to_those_of_others(machine, tmp_path):
    first = rows(measured(tmp_path, only=["verify", "decode"]), "decode")
    machine.decode_us = 50.0
    record = measured(tmp_path, only=["verify", "decode"], systems=["graph"], contexts=[512])
    assert rows(record, "decode") == first | {("graph", 512): 50.0}
    assert [row.stage for row in record.parts["verify"].rows] == list(STAGES)
    assert [row.context for row in record.parts["decode"]] == sorted(context for _, context in first)


def test_real_verification_of_one_stage_after_another_makes_one_report(machine, tmp_path, monkeypatch):
    """On the virtual GPU in place of a GPU."""
    monkeypatch.setattr(evidence, "_verify", REAL_VERIFY)
    for part, check, options in (
        ("verify", verify, {"steps": 2}), ("verify_paths", verify_paths, {"steps": 2}),
        ("verify_prefill", verify_prefill, {"steps": 1}),
    ):  # fmt: skip
        monkeypatch.setattr(evidence, part, lambda *args, check=check, fixed=options, **options: check(
            *args, **options | fixed | {"device": "host"}))  # fmt: skip
    monkeypatch.setattr(evidence, "VERIFIED_PROMPTS", (1, 3))
    for stage in ("per_layer", "eager"):
        record = measured(tmp_path, only=evidence.VERIFIED, systems=[stage])
    assert record.not_run == []
    report, paths, prompts = (written(tmp_path).parts[part] for part in evidence.VERIFIED)
    assert [row.stage for row in report.rows] == ["eager", "per_layer"] and report.passed
    assert paths.model == "random-odd" and [row.stage for row in paths.rows] == ["eager", "per_layer"]
    assert {row.stage for row in prompts.rows} == {"eager", "per_layer"} and report.seed == prompts.seed


@pytest.mark.planted
def test_what_fails_for_one_system_takes_nothing_from_the_others(machine, tmp_path, monkeypatch):
    first = measured(tmp_path, only=["verify", "decode"])
    machine.on = {"verify": RuntimeError("out of order"), "decode": RuntimeError("out of order")}
    record = measured(tmp_path, only=["verify", "decode"], systems=["graph"], contexts=[512])
    assert set(reasons(record)) == {"graph, verify", "graph, decode at 512"}
    assert rows(record, "decode") == rows(first, "decode")
    assert [row.stage for row in record.parts["verify"].rows] == [stage for stage in STAGES if stage != "graph"]
    machine.on.clear()
    assert reasons(measured(tmp_path, only=["verify"], systems=["megakernel"])) == reasons(record), "of another system"
    machine.wrong = {"graph"}
    assert not measured(tmp_path, only=["verify"], systems=["graph"]).parts["verify"].passed
    assert not measured(tmp_path, only=["verify"], systems=["megakernel"]).parts["verify"].passed
    monkeypatch.setattr("luce_edu.models.Model.weights_on", raising(torch.OutOfMemoryError("CUDA out of memory")))
    assert rows(measured(tmp_path, only=["decode"], systems=["graph"]), "decode") == rows(first, "decode")


@pytest.mark.planted
def test_the_times_of_a_system_that_has_become_wrong_are_removed(machine, tmp_path):
    first = rows(measured(tmp_path, only=["decode"]), "decode")
    machine.token = 5
    record = measured(tmp_path, only=["decode"], systems=["graph"], contexts=[512])
    assert [row.kind for row in record.not_run] == ["wrong"]
    assert rows(record, "decode") == {key: us for key, us in first.items() if key[0] != "graph"}


def test_an_interrupted_decode_keeps_its_contexts_and_is_done_again(machine, tmp_path, monkeypatch):
    real = evidence.bench

    def bench(*args, save, **options):
        def interrupt(result):
            save(result)
            if len({row.context for row in result.decode}) == 2:
                raise KeyboardInterrupt

        return real(*args, save=interrupt, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evidence, "bench", bench)
        with pytest.raises(KeyboardInterrupt):
            measured(tmp_path)
    record = written(tmp_path)
    assert {context for _, context in rows(record, "decode")} == {1, 512}
    assert [row.parts for row in record.not_run if row.kind == "unfinished"] == [(part,) for part in BENCHED]
    record = measured(tmp_path)
    assert {context for _, context in rows(record, "decode")} == {1, 512, 520, 2048}
    assert record.not_run == []


# ---- Records of other machines, commits or versions ----


@pytest.mark.planted
@pytest.mark.parametrize(
    "change, said",
    [
        ({"gpu": "NVIDIA Other"}, "GPU NVIDIA Fake 80GB is there already, this is NVIDIA Other; name another folder"),
        ({"commit": "2" * 40}, "commit"),
        ({"commit": "1" * 40 + "+"}, "commit"),
        ({"model": "random-0.8b"}, "model tiny"),
        ({"versions": {"torch": "2.12.0"}}, "torch 2.11.0"),
        ({"versions": {"flash-linear-attention": "0.4.2"}}, "flash-linear-attention None"),
    ],
)  # fmt: skip
def test_a_record_of_another_machine_model_commit_or_version_is_refused_and_stays(
    change, said, machine, tmp_path, capsys
):
    measured(tmp_path)
    before = (tmp_path / "record.json").read_bytes()
    machine.description = dataclasses.replace(
        MACHINE, gpu=change.get("gpu", MACHINE.gpu), versions=MACHINE.versions | change.get("versions", {})
    )
    machine.commit = change.get("commit", machine.commit)
    machine.happened.clear()
    assert cli.main(["evidence", "--out", str(tmp_path), "--model", change.get("model", "tiny")]) == 2
    assert said in capsys.readouterr().err
    assert machine.happened == [] and (tmp_path / "record.json").read_bytes() == before


@pytest.mark.planted
def test_a_version_that_is_missing_now_is_refused_too(machine, tmp_path):
    measured(tmp_path)
    machine.description = dataclasses.replace(MACHINE, versions={"python": "3.12.3"})
    with pytest.raises(RecordError, match="torch 2.11.0 .*None"):
        measured(tmp_path)


FOREIGN = {
    "no JSON": ("not { json", "not a readable record"),
    "earlier": ('{"schema": "luce_edu record 1", "kind": "recorded"}', "expected schema 'luce_edu record 2', found"),
    "published": ('{"schema": "luce_edu record 2", "kind": "published", "decode": []}', "a published record is there"),
    "fields missing": ('{"schema": "luce_edu record 2", "kind": "recorded"}', "record.json: "),
}


@pytest.mark.planted
@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_file_that_is_no_such_record_is_refused_and_stays(foreign, machine, tmp_path, capsys):
    text, said = FOREIGN[foreign]
    path = tmp_path / "record.json"
    path.write_text(text)
    assert cli.main(["evidence", "--out", str(tmp_path), "--model", "tiny"]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert path.read_text() == text and machine.happened == []


# ---- Bad input ----


def test_a_folder_that_cannot_be_made_or_written_is_one_line(machine, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        assert cli.main(["evidence", "--out", str(tmp_path / out), "--model", "tiny"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("luce-edu: ") and "file" in err and err.count("\n") == 1
    assert machine.happened == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_line(machine, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert cli.main(["evidence", "--out", str(tmp_path), "--model", "tiny"]) == 2
    assert capsys.readouterr().err.startswith("luce-edu: ")


@pytest.mark.planted
def test_a_disk_that_is_full_ends_with_the_reason_and_the_last_whole_record(machine, tmp_path, monkeypatch, capsys):
    write_text = Path.write_text

    def full(self, text, **options):
        if "bandwidth" in text:
            write_text(self, text[:10])
            raise OSError(28, "No space left on device")
        return write_text(self, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    assert cli.main(["evidence", "--out", str(tmp_path), "--model", "tiny"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list(written(tmp_path).parts) == [*evidence.VERIFIED, "launch"]


@pytest.mark.parametrize("there_is_a_gpu", [True, False])
def test_an_unknown_part_or_model_is_refused_and_nothing_is_written(there_is_a_gpu, machine, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_a_gpu)
    with pytest.raises(ValueError, match="--only: .*latency, power.*verify, "):
        measured(tmp_path / "out", only=["decode", "latency", "power"])
    with pytest.raises(ValueError, match="unknown name 'huge'; expected tiny"):
        gather(tmp_path / "out", model_name="huge")
    assert not (tmp_path / "out" / "record.json").exists() and machine.happened == []


# ---- Machine and commit ----


def test_a_machine_is_described_by_pytorch_and_nvml(monkeypatch):
    fake = Machine()
    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=85 * 10**9,
        L2_cache_size=50 * 2**20,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(evidence.Sensors, "open", staticmethod(lambda: evidence.Sensors(fake.nvml, "handle")))
    found = evidence.machine()
    assert (found.gpu, found.arch, found.sm_count) == ("NVIDIA H100 80GB HBM3", "sm_90", 132)
    assert (found.driver, found.power_limit_w) == ("580.65.06", 350)
    assert found.versions["torch"] == torch.__version__ and "flash-linear-attention" in found.versions
    fake.nvml.lost_at = 0
    assert evidence.machine().power_limit_w is None
    monkeypatch.setattr(evidence.Sensors, "open", raising(NotMeasured("NVML: no NVIDIA driver here")))
    assert evidence.machine().driver is None


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A committed checkout with two files of code, which `commit` takes for its own."""
    for name in ("luce_edu/measure/records/record.py", "csrc/kernel.cu", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("first\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(record_module, "__file__", str(tmp_path / "luce_edu/measure/records/record.py"))
    return tmp_path


def git(folder, *command) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *command], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_record_that_is_written_into_the_checkout_does_not_make_it_another_commit(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert commit() == head
    (checkout / "out").mkdir()
    (checkout / "out" / "record.json").write_text("{}")
    (checkout / "README.md").write_text("second\n")
    assert commit() == head


@pytest.mark.planted
@pytest.mark.parametrize(
    "name", ["csrc/kernel.cu", "csrc/new.cuh", "luce_edu/measure/records/record.py", "luce_edu/new.py"]
)
def test_code_that_was_changed_or_added_marks_the_commit(name, checkout):
    (checkout / name).write_text("second\n")
    assert commit() == git(checkout, "rev-parse", "HEAD") + "+"


def test_without_git_there_is_no_commit(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert commit() is None
    monkeypatch.setenv("PATH", "")
    assert commit() is None


# ---- A bare machine ----

BARE = """
import sys
sys.path.insert(0, sys.argv[1])
from absent import hide
hide()
from luce_edu import cli
from fake_evidence import FOR_GOOD, Machine
Machine().install(FOR_GOOD)
status = cli.main(["evidence", "--out", sys.argv[2], "--model", "tiny"])
loaded = sorted(name for name in ("IPython", "nbformat", "traitlets", "huggingface_hub") if name in sys.modules)
print("status", status, "loaded", loaded)
"""


def test_evidence_runs_from_a_checkout_without_jupyter_rich_and_pynvml(tmp_path):
    command = [sys.executable, "-c", BARE, str(Path(__file__).parents[1]), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True)
    assert "status 0 loaded []" in done.stdout and done.stderr == "", done.stdout + done.stderr
    assert set(written(tmp_path / "out").parts) == set(PARTS)
