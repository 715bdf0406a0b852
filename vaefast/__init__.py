"""Fused operators for variational autoencoders: sampling, KL, likelihoods, the ELBO."""

try:
    import torch

    del torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "vaefast needs PyTorch, which is not installed: pip install torch", name="torch"
    ) from None

from . import distributions, likelihoods, metrics, nn, random, schedules
from ._explain import Explanation, explain
from ._info import info
from .backends import BackendError, available_backends, backend
from .distributions import DiagonalGaussian
from .likelihoods import _bernoulli, _counts, _location, _mixture, _pixels, _rows
from .likelihoods._bernoulli import *
from .likelihoods._counts import *
from .likelihoods._location import *
from .likelihoods._mixture import *
from .likelihoods._pixels import *
from .likelihoods._rows import *
from .ops.annealed_log_weights import AnnealedWeights, annealed_log_weights
from .ops.elbo_loss import ELBO, elbo_loss
from .ops.gaussian_kl import gaussian_kl
from .ops.importance_loss import PIWAE, importance_loss
from .ops.linear_nll import linear_nll
from .ops.log_marginal import LogMarginal, log_marginal
from .ops.log_weights import log_weights
from .ops.mixture_log_prob import mixture_log_prob
from .ops.mmd import mmd
from .ops.monte_carlo_kl import monte_carlo_kl
from .ops.nll import nll
from .ops.rsample import rsample
from .ops.sample_kl import sample_kl
from .ops.tc_terms import TCTerms, tc_terms
from .ops.tril_sample_kl import tril_sample_kl

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "PIWAE",
    "AnnealedWeights",
    "BackendError",
    "DiagonalGaussian",
    "Explanation",
    "LogMarginal",
    "TCTerms",
    "__version__",
    "annealed_log_weights",
    "available_backends",
    "backend",
    "distributions",
    "elbo_loss",
    "explain",
    "gaussian_kl",
    "importance_loss",
    "info",
    "likelihoods",
    "linear_nll",
    "log_marginal",
    "log_weights",
    "metrics",
    "mixture_log_prob",
    "mmd",
    "monte_carlo_kl",
    "nll",
    "nn",
    "random",
    "rsample",
    "sample_kl",
    "schedules",
    "tc_terms",
    "tril_sample_kl",
    *_bernoulli.__all__,
    *_counts.__all__,
    *_location.__all__,
    *_mixture.__all__,
    *_pixels.__all__,
    *_rows.__all__,
]
