"""The Triton kernels behind masks, at dimensions of 0 and where a tanh is saturated, under the
operators' own tests.

test_interpreter.py runs this file as it does kernel_checks.py; test_gpu.py takes its tests over.
"""

import math

import likelihood_cases
import pytest
import test_counts_at_zero as at_zero
import test_masked_values as masked
import test_saturation as saturation
import test_zero_sizes as nothing
import torch
from conftest import Target
from kernel_checks import device, triton_backend  # noqa: F401
from operator_calls import Sizes

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def backend(device, monkeypatch):  # noqa: F811
    # A launch in the interpreter takes a tenth of a second.
    monkeypatch.setattr(masked, "BAD", (math.nan,))
    torch.manual_seed(0)
    return Target("triton", device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("param", "bounds"),
    [
        ("logvar", (-10.0, 0.0)),
        ("std", (0.125, 3.0)),
        ("var", (0.0, 2.0)),
        ("softplus", (-5.0, 5.0)),
    ],
)
def test_saturated_soft_clamp(backend, param, bounds, dtype):
    saturation.check_posterior(backend.device, param, bounds, dtype, ulps=32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_saturated_coefficients(backend, dtype):
    saturation.check_mixture(backend.device, dtype)


@pytest.mark.parametrize("case", likelihood_cases.ALL, ids=str)
def test_masks_over_every_likelihood(backend, case):
    masked.check_likelihood(backend, case, "elements", [("none", None), ("sample", 2)])


@pytest.mark.parametrize("reduction", ["none", "sample", "sum", "dim"])
def test_masks_over_the_kl(backend, reduction):
    masked.test_the_kl(backend, "elements", "logvar", reduction)


@pytest.mark.parametrize("name", masked.ROW_MODELS)
def test_masks_over_classes(backend, name):
    masked.check_classes(backend, name, [("none", None), ("sample", 2)])


# Of the others no kernel is called.
KERNELS = ("rsample", "gaussian_kl", "sample_kl", "mixture_log_prob", "mmd", "linear_nll")


@pytest.mark.parametrize("dim", Sizes._fields)
@pytest.mark.parametrize("name", KERNELS)
def test_every_operator_with_a_dimension_of_0(backend, name, dim):
    nothing.test_every_operator_with_a_dimension_of_0(backend, name, dim)


@pytest.mark.parametrize("reduction", nothing.REDUCTIONS)
def test_no_classes(backend, reduction):
    nothing.test_no_classes(backend, reduction)


def test_means_over_nothing(backend):
    nothing.test_a_mean_over_nothing_is_0(backend)
    nothing.test_an_empty_batch_of_many_samples(backend)


@pytest.mark.parametrize("name", list(at_zero.MODELS))
def test_counts_at_a_rate_of_0(backend, name):
    at_zero.test_infinite_and_no_nan(backend, name, torch.float32, "none")


@pytest.mark.parametrize("others", [1, 2])
def test_eps(backend, others):
    at_zero.test_eps_is_added_to_the_mean(backend, 1e-8, others, torch.float32)
