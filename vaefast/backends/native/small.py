"""Calls of the compiled core whose operands are dense, plain and small, made ready once.

At 128 x 20 the kernels take 10 us and what leads to them took 90: a call like one before it finds
all but its addresses prepared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _C
from .._options import Nll, Posterior
from ._pack import DTYPES, REDUCE, Packed, fresh_like, pack
from .nll import _FORMS
from .sample_kl import _kl_shape, _settings

# Bytes from which on the preparation no longer counts.
_LARGE = 1 << 22


class SmallSample:
    """One sample of a posterior `[B, *latent]`, in float32 or float64."""

    __slots__ = ("code", "grid", "mu", "offset", "scale", "settings")

    def __init__(self, mu: Tensor, scale: Tensor, options: Posterior) -> None:
        self.grid, (mu_view, scale_view, *_), _ = pack(mu.shape, 1, (mu, scale))
        assert mu_view is not None and scale_view is not None
        self.mu, self.scale = mu_view[1:], scale_view[1:]
        self.settings = _settings(options, mu.dtype)
        self.offset = options.offset
        self.code = DTYPES[mu.dtype]

    def room(self, scale: Tensor) -> Tensor:
        """Memory for dz/dscale."""
        return fresh_like(scale)

    def forward(self, mu: Tensor, scale: Tensor, state: Tensor, kept: Tensor | None) -> Tensor:
        """z; dz/dscale is written to `kept`."""
        z = fresh_like(mu)
        self._run(mu, scale, state, z, 0, kept)
        return z

    def _run(
        self, mu: Tensor, scale: Tensor, state: Tensor, z: Tensor, kl: int, kept: Tensor | None
    ) -> None:
        _C.sample_kl(
            self.grid,
            ((mu.data_ptr(), *self.mu), (scale.data_ptr(), *self.scale), *_NO_OPERANDS),
            (state.data_ptr(), False, self.offset),
            self.settings,
            (z.data_ptr(), self.code),
            kl,
            0 if kept is None else kept.data_ptr(),
            torch.get_num_threads(),
        )


class SmallSampleKl(SmallSample):
    """One sample of a posterior and its KL to N(0, I)."""

    __slots__ = ("kl", "kl_shape", "z")

    def __init__(self, mu: Tensor, scale: Tensor, options: Posterior) -> None:
        super().__init__(mu, scale, options)
        self.kl_shape = _kl_shape(mu.shape, options.reduce)
        # Over the dense z, and over the KL: one value for all of a sample's rows.
        rows, cols, segments = self.grid
        self.z = (self.code, 1, rows, cols, 1, 1.0)
        self.kl = (self.code, segments, mu.shape[0])

    def forward(  # type: ignore[override]
        self, mu: Tensor, scale: Tensor, state: Tensor, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(z, kl); dz/dscale is written to `kept`."""
        z = fresh_like(mu)
        kl = mu.new_empty(self.kl_shape)
        self._run(mu, scale, state, z, kl.data_ptr(), kept)
        return z, kl

    def backward(
        self, grad_z: Tensor, grad_kl: Tensor, mu: Tensor, scale: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradients in mu and scale, the latter in place of `kept`."""
        grad = fresh_like(kept)
        at, code = kept.data_ptr(), self.code
        # Of a sum over the batch the upstream gradient is expanded.
        step = grad_kl.stride(0) if self.kl_shape else 0
        _C.sample_kl_backward(
            self.grid,
            ((mu.data_ptr(), *self.mu), (scale.data_ptr(), *self.scale), *_NO_OPERANDS),
            None,
            self.settings,
            (grad_z.data_ptr(), *self.z),
            (grad_kl.data_ptr(), *self.kl, step, 0, 1.0),
            at,
            ((grad.data_ptr(), code), (at, code), None, None),
            torch.get_num_threads(),
        )
        return grad, kept


class SmallKl:
    """The KL of a posterior `[B, *latent]` to N(0, I), in float32 or float64."""

    __slots__ = ("grid", "kl", "kl_shape", "mu", "scale", "settings")

    def __init__(self, mu: Tensor, scale: Tensor, options: Posterior) -> None:
        self.grid, (mu_view, scale_view, *_), _ = pack(mu.shape, 1, (mu, scale))
        assert mu_view is not None and scale_view is not None
        self.mu, self.scale = mu_view[1:], scale_view[1:]
        self.settings = _settings(options, mu.dtype)
        self.kl_shape = _kl_shape(mu.shape, options.reduce)
        self.kl = (DTYPES[mu.dtype], self.grid[2], mu.shape[0])

    def forward(self, mu: Tensor, scale: Tensor) -> Tensor:
        """The KL."""
        kl = mu.new_empty(self.kl_shape)
        _C.sample_kl(
            self.grid,
            ((mu.data_ptr(), *self.mu), (scale.data_ptr(), *self.scale), *_NO_OPERANDS),
            None,
            self.settings,
            None,
            kl.data_ptr(),
            0,
            torch.get_num_threads(),
        )
        return kl

    def backward(
        self, grad_kl: Tensor, mu: Tensor, scale: Tensor, need: tuple[bool, ...]
    ) -> list[Tensor | None]:
        """The gradients in mu and scale that are needed."""
        grads = [fresh_like(t) if n else None for t, n in zip((mu, scale), need, strict=True)]
        code = self.kl[0]
        step = grad_kl.stride(0) if self.kl_shape else 0
        _C.sample_kl_backward(
            self.grid,
            ((mu.data_ptr(), *self.mu), (scale.data_ptr(), *self.scale), *_NO_OPERANDS),
            None,
            self.settings,
            None,
            (grad_kl.data_ptr(), *self.kl, step, 0, 1.0),
            0,
            (*[None if g is None else (g.data_ptr(), code) for g in grads], None, None),
            torch.get_num_threads(),
        )
        return grads


class SmallNll:
    """A likelihood of dense parameters of the target's shape, reduced, in their dtype."""

    __slots__ = ("grid", "params", "settings", "shape", "target")

    def __init__(self, params: tuple[Tensor, ...], target: Tensor, options: Nll) -> None:
        self.grid, packed, _ = pack(target.shape, 1, (*params, target))
        views: list[Packed] = [v for v in packed if v is not None]
        self.params, self.target = [v[1:] for v in views[:-1]], views[-1][1:]
        if target.dtype == torch.uint8:
            self.target = (*self.target[:5], options.uint8_scale)
        self.shape = target.shape[:1] if options.reduce == "sample" else torch.Size(())
        self.settings = (
            _FORMS[options.form],
            options.numbers,
            -1,
            self.grid[0],
            REDUCE[options.reduce],
            options.factor,
            options.grad_factor,
            params[0].dtype == torch.float64,
        )

    def forward(
        self, params: tuple[Tensor, ...], target: Tensor, need: tuple[bool, ...]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The loss, and the gradients that are needed."""
        loss = params[0].new_empty(self.shape)
        grads = [fresh_like(p) if n else None for p, n in zip(params, need, strict=True)]
        _C.nll(
            self.grid,
            tuple([(p.data_ptr(), *v) for p, v in zip(params, self.params, strict=True)]),
            (target.data_ptr(), *self.target),
            None,
            None,
            None,
            self.settings,
            loss.data_ptr(),
            tuple(
                [
                    None if g is None else (g.data_ptr(), v[0])
                    for g, v in zip(grads, self.params, strict=True)
                ]
            ),
            torch.get_num_threads(),
        )
        return loss, grads


# Priors, mask, weight and noise.
_NO_OPERANDS = (None,) * 5


def fits(*tensors: Tensor) -> bool:
    """True where the tensors are small, dense, of one shape, and in float32 or float64.

    A row stride is allowed for, as the two halves of an encoder's output have one.
    """
    first = tensors[0]
    if first.dtype not in (torch.float32, torch.float64) or not 0 < first.nbytes < _LARGE:
        return False
    return all(t.shape == first.shape and t[0].is_contiguous() for t in tensors)
