"""Mutual information, total correlation and dimension-wise KL of a batch of posteriors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from .. import _args
from .._args import Clamp, Param, compute_dtype
from .._explain import declined
from ..backends._options import Weighing
from ..backends.reference.sample_kl import log_variance
from . import _plans, _tc_terms
from ._gather import gathered
from .rsample import transform_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Method = Literal["mss", "mws"]


class TCTerms(NamedTuple):
    """What the KL is made of, each `[B]`: its expectation is that of `mi + tc + dim_kl`."""

    mi: Tensor
    tc: Tensor
    dim_kl: Tensor


def tc_terms(
    z: Tensor,
    mu: Tensor,
    scale: Tensor,
    *,
    dataset_size: int,
    method: Method = "mss",
    param: Param = "logvar",
    min_std: float = 0.0,
    clamp: Clamp = None,
    gather: bool = False,
    group: ProcessGroup | None = None,
) -> TCTerms:
    """beta-TCVAE's decomposition of the KL at one sample per datum, in nats.

    With q(z) the aggregate posterior over the dataset, estimated from the batch,
    `mi = log q(z|x) - log q(z)`, `tc = log q(z) - sum_d log q(z_d)` and
    `dim_kl = sum_d log q(z_d) - log p(z)`, p = N(0, I);
    `log q(z_i) = log sum_j W_ij q(z_i|x_j)`, and likewise for each dimension.

    Args:
        z: a sample of each posterior, `[B, *latent]`, float64, float32, bfloat16 or float16.
        mu: the posteriors' means, `[B, *latent]`.
        scale: of mu's shape, or broadcasts to it; what it is, `param` says.
        dataset_size: N, the number of data that batches are drawn from.
        method: `"mss"`, minibatch stratified sampling (unbiased for q(z)): W is 1/N for a
            point's own posterior, (N-M)/(N M) for one other and 1/M for the rest, M = B - 1.
            `"mws"`, minibatch weighted sampling: 1/(N B) throughout.
        param, min_std, clamp: of scale, as in `rsample`.
        gather: estimate q(z) from the posteriors of all ranks of `group` (None for the default
            one), which must have equally many: the result is this rank's part of that of the whole
            batch. Gradients reach the other ranks.
        group: a process group.

    Returns:
        `TCTerms(mi, tc, dim_kl)` in float32, or float64 if any argument is. No tensor over pairs
        of samples is stored, forward or backward.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes, devices or settings do not fit together, or `"mss"` is asked for with
            fewer than two samples or more than the dataset holds.

    Example:
        >>> import torch, vaefast as vf
        >>> mu, logvar = torch.zeros(4, 2), torch.zeros(4, 2)
        >>> terms = vf.tc_terms(torch.zeros(4, 2), mu, logvar, dataset_size=4)
        >>> [round(float(t.sum().abs()), 4) for t in terms]
        [0.0, 0.0, 0.0]

    Source: Chen et al. 2018, "Isolating Sources of Disentanglement in VAEs", equation 2 and
    appendix C.
    """
    key, plan, given = None, None, (z, mu, scale)
    if gather:
        declined("argument", "gather")
    else:
        settings = ("tc_terms", dataset_size, method, param, min_std, clamp)
        key, plan = _plans.find(given, settings)
    if plan is not None:
        return TCTerms(*_tc_terms.run_found(plan, *given).unbind(0))
    scale = _args.posterior(mu, scale)
    _args.float_tensor("z", z)
    if z.shape != mu.shape:
        raise ValueError(
            f"z and mu must have the same shape, got {list(z.shape)} and {list(mu.shape)}"
        )
    _args.same_device("mu", mu, z=z)
    transform = transform_of(param, min_std, clamp)
    dtype = compute_dtype(z, mu, scale)
    batch, dims = mu.shape[0], _args.count(mu.shape[1:])
    wide_mu = _args.matrix(mu, batch, dims, dtype)
    logvar = _args.matrix(log_variance(scale.to(dtype), transform), batch, dims, dtype)
    first = 0
    if gather:
        wide_mu, logvar, first = gathered(wide_mu, logvar, group)
    weighing = weights(wide_mu.shape[0], dataset_size, method, first)
    taken = _args.matrix(z, batch, dims, dtype), wide_mu, logvar
    terms = _tc_terms.run(*taken, weighing, _plans.if_taken(key, given, taken))
    return TCTerms(*terms.unbind(0))


def weights(batch: int, dataset_size: int, method: str, first: int = 0) -> Weighing:
    """The weights of a batch's posteriors in the estimates of q(z), checked."""
    _args.one_of("method", method, ("mss", "mws"))
    dataset_size = _args.integer("dataset_size", dataset_size, least=1)
    if not batch:
        return Weighing(0.0, first, 1.0, 1.0)
    if method == "mws":
        return Weighing(-_args.log(_args.operand(dataset_size * batch)), first, 1.0, 1.0)
    if not 2 <= batch <= dataset_size:
        raise ValueError(
            "method 'mss' takes a batch of at least 2 and at most dataset_size "
            f"({dataset_size}) samples, got {batch}"
        )
    others = batch - 1
    return Weighing(
        -_args.log(_args.operand(others)),
        first,
        others / dataset_size,
        (dataset_size - others) / dataset_size,
    )
