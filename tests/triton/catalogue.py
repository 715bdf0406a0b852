"""Calls of every operator, as models make them: what is compiled ahead of time, and documented."""

from typing import Any, NamedTuple

import torch
from likelihood_cases import ALL

from vaefast.backends._options import (
    MmdOptions,
    NllOptions,
    Posterior,
    RowNllOptions,
    Transform,
    Weighing,
)
from vaefast.backends.triton import (
    mixture_log_prob,
    mmd,
    monte_carlo_kl,
    nll,
    noise,
    row_nll,
    sample_kl,
    sample_monte_carlo_kl,
    scale,
    tc_terms,
)
from vaefast.backends.triton.likelihoods import HEAVY

F64, F32, BF16, F16, U8 = torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8
I64 = torch.int64
LATENT, IMAGE = (256, 4, 64, 64), (64, 3, 64, 64)
# Memory that nobody reads: the calls are only compiled.
_STATE = torch.empty(2, dtype=torch.int64)


class Call(NamedTuple):
    """A call; `kernels` it launches; `bytes` it must move per element; `loads` that are 16 wide."""

    name: str
    run: Any
    kernels: int
    bytes: float
    loads: int
    everywhere: bool = False

    def __str__(self):
        return self.name


def _empty(*shape, dtype=F32):
    return torch.empty(shape, dtype=dtype)


def _posterior(
    shape=LATENT, dtype=F32, reduce="sample", samples=0, backward=False, chunk=False, prior=False,
    per_sample=False, param="logvar", clamp=(), mask=False,
):  # fmt: skip
    """A call of `sample_kl`, or of its backward pass."""

    def run():
        if chunk:
            mu, scale = _empty(shape[0], 2 * shape[1], *shape[2:], dtype=dtype).chunk(2, 1)
        else:
            mu, scale = _empty(*shape, dtype=dtype), _empty(*shape, dtype=dtype)
        options = Posterior(Transform(param, 0.0, clamp), samples, 1.0, 0, reduce, 0.25)
        state = torch.empty(shape[0], 2, dtype=torch.int64) if per_sample else _STATE
        priors = [_empty(*shape, dtype=dtype) for _ in range(2)] if prior else [None, None]
        hidden = torch.empty(shape, dtype=torch.bool) if mask else None
        given = (mu, scale, *priors, hidden, None, None if samples < 0 else state, None, options)
        if not backward:
            sample_kl.sample_kl(*given)
            return
        grad_z = (
            None if samples < 0 else _empty(*((samples,) if samples else ()), *shape, dtype=dtype)
        )
        grad_kl = {"": None, "sample": _empty(shape[0]), "sum": _empty()}[reduce]
        sample_kl.sample_kl_backward(grad_z, grad_kl, *given, [True, True, prior, prior])

    return run


def _nll(form, count=1, scalar=-1, shape=IMAGE, dtype=F32, target=None, reduce="sum", draw=False):
    """A call of `nll` that makes every gradient."""

    def run():
        params = [_empty(*shape, dtype=dtype) for _ in range(count)]
        if scalar >= 0:
            params.append(_empty())
        options = NllOptions(form, (1.0, 1.0), scalar, 1, 255.0, 0, reduce, 0.25, 0.25)
        x = _empty(*shape, dtype=target or dtype)
        nll.nll(params, x, None, None, _STATE if draw else None, (), options, [True] * len(params))

    return run


def _noise(dtype):
    return lambda: noise.noise(_STATE, (1 << 20,), dtype, "normal", 0, 0)


