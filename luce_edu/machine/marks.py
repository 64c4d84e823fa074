"""Marks on memory: elements that have not been written yet, and elements whose writer is searched."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import torch

from luce_edu.machine.core import Marked

UNWRITTEN, GUARDED = 1, 2  # as in csrc/machine/watchers.h
_POISON = 0xFF  # a NaN in every float format, and -1 in an integer


class Marks:
    """The elements that `run` watches. If a kernel reads one that has not been written yet, that is a fault.

    unwritten  tensors and views of tensors, on the CPU, that have not been written yet. They are filled with 0xFF
               bytes. An element with other bytes when a launch starts was written by the host, and loses its mark; so
               does an element that a kernel writes
    """

    def __init__(self, unwritten: Iterable[torch.Tensor] = ()):
        self._marks: dict[int, torch.Tensor] = {}  # by address of the storage: a mark per byte
        self._unwritten: list[tuple[torch.Tensor, torch.Tensor]] = []
        for tensor in unwritten:
            if not tensor.numel():
                continue
            memory = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            memory, marks = _bytes_of(tensor, memory), _bytes_of(tensor, self._marks_of(tensor))
            memory.fill_(_POISON)
            marks.fill_(UNWRITTEN)
            self._unwritten.append((memory, marks))

    def guard(self, tensor: torch.Tensor, element: int) -> None:
        """Make a write to the element of this flat index a fault, whose report names the thread that writes it."""
        _bytes_of(tensor, self._marks_of(tensor)).view(-1, tensor.element_size())[element] = GUARDED

    def written(self, tensor: torch.Tensor) -> None:
        """Remove the marks of a tensor that the host has written, whatever its elements are now."""
        if tensor.untyped_storage().data_ptr() in self._marks:
            _bytes_of(tensor, self._marks_of(tensor)).zero_()

    def _marks_of(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._marks:
            self._marks[storage.data_ptr()] = torch.zeros(storage.nbytes(), dtype=torch.uint8)
        return self._marks[storage.data_ptr()]

    def ranges(self) -> ctypes.Array:
        """Return the core's structs. Called before each run, because the host may have written since the last."""
        for memory, marks in self._unwritten:
            is_written = (memory != _POISON).any(-1, keepdim=True)
            marks.masked_fill_(is_written & (marks == UNWRITTEN), 0)
        return (Marked * len(self._marks))(*(
            Marked(begin, begin + len(marks), marks.data_ptr()) for begin, marks in sorted(self._marks.items())
        ))  # fmt: skip


def _bytes_of(tensor: torch.Tensor, storage: torch.Tensor) -> torch.Tensor:
    """View a tensor's bytes in a copy of its storage: uint8 [*tensor.shape, bytes of an element]."""
    size = tensor.element_size()
    strides = [size * stride for stride in tensor.stride()]
    return storage.as_strided([*tensor.shape, size], [*strides, 1], size * tensor.storage_offset())
