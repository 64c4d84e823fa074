"""Records of machines that do not exist, for tests: shaped as `luce-edu evidence` writes them, from planted constants.

Never to be stored under figures/records/; each says "synthetic" in its GPU's name.
"""

import copy

from models import FULL_SIZE

from luce_edu.measure.bench.bench import CONTEXTS, PROMPT
from luce_edu.measure.floor import decode_bytes
from luce_edu.measure.records.cost_model import STARTS, CostModel
from luce_edu.measure.records.record import SCHEMA, Record

COUNTS = {  # launches, kernels one by one, barriers
    "eager": (2041, None, 0),
    "per_op": (460, 460, 0),
    "per_layer": (122, 122, 0),
    "graph": (1, 122, 0),
    "megakernel": (1, 1, 121),
}
UNEXPLAINED = {"per_op": 1.03, "per_layer": 0.97, "graph": 0.95, "megakernel": 1.06}
BASELINES = (
    "transformers + flash-linear-attention",
    "transformers + flash-linear-attention, static cache and CUDA graphs",
    "llama.cpp",
)
H100_COSTS = CostModel(2900, {"plain": 4.2, "graph": 1.6, "barrier": 1.1})
RTX_3090_COSTS = CostModel(860, {"plain": 5.0, "graph": 2.1, "barrier": 1.4})


def h100() -> Record:
    machine = {
        "gpu": "NVIDIA H100 80GB HBM3 (synthetic)", "arch": "sm_90", "sm_count": 132, "memory_bytes": 85_000_000_000,
        "l2_bytes": 52_428_800, "driver": "580.65.06", "power_limit_w": 700.0, "sm_clock_mhz": 1980.0,
        "memory_clock_mhz": 2619.0, "versions": {"torch": "2.13.0", "transformers": None},
    }  # fmt: skip
    bandwidth = {"read": 3050.0, "copy": 2870.0, "datasheet": 3350.0}
    launch = {"plain_us": 2.4, "graph_us": 1.3, "dependent_us": 0.9, "barrier_us": 1.0}
    return _record("synthetic-h100", machine, bandwidth, launch, H100_COSTS, (29_000, 1310, 1220), idle_w=72)


def rtx_3090() -> Record:
    """Without dependent launch, without a memory clock, its energy from power samples for one system."""
    machine = {
        "gpu": "NVIDIA GeForce RTX 3090 Founders Edition with a very long name (synthetic)", "arch": "sm_86",
        "sm_count": 82, "memory_bytes": 25_000_000_000, "l2_bytes": 6_291_456, "driver": "570.133.20",
        "power_limit_w": 350.0, "sm_clock_mhz": 1860.0, "memory_clock_mhz": None, "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    bandwidth = {"read": 872.0, "copy": 836.0, "datasheet": 936.0}
    launch = {"plain_us": 2.9, "graph_us": 1.4, "dependent_us": None, "barrier_us": 0.8}
    record = _record("synthetic-3090", machine, bandwidth, launch, RTX_3090_COSTS, (33_500, 3050, 3400), idle_w=28)
    row = record.parts["energy"][-1]
    row.update(method="samples", sampled_joules=row["joules"])
    return record


def changed(record: Record, change) -> Record:
    """A copy whose content `change` has altered in place."""
    content = copy.deepcopy(record.content)
    change(content)
    return Record(record.name, content)


def without(record: Record, *parts: str) -> Record:
    return changed(record, lambda content: [content["parts"].pop(part) for part in parts])


def _record(name, machine, bandwidth, launch, costs, baselines_us, idle_w) -> Record:
    decode = []
    for context in CONTEXTS:
        for system, (launches, kernels, barriers) in COUNTS.items():
            row = {"system": system, "context": context, "launches": launches, "kernels": kernels, "barriers": barriers,
                   "bytes": decode_bytes(FULL_SIZE, context).total, "enqueue_us": 6.5 * launches + 11}  # fmt: skip
            median = costs.us(row) if system in STARTS else max(baselines_us[0], 9.5 * launches)
            # What the model cannot know: a few percent at one context, which no constant can take up.
            if context == PROMPT:
                median *= UNEXPLAINED.get(system, 1.0)
            decode.append(row | {"latency_us": _quartiles(median)})
        for system, us in zip(BASELINES, baselines_us, strict=True):
            us += 0.01 * context
            decode.append({"system": system, "context": context, "latency_us": _quartiles(us), "enqueue_us": None,
                           "launches": None, "kernels": None, "barriers": None,
                           "bytes": decode_bytes(FULL_SIZE, context).total})  # fmt: skip
    prefill = [{"system": system, "tokens": PROMPT, "latency_us": _quartiles(40_000)} for system in COUNTS]
    energy = []
    for row in decode:
        if row["context"] == PROMPT:
            us, watts = row["latency_us"]["median"], idle_w + 0.55 * (machine["power_limit_w"] - idle_w)
            tokens = int(4e6 / us)
            joules = watts * tokens * us / 1e6
            energy.append({"system": row["system"], "context": PROMPT, "tokens": tokens, "seconds": tokens * us / 1e6,
                           "joules": joules, "sampled_joules": 0.97 * joules, "idle_w": float(idle_w),
                           "method": "counter"})  # fmt: skip
    verify = {"model": "random-0.8b", "device": "cuda", "steps": 24, "seed": 1, "passed": True, "rows": []}
    return Record(name, {
        "schema": SCHEMA, "kind": "recorded", "date": "2026-11-20", "commit": "0123456789abcdef" * 2 + "01234567",
        "model": "random-0.8b", "machine": machine,
        "parts": {"verify": verify, "verify_paths": verify, "verify_prefill": verify,
                  "tests": {"passed": 9, "skipped": 0, "failed": []},
                  "bandwidth": bandwidth, "launch": launch, "decode": decode, "prefill": prefill,
                  "energy": energy, "sweep": [_sweep(machine["power_limit_w"], float(idle_w))]},
        "not_run": [{"part": "llama.cpp, prompt of 520", "reason": "synthetic"}],
    })  # fmt: skip


def _sweep(default_w: float, idle_w: float) -> dict:
    points = [
        {"limit_w": share * default_w, "clock_mhz": share * 1900.0, "draw_w": 0.98 * share * default_w,
         "tokens_per_s": 400 * share**0.5, "tokens_per_joule": 400 * share**0.5 / (0.98 * share * default_w),
         "temperature_c": 60, "slowed_by": ["power limit"], "settled": True}
        for share in (0.5, 0.6, 0.8, 1.0)
    ]  # fmt: skip
    return {"system": "megakernel", "context": PROMPT, "default_limit_w": default_w,
            "range_w": [0.3 * default_w, default_w], "idle_w": idle_w, "points": points}  # fmt: skip


def _quartiles(median: float) -> dict:
    return {"median": median, "q1": 0.985 * median, "q3": 1.04 * median, "count": 128}
