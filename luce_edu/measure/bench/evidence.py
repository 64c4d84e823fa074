"""All measurements of one machine in one call: verification, constants, decode, prefill, energy; one record.

Runs from a checkout with Python, PyTorch, transformers, cuda-core and matplotlib; what is missing beside these is said
in the record. It reads NVML and never writes: no setting of a GPU is changed.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from luce_edu.backends import make_backend
from luce_edu.errors import NotMeasured
from luce_edu.measure.bench.bench import CONTEXTS, PROMPT, PROMPTS, STEPS, Bench, bench, reason
from luce_edu.measure.bench.systems import make_systems
from luce_edu.measure.constants import measure_bandwidth, measure_launch_costs
from luce_edu.measure.nvml import Sensors, or_none
from luce_edu.measure.records.predictions import beside
from luce_edu.measure.records.record import SCHEMA, Record, RecordError, commit
from luce_edu.stages import STAGES
from luce_edu.verification import DECODED, verify, verify_paths, verify_prefill

BENCHED = ("decode", "prefill", "energy")  # they share loaded systems
ALL_BENCHED = ", ".join(BENCHED)  # what not_run says where none of them could be begun
VERIFIED = ("verify", "verify_paths", "verify_prefill")
PARTS = (*VERIFIED, "launch", "bandwidth", *BENCHED)
MARKS = {  # how not_run names a part of one system, behind the system's name
    ", verify": "verify", ", decode at ": "decode", ", prompt of ": "prefill", ", energy": "energy",
}  # fmt: skip
RECORD = "record.json"
# Fewer than `luce-edu verify --prefill` takes: logits of the full vocabulary are kept for each token.
VERIFIED_PROMPTS = (1, 65, 520, 1000)
PACKAGES = ("torch", "transformers", "cuda-core", "flash-linear-attention", "llama-cpp-python", "nvidia-ml-py")

Progress = Callable[[str], None]


def gather(
    out: str | Path,
    *,
    model_name: str = "random-0.8b",
    model=None,
    only: Sequence[str] = (),
    systems: Sequence[str] | None = None,
    contexts: Sequence[int] = CONTEXTS,
    gguf: str | None = None,
    progress: Progress = lambda _: None,
) -> Record:
    """Measure, and write out/record.json after every part, so that what is interrupted can go on.

    model     what load_model(model_name) returned, where it has been called already
    only      the parts to run; the others are taken from a record that is there already, if it is of this machine,
              model, commit and versions of packages. Without it every part that such a record lacks is run
    systems   these alone, by the names of make_systems; what the record has of others stays. With `only`
    contexts  of the decode part
    Raises ValueError for an unknown part or model, RecordError for a record of something else, OSError for a folder
    that cannot be written. A part that cannot run is listed in the record's not_run, with its reason.
    """
    from luce_edu.models import load_model

    unknown = [part for part in only if part not in PARTS]
    if unknown:
        raise ValueError(f"--only: unknown part {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    content, path = begin_record(out, model_name)
    wanted = [part for part in PARTS if (part in only if only else lacks(content, part))]
    record = Record(path.stem, content)
    model = model or load_model(model_name)
    if not torch.cuda.is_available():
        _skip(content, wanted, systems, "no CUDA GPU here; nothing is measured on the virtual GPU")
        record.save(path)
        return record
    try:
        backend = make_backend("cuda")
        model.weights_on(backend.device)
    except (ValueError, RuntimeError) as error:  # too old, too small, or a driver that does not work
        _skip(content, wanted, systems, reason(error))
        record.save(path)
        return record
    _forget(content, wanted, systems)
    verified = {"verify": _verify, "verify_paths": _verify_paths, "verify_prefill": _verify_prefill}
    constants = {"launch": measure_launch_costs, "bandwidth": measure_bandwidth}
    for part in PARTS:
        if part in wanted and part not in BENCHED:
            progress(part)
            with _part(content, part, systems):
                if part in verified:
                    result = verified[part](model, _seed(content), _stages(systems), progress)
                    content["parts"][part] = _with_rows(content["parts"].get(part), result)
                else:
                    content["parts"][part] = constants[part](backend).to_dict()
                record.checked()
            record.save(path)
    if set(BENCHED) & set(wanted):
        _bench(content, model, wanted, systems, contexts, gguf, progress, lambda: record.save(path))
    record.save(path)
    return record


def lacks(content: dict, part: str) -> bool:
    """Whether a record lacks a part, or an interruption left it half done."""
    unfinished = {row["part"] for row in content["not_run"] if row.get("kind") == "unfinished"}
    return part not in content["parts"] or part in unfinished


def begin_record(out: str | Path, model_name: str) -> tuple[dict, Path]:
    """The content that a record of this machine starts with, or goes on with, and its file in the folder `out`.

    Raises as `gather` does.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": SCHEMA, "kind": "recorded", "date": datetime.date.today().isoformat(), "commit": commit(),
        "model": model_name, "machine": machine(), "parts": {}, "not_run": [],
    }  # fmt: skip
    path = out / RECORD
    if path.exists():
        _take_over(content, Record.load(path), path)
    return content, path


