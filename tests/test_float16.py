"""Gradients in float16: finite where the mean over the batch is, and not lost where a loss scaler
brings them back."""

import random

import likelihood_cases
import pytest
import torch

import vaefast as vf

HALF = torch.float16
BATCH, WIDTH = 512, 6
# GradScaler's first scale.
SCALE = 65536.0


def graded(model, params, target, wide=False, reduction="batchmean", scale=SCALE):
    """The gradients of the scaled loss; `wide`: in float64, rounded at the end."""
    dtype = torch.float64 if wide else HALF
    leaves = [p.to(HALF).to(dtype).requires_grad_() for p in params]
    loss = vf.nll(tuple(leaves), target, model, reduction=reduction)
    grads = torch.autograd.grad(loss.sum() * scale, leaves)
    return [g.to(HALF) for g in grads]


def assert_rounded(got, want):
    # Of float32 arithmetic, whose terms may cancel.
    tiny = 2e-6 * float(want[want.isfinite()].abs().max())
    torch.testing.assert_close(got, want, rtol=2**-9, atol=2**-24 + tiny)


def test_an_error_of_many_deviations_does_not_overflow(backend):
    """exp(10) 36 / 2 is some 400,000 per element, its mean over the batch not 1,000."""
    device = backend.device
    mean = torch.full((BATCH, WIDTH), 6.0, dtype=HALF, device=device, requires_grad=True)
    logvar = torch.full((BATCH, WIDTH), -10.0, dtype=HALF, device=device, requires_grad=True)
    x = torch.zeros(BATCH, WIDTH, device=device)
    loss = vf.nll((mean, logvar), x, "gaussian")
    got = torch.autograd.grad(loss, (mean, logvar))
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in got)
    exact = 6.0 * torch.tensor(10.0).exp() / BATCH
    torch.testing.assert_close(got[0].float(), exact.expand(BATCH, WIDTH), rtol=2**-9, atol=0.0)


@pytest.mark.parametrize("case", likelihood_cases.ALL, ids=str)
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sample", "none"])
def test_every_likelihood_with_a_loss_scaler(kernels, case, reduction):
    rng = random.Random(str(case))
    params = [p.to(kernels.device) for p in case.params((BATCH, WIDTH), rng)]
    target = case.target((BATCH, WIDTH), rng).to(kernels.device)
    model = case.build()
    scale = SCALE if reduction in ("batchmean", "mean") else 1.0
    got = graded(model, params, target.float(), reduction=reduction, scale=scale)
    want = graded(model, params, target.double(), wide=True, reduction=reduction, scale=scale)
    for one, two in zip(got, want, strict=True):
        assert one.dtype == HALF
        assert_rounded(one, two)


@pytest.mark.parametrize("likelihood", ["categorical", "multinomial"])
def test_rows(kernels, likelihood):
    logits = torch.randn(BATCH, 7, dtype=torch.float64, device=kernels.device)
    if likelihood == "categorical":
        target = torch.randint(0, 7, (BATCH,), device=kernels.device)
    else:
        target = torch.randint(0, 5, (BATCH, 7), device=kernels.device).double()
    (got,) = graded(likelihood, [logits], target)
    (want,) = graded(likelihood, [logits], target, wide=True)
    assert_rounded(got, want)


@pytest.mark.parametrize("error", [2.0, 1e-3])
def test_linear(kernels, error):
    """Beside what a chunk's gradients are, the products with h and the weight."""
    h, w, v = (0.1 * torch.randn(*shape, device=kernels.device) for shape in
               ((BATCH, 5), (WIDTH, 5), (WIDTH, 5)))  # fmt: skip
    b = torch.full((WIDTH,), -9.0 if error > 1 else 0.0, device=kernels.device)
    x = torch.full((BATCH, WIDTH), error, device=kernels.device)
    found = []
    for dtype in (HALF, torch.float64):
        leaves = [t.to(HALF).to(dtype).requires_grad_() for t in (h, w, v, b)]
        loss = vf.linear_nll(leaves[0], (leaves[1], leaves[2]), (None, leaves[3]), x, "gaussian")
        found.append(torch.autograd.grad(loss, leaves))
    for got, want in zip(*found, strict=True):
        assert got.dtype == HALF and torch.isfinite(got).all()
        # The layer's output is float16 too.
        scale = float(want.abs().max())
        torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=2e-2 * scale)
