"""Stage `eager`: plain PyTorch in bf16, the code that a reader would write first."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from luce_edu.reference.model import forward
from luce_edu.stages.base import Decoder


class EagerDecoder(Decoder):
    """The reference's lines run on bf16 weights and activations. Its error is what bf16 itself costs."""

    stage = "eager"

    def _advance(self, token: int) -> None:
        trace = []
        with torch.no_grad(), _RecordOperations(self.ledger):
            logits = forward(
                self.weights, self.config, torch.tensor([token], device=self.device), self.state,
                dtype=torch.bfloat16, chunked=False, trace=trace,
            )  # fmt: skip
        self.logits.copy_(logits[0])
        self.hidden_states.copy_(torch.cat(trace))

    def _next_token(self) -> int:
        return int(self.logits.argmax())


class _RecordOperations(TorchDispatchMode):
    """Writes the ledger for PyTorch: every operation that computes something, each at least one launch on a GPU.

    Operations that only look at memory in another way (views) launch nothing and are left out.
    """

    def __init__(self, ledger):
        super().__init__()
        self.ledger = ledger

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        makes_view = any(
            a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments
        ) and not any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
        if not makes_view and isinstance(result, (torch.Tensor, tuple, list)):
            self.ledger.record(
                kernel=func._schema.name, grid=(1, 1, 1), block=(1, 1, 1), smem=0, cooperative=False
            )
        return result
