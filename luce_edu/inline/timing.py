"""Time the kernels of notebook cells on this machine's GPU, on a matrix that is larger than any cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from luce_edu.backends import make_backend
from luce_edu.inline.specs import find_spec
from luce_edu.inline.trial import Verdict, prepare
from luce_edu.measure.latency import Quartiles, time_rounds
from luce_edu.tables import Tabular
from luce_edu.verification import relative_error

SHAPE = {"rows": 131_072, "cols": 1024}  # W has 268 MB, more than any L2, so each launch reads it from memory


@dataclass(repr=False)
class KernelTimes(Tabular):
    """The result of `time_matvecs`. `bytes` is the least that one launch moves."""

    gpu: str
    shape: Mapping[str, int]
    bytes: int
    times: Mapping[str, Quartiles]

    header = ("", "µs", "quartiles", "GB/s")

    @property
    def body(self) -> list[list[str]]:
        return [
            [kernel, f"{t.median:,.0f}", f"{t.q1:,.0f} to {t.q3:,.0f}", f"{self.bytes / (1e3 * t.median):,.0f}"]
            for kernel, t in self.times.items()
        ]

    @property
    def caption(self) -> str:
        sizes = ", ".join(f"{name} {size:,}" for name, size in self.shape.items())
        return (
            f"{self.gpu}, {sizes}: measured now with CUDA events, median of rounds. "
            f"GB/s: {self.bytes / 1e6:,.0f} MB, each byte counted once, divided by the time."
        )


def time_matvecs(verdicts: Sequence[Verdict], *, launches: int = 5, rounds: int = 15) -> KernelTimes:
    """Check kernels of `%%kernel` cells, kept with --as, against F.linear at SHAPE; then time them and PyTorch's own.

    Raises ValueError if there is no GPU, AssertionError for a wrong kernel.
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
    times = {}
    for name, run in runs.items():

        def repeat(run=run) -> None:
            for _ in range(launches):
                run()

        times[name] = time_rounds(repeat, rounds=rounds, each=launches, before=repeat)
    least = inputs["W"].nbytes + inputs["x"].nbytes + truth.nbytes
    return KernelTimes(torch.cuda.get_device_name(), SHAPE, least, times)
