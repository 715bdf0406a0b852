"""z = mu + temperature * sigma * eps, eps ~ N(0, I), differentiable in mu and scale."""

from __future__ import annotations

from torch import Tensor

from .. import _args, random
from .._args import Clamp, Param
from ..backends._options import Posterior, Transform, z_shape
from . import _sample_kl
from ._sample_kl_operator import Others


def rsample(
    mu: Tensor,
    scale: Tensor,
    *,
    num_samples: int | None = None,
    temperature: float = 1.0,
    param: Param = "logvar",
    min_std: float = 0.0,
    clamp: Clamp = None,
    seed: random.Seed | None = None,
    generator: random.Generator | None = None,
    noise: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Reparameterised sample z = mu + temperature * sigma * eps of a diagonal Gaussian.

    The noise is regenerated in the backward pass rather than stored.

    Args:
        mu: `[B, *latent]`, float64, float32, bfloat16 or float16.
        scale: of mu's shape, or broadcasts to it; what it is, `param` says.
        num_samples: K samples of each posterior, `[K, B, *latent]`; None for one, `[B, *latent]`.
        temperature: factor on sigma.
        param: `"logvar"`, `"log_std"`, `"std"`, `"var"` or `"softplus"` (sigma =
            softplus(scale) + min_std).
        min_std: the floor of sigma under `"softplus"`.
        clamp: `(lo, hi)` on scale before use, with zero gradient outside; `("soft", lo, hi)`
            squashes by a tanh, `"soft"` with NVAE's bounds (-5, 5).
        seed: an int, an int64 state tensor `[2]` or `[B, 2]`, or B ints, one per sample.
        generator: a `torch.Generator`, or B of them.
        noise: eps itself, of z's shape, instead of drawing it.
        offset: in elements of one `[B, *latent]` tensor: where in the stream this part of a
            sharded batch begins.

    Returns:
        z with mu's dtype.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes, devices or settings do not fit together.

    Example:
        >>> import torch, vaefast as vf
        >>> mu, logvar = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> vf.rsample(mu, logvar, num_samples=3, seed=0).shape
        torch.Size([3, 8, 2])

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", section 2.4.
    """
    key, plan = None, None
    others: Others = () if noise is None else (None, None, None, None, noise)
    if noise is None or (seed is None and generator is None):
        settings = ("rsample", param, min_std, clamp, temperature, offset, num_samples)
        scale, others, key, plan = _sample_kl.find(mu, scale, others, settings)
    if plan is not None:
        found: Tensor = _sample_kl.run_found(plan, mu, scale, seed, generator, others)[0]
        return found
    scale = _args.posterior(mu, scale)
    transform = transform_of(param, min_std, clamp)
    state = noise_state(mu, num_samples, seed, generator, noise)
    samples = 0 if num_samples is None else _args.integer("num_samples", num_samples)
    heat = _args.number("temperature", temperature)
    options = Posterior(transform, samples, heat, _args.integer("offset", offset), "", 1.0)
    z, _ = _sample_kl.run(mu, scale, options, state=state, noise=noise, key=key)
    assert z is not None
    return z


def transform_of(param: str, min_std: float, clamp: Clamp) -> Transform:
    """The checked settings of the scale parameter."""
    _args.one_of("param", param, _args.PARAMS)
    return Transform(param, _args.number("min_std", min_std), _args.clamp_bounds(clamp))


def noise_state(
    mu: Tensor,
    num_samples: int | None,
    seed: random.Seed | None,
    generator: random.Generator | None,
    noise: Tensor | None,
) -> Tensor | None:
    """The state to sample from, None where `noise` itself is given; checks all of them."""
    if num_samples is not None:
        _args.integer("num_samples", num_samples)
        if num_samples < 1:
            raise ValueError(f"num_samples must be None or at least 1, got {num_samples}")
    if noise is None:
        if seed is None and generator is None:
            return random.draw(mu)
        return random.make_state(mu, mu.shape[0], seed, generator)
    if seed is not None or generator is not None:
        raise ValueError("noise excludes seed and generator, got both")
    _args.float_tensor("noise", noise)
    wanted = z_shape(mu.shape, num_samples or 0)
    if tuple(noise.shape) != wanted:
        raise ValueError(f"noise must have z's shape, {list(wanted)}, got {list(noise.shape)}")
    _args.same_device("mu", mu, noise=noise)
    return None
