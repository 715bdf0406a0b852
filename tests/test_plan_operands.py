"""Plans for operands of any dtype, layout and reduction: found or made, the same bits; and a
backward pass that finds its operands laid out in another way, whichever of them it is."""

import itertools

import pytest
import torch

import vaefast as vf
from vaefast.ops import _plans

pytestmark = pytest.mark.skipif(
    "native" not in vf.available_backends(), reason="the reference makes no plans"
)


@pytest.fixture(autouse=True)
def served(monkeypatch):
    monkeypatch.setattr(_plans, "kept", _plans.Kept())
    with vf.backend("native"):
        yield


def path(call):
    """The path of a call like one before."""
    return [part.path for part in vf.explain(call).calls]


def same(call, leaves, fast=True):
    """The first call and the second."""
    results = []
    for number in range(2):
        torch.manual_seed(3)
        outputs = call()
        assert len(_plans.kept) == (1 if fast else 0), number
        torch.manual_seed(4)
        upstream = [torch.randn_like(o) for o in outputs]
        results.append([*outputs, *torch.autograd.grad(outputs, leaves, upstream)])
    for made, found in zip(*results, strict=True):
        assert torch.equal(made, found)
    if fast:
        assert "fast" in path(call)


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = {
    "dense": lambda *shape: torch.randn(shape),
    "half": lambda *shape: torch.randn(*shape[:-1], 2 * shape[-1]).chunk(2, -1)[1],
    "third": lambda *shape: torch.randn(*shape[:-1], 3 * shape[-1])[..., ::3],
    "expanded": lambda *shape: torch.randn(1, *shape[1:]).expand(shape),
    "transposed": lambda *shape: torch.randn(shape[::-1]).permute(*reversed(range(len(shape)))),
}


def leaf(layout, dtype, *shape):
    return LAYOUTS[layout](*shape).to(dtype).requires_grad_()


@pytest.mark.parametrize(("one", "other"), list(itertools.product(DTYPES, DTYPES)))
def test_posteriors_of_any_two_dtypes(one, other):
    mu, logvar = leaf("dense", one, 5, 7), leaf("dense", other, 5, 7)
    for call in (
        lambda: vf.sample_kl(mu, logvar),
        lambda: (vf.rsample(mu, logvar),),
        lambda: (vf.gaussian_kl(mu, logvar),),
    ):
        _plans.kept.clear()
        same(call, (mu, logvar))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["none", "sample", "batchmean", "sum", "mean", "dim"])
def test_posteriors_of_any_layout_and_reduction(layout, reduction):
    mu, logvar = leaf(layout, torch.float32, 5, 7), leaf(layout, torch.float32, 5, 7)
    same(lambda: vf.sample_kl(mu, logvar, reduction=reduction), (mu, logvar))
    _plans.kept.clear()
    same(lambda: (vf.gaussian_kl(mu, logvar, reduction=reduction),), (mu, logvar))


@pytest.mark.parametrize("wanted", [0, 1])
def test_a_gradient_to_one_of_the_two(wanted):
    pair = [torch.randn(5, 7), torch.randn(5, 7)]
    pair[wanted].requires_grad_()
    for call in (vf.sample_kl, lambda *p, **k: (vf.rsample(*p, **k),)):
        _plans.kept.clear()
        same(lambda call=call: call(*pair, seed=1), pair[wanted : wanted + 1])
        _plans.kept.clear()
        same(lambda call=call: call(*pair, seed=[1, 2, 3, 4, 5]), pair[wanted : wanted + 1])


@pytest.mark.parametrize("one", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["none", "sample", "batchmean"])
def test_a_likelihood_of_any_operands(one, layout, reduction):
    mean, logvar = leaf(layout, one, 5, 7), leaf("dense", torch.float32, 5, 7)
    target = LAYOUTS[layout](5, 7)
    call = lambda: (vf.nll((mean, logvar), target, "gaussian", reduction=reduction),)  # noqa: E731
    same(call, (mean, logvar))
    pixels = torch.randint(0, 256, (5, 7), dtype=torch.uint8)
    _plans.kept.clear()
    same(lambda: (vf.nll(mean, pixels, "bernoulli", reduction=reduction),), (mean,))


def test_several_samples_of_one_target():
    logits, target = torch.randn(3, 5, 7).requires_grad_(), torch.rand(5, 7)
    same(lambda: (vf.nll(logits, target, "bernoulli", reduction="sample"),), (logits,))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_kl_of_another_dtype(kind):
    logits, target = torch.randn(5, 7).requires_grad_(), torch.rand(5, 7)
    kl = torch.rand(5, dtype=kind).requires_grad_()
    call = lambda: (vf.elbo_loss(logits, target, kl=kl, likelihood="bernoulli", beta=0.3).loss,)  # noqa: E731
    same(call, (logits, kl))


def strided(tensor):
    """The same numbers, no two of them neighbours."""
    wide = torch.stack([tensor, tensor], -1)
    return wide[..., 0]


