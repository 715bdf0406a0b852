"""Maximum likelihood for a coin: 400 heads in 1,000 throws."""

from __future__ import annotations

import math

import torch

import vaefast as vf

from ..report import page
from ..report.draw import INK, SERIES, chart, svg
from .claim import Claim
from .context import Context

HEADS, THROWS = 400, 1000
# Half the 95% quantile of chi^2 with one degree of freedom: how far below its top the
# log-likelihood is at the ends of the 95% interval.
_DROP = 1.9207


def run(context: Context) -> Claim:
    """The log-likelihood's curve, its top on a grid, and what gradient steps find."""
    throws = torch.zeros(THROWS, dtype=torch.float64)
    throws[:HEADS] = 1.0
    grid = torch.linspace(0.3, 0.5, 2001, dtype=torch.float64)
    curve = torch.stack([_log_likelihood(torch.logit(theta), throws) for theta in grid])
    top = float(grid[curve.argmax()])
    inside = grid[curve >= curve.max() - _DROP]
    low, high = float(inside[0]), float(inside[-1])
    found, steps = _climb(throws)
    fair = float(_log_likelihood(torch.zeros((), dtype=torch.float64), throws))
    best = float(curve.max())
    numbers = {
        "heads": HEADS,
        "throws": THROWS,
        "top_of_grid": top,
        "found_by_gradient": found,
        "gradient_steps": steps,
        "log_likelihood_at_top": best,
        "log_likelihood_of_fair_coin": fair,
        "interval_95": [low, high],
    }
    share = HEADS / THROWS
    holds = abs(top - share) < 1e-4 and abs(found - share) < 1e-4
    figure, axes = chart()
    axes.plot(grid, curve, color=SERIES[0])
    axes.axvspan(low, high, color=SERIES[0], alpha=0.12, linewidth=0)
    axes.plot([top], [best], "o", color=SERIES[1])
    axes.annotate(
        f"top at {top:.3f}", (top, best), xytext=(0, -32), textcoords="offset points", ha="center",
        color=INK,
    )  # fmt: skip
    axes.set(xlabel="probability of heads, theta", ylabel="log-likelihood (nats)")
    axes.set_ylim(best - 22, best + 2)
    inside_text = "lies inside" if low <= 0.5 <= high else "lies outside"
    return Claim(
        "The likelihood of a coin",
        "The parameter that makes the data most probable is the share of heads.",
        holds,
        f"{HEADS} heads in {THROWS} throws: the log-likelihood is greatest at theta = {top:.3f}, "
        f"and gradient steps on its logit reach {found:.4f}.",
        numbers,
        [
            page.paragraph(
                f"The curve has one top, {best:.1f} nats high; a fair coin is {best - fair:.1f} "
                f"nats below it, that is, it makes these throws e^{best - fair:.1f} times less "
                f"probable. Within {_DROP:.2f} nats of the top, the shaded 95% interval, theta "
                f"goes from {low:.3f} to {high:.3f}; the fair coin {inside_text}. A VAE is trained "
                "by the same principle: its parameters are moved to where the data are most "
                "probable. For the coin the sum can be written down; for a VAE it is an integral "
                "over z, which is why a bound takes its place below."
            ),
            page.grid(
                [
                    page.figure(
                        svg(figure, f"Log-likelihood by theta, one top at {top:.3f}"),
                        f"The log-likelihood of {HEADS} heads in {THROWS} throws.",
                    )
                ]
            ),
        ],
    )


def _log_likelihood(logit: torch.Tensor, throws: torch.Tensor) -> torch.Tensor:
    return -vf.nll(logit.expand_as(throws), throws, "bernoulli", reduction="sum")


def _climb(throws: torch.Tensor) -> tuple[float, int]:
    """Gradient steps from the fair coin until they are short: theta, and how many."""
    logit = torch.zeros((), dtype=torch.float64, requires_grad=True)
    step, move = 0, math.inf
    while abs(move) > 1e-9 and step < 1000:
        (slope,) = torch.autograd.grad(_log_likelihood(logit, throws), logit)
        step, move = step + 1, 2.0 * float(slope) / len(throws)
        logit = (logit.detach() + move).requires_grad_()
    return float(torch.sigmoid(logit.detach())), step
