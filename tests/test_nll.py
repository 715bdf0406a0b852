"""nll of every likelihood in the registry: values, gradients, targets, sample dimension."""

import math
import random

import cases
import pytest
import reference64
import torch
import torch.nn.functional as F
from likelihood_cases import ALL, EVERY_FORM
from tolerances import assert_close64, assert_no_worse, assert_relative, gradient_arithmetic
from torch.autograd import gradcheck, gradgradcheck

import vaefast as vf

every = pytest.mark.parametrize("case", ALL, ids=str)


def test_every_form_has_a_case():
    assert {case.form for case in ALL} == set(EVERY_FORM)


class NllCase:
    """A random case of one likelihood."""

    def __init__(self, case, number):
        self.case, self.rng = case, random.Random(f"{case} {number}")
        rng = self.rng
        self.shape = rng.choice(cases.SHAPES)
        self.lead = rng.choice([1, 1, 2])
        self.full = self.shape if self.lead == 1 else (3, *self.shape)
        self.dtype = rng.choice(cases.DTYPES)
        values = [p.clone() for p in case.params(self.full, rng, 2.0)]
        if len(values) > 1 and rng.random() < 0.3:
            # As a dispersion per column has it.
            values[1] = case.params(cases.broadcasts(self.shape, rng), rng)[1].clone()
        self.params = [cases.operand(v, self.dtype, rng) for v in values]
        self.scalar = None
        if case.scalar is not None:
            value = case.scalar.double().reshape(rng.choice([(), (1,)]))
            dtype = cases.pick_dtype(self.dtype, rng)
            self.scalar = cases.Operand(value.to(dtype), "dense", rng.random() < 0.8)
        kind = rng.choice([d for d in case.build().target_dtypes if d.is_floating_point])
        self.kind = rng.choice([kind, *case.build().target_dtypes])
        target = case.target(self.shape, rng)
        if self.kind == torch.uint8:
            target = (cases.uniform(self.shape, rng) * 255).round()
        elif self.kind == torch.bool:
            target = cases.uniform(self.shape, rng) < 0.5
        self.target = cases.operand(target, self.kind, rng, grad=0.0)
        if self.kind == torch.bool and self.target.layout == "negated":
            self.target.layout = "dense"
        self.mask, self.weight = cases.mask_and_weight(self.shape, rng, self.dtype)
        self.reduction = rng.choice(cases.REDUCTIONS[:-1])

    @property
    def operands(self):
        return [*self.params, *([] if self.scalar is None else [self.scalar])]

    @property
    def compute(self):
        wide = any(o.values.dtype == torch.float64 for o in self.operands)
        return torch.float64 if wide else torch.float32

    def truth(self):
        wide = [o.wide() for o in self.operands]
        elements = self.case.truth(self.target.tensor("cpu"), wide).expand(self.full)
        elements = reference64.weighted(elements, self.mask, self.weight, self.lead)
        return wide, reference64.reduced(elements, self.reduction, self.mask, self.lead)

    def result(self, device):
        tensors = [o.tensor(device) for o in self.operands]
        scalar = tensors[-1] if self.scalar is not None else None
        params = tuple(tensors[: len(self.params)])
        loss = vf.nll(
            params if len(params) > 1 or self.rng.random() < 0.3 else params[0],
            self.target.tensor(device),
            self.case.build(scalar),
            mask=None if self.mask is None else self.mask.to(device),
            weight=None if self.weight is None else self.weight.to(device),
            reduction=self.reduction,
        )
        return tensors, loss

    def check(self, device):
        wide, want = self.truth()
        tensors, got = self.result(device)
        assert got.dtype == self.compute
        assert_close64(got, want, self.compute, slack=4)
        assert got.requires_grad == want.requires_grad
        if not got.requires_grad:
            return
        upstream = cases.normal(tuple(got.shape), self.rng)
        if self.rng.random() < 0.3:
            upstream = cases.normal((), self.rng).expand(got.shape)
        upstream = upstream.to(got.dtype)
        need = [i for i, o in enumerate(self.operands) if o.needs_grad]
        ours = torch.autograd.grad(got, [tensors[i] for i in need], upstream.to(device))
        truth = torch.autograd.grad(want, [wide[i] for i in need], upstream.double())
        for index, one, two in zip(need, ours, truth, strict=True):
            assert one.dtype == tensors[index].dtype
            # A learned scalar's gradient is a sum of terms of both signs.
            slack = 40 if index == len(self.params) else 4
            assert_close64(one, two, gradient_arithmetic(one), slack=slack)


