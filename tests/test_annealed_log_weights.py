"""Annealed importance sampling on the linear model, whose log p(x) is known."""

from __future__ import annotations

import pytest
import torch
from test_importance_loss import Linear, linear
from torch import Tensor

import vaefast as vf


def posterior(model: Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    mu = (x @ model.encoder.T).detach()
    return mu, model.logvar.detach().expand(mu.shape)


def weights(model: Linear, k: int, x: Tensor | None = None, **settings):
    x = model.x if x is None else x
    mu, logvar = posterior(model, x)

    def weigh(z: Tensor) -> Tensor:
        likelihood = vf.Gaussian(std=model.std)
        return vf.log_weights(z @ model.decoder.T, x, z, mu, logvar, likelihood=likelihood)

    return vf.annealed_log_weights(weigh, mu, logvar, k, **settings)


def test_right_where_importance_sampling_fails() -> None:
    model = linear(gap=1.0, batch=40)
    exact = model.log_px().detach()
    found = {
        "annealed": lambda x, k: weights(model, k, x, steps=60, leapfrog=5, step_size=0.15),
        "plain": lambda x, k: model.sample(k, x)[0],
    }
    annealed, plain = (
        vf.log_marginal(f, model.x, 200, chunk=100, return_error=True) for f in found.values()
    )
    deviations = (annealed.estimate - exact) / annealed.standard_error
    assert float(deviations.abs().max()) < 4.5
    assert float((annealed.estimate - exact).abs().mean()) < 0.1
    assert float((plain.estimate - exact).abs().mean()) > 0.5
    assert float(annealed.effective_samples.mean()) > 2 * float(plain.effective_samples.mean())


@pytest.mark.parametrize("schedule", ["sigmoid", "linear", torch.tensor([0, 0.1, 0.5, 0.6, 1.0])])
def test_the_mean_of_the_weights_is_px(schedule: str | Tensor) -> None:
    # Few and rough steps: the mean holds however far the chains are from the posterior.
    model = linear(gap=0.5, batch=3)
    found = weights(
        model, 40_000, steps=4, leapfrog=2, step_size=0.6, schedule=schedule, seed=0,
        return_acceptance=True,
    )  # fmt: skip
    ratio = torch.exp(found.log_weights - model.log_px().detach())
    error = ratio.std(0) / len(ratio) ** 0.5
    assert float(((ratio.mean(0) - 1) / error).abs().max()) < 4.5
    assert bool(((found.acceptance > 0.3) & (found.acceptance < 0.99)).all())


def test_one_step_is_importance_sampling() -> None:
    model = linear(gap=0.3)
    found = weights(model, 7, steps=1, seed=3, return_acceptance=True)
    mu, logvar = posterior(model, model.x)
    z = mu + torch.exp(0.5 * logvar) * vf.random.normal(
        (len(mu), 7, 2), torch.tensor([3, 0]), dtype=torch.float64
    ).transpose(0, 1)
    likelihood = vf.Gaussian(std=model.std)
    plain = vf.log_weights(z @ model.decoder.T, model.x, z, mu, logvar, likelihood=likelihood)
    torch.testing.assert_close(found.log_weights, plain.detach())
    assert found.acceptance.tolist() == [1.0] * len(mu)


def test_seeds_and_streams() -> None:
    model = linear(gap=0.3, batch=4)
    draw = lambda **how: weights(model, 5, steps=4, **how)  # noqa: E731
    assert torch.equal(draw(seed=1), draw(seed=1))
    assert not torch.equal(draw(), draw())
    # A stream per sample: what one sample's chains do does not depend on the others.
    each = draw(seed=[3, 4, 5, 6])
    alone = weights(model, 5, model.x[2:3], steps=4, seed=[5])
    torch.testing.assert_close(each[:, 2:3], alone)
    # The moves' noise is not the start's, nor one another's.
    assert not torch.equal(each[0], each[1])


def test_no_gradient_and_no_trace_in_the_model() -> None:
    model = linear(gap=0.3)
    assert not weights(model, 3, steps=3).requires_grad
    assert model.decoder.grad is None


def test_half_precision_and_latent_images() -> None:
    mu = torch.zeros(3, 2, 4, 4, dtype=torch.bfloat16)

    def weigh(z: Tensor) -> Tensor:
        assert z.dtype == torch.bfloat16
        return -0.5 * (z.float() - 1).square().flatten(2).sum(-1)

    found = vf.annealed_log_weights(weigh, mu, mu, 6, steps=5, leapfrog=2, seed=0)
    assert found.dtype == torch.float32
    assert found.shape == (6, 3)
    assert bool(found.isfinite().all())


def test_empty_batch_and_scalar_latents() -> None:
    for shape in ((0, 2), (3,), (3, 0)):
        mu = torch.zeros(shape)
        weigh = lambda z: z.unsqueeze(-1).flatten(2).sum(-1)  # noqa: E731
        found = vf.annealed_log_weights(weigh, mu, mu, 4, steps=3, seed=0)
        assert found.shape == (4, shape[0])


def test_paths_to_nowhere_are_refused() -> None:
    mu = torch.zeros(4, 2)
    weigh = lambda z: torch.sqrt(1 - z.square()).sum(-1)  # noqa: E731

    def edged(z: Tensor) -> Tensor:
        inside = (z.abs() < 1).all(-1)
        return torch.where(inside, weigh(z.clamp(-0.999, 0.999)), torch.nan * z.sum(-1))

    found = vf.annealed_log_weights(
        edged, mu, mu - 6, 50, steps=5, step_size=30.0, seed=0, return_acceptance=True
    )
    assert bool(found.log_weights.isfinite().all())
    assert float(found.acceptance.max()) < 0.5


def test_refusals() -> None:
    mu = torch.zeros(4, 2)
    weigh = lambda z: z.sum(-1)  # noqa: E731
    for name in ("steps", "leapfrog", "num_samples"):
        settings = {"num_samples": 3, name: 0}
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            vf.annealed_log_weights(weigh, mu, mu, **settings)
    with pytest.raises(ValueError, match="step_size must be positive"):
        vf.annealed_log_weights(weigh, mu, mu, 3, step_size=float("nan"))
    with pytest.raises(ValueError, match="schedule must be one of 'sigmoid', 'linear'"):
        vf.annealed_log_weights(weigh, mu, mu, 3, schedule="cosine")
    for wrong in ([0.0, 1.0], [0.0, 0.7, 0.5, 1.0], [0.1, 0.5, 0.7, 1.0], [0.0, 0.5, 0.7, 0.9]):
        with pytest.raises(ValueError, match="must rise from 0 to 1 in 4 numbers"):
            vf.annealed_log_weights(weigh, mu, mu, 3, steps=3, schedule=torch.tensor(wrong))
    with pytest.raises(ValueError, match=r"weigh must give log weights \[3, 4\], got \[4\]"):
        vf.annealed_log_weights(lambda z: z.sum((0, 2)), mu, mu, 3)
    with pytest.raises(ValueError, match="must have the same shape"):
        vf.annealed_log_weights(weigh, mu, mu[:2], 3)
