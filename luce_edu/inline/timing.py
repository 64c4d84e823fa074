"""Time a notebook's kernels on the GPU that is there: the text of its cells, on a matrix that no cache holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from luce_edu.backends import make_backend
from luce_edu.inline.specs import find_spec
from luce_edu.inline.trial import Verdict, prepare
from luce_edu.tables import Tabular
from luce_edu.verification import relative_error

SHAPE = {"rows": 131_072, "cols": 1024}  # W takes 268 MB, more than any L2, so each launch fetches it from memory
WARM_UP = 3  # rounds that are not counted


@dataclass(frozen=True)
class KernelTime:
    """Microseconds a launch, over many: the median round, and the quartiles of the rounds."""

    kernel: str
    us: float
    lower: float
    upper: float


@dataclass(repr=False)
class KernelTimes(Tabular):
    """Result of `time_matvecs`. `bytes` are what one launch moves at least."""

    gpu: str
    shape: Mapping[str, int]
    bytes: int
    times: Sequence[KernelTime]

    header = ("", "µs", "quartiles", "GB/s")

    @property
    def body(self) -> list[list[str]]:
        return [
            [t.kernel, f"{t.us:,.0f}", f"{t.lower:,.0f} to {t.upper:,.0f}", f"{self.bytes / (1e3 * t.us):,.0f}"]
            for t in self.times
        ]

    @property
    def caption(self) -> str:
        sizes = ", ".join(f"{name} {size:,}" for name, size in self.shape.items())
        return (
            f"{self.gpu}, {sizes}: measured now with CUDA events, median of rounds. "
            f"GB/s: {self.bytes / 1e6:,.0f} MB, each byte once, over the time."
        )


def time_matvecs(verdicts: Sequence[Verdict], *, launches: int = 5, rounds: int = 15) -> KernelTimes:
    """Check kernels of `%%kernel` cells, kept with --as, against F.linear at SHAPE, then time them, and PyTorch's own.

    Raises ValueError where there is no GPU, AssertionError for a kernel that is wrong.
    """
    device = make_backend("cuda").device
    spec = find_spec("F.linear")
    inputs = spec.make(SHAPE, lambda *size: torch.randn(size, device=device))
    truth = spec.truth(inputs, SHAPE)["y"]
    half = inputs["x"].bfloat16()
    runs: dict[str, Callable[[], object]] = {}
    for verdict in verdicts:
        name, y = verdict.kernel, torch.full_like(truth, float("nan"))
        runs[name] = prepare(verdict.attempt, SHAPE, inputs | {"y": y}, make_backend("cuda"))
        runs[name]()
        error = relative_error(y, truth)
        assert error <= spec.limit, f"{name} is wrong at {SHAPE}: error {error:.1e}"
    runs["torch.mv, x in bf16"] = lambda: torch.mv(inputs["W"], half)
    times = []
    for name, run in runs.items():
        us = [_elapsed_us(run, launches) for _ in range(WARM_UP + rounds)][WARM_UP:]
        lower, middle, upper = statistics.quantiles(us, n=4)
        times.append(KernelTime(name, middle, lower, upper))
    least = inputs["W"].nbytes + inputs["x"].nbytes + truth.nbytes
    return KernelTimes(torch.cuda.get_device_name(), SHAPE, least, times)


def _elapsed_us(run: Callable[[], object], launches: int) -> float:
    """Microseconds a launch, between two events around `launches` of them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(launches):
        run()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end) / launches
