"""Measure everything about one machine in one call and one record: verification, constants, tasks, decode and energy.

It runs from a checkout with Python, PyTorch, transformers, cuda-core and matplotlib; the record lists what could not be
measured without other packages. It reads NVML and changes no setting of the GPU.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from luce_edu.backends import make_backend
from luce_edu.errors import NotMeasured
from luce_edu.measure.bench.ablations import STAGE, ablate, make_variants
from luce_edu.measure.bench.bench import CONTEXTS, PROMPT, PROMPTS, STEPS, Bench, bench, reason
from luce_edu.measure.bench.systems import make_systems
from luce_edu.measure.bench.tasks import measure_tasks
from luce_edu.measure.constants import measure_bandwidth, measure_launch_costs
from luce_edu.measure.nvml import Sensors, or_none
from luce_edu.measure.records.predictions import beside
from luce_edu.measure.records.record import Record, RecordError, commit
from luce_edu.measure.records.rows import DecodeRow, EnergyRow, Machine, NotRun, PrefillRow, Recorded, Verified
from luce_edu.measure.schema import checked
from luce_edu.stages import STAGES
from luce_edu.verification import DECODED, verify, verify_paths, verify_prefill

BENCHED = ("decode", "prefill", "energy")  # by one call of `bench`, so that each system is loaded once
VERIFIED = ("verify", "verify_paths", "verify_prefill")
PARTS = (*VERIFIED, "launch", "bandwidth", "tasks", *BENCHED, "ablations")
RECORD = "record.json"
# Fewer than `luce-edu verify --prefill` runs: the logits of every token are kept, and the vocabulary is large.
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
    """Measure, and write out/record.json after every part, so that a second call goes on after an interruption.

    model     the loaded model, if load_model(model_name) has been called already
    only      the parts to run; () for all that the record in `out` lacks. The record must be of the same machine,
              model, commit and package versions
    systems   names from make_systems; with `only`, measure these and keep the record's rows of the others
    contexts  of the decode part, in tokens
    Raises ValueError for an unknown part or model, RecordError for a record of another machine, model, commit or
    version, and OSError for a folder that cannot be written. A part that cannot run is listed in the record's not_run.
    """
    from luce_edu.models import load_model

    unknown = [part for part in only if part not in PARTS]
    if unknown:
        raise ValueError(f"--only: unknown part {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    content, path = begin_record(out, model_name)
    wanted = [part for part in PARTS if (part in only if only else lacks(content, part))]
    record = Record(path.stem, content)
    model = model or load_model(model_name)
    _forget(content, wanted, systems)
    try:
        if not torch.cuda.is_available():
            raise NotMeasured("no CUDA GPU here; nothing is measured on the virtual GPU")
        backend = make_backend("cuda")
        model.weights_on(backend.device)
    except (NotMeasured, ValueError, RuntimeError) as error:  # old GPU, little memory, broken driver
        content.not_run.append(_failed(wanted, systems, error))
        record.save(path)
        return record
    for part in PARTS:
        if part in wanted and part not in (*BENCHED, "ablations"):
            progress(part)
            with _reported(content, [part], systems):
                if part in VERIFIED:
                    found = _verified(part, content, model, systems, progress)
                else:
                    measure = {"launch": measure_launch_costs, "bandwidth": measure_bandwidth, "tasks": measure_tasks}
                    found = measure[part](backend)
                content.parts[part] = checked(found)
            record.save(path)
    benched = [part for part in wanted if part in BENCHED]
    if benched:
        _bench(content, model, benched, systems, contexts, gguf, progress, lambda: record.save(path))
    if "ablations" in wanted and (systems is None or STAGE in systems):
        with _reported(content, ["ablations"], systems):
            _ablate(content, model, backend, progress, lambda: record.save(path))
    record.save(path)
    return record


def lacks(content: Recorded, part: str) -> bool:
    """Whether a record lacks a part, or has it only in part because of an interruption."""
    unfinished = (row for row in content.not_run if row.kind == "unfinished")
    return part not in content.parts or any(row.concerns([part]) for row in unfinished)


def begin_record(out: str | Path, model_name: str) -> tuple[Recorded, Path]:
    """Start a record of this machine in the folder `out`, or continue the one there; return its content and file.

    Raises as `gather` does.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    content = Recorded(datetime.date.today().isoformat(), commit(), model_name, machine(), {}, [])
    path = out / RECORD
    if path.exists():
        _take_over(content, Record.load(path), path)
    return content, path


def _bench(content: Recorded, model, wanted, systems, contexts, gguf: str | None, progress: Progress, save) -> None:
    """Run the wanted parts of BENCHED; `save` is called after each context and prompt."""
    sensors = None
    if {"decode", "energy"} & set(wanted):
        try:
            sensors = Sensors.open()
        except NotMeasured as error:
            if "energy" in wanted:
                content.not_run.append(NotRun(("energy",), str(error)))
    before, kept = content.not_run, dict(content.parts)

    def take(result: Bench) -> None:
        wrong = {row.system for row in result.not_run if row.kind == "wrong"}
        for part in BENCHED:
            new = [_with_prediction(row, content.machine.gpu, model) for row in getattr(result, part)]
            known = {row.key for row in new}
            old = [row for row in kept.get(part, ()) if row.key not in known and row.system not in wrong]
            content.parts.pop(part, None)
            if old or new:
                content.parts[part] = sorted([*old, *new], key=lambda row: row.key[1])
        # A call for some systems is a step of `luce-edu gpu`, which keeps its own list of what is unfinished.
        ahead = BENCHED[BENCHED.index(result.running) :] if result.running and systems is None else ()
        unfinished = [NotRun((part,), "it was interrupted", kind="unfinished") for part in ahead if part in wanted]
        content.not_run = before + result.not_run + unfinished
        content.machine = replace(content.machine, **result.clocks)
        save()

    with _reported(content, wanted, systems):
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
        said = {part for row in content.not_run if row.system is None and row.step is None for part in row.parts}
        missing = [part for part in wanted if part not in content.parts and part not in said]
        content.not_run += [NotRun((part,), "no system could be measured") for part in missing]


