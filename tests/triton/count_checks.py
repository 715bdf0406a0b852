"""Triton's likelihoods of counts against 150 digits, as the other backends'.

test_interpreter.py runs this file as it does kernel_checks.py; test_gpu.py takes its tests over.
"""

import pytest
import test_fractional_counts as fractional
import test_likelihood_counts as counts
import torch
from edge_checks import backend  # noqa: F401
from kernel_checks import device, triton_backend  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@dtypes
def test_poisson(backend, dtype):  # noqa: F811
    counts.test_poisson_exact(backend, dtype)


@dtypes
def test_poisson_rate(backend, dtype):  # noqa: F811
    counts.test_poisson_rate_exact(backend, dtype)


@dtypes
def test_negative_binomial(backend, dtype):  # noqa: F811
    counts.test_negative_binomial_exact(backend, dtype, 1)


@dtypes
def test_zero_inflated(backend, dtype):  # noqa: F811
    counts.test_zero_inflated_exact(backend, dtype, 1)


@dtypes
def test_fractional_counts(backend, dtype):  # noqa: F811
    fractional.check(backend, dtype, 16)
    fractional.check_zero_inflated(backend, dtype, 16)


def test_tiny_means_and_dispersions(backend):  # noqa: F811
    counts.test_tiny_means_and_dispersions_stay_finite(backend)


def test_negative_counts(backend):  # noqa: F811
    counts.test_negative_counts(backend)