CALLS = [
    Call("noise, float32", _noise(F32), 1, 4, 0, True),
    Call("noise, bfloat16", _noise(BF16), 1, 2, 0),
    Call("rsample", _posterior(reduce=""), 1, 12, 2),
    Call("rsample, 8 samples", _posterior(reduce="", samples=8), 1, 8 + 8 * 4, 2),
    Call("sample_kl", _posterior(), 2, 12, 2, True),
    Call("sample_kl, 1024x128", _posterior((1024, 128)), 1, 12, 2),
    Call("sample_kl, 128x20", _posterior((128, 20)), 1, 12, 2),
    Call("sample_kl, summed", _posterior(reduce="sum"), 2, 12, 2),
    Call("sample_kl, chunks", _posterior(chunk=True), 2, 12, 2),
    Call("sample_kl, seeds per sample", _posterior(per_sample=True), 2, 12, 2),
    Call("sample_kl, bfloat16", _posterior(dtype=BF16), 2, 6, 2, True),
    Call("sample_kl, bfloat16 chunks", _posterior(dtype=BF16, chunk=True), 2, 6, 2),
    Call("sample_kl, float16", _posterior(dtype=F16), 2, 6, 2),
    Call("sample_kl, float64", _posterior(dtype=F64), 2, 24, 2, True),
    Call("sample_kl, learned prior", _posterior(prior=True), 2, 20, 4),
    Call(
        "sample_kl, softplus, tanh clamp, mask",
        _posterior(param="softplus", clamp=(-5.0, 5.0, 1.0), mask=True),
        *(2, 13, 2),
    ),
    Call("gaussian_kl", _posterior(samples=-1), 2, 8, 2),
    Call("gaussian_kl, per dimension", _posterior((1024, 128), reduce="dim", samples=-1), 2, 8, 2),
    Call("sample_kl backward", _posterior(backward=True), 1, 20, 3, True),
    Call("sample_kl backward, 128x20", _posterior((128, 20), backward=True), 1, 20, 3),
    Call("sample_kl backward, chunks", _posterior(backward=True, chunk=True), 1, 20, 3),
    Call("sample_kl backward, bfloat16", _posterior(dtype=BF16, backward=True), 1, 10, 3, True),
    Call("sample_kl backward, float64", _posterior(dtype=F64, backward=True), 1, 40, 3),
    Call("sample_kl backward, learned prior", _posterior(prior=True, backward=True), 1, 36, 5),
    Call(
        "sample_kl backward, softplus, tanh clamp, mask, prior",
        _posterior(param="softplus", clamp=(-5.0, 5.0, 1.0), mask=True, prior=True, backward=True),
        *(1, 37, 5, True),
    ),
    Call("bernoulli, uint8 target", _nll("bernoulli", target=U8), 2, 9, 1, True),
    Call("bernoulli, binarised uint8", _nll("bernoulli", target=U8, draw=True), 2, 9, 1),
    Call("bernoulli, bfloat16", _nll("bernoulli", dtype=BF16), 2, 6, 2),
    Call("bernoulli, bfloat16 and float32", _nll("bernoulli", dtype=BF16, target=F32), 2, 8, 2),
    Call("bernoulli, float64", _nll("bernoulli", dtype=F64), 2, 24, 2),
    Call("bernoulli, per sample", _nll("bernoulli", reduce="sample"), 2, 12, 2),
    Call("bernoulli, 128x784", _nll("bernoulli", shape=(128, 784)), 2, 12, 2),
    Call("scale_", lambda: scale.scale_(_empty(*IMAGE), _empty()), 1, 8, 1, True),
]
# Every likelihood there is, by itself.
for _case in {c.form: c for c in ALL}.values():
    _scalar = 1 if _case.scalar is not None else -1
    _run = _nll(_case.form, _case.count, _scalar)
    # With a learned scalar a second sum, its gradient's.
    CALLS.append(
        Call(
            f"nll, {_case.form}",
            _run,
            2 + (_scalar == 1),
            4 + 8 * _case.count,
            _case.count + 1,
            _case.form in (*HEAVY, "bernoulli"),
        )
    )


_MIXTURE = (1.0, 0.0, -1.0, 2 / 255, 255.0, -7.0, 10.0)


def _rows(form, shape, target, *numbers, dtype=F32):
    """A call of `row_nll` over params `shape` that makes the gradient."""

    def run():
        options = RowNllOptions(form, numbers, 1, "sum", 0.25, 0.25)
        row_nll.row_nll(_empty(*shape, dtype=dtype), target, None, None, options, True)

    return run


def _softmax(rows, classes, inner=1, dtype=F32):
    target = (torch.empty(rows, inner, dtype=torch.int64),)
    return _rows("categorical", (rows, classes, inner), target, dtype=dtype)


