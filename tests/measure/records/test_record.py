"""A record that is not complete, finite and of this schema is refused by file and field; so is one without a source."""

import copy
import dataclasses
import json
import os
from typing import Annotated, get_args, get_origin, get_type_hints, is_typeddict

import pytest
import synthetic

from luce_edu.measure.bench.evidence import bench_table
from luce_edu.measure.records import record as records
from luce_edu.measure.records.record import KINDS, Record, RecordError, load_records, recorded, records_dir
from luce_edu.measure.records.rows import Figures, Modelled, NotRun, Published, Verified
from luce_edu.measure.schema import Positive, checked
from luce_edu.plots import records as figures
from luce_edu.verification import Report, StageResult


def with_every_field() -> Record:
    """A record whose first rows of decode and energy also have the clock's prediction."""
    record, modelled = synthetic.h100(), Modelled(700.0, 0.3, "H100", 1980.0, "made up")
    rows = {
        part: [dataclasses.replace(record.parts[part][0], modelled=modelled), *record.parts[part][1:]]
        for part in ("decode", "energy")
    }
    return synthetic.with_parts(record, **rows)


CONTENTS = {
    "recorded": with_every_field().to_json(),
    "published": json.loads((records_dir() / "published.json").read_text(encoding="utf-8")),
}


def fields(kind, path=()):
    """(path, annotation, required) of every field; of a list, those of its first item."""
    if get_origin(kind) is Annotated:
        return fields(get_args(kind)[0], path)
    if get_origin(kind) in (list, tuple):
        return fields(get_args(kind)[0], (*path, 0))
    if not dataclasses.is_dataclass(kind) and not is_typeddict(kind):
        return [field for one in get_args(kind) for field in fields(one, path)]
    needed = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING} if not is_typeddict(
        kind) else set()  # fmt: skip
    found = []
    for name, below in get_type_hints(kind, include_extras=True).items():
        found += [((*path, name), below, name in needed), *fields(below, (*path, name))]
    return found


EVERY = [(kind, *field) for kind in CONTENTS for field in fields(KINDS[kind])]


def cases(keep):
    """Parametrise over the fields of both kinds that CONTENTS has and for which keep(annotation, required) holds."""
    found = [(kind, path) for kind, path, below, required in EVERY if keep(below, required) and has(kind, path)]
    ids = [f"{kind}-{'/'.join(map(str, path))}" for kind, path in found]
    return pytest.mark.parametrize("kind, path", found, ids=ids)


def has(kind, path) -> bool:
    try:
        altered(kind, path, lambda parent, key: parent[key])
    except (KeyError, IndexError):
        return False
    return True


def altered(kind, path, change):
    """The content of a valid record after change(parent, key) at a path."""
    content = parent = copy.deepcopy(CONTENTS[kind])
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return content


