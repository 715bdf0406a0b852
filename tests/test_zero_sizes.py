"""Nothing of anything: every dimension of every operator and likelihood at 0, forward and
backward."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import likelihood_cases
import pytest
import torch
from conftest import Target
from operator_calls import Sizes, calls, operators
from torch import Tensor

import vaefast as vf

OPERATORS = sorted(operators())
# What is left where a dimension is 0 and the result is neither empty nor finite: a mixture of no
# components has density 0 everywhere.
NOT_FINITE = {("mixture_log_prob", "components"): -math.inf}
# What an operator needs some of.
REFUSED = {
    ("importance_loss", "samples"): "K at least 1",
    ("annealed_log_weights", "samples"): None,
    ("mmd", "batch"): "at least",
    ("mmd", "components"): "at least",
}


@pytest.mark.each(3)
@pytest.mark.parametrize("dim", Sizes._fields)
@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_with_a_dimension_of_0(backend: Target, name: str, dim: str) -> None:
    usual = Sizes()
    sizes = usual._replace(**{dim: 0})
    whole = calls(name, usual, backend.device)
    for call, other in zip(calls(name, sizes, backend.device), whole, strict=True):
        if all(t.shape == other.leaves[k].shape for k, t in call.leaves.items()):
            return
        refusal = REFUSED.get((name, dim), "")
        if refusal:
            with pytest.raises(ValueError, match=refusal):
                call()
            continue
        leaves = {k: t.clone().requires_grad_() for k, t in call.leaves.items()}
        results = call(**leaves)
        with vf.backend("reference"):
            wide = {k: t.detach().double().requires_grad_() for k, t in leaves.items()}
            truths = call(**wide)
        for result, truth, shape in zip(results, truths, other(), strict=True):
            want = tuple(0 if n == getattr(usual, dim) else n for n in shape.shape)
            assert tuple(result.shape) == want, f"{call}"
            torch.testing.assert_close(result.double(), truth, rtol=1e-5, atol=1e-6)
            if result.numel() and (name, dim) in NOT_FINITE:
                assert (result == NOT_FINITE[name, dim]).all(), f"{call}"
            else:
                assert result.isfinite().all(), f"{call}"
            floor = "free_bits" in call.arguments
            if dim in ("batch", "samples") and result.dim() == 0 and not floor:
                assert result == 0, f"{call}"
        for found in (results, truths):
            total = sum(r.sum() for r in found if r.requires_grad)
            if isinstance(total, Tensor):
                total.backward()
        for key, leaf in leaves.items():
            truth = wide[key].grad
            if leaf.grad is None or truth is None:
                assert truth is None or not truth.any(), f"{call}: {key} has no gradient"
                continue
            assert leaf.grad.shape == leaf.shape, f"{call}: {key}"
            torch.testing.assert_close(leaf.grad.double(), truth, rtol=1e-5, atol=1e-6)


REDUCTIONS = ("none", "sample", "batchmean", "sum", "mean")
SHAPES = [(0, 4), (3, 0), (0,), (2, 0, 3), (0, 0), (0, 2, 3), (3, 2, 0)]


def _loss_shape(shape: tuple[int, ...], lead: int, reduction: str) -> tuple[int, ...]:
    return {"none": shape, "sample": shape[:lead]}.get(reduction, ())


def _check(
    model: vf.likelihoods.Likelihood,
    params: list[Tensor],
    target: Tensor,
    elements: tuple[int, ...],
    lead: int,
) -> None:
    """Every reduction over no elements is 0, and so are its gradients."""
    per_sample = elements[lead - 1 :]
    device = target.device
    mask = torch.ones(per_sample, dtype=torch.bool, device=device)
    for reduction, given in itertools.product(
        REDUCTIONS, ({}, {"mask": mask, "weight": torch.ones(per_sample, device=device)})
    ):
        leaves = [p.detach().clone().requires_grad_() for p in params]
        packed = leaves[0] if len(leaves) == 1 else tuple(leaves)
        loss = vf.nll(packed, target, model, reduction=reduction, validate=True, **given)
        assert tuple(loss.shape) == _loss_shape(elements, lead, reduction)
        assert not loss.any()
        grads = torch.autograd.grad(loss, leaves, torch.ones_like(loss))
        for leaf, grad in zip(leaves, grads, strict=True):
            assert grad.shape == leaf.shape
            assert not grad.any()


@pytest.mark.each(3)
@pytest.mark.parametrize("case", likelihood_cases.ALL, ids=str)
def test_every_likelihood_of_no_elements(
    backend: Target, case: likelihood_cases.LikelihoodCase
) -> None:
    for shape, samples in itertools.product(SHAPES, (None, 2, 0)):
        full = shape if samples is None else (samples, *shape)
        rng = random.Random(0)
        scalar = None
        settings = dict(case.settings)
        if case.scalar is not None:
            scalar = case.scalar.to(backend.device).clone().requires_grad_()
        model = case.build(scalar)
        assert settings == case.settings
        params = [p.float().to(backend.device) for p in case.params(full, rng)]
        target = torch.zeros(shape, device=backend.device)
        _check(model, params, target, full, len(full) - len(shape) + 1)
        if scalar is not None:
            vf.nll(params[0], target, model).backward()
            assert scalar.grad == 0


@pytest.mark.parametrize("name", vf.likelihoods.registered_rows())
def test_every_likelihood_with_classes_of_no_positions(backend: Target, name: str) -> None:
    last = {f.name for f in dataclasses.fields(vf.likelihoods.registered_rows()[name])}
    model = vf.likelihoods.registered_rows()[name](**({"dim": -1} if "dim" in last else {}))
    classes = getattr(model, "size", 5)
    for shape, samples in itertools.product([(0,), (0, 2), (3, 0), (2, 0, 4)], (None, 2, 0)):
        full = shape if samples is None else (samples, *shape)
        params = torch.zeros(*full, classes, device=backend.device)
        target = _row_target(model, shape, backend.device)
        if target is not None and model.elements(target) == shape:
            _check(model, [params], target, full, len(full) - len(shape) + 1)


def _row_target(
    model: vf.likelihoods.Likelihood, shape: tuple[int, ...], device: str
) -> Tensor | None:
    """A target of these positions, or None where the likelihood has none of such a shape."""
    inside = {"categorical": (), "multinomial": (5,)}.get(
        model.name, (getattr(model, "channels", 1),)
    )
    kind = next(d for d in model.target_dtypes if d in (torch.float32, torch.int64))
    return torch.zeros(*shape, *inside, dtype=kind, device=device)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_classes(backend: Target, reduction: str) -> None:
    """A row of no counts is certain; an index is no class where there is none."""
    logits = torch.zeros(3, 0, device=backend.device, requires_grad=True)
    counts = torch.zeros(3, 0, device=backend.device)
    for target in (counts, counts.to_sparse_csr()):
        loss = vf.nll(logits, target, "multinomial", reduction=reduction)
        assert not loss.any()
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        assert grad.shape == logits.shape
    index = torch.zeros(3, dtype=torch.long, device=backend.device)
    assert vf.nll(logits, index, "categorical", reduction=reduction).isnan().all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", [*vf.likelihoods.registered(), "multinomial", "categorical"])
def test_linear_nll_of_nothing(backend: Target, name: str, reduction: str) -> None:
    """No batch, no hidden features, no outputs, no samples."""
    model = vf.likelihoods.resolve(name)
    rows = isinstance(model, vf.likelihoods.RowLikelihood)
    if not rows and reduction == "none":
        pytest.skip("takes no reduction='none'")
    if name == "categorical":
        model = vf.Categorical(dim=-1)
    heads = 1 if rows else model.fewest_params()
    for samples, batch, hidden, width in [
        *[(None, 0, 4, 5), (None, 3, 0, 5), (None, 3, 4, 0), (2, 0, 4, 5), (0, 3, 4, 5)],
        *[(2, 3, 4, 0), (None, 0, 0, 0)],
    ]:
        if name == "categorical" and not width and batch:
            continue
        lead = () if samples is None else (samples,)
        h = torch.ones(*lead, batch, hidden, device=backend.device, requires_grad=True)
        weights = [torch.ones(width, hidden, device=backend.device) for _ in range(heads)]
        biases = [torch.ones(width, device=backend.device) for _ in range(heads)]
        leaves = [h, *(t.requires_grad_() for t in (*weights, *biases))]
        target = torch.zeros(batch, width, device=backend.device)
        if name == "categorical":
            target = torch.zeros(batch, dtype=torch.long, device=backend.device)
        loss = vf.linear_nll(h, weights, biases, target, model, reduction=reduction)
        params = [torch.nn.functional.linear(h, w, b) for w, b in zip(weights, biases, strict=True)]
        links = vf.ops.linear_nll.links_for(None, model, heads)
        linked = tuple(p.exp() if k == "exp" else p for p, k in zip(params, links, strict=True))
        whole = vf.nll(linked[0] if heads == 1 else linked, target, model, reduction=reduction)
        torch.testing.assert_close(loss, whole)
        got = torch.autograd.grad(loss.sum(), leaves)
        want = torch.autograd.grad(whole.sum(), leaves, allow_unused=True)
        for a, b, leaf in zip(got, want, leaves, strict=True):
            assert a.shape == leaf.shape
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


def test_an_empty_batch_of_many_samples(backend: Target) -> None:
    """IWAE's call: the upstream gradient `[K, 0]` has no memory to be read."""
    for shape in [(5, 0, 4), (5, 0), (5, 0, 2, 3)]:
        logits = torch.zeros(shape, device=backend.device, requires_grad=True)
        target = torch.zeros(shape[1:], device=backend.device)
        loss = vf.nll(logits, target, "bernoulli", reduction="sample")
        assert loss.shape == shape[:2]
        loss.sum().backward()
        assert logits.grad is not None
        assert logits.grad.shape == shape


