"""The maximum mean discrepancy against float64 and against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import vaefast as vf
from vaefast.ops.mmd import WAE_SCALES, denominators

# Points of x, points of y, dimensions.
SHAPES = [(2, 2, 1), (5, 3, 2), (41, 130, 7), (257, 129, 5), (16, 200, 33), (70, 40, 131)]


def samples(shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    n, m, dims = shape
    generator = torch.Generator().manual_seed(n)
    x = 0.7 * torch.randn(n, dims, generator=generator, dtype=torch.float64) + 0.3
    y = torch.randn(m, dims, generator=generator, dtype=torch.float64)
    return [t.to(dtype).requires_grad_() for t in (x, y)]


def exact(
    x: Tensor, y: Tensor, kernel: str, scales: tuple[float, ...] | None, unbiased: bool
) -> Tensor:
    """The definition, one scale after the other."""
    dims, total = x.shape[1], x.new_zeros(())

    def k(a: Tensor, b: Tensor, scale: float) -> Tensor:
        squared = ((a[:, None] - b) ** 2).sum(-1)
        if kernel == "rbf":
            return torch.exp(-squared / (2 * scale**2))
        return 2 * dims * scale / (2 * dims * scale + squared)

    default = WAE_SCALES if kernel == "imq" else [math.sqrt(dims * s) for s in WAE_SCALES]
    for scale in scales or default:
        for a in (x, y):
            keep = ~torch.eye(len(a), dtype=torch.bool) if unbiased else slice(None)
            total = total + k(a, a, scale)[keep].mean()
        total = total - 2 * k(x, y, scale).mean()
    return total


@pytest.mark.each(5)
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradients(
    implementation: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    kernel: str,
    unbiased: bool,
) -> None:
    inputs = samples(shape, dtype)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    value = vf.mmd(*inputs, kernel=kernel, unbiased=unbiased)
    expected = exact(*doubles, kernel, None, unbiased)
    tolerance = 1e-13 if dtype == torch.float64 else 5e-6
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, 0.0)
    for got, want in zip(
        torch.autograd.grad(3 * value, inputs),
        torch.autograd.grad(3 * expected, doubles),
        strict=True,
    ):
        assert got.dtype == dtype
        largest = float(want.abs().max())
        atol = tolerance * largest + rounding * largest
        torch.testing.assert_close(got.double(), want, rtol=rounding, atol=atol)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize("scales", [(0.5,), (0.3, 4.0), (0.1, 1.0, 2.0, 3.0)])
def test_scales(implementation: str, kernel: str, scales: tuple[float, ...]) -> None:
    inputs = samples((30, 20, 4))
    got = vf.mmd(*inputs, kernel=kernel, scales=scales)
    torch.testing.assert_close(got, exact(*inputs, kernel, scales, True))


def test_both_kernels_look_as_far_by_default() -> None:
    assert denominators("imq", None, 8) == denominators("rbf", None, 8)
    explicit = denominators("rbf", [math.sqrt(8 * s) for s in WAE_SCALES], 8)
    assert explicit == pytest.approx(denominators("rbf", None, 8))


def test_near_points_do_not_cancel(
    implementation: str, shape: tuple[int, int, int] = (60, 50, 8)
) -> None:
    """|x|^2 + |y|^2 - 2xy in float32 loses these distances altogether."""
    x, y = (t.detach() for t in samples(shape))
    x, y = 1000 + 1e-2 * x, 1000 + 1e-2 * y
    x, y = x.float(), y.float()
    inputs = [t.clone().requires_grad_() for t in (x, y)]
    doubles = [t.double().requires_grad_() for t in (x, y)]
    scales = (1e-2, 3e-2)
    value = vf.mmd(*inputs, kernel="rbf", scales=scales)
    expected = exact(*doubles, "rbf", scales, True)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    for got, want in zip(
        torch.autograd.grad(value, inputs), torch.autograd.grad(expected, doubles), strict=True
    ):
        torch.testing.assert_close(
            got.double(), want, rtol=1e-5, atol=1e-5 * float(want.abs().max())
        )


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", [(5, 3, 2), (257, 129, 5), (70, 40, 131)])
@pytest.mark.parametrize("scales", [(1e-4, 1.0), (0.5, 1.0)])
@pytest.mark.parametrize("middle", [0.0, 1000.0])
def test_both_forms_of_distances(
    implementation: str,
    shape: tuple[int, int, int],
    scales: tuple[float, ...],
    middle: float,
    wanted: tuple[bool, bool],
) -> None:
    """Points far from 0, as far as the smallest scale sees or further, in float32."""
    inputs = [(middle + t.detach()).float() for t in samples(shape)]
    inputs[0][1] = inputs[1][0]
    doubles = [t.double().requires_grad_() for t in inputs]
    leaves = [t.requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
    value = vf.mmd(*leaves, scales=scales)
    expected = exact(*doubles, "imq", scales, True)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    value.backward()
    for got, want in zip(inputs, torch.autograd.grad(expected, doubles), strict=True):
        if got.requires_grad:
            atol = 1e-5 * float(want.abs().max())
            torch.testing.assert_close(got.grad.double(), want, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_distant_points(implementation: str, kernel: str) -> None:
    x, y = (t.detach().float() for t in samples((20, 30, 3)))
    for distance in (1e4, 1e10, 1e18):
        leaf = (x + distance).requires_grad_()
        value = vf.mmd(leaf, y, kernel=kernel, unbiased=False)
        assert torch.isfinite(value)
        assert torch.isfinite(torch.autograd.grad(value, leaf)[0]).all()


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_gradcheck(implementation: str, kernel: str, unbiased: bool) -> None:
    def value(x: Tensor, y: Tensor) -> Tensor:
        return vf.mmd(x, y, kernel=kernel, unbiased=unbiased)

    inputs = samples((4, 3, 2))
    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs)
    torch.testing.assert_close(
        torch.func.grad(value)(*inputs), torch.autograd.grad(value(*inputs), inputs[0])[0]
    )


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_the_wanted_gradient(
    implementation: str, wanted: int, shape: tuple[int, int, int] = (150, 140, 3)
) -> None:
    inputs = samples(shape)
    expected = torch.autograd.grad(vf.mmd(*inputs), inputs[wanted])[0]
    alone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(inputs)]
    vf.mmd(*alone).backward()
    assert [t.grad is not None for t in alone] == [i == wanted for i in range(2)]
    torch.testing.assert_close(alone[wanted].grad, expected)


def test_a_second_backward_gives_the_same(implementation: str) -> None:
    x, y = samples((20, 30, 3))
    value = vf.mmd(x, y)
    first = torch.autograd.grad(2 * value, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(2 * value, x)[0], first)


def test_unbiased_estimate(implementation: str) -> None:
    """Of two samples of one distribution its mean is 0; the V-statistic is at least 0."""
    generator = torch.Generator().manual_seed(3)
    estimates = []
    for _ in range(200):
        x, y = torch.randn(2, 16, 3, generator=generator)
        estimates.append(vf.mmd(x, y))
        assert vf.mmd(x, y, unbiased=False) > -1e-6
    estimate = torch.stack(estimates)
    assert abs(float(estimate.mean())) < 4 * float(estimate.std()) / math.sqrt(200)
    assert float(vf.mmd(torch.randn(200, 3) + 2, torch.randn(200, 3))) > 0.5


def test_shapes_and_strides(implementation: str) -> None:
    x, y = (t.detach() for t in samples((24, 5, 6)))
    flat = vf.mmd(x, y)
    image = x.view(24, 2, 3).transpose(0, 2).contiguous().transpose(0, 2)
    torch.testing.assert_close(vf.mmd(image, y.view(5, 2, 3)), flat)
    constant = vf.mmd(x[:1].expand(24, 6), x[:1].expand(5, 6), unbiased=False)
    torch.testing.assert_close(constant, torch.zeros_like(constant), atol=1e-12, rtol=0)


def test_no_dimensions(implementation: str) -> None:
    value = vf.mmd(torch.zeros(3, 0), torch.zeros(4, 0), kernel="rbf", scales=[1.0])
    torch.testing.assert_close(value, torch.zeros(()), atol=1e-6, rtol=0)


def test_same_bits_for_any_number_of_threads(implementation: str) -> None:
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        inputs = samples((300, 500, 9), torch.float32)
        value = vf.mmd(*inputs)
        results.append((value, *torch.autograd.grad(value, inputs)))
    torch.set_num_threads(before)
    if implementation != "reference":
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nan_survives(implementation: str, shape: tuple[int, int, int] = (140, 20, 3)) -> None:
    x, y = (t.detach() for t in samples(shape, torch.float32))
    x[-10, 1] = math.nan
    for kernel in ("imq", "rbf"):
        assert torch.isnan(vf.mmd(x, y, kernel=kernel))


def test_operator_and_compile() -> None:
    inputs = [t.detach() for t in samples((9, 5, 3), torch.float32)]
    for name in vf.available_backends():
        if name == "reference":
            continue
        for need in ([True, True], [True, False], [False, False]):
            arguments = (*inputs, False, [1.0, 2.0, 3.0], True, need, None, name)
            torch.library.opcheck(torch.ops.vaefast.mmd.default, arguments)
    leaves = [t.requires_grad_() for t in inputs]
    compiled = torch.compile(vf.mmd, fullgraph=True, backend="aot_eager")
    for got, want in zip(
        torch.autograd.grad(compiled(*leaves), leaves),
        torch.autograd.grad(vf.mmd(*leaves), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": torch.zeros(4, 3)}, ValueError, r"got \[4, 2\] and \[4, 3\]"),
        ({"x": torch.zeros(1, 2)}, ValueError, "x must have at least 2 points"),
        ({"y": torch.zeros(0, 2), "unbiased": False}, ValueError, "y must have at least 1"),
        ({"x": torch.zeros(4, 2, dtype=torch.int64)}, TypeError, "x must be float64"),
        ({"kernel": "linear"}, ValueError, "'imq', 'rbf'"),
        ({"scales": []}, ValueError, "scales"),
        ({"scales": [0.0]}, ValueError, "scales"),
        ({"scales": [1.0] * 33}, ValueError, "scales"),
    ],
)
def test_bad_input(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"x": torch.zeros(4, 2), "y": torch.zeros(4, 2)}
    with pytest.raises(error, match=message):
        vf.mmd(**{**arguments, **change})
