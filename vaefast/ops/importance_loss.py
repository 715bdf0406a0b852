"""Multi-sample bounds on log p(x) as losses: IWAE and its relatives."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from .. import _args

Bound = Literal["iwae", "dreg", "stl", "ciwae", "miwae", "renyi"]
BOUNDS = ("iwae", "dreg", "stl", "ciwae", "miwae", "piwae", "renyi")
BoundReduction = Literal["batchmean", "sample", "sum"]


class PIWAE(NamedTuple):
    """One loss for the encoder's parameters and one for the decoder's."""

    encoder: Tensor
    decoder: Tensor


@overload
def importance_loss(
    log_w: Tensor,
    *,
    bound: Bound = "iwae",
    z: Tensor | None = None,
    beta: float = 0.5,
    groups: int | None = None,
    alpha: float = 0.5,
    reduction: BoundReduction = "batchmean",
) -> Tensor: ...


@overload
def importance_loss(
    log_w: Tensor,
    *,
    bound: Literal["piwae"],
    z: Tensor | None = None,
    beta: float = 0.5,
    groups: int | None = None,
    alpha: float = 0.5,
    reduction: BoundReduction = "batchmean",
) -> PIWAE: ...


def importance_loss(
    log_w: Tensor,
    *,
    bound: str = "iwae",
    z: Tensor | None = None,
    beta: float = 0.5,
    groups: int | None = None,
    alpha: float = 0.5,
    reduction: BoundReduction = "batchmean",
) -> Tensor | PIWAE:
    """Minus a bound on log p(x) from K samples' log weights, in nats.

    With `logmeanexp_K w = log (1/K) sum_k w_k`:

    - `"iwae"`: logmeanexp_K log w.
    - `"stl"`: the same, of log weights made with `stop_posterior=True`. Unbiased for K = 1 alone.
    - `"dreg"`: the same value; of log weights made with `stop_posterior=True`, the gradient that
      reaches the encoder through z has the normalised weights squared, which makes it unbiased
      for every K, and the decoder's has them plain.
    - `"ciwae"`: beta mean_k log w + (1 - beta) logmeanexp_K log w.
    - `"miwae"`: the mean over `groups` M of logmeanexp_K log w, K = samples / M.
    - `"piwae"`: MIWAE for the encoder and IWAE over all M K samples for the decoder.
    - `"renyi"`: logmeanexp_K((1 - alpha) log w) / (1 - alpha); alpha = 0 is IWAE, 1 the ELBO.

    The weights that these gradients have are never differentiated. Derivations: docs/bounds.md.

    Args:
        log_w: `[K, B]`, as `log_weights` gives it; `[M K, B]` for `"miwae"` and `"piwae"`, of
            which samples m K to (m + 1) K are group m.
        bound: one of the above.
        z: for `"dreg"`, the samples `[K, B, *latent]` that the decoder was given, not a leaf:
            the gradient that passes through them into the encoder is multiplied by the weights.
            None: the whole gradient has squared weights, which is right for the encoder's
            parameters alone; take the decoder's from `"iwae"`.
        beta: of `"ciwae"`, in [0, 1].
        groups: M of `"miwae"` and `"piwae"`; required there, it must divide the samples.
        alpha: of `"renyi"`.
        reduction: `"batchmean"`, `"sum"` or `"sample"` (`[B]`).

    Returns:
        The loss. For `"piwae"` a pair `(encoder, decoder)`: call
        `loss.encoder.backward(inputs=encoder_parameters, retain_graph=True)`, then
        `loss.decoder.backward(inputs=decoder_parameters)`.

    Raises:
        TypeError: log_w is no floating-point tensor.
        ValueError: a shape or a setting is out of range.

    Example:
        >>> import torch, vaefast as vf
        >>> log_w = torch.tensor([[1.0, 2.0], [3.0, 2.0]]).log()
        >>> vf.importance_loss(log_w, reduction="sample").exp()
        tensor([0.5000, 0.5000])

    Source: Burda et al. 2016 (IWAE); Roeder et al. 2017 (STL); Tucker et al. 2018 (DReG,
    equation 8); Rainforth et al. 2018, section 4 (CIWAE, MIWAE, PIWAE); Li & Turner 2016
    (Renyi, equation 10).
    """
    _args.one_of("bound", bound, BOUNDS)
    _args.one_of("reduction", reduction, ("batchmean", "sample", "sum"))
    _args.float_tensor("log_w", log_w)
    if log_w.dim() != 2 or not log_w.shape[0]:
        raise ValueError(f"log_w must be [K, B] with K at least 1, got {list(log_w.shape)}")
    log_w = log_w.to(_args.compute_dtype(log_w))
    if bound == "piwae":
        encoder, decoder = -_miwae(log_w, groups, bound), -logmeanexp(log_w)
        return PIWAE(_reduced(encoder, reduction), _reduced(decoder, reduction))
    if bound == "dreg":
        return _reduced(-_dreg(log_w, z), reduction)
    if bound == "miwae":
        value = _miwae(log_w, groups, bound)
    elif bound == "ciwae":
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {beta}")
        value = beta * log_w.mean(0) + (1 - beta) * logmeanexp(log_w)
    elif bound == "renyi":
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be finite, got {alpha}")
        value = log_w.mean(0) if alpha == 1 else logmeanexp((1 - alpha) * log_w) / (1 - alpha)
    else:
        value = logmeanexp(log_w)
    return _reduced(-value, reduction)


def logmeanexp(values: Tensor, dim: int = 0) -> Tensor:
    """log of the mean of exp(values) over `dim`."""
    return torch.logsumexp(values, dim) - math.log(values.shape[dim])


def _miwae(log_w: Tensor, groups: int | None, bound: str) -> Tensor:
    """`[B]`: the mean over the M groups of each one's K-sample bound."""
    samples, batch = log_w.shape
    if groups is None or groups < 1 or samples % groups:
        raise ValueError(
            f"groups must divide the {samples} samples of bound={bound!r}, got {groups}"
        )
    return logmeanexp(log_w.reshape(groups, samples // groups, batch), dim=1).mean(0)


def _dreg(log_w: Tensor, z: Tensor | None) -> Tensor:
    """`[B]`: IWAE's value, with the gradient of DReG."""
    weights = torch.softmax(log_w.detach(), 0)
    if z is None:
        # A sample without weight may have log w = -inf, and 0 * -inf is no number.
        terms = torch.where(weights > 0, weights**2 * log_w, 0.0)
        surrogate = terms.sum(0)
        return logmeanexp(log_w.detach()) + (surrogate - surrogate.detach())
    if z.shape[:2] != log_w.shape:
        raise ValueError(
            f"z must be [K, B, *latent] with log_w's K and B, {list(log_w.shape)}, got "
            f"{list(z.shape)}"
        )
    if z.requires_grad:
        if z.is_leaf:
            raise ValueError("z must be the encoder's sample, got a leaf of the graph")
        wide = weights.view(*weights.shape, *([1] * (z.dim() - 2)))
        z.register_hook(lambda grad: (grad * wide).to(grad.dtype))
    return logmeanexp(log_w)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "sample":
        return losses
    return _args.mean(losses) if reduction == "batchmean" else losses.sum()
