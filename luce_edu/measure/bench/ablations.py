"""Time the variants of the stage `streaming`, each in turns with the stage as it ships, whose logits they must have."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch

from luce_edu.measure.bench.bench import PROMPT, ROUNDS, STEPS, Bench, WrongChoice, check_system
from luce_edu.measure.bench.systems import StageSystem
from luce_edu.measure.floor import decode_bytes
from luce_edu.measure.latency import Quartiles
from luce_edu.measure.records.rows import DecodeRow, NotRun
from luce_edu.measure.schema import checked
from luce_edu.stages.streaming import VARIANTS, StreamingDecoder, distinct_variants, order_of_sums
from luce_edu.verification import relative_error

STAGE = StreamingDecoder.stage
SYSTEMS = {f"{STAGE}, {variant}": variant for variant, macros in VARIANTS.items() if macros}
TOKENS = 8  # whose logits are compared, after PROMPT others
# How far logits may be from those of the stage if the variant adds in another order: ||difference|| / ||logits||. That
# is 2.3e-6 for the 0.8B model (measured on the virtual GPU); a rounding of the cache that changes makes it more.
NEAR = 1e-4

Progress = Callable[[str], None]
Makers = dict[str, Callable[[], StageSystem]]


def make_variants(model, backend) -> tuple[Makers, list[NotRun]]:
    """Return a function for the stage and for each variant that loads it, and a row for each that is another one here.

    backend  of the GPU, whose shared memory decides which variants are the same
    """
    same_as = distinct_variants(model.config, backend.shared_memory_per_block, backend.capability)
    names = [STAGE, *(name for name, variant in SYSTEMS.items() if same_as[variant] is None)]
    alike = [
        NotRun(("ablations",), f"on this GPU it is the same as {same_as[variant]}", name, kind="absent")
        for name, variant in SYSTEMS.items()
        if same_as[variant]
    ]
    room = PROMPT + 4 * STEPS
    return {name: (lambda name=name: StageSystem(name, model, max_seq_len=room)) for name in names}, alike


def ablate(
    model, makers: Makers, *, known: Collection[str] = (), progress: Progress = lambda _: None,
    save: Callable[[Bench], None] = lambda _: None,
) -> Bench:  # fmt: skip
    """Compare each variant's logits with those of the stage, then time the two in turns.

    makers  as of `make_variants`, the stage first
    known   names of variants that have been timed before, and are left out
    save    called with the results so far after each variant; the times of the stage are those of all turns
    A variant that fails, or has other logits, is listed in `not_run` with the reason, and the others go on. Raises
    WrongChoice if the stage itself chooses another token than the fp32 reference.
    """
    result, rows = Bench("", None), {}
    times: dict[str, list[float]] = {STAGE: []}
    size = decode_bytes(model.config, PROMPT).total
    with _loaded(makers[STAGE]) as stage:
        progress(f"{STAGE}: checking its tokens")
        check_system(stage, model, progress)
        expected = stage.logits_after(PROMPT, TOKENS)
        for name, make in makers.items():
            if name == STAGE or name in known:
                continue
            progress(f"{name}: loading")
            with result.reported("ablations", system=name), _loaded(make) as variant:
                progress(f"{name}: checking its logits")
                _check(name, variant.logits_after(PROMPT, TOKENS), expected)
                times[name] = []
                for number in range(ROUNDS):
                    for system in (stage, variant)[:: 1 if number % 2 == 0 else -1]:
                        progress(f"{name}: {system.name}, round {number + 1} of {ROUNDS}")
                        system.pretend(PROMPT)
                        more, asked = system.time_decode(steps=STEPS)
                        times[system.name] += more
                        rows[system.name] = checked(DecodeRow(
                            system.name, PROMPT, Quartiles.of(times[system.name]), asked, system.launches,
                            system.kernels, system.barriers, size,
                        ))  # fmt: skip
            result.decode = list(rows.values())
            save(result)
    return result


@contextmanager
def _loaded(make: Callable[[], StageSystem]) -> Iterator[StageSystem]:
    system = make()
    try:
        yield system
    finally:
        system.close()


def _check(name: str, logits: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise WrongChoice unless logits are the stage's: the same bits, or near ones if the order of sums is another."""
    if order_of_sums(SYSTEMS[name]) == order_of_sums(None):
        if not torch.equal(logits, expected):
            raise WrongChoice(f"wrong, so not timed: other bits than {STAGE}, which adds in the same order")
    elif not (error := relative_error(logits, expected)) <= NEAR:
        raise WrongChoice(f"wrong, so not timed: its logits differ from those of {STAGE} by {error:.1e}, limit {NEAR}")

