"""Maximum mean discrepancy of two samples over many kernel scales at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from .. import _args
from .._args import compute_dtype
from ..backends._options import MmdOptions
from . import _mmd, _plans

Kernel = Literal["imq", "rbf"]

# The multiples of C = 2 D that the authors of WAE sum over (github.com/tolstikhin/wae, wae.py).
WAE_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_MOST_SCALES = 32


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel = "imq",
    scales: Sequence[float] | None = None,
    unbiased: bool = True,
) -> Tensor:
    """MMD^2(x, y) = E k(x, x') + E k(y, y') - 2 E k(x, y), k summed over scales.

    `"imq"`: k = C / (C + |x - y|^2), C = 2 D scale; `"rbf"`: k = exp(-|x - y|^2 / (2 scale^2)).

    Args:
        x: a sample, `[N, *latent]`, float64, float32, bfloat16 or float16; D is a point's size.
        y: another, `[M, *latent]`; for WAE and InfoVAE one of the prior.
        kernel: `"imq"` (inverse multiquadratic, heavier tails) or `"rbf"` (Gaussian).
        scales: at most 32. The default for `"imq"` is WAE's (0.1, 0.2, 0.5, 1, 2, 5, 10): 2 D is
            the expected squared distance of two points of N(0, I). For `"rbf"` it is
            sqrt(D s) for the same s, so that 2 scale^2 = C.
        unbiased: leave the pairs of a point with itself out (U-statistic; can be negative);
            otherwise the V-statistic, which is not, but for rounding.

    Returns:
        A scalar in float32, or float64 if any argument is. Gradients flow to x and y. No tensor
        over pairs of points is stored.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes, devices or settings do not fit together, or a sample has too few points.

    Example:
        >>> import torch, vaefast as vf
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> round(float(vf.mmd(x, -x, kernel="rbf", scales=[1.0], unbiased=False)), 4)
        0.4998

    Source: Gretton et al. 2012, "A Kernel Two-Sample Test", equations 3 and 5; Tolstikhin et al.
    2018, "Wasserstein Auto-Encoders", section 4.
    """
    # One that can be looked up by.
    of_scales = tuple(scales) if isinstance(scales, list) else scales
    key, plan = _plans.find((x, y), ("mmd", kernel, of_scales, unbiased))
    if plan is not None:
        return _mmd.run_found(plan, x, y)
    _args.float_tensor("x", x)
    _args.float_tensor("y", y)
    if x.dim() < 1 or x.shape[1:] != y.shape[1:] or y.dim() != x.dim():
        raise ValueError(
            "x and y must be [N, *latent] and [M, *latent], got "
            f"{list(x.shape)} and {list(y.shape)}"
        )
    _args.same_device("x", x, y=y)
    _args.one_of("kernel", kernel, ("imq", "rbf"))
    least = 2 if unbiased else 1
    for name, points in (("x", x), ("y", y)):
        if points.shape[0] < least:
            raise ValueError(
                f"{name} must have at least {least} points where unbiased={unbiased}, got "
                f"{points.shape[0]}"
            )
    dims = _args.count(x.shape[1:])
    if not dims:
        # All points are the same one.
        return (x.sum() + y.sum()).to(compute_dtype(x, y))
    options = MmdOptions(kernel == "rbf", denominators(kernel, scales, dims), unbiased)
    dtype = compute_dtype(x, y)
    taken = _args.matrix(x, x.shape[0], dims, dtype), _args.matrix(y, y.shape[0], dims, dtype)
    return _mmd.run(*taken, options, _plans.if_taken(key, (x, y), taken))


def denominators(kernel: str, scales: Sequence[float] | None, dims: int) -> tuple[float, ...]:
    """What a squared distance is compared with at each scale: C of "imq", 2 s^2 of "rbf"."""
    if scales is None:
        return tuple([2.0 * dims * s for s in WAE_SCALES])
    values = tuple([_args.number("scales", s) for s in scales])
    fits = 1 <= len(values) <= _MOST_SCALES
    for value in values:
        fits = fits and 0 < value < math.inf
    if not fits:
        raise ValueError(f"scales must be 1 to {_MOST_SCALES} positive numbers, got {scales!r}")
    return tuple([2.0 * s * s if kernel == "rbf" else 2.0 * dims * s for s in values])
