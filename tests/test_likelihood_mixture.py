"""PixelCNN++'s mixture of discretised logistics."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from conftest import Target
from row_cases import EVERY, WIDE, check
from torch import Tensor

import vaefast as vf
from vaefast import DiscretizedLogisticMixture


def logistic_mixture_nll(packed: Tensor, x: Tensor, model: DiscretizedLogisticMixture) -> Tensor:
    """From PixelCNN++'s packing with its dimension last, x [..., channels] scaled; float64."""
    count, top = model.mixtures, 2**model.bits - 1
    packed, x = packed.double(), x.double()
    half = (model.high - model.low) / top / 2
    each = 3 if model.channels == 3 else 2
    groups = packed[..., count:].unflatten(-1, (model.channels, each * count))
    total = torch.log_softmax(packed[..., :count], -1)
    for c in range(model.channels):
        means = groups[..., c, :count]
        scale = groups[..., c, count : 2 * count].clamp(min=-7.0).exp()
        at = x[..., c, None]
        if c == 1:
            means = means + torch.tanh(groups[..., 0, 2 * count :]) * x[..., 0, None]
        if c == 2:
            means = means + torch.tanh(groups[..., 1, 2 * count :]) * x[..., 0, None]
            means = means + torch.tanh(groups[..., 2, 2 * count :]) * x[..., 1, None]
        upper, lower = (at + half - means) / scale, (at - half - means) / scale
        # The side on which neither sigmoid is near 1.
        flip = lower > 0
        upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
        first = torch.where(flip, at >= model.high - half, at <= model.low + half)
        last = torch.where(flip, at <= model.low + half, at >= model.high - half)
        above = torch.where(last, 1.0, torch.sigmoid(upper))
        total = total + torch.log(above - torch.where(first, 0.0, torch.sigmoid(lower)))
    return -torch.logsumexp(total, -1)


MIXTURES = [
    DiscretizedLogisticMixture(),
    DiscretizedLogisticMixture(1, 3, 5),
    DiscretizedLogisticMixture(3, 4, 8, low=0.0),
    DiscretizedLogisticMixture(dim=-1),
    DiscretizedLogisticMixture(1, 5, dim=-1),
]


def mixture_inputs(
    model: DiscretizedLogisticMixture, device: str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Packed parameters [B, size, 5, 7] (or last) and levels of the same layout in uint8."""
    packed = torch.randn(3, 5, 7, model.size, device=device, dtype=WIDE)
    levels = torch.randint(0, 2**model.bits, (3, 5, 7, model.channels), device=device)
    levels[0, 0, :3], levels[0, 1, :3] = 0, 2**model.bits - 1
    if model.dim == 1:
        packed, levels = packed.movedim(-1, 1), levels.movedim(-1, 1)
    return packed.contiguous().to(dtype), levels.to(torch.uint8).contiguous()


@pytest.mark.each(3)
@pytest.mark.parametrize("model", MIXTURES, ids=str)
@pytest.mark.parametrize("dtype", [WIDE, torch.float32, torch.bfloat16], ids=str)
def test_mixture(backend: Target, model: DiscretizedLogisticMixture, dtype: torch.dtype) -> None:
    check_mixture(backend, model, dtype)


def check_mixture(
    backend: Target,
    model: DiscretizedLogisticMixture,
    dtype: torch.dtype,
    settings: Iterable[tuple[str, str]] = EVERY,
) -> None:
    packed, levels = mixture_inputs(model, backend.device, dtype)
    scaled = model.low + levels.double() / (2**model.bits - 1) * (model.high - model.low)

    def truth(t: Tensor) -> Tensor:
        return logistic_mixture_nll(t.movedim(model.dim, -1), scaled.movedim(model.dim, -1), model)

    check(packed, levels, model, truth, 1e-9 if dtype == WIDE else 2e-5, settings)
    stored = scaled.to(WIDE if dtype == WIDE else torch.float32)
    torch.testing.assert_close(
        vf.nll(packed, stored, model, validate=True), vf.nll(packed, levels, model, validate=True)
    )


def test_mixture_sums_to_one(backend: Target) -> None:
    model = DiscretizedLogisticMixture(3, 4, bits=3)
    every = torch.cartesian_prod(*[torch.arange(8, dtype=torch.uint8)] * 3).to(backend.device)
    packed = torch.randn(model.size, device=backend.device, dtype=WIDE)
    params = packed[None, :, None].expand(1, -1, len(every)).contiguous()
    loss = vf.nll(params, every.T[None].contiguous(), model, reduction="none")
    assert float(torch.exp(-loss).sum()) == pytest.approx(1, abs=1e-12)


def test_mixture_of_one_is_the_discretized_logistic(backend: Target) -> None:
    model = DiscretizedLogisticMixture(1, 1)
    packed, levels = mixture_inputs(model, backend.device)
    single = (packed[:, 1:2].contiguous(), packed[:, 2:3].contiguous())
    torch.testing.assert_close(
        vf.nll(packed, levels, model), vf.nll(single, levels, "discretized_logistic")
    )


def test_mixture_at_extreme_scales(backend: Target) -> None:
    model = DiscretizedLogisticMixture(3, 2)
    packed, levels = mixture_inputs(model, backend.device)
    for value in (-1e30, -200.0, 90.0, 1e30):
        extreme = packed.clone()
        for c in range(3):
            extreme[:, 2 + 6 * c + 2 : 2 + 6 * c + 4] = value
        extreme.requires_grad_()
        loss = vf.nll(extreme, levels, model, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), extreme)
        assert not torch.isnan(loss).any() and not torch.isnan(grad).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dim", [1, -1])
def test_mixture_samples(channels: int, dim: int) -> None:
    """Moments of samples against the mean, and their entropy against the density's."""
    torch.set_num_threads(1)
    model = DiscretizedLogisticMixture(channels, 2, dim=dim)
    packed = torch.randn(model.size) * 0.3
    # Narrow, so that next to nothing is cut off at the ends of the range.
    for c in range(channels):
        start = 2 * (1 + c * (3 if channels == 3 else 2)) + 2
        packed[start : start + 2] -= 4
    packed = packed[None, :, None].expand(2, -1, 20000)
    packed = packed.contiguous() if dim == 1 else packed.movedim(1, -1).contiguous()
    drawn = model.sample(packed, seed=4)
    assert bool(model.support(drawn).all())
    axes = [d for d in range(3) if d != dim % 3]
    assert drawn.shape == ((2, channels, 20000) if dim == 1 else (2, 20000, channels))
    want = model.mean(packed)
    error = (drawn.mean(axes) - want.mean(axes)).abs()
    assert (error < 5 * drawn.flatten().std() / math.sqrt(40000)).all()
