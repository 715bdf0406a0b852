"""The maximum mean discrepancy."""

from triton_call import F32, F64, Call, empty

from vaefast.backends._options import MmdOptions
from vaefast.backends.triton import mmd


def made(points, dims, rbf=False, need=(True, False), dtype=F32):
    scales = (2.0, 4.0, 10.0, 20.0, 40.0, 100.0, 200.0)
    return lambda: mmd.mmd(
        *(empty(points, dims, dtype=dtype) for _ in range(2)),
        MmdOptions(rbf, scales, True),
        list(need),
    )


CALLS = [
    Call("mmd, 512x10, 7 scales", made(512, 10), 4, 0, 0),
    Call("mmd, 512x10, both gradients", made(512, 10, need=(True, True)), 5, 0, 0),
    Call("mmd, 512x32, rbf, float64", made(512, 32, True, dtype=F64), 4, 0, 0),
    Call("mmd, 512x131", made(512, 131), 4, 0, 0),
]
