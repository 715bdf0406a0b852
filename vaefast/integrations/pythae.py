"""pythae's models: what they draw and what they lose, on their own classes.

VAE, BetaVAE, DisentangledBetaVAE, BetaTCVAE, INFOVAE_MMD, WAE_MMD, IWAE, CIWAE, MIWAE, PIWAE and
VAMP, and what inherits these methods from them. Encoders, decoders, trainers, samplers and
configurations are pythae's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from .._args import count
from ..backends._options import NllOptions
from ..likelihoods import Bernoulli, Gaussian, Likelihood
from ..ops import _nll
from ..ops.gaussian_kl import gaussian_kl
from ..ops.importance_loss import importance_loss
from ..ops.mixture_log_prob import mixture_log_prob
from ..ops.mmd import mmd
from ..ops.monte_carlo_kl import monte_carlo_kl
from ..ops.nll import nll
from ..ops.rsample import rsample
from ..ops.tc_terms import tc_terms
from ._patching import Library, Patch, Replacement

__all__ = ["patch", "patched", "unpatch"]

Rng = Literal["philox", "torch"]


def patch(*, rng: Rng = "philox", compat: bool = False) -> Patch:
    """Replaces `forward` and `loss_function` of pythae's models by fused ones.

    A subclass that has a `loss_function` or `_sample_gauss` of its own keeps it: `forward` calls
    it with what pythae's gives it.

    What differs from pythae, each said once in a warning when it is met:

    - BetaTCVAE with `use_mss`: the stratified weights of the paper, 1/N for a point's own
      posterior. pythae has 1/N in the first column of the matrix instead of its diagonal.
    - IWAE, CIWAE: the loss is minus the bound, log 1/K sum_k w_k. pythae's value is
      sum_k w~_k log w_k, which is no bound on log p(x); the gradient is the same.
    - MIWAE, PIWAE: the importance weights of one estimate add up to 1 over its
      `number_samples`, and the estimates are averaged. In pythae they add up over the
      `number_gradient_estimates`, and the samples are averaged; its value as in IWAE.
    - PIWAE: the encoder has MIWAE's gradient and the decoder IWAE's, in one backward pass; in
      pythae both networks have the sum of the two.
    - CIWAE, MIWAE, PIWAE: `recon_loss` and `reg_loss` are scalars, in pythae one per sample.

    Args:
        rng: `"philox"`: posteriors are drawn as by `rsample`, other samples than pythae's of the
            same seed. `"torch"`: pythae's own noise.
        compat: keep pythae's in all of these.

    Returns:
        What was replaced.

    Raises:
        ModuleNotFoundError: pythae is not installed.
        VersionError: it is of a version that is not known.
        ValueError: rng is none of the two.

    Source: Chen et al. 2018, appendix C (weights); Burda et al. 2016, equation 8 (IWAE); Rainforth
    et al. 2018, section 4 (MIWAE, CIWAE, PIWAE).
    """
    return _library.patch(rng=_checked(rng), compat=bool(compat))


def unpatch() -> Patch | None:
    """Puts pythae's own methods back; models that are there go by them again."""
    return _library.unpatch()


def patched(*, rng: Rng = "philox", compat: bool = False) -> AbstractContextManager[Patch]:
    """`patch()` inside the block, what was before after it; also a decorator."""
    return _library.patched(rng=_checked(rng), compat=bool(compat))


def _checked(rng: str) -> str:
    if rng not in ("philox", "torch"):
        raise ValueError(f"rng must be one of 'philox', 'torch', got {rng!r}")
    return rng


