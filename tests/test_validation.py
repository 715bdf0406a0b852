"""`validate=True`: values that a parameter must not have, where no mask leaves them out."""

from __future__ import annotations

import math
import random

import likelihood_cases
import pytest
import torch
from conftest import Target

import vaefast as vf
from vaefast.likelihoods import NOT_NEGATIVE, POSITIVE, PROBABILITY

WRONG = {
    POSITIVE: (-0.5, 0.0, math.nan, -math.inf),
    NOT_NEGATIVE: (-0.5, math.nan, -math.inf),
    PROBABILITY: (-0.5, 1.5, math.nan),
}


def test_no_parameter_that_must_be_positive_is_forgotten() -> None:
    """A likelihood's links and its domains say the same."""
    for case in likelihood_cases.ALL:
        model = case.build()
        for name in model.param_names[: case.count]:
            bounded = model.domain(name) in (POSITIVE, NOT_NEGATIVE)
            assert bounded == (name in model.positive_params()), (case, name)
        if case.scalar is not None:
            (learned,) = case.settings
            assert model.domain(learned) is POSITIVE


@pytest.mark.parametrize("case", likelihood_cases.ALL, ids=str)
def test_a_parameter_that_it_must_not_be(
    backend: Target, case: likelihood_cases.LikelihoodCase
) -> None:
    rng = random.Random(0)
    good = [p.float().to(backend.device) for p in case.params((2, 3, 4), rng)]
    x = case.target((3, 4), rng).float().to(backend.device)
    scalar = None if case.scalar is None else case.scalar.float().to(backend.device)
    model = case.build(scalar)
    # Twice: the second call may be a prepared one.
    for _ in range(2):
        vf.nll(tuple(good), x, model, validate=True)
        vf.nll(tuple(p[0] for p in good), x, model, validate=True)
    mask = torch.ones(3, 4, dtype=torch.bool, device=backend.device)
    mask[1, 2] = False
    for index, name in enumerate(model.param_names[: case.count]):
        for bad in WRONG.get(model.domain(name), ()):
            spoilt = [p.clone() for p in good]
            spoilt[index][1, 1, 2] = bad
            message = (
                rf"{name} of likelihood '{case.name}' must be "
                rf".*got {bad} in 1 of 24 elements"
            )
            with pytest.raises(ValueError, match=message):
                vf.nll(tuple(spoilt), x, model, validate=True)
            with pytest.raises(ValueError, match=f"{name} of likelihood"):
                vf.nn.NLL(model)(tuple(p[1] for p in spoilt), x)
            assert vf.nll(tuple(spoilt), x, model, mask=mask, validate=True).isfinite()
            # Unasked, it is computed as the formula says.
            vf.nll(tuple(spoilt), x, model)
    if scalar is not None:
        (learned,) = case.settings
        for bad in (-0.7, 0.0, math.nan):
            wrong = case.build(torch.tensor(bad, device=backend.device))
            with pytest.raises(ValueError, match=f"{learned} of likelihood .* must be positive"):
                vf.nll(good[0], x, wrong, validate=True)


def test_one_parameter_for_all_rows(backend: Target) -> None:
    """A dispersion `[G]`: that of a column which the mask leaves out whole is not looked at."""
    mu, x = torch.ones(3, 4, device=backend.device), torch.ones(3, 4, device=backend.device)
    theta = torch.tensor([1.0, -1.0, 2.0, 3.0], device=backend.device)
    mask = torch.tensor([True, False, True, True], device=backend.device)
    with pytest.raises(ValueError, match=r"theta.* must be positive, got -1.0"):
        vf.nll((mu, theta), x, "negative_binomial", validate=True)
    vf.nll((mu, theta), x, "negative_binomial", mask=mask, validate=True)


