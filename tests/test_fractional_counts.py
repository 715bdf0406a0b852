"""The negative binomials at counts that are no integers, as normalised ones are, against 150
digits. tests/triton/count_checks.py has them in Triton."""

from __future__ import annotations

import itertools

import exact
import pytest
import torch
from conftest import Target
from test_likelihood_counts import negative_binomial, zero_inflated

import vaefast as vf

F32, F64 = torch.float32, torch.float64
COUNTS = [1e-3, 0.05, 0.9, 2.6, 30.2]
MEANS = [1e-3, 2.5, 40.0]
THETAS = [1e-3, 0.2, 1.0, 2.5, 5.0, 1e3]
# In float64 plain PyTorch takes differences of its log Gammas and digammas.
ULPS = {("reference", F64): 2**15}


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_fractional_counts(backend: Target, dtype: torch.dtype) -> None:
    ulps = ULPS.get((backend.name, dtype), 16)
    check(backend, dtype, ulps)
    check_zero_inflated(backend, dtype, ulps)


def check(backend: Target, dtype: torch.dtype, ulps: float) -> None:
    points = list(itertools.product(COUNTS, MEANS, THETAS))
    # Where count and mean are close the loss is small, and so is its derivative.
    points += [(x, 0.9 * x, theta) for x in COUNTS for theta in THETAS]
    model = vf.likelihoods.NegativeBinomial()
    exact.check(model, negative_binomial, points, backend.device, dtype, ulps)


def check_zero_inflated(backend: Target, dtype: torch.dtype, ulps: float) -> None:
    points = list(itertools.product(COUNTS[::2], MEANS[::2], THETAS[1::2], [-3.0, 1.0]))
    model = vf.likelihoods.ZeroInflatedNegativeBinomial()
    exact.check(model, zero_inflated, points, backend.device, dtype, ulps)