def _replacements(rng: str, compat: bool) -> Iterator[Replacement]:
    from pythae import models

    how = _How(rng, compat, models.IWAE)
    one_sample: dict[type, tuple[Callable[..., Any], Callable[..., tuple[Any, ...]]]] = {
        models.VAE: (_vae_loss, _nothing_more),
        models.BetaVAE: (_beta_loss, _nothing_more),
        models.DisentangledBetaVAE: (_disentangled_loss, _epoch_of_warmup),
        models.BetaTCVAE: (_tc_loss(how), _dataset_size),
        models.VAMP: (_vamp_loss, _epoch),
    }
    for owner, (loss, more) in one_sample.items():
        yield Replacement(owner, "forward", _forward(how, more))
        yield Replacement(owner, "loss_function", loss)
    yield Replacement(models.VAMP, "_log_p_z", _vamp_log_prior)
    yield Replacement(models.INFOVAE_MMD, "forward", _info_forward(how))
    yield Replacement(models.INFOVAE_MMD, "loss_function", _info_loss)
    yield Replacement(models.WAE_MMD, "loss_function", _wae_loss)
    for owner in (models.IWAE, models.CIWAE, models.MIWAE):
        bound = {models.IWAE: _iwae, models.CIWAE: _ciwae, models.MIWAE: _miwae}[owner]
        loss = _bound_loss(how, bound)
        yield Replacement(owner, "loss_function", loss)
        yield Replacement(owner, "forward", _bound_forward(how, bound, loss))
    loss = _bound_loss(how, _piwae)
    yield Replacement(models.PIWAE, "loss_function", loss)
    yield Replacement(models.PIWAE, "forward", _piwae_forward(how, loss))


_library = Library("pythae", versions=("0.1",), replacements=_replacements)


class _How:
    """The options of the patch, and what has been said under it."""

    def __init__(self, rng: str, compat: bool, iwae: type) -> None:
        self.rng, self.compat, self.iwae = rng, compat, iwae
        self.said: set[str] = set()

    def differs(self, text: str) -> None:
        if not self.compat and text not in self.said:
            self.said.add(text)
            warnings.warn(
                f"vaefast.integrations.pythae: {text} as in pythae; patch(compat=True) keeps that",
                stacklevel=4,
            )

    def own_noise(self, model: Any) -> bool:
        """Whether posteriors are drawn by the model's `_sample_gauss`: where torch's noise is asked
        for, or a subclass has one that is not pythae's."""
        return self.rng == "torch" or not type(model)._sample_gauss.__module__.startswith("pythae.")


# How each reconstruction loss that a configuration can name is meant: pythae leaves the Gaussian's
# constant out.
_LIKELIHOODS: dict[str, Likelihood] = {
    "mse": Gaussian(1.0, const=False),
    "bce": Bernoulli(logits=False),
}


def _likelihood(model: Any) -> Likelihood:
    return _LIKELIHOODS[model.model_config.reconstruction_loss]


