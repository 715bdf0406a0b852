"""Samples of a posterior and log q(z|x) - log p(z) at them."""

from triton_call import BF16, F32, F64, STATE, Call, empty

from vaefast.backends._options import Posterior, Transform
from vaefast.backends.triton import sample_monte_carlo_kl


def made(prior=False, dtype=F32, backward=False, stop=False):
    """A call of `sample_monte_carlo_kl`, or of its backward pass."""

    def run():
        shape = (8, 1024, 128)
        one = shape[1:]
        given = [empty(*one, dtype=dtype) for _ in range(2)]
        given += [empty(*one, dtype=dtype) for _ in range(2)] if prior else [None, None]
        given += [STATE, None]
        options = Posterior(Transform("logvar", 0.0, ()), shape[0], 1.0, 0, "sample", 1.0)
        if backward:
            upstream = (empty(*shape, dtype=dtype), empty(*shape[:2]))
            need = [True, True, prior, prior]
            sample_monte_carlo_kl.sample_monte_carlo_kl_backward(
                *upstream, *given, options, stop, need
            )
        else:
            sample_monte_carlo_kl.sample_monte_carlo_kl(*given, options)

    return run


# Bytes are per number of z, which is written and not read.
CALLS = [
    Call("sample_monte_carlo_kl, 8x1024x128", made(), 1, 5, 2, True),
    Call("sample_monte_carlo_kl, 8x1024x128, learned prior", made(True), 1, 6, 4),
    Call("sample_monte_carlo_kl, 8x1024x128, bfloat16", made(dtype=BF16), 1, 2.5, 2),
    Call("sample_monte_carlo_kl, 8x1024x128, float64", made(dtype=F64), 1, 10, 2),
    Call("sample_monte_carlo_kl backward, 8x1024x128", made(backward=True), 1, 6, 3, True),
    Call("sample_monte_carlo_kl backward, learned prior", made(True, backward=True), 1, 8, 5),
    Call("sample_monte_carlo_kl backward, stopped", made(backward=True, stop=True), 1, 6, 3),
    Call("sample_monte_carlo_kl backward, float64", made(dtype=F64, backward=True), 1, 12, 3),
]
