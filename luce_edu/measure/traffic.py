"""The bytes that a decode step moves, counted load by load in the emulator, for any stage made of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luce_edu.backends.ledger import Launch, Traffic
from luce_edu.state import DecodeState
from luce_edu.tables import Tabular

KINDS = ("weights", "state", "activations")


@dataclass(repr=False)
class StepTraffic(Tabular):
    """What one token of one stage launched and moved; see `count_traffic`.

    entries  the ledger's lines, each with its traffic by tensor
    kinds    the kind of each tensor: one of KINDS
    """

    stage: str
    entries: Sequence[Launch]
    kinds: dict[str, str]

    def total(self, kind: str | None = None) -> Traffic:
        """All launches together, of one kind of tensor or of all."""
        parts = [
            traffic
            for entry in self.entries
            for name, traffic in entry.traffic.items()
            if kind is None or self.kinds[name] == kind
        ]
        return sum(parts, Traffic())

    @property
    def title(self) -> str:
        return f"{self.stage}: {len(self.entries)} launches (measured: counted in the emulator)"

    header = ("bytes", "read", "written", "read at least", "written at least")

    @property
    def body(self) -> list[list[str]]:
        rows = [(kind, self.total(kind)) for kind in KINDS] + [("all", self.total())]
        return [
            [kind, *(f"{n:,}" for n in (t.moved_read, t.moved_write, t.distinct_read, t.distinct_write))]
            for kind, t in rows
        ]

    caption = (
        "read, written: 32 bytes for each sector that a warp touches; at least: bytes that each launch touches, once"
    )


def count_traffic(stage: str, model, tokens: Sequence[int], *, sm_count: int | None = None) -> StepTraffic:
    """Decode `tokens` from a fresh state in the counting emulator; the traffic of the last one.

    stage     a stage made of kernels, so not "eager", which launches none of ours
    sm_count  multiprocessors of the emulated device, which decide the grid of fused kernels; None for its default
    Raises ValueError for "eager" or a bad sm_count, KernelError for an access outside every tensor, and what `decoder`
    raises.
    """
    from luce_edu.backends.host import MOST_SMS, HostBackend
    from luce_edu.stages import decoder

    if stage == "eager":
        raise ValueError("eager runs PyTorch's own kernels, whose loads cannot be counted here")
    backend = HostBackend(count_traffic=True)
    if sm_count is not None:
        if type(sm_count) is not int or not 1 <= sm_count <= MOST_SMS:
            raise ValueError(f"sm_count: expected multiprocessors from 1 to {MOST_SMS}, got {sm_count!r}")
        backend.sm_count = sm_count
    dec = decoder(stage, model, max_seq_len=len(tokens), backend=backend)
    kinds = {}
    for kind, tensors in zip(KINDS, _tensors(dec), strict=True):
        backend.tensors |= tensors
        kinds |= dict.fromkeys(tensors, kind)
    dec.prefill(tokens, chunked=False)
    return StepTraffic(stage, dec.ledger.kernels(), kinds)


def _tensors(dec) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Every tensor that a decoder's kernels may touch, by name and kind."""
    weights = dict(dec.weights.named_tensors())
    state = {name: getattr(dec.state, name) for name in DecodeState.TENSORS}
    own = {name: value for name, value in vars(dec).items() if isinstance(value, torch.Tensor)}
    return weights, state, own