def _rows(recon_x: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both as `[B, *]`, x as a floating-point tensor of its own values."""
    if not x.is_floating_point():
        x = x.to(recon_x.dtype)
    return recon_x.reshape(x.shape[0], -1), x.reshape(x.shape[0], -1)


def _reconstruction(model: Any, recon_x: Tensor, x: Tensor) -> Tensor:
    return nll(*_rows(recon_x, x), _likelihood(model))


def _vae_loss(
    self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, reconstruction, KL), means over the batch."""
    recon_loss, kld = _reconstruction(self, recon_x, x), gaussian_kl(mu, log_var)
    return recon_loss + kld, recon_loss, kld


def _beta_loss(
    self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `VAE`, the KL weighed by beta."""
    recon_loss, kld = _reconstruction(self, recon_x, x), gaussian_kl(mu, log_var)
    return recon_loss + self.beta * kld, recon_loss, kld


def _disentangled_loss(
    self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor, epoch: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `VAE`, with beta |KL - C|, C rising with the epoch."""
    recon_loss = _reconstruction(self, recon_x, x)
    kld = gaussian_kl(mu, log_var, reduction="sample")
    capacity = self.C * min(epoch / (self.warmup_epoch + 1), 1)
    return recon_loss + self.beta * (kld - capacity).abs().mean(), recon_loss, kld.mean()


def _tc_loss(how: _How) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def loss_function(
        self: Any,
        recon_x: Tensor,
        x: Tensor,
        mu: Tensor,
        log_var: Tensor,
        z: Tensor,
        dataset_size: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction + alpha MI + beta TC + gamma dimension-wise KL."""
        recon_loss = _reconstruction(self, recon_x, x)
        weights = (self.alpha, self.beta, self.gamma)
        if self.use_mss and how.compat:
            terms = _tc_terms_of_columns(z, mu, log_var, dataset_size)
        else:
            if self.use_mss:
                how.differs(
                    "BetaTCVAE has 1/N for a point's own posterior, the diagonal of the weights, "
                    "not their first column"
                )
            method: Literal["mss", "mws"] = "mss" if self.use_mss else "mws"
            terms = tc_terms(z, mu, log_var, dataset_size=dataset_size, method=method)
        kld = sum(weight * term for weight, term in zip(weights, terms, strict=True)).mean()
        return recon_loss + kld, recon_loss, kld

    return loss_function


def _tc_terms_of_columns(
    z: Tensor, mu: Tensor, log_var: Tensor, dataset_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`tc_terms` under pythae's weights, which are those of a mixture: 1/N for the first posterior,
    (N - M) / (N M) for the second and 1/M for the others, M = B - 1; for the last but one of the
    points the first has the second's."""
    batch, others = z.shape[0], z.shape[0] - 1
    stratum = math.log((dataset_size - others) / (dataset_size * others))
    log_w = mu.new_full((batch,), -math.log(others))
    log_w[0], log_w[1] = -math.log(dataset_size), stratum
    exception = log_w.clone()
    exception[0] = stratum
    row = others - 1

    def density(z: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
        values = mixture_log_prob(z, mu, log_var, log_w)
        one = mixture_log_prob(z[row : row + 1], mu, log_var, exception)
        return torch.cat([values[:row], one, values[row + 1 :]])

    joint = density(z, mu, log_var)
    apart = sum(
        density(*each)
        for each in zip(z.split(1, 1), mu.split(1, 1), log_var.split(1, 1), strict=True)
    )
    posterior = nll((mu, log_var), z, Gaussian(), reduction="sample")
    prior = nll(torch.zeros_like(z), z, Gaussian(1.0), reduction="sample")
    return -posterior - joint, joint - apart, apart + prior


def _vamp_loss(
    self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor, epoch: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `VAE`, the KL to the mixture of posteriors by its sample, and beta rising with epochs."""
    recon_loss = _reconstruction(self, recon_x, x)
    constant = _log_2pi(z)
    kld = monte_carlo_kl(
        z, mu, log_var, prior=lambda z: self._log_p_z(z) - constant, reduction="batchmean"
    )
    beta = epoch / self.linear_scheduling if self.linear_scheduling > 0 else 1.0
    beta = beta if self.training else 1.0
    return recon_loss + min(beta, 1.0) * kld, recon_loss, kld


def _vamp_log_prior(self: Any, z: Tensor) -> Tensor:
    """log p(z) without its constant, D/2 log 2 pi, as `get_nll` takes it: `[B]`."""
    shape = (self.number_components, *self.model_config.input_dim)
    found = self.encoder(self.pseudo_inputs(self.idle_input.to(z.device)).reshape(shape))
    return mixture_log_prob(z, found.embedding, found.log_covariance) + _log_2pi(z)


def _log_2pi(z: Tensor) -> float:
    return 0.5 * count(z.shape[1:]) * math.log(2 * math.pi)


def _mmd(model: Any, z: Tensor, z_prior: Tensor) -> Tensor:
    """pythae's kernels: C = 2 latent_dim bandwidth^2, at each of the scales for "imq"."""
    config = model.model_config
    variance = config.latent_dim * config.kernel_bandwidth**2
    if model.kernel_choice == "rbf":
        return mmd(z, z_prior, kernel="rbf", scales=[math.sqrt(variance)])
    per_dim = variance / count(z.shape[1:])
    return mmd(z, z_prior, scales=[scale * per_dim for scale in model.scales])


def _info_loss(
    self: Any,
    recon_x: Tensor,
    x: Tensor,
    z: Tensor,
    z_prior: Tensor,
    mu: Tensor,
    log_var: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reconstruction + (1 - alpha) KL + (alpha + lambda - 1) MMD^2."""
    recon_loss, kld = _reconstruction(self, recon_x, x), gaussian_kl(mu, log_var)
    mmd_loss = _mmd(self, z, z_prior)
    loss = recon_loss + (1 - self.alpha) * kld + (self.alpha + self.lbd - 1) * mmd_loss
    return loss, recon_loss, kld, mmd_loss


def _wae_loss(
    self: Any, recon_x: Tensor, x: Tensor, z: Tensor, z_prior: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared error + reg_weight MMD^2."""
    squares = 2 * nll(*_rows(recon_x, x), _LIKELIHOODS["mse"])
    recon_loss = self.reconstruction_loss_scale * squares
    mmd_loss = _mmd(self, z, z_prior)
    return recon_loss + self.model_config.reg_weight * mmd_loss, recon_loss, mmd_loss


def _nothing_more(model: Any, x: Tensor, settings: dict[str, Any]) -> tuple[()]:
    return ()


def _epoch_of_warmup(model: Any, x: Tensor, settings: dict[str, Any]) -> tuple[float]:
    return (settings.get("epoch", model.warmup_epoch),)


def _epoch(model: Any, x: Tensor, settings: dict[str, Any]) -> tuple[float]:
    return (settings.get("epoch", 100),)


def _dataset_size(model: Any, x: Tensor, settings: dict[str, Any]) -> tuple[int]:
    return (settings.get("dataset_size", x.shape[0]),)


def _encoded(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    found = model.encoder(x)
    return found.embedding, found.log_covariance


def _drawn(how: _How, model: Any, mu: Tensor, log_var: Tensor) -> Tensor:
    if how.own_noise(model):
        z: Tensor = model._sample_gauss(mu, torch.exp(0.5 * log_var))[0]
        return z
    return rsample(mu, log_var)


def _forward(how: _How, more: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    def forward(self: Any, inputs: Any, **kwargs: Any) -> Any:
        """Encodes, draws one z, decodes; a `ModelOutput`."""
        from pythae.models.base.base_utils import ModelOutput

        x = inputs["data"]
        mu, log_var = _encoded(self, x)
        z = _drawn(how, self, mu, log_var)
        recon_x = self.decoder(z)["reconstruction"]
        loss, recon_loss, kld = self.loss_function(
            recon_x, x, mu, log_var, z, *more(self, x, kwargs)
        )
        return ModelOutput(recon_loss=recon_loss, reg_loss=kld, loss=loss, recon_x=recon_x, z=z)

    return forward


def _info_forward(how: _How) -> Callable[..., Any]:
    def forward(self: Any, inputs: Any, **kwargs: Any) -> Any:
        """Encodes, draws one z, decodes; a `ModelOutput`."""
        from pythae.models.base.base_utils import ModelOutput

        x = inputs["data"]
        mu, log_var = _encoded(self, x)
        z = _drawn(how, self, mu, log_var)
        recon_x = self.decoder(z)["reconstruction"]
        z_prior = torch.randn_like(z)
        loss, recon_loss, kld, mmd_loss = self.loss_function(recon_x, x, z, z_prior, mu, log_var)
        return ModelOutput(
            loss=loss,
            recon_loss=recon_loss,
            reg_loss=kld,
            mmd_loss=mmd_loss,
            recon_x=recon_x,
            z=z,
        )

    return forward


# Many samples. A model draws z as [S, B, D], S all its samples of one example, so that nothing is
# repeated or copied; pythae's layout, [B, K, D] or [B, M, K, D], is that of `loss_function`.


def _samples(model: Any) -> tuple[int, ...]:
    """(K,), or (M, K) where a model has estimates of their own."""
    estimates = getattr(model, "gradient_n_estimates", None)
    return (model.n_samples,) if estimates is None else (estimates, model.n_samples)


def _drawn_many(how: _How, model: Any, mu: Tensor, log_var: Tensor) -> Tensor:
    """`[S, B, D]`."""
    shape = _samples(model)
    if not how.own_noise(model):
        return rsample(mu, log_var, num_samples=math.prod(shape))
    each = [t.reshape(t.shape[0], *[1] * len(shape), -1) for t in (mu, torch.exp(0.5 * log_var))]
    z = model._sample_gauss(*(t.repeat(1, *shape, 1) for t in each))[0]
    first: Tensor = z.flatten(1, -2).transpose(0, 1)
    return first


def _by_example(values: Tensor, samples: tuple[int, ...]) -> Tensor:
    """`[S, B, *]` as `[B, *samples, *]`, a view."""
    return values.transpose(0, 1).reshape(values.shape[1], *samples, *values.shape[2:])


def _terms(
    model: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor
) -> tuple[Tensor, Tensor]:
    """-log p(x|z) and log q(z|x) - log p(z), `[S, B]`, from what lies as `[B, *samples, *]`."""
    recon_x, z, mu, log_var = (t.flatten(1, -2) for t in (recon_x, z, mu, log_var))
    batch, samples, width = recon_x.shape
    data = _rows(x, x)[1].unsqueeze(1).expand(batch, samples, width)
    form = _likelihood(model).form_for((recon_x,), data)
    # Two leading dimensions, of which the second is one that x does not have.
    options = NllOptions(form.name, form.numbers, -1, 2, 1.0, 0, "sample", 1.0, 1.0)
    recon_loss: Tensor = _nll.run(form.params, data, None, None, None, options)
    kld = monte_carlo_kl(*(t.reshape(batch * samples, -1) for t in (z, mu, log_var)))
    return recon_loss.t(), kld.view(batch, samples).t()


def _reported(how: _How, model: Any, term: Tensor) -> Tensor:
    """A term `[S, B]` as the model says it beside its loss."""
    if how.compat and not isinstance(model, how.iwae):
        return term.mean(1).view(_samples(model))
    return term.mean()


def _weighed(log_w: Tensor, dim: int) -> Tensor:
    """sum_k w~_k log w_k, whose gradient is that of log sum_k w_k."""
    return (torch.softmax(log_w, dim).detach() * log_w).sum(dim)


def _iwae(how: _How, model: Any, log_w: Tensor) -> tuple[Tensor]:
    how.differs("IWAE's loss is minus the bound, not minus the sum of weights times log weights")
    if how.compat:
        return (-_weighed(log_w, 0).mean(),)
    return (importance_loss(log_w),)


def _ciwae(how: _How, model: Any, log_w: Tensor) -> tuple[Tensor]:
    how.differs("CIWAE's loss is minus the bound, not minus the sum of weights times log weights")
    if how.compat:
        return (-(model.beta * log_w.mean() + (1 - model.beta) * _weighed(log_w, 0).mean()),)
    return (importance_loss(log_w, bound="ciwae", beta=model.beta),)


def _miwae(how: _How, model: Any, log_w: Tensor) -> tuple[Tensor]:
    how.differs(
        "MIWAE's loss is minus the bound, and its weights add up to 1 over number_samples, not "
        "over number_gradient_estimates"
    )
    if how.compat:
        return (-_weighed(log_w.unflatten(0, _samples(model)), 0).mean(),)
    return (importance_loss(log_w, bound="miwae", groups=model.gradient_n_estimates),)


def _piwae(how: _How, model: Any, log_w: Tensor) -> tuple[Tensor, Tensor]:
    _piwae_differs(how)
    if how.compat:
        groups = log_w.unflatten(0, _samples(model))
        return -_weighed(groups, 0).mean(), -_weighed(log_w, 0).mean()
    found = importance_loss(log_w, bound="piwae", groups=model.gradient_n_estimates)
    return found.encoder, found.decoder


def _piwae_differs(how: _How) -> None:
    how.differs(
        "PIWAE's losses are minus the bounds, each network has the gradient of its own, not both "
        "of the sum, and MIWAE's weights add up to 1 over number_samples, not over "
        "number_gradient_estimates"
    )


def _bound_loss(how: _How, bound: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    def loss_function(
        self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor
    ) -> tuple[Tensor, ...]:
        """(loss, reconstruction, KL), of what lies as `[B, *samples, *]`."""
        recon_loss, kld = _terms(self, recon_x, x, mu, log_var, z)
        losses = bound(how, self, -(recon_loss + kld))
        return (*losses, _reported(how, self, recon_loss), _reported(how, self, kld))

    return loss_function


def _decoded(model: Any, z: Tensor) -> Tensor:
    """`[S, B, *]`."""
    recon_x: Tensor = model.decoder(z.reshape(-1, model.latent_dim))["reconstruction"]
    return recon_x.reshape(*z.shape[:2], -1)


def _inherited(
    model: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor
) -> tuple[Tensor, ...]:
    """A subclass's own `loss_function`, given what pythae gives it."""
    samples = _samples(model)
    each = [
        t.reshape(t.shape[0], *[1] * len(samples), -1).expand(-1, *samples, -1)
        for t in (mu, log_var)
    ]
    found: tuple[Tensor, ...] = model.loss_function(
        _by_example(recon_x, samples), x, *each, _by_example(z, samples)
    )
    return found


def _bound_forward(
    how: _How, bound: Callable[..., tuple[Tensor, ...]], ours: Callable[..., Any]
) -> Callable[..., Any]:
    def forward(self: Any, inputs: Any, **kwargs: Any) -> Any:
        """Encodes, draws all samples, decodes them; a `ModelOutput` with the first of each."""
        from pythae.models.base.base_utils import ModelOutput

        x = inputs["data"]
        mu, log_var = _encoded(self, x)
        z = _drawn_many(how, self, mu, log_var)
        recon_x = _decoded(self, z)
        if type(self).loss_function is ours:
            recon_loss, kld = _many(self, recon_x, x), monte_carlo_kl(z, mu, log_var)
            (loss,) = bound(how, self, -(recon_loss + kld))
            recon_loss, kld = _reported(how, self, recon_loss), _reported(how, self, kld)
        else:
            loss, recon_loss, kld = _inherited(self, recon_x, x, mu, log_var, z)
        return ModelOutput(
            recon_loss=recon_loss,
            reg_loss=kld,
            loss=loss,
            recon_x=recon_x[0].reshape_as(x),
            z=z[0],
        )

    return forward


def _many(model: Any, recon_x: Tensor, x: Tensor) -> Tensor:
    """-log p(x|z), `[S, B]`."""
    return nll(recon_x, _rows(x, x)[1], _likelihood(model), reduction="sample")


def _piwae_forward(how: _How, ours: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, inputs: Any, **kwargs: Any) -> Any:
        """As the others; `loss` is the sum of `encoder_loss` and `decoder_loss`."""
        from pythae.models.base.base_utils import ModelOutput

        x = inputs["data"]
        mu, log_var = _encoded(self, x)
        z = _drawn_many(how, self, mu, log_var)
        apart = not how.compat and z.requires_grad and torch.is_grad_enabled()
        if type(self).loss_function is not ours:
            recon_x = _decoded(self, z)
            encoder, decoder, recon_loss, kld = _inherited(self, recon_x, x, mu, log_var, z)
        else:
            given = z.detach().requires_grad_() if apart else z
            recon_x = _decoded(self, given)
            recon_loss, kld = _many(self, recon_x, x), monte_carlo_kl(z, mu, log_var)
            if apart:
                encoder, decoder = _apart(how, self, given, z, recon_loss, kld)
            else:
                encoder, decoder = _piwae(how, self, -(recon_loss + kld))
            recon_loss, kld = _reported(how, self, recon_loss), _reported(how, self, kld)
        return ModelOutput(
            recon_loss=recon_loss,
            reg_loss=kld,
            loss=encoder + decoder,
            encoder_loss=encoder,
            decoder_loss=decoder,
            update_encoder=True,
            update_decoder=True,
            recon_x=recon_x[0].reshape_as(x),
            z=z[0],
        )

    return forward


def _apart(
    how: _How, model: Any, given: Tensor, z: Tensor, recon_loss: Tensor, kld: Tensor
) -> tuple[Tensor, Tensor]:
    """The two losses, of which the encoder's has no gradient in the decoder's parameters and the
    decoder's none in the encoder's, so that their sum may be backpropagated.

    The decoder was given a leaf, `given`, in the place of z. What MIWAE sends back to z is passed
    through the decoder here, and z's gradient from there on is put on z itself.
    """
    _piwae_differs(how)
    leaf = recon_loss.detach().requires_grad_()
    groups = model.gradient_n_estimates
    encoder = importance_loss(-(leaf + kld), bound="miwae", groups=groups)
    (upstream,) = torch.autograd.grad(encoder, leaf, retain_graph=True)
    (slope,) = torch.autograd.grad(recon_loss, given, upstream, retain_graph=True)
    through = (slope * z).sum()
    decoder = importance_loss(-(recon_loss + kld.detach()))
    return encoder + (through - through.detach()), decoder
