"""The operators over pairs, and log weights, on every backend and device against float64.

The operators' own files go into more, on the CPU alone; here the tensors lie on the device under
test: sizes under and over a tile, dimensions over 32 and 64, every dtype, far points, strides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import test_log_weights as weights
import test_mixture_log_prob as mixture
import test_mmd as discrepancy
import test_tc_terms as total_correlation
import torch
from conftest import Target
from torch import Tensor

import vaefast as vf

pytestmark = pytest.mark.every_isa

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
DTYPES = [F64, F32, BF16, F16]
ROUNDING = {F64: 1e-12, F32: 3e-6, BF16: 2**-8, F16: 2**-11}
Function = Callable[..., Tensor]


def check(
    backend: Target,
    ours: Function,
    exact: Function,
    tensors: Sequence[Tensor],
    tolerance: float | None = None,
    wanted: Sequence[int] | None = None,
) -> None:
    """The value and the gradients that are wanted, of `tensors` on the CPU in their dtypes."""
    every = range(len(tensors)) if wanted is None else wanted
    here = [t.detach().to(backend.device, copy=True) for t in tensors]
    wide = [t.detach().double() for t in tensors]
    for index in every:
        here[index].requires_grad_()
        wide[index].requires_grad_()
    value, expected = ours(*here), exact(*wide)
    dtype = tensors[0].dtype
    assert value.dtype == (F64 if dtype == F64 else F32)
    bound = tolerance or (1e-11 if dtype == F64 else 1e-5)
    _close(value, expected, bound, bound)
    upstream = torch.linspace(0.5, 2.0, expected.numel(), dtype=F64).view_as(expected)
    found = torch.autograd.grad(value, [here[i] for i in every], upstream.to(value))
    want = torch.autograd.grad(expected, [wide[i] for i in every], upstream)
    for got, exactly in zip(found, want, strict=True):
        assert got.dtype == dtype and got.device == value.device
        _close(got, exactly, ROUNDING[dtype], max(10 * bound, ROUNDING[dtype]))


def _close(got: Tensor, want: Tensor, rtol: float, atol: float) -> None:
    most = max(1.0, float(want.detach().abs().max())) if want.numel() else 1.0
    torch.testing.assert_close(
        got.detach().double().cpu(), want.detach(), rtol=rtol, atol=atol * most
    )


def terms(method: str, size: int) -> tuple[Function, Function]:
    return (
        lambda *t: torch.stack(vf.tc_terms(*t, dataset_size=size, method=method)),
        lambda *t: torch.stack(total_correlation.exact(*t, size, method)),
    )


@pytest.mark.each(3)
@pytest.mark.parametrize("method", ["mss", "mws"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 1), (41, 10), (70, 33), (130, 64), (67, 131)], ids=str)
def test_tc_terms(backend, shape, dtype, method):
    tensors = total_correlation.batch(*shape, dtype)
    check(backend, *terms(method, 5000), tensors)


@pytest.mark.parametrize("method", ["mss", "mws"])
def test_tc_terms_of_far_points(backend, method):
    z, mu, logvar = total_correlation.batch(150, 3, F32)
    ours, exact = terms(method, 1000)
    here = [t.to(backend.device).requires_grad_() for t in (z + 50, mu, logvar)]
    value = ours(*here)
    expected = exact(*(t.double() for t in (z + 50, mu, logvar)))
    _close(value, expected, 1e-4, 1e-6)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value.sum(), here))


@pytest.mark.parametrize("scale", [-30.0, 20.0])
def test_tc_terms_of_extreme_scales(backend, scale):
    z, mu, logvar = total_correlation.batch(40, 35)
    logvar[::3] = scale
    z = mu + torch.exp(0.5 * logvar) * (z - mu)
    check(backend, *terms("mss", 100), [z, mu, logvar], 1e-8)


def density(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor) -> Tensor:
    pairs = torch.distributions.Normal(mu, torch.exp(0.5 * logvar)).log_prob(z[:, None]).sum(-1)
    return torch.logsumexp(pairs + log_weights, 1)


SIZES = [(1, 1, 1), (41, 129, 7), (9, 33, 40), (300, 70, 33), (70, 65, 131)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_mixture_log_prob(backend, shape, dtype):
    check(backend, vf.mixture_log_prob, density, mixture.inputs(shape, dtype))


@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [0, 2]], ids=str)
def test_only_the_wanted_gradients_of_a_mixture(backend, wanted):
    check(backend, vf.mixture_log_prob, density, mixture.inputs((41, 70, 33)), wanted=wanted)


def test_components_of_weight_zero(backend):
    z, mu, logvar, log_weights = (t.detach() for t in mixture.inputs((33, 70, 9)))
    log_weights[5:] = -math.inf
    few = [z, mu[:5], logvar[:5], log_weights[:5]]
    value = vf.mixture_log_prob(*(t.to(backend.device) for t in (z, mu, logvar, log_weights)))
    _close(value, density(*few), 1e-11, 1e-11)


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_a_mixture_of_far_points(backend, offset):
    z, *rest = (t.detach() for t in mixture.inputs((40, 200, 3), F32))
    here = [t.to(backend.device).requires_grad_() for t in (z + offset, *rest)]
    value = vf.mixture_log_prob(*here)
    _close(value, mixture.exact(*(t.double() for t in (z + offset, *rest))), 2e-6, 0.0)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value.sum(), here))


@pytest.mark.each(5)
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 2, 1), (41, 130, 7), (257, 129, 33), (70, 40, 131)], ids=str)
def test_mmd(backend, shape, dtype, kernel, unbiased):
    check(
        backend,
        lambda x, y: vf.mmd(x, y, kernel=kernel, unbiased=unbiased),
        lambda x, y: discrepancy.exact(x, y, kernel, None, unbiased),
        discrepancy.samples(shape, dtype),
    )


@pytest.mark.parametrize("wanted", [[0], [1]], ids=str)
@pytest.mark.parametrize("middle", [0.0, 1000.0])
def test_mmd_of_one_gradient_far_from_the_origin(backend, middle, wanted):
    tensors = [t.detach() + middle for t in discrepancy.samples((70, 40, 65), F64)]
    check(
        backend,
        vf.mmd,
        lambda x, y: discrepancy.exact(x, y, "imq", None, True),
        tensors,
        1e-9,
        wanted,
    )


@pytest.mark.each(3)
@pytest.mark.parametrize("prior", ["", "full", "shared", "mean"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 41, 7), (5, 2, 1271), (64, 17, 50), (2, 3, 4, 5)], ids=str)
def test_monte_carlo_kl(backend, shape, dtype, prior):
    names = {"": [], "mean": ["prior_mu"]}.get(prior, ["prior_mu", "prior_scale"])
    given = weights.inputs(shape, prior, dtype)

    def ours(z: Tensor, mu: Tensor, scale: Tensor, *rest: Tensor) -> Tensor:
        if len(rest) == 1:
            rest = (rest[0], torch.zeros_like(rest[0]))
        return vf.monte_carlo_kl(z, mu, scale, prior=rest or None)

    def exact(z: Tensor, mu: Tensor, scale: Tensor, *rest: Tensor) -> Tensor:
        return weights.exact(z, mu, scale, **dict(zip(names, rest, strict=True)))

    check(backend, ours, exact, list(given.values()))


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("shape", [(5, 41, 7), (3, 2, 131)], ids=str)
def test_log_weights(backend, shape, dtype):
    generator = torch.Generator().manual_seed(3)
    z, mu, logvar = (t.detach() for t in weights.inputs(shape, "", dtype).values())
    logits = torch.randn(*shape[:2], 33, generator=generator, dtype=F64).to(dtype)
    x = torch.rand(shape[1], 33, generator=generator, dtype=F64).to(dtype)

    def ours(logits: Tensor, z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        return vf.log_weights(logits, x.to(logits), z, mu, logvar, likelihood="bernoulli")

    def exact(logits: Tensor, z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        target = x.to(logits).expand_as(logits)
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        recon = loss(logits, target, reduction="none").sum(-1)
        return -recon - weights.exact(z, mu, logvar)

    check(backend, ours, exact, [logits, z, mu, logvar])


def test_strides(backend):
    """Transposed, every second column, and a batch in the middle of a larger one."""
    z, mu, logvar = total_correlation.batch(66, 68)
    wide = total_correlation.batch(33, 34)
    want = torch.stack(total_correlation.exact(*wide, 1000, "mss"))
    here = []
    for small, large in zip(wide, (z, mu, logvar), strict=True):
        large = large.to(backend.device)
        large[16:49, ::2] = small.to(backend.device)
        here.append(large[16:49, ::2])
    _close(torch.stack(vf.tc_terms(*here, dataset_size=1000)), want, 1e-11, 1e-11)
    turned = [t.to(backend.device).t().contiguous().t() for t in wide]
    _close(torch.stack(vf.tc_terms(*turned, dataset_size=1000)), want, 1e-11, 1e-11)
    value = vf.mixture_log_prob(*turned)
    log_weights = torch.full((33,), -math.log(33), dtype=F64)
    _close(value, density(*wide, log_weights), 1e-11, 1e-11)
    _close(
        vf.mmd(here[0], turned[1]),
        discrepancy.exact(wide[0], wide[1], "imq", None, True),
        1e-10,
        1e-10,
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_point(backend, bad):
    z, *rest = (t.detach().to(backend.device) for t in mixture.inputs((70, 65, 33), F32))
    clean = vf.mixture_log_prob(z, *rest)
    z[4, 3] = bad
    value = vf.mixture_log_prob(z, *rest)
    others = [i for i in range(70) if i != 4]
    assert not torch.isfinite(value[4])
    assert torch.equal(value[others], clean[others])


def test_the_same_bits_again(backend):
    tensors = [t.to(backend.device).requires_grad_() for t in total_correlation.batch(300, 40, F32)]
    found = []
    for _ in range(2):
        value = torch.stack(vf.tc_terms(*tensors, dataset_size=1000))
        distance = vf.mmd(tensors[0], tensors[1])
        found.append([value, distance, *torch.autograd.grad(value.sum() + distance, tensors)])
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)
