"""Log density of a mixture of diagonal Gaussians: VampPrior, GMM prior, aggregate posterior."""

from __future__ import annotations

from torch import Tensor

from .. import _args
from .._args import Clamp, Param, compute_dtype
from ..backends.reference.sample_kl import log_variance
from . import _mixture_log_prob, _plans
from .rsample import transform_of


def mixture_log_prob(
    z: Tensor,
    mu: Tensor,
    scale: Tensor,
    log_weights: Tensor | None = None,
    *,
    param: Param = "logvar",
    min_std: float = 0.0,
    clamp: Clamp = None,
) -> Tensor:
    """log sum_k w_k N(z; mu_k, sigma_k^2), in nats.

    As a prior it replaces the closed-form KL: KL = E_q[log q(z|x) - log p(z)] at samples of q.

    Args:
        z: the points, `[..., *latent]`, float64, float32, bfloat16 or float16.
        mu: the components' means, `[K, *latent]`.
        scale: of mu's shape, or broadcasts to it; what it is, `param` says.
        log_weights: log w_k, `[K]`, taken as they are: pass `torch.log_softmax(logits, 0)` for
            learned weights that sum to one. None for 1/K each.
        param, min_std, clamp: of scale, as in `rsample`.

    Returns:
        `[...]`, z's leading dimensions, in float32, or float64 if any argument is. Gradients flow
        to z, mu, scale and log_weights. Nothing of the size of all pairs is stored.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes, devices or settings do not fit together.

    Example:
        >>> import torch, vaefast as vf
        >>> mu, logvar = torch.zeros(5, 2), torch.zeros(5, 2)
        >>> round(float(vf.mixture_log_prob(torch.zeros(2), mu, logvar)), 4)
        -1.8379

    Source: Tomczak & Welling 2018, "VAE with a VampPrior", equation 9.
    """
    given = (z, mu, scale, log_weights)
    key, plan = _plans.find(given, ("mixture_log_prob", param, min_std, clamp))
    if plan is not None:
        return _mixture_log_prob.run_found(plan, *given)
    _args.float_tensor("z", z)
    scale = _args.posterior(mu, scale)
    latent = mu.shape[1:]
    lead = z.dim() - len(latent)
    if lead < 0 or z.shape[lead:] != latent:
        raise ValueError(
            f"z must have shape [..., *{list(latent)}], as mu {list(mu.shape)}, got {list(z.shape)}"
        )
    if log_weights is not None:
        _args.float_tensor("log_weights", log_weights)
        if log_weights.shape != mu.shape[:1]:
            raise ValueError(
                f"log_weights must have one value per component, [{mu.shape[0]}], got "
                f"{list(log_weights.shape)}"
            )
    _args.same_device("mu", mu, z=z, log_weights=log_weights)
    transform = transform_of(param, min_std, clamp)
    dtype = compute_dtype(z, mu, scale, log_weights)
    dims = _args.count(latent)
    logvar = log_variance(scale.to(dtype), transform)
    taken = (
        _args.matrix(z, _args.count(z.shape[:lead]), dims, dtype),
        _args.matrix(mu, mu.shape[0], dims, dtype),
        _args.matrix(logvar, mu.shape[0], dims, dtype),
        None if log_weights is None else log_weights.to(dtype),
    )
    values = _mixture_log_prob.run(*taken, _plans.if_taken(key, given, taken))
    return values if lead == 1 else values.view(z.shape[:lead])
