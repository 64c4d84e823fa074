"""The ladder: ways to compute the same next token. One file a stage says what it launches."""

from __future__ import annotations

from importlib import import_module

from luce_edu.backends import make_backend
from luce_edu.stages.base import Decoder

_CLASSES = {
    "eager": "EagerDecoder",
    "per_op": "PerOpDecoder",
    "per_layer": "PerLayerDecoder",
    "graph": "GraphDecoder",
    "megakernel": "MegakernelDecoder",
}
STAGES = tuple(_CLASSES)


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
    if not isinstance(stage, str) or stage not in _CLASSES:
        raise ValueError(f"unknown stage {stage!r}; expected one of {', '.join(STAGES)}")
    if card is not None:
        if backend is not None:
            raise ValueError("card: a backend that is given has its card already")
        backend = make_backend("host" if device is None else device, card=card)
    kind = getattr(import_module(f"luce_edu.stages.{stage}"), _CLASSES[stage])
    return kind(model, device=device, max_seq_len=max_seq_len, backend=backend)
