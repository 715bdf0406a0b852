"""The Triton kernels of likelihoods with a class dimension, under the operators' own tests.

test_interpreter.py runs this file as it does kernel_checks.py; test_gpu.py takes its tests over.
"""

import pytest
import test_likelihood_mixture as mixtures
import test_likelihood_rows as rows
import test_linear_nll as linear
import torch
from conftest import Target
from kernel_checks import F16, F32, F64, device, triton_backend  # noqa: F401
from row_cases import check

import vaefast as vf

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def backend(device):  # noqa: F811
    torch.manual_seed(0)
    return Target("triton", device)


@pytest.mark.parametrize("dtype", [F64, F32, F16])
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((3, 7, 5, 11), 1), ((2, 300, 41), 1), ((5, 1271), 1), ((3, 5, 11, 7), -1), ((2, 1030, 3), 1)],
    ids=str,
)
def test_categorical(backend, shape, dim, dtype):
    rows.test_categorical(backend, shape, dim, dtype)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [F64, F32, F16])
@pytest.mark.parametrize("shape", [(5, 7), (3, 1271), (2, 2500)], ids=str)
def test_multinomial(backend, shape, dtype, sparse):
    rows.test_multinomial(backend, shape, dtype, sparse)


@pytest.mark.parametrize(
    "test",
    [
        rows.test_categorical_extremes,
        rows.test_masked_out_items,
        rows.test_multinomial_of_large_counts,
        rows.test_multinomial_const_and_scipy,
        rows.test_leading_samples,
        rows.test_elbo,
        rows.test_views_are_read_where_they_lie,
        rows.test_second_backward,
        mixtures.test_mixture_sums_to_one,
        mixtures.test_mixture_of_one_is_the_discretized_logistic,
        mixtures.test_mixture_at_extreme_scales,
    ],
    ids=lambda test: test.__name__,
)
def test_as_every_backend(backend, test):
    test(backend)


@pytest.mark.parametrize(
    ("model", "dtype"),
    [*((m, F32) for m in mixtures.MIXTURES), (mixtures.MIXTURES[1], F64)],
    ids=str,
)
def test_mixture(backend, model, dtype):
    mixtures.test_mixture(backend, model, dtype)


@pytest.mark.parametrize(
    ("name", "heads", "sparse"),
    [
        ("categorical", 1, False),
        ("multinomial", 1, False),
        ("multinomial", 1, True),
        ("gaussian", 2, False),
        ("poisson", 1, True),
    ],
)
def test_linear_nll(backend, name, heads, sparse):
    linear.test_it_is_the_layer_and_the_likelihood(backend, name, heads, sparse)


@pytest.mark.parametrize("shape", [(7, 300), (3, 2500)], ids=str)
@pytest.mark.parametrize("sparse", [False, True])
def test_the_gradient_lies_where_the_logits_did(device, shape, sparse):  # noqa: F811
    from vaefast.backends._options import RowNll
    from vaefast.backends.triton.row_nll import row_nll

    logits = torch.randn(*shape, 1, device=device)
    x = torch.poisson(torch.full(shape, 0.2, device=device))
    csr = x.to_sparse_csr()
    parts = (csr.crow_indices(), csr.col_indices(), csr.values())
    target = parts if sparse else (x.unsqueeze(2),)
    options = RowNll("multinomial", (1.0,), 1, "sample", 1.0, 0.5)
    want = row_nll(logits, target, None, None, options, True)
    got = row_nll(logits, target, None, None, options, True, logits)
    assert got[1] is logits
    for one, two in zip(got, want, strict=True):
        assert torch.equal(one, two)


def test_places_of_64_bits(backend, monkeypatch):
    """The kernels for more than 2^31 elements of a row, on fewer."""
    from vaefast.backends.triton import row_nll

    narrow = row_nll._meta
    monkeypatch.setattr(row_nll, "_meta", lambda *a, **k: {**narrow(*a, **k), "WIDE": True})
    logits, target = torch.randn(2, 300, 9), torch.randint(0, 300, (2, 9))
    logits, target = logits.to(backend.device), target.to(backend.device)
    model = vf.Categorical()
    check(logits, target, model, lambda t: rows.softmax_nll(t, target, 1), 2e-6)
    model = vf.DiscretizedLogisticMixture(1, 3, 5)
    packed, levels = mixtures.mixture_inputs(model, backend.device)
    got = vf.nll(packed, levels, model)
    with vf.backend("reference"):
        torch.testing.assert_close(got, vf.nll(packed, levels, model))
