"""`nll` by the compiled core."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _C
from ..._args import stored_dtype
from .._options import NllOptions
from ..layout import laid_out, places
from ._pack import DTYPES, REDUCE
from ._place import place_with
from ._plan import LIKE, Operand, is_on_cpu, kind, operand_of, packed, room

_FORMS = _C.forms()

# What is beside params and target: mask, weight, state, and of a sparse target (a CSR matrix
# [B, V], whose values the target then is) row starts and columns; () for none of them.
Others = Sequence[Tensor | None]


def plan(params: Sequence[Tensor], target: Tensor, others: Others, options: NllOptions) -> Plan:
    """The plan of a call."""
    mask, weight, _, starts, _ = others or (None,) * 5
    keys = tuple([operand_of(t) for t in (*params, target, mask, weight)])
    return _made(keys, starts is not None, options, target.device)


@functools.lru_cache(maxsize=1024)
def _made(
    keys: tuple[Operand, ...], sparse: bool, options: NllOptions, device: torch.device
) -> Plan:
    return Plan(keys, sparse, options, device)


class Plan:
    """A call made ready but for its tensors: `forward` gives the loss, and beside it the gradients
    for an upstream gradient of 1."""

    operator = "nll"
    backend = "native"

    __slots__ = (
        *(
            "options",
            "kinds",
            "casts",
            "_run",
            "_scale",
            "_copies",
            "_shape",
            "_loss",
            "_loss_like",
            "_grads",
            "_workspaces",
        ),
    )

    def __init__(
        self, keys: tuple[Operand, ...], sparse: bool, options: NllOptions, device: torch.device
    ) -> None:
        *params, target, mask, weight = keys
        first, scalar = params[0], options.scalar
        assert first is not None and target is not None
        shape, lead = tuple(first[0]), options.lead
        wide = any(k is not None and k[2] == torch.float64 for k in params)
        dtype = torch.float64 if wide else torch.float32
        operands = (*params, None if sparse else target, mask, weight)
        rows, cols, segments, found = places(
            shape, lead, tuple([k and (k[0], k[1]) for k in operands])
        )
        given = [packed(k, p) for k, p in zip(operands, found, strict=True)]
        count = len(params)
        x = (0, DTYPES[target[2]], 1, 1, 0, 1, 1.0) if sparse else given[count]
        if x is not None and target[2] == torch.uint8:
            x = (*x[:6], options.uint8_scale)
        copies = shape[0] if lead == 2 else 1
        target_rows = rows // copies if copies else 0
        grid, reduce = (rows, cols, segments), REDUCE[options.reduce]
        stored = [
            dtype if index == scalar else stored_dtype(k[2])
            for index, k in enumerate(params)
            if k is not None
        ]
        self._run, self._scale = _C.prepare_nll(
            grid,
            tuple(given[:count]),
            x,
            *given[count + 1 :],
            options.offset,
            (
                _FORMS[options.form],
                options.numbers,
                scalar,
                target_rows,
                reduce,
                options.factor,
                options.grad_factor,
                wide,
            ),
            tuple([DTYPES[d] for d in stored]),
        )
        self.options = options
        # Of what a call that found this plan saves.
        self.kinds = [kind(k, device) for k in (target, *params)]
        # Whether a gradient is stored in another dtype than its parameter's.
        self.casts = any(k is not None and k[2] != d for k, d in zip(params, stored, strict=True))
        self._shape = shape
        self._copies = [(i, p) for i, p in enumerate(found) if p is not None and p.copy]
        loss = options.loss_shape(shape)
        self._loss = room(loss, dtype, device)
        # One that is small is made like another: 0.4 us less than from its shape.
        self._loss_like = None
        if is_on_cpu(device) and math.prod(loss) <= LIKE:
            self._loss_like = torch.empty(loss, dtype=dtype, device=device)
        # A learned scalar's gradient is a number per sample.
        self._grads = [
            room(shape[:lead] if index == scalar else k[0], d, device, k)
            for index, (k, d) in enumerate(zip(params, stored, strict=True))
            if k is not None
        ]
        # Bytes, without and with the gradient of a learned scalar.
        self._workspaces: tuple[int, ...] = ()
        if not is_on_cpu(device):
            self._workspaces = tuple(
                [
                    _C.workspace(grid, reduce, scalar_grad, target_rows)
                    if reduce > 1 or scalar_grad
                    else 0
                    for scalar_grad in (False, True)
                ]
            )

    def forward(
        self,
        params: Sequence[Tensor],
        target: Tensor,
        others: Others,
        need: Sequence[bool],
        into: Sequence[Tensor | None] = (),
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The loss, and the gradients that are needed, each None else; (): none is. They may be put
        `into` other memory."""
        like = self._loss_like
        loss = self._loss(target) if like is None else torch.empty_like(like)
        grads: Sequence[Tensor | None] = ()
        if into:
            scalar = self.options.scalar
            grads = [
                None if not n else make(p) if index == scalar else own
                for index, (make, p, n, own) in enumerate(
                    zip(self._grads, params, need, into, strict=True)
                )
            ]
        elif True in need:
            grads = [
                make(p) if n else None for make, p, n in zip(self._grads, params, need, strict=True)
            ]
        rest = None
        if others or self._copies:
            mask, weight, state, starts, columns = others or (None,) * 5
            given: list[Any] = [*params, target, mask, weight]
            for index, place in self._copies:
                given[index] = laid_out(given[index], place, self._shape)
            *params, target, mask, weight = given
            rest = (mask, weight, state, state is not None and state.dim() > 1, starts, columns)
        where: Any
        if self._workspaces:
            scalar = self.options.scalar
            with_scalar = scalar >= 0 and bool(grads) and grads[scalar] is not None
            where = place_with(target, self._workspaces[with_scalar])
        else:
            where = torch.get_num_threads()
        self._run(where, loss, target, params, grads, rest)
        return loss, grads

    def scale(self, grads: Sequence[Tensor | None], upstream: Tensor) -> None:
        """What `forward` gave beside the loss, times one number, in place, by one launch where all
        are of one dtype. A learned scalar's are not to be among them."""
        where: Any = place_with(upstream, 0) if self._workspaces else torch.get_num_threads()
        self._scale(where, upstream, DTYPES[upstream.dtype], grads)


def nll(
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    sparse: Sequence[Tensor],
    options: NllOptions,
    need: Sequence[bool],
    into: Sequence[Tensor | None] = (),
) -> list[Tensor]:
    """The loss and the needed gradients, which may be put `into` the parameters' own memory.

    `sparse`: (row starts, columns) of a CSR matrix [B, V], whose values `target` are; on CPU.
    """
    others = (mask, weight, state, *(sparse or (None, None)))
    made = plan(params, target, others, options)
    loss, grads = made.forward(params, target, others, need, into if any(need) else ())
    return [loss, *[g for g in grads if g is not None]]
