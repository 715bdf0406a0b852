"""channels_last in, channels_last out, with the same numbers as in rows."""

import random

import likelihood_cases
import pytest
import torch

import vaefast as vf

LAST, LAST_3D = torch.channels_last, torch.channels_last_3d


def formatted(tensor, kind):
    """A leaf, and a view or copy of it that lies as `kind` says."""
    if kind == "3d":
        return tensor.contiguous(memory_format=LAST_3D)
    if kind == "half of a head":
        # What a convolution gives for both parameters, split.
        both = torch.cat([tensor, tensor], 1).contiguous(memory_format=LAST)
        return both.chunk(2, 1)[1]
    return tensor.contiguous(memory_format=LAST)


def lies(tensor, kind):
    return tensor.is_contiguous(memory_format=LAST_3D if kind == "3d" else LAST)


KINDS = {"2d": (3, 4, 5, 6), "half of a head": (3, 4, 5, 6), "3d": (2, 3, 4, 5, 6)}


def graded(call, leaves):
    leaves = [t.detach().requires_grad_() for t in leaves]
    values = call(*leaves)
    generator = torch.Generator(leaves[0].device).manual_seed(5)
    upstream = [
        torch.randn(v.shape, generator=generator, device=v.device, dtype=v.dtype) for v in values
    ]
    return values, torch.autograd.grad(values, leaves, upstream)


POSTERIOR = {
    "rsample": lambda m, s: (vf.rsample(m, s, seed=3),),
    "sample_kl": lambda m, s: vf.sample_kl(m, s, seed=3),
    "offset": lambda m, s: vf.sample_kl(m, s, seed=3, offset=7),
    "a seed each": lambda m, s: vf.sample_kl(m, s, seed=list(range(len(m)))),
    "temperature, clamp": lambda m, s: vf.sample_kl(
        m, s, seed=3, temperature=0.7, clamp=(-0.5, 0.5)
    ),
    "given noise": lambda m, s: vf.sample_kl(m, s, noise=torch.ones_like(m.detach())),
    "per element": lambda m, s: vf.sample_kl(m, s, seed=3, reduction="none"),
    "per dimension": lambda m, s: vf.sample_kl(m, s, seed=3, reduction="dim"),
    "masked": lambda m, s: vf.sample_kl(m, s, seed=3, mask=m.detach()[:, :1] > 0),
    "masked by place": lambda m, s: vf.sample_kl(
        m, s, seed=3, mask=m.detach()[0, 0] > 0, reduction="mean"
    ),
    "a prior": lambda m, s: vf.sample_kl(
        m, s, seed=3, prior_mu=m.detach() + 1, prior_scale=m.detach()[0].contiguous()
    ),
}


@pytest.mark.each(3)
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("operator", list(POSTERIOR))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_samples(backend, operator, kind, dtype):
    call = POSTERIOR[operator]
    rows = [torch.randn(KINDS[kind], device=backend.device).to(dtype) for _ in range(2)]
    want, grads = graded(call, rows)
    got, ours = graded(call, [formatted(t, kind) for t in rows])
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(got, want, **tolerance)
    torch.testing.assert_close(ours, grads, **tolerance)
    assert lies(got[0], kind)
    # The sample is the same to the bit: its noise belongs to its place, not to memory's.
    if backend.name == "native":
        assert torch.equal(got[0], want[0])
    if operator == "per element":
        assert lies(got[1], kind)
    # Plain PyTorch's gradients lie as the upstream ones do.
    for grad in ours if backend.name != "reference" else ():
        assert lies(grad, kind)


