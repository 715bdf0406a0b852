"""The operators as `torch.nn` modules: settings at construction, tensors in `forward`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import random
from ._args import (
    REDUCTIONS,
    Clamp,
    Param,
    Reduction,
    integer,
    mask_and_weight,
    number,
    number_or_tensor,
    one_of,
)
from ._modules import LikelihoodModule, settings
from .likelihoods import Likelihood, Params
from .nn_bounds import ImportanceLoss
from .nn_linear import LinearNLL
from .nn_pairwise import MMDLoss, TCLoss
from .ops._validate import check_scale
from .ops.elbo_loss import ELBO, elbo_loss
from .ops.gaussian_kl import FreeBitsPer, gaussian_kl
from .ops.nll import nll
from .ops.rsample import rsample, transform_of

__all__ = [
    "NLL",
    "ELBOLoss",
    "GaussianKL",
    "ImportanceLoss",
    "LinearNLL",
    "MMDLoss",
    "Reparameterize",
    "TCLoss",
]


class Reparameterize(nn.Module):
    """z = mu + temperature * sigma * eps in training, z = mu in evaluation: `vf.rsample`.

    Args:
        num_samples, temperature, param, min_std, clamp: as in `rsample`.
        sample_in_eval: draw z in evaluation mode too. Without it `eval()` makes the module return
            mu (an expanded view, `[num_samples, B, *latent]`, where several samples are asked
            for), so that a model evaluates deterministically.
        validate: check that a scale that is a std or variance is positive. It waits for the
            device, and is left out under `torch.compile`.

    Shape:
        mu and scale `[B, *latent]`; z `[B, *latent]` or `[num_samples, B, *latent]`.

    Raises:
        ValueError: a setting is unknown or out of range.

    Example:
        >>> sample = Reparameterize()
        >>> mu, logvar = torch.ones(8, 2), torch.zeros(8, 2)
        >>> bool((sample(mu, logvar, seed=0) == mu).any())
        False
        >>> torch.equal(sample.eval()(mu, logvar), mu)
        True

    Source: Kingma & Welling 2014, section 2.4.
    """

    def __init__(
        self,
        num_samples: int | None = None,
        temperature: float = 1.0,
        *,
        param: Param = "logvar",
        min_std: float = 0.0,
        clamp: Clamp = None,
        sample_in_eval: bool = False,
        validate: bool = True,
    ) -> None:
        super().__init__()
        min_std = transform_of(param, min_std, clamp).min_std
        if num_samples is not None and integer("num_samples", num_samples) < 1:
            raise ValueError(f"num_samples must be None or at least 1, got {num_samples}")
        self.num_samples = num_samples
        self.temperature = number("temperature", temperature)
        self.param: Param = param
        self.min_std, self.clamp = min_std, clamp
        self.sample_in_eval, self.validate = sample_in_eval, validate

    def forward(
        self,
        mu: Tensor,
        scale: Tensor,
        *,
        seed: random.Seed | None = None,
        generator: random.Generator | None = None,
        noise: Tensor | None = None,
        offset: int = 0,
    ) -> Tensor:
        """A sample of the posterior; arguments as in `rsample`."""
        if not (self.training or self.sample_in_eval):
            return mu if self.num_samples is None else mu.expand(self.num_samples, *mu.shape)
        if self.validate and not torch.compiler.is_compiling():
            check_scale("scale", scale, self.param, self.clamp)
        return rsample(
            mu,
            scale,
            num_samples=self.num_samples,
            temperature=self.temperature,
            param=self.param,
            min_std=self.min_std,
            clamp=self.clamp,
            seed=seed,
            generator=generator,
            noise=noise,
            offset=offset,
        )

    def extra_repr(self) -> str:
        return settings(
            self,
            num_samples=None,
            temperature=1.0,
            param="logvar",
            min_std=0.0,
            clamp=None,
            sample_in_eval=False,
            validate=True,
        )


class GaussianKL(nn.Module):
    """KL(N(mu, sigma^2) || prior) in nats: `vf.gaussian_kl`.

    Args:
        free_bits, free_bits_per, balance, param, min_std, clamp, reduction: as in `gaussian_kl`.
        validate: as in `Reparameterize`; what the mask leaves out is not looked at.

    Raises:
        ValueError: a setting is unknown or out of range.

    Example:
        >>> float(GaussianKL()(torch.ones(4, 3), torch.zeros(4, 3)))
        1.5

    Source: Kingma & Welling 2014, appendix B.
    """

    def __init__(
        self,
        *,
        free_bits: float = 0.0,
        free_bits_per: FreeBitsPer = "dim",
        balance: float | None = None,
        param: Param = "logvar",
        min_std: float = 0.0,
        clamp: Clamp = None,
        reduction: Reduction = "batchmean",
        validate: bool = True,
    ) -> None:
        super().__init__()
        min_std = transform_of(param, min_std, clamp).min_std
        one_of("free_bits_per", free_bits_per, ("dim", "sample", "total"))
        one_of("reduction", reduction, (*REDUCTIONS, "dim"))
        self.free_bits = number("free_bits", free_bits)
        self.free_bits_per: FreeBitsPer = free_bits_per
        self.balance = None if balance is None else number("balance", balance)
        self.param: Param = param
        self.min_std, self.clamp = min_std, clamp
        self.reduction: Reduction = reduction
        self.validate = validate

    def forward(
        self,
        mu: Tensor,
        scale: Tensor,
        prior_mu: Tensor | None = None,
        prior_scale: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The KL; arguments as in `gaussian_kl`."""
        if self.validate and self.param in ("std", "var") and not torch.compiler.is_compiling():
            shown, _ = mask_and_weight(mask, None, mu.shape, mu)
            check_scale("scale", scale, self.param, self.clamp, shown, mu.shape)
            check_scale("prior_scale", prior_scale, self.param, None, shown, mu.shape)
        return gaussian_kl(
            mu,
            scale,
            prior_mu,
            prior_scale,
            free_bits=self.free_bits,
            free_bits_per=self.free_bits_per,
            balance=self.balance,
            param=self.param,
            min_std=self.min_std,
            clamp=self.clamp,
            mask=mask,
            weight=weight,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return settings(
            self,
            free_bits=0.0,
            free_bits_per="dim",
            balance=None,
            param="logvar",
            min_std=0.0,
            clamp=None,
            reduction="batchmean",
            validate=True,
        )


class NLL(nn.Module):
    """-log p(target | params) in nats: `vf.nll`.

    Args:
        likelihood: an object of `vaefast.likelihoods` or its lower-case name. Its tensors become
            this module's: an `nn.Parameter` is trained with the others, any other tensor is a
            buffer.
        reduction: as in `nll`.
        validate: check that targets lie in the likelihood's support and parameters are such as it
            takes. It waits for the device, and is left out under `torch.compile`.

    Raises:
        TypeError, ValueError: a setting is unknown.

    Example:
        >>> import vaefast as vf
        >>> loss = NLL(vf.Gaussian(std=torch.nn.Parameter(torch.tensor(0.5))))
        >>> [name for name, _ in loss.named_parameters()]
        ['likelihood.std']
        >>> loss(torch.zeros(4, 3), torch.zeros(4, 3)).shape
        torch.Size([])
    """

    def __init__(
        self,
        likelihood: Likelihood | str,
        *,
        reduction: Reduction = "batchmean",
        validate: bool = True,
    ) -> None:
        super().__init__()
        one_of("reduction", reduction, REDUCTIONS)
        self.likelihood = LikelihoodModule(likelihood)
        self.reduction: Reduction = reduction
        self.validate = validate

    def forward(
        self,
        params: Params,
        target: Tensor,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        seed: random.Seed | None = None,
        generator: random.Generator | None = None,
        offset: int = 0,
    ) -> Tensor:
        """The loss; arguments as in `nll`."""
        return nll(
            params,
            target,
            self.likelihood(),
            mask=mask,
            weight=weight,
            reduction=self.reduction,
            validate=self.validate and not torch.compiler.is_compiling(),
            seed=seed,
            generator=generator,
            offset=offset,
        )

    def extra_repr(self) -> str:
        return settings(self, reduction="batchmean", validate=True)


class ELBOLoss(nn.Module):
    """-ELBO = E_q[-log p(x|z)] + beta KL(q(z|x) || p(z)) in nats: `vf.elbo_loss`.

    `beta` and `capacity` are plain attributes: a schedule assigns to them.

    Args:
        likelihood, validate: as in `NLL`; the posterior's and the prior's std or variance too.
        beta, capacity, free_bits, free_bits_per, reduction, param, min_std, clamp: as in
            `elbo_loss`.

    Returns:
        `ELBO(loss, nll, kl)` from `forward`: call `backward()` on `loss`, log the others.

    Raises:
        TypeError, ValueError: a setting is unknown or out of range.

    Example:
        >>> elbo = ELBOLoss("bernoulli", beta=4.0)
        >>> mu, logvar = torch.ones(8, 2), torch.zeros(8, 2)
        >>> loss, nll, kl = elbo(torch.zeros(8, 10), torch.ones(8, 10), mu, logvar)
        >>> round(float(loss - nll), 4), float(kl)
        (4.0, 1.0)

    Source: Kingma & Welling 2014, equation 10; Higgins et al. 2017 for beta.
    """

    def __init__(
        self,
        likelihood: Likelihood | str,
        *,
        beta: float | Tensor = 1.0,
        capacity: float | Tensor | None = None,
        free_bits: float = 0.0,
        free_bits_per: FreeBitsPer = "dim",
        reduction: Reduction = "batchmean",
        param: Param = "logvar",
        min_std: float = 0.0,
        clamp: Clamp = None,
        validate: bool = True,
    ) -> None:
        super().__init__()
        min_std = transform_of(param, min_std, clamp).min_std
        one_of("free_bits_per", free_bits_per, ("dim", "sample", "total"))
        one_of("reduction", reduction, ("batchmean", "sum", "mean", "sample"))
        self.likelihood = LikelihoodModule(likelihood)
        self.beta = number_or_tensor("beta", beta)
        self.capacity = None if capacity is None else number_or_tensor("capacity", capacity)
        self.free_bits = number("free_bits", free_bits)
        self.free_bits_per: FreeBitsPer = free_bits_per
        self.reduction: Reduction = reduction
        self.param: Param = param
        self.min_std, self.clamp = min_std, clamp
        self.validate = validate

    def forward(
        self,
        params: Params,
        target: Tensor,
        mu: Tensor | None = None,
        scale: Tensor | None = None,
        *,
        kl: Tensor | None = None,
        prior_mu: Tensor | None = None,
        prior_scale: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        seed: random.Seed | None = None,
        generator: random.Generator | None = None,
        offset: int = 0,
    ) -> ELBO:
        """`ELBO(loss, nll, kl)`; arguments as in `elbo_loss`."""
        return elbo_loss(
            params,
            target,
            mu,
            scale,
            kl=kl,
            likelihood=self.likelihood(),
            beta=self.beta,
            capacity=self.capacity,
            free_bits=self.free_bits,
            free_bits_per=self.free_bits_per,
            prior_mu=prior_mu,
            prior_scale=prior_scale,
            reduction=self.reduction,
            param=self.param,
            min_std=self.min_std,
            clamp=self.clamp,
            mask=mask,
            weight=weight,
            validate=self.validate and not torch.compiler.is_compiling(),
            seed=seed,
            generator=generator,
            offset=offset,
        )

    def extra_repr(self) -> str:
        return settings(
            self,
            beta=1.0,
            capacity=None,
            free_bits=0.0,
            free_bits_per="dim",
            reduction="batchmean",
            param="logvar",
            min_std=0.0,
            clamp=None,
            validate=True,
        )