@pytest.mark.each(3)
@every
@pytest.mark.parametrize("number", range(16))
def test_against_float64(backend, case, number):
    NllCase(case, number).check(backend.device)


@pytest.mark.each(7)
@every
def test_gradcheck(backend, case):
    rng = random.Random(0)
    leaves = [p.clone().to(backend.device).requires_grad_() for p in case.params((3, 4), rng)]
    if case.scalar is not None:
        leaves.append(case.scalar.double().to(backend.device).requires_grad_())
    x = case.target((3, 4), rng).to(backend.device)
    weight = torch.rand(3, device=backend.device)
    for reduction in ("none", "sample", "batchmean", "mean"):

        def loss(*tensors, reduction=reduction):
            likelihood = case.build(tensors[-1] if case.scalar is not None else None)
            params = tensors[: case.count]
            return vf.nll(params, x, likelihood, weight=weight, reduction=reduction)

        assert gradcheck(loss, leaves, check_forward_ad=reduction == "none")
        if reduction in ("none", "batchmean"):
            assert gradgradcheck(loss, leaves)


@pytest.mark.each(3)
@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["none", "sample", "batchmean"])
def test_backward_over_a_retained_graph_is_the_same_again(backend, case, dtype, reduction):
    rng = random.Random(1)
    leaves = [p.to(backend.device, dtype).requires_grad_() for p in case.params((5, 41), rng)]
    scalar = None
    if case.scalar is not None:
        scalar = case.scalar.to(backend.device, dtype, copy=True).requires_grad_()
        leaves.append(scalar)
    x = case.target((5, 41), rng).to(backend.device, dtype)
    loss = vf.nll(tuple(leaves[: case.count]), x, case.build(scalar), reduction=reduction)
    upstream = torch.randn_like(loss)

    def backward(retain):
        return torch.autograd.grad(loss, leaves, upstream.clone(), retain_graph=retain)

    first = backward(True)
    kept = [g.clone() for g in first]
    for g in first:
        # What came back is the caller's: editing it must not reach into the graph.
        g.fill_(float("nan"))
    for retain in (True, False):
        for one, two in zip(kept, backward(retain), strict=True):
            if dtype in (torch.float64, torch.float32):
                assert torch.equal(one, two)
            else:
                torch.testing.assert_close(one, two)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_error_is_at_most_eagers(backend, case, dtype):
    rng = random.Random(2)
    params = [p.to(dtype) for p in case.params((13, 41), rng)]
    if case.scalar is not None:
        params.append(case.scalar.to(dtype))
    x = case.target((13, 41), rng).to(dtype)
    wide = [p.double().requires_grad_() for p in params]
    want = case.truth(x.double(), wide).sum(1)
    plain = [p.to(backend.device, copy=True).requires_grad_() for p in params]
    eager = case.truth(x.to(backend.device), plain).sum(1)
    ours = [p.to(backend.device, copy=True).requires_grad_() for p in params]
    likelihood = case.build(ours[-1] if case.scalar is not None else None)
    got = vf.nll(tuple(ours[: case.count]), x.to(backend.device), likelihood, reduction="sample")
    assert_no_worse(got, eager, want, torch.float32)
    for one, two, three in zip(
        torch.autograd.grad(got.sum(), ours),
        torch.autograd.grad(eager.sum(), plain),
        torch.autograd.grad(want.sum(), wide),
        strict=True,
    ):
        assert_no_worse(one, two, three, torch.float32)


@every
def test_a_mask_hides_what_is_not_finite(backend, case):
    rng = random.Random(3)
    mask = torch.rand(6, 7) < 0.5
    x = case.target((6, 7), rng).float()
    values = [p.float() for p in case.params((6, 7), rng)]
    likelihood = case.build()

    def run(hole, reduction):
        leaves = [p.masked_fill(~mask, hole).to(backend.device).requires_grad_() for p in values]
        target = x.masked_fill(~mask, hole).to(backend.device)
        loss = vf.nll(
            tuple(leaves), target, likelihood, mask=mask.to(backend.device), reduction=reduction
        )
        return loss, torch.autograd.grad(loss.sum(), leaves)

    for reduction in ["none", "sample", "batchmean", "sum", "mean"]:
        (got, grads), (want, wanted) = run(float("nan"), reduction), run(0.5, reduction)
        assert torch.equal(got, want)
        for one, two in zip(grads, wanted, strict=True):
            assert torch.equal(one, two)
            assert not one[~mask.to(backend.device)].any()


