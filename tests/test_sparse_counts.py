"""Targets that are CSR matrices give what the dense matrix gives."""

from __future__ import annotations

import pytest
import torch
from conftest import Target

import vaefast as vf

WIDTHS = {"poisson": 1, "negative_binomial": 2, "zero_inflated_negative_binomial": 3}


def counts(shape: tuple[int, int], device: str) -> torch.Tensor:
    x = torch.poisson(torch.full(shape, 0.15, device=device)) * 2
    x[0] = 0
    x[-1, -1] = 7
    return x


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("shape", [(5, 7), (3, 1271), (4, 5000)], ids=str)
def test_sparse_is_dense(backend: Target, name: str, shape: tuple[int, int]) -> None:
    device = backend.device
    x = counts(shape, device)
    params = [torch.rand(shape, device=device).add(0.1).requires_grad_()]
    # One dispersion per column, as scvi-tools has it by default.
    params += [torch.rand(shape[1], device=device).add(0.1).requires_grad_()]
    params += [torch.randn(shape, device=device).requires_grad_()]
    given = params[: WIDTHS[name]]
    mask, weight = torch.rand(shape, device=device) < 0.7, torch.rand(shape[0], device=device)
    for reduction in ("none", "sample", "batchmean", "mean"):
        for over in ({}, {"mask": mask, "weight": weight}):
            results = []
            for target in (x, x.to_sparse_csr(), x.to(torch.int64).to_sparse_csr()):
                packed = given[0] if len(given) == 1 else tuple(given)
                loss = vf.nll(packed, target, name, reduction=reduction, validate=True, **over)
                results.append((loss, *torch.autograd.grad(loss.square().sum(), given)))
            for other in results[1:]:
                for got, want in zip(other, results[0], strict=True):
                    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_leading_samples_and_half_precision(backend: Target) -> None:
    x = counts((4, 41), backend.device)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        log_rate = torch.randn(3, 4, 41, device=backend.device).to(dtype).requires_grad_()
        results = []
        for target in (x, x.to(torch.uint8).to_sparse_csr(), x.to(dtype).to_sparse_csr()):
            loss = vf.nll(log_rate, target, "poisson", reduction="sample")
            results.append((loss, *torch.autograd.grad(loss.sum(), log_rate)))
        for other in results[1:]:
            for got, want in zip(other, results[0], strict=True):
                torch.testing.assert_close(got, want)


def test_second_derivatives(backend: Target) -> None:
    x = counts((2, 5), backend.device).to_sparse_csr()
    leaf = torch.randn(2, 5, dtype=torch.float64, device=backend.device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: vf.nll(p, x, "poisson", reduction="none"), leaf)
    assert torch.autograd.gradgradcheck(lambda p: vf.nll(p, x, "poisson"), leaf)


def test_bad_sparse_targets() -> None:
    x, log_rate = counts((3, 5), "cpu"), torch.zeros(3, 5)
    for wrong in (x.to_sparse(), x.to_sparse_csc()):
        with pytest.raises(ValueError, match="sparse_csr"):
            vf.nll(log_rate, wrong, "poisson")
    with pytest.raises(ValueError, match="support"):
        vf.nll(log_rate, (x - 9).to_sparse_csr(), "poisson", validate=True)
    with pytest.raises(ValueError, match="must be dense"):
        vf.nll(torch.zeros(3, 5, 2), x.long().to_sparse_csr(), vf.Categorical(-1))
