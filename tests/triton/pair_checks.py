"""The Triton kernels over pairs of points, and of samples, under the operators' own tests.

test_interpreter.py runs this file as it does kernel_checks.py. A program of the interpreter takes
some hundredths of a second whatever its tile holds: so shapes are the smallest that cross the
borders of a tile, and of what varies together each pair of values is there once.
"""

import interpreted
import pytest
import test_log_weights as weights
import test_mixture_log_prob as mixture
import test_mmd as discrepancy
import test_sample_monte_carlo_kl as estimate
import test_tc_terms as total_correlation
import torch
from conftest import Target
from kernel_checks import F16, F32, F64, INTERPRETED, device, triton_backend  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def backend(device):  # noqa: F811
    return Target("triton", device)


@pytest.fixture
def two_shares(monkeypatch):
    """Of all that a tile of points is paired with, for two programs; else for up to 64."""
    from vaefast.backends.triton import _pairs

    monkeypatch.setattr(_pairs, "_MOST_SPLITS", 2)


# A side of a tile has 64 points of 1 dimension, 16 of 8, 8 of 64 and more (in float64 a little
# less); 131 dimensions are three blocks of it.
@pytest.mark.parametrize(
    ("shape", "dtype", "weighted"),
    [
        ((1, 1, 1), F64, True),
        ((5, 3, 2), F32, False),
        ((17, 35, 7), F64, False),
        ((17, 35, 7), F32, True),
        ((9, 17, 40), F32, False),
        ((5, 9, 40), F64, True),
        ((5, 7, 131), F64, False),
        ((5, 7, 131), F32, True),
    ],
    ids=str,
)
def test_mixture(shape, dtype, weighted):
    mixture.test_value_and_gradients("triton", shape, dtype, weighted)


@pytest.mark.parametrize("weighted", [True, False])
def test_mixture_in_two_shares(two_shares, weighted):
    # Five blocks of components: of the second share's three the last is beyond them.
    mixture.test_value_and_gradients("triton", (3, 70, 7), F32, weighted)


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
    mixture.test_points_far_from_every_component("triton", offset, (10, 40, 3))


@pytest.mark.parametrize("wanted", range(4))
def test_only_the_wanted_gradient(wanted):
    mixture.test_only_the_wanted_gradient("triton", wanted)


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 2, 0)], ids=str)
def test_empty(shape):
    mixture.test_empty("triton", shape)


def test_few_points_share_the_components():
    from vaefast.backends.triton import mixture_log_prob as kernels

    tensors = [t.detach() for t in mixture.inputs((3, 150, 5), torch.float64)]
    values, joint = kernels.mixture_log_prob(*tensors)
    torch.testing.assert_close(values, mixture.exact(*tensors))
    assert torch.equal(values, joint)


@pytest.mark.parametrize(
    ("shape", "dtype", "method"),
    [
        ((2, 1), F64, "mss"),
        ((2, 1), F32, "mws"),
        ((37, 3), F64, "mws"),
        ((37, 3), F32, "mss"),
        ((17, 10), F64, "mss"),
        ((17, 10), F32, "mws"),
        ((9, 64), F32, "mss"),
        ((5, 64), F64, "mws"),
        ((9, 131), F32, "mws"),
        ((5, 131), F64, "mss"),
    ],
    ids=str,
)
def test_tc_terms(shape, dtype, method):
    total_correlation.test_value_and_gradients("triton", shape, method, dtype)


@pytest.mark.parametrize("method", ["mss", "mws"])
def test_tc_terms_in_two_shares(two_shares, method):
    # Three blocks of posteriors: of the second share's two one is beyond them.
    total_correlation.test_value_and_gradients("triton", (19, 40), method, F32)


@pytest.mark.parametrize(("method", "dtype"), [("mss", F64), ("mws", F32)])
def test_tc_terms_of_parts_of_a_batch(method, dtype):
    total_correlation.check_parts(method, dtype, 40)


@pytest.mark.parametrize("offset", [50.0, 3000.0])
def test_points_far_from_every_posterior(offset):
    total_correlation.test_points_far_from_every_posterior("triton", offset, 40)


@pytest.mark.parametrize("scale", [-30.0, 20.0])
def test_extreme_and_mixed_scales(scale):
    total_correlation.test_extreme_and_mixed_scales("triton", scale)


def test_nan_stays_in_its_sample():
    total_correlation.test_nan_stays_in_its_sample("triton", 40)


@pytest.mark.parametrize(
    ("shape", "dtype", "kernel", "unbiased"),
    [
        ((2, 2, 1), F64, "imq", True),
        ((2, 2, 1), F32, "rbf", False),
        ((5, 3, 2), F64, "rbf", False),
        ((5, 3, 2), F32, "imq", True),
        ((18, 35, 7), F64, "imq", False),
        ((18, 35, 7), F32, "rbf", True),
        ((3, 5, 131), F64, "rbf", True),
        ((3, 5, 131), F32, "imq", False),
    ],
    ids=str,
)
def test_mmd(shape, dtype, kernel, unbiased):
    discrepancy.test_value_and_gradients("triton", shape, dtype, kernel, unbiased)


@pytest.mark.parametrize("shape", [(35, 10, 40), (10, 35, 40)], ids=str)
def test_mmd_in_two_shares(two_shares, shape):
    discrepancy.test_value_and_gradients("triton", shape, F32, "imq", True)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize("scales", [(0.5,), (0.1, 1.0, 2.0, 3.0)])
def test_mmd_scales(kernel, scales):
    discrepancy.test_scales("triton", kernel, scales)


