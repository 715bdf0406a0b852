"""The modules over pairs of samples against the functions that they wrap."""

from __future__ import annotations

import pytest
import torch

import vaefast as vf
from vaefast.nn import MMDLoss, TCLoss


def test_tc_loss() -> None:
    z, mu, logvar = torch.randn(3, 12, 4)
    mu.requires_grad_()
    terms = vf.tc_terms(z, mu, logvar, dataset_size=100, method="mws", clamp=(-1.0, 1.0))
    module = TCLoss(100, alpha=0.5, beta=6.0, gamma=2.0, method="mws", clamp=(-1.0, 1.0))
    penalty = module(z, mu, logvar)
    want = 0.5 * terms.mi.mean() + 6 * terms.tc.mean() + 2 * terms.dim_kl.mean()
    torch.testing.assert_close(penalty.loss, want)
    torch.testing.assert_close(
        torch.autograd.grad(penalty.loss, mu)[0], torch.autograd.grad(want, mu)[0]
    )
    for got, term in zip(penalty[1:], terms, strict=True):
        assert not got.requires_grad
        torch.testing.assert_close(got, term.mean())
    module.beta = 0.0
    assert module(z, mu, logvar).loss != penalty.loss


def test_mmd_loss() -> None:
    z, prior = torch.randn(12, 2, 4), torch.randn(30, 2, 4)
    module = MMDLoss(kernel="rbf", scales=[1.0, 3.0], unbiased=False)
    want = vf.mmd(z, prior, kernel="rbf", scales=[1.0, 3.0], unbiased=False)
    torch.testing.assert_close(module(z, prior), want)
    drawn = torch.randn(12, 2, 4, generator=torch.Generator().manual_seed(5))
    got = MMDLoss()(z, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(got, vf.mmd(z, drawn))


@pytest.mark.parametrize("module", [TCLoss(10), MMDLoss()])
def test_settings_are_shown(module: torch.nn.Module) -> None:
    assert type(module).__name__ in repr(module)
    assert "=" in repr(module)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="dataset_size"):
        TCLoss(0)
    with pytest.raises(ValueError, match="method"):
        TCLoss(10, method="exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kernel"):
        MMDLoss(kernel="linear")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scales"):
        MMDLoss(scales=[-1.0])