def _counts(rows, classes, sparse=False, dtype=F32):
    csr = (torch.empty(rows + 1, dtype=I64), torch.empty(100 * rows, dtype=I64), _empty(100 * rows))
    target = csr if sparse else (_empty(rows, classes, 1),)
    return _rows("multinomial", (rows, classes, 1), target, 0.0, dtype=dtype)


def _mixed(size, channels, dtype=F32):
    target = (torch.empty(16, channels, 1024, dtype=U8),)
    numbers = (*_MIXTURE, float(channels))
    return _rows("logistic_mixture", (16, size, 1024), target, *numbers, dtype=dtype)


# Bytes are per number of params; the target's are left out but for dense counts.
CALLS += [
    Call("categorical, 256 levels", _softmax(16, 256, 1024), 2, 8, 4, True),
    Call("categorical, 256 levels, bfloat16", _softmax(16, 256, 1024, BF16), 2, 4, 2),
    Call("categorical, 256 levels, float64", _softmax(16, 256, 1024, F64), 2, 16, 4),
    Call("categorical, 1000 classes last", _softmax(512, 1000), 2, 8, 4, True),
    Call("categorical, 50000 classes last", _softmax(512, 50000), 3, 12, 4),
    Call("multinomial, 20000", _counts(500, 20000), 3, 20, 8, True),
    Call("multinomial, 20000, bfloat16", _counts(500, 20000, dtype=BF16), 3, 14, 4),
    Call("multinomial, 20000, sparse", _counts(500, 20000, True), 5, 12, 0),
    Call("mixture of 10, 3 channels", _mixed(100, 3), 2, 8, 10, True),
    Call("mixture of 10, 3 channels, float64", _mixed(100, 3, F64), 2, 16, 0),
    Call("mixture of 10, 1 channel", _mixed(30, 1), 2, 8, 3),
]


def _mixture(points, components, dims, dtype=F32, backward=False):
    def run():
        z, weights = _empty(points, dims, dtype=dtype), _empty(components, dtype=dtype)
        given = (z, *(_empty(components, dims, dtype=dtype) for _ in range(2)), weights)
        if backward:
            joint = _empty(points, dtype=F64)
            mixture_log_prob.mixture_log_prob_backward(_empty(points, dtype=dtype), *given, joint)
        else:
            mixture_log_prob.mixture_log_prob(*given)

    return run


def _tc(points, dims, dtype=F32, backward=False):
    def run():
        given = [_empty(points, dims, dtype=dtype) for _ in range(3)]
        weighing = Weighing(-7.0, 0, 2.0, 3.0)
        if backward:
            joint, marginals = _empty(points, dtype=F64), _empty(points, dims, dtype=dtype)
            upstream = _empty(3, points, dtype=dtype)
            tc_terms.tc_terms_backward(upstream, *given, joint, marginals, weighing)
        else:
            tc_terms.tc_terms(*given, weighing)

    return run


def _mmd(points, dims, rbf=False, need=(True, False), dtype=F32):
    scales = (2.0, 4.0, 10.0, 20.0, 40.0, 100.0, 200.0)
    return lambda: mmd.mmd(
        *(_empty(points, dims, dtype=dtype) for _ in range(2)),
        MmdOptions(rbf, scales, True),
        list(need),
    )


# Over all pairs: arithmetic, not bytes, is what these take, and their tiles come from the caches.
CALLS += [
    Call("mixture of 500 in 40", _mixture(256, 500, 40), 1, 0, 0, True),
    Call("mixture of 500 in 40 backward", _mixture(256, 500, 40, backward=True), 2, 0, 0),
    Call("mixture of 500 in 40, float64", _mixture(256, 500, 40, F64), 1, 0, 0),
    Call("mixture of 500 in 40, float64, backward", _mixture(256, 500, 40, F64, True), 2, 0, 0),
    Call("tc_terms, 1024x10", _tc(1024, 10), 2, 0, 0),
    Call("tc_terms, 1024x64", _tc(1024, 64), 2, 0, 0),
    Call("tc_terms, 1024x64 backward", _tc(1024, 64, backward=True), 2, 0, 0, True),
    Call("tc_terms, 1024x131", _tc(1024, 131), 2, 0, 0),
    Call("tc_terms, 1024x64, float64, backward", _tc(1024, 64, F64, True), 2, 0, 0),
    Call("mmd, 512x10, 7 scales", _mmd(512, 10), 4, 0, 0),
    Call("mmd, 512x10, both gradients", _mmd(512, 10, need=(True, True)), 5, 0, 0),
    Call("mmd, 512x32, rbf, float64", _mmd(512, 32, True, dtype=F64), 4, 0, 0),
    Call("mmd, 512x131", _mmd(512, 131), 4, 0, 0),
]


