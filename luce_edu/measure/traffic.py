"""The bytes that a decode step moves, counted load by load in the emulator, for any stage made of kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def count_traffic(
    stage: str, model, tokens: Sequence[int], *, blocks: Mapping[str, int] | None = None
) -> StepTraffic:
    """Decode `tokens` from a fresh state in the counting emulator; the traffic of the last one.

    stage   a stage made of kernels, so not "eager", which launches none of ours
    blocks  by kernel, how many blocks the device holds at once, which is the grid of a fused kernel (see occupancy.py);
            for a kernel that it does not name, and with None, what the emulated device holds
    Raises ValueError for "eager" or a bad number of blocks, KernelError for an access outside every tensor, and what
    `decoder` raises.
    """
    from luce_edu.backends.host import MOST_SMS, HostBackend
    from luce_edu.stages import decoder

    if stage == "eager":
        raise ValueError("eager runs PyTorch's own kernels, whose loads cannot be counted here")
    blocks, most = dict(blocks or {}), 2 * MOST_SMS
    for name, count in blocks.items():
        if type(count) is not int or not 1 <= count <= most:
            raise ValueError(f"blocks: expected from 1 to {most} for {name}, got {count!r}")

    class Device(HostBackend):
        def max_resident_blocks(self, kernel, block, smem):
            return blocks.get(kernel.name) or super().max_resident_blocks(kernel, block, smem)

    backend = Device(count_traffic=True)
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
