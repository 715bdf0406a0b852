"""Categorical, multinomial and the mixture of discretised logistics."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import scipy.stats
import torch
from conftest import Target
from torch import Tensor

import vaefast as vf
from vaefast import Categorical, DiscretizedLogisticMixture, Multinomial

WIDE = torch.float64


def softmax_nll(logits: Tensor, target: Tensor, dim: int) -> Tensor:
    """Per position, from float64."""
    logits = logits.double()
    picked = logits.gather(dim, target.long().unsqueeze(dim)).squeeze(dim)
    return torch.logsumexp(logits, dim) - picked


def multinomial_nll(logits: Tensor, x: Tensor) -> Tensor:
    log_p, x = torch.log_softmax(logits.double(), -1), x.double()
    constant = torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
    return -(torch.where(x == 0, 0.0, x * log_p).sum(-1) + constant)


def mixture_nll(packed: Tensor, x: Tensor, model: DiscretizedLogisticMixture) -> Tensor:
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


def check(
    params: Tensor,
    target: Tensor,
    model: vf.likelihoods.RowLikelihood,
    truth: Callable[[Tensor], Tensor],
    tolerance: float,
) -> None:
    """Every reduction's value and gradient, with a mask and a weight, against float64."""
    shape = truth(params).shape
    weight = torch.rand(shape, device=params.device)
    mask = torch.rand(shape, device=params.device) < 0.7
    per_sample = torch.rand(shape[0], device=params.device)
    for reduction in ("none", "sample", "batchmean", "sum", "mean"):
        for given in ({}, {"weight": weight, "mask": mask}, {"weight": per_sample}):
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
    logits = (torch.randn(shape, device=backend.device) * 3).to(dtype)
    at = dim % len(shape)
    target = torch.randint(0, shape[at], (*shape[:at], *shape[at + 1 :]), device=backend.device)
    tolerance = 1e-13 if dtype == WIDE else 2e-6
    model = Categorical(dim)
    check(logits, target, model, lambda t: softmax_nll(t, target, at), tolerance)
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


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [WIDE, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (3, 1271), (4, 5000)], ids=str)
def test_multinomial(
    backend: Target, shape: tuple[int, int], dtype: torch.dtype, sparse: bool
) -> None:
    logits = (torch.randn(shape, device=backend.device) * 2).to(dtype)
    x = torch.poisson(torch.full(shape, 0.1, device=backend.device)) * 3
    x[1] = 0
    target = x.to_sparse_csr() if sparse else x
    tolerance = 1e-12 if dtype == WIDE else 3e-6
    check(logits, target, Multinomial(), lambda t: multinomial_nll(t, x), tolerance)
    for stored in (torch.int32, torch.int64, torch.uint8):
        narrow = x.to(stored)
        narrow = narrow.to_sparse_csr() if sparse else narrow
        torch.testing.assert_close(
            vf.nll(logits, narrow, "multinomial"), vf.nll(logits, target, "multinomial")
        )


def test_masked_out_items(backend: Target) -> None:
    """Logits of -inf, as recommenders rule items out: no count, no gradient, whole blocks too."""
    logits = torch.randn(2, 3000, device=backend.device)
    logits[0, :2000] = logits[1, 1000:2500] = -math.inf
    x = torch.zeros_like(logits)
    x[0, 2500], x[1, 3] = 2, 1
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


@pytest.mark.parametrize("model", MIXTURES, ids=str)
@pytest.mark.parametrize("dtype", [WIDE, torch.float32, torch.bfloat16], ids=str)
def test_mixture(backend: Target, model: DiscretizedLogisticMixture, dtype: torch.dtype) -> None:
    packed, levels = mixture_inputs(model, backend.device, dtype)
    scaled = model.low + levels.double() / (2**model.bits - 1) * (model.high - model.low)

    def truth(t: Tensor) -> Tensor:
        return mixture_nll(t.movedim(model.dim, -1), scaled.movedim(model.dim, -1), model)

    check(packed, levels, model, truth, 1e-9 if dtype == WIDE else 2e-5)
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
    settings = ((), 1, "sum", 1.0, 1.0, True, kernels.name)
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