def _given(shape=(8, 1024, 128), dtype=F32, prior=False, backward=False):
    """A call of `monte_carlo_kl`, or of its backward pass."""

    def run():
        z, one = _empty(*shape, dtype=dtype), shape[1:]
        given = [_empty(*one, dtype=dtype) for _ in range(2)]
        given += [_empty(*one, dtype=dtype) for _ in range(2)] if prior else [None, None]
        transform = Transform("logvar", 0.0, ())
        if backward:
            need = [True, True, True, prior, prior]
            upstream = _empty(*shape[:2])
            monte_carlo_kl.monte_carlo_kl_backward(upstream, z, *given, transform, True, need)
        else:
            monte_carlo_kl.monte_carlo_kl(z, *given, transform, True)

    return run


# Bytes are per number of z.
CALLS += [
    Call("monte_carlo_kl, 8x1024x128", _given(), 1, 5, 3, True),
    Call("monte_carlo_kl, 8x1024x128, learned prior", _given(prior=True), 1, 6, 5),
    Call("monte_carlo_kl, 8x1024x128, bfloat16", _given(dtype=BF16), 1, 2.5, 3),
    Call("monte_carlo_kl, 8x1024x128, float64", _given(dtype=F64), 1, 10, 3),
    Call("monte_carlo_kl, 8x64x4x64x64", _given((8, 64, 4, 64, 64)), 2, 5, 3),
    Call("monte_carlo_kl backward, 8x1024x128", _given(backward=True), 1, 10, 3, True),
    Call("monte_carlo_kl backward, learned prior", _given(prior=True, backward=True), 1, 12, 5),
    Call("monte_carlo_kl backward, 64x128x50", _given((64, 128, 50), backward=True), 3, 8, 0),
    Call("monte_carlo_kl backward, float64", _given(dtype=F64, backward=True), 1, 20, 3),
]


def _sampled(prior=False, dtype=F32, backward=False, stop=False):
    """A call of `sample_monte_carlo_kl`, or of its backward pass."""

    def run():
        shape = (8, 1024, 128)
        one = shape[1:]
        given = [_empty(*one, dtype=dtype) for _ in range(2)]
        given += [_empty(*one, dtype=dtype) for _ in range(2)] if prior else [None, None]
        given += [_STATE, None]
        options = Posterior(Transform("logvar", 0.0, ()), shape[0], 1.0, 0, "sample", 1.0)
        if backward:
            upstream = (_empty(*shape, dtype=dtype), _empty(*shape[:2]))
            need = [True, True, prior, prior]
            sample_monte_carlo_kl.sample_monte_carlo_kl_backward(
                *upstream, *given, options, stop, need
            )
        else:
            sample_monte_carlo_kl.sample_monte_carlo_kl(*given, options)

    return run


# Bytes are per number of z, which is written and not read.
CALLS += [
    Call("sample_monte_carlo_kl, 8x1024x128", _sampled(), 1, 5, 2, True),
    Call("sample_monte_carlo_kl, 8x1024x128, learned prior", _sampled(True), 1, 6, 4),
    Call("sample_monte_carlo_kl, 8x1024x128, bfloat16", _sampled(dtype=BF16), 1, 2.5, 2),
    Call("sample_monte_carlo_kl, 8x1024x128, float64", _sampled(dtype=F64), 1, 10, 2),
    Call("sample_monte_carlo_kl backward, 8x1024x128", _sampled(backward=True), 1, 6, 3, True),
    Call("sample_monte_carlo_kl backward, learned prior", _sampled(True, backward=True), 1, 8, 5),
    Call("sample_monte_carlo_kl backward, stopped", _sampled(backward=True, stop=True), 1, 6, 3),
    Call("sample_monte_carlo_kl backward, float64", _sampled(dtype=F64, backward=True), 1, 12, 3),
]
