"""`linear_nll` in chunks of rows: the logits of one chunk are all that ever exists of them.

A chunk's logits are made by one GEMM, become loss and gradient in place, and are consumed by the
two GEMMs of the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._args import stored_dtype
from . import load
from ._options import LinearNllOptions, NllOptions, RowNllOptions
from .reference import linear_nll as reference

Maybe = Sequence[Tensor | None]

# Bytes of a slice of a weight's gradient in 16 bits, on its way into the sum in 32.
_SLICE = 1 << 23


def linear_nll(
    h: Tensor,
    weights: Maybe,
    biases: Maybe,
    scalar: Tensor | None,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: LinearNllOptions,
    need: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    """The loss of each row of h [R, H], and the gradients of grad_factor times their sum.

    `need` is for h, each of the weights, each of the biases, and the scalar. The gradients come
    in float32, or float64 where that is the type of the GEMMs.
    """
    native = backend == "native" and h.is_cpu
    target_rows = len(target[0]) - (len(target) == 3)
    options = options._replace(rows=_even(options.rows, target_rows))
    sums = _Sums(h, weights, biases, scalar, options, need, native)
    narrow = [None if w is None else w.to(options.dtype) for w in weights]
    added = [
        b if b is None or w is None else b.to(options.dtype)
        for w, b in zip(weights, biases, strict=True)
    ]
    chunk = _Chunk(narrow, added, options, h.device, sums.any, native)
    losses = h.new_empty(len(h), dtype=sums.dtype)
    for first in range(0, len(h), target_rows or 1):
        for start in range(0, target_rows, options.rows):
            stop = min(start + options.rows, target_rows)
            rows = slice(first + start, first + stop)
            piece = h[rows].to(options.dtype)
            params = chunk.fill(piece)
            part = _part(target, mask, weight, start, stop)
            losses[rows], grads, of_scalar = _evaluate(
                params, scalar, part, options, sums.heads, sums.scalar, chunk.grads, backend
            )
            if sums.scalar is not None and of_scalar is not None:
                sums.scalar += of_scalar
            for head, grad in enumerate(grads):
                if grad is not None:
                    _through_link(grad, params[head], options.links[head])
                    sums.add(head, grad, rows, piece, narrow[head])
    return [losses, *sums.found()]


def _even(most: int, rows: int) -> int:
    """Rows of a chunk, at most `most`, spread evenly over as few chunks as it takes."""
    chunks = -(-rows // most)
    return -(-rows // chunks) if chunks else 1


class _Sums:
    """The gradients, to which each chunk adds."""

    def __init__(
        self,
        h: Tensor,
        weights: Maybe,
        biases: Maybe,
        scalar: Tensor | None,
        options: LinearNllOptions,
        need: Sequence[bool],
        native: bool,
    ) -> None:
        self.dtype = torch.promote_types(options.dtype, torch.float32)
        given = (h, *weights, *biases, scalar)
        rooms = [
            _room(t.shape, self.dtype, h.device, native) if t is not None and n else None
            for t, n in zip(given, need, strict=True)
        ]
        count = len(weights)
        self.h, self.scalar = rooms[0], rooms[-1]
        self.weights, self.biases = rooms[1 : 1 + count], rooms[1 + count : -1]
        self.any = any(room is not None for room in rooms)
        # Which heads' gradients are asked for.
        self.heads = [
            (self.h is not None and w is not None) or of_w is not None or of_b is not None
            for w, of_w, of_b in zip(weights, self.weights, self.biases, strict=True)
        ]
        # A weight's gradient may be the largest tensor there is: it is not zeroed, but written
        # by the first chunk. Likewise h's rows by the first head.
        self.begun = [len(h) == 0] * count
        self.first_head = next((j for j, w in enumerate(weights) if w is not None), None)
        zeroed = [*self.biases, self.scalar]
        zeroed += [*self.weights] if len(h) == 0 else []
        zeroed += [self.h] if self.first_head is None else []
        for room in zeroed:
            if room is not None:
                room.zero_()

    def add(self, head: int, grad: Tensor, rows: slice, h: Tensor, w: Tensor | None) -> None:
        """What the gradient [C, V] of a head's output contributes, from the rows h [C, H]."""
        of_w, of_b = self.weights[head], self.biases[head]
        if of_b is not None:
            of_b.add_(grad.sum(0, dtype=of_b.dtype))
        if w is not None and self.h is not None:
            _add_product(self.h[rows], grad, w, head != self.first_head)
        if of_w is not None:
            _add_product(of_w, grad.t(), h, self.begun[head])
            self.begun[head] = True

    def found(self) -> list[Tensor]:
        """Those that were asked for."""
        every = (self.h, *self.weights, *self.biases, self.scalar)
        return [t for t in every if t is not None]


