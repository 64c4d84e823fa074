"""A record is whole, finite and of this schema, or it is refused by file and field; so is one without a source."""

import copy
import json
import os

import pytest
import synthetic

from luce_edu.measure.bench.evidence import bench_table
from luce_edu.measure.records import record as records
from luce_edu.measure.records.published import decode_results
from luce_edu.measure.records.record import SCHEMA_FILE, Record, RecordError, load_records, recorded, records_dir
from luce_edu.plots import records as figures


def with_predictions(content):
    """Every optional field: the first rows of decode and energy also hold what the clock predicted."""
    for part in ("decode", "energy"):
        content["parts"][part][0]["modelled"] = {
            "us": 700.0, "joules": 0.3, "card": "H100", "clock_mhz": 1980.0, "source": "made up"
        }  # fmt: skip


CONTENTS = {
    "recorded": synthetic.changed(synthetic.h100(), with_predictions).content,
    "published": json.loads((records_dir() / "published.json").read_text(encoding="utf-8")),
}
DEFINITIONS = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["$defs"]


def fields(schema, path=()):
    """(path, schema, required) of every field, into the first item of each array."""
    schema = DEFINITIONS[schema["$ref"].split("/")[-1]] if "$ref" in schema else schema
    for name, below in schema.get("properties", {}).items():
        yield (*path, name), below, name in schema.get("required", ())
        yield from fields(below, (*path, name))
    if "items" in schema:
        yield from fields(schema["items"], (*path, 0))


def cases(keep):
    """Those of the fields of both kinds for which keep(schema, required) holds, as parameters with readable ids."""
    every = [(kind, *field) for kind in CONTENTS for field in fields(DEFINITIONS[kind])]
    found = [(kind, path) for kind, path, below, required in every if keep(below, required)]
    ids = [f"{kind}-{'/'.join(map(str, path))}" for kind, path in found]
    return pytest.mark.parametrize("kind, path", found, ids=ids)


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
    """What `load` says of a file with this content; it names the file."""
    with pytest.raises(RecordError, match="^planted.json: ") as refused:
        Record.load(write(folder, content))
    return str(refused.value)


@pytest.mark.parametrize("make", [synthetic.h100, synthetic.rtx_3090])
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
        assert "synthetic" not in json.dumps(record.content).lower()


def test_the_fields_that_are_altered_below_are_those_of_the_schema():
    paths = {path for kind in CONTENTS for path, _, _ in fields(DEFINITIONS[kind])}
    assert len(paths) > 60
    assert ("parts", "decode", 0, "latency_us", "median") in paths and ("sweeps", 0, "points", 0, "draw_w") in paths


@cases(lambda schema, required: required)
def test_a_missing_field_is_refused_by_name(tmp_path, kind, path):
    said = refusal(tmp_path, altered(kind, path, lambda parent, key: parent.pop(key)))
    assert str(path[-1]) in said
    assert all(str(key) in said for key in path[:-1])


@cases(lambda schema, required: schema.keys() & {"type", "enum", "const", "$ref", "pattern"})
def test_a_field_of_another_type_is_refused_by_name(tmp_path, kind, path):
    # Fits nowhere: no field has this name, and no text, number or list is an object.
    said = refusal(tmp_path, altered(kind, path, lambda parent, key: parent.__setitem__(key, {"": []})))
    assert all(str(key) in said for key in path)


@cases(lambda schema, required: "exclusiveMinimum" in schema)
@pytest.mark.parametrize("number", [-1, 0, float("nan"), float("inf"), True, "12"])
def test_a_time_that_is_no_positive_number_is_refused_by_name(tmp_path, kind, path, number):
    said = refusal(tmp_path, altered(kind, path, lambda parent, key: parent.__setitem__(key, number)))
    assert "/".join(map(str, path)) in said


def test_an_unknown_field_is_refused_by_name(tmp_path):
    content = altered("recorded", ("machine", "gpu"), lambda parent, key: parent.update(nickname="fast"))
    said = refusal(tmp_path, content)
    assert "machine" in said and "nickname" in said


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "not a readable record"),
        ('{"schema": "luce_edu record 1", "kind": "recor', "not a readable record"),
        ("[" * 100_000, "not a readable record"),
        ([], "expected schema 'luce_edu record 1', found 'list'"),
        ({"results": []}, "found None"),
        (CONTENTS["recorded"] | {"schema": "luce_edu record 2"}, "found 'luce_edu record 2'"),
        (CONTENTS["recorded"] | {"kind": "guessed"}, "kind: expected 'recorded' or 'published', found 'guessed'"),
        (CONTENTS["recorded"] | {"kind": "published"}, "the record: "),
    ],
    ids=["empty", "truncated", "deep", "list", "foreign", "later", "guessed", "other-kind"],
)
def test_what_is_no_record_is_refused(tmp_path, content, said):
    assert said in refusal(tmp_path, content)


def test_a_record_cut_anywhere_is_refused(tmp_path):
    whole = json.dumps(CONTENTS["recorded"], indent=1)
    for length in range(0, len(whole), len(whole) // 50):
        assert "not a readable record" in refusal(tmp_path, whole[:length])


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
    record.parts["launch"]["plain_us"] = float("nan")
    with pytest.raises(RecordError, match="^planted.json: parts/launch/plain_us: "):
        record.save(tmp_path / "planted.json")
    assert list(tmp_path.iterdir()) == []


def test_records_come_newest_first_and_only_with_the_part_that_is_asked_for():
    old = synthetic.changed(synthetic.rtx_3090(), lambda content: content.update(date="2026-01-31"))
    new, none = synthetic.h100(), synthetic.without(synthetic.h100(), "energy")
    published = Record("published", CONTENTS["published"])
    assert recorded([old, none, published, new], "energy") == [new, old]


def test_an_installed_package_reads_its_own_records(tmp_path, monkeypatch):
    (tmp_path / "luce_edu" / "records").mkdir(parents=True)
    monkeypatch.setattr(records, "__file__", str(tmp_path / "luce_edu" / "measure" / "records" / "record.py"))
    assert records_dir() == tmp_path / "luce_edu" / "records"


@pytest.mark.parametrize("lacking", [{"driver": None}, {"power_limit_w": None}])
def test_what_a_machine_did_not_tell_is_left_out_of_the_provenance(lacking):
    record = synthetic.changed(synthetic.h100(), lambda content: content["machine"].update(lacking))
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
@pytest.mark.parametrize("field", ["kind", "date", "model", "machine"])
def test_nothing_is_shown_of_a_record_that_lost_its_provenance(show, field):
    record = synthetic.h100()  # valid when it was made, as it must be ...
    show(record)
    record = synthetic.h100()
    del record.content[field]  # ... and altered since
    with pytest.raises(ValueError, match=f"synthetic-h100.json: .*{field}"):
        show(record)


@pytest.mark.planted
@pytest.mark.parametrize("show", [decode_results, lambda r: figures.ladder([r]), lambda r: figures.results_table([r])])
@pytest.mark.parametrize("source", [None, ""])
def test_nothing_is_shown_of_a_published_row_without_its_source(show, source):
    record = Record("published", copy.deepcopy(CONTENTS["published"]))
    record.content["decode"][0]["source"] = source
    with pytest.raises(ValueError, match="published.json: decode/0/source"):
        show(record)


@pytest.mark.planted
def test_a_published_record_without_rows_has_no_provenance():
    with pytest.raises(RecordError, match="no source"):
        Record("empty", {"schema": records.SCHEMA, "kind": "published", "decode": []}).provenance  # noqa: B018
