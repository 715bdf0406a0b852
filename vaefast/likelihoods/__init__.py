"""p(x|z): what the decoder's output means, as small frozen dataclasses.

A likelihood names a form (a kernel of that name on every backend), the parameter tensors that
the form reads, and its numbers. Tests, benchmarks and docs walk `registered()`.
"""

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
from ._bernoulli import Bernoulli, ContinuousBernoulli
from ._counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from ._location import Gaussian, Laplace, LogCosh, StudentT
from ._mixture import DiscretizedLogisticMixture
from ._pixels import DiscretizedLogistic
from ._rows import Categorical, Multinomial, RowLikelihood, Rows

__all__ = [
    "NOT_NEGATIVE",
    "POSITIVE",
    "PROBABILITY",
    "REAL",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Domain",
    "Form",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "LogCosh",
    "Multinomial",
    "NegativeBinomial",
    "Noise",
    "Params",
    "Poisson",
    "RowLikelihood",
    "Rows",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
    "as_tuple",
    "check_scale",
    "load_plugins",
    "register",
    "registered",
    "registered_rows",
    "resolve",
    "scalar_like",
]
