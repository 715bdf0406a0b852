"""The likelihoods with a class dimension."""

import torch
from triton_call import BF16, F32, F64, I64, U8, Call, empty

from vaefast.backends._options import RowNllOptions
from vaefast.backends.triton import row_nll

_MIXTURE = (1.0, 0.0, -1.0, 2 / 255, 255.0, -7.0, 10.0)


def _rows(form, shape, target, *numbers, dtype=F32):
    """A call of `row_nll` over params `shape` that makes the gradient."""

    def run():
        options = RowNllOptions(form, numbers, 1, "sum", 0.25, 0.25)
        row_nll.row_nll(empty(*shape, dtype=dtype), target, None, None, options, True)

    return run


def _softmax(rows, classes, inner=1, dtype=F32):
    target = (torch.empty(rows, inner, dtype=torch.int64),)
    return _rows("categorical", (rows, classes, inner), target, dtype=dtype)


def _counts(rows, classes, sparse=False, dtype=F32):
    csr = (torch.empty(rows + 1, dtype=I64), torch.empty(100 * rows, dtype=I64), empty(100 * rows))
    target = csr if sparse else (empty(rows, classes, 1),)
    return _rows("multinomial", (rows, classes, 1), target, 0.0, dtype=dtype)


def _mixed(size, channels, dtype=F32):
    target = (torch.empty(16, channels, 1024, dtype=U8),)
    numbers = (*_MIXTURE, float(channels))
    return _rows("logistic_mixture", (16, size, 1024), target, *numbers, dtype=dtype)


# Bytes are per number of params; the target's are left out but for dense counts.
CALLS = [
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
