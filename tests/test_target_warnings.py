"""What `validate=True` says of targets and parameters that are most often a mistake."""

import warnings

import likelihood_cases
import pytest
import torch

import vaefast as vf
from vaefast import likelihoods

PIXELS = [n for n, cls in likelihoods.registered().items() if cls.uint8_scale != 1]


def params_for(name, shape, device):
    case = next(c for c in likelihood_cases.ALL if c.name == name)
    return tuple(torch.zeros(shape, device=device) for _ in range(case.count))


def called(params, x, name, **settings):
    """The warnings of one call."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        vf.nll(params, x, name, **settings)
    return [str(w.message) for w in found]


def test_the_registry_is_walked():
    assert {"bernoulli", "continuous_bernoulli", "gaussian", "laplace"} <= set(PIXELS)


@pytest.mark.parametrize("name", PIXELS)
def test_bits_in_bytes(backend, name):
    bits = torch.tensor([[0, 1, 1], [0, 0, 1]], dtype=torch.uint8, device=backend.device)
    params = params_for(name, bits.shape, backend.device)
    for _ in range(2):
        (message,) = called(params, bits, name, validate=True)
        assert "target.bool()" in message
        assert "1/255" in message
    assert not called(params, bits, name)
    for other in (bits * 255, bits * 2, torch.zeros_like(bits), bits.float()):
        assert not called(params, other, name, validate=True)
    if torch.bool in likelihoods.registered()[name].target_dtypes:
        assert not called(params, bits.bool(), name, validate=True)
    # Not of what the mask leaves out.
    pixels = bits.clone()
    pixels[0, 0] = 200
    mask = torch.ones_like(pixels, dtype=torch.bool)
    assert not called(params, pixels, name, validate=True, mask=mask)
    mask[0, 0] = False
    assert called(params, pixels, name, validate=True, mask=mask)


def test_counts_and_levels_are_no_pixels(backend):
    bits = torch.tensor([[0, 1, 1], [0, 0, 1]], dtype=torch.uint8, device=backend.device)
    one = torch.ones(2, 3, device=backend.device)
    assert not called(one, bits, "poisson", validate=True)
    assert not called((one, one), bits, "discretized_logistic", validate=True)
    assert not called(one, bits, "multinomial", validate=True)


def test_it_is_shown_once_for_a_training_loop():
    loss, bits = vf.nn.NLL("bernoulli"), torch.ones(2, 3, dtype=torch.uint8)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for _ in range(5):
            loss(torch.zeros(2, 3), bits)
    assert len(found) == 1


def test_behind_a_linear_layer():
    bits = torch.ones(2, 3, dtype=torch.uint8)
    with pytest.warns(UserWarning, match=r"target\.bool\(\)"):
        vf.linear_nll(torch.ones(2, 4), torch.ones(3, 4), None, bits, "bernoulli", validate=True)


@pytest.mark.parametrize("value", [-3.0, 1.5, float("nan")])
def test_logits_given_for_probabilities(backend, value):
    logits = torch.tensor([[0.3, value]], device=backend.device)
    x = torch.ones(1, 2, device=backend.device)
    with pytest.raises(ValueError, match=r"logits of likelihood 'bernoulli' must be in \[0, 1\]"):
        vf.nll(logits, x, vf.Bernoulli(logits=False), validate=True)


def test_the_least_loss_of_probabilities_given_for_logits():
    """docs/operators.md says so."""
    p = torch.linspace(0, 1, 101)[None]
    losses = torch.minimum(
        vf.nll(p, torch.ones_like(p), "bernoulli", reduction="none"),
        vf.nll(p, torch.zeros_like(p), "bernoulli", reduction="none"),
    )
    torch.testing.assert_close(losses.min(), torch.tensor(0.3133), rtol=0, atol=5e-5)
