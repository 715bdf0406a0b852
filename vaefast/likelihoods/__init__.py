"""p(x|z): what the decoder's output means, as small frozen dataclasses.

A likelihood names a form (a kernel of that name on every backend), the parameter tensors that
the form reads, and its numbers. Tests, benchmarks and docs walk `registered()`.
"""

from . import _bernoulli, _counts, _location, _mixture, _pixels, _rows
from ._base import (
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    REAL,
    Domain,
    Form,
    Likelihood,
    Noise,
    Params,
    as_tuple,
    check_scale,
    load_plugins,
    register,
    registered,
    registered_rows,
    resolve,
    scalar_like,
)
from ._bernoulli import *
from ._counts import *
from ._location import *
from ._mixture import *
from ._pixels import *
from ._rows import *
from ._rows import RowLikelihood, Rows

__all__ = [
    "NOT_NEGATIVE",
    "POSITIVE",
    "PROBABILITY",
    "REAL",
    "Domain",
    "Form",
    "Likelihood",
    "Noise",
    "Params",
    "RowLikelihood",
    "Rows",
    "as_tuple",
    "check_scale",
    "load_plugins",
    "register",
    "registered",
    "registered_rows",
    "resolve",
    "scalar_like",
    *_bernoulli.__all__,
    *_counts.__all__,
    *_location.__all__,
    *_mixture.__all__,
    *_pixels.__all__,
    *_rows.__all__,
]
