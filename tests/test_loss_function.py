"""`integrations.functional.loss_function` against each convention as it is found, written anew
in float64."""

import doctest
import math

import pytest
import torch
from tolerances import assert_close64
from torch.nn import functional as F

from vaefast.integrations import functional
from vaefast.integrations.functional import CONVENTIONS, RECONSTRUCTIONS, loss_function


def kld(mu, logvar):
    """Of each element, as everybody writes it."""
    return -0.5 * (1 + logvar - mu.pow(2) - logvar.exp())


ELEMENTS = {
    "bce": lambda r, x: F.binary_cross_entropy(r, x, reduction="none"),
    "bce_logits": lambda r, x: F.binary_cross_entropy_with_logits(r, x, reduction="none"),
    "mse": lambda r, x: F.mse_loss(r, x, reduction="none"),
    "half_mse": lambda r, x: 0.5 * F.mse_loss(r, x, reduction="none"),
    "l1": lambda r, x: F.l1_loss(r, x, reduction="none"),
}


def wild(convention, name, r, x, mu, logvar, w, mask):
    """(loss, reconstruction, KL) as that code computes them."""
    x = x.reshape(r.shape)
    elements = ELEMENTS[name](r, x)
    if convention == "masked":
        elements = elements.flatten(mask.dim()).sum(-1)[mask].sum() / mask.sum()
        per_position = mu.dim() > mask.dim() and mu.shape[: mask.dim()] == mask.shape
        kl = kld(mu, logvar)
        if per_position:
            kl = kl.flatten(mask.dim()).sum(-1)[mask].sum() / mask.sum()
        else:
            kl = kl.flatten(1).sum(1).mean()
        return elements + w * kl, elements, kl
    kept = elements if mask is None else elements[mask.expand(elements.shape)]
    if convention == "sum":
        recon, kl = kept.sum(), kld(mu, logvar).sum()
    elif convention == "batchmean":
        recon, kl = kept.sum() / len(x), kld(mu, logvar).sum() / len(x)
    else:
        recon, kl = kept.mean(), torch.mean(kld(mu, logvar).flatten(1).sum(1), dim=0)
    return recon + w * kl, recon, kl


