"""The command line starts quickly, answers bad input with one line, and has an exit status for every outcome."""

import functools
import json
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import luce_edu
from luce_edu import cli, doctor
from luce_edu.measure.latency import Quartiles
from luce_edu.measure.records.rows import DecodeRow, NotRun
from luce_edu.measure.schema import as_json


class Letters:
    """A tokenizer of bytes: 'é' is two tokens."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


class Decoder:
    def stream(self, prompt, max_new_tokens, **how):
        if not prompt:
            raise ValueError("prompt: expected at least one token, got none")
        yield from "théâtre".encode()[:max_new_tokens]


@pytest.fixture
def model(monkeypatch):
    """A stand-in for models and stages. The dict holds the arguments of `decoder`."""
    asked = {}

    def load_model(name):
        return SimpleNamespace(name=name, tokenizer=Letters() if name == "tiny" else None)

    def decoder(stage, model, *, device, max_seq_len):
        asked.update(stage=stage, device=device, max_seq_len=max_seq_len)
        return Decoder()

    monkeypatch.setitem(vars(luce_edu), "load_model", load_model)
    monkeypatch.setitem(vars(luce_edu), "decoder", decoder)
    return asked


@pytest.fixture
def report(monkeypatch, model):
    """A stand-in for verify; its result is report.passed."""
    result = SimpleNamespace(passed=True, asked=None, to_dict=lambda: {"passed": result.passed})

    def verify(model, **options):
        options["progress"]("megakernel")
        result.asked = {"model": model.name, **options}
        return result

    monkeypatch.setitem(vars(luce_edu), "verify", verify)
    prefill = functools.partial(verify, prefill=True)
    monkeypatch.setitem(vars(luce_edu), "verify_prefill", prefill)
    result.paths = []
    monkeypatch.setitem(vars(luce_edu), "verify_paths", lambda **options: result.paths.append(options) or result)
    return result


def test_help_answers_within_half_a_second_and_imports_nothing_heavy():
    def seconds() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "luce_edu", "--help"], check=True, capture_output=True)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(3)) < 0.5
    code = (
        "import contextlib, sys\nfrom luce_edu.cli import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['--help'])\n"
        "print([m for m in ('torch', 'numpy', 'rich', 'transformers') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == "[]"


def test_generate_prints_prompt_and_text_with_whole_characters(model, capsys):
    assert cli.main(["generate", "To the ", "--max-new-tokens", "50"]) == 0
    assert capsys.readouterr().out == "To the théâtre\n"
    assert model == {"stage": "megakernel", "device": None, "max_seq_len": 57}


def test_generate_shows_text_as_it_comes(model, capsys, monkeypatch):
    shown = []

    def stream(self, prompt, max_new_tokens, **how):
        for token in b"abc":
            yield token
            shown.append(capsys.readouterr().out)

    monkeypatch.setattr(Decoder, "stream", stream)
    cli.main(["generate", ">"])
    assert shown == [">a", "b", "c"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["generate", ""], "prompt: "),
        (["generate", "x", "--max-new-tokens", "0"], "--max-new-tokens: .*got 0"),
        (["generate", "x", "--model", "random-0.8b"], "'random-0.8b' has no tokenizer.json"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_status_2(model, capsys, arguments, said):
    assert_refused(capsys, arguments, said)


def assert_refused(capsys, arguments, said):
    """Exit status 2, nothing on stdout, and one line on stderr that matches `said`."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(f"luce-edu: .*{said}.*\n", err), err


@pytest.mark.parametrize(
    "arguments, how",
    [
        ([], {"temperature": 0.6, "top_k": None, "top_p": None, "seed": 0}),
        (
            ["--temperature", "1.5", "--top-k", "20", "--top-p", "0.9", "--seed", "7"],
            {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "seed": 7},
        ),
    ],
)
def test_generate_passes_on_how_tokens_are_drawn(model, monkeypatch, arguments, how):
    asked = []
    monkeypatch.setattr(Decoder, "stream", lambda self, prompt, count, **how: asked.append(how) or iter(b"a"))
    assert cli.main(["generate", "x", *arguments]) == 0
    assert asked == [how]


