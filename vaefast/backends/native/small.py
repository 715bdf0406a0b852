"""Calls of the compiled core whose operands are plain and small, made ready once.

At 128 x 20 the kernels take 10 us and what leads to them took 90: a call like one before it finds
all but its addresses prepared. So it reads its operands where they are, by the strides that they
had: what the core would have to copy first has no prepared call (`Copied`), and a backward pass
compares the `strides` of what autograd kept, as a hook may bring a view back dense.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import _C
from .._options import Nll, Posterior
from ._pack import KEPT, REDUCE, Packed, fresh_like, pack
from .nll import _FORMS
from .sample_kl import _kl_shape, _settings

# Bytes from which on the preparation no longer counts.
_LARGE = 1 << 22


class Copied(Exception):
    """The core cannot read an operand where it is."""


class _Prepared:
    """What the prepared calls share: the operands' strides."""

    __slots__ = ("strides",)
    strides: tuple[tuple[int, ...], ...]

    def pack(
        self, shape: torch.Size, operands: tuple[Tensor, ...]
    ) -> tuple[tuple[int, int, int], list[Packed | None]]:
        """The grid and the operands over it. Raises Copied where one is not read in place."""
        grid, packed, _alive = pack(shape, 1, operands)
        for tensor, place in zip(operands, packed, strict=True):
            if place is not None and place[0] != tensor.data_ptr():
                raise Copied
        self.strides = tuple([t.stride() for t in operands])
        return grid, packed


class SmallSample(_Prepared):
    """One sample of a posterior `[B, *latent]`, in float32 or float64."""

    __slots__ = ("call", "fresh")

    def __init__(self, mu: Tensor, scale: Tensor, options: Posterior) -> None:
        self.call = _posterior_call(self, mu, scale, options)
        self.fresh = _fresh(mu, scale)

    def forward(
        self, mu: Tensor, scale: Tensor, state: Tensor, drawn: bool, kept: Tensor | None
    ) -> Tensor:
        """z; dz/dscale is written to `kept`. `drawn`: the state's second number becomes 0 first."""
        z = self.fresh(mu)
        self.call.forward(
            mu.data_ptr(),
            scale.data_ptr(),
            state.data_ptr(),
            drawn,
            z.data_ptr(),
            0,
            0 if kept is None else kept.data_ptr(),
            torch.get_num_threads(),
        )
        return z


