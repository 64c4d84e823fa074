"""Stage `eager`: plain PyTorch in bf16, the first version that one would write."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from luce_edu.backends.ledger import Launch
from luce_edu.reference.model import forward
from luce_edu.reference.sampling import draw
from luce_edu.stages.base import Decoder

SEGMENT = 1024  # tokens of a prompt at a time: PyTorch holds all their attention scores


class EagerDecoder(Decoder):
    """Run the reference's code with bf16 weights and activations; its error is the cost of bf16 rounding.

    counts  whether operations are written into the ledger. That slows them down, so timings turn it off
    """

    stage = "eager"
    words = "plain PyTorch"
    colour = "orange"
    activations = torch.bfloat16
    counts = True

    def _step(self, token):
        if token is None:
            chosen = self._drawn if self._has_drawn else self.logits.argmax(keepdim=True)
            self._largest = torch.maximum(self._largest, self.logits.max())  # maximum keeps a NaN for good
        else:
            chosen, self._largest = torch.tensor([token], device=self.device), self.logits.new_zeros(1)
        self._forward(chosen, chunked=False)

    def _read_prompt(self, tokens):
        self._largest = self.logits.new_zeros(1)  # the maximum of the logits that step() chose
        for segment in torch.tensor(tokens, device=self.device).split(SEGMENT):
            self._forward(segment, chunked=True)

    def _forward(self, tokens: torch.Tensor, *, chunked: bool) -> None:
        trace = []
        with self._counting():
            logits = forward(
                self.weights, self.config, tokens, self.state, dtype=self.activations, chunked=chunked, trace=trace,
                logits_to_keep=1,
            )  # fmt: skip
        self.logits.copy_(logits[0])
        self.hidden_states.copy_(torch.stack([x[-1] for x in trace]))

    def _next_token(self) -> int:
        lost = self.logits.isnan().any() or self._largest.isnan()
        return -1 if lost else int(self._drawn if self._has_drawn else self.logits.argmax())

    def _draw(self, sampling):
        with self._counting():
            self._drawn = draw(self.logits, position=self.position, **vars(sampling))

    @contextmanager
    def _counting(self):
        with torch.no_grad(), _RecordOperations(self.ledger) if self.counts else nullcontext():
            yield


class _RecordOperations(TorchDispatchMode):
    """Write the ledger for PyTorch: every operation that computes something is at least one launch on a GPU.

    An operation that returns a view of its input, or that only allocates, launches nothing.
    """

    def __init__(self, ledger):
        super().__init__()
        self.ledger = ledger

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that nothing here is compiled: otherwise PyTorch imports its compiler first, which takes a second."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name, writes = func._schema.name, func._schema.is_mutable
        given, returned = _storages([args, kwargs]), _storages([result])
        if writes or (returned - given and not name.startswith("aten::empty")):
            self.ledger.record(Launch(name, (1, 1, 1), (1, 1, 1), smem=0, cooperative=False))
        return result


def _storages(tree) -> set[int]:
    """Return the addresses of the memory of all tensors in nested arguments."""
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
