"""diffusers' posteriors, by its own autoencoders: patched against its own code and the formulas."""

import copy
import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from tolerances import assert_close64, assert_no_worse

from vaefast import DiagonalGaussian
from vaefast.integrations import diffusers as integration

autoencoders = "diffusers.models.autoencoders"
vae = pytest.importorskip(f"{autoencoders}.vae", reason="diffusers is not installed")
oobleck = pytest.importorskip(f"{autoencoders}.autoencoder_oobleck")
minimax = pytest.importorskip(f"{autoencoders}.autoencoder_kl_minimax_h3_audio")
Gaussian = vae.DiagonalGaussianDistribution
Oobleck = oobleck.OobleckDiagonalGaussianDistribution
Minimax = minimax.MiniMaxH3AudioDiagonalGaussianDistribution

IMAGE, VIDEO, AUDIO = (2, 8, 5, 3), (2, 8, 3, 5, 4), (2, 8, 7)


def parameters(*shape, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator)).to(dtype)


def halves(p):
    mean, scale = p.chunk(2, 1)
    return mean, torch.clamp(scale, -30.0, 20.0)


def kl_formula(p, q=None):
    """Per element, without cancellation."""
    mean, logvar = halves(p)
    m, v = halves(q) if q is not None else (0 * mean, 0 * mean)
    d = logvar - v
    return 0.5 * ((mean - m) ** 2 * torch.exp(-v) + torch.expm1(d) - d)


def nll_formula(p, x):
    mean, logvar = halves(p)
    return 0.5 * (math.log(2 * math.pi) + logvar + (x - mean) ** 2 * torch.exp(-logvar))


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    integration.unpatch()


def results(p, q, x, noise_seed=3):
    one, other = Gaussian(p), Gaussian(q)
    generator = torch.Generator().manual_seed(noise_seed)
    return {
        "sample": one.sample(generator), "kl": one.kl(), "kl of two": one.kl(other),
        "nll": one.nll(x), "nll of a row": one.nll(x, dims=[1, 3]),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 15.0, 1e-3])
def test_an_image_is_diffusers_and_no_less_exact(dtype, scale):
    p, q = parameters(*IMAGE, dtype=dtype, scale=scale), parameters(*IMAGE, dtype=dtype, seed=1)
    x = parameters(2, 4, 5, 3, dtype=dtype, seed=2)
    p, q, x = (t.requires_grad_() for t in (p, q, x))
    wide = [t.detach().double().requires_grad_() for t in (p, q, x)]
    theirs = results(p, q, x)
    exact = {
        "kl": kl_formula(wide[0]).flatten(1).sum(1),
        "kl of two": kl_formula(*wide[:2]).flatten(1).sum(1),
        "nll": nll_formula(wide[0], wide[2]).flatten(1).sum(1),
        "nll of a row": nll_formula(wide[0], wide[2]).sum((1, 3)),
    }
    with integration.patched(), warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = results(p, q, x)
    assert torch.equal(ours["sample"], theirs["sample"])
    for what, want in exact.items():
        assert ours[what].shape == theirs[what].shape
        # The formula itself loses digits near the prior.
        slack = 100.0 if dtype == torch.float64 else 4.0
        assert_close64(ours[what], want, dtype, slack)
        assert_no_worse(ours[what], theirs[what], want, dtype)
        inputs = (p, q, x) if what == "kl of two" else (p, x)
        exacts = wide if what == "kl of two" else (wide[0], wide[2])
        slopes = [
            torch.autograd.grad(f.sum(), inputs_, allow_unused=True, retain_graph=True)
            for f, inputs_ in ((ours[what], inputs), (theirs[what], inputs), (want, exacts))
        ]
        for got, eager, right in zip(*slopes, strict=True):
            assert (got is None) == (right is None)
            if got is not None:
                assert_no_worse(got, eager, right, dtype)


