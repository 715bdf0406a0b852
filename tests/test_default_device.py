"""Another default device than the tensors': no operator may make a tensor of its own elsewhere."""

from __future__ import annotations

import ast
import itertools
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import likelihood_cases
import pytest
import torch
from conftest import Target
from operator_calls import Sizes, calls, operators
from program import python

import vaefast as vf

PACKAGE = Path(vf.__file__).parent
# They take the default device where they are not told one.
FACTORIES = {
    *("empty", "zeros", "ones", "full", "tensor", "scalar_tensor", "arange", "linspace", "eye"),
    *("rand", "randn", "randint", "randperm", "empty_strided", "sparse_csr_tensor", "as_tensor"),
    *("logspace", "tril_indices", "triu_indices", "sparse_coo_tensor"),
}


def _without_device() -> Iterator[str]:
    for path in sorted(PACKAGE.rglob("*.py")):
        # An application: its tensors are its own.
        if {"train", "cli", "lecture", "report"} & set(path.relative_to(PACKAGE).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = node.func.value
            if not (isinstance(owner, ast.Name) and owner.id == "torch"):
                continue
            if node.func.attr in FACTORIES and "device" not in {k.arg for k in node.keywords}:
                yield f"{path.relative_to(PACKAGE)}:{node.lineno} torch.{node.func.attr}"


def test_every_tensor_is_made_on_a_device_that_is_named() -> None:
    # A module's parameters are made where the user's default is, as torch.nn's are.
    assert [place for place in _without_device() if not place.startswith("nn_linear.py")] == []


@pytest.fixture
def elsewhere() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


SIZES = [Sizes(), Sizes(batch=64, latent=64, data=4096)]


@pytest.mark.each(3)
@pytest.mark.parametrize("sizes", SIZES, ids=["small", "large"])
@pytest.mark.parametrize("name", sorted(operators()))
def test_every_operator(backend: Target, name: str, sizes: Sizes, request) -> None:
    made = [
        call._replace(
            arguments={
                **call.arguments,
                **{k: t.requires_grad_() for k, t in call.leaves.items() if k != "target"},
            }
        )
        for call in calls(name, sizes, backend.device)
    ]
    wanted = [_results(call) for call in made]
    request.getfixturevalue("elsewhere")
    for call, want in zip(made, wanted, strict=True):
        for a, b in zip(_results(call), want, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


def _results(call) -> list[torch.Tensor]:
    found = call()
    total = [r.sum() for r in found if r.requires_grad]
    grads = ()
    if total:
        leaves = [t for t in call.leaves.values() if t.requires_grad]
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
    return [*found, *(g for g in grads if g is not None)]


@pytest.mark.parametrize("case", likelihood_cases.ALL, ids=str)
def test_every_likelihood(backend: Target, case: likelihood_cases.LikelihoodCase, request) -> None:
    params = [p.float().to(backend.device) for p in case.params((3, 5), random.Random(0))]
    model = case.build(None if case.scalar is None else case.scalar.to(backend.device))
    x = case.target((3, 5), random.Random(0)).float().to(backend.device)
    want = vf.nll(tuple(params), x, model)
    request.getfixturevalue("elsewhere")
    for reduction in ("none", "batchmean"):
        leaves = [p.clone().requires_grad_() for p in params]
        loss = vf.nll(tuple(leaves), x, model, reduction=reduction, validate=True)
        torch.autograd.grad(loss.sum(), leaves)
    torch.testing.assert_close(loss.detach(), want)
    assert model.fewest_params() == case.build().fewest_params()
    model.mean(tuple(params))
    model.sample(tuple(params), seed=0)


@pytest.mark.parametrize("name", vf.likelihoods.registered_rows())
def test_every_likelihood_with_classes(backend: Target, name: str, request) -> None:
    model = vf.likelihoods.resolve(name)
    classes = getattr(model, "size", 6)
    params = torch.randn(3, classes, device=backend.device)
    x = torch.ones(3, classes, device=backend.device)
    if name == "categorical":
        x = torch.ones(3, dtype=torch.long, device=backend.device)
    elif name != "multinomial":
        params, x = params.unsqueeze(2), torch.zeros(3, model.channels, 1, device=backend.device)
    sparse = [x.to_sparse_csr()] if name == "multinomial" else []
    want = vf.nll(params, x, model)
    request.getfixturevalue("elsewhere")
    for target, seed in itertools.product([x, *sparse], [0, [0, 1, 2]]):
        leaf = params.clone().requires_grad_()
        loss = vf.nll(leaf, target, model, validate=True)
        loss.backward()
        torch.testing.assert_close(loss.detach(), want)
        model.sample(params, seed=seed)
    model.mean(params)


@pytest.mark.slow
def test_fresh_memory_for_large_results() -> None:
    """Without kept blocks: what a large result lies in is torch's, and on the call's device."""
    code = """
import torch, vaefast as vf
cpu = {"device": "cpu"}
mu = torch.zeros(512, 512, requires_grad=True, **cpu)
prior = torch.zeros(512, requires_grad=True, **cpu)
x = torch.zeros(512, 512, **cpu)
counts = torch.eye(512, **cpu).to_sparse_csr()
torch.set_default_device("meta")
z, kl = vf.sample_kl(mu, mu, prior_mu=prior)
loss = vf.nll(z, x, "gaussian", reduction="none").sum() + kl.sum()
loss = loss + vf.nll(mu, counts, "poisson") + vf.nll(mu, counts, "poisson").square()
(grad,) = torch.autograd.grad(loss, mu, create_graph=True)
grad.sum().backward()
assert mu.grad.device.type == prior.grad.device.type == "cpu"
"""
    environment = {**os.environ, "VAEFAST_BUFFER_CACHE": "0"}
    subprocess.run(python(code), check=True, env=environment, cwd="/")
