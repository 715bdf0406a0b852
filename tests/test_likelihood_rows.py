"""Categorical and multinomial, and what all likelihoods with a class dimension share."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import scipy.stats
import torch
from conftest import Target
from row_cases import EVERY, WIDE, check
from torch import Tensor

import vaefast as vf
from vaefast import Categorical, DiscretizedLogisticMixture, Multinomial


def softmax_nll(logits: Tensor, target: Tensor, dim: int) -> Tensor:
    """Per position, from float64."""
    logits = logits.double()
    picked = logits.gather(dim, target.long().unsqueeze(dim)).squeeze(dim)
    return torch.logsumexp(logits, dim) - picked


def multinomial_nll(logits: Tensor, x: Tensor) -> Tensor:
    log_p, x = torch.log_softmax(logits.double(), -1), x.double()
    constant = torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
    return -(torch.where(x == 0, 0.0, x * log_p).sum(-1) + constant)


@pytest.mark.parametrize("dtype", [WIDE, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((3, 7, 5, 11), 1),
        ((2, 300, 41), 1),
        ((5, 1271), 1),
        ((3, 5, 11, 7), -1),
        ((2, 5, 37, 3), 2),
    ],
    ids=str,
)
def test_categorical(backend: Target, shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    check_categorical(backend, shape, dim, dtype)


def check_categorical(
    backend: Target,
    shape: tuple[int, ...],
    dim: int,
    dtype: torch.dtype,
    settings: Iterable[tuple[str, str]] = EVERY,
) -> None:
    logits = (torch.randn(shape, device=backend.device) * 3).to(dtype)
    at = dim % len(shape)
    target = torch.randint(0, shape[at], (*shape[:at], *shape[at + 1 :]), device=backend.device)
    tolerance = 1e-13 if dtype == WIDE else 2e-6
    model = Categorical(dim)
    check(logits, target, model, lambda t: softmax_nll(t, target, at), tolerance, settings)
    narrow = target.to(torch.uint8 if shape[at] <= 256 else torch.int32)
    assert torch.equal(vf.nll(logits, narrow, model), vf.nll(logits, target, model))


def test_categorical_extremes(backend: Target) -> None:
    """Logits that overflow or underflow alone, and an index that is no class."""
    for shape, dim in (((2, 4, 3), 1), ((2, 3, 4), -1)):
        logits = torch.zeros(shape, device=backend.device)
        view = logits.movedim(dim, -1)
        view[0, 0] = torch.tensor([1e4, -1e4, 1e4, 0.0])
        view[0, 1] = torch.tensor([-3e38, 3e38, 0.0, 0.0])
        view[1, 0] = torch.tensor([-math.inf, 2.0, 2.0, -math.inf])
        target = torch.tensor([[2, 1, 0], [1, 7, -1]], device=backend.device)
        logits.requires_grad_()
        loss = vf.nll(logits, target, Categorical(dim), reduction="none")
        want = torch.tensor([[math.log(2), 0.0, math.log(4)], [math.log(2), math.nan, math.nan]])
        torch.testing.assert_close(loss.cpu(), want, equal_nan=True)
        mask = target.ge(0) & target.lt(4)
        masked = vf.nll(logits, target, Categorical(dim), mask=mask)
        (grad,) = torch.autograd.grad(masked, logits)
        assert torch.isfinite(masked) and torch.isfinite(grad).all()
        left_out = grad.movedim(dim, -1)[~mask]
        assert torch.equal(left_out, torch.zeros_like(left_out))


# A kernel of its own serves each on a GPU, side by side and last.
@pytest.mark.parametrize("classes", [5, 40, 300, 1300])
@pytest.mark.parametrize("dim", [1, -1])
def test_an_index_that_is_no_class(backend: Target, classes: int, dim: int) -> None:
    shape = (2, classes, 3) if dim == 1 else (2, 3, classes)
    logits = torch.randn(shape, device=backend.device)
    target = torch.tensor([[1, classes, 0], [-1, classes - 1, 2]], device=backend.device)
    loss = vf.nll(logits, target, Categorical(dim), reduction="none")
    want = softmax_nll(logits, target.clamp(0, classes - 1), dim % 3)
    want[(target < 0) | (target >= classes)] = math.nan
    torch.testing.assert_close(loss.double(), want, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [WIDE, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (3, 1271), (4, 5000)], ids=str)
def test_multinomial(
    backend: Target, shape: tuple[int, int], dtype: torch.dtype, sparse: bool
) -> None:
    check_multinomial(backend, shape, dtype, sparse)


def check_multinomial(
    backend: Target,
    shape: tuple[int, int],
    dtype: torch.dtype,
    sparse: bool,
    settings: Iterable[tuple[str, str]] = EVERY,
    stored: Iterable[torch.dtype] = (torch.int32, torch.int64, torch.uint8),
) -> None:
    logits = (torch.randn(shape, device=backend.device) * 2).to(dtype)
    x = torch.poisson(torch.full(shape, 0.1, device=backend.device)) * 3
    x[1] = 0
    target = x.to_sparse_csr() if sparse else x
    tolerance = 1e-12 if dtype == WIDE else 3e-6
    check(logits, target, Multinomial(), lambda t: multinomial_nll(t, x), tolerance, settings)
    for kind in stored:
        narrow = x.to(kind)
        narrow = narrow.to_sparse_csr() if sparse else narrow
        torch.testing.assert_close(
            vf.nll(logits, narrow, "multinomial"), vf.nll(logits, target, "multinomial")
        )


def test_masked_out_items(backend: Target) -> None:
    """Logits of -inf, as recommenders rule items out: no count, no gradient, whole blocks too."""
    logits = torch.randn(2, 5000, device=backend.device)
    logits[0, :4500] = logits[1, 1000:2500] = -math.inf
    x = torch.zeros_like(logits)
    x[0, 4800], x[1, 3] = 2, 1
    for target in (x, x.to_sparse_csr()):
        leaf = logits.clone().requires_grad_()
        loss = vf.nll(leaf, target, Multinomial(const=False), reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        log_p = torch.log_softmax(logits.double(), -1)
        want = -torch.where(x == 0, 0.0, x * log_p).sum(-1)
        torch.testing.assert_close(loss.double(), want)
        want = x.sum(-1, keepdim=True) * log_p.exp() - x
        torch.testing.assert_close(grad.double(), want, rtol=1e-5, atol=1e-8)


def test_multinomial_of_large_counts(backend: Target) -> None:
    """The constant and the rest are 10^7 each and cancel to a few nats."""
    x = torch.randint(500000, 1000000, (3, 41), device=backend.device).double()
    logits = torch.log(x).float()
    logits = logits - logits.mean(-1, keepdim=True)
    got = vf.nll(logits, x.int(), "multinomial", reduction="none")
    want = multinomial_nll(logits, x)
    # What rounding the logits to float32 is worth.
    worth = (x * logits.double().abs()).sum(-1) * 2.0**-24
    assert ((got.double() - want).abs() < worth + 1e-3).all()


def test_multinomial_const_and_scipy(backend: Target) -> None:
    logits = torch.randn(3, 6, dtype=WIDE, device=backend.device)
    x = torch.randint(0, 5, (3, 6), device=backend.device)
    p = torch.softmax(logits, -1).cpu().numpy()
    rows = zip(x.cpu().numpy(), p, strict=True)
    want = torch.tensor([-scipy.stats.multinomial.logpmf(a, a.sum(), b) for a, b in rows])
    got = vf.nll(logits, x, "multinomial", reduction="none")
    torch.testing.assert_close(got.cpu(), want, rtol=1e-10, atol=1e-10)
    got = vf.nll(logits, x, Multinomial(const=False), reduction="none")
    torch.testing.assert_close(got, -(torch.log_softmax(logits, -1) * x).sum(-1))


def test_leading_samples(backend: Target) -> None:
    """[K, B, ...] parameters against a [B, ...] target are K calls, gradients included."""
    device = backend.device
    cases = [
        (Categorical(), torch.randn(4, 3, 7, 5, device=device), torch.randint(0, 7, (3, 5))),
        (Categorical(-1), torch.randn(4, 3, 5, 7, device=device), torch.randint(0, 7, (3, 5))),
        (Multinomial(), torch.randn(4, 3, 41, device=device), torch.randint(0, 4, (3, 41))),
        (
            Multinomial(),
            torch.randn(4, 3, 41, device=device),
            torch.randint(0, 2, (3, 41)).float().to_sparse_csr(),
        ),
        (
            DiscretizedLogisticMixture(1, 2),
            torch.randn(4, 3, 6, 5, device=device),
            torch.randint(0, 255, (3, 1, 5)).to(torch.uint8),
        ),
    ]
    for model, params, x in cases:
        target = x.to(device)
        for reduction in ("none", "sample"):
            params.requires_grad_()
            got = vf.nll(params, target, model, reduction=reduction)
            want = torch.stack([vf.nll(p, target, model, reduction=reduction) for p in params])
            torch.testing.assert_close(got, want)
            upstream = torch.rand_like(got)
            first, second = (torch.autograd.grad(o, params, upstream)[0] for o in (got, want))
            torch.testing.assert_close(first, second)
            params = params.detach()


def test_elbo(backend: Target) -> None:
    logits = torch.randn(4, 7, 5, device=backend.device)
    x = torch.randint(0, 7, (4, 5), device=backend.device)
    kl = torch.rand(4, device=backend.device)
    for reduction, divisor in (("batchmean", 1), ("mean", 5)):
        result = vf.elbo_loss(logits, x, kl=kl, likelihood="categorical", reduction=reduction)
        want = (vf.nll(logits, x, "categorical") + kl.mean()) / divisor
        torch.testing.assert_close(result.loss, want)


def test_views_are_read_where_they_lie(backend: Target) -> None:
    """Logits that are half of a wider tensor, channels last, or a negated view."""
    whole = torch.randn(3, 14, 6, 4, device=backend.device)
    target = torch.randint(0, 7, (3, 6, 4), device=backend.device)
    for logits in (
        whole[:, 7:],
        whole[:, ::2],
        whole[:, :7].contiguous(memory_format=torch.channels_last),
        torch._neg_view(whole[:, :7]),
        whole[:1, :7].expand(3, -1, -1, -1),
    ):
        want = softmax_nll(logits, target, 1).sum() / 3
        got = vf.nll(logits, target, "categorical").double()
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    empty = torch.randn(0, 7, 4, device=backend.device, requires_grad=True)
    none = torch.zeros(0, 4, dtype=torch.int64, device=backend.device)
    loss = vf.nll(empty, none, "categorical", reduction="sum")
    loss.backward()
    assert float(loss) == 0 and empty.grad.shape == empty.shape


def test_same_bits_for_any_thread_count(kernels: Target) -> None:
    logits = torch.randn(33, 257, 150, device=kernels.device)
    x = torch.randint(0, 257, (33, 150), device=kernels.device)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaf = logits.clone().requires_grad_()
        loss = vf.nll(leaf, x, "categorical")
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(grad, results[0][1])


def test_second_backward(kernels: Target) -> None:
    logits = torch.randn(3, 7, 5, device=kernels.device, requires_grad=True)
    x = torch.randint(0, 7, (3, 5), device=kernels.device)
    loss = vf.nll(logits, x, "categorical") * 3
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, logits)
    assert torch.equal(kept, second) and torch.equal(kept, first)


def test_gradcheck_and_opcheck(kernels: Target) -> None:
    device = kernels.device
    logits = torch.randn(2, 4, 3, dtype=WIDE, device=device, requires_grad=True)
    x = torch.randint(0, 4, (2, 3), device=device)
    rows = torch.randn(3, 5, dtype=WIDE, device=device, requires_grad=True)
    counts = torch.randint(0, 4, (3, 5), device=device)
    model = DiscretizedLogisticMixture(3, 2)
    packed = torch.randn(2, model.size, 3, dtype=WIDE, device=device, requires_grad=True)
    pixels = torch.randint(0, 256, (2, 3, 3), device=device).to(torch.uint8)
    for leaf, target, likelihood in (
        (logits, x, Categorical()),
        (rows, counts, Multinomial()),
        (rows, counts.double().to_sparse_csr(), Multinomial()),
        (packed, pixels, model),
    ):
        for reduction in ("none", "sample", "batchmean"):
            assert torch.autograd.gradcheck(
                lambda p, t=target, m=likelihood, r=reduction: vf.nll(p, t, m, reduction=r), leaf
            )
        assert torch.autograd.gradgradcheck(lambda p, t=target, m=likelihood: vf.nll(p, t, m), leaf)
    settings = ((), 1, "sum", 1.0, 1.0, True, None, kernels.name)
    torch.library.opcheck(
        torch.ops.vaefast.row_nll.default,
        (logits.detach(), [x], None, None, "categorical", *settings),
    )


def test_compiles_without_a_break(kernels: Target) -> None:
    def step(logits: Tensor, x: Tensor) -> Tensor:
        return vf.nll(logits.tanh(), x, "categorical")

    logits = torch.randn(3, 7, 5, device=kernels.device, requires_grad=True)
    x = torch.randint(0, 7, (3, 5), device=kernels.device)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (got,) = torch.autograd.grad(compiled(logits, x), logits)
    (want,) = torch.autograd.grad(step(logits, x), logits)
    torch.testing.assert_close(got, want)


def test_samples() -> None:
    torch.set_num_threads(1)
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0])
    spread = logits[None, :, None].expand(2, 4, 20000).contiguous()
    drawn = Categorical().sample(spread, seed=3)
    assert drawn.shape == (2, 20000) and drawn.dtype == torch.int64
    seen = torch.bincount(drawn.flatten(), minlength=4).double()
    expected = torch.softmax(logits.double(), 0) * 40000
    assert scipy.stats.chisquare(seen.numpy(), expected.numpy()).pvalue > 1e-4
    mean = Categorical().mean(spread)
    assert float(drawn.double().mean()) == pytest.approx(float(mean[0, 0]), abs=0.03)
    rows = logits.expand(5000, 4)
    counts = Multinomial().sample(rows, total=7, seed=3)
    assert torch.equal(counts.sum(-1), torch.full((5000,), 7.0))
    torch.testing.assert_close(counts.mean(0), Multinomial().mean(rows, 7)[0], rtol=0, atol=0.1)


def test_bad_inputs() -> None:
    logits, x = torch.zeros(2, 4, 3), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="does not fit"):
        vf.nll(logits, x[:, :2], "categorical")
    with pytest.raises(TypeError, match="target"):
        vf.nll(logits, x.float(), "categorical")
    with pytest.raises(ValueError, match="dim"):
        vf.nll(logits, x, Categorical(0))
    with pytest.raises(ValueError, match="support"):
        vf.nll(logits, x - 1, "categorical", validate=True)
    with pytest.raises(ValueError, match="support"):
        vf.nll(logits, x + 4, "categorical", validate=True)
    with pytest.raises(ValueError, match="100 numbers"):
        vf.nll(logits, x[:, None].byte(), "discretized_logistic_mixture")
    with pytest.raises(ValueError, match="channels"):
        DiscretizedLogisticMixture(channels=2)
    with pytest.raises(ValueError, match="mixtures"):
        DiscretizedLogisticMixture(mixtures=0)
    with pytest.raises(ValueError, match="takes 1 parameter"):
        vf.nll((logits, logits), x, "categorical")
    with pytest.raises(ValueError, match="likelihood must be one of"):
        vf.nll(logits, x, "categorial")
