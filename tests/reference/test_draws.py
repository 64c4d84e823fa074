"""Draws follow the distribution that temperature, top-k and top-p leave, and their random numbers are Philox's."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from luce_edu.reference import sampling
from luce_edu.reference.sampling import draw, exponentials, kept, philox, token_weights

# "kat_vectors" of DEShawResearch/random123, lines "philox4x32 10": counter, key, result
ONES = 2**32 - 1
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]  # fmt: skip
LOGITS = torch.tensor([1.0, -0.5, 2.0, 0.3, 1.7, -3.0, 0.9])
DRAWS = 20000


@pytest.mark.parametrize("counter, key, result", KNOWN)
def test_philox_gives_the_published_answers(counter, key, result):
    words = philox(tuple(torch.tensor(word) for word in counter), key[0] | key[1] << 32)
    assert tuple(int(word) for word in words) == result


def test_weights_and_exponentials_are_those_of_the_exact_functions():
    logits = torch.cat([4 * torch.randn(5000), torch.tensor([0.0, -0.0, -300.0])])
    exact = ((logits.double() - logits.double().max()) / 0.7).exp().clamp_min(2.0**-126)
    error = (token_weights(logits, 0.7) - exact).abs() / exact
    assert error.max() < 1e-5, "x of up to 60 is rounded to 2^-19, and exp(x) changes by as much"
    word = philox(tuple(torch.tensor([x]) for x in (0, 9, 0, 0)), 5)[0]
    exact = -math.log2(1 - (int(word) + 0.5) / 2**32)
    assert float(exponentials(1, 5, 9)) == pytest.approx(exact, rel=4e-7)


@pytest.mark.parametrize("word", [0, 1, 2**30 - 1, 2**30, 2**31, 3 * 2**30, ONES - 1, ONES])
def test_every_random_word_makes_a_finite_positive_exponential(word, monkeypatch):
    monkeypatch.setattr(sampling, "philox", lambda counter, seed: (torch.tensor([[word]]),) * 4)
    x = (word + 0.5) / 2**32
    assert float(exponentials(1, 0, 0)) == pytest.approx(-math.log1p(-x) / math.log(2), rel=4e-7)


def chi_square(how, **changes):
    """Pearson's statistic of DRAWS draws, and its number of degrees of freedom."""
    how = SimpleNamespace(**{"temperature": 1.0, "top_k": None, "top_p": None} | how)
    scores = LOGITS.double() / how.temperature
    if how.top_k:
        scores = TopKLogitsWarper(how.top_k)(None, scores[None])[0]
    if how.top_p:
        scores = TopPLogitsWarper(how.top_p)(None, scores[None])[0]
    expected = DRAWS * scores.softmax(-1)
    drawn = draw(LOGITS, **vars(how) | {"seed": 11, "position": torch.arange(DRAWS)} | changes)
    counts = torch.bincount(drawn, minlength=len(LOGITS))
    possible = expected > 0
    if counts[~possible].any():
        return math.inf, 0
    return float(((counts - expected)[possible] ** 2 / expected[possible]).sum()), int(possible.sum()) - 1


def fits(statistic, degrees):
    """Whether a statistic is one that the right distribution exceeds once in a thousand times at most."""
    upper_tail = torch.special.gammaincc(torch.tensor(degrees / 2.0), torch.tensor(statistic / 2))
    return statistic < math.inf and float(upper_tail) > 1e-3


HOW = {
    "plain": {}, "hot": {"temperature": 1.8}, "cold": {"temperature": 0.6}, "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.8}, "both": {"temperature": 1.3, "top_k": 4, "top_p": 0.7},
}  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_draws_follow_the_distribution(how):
    assert fits(*chi_square(HOW[how]))


@pytest.mark.planted
@pytest.mark.parametrize(
    "how, changes",
    [("hot", {"temperature": 1.6}), ("top-k", {"top_k": 4}), ("top-k", {"top_k": 2}), ("top-p", {"top_p": 0.9}),
     ("both", {"top_p": 0.9}), ("plain", {"position": torch.zeros(DRAWS, dtype=torch.int64)})],
)  # fmt: skip
def test_another_distribution_does_not_fit(how, changes):
    assert not fits(*chi_square(HOW[how], **changes))


@pytest.mark.parametrize("temperature, top_k, top_p", [(1, 5, None), (0.7, None, 0.9), (2, 40, 0.5), (1, 1, 0.01)])
def test_kept_tokens_are_those_of_transformers(temperature, top_k, top_p):
    for seed in range(5):
        logits = 3 * torch.randn(501, generator=torch.Generator().manual_seed(seed))
        scores = logits.double()[None] / temperature
        scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
        scores = TopPLogitsWarper(top_p)(None, scores) if top_p else scores
        assert torch.equal(kept(logits, temperature, top_k, top_p), scores[0] > -math.inf)


def test_equal_logits_are_all_kept_and_nan_is_not():
    nan = math.nan
    logits = torch.tensor([0.0, 5.0, nan, 0.0, 5.0, -0.0, -1.0])
    assert kept(logits, 1, 1, None).tolist() == [False, True, False, False, True, False, False]
    assert kept(logits, 1, 3, None).tolist() == [True, True, False, True, True, True, False]
    assert kept(logits, 1, None, 0.3).tolist() == [False, True, False, False, True, False, False]
    assert kept(logits, 1, None, 1 - 1e-9).tolist() == [True, True, False, True, True, True, True]
    assert draw(torch.tensor([nan, nan]), temperature=1, top_k=None, top_p=0.5, seed=0, position=0).tolist() == [-1]


def test_a_top_p_of_one_keeps_all_tokens_even_one_whose_weight_rounds_to_0():
    logits = torch.tensor([0.0, -100.0])
    assert kept(logits, 1.0, None, 1.0).tolist() == kept(logits, 1.0, None, None).tolist() == [True, True]
    assert kept(logits, 1.0, None, 1 - 2**-53).tolist() == [True, False]
