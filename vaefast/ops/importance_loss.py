"""Multi-sample bounds on log p(x) as losses: IWAE and its relatives."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from .. import _args
from ..backends.reference._exact import log_of, logsumexp
from ..backends.reference.sample_kl import expm1_rest
from ._weighed import weighing_z

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
        z: for `"dreg"`, the samples `[K, B, *latent]` that the decoder was given: while this loss
            is backpropagated, the gradient that passes through them into the encoder is
            multiplied by the weights. That is all of the pass's gradient in z, so another loss
            that reaches the encoder through z takes a backward pass of its own. None: the whole
            gradient has squared weights, which is right for the encoder's parameters alone; take
            the decoder's from `"iwae"`.
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
        RuntimeError: in a backward pass, of two `"dreg"` losses with weights of their own on one z.

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
        beta = _args.number("beta", beta)
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {beta}")
        value = beta * log_w.mean(0) + (1 - beta) * logmeanexp(log_w)
    elif bound == "renyi":
        alpha = _args.number("alpha", alpha)
        if not _args.is_finite(alpha):
            raise ValueError(f"alpha must be finite, got {alpha}")
        value = log_w.mean(0) if alpha == 1 else _renyi(log_w, 1 - alpha)
    else:
        value = logmeanexp(log_w)
    return _reduced(-value, reduction)


def logmeanexp(values: Tensor, dim: int = 0) -> Tensor:
    """log of the mean of exp(values) over `dim`."""
    total = logsumexp(values, dim)
    return total.sub(log_of(values.shape[dim], values))


def _renyi(log_w: Tensor, power: float) -> Tensor:
    """`[B]`: logmeanexp(t log w) / t, t the power.

    Near t = 0, where both vanish, by the gaps d of log w to its mean m, whose own mean is 0:
    m + log1p(t^2 s) / t, t^2 s = mean(e^(t d) - 1 - t d), of which nothing cancels.
    """
    mean = log_w.mean(0)
    # Of a weight of 0 the gap is no number, and not near.
    gap = log_w - mean
    near = (power * gap.detach()).abs().amax(0) < 0.5
    gap = torch.where(near, gap, 0.0)
    spread = (gap * gap * expm1_rest(power * gap)).mean(0)
    square = power * power * spread
    # log1p(y) / y; the series is exact to float64's rounding.
    tiny = square < 1e-4
    safe = torch.where(tiny, 1.0, square)
    series = 1 - square * (1 / 2 - square * (1 / 3 - square / 4))
    inside = power * spread * torch.where(tiny, series, torch.log1p(safe) / safe)
    outside = logmeanexp(power * torch.where(near, 0.0, log_w)) / power
    return torch.where(near, torch.where(near, mean, 0.0) + inside, outside)


def _miwae(log_w: Tensor, groups: int | None, bound: str) -> Tensor:
    """`[B]`: the mean over the M groups of each one's K-sample bound."""
    samples, batch = log_w.shape
    if groups is not None:
        groups = _args.integer("groups", groups)
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
    return weighing_z(logmeanexp(log_w), log_w, z, weights)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "sample":
        return losses
    return _args.mean(losses) if reduction == "batchmean" else losses.sum()
