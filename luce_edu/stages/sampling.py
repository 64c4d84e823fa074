"""Draw the next token: what to draw by, and the kernel of csrc/sampling.cu that every stage made of kernels uses."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import torch

from luce_edu.errors import check_int, check_seed
from luce_edu.reference.sampling import scale
from luce_edu.stages.dims import BLOCK_THREADS, GRID_BARRIER_WORDS, kernel_defines

SOURCE, KERNELS = "sampling.cu", ("draw",)
BINS = 1024  # of a search, as in csrc/sampling.cuh
MEMORY_BYTES = 8 * BINS * (8 + 4) + 16  # SamplingMemory: eight times bins of 8 and 4 bytes, and one index in 16 bytes


@dataclass(frozen=True)
class Sampling:
    """What tokens are drawn by, checked.

    temperature  0: no draw, the largest logit is chosen. Above 0: draw from softmax(logits / temperature)
    top_k        first keep this many of the largest logits, and those that equal the last of them; None: all
    top_p        then keep each token whose larger ones have less than this share of what is left; None or 1: all
    seed         0 to 2^63 - 1. It and the position decide the random numbers, so the same seed gives the same text
    Raises ValueError for an argument out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self):
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: expected a number of 0 or more, got {self.temperature!r}")
        if self.top_k is not None:
            check_int("top_k", self.top_k, 1)
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise ValueError(f"top_p: expected a number above 0, and at most 1, got {self.top_p!r}")
        check_seed(self.seed)

    def packed(self) -> bytes:
        """Return the struct Sampling of csrc/sampling.cuh, for a temperature above 0."""
        share = 0 if self.top_p in (None, 1) else max(int(math.ldexp(self.top_p, 64)), 1)
        return struct.pack("<QQfi", share, self.seed, scale(self.temperature), min(self.top_k or 0, 2**31 - 1))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class SamplingKernel:
    """Replace the choice of a `KernelDecoder` by a draw from its logits, in one cooperative launch.

    memory      what one draw hands to the next: cleared bins, and the greedy choice (SamplingMemory)
    block_best  one Best {value, index} per block
    """

    def __init__(self, decoder):
        self._decoder, self._backend, config = decoder, decoder.backend, decoder.config
        self._kernel = self._backend.compile(SOURCE, KERNELS, kernel_defines(config))["draw"]
        resident = self._backend.max_resident_blocks(self._kernel, BLOCK_THREADS, 0)
        # One block per SM is as fast as several (modelled). A warp reads 128 logits at once.
        self._blocks = min(resident, self._backend.sm_count, -(-config.vocab_size // 128))
        self.memory = torch.zeros(MEMORY_BYTES, dtype=torch.uint8, device=decoder.device)
        self.barrier = torch.zeros(GRID_BARRIER_WORDS, dtype=torch.int32, device=decoder.device)
        self.arrivals = torch.zeros(1, dtype=torch.int32, device=decoder.device)
        self.block_best = decoder._buffer(self._blocks, 2)
        self._how: tuple[Sampling, torch.Tensor] | None = None  # as it was last, and on the device

    def reset(self) -> None:
        """Clear what a draw that failed may have left."""
        for tensor in (self.memory, self.barrier, self.arrivals):
            tensor.zero_()

    def on_device(self, sampling: Sampling) -> torch.Tensor:
        """Return the struct Sampling in device memory."""
        if self._how is None or self._how[0] != sampling:
            packed = torch.frombuffer(bytearray(sampling.packed()), dtype=torch.uint8)
            self._how = sampling, packed.to(self._decoder.device)
        return self._how[1]

    def draw(self, sampling: Sampling, *, redraw: bool) -> None:
        """Enqueue a draw. redraw: the choice of these logits is a draw already."""
        args = (
            self._decoder.logits, self.on_device(sampling), self._decoder.position, int(redraw), self.memory,
            self.block_best, self.arrivals, self.barrier, self._decoder.next_token,
        )  # fmt: skip
        self._backend.launch(self._kernel, self._blocks, BLOCK_THREADS, 0, args, cooperative=True)
