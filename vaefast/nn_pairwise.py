"""The operators over pairs of samples as `torch.nn` modules; `vaefast.nn` has their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ._args import Clamp, Param, mean, number_or_tensor, one_of
from .ops._validate import check_scale
from .ops.mmd import Kernel, denominators, mmd
from .ops.rsample import transform_of
from .ops.tc_terms import Method, tc_terms, weights

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["MMDLoss", "TCLoss", "TCPenalty"]


class TCPenalty(NamedTuple):
    """What `TCLoss` returns: `loss` to minimise, the batch means of its terms to log."""

    loss: Tensor
    mi: Tensor
    tc: Tensor
    dim_kl: Tensor


class TCLoss(nn.Module):
    """alpha MI + beta TC + gamma sum_d KL_d, which takes the place of the KL: `vf.tc_terms`.

    `alpha`, `beta` and `gamma` are plain attributes: a schedule assigns to them.

    Args:
        dataset_size: N, the number of data that batches are drawn from.
        alpha, beta, gamma: weights of the mutual information, the total correlation and the
            dimension-wise KL; the KL itself where all are 1.
        method, param, min_std, clamp, gather, group: as in `tc_terms`.
        validate: as in `Reparameterize`.

    Returns:
        `TCPenalty(loss, mi, tc, dim_kl)` from `forward`, means over the batch in nats, all but
        `loss` detached.

    Raises:
        TypeError, ValueError: a setting is unknown or out of range.

    Example:
        >>> penalty = TCLoss(dataset_size=1000, beta=6.0)
        >>> mu, logvar = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> round(abs(float(penalty(mu, mu, logvar).loss)), 4)
        0.0

    Source: Chen et al. 2018, equation 4.
    """

    def __init__(
        self,
        dataset_size: int,
        *,
        alpha: float | Tensor = 1.0,
        beta: float | Tensor = 1.0,
        gamma: float | Tensor = 1.0,
        method: Method = "mss",
        param: Param = "logvar",
        min_std: float = 0.0,
        clamp: Clamp = None,
        gather: bool = False,
        group: ProcessGroup | None = None,
        validate: bool = True,
    ) -> None:
        super().__init__()
        min_std = transform_of(param, min_std, clamp).min_std
        weights(0, dataset_size, method)
        self.dataset_size = dataset_size
        self.alpha = number_or_tensor("alpha", alpha)
        self.beta = number_or_tensor("beta", beta)
        self.gamma = number_or_tensor("gamma", gamma)
        self.method: Method = method
        self.param: Param = param
        self.min_std, self.clamp = min_std, clamp
        self.gather, self.group = gather, group
        self.validate = validate

    def forward(self, z: Tensor, mu: Tensor, scale: Tensor) -> TCPenalty:
        """The penalty of samples z of the posteriors (mu, scale), all `[B, *latent]`."""
        if self.validate and not torch.compiler.is_compiling():
            check_scale("scale", scale, self.param, self.clamp)
        terms = tc_terms(
            z,
            mu,
            scale,
            dataset_size=self.dataset_size,
            method=self.method,
            param=self.param,
            min_std=self.min_std,
            clamp=self.clamp,
            gather=self.gather,
            group=self.group,
        )
        mi, tc, dim_kl = (mean(term) for term in terms)
        loss = self.alpha * mi + self.beta * tc + self.gamma * dim_kl
        return TCPenalty(loss, mi.detach(), tc.detach(), dim_kl.detach())

    def extra_repr(self) -> str:
        return (
            f"dataset_size={self.dataset_size}, alpha={self.alpha}, beta={self.beta}, "
            f"gamma={self.gamma}, method={self.method!r}"
        )


class MMDLoss(nn.Module):
    """MMD^2 between codes and the prior, the penalty of WAE-MMD and InfoVAE: `vf.mmd`.

    Args:
        kernel, scales, unbiased: as in `mmd`.

    Raises:
        ValueError: a setting is unknown or out of range.

    Example:
        >>> penalty = MMDLoss(unbiased=False)
        >>> z = torch.randn(16, 2)
        >>> bool(penalty(z, z).abs() < 1e-5)
        True

    Source: Tolstikhin et al. 2018, "Wasserstein Auto-Encoders", algorithm 2.
    """

    def __init__(
        self,
        *,
        kernel: Kernel = "imq",
        scales: Sequence[float] | None = None,
        unbiased: bool = True,
    ) -> None:
        super().__init__()
        one_of("kernel", kernel, ("imq", "rbf"))
        denominators(kernel, scales, 1)
        self.kernel: Kernel = kernel
        self.scales = None if scales is None else tuple(scales)
        self.unbiased = unbiased

    def forward(
        self, z: Tensor, prior: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """MMD^2 of z `[B, *latent]` and `prior` `[M, *latent]`.

        Without `prior`, B points are drawn from N(0, I), by `generator` where one is given.
        """
        if prior is None:
            prior = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        return mmd(z, prior, kernel=self.kernel, scales=self.scales, unbiased=self.unbiased)

    def extra_repr(self) -> str:
        return f"kernel={self.kernel!r}, scales={self.scales}, unbiased={self.unbiased}"
