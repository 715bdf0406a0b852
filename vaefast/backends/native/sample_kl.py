"""`sample_kl` by the compiled core."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _C
from ..._looks import Looks
from .._options import Posterior, z_shape
from ..layout import Place, dense_strides, fitted, laid_out, places
from ._pack import DTYPES, REDUCE
from ._place import place_with
from ._plan import LIKE, Operand, Room, is_dense, is_on_cpu, kind, operand_of, packed, room
from ._posterior import settings_of

# The core's kPriorBlocks.
_BLOCKS = 16

# What is beside mu and scale: prior_mu, prior_scale, mask, weight, noise; () for none of them.
Others = Sequence[Tensor | None]
_ABSENT = (None,) * 5

# How a backward pass walks the upstream gradients: whether z's is one number, and from one sample's
# of the KL to the next one's, -1 where it is laid out as the plan has it.
How = tuple[bool, int]


def plan(
    mu: Tensor, scale: Tensor, others: Others, options: Posterior, *upstream: Tensor | None
) -> Plan:
    """The plan of a call. `upstream`: the gradients of z and the KL as the backward pass has them,
    where they are neither dense nor one number for many elements."""
    keys = tuple([operand_of(t) for t in (mu, scale, *others)])
    return _made(keys, tuple([operand_of(t) for t in upstream]), options, mu.device)


@functools.lru_cache(maxsize=1024)
def _made(
    keys: tuple[Operand, ...],
    upstream: tuple[Operand, ...],
    options: Posterior,
    device: torch.device,
) -> Plan:
    return Plan(keys, upstream, options, device)


class Plan:
    """A call and its backward pass, made ready but for their tensors.

    `forward` gives z, the KL and dz/dscale, `backward` the gradients; each is None where it is not
    asked for. A backward pass whose operands come back laid out in another way than they were (a
    saved-tensor hook may make them dense), or whose upstream gradients are neither dense nor one
    number for many elements, makes a plan of its own.
    """

    operator = "sample_kl"
    backend = "native"

    __slots__ = (
        *("options", "kinds", "_forward", "_backward", "_copies", "_shape", "_strides"),
        *("_z", "_kl", "_kl_like", "_derivative", "_grads", "_workspace", "_looks"),
    )

    def __init__(
        self,
        keys: tuple[Operand, ...],
        upstream: tuple[Operand, ...],
        options: Posterior,
        device: torch.device,
    ) -> None:
        mu, scale, *others = (*keys, *_ABSENT)[:7]
        assert mu is not None and scale is not None
        shape, samples, reduce = tuple(mu[0]), options.num_samples, options.reduce
        parameters = (mu, scale, *others[:2])
        wide = any(k is not None and k[2] == torch.float64 for k in parameters)
        dtype = torch.float64 if wide else torch.float32
        of_z, of_kl = z_shape(shape, samples), options.kl_shape(shape)
        grad_z, grad_kl = upstream or (
            (of_z, dense_strides(of_z), mu[2]) if samples >= 0 else None,
            (of_kl, dense_strides(of_kl), dtype) if reduce else None,
        )
        per_place = grad_kl if reduce in ("elem", "dim") else None
        operands = (mu, scale, *others, grad_z, per_place)
        rows, cols, segments, found = places(
            of_z, 2 if samples > 0 else 1, tuple([k and k[:2] for k in operands])
        )
        given = [packed(k, p) for k, p in zip(operands, found, strict=True)]
        if grad_kl is not None and per_place is None:
            given[8] = packed(grad_kl, Place(segments, shape[0] or 1, 0, 0, ""))
        grid = (rows // max(samples, 1), cols, segments)
        on_cpu = is_on_cpu(device)
        summed = [
            on_cpu and sums_broadcast(k, shape, p)
            for k, p in zip(parameters, found[:4], strict=True)
        ]
        # A gradient that was broadcast is summed afterwards, and not in half precision.
        dtypes = [k[2] if k is not None and tuple(k[0]) == shape else dtype for k in parameters]
        self._forward, self._backward = _C.prepare_sample_kl(
            grid,
            tuple(given[:7]),
            *given[7:],
            options.offset,
            settings_of(options, dtype),
            tuple([DTYPES[d] for d in dtypes]),
            tuple(
                [
                    math.prod(k[0]) if k is not None and s else 0
                    for k, s in zip(others[:2], summed[2:], strict=True)
                ]
            ),
        )
        self.options = options
        self._looks = Looks()
        # Of what a call that found this plan saves: by the kind of its state, and without one.
        pair = [kind(k, device) for k in (mu, scale)]
        states = torch.Size((2,)), torch.Size((*shape[:1], 2)), torch.Size((2,))
        self.kinds = [*([*pair, (s, torch.int64, device)] for s in states), pair]
        self._shape = of_z
        self._strides = [None if k is None else k[1] for k in operands]
        self._copies = [(i, p) for i, p in enumerate(found) if p is not None and p.copy]
        self._z = room(of_z, mu[2], device, mu) if samples >= 0 else None
        self._kl = room(of_kl, dtype, device) if reduce else None
        # One that is small is made like another: 0.4 us less than from its shape.
        self._kl_like = None
        if reduce and on_cpu and math.prod(of_kl) <= LIKE:
            self._kl_like = torch.empty(of_kl, dtype=dtype, device=device)
        self._derivative: Room | None = None
        if samples == 0 and on_cpu and keeps_derivative(scale, dtype):
            self._derivative = room(shape, dtype, device, mu)
        self._grads = [
            _sums(k[0]) if k is not None and s else room(shape, d, device, mu)
            for k, d, s in zip(parameters, dtypes, summed, strict=True)
        ]
        self._workspace = -1
        if not on_cpu:
            # Two of the reductions need none: "" and "elem".
            how = REDUCE[reduce]
            self._workspace = _C.workspace(grid, how, False, grid[0]) if how > 1 else 0

    def forward(
        self,
        mu: Tensor,
        scale: Tensor,
        others: Others,
        state: Tensor | None,
        state_kind: int,
        keep: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """`keep`: dz/dscale is to be kept, if that is worth it. `state_kind`: 1 where there is a
        state per sample, 2 where the state is new and its second number still to become 0; on a
        GPU the kernel writes that."""
        z = kl = derivative = rest = None
        if self._z is not None:
            z = self._z(mu)
            if keep and self._derivative is not None:
                derivative = self._derivative(mu)
        if self._kl_like is not None:
            kl = torch.empty_like(self._kl_like)
        elif self._kl is not None:
            kl = self._kl(mu)
        if others or self._copies:
            mu, scale, *rest = self._laid_out(mu, scale, others, None, None)
        self._forward(
            torch.get_num_threads() if self._workspace < 0 else place_with(mu, self._workspace),
            mu,
            scale,
            rest,
            state,
            state_kind,
            z,
            kl,
            derivative,
        )
        return z, kl, derivative

    def backward(
        self,
        grad_z: Tensor | None,
        grad_kl: Tensor | None,
        mu: Tensor,
        scale: Tensor,
        others: Others,
        state: Tensor | None,
        derivative: Tensor | None,
        need: Sequence[bool],
        overwrite: bool,
        how: How | None = None,
    ) -> Sequence[Tensor | None]:
        """The gradients in mu and scale, and where there are `others` in prior_mu and prior_scale.
        `overwrite`: the one in scale may take the place of `derivative`. `how`: what `seen` gave.
        """
        if how is None:
            how = self._how(grad_z, grad_kl, mu, scale, others)
            if how is None:
                again = plan(mu, scale, others, self.options, grad_z, grad_kl)
                found = again.backward(
                    grad_z, grad_kl, mu, scale, others, state, derivative, need, overwrite
                )
                return found
            if not others:
                saved = (mu, scale) if state is None else (mu, scale, state)
                spare = derivative if overwrite else None
                self._looks.add(*self._given(saved, grad_z, grad_kl, spare), how)
        if derivative is not None and self._kl is None and overwrite:
            assert grad_z is not None
            # dz/dmu is 1.
            return (
                grad_z.contiguous() if need[0] else None,
                derivative.mul_(grad_z) if need[1] else None,
            )
        expanded, step = how
        kind = 0
        if derivative is not None:
            state = None
        elif state is not None:
            state, kind = state.contiguous(), state.dim() - 1
        grad_mu = self._grads[0](mu) if need[0] else None
        grad_scale = None
        if need[1]:
            reused = overwrite and derivative is not None
            grad_scale = derivative if reused else self._grads[1](mu)
        rest = None
        if others or self._copies:
            mu, scale, *rest, grad_z, grad_kl = self._laid_out(mu, scale, others, grad_z, grad_kl)
            wanted = (*need[2:4], False, False)
            rest += [self._grads[i](mu) if wanted[i - 2] else None for i in (2, 3)]
        self._backward(
            torch.get_num_threads() if self._workspace < 0 else place_with(mu, 0),
            mu,
            scale,
            rest,
            state,
            kind,
            grad_z,
            expanded,
            grad_kl,
            step,
            derivative,
            grad_mu,
            grad_scale,
        )
        if rest is None or not others:
            return grad_mu, grad_scale
        return grad_mu, grad_scale, _fitted(rest[5], others[0]), _fitted(rest[6], others[1])

    def seen(
        self,
        saved: tuple[Tensor, ...],
        grad_z: Tensor | None,
        grad_kl: Tensor | None,
        derivative: Tensor | None,
    ) -> How | None:
        """`how` of a backward pass with nothing beside mu, scale and a state, where one such has
        passed all checks. `derivative`: where it may be overwritten."""
        found: How | None = self._looks.find(*self._given(saved, grad_z, grad_kl, derivative))
        return found

    def _given(
        self,
        saved: tuple[Tensor, ...],
        grad_z: Tensor | None,
        grad_kl: Tensor | None,
        derivative: Tensor | None,
    ) -> tuple[int, tuple[Tensor | None, ...]]:
        """What a backward pass looks at, and a number for each way of that: as `Looks` has it."""
        if grad_z is None:
            return len(saved), (*saved, grad_kl)
        if grad_kl is not None:
            return -len(saved), (*saved, grad_z, grad_kl)
        if derivative is not None and self._kl is None:
            return 1, (grad_z,)
        return 4 + len(saved), (*saved, grad_z)

    def _how(
        self,
        grad_z: Tensor | None,
        grad_kl: Tensor | None,
        mu: Tensor,
        scale: Tensor,
        others: Others,
    ) -> How | None:
        """None where the operands lie in another way than the plan was made for."""
        strides = self._strides
        expanded, step = False, 0
        same = mu.stride() == strides[0] and scale.stride() == strides[1]
        if grad_z is not None and grad_z.stride() != strides[7]:
            expanded = not any(grad_z.stride())
            same = same and expanded
        if grad_kl is not None:
            if strides[8] is None:
                step = grad_kl.stride(0) if grad_kl.dim() else 0
            elif grad_kl.stride() == strides[8]:
                step = -1
            else:
                # Of a sum over the latent dimensions it is one number a sample.
                per_sample = self.options.reduce == "elem"
                step = grad_kl.stride(0) if per_sample else 0
                same = same and not any(grad_kl.stride()[1 if per_sample else 0 :])
        for tensor, stride in zip(others, strides[2:7], strict=False):
            same = same and (tensor is None or tensor.stride() == stride)
        return (expanded, step) if same else None

    def _laid_out(
        self,
        mu: Tensor,
        scale: Tensor,
        others: Others,
        grad_z: Tensor | None,
        grad_kl: Tensor | None,
    ) -> list[Any]:
        """All nine, copies in the place of those that no kernel can walk."""
        given = [mu, scale, *(others[:5] or _ABSENT), grad_z, grad_kl]
        for index, place in self._copies:
            tensor = given[index]
            if tensor is not None:
                given[index] = laid_out(tensor, place, self._shape)
        return given


def keeps_derivative(scale: Operand, dtype: torch.dtype) -> bool:
    """Whether the forward pass of one sample keeps dz/dscale, on the CPU.

    One buffer of the latent's size, which then becomes scale's gradient: the backward pass saves
    the noise and an exponential. docs/notes.md has both ways' times.
    """
    return scale is not None and scale[2] == dtype


def sums_broadcast(parameter: Operand, shape: tuple[int, ...], place: Place | None) -> bool:
    """True where the kernel adds a parameter's gradient up over what it broadcasts to, into
    blocks that take no more memory than a gradient of mu's shape would."""
    return (
        parameter is not None
        and place is not None
        and tuple(parameter[0]) != shape
        and 2 * _BLOCKS * math.prod(parameter[0]) <= math.prod(shape)
        and is_dense(parameter)
        and not place.copy
    )


def _sums(shape: Sequence[int]) -> Room:
    return lambda _: torch.zeros(_BLOCKS, *shape, dtype=torch.float64, device="cpu")


def _fitted(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if grad is None else fitted((grad,), (parameter,))[0]


def sample_kl(
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    noise: Tensor | None,
    options: Posterior,
) -> tuple[Tensor | None, Tensor | None]:
    """(z, kl), each None where `options` does not ask for it."""
    others = (prior_mu, prior_scale, mask, weight, noise)
    made = plan(mu, scale, others, options)
    kind = 0 if state is None else state.dim() - 1
    return made.forward(mu, scale, others, state, kind, False)[:2]


def sample_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    noise: Tensor | None,
    options: Posterior,
    need: Sequence[bool],
) -> list[Tensor]:
    """The gradients in mu, scale, prior_mu and prior_scale that are needed."""
    others = (prior_mu, prior_scale, mask, weight, noise)
    made = plan(mu, scale, others, options)
    grads = made.backward(grad_z, grad_kl, mu, scale, others, state, None, need, False)
    return [g for g in grads if g is not None]