def _bench(content: dict, model, wanted, systems, contexts, gguf: str | None, progress: Progress, save) -> None:
    """The parts that share loaded systems."""
    sensors = None
    if {"decode", "energy"} & set(wanted):
        try:
            sensors = Sensors.open()
        except NotMeasured as error:
            if "energy" in wanted:
                content["not_run"].append({"part": "energy", "reason": str(error)})
    before, kept = content["not_run"], {part: list(content["parts"].get(part, [])) for part in BENCHED}

    def take(result: Bench) -> None:
        wrong = {row["part"] for row in result.not_run if row.get("kind") == "wrong"}
        for part in BENCHED:
            new = [_with_prediction(row, content["machine"]["gpu"], model) for row in getattr(result, part)]
            known = {_key(row) for row in new}
            old = [row for row in kept[part] if _key(row) not in known and row["system"] not in wrong]
            content["parts"].pop(part, None)
            if old or new:
                content["parts"][part] = sorted([*old, *new], key=lambda row: _key(row)[1])
        # Of some systems alone, whoever asked for them knows what is still to be done.
        ahead = BENCHED[BENCHED.index(result.running) :] if result.running and systems is None else ()
        unfinished = [{"part": part, "reason": "it was interrupted", "kind": "unfinished"} for part in ahead]
        content["not_run"] = before + result.not_run + [row for row in unfinished if row["part"] in wanted]
        content["machine"] |= result.clocks
        save()

    with _part(content, ALL_BENCHED):
        room = model.config.max_position_embeddings
        contexts = [c for c in contexts if c + 4 * STEPS <= room]
        if not contexts:
            raise NotMeasured(f"the model has room for {room} tokens, too few to time")
        prompts = [n for n in PROMPTS if n + 4 * STEPS <= room] if "prefill" in wanted else []
        contexts = contexts if "decode" in wanted else []
        makers = make_systems(model, max_seq_len=max([PROMPT, *contexts, *prompts]) + 4 * STEPS, gguf=gguf)
        result = bench(
            model, {name: make for name, make in makers.items() if systems is None or name in systems},
            contexts=contexts, prompts=prompts, energy_seconds=4.0 if sensors and "energy" in wanted else None,
            sensors=sensors, progress=progress, save=take,
        )  # fmt: skip
        take(result)
        said = {row["part"] for row in content["not_run"]}
        for part in wanted:
            if part in BENCHED and part not in content["parts"] and part not in said:
                content["not_run"].append({"part": part, "reason": "no system could be measured"})


def _with_prediction(row: dict, gpu: str, model) -> dict:
    """A row with what the clock had predicted for it, where it had."""
    modelled = beside(row, gpu, model.config)
    return row | {"modelled": modelled} if modelled else row


def _key(row: dict) -> tuple[str, int]:
    """What no two rows of a part have in common: the system, and the context or the length of the prompt."""
    return row["system"], row["context"] if "context" in row else row["tokens"]


def _stages(systems: Sequence[str] | None) -> list[str] | None:
    return None if systems is None else [stage for stage in STAGES if stage in systems]


def _seed(content: dict) -> int | None:
    """That of stages which were verified before, so that all of them run on the same tokens."""
    return content["parts"]["verify"]["seed"] if "verify" in content["parts"] else None


def _verify(model, seed: int | None, stages: Sequence[str] | None, progress: Progress) -> dict:
    return verify(model, device="cuda", seed=seed, stages=stages, progress=progress).to_dict()


def _verify_paths(model, seed: int | None, stages: Sequence[str] | None, progress: Progress) -> dict:
    """Of the small model for the paths that others leave out, whichever model is measured."""
    return verify_paths(device="cuda", seed=seed, stages=stages, progress=progress).to_dict()


def _verify_prefill(model, seed: int | None, stages: Sequence[str] | None, progress: Progress) -> dict:
    lengths = [n for n in VERIFIED_PROMPTS if n <= model.config.max_position_embeddings - DECODED]
    return verify_prefill(
        model, device="cuda", seed=seed, stages=stages, prompts=lengths, progress=progress
    ).to_dict()  # fmt: skip


def _with_rows(kept: dict | None, result: dict) -> dict:
    """A report with the rows that an earlier one has of other stages."""
    stages = {row["stage"] for row in result["rows"]}
    others = [row for row in kept["rows"] if row["stage"] not in stages] if kept else []
    rows = sorted([*others, *result["rows"]], key=lambda row: STAGES.index(row["stage"]))
    return result | {"rows": rows, "passed": result["passed"] and all(row["passed"] for row in others)}


