"""The checks of parameters of any size, for every backend, and for Triton's interpreter."""

from __future__ import annotations

import itertools

import extremes
import torch
from likelihood_cases import LikelihoodCase
from torch import Tensor

import vaefast as vf

SPREADS = [0.0, -30.0, 30.0, -88.8, -98.0, -150.0, -174.0, -250.0, 300.0, -1e30, 1e30]
MEANS = [(0.0, 0.0), (1.0, 1.0), (1e-25, 0.0), (-3.0, 0.5), (1e30, 1e30), (-extremes.HUGE, 0.0)]


def rounded(rows: list[tuple[float, ...]]) -> tuple[list[tuple[float, ...]], list[Tensor]]:
    """The rows as float32 holds them, and their columns as tensors [rows, 1]."""
    columns = torch.tensor(rows, dtype=torch.float64).float().T.contiguous()
    return [tuple(r) for r in columns.T.double().tolist()], [c[:, None] for c in columns]


def likelihood(device: str, case: LikelihoodCase, ulps: float) -> None:
    rows, (x, *theta) = rounded(extremes.points(case.form, case.count))
    if case.form == "discretized_logistic":
        if case.settings:
            # The truth is of 8 bits on [-1, 1].
            return
        x = x.to(torch.uint8)
    theta = [t.to(device).requires_grad_() for t in theta]
    x = x.to(device)
    for scalar in extremes.POSITIVE if case.scalar is not None else [None]:
        leaf = None if scalar is None else torch.tensor(scalar).requires_grad_()
        model = case.build(leaf)
        loss = vf.nll(tuple(theta), x, model, reduction="none")
        grads = torch.autograd.grad(loss.sum(), theta)
        if leaf is not None:
            # One number for all: its derivative is summed.
            each = [
                torch.autograd.grad(vf.nll(theta[0][i : i + 1], x[i : i + 1], model), leaf)[0]
                for i in range(len(x))
            ]
            grads = (*grads, torch.stack(each)[:, None])
        got = [t.flatten() for t in (loss, *grads)]
        truth = extremes.TRUTHS.get(case.form)
        if truth is not None and leaf is not None:
            given = [(*row, float(leaf.detach())) for row in rows]
            extremes.check(got, truth, given, ulps)
        elif truth is not None and (not case.settings or case.count == len(theta)):
            if case.form.endswith("_fixed"):
                continue
            extremes.check(got, truth, rows, ulps)
        for t in got:
            assert not torch.isnan(t).any()


def kl(device: str) -> None:
    """KL(q || q) is 0 at any variance, and no term of it is 0 times infinity."""
    rows = [(m, a, p, b) for (m, p), a, b in itertools.product(MEANS, SPREADS, SPREADS)]
    rows, columns = rounded(rows)
    leaves = [c.to(device).requires_grad_() for c in columns]
    for joint in (False, True):
        if joint:
            _, value = vf.sample_kl(*leaves[:2], prior_mu=leaves[2], prior_scale=leaves[3], seed=0)
        else:
            value = vf.gaussian_kl(*leaves, reduction="none")
        grads = torch.autograd.grad(value.sum(), leaves)
        extremes.check([t.flatten() for t in (value, *grads)], extremes.kl, rows, 64)


def monte_carlo_kl(device: str, autograd: bool) -> None:
    places = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1e-25, 0.0, 0.0), (0.5, 0.3, -2.0)]
    places += [(1e30, 0.0, 0.0), (1.0, 1.0, 0.0)]
    rows = [(z, m, a, p, b) for (z, m, p), a, b in itertools.product(places, SPREADS, SPREADS)]
    rows, columns = rounded(rows)
    leaves = [c.to(device).requires_grad_() for c in columns]
    z, mu, scale, prior_mu, prior_scale = leaves
    kl = vf.monte_carlo_kl(z, mu, scale, prior=(prior_mu, prior_scale), reduction="sample")
    grads = torch.autograd.grad(kl.sum(), leaves)
    want, _ = extremes.table(extremes.monte_carlo_kl, tuple(rows))
    # The difference of two infinite gradients has no sign to be right about.
    kept = (want.abs() < 1e30).all(1)
    assert kept.sum() > 100
    got = [t.flatten().cpu()[kept] for t in (kl, *grads)]
    chosen = [row for row, keep in zip(rows, kept.tolist(), strict=True) if keep]
    extremes.check(got, extremes.monte_carlo_kl, chosen, 64)
    # Autograd adds up z's gradients of two densities, each of which may be infinite.
    assert not any(torch.isnan(t).any() for t in (kl, *grads[autograd:]))


def sampled_kl(device: str, stop: bool) -> None:
    """log q - log p at q's own sample: where the two are one density it is 0 at any variance."""
    logvars = torch.tensor([0.0, -30.0, -80.0, -90.0, -120.0, -160.0])[:, None]
    eps = torch.tensor([[0.7], [-1.3], [0.0], [2.0], [-0.1], [1.0]])
    device = device
    mu, prior_mu = (torch.zeros(6, 1, device=device).requires_grad_() for _ in range(2))
    scale, prior_scale = (logvars.to(device).clone().requires_grad_() for _ in range(2))
    _, kl = vf.sample_kl(
        mu,
        scale,
        prior_mu=prior_mu,
        prior_scale=prior_scale,
        estimator="monte_carlo",
        noise=eps.to(device),
        stop_posterior=stop,
    )
    torch.testing.assert_close(kl.cpu(), torch.zeros(6), atol=2e-5, rtol=0)
    to_scale, to_prior = torch.autograd.grad(kl.sum(), [scale, prior_scale])
    want = 0.5 * (eps**2 - 1)
    # z's own gradient is 0 beside the other, but for rounding.
    torch.testing.assert_close(to_scale.cpu(), 0 * want if stop else want, atol=2e-5, rtol=0)
    torch.testing.assert_close(to_prior.cpu(), -want, atol=2e-5, rtol=0)


def pairs(device: str) -> None:
    """A component without width at its own centre is finite, value and gradient."""
    for logvar in (-100.0, -177.0, -200.0, -1000.0):
        z = torch.tensor([[0.5, -1.0], [0.25, 2.0]], device=device).requires_grad_()
        mu = z.detach().clone().requires_grad_()
        scale = torch.full((2, 2), logvar, device=device).requires_grad_()
        value = vf.mixture_log_prob(z, mu, scale)
        assert torch.isfinite(value).all()
        for t in torch.autograd.grad(value.sum(), [z, mu, scale]):
            assert not torch.isnan(t).any()
        terms = vf.tc_terms(z, mu, scale, dataset_size=10)
        for term in terms:
            assert torch.isfinite(term).all()
        for t in torch.autograd.grad(sum(t.sum() for t in terms), [z, mu, scale]):
            assert not torch.isnan(t).any()