def test_linear_nll(backend: Target) -> None:
    h = torch.ones(3, 2, device=backend.device)
    x = torch.ones(3, 4, device=backend.device)
    heads = [torch.ones(4, 2, device=backend.device), None]
    biases = [None, torch.tensor([1.0, -1.0, 2.0, 3.0], device=backend.device)]

    def loss(mask: torch.Tensor | None = None, link: object = "identity") -> torch.Tensor:
        return vf.linear_nll(
            h, heads, biases, x, "negative_binomial", link=link, mask=mask, validate=True
        )

    with pytest.raises(ValueError, match="theta of likelihood 'negative_binomial' must be pos"):
        loss()
    heads[0] = -heads[0]
    with pytest.raises(ValueError, match="mu of likelihood 'negative_binomial' must be at least 0"):
        loss(link=("identity", "exp"))
    assert loss(link="exp").isfinite()
    mask = torch.tensor([True, False, True, True], device=backend.device)
    assert loss(mask, ("exp", "identity")).isfinite()
    std = torch.tensor(-0.5, device=backend.device)
    with pytest.raises(ValueError, match="std of likelihood 'gaussian' must be positive"):
        vf.linear_nll(h, heads[0], None, x, vf.Gaussian(std), validate=True)


@pytest.mark.parametrize("param", ["std", "var"])
def test_the_posterior_and_the_prior(backend: Target, param: str) -> None:
    device = backend.device
    mu, good = torch.ones(3, 4, device=device), torch.ones(3, 4, device=device)
    bad = good.clone()
    bad[1, 2] = -0.5
    z, params, x = mu.expand(2, 3, 4), torch.zeros(2, 3, 5, device=device), torch.ones(3, 5)
    x = x.to(device)
    nn = vf.nn
    calls = {
        "scale": [
            lambda **k: nn.Reparameterize(param=param, **k)(mu, bad),
            lambda **k: nn.GaussianKL(param=param, **k)(mu, bad),
            lambda **k: nn.TCLoss(100, param=param, **k)(mu, mu, bad),
            lambda **k: nn.ELBOLoss("bernoulli", param=param, **k)(params[0], x, mu, bad),
            lambda **k: nn.ImportanceLoss("bernoulli", param=param, **k)(params, x, z, mu, bad),
        ],
        "prior_scale": [
            lambda **k: nn.GaussianKL(param=param, **k)(mu, good, mu, bad),
            lambda **k: nn.ELBOLoss("bernoulli", param=param, **k)(
                params[0], x, mu, good, prior_scale=bad
            ),
            lambda **k: nn.ImportanceLoss("bernoulli", param=param, **k)(
                params, x, z, mu, good, prior_scale=bad
            ),
        ],
    }
    for name, every in calls.items():
        for call in every:
            with pytest.raises(
                ValueError,
                match=rf"^{name} under param='{param}' must be positive, got -0.5 in 1 of 12",
            ):
                call()
            call(validate=False)
    mask = bad > 0
    assert nn.GaussianKL(param=param)(mu, bad, mu, bad, mask=mask).isfinite()
    # A clamp that leaves it positive is the posterior's.
    nn.GaussianKL(param=param, clamp=(0.1, 5.0))(mu, bad)
    with pytest.raises(ValueError, match=r"must be positive, got 0.0"):
        nn.GaussianKL(param=param, clamp=(0.0, 5.0))(mu, bad)
    nn.Reparameterize()(mu, bad)


def test_a_kl_in_half_precision_is_averaged_in_float32(backend: Target) -> None:
    """In bfloat16 the mean of 300 values of 1.0078 is 1.0078 or 1, and their sum far off."""
    kl = torch.linspace(1.0, 300.0, 300, device=backend.device).to(torch.bfloat16)
    logits, x = torch.zeros(2, 300, 1, device=backend.device)
    for settings in ({}, {"free_bits": 20.0, "free_bits_per": "sample"}, {"capacity": 3.0},
                     {"beta": torch.ones(300, device=backend.device, dtype=torch.bfloat16)},
                     {"free_bits": 20.0, "free_bits_per": "total"}):  # fmt: skip
        for reduction in ("batchmean", "sum", "mean", "sample"):
            given = {"likelihood": "bernoulli", "reduction": reduction, **settings}
            if reduction == "sample" and settings.get("free_bits_per") == "total":
                continue
            got = vf.elbo_loss(logits, x, kl=kl, **given)
            want = vf.elbo_loss(logits, x, kl=kl.float(), **given)
            for a, b in zip(got, want, strict=True):
                assert a.dtype == torch.float32
                assert torch.equal(a, b), (settings, reduction)
