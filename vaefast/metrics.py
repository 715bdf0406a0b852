"""What a trained posterior does with its dimensions: activity, KL, information, collapse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _args, random
from ._args import Clamp, Param
from .backends.reference.mixture_log_prob import normal_log_prob
from .backends.reference.sample_kl import log_variance
from .ops.gaussian_kl import gaussian_kl
from .ops.mixture_log_prob import mixture_log_prob
from .ops.rsample import rsample, transform_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CollapseReport",
    "active_units",
    "bits_per_dimension",
    "collapse_report",
    "kl_per_dimension",
    "mutual_information",
]

_LOG_2PI = math.log(2 * math.pi)


@torch.no_grad()
def active_units(mu: Tensor, threshold: float = 0.01) -> Tensor:
    """Which dimensions' posterior means vary over the data: Var_x(E_q[z]) > threshold.

    Args:
        mu: the posterior's means over a data set, `[N, *latent]`, N at least 2.
        threshold: the least variance of an active unit.

    Returns:
        bool, `[*latent]`; `int(active_units(mu).sum())` is their number.

    Example:
        >>> mu = torch.tensor([[-1.0, 0.0], [1.0, 0.05]])
        >>> active_units(mu)
        tensor([ True, False])

    Source: Burda, Grosse & Salakhutdinov 2016, section 5.2.
    """
    return _variance(mu) > _args.number("threshold", threshold)


@torch.no_grad()
def kl_per_dimension(
    mu: Tensor,
    scale: Tensor,
    *,
    param: Param = "logvar",
    min_std: float = 0.0,
    clamp: Clamp = None,
) -> Tensor:
    """KL(q(z_d|x) || N(0, 1)) averaged over the data, in nats, `[*latent]`.

    Arguments as in `gaussian_kl`.

    Example:
        >>> kl_per_dimension(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.zeros(2, 2))
        tensor([0.5000, 0.0000])
    """
    return gaussian_kl(mu, scale, param=param, min_std=min_std, clamp=clamp, reduction="dim")


@torch.no_grad()
def mutual_information(
    mu: Tensor,
    scale: Tensor,
    *,
    param: Param = "logvar",
    min_std: float = 0.0,
    clamp: Clamp = None,
    num_samples: int = 1,
    chunk: int = 128,
    seed: random.Seed | None = None,
) -> Tensor:
    """I_q(x; z) = E_x E_q(z|x) [log q(z|x) - log q(z)], q(z) = mean_n q(z|x_n), in nats.

    The aggregate posterior is that of the data given, so the value is at most log N. In float64;
    nothing of the size of all pairs is stored, but `[chunk, N, *latent]` where plain PyTorch
    serves `mixture_log_prob`.

    Args:
        mu, scale: posteriors over a data set, `[N, *latent]`; scale may broadcast to that.
        param, min_std, clamp, seed: as in `rsample`.
        num_samples: samples of each posterior, one after the other.
        chunk: samples at a time.

    Returns:
        A float64 scalar.

    Example:
        >>> apart = torch.tensor([[-100.0], [0.0], [100.0]])
        >>> round(float(mutual_information(apart, torch.zeros(3, 1)).exp()), 6)
        3.0

    Source: Hoffman & Johnson 2016, "ELBO surgery"; Dieng et al. 2019, section 4.
    """
    scale = _args.posterior(mu, scale)
    num_samples = _args.integer("num_samples", num_samples)
    chunk = _args.integer("chunk", chunk)
    if num_samples < 1 or chunk < 1:
        raise ValueError(f"num_samples and chunk must be at least 1, got {num_samples} and {chunk}")
    count = mu.shape[0]
    mean = mu.reshape(count, -1).double()
    logvar = log_variance(scale.double(), transform_of(param, min_std, clamp)).reshape(mean.shape)
    state = random.make_state(mu, count, seed)
    samples = rsample(mean, logvar, num_samples=num_samples, seed=state)
    total = mean.new_zeros(())
    for z in samples:
        own = normal_log_prob(z, mean, logvar).sum(-1)
        total += own.mean()
        for part in z.split(chunk):
            total -= mixture_log_prob(part, mean, logvar).sum() / count
    return total / num_samples


def bits_per_dimension(nats: Tensor | float, dims: int) -> Tensor | float:
    """A negative log-likelihood (or bound) in nats as bits for each of `dims` dimensions.

    A density of dequantised 8-bit pixels scaled to [0, 1] costs 8 bits more per dimension.

    Example:
        >>> round(bits_per_dimension(784 * math.log(2), 784), 4)
        1.0
    """
    return nats / (_args.integer("dims", dims, least=1) * math.log(2))


@dataclass(frozen=True)
class CollapseReport:
    """What each latent dimension carries, `[*latent]`, and what all of them do together.

    `kl`: nats per dimension; `variance`: of the posterior's mean over the data; `std`: the mean
    posterior sigma; `active`: variance above the threshold; `mutual_information`: nats.
    """

    kl: Tensor
    variance: Tensor
    std: Tensor
    active: Tensor
    mutual_information: float
    threshold: float

    def __str__(self) -> str:
        dims, used = self.active.numel(), int(self.active.sum())
        return (
            f"{used} of {dims} units active (variance of the mean above {self.threshold:g}), "
            f"KL {float(self.kl.sum()):.2f} nats, {self._collapsed_kl():.2f} of them in collapsed "
            f"units, mutual information {self.mutual_information:.2f} nats"
        )

    def figure(self) -> Figure:
        """KL per dimension, largest first, and mean sigma against variance of the mean.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("a figure needs matplotlib; pip install matplotlib") from error
        kl, order = self.kl.flatten().cpu().sort(descending=True)
        active = self.active.flatten().cpu()[order]
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        bars, plane = figure.subplots(1, 2)
        places = torch.arange(len(kl), device="cpu")
        for chosen, name, color in ((active, "active", "C0"), (~active, "collapsed", "C3")):
            bars.bar(places[chosen].tolist(), kl[chosen].tolist(), color=color, label=name)
            x = self.variance.flatten().cpu()[order][chosen]
            y = self.std.flatten().cpu()[order][chosen]
            plane.scatter(x.tolist(), y.tolist(), color=color, s=14)
        bars.set(xlabel="dimension, by KL", ylabel="KL (nats)", title=f"KL {kl.sum():.1f} nats")
        bars.legend()
        plane.axvline(self.threshold, color="0.6", linewidth=1)
        plane.set(
            xlabel="variance of the posterior's mean",
            ylabel="mean posterior sigma",
            title=f"I(x; z) = {self.mutual_information:.2f} nats",
        )
        plane.set_xscale("symlog", linthresh=self.threshold)
        plane.set_xlim(left=-0.2 * self.threshold)
        return figure

    def _collapsed_kl(self) -> float:
        return float(self.kl[~self.active].sum())


