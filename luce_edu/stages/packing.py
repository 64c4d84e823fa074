"""Pack the weights of a model in the order in which the warps of csrc/streaming.cu read them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from luce_edu.config import LINEAR_ATTENTION, ModelConfig
from luce_edu.weights import Weights

# As in csrc/weight_stream.cuh and csrc/streaming.cu
SLOT_ROWS, CHUNK = 4, 256  # rows of a slot, and neighbouring weights of each
BATCH_UNITS = 128


@dataclass(frozen=True)
class Layout:
    """How csrc/streaming.cu divides a product among warps; see `stream_groups` there.

    blocks, warps  of the grid, and of a block
    split_rows     whether the columns of a matrix with more than hidden_size go to several warps
    """

    blocks: int
    warps: int
    hidden_size: int
    split_rows: bool

    @functools.lru_cache(maxsize=16)  # noqa: B019  (a layout lives as long as its decoder)
    def places(self, groups: int, chunks: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return where the slots of a product with `groups` groups of rows and `chunks` chunks of columns go.

        owner  [groups * chunks] the warp of each slot, in order of group, then chunk; block * warps + warp
        rank   [groups * chunks] its number among the slots that the product gives to this warp
        count  [blocks * warps] how many slots each warp gets
        """
        split = chunks if self.split_rows and chunks * CHUNK > self.hidden_size else 1
        starts = groups * torch.arange(self.blocks + 1) // self.blocks  # the first group of each block
        group = torch.arange(groups)
        block = torch.searchsorted(starts, group, right=True) - 1
        unit = ((group - starts[block]) * split)[:, None] + torch.arange(split)  # in the block; [groups, split]
        warp = unit % (BATCH_UNITS // split * split) % self.warps
        owner = (block[:, None] * self.warps + warp).repeat_interleave(chunks // split, dim=1).flatten()
        count = torch.bincount(owner, minlength=self.blocks * self.warps)
        order = torch.argsort(owner, stable=True)  # a warp takes its units in turn, and a unit's chunks in turn
        rank = torch.empty_like(owner)
        rank[order] = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner[order]]
        return owner, rank, count


def pack(weights: Weights, config: ModelConfig, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stream of weights, and where the part of each warp begins.

    stream      [slots, SLOT_ROWS, CHUNK] bf16, on the device of the weights: all matrices of the layers, then the head
    first_slot  [blocks * warps + 1] int32
    """
    sizes = [(len(groups), groups.shape[2] // CHUNK) for groups in _products(weights, config)]
    totals = sum(layout.places(*size)[2] for size in sizes)
    first_slot = torch.cat([torch.zeros(1, dtype=torch.int64), totals.cumsum(0)])
    device = weights.embed_tokens.device
    stream = torch.empty(int(first_slot[-1]), SLOT_ROWS, CHUNK, dtype=torch.bfloat16, device=device)
    at = first_slot[:-1].clone()  # the next slot of each warp
    for size, groups in zip(sizes, _products(weights, config), strict=True):
        owner, rank, given = layout.places(*size)
        slots = groups.view(size[0], SLOT_ROWS, size[1], CHUNK).transpose(1, 2).reshape(-1, SLOT_ROWS, CHUNK)
        stream[(at[owner] + rank).to(device)] = slots
        at += given
    return stream, first_slot.to(torch.int32).to(device)


def _products(weights: Weights, config: ModelConfig) -> Iterator[torch.Tensor]:
    """Yield the matrices in the order of use, each as groups of rows [groups, SLOT_ROWS, whole chunks]."""
    for layer, kind in zip(weights.layers, config.layer_types, strict=True):
        if kind == LINEAR_ATTENTION:
            into = [layer[f"linear_attn.in_proj_{name}.weight"] for name in ("qkv", "z", "b", "a")]
            out = layer["linear_attn.out_proj.weight"]
        else:
            into = [layer[f"self_attn.{name}_proj.weight"] for name in "qkv"]
            out = layer["self_attn.o_proj.weight"]
        yield _grouped(torch.cat(into))
        yield _grouped(out)
        gate_and_up = [layer[f"mlp.{name}_proj.weight"].view(-1, 2, config.hidden_size) for name in ("gate", "up")]
        yield _grouped(torch.cat(gate_and_up, dim=1).view(-1, config.hidden_size))
        yield _grouped(layer["mlp.down_proj.weight"])
    yield _grouped(weights.lm_head)


def _grouped(matrix: torch.Tensor) -> torch.Tensor:
    """Group neighbouring rows; zeros complete the last group and the last chunk of each row."""
    rows, cols = matrix.shape
    matrix = torch.nn.functional.pad(matrix, (0, -cols % CHUNK, 0, -rows % SLOT_ROWS))
    return matrix.view(-1, SLOT_ROWS, matrix.shape[1])
