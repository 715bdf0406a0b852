"""`monte_carlo_kl` by the compiled core."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _C
from ..._args import compute_dtype
from .._options import Posterior, Transform
from ..layout import fitted
from ._pack import Packed, fresh_like, pack, result
from ._place import place, place_with
from ._posterior import gradient, settings_of


def monte_carlo_kl(
    z: Tensor,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    transform: Transform,
    prior: bool,
) -> Tensor:
    """`[K, B]` for z `[K, B, *latent]`; log q(z|x) alone where `prior` is False."""
    dtype = compute_dtype(z, mu, scale, prior_mu, prior_scale)
    grid, packed, _alive = _pack(z, (mu, scale, prior_mu, prior_scale, z))
    value = torch.empty(z.shape[:2], dtype=dtype, device=z.device)
    call = (
        grid,
        (*packed[:4], None, None, None),
        packed[4],
        settings_of(_options(z, transform), dtype),
        prior,
        value.data_ptr(),
    )
    if z.is_cpu:
        _C.monte_carlo_kl(*call, torch.get_num_threads())
    else:
        _C.monte_carlo_kl(*call, place_with(z, _C.monte_carlo_kl_workspace(*call)))
    return value


def monte_carlo_kl_backward(
    upstream: Tensor,
    z: Tensor,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    transform: Transform,
    prior: bool,
    need: Sequence[bool],
) -> list[Tensor]:
    """The gradients in z, mu, scale, prior_mu and prior_scale that are needed."""
    parameters = (mu, scale, prior_mu, prior_scale)
    dtype = compute_dtype(z, *parameters)
    # One value for all of a sample's elements, whatever rows they make up.
    spread = upstream.reshape(*upstream.shape, *([1] * (z.dim() - 2)))
    grid, packed, _alive = _pack(z, (*parameters, z, spread))
    grads = [
        fresh_like(z) if need[0] else None,
        *(
            gradient(t, mu, dtype) if t is not None and n else None
            for t, n in zip(parameters, need[1:], strict=True)
        ),
    ]
    _C.monte_carlo_kl_backward(
        grid,
        (*packed[:4], None, None, None),
        packed[4],
        settings_of(_options(z, transform), dtype),
        prior,
        packed[5],
        tuple([result(g) for g in grads]),
        torch.get_num_threads() if z.is_cpu else place(z, grid),
    )
    return fitted(grads, (z, *parameters))


def _options(z: Tensor, transform: Transform) -> Posterior:
    return Posterior(transform, z.shape[0], 1.0, 0, "", 1.0)


def _pack(
    z: Tensor, operands: Sequence[Tensor | None]
) -> tuple[tuple[int, int, int], list[Packed | None], object]:
    """The grid of one sample, and every operand over all of them."""
    (rows, cols, segments), packed, alive = pack(z.shape, 2, operands)
    return (rows // z.shape[0], cols, segments), packed, alive
