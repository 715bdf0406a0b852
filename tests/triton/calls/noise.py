"""The noise by itself."""

from triton_call import BF16, F32, STATE, Call

from vaefast.backends.triton import noise


def made(dtype):
    return lambda: noise.noise(STATE, (1 << 20,), dtype, "normal", 0, 0)


CALLS = [
    Call("noise, float32", made(F32), 1, 4, 0, True),
    Call("noise, bfloat16", made(BF16), 1, 2, 0),
]
