"""Stage `eager`: plain PyTorch in bf16, the code that a reader would write first."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from luce_edu.backends.ledger import Launch
from luce_edu.reference.model import forward
from luce_edu.stages.base import Decoder
from luce_edu.stages.prefill import SEGMENT


class EagerDecoder(Decoder):
    """The reference's lines run on bf16 weights and activations. Its error is what bf16 itself costs.

    counts  whether operations go into the ledger. Listening slows each of them down, so a timing turns it off.
    """

    stage = "eager"
    words = "plain PyTorch"
    colour = "orange"
    activations = torch.bfloat16
    counts = True

    def _step(self, token):
        if token is None:
            chosen = self.logits.argmax(keepdim=True)
            self._largest = torch.maximum(self._largest, self.logits[chosen])  # NaN, once there, stays
        else:
            chosen, self._largest = torch.tensor([token], device=self.device), self.logits.new_zeros(1)
        self._forward(chosen, chunked=False)

    def _read_prompt(self, tokens):
        self._largest = self.logits.new_zeros(1)  # of the logits that step() has chosen by
        for segment in torch.tensor(tokens, device=self.device).split(SEGMENT):
            self._forward(segment, chunked=True)

    def _forward(self, tokens: torch.Tensor, *, chunked: bool) -> None:
        trace = []
        with torch.no_grad(), _RecordOperations(self.ledger) if self.counts else nullcontext():
            logits = forward(
                self.weights, self.config, tokens, self.state, dtype=self.activations, chunked=chunked, trace=trace,
                logits_to_keep=1,
            )  # fmt: skip
        self.logits.copy_(logits[0])
        self.hidden_states.copy_(torch.stack([x[-1] for x in trace]))

    def _next_token(self) -> int:
        lost = self.logits.isnan().any() or self._largest.isnan()
        return -1 if lost else int(self.logits.argmax())


class _RecordOperations(TorchDispatchMode):
    """Writes the ledger for PyTorch: every operation that computes something, each at least one launch on a GPU.

    An operation that returns memory it was given (a view) or that only allocates launches nothing.
    """

    def __init__(self, ledger):
        super().__init__()
        self.ledger = ledger

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name, writes = func._schema.name, func._schema.is_mutable
        given, returned = _storages([args, kwargs]), _storages([result])
        if writes or (returned - given and not name.startswith("aten::empty")):
            self.ledger.record(Launch(name, (1, 1, 1), (1, 1, 1), smem=0, cooperative=False))
        return result


def _storages(tree) -> set[int]:
    """The memory behind all tensors in nested arguments, by address."""
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
