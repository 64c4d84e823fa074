"""Time stages and baselines in one run: the same weights and prompts, checked before they are timed, in turns."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from luce_edu.errors import NotMeasured
from luce_edu.measure.bench.systems import System
from luce_edu.measure.energy import measure_energy, measure_idle
from luce_edu.measure.floor import decode_bytes
from luce_edu.measure.latency import Quartiles
from luce_edu.measure.nvml import Sensors, or_none
from luce_edu.measure.records.rows import DecodeRow, EnergyRow, NotRun, PrefillRow
from luce_edu.measure.schema import checked
from luce_edu.reference.model import forward
from luce_edu.tables import Tabular
from luce_edu.verification import true_fp32

PROMPT = 520  # tokens, as in the tables of others (pp520)
PROMPTS = (PROMPT, 4096)
CONTEXTS = (1, 512, PROMPT, 2048, 8192, 32768)
STEPS = 64  # per round, at each context
PROMPT_WARM_UP = 3  # the first loads kernels, the second captures a graph
PROMPT_ROUNDS = 5
ROUNDS = 2  # the second in reverse order, so that a GPU that warms up or throttles favours no system
CHECKED_TEXT = 48  # random tokens; after each the reference chooses a next one
CHECKED_CHOICES = 6  # of these, how many every system must repeat

Progress = Callable[[str], None]
log = logging.getLogger(__name__)


@dataclass(repr=False)
class Bench(Tabular):
    """The results of a run, as rows of a record.

    clocks   sm_clock_mhz and memory_clock_mhz just after a decode loop; None for one that cannot be read, {} for no
             sensors
    running  the part that is being measured: decode, prefill or energy; None before and after
    """

    where: str
    datasheet_gb_per_s: float | None
    decode: list[DecodeRow] = field(default_factory=list)
    prefill: list[PrefillRow] = field(default_factory=list)
    energy: list[EnergyRow] = field(default_factory=list)
    not_run: list[NotRun] = field(default_factory=list)
    clocks: dict[str, int | None] = field(default_factory=dict)
    running: str | None = None

    @property
    def title(self) -> str:
        return self.where

    header = ("system", "test", "µs per token", "quartiles", "tok/s", "CPU to enqueue, µs", "launches", "of the floor")

    @property
    def body(self) -> list[list[str]]:
        rows = []
        for row in self.decode:
            us = row.latency_us
            floor = row.bytes / (self.datasheet_gb_per_s * 1e3) if self.datasheet_gb_per_s else None
            rows.append([
                row.system, f"decode at {row.context:,}", f"{us.median:,.0f}", f"{us.q1:,.0f} to {us.q3:,.0f}",
                f"{1e6 / us.median:,.0f}", "–" if row.enqueue_us is None else f"{row.enqueue_us:,.0f}",
                "–" if row.launches is None else f"{row.launches:,}",
                "–" if floor is None else f"{us.median / floor:.2f} ×",
            ])  # fmt: skip
        for row in self.prefill:
            us = row.latency_us.scaled(1 / row.tokens)
            rows.append([
                row.system, f"prompt of {row.tokens:,}", f"{us.median:,.1f}", f"{us.q1:,.1f} to {us.q3:,.1f}",
                f"{1e6 / us.median:,.0f}", "–", "–", "–",
            ])  # fmt: skip
        return rows

    @property
    def caption(self) -> str:
        joules = [f"{row.system}: {row.tokens / row.joules:.2f} tok/J gross" for row in self.energy]
        missing = [f"not run: {row}" for row in self.not_run]
        return "\n".join([", ".join(joules), *missing]).strip()

    @contextmanager
    def reported(
        self, *parts: str, system: str | None = None, at: int | None = None, loading: bool = False, doing: str = ""
    ) -> Iterator[None]:
        """Turn a failure inside the context into a row of `not_run`.

        loading  whether the system is being loaded: if that raises NotMeasured, the system is absent
        doing    which step of the measurement may fail; "" for all of it
        """
        try:
            yield
        except Exception as error:  # Ctrl-C is no Exception, and ends the run
            kind = "absent" if loading and isinstance(error, NotMeasured) else "failed"
            kind = "wrong" if isinstance(error, WrongChoice) else kind
            why = f"{doing}: {reason(error)}" if doing else reason(error)
            self.not_run.append(NotRun(parts, why, system, at, kind=kind))

    def has_failed(self, system: str, part: str, at: int | None = None) -> bool:
        """Whether a row says so of exactly this measurement."""
        return any(row.system == system and row.at == at and part in row.parts for row in self.not_run)


def bench(
    model,
    makers: dict[str, Callable[[], System]],
    *,
    contexts: Sequence[int] = CONTEXTS,
    prompts: Sequence[int] = PROMPTS,
    steps: int = STEPS,
    energy_seconds: float | None = None,
    sensors: Sensors | None = None,
    where: str = "",
    datasheet_gb_per_s: float | None = None,
    progress: Progress = lambda _: None,
    save: Callable[[Bench], None] = lambda _: None,
) -> Bench:
    """Check every system against the fp32 reference, then time those that agree with it.

    makers          as `make_systems` returns them
    contexts        tokens in the cache before a decode step; prompts: lengths in tokens; () to time none
    energy_seconds  length of the window in which energy is measured, at a context of PROMPT; None to measure none
    save            called with the results so far after each context and each prompt, so that an interruption does not
                    lose them
    A system that is absent, wrong, or fails is listed in `not_run` with the reason, and the others go on. Raises
    NotMeasured if the reference decides no choice, because then no system can be checked.
    """
    result = Bench(where, datasheet_gb_per_s)
    asked = {"decode": contexts, "prefill": prompts, "energy": energy_seconds is not None}
    parts = tuple(part for part, wanted in asked.items() if wanted)
    systems: dict[str, System] = {}
    choices = _decided_choices(model, progress)
    for name, make in makers.items():
        progress(f"{name}: loading")
        with result.reported(*parts, system=name, loading=True):
            systems[name] = make()
            progress(f"{name}: checking its tokens")
            _check(systems[name], choices)
        if any(row.system == name for row in result.not_run):
            systems.pop(name, None)
            gc.collect()  # frees its memory before the next system is loaded
    result.running = "decode"
    for context in contexts:
        _time_decode(result, systems, context, steps, decode_bytes(model.config, context).total, sensors, progress)
        save(result)
    result.running = "prefill"
    save(result)
    for tokens in prompts:
        _time_prompts(result, systems, model, tokens, progress)
        save(result)
    result.running = "energy"
    save(result)
    if energy_seconds is not None:
        _measure_energy(result, systems, sensors, energy_seconds, progress)
    result.running = None
    for name, system in systems.items():
        with result.reported(*parts, system=name, doing="closing it"):  # after a CUDA error this fails as well
            system.close()
    return result


def reason(error: Exception) -> str:
    """Return an error in one line; the log gets its traceback."""
    log.debug("not run", exc_info=error)
    if isinstance(error, NotMeasured):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory does not suffice"
    return f"{type(error).__name__}: {(str(error) or '(no message)').splitlines()[0]}"[:300]


def _decided_choices(model, progress: Progress) -> list[tuple[list[int], int, int | None]]:
    """Return (prompt, the fp32 reference's greedy next token, the token after that) for some prompts.

    The reference prefers the first token by more than bf16's error can change. The second is None where it does not.
    Raises NotMeasured if there is no such prompt.
    """
    progress("fp32 reference")
    text = torch.randint(model.config.vocab_size, (CHECKED_TEXT,), generator=torch.Generator().manual_seed(7)).tolist()
    found = []
    for length in range(CHECKED_TEXT, 0, -1):
        if len(found) == CHECKED_CHOICES:
            break
        if (token := _decided_choice(model, text[:length])) is not None:
            found.append((text[:length], token, _decided_choice(model, [*text[:length], token])))
    if not found:
        raise NotMeasured("the reference decides no choice by more than bf16's error, so nothing can be checked")
    return found


def _decided_choice(model, prompt: list[int]) -> int | None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights, tokens = model.weights_on(device), torch.tensor(prompt, device=device)
    with torch.no_grad(), true_fp32():
        exact, rounded = (
            forward(weights, model.config, tokens, dtype=dtype)[-1].float() for dtype in (torch.float32, torch.bfloat16)
        )
    top = exact.topk(2).values
    return int(exact.argmax()) if top[0] - top[1] > 2 * (exact - rounded).abs().max() else None


class WrongChoice(NotMeasured):
    """A system chose another token than the reference, so it does not compute the model and is not timed."""


def check_system(system: System, model, progress: Progress = lambda _: None) -> None:
    """Raise WrongChoice if a system chooses another token than the fp32 reference where bf16's error cannot decide.

    Raises NotMeasured if the reference decides no choice.
    """
    _check(system, _decided_choices(model, progress))


def _check(system: System, choices: list[tuple[list[int], int, int | None]]) -> None:
    for prompt, first, second in choices:
        for read in system.ways_to_read():
            read(prompt)
            for step, token in enumerate((first, second)):
                if step:
                    system.step()
                if token is not None and (choice := system.choice()) != token:
                    after = len(prompt) + step
                    raise WrongChoice(
                        f"wrong, so not timed: after {after} tokens it chooses {choice}, the reference {token}"
                    )


def _time_decode(
    result: Bench, systems: dict[str, System], context: int, steps: int, least_bytes: int, sensors: Sensors | None,
    progress: Progress,
) -> None:  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in systems}
    asked: dict[str, float | None] = {}
    for number in range(ROUNDS):
        for name in list(systems)[:: 1 if number % 2 == 0 else -1]:
            if result.has_failed(name, "decode", context):
                continue
            progress(f"decode at {context}: {name}, round {number + 1} of {ROUNDS}")
            with result.reported("decode", system=name, at=context):
                systems[name].pretend(context)
                more, asked[name] = systems[name].time_decode(steps=steps)
                if sensors is not None:  # right after the loop, because an idle GPU lowers its clocks
                    result.clocks = {
                        "sm_clock_mhz": or_none(sensors.sm_clock_mhz),
                        "memory_clock_mhz": or_none(sensors.memory_clock_mhz),
                    }
                times[name] += more
    for name, system in systems.items():
        if result.has_failed(name, "decode", context):
            continue
        if system.launches is None and not result.has_failed(name, "decode"):  # counting is tried once
            with result.reported("decode", system=name, doing="counting its launches"):
                system.launches = system.count_launches()
        with result.reported("decode", system=name, at=context):
            result.decode.append(checked(DecodeRow(
                system.name, context, Quartiles.of(times[name]), asked[name], system.launches, system.kernels,
                system.barriers, least_bytes,
            )))  # fmt: skip


def _time_prompts(result: Bench, systems: dict[str, System], model, tokens: int, progress: Progress) -> None:
    prompt = torch.randint(model.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(11)).tolist()
    readers: dict[str, System] = {}
    for system in systems.values():
        readers.setdefault(system.reader, system)
    for name, system in readers.items():
        one = {"system": name} if name in systems else {"doing": name}  # stages share a way to read prompts
        with result.reported("prefill", at=tokens, **one):
            times = []
            for number in range(PROMPT_WARM_UP + PROMPT_ROUNDS):
                progress(f"prompt of {tokens}: {name}, {number + 1} of {PROMPT_WARM_UP + PROMPT_ROUNDS}")
                system.wait()
                started = time.perf_counter()
                system.prefill(prompt)
                system.choice()  # waits for the GPU
                times.append(1e6 * (time.perf_counter() - started))
            result.prefill.append(checked(PrefillRow(name, tokens, Quartiles.of(times[PROMPT_WARM_UP:]))))


def _measure_energy(result: Bench, systems, sensors: Sensors | None, seconds: float, progress: Progress) -> None:
    if sensors is None:
        result.not_run.append(NotRun(("energy",), "NVML cannot be had"))
        return
    progress("idle draw")
    idle_w = None
    with result.reported("energy", doing="idle draw"):
        idle_w = measure_idle(sensors)
    for name, system in systems.items():
        progress(f"energy: {name}")
        with result.reported("energy", system=name):
            system.pretend(PROMPT)

            def run(system=system) -> int:
                system.rewind(PROMPT)
                for _ in range(STEPS):
                    system.step()
                system.wait()
                return STEPS

            run()
            energy = measure_energy(run, sensors, seconds=seconds, idle_w=idle_w)
            result.energy.append(checked(EnergyRow(
                system.name, PROMPT, energy.work, energy.seconds, energy.joules, energy.sampled_joules, idle_w,
                energy.method,
            )))  # fmt: skip
