"""Shapes at the limits of the kernels' tiles and grids: rows of one vector and of many blocks."""

import pytest
import torch
from tolerances import assert_close64

import vaefast as vf

pytestmark = pytest.mark.every_isa

# (batch, width): a lane or a warp to a row; a block to a row; several blocks to a row; many rows of
# a few vectors; rows that begin at no vector's place.
SHAPES = [(3, 5), (129, 64), (4, 260), (9, 1271), (2, 9000), (1, 20_001), (3000, 7)]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def inputs(shape, dtype, device):
    generator = torch.Generator().manual_seed(sum(shape))
    made = [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]
    return [m.to(device).requires_grad_() for m in made], [
        m.double().requires_grad_() for m in made
    ]


def check(ours, leaves, truth, wide, compute):
    """Values and, under one upstream gradient, gradients."""
    upstream = [torch.full_like(o, 0.7).expand_as(o) for o in ours]
    assert len(ours) == len(truth)
    for got, want in zip(ours, truth, strict=True):
        assert_close64(got, want, compute, slack=8)
    got = torch.autograd.grad(ours, leaves, upstream)
    want = torch.autograd.grad(
        truth, wide, [u.double().to(t.device) for u, t in zip(upstream, truth, strict=True)]
    )
    for one, two in zip(got, want, strict=True):
        assert_close64(one, two, compute, slack=8)


@pytest.mark.each(5)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "sample", "batchmean", "dim"])
def test_sample_kl(kernels, shape, dtype, reduction):
    leaves, wide = inputs(shape, dtype, kernels.device)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for settings in ({}, {"offset": 3}, {"num_samples": 2}, {"clamp": (-1.0, 1.0)}):
        samples, offset = settings.get("num_samples", 0), settings.get("offset", 0)
        ours = vf.sample_kl(*leaves, reduction=reduction, seed=9, **settings)
        with vf.backend("reference"):
            state = torch.tensor([9, 0])
            eps = [vf.random.normal(shape, state, dtype=torch.float64, offset=offset)]
            if samples:
                zero = torch.zeros(shape, dtype=torch.float64)
                eps = [vf.rsample(zero, zero, num_samples=samples, seed=9)]
            given = {k: v for k, v in settings.items() if k != "offset"}
            truth = vf.sample_kl(*wide, reduction=reduction, noise=eps[0], **given)
        check(ours, leaves, truth, wide, compute)


@pytest.mark.each(5)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "sample", "batchmean"])
def test_nll(kernels, shape, dtype, reduction):
    leaves, wide = inputs(shape, dtype, kernels.device)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    weight = torch.rand(shape[0], generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.7
    std, wide_std = (
        torch.tensor(0.7, dtype=d, requires_grad=True) for d in (compute, torch.float64)
    )
    for settings in ({}, {"weight": weight}, {"mask": mask}):
        moved = {k: v.to(kernels.device) for k, v in settings.items()}
        for likelihood, count in (("bernoulli", 1), ("gaussian", 2)):
            x = pixels.to(kernels.device)
            loss = vf.nll(tuple(leaves[:count]), x, likelihood, reduction=reduction, **moved)
            with vf.backend("reference"):
                params = tuple(wide[:count])
                truth = vf.nll(params, pixels, likelihood, reduction=reduction, **settings)
            check([loss], leaves[:count], [truth], wide[:count], compute)
        learned = std.detach().to(kernels.device).requires_grad_()
        gaussian = vf.Gaussian(std=learned)
        loss = vf.nll(leaves[0], pixels.to(kernels.device), gaussian, reduction=reduction, **moved)
        with vf.backend("reference"):
            gaussian = vf.Gaussian(std=wide_std)
            truth = vf.nll(wide[0], pixels, gaussian, reduction=reduction, **settings)
        check([loss], [leaves[0], learned], [truth], [wide[0], wide_std], compute)
