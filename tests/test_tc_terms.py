"""beta-TCVAE's terms against float64, against the paper's estimator and against popular ports."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import vaefast as vf
from vaefast.ops import _tc_terms
from vaefast.ops.tc_terms import weights

SHAPES = [(2, 1), (5, 3), (41, 7), (130, 5), (257, 2), (70, 77)]


def batch(size: int, dims: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mu, logvar, eps = torch.randn(3, size, dims, generator=generator, dtype=torch.float64)
    logvar = 0.7 * logvar - 1
    return [t.to(dtype) for t in (mu + torch.exp(0.5 * logvar) * eps, mu, logvar)]


def exact(
    z: Tensor, mu: Tensor, logvar: Tensor, dataset_size: int, method: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's formulas, entry by entry."""
    size = z.shape[0]
    density = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    pairs = density.log_prob(z[:, None])
    weight = torch.full((size, size), 1 / (dataset_size * size), dtype=z.dtype)
    if method == "mss":
        others = size - 1
        for i, j in itertools.product(range(size), repeat=2):
            stratum = (dataset_size - others) / (dataset_size * others)
            weight[i, j] = {0: 1 / dataset_size, 1: stratum}.get((j - i) % size, 1 / others)
    log_qz = torch.logsumexp(pairs.sum(-1) + weight.log(), 1)
    log_product = torch.logsumexp(pairs + weight.log()[..., None], 1).sum(-1)
    log_pz = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    return density.log_prob(z).sum(-1) - log_qz, log_qz - log_product, log_product - log_pz


