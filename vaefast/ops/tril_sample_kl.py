"""A full-covariance Gaussian posterior: its sample and its KL to N(0, I)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import _args, random
from ..backends.reference.sample_kl import expm1_minus_x
from .rsample import noise_state, rsample


def tril_sample_kl(
    mu: Tensor,
    tril: Tensor,
    *,
    num_samples: int | None = None,
    temperature: float = 1.0,
    seed: random.Seed | None = None,
    generator: random.Generator | None = None,
    noise: Tensor | None = None,
    offset: int = 0,
    reduction: Literal["sample", "batchmean", "sum"] = "sample",
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """z = mu + temperature * L eps and KL(N(mu, L L^T) || N(0, I)), in nats.

    `KL = 0.5 (||L||_F^2 + ||mu||^2 - D) - sum_i log L_ii`, the diagonal's part taken as
    `exp(d) - 1 - d` with `d = 2 log L_ii`, without cancellation near collapse (L = I).

    Args:
        mu: `[B, D]`, float64, float32, bfloat16 or float16.
        tril: L, `[B, D, D]`, lower triangular with a positive diagonal (`softplus` or `exp` of a
            network's output). What lies above the diagonal is not used and gets no gradient.
        num_samples, temperature, seed, generator, noise, offset: as in `rsample`, whose noise
            this is: with L = diag(sigma) z is `rsample(mu, sigma, param="std")`. The noise is
            stored for the backward pass, which is D times less than L for each sample.
        reduction: of the KL: `"sample"` (`[B]`), `"batchmean"` or `"sum"`.
        validate: check that the diagonal is positive (waits for the device). Unchecked, a zero
            there gives an infinite KL and a negative one NaN.

    Returns:
        `(z, kl)`: z `[B, D]` or `[num_samples, B, D]` with mu's dtype, the KL in float32, or
        float64 if either argument is.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes, devices or settings do not fit together, or a validated diagonal is
            not positive.

    Example:
        >>> import torch, vaefast as vf
        >>> z, kl = vf.tril_sample_kl(torch.ones(4, 3), torch.eye(3).expand(4, 3, 3))
        >>> z.shape, float(kl[0])
        (torch.Size([4, 3]), 1.5)

    Source: Kingma & Welling 2019, "An Introduction to Variational Autoencoders", section 2.5.1.
    """
    _check(mu, tril, reduction)
    diagonal = tril.diagonal(dim1=-2, dim2=-1)
    if validate and bool((~(diagonal > 0)).any()):
        raise ValueError(f"tril must have a positive diagonal, got {diagonal.min().item()} on it")
    temperature = _args.number("temperature", temperature)
    state = noise_state(mu, num_samples, seed, generator, noise)
    dtype = _args.compute_dtype(mu, tril)
    # Widened once: of two conversions each would round its own gradient.
    wide, wide_tril = mu.to(dtype), tril.to(dtype)
    lower = torch.tril(wide_tril)
    if noise is None:
        # The one generator of noise, with mu = 0 and sigma = 1.
        zero = torch.zeros_like(wide, requires_grad=False)
        noise = rsample(zero, zero, num_samples=num_samples, seed=state, offset=offset)
    z = (wide + temperature * _product(lower, noise.to(dtype))).to(mu.dtype)
    doubled = 2 * torch.log(wide_tril.diagonal(dim1=-2, dim2=-1))
    off_diagonal = torch.tril(lower, -1).square().sum((-2, -1))
    kl = 0.5 * (off_diagonal + (wide**2 + expm1_minus_x(doubled)).sum(-1))
    if reduction == "sample":
        return z, kl
    return z, _args.mean(kl) if reduction == "batchmean" else kl.sum()


def _check(mu: Tensor, tril: Tensor, reduction: str) -> None:
    _args.float_tensor("mu", mu)
    _args.float_tensor("tril", tril)
    if mu.dim() != 2 or tril.shape != (*mu.shape, mu.shape[-1]):
        raise ValueError(
            f"mu and tril must be [B, D] and [B, D, D], got {list(mu.shape)} and {list(tril.shape)}"
        )
    _args.same_device("mu", mu, tril=tril)
    _args.one_of("reduction", reduction, ("sample", "batchmean", "sum"))


def _product(lower: Tensor, noise: Tensor) -> Tensor:
    """L eps for eps `[B, D]` or `[K, B, D]`, all K samples of a posterior in one GEMM."""
    if noise.dim() == 2:
        return torch.bmm(lower, noise.unsqueeze(-1)).squeeze(-1)
    return torch.bmm(noise.transpose(0, 1), lower.transpose(1, 2)).transpose(0, 1)
