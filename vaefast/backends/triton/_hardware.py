"""The special-function unit's exponential, logarithm, inverse and root, one instruction each.

In float64 they are the library's. Triton's interpreter, which the tests run and no user does, has
them exact: there each result is moved as far as the PTX manual allows, up or down by the parity of
its argument's bits, so that what holds in the interpreter holds with the hardware's worst.
"""

from __future__ import annotations

import triton
import triton.language as tl

if triton.knobs.runtime.interpret:

    @triton.jit
    def exp2(x):
        """2^x, 2 ulp; 2^0 is 1; nothing below 2^-126."""
        y = tl.exp2(x)
        return y if x.dtype == tl.float64 else tl.where(x == 0.0, y, _ftz(_moved(y, x, 2.0**-22)))

    @triton.jit
    def log2(x):
        """log2 x, to 2^-22 between 1/2 and 2, elsewhere to 2^-22 of it; -inf below 2^-126."""
        y = tl.log2(x if x.dtype == tl.float64 else _ftz(x))
        if x.dtype == tl.float64:
            return y
        by = tl.where(_odd(x), 2.0**-22, -(2.0**-22)).to(x.dtype)
        return tl.where((x > 0.5) & (x < 2.0), y + by, _moved(y, x, 2.0**-22))

    @triton.jit
    def rcp(x):
        """1 / x, 1 ulp; infinite below 2^-126, 0 above 2^126."""
        return 1.0 / x if x.dtype == tl.float64 else _ftz(_moved(1.0 / _ftz(x), x, 2.0**-23))

    @triton.jit
    def sqrt(x):
        """The root of x, to 2^-23 of it."""
        return tl.sqrt(x) if x.dtype == tl.float64 else _moved(tl.sqrt(_ftz(x)), x, 2.0**-23)

    @triton.jit
    def _odd(x):
        bits = x.to(tl.uint32, bitcast=True)
        bits = bits ^ (bits >> 16)
        bits = bits ^ (bits >> 8)
        bits = bits ^ (bits >> 4)
        bits = bits ^ (bits >> 2)
        return ((bits ^ (bits >> 1)) & 1) != 0

    @triton.jit
    def _moved(y, x, by):
        # Times a factor: in an infinite or missing value nothing is to move.
        return y * tl.where(_odd(x), 1.0 + by, 1.0 - by).to(y.dtype)

    @triton.jit
    def _ftz(x):
        return tl.where(tl.abs(x) < 2.0**-126, 0.0 * x, x)

else:

    @triton.jit
    def exp2(x):
        """2^x, 2 ulp; 2^0 is 1; nothing below 2^-126."""
        return tl.exp2(x)

    @triton.jit
    def log2(x):
        """log2 x, to 2^-22 between 1/2 and 2, elsewhere to 2^-22 of it; -inf below 2^-126."""
        if x.dtype == tl.float64:
            return tl.log2(x)
        else:
            return tl.inline_asm_elementwise(
                "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
            )

    @triton.jit
    def rcp(x):
        """1 / x, 1 ulp; infinite below 2^-126, 0 above 2^126."""
        if x.dtype == tl.float64:
            return 1.0 / x
        else:
            return tl.inline_asm_elementwise(
                "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
            )

    @triton.jit
    def sqrt(x):
        """The root of x, to 2^-23 of it."""
        return tl.sqrt(x)