class _part:
    """A context in which a failure becomes a line of the record's not_run.

    What was half done is dropped; of a run for some systems alone, what the record has of the others stays.
    """

    def __init__(self, content: dict, name: str, systems: Sequence[str] | None = None):
        self._content, self._name, self._systems = content, name, systems
        self._kept = content["parts"].get(name) if systems is not None else None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> bool:
        if not isinstance(error, Exception):
            return False
        self._content["parts"].pop(self._name, None)
        if self._kept is not None:
            self._content["parts"][self._name] = self._kept
        one = self._systems[0] if self._systems and len(self._systems) == 1 else None
        name = f"{one}, {self._name}" if one and f", {self._name}" in MARKS else self._name
        self._content["not_run"].append({"part": name, "reason": reason(error)})
        return True


def _skip(content: dict, wanted: Sequence[str], systems: Sequence[str] | None, why: str) -> None:
    _forget(content, wanted, systems)
    content["not_run"] += [{"part": part, "reason": why} for part in wanted]


def _forget(content: dict, wanted: Sequence[str], systems: Sequence[str] | None = None) -> None:
    """Drop what an earlier run said of the parts that this one does again, for these systems alone or for all."""
    for part in wanted:
        if systems is None:
            content["parts"].pop(part, None)
        elif part in VERIFIED and part in content["parts"]:
            report = content["parts"].pop(part)
            rows = [row for row in report["rows"] if row["stage"] not in systems]
            if rows:
                content["parts"][part] = report | {"rows": rows, "passed": all(row["passed"] for row in rows)}
    content["not_run"] = [row for row in content["not_run"] if not concerns(row, wanted, systems)]


def concerns(row: dict, parts: Sequence[str], systems: Sequence[str] | None = None) -> bool:
    """Whether a line of not_run speaks of any of these parts, and of one of these systems or of no single one."""
    name = row["part"]
    if name in PARTS:
        return name in parts
    if name in (ALL_BENCHED, "idle draw"):
        return bool(set(BENCHED) & set(parts))
    if row.get("kind") == "unfinished":  # of somebody else's list
        return False
    mark = next((mark for mark in MARKS if mark in name), None)
    of = {MARKS[mark]} if mark else set(BENCHED)  # a system that could not be loaded took part in none of them
    system = name.partition(mark)[0] if mark else name.removesuffix(", launches").removesuffix(", closing")
    return bool(of & set(parts)) and (systems is None or system in systems)


def _take_over(content: dict, old: Record, path: Path) -> None:
    """Go on with the record of an interrupted run; RecordError for one of another machine, model, commit or version."""
    if old.kind != "recorded":
        raise RecordError(f"{path.name}: a {old.kind} record is there already; name another folder")
    was, now = old.content["machine"], content["machine"]
    names = sorted({*was["versions"], *now["versions"]})
    pairs = {field: (old.content[field], content[field]) for field in ("model", "commit")}
    pairs |= {"GPU": (was["gpu"], now["gpu"])}
    pairs |= {name: (was["versions"].get(name), now["versions"].get(name)) for name in names}
    for what, (before, here) in pairs.items():
        if before != here:
            raise RecordError(
                f"{path.name}: a record of {what} {before} is there already, this is {here}; name another folder"
            )
    content["machine"] = was | now  # with the clocks of a decode part that is kept
    content["parts"] = dict(old.parts)
    content["not_run"] = list(old.content["not_run"])


def machine() -> dict:
    """What a record says of this machine. Without a GPU its fields say so."""
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    if not torch.cuda.is_available():
        return {"gpu": "none", "arch": "none", "sm_count": 1, "memory_bytes": 0, "l2_bytes": 0, "driver": None,
                "power_limit_w": None, "versions": versions}  # fmt: skip
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    try:
        sensors: Sensors | None = Sensors.open()
    except NotMeasured:
        sensors = None
    return {
        "gpu": gpu.name,
        "arch": f"sm_{gpu.major}{gpu.minor}",
        "sm_count": gpu.multi_processor_count,
        "memory_bytes": gpu.total_memory,
        "l2_bytes": gpu.L2_cache_size,
        "driver": or_none(sensors.driver) if sensors else None,
        "power_limit_w": or_none(sensors.power_limit_w) if sensors else None,
        "versions": versions,
    }


def floor_gb_per_s(record: Record) -> float | None:
    """The bandwidth that a record's decode times are held against: the datasheet's, else what reading reached."""
    bandwidth = record.parts.get("bandwidth")
    return bandwidth and (bandwidth["datasheet"] or bandwidth["read"])


def bench_table(record: Record) -> Bench:
    """A record's decode, prefill and energy as a table."""
    parts = record.parts
    return Bench(
        record.provenance, floor_gb_per_s(record), parts.get("decode", []), parts.get("prefill", []),
        parts.get("energy", []), record.content["not_run"],
    )  # fmt: skip