def test_near_points_do_not_cancel():
    discrepancy.test_near_points_do_not_cancel("triton", (20, 18, 8))


def test_mmd_of_nan():
    discrepancy.test_nan_survives("triton", (40, 20, 3))


@pytest.mark.parametrize(
    "test",
    [discrepancy.test_shapes_and_strides, discrepancy.test_a_second_backward_gives_the_same],
    ids=lambda test: test.__name__,
)
def test_mmd_as_every_backend(test):
    test("triton")


@pytest.mark.parametrize("wanted", range(2))
def test_only_the_wanted_gradient_of_mmd(wanted):
    discrepancy.test_only_the_wanted_gradient("triton", wanted, (20, 18, 3))


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_mmd_of_distant_points(kernel):
    discrepancy.test_distant_points("triton", kernel)


# Samples, rows, and what is summed: two tiles of rows; three of columns; one value of each sample.
@pytest.mark.parametrize(
    ("shape", "prior"),
    [
        ((3, 41, 7), ""),
        ((3, 41, 7), "full"),
        ((3, 41, 7), "shared"),
        ((3, 41, 7), "mean"),
        ((2, 2, 1271), ""),
        ((2, 2, 1271), "full"),
        ((2, 3, 4, 5), "shared"),
        ((2, 3, 4, 5), "mean"),
        ((10, 17, 50), "shared"),
        ((4, 6), ""),
        ((4, 6), "full"),
    ],
    ids=str,
)
def test_monte_carlo_kl(shape, prior):
    weights.test_against_distributions("triton", shape, prior)


@pytest.fixture(params=[False, True], ids=["narrow", "wide"])
def few_programs(monkeypatch, request):
    """A program takes several samples, which else is so from 512 on; in places of 32 or 64 bits."""
    from vaefast.backends.triton import _grid, monte_carlo_kl

    monkeypatch.setattr(monte_carlo_kl, "_PROGRAMS", 2)
    if request.param:
        monkeypatch.setattr(_grid, "_wide", lambda *_: True)


def test_monte_carlo_kl_of_many_samples(few_programs):
    weights.test_against_distributions("triton", (7, 5, 7), "full")


@pytest.mark.parametrize("wanted", weights.NAMES)
def test_only_the_wanted_gradient_of_monte_carlo_kl(wanted):
    weights.check_only_the_wanted_gradient(wanted)


def test_monte_carlo_kl_without_a_prior():
    weights.test_log_q_alone("triton")


@pytest.mark.parametrize(("dtype", "prior"), [(F32, ""), (F32, "shared"), (F16, "shared")])
def test_monte_carlo_kl_narrow(dtype, prior):
    weights.test_narrow_dtypes("triton", dtype, prior)


PARAMS = ["logvar", "log_std", "std", "var", "softplus"]
CLAMPS = [None, (0.4, 1.5), ("soft", 0.2, 3.0)]


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("clamp", CLAMPS)
def test_monte_carlo_kl_scale_parameters(param, clamp):
    weights.test_scale_parameters("triton", param, clamp)


@pytest.mark.parametrize(
    ("samples", "shape", "prior", "stop_posterior"),
    [
        (0, (1, 1), "", False),
        (0, (41, 7), "full", True),
        (3, (41, 7), "shared", True),
        (3, (41, 7), "mean", False),
        (2, (2, 1271), "spread", True),
        (2, (2, 1271), "", False),
        (2, (3, 4, 5), "full", False),
        (2, (3, 4, 5), "shared", True),
        (10, (17, 50), "mean", False),
        (10, (17, 50), "", True),
        (4, (6,), "spread", False),
        (4, (6,), "full", True),
    ],
    ids=str,
)
def test_sample_monte_carlo_kl(backend, samples, shape, prior, stop_posterior):
    estimate.test_against_distributions(backend, samples, shape, prior, stop_posterior)


def test_sample_monte_carlo_kl_of_many_samples(few_programs, backend):
    estimate.test_against_distributions(backend, 7, (5, 7), "full", False)


@pytest.mark.parametrize(("dtype", "prior"), [(F32, ""), (F32, "shared"), (F16, "shared")])
def test_sample_monte_carlo_kl_narrow(backend, dtype, prior):
    estimate.test_narrow_dtypes(backend, dtype, prior)


# The kernels read the parameters as monte_carlo_kl's do.
@pytest.mark.parametrize(("param", "clamp"), list(zip(PARAMS, (CLAMPS * 2)[:5], strict=True)))
def test_sample_monte_carlo_kl_scale_parameters(backend, param, clamp):
    estimate.test_scale_parameters(backend, param, clamp)


@pytest.mark.parametrize(
    ("samples", "shape"), [(0, (6, 50)), (3, (6, 50)), (0, (4, 2, 7)), (3, (9,))], ids=str
)
def test_sample_monte_carlo_kl_noise(backend, samples, shape):
    estimate.test_noise_is_that_of_rsample(backend, samples, shape)


@pytest.mark.parametrize("output", [0, 1])
def test_one_output_of_sample_monte_carlo_kl(backend, output):
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
def test_sample_monte_carlo_kl_as_every_backend(backend, test):
    test(backend)


if INTERPRETED:

    def test_every_branch_was_taken():
        """By the checks above, where all of them ran."""
        files = ("_pairs.py", "mixture_log_prob.py", "tc_terms.py", "mmd.py")
        files += ("monte_carlo_kl.py", "sample_monte_carlo_kl.py", "_posterior.py")
        assert interpreted.missed(files) == []
