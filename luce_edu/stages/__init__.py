"""The stages of the ladder: several ways to compute the same next token, one file per stage."""

from __future__ import annotations

import torch

from luce_edu.backends import make_backend
from luce_edu.stages.base import Decoder, KernelDecoder
from luce_edu.stages.eager import EagerDecoder
from luce_edu.stages.graph import GraphDecoder
from luce_edu.stages.megakernel import MegakernelDecoder
from luce_edu.stages.per_layer import PerLayerDecoder
from luce_edu.stages.per_op import PerOpDecoder
from luce_edu.stages.streaming import StreamingDecoder

_CLASSES = {
    kind.stage: kind
    for kind in (EagerDecoder, PerOpDecoder, PerLayerDecoder, GraphDecoder, MegakernelDecoder, StreamingDecoder)
}
STAGES = tuple(_CLASSES)
KERNEL_STAGES = tuple(stage for stage, kind in _CLASSES.items() if issubclass(kind, KernelDecoder))  # of our kernels


def stage_class(stage: str) -> type[Decoder]:
    """Return the class of a stage: its words, its colour, how its kernels start. ValueError for an unknown stage."""
    if not isinstance(stage, str) or stage not in _CLASSES:
        raise ValueError(f"unknown stage {stage!r}; expected one of {', '.join(STAGES)}")
    return _CLASSES[stage]


def decoder(
    stage: str, model, device: str | None = None, max_seq_len: int = 2048, *, card: str | None = None, backend=None
) -> Decoder:
    """Make a decoder for one sequence, with `prefill`, `step`, `generate`, `reset`, `position` and `launches`.

    stage        one of STAGES
    model        the result of `load_model`
    device       "cuda", "host" (the virtual GPU), or None for a GPU if there is one, else the virtual GPU
    max_seq_len  number of tokens that the state has room for
    card         the card that the virtual GPU models, one that `luce-edu cards` lists; None: LUCE_CARD, or the laptop
    backend      an existing backend to launch on, such as a virtual GPU with a seed or with other sources
    Raises ValueError for an unknown stage or device, or a length that the model does not allow; ConfigError for
    a config that the kernels do not support; CompileError; torch.OutOfMemoryError; LaunchError where a grid that waits
    for itself cannot be resident. All are raised before anything runs.
    """
    kind = stage_class(stage)
    if card is not None:
        if backend is not None:
            raise ValueError("card: the given backend has a card already; leave out one of the two")
        backend = make_backend("host" if device is None else device, card=card)
    try:
        return kind(model, device=device, max_seq_len=max_seq_len, backend=backend)
    except torch.OutOfMemoryError:
        raise torch.OutOfMemoryError(
            f"{stage}: out of memory for the weights and a context of {max_seq_len} tokens; give a smaller "
            "max_seq_len, or free memory that others hold"
        ) from None
