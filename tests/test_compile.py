"""torch.compile in one graph, opcheck, checkpointing, torch.func, forward mode, autocast."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import vaefast as vf
from vaefast.backends._options import NllOptions


@pytest.fixture(autouse=True)
def _fresh_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def leaves(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def step(mu, logvar, x, weight, prior, seed=None, likelihood="bernoulli", **settings):
    z, kl = vf.sample_kl(mu, logvar, seed=seed, prior_mu=prior, clamp=(-5.0, 5.0))
    params = z @ weight
    return vf.elbo_loss(params, x, kl=kl, likelihood=likelihood, **settings)


def check_step(compiled, **settings):
    tensors = leaves((6, 4), (6, 4), (4, 9), (4,))
    x = torch.rand(6, 9)

    def run(function):
        mu, logvar, weight, prior = tensors
        torch.manual_seed(5)
        out = function(mu, logvar, x, weight, prior, **settings)
        return out, torch.autograd.grad(out.loss.sum(), tensors)

    (want, wanted), (got, grads) = run(step), run(compiled)
    torch.testing.assert_close(tuple(got), tuple(want))
    torch.testing.assert_close(grads, wanted)
    # Again, so that a stored graph is run too.
    torch.testing.assert_close(run(compiled), run(step))


SETTINGS = {
    "plain": {"seed": 3},
    "drawn": {},
    "per sample": {"beta": 0.5, "capacity": 1.0, "reduction": "sample"},
    "gaussian": {"likelihood": vf.Gaussian(std=0.5), "reduction": "mean"},
    "optimal": {"likelihood": vf.Gaussian(std="optimal")},
    "laplace": {"likelihood": vf.Laplace(scale=0.5), "reduction": "sum"},
    "binarize": {"likelihood": vf.Bernoulli(binarize=True)},
}


@pytest.mark.each(3)
@pytest.mark.parametrize("name", list(SETTINGS))
def test_one_graph_gives_what_eager_gives(name):
    check_step(torch.compile(step, fullgraph=True, backend="aot_eager"), **SETTINGS[name])


@pytest.mark.slow
def test_inductor():
    check_step(torch.compile(step, fullgraph=True))


def test_dynamic_shapes():
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (3, 6, 7):
        mu, logvar, weight = leaves((batch, 4), (batch, 4), (4, 9))
        x = torch.rand(batch, 9)
        got = compiled(mu, logvar, x, weight, None, seed=1).loss
        want = step(mu, logvar, x, weight, None, seed=1).loss
        torch.testing.assert_close(got, want)


@pytest.mark.each(3)
@pytest.mark.parametrize("reduction", ["none", "sample", "batchmean", "sum", "mean", "dim"])
def test_kl_and_nll_compile_for_every_reduction(reduction):
    mu, logvar, mean, spread = leaves((6, 4), (6, 4), (6, 9), (6, 9))
    x, mask = torch.randn(6, 9), torch.rand(6, 9) < 0.5

    def losses(mu, logvar, mean, spread):
        kl = vf.gaussian_kl(mu, logvar, reduction=reduction, param="softplus", min_std=0.1)
        how = "none" if reduction == "dim" else reduction
        return kl, vf.nll((mean, spread), x, "gaussian", mask=mask, reduction=how)

    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    tensors = (mu, logvar, mean, spread)
    got, want = compiled(*tensors), losses(*tensors)
    torch.testing.assert_close(got, want)
    upstream = [torch.randn_like(w) for w in want]
    torch.testing.assert_close(
        torch.autograd.grad(got, tensors, upstream), torch.autograd.grad(want, tensors, upstream)
    )


@pytest.mark.parametrize("num_samples", [None, 3])
def test_compiled_noise_is_eagers(num_samples):
    mu, logvar = leaves((6, 5), (6, 5))
    compiled = torch.compile(vf.rsample, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.manual_seed(9)
        want = vf.rsample(mu, logvar, num_samples=num_samples)
        torch.manual_seed(9)
        assert torch.equal(compiled(mu, logvar, num_samples=num_samples), want)
    assert not torch.equal(compiled(mu, logvar), compiled(mu, logvar))


def test_compiled_checkpoint_recomputes_the_same_noise():
    mu, logvar = leaves((6, 5), (6, 5), dtype=torch.float64)

    def body(mu, logvar):
        return torch.sin(vf.rsample(mu, logvar)) * mu

    def checkpointed(mu, logvar):
        return checkpoint(body, mu, logvar, use_reentrant=False).sum()

    compiled = torch.compile(checkpointed, fullgraph=True, backend="aot_eager")
    results = []
    for function in (lambda *a: body(*a).sum(), checkpointed, compiled):
        torch.manual_seed(2)
        results.append(torch.autograd.grad(function(mu, logvar), (mu, logvar)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(backend, reentrant):
    mu, logvar, weight = leaves((6, 5), (6, 5), (5, 9))
    x = torch.rand(6, 9)

    def body(mu, logvar):
        z, kl = vf.sample_kl(mu, logvar)
        return vf.elbo_loss(z @ weight, x, kl=kl, likelihood=vf.Bernoulli(binarize=True)).loss

    def run(function):
        torch.manual_seed(2)
        loss = function(mu, logvar)
        for t in (mu, logvar, weight):
            t.grad = None
        loss.backward()
        return loss.detach(), mu.grad, logvar.grad, weight.grad

    if backend.device != "cpu":
        pytest.skip("one device is enough")
    got = run(lambda *a: checkpoint(body, *a, use_reentrant=reentrant))
    torch.testing.assert_close(got, run(body))


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor",
            "test_aot_dispatch_dynamic")  # fmt: skip


@pytest.mark.each(7)
@pytest.mark.parametrize("num_samples", [-1, 0, 2])
@pytest.mark.parametrize("reduce", ["", "elem", "sample", "dim", "sum"])
def test_opcheck_sample_kl(backend, num_samples, reduce):
    if num_samples < 0 and not reduce:
        return
    shape = (3, 5)
    mu, logvar = torch.randn(2, *shape, device=backend.device)
    prior = torch.randn(5, device=backend.device)
    state = torch.tensor([3, 0], device=backend.device)
    tensors = (mu, logvar, prior, None, None, torch.rand_like(mu), state, None)
    settings = ("logvar", 0.0, [-3.0, 3.0], num_samples, 1.0, 0, reduce, 0.5)
    floats = torch.tensor([0.0, -3.0, 3.0, 1.0, 0.5], dtype=torch.float64)
    if backend.name == "reference":
        pytest.skip("the reference is not called through the operator")
    opcheck(
        torch.ops.vaefast.sample_kl.default,
        (*tensors, *settings, floats, backend.name),
        test_utils=OPCHECKS,
    )
    z_shape = (2, *shape) if num_samples > 0 else shape
    kl_shape = {"elem": shape, "sample": (3,), "dim": (5,)}.get(reduce, ())
    grads = (
        torch.randn(z_shape, device=backend.device) if num_samples >= 0 else None,
        torch.randn(kl_shape, device=backend.device) if reduce else None,
    )
    need = [True, True, bool(reduce), False]
    opcheck(
        torch.ops.vaefast.sample_kl_backward.default,
        (*grads, *tensors, *settings, need, None, backend.name),
        test_utils=OPCHECKS,
    )


@pytest.mark.each(3)
@pytest.mark.parametrize("reduce", ["elem", "sample", "sum"])
@pytest.mark.parametrize("form", ["bernoulli", "gaussian", "laplace_scalar"])
@pytest.mark.parametrize("lead", [1, 2])
def test_opcheck_nll(kernels, reduce, form, lead):
    full = (3, 5) if lead == 1 else (2, 3, 5)
    second = {"bernoulli": [], "gaussian": [full], "laplace_scalar": [()]}[form]
    params = [torch.rand(s, device=kernels.device).add(0.1) for s in (full, *second)]
    numbers = () if form == "bernoulli" else (0.5,)
    scalar = 1 if form == "laplace_scalar" else -1
    options = NllOptions(form, numbers, scalar, lead, 255.0, 0, reduce, 0.5, 1.0)
    target = torch.rand(3, 5, device=kernels.device)
    need = [reduce != "elem"] * len(params)
    opcheck(
        torch.ops.vaefast.nll.default,
        (params, target, None, None, None, [], *options[:1], list(numbers), *options[2:], need,
         None, kernels.name),
        test_utils=OPCHECKS,
    )  # fmt: skip


def test_opcheck_draw_noise_and_scale(kernels):
    state = torch.tensor([3, 0], device=kernels.device)
    like = torch.zeros(3, device=kernels.device)
    opcheck(torch.ops.vaefast.draw.default, (like,), test_utils=("test_schema", "test_faketensor"))
    for kind in ("normal", "uniform"):
        arguments = (state, [3, 5], torch.float32, kind, 0, 2, kernels.name)
        opcheck(torch.ops.vaefast.noise.default, arguments, test_utils=OPCHECKS)
    grad, upstream = (
        torch.randn(3, 5, device=kernels.device),
        torch.ones(3, 1, device=kernels.device),
    )
    arguments = (grad, upstream, kernels.name)
    opcheck(torch.ops.vaefast.scale_.default, arguments, test_utils=OPCHECKS)


def objective(mu, logvar):
    z, kl = vf.sample_kl(mu, logvar, seed=3)
    return vf.nll(z, torch.full_like(z, 0.3), "gaussian", reduction="sum") + kl.sum()


def test_func_transforms(backend):
    """Under torch.func the reference serves, whatever was asked for."""
    mu, logvar = torch.randn(2, 3, 4, dtype=torch.float64, device=backend.device)
    leaves = [t.clone().requires_grad_() for t in (mu, logvar)]
    want = torch.autograd.grad(objective(*leaves), leaves)
    got = torch.func.grad(objective, argnums=(0, 1))(mu, logvar)
    torch.testing.assert_close(got, want)

    tangents = torch.randn_like(mu), torch.randn_like(mu)
    _, pushed = torch.func.jvp(objective, (mu, logvar), tangents)
    torch.testing.assert_close(
        pushed, sum((w * t).sum() for w, t in zip(want, tangents, strict=True))
    )

    hessian = torch.func.hessian(objective)(mu, logvar)
    eye = torch.eye(12, dtype=torch.float64, device=backend.device)
    torch.testing.assert_close(hessian.reshape(12, 12), 2 * eye)


def test_vmap(backend):
    mu, logvar, x = torch.randn(3, 5, 4, 7, dtype=torch.float64, device=backend.device)

    def each(mu, logvar, x):
        z, kl = vf.sample_kl(mu, logvar, seed=3)
        return z, kl, vf.nll(z, x, "laplace", reduction="sample")

    got = torch.vmap(each)(mu, logvar, x)
    want = [torch.stack(parts) for parts in zip(*map(each, mu, logvar, x), strict=True)]
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two)
    jacobian = torch.func.jacrev(lambda m: vf.gaussian_kl(m, logvar[0], reduction="sample"))(mu[0])
    torch.testing.assert_close(jacobian.sum(1), mu[0])


def test_forward_mode(backend):
    mu, logvar = torch.randn(2, 3, 4, dtype=torch.float64, device=backend.device)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(mu, torch.ones_like(mu))
        kl = vf.gaussian_kl(dual, logvar, reduction="sample")
        tangent = torch.autograd.forward_ad.unpack_dual(kl).tangent
    torch.testing.assert_close(tangent, mu.sum(1))


def test_autocast(backend):
    """bfloat16 logits beside a float32 target and float32 sums."""
    linear = torch.nn.Linear(7, 41).to(backend.device)
    h, x = torch.randn(5, 7, device=backend.device), torch.rand(5, 41, device=backend.device)
    mu, logvar = leaves((5, 7), (5, 7))
    mu, logvar = mu.to(backend.device), logvar.to(backend.device)
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        logits = linear(h)
        assert logits.dtype == torch.bfloat16
        got = vf.elbo_loss(logits, x, mu, logvar, likelihood="bernoulli")
        z, kl = vf.sample_kl(mu, logvar, seed=1)
    assert got.loss.dtype == torch.float32
    assert z.dtype == torch.float32
    want = vf.elbo_loss(logits.float(), x, mu, logvar, likelihood="bernoulli")
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(kl.mean(), want.kl)
    (grad,) = torch.autograd.grad(got.loss, linear.weight, retain_graph=True)
    (wanted,) = torch.autograd.grad(want.loss, linear.weight)
    torch.testing.assert_close(grad, wanted, rtol=2e-2, atol=1e-3)


def test_subclasses_and_parameters(backend):
    mu = torch.nn.Parameter(torch.randn(3, 4, device=backend.device))
    logvar = torch.nn.Buffer(torch.zeros(3, 4, device=backend.device))
    vf.gaussian_kl(mu, logvar).backward()
    torch.testing.assert_close(mu.grad, mu.detach() / 3)


def test_zero_tensors_are_read_as_zeros(backend):
    """An upstream gradient that is known to be zero has no memory at all."""
    mu, logvar = (torch.randn(3, 4, device=backend.device, requires_grad=True) for _ in range(2))
    z, kl = vf.sample_kl(mu, logvar, seed=1)
    nll = vf.nll(mu, torch.zeros_like(mu), "gaussian", reduction="sample")
    for out in (z, kl, nll):
        nothing = torch._efficientzerotensor(out.shape, dtype=out.dtype, device=out.device)
        grads = torch.autograd.grad(out, mu, nothing, retain_graph=True)
        assert not grads[0].any()


def test_an_annealed_beta_is_not_compiled_anew():
    logits, mu, logvar = (torch.randn(8, 5).requires_grad_() for _ in range(3))
    target = torch.rand(8, 5)

    def step(beta):
        return vf.elbo_loss(logits, target, mu, logvar, likelihood="bernoulli", beta=beta).loss

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for beta in (0.1, 0.2, 0.35, 0.5, 0.75):
        torch.testing.assert_close(compiled(beta), step(beta))
    # The first as a constant, the others as an operand.
    assert counter.frame_count == 2
