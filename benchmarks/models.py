"""Small models of the kinds that people train, with the operations that vaefast replaces taken
from `ops`: as they are usually written, or fused. All else of a step is the same module."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vaefast as vf

from . import bench_log_weights, bench_mixture_log_prob, bench_mmd, bench_nll, bench_row_nll
from . import bench_tc_terms as tc

LOG_2PI = math.log(2 * math.pi)


class Replaced(NamedTuple):
    """An operation as it is usually written, and fused. `noisy`: its first output is a sample."""

    eager: Callable[..., Any]
    fused: Callable[..., Any]
    noisy: bool = False


def one(formula: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    """A formula of the other cases, whose result is a tuple."""
    return lambda *tensors: formula(*tensors)[0]


def drawn(mu: Tensor, logvar: Tensor) -> Tensor:
    std = torch.exp(0.5 * logvar)
    return mu + std * torch.randn_like(std)


def sample_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), list(range(1, mu.dim())))
    return drawn(mu, logvar), kl


def elbo(logits: Tensor, x: Tensor, kl: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x) + kl.mean()


def fused_elbo(logits: Tensor, x: Tensor, kl: Tensor) -> Tensor:
    return vf.elbo_loss(logits, x, kl=kl, likelihood="bernoulli").loss


def likelihood(model: vf.likelihoods.Likelihood | str) -> Callable[..., Tensor]:
    """-log p of parameters and, last, the target."""

    def fused(*tensors: Tensor) -> Tensor:
        *params, x = tensors
        return vf.nll(params[0] if len(params) == 1 else tuple(params), x, model)

    return fused


SAMPLE_KL = Replaced(sample_kl, vf.sample_kl, noisy=True)
SAMPLE = Replaced(drawn, vf.rsample, noisy=True)
ELBO = Replaced(elbo, fused_elbo)
BERNOULLI = Replaced(one(bench_nll.bernoulli), likelihood("bernoulli"))


class Model(nn.Module):
    """A model whose forward pass gives the loss, by the operations in `ops`."""

    replaced: ClassVar[Mapping[str, Replaced]]

    def __init__(self) -> None:
        super().__init__()
        self.ops: dict[str, Callable[..., Any]] = {n: r.eager for n, r in self.replaced.items()}

    def data(self, device: torch.device) -> tuple[Tensor, ...]:
        """A batch for `forward`."""
        raise NotImplementedError


def perceptron(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Perceptrons(Model):
    """An encoder and a decoder of one hidden layer, for data in [0, 1]."""

    def __init__(self, batch: int, data: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.shape, self.latent = (batch, data), latent
        self.encoder = perceptron(data, hidden, 2 * latent)
        self.decoder = perceptron(latent, hidden, data)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.encoder(x).chunk(2, -1)

    def data(self, device: torch.device) -> tuple[Tensor, ...]:
        return (torch.rand(self.shape, device=device),)


class MLP(Perceptrons):
    """Kingma & Welling's MNIST model, as PyTorch's examples have it."""

    replaced: ClassVar[Mapping[str, Replaced]] = {"sample": SAMPLE_KL, "elbo": ELBO}

    def forward(self, x: Tensor) -> Tensor:
        z, kl = self.ops["sample"](*self.encode(x))
        return self.ops["elbo"](self.decoder(z), x, kl)


class BetaTC(Perceptrons):
    """beta-TCVAE (Chen et al. 2018)."""

    replaced: ClassVar[Mapping[str, Replaced]] = {
        "sample": SAMPLE,
        "terms": Replaced(lambda *t: _weighed(tc.textbook(*t)), lambda *t: _weighed(tc.fused(*t))),
        "nll": BERNOULLI,
    }

    def data(self, device: torch.device) -> tuple[Tensor, ...]:
        return *super().data(device), tc.stratified(self.shape[0], device)

    def forward(self, x: Tensor, log_weight: Tensor) -> Tensor:
        mu, logvar = self.encode(x)
        z = self.ops["sample"](mu, logvar)
        terms = self.ops["terms"](z, mu, logvar, log_weight)
        return self.ops["nll"](self.decoder(z), x) + terms


def _weighed(terms: tuple[Tensor, ...]) -> Tensor:
    mi, total, dims = terms
    return (mi + 6 * total + dims).mean()


class InfoVAE(Perceptrons):
    """InfoVAE (Zhao et al. 2019) with the discrepancy of WAE's kernels."""

    replaced: ClassVar[Mapping[str, Replaced]] = {
        "sample": SAMPLE_KL,
        "mmd": Replaced(one(bench_mmd.textbook), one(bench_mmd.fused)),
        "elbo": ELBO,
    }

    def forward(self, x: Tensor) -> Tensor:
        z, kl = self.ops["sample"](*self.encode(x))
        discrepancy = self.ops["mmd"](z, torch.randn_like(z))
        return self.ops["elbo"](self.decoder(z), x, 0.5 * kl) + 10 * discrepancy


class VampPrior(Perceptrons):
    """A VampPrior (Tomczak & Welling 2018): the encoder's posteriors at learned inputs."""

    replaced: ClassVar[Mapping[str, Replaced]] = {
        "sample": SAMPLE,
        "kl": Replaced(lambda *t: _mixture_kl(*t), lambda *t: _fused_mixture_kl(*t)),
        "elbo": ELBO,
    }

    def __init__(self, batch: int, data: int, hidden: int, latent: int, components: int) -> None:
        super().__init__(batch, data, hidden, latent)
        self.inputs = nn.Parameter(torch.rand(components, data))

    def forward(self, x: Tensor) -> Tensor:
        mu, logvar = self.encode(x)
        z = self.ops["sample"](mu, logvar)
        kl = self.ops["kl"](z, mu, logvar, *self.encode(self.inputs))
        return self.ops["elbo"](self.decoder(z), x, kl)


