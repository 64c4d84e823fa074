"""The kernel `attention` against a plain softmax: for any number of splits, few or many blocks, and grouped heads."""

import dataclasses

import pytest
import torch
from models import CONFIGS, TINY

from luce_edu.backends.host import HostBackend
from luce_edu.errors import KernelError
from luce_edu.faults import Fault, planted
from luce_edu.reference.rms_norm import rms_norm
from luce_edu.reference.rope import apply_rope, rope_tables
from luce_edu.stages.dims import BLOCK_THREADS, kernel_defines, max_groups, max_splits
from luce_edu.stages.per_layer import PerLayerDecoder
from luce_edu.verification import relative_error

WIDE = dataclasses.replace(
    TINY, num_attention_heads=8, num_key_value_heads=2, head_dim=256, partial_rotary_factor=0.25
)  # one warp per worker, and two positions at a time
NARROW = dataclasses.replace(TINY, num_attention_heads=3, num_key_value_heads=3, head_dim=8, partial_rotary_factor=0.5)
# More sums than lanes: six heads, padded to eight, in the two lanes of a worker.
MANY = dataclasses.replace(TINY, num_attention_heads=6, num_key_value_heads=1, head_dim=16, partial_rotary_factor=0.25)
SHAPES = {"tiny": CONFIGS["tiny"], "wide": WIDE, "narrow": NARROW, "many": MANY}
BEHIND = 70  # rows of the cache after the position
LIMIT = 1e-5  # fp32 against fp32 in another order


class Attention:
    """One token at `position`; the cache is noise before it and NaN from it on."""

    def __init__(self, config, position, seed=0):
        self.config, self.position = config, position
        generator = torch.Generator().manual_seed(seed)
        heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.projected = torch.randn(2 * (heads + kv_heads) * width, generator=generator)
        self.q_norm, self.k_norm = torch.randn(2, width, generator=generator) * 0.1
        self.rows = position + BEHIND
        self.cache = torch.randn(2, kv_heads, self.rows, width, generator=generator).bfloat16()
        # Scores of a head lie some 10 apart, and the largest of a split may come at any place.
        self.cache[0] *= 1 + 3 * torch.rand(kv_heads, self.rows, 1, generator=generator)
        self.cache[:, :, position:] = float("nan")
        cos, sin = rope_tables(torch.arange(self.rows), rotary_dim=config.rotary_dim, theta=config.rope_theta)
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

    def run(self, blocks, csrc_dir=None, **how) -> torch.Tensor:
        c = self.config
        backend = HostBackend(csrc_dir=csrc_dir, **how)
        kernel = backend.compile("per_layer.cu", PerLayerDecoder.kernels, kernel_defines(c))["attention"]
        nan = float("nan")
        partials = torch.full((c.num_attention_heads, max_splits(c) + max_groups(c), c.head_dim + 4), nan)
        o = torch.full((c.num_attention_heads * c.head_dim,), nan)
        half = c.rotary_dim // 2
        cos, sin = (table[:, :half].float().contiguous() for table in self.tables)
        arrivals = torch.zeros(c.num_key_value_heads, 1 + max_groups(c), dtype=torch.int32)
        position = torch.tensor([self.position], dtype=torch.int32)
        k_cache, v_cache = self.cache.clone()
        args = (self.projected, self.q_norm, self.k_norm, cos, sin, k_cache, v_cache, partials, o, arrivals, position)
        backend.launch(kernel, blocks, BLOCK_THREADS, 0, (*args, self.rows))
        assert not arrivals.any()
        return o


POSITIONS = (0, 15, 30, 31, 32, 100, 519, 1023, 1024, 2047, 2048, 2199)  # 1 to 35 splits, in groups from 33 on


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_is_a_plain_softmax(shape, position):
    one = Attention(SHAPES[shape], position, seed=position)
    o = one.run(blocks=4)
    assert relative_error(o, one.expected()) <= LIMIT
    assert torch.equal(o, one.run(blocks=1, seed=position)), "another grid and order of threads"


def test_a_long_context_is_a_plain_softmax():
    one = Attention(WIDE, 8191)
    assert relative_error(one.run(blocks=8), one.expected()) <= LIMIT


@pytest.mark.parametrize("position", [0, 32, 519, 2199])
def test_hostile_memory_and_any_order_change_nothing(position):
    one = Attention(WIDE, position)
    o = one.run(blocks=4)
    for seed in range(2):
        assert torch.equal(o, one.run(blocks=7, seed=seed, hostile=True, races=True))


def test_more_blocks_than_units_change_nothing():
    one = Attention(WIDE, 600)
    assert torch.equal(one.run(blocks=4), one.run(blocks=60))


@pytest.mark.planted
@pytest.mark.parametrize(
    "position, old, new",
    [(2199, "? expf(soft.maximum[i] - maximum[i]) : 1.0f", "? 1.0f : 1.0f"),  # old sums not rescaled
     (2199, "? expf(soft.maximum[i] - maximum[i]) : 1.0f", "? -expf(soft.maximum[i] - maximum[i]) : 1.0f"),
     (2199, "soft.weight[i] *= old[i];", ""),
     (2199, "k_row += round_positions * head_dim", "k_row += 0"),
     (100, "g * workers < positions", "g * workers < positions - 1"),
     (20, "maximum[i] = fmaxf(maximum[i], __shfl", "maximum[i] = fmaxf(-INFINITY, __shfl"),
     (600, "const float scale = expf(ends[e].x - maximum);", "const float scale = 1.0f;"),  # splits not rescaled
     (600, "load_from(first + in_flight * result_lanes);", "load_from(first);"),  # the first eight splits again
     (2199, "= float2{maximum, weight};", "= float2{0.0f, weight};"),  # a group's maximum
     (2199, "first = max_splits, count = groups", "first = 0, count = groups"),  # splits in place of groups
     (100, "return place % (head_dim / 2) / 4 * 8 +", "return place % (head_dim / 2) / 8 * 8 +")],
)  # fmt: skip
def test_a_fault_shows(position, old, new):
    one = Attention(WIDE, position)
    with planted(Fault("", "attention.cuh", old, new)) as tree:
        assert not relative_error(one.run(blocks=4, csrc_dir=tree), one.expected()) <= 100 * LIMIT


@pytest.mark.planted
@pytest.mark.parametrize(
    "position, comment",
    [(519, "the queries are in shared memory"), (519, "every worker's maximum is in shared memory"),
     (519, "every worker's sums are in shared memory"), (519, "the next head may overwrite")],
)  # fmt: skip
def test_a_missing_barrier_is_a_race(position, comment):
    one = Attention(WIDE, position)
    with planted(Fault("", "attention.cuh", f"__syncthreads();  // {comment}", "//")) as tree:
        with pytest.raises(KernelError):
            one.run(blocks=4, csrc_dir=tree, seed=0, races=True)