def test_near_the_prior_diffusers_kl_is_off_and_the_patched_is_not():
    p = parameters(*IMAGE, scale=1e-4)
    want = kl_formula(p.double()).flatten(1).sum(1)
    theirs = Gaussian(p).kl()
    with integration.patched():
        ours = Gaussian(p).kl()
    assert ((ours.double() - want) / want).abs().max() < 1e-6
    assert ((theirs.double() - want) / want).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype):
    p = parameters(2, 8, 32, 32, dtype=dtype)
    with integration.patched():
        kl = Gaussian(p).kl()
    assert kl.dtype == torch.float32
    assert_close64(kl, kl_formula(p.double()).flatten(1).sum(1), torch.float32)


def test_a_video_is_summed_as_a_whole_and_it_says_so_once():
    p, q = parameters(*VIDEO), parameters(*VIDEO, seed=1)
    x = parameters(2, 4, 3, 5, 4, seed=2)
    with integration.patched(), pytest.warns(UserWarning, match="kl\\(\\) .* all but the batch"):
        kl = Gaussian(p).kl()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Gaussian(p).kl(Gaussian(q))
        with pytest.warns(UserWarning, match="nll\\(\\) .* all but the batch"):
            nll = Gaussian(p).nll(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rows = Gaussian(p).nll(x, dims=[1, 2, 3])
    assert_close64(kl, kl_formula(p.double()).flatten(1).sum(1), torch.float32)
    assert_close64(nll, nll_formula(p.double(), x.double()).flatten(1).sum(1), torch.float32)
    torch.testing.assert_close(rows, Gaussian(p).nll(x))


def test_compat_keeps_what_diffusers_sums_a_video_over():
    p, q = parameters(*VIDEO), parameters(*VIDEO, seed=1)
    x = parameters(2, 4, 3, 5, 4, seed=2)
    ask = lambda: (Gaussian(p).kl(), Gaussian(p).kl(Gaussian(q)), Gaussian(p).nll(x))  # noqa: E731
    want = ask()
    with integration.patched(compat=True), warnings.catch_warnings():
        warnings.simplefilter("error")
        got = ask()
    for one, two in zip(got, want, strict=True):
        assert one.shape == two.shape == (2, 4)
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_audio_and_vectors_have_a_kl():
    for shape in (AUDIO, (3, 8)):
        p = parameters(*shape)
        with pytest.raises(IndexError):
            Gaussian(p).kl()
        with integration.patched():
            assert_close64(
                Gaussian(p).kl(), kl_formula(p.double()).flatten(1).sum(1), torch.float32
            )


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("kind", [Gaussian, Oobleck])
def test_torch_noise_is_the_default_and_diffusers_to_the_bit(kind, deterministic):
    p = parameters(*IMAGE)
    for generators in (
        lambda: torch.Generator().manual_seed(5),
        lambda: [torch.Generator().manual_seed(i) for i in range(2)],
        lambda: torch.manual_seed(5) and None,
    ):
        want = kind(p, deterministic).sample(generators())
        with integration.patched():
            assert torch.equal(kind(p, deterministic).sample(generators()), want)
    if kind is Gaussian:
        own = DiagonalGaussian(p, deterministic, rng="torch")
        generator = lambda: torch.Generator().manual_seed(5)  # noqa: E731
        assert torch.equal(own.sample(generator()), kind(p, deterministic).sample(generator()))


@pytest.mark.parametrize("kind", [Gaussian, Oobleck, Minimax])
def test_the_librarys_noise_is_reproducible_and_differentiable(kind):
    halves = parameters(*AUDIO).requires_grad_(), parameters(*AUDIO, seed=1).requires_grad_()
    given = halves if kind is Minimax else (torch.cat(halves, 1),)
    q = kind(*given)
    draw = lambda seed: q.sample(torch.Generator().manual_seed(seed))  # noqa: E731
    with integration.patched(rng="philox"):
        z, again, other = draw(1), draw(1), draw(2)
        one = q.sample([torch.Generator().manual_seed(1)])
        each = q.sample([torch.Generator().manual_seed(i) for i in range(2)])
    assert torch.equal(z, again) and torch.equal(z, one) and not torch.equal(z, other)
    assert each.shape == z.shape and not torch.equal(z, draw(1))
    noise = ((z - q.mean) / q.std).detach()
    assert abs(noise.mean()) < 0.3 and abs(noise.std() - 1) < 0.3
    slopes = torch.autograd.grad(z.sum(), halves, retain_graph=True)
    want = torch.autograd.grad((q.mean + q.std * noise).sum(), halves)
    for got, wanted in zip(slopes, want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_memory_format_is_kept():
    p = parameters(*IMAGE).to(memory_format=torch.channels_last)
    for rng in ("philox", "torch"):
        with integration.patched(rng=rng):
            assert Gaussian(p).sample().is_contiguous(memory_format=torch.channels_last)


def oobleck_formula(p, q=None):
    """The KL per position."""

    def parts(p):
        mean, scale = p.chunk(2, 1)
        return mean, torch.nn.functional.softplus(scale) + 1e-4

    mean, std = parts(p)
    m, s = parts(q) if q is not None else (torch.zeros_like(mean), torch.ones_like(mean))
    kl = torch.log(s / std) + (std**2 + (mean - m) ** 2) / (2 * s**2) - 0.5
    return kl.sum(1).mean()


def test_oobleck_is_the_kl_and_says_once_what_diffusers_is():
    p, q = parameters(*AUDIO).requires_grad_(), parameters(*AUDIO, seed=1)
    wide = p.detach().double().requires_grad_()
    with integration.patched(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ours = Oobleck(p).kl(), Oobleck(p).kl(Oobleck(q)), Oobleck(p).kl(Oobleck(p))
    assert len(seen) == 1 and "twice" in str(seen[0].message)
    want = oobleck_formula(wide), oobleck_formula(wide, q.double()), 0.0 * wide.sum()
    for got, wanted in zip(ours, want, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)
        slope, right = torch.autograd.grad(got, p)[0], torch.autograd.grad(wanted, wide)[0]
        torch.testing.assert_close(slope.double(), right, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(Oobleck(p).kl(), 2 * ours[0], rtol=1e-5, atol=1e-6)
    # Not least where the two are equal: its gradient is not zero there.
    (slope,) = torch.autograd.grad(Oobleck(p).kl(Oobleck(p.detach())), p)
    assert slope.abs().max() > 1e-3


def test_compat_keeps_oobleck():
    p, q = parameters(*AUDIO), parameters(*AUDIO, seed=1)
    want = Oobleck(p).kl(), Oobleck(p).kl(Oobleck(q))
    with integration.patched(compat=True), warnings.catch_warnings():
        warnings.simplefilter("error")
        got = Oobleck(p).kl(), Oobleck(p).kl(Oobleck(q))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_point_mass():
    for kind in (Gaussian, Oobleck):
        q = kind(parameters(*IMAGE), True)
        with integration.patched(rng="philox"):
            assert torch.equal(q.kl(), torch.zeros(1))
            if kind is Gaussian:
                assert torch.equal(q.sample(), q.mean)
                assert torch.equal(q.nll(q.mean), torch.zeros(1))
                assert torch.equal(kind(q.parameters).kl(q), torch.full((2,), torch.inf))


def test_assigned_attributes_are_read():
    p, q = parameters(*IMAGE), Gaussian(parameters(*IMAGE))
    with integration.patched(rng="philox"):
        q.mean, q.logvar = q.mean + 1, q.logvar - 1
        q.std = torch.exp(0.5 * q.logvar)
        moved = torch.cat([q.mean, q.logvar], 1)
        assert torch.equal(q.kl(), Gaussian(moved).kl())
        generators = [torch.Generator().manual_seed(1) for _ in range(2)]
        assert torch.equal(q.sample(generators[0]), Gaussian(moved).sample(generators[1]))
        assert not torch.equal(q.kl(), Gaussian(p).kl())


def own(kind):
    """What a class has; copying an object notes its slots there."""
    return {name: value for name, value in vars(kind).items() if name != "__slotnames__"}


def test_objects_and_imports_keep_their_class():
    from diffusers.models.autoencoders.autoencoder_kl import DiagonalGaussianDistribution

    before = {kind: own(kind) for kind in (Gaussian, Oobleck, Minimax)}
    q = Gaussian(parameters(*IMAGE))
    found = integration.patch(rng="philox")
    assert DiagonalGaussianDistribution is Gaussian and isinstance(q, DiagonalGaussianDistribution)
    assert q.kl.__module__ == integration.__name__
    assert [name.rsplit(".", 2)[-2:] for name in found.replaced] == [
        [Gaussian.__name__, "kl"], [Gaussian.__name__, "nll"], [Oobleck.__name__, "kl"],
        [Gaussian.__name__, "sample"], [Oobleck.__name__, "sample"], [Minimax.__name__, "sample"],
    ]  # fmt: skip
    assert copy.deepcopy(q).kl().shape == (2,)
    integration.unpatch()
    assert before == {kind: own(kind) for kind in before}
    with pytest.raises(ValueError, match="rng must be one of 'torch', 'philox', got 'numpy'"):
        integration.patch(rng="numpy")


def test_its_classes_are_these_three():
    """A release that adds one is seen here."""
    found = set()
    for path in Path(vae.__file__).parent.glob("*.py"):
        found.update(re.findall(r"^class (\w*GaussianDistribution)\b", path.read_text(), re.M))
    assert found == {Gaussian.__name__, Oobleck.__name__, Minimax.__name__}


AUTOENCODERS = {
    "image": lambda d: (
        d.AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, latent_channels=4),
        (2, 3, 8, 8),
    ),
    "inpainting": lambda d: (
        d.AsymmetricAutoencoderKL(
            down_block_out_channels=(8,), up_block_out_channels=(8,), norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        ),
        (2, 3, 8, 8),
    ),
    "video": lambda d: (
        d.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 2,
            up_block_types=("CogVideoXUpBlock3D",) * 2,
            block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4,
        ),
        (1, 3, 1, 8, 8),
    ),
    "audio": lambda d: (
        d.AutoencoderOobleck(
            encoder_hidden_size=4, downsampling_ratios=[2, 2], channel_multiples=[1, 2],
            decoder_channels=4, decoder_input_channels=2, audio_channels=2,
        ),
        (2, 2, 32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_an_autoencoder_trains_and_reconstructs_the_same(name):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model, shape = AUTOENCODERS[name](diffusers)
    x = parameters(*shape)

    def step():
        model.zero_grad()
        posterior = model.encode(x).latent_dist
        z = posterior.sample(torch.Generator().manual_seed(2))
        loss = (model.decode(z).sample - x).square().mean() + 1e-2 * posterior.kl().mean()
        loss.backward()
        return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]

    want, slopes = step()
    image = model(x, sample_posterior=True, generator=torch.Generator().manual_seed(1)).sample
    with integration.patched(compat=True):
        got, found = step()
        again = model(x, sample_posterior=True, generator=torch.Generator().manual_seed(1)).sample
    assert torch.equal(image, again)
    torch.testing.assert_close(got, want)
    for one, two in zip(found, slopes, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)
    with integration.patched(rng="philox"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.isfinite(step()[0])


def test_a_posterior_compiles_in_one_graph():
    def step(p):
        posterior = Gaussian(p)
        return posterior.kl(), posterior.nll(posterior.mean)

    with integration.patched():
        got = torch.compile(step, backend="eager", fullgraph=True)(parameters(*VIDEO))
    with integration.patched(), pytest.warns(UserWarning, match="all but the batch"):
        torch.testing.assert_close(got, step(parameters(*VIDEO)))