def gradients(terms: tuple[Tensor, ...], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    up = torch.linspace(0.5, 2.0, 3 * terms[0].numel(), dtype=torch.float64).view(3, -1)
    return torch.autograd.grad(terms, leaves, [u.to(terms[0].dtype) for u in up])


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


@pytest.mark.each(3)
@pytest.mark.parametrize("method", ["mss", "mws"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradients(
    implementation: str, shape: tuple[int, int], method: str, dtype: torch.dtype
) -> None:
    inputs = leaves(batch(*shape, dtype))
    wide = leaves([t.detach().double() for t in inputs])
    terms = vf.tc_terms(*inputs, dataset_size=5000, method=method)
    expected = exact(*wide, 5000, method)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    for got, want in zip(terms, expected, strict=True):
        assert got.dtype == compute
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=10 * tolerance)
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, tolerance)
    for got, want in zip(gradients(terms, inputs), gradients(expected, wide), strict=True):
        assert got.dtype == dtype
        atol = max(10 * tolerance, rounding) * float(want.abs().max())
        torch.testing.assert_close(got.double(), want, rtol=rounding, atol=atol)


def test_float32_is_no_worse_than_eager(implementation: str) -> None:
    z, mu, logvar = batch(200, 64, torch.float32)
    truth = exact(z.double(), mu.double(), logvar.double(), 50000, "mss")
    eager = exact(z, mu, logvar, 50000, "mss")
    ours = vf.tc_terms(z, mu, logvar, dataset_size=50000)
    for got, plain, want in zip(ours, eager, truth, strict=True):
        bound = (plain - want).abs().max() + 1e-6 * want.abs().max()
        assert (got - want).abs().max() <= bound


@pytest.mark.parametrize("offset", [50.0, 3000.0])
def test_points_far_from_every_posterior(
    implementation: str, offset: float, size: int = 150
) -> None:
    z, mu, logvar = batch(size, 3, torch.float32)
    z = z + offset
    inputs, wide = leaves([z, mu, logvar]), leaves([z.double(), mu.double(), logvar.double()])
    terms = vf.tc_terms(*inputs, dataset_size=1000)
    expected = exact(*wide, 1000, "mss")
    scale = float(expected[2].detach().abs().max())
    for got, want in zip(terms, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6 * scale)
    # Exponents of 1e6 leave few digits of a float32 difference: only that all is finite.
    assert all(torch.isfinite(g).all() for g in gradients(terms, inputs))


@pytest.mark.parametrize("scale", [-30.0, 20.0])
def test_extreme_and_mixed_scales(implementation: str, scale: float) -> None:
    z, mu, logvar = batch(40, 3)
    logvar[::3] = scale
    z = mu + torch.exp(0.5 * logvar) * (z - mu)
    inputs, wide = leaves([z, mu, logvar]), leaves([z, mu, logvar])
    terms, expected = vf.tc_terms(*inputs, dataset_size=100), exact(*wide, 100, "mss")
    for got, want in zip(terms, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    for got, want in zip(gradients(terms, inputs), gradients(expected, wide), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", ["mss", "mws"])
def test_gradcheck(implementation: str, method: str) -> None:
    inputs = leaves(batch(5, 3))

    def terms(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(vf.tc_terms(*tensors, dataset_size=30, method=method))

    assert torch.autograd.gradcheck(terms, inputs)
    assert torch.autograd.gradgradcheck(terms, inputs)


def test_functional_transforms(implementation: str) -> None:
    z, mu, logvar = batch(6, 2)

    def total(z: Tensor) -> Tensor:
        return vf.tc_terms(z, mu, logvar, dataset_size=30).tc.sum()

    z.requires_grad_()
    torch.testing.assert_close(torch.func.grad(total)(z), torch.autograd.grad(total(z), z)[0])


@pytest.mark.parametrize("param", ["log_std", "std", "var", "softplus"])
def test_parameters_of_the_scale(implementation: str, param: str) -> None:
    z, mu, logvar = batch(20, 4)
    std = torch.exp(0.5 * logvar)
    scale = {
        "log_std": 0.5 * logvar,
        "std": std,
        "var": std**2,
        "softplus": torch.log(torch.expm1(std - 0.01)),
    }[param]
    got = vf.tc_terms(z, mu, scale, dataset_size=100, param=param, min_std=0.01)
    for value, want in zip(got, exact(z, mu, logvar, 100, "mss"), strict=True):
        torch.testing.assert_close(value, want)


def test_clamp_and_shapes(implementation: str) -> None:
    z, mu, logvar = batch(12, 6)
    flat = vf.tc_terms(z, mu, logvar.clamp(-1, 0), dataset_size=100)
    shaped = (t.view(12, 2, 3).transpose(1, 2) for t in (z, mu, logvar))
    got = vf.tc_terms(*shaped, dataset_size=100, clamp=(-1.0, 0.0))
    for value, want in zip(got, flat, strict=True):
        torch.testing.assert_close(value, want)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_empty(implementation: str, shape: tuple[int, int]) -> None:
    terms = vf.tc_terms(*torch.zeros(3, *shape).unbind(0), dataset_size=10)
    for value in terms:
        torch.testing.assert_close(value, torch.zeros(shape[0]), atol=1e-6, rtol=0)


def test_same_bits_for_any_number_of_threads(implementation: str) -> None:
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        inputs = leaves(batch(300, 9, torch.float32))
        terms = vf.tc_terms(*inputs, dataset_size=5000)
        results.append((*terms, *gradients(terms, inputs)))
    torch.set_num_threads(before)
    if implementation != "reference":
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("method", ["mss", "mws"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_parts_of_a_batch(implementation: str, method: str, dtype: torch.dtype) -> None:
    check_parts(method, dtype, 1150 if dtype == torch.float32 else 580)


def check_parts(method: str, dtype: torch.dtype, size: int) -> None:
    """As `gather` has it: each rank has its points and the posteriors of all."""
    z, mu, logvar = batch(size, 3, dtype)
    whole = leaves([z, mu, logvar])
    with vf.backend("reference"):
        terms = _tc_terms.run(*whole, weights(len(z), 5000, method))
        up = torch.linspace(0.5, 2.0, terms.numel(), dtype=dtype).view_as(terms)
        expected = torch.autograd.grad(terms, whole, up)
    inputs, cut = leaves([z, mu, logvar]), len(z) // 5
    parts = [
        _tc_terms.run(rows, *inputs[1:], weights(len(z), 5000, method, first))
        for first, rows in ((0, inputs[0][:cut]), (cut, inputs[0][cut:]))
    ]
    got = torch.cat(parts, 1)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(got, terms, rtol=tolerance, atol=10 * tolerance)
    for grad, want in zip(torch.autograd.grad(got, inputs, up), expected, strict=True):
        atol = tolerance * float(want.abs().max())
        torch.testing.assert_close(grad, want, rtol=tolerance, atol=atol)


def test_nan_stays_in_its_sample(implementation: str, size: int = 140) -> None:
    z, mu, logvar = batch(size, 3, torch.float32)
    clean = vf.tc_terms(z, mu, logvar, dataset_size=1000)
    z[7, 1] = math.nan
    for value, want in zip(vf.tc_terms(z, mu, logvar, dataset_size=1000), clean, strict=True):
        broken = torch.isnan(value)
        assert broken[7]
        assert int(broken.sum()) == 1
        torch.testing.assert_close(value[~broken], want[~broken])


def test_operator_and_compile() -> None:
    inputs = batch(9, 3, torch.float32)
    for name in vf.available_backends():
        if name == "reference":
            continue
        settings = (*weights(9, 100, "mss"), None, name)
        torch.library.opcheck(torch.ops.vaefast.tc_terms.default, (*inputs, *settings))
        terms, joint, marginals = torch.ops.vaefast.tc_terms(*inputs, *settings)
        args = (torch.ones_like(terms), *inputs, joint, marginals, *settings)
        torch.library.opcheck(torch.ops.vaefast.tc_terms_backward.default, args)

    def loss(*tensors: Tensor) -> Tensor:
        terms = vf.tc_terms(*tensors, dataset_size=100)
        return (terms.mi + 6 * terms.tc + terms.dim_kl).mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    inputs = leaves(inputs)
    for got, want in zip(
        torch.autograd.grad(compiled(*inputs), inputs),
        torch.autograd.grad(loss(*inputs), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


# A dataset small enough to enumerate: every minibatch that holds sample n*, in every order.
DATASET = 5


def _enumerated(matrix_of: object, others: int) -> tuple[Tensor, Tensor]:
    """E of the estimator sum_j W_ij q(z|n_j) over minibatches with n* at place 2, and q(z)."""
    density = torch.distributions.Normal(torch.linspace(-2.0, 2.0, DATASET).double(), 0.6)
    z = torch.tensor(0.3, dtype=torch.float64)
    likelihood = density.log_prob(z).exp()
    own, place = 3, 2
    rest = [n for n in range(DATASET) if n != own]
    estimates = []
    for chosen in itertools.permutations(rest, others):
        members = [*chosen[:place], own, *chosen[place:]]
        estimates.append((matrix_of(others)[place] * likelihood[members]).sum())
    return torch.stack(estimates).mean(), likelihood.mean()


def _ours(others: int) -> Tensor:
    from vaefast.backends.reference.tc_terms import log_weight_matrix

    size = others + 1
    settings = weights(size, DATASET, "mss")
    return log_weight_matrix(torch.zeros(size, dtype=torch.float64), size, settings).exp()


def _port(others: int) -> Tensor:
    """The matrix of the authors' code and its ports: a stride of M + 1 walks down a column."""
    size = others + 1
    matrix = torch.full((size, size), 1 / others, dtype=torch.float64)
    matrix.view(-1)[:: others + 1] = 1 / DATASET
    matrix.view(-1)[1 :: others + 1] = (DATASET - others) / (DATASET * others)
    matrix[others - 1, 0] = (DATASET - others) / (DATASET * others)
    return matrix


@pytest.mark.parametrize("others", [2, 3, 4])
def test_stratified_weights_are_unbiased(others: int) -> None:
    estimate, truth = _enumerated(_ours, others)
    torch.testing.assert_close(estimate, truth, rtol=1e-12, atol=0)
    assert torch.allclose(_ours(others).sum(1), torch.ones(others + 1, dtype=torch.float64))


@pytest.mark.parametrize("others", [2, 3])
def test_the_ports_weights_are_biased(others: int) -> None:
    estimate, truth = _enumerated(_port, others)
    assert abs(float(estimate / truth) - 1) > 0.05
    diagonal = _port(others).diagonal()
    assert not torch.allclose(diagonal, torch.full_like(diagonal, 1 / DATASET))


def test_the_weight_is_counted_once(implementation: str) -> None:
    """Where all posteriors coincide, q(z) is that posterior, for a weight that sums to one.

    Ports add log W before the sum over the D dimensions, so that it counts D times.
    """
    z = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mu, logvar = torch.zeros(2, 6, 4, dtype=torch.float64).unbind(0)
    mi, tc, dim_kl = vf.tc_terms(z, mu, logvar, dataset_size=100)
    for value in (mi, tc, dim_kl):
        torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)
    pairs = torch.distributions.Normal(0.0, 1.0).log_prob(z)[:, None].expand(6, 6, 4)
    counted_often = torch.logsumexp((pairs + math.log(1 / 6)).sum(-1), 1)
    assert not torch.allclose(counted_often, pairs[:, 0].sum(-1), atol=1.0)


def test_terms_add_up_to_the_kl_sample(implementation: str) -> None:
    z, mu, logvar = batch(30, 4)
    total = sum(vf.tc_terms(z, mu, logvar, dataset_size=500))
    log_q = torch.distributions.Normal(mu, torch.exp(0.5 * logvar)).log_prob(z).sum(-1)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(total, log_q - log_p)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dataset_size": 2}, ValueError, "dataset_size"),
        ({"dataset_size": 10.0}, TypeError, "dataset_size"),
        ({"method": "exact"}, ValueError, "'mss', 'mws'"),
        ({"z": torch.zeros(3, 3)}, ValueError, r"z and mu .*\[3, 3\] and \[3, 2\]"),
        ({"scale": torch.zeros(3, 3)}, ValueError, "mu and scale"),
        ({"z": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, "z must be float64"),
        ({"param": "precision"}, ValueError, "param"),
        ({"gather": True}, RuntimeError, "init_process_group"),
    ],
)
def test_bad_input(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = dict.fromkeys(("z", "mu", "scale"), torch.zeros(3, 2))
    with pytest.raises(error, match=message):
        vf.tc_terms(**{**arguments, "dataset_size": 10, **change})
    with pytest.raises(ValueError, match="at least 2"):
        vf.tc_terms(*torch.zeros(3, 1, 2).unbind(0), dataset_size=10)
