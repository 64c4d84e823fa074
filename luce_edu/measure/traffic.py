"""Count the bytes that a decode step moves, load by load on the virtual GPU, for any stage made of kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luce_edu.backends.ledger import Launch
from luce_edu.errors import check_int
from luce_edu.machine.counters import Traffic
from luce_edu.tables import Tabular

KINDS = ("weights", "state", "activations")
MOST_BLOCKS = 1024  # more blocks of our kernels than any GPU holds at once


@dataclass(repr=False)
class StepTraffic(Tabular):
    """The launches of one token of one stage and the bytes that they move, as a table; see `count_traffic`.

    entries  the launches of the ledger, each with its traffic by tensor
    kinds    by tensor: its kind, one of KINDS
    """

    stage: str
    entries: Sequence[Launch]
    kinds: dict[str, str]

    def total(self, kind: str | None = None) -> Traffic:
        """Return the traffic of all launches together, for one kind of tensor or for all."""
        parts = [
            traffic
            for entry in self.entries
            for name, traffic in entry.traffic.items()
            if kind is None or self.kinds[name] == kind
        ]
        return sum(parts, Traffic())

    @property
    def title(self) -> str:
        return f"{self.stage}: {len(self.entries)} launches (measured: counted on the virtual GPU)"

    header = ("bytes", "read", "written", "read at least", "written at least")

    @property
    def body(self) -> list[list[str]]:
        rows = [(kind, self.total(kind)) for kind in KINDS] + [("all", self.total())]
        return [
            [kind, *(f"{n:,}" for n in (t.moved_read, t.moved_write, t.distinct_read, t.distinct_write))]
            for kind, t in rows
        ]

    caption = (
        "read, written: 32 bytes per sector that a warp touches; at least: the bytes that a launch touches, each once"
    )


def count_traffic(
    stage: str, model, tokens: Sequence[int], *, blocks: Mapping[str, int] | None = None
) -> StepTraffic:
    """Decode `tokens` from an empty state on the virtual GPU and return the traffic of the last one.

    stage   any stage but "eager", which launches none of our kernels
    blocks  by kernel: how many blocks the device holds at once, which is the grid of a fused kernel (see occupancy.py).
            The default for a kernel is what the card holds.
    Raises ValueError for "eager" or a bad number of blocks, KernelError for an access outside every tensor, and what
    `decoder` raises.
    """
    from luce_edu.backends.host import HostBackend
    from luce_edu.stages import decoder

    if stage == "eager":
        raise ValueError("eager runs PyTorch's own kernels, whose loads cannot be counted here")
    blocks = dict(blocks or {})
    for name, count in blocks.items():
        check_int(f"blocks of {name}", count, 1, MOST_BLOCKS)

    class Device(HostBackend):
        def max_resident_blocks(self, kernel, block, smem):
            return blocks.get(kernel.name) or super().max_resident_blocks(kernel, block, smem)

    dec = decoder(stage, model, max_seq_len=len(tokens), backend=Device())
    kinds = {name: kind for kind, tensors in dec.named_tensors().items() for name in tensors}
    for token in tokens:
        dec.step(token)
    return StepTraffic(stage, dec.ledger.kernels(), kinds)

