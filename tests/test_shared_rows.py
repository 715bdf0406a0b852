"""Rows of more classes than a block's registers hold, and as many as its shared memory: read once,
with the bits of rows that are read twice."""

from __future__ import annotations

import pytest
import torch
from conftest import Target
from test_likelihood_rows import multinomial_nll, softmax_nll

from vaefast import nll

# Rows are whole where there are 256, or few vectors.
SHAPES = [
    ((257, 8203), torch.float32),
    ((256, 4101), torch.float64),
    ((3, 9001), torch.bfloat16),
    ((2, 16_383), torch.float16),
]


@pytest.mark.parametrize("likelihood", ["categorical", "multinomial", "sparse"])
@pytest.mark.parametrize(("shape", "dtype"), SHAPES, ids=str)
def test_they_are_right_and_the_same_bits_whatever_a_block_has(
    kernels: Target,
    shape: tuple[int, int],
    dtype: torch.dtype,
    likelihood: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = (torch.randn(shape, device=kernels.device) * 2).to(dtype).requires_grad_()
    classes = torch.randint(0, shape[1], shape[:1], device=kernels.device)
    counts = torch.zeros(shape, device=kernels.device)
    counts[:, ::97] = 3.0
    target = classes if likelihood == "categorical" else counts
    if likelihood == "sparse":
        target = counts.to_sparse_csr()
    name = "categorical" if likelihood == "categorical" else "multinomial"
    found = []
    # The emulated GPU has as much as this says; others are what they are.
    for shared in ("0", "40000", "232448"):
        monkeypatch.setenv("VAEFAST_EMULATED_SHARED", shared)
        loss = nll(logits, target, name, reduction="sample")
        found.append((loss.detach(), *torch.autograd.grad(loss.sum(), logits)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    exact = logits.detach().double().requires_grad_()
    if likelihood == "categorical":
        want = softmax_nll(exact, classes, 1)
    else:
        want = multinomial_nll(exact, counts)
    (slope,) = torch.autograd.grad(want.sum(), exact)
    torch.testing.assert_close(found[0][0].double(), want.detach(), rtol=3e-6, atol=0)
    store = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(dtype, 3e-6)
    torch.testing.assert_close(found[0][1].double(), slope, rtol=store, atol=1e-6)
