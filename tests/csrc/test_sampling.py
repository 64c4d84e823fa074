"""The kernel of sampling.cu draws the reference's token from the same logits, on any grid and in any order of warps."""

import dataclasses
import functools
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from models import CONFIGS, FULL_SIZE, TINY

from luce_edu.backends import make_backend
from luce_edu.errors import KernelError
from luce_edu.faults import Fault, planted
from luce_edu.machine.nvrtc import compile_ptx
from luce_edu.reference.sampling import draw
from luce_edu.stages.dims import BLOCK_THREADS, GRID_BARRIER_PASSED, GRID_BARRIER_WORDS, kernel_defines
from luce_edu.stages.sampling import KERNELS, MEMORY_BYTES, SOURCE, Sampling

NO_TOKEN = 2**31 - 1
WAYS = [
    Sampling(0.7, seed=3), Sampling(30.0, top_k=3), Sampling(30.0, top_p=0.02), Sampling(1.3, top_k=40, top_p=0.5),
    Sampling(1.0, top_k=1, seed=2**63 - 1), Sampling(1.0, top_p=1e-30), Sampling(1.0, top_k=10**12, top_p=1.0),
    Sampling(1e-40), Sampling(1e300, top_p=1 - 1e-16), Sampling(1.0, top_p=0.5, seed=1),
]  # fmt: skip
# A vocabulary of several float4 per thread of one block, and a last one with three logits
CONFIGS = CONFIGS | {"large": dataclasses.replace(TINY, vocab_size=8 * BLOCK_THREADS + 3)}


class Draws:
    """sampling.cu on the virtual GPU, with what it keeps from one draw to the next."""

    def __init__(self, config, grid, **backend):
        self.vocab_size, self.grid = config.vocab_size, grid
        self.backend = make_backend("host", **backend)
        self.kernel = self.backend.compile(SOURCE, KERNELS, kernel_defines(config))["draw"]
        self.memory = torch.zeros(MEMORY_BYTES, dtype=torch.uint8)
        self.barrier = torch.zeros(GRID_BARRIER_WORDS, dtype=torch.int32)
        self.arrivals = torch.zeros(1, dtype=torch.int32)
        self.token = torch.zeros(1, dtype=torch.int32)

    def __call__(self, logits, how, position=5, redraw=False):
        """The token, drawn after the greedy choice, or once more."""
        if not redraw:
            finite = logits.where(~logits.isnan(), -math.inf)
            self.token.fill_(NO_TOKEN if logits.isnan().all() else int(finite.argmax()))
        packed = torch.frombuffer(bytearray(how.packed()), dtype=torch.uint8)
        best = torch.full((self.grid, 2), math.nan)
        args = (logits, packed, position, int(redraw), self.memory, best, self.arrivals, self.barrier, self.token)
        self.backend.launch(self.kernel, self.grid, BLOCK_THREADS, 0, args, cooperative=True)
        return int(self.token)

    def barriers(self):
        return int(self.barrier[GRID_BARRIER_PASSED])


@functools.lru_cache
def draws(config, grid):
    return Draws(CONFIGS[config], grid, seed=7)


def expected(logits, how, position=5):
    return int(draw(logits, **vars(how), position=position))


def some_logits(kind, count):
    logits = 3 * torch.randn(count)
    if kind == "ties":
        logits = logits.round()
    if kind == "NaN":
        logits[torch.rand(count) < 0.5] = math.nan
        logits[torch.rand(count) < 0.1] = -math.nan
    if kind == "infinite":
        logits[:3] = torch.tensor([math.inf, -math.inf, math.inf])
    if kind == "equal":
        logits[:] = 0.0
        logits[::2] = -0.0
    if kind == "close":  # in one bin of the first two steps
        logits = (torch.full((count,), 1.0).view(torch.int32) + torch.randint(1000, (count,)).int()).view(torch.float32)
    if kind == "crowd":  # one large weight; the others are a little below 2^32 units, so their sum carries often
        logits = 0.01 * torch.randn(count)
        logits[7] = 5.6
    return logits


@pytest.mark.parametrize("kind", ["usual", "ties", "NaN", "infinite", "equal", "close", "crowd"])
@pytest.mark.parametrize("config, grid", [("tiny", 1), ("odd", 1), ("odd", 4), ("wide", 2), ("large", 3)])
def test_the_token_is_that_of_the_reference(config, grid, kind):
    kernel = draws(config, grid)
    logits = some_logits(kind, kernel.vocab_size)
    for how in WAYS:
        assert kernel(logits, how) == expected(logits, how), how
    assert kernel.arrivals.item() == 0 and kernel.memory[:-16].count_nonzero() == 0, "left as the next draw needs them"


def test_every_card_and_grid_draws_the_same_token_from_a_full_vocabulary():
    logits = 2.5 * torch.randn(FULL_SIZE.vocab_size)
    want = [expected(logits, how) for how in WAYS[:4]]
    for card, grid in (("RTX 3090", 82), ("H200", 5)):
        kernel = Draws(FULL_SIZE, grid, card=card)
        assert [kernel(logits, how) for how in WAYS[:4]] == want, card


