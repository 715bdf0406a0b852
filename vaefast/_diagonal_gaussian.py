"""A diagonal Gaussian with the interface of diffusers' autoencoders."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from . import _args, random
from .backends.reference._exact import clamp
from .likelihoods import Gaussian
from .ops.gaussian_kl import gaussian_kl
from .ops.nll import nll
from .ops.rsample import rsample
from .ops.sample_kl import sample_kl

Rng = Literal["philox", "torch"]


class DiagonalGaussian:
    """N(mean, exp(logvar)) from one tensor of both: diffusers' `DiagonalGaussianDistribution`.

    mean and logvar are views of `parameters`; std and var are computed when they are asked for.
    `mean`, `logvar`, `std` and `var` may be assigned, and all methods go by what was assigned last
    (in diffusers, `sample` and `kl` read different ones of them). Writing into one in place is not
    an assignment.

    Args:
        parameters: `[B, *data]` with mean and logvar one behind the other along `dim`.
        deterministic: the point mass at mean: std and var are 0, `kl` and `nll` give `[0.]`.
        old: `(parameters, dim, clamp)`, as it once was, is still taken, with a
            `DeprecationWarning`; dim alone in the place of deterministic is not.
        dim: the dimension that holds both.
        clamp: (lo, hi), the bounds on logvar, with zero gradient outside; None for none.
        shift, scale: the distribution of (x - shift) / scale instead of that of x, in everything
            this object gives and takes: a number, one value per channel of `dim` (a sequence or a
            1-dimensional tensor: the `latents_mean` and `latents_std` of a pipeline's
            configuration), or a tensor that broadcasts to mean. Where the configuration has a
            `scaling_factor`, that is 1 / scale.
        rng: of `sample` and `sample_kl`: `"philox"`, the noise of the library, or `"torch"`, that
            of `torch.randn`, drawn as diffusers draws it, of the parameters' dtype. The same
            `generator` then gives the samples of diffusers to the bit.

    Raises:
        TypeError: parameters is no floating-point tensor, deterministic is no bool, or there are
            more arguments without a name.
        ValueError: there is no such `dim`, or its size is odd; shift or scale does not fit.

    Example:
        >>> posterior = DiagonalGaussian(torch.zeros(2, 8, 4, 4))
        >>> posterior.sample(torch.Generator().manual_seed(0)).shape, posterior.kl()
        (torch.Size([2, 4, 4, 4]), tensor([0., 0.]))
    """

    def __init__(
        self,
        parameters: Tensor,
        deterministic: bool = False,
        *old: tuple[float, float] | None,
        dim: int = 1,
        clamp: tuple[float, float] | None = (-30.0, 20.0),
        shift: float | Sequence[float] | Tensor | None = None,
        scale: float | Sequence[float] | Tensor | None = None,
        rng: Rng = "philox",
    ) -> None:
        _args.float_tensor("parameters", parameters)
        if len(old) == 1 and isinstance(deterministic, int) and not isinstance(deterministic, bool):
            warnings.warn(
                "DiagonalGaussian takes dim and clamp by name: its second argument is "
                "deterministic, as in diffusers",
                DeprecationWarning,
                stacklevel=2,
            )
            dim, clamp, deterministic = deterministic, old[0], False
        elif old:
            raise TypeError(
                "DiagonalGaussian takes parameters and deterministic, got "
                f"{2 + len(old)} arguments without a name"
            )
        if not isinstance(deterministic, bool):
            hint = ""
            if isinstance(deterministic, int):
                hint = f"; the dimension of mean and logvar is given by name, dim={deterministic}"
            raise TypeError(f"deterministic must be a bool, got {deterministic!r}{hint}")
        dim = _args.integer("dim", dim)
        bounds = _args.clamp_bounds(clamp)
        if not -parameters.dim() <= dim < parameters.dim():
            raise ValueError(
                f"dim must be a dimension of parameters, {list(parameters.shape)}, got {dim}"
            )
        if parameters.shape[dim] % 2:
            raise ValueError(
                f"parameters must hold mean and logvar along dimension {dim}, an even size, got "
                f"{list(parameters.shape)}"
            )
        _args.one_of("rng", rng, ("philox", "torch"))
        self.parameters = parameters
        self.deterministic = deterministic
        self.clamp = (bounds[0], bounds[1]) if len(bounds) == 2 else clamp
        self.rng = rng
        # What the operators read: x's mean, its scale, and what that is. Their bounds are `clamp`
        # as long as the scale is the parameters' own.
        self._mu, self._scale = parameters.tensor_split(2, dim)
        self._param: _args.Param = "logvar"
        self._bounds = self.clamp
        self._shift = self._along(dim, "shift", shift)
        self._divisor = self._along(dim, "scale", scale)
        self._known: dict[str, Tensor] = {}

    @property
    def mean(self) -> Tensor:
        """mean; may be assigned."""
        if self._shift is None and self._divisor is None:
            return self._mu
        return self._get("mean", lambda: self._normalised(self._mu))

    @mean.setter
    def mean(self, value: Tensor) -> None:
        self._fold()
        self._mu = self._fitting("mean", value)

    @property
    def logvar(self) -> Tensor:
        """log sigma^2 within the bounds; may be assigned."""
        return self._get("logvar", self._normalised_logvar)

    @logvar.setter
    def logvar(self, value: Tensor) -> None:
        self._assign("logvar", value)

    @property
    def std(self) -> Tensor:
        """sigma; 0 if deterministic; may be assigned."""
        if self.deterministic:
            return torch.zeros_like(self.mean)
        return self._get("std", lambda: self._over(self._std(), 1))

    @std.setter
    def std(self, value: Tensor) -> None:
        self._assign("std", value)

    @property
    def var(self) -> Tensor:
        """sigma^2; 0 if deterministic; may be assigned."""
        if self.deterministic:
            return torch.zeros_like(self.mean)
        return self._get("var", lambda: self._over(self._var(), 2))

    @var.setter
    def var(self, value: Tensor) -> None:
        self._assign("var", value)

    def mode(self) -> Tensor:
        """The most likely value: mean."""
        return self.mean

    def sample(
        self,
        generator: random.Generator | None = None,
        *,
        seed: random.Seed | None = None,
        noise: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """mean + temperature * std * eps, differentiable in the parameters, of their dtype.

        Channels-last parameters give a channels-last sample; the noise is the same.

        Args:
            generator: a `torch.Generator`, a sequence of one per example, or of one for all.
            seed: as in `rsample`; not with `rng="torch"`.
            noise: eps itself, of mean's shape.
            temperature: factor on std.
        """
        if self.rng == "torch":
            # Deterministic or not, diffusers draws: what is drawn next is then the same, too.
            return self._eager(self._noise(generator, seed, noise), temperature)
        if self.deterministic:
            return self.mean
        z = rsample(
            self._mu,
            self._scale,
            param=self._param,
            clamp=self._bounds,
            generator=_one_for_all(generator),
            seed=seed,
            noise=noise,
            temperature=temperature,
        )
        return self._normalised(in_format_of(z, self.parameters))

    def kl(self, other: DiagonalGaussian | None = None) -> Tensor:
        """KL(self || other), or against N(0, I), summed over all but the batch: `[B]`, in nats.

        The result is float32, or float64 for float64 parameters.

        Args:
            other: a DiagonalGaussian or diffusers' own distribution.

        Raises:
            ValueError: other is deterministic; the KL to a point mass is infinite.
        """
        if self.deterministic:
            return self._nothing()
        if other is None:
            return gaussian_kl(
                self._mu,
                self._scale,
                *self._standard_prior(),
                param=self._param,
                clamp=self._bounds,
                reduction="sample",
            )
        if other.deterministic:
            raise ValueError("other must not be deterministic: the KL to a point mass is infinite")
        own = self._param == "logvar" and not self._affine
        return gaussian_kl(
            self.mean,
            self._scale if own else self.logvar,
            other.mean,
            other.logvar,
            clamp=self._bounds if own else None,
            reduction="sample",
        )

    def sample_kl(
        self,
        generator: random.Generator | None = None,
        *,
        seed: random.Seed | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(`sample()`, `kl()`) in one read of the parameters."""
        if self.deterministic:
            return self.sample(generator, seed=seed, noise=noise), self._nothing()
        if self.rng == "torch":
            return self.sample(generator, seed=seed, noise=noise), self.kl()
        prior_mu, prior_scale = self._standard_prior()
        z, kl = sample_kl(
            self._mu,
            self._scale,
            prior_mu=prior_mu,
            prior_scale=prior_scale,
            param=self._param,
            clamp=self._bounds,
            generator=_one_for_all(generator),
            seed=seed,
            noise=noise,
        )
        return self._normalised(in_format_of(z, self.parameters)), kl

    def nll(self, sample: Tensor, dims: Sequence[int] | None = None) -> Tensor:
        """-log q(sample), summed over `dims`, by default all but the batch, in nats.

        Args:
            sample: broadcasts with mean.
            dims: the dimensions to sum over.
        """
        if self.deterministic:
            return self._nothing()
        sample, mean, logvar = torch.broadcast_tensors(sample, self.mean, self.logvar)
        rank = mean.dim()
        if dims is None or sorted(d % rank for d in dims) == list(range(1, rank)):
            return nll((mean, logvar), sample, Gaussian(), reduction="sample")
        return nll((mean, logvar), sample, Gaussian(), reduction="none").sum(tuple(dims))

    def __repr__(self) -> str:
        return f"DiagonalGaussian(mean: {self.mean.dtype} {list(self.mean.shape)})"

    @property
    def _affine(self) -> bool:
        return self._shift is not None or self._divisor is not None

    def _get(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if name not in self._known:
            self._known[name] = make()
        return self._known[name]

    def _logvar(self) -> Tensor:
        """Of x, before `shift` and `scale`, as `_std` and `_var`."""
        scale = self._scale if self._bounds is None else clamp(self._scale, *self._bounds)
        if self._param == "logvar":
            return scale
        return 2 * torch.log(scale) if self._param == "std" else torch.log(scale)

    def _std(self) -> Tensor:
        if self._param == "std":
            return self._scale
        return torch.sqrt(self._scale) if self._param == "var" else torch.exp(0.5 * self._logvar())

    def _var(self) -> Tensor:
        if self._param == "var":
            return self._scale
        return self._scale.square() if self._param == "std" else torch.exp(self._logvar())

    def _normalised_logvar(self) -> Tensor:
        logvar = self._logvar()
        return logvar if self._divisor is None else logvar - 2 * torch.log(abs(self._divisor))

    def _over(self, spread: Tensor, power: int) -> Tensor:
        """std or var of x as that of (x - shift) / scale."""
        return spread if self._divisor is None else spread / abs(self._divisor) ** power

    def _assign(self, param: _args.Param, value: Tensor) -> None:
        self._fold()
        self._scale, self._param, self._bounds = self._fitting(param, value), param, None

    def _fold(self) -> None:
        """Before an assignment: what `shift` and `scale` make of the parameters is written down, as
        what is assigned is of the distribution that this object is."""
        if self._affine:
            self._mu, self._scale = self.mean, self.logvar
            self._param, self._bounds = "logvar", None
            self._shift = self._divisor = None
        self._known = {}

    def _fitting(self, name: str, value: Tensor) -> Tensor:
        _args.float_tensor(name, value)
        _args.same_device("parameters", self.parameters, **{name: value})
        if value.shape == self._mu.shape:
            return value
        # Dense, so that `std *= 2` has where to write.
        return _args.broadcastable(name, value, self._mu.shape).expand(self._mu.shape).clone()

    def _normalised(self, x: Tensor) -> Tensor:
        # In the dtype of x, as pipelines do it.
        if self._shift is not None:
            x = x - self._shift
        return x if self._divisor is None else x / self._divisor

    def _standard_prior(self) -> tuple[Tensor | None, Tensor | None]:
        """N(0, I) as a distribution of x, by mean and logvar: the KL of x is that of
        (x - shift) / scale."""
        logvar = None if self._divisor is None else 2 * torch.log(abs(self._divisor))
        return self._shift, logvar

    def _along(
        self, dim: int, name: str, value: float | Sequence[float] | Tensor | None
    ) -> Tensor | None:
        """`shift` or `scale` as a tensor that broadcasts to mean."""
        if value is None:
            return None
        like = self._mu
        tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        if tensor.dim() == 1:
            if tensor.shape[0] not in (1, like.shape[dim]):
                raise ValueError(
                    f"{name} must have one value per channel, {like.shape[dim]}, got "
                    f"{tensor.shape[0]}"
                )
            shape = [1] * like.dim()
            shape[dim] = -1
            return tensor.view(shape)
        return _args.broadcastable(name, tensor, like.shape)

    def _noise(
        self, generator: random.Generator | None, seed: random.Seed | None, noise: Tensor | None
    ) -> Tensor:
        if seed is not None:
            raise ValueError("seed names noise of rng='philox'; rng='torch' takes generator")
        if noise is None:
            return torch_noise(self._mu.shape, self.parameters, generator)
        if generator is not None:
            raise ValueError("noise excludes seed and generator, got both")
        if noise.shape != self._mu.shape:
            raise ValueError(
                f"noise must have mean's shape, {list(self._mu.shape)}, got {list(noise.shape)}"
            )
        return noise

    def _eager(self, noise: Tensor, temperature: float) -> Tensor:
        """By torch's own operations, in diffusers' order, which makes the bits the same."""
        std = self.std if self.deterministic or not self._affine else self._std()
        if temperature != 1:
            std = std * temperature
        return self._normalised(in_format_of(self._mu + std * noise, self.parameters))

    def _nothing(self) -> Tensor:
        return torch.zeros(
            1, dtype=_args.compute_dtype(self.parameters), device=self.parameters.device
        )


def in_format_of(z: Tensor, parameters: Tensor) -> Tensor:
    """`z` in the memory format of `parameters`."""
    # Within a transform of torch.func there is no asking.
    if not random.transformed() and not parameters.is_contiguous():
        for rank, form in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if z.dim() == rank and parameters.is_contiguous(memory_format=form):
                return z.contiguous(memory_format=form)
    return z


def torch_noise(shape: torch.Size, like: Tensor, generator: random.Generator | None) -> Tensor:
    """`torch.randn` as diffusers' `randn_tensor` calls it: a generator of the CPU draws there, also
    for another device; of several, each draws one example."""
    generator = _one_for_all(generator)
    if generator is None or isinstance(generator, torch.Generator):
        device = like.device if generator is None else generator.device
        drawn = torch.randn(shape, generator=generator, dtype=like.dtype, device=device)
        return drawn.to(like.device)
    if len(generator) != shape[0]:
        raise ValueError(
            f"generator as a sequence must have one per sample, {shape[0]}, got {len(generator)}"
        )
    rows = [
        torch.randn((1, *shape[1:]), generator=g, dtype=like.dtype, device=g.device)
        for g in generator
    ]
    return torch.cat(rows).to(like.device)


def _one_for_all(generator: random.Generator | None) -> random.Generator | None:
    """A list of one generator is that one, as in diffusers."""
    if isinstance(generator, (list, tuple)) and len(generator) == 1:
        return generator[0]
    return generator
