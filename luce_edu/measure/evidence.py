"""All measurements of one machine in one call: verification, constants, decode, prefill, energy; one record.

Runs from a checkout with Python, PyTorch, transformers, cuda-core and matplotlib; what is missing beside these is said
in the record. It reads NVML and never writes: no setting of a GPU is changed.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from luce_edu.backends import make_backend
from luce_edu.measure.bench import CONTEXTS, PROMPTS, STEPS, Bench, bench, reason
from luce_edu.measure.constants import measure_bandwidth, measure_launch_costs
from luce_edu.measure.latency import NotMeasured
from luce_edu.measure.nvml import Sensors, or_none
from luce_edu.measure.records import SCHEMA, Record, RecordError
from luce_edu.measure.systems import make_systems

BENCHED = ("decode", "prefill", "energy")  # they share loaded systems
ALL_BENCHED = ", ".join(BENCHED)  # what not_run says where none of them could be begun
PARTS = ("verify", "launch", "bandwidth", *BENCHED)
RECORD = "record.json"
# Fewer than `luce-edu verify --prefill` takes: logits of the full vocabulary are kept for each token.
VERIFIED_PROMPTS = (1, 65, 520, 1000)
PACKAGES = ("torch", "transformers", "cuda-core", "flash-linear-attention", "llama-cpp-python", "nvidia-ml-py")

Progress = Callable[[str], None]


def gather(
    out: str | Path,
    *,
    model_name: str = "random-0.8b",
    only: Sequence[str] = (),
    gguf: str | None = None,
    progress: Progress = lambda _: None,
) -> Record:
    """Measure, and write out/record.json after every part, so that what is interrupted can go on.

    only  the parts to run; the others are taken from a record that is there already, if it is of this machine, model,
          commit and versions of packages. Without it every part that such a record lacks is run
    Raises ValueError for an unknown part or model, RecordError for a record of something else, OSError for a folder
    that cannot be written. A part that cannot run is listed in the record's not_run, with its reason.
    """
    from luce_edu.models import load_model

    unknown = [part for part in only if part not in PARTS]
    if unknown:
        raise ValueError(f"--only: unknown part {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    content, path = begin_record(out, model_name)
    wanted = [part for part in PARTS if (part in only if only else part not in content["parts"])]
    record = Record(path.stem, content)
    model = load_model(model_name)
    if not torch.cuda.is_available():
        _skip(content, wanted, "no CUDA GPU here; nothing is measured in the emulator")
        record.save(path)
        return record
    try:
        backend = make_backend("cuda")
        model.weights_on(backend.device)
    except (ValueError, RuntimeError) as error:  # too old, too small, or a driver that does not work
        _skip(content, wanted, reason(error))
        record.save(path)
        return record
    _forget(content, wanted)
    if "verify" in wanted:
        with _part(content, "verify"):
            content["parts"]["verify"] = _verify(model, progress)
        record.save(path)
    for part, measure in (("launch", measure_launch_costs), ("bandwidth", measure_bandwidth)):
        if part in wanted:
            progress(part)
            with _part(content, part):
                content["parts"][part] = measure(backend).to_dict()
                record.checked()
            record.save(path)
    if set(BENCHED) & set(wanted):
        _bench(content, model, wanted, gguf, progress, lambda: record.save(path))
    record.save(path)
    return record


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


def _bench(content: dict, model, wanted: Sequence[str], gguf: str | None, progress: Progress, save) -> None:
    """The parts that share loaded systems."""
    sensors = None
    if {"decode", "energy"} & set(wanted):
        try:
            sensors = Sensors.open()
        except NotMeasured as error:
            if "energy" in wanted:
                content["not_run"].append({"part": "energy", "reason": str(error)})
    before = content["not_run"]

    def take(result: Bench) -> None:
        for part in BENCHED:
            if getattr(result, part):
                content["parts"][part] = getattr(result, part)
        content["not_run"] = before + result.not_run
        content["machine"] |= result.clocks
        save()

    with _part(content, ALL_BENCHED):
        contexts = [c for c in CONTEXTS if c + 4 * STEPS <= model.config.max_position_embeddings]
        if not contexts:
            raise NotMeasured(f"the model has room for {model.config.max_position_embeddings} tokens, too few to time")
        result = bench(
            model, make_systems(model, max_seq_len=max(contexts) + 4 * STEPS, gguf=gguf),
            contexts=contexts if "decode" in wanted else (),
            prompts=[n for n in PROMPTS if n <= max(contexts)] if "prefill" in wanted else (),
            energy_seconds=4.0 if sensors and "energy" in wanted else None,
            sensors=sensors, progress=progress, save=take,
        )  # fmt: skip
        take(result)
        said = {row["part"] for row in content["not_run"]}
        for part in wanted:
            if part in BENCHED and part not in content["parts"] and part not in said:
                content["not_run"].append({"part": part, "reason": "no system could be measured"})


def _verify(model, progress: Progress) -> dict:
    from luce_edu.verification import DECODED, verify, verify_prefill

    steps = verify(model, device="cuda", progress=progress)
    room = model.config.max_position_embeddings - DECODED
    lengths = [n for n in VERIFIED_PROMPTS if n <= room]
    prompts = verify_prefill(model, device="cuda", prompts=lengths, progress=progress)
    return steps.to_dict() | {"passed": steps.passed and prompts.passed, "prompts": prompts.to_dict()}


class _part:
    """A context in which a failure becomes a line of the record's not_run, and what was half done is dropped."""

    def __init__(self, content: dict, name: str):
        self._content, self._name = content, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> bool:
        if not isinstance(error, Exception):
            return False
        self._content["parts"].pop(self._name, None)
        self._content["not_run"].append({"part": self._name, "reason": reason(error)})
        return True


def _skip(content: dict, wanted: Sequence[str], why: str) -> None:
    _forget(content, wanted)
    content["not_run"] += [{"part": part, "reason": why} for part in wanted]


def _forget(content: dict, wanted: Sequence[str]) -> None:
    """Drop what an earlier run said of the parts that this one does again."""
    for part in wanted:
        content["parts"].pop(part, None)
    content["not_run"] = [row for row in content["not_run"] if not _parts_of(row) & set(wanted)]


def _parts_of(row: dict) -> set[str]:
    """The parts that a line of not_run speaks of: itself, or those that a system of `bench` could not take part in."""
    name = row["part"]
    if name in PARTS:
        return {name}
    if name == ALL_BENCHED:
        return set(BENCHED)
    marks = {", decode at ": "decode", ", prompt of ": "prefill", ", energy": "energy", "idle draw": "energy"}
    return {part for mark, part in marks.items() if mark in name} or set(BENCHED)


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


def commit() -> str | None:
    """The commit of the checkout that runs, with a + where code differs from it; None without git."""
    top = Path(__file__).resolve().parents[2]
    git = ["git", "-C", os.fspath(top)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        # Not all files: a record that is written into the checkout would make its own second run another commit's.
        status = [*git, "status", "--porcelain", "--", "luce_edu", "csrc"]
        changed = subprocess.run(status, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


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
