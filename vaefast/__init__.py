"""Fused operators for variational autoencoders: sampling, KL, likelihoods, the ELBO."""

from . import likelihoods, random
from ._info import info
from .backends import BackendError, available_backends, backend
from .likelihoods import Bernoulli, Gaussian, Laplace
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
    "Gaussian",
    "Laplace",
    "TCTerms",
    "__version__",
    "available_backends",
    "backend",
    "elbo_loss",
    "gaussian_kl",
    "info",
    "likelihoods",
    "mixture_log_prob",
    "mmd",
    "nll",
    "random",
    "rsample",
    "sample_kl",
    "tc_terms",
]
