"""Multi-sample bounds: values, axes, gradients, and their papers' claims on a linear model."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import vaefast as vf

F64 = torch.float64


class Linear(NamedTuple):
    """z ~ N(0, I), x | z ~ N(W z, s^2 I): log p(x) and the posterior are known."""

    decoder: Tensor  # W, [X, D]
    encoder: Tensor  # [D, X]: the posterior's mean is encoder @ x.
    logvar: Tensor  # [D]
    x: Tensor  # [B, X]
    std: float = 0.7

    def log_px(self) -> Tensor:
        width = self.decoder.shape[0]
        covariance = self.decoder @ self.decoder.T + self.std**2 * torch.eye(width, dtype=F64)
        normal = torch.distributions.MultivariateNormal(torch.zeros(width, dtype=F64), covariance)
        return normal.log_prob(self.x)

    def sample(self, k: int, x: Tensor | None = None, **settings) -> tuple[Tensor, Tensor]:
        x = self.x if x is None else x
        mu = x @ self.encoder.T
        logvar = self.logvar.expand(mu.shape)
        z = vf.rsample(mu, logvar, num_samples=k)
        log_w = vf.log_weights(
            z @ self.decoder.T, x, z, mu, logvar, likelihood=vf.Gaussian(std=self.std), **settings
        )
        return log_w, z


def linear(gap: float, batch: int = 6) -> Linear:
    """A model with its exact posterior, but for `gap` in the encoder's weights and log variance.

    The columns of W are orthogonal, so the posterior is diagonal.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(5, 2, generator=generator, dtype=F64))[0]
    decoder = basis * torch.tensor([1.5, 0.8], dtype=F64)
    std = Linear._field_defaults["std"]
    precision = 1 + decoder.square().sum(0) / std**2
    encoder = decoder.T / (std**2 * precision[:, None])
    noise = torch.randn(encoder.shape, generator=generator, dtype=F64)
    x = torch.randn(batch, 5, generator=generator, dtype=F64)
    return Linear(
        decoder.requires_grad_(),
        (encoder + gap * noise).requires_grad_(),
        (gap - precision.log()).requires_grad_(),
        x,
    )


def test_bounds_rise_to_log_px_with_k() -> None:
    model = linear(gap=0.3)
    with torch.no_grad():
        exact = model.log_px().mean()
        log_w = torch.cat([model.sample(4096)[0] for _ in range(8)])
        # Independent groups of K samples each, so that every value is an average of many bounds.
        values = [
            -vf.importance_loss(log_w, bound="miwae", groups=len(log_w) // k)
            for k in (1, 2, 8, 64, 512)
        ]
    assert all(a < b for a, b in itertools.pairwise(values))
    # What is left is the noise of 32768 samples of each x.
    assert abs(values[-1] - exact) < 0.01
    assert exact - values[0] > 0.1


def test_exact_posterior_has_every_bound_tight() -> None:
    model = linear(gap=0.0)
    with torch.no_grad():
        log_w, _ = model.sample(7)
        torch.testing.assert_close(log_w, model.log_px().expand(7, -1))
        for bound in ("iwae", "dreg", "stl", "ciwae", "renyi"):
            loss = vf.importance_loss(log_w, bound=bound, reduction="sample")
            torch.testing.assert_close(-loss, model.log_px())


def test_values_and_reductions() -> None:
    log_w = torch.randn(6, 4, dtype=F64)
    w = log_w.exp()
    iwae, elbo = w.mean(0).log(), log_w.mean(0)

    def bound(name: str, **settings) -> Tensor:
        return -vf.importance_loss(log_w, bound=name, reduction="sample", **settings)

    for name in ("iwae", "stl", "dreg"):
        torch.testing.assert_close(bound(name), iwae)
    torch.testing.assert_close(bound("ciwae", beta=0.3), 0.3 * elbo + 0.7 * iwae)
    torch.testing.assert_close(bound("renyi", alpha=0.5), 2 * w.sqrt().mean(0).log())
    torch.testing.assert_close(bound("renyi", alpha=0.0), iwae)
    torch.testing.assert_close(bound("renyi", alpha=1.0), elbo)
    torch.testing.assert_close(bound("renyi", alpha=-1.0), 0.5 * w.square().mean(0).log())
    torch.testing.assert_close(vf.importance_loss(log_w), -iwae.mean())
    torch.testing.assert_close(vf.importance_loss(log_w, reduction="sum"), -iwae.sum())


def test_miwae_averages_over_groups_and_normalises_over_samples() -> None:
    # M = 2 groups of K = 3 samples. Normalising over M instead, as some ports do, gives the value
    # of 3 groups of 2: another number.
    log_w = torch.randn(2, 3, 5, dtype=F64)
    right = (log_w.logsumexp(1) - math.log(3)).mean(0)
    wrong = (log_w.logsumexp(0) - math.log(2)).mean(0)
    flat = log_w.reshape(6, 5)
    got = -vf.importance_loss(flat, bound="miwae", groups=2, reduction="sample")
    torch.testing.assert_close(got, right)
    assert (got - wrong).abs().min() > 1e-3
    one = vf.importance_loss(flat, bound="miwae", groups=1)
    torch.testing.assert_close(one, vf.importance_loss(flat))
    each = vf.importance_loss(flat, bound="miwae", groups=6, reduction="sample")
    torch.testing.assert_close(each, -flat.mean(0))


def test_piwae_is_miwae_for_the_encoder_and_iwae_for_the_decoder() -> None:
    model = linear(gap=0.3)
    log_w, _ = model.sample(12)
    pair = vf.importance_loss(log_w, bound="piwae", groups=3)
    encoder, decoder = [model.encoder, model.logvar], [model.decoder]
    pair.encoder.backward(inputs=encoder, retain_graph=True)
    pair.decoder.backward(inputs=decoder, retain_graph=True)
    miwae = vf.importance_loss(log_w, bound="miwae", groups=3)
    want = torch.autograd.grad(miwae, encoder, retain_graph=True)
    torch.testing.assert_close([p.grad for p in encoder], list(want))
    want = torch.autograd.grad(vf.importance_loss(log_w), decoder)
    torch.testing.assert_close([p.grad for p in decoder], list(want))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bound": "ciwae", "beta": 0.2},
        {"bound": "miwae", "groups": 3},
        {"bound": "renyi", "alpha": 0.4},
        {"bound": "renyi", "alpha": -2.0},
    ],
)
def test_gradcheck(settings: dict) -> None:
    log_w = torch.randn(6, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: vf.importance_loss(t, **settings), log_w)