def test_ctrl_c_ends_quietly_with_130(model, capsys, monkeypatch):
    def stream(self, prompt, max_new_tokens, **how):
        yield 65
        raise KeyboardInterrupt

    monkeypatch.setattr(Decoder, "stream", stream)
    assert cli.main(["generate", "x"]) == 130
    assert capsys.readouterr().err == ""


def test_verify_passes_its_options_on_and_prints_json(report, capsys):
    arguments = ["--stages", "eager,megakernel", "--device", "host", "--steps", "3", "--json"]
    assert cli.main(["verify", *arguments]) == 0
    assert json.loads(capsys.readouterr().out) == {"passed": True, "reports": [{"passed": True}] * 2}
    options = {"stages": ["eager", "megakernel"], "device": "host", "seed": None, "steps": 3}
    assert report.asked.pop("progress") and report.asked == {"model": "tiny"} | options
    assert report.paths[0].pop("progress") and report.paths == [{"prefill": False} | options]


def test_verify_of_a_named_model_is_of_that_one_alone(report, capsys):
    assert cli.main(["verify", "--model", "tiny", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["reports"]) == 1 and report.paths == []


def test_verify_prefill_checks_prompts(report, capsys):
    assert cli.main(["verify", "--prefill", "--prompts", "1,64", "--seed", "5", "--json"]) == 0
    assert report.asked.pop("progress") and report.asked["prefill"]
    assert report.asked["prompts"] == [1, 64] and report.asked["seed"] == 5 and "steps" not in report.asked
    assert cli.main(["verify", "--prompts", "1,64"]) == 2
    assert "--prompts needs --prefill" in capsys.readouterr().err


def test_verify_ends_with_1_when_a_check_does_not_hold(report, capsys):
    report.passed = False
    assert cli.main(["verify"]) == 1


@pytest.mark.parametrize("found, status", [("ok", 0), ("missing", 1)])
def test_doctor_prints_json_and_says_by_status_whether_the_walkthrough_runs(monkeypatch, capsys, found, status):
    findings = [doctor.Finding("compiler", found, "seen", "do this", needed=True)]
    monkeypatch.setattr(doctor, "diagnose", lambda: findings)
    assert cli.main(["doctor", "--json"]) == status
    said = json.loads(capsys.readouterr().out)
    assert said["ready"] == (status == 0)
    assert said["findings"][0]["remedy"] == "do this"


def test_walkthrough_ends_with_1_and_the_failing_cell_on_stderr(monkeypatch, capsys):
    from luce_edu import walkthrough

    def fail(notebooks, **options):
        raise walkthrough.NotebookError("00_start.ipynb, cell 3 of 4 failed:")

    monkeypatch.setattr(walkthrough, "find_notebooks", lambda only: [])
    monkeypatch.setattr(walkthrough, "walkthrough", fail)
    assert cli.main(["walkthrough"]) == 1
    assert capsys.readouterr().err == "luce-edu: 00_start.ipynb, cell 3 of 4 failed:\n"


@pytest.mark.parametrize("passed, status", [(True, 0), (False, 1)])
def test_walkthrough_ends_with_the_stage_table_and_its_verdict(monkeypatch, model, capsys, passed, status):
    from luce_edu import walkthrough

    class Table:
        report = SimpleNamespace(passed=passed)

        def __rich__(self):
            return "the stage table"

    monkeypatch.setattr(walkthrough, "find_notebooks", lambda only: [])
    monkeypatch.setitem(vars(luce_edu), "stage_table", lambda model, progress: Table())
    assert cli.main(["walkthrough"]) == status
    assert capsys.readouterr().out.splitlines()[-1] == "the stage table"
    assert cli.main(["walkthrough", "--only", "00"]) == 0 and capsys.readouterr().out == ""


def test_an_unknown_command_is_refused_with_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["benchmark"])
    assert ended.value.code == 2
    assert "invalid choice: 'benchmark'" in capsys.readouterr().err


