"""The log density of a mixture of Gaussians."""

from triton_call import F32, F64, Call, empty

from vaefast.backends.triton import mixture_log_prob


def made(points, components, dims, dtype=F32, backward=False):
    def run():
        z, weights = empty(points, dims, dtype=dtype), empty(components, dtype=dtype)
        given = (z, *(empty(components, dims, dtype=dtype) for _ in range(2)), weights)
        if backward:
            joint = empty(points, dtype=F64)
            mixture_log_prob.mixture_log_prob_backward(empty(points, dtype=dtype), *given, joint)
        else:
            mixture_log_prob.mixture_log_prob(*given)

    return run


CALLS = [
    Call("mixture of 500 in 40", made(256, 500, 40), 1, 0, 0, True),
    Call("mixture of 500 in 40 backward", made(256, 500, 40, backward=True), 2, 0, 0),
    Call("mixture of 500 in 40, float64", made(256, 500, 40, F64), 1, 0, 0),
    Call("mixture of 500 in 40, float64, backward", made(256, 500, 40, F64, True), 2, 0, 0),
]
