"""Negative log-likelihood of the data under the decoder's output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _args, backends, likelihoods, random
from .._args import Reduction
from .._explain import declined, served
from ..backends._options import NllOptions, RowNllOptions
from ..backends.reference._exact import clamp as closed_clamp
from ..likelihoods import Form, Likelihood, Params, RowLikelihood
from ..likelihoods._location import OPTIMAL_VARIANCE
from . import _nll, _plans, _row_nll
from ._nll_operator import Others
from ._plans import recording
from ._validate import check_params, check_target
from .gaussian_kl import inverse


def nll(
    params: Params,
    target: Tensor,
    likelihood: Likelihood | str,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "batchmean",
    validate: bool = False,
    seed: random.Seed | None = None,
    generator: random.Generator | None = None,
    offset: int = 0,
) -> Tensor:
    """-log p(target | params), in nats, constants included: by default its batch mean.

    Args:
        params: the decoder's output: a tensor or a tuple of tensors `[B, *data]`, or with a
            leading sample dimension, `[K, B, *data]`. Each may have its own floating dtype.
        target: `[B, *data]`, which may ask for a gradient (log q(z), a hierarchical prior's
            sample); floating, bool, or uint8 (a pixel: read as bytes and divided by
            255 in the kernel). Counts may be a `torch.sparse_csr` matrix `[B, V]`.
        likelihood: an object of `vaefast.likelihoods` or its lower-case name.
        mask: bool, broadcasts to `[B, *data]`; a `[B]` mask is one per sample.
        weight: float, likewise.
        reduction: `"none"` (per element), `"sample"` (`[B]` or `[K, B]`), `"batchmean"` (the mean
            of `"sample"`), `"sum"` or `"mean"` (over elements, or over the mask).
        validate: check that the target lies in the likelihood's support and that parameters are
            such as it takes (a rate not negative, a probability in [0, 1], a learned std positive),
            where the mask does not leave them out (waits for the device). A uint8 target of nothing
            but 0 and 1 gets a warning: for binary data it should be bool.
        seed, generator, offset: of the noise of `Bernoulli(binarize=True)`, as in `rsample`.

    Returns:
        The loss in float32, or float64 if any parameter is.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes or devices do not fit together, the likelihood is unknown, or a
            validated target or parameter has a value that it must not have.

    Example:
        >>> import torch, vaefast as vf
        >>> logits, x = torch.zeros(4, 10), torch.ones(4, 10)
        >>> round(float(vf.nll(logits, x, "bernoulli")), 4)
        6.9315

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", equation 7 and appendix C, for
    the term; each likelihood's docstring has that of its formula.
    """
    model = likelihoods.resolve(likelihood)
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a Tensor, got {type(target).__name__}")
    if isinstance(model, RowLikelihood):
        return row_nll(model, params, target, mask, weight, reduction, validate)
    beside: Others = ()
    if not (mask is weight is None):
        mask, weight = (
            _args.one_per_sample(t, target.shape) if isinstance(t, Tensor) else t
            for t in (mask, weight)
        )
        beside = (mask, weight)
    key = None
    described: tuple[Tensor, ...] = ()
    if target.layout != torch.strided:
        declined("argument", "a sparse target")
    elif _plans.takes(weight):
        graded = recording() and target.requires_grad
        described, key, plan = _nll.find(params, target, model, reduction, graded, beside)
        if plan is not None:
            if validate:
                _validate(params, target, model, mask)
            loss = _nll.run_found(plan, described, target, graded, beside)
            if reduction == "mean" and mask is not None:
                loss = _args.over_kept(loss, _args.count(target.shape), mask, target.shape)
            return loss
    given = _checked_params(params)
    form = model.form_for(given, target)
    sparse = check_layout(target)
    tensors, lead = fit(form, target, model)
    sample_shape = tensors[0].shape[lead - 1 :]
    mask, weight = _args.mask_and_weight(mask, weight, sample_shape, target)
    _args.one_of("reduction", reduction, _args.REDUCTIONS)
    if validate:
        _validate(given, target, model, mask)
    offset = _args.integer("offset", offset)
    state = None
    if model.draws_target():
        target = target.to_dense() if sparse else target
        state = random.make_state(target, target.shape[0], seed, generator)
    shape = tensors[0].shape
    if not _args.count(shape):
        declined("empty")
        served("nll", "reference", "reference")
        return of_nothing(tensors, weight, shape, lead, reduction)
    if form.name == "gaussian_optimal":
        declined("argument", "Gaussian(std='optimal'), a composition")
        return _optimal(tensors[0], target, mask, weight, form, model, lead, reduction)
    how, factor = _kernel_reduction(reduction, shape, lead)
    options = NllOptions(
        form.name,
        form.numbers,
        -1 if form.scalar is None else form.scalar,
        lead,
        model.uint8_scale,
        offset,
        how,
        factor,
        factor,
    )
    if state is not None:
        declined("argument", "a likelihood that draws its target")
        key = None
    elif form.name in backends.USER_FORMS:
        declined("argument", "a likelihood of your own")
        key = None
    elif key is not None and not _nll.are_taken(described, tensors, form.scalar):
        key = None
    loss = _nll.run(tensors, target, mask, weight, state, options, key)
    if reduction == "mean" and mask is not None:
        loss = _args.over_kept(loss, _args.count(sample_shape), mask, sample_shape)
    return loss


def row_nll(
    model: RowLikelihood,
    params: Params,
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    reduction: Reduction,
    validate: bool,
) -> Tensor:
    """`nll` of a likelihood with a class dimension: its elements are positions."""
    sparse = check_layout(target)
    if sparse and not model.takes_sparse:
        raise ValueError(f"target of likelihood {model.name!r} must be dense, got sparse")
    key, plan, given = None, None, (mask, weight)
    if sparse:
        declined("argument", "a sparse target")
    else:
        key, plan = _row_nll.find(params, target, given, model, reduction)
    if plan is not None:
        if validate:
            check_target(target, model, model.inside(params, target), mask)
        loss = _row_nll.run_found(plan, params, target, mask, weight)
        if reduction == "mean" and mask is not None:
            loss = _args.over_kept(loss, _args.count(mask.shape), mask, mask.shape)
        return loss
    rows = model.rows(params, target)
    positions, lead = rows.positions, rows.lead
    per_sample = positions[lead - 1 :]
    mask, weight = _args.mask_and_weight(mask, weight, per_sample, target)
    _args.one_of("reduction", reduction, _args.REDUCTIONS)
    if validate:
        check_target(target, model, model.inside(params, target), mask)
    if not _args.count(positions):
        declined("empty")
        served("row_nll", "reference", "reference")
        return of_nothing((rows.params,), weight, positions, lead, reduction)
    how, factor = _kernel_reduction(reduction, positions, lead)
    inner = rows.params.shape[2]
    flat = (_args.count(per_sample) // inner, inner)
    mask = None if mask is None else mask.expand(per_sample).reshape(flat)
    weight = None if weight is None else weight.expand(per_sample).reshape(flat)
    options = RowNllOptions(rows.form, rows.numbers, rows.segments, how, factor, factor)
    shape = {"none": positions, "sample": positions[:lead]}.get(reduction, torch.Size())
    own = (*likelihoods.as_tuple(params), *given, target)
    loss = _row_nll.run(rows.params, rows.target, mask, weight, options, key, own, shape)
    if reduction in ("none", "sample"):
        return loss.view(shape)
    if reduction == "mean" and mask is not None:
        loss = _args.over_kept(loss, _args.count(per_sample), mask, mask.shape)
    return loss


def _validate(
    params: Params, target: Tensor, model: Likelihood, mask: Tensor | None = None
) -> None:
    check_target(target, model, mask=mask)
    named = model.named_params(likelihoods.as_tuple(params))
    check_params(named, model, mask, target.shape)


def of_nothing(
    params: Sequence[Tensor | None],
    weight: Tensor | None,
    shape: torch.Size,
    lead: int,
    reduction: str,
) -> Tensor:
    """The loss of no elements, of `shape`: 0, with gradients of 0 to what is given.

    No kernel is called: an empty tensor has no address.
    """
    dtype = _args.compute_dtype(*params)
    none = [t.reshape(-1)[:0].to(dtype) for t in (*params, weight) if t is not None]
    size = {"none": shape, "sample": shape[:lead]}.get(reduction, torch.Size())
    return torch.cat(none).sum().expand(size).clone()


def check_layout(target: Tensor) -> bool:
    """True for a sparse target, which must be a CSR matrix.

    Raises:
        ValueError: it is sparse in another way.
    """
    if target.layout == torch.strided:
        return False
    if target.layout != torch.sparse_csr or target.dim() != 2:
        raise ValueError(
            f"a sparse target must be a [B, V] matrix in torch.sparse_csr, got {target.layout} of "
            f"shape {list(target.shape)}"
        )
    return True


def _checked_params(params: Params) -> tuple[Tensor, ...]:
    if isinstance(params, Tensor):
        _args.float_tensor("params", params)
        return (params,)
    if not isinstance(params, (tuple, list)):
        raise TypeError(
            f"params must be a Tensor or a tuple of Tensors, got {type(params).__name__}"
        )
    tensors = tuple(params)
    for index, tensor in enumerate(tensors):
        _args.float_tensor(f"params[{index}]" if len(tensors) > 1 else "params", tensor)
    return tensors


def fit(form: Form, target: Tensor, model: Likelihood) -> tuple[tuple[Tensor, ...], int]:
    """The parameters at their common shape, and how many leading dimensions index samples."""
    if target.dtype not in model.target_dtypes:
        raise TypeError(
            f"target of likelihood {model.name!r} must be one of "
            f"{', '.join(map(str, model.target_dtypes))}, got {target.dtype}"
        )
    if len(form.params) == 1 and form.scalar is None:
        (param,) = form.params
        fits = target.dim() > 0 and _args.same_shape(param.shape, target.shape)
        if fits and param.device == target.device:
            return form.params, 1
    full = [p for index, p in enumerate(form.params) if index != form.scalar]
    shape = full[0].shape
    if not all(_args.same_shape(p.shape, shape) for p in full):
        try:
            shape = torch.broadcast_shapes(*(p.shape for p in full))
        except RuntimeError:
            got = " and ".join(str(list(p.shape)) for p in full)
            raise ValueError(f"params must have one shape or broadcast, got {got}") from None
    lead = 1 + len(shape) - target.dim()
    if target.dim() < 1 or lead not in (1, 2) or shape[lead - 1 :] != target.shape:
        raise ValueError(
            "params must have target's shape, or that behind a leading sample dimension, got "
            f"params {list(shape)} and target {list(target.shape)}"
        )
    for index, param in enumerate(form.params):
        _args.same_device("params", target, **{f"params[{index}]": param})
    tensors = tuple(
        p if index == form.scalar or _args.same_shape(p.shape, shape) else _args.expanded(p, shape)
        for index, p in enumerate(form.params)
    )
    return tensors, lead


def _kernel_reduction(reduction: str, shape: torch.Size, lead: int) -> tuple[str, float]:
    match reduction:
        case "none":
            return "elem", 1.0
        case "sample":
            return "sample", 1.0
        case "sum":
            return "sum", 1.0
        case "batchmean":
            return "sum", inverse(_args.count(shape[:lead]))
        case _:
            return "sum", inverse(_args.count(shape))


def _optimal(
    mean: Tensor,
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    form: Form,
    model: Likelihood,
    lead: int,
    reduction: str,
) -> Tensor:
    """The Gaussian at std^2 = mean squared error (sigma-VAE, Rybkin et al. 2021, section 4).

    With S_b the squared error of sample b and n_b its (weighted) number of elements,
    -log p = S_b / (2 std^2) + n_b (log std + constant), std^2 = sum S / sum n. The kernel gives
    S; what follows is on `[B]` tensors, and its gradient flows through std too. std^2 is at least
    `OPTIMAL_VARIANCE`, with no gradient below.
    """
    squares = NllOptions(
        "gaussian_fixed", (1.0, 0.0), -1, lead, model.uint8_scale, 0, "sample", 1.0, 1.0
    )
    if reduction == "none":
        squares = squares._replace(reduce="elem")
    errors = _nll.run((mean,), target, mask, weight, None, squares)
    data = mean.shape[lead - 1 :]
    counts = _counts(data, mask, weight, errors, per_element=reduction == "none")
    copies = mean.shape[0] if lead == 2 else 1
    total = counts.sum() * copies
    # With no element the floor stands in, and nothing is multiplied by it.
    variance = errors.sum() / torch.where(total > 0, total, 1.0)
    variance = closed_clamp(variance, low=OPTIMAL_VARIANCE)
    log_std = 0.5 * torch.log(variance)
    losses = errors / (2 * variance) + counts * (log_std + form.numbers[0])
    match reduction:
        case "none" | "sample":
            if mask is None:
                return losses
            # Through std the upstream gradient of what is left out would reach every element.
            kept = mask.expand(data)
            kept = kept if reduction == "none" else kept.reshape(data[0], -1).any(-1)
            return torch.where(kept, losses, 0.0)
        case "sum":
            return losses.sum()
        case "batchmean":
            return losses.mean()
        case _:
            loss = losses.sum() / copies
            if mask is None:
                return loss * inverse(_args.count(data))
            return _args.over_kept(loss, 1, mask, data)


def _counts(
    data: torch.Size,
    mask: Tensor | None,
    weight: Tensor | None,
    like: Tensor,
    per_element: bool,
) -> Tensor:
    """The weight of each element of the data `[B, ...]`, or their sum in each sample."""
    if mask is None and weight is None and not per_element:
        return like.new_full((data[0],), float(_args.count(data[1:])))
    counts = like.new_ones(()) if weight is None else weight.to(like.dtype)
    if mask is not None:
        counts = torch.where(mask, counts, 0.0)
    counts = counts.expand(data)
    return counts if per_element else counts.reshape(data[0], -1).sum(-1)
