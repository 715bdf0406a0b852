"""Each row of the design's table of bad input: what raises and names what, what stays right."""

import math

import pytest
import torch

import vaefast as vf

Z = torch.zeros


def posterior(**arguments):
    return lambda: vf.sample_kl(Z(8, 20), Z(8, 20), **arguments)


def elbo(**arguments):
    given = {"mu": Z(2, 3), "scale": Z(2, 3), "likelihood": "bernoulli", **arguments}
    return lambda: vf.elbo_loss(Z(2, 4), Z(2, 4), **given)


def nll(params=None, target=None, likelihood="bernoulli", **arguments):
    params = Z(2, 4) if params is None else params
    target = Z(2, 4) if target is None else target
    return lambda: vf.nll(params, target, likelihood, **arguments)


WRONG = {
    # Shapes that do not fit together.
    "mu and scale": (lambda: vf.rsample(Z(8, 20), Z(8, 21)), ValueError,
        r"mu and scale must have the same shape, got \[8, 20\] and \[8, 21\]"),
    "scalar mu": (lambda: vf.gaussian_kl(Z(()), Z(())), ValueError, "batch dimension"),
    "prior": (posterior(prior_mu=Z(21)), ValueError, r"prior_mu must broadcast to \[8, 20\].*21"),
    "larger prior": (posterior(prior_scale=Z(3, 8, 20)), ValueError, "prior_scale must broadcast"),
    "mask shape": (posterior(mask=Z(7, 20).bool()), ValueError, r"mask must broadcast.*\[7, 20\]"),
    "weight shape": (nll(weight=Z(3)), ValueError, r"weight must broadcast to \[2, 4\], got \[3\]"),
    "noise shape": (posterior(noise=Z(8, 21)), ValueError, r"noise must have z's shape, \[8, 20\]"),
    "noise of K": (posterior(noise=Z(8, 20), num_samples=2), ValueError, r"\[2, 8, 20\]"),
    "target": (nll(target=Z(2, 5)), ValueError, r"params \[2, 4\] and target \[2, 5\]"),
    "target batch": (nll(params=Z(3, 2, 2, 4)), ValueError, "leading sample dimension"),
    "two params": (nll(params=(Z(2, 4), Z(2, 3)), likelihood="gaussian"), ValueError,
        r"params must have one shape or broadcast, got \[2, 4\] and \[2, 3\]"),
    "too many params": (nll(params=(Z(2, 4),) * 2), ValueError, "likelihood bernoulli takes 1"),
    "kl shape": (elbo(mu=None, scale=None, kl=Z(3)), ValueError, "kl must be one value per"),
    "seeds": (posterior(seed=[1, 2]), ValueError, "one int per sample, 8"),
    "state": (posterior(seed=Z(3, 2).long()), ValueError, r"shape \[2\] or \[8, 2\]"),
    "generators": (posterior(generator=[torch.Generator()]), ValueError, "per sample, 8, got 1"),
    "beta": (elbo(beta=Z(3)), ValueError, "beta"),
    # Dtypes and types.
    "integer mu": (lambda: vf.rsample(Z(2, 3).long(), Z(2, 3)), TypeError,
        "mu must be float64, float32, bfloat16 or float16, got torch.int64"),
    "complex scale": (lambda: vf.gaussian_kl(Z(2, 3), Z(2, 3, dtype=torch.complex64)), TypeError,
        "scale must be float64.*got torch.complex64"),
    "list mu": (lambda: vf.rsample([0.0], Z(1)), TypeError, "mu must be a Tensor, got list"),
    "integer prior": (posterior(prior_mu=Z(20).int()), TypeError, "prior_mu must be float64"),
    "float mask": (posterior(mask=Z(8, 20)), TypeError, "mask must be a bool Tensor"),
    "integer weight": (nll(weight=Z(2).long()), TypeError, "weight must be float64"),
    "integer noise": (posterior(noise=Z(8, 20).long()), TypeError, "noise must be float64"),
    "integer params": (nll(params=Z(2, 4).long()), TypeError, "params must be float64"),
    "integer target": (nll(target=Z(2, 4).long()), TypeError, "target of likelihood 'bernoulli'"),
    "list target": (nll(target=[0.0]), TypeError, "target must be a Tensor, got list"),
    "seed": (posterior(seed=1.5), TypeError, "seed must be an int"),
    "bool seed": (posterior(seed=True), TypeError, "seed must be an int"),
    "generator": (posterior(generator=3), TypeError, "generator must be a torch.Generator"),
    "likelihood type": (nll(likelihood=3), TypeError, "likelihood must be a Likelihood or one of"),
    "std": (lambda: vf.Gaussian(std="best"), TypeError, "std must be a number"),
    # What does not exist.
    "likelihood": (nll(likelihood="bernouli"), ValueError,
        r"likelihood must be one of 'bernoulli', .*got 'bernouli'"),
    "reduction": (posterior(reduction="median"), ValueError,
        "reduction must be one of 'none', 'sample', 'batchmean', 'sum', 'mean', 'dim'"),
    "nll reduction": (nll(reduction="dim"), ValueError, "reduction must be one of"),
    "elbo reduction": (elbo(reduction="none"), ValueError, "reduction must be one of 'batchmean'"),
    "param": (posterior(param="precision"), ValueError, "param must be one of 'logvar'"),
    "free_bits_per": (lambda: vf.gaussian_kl(Z(2), Z(2), free_bits_per="batch"), ValueError,
        "free_bits_per must be one of 'dim', 'sample', 'total'"),
    # Values.
    "clamp": (posterior(clamp=(1, 0)), ValueError, r"clamp must be .*got \(1, 0\)"),
    "clamp word": (posterior(clamp="hard"), ValueError, "clamp must be"),
    "soft clamp": (posterior(clamp=("soft", 0, math.inf)), ValueError, "clamp must be"),
    "num_samples": (posterior(num_samples=0), ValueError, "num_samples must be .*, got 0"),
    "negative std": (lambda: vf.Gaussian(std=-1.0), ValueError, "std must be positive"),
    "scale of zero": (lambda: vf.Laplace(scale=0.0), ValueError, "scale must be positive"),
    "std shape": (lambda: vf.Gaussian(std=Z(2)), ValueError, r"std as a Tensor must be a scalar"),
    "free_bits": (lambda: vf.gaussian_kl(Z(2), Z(2), free_bits=-1), ValueError, "free_bits must"),
    # Settings that exclude each other.
    "seed and generator": (posterior(seed=1, generator=torch.Generator()), ValueError, "exclude"),
    "noise and seed": (posterior(noise=Z(8, 20), seed=1), ValueError, "noise excludes seed"),
    "kl and mu": (elbo(kl=Z(2)), ValueError, "mu and scale, or kl, not both"),
    "no kl": (elbo(mu=None, scale=None), ValueError, "both are missing"),
    "mu alone": (elbo(scale=None), ValueError, "missing"),
    "free bits per sample": (
        lambda: vf.gaussian_kl(Z(2), Z(2), free_bits=1.0, reduction="sample"),
        ValueError, "takes no reduction='sample'"),
    "free bits in total": (
        lambda: vf.gaussian_kl(Z(2), Z(2), free_bits=1.0, free_bits_per="total", reduction="dim"),
        ValueError, "takes no reduction='dim'"),
    "free bits of a kl": (elbo(mu=None, scale=None, kl=Z(2), free_bits=1.0), ValueError,
        "free_bits per dimension needs mu and scale"),
    "free bits apart": (elbo(free_bits=1.0, reduction="sample"), ValueError, "free_bits_per='dim'"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRONG))