class SmallSampleKl(_Prepared):
    """One sample of a posterior and its KL to N(0, I)."""

    __slots__ = ("call", "fresh", "kl")

    def __init__(self, mu: Tensor, scale: Tensor, options: Posterior) -> None:
        self.call = _posterior_call(self, mu, scale, options)
        self.fresh = _fresh(mu, scale)
        self.kl = mu.new_empty(_kl_shape(mu.shape, options.reduce))

    def forward(
        self, mu: Tensor, scale: Tensor, state: Tensor, drawn: bool, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(z, kl), as the sample alone."""
        z = self.fresh(mu)
        kl = torch.empty_like(self.kl)
        self.call.forward(
            mu.data_ptr(),
            scale.data_ptr(),
            state.data_ptr(),
            drawn,
            z.data_ptr(),
            kl.data_ptr(),
            0 if kept is None else kept.data_ptr(),
            torch.get_num_threads(),
        )
        return z, kl

    def backward(
        self,
        grad_z: Tensor,
        grad_kl: Tensor,
        mu: Tensor,
        scale: Tensor,
        kept: Tensor,
        step: int,
    ) -> Tensor:
        """The gradient in mu; the one in scale takes the place of `kept`. `step`: from one element
        of grad_z to the next, 1 or 0."""
        grad = self.fresh(mu)
        at = kept.data_ptr()
        self.call.backward(
            mu.data_ptr(),
            scale.data_ptr(),
            grad_z.data_ptr(),
            step,
            grad_kl.data_ptr(),
            _step(grad_kl),
            False,
            at,
            grad.data_ptr(),
            at,
            torch.get_num_threads(),
        )
        return grad


class SmallKl(_Prepared):
    """The KL of a posterior `[B, *latent]` to N(0, I), in float32 or float64."""

    __slots__ = ("call", "fresh", "kl")

    def __init__(self, mu: Tensor, scale: Tensor, options: Posterior) -> None:
        self.call = _posterior_call(self, mu, scale, options)
        self.fresh = _fresh(mu, scale)
        self.kl = mu.new_empty(_kl_shape(mu.shape, options.reduce))

    def forward(self, mu: Tensor, scale: Tensor) -> Tensor:
        """The KL."""
        kl = torch.empty_like(self.kl)
        self.call.forward(
            mu.data_ptr(), scale.data_ptr(), 0, False, 0, kl.data_ptr(), 0, torch.get_num_threads()
        )
        return kl

    def backward(
        self, grad_kl: Tensor, mu: Tensor, scale: Tensor, need: tuple[bool, bool], each: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients in mu and scale that are needed. `each`: grad_kl is dense, a number per
        element, not per sample."""
        grad_mu = self.fresh(mu) if need[0] else None
        grad_scale = self.fresh(scale) if need[1] else None
        self.call.backward(
            mu.data_ptr(),
            scale.data_ptr(),
            0,
            0,
            grad_kl.data_ptr(),
            _step(grad_kl),
            each,
            0,
            0 if grad_mu is None else grad_mu.data_ptr(),
            0 if grad_scale is None else grad_scale.data_ptr(),
            torch.get_num_threads(),
        )
        return grad_mu, grad_scale


def _posterior_call(
    prepared: _Prepared, mu: Tensor, scale: Tensor, options: Posterior
) -> _C.SmallSampleKl:
    grid, operands = prepared.pack(mu.shape, (mu, scale))
    settings = _settings(options, mu.dtype)
    return _C.SmallSampleKl(grid, (*operands, *_NO_OPERANDS), options.offset, settings)


def _step(grad_kl: Tensor) -> int:
    """From a sample's upstream gradient to the next one's. Of a sum over the batch it is
    expanded."""
    return grad_kl.stride(0) if grad_kl.dim() else 0


class SmallNll(_Prepared):
    """A likelihood of dense parameters of the target's shape, the last one perhaps a learned
    scalar, reduced, in their dtype."""

    __slots__ = ("call", "fresh", "loss", "scalar", "scalar_grad")

    def __init__(self, params: tuple[Tensor, ...], target: Tensor, options: Nll) -> None:
        grid, packed = self.pack(target.shape, (*params, target))
        x = packed.pop()
        assert x is not None
        if target.dtype == torch.uint8:
            x = (*x[:6], options.uint8_scale)
        settings = (
            _FORMS[options.form],
            options.numbers,
            options.scalar,
            grid[0],
            REDUCE[options.reduce],
            options.factor,
            options.grad_factor,
            params[0].dtype == torch.float64,
        )
        self.call = _C.SmallNll(grid, tuple(packed), x, settings)
        self.scalar = options.scalar
        self.fresh = _fresh(*params)
        # A learned scalar's gradient is a number per sample.
        self.scalar_grad = params[0].new_empty(target.shape[0])
        self.loss = params[0].new_empty(target.shape[:1] if options.reduce == "sample" else ())

    def forward(
        self, params: tuple[Tensor, ...], target: Tensor, need: tuple[bool, ...] | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The loss, and the gradients that are needed, if any."""
        loss = torch.empty_like(self.loss)
        grads: list[Tensor | None] = []
        addresses: list[int] = []
        for index, param in enumerate(params):
            grad, at = None, 0
            if need is not None and need[index]:
                grad = self.fresh(self.scalar_grad if index == self.scalar else param)
                at = grad.data_ptr()
            grads.append(grad)
            addresses += param.data_ptr(), at
        self.call.run(torch.get_num_threads(), loss.data_ptr(), target.data_ptr(), *addresses)
        return loss, grads


def _fresh(*tensors: Tensor) -> Callable[[Tensor], Tensor]:
    """What makes an unwritten dense tensor like one of these: torch's own quickest way, if that
    will do. `memory_format` alone costs it 0.8 us."""
    plain = all(t.is_contiguous() and t.nbytes < KEPT for t in tensors)
    return torch.empty_like if plain else fresh_like


# Priors, mask, weight and noise.
_NO_OPERANDS = (None,) * 5


def fits(*tensors: Tensor) -> bool:
    """True where the tensors are small, of one shape, and in float32 or float64."""
    first = tensors[0]
    if first.dtype not in (torch.float32, torch.float64) or not 0 < first.nbytes < _LARGE:
        return False
    return all(t.shape == first.shape for t in tensors)