@every
def test_a_bad_element_poisons_its_own_sample_alone(backend, case):
    rng = random.Random(4)
    x = case.target((4, 41), rng).float().to(backend.device)
    values = [p.float().to(backend.device) for p in case.params((4, 41), rng)]
    clean = vf.nll(tuple(values), x, case.build(), reduction="sample")
    for index in range(case.count):
        for bad in (float("nan"), float("inf")):
            leaves = [v.clone() for v in values]
            leaves[index][1, 5] = bad
            leaves = [v.requires_grad_() for v in leaves]
            got = vf.nll(tuple(leaves), x, case.build(), reduction="sample")
            others = torch.tensor([0, 2, 3], device=backend.device)
            assert torch.equal(got[others], clean[others])
            if math.isnan(bad):
                assert got[1].isnan()
            for grad in torch.autograd.grad(got.sum(), leaves):
                assert torch.isfinite(grad[others]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_float16_gradients_survive_the_mean_and_a_loss_scaler(backend, dtype):
    """1/N folded into a stored float16 gradient would lose a quarter of it."""
    logits = torch.randn(64, 1271, device=backend.device).to(dtype).requires_grad_()
    x = torch.rand(64, 1271, device=backend.device)
    loss = vf.nll(logits, x, "bernoulli", reduction="mean")
    (got,) = torch.autograd.grad(loss * 65536, logits)
    want = (torch.sigmoid(logits.detach().double()) - x) * (65536 / logits.numel())
    assert_close64(got, want.cpu(), torch.float32)


@pytest.mark.parametrize("extreme", [20.0, 80.0, 200.0, 1e4, 3e38])
def test_bernoulli_tails(backend, extreme):
    logits = torch.tensor([-extreme, extreme, -extreme, extreme], device=backend.device)
    logits = logits.reshape(4, 1).requires_grad_()
    x = torch.tensor([[0.0], [1.0], [1.0], [0.0]], device=backend.device)
    got = vf.nll(logits, x, "bernoulli", reduction="none")
    wide = logits.detach().double().cpu().requires_grad_()
    want = reference64.density("bernoulli", x.double().cpu(), [wide], None)
    assert_close64(got, want, torch.float32)
    # Also where it is small: a confident, right pixel.
    right = want[:2].detach()
    if extreme <= 80:
        assert_relative(got[:2].cpu(), right, 2e-6)
    truth = torch.autograd.grad(want.sum(), wide)[0]
    assert_close64(torch.autograd.grad(got.sum(), logits)[0], truth, torch.float32)


def test_bernoulli_is_torchs(backend):
    logits, x = torch.randn(5, 7, device=backend.device), torch.rand(5, 7, device=backend.device)
    want = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    torch.testing.assert_close(vf.nll(logits, x, "bernoulli", reduction="none"), want)
    probs = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.5]], device=backend.device, requires_grad=True)
    x = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.3]], device=backend.device)
    got = vf.nll(probs, x, vf.Bernoulli(logits=False), reduction="none")
    want = F.binary_cross_entropy(probs, x, reduction="none")
    torch.testing.assert_close(got, want)
    (grad,), (theirs,) = (torch.autograd.grad(v.sum(), probs) for v in (got, want))
    # Of -log(1 - p) at p = 0 the derivative is 1, where torch gives 0; likewise at p = 1.
    theirs[0, 0], theirs[0, 1] = 1.0, -1.0
    torch.testing.assert_close(grad, theirs)


@pytest.mark.parametrize("offset", [0, 4, 7])
@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
def test_binarize_draws_the_target(backend, offset, kind):
    shape = (13, 41)
    intensity = torch.rand(shape)
    target = (intensity * 255).to(torch.uint8) if kind == torch.uint8 else intensity
    level = target.float() / 255 if kind == torch.uint8 else intensity
    u = reference64.uniforms(9, offset, 13 * 41, purpose=1).reshape(shape)
    drawn = (torch.from_numpy(u) <= level.double()).float().to(backend.device)
    logits = torch.randn(shape, device=backend.device, requires_grad=True)
    got = vf.nll(
        logits, target.to(backend.device), vf.Bernoulli(binarize=True), seed=9, offset=offset
    )
    want = vf.nll(logits, drawn, "bernoulli")
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, logits), torch.autograd.grad(want, logits))


def test_binarize_is_drawn_anew_and_by_manual_seed(backend):
    logits = torch.randn(8, 41, device=backend.device)
    target = torch.full((8, 41), 0.5, device=backend.device)
    model = vf.Bernoulli(binarize=True)
    torch.manual_seed(1)
    first, second = (vf.nll(logits, target, model) for _ in range(2))
    assert first != second
    torch.manual_seed(1)
    assert vf.nll(logits, target, model) == first


