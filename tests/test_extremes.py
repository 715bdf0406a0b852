"""Every likelihood and KL at parameters of any size that float32 holds, against 150 digits.

No NaN comes of finite numbers, and infinity only where the true value overflows.
"""

from __future__ import annotations

import math

import extreme_checks
import mpmath as mp
import pytest
import torch
from conftest import Target
from likelihood_cases import ALL, LikelihoodCase

import vaefast as vf

# Autograd subtracts sigmoids that are both near a half; the kernels have their difference.
_REFERENCE_ULPS = {"discretized_logistic": 1e5, "continuous_bernoulli": 512.0}


@pytest.mark.each(3)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_likelihood(backend: Target, case: LikelihoodCase) -> None:
    ulps = _REFERENCE_ULPS.get(case.form, 64.0) if backend.name == "reference" else 64.0
    extreme_checks.likelihood(backend.device, case, ulps)


def test_kl(backend: Target) -> None:
    extreme_checks.kl(backend.device)


def test_monte_carlo_kl(backend: Target) -> None:
    extreme_checks.monte_carlo_kl(backend.device, autograd=backend.name == "reference")


@pytest.mark.parametrize("stop", [False, True])
def test_sampled_kl(backend: Target, stop: bool) -> None:
    extreme_checks.sampled_kl(backend.device, stop)


def test_pairs_at_a_tiny_variance(backend: Target) -> None:
    extreme_checks.pairs(backend.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_renyi_near_one(dtype: torch.dtype) -> None:
    """At alpha near 1 the bound is nearly the ELBO: 1 / (1 - alpha) times a small difference."""
    torch.manual_seed(3)
    log_w = (3 * torch.randn(7, 5)).to(dtype)
    log_w[:, 3] -= 900.0
    log_w[0, 4] = -torch.inf
    with mp.workdps(60):
        for alpha in (1 - 1e-12, 1 + 1e-6, 1 - 1e-6, 1 - 1e-3, 0.9, 0.5, 0.0, -2.0, 3.0):
            power = 1 - mp.mpf(alpha)
            leaf = log_w.clone().requires_grad_()
            got = vf.importance_loss(leaf, bound="renyi", alpha=alpha, reduction="sample")
            columns = log_w.double().T.tolist()
            if alpha > 1:
                # A weight of 0 makes it infinite.
                columns, got = columns[:4], got[:4]
            (grad,) = torch.autograd.grad(got.sum(), leaf)
            assert torch.isfinite(grad[:, :4]).all()
            for b, column in enumerate(columns):
                terms = [mp.exp(power * mp.mpf(w)) if w > -mp.inf else mp.mpf(0) for w in column]
                want = -mp.log(mp.fsum(terms) / len(terms)) / power
                ulp = torch.finfo(dtype).eps * (1 + max(abs(w) for w in column if w > -1e30))
                # Where a weight is 0 the mean of the others is all there is: log K / (1 - alpha).
                ulp += torch.finfo(dtype).eps / abs(float(power)) if b == 4 else 0.0
                assert abs(float(got[b].detach()) - float(want)) < 8 * ulp, (alpha, b)
                shares = [float(t / mp.fsum(terms)) for t in terms]
                if b < 4:
                    torch.testing.assert_close(
                        -grad[:, b], torch.tensor(shares).to(dtype), rtol=2e-4, atol=2e-6
                    )


@pytest.mark.parametrize("reduction", ["none", "sample", "batchmean", "sum", "mean"])
def test_optimal_gaussian_of_nothing_left(backend: Target, reduction: str) -> None:
    """An exact reconstruction has the floor's variance, and where all is masked no loss."""
    x = torch.randn(4, 3, device=backend.device)
    model = vf.likelihoods.Gaussian("optimal")
    for mask in (None, torch.zeros(4, 3, dtype=torch.bool, device=backend.device)):
        mean = x.clone().requires_grad_()
        loss = vf.nll(mean, x, model, mask=mask, reduction=reduction)
        (grad,) = torch.autograd.grad(loss.sum(), mean)
        assert not grad.any()
        each = 0.5 * math.log(2 * math.pi * 1e-12) if mask is None else 0.0
        count = {"none": 1, "sample": 3, "batchmean": 3, "sum": 12, "mean": 1}[reduction]
        torch.testing.assert_close(loss, torch.full_like(loss, each * count))
