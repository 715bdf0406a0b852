"""The elementwise likelihoods."""

from likelihood_cases import ALL
from triton_call import BF16, F32, F64, IMAGE, STATE, U8, Call, empty

from vaefast.backends._options import NllOptions
from vaefast.backends.triton import nll
from vaefast.backends.triton.likelihoods import HEAVY


def likelihood(
    form, count=1, scalar=-1, shape=IMAGE, dtype=F32, target=None, reduce="sum", draw=False
):
    """A call of `nll` that makes every gradient."""

    def run():
        params = [empty(*shape, dtype=dtype) for _ in range(count)]
        if scalar >= 0:
            params.append(empty())
        options = NllOptions(form, (1.0, 1.0), scalar, 1, 255.0, 0, reduce, 0.25, 0.25)
        x = empty(*shape, dtype=target or dtype)
        nll.nll(params, x, None, None, STATE if draw else None, (), options, [True] * len(params))

    return run


CALLS = [
    Call("bernoulli, uint8 target", likelihood("bernoulli", target=U8), 2, 9, 1, True),
    Call("bernoulli, binarised uint8", likelihood("bernoulli", target=U8, draw=True), 2, 9, 1),
    Call("bernoulli, bfloat16", likelihood("bernoulli", dtype=BF16), 2, 6, 2),
    Call(
        "bernoulli, bfloat16 and float32", likelihood("bernoulli", dtype=BF16, target=F32), 2, 8, 2
    ),
    Call("bernoulli, float64", likelihood("bernoulli", dtype=F64), 2, 24, 2),
    Call("bernoulli, per sample", likelihood("bernoulli", reduce="sample"), 2, 12, 2),
    Call("bernoulli, 128x784", likelihood("bernoulli", shape=(128, 784)), 2, 12, 2),
]
# Every likelihood there is, by itself.
for case in {c.form: c for c in ALL}.values():
    scalar = 1 if case.scalar is not None else -1
    run = likelihood(case.form, case.count, scalar)
    # With a learned scalar a second sum, its gradient's.
    CALLS.append(
        Call(
            f"nll, {case.form}",
            run,
            2 + (scalar == 1),
            4 + 8 * case.count,
            case.count + 1,
            case.form in (*HEAVY, "bernoulli"),
        )
    )