@pytest.mark.parametrize("const", [True, False])
def test_constants(backend, const):
    x, mean = torch.randn(2, 5, 7, dtype=torch.float64, device=backend.device)
    spread = torch.tensor(0.7, dtype=torch.float64, device=backend.device)
    drop = 0.0 if const else 35 / 5
    half_log_2pi = 0.5 * math.log(2 * math.pi)

    def loss(params, likelihood):
        return vf.nll(params, x, likelihood).item()

    normal = -torch.distributions.Normal(mean, spread).log_prob(x).sum().item() / 5
    laplace = -torch.distributions.Laplace(mean, spread).log_prob(x).sum().item() / 5
    log_scale = spread.log().expand(5, 7)
    fixed = spread.log().item()
    assert loss(mean, vf.Gaussian(std=0.7, const=const)) == pytest.approx(
        normal - drop * (half_log_2pi + fixed)
    )
    assert loss(mean, vf.Gaussian(std=spread, const=const)) == pytest.approx(
        normal - drop * half_log_2pi
    )
    assert loss((mean, 2 * log_scale), vf.Gaussian(const=const)) == pytest.approx(
        normal - drop * half_log_2pi
    )
    assert loss(mean, vf.Laplace(scale=0.7, const=const)) == pytest.approx(
        laplace - drop * (math.log(2) + fixed)
    )
    assert loss(mean, vf.Laplace(scale=spread, const=const)) == pytest.approx(
        laplace - drop * math.log(2)
    )
    assert loss((mean, log_scale), vf.Laplace(const=const)) == pytest.approx(
        laplace - drop * math.log(2)
    )


@pytest.mark.parametrize("reduction", ["none", "sample", "batchmean", "sum", "mean"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lead", [1, 2])
def test_optimal_std(backend, reduction, masked, weighted, lead):
    """sigma-VAE: std^2 is the mean squared error over the whole unmasked batch."""
    shape = (6, 5, 3)
    full = shape if lead == 1 else (2, *shape)
    mean = torch.randn(full, dtype=torch.float64, device=backend.device, requires_grad=True)
    x = torch.randn(shape, dtype=torch.float64, device=backend.device)
    mask = torch.rand(shape, device=backend.device) < 0.7 if masked else None
    weight = torch.rand(6, dtype=torch.float64, device=backend.device) if weighted else None
    ones = reference64.weighted(torch.ones_like(mean), mask, weight, lead)
    variance = (ones * (x - mean) ** 2).sum() / ones.sum()
    elements = -torch.distributions.Normal(mean, variance.sqrt()).log_prob(x)
    elements = reference64.weighted(elements, mask, weight, lead)
    want = reference64.reduced(elements, reduction, mask, lead)
    got = vf.nll(mean, x, vf.Gaussian(std="optimal"), mask=mask, weight=weight, reduction=reduction)
    torch.testing.assert_close(got, want)
    upstream = torch.randn_like(want)
    torch.testing.assert_close(
        torch.autograd.grad(got, mean, upstream), torch.autograd.grad(want, mean, upstream)
    )


def test_optimal_std_is_the_minimum(backend):
    mean, x = torch.randn(2, 8, 13, dtype=torch.float64, device=backend.device)
    best = vf.nll(mean, x, vf.Gaussian(std="optimal"))
    std = ((x - mean) ** 2).mean().sqrt().item()
    torch.testing.assert_close(best, vf.nll(mean, x, vf.Gaussian(std=std)))
    for factor in (0.9, 1.1):
        assert vf.nll(mean, x, vf.Gaussian(std=factor * std)) > best


def test_gradient_of_the_target_is_not_lost(backend):
    """The kernels take none to it: the reference must, and says nothing otherwise."""
    x = torch.randn(3, 5, device=backend.device, requires_grad=True)
    mean = torch.randn(3, 5, device=backend.device, requires_grad=True)
    vf.nll(mean, x, "gaussian", reduction="sum").backward()
    torch.testing.assert_close(x.grad, x.detach() - mean.detach())
    torch.testing.assert_close(mean.grad, -x.grad)
    weight = torch.ones(3, device=backend.device, requires_grad=True)
    loss = vf.nll(mean, x, "gaussian", weight=weight, reduction="sum")
    (got,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(got, vf.nll(mean, x, "gaussian", reduction="sample"))
