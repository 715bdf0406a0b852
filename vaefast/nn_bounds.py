"""Bounds of many samples as a `torch.nn` module; `vaefast.nn` has its name."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ._args import Clamp, Param, number, one_of
from ._modules import LikelihoodModule, settings
from .likelihoods import Likelihood, Params
from .ops.importance_loss import BOUNDS, PIWAE, Bound, BoundReduction, importance_loss
from .ops.log_weights import log_weights
from .ops.rsample import transform_of


class ImportanceLoss(nn.Module):
    """A multi-sample bound as a loss: `vf.log_weights`, then `vf.importance_loss`.

    For `"stl"` and `"dreg"` the posterior's own parameters are stopped, and for `"dreg"` z's
    gradient is weighed, so that one `backward()` is right for encoder and decoder.

    Args:
        likelihood, validate: as in `NLL`.
        bound, beta, groups, alpha, reduction: as in `importance_loss`. `beta` and `alpha` are
            plain attributes: a schedule assigns to them.
        param, min_std, clamp: as in `log_weights`.

    Shape:
        params `[K, B, *data]`, target `[B, *data]`, z `[K, B, *latent]`, mu and scale
        `[B, *latent]`.

    Raises:
        TypeError, ValueError: a setting is unknown.

    Example:
        >>> import vaefast as vf
        >>> loss = ImportanceLoss("bernoulli", bound="dreg")
        >>> mu, logvar = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> z = vf.rsample(mu, logvar, num_samples=5)
        >>> round(float(loss(torch.zeros(5, 8, 10), torch.ones(8, 10), z, mu, logvar)), 4)
        6.9315

    Source: Burda et al. 2016; see `importance_loss` for the others.
    """

    def __init__(
        self,
        likelihood: Likelihood | str,
        bound: Bound | Literal["piwae"] = "iwae",
        *,
        beta: float = 0.5,
        groups: int | None = None,
        alpha: float = 0.5,
        reduction: BoundReduction = "batchmean",
        param: Param = "logvar",
        min_std: float = 0.0,
        clamp: Clamp = None,
        validate: bool = True,
    ) -> None:
        super().__init__()
        min_std = transform_of(param, min_std, clamp).min_std
        one_of("bound", bound, BOUNDS)
        one_of("reduction", reduction, ("batchmean", "sample", "sum"))
        self.likelihood = LikelihoodModule(likelihood)
        self.bound = bound
        self.beta, self.alpha = number("beta", beta), number("alpha", alpha)
        self.groups = groups
        self.reduction: BoundReduction = reduction
        self.param: Param = param
        self.min_std, self.clamp = min_std, clamp
        self.validate = validate

    def forward(
        self,
        params: Params,
        target: Tensor,
        z: Tensor,
        mu: Tensor,
        scale: Tensor,
        *,
        prior_mu: Tensor | None = None,
        prior_scale: Tensor | None = None,
        log_prior: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor | PIWAE:
        """The loss, or for `"piwae"` the pair; arguments as in `log_weights`."""
        log_w = log_weights(
            params,
            target,
            z,
            mu,
            scale,
            likelihood=self.likelihood(),
            prior_mu=prior_mu,
            prior_scale=prior_scale,
            log_prior=log_prior,
            stop_posterior=self.bound in ("stl", "dreg"),
            param=self.param,
            min_std=self.min_std,
            clamp=self.clamp,
            mask=mask,
            weight=weight,
            validate=self.validate and not torch.compiler.is_compiling(),
        )
        return importance_loss(
            log_w,
            bound=self.bound,
            z=z if self.bound == "dreg" else None,
            beta=self.beta,
            groups=self.groups,
            alpha=self.alpha,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return settings(
            self,
            bound="iwae",
            beta=0.5,
            groups=None,
            alpha=0.5,
            reduction="batchmean",
            param="logvar",
            min_std=0.0,
            clamp=None,
            validate=True,
        )