def test_what_does_not_fit_is_named(backend, name):
    call, error, text = WRONG[name]
    with pytest.raises(error, match=text):
        call()


def test_devices_are_named(backend):
    mu = Z(2, 3)
    elsewhere = Z(2, 3, device="meta")
    for call in [
        lambda: vf.rsample(mu, elsewhere),
        lambda: vf.gaussian_kl(mu, mu, prior_mu=elsewhere),
        lambda: vf.gaussian_kl(mu, mu, weight=elsewhere),
        lambda: vf.rsample(mu, mu, noise=elsewhere),
        lambda: vf.nll(mu, elsewhere, "bernoulli"),
        lambda: vf.nll((mu, elsewhere), mu, "gaussian"),
    ]:
        with pytest.raises(ValueError, match=r"device.*cpu.*meta|device.*meta.*cpu"):
            call()


@pytest.mark.parametrize(
    ("target", "likelihood", "example"),
    [
        (torch.tensor([[0.0, 255.0]]), "bernoulli", "255"),
        (torch.tensor([[-0.1, 0.5]]), "bernoulli", "-0.1"),
        (torch.tensor([[math.nan, 0.5]]), "bernoulli", "nan"),
        (torch.tensor([[math.inf, 0.5]]), "gaussian", "inf"),
    ],
)
def test_a_target_outside_the_support(backend, target, likelihood, example):
    params = torch.zeros(1, 2, device=backend.device)
    target = target.to(backend.device)
    with pytest.raises(ValueError, match=rf"outside the support.*1 of 2.*{example}"):
        vf.nll(params, target, likelihood, validate=True)
    # Unasked, it is computed as the formula says.
    vf.nll(params, target, likelihood)