def given(name, shape, latent, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(size, generator=generator, dtype=torch.float64)  # noqa: E731
    r, x = draw(*shape), torch.rand(shape, generator=generator, dtype=torch.float64)
    r = r.sigmoid() if name == "bce" else r
    return [t.to(dtype) for t in (r, x, draw(*latent), draw(*latent))], generator


CASES = [
    (convention, name, shape, latent, masked)
    for convention in CONVENTIONS
    for name in RECONSTRUCTIONS
    for shape, latent, masked in (
        [((5, 7, 3), (5, 7, 2), (5, 7)), ((5, 7, 3), (5, 4), (5, 7)), ((5, 6), (5, 4), (5,))]
        if convention == "masked"
        else [((5, 17), (5, 4), None), ((5, 2, 3, 4), (5, 4, 2, 2), (5, 1, 3, 4))]
    )
]


@pytest.mark.parametrize(("convention", "name", "shape", "latent", "masked"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_those_of_the_wild(convention, name, shape, latent, masked, dtype):
    tensors, generator = given(name, shape, latent, dtype)
    mask = None if masked is None else torch.rand(masked, generator=generator) < 0.7
    ours = [t.clone().requires_grad_(i != 1) for i, t in enumerate(tensors)]
    wide = [t.double().requires_grad_(i != 1) for i, t in enumerate(tensors)]
    settings = {"reconstruction": name, "kld_weight": 0.3, "mask": mask}
    got = loss_function(*ours, convention, parts=True, **settings)
    want = wild(convention, name, *wide, 0.3, mask)
    for one, two in zip(got, want, strict=True):
        assert one.dtype == dtype and one.shape == ()
        assert_close64(one, two, dtype)
    assert torch.equal(got.loss, loss_function(*ours, convention, **settings))
    assert not got.reconstruction.requires_grad and not got.kl.requires_grad
    got.loss.backward()
    want[0].backward()
    for one, two in zip(ours, wide, strict=True):
        if two.grad is not None:
            assert_close64(one.grad, two.grad, dtype)


def test_the_line_of_pytorch_examples_is_replaced_as_it_stands():
    """Their call: `loss_function(recon_batch, data, mu, logvar)`, images beside rows."""
    (r, x, mu, logvar), _ = given("bce", (6, 784), (6, 20), torch.float32)
    want = F.binary_cross_entropy(r, x, reduction="sum") + kld(mu, logvar).sum()
    torch.testing.assert_close(loss_function(r, x.view(6, 1, 28, 28), mu, logvar), want)
    whole = loss_function(r.view(6, 1, 28, 28), x, mu, logvar, "batchmean")
    torch.testing.assert_close(whole, want / 6)


def test_antixks_loss_and_what_it_reports():
    """`F.mse_loss` and `kld_weight = M_N`; its "KLD" is minus the KL."""
    (r, x, mu, logvar), _ = given("mse", (6, 3, 8, 8), (6, 20), torch.float32)
    recons, m_n = F.mse_loss(r, x), 6 / 5000
    kl = torch.mean(-0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp(), dim=1), dim=0)
    got = loss_function(r, x, mu, logvar, "mean", kld_weight=m_n, parts=True)
    torch.testing.assert_close(got.loss, recons + m_n * kl)
    torch.testing.assert_close((got.reconstruction, got.kl), (recons, kl))
    beta = m_n * 3 * 8 * 8
    elbo = loss_function(r, x, mu, logvar, "batchmean", reconstruction="mse", kld_weight=beta)
    torch.testing.assert_close(elbo / (3 * 8 * 8), got.loss)


def test_what_a_mask_leaves_out_is_of_no_influence():
    (r, x, mu, logvar), _ = given("mse", (5, 7, 3), (5, 7, 2), torch.float32)
    mask = torch.rand(5, 7) < 0.5
    want = loss_function(r, x, mu, logvar, "masked", mask=mask)
    for tensor in (r, x, mu, logvar):
        tensor[~mask] = math.nan
    assert torch.equal(loss_function(r, x, mu, logvar, "masked", mask=mask), want)
    nothing = torch.zeros(5, 7, dtype=torch.bool)
    assert loss_function(r, x, mu, logvar, "masked", mask=nothing) == 0


def test_a_weight_may_be_learned():
    (r, x, mu, logvar), _ = given("mse", (5, 7), (5, 2), torch.float64)
    for convention in ("sum", "batchmean", "mean"):
        weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        found = loss_function(r, x, mu, logvar, convention, reconstruction="mse",
                              kld_weight=weight, parts=True)  # fmt: skip
        found.loss.backward()
        torch.testing.assert_close(weight.grad, found.kl)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"convention": "total"}, ValueError, "convention must be one of 'sum', .* got 'total'"),
        ({"reconstruction": "l2"}, ValueError, "reconstruction must be one of 'bce', .* got 'l2'"),
        ({"convention": "masked"}, ValueError, "takes a mask"),
        ({"convention": "masked", "mask": torch.ones(6, dtype=torch.bool)}, ValueError,
         r"mask must have x's leading dimensions, those of \[5, 7\], got \[6\]"),
        ({"x": torch.rand(5, 8)}, ValueError, "x must have recon_x's elements"),
        ({"x": torch.rand(7, 5)}, ValueError, "x must have recon_x's elements"),
        ({"recon_x": torch.full((5, 7), 1.5), "validate": True}, ValueError, "0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(settings, error, text):
    plain = {"recon_x": torch.rand(5, 7), "x": torch.rand(5, 7), "mu": torch.zeros(5, 2),
             "logvar": torch.zeros(5, 2)}  # fmt: skip
    with pytest.raises(error, match=text):
        loss_function(**{**plain, **settings})


def test_its_example_runs():
    assert doctest.testmod(functional).failed == 0


def test_it_compiles_in_one_graph():
    (r, x, mu, logvar), _ = given("bce", (6, 784), (6, 20), torch.float32)
    for convention in ("sum", "batchmean", "mean"):
        step = torch.compile(loss_function, fullgraph=True, backend="eager")
        torch.testing.assert_close(
            step(r, x, mu, logvar, convention), loss_function(r, x, mu, logvar, convention)
        )
