"""What a mask leaves out has no influence, whatever it is: NaN, infinity, a label that is none."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable

import cases
import likelihood_cases
import pytest
import torch
from conftest import Target
from torch import Tensor

import vaefast as vf

BAD = (math.nan, math.inf, -math.inf)
REDUCTIONS = ("none", "sample", "batchmean", "sum", "mean")
Losses = Callable[[dict[str, Tensor]], Tensor]


def _spoilt(value: Tensor, hidden: Tensor, bad: float) -> Tensor:
    """`value` with `bad` wherever all that it stands for is hidden; broadcast from the right."""
    if not value.is_floating_point():
        return torch.where(hidden, torch.full_like(value, -100), value)
    return torch.where(hidden.expand(value.shape), bad, value)


def _everywhere_hidden(mask: Tensor, shape: torch.Size, full: tuple[int, ...]) -> Tensor:
    """Where a tensor of `shape`, broadcast to `full`, enters hidden elements alone."""
    hidden = ~mask.expand(full)
    wide = (1,) * (len(full) - len(shape)) + tuple(shape)
    for dim, size in enumerate(wide):
        if size == 1:
            hidden = hidden.all(dim, keepdim=True)
    return hidden.view(shape)


def _compare(
    loss: Losses, leaves: dict[str, Tensor], hidden: dict[str, Tensor], per_element: Tensor | None
) -> None:
    """The loss and all gradients are the same with every hidden value spoilt, and those of hidden
    values are 0. `per_element`: where the loss itself is hidden.

    The same but for the last bit: which of two ways a tile of counts goes depends on how many of
    them are 0.
    """
    clean = _run(loss, leaves, {}, None)
    for bad in BAD:
        spoilt = _run(loss, leaves, hidden, bad, per_element)
        for name, a, b in zip(["loss", *leaves], clean, spoilt, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6, msg=f"{name} under {bad}")
        for name, grad in zip(leaves, spoilt[1:], strict=True):
            if name in hidden:
                assert not grad[hidden[name].expand(grad.shape)].any(), f"{name} under {bad}"


def _run(
    loss: Losses,
    leaves: dict[str, Tensor],
    hidden: dict[str, Tensor],
    bad: float | None,
    per_element: Tensor | None = None,
) -> list[Tensor]:
    given = {
        k: (v if bad is None or k not in hidden else _spoilt(v, hidden[k], bad)).detach().clone()
        for k, v in leaves.items()
    }
    wanted = [k for k, v in given.items() if v.is_floating_point() and k not in CONSTANT]
    for k in wanted:
        given[k].requires_grad_()
    value = loss(given)
    upstream = torch.linspace(0.5, 2.0, value.numel(), device=value.device).view(value.shape)
    upstream = upstream.to(value.dtype)
    if bad is not None and per_element is not None:
        upstream = torch.where(per_element, bad, upstream)
    grads = torch.autograd.grad(value, [given[k] for k in wanted], upstream, allow_unused=True)
    found = dict(zip(wanted, grads, strict=True))
    every = [found.get(k) for k in leaves]
    zeros = [torch.zeros_like(leaves[k]) for k in leaves]
    return [value.detach(), *(z if g is None else g for z, g in zip(zeros, every, strict=True))]


CONSTANT = {"target", "weight", "mask"}
MASKS = {
    "elements": (4, 5),
    "samples": (4,),
    "columns": (5,),
    "rows": (4, 1),
}


def _mask(kind: str, device: str) -> Tensor:
    rng = random.Random(kind)
    mask = cases.uniform(MASKS[kind], rng) < 0.6
    mask.view(-1)[0] = True
    mask.view(-1)[-1] = False
    return mask.to(device)


def _aligned(mask: Tensor) -> Tensor:
    return mask.view(-1, 1) if mask.shape == (4,) else mask


def _loss_hidden(mask: Tensor, reduction: str, lead: tuple[int, ...]) -> Tensor | None:
    """Where the loss consists of hidden elements alone."""
    hidden = ~_aligned(mask).expand(4, 5)
    if reduction == "none":
        return hidden.expand(*lead, 4, 5)
    return hidden.all(1).expand(*lead, 4) if reduction == "sample" else None


@pytest.mark.each(3)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("case", likelihood_cases.ALL, ids=str)
def test_every_likelihood(
    backend: Target, case: likelihood_cases.LikelihoodCase, kind: str
) -> None:
    check_likelihood(backend, case, kind, itertools.product(REDUCTIONS, (None, 2)))


def check_likelihood(
    backend: Target,
    case: likelihood_cases.LikelihoodCase,
    kind: str,
    settings: Iterable[tuple[str, int | None]],
) -> None:
    """Under each reduction and number of samples."""
    mask = _mask(kind, backend.device)
    wide = _aligned(mask)
    for reduction, samples in settings:
        rng = random.Random(0)
        lead = () if samples is None else (samples,)
        full = (*lead, 4, 5)
        scalar = case.scalar
        given = {
            f"params{i}": p.float().to(backend.device) for i, p in enumerate(case.params(full, rng))
        }
        leaves = {
            **given,
            "target": case.target((4, 5), rng).float().to(backend.device),
            "weight": cases.uniform((4, 5), rng).float().to(backend.device),
        }
        if scalar is not None:
            leaves["scalar"] = scalar.float().to(backend.device)

        def loss(t: dict[str, Tensor], reduction: str = reduction, n: int = len(given)) -> Tensor:
            params = tuple(t[f"params{i}"] for i in range(n))
            return vf.nll(
                params,
                t["target"],
                case.build(t.get("scalar")),
                mask=mask,
                weight=t["weight"],
                reduction=reduction,
                validate=True,
            )

        hidden = {
            k: _everywhere_hidden(wide, v.shape, full) for k, v in leaves.items() if k != "scalar"
        }
        _compare(loss, leaves, hidden, _loss_hidden(mask, reduction, lead))


@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", MASKS)
def test_an_optimal_std(backend: Target, kind: str, reduction: str, lead: tuple[int, ...]) -> None:
    rng = random.Random(0)
    mask = _mask(kind, backend.device)
    leaves = {
        "mean": cases.normal((*lead, 4, 5), rng).float().to(backend.device),
        "target": cases.normal((4, 5), rng).float().to(backend.device),
        "weight": cases.uniform((4, 5), rng).float().to(backend.device),
    }

    def loss(t: dict[str, Tensor]) -> Tensor:
        given = t["mean"], t["target"], vf.Gaussian(std="optimal")
        return vf.nll(*given, mask=mask, weight=t["weight"], reduction=reduction)

    wide = _aligned(mask)
    hidden = {k: _everywhere_hidden(wide, v.shape, (*lead, 4, 5)) for k, v in leaves.items()}
    _compare(loss, leaves, hidden, _loss_hidden(mask, reduction, lead))


@pytest.mark.each(3)
@pytest.mark.parametrize("reduction", [*REDUCTIONS, "dim"])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("param", cases.PARAMS)
def test_the_kl(backend: Target, kind: str, param: str, reduction: str) -> None:
    rng = random.Random(0)
    mask = _mask(kind, backend.device)
    wide = _aligned(mask)
    device = backend.device

    def values(*shape: int) -> Tensor:
        return cases.normal(shape, rng).float().to(device)

    leaves = {
        "mu": values(4, 5),
        "scale": cases.scale_values(param, values(4, 5)),
        "prior_mu": values(5),
        "prior_scale": cases.scale_values(param, values(4, 5)),
        "weight": values(4, 5).abs(),
    }
    hidden = {k: _everywhere_hidden(wide, v.shape, (4, 5)) for k, v in leaves.items()}

    def kl(t: dict[str, Tensor]) -> Tensor:
        return vf.gaussian_kl(**t, mask=mask, param=param, reduction=reduction)

    def standard(t: dict[str, Tensor]) -> Tensor:
        return vf.sample_kl(
            t["mu"], t["scale"], weight=t["weight"], mask=mask, param=param, reduction=reduction
        )[1]

    per_element = _loss_hidden(mask, reduction, ())
    if reduction == "dim":
        per_element = ~wide.expand(4, 5).any(0)
    _compare(kl, leaves, hidden, per_element)
    own = {k: v for k, v in leaves.items() if not k.startswith("prior")}
    _compare(standard, own, {k: hidden[k] for k in own}, per_element)


ROW_MODELS = {
    "categorical": vf.Categorical(),
    "categorical last": vf.Categorical(dim=-1),
    "multinomial": vf.Multinomial(),
    "multinomial sparse": vf.Multinomial(),
    "mixture": vf.DiscretizedLogisticMixture(mixtures=2),
    "grey mixture": vf.DiscretizedLogisticMixture(channels=1, mixtures=2),
}


@pytest.mark.parametrize("name", ROW_MODELS)
def test_every_likelihood_with_classes(backend: Target, name: str) -> None:
    check_classes(backend, name, itertools.product(REDUCTIONS, (None, 2)))


def check_classes(backend: Target, name: str, settings: Iterable[tuple[str, int | None]]) -> None:
    """Under each reduction and number of samples."""
    model, device = ROW_MODELS[name], backend.device
    rng = random.Random(0)
    last = name == "categorical last" or "multinomial" in name
    positions = (4,) if "multinomial" in name else (4, 5)
    classes = getattr(model, "size", 6)
    mask = torch.tensor([True, False, True, False], device=device)
    if len(positions) == 2 and not name.startswith("grey"):
        mask = _mask("elements", device)
    per_position = mask.view(*mask.shape, *[1] * (len(positions) - mask.dim())).expand(positions)
    if name.startswith("categorical"):
        target = (cases.uniform(positions, rng) * classes).long()
    elif "multinomial" in name:
        target = torch.floor(3 * cases.uniform((*positions, classes), rng)).float()
    else:
        target = (2 * cases.uniform((4, model.channels, 5), rng) - 1).float()
    over_target = (
        ~per_position
        if name.startswith("categorical")
        else ~per_position.unsqueeze(-1 if "multinomial" in name else 1)
    ).expand(target.shape)
    for reduction, samples in settings:
        lead = () if samples is None else (samples,)
        shape = (*positions, classes) if last else (4, classes, *positions[1:])
        at = -1 if last else len(lead) + 1
        leaves = {
            "params": cases.normal((*lead, *shape), rng).float().to(device),
            "target": target.to(device),
            "weight": cases.uniform(positions, rng).float().to(device),
        }
        hidden = {
            "params": ~per_position.expand(*lead, *positions).unsqueeze(at),
            "target": over_target,
            "weight": ~per_position,
        }

        def loss(t: dict[str, Tensor], reduction: str = reduction) -> Tensor:
            x = t["target"].to_sparse_csr() if "sparse" in name else t["target"]
            return vf.nll(
                t["params"],
                x,
                model,
                mask=mask,
                weight=t["weight"],
                reduction=reduction,
                validate=True,
            )

        whole = (~per_position).expand(*lead, *positions)
        per_element = whole if reduction == "none" else None
        if reduction == "sample":
            per_element = whole.flatten(len(lead) + 1).all(-1) if len(positions) > 1 else whole
        _compare(loss, leaves, hidden, per_element)


@pytest.mark.parametrize("kind", ["elements", "samples"])
@pytest.mark.parametrize("name", ["gaussian", "negative_binomial", "poisson", "multinomial"])
def test_linear_nll(backend: Target, name: str, kind: str) -> None:
    rng = random.Random(0)
    device = backend.device
    model = vf.likelihoods.resolve(name)
    rows = name == "multinomial"
    heads = 1 if rows else model.fewest_params()
    mask = _mask("samples" if rows else kind, device)
    elements = (4,) if rows else (4, 5)
    for reduction, samples in itertools.product(("sample", "batchmean", "mean"), (None, 2)):
        lead = () if samples is None else (samples,)
        leaves = {
            "h": cases.normal((*lead, 4, 3), rng).float().to(device),
            "target": torch.floor(4 * cases.uniform((4, 5), rng)).float().to(device),
            "weight": cases.uniform(elements, rng).float().to(device),
            **{f"w{j}": cases.normal((5, 3), rng, 0.3).float().to(device) for j in range(heads)},
            **{f"b{j}": cases.normal((5,), rng, 0.3).float().to(device) for j in range(heads)},
        }
        wide = _aligned(mask).expand(4, 5)
        whole = ~wide.any(1)
        hidden = {
            "h": whole.view(4, 1).expand(*lead, 4, 3),
            "target": ~wide,
            "weight": whole if rows else ~wide,
        }

        def loss(t: dict[str, Tensor], reduction: str = reduction, n: int = heads) -> Tensor:
            return vf.linear_nll(
                t["h"],
                [t[f"w{j}"] for j in range(n)],
                [t[f"b{j}"] for j in range(n)],
                t["target"],
                model,
                mask=mask,
                sample_weight=t["weight"],
                reduction=reduction,
                validate=True,
            )

        _compare(loss, leaves, hidden, whole.expand(*lead, 4) if reduction == "sample" else None)


def test_the_missing_data_job(backend: Target) -> None:
    """A loss module validates what it computes with: no padding label, no NaN where data miss."""
    device = backend.device
    x = torch.rand(4, 5, device=device)
    mask = _mask("elements", device)
    x[~mask] = math.nan
    logits, mu = torch.randn(4, 5, device=device), torch.randn(4, 2, device=device)
    for loss in (
        vf.nn.NLL("bernoulli")(logits, x, mask=mask),
        vf.nn.ELBOLoss("bernoulli")(logits, x, mu, mu, mask=mask).loss,
        vf.nn.ImportanceLoss("bernoulli")(
            logits.expand(3, 4, 5), x, mu.expand(3, 4, 2), mu, mu, mask=mask
        ),
        vf.nn.LinearNLL(2, 5, "gaussian").to(device)(mu, x, mask=mask),
    ):
        assert loss.isfinite()
    labels = torch.tensor([2, -100, 0, 1], device=device)
    loss = vf.nn.NLL("categorical")(torch.randn(4, 3, device=device), labels, mask=labels >= 0)
    assert loss.isfinite()
    with pytest.raises(ValueError, match="1 of 4 elements, for example -100"):
        vf.nn.NLL("categorical")(torch.randn(4, 3, device=device), labels)
