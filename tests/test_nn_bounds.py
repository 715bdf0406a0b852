"""`vf.nn.ImportanceLoss` against the functions it stands for."""

from __future__ import annotations

import pytest
import torch

import vaefast as vf


@pytest.mark.parametrize("bound", ["iwae", "stl", "dreg", "ciwae", "miwae", "piwae", "renyi"])
def test_is_the_functions(bound: str) -> None:
    mu, logvar = torch.randn(2, 5, 3).unbind()
    mu.requires_grad_(), logvar.requires_grad_()
    std = torch.nn.Parameter(torch.tensor(0.5))
    decoder = torch.randn(3, 7, requires_grad=True)
    x = torch.randn(5, 7)
    module = vf.nn.ImportanceLoss(vf.Gaussian(std=std), bound, groups=2, clamp=(-1.0, 1.0))
    assert [name for name, _ in module.named_parameters()] == ["likelihood.std"]

    def gradients(by_module: bool) -> list[torch.Tensor]:
        z = vf.rsample(mu, logvar, num_samples=4, clamp=(-1.0, 1.0), seed=1)
        if by_module:
            loss = module(z @ decoder, x, z, mu, logvar)
        else:
            log_w = vf.log_weights(
                z @ decoder,
                x,
                z,
                mu,
                logvar,
                likelihood=vf.Gaussian(std=std),
                clamp=(-1.0, 1.0),
                stop_posterior=bound in ("stl", "dreg"),
            )
            loss = vf.importance_loss(log_w, bound=bound, groups=2, z=z)
        total = loss.encoder + loss.decoder if bound == "piwae" else loss
        return [total.detach(), *torch.autograd.grad(total, (mu, logvar, decoder, std))]

    torch.testing.assert_close(gradients(True), gradients(False))


def test_settings_are_checked_and_shown() -> None:
    assert "bound='dreg'" in repr(vf.nn.ImportanceLoss("bernoulli", "dreg"))
    with pytest.raises(ValueError, match="bound must be one of"):
        vf.nn.ImportanceLoss("bernoulli", "vae")
    z, x = torch.zeros(2, 3, 1), torch.full((3, 4), 2.0)
    with pytest.raises(ValueError, match="outside the support"):
        vf.nn.ImportanceLoss("bernoulli")(torch.zeros(2, 3, 4), x, z, z[0], z[0])