@torch.no_grad()
def collapse_report(
    mu: Tensor,
    scale: Tensor,
    *,
    threshold: float = 0.01,
    param: Param = "logvar",
    min_std: float = 0.0,
    clamp: Clamp = None,
    seed: random.Seed | None = None,
) -> CollapseReport:
    """Which dimensions carry information about the data, and which have collapsed to the prior.

    Arguments as in `active_units` and `mutual_information`. Print the report, or draw
    `report.figure()`.

    Example:
        >>> mu = torch.stack([torch.linspace(-2, 2, 50), torch.zeros(50)], 1)
        >>> logvar = torch.tensor([-4.0, 0.0]).expand(50, 2)
        >>> report = collapse_report(mu, logvar, seed=0)
        >>> report.active
        tensor([ True, False])
    """
    threshold = _args.number("threshold", threshold)
    transform = transform_of(param, min_std, clamp)
    wide = scale.to(_args.compute_dtype(scale))
    variance = _variance(mu)
    return CollapseReport(
        kl_per_dimension(mu, scale, param=param, min_std=min_std, clamp=clamp),
        variance,
        torch.exp(0.5 * log_variance(wide, transform)).mean(0),
        variance > threshold,
        float(mutual_information(mu, scale, param=param, min_std=min_std, clamp=clamp, seed=seed)),
        threshold,
    )


def _variance(mu: Tensor) -> Tensor:
    _args.float_tensor("mu", mu)
    if mu.dim() < 1 or mu.shape[0] < 2:
        raise ValueError(f"mu must be [N, *latent] with N at least 2, got {list(mu.shape)}")
    return mu.to(_args.compute_dtype(mu)).var(0)