def write(folder, content, name="planted.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def refusal(folder, content):
    """The message with which `load` refuses a file with this content; it names the file."""
    with pytest.raises(RecordError, match="^planted.json: ") as refused:
        Record.load(write(folder, content))
    return str(refused.value)


@pytest.mark.parametrize("make", [synthetic.h100, synthetic.rtx_3090, with_every_field])
def test_a_record_survives_the_disk(tmp_path, make):
    record = make()
    record.save(tmp_path / f"{record.name}.json")
    assert Record.load(tmp_path / f"{record.name}.json") == record
    assert "synthetic" in record.gpu and record.gpu in record.provenance


def test_every_record_of_the_project_is_valid_real_and_says_where_it_is_from():
    found = load_records()
    assert "published" in [record.name for record in found]
    for record in found:
        assert record.provenance.startswith(record.kind)
        assert "synthetic" not in json.dumps(record.to_json()).lower()


def test_the_fields_that_are_altered_below_are_those_of_the_schema():
    paths = {path for kind, path, *_ in EVERY if has(kind, path)}
    assert len(paths) > 80
    assert ("parts", "decode", 0, "latency_us", "median") in paths and ("sweeps", 0, "points", 0, "draw_w") in paths


@cases(lambda below, required: required)
def test_a_missing_field_is_refused_by_name(tmp_path, kind, path):
    said = refusal(tmp_path, altered(kind, path, lambda parent, key: parent.pop(key)))
    assert f" {'/'.join(map(str, path))}: " in said


@cases(lambda below, required: True)
def test_a_field_of_another_type_is_refused_by_name(tmp_path, kind, path):
    # No field takes this value: it is no text, number or list, and no object has a field named "".
    said = refusal(tmp_path, altered(kind, path, lambda parent, key: parent.__setitem__(key, {"": []})))
    assert f" {'/'.join(map(str, path))}" in said


@pytest.mark.planted
@pytest.mark.parametrize("number", [-1, 0, float("nan"), float("inf"), True, "12"])
def test_a_time_that_is_no_positive_number_is_refused_by_name(tmp_path, number):
    path = "parts", "decode", 0, "latency_us", "median"
    said = refusal(tmp_path, altered("recorded", path, lambda parent, key: parent.__setitem__(key, number)))
    assert f" {'/'.join(map(str, path))}: " in said


def test_every_time_energy_and_draw_is_a_positive_number():
    units = ("_us", "_w", "_s", "joules", "mhz", "seconds")
    exact = {path for _, path, below, required in EVERY if required and str(path[-1]).endswith(units)}
    exact -= {path for _, path, below, _ in EVERY if below == Positive}
    known_otherwise = {"latency_us", "range_w", "idle_w"}  # three numbers, two numbers, 0 or more
    may_be_none = {"enqueue_us", "dependent_us", "power_limit_w", "sampled_joules"}
    assert {path[-1] for path in exact} <= known_otherwise | may_be_none


@pytest.mark.planted
@pytest.mark.parametrize("path, value", [
    (("date",), "yesterday"),
    (("machine", "sm_count"), 0),
    (("parts", "decode", 0, "context"), -1),
    (("parts", "energy", 0, "method"), "guessed"),
    (("parts", "sweep", 0, "points"), []),
    (("parts", "sweep", 0, "range_w"), [100.0]),
    (("parts", "sweep", 0, "idle_w"), -1.0),
    (("not_run", 0, "parts", 0), "latency"),
    (("not_run", 0, "kind"), "tired"),
    (("not_run", 0, "reason"), ""),
])  # fmt: skip
def test_a_value_of_the_right_type_out_of_range_is_refused_by_name(tmp_path, path, value):
    said = refusal(tmp_path, altered("recorded", path, lambda parent, key: parent.__setitem__(key, value)))
    assert f" {'/'.join(map(str, path))}: expected " in said


def test_an_unknown_field_is_refused_by_name(tmp_path):
    content = altered("recorded", ("machine", "gpu"), lambda parent, key: parent.update(nickname="fast"))
    assert "machine/nickname: " in refusal(tmp_path, content)


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "not a readable record"),
        ('{"schema": "luce_edu record 2", "kind": "recor', "not a readable record"),
        ("[" * 100_000, "not a readable record"),
        ([], "expected schema 'luce_edu record 2', found 'list'"),
        ({"results": []}, "found None"),
        (CONTENTS["recorded"] | {"schema": "luce_edu record 1"}, "found 'luce_edu record 1'"),
        (CONTENTS["recorded"] | {"kind": "guessed"}, "kind: expected 'recorded' or 'published', found 'guessed'"),
        (CONTENTS["recorded"] | {"kind": "published"}, "date: unknown"),
    ],
    ids=["empty", "truncated", "deep", "list", "foreign", "earlier", "guessed", "other-kind"],
)
def test_a_file_that_is_no_record_is_refused(tmp_path, content, said):
    assert said in refusal(tmp_path, content)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    for name in ("folder.json", "bytes.json", "absent.json"):
        with pytest.raises(RecordError, match=f"^{name}: not a readable record"):
            Record.load(tmp_path / name)


def test_one_bad_file_is_named_among_the_good(tmp_path):
    write(tmp_path, CONTENTS["recorded"], "a.json")
    write(tmp_path, '{"schema"', "b.json")
    with pytest.raises(RecordError, match="^b.json: "):
        load_records(tmp_path)


