"""The log density of a mixture against float64 and torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import vaefast as vf

F32 = torch.float32

# Points, components, dimensions.
SHAPES = [
    (1, 1, 1),
    (5, 3, 2),
    (41, 129, 7),
    (33, 257, 40),
    (130, 16, 5),
    (9, 70, 131),
    (1100, 1300, 3),
]


def inputs(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float64, weighted: bool = True
) -> list[Tensor]:
    """z, mu, logvar and log weights, which the points are spread around."""
    points, components, dims = shape
    generator = torch.Generator().manual_seed(components)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    mu, logvar = normal(components, dims), 0.5 * normal(components, dims)
    made = [1.3 * normal(points, dims), mu, logvar]
    if weighted:
        made.append(torch.log_softmax(normal(components), 0))
    return [t.to(dtype).requires_grad_() for t in made]


def exact(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None = None) -> Tensor:
    if log_weights is None:
        log_weights = mu.new_zeros(mu.shape[0])
    components = Independent(Normal(mu, torch.exp(0.5 * logvar)), 1)
    return MixtureSameFamily(Categorical(logits=log_weights), components).log_prob(z)


def wide(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().double().requires_grad_() for t in tensors]


# The largest shape is several blocks of tiles, whatever is in them.
CASES = [
    pytest.param(
        *(shape, dtype, weighted),
        marks=[pytest.mark.slow] * (shape == SHAPES[-1] and (dtype, weighted) != (F32, True)),
    )
    for shape in SHAPES
    for dtype in (torch.float64, F32, torch.bfloat16, torch.float16)
    for weighted in (True, False)
]


@pytest.mark.parametrize(("shape", "dtype", "weighted"), CASES)
def test_value_and_gradients(
    implementation: str, shape: tuple[int, int, int], dtype: torch.dtype, weighted: bool
) -> None:
    leaves = inputs(shape, dtype, weighted)
    doubles = wide(leaves)
    value = vf.mixture_log_prob(*leaves)
    z, mu, logvar, *weights = doubles
    pairs = Normal(mu, torch.exp(0.5 * logvar)).log_prob(z[:, None]).sum(-1)
    # Not `exact`, which would normalise weights that rounding left short of a sum of one.
    log_weights = weights[0] if weights else -math.log(mu.shape[0])
    expected = torch.logsumexp(pairs + log_weights, 1)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)
    up = torch.linspace(0.5, 2.0, shape[0], dtype=torch.float64)
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, 10 * tolerance)
    for got, want in zip(
        torch.autograd.grad(value, leaves, up.to(value.dtype)),
        torch.autograd.grad(expected, doubles, up),
        strict=True,
    ):
        assert got.dtype == dtype
        atol = rounding * float(want.abs().max())
        torch.testing.assert_close(got.double(), want, rtol=rounding, atol=atol)


def test_against_torch_distributions(implementation: str) -> None:
    leaves = inputs((20, 30, 4))
    torch.testing.assert_close(vf.mixture_log_prob(*leaves), exact(*leaves))
    torch.testing.assert_close(vf.mixture_log_prob(*leaves[:3]), exact(*leaves[:3]))


def test_float32_is_no_worse_than_eager(implementation: str) -> None:
    leaves = inputs((64, 500, 40), torch.float32)
    truth = exact(*wide(leaves))
    bound = (exact(*leaves) - truth).abs().max() + 1e-6 * truth.abs().max()
    assert (vf.mixture_log_prob(*leaves) - truth).abs().max() <= bound


def test_density_integrates_to_one(implementation: str) -> None:
    _, mu, logvar, log_weights = (t.detach() for t in inputs((1, 6, 1)))
    grid = torch.linspace(-15, 15, 4001, dtype=torch.float64)
    density = vf.mixture_log_prob(grid[:, None], mu, logvar, log_weights).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_points_far_from_every_component(
    implementation: str, offset: float, shape: tuple[int, int, int] = (40, 200, 3)
) -> None:
    z, *rest = (t.detach() for t in inputs(shape, torch.float32))
    leaves = [(z + offset).requires_grad_(), *(t.requires_grad_() for t in rest)]
    doubles = wide(leaves)
    value, expected = vf.mixture_log_prob(*leaves), exact(*doubles)
    torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=0)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value.sum(), leaves))


def test_components_of_weight_zero(implementation: str) -> None:
    z, mu, logvar, log_weights = (t.detach() for t in inputs((10, 20, 3)))
    log_weights[5:] = -math.inf
    mu.requires_grad_()
    value = vf.mixture_log_prob(z, mu, logvar, log_weights)
    expected = vf.mixture_log_prob(z, mu[:5], logvar[:5], log_weights[:5])
    torch.testing.assert_close(value, expected)
    assert torch.equal(torch.autograd.grad(value.sum(), mu)[0][5:], torch.zeros(15, 3).double())


@pytest.mark.parametrize("weighted", [True, False])
def test_gradcheck(implementation: str, weighted: bool) -> None:
    leaves = inputs((4, 3, 2), weighted=weighted)
    assert torch.autograd.gradcheck(vf.mixture_log_prob, leaves)
    assert torch.autograd.gradgradcheck(vf.mixture_log_prob, leaves)


@pytest.mark.parametrize("wanted", range(4))
def test_only_the_wanted_gradient(implementation: str, wanted: int) -> None:
    leaves = inputs((7, 9, 3))
    expected = torch.autograd.grad(vf.mixture_log_prob(*leaves).sum(), leaves[wanted])[0]
    alone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(leaves)]
    vf.mixture_log_prob(*alone).sum().backward()
    assert [t.grad is not None for t in alone] == [i == wanted for i in range(4)]
    torch.testing.assert_close(alone[wanted].grad, expected)


def test_shapes_and_strides(implementation: str) -> None:
    z, mu, logvar, log_weights = (t.detach() for t in inputs((24, 5, 6)))
    flat = vf.mixture_log_prob(z, mu, logvar, log_weights)

    def image(t: Tensor) -> Tensor:
        return t.view(-1, 2, 3).transpose(1, 2).contiguous().transpose(1, 2)

    got = vf.mixture_log_prob(image(z).view(2, 3, 4, 2, 3), image(mu), image(logvar), log_weights)
    torch.testing.assert_close(got, flat.view(2, 3, 4))
    torch.testing.assert_close(vf.mixture_log_prob(z[0], mu, logvar, log_weights), flat[0])
    expanded = vf.mixture_log_prob(
        z[:1].expand(24, 6), mu[:1].expand(5, 6), logvar[:1].expand(5, 6)
    )
    torch.testing.assert_close(
        expanded, Normal(mu[0], (0.5 * logvar[0]).exp()).log_prob(z[:1]).sum(-1).expand(24)
    )


@pytest.mark.parametrize("shape", [(0, 3, 2), (4, 0, 2), (4, 3, 0)])
def test_empty(implementation: str, shape: tuple[int, int, int]) -> None:
    points, components, dims = shape
    value = vf.mixture_log_prob(
        torch.zeros(points, dims), torch.zeros(components, dims), torch.zeros(components, dims)
    )
    want = torch.full((points,), 0.0 if components else -math.inf)
    torch.testing.assert_close(value, want, atol=1e-6, rtol=0)


def test_same_bits_for_any_number_of_threads(implementation: str) -> None:
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = inputs((200, 300, 9), torch.float32)
        value = vf.mixture_log_prob(*leaves)
        results.append((value, *torch.autograd.grad(value.sum(), leaves)))
    torch.set_num_threads(before)
    if implementation != "reference":
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nan_stays_in_its_point(implementation: str) -> None:
    z, mu, logvar = (t.detach() for t in inputs((40, 20, 3), torch.float32, weighted=False))
    clean = vf.mixture_log_prob(z, mu, logvar)
    z[7, 1] = math.nan
    value = vf.mixture_log_prob(z, mu, logvar)
    assert torch.isnan(value).nonzero().flatten().tolist() == [7]
    keep = ~torch.isnan(value)
    torch.testing.assert_close(value[keep], clean[keep])


def test_operator_and_compile() -> None:
    tensors = [t.detach() for t in inputs((9, 5, 3), torch.float32)]
    for name in vf.available_backends():
        if name == "reference":
            continue
        for z, mu, logvar, weights in (tensors, [*tensors[:3], None]):
            arguments = (z, mu, logvar, weights)
            ops = torch.ops.vaefast
            torch.library.opcheck(ops.mixture_log_prob.default, (*arguments, name))
            value, joint = ops.mixture_log_prob(*arguments, name)
            torch.library.opcheck(
                ops.mixture_log_prob_backward.default,
                (torch.ones_like(value), *arguments, joint, name),
            )
    leaves = [t.requires_grad_() for t in tensors]
    compiled = torch.compile(vf.mixture_log_prob, fullgraph=True, backend="aot_eager")
    for got, want in zip(
        torch.autograd.grad(compiled(*leaves).sum(), leaves),
        torch.autograd.grad(vf.mixture_log_prob(*leaves).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"z": torch.zeros(4, 3)}, ValueError, r"z must have shape .*got \[4, 3\]"),
        ({"scale": torch.zeros(5, 3)}, ValueError, "mu and scale"),
        ({"log_weights": torch.zeros(4)}, ValueError, r"one value per component, \[5\], got \[4\]"),
        ({"log_weights": torch.zeros(5, dtype=torch.int64)}, TypeError, "log_weights"),
        ({"param": "precision"}, ValueError, "param"),
    ],
)
def test_bad_input(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {
        "z": torch.zeros(4, 2),
        "mu": torch.zeros(5, 2),
        "scale": torch.zeros(5, 2),
    }
    with pytest.raises(error, match=message):
        vf.mixture_log_prob(**{**arguments, **change})
