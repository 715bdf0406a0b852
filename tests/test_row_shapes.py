"""Classes as the kernels cut them: long ones, odd addresses, many positions, in place."""

from __future__ import annotations

import pytest
import torch
from conftest import Target
from row_cases import WIDE, check
from test_likelihood_rows import multinomial_nll, softmax_nll

from vaefast import Categorical, DiscretizedLogisticMixture, Multinomial, backend, nll
from vaefast.backends import load
from vaefast.backends._options import RowNllOptions

pytestmark = pytest.mark.every_isa

DTYPES = [WIDE, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(3, 8192), (2, 8195), (1, 70001), (37, 9001)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_long_rows(kernels: Target, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """More classes than a block keeps; few such rows are shared out between blocks."""
    logits = (torch.randn(shape, device=kernels.device) * 2).to(dtype)
    x = torch.randint(0, shape[1], shape[:1], device=kernels.device)
    counts = torch.poisson(torch.full(shape, 0.01, device=kernels.device)) * 2
    for model, target, truth in (
        (Categorical(), x, lambda t: softmax_nll(t, x, 1)),
        (Multinomial(), counts, lambda t: multinomial_nll(t, counts)),
        (Multinomial(), counts.to_sparse_csr(), lambda t: multinomial_nll(t, counts)),
    ):
        for reduction in ("none", "sum"):
            leaf = logits.clone().requires_grad_()
            got = nll(leaf, target, model, reduction=reduction)
            (grad,) = torch.autograd.grad(got.sum(), leaf)
            exact = logits.double().requires_grad_()
            want = truth(exact) if reduction == "none" else truth(exact).sum()
            (slope,) = torch.autograd.grad(want.sum(), exact)
            torch.testing.assert_close(got.double(), want.detach(), rtol=3e-6, atol=0)
            store = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(dtype, 3e-6)
            torch.testing.assert_close(grad.double(), slope, rtol=store, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [0, 1, 3, 4, 8])
def test_rows_at_any_address(kernels: Target, start: int, dtype: torch.dtype) -> None:
    """Columns of a wider matrix: rows whose starts lie otherwise than their gradients'."""
    whole = torch.randn(7, 99, device=kernels.device).to(dtype)
    counts = torch.poisson(torch.full((7, 99), 0.5, device=kernels.device))
    for width in (1, 2, 5, 31, 64):
        logits, x = whole[:, start : start + width], counts[:, start : start + width]
        target = torch.randint(0, width, (7,), device=kernels.device)
        for model, given, want in (
            (Categorical(), target, softmax_nll(logits, target, 1)),
            (Multinomial(), x, multinomial_nll(logits, x)),
        ):
            got = nll(logits, given, model, reduction="none").double()
            torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)
            (grad,) = _gradients(logits, given, model)
            (slope,) = _gradients(logits.double(), given, model)
            store = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(dtype, 2e-6)
            torch.testing.assert_close(grad.double(), slope, rtol=store, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_many_positions_side_by_side(kernels: Target, dtype: torch.dtype) -> None:
    """As many as take vectors of positions."""
    shape = (5, 3, 57344)
    logits = (torch.randn(shape, device=kernels.device) * 3).to(dtype)
    target = torch.randint(0, 3, (5, 57344), device=kernels.device)
    check(logits, target, Categorical(), lambda t: softmax_nll(t, target, 1), 2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 25, 33), (2, 129, 70), (1, 256, 41)], ids=str)
def test_tens_and_hundreds_of_classes_apart(
    kernels: Target, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """A number of classes that the warps of a block keep, and one more in float64."""
    logits = (torch.randn(shape, device=kernels.device) * 3).to(dtype)
    target = torch.randint(0, shape[1], (shape[0], shape[2]), device=kernels.device)
    tolerance = 1e-13 if dtype == WIDE else 2e-6
    check(logits, target, Categorical(), lambda t: softmax_nll(t, target, 1), tolerance)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shape", [(7, 300), (3, 2500), (2, 30011)], ids=str)
def test_the_gradient_lies_where_the_logits_did(
    kernels: Target, shape: tuple[int, int], sparse: bool
) -> None:
    logits = torch.randn(*shape, 1, device=kernels.device)
    x = torch.poisson(torch.full(shape, 0.2, device=kernels.device))
    csr = x.to_sparse_csr()
    parts = (csr.crow_indices(), csr.col_indices(), csr.values())
    target = parts if sparse else (x.unsqueeze(2),)
    row_nll = load(kernels.name, "row_nll").row_nll
    options = RowNllOptions("multinomial", (1.0,), 1, "sample", 1.0, 0.5)
    want = row_nll(logits, target, None, None, options, True)
    got = row_nll(logits, target, None, None, options, True, logits)
    assert got[1] is logits
    for one, two in zip(got, want, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [WIDE, torch.float32], ids=str)
@pytest.mark.parametrize("mixtures", [1, 7, 33, 130])
def test_any_number_of_components(kernels: Target, mixtures: int, dtype: torch.dtype) -> None:
    for channels in (1, 3):
        model = DiscretizedLogisticMixture(channels, mixtures)
        packed = torch.randn(2, model.size, 5, device=kernels.device).to(dtype)
        pixels = torch.randint(0, 256, (2, channels, 5), device=kernels.device).to(torch.uint8)
        (got,) = _gradients(packed, pixels, model)
        with backend("reference"):
            (want,) = _gradients(packed.double(), pixels, model)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)


def _gradients(
    params: torch.Tensor, target: torch.Tensor, model: object
) -> tuple[torch.Tensor, ...]:
    leaf = params.detach().requires_grad_()
    return torch.autograd.grad(nll(leaf, target, model, reduction="sum"), leaf)
