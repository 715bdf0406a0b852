"""DReG's weights on z's gradient: of one loss, in its own backward passes, and nowhere else."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import vaefast as vf

K, B, D = 5, 4, 3


class Model:
    """A decoder over samples of an encoder; `sample` begins anew."""

    def __init__(self, dtype=torch.float64, leaf=False):
        generator = torch.Generator().manual_seed(0)
        self.decoder = torch.randn(D, 7, generator=generator, dtype=dtype).requires_grad_()
        self.encoder = torch.randn(7, D, generator=generator, dtype=dtype).requires_grad_()
        self.x = torch.rand(B, 7, generator=generator, dtype=dtype)
        self.leaf = leaf

    @property
    def parameters(self):
        return [self.decoder] if self.leaf else [self.encoder, self.decoder]

    def sample(self, decode=None):
        mu = self.x @ self.encoder
        logvar = torch.zeros_like(mu)
        z = vf.rsample(mu, logvar, num_samples=K, seed=1)
        if self.leaf:
            z = z.detach().requires_grad_()
            mu = mu.detach()
        params = (decode or self.decode)(z)
        log_w = vf.log_weights(
            params, self.x, z, mu, logvar, likelihood="bernoulli", stop_posterior=True
        )
        return z, log_w

    def decode(self, z):
        return z @ self.decoder

    def wanted(self):
        """The gradients of DReG in encoder and decoder, and of IWAE."""
        z, log_w = self.sample()
        weights = torch.softmax(log_w.detach(), 0)
        inputs = [z] if self.leaf else [self.encoder]
        squared = -(weights**2 * log_w).sum(0).mean()
        found = torch.autograd.grad(squared, inputs, retain_graph=True)
        plain = torch.autograd.grad(vf.importance_loss(log_w), [*inputs, self.decoder])
        return [*found, plain[1]], list(plain)


def dreg(log_w, z):
    return vf.importance_loss(log_w, bound="dreg", z=z)


def grads(loss, model, z, **settings):
    inputs = [z, model.decoder] if model.leaf else model.parameters
    return list(torch.autograd.grad(loss, inputs, **settings))


def unhooked(z):
    return not z._backward_hooks and not z.grad_fn.metadata if z.grad_fn else not z._backward_hooks


@pytest.fixture(params=[False, True], ids=["sample", "leaf"])
def model(request):
    return Model(leaf=request.param)


def test_a_loss_without_gradients_leaves_nothing(model):
    weighed, plain = model.wanted()
    z, log_w = model.sample()
    with torch.no_grad():
        dreg(log_w, z)
    assert unhooked(z)
    torch.testing.assert_close(grads(vf.importance_loss(log_w), model, z, retain_graph=True), plain)
    torch.testing.assert_close(grads(dreg(log_w, z), model, z), weighed)


def test_a_loss_that_is_never_backpropagated_leaves_nothing(model):
    weighed, plain = model.wanted()
    z, log_w = model.sample()
    losses = [dreg(log_w, z) for _ in range(3)]
    assert unhooked(z)
    torch.testing.assert_close(grads(vf.importance_loss(log_w), model, z, retain_graph=True), plain)
    # Nor does one that was.
    for loss in (losses[0], losses[0], losses[1]):
        torch.testing.assert_close(grads(loss, model, z, retain_graph=True), weighed)
        assert unhooked(z)
    torch.testing.assert_close(grads(vf.importance_loss(log_w), model, z), plain)


def test_two_losses_of_the_same_weights_in_one_pass(model):
    weighed, _ = model.wanted()
    z, log_w = model.sample()
    got = grads(dreg(log_w, z) + 2 * dreg(log_w, z), model, z)
    torch.testing.assert_close(got, [3 * g for g in weighed])


def test_two_losses_of_other_weights(model):
    z, log_w = model.sample()
    other = 0.5 * log_w
    one, two = dreg(log_w, z), dreg(other, z)
    want = [a + b for a, b in zip(
        grads(one, model, z, retain_graph=True), grads(two, model, z, retain_graph=True),
        strict=True)]  # fmt: skip
    with pytest.raises(RuntimeError, match="call backward for each"):
        grads(one + two, model, z, retain_graph=True)
    # The error left nothing that a later pass could see.
    leaves = [z, model.decoder] if model.leaf else model.parameters
    one.backward(retain_graph=True)
    two.backward()
    torch.testing.assert_close([t.grad for t in leaves], want)
    assert unhooked(z)


def test_a_pass_that_does_not_reach_z(model):
    weighed, plain = model.wanted()
    z, log_w = model.sample()
    (found,) = torch.autograd.grad(dreg(log_w, z), model.decoder, retain_graph=True)
    torch.testing.assert_close(found, weighed[1])
    assert unhooked(z)
    torch.testing.assert_close(grads(vf.importance_loss(log_w), model, z), plain)


def test_an_error_on_the_way(model):
    weighed, plain = model.wanted()
    z, log_w = model.sample()
    fails = [True]

    def hook(grad):
        if fails:
            raise ValueError("on the way")

    log_w.register_hook(hook)
    with pytest.raises(ValueError, match="on the way"):
        grads(dreg(log_w, z), model, z, retain_graph=True)
    fails.clear()
    torch.testing.assert_close(grads(vf.importance_loss(log_w), model, z, retain_graph=True), plain)
    torch.testing.assert_close(grads(dreg(log_w, z), model, z), weighed)
    assert unhooked(z)


def test_the_gradient_in_z_itself():
    model = Model()
    z, log_w = model.sample()
    weights = torch.softmax(log_w.detach(), 0)[..., None]
    (plain,) = torch.autograd.grad(vf.importance_loss(log_w), z, retain_graph=True)
    (got,) = torch.autograd.grad(dreg(log_w, z), z)
    torch.testing.assert_close(got, plain * weights)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_decoder(reentrant):
    model = Model()
    weighed, _ = model.wanted()
    z, log_w = model.sample(lambda z: checkpoint(model.decode, z, use_reentrant=reentrant))
    dreg(log_w, z).backward()
    torch.testing.assert_close([model.encoder.grad, model.decoder.grad], weighed)
    assert unhooked(z)


def test_saved_tensors_elsewhere():
    model = Model()
    weighed, _ = model.wanted()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        z, log_w = model.sample()
        loss = dreg(log_w, z)
    torch.testing.assert_close(grads(loss, model, z), weighed)
    assert unhooked(z)


def test_half_precision():
    model = Model(torch.bfloat16)
    z, log_w = model.sample()
    weights = torch.softmax(log_w.detach(), 0)[..., None]
    (plain,) = torch.autograd.grad(vf.importance_loss(log_w), z, retain_graph=True)
    (got,) = torch.autograd.grad(dreg(log_w, z), z)
    assert torch.equal(got, (plain * weights).bfloat16())


def test_second_derivatives():
    model = Model()
    z, log_w = model.sample()
    weights = torch.softmax(log_w.detach(), 0)[..., None]
    (plain,) = torch.autograd.grad(vf.importance_loss(log_w), z, create_graph=True)
    want = torch.autograd.grad((plain * weights).square().sum(), z, retain_graph=True)
    (got,) = torch.autograd.grad(dreg(log_w, z), z, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), z), want)


def test_the_module():
    model = Model()
    weighed, _ = model.wanted()
    mu = model.x @ model.encoder
    logvar = torch.zeros_like(mu)
    z = vf.rsample(mu, logvar, num_samples=K, seed=1)
    loss = vf.nn.ImportanceLoss("bernoulli", "dreg")
    with torch.no_grad():
        loss(z @ model.decoder, model.x, z, mu, logvar)
    for _ in range(2):
        got = grads(loss(z @ model.decoder, model.x, z, mu, logvar), model, z, retain_graph=True)
        torch.testing.assert_close(got, weighed)
    assert unhooked(z)


def test_under_a_compiler():
    model = Model()
    weighed, _ = model.wanted()

    def step():
        z, log_w = model.sample()
        return dreg(log_w, z)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        compiled()
    for _ in range(2):
        torch.testing.assert_close(grads(compiled(), model, None), weighed)


def test_torch_func():
    model = Model()
    weighed, _ = model.wanted()

    def loss(encoder, decoder):
        model.encoder, model.decoder = encoder, decoder
        z, log_w = model.sample()
        return dreg(log_w, z)

    inputs = (model.encoder.detach(), model.decoder.detach())
    got = torch.func.grad(loss, argnums=(0, 1))(*inputs)
    torch.testing.assert_close(list(got), weighed)
