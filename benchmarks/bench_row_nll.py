"""Likelihoods with a class dimension: Mult-VAE's items, 256-way pixels, PixelCNN++'s mixture."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical

import vaefast as vf
from vaefast.likelihoods import Likelihood

from .case import BOTH, Formula, Inputs, OpCase, Shape, fused_backends, leaf

# Of a recommender's counts this share is not 0.
DENSITY = 0.01


def multinomial(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    return (-(F.log_softmax(logits, -1) * x).sum(-1).mean(),)


def multinomial_sparse(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    return multinomial(logits, x.to_dense())


def categorical(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    return (F.cross_entropy(logits, x, reduction="sum") / len(x),)


def categorical_written_out(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    log_p = F.log_softmax(logits, 1)
    return (-log_p.gather(1, x.unsqueeze(1)).sum() / len(x),)


def categorical_distribution(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    last = logits.movedim(1, -1)
    return (-TorchCategorical(logits=last, validate_args=False).log_prob(x).sum() / len(x),)


def mixture(packed: Tensor, x: Tensor) -> tuple[Tensor]:
    """`discretized_mix_logistic_loss` of PixelCNN++ (Salimans et al. 2017), as its ports have it:
    params [B, 100, H, W], x [B, 3, H, W] in [-1, 1]."""
    last, x = packed.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    count = last.shape[-1] // 10
    logits = last[..., :count]
    groups = last[..., count:].reshape(*x.shape, 3 * count)
    means, coefficients = groups[..., :count], torch.tanh(groups[..., 2 * count :])
    log_scales = groups[..., count : 2 * count].clamp(min=-7.0)
    x = x.unsqueeze(-1) + torch.zeros_like(means)
    m2 = means[..., 1, :] + coefficients[..., 0, :] * x[..., 0, :]
    m3 = (
        means[..., 2, :]
        + coefficients[..., 1, :] * x[..., 0, :]
        + coefficients[..., 2, :] * x[..., 1, :]
    )
    means = torch.stack([means[..., 0, :], m2, m3], -2)
    centered, inverse = x - means, torch.exp(-log_scales)
    plus, minus = inverse * (centered + 1 / 255), inverse * (centered - 1 / 255)
    delta = torch.sigmoid(plus) - torch.sigmoid(minus)
    middle = inverse * centered
    log_pdf = middle - log_scales - 2 * F.softplus(middle)
    inner = torch.where(delta > 1e-5, torch.log(delta.clamp(min=1e-12)), log_pdf - math.log(127.5))
    edge = torch.where(x > 0.999, -F.softplus(minus), inner)
    log_p = torch.where(x < -0.999, plus - F.softplus(plus), edge)
    total = log_p.sum(-2) + F.log_softmax(logits, -1)
    return (-torch.logsumexp(total, -1).sum() / len(x),)


def counts(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    chosen = torch.rand(shape, device=device) < DENSITY
    return torch.randn(shape, device=device), chosen * torch.randint(
        1, 6, shape, device=device
    ).float()


def sparse_counts(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    logits, x = counts(shape, device)
    return logits, x.to_sparse_csr()


def classes(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    inside = (shape[0], *shape[2:])
    return torch.randn(shape, device=device), torch.randint(0, shape[1], inside, device=device)


def pixels(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    packed = 0.5 * torch.randn(shape, device=device)
    groups = packed[:, shape[1] // 10 :].unflatten(1, (3, 3, -1))
    # Log-scales as a trained model has them.
    groups[:, :, 1].sub_(2)
    return packed, vf.DiscretizedLogisticMixture().sample(packed)


class CheckedWide(OpCase):
    """Whose eager formula is right in float64 alone: it takes differences of sigmoids."""

    def check(self, inputs: Inputs, device: torch.device) -> None:
        wide = Inputs(
            tuple(leaf(t.double()) for t in inputs.leaves),
            tuple(t.double() for t in inputs.constants),
            inputs.upstream,
        )
        run, _ = self.call("eager", BOTH, wide)
        expected = [t for group in run() for t in group]
        for name in fused_backends(device):
            run, backend = self.call(name, BOTH, inputs)
            with vf.backend(backend):
                found = [t for group in run() for t in group]
            for value, want in zip(found, expected, strict=True):
                bound = 1e-5 * float(want.detach().abs().max())
                torch.testing.assert_close(value.double(), want, rtol=1e-3, atol=bound)


def case(
    variant: str,
    model: Likelihood,
    shape: Shape,
    small: Shape,
    formulas: dict[str, Formula],
    example: Callable[[Shape, torch.device], tuple[Tensor, Tensor]],
    **targets: float,
) -> OpCase:
    def fused(params: Tensor, target: Tensor) -> tuple[Tensor]:
        return (vf.nll(params, target, model),)

    def inputs(shape: Shape, device: torch.device) -> Inputs:
        params, target = example(shape, device)
        return Inputs((leaf(params),), (target,), (None,))

    kind = CheckedWide if formulas["eager"] is mixture else OpCase
    return kind("nll", shape, inputs, formulas, fused, variant, targets=targets, small_shape=small)


def cases() -> list[OpCase]:
    items, pictures, packed = (512, 20000), (32, 256, 3, 32, 32), (16, 100, 32, 32)
    mult = vf.Multinomial(const=False)
    return [
        case(
            "multinomial",
            mult,
            items,
            (5, 41),
            {"eager": multinomial},
            counts,
            eager=8,
            compiled=3,
        ),
        case(
            "multinomial sparse",
            mult,
            items,
            (5, 41),
            {"eager": multinomial_sparse},
            sparse_counts,
            eager=8,
            compiled=3,
        ),
        case(
            "categorical",
            vf.Categorical(),
            pictures,
            (2, 7, 3, 4, 5),
            {
                "eager": categorical_written_out,
                "functional": categorical,
                "distributions": categorical_distribution,
            },
            classes,
            eager=8,
            compiled=3.5,
        ),
        case(
            "discretized_logistic_mixture",
            vf.DiscretizedLogisticMixture(),
            packed,
            (2, 100, 3, 5),
            {"eager": mixture},
            pixels,
            eager=12,
            compiled=8,
        ),
    ]


def test_row_nll(measure: Callable[[], None]) -> None:
    measure()