def test_pixels_as_bytes_need_no_scaling(backend):
    image = torch.tensor([[0, 51, 255]], dtype=torch.uint8, device=backend.device)
    logits = torch.randn(1, 3, device=backend.device)
    want = vf.nll(logits, image / 255, "bernoulli")
    torch.testing.assert_close(vf.nll(logits, image, "bernoulli", validate=True), want)


def test_empty_batches_and_zero_widths(backend):
    for shape in [(0, 4), (4, 0), (0,), (2, 0, 3), (0, 0)]:
        mu = torch.zeros(shape, device=backend.device, requires_grad=True)
        z, kl = vf.sample_kl(mu, mu)
        assert z.shape == shape
        assert torch.equal(kl, torch.zeros(shape[:1], device=backend.device))
        (z.sum() + kl.sum() + vf.nll(mu, mu.detach(), "gaussian", reduction="sum")).backward()
        assert mu.grad.shape == shape
        for reduction in ("batchmean", "mean"):
            values = [
                vf.gaussian_kl(mu, mu, reduction=reduction),
                vf.nll(mu, mu.detach(), "bernoulli", reduction=reduction),
            ]
            for value in values:
                assert value == 0, (shape, reduction)


def test_a_mask_over_everything(backend):
    mu = torch.ones(3, 4, device=backend.device)
    mask = torch.zeros(3, 4, dtype=torch.bool, device=backend.device)
    assert vf.gaussian_kl(mu, mu, mask=mask) == 0
    assert vf.gaussian_kl(mu, mu, mask=mask, reduction="mean") == 0
    assert vf.nll(mu, mu, "gaussian", mask=mask, reduction="sum") == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["mu", "scale"])
@pytest.mark.parametrize("prior", [False, True])
def test_a_bad_element_poisons_its_own_sample_alone(backend, bad, where, prior):
    mu, logvar, prior_mu, prior_scale = torch.randn(4, 5, 41, device=backend.device)
    extra = {"prior_mu": prior_mu, "prior_scale": prior_scale} if prior else {}
    z_clean, kl_clean = vf.sample_kl(mu, logvar, seed=1, **extra)
    leaves = {"mu": mu.clone(), "scale": logvar.clone()}
    leaves[where][2, 7] = bad
    for leaf in leaves.values():
        leaf.requires_grad_()
    z, kl = vf.sample_kl(**leaves, seed=1, **extra)
    others = [0, 1, 3, 4]
    assert torch.equal(z[others], z_clean[others])
    assert torch.equal(kl[others], kl_clean[others])
    assert not kl[2].isfinite()
    if where == "mu" or bad > 0 or math.isnan(bad):
        assert not z[2, 7].isfinite()
    assert z[2, :7].isfinite().all()
    assert z[2, 8:].isfinite().all()
    for grad in torch.autograd.grad(z.sum() + kl.sum(), list(leaves.values())):
        assert grad[others].isfinite().all()


def test_a_bad_target_poisons_its_own_sample_alone(backend):
    for likelihood in ("bernoulli", "gaussian", "laplace", vf.Bernoulli(logits=False)):
        params = torch.rand(4, 41, device=backend.device).requires_grad_()
        x = torch.rand(4, 41, device=backend.device)
        clean = vf.nll(params, x, likelihood, reduction="sample")
        x[1, 3] = math.nan
        got = vf.nll(params, x, likelihood, reduction="sample")
        others = [0, 2, 3]
        assert got[1].isnan()
        assert torch.equal(got[others], clean[others])
        (grad,) = torch.autograd.grad(got.sum(), params)
        assert grad[others].isfinite().all()


def test_targets_outside_the_support_never_stop_a_kernel(backend):
    """Pixels of 0 to 255 against a Bernoulli are a mistake, but a formula all the same."""
    params = torch.rand(2, 5, device=backend.device)
    x = 255 * torch.rand(2, 5, device=backend.device)
    for model in (vf.Bernoulli(), vf.Bernoulli(logits=False), vf.Bernoulli(binarize=True)):
        assert vf.nll(params, x, model).isfinite()


@pytest.mark.slow
def test_more_elements_than_an_int32_counts(backend):
    """On one float expanded: no kernel may overflow an index or read what is not there."""
    if backend.name == "reference":
        pytest.skip("the reference would allocate its intermediates")
    rows, cols = 3, (1 << 31) // 3 + 1000
    mu = torch.full((1, 1), 2.0, device=backend.device).expand(rows, cols)
    kl = vf.gaussian_kl(mu, torch.zeros(1, 1, device=backend.device).expand(rows, cols))
    assert kl.item() == pytest.approx(2.0 * cols, rel=1e-5)