def _add_product(total: Tensor, a: Tensor, b: Tensor, begun: bool) -> None:
    """total = a b, or += where something is in it; in slices where the types differ."""
    if total.dtype == a.dtype:
        b = b.to(a.dtype)
        total.addmm_(a, b, beta=1 if begun else 0)
        return
    step = max(1, _SLICE // max(1, b.shape[1] * b.element_size()))
    for at in range(0, len(total), step):
        product = torch.mm(a[at : at + step], b)
        if begun:
            total[at : at + step] += product
        else:
            total[at : at + step] = product


class _Chunk:
    """The memory of a chunk's parameters, and of gradients that cannot lie there."""

    def __init__(
        self,
        weights: Maybe,
        biases: Maybe,
        options: LinearNllOptions,
        device: torch.device,
        grads: bool,
        native: bool,
    ) -> None:
        self.weights, self.biases, self.links = weights, biases, options.links
        width = next(len(t) for t in (*weights, *biases) if t is not None)

        def room(dtype: torch.dtype) -> Tensor:
            return _room((options.rows, width), dtype, device, native)

        self.params = [None if w is None else room(options.dtype) for w in weights]
        # A link's derivative is taken from the parameter itself, which must outlive the kernel,
        # and float16 holds no gradient.
        stored = stored_dtype(options.dtype)
        apart = stored != options.dtype
        self.grads = [
            room(stored) if grads and (place is None or link != "identity" or apart) else place
            for place, link in zip(self.params, self.links, strict=True)
        ]

    def fill(self, h: Tensor) -> list[Tensor]:
        """The parameters [C, V] of the rows h [C, H]."""
        params: list[Tensor] = []
        for place, w, b, link in zip(
            self.params, self.weights, self.biases, self.links, strict=True
        ):
            if w is None or place is None:
                assert b is not None
                params.append(reference.linked(b, link).expand(len(h), -1))
                continue
            out = place[: len(h)]
            if b is None:
                torch.mm(h, w.t(), out=out)
            else:
                torch.addmm(b, h, w.t(), out=out)
            if link == "exp":
                out.exp_()
            elif link == "softplus":
                torch.ops.aten.softplus.out(out, out=out)
            params.append(out)
        return params


class _Part(NamedTuple):
    """What a chunk has of the target, the mask and the weight."""

    target: Sequence[Tensor]
    mask: Tensor | None
    weight: Tensor | None


def _part(
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    start: int,
    stop: int,
) -> _Part:
    """Rows `start` to `stop`; a CSR matrix's columns and values stay whole, as where a row's lie is
    read on the device alone: on a GPU nothing waits."""
    mask = None if mask is None else mask[start:stop]
    weight = None if weight is None else weight[start:stop]
    if len(target) == 1:
        return _Part((target[0][start:stop],), mask, weight)
    starts, columns, values = target
    return _Part((starts[start : stop + 1], columns, values), mask, weight)


def _evaluate(
    params: Sequence[Tensor],
    scalar: Tensor | None,
    part: _Part,
    options: LinearNllOptions,
    need: Sequence[bool],
    into_scalar: Tensor | None,
    into: Maybe,
    backend: str,
) -> tuple[Tensor, Maybe, Tensor | None]:
    """The rows' losses, the gradients to `params`, and that to the scalar."""
    # A kernel takes no rows of nothing.
    if backend == "reference" or not params[0].numel():
        return _differentiated(params, scalar, part, options, need, into_scalar is not None)
    count, width = params[0].shape
    places = [None if t is None else t[:count] for t in into]
    in_place = backend == "native" and params[0].is_cpu
    if options.by_row:
        by_row = RowNllOptions(options.form, options.numbers, 1, "sample", 1.0, options.grad_factor)
        place = None if places[0] is None else places[0].unsqueeze(2)
        kernel = load(backend, "row_nll").row_nll
        logits = params[0].unsqueeze(2)
        found = kernel(logits, part.target, part.mask, part.weight, by_row, need[0], place)
        return found[0], [found[1].squeeze(2) if need[0] else None], None
    full, wants, stores = [*params], [*need], [*places]
    if scalar is not None:
        full.insert(options.scalar, scalar)
        wants.insert(options.scalar, into_scalar is not None)
        stores.insert(options.scalar, None)
    each = _row_options(options, options.grad_factor)
    sparse: Sequence[Tensor] = ()
    if in_place:
        *sparse, x = part.target
    else:
        x = reference.dense(part.target, width, options.dtype)
    also = {"into": stores} if in_place else {}
    loss, *grads = load(backend, "nll").nll(
        full, x, part.mask, part.weight, None, sparse, each, wants, **also
    )
    made = iter(grads)
    every = [next(made) if n else None for n in wants]
    of_scalar = every.pop(options.scalar) if scalar is not None else None
    return loss, every, None if of_scalar is None else of_scalar.sum()


def _row_options(options: LinearNllOptions, grad_factor: float) -> NllOptions:
    """An elementwise likelihood's settings for one loss per row."""
    form, numbers, _, scalar, uint8_scale, *_ = options
    return NllOptions(form, numbers, scalar, 1, uint8_scale, 0, "sample", 1.0, grad_factor)


def _differentiated(
    params: Sequence[Tensor],
    scalar: Tensor | None,
    part: _Part,
    options: LinearNllOptions,
    need: Sequence[bool],
    need_scalar: bool,
) -> tuple[Tensor, Maybe, Tensor | None]:
    """As `_evaluate`, by PyTorch's autograd on the chunk alone."""
    with torch.enable_grad():
        # Float16 holds no gradient: behind a link it may be larger than the one asked for.
        leaves = [_stored(p).requires_grad_(n) for p, n in zip(params, need, strict=True)]
        own = None if scalar is None else _stored(scalar).requires_grad_(need_scalar)
        loss = reference.likelihood(leaves, own, part.target, part.mask, part.weight, options)
        asked = [t for t in (*leaves, own) if t is not None and t.requires_grad]
        total = loss.sum() * options.grad_factor
        made = iter(torch.autograd.grad(total, asked) if asked else ())
    grads = [next(made) if n else None for n in need]
    return loss.detach(), grads, next(made) if need_scalar else None


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to(stored_dtype(tensor.dtype))


def _through_link(grad: Tensor, param: Tensor, link: str) -> None:
    """From the gradient of a parameter to that of the head's output."""
    if link == "exp":
        grad.mul_(param)
    elif link == "softplus":
        # sigmoid(a) = 1 - e^-softplus(a).
        grad.mul_(torch.expm1(-param).neg_())


def _room(shape: Sequence[int], dtype: torch.dtype, device: torch.device, native: bool) -> Tensor:
    if native:
        from .native._pack import fresh

        return fresh(shape, dtype, device)
    return torch.empty(tuple(shape), dtype=dtype, device=device)
