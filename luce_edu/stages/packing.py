"""Pack the weights of a model in the order in which the warps of csrc/streaming.cu read them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from luce_edu.config import LINEAR_ATTENTION, ModelConfig
from luce_edu.weights import Weights

BATCH_UNITS = 128  # batch_units of csrc/streaming.cu


@dataclass(frozen=True)
class Layout:
    """How csrc/streaming.cu divides a product among warps; see `stream_pairs` there.

    blocks, warps  of the grid, and of a block
    segment        neighbouring weights of a row in a slot
    split_rows     whether the segments of a row longer than hidden_size go to several warps
    """

    blocks: int
    warps: int
    segment: int
    hidden_size: int
    split_rows: bool

    def segments(self, cols: int) -> int:
        """Return the number of segments of a row; the last one may be filled up with zeros."""
        return -(-cols // self.segment)

    @functools.lru_cache(maxsize=16)  # noqa: B019  (a layout lives as long as its decoder)
    def places(self, pairs: int, cols: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return where the slots of a product with `pairs` pairs of rows go.

        owner  [pairs * segments] the warp of each slot, in order of pair, then segment; block * warps + warp
        rank   [pairs * segments] its number among the slots that the product gives to this warp
        count  [blocks * warps] how many slots each warp gets
        """
        segments = self.segments(cols)
        split = segments if self.split_rows and cols > self.hidden_size else 1
        starts = pairs * torch.arange(self.blocks + 1) // self.blocks  # of the blocks' pairs
        pair = torch.arange(pairs)
        block = torch.searchsorted(starts, pair, right=True) - 1
        unit = ((pair - starts[block]) * split)[:, None] + torch.arange(split)  # in the block; [pairs, split]
        warp = unit % (BATCH_UNITS // split * split) % self.warps
        owner = (block[:, None] * self.warps + warp).repeat_interleave(segments // split, dim=1).flatten()
        count = torch.bincount(owner, minlength=self.blocks * self.warps)
        order = torch.argsort(owner, stable=True)  # a warp takes its units in turn, and a unit's segments in turn
        rank = torch.empty_like(owner)
        rank[order] = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner[order]]
        return owner, rank, count


def pack(weights: Weights, config: ModelConfig, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stream of weights, and where the part of each warp begins.

    stream      [slots, 2, segment] bf16, on the device of the weights: all matrices of the layers, then the head
    first_slot  [blocks * warps + 1] int32
    """
    products = [(len(pairs), pairs.shape[2]) for pairs in _products(weights, config)]
    totals = sum(layout.places(*product)[2] for product in products)
    first_slot = torch.cat([torch.zeros(1, dtype=torch.int64), totals.cumsum(0)])
    device = weights.embed_tokens.device
    stream = torch.empty(int(first_slot[-1]), 2, layout.segment, dtype=torch.bfloat16, device=device)
    at = first_slot[:-1].clone()  # the next slot of each warp
    for pairs in _products(weights, config):
        count, _, cols = pairs.shape
        owner, rank, given = layout.places(count, cols)
        segments = layout.segments(cols)
        pairs = torch.nn.functional.pad(pairs, (0, segments * layout.segment - cols))
        slots = pairs.view(count, 2, segments, layout.segment).transpose(1, 2).reshape(-1, 2, layout.segment)
        stream[(at[owner] + rank).to(device)] = slots
        at += given
    return stream, first_slot.to(torch.int32).to(device)


def _products(weights: Weights, config: ModelConfig) -> Iterator[torch.Tensor]:
    """Yield the matrices in the order of use, each as pairs of rows [pairs, 2, cols]."""
    for layer, kind in zip(weights.layers, config.layer_types, strict=True):
        if kind == LINEAR_ATTENTION:
            into = [layer[f"linear_attn.in_proj_{name}.weight"] for name in ("qkv", "z", "b", "a")]
            out = layer["linear_attn.out_proj.weight"]
        else:
            into = [layer[f"self_attn.{name}_proj.weight"] for name in "qkv"]
            out = layer["self_attn.o_proj.weight"]
        yield _neighbours(torch.cat(into))
        yield _neighbours(out)
        yield torch.stack([layer["mlp.gate_proj.weight"], layer["mlp.up_proj.weight"]], dim=1)
        yield _neighbours(layer["mlp.down_proj.weight"])
    yield _neighbours(weights.lm_head)


def _neighbours(matrix: torch.Tensor) -> torch.Tensor:
    """Pair neighbouring rows; a row of zeros completes an odd number of rows."""
    matrix = torch.nn.functional.pad(matrix, (0, 0, 0, len(matrix) % 2))
    return matrix.view(-1, 2, matrix.shape[1])
