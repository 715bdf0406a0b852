"""The Triton kernels of likelihoods with a class dimension, under the operators' own tests.

test_interpreter.py runs this file as it does kernel_checks.py; test_gpu.py takes its tests over. In
the interpreter a program takes some hundredths of a second whatever its tile holds: so shapes have
few tiles there, and a case two reductions in turn, of which all cases together have every one.
"""

import interpreted
import pytest
import test_likelihood_mixture as mixtures
import test_likelihood_rows as rows
import test_linear_nll as linear
import torch
from conftest import Target
from kernel_checks import F16, F32, F64, INTERPRETED, device, triton_backend  # noqa: F401
from row_cases import EVERY, check

import vaefast as vf

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
KINDS = [torch.int32, torch.int64, torch.uint8]


@pytest.fixture
def backend(device):  # noqa: F811
    torch.manual_seed(0)
    return Target("triton", device)


@pytest.fixture
def blocks(monkeypatch):
    """More than 64 classes are read in blocks, which two programs share; else from 1025 on."""
    from vaefast.backends.triton import row_nll

    monkeypatch.setattr(row_nll, "_MOST_CLASSES", 64)
    monkeypatch.setattr(row_nll, "_MOST_SPLITS", 2)


def turn(number):
    """Two of the reductions and of what stands beside the target, other ones for each number."""
    return [EVERY[(2 * number + step) % len(EVERY)] for step in (0, 7)] if INTERPRETED else EVERY


def cases(*given):
    return [pytest.param(n, *case, id=str(case)) for n, case in enumerate(given)]


@pytest.mark.parametrize(
    ("number", "shape", "dim", "dtype"),
    cases(
        # Classes side by side: a whole tile of positions and a part of one in each row.
        ((3, 7, 5, 14), 1, F32),
        ((2, 300, 17), 1, F64),
        ((2, 300, 17), 1, F16),
        # Rows of whole 16-byte loads.
        ((2, 5, 32), 1, F32),
        # Classes last: 435 rows in tiles of 256.
        ((3, 5, 29, 7), -1, F64),
        ((3, 5, 29, 7), -1, F16),
        ((3, 5, 48), -1, F32),
        # More classes than a tile holds.
        ((2, 1271), 1, F32),
        ((1, 1030, 3), 1, F32),
    ),
)
def test_categorical(backend, number, shape, dim, dtype):
    rows.check_categorical(backend, shape, dim, dtype, turn(number))


@pytest.mark.parametrize(
    ("number", "shape", "dim", "dtype"),
    cases(
        # Three blocks for two programs, one of which has a block beyond the last class.
        ((2, 130, 3), 1, F64),
        ((2, 130, 3), 1, F16),
        # Three of 2048.
        ((2, 4099), 1, F32),
    ),
)
def test_categorical_in_shared_blocks(backend, blocks, number, shape, dim, dtype):
    rows.check_categorical(backend, shape, dim, dtype, turn(number))


@pytest.mark.parametrize(
    ("number", "shape", "dtype", "sparse"),
    cases(
        ((5, 7), F64, False),
        ((5, 7), F32, True),
        ((5, 7), F16, False),
        # More than a tile of classes, and than 128 entries of a row.
        ((2, 1271), F64, True),
        ((2, 1271), F32, False),
        ((2, 1271), F16, True),
        # Two blocks of classes.
        ((2, 2500), F64, False),
        ((2, 2500), F32, True),
        ((2, 2500), F16, False),
    ),
)
def test_multinomial(backend, number, shape, dtype, sparse):
    kinds = [KINDS[number % 3]] if INTERPRETED else KINDS
    rows.check_multinomial(backend, shape, dtype, sparse, turn(number), kinds)


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
    ("number", "model", "dtype"),
    cases(*((m, F32) for m in mixtures.MIXTURES), (mixtures.MIXTURES[1], F64)),
)
def test_mixture(backend, number, model, dtype):
    mixtures.check_mixture(backend, model, dtype, turn(number))


@pytest.mark.parametrize(
    ("number", "name", "heads", "sparse"),
    cases(
        ("categorical", 1, False),
        ("multinomial", 1, False),
        ("multinomial", 1, True),
        ("gaussian", 2, False),
        ("poisson", 1, True),
    ),
)
def test_linear_nll(backend, number, name, heads, sparse):
    if not INTERPRETED:
        linear.test_it_is_the_layer_and_the_likelihood(backend, name, heads, sparse)
        return
    # In chunks, and whole with samples in front.
    first, second = (linear.SETTINGS[(number + step) % 5] for step in (0, 3))
    linear.check_layer(backend, name, heads, sparse, None, linear.V * 16 * heads, [first])
    linear.check_layer(backend, name, heads, sparse, 3, None, [second])


@pytest.mark.parametrize("shape", [(7, 300), (3, 2500)], ids=str)
@pytest.mark.parametrize("sparse", [False, True])
def test_the_gradient_lies_where_the_logits_did(device, shape, sparse):  # noqa: F811
    from vaefast.backends._options import RowNllOptions
    from vaefast.backends.triton.row_nll import row_nll

    logits = torch.randn(*shape, 1, device=device)
    x = torch.poisson(torch.full(shape, 0.2, device=device))
    csr = x.to_sparse_csr()
    parts = (csr.crow_indices(), csr.col_indices(), csr.values())
    target = parts if sparse else (x.unsqueeze(2),)
    options = RowNllOptions("multinomial", (1.0,), 1, "sample", 1.0, 0.5)
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
    check(logits, target, model, lambda t: rows.softmax_nll(t, target, 1), 2e-6, turn(0))
    model = vf.DiscretizedLogisticMixture(1, 3, 5)
    packed, levels = mixtures.mixture_inputs(model, backend.device)
    got = vf.nll(packed, levels, model)
    with vf.backend("reference"):
        torch.testing.assert_close(got, vf.nll(packed, levels, model))


if INTERPRETED:

    def test_every_branch_was_taken():
        """By the checks above, where all of them ran."""
        files = ("_softmax_rows.py", "_counts_rows.py", "_logistic_mixture_rows.py")
        assert interpreted.missed(files) == []