def _ablate(content: Recorded, model, backend, progress: Progress, save) -> None:
    """Time the variants of `streaming` that the record lacks; `save` is called after each."""
    makers, alike = make_variants(model, backend)
    kept = {row.system: row for row in content.parts.get("ablations", ())}
    before = [*content.not_run, *alike]

    def take(result: Bench) -> None:
        new = {row.system: _with_prediction(row, content.machine.gpu, model) for row in result.decode}
        content.not_run = before + result.not_run
        if rows := list((kept | new).values()):
            content.parts["ablations"] = rows
        save()

    take(ablate(model, makers, known=kept, progress=progress, save=take))


def _with_prediction(row: DecodeRow | PrefillRow | EnergyRow, gpu: str, model) -> DecodeRow | PrefillRow | EnergyRow:
    """Add the clock's prediction to a row, if there is one."""
    if isinstance(row, PrefillRow):
        return row
    return replace(row, modelled=beside(row, gpu, model.config))


def _verified(part: str, content: Recorded, model, systems: Sequence[str] | None, progress: Progress) -> Verified:
    """Verify these stages, or all, and add the record's rows of other stages; all use the record's seed."""
    stages = None if systems is None else [stage for stage in STAGES if stage in systems]
    seed = content.parts["verify"].seed if "verify" in content.parts else None
    result = _verify(part, model, seed=seed, stages=stages, progress=progress)
    others = content.parts[part].rows if part in content.parts else ()
    return replace(result, rows=tuple(sorted((*others, *result.rows), key=lambda row: STAGES.index(row.stage))))


def _verify(part: str, model, **options) -> Verified:
    if part == "verify":
        return Verified.of(verify(model, device="cuda", **options))
    if part == "verify_paths":  # always on the small model random-odd
        return Verified.of(verify_paths(device="cuda", **options))
    lengths = [n for n in VERIFIED_PROMPTS if n <= model.config.max_position_embeddings - DECODED]
    return Verified.of(verify_prefill(model, device="cuda", prompts=lengths, **options))


@contextmanager
def _reported(content: Recorded, parts: Sequence[str], systems: Sequence[str] | None) -> Iterator[None]:
    """Turn a failure inside the context into a row of not_run."""
    try:
        yield
    except Exception as error:
        content.not_run.append(_failed(parts, systems, error))


def _failed(parts: Sequence[str], systems: Sequence[str] | None, error: Exception) -> NotRun:
    """Return the row for a failure; it names the system if there is only one."""
    return NotRun(tuple(parts), reason(error), systems[0] if systems and len(systems) == 1 else None)


def _forget(content: Recorded, wanted: Sequence[str], systems: Sequence[str] | None = None) -> None:
    """Drop what the record says of parts that are measured again, for these systems or for all."""
    for part in wanted:
        report = content.parts.get(part)
        if report and systems is None:
            del content.parts[part]
        elif report and part in VERIFIED:
            rows = tuple(row for row in report.rows if row.stage not in systems)
            content.parts[part] = replace(report, rows=rows)
            if not rows:
                del content.parts[part]
    content.not_run = [left for row in content.not_run if (left := row.without(wanted, systems))]


def _take_over(content: Recorded, old: Record, path: Path) -> None:
    """Continue an earlier record; raise RecordError if machine, model, commit or a version differs."""
    if old.kind != "recorded":
        raise RecordError(f"{path.name}: a {old.kind} record is there already; name another folder")
    was, now = old.content.machine, content.machine
    pairs = {
        "model": (old.content.model, content.model), "commit": (old.content.commit, content.commit),
        "GPU": (was.gpu, now.gpu),
    }  # fmt: skip
    names = sorted({*was.versions, *now.versions})
    pairs |= {name: (was.versions.get(name), now.versions.get(name)) for name in names}
    for what, (before, here) in pairs.items():
        if before != here:
            raise RecordError(
                f"{path.name}: a record of {what} {before} is there already, this is {here}; name another folder"
            )
    # The clocks belong to the decode part, which is kept.
    content.machine = replace(now, sm_clock_mhz=was.sm_clock_mhz, memory_clock_mhz=was.memory_clock_mhz)
    content.parts, content.not_run = old.parts, old.not_run


def machine() -> Machine:
    """Describe this machine for a record; without a GPU its name is "none"."""
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    if not torch.cuda.is_available():
        return Machine("none", "none", 1, 0, 0, None, None, versions)
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    try:
        sensors: Sensors | None = Sensors.open()
    except NotMeasured:
        sensors = None
    return Machine(
        gpu.name, f"sm_{gpu.major}{gpu.minor}", gpu.multi_processor_count, gpu.total_memory, gpu.L2_cache_size,
        driver=or_none(sensors.driver) if sensors else None,
        power_limit_w=or_none(sensors.power_limit_w) if sensors else None,
        versions=versions,
    )  # fmt: skip


def bench_table(record: Record, *parts: str) -> Bench:
    """Return a record's decode, prefill and energy as a table, its floor by the datasheet's or measured bandwidth.

    parts  other ones in their place, such as "ablations"
    """
    bandwidth = record.parts.get("bandwidth")
    gb_per_s = bandwidth and (bandwidth.datasheet or bandwidth.read)
    return Bench(record.provenance, gb_per_s, *(record.parts.get(part, []) for part in parts or BENCHED))