def _mixture_kl(z: Tensor, mu: Tensor, logvar: Tensor, means: Tensor, logvars: Tensor) -> Tensor:
    log_q = -0.5 * ((z - mu) ** 2 * torch.exp(-logvar) + logvar + LOG_2PI).sum(1)
    uniform = means.new_full((len(means),), -math.log(len(means)))
    return log_q - bench_mixture_log_prob.textbook(z, means, logvars, uniform)[0]


def _fused_mixture_kl(
    z: Tensor, mu: Tensor, logvar: Tensor, means: Tensor, logvars: Tensor
) -> Tensor:
    return vf.monte_carlo_kl(z, mu, logvar, prior=vf.mixture_log_prob(z, means, logvars))


class IWAE(Perceptrons):
    """An importance-weighted autoencoder (Burda et al. 2016) of K samples, or of `groups` of them
    (Rainforth et al. 2018, MIWAE)."""

    def __init__(
        self, batch: int, data: int, hidden: int, latent: int, samples: int, groups: int = 1
    ) -> None:
        self.samples, self.groups = samples, groups
        super().__init__(batch, data, hidden, latent)

    @property
    def replaced(self) -> Mapping[str, Replaced]:  # type: ignore[override]
        k, groups = self.samples, self.groups
        return {
            "sample": Replaced(
                bench_log_weights.latent(k), bench_log_weights.latent_fused(k), noisy=True
            ),
            "bound": Replaced(
                lambda logits, kl, x: _bound(logits, kl, x, groups),
                lambda logits, kl, x: _fused_bound(logits, kl, x, groups),
            ),
        }

    def forward(self, x: Tensor) -> Tensor:
        z, kl = self.ops["sample"](*self.encode(x))
        return self.ops["bound"](self.decoder(z), kl, x)


def _bound(logits: Tensor, kl: Tensor, x: Tensor, groups: int) -> Tensor:
    repeated = x.expand_as(logits)
    nll = F.binary_cross_entropy_with_logits(logits, repeated, reduction="none").sum(2)
    log_w = (-nll - kl).unflatten(0, (groups, -1))
    return -(torch.logsumexp(log_w, 1) - math.log(log_w.shape[1])).mean()


def _fused_bound(logits: Tensor, kl: Tensor, x: Tensor, groups: int) -> Tensor:
    log_w = -vf.nll(logits, x, "bernoulli", reduction="sample") - kl
    if groups == 1:
        return vf.importance_loss(log_w)
    return vf.importance_loss(log_w, bound="miwae", groups=groups)


class ScVI(Model):
    """scVI (Lopez et al. 2018): counts of genes under a zero-inflated negative binomial."""

    replaced: ClassVar[Mapping[str, Replaced]] = {
        "sample": SAMPLE_KL,
        "nll": Replaced(
            one(bench_nll.zero_inflated), likelihood(vf.ZeroInflatedNegativeBinomial(eps=1e-8))
        ),
    }

    def __init__(self, batch: int, genes: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.shape = (batch, genes)
        self.encoder = nn.Sequential(
            nn.Linear(genes, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * latent),
        )
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.share, self.dropout = nn.Linear(hidden, genes), nn.Linear(hidden, genes)
        self.log_theta = nn.Parameter(torch.randn(genes))

    def data(self, device: torch.device) -> tuple[Tensor, ...]:
        # Nine of ten are 0, as in single cells.
        rate = torch.rand(self.shape, device=device) ** 8
        return (torch.poisson(rate),)

    def forward(self, x: Tensor) -> Tensor:
        mu, logvar = self.encoder(torch.log1p(x)).chunk(2, 1)
        z, kl = self.ops["sample"](mu, logvar)
        h = self.decoder(z)
        mean = torch.softmax(self.share(h), 1) * x.sum(1, keepdim=True)
        nll = self.ops["nll"](mean, self.log_theta.exp(), self.dropout(h), x)
        return nll + kl.mean()


class MultVAE(Model):
    """Mult-VAE (Liang et al. 2018): a user's items under a multinomial. Its last layer is of the
    replaced operations: `linear_nll` takes both."""

    replaced: ClassVar[Mapping[str, Replaced]] = {
        "sample": SAMPLE_KL,
        "head": Replaced(
            lambda h, weight, bias, x: bench_row_nll.multinomial(F.linear(h, weight, bias), x)[0],
            lambda h, weight, bias, x: vf.linear_nll(
                h, weight, bias, x, vf.Multinomial(const=False)
            ),
        ),
    }

    def __init__(self, batch: int, items: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.shape = (batch, items)
        self.encoder = perceptron(items, hidden, 2 * latent)
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU())
        self.last = nn.Linear(hidden, items)

    def data(self, device: torch.device) -> tuple[Tensor, ...]:
        return ((torch.rand(self.shape, device=device) < bench_row_nll.DENSITY).float(),)

    def forward(self, x: Tensor) -> Tensor:
        z, kl = self.ops["sample"](*self.encoder(F.normalize(x)).chunk(2, 1))
        nll = self.ops["head"](self.decoder(z), self.last.weight, self.last.bias, x)
        return nll + 0.2 * kl.mean()