def test_without_a_number_there_is_no_token():
    kernel = draws("odd", 4)
    assert kernel(torch.full((kernel.vocab_size,), math.nan), WAYS[3]) == NO_TOKEN
    assert kernel(torch.zeros(kernel.vocab_size), WAYS[3], redraw=True) == NO_TOKEN


def test_a_draw_repeats_whatever_was_drawn_before_and_depends_on_seed_and_position():
    kernel, how = draws("large", 3), Sampling(5.0, top_k=2000)
    logits = some_logits("usual", kernel.vocab_size)
    first = kernel(logits, how)
    others = [kernel(logits, dataclasses.replace(how, seed=seed), redraw=True) for seed in range(1, 7)]
    others += [kernel(logits, how, position, redraw=True) for position in range(6, 12)]
    assert len({first, *others}) > 10
    assert kernel(logits, how, redraw=True) == first


@pytest.mark.parametrize(
    "how, least, most", [(WAYS[0], 0, 0), (WAYS[1], 1, 4), (WAYS[2], 1, 4), (WAYS[3], 2, 8), (WAYS[6], 1, 1)]
)
def test_the_number_of_barriers(how, least, most):
    kernel = draws("large", 3)
    before = kernel.barriers()
    kernel(some_logits("usual", kernel.vocab_size), how)
    assert least <= kernel.barriers() - before <= most


PLANTED = {
    "no exchange": ("usual", "exchange();  // the tokens", "__syncthreads();  // the tokens"),
    "carry lost": ("crowd", "> ~add", "> 0xffffffffu"),
    "upper word lost": ("crowd", "if (upper != 0u)", "if (false)"),
    "last logits not read": ("last", "first + 2 < vocab_size ? logits[first + 2] : nan", "nan"),
    "a logit beyond the last": ("last", "logits[first + 2] : nan, nan}", "logits[first + 2] : nan, 20.0f}"),
    "-0 below 0": ("equal", "__fadd_rn(logit, 0.0f)", "logit"),
    "NaN kept": ("NaN", "if (logit != logit) return 0u;", ""),
}


def wrong_draws(kind, *faults):
    """How many draws are not the reference's, or do not end."""
    with planted(*faults) as tree:
        kernel = Draws(CONFIGS["large"], 3, csrc_dir=tree, seed=7, races=True)
    torch.manual_seed(0)
    logits = some_logits(kind, kernel.vocab_size)
    if kind == "last":
        logits[-1] = 20.0
    try:
        return sum(kernel(logits, how) != expected(logits, how) for how in WAYS)
    except KernelError:
        return 1


@pytest.mark.planted
@pytest.mark.parametrize("name", PLANTED)
def test_a_draw_with_a_planted_fault_is_seen(name):
    kind, old, new = PLANTED[name]
    assert wrong_draws(kind, Fault(name, "sampling.cuh", old, new)) > 0
    assert wrong_draws(kind) == 0


def many_draws(logits, how, *faults):
    """Draws from each row of logits in one launch, with the race check on; positions count from 5."""
    with planted(*faults) as tree:
        shutil.copy(Path(__file__).parent / "kernels" / "many_draws.cu", tree)
        backend = make_backend("host", csrc_dir=tree, seed=3, races=True)
        kernel = backend.compile("many_draws.cu", ["many_draws"], kernel_defines(CONFIGS["odd"]))["many_draws"]
    grid, (count, row) = 3, logits.shape
    packed = torch.frombuffer(bytearray(how.packed()), dtype=torch.uint8)
    memory, barrier = torch.zeros(MEMORY_BYTES, dtype=torch.uint8), torch.zeros(GRID_BARRIER_WORDS, dtype=torch.int32)
    arrivals, token, tokens = (torch.zeros(n, dtype=torch.int32) for n in (1, 1, count))
    best = torch.full((grid, 2), math.nan)
    args = (logits, row, count, packed, 5, memory, best, arrivals, barrier, token, tokens)
    backend.launch(kernel, grid, BLOCK_THREADS, 0, args, cooperative=True)
    return tokens.tolist()


def test_one_launch_draws_many_tokens_in_turn():
    vocab_size, how = CONFIGS["odd"].vocab_size, Sampling(5.0, top_k=50, top_p=0.7, seed=9)
    logits = 3 * torch.randn(6, vocab_size + 3)  # each row begins on 16 bytes
    want = [expected(row[:vocab_size], how, position) for position, row in enumerate(logits, 5)]
    assert many_draws(logits, how) == want
    uncleared = Fault("", "sampling.cuh", "i < used * ", "i < 0 * ")
    assert many_draws(logits, how, uncleared) != want


def test_each_operation_is_rounded_on_its_own():
    text = compile_ptx(SOURCE, None, KERNELS, kernel_defines(TINY), "sm_86")
    assert "div.rn.f32" in text and "mul.rn.f32" in text
    assert not re.search(r"\.approx|\.ftz|\b(fma|mad)\.[\w.]*f32|\b(mul|add|sub)\.f32", text)


def test_no_race_in_a_hostile_order():
    for seed in (0, 1):
        kernel = Draws(CONFIGS["odd"], 3, seed=seed, hostile=True, races=True)
        logits = some_logits("ties", kernel.vocab_size)
        for how in WAYS[:4]:
            assert kernel(logits, how) == expected(logits, how), how
