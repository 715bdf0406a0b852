"""log q(z|x) - log p(z) at given samples."""

from triton_call import BF16, F32, F64, Call, empty

from vaefast.backends._options import Transform
from vaefast.backends.triton import monte_carlo_kl


def made(shape=(8, 1024, 128), dtype=F32, prior=False, backward=False):
    """A call of `monte_carlo_kl`, or of its backward pass."""

    def run():
        z, one = empty(*shape, dtype=dtype), shape[1:]
        given = [empty(*one, dtype=dtype) for _ in range(2)]
        given += [empty(*one, dtype=dtype) for _ in range(2)] if prior else [None, None]
        transform = Transform("logvar", 0.0, ())
        if backward:
            need = [True, True, True, prior, prior]
            upstream = empty(*shape[:2])
            monte_carlo_kl.monte_carlo_kl_backward(upstream, z, *given, transform, True, need)
        else:
            monte_carlo_kl.monte_carlo_kl(z, *given, transform, True)

    return run


# Bytes are per number of z.
CALLS = [
    Call("monte_carlo_kl, 8x1024x128", made(), 1, 5, 3, True),
    Call("monte_carlo_kl, 8x1024x128, learned prior", made(prior=True), 1, 6, 5),
    Call("monte_carlo_kl, 8x1024x128, bfloat16", made(dtype=BF16), 1, 2.5, 3),
    Call("monte_carlo_kl, 8x1024x128, float64", made(dtype=F64), 1, 10, 3),
    Call("monte_carlo_kl, 8x64x4x64x64", made((8, 64, 4, 64, 64)), 2, 5, 3),
    Call("monte_carlo_kl backward, 8x1024x128", made(backward=True), 1, 10, 3, True),
    Call("monte_carlo_kl backward, learned prior", made(prior=True, backward=True), 1, 12, 5),
    Call("monte_carlo_kl backward, 64x128x50", made((64, 128, 50), backward=True), 3, 8, 0),
    Call("monte_carlo_kl backward, float64", made(dtype=F64, backward=True), 1, 20, 3),
]