def test_dreg_squares_the_weights_of_the_encoder_alone() -> None:
    model = linear(gap=0.3)
    torch.manual_seed(1)
    log_w, z = model.sample(5, stop_posterior=True)
    parameters = (model.encoder, model.logvar)
    weights = torch.softmax(log_w.detach(), 0)
    want = torch.autograd.grad(-(weights**2 * log_w).sum(0).mean(), parameters, retain_graph=True)
    alone = vf.importance_loss(log_w, bound="dreg")
    got = torch.autograd.grad(alone, parameters, retain_graph=True)
    torch.testing.assert_close(got, want)
    decoder = torch.autograd.grad(vf.importance_loss(log_w), model.decoder, retain_graph=True)
    both = vf.importance_loss(log_w, bound="dreg", z=z)
    got = torch.autograd.grad(both, (*parameters, model.decoder))
    torch.testing.assert_close(got, (*want, *decoder))


def gradients(model: Linear, k: int, bound: str, repeats: int = 4000) -> Tensor:
    """Gradients of the encoder's weights and log variance for one x, one row per repeat.

    The repeats are rows of one batch with an encoder of their own each.
    """
    x = model.x[:1]
    encoder = model.encoder.detach().expand(repeats, -1, -1).clone().requires_grad_()
    logvar = model.logvar.detach().expand(repeats, -1).clone().requires_grad_()
    mu = (encoder @ x[0]).view(repeats, -1)
    z = vf.rsample(mu, logvar, num_samples=k)
    log_w = vf.log_weights(
        z @ model.decoder.detach().T,
        x.expand(repeats, -1).contiguous(),
        z,
        mu,
        logvar,
        likelihood=vf.Gaussian(std=model.std),
        stop_posterior=bound != "iwae",
    )
    loss = vf.importance_loss(log_w, bound=bound, reduction="sum")
    found = torch.autograd.grad(loss, (encoder, logvar))
    return torch.cat([g.flatten(1) for g in found], 1)


def deviation(a: Tensor, b: Tensor) -> float:
    """The largest difference of two means, in standard errors."""
    error = torch.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
    return float(((a.mean(0) - b.mean(0)).abs() / error).max())


def test_dreg_is_unbiased_with_less_variance() -> None:
    model = linear(gap=0.3)
    for k in (1, 8, 64):
        plain, dreg = gradients(model, k, "iwae", 20000), gradients(model, k, "dreg", 20000)
        assert deviation(plain, dreg) < 4.5
        assert float(dreg.var(0).sum()) < 0.7 * float(plain.var(0).sum())


def test_dregs_signal_grows_with_k_where_iwaes_drowns() -> None:
    # Rainforth et al. 2018: the signal-to-noise ratio of IWAE's encoder gradient falls as
    # 1 / sqrt(K); Tucker et al. 2018: DReG's rises.
    model = linear(gap=0.3)

    def ratio(bound: str, k: int) -> float:
        found = gradients(model, k, bound, 8000)
        return float((found.mean(0).abs() / found.std(0)).mean())

    assert ratio("dreg", 64) > 1.5 * ratio("dreg", 4)
    assert ratio("iwae", 64) < ratio("iwae", 4)


