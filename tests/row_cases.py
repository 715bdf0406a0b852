"""The check of a likelihood with a class dimension: every reduction, mask and weight."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

import vaefast as vf

WIDE = torch.float64
REDUCTIONS = ("none", "sample", "batchmean", "sum", "mean")
# What stands beside the target: nothing, a weight and a mask per position, a weight per sample.
BESIDE = ("", "weight, mask", "sample_weight")
EVERY = tuple(itertools.product(REDUCTIONS, BESIDE))


def check(
    params: Tensor,
    target: Tensor,
    model: vf.likelihoods.RowLikelihood,
    truth: Callable[[Tensor], Tensor],
    tolerance: float,
    settings: Iterable[tuple[str, str]] = EVERY,
) -> None:
    """Value and gradient against float64, by a reduction and what stands beside the target."""
    shape = truth(params).shape
    weight = torch.rand(shape, device=params.device)
    mask = torch.rand(shape, device=params.device) < 0.7
    per_sample = torch.rand(shape[0], device=params.device)
    given_as = {
        "": {},
        "weight, mask": {"weight": weight, "mask": mask},
        "sample_weight": {"weight": per_sample},
    }
    for reduction, beside in settings:
        given = given_as[beside]
        leaf = params.detach().clone().requires_grad_()
        got = vf.nll(leaf, target, model, reduction=reduction, **given)
        upstream = torch.rand_like(got)
        (grad,) = torch.autograd.grad(got, leaf, upstream)
        exact = params.detach().double().requires_grad_()
        values = truth(exact)
        w = given.get("weight")
        if w is not None:
            values = values * w.double().view(*w.shape, *[1] * (len(shape) - w.dim()))
        keep = given.get("mask")
        if keep is not None:
            values = torch.where(keep, values, 0.0)
        samples = values.flatten(1).sum(1) if values.dim() > 1 else values
        elements = keep.sum() if keep is not None else values.numel()
        want = {
            "none": values,
            "sample": samples,
            "batchmean": samples.sum() / len(samples),
            "sum": samples.sum(),
            "mean": samples.sum() / elements,
        }[reduction]
        (want_grad,) = torch.autograd.grad(want, exact, upstream.double())
        assert grad.dtype == params.dtype
        assert got.dtype == (WIDE if params.dtype == WIDE else torch.float32)
        for a, b in ((got, want), (grad, want_grad)):
            store = {torch.bfloat16: 2**-7, torch.float16: 2**-9}.get(a.dtype, 0.0)
            tiny = 6e-8 if a.dtype == torch.float16 else 1e-12
            bound = tolerance * float(b.detach().abs().max()) + tiny
            torch.testing.assert_close(a.double(), b, rtol=tolerance + store, atol=bound)
