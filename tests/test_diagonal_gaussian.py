"""DiagonalGaussian as a drop-in: assignment, memory format, torch's noise, latents_mean."""

import itertools
import math

import pytest
import torch
from torch import nn

from vaefast import DiagonalGaussian

LATENTS_MEAN, LATENTS_STD = [0.5, -1.0, 2.0, 0.1], [2.0, 0.25, 1.5, 0.7]


def parameters(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


class Diffusers:
    """The sample of diffusers' class, written anew: torch's noise of the parameters' dtype."""

    def __init__(self, parameters):
        self.mean, logvar = parameters.chunk(2, 1)
        self.std = torch.exp(0.5 * torch.clamp(logvar, -30.0, 20.0))

    def sample(self, generator):
        if isinstance(generator, list) and len(generator) > 1:
            shape = (1, *self.mean.shape[1:])
            noise = torch.cat([torch.randn(shape, generator=g, dtype=self.mean.dtype)
                               for g in generator])  # fmt: skip
        else:
            generator = generator[0] if isinstance(generator, list) else generator
            noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + self.std * noise


def everything(q, other, x, noise):
    """What each method says."""
    z, kl = q.sample_kl(noise=noise)
    return {
        "mean": q.mean, "mode": q.mode(), "std": q.std, "var": q.var, "logvar": q.logvar,
        "sample": q.sample(noise=noise), "kl": q.kl(), "kl of two": q.kl(other),
        "kl to it": other.kl(q), "nll": q.nll(x), "sample_kl's z": z, "sample_kl's kl": kl,
    }  # fmt: skip


def formulas(mean, std, other, x, noise):
    """The same by the formulas."""

    def kl(m, s, m0, s0):
        return (torch.log(s0 / s) + (s**2 + (m - m0) ** 2) / (2 * s0**2) - 0.5).flatten(1).sum(1)

    one = torch.ones_like(mean)
    standard = kl(mean, std, 0 * one, one)
    nll = 0.5 * ((x - mean) / std) ** 2 + torch.log(std) + 0.5 * math.log(2 * math.pi)
    z = mean + std * noise
    return {
        "mean": mean, "mode": mean, "std": std, "var": std**2, "logvar": 2 * torch.log(std),
        "sample": z, "kl": standard, "kl of two": kl(mean, std, other.mean, other.std),
        "kl to it": kl(other.mean, other.std, mean, std), "nll": nll.flatten(1).sum(1),
        "sample_kl's z": z, "sample_kl's kl": standard,
    }  # fmt: skip


ASSIGNMENTS = [
    names for k in range(4) for names in itertools.permutations(("mean", "std", "var", "logvar"), k)
]


@pytest.mark.each(3)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("names", ASSIGNMENTS, ids="-".join)
def test_what_is_assigned_last_is_what_all_methods_read(names, affine):
    settings = {"shift": LATENTS_MEAN, "scale": LATENTS_STD} if affine else {}
    q = DiagonalGaussian(parameters(3, 8, 2, 5), **settings)
    other = DiagonalGaussian(parameters(3, 8, 2, 5, seed=1))
    x, noise = parameters(3, 4, 2, 5, seed=2), parameters(3, 4, 2, 5, seed=3)
    mean, logvar = parameters(3, 8, 2, 5).chunk(2, 1)
    std = torch.exp(0.5 * logvar)
    if affine:
        shift, scale = (torch.tensor(v).double().view(1, 4, 1, 1)
                        for v in (LATENTS_MEAN, LATENTS_STD))  # fmt: skip
        mean, std = (mean - shift) / scale, std / scale
    for place, name in enumerate(names):
        everything(q, other, x, noise)
        value = parameters(3, 4, 2, 5, seed=10 + place)
        value = value if name in ("mean", "logvar") else value.exp()
        value = value.requires_grad_()
        setattr(q, name, value)
        if name == "mean":
            mean = value
        else:
            std = {"std": value, "var": value**0.5, "logvar": torch.exp(0.5 * value)}[name]
        got, want = everything(q, other, x, noise), formulas(mean, std, other, x, noise)
        for what in got:
            torch.testing.assert_close(got[what], want[what], rtol=1e-6, atol=1e-6)
        for what in ("sample", "kl", "kl of two", "nll", "sample_kl's kl"):
            (slope,) = torch.autograd.grad(got[what].sum(), value, retain_graph=True,
                                           allow_unused=True)  # fmt: skip
            (wanted,) = torch.autograd.grad(want[what].sum(), value, retain_graph=True,
                                            allow_unused=True)  # fmt: skip
            torch.testing.assert_close(slope, wanted, rtol=1e-6, atol=1e-6)
    got, want = everything(q, other, x, noise), formulas(mean, std, other, x, noise)
    for what in got:
        torch.testing.assert_close(got[what], want[what], rtol=1e-6, atol=1e-6)


def test_an_assignment_that_does_not_fit_is_named():
    q = DiagonalGaussian(parameters(3, 8, 2))
    with pytest.raises(ValueError, match=r"std must broadcast to \[3, 4, 2\]"):
        q.std = torch.ones(3, 5, 2)
    with pytest.raises(TypeError, match="mean must be a Tensor, got float"):
        q.mean = 0.5
    q.std = torch.full((), 0.5, dtype=torch.float64)
    assert torch.equal(q.sample(noise=torch.ones_like(q.mean)), q.mean + 0.5)
    q.std *= 2
    assert torch.equal(q.sample(noise=torch.ones_like(q.mean)), q.mean + 1)


@pytest.mark.parametrize(
    "given",
    [
        (LATENTS_MEAN, LATENTS_STD),
        (torch.tensor(LATENTS_MEAN), torch.tensor(LATENTS_STD).view(1, 4, 1, 1)),
        (0.1159, 1 / 0.3611),
        (0.1159, None),
        (None, LATENTS_STD),
        (None, -2.0),
    ],
)
def test_shift_and_scale_are_of_the_distribution_as_a_whole(given):
    raw = parameters(3, 8, 2, 5)
    q, x = DiagonalGaussian(raw, shift=given[0], scale=given[1]), DiagonalGaussian(raw)
    shift, scale = (
        torch.as_tensor(none if v is None else v, dtype=torch.float64).reshape(1, -1, 1, 1)
        for v, none in zip(given, (0.0, 1.0), strict=True)
    )
    noise, point = parameters(3, 4, 2, 5, seed=3), parameters(3, 4, 2, 5, seed=4)
    mean, std = (x.mean - shift) / scale, x.std / scale.abs()
    other = DiagonalGaussian(parameters(3, 8, 2, 5, seed=1))
    want = formulas(mean, std, other, point, noise)
    want["sample"] = want["sample_kl's z"] = (x.sample(noise=noise) - shift) / scale
    got = everything(q, other, point, noise)
    for what in got:
        torch.testing.assert_close(got[what], want[what], rtol=1e-6, atol=1e-6, msg=what)
    both = q.kl(DiagonalGaussian(other.parameters, shift=given[0], scale=given[1]))
    torch.testing.assert_close(both, x.kl(other))


GENERATORS = {
    "one": lambda: torch.Generator().manual_seed(5),
    "a list of one": lambda: [torch.Generator().manual_seed(5)],
    "one per image": lambda: [torch.Generator().manual_seed(i) for i in range(3)],
    "none": lambda: torch.manual_seed(5) and None,
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_torch_noise_gives_diffusers_samples_to_the_bit(name, dtype):
    p = parameters(3, 8, 6, 5, dtype=dtype)
    want = Diffusers(p).sample(GENERATORS[name]())
    assert torch.equal(DiagonalGaussian(p, rng="torch").sample(GENERATORS[name]()), want)
    z, _ = DiagonalGaussian(p, rng="torch").sample_kl(GENERATORS[name]())
    assert torch.equal(z, want)
    shift, scale = (torch.tensor(v, dtype=dtype).view(1, 4, 1, 1)
                    for v in (LATENTS_MEAN, LATENTS_STD))  # fmt: skip
    q = DiagonalGaussian(p, rng="torch", shift=LATENTS_MEAN, scale=LATENTS_STD)
    assert torch.equal(q.sample(GENERATORS[name]()), (want - shift) / scale)
    assert not torch.equal(DiagonalGaussian(p).sample(GENERATORS[name]()), want)


def test_a_deterministic_one_draws_as_diffusers_does():
    p, generator = parameters(3, 8, 6), torch.Generator().manual_seed(1)
    q = DiagonalGaussian(p, True, rng="torch")
    assert torch.equal(q.sample(generator), q.mean)
    after = torch.randn(4, generator=generator)
    torch.randn(3, 4, 6, generator=generator.manual_seed(1), dtype=torch.float64)
    assert torch.equal(torch.randn(4, generator=generator), after)


def test_a_deterministic_one_keeps_what_is_assigned_for_later():
    q = DiagonalGaussian(parameters(3, 8, 6), True)
    q.std = torch.full_like(q.mean, 0.5)
    assert not q.std.any() and not q.var.any() and torch.equal(q.sample(), q.mean)
    q.deterministic = False
    assert torch.equal(q.sample(noise=torch.ones_like(q.mean)), q.mean + 0.5)


def test_the_old_order_is_taken_where_it_can_be_told():
    p = parameters(3, 5, 8, seed=1) * 4
    with pytest.warns(DeprecationWarning, match="dim and clamp by name"):
        old = DiagonalGaussian(p, -1, (-2.0, 2.0))
    assert torch.equal(old.kl(), DiagonalGaussian(p, dim=-1, clamp=(-2.0, 2.0)).kl())
    for given in ((True, None), (1, None, 3)):
        with pytest.raises(TypeError, match=r"takes parameters and deterministic, got [34]"):
            DiagonalGaussian(p, *given)


def test_a_list_of_one_generator_serves_every_image():
    q = DiagonalGaussian(parameters(3, 8, 6))
    one, each = (lambda: torch.Generator().manual_seed(7)), 3
    assert torch.equal(q.sample([one()]), q.sample(one()))
    with pytest.raises(ValueError, match=f"one per sample, {each}, got 2"):
        DiagonalGaussian(q.parameters, rng="torch").sample([one(), one()])


def test_noise_that_is_named_twice_is_an_error():
    q, rng = DiagonalGaussian(parameters(3, 8, 6)), torch.Generator()
    eager = DiagonalGaussian(q.parameters, rng="torch")
    for one in (q, eager):
        with pytest.raises(ValueError, match="noise excludes"):
            one.sample(rng, noise=torch.zeros(3, 4, 6))
        with pytest.raises(ValueError, match="noise must have"):
            one.sample(noise=torch.zeros(3, 4, 5))
    with pytest.raises(ValueError, match="rng='torch' takes generator"):
        eager.sample(seed=1)


FORMATS = [((2, 8, 3, 5), torch.channels_last), ((2, 8, 3, 2, 5), torch.channels_last_3d)]


@pytest.mark.parametrize("rng", ["philox", "torch"])
@pytest.mark.parametrize(("shape", "form"), FORMATS)
def test_memory_format_is_kept_and_the_noise_with_it(shape, form, rng):
    plain = parameters(*shape, dtype=torch.float32)
    p = plain.to(memory_format=form).requires_grad_()
    for one, other in (
        (DiagonalGaussian(p, rng=rng), DiagonalGaussian(plain, rng=rng)),
        (DiagonalGaussian(p, rng=rng, shift=LATENTS_MEAN, scale=LATENTS_STD),
         DiagonalGaussian(plain, rng=rng, shift=LATENTS_MEAN, scale=LATENTS_STD)),
    ):  # fmt: skip
        for draw in (
            lambda q: q.sample(torch.Generator().manual_seed(1)),
            lambda q: q.sample_kl(torch.Generator().manual_seed(1))[0],
        ):
            z = draw(one)
            assert z.is_contiguous(memory_format=form)
            torch.testing.assert_close(z, draw(other))
        torch.testing.assert_close(one.kl(), other.kl())
    z.sum().backward()
    assert p.grad.is_contiguous(memory_format=form)


class Encoder(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.conv, self.settings = nn.Conv2d(3, 8, 3), settings

    def forward(self, x):
        q = DiagonalGaussian(self.conv(x), **self.settings)
        return q.sample(), q.kl(), q.nll(q.mean)


@pytest.mark.parametrize(
    "settings", [{}, {"rng": "torch", "shift": LATENTS_MEAN, "scale": LATENTS_STD}]
)
def test_it_compiles_in_one_graph(settings):
    model = Encoder(**settings)
    x = torch.randn(2, 3, 6, 6)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    want = model(x)
    torch.manual_seed(0)
    for got, wanted in zip(compiled(x), want, strict=True):
        torch.testing.assert_close(got, wanted)
