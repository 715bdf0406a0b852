"""Fused operators for variational autoencoders: sampling, KL, likelihoods, the ELBO."""

from . import likelihoods, metrics, random, schedules
from ._info import info
from .backends import BackendError, available_backends, backend
from .likelihoods import Bernoulli, Gaussian, Laplace
from .ops.elbo_loss import ELBO, elbo_loss
from .ops.gaussian_kl import gaussian_kl
from .ops.importance_loss import PIWAE, importance_loss
from .ops.log_marginal import LogMarginal, log_marginal
from .ops.log_weights import log_weights
from .ops.monte_carlo_kl import monte_carlo_kl
from .ops.nll import nll
from .ops.rsample import rsample
from .ops.sample_kl import sample_kl
from .ops.tril_sample_kl import tril_sample_kl

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "PIWAE",
    "BackendError",
    "Bernoulli",
    "Gaussian",
    "Laplace",
    "LogMarginal",
    "__version__",
    "available_backends",
    "backend",
    "elbo_loss",
    "gaussian_kl",
    "importance_loss",
    "info",
    "likelihoods",
    "log_marginal",
    "log_weights",
    "metrics",
    "monte_carlo_kl",
    "nll",
    "random",
    "rsample",
    "sample_kl",
    "schedules",
    "tril_sample_kl",
]