OPERANDS = {
    "standard": {},
    "prior": {"prior_mu": torch.randn(7), "prior_scale": torch.randn(5, 7)},
    "mask and weight": {"mask": torch.rand(5, 7) < 0.5, "weight": torch.rand(7)},
    "noise": {"noise": torch.randn(5, 7)},
    "samples": {"num_samples": 3, "seed": 4},
    "streams": {"num_samples": 2, "seed": [1, 2, 3, 4, 5]},
}


@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_saved_operand_may_come_back_in_another_layout(name, dtype):
    """By a hook on a node, set when the forward pass is over: one operand at a time."""
    mu, logvar = leaf("dense", dtype, 5, 7), leaf("half", dtype, 5, 7)
    settings = {"seed": 1, **OPERANDS[name]}
    if "noise" in settings:
        del settings["seed"]
    prior = [settings[k] for k in settings if k.startswith("prior")]
    leaves = [mu, logvar, *(p.requires_grad_() for p in prior)]

    def gradients(which=None):
        z, kl = vf.sample_kl(mu, logvar, **settings)
        saved = kl.grad_fn._raw_saved_tensors
        seen = []
        if which is not None:
            saved[which].register_hooks(lambda t: t, lambda t: seen.append(0) or strided(t))
        upstream = [torch.linspace(-1, 1, o.numel()).view(o.shape).to(o.dtype) for o in (z, kl)]
        return torch.autograd.grad((z, kl), leaves, upstream), len(saved), seen

    want, count, _ = gradients()
    touched = 0
    for which in range(count):
        try:
            got, _, seen = gradients(which)
        except RuntimeError as error:
            # An absent operand.
            assert "value None" in str(error), error
            continue
        touched += len(seen)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)
    assert touched >= 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["none", "sample", "batchmean"])
def test_upstream_gradients_of_any_layout(layout, reduction):
    """The same bits as of the same numbers in a dense one."""
    mu, logvar = leaf("dense", torch.float32, 5, 7), leaf("dense", torch.float32, 5, 7)
    for samples in (None, 3):
        outputs = vf.sample_kl(mu, logvar, reduction=reduction, num_samples=samples, seed=1)
        ups = [LAYOUTS[layout](*o.shape) if o.dim() else torch.tensor(0.7) for o in outputs]
        dense = [up.contiguous() for up in ups]
        for which in ((0,), (1,), (0, 1)):
            pair = []
            for given in (ups, dense):
                chosen = [[values[i] for i in which] for values in (outputs, given)]
                pair.append(
                    torch.autograd.grad(chosen[0], (mu, logvar), chosen[1], retain_graph=True)
                )
            for got, want in zip(*pair, strict=True):
                assert torch.equal(got, want)


def test_a_second_backward_pass_is_the_first_again():
    """What the forward pass keeps for the backward one is not written over."""
    mu, logvar = leaf("dense", torch.float32, 5, 7), leaf("dense", torch.float32, 5, 7)
    calls = (
        lambda: vf.sample_kl(mu, logvar, seed=1),
        lambda: (vf.rsample(mu, logvar, seed=1),),
        lambda: vf.sample_kl(mu, logvar, seed=1, num_samples=3),
    )
    for call in calls:
        outputs = call()
        upstream = [torch.randn_like(o) for o in outputs]
        first, second = (
            # Copies: the second pass may write where the first one's gradients are.
            [g.clone() for g in torch.autograd.grad(outputs, (mu, logvar), upstream, True)]
            for _ in range(2)
        )
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("which", ["params", "target", "mask", "weight"])
def test_operands_that_no_kernel_walks_are_those_of_their_copies(which):
    """Three strides, none of which is a multiple of the next."""
    shape = (5, 4, 6)

    def make(name):
        values = torch.rand(shape)
        # [5, 4, 6] whose strides are 1, 30 and 5.
        return values if name != which else torch.rand(4, 6, 5).permute(2, 0, 1)

    params, target, weight = make("params").requires_grad_(), make("target"), make("weight")
    mask = make("mask") < 0.5
    results = []
    for copied in (False, True):
        p, t, m, w = (v.contiguous() if copied else v for v in (params, target, mask, weight))
        loss = vf.nll(p, t, "bernoulli", reduction="sample", mask=m, weight=w)
        results.append([loss, *torch.autograd.grad(loss.sum(), params)])
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


def test_a_plan_holds_next_to_no_memory():
    """No operand, and nothing that grows with one."""
    mu, logvar = torch.zeros(4096, 64, requires_grad=True), torch.zeros(4096, 64)
    vf.sample_kl(mu, logvar, reduction="none")
    vf.rsample(mu, logvar)
    vf.gaussian_kl(mu, logvar, reduction="sample")
    vf.nll(mu, torch.zeros(4096, 64), "bernoulli", reduction="sample")
    assert len(_plans.kept) == 4
    for plan in _plans.kept.values():
        held = [getattr(plan, slot) for slot in plan.__slots__]
        tensors = [t for t in held if isinstance(t, torch.Tensor)]
        assert sum(t.nbytes for t in tensors) <= 1 << 13
