"""Fused operators for variational autoencoders: sampling, KL, likelihoods, the ELBO."""

from . import distributions, likelihoods, nn, random
from ._info import info
from .backends import BackendError, available_backends, backend
from .distributions import DiagonalGaussian
from .likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Gaussian,
    Laplace,
    LogCosh,
    Multinomial,
    NegativeBinomial,
    Poisson,
    StudentT,
    ZeroInflatedNegativeBinomial,
)
from .ops.elbo_loss import ELBO, elbo_loss
from .ops.gaussian_kl import gaussian_kl
from .ops.mixture_log_prob import mixture_log_prob
from .ops.mmd import mmd
from .ops.nll import nll
from .ops.rsample import rsample
from .ops.sample_kl import sample_kl
from .ops.tc_terms import TCTerms, tc_terms

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "BackendError",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiagonalGaussian",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "Laplace",
    "LogCosh",
    "Multinomial",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "TCTerms",
    "ZeroInflatedNegativeBinomial",
    "__version__",
    "available_backends",
    "backend",
    "distributions",
    "elbo_loss",
    "gaussian_kl",
    "info",
    "likelihoods",
    "mixture_log_prob",
    "mmd",
    "nll",
    "nn",
    "random",
    "rsample",
    "sample_kl",
    "tc_terms",
]
