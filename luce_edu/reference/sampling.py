"""Draw a token from logits with temperature, top-k and top-p, by sorting them.

The kernels of csrc/sampling.cuh draw the same tokens from the same logits. So this file multiplies, adds and divides
in fp32 in the same order, and adds weights as integers; how it finds the tokens to keep is its own.
"""

from __future__ import annotations

import math

import torch

WORD = 2**32 - 1
# ln(2)^i / i!, and 2 / ln(2) / (2 i + 1), in fp32
EXP2 = (1.0, 0.69314718, 0.24022651, 0.055504109, 0.0096181291, 0.0013333558, 0.00015403530, 0.000015252734)
LOG2 = (2.8853901, 0.96179669, 0.57707802, 0.41219858, 0.32059889)


def draw(logits, *, temperature, top_k=None, top_p=None, seed, position) -> torch.Tensor:
    """Draw a token from softmax(logits / temperature) over the kept tokens; return its index, int64 [1].

    logits    [vocab_size] fp32; a NaN is never drawn. If all are NaN, the index is -1
    top_k     keep the largest top_k logits, and those that equal the last of them; None: all
    top_p     of these, keep each whose larger ones have less than this share of the probability; None or 1: all
    position  of the drawn token in the sequence. It and the seed decide the random numbers, one for each index. A
              tensor [n] of positions makes n draws, [n]
    Source: the Gumbel-max trick, arXiv 1611.01144.
    """
    keep = kept(logits, temperature, top_k, top_p)
    race = token_weights(logits, temperature) / exponentials(len(logits), seed, position, logits.device)
    first = torch.where(keep, race, -1.0).argmax(-1)  # of equals, the lowest index
    return torch.where(keep.any(), first, -1)


def kept(logits: torch.Tensor, temperature: float, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """Say which tokens top-k, and after it top-p, keep; bool [vocab_size]."""
    keep = ~logits.isnan()
    ordered, index = logits.where(keep, -torch.inf).sort(descending=True)
    count = int(keep.sum())
    if top_k is not None and top_k < count:
        keep &= logits >= ordered[top_k - 1]
    if top_p is not None and top_p < 1 and count > 0:
        mass = _fixed(token_weights(logits, temperature)).where(keep, 0)[index]
        share = int(math.ldexp(top_p, 64))  # a fraction of 2^64, as the kernels have it
        before = mass.cumsum(0) - mass
        limit = -(-int(mass.sum()) * max(share, 1) >> 64)  # rounded up
        keep &= logits >= ordered[before < limit][-1]
    return keep


def token_weights(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return exp((logits - maximum) / temperature) in fp32, at least 2^-126; also for NaN."""
    maximum = logits.where(~logits.isnan(), -torch.inf).max()
    x = (logits - maximum) * scale(temperature)
    x = torch.where(logits == maximum, 0.0, x)  # even if both are infinite
    x = torch.where(x > -126, x, -126.0)
    whole = x.round()
    return _polynomial(EXP2, x - whole) * torch.exp2(whole.double()).float()


def scale(temperature: float) -> float:
    """Return log2(e) / temperature, rounded to fp32; infinity if that is too large."""
    return float(torch.tensor(math.log2(math.e) / temperature, dtype=torch.float64).float())


def exponentials(count: int, seed: int, position, device=None) -> torch.Tensor:
    """Return -log2(u) for uniform numbers u in (0, 1), fp32 [positions, count]: exponential, with mean 1 / ln(2).

    Each random word makes one u, 1 - (word + 1/2) / 2^32. Close to 1 the logarithm starts from 1 - u, which is exact.
    """
    position = torch.as_tensor(position, device=device).reshape(-1, 1)
    block = torch.arange(-(-count // 4), device=device).expand(len(position), -1)  # a counter makes four words
    zero = torch.zeros_like(block)
    words = torch.stack(philox((block, zero + position, zero, zero), seed), -1).flatten(1)[:, :count]
    near_one = words < 2**30
    x = (torch.where(near_one, words, WORD - words).float() + 0.5) * 2.0**-32  # 1 - u, or u
    exponent = torch.where(near_one, 0, (x.view(torch.int32) - 0x3F400000) >> 23)
    m = x * torch.exp2(-exponent.double()).float()  # u = m * 2^exponent, m in [0.75, 1.5)
    s = torch.where(near_one, -x / (2 - x), (m - 1) / (m + 1))
    return -(exponent.float() + s * _polynomial(LOG2, s * s))


def philox(counter: tuple, seed: int) -> tuple:
    """Return Philox4x32-10 of a counter of four words, each int64 of any shape, with the 64-bit seed as its key.

    Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    a, b, c, d = counter
    keys = [seed & WORD, seed >> 32 & WORD]
    for _ in range(10):
        (high_a, low_a), (high_c, low_c) = _product(a, 0xD2511F53), _product(c, 0xCD9E8D57)
        a, b, c, d = high_c ^ b ^ keys[0], low_c, high_a ^ d ^ keys[1], low_a
        keys = [keys[0] + 0x9E3779B9 & WORD, keys[1] + 0xBB67AE85 & WORD]
    return a, b, c, d


def _product(x: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the upper and the lower word of x * factor, from parts that fit into 63 bits."""
    upper, lower = x * (factor >> 16), x * (factor & 0xFFFF)
    return upper + (lower >> 16) >> 16, (upper << 16) + lower & WORD


def _polynomial(terms: tuple, x: torch.Tensor) -> torch.Tensor:
    y = torch.full_like(x, terms[-1])
    for term in terms[-2::-1]:
        y = y * x + term
    return y


def _fixed(weights: torch.Tensor) -> torch.Tensor:
    """Return weights as integers, in units of 2^-40."""
    return (weights * 2.0**40).double().round().long()
