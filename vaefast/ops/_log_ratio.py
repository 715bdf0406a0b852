"""The registered operator of log p(z) - log q(z|x), and its autograd function.

`log_weights` and `monte_carlo_kl` stand on it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _args, backends
from .._args import compute_dtype, grad_needed
from ..backends._options import Transform
from ..backends.reference import log_ratio as reference
from ._autograd import by_reference, direct, needs_reference, reference_grads

_lib = torch.library.Library("vaefast", "FRAGMENT")
_TENSORS = "Tensor z, Tensor mu, Tensor scale, Tensor? prior_mu, Tensor? prior_scale"
_SETTINGS = "str param, float min_std, float[] clamp, bool prior"
_lib.define(f"log_ratio({_TENSORS}, {_SETTINGS}, str backend) -> Tensor")
_lib.define(
    f"log_ratio_backward(Tensor upstream, {_TENSORS}, {_SETTINGS}, bool[] need, str backend) "
    "-> Tensor[]"
)


def check_samples(z: Tensor, mu: Tensor) -> None:
    """Raises unless z is `[K, B, *latent]` or `[B, *latent]` for mu `[B, *latent]`."""
    _args.float_tensor("z", z)
    if z.shape != mu.shape and (z.dim() != mu.dim() + 1 or z.shape[1:] != mu.shape):
        raise ValueError(
            f"z must have mu's shape, {list(mu.shape)}, or that behind a leading sample "
            f"dimension, got {list(z.shape)}"
        )
    _args.same_device("mu", mu, z=z)


def run(
    z: Tensor,
    mu: Tensor,
    scale: Tensor,
    transform: Transform,
    *,
    prior_mu: Tensor | None = None,
    prior_scale: Tensor | None = None,
    prior: bool = True,
) -> Tensor:
    """log p(z) - log q(z|x), or -log q(z|x) where `prior` is False: `[K, B]`, or `[B]`."""
    if z.dim() == mu.dim():
        options = {"prior_mu": prior_mu, "prior_scale": prior_scale}
        return run(z.unsqueeze(0), mu, scale, transform, prior=prior, **options).squeeze(0)
    tensors = (z, mu, scale, prior_mu, prior_scale)
    backend = backends.select(z.device)
    if backend == "reference" or needs_reference() or not z.numel():
        return reference.log_ratio(*tensors, transform, prior)
    if grad_needed(*tensors):
        value: Tensor = _LogRatio.apply(*tensors, transform, prior, backend)
        return value
    return _call(tensors, transform, prior, backend)


class _LogRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *tensors, transform, prior, backend = args
        ctx.save_for_backward(*tensors)
        ctx.transform, ctx.prior, ctx.backend = transform, prior, backend
        return _call(tuple(tensors), transform, prior, backend)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        tensors, need = ctx.saved_tensors, list(ctx.needs_input_grad[:5])
        transform, prior, backend = ctx.transform, ctx.prior, ctx.backend
        if by_reference(upstream):
            grads = reference_grads(
                lambda z, mu, scale, prior_mu, prior_scale: (
                    reference.log_ratio(z, mu, scale, prior_mu, prior_scale, transform, prior),
                ),
                tensors,
                need,
                (upstream,),
            )
            return (*grads, None, None, None)
        if direct(upstream, *tensors):
            module = backends.load(backend, "log_ratio")
            made = module.log_ratio_backward(upstream, *tensors, transform, prior, need)
        else:
            made = torch.ops.vaefast.log_ratio_backward(
                upstream, *tensors, *transform, prior, need, backend
            )
        found = iter(made)
        return (*[next(found) if n else None for n in need], None, None, None)


def _call(
    tensors: tuple[Tensor | None, ...], transform: Transform, prior: bool, backend: str
) -> Tensor:
    result: Tensor
    if direct(*tensors):
        result = backends.load(backend, "log_ratio").log_ratio(*tensors, transform, prior)
    else:
        result = torch.ops.vaefast.log_ratio(*tensors, *transform, prior, backend)
    return result


def _forward(*args: Any) -> Tensor:
    *tensors, param, min_std, clamp, prior, backend = args
    transform = Transform(param, min_std, tuple(clamp))
    result: Tensor = backends.load(backend, "log_ratio").log_ratio(*tensors, transform, prior)
    return result


def _backward(*args: Any) -> list[Tensor]:
    *tensors, param, min_std, clamp, prior, need, backend = args
    transform = Transform(param, min_std, tuple(clamp))
    module = backends.load(backend, "log_ratio")
    grads: list[Tensor] = module.log_ratio_backward(*tensors, transform, prior, need)
    return grads


def _forward_fake(*args: Any) -> Tensor:
    z: Tensor = args[0]
    return z.new_empty(z.shape[:2], dtype=compute_dtype(*args[:5]))


def _backward_fake(*args: Any) -> list[Tensor]:
    tensors, need = args[1:6], args[-2]
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t, n in zip(tensors, need, strict=True)
        if n
    ]


_lib.impl("log_ratio", _forward, "CompositeExplicitAutograd")
_lib.impl("log_ratio_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("vaefast::log_ratio", _forward_fake, lib=_lib)
torch.library.register_fake("vaefast::log_ratio_backward", _backward_fake, lib=_lib)
