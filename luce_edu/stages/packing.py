"""Pack the weights of a model in the order in which the warps of csrc/streaming.cu read them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from luce_edu.config import LINEAR_ATTENTION, ModelConfig
from luce_edu.weights import Weights

# As in csrc/weight_stream.cuh and csrc/streaming.cu
PIECES, CHUNK = 4, 256  # pieces of a slot, and neighbouring weights of each
BATCH_UNITS = 120


# Rows of a group: of the matrices that read a layer's vector of hidden_size, and of those that write it
IN_ROWS, OUT_ROWS = 4, 2


@dataclass(frozen=True)
class Layout:
    """How csrc/streaming.cu divides a product among warps; see `stream_groups` there.

    blocks, warps  of the grid, and of a block
    split_rows     whether several warps share a group of OUT_ROWS rows
    """

    blocks: int
    warps: int
    split_rows: bool

    @functools.lru_cache(maxsize=16)  # noqa: B019  (a layout lives as long as its decoder)
    def places(self, groups: int, slots: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return where the slots of a product go that has `groups` groups of rows, each of `slots` slots.

        rows    of a group
        owner   [groups * slots] the warp of each slot, in order of group, then slot; block * warps + warp
        rank    [groups * slots] its number among the slots that the product gives to this warp
        count   [blocks * warps] how many slots each warp gets
        """
        split = slots if self.split_rows and rows == OUT_ROWS else 1
        starts = groups * torch.arange(self.blocks + 1) // self.blocks  # the first group of each block
        group = torch.arange(groups)
        block = torch.searchsorted(starts, group, right=True) - 1
        unit = ((group - starts[block]) * split)[:, None] + torch.arange(split)  # in the block; [groups, split]
        warp = unit % (BATCH_UNITS // split * split) % self.warps
        owner = (block[:, None] * self.warps + warp).repeat_interleave(slots // split, dim=1).flatten()
        count = torch.bincount(owner, minlength=self.blocks * self.warps)
        order = torch.argsort(owner, stable=True)  # a warp takes its units in turn, and a unit's slots in turn
        rank = torch.empty_like(owner)
        rank[order] = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner[order]]
        return owner, rank, count


def pack(weights: Weights, config: ModelConfig, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stream of weights, and where the part of each warp begins.

    stream      [slots, PIECES, CHUNK] bf16, on the device of the weights: all matrices of the layers, then the head
    first_slot  [blocks * warps + 1] int32
    """
    places = [layout.places(*slots.shape[:3]) for slots in _products(weights, config)]
    totals = sum(given for _, _, given in places)
    first_slot = torch.cat([torch.zeros(1, dtype=torch.int64), totals.cumsum(0)])
    device = weights.embed_tokens.device
    # One slot more is allocated, because the last warp's prefetch beyond its ring reaches behind its part.
    stream = torch.empty(int(first_slot[-1]) + 1, PIECES, CHUNK, dtype=torch.bfloat16, device=device)[:-1]
    at = first_slot[:-1].clone()  # the next slot of each warp
    for (owner, rank, given), slots in zip(places, _products(weights, config), strict=True):
        stream[(at[owner] + rank).to(device)] = slots.reshape(-1, PIECES, CHUNK)
        at += given
    return stream, first_slot.to(torch.int32).to(device)


def _products(weights: Weights, config: ModelConfig) -> Iterator[torch.Tensor]:
    """Yield the matrices in the order of use, each as slots [groups, slots of a group, rows, columns of a slot]."""
    hidden = config.hidden_size
    for layer, kind in zip(weights.layers, config.layer_types, strict=True):
        if kind == LINEAR_ATTENTION:
            into = [layer[f"linear_attn.in_proj_{name}.weight"] for name in ("qkv", "z", "b", "a")]
            out = layer["linear_attn.out_proj.weight"]
        else:
            into = [layer[f"self_attn.{name}_proj.weight"] for name in "qkv"]
            out = layer["self_attn.o_proj.weight"]
        yield _slots(torch.cat(into), IN_ROWS)
        yield _slots(out, OUT_ROWS)
        gate_and_up = [layer[f"mlp.{name}_proj.weight"].view(-1, 2, hidden) for name in ("gate", "up")]
        yield _slots(torch.cat(gate_and_up, dim=1).view(-1, hidden), IN_ROWS)  # two rows of each in a group
        yield _slots(layer["mlp.down_proj.weight"], OUT_ROWS)
    yield _slots(weights.lm_head, IN_ROWS)


def _slots(matrix: torch.Tensor, group: int) -> torch.Tensor:
    """Group neighbouring rows, and cut them into slots; zeros complete the last group and the last slot of each."""
    rows, cols = matrix.shape
    width = PIECES * CHUNK // group
    matrix = torch.nn.functional.pad(matrix, (0, -cols % width, 0, -rows % group))
    return matrix.view(-1, group, matrix.shape[1] // width, width).transpose(1, 2)
