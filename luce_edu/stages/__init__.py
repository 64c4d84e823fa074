"""The ladder: ways to compute the same next token. One file a stage says what it launches."""

from __future__ import annotations

from luce_edu.backends import make_backend
from luce_edu.stages.base import Decoder, KernelDecoder
from luce_edu.stages.eager import EagerDecoder
from luce_edu.stages.graph import GraphDecoder
from luce_edu.stages.megakernel import MegakernelDecoder
from luce_edu.stages.per_layer import PerLayerDecoder
from luce_edu.stages.per_op import PerOpDecoder

_CLASSES = {
    kind.stage: kind for kind in (EagerDecoder, PerOpDecoder, PerLayerDecoder, GraphDecoder, MegakernelDecoder)
}
STAGES = tuple(_CLASSES)
KERNEL_STAGES = tuple(stage for stage, kind in _CLASSES.items() if issubclass(kind, KernelDecoder))  # of our kernels


def stage_class(stage: str) -> type[Decoder]:
    """The class of a stage: its words, its colour and how its kernels start. ValueError for an unknown stage."""
    if not isinstance(stage, str) or stage not in _CLASSES:
        raise ValueError(f"unknown stage {stage!r}; expected one of {', '.join(STAGES)}")
    return _CLASSES[stage]


def decoder(
    stage: str, model, device: str | None = None, max_seq_len: int = 2048, *, card: str | None = None, backend=None
) -> Decoder:
    """A decoder for one sequence: `prefill`, `step`, `generate`, `reset`, `position`, `launches`.

    stage        one of STAGES
    model        what `load_model` returns
    device       "cuda", "host" (the virtual GPU), or None for the best there is
    max_seq_len  tokens that the state has room for
    card         the GPU that the virtual one imitates, as `luce-edu cards` lists them; None is LUCE_CARD, or the laptop
    backend      one to launch on instead of a new one, such as a virtual GPU with a seed or other sources
    Raises ValueError for an unknown stage or device, or a length that the model does not allow; ConfigError for
    a config that the kernels cannot serve; CompileError. All before anything runs.
    """
    kind = stage_class(stage)
    if card is not None:
        if backend is not None:
            raise ValueError("card: a backend that is given has its card already")
        backend = make_backend("host" if device is None else device, card=card)
    return kind(model, device=device, max_seq_len=max_seq_len, backend=backend)