def test_an_interrupted_save_leaves_the_old_record_and_no_half_of_the_new(tmp_path, monkeypatch):
    path = tmp_path / "planted.json"
    synthetic.h100().save(path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        synthetic.rtx_3090().save(path)
    assert [record.gpu for record in load_records(tmp_path)] == [synthetic.h100().gpu]


def test_save_refuses_what_load_would(tmp_path):
    record = synthetic.h100()
    record.parts["launch"] = dataclasses.replace(record.parts["launch"], plain_us=float("nan"))
    with pytest.raises(RecordError, match="^synthetic-h100.json: parts/launch/plain_us: "):
        record.save(tmp_path / "planted.json")
    assert list(tmp_path.iterdir()) == []


def test_records_come_newest_first_and_only_with_the_part_that_is_asked_for():
    old = synthetic.rtx_3090()
    old.content.date = "2026-01-31"
    new, none = synthetic.h100(), synthetic.without(synthetic.h100(), "energy")
    assert recorded([old, none, Record.from_json("published", CONTENTS["published"]), new], "energy") == [new, old]


def test_an_installed_package_reads_its_own_records(tmp_path, monkeypatch):
    (tmp_path / "luce_edu" / "records").mkdir(parents=True)
    monkeypatch.setattr(records, "__file__", str(tmp_path / "luce_edu" / "measure" / "records" / "record.py"))
    assert records_dir() == tmp_path / "luce_edu" / "records"


@pytest.mark.parametrize("lacking", [{"driver": None}, {"power_limit_w": None}])
def test_unknown_fields_of_a_machine_are_left_out_of_the_provenance(lacking):
    record = synthetic.of_machine(synthetic.h100(), **lacking)
    assert "None" not in record.provenance and record.gpu in record.provenance


SHOWN = {
    "latency": figures.latency,
    "waterfall": figures.waterfall,
    "energy": figures.energy,
    "context": figures.context,
    "results_table": lambda record: figures.results_table([record]),
    "bench_table": bench_table,
}


@pytest.mark.planted
@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
@pytest.mark.parametrize("field", ["date", "model", "machine"])
def test_a_record_without_its_provenance_is_not_shown(show, field):
    show(synthetic.h100())
    record = synthetic.h100()
    setattr(record.content, field, None)  # a record is checked when it is made, so it is altered afterwards
    with pytest.raises(ValueError, match=f"synthetic-h100.json: {field}"):
        show(record)


@pytest.mark.planted
@pytest.mark.parametrize("source", [None, ""])
def test_no_record_can_hold_a_published_row_without_its_source(source):
    with pytest.raises(RecordError, match="mine.json: decode/0/source"):
        Record("mine", Figures((Published("mine", "a model", "a GPU", 999.0, source),)))


@pytest.mark.planted
def test_a_published_record_without_rows_has_no_provenance():
    with pytest.raises(RecordError, match="no source"):
        Record("empty", Figures(())).provenance  # noqa: B018


@pytest.mark.planted
@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_a_verdict_on_numbers_that_are_not_finite_is_recorded(error):
    row = StageResult("graph", error, error, error, "logits", None, None, 0, 9, False, 1, 42, 0, ["not finite"])
    found = checked(Verified.of(Report("tiny", "cuda", 24, 1, [row])))
    assert not found.passed and found.rows[0].problems == ("not finite",)
    assert found.rows[0].figures["error"] is None and found.rows[0].figures["kernels"] == 42


# ---- What was not run ----


@pytest.mark.parametrize("row, what", [
    (NotRun(("energy",), "no NVML"), "energy"),
    (NotRun(("decode", "prefill"), "no time"), "decode, prefill"),
    (NotRun(("decode",), "no memory", "graph", at=512), "graph, decode at 512"),
    (NotRun(("decode", "prefill"), "not installed", "llama.cpp", kind="absent"), "llama.cpp"),
    (NotRun(("decode", "prefill"), "not begun", step="side by side", kind="unfinished"), "side by side"),
])  # fmt: skip
def test_a_row_is_shown_by_its_fields(row, what):
    assert str(row) == f"{what}: {row.reason}"


def test_running_again_keeps_the_rows_of_other_parts_and_systems():
    row = NotRun(("decode", "prefill"), "no memory", "graph")
    assert row.without(["energy"]) == row == row.without(["decode"], ["megakernel"])
    assert row.without(["decode"]) == row.without(["decode"], ["graph"]) == dataclasses.replace(row, parts=("prefill",))
    assert row.without(["decode", "prefill"]) is None
    assert NotRun(("decode",), "no time").without(["decode"], ["graph"]) is None, "a row without a system goes"
    step = NotRun(("decode",), "not begun", step="contexts", kind="unfinished")
    assert step.without(["decode"]) == step, "a step is removed by its name"
