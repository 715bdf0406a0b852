"""Measures of posteriors that were made to have known ones."""

from __future__ import annotations

import doctest
import math

import pytest
import torch

import vaefast as vf
from vaefast import metrics


def test_examples() -> None:
    assert doctest.testmod(metrics).failed == 0


def constructed(count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Two informative dimensions, one collapsed, one that moves too little to count."""
    torch.manual_seed(0)
    mu = torch.randn(count, 4) * torch.tensor([0.99, 0.6, 0.0, 0.05])
    logvar = torch.tensor([0.02, 0.64, 1.0, 0.9975]).log().expand(count, 4)
    return mu, logvar


def test_active_units_and_kl() -> None:
    mu, logvar = constructed()
    assert metrics.active_units(mu).tolist() == [True, True, False, False]
    assert metrics.active_units(mu, threshold=0.8).tolist() == [True, False, False, False]
    kl = metrics.kl_per_dimension(mu, logvar)
    torch.testing.assert_close(kl, 0.5 * (mu**2 + logvar.exp() - 1 - logvar).mean(0))
    images = mu.view(-1, 2, 2)
    assert metrics.active_units(images).tolist() == [[True, True], [False, False]]
    with pytest.raises(ValueError, match="N at least 2"):
        metrics.active_units(mu[:1])


def test_mutual_information_of_a_gaussian_channel() -> None:
    # z = m + noise, m ~ N(0, 1 - s^2): I = -log s per dimension.
    torch.manual_seed(1)
    count, noise = 4000, torch.tensor([0.3, 0.6])
    mu = torch.randn(count, 2) * torch.sqrt(1 - noise**2)
    want = -float(noise.log().sum())
    std = noise.expand(count, 2)
    found = float(metrics.mutual_information(mu, std, param="std", seed=0, num_samples=4))
    assert found == pytest.approx(want, abs=0.03)
    moved = metrics.mutual_information(mu + 1000, std, param="std", seed=0, num_samples=4)
    assert float(moved) == pytest.approx(found, abs=1e-3)


def test_mutual_information_limits_and_chunks() -> None:
    mu, logvar = constructed(101)
    same = metrics.mutual_information(torch.zeros(50, 3), torch.zeros(50, 3), seed=0)
    assert abs(float(same)) < 1e-12
    apart = 1e3 * torch.arange(64.0)[:, None].expand(64, 3)
    assert float(metrics.mutual_information(apart, torch.zeros(64, 3))) == pytest.approx(
        math.log(64)
    )
    whole = metrics.mutual_information(mu, logvar, seed=1)
    torch.testing.assert_close(metrics.mutual_information(mu, logvar, seed=1, chunk=7), whole)
    # The definition, with torch.distributions.
    wide = mu.double()
    q = torch.distributions.Normal(wide, torch.exp(0.5 * logvar.double()))
    (z,) = vf.rsample(wide, logvar.double(), num_samples=1, seed=1)
    pairs = q.log_prob(z[:, None]).sum(-1)
    want = (pairs.diagonal() - pairs.logsumexp(1) + math.log(101)).mean()
    torch.testing.assert_close(whole, want)


def test_bits_per_dimension() -> None:
    assert metrics.bits_per_dimension(torch.tensor(3072 * math.log(2)), 3072) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="dims must be at least 1"):
        metrics.bits_per_dimension(1.0, 0)


def test_collapse_report(tmp_path) -> None:
    mu, logvar = constructed()
    report = metrics.collapse_report(mu, logvar, seed=0)
    assert report.active.tolist() == [True, True, False, False]
    assert str(report).startswith("2 of 4 units active")
    torch.testing.assert_close(report.std, torch.exp(0.5 * logvar[0]))
    assert 0 < report.mutual_information < float(report.kl.sum())
    pytest.importorskip("matplotlib")
    report.figure().savefig(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 5000