def test_generate_writes_the_same_text_through_every_stage_of_kernels(capsys):
    # `eager` rounds activations to bf16, so it may choose another token where two are nearly equally likely.
    said = set()
    for stage in set(luce_edu.STAGES) - {"eager"}:
        arguments = ["generate", "ROMEO:", "--stage", stage, "--device", "host", "--max-new-tokens", "8"]
        assert cli.main(arguments) == 0
        said.add(capsys.readouterr().out)
    assert len(said) == 1 and said.pop().startswith("ROMEO:")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["generate", "bad\udcffbytes"], "UTF-8 at character 3"),
        (["generate", "x", "--stage", "warp"], "stage 'warp'"),
        (["generate", "x", "--device", "tpu"], "device 'tpu'"),
        (["generate", "x", "--model", "huge"], "name 'huge'"),
        (["generate", "x", "--max-new-tokens", "99999"], "4096 positions"),
        (["generate", "x", "--temperature", "-1"], "temperature: .*got -1"),
        (["generate", "x", "--top-k", "0"], "top_k: .*got 0"),
        (["generate", "x", "--top-p", "1.5"], "top_p: .*got 1.5"),
        (["verify", "--stages", "warp"], "stage 'warp'"),
        (["verify", "--steps", "1"], "steps: .*got 1"),
        (["bench", "--model", "tiny", "--stages", "graph,warp"], "stage 'warp'"),
        (["bench", "--model", "huge"], "name 'huge'"),
        (["bench", "--model", "tiny", "--contexts", "1,4096"], "tiny has room for 3840 tokens"),
        (["bench", "--model", "tiny", "--prompts", "3841"], "tiny has room for 3840 tokens"),
        (["evidence", "--out", "/dev/null/out", "--model", "tiny"], "'/dev/null/out'"),
        (["evidence", "--out", "/dev/null/out", "--only", "decode,latency"], "part latency"),
    ],
)
def test_names_and_sizes_that_do_not_exist_are_refused_on_one_line(capsys, arguments, said):
    assert_refused(capsys, arguments, said)


@pytest.mark.parametrize("option", ["--contexts", "--prompts"])
@pytest.mark.parametrize("sizes", ["0", "-1", "1,x", "1.5", "", ",", "1,,²"])
def test_bad_sizes_are_refused_with_status_2(capsys, option, sizes):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", f"{option}={sizes}"])
    assert ended.value.code == 2
    assert re.search(rf"{option}: .*got {sizes!r}", capsys.readouterr().err)


@pytest.mark.parametrize("option", ["--power-limit", "--set-clocks"])
def test_no_option_changes_a_gpu(capsys, option):
    with pytest.raises(SystemExit):
        cli.main(["evidence", "--out", "x", option, "200"])
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_bench_without_a_gpu_ends_with_3_and_no_time(capsys):
    assert cli.main(["bench", "--model", "tiny"]) == 3
    out, err = capsys.readouterr()
    assert out == "" and "no CUDA GPU" in err and err.count("\n") == 1


@pytest.fixture
def measured(monkeypatch):
    """A stand-in for a GPU and for `bench`. Tests set its result or its error; `asked` holds the options."""
    from luce_edu.measure import constants
    from luce_edu.measure.bench import bench

    found = SimpleNamespace(result=bench.Bench("a GPU, tiny", 3350.0), error=None, asked={})

    def measure(model, makers, **options):
        found.asked = options | {"makers": list(makers)}
        if found.error:
            raise found.error
        return found.result

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(constants, "datasheet_bandwidth", lambda: 3350.0)
    monkeypatch.setattr(bench, "bench", measure)
    return found


ROW = DecodeRow("graph", 512, Quartiles(500.0, 490.0, 510.0, 128), 10.0, 1, 42, 0, 10**9)


