"""Operands in any layout: the first call, the second and the third, with fresh numbers each time,
are all the reference's; and a backward pass finds what it saved however a hook laid it out."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import vaefast as vf

pytestmark = pytest.mark.skipif(
    "native" not in vf.available_backends(), reason="the reference takes any layout"
)

# Each makes a leaf, and of it a view [6, D] (or more) as models have them.
LAYOUTS = {
    "dense": lambda d: (torch.randn(6, d), lambda t: t),
    "half of a head": lambda d: (torch.randn(6, 2 * d), lambda t: t.chunk(2, 1)[1]),
    "transposed": lambda d: (torch.randn(d, 6), lambda t: t.t()),
    "columns of a wide head": lambda d: (torch.randn(6, 3 * d + 1), lambda t: t[:, 1 : 1 + d]),
    "every third column": lambda d: (torch.randn(6, 3 * d), lambda t: t[:, ::3]),
    "expanded rows": lambda d: (torch.randn(1, d), lambda t: t.expand(6, d)),
    "expanded columns": lambda d: (torch.randn(6, 1), lambda t: t.expand(6, d)),
    "odd offset": lambda d: (torch.randn(6 * d + 3), lambda t: t[3:].view(6, d)),
    "every other row": lambda d: (torch.randn(12, d), lambda t: t[::2]),
    "flipped": lambda d: (torch.randn(6, d), lambda t: t.flip(0).flip(1)),
    "channels last": lambda d: (
        torch.randn(6, 3, 2, d).to(memory_format=torch.channels_last),
        lambda t: t,
    ),
    "a slice of an image": lambda d: (torch.randn(6, 4, 3, d + 2), lambda t: t[:, 1:3, :, 1:-1]),
}

OPERATORS = {
    "gaussian_kl": lambda a, b: (vf.gaussian_kl(a, b),),
    "rsample": lambda a, b: (vf.rsample(a, b, seed=3),),
    "sample_kl": lambda a, b: vf.sample_kl(a, b, seed=3),
    "several samples": lambda a, b: vf.sample_kl(a, b, seed=3, num_samples=2),
    "monte_carlo": lambda a, b: vf.sample_kl(a, b, seed=3, num_samples=2, estimator="monte_carlo"),
    "a learned prior": lambda a, b: (vf.gaussian_kl(a.detach(), b.detach(), a, b),),
    "nll": lambda a, b: (vf.nll((a, b), torch.ones_like(b.detach()), "gaussian"),),
    "bernoulli": lambda a, b: (vf.nll(a, b.detach().sigmoid(), "bernoulli"),),
    "per sample": lambda a, b: (vf.nll(a, b.detach().sigmoid(), "bernoulli", reduction="sample"),),
    "per element": lambda a, b: (vf.nll((a, b), b.detach().sin(), "laplace", reduction="none"),),
    "masked": lambda a, b: (
        vf.nll(a, b.detach().sigmoid(), "bernoulli", mask=b.detach() > 0, weight=b.detach().abs()),
    ),
    "elbo_loss": lambda a, b: (
        vf.elbo_loss(a, b.detach().sigmoid(), a, b, likelihood="bernoulli").loss,
    ),
    "monte_carlo_kl": lambda a, b: (vf.monte_carlo_kl(a.detach() + 1, a, b),),
}


def graded(call, made, expanded=False):
    """Values and gradients for leaves and their views."""
    leaves = [leaf.clone().requires_grad_() for leaf, _ in made]
    # A clone has its own strides: the view is what gives the layout.
    values = call(*(view(leaf) for leaf, (_, view) in zip(leaves, made, strict=True)))
    generator = torch.Generator().manual_seed(5)
    upstream = [
        torch.tensor(0.5, dtype=v.dtype).expand(v.shape)
        if expanded
        else torch.randn(v.shape, generator=generator).to(v.dtype)
        for v in values
    ]
    grads = torch.autograd.grad(values, leaves, upstream, allow_unused=True)
    return [*values, *(g for g in grads if g is not None)]


@pytest.mark.each(3)
@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("operator", list(OPERATORS))
def test_every_call_is_the_references(operator, layout, width):
    call = OPERATORS[operator]
    for expanded in (False, True):
        for _ in range(3):
            made = [LAYOUTS[layout](width) for _ in range(2)]
            with vf.backend("native"):
                got = graded(call, made, expanded)
            with vf.backend("reference"):
                want = graded(call, made, expanded)
            torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("layout", ["half of a head", "transposed", "every third column"])
@pytest.mark.parametrize("operator", list(OPERATORS))
def test_a_hook_may_bring_a_view_back_dense(operator, layout, width):
    call = OPERATORS[operator]
    made = [LAYOUTS[layout](width) for _ in range(2)]
    with vf.backend("native"):
        want = [graded(call, made) for _ in range(2)][1]
        with saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            hooked = graded(call, made)
    assert all(torch.equal(a, b) for a, b in zip(hooked, want, strict=True))


@pytest.mark.parametrize("operator", ["gaussian_kl", "rsample", "sample_kl", "nll", "elbo_loss"])
def test_a_hook_on_a_node_may_too(operator):
    """Set when the forward pass is over."""
    call = OPERATORS[operator]
    for _ in range(3):
        leaf = torch.randn(6, 10, requires_grad=True)
        with vf.backend("native"):
            found = []
            for hooked in (False, True):
                values = call(*leaf.chunk(2, 1))
                if hooked:
                    for saved in values[0].grad_fn._raw_saved_tensors:
                        saved.register_hooks(lambda t: t.clone(), lambda t: t)
                found.append(torch.autograd.grad(values, leaf, [v.detach() for v in values])[0])
        assert torch.equal(*found)


def test_what_a_hook_holds_is_not_written_over():
    """Neither what it is shown nor what it gives back."""
    for call in OPERATORS.values():
        mu, logvar = (torch.randn(6, 5, requires_grad=True) for _ in range(2))
        for _ in range(2):
            held = []
            with saved_tensors_hooks(lambda t, held=held: held.append(t) or t, lambda t: t):
                values = call(mu, logvar)
            copies = [t.clone() for t in held]
            torch.autograd.grad(values, (mu, logvar), values, allow_unused=True)
            assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))


def test_a_parameter_of_no_dimension_broadcasts():
    logvar, x = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    mean = torch.zeros((), requires_grad=True)
    for _ in range(3):
        found = []
        for backend in ("native", "reference"):
            with vf.backend(backend):
                loss = vf.nll((mean, logvar), x, "gaussian")
            found.append([loss, *torch.autograd.grad(loss, (mean, logvar))])
        torch.testing.assert_close(*found)
