"""The delta rule in chunks against the delta rule token by token."""

import pytest
import torch
import torch.nn.functional as F
from cases import relative_error

from luce_edu.reference import delta_rule
from luce_edu.reference.delta_rule import delta_rule_chunked, delta_rule_recurrent, l2_norm

HEADS, KEY_DIM, VALUE_DIM = 3, 16, 24
LIMIT = 1e-5  # fp32 sums over at most 200 tokens, in another order


def random_inputs(tokens, *, batch=(), dtype=torch.float32, seed=0):
    """Arguments of the delta rule with a state that is not empty. Some heads forget at once, some hardly."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*batch, *shape, generator=generator, dtype=dtype)

    q, k = (l2_norm(normal(tokens, HEADS, KEY_DIM)) for _ in range(2))
    rates = torch.tensor([0.001, 0.1, 20.0], dtype=dtype)
    return {
        "q": q * KEY_DIM**-0.5,
        "k": k,
        "v": normal(tokens, HEADS, VALUE_DIM),
        "beta": normal(tokens, HEADS).sigmoid(),
        "g": -F.softplus(normal(tokens, HEADS)) * rates,
        "recurrent_state": normal(HEADS, KEY_DIM, VALUE_DIM),
    }


def run(function, inputs, **kwargs):
    """Output and new state; `inputs` do not change."""
    state = inputs["recurrent_state"].clone()
    out = function(**(inputs | {"recurrent_state": state}), **kwargs)
    return out, state


@pytest.mark.parametrize("tokens", [1, 2, 3, 63, 64, 65, 130, 200])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_chunked_equals_recurrent_in_outputs_and_state(tokens, batch):
    inputs = random_inputs(tokens, batch=batch)
    expected = run(delta_rule_recurrent, inputs)
    out, state = run(delta_rule_chunked, inputs)
    assert relative_error(out, expected[0]) <= LIMIT
    assert relative_error(state, expected[1]) <= LIMIT


@pytest.mark.parametrize("chunk_size", [1, 7, 16, 64, 128])
def test_the_chunk_size_does_not_change_the_result(chunk_size):
    inputs = random_inputs(100)
    expected = run(delta_rule_recurrent, inputs)
    for x, reference in zip(run(delta_rule_chunked, inputs, chunk_size=chunk_size), expected, strict=True):
        assert relative_error(x, reference) <= LIMIT


def test_gradients_of_the_chunked_form_equal_finite_differences():
    inputs = random_inputs(5, dtype=torch.float64)
    state = inputs.pop("recurrent_state")[:1, :3, :2]
    inputs = {name: x[:, :1] if x.dim() == 2 else x[:, :1, : 2 if name == "v" else 3] for name, x in inputs.items()}
    names = list(inputs)

    def out(*values):
        arguments = dict(zip(names, values, strict=True))
        return delta_rule_chunked(**arguments, recurrent_state=state.clone(), chunk_size=2)

    assert torch.autograd.gradcheck(out, [value.requires_grad_() for value in inputs.values()])


def test_a_stored_pair_is_read_back():
    """With beta 1 and no decay, a key reads the value that was written with it."""
    k = F.one_hot(torch.tensor([[0], [1], [0]]), KEY_DIM).float()
    v = torch.arange(3.0 * VALUE_DIM).view(3, 1, VALUE_DIM)  # whole numbers, so that nothing rounds
    state = torch.zeros(1, KEY_DIM, VALUE_DIM)
    arguments = {"beta": torch.ones(3, 1), "g": torch.zeros(3, 1), "recurrent_state": state}
    assert torch.equal(delta_rule_recurrent(k, k, v, **arguments), v)
    assert torch.equal(state[0, :2], torch.stack([v[2, 0], v[1, 0]]))  # the second write replaced the first


def wrong_step(q, k, v, *, beta, g, recurrent_state, fault):
    if fault == "beta and g swapped":
        beta, g = g, beta
    if fault == "no decay":
        g = torch.zeros_like(g)
    predicted = torch.einsum("hkv,hk->hv", recurrent_state, k)
    recurrent_state *= g.exp()[:, None, None]
    if fault != "decay after the prediction":
        predicted = torch.einsum("hkv,hk->hv", recurrent_state, k)
    delta = beta[:, None] * (v - predicted)
    before = recurrent_state.clone()
    recurrent_state += k[:, :, None] * delta[:, None, :]
    return torch.einsum("hkv,hk->hv", before if fault == "read before the write" else recurrent_state, q)


@pytest.mark.parametrize(
    "fault", ["none", "beta and g swapped", "no decay", "decay after the prediction", "read before the write"]
)
def test_the_comparison_of_the_two_forms_catches(fault, monkeypatch):
    inputs = random_inputs(40)
    monkeypatch.setattr(delta_rule, "delta_rule_step", lambda *args, **kwargs: wrong_step(*args, **kwargs, fault=fault))
    error = relative_error(run(delta_rule_recurrent, inputs)[0], run(delta_rule_chunked, inputs)[0])
    assert (error <= LIMIT) == (fault == "none"), error