def test_bench_prints_a_table_or_json_of_what_was_measured_and_what_was_not(measured, capsys):
    measured.result.decode.append(ROW)
    measured.result.not_run.append(NotRun(ALL, "llama-cpp-python is not installed", "llama.cpp", kind="absent"))
    assert cli.main(["bench", "--model", "tiny", "--stages", "graph", "--contexts", "512,1024"]) == 0
    out = capsys.readouterr().out
    assert "decode at 512" in out and "2,000" in out and "not run: llama.cpp: llama-cpp-python is not installed" in out
    assert measured.asked["contexts"] == [512, 1024] and measured.asked["prompts"] == [520]
    assert measured.asked["makers"] == ["graph", "transformers", "transformers, compiled", "llama.cpp"]
    assert cli.main(["bench", "--model", "tiny", "--json", "--no-baselines"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"kind": "measured", "where": "a GPU, tiny", "decode": [as_json(ROW)], "prefill": [],
                    "not_run": as_json(measured.result.not_run)}  # fmt: skip
    assert measured.asked["makers"] == list(luce_edu.STAGES)
    assert measured.asked["contexts"] == [1, 512, 520, 2048]


def test_bench_ends_with_3_where_nothing_could_be_measured(measured, capsys):
    assert cli.main(["bench", "--model", "tiny"]) == 3
    from luce_edu.errors import NotMeasured

    measured.error = NotMeasured("the reference decides no choice")
    assert cli.main(["bench", "--model", "tiny"]) == 3
    assert capsys.readouterr().err.endswith("luce-edu: bench: the reference decides no choice\n")


WHY = "a reason, which no exit status depends on"
ALL = ("decode", "prefill")
NOT_RUN = [  # row, options, the exit status
    (NotRun(ALL, WHY, "megakernel", kind="wrong"), (), 1),
    (NotRun(ALL, WHY, "transformers", kind="wrong"), (), 3),  # not our kernel, so it only was not measured
    (NotRun(ALL, WHY, "megakernel"), (), 3),
    (NotRun(ALL, WHY, "megakernel", kind="absent"), (), 3),
    (NotRun(("decode",), WHY, "megakernel", at=512), (), 3),
    (NotRun(ALL, WHY, "transformers"), (), 3),
    (NotRun(ALL, WHY, "transformers", kind="absent"), (), 0),
    (NotRun(("prefill",), WHY, "transformers", at=520), (), 3),
    (NotRun(ALL, WHY, "llama.cpp", kind="absent"), (), 0),
    (NotRun(ALL, WHY, "llama.cpp", kind="absent"), ("--gguf", "model.gguf"), 3),
]


@pytest.mark.planted
@pytest.mark.parametrize("row, options, status", NOT_RUN)
def test_bench_ends_with_1_for_a_stage_that_is_wrong_and_with_3_for_what_is_missing(measured, row, options, status):
    measured.result.decode.append(ROW)
    measured.result.not_run.append(row)
    assert cli.main(["bench", "--model", "tiny", *options]) == status


@pytest.mark.planted
@pytest.mark.parametrize("row, options, status", NOT_RUN)
def test_evidence_ends_as_bench_does_where_its_parts_are_all_there(row, options, status, monkeypatch, tmp_path):
    from luce_edu.measure.bench import evidence
    from luce_edu.plots import records as figures

    record = SimpleNamespace(parts=dict.fromkeys(evidence.PARTS), not_run=[row])
    monkeypatch.setattr(evidence, "gather", lambda *_, **__: record)
    monkeypatch.setattr(figures, "draw", lambda *_: [])
    assert cli.main(["evidence", "--out", str(tmp_path), *options]) == status


@pytest.mark.planted
def test_a_wrong_stage_outweighs_what_is_missing(measured):
    measured.result.not_run += [row for row, *_ in reversed(NOT_RUN)]
    assert cli.main(["bench", "--model", "tiny"]) == 1


def test_without_rich_tables_are_plain_text_and_progress_is_one_line(measured, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    measured.result.decode.append(ROW)
    assert cli.main(["bench", "--model", "tiny"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{measured.result}\n" and err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with cli._console(stderr=True).status("measuring") as status:
        status.update("decode at 512" + 100 * ".")
    shown = capsys.readouterr().err.split("\r")
    assert "\n" not in "".join(shown) and max(map(len, shown)) <= 79
    assert [line.strip(". ") for line in shown if line.strip()] == ["measuring", "decode at 512"]


def test_doctor_is_plain_text_without_rich(capsys, monkeypatch):
    for module in ("rich", "rich.console", "rich.table", "rich.text"):
        monkeypatch.setitem(sys.modules, module, None)
    found = [doctor.Finding("nvrtc", "missing", "not there", "pip install it", needed=True)]
    monkeypatch.setattr(doctor, "diagnose", lambda: found)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out == "nvrtc: missing: not there\n  to do: pip install it\n"


def test_a_reader_that_leaves_the_pipe_ends_the_command_quietly():
    command = f"{sys.executable} -m luce_edu doctor --json"
    done = subprocess.run(["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("141", "")

