"""scvi-tools: its count likelihoods, latent sample and KL by vaefast's kernels.

    from vaefast.integrations import scvi
    scvi.patch()

before or after models are made. docs/integrations.md says what is replaced, and where it pays.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from .. import distributions, likelihoods, nll
from ._patching import Library, Patch, Replacement

__all__ = ["patch", "patched", "unpatch"]

_PROBABILITIES = likelihoods.Bernoulli(logits=False)


def patch() -> Patch:
    """Replaces scvi-tools' hot functions by fused ones, for all models, and says which.

    The functions `log_nb_positive`, `log_zinb_positive` and `log_mixture_nb` and the `log_prob` of
    the distributions that stand on them; PeakVI's reconstruction loss; torch's Normal where
    scvi-tools' modules make one. Losses and gradients agree to float32's rounding; the latent noise
    is vaefast's, so that a seed gives other numbers than without the patch.

    Raises:
        ModuleNotFoundError: scvi-tools is not installed.
        VersionError: its version is not one that was tested.
    """
    return _library.patch()


def unpatch() -> Patch | None:
    """Puts scvi-tools' own back, and says what was replaced; None where nothing was."""
    return _library.unpatch()


def patched() -> AbstractContextManager[Patch]:
    """`patch` for a block of code, or, as a decorator, for a function."""
    return _library.patched()


def _replacements() -> Iterator[Replacement]:
    from scvi.distributions import _negative_binomial as counts
    from scvi.distributions import _normal
    from scvi.module import PEAKVAE
    from scvi.nn import _base_components

    functions = {"log_nb_positive": _nb, "log_zinb_positive": _zinb, "log_mixture_nb": _mixture}
    for name, make in functions.items():
        yield Replacement(counts, name, make(getattr(counts, name)), everywhere=True)
    methods = {
        "NegativeBinomial": _nb_log_prob,
        "ZeroInflatedNegativeBinomial": _zinb_log_prob,
        "NegativeBinomialMixture": _mixture_log_prob,
    }
    for name, method in methods.items():
        yield Replacement(getattr(counts, name), "log_prob", method)
    yield Replacement(PEAKVAE, "get_reconstruction_loss", _peak_loss)
    for name in ("rsample", "sample", "log_prob"):
        yield Replacement(_normal.Normal, name, vars(distributions.FusedNormal)[name])
    yield Replacement(_base_components, "Normal", FusedNormal, everywhere=True)


class FusedNormal(distributions.FusedNormal):
    """Whose copies are fused too, and whose pickles are torch's Normal: models keep some, and are
    loaded where there is no vaefast."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Normal, (self.loc, self.scale, self._validate_args)

    def __copy__(self) -> Any:
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = memo[id(self)] = object.__new__(type(self))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new


_library = Library("scvi-tools", versions=("1.4",), replacements=_replacements, package="scvi")


def _nb(original: Callable[..., Any]) -> Callable[..., Any]:
    def log_nb_positive(
        x: Any,
        mu: Any,
        theta: Any,
        eps: float = 1e-8,
        log_fn: Callable[..., Any] = torch.log,
        lgamma_fn: Callable[..., Any] = torch.lgamma,
    ) -> Any:
        """log p(x) of a negative binomial per element; of other arrays than torch's, as before."""
        if not _torchs(log_fn, lgamma_fn, x, mu, theta):
            return original(x, mu, theta, eps, log_fn, lgamma_fn)
        return distributions.NegativeBinomial(mu=mu, theta=theta, eps=eps).log_prob(x)

    return log_nb_positive


def _zinb(original: Callable[..., Any]) -> Callable[..., Any]:
    def log_zinb_positive(
        x: Any,
        mu: Any,
        theta: Any,
        pi: Any,
        eps: float = 1e-8,
        log_fn: Callable[..., Any] = torch.log,
        lgamma_fn: Callable[..., Any] = torch.lgamma,
    ) -> Any:
        """log p(x) of a zero-inflated negative binomial per element, pi its logits."""
        if not _torchs(log_fn, lgamma_fn, x, mu, theta, pi):
            return original(x, mu, theta, pi, eps, log_fn, lgamma_fn)
        # Of vectors scvi-tools makes [1, G].
        theta = theta.view(1, -1) if theta.dim() == 1 else theta
        model = distributions.ZeroInflatedNegativeBinomial(
            mu=mu, theta=theta, zi_logits=pi, eps=eps
        )
        return model.log_prob(x)

    return log_zinb_positive


