"""What `validate=True` checks: that targets and parameters are such as the likelihood takes, where
a mask does not leave them out. Each check waits for the device."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .. import _args
from .._args import Clamp
from ..backends.reference.sample_kl import clamped
from ..likelihoods import REAL, Domain, Likelihood, RowLikelihood


def check_target(
    target: Tensor, model: Likelihood, inside: Tensor | None = None, mask: Tensor | None = None
) -> None:
    """Raises ValueError where the target holds a value outside the likelihood's support, and warns
    of bytes that look like bits.

    `inside`: what the likelihood says of the target where that depends on the parameters; `mask`,
    aligned with the likelihood's elements.
    """
    values = target.values() if target.layout == torch.sparse_csr else target
    outside = ~(model.support(values) if inside is None else inside)
    shown = None if mask is None else _over_target(mask, target, model)
    if shown is not None:
        outside = outside & shown
    if bool(outside.any()):
        raise ValueError(
            f"target is outside the support of likelihood {model.name!r} in "
            f"{int(outside.sum())} of {target.numel()} elements, for example "
            f"{values[outside].flatten()[0].item()}"
        )
    if values.dtype == torch.uint8 and model.uint8_scale != 1:
        seen = values if shown is None else values[shown.expand(values.shape)]
        if seen.numel() and int(seen.max()) == 1:
            # Of the line that called the operator.
            warnings.warn(
                "target is uint8 and holds nothing but 0 and 1, which are read as pixels, 0 and "
                f"1/{model.uint8_scale:g}; for binary data give target.bool()",
                stacklevel=4,
            )


def check_params(
    named: dict[str, Tensor], model: Likelihood, mask: Tensor | None, elements: torch.Size
) -> None:
    """Raises ValueError where a parameter holds a value that it must not have.

    `mask`, aligned with the likelihood's `elements` `[B, ...]`.
    """
    for name, value in named.items():
        domain = model.domain(name)
        if domain is not REAL:
            check_domain(f"{name} of likelihood {model.name!r}", value, domain, mask, elements)


def check_scale(
    name: str,
    scale: Tensor | None,
    param: str,
    clamp: Clamp = None,
    mask: Tensor | None = None,
    shape: torch.Size | None = None,
) -> None:
    """Raises ValueError where a scale that is sigma or sigma^2 itself is not positive.

    `mask`, aligned with the posterior's `shape`; None for no mask.
    """
    if scale is not None and param in ("std", "var"):
        value = clamped(scale, _args.clamp_bounds(clamp))
        what = f"{name} under param={param!r}"
        check_domain(what, value, Domain("positive", lambda t: t > 0), mask, shape or scale.shape)


def check_domain(
    what: str, value: Tensor, domain: Domain, mask: Tensor | None, elements: torch.Size
) -> None:
    """Raises ValueError, with `what` as the name, where `value` is outside the domain."""
    outside = ~domain.inside(value.detach())
    if mask is not None:
        shape = torch.broadcast_shapes(value.shape, elements)
        outside, value = outside.expand(shape) & mask, value.expand(shape)
    if bool(outside.any()):
        raise ValueError(
            f"{what} must be {domain.words}, got {value[outside].flatten()[0].item()} in "
            f"{int(outside.sum())} of {value.numel()} elements"
        )


def _over_target(mask: Tensor, target: Tensor, model: Likelihood) -> Tensor:
    """The mask over the target's own elements, or over the values that a sparse one stores."""
    elements = model.elements(target)
    mask = mask.expand(elements)
    if target.layout == torch.sparse_csr:
        rows = torch.repeat_interleave(
            torch.arange(len(target), device=target.device), target.crow_indices().diff()
        )
        return mask[rows] if mask.dim() == 1 else mask[rows, target.col_indices()]
    if isinstance(model, RowLikelihood) and len(elements) < target.dim():
        return mask.unsqueeze(model.class_dim)
    return mask