def test_stl_at_the_exact_posterior_has_no_noise() -> None:
    # Roeder et al. 2017: with q = p(z|x) every term of the gradient is zero, not just its mean.
    model = linear(gap=0.0)
    assert float(gradients(model, 1, "stl").abs().max()) < 1e-12
    assert float(gradients(model, 1, "iwae").var(0).min()) > 1e-4


def test_stl_is_unbiased_for_one_sample_and_biased_for_more() -> None:
    model = linear(gap=0.3)
    assert deviation(gradients(model, 1, "iwae"), gradients(model, 1, "stl")) < 4.5
    # Tucker et al. 2018, section 3: for K > 1 the score that it drops has weight.
    biased = deviation(gradients(model, 8, "dreg", 20000), gradients(model, 8, "stl", 20000))
    assert biased > 8


def test_samples_without_weight() -> None:
    log_w = torch.tensor([[0.0, -torch.inf], [-torch.inf, 1.0]], dtype=F64, requires_grad=True)
    for bound in ("iwae", "dreg"):
        loss = vf.importance_loss(log_w, bound=bound, reduction="sample")
        torch.testing.assert_close(loss, torch.tensor([math.log(2), math.log(2) - 1], dtype=F64))
        (grad,) = torch.autograd.grad(loss.sum(), log_w)
        torch.testing.assert_close(grad, -torch.eye(2, dtype=F64))


def test_refusals() -> None:
    log_w = torch.zeros(6, 2)
    with pytest.raises(ValueError, match="bound must be one of 'iwae'"):
        vf.importance_loss(log_w, bound="vae")
    with pytest.raises(ValueError, match="groups must divide the 6 samples"):
        vf.importance_loss(log_w, bound="miwae", groups=4)
    with pytest.raises(ValueError, match="groups must divide the 6 samples"):
        vf.importance_loss(log_w, bound="piwae")
    with pytest.raises(ValueError, match="beta must be in"):
        vf.importance_loss(log_w, bound="ciwae", beta=1.5)
    with pytest.raises(ValueError, match=r"log_w must be \[K, B\]"):
        vf.importance_loss(log_w[0])


def test_log_marginal_is_within_its_standard_error() -> None:
    model = linear(gap=0.3, batch=40)
    weigh = lambda x, k: model.sample(k, x)[0]  # noqa: E731
    found = vf.log_marginal(weigh, model.x, 2000, chunk=300, return_error=True)
    exact = model.log_px().detach()
    deviations = (found.estimate - exact) / found.standard_error
    assert float(deviations.abs().max()) < 4.5
    # Too wide an error would be no less wrong: their spread is about 1.
    assert 0.7 < float(deviations.square().mean().sqrt()) < 1.4
    assert float(found.effective_samples.max()) <= 2000
    assert not found.estimate.requires_grad


def test_log_marginal_is_the_same_in_chunks_and_batches() -> None:
    log_w = 30 * torch.randn(50, 7, dtype=F64)
    log_w[:20, 3] = -torch.inf
    state = {"at": 0}

    def stored(x: Tensor, k: int) -> Tensor:
        first = int(x[0, 0])
        rows = log_w[state["at"] : state["at"] + k, first : first + len(x)]
        state["at"] = (state["at"] + k) % 50
        return rows

    x = torch.arange(7.0)[:, None]
    whole = vf.log_marginal(stored, x, 50, chunk=50, return_error=True)
    torch.testing.assert_close(whole.estimate, log_w.logsumexp(0) - math.log(50))
    w = (log_w - log_w.amax(0)).exp()
    torch.testing.assert_close(whole.standard_error, w.std(0) / w.mean(0) / math.sqrt(50))
    for chunk, batch_size in ((7, None), (1, 2), (20, 3)):
        parts = vf.log_marginal(
            stored, x, 50, chunk=chunk, batch_size=batch_size, return_error=True
        )
        torch.testing.assert_close(parts, whole)
    assert torch.equal(vf.log_marginal(stored, x, 50, chunk=50), whole.estimate)


def test_log_marginal_of_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    class Model(torch.nn.Module):
        def log_weights(self, x: Tensor, k: int) -> Tensor:
            assert not self.training
            return torch.zeros(k, len(x))

    model = Model()
    assert vf.log_marginal(model, torch.zeros(3, 1), 10).tolist() == [0.0] * 3
    assert model.training
    pytest.importorskip("rich")
    vf.log_marginal(model, torch.zeros(3, 1), 10, progress=True)
    assert "log p(x)" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"must give log weights \[10, 3\]"):
        vf.log_marginal(lambda x, k: torch.zeros(len(x), k), torch.zeros(3, 1), 10)
    with pytest.raises(TypeError, match="model_or_fn must be a function"):
        vf.log_marginal(torch.zeros(3), torch.zeros(3, 1), 10)  # type: ignore[call-overload]