@pytest.mark.each(3)
@pytest.mark.parametrize("kind", ["2d", "half of a head"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("case", likelihood_cases.ALL, ids=str)
def test_likelihoods(backend, case, reduction, kind):
    rng = random.Random(0)
    shape, device = KINDS[kind], backend.device
    model = case.build(None if case.scalar is None else case.scalar.float().to(device))
    params = [p.float().to(device) for p in case.params(shape, rng)]
    x = case.target(shape, rng).float().to(device)
    mask = torch.rand(shape[0], 1, *shape[2:], device=device) < 0.7
    for given in ({}, {"mask": mask, "weight": mask.float() + 0.5}):

        def loss(*p, x=x, given=given):
            return (vf.nll(p, x, model, reduction=reduction, **given),)

        want, grads = graded(loss, params)
        # A target in rows, as a loader gives it, or as the model's input lies.
        for target in (x, formatted(x, kind)):
            got, ours = graded(
                lambda *p, target=target, loss=loss: loss(*p, x=target),
                [formatted(p, kind) for p in params],
            )
            torch.testing.assert_close(got, want)
            torch.testing.assert_close(ours, grads)
            for grad in ours if backend.name != "reference" else ():
                assert lies(grad, kind)
            if reduction == "none":
                assert lies(got[0], kind)


def test_samples_of_one_target(kernels):
    """A decoder of K B samples in channels_last, viewed as [K, B, ...]."""
    flat = torch.randn(6, 4, 5, 6, device=kernels.device).contiguous(memory_format=LAST)
    x = torch.rand(3, 4, 5, 6, device=kernels.device)

    def loss(p, x=x):
        return (vf.nll(p.view(2, 3, 4, 5, 6), x, "bernoulli", reduction="sample"),)

    want, grads = graded(loss, [flat.contiguous()])
    for target in (x, x.contiguous(memory_format=LAST)):
        got, ours = graded(lambda p, target=target: loss(p, target), [flat])
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(ours, grads)
        assert lies(ours[0], "2d")


@pytest.mark.parametrize("reduction", ["none", "sample", "mean"])
@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
@pytest.mark.parametrize("name", ["categorical", "discretized_logistic_mixture"])
def test_class_dimensions(kernels, name, lead, reduction):
    classes = 100 if name == "discretized_logistic_mixture" else 7
    rows = torch.randn(*lead, 3, classes, 4, 5, device=kernels.device)
    model = vf.likelihoods.resolve(name)
    x = model.sample(rows if not lead else rows[0], seed=1)
    last = rows.movedim(-3, -1).contiguous().movedim(-1, -3)
    mask = torch.rand(3, 4, 5, device=kernels.device) < 0.7
    for given in ({}, {"mask": mask, "weight": mask.float() + 0.5}):

        def loss(p, x=x, given=given):
            return (vf.nll(p, x, model, reduction=reduction, **given),)

        want, grads = graded(loss, [rows])
        for target in (x, x.contiguous(memory_format=LAST) if x.dim() == 4 else x):
            got, ours = graded(lambda p, target=target, loss=loss: loss(p, x=target), [last])
            torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
            torch.testing.assert_close(ours, grads, rtol=2e-5, atol=2e-5)
            assert ours[0].movedim(-3, -1).is_contiguous()


def test_a_binary_target_is_drawn_by_its_place(kernels):
    rows = torch.randn(3, 4, 5, 6, device=kernels.device)
    x = torch.rand(3, 4, 5, 6, device=kernels.device)
    model = vf.Bernoulli(binarize=True)
    want = vf.nll(rows, x, model, seed=1)
    last = [t.contiguous(memory_format=LAST) for t in (rows, x)]
    torch.testing.assert_close(vf.nll(*last, model, seed=1), want)


def test_differentiated_again(kernels):
    rows = torch.randn(2, 3, 4, 5, dtype=torch.float64, device=kernels.device)
    x = torch.rand_like(rows)

    def twice(p):
        leaf = p.detach().requires_grad_()
        z, kl = vf.sample_kl(leaf, 0.5 * leaf, seed=3)
        loss = vf.nll(z, x, "bernoulli") + kl.sum()
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    torch.testing.assert_close(twice(rows.contiguous(memory_format=LAST)), twice(rows))


def test_a_retained_graph_and_a_compiler(kernels):
    rows = torch.randn(2, 3, 4, 5, device=kernels.device)
    last = rows.contiguous(memory_format=LAST).requires_grad_()

    def loss(p):
        z, kl = vf.sample_kl(p, 0.5 * p, seed=3)
        return vf.nll(z, p.detach().sigmoid(), "bernoulli") + kl.sum()

    value = loss(last)
    first = torch.autograd.grad(value, last, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(value, last)[0], first)
    for dynamic in (False, True):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        torch.testing.assert_close(torch.autograd.grad(compiled(last), last)[0], first)
