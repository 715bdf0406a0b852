"""A linear layer and the likelihood of its output, whose logits are never stored whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor

from .. import _args, likelihoods
from .._args import Reduction
from .._explain import declined, served
from .._torch import has_autocast
from ..backends._options import LinearNllOptions
from ..backends.reference.linear_nll import heads
from ..likelihoods import REAL, Likelihood, RowLikelihood
from . import _linear_nll
from ._validate import check_domain, check_params, check_target
from .gaussian_kl import inverse
from .nll import check_layout, fit, of_nothing

Link = Literal["identity", "exp", "softplus"]
LINKS = ("identity", "exp", "softplus")
Heads = Tensor | None | Sequence[Tensor | None]

# A weight's gradient is there in any case: a chunk of a quarter of it costs little beside it, and
# every chunk less is a pass over that gradient less.
_SHARE, _LEAST, _MOST = 4, 32 << 20, 256 << 20


def linear_nll(
    h: Tensor,
    weight: Heads,
    bias: Heads,
    target: Tensor,
    likelihood: Likelihood | str,
    *,
    link: Link | Sequence[Link] | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "batchmean",
    memory: int | None = None,
    validate: bool = False,
) -> Tensor:
    """-log p(target | h W^T + b), in nats: a decoder's last linear layer and its likelihood in one.

    Equal to `nll(F.linear(h, weight, bias), target, likelihood)`, but in chunks of rows: a chunk's
    logits are made by one GEMM, turned in place into loss and gradient, and consumed by the two
    GEMMs of the backward pass. So the peak is a chunk, not three or four tensors of the logits'
    size.

    Args:
        h: `[B, *, H]`, or with a leading sample dimension `[K, B, *, H]`.
        weight, bias: `[V, H]` and `[V]` or None, as `torch.nn.Linear` has them; for a likelihood
            of several parameters a tuple of each, one per parameter. A head whose weight is None
            is its bias: a parameter `[V]` that every row shares, as scvi-tools' dispersion.
        target: `[B, *, V]` (`[B, *]` for `Categorical`), as in `nll`; counts may be a
            `torch.sparse_csr` matrix `[B, V]`.
        likelihood: as in `nll`. A class dimension must be the last one.
        link: from a head's output to its parameter: `"identity"`, `"exp"` or `"softplus"`, or one
            per head. None: exp where the parameter must be positive (a rate, mu, theta).
        mask, sample_weight: as `mask` and `weight` in `nll`; `weight` is the layer's here.
        reduction: `"sample"`, `"batchmean"`, `"sum"` or `"mean"`; `"none"` where a row is an
            element (`Categorical`, `Multinomial`). A loss per row costs a second pass over the
            logits in the backward.
        memory: bytes that a chunk may take; one row is always allowed. None: a quarter of the
            weights' size, but 32 MiB at least and 256 MiB at most.
        validate: as in `nll`.

    Returns:
        The loss, float32, or float64 if h is. Under autocast the GEMMs are in its dtype, the loss
        and the sums of the gradients in float32.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes or devices do not fit together, or the likelihood needs all logits at
            once (`Gaussian(std="optimal")`) or draws its target (`Bernoulli(binarize=True)`).

    Example:
        >>> import torch, vaefast as vf
        >>> decoder = torch.nn.Linear(20, 50000)
        >>> h, x = torch.randn(8, 20), torch.zeros(8, 50000)
        >>> loss = vf.linear_nll(h, decoder.weight, decoder.bias, x, "multinomial")
        >>> loss.backward()
        >>> decoder.weight.grad.shape
        torch.Size([50000, 20])

    Source: the idea of a fused linear layer and loss: Hsu et al. 2024, "Liger Kernel", and Wijmans
    et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models".
    """
    model = likelihoods.resolve(likelihood)
    _args.one_of("reduction", reduction, _args.REDUCTIONS)
    if reduction == "none" and not isinstance(model, RowLikelihood):
        raise ValueError(
            "reduction='none' would store what linear_nll avoids; take 'sample' or another"
        )
    weights, biases, width = _heads(h, weight, bias)
    links = links_for(link, model, len(weights))
    dtype = _gemm_dtype(h)
    # The parameters' shape without their memory.
    params = tuple(h.new_empty((), dtype=dtype).expand(*h.shape[:-1], width) for _ in weights)
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a Tensor, got {type(target).__name__}")
    sparse = check_layout(target)
    if model.draws_target():
        raise ValueError("linear_nll takes a target as it is; draw it before, without binarize")
    scalar: Tensor | None = None
    index, each = -1, width
    if isinstance(model, RowLikelihood):
        if sparse and not model.takes_sparse:
            raise ValueError(f"target of likelihood {model.name!r} must be dense, got sparse")
        if len(params) > 1:
            raise ValueError(f"likelihood {model.name} takes 1 head, got {len(params)}")
        rows = model.rows(params[0], target)
        if rows.params.shape[1:] != (width, 1):
            raise ValueError(f"the class dimension must be the last, got {model}")
        form, numbers, lead = rows.form, rows.numbers, rows.lead
        parts = _csr(target) if sparse else rows.target
        elements, each = rows.positions[lead - 1 :], 1
        inside = model.inside(params[0], target) if validate else None
    else:
        if isinstance(model, likelihoods.Gaussian) and model.std == "optimal":
            raise ValueError("linear_nll needs a std that does not depend on the whole batch")
        found = model.form_for(params, target)
        _, lead = fit(found, target, model)
        form, numbers, elements = found.name, found.numbers, target.shape
        if found.scalar is not None:
            index, scalar = found.scalar, found.params[found.scalar]
        inside = None
        parts = _csr(target) if sparse else (target.reshape(_args.count(target.shape[:-1]), width),)
    shape = torch.Size((*h.shape[: lead - 1], *elements))
    mask, sample_weight = _args.mask_and_weight(mask, sample_weight, elements, target)
    if validate:
        check_target(target, model, inside, mask)
        check_params(model.named_params(()), model, mask, elements)
    if not _args.count(shape):
        declined("empty")
        served("linear_nll", "reference", "reference")
        leaves = (h, *weights, *biases, scalar)
        return of_nothing(leaves, sample_weight, shape, lead, reduction)
    flat = h.reshape(_args.count(h.shape[:-1]), h.shape[-1])
    by_row = _by_row(mask, elements, each)
    if by_row is not None:
        # Of a row that is left out whole, nothing may enter the weights' gradients.
        kept = by_row.any(1, keepdim=True).repeat(len(flat) // len(by_row), 1)
        flat = torch.where(kept, flat, 0.0)
    options = LinearNllOptions(
        form,
        numbers,
        isinstance(model, RowLikelihood),
        index,
        model.uint8_scale,
        links,
        dtype,
        _rows(memory, weights, links, width, dtype),
        1.0,
    )
    if validate:
        _check_heads(flat, weights, biases, by_row, model, options)
    loss = _linear_nll.run(
        flat,
        weights,
        biases,
        scalar,
        parts,
        by_row,
        _by_row(sample_weight, elements, each),
        options,
        _factor(reduction, shape, lead, mask),
    )
    if reduction == "mean" and mask is not None:
        copies = _args.count(shape) // _args.count(elements)
        return _args.over_kept(loss / copies, 1, mask, elements)
    if reduction == "none":
        return loss.view(shape)
    if reduction == "sample":
        return loss.view(*shape[:lead], -1).sum(-1)
    return loss


@torch.no_grad()
def _check_heads(
    h: Tensor,
    weights: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    mask: Tensor | None,
    model: Likelihood,
    options: LinearNllOptions,
) -> None:
    """Raises ValueError where a head without a link gives a parameter that it must not be."""
    every = zip(model.param_names, weights, biases, options.links, strict=False)
    for name, w, b, link in every:
        domain = model.domain(name)
        if domain is REAL or link != "identity":
            continue
        for start in range(0, len(h), options.rows):
            value = heads(h[start : start + options.rows], w, b, options.dtype)
            shown = None
            if mask is not None:
                place = torch.arange(start, start + len(value), device=h.device) % len(mask)
                shown = mask[place]
            what = f"{name} of likelihood {model.name!r}"
            check_domain(what, value, domain, shown, value.shape)


def _factor(reduction: str, shape: torch.Size, lead: int, mask: Tensor | None) -> float | None:
    match reduction:
        case "none" | "sample":
            return None
        case "sum":
            return 1.0
        case "batchmean":
            return inverse(_args.count(shape[:lead]))
        case _:
            return 1.0 if mask is not None else inverse(_args.count(shape))


def _by_row(tensor: Tensor | None, elements: torch.Size, width: int) -> Tensor | None:
    """A mask or weight as [T, V], or [T, 1] where it is the same along a row."""
    if tensor is None:
        return None
    if width > 1 and tensor.dim() == len(elements) and tensor.shape[-1] == 1:
        elements, width = torch.Size((*elements[:-1], 1)), 1
    return tensor.expand(elements).reshape(-1, width)


def _csr(target: Tensor) -> tuple[Tensor, ...]:
    parts = target.crow_indices(), target.col_indices(), target.values()
    return parts[0].long(), parts[1].long(), parts[2].contiguous()


def _gemm_dtype(h: Tensor) -> torch.dtype:
    """h's, or autocast's."""
    device = h.device.type
    if h.dtype != torch.float64 and has_autocast(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return h.dtype


def _rows(
    memory: int | None,
    weights: Sequence[Tensor | None],
    links: Sequence[str],
    width: int,
    dtype: torch.dtype,
) -> int:
    """The rows of a chunk that the memory allows."""
    if memory is None:
        size = sum(_args.count(w.shape) * w.dtype.itemsize for w in weights if w is not None)
        memory = min(max(size // _SHARE, _LEAST), _MOST)
    elif isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, got {memory!r}")
    tensors = sum(
        1 if w is not None and link == "identity" else 1 + (w is not None)
        for w, link in zip(weights, links, strict=True)
    )
    return max(1, memory // max(1, width * dtype.itemsize * tensors))


def links_for(
    link: Link | Sequence[Link] | None, model: Likelihood, heads: int
) -> tuple[Link, ...]:
    """One link per head; None: exp where the parameter must be positive."""
    if link is None:
        names = model.positive_params()
        given = ("exp" if name in names else "identity" for name in model.param_names)
        return cast(tuple[Link, ...], tuple(given)[:heads])
    links = (link,) * heads if isinstance(link, str) else tuple(link)
    for one in links:
        _args.one_of("link", one, LINKS)
    if len(links) != heads:
        raise ValueError(f"link must be one for all heads or one per head, got {len(links)}")
    return links


def _heads(
    h: Tensor, weight: Heads, bias: Heads
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...], int]:
    """The weights and biases of all heads, and their common V."""
    _args.float_tensor("h", h)
    if h.dim() < 2:
        raise ValueError(f"h must be [B, *, H], got {list(h.shape)}")
    weights = (weight,) if weight is None or isinstance(weight, Tensor) else tuple(weight)
    biases = (bias,) if bias is None or isinstance(bias, Tensor) else tuple(bias)
    if len(biases) != len(weights):
        if biases != (None,):
            raise ValueError(
                f"weight and bias must be one per head, got {len(weights)} and {len(biases)}"
            )
        biases = (None,) * len(weights)
    width: int | None = None
    for j, (w, b) in enumerate(zip(weights, biases, strict=True)):
        if w is None and b is None:
            raise ValueError(f"head {j} has neither a weight nor a bias")
        for name, value, dims in ((f"weight[{j}]", w, 2), (f"bias[{j}]", b, 1)):
            if value is None:
                continue
            _args.float_tensor(name, value)
            _args.same_device("h", h, **{name: value})
            width = len(value) if width is None and value.dim() == dims else width
            want = (width, h.shape[-1])[:dims]
            if tuple(value.shape) != want:
                raise ValueError(f"{name} must be {list(want)}, got {list(value.shape)}")
    assert width is not None
    return weights, biases, width
