"""The kernel `attention` against a plain softmax: for any number of splits, few or many blocks, and grouped heads."""

import dataclasses

import pytest
import torch
from models import CONFIGS, TINY

from luce_edu.backends import make_backend
from luce_edu.faults import Fault, planted
from luce_edu.reference.rms_norm import rms_norm
from luce_edu.reference.rope import apply_rope, rope_tables
from luce_edu.stages.dims import BLOCK_THREADS, MAX_SPLITS, kernel_defines
from luce_edu.stages.per_layer import PerLayerDecoder
from luce_edu.verification import relative_error

WIDE = dataclasses.replace(
    TINY, num_attention_heads=8, num_key_value_heads=2, head_dim=256, partial_rotary_factor=0.25
)  # one warp per worker, so that from 17 splits on a worker merges several
NARROW = dataclasses.replace(TINY, num_attention_heads=3, num_key_value_heads=3, head_dim=8, partial_rotary_factor=0.5)
SHAPES = {"tiny": CONFIGS["tiny"], "wide": WIDE, "narrow": NARROW}
LONGEST = 2200
LIMIT = 1e-5  # fp32 against fp32 in another order


class Attention:
    """One token at `position`; the cache is noise before it and NaN from it on."""

    def __init__(self, config, position, seed=0):
        self.config, self.position = config, position
        generator = torch.Generator().manual_seed(seed)
        heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.projected = torch.randn(2 * (heads + kv_heads) * width, generator=generator)
        self.q_norm, self.k_norm = torch.randn(2, width, generator=generator) * 0.1
        self.cache = torch.randn(2, kv_heads, LONGEST, width, generator=generator).bfloat16()
        self.cache[:, :, position:] = float("nan")
        cos, sin = rope_tables(torch.arange(LONGEST), rotary_dim=config.rotary_dim, theta=config.rope_theta)
        self.tables = cos, sin

    def expected(self) -> torch.Tensor:
        c, p = self.config, self.position
        heads, kv_heads, width = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        q, k, v = self.projected.split([2 * heads * width, kv_heads * width, kv_heads * width])
        q, gate = q.view(heads, 2, width).unbind(1)
        cos, sin = (table[p : p + 1] for table in self.tables)
        q = apply_rope(rms_norm(q, self.q_norm, eps=c.rms_norm_eps)[None], cos, sin)
        (k,) = apply_rope(rms_norm(k.view(1, kv_heads, width), self.k_norm, eps=c.rms_norm_eps), cos, sin)
        keys, values = self.cache[:, :, : p + 1].float().clone()
        keys[:, p], values[:, p] = k.bfloat16().float(), v.view(kv_heads, width).bfloat16().float()
        q = q.view(kv_heads, heads // kv_heads, width)
        o = torch.softmax(q @ keys.mT * width**-0.5, -1) @ values
        return o.reshape(-1) * torch.sigmoid(gate.reshape(-1))

    def run(self, blocks, seed=None, csrc_dir=None) -> torch.Tensor:
        c = self.config
        backend = make_backend("host", seed=seed, csrc_dir=csrc_dir)
        kernel = backend.compile("per_layer.cu", PerLayerDecoder.kernels, kernel_defines(c))["attention"]
        nan = float("nan")
        partials = torch.full((c.num_attention_heads, MAX_SPLITS, c.head_dim + 4), nan)
        o = torch.full((c.num_attention_heads * c.head_dim,), nan)
        half = c.rotary_dim // 2
        cos, sin = (table[:, :half].float().contiguous() for table in self.tables)
        arrivals = torch.zeros(c.num_key_value_heads, dtype=torch.int32)
        position = torch.tensor([self.position], dtype=torch.int32)
        k_cache, v_cache = self.cache.clone()
        args = (self.projected, self.q_norm, self.k_norm, cos, sin, k_cache, v_cache, partials, o, arrivals, position)
        backend.launch(kernel, blocks, BLOCK_THREADS, 0, (*args, LONGEST))
        assert not arrivals.any()
        return o


POSITIONS = (0, 15, 31, 32, 100, 543, 544, 1100, 2047, 2048, 2199)  # 1 to 64 splits, then longer ones


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_is_a_plain_softmax(shape, position):
    one = Attention(SHAPES[shape], position, seed=position)
    o = one.run(blocks=4)
    assert relative_error(o, one.expected()) <= LIMIT
    assert torch.equal(o, one.run(blocks=1, seed=position)), "another grid and order of threads"


def test_more_blocks_than_units_change_nothing():
    one = Attention(WIDE, 600)
    assert torch.equal(one.run(blocks=4), one.run(blocks=60))


@pytest.mark.planted
@pytest.mark.parametrize(
    "position, old, new",
    [(600, "split < splits; split += workers", "split < splits; split += splits"),  # one split per worker
     (600, "expf(theirs - base)", "1.0f"),
     (100, "soft.maximum[h] = base;", "soft.maximum[h] = 0.0f;"),
     (100, "next = load(first + workers + worker)", "next = load(first + worker)"),
     (100, "if (p < end) {", "if (p < end - 1) {"),
     (100, "return place % (head_dim / 2) / 4 * 8 +", "return place % (head_dim / 2) / 8 * 8 +")],
)  # fmt: skip
def test_a_fault_shows(position, old, new):
    one = Attention(WIDE, position)
    with planted(Fault("", "attention.cuh", old, new)) as tree:
        assert relative_error(one.run(blocks=4, csrc_dir=tree), one.expected()) > 100 * LIMIT
