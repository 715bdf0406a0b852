"""`row_nll` by the compiled core."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _C
from ..._args import stored_dtype
from .._options import RowNllOptions
from ..layout import dense_strides
from ._pack import DTYPES, REDUCE
from ._place import place_with
from ._plan import LIKE, Operand, is_dense, is_on_cpu, operand_of, room

_FORMS = {"categorical": 0, "multinomial": 1, "logistic_mixture": 3}
_SPARSE = 2


def plan(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: RowNllOptions,
    need: bool,
) -> Plan:
    """The plan of a call; `need`: of its gradient too."""
    keys = tuple([operand_of(t) for t in (params, mask, weight, *target)])
    # The kernels write a gradient in the type of what they read.
    widened = need and stored_dtype(params.dtype) != params.dtype
    return _made(keys, widened, options, params.device)


@functools.lru_cache(maxsize=1024)
def _made(
    keys: tuple[Operand, ...], widened: bool, options: RowNllOptions, device: torch.device
) -> Plan:
    return Plan(keys, widened, options, device)


class Plan:
    """A call made ready but for its tensors: `forward` gives the loss, and beside it the gradient
    for an upstream gradient of 1."""

    operator = "row_nll"
    backend = "native"

    __slots__ = (
        *("options", "casts", "copies", "loss", "_geometry", "_settings", "_dtypes", "_stored"),
        *("_loss", "_loss_like", "_grad", "_on_cpu", "_wide"),
    )

    def __init__(
        self, keys: tuple[Operand, ...], widened: bool, options: RowNllOptions, device: torch.device
    ) -> None:
        params, mask, weight, *target = keys
        assert params is not None and target[-1] is not None
        shape, strides, own = tuple(params[0]), params[1], params[2]
        rows, classes, inner = shape
        dtype = torch.float64 if own == torch.float64 else torch.float32
        stored = stored_dtype(own)
        apart = strides[1] != 1 < classes if inner == 1 else strides[2] != 1
        if widened or apart:
            strides = dense_strides(shape)
        sparse = len(target) == 3
        first = target[0]
        assert first is not None
        values, value_dtype = target[-1][0], target[-1][2]
        # Whether what a kernel reads is another tensor than the given one.
        self.copies = (
            widened
            or apart
            or not all(k is None or is_dense(k) for k in (mask, weight, *target))
            or (weight is not None and weight[2] != dtype)
            or (sparse and any(k is not None and k[2] != torch.int64 for k in target[:2]))
        )
        self.options = options
        # Whether the gradient is stored in another dtype than that of params.
        self.casts = stored != own
        self._wide = dtype
        self._stored = stored if widened else own
        self._geometry = (
            *(rows, classes, inner, options.segments, strides[0], strides[1]),
            first[0][0] - 1 if sparse else values[0],
        )
        self._dtypes = (DTYPES[self._stored], DTYPES[value_dtype], values[0], DTYPES[stored])
        self._settings = (
            _SPARSE if sparse else _FORMS[options.form],
            options.numbers,
            REDUCE[options.reduce],
            options.factor,
            options.grad_factor,
            dtype == torch.float64,
        )
        loss = options.loss_shape(shape)
        # The loss's shape.
        self.loss = loss
        self._loss = room(loss, dtype, device)
        self._on_cpu = is_on_cpu(device)
        # One that is small is made like another: 0.4 us less than from its shape.
        self._loss_like = None
        if self._on_cpu and math.prod(loss) <= LIKE:
            self._loss_like = torch.empty(loss, dtype=dtype, device=device)
        self._grad = room(shape, stored, device, params)

    def forward(
        self,
        params: Tensor,
        target: Sequence[Tensor],
        mask: Tensor | None,
        weight: Tensor | None,
        need: bool,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The loss, and the gradient where there is `need` of it, which may be put `into` params'
        own memory."""
        like = self._loss_like
        loss = self._loss(params) if like is None else torch.empty_like(like)
        grad = None
        if need:
            grad = self._grad(params) if into is None else into
        if self.copies:
            params, target, mask, weight = self._copied(params, target, mask, weight)
        own, of_target, stored, of_grad = self._dtypes
        starts = columns = 0
        if len(target) == 3:
            starts, columns = target[0].data_ptr(), target[1].data_ptr()
        call = (
            self._geometry,
            (params.data_ptr(), own),
            (target[-1].data_ptr(), of_target, starts, columns, stored),
            (
                0 if mask is None else mask.data_ptr(),
                0 if weight is None else weight.data_ptr(),
            ),
            self._settings,
            loss.data_ptr(),
            None if grad is None else (grad.data_ptr(), of_grad),
        )
        if self._on_cpu:
            _C.row_nll(*call, torch.get_num_threads())
        else:
            _C.row_nll(*call, place_with(params, _C.row_nll_workspace(*call)))
        return loss, grad

    def _copied(
        self, params: Tensor, target: Sequence[Tensor], mask: Tensor | None, weight: Tensor | None
    ) -> tuple[Tensor, Sequence[Tensor], Tensor | None, Tensor | None]:
        """Copies in the place of those that no kernel can walk, or that are of another dtype."""
        params = params.to(self._stored)
        if params.stride()[:2] != self._geometry[4:6] or (params.stride(2) != 1 < params.shape[2]):
            params = params.contiguous()
        *places, values = target
        return (
            params,
            (*(t.to(torch.int64).contiguous() for t in places), values.contiguous()),
            None if mask is None else mask.contiguous(),
            None if weight is None else weight.to(self._wide).contiguous(),
        )


def row_nll(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: RowNllOptions,
    need: bool,
    into: Tensor | None = None,
) -> list[Tensor]:
    """The loss and, where needed, its gradient, which may be put `into` params' own memory."""
    made = plan(params, target, mask, weight, options, need)
    loss, grad = made.forward(params, target, mask, weight, need, into)
    return [loss] if grad is None else [loss, grad]
