"""The `loss_function` that example code has, under each of the conventions that it has it in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from ..likelihoods import Bernoulli, Gaussian, Laplace, Likelihood
from ..ops.elbo_loss import elbo_loss
from ..ops.gaussian_kl import gaussian_kl
from ..ops.nll import nll

__all__ = ["CONVENTIONS", "RECONSTRUCTIONS", "Convention", "Losses", "loss_function"]

Convention = Literal["sum", "batchmean", "mean", "masked"]
Reconstruction = Literal["bce", "bce_logits", "mse", "half_mse", "l1"]

# Each convention's reconstruction where none is named: that of the code it is found in.
CONVENTIONS: dict[str, Reconstruction] = {
    "sum": "bce",
    "batchmean": "bce",
    "mean": "mse",
    "masked": "mse",
}

# Of an element, without the constants that `F.mse_loss` and its like leave out. (x - m)^2 is the
# Gaussian of variance 1/2.
RECONSTRUCTIONS: dict[str, Likelihood] = {
    "bce": Bernoulli(logits=False),
    "bce_logits": Bernoulli(),
    "mse": Gaussian(math.sqrt(0.5), const=False),
    "half_mse": Gaussian(1.0, const=False),
    "l1": Laplace(1.0, const=False),
}


class Losses(NamedTuple):
    """`loss` to call `backward()` on; `reconstruction` and `kl` detached, before `kld_weight`."""

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


@overload
def loss_function(
    recon_x: Tensor,
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    convention: Convention = "sum",
    *,
    reconstruction: Reconstruction | None = None,
    kld_weight: float | Tensor = 1.0,
    mask: Tensor | None = None,
    validate: bool = False,
    parts: Literal[False] = False,
) -> Tensor: ...


@overload
def loss_function(
    recon_x: Tensor,
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    convention: Convention = "sum",
    *,
    reconstruction: Reconstruction | None = None,
    kld_weight: float | Tensor = 1.0,
    mask: Tensor | None = None,
    validate: bool = False,
    parts: Literal[True],
) -> Losses: ...


def loss_function(
    recon_x: Tensor,
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    convention: Convention = "sum",
    *,
    reconstruction: Reconstruction | None = None,
    kld_weight: float | Tensor = 1.0,
    mask: Tensor | None = None,
    validate: bool = False,
    parts: bool = False,
) -> Tensor | Losses:
    """reconstruction + kld_weight KL(N(mu, exp(logvar)) || N(0, I)), reduced as named.

    With r an element's reconstruction loss and k an element's KL:

    | convention | loss | found in |
    |---|---|---|
    | `"sum"` | sum r + w sum k | pytorch/examples, whose `loss_function` this is |
    | `"batchmean"` | (sum r + w sum k) / B | papers: the ELBO, in nats per example |
    | `"mean"` | (sum r) / (number of r) + w (sum k) / B | AntixK/PyTorch-VAE, w its `kld_weight` |
    | `"masked"` | (sum of kept r + w sum of kept k) / (number of kept positions) | sequences |

    `"mean"` is `"batchmean"` with beta = w times the number of x's elements per example, but for
    that factor on the whole.

    Args:
        recon_x: the decoder's output.
        x: the data, of as many elements (`[B, 1, 28, 28]` beside a recon_x of `[B, 784]`).
        mu, logvar: `[B, *latent]`; under `"masked"` `[*positions, *latent]`, or of any other shape
            for a latent that has no positions: its KL is then averaged over the batch.
        convention: of the table.
        reconstruction: an element's r: `"bce"`, binary cross-entropy of probabilities, as
            `F.binary_cross_entropy`; `"bce_logits"`, of logits; `"mse"`, (x - recon_x)^2, as
            `F.mse_loss`; `"half_mse"`, half of it, the Gaussian of variance 1 without its
            constant; `"l1"`. None: `"bce"` under `"sum"` and `"batchmean"`, else `"mse"`.
        kld_weight: w; AntixK's is the size of the batch over that of the dataset.
        mask: bool, True for what is kept. Under `"masked"` it is required, of the shape
            `[*positions]`, the leading dimensions of x. Otherwise it broadcasts to recon_x and is
            of the reconstruction alone; `"mean"` is then over the kept.
        validate: check that x and recon_x are in [0, 1] where they must be (waits for the device).
        parts: give `Losses(loss, reconstruction, kl)`.

    Returns:
        The loss, a scalar in float32, or float64 if any parameter is.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes do not fit together; a name is not one of those above; a mask is missing.

    Example:
        >>> import torch
        >>> from vaefast.integrations.functional import loss_function
        >>> recon_x, x = torch.full((4, 784), 0.5), torch.ones(4, 1, 28, 28)
        >>> mu, logvar = torch.ones(4, 20), torch.zeros(4, 20)
        >>> round(float(loss_function(recon_x, x, mu, logvar)), 2)
        2213.71

    Source: Kingma & Welling 2014, section 3 and appendix B; pytorch/examples, vae/main.py;
    AntixK/PyTorch-VAE, models/vanilla_vae.py.
    """
    if convention not in CONVENTIONS:
        raise ValueError(_unknown("convention", convention, CONVENTIONS))
    name = CONVENTIONS[convention] if reconstruction is None else reconstruction
    if name not in RECONSTRUCTIONS:
        raise ValueError(_unknown("reconstruction", name, RECONSTRUCTIONS))
    likelihood = RECONSTRUCTIONS[name]
    if x.shape != recon_x.shape:
        if x.numel() != recon_x.numel() or x.shape[:1] != recon_x.shape[:1]:
            raise ValueError(
                "x must have recon_x's elements for each example, got "
                f"{list(x.shape)} and {list(recon_x.shape)}"
            )
        if convention == "masked":
            recon_x = recon_x.reshape(x.shape)
        else:
            x = x.reshape(recon_x.shape)
    if convention == "sum" or convention == "batchmean":
        found = elbo_loss(
            recon_x,
            x,
            mu,
            logvar,
            likelihood=likelihood,
            beta=kld_weight,
            mask=mask,
            reduction=convention,
            validate=validate,
        )
        copies = x.shape[0] if convention == "sum" else 1
        return Losses(found.loss, found.nll * copies, found.kl * copies) if parts else found.loss
    if convention == "mean":
        r = nll(recon_x, x, likelihood, mask=mask, reduction="mean", validate=validate)
        kl = gaussian_kl(mu, logvar)
    else:
        r, kl = _per_position(recon_x, x, likelihood, mu, logvar, mask, validate)
    loss = r + kld_weight * kl
    return Losses(loss, r.detach(), kl.detach()) if parts else loss


def _per_position(
    recon_x: Tensor,
    x: Tensor,
    likelihood: Likelihood,
    mu: Tensor,
    logvar: Tensor,
    mask: Tensor | None,
    validate: bool,
) -> tuple[Tensor, Tensor]:
    """Reconstruction and KL per position that the mask keeps; 0 where it keeps none."""
    if mask is None:
        raise ValueError("convention 'masked' takes a mask, [*positions], got None")
    rank = mask.dim()
    if mask.shape != x.shape[:rank]:
        raise ValueError(
            f"mask must have x's leading dimensions, those of {list(x.shape)}, got "
            f"{list(mask.shape)}"
        )
    kept = torch.count_nonzero(mask).clamp(min=1)
    r = nll(recon_x, x, likelihood, mask=_wide(mask, x), reduction="sum", validate=validate)
    if mu.dim() <= rank or mu.shape[:rank] != mask.shape:
        return r / kept, gaussian_kl(mu, logvar)
    return r / kept, gaussian_kl(mu, logvar, mask=_wide(mask, mu), reduction="sum") / kept


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    """`mask` with the dimensions of `like` that it has not, of size 1."""
    return mask.reshape(*mask.shape, *([1] * (like.dim() - mask.dim())))


def _unknown(name: str, value: object, allowed: Mapping[str, object]) -> str:
    return f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