def _mixture(original: Callable[..., Any]) -> Callable[..., Any]:
    def log_mixture_nb(
        x: Any,
        mu_1: Any,
        mu_2: Any,
        theta_1: Any,
        theta_2: Any,
        pi_logits: Any,
        eps: float = 1e-8,
        log_fn: Callable[..., Any] = torch.log,
        lgamma_fn: Callable[..., Any] = torch.lgamma,
    ) -> Any:
        """log p(x) of two negative binomials per element, pi_logits those of the first; theta_2
        None for the first's."""
        second = theta_1 if theta_2 is None else theta_2
        if not _torchs(log_fn, lgamma_fn, x, mu_1, mu_2, theta_1, second, pi_logits):
            return original(x, mu_1, mu_2, theta_1, theta_2, pi_logits, eps, log_fn, lgamma_fn)
        if theta_2 is None and theta_1.dim() == 1:
            # Of vectors scvi-tools makes [1, G].
            theta_1 = second = theta_1.view(1, -1)
        shape = torch.broadcast_shapes(x.shape, mu_1.shape, mu_2.shape, theta_1.shape, second.shape)
        mu = torch.stack([mu_1.expand(shape), mu_2.expand(shape)])
        theta = theta_1
        if theta_2 is not None:
            theta = torch.stack([theta_1.expand(shape), theta_2.expand(shape)])
        first, other = distributions.NegativeBinomial(mu=mu, theta=theta, eps=eps).log_prob(x)
        # Not by the softplus of a difference, which would lose what a much less likely one has.
        return torch.logaddexp(first, other - pi_logits) - F.softplus(-pi_logits)

    return log_mixture_nb


def _torchs(log_fn: object, lgamma_fn: object, *tensors: object) -> bool:
    """False for jax's arrays, and for a device on which scvi-tools has a function of its own."""
    own = log_fn is torch.log and lgamma_fn is torch.lgamma
    return own and all(isinstance(t, Tensor) for t in tensors)


def _nb_log_prob(self: Any, value: Tensor) -> Any:
    from scvi.distributions import _negative_binomial as counts

    if self._validate_args:
        _warn_unless_counts(value)
    own = {"lgamma_fn": counts.torch_lgamma_mps} if self.on_mps else {}
    return counts.log_nb_positive(value, self.mu, self.theta, eps=self._eps, **own)


def _zinb_log_prob(self: Any, value: Tensor) -> Any:
    from scvi.distributions import _negative_binomial as counts

    _warn_unless_counts(value)
    own = {"lgamma_fn": counts.torch_lgamma_mps} if self.on_mps else {}
    return counts.log_zinb_positive(value, self.mu, self.theta, self.zi_logits, eps=1e-8, **own)


def _mixture_log_prob(self: Any, value: Tensor) -> Any:
    from scvi.distributions import _negative_binomial as counts

    _warn_unless_counts(value)
    own = {"lgamma_fn": counts.torch_lgamma_mps} if self.on_mps else {}
    return counts.log_mixture_nb(
        value, self.mu1, self.mu2, self.theta1, self.theta2, self.mixture_logits, eps=1e-8, **own
    )


def _warn_unless_counts(value: Tensor) -> None:
    """scvi-tools' warning about values that are no counts, at a tenth of its price."""
    from scvi import settings

    if not isinstance(value, Tensor):
        raise ValueError("The value argument to log_prob must be a Tensor")
    if value.numel() == 0:
        return
    if value.is_floating_point():
        low, high = value.frac().aminmax()
        counts = (low == 0) & (high == 0) & (value.amin() >= 0)
    else:
        counts = value.amin() >= 0
    if not counts:
        warnings.warn(
            "The value argument must be within the support of the distribution",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )


def _peak_loss(self: Any, p: Tensor, d: Tensor, f: Tensor, x: Tensor) -> Tensor:
    """-log p of what is open, by the probabilities p d f, per cell."""
    return nll(p * d * f, x > 0, _PROBABILITIES, reduction="sample")
