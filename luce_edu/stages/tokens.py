"""Check tokens that a caller gives: integers in the vocabulary, as many as there is room for."""

from __future__ import annotations

import operator
from collections.abc import Iterable


def check_tokens(tokens: Iterable[int], *, vocab_size: int, room: int) -> list[int]:
    """Return `tokens` as a list of ints.

    Raises ValueError if there are none or more than `room`, or if one is not an integer from 0 to vocab_size - 1.
    """
    try:
        listed = None if isinstance(tokens, (str, bytes, bytearray, set, dict)) else list(tokens)
    except TypeError:  # not iterable, or a tensor without dimensions
        listed = None
    if listed is None:
        raise ValueError(f"tokens: expected a list of integers, got {type(tokens).__name__}")
    checked = [_checked(token, vocab_size) for token in listed]
    if not checked:
        raise ValueError("tokens: the prompt is empty; expected at least one token")
    if len(checked) > room:
        raise ValueError(
            f"tokens: {len(checked)} tokens do not fit; there is room for {max(room, 0)}: give fewer, call reset(), or "
            "make the decoder with a larger max_seq_len"
        )
    return checked


def _checked(token, vocab_size: int) -> int:
    try:
        value = operator.index(token)  # accepts NumPy's and PyTorch's integers too
    except TypeError:
        value = None
    if value is None or isinstance(token, bool):
        raise ValueError(f"tokens: expected integers, got {token!r}")
    if not 0 <= value < vocab_size:
        raise ValueError(f"tokens: expected ids from 0 to {vocab_size - 1}, got {token!r}")
    return value
