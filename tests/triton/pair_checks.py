"""The Triton kernels over pairs of points, and of samples, under the operators' own tests.

test_interpreter.py runs this file as it does kernel_checks.py.
"""

import pytest
import test_estimated_kl as estimate
import test_log_weights as weights
import test_mixture_log_prob as mixture
import test_mmd as discrepancy
import test_tc_terms as total_correlation
import torch
from conftest import Target
from kernel_checks import F16, F32, F64, device, triton_backend  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
# Points, components, dimensions; the last is longer than a tile.
SHAPES = [(1, 1, 1), (5, 3, 2), (41, 129, 7), (9, 33, 40), (5, 7, 131)]


@pytest.fixture
def backend(device):  # noqa: F811
    return Target("triton", device)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mixture(shape, dtype, weighted):
    mixture.test_value_and_gradients("triton", shape, dtype, weighted)


@pytest.mark.parametrize(
    "test",
    [
        mixture.test_against_torch_distributions,
        mixture.test_components_of_weight_zero,
        mixture.test_shapes_and_strides,
        mixture.test_nan_stays_in_its_point,
    ],
    ids=lambda test: test.__name__,
)
def test_mixture_as_every_backend(test):
    test("triton")


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_points_far_from_every_component(offset):
    mixture.test_points_far_from_every_component("triton", offset)


@pytest.mark.parametrize("wanted", range(4))
def test_only_the_wanted_gradient(wanted):
    mixture.test_only_the_wanted_gradient("triton", wanted)


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 2, 0)], ids=str)
def test_empty(shape):
    mixture.test_empty("triton", shape)


def test_few_points_share_the_components():
    from vaefast.backends.triton import mixture_log_prob as kernels

    tensors = [t.detach() for t in mixture.inputs((3, 700, 5), torch.float64)]
    values, joint = kernels.mixture_log_prob(*tensors)
    torch.testing.assert_close(values, mixture.exact(*tensors))
    assert torch.equal(values, joint)


@pytest.mark.parametrize("method", ["mss", "mws"])
@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("shape", [(2, 1), (37, 3), (41, 10), (17, 64), (9, 131)], ids=str)
def test_tc_terms(shape, dtype, method):
    total_correlation.test_value_and_gradients("triton", shape, method, dtype)


@pytest.mark.parametrize("offset", [50.0, 3000.0])
def test_points_far_from_every_posterior(offset):
    total_correlation.test_points_far_from_every_posterior("triton", offset)


@pytest.mark.parametrize("scale", [-30.0, 20.0])
def test_extreme_and_mixed_scales(scale):
    total_correlation.test_extreme_and_mixed_scales("triton", scale)


def test_nan_stays_in_its_sample():
    total_correlation.test_nan_stays_in_its_sample("triton")


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("shape", [(2, 2, 1), (5, 3, 2), (21, 35, 7), (3, 5, 131)])
def test_mmd(shape, dtype, kernel, unbiased):
    discrepancy.test_value_and_gradients("triton", shape, dtype, kernel, unbiased)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize("scales", [(0.5,), (0.1, 1.0, 2.0, 3.0)])
def test_mmd_scales(kernel, scales):
    discrepancy.test_scales("triton", kernel, scales)


@pytest.mark.parametrize(
    "test",
    [
        discrepancy.test_near_points_do_not_cancel,
        discrepancy.test_nan_survives,
        discrepancy.test_shapes_and_strides,
        discrepancy.test_a_second_backward_gives_the_same,
    ],
    ids=lambda test: test.__name__,
)
def test_mmd_as_every_backend(test):
    test("triton")


@pytest.mark.parametrize("wanted", range(2))
def test_only_the_wanted_gradient_of_mmd(wanted):
    discrepancy.test_only_the_wanted_gradient("triton", wanted)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_mmd_of_distant_points(kernel):
    discrepancy.test_distant_points("triton", kernel)


@pytest.mark.parametrize("prior", ["", "full", "shared", "mean"])
@pytest.mark.parametrize("shape", [(3, 41, 7), (5, 2, 1271), (2, 3, 4, 5), (64, 17, 50), (4, 6)])
def test_log_ratio(shape, prior):
    weights.test_against_distributions("triton", shape, prior)


@pytest.mark.parametrize("dtype", [F32, F16])
@pytest.mark.parametrize("prior", ["", "shared"])
def test_log_ratio_narrow(dtype, prior):
    weights.test_narrow_dtypes("triton", dtype, prior)


@pytest.mark.parametrize("param", ["logvar", "log_std", "std", "var", "softplus"])
@pytest.mark.parametrize("clamp", [None, (0.4, 1.5), ("soft", 0.2, 3.0)])
def test_log_ratio_scale_parameters(param, clamp):
    weights.test_scale_parameters("triton", param, clamp)


@pytest.mark.parametrize(
    ("prior", "stop_posterior"),
    [("", False), ("full", False), ("shared", True), ("mean", False), ("spread", True)],
)
@pytest.mark.parametrize(("samples", "shape"), estimate.SHAPES)
def test_estimated_kl(backend, samples, shape, prior, stop_posterior):
    estimate.test_against_distributions(backend, samples, shape, prior, stop_posterior)


@pytest.mark.parametrize("dtype", [F32, F16])
@pytest.mark.parametrize("prior", ["", "shared"])
def test_estimated_kl_narrow(backend, dtype, prior):
    estimate.test_narrow_dtypes(backend, dtype, prior)


@pytest.mark.parametrize("param", ["logvar", "log_std", "std", "var", "softplus"])
@pytest.mark.parametrize("clamp", [None, (0.4, 1.5), ("soft", 0.2, 3.0)])
def test_estimated_kl_scale_parameters(backend, param, clamp):
    estimate.test_scale_parameters(backend, param, clamp)


@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("shape", [(6, 50), (4, 2, 7), (9,)])
def test_estimated_kl_noise(backend, samples, shape):
    estimate.test_noise_is_that_of_rsample(backend, samples, shape)


@pytest.mark.parametrize("output", [0, 1])
def test_one_output_of_estimated_kl(backend, output):
    estimate.test_one_output_alone(backend, output)


@pytest.mark.parametrize(
    "test",
    [
        estimate.test_layouts,
        estimate.test_a_learned_prior_alone,
        estimate.test_where_q_is_p_the_estimate_is_zero,
        estimate.test_a_narrow_posterior_far_from_the_origin_loses_nothing,
    ],
    ids=lambda test: test.__name__,
)
def test_estimated_kl_as_every_backend(backend, test):
    test(backend)
