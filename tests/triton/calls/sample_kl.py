"""Samples of a posterior, its KL, or both."""

import torch
from triton_call import BF16, F16, F32, F64, LATENT, STATE, Call, empty

from vaefast.backends._options import Posterior, Transform
from vaefast.backends.triton import sample_kl


def posterior(
    shape=LATENT, dtype=F32, reduce="sample", samples=0, backward=False, chunk=False, prior=False,
    per_sample=False, param="logvar", clamp=(), mask=False,
):  # fmt: skip
    """A call of `sample_kl`, or of its backward pass."""

    def run():
        if chunk:
            mu, scale = empty(shape[0], 2 * shape[1], *shape[2:], dtype=dtype).chunk(2, 1)
        else:
            mu, scale = empty(*shape, dtype=dtype), empty(*shape, dtype=dtype)
        options = Posterior(Transform(param, 0.0, clamp), samples, 1.0, 0, reduce, 0.25)
        state = torch.empty(shape[0], 2, dtype=torch.int64) if per_sample else STATE
        priors = [empty(*shape, dtype=dtype) for _ in range(2)] if prior else [None, None]
        hidden = torch.empty(shape, dtype=torch.bool) if mask else None
        given = (mu, scale, *priors, hidden, None, None if samples < 0 else state, None, options)
        if not backward:
            sample_kl.sample_kl(*given)
            return
        grad_z = (
            None if samples < 0 else empty(*((samples,) if samples else ()), *shape, dtype=dtype)
        )
        grad_kl = {"": None, "sample": empty(shape[0]), "sum": empty()}[reduce]
        sample_kl.sample_kl_backward(grad_z, grad_kl, *given, [True, True, prior, prior])

    return run


CALLS = [
    Call("rsample", posterior(reduce=""), 1, 12, 2),
    Call("rsample, 8 samples", posterior(reduce="", samples=8), 1, 8 + 8 * 4, 2),
    Call("sample_kl", posterior(), 2, 12, 2, True),
    Call("sample_kl, 1024x128", posterior((1024, 128)), 1, 12, 2),
    Call("sample_kl, 128x20", posterior((128, 20)), 1, 12, 2),
    Call("sample_kl, summed", posterior(reduce="sum"), 2, 12, 2),
    Call("sample_kl, chunks", posterior(chunk=True), 2, 12, 2),
    Call("sample_kl, seeds per sample", posterior(per_sample=True), 2, 12, 2),
    Call("sample_kl, bfloat16", posterior(dtype=BF16), 2, 6, 2, True),
    Call("sample_kl, bfloat16 chunks", posterior(dtype=BF16, chunk=True), 2, 6, 2),
    Call("sample_kl, float16", posterior(dtype=F16), 2, 6, 2),
    Call("sample_kl, float64", posterior(dtype=F64), 2, 24, 2, True),
    Call("sample_kl, learned prior", posterior(prior=True), 2, 20, 4),
    Call(
        "sample_kl, softplus, tanh clamp, mask",
        posterior(param="softplus", clamp=(-5.0, 5.0, 1.0), mask=True),
        *(2, 13, 2),
    ),
    Call("gaussian_kl", posterior(samples=-1), 2, 8, 2),
    Call("gaussian_kl, per dimension", posterior((1024, 128), reduce="dim", samples=-1), 2, 8, 2),
    Call("sample_kl backward", posterior(backward=True), 1, 20, 3, True),
    Call("sample_kl backward, 128x20", posterior((128, 20), backward=True), 1, 20, 3),
    Call("sample_kl backward, chunks", posterior(backward=True, chunk=True), 1, 20, 3),
    Call("sample_kl backward, bfloat16", posterior(dtype=BF16, backward=True), 1, 10, 3, True),
    Call("sample_kl backward, float64", posterior(dtype=F64, backward=True), 1, 40, 3),
    Call("sample_kl backward, learned prior", posterior(prior=True, backward=True), 1, 36, 5),
    Call(
        "sample_kl backward, softplus, tanh clamp, mask, prior",
        posterior(param="softplus", clamp=(-5.0, 5.0, 1.0), mask=True, prior=True, backward=True),
        *(1, 37, 5, True),
    ),
]