def test_a_mean_over_nothing_is_0(backend: Target) -> None:
    """By a mask, in every operator that takes one, with gradients of 0."""
    mu, logvar, x = torch.randn(3, 4, 5, device=backend.device)
    for mask in (torch.zeros(4, 5), torch.zeros(4), torch.zeros(5), torch.zeros(1, 1)):
        given = {"mask": mask.bool().to(backend.device), "reduction": "mean"}
        leaves = [t.clone().requires_grad_() for t in (mu, logvar)]
        index = torch.zeros(4, dtype=torch.long, device=backend.device)
        losses = [
            vf.gaussian_kl(*leaves, **given),
            vf.sample_kl(*leaves, **given)[1],
            vf.nll(tuple(leaves), x, "gaussian", **given),
            vf.nll(leaves[0], x, vf.Gaussian("optimal"), **given),
            vf.linear_nll(leaves[0], logvar[:, :4].new_ones(5, 5), leaves[1][0], x, "gaussian",
                          **given),
        ]  # fmt: skip
        if mask.dim() != 2 and mask.shape != (5,):
            losses.append(vf.nll(leaves[0], index, "categorical", **given))
        for loss in losses:
            assert loss == 0
            for grad in torch.autograd.grad(loss, leaves, allow_unused=True):
                assert grad is None or not grad.any()
