"""The terms of a total correlation."""

from triton_call import F32, F64, Call, empty

from vaefast.backends._options import Weighing
from vaefast.backends.triton import tc_terms


def made(points, dims, dtype=F32, backward=False):
    def run():
        given = [empty(points, dims, dtype=dtype) for _ in range(3)]
        weighing = Weighing(-7.0, 0, 2.0, 3.0)
        if backward:
            joint, marginals = empty(points, dtype=F64), empty(points, dims, dtype=dtype)
            upstream = empty(3, points, dtype=dtype)
            tc_terms.tc_terms_backward(upstream, *given, joint, marginals, weighing)
        else:
            tc_terms.tc_terms(*given, weighing)

    return run


CALLS = [
    Call("tc_terms, 1024x10", made(1024, 10), 2, 0, 0),
    Call("tc_terms, 1024x64", made(1024, 64), 2, 0, 0),
    Call("tc_terms, 1024x64 backward", made(1024, 64, backward=True), 2, 0, 0, True),
    Call("tc_terms, 1024x131", made(1024, 131), 2, 0, 0),
    Call("tc_terms, 1024x64, float64, backward", made(1024, 64, F64, True), 2, 0, 0),
]
