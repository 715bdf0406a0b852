"""KL >= 0, ELBO <= log p(x), and what is in the gap."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

import vaefast as vf

from ..report import page
from ..report.draw import SERIES, chart, dash, svg
from .claim import Claim, judge, listed
from .context import Context
from .models import Autoencoder


def run(context: Context) -> Claim:
    """ELBO, IWAE and log p(x) on the test digits, and the gap's two parts."""
    model, x = context.model("vae"), context.digits.test.x
    most = context.samples
    ladder = [k for k in (1, 5, 50, 500, 5000) if k <= most]
    seed = context.seed_of("bounds")
    kept: list[Tensor] = []

    def weigh(data: Tensor, count: int) -> Tensor:
        log_w = model.log_weights(data, count, seed=seed + len(kept))
        kept.append(log_w.double())
        return log_w

    marginal = vf.log_marginal(weigh, x, num_samples=most, chunk=50, return_error=True)
    log_w = torch.cat(kept)
    bounds = {k: _iwae(log_w, k) for k in ladder}
    kl = vf.gaussian_kl(*model.posterior(x), reduction="none")
    elbo, log_p = bounds[1], marginal.estimate
    above = int((elbo > log_p + 2 * marginal.standard_error).sum())
    own = _own_elbo(model, x, seed, steps=60 if context.quick else 300)
    gap = float((log_p - elbo).mean())
    encoder = float((own - elbo).mean())
    means = {k: float(value.mean()) for k, value in bounds.items()}
    rises = all(means[a] <= means[b] for a, b in itertools.pairwise(ladder))
    positive = float(kl.min()) >= 0
    bits = {k: -value / (64 * math.log(2)) for k, value in means.items()}
    closed = {k: (means[k] - means[1]) / gap for k in ladder[1:]}
    numbers = {
        "kl": {
            "mean_per_digit": float(kl.sum(1).mean()),
            "least_of_a_digit": float(kl.sum(1).min()),
            "least_of_a_dimension": float(kl.min()),
        },
        "bounds_in_nats": {str(k): v for k, v in means.items()},
        "bits_per_dimension": {str(k): v for k, v in bits.items()},
        "standard_error_of_log_p": float(marginal.standard_error.square().sum().sqrt() / len(x)),
        "least_effective_samples": float(marginal.effective_samples.min()),
        "digits_with_elbo_above_log_p": above,
        "gap": gap,
        "gap_of_the_encoder": encoder,
        "gap_of_the_family": gap - encoder,
        "share_of_gap_closed": {str(k): v for k, v in closed.items()},
    }
    steps = listed([f"{closed[k]:.0%} with K = {k:,}" for k in ladder[1:]])
    larger = "the encoder's" if encoder > gap - encoder else "the Gaussian family's"
    return Claim(
        "A bound on log p(x)",
        "KL >= 0 and ELBO <= log p(x); more samples close the gap.",
        judge([positive, above == 0, rises]),
        f"The least KL of a dimension of a digit is {float(kl.min()):.1e} nats. In nats per digit "
        f"the ELBO is {means[1]:.2f}, and "
        + listed([f"IWAE with K = {k:,} {means[k]:.2f}" for k in ladder[1:]])
        + (
            "."
            if above == 0
            else f"; {above} of {len(x)} digits have an ELBO above their estimate of log p(x)."
        ),
        numbers,
        [
            page.paragraph(
                f"All bounds come from the same {most:,} samples of q(z|x) for each of {len(x)} "
                f"test digits, and the last is the estimate of log p(x) (standard error "
                f"{numbers['standard_error_of_log_p']:.2f} nats; it too is a bound from below). "
                f"The ELBO is {gap:.2f} nats below it: that is KL(q(z|x) || p(z|x)). Of this gap, "
                f"more samples close {steps}. Where each digit is given the best mu and logvar "
                f"that gradient steps find for it alone, in place of the encoder's, the ELBO "
                f"rises by {encoder:.2f} nats: the encoder's own gap, as one network serves all "
                f"digits. The other {gap - encoder:.2f} are there because the true posterior is "
                f"no diagonal Gaussian. The larger part is {larger}."
            ),
            page.grid(
                [
                    page.figure(
                        _ladder(bounds, float(own.mean())),
                        "Bounds by the number of samples K, in nats per digit; the ELBO is K = 1.",
                    ),
                    page.figure(
                        _parts(encoder, gap - encoder),
                        "log p(x) - ELBO in its two parts, in nats per digit.",
                    ),
                ]
            ),
            page.table(
                ["", "nats per digit", "bits per dimension", "of the gap closed"],
                [
                    [
                        "ELBO" if k == 1 else f"IWAE, K = {k:,}",
                        f"{means[k]:.2f}",
                        f"{bits[k]:.4f}",
                        "–" if k == 1 else f"{closed[k]:.0%}",
                    ]
                    for k in ladder
                ],
                "Bounds on the test digits, as probabilities of their 17 levels",
            ),
        ],
    )


def _iwae(log_w: Tensor, k: int) -> Tensor:
    """The mean of IWAE's bound over groups of k of the samples `[K, N]`, `[N]`."""
    groups = log_w.unflatten(0, (-1, k))
    bound: Tensor = (groups.logsumexp(1) - math.log(k)).mean(0)
    return bound


def _own_elbo(model: Autoencoder, x: Tensor, seed: int, steps: int) -> Tensor:
    """The ELBO `[N]` with a mu and a logvar of each digit's own, climbed to from the encoder's
    (Cremer, Li & Duvenaud 2018, "Inference Suboptimality in Variational Autoencoders")."""
    mu, logvar = (value.clone().requires_grad_() for value in model.posterior(x))
    adam = torch.optim.Adam([mu, logvar], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for step in range(steps):
        z, kl = vf.sample_kl(mu, logvar, num_samples=8, seed=seed + step)
        loss = (kl - model.log_mass(z, x)).mean(0).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    with torch.no_grad():
        # Samples that the steps did not see.
        z, kl = vf.sample_kl(mu, logvar, num_samples=500, seed=seed + steps)
        return (model.log_mass(z, x) - kl).double().mean(0)


def _ladder(bounds: dict[int, Tensor], own: float) -> page.Html:
    figure, axes = chart()
    means = [float(value.mean()) for value in bounds.values()]
    axes.plot(list(bounds), means, "o-", color=SERIES[0], label="ELBO and IWAE")
    axes.axhline(own, color=SERIES[1], linestyle=dash(1), label="ELBO, best q of each digit")
    axes.set_xscale("log")
    axes.set_xticks(list(bounds), [f"{k:,}" for k in bounds])
    axes.minorticks_off()
    axes.set(xlabel="samples K", ylabel="nats per digit")
    axes.legend()
    ends = f"from {means[0]:.2f} at K = 1 to {means[-1]:.2f} at K = {list(bounds)[-1]:,}"
    return svg(figure, f"The bounds rise {ends}; with its own q per digit the ELBO is {own:.2f}")


def _parts(encoder: float, family: float) -> page.Html:
    figure, axes = chart()
    bars = axes.barh(["Gaussian family", "encoder"], [family, encoder], color=SERIES[:2])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.margins(x=0.15)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="nats per digit")
    return svg(figure, f"The encoder's own gap {encoder:.2f}, the family's {family:.2f} nats")
